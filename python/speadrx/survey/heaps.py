"""Gather heaps, their items, lengths and senders from SPEAD packets, without a layout."""

from __future__ import annotations

import collections
from dataclasses import dataclass

import numpy as np
import spead2
import spead2.recv

from .decode import BEYOND_HEAP, NO_OFFSET, Flavour, PacketHeader, decode
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
    #: The numpy dtype; None if numpy has no such type, or it has fields.
    dtype: str | None
    #: ``"C"`` or ``"F"`` (Fortran): the order of the elements.
    order: str = "C"
    #: Name and numpy dtype of each field of a structure, if its fields are plain and lie side by side.
    fields: tuple[tuple[str, str], ...] | None = None
    #: The type in SPEAD's own words, instead of numpy's: code and bits of each field.
    format: tuple[tuple[str, int], ...] | None = None
    #: Why the type is not understood.
    problem: str | None = None


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
        self._kept = 0
        # Packets that are heaps of their own, though they do not say so, apart from all others: spead2 drops them.
        self._kinds: dict[tuple[Address, Flavour, tuple[int, ...], bool], Kind] = {}
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
            if header in (NO_OFFSET, BEYOND_HEAP):
                self._keep_whole(sender, destination, data, length)
            return
        if 8 + 8 * len(header.pointers) + header.payload_bytes < size:
            self.trailing += 1
        heap = (sender, destination, header.heap_cnt)
        if header.heap_bytes is None:
            self._add_unsized(heap)
            self._keep_whole(sender, destination, data, length)
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
        elif not self._keep(header, sender, destination, whole=False):
            self.unkept += 1

    def _keep_whole(self, sender: Address, destination: Address, data: bytes, length: int | None) -> None:
        """Keep the values of a packet that spead2 drops, as those of a heap."""
        header = decode(data, length, whole=True)
        if not isinstance(header, str) and header.heap_bytes:
            self._keep(header, sender, destination, whole=True)

    def _keep(self, header: PacketHeader, sender: Address, destination: Address, *, whole: bool) -> bool:
        """Keep the values of a heap, if there is room."""
        flavour, keys = header.flavour, tuple(header.pointers)
        kind = self._kinds.get((destination, flavour, keys, whole))
        if self._room < len(keys) or (kind is None and len(self._kinds) >= MOST_KINDS):
            return False
        if kind is None:
            kind = Kind(self._index(destination), flavour, keys, whole)
            self._kinds[destination, flavour, keys, whole] = kind
        self._room -= len(keys)
        self._kept += 1
        kind.values.extend(header.pointers.values())
        kind.bytes.append(header.payload_bytes if whole else header.heap_bytes or 0)
        kind.numbers.append(self._kept)
        kind.senders.append(self._index(sender))
        return True

    def _index(self, address: Address) -> int:
        return self._indices.setdefault(address, len(self._indices))

    def heap_bytes(self) -> collections.Counter[int]:
        """Count the heaps whose values were kept, by the length that they give.

        Returns
        -------
        collections.Counter
            Heaps by length in bytes.
        """
        lengths: collections.Counter[int] = collections.Counter()
        for kind in self._kinds.values():
            if kind.whole:
                continue
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
                except (ValueError, TypeError, SyntaxError) as exc:  # spead2 does not accept its format
                    name = raw.name.decode("ascii", "replace")
                    found[raw.id] = Descriptor(name, "", (), None, problem=str(exc) or type(exc).__name__)
                else:
                    found[item.id] = _descriptor(item)
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


def _descriptor(item: spead2.Item) -> Descriptor:
    shape = tuple(item.shape)
    if item.dtype is None:
        own = tuple((str(code), int(bits)) for code, bits in item.format or ())
        return Descriptor(item.name, item.description, shape, None, format=own)
    dtype = np.dtype(item.dtype)
    if dtype.names is None and dtype.subdtype is None:
        return Descriptor(item.name, item.description, shape, dtype.str, item.order)
    parts = {name: dtype[name] for name in dtype.names or ()}
    plain = all(part.kind in "biufc" for part in parts.values())
    if not parts or not plain or sum(part.itemsize for part in parts.values()) < dtype.itemsize:
        return Descriptor(item.name, item.description, shape, None, item.order, problem=f"its type is {dtype}")
    fields = tuple((name, part.str) for name, part in parts.items())
    return Descriptor(item.name, item.description, shape, None, item.order, fields)


def _traffic(of: dict[Address, Traffic], address: Address) -> Traffic:
    traffic = of.get(address)
    if traffic is None:
        traffic = of.setdefault(address if len(of) < MOST_ADDRESSES else ("others", 0), Traffic())
    return traffic
