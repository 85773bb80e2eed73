"""Sort heaps into streams: those that are alike, to one or several destinations."""

from __future__ import annotations

import collections
import functools
import itertools
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import spead2

from speadrx.layout.items import SPECIAL_ITEMS

from .decode import Flavour

Address = tuple[str, int]

#: Items that are not data: padding, descriptors, stream control, and the items that SPEAD adds to every packet.
NO_DATA = frozenset((0, *SPECIAL_ITEMS, spead2.DESCRIPTOR_ID, spead2.STREAM_CTRL_ID))
#: Heaps that are alike make a stream if they are at least this fraction of the most frequent at their destination.
_STREAM_SHARE = 0.25


@dataclass
class Kind:
    """Heaps of one destination whose first packets have the same pointers in the same order."""

    destination: int
    flavour: Flavour
    keys: tuple[int, ...]
    values: array[int] = field(default_factory=lambda: array("Q"))  # a row for each heap
    numbers: array[int] = field(default_factory=lambda: array("Q"))  # position of each heap among all heaps
    senders: array[int] = field(default_factory=lambda: array("Q"))

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
        return np.frombuffer(self.values, np.uint64).reshape(-1, len(self.keys))

    def lengths(self) -> np.ndarray:
        """Bytes of each heap."""
        return self.column(spead2.HEAP_LENGTH_ID)

    def column(self, item: int) -> np.ndarray:
        """Immediate values of an item, by its ID."""
        return self.table()[:, self.keys.index(self.flavour.immediate | item)]


@dataclass(frozen=True)
class Stream:
    """Heaps that belong together: with one flavour, length and set of items, to one or several destinations.

    Attributes
    ----------
    flavour
        Flavour of the heaps.
    heap_bytes
        Bytes of payload of each heap.
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
        streams.append(_stream(signature, candidates, {index: addresses[index] for index in destinations}))
    return sorted(streams, key=lambda stream: stream.heaps, reverse=True)


@dataclass(frozen=True)
class _Signature:
    """What the heaps of a stream have in common."""

    flavour: Flavour
    heap_bytes: int
    immediate: frozenset[int]
    payload: frozenset[int]


def _signatures(kinds: list[Kind]) -> Iterator[_Signature]:
    """The signatures that are frequent among the kinds of a destination."""
    counts: collections.Counter[_Signature] = collections.Counter()
    for kind in kinds:
        for length, n in zip(*np.unique(kind.lengths(), return_counts=True), strict=True):
            counts[_Signature(kind.flavour, int(length), kind.immediate, kind.payload)] += int(n)
    most = max(counts.values(), default=0)
    frequent = [signature for signature, n in counts.items() if n >= _STREAM_SHARE * most]
    # Some heaps of a length may have more items than others: then the items that all of them have are taken.
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


def _stream(signature: _Signature, kinds: list[Kind], destinations: dict[int, Address]) -> Stream:
    """Gather the heaps of a signature from all kinds that have its items."""
    parts: list[tuple[Kind, np.ndarray]] = []
    heaps = 0
    for kind in kinds:
        heaps += len(kind.numbers)
        if kind.flavour == signature.flavour and kind.immediate >= signature.immediate:
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
