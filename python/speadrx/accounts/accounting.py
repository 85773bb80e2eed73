"""Accounts of chunks: heaps present and missing, by source."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np


class Counts(NamedTuple):
    """What an account holds at one moment."""

    present: list[int]  # by source
    expected: int  # of each source
    chunks: int
    first_timestamp: int | None
    last_timestamp: int | None
    epoch_gap: int  # of each source
    restarts: int


class Accounting:
    """What was received, counted from the first batch of which any heap came to the end of the last chunk.

    Of whole missing chunks in between, all heaps are missing. The last chunk counts whole too, though a sender
    that stops may never have sent all of it. With a layout that is not declarative there is a single source,
    which stands for all, and the first chunk counts whole.

    Where time began anew (a restarted sender), it ends with the last chunk before and goes on with the first batch
    after: nobody knows what was sent in between. If time jumped ahead then, `epoch_gap_heaps` says by how many heaps.

    An account is of the chunks that one iterator has given out, with the one that it is about to give out. It
    may be read at any time from any thread, and outlives the iterator. No number of it ever falls.
    """

    #: Label of each source.
    source_labels: tuple[str, ...]

    def __init__(self, source_labels: tuple[str, ...]) -> None:
        self.source_labels = source_labels
        # Replaced as a whole by the iterator, so that no other thread ever sees half a chunk: `missing` is a
        # difference, which could fall if its terms were of different moments.
        self._counts = Counts([0] * len(source_labels), 0, 0, None, None, 0, 0)

    def consumed(self) -> Consumed:
        """All of it at one moment, by the label of the source."""
        counts = self._counts
        present = Counter(dict(zip(self.source_labels, counts.present, strict=True)))
        missing = Counter({label: counts.expected - heaps for label, heaps in present.items()})
        gap = counts.epoch_gap * len(self.source_labels)
        return Consumed(present, missing, counts.chunks, gap, counts.restarts)

    @property
    def present_by_source(self) -> np.ndarray:
        """Heaps present, by source."""
        return np.array(self._counts.present)

    @property
    def expected_by_source(self) -> np.ndarray:
        """Heaps that should have been present, by source."""
        return np.full(len(self.source_labels), self._counts.expected)

    @property
    def missing_by_source(self) -> np.ndarray:
        """Heaps missing, by source."""
        counts = self._counts
        missing: np.ndarray = counts.expected - np.array(counts.present)
        return missing

    @property
    def present(self) -> int:
        """Heaps present."""
        return sum(self._counts.present)

    @property
    def expected(self) -> int:
        """Heaps that should have been present."""
        return self._counts.expected * len(self.source_labels)

    @property
    def missing(self) -> int:
        """Heaps missing."""
        counts = self._counts
        return counts.expected * len(counts.present) - sum(counts.present)

    @property
    def restarts(self) -> int:
        """How often time began anew."""
        return self._counts.restarts

    @property
    def epoch_gap_heaps(self) -> int:
        """Heaps for the time by which it jumped ahead where it began anew; they are not `missing`."""
        counts = self._counts
        return counts.epoch_gap * len(counts.present)

    @property
    def chunks(self) -> int:
        """Chunks that held data."""
        return self._counts.chunks

    @property
    def first_timestamp(self) -> int | None:
        """Timestamp of the first chunk that held data, in ticks."""
        return self._counts.first_timestamp

    @property
    def last_timestamp(self) -> int | None:
        """Timestamp of the last chunk that held data, in ticks."""
        return self._counts.last_timestamp


class Consumed(NamedTuple):
    """What several accounts say together."""

    present: Counter[str]  # by the label of the source
    missing: Counter[str]
    chunks: int
    epoch_gap: int
    restarts: int

    @classmethod
    def total(cls, parts: Iterable[Consumed]) -> Consumed:
        """Add up."""
        present, missing = Counter[str](), Counter[str]()
        chunks = epoch_gap = restarts = 0
        for part in parts:
            present.update(part.present)
            missing.update(part.missing)
            chunks += part.chunks
            epoch_gap += part.epoch_gap
            restarts += part.restarts
        return cls(present, missing, chunks, epoch_gap, restarts)


class Accounts:
    """The accounts of all iterators over the chunks of a stream or group; outlives them."""

    #: Label of each source.
    source_labels: tuple[str, ...]

    def __init__(self, source_labels: tuple[str, ...]) -> None:
        self.source_labels = source_labels
        self._lock = threading.RLock()  # a signal handler may interrupt a reader, and read too
        self._live: list[tuple[weakref.ref[Any], Accounting]] = []
        self._ended = Accounting(source_labels).consumed()

    def add(self, iterator: Any) -> Accounting:
        """Open an account for an iterator, which is held weakly."""
        accounting = Accounting(self.source_labels)
        with self._lock:
            self._end()
            self._live.append((weakref.ref(iterator), accounting))
        return accounting

    def consumed(self) -> Consumed:
        """Add up the accounts, at any time, from any thread."""
        with self._lock:
            self._end()
            return Consumed.total([self._ended, *(accounting.consumed() for _, accounting in self._live)])

    def settle(self, timeout: float) -> None:
        """Wait until no iterator is in its ring, each for so many seconds; the ring must have been stopped."""
        for reference, _ in self._live:
            iterator = reference()
            if iterator is not None and iterator._lock.acquire(timeout=timeout):
                iterator._lock.release()

    def _end(self) -> None:
        # Without its iterator nothing writes to an account any more. The dead are told once: others may die meanwhile.
        live, ended = [], [self._ended]
        for entry in self._live:
            if entry[0]() is None:
                ended.append(entry[1].consumed())
            else:
                live.append(entry)
        if len(ended) > 1:
            self._live, self._ended = live, Consumed.total(ended)
