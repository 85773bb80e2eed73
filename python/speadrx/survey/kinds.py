"""Sort heaps into streams: those that are alike, to one or several destinations."""

from __future__ import annotations

import collections
import dataclasses
import functools
import ipaddress
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import spead2

from speadrx.layout.items import SPECIAL_ITEMS

from .values import distinct_of

Address = tuple[str, int]

#: Items that are not data: padding, descriptors, stream control, and the items that SPEAD adds to every packet.
NO_DATA = frozenset((0, *SPECIAL_ITEMS, spead2.DESCRIPTOR_ID, spead2.STREAM_CTRL_ID))
#: Heaps that are alike make a stream if they are at least this fraction of the most frequent at their destination.
_STREAM_SHARE = 0.25
#: At least so many heaps of a stream must have an item before it can be one of several.
_LEAST_OF_EACH = 3


class Flavour(NamedTuple):
    """How the pointers of a packet are divided: ``64-address_bits``.

    A pointer has an immediate bit, the ID of its item, and a value of `address_bits` bits. With the immediate bit, it
    holds the value of the item; without, the value is an offset in the payload. The immediate bit and the ID together
    are called the key of the pointer here.
    """

    #: Bits of an immediate value or an offset.
    address_bits: int

    def __str__(self) -> str:
        return f"64-{self.address_bits}"

    @property
    def immediate(self) -> int:
        """The immediate bit of a key."""
        return 1 << (63 - self.address_bits)


@dataclass
class Kind:
    """Heaps of one destination whose first packets have the same pointers in the same order."""

    destination: int
    flavour: Flavour
    keys: tuple[int, ...]
    #: Whether each is a packet that was taken as a whole heap, because spead2 drops it as it is.
    whole: bool
    values: np.ndarray  # a row for each heap
    bytes: np.ndarray  # of the payload of each heap
    numbers: np.ndarray  # position of each heap among all heaps
    senders: np.ndarray

    @functools.cached_property
    def immediate(self) -> frozenset[int]:
        """IDs of the data items with immediate values."""
        bit = self.flavour.immediate
        return frozenset(key & ~bit for key in self.keys if key & bit) - NO_DATA

    @functools.cached_property
    def payload(self) -> frozenset[int]:
        """IDs of the data items in the payload."""
        return frozenset(key for key in self.keys if not key & self.flavour.immediate) - NO_DATA

    def table(self) -> np.ndarray:
        """Values of all pointers: a row for each heap."""
        return self.values.reshape(-1, len(self.keys))

    def lengths(self) -> np.ndarray:
        """Bytes of each heap."""
        return self.bytes

    @property
    def mixed(self) -> bool:
        """Whether heaps have descriptors beside the one item that is their data."""
        return spead2.DESCRIPTOR_ID in self.keys and len(self.payload) == 1

    def data_bytes(self) -> np.ndarray:
        """Bytes of the data in each heap: without descriptors."""
        if not self.mixed:
            return self.lengths()
        (item,) = self.payload
        table, end = self.table(), self.lengths()
        start = table[:, self.keys.index(item)]
        for position, key in enumerate(self.keys):
            if not key & self.flavour.immediate and key != item:
                place = table[:, position]
                end = np.where((place > start) & (place < end), place, end)
        return np.where(end > start, end - start, 0)

    def column(self, item: int) -> np.ndarray:
        """Immediate values of an item, by its ID; 0 if heaps lack it."""
        key = self.flavour.immediate | item
        return self.table()[:, self.keys.index(key)] if key in self.keys else np.zeros(len(self.numbers), np.uint64)


@dataclass(frozen=True)
class OneOf:
    """Items of which each heap has exactly one.

    Attributes
    ----------
    items
        Their IDs.
    which
        The ID of the one that each heap has; 0 if it has none.
    values
        Its immediate value; its place in the payload if it has none.
    """

    items: tuple[int, ...]
    which: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Stream:
    """Heaps that belong together: with one flavour, length and set of items, to one or several destinations.

    Attributes
    ----------
    flavour
        Flavour of the heaps.
    heap_bytes
        Bytes of the data of each heap: of all payload but for descriptors beside the data.
    destinations
        Hosts and ports that they were sent to.
    items
        Values of each item with an immediate value, by ID: arrays of uint64 with an element for each heap, in the
        order in which the heaps came.
    payload_items
        IDs of the items in the payload.
    senders, targets
        For each heap, a number for the host and port of its sender, and the index of its destination.
    others
        Heaps to the same destinations with another length, flavour or set of items.
    counters
        The heap counter of each heap.
    one_of, payload_one_of
        Items with an immediate value, and items in the payload, of which each heap has one; None if there are no such.
    whole
        Whether each heap is a packet that spead2 drops as it is, because it does not say that it is a heap.
    several
        Whether heaps have several packets.
    mixed
        Whether some heaps have descriptors beside their data.
    sender_ids
        For each heap, the IPv4 address and the port of its sender as one number; None if they have other addresses.
    """

    flavour: Flavour
    heap_bytes: int
    destinations: tuple[Address, ...]
    items: dict[int, np.ndarray]
    payload_items: tuple[int, ...]
    senders: np.ndarray
    targets: np.ndarray
    others: int
    counters: np.ndarray | None = None
    one_of: OneOf | None = None
    payload_one_of: OneOf | None = None
    whole: bool = False
    several: bool = False
    mixed: bool = False
    sender_ids: np.ndarray | None = None

    @property
    def heaps(self) -> int:
        """Number of heaps whose values were kept."""
        return len(self.senders)


def sort_into_streams(kinds: Iterable[Kind], addresses: list[Address]) -> list[Stream]:
    """Sort kinds of heaps into streams, largest first; `addresses` has the destinations by number."""
    by_destination = sorted(kinds, key=lambda kind: kind.destination)
    merged: dict[_Signature, list[int]] = {}
    for destination, theirs in itertools.groupby(by_destination, key=lambda kind: kind.destination):
        for signature in _signatures(list(theirs)):
            merged.setdefault(signature, []).append(destination)
    streams = []
    for signature, destinations in merged.items():
        candidates = [kind for kind in by_destination if kind.destination in destinations]
        stream = _stream(signature, candidates, {index: addresses[index] for index in destinations})
        streams.append(dataclasses.replace(stream, sender_ids=sender_ids(stream.senders, addresses)))
    return sorted(streams, key=lambda stream: stream.heaps, reverse=True)


def sender_ids(senders: np.ndarray, addresses: list[Address]) -> np.ndarray | None:
    """The addresses of senders as numbers, if all are of IPv4."""
    distinct, index, _ = distinct_of(senders)
    try:
        hosts = [int(ipaddress.IPv4Address(addresses[number][0])) for number in distinct]
    except ValueError:
        return None
    numbers = [host << 16 | addresses[number][1] for host, number in zip(hosts, distinct, strict=True)]
    found: np.ndarray = np.array(numbers, np.uint64)[index]
    return found


@dataclass(frozen=True)
class _Set:
    """Items of a stream: those that all heaps have, and those of which each heap has one."""

    common: frozenset[int]
    one_of: frozenset[int] = frozenset()

    @classmethod
    def of(cls, sets: Mapping[frozenset[int], int]) -> _Set:
        """Find them in the sets of items that heaps have, with the number of heaps."""
        common = frozenset.intersection(*sets)
        rests = [(one - common, heaps) for one, heaps in sets.items()]
        # Of items that always come together, one will do.
        one_of = frozenset(min(rest) for rest, _ in rests if rest)
        apart = sum(len(rest) for rest, _ in rests) == len(frozenset().union(*(rest for rest, _ in rests)))
        if len(one_of) < len(rests) or len(rests) < 2 or not apart or min(sets.values()) < _LEAST_OF_EACH:
            one_of = frozenset()
        return cls(common, one_of)

    def __bool__(self) -> bool:
        return bool(self.common or self.one_of)

    def which(self, items: frozenset[int]) -> int | None:
        """Which of the items of which there is one is among these; None if none is, or several are."""
        found = self.one_of & items
        return next(iter(found)) if len(found) == 1 else None


@dataclass(frozen=True)
class _Signature:
    """What the heaps of a stream have in common."""

    flavour: Flavour
    whole: bool
    heap_bytes: int
    immediate: _Set
    payload: _Set


def _signatures(kinds: list[Kind]) -> Iterator[_Signature]:
    """The signatures that are frequent among the kinds of a destination."""
    counts: collections.Counter[tuple[tuple[Flavour, bool, int], frozenset[int], frozenset[int]]]
    counts = collections.Counter()
    for kind in kinds:
        for length, n in zip(*distinct_of(kind.data_bytes())[::2], strict=True):
            counts[(kind.flavour, kind.whole, int(length)), kind.immediate, kind.payload] += int(n)
    most = max(counts.values(), default=0)
    by_size: dict[tuple[Flavour, bool, int], dict[tuple[frozenset[int], frozenset[int]], int]] = {}
    for (size, immediates, payloads), n in counts.items():
        if n >= _STREAM_SHARE * most:
            by_size.setdefault(size, {})[immediates, payloads] = n
    for size, alike in by_size.items():
        immediate, payload = _Set.of(_summed(alike, 0)), _Set.of(_summed(alike, 1))
        # Some heaps of a length may have more items than others: then the items that all of them have are taken.
        if immediate:
            yield _Signature(*size, immediate, payload)
        else:
            for immediates, payloads in alike:
                yield _Signature(*size, _Set(immediates), _Set(payloads))


def _summed(alike: Mapping[tuple[frozenset[int], frozenset[int]], int], part: int) -> dict[frozenset[int], int]:
    """The number of heaps by one of the two parts of their items."""
    heaps: collections.Counter[frozenset[int]] = collections.Counter()
    for sets, n in alike.items():
        heaps[sets[part]] += n
    return heaps


def _stream(signature: _Signature, kinds: list[Kind], destinations: dict[int, Address]) -> Stream:
    """Gather the heaps of a signature from all kinds that have its items."""
    parts: list[tuple[Kind, np.ndarray]] = []
    heaps = 0
    for kind in kinds:
        if kind.whole != signature.whole:
            continue
        heaps += len(kind.numbers)
        if kind.flavour == signature.flavour and kind.immediate >= signature.immediate.common:
            rows = np.flatnonzero(kind.data_bytes() == signature.heap_bytes)
            if rows.size and (not signature.immediate.one_of or signature.immediate.which(kind.immediate) is not None):
                parts.append((kind, rows))
    # Each part is in order: that is fast to merge.
    order = np.argsort(np.concatenate([kind.numbers[rows] for kind, rows in parts]), kind="stable")

    def gather(get: Callable[[Kind], np.ndarray]) -> np.ndarray:
        if len(parts) == 1 and order.size == len(parts[0][0].numbers):
            return np.ascontiguousarray(get(parts[0][0]))  # all heaps of a kind, which are in order
        return np.concatenate([get(kind)[rows] for kind, rows in parts])[order]

    def one_of(items: _Set, of: Callable[[Kind], frozenset[int]], bit: int) -> OneOf | None:
        if not items.one_of:
            return None

        def which(kind: Kind) -> int:
            return items.which(of(kind)) or 0

        def values(kind: Kind) -> np.ndarray:
            key = which(kind) | bit
            return kind.table()[:, kind.keys.index(key)] if which(kind) else np.zeros(len(kind.numbers), np.uint64)

        return OneOf(
            tuple(sorted(items.one_of)),
            gather(lambda kind: np.full(len(kind.numbers), which(kind), np.uint64)),
            gather(values),
        )

    return Stream(
        flavour=signature.flavour,
        heap_bytes=signature.heap_bytes,
        destinations=tuple(destinations.values()),
        items={item: gather(lambda kind: kind.column(item)) for item in sorted(signature.immediate.common)},  # noqa: B023
        payload_items=tuple(sorted(signature.payload.common)),
        senders=gather(lambda kind: kind.senders),
        targets=gather(lambda kind: np.full(len(kind.numbers), list(destinations).index(kind.destination))),
        others=heaps - int(order.size),
        counters=gather(lambda kind: kind.column(spead2.HEAP_CNT_ID)),
        one_of=one_of(signature.immediate, lambda kind: kind.immediate, signature.flavour.immediate),
        payload_one_of=one_of(signature.payload, lambda kind: kind.payload, 0),
        whole=signature.whole,
        mixed=any(kind.mixed for kind, _ in parts),
        several=any((kind.column(spead2.PAYLOAD_LENGTH_ID)[rows] < signature.heap_bytes).any() for kind, rows in parts),
    )
