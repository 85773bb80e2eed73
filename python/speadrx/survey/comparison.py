"""Two placements side by side: which heaps they place differently, and what they cost."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from speadrx._words import counted
from speadrx.layout import presets
from speadrx.layout.base import DeclarativeLayout
from speadrx.layout.items import item_name

from .capture import read_datagrams
from .heaps import Survey
from .item_sets import ItemSets, random_item_sets
from .placements import ForeignPlacement, LayoutPlacement, Outcomes, Placement, time_nothing

#: Heaps placed by one placement before the other has its turn.
_BLOCK = 1 << 15
#: Values of items of a capture that are kept (8 bytes each).
MOST_VALUES = 1 << 25
#: Differences that are kept.
MOST_KEPT = 10

#: Random heaps, if no heaps are given.
_DEFAULT_HEAPS = 100_000
_TOLD_PLACES = ("chunk", "index", "offset", "extra_offset")


@dataclass(frozen=True)
class Slot:
    """Where a placement puts a heap, and its side items.

    Attributes
    ----------
    chunk
        Number of the chunk, counted from time 0.
    index
        Index of the heap in ``present``.
    offset
        Offset in the chunk's data, in bytes.
    extra_offset, extra
        Offset in the chunk's ``extra``, and the bytes that go there.
    """

    chunk: int
    index: int
    offset: int
    extra_offset: int
    extra: bytes

    def __str__(self) -> str:
        text = f"chunk {self.chunk}, index {self.index}, offset {self.offset}"
        return text + (f", extra {self.extra.hex()} at {self.extra_offset}" if self.extra else "")


@dataclass(frozen=True)
class Difference:
    """A heap that two placements place differently.

    Attributes
    ----------
    heap
        Its number, from 0.
    items
        Its items, by ID.
    slots
        Where each placement puts it; None if it rejects the heap.
    reasons
        What each counted it as: ``"placed"``, or why it was rejected.
    """

    heap: int
    items: Mapping[int, int]
    slots: tuple[Slot | None, Slot | None]
    reasons: tuple[str, str]

    @property
    def outcomes(self) -> tuple[str, str]:
        """What each placement does with it, in words."""
        first, second = (
            f"rejected: {reason}" if slot is None else str(slot)
            for slot, reason in zip(self.slots, self.reasons, strict=True)
        )
        return first, second

    @property
    def described_items(self) -> str:
        """Its items, in words."""
        names = {item: item_name(item) for item in self.items}
        return ", ".join(f"{names[item] or hex(item)}={value:#x}" for item, value in self.items.items())


@dataclass
class Comparison:
    """What became of the same heaps in two placements.

    Attributes
    ----------
    names
        What the two placements are called.
    heaps
        Heaps that were compared.
    differing
        Heaps that are placed differently.
    explained
        Heaps that are placed differently only because a layout judges by the heaps before whether a time is possible.
    differences
        The first heaps of `differing`.
    outcomes
        Heaps by what the two counted them as: ``"placed"`` or a reason.
    overruns
        What a placement did that it must not, the first such heap, and the number of heaps.
    nanoseconds
        Nanoseconds per heap, of those that both place: of the first, the second, and a function that does nothing. All
        have the same loop around them, and take turns. None if that was not measured.
    """

    names: tuple[str, str]
    heaps: int = 0
    differing: int = 0
    explained: int = 0
    differences: list[Difference] = field(default_factory=list)
    outcomes: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    overruns: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    nanoseconds: tuple[float, float, float] | None = None

    @property
    def equal(self) -> bool:
        """Whether no heap is placed differently, and no placement did what it must not."""
        return not self.differing and not self.overruns

    def reasons(self, which: int) -> dict[str, int]:
        """Count the heaps by what the first (0) or the second (1) placement counted them as."""
        counts: collections.Counter[str] = collections.Counter()
        for pair, heaps in self.outcomes.items():
            counts[pair[which]] += heaps
        return dict(counts.most_common())

    def assert_equal(self) -> None:
        """Raise an `AssertionError` that shows the first differences, unless the placements are `equal`."""
        if not self.equal:
            raise AssertionError("\n".join(self.problems()))

    def problems(self) -> Iterator[str]:
        """Write what is wrong, line by line."""
        for (name, what), (first, heaps) in self.overruns.items():
            yield f"{name} {what}: {counted(heaps, 'heap')}, the first is heap {first:,}"
        if self.differing:
            yield f"{counted(self.differing, 'heap')} of {self.heaps:,} placed differently"
        for difference in self.differences:
            yield f"heap {difference.heap:,}: {difference.described_items}"
            for name, outcome in zip(self.names, difference.outcomes, strict=True):
                yield f"    {name}: {outcome}"


def compare(
    first: Any,
    second: Any,
    heaps: int | str | os.PathLike[str] | ItemSets | Iterable[Mapping[int, int]] = _DEFAULT_HEAPS,
    *,
    seed: int = 0,
    items: Sequence[int] | None = None,
    user_data: Mapping[str, int] | None = None,
    statistics: Sequence[str] | None = None,
    window: int | None = None,
    ignore_extra: bool = False,
    strict: bool = False,
    timed: bool = False,
    names: tuple[str, str] | None = None,
) -> Comparison:
    """Place the same heaps with two placements, and compare where they go.

    Parameters
    ----------
    first, second
        Each is a layout, its name or the path of its file, or a placement callback that is not ours: an object with an
        ``address``, such as numba's ``CFunc``; scipy's ``LowLevelCallable``, or another tuple that begins with a
        capsule; a capsule; an object with ``chunk_place`` or ``_chunk_place``, as layouts of katgpucbf.
    heaps
        A capture, by its path; the items of each heap, by ID; or a number of random heaps, which are drawn such that
        they hit the first of the two that is a layout.
    seed
        The same seed draws the same random heaps.
    items
        IDs of the items that foreign callbacks ask for, in order (default: those of the callback's ``spead_items``, or
        of the layout).
    user_data
        Fields of user data that the placements read, besides ``stats_base``.
    statistics
        Names of the statistics that foreign callbacks count, from ``stats_base`` on.
    window
        Chunks in the window of layouts (default: that of a stream).
    ignore_extra
        Do not compare side items.
    strict
        Also count as different what a layout places by the heaps before. Otherwise, such a heap is tried alone, as the
        first of a stream: it is only different if it is placed differently then, too.
    timed
        Also measure the time per heap.
    names
        What to call the two (default: their own names).

    Returns
    -------
    Comparison
        What was found. Its `assert_equal` is for tests.

    Raises
    ------
    ValueError, TypeError, OSError
        If an argument cannot be used.

    Examples
    --------
    >>> from speadrx import compare, layouts
    >>> comparison = compare("meerkat-digitiser", layouts.load("meerkat-digitiser"), 10_000)
    >>> comparison.equal, comparison.heaps
    (True, 10000)
    >>> compare("meerkat-digitiser", layouts.load("meerkat-digitiser", ["axes.pol.shift=1"]), 10_000).equal
    False
    """
    sides = _sides((first, second), names, items, user_data or {}, statistics, window)
    sets = _item_sets(heaps, sides, seed)
    if not len(sets):
        raise ValueError("heaps: there are none, so nothing would be compared")
    comparing = _Comparing(sides, sets, ignore_extra=ignore_extra, strict=strict)
    comparing.compare()
    if timed:
        comparing.measure()
    return comparing.found


def _sides(
    given: tuple[Any, Any],
    names: tuple[str, str] | None,
    items: Sequence[int] | None,
    user_data: Mapping[str, int],
    statistics: Sequence[str] | None,
    window: int | None,
) -> tuple[Placement, Placement]:
    loaded = [presets.load(one) if isinstance(one, str | os.PathLike) else one for one in given]
    called = names or tuple(_name(one, original) for one, original in zip(loaded, given, strict=True))
    if called[0] == called[1]:
        called = (f"first {called[0]}", f"second {called[1]}")
    layouts = [one for one in loaded if _is_declarative(one)]
    extra_bytes = max((layout.max_heap_extra for layout in layouts), default=8)
    sides: list[Placement] = []
    for one, name in zip(loaded, called, strict=True):
        if _is_declarative(one):
            sides.append(LayoutPlacement(one, name, user_data, window))
            continue
        own = items or getattr(one, "spead_items", None) or (layouts[0].spead_items if layouts else None)
        if own is None:
            raise ValueError(f"items: neither of the two is a layout, so say which items {name} asks for")
        sides.append(
            ForeignPlacement(one, name, items=own, user_data=user_data, statistics=statistics, extra_bytes=extra_bytes)
        )
    for unread in user_data.keys() - {name for side in sides for name in side.reads}:
        raise ValueError(f"user_data[{unread!r}]: neither of the two reads it")
    return sides[0], sides[1]


def _is_declarative(one: Any) -> bool:
    return isinstance(one, DeclarativeLayout) and getattr(one, "_chunk_place", None) is None


def _name(one: Any, given: Any) -> str:
    if isinstance(given, str | os.PathLike):
        return os.fspath(given)
    own = one.declaration.name if isinstance(one, DeclarativeLayout) else getattr(one, "__name__", "")
    return own or type(one).__name__


def _item_sets(heaps: Any, sides: tuple[Placement, Placement], seed: int) -> ItemSets:
    if isinstance(heaps, ItemSets):
        return heaps
    layouts = [side for side in sides if isinstance(side, LayoutPlacement)]
    if isinstance(heaps, int):
        if heaps < 1:
            raise ValueError(f"heaps: {heaps} must be at least 1")
        if not layouts:
            raise ValueError("heaps: random heaps are drawn for a layout, and neither of the two is one")
        return random_item_sets(layouts[0].layout, heaps, seed, window=layouts[0].window)
    if isinstance(heaps, str | os.PathLike):
        survey = Survey(most_values=MOST_VALUES)
        with read_datagrams(heaps, cut=True) as capture:
            survey.read(capture)
        return surveyed(survey, sides)
    return ItemSets.listed(heaps)


def surveyed(survey: Survey, layouts: Iterable[Any]) -> ItemSets:
    """Take the heaps of a survey as they come to placements, of which some may be layouts that mend packets."""
    found = [layout.layout if isinstance(layout, LayoutPlacement) else layout for layout in layouts]
    mended = any(_is_declarative(one) and one.declaration._compiled.mends_packets for one in found)
    return ItemSets.surveyed(survey, mended=mended)


class _Comparing:
    """Two placements on the way through item sets."""

    def __init__(self, sides: tuple[Placement, Placement], sets: ItemSets, *, ignore_extra: bool, strict: bool) -> None:
        self._sides = sides
        self._sets = sets
        self._ignore_extra = ignore_extra
        self._strict = strict
        #: Heaps that both place, block by block.
        self._placed: list[np.ndarray] = []
        self.found = Comparison((sides[0].name, sides[1].name))

    def _blocks(self) -> Iterator[slice]:
        for begin in range(0, len(self._sets), _BLOCK):
            yield slice(begin, min(begin + _BLOCK, len(self._sets)))

    def compare(self) -> None:
        runs = [side.start() for side in self._sides]
        for block in self._blocks():
            first, second = (
                run.place(self._sets.rows(side.items, block)) for run, side in zip(runs, self._sides, strict=True)
            )
            self._compare_block(block.start, first, second)
        self.found.heaps = len(self._sets)

    def _compare_block(self, start: int, first: Outcomes, second: Outcomes) -> None:
        for side, outcomes in zip(self._sides, (first, second), strict=True):
            for what, heaps in side.overruns(outcomes).items():
                at, before = self.found.overruns.get((side.name, what), (start + int(heaps[0]), 0))
                self.found.overruns[side.name, what] = (at, before + heaps.size)
        self._count(first, second)
        self._placed.append(start + np.flatnonzero(first.placed & second.placed))
        heaps = np.flatnonzero(self._differ(first, second))
        if not self._strict:
            heaps = heaps[self._differ_alone(start, heaps, first.take(heaps), second.take(heaps))]
        self.found.differing += heaps.size
        for heap in heaps[: MOST_KEPT - len(self.found.differences)]:
            self.found.differences.append(self._difference(start + int(heap), first, second, int(heap)))

    def _differ(self, first: Outcomes, second: Outcomes) -> np.ndarray:
        both = first.placed & second.placed
        one, other = first.told, second.told
        same = one["chunk"] == other["chunk"]
        same &= (one["index"] == other["index"]) & (one["offset"] == other["offset"])
        if not self._ignore_extra:
            same &= self._same_extra(first, second)
        differ: np.ndarray = (first.placed != second.placed) | (both & ~same)
        return differ

    @staticmethod
    def _same_extra(first: Outcomes, second: Outcomes) -> np.ndarray:
        one, other = first.told, second.told
        none = (one["extra_size"] == 0) & (other["extra_size"] == 0)
        same: np.ndarray = (one["extra_size"] == other["extra_size"]) & (one["extra_offset"] == other["extra_offset"])
        for byte in range(min(first.extra.shape[1], second.extra.shape[1])):
            same &= (first.extra[:, byte] == second.extra[:, byte]) | (byte >= one["extra_size"])
        same |= none
        return same

    def _differ_alone(self, start: int, heaps: np.ndarray, first: Outcomes, second: Outcomes) -> np.ndarray:
        """Which of some heaps are placed differently even if they are the first of a stream."""
        differ = np.ones(heaps.size, bool)
        if not any(isinstance(side, LayoutPlacement) for side in self._sides):
            return differ
        both = first.placed & second.placed
        one, other = first.told["chunk"], second.told["chunk"]
        # The heaps before can only have a layout reject a heap, or number its chunk differently.
        for side, outcomes in zip(self._sides, (first, second), strict=True):
            if isinstance(side, LayoutPlacement) and not side.begins_anywhere:
                for n in np.flatnonzero(~outcomes.placed & differ):
                    differ[n] = self._differs_alone(start + int(heaps[n]))
        numbered = np.flatnonzero(both & (one != other))
        # Heaps of the same chunks have the same reason.
        pairs = np.stack([one[numbered], other[numbered]], axis=1)
        _, firsts, which = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
        of_chunk = [self._differs_alone(start + int(heaps[numbered[n]])) for n in firsts]
        differ[numbered] = np.array(of_chunk, bool)[which.reshape(-1)]
        self.found.explained += int(heaps.size - differ.sum())
        return differ

    def _differs_alone(self, heap: int) -> bool:
        one = slice(heap, heap + 1)
        first, second = (side.start().place(self._sets.rows(side.items, one)) for side in self._sides)
        return bool(self._differ(first, second)[0])

    def _reasons(self, side: Placement, outcomes: Outcomes) -> tuple[np.ndarray, list[str]]:
        """Number the reasons of heaps, and name them."""
        told = outcomes.told
        columns = [told["statistic"], told["by"], told["changed"], outcomes.placed]
        distinct, which = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
        names = []
        for statistic, by, changed, placed in distinct.tolist():
            reason = side.reason(statistic, by, changed)
            names.append(reason if not placed else "placed" if statistic < 0 else f"placed, counted as {reason}")
        return which.reshape(-1), names

    def _count(self, first: Outcomes, second: Outcomes) -> None:
        (one, one_names), (other, other_names) = (
            self._reasons(side, outcomes) for side, outcomes in zip(self._sides, (first, second), strict=True)
        )
        pairs, heaps = np.unique(one * len(other_names) + other, return_counts=True)
        for pair, n in zip(pairs.tolist(), heaps.tolist(), strict=True):
            key = one_names[pair // len(other_names)], other_names[pair % len(other_names)]
            self.found.outcomes[key] += n

    def _difference(self, number: int, first: Outcomes, second: Outcomes, at: int) -> Difference:
        slots, reasons = [], []
        for side, outcomes in zip(self._sides, (first, second), strict=True):
            one = outcomes.take(np.array([at]))
            which, names = self._reasons(side, one)
            reasons.append(names[which[0]])
            told = one.told[0]
            size = min(int(told["extra_size"]), side.extra_bytes)
            chunk, index, offset, extra_offset = (int(told[name]) for name in _TOLD_PLACES)
            slot = Slot(chunk, index, offset, extra_offset, one.extra[0, :size].tobytes())
            slots.append(slot if one.placed[0] else None)
        return Difference(number, self._sets.of_heap(number), (slots[0], slots[1]), (reasons[0], reasons[1]))

    def measure(self) -> None:
        """Measure what each placement takes for a heap that both place, in turns, and a function that does nothing."""
        runs = [side.start() for side in self._sides]
        taken: list[list[float]] = [[], [], []]
        for turn, heaps in enumerate(filter(np.size, self._placed)):
            for which in (0, 1, 2) if turn % 2 else (2, 1, 0):
                side = self._sides[which % 2]
                rows = self._sets.rows(side.items, heaps)
                nanoseconds = time_nothing(side, rows) if which == 2 else runs[which].time(rows)
                taken[which].append(nanoseconds / heaps.size)
        if taken[2]:
            first, second, nothing = (float(np.median(times)) for times in taken)
            self.found.nanoseconds = (first, second, nothing)
