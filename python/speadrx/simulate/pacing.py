"""Clocks for senders, real time and virtual time that only passes when a sender waits; and when packets are due."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np

_MAX_DEBT = 0.01  # the longest delay, in seconds, that a sender makes up for
_MIN_SLEEP = 1e-5  # seconds


class Clock(Protocol):
    """What a sender reads the time from, and waits with; several threads may use it."""

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
        self._lock = threading.Lock()

    def now(self) -> float:
        """Read the time."""
        return time.perf_counter() - self.lost

    def wait_until(self, due: float) -> None:
        """Sleep until that time, unless it is very near. If it has passed, the time since then counts as lost."""
        ahead = due - self.now()
        if ahead > _MIN_SLEEP:
            time.sleep(ahead)
        elif ahead < -_MAX_DEBT:
            with self._lock:  # threads that are late at one time have lost it once
                self.lost += max(self.now() - due - _MAX_DEBT, 0.0)


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


def check_pace(rate: float | None, speed: float | None, tick_rate: float | None) -> None:
    """Refuse a pace that cannot be.

    Raises
    ------
    ValueError
        If `rate` or `speed` is not positive and finite, if both are given, or if `speed` is without a tick rate.
    """
    for name, value, unit in (("rate", rate, " of bytes per second"), ("speed", speed, "")):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}: {value} must be a positive number{unit}")
    if speed is not None and rate is not None:
        raise ValueError(f"speed: {speed} cannot be combined with rate {rate}: give either speed or rate, not both")
    if speed is not None and tick_rate is None:
        raise ValueError(f"speed: {speed} needs a layout with a tick_rate, and this one has none: give rate")


class Pace(Protocol):
    """When packets are due."""

    #: About how long a packet takes.
    packet_seconds: float

    def due(self, sizes: np.ndarray, begun: Sequence[int]) -> np.ndarray | None:
        """When the next packets are due by the clock; None if at once.

        Parameters
        ----------
        sizes
            Their bytes.
        begun
            The heaps, lost ones too, that had been begun when each was sent.
        """

    def end(self, begun: int) -> float | None:
        """When all is over."""


class AtOnce:
    """As fast as possible."""

    packet_seconds = 0.0

    def due(self, sizes: np.ndarray, begun: Sequence[int]) -> None:
        """Say that packets are due at once."""

    def end(self, begun: int) -> None:
        """Say that all is over."""


class AtRate:
    """Each packet has the time that its bytes take at the rate."""

    def __init__(self, rate: float, start: float, packet_bytes: float) -> None:
        self._rate, self._start, self._bytes = rate, start, 0
        self.packet_seconds = packet_bytes / rate

    def due(self, sizes: np.ndarray, begun: Sequence[int]) -> np.ndarray:
        """When the next packets are due."""
        ends = self._bytes + np.cumsum(sizes, dtype=np.int64)
        self._bytes = int(ends[-1])
        due: np.ndarray = self._start + (ends - sizes) / self._rate
        return due

    def end(self, begun: int) -> float:
        """When all is over."""
        return self._start + self._bytes / self._rate


class AtSpeed:
    """Each heap has its share of the time of a batch, and its packets are spread over that time."""

    def __init__(self, heap_seconds: float, heap_packets: int, start: float, begun: int) -> None:
        self._heap_seconds, self._heap_packets, self._start, self._before = heap_seconds, heap_packets, start, begun
        self._heap = self._packets = 0
        self.packet_seconds = heap_seconds / heap_packets

    def due(self, sizes: np.ndarray, begun: Sequence[int]) -> np.ndarray:
        """When the next packets are due."""
        due = []
        for heap in begun:
            if heap - self._before != self._heap:
                self._heap, self._packets = heap - self._before, 0
            spread = min(self._packets / self._heap_packets, 1)
            due.append(self._start + (self._heap - 1 + spread) * self._heap_seconds)
            self._packets += 1
        return np.array(due)

    def end(self, begun: int) -> float:
        """When all is over."""
        return self._start + (begun - self._before) * self._heap_seconds
