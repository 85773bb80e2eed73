"""Chunk buffers that do not fit: refused before spead2 can write to them."""

import dataclasses

import numpy as np
import pytest

from handmade import SMALL
from receiving import assert_accounts, assert_data, receiver, residual
from speadrx import Chunk
from speadrx.simulate import InprocSink, Simulator

# A chunk has 12 heaps of 4 bytes, each with 2 bytes of extra. With this dtype, a heap is two items.
LAYOUT = dataclasses.replace(SMALL, dtype="int16")
HEAPS, DATA_BYTES, EXTRA_BYTES = 12, 48, 24
POOL = 12
FILL = 0xA5


class AnySink:
    """Takes everything, and gives a chunk to nobody."""

    def add_free_chunk(self, chunk):
        pass


def filled(n_bytes, dtype=np.uint8):
    """Memory in which a write shows: a view of some of it, and all of it."""
    everything = np.full(n_bytes + 4096, FILL, np.uint8)
    return everything[:n_bytes].view(dtype), everything


def read_only(n_bytes):
    buffer, everything = filled(n_bytes)
    buffer.flags.writeable = False
    return buffer, everything


def spread(n_bytes, dtype=np.uint8):
    buffer, everything = filled(2 * n_bytes, dtype)
    return buffer[::2], everything


# What is wrong with which buffer; whether a chunk for somebody else can have it; and what the error says.
BAD_BUFFERS = [
    ("data", filled(DATA_BYTES - 1), True, "data: given 47 bytes, but wanted at least 48"),
    ("data", filled(0), True, "data: given 0 bytes, but wanted at least 48"),
    ("data", filled(DATA_BYTES, np.float32), True, "data: given dtype float32, but wanted int16"),
    ("data", read_only(DATA_BYTES), False, "data: given a read-only buffer"),
    ("data", spread(DATA_BYTES), False, "data: given shape .* but wanted a C-contiguous buffer"),
    ("present", filled(HEAPS - 1), True, "present: given 11 elements, but wanted exactly 12"),
    ("present", filled(2 * HEAPS, np.uint16), False, "present: given dtype uint16, but wanted bool, uint8 or int8"),
    ("present", read_only(HEAPS), False, "present: given a read-only buffer"),
    ("present", spread(HEAPS), False, "present: given shape .* but wanted a C-contiguous buffer"),
    ("extra", filled(EXTRA_BYTES - 1), True, "extra: given 23 bytes, but wanted at least 24"),
    ("extra", (None, None), True, "extra: no buffer given, but wanted at least 24 bytes"),
    ("extra", read_only(EXTRA_BYTES), False, "extra: given a read-only buffer"),
    ("extra", spread(EXTRA_BYTES, np.uint16), False, "extra: given shape .* but wanted a C-contiguous buffer"),
]


@pytest.mark.fault(1)
@pytest.mark.parametrize("members", [None, 2], ids=["stream", "group"])
def test_bad_buffers_are_refused_while_heaps_come_in(members, fault_report):
    """None of them gets into the free ring, none is written to, and no heap is lost."""
    simulator = Simulator(LAYOUT)
    with receiver(LAYOUT, members=members, pool=POOL) as rx:
        # There is room for one chunk that should not be there.
        spare = rx.stream.free_ringbuffer.get()
        for name, (buffer, _), for_others, message in BAD_BUFFERS:
            good = {"data": bytearray(DATA_BYTES), "present": bytearray(HEAPS), "extra": bytearray(EXTRA_BYTES)}
            with pytest.raises(ValueError, match=message):
                Chunk(sink=rx.stream, **good | {name: buffer})
            if for_others:
                chunk = Chunk(sink=AnySink(), **good | {name: buffer})
                with pytest.raises(ValueError, match=message):
                    rx.stream.add_free_chunk(chunk)
            # More than the chunks of a pool: whatever is in the free ring gets used.
            simulator.send(InprocSink(rx.queues[0]), 2 * POOL * LAYOUT.chunk_batches)
        spare.recycle()
        rx.finish()
        sent, left = simulator.truth.copies, residual(rx, [simulator.truth])
        fault_report(sent=sent, lost=sent - rx.iterator.accounting.present, residual=left)
        assert rx.stream.free_ringbuffer.qsize() == POOL
        assert_data(rx, [simulator])
        assert_accounts(rx, [simulator])
    for _, (_, everything), *_ in BAD_BUFFERS:
        assert everything is None or (everything == FILL).all()
