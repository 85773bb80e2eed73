"""Prometheus collectors of what becomes of heaps between the kernel and the consumer."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import queue
import re
import threading
import time
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
from prometheus_client import REGISTRY, CollectorRegistry, Metric, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from speadrx.accounts.accounting import Accounts, Consumed
from speadrx.accounts.ledger import Ledger, LedgerSnapshot
from speadrx.layout.base import DeclarativeLayout
from speadrx.receive.readers import SocketSet
from speadrx.receive.stream import ChunkRingStream, ChunkStreamRingGroup

from . import names
from .stats import LabelSets, StatsCollector

__all__ = [
    "ConsumerCollector",
    "Exporter",
    "KernelCollector",
    "LedgerCollector",
    "RingCollector",
]

Source = ChunkRingStream | ChunkStreamRingGroup

#: Labels that collectors add to the user's; ``le`` is that of histograms.
_OWN_LABELS = (names.SOURCE, names.REASON, names.RING, names.ENDPOINT, "le")

#: What Prometheus lets users call a label.
_LABEL_NAME = re.compile("(?!__)[a-zA-Z_][a-zA-Z0-9_]*")

#: What spead2 counts itself, and the names under which it is exported.
_SPEAD2_STATISTICS = {
    "too_old_heaps": names.HEAPS_TOO_OLD,
    "incomplete_heaps_evicted": names.HEAPS_INCOMPLETE_EVICTED,
    "incomplete_heaps_flushed": names.HEAPS_INCOMPLETE_FLUSHED,
    "packets": names.PACKETS,
    "worker_blocked": names.WORKER_BLOCKED,
}

#: Seconds between samples of the rings.
SAMPLE_INTERVAL = 0.02

_Part = TypeVar("_Part")


class _Held(Generic[_Part]):
    """A stream or group, held weakly, and a part of it that outlives it."""

    def __init__(self, owner: Source, part: _Part) -> None:
        self.owner = weakref.ref(owner)
        self.part = part
        #: Whether the part is final. The garbage collector breaks weak references before it calls finalisers, so an
        #: owner that is no longer there may still have network threads.
        self.closed = False


class _Holder(Generic[_Part]):
    """Streams and groups, each once, and their parts."""

    def __init__(self) -> None:
        self._held: list[_Held[_Part]] = []
        # Filled by finalisers too, which run anywhere and so must wait for no lock.
        self._just_closed: queue.SimpleQueue[_Held[_Part]] = queue.SimpleQueue()
        self._closed: list[_Held[_Part]] = []

    def add(self, owner: Source, part: _Part) -> None:
        if all(held.owner() is not owner for held in self._held):
            held = _Held(owner, part)
            self._held.append(held)
            owner._on_close(functools.partial(self._close, held))

    def _close(self, held: _Held[_Part], owner: Source) -> None:
        held.closed = True
        self._just_closed.put(held)

    def parts(self) -> list[_Part]:
        return [held.part for held in self._held]

    def __iter__(self) -> Iterator[tuple[Source | None, _Held[_Part]]]:
        """All, each with its owner, which does not go away before the next is asked for."""
        for held in self._held:
            yield held.owner(), held

    def take_gone(self) -> list[_Part]:
        """Forget those that are closed and whose owner no longer exists, and return their parts."""
        while not self._just_closed.empty():
            self._closed.append(self._just_closed.get_nowait())
        gone = {held for held in self._closed if held.owner() is None}
        if gone:
            self._closed = [held for held in self._closed if held not in gone]
            self._held = [held for held in self._held if held not in gone]
        return [held.part for held in gone]


class _LabelSet(Protocol):
    """What a collector keeps for one set of labels."""

    def add(self, source: Source) -> None: ...


_LabelSetT = TypeVar("_LabelSetT", bound=_LabelSet)


class _SourceCollector(Collector, Generic[_LabelSetT]):
    """What the collectors share: labels, and a lock that no network thread and no finaliser takes."""

    def __init__(
        self, labelnames: Iterable[str], registry: CollectorRegistry | None, make: Callable[[], _LabelSetT]
    ) -> None:
        self._label_sets = LabelSets(_check_labelnames(labelnames), make)
        # Reentrant because a signal handler may scrape in the midst of a scrape.
        self._lock = threading.RLock()
        if registry is not None:
            registry.register(self)  # last: it may collect at once

    def add(self, source: Source, labels: Iterable[str] = ()) -> None:
        """Export a stream or group, including what it has counted so far.

        Those under the same labels add up. One that was added under the same labels before is not counted again.

        Parameters
        ----------
        source
            Made by `make_stream` or `make_stream_group`; held weakly. Its counts stay when it goes away.
        labels
            A value for each label name of the collector.

        Raises
        ------
        TypeError
            If `source` was not made by this package, or `labels` is a string.
        ValueError
            If the number of labels is not that of the label names.
        """
        if not isinstance(source, (ChunkRingStream, ChunkStreamRingGroup)):
            raise TypeError(
                f"source: given {type(source).__name__}, but wanted a stream or group from make_stream "
                "or make_stream_group"
            )
        with self._lock:
            self._label_sets.of(labels).add(source)

    def _counter(self, name: str, *own: str) -> CounterMetricFamily:
        return CounterMetricFamily(name, names.HELP[name], labels=(*self._label_sets.labelnames, *own))

    def _gauge(self, name: str, *own: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(name, names.HELP[name], labels=(*self._label_sets.labelnames, *own))


def _check_labelnames(labelnames: Iterable[str]) -> tuple[str, ...]:
    if isinstance(labelnames, str):
        raise TypeError(f"labelnames: given the string {labelnames!r}, but wanted a list of strings")
    names = tuple(labelnames)
    for name in names:
        if not _LABEL_NAME.fullmatch(name):
            raise ValueError(
                f"labelnames: {name!r} is no label name of Prometheus: letters, digits and underscores, "
                "no digit first, and not two underscores first"
            )
        if name in _OWN_LABELS:
            raise ValueError(f"labelnames: {name!r} is taken: some metrics have {', '.join(_OWN_LABELS)} already")
        if names.count(name) > 1:
            raise ValueError(f"labelnames: {name!r} is there more than once")
    return names


def _add_samples(metric: Any, samples: Mapping[tuple[str, ...], float]) -> None:
    for labels, value in samples.items():
        metric.add_metric(labels, value)


class _AlikeLedgers:
    """The sum of ledgers of the same shape, of streams present and past."""

    def __init__(self, layout: DeclarativeLayout) -> None:
        self.holder = _Holder[Ledger]()
        # No heap is as many batches behind another one of its chunk as there are batches in a chunk.
        self.batch_bounds = [2**i - 1 for i in range((layout.chunk_batches - 1).bit_length() + 1)]
        self._gone: LedgerSnapshot | None = None

    def snapshot(self) -> LedgerSnapshot:
        """All counts; but the newest timestamps are those of streams that still exist."""
        if gone := self.holder.take_gone():
            gone_now = self._with_gone(Ledger._sum(gone).snapshot())
            none = np.full_like(gone_now.newest_timestamp_by_source, -1)
            self._gone = dataclasses.replace(gone_now, newest_timestamp_by_source=none)
        if ledgers := self.holder.parts():
            return self._with_gone(Ledger._sum(ledgers).snapshot())
        assert self._gone is not None, "they are made to add a ledger to them"
        return self._gone

    def _with_gone(self, snapshot: LedgerSnapshot) -> LedgerSnapshot:
        gone = self._gone
        if gone is None:
            return snapshot
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


class _LedgerLabelSet:
    def __init__(self) -> None:
        self.alike: dict[Any, _AlikeLedgers] = {}

    def add(self, source: Source) -> None:
        if source.ledger is None:  # the layout has a callback of its own
            return
        layout = source.ledger._layout
        snapshot = source.ledger.snapshot()
        shape = (
            layout.source_labels,
            tuple(snapshot.rejected_by_source),
            layout.chunk_batches,
            len(snapshot.late_chunks),
        )
        if shape not in self.alike:
            self.alike[shape] = _AlikeLedgers(layout)
        self.alike[shape].holder.add(source, source.ledger)


class _Histogram:
    """Counts by the upper bounds of buckets, for each set of labels."""

    def __init__(self) -> None:
        self._buckets: defaultdict[tuple[str, ...], Counter[float]] = defaultdict(Counter)

    def add(self, labels: tuple[str, ...], bounds: Iterable[int], counts: list[int]) -> None:
        """Add counts to buckets; those beyond the last bound are beyond all."""
        buckets = self._buckets[labels]
        for bound, count in itertools.zip_longest(bounds, counts, fillvalue=math.inf):
            buckets[bound] += int(count)

    def metric(self, name: str, labelnames: tuple[str, ...]) -> HistogramMetricFamily:
        metric = HistogramMetricFamily(name, names.HELP[name], labels=labelnames)
        for labels, buckets in self._buckets.items():
            bounds = sorted(buckets)
            cumulative = itertools.accumulate(buckets[bound] for bound in bounds)
            # Of the sum only a bound is known.
            metric.add_metric(labels, list(zip(map(floatToGoString, bounds), cumulative, strict=True)), sum_value=None)
        return metric


class LedgerCollector(_SourceCollector[_LedgerLabelSet]):
    """Export the ledgers: heaps placed, duplicate and rejected, newest timestamps and lateness.

    Reading a ledger blocks nobody. Sources of layouts with a callback of their own have no ledger.

    Parameters
    ----------
    labelnames
        Names of the labels that tell streams apart.
    registry
        Where to register the collector; None to leave that to the caller.
    """

    def __init__(self, labelnames: Iterable[str] = (), registry: CollectorRegistry | None = REGISTRY) -> None:
        super().__init__(labelnames, registry, _LedgerLabelSet)

    def collect(self) -> Iterable[Metric]:
        """Return the metrics: what a registry calls at each scrape."""
        placed, duplicates, rejected, newest = (Counter[tuple[str, ...]]() for _ in range(4))
        late_batches, late_chunks = _Histogram(), _Histogram()
        with self._lock:
            for labels, label_set in self._label_sets:
                for alike in label_set.alike.values():
                    snapshot = alike.snapshot()
                    keys = [(*labels, source) for source in snapshot.source_labels]
                    for samples, heaps in (
                        (placed, snapshot.placed_by_source),
                        (duplicates, snapshot.duplicates_by_source),
                    ):
                        samples.update(dict(zip(keys, heaps.tolist(), strict=True)))
                    for key, timestamp in zip(keys, snapshot.newest_timestamp_by_source.tolist(), strict=True):
                        if timestamp >= 0:
                            newest[key] = max(newest[key], timestamp)
                    sources = (*snapshot.source_labels, names.UNKNOWN_SOURCE)
                    for reason, heaps in snapshot.rejected_by_source.items():
                        for source, count in zip(sources, heaps.tolist(), strict=True):
                            rejected[*labels, reason, source] += count
                    late_batches.add(labels, alike.batch_bounds, snapshot.late_batches.tolist())
                    late_chunks.add(labels, range(len(snapshot.late_chunks) - 1), snapshot.late_chunks.tolist())
        families = [
            self._counter(names.HEAPS_PLACED, names.SOURCE),
            self._counter(names.HEAPS_DUPLICATE, names.SOURCE),
            self._counter(names.HEAPS_REJECTED, names.REASON, names.SOURCE),
            self._gauge(names.NEWEST_TIMESTAMP, names.SOURCE),
        ]
        for metric, samples in zip(families, (placed, duplicates, rejected, newest), strict=True):
            _add_samples(metric, samples)
        labelnames = self._label_sets.labelnames
        return [
            *families,
            late_batches.metric(names.HEAP_LATENESS_BATCHES, labelnames),
            late_chunks.metric(names.HEAP_LATENESS_CHUNKS, labelnames),
        ]


class _ConsumerLabelSet:
    def __init__(self) -> None:
        self._holder = _Holder[Accounts]()
        self._gone = Consumed.total([])

    def add(self, source: Source) -> None:
        self._holder.add(source, source._accounts)

    def consumed(self) -> Consumed:
        if gone := self._holder.take_gone():
            self._gone = Consumed.total([self._gone, *(accounts.consumed() for accounts in gone)])
        return Consumed.total([self._gone, *(accounts.consumed() for accounts in self._holder.parts())])


class ConsumerCollector(_SourceCollector[_ConsumerLabelSet]):
    """Export what `iter_chunks` has accounted for: heaps present and missing, chunks, and where time began anew.

    All iterators over a source add up. A chunk that is taken without one is missing; with several iterators
    at a time, each misses the chunks that the others take.

    Parameters
    ----------
    labelnames
        Names of the labels that tell streams apart.
    registry
        Where to register the collector; None to leave that to the caller.
    """

    def __init__(self, labelnames: Iterable[str] = (), registry: CollectorRegistry | None = REGISTRY) -> None:
        super().__init__(labelnames, registry, _ConsumerLabelSet)

    def collect(self) -> Iterable[Metric]:
        """Return the metrics: what a registry calls at each scrape."""
        present = self._counter(names.HEAPS_PRESENT, names.SOURCE)
        missing = self._counter(names.HEAPS_MISSING, names.SOURCE)
        chunks = self._counter(names.CHUNKS)
        restarts = self._counter(names.RESTARTS)
        gap = self._counter(names.EPOCH_GAP_HEAPS)
        with self._lock:
            for labels, label_set in self._label_sets:
                consumed = label_set.consumed()
                _add_samples(present, {(*labels, source): heaps for source, heaps in consumed.present.items()})
                _add_samples(missing, {(*labels, source): heaps for source, heaps in consumed.missing.items()})
                chunks.add_metric(labels, consumed.chunks)
                restarts.add_metric(labels, consumed.restarts)
                gap.add_metric(labels, consumed.epoch_gap)
        return [present, missing, chunks, restarts, gap]


class _KernelLabelSet:
    def __init__(self) -> None:
        self._holder = _Holder[tuple[SocketSet, ...]]()
        self._gone = Counter[str]()

    def add(self, source: Source) -> None:
        self._holder.add(source, source._socket_sets)

    def counts(self) -> tuple[Counter[str], Counter[str], Counter[str]]:
        """Packets dropped, bytes queued and sizes of buffers, by endpoint."""
        for sets in self._holder.take_gone():
            for sockets in sets:
                self._gone.update({endpoint: counts.drops for endpoint, counts in sockets.counts().items()})
        drops, queues, buffers = Counter(self._gone), Counter[str](), Counter[str]()
        # With the owner kept, no finaliser can close the sockets in the midst of it, in this very thread.
        for _owner, held in self._holder:
            for sockets in held.part:
                for endpoint, counts in sockets.counts().items():
                    drops[endpoint] += counts.drops
                    if counts.receive_buffer:
                        queues[endpoint] += counts.receive_queue
                        buffers[endpoint] += counts.receive_buffer
        return drops, queues, buffers


class KernelCollector(_SourceCollector[_KernelLabelSet]):
    """Export what the kernel says of the UDP sockets of `add_reader`: packets dropped, and how full the buffers are.

    Each socket is asked itself, so others on the same port do not count. Sockets of the same endpoint under the same
    labels add up. Packets that the kernel had coalesced (GRO) count as one drop. The kernel's figure for the bytes in
    use includes its overhead, and up to a quarter of the buffer that was read but not yet given back.

    Parameters
    ----------
    labelnames
        Names of the labels that tell streams apart.
    registry
        Where to register the collector; None to leave that to the caller.
    """

    def __init__(self, labelnames: Iterable[str] = (), registry: CollectorRegistry | None = REGISTRY) -> None:
        super().__init__(labelnames, registry, _KernelLabelSet)

    def collect(self) -> Iterable[Metric]:
        """Return the metrics: what a registry calls at each scrape."""
        families = (
            self._counter(names.SOCKET_DROPS, names.ENDPOINT),
            self._gauge(names.SOCKET_RECEIVE_QUEUE_BYTES, names.ENDPOINT),
            self._gauge(names.SOCKET_RECEIVE_BUFFER_BYTES, names.ENDPOINT),
        )
        with self._lock:
            for labels, label_set in self._label_sets:
                for metric, values in zip(families, label_set.counts(), strict=True):
                    _add_samples(metric, {(*labels, endpoint): value for endpoint, value in values.items()})
        return families


class _RingState(NamedTuple):
    """The sum of rings at one moment."""

    chunks: int = 0
    capacity: int = 0
    #: How many of them keep a stream from going on.
    blocked: int = 0


class _Integral:
    """What the states of rings add up to over time; between samples, half of each."""

    def __init__(self) -> None:
        self.state = _RingState()
        self.chunk_seconds = 0.0
        self.blocked_seconds = 0.0

    def add(self, state: _RingState, seconds: float) -> None:
        self.chunk_seconds += (self.state.chunks + state.chunks) / 2 * seconds
        self.blocked_seconds += (self.state.blocked + state.blocked) / 2 * seconds
        self.state = state


class _RingLabelSet:
    def __init__(self) -> None:
        self._holder = _Holder[None]()
        self._time = time.monotonic()
        self.rings = {names.DATA_RING: _Integral(), names.FREE_RING: _Integral()}

    def add(self, source: Source) -> None:
        self.sample()  # what comes now was not there before
        self._holder.add(source, None)
        self.sample()

    def sample(self) -> None:
        self._holder.take_gone()
        # By ring, since streams may share one: whether a stream that uses it runs.
        data: dict[Any, bool] = {}
        free: dict[Any, bool] = {}
        for owner, held in self._holder:
            if owner is not None:
                for rings, ring in ((data, owner.data_ringbuffer), (free, owner.free_ringbuffer)):
                    rings[ring] = rings.get(ring, False) or not held.closed
        now = time.monotonic()
        # A signal handler may have sampled since this was called, and be ahead of it.
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


class RingCollector(_SourceCollector[_RingLabelSet]):
    """Export how full the rings are, and for how long the data ring was full or the free ring empty.

    A thread of its own looks at the rings in short intervals; each scrape does as well. The thread ends with the
    collector.

    Parameters
    ----------
    labelnames
        Names of the labels that tell streams apart.
    registry
        Where to register the collector; None to leave that to the caller. A registry keeps the collector alive.
    interval
        Seconds between looks.
    """

    def __init__(
        self,
        labelnames: Iterable[str] = (),
        registry: CollectorRegistry | None = REGISTRY,
        *,
        interval: float = SAMPLE_INTERVAL,
    ) -> None:
        if not 0 < interval < math.inf:
            raise ValueError(f"interval: {interval!r} must be more than 0, and finite")
        super().__init__(labelnames, registry, _RingLabelSet)
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
        chunks = self._gauge(names.RING_CHUNKS, names.RING)
        capacity = self._gauge(names.RING_CAPACITY_CHUNKS, names.RING)
        blocked = self._counter(names.RING_BLOCKED_SECONDS, names.RING)
        chunk_seconds = self._counter(names.RING_CHUNK_SECONDS, names.RING)
        with self._lock:
            self._sample()
            for labels, label_set in self._label_sets:
                for ring, integral in label_set.rings.items():
                    chunks.add_metric((*labels, ring), integral.state.chunks)
                    capacity.add_metric((*labels, ring), integral.state.capacity)
                    blocked.add_metric((*labels, ring), integral.blocked_seconds)
                data = label_set.rings[names.DATA_RING]
                chunk_seconds.add_metric((*labels, names.DATA_RING), data.chunk_seconds)
        return [chunks, capacity, blocked, chunk_seconds]

    def close(self) -> None:
        """End the thread; from then on only scrapes look at the rings. May be called again."""
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
        del collector  # its user may let go of it while this waits


class Exporter:
    """Export all that is known of streams and groups, and serve it over HTTP, from a thread of its own.

    It is a `LedgerCollector`, a `ConsumerCollector`, a `RingCollector`, a `KernelCollector`, and a `StatsCollector`
    for what spead2 counts. As a context manager, it closes itself.

    Parameters
    ----------
    labelnames
        Names of the labels that tell streams apart.
    registry
        Where to register the collectors. By default, a new registry, which has nothing else in it.

    Examples
    --------
    >>> import speadrx.collectors
    >>> with speadrx.collectors.Exporter(["stream"]) as exporter:
    ...     port = exporter.serve(0)  # any free port; then http://localhost:port/metrics has it
    """

    #: Where the collectors are registered.
    registry: CollectorRegistry

    def __init__(self, labelnames: Iterable[str] = (), registry: CollectorRegistry | None = None) -> None:
        labels = _check_labelnames(labelnames)
        self.registry = CollectorRegistry(auto_describe=True) if registry is None else registry
        self._statistics = StatsCollector(
            {statistic: (name, names.HELP[name]) for statistic, name in _SPEAD2_STATISTICS.items()},
            labels,
            registry=None,
        )
        self._rings = RingCollector(labels, None)
        self._collectors = (
            LedgerCollector(labels, None),
            ConsumerCollector(labels, None),
            self._rings,
            KernelCollector(labels, None),
        )
        self._closed = False
        self._close = contextlib.ExitStack()
        self._close.callback(self._rings.close)
        try:
            for collector in (*self._collectors, self._statistics):
                self.registry.register(collector)
                self._close.callback(self.registry.unregister, collector)
        except BaseException:
            self.close()
            raise

    def add(self, source: Source, labels: Iterable[str] = ()) -> None:
        """Export a stream or group, including what it has counted so far.

        Those under the same labels add up. One that was added under the same labels before is not counted again.

        Parameters
        ----------
        source
            Made by `make_stream` or `make_stream_group`; held weakly. Its counts stay when it goes away.
        labels
            A value for each label name.

        Raises
        ------
        TypeError
            If `source` was not made by this package, or `labels` is a string.
        ValueError
            If the number of labels is not that of the label names.
        """
        if isinstance(labels, str):
            raise TypeError(f"labels: given the string {labels!r}, but wanted a list of strings")
        labels = tuple(labels)
        for collector in self._collectors:
            collector.add(source, labels)
        if isinstance(source, ChunkStreamRingGroup):
            self._statistics.add_stream_group(source, labels)
        else:
            self._statistics.add_stream(source, labels)

    def serve(self, port: int, addr: str = "0.0.0.0") -> int:
        """Serve the metrics over HTTP under ``/metrics``, from threads of their own, until `close`.

        Serving keeps the exporter alive until then.

        Parameters
        ----------
        port
            TCP port; 0 for any that is free.
        addr
            Address to listen on; by default, on all.

        Returns
        -------
        int
            The port.

        Raises
        ------
        ValueError
            If `port` is not one, or the exporter is closed.
        OSError
            If the port or the address cannot be had.
        """
        if not 0 <= port <= 65535:
            raise ValueError(f"port: {port} is not in 0 to 65535")
        if self._closed:
            raise ValueError("serve: the exporter is closed")
        server, thread = start_http_server(port, addr, self.registry)

        def stop() -> None:
            try:
                server.shutdown()  # takes up to half a second: time enough for Ctrl-C
            finally:
                server.server_close()
            thread.join()

        self._close.callback(stop)
        return server.server_port

    def close(self) -> None:
        """End the threads, and take the collectors out of the registry. May be called again."""
        self._closed = True
        self._close.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
