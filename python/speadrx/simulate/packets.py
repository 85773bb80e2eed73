"""Encode simulated heaps: from the index on each axis to items, and from items and payload to SPEAD packets."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import spead2
import spead2.send

from speadrx.layout.base import DeclarativeLayout
from speadrx.layout.declaration import Axis, Layout, Send
from speadrx.layout.items import SPECIAL_ITEMS, item_name

#: Bytes of an item pointer.
POINTER_BYTES = 8
_MAGIC, _VERSION = 0x53, 4


def axis_size(axis: Axis) -> int:
    """Count the indices of an axis."""
    values = axis.present_items or axis.payload_items or axis.values
    return len(values) if values is not None else axis.size or 0


def axis_index(axis: Axis, item: int) -> int | None:
    """Index on an axis of a heap whose item has this value; None if the heap misses the axis."""
    value = item >> axis.shift
    if axis.mask is not None:
        value &= axis.mask
    if axis.values is not None:
        return axis.values.index(value) if value in axis.values else None
    index, remainder = divmod(value, axis.step)
    return index if not remainder and index < axis_size(axis) else None


def axis_items(axes: Sequence[Axis], indices: Sequence[int]) -> dict[int, int]:
    """Values of the items that place a heap on the axes. The bits of one item may hold several axes.

    Raises
    ------
    ValueError
        If the bits of axes that share an item overlap, so that reading the item gives another index.
    """
    items: dict[int, int] = {}
    for axis, index in zip(axes, indices, strict=True):
        if axis.present_items is not None:
            items.setdefault(axis.present_items[index], 0)
        elif axis.item is not None:
            value = index * axis.step if axis.values is None else axis.values[index]
            items[axis.item] = items.get(axis.item, 0) | value << axis.shift
    for axis, index in zip(axes, indices, strict=True):
        if axis.item is not None and axis_index(axis, items[axis.item]) != index:
            raise ValueError(
                f"axis {axis.name!r}: item {axis.item:#x} is {items[axis.item]:#x} for index {index}, but that value "
                "stands for another index: the bits of axes that share an item must not overlap"
            )
    return items


def check_arguments(
    layout: DeclarativeLayout, user_data: Mapping[str, int], side_values: Iterable[str], jitter: int
) -> None:
    """Refuse arguments of a simulator that do not fit the layout, and layouts that cannot be simulated.

    Raises
    ------
    ValueError
        The message names the argument, or the axis, and its value.
    """
    declaration = layout.declaration
    time, axes = declaration.time, declaration.axes
    if jitter and not (time.align in ("floor", "mask") and 0 < jitter < time.step):
        raise ValueError(
            f"timestamp_jitter: {jitter} must be less than the time step ({time.step}), "
            'and the layout\'s time axis must have align="mask" or "floor"'
        )
    names = [item.name for item in declaration.side_items]
    for name in side_values:
        if name not in names:
            raise ValueError(f"side_values: the layout has no side item {name!r} (it has {names})")
    known = sorted(set(layout.user_data_dtype.names or ()) - {"stats_base"})
    for name in user_data:
        if name not in known:
            raise ValueError(f"user_data: {name!r} is not a field that the layout reads (it reads {known})")
    named = [(axis.name, axis.item) for axis in axes]
    for name, item in [*named, *((side.name, side.item) for side in declaration.side_items)]:
        if isinstance(item, str):
            raise ValueError(f"{name}: {item!r} is added to packets, and cannot be simulated")
    for axis in axes:
        if axis.payload_items is not None:
            raise ValueError(f"axis {axis.name!r}: payload items cannot be simulated")
        if axis.item in time.items:
            raise ValueError(f"axis {axis.name!r}: shares item {axis.item:#x} with the time, which cannot be simulated")
        if axis.from_user_data is not None:
            index = user_data.get(axis.from_user_data)
            if index is None:
                raise ValueError(f"user_data: has no {axis.from_user_data!r}, the index on axis {axis.name!r}")
            if not 0 <= index < axis_size(axis):
                raise ValueError(
                    f"user_data: {axis.from_user_data!r} is {index}, but must be from 0 to {axis_size(axis) - 1}"
                )


class PacketEncoder:
    """Makes the packets of one stream's heaps, and numbers the heaps.

    Parameters
    ----------
    flavour
        SPEAD flavour.
    payload_item
        ID of the item that points to the payload.
    max_packet_size
        Largest size of a packet in bytes, including SPEAD header and items.
    like
        What the instrument does otherwise than most: order of items, items left out, items in the first packet only.
    encodings
        How the values of some items are written, by ID, as in `Packets`: those that are too long are addressed.

    Raises
    ------
    ValueError
        If the payload item is one of the SPEAD protocol's own, or its ID does not fit the flavour.
    """

    def __init__(
        self,
        flavour: spead2.Flavour,
        payload_item: int,
        max_packet_size: int,
        like: Send | None = None,
        encodings: Mapping[int, str] | None = None,
    ) -> None:
        self._flavour = flavour
        self._payload_item = payload_item
        self._max_packet_size = max_packet_size
        self._like = Send() if like is None else like
        self._encodings = dict(encodings or {})
        #: Numbers the heaps.
        self.numbers = itertools.count(1)
        #: Bits of an immediate value.
        self.address_bits = flavour.heap_address_bits
        id_limit = 1 << (63 - self.address_bits)
        if not spead2.STREAM_CTRL_ID < payload_item < id_limit:
            raise ValueError(
                f"payload_item: {payload_item:#x} does not fit flavour 64-{self.address_bits} "
                f"(IDs above {spead2.STREAM_CTRL_ID:#x}, below {id_limit:#x})"
            )

    def heap(
        self,
        items: Mapping[int, int],
        payload: bytes | memoryview,
        *,
        sized: bool = True,
        payload_item: int | None = None,
        number: int | None = None,
    ) -> list[bytes]:
        """Encode a heap.

        Parameters
        ----------
        items
            Value of each item, by ID, without those of the SPEAD protocol itself, except the heap counter (1): without
            it, heaps are numbered.
        payload
            Payload.
        sized
            Whether the packets say how long the heap is.
        payload_item
            ID of the item that points to the payload, if it is not that of all heaps.
        number
            Number of the heap, if it is not the next.

        Raises
        ------
        ValueError
            If an item does not fit the flavour or is the payload item, or if the items leave no room in a packet.
        """
        payload_item = self._payload_item if payload_item is None else payload_item
        if payload_item in items:
            raise ValueError(f"payload_item: {payload_item:#x} is the ID of another item of the heap")
        absent = {*self._like.omit} if sized else {*self._like.omit, spead2.HEAP_LENGTH_ID}
        items, behind = self._encoded(items)
        pointers = self._pointers(items, payload_item, {item: len(payload) + at for item, at in behind[1].items()})
        payload = b"".join((payload, behind[0])) if behind[0] else payload
        header_bytes = POINTER_BYTES * (1 + len(pointers) + len(SPECIAL_ITEMS) - len(absent))
        # Multiples of 8 keep the payload of each packet aligned, as spead2's own sender does.
        room = (self._max_packet_size - header_bytes) // POINTER_BYTES * POINTER_BYTES
        if room <= 0:
            raise ValueError(
                f"max_packet_size: {self._max_packet_size} has no room for payload after {header_bytes} bytes of items"
            )
        number = next(self.numbers) if number is None else number
        packets = []
        for offset in range(0, max(len(payload), 1), room):
            part = payload[offset : offset + room]
            special = {
                spead2.HEAP_CNT_ID: items.get(spead2.HEAP_CNT_ID, number) % (1 << self.address_bits),
                spead2.HEAP_LENGTH_ID: len(payload),
                spead2.PAYLOAD_OFFSET_ID: offset,
                spead2.PAYLOAD_LENGTH_ID: len(part),
            }
            first = [self._immediate(item, value) for item, value in special.items() if item not in absent]
            packets.append(b"".join((self._header(first + pointers), part)))
            if not self._like.repeat_items:
                pointers = []
        return packets

    def _immediate(self, item: int, value: int) -> int:
        """Make the pointer of an item that holds its value."""
        return 1 << 63 | item << self.address_bits | value

    def _encoded(self, items: Mapping[int, int]) -> tuple[Mapping[int, int], tuple[bytes, dict[int, int]]]:
        """Write values as the instrument does: those of items, and the bytes of addressed ones, with their places."""
        behind, places, immediate = b"", {}, dict(items)
        for item, encoding in self._encodings.items():
            if item not in items:
                continue
            data = items[item].to_bytes(int(encoding[-1]), "little" if encoding[0] == "<" else "big")
            if len(data) * 8 > self.address_bits:
                places[item] = len(behind)
                behind += data
                del immediate[item]
            else:
                immediate[item] = int.from_bytes(data, "big")
        return immediate, (behind, places)

    def _pointers(self, items: Mapping[int, int], payload_item: int, addressed: Mapping[int, int]) -> list[int]:
        """Make the pointers of a heap's items, in the order in which the instrument has them."""
        value_limit, id_limit = 1 << self.address_bits, 1 << (63 - self.address_bits)
        pointers = {}
        for item, value in items.items():
            if not (0 < item < id_limit and 0 <= value < value_limit):
                raise ValueError(
                    f"item {item:#x} with the value {value:#x} does not fit flavour 64-{self.address_bits} "
                    f"(IDs below {id_limit:#x}, values below {value_limit:#x})"
                )
            if item != spead2.HEAP_CNT_ID:
                pointers[item] = self._immediate(item, value)
        # By address: the data of an item end where those of the next begin.
        pointers[payload_item] = payload_item << self.address_bits
        pointers |= {item: item << self.address_bits | at for item, at in addressed.items()}
        ordered = [pointers.pop(item) for item in self._like.order if item in pointers]
        return ordered + list(pointers.values())

    def _header(self, pointers: Sequence[int]) -> bytes:
        address_bytes = self.address_bits // 8
        widths = (POINTER_BYTES - address_bytes, address_bytes)
        return struct.pack(f">BBBBHH{len(pointers)}Q", _MAGIC, _VERSION, *widths, 0, len(pointers), *pointers)

    def stop(self) -> list[bytes]:
        """Encode a heap that ends the stream."""
        heap = spead2.send.Heap(self._flavour)
        heap.add_end()
        return self._encode(heap)

    def descriptor(self, heap_bytes: int) -> list[bytes]:
        """Encode a heap with nothing but a descriptor of the payload."""
        heap = spead2.send.Heap(self._flavour)
        heap.add_descriptor(spead2.Descriptor(self._payload_item, "data", "simulated payload", (heap_bytes,), np.uint8))
        return self._encode(heap)

    def descriptors(self, items: Iterable[int], layout: Layout) -> list[bytes]:
        """Encode a heap with a descriptor of each item, and of the payload as the layout has it."""
        heap = spead2.send.Heap(self._flavour)
        names = {item: item_name(item) or f"item_{item:x}" for item in (*items, self._payload_item)}
        for item in items:
            if item not in SPECIAL_ITEMS:
                unsigned = [("u", self.address_bits)]
                heap.add_descriptor(spead2.Descriptor(item, names[item], "", (), format=unsigned))
        contents = layout._contents
        packing = contents.element.packing
        kind: dict[str, Any] = {"dtype": contents.element.dtype}
        if packing is not None:
            kind = {"format": [("i" if packing.signed else "u", packing.bits)]}
        name = names[self._payload_item]
        heap.add_descriptor(spead2.Descriptor(self._payload_item, name, "", contents.shape, **kind))
        return self._encode(heap)

    def _encode(self, heap: spead2.send.Heap) -> list[bytes]:
        return list(spead2.send.PacketGenerator(heap, next(self.numbers), self._max_packet_size))
