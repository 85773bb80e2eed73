"""Chunks in the place of whole chunks that never came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .checks import check_integer
from .chunk import Chunk, ChunkBuffers, make_chunk
from .memory import PrivateCopies, check_available

#: How many in a row are given out if the user names no number.
_USUAL_LIMIT = 1000


class GapChunk(Chunk):
    """A chunk that never came: no heap of it is present.

    It is in no pool. Its memory is its own, so its user may write to it and hold it.
    """

    def recycle(self) -> None:
        """Let go of its memory."""
        self.data = self.present = self.extra = None


class GapChunks:
    """Makes chunks that never came, for a stream or group.

    They have the same memory until somebody writes to it, so one more costs next to nothing.

    Parameters
    ----------
    sink
        The stream or group whose chunks are missing.
    gaps
        True, or how many to give out in a row.
    fill
        Overwrites the missing heaps of a chunk. None leaves zeros.

    Raises
    ------
    ValueError, TypeError
        If `gaps` is negative or no integer.
    MemoryError
        If there is not enough memory for one chunk.
    """

    #: How many to give out in a row.
    limit: int

    def __init__(self, sink: Any, gaps: Any, fill: Callable[[Any], object] | None) -> None:
        self.limit = _USUAL_LIMIT if gaps is True else check_integer("gaps", gaps, 0)
        self._sink = sink
        buffers: ChunkBuffers = sink._buffers
        assert buffers.data_bytes is not None
        check_available("gaps: the heaps of a missing chunk", buffers.data_bytes)
        self._memory = PrivateCopies(buffers.data_bytes)
        if fill is not None:
            fill(self._chunk(self._memory.original()))

    def make(self, timestamp: int, chunk_id: int, stream_id: int) -> GapChunk:
        """Make one.

        Raises
        ------
        MemoryError
            If the user holds so many that the kernel grants no more.
        """
        chunk = self._chunk(self._memory.copy())
        chunk.timestamp, chunk.chunk_id, chunk.stream_id = timestamp, chunk_id, stream_id
        return chunk

    def _chunk(self, data: np.ndarray) -> GapChunk:
        return make_chunk(GapChunk, self._sink, data, lambda n_bytes: np.zeros(n_bytes, np.uint8))
