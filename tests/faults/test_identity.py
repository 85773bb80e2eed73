"""Accounts that add up, whatever is flushed, drained, repeated or stopped; and control heaps that nobody sees."""

import contextlib
import threading
import time

import numpy as np
import pytest
import spead2
import spead2.recv

import speadrx
from handmade import Heap, encode
from loopback import wait_for
from speadrx import Axis, Layout, TimeAxis
from speadrx.accounts.ledger import Ledger

TIME_ID, ANTENNA_ID = 0x1600, 0x4101
STEP, BATCHES, ANTENNAS = 2048, 4, 4
CHUNK = STEP * BATCHES
LAYOUT = Layout(
    heap_bytes=8,
    time=TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES),
    axes=(Axis(name="antenna", item=ANTENNA_ID, size=ANTENNAS),),
    sources="antenna",
)


class Queues:
    """Sends heaps, each with a heap counter of its own, and counts them."""

    def __init__(self, n):
        self.queues = [spead2.InprocQueue() for _ in range(n)]
        self.sent = 0

    def send(self, queue, antenna, batch):
        items = {TIME_ID: batch * STEP % 2**48, ANTENNA_ID: antenna, spead2.HEAP_LENGTH_ID: 8}
        self.sent += 1
        (packet,) = encode(Heap(items, bytes(8)), self.sent, 48)
        self.queues[queue].add_packet(packet)

    def stop(self):
        for queue in self.queues:
            queue.stop()


@contextlib.contextmanager
def receiving(threads=1, **kwargs):
    """A receiver whose chunks are taken, and what it is sent."""
    queues = Queues(threads)
    with speadrx.Receiver(LAYOUT, queues.queues, threads=threads, **kwargs) as rx:
        consumer = threading.Thread(target=lambda: [chunk.recycle() for chunk in rx])
        consumer.start()
        try:
            yield rx, queues, consumer
        finally:
            queues.stop()
            consumer.join(60)


def settle(rx, queues):
    wait_for(lambda: rx.ledger.snapshot().seen >= queues.sent)


def assert_identity(rx, sent):
    stats = rx.stats()
    counted = (stats.present, stats.duplicates, stats.too_old, stats.unfinished)
    assert min(counted) >= 0, counted
    assert stats.placed == sum(counted), (stats.placed, counted)
    assert stats.placed + sum(stats.rejected.values()) == sent
    return stats


def test_heaps_repeated_after_a_flush_are_too_old():
    """Those of one source: if most repeat theirs, they have begun again."""
    with receiving(window=4) as (rx, queues, consumer):
        for batch in range(4000, 4008):
            for antenna in range(ANTENNAS):
                queues.send(0, antenna, batch)
        settle(rx, queues)
        rx.flush()
        wait_for(lambda: rx.stats().chunks == 2)
        for batch in range(4000, 4008):
            queues.send(0, 1, batch)
        settle(rx, queues)
        queues.stop()
        consumer.join(60)
    stats = assert_identity(rx, queues.sent)
    assert (stats.present, stats.duplicates, stats.too_old) == (32, 0, 8)
    assert rx.ledger.snapshot().too_old_by_source.tolist() == [0, 8, 0, 0]


def test_sources_that_begin_again_after_a_flush():
    """When all repeat what they sent before, time begins again; each may lose two heaps until that is known."""
    with receiving(window=4) as (rx, queues, consumer):
        for _again in range(2):
            for batch in range(4000, 4008):
                for antenna in range(2):
                    queues.send(0, antenna, batch)
            settle(rx, queues)
            rx.flush()
        queues.stop()
        consumer.join(60)
    stats = assert_identity(rx, queues.sent)
    assert stats.restarts == 1
    assert 0 < stats.too_old <= 2 * 2
    assert (stats.present, stats.duplicates) == (32 - stats.too_old, 0)


def test_heaps_that_come_through_two_streams_are_duplicates():
    """As with two paths through the network: of each heap one is present, and one a duplicate of its source."""
    with receiving(threads=2, window=4) as (rx, queues, consumer):
        for batch in range(4000, 4040):
            for antenna in range(ANTENNAS):
                for queue in range(2):
                    queues.send(queue, antenna, batch)
            settle(rx, queues)
        queues.stop()
        consumer.join(60)
    stats = assert_identity(rx, queues.sent)
    assert (stats.present, stats.duplicates, stats.too_old) == (160, 160, 0)
    assert [source.duplicates for source in stats.sources] == [40] * ANTENNAS


def test_copies_of_heaps_whose_chunk_another_stream_has_ended_are_too_old():
    """One stream of a group is behind; its heaps, and copies of them, are for chunks that the other has left."""
    with receiving(threads=2, window=4) as (rx, queues, consumer):
        queues.send(1, 1, 4000)
        settle(rx, queues)
        for batch in range(4000, 4040):
            queues.send(0, 0, batch)
        settle(rx, queues)
        for batch in (4001, 4002, 4003):
            for _copy in range(2):
                queues.send(1, 1, batch)
        settle(rx, queues)
        queues.stop()
        consumer.join(60)
    stats = assert_identity(rx, queues.sent)
    assert (stats.present, stats.duplicates, stats.too_old) == (41, 0, 6)


def test_heaps_after_the_end_count_nowhere():
    """Once a drain has ended a stream, it places nothing: what comes in that moment is for nobody."""
    with receiving(window=4) as (rx, queues, consumer):
        for batch in range(4000, 4010):
            queues.send(0, 1, batch)
        settle(rx, queues)
        # As `drain` does, but that it does not stop the stream.
        done = rx.stream._control.post(rx.stream._streams(), end=True)
        wait_for(lambda: rx.stream._core.done == done)
        for batch in (4009, 4010, 4011, 4100):
            for _copy in range(3):
                queues.send(0, 1, batch)
        wait_for(lambda: rx.ledger.snapshot().after_end == 12)
        stream = rx.stream.stats
        assert (stream["too_old_heaps"], stream["rejected_heaps"]) == (0, 0)
        assert stream["incomplete_heaps_evicted"] == 0
        assert rx.stats().packets == queues.sent
        queues.stop()
        consumer.join(60)
    stats = assert_identity(rx, queues.sent - 12)
    assert (stats.placed, stats.present, stats.duplicates, stats.too_old) == (10, 10, 0, 0)
    assert rx.ledger.snapshot().newest_timestamp_by_source.max() == 4009 * STEP


@pytest.mark.fault(32)
@pytest.mark.parametrize("order", ["flush drain", "drain flush", "flush flush drain drain"])
@pytest.mark.parametrize("threads", [1, 2])
def test_control_heap_is_never_seen(order, threads, fault_report):
    """Not even by a consumer that was busy while one came after the other."""
    queues = Queues(threads)
    present = np.zeros(ANTENNAS, int)
    with speadrx.Receiver(LAYOUT, queues.queues, threads=threads, window=2) as rx:
        going = threading.Event()

        def consume():
            for chunk in rx:
                going.wait()
                with chunk:
                    present[:] += chunk.present.sum(axis=0)

        consumer = threading.Thread(target=consume)
        consumer.start()
        for batch in range(4000, 4400):
            for antenna in range(1, ANTENNAS):  # antenna 0 never sends
                queues.send(antenna % threads, antenna, batch)
        wait_for(lambda: rx.stream.free_ringbuffer.empty())
        for what in order.split():
            getattr(rx, what)()
        time.sleep(0.1)
        going.set()
        consumer.join(60)
    stats = rx.stats()
    named = stats.present + stats.duplicates + stats.too_old + stats.unfinished + sum(stats.rejected.values())
    came = stats.packets - rx.ledger.snapshot().after_end
    fault_report(sent=came, lost=came - present.sum(), residual=came - named)
    assert present[0] == stats.sources[0].placed == stats.sources[0].present == 0
    assert [source.present for source in stats.sources] == present.tolist()
    assert_identity(rx, came)


def test_control_heap_that_data_have_overtaken_is_not_too_old():
    with receiving(window=2) as (rx, queues, consumer):
        queues.send(0, 1, 4000)
        settle(rx, queues)
        assert rx.stream._core.flush()
        for batch in range(4004, 4060):
            queues.send(0, 1, batch)
        settle(rx, queues)
        done = rx.stream._control.post(rx.stream._streams(), end=False)
        wait_for(lambda: rx.stream._core.done == done)
        stream = rx.stream.stats
        assert (stream["too_old_heaps"], stream["rejected_heaps"], stream["speadrx.control_heaps"]) == (0, 0, 2)
        assert rx.stats().packets == queues.sent
        queues.stop()
        consumer.join(60)
    assert assert_identity(rx, queues.sent).present == 57


def test_packets_of_control_heaps_are_not_counted():
    """At no moment: no counter falls when a stream has counted one and not yet said so."""
    with receiving(window=2) as (rx, queues, consumer):
        seen = []
        for batch in range(4000, 4400):
            queues.send(0, 1, batch)
            if batch % 8 == 0:
                rx.flush()
            seen.append(rx.stats().packets)
        rx.drain()
        consumer.join(60)
        assert seen == sorted(seen)
    assert rx.stats().packets == queues.sent
    assert rx.stats().incomplete == 0


def test_callback_given_to_two_streams_serves_the_first():
    """A `ChunkStreamConfig` can be given to several streams, which then call one callback in threads of their own."""
    place = LAYOUT.chunk_place()
    config = spead2.recv.ChunkStreamConfig(items=LAYOUT.spead_items, max_chunks=2, place=place)
    queues = Queues(2)
    streams = []
    for queue in queues.queues:
        rings = spead2.recv.ChunkRingbuffer(1000), spead2.recv.ChunkRingbuffer(1000)
        stream = spead2.recv.ChunkRingStream(spead2.ThreadPool(), spead2.recv.StreamConfig(), config, *rings)
        for _ in range(200):
            data, present = np.zeros(LAYOUT.chunk_bytes, np.uint8), np.zeros(LAYOUT.chunk_heaps, np.uint8)
            stream.add_free_chunk(spead2.recv.Chunk(data=data, present=present))
        stream.add_inproc_reader(queue)
        streams.append(stream)
    try:
        queues.send(0, 0, 4000)
        wait_for(lambda: streams[0].stats["heaps"] == 1)
        for batch in range(4000, 4200):
            queues.send(0, 1, batch)
            queues.send(1, 2, batch)
        queues.stop()
        wait_for(lambda: [stream.stats["heaps"] for stream in streams] == [201, 200])
        ledger = Ledger(LAYOUT, [place[1].ledger]).snapshot()
        assert [stream.stats["rejected_heaps"] for stream in streams] == [0, 200]
        assert ledger.placed_by_source.tolist() == [1, 200, 0, 0]
        assert ledger.rejected["internal_error_heaps"] == 200
    finally:
        for stream in streams:
            stream.stop()
