"""A whole receiver for tests: takes every chunk of a stream or group, and compares it with what was sent."""

import concurrent.futures
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import spead2.recv

from speadrx.receive.chunk import Chunk, ChunkPool
from speadrx.receive.factory import make_stream, make_stream_group
from speadrx.receive.iterate import iter_chunks
from speadrx.simulate import Simulator, Truth


@dataclass
class Received:
    """A copy of a chunk."""

    timestamp: int
    data: np.ndarray  # shape layout.present_shape + (heap_bytes,)
    present: np.ndarray
    extra: np.ndarray | None
    gap: int | None


class Receiver:
    """A stream (or a group of `members` streams) whose chunks are all taken and copied."""

    def __init__(self, layout, *, members=None, user_data=None, window=4, pool=12, fill=None, gaps=False, **kwargs):
        self.layout = layout
        self.user_data = user_data
        arguments = {
            "layout": layout,
            "user_data": user_data,
            "max_active_chunks": window,
            "data_ringbuffer": spead2.recv.ChunkRingbuffer(pool),
            "free_ringbuffer": spead2.recv.ChunkRingbuffer(pool),
            "stop_on_stop_item": False,
            **kwargs,
        }
        if members is None:
            self.stream = make_stream(**arguments)
            self.streams = [self.stream]
        else:
            self.stream = make_stream_group(affinity=[-1] * members, **arguments)
            self.streams = [self.stream[i] for i in range(members)]
        # Stopping a queue that a stream reads ends the stream, with its chunks handed over.
        self.queues = [spead2.InprocQueue() for _ in self.streams]
        for stream, queue in zip(self.streams, self.queues, strict=True):
            stream.add_inproc_reader(queue)
        ChunkPool(self.stream, pool)
        self.iterator = iter_chunks(self.stream, fill=fill, gaps=gaps)
        self.chunks: list[Received] = []
        self.kept: list[Chunk] | None = None
        self._keeping = threading.Lock()
        self._going = threading.Event()
        self._going.set()
        self._executor = concurrent.futures.ThreadPoolExecutor(1)
        self._consumer = self._executor.submit(self._consume)

    def _consume(self) -> None:
        for chunk in self.iterator:
            try:
                self._going.wait()
                self.chunks.append(self._copy(chunk))
            finally:
                with self._keeping:
                    if self.kept is None:
                        chunk.recycle()
                    else:
                        self.kept.append(chunk)

    def _copy(self, chunk: Chunk) -> Received:
        record = None if self.user_data is None else self.user_data.reshape(-1)[:1]
        shape = (*self.layout.present_shape, self.layout.heap_bytes)
        heaps = self.layout.view(chunk.data, record)
        extra = None
        if self.layout.extra_dtype is not None:
            extra = chunk.extra.reshape(-1).view(self.layout.extra_dtype).reshape(self.layout.present_shape)
        return Received(
            timestamp=chunk.timestamp,
            data=np.ascontiguousarray(heaps).view(np.uint8).reshape(shape).copy(),
            present=chunk.present.reshape(self.layout.present_shape).astype(bool),
            extra=None if extra is None else extra.copy(),
            gap=chunk.gap,
        )

    @contextlib.contextmanager
    def keep(self) -> Iterator[list[Chunk]]:
        """Take chunks, but give none back for a while; yields those that are kept."""
        kept: list[Chunk] = []
        with self._keeping:
            self.kept = kept
        try:
            yield kept
        finally:
            with self._keeping:
                self.kept = None
            for chunk in kept:
                chunk.recycle()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Take no chunks for a while, but for one that is kept."""
        self._going.clear()
        try:
            yield
        finally:
            self._going.set()

    def finish(self) -> list[Received]:
        """End the streams (all that was put into their queues comes first), and return all chunks."""
        for queue in self.queues:
            queue.stop()
        return self.wait()

    def wait(self) -> list[Received]:
        """Return all chunks once something else has ended the streams."""
        self._consumer.result(60)
        return self.chunks

    def wait_for_packets(self, n: int) -> None:
        """Wait until the streams have read that many packets; those of a socket do not end."""
        deadline = time.monotonic() + 60
        while (count := sum(stream.stats["packets"] for stream in self.streams)) < n:
            assert time.monotonic() < deadline, f"{count} of {n} packets came"
            time.sleep(0.002)

    def stat(self, name: str) -> int:
        return sum(stream.stats[name] for stream in self.streams)

    def close(self) -> None:
        # A test that failed half way may leave the consumer waiting: stopping frees it.
        self.stream.stop()
        self._executor.shutdown()


@contextlib.contextmanager
def receiver(layout, **kwargs) -> Iterator[Receiver]:
    rx = Receiver(layout, **kwargs)
    try:
        yield rx
    finally:
        rx.close()


class CountingSink:
    """A sink that can tell whether all its packets have come out of the socket, or were dropped there."""

    def __init__(self, sink, rx):
        self.sink = sink
        self.rx = rx
        self.sent = 0

    def send(self, flow, packet):
        self.sink.send(flow, packet)
        self.sent += 1

    def settle(self):
        deadline = time.monotonic() + 60
        while self.rx.stat("packets") + self.rx.stream.kernel_drops() < self.sent:
            assert time.monotonic() < deadline, "packets are neither received nor dropped"
            time.sleep(0.0005)


class GentleSink:
    """A sink that sends a packet only when all before it have been taken, so that the kernel drops none."""

    def __init__(self, sink):
        self.sink = sink

    def send(self, flow, packet):
        self.sink.settle()
        self.sink.send(flow, packet)


def assert_data(rx: Receiver, simulators: Sequence[Simulator]) -> None:
    """Every heap present holds what was sent, byte by byte, and so does every side item."""
    (simulator, *_) = simulators
    timestamps = [chunk.timestamp for chunk in rx.chunks]
    assert timestamps == sorted(set(timestamps))
    for chunk in rx.chunks:
        expected = simulator.chunk_data(chunk.timestamp)
        np.testing.assert_array_equal(chunk.data[chunk.present], expected[chunk.present])
        if chunk.extra is not None:
            extra = simulator.chunk_extra(chunk.timestamp)
            np.testing.assert_array_equal(chunk.extra[chunk.present], extra[chunk.present])


def assert_accounts(rx: Receiver, simulators: Sequence[Simulator]) -> None:
    """Every heap sent is accounted for, and nothing has hidden in a sum: each count is what it should be.

    For runs where all packets sent have come, none too late for the window.
    """
    truths = [simulator.truth for simulator in simulators]
    ledger = rx.stream.ledger.snapshot()
    accounting = rx.iterator.accounting

    def total(name: str) -> np.ndarray:
        return np.sum([getattr(truth, name) for truth in truths], axis=0)

    def merged(name: str) -> dict[str, int]:
        keys = {key for truth in truths for key in getattr(truth, name)}
        return {key: sum(getattr(truth, name).get(key, 0) for truth in truths) for key in keys}

    assert by_reason(ledger.rejected) == by_reason(merged("rejected"))
    for reason, n in ledger.rejected.items():
        assert rx.stat(f"speadrx.{reason}") == n
    assert rx.stat("rejected_heaps") == sum(merged("rejected").values())
    assert rx.stat("too_old_heaps") == 0
    np.testing.assert_array_equal(ledger.placed_by_source, total("sent"))
    np.testing.assert_array_equal(ledger.duplicates_by_source, total("duplicated"))
    np.testing.assert_array_equal(accounting.present_by_source, total("complete"))
    np.testing.assert_array_equal(sum(_present_by_source(rx)), total("complete"))
    np.testing.assert_array_equal(accounting.missing_by_source, total("lost") + total("incomplete"))
    # Some packets of captures do not reach spead2, and are named instead.
    feeds = [feed for sockets in rx.stream._socket_sets for feed in sockets.feeds]
    left_out = sum(packets for feed in feeds for reason, packets in feed.unused.items() if reason != "not_spead")
    assert rx.stat("packets") + left_out == sum(truth.decodable_packets for truth in truths)
    assert residual(rx, truths) == 0


def by_reason(rejected: Mapping[str, int]) -> dict[str, int]:
    """Heaps rejected, without the reasons that there are none for.

    A time that most sources say at once, and that must not be, is backward, not implausible: that depends on which
    heaps happen to be the newest of their sources.
    """
    counts = Counter({"implausible_timestamp_heaps": rejected.get("backward_timestamp_heaps", 0)})
    return dict(+(counts + Counter({key: n for key, n in rejected.items() if key != "backward_timestamp_heaps"})))


def residual(rx: Receiver, truths: Sequence[Truth]) -> int:
    """Heaps that nobody can account for."""
    ledger = rx.stream.ledger.snapshot()
    return (
        sum(truth.copies for truth in truths)
        - rx.iterator.accounting.present
        - ledger.duplicates
        - rx.stat("too_old_heaps")
        - sum(sum(truth.incomplete) for truth in truths)
        - sum(ledger.rejected.values())
        - sum(sum(truth.unseen.values()) for truth in truths)
        - rx.stream.kernel_drops()
    )


def _present_by_source(rx: Receiver) -> Iterator[np.ndarray]:
    declaration = rx.layout.declaration
    for chunk in rx.chunks:
        others = tuple(i for i, name in enumerate(rx.layout.axis_names) if name != declaration.sources)
        yield np.atleast_1d(chunk.present.sum(axis=others))
