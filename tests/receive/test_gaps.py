"""Whole chunks that never came: in their place, with `gaps`, stand chunks without heaps, and else nothing."""

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import os
import random
import signal
import threading

import numpy as np
import pytest
import spead2
import spead2.recv
import spead2.recv.asyncio

import speadrx
import speadrx.receive.iterate
from handmade import AXIS_ID, SIDE_ID, SMALL, TIME_ID, OwnLayout, encode, small_heap
from loopback import wait_for
from receiving import receiver
from speadrx import iter_chunks
from speadrx.accounts.span import Ends

STEP, CHUNK, BATCHES = 16, SMALL.chunk_timestamp_step, SMALL.chunk_batches
ANTENNAS = (7, 3, 5)
COPIES = 2
HEAPS = len(ANTENNAS) * BATCHES
PAYLOAD = b"\x11\x22\x33\x44"
members = pytest.mark.parametrize("members", [None, 2], ids=["stream", "group"])


def packets(number):
    """Each heap of a chunk twice, since a single heap that is far ahead need not be believed."""
    for batch in range(BATCHES):
        for antenna in ANTENNAS * COPIES:
            time = (number * CHUNK + batch * STEP) % 2**48
            heap = small_heap({TIME_ID: time, AXIS_ID: antenna << 1, SIDE_ID: 0xABCD00}, PAYLOAD)
            yield encode(heap, next(packets.counter), 48)[0]


packets.counter = itertools.count()


def send(rx, *numbers):
    """Send chunks to the first stream, and wait until it has seen all heaps."""
    before = rx.stream.ledger.snapshot().seen
    put(rx.queues[0], *numbers)
    wait_for(lambda: rx.stream.ledger.snapshot().seen >= before + len(numbers) * HEAPS * COPIES)


@contextlib.contextmanager
def receiving(members=None, *, layout=SMALL, gaps=True, pool=8, **kwargs):
    # So that any chunk may follow any other, without a restart.
    arguments = {"window": 2, "max_jump": 5000, "resync": True, **kwargs}
    with receiver(layout, members=members, gaps=gaps, pool=pool, **arguments) as rx:
        yield rx


def put(queue, *numbers):
    for number in numbers:
        for packet in packets(number):
            queue.add_packet(packet)


def feed(stream, *numbers):
    """Have a stream receive chunks, and return the queue that it reads."""
    queue = spead2.InprocQueue()
    stream.add_inproc_reader(queue)
    put(queue, *numbers)
    return queue


def each(chunks):
    """Each chunk to come, until the next is asked for."""
    for chunk in chunks:
        with chunk:
            yield chunk


def account(iterator):
    """All that must be the same with and without `gaps`."""
    accounting = iterator.accounting
    present, *others = accounting._totals._replace(skipped=0)
    return (present.tolist(), *others), accounting.missing, accounting.expected


def assert_chunks(rx, came, missing=()):
    """What came and what is missing, in this order by time; nothing else was given out."""
    assert [chunk.timestamp for chunk in rx.chunks] == [number * CHUNK for number in sorted({*came, *missing})]
    for chunk in rx.chunks:
        if chunk.timestamp // CHUNK in missing:
            assert not chunk.present.any()
            assert not chunk.data.any()
            assert not chunk.extra["status"].any()
        else:
            assert chunk.present.any()
            assert (chunk.data[chunk.present] == np.frombuffer(PAYLOAD, np.uint8)).all()
            assert (chunk.extra["status"][chunk.present] == 0xABCD).all()


class TestGiven:
    """One for each that never came, at its time."""

    @members
    @pytest.mark.parametrize("n", [0, 1, 2, 3, 40, 1000])
    def test_missing_chunks(self, members, n):
        came = [5, 6 + n, 7 + n]
        totals = []
        for gaps in (True, False):
            with receiving(members, gaps=gaps) as rx:
                send(rx, *came)
                rx.finish()
                assert_chunks(rx, came, range(6, 6 + n) if gaps else ())
                assert [chunk.gap for chunk in rx.chunks] == ([0] * (3 + n) if gaps else [0, n * BATCHES, 0])
                assert rx.iterator.accounting.skipped_chunks == (0 if gaps else n)
                totals.append(account(rx.iterator))
        assert totals[0] == totals[1]
        assert totals[0][2] == (3 + n) * HEAPS

    @pytest.mark.parametrize("seed", range(3))
    def test_at_random(self, seed):
        rng = random.Random(seed)
        came = sorted(rng.sample(range(300), 60))
        totals = []
        for gaps in (True, False):
            with receiving(gaps=gaps, flush_after=None) as rx:
                for number in came:
                    send(rx, number)
                    if rng.random() < 0.1:
                        rx.stream.flush()
                rx.finish()
                missing = {*range(came[0], came[-1])} - {*came}
                assert_chunks(rx, came, missing if gaps else ())
                totals.append(account(rx.iterator))
        # Flushes came elsewhere, but they are of no account.
        assert totals[0] == totals[1]

    @members
    @pytest.mark.parametrize("first", [-1, -2, -3])
    def test_wrap(self, members, first):
        """Where the 48 bits of timestamps begin again, missing chunks have times beyond them."""
        came = [2**48 // CHUNK + number for number in (first, first + 4)]
        with receiving(members) as rx:
            send(rx, *came)
            rx.finish()
            assert_chunks(rx, came, range(came[0] + 1, came[1]))

    @members
    def test_flush(self, members):
        """The IDs that it skips were never sent; the time that passes meanwhile was."""
        with receiving(members) as rx:
            send(rx, 3)
            rx.stream.flush()
            wait_for(lambda: len(rx.chunks) == 1)
            send(rx, 4)
            rx.stream.flush()
            wait_for(lambda: len(rx.chunks) == 2)
            send(rx, 9)
            rx.stream.flush()
            wait_for(lambda: len(rx.chunks) == 7)
            rx.finish()
            assert_chunks(rx, [3, 4, 9], range(5, 9))
            assert [chunk.gap for chunk in rx.chunks] == [0] * 7

    @members
    def test_drain(self, members):
        with receiving(members) as rx:
            send(rx, 3, 6)
            rx.stream.drain()
            rx.wait()
            assert_chunks(rx, [3, 6], [4, 5])

    @members
    @pytest.mark.parametrize("to", [5, 2**30])
    def test_restart(self, members, to):
        """Nobody knows what was sent when time began again, at an earlier or a much later time."""
        # Without a rate, any later time may be the end of an outage.
        layout = dataclasses.replace(SMALL, time=dataclasses.replace(SMALL.time, tick_rate=1e6))
        with receiving(members, layout=layout, max_jump=50) as rx:
            send(rx, 1000, 1002, *range(to, to + 10), to + 12)
            rx.finish()
            assert [epoch.cause for epoch in rx.stream.epochs()] == ["start", "restart"]
            numbers = [chunk.timestamp // CHUNK for chunk in rx.chunks]
            begin = numbers[3]
            assert numbers == [1000, 1001, 1002, *range(begin, to + 13)]
            assert to <= begin < to + 5
            assert [chunk.gap for chunk in rx.chunks] == [0, 0, 0, None, *[0] * (len(numbers) - 4)]
            assert [number for number, chunk in zip(numbers, rx.chunks, strict=True) if not chunk.present.any()] == [
                1001,
                to + 10,
                to + 11,
            ]

    @pytest.mark.parametrize("gaps", [True, False])
    def test_restart_after_the_account(self, gaps):
        """Nor when the account has ended before, so that it does not count the restart."""
        with receiving(gaps=gaps, max_jump=50) as rx:
            rx.stream._account_ends = lambda: Ends(end=(0, 1003 * BATCHES))
            send(rx, 1000, 1002, *range(5, 15))
            rx.finish()
            accounting = rx.iterator.accounting
            assert (accounting.restarts, accounting.skipped_chunks) == (0, 0 if gaps else 1)
            assert [chunk.gap for chunk in rx.chunks if chunk.gap != 0] == ([] if gaps else [BATCHES]) + [None]

    def test_fill(self):
        with receiving(fill=(1, 2)) as rx:
            send(rx, 0, 3)
            rx.finish()
            for chunk in rx.chunks[1:3]:
                assert (chunk.data == [1, 2, 1, 2]).all()
                assert not chunk.extra["status"].any()

    def test_fill_between_strides(self):
        """Where strides leave room between heaps, nothing is written, as in any chunk."""
        layout = dataclasses.replace(SMALL, strides={"time": 4 * 3 + 5})
        with receiver(layout, gaps=True, fill=9, window=2, pool=8, max_jump=9) as rx:
            send(rx, 0, 3)
            rx.finish()
            assert [chunk.timestamp // CHUNK for chunk in rx.chunks] == [0, 1, 2, 3]
            assert (rx.chunks[1].data == 9).all()

    def test_filled_once(self, make):
        """The memory of all that never came was filled before, and is not written to again."""
        stream = make(max_jump=100)
        queue = feed(stream, 0)
        for packet in itertools.islice(packets(3), HEAPS):
            queue.add_packet(packet)
        queue.stop()
        chunks = iter_chunks(stream, fill=7, gaps=True)
        fill, filled = chunks._fill, []
        chunks._fill = lambda chunk: filled.append((chunk.timestamp // CHUNK, fill(chunk)))
        assert len(list(chunks)) == 4
        assert filled == [(3, HEAPS // COPIES)]

    @pytest.mark.parametrize("ring", [spead2.recv.ChunkRingbuffer, spead2.recv.asyncio.ChunkRingbuffer])
    async def test_async(self, make, ring):
        stream = make(data_ringbuffer=ring(8), max_jump=100)
        queue = feed(stream, 2, 5)
        queue.stop()
        chunks = iter_chunks(stream, gaps=True)
        seen = []
        async with asyncio.timeout(20):
            async for chunk in chunks:
                with chunk:
                    seen.append((chunk.timestamp // CHUNK, bool(chunk.present.any())))
        assert seen == [(2, True), (3, False), (4, False), (5, True)]

    def test_own_layout(self, make):
        stream = make(layout=OwnLayout(), spead_items=SMALL.spead_items, max_heap_extra=2)
        feed(stream, 2, 4).stop()
        chunks = iter_chunks(stream, gaps=True)
        seen = [(chunk.timestamp // CHUNK, chunk.present.any(), chunk.data.any()) for chunk in chunks]
        assert seen == [(2, True, True), (3, False, False), (4, True, True)]

    def test_receiver(self):
        queue = spead2.InprocQueue()
        put(queue, 1, 4)
        queue.stop()
        with speadrx.Receiver(SMALL, queue, window=2, max_jump=100, fill=5, gaps=True) as rx:
            seen = [(chunk.timestamp // CHUNK, int(chunk.data[0, 0, 0, 0])) for chunk in each(rx)]
        assert seen == [(1, PAYLOAD[0]), (2, 5), (3, 5), (4, PAYLOAD[0])]
        assert rx.accounting.expected == 4 * HEAPS


class TestBound:
    """However long a gap is, not too much comes of it."""

    @pytest.mark.parametrize(("gaps", "limit"), [(True, 1000), (3, 3), (1, 1)])
    def test_rest_is_left_out(self, gaps, limit, caplog):
        came = [0, limit + 1, 2 * limit + 7, 2 * limit + 9 + limit]
        totals = []
        with caplog.at_level(logging.WARNING):
            for given in (gaps, False):
                with receiving(gaps=given) as rx:
                    send(rx, *came)
                    rx.finish()
                    totals.append(account(rx.iterator))
                    skipped = rx.iterator.accounting.skipped_chunks
                    if given:
                        _, second, third, _ = came
                        missing = [*range(1, second), *range(second + 1, second + 1 + limit)]
                        assert_chunks(rx, came, [*missing, *range(third + 1, third + 1 + limit)])
                        assert [chunk.gap for chunk in rx.chunks if chunk.gap] == [5 * BATCHES, 1 * BATCHES]
                        assert skipped == 5 + 1
                    else:
                        assert skipped == came[-1] - 3
        assert totals[0] == totals[1]
        (record,) = caplog.records
        assert record.getMessage().startswith(f"gaps: {limit} chunks in a row were given out")
        assert "5 more are left out" in record.getMessage()

    @pytest.mark.parametrize(("gaps", "error"), [(-1, ValueError), (1.5, TypeError), ("all", TypeError)])
    def test_wrong(self, make, gaps, error):
        with pytest.raises(error, match="gaps: "):
            iter_chunks(make(), gaps=gaps)

    @pytest.mark.parametrize("gaps", [False, 0])
    def test_none(self, make, gaps, caplog):
        stream = make(max_jump=100)
        feed(stream, 2, 5).stop()
        chunks = iter_chunks(stream, gaps=gaps)
        assert [(chunk.timestamp // CHUNK, chunk.gap) for chunk in each(chunks)] == [(2, 0), (5, 2 * BATCHES)]
        assert not caplog.records
        assert chunks.accounting.skipped_chunks == 2

    def test_gap_of_a_chunk_that_is_used_again(self, make):
        """Each chunk is told its own gap."""
        stream = make(chunks=4, max_jump=100)
        queue = feed(stream, 0)
        gaps, chunks = [], iter_chunks(stream)
        for number in range(20):
            put(queue, 2 * number + 1, 2 * number + 2) if number % 3 else put(queue, 2 * number + 2)
            with next(chunks) as chunk:
                gaps.append(chunk.gap)
        assert set(gaps) == {0, BATCHES}


class TestHeld:
    """Users may do with them what they like."""

    def test_held_and_written_to(self):
        """The pool has 6 chunks; hundreds are held, while more come, and each is what its holder has made of it."""
        with receiving(pool=6, fill=7) as rx, rx.keep() as kept:
            send(rx, 0, 201)
            rx.stream.flush()
            wait_for(lambda: len(kept) == 1 + 200 + 1)
            for i, chunk in enumerate(kept[1:201]):
                assert (chunk.data == 7).all()
                chunk.data[...] = i
                chunk.present[...] = True
                chunk.extra["status"] = i
            send(rx, 204)
            rx.finish()
            assert [chunk.timestamp for chunk in kept] == [i * CHUNK for i in range(205)]
            for i, chunk in enumerate(kept[1:201]):
                assert (chunk.data == i).all()
                assert chunk.present.all()
                assert (chunk.extra["status"] == i).all()
            for chunk in kept[202:204]:
                assert (chunk.data == 7).all()
                assert not chunk.present.any()

    def test_given_back(self, make):
        """By any way, and twice: none gets into the pool."""
        stream = make(max_jump=100)
        feed(stream, 0, 5, 6, 7)
        chunks = iter_chunks(stream, gaps=True)
        first, *missing, last = [next(chunks) for _ in range(6)]
        wait_for(lambda: stream.data_ringbuffer.qsize() == 0)  # of empty chunks, which the iterator gives back
        free = stream.free_ringbuffer.qsize()
        array = missing[0].data
        for chunk in missing:
            chunk.recycle()
            stream.add_free_chunk(chunk)
            with chunk:
                assert chunk.data is chunk.present is chunk.extra is None
        assert not array.any()  # whoever has the array may go on with it
        assert stream.free_ringbuffer.qsize() == free == 8 - 2 - 2
        first.recycle()
        last.recycle()
        assert stream.free_ringbuffer.qsize() == 8 - 2

    def test_memory_is_free_again(self, make):
        stream = make(max_jump=5000)
        queue = feed(stream, 0)

        def mappings():
            with open("/proc/self/maps") as file:
                return sum("memfd:speadrx" in line for line in file)

        def files():
            links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
            return sum("memfd:speadrx" in os.readlink(link) for link in links if os.path.islink(link))

        before = mappings(), files()
        chunks = iter_chunks(stream, gaps=True)
        put(queue, 501)
        queue.stop()
        held = list(chunks)
        assert (mappings() - before[0], files() - before[1]) == (500, 1)
        del held
        assert (mappings() - before[0], files() - before[1]) == (0, 1)
        del chunks
        assert (mappings(), files()) == before


class TestLoops:
    """However a loop goes on, no chunk is lost, or given twice."""

    def test_left_within_a_gap(self, make):
        """A new iterator, which knows of no gap, goes on with the chunk after it."""
        stream = make(max_jump=100)
        feed(stream, 0, 5, 8).stop()
        seen = []
        for _ in range(2):
            for chunk in iter_chunks(stream, gaps=True):
                with chunk:
                    seen.append((chunk.timestamp // CHUNK, bool(chunk.present.any())))
                    if not chunk.present.any():
                        break
        for gaps in (False, True):
            seen += [(chunk.timestamp // CHUNK, True) for chunk in each(iter_chunks(stream, gaps=gaps))]
        assert seen == [(0, True), (1, False), (5, True), (6, False), (8, True)]
        assert stream.free_ringbuffer.qsize() == 8
        totals = stream._accounts.totals()
        assert sum(totals.present) == 3 * HEAPS

    def test_account_goes_along(self, make):
        """It has just what was given out."""
        stream = make(max_jump=100)
        feed(stream, 0, 3).stop()
        chunks = iter_chunks(stream, gaps=True)
        seen = [(chunks.accounting.present, chunks.accounting.expected) for chunk in each(chunks)]
        assert seen == [(HEAPS, HEAPS), (HEAPS, 2 * HEAPS), (HEAPS, 3 * HEAPS), (2 * HEAPS, 4 * HEAPS)]

    def test_two_iterators(self, make):
        """Each chunk goes to one of them; to the other it is missing."""
        stream = make(max_jump=100)
        queue = feed(stream, 0, 4, 6, 8)
        first, second = iter_chunks(stream, gaps=True), iter_chunks(stream, gaps=True)
        numbers = [[next(chunks).timestamp // CHUNK for chunks in (first, second)] for _ in range(2)]
        assert numbers == [[0, 4], [1, 5]]
        queue.stop()
        assert [(chunk.timestamp // CHUNK, chunk.present.any()) for chunk in each(second)] == [
            (6, True),
            (7, False),
            (8, True),
        ]
        assert list(first) == []

    def test_another_iterator_is_further(self, make):
        """While it waited in the ring, the chunk came to wait that it has gone past by now: that is not for it."""
        stream = make(max_jump=100)
        feed(stream, 0, 4, 6).stop()
        older, chunks = next(iter_chunks(stream)), iter_chunks(stream)
        assert next(chunks).timestamp == 4 * CHUNK
        stream._waiting[older.chunk_id] = older
        assert next(chunks).timestamp == 6 * CHUNK
        assert list(chunks) == []
        assert list(iter_chunks(stream)) == [older]

    def test_threads(self, make):
        """Those that share an iterator get each chunk once."""
        stream = make(max_jump=2000)
        queue = spead2.InprocQueue()
        stream.add_inproc_reader(queue)
        came = list(range(0, 2000, 37))
        chunks = iter_chunks(stream, gaps=True)
        seen = [[], [], []]
        consumers = [
            threading.Thread(target=lambda mine=mine: mine.extend(chunk.timestamp // CHUNK for chunk in each(chunks)))
            for mine in seen
        ]
        for consumer in consumers:
            consumer.start()
        put(queue, *came)
        queue.stop()
        for consumer in consumers:
            consumer.join(60)
        assert all(mine == sorted(mine) for mine in seen)
        assert sorted(itertools.chain(*seen)) == list(range(came[-1] + 1))
        assert chunks.accounting.present == len(came) * HEAPS

    def test_interrupts(self, make):
        """Ctrl-C comes anywhere in the iterator; its user goes on."""
        stream = make(max_jump=100)
        queue = spead2.InprocQueue()
        stream.add_inproc_reader(queue)
        chunks = iter_chunks(stream, gaps=True, fill=7)
        interrupts, numbers, sent = 0, [], [0]

        def interrupt(signum, frame):
            nonlocal interrupts
            while frame is not None:
                if frame.f_code.co_filename == speadrx.receive.iterate.__file__:
                    interrupts += 1
                    raise KeyboardInterrupt
                frame = frame.f_back

        def storm():
            pause = random.Random(18)
            while not done.wait(pause.random() * 0.001):
                os.kill(os.getpid(), signal.SIGUSR1)

        put(queue, 0)
        done = threading.Event()
        previous = signal.signal(signal.SIGUSR1, interrupt)
        thread = threading.Thread(target=storm)
        thread.start()
        try:
            while interrupts < 200:
                if len(numbers) > sent[-1] - 10:
                    sent.append(sent[-1] + 4)
                    put(queue, sent[-1])
                    continue
                with contextlib.suppress(KeyboardInterrupt):
                    chunk = next(chunks)
                    numbers.append(chunk.timestamp // CHUNK)
                    chunk.recycle()
        finally:
            done.set()
            thread.join()
            signal.signal(signal.SIGUSR1, previous)
        queue.stop()
        numbers += [chunk.timestamp // CHUNK for chunk in each(chunks)]
        assert numbers == list(range(sent[-1] + 1))
        assert chunks.accounting.chunks == len(sent)
        assert chunks.accounting.missing == (sent[-1] + 1 - len(sent)) * HEAPS
        assert stream.free_ringbuffer.qsize() == 8
