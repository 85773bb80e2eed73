"""Iteration over the chunks of a stream or group, with an account of what is present and what is missing."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Self

import numpy as np
import spead2
import spead2.recv

from .chunk import Chunk
from .layout import DeclarativeLayout
from .stream import ChunkRingStream, ChunkStreamRingGroup


@dataclass
class Accounting:
    """What was received, counted from the first chunk that held any data to the last.

    Counts include the chunk that an iterator is about to give out. With a layout that is not declarative
    there is a single source, which stands for all of them.
    """

    #: Label of each source.
    source_labels: tuple[str, ...]
    #: Heaps present, by source.
    present_by_source: np.ndarray
    #: Heaps that should have been present, of all sources together; each has an equal share of them.
    expected: int = 0
    #: Chunks that held data.
    chunks: int = 0
    #: Timestamp of the first of them, in ticks.
    first_timestamp: int | None = None
    #: Timestamp of the last of them, in ticks.
    last_timestamp: int | None = None

    @property
    def expected_by_source(self) -> np.ndarray:
        """Heaps that should have been present, by source."""
        sources = len(self.present_by_source)
        return np.full(sources, self.expected // sources)

    @property
    def missing_by_source(self) -> np.ndarray:
        """Heaps that are missing, by source, those of whole missing chunks included."""
        missing: np.ndarray = self.expected_by_source - self.present_by_source
        return missing

    @property
    def present(self) -> int:
        """Heaps present."""
        return int(self.present_by_source.sum())

    @property
    def missing(self) -> int:
        """Heaps missing."""
        return self.expected - self.present


async def _wait_readable(fd: int) -> None:
    import asyncio  # whoever awaits this has it already; others need not pay for it

    loop = asyncio.get_running_loop()
    # An event loop has one callback for each descriptor: a duplicate leaves that of the ring to its owner.
    fd = os.dup(fd)
    try:
        event = asyncio.Event()
        loop.add_reader(fd, event.set)
        try:
            await event.wait()
        finally:
            loop.remove_reader(fd)
    finally:
        os.close(fd)


class ChunkIterator:
    """The chunks of a stream or group in order, for ``for`` and ``async for``; `iter_chunks` makes it."""

    #: What was received so far.
    accounting: Accounting

    def __init__(self, source: ChunkRingStream | ChunkStreamRingGroup) -> None:
        if not isinstance(source, (ChunkRingStream, ChunkStreamRingGroup)):
            raise TypeError(
                f"source: given {type(source).__name__}, but wanted a stream or group from make_stream "
                "or make_stream_group"
            )
        self._source = source
        self._ring = source.data_ringbuffer
        self._last_id = -1
        self._lock = threading.Lock()
        layout = source.layout
        self._core = layout.declaration._compiled if isinstance(layout, DeclarativeLayout) else None
        labels = layout.source_labels if isinstance(layout, DeclarativeLayout) else ("0",)
        self.accounting = Accounting(labels, np.zeros(len(labels), np.int64))

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        while True:
            with self._lock:  # threads that share the iterator account for chunks in the order of the ring
                try:
                    # The C++ method, since that of an asyncio ring is a coroutine.
                    chunk = spead2.recv.ChunkRingbuffer.get(self._ring)  # type: ignore[arg-type]
                except spead2.Stopped:
                    self._source._close_sockets()
                    raise StopIteration from None
                if (taken := self._take(chunk)) is not None:
                    return taken

    async def __anext__(self) -> Chunk:
        import asyncio

        # Without this, a ring that is never empty would keep other tasks from running. There is nothing to
        # await between taking a chunk and returning it, so cancellation cannot lose one.
        await asyncio.sleep(0)
        while True:
            try:
                chunk = self._ring.get_nowait()
            except spead2.Empty:
                await _wait_readable(self._ring.data_fd)
            except spead2.Stopped:
                self._source._close_sockets()
                raise StopAsyncIteration from None
            else:
                if (taken := self._take(chunk)) is not None:
                    return taken

    def _take(self, chunk: spead2.recv.Chunk) -> Chunk | None:
        """Account for a chunk and date it; recycle it if there is nothing in it."""
        present = self._count(chunk.present)
        if not present.any() or not isinstance(chunk, Chunk):
            self._source.add_free_chunk(chunk)
            if present.any():
                raise TypeError(f"the data ring has a {type(chunk).__name__}, but iter_chunks needs speadrx.Chunk")
            return None
        layout, account = self._source.layout, self.accounting
        chunk.timestamp = chunk.chunk_id * layout.chunk_timestamp_step
        steps = chunk.chunk_id - self._last_id if account.chunks else 1
        self._last_id = chunk.chunk_id
        account.chunks += 1
        account.expected += steps * layout.chunk_heaps
        account.present_by_source += present
        if account.first_timestamp is None:
            account.first_timestamp = chunk.timestamp
        account.last_timestamp = chunk.timestamp
        return chunk

    def _count(self, present: object) -> np.ndarray:
        """Present heaps by source."""
        if self._core is not None:
            return np.array(self._core.count_present(present))  # type: ignore[arg-type]
        return np.array([np.count_nonzero(present)])  # type: ignore[call-overload]


def iter_chunks(source: ChunkRingStream | ChunkStreamRingGroup) -> ChunkIterator:
    """Iterate over the chunks that a stream or group receives.

    Each chunk has its true `timestamp`, and is given out only if it holds any data. Use it as a context
    manager, so that it goes back into the free ring. The iteration ends when the source stops; then, or after
    leaving the loop early, there is nothing to clean up; another loop over the same iterator goes on with the
    next chunk. A new iterator starts an account of its own, to which chunks that others took are missing; several
    threads that loop over the same iterator share its account.

    Parameters
    ----------
    source
        Made by `make_stream` or `make_stream_group`. For ``async for``, any kind of ring will do.

    Returns
    -------
    ChunkIterator
        For ``for`` and ``async for``. Its `accounting` says what is present and what is missing; it includes
        a chunk before that is given out.

    Examples
    --------
    >>> import spead2.recv, speadrx
    >>> layout = speadrx.Layout(heap_bytes=8, time=speadrx.TimeAxis(item=0x1600, step=1, batches=4))
    >>> stream = speadrx.make_stream(
    ...     layout=layout,
    ...     max_active_chunks=2,
    ...     data_ringbuffer=spead2.recv.ChunkRingbuffer(4),
    ...     free_ringbuffer=spead2.recv.ChunkRingbuffer(4),
    ... )
    >>> pool = speadrx.ChunkPool(stream, 4)
    >>> stream.stop()  # or add a reader
    >>> chunks = speadrx.iter_chunks(stream)
    >>> for chunk in chunks:
    ...     with chunk:
    ...         print(chunk.timestamp, chunk.data, chunk.present)
    >>> chunks.accounting.missing
    0
    """
    return ChunkIterator(source)
