"""A part of a recording: a Zarr group whose time goes on without a break. `doc/recording.md` specifies it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from speadrx.layout.base import DeclarativeLayout

#: What each element of a job is: a path, its bytes (None for a folder), and whether it stays if a later one fails.
Piece = tuple[str, Any, bool]

#: The version of the format. One that another reader cannot read has another number.
FORMAT = 1

#: The dtypes that every reader of Zarr v3 knows.
_KNOWN = {"bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))}
_KNOWN |= {"float16", "float32", "float64", "complex64", "complex128"}


class _Array(NamedTuple):
    """An array with a place for each chunk that is received, or a coordinate, which has all in one place."""

    name: str
    dtype: np.dtype
    dims: tuple[str, ...]
    #: Its shape in one place, and which of its axes is the time; None for a coordinate.
    shape: tuple[int, ...]
    time_axis: int | None
    attributes: Mapping[str, Any] = {}
    #: The metadata of the codec that compresses it.
    codec: Mapping[str, Any] | None = None
    #: An axis of which several places lie side by side, and how many.
    beside: tuple[int, int] | None = None

    def size(self, axis: int) -> int:
        """How many indices of an axis other than the time all places have."""
        return self.shape[axis] * (self.beside[1] if self.beside is not None and self.beside[0] == axis else 1)


def _document(array: _Array, shape: Sequence[int]) -> bytes:
    dtype = array.dtype
    codec: dict[str, Any] = {"name": "bytes"}
    if dtype.itemsize > 1:
        codec["configuration"] = {
            "endian": sys.byteorder if dtype.isnative else "big" if dtype.byteorder == ">" else "little"
        }
    fill: Any = False if dtype.kind == "b" else [0.0, 0.0] if dtype.kind == "c" else 0.0 if dtype.kind == "f" else 0
    return as_json(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(array.shape)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": fill,
            "codecs": [codec] if array.codec is None else [codec, array.codec],
            "dimension_names": list(array.dims),
            "attributes": dict(array.attributes),
        }
    )


def as_json(document: Any) -> bytes:
    """Write a document of metadata: without indentation, with which Python takes ten times as long."""
    return json.dumps(document, default=str).encode()


def group_document(attributes: Mapping[str, Any], documents: Mapping[str, bytes] | None = None) -> bytes:
    """Write the metadata of a group; of the root, with the documents of all that is in it, by path."""
    document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    if documents is not None:
        metadata = {path: json.loads(content) for path, content in documents.items()}
        document["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": metadata}
    return as_json(document)


def check_selection(layout: DeclarativeLayout, select: Mapping[str, Sequence[int]]) -> dict[int, list[int]]:
    """Return which indices of each axis are selected, by the values that the layout gives its axis, or by index.

    Raises
    ------
    ValueError
        If there is no such axis, or it has no such value.
    """
    axes = {axis.name: axis for axis in layout.declaration.axes}
    chosen = {}
    for name, wanted in select.items():
        if name not in axes:
            raise ValueError(f"select: given axis {name!r}, but wanted one of {', '.join(axes) or 'none'}")
        size = layout.present_shape[layout.axis_names.index(name)]
        values = list(axes[name].values or range(size))
        for value in wanted:
            if value not in values:
                raise ValueError(f"select: {name} has no {value}, but wanted some of {', '.join(map(str, values))}")
        if not wanted:
            raise ValueError(f"select: nothing is selected of {name}")
        chosen[layout.axis_names.index(name)] = sorted(values.index(value) for value in wanted)
    return chosen


class Stored:
    """How chunks of a layout are stored: its arrays, and their bytes.

    Parameters
    ----------
    layout
        The layout.
    select
        Indices to keep, by axis.
    codec
        The metadata of the codec that compresses chunks, if any.
    beside
        An axis whose indices lie in several files side by side, and in how many, if they do.
    """

    def __init__(
        self,
        layout: DeclarativeLayout,
        select: Mapping[int, Sequence[int]],
        codec: Mapping[str, Any] | None = None,
        beside: tuple[int, int] | None = None,
    ) -> None:
        self._layout, self._select = layout, select
        declaration = layout.declaration
        names = layout.axis_names
        self.time_name = declaration.time.name
        self.time_axis = names.index(self.time_name)
        divided, by = beside or (None, 1)
        heaps = tuple(
            len(select.get(i, range(n))) // (by if i == divided else 1) for i, n in enumerate(layout.present_shape)
        )
        dtype, shape, dims = self._element()
        more: dict[str, Any] = {"codec": codec, "beside": beside}
        self.data = _Array("data", dtype, (*names, *dims), (*heaps, *shape), self.time_axis, **more)
        self.present = _Array("present", np.dtype(bool), names, heaps, self.time_axis, **more)
        extra = layout.extra_dtype
        taken = {"data", "present", *names}
        items = () if extra is None else [(name, extra[name]) for name in extra.names or ()]
        self.side = {
            name: _Array(f"item_{name}" if name in taken else name, kind, names, heaps, self.time_axis, **more)
            for name, kind in items
        }
        self.arrays = [self.data, *self.side.values(), self.present]
        taken = {array.name for array in self.arrays}
        self.coordinates = [
            (_Array(axis.name, np.dtype(np.int64), (axis.name,), (len(values),), None), np.array(values, np.int64))
            for axis in declaration.axes
            if (values := self._values(axis)) and axis.name not in taken
        ]

    def _values(self, axis: Any) -> list[int]:
        i = self._layout.axis_names.index(axis.name)
        values = list(axis.values or range(self._layout.present_shape[i]))
        return [values[index] for index in self._select.get(i, range(len(values)))]

    def _element(self) -> tuple[np.dtype, tuple[int, ...], tuple[str, ...]]:
        """What is stored of a heap: the type of its elements, their shape, and the names of its dimensions."""
        contents = self._layout.declaration._contents
        dtype, shape = contents.stored_dtype, contents.stored_shape
        if contents.element.packing is not None:
            return dtype, shape, ("byte",)
        dims = self._layout.heap_axis_names
        if contents.element.is_complex_integer:
            return dtype[0], (*shape, 2), (*dims, "complex")
        if dtype.name in _KNOWN:
            return dtype, shape, dims
        return np.dtype(np.uint8), (*shape, dtype.itemsize), (*dims, "byte")

    def buffers(self, chunk: Any) -> tuple[dict[str, np.ndarray], bool]:
        """The bytes of each array in a chunk, by its name; and whether they are the memory of the chunk itself."""
        layout = self._layout
        data = chunk.data
        if chunk._buffers.shape is None:  # there are gaps between heaps
            data = layout.view(data)
        arrays = {"data": data, "present": np.asarray(chunk.present).reshape(layout.present_shape)}
        if self.side:
            extra = (
                np.asarray(chunk.extra).reshape(-1).view(layout.extra_dtype or np.void).reshape(layout.present_shape)
            )
            arrays |= {array.name: extra[name] for name, array in self.side.items()}
        for axis, indices in self._select.items():
            arrays = {name: np.take(array, indices, axis) for name, array in arrays.items()}
        is_lent = not self._select and arrays["data"].flags.c_contiguous
        # What is no copy yet becomes one, unless the chunk waits for the writer.
        return {
            name: np.array(array, copy=None if is_lent else True, order="C") for name, array in arrays.items()
        }, is_lent

    def names(self, array: _Array) -> tuple[str, str]:
        """What is before and after the number of a chunk, in the name of its file."""
        key = ["c", *("0" * len(array.shape))]
        before, after = key[: 1 + (array.time_axis or 0)], key[2 + (array.time_axis or 0) :]
        return ".".join(before) + ".", "".join(f".{index}" for index in after)


class Part:
    """A Zarr group for chunks whose time goes on without a break.

    Its arrays are declared somewhat longer than what has come, so that the metadata need not follow each chunk. What is
    beyond reads as not present. `finish` cuts it off.

    Parameters
    ----------
    stored
        How chunks are stored.
    layout
        Their layout.
    folder
        The folder of the group.
    first
        Timestamp of the first chunk, in ticks.
    time
        UTC of it, if that is known.
    """

    def __init__(
        self, stored: Stored, layout: DeclarativeLayout, folder: str, first: int, time: np.datetime64 | None
    ) -> None:
        self.folder, self.first = folder, first
        self._stored = stored
        self._step, self._batches = layout.chunk_timestamp_step, layout.chunk_batches
        self._tick_rate = layout.declaration.time.tick_rate
        self._utc = None if time is None else int(time.astype(np.int64))
        attributes = {"long_name": "timestamp of the batch, in ticks"}
        if self._utc is not None:
            attributes = {"units": "nanoseconds since 1970-01-01", "calendar": "proleptic_gregorian"}
        place = max(4096, 64 * self._batches)
        self._time = _Array(stored.time_name, np.dtype(np.int64), (stored.time_name,), (place,), 0, attributes)
        #: Of each array, the paths of the files of its chunks: what is before and after their numbers.
        self._files = [
            (array.name, os.path.join(folder, array.name, before), after)
            for array in stored.arrays
            for before, after in [stored.names(array)]
        ]
        #: For how many chunks the arrays are declared; 0 before anything is written.
        self.declared = 0
        #: How many chunks it spans, with those that never came.
        self.chunks = 0

    @property
    def has_utc(self) -> bool:
        """Whether its times are UTC; otherwise they are ticks."""
        return self._utc is not None

    def number(self, timestamp: int) -> int:
        """The number of the chunk with a timestamp, counted from the first."""
        return (timestamp - self.first) // self._step

    def grown(self, number: int) -> int:
        """For how many chunks to declare the arrays, so that there is room for chunk `number`."""
        return self.declared if number < self.declared else number + 1 + number // 8 + 16

    def metadata(self, chunks: int) -> list[Piece]:
        """Declare the arrays for so many chunks, and write the times that are new."""
        pieces: list[Piece] = []
        for array in [*self._stored.arrays, self._time]:
            folder = os.path.join(self.folder, array.name)
            if not self.declared:
                pieces.append((folder, None, True))
            axes = range(len(array.shape))
            shape = [chunks * self._batches if axis == array.time_axis else array.size(axis) for axis in axes]
            pieces += self._times(folder, chunks) if array is self._time else []
            pieces.append((os.path.join(folder, "zarr.json"), _document(array, shape), True))
        if not self.declared:
            for array, values in self._stored.coordinates:
                folder = os.path.join(self.folder, array.name)
                pieces.append((folder, None, True))
                pieces.append((os.path.join(folder, "zarr.json"), _document(array, array.shape), True))
                pieces.append((os.path.join(folder, "c.0"), values.astype("<i8"), True))
        return pieces

    def _times(self, folder: str, chunks: int) -> Iterable[Piece]:
        """The files of the times for chunks from `declared` on. Each is written whole, and never again."""
        (place,) = self._time.shape
        begin = -(-self.declared * self._batches // place)
        end = -(-chunks * self._batches // place)
        for number in range(begin, end):
            yield os.path.join(folder, f"c.{number}"), self._values(number * place, place).astype("<i8"), True

    def _values(self, first: int, n: int) -> np.ndarray:
        """Times of batches, as they are stored."""
        step = self._step // self._batches
        if self._utc is None or self._tick_rate is None:
            return self.first + step * np.arange(first, first + n, dtype=np.int64)
        rate = Fraction(self._tick_rate)
        begin = self._utc + round(first * step * 10**9 / rate)
        offsets: np.ndarray = np.rint(np.arange(n) * (step * 1e9 / self._tick_rate)).astype(np.int64)
        return begin + offsets

    def pieces(self, number: int, buffers: Mapping[str, Any]) -> list[Piece]:
        """The files of a chunk: `present` is the last, so that what is present is there."""
        return [(f"{before}{number}{after}", buffers[name], False) for name, before, after in self._files]
