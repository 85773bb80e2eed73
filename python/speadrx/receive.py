"""Iteration over the chunks of a stream or group, with an account of what is present and what is missing."""

from __future__ import annotations

import operator
import os
import threading
from typing import Any, Self

import numpy as np
import spead2
import spead2.recv

from .accounting import Accounting, Counts
from .chunk import Chunk
from .layout import DeclarativeLayout
from .stream import ChunkRingStream, ChunkStreamRingGroup


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
        self._lock = threading.Lock()
        layout = source.layout
        self._timestamp_step = layout.chunk_timestamp_step
        self._batches = layout.chunk_batches
        self._core = layout.declaration._compiled if isinstance(layout, DeclarativeLayout) else None
        self.accounting = source._accounts.add(self)
        self._batch_heaps = layout.batch_heaps // len(self.accounting.source_labels)
        self._group = source._core
        # Batches are counted from time 0. Of the time before it last began anew, only the sum is kept.
        self._first_batch: int | None = None
        self._end_batch = 0
        self._expected_before = 0
        self._epoch = 0
        self._last_chunk_id: int | None = None

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
                with self._lock:  # held for a moment only, as long as nobody waits in __next__
                    taken = self._take(self._ring.get_nowait())
            except spead2.Empty:
                await _wait_readable(self._ring.data_fd)
            except spead2.Stopped:
                self._source._close_sockets()
                raise StopAsyncIteration from None
            else:
                if taken is not None:
                    return taken

    def _take(self, chunk: spead2.recv.Chunk) -> Chunk | None:
        """Account for a chunk and date it; recycle it if there is nothing in it."""
        number, epoch, is_control = (chunk.chunk_id, 0, False)
        if self._group is not None and len(self._group):
            number, epoch, is_control = self._group.locate(chunk.chunk_id)
        # What is present in the chunk of a control heap is the control heap.
        present, first_batch = ([], self._batches) if is_control else self._account(chunk.present)
        if first_batch == self._batches or not isinstance(chunk, Chunk):
            if isinstance(chunk, Chunk):
                chunk.recycle()  # to its own stream, if several share the ring
            else:
                self._source.add_free_chunk(chunk)
            if first_batch < self._batches:
                raise TypeError(f"the data ring has a {type(chunk).__name__}, but iter_chunks needs speadrx.Chunk")
            return None
        if self._last_chunk_id is not None and chunk.chunk_id <= self._last_chunk_id:
            last, given = self._last_chunk_id, chunk.chunk_id
            chunk.recycle()
            raise ValueError(
                f"data_ringbuffer: gave chunk {given} after chunk {last}, so it is shared by streams, but "
                "iter_chunks can account for one only"
            )
        self._last_chunk_id = chunk.chunk_id
        chunk.timestamp = number * self._timestamp_step
        before = self.accounting._counts
        batch = number * self._batches + first_batch
        restarts = self._restarts(epoch)
        gap = before.epoch_gap
        if self._first_batch is None:
            self._first_batch = batch
        elif restarts:
            # Of the gap nobody knows what was sent in it, and if time went back there is none.
            gap += max(0, batch - self._end_batch) * self._batch_heaps
            self._expected_before = before.expected
            self._first_batch = batch
        self._end_batch = (number + 1) * self._batches
        self.accounting._counts = Counts(
            # A list is faster here than an array, which would have to be made of the kernel's list first.
            present=list(map(operator.add, before.present, present)),
            expected=self._expected_before + (self._end_batch - self._first_batch) * self._batch_heaps,
            chunks=before.chunks + 1,
            first_timestamp=chunk.timestamp if before.first_timestamp is None else before.first_timestamp,
            last_timestamp=chunk.timestamp,
            epoch_gap=gap,
            restarts=before.restarts + restarts,
        )
        return chunk

    def _restarts(self, epoch: int) -> int:
        """How often time has begun anew since the last chunk, which was of another epoch perhaps."""
        if epoch == self._epoch or self._group is None:
            return 0
        since, self._epoch = self._epoch, epoch
        return sum(self._group[i][2] == "restart" for i in range(since + 1, epoch + 1))

    def _account(self, present: Any) -> tuple[list[int], int]:
        """Present heaps by source, and the first batch that has any (the number of batches if none has)."""
        if self._core is not None:
            return self._core.account_present(present)
        # Where the batches are in a layout of somebody else is not known.
        count = int(np.count_nonzero(present))
        return [count], 0 if count else self._batches


def iter_chunks(source: ChunkRingStream | ChunkStreamRingGroup) -> ChunkIterator:
    """Iterate over the chunks that a stream or group receives.

    Each chunk has its true `timestamp`, and is given out only if it holds any data. Use it as a context
    manager, so that it goes back into the free ring. The iteration ends when the source stops; then, or after
    leaving the loop early, there is nothing to clean up; another loop over the same iterator goes on with the
    next chunk. A new iterator starts an account of its own, to which chunks that others took are missing; several
    threads that loop over the same iterator share its account. Do not use ``for`` and ``async for`` on one iterator
    at the same time: the thread that waits in one would block the event loop of the other.

    Parameters
    ----------
    source
        Made by `make_stream` or `make_stream_group`. For ``async for``, any kind of ring will do.

    Returns
    -------
    ChunkIterator
        For ``for`` and ``async for``. Its `accounting` says what is present and what is missing; it includes
        a chunk before that is given out. It raises `ValueError` on a chunk that is not newer than the last, as
        happens where streams share a data ring; that chunk is recycled.

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
