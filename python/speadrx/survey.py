"""What SPEAD packets carry, without a layout: heaps, their items, lengths and senders, gathered packet by packet."""

from __future__ import annotations

import collections
import itertools
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import spead2
import spead2.recv

from .decode import Flavour, Packet, decode
from .packets import SPECIAL_ITEMS

Address = tuple[str, int]

#: Values of items that are kept (8 bytes each); of later heaps only the numbers are counted.
MOST_VALUES = 2**23
#: Bounds on what garbage could blow up: kinds of heaps, addresses, heaps under construction, packets of descriptors.
MOST_KINDS = 4096
MOST_ADDRESSES = 65536
MOST_UNFINISHED = 65536
MOST_DESCRIPTOR_PACKETS = 4096
#: The longest heap of descriptors that is believed: it is put together in memory.
MOST_DESCRIPTOR_BYTES = 2**20

#: A kind of heap is a stream of its own if there are at least so many, of the most frequent at its destination.
_STREAM_SHARE = 0.25
#: Items that belong to no heap's data: padding, descriptors, stream control, and those of SPEAD itself.
_NO_DATA = frozenset((0, *SPECIAL_ITEMS, spead2.DESCRIPTOR_ID, spead2.STREAM_CTRL_ID))
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
    shape: tuple[int | None, ...]
    #: As numpy has it; None where numpy has no such type.
    dtype: str | None


@dataclass
class _Kind:
    """Heaps of one destination whose first packets have the same pointers in the same order."""

    destination: int
    flavour: Flavour
    keys: tuple[int, ...]
    values: array[int] = field(default_factory=lambda: array("Q"))  # a row for each heap
    numbers: array[int] = field(default_factory=lambda: array("Q"))  # which heap of all it was
    senders: array[int] = field(default_factory=lambda: array("Q"))

    def ids(self, immediate: bool) -> frozenset[int]:
        bit = self.flavour.immediate
        return frozenset(key & ~bit for key in self.keys if bool(key & bit) == immediate) - _NO_DATA

    def table(self) -> np.ndarray:
        return np.frombuffer(self.values, np.uint64).reshape(-1, len(self.keys))

    def lengths(self) -> np.ndarray:
        return self.column(spead2.HEAP_LENGTH_ID)

    def column(self, item: int) -> np.ndarray:
        return self.table()[:, self.keys.index(self.flavour.immediate | item)]


@dataclass
class _Unfinished:
    """A heap of several packets, of which some have come."""

    keys: tuple[int, ...]
    describes: bool
    lacking: int
    offsets: set[int]


@dataclass(frozen=True)
class Stream:
    """Heaps that belong together: of one flavour, length and set of items, to one or several destinations.

    Attributes
    ----------
    flavour
        Their flavour.
    heap_bytes
        Bytes of their payload.
    destinations
        Where they were sent to.
    items
        Value of each item with an immediate value, by ID: arrays of uint64 with an element for each heap, in the
        order of their arrival.
    payload_items
        IDs of the items that are in the payload.
    senders, targets
        Where each heap came from (a number for each host and port), and the index of its destination.
    others
        Heaps that went to the same destinations, but have another length, flavour or set of items.
    """

    flavour: Flavour
    heap_bytes: int
    destinations: tuple[Address, ...]
    items: dict[int, np.ndarray]
    payload_items: tuple[int, ...]
    senders: np.ndarray
    targets: np.ndarray
    others: int

    @property
    def heaps(self) -> int:
        """How many heaps there are (of those whose values were kept)."""
        return len(self.senders)


class Survey:
    """Gathers what SPEAD packets carry, without a layout.

    As spead2 does, it takes the items of a heap from the first of its packets that comes.

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
        self._kinds: dict[tuple[Address, Flavour, tuple[int, ...]], _Kind] = {}
        self._unfinished: dict[tuple[Address, Address, int], _Unfinished] = {}
        self._unsized: set[tuple[Address, Address, int]] = set()
        self._indices: dict[Address, int] = {}
        self._descriptor_packets: list[bytes] = []

    @property
    def seconds(self) -> float:
        """Time from the first packet to the last."""
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
        elif spead2.DESCRIPTOR_ID in pointers and not {key & ~flavour.immediate for key in keys} - _NO_DATA:
            self.descriptors += 1
        elif not packet.heap_bytes:
            self.empty += 1
        else:
            kind = self._kinds.get((destination, flavour, keys))
            if self._room < len(keys) or (kind is None and len(self._kinds) >= MOST_KINDS):
                self.unkept += 1
                return
            if kind is None:
                kind = _Kind(self._index(destination), flavour, keys)
                self._kinds[destination, flavour, keys] = kind
            self._room -= len(keys)
            kind.values.extend(pointers.values())
            kind.numbers.append(self.heaps)
            kind.senders.append(self._index(source))

    def _index(self, address: Address) -> int:
        return self._indices.setdefault(address, len(self._indices))

    def heap_bytes(self) -> collections.Counter[int]:
        """How many heaps have each length, of those whose values were kept."""
        lengths: collections.Counter[int] = collections.Counter()
        for kind in self._kinds.values():
            distinct, counts = np.unique(kind.lengths(), return_counts=True)
            for length, heaps in zip(distinct, counts, strict=True):
                lengths[int(length)] += int(heaps)
        return lengths

    def described(self) -> dict[int, Descriptor]:
        """Return what senders said of items, by ID."""
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
        """
        by_destination = sorted(self._kinds.values(), key=lambda kind: kind.destination)
        merged: dict[_Signature, list[int]] = {}
        for destination, kinds in itertools.groupby(by_destination, key=lambda kind: kind.destination):
            for signature in _signatures(list(kinds)):
                merged.setdefault(signature, []).append(destination)
        addresses = list(self._indices)
        streams = []
        for signature, destinations in merged.items():
            theirs = [kind for kind in by_destination if kind.destination in destinations]
            streams.append(_stream(signature, theirs, {index: addresses[index] for index in destinations}))
        return sorted(streams, key=lambda stream: stream.heaps, reverse=True)


def _traffic(of: dict[Address, Traffic], address: Address) -> Traffic:
    traffic = of.get(address)
    if traffic is None:
        traffic = of.setdefault(address if len(of) < MOST_ADDRESSES else ("others", 0), Traffic())
    return traffic


@dataclass(frozen=True)
class _Signature:
    """What the heaps of a stream have in common."""

    flavour: Flavour
    heap_bytes: int
    immediate: frozenset[int]
    payload: frozenset[int]


def _signatures(kinds: list[_Kind]) -> Iterator[_Signature]:
    """The signatures that are frequent at a destination."""
    counts: collections.Counter[_Signature] = collections.Counter()
    for kind in kinds:
        immediate, payload = kind.ids(True), kind.ids(False)
        for length, n in zip(*np.unique(kind.lengths(), return_counts=True), strict=True):
            counts[_Signature(kind.flavour, int(length), immediate, payload)] += int(n)
    most = max(counts.values(), default=0)
    frequent = [signature for signature, n in counts.items() if n >= _STREAM_SHARE * most]
    # Where some heaps of a length have more items than others, they are alike in what all of them have.
    by_size: dict[tuple[Flavour, int], list[_Signature]] = {}
    for signature in frequent:
        by_size.setdefault((signature.flavour, signature.heap_bytes), []).append(signature)
    for (flavour, heap_bytes), alike in by_size.items():
        immediate = frozenset.intersection(*(signature.immediate for signature in alike))
        payload = frozenset.intersection(*(signature.payload for signature in alike))
        if immediate:
            yield _Signature(flavour, heap_bytes, immediate, payload)
        else:
            yield from alike


def _stream(signature: _Signature, kinds: list[_Kind], destinations: dict[int, Address]) -> Stream:
    """Gather the heaps of a signature from all kinds that have its items."""
    parts: list[tuple[_Kind, np.ndarray]] = []
    heaps = 0
    for kind in kinds:
        heaps += len(kind.numbers)
        if kind.flavour == signature.flavour and kind.ids(True) >= signature.immediate:
            rows = np.flatnonzero(kind.lengths() == signature.heap_bytes)
            if rows.size:
                parts.append((kind, rows))
    order = np.argsort(np.concatenate([np.frombuffer(kind.numbers, np.uint64)[rows] for kind, rows in parts]))

    def gather(columns: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(columns)[order]

    return Stream(
        flavour=signature.flavour,
        heap_bytes=signature.heap_bytes,
        destinations=tuple(destinations.values()),
        items={item: gather([kind.column(item)[rows] for kind, rows in parts]) for item in sorted(signature.immediate)},
        payload_items=tuple(sorted(signature.payload)),
        senders=gather([np.frombuffer(kind.senders, np.uint64)[rows] for kind, rows in parts]),
        targets=gather([np.full(rows.size, list(destinations).index(kind.destination)) for kind, rows in parts]),
        others=heaps - int(order.size),
    )
