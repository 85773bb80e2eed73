"""A user's loop that fails or is cancelled: every chunk comes back, and none is lost."""

import asyncio
import contextlib
import os
import random
import signal
import threading

import numpy as np
import pytest
import spead2.recv
import spead2.recv.asyncio

import speadrx.receive.iterate
from handmade import SMALL
from speadrx import iter_chunks
from speadrx.simulate import InprocSink, Simulator

CHUNKS, POOL, LEAVES = 2000, 8, 0.3


class UserError(Exception):
    pass


class Sender:
    """Sends all chunks from a thread of its own, then ends the stream."""

    def __init__(self, stream):
        self.simulator = Simulator(SMALL, seed=1)
        self.queue = spead2.InprocQueue()
        stream.add_inproc_reader(self.queue)
        self.thread = threading.Thread(target=self._send)

    def _send(self):
        self.simulator.send(InprocSink(self.queue), CHUNKS * SMALL.chunk_batches)
        self.queue.stop()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc_info):
        self.thread.join()


def check(chunk, simulator):
    assert chunk.present.all()
    np.testing.assert_array_equal(chunk.data, simulator.chunk_data(chunk.timestamp))


def assert_nothing_lost(stream, timestamps, simulator, fault_report, note):
    sent, totals, ledger = simulator.truth.copies, stream._accounts.totals(), stream.ledger.snapshot()
    present = sum(totals.present)
    too_old, rejected = stream.stats["too_old_heaps"], sum(ledger.rejected.values())
    left = sent - present - ledger.duplicates - too_old - rejected
    fault_report(sent=sent, lost=sent - present, residual=left, note=note)
    assert left == too_old == rejected == ledger.duplicates == 0
    assert sum(totals.missing) == 0
    assert timestamps == [i * SMALL.chunk_timestamp_step for i in range(CHUNKS)]
    assert stream.free_ringbuffer.qsize() == POOL


@pytest.mark.fault(18)
@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt, None], ids=["error", "Ctrl-C", "break"])
def test_loop_is_left(error, make, rng, fault_report):
    """By an exception or a break, at any chunk; another loop goes on with the next."""
    stream = make(chunks=POOL)
    timestamps, ended, left = [], False, 0
    with Sender(stream) as sender:
        while not ended:
            with contextlib.suppress(error or UserError):
                for chunk in iter_chunks(stream):
                    with chunk:
                        timestamps.append(chunk.timestamp)
                        check(chunk, sender.simulator)
                        if rng.random() < LEAVES:
                            left += 1
                            if error is None:
                                break
                            raise error
                else:
                    ended = True
    assert left > POOL * 10
    assert_nothing_lost(stream, timestamps, sender.simulator, fault_report, f"left {left} times")


@pytest.mark.fault(18)
@pytest.mark.parametrize("ring", [spead2.recv.ChunkRingbuffer, spead2.recv.asyncio.ChunkRingbuffer])
async def test_task_is_cancelled(ring, make, rng, fault_report):
    """While it waits for a chunk, or with one in its hands."""
    stream = make(chunks=POOL, data_ringbuffer=ring(POOL))
    timestamps, cancelled, holding, in_hands = [], 0, False, 0
    with Sender(stream) as sender:

        async def consume():
            nonlocal holding
            async for chunk in iter_chunks(stream):
                with chunk:
                    timestamps.append(chunk.timestamp)
                    check(chunk, sender.simulator)
                    holding = True
                    await asyncio.sleep(0)
                    holding = False

        while True:
            holding = False
            task = asyncio.create_task(consume())
            for _ in range(rng.integers(12)):
                await asyncio.sleep(0)
            if task.done():
                await task
                break
            in_hands += holding
            cancelled += task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    assert in_hands > POOL * 10
    note = f"cancelled {cancelled} times, {in_hands} of them with a chunk in hands"
    assert_nothing_lost(stream, timestamps, sender.simulator, fault_report, note)


@pytest.mark.fault(18)
def test_interrupts_within_the_iterator(make, fault_report):
    """Ctrl-C comes while a chunk is on its way from the ring to the user, who goes on: none is lost, or given twice."""
    stream = make(chunks=POOL)
    queue = spead2.InprocQueue()
    stream.add_inproc_reader(queue)
    simulator = Simulator(SMALL)
    chunks = iter_chunks(stream)
    interrupts = 0

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

    done = threading.Event()
    timestamps = []
    previous = signal.signal(signal.SIGUSR1, interrupt)
    thread = threading.Thread(target=storm)
    thread.start()
    try:
        sent = 0
        while interrupts < 300:
            if sent - len(timestamps) < POOL - 2:
                simulator.send(InprocSink(queue), SMALL.chunk_batches)
                sent += 1
                continue
            with contextlib.suppress(KeyboardInterrupt):
                chunk = next(chunks)
                timestamps.append(chunk.timestamp)
                chunk.recycle()
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGUSR1, previous)
    queue.stop()
    for chunk in chunks:
        with chunk:
            timestamps.append(chunk.timestamp)
    lost = sum(simulator.truth.sent) - chunks.accounting.present
    fault_report(sent=sum(simulator.truth.sent), lost=lost, residual=lost, note=f"{interrupts} interrupts")
    assert timestamps == [i * SMALL.chunk_timestamp_step for i in range(sent)]
    assert (chunks.accounting.chunks, chunks.accounting.missing) == (sent, 0)
    assert stream.free_ringbuffer.qsize() == POOL
