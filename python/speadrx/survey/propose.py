"""Propose a layout for a stream of a survey, with reasons."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import spead2

from speadrx._core import LayoutError
from speadrx._words import counted, listed
from speadrx.layout import presets
from speadrx.layout.declaration import Axis, Layout, Packets
from speadrx.layout.items import TIMESTAMP_BITS, item_name
from speadrx.layout.meerkat import DIGITISER_ID_ID, FENG_ID_ID, FREQUENCY_ID

from .columns import Column, From, all_good, distinguishing, guards, sort_out
from .contents import contents
from .habits import Habits, mended
from .heaps import Descriptor
from .kinds import Stream
from .times import NoProposalError, Notes, TimeItem, Times, read_times, time_in_payload, time_items
from .trial import LEAST_FITTING, Trial, try_layout
from .values import count, joint

#: Known items, and the names of their axes.
_AXIS_NAMES = {FENG_ID_ID: "antenna", DIGITISER_ID_ID: "digitiser", FREQUENCY_ID: "frequency"}
#: Items of these that say where a heap comes from.
_SOURCE_ITEMS = (FENG_ID_ID, DIGITISER_ID_ID)

#: Values make a grid if at least this fraction of its indices were seen. Otherwise they are listed.
_GRID_FILL = 0.75
#: Longest list of values.
_MOST_LISTED = 65536
#: Bits of the heap counter that may be an axis: a shift and a mask.
_COUNTER_BITS = ((16, 0xFFFF), (0, 0xFFFF), (32, 0xFFFF))

_CHUNK_BYTES = 2**24
_CHUNK_HEAPS = 2**16
_CHUNK_SECONDS = 1.0
#: Largest window in chunks: the time that it spans must fit in half the range of timestamps.
_WINDOW = 16


@dataclass(frozen=True)
class Proposal:
    """A layout for a stream, with reasons.

    Attributes
    ----------
    layout
        The layout; None if there is no proposal.
    reasons
        Sentences that explain its fields.
    uncertain
        Sentences about fields that may be wrong.
    obstacle
        Why there is no proposal; None if there is one.
    trial
        What the layout does with the heaps that were seen; None if none was tried.
    attempt
        The layout that comes nearest, if too few heaps fit.
    """

    layout: Layout | None
    reasons: tuple[str, ...]
    uncertain: tuple[str, ...]
    obstacle: str | None = None
    trial: Trial | None = None
    attempt: Layout | None = None


def propose(
    stream: Stream,
    *,
    described: Mapping[int, Descriptor] | None = None,
    seconds: float | None = None,
    unrepeated: bool = False,
    reordered: bool = False,
    lacking: Mapping[int, int] | None = None,
) -> Proposal:
    """Propose a layout, and try it on the heaps that were seen.

    The data of heaps is taken as bytes unless a descriptor gives a type. Some things cannot be found in the heaps: axes
    whose index depends on the stream (``from_user_data``), senders that were silent, bits of an item that no heap had
    set, and which items to require (``required_items``) or to store (``side_items``).

    Parameters
    ----------
    stream
        The stream, from `Survey.streams`.
    described
        Descriptors of its items, from `Survey.described`.
    seconds
        Time from its first heap to its last, in seconds. It decides how much data a chunk should hold.
    unrepeated
        Whether only the first packets of heaps have all items.
    reordered
        Whether these came behind others of their heap.
    lacking
        Incomplete heaps, by the bytes that they lack, if all heaps are of this stream.

    Returns
    -------
    Proposal
        A layout with reasons, or the reason why there is none.
    """
    described = described or {}
    habits = Habits.of(stream, unrepeated=unrepeated, reordered=reordered, lacking=lacking or {})
    right = mended(stream, habits)
    best: Proposal | None = None
    try:
        for item in time_items(right, described):
            proposal = _attempt(right, item, habits, described, seconds)
            if proposal.layout is not None:
                best = proposal
                break
            if best is None or _fitting(proposal) > _fitting(best):
                best = proposal
    except NoProposalError as exc:
        obstacle = str(exc)
        best = Proposal(None, (), (), obstacle if "addressed" in obstacle else obstacle + _addressed(stream))
    assert best is not None
    said = [*_habits_with(habits, best.layout).said()]
    addressed = time_in_payload(right, described)
    if addressed and addressed not in (best.obstacle or ""):
        said.append(f"{addressed[0].upper()}{addressed[1:]}.")
    return dataclasses.replace(best, uncertain=(*said, *best.uncertain))


def _habits_with(habits: Habits, layout: Layout | None) -> Habits:
    """The habits, once it is known whether the heap counter is the time."""
    return dataclasses.replace(habits, is_timed=layout is not None and layout.time.item == spead2.HEAP_CNT_ID)


def _fitting(proposal: Proposal) -> int:
    return -1 if proposal.trial is None else proposal.trial.fitting


def _attempt(
    stream: Stream, item: TimeItem, habits: Habits, described: Mapping[int, Descriptor], seconds: float | None
) -> Proposal:
    """Propose a layout that takes the time from an item, and try it."""
    notes = Notes()
    trial: Trial | None = None
    layout: Layout | None = None
    obstacle: str | None = None
    try:
        layout, times, apart = _propose(stream, item, described, seconds, notes)
        layout = _with_packets(layout, stream, habits, notes)
        trial = try_layout(layout, stream, by_destination=apart)
        if layout.time.origin == "first":  # the first heap may be garbage
            fixed = dataclasses.replace(layout, time=dataclasses.replace(layout.time, origin=times.origin))
            fixed_trial = try_layout(fixed, stream, by_destination=apart)
            if fixed_trial.fitting > trial.fitting:
                layout, trial = fixed, fixed_trial
    except NoProposalError as exc:
        obstacle = str(exc)
    except LayoutError as exc:
        obstacle = f"what was found does not make a valid layout: {exc}"
    if trial is None:
        return Proposal(None, tuple(notes.reasons), tuple(notes.uncertain), obstacle)
    if trial.passed:
        notes.reasons.append(f"tried: {trial}.")
        return Proposal(layout, tuple(notes.reasons), tuple(notes.uncertain), None, trial)
    obstacle = f"of the layout that comes nearest, {trial}"
    return Proposal(None, tuple(notes.reasons), tuple(notes.uncertain), obstacle, trial, layout)


def _propose(
    stream: Stream, item: TimeItem, described: Mapping[int, Descriptor], seconds: float | None, notes: Notes
) -> tuple[Layout, Times, bool]:
    """Propose a layout that takes the time from an item; and say whether each destination needs a stream of its own."""
    notes.reasons.append(f"heap_bytes: {stream.heap_bytes}, the length of {counted(stream.heaps, 'heap')}.")
    if stream.others:
        left_out = f"{counted(stream.others, 'heap')} with another length, flavour or set of items"
        notes.reasons.append(f"{left_out} {'was' if stream.others == 1 else 'were'} left out.")
    times = read_times(stream, item, notes)
    good = times.numbers >= 0
    numbers = times.numbers[good]
    chosen, columns = _choose(stream, times)
    clean = all_good(chosen, int(good.sum()))
    others = [column for column in columns if column.recurs and column not in chosen]
    guarding = [column for column in others if guards(column, numbers, chosen)]
    chosen.sort(key=lambda column: int(np.count_nonzero(np.diff(column.values[clean]))))
    axes = _axes(chosen, guarding, described, notes)
    apart = _note_targets(stream, good, clean, numbers, chosen, notes)
    sources = _sources(chosen, axes, stream.senders[good], times, notes)
    batch_heaps = math.prod(_size(axis) for axis in axes)
    batches = _batches(stream.heap_bytes, batch_heaps, times, np.unique(numbers).size, seconds, notes)
    _note_known(stream, item.field, axes, notes)
    source_axis = next((axis for axis in axes if axis.name == sources), None)
    layout = Layout(
        heap_bytes=stream.heap_bytes,
        time=times.axis(batches, None if times.source is None else _phases(times, source_axis)),
        axes=axes,
        sources=sources,
        source_labels=_labels(source_axis),
        **contents(stream, described, notes),
    )
    return layout, times, apart


def _with_packets(layout: Layout, stream: Stream, habits: Habits, notes: Notes) -> Layout:
    """Add what is to be mended in packets, and the item that is the data."""
    mends = _habits_with(habits, layout).mends()
    if mends:
        layout = dataclasses.replace(layout, packets=Packets(**mends))
    if len(stream.payload_items) != 1 or stream.payload_one_of is not None:
        return layout
    (item,) = stream.payload_items
    if stream.mixed:
        # Without the table, spead2 itself would read sockets, and cut out nothing.
        notes.reasons.append("packets: some heaps have descriptors beside their data, which are to be cut out.")
        return dataclasses.replace(layout, payload_item=item, packets=layout.packets or Packets())
    # Not all IDs can be used together with it, and it is not needed.
    with contextlib.suppress(LayoutError):
        return dataclasses.replace(layout, payload_item=item)
    return layout


def _choose(stream: Stream, times: Times) -> tuple[list[Column], list[Column]]:
    """Find what tells heaps of the same time apart; and all columns that were looked at."""
    good = times.numbers >= 0
    numbers = times.numbers[good]
    used = times.item.ids
    columns = [sort_out(item, values[good], numbers) for item, values in stream.items.items() if item not in used]
    for one_of, origin in ((stream.one_of, From.PRESENT), (stream.payload_one_of, From.PAYLOAD)):
        if one_of is not None:
            columns.append(sort_out(0, one_of.which[good], numbers, origin))
    chosen = distinguishing(numbers, columns, _AXIS_NAMES)
    if chosen is not None and times.source is not None:
        # Each source has its own phase, so its axis is needed even if no two ever have a heap of the same time.
        chosen += [column for column in columns if column.item == times.source and column not in chosen]
    if stream.counters is None or spead2.HEAP_CNT_ID in used:
        if chosen is None:
            raise NoProposalError(_indistinct(columns) + _addressed(stream))
        return chosen, columns
    alike = _alike(stream, good, numbers, chosen or [])
    if chosen is not None and alike <= 1 - LEAST_FITTING:
        return chosen, columns
    for column in _last_resorts(stream, good, numbers):
        more = distinguishing(numbers, [*columns, column], _AXIS_NAMES)
        if more is not None and _alike(stream, good, numbers, more) <= 1 - LEAST_FITTING:
            return more, columns
    raise NoProposalError((_indistinct(columns) if chosen is None else _alike_text(alike)) + _addressed(stream))


def _last_resorts(stream: Stream, good: np.ndarray, numbers: np.ndarray) -> Iterator[Column]:
    """What tells heaps apart if no item does: their sender, or bits of the heap counter."""
    if stream.sender_ids is not None and np.unique(stream.senders).size > 1:
        yield sort_out(0, stream.sender_ids[good], numbers, From.SENDER)
    if stream.counters is not None and not stream.whole:
        for shift, mask in _COUNTER_BITS:
            field = (stream.counters[good] >> np.uint64(shift)) & np.uint64(mask)
            column = sort_out(spead2.HEAP_CNT_ID, field, numbers, From.COUNTER)
            yield dataclasses.replace(column, shift=shift, mask=mask)


def _alike(stream: Stream, good: np.ndarray, numbers: np.ndarray, chosen: list[Column]) -> float:
    """The fraction of the heaps that have the time and the chosen values of another heap to the same destination."""
    assert stream.counters is not None
    clean = all_good(chosen, int(good.sum()))
    slots = joint(stream.targets[good][clean], numbers[clean], *(column.values[clean] for column in chosen))
    heaps = joint(slots, stream.senders[good][clean], stream.counters[good][clean])
    return 1 - count(slots) / max(1, count(heaps))


def _indistinct(columns: list[Column]) -> str:
    scattered = ", ".join(f"{column.item:#x}" for column in columns if not column.recurs)
    return (
        "many heaps have the same time, and the same value of every item whose values come again (they differ only "
        f"in {scattered}, whose values do not come again): nothing says where such heaps belong"
    )


def _alike_text(alike: float) -> str:
    return (
        f"{alike:.0%} of the heaps have the same time and the same values of all items as another heap (only the heap "
        "counter or the sender is another): nothing says where such heaps belong"
    )


def _addressed(stream: Stream) -> str:
    """Say that values of items may be in the payload; nothing if there is but one item, which is the data."""
    if len(stream.payload_items) < 2:
        return ""
    items = listed((f"{item:#x} ({item_name(item) or 'unknown'})" for item in stream.payload_items), 8)
    return (
        f". Items {items} are addressed: their values are in the payload, where placement does not look. If one of "
        "them tells where heaps belong, a [packets] table of the layout makes it immediate: "
        f'items = {{ {stream.payload_items[0]:#x} = ">u8" }}, or whatever bytes and order it has'
    )


def _phases(times: Times, axis: Axis | None) -> tuple[int, ...]:
    """The phase of each source, by index."""
    if axis is None or axis.item != times.source:
        raise NoProposalError(f"the times have a phase for each value of item {times.source:#x}, which is no axis")
    values = axis.values or range(0, (axis.size or 0) * axis.step, axis.step)
    return tuple(times.phases.get(value, 0) for value in values)


def _size(axis: Axis) -> int:
    """The number of indices on an axis."""
    return axis.size or len(axis.values or axis.payload_items or axis.present_items or ())


def _labels(axis: Axis | None) -> tuple[str, ...]:
    """Labels of the sources, if their axis lists values."""
    if axis is None:
        return ()
    ids = axis.payload_items or axis.present_items or ()
    return tuple(map(str, axis.values or ())) or tuple(f"{item:#x}" for item in ids)


def _axis_name(column: Column, described: Mapping[int, Descriptor], taken: set[str]) -> str:
    item = column.item
    names = {From.SENDER: "sender", From.COUNTER: "counter", From.PAYLOAD: "payload", From.PRESENT: "present"}
    name = names.get(column.origin) or _AXIS_NAMES.get(item)
    name = name or (described[item].name if item in described else item_name(item) or "")
    name = re.sub(r"\W", "_", name, flags=re.ASCII)
    if not name or name[0].isdigit() or name in taken:
        name = f"item_{item:04x}"
    taken.add(name)
    return name


def _axes(
    chosen: list[Column], guarding: list[Column], described: Mapping[int, Descriptor], notes: Notes
) -> tuple[Axis, ...]:
    taken = {"time"}
    axes = []
    for column in [*chosen, *guarding]:
        name = _axis_name(column, described, taken)
        fields, how = _indices(column, name, notes)
        axes.append(Axis(name=name, **fields))
        why = "tells heaps of the same time apart"
        if column in guarding:
            why = "keeps out garbage: other values are rare, and their heaps share a slot with a good one"
        elif column.established.size == 1:
            why = "keeps out garbage, which has another value"
        what = {
            From.SENDER: "the sender",
            From.PAYLOAD: "the ID of the item in the payload",
            From.PRESENT: "which of several items a heap has",
            From.COUNTER: f"bits {column.shift} to {column.shift + 15} of the heap counter",
        }
        notes.reasons.append(f"axis {name}: {what.get(column.origin, f'item {column.item:#x}')} {why}; {how}.")
    if not chosen:
        notes.reasons.append("axes: no item tells heaps of the same time apart, so there is one heap for each time.")
    return tuple(axes)


def _indices(column: Column, name: str, notes: Notes) -> tuple[dict[str, Any], str]:
    """The fields of an axis that say what its indices are, and the same in words."""
    values = [int(value) for value in column.established]
    if column.origin in (From.PAYLOAD, From.PRESENT):
        field = "payload_items" if column.origin is From.PAYLOAD else "present_items"
        return {field: tuple(values)}, ", ".join(f"{value:#x}" for value in values)
    if column.origin is From.SENDER:
        return {"item": "sender", "values": tuple(values)}, f"{counted(len(values), 'sender')} in a list"
    step = math.gcd(*values)
    size = values[-1] // step + 1 if step else 1
    grid = set(range(0, values[-1] + 1, step)) if step and size <= 2 * len(values) else {0}
    bad = set(map(int, np.unique(column.values[~column.good])))
    part = {"shift": column.shift, "mask": column.mask} if column.origin is From.COUNTER else {}
    # A rare value between others is garbage. A value that was never seen may be a silent sender.
    if len(values) >= _GRID_FILL * size and values[0] == 0 and not bad & grid:
        if len(values) < size:
            silent = ", ".join(map(str, sorted(grid - set(values))[:8]))
            notes.uncertain.append(f"Axis {name}: some values between others were not seen: {silent}.")
        how = f"{counted(size, 'value')} from 0" + (f" in steps of {step}" if step > 1 else "")
        return {"item": column.item, "size": size, "step": step or 1, **part}, how
    if len(values) <= _MOST_LISTED:
        return {"item": column.item, "values": tuple(values), **part}, f"{counted(len(values), 'value')} in a list"
    raise NoProposalError(f"item {column.item:#x} has {len(values):,} values, which are too many to list")


def _note_targets(
    stream: Stream, good: np.ndarray, clean: np.ndarray, times: np.ndarray, chosen: list[Column], notes: Notes
) -> bool:
    """Note if the same heaps seem to come more than once; say whether they come to several destinations."""
    apart = False
    slots = joint(times[clean], *(column.values[clean] for column in chosen))
    for what, numbers in (("to {} destinations", stream.targets), ("from {} senders", stream.senders)):
        pairs = joint(slots, numbers[good][clean])
        ratio = count(pairs) / max(1, count(slots))
        if ratio > 1.5:
            n = np.unique(numbers).size
            notes.uncertain.append(
                f"Heaps with the same time and items come {what.format(n)}. They may differ in something that no item "
                "says, such as the polarisation. Receive each in a stream of its own, or add an axis with "
                "from_user_data."
            )
            apart |= numbers is stream.targets
    return apart


def _sources(
    chosen: list[Column], axes: tuple[Axis, ...], senders: np.ndarray, times: Times, notes: Notes
) -> str | None:
    if not chosen:
        return None
    named = [(column, axis.name) for column, axis in zip(chosen, axes, strict=False)]
    for column, name in named:
        if column.origin is From.ITEM and column.item == times.source:
            notes.reasons.append(f"sources: {name}, because the times of each have a phase of their own.")
            return name
    for item in _SOURCE_ITEMS:
        for column, name in named:
            if column.item == item:
                notes.reasons.append(f"sources: {name}, because item {item:#x} says where heaps come from.")
                return name
    n_senders = np.unique(senders).size
    for column, name in named if n_senders > 1 else ():
        if count(joint(senders[column.good], column.values[column.good])) == n_senders:
            notes.reasons.append(f"sources: {name}, because each of {n_senders} senders has one value of it.")
            return name
    name = named[0][1]
    if len(chosen) > 1:
        notes.uncertain.append(f"sources: {name} is a guess: nothing says which heaps come from the same source.")
    return name


def _batches(heap_bytes: int, batch_heaps: int, times: Times, n_times: int, seconds: float | None, notes: Notes) -> int:
    """Choose the batches of a chunk: a power of two."""
    bits = TIMESTAMP_BITS if times.bits is None else times.bits
    limits = {
        f"{_CHUNK_BYTES >> 20} MiB": _CHUNK_BYTES / (heap_bytes * batch_heaps),
        f"{_CHUNK_HEAPS:,} heaps": _CHUNK_HEAPS / batch_heaps,
        f"1/{2 * _WINDOW} of the range of timestamps": 2 ** (bits - 1) / _WINDOW / times.step,
    }
    if seconds:
        limits[f"{_CHUNK_SECONDS:g} s"] = _CHUNK_SECONDS * n_times / seconds
    least = min(limits, key=lambda name: limits[name])
    batches = 1 << max(0, int(limits[least]).bit_length() - 1)
    size = batches * batch_heaps * heap_bytes
    notes.reasons.append(
        f"batches: {batches}, so a chunk has {counted(batches * batch_heaps, 'heap')}, {size:,} bytes (limit: {least})."
        if limits[least] >= 1
        else f"batches: 1, although such a chunk exceeds the limit of {least}."
    )
    return batches


def _note_known(stream: Stream, time: int | tuple[int, ...], axes: tuple[Axis, ...], notes: Notes) -> None:
    """Note if a layout that comes with speadrx has the same time and axes: it knows what heaps hold."""

    def of_axes(axes: tuple[Axis, ...]) -> set[int]:
        return {item for axis in axes for item in (axis.present_items or (axis.item,)) if isinstance(item, int)}

    found, times = of_axes(axes), {time} if isinstance(time, int) else {*time}
    matches: dict[str, set[int]] = {}
    exact = set()
    for name in presets.names():
        known = presets.load(name)
        payload_items = {known.payload_item, *(item for axis in known.axes for item in axis.payload_items or ())} - {
            None
        }
        if payload_items and payload_items.isdisjoint(stream.payload_items):
            continue
        theirs = of_axes(known.axes)
        others = {*known.required_items, *(side.item for side in known.side_items)}
        if {*known.time.items} == times and found <= theirs and (theirs | others) - times <= stream.items.keys():
            matches[name] = theirs | others
            if theirs == found:
                exact.add(name)
    for name, items in matches.items():
        # Not if another one has these axes and no more, or explains more of the items.
        if name in (exact or matches) and not any(items < matches[more] for more in exact or matches):
            notes.uncertain.append(
                f"The layout {name} has these items and knows what they mean: see 'speadrx layout {name}'."
            )
