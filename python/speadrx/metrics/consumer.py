"""Metrics of the accounts: heaps present and missing, chunks, and when time began again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Metric

from speadrx.accounts.account import StreamAccounts, Totals
from speadrx.receive.snapshot import in_flight_by_source

from . import names
from .collector import Stream, StreamCollector
from .held import HeldStreams


def _add(gone: Totals, accounts: Sequence[StreamAccounts]) -> Totals:
    return Totals.sum([gone, *(each.totals() for each in accounts)])


class _LabelSet:
    """Accounts under the same labels. Only accounts of the same sources can be added up as lists."""

    def __init__(self) -> None:
        self._by_sources: dict[tuple[str, ...], HeldStreams[StreamAccounts, Totals]] = {}

    def add(self, stream: Stream) -> None:
        labels = stream._accounts.source_labels
        if labels not in self._by_sources:
            self._by_sources[labels] = HeldStreams(Totals.zero(len(labels)), _add)
        self._by_sources[labels].add(stream, stream._accounts)

    def totals(self) -> list[tuple[tuple[str, ...], Totals]]:
        return [(labels, _add(*streams.read())) for labels, streams in list(self._by_sources.items())]

    def in_flight(self) -> Iterable[tuple[tuple[str, ...], list[int]]]:
        """Heaps in flight by source, of each stream that there is."""
        for labels, streams in list(self._by_sources.items()):
            for stream, held in streams:
                if stream is not None:
                    yield labels, in_flight_by_source(stream, held.remains.totals())


class ConsumerCollector(StreamCollector[_LabelSet]):
    """Export what `iter_chunks` has counted. All iterators over a stream add up.

    A chunk that is taken without an iterator is missing, and its heaps stay in flight until the stream stops. With
    several iterators at a time, each misses the chunks that the others take.
    """

    def __init__(self, labelnames: Iterable[str] = (), registry: CollectorRegistry | None = None) -> None:
        super().__init__(_LabelSet, labelnames, registry)

    def collect(self) -> Iterable[Metric]:
        """Return the metrics: what a registry calls at each scrape."""
        present, missing, in_flight, chunks, restarts, gap = (Counter[tuple[str, ...]]() for _ in range(6))
        with self._lock:
            for labels, label_set in self._label_sets:
                for metric in (chunks, restarts, gap):
                    metric[labels] = 0
                for sources, totals in label_set.totals():
                    keys = [(*labels, source) for source in sources]
                    present.update(dict(zip(keys, totals.present, strict=True)))
                    missing.update(dict(zip(keys, totals.missing, strict=True)))
                    chunks[labels] += totals.chunks
                    restarts[labels] += totals.restarts
                    gap[labels] += totals.epoch_gap * len(sources)
                    in_flight.update(dict.fromkeys(keys, 0))
                for sources, heaps in label_set.in_flight():
                    in_flight.update(dict(zip([(*labels, source) for source in sources], heaps, strict=True)))
        return [
            self._counter(names.HEAPS_PRESENT, present, names.SOURCE),
            self._counter(names.HEAPS_MISSING, missing, names.SOURCE),
            self._gauge(names.HEAPS_IN_FLIGHT, in_flight, names.SOURCE),
            self._counter(names.CHUNKS, chunks),
            self._counter(names.RESTARTS, restarts),
            self._counter(names.EPOCH_GAP_HEAPS, gap),
        ]
