"""Accounts of chunks: heaps present and missing, by source."""

from __future__ import annotations

import threading
import weakref
from typing import NamedTuple

import numpy as np


class Counts(NamedTuple):
    """What an account holds at one moment."""

    present: list[int]  # by source
    expected: int  # of each source
    chunks: int
    first_timestamp: int | None
    last_timestamp: int | None


class Accounting:
    """What was received, counted from the first batch of which any heap came to the end of the last chunk.

    Of whole missing chunks in between, all heaps are missing. The last chunk counts whole too, though a sender
    that stops may never have sent all of it. With a layout that is not declarative there is a single source,
    which stands for all, and the first chunk counts whole.

    An account is of the chunks that one iterator has given out, with the one that it is about to give out. It
    may be read at any time from any thread, and outlives the iterator. No number of it ever falls.
    """

    #: Label of each source.
    source_labels: tuple[str, ...]

    def __init__(self, source_labels: tuple[str, ...]) -> None:
        self.source_labels = source_labels
        # Replaced as a whole by the iterator, so that no other thread ever sees half a chunk: `missing` is a
        # difference, which could fall if its terms were of different moments.
        self._counts = Counts([0] * len(source_labels), 0, 0, None, None)

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
    """What the iterators over a stream's chunks have counted together."""

    present: dict[str, int]  # by the label of the source
    missing: dict[str, int]
    chunks: int


class Accounts:
    """The accounts of all iterators over the chunks of a stream or group; outlives them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: list[tuple[weakref.ref[object], Accounting]] = []
        self._ended = Consumed({}, {}, 0)

    def add(self, iterator: object, accounting: Accounting) -> None:
        """Include the account of an iterator, which is held weakly."""
        with self._lock:
            self._end()
            self._live.append((weakref.ref(iterator), accounting))

    def consumed(self) -> Consumed:
        """Add up the accounts, at any time, from any thread."""
        with self._lock:
            self._end()
            return _add_up(self._ended, [accounting for _, accounting in self._live])

    def _end(self) -> None:
        # Without its iterator nothing writes to an account any more.
        ended = [entry for entry in self._live if entry[0]() is None]
        if ended:
            self._ended = _add_up(self._ended, [accounting for _, accounting in ended])
            self._live = [entry for entry in self._live if entry not in ended]


def _add_up(consumed: Consumed, accounts: list[Accounting]) -> Consumed:
    present, missing, chunks = dict(consumed.present), dict(consumed.missing), consumed.chunks
    for accounting in accounts:
        counts = accounting._counts
        chunks += counts.chunks
        for label, heaps in zip(accounting.source_labels, counts.present, strict=True):
            present[label] = present.get(label, 0) + heaps
            missing[label] = missing.get(label, 0) + counts.expected - heaps
    return Consumed(present, missing, chunks)
