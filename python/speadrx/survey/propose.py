"""Propose a layout for a stream of a survey, with reasons."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from speadrx._core import LayoutError
from speadrx._words import counted
from speadrx.layout import presets
from speadrx.layout.declaration import Axis, Layout, TimeAxis
from speadrx.layout.items import TIMESTAMP_BITS, item_name
from speadrx.layout.meerkat import DIGITISER_ID_ID, FENG_ID_ID, FREQUENCY_ID, TIMESTAMP_ID

from .columns import Column, all_good, distinguishing, guards, sort_out
from .heaps import Descriptor
from .kinds import Stream
from .values import RISING, common_step, count, joint, most_frequent, rise, unwrapped

#: Known items, and the names of their axes.
_AXIS_NAMES = {FENG_ID_ID: "antenna", DIGITISER_ID_ID: "digitiser", FREQUENCY_ID: "frequency"}
#: Items of these that say where a heap comes from.
_SOURCE_ITEMS = (FENG_ID_ID, DIGITISER_ID_ID)

#: Fraction of the heaps whose times must be on the grid of the step.
_ON_GRID = 0.7
#: A time is garbage if it differs by more than so many steps from the times of the heaps around it.
_FAR_STEPS = 4096
_NEIGHBOURS = 256
#: Values make a grid if at least this fraction of its indices were seen. Otherwise they are listed.
_GRID_FILL = 0.75
#: Longest list of values.
_MOST_LISTED = 65536

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
    """

    layout: Layout | None
    reasons: tuple[str, ...]
    uncertain: tuple[str, ...]
    obstacle: str | None = None


class _NoProposalError(Exception):
    """There is no proposal; the message says why."""


@dataclass
class _Notes:
    reasons: list[str] = field(default_factory=list)
    uncertain: list[str] = field(default_factory=list)


def propose(
    stream: Stream, *, described: Mapping[int, Descriptor] | None = None, seconds: float | None = None
) -> Proposal:
    """Propose a layout.

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

    Returns
    -------
    Proposal
        A layout with reasons, or the reason why there is none.
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
            obstacle = f"what was found does not make a valid layout: {exc}"
        proposal = Proposal(layout, tuple(notes.reasons), tuple(notes.uncertain), obstacle)
        if layout is not None:
            return proposal
        failed = failed or proposal
    assert failed is not None
    return failed


def _propose(
    stream: Stream, item: int, described: Mapping[int, Descriptor], seconds: float | None, notes: _Notes
) -> Layout:
    """Propose a layout that takes the time from an item."""
    notes.reasons.append(f"heap_bytes: {stream.heap_bytes}, the length of {counted(stream.heaps, 'heap')}.")
    if stream.others:
        left_out = f"{counted(stream.others, 'heap')} with another length, flavour or set of items"
        notes.reasons.append(f"{left_out} {'was' if stream.others == 1 else 'were'} left out.")
    times, step, align = _time(stream, item, notes)
    good = times >= 0
    columns = [sort_out(other, values[good], times[good]) for other, values in stream.items.items() if other != item]
    chosen = distinguishing(times[good], columns, _AXIS_NAMES)
    if chosen is None:
        scattered = ", ".join(f"{column.item:#x}" for column in columns if not column.recurs)
        raise _NoProposalError(
            "many heaps have the same time, and the same value of every item whose values come again (they differ only "
            f"in {scattered}, whose values do not come again): nothing says where such heaps belong"
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
    """Find items that may be the time, the likeliest first. If MeerKAT's timestamp is there, it is the only one."""
    if not stream.items:
        raise _NoProposalError("the heaps have no items with immediate values, so nothing says their time")
    distinct = {item: np.unique(values).size for item, values in stream.items.items()}
    rises = {item: rise(values) for item, values in stream.items.items()}
    if TIMESTAMP_ID in rises:
        if rises[TIMESTAMP_ID] < RISING and distinct[TIMESTAMP_ID] <= 2:
            raise _NoProposalError(
                f"all heaps together have only {counted(distinct[TIMESTAMP_ID], 'time')} (item {TIMESTAMP_ID:#x}), "
                "which is not enough to find the step of the time axis: take more packets"
            )
        return [TIMESTAMP_ID]
    found = [item for item, value in rises.items() if value >= RISING]
    if not found:
        best = max(rises, key=lambda item: rises[item])
        raise _NoProposalError(
            f"no item rises as the heaps arrive, so none can be the time (best: item {best:#x}, with a rank "
            f"correlation of {rises[best]:.2f} of the {RISING} wanted): take more packets, or see the items"
        )
    # A counter of heaps has a new value in each heap, and comes last. What changes less often than time, such as a
    # status, has fewer values.
    return sorted(found, key=lambda item: (distinct[item] == stream.heaps, -distinct[item], item))


def _time(stream: Stream, item: int, notes: _Notes) -> tuple[np.ndarray, int, Literal["reject", "mask"]]:
    """For each heap the number of its step (-1 if its time is garbage), the step, and how to align times."""
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
            f"the times (item {item:#x}) have no common step: the most frequent step is {step}, but only {on_grid:.0%} "
            "of the heaps are multiples of it apart"
        )
    align: Literal["reject", "mask"] = "reject"
    if phase:
        if step & (step - 1):
            raise _NoProposalError(
                f"the times (item {item:#x}) go in steps of {step}, but are {phase} above its multiples, and a layout "
                "cannot express that"
            )
        align = "mask"
        notes.uncertain.append(f"Times are {phase} above the multiples of the step, so the low bits are masked off.")
    correlation = rise(values)
    how = "rises as heaps arrive, in steps" if correlation >= RISING else "goes in steps"
    notes.reasons.append(f"time: item {item:#x}{known} {how} of {step} ({on_grid:.2%} of the heaps are on this grid).")
    if correlation < RISING:
        notes.uncertain.append(
            f"Times do not rise as heaps arrive (rank correlation {correlation:.2f}; {RISING} or more is expected): "
            "senders may have restarted, or do not agree on the time."
        )
    numbers = (unwrapped(values) // np.uint64(step)).astype(np.int64)
    good &= _plausible(numbers, good, step)
    return np.where(good, numbers, -1), step, align


def _plausible(numbers: np.ndarray, good: np.ndarray, step: int) -> np.ndarray:
    """For each heap, whether its time is near that of the heaps that came with it."""
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
        # A rare value between others is garbage. A value that was never seen may be a silent sender.
        if len(values) >= _GRID_FILL * size and values[0] == 0 and not bad & grid:
            axes.append(Axis(name=name, item=column.item, size=size, step=step or 1))
            how = f"{counted(size, 'value')} from 0" + (f" in steps of {step}" if step > 1 else "")
            if len(values) < size:
                silent = ", ".join(map(str, sorted(grid - set(values))[:8]))
                notes.uncertain.append(f"Axis {name}: some values between others were not seen: {silent}.")
        elif len(values) <= _MOST_LISTED:
            axes.append(Axis(name=name, item=column.item, values=tuple(values)))
            how = f"{counted(len(values), 'value')} in a list"
        else:
            raise _NoProposalError(f"item {column.item:#x} has {len(values):,} values, which are too many to list")
        why = "tells heaps of the same time apart"
        if column in guarding:
            why = "keeps out garbage: other values are rare, and their heaps share a slot with a good one"
        elif len(values) == 1:
            why = "keeps out garbage, which has another value"
        notes.reasons.append(f"axis {name}: item {column.item:#x} {why}; {how}.")
    if not chosen:
        notes.reasons.append("axes: no item tells heaps of the same time apart, so there is one heap for each time.")
    return tuple(axes)


def _note_targets(
    stream: Stream, good: np.ndarray, clean: np.ndarray, times: np.ndarray, chosen: list[Column], notes: _Notes
) -> None:
    """Note if the same heaps seem to come more than once."""
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


def _sources(chosen: list[Column], axes: tuple[Axis, ...], senders: np.ndarray, notes: _Notes) -> str | None:
    if not chosen:
        return None
    named = {column.item: axis.name for column, axis in zip(chosen, axes, strict=False)}
    for item in _SOURCE_ITEMS:
        if item in named:
            notes.reasons.append(f"sources: {named[item]}, because item {item:#x} says where heaps come from.")
            return named[item]
    n_senders = np.unique(senders).size
    for column in chosen if n_senders > 1 else ():
        if count(joint(senders[column.good], column.values[column.good])) == n_senders:
            notes.reasons.append(
                f"sources: {named[column.item]}, because each of {n_senders} senders has one value of it."
            )
            return named[column.item]
    name = named[chosen[0].item]
    if len(chosen) > 1:
        notes.uncertain.append(f"sources: {name} is a guess: nothing says which heaps come from the same source.")
    return name


def _batches(heap_bytes: int, batch_heaps: int, step: int, n_times: int, seconds: float | None, notes: _Notes) -> int:
    """Choose the batches of a chunk: a power of two."""
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
        f"batches: {batches}, so a chunk has {counted(batches * batch_heaps, 'heap')}, {size:,} bytes (limit: {least})."
        if limits[least] >= 1
        else f"batches: 1, although such a chunk exceeds the limit of {least}."
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
            notes.reasons.append(f"dtype: {dtype} of shape {shape}, from the descriptor of item {item:#x}.")
            return dtype.str, shape
    notes.uncertain.append("dtype: uint8, because no descriptor says what heaps hold.")
    return "uint8", None


def _note_known(stream: Stream, time: int, axes: tuple[Axis, ...], notes: _Notes) -> None:
    """Note if a layout that comes with speadrx has the same time and axes: it knows what heaps hold."""
    found = {axis.item for axis in axes}
    matches: dict[str, set[int]] = {}
    for name in presets.names():
        known = presets.load(name)
        theirs = {axis.item for axis in known.axes if axis.item is not None}
        others = {*known.required_items, *(side.item for side in known.side_items)}
        if known.time.item == time and found <= theirs and theirs | others <= stream.items.keys():
            matches[name] = theirs | others
    for name, items in matches.items():
        # Not if another one explains more of the items.
        if not any(items < more for more in matches.values()):
            notes.uncertain.append(
                f"The layout {name} has these items and knows what they mean: see 'speadrx layout {name}'."
            )
