"""HEAP_LENGTH that is absent or wrong: never a byte outside the slot of a heap."""

import random

import numpy as np
import pytest
import spead2

import speadrx
from guarded import FILL, GuardedBuffer
from handmade import Heap, encode
from speadrx import Axis, Layout, SideItem, TimeAxis

TIME_ID, ANTENNA_ID, SIDE_ID = 0x1600, 0x4101, 0x4102
LENGTH_ID, OFFSET_ID, PAYLOAD_LENGTH_ID = spead2.HEAP_LENGTH_ID, spead2.PAYLOAD_OFFSET_ID, spead2.PAYLOAD_LENGTH_ID
STEP, HEAP_BYTES, ANTENNAS, BATCHES = 16, 64, 3, 4
#: Between any two slots there are bytes that belong to no heap.
LAYOUT = Layout(
    heap_bytes=HEAP_BYTES,
    time=TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES),
    axes=(Axis(name="antenna", item=ANTENNA_ID, size=ANTENNAS),),
    strides={"antenna": 96, "time": 320},
    side_items=(SideItem(name="status", item=SIDE_ID, dtype="u16"),),
    sources="antenna",
)
SPAN = (BATCHES - 1) * 320 + (ANTENNAS - 1) * 96 + HEAP_BYTES
CHUNK_HEAPS = BATCHES * ANTENNAS
CHUNKS, WINDOW = 40, 2

UNSEEN, REJECTED, UNFINISHED = "unseen", "metadata_heaps", "unfinished"


def packet(rng, length, size, offset=0, carried=None):
    """Changed items, and payload, of a packet that says it has `size` bytes, and has `carried`."""
    changes = {OFFSET_ID: offset, PAYLOAD_LENGTH_ID: size}
    if length is not None:
        changes[LENGTH_ID] = length
    return changes, rng.randbytes(size if carried is None else carried)


# Packets of a heap; whether spead2 takes each for one; what must become of the heap; bytes of its slot that may change.
KINDS = {
    "absent": (lambda rng: [packet(rng, None, HEAP_BYTES)], [True], UNSEEN, 0),
    "absent, without payload": (lambda rng: [packet(rng, None, 0)], [True], UNSEEN, 0),
    "absent in all but the first packet": (
        lambda rng: [packet(rng, HEAP_BYTES, 32), packet(rng, None, 32, 32)],
        [True, True],
        UNFINISHED,
        32,
    ),
    "absent in the first packet": (
        lambda rng: [packet(rng, None, 32), packet(rng, HEAP_BYTES, 32, 32)],
        [True, True],
        UNSEEN,
        0,
    ),
    "zero": (lambda rng: [packet(rng, 0, 0)], [True], UNSEEN, 0),
    "zero, with payload": (lambda rng: [packet(rng, 0, HEAP_BYTES)], [False], UNSEEN, 0),
    "one byte": (lambda rng: [packet(rng, 1, 1)], [True], REJECTED, 0),
    "one byte short": (lambda rng: [packet(rng, HEAP_BYTES - 1, HEAP_BYTES - 1)], [True], REJECTED, 0),
    "one byte long": (lambda rng: [packet(rng, HEAP_BYTES + 1, HEAP_BYTES + 1)], [True], REJECTED, 0),
    "longer than a chunk": (lambda rng: [packet(rng, 8192, 8192)], [True], REJECTED, 0),
    "2**39": (lambda rng: [packet(rng, 2**39, HEAP_BYTES)], [True], REJECTED, 0),
    "more carried than said": (lambda rng: [packet(rng, HEAP_BYTES, 2 * HEAP_BYTES)], [False], UNSEEN, 0),
    "offset beyond the end": (lambda rng: [packet(rng, HEAP_BYTES, 32, HEAP_BYTES)], [False], UNSEEN, 0),
    "more said than carried": (lambda rng: [packet(rng, HEAP_BYTES, 32)], [True], UNFINISHED, 32),
    "cut off": (lambda rng: [packet(rng, HEAP_BYTES, HEAP_BYTES, carried=10)], [False], UNSEEN, 0),
    "grows": (
        lambda rng: [packet(rng, HEAP_BYTES, 32), packet(rng, 4096, 4000, 32)],
        [True, True],
        UNFINISHED,
        32,
    ),
    "shrinks": (
        lambda rng: [packet(rng, 4096, 32), packet(rng, HEAP_BYTES, 32, 32)],
        [True, True],
        REJECTED,
        0,
    ),
}


@pytest.fixture
def guarded(make):
    """A stream, its chunks' buffers between guards, and a function that takes a chunk that came out."""
    stream = make(layout=LAYOUT, max_active_chunks=WINDOW, chunks=0, stop_on_stop_item=False)
    everything = [[GuardedBuffer(n) for n in (SPAN, CHUNK_HEAPS, 2 * CHUNK_HEAPS)] for _ in range(8)]
    for data, present, extra in everything:
        stream.add_free_chunk(speadrx.Chunk(sink=stream, data=data.inside, present=present.inside, extra=extra.inside))
    yield stream
    stream.stop()
    for buffers in everything:
        for buffer in buffers:
            buffer.check_guards()


class Sent:
    """Heaps sent: what the good ones hold, by chunk, batch and antenna, and where the flawed ones belong."""

    def __init__(self, queue, kind, rng):
        make_packets, decodable, _, self.touched = KINDS[kind]
        self.payloads, self.side_values, self.flawed, self.packets = {}, {}, set(), 0
        for number, slot in enumerate(np.ndindex(CHUNKS, BATCHES, ANTENNAS)):
            chunk, batch, antenna = slot
            if (batch, antenna) == (0, 0):
                # Of every second chunk, the first slot and the last, and one in between or one of these.
                flawed = {(0, 0), (BATCHES - 1, ANTENNAS - 1), (rng.randrange(BATCHES), rng.randrange(ANTENNAS))}
            items = {TIME_ID: (chunk * BATCHES + batch) * STEP, ANTENNA_ID: antenna, SIDE_ID: rng.getrandbits(16)}
            if chunk % 2 and (batch, antenna) in flawed:
                self.flawed.add(slot)
                parts = make_packets(rng)
                self.packets += sum(decodable)
            else:
                parts = [packet(rng, HEAP_BYTES, HEAP_BYTES)]
                self.payloads[slot] = parts[0][1]
                self.side_values[slot] = items[SIDE_ID]
                self.packets += 1
            for changes, payload in parts:
                queue.add_packet(encode(Heap(items | changes, payload), number, 48)[0])
        queue.stop()

    def check(self, chunk):
        """Compare a chunk with what was sent, fill it again, and return the slots of the heaps that it has."""
        data_may_change = np.zeros(SPAN, bool)
        extra = chunk.extra.view(np.uint16)
        present = set()
        for index, (batch, antenna) in enumerate(np.ndindex(BATCHES, ANTENNAS)):
            slot = (chunk.chunk_id, batch, antenna)
            start = 320 * batch + 96 * antenna
            size = self.touched if slot in self.flawed else HEAP_BYTES
            data_may_change[start : start + size] = True
            if chunk.present[index]:
                present.add(slot)
                assert chunk.data[start : start + HEAP_BYTES].tobytes() == self.payloads.get(slot)
                assert extra[index] == self.side_values[slot]
            elif slot not in self.flawed or not self.touched:
                assert extra[index] == FILL << 8 | FILL
        assert (chunk.data[~data_may_change] == FILL).all(), "bytes were written that belong to no heap"
        chunk.data.fill(FILL)
        chunk.extra.fill(FILL)
        return present


@pytest.mark.fault(2)
@pytest.mark.parametrize("kind", KINDS)
def test_heap_length(kind, guarded, fault_report):
    """Good heaps all arrive, flawed ones are counted as what they are, and what is between slots stays as it was."""
    queue = spead2.InprocQueue()
    guarded.add_inproc_reader(queue)
    heaps = Sent(queue, kind, random.Random(kind))
    arrived = set()
    iterator = speadrx.iter_chunks(guarded)
    for chunk in iterator:
        with chunk:
            arrived |= heaps.check(chunk)

    _, _, outcome, _ = KINDS[kind]
    ledger, stats, good, flawed = guarded.ledger.snapshot(), guarded.stats, len(heaps.payloads), len(heaps.flawed)
    sent, present = good + flawed, iterator.accounting.present
    unseen, unfinished = flawed * (outcome == UNSEEN), flawed * (outcome == UNFINISHED)
    known = present + ledger.duplicates + stats["too_old_heaps"] + unfinished + sum(ledger.rejected.values()) + unseen
    fault_report(sent=sent, lost=sent - present, residual=sent - known)
    assert flawed > CHUNKS
    assert arrived == set(heaps.payloads)
    assert sent == known
    assert ledger.placed == good + unfinished
    rejected = {reason: n for reason, n in ledger.rejected.items() if n}
    assert rejected == ({REJECTED: flawed} if outcome == REJECTED else {})
    assert stats["speadrx.metadata_heaps"] == ledger.rejected["metadata_heaps"]
    assert stats["packets"] == heaps.packets
