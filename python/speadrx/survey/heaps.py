"""What SPEAD packets carry, without a layout: heaps, their items, lengths and senders, gathered packet by packet."""

from __future__ import annotations

import collections
from dataclasses import dataclass

import numpy as np
import spead2
import spead2.recv

from .decode import Flavour, Packet, decode
from .kinds import NO_DATA, Address, Kind, Stream, sort_into_streams

#: Values of items that are kept (8 bytes each); of later heaps only the numbers are counted.
MOST_VALUES = 2**23
#: Bounds on what garbage could blow up: kinds of heaps, addresses, heaps under construction, packets of descriptors.
MOST_KINDS = 4096
MOST_ADDRESSES = 65536
MOST_UNFINISHED = 65536
MOST_DESCRIPTOR_PACKETS = 4096
#: The longest heap of descriptors that is believed: it is put together in memory.
MOST_DESCRIPTOR_BYTES = 2**20

_STOP = 2


@dataclass
class Traffic:
    """What came from or went to an address."""

    packets: int = 0
    heaps: int = 0
    bytes: int = 0
    #: Packets that are not SPEAD, or not whole.
    undecodable: int = 0


@dataclass(frozen=True)
class Descriptor:
    """What a sender says of an item."""

    name: str
    description: str
    #: None for a dimension of which the length is not fixed.
    shape: tuple[int | None, ...]
    #: As numpy has it; None where numpy has no such type.
    dtype: str | None


@dataclass
class _Unfinished:
    """A heap of several packets, of which some have come."""

    keys: tuple[int, ...]
    describes: bool
    lacking: int
    offsets: set[int]


class Survey:
    """Gathers what SPEAD packets carry, without a layout.

    As spead2 does, it takes the items of a heap from the first of its packets that comes. Used by one thread at a time.

    Parameters
    ----------
    most_values
        Values of items to keep (8 bytes each); later heaps are counted, but their values are not kept.

    Attributes
    ----------
    packets, bytes
        Packets and their bytes (without UDP and lower headers), garbage included.
    undecodable
        Packets that spead2 would drop, by the reason.
    heaps
        Heaps with a length, whatever they hold, of which at least one packet came.
    unsized, empty
        Heaps that do not say how long they are, or that they are of 0 bytes: no receiver of chunks sees them.
    stops, descriptors
        Heaps that end a stream; heaps that hold nothing but descriptors.
    packets_per_heap
        How many heaps were complete with that many packets.
    duplicate_packets
        Packets of a part of a heap that was there already.
    not_repeated
        Packets that have other items than the packet of their heap that came first.
    trailing
        Packets that have bytes behind their payload: what segmentation offload looks like in a capture.
    unkept
        Heaps that were counted, but whose values were not kept, as there were too many.
    first_time, last_time
        When the first and the last packet came, in seconds.
    senders, destinations
        The traffic of each address; ("others", 0) stands for those beyond the first 65536.
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
        """Heaps of which packets are missing (those that go on when the packets end included)."""
        return self._incomplete + len(self._unfinished)

    def add(self, time: float, source: Address, destination: Address, data: bytes, length: int | None = None) -> None:
        """Take a packet.

        Parameters
        ----------
        time
            When it came, in seconds.
        source, destination
            Host and port that it came from, and went to.
        data
            The packet; its payload may have been cut off.
        length
            Bytes that it had when it was whole (default: those of `data`).
        """
        if self.first_time is None:
            self.first_time = time
        self.last_time = time
        self.packets += 1
        size = len(data) if length is None else length
        self.bytes += size
        sender, target = _traffic(self.senders, source), _traffic(self.destinations, destination)
        for traffic in (sender, target):
            traffic.packets += 1
            traffic.bytes += size
        packet = decode(data, length)
        if isinstance(packet, str):
            self.undecodable[packet] += 1
            sender.undecodable += 1
            target.undecodable += 1
            return
        if 8 + 8 * len(packet.pointers) + packet.payload_bytes < size:
            self.trailing += 1
        heap = (source, destination, packet.heap_cnt)
        if packet.heap_bytes is None:
            self._add_unsized(heap)
        elif self._is_first(heap, packet, data):
            sender.heaps += 1
            target.heaps += 1
            self._add_heap(packet, source, destination)

    def _add_unsized(self, heap: tuple[Address, Address, int]) -> None:
        if heap not in self._unsized:
            self.unsized += 1
            if len(self._unsized) < MOST_UNFINISHED:
                self._unsized.add(heap)

    def _is_first(self, heap: tuple[Address, Address, int], packet: Packet, data: bytes) -> bool:
        """Whether a packet is the first of its heap; notes that it came."""
        assert packet.heap_bytes is not None
        unfinished = self._unfinished.get(heap)
        describes = (
            unfinished.describes
            if unfinished is not None
            else spead2.DESCRIPTOR_ID in packet.pointers and packet.heap_bytes <= MOST_DESCRIPTOR_BYTES
        )
        if describes and len(self._descriptor_packets) < MOST_DESCRIPTOR_PACKETS:
            self._descriptor_packets.append(data)
        if unfinished is None:
            if packet.payload_bytes == packet.heap_bytes:  # it is the only one
                self.packets_per_heap[1] += 1
                return True
            if len(self._unfinished) >= MOST_UNFINISHED:
                del self._unfinished[next(iter(self._unfinished))]
                self._incomplete += 1
            lacking = packet.heap_bytes - packet.payload_bytes
            self._unfinished[heap] = _Unfinished(tuple(packet.pointers), describes, lacking, {packet.offset})
            return True
        if packet.offset in unfinished.offsets:
            self.duplicate_packets += 1
            return False
        self.not_repeated += not describes and tuple(packet.pointers) != unfinished.keys
        unfinished.offsets.add(packet.offset)
        unfinished.lacking -= packet.payload_bytes
        if unfinished.lacking <= 0:
            self.packets_per_heap[len(unfinished.offsets)] += 1
            del self._unfinished[heap]
        return False

    def _add_heap(self, packet: Packet, source: Address, destination: Address) -> None:
        self.heaps += 1
        flavour, pointers = packet.flavour, packet.pointers
        keys = tuple(pointers)
        if pointers.get(flavour.immediate | spead2.STREAM_CTRL_ID) == _STOP:
            self.stops += 1
        elif spead2.DESCRIPTOR_ID in pointers and not {key & ~flavour.immediate for key in keys} - NO_DATA:
            self.descriptors += 1
        elif not packet.heap_bytes:
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
            kind.senders.append(self._index(source))

    def _index(self, address: Address) -> int:
        return self._indices.setdefault(address, len(self._indices))

    def heap_bytes(self) -> collections.Counter[int]:
        """Count the heaps whose values were kept, by their length.

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
        """Read the descriptors that senders have sent.

        Returns
        -------
        dict of int to Descriptor
            What was said of each item, by its ID.
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
                except (ValueError, TypeError, SyntaxError):  # of a format that spead2 does not take
                    continue
                found[item.id] = Descriptor(
                    item.name,
                    item.description,
                    tuple(item.shape),
                    None if item.dtype is None else np.dtype(item.dtype).str,
                )
        return found

    def streams(self) -> list[Stream]:
        """Sort the heaps into streams, that of the most heaps first.

        A stream has the heaps of one flavour, length and set of items. What is rare at a destination makes no stream.

        Returns
        -------
        list of Stream
            Their items, senders and destinations; `propose` makes a layout of one.
        """
        return sort_into_streams(self._kinds.values(), list(self._indices))


def _traffic(of: dict[Address, Traffic], address: Address) -> Traffic:
    traffic = of.get(address)
    if traffic is None:
        traffic = of.setdefault(address if len(of) < MOST_ADDRESSES else ("others", 0), Traffic())
    return traffic
