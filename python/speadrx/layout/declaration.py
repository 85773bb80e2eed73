"""Layouts: the abstract `BaseLayout`, and the declarative `Layout` with its axes, in Python and TOML."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from speadrx._core import Layout as CompiledLayout
from speadrx._core import LayoutError, foreign_capsule, spec_from_toml, spec_to_toml

logger = logging.getLogger(__name__)

#: Prefix of the names under which spead2's statistics carry our reject reasons.
STAT_PREFIX = "speadrx."

#: No layout has so many; a capture may, and a device has no end.
_MOST_TOML_BYTES = 2**24

_SIDE_DTYPES = {"u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64}


class BaseLayout(ABC):
    """How the heaps of a stream fill its chunks.

    Derive from `Layout` or use it directly where a declaration can say it. Derive from this class
    to bring a placement callback of your own: override `chunk_place`, or define ``_chunk_place``, an
    object with an ``address`` (such as the ``CFunc`` that ``numba.cfunc`` makes).
    """

    @property
    @abstractmethod
    def heap_bytes(self) -> int:
        """Payload bytes of a heap."""

    @property
    @abstractmethod
    def chunk_batches(self) -> int:
        """Steps of the time axis in a chunk."""

    @property
    @abstractmethod
    def batch_heaps(self) -> int:
        """Heaps in one step of the time axis, across all other axes."""

    @property
    @abstractmethod
    def heap_sample_count(self) -> int:
        """Samples in a heap (the layout says what a sample is; used for statistics only)."""

    @property
    @abstractmethod
    def chunk_timestamp_step(self) -> int:
        """Increase in timestamp from one chunk to the next, in ticks."""

    @property
    def chunk_heaps(self) -> int:
        """Heaps in a chunk."""
        return self.chunk_batches * self.batch_heaps

    @property
    def chunk_bytes(self) -> int:
        """Payload bytes of a chunk."""
        return self.heap_bytes * self.chunk_heaps

    def chunk_place(self, user_data: np.ndarray) -> tuple[object, ...]:
        """Make the placement callback, in the form that `spead2.recv.ChunkStreamConfig` takes.

        Parameters
        ----------
        user_data
            Passed to the callback by address, so kept alive by the returned tuple.

        Returns
        -------
        tuple
            A capsule with the C function pointer and its context, and what they need kept alive.

        Raises
        ------
        NotImplementedError
            If the class neither overrides this method nor has ``_chunk_place``.
        """
        callback = getattr(self, "_chunk_place", None)
        if callback is None:
            raise NotImplementedError(
                f"{type(self).__name__} has no placement callback: override chunk_place, "
                "or define _chunk_place with an address attribute"
            )
        if user_data is None:
            raise ValueError(f"user_data: None, but the callback of {type(self).__name__} reads it")
        return (foreign_capsule(callback.address, user_data.ctypes.data), callback, user_data)


@dataclass(frozen=True, kw_only=True)
class TimeAxis:
    """The time axis of a layout.

    Parameters
    ----------
    item
        SPEAD item ID of the timestamp.
    step
        Increase in timestamp between successive heaps of a source, in ticks.
    batches
        Heaps per source per chunk.
    tick_rate
        Ticks per second in Hz, if timestamps shall be convertible to seconds.
    align
        What to do with a timestamp that is not a multiple of `step`: ``"reject"`` the heap, or
        ``"mask"`` the low bits off (needs a `step` that is a power of two).
    name
        Name of the axis.
    """

    item: int
    step: int
    batches: int
    tick_rate: float | None = None
    align: Literal["reject", "mask"] = "reject"
    name: str = "time"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis of a layout other than time.

    The index of a heap on this axis comes either from an item of the heap (`item`), or is the same for
    a whole stream (`from_user_data`). The value of an item is shifted right by `shift`, then masked with
    `mask`, then looked up: it must be a multiple of `step` with ``value / step < size``, or one of `values`.

    Parameters
    ----------
    name
        Name of the axis.
    item
        SPEAD item ID that the index comes from.
    shift
        Bits to shift the item's value right by.
    mask
        Bits to keep after shifting (default: all).
    step
        Difference between the values of neighbouring indices.
    size
        Number of indices.
    values
        The value of each index, instead of `step` and `size`.
    from_user_data
        Field of the stream's ``user_data`` that holds the index, instead of `item`; needs `size`.
    reject_name
        Name of the counter of heaps whose value is not on the axis (default: ``bad_<name>_heaps``).
    """

    name: str
    item: int | None = None
    shift: int = 0
    mask: int | None = None
    step: int = 1
    size: int | None = None
    values: tuple[int, ...] | None = None
    from_user_data: str | None = None
    reject_name: str | None = None

    def __post_init__(self) -> None:
        if self.values is not None:
            object.__setattr__(self, "values", as_tuple("values", self.values))


@dataclass(frozen=True, kw_only=True)
class SideItem:
    """An item whose value is stored beside each heap, in the chunk's ``extra``.

    Parameters
    ----------
    name
        Field name in the record.
    item
        SPEAD item ID. A heap without it is placed all the same, and 0 is stored.
    shift
        Bits to shift the value right by.
    dtype
        Unsigned integer of that many **bits**: ``"u8"``, ``"u16"``, ``"u32"`` or ``"u64"``. Higher bits of
        the shifted value are cut off.
    """

    name: str
    item: int
    shift: int = 0
    dtype: Literal["u8", "u16", "u32", "u64"] = "u64"


class DeclarativeLayout(BaseLayout):
    """A layout that is described by a `Layout`, which `declaration` returns."""

    @property
    @abstractmethod
    def declaration(self) -> Layout:
        """The declaration behind this layout."""

    @property
    def heap_bytes(self) -> int:  # noqa: D102
        return self.declaration.heap_bytes

    @property
    def chunk_batches(self) -> int:  # noqa: D102
        return self.declaration.time.batches

    @property
    def batch_heaps(self) -> int:  # noqa: D102
        return self.declaration._compiled.batch_heaps

    @property
    def chunk_timestamp_step(self) -> int:  # noqa: D102
        return self.declaration._compiled.chunk_timestamp_step

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk's data, gaps between strides included.

        Where a stride comes from ``user_data``, the gaps are not known here and not included.
        """
        known = self.declaration._compiled.chunk_bytes
        return self.heap_bytes * self.chunk_heaps if known is None else known

    @property
    def heap_sample_count(self) -> int:  # noqa: D102
        declaration = self.declaration
        if declaration.samples_per_heap is not None:
            return declaration.samples_per_heap
        if declaration.heap_shape is not None:
            return math.prod(declaration.heap_shape)
        return declaration.heap_bytes // np.dtype(declaration.dtype).itemsize

    @property
    def spead_items(self) -> list[int]:
        """Item IDs to ask spead2 for, in the order that the callback expects.

        The order is time, HEAP_LENGTH, axes, side items, required items; an ID used twice stands twice.
        """
        return self.declaration._compiled.items

    @property
    def stream_stats(self) -> list[str]:
        """Names of the statistics that count rejected heaps, in the order of the checks."""
        return [STAT_PREFIX + name for name in self.declaration._compiled.reject_names]

    @property
    def user_data_dtype(self) -> np.dtype:
        """Record of ``stats_base`` and every ``user_data`` field that the layout reads, all of pointer size."""
        compiled = self.declaration._compiled
        names = ["stats_base", *compiled.user_data_fields, *compiled.optional_user_data_fields]
        return np.dtype([(name, np.uintp) for name in names])

    @property
    def extra_dtype(self) -> np.dtype | None:
        """Packed record of the side items, one for each heap; None without side items."""
        items = self.declaration.side_items
        return np.dtype([(item.name, _SIDE_DTYPES[item.dtype]) for item in items]) if items else None

    @property
    def max_heap_extra(self) -> int:
        """Bytes that the callback writes to a chunk's ``extra`` for each heap."""
        return self.declaration._compiled.extra_bytes

    @property
    def axis_names(self) -> tuple[str, ...]:
        """Names of all axes, slowest first."""
        declaration = self.declaration
        return declaration.order or (declaration.time.name, *(axis.name for axis in declaration.axes))

    @property
    def present_shape(self) -> tuple[int, ...]:
        """Sizes of the axes, slowest first: the shape of a chunk's ``present`` and ``extra``."""
        return self.declaration._compiled.shape

    @property
    def source_labels(self) -> tuple[str, ...]:
        """The name of each source in the accounts."""
        return self.declaration.source_labels

    def view(self, data: np.ndarray, user_data: np.ndarray | None = None) -> np.ndarray:
        """View a chunk's data by axis.

        Parameters
        ----------
        data
            Contiguous data buffer of a chunk, of any shape.
        user_data
            One record, needed where a stride comes from ``user_data``.

        Returns
        -------
        numpy.ndarray
            Shape ``present_shape + heap_shape`` and the layout's dtype, sharing the memory of `data`.

        Raises
        ------
        ValueError
            If `data` is too small or not contiguous, or a field that the layout reads is missing from `user_data`.
        """
        declaration = self.declaration
        geometry = declaration._compiled.geometry(user_data_values(self, user_data))
        if not data.flags.c_contiguous:  # reshape would make a copy
            raise ValueError(f"data: given shape {data.shape} with strides {data.strides}, but wanted C-contiguous")
        raw = data.reshape(-1).view(np.uint8)
        if raw.nbytes < geometry.span_bytes:
            raise ValueError(f"data has {raw.nbytes} bytes, but the layout needs {geometry.span_bytes}")
        dtype = np.dtype(declaration.dtype)
        heap_shape = declaration.heap_shape
        if heap_shape is None:
            heap_shape = (declaration.heap_bytes // dtype.itemsize,)
        inner = np.empty(heap_shape, dtype).strides
        return np.ndarray(self.present_shape + heap_shape, dtype, buffer=raw.data, strides=geometry.strides + inner)

    def chunk_place(self, user_data: np.ndarray | None = None) -> tuple[object, ...]:
        """Make the placement callback for a single stream.

        The callback copies the fields of `user_data` that the layout reads. It counts in its ledger
        only: `speadrx.make_stream` makes one that feeds ``stream.stats`` too. It cannot know how many chunks the
        stream has under construction, and judges times as if they were 16.

        Parameters
        ----------
        user_data
            Structured array of shape () or (1,); may be left out if the layout reads none of it.

        Returns
        -------
        tuple
            The capsule, and the `Placement` that it belongs to.

        Raises
        ------
        ValueError
            If a field that the layout reads is missing or out of range.
        """
        if getattr(self, "_chunk_place", None) is not None:
            return super().chunk_place(user_data)  # type: ignore[arg-type]

        geometry = self.declaration._compiled.geometry(user_data_values(self, user_data))
        placement = geometry.placement(window=self._assumed_window())
        return (placement.capsule(), placement)

    def _assumed_window(self) -> int:
        # Of long or large chunks there cannot be so many: see check_window in src/place.rs.
        limits = (2**47 // self.chunk_timestamp_step, (2**31 - 1) // self.chunk_batches, 2**30 // self.chunk_heaps)
        return min(16, *limits)


@dataclass(frozen=True, kw_only=True)
class Layout(DeclarativeLayout):
    """A declared layout: one time axis and any number of others.

    Parameters
    ----------
    heap_bytes
        Payload bytes of a heap; heaps of another length are rejected.
    time
        The time axis.
    axes
        The other axes, in the order in which they are checked.
    order
        Names of all axes, slowest to fastest (default: time, then `axes`).
    strides
        Byte strides that override the dense ones, by axis name: a number, or the name of the field of
        ``user_data`` that holds it (dense if the stream's ``user_data`` has no such field).
    side_items
        Items stored beside each heap, in the chunk's ``extra``.
    sources
        Name of the axis whose index is the source, by which heaps are accounted for.
    source_labels
        Name of each source in the accounts (default: its index).
    required_items
        Further item IDs without which a heap is rejected.
    dtype, heap_shape
        What a heap holds, for the numpy view of a chunk (default: `heap_bytes` bytes).
    samples_per_heap
        Samples of a heap, if not the product of `heap_shape`.
    name
        A name for messages and files.

    Raises
    ------
    LayoutError
        If a heap could leave its chunk, two heaps could share a slot, or any field is out of range. The
        message names the field, its value, and what would be right.
    """

    heap_bytes: int = 0  # required: 0 is rejected (the default makes it override the abstract property)
    time: TimeAxis
    axes: tuple[Axis, ...] = ()
    order: tuple[str, ...] | None = None
    strides: Mapping[str, int | str] = field(default_factory=dict, hash=False)
    side_items: tuple[SideItem, ...] = ()
    sources: str | None = None
    source_labels: tuple[str, ...] = ()
    required_items: tuple[int, ...] = ()
    dtype: str = "uint8"
    heap_shape: tuple[int, ...] | None = None
    samples_per_heap: int | None = None
    name: str = ""

    def __post_init__(self) -> None:
        for name in ("axes", "order", "side_items", "source_labels", "required_items", "heap_shape"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, as_tuple(name, value))
        object.__setattr__(self, "source_labels", self.source_labels or ())
        if not isinstance(self.strides, Mapping):
            raise LayoutError(f"strides: given {self.strides!r}, but wanted a mapping from axis names")
        object.__setattr__(self, "strides", dict(self.strides))
        try:
            dtype = np.dtype(self.dtype)
        except TypeError as exc:
            raise LayoutError(f"dtype: {self.dtype!r} is no numpy dtype ({exc}); name one, like 'int16'") from None
        if dtype.kind == "V":  # np.dtype does not read back their names
            raise LayoutError(f"dtype: {self.dtype!r} is made of bytes without meaning; name one, like 'int16'")
        # The readable name where it says everything ("int16"); else with its byte order (">i2").
        object.__setattr__(self, "dtype", dtype.name if np.dtype(dtype.name) == dtype else dtype.str)
        n_sources = self._compiled.n_sources
        if self._has_default_labels:
            object.__setattr__(self, "source_labels", _index_labels(n_sources))
        self._check_view()

    @property
    def _has_default_labels(self) -> bool:
        # Also those that dataclasses.replace hands on, whose number may have to change with the axis.
        return self.source_labels == _index_labels(len(self.source_labels))

    def _check_view(self) -> None:
        dtype = np.dtype(self.dtype)
        if dtype.hasobject or not dtype.itemsize:
            raise LayoutError(f"dtype: {self.dtype!r} has no fixed binary form; use a plain numeric dtype")
        if self.heap_shape is None:
            if self.heap_bytes % dtype.itemsize:
                raise LayoutError(
                    f"heap_bytes: {self.heap_bytes} is not a multiple of the {dtype.itemsize} bytes of {self.dtype}"
                )
        elif math.prod(self.heap_shape) * dtype.itemsize != self.heap_bytes:
            raise LayoutError(
                f"heap_shape: {self.heap_shape} of {self.dtype} is {math.prod(self.heap_shape) * dtype.itemsize} "
                f"bytes, but heap_bytes is {self.heap_bytes}"
            )

    @functools.cached_property
    def _compiled(self) -> CompiledLayout:
        return CompiledLayout(self._spec())

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @property
    def declaration(self) -> Layout:
        """This layout itself."""
        return self

    def _spec(self) -> dict[str, Any]:
        """The fields that differ from their defaults, and `heap_bytes`, as plain dicts and lists."""

        def plain(value: Any) -> Any:
            if isinstance(value, tuple):
                return [plain(v) for v in value]
            if isinstance(value, np.generic):
                return value.item()
            if dataclasses.is_dataclass(value):
                return {
                    f.name: plain(v)
                    for f in dataclasses.fields(value)
                    if (v := getattr(value, f.name)) is not None
                    and (v != f.default or f.name == "heap_bytes")
                    and v != {}
                }
            return value

        spec: dict[str, Any] = plain(self)
        if self._has_default_labels:
            spec.pop("source_labels", None)
        return spec

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Layout:
        """Read a layout from a TOML file (`to_toml` writes one).

        Raises
        ------
        LayoutError
            If the file is not TOML, or a field is unknown, missing, of the wrong type or out of range.
        OSError
            If the file cannot be read.
        """
        return cls._from_toml_text(read_toml(path), os.fspath(path))

    @classmethod
    def _from_toml_text(
        cls,
        text: bytes,
        label: str,
        change: Callable[[dict[str, Any]], None] = lambda spec: None,
    ) -> Layout:
        """Read a layout from TOML; `change` may change the fields that it sets before they become one."""
        try:
            spec = spec_from_toml(text.decode())
            change(spec)
            spec["time"] = TimeAxis(**spec["time"])
            spec["axes"] = tuple(Axis(**axis) for axis in spec.get("axes", ()))
            spec["side_items"] = tuple(SideItem(**item) for item in spec.get("side_items", ()))
            return cls(**spec)
        except UnicodeDecodeError as exc:
            line = text.count(b"\n", 0, exc.start) + 1
            raise LayoutError(
                f"{label}: line {line} has the byte {text[exc.start]:#04x}, which is no UTF-8; TOML files are UTF-8"
            ) from None
        except LayoutError as exc:
            raise LayoutError(f"{label}: {exc}") from None

    def to_toml(self) -> str:
        """Return the layout as TOML text that `from_toml` reads back to an equal layout."""
        return spec_to_toml(self._spec())


def read_toml(path: str | os.PathLike[str]) -> bytes:
    """Read the file of a layout.

    Raises
    ------
    LayoutError
        If it is larger than any layout: of what may be a capture, or a device, no more is read.
    OSError
        If it cannot be read.
    """
    with open(path, "rb") as file:
        text = file.read(_MOST_TOML_BYTES + 1)
    if len(text) > _MOST_TOML_BYTES:
        raise LayoutError(f"{os.fspath(path)}: more than {_MOST_TOML_BYTES:,} bytes are no layout in TOML")
    return text


def as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    """Check that an argument is a sequence, and return it as a tuple."""
    # A string is a sequence too: as labels, its letters would pass wherever their number is right.
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise LayoutError(f"{name}: given {value!r}, but wanted a sequence")
    return tuple(value)


def _index_labels(n: int) -> tuple[str, ...]:
    return tuple(str(i) for i in range(n))


def user_data_values(layout: DeclarativeLayout, user_data: np.ndarray | None) -> dict[str, int]:
    """Take the fields that a layout reads from one record of user data.

    Parameters
    ----------
    layout
        The layout.
    user_data
        Structured array of one element, or None.

    Raises
    ------
    ValueError
        If a field is missing, not of an integer type, or negative, or `user_data` has more than one element.
    """
    fields = layout.declaration._compiled.user_data_fields
    optional = layout.declaration._compiled.optional_user_data_fields
    if user_data is not None and user_data.size != 1:
        raise ValueError(f"user_data: has {user_data.size} elements, but a single stream takes one")
    have = () if user_data is None else (user_data.dtype.names or ())
    for name in fields:
        if name not in have:
            raise ValueError(f"user_data: has no field {name!r}, which the layout reads (it has {list(have)})")
    if user_data is None:
        return {}
    known = ("stats_base", *fields, *optional)
    for name in known:
        if name in have and user_data.dtype[name].kind not in "iu":
            raise ValueError(f"user_data[{name!r}]: has dtype {user_data.dtype[name]}, but wanted an integer type")
    lacking, unknown = tuple(n for n in optional if n not in have), tuple(n for n in have if n not in known)
    if lacking and unknown:
        _warn_unread(lacking, unknown)
    values = {name: int(user_data[name].reshape(-1)[0]) for name in (*fields, *optional) if name in have}
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"user_data[{name!r}]: {value} must not be negative")
    return values


@functools.cache  # once: views of chunks are taken with the same user data again and again
def _warn_unread(lacking: tuple[str, ...], unknown: tuple[str, ...]) -> None:
    logger.warning(
        "user_data has no %s, so those strides are dense; it has %s, which the layout does not read",
        ", ".join(map(repr, lacking)),
        ", ".join(map(repr, unknown)),
    )
