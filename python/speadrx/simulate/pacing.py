"""Clocks for senders: real time, and virtual time that only passes when a sender waits."""

from __future__ import annotations

import time
from typing import Protocol

_MAX_DEBT = 0.01  # the longest delay, in seconds, that a sender makes up for
_MIN_SLEEP = 0.001  # seconds


class Clock(Protocol):
    """What a sender reads the time from, and waits with."""

    def now(self) -> float:
        """Read the time, in seconds. It may start at any moment."""

    def wait_until(self, due: float) -> None:
        """Return at that time, or slightly before."""


class WallClock:
    """Real time, without the time by which a sender has fallen behind. To catch up would overrun the receiver.

    Attributes
    ----------
    lost
        Seconds by which the sender has fallen behind so far.
    """

    def __init__(self) -> None:
        self.lost = 0.0

    def now(self) -> float:
        """Read the time."""
        return time.perf_counter() - self.lost

    def wait_until(self, due: float) -> None:
        """Sleep until that time, unless it is very near. If it has passed, the time since then counts as lost."""
        ahead = due - self.now()
        if ahead > _MIN_SLEEP:
            time.sleep(ahead)
        elif ahead < -_MAX_DEBT:
            self.lost -= ahead + _MAX_DEBT


class VirtualClock:
    """Time that starts at 0, and passes only by waiting. It is for files, which need not be written in real time."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """Read the time."""
        return self._now

    def wait_until(self, due: float) -> None:
        """Move the time on to that time."""
        self._now = max(self._now, due)
