"""Metrics of the ledgers: heaps placed, duplicate and rejected, bytes, newest timestamps, and how late heaps were."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from speadrx.accounts.ledger import Ledger, LedgerSnapshot

from . import names
from .collector import Stream, StreamCollector, add_samples
from .held import HeldStreams


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
    reasons: tuple[str, ...]
    chunk_batches: int
    n_late_chunks: int

    @property
    def batch_bounds(self) -> list[int]:
        """Upper bounds of the buckets of lateness in batches, up to the number of batches in a chunk."""
        return [2**i - 1 for i in range((self.chunk_batches - 1).bit_length() + 1)]


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
        reasons = tuple(snapshot.rejected_by_source)
        shape = _Shape(
            layout.source_labels, layout.heap_bytes, reasons, layout.chunk_batches, len(snapshot.late_chunks)
        )
        self._by_shape[shape].add(stream, stream.ledger)

    def snapshots(self) -> Iterable[tuple[_Shape, LedgerSnapshot]]:
        for shape, ledgers in list(self._by_shape.items()):
            yield shape, ledgers.snapshot()


class _Histogram:
    """Counts by the upper bounds of buckets, for each set of labels."""

    def __init__(self) -> None:
        self._buckets: defaultdict[tuple[str, ...], Counter[float]] = defaultdict(Counter)

    def add(self, labels: tuple[str, ...], bounds: Iterable[int], counts: list[int]) -> None:
        """Add counts to buckets. Counts beyond the last bound go to the bucket without a bound."""
        buckets = self._buckets[labels]
        for bound, count in itertools.zip_longest(bounds, counts, fillvalue=math.inf):
            buckets[bound] += int(count)

    def metric(self, name: str, labelnames: tuple[str, ...]) -> HistogramMetricFamily:
        metric = HistogramMetricFamily(name, names.HELP[name], labels=labelnames)
        for labels, buckets in self._buckets.items():
            bounds = sorted(buckets)
            cumulative = itertools.accumulate(buckets[bound] for bound in bounds)
            # The sum is not known, only a bound of it.
            metric.add_metric(labels, list(zip(map(floatToGoString, bounds), cumulative, strict=True)), sum_value=None)
        return metric


class LedgerCollector(StreamCollector[_LabelSet]):
    """Export the ledgers. Reading a ledger blocks nobody. A layout with a callback of its own has no ledger."""

    def __init__(self, labelnames: Iterable[str] = (), registry: CollectorRegistry | None = None) -> None:
        super().__init__(_LabelSet, labelnames, registry)

    def collect(self) -> Iterable[Metric]:
        """Return the metrics: what a registry calls at each scrape."""
        placed, received, duplicates, rejected, newest, estranged = (Counter[tuple[str, ...]]() for _ in range(6))
        late_batches, late_chunks = _Histogram(), _Histogram()
        with self._lock:
            for labels, label_set in self._label_sets:
                for shape, snapshot in label_set.snapshots():
                    keys = [(*labels, source) for source in snapshot.source_labels]
                    placed.update(dict(zip(keys, snapshot.placed_by_source.tolist(), strict=True)))
                    in_bytes = (snapshot.placed_by_source * shape.heap_bytes).tolist()
                    received.update(dict(zip(keys, in_bytes, strict=True)))
                    duplicates.update(dict(zip(keys, snapshot.duplicates_by_source.tolist(), strict=True)))
                    for key, timestamp in zip(keys, snapshot.newest_timestamp_by_source.tolist(), strict=True):
                        if timestamp >= 0:
                            newest[key] = max(newest[key], timestamp)
                    for key, is_estranged in zip(keys, snapshot.estranged_by_source.tolist(), strict=True):
                        estranged[key] = max(estranged[key], int(is_estranged))
                    sources = (*snapshot.source_labels, names.UNKNOWN_SOURCE)
                    for reason, heaps in snapshot.rejected_by_source.items():
                        for source, count in zip(sources, heaps.tolist(), strict=True):
                            rejected[*labels, reason, source] += count
                    late_batches.add(labels, shape.batch_bounds, snapshot.late_batches.tolist())
                    late_chunks.add(labels, range(len(snapshot.late_chunks) - 1), snapshot.late_chunks.tolist())
        families = [
            self._counter(names.HEAPS_PLACED, names.SOURCE),
            self._counter(names.RECEIVED_BYTES, names.SOURCE),
            self._counter(names.HEAPS_DUPLICATE, names.SOURCE),
            self._counter(names.HEAPS_REJECTED, names.REASON, names.SOURCE),
            self._gauge(names.NEWEST_TIMESTAMP, names.SOURCE),
            self._gauge(names.SOURCE_ESTRANGED, names.SOURCE),
        ]
        samples_of = (placed, received, duplicates, rejected, newest, estranged)
        for metric, samples in zip(families, samples_of, strict=True):
            add_samples(metric, samples)
        labelnames = self._label_sets.labelnames
        return [
            *families,
            late_batches.metric(names.HEAP_LATENESS_BATCHES, labelnames),
            late_chunks.metric(names.HEAP_LATENESS_CHUNKS, labelnames),
        ]
