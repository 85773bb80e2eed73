"""Metrics of the rings: how full they are, and for how long they kept a stream from going on."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Metric

from . import names
from .collector import Stream, StreamCollector
from .held import HeldStreams

#: Seconds between samples of the rings.
SAMPLE_INTERVAL = 0.02


class _RingState(NamedTuple):
    """The sum of rings at one moment."""

    chunks: int = 0
    capacity: int = 0
    #: How many of them keep a stream from going on.
    blocked: int = 0


class _Integral:
    """The states of rings, added up over time. Half of the time between two samples counts for each of them."""

    def __init__(self) -> None:
        self.state = _RingState()
        self.chunk_seconds = 0.0
        self.blocked_seconds = 0.0

    def add(self, state: _RingState, seconds: float) -> None:
        self.chunk_seconds += (self.state.chunks + state.chunks) / 2 * seconds
        self.blocked_seconds += (self.state.blocked + state.blocked) / 2 * seconds
        self.state = state


class _LabelSet:
    def __init__(self) -> None:
        self._streams = HeldStreams[None, None](None, lambda total, remains: None)
        self._time = time.monotonic()
        self.rings = {names.DATA_RING: _Integral(), names.FREE_RING: _Integral()}

    def add(self, stream: Stream) -> None:
        self.sample()  # the new stream must not count for the time until now
        self._streams.add(stream, None)
        self.sample()

    def sample(self) -> None:
        self._streams.forget_gone()
        # By ring, since streams may share one: whether a stream that uses it is running.
        data: dict[Any, bool] = {}
        free: dict[Any, bool] = {}
        for stream, held in self._streams:
            if stream is not None:
                for rings, ring in ((data, stream.data_ringbuffer), (free, stream.free_ringbuffer)):
                    rings[ring] = rings.get(ring, False) or not held.final
        now = time.monotonic()
        # A signal handler may have sampled since this method was called, and so be ahead of it.
        seconds = max(0.0, now - self._time)
        self._time = max(now, self._time)
        self.rings[names.DATA_RING].add(_state(data, lambda fill, capacity: fill == capacity), seconds)
        self.rings[names.FREE_RING].add(_state(free, lambda fill, capacity: fill == 0), seconds)


def _state(rings: Mapping[Any, bool], blocks: Callable[[int, int], bool]) -> _RingState:
    fills = [(ring.qsize(), ring.maxsize, running) for ring, running in rings.items()]
    return _RingState(
        chunks=sum(fill for fill, _, _ in fills),
        capacity=sum(capacity for _, capacity, _ in fills),
        blocked=sum(running and blocks(fill, capacity) for fill, capacity, running in fills),
    )


class RingCollector(StreamCollector[_LabelSet]):
    """Export how full the rings are, and for how long the data ring was full or the free ring empty.

    A thread of its own looks at the rings in short intervals, and so does each scrape. The thread ends with the
    collector.

    Parameters
    ----------
    labelnames, registry
        See `StreamCollector`. A registry keeps the collector alive.
    interval
        Seconds between looks.
    """

    def __init__(
        self,
        labelnames: Iterable[str] = (),
        registry: CollectorRegistry | None = None,
        *,
        interval: float = SAMPLE_INTERVAL,
    ) -> None:
        if not 0 < interval < math.inf:
            raise ValueError(f"interval: {interval!r} must be more than 0, and finite")
        super().__init__(_LabelSet, labelnames, registry)
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=_sample_rings,
            args=(weakref.ref(self), self._closing, interval),
            name="speadrx-rings",
            daemon=True,
        )
        self._thread.start()

    def collect(self) -> Iterable[Metric]:
        """Return the metrics: what a registry calls at each scrape."""
        chunks, capacity, blocked, chunk_seconds = (dict[tuple[str, ...], float]() for _ in range(4))
        with self._lock:
            self._sample()
            for labels, label_set in self._label_sets:
                for ring, integral in label_set.rings.items():
                    chunks[*labels, ring] = integral.state.chunks
                    capacity[*labels, ring] = integral.state.capacity
                    blocked[*labels, ring] = integral.blocked_seconds
                chunk_seconds[*labels, names.DATA_RING] = label_set.rings[names.DATA_RING].chunk_seconds
        return [
            self._gauge(names.RING_CHUNKS, chunks, names.RING),
            self._gauge(names.RING_CAPACITY_CHUNKS, capacity, names.RING),
            self._counter(names.RING_BLOCKED_SECONDS, blocked, names.RING),
            self._counter(names.RING_CHUNK_SECONDS, chunk_seconds, names.RING),
        ]

    def close(self) -> None:
        """End the thread. From then on, only scrapes look at the rings. It may be called again."""
        self._closing.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _sample(self) -> None:
        with self._lock:
            for _, label_set in self._label_sets:
                label_set.sample()


def _sample_rings(reference: weakref.ref[RingCollector], closing: threading.Event, interval: float) -> None:
    while not closing.wait(interval):
        collector = reference()
        if collector is None:
            return
        collector._sample()
        del collector  # so that its user can delete it meanwhile
