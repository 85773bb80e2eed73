"""Keys that are pressed while a live view is shown."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

_T = TypeVar("_T")

#: What terminals send for keys without a letter.
_NAMED = {
    "\x1b[A": "up",
    "\x1bOA": "up",
    "\x1b[B": "down",
    "\x1bOB": "down",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b[H": "home",
    "\x1bOH": "home",
    "\x1b[1~": "home",
}
_MOST_BYTES = 1024


class Browsing:
    """What keys have chosen in a table of sources: the order, and how many rows are above the screen.

    Parameters
    ----------
    sorts
        Names of the orders.
    sort
        The first order.
    """

    #: How many of the first rows to leave out.
    skip = 0
    #: Whether the user has had enough.
    done = False

    def __init__(self, sorts: Iterable[str], sort: str) -> None:
        self.sort = sort
        self._sorts = list(sorts)

    @property
    def hint(self) -> str:
        """What keys do."""
        return f"q: quit   s: sort (by {self.sort})   arrows, page up, page down: scroll"

    def heed(self, key: str, height: int) -> None:
        """Do what a key asks for, in a terminal with so many lines."""
        page = max(height // 2, 1)
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -page, "page down": page, " ": page}
        if key in ("q", "Q"):
            self.done = True
        elif key in ("s", "S"):
            step = 1 if key == "s" else -1
            self.sort = self._sorts[(self._sorts.index(self.sort) + step) % len(self._sorts)]
            self.skip = 0
        elif key == "home":
            self.skip = 0
        else:
            self.skip = max(0, self.skip + steps.get(key, 0))

    def rows(self, things: Sequence[_T]) -> Sequence[_T]:
        """Return the rows from the first on that is to be shown; the last is always shown."""
        self.skip = max(0, min(self.skip, len(things) - 1))
        return things[self.skip :]


class Keys:
    """Reads keys one by one and without echo, if the standard input is a terminal; a context manager.

    Ctrl-C and Ctrl-Z work as ever. A process in the background of its shell reads nothing.
    """

    def __init__(self) -> None:
        self._fd: int | None = None
        self._before: Any = None

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError, ValueError, termios.error):  # there is none, or it is closed
            fd = sys.stdin.fileno()
            if os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp():
                self._before = termios.tcgetattr(fd)
                tty.setcbreak(fd)
                self._fd = fd
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._fd is not None and self._before is not None:
            with contextlib.suppress(OSError, termios.error):  # the terminal has gone away
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
            self._fd = None

    @property
    def are_read(self) -> bool:
        """Whether keys do anything."""
        return self._fd is not None

    def pressed(self, seconds: float) -> list[str]:
        """Wait until keys are pressed, or for so long; return their letters or names (``"page up"``)."""
        if self._fd is None:
            time.sleep(seconds)
            return []
        if not select.select([self._fd], [], [], seconds)[0]:
            return []
        try:
            text = os.read(self._fd, _MOST_BYTES).decode("ascii", "replace")
        except OSError:
            text = ""
        if not text:  # the terminal has gone away
            self._fd = None
        return list(_split(text))


def _split(text: str) -> list[str]:
    found = []
    while text:
        code = next((code for code in _NAMED if text.startswith(code)), text[0])
        found.append(_NAMED.get(code, code))
        text = text[len(code) :]
    return found
