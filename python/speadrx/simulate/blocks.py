"""Packets by the hundred: headers that are made once and changed in place, and payload that packets share."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .packets import POINTER_BYTES, PacketEncoder

#: A packet to be sent: its flow (the position of its heap in the batch), and its bytes.
Packet: TypeAlias = tuple[int, bytes]
#: A packet, or one to be made when many are: flow, number of the heap, batch, and number of the packet in the heap.
Made: TypeAlias = Packet | tuple[int, int, int, int]
#: Stands for all packets of a heap.
WHOLE = -1
#: Where a packet is: begin and length of its header and of its part of the payload, and its flow.
PLACE = np.dtype([(name, np.uint64) for name in ("header", "header_bytes", "payload", "payload_bytes", "flow")])


@dataclass(frozen=True)
class Packets:
    """Packets, each of a header and a part of the payload.

    Attributes
    ----------
    headers, payload
        Memory that holds all headers, and memory that holds all payload.
    places
        Where each packet is in them, an array of `PLACE`.
    """

    headers: Any
    payload: Any
    places: np.ndarray

    @classmethod
    def whole(cls, packets: Sequence[Any]) -> Packets:
        """Packets that are bytes."""
        places = np.zeros(len(packets), PLACE)
        places["flow"] = [flow for flow, _ in packets]
        places["header_bytes"] = [len(packet) for _, packet in packets]
        places["header"] = np.cumsum(places["header_bytes"]) - places["header_bytes"]
        return cls(b"".join([packet for _, packet in packets]), b"", places)

    @property
    def sizes(self) -> np.ndarray:
        """The bytes of each."""
        sizes: np.ndarray = self.places["header_bytes"] + self.places["payload_bytes"]
        return sizes

    @property
    def memory(self) -> tuple[Any, Any, Any]:
        """What the core needs to know."""
        return self.headers, self.payload, self.places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, some: slice | np.ndarray) -> Packets:
        return Packets(self.headers, self.payload, self.places[some])

    def __iter__(self) -> Iterator[Packet]:
        headers, payload = memoryview(self.headers).cast("B"), memoryview(self.payload)
        for begin, n_header, part, n_part, flow in self.places.tolist():
            yield flow, b"".join((headers[begin : begin + n_header], payload[part : part + n_part]))


class Templates:
    """The headers of the packets of all heaps of a batch. The values of some items are written into copies of them.

    Parameters
    ----------
    encoder
        Makes the packets of heaps.
    heaps
        The items of each heap of a batch, by ID, and the ID of its payload if it has one of its own.
    heap_bytes
        Bytes of the payload.
    changing
        IDs of the items that are written.

    Raises
    ------
    ValueError
        If a heap cannot be encoded, or not all have these items in the same places.
    """

    def __init__(
        self,
        encoder: PacketEncoder,
        heaps: Sequence[tuple[Mapping[int, int], int | None]],
        heap_bytes: int,
        changing: Iterable[int],
    ) -> None:
        self._bits = encoder.address_bits
        made = [encoder.heap(items, bytes(heap_bytes), payload_item=payload, number=0) for items, payload in heaps]
        #: Packets of a heap.
        self.n_packets = len(made[0])
        lengths = [[_header_bytes(packet) for packet in packets] for packets in made]
        words = max(map(max, lengths)) // POINTER_BYTES
        self._headers = np.zeros((len(made), self.n_packets, words), ">u8")
        for flow, packets in enumerate(made):
            for k, packet in enumerate(packets):
                n = lengths[flow][k] // POINTER_BYTES
                self._headers[flow, k, :n] = np.frombuffer(packet, ">u8", n)
        self._places = np.zeros((len(made), self.n_packets), PLACE)
        self._places["flow"] = np.arange(len(made))[:, np.newaxis]
        self._places["header_bytes"] = lengths
        for packets, places in zip(made, self._places, strict=True):
            places["payload_bytes"] = [len(packet) for packet in packets] - places["header_bytes"]
            places["payload"] = np.cumsum(places["payload_bytes"]) - places["payload_bytes"]

        self._columns = {item: self._column(item) for item in changing}

    def _column(self, item: int) -> np.ndarray:
        """Find the word that has an item's value, in each packet of a heap; 0 in packets without the item."""
        found = self._headers >> np.uint64(self._bits) == 1 << 63 - self._bits | item
        columns = np.where(found.any(axis=2), found.argmax(axis=2), 0)
        if (columns != columns[0]).any() or not columns.any():
            raise ValueError(f"item {item:#x}: is not in the same place in all heaps")
        first: np.ndarray = columns[0]
        return first

    def packets(
        self,
        flows: np.ndarray,
        parts: np.ndarray,
        values: Mapping[int, np.ndarray],
        begins: np.ndarray,
        payload: Any,
        ready: Mapping[int, Packet],
    ) -> Packets:
        """Make packets.

        Parameters
        ----------
        flows, parts
            For each packet, the flow of its heap, and its number in the heap; or `WHOLE` for all packets of a heap.
        values
            For each of these, the value of some items, by ID.
        begins
            For each of these, where the payload of its heap begins.
        payload
            The memory of the payload.
        ready
            Packets that come among these, by their position.
        """
        is_ready = np.zeros(len(flows) + len(ready), bool)
        is_ready[list(ready)] = True
        is_whole = parts == WHOLE
        if is_whole.any():
            counts = np.where(is_whole, self.n_packets, 1)
            all_counts = np.ones(len(is_ready), np.intp)
            all_counts[~is_ready] = counts
            is_ready = np.repeat(is_ready, all_counts)
            index = np.repeat(np.arange(len(flows)), counts)
            first = np.cumsum(counts) - counts
            parts = np.where(is_whole[index], np.arange(len(index)) - first[index], parts[index])
            flows, begins = flows[index], begins[index]
            values = {item: value[index] for item, value in values.items()}
        headers = self._filled(flows, parts, values)
        places = self._places[flows, parts]
        places["header"] = np.arange(len(places), dtype=np.uint64) * np.uint64(headers.shape[1] * POINTER_BYTES)
        places["payload"] += begins
        if not ready:
            return Packets(headers, payload, places)
        whole = Packets.whole(list(ready.values()))
        whole.places["header"] += headers.nbytes
        both = np.empty(len(is_ready), PLACE)
        both[~is_ready], both[is_ready] = places, whole.places
        return Packets(headers.tobytes() + whole.headers, payload, both)

    def _filled(self, flows: np.ndarray, parts: np.ndarray, values: Mapping[int, np.ndarray]) -> np.ndarray:
        """Copies of headers, with values of items written into them."""
        headers: np.ndarray = self._headers[flows, parts]
        for item, value in values.items():
            columns = self._columns[item]
            pointers = value | np.uint64((1 << 63 - self._bits | item) << self._bits)
            if (columns == columns[0]).all():
                headers[:, columns[0]] = pointers
            else:
                (has,) = np.nonzero(columns[parts])
                headers[has, columns[parts[has]]] = pointers[has]
        return headers


def split(made: Sequence[Made]) -> tuple[dict[int, Packet], Sequence[tuple[int, int, int, int]]]:
    """Part packets that are bytes, by position, from those that are to be made."""
    ready: dict[int, Any] = {i: packet for i, packet in enumerate(made) if len(packet) == 2}
    left: Any = [packet for packet in made if len(packet) == 4] if ready else made
    return ready, left


def _header_bytes(packet: bytes) -> int:
    n_items: int = struct.unpack_from(">H", packet, POINTER_BYTES - 2)[0]
    return POINTER_BYTES * (1 + n_items)
