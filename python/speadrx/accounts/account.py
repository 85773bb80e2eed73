"""Accounts of the chunks that were received: heaps present and missing, by source."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

import numpy as np

from .loss import loss


class Totals(NamedTuple):
    """The numbers of an account at one moment, or the sum of several accounts of the same sources."""

    #: Heaps present, by source.
    present_by_source: np.ndarray
    #: Those of them that are later than the last batch of which all heaps are expected; see `Account`.
    outside: list[int]
    #: Heaps that should have been present, of each source, without those.
    expected: int
    #: Chunks that held data.
    chunks: int
    #: Heaps of each source in the time that was jumped over when time began again, and that time in ticks.
    epoch_gap: int
    epoch_gap_ticks: int
    #: How often time began again.
    restarts: int
    #: Whole chunks that are missing, and were not given out either.
    skipped: int
    #: Timestamps of the first and the last chunk that held data. None before the first chunk, and in a sum.
    first_timestamp: int | None = None
    last_timestamp: int | None = None

    @property
    def present(self) -> list[int]:
        """Heaps present, by source."""
        present: list[int] = self.present_by_source.tolist()
        return present

    @property
    def missing(self) -> list[int]:
        """Heaps missing, by source."""
        return [self.expected + outside - present for present, outside in zip(self.present, self.outside, strict=True)]

    @classmethod
    def zero(cls, n_sources: int) -> Self:
        """Nothing was received yet."""
        return cls(np.zeros(n_sources, np.int64), [0] * n_sources, 0, 0, 0, 0, 0, 0)

    @classmethod
    def sum(cls, parts: Iterable[Totals]) -> Self:
        """Add up one or more."""
        present, outside, *numbers, _, _ = zip(*parts, strict=True)
        return cls(np.sum(present, axis=0), [sum(heaps) for heaps in zip(*outside, strict=True)], *map(sum, numbers))


class Account:
    """What one iterator over chunks has received, from the first batch that has a heap to the last batch that has one.

    All heaps of these batches are expected. If whole chunks in between never came, all their heaps are missing. The
    last chunk counts up to its last batch that has a heap. Once a later chunk comes, the rest of it counts too. If the
    layout is not declarative, a single source stands for all, and whole chunks count.

    When time begins again (because senders were restarted), the account ends with the last batch before that, and goes
    on with the first batch after it. Nobody knows what was sent in between. If time jumped ahead, `epoch_gap_heaps`
    says by how many heaps.

    When a stream is drained while heaps still come, the account ends with the batch that most sources had reached when
    that began. Of later batches, only those heaps are expected that came, since the others were cut off. Likewise, if
    heaps come already when a `Receiver` starts, the account begins once all its sockets are open.

    An account includes the chunks that its iterator has given out, and the one that it is about to give out. It may be
    read at any time, from any thread. It outlives its iterator. None of its numbers ever falls.
    """

    #: Label of each source.
    source_labels: tuple[str, ...]

    def __init__(self, source_labels: tuple[str, ...]) -> None:
        self.source_labels = source_labels
        # The iterator replaces it as a whole, so that no other thread ever sees half a chunk. Otherwise the number of
        # missing heaps, which is a difference, could fall.
        self._totals = Totals.zero(len(source_labels))

    @property
    def present_by_source(self) -> np.ndarray:
        """Heaps present, by source."""
        return self._totals.present_by_source.copy()

    @property
    def expected_by_source(self) -> np.ndarray:
        """Heaps that should have been present, by source."""
        totals = self._totals
        return np.array(totals.outside) + totals.expected

    @property
    def missing_by_source(self) -> np.ndarray:
        """Heaps missing, by source."""
        return np.array(self._totals.missing)

    @property
    def present(self) -> int:
        """Heaps present."""
        return sum(self._totals.present)

    @property
    def expected(self) -> int:
        """Heaps that should have been present."""
        totals = self._totals
        return totals.expected * len(self.source_labels) + sum(totals.outside)

    @property
    def missing(self) -> int:
        """Heaps missing."""
        return sum(self._totals.missing)

    @property
    def loss(self) -> float | None:
        """Heaps missing, as a fraction of those expected; None if none were expected."""
        totals = self._totals
        return loss(sum(totals.missing), sum(totals.present))

    @property
    def restarts(self) -> int:
        """How often time began again."""
        return self._totals.restarts

    @property
    def epoch_gap_heaps(self) -> int:
        """Heaps in the time that was jumped over when time began again. They do not count as missing."""
        return self._totals.epoch_gap * len(self.source_labels)

    @property
    def epoch_gap_ticks(self) -> int:
        """The same time in ticks."""
        return self._totals.epoch_gap_ticks

    @property
    def chunks(self) -> int:
        """Chunks that held data."""
        return self._totals.chunks

    @property
    def skipped_chunks(self) -> int:
        """Whole chunks that never came and were left out. With ``gaps=True``, only what gaps had too much."""
        return self._totals.skipped

    @property
    def first_timestamp(self) -> int | None:
        """Timestamp of the first chunk that held data, in ticks."""
        return self._totals.first_timestamp

    @property
    def last_timestamp(self) -> int | None:
        """Timestamp of the last chunk that held data, in ticks."""
        return self._totals.last_timestamp


class StreamAccounts:
    """The accounts of all iterators over the chunks of one stream or group. It outlives the stream."""

    #: Label of each source.
    source_labels: tuple[str, ...]

    def __init__(self, source_labels: tuple[str, ...]) -> None:
        self.source_labels = source_labels
        self._lock = threading.RLock()  # reentrant: a signal handler may interrupt a reader, and read too
        self._open: list[tuple[weakref.ref[Any], Account]] = []
        self._closed = Totals.zero(len(source_labels))

    def open(self, iterator: Any) -> Account:
        """Open an account for an iterator, which is held weakly."""
        account = Account(self.source_labels)
        with self._lock:
            self._close()
            self._open.append((weakref.ref(iterator), account))
        return account

    def totals(self) -> Totals:
        """Add up all accounts; at any time, from any thread."""
        with self._lock:
            self._close()
            return Totals.sum([self._closed, *(account._totals for _, account in self._open)])

    def wait_for_iterators(self, timeout: float) -> None:
        """Wait until no iterator waits in the ring, which must be stopped; `timeout` seconds for each at most."""
        for reference, _ in self._open:
            iterator = reference()
            if iterator is not None and iterator._lock.acquire(timeout=timeout):
                iterator._lock.release()

    def _close(self) -> None:
        """Keep only the totals of accounts whose iterator no longer exists, as nothing writes to them any more."""
        still_open, closed = [], [self._closed]
        for reference, account in self._open:  # each reference is asked once: iterators may go away meanwhile
            if reference() is None:
                closed.append(account._totals)
            else:
                still_open.append((reference, account))
        if len(closed) > 1:
            self._open, self._closed = still_open, Totals.sum(closed)
