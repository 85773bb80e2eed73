"""A part of a recording: a Zarr group whose time goes on without a break. `doc/recording.md` specifies it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from speadrx._core import Files, Memory
from speadrx.layout.base import DeclarativeLayout

#: What each element of a job is: a path, its bytes (None for a folder), and whether it stays if a later one fails.
Piece = tuple[str, Any, bool]

#: The version of the format. One that another reader cannot read has another number.
FORMAT = 1

#: The dtypes that every reader of Zarr v3 knows.
_KNOWN = {"bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))}
_KNOWN |= {"float16", "float32", "float64", "complex64", "complex128"}


#: What is a group, where time began again.
_GROUP = re.compile(r"part_\d+")
#: The arrays that all recordings have.
_OWN = ("data", "present")


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

    def length(self, batches: int) -> list[int]:
        """The shape of the whole array, if it is so long."""
        return [batches if axis == self.time_axis else self.size(axis) for axis in range(len(self.shape))]


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
    return json.dumps(document, default=_plain).encode()


def _plain(value: Any) -> Any:
    # Only what is asked for: `dataclasses.asdict` copies every number that is in it.
    return vars(value) if dataclasses.is_dataclass(value) else str(value)


def named(path: str, document: bytes) -> bytes:
    """A document of metadata, as it is in that of the root."""
    return as_json(path) + b": " + document


def group_document(attributes: Mapping[str, Any], documents: Iterable[bytes] | None = None) -> bytes:
    """Write the metadata of a group; of the root, with the documents of all that is in it, as `named` makes them."""
    document = as_json({"zarr_format": 3, "node_type": "group", "attributes": attributes})
    if documents is None:
        return document
    inline = b'"consolidated_metadata": {"kind": "inline", "must_understand": false, "metadata": {'
    return document[:-1] + b", " + inline + b", ".join(documents) + b"}}}"


def free_name(name: str, prefix: str, taken: Collection[str]) -> str:
    """Put a prefix before a name, until nothing else is called so."""
    while name in taken or _GROUP.fullmatch(name):
        name = prefix + name
    return name


def check_selection(layout: DeclarativeLayout, select: Mapping[str, Sequence[int]]) -> dict[int, list[int]]:
    """Return which indices of each axis are selected, by what senders send, or by index if they send none.

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
        values = list(axes[name]._numbers)
        for value in wanted:
            if value not in values:
                raise ValueError(f"select: {name} has no {value}, but wanted some of {', '.join(map(str, values))}")
        if not wanted:
            raise ValueError(f"select: nothing is selected of {name}")
        chosen[layout.axis_names.index(name)] = sorted({values.index(value) for value in wanted})
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
        #: Whether only some of the heaps are stored.
        self.is_selection = bool(select)
        declaration = layout.declaration
        names = layout.axis_names
        for name in names:
            if name in _OWN or _GROUP.fullmatch(name):
                raise ValueError(
                    f"layout: an axis is called {name!r}, but recordings use this name: give it another one"
                )
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
        items = () if extra is None else [(name, extra[name]) for name in extra.names or ()]
        taken = {*_OWN, *names}
        #: Those of the side items, by their names.
        self.side: dict[str, _Array] = {}
        for name, kind in items:
            own = free_name(name, "item_", taken)
            taken.add(own)
            self.side[name] = _Array(own, kind, names, heaps, self.time_axis, **more)
        #: The presence is the last, also of what is written: what it tells is there is there.
        self.arrays = [self.data, *self.side.values(), self.present]
        #: Their metadata, with -1 in the place of their length.
        self.documents = [(array.name, _document(array, array.length(-1))) for array in self.arrays]
        #: The bytes of a chunk, if they are not compressed.
        self.chunk_bytes = sum(math.prod(array.shape) * array.dtype.itemsize for array in self.arrays)
        #: How many heaps of a chunk are stored.
        self.n_heaps = math.prod(heaps)
        self.coordinates = [
            (_Array(axis.name, np.dtype(np.int64), (axis.name,), (len(values),), None), np.array(values, np.int64))
            for axis in declaration.axes
            if (values := self._values(axis))
        ]

    def _values(self, axis: Any) -> list[int]:
        values: tuple[int, ...] = axis._numbers
        chosen = self._select.get(self._layout.axis_names.index(axis.name), range(len(values)))
        return [values[index] for index in chosen]

    def _element(self) -> tuple[np.dtype, tuple[int, ...], tuple[str, ...]]:
        """What is stored of a heap: the type of its elements, their shape, and the names of its dimensions."""
        contents = self._layout.declaration._contents
        dtype, shape = contents.stored_dtype, contents.stored_shape
        axes = self._layout.axis_names
        if contents.element.packing is not None:
            return dtype, shape, (free_name("byte", "heap_", axes),)
        dims = self._layout.heap_axis_names
        if contents.element.is_complex_integer:
            return dtype[0], (*shape, 2), (*dims, free_name("complex", "heap_", (*axes, *dims)))
        if dtype.name in _KNOWN:
            return dtype, shape, dims
        return np.dtype(np.uint8), (*shape, dtype.itemsize), (*dims, free_name("byte", "heap_", (*axes, *dims)))

    def held(self, chunk: Any) -> Held:
        """What a chunk holds of it. It is kept with the chunk, whose memory stays the same as a rule."""
        held: Held | None = chunk._held
        if held is None or held.stored is not self or not held.is_of(chunk):
            held = chunk._held = Held(self, chunk)
        return held

    def views(self, chunk: Any) -> list[np.ndarray]:
        """The memory of a chunk, as each of the arrays has it before anything is selected."""
        layout = self._layout
        data = chunk.data
        if chunk._buffers.shape is None:  # there are gaps between heaps
            data = layout.view(data)
        views = [np.asarray(data)]
        if self.side:
            extra = np.asarray(chunk.extra).reshape(-1).view(layout.extra_dtype or np.void)
            views += [extra.reshape(layout.present_shape)[name] for name in self.side]
        return [*views, np.asarray(chunk.present).reshape(layout.present_shape)]

    def select(self, array: np.ndarray) -> np.ndarray:
        """Copy what is selected of an array, if not all is."""
        for axis, indices in self._select.items():
            array = np.take(array, indices, axis)
        return array

    def names(self, array: _Array) -> tuple[str, str]:
        """What is before and after the number of a chunk, in the name of its file."""
        key = ["c", *("0" * len(array.shape))]
        before, after = key[: 1 + (array.time_axis or 0)], key[2 + (array.time_axis or 0) :]
        return ".".join(before) + ".", "".join(f".{index}" for index in after)


class Held:
    """What a chunk holds of a recording.

    If all heaps are stored, and there are no gaps between them, that is the memory of the chunk itself. Only side items
    are copied, which are next to each other there.

    Parameters
    ----------
    stored
        What is stored.
    chunk
        The chunk.
    """

    def __init__(self, stored: Stored, chunk: Any) -> None:
        #: What is stored.
        self.stored = stored
        self._data, self._present, self._extra = chunk.data, chunk.present, chunk.extra
        self._views = stored.views(chunk)
        #: Whether it is the memory of the chunk.
        self.is_lent = not stored.is_selection and self._views[0].flags.c_contiguous
        if self.is_lent:
            self._arrays = [np.array(view, copy=None, order="C") for view in self._views]
            self._memory = Memory(self._arrays)
            self._copied = [
                (array, view)
                for array, view in zip(self._arrays, self._views, strict=True)
                if not view.flags.c_contiguous
            ]

    def is_of(self, chunk: Any) -> bool:
        """Whether it is what this chunk holds, with the buffers that it has now."""
        return self._data is chunk.data and self._present is chunk.present and self._extra is chunk.extra

    def heaps(self) -> int:
        """How many heaps are present of those that are stored."""
        if self.is_lent:
            return self._memory.heaps()
        return int(np.count_nonzero(self.stored.select(self._views[-1])))

    def take(self) -> tuple[list[np.ndarray], Memory]:
        """What is to be written now."""
        if self.is_lent:
            for array, view in self._copied:
                np.copyto(array, view)
            return self._arrays, self._memory
        # `select` copies, but not if all is selected.
        select = self.stored.select if self.stored.is_selection else np.array
        arrays = [np.ascontiguousarray(select(view)) for view in self._views]
        return arrays, Memory(arrays)


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
        names = [(array.name, *stored.names(array)) for array in stored.arrays]
        #: The files of its chunks; how many chunks it spans, with those that never came; and for how many its arrays
        #: are declared, which is 0 before anything is written.
        self.files = Files(
            [(os.path.join(folder, name, before), after) for name, before, after in names], first, self._step
        )
        self._documents = [*stored.documents, (self._time.name, _document(self._time, [-1]))]

    @property
    def has_utc(self) -> bool:
        """Whether its times are UTC; otherwise they are ticks."""
        return self._utc is not None

    def number(self, timestamp: int) -> int:
        """The number of the chunk with a timestamp, counted from the first."""
        return self.files.number(timestamp)

    def memory(self, arrays: Sequence[np.ndarray], memory: Memory) -> Memory:
        """What its files of a chunk are to hold, which has these arrays."""
        return memory

    def grown(self, number: int) -> int:
        """For how many chunks to declare the arrays, so that there is room for chunk `number`."""
        return self.files.declared if number < self.files.declared else number + 1 + number // 4 + 32

    def metadata(self, chunks: int) -> list[Piece]:
        """Declare the arrays for so many chunks, and write the times that are new."""
        pieces: list[Piece] = []
        length = b"%d" % (chunks * self._batches)
        for name, document in self._documents:
            folder = os.path.join(self.folder, name)
            if not self.files.declared:
                pieces.append((folder, None, True))
            pieces += self._times(folder, chunks) if name == self._time.name else []
            # Nothing before the shape has such a number.
            pieces.append((os.path.join(folder, "zarr.json"), document.replace(b"-1", length, 1), True))
        if not self.files.declared:
            for array, values in self._stored.coordinates:
                folder = os.path.join(self.folder, array.name)
                pieces.append((folder, None, True))
                pieces.append((os.path.join(folder, "zarr.json"), _document(array, array.shape), True))
                pieces.append((os.path.join(folder, "c.0"), values.astype("<i8"), True))
        return pieces

    def _times(self, folder: str, chunks: int) -> Iterable[Piece]:
        """The files of the times for chunks from `declared` on. Each is written whole, and never again."""
        (place,) = self._time.shape
        begin = -(-self.files.declared * self._batches // place)
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
