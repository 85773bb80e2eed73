"""Propose a layout for a stream that was surveyed, with the reasons for it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from speadrx._core import LayoutError
from speadrx.layout import presets
from speadrx.layout.declaration import Axis, Layout, TimeAxis
from speadrx.layout.items import TIMESTAMP_BITS, item_name
from speadrx.layout.meerkat import DIGITISER_ID_ID, FENG_ID_ID, FREQUENCY_ID, TIMESTAMP_ID

from .columns import Column, all_good, distinguishing, guards, sort_out
from .heaps import Descriptor
from .kinds import Stream
from .values import RISING, common_step, count, joint, most_frequent, rise, unwrapped

#: Known items, with the name of the axis that they make.
_AXIS_NAMES = {FENG_ID_ID: "antenna", DIGITISER_ID_ID: "digitiser", FREQUENCY_ID: "frequency"}
#: Those of them that say who sent a heap.
_SOURCE_ITEMS = (FENG_ID_ID, DIGITISER_ID_ID)

#: Heaps that must be on the grid of the step, of all.
_ON_GRID = 0.7
#: A time that is further than so many steps from those of the heaps around it is garbage.
_FAR_STEPS = 4096
_NEIGHBOURS = 256
#: Indices of a grid that must have been seen; else the values are listed.
_GRID_FILL = 0.75
#: Most values that are listed.
_MOST_LISTED = 65536

_CHUNK_BYTES = 2**24
_CHUNK_HEAPS = 2**16
_CHUNK_SECONDS = 1.0
#: Chunks that a receiver may have under construction; the time that they span must fit half the range of timestamps.
_WINDOW = 16


@dataclass(frozen=True)
class Proposal:
    """A layout for a stream, with what speaks for it.

    Attributes
    ----------
    layout
        The layout; None if none can be proposed.
    reasons
        Why it is as it is, in sentences.
    uncertain
        What may be otherwise, in sentences.
    obstacle
        Why none can be proposed.
    """

    layout: Layout | None
    reasons: tuple[str, ...]
    uncertain: tuple[str, ...]
    obstacle: str | None = None


class _NoProposalError(Exception):
    """Says why there is no proposal."""


@dataclass
class _Notes:
    reasons: list[str] = field(default_factory=list)
    uncertain: list[str] = field(default_factory=list)


def propose(
    stream: Stream, *, described: Mapping[int, Descriptor] | None = None, seconds: float | None = None
) -> Proposal:
    """Propose a layout.

    What heaps hold is taken for bytes unless a descriptor says otherwise. What the heaps do not say cannot be found:
    axes that are told by the stream that a heap comes in (``from_user_data``), senders that were silent all the
    time, bits of an item that no heap has set, and items that are no axis, but required or kept beside the heaps.

    Parameters
    ----------
    stream
        The stream, from `Survey.streams`.
    described
        What its senders say of items, from `Survey.described`.
    seconds
        Time from its first heap to its last, to judge how much a chunk should hold.

    Returns
    -------
    Proposal
        A layout and the reasons for it, or the reason why there is none.
    """
    failed: Proposal | None = None
    try:
        candidates = _time_items(stream)
    except _NoProposalError as exc:
        return Proposal(None, (), (), str(exc))
    for item in candidates:
        notes = _Notes()
        obstacle: str | None = None
        layout: Layout | None = None
        try:
            layout = _propose(stream, item, described or {}, seconds, notes)
        except _NoProposalError as exc:
            obstacle = str(exc)
        except LayoutError as exc:
            obstacle = f"what was found makes no layout: {exc}"
        proposal = Proposal(layout, tuple(notes.reasons), tuple(notes.uncertain), obstacle)
        if layout is not None:
            return proposal
        failed = failed or proposal
    assert failed is not None
    return failed


def _propose(
    stream: Stream, item: int, described: Mapping[int, Descriptor], seconds: float | None, notes: _Notes
) -> Layout:
    """Propose a layout with that item as time."""
    notes.reasons.append(f"heap_bytes: {stream.heap_bytes}, as {stream.heaps:,} heaps have.")
    if stream.others:
        notes.reasons.append(f"{stream.others:,} heaps of another length, flavour or set of items were left out.")
    times, step, align = _time(stream, item, notes)
    good = times >= 0
    columns = [sort_out(other, values[good], times[good]) for other, values in stream.items.items() if other != item]
    chosen = distinguishing(times[good], columns, _AXIS_NAMES)
    if chosen is None:
        scattered = ", ".join(f"{column.item:#x}" for column in columns if not column.recurs)
        raise _NoProposalError(
            f"many heaps have the same time and the same value of every item that recurs (they differ in {scattered}, "
            "whose values do not): nothing in them says where they belong"
        )
    clean = all_good(chosen, int(good.sum()))
    others = [column for column in columns if column.recurs and column not in chosen]
    guarding = [column for column in others if guards(column, times[good], chosen)]
    chosen.sort(key=lambda column: int(np.count_nonzero(np.diff(column.values[clean]))))
    axes = _axes(chosen, guarding, described, notes)
    _note_targets(stream, good, clean, times[good], chosen, notes)
    sources = _sources(chosen, axes, stream.senders[good], notes)
    batch_heaps = math.prod(axis.size or len(axis.values or ()) for axis in axes)
    batches = _batches(stream.heap_bytes, batch_heaps, step, np.unique(times[good]).size, seconds, notes)
    dtype, heap_shape = _contents(stream, described, notes)
    _note_known(stream, item, axes, notes)
    labels = next((tuple(map(str, axis.values)) for axis in axes if axis.name == sources and axis.values), ())
    return Layout(
        heap_bytes=stream.heap_bytes,
        time=TimeAxis(item=item, step=step, batches=batches, align=align),
        axes=axes,
        sources=sources,
        source_labels=labels,
        dtype=dtype,
        heap_shape=heap_shape,
    )


def _time_items(stream: Stream) -> list[int]:
    """The items that may be the time, the likeliest first: MeerKAT's timestamp, if it is there, is the only one."""
    if not stream.items:
        raise _NoProposalError("the heaps have no items with immediate values, so that nothing says their time")
    distinct = {item: np.unique(values).size for item, values in stream.items.items()}
    rises = {item: rise(values) for item, values in stream.items.items()}
    if TIMESTAMP_ID in rises:
        if rises[TIMESTAMP_ID] < RISING and distinct[TIMESTAMP_ID] <= 2:
            raise _NoProposalError(
                f"all heaps are of {distinct[TIMESTAMP_ID]} time(s) (item {TIMESTAMP_ID:#x}), which is not enough to "
                "find the step of the time axis: take more packets"
            )
        return [TIMESTAMP_ID]
    found = [item for item, value in rises.items() if value >= RISING]
    if not found:
        best = max(rises, key=lambda item: rises[item])
        raise _NoProposalError(
            f"no item rises as the heaps arrive, so none can be the time (best: item {best:#x}, with a rank "
            f"correlation of {rises[best]:.2f} of the {RISING} wanted): take more packets, or see the items"
        )
    # What counts heaps has a value of its own in each; what is coarser than time, such as a status, has fewer.
    return sorted(found, key=lambda item: (distinct[item] == stream.heaps, -distinct[item], item))


def _time(stream: Stream, item: int, notes: _Notes) -> tuple[np.ndarray, int, Literal["reject", "mask"]]:
    """The number of the step of each heap (-1 if it is on none), the step, and how to align times."""
    values = stream.items[item]
    known = ", MeerKAT's timestamp," if item == TIMESTAMP_ID else ""
    step = common_step(values)
    if step is None:
        raise _NoProposalError(f"all heaps have the same time (item {item:#x}): take more packets")
    phase = most_frequent(values % np.uint64(step))
    good = (values % np.uint64(step) == phase) & (values < np.uint64(1 << TIMESTAMP_BITS))
    on_grid = np.count_nonzero(good) / values.size
    if on_grid < _ON_GRID:
        raise _NoProposalError(
            f"the times (item {item:#x}) have no common step: the most frequent is {step}, but only {on_grid:.0%} of "
            "the heaps are a multiple of it apart"
        )
    align: Literal["reject", "mask"] = "reject"
    if phase:
        if step & (step - 1):
            raise _NoProposalError(
                f"the times (item {item:#x}) go in steps of {step}, but are {phase} beyond its multiples, which a "
                "layout cannot say"
            )
        align = "mask"
        notes.uncertain.append(f"Times are {phase} beyond the multiples of the step, so low bits are masked off.")
    correlation = rise(values)
    how = "rises as the heaps arrive, in steps" if correlation >= RISING else "goes in steps"
    notes.reasons.append(
        f"time: item {item:#x}{known} {how} of {step} for most ({on_grid:.2%} of the heaps are on that grid)."
    )
    if correlation < RISING:
        notes.uncertain.append(
            f"Times do not rise as the heaps arrive (rank correlation {correlation:.2f} of the {RISING} wanted): "
            "senders may have started anew, or disagree on the time."
        )
    numbers = (unwrapped(values) // np.uint64(step)).astype(np.int64)
    good &= _plausible(numbers, good, step)
    return np.where(good, numbers, -1), step, align


def _plausible(numbers: np.ndarray, good: np.ndarray, step: int) -> np.ndarray:
    """Which heaps are of about the time of those that came with them."""
    most = min(_FAR_STEPS, 2**TIMESTAMP_BITS // step // 8)
    plausible = np.ones(numbers.size, bool)
    for start in range(0, numbers.size, _NEIGHBOURS):
        part = slice(start, start + _NEIGHBOURS)
        if good[part].any():
            plausible[part] = np.abs(numbers[part] - np.median(numbers[part][good[part]])) <= most
    return plausible


def _axis_name(item: int, described: Mapping[int, Descriptor], taken: set[str]) -> str:
    name = _AXIS_NAMES.get(item) or (described[item].name if item in described else item_name(item) or "")
    name = re.sub(r"\W", "_", name, flags=re.ASCII)
    if not name or name[0].isdigit() or name in taken:
        name = f"item_{item:04x}"
    taken.add(name)
    return name


def _axes(
    chosen: list[Column], guarding: list[Column], described: Mapping[int, Descriptor], notes: _Notes
) -> tuple[Axis, ...]:
    taken = {"time"}
    axes = []
    for column in [*chosen, *guarding]:
        name = _axis_name(column.item, described, taken)
        values = [int(value) for value in column.established]
        step = math.gcd(*values)
        size = values[-1] // step + 1 if step else 1
        grid = set(range(0, values[-1] + 1, step)) if step and size <= 2 * len(values) else {0}
        bad = set(map(int, np.unique(column.values[~column.good])))
        # A value between others that is there, but rarely, is garbage, and not a sender that was silent.
        if len(values) >= _GRID_FILL * size and values[0] == 0 and not bad & grid:
            axes.append(Axis(name=name, item=column.item, size=size, step=step or 1))
            how = f"{size} values from 0" + (f" in steps of {step}" if step > 1 else "")
            if len(values) < size:
                silent = ", ".join(map(str, sorted(grid - set(values))[:8]))
                notes.uncertain.append(f"Axis {name}: values between others were not seen: {silent}.")
        elif len(values) <= _MOST_LISTED:
            axes.append(Axis(name=name, item=column.item, values=tuple(values)))
            how = f"{len(values)} values in a list"
        else:
            raise _NoProposalError(f"item {column.item:#x} has {len(values):,} values, too many to list")
        if column in guarding:
            why = "other values come rarely, and only where there is a heap already: such are garbage"
        else:
            why = "tells heaps of the same time apart"
            if len(values) == 1:
                why = "another value of it was garbage"
        notes.reasons.append(f"axis {name}: item {column.item:#x} {why}; {how}.")
    if not chosen:
        notes.reasons.append("axes: no item tells heaps of the same time apart, so each time has one heap.")
    return tuple(axes)


def _note_targets(
    stream: Stream, good: np.ndarray, clean: np.ndarray, times: np.ndarray, chosen: list[Column], notes: _Notes
) -> None:
    """Say if the same heaps seem to come more than once."""
    slots = joint(times[clean], *(column.values[clean] for column in chosen))
    for what, numbers in (("to {} destinations", stream.targets), ("from {} senders", stream.senders)):
        pairs = joint(slots, numbers[good][clean])
        ratio = count(pairs) / max(1, count(slots))
        if ratio > 1.5:
            n = np.unique(numbers).size
            notes.uncertain.append(
                f"Heaps with the same time and items come {what.format(n)}: something that no item says tells them "
                "apart, such as the polarisation. Receive each with a stream of its own, or add an axis with "
                "from_user_data."
            )


def _sources(chosen: list[Column], axes: tuple[Axis, ...], senders: np.ndarray, notes: _Notes) -> str | None:
    if not chosen:
        return None
    named = {column.item: axis.name for column, axis in zip(chosen, axes, strict=False)}
    for item in _SOURCE_ITEMS:
        if item in named:
            notes.reasons.append(f"sources: {named[item]}, as item {item:#x} says where heaps come from.")
            return named[item]
    n_senders = np.unique(senders).size
    for column in chosen if n_senders > 1 else ():
        if count(joint(senders[column.good], column.values[column.good])) == n_senders:
            notes.reasons.append(f"sources: {named[column.item]}, of which each of {n_senders} senders has one value.")
            return named[column.item]
    name = named[chosen[0].item]
    if len(chosen) > 1:
        notes.uncertain.append(
            f"sources: {name} is a guess, as nothing says what heaps of the same sender have in common."
        )
    return name


def _batches(heap_bytes: int, batch_heaps: int, step: int, n_times: int, seconds: float | None, notes: _Notes) -> int:
    """A power of two of batches for a chunk."""
    limits = {
        f"{_CHUNK_BYTES >> 20} MiB": _CHUNK_BYTES / (heap_bytes * batch_heaps),
        f"{_CHUNK_HEAPS:,} heaps": _CHUNK_HEAPS / batch_heaps,
        f"1/{2 * _WINDOW} of the range of timestamps": 2 ** (TIMESTAMP_BITS - 1) / _WINDOW / step,
    }
    if seconds:
        limits[f"{_CHUNK_SECONDS:g} s"] = _CHUNK_SECONDS * n_times / seconds
    least = min(limits, key=lambda name: limits[name])
    batches = 1 << max(0, int(limits[least]).bit_length() - 1)
    size = batches * batch_heaps * heap_bytes
    notes.reasons.append(
        f"batches: {batches}, so that a chunk has {batches * batch_heaps:,} heaps, {size:,} bytes (at most {least})."
        if limits[least] >= 1
        else f"batches: 1, though a chunk exceeds {least} with it."
    )
    return batches


def _contents(stream: Stream, described: Mapping[int, Descriptor], notes: _Notes) -> tuple[str, tuple[int, ...] | None]:
    for item in stream.payload_items:
        descriptor = described.get(item)
        if descriptor is None or descriptor.dtype is None or None in descriptor.shape:
            continue
        shape = tuple(n for n in descriptor.shape if n is not None)
        if math.prod(shape) * np.dtype(descriptor.dtype).itemsize == stream.heap_bytes:
            dtype = np.dtype(descriptor.dtype)
            notes.reasons.append(f"dtype: {dtype} of shape {shape}, as item {item:#x} was described.")
            return dtype.str, shape
    notes.uncertain.append("dtype: uint8, as no descriptor says what heaps hold.")
    return "uint8", None


def _note_known(stream: Stream, time: int, axes: tuple[Axis, ...], notes: _Notes) -> None:
    """Say if the layout of a known instrument has the same time and axes: it knows what heaps hold."""
    found = {axis.item for axis in axes}
    matches: dict[str, set[int]] = {}
    for name in presets.names():
        known = presets.load(name)
        theirs = {axis.item for axis in known.axes if axis.item is not None}
        others = {*known.required_items, *(side.item for side in known.side_items)}
        if known.time.item == time and found <= theirs and theirs | others <= stream.items.keys():
            matches[name] = theirs | others
    for name, items in matches.items():
        # Of two, it is that which accounts for more of the items.
        if not any(items < more for more in matches.values()):
            notes.uncertain.append(
                f"The layout {name} has these items and knows what they mean, see 'speadrx layout {name}'."
            )
