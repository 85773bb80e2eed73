"""Iterate over the chunks of a stream or group, with an account of the heaps that are present and missing."""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np
import spead2
import spead2.recv

from speadrx.accounts.account import Account, Totals
from speadrx.layout.base import DeclarativeLayout

from .chunk import Chunk
from .fill import chunk_filler
from .stream import ChunkRingStream, ChunkStreamRingGroup


async def _wait_readable(fd: int) -> None:
    import asyncio  # imported here because most programs do not need it

    loop = asyncio.get_running_loop()
    # An event loop has one callback for each descriptor. The ring's own descriptor is left to its owner.
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
    """What a thread has taken from the ring and not given to its user yet. So no interrupt in between can lose it."""

    def __init__(self) -> None:
        #: A chunk straight from the ring; at most one.
        self.taken: list[spead2.recv.Chunk] = []
        #: A chunk that is in the account.
        self.chunk: Chunk | None = None
        #: Whether that chunk has missing heaps that are to be filled.
        self.incomplete = False


class _Progress(NamedTuple):
    """How far an iterator has come. Batches are counted from time 0."""

    last_chunk_id: int
    epoch: int
    #: The batches since time last began again: the first, and the one after the last.
    first_batch: int
    end_batch: int
    #: Heaps of each source that were expected before that.
    expected_before: int


class ChunkIterator:
    """The chunks of a stream or group in order, for ``for`` and ``async for``. `iter_chunks` makes it."""

    #: What was received so far.
    accounting: Account

    def __init__(self, stream: ChunkRingStream | ChunkStreamRingGroup, *, fill: Any = None) -> None:
        if not isinstance(stream, (ChunkRingStream, ChunkStreamRingGroup)):
            raise TypeError(
                f"stream: given {type(stream).__name__}, but wanted a stream or group from make_stream "
                "or make_stream_group"
            )
        self._stream = stream
        self._ring = stream.data_ringbuffer
        self._lock = threading.Lock()
        self._hand = _Hand()
        layout = stream.layout
        self._fill = None if fill is None else chunk_filler(layout, stream._geometries, fill)
        self._chunk_heaps = layout.chunk_heaps
        self._timestamp_step = layout.chunk_timestamp_step
        self._batches = layout.chunk_batches
        self._core = layout.declaration._compiled if isinstance(layout, DeclarativeLayout) else None
        self.accounting = stream._accounts.open(self)
        self._batch_heaps = layout.batch_heaps // len(self.accounting.source_labels)
        self._progress: _Progress | None = None

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        hand = self._hand
        while hand.chunk is None:
            with self._lock:  # so that threads that share the iterator count chunks in the order of the ring
                if self._stream._exiting:
                    raise StopIteration
                try:
                    # The C++ method, since the method of an asyncio ring is a coroutine.
                    self._take(hand, spead2.recv.ChunkRingbuffer.get)
                except spead2.Stopped:
                    self._stream.stop()  # it has ended, but its thread may not have counted everything yet
                    raise StopIteration from None
                # Inside the lock, since the exit of the interpreter waits for the lock.
                self._complete(hand)
        self._complete(hand)  # if an interrupt came before it was done
        # No interrupt can come between these two lines, because they call nothing.
        chunk = hand.chunk
        hand.chunk = None
        return chunk

    async def __anext__(self) -> Chunk:
        import asyncio

        # Without this, a ring that is never empty would keep other tasks from running. There is no await between
        # taking a chunk and returning it, so cancellation cannot lose a chunk.
        await asyncio.sleep(0)
        hand = self._hand
        while hand.chunk is None:
            with self._lock:  # held for a moment only, unless a thread waits in __next__
                if self._stream._exiting:
                    raise StopAsyncIteration
                try:
                    self._take(hand, spead2.recv.ChunkRingbuffer.get_nowait)
                    self._complete(hand)
                    continue
                except spead2.Stopped:
                    self._stream.stop()
                    raise StopAsyncIteration from None
                except spead2.Empty:
                    pass
            await _wait_readable(self._ring.data_fd)
        self._complete(hand)
        chunk = hand.chunk
        hand.chunk = None
        return chunk

    def _complete(self, hand: _Hand) -> None:
        """Fill the missing heaps of the chunk in hand, if asked to. After an interrupt it starts over."""
        if hand.chunk is not None and hand.incomplete and self._fill is not None:
            self._fill(hand.chunk)
            hand.incomplete = False

    def _take(self, hand: _Hand, get: Callable[[Any], spead2.recv.Chunk]) -> None:
        """Take the next chunk, count it and set its timestamp. If it has no heap, recycle it.

        An interrupt (Ctrl-C) may come between any two steps, and the user may go on after it. So what was taken stays
        in hand.
        """
        resumed = bool(hand.taken)
        if not resumed:
            hand.taken.extend(map(get, (self._ring,)))  # one call, so that no interrupt comes between get and keep
        (chunk,) = hand.taken
        if chunk.data is None:  # an interrupt came just after it was recycled
            hand.taken = []
            return
        number, epoch, is_control = self._stream._locate(chunk.chunk_id)
        # The chunk of a control heap holds nothing but the control heap.
        present, first_batch = ([], self._batches) if is_control else self._account(chunk.present)
        hand.incomplete = self._fill is not None and sum(present) < self._chunk_heaps
        before = self._progress
        if first_batch == self._batches:
            self._give_back(hand)
        elif not isinstance(chunk, Chunk):
            self._give_back(hand)
            raise TypeError(f"the data ring has a {type(chunk).__name__}, but iter_chunks needs speadrx.Chunk")
        elif before is not None and resumed and chunk.chunk_id == before.last_chunk_id:
            hand.chunk = chunk  # an interrupt came just after it was counted
            hand.taken = []
        elif before is not None and chunk.chunk_id <= before.last_chunk_id:
            self._give_back(hand)
            raise ValueError(
                f"data_ringbuffer: gave chunk {chunk.chunk_id} after chunk {before.last_chunk_id}, so streams share "
                "it, but iter_chunks can only follow a ring of one stream or group"
            )
        else:
            chunk.timestamp = number * self._timestamp_step
            progress, totals = self._count(chunk, number, epoch, present, first_batch)
            # No interrupt can come between these lines, because they call nothing.
            self._progress = progress
            self.accounting._totals = totals
            hand.chunk = chunk
            hand.taken = []

    def _give_back(self, hand: _Hand) -> None:
        (chunk,) = hand.taken
        if isinstance(chunk, Chunk):
            chunk.recycle()  # into the free ring of its own stream, if several share the data ring
        else:
            self._stream.add_free_chunk(chunk)
        hand.taken = []

    def _count(
        self, chunk: Chunk, number: int, epoch: int, present: list[int], first_batch: int
    ) -> tuple[_Progress, Totals]:
        """Add a chunk to the account. It is `number` chunks after time 0."""
        before = self.accounting._totals
        progress = self._progress
        batch = number * self._batches + first_batch
        end = (number + 1) * self._batches
        gap = restarts = 0
        if progress is None:
            progress = _Progress(chunk.chunk_id, epoch, batch, end, 0)
        elif restarts := self._stream._restarts(progress.epoch, epoch):
            # Nobody knows what was sent in the gap. If time went back, there is no gap.
            gap = max(0, batch - progress.end_batch) * self._batch_heaps
            progress = _Progress(chunk.chunk_id, epoch, batch, end, before.expected)
        else:
            progress = progress._replace(last_chunk_id=chunk.chunk_id, epoch=epoch, end_batch=end)
        return progress, Totals(
            # A list is faster here than an array, which would have to be made of the core's list first.
            present=list(map(operator.add, before.present, present)),
            expected=progress.expected_before + (end - progress.first_batch) * self._batch_heaps,
            chunks=before.chunks + 1,
            first_timestamp=chunk.timestamp if before.first_timestamp is None else before.first_timestamp,
            last_timestamp=chunk.timestamp,
            epoch_gap=before.epoch_gap + gap,
            restarts=before.restarts + restarts,
        )

    def _account(self, present: Any) -> tuple[list[int], int]:
        """Count present heaps by source, and find the first batch that has any (the number of batches if none has)."""
        if self._core is not None:
            return self._core.account_present(present)
        # The layout is not declarative, so it is not known where its batches are.
        count = int(np.count_nonzero(present))
        return [count], 0 if count else self._batches


def iter_chunks(stream: ChunkRingStream | ChunkStreamRingGroup, *, fill: Any = None) -> ChunkIterator:
    """Iterate over the chunks that a stream or group receives.

    Each chunk has its true `timestamp`. A chunk is given out only if it holds data. Use it as a context manager, so
    that it goes back into the free ring.

    The iteration ends when the stream stops. There is nothing to clean up then, nor if you leave the loop early.
    Another loop over the same iterator goes on with the next chunk. A new iterator starts an account of its own. For
    this account, chunks that other iterators took are missing. Several threads that loop over the same iterator share
    its account. Do not use ``for`` and ``async for`` on one iterator at the same time: the thread that waits in one
    would block the event loop of the other.

    Parameters
    ----------
    stream
        A stream or group made by `make_stream` or `make_stream_group`. For ``async for``, it may have any kind of ring.
    fill
        What to overwrite missing heaps with before a chunk is given out: a number, numbers or bytes, as in
        `fill_missing`. The side items of missing heaps, in ``extra``, become 0. By default nothing is overwritten, and
        missing heaps keep stale data. `fill` needs a declarative layout and, in a group, streams with equal strides.
        With ``async for``, the event loop waits while a chunk is filled.

    Returns
    -------
    ChunkIterator
        For ``for`` and ``async for``. Its `accounting` says how many heaps are present and missing. It includes a chunk
        just before that chunk is given out. The iterator raises `ValueError` if a chunk is not newer than the last one,
        which happens if streams share a data ring. That chunk is recycled.

    Raises
    ------
    ValueError, TypeError
        If `stream` is something else, or `fill` does not fit its layout.

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
    return ChunkIterator(stream, fill=fill)
