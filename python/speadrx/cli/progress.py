"""A progress bar for work that is in progress elsewhere: it asks how far that is whenever it is drawn."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class PolledProgress(Progress):
    """A progress bar on standard error, shown in a terminal only.

    Parameters
    ----------
    total
        How far the work goes (None: nobody knows).
    poll
        Says how far it is, and something about it.
    """

    def __init__(self, total: float | None, poll: Callable[[], tuple[float, str]]) -> None:
        console = Console(stderr=True, highlight=False)
        known = (TaskProgressColumn(), TimeRemainingColumn()) if total else ()
        columns = (BarColumn(), *known, TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
        self._poll: Callable[[], tuple[float, str]] | None = None  # as long as there is no task
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._work = self.add_task("", total=total)
        self._poll = poll

    def get_renderables(self) -> list[RenderableType]:
        """Draw the bar."""
        if self._poll is not None:
            completed, text = self._poll()
            self.update(self._work, completed=completed, description=text)
        return list(super().get_renderables())
