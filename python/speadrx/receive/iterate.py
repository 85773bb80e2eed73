"""Iteration over the chunks of a stream or group, with an account of what is present and what is missing."""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np
import spead2
import spead2.recv

from speadrx.accounts.accounting import Accounting, Counts
from speadrx.layout.base import DeclarativeLayout

from .chunk import Chunk
from .fill import chunk_filler
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


class _Hand(threading.local):
    """What a thread has taken from the ring and not given to its user yet, so that no interrupt on the way loses it."""

    def __init__(self) -> None:
        #: A chunk straight from the ring.
        self.taken: list[spead2.recv.Chunk] = []
        #: One that is accounted for.
        self.chunk: Chunk | None = None
        #: Whether it has missing heaps that shall be filled.
        self.incomplete = False


class _Progress(NamedTuple):
    """How far an iterator has come; batches are counted from time 0."""

    last_chunk_id: int
    epoch: int
    #: Of the time since it last began anew.
    first_batch: int
    end_batch: int
    #: Heaps of each source expected before that.
    expected_before: int


class ChunkIterator:
    """The chunks of a stream or group in order, for ``for`` and ``async for``; `iter_chunks` makes it."""

    #: What was received so far.
    accounting: Accounting

    def __init__(self, source: ChunkRingStream | ChunkStreamRingGroup, *, fill: Any = None) -> None:
        if not isinstance(source, (ChunkRingStream, ChunkStreamRingGroup)):
            raise TypeError(
                f"source: given {type(source).__name__}, but wanted a stream or group from make_stream "
                "or make_stream_group"
            )
        self._source = source
        self._ring = source.data_ringbuffer
        self._lock = threading.Lock()
        self._hand = _Hand()
        layout = source.layout
        self._fill = None if fill is None else chunk_filler(layout, source._geometries, fill)
        self._chunk_heaps = layout.chunk_heaps
        self._timestamp_step = layout.chunk_timestamp_step
        self._batches = layout.chunk_batches
        self._core = layout.declaration._compiled if isinstance(layout, DeclarativeLayout) else None
        self.accounting = source._accounts.add(self)
        self._batch_heaps = layout.batch_heaps // len(self.accounting.source_labels)
        self._progress: _Progress | None = None

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        hand = self._hand
        while hand.chunk is None:
            with self._lock:  # threads that share the iterator account for chunks in the order of the ring
                try:
                    # The C++ method, since that of an asyncio ring is a coroutine.
                    self._take(hand, spead2.recv.ChunkRingbuffer.get)
                except spead2.Stopped:
                    self._source.stop()  # it has ended, but its thread may not have counted all yet
                    raise StopIteration from None
                # With the lock, which the end of the interpreter waits for.
                self._complete(hand)
        self._complete(hand)  # if an interrupt came between
        # No interrupt comes between these: there is no call.
        chunk = hand.chunk
        hand.chunk = None
        return chunk

    async def __anext__(self) -> Chunk:
        import asyncio

        # Without this, a ring that is never empty would keep other tasks from running. There is nothing to
        # await between taking a chunk and returning it, so cancellation cannot lose one.
        await asyncio.sleep(0)
        hand = self._hand
        while hand.chunk is None:
            with self._lock:  # held for a moment only, as long as nobody waits in __next__
                try:
                    self._take(hand, spead2.recv.ChunkRingbuffer.get_nowait)
                    self._complete(hand)
                    continue
                except spead2.Stopped:
                    self._source.stop()
                    raise StopAsyncIteration from None
                except spead2.Empty:
                    pass
            await _wait_readable(self._ring.data_fd)
        self._complete(hand)
        chunk = hand.chunk
        hand.chunk = None
        return chunk

    def _complete(self, hand: _Hand) -> None:
        """Fill what is missing in the chunk in hand, if that is asked for; after an interrupt, from the beginning."""
        if hand.chunk is not None and hand.incomplete and self._fill is not None:
            self._fill(hand.chunk)
            hand.incomplete = False

    def _take(self, hand: _Hand, get: Callable[[Any], spead2.recv.Chunk]) -> None:
        """Take the next chunk, account for it and date it; recycle it if there is nothing in it.

        An interrupt (Ctrl-C) may come between any two steps, and the user may go on then: what was taken stays in hand.
        """
        resumed = bool(hand.taken)
        if not resumed:
            hand.taken.extend(map(get, (self._ring,)))  # one call, so that there is nothing between get and keep
        (chunk,) = hand.taken
        if chunk.data is None:  # interrupted just after it was recycled
            hand.taken = []
            return
        number, epoch, is_control = self._source._locate(chunk.chunk_id)
        # What is present in the chunk of a control heap is the control heap.
        present, first_batch = ([], self._batches) if is_control else self._account(chunk.present)
        hand.incomplete = self._fill is not None and sum(present) < self._chunk_heaps
        before = self._progress
        if first_batch == self._batches:
            self._give_back(hand)
        elif not isinstance(chunk, Chunk):
            self._give_back(hand)
            raise TypeError(f"the data ring has a {type(chunk).__name__}, but iter_chunks needs speadrx.Chunk")
        elif before is not None and resumed and chunk.chunk_id == before.last_chunk_id:
            hand.chunk = chunk  # interrupted just after it was accounted for
            hand.taken = []
        elif before is not None and chunk.chunk_id <= before.last_chunk_id:
            self._give_back(hand)
            raise ValueError(
                f"data_ringbuffer: gave chunk {chunk.chunk_id} after chunk {before.last_chunk_id}, so it is shared by "
                "streams, but iter_chunks can account for one only"
            )
        else:
            chunk.timestamp = number * self._timestamp_step
            progress, counts = self._count(chunk, number, epoch, present, first_batch)
            # No interrupt comes between these: there is no call.
            self._progress = progress
            self.accounting._counts = counts
            hand.chunk = chunk
            hand.taken = []

    def _give_back(self, hand: _Hand) -> None:
        (chunk,) = hand.taken
        if isinstance(chunk, Chunk):
            chunk.recycle()  # to its own stream, if several share the ring
        else:
            self._source.add_free_chunk(chunk)
        hand.taken = []

    def _count(
        self, chunk: Chunk, number: int, epoch: int, present: list[int], first_batch: int
    ) -> tuple[_Progress, Counts]:
        """Add a chunk to the account; it is so many chunks from time 0."""
        before = self.accounting._counts
        progress = self._progress
        batch = number * self._batches + first_batch
        end = (number + 1) * self._batches
        gap = restarts = 0
        if progress is None:
            progress = _Progress(chunk.chunk_id, epoch, batch, end, 0)
        elif restarts := self._source._restarts(progress.epoch, epoch):
            # Of the gap nobody knows what was sent in it, and if time went back there is none.
            gap = max(0, batch - progress.end_batch) * self._batch_heaps
            progress = _Progress(chunk.chunk_id, epoch, batch, end, before.expected)
        else:
            progress = progress._replace(last_chunk_id=chunk.chunk_id, epoch=epoch, end_batch=end)
        return progress, Counts(
            # A list is faster here than an array, which would have to be made of the kernel's list first.
            present=list(map(operator.add, before.present, present)),
            expected=progress.expected_before + (end - progress.first_batch) * self._batch_heaps,
            chunks=before.chunks + 1,
            first_timestamp=chunk.timestamp if before.first_timestamp is None else before.first_timestamp,
            last_timestamp=chunk.timestamp,
            epoch_gap=before.epoch_gap + gap,
            restarts=before.restarts + restarts,
        )

    def _account(self, present: Any) -> tuple[list[int], int]:
        """Present heaps by source, and the first batch that has any (the number of batches if none has)."""
        if self._core is not None:
            return self._core.account_present(present)
        # Where the batches are in a layout of somebody else is not known.
        count = int(np.count_nonzero(present))
        return [count], 0 if count else self._batches


def iter_chunks(source: ChunkRingStream | ChunkStreamRingGroup, *, fill: Any = None) -> ChunkIterator:
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
    fill
        What to overwrite missing heaps with before a chunk is given out: a number, numbers or bytes, as `fill_missing`
        takes them. Their side items, in ``extra``, become 0. By default nothing is overwritten: where ``present``
        is 0 there is what an earlier use of the chunk has left. Needs a declarative layout and, in a group, streams
        with equal strides. With ``async for``, the event loop waits while a chunk is filled.

    Returns
    -------
    ChunkIterator
        For ``for`` and ``async for``. Its `accounting` says what is present and what is missing; it includes
        a chunk before that is given out. It raises `ValueError` on a chunk that is not newer than the last, as
        happens where streams share a data ring; that chunk is recycled.

    Raises
    ------
    ValueError, TypeError
        If `source` is something else, or `fill` does not fit its layout.

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
    return ChunkIterator(source, fill=fill)
