"""Layouts as declarations: the axes and items of a `Layout`, in Python and TOML."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from speadrx._core import Layout as CompiledLayout
from speadrx._core import LayoutError, spec_fields, spec_to_toml

from .base import DeclarativeLayout
from .contents import Contents, Field, make_contents, read_contents

#: Longer files are not layouts. They may be captures, or devices without an end.
_MOST_TOML_BYTES = 2**24


@dataclass(frozen=True, kw_only=True)
class TimeAxis:
    """The time axis of a layout.

    Parameters
    ----------
    item
        SPEAD item ID of the timestamp, or several IDs, of which each heap must have exactly one. ID 1 is the heap
        counter.
    step
        Increase in timestamp between successive heaps of a source, in ticks.
    batches
        Heaps per source per chunk.
    tick_rate
        Ticks per second, in Hz. Needed to convert timestamps to seconds.
    align
        What to do with a timestamp that is not a whole number of steps after `origin`: ``"reject"`` its heap, or
        take it for the last such time before it (``"floor"``) or the nearest (``"nearest"``). ``"mask"`` is
        ``"floor"`` for a step that is a power of two.
    name
        Name of the axis.
    origin
        Any timestamp that a sender has, from which steps are counted (default: 0). ``"first"``: the first that is
        seen; if more than half of the sources show that it was wrong, what they show.
    bits
        Bits of a timestamp, which wraps after that. By default 48; but if timestamps are seen to wrap after 40 bits,
        as in the flavour 64-40, then 40.
    shift, mask
        The item's value is first shifted right by `shift` bits, then masked with `mask` (default: all bits).
    phases
        Ticks by which the timestamps of each source differ from those of others at the same time, by index on the axis
        `Layout.sources`. They may be whole timestamps of the same batch. ``"first"``: what the first heap of each
        source shows, half a step at most; then `origin` is ``"first"``, too, if it is not given. A chunk's timestamp is
        that of the source with the smallest phase; with ``"first"``, that of the source that was seen first.
    epoch
        UTC at tick 0, in seconds since 1970. With `tick_rate`, chunks have their UTC.
    epoch_item
        SPEAD item ID of an item that tells this, in whole seconds, instead of `epoch`.
    """

    item: int | tuple[int, ...]
    step: int
    batches: int
    tick_rate: float | None = None
    align: Literal["reject", "floor", "nearest", "mask"] = "reject"
    name: str = "time"
    origin: int | Literal["first"] | None = None
    bits: int | None = None
    shift: int = 0
    mask: int | None = None
    phases: tuple[int, ...] | Literal["first"] | None = None
    epoch: float | None = None
    epoch_item: int | None = None

    def __post_init__(self) -> None:
        for name in ("item", "phases"):
            value = getattr(self, name)
            if isinstance(value, Iterable) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))

    @property
    def items(self) -> tuple[int, ...]:
        """All IDs that the item of the timestamp can have."""
        return self.item if isinstance(self.item, tuple) else (self.item,)

    @property
    def rounds(self) -> bool:
        """Whether timestamps may lie between the steps."""
        return self.align != "reject"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis of a layout other than time.

    The index of a heap on this axis comes from an item of the heap (`item`), or is the same for the whole
    stream (`from_user_data`). The value of an item is first shifted right by `shift`, then masked with
    `mask`. The result must be a multiple of `step` with ``result / step < size``, or one of `values`. Or not the value
    of an item tells the index, but which item a heap has (`present_items`).

    Parameters
    ----------
    name
        Name of the axis.
    item
        SPEAD item ID that the index comes from; 1 is the heap counter. Or the name of an item that is added to packets:
        ``"payload_item"`` (the ID of the item whose bytes are the heap's data), ``"sender"`` (its IPv4 address << 16,
        and its port), ``"packet_seconds"`` or ``"packet_nanoseconds"`` (since 1970).
    payload_items
        IDs of items, instead of `item`: the index is the position of the one whose bytes are the heap's data.
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
    present_items
        IDs of items that are values, not addresses, instead of `item`: the index is the position of the one that a heap
        has. Heaps with none or several of them are not on the axis.
    """

    name: str
    item: Any = None  # an int, a str, or None
    payload_items: tuple[int, ...] | None = None
    shift: int = 0
    mask: int | None = None
    step: int = 1
    size: int | None = None
    values: tuple[int, ...] | None = None
    from_user_data: str | None = None
    reject_name: str | None = None
    present_items: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("values", "present_items", "payload_items"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, as_tuple(name, value))

    @property
    def _numbers(self) -> tuple[int, ...]:
        """What stands for each index, wherever users name one: what senders send; the index, if they send none."""
        if self.values is not None:
            return self.values
        size = len(self.present_items or self.payload_items or ()) or self.size or 0
        return tuple(range(0, size * self.step, self.step))


@dataclass(frozen=True, kw_only=True)
class SideItem:
    """An item whose value is stored beside each heap, in the chunk's ``extra``.

    Parameters
    ----------
    name
        Field name in the record.
    item
        SPEAD item ID, or a name as for an axis. A heap without this item is still placed, and 0 is stored.
    shift
        Bits to shift the value right by.
    dtype
        Unsigned integer type: ``"u8"``, ``"u16"``, ``"u32"`` or ``"u64"``. The number is in **bits**.
        Higher bits of the shifted value are cut off.
    """

    name: str
    item: Any  # an int or a str
    shift: int = 0
    dtype: Literal["u8", "u16", "u32", "u64"] = "u64"


@dataclass(frozen=True, kw_only=True)
class Send:
    """How an instrument sends its heaps, as far as receivers need not know: for simulated senders.

    Parameters
    ----------
    flavour
        Bits of an address and of an immediate value in the SPEAD flavour (default: 48).
    packet_bytes
        Largest packet in bytes, with SPEAD header and items (default: 1472).
    order
        IDs of items in the order in which packets have them; others come after them, the payload last.
    omit
        Items of SPEAD itself that packets lack: 2 is the heap's length, 3 the payload's place in it.
    payload_items
        ID of the payload item for each index of the axis of the sources, instead of `Layout.payload_item`.
    repeat_items
        Whether each packet of a heap has all items, or only the first.
    descriptors
        Whether a heap that describes the items comes before the others.
    constants
        Items that every heap has with the same value, by ID.
    """

    flavour: int | None = None
    packet_bytes: int | None = None
    order: tuple[int, ...] = ()
    omit: tuple[int, ...] = ()
    payload_items: tuple[int, ...] = ()
    repeat_items: bool = True
    descriptors: bool = False
    constants: Mapping[Any, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("order", "omit", "payload_items"):
            object.__setattr__(self, name, as_tuple(name, getattr(self, name)))
        if not isinstance(self.constants, Mapping):
            raise LayoutError(f"send.constants: given {self.constants!r}, but wanted a mapping from item IDs")
        object.__setattr__(self, "constants", {_item_id(item): value for item, value in self.constants.items()})


@dataclass(frozen=True, kw_only=True)
class Packets:
    """What to mend in packets that spead2 would drop or misjudge.

    With this, speadrx itself reads the sockets, mends the packets and hands them to spead2.

    Parameters
    ----------
    heap_length
        Bytes of every heap, whatever packets say of it. Or ``"payload"``: each packet is a whole heap.
    payload_offset
        ``"zero"``: the payload of each packet is the beginning of its heap, whatever the packet says.
    heap_counter
        How heaps are told apart: ``"packet"`` (each packet is a heap), ``"sender"`` (each sender counts by itself),
        or the IDs of items whose values, together with the sender and its counter, make a heap. By default, by the
        counter alone.
    repeat_items
        Whether the items of a heap are in its first packet only. Other packets wait for it.
    items
        How the values of some items are written, by ID: ``"<u4"`` is 4 bytes with the lowest first, ``">u8"`` 8 bytes
        with the highest first. Addressed values of these items are made immediate.
    """

    heap_length: int | Literal["payload"] | None = None
    payload_offset: Literal["zero"] | None = None
    heap_counter: Literal["packet", "sender"] | tuple[int, ...] | None = None
    repeat_items: bool = False
    items: Mapping[int, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.heap_counter is not None and not isinstance(self.heap_counter, str):
            object.__setattr__(self, "heap_counter", as_tuple("heap_counter", self.heap_counter))
        if not isinstance(self.items, Mapping):
            raise LayoutError(f"items: given {self.items!r}, but wanted a mapping from item IDs")
        object.__setattr__(self, "items", {_item_id(item): encoding for item, encoding in self.items.items()})


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
        Name of the axis whose index is the source: the accounts count heaps by source.
    source_labels
        Name of each source in the accounts (default: what senders send for it; or the ID of its item, or its index).
    required_items
        IDs of other items that a heap must have. Heaps without them are rejected.
    dtype
        Type of a heap's elements (default: bytes). It is numpy's name of it (``"int16"``, ``">i2"``), or one of these:

        - packed samples of 1 to 16 bits: ``"int10"``, ``"uint4"``. The first sample has the highest bits of the first
          byte; with ``"<int10"`` it has the lowest. The chunk's data are bytes then, and `Chunk.samples` gives the
          numbers.
        - complex integers, of a real and an imaginary part of so many bits: ``"cint8"``, ``">cint16"``; in numpy they
          are records of ``re`` and ``im``. They may be packed too: ``"cint4"``.

        A record of numpy becomes `fields`.
    fields
        What a heap holds instead, if its elements are records: the fields of a record, which follow one another.
        ``chunk.data["name"]`` is the array of one of them.
    heap_shape
        Shape of a heap's elements in the numpy view of a chunk (default: as many as there are; a single record has the
        shape ``()``).
    heap_axes
        Names of the dimensions of `heap_shape`.
    samples_order
        Order of all axes in what `Chunk.samples` gives, those of `heap_axes` among them (default: the axes in their
        `order`, then those of a heap). The rows of a heap lie apart there: with ``("channel", "time", "spectrum")``,
        each channel has all of the chunk's spectra one after the other.
    samples_per_heap
        Samples in a heap, if this is not the product of `heap_shape`.
    payload_item
        ID of the item, addressed, that a heap's data are: simulated senders send it, and programs that look at packets
        know it. What else a heap in a file has is cut out; so it is on sockets, if there are `packets`.
    packets
        What to mend in packets that spead2 would drop or misjudge.
    send
        How the instrument sends its heaps, for simulated senders. Receivers use none of it.
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
    fields: tuple[Field, ...] = ()
    heap_shape: tuple[int, ...] | None = None
    heap_axes: tuple[str, ...] = ()
    samples_order: tuple[str, ...] | None = None
    samples_per_heap: int | None = None
    payload_item: int | None = None
    packets: Packets | None = None
    send: Send | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.source_labels, _DefaultLabels):  # from dataclasses.replace: the axis may be another now
            object.__setattr__(self, "source_labels", ())
        for name in (
            "axes",
            "order",
            "side_items",
            "source_labels",
            "required_items",
            "heap_shape",
            "heap_axes",
            "samples_order",
        ):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, as_tuple(name, value))
        self._check_kinds()
        object.__setattr__(self, "source_labels", self.source_labels or ())
        if not isinstance(self.strides, Mapping):
            raise LayoutError(f"strides: given {self.strides!r}, but wanted a mapping from axis names")
        object.__setattr__(self, "strides", dict(self.strides))
        dtype, fields = read_contents(self.dtype, self.fields)
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "fields", fields)
        n_sources = self._compiled.n_sources
        if not self.source_labels or self._has_default_labels:
            object.__setattr__(self, "source_labels", self._default_labels(n_sources))
        _ = self._contents  # its checks

    def _check_kinds(self) -> None:
        """Check that its parts are objects of their class."""
        parts: list[tuple[str, object, type]] = [("time", self.time, TimeAxis)]
        parts += [(f"axes[{number}]", axis, Axis) for number, axis in enumerate(self.axes)]
        parts += [(f"side_items[{number}]", item, SideItem) for number, item in enumerate(self.side_items)]
        parts += [("packets", self.packets, Packets)] if self.packets is not None else []
        parts += [("send", self.send, Send)] if self.send is not None else []
        for name, part, kind in parts:
            if not isinstance(part, kind):
                raise LayoutError(f"{name}: given {part!r}, but wanted speadrx.{kind.__name__}(...)")

    def _default_labels(self, n_sources: int) -> _DefaultLabels:
        """What senders send for each source, or the IDs of its items; or else the indices."""
        axis = next((axis for axis in self.axes if axis.name == self.sources), None)
        values = None if axis is None else axis.values or axis.payload_items
        step = 1 if axis is None else axis.step
        return _DefaultLabels(map(str, values or (step * index for index in range(n_sources))))

    @property
    def _has_default_labels(self) -> bool:
        return self.source_labels == self._default_labels(len(self.source_labels))

    @functools.cached_property
    def _contents(self) -> Contents:
        """What a heap holds."""
        order = None
        if self.samples_order is not None:
            axes = (*self.axis_names, *self.heap_axes)
            order = tuple(axes.index(name) for name in self.samples_order)
        return make_contents(self.dtype, self.fields, self.heap_shape, self.heap_bytes, order)

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
            if isinstance(value, Mapping):  # keys that are numbers are item IDs
                return {f"{k:#x}" if isinstance(k, int) else k: plain(v) for k, v in value.items()}
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
        """Read a layout from TOML; `change` may change its fields before the layout is made."""
        import tomllib  # imported here because most programs do not need it

        try:
            spec = spec_fields(tomllib.loads(text.decode()))
            change(spec)
            spec["time"] = TimeAxis(**spec["time"])
            spec["axes"] = tuple(Axis(**axis) for axis in spec.get("axes", ()))
            spec["fields"] = tuple(Field(**field) for field in spec.get("fields", ()))
            spec["side_items"] = tuple(SideItem(**item) for item in spec.get("side_items", ()))
            if "packets" in spec:
                spec["packets"] = Packets(**spec["packets"])
            if "send" in spec:
                spec["send"] = Send(**spec["send"])
            return cls(**spec)
        except UnicodeDecodeError as exc:
            line = text.count(b"\n", 0, exc.start) + 1
            byte = f"{text[exc.start]:#04x}"
            raise LayoutError(
                f"{label}: line {line} has the byte {byte}, which is not UTF-8; TOML files must be UTF-8"
            ) from None
        except (LayoutError, tomllib.TOMLDecodeError) as exc:
            raise LayoutError(f"{label}: {exc}") from None
        except RecursionError:
            raise LayoutError(f"{label}: brackets within brackets, more than any layout has") from None

    def to_toml(self) -> str:
        """Return the layout as TOML text that `from_toml` reads back to an equal layout.

        Item IDs and masks are hexadecimal.
        """

        def hexadecimal(match: re.Match[str]) -> str:
            return _NUMBER.sub(lambda number: f"{int(number[0]):#x}", match[0])

        return _ITEMS_AND_MASKS.sub(hexadecimal, spec_to_toml(self._spec()))


def read_toml(path: str | os.PathLike[str]) -> bytes:
    """Read the file of a layout.

    Raises
    ------
    LayoutError
        If the file is too long for a layout. It may be a capture or an endless device, so the rest is not read.
    OSError
        If the file cannot be read.
    """
    with open(path, "rb") as file:
        text = file.read(_MOST_TOML_BYTES + 1)
    if len(text) > _MOST_TOML_BYTES:
        raise LayoutError(
            f"{os.fspath(path)}: too long for a layout in TOML: it has more than {_MOST_TOML_BYTES:,} bytes"
        )
    return text


def as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    """Check that an argument is a sequence, and return it as a tuple."""
    # A string is a sequence too: its letters would pass as labels if their number is right.
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise LayoutError(f"{name}: given {value!r}, but wanted a sequence")
    return tuple(value)


def _item_id(key: int | str) -> int | str:
    """Read an item ID that was a key in TOML. What is none is left as it is: the checks name it."""
    try:
        return int(key, 0) if isinstance(key, str) else key
    except ValueError:
        return key


# In the TOML of this crate, which has no name of a user before the "=".
_ITEMS_AND_MASKS = re.compile(
    r"^(?:item|mask|payload_item|epoch_item) = [0-9]+$"
    r"|^(?:item|required_items|present_items|payload_items|order|heap_counter) = \[[0-9, \n]*\]$",
    re.MULTILINE,
)
_NUMBER = re.compile(r"\b[0-9]+\b")


class _DefaultLabels(tuple[str, ...]):
    """Labels that nobody gave. They are those of any other tuple."""

    __slots__ = ()
