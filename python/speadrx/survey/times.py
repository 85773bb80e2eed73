"""Find the item that tells the time of heaps, the steps that it goes in, and from where they count."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import spead2

from speadrx._words import counted, listed
from speadrx.layout.declaration import TimeAxis
from speadrx.layout.items import TIMESTAMP_BITS, item_name
from speadrx.layout.meerkat import TIMESTAMP_ID

from .heaps import Descriptor
from .kinds import Stream
from .values import RISING, common_step, distinct_of, most_frequent, profile, rise, unwrapped

#: Fraction of the heaps whose times must be on the grid of the step.
_ON_GRID = 0.7
#: If more than this fraction are, all senders have the same times.
_MOST_ON_GRID = 0.9
#: A time is garbage if it differs by more than so many steps from the times of the heaps around it.
_FAR_STEPS = 4096
_NEIGHBOURS = 256
#: Most sources that are looked at for phases of their own, and times that the typical one must have.
_MOST_PHASES = 4096
_LEAST_TIMES = 3
#: The bits of the heap counter that may be the number of a packet.
_PACKET_NUMBER = 2**32 - 1
#: Most bits of a time that a layout takes.
_MOST_BITS = 60


class NoProposalError(Exception):
    """There is no proposal; the message says why."""


@dataclass
class Notes:
    """What is said of a proposal."""

    reasons: list[str] = dataclasses.field(default_factory=list)
    uncertain: list[str] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class TimeItem:
    """An item that may tell the time, or several, of which each heap has one."""

    ids: tuple[int, ...]
    values: np.ndarray
    #: The bits of the item that are the time; None for all.
    mask: int | None = None

    def __str__(self) -> str:
        """Name the items."""
        ids = listed((f"{item:#x}" for item in self.ids), 4)
        return f"item {ids}" if len(self.ids) == 1 else f"items {ids}"

    @property
    def field(self) -> int | tuple[int, ...]:
        """As a layout has it."""
        return self.ids[0] if len(self.ids) == 1 else self.ids


@dataclass(frozen=True)
class Times:
    """The times of heaps, as a layout can express them.

    Attributes
    ----------
    numbers
        For each heap the number of its step; -1 if its time is garbage.
    item, step, origin, bits
        Fields of the layout's time axis; None where it needs none.
    lasts
        Whether the origin is the same after times have wrapped.
    source
        Item whose values have times with a phase of their own; None if all have the same.
    phases
        The phase of each of these values.
    """

    numbers: np.ndarray
    item: TimeItem
    step: int
    origin: int | None = None
    bits: int | None = None
    source: int | None = None
    phases: Mapping[int, int] = dataclasses.field(default_factory=dict)
    lasts: bool = True

    @property
    def share(self) -> float:
        """The fraction of the heaps whose time is good."""
        return float(np.count_nonzero(self.numbers >= 0)) / max(1, self.numbers.size)

    def axis(self, batches: int, phases: tuple[int, ...] | None) -> TimeAxis:
        """The time axis of a layout; phases by index of the source."""
        origin = self.origin if self.lasts or self.origin is None else "first"
        wanted: dict[str, Any] = {"mask": self.item.mask, "origin": origin, "bits": self.bits, "phases": phases}
        more = {name: value for name, value in wanted.items() if value is not None}
        return TimeAxis(item=self.item.field, step=self.step, batches=batches, **more)


def bits_of(stream: Stream) -> int:
    """How many bits the times of a stream have: those of an item, but MeerKAT's wrap at 48 bits."""
    return min(stream.flavour.address_bits, TIMESTAMP_BITS)


def time_items(stream: Stream, described: Mapping[int, Descriptor]) -> list[TimeItem]:
    """Find items that may be the time, the likeliest first. If MeerKAT's timestamp is there, it is the only one.

    Raises
    ------
    NoProposalError
        If there is none.
    """
    in_payload = time_in_payload(stream, described)
    more = f"; {in_payload}" if in_payload else ""
    if not stream.items and stream.one_of is None:
        raise NoProposalError(f"the heaps have no items with immediate values, so nothing says their time{more}")
    bits = bits_of(stream)
    items = [TimeItem((item,), values) for item, values in stream.items.items()]
    if stream.one_of is not None:
        items.insert(0, TimeItem(stream.one_of.items, stream.one_of.values))
    rises = {item.ids: rise(item.values, bits) for item in items}
    distinct = {item.ids: distinct_of(item.values)[0].size for item in items}
    for item in items:
        if item.ids == (TIMESTAMP_ID,):
            if rises[item.ids] < RISING and distinct[item.ids] <= 2:
                if (number := _packet_number(stream)) is not None:
                    return [number]
                raise NoProposalError(
                    f"all heaps together have only {counted(distinct[item.ids], 'time')} (item {TIMESTAMP_ID:#x}), "
                    "which is not enough to find the step of the time axis: take more packets"
                )
            return [item]
    found = [item for item in items if rises[item.ids] >= RISING]
    # A counter of heaps has a new value in each heap, and comes last. What changes less often than time, such as a
    # status, has fewer values.
    found.sort(key=lambda item: (distinct[item.ids] == stream.heaps, -distinct[item.ids], item.ids))
    if not in_payload and stream.counters is not None and profile(stream.counters).kind == "counter":
        found.append(TimeItem((spead2.HEAP_CNT_ID,), stream.counters))
    elif not in_payload and (number := _packet_number(stream)) is not None:
        found.append(number)
    if not found:
        best = max(items, key=lambda item: rises[item.ids])
        raise NoProposalError(
            f"no item rises as the heaps arrive, so none can be the time (best: {best}, with a rank correlation of "
            f"{rises[best.ids]:.2f} of the {RISING} wanted)" + (more or ": take more packets, or see the items")
        )
    return found


def _packet_number(stream: Stream) -> TimeItem | None:
    """The low 32 bits of the heap counter, if they are the time of packets that are whole heaps, as SKA-Low sends them.

    Several heaps must have the same number: one of each channel, say. Otherwise it may just count heaps.
    """
    if stream.counters is None or not stream.whole:
        return None
    number = stream.counters & np.uint64(_PACKET_NUMBER)
    if not 2 < distinct_of(number)[0].size <= stream.heaps / 2 or rise(number, _PACKET_NUMBER.bit_length()) < RISING:
        return None
    return TimeItem((spead2.HEAP_CNT_ID,), number, _PACKET_NUMBER)


def time_in_payload(stream: Stream, described: Mapping[int, Descriptor]) -> str:
    """Say that an item that seems to be the time is addressed; nothing if there is none."""
    names = {
        item: (described[item].name if item in described else item_name(item)) or "" for item in stream.payload_items
    }
    # A number of dumps is better than a time, which may be a float.
    found = [item for item, name in names.items() if name == "dump_index"]
    found += [item for item, name in names.items() if item == TIMESTAMP_ID or "time" in name.lower()]
    if not found:
        return ""
    return (
        f"item {found[0]:#x} ({names[found[0]]}) seems to be the time, but it is addressed: its value is in the "
        "payload, and a layout places heaps by immediate values. A [packets] table of the layout makes it one: "
        f'items = {{ {found[0]:#x} = ">u8" }}, or whatever bytes and order it has'
    )


def read_times(stream: Stream, item: TimeItem, notes: Notes) -> Times:
    """Find the steps of the time, and the step of each heap.

    Raises
    ------
    NoProposalError
        If the times have no steps.
    """
    bits, values = _width(stream, item)
    step = common_step(values, bits)
    if step is None:
        raise NoProposalError(f"all heaps have the same time ({item}): take more packets")
    times = _steady(item, values, bits, step)
    on_grid = times.share
    if on_grid < _MOST_ON_GRID:
        times = max([times, *_phased(stream, item, bits)], key=lambda found: found.share)
    if times.share < _ON_GRID:
        raise NoProposalError(
            f"the times ({item}) have no common step: the most frequent step is {step}, but only {on_grid:.0%} "
            "of the heaps are multiples of it apart"
        )
    if times.source is not None:
        share = f"those of each value of item {times.source:#x}, with a phase of their own"
    else:
        share = f"{on_grid:.2%} of the heaps are on this grid"
    _note_steps(item, values, bits, times.step, share, notes)
    if times.origin and times.source is None:
        notes.uncertain.append(
            f"Times are {times.origin} above the multiples of the step, and counted from there (origin). If that "
            'changes when senders are restarted, set origin = "first".'
            if times.lasts
            else f"Times are {times.origin} above the multiples of the step, but not after they wrap: so they are "
            "counted from the first that comes (origin)."
        )
    return times


def _steady(item: TimeItem, values: np.ndarray, bits: int, step: int) -> Times:
    """The times of heaps, if all senders have the same."""
    rising = unwrapped(values, bits)
    phase = most_frequent(rising % np.uint64(step))
    good = (rising % np.uint64(step) == phase) & (values < np.uint64(1 << bits))
    numbers = (rising // np.uint64(step)).astype(np.int64)
    # After a wrap, times may be something else above the multiples: the first counts.
    origin = int(values[np.argmax(good)]) % step
    good &= _plausible(numbers, good, step, bits)
    width = None if bits == TIMESTAMP_BITS else bits
    return Times(np.where(good, numbers, -1), item, step, origin or None, width, lasts=2**bits % step == 0)


def _width(stream: Stream, item: TimeItem) -> tuple[int, np.ndarray]:
    """How many bits the times of an item have, and its values."""
    bits = bits_of(stream) if item.mask is None else item.mask.bit_length()
    wide = np.count_nonzero(item.values >= np.uint64(1 << bits))
    if wide > (1 - _ON_GRID) * item.values.size:
        # Wider than MeerKAT's: they have all bits of an item.
        bits = stream.flavour.address_bits
        if bits > _MOST_BITS:
            raise NoProposalError(f"the times ({item}) have {bits} bits, and a layout takes {_MOST_BITS} at most")
    return bits, item.values


def _note_steps(item: TimeItem, values: np.ndarray, bits: int, step: int, share: str, notes: Notes) -> None:
    correlation = rise(values, bits)
    known = ", MeerKAT's timestamp," if item.ids == (TIMESTAMP_ID,) else ""
    known = ", the heap counter," if item.ids == (spead2.HEAP_CNT_ID,) else known
    how = "rises as heaps arrive, in steps" if correlation >= RISING else "goes in steps"
    notes.reasons.append(f"time: {item}{known} {how} of {step} ({share}).")
    if bits != TIMESTAMP_BITS:
        notes.reasons.append(f"bits: {bits}, so that times may wrap there.")
    if known == ", the heap counter,":
        part = "the heap counter is" if item.mask is None else f"bits 0 to {bits - 1} of the heap counter are"
        notes.uncertain.append(f"No item seems to be the time, so {part} taken for it.")
    if correlation < RISING:
        notes.uncertain.append(
            f"Times do not rise as heaps arrive (rank correlation {correlation:.2f}; {RISING} or more is expected): "
            "senders may have restarted, or do not agree on the time."
        )


def _plausible(numbers: np.ndarray, good: np.ndarray, step: int, bits: int) -> np.ndarray:
    """For each heap, whether its time is near that of the heaps that came with it."""
    most = min(_FAR_STEPS, 2**bits // step // 8)
    plausible = np.ones(numbers.size, bool)
    # Nearly everywhere all are good: these are looked at together.
    whole = numbers.size // _NEIGHBOURS * _NEIGHBOURS
    blocks = numbers[:whole].reshape(-1, _NEIGHBOURS)
    all_good = good[:whole].reshape(-1, _NEIGHBOURS).all(axis=1)
    near = np.abs(blocks[all_good] - np.median(blocks[all_good], axis=1, keepdims=True)) <= most
    plausible[:whole].reshape(-1, _NEIGHBOURS)[all_good] = near
    starts = np.append(np.flatnonzero(~all_good) * _NEIGHBOURS, whole)
    for start in starts:
        part = slice(start, start + _NEIGHBOURS)
        if good[part].any():
            plausible[part] = np.abs(numbers[part] - np.median(numbers[part][good[part]])) <= most
    return plausible


def _phased(stream: Stream, item: TimeItem, bits: int) -> Iterator[Times]:
    """Find items whose every value has times of its own phase, all with the same step."""
    rising = unwrapped(item.values, bits)
    for source, values in stream.items.items():
        distinct, index, counts = distinct_of(values)
        if source in item.ids or not 1 < distinct.size <= _MOST_PHASES or np.median(counts) < _LEAST_TIMES:
            continue
        by_value = np.split(np.argsort(index, kind="stable"), np.cumsum(counts)[:-1])
        steps = [common_step(rising[heaps], bits) or 0 for heaps in by_value]
        step = most_frequent(np.repeat(np.array(steps, np.uint64), counts))
        if not step:
            continue
        rests = rising % np.uint64(step)
        phases = np.array([most_frequent(rests[heaps]) for heaps in by_value], np.int64)
        good = rests == phases[index].astype(np.uint64)
        # On the circle of a step, the phases begin after their largest gap.
        ring = np.sort(phases)
        gaps = np.diff(np.append(ring, ring[0] + step))
        origin = int(ring[(int(np.argmax(gaps)) + 1) % ring.size])
        phases = (phases - origin) % step
        numbers = (rising.astype(np.int64) - origin - phases[index]) // step
        # `rising` may have been moved: the origin is the time itself.
        first = int(np.argmax(good))
        moved = (int(item.values[first]) - int(phases[index[first]])) % step
        good &= _plausible(numbers, good, step, bits)
        width = None if bits == TIMESTAMP_BITS else bits
        named = dict(zip(distinct.tolist(), phases.tolist(), strict=True))
        yield Times(np.where(good, numbers, -1), item, step, moved, width, source, named)
