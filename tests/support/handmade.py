"""Heaps and their packets made by hand, a small layout for them, and a stream that is all spead2's own."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import spead2.recv

from speadrx import Axis, BaseLayout, Layout, SideItem, TimeAxis, _core


@dataclass(frozen=True)
class Heap:
    """A heap to send: its immediate items, items that point into its payload, and its payload."""

    items: Mapping[int, int]
    payload: bytes
    addressed: Sequence[int] = ()
    n_packets: int = 1


def encode(heap: Heap, heap_cnt: int, address_bits: int, rng: random.Random | None = None) -> list[bytes]:
    """Make the packets of a heap by hand; with `rng`, the items of each come in any order."""
    packets = []
    edges = [len(heap.payload) * i // heap.n_packets for i in range(heap.n_packets + 1)]
    for start, stop in itertools.pairwise(edges):
        items = {
            spead2.HEAP_CNT_ID: heap_cnt,
            spead2.PAYLOAD_OFFSET_ID: start,
            spead2.PAYLOAD_LENGTH_ID: stop - start,
            **heap.items,
        }
        pointers = [1 << 63 | item << address_bits | value for item, value in items.items()]
        pointers += [item << address_bits for item in heap.addressed]
        if rng is not None:
            rng.shuffle(pointers)
        header = struct.pack(">4BHH", 0x53, 4, 8 - address_bits // 8, address_bits // 8, 0, len(pointers))
        packets.append(header + struct.pack(f">{len(pointers)}Q", *pointers) + heap.payload[start:stop])
    return packets


STOP_PACKET = encode(
    Heap({spead2.HEAP_LENGTH_ID: 0, spead2.STREAM_CTRL_ID: spead2.CTRL_STREAM_STOP}, b""), 2**40 - 1, 40
)[0]


TIME_ID, AXIS_ID, SIDE_ID, REQUIRED_ID = 0x10, 0x20, 0x30, 0x40
SMALL = Layout(
    heap_bytes=4,
    time=TimeAxis(item=TIME_ID, step=16, batches=4),
    axes=(
        Axis(name="antenna", item=AXIS_ID, shift=1, mask=0xFF, values=(7, 3, 5)),
        Axis(name="pol", item=AXIS_ID, mask=1, size=1, reject_name="bad_pol"),
    ),
    side_items=(SideItem(name="status", item=SIDE_ID, shift=8, dtype="u16"),),
    required_items=(REQUIRED_ID,),
    sources="antenna",
)
GOOD = {TIME_ID: 64, spead2.HEAP_LENGTH_ID: 4, AXIS_ID: 3 << 1, SIDE_ID: 0x123456, REQUIRED_ID: 0}


class OwnLayout(BaseLayout):
    """A layout that is not declarative: its callback comes from elsewhere."""

    heap_bytes = 4
    chunk_batches = 4
    batch_heaps = 3
    heap_sample_count = 4
    chunk_timestamp_step = 64

    def chunk_place(self, user_data):
        return SMALL.chunk_place()


def small_heap(changes: Mapping[int, int | None], payload: bytes = b"data") -> Heap:
    """A heap for `SMALL` that is good apart from some changed items; None takes an item away."""
    items = {item: value for item, value in {**GOOD, **changes}.items() if value is not None}
    return Heap(items, payload)


def receive_without_speadrx(
    layout: Layout,
    heaps: Iterable[Heap],
    *,
    stats: Sequence[str] = (),
    before: Callable[[_core.Placement], None] = lambda placement: None,
) -> tuple[list[spead2.recv.Chunk], _core.Placement, dict[str, int]]:
    """Receive heaps with a stream made from a layout's `chunk_place` alone.

    Parameters
    ----------
    layout
        A layout that needs no user data and has side items.
    heaps
        Heaps to receive.
    stats
        Names of statistics to register.
    before
        Called with the placement before any heap.

    Returns
    -------
    chunks, placement, stats
        What came out, the placement, and the stream's statistics.
    """
    capsule, placement = layout.chunk_place()
    assert isinstance(placement, _core.Placement)
    before(placement)
    config = spead2.recv.StreamConfig()
    for name in stats:
        config.add_stat(name)
    data_ring = spead2.recv.ChunkRingbuffer(4)
    stream = spead2.recv.ChunkRingStream(
        spead2.ThreadPool(),
        config,
        spead2.recv.ChunkStreamConfig(
            items=layout.spead_items, max_chunks=2, place=(capsule, placement), max_heap_extra=layout.max_heap_extra
        ),
        data_ring,
        spead2.recv.ChunkRingbuffer(4),
    )
    try:
        for _ in range(4):
            stream.add_free_chunk(
                spead2.recv.Chunk(
                    data=np.zeros(layout.chunk_bytes, np.uint8),
                    present=np.zeros(layout.chunk_heaps, np.uint8),
                    extra=np.zeros(layout.chunk_heaps, layout.extra_dtype),
                )
            )
        packets = [packet for i, heap in enumerate(heaps) for packet in encode(heap, i, 56)]
        stream.add_buffer_reader(b"".join([*packets, STOP_PACKET]))
        chunks = list(data_ring)
    finally:
        stream.stop()
    return chunks, placement, {name: stream.stats[name] for name in stream.stats}
