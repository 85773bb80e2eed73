"""Metrics of the kernel: packets that it dropped on UDP sockets, and how full the receive buffers are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Metric

from speadrx.receive.sockets import SocketSet

from . import names
from .collector import Stream, StreamCollector
from .held import HeldStreams

_SocketSets = tuple[SocketSet, ...]


def _add_drops(gone: Counter[str], streams: Sequence[_SocketSets]) -> Counter[str]:
    drops = Counter(gone)
    for sets in streams:
        for sockets in sets:
            drops.update({endpoint: counts.drops for endpoint, counts in sockets.counts().items()})
    return drops


class _LabelSet:
    def __init__(self) -> None:
        self._streams = HeldStreams[_SocketSets, Counter[str]](Counter(), _add_drops)

    def add(self, stream: Stream) -> None:
        self._streams.add(stream, stream._socket_sets)

    def counts(self) -> tuple[Counter[str], Counter[str], Counter[str]]:
        """Packets dropped, bytes queued and sizes of buffers, by endpoint."""
        gone, streams = self._streams.read()
        drops, queues, buffers = Counter(gone), Counter[str](), Counter[str]()
        for sets in streams:
            for sockets in sets:
                for endpoint, counts in sockets.counts().items():
                    drops[endpoint] += counts.drops
                    if counts.receive_buffer:
                        queues[endpoint] += counts.receive_queue
                        buffers[endpoint] += counts.receive_buffer
        return drops, queues, buffers


class KernelCollector(StreamCollector[_LabelSet]):
    """Export what the kernel says of the UDP sockets of `add_reader`: packets dropped, and how full the buffers are.

    Each socket is asked itself, so other sockets on the same port do not count. Sockets of the same endpoint under the
    same labels add up. Packets that the kernel had merged into one (GRO) count as one drop. The bytes in use include
    the kernel's overhead, and up to a quarter of the buffer that was read already and not yet given back.
    """

    def __init__(self, labelnames: Iterable[str] = (), registry: CollectorRegistry | None = None) -> None:
        super().__init__(_LabelSet, labelnames, registry)

    def collect(self) -> Iterable[Metric]:
        """Return the metrics: what a registry calls at each scrape."""
        drops, queues, buffers = (dict[tuple[str, ...], int]() for _ in range(3))
        with self._lock:
            for labels, label_set in self._label_sets:
                for samples, values in zip((drops, queues, buffers), label_set.counts(), strict=True):
                    samples.update({(*labels, endpoint): value for endpoint, value in values.items()})
        return [
            self._counter(names.SOCKET_DROPS, drops, names.ENDPOINT),
            self._gauge(names.SOCKET_RECEIVE_QUEUE_BYTES, queues, names.ENDPOINT),
            self._gauge(names.SOCKET_RECEIVE_BUFFER_BYTES, buffers, names.ENDPOINT),
        ]
