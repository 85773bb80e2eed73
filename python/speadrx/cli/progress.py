"""Progress bars, on standard error if it is a terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Bar(Progress):
    """A progress bar that disappears at the end."""

    def __init__(self, *columns: ProgressColumn) -> None:
        console = Console(stderr=True, highlight=False)
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)


class PolledProgress(Bar):
    """A progress bar that asks how far the work is whenever it is drawn.

    Parameters
    ----------
    total
        The amount of work; None if it is not known.
    poll
        Returns how much is done, and a text about it.
    """

    def __init__(self, total: float | None, poll: Callable[[], tuple[float, str]]) -> None:
        known = (TaskProgressColumn(), TimeRemainingColumn()) if total else ()
        columns = (BarColumn(), *known, TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
        self._poll: Callable[[], tuple[float, str]] | None = None  # until there is a task
        super().__init__(*columns)
        self._work = self.add_task("", total=total)
        self._poll = poll

    def get_renderables(self) -> list[RenderableType]:
        """Draw the bar."""
        if self._poll is not None:
            completed, text = self._poll()
            self.update(self._work, completed=completed, description=text)
        return list(super().get_renderables())
