"""Progress bars, on standard error and in a terminal only."""

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
    """A progress bar of some columns, which is gone at the end."""

    def __init__(self, *columns: ProgressColumn) -> None:
        console = Console(stderr=True, highlight=False)
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)


class PolledProgress(Bar):
    """A progress bar for work that is in progress elsewhere: it asks how far that is whenever it is drawn.

    Parameters
    ----------
    total
        How far the work goes (None: nobody knows).
    poll
        Says how far it is, and something about it.
    """

    def __init__(self, total: float | None, poll: Callable[[], tuple[float, str]]) -> None:
        known = (TaskProgressColumn(), TimeRemainingColumn()) if total else ()
        columns = (BarColumn(), *known, TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
        self._poll: Callable[[], tuple[float, str]] | None = None  # as long as there is no task
        super().__init__(*columns)
        self._work = self.add_task("", total=total)
        self._poll = poll

    def get_renderables(self) -> list[RenderableType]:
        """Draw the bar."""
        if self._poll is not None:
            completed, text = self._poll()
            self.update(self._work, completed=completed, description=text)
        return list(super().get_renderables())
