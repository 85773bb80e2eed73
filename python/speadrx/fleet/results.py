"""`ByTime`: puts the results of all shares in the order of time, and does not wait for a slow share for ever."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple


class Results(NamedTuple):
    """What the function has returned for one time."""

    #: The timestamp of the chunks, in ticks.
    timestamp: int
    #: What it returned, by share.
    results: dict[str, Any]
    #: Shares that have not given any.
    missing: tuple[str, ...]
    #: Whether results of a later time were given before.
    late: bool


class ByTime:
    """Results of shares, in the order of time.

    Parameters
    ----------
    shares
        Names of the shares.
    patience
        Seconds to wait for a share that has not given its result for a time, once another has.
    most
        Times to keep if nobody takes them. If there are more, the oldest are thrown away, and counted.
    """

    def __init__(self, shares: Iterable[str], patience: float, most: int = 10_000) -> None:
        self._shares = tuple(shares)
        self._patience, self._most = patience, most
        self._pending: dict[int, dict[str, Any]] = {}
        #: The times that are pending, the first of them in front (`heapq`).
        self._times: list[int] = []
        #: The number of a share that was awaited when somebody looked.
        self._awaited = 0
        self._since: dict[int, float] = {}
        self._newest: dict[str, int] = {}
        self._ended: set[str] = set()
        self._given: int | None = None
        #: Results that came after those of a later time were given, by share; and times thrown away.
        self.late: Counter[str] = Counter()
        self.thrown_away = 0

    def add(self, share: str, timestamp: int, result: Any, now: float) -> None:
        """Take a result."""
        if self._given is not None and timestamp <= self._given:
            self.late[share] += 1
        if timestamp not in self._pending:
            self._pending[timestamp], self._since[timestamp] = {}, now
            heapq.heappush(self._times, timestamp)
        self._pending[timestamp][share] = result
        self._newest[share] = max(timestamp, self._newest.get(share, timestamp))
        if len(self._pending) > self._most:
            self._take()
            self.thrown_away += 1

    def end(self, share: str, *, ended: bool = True) -> None:
        """Whether a share will give no more."""
        (self._ended.add if ended else self._ended.discard)(share)

    def next(self, now: float, *, at_once: bool = False) -> Results | None:
        """Give the results of the next time, if it is complete, or was waited for long enough.

        Parameters
        ----------
        now
            The time now, in seconds.
        at_once
            Whether to wait for nobody.
        """
        if not self._pending:
            return None
        timestamp = self._times[0]
        is_late = self._given is not None and timestamp <= self._given
        waits = not at_once and not is_late and now - self._since[timestamp] < self._patience
        if waits and self._awaits(timestamp):
            return None
        there = self._take()
        self._given = timestamp if self._given is None else max(self._given, timestamp)
        missing = tuple(share for share in self._shares if share not in there)
        return Results(timestamp, there, missing, is_late)

    def _awaits(self, timestamp: int) -> bool:
        """Whether a share may still give its result for a time.

        It looks first at the one that was awaited last time, so that it takes no longer with more shares.
        """
        there = self._pending[timestamp]
        for _ in self._shares:
            share = self._shares[self._awaited]
            is_through = share in there or share in self._ended or self._newest.get(share, timestamp - 1) >= timestamp
            if not is_through:
                return True
            self._awaited = (self._awaited + 1) % len(self._shares)
        return False

    def _take(self) -> dict[str, Any]:
        """Take the first of all times."""
        timestamp = heapq.heappop(self._times)
        del self._since[timestamp]
        return self._pending.pop(timestamp)
