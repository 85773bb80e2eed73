"""What an engine does with katgpucbf.recv: it fills the free ring by hand and takes chunks until the stream ends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import spead2
import spead2.recv.asyncio

from handmade import Heap, encode
from speadrx.compat import katgpucbf as recv

TIMESTAMP_ID, FENG_ID_ID, FREQUENCY_ID, BEAM_ANTS_ID = 0x1600, 0x4101, 0x4103, 0x5004
DIGITISER_ID_ID, DIGITISER_STATUS_ID = 0x3101, 0x3102
ADDRESS_BITS = 48


def packets(heaps: Iterable[Heap]) -> list[bytes]:
    return [packet for i, heap in enumerate(heaps, 1) for packet in encode(heap, i, ADDRESS_BITS)]


def feed(stream: recv.AnyStream, heaps: Iterable[Heap]) -> None:
    """Give heaps to a stream through a queue, then end it."""
    queue = spead2.InprocQueue()
    for packet in packets(heaps):
        queue.add_packet(packet)
    queue.stop()
    stream.add_inproc_reader(queue)


def rings(n: int = 16) -> dict[str, Any]:
    return {
        "data_ringbuffer": spead2.recv.asyncio.ChunkRingbuffer(n),
        "free_ringbuffer": spead2.recv.ChunkRingbuffer(n),
    }


def add_chunks(
    sink: Any, layout: recv.BaseLayout, n: int, *, data_bytes: int | None = None, extra: bool = False
) -> None:
    """Fill the free ring by hand, as engines do."""
    for _ in range(n):
        chunk = recv.Chunk(
            sink=sink,
            data=np.zeros(data_bytes or layout.chunk_bytes, np.uint8),
            present=np.zeros(layout.chunk_heaps, np.uint8),
            extra=np.zeros(layout.chunk_heaps, np.uint16) if extra else None,
        )
        chunk.recycle()


@dataclass
class Received:
    chunk_id: int
    data: np.ndarray
    present: np.ndarray
    extra: np.ndarray | None


async def receive(sink: Any) -> list[Received]:
    """Take the chunks of a stream that ends, in the way of an engine."""
    received = []
    async for chunk in sink.data_ringbuffer:
        with chunk:
            assert isinstance(chunk, recv.Chunk)
            if chunk.present.any():
                extra = None if chunk.extra is None else chunk.extra.copy()
                received.append(Received(chunk.chunk_id, chunk.data.copy(), chunk.present.copy(), extra))
    return received
