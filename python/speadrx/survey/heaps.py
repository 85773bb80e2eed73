"""Gather heaps, their items, lengths and senders from SPEAD packets, without a layout."""

from __future__ import annotations

import collections
from dataclasses import dataclass

import numpy as np
import spead2
import spead2.recv

from .decode import Flavour, PacketHeader, decode
from .kinds import NO_DATA, Address, Kind, Stream, sort_into_streams

#: Values of items to keep (8 bytes each). Heaps after that are only counted.
MOST_VALUES = 2**23
#: Limits, so that garbage cannot fill the memory: kinds of heaps, addresses, incomplete heaps, packets of descriptors.
MOST_KINDS = 4096
MOST_ADDRESSES = 65536
MOST_UNFINISHED = 65536
MOST_DESCRIPTOR_PACKETS = 4096
#: The longest heap of descriptors that is accepted, because it is put together in memory.
MOST_DESCRIPTOR_BYTES = 2**20


@dataclass
class Traffic:
    """What came from an address, or went to it."""

    packets: int = 0
    heaps: int = 0
    bytes: int = 0
    #: Packets that do not decode.
    undecodable: int = 0


@dataclass(frozen=True)
class Descriptor:
    """How a sender describes an item."""

    name: str
    description: str
    #: Length of each dimension; None if it is not fixed.
    shape: tuple[int | None, ...]
    #: The numpy dtype; None if numpy has no such type.
    dtype: str | None


@dataclass
class _Unfinished:
    """A heap of which some packets have come, but not all."""

    keys: tuple[int, ...]
    describes: bool
    lacking: int
    offsets: set[int]


class Survey:
    """Gathers what SPEAD packets carry, without a layout.

    The items of a heap are those of the first of its packets to come, as in spead2. Only one thread may use a survey.

    Parameters
    ----------
    most_values
        Values of items to keep (8 bytes each). Heaps after that are counted, but their values are not kept.

    Attributes
    ----------
    packets, bytes
        Packets and their bytes (without the headers of UDP and below), garbage included.
    undecodable
        Packets that spead2 would drop, by reason.
    heaps
        Heaps with a length of which at least one packet came, with any content.
    unsized, empty
        Heaps without a length, and heaps of 0 bytes. A receiver of chunks never sees either.
    stops, descriptors
        Heaps with a stop item; heaps with nothing but descriptors.
    packets_per_heap
        Complete heaps, by their number of packets.
    duplicate_packets
        Packets for a part of a heap that had come before.
    not_repeated
        Packets with other items than the first packet of their heap.
    trailing
        Packets with bytes after their payload. In a capture, this is a sign of segmentation offload.
    unkept
        Heaps that were counted, but whose values were not kept, because there were too many.
    first_time, last_time
        When the first and the last packet came, in seconds.
    senders, destinations
        The traffic of each address. After the first 65536 addresses, ("others", 0) stands for the rest.
    """

    def __init__(self, *, most_values: int = MOST_VALUES) -> None:
        self.packets = 0
        self.bytes = 0
        self.undecodable: collections.Counter[str] = collections.Counter()
        self.heaps = 0
        self.unsized = 0
        self.empty = 0
        self.stops = 0
        self.descriptors = 0
        self.packets_per_heap: collections.Counter[int] = collections.Counter()
        self.duplicate_packets = 0
        self.not_repeated = 0
        self.trailing = 0
        self.unkept = 0
        self.first_time: float | None = None
        self.last_time: float | None = None
        self.senders: dict[Address, Traffic] = {}
        self.destinations: dict[Address, Traffic] = {}
        self._room = most_values
        self._incomplete = 0
        self._kinds: dict[tuple[Address, Flavour, tuple[int, ...]], Kind] = {}
        self._unfinished: dict[tuple[Address, Address, int], _Unfinished] = {}
        self._unsized: set[tuple[Address, Address, int]] = set()
        self._indices: dict[Address, int] = {}
        self._descriptor_packets: list[bytes] = []

    @property
    def seconds(self) -> float:
        """Time from the first packet to the last, in seconds."""
        if self.first_time is None or self.last_time is None:
            return 0.0
        return max(0.0, self.last_time - self.first_time)

    @property
    def incomplete(self) -> int:
        """Heaps with missing packets, including heaps that were still incomplete at the end."""
        return self._incomplete + len(self._unfinished)

    def add(self, time: float, sender: Address, destination: Address, data: bytes, length: int | None = None) -> None:
        """Add a packet.

        Parameters
        ----------
        time
            When it came, in seconds.
        sender, destination
            Host and port that it came from, and that it was sent to.
        data
            The packet; its payload may have been cut off.
        length
            Bytes of the whole packet (default: those of `data`).
        """
        if self.first_time is None:
            self.first_time = time
        self.last_time = time
        self.packets += 1
        size = len(data) if length is None else length
        self.bytes += size
        traffic = (_traffic(self.senders, sender), _traffic(self.destinations, destination))
        for of_address in traffic:
            of_address.packets += 1
            of_address.bytes += size
        header = decode(data, length)
        if isinstance(header, str):
            self.undecodable[header] += 1
            for of_address in traffic:
                of_address.undecodable += 1
            return
        if 8 + 8 * len(header.pointers) + header.payload_bytes < size:
            self.trailing += 1
        heap = (sender, destination, header.heap_cnt)
        if header.heap_bytes is None:
            self._add_unsized(heap)
        elif self._is_first(heap, header, data):
            for of_address in traffic:
                of_address.heaps += 1
            self._add_heap(header, sender, destination)

    def _add_unsized(self, heap: tuple[Address, Address, int]) -> None:
        if heap not in self._unsized:
            self.unsized += 1
            if len(self._unsized) < MOST_UNFINISHED:
                self._unsized.add(heap)

    def _is_first(self, heap: tuple[Address, Address, int], header: PacketHeader, data: bytes) -> bool:
        """Note that a packet came; say whether it is the first of its heap."""
        assert header.heap_bytes is not None
        unfinished = self._unfinished.get(heap)
        describes = (
            unfinished.describes
            if unfinished is not None
            else spead2.DESCRIPTOR_ID in header.pointers and header.heap_bytes <= MOST_DESCRIPTOR_BYTES
        )
        if describes and len(self._descriptor_packets) < MOST_DESCRIPTOR_PACKETS:
            self._descriptor_packets.append(data)
        if unfinished is None:
            if header.payload_bytes == header.heap_bytes:  # it is the only one
                self.packets_per_heap[1] += 1
                return True
            if len(self._unfinished) >= MOST_UNFINISHED:
                del self._unfinished[next(iter(self._unfinished))]
                self._incomplete += 1
            lacking = header.heap_bytes - header.payload_bytes
            self._unfinished[heap] = _Unfinished(tuple(header.pointers), describes, lacking, {header.offset})
            return True
        if header.offset in unfinished.offsets:
            self.duplicate_packets += 1
            return False
        self.not_repeated += not describes and tuple(header.pointers) != unfinished.keys
        unfinished.offsets.add(header.offset)
        unfinished.lacking -= header.payload_bytes
        if unfinished.lacking <= 0:
            self.packets_per_heap[len(unfinished.offsets)] += 1
            del self._unfinished[heap]
        return False

    def _add_heap(self, header: PacketHeader, sender: Address, destination: Address) -> None:
        self.heaps += 1
        flavour, pointers = header.flavour, header.pointers
        keys = tuple(pointers)
        if pointers.get(flavour.immediate | spead2.STREAM_CTRL_ID) == spead2.CTRL_STREAM_STOP:
            self.stops += 1
        elif spead2.DESCRIPTOR_ID in pointers and not {key & ~flavour.immediate for key in keys} - NO_DATA:
            self.descriptors += 1
        elif not header.heap_bytes:
            self.empty += 1
        else:
            kind = self._kinds.get((destination, flavour, keys))
            if self._room < len(keys) or (kind is None and len(self._kinds) >= MOST_KINDS):
                self.unkept += 1
                return
            if kind is None:
                kind = Kind(self._index(destination), flavour, keys)
                self._kinds[destination, flavour, keys] = kind
            self._room -= len(keys)
            kind.values.extend(pointers.values())
            kind.numbers.append(self.heaps)
            kind.senders.append(self._index(sender))

    def _index(self, address: Address) -> int:
        return self._indices.setdefault(address, len(self._indices))

    def heap_bytes(self) -> collections.Counter[int]:
        """Count the heaps whose values were kept, by length.

        Returns
        -------
        collections.Counter
            Heaps by length in bytes.
        """
        lengths: collections.Counter[int] = collections.Counter()
        for kind in self._kinds.values():
            distinct, counts = np.unique(kind.lengths(), return_counts=True)
            for length, heaps in zip(distinct, counts, strict=True):
                lengths[int(length)] += int(heaps)
        return lengths

    def described(self) -> dict[int, Descriptor]:
        """Read the descriptors that came.

        Returns
        -------
        dict of int to Descriptor
            The descriptor of each item, by its ID.
        """
        stream = spead2.recv.Stream(spead2.ThreadPool())
        queue = spead2.InprocQueue()
        for packet in self._descriptor_packets:
            queue.add_packet(packet)
        queue.stop()
        stream.add_inproc_reader(queue)
        found = {}
        for heap in stream:
            for raw in heap.get_descriptors():
                try:
                    item = spead2.Item.from_raw(raw, heap.flavour)
                except (ValueError, TypeError, SyntaxError):  # spead2 does not accept its format
                    continue
                found[item.id] = Descriptor(
                    item.name,
                    item.description,
                    tuple(item.shape),
                    None if item.dtype is None else np.dtype(item.dtype).str,
                )
        return found

    def streams(self) -> list[Stream]:
        """Sort the heaps into streams, largest first.

        The heaps of a stream have the same flavour, length and set of items. Heaps that are rare at their destination
        are left out.

        Returns
        -------
        list of Stream
            Their items, senders and destinations; `propose` proposes a layout for one.
        """
        return sort_into_streams(self._kinds.values(), list(self._indices))


def _traffic(of: dict[Address, Traffic], address: Address) -> Traffic:
    traffic = of.get(address)
    if traffic is None:
        traffic = of.setdefault(address if len(of) < MOST_ADDRESSES else ("others", 0), Traffic())
    return traffic
