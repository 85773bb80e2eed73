"""Metric of packets that reached a stream's sockets or are in its capture, but that spead2 did not get, by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Metric

from speadrx._core import unused_reasons
from speadrx.receive.sockets import SocketSet, unused_packets

from . import names
from .collector import Stream, StreamCollector
from .held import HeldStreams

_SocketSets = tuple[SocketSet, ...]


def _add_unused(gone: Counter[str], streams: Sequence[_SocketSets]) -> Counter[str]:
    counts = Counter(gone)
    if feeds := [feed for sets in streams for sockets in sets for feed in sockets.feeds]:
        counts.update(dict.fromkeys(unused_reasons(), 0))  # a rate can only be told of what was there before
        counts.update(unused_packets(feeds))
    return counts


class _LabelSet:
    def __init__(self) -> None:
        self._streams = HeldStreams[_SocketSets, Counter[str]](Counter(), _add_unused)

    def add(self, stream: Stream) -> None:
        self._streams.add(stream, stream._socket_sets)

    def counts(self) -> Counter[str]:
        """Packets that are not used, by reason."""
        return _add_unused(*self._streams.read())


class UnusedCollector(StreamCollector[_LabelSet]):
    """Export the packets that spead2 did not get, by reason, as ``Receiver.stats().unused`` has them.

    Only what speadrx reads itself can be counted: captures, and the sockets of layouts with a table ``[packets]``.
    Other streams have no such metric.
    """

    def __init__(self, labelnames: Iterable[str] = (), registry: CollectorRegistry | None = None) -> None:
        super().__init__(_LabelSet, labelnames, registry)

    def collect(self) -> Iterable[Metric]:
        """Return the metric: what a registry calls at each scrape."""
        with self._lock:
            packets = {
                (*labels, reason): count
                for labels, label_set in self._label_sets
                for reason, count in label_set.counts().items()
            }
        return [self._counter(names.PACKETS_UNUSED, packets, names.REASON)]
