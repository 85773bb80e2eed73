"""What the parts of an `Exporter` share: each is a collector of one kind of metrics."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from speadrx.receive.stream import ChunkRingStream, ChunkStreamRingGroup

from . import names
from .labels import LabelSets, check_labelnames

#: What can be exported.
Stream = ChunkRingStream | ChunkStreamRingGroup


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

    def _counter(self, name: str, *own: str) -> CounterMetricFamily:
        return CounterMetricFamily(name, names.HELP[name], labels=(*self._label_sets.labelnames, *own))

    def _gauge(self, name: str, *own: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(name, names.HELP[name], labels=(*self._label_sets.labelnames, *own))


def add_samples(metric: Any, samples: Mapping[tuple[str, ...], float]) -> None:
    """Add a sample to a metric for each set of labels."""
    for labels, value in samples.items():
        metric.add_metric(labels, value)
