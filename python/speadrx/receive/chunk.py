"""Chunks, the pool that allocates them, and the checks of their buffers."""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import numpy as np
import spead2.recv

from speadrx._core import Geometry
from speadrx.accounts.span import Ends
from speadrx.layout.base import DeclarativeLayout
from speadrx.layout.contents import Contents
from speadrx.layout.samples import samples

from .checks import check_integer
from .memory import allocate, check_available

if TYPE_CHECKING:
    import xarray

logger = logging.getLogger(__name__)


class ChunkSink(Protocol):
    """Where a chunk goes when its user is done with it: a stream, a group, or a stand-in for one."""

    def add_free_chunk(self, chunk: Any, /) -> None:
        """Take the chunk back."""


def as_array(name: str, buffer: Any) -> np.ndarray:
    """View a buffer as an array, or raise a `TypeError` that names it."""
    if isinstance(buffer, np.ndarray):
        return buffer
    try:
        return np.asarray(memoryview(buffer))
    except TypeError:
        raise TypeError(f"{name}: given {type(buffer).__name__}, but wanted an object with a buffer") from None


def _check_memory(name: str, array: np.ndarray) -> None:
    """Check what spead2 needs of any buffer, whatever it stores there."""
    if array.dtype.hasobject:
        raise ValueError(f"{name}: given dtype {array.dtype}, but spead2 writes bytes: wanted a plain numeric dtype")
    if not array.flags.writeable:
        raise ValueError(f"{name}: given a read-only buffer, but spead2 writes to it: wanted a writable one")
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{name}: given shape {array.shape} with strides {array.strides}, but wanted a C-contiguous buffer"
        )


@dataclass(frozen=True)
class ChunkBuffers:
    """What the buffers of a chunk must be. None means that nothing is known of the stream that uses the chunk.

    spead2 checks none of this, and writes outside of buffers that are too small.

    Parameters
    ----------
    data_bytes
        Smallest number of bytes in ``data``.
    heaps
        Number of elements of ``present``.
    heap_extra
        Bytes that the placement callback may store in ``extra`` for each heap.
    dtype, shape, present_shape, extra_dtype
        What the layout stores, for the arrays that `ChunkPool` makes. `shape` is None if there are gaps between heaps
        in ``data``.
    contents, geometry
        What heaps hold, and where they are. `geometry` is None if each stream of a group has strides of its own.
    """

    data_bytes: int | None = None
    heaps: int | None = None
    heap_extra: int = 0
    dtype: np.dtype | None = None
    shape: tuple[int, ...] | None = None
    present_shape: tuple[int, ...] | None = None
    extra_dtype: np.dtype | None = None
    contents: Contents | None = None
    geometry: Geometry | None = field(default=None, compare=False)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of all buffers of a chunk."""
        return (self.data_bytes or 0) + (self.heaps or 0) * (1 + self.heap_extra)

    def check(self, data: Any, present: Any, extra: Any) -> None:
        """Check the buffers of a chunk.

        Raises
        ------
        ValueError, TypeError
            If a buffer does not fit. The message names the buffer, what was given and what is wanted.
        """
        if self.heaps is not None:
            for name, buffer in (("data", data), ("present", present)):
                if buffer is None:
                    raise ValueError(
                        f"{name}: no buffer given (a chunk in a ring has none: was this one recycled twice?)"
                    )
        if data is not None:
            self._check_data(as_array("data", data))
        if present is not None:
            self._check_present(as_array("present", present))
        self._check_extra(None if extra is None else as_array("extra", extra))

    def _check_data(self, data: np.ndarray) -> None:
        _check_memory("data", data)
        if self.dtype is not None and data.dtype.itemsize != 1 and data.dtype != self.dtype:
            raise ValueError(f"data: given dtype {data.dtype}, but wanted {self.dtype} or a dtype of one byte")
        if self.data_bytes is not None and data.nbytes < self.data_bytes:
            raise ValueError(f"data: given {data.nbytes} bytes, but wanted at least {self.data_bytes} for a chunk")

    def _check_present(self, present: np.ndarray) -> None:
        _check_memory("present", present)
        if present.dtype.kind not in "bui" or present.dtype.itemsize != 1:
            raise ValueError(f"present: given dtype {present.dtype}, but wanted bool, uint8 or int8")
        if self.heaps is not None and present.size != self.heaps:
            raise ValueError(
                f"present: given {present.size} elements, but wanted exactly {self.heaps}, one for each heap of a chunk"
            )

    def _check_extra(self, extra: np.ndarray | None) -> None:
        if extra is not None:
            _check_memory("extra", extra)
        if self.heaps is None or not self.heap_extra:
            return
        wanted = self.heaps * self.heap_extra
        reason = f"{self.heap_extra} for each of {self.heaps} heaps"
        if extra is None:
            raise ValueError(f"extra: no buffer given, but wanted at least {wanted} bytes ({reason})")
        if extra.nbytes < wanted:
            raise ValueError(f"extra: given {extra.nbytes} bytes, but wanted at least {wanted} ({reason})")

    def samples(self, data: Any, out: np.ndarray | None) -> np.ndarray:
        """Read the numbers in the data of a chunk; see `Chunk.samples`."""
        if self.contents is None or self.present_shape is None:
            raise ValueError("samples: it is not known what heaps hold: wanted a chunk with a declarative layout")
        if self.geometry is None:
            raise ValueError("samples: each stream of the group has strides of its own: use the layout's samples()")
        return samples(self.contents, self.present_shape, self.geometry, as_array("data", data), out)


#: For sinks whose layout is not known.
_UNKNOWN = ChunkBuffers()

#: What recycled data become, for whoever asks for it. As a floating-point number it is huge.
_SPOILT = 0x7F


@dataclass(frozen=True, kw_only=True)
class ChunkCopy:
    """A copy of a chunk: its memory is its own, and nothing is received into it. `Chunk.copy` makes it."""

    #: As in the chunk.
    data: np.ndarray
    present: np.ndarray
    extra: np.ndarray | None
    timestamp: int
    time: np.datetime64 | None
    gap: int | None
    _buffers: ChunkBuffers = field(repr=False)
    _layout: Any = field(repr=False)

    def samples(self, out: np.ndarray | None = None) -> np.ndarray:
        """Read the numbers in ``data``; see `Chunk.samples`."""
        return self._buffers.samples(self.data, out)

    def to_xarray(self, *, masked: bool = False) -> xarray.Dataset:
        """Copy it into an xarray Dataset; see `Chunk.to_xarray`."""
        return _to_xarray(self, self._layout, masked)


def _to_xarray(chunk: Chunk | ChunkCopy, layout: Any, masked: bool) -> xarray.Dataset:
    from .read import read_chunk  # which needs this module

    if not isinstance(layout, DeclarativeLayout):
        raise ValueError("to_xarray: it is not known what heaps hold: wanted a chunk with a declarative layout")
    return read_chunk(chunk, layout).to_xarray(masked=masked)


class Chunk(spead2.recv.Chunk):
    """A chunk that knows where to go when it is no longer needed.

    It is a context manager. At the end of the block it goes back to its stream, however the block ends::

        with chunk:
            process(chunk.data, chunk.present)

    While a chunk is in a ring, spead2 holds its buffers and `data`, `present` and `extra` are None.

    Parameters
    ----------
    sink
        The stream or group (or stand-in) that `recycle` gives the chunk to; held weakly.
    data, present, extra
        Buffers that fit the layout of the sink. `data` has at least the bytes of a chunk, in the layout's dtype or any
        dtype of one byte. `present` has exactly one bool, uint8 or int8 for each heap. `extra` has at least one record
        for each heap, if the layout has side items. If the sink is not a stream of this package, its layout is not
        known, and only what spead2 needs of any buffer is checked.
    device
        Any object that belongs to the chunk, such as the device memory behind its `data`.
    timestamp
        Timestamp of the first batch of the chunk, in ticks.
    chunk_id, stream_id
        As in `spead2.recv.Chunk`; streams set them.

    Raises
    ------
    ValueError, TypeError
        If a buffer does not fit. The message names the buffer, what was given and what is wanted.
    """

    #: Weak reference to the sink.
    sink: weakref.ref[ChunkSink]
    #: Any object that belongs to the chunk.
    device: Any
    #: Timestamp of the first batch of the chunk, in ticks.
    timestamp: int
    #: Batches between the end of the chunk that the iterator has given out before and this one: 0 unless whole chunks
    #: were left out. None if time began again in between, because nobody knows then.
    gap: int | None = 0
    # UTC at tick 0, in seconds since 1970.
    _utc: float | None = None
    # What its iterator knew of the ends of the account when it counted the chunk.
    _ends: Ends | None = None
    # Blocks that the chunk was entered for since it was given out; and those in which it was recycled.
    _open_blocks = 0
    _spent_blocks = 0
    # While somebody else needs it beside its user: counts who is done, and whether the user is.
    _sharing: Iterator[int] | None = None
    _sharers = 0
    _user_is_done = False
    # What a recording has of its memory, kept for the next time that it is filled.
    _held: Any = None

    def __init__(
        self,
        *,
        sink: ChunkSink,
        data: Any = None,
        present: Any = None,
        extra: Any = None,
        device: Any = None,
        timestamp: int = 0,
        chunk_id: int = -1,
        stream_id: int = 0,
    ) -> None:
        if not callable(getattr(sink, "add_free_chunk", None)):
            raise TypeError(f"sink: given {type(sink).__name__}, but wanted a stream or group")
        buffers = getattr(sink, "_buffers", None)
        self._buffers = buffers if isinstance(buffers, ChunkBuffers) else _UNKNOWN
        self._buffers.check(data, present, extra)
        super().__init__(data=data, present=present, extra=extra, chunk_id=chunk_id, stream_id=stream_id)
        self.sink = weakref.ref(sink)
        self.device = device
        self.timestamp = timestamp
        if (chunks := getattr(sink, "_chunks", None)) is not None:
            chunks.add(self)

    def __del__(self) -> None:
        # Memory is given back without the interpreter's lock. If the interpreter exits meanwhile, a daemon thread ends
        # there; in the midst of spead2's destructor, that would abort the process. So its last holder is not spead2.
        if hasattr(self, "sink"):
            buffers = self.data, self.present, self.extra
            self.data = self.present = self.extra = None
            del buffers

    def samples(self, out: np.ndarray | None = None) -> np.ndarray:
        """Read the numbers in ``data``.

        If the layout's dtype is one of packed samples, such as ``"int10"``, ``data`` has bytes, and the samples become
        integers of 8 or 16 bits here, with the interpreter's lock released. If it has a `samples_order`, numbers are
        copied into that order, in which the rows of a heap lie apart. Otherwise ``data`` has the numbers already.

        What is read of missing heaps is what their bytes in ``data`` say: stale samples, unless ``fill=`` was given to
        `iter_chunks` or `Receiver`.

        Parameters
        ----------
        out
            Where to write the numbers, if not to a new array. It must have the shape that is returned. Any dtype will
            do that can hold the numbers (``float32``, say), and there may be gaps between its elements; both cost a
            copy more than a contiguous array of the dtype that is returned by default.

        Returns
        -------
        numpy.ndarray
            The axes, then the shape of a heap; or in the layout's `samples_order`. It is `out`, if that is given.
            Without `out`, and if samples are neither packed nor in another order, it is ``data`` itself, or a view of
            it: it must not be used any more when the chunk is recycled.

        Raises
        ------
        ValueError, TypeError
            If `out` is not of the right kind; or if it is not known what the chunk holds, because its layout is not
            declarative, it is in a ring, or each stream of its group has strides of its own.
        """
        if self.data is None:
            raise ValueError("data: the chunk has none: it is in a ring, or was recycled")
        return self._buffers.samples(self.data, out)

    def copy(self) -> ChunkCopy:
        """Copy the chunk, for use after it is recycled: then its data are filled again.

        Raises
        ------
        ValueError
            If it is in a ring, or was recycled.
        """
        if self.data is None or self.present is None:
            raise ValueError("data: the chunk has none: it is in a ring, or was recycled")
        return ChunkCopy(
            data=np.array(self.data),
            present=np.array(self.present),
            extra=None if self.extra is None else np.array(self.extra),
            timestamp=self.timestamp,
            time=self.time,
            gap=self.gap,
            _buffers=self._buffers,
            _layout=getattr(self.sink(), "layout", None),
        )

    def to_xarray(self, *, masked: bool = False) -> xarray.Dataset:
        """Copy the chunk into an xarray Dataset: as `speadrx.open` gives one of a recording, with the same names.

        It is a copy, for use after the chunk is recycled, too. In the place of missing heaps it has zeros, whatever the
        chunk has there.

        Parameters
        ----------
        masked
            Whether ``data`` has NaN where heaps are missing, as for `speadrx.open`.

        Raises
        ------
        ModuleNotFoundError
            If xarray is not installed: it comes with the extra ``xarray``.
        ValueError
            If it is not known what the chunk holds (see `samples`), it is in a ring, or was recycled.
        """
        if self.data is None:
            raise ValueError("data: the chunk has none: it is in a ring, or was recycled")
        return _to_xarray(self, getattr(self.sink(), "layout", None), masked)

    @property
    def time(self) -> np.datetime64 | None:
        """UTC of the first batch of the chunk, to the nanosecond (``datetime64[ns]``).

        None unless the layout has a ``tick_rate`` and an ``epoch``, or an ``epoch_item`` that heaps have had.
        """
        layout = getattr(self.sink(), "layout", None)
        declaration = layout.declaration if isinstance(layout, DeclarativeLayout) else None
        if self._utc is None or declaration is None or declaration.time.tick_rate is None:
            return None
        # Floats have too few digits for nanoseconds. Imported here, as not every user asks for the time.
        from fractions import Fraction

        seconds = Fraction(self._utc) + self.timestamp / Fraction(declaration.time.tick_rate)
        nanoseconds = round(seconds * 10**9)
        return np.datetime64(nanoseconds, "ns") if abs(nanoseconds) < 2**63 else None

    def recycle(self) -> None:
        """Give the chunk back to its sink. Do nothing if the sink no longer exists.

        The end of a ``with`` block recycles a chunk only if it was not recycled within the block.
        """
        sink = self.sink()
        if sink is not None:
            # Before it is given back, since another thread may have it in a block of its own at once.
            self._spent_blocks += self._open_blocks
            self._open_blocks = 0
            if self._sharing is not None:
                if self._user_is_done:
                    raise ValueError("data: this chunk was recycled twice")
                self._user_is_done = True
            self._done()

    def _share(self) -> None:
        """Have the chunk wait for somebody else too, who calls `_done`, when its user recycles it."""
        if self._sharing is None:
            self._user_is_done, self._sharers = False, 1
            self._sharing = itertools.count()
        else:
            self._sharers += 1

    def _unshare(self) -> None:
        """Take `_share` back, before the user has the chunk."""
        self._sharers -= 1
        if not self._sharers:
            self._sharing = None

    def _done(self) -> None:
        """Give the chunk back, if nobody needs it any more."""
        # The count is atomic: of all threads that are done, exactly one is the last.
        if self._sharing is not None and next(self._sharing) < self._sharers:
            return
        self._sharing = None
        sink = self.sink()
        if sink is not None:
            if getattr(sink, "_overwrites_recycled", False) and self.data is not None:
                as_array("data", self.data).reshape(-1).view(np.uint8)[:] = _SPOILT
            held = self._held
            if held is not None and held.is_of(self):
                # Its buffers are those that the stream has given out.
                getattr(sink, "_add_checked", sink.add_free_chunk)(self)
            else:
                sink.add_free_chunk(self)

    def __enter__(self) -> Self:
        self._open_blocks += 1
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # If another thread has the chunk again already, the first of both blocks to end counts as spent: either way it
        # is recycled once for each time that it was given out, and not before that block has ended.
        if self._spent_blocks:
            self._spent_blocks -= 1
        else:
            self._open_blocks -= 1
            self.recycle()


_Kind = TypeVar("_Kind", bound=Chunk)


class ChunkPool:
    """Chunks for a stream or group, allocated and put into its free ring.

    The arrays have the shapes that the layout gives them: ``data`` has the axes and then the shape of a heap (it is
    flat if strides leave gaps between heaps: see `Layout.view`), ``present`` and ``extra`` have the axes. If the layout
    is not declarative, all are flat.

    All memory is there before the first heap comes, in huge pages if the kernel provides them. It is near the processor
    of the stream's thread if `make_stream` was given one (in a group, the processor of the first stream).

    Parameters
    ----------
    sink
        A stream or group made by `make_stream` or `make_stream_group`.
    n
        Number of chunks. Together with the chunks that the free ring has already, there should be enough for the window
        and for the chunks that the user holds. A warning is logged if there is not even one for the user.

    Raises
    ------
    TypeError
        If `sink` was not made by this package, so that its layout is not known, or `n` is not an integer.
    ValueError
        If `n` is less than 1 or more than the free ring has space for.
    MemoryError
        If there is not enough memory. The message says how much is needed. Nothing is allocated then.
    """

    #: The chunks.
    chunks: tuple[Chunk, ...]

    def __init__(self, sink: Any, n: int) -> None:
        buffers = getattr(sink, "_buffers", None)
        if not isinstance(buffers, ChunkBuffers):
            raise TypeError(
                f"sink: given {type(sink).__name__}, but wanted a stream or group from make_stream or make_stream_group"
            )
        ring = sink.free_ringbuffer
        present = ring.qsize()
        space = ring.maxsize - present
        if not 1 <= check_integer("n", n) <= space:
            raise ValueError(
                f"n: given {n}, but wanted 1 to {space}, the space in the free ring (its maxsize is {ring.maxsize})"
            )
        if present + n <= sink._window:
            logger.warning(
                "n: with %d chunks in the free ring, receiving may stall: the window needs %d, and the user at least "
                "one; wanted at least %d",
                present + n,
                sink._window,
                sink._window + 1,
            )
        size = buffers.chunk_bytes
        check_available(f"chunks: {n} of {size:,} bytes each", n * size)
        assert buffers.data_bytes is not None

        def take(n_bytes: int) -> np.ndarray:
            return allocate(n_bytes, sink._processor)

        self.chunks = tuple(make_chunk(Chunk, sink, take(buffers.data_bytes), take) for _ in range(n))
        for chunk in self.chunks:
            chunk.recycle()

    def __len__(self) -> int:
        return len(self.chunks)


def make_chunk(kind: type[_Kind], sink: Any, data: np.ndarray, take: Callable[[int], np.ndarray]) -> _Kind:
    """Make a chunk whose arrays have the shapes that the layout gives them.

    Parameters
    ----------
    kind
        The class of the chunk.
    sink
        The stream or group, made by this package.
    data
        The memory for its heaps.
    take
        Allocates the rest, all zeros: takes a number of bytes.
    """
    buffers: ChunkBuffers = sink._buffers
    assert buffers.heaps is not None
    if buffers.dtype is not None and buffers.shape is not None:
        data = data.view(buffers.dtype).reshape(buffers.shape)
    present_shape = buffers.present_shape or (buffers.heaps,)
    present = take(buffers.heaps).view(np.bool_).reshape(present_shape)
    extra = None
    if buffers.heap_extra:
        extra = take(buffers.heaps * buffers.heap_extra)
        if buffers.extra_dtype is not None and buffers.extra_dtype.itemsize == buffers.heap_extra:
            extra = extra.view(buffers.extra_dtype).reshape(present_shape)
    return kind(sink=sink, data=data, present=present, extra=extra)
