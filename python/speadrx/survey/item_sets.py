"""Item sets: the values of the items of many heaps, without their payload: of a capture, or random ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import spead2

from speadrx.layout.base import DeclarativeLayout
from speadrx.layout.declaration import Axis

from .heaps import Survey
from .kinds import Kind, sender_ids

#: IDs of the items that are added to packets, by the names that they have in layouts.
ADDED_ITEMS = {"payload_item": 0x7FF8, "sender": 0x7FF9, "packet_seconds": 0x7FFA, "packet_nanoseconds": 0x7FFB}

#: Bits of an item's value in the flavour 64-48.
_BITS = 48
#: Chunks that random heaps are spread over, at least, if there are enough heaps.
_CHUNKS = 100
#: Part of the random heaps that something is wrong with.
_FAULTY = 0.15
#: Part of the random heaps that repeat another.
_REPEATED = 0.02


@dataclass(frozen=True)
class ItemSets:
    """The items of heaps, in the order in which the heaps come.

    Parameters
    ----------
    columns
        For each item ID, its value in each heap; -1 in heaps that lack it.
    """

    columns: dict[int, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def rows(self, items: Sequence[int], heaps: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Return what a callback sees of some heaps that asks for these items: a row of int64 for each heap."""
        count = len(range(*heaps.indices(len(self)))) if isinstance(heaps, slice) else heaps.size
        rows = np.full((count, len(items)), -1, np.int64)
        for position, item in enumerate(items):
            if item in self.columns:
                rows[:, position] = self.columns[item][heaps]
        return rows

    def of_heap(self, heap: int) -> dict[int, int]:
        """Return the items that a heap has, and their values."""
        return {item: int(values[heap]) for item, values in self.columns.items() if values[heap] >= 0}

    @classmethod
    def listed(cls, heaps: Iterable[Mapping[int, int]]) -> ItemSets:
        """Take the items of each heap as they are given."""
        known = list(heaps)
        ids = sorted({item for heap in known for item in heap})
        return cls({item: np.array([heap.get(item, -1) for heap in known], np.int64) for item in ids})

    @classmethod
    def surveyed(cls, survey: Survey, *, mended: bool = False) -> ItemSets:
        """Take all heaps of a survey whose values were kept.

        Parameters
        ----------
        survey
            The survey.
        mended
            Whether packets are mended on their way into spead2, and have the items that are added there. Otherwise,
            heaps are left out whose packets spead2 drops as they are.
        """
        kinds = [kind for kind in survey._kinds() if mended or not kind.whole]
        if not kinds:
            return cls({})
        order = np.argsort(np.concatenate([kind.numbers for kind in kinds]), kind="stable")
        parts = [_columns(kind, mended) for kind in kinds]
        if mended:
            senders = sender_ids(np.concatenate([kind.senders for kind in kinds]), survey._gathered.addresses)
        columns = {}
        for item in sorted({item for part in parts for item in part}):
            values = [
                part.get(item, np.full(len(kind.numbers), -1, np.int64))
                for kind, part in zip(kinds, parts, strict=True)
            ]
            columns[item] = np.concatenate(values).astype(np.int64)[order]
        if mended and senders is not None:
            columns[ADDED_ITEMS["sender"]] = senders.astype(np.int64)[order]
        return cls(columns)


def _columns(kind: Kind, mended: bool) -> dict[int, np.ndarray]:
    table, bit = kind.table(), kind.flavour.immediate
    # An item that comes twice in a packet: the last one counts.
    columns = {key & ~bit: table[:, position] for position, key in enumerate(kind.keys) if key & bit}
    if mended:
        columns[spead2.HEAP_LENGTH_ID] = kind.data_bytes()
        if len(kind.payload) == 1:
            columns[ADDED_ITEMS["payload_item"]] = np.full(len(table), min(kind.payload), np.int64)
    return columns


def random_item_sets(layout: DeclarativeLayout, heaps: int, seed: int = 0, *, window: int = 2) -> ItemSets:
    """Draw the items of heaps such that they hit a layout.

    Most heaps are good ones: time goes on evenly, over 100 chunks or more, with heaps of all indices in any order, up
    to a chunk late. All bits that the layout does not look at are random. To 15% of the heaps one of these is done: an
    item is taken away, gets the smallest or the largest value, or any; an index is just outside its axis; the length
    is wrong by a little; the time is next to a step, or jumps far ahead or back. 2% of the heaps repeat one that came
    shortly before.

    Parameters
    ----------
    layout
        The layout.
    heaps
        Number of heaps.
    seed
        The same seed gives the same heaps.
    window
        Chunks of the window: what jumps, jumps further than that.

    Returns
    -------
    ItemSets
        The heaps.
    """
    return _Draw(layout, heaps, np.random.default_rng(seed)).draw(window)


class _Draw:
    """Random heaps of a layout, while they are drawn."""

    def __init__(self, layout: DeclarativeLayout, heaps: int, rng: np.random.Generator) -> None:
        self._layout = layout
        self._declaration = layout.declaration
        self._n = heaps
        self._rng = rng
        self._columns: dict[int, np.ndarray] = {}
        #: Bits of each item that the layout looks at.
        self._looked_at: dict[int, int] = {}
        #: Index on the axis of the sources.
        self._source = np.zeros(heaps, np.int64)

    def draw(self, window: int) -> ItemSets:
        for axis in self._declaration.axes:
            self._draw_axis(axis)
        batch = self._batches(window)
        ticks = self._ticks(batch)
        self._put_time(np.ones(self._n, bool), ticks)
        self._columns[spead2.HEAP_LENGTH_ID] = np.full(self._n, self._layout.heap_bytes, np.int64)
        self._looked_at[spead2.HEAP_LENGTH_ID] = -1
        if (epoch := self._declaration.time.epoch_item) is not None:
            self._columns[epoch] = np.full(self._n, 1_500_000_000, np.int64)
            self._looked_at[epoch] = -1
        for item in dict.fromkeys(self._layout.spead_items):
            # What is neither an index nor a time may have any value, and so may the other bits of what is.
            free = ~self._looked_at.get(item, 0) & (1 << _BITS) - 1
            values = self._columns.setdefault(item, np.zeros(self._n, np.int64))
            values[values >= 0] |= self._any()[values >= 0] & free
        self._spoil(ticks, window)
        again = np.flatnonzero(self._rng.random(self._n) < _REPEATED)
        before = np.maximum(again - self._rng.integers(1, 50, again.size), 0)
        for values in self._columns.values():
            values[again] = values[before]
        return ItemSets(self._columns)

    def _any(self) -> np.ndarray:
        return self._rng.integers(0, 1 << _BITS, self._n)

    def _put(self, item: int, where: np.ndarray, value: np.ndarray, shift: int, mask: int | None) -> None:
        """Write the part of an item that an axis looks at."""
        bits = ((1 << _BITS) - 1 if mask is None else mask) << shift & (1 << _BITS) - 1
        values = self._columns.setdefault(item, np.zeros(self._n, np.int64))
        values[where] = np.maximum(values[where], 0) & ~bits | value[where] << shift & bits
        self._looked_at[item] = self._looked_at.get(item, 0) | bits

    def _draw_axis(self, axis: Axis) -> None:
        everywhere = np.ones(self._n, bool)
        chosen = axis.present_items or axis.payload_items or axis.values or range(axis.size or 1)
        index = self._rng.integers(0, len(chosen), self._n)
        if axis.name == self._layout.declaration.sources:
            self._source = index
        if axis.present_items is not None:
            for position, item in enumerate(axis.present_items):
                self._columns[item] = np.where(index == position, self._any(), -1)
        elif axis.payload_items is not None:
            self._put(ADDED_ITEMS["payload_item"], everywhere, np.array(chosen)[index], 0, None)
        elif axis.item is not None:
            self._put(_id(axis), everywhere, self._value(axis, index), axis.shift, axis.mask)

    @staticmethod
    def _value(axis: Axis, index: np.ndarray) -> np.ndarray:
        return index * axis.step if axis.values is None else np.array(axis.values, np.int64)[index]

    def _batches(self, window: int) -> np.ndarray:
        """Batches that go on evenly, up to a chunk late."""
        time = self._declaration.time
        # Few heaps are for a slot that has one; but with few heaps, time must not go on by so much that it jumps.
        chunks = min(max(_CHUNKS, 4 * self._n // self._layout.chunk_heaps), max(self._n // 20, 1))
        span = time.batches * chunks
        limit = (1 << min(time.bits or _BITS, _BITS)) // time.step
        margin = time.batches * (window + 1001)
        start = int(self._rng.integers(margin, max(limit - span - margin, margin + 1)))
        late = self._rng.integers(0, time.batches + 1, self._n)
        return start + np.arange(self._n) * span // self._n - late

    def _ticks(self, batch: np.ndarray) -> np.ndarray:
        time = self._declaration.time
        ticks = batch * time.step + (time.origin if isinstance(time.origin, int) else 0)
        if isinstance(time.phases, tuple):
            ticks = ticks + np.array(time.phases, np.int64)[self._source]
        elif time.rounds:
            # Not half a step and more: the nearest step must be clear.
            rest = time.step if time.align != "nearest" else (time.step + 1) // 2
            ticks = ticks + self._rng.integers(0, rest, self._n)
        return ticks

    def _put_time(self, where: np.ndarray, ticks: np.ndarray) -> None:
        time = self._declaration.time
        ticks = ticks & (1 << min(time.bits or _BITS, _BITS)) - 1
        which = self._rng.integers(0, len(time.items), self._n)
        for position, item in enumerate(time.items):
            self._put(item, where & (which == position), ticks, time.shift, time.mask)
            if len(time.items) > 1:
                self._columns[item][where & (which != position)] = -1

    def _spoil(self, ticks: np.ndarray, window: int) -> None:
        """Make something wrong with some heaps."""
        time, rng = self._declaration.time, self._rng
        axes = [axis for axis in self._declaration.axes if axis.item is not None]
        kind = np.where(rng.random(self._n) < _FAULTY, rng.integers(0, 8, self._n), -1)
        items = list(self._columns)
        which = rng.integers(0, len(items), self._n)
        for position, item in enumerate(items):
            values = self._columns[item]
            for number, wrong in enumerate((-1, 0, (1 << _BITS) - 1, self._any())):
                mine = (which == position) & (kind == number)
                values[mine] = wrong[mine] if isinstance(wrong, np.ndarray) else wrong
        length = self._columns[spead2.HEAP_LENGTH_ID]
        wrong_length = np.maximum(length + rng.choice([-8, -1, 1, 8], self._n), 1)
        length[kind == 4] = wrong_length[kind == 4]
        self._put_time(kind == 5, ticks + rng.choice([-1, 1, time.step // 2], self._n))
        far = rng.integers(window + 1, window + 1000, self._n) * self._layout.chunk_timestamp_step
        self._put_time(kind == 6, ticks + np.where(rng.random(self._n) < 0.5, far, -far))
        axis_of = rng.integers(0, max(len(axes), 1), self._n)
        for position, axis in enumerate(axes):
            past = self._past(axis)[rng.integers(0, 2, self._n)]
            self._put(_id(axis), (kind == 7) & (axis_of == position), past, axis.shift, axis.mask)

    @staticmethod
    def _past(axis: Axis) -> np.ndarray:
        """Values just outside an axis."""
        if axis.values is not None:
            return np.array([max(axis.values) + 1, max(min(axis.values) - 1, 0)], np.int64)
        last = axis.step * (axis.size or 1)
        return np.array([last, last - axis.step + 1], np.int64)


def _id(axis: Axis) -> int:
    return ADDED_ITEMS[axis.item] if isinstance(axis.item, str) else int(axis.item)
