"""Loops that keep every chunk are told so, unless somebody else may recycle one; and what else loops do wrong."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
import spead2

import speadrx.receive.iterate
from handmade import AXIS_ID, SMALL, TIME_ID, encode, small_heap
from loopback import wait_for
from speadrx import ChunkPool, Receiver, iter_chunks, make_stream
from speadrx.receive import starvation

ANTENNAS = (3, 7, 5)
CHUNK_HEAPS = len(ANTENNAS) * SMALL.time.batches
WINDOW = 2


def packets(chunks):
    """All heaps of so many chunks, made by hand."""
    batches = range(chunks * SMALL.time.batches)
    heaps = [{TIME_ID: batch * SMALL.time.step, AXIS_ID: antenna << 1} for batch in batches for antenna in ANTENNAS]
    return [encode(small_heap(items), i, 48)[0] for i, items in enumerate(heaps)]


def queue_of(chunks, *, ends=True):
    queue = spead2.InprocQueue()
    for packet in packets(chunks):
        queue.add_packet(packet)
    if ends:
        queue.stop()
    return queue


@pytest.fixture
def quick(monkeypatch):
    """Look often, and count the looks."""
    monkeypatch.setattr(speadrx.receive.iterate, "LOOK_INTERVAL", 0.02)
    looks = []
    look = starvation.Starvation.look
    monkeypatch.setattr(starvation.Starvation, "look", lambda self, **kw: (looks.append(1), look(self, **kw)))
    return looks


@pytest.fixture
def alone(monkeypatch):
    """As if this thread were the only one: that of tests is not."""
    monkeypatch.setattr(starvation, "_other_threads", lambda: False)


def keep(receiver):
    kept = []
    with pytest.raises(RuntimeError, match=r"Recycle each chunk .*, and copy what you keep"):
        kept.extend(receiver)
    return kept


TOLD = f"""
import sys
import speadrx
sys.path[:0] = {[os.path.dirname(__file__), *sys.path]!r}
from test_starvation import SMALL, queue_of
from speadrx import Receiver
receiver = Receiver(SMALL, queue_of(40), window=2)
try:
    {{}}
except RuntimeError as exc:
    print(exc)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "loop",
    ["list(receiver)", "for chunk in receiver: pass", "for chunk in Receiver(SMALL, queue_of(40), window=2): pass"],
)
def test_program_is_told(loop):
    """Also if nobody keeps the chunks, but nobody recycles them either."""
    result = subprocess.run(
        [sys.executable, "-c", TOLD.format(loop)], capture_output=True, text=True, timeout=60, check=True
    )
    assert "Recycle each chunk" in result.stdout


@pytest.mark.usefixtures("quick", "alone")
@pytest.mark.parametrize("kind", ["stream", "group", "parts"])
def test_loop_that_keeps_all_is_told(kind, udp_port):
    """It has what came, and can go on once it has recycled that."""
    if kind == "group":
        # Without a socket, it is not known whether a group waits for heaps or for chunks.
        receiver = Receiver(SMALL, [("127.0.0.1", udp_port), ("127.0.0.2", udp_port)], threads=2, window=WINDOW)
        chunks = iter(receiver)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for packet in packets(40):
                sock.sendto(packet, ("127.0.0.1", udp_port))
    elif kind == "stream":
        receiver = Receiver(SMALL, queue_of(40), window=WINDOW)
        chunks = iter(receiver)
    else:
        rings = {name: spead2.recv.ChunkRingbuffer(7) for name in ("data_ringbuffer", "free_ringbuffer")}
        receiver = make_stream(layout=SMALL, max_active_chunks=WINDOW, **rings)
        ChunkPool(receiver, 7)
        receiver.add_inproc_reader(queue_of(40))
        chunks = iter_chunks(receiver)
    kept = keep(chunks)
    assert len(kept) >= 3
    assert [chunk.timestamp for chunk in kept] == [i * SMALL.chunk_timestamp_step for i in range(len(kept))]
    for chunk in kept:
        chunk.recycle()
    with next(chunks) as chunk:
        assert chunk.timestamp == len(kept) * SMALL.chunk_timestamp_step
    receiver.stop()


@pytest.mark.usefixtures("alone")
async def test_async_loop_that_keeps_all_is_told(quick):
    receiver = Receiver(SMALL, queue_of(40), window=WINDOW)
    kept = []

    async def consume():
        kept.extend([chunk async for chunk in receiver])

    consumer = asyncio.create_task(consume())
    # This task may recycle, so the other one is not told.
    await asyncio.to_thread(wait_for, lambda: len(quick) > 20)
    assert not consumer.done()
    receiver.stop()
    await consumer
    assert len(kept) >= 3

    async def alone():
        async with Receiver(SMALL, queue_of(40), window=WINDOW) as receiver:
            return [chunk async for chunk in receiver]

    def run():
        with pytest.raises(RuntimeError, match="Recycle each chunk"):
            asyncio.run(alone())

    await asyncio.to_thread(run)


@pytest.mark.usefixtures("alone")
def test_silent_senders_are_waited_for(quick):
    """Whoever holds all chunks that came is not told while the stream has a window: nothing is lost yet."""
    queue = queue_of(5, ends=False)
    receiver = Receiver(SMALL, queue, window=WINDOW, chunks=5)
    kept = []
    consumer = threading.Thread(target=lambda: kept.extend(receiver))
    consumer.start()
    wait_for(lambda: len(quick) > 20)
    assert receiver.stats().free_ring.chunks == 0
    queue.stop()  # as its senders would: what is in the window comes out
    consumer.join()
    assert [chunk.timestamp for chunk in kept] == [i * SMALL.chunk_timestamp_step for i in range(5)]


def test_another_thread_may_recycle(quick):
    """However long it takes: a loop with another thread is not told."""
    receiver = Receiver(SMALL, queue_of(40), window=WINDOW)
    kept, timestamps = [], []

    def recycle():
        wait_for(lambda: len(quick) > 20)
        while consuming.is_set() or kept:
            with contextlib.suppress(IndexError):
                kept.pop(0).recycle()

    consuming = threading.Event()
    consuming.set()
    thread = threading.Thread(target=recycle)
    thread.start()
    for chunk in receiver:
        timestamps.append(chunk.timestamp)
        kept.append(chunk)
    consuming.clear()
    thread.join()
    assert timestamps == [i * SMALL.chunk_timestamp_step for i in range(40)]
    assert receiver.stats().missing == 0


def test_ctrl_c_hands_over_the_window():
    """The loop gets what came, and only then the interrupt; the second Ctrl-C ends it at once."""
    queue = queue_of(5, ends=False)
    for packet in packets(6)[-CHUNK_HEAPS : -CHUNK_HEAPS // 2]:
        queue.add_packet(packet)
    interrupts = []

    def interrupt(signum, frame):
        while frame is not None and not interrupts:  # a second signal may be on its way already
            if frame.f_code is speadrx.receive.iterate.ChunkIterator._wait_for_chunk.__code__:  # so not in the body
                interrupts.append(signum)
                raise KeyboardInterrupt
            frame = frame.f_back

    def strike():
        wait_for(lambda: receiver.stats().placed == 5 * CHUNK_HEAPS + CHUNK_HEAPS // 2 and len(heaps) == 4)
        while not interrupts:
            os.kill(os.getpid(), signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, interrupt)
    heaps = []
    striker = threading.Thread(target=strike)
    try:
        with pytest.raises(KeyboardInterrupt), Receiver(SMALL, queue, window=WINDOW) as receiver:  # noqa: PT012
            striker.start()
            for chunk in receiver:
                with chunk:
                    heaps.append(int(chunk.present.sum()))
    finally:
        striker.join()
        signal.signal(signal.SIGUSR1, previous)
    assert heaps == [CHUNK_HEAPS] * 5 + [CHUNK_HEAPS // 2]
    assert receiver.stats().unfinished == 0
    assert list(receiver) == [], "the interrupt is raised once"


def test_recycled_within_its_block(stream):
    """The end of the block does nothing then, or anything with a chunk that another block has already."""
    free = stream.free_ringbuffer
    chunk, *others = [free.get() for _ in range(free.qsize())]
    assert others
    with chunk:
        chunk.recycle()
    assert free.qsize() == 1
    for outer_ends_first in (True, False):
        with contextlib.ExitStack() as outer, contextlib.ExitStack() as inner:
            outer.enter_context(free.get())
            chunk.recycle()
            # As in another thread, before this block ends.
            again = inner.enter_context(free.get())
            assert again is chunk
            (outer if outer_ends_first else inner).close()
            assert again.data is not None, "one of the blocks has it"
        assert free.qsize() == 1, "it is recycled once for each time that it was given out"
    with pytest.raises(ValueError, match="recycled twice"):
        chunk.recycle()
