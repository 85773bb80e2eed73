"""Iterate over the chunks of a stream or group, with an account of the heaps that are present and missing."""

from __future__ import annotations

import contextlib
import itertools
import logging
import operator
import os
import select
import sys
import threading
import types
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np
import spead2
import spead2.recv

from speadrx.accounts.account import Account, Totals
from speadrx.accounts.presence import Presence, PresenceReader
from speadrx.accounts.span import Span

from .chunk import Chunk
from .fill import chunk_filler
from .fork import check_descriptors, check_ours
from .gaps import GapChunks
from .starvation import LOOK_INTERVAL, Starvation
from .stream import ChunkRingStream, ChunkStreamRingGroup

logger = logging.getLogger(__name__)


#: The C++ method, which is the same for every kind of ring.
_get_nowait = spead2.recv.ChunkRingbuffer.get_nowait

#: What is present in the chunk of a control heap.
_NOTHING: Presence = np.zeros(0, np.int64), 0, 0


class _Readable:
    """Waits in event loops until a descriptor can be read. It needs one more descriptor, however often it waits.

    An event loop has one callback for each descriptor, and the ring's own descriptor is left to its owner.
    """

    def __init__(self, fd: int) -> None:
        self._fd = os.dup(fd)
        # Not at the exit of the interpreter: a daemon thread's event loop may still wait for it.
        weakref.finalize(self, os.close, self._fd).atexit = False
        #: A future for each task that waits, by event loop.
        self._futures: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()

    async def wait(self, seconds: float) -> bool:
        """Wait until it can be read, or for some seconds. Return False if it was so long."""
        import asyncio  # imported here because most programs do not need it

        loop = asyncio.get_running_loop()
        futures = self._futures.setdefault(loop, [])
        future = loop.create_future()
        if not futures:
            loop.add_reader(self._fd, _answer, futures, True)
        futures.append(future)
        timer = loop.call_later(seconds, _answer, [future], False)
        try:
            return bool(await future)
        finally:
            timer.cancel()
            futures.remove(future)
            if not futures:
                loop.remove_reader(self._fd)


@types.coroutine
def _let_others_run() -> Iterator[None]:
    """Without this, a ring that is never empty would keep other tasks from running. It is ``asyncio.sleep(0)``."""
    yield


def _answer(futures: list[Any], readable: bool) -> None:
    for future in futures:
        if not future.done():
            future.set_result(readable)


class _Hand:
    """What a thread has taken from the ring and not given to its user yet. So no interrupt in between can lose it."""

    __slots__ = ("chunk", "incomplete", "taken")

    def __init__(self) -> None:
        #: A chunk straight from the ring; at most one. None if another iterator was faster.
        self.taken: list[spead2.recv.Chunk | None] = []
        #: A chunk that is in the account.
        self.chunk: Chunk | None = None
        #: Whether that chunk has missing heaps that are to be filled.
        self.incomplete = False


class _Hands(threading.local):
    """Each thread's hand."""

    def __init__(self) -> None:
        self.own = _Hand()


class _Progress(NamedTuple):
    """How far an iterator has come."""

    last_chunk_id: int
    span: Span
    #: Heaps of each source that were expected before that.
    expected_before: int
    #: The chunk after the last one, counted from time 0.
    next_number: int
    #: How many chunks that never came were given out since the last one that did.
    gap_chunks: int = 0


class ChunkIterator:
    """The chunks of a stream or group in order, for ``for`` and ``async for``. `iter_chunks` makes it."""

    #: What was received so far.
    accounting: Account

    def __init__(
        self, stream: ChunkRingStream | ChunkStreamRingGroup, *, fill: Any = None, gaps: bool | int = False
    ) -> None:
        if not isinstance(stream, (ChunkRingStream, ChunkStreamRingGroup)):
            raise TypeError(
                f"stream: given {type(stream).__name__}, but wanted a stream or group from make_stream "
                "or make_stream_group"
            )
        check_ours(stream)
        self._stream = stream
        self._ring = stream.data_ringbuffer
        self._poll = select.poll()
        self._poll.register(self._ring.data_fd, select.POLLIN)
        self._ready = [(self._ring.data_fd, select.POLLIN)]
        self._readable: _Readable | None = None
        self._lock = threading.Lock()
        self._hands = _Hands()
        #: Whether Ctrl-C while ``for`` waits drains the stream. `KeyboardInterrupt` comes when the rest was given out.
        self._drains_on_interrupt = False
        self._interrupt: KeyboardInterrupt | None = None
        layout = stream.layout
        self._fill = None if fill is None else chunk_filler(layout, stream._geometries, fill)
        self._gaps = GapChunks(stream, gaps, self._fill) if gaps else None
        self._chunk_heaps = layout.chunk_heaps
        self._timestamp_step = layout.chunk_timestamp_step
        self._batches = layout.chunk_batches
        self._presence = PresenceReader(layout)
        self.accounting = stream._accounts.open(self)
        self._batch_heaps = layout.batch_heaps // len(self.accounting.source_labels)
        self._progress: _Progress | None = None
        self._warned = False

    @contextlib.contextmanager
    def all_gaps(self) -> Iterator[None]:
        """Give out a chunk for every one that never came, within this block."""
        before, self._gaps = self._gaps, GapChunks(self._stream, sys.maxsize, self._fill)
        try:
            yield
        finally:
            self._gaps = before

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        hand = self._hands.own
        check_ours(self._stream)  # before the lock, which a thread of the parent may have had
        while True:
            try:
                self._wait_for_chunk(hand)
                break
            except KeyboardInterrupt as exc:
                if not self._drains_on_interrupt or self._interrupt is not None:
                    raise
                self._interrupt = exc
                self._stream.drain()
            except StopIteration:
                if self._interrupt is None:
                    raise
                interrupt, self._interrupt = self._interrupt, None
                raise interrupt from None
        # No interrupt can come between these two lines, because they call nothing.
        chunk = hand.chunk
        hand.chunk = None
        assert chunk is not None
        return chunk

    def _wait_for_chunk(self, hand: _Hand) -> None:
        """Take the next chunk in hand. Raise `StopIteration` if the stream has ended."""
        starvation: Starvation | None = None
        while hand.chunk is None:
            # So that threads that share the iterator count chunks in the order of the ring; and the exit of the
            # interpreter waits for the lock, and so for what the core does with a chunk.
            with self._lock:
                if self._stream._exiting:
                    check_ours(self._stream)
                    raise StopIteration
                try:
                    self._take(hand)
                    if hand.incomplete:
                        self._complete(hand)
                    continue
                except spead2.Stopped:
                    raise StopIteration from None
                except spead2.Empty:
                    pass
                starvation = starvation or Starvation(self._stream)
                if self._poll.poll(LOOK_INTERVAL * 1000) != self._ready:
                    check_descriptors(self._stream)
                    starvation.look()
        if hand.incomplete:
            self._complete(hand)  # an interrupt came before it was done

    async def __anext__(self) -> Chunk:
        # There is no await between taking a chunk and returning it, so cancellation cannot lose a chunk.
        await _let_others_run()
        check_ours(self._stream)
        hand = self._hands.own
        starvation: Starvation | None = None
        while hand.chunk is None:
            with self._lock:  # held for a moment only, unless a thread waits in __next__
                if self._stream._exiting:
                    check_ours(self._stream)
                    raise StopAsyncIteration
                try:
                    self._take(hand)
                    if hand.incomplete:
                        self._complete(hand)
                    continue
                except spead2.Stopped:
                    raise StopAsyncIteration from None
                except spead2.Empty:
                    pass
            if self._readable is None:
                self._readable = _Readable(self._ring.data_fd)
            starvation = starvation or Starvation(self._stream)
            if not await self._readable.wait(LOOK_INTERVAL):
                import asyncio

                check_descriptors(self._stream)

                starvation.look(other_tasks=len(asyncio.all_tasks()) > 1)
        if hand.incomplete:
            self._complete(hand)
        chunk = hand.chunk
        hand.chunk = None
        return chunk

    def _complete(self, hand: _Hand) -> None:
        """Fill the missing heaps of the chunk in hand, if asked to. After an interrupt it starts over."""
        if hand.chunk is not None and hand.incomplete and self._fill is not None:
            self._fill(hand.chunk)
            hand.incomplete = False

    def _take(self, hand: _Hand) -> None:
        """Take the next chunk, count it and set its timestamp. If it has no heap, recycle it.

        If there is none, raise `spead2.Empty` or `spead2.Stopped`. An interrupt (Ctrl-C) may come between any two
        steps, and the user may go on after it. So what was taken stays in hand.
        """
        resumed = bool(hand.taken)
        if not resumed:
            self._get(hand)
        (chunk,) = hand.taken
        present = None if chunk is None else chunk.present
        # Another iterator has just taken the one that waited, or an interrupt came just after it was recycled.
        if chunk is None or present is None:
            hand.taken = []
            return
        stream, chunk_id = self._stream, chunk.chunk_id  # which spead2 makes anew each time it is read
        number, epoch, is_control, timestamp, utc = stream._locate(chunk_id)
        # The chunk of a control heap holds nothing but the control heap.
        presence = _NOTHING if is_control else self._presence.read(present)
        by_source, _, end_batch = presence
        hand.incomplete = self._fill is not None and by_source.sum() < self._chunk_heaps
        before = self._progress
        if not end_batch:
            self._give_back(hand, chunk)
        elif not isinstance(chunk, Chunk):
            self._give_back(hand, chunk)
            raise TypeError(f"the data ring has a {type(chunk).__name__}, but iter_chunks needs speadrx.Chunk")
        elif before is not None and resumed and chunk_id == before.last_chunk_id:
            hand.chunk = chunk  # an interrupt came just after it was counted
            hand.taken = []
        elif before is not None and chunk_id <= before.last_chunk_id:
            self._give_back(hand, chunk)
            raise ValueError(
                f"data_ringbuffer: gave chunk {chunk_id} after chunk {before.last_chunk_id}, so streams share "
                "it, but iter_chunks can only follow a ring of one stream or group"
            )
        else:
            lacking = self._lacking(number, epoch)
            if before is not None and lacking and self._gaps is not None and before.gap_chunks < self._gaps.limit:
                self._give_gap_chunk(hand, chunk, before, epoch, lacking)
                return
            chunk.timestamp, chunk._utc = timestamp, utc
            chunk.gap = None if lacking is None else lacking * self._batches
            if lacking and self._gaps is not None:
                self._warn_of_gap(chunk, self._gaps.limit)
            progress, totals = self._count(chunk, chunk_id, number, epoch, presence)
            # No interrupt can come between these lines, because they call nothing.
            self._progress = progress
            self.accounting._totals = totals
            hand.chunk = chunk
            hand.taken = []

    def _get(self, hand: _Hand) -> None:
        """Take a chunk in hand, in one call, so that no interrupt comes between get and keep."""
        if waiting := self._stream._waiting:
            last = -1 if self._progress is None else self._progress.last_chunk_id
            if newer := [chunk_id for chunk_id in list(waiting) if chunk_id > last]:
                hand.taken.extend(itertools.starmap(waiting.pop, [(min(newer), None)]))
                return
        try:
            hand.taken.extend(map(_get_nowait, (self._ring,)))
        except spead2.Stopped:
            self._stream.stop()  # it has ended, but its thread may not have counted everything yet
            raise
        except RuntimeError:
            check_descriptors(self._stream)
            raise

    def _lacking(self, number: int, epoch: int) -> int | None:
        """Return how many whole chunks lie before a chunk; None if time began again in between."""
        before = self._progress
        if before is None:
            return 0
        if epoch != before.span.epoch and self._stream._restarts(before.span.epoch, epoch):
            return None
        return number - before.next_number

    def _give_gap_chunk(self, hand: _Hand, chunk: Chunk, before: _Progress, epoch: int, lacking: int) -> None:
        """Give out a chunk that never came; the one that was taken waits."""
        assert self._gaps is not None
        chunk_id = chunk.chunk_id
        *_, timestamp, utc = self._stream._locate(chunk_id)
        gap_chunk = self._gaps.make(timestamp - lacking * self._timestamp_step, chunk_id - lacking, chunk.stream_id)
        gap_chunk._utc = utc
        start = before.next_number * self._batches
        span, _, _ = Span.following(
            before.span, self._stream, self._stream._account_ends(), epoch, (start, start + self._batches)
        )
        progress = before._replace(span=span, next_number=before.next_number + 1, gap_chunks=before.gap_chunks + 1)
        totals = self.accounting._totals._replace(expected=self._expected(progress))
        waiting = self._stream._waiting
        # No interrupt can come between these lines, because they call nothing.
        self._progress = progress
        self.accounting._totals = totals
        waiting[chunk_id] = chunk
        hand.chunk = gap_chunk
        hand.incomplete = False
        hand.taken = []

    def _give_back(self, hand: _Hand, chunk: spead2.recv.Chunk) -> None:
        if isinstance(chunk, Chunk):
            chunk.recycle()  # into the free ring of its own stream, if several share the data ring
        else:
            self._stream.add_free_chunk(chunk)
        hand.taken = []

    def _count(
        self, chunk: Chunk, chunk_id: int, number: int, epoch: int, presence: Presence
    ) -> tuple[_Progress, Totals]:
        """Add a chunk to the account. It is `number` chunks after time 0."""
        before, progress, stream = self.accounting._totals, self._progress, self._stream
        chunk._ends = ends = stream._account_ends()
        by_source, first_batch, end_batch = presence
        start = number * self._batches
        batches = start + first_batch, start + end_batch
        span, first, end = Span.following(None if progress is None else progress.span, stream, ends, epoch, batches)
        outside = before.outside
        if end - first < end_batch - first_batch:
            others = self._presence.read_outside(chunk.present, first - start, end - start)
            outside = list(map(operator.add, outside, others.tolist()))
        expected_before = before.expected if progress is None or span.is_new else progress.expected_before
        # Their own constructors are functions of Python, which is a call more for each chunk.
        progress = tuple.__new__(_Progress, (chunk_id, span, expected_before, number + 1, 0))
        totals = (
            before.present_by_source + by_source,
            outside,
            self._expected(progress),
            before.chunks + 1,
            before.epoch_gap + span.gap * self._batch_heaps,
            before.epoch_gap_ticks + span.gap * self._timestamp_step // self._batches,
            before.restarts + span.restarts,
            before.skipped + (chunk.gap or 0) // self._batches,
            chunk.timestamp if before.first_timestamp is None else before.first_timestamp,
            chunk.timestamp,
        )
        return progress, tuple.__new__(Totals, totals)

    def _expected(self, progress: _Progress) -> int:
        return progress.expected_before + (progress.span.end - progress.span.first) * self._batch_heaps

    def _warn_of_gap(self, chunk: Chunk, limit: int) -> None:
        """Say once that a gap is longer than the chunks that are given out for it."""
        if not self._warned:
            self._warned = True
            logger.warning(
                "gaps: %d chunks in a row were given out for chunks that never came, which is the most; %d more are "
                "left out (before timestamp %d), and those of later gaps that are as long, without saying so again",
                limit,
                (chunk.gap or 0) // self._batches,
                chunk.timestamp,
            )


def iter_chunks(
    stream: ChunkRingStream | ChunkStreamRingGroup, *, fill: Any = None, gaps: bool | int = False
) -> ChunkIterator:
    """Iterate over the chunks that a stream or group receives.

    Each chunk has its true `timestamp`. A chunk is given out only if it holds data, unless you ask for `gaps`. Its
    ``gap`` tells how many batches were left out before it. Use it as a context manager, so that it goes back into the
    free ring.

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
        With ``async for``, the event loop waits while a chunk is filled. Whole missing chunks are not given out, so
        they are not filled either, unless you ask for `gaps`.
    gaps
        Whether to give out a chunk with no heap present for each whole chunk that never came, in order, with its true
        timestamp. Its data are what `fill` makes of missing heaps, or else zeros. By default such chunks are left out.
        The account is the same either way.

        - Chunks of a gap are given out once a later chunk has come. Where time began again there is no gap, because
          nobody knows what was sent in between.
        - At most 1000 in a row are given out, or as many as `gaps` says if it is a number. The rest of a longer gap is
          left out: the log says so once, `accounting.skipped_chunks` counts them, and the ``gap`` of the next chunk
          tells how many batches they were. While you work through a gap, new data arrive, and wait in the data ring.
        - These chunks have memory of their own, of the shapes that `ChunkPool` gives to its chunks, and no ``device``.
          You may write to it. The receiver does not wait for them, however many you hold.

    Returns
    -------
    ChunkIterator
        For ``for`` and ``async for``. Its `accounting` says how many heaps are present and missing. It includes a chunk
        just before that chunk is given out. The iterator raises `ValueError` if a chunk is not newer than the last one,
        which happens if streams share a data ring. That chunk is recycled. It raises `RuntimeError` if it would wait
        for ever because its user keeps all chunks and nobody else is there to recycle one; the user may recycle, and go
        on.

    Raises
    ------
    ValueError, TypeError
        If `stream` is something else, `fill` does not fit its layout, or `gaps` is a negative number.
    MemoryError
        If `gaps` is given, and there is not enough memory for one more chunk.

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
    return ChunkIterator(stream, fill=fill, gaps=gaps)
