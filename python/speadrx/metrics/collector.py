"""What the parts of an `Exporter` share: each is a collector of one kind of metrics."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from speadrx.receive.stream import ChunkRingStream, ChunkStreamRingGroup

from . import names
from .labels import LabelSets, check_labelnames

#: What can be exported.
Stream = ChunkRingStream | ChunkStreamRingGroup

#: Values of a metric by labels: those of streams, and then its own.
Samples = Mapping[tuple[str, ...], float]

_MetricT = TypeVar("_MetricT", bound=Metric)


class _LabelSet(Protocol):
    """What a collector keeps for one set of labels."""

    def add(self, stream: Stream) -> None: ...


LabelSetT = TypeVar("LabelSetT", bound=_LabelSet)


class StreamCollector(Collector, Generic[LabelSetT]):
    """Export one kind of metrics of streams and groups.

    Its lock is never taken by a network thread or by a finaliser.

    Parameters
    ----------
    make
        Makes what is kept for each set of labels.
    labelnames
        Names of the labels that tell streams apart.
    registry
        Where to register the collector. If it is None, the caller does that.
    """

    def __init__(
        self, make: Callable[[], LabelSetT], labelnames: Iterable[str], registry: CollectorRegistry | None
    ) -> None:
        self._label_sets = LabelSets(check_labelnames(labelnames), make)
        # Reentrant because a signal handler may scrape in the middle of a scrape.
        self._lock = threading.RLock()
        # The labels of each sample, made once: there may be many thousands.
        self._labels = functools.cache(_named)
        if registry is not None:
            registry.register(self)  # last, as it may collect at once

    def add(self, stream: Stream, labels: Iterable[str] = ()) -> None:
        """Export a stream or group; see `Exporter.add`."""
        if not isinstance(stream, (ChunkRingStream, ChunkStreamRingGroup)):
            raise TypeError(
                f"stream: given {type(stream).__name__}, but wanted a stream or group from make_stream "
                "or make_stream_group"
            )
        with self._lock:
            self._label_sets.of(labels).add(stream)

    def _counter(self, name: str, samples: Samples, *own: str) -> CounterMetricFamily:
        return self._metric(CounterMetricFamily, name, "_total", samples, own)

    def _gauge(self, name: str, samples: Samples, *own: str) -> GaugeMetricFamily:
        return self._metric(GaugeMetricFamily, name, "", samples, own)

    def _histogram(self, name: str, buckets: Samples) -> HistogramMetricFamily:
        """Make a histogram of counts whose sum is not known."""
        return self._metric(HistogramMetricFamily, name, "_bucket", buckets, (names.BUCKET,))

    def _metric(
        self, kind: Callable[..., _MetricT], name: str, suffix: str, samples: Samples, own: tuple[str, ...]
    ) -> _MetricT:
        labelnames = (*self._label_sets.labelnames, *own)
        metric = kind(name, names.HELP[name], labels=labelnames)
        sample_name, labels_of = metric.name + suffix, self._labels
        # Its own method, which adds one sample, takes several times as long.
        metric.samples = [
            Sample(sample_name, labels_of(labelnames, labels).copy(), value) for labels, value in samples.items()
        ]
        return metric


def _named(names: tuple[str, ...], values: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(names, values, strict=True))
