"""Some seconds of a stream as one array in memory: what `Receiver.read` returns."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from speadrx.layout.base import DeclarativeLayout

from .checks import check_integer
from .chunk import Chunk, ChunkCopy
from .fill import chunk_filler
from .gaps import GapChunk
from .iterate import ChunkIterator
from .memory import check_available

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Data of several chunks in a row, copied into arrays of their own.

    Time goes on without a break along the time axis, except at `restarts`: chunks that never came have their place too,
    and no heap of them is present.
    """

    #: The numbers, as `Chunk.samples` gives them. In the place of a missing heap they are what the receiver's ``fill``
    #: says, or else zeros.
    data: np.ndarray
    #: Names of the axes of `data`.
    dims: tuple[str, ...]
    #: Which heaps are present, by the axes of the layout.
    present: np.ndarray
    #: Names of the axes of `present` and `extra`.
    present_dims: tuple[str, ...]
    #: Timestamp of each batch, in ticks.
    timestamp: np.ndarray
    #: UTC of each batch (``datetime64[ns]``); None unless it is known: see `Chunk.time`.
    time: np.ndarray | None
    #: The side items of each heap, or None if the layout has none. Those of missing heaps are 0.
    extra: np.ndarray | None
    #: The batches, counted along the time axis, at which time began again.
    restarts: tuple[int, ...]
    _layout: DeclarativeLayout = field(repr=False, compare=False)

    def to_xarray(self, *, masked: bool = False) -> xarray.Dataset:
        """Make an xarray Dataset of it: as `speadrx.open` gives one of a recording, with the same names and units.

        Complex integers become complex numbers. The axes are in the order of the layout, without its `samples_order`.
        What need not be converted is not copied. ``attrs["restarts"]`` are the `restarts`.

        Parameters
        ----------
        masked
            Whether ``data`` has NaN where heaps are missing, as for `speadrx.open`.

        Raises
        ------
        ModuleNotFoundError
            If xarray is not installed: it comes with the extra ``xarray``.
        """
        from speadrx.record.dataset import dataset_of

        return dataset_of(self, self._layout, masked=masked)


def chunks_to_read(layout: DeclarativeLayout, seconds: Any, chunks: Any) -> int:
    """How many chunks a reading has.

    Raises
    ------
    ValueError, TypeError
        If not exactly one of both is given, or it is wrong.
    """
    if (seconds is None) == (chunks is None):
        raise ValueError(f"read: given seconds={seconds} and chunks={chunks}, but wanted one of them")
    if chunks is not None:
        return check_integer("chunks", chunks, 1)
    if isinstance(seconds, bool) or not isinstance(seconds, numbers.Real):
        raise TypeError(f"seconds: given {seconds!r}, but wanted a number of seconds")
    if not 0 < float(seconds) < math.inf:
        raise ValueError(f"seconds: {seconds} must be above 0, and finite")
    tick_rate = layout.declaration.time.tick_rate
    if tick_rate is None:
        raise ValueError(
            f"seconds: {seconds} needs a layout with a tick_rate, and this one has none: give chunks instead"
        )
    # Less the error of floating point: 0.08 s are 2 chunks of 40 ms.
    return math.ceil(float(seconds) * tick_rate / layout.chunk_timestamp_step * (1 - 1e-12))


class _Arrays:
    """The arrays of a reading while it is made."""

    def __init__(self, layout: DeclarativeLayout, n: int) -> None:
        declaration = layout.declaration
        contents = declaration._contents
        self._layout = layout
        self._step, self._batches = layout.chunk_timestamp_step // layout.chunk_batches, layout.chunk_batches
        self._tick_rate = declaration.time.tick_rate
        self._present_axis = self._data_axis = layout.axis_names.index(declaration.time.name)
        heaps = list(layout.present_shape)
        heaps[self._present_axis] *= n
        shape, names = [*heaps, *contents.shape], [*layout.axis_names, *layout.heap_axis_names]
        if contents.order is not None:
            self._data_axis = contents.order.index(self._present_axis)
            shape, names = [shape[axis] for axis in contents.order], [names[axis] for axis in contents.order]
        dtype, extra_dtype = contents.element.dtype, layout.extra_dtype
        size = math.prod(shape) * dtype.itemsize
        check_available(f"read: {n} chunks, {size:,} bytes", size)
        self._data, self._dims = np.empty(shape, dtype), tuple(names)
        self._present, self._present_dims = np.zeros(heaps, np.bool_), layout.axis_names
        self._extra = None if extra_dtype is None else np.zeros(heaps, extra_dtype)
        self._timestamp = np.zeros(n * self._batches, np.int64)
        self._time = np.zeros(n * self._batches, "datetime64[ns]")
        self._has_time = True
        self._restarts: list[int] = []
        self._end = 0

    def add(self, chunk: Chunk | ChunkCopy) -> None:
        """Copy a chunk behind those that are there."""
        begin, self._end = self._end, self._end + self._batches
        part = slice(begin, self._end)
        chunk.samples(out=self._data[(slice(None),) * self._data_axis + (part,)])
        heaps = (slice(None),) * self._present_axis + (part,)
        shape = self._present[heaps].shape
        self._present[heaps] = np.asarray(chunk.present).reshape(shape)
        if self._extra is not None:
            self._extra[heaps] = np.asarray(chunk.extra).reshape(-1).view(self._extra.dtype).reshape(shape)
        ticks = np.arange(self._batches) * self._step
        self._timestamp[part] = chunk.timestamp + ticks
        time = chunk.time
        if time is None or self._tick_rate is None:
            self._has_time = False
        else:
            self._time[part] = time + np.rint(ticks * (1e9 / self._tick_rate)).astype("timedelta64[ns]")
        if chunk.gap is None:
            self._restarts.append(begin)

    def clear_missing(self) -> None:
        """Put zeros in the place of missing heaps."""
        missing = ~self._present
        order = self._layout.declaration._contents.order
        data = self._data if order is None else self._data.transpose(np.argsort(order))
        data[missing] = np.zeros((), data.dtype)
        if self._extra is not None:
            self._extra[missing] = np.zeros((), self._extra.dtype)

    def reading(self) -> Reading:
        """What was added."""
        part = slice(0, self._end)
        heaps = (slice(None),) * self._present_axis + (part,)
        return Reading(
            data=np.ascontiguousarray(self._data[(slice(None),) * self._data_axis + (part,)]),
            dims=self._dims,
            present=np.ascontiguousarray(self._present[heaps]),
            present_dims=self._present_dims,
            timestamp=self._timestamp[part],
            time=self._time[part] if self._has_time and self._end else None,
            extra=None if self._extra is None else np.ascontiguousarray(self._extra[heaps]),
            restarts=tuple(self._restarts),
            _layout=self._layout,
        )


def read_chunk(chunk: Chunk | ChunkCopy, layout: DeclarativeLayout) -> Reading:
    """Copy a chunk, with zeros in the place of missing heaps."""
    arrays = _Arrays(layout, 1)
    arrays.add(chunk)
    arrays.clear_missing()
    return arrays.reading()


def read_chunks(chunks: ChunkIterator, layout: DeclarativeLayout, n: int) -> Reading:
    """Copy the next `n` chunks, those that never came included, or as many as there are."""
    stream = chunks._stream
    fill = chunks._fill if chunks._fill is not None else chunk_filler(layout, stream._geometries, b"\0")
    arrays = _Arrays(layout, n)
    with chunks.all_gaps():
        for _, chunk in zip(range(n), chunks, strict=False):
            with chunk:
                if not isinstance(chunk, GapChunk):  # these are filled already
                    fill(chunk)
                arrays.add(chunk)
    return arrays.reading()
