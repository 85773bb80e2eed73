"""Gather heaps, their items, lengths and senders from SPEAD packets, without a layout."""

from __future__ import annotations

import builtins
import collections
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import spead2
import spead2.recv

from speadrx import _core
from speadrx.layout.items import SPECIAL_ITEMS

from .capture import MOST_VALUES, Capture
from .kinds import Address, Flavour, Kind, Stream, sort_into_streams
from .values import distinct_of


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


class Survey:
    """Gathers what SPEAD packets carry, without a layout.

    The items of a heap are those of the first of its packets to come that has any. Heaps that share sender and counter
    are told apart by their items, if packets repeat them. Only one thread may use a survey.

    Parameters
    ----------
    most_values
        Values of items to keep (8 bytes each). Heaps after that are counted, but their values are not kept.
    gathered
        What gathers packets, and may have begun.
    """

    def __init__(self, *, most_values: int = MOST_VALUES, gathered: _core.Survey | None = None) -> None:
        self._gathered = _core.Survey(most_values) if gathered is None else gathered
        # The kinds of heaps as they were after so many packets: to take them out means to copy them.
        self._packets_sorted = 0
        self._sorted: list[Kind] = []

    @property
    def packets(self) -> int:
        """Packets, garbage included."""
        return self._gathered.counts["packets"]

    @property
    def bytes(self) -> int:
        """Bytes of the packets, without the headers of UDP and below."""
        return self._gathered.counts["bytes"]

    @property
    def undecodable(self) -> collections.Counter[str]:
        """Packets that spead2 would drop, by reason."""
        return collections.Counter(self._gathered.undecodable)

    @property
    def heaps(self) -> int:
        """Heaps with a length of which at least one packet came, with any content."""
        return self._gathered.counts["heaps"]

    @property
    def unsized(self) -> int:
        """Heaps without a length. A receiver of chunks never sees one."""
        return self._gathered.counts["unsized"]

    @property
    def empty(self) -> int:
        """Heaps of 0 bytes. A receiver of chunks never sees one."""
        return self._gathered.counts["empty"]

    @property
    def stops(self) -> int:
        """Heaps with a stop item."""
        return self._gathered.counts["stops"]

    @property
    def descriptors(self) -> int:
        """Heaps with nothing but descriptors."""
        return self._gathered.counts["descriptors"]

    @property
    def lacking(self) -> collections.Counter[int]:
        """Incomplete heaps, by the bytes that they lack."""
        return collections.Counter(self._gathered.lacking)

    @property
    def packets_per_heap(self) -> collections.Counter[int]:
        """Complete heaps, by their number of packets."""
        return collections.Counter(self._gathered.packets_per_heap)

    @property
    def duplicate_packets(self) -> int:
        """Packets for a part of a heap that had come before."""
        return self._gathered.counts["duplicate_packets"]

    @property
    def not_repeated(self) -> int:
        """Packets with other items than the first packet of their heap."""
        return self._gathered.counts["not_repeated"]

    @property
    def late_items(self) -> int:
        """Heaps whose first packet to come was not the one with the items. spead2 alone does not place them."""
        return self._gathered.counts["late_items"]

    @property
    def trailing(self) -> int:
        """Packets with bytes after their payload."""
        return self._gathered.counts["trailing"]

    @property
    def unkept(self) -> int:
        """Heaps that were counted, but whose values were not kept, because there were too many."""
        return self._gathered.counts["unkept"]

    @property
    def incomplete(self) -> int:
        """Heaps with missing packets, including heaps that were still incomplete at the end."""
        return self._gathered.counts["incomplete"]

    @property
    def first_time(self) -> float | None:
        """When the first packet came, in seconds."""
        times = self._gathered.times
        return None if times is None else times[0]

    @property
    def last_time(self) -> float | None:
        """When the last packet came, in seconds."""
        times = self._gathered.times
        return None if times is None else times[1]

    @property
    def seconds(self) -> float:
        """Time from the first packet to the last, in seconds."""
        first, last = self._gathered.times or (0.0, 0.0)
        return max(0.0, last - first)

    @property
    def senders(self) -> dict[Address, Traffic]:
        """The traffic of each sender. After the first 65536, ("others", 0) stands for the rest."""
        return _traffic(self._gathered.senders)

    @property
    def destinations(self) -> dict[Address, Traffic]:
        """The traffic to each destination. After the first 65536, ("others", 0) stands for the rest."""
        return _traffic(self._gathered.destinations)

    def add(
        self, time: float, sender: Address, destination: Address, data: builtins.bytes, length: int | None = None
    ) -> None:
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
        self._gathered.add(time, sender, destination, data, len(data) if length is None else length)

    def read(self, capture: Capture, most: int | None = None) -> int:
        """Add the next datagrams of a capture. This is much faster than to `add` them one by one.

        Parameters
        ----------
        capture
            The capture, from `speadrx.capture.read_datagrams`.
        most
            Most datagrams to read (default: all).

        Returns
        -------
        int
            How many there were: less than `most` at the end of the capture.

        Raises
        ------
        ValueError
            If the capture is damaged. What came before the damage was added.
        """
        return self._gathered.read(capture.reader, 2**64 - 1 if most is None else most)

    def _kinds(self) -> list[Kind]:
        packets = self.packets
        if self._packets_sorted != packets:
            self._packets_sorted = packets
            self._sorted = [
                Kind(destination, Flavour(bits), keys, whole, *(np.frombuffer(column, np.uint64) for column in columns))
                for destination, bits, keys, whole, *columns in self._gathered.kinds
            ]
        return self._sorted

    def heap_bytes(self) -> collections.Counter[int]:
        """Count the heaps whose values were kept, by the length that they give.

        Returns
        -------
        collections.Counter
            Heaps by length in bytes.
        """
        lengths: collections.Counter[int] = collections.Counter()
        for kind in self._kinds():
            if kind.whole:
                continue
            distinct, _, counts = distinct_of(kind.lengths())
            for length, heaps in zip(distinct, counts, strict=True):
                lengths[int(length)] += int(heaps)
        return lengths

    def item_positions(self, heap_bytes: int) -> tuple[int, ...]:
        """Tell which item is at which position in the packets of heaps.

        Positions are counted as mkrecv and spead2's C++ API count them: without heap counter, heap length, payload
        offset and payload length, as long as these come first.

        Parameters
        ----------
        heap_bytes
            Bytes of the heaps that are asked for.

        Returns
        -------
        tuple of int
            Item ID at each position, from 0, as most of these heaps have them; empty if there was no such heap.
        """
        heaps: collections.Counter[tuple[int, ...]] = collections.Counter()
        for kind in self._kinds():
            if n := int(np.count_nonzero(kind.lengths() == heap_bytes)):
                ids = (key & ~kind.flavour.immediate for key in kind.keys)
                heaps[tuple(itertools.dropwhile(SPECIAL_ITEMS.__contains__, ids))] += n
        return max(heaps, key=heaps.__getitem__, default=())

    def described(self) -> dict[int, Descriptor]:
        """Read the descriptors that came.

        Returns
        -------
        dict of int to Descriptor
            The descriptor of each item, by its ID.
        """
        stream = spead2.recv.Stream(spead2.ThreadPool())
        queue = spead2.InprocQueue()
        for packet in self._gathered.descriptor_packets:
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
        return sort_into_streams(self._kinds(), self._gathered.addresses)


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


def _traffic(counted: Iterable[tuple[Address, tuple[int, int, int, int]]]) -> dict[Address, Traffic]:
    return {address: Traffic(*counts) for address, counts in counted}
