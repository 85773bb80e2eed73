"""Clocks that senders keep time by: the wall's, and one that only passes where somebody waits."""

from __future__ import annotations

import time
from typing import Protocol

_MAX_DEBT = 0.01  # seconds of lateness that are made up for in a burst
_MIN_SLEEP = 0.001  # seconds


class Clock(Protocol):
    """Where a sender reads the time, and waits."""

    def now(self) -> float:
        """Read the time, in seconds since any moment."""

    def wait_until(self, due: float) -> None:
        """Return when the time is that late, or almost."""


class WallClock:
    """Time as it passes, less what a sender has fallen behind: a longer burst would only overrun the receiver.

    Attributes
    ----------
    lost
        Seconds that were given up so far.
    """

    def __init__(self) -> None:
        self.lost = 0.0

    def now(self) -> float:
        """Read the time."""
        return time.perf_counter() - self.lost

    def wait_until(self, due: float) -> None:
        """Sleep until then, if that is worth it. If it was long ago, the time in between counts as lost."""
        ahead = due - self.now()
        if ahead > _MIN_SLEEP:
            time.sleep(ahead)
        elif ahead < -_MAX_DEBT:
            self.lost -= ahead + _MAX_DEBT


class VirtualClock:
    """Time that starts at 0 and is as late as the last wait: for files, which are written faster than they are sent."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """Read the time."""
        return self._now

    def wait_until(self, due: float) -> None:
        """Let it be that late."""
        self._now = max(self._now, due)
