"""Histories: what the senders of an array send, heap by heap as it is read, and how much of it may be lost.

A history is made of phases. In each, the senders with good clocks agree on the time; others have wrong clocks, or are
silent. Between two phases something happens: a gap, a restart, a clock that goes wrong or comes right.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

#: Windows of data without a heap after which a source is no longer live.
LIVE_WINDOWS = 4
#: Heaps that each source may lose after a disturbance: one of several, and the only one.
ALLOWED, ALLOWED_ALONE = 2, 3

#: The batches that a sender sends instead of one: by the number of batches since its clock went wrong, what the good
#: clocks show, and a generator. AGAIN stands for the packet before, once more.
Clock = Callable[[int, int, np.random.Generator], Sequence[int]]
AGAIN = -(2**62)


@dataclass(frozen=True)
class Shape:
    """How many senders there are, and how their heaps are received."""

    sources: int
    #: Each has a stream of its own, and as many of the sources as the others, in order.
    threads: int = 1
    #: Heaps of a source that are read in a row.
    burst: int = 1
    #: Chunks in the window, and batches in each.
    window: int = 4
    batches: int = 4
    step: int = 4096
    #: The thread of each source, where that is not dealt out evenly.
    dealt: tuple[int, ...] | None = None

    @property
    def span(self) -> int:
        """Batches in the window."""
        return self.window * self.batches

    def thread(self, source: int) -> int:
        """The thread that receives a source."""
        return source * self.threads // self.sources if self.dealt is None else self.dealt[source]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Some time in which the same senders agree."""

    #: How long it is.
    length: int
    #: The batch that good clocks show at its beginning.
    begins: int
    wrong: Mapping[int, Clock] = field(default_factory=dict)
    silent: frozenset[int] = frozenset()
    #: The part of all heaps whose time is garbage: up to two windows ahead.
    garbage: float = 0.0
    #: Heaps that each good source may lose; None for what may be lost after any disturbance.
    allowed: int | None = None
    #: Phases of the same era follow each other in time: what lies between is missing.
    era: int = 0
    #: Batches in which nobody sends before it begins.
    pause: int = 0


class Sent(NamedTuple):
    """A heap, or another copy of it."""

    source: int
    batch: int
    phase: int
    #: Whether its sender is one of those that agree, and its time no garbage.
    good: bool
    #: Its number in the payload; of a copy, that of the first.
    serial: int
    #: When it is read: after all heaps of an earlier moment, and before all of a later one.
    moment: int
    #: Batches that were sent before it by any source, so that silence of all is no time.
    busy: int
    #: When it is due, in batches since the start.
    due: int


@dataclass
class History:
    """All heaps in the order of sending.

    Parameters
    ----------
    shape
        The senders.
    phases
        What they do.
    exact
        Whether heaps are read in this order. Otherwise only rounds of a burst, or of a quarter of the window, are in
        order.
    wrong_last
        Whether the heaps of sources with wrong clocks are read after those of the others, and not before.
    seed
        Of garbage, and of clocks that jump.
    """

    shape: Shape
    phases: Sequence[Phase]
    exact: bool = True
    wrong_last: bool = False
    seed: int = 0
    heaps: list[Sent] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        busy = due = 0
        self._rounds = 0
        for number, phase in enumerate(self.phases):
            due += phase.pause
            block = self.shape.burst if self.exact else max(self.shape.burst, self.shape.span // 4)
            for start in range(0, phase.length, block):
                stop = min(start + block, phase.length)
                self._round(number, range(start, stop), busy, due, rng)
                due += stop - start
                busy += stop - start

    def _round(self, number: int, batches: range, busy: int, due: int, rng: np.random.Generator) -> None:
        """Add some batches of all sources, in bursts of each."""
        phase, burst = self.phases[number], self.shape.burst
        sources = sorted(set(range(self.shape.sources)) - phase.silent, key=lambda source: self._rank(phase, source))
        for first in batches[::burst]:
            for source in sources:
                for i in range(first, min(first + burst, batches.stop)):
                    for batch, is_good in self._sends(phase, source, i, rng):
                        self._add(source, batch, is_good, phase=number, busy=busy + i - batches.start, due=due)
        self._rounds += 1

    def _rank(self, phase: Phase, source: int) -> tuple[bool, int]:
        return (source in phase.wrong) == self.wrong_last, source

    def _sends(self, phase: Phase, source: int, i: int, rng: np.random.Generator) -> Iterator[tuple[int, bool]]:
        """The batches that a source sends when batch `i` of a phase is due, and whether they are right."""
        good = phase.begins + i
        if phase.garbage > 0 and rng.random() < phase.garbage:
            yield good + int(rng.integers(1, 2 * self.shape.span)), False
        elif source in phase.wrong:
            for batch in phase.wrong[source](i, good, rng):
                yield batch, False
        else:
            yield good, True

    def _add(self, source: int, batch: int, is_good: bool, *, phase: int, busy: int, due: int) -> None:
        serial = len(self.heaps)
        if batch == AGAIN:
            before = next(heap for heap in reversed(self.heaps) if heap.source == source)
            serial, batch = before.serial, before.batch
        moment = len(self.heaps) if self.exact else self._rounds
        self.heaps.append(Sent(source, batch, phase, is_good, serial, moment, busy, due))

    def rounds(self) -> Iterator[list[Sent]]:
        """Heaps that may be read in any order, thread by thread; in order if the history is exact."""
        for _, round_ in itertools.groupby(self.heaps, key=self._round_of):
            yield list(round_)

    def _round_of(self, heap: Sent) -> tuple[int, int]:
        return (self.shape.thread(heap.source), heap.due) if self.exact else (0, heap.moment)

    def majorities(self) -> list[int | None]:
        """For each phase, the moment by which more than half of the live sources were read that agree; None if never.

        From then on they count: a heap of an earlier moment may be lost. Of a round, it is not known which of its heaps
        came first. So what counts begins after it; and after the next one if a minority could have been the first to
        be heard in it, for then the others must be read once more.
        """
        last_busy = np.full(self.shape.sources, -1)
        found: list[int | None] = [None] * len(self.phases)
        agreeing: set[int] = set()
        phase = -1
        for moment, group in itertools.groupby(self.heaps, key=lambda heap: heap.moment):
            heaps = list(group)
            if heaps[0].phase != phase:
                phase, agreeing = heaps[0].phase, set()
            is_open = found[phase] is None
            before = self._live(last_busy, heaps[0].busy) if is_open and not self.exact else set()
            for heap in heaps:
                last_busy[heap.source] = heap.busy
                if heap.good:
                    agreeing.add(heap.source)
            if is_open:
                live = self._live(last_busy, heaps[-1].busy)
                if 2 * len(agreeing) > len(live):
                    were_live = 2 * len(before & agreeing) > len(live) or not self.phases[phase].wrong
                    found[phase] = moment if self.exact else moment + 1 + (not were_live)
        return found

    def _live(self, last_busy: np.ndarray, busy: int) -> set[int]:
        """Sources that were heard in the last few windows."""
        is_live = (last_busy >= 0) & (last_busy >= busy - LIVE_WINDOWS * self.shape.span)
        return set(np.flatnonzero(is_live).tolist())

    def allowed(self, phase: int) -> int:
        """Heaps that each good source may lose in a phase, once there is a majority."""
        allowed = self.phases[phase].allowed
        if allowed is not None:
            return allowed
        return ALLOWED_ALONE if self.shape.sources == 1 else ALLOWED

    def lost(self, received: np.ndarray) -> np.ndarray:
        """Good heaps that were lost and count, by phase and source, given for each serial number whether it came."""
        lost = np.zeros((len(self.phases), self.shape.sources), int)
        majorities = self.majorities()
        for heap in self.heaps:
            majority = majorities[heap.phase]
            if heap.good and majority is not None and heap.moment >= majority and not received[heap.serial]:
                lost[heap.phase, heap.source] += 1
        return lost
