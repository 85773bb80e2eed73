"""Metrics of the ledgers: heaps placed, duplicate and rejected, bytes, newest timestamps, and how late heaps were."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.utils import floatToGoString

from speadrx.accounts.ledger import Ledger, LedgerSnapshot

from . import names
from .collector import Samples, Stream, StreamCollector
from .held import HeldStreams

_Key = TypeVar("_Key")


def _add(gone: LedgerSnapshot | None, snapshot: LedgerSnapshot | None) -> LedgerSnapshot | None:
    """Add what ledgers hold to the counts of streams that are gone. What changes is that of the ledgers alone."""
    if gone is None:
        return snapshot
    if snapshot is None:
        return dataclasses.replace(
            gone,
            newest_timestamp_by_source=np.full_like(gone.newest_timestamp_by_source, -1),
            estranged_by_source=np.zeros_like(gone.estranged_by_source),
        )
    return dataclasses.replace(
        snapshot,
        placed_by_source=snapshot.placed_by_source + gone.placed_by_source,
        duplicates_by_source=snapshot.duplicates_by_source + gone.duplicates_by_source,
        rejected_by_source={
            reason: heaps + gone.rejected_by_source[reason] for reason, heaps in snapshot.rejected_by_source.items()
        },
        late_batches=snapshot.late_batches + gone.late_batches,
        late_chunks=snapshot.late_chunks + gone.late_chunks,
    )


class _Shape(NamedTuple):
    """What ledgers must have in common, so that their counts can be added up as arrays."""

    source_labels: tuple[str, ...]
    heap_bytes: int
    #: Reason and source of rejected heaps.
    rejected: tuple[tuple[str, str], ...]
    #: Upper bounds of the buckets of lateness: in batches, up to the number of batches in a chunk; and in chunks.
    batch_bounds: tuple[int, ...]
    chunk_bounds: tuple[int, ...]


class _Ledgers:
    """Ledgers of the same shape under the same labels, read all at once."""

    def __init__(self) -> None:
        self._streams = HeldStreams[Ledger, LedgerSnapshot | None](None, self._fold)
        #: The ledgers, and their sum. It is made again when streams come or go.
        self._sum: tuple[tuple[Ledger, ...], Ledger | None] = ((), None)

    def _fold(self, gone: LedgerSnapshot | None, ledgers: Sequence[Ledger]) -> LedgerSnapshot | None:
        return _add(gone, Ledger._sum(ledgers).snapshot())

    def add(self, stream: Stream, ledger: Ledger) -> None:
        self._streams.add(stream, ledger)

    def snapshot(self) -> LedgerSnapshot:
        gone, ledgers = self._streams.read()
        if self._sum[0] is not ledgers:
            self._sum = ledgers, Ledger._sum(ledgers) if ledgers else None
        total = self._sum[1]
        snapshot = _add(gone, None if total is None else total.snapshot())
        assert snapshot is not None, "an entry is made only to add a ledger to it"
        return snapshot


class _LabelSet:
    """Ledgers under the same labels."""

    def __init__(self) -> None:
        self._by_shape: defaultdict[_Shape, _Ledgers] = defaultdict(_Ledgers)

    def add(self, stream: Stream) -> None:
        if stream.ledger is None:  # the layout has a callback of its own
            return
        layout = stream.ledger._layout
        snapshot = stream.ledger.snapshot()
        shape = _Shape(
            layout.source_labels,
            layout.heap_bytes,
            tuple(itertools.product(snapshot.rejected_by_source, (*layout.source_labels, names.UNKNOWN_SOURCE))),
            tuple(2**i - 1 for i in range((layout.chunk_batches - 1).bit_length() + 1)),
            tuple(range(len(snapshot.late_chunks) - 1)),
        )
        self._by_shape[shape].add(stream, stream.ledger)

    def snapshots(self) -> Iterable[tuple[_Shape, LedgerSnapshot]]:
        for shape, ledgers in list(self._by_shape.items()):
            yield shape, ledgers.snapshot()


def _add_up(totals: dict[_Key, int], keys: Iterable[_Key], counts: Iterable[int]) -> None:
    for key, count in zip(keys, counts, strict=True):
        totals[key] = totals.get(key, 0) + count


class _Histogram:
    """Counts by the upper bounds of buckets, for each set of labels."""

    def __init__(self) -> None:
        self._buckets: defaultdict[tuple[str, ...], dict[float, int]] = defaultdict(dict)

    def add(self, labels: tuple[str, ...], bounds: Sequence[int], counts: list[int]) -> None:
        """Add counts to buckets. Counts beyond the last bound go to the bucket without a bound."""
        bounded = len(bounds)
        _add_up(self._buckets[labels], (*bounds, math.inf), (*counts[:bounded], sum(counts[bounded:])))

    def samples(self) -> Samples:
        """Counts up to each bound."""
        samples = {}
        for labels, buckets in self._buckets.items():
            bounds = sorted(buckets)
            for bound, count in zip(bounds, itertools.accumulate(map(buckets.__getitem__, bounds)), strict=True):
                samples[*labels, _written(bound)] = count
        return samples


#: A bound as Prometheus writes it. There are few, and it takes as long as the rest of a sample.
_written = functools.cache(floatToGoString)


class LedgerCollector(StreamCollector[_LabelSet]):
    """Export the ledgers. Reading a ledger blocks nobody. A layout with a callback of its own has no ledger."""

    def __init__(self, labelnames: Iterable[str] = (), registry: CollectorRegistry | None = None) -> None:
        super().__init__(_LabelSet, labelnames, registry)

    def collect(self) -> Iterable[Metric]:
        """Return the metrics: what a registry calls at each scrape."""
        placed, received, duplicates, rejected, newest, estranged = (dict[tuple[str, ...], int]() for _ in range(6))
        late_batches, late_chunks = _Histogram(), _Histogram()
        with self._lock:
            for labels, label_set in self._label_sets:
                for shape, snapshot in label_set.snapshots():
                    keys = [(*labels, source) for source in shape.source_labels]
                    _add_up(placed, keys, snapshot.placed_by_source.tolist())
                    _add_up(received, keys, (snapshot.placed_by_source * shape.heap_bytes).tolist())
                    _add_up(duplicates, keys, snapshot.duplicates_by_source.tolist())
                    for key, timestamp in zip(keys, snapshot.newest_timestamp_by_source.tolist(), strict=True):
                        if timestamp >= 0:
                            newest[key] = max(newest.get(key, 0), timestamp)
                    for key, is_estranged in zip(keys, snapshot.estranged_by_source.tolist(), strict=True):
                        estranged[key] = estranged.get(key, 0) | is_estranged
                    by_reason = [heaps.tolist() for heaps in snapshot.rejected_by_source.values()]
                    _add_up(rejected, map(labels.__add__, shape.rejected), itertools.chain.from_iterable(by_reason))
                    late_batches.add(labels, shape.batch_bounds, snapshot.late_batches.tolist())
                    late_chunks.add(labels, shape.chunk_bounds, snapshot.late_chunks.tolist())
        return [
            self._counter(names.HEAPS_PLACED, placed, names.SOURCE),
            self._counter(names.RECEIVED_BYTES, received, names.SOURCE),
            self._counter(names.HEAPS_DUPLICATE, duplicates, names.SOURCE),
            self._counter(names.HEAPS_REJECTED, rejected, names.REASON, names.SOURCE),
            self._gauge(names.NEWEST_TIMESTAMP, newest, names.SOURCE),
            self._gauge(names.SOURCE_ESTRANGED, estranged, names.SOURCE),
            self._histogram(names.HEAP_LATENESS_BATCHES, late_batches.samples()),
            self._histogram(names.HEAP_LATENESS_CHUNKS, late_chunks.samples()),
        ]
