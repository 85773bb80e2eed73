"""Iteration over chunks: true timestamps, accounting, and that no chunk is ever lost."""

import asyncio
import contextlib
import dataclasses
import gc
import os
import resource
import threading

import numpy as np
import pytest
import spead2.recv
import spead2.recv.asyncio

import speadrx
from handmade import SMALL, TIME_ID, OwnLayout, encode, small_heap
from loopback import wait_for
from speadrx import Chunk, ChunkPool, iter_chunks
from speadrx.simulate import Faults, InprocSink, Simulator

STEP = SMALL.chunk_timestamp_step
N_CHUNKS = 8


@pytest.fixture
def make(request):
    """Make a stream or a group, with its chunks, and stop it after the test."""

    def make(kind="stream", ring=spead2.recv.ChunkRingbuffer, **kwargs):
        arguments = {
            "layout": SMALL,
            "max_active_chunks": 2,
            "data_ringbuffer": ring(N_CHUNKS),
            "free_ringbuffer": spead2.recv.ChunkRingbuffer(N_CHUNKS),
            **kwargs,
        }
        if kind == "group":
            source = speadrx.make_stream_group(affinity=[-1, -1], **arguments)
        else:
            source = speadrx.make_stream(**arguments)
        request.addfinalizer(source.stop)
        ChunkPool(source, N_CHUNKS)
        return source

    return make


class Queues:
    """In-process queues to the streams of a source."""

    def __init__(self, source):
        streams = source if isinstance(source, spead2.recv.ChunkStreamRingGroup) else [source]
        self.queues = [spead2.InprocQueue() for _ in streams]
        for stream, queue in zip(streams, self.queues, strict=True):
            stream.add_inproc_reader(queue)

    def send(self, *changes, to=0):
        for i, change in enumerate(changes):
            self.queues[to].add_packet(encode(small_heap(change), i, 48)[0])

    def stop(self):
        """End the source; what it has under construction comes out."""
        for queue in self.queues:
            queue.stop()


@pytest.fixture(params=["stream", "group"])
def source(request, make):
    return make(request.param)


class TestAccounting:
    """What is present, what is missing."""

    def test_all_present(self, source):
        queues = Queues(source)
        simulator = Simulator(SMALL, first_timestamp=5 * STEP)
        simulator.send(InprocSink(queues.queues[0]), 3 * 4)
        queues.stop()
        chunks = iter_chunks(source)
        for i, chunk in enumerate(chunks):
            with chunk:
                assert chunk.timestamp == (5 + i) * STEP
                np.testing.assert_array_equal(chunk.data, simulator.chunk_data(chunk.timestamp))
                # Up to date before the chunk is given out.
                assert chunks.accounting.chunks == i + 1
                assert chunks.accounting.last_timestamp == chunk.timestamp
        account = chunks.accounting
        assert account.source_labels == ("7", "3", "5")
        assert account.present_by_source.tolist() == [12, 12, 12]
        assert account.expected_by_source.tolist() == [12, 12, 12]
        assert account.missing_by_source.tolist() == [0, 0, 0]
        assert (account.present, account.expected, account.missing, account.chunks) == (36, 36, 0, 3)
        assert (account.first_timestamp, account.last_timestamp) == (5 * STEP, 7 * STEP)

    def test_losses(self, make):
        """Against what the simulator knows of its own faults."""
        source = make(max_active_chunks=3)
        queues = Queues(source)
        simulator = Simulator(SMALL, seed=1, faults=Faults(loss=0.2, reorder=10, duplicate=0.1, garbage=0.1))
        sender = threading.Thread(target=simulator.send, args=(InprocSink(queues.queues[0]), 400))
        sender.start()
        chunks = iter_chunks(source)
        while chunks.accounting.chunks < 97:  # later chunks come out at the end only
            with next(chunks):
                pass
        sender.join()
        queues.stop()
        for chunk in chunks:
            chunk.recycle()
        account = chunks.accounting
        assert account.chunks == 100
        assert account.present_by_source.tolist() == simulator.truth.complete
        assert account.missing_by_source.tolist() == simulator.truth.lost
        assert account.missing > 0

    def test_gaps(self, source):
        """Whole chunks that are missing count; those that spead2 then gives out empty are not shown."""
        queues = Queues(source)
        # The first heap of a jump is not believed.
        queues.send(*({0x10: time} for time in (3 * STEP, 4 * STEP, 12 * STEP, 12 * STEP + 16)))
        queues.stop()
        chunks = iter_chunks(source)
        timestamps = []
        for chunk in chunks:
            with chunk:
                timestamps.append(chunk.timestamp)
        account = chunks.accounting
        assert timestamps == [3 * STEP, 4 * STEP, 12 * STEP]
        assert (account.chunks, account.expected) == (3, (9 * 4 + 2) * 3)  # of the last chunk, its first two batches
        assert source.ledger.snapshot().rejected["implausible_timestamp_heaps"] == 1
        assert (account.restarts, account.epoch_gap_heaps) == (0, 0)
        assert account.present_by_source.tolist() == [0, 3, 0]
        assert account.missing_by_source.tolist() == [38, 35, 38]

    @pytest.mark.parametrize("batch", range(4))
    @pytest.mark.parametrize(
        "order", [("time", "antenna", "pol"), ("antenna", "pol", "time"), ("pol", "time", "antenna")]
    )
    def test_first_chunk(self, make, order, batch):
        """Nothing counts before the first batch of which any heap came, wherever the layout has the time."""
        source = make(layout=dataclasses.replace(SMALL, order=order), max_jump=2)
        queues = Queues(source)
        # A later batch may come first.
        starts = [{0x10: 5 * STEP + step * 16, 0x20: antenna << 1} for step, antenna in [(3, 7), (batch, 5)]]
        queues.send(*starts, {0x10: 6 * STEP}, {0x10: 7 * STEP})
        queues.stop()
        chunks = iter_chunks(source)
        with next(chunks) as chunk:
            assert chunk.timestamp == chunks.accounting.first_timestamp == 5 * STEP
            assert chunks.accounting.expected_by_source.tolist() == [4 - batch] * 3
            assert chunks.accounting.missing_by_source.tolist() == [3 - batch, 4 - batch, 3 - batch]
        for chunk in chunks:
            chunk.recycle()
        assert chunks.accounting.present_by_source.tolist() == [1, 2, 1]
        assert chunks.accounting.expected_by_source.tolist() == [9 - batch] * 3

    def test_start_within_a_chunk(self, source):
        """Against a simulator that starts in the middle of a chunk, and loses nothing before that."""
        queues = Queues(source)
        simulator = Simulator(SMALL, first_timestamp=5 * STEP + 32)
        simulator.send(InprocSink(queues.queues[0]), 2 + 4)
        queues.stop()
        chunks = iter_chunks(source)
        for chunk in chunks:
            chunk.recycle()
        assert chunks.accounting.expected == chunks.accounting.present == sum(simulator.truth.sent) == 6 * 3
        assert chunks.accounting.missing == 0

    def test_never_falls(self, make):
        """Whoever reads the account meanwhile, in another thread, sees whole chunks only."""
        source = make(max_active_chunks=4, max_jump=4)
        queues = Queues(source)
        # With this seed the first batch is not lost whole: of that nobody would know.
        simulator = Simulator(SMALL, seed=6, faults=Faults(loss=0.5))
        chunks = iter_chunks(source)
        account = chunks.accounting
        done = threading.Event()
        read = []

        def watch():
            while not done.is_set():
                read.append([*account.present_by_source, *account.missing_by_source, account.missing, account.chunks])

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for _ in range(400):
                simulator.send(InprocSink(queues.queues[0]), 4)
                if source.data_ringbuffer.qsize():
                    next(chunks).recycle()
            queues.stop()
            for chunk in chunks:
                chunk.recycle()
        finally:
            done.set()
            watcher.join()
        del chunks
        # It outlives the iterator.
        read.append([*account.present_by_source, *account.missing_by_source, account.missing, account.chunks])
        assert (np.diff(read, axis=0) >= 0).all()
        assert account.present_by_source.tolist() == simulator.truth.complete
        assert account.missing_by_source.tolist() == simulator.truth.lost

    def test_wrap(self, source):
        """Timestamps go on counting where their 48 bits start again."""
        queues = Queues(source)
        queues.send({0x10: 2**48 - STEP}, {0x10: 0}, {0x10: STEP})
        queues.stop()
        chunks = iter_chunks(source)
        assert [chunk.timestamp for chunk in chunks] == [2**48 - STEP, 2**48, 2**48 + STEP]
        assert chunks.accounting.missing == 2 * 11 + 2

    def test_nothing(self, source):
        source.stop()
        chunks = iter_chunks(source)
        assert list(chunks) == []
        account = chunks.accounting
        assert (account.present, account.expected, account.missing, account.chunks) == (0, 0, 0, 0)
        assert (account.first_timestamp, account.last_timestamp) == (None, None)

    def test_own_layout(self, make):
        """A layout that is not declarative has no sources and no batches that we know: totals only, of whole chunks."""
        source = make(layout=OwnLayout(), spead_items=SMALL.spead_items, max_heap_extra=2)
        queues = Queues(source)
        queues.send({0x10: 3 * STEP + 16}, {0x10: 5 * STEP}, {0x10: 5 * STEP + 16})
        queues.stop()
        chunks = iter_chunks(source)
        assert [chunk.timestamp for chunk in chunks] == [3 * STEP, 5 * STEP]
        account = chunks.accounting
        assert account.source_labels == ("0",)
        assert account.present_by_source.tolist() == [3]
        assert account.missing_by_source.tolist() == [33]

    def test_labels(self, make):
        layout = dataclasses.replace(SMALL, source_labels=("m000", "m001", "m062"))
        assert iter_chunks(make(layout=layout)).accounting.source_labels == ("m000", "m001", "m062")

    def test_later_iterator(self, source):
        """A new iterator starts its own account."""
        queues = Queues(source)
        queues.send({0x10: 3 * STEP}, {0x10: 4 * STEP}, {0x10: 5 * STEP})
        queues.stop()
        assert next(iter_chunks(source)).timestamp == 3 * STEP
        chunks = iter_chunks(source)
        assert [chunk.timestamp for chunk in chunks] == [4 * STEP, 5 * STEP]
        assert chunks.accounting.chunks == 2
        assert chunks.accounting.first_timestamp == 4 * STEP

    @pytest.mark.parametrize("what", [None, "ring", "member"])
    def test_not_a_source(self, make, what):
        group = make("group")
        given = {None: None, "ring": group.data_ringbuffer, "member": group[0]}[what]
        with pytest.raises(TypeError, match=f"stream: given {type(given).__name__}, but wanted a stream or group from"):
            iter_chunks(given)

    def test_chunk_not_ours(self, make):
        """spead2's own chunks have no timestamp: one that holds data is given back, and said to be wrong."""
        source = make(free_ringbuffer=spead2.recv.ChunkRingbuffer(2 * N_CHUNKS))
        for _ in range(N_CHUNKS):
            source.free_ringbuffer.get_nowait()
            source.add_free_chunk(
                spead2.recv.Chunk(
                    data=np.zeros(48, np.uint8), present=np.zeros(12, np.uint8), extra=np.zeros(12, np.uint16)
                )
            )
        queues = Queues(source)
        queues.send({0x10: 0})
        queues.stop()
        with pytest.raises(TypeError, match=r"the data ring has a Chunk, but iter_chunks needs speadrx.Chunk"):
            next(iter_chunks(source))
        assert source.free_ringbuffer.qsize() == N_CHUNKS


class TestNothingLeaks:
    """However a loop ends, every chunk can be accounted for."""

    @pytest.mark.fault(18)
    @pytest.mark.parametrize("ring", [spead2.recv.ChunkRingbuffer, spead2.recv.asyncio.ChunkRingbuffer])
    def test_break_and_raise(self, make, ring):
        source = make(ring=ring)
        queues = Queues(source)
        queues.send(*({0x10: i * STEP} for i in range(6)))
        wait_for(lambda: source.data_ringbuffer.qsize() == 4)
        for chunk in iter_chunks(source):
            with chunk:
                break
        with contextlib.suppress(ZeroDivisionError):
            for chunk in iter_chunks(source):
                with chunk:
                    raise ZeroDivisionError
        assert source.data_ringbuffer.qsize() == 2
        assert source.free_ringbuffer.qsize() == N_CHUNKS - 2 - 2

    def test_stop_from_another_thread(self, source):
        """A blocked consumer ends when the source stops."""
        result = []
        consumer = threading.Thread(target=lambda: result.extend(iter_chunks(source)))
        consumer.start()
        source.stop()
        consumer.join(60)
        assert not consumer.is_alive()
        assert result == []

    def test_threads_share_iterator(self, make, monkeypatch):
        """However threads are interleaved, the account is that of the chunks in order."""
        source = make()
        queues = Queues(source)
        queues.send({0x10: 3 * STEP}, {0x10: 4 * STEP}, {0x10: 5 * STEP})
        queues.stop()
        chunks = iter_chunks(source)
        count, overtaken = chunks._count, threading.Event()

        def slow_first(chunk, *args):
            if chunk.chunk_id == 3:
                overtaken.wait(0.2)  # is in vain if nobody can
            if chunk.chunk_id == 5:
                overtaken.set()
            return count(chunk, *args)

        monkeypatch.setattr(chunks, "_count", slow_first)
        consumers = [threading.Thread(target=lambda: [chunk.recycle() for chunk in chunks]) for _ in range(2)]
        for consumer in consumers:
            consumer.start()
        for consumer in consumers:
            consumer.join(60)
        account = chunks.accounting
        assert (account.chunks, account.present, account.expected) == (3, 3, 27)
        assert (account.first_timestamp, account.last_timestamp) == (3 * STEP, 5 * STEP)

    def test_source_kept_alive(self, make):
        """An iterator is enough to go on receiving."""
        stream = speadrx.make_stream(
            layout=SMALL,
            max_active_chunks=2,
            data_ringbuffer=spead2.recv.ChunkRingbuffer(N_CHUNKS),
            free_ringbuffer=spead2.recv.ChunkRingbuffer(N_CHUNKS),
        )
        pool = ChunkPool(stream, N_CHUNKS)
        queues = Queues(stream)
        chunks = iter_chunks(stream)
        del stream
        queues.send({0x10: 0})
        queues.stop()
        for chunk in chunks:
            with chunk:
                assert chunk in pool.chunks
        assert chunks.accounting.chunks == 1


async def seen(source, n):
    """Wait until the callback has seen that many heaps."""
    async with asyncio.timeout(20):
        while source.ledger.snapshot().seen < n:  # noqa: ASYNC110 (no event tells)
            await asyncio.sleep(0)


@pytest.fixture(params=[spead2.recv.ChunkRingbuffer, spead2.recv.asyncio.ChunkRingbuffer], ids=["plain", "asyncio"])
def ring(request):
    return request.param


class TestAsync:
    """The same with ``async for``, whatever the ring."""

    @pytest.mark.parametrize("kind", ["stream", "group"])
    async def test_receives(self, make, kind, ring):
        source = make(kind, ring)
        queues = Queues(source)
        chunks = iter_chunks(source)

        async def send():
            for i in range(40):
                queues.send({0x10: i * STEP}, to=i % len(queues.queues))
                await asyncio.sleep(0)
                # A group drops what comes late from another stream: let each arrive first.
                await seen(source, i + 1)
            queues.stop()

        sender = asyncio.create_task(send())
        timestamps = []
        async for chunk in chunks:
            with chunk:
                timestamps.append(chunk.timestamp)
        await sender
        assert timestamps == [i * STEP for i in range(40)]
        assert chunks.accounting.missing == 39 * 11 + 2

    async def test_one_descriptor_however_long_it_runs(self, make, ring):
        """Also if none is left meanwhile."""
        source = make(ring=ring)
        queues = Queues(source)
        chunks = iter_chunks(source)

        async def send():
            for i in range(40):
                queues.send({0x10: i * STEP})
                await asyncio.sleep(0.01)  # so that the other task does wait; if not, it is as well
            queues.stop()

        before = set(os.listdir("/proc/self/fd"))
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        sender = asyncio.create_task(send())
        held = set()
        timestamps = []
        try:
            async for chunk in chunks:
                with chunk:
                    timestamps.append(chunk.timestamp)
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                held |= set(os.listdir("/proc/self/fd")) - before
                resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        await sender
        assert len(timestamps) == 40
        assert len(held) <= 2  # one of them lists the others

    async def test_several_tasks_wait(self, make, ring):
        source = make(ring=ring)
        queues = Queues(source)
        chunks = iter_chunks(source)
        seen = []

        async def take():
            async for chunk in chunks:
                with chunk:
                    seen.append(chunk.timestamp)

        tasks = [asyncio.create_task(take()) for _ in range(3)]
        for i in range(40):
            queues.send({0x10: i * STEP})
            await asyncio.sleep(0.002)
            if i == 20:
                tasks[0].cancel()
        queues.stop()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(seen) == [i * STEP for i in range(40)]

    def test_one_iterator_in_event_loops_one_after_the_other(self, make, ring):
        source = make(ring=ring)
        queues = Queues(source)
        chunks = iter_chunks(source)

        async def take():
            asyncio.get_running_loop().call_later(0.01, queues.send, {0x10: (len(seen) + 2) * STEP})
            async for chunk in chunks:
                with chunk:
                    seen.append(chunk.timestamp)
                break

        seen = []
        queues.send({0x10: 0}, {0x10: STEP})
        for _ in range(5):
            asyncio.run(take())
        assert seen == [i * STEP for i in range(5)]

    async def test_break_and_go_on(self, make, ring):
        source = make(ring=ring)
        queues = Queues(source)
        queues.send(*({0x10: i * STEP} for i in range(6)))
        chunks = iter_chunks(source)
        async for chunk in chunks:
            with chunk:
                break
        queues.stop()
        async for chunk in chunks:
            chunk.recycle()
        assert chunks.accounting.chunks == 6

    async def test_stop(self, make, ring):
        """A task that waits is woken when the source stops."""
        source = make(ring=ring)
        waiting = asyncio.create_task(anext(iter_chunks(source), "end"))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        source.stop()
        assert await asyncio.wait_for(waiting, 60) == "end"

    async def test_two_consumers(self, make, ring):
        """Each chunk goes to one of them, and neither blocks the other."""
        source = make(ring=ring)
        queues = Queues(source)

        async def consume():
            timestamps = []
            async for chunk in iter_chunks(source):
                with chunk:
                    timestamps.append(chunk.timestamp)
            return timestamps

        consumers = [asyncio.create_task(consume()) for _ in range(2)]
        await asyncio.sleep(0.01)
        for i in range(20):
            queues.send({0x10: i * STEP})
            await seen(source, i + 1)
        queues.stop()
        first, second = await asyncio.wait_for(asyncio.gather(*consumers), 20)
        assert sorted(first + second) == [i * STEP for i in range(20)]

    async def test_others_run(self, make, ring):
        """A ring that always has chunks does not keep other tasks from running."""
        source = make(ring=ring)
        queues = Queues(source)
        queues.send(*({0x10: i * STEP} for i in range(6)))
        queues.stop()
        wait_for(lambda: source.data_ringbuffer.qsize() == 6)
        steps = 0

        async def other():
            nonlocal steps
            while True:
                await asyncio.sleep(0)
                steps += 1

        task = asyncio.create_task(other())
        steps_seen = []
        async for chunk in iter_chunks(source):
            with chunk:
                steps_seen.append(steps)
        task.cancel()
        assert len(set(steps_seen)) == 6

    @pytest.mark.fault(18)
    async def test_cancel(self, make, ring, rng):
        """However often and whenever a consumer is cancelled, no chunk is lost."""
        source = make(ring=ring)
        queues = Queues(source)
        gc.collect()  # what other tests have left
        descriptors = len(os.listdir("/proc/self/fd"))
        got = []

        async def consume():
            async for chunk in iter_chunks(source):
                with chunk:
                    got.append(chunk.timestamp)

        for i in range(200):
            task = asyncio.create_task(consume())
            for _ in range(rng.integers(4)):
                await asyncio.sleep(0)
            queues.send({0x10: i * STEP})
            await seen(source, i + 1)
            for _ in range(rng.integers(4)):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        del task
        await asyncio.sleep(0)  # the event loop keeps the last exception for a step, and so the last iterator
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == descriptors
        queues.stop()
        await consume()
        assert got == [i * STEP for i in range(200)]
        assert source.free_ringbuffer.qsize() == N_CHUNKS

    async def test_accounting_is_shared(self, make):
        """One iterator may be used in both ways."""
        source = make()
        queues = Queues(source)
        queues.send(*({0x10: i * STEP} for i in range(3)))
        queues.stop()
        chunks = iter_chunks(source)
        (await anext(chunks)).recycle()
        assert isinstance(next(chunks), Chunk)
        assert [chunk.timestamp async for chunk in chunks] == [2 * STEP]
        assert chunks.accounting.chunks == 3


def test_data_ring_of_two_streams_is_refused() -> None:
    data = spead2.recv.ChunkRingbuffer(8)
    streams = []
    for chunks in ((5, 6, 7), (3, 4, 5)):
        free = spead2.recv.ChunkRingbuffer(8)
        stream = speadrx.make_stream(layout=SMALL, max_active_chunks=2, data_ringbuffer=data, free_ringbuffer=free)
        ChunkPool(stream, 4)
        queue = spead2.InprocQueue()
        stream.add_inproc_reader(queue)
        for i, chunk in enumerate(chunks):
            queue.add_packet(encode(small_heap({TIME_ID: chunk * STEP}), i, 48)[0])
        streams.append(stream)
        # Each stream gives out its first chunk, and the empty one before it.
        wait_for(lambda: data.qsize() == 2 * len(streams))
    received = iter_chunks(streams[0])
    with next(received) as chunk:
        assert chunk.chunk_id == 5
    expected = received.accounting.expected
    with pytest.raises(ValueError, match="data_ringbuffer: "):
        next(received)
    assert received.accounting.expected == expected
    assert received.accounting.missing >= 0
    for stream in streams:
        stream.stop()
