"""Heaps of the same kind, and how kinds are sorted into streams."""

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

#: Items that belong to no heap's data: padding, descriptors, stream control, and those of SPEAD itself.
NO_DATA = frozenset((0, *SPECIAL_ITEMS, spead2.DESCRIPTOR_ID, spead2.STREAM_CTRL_ID))
#: A kind of heap is a stream of its own if there are at least so many, of the most frequent at its destination.
_STREAM_SHARE = 0.25


@dataclass
class Kind:
    """Heaps of one destination whose first packets have the same pointers in the same order."""

    destination: int
    flavour: Flavour
    keys: tuple[int, ...]
    values: array[int] = field(default_factory=lambda: array("Q"))  # a row for each heap
    numbers: array[int] = field(default_factory=lambda: array("Q"))  # which heap of all it was
    senders: array[int] = field(default_factory=lambda: array("Q"))

    @functools.cached_property
    def immediate(self) -> frozenset[int]:
        """IDs of the items that are data and have immediate values."""
        bit = self.flavour.immediate
        return frozenset(key & ~bit for key in self.keys if key & bit) - NO_DATA

    @functools.cached_property
    def payload(self) -> frozenset[int]:
        """IDs of the items that are data and in the payload."""
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


def sort_into_streams(kinds: Iterable[Kind], addresses: list[Address]) -> list[Stream]:
    """Sort kinds of heaps into streams, that of the most heaps first; `addresses` has the destinations by number."""
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
    """The signatures that are frequent at a destination."""
    counts: collections.Counter[_Signature] = collections.Counter()
    for kind in kinds:
        for length, n in zip(*np.unique(kind.lengths(), return_counts=True), strict=True):
            counts[_Signature(kind.flavour, int(length), kind.immediate, kind.payload)] += int(n)
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
