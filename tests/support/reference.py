"""Placement and chunk assembly as the design describes them, slow and obvious, to hold the fast implementation to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import spead2

from speadrx import Axis, Layout, SideItem

TIMESTAMP_RANGE = 2**48
SIDE_ITEM_BITS = {"u8": 8, "u16": 16, "u32": 32, "u64": 64}


@dataclass(frozen=True)
class Slot:
    """Where a heap belongs, and what is stored beside it."""

    timestamp: int
    chunk_id: int
    heap_index: int
    heap_offset: int
    source: int
    extra: bytes


def axis_order(layout: Layout) -> tuple[str, ...]:
    """Names of the axes, slowest first."""
    return layout.order or (layout.time.name, *(axis.name for axis in layout.axes))


def axis_sizes(layout: Layout) -> dict[str, int]:
    """Number of indices of each axis."""
    sizes = {layout.time.name: layout.time.batches}
    for axis in layout.axes:
        if axis.values is not None:
            sizes[axis.name] = len(axis.values)
        else:
            assert axis.size is not None
            sizes[axis.name] = axis.size
    return sizes


def byte_strides(layout: Layout, user_data: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Byte stride of each axis, and the bytes from the start of a chunk to the end of its last heap.

    Without an override, an axis steps over all the steps of the next faster one.
    """
    sizes = axis_sizes(layout)
    strides = {}
    inner = layout.heap_bytes
    for name in reversed(axis_order(layout)):
        stride = layout.strides.get(name, inner)
        if isinstance(stride, str):
            stride = user_data.get(stride, inner)
        strides[name] = stride
        inner = stride * sizes[name]
    span = layout.heap_bytes + sum((sizes[name] - 1) * strides[name] for name in strides)
    return {name: strides[name] for name in axis_order(layout)}, span


def axis_index(axis: Axis, value: int) -> int | None:
    """Index that an item's value stands for, or None if it is not on the axis."""
    value >>= axis.shift
    if axis.mask is not None:
        value &= axis.mask
    if axis.values is not None:
        return axis.values.index(value) if value in axis.values else None
    assert axis.size is not None
    index, remainder = divmod(value, axis.step)
    return index if remainder == 0 and index < axis.size else None


def reject_name(axis: Axis) -> str:
    """Name of the counter of heaps whose value is not on the axis."""
    return axis.reject_name or f"bad_{axis.name}_heaps"


def side_item_bytes(side_item: SideItem, value: int) -> bytes:
    """A side item as it is stored, given the item's value (negative if absent)."""
    bits = SIDE_ITEM_BITS[side_item.dtype]
    stored = 0 if value < 0 else (value >> side_item.shift) % 2**bits
    return stored.to_bytes(bits // 8, "little")


@dataclass
class ReferenceChunk:
    """What a chunk holds."""

    chunk_id: int
    data: np.ndarray
    present: np.ndarray
    extra: np.ndarray
    occupied: set[int] = field(default_factory=set)


@dataclass
class Span:
    """A run of chunks: their IDs are `shift` more than the number of chunks from time 0."""

    first: int
    newest: int
    shift: int


class ReferenceTimeline:
    """What times a stream of its own believes, if none agrees with the clock.

    The rules one after the other, as doc/design/time.md has them; votes are counted again from the list of all that was
    said for and against.
    """

    def __init__(self, layout: Layout, window: int, resync: bool) -> None:
        self.step = layout.time.step
        self.batches = layout.time.batches
        self.window = window
        self.max_jump = max(window - 1, 1)
        self.resync = resync
        self.has_tick_rate = layout.time.tick_rate is not None
        n_sources = 1 if layout.sources is None else axis_sizes(layout)[layout.sources]
        self.quorum = max(16, n_sources)
        self.spans: list[Span] = []
        self.restarts = -1  # the start is none
        self.alive_since = 0
        self.placed_before = 0
        self.candidate: int | None = None
        self.said: list[tuple[str, int]] = []  # "for", "against" and "placed" (a number of heaps)
        self.refused = False
        self.barren = 0  # votes since a heap was last placed
        # What the stream has received; batches are counted in chunk IDs.
        self.placed = 0
        self.newest_batch = [-1] * n_sources

    def judge(self, stamp: int, source: int | None) -> tuple[int, int] | str:
        """Find the chunk ID and the true timestamp of a heap, or the reason to reject it.

        A heap without a source is not on its axes: only its alignment is of interest, and the result if that is right.
        """
        if not self.spans:
            if stamp % self.step:
                return "bad_timestamp_heaps"
            if source is None:
                return 0, stamp
            self._enter(Span(0, stamp // self.chunk_step, 0))
            return stamp // self.chunk_step, stamp
        if source is None:
            time = self._unwrap(self.spans[-1], stamp)
            return (0, time) if time % self.step == 0 or self._previous(stamp) else "bad_timestamp_heaps"

        span = self.spans[-1]
        time = self._unwrap(span, stamp)
        aligned = time % self.step == 0
        chunk = time // self.chunk_step + span.shift
        ahead = chunk - span.newest
        placeable = aligned and time >= 0 and chunk >= span.first
        if placeable and -self.window < ahead <= 0:
            return chunk, time
        if aligned and 0 < ahead <= self.max_jump and self._keeps_others(chunk, source):
            span.newest = chunk
            return chunk, time
        if (found := self._previous(stamp)) is not None:
            return found
        if placeable and -2 * self.window < ahead < 0:
            return chunk, time  # late
        behind = max(self.newest_batch) // self.batches <= span.newest - self.window
        own = self.newest_batch[source]
        if behind and placeable and ahead < 0 and span.first * self.batches <= own < self._batch(chunk, time):
            return chunk, time  # the stream lags
        if ((aligned and time >= 0) or stamp % self.step == 0) and self._vote(stamp):
            return self._win(stamp)
        if not aligned:
            return "bad_timestamp_heaps"
        refused = self.refused and self.candidate is not None and self._agree(stamp, self.candidate)
        return "backward_timestamp_heaps" if refused else "implausible_timestamp_heaps"

    def count(self, source: int, chunk: int, time: int, late: bool) -> None:
        """Note that a heap was placed."""
        self.placed += not late
        self.newest_batch[source] = max(self.newest_batch[source], self._batch(chunk, time))

    @property
    def chunk_step(self) -> int:
        return self.step * self.batches

    def _batch(self, chunk: int, time: int) -> int:
        return chunk * self.batches + time // self.step % self.batches

    def _unwrap(self, span: Span, stamp: int) -> int:
        start = (span.newest - span.shift) * self.chunk_step
        half = TIMESTAMP_RANGE // 2
        return start + (stamp - start + half) % TIMESTAMP_RANGE - half

    def _agree(self, stamp: int, other: int) -> bool:
        half = TIMESTAMP_RANGE // 2
        return abs((stamp - other + half) % TIMESTAMP_RANGE - half) <= self.max_jump * self.chunk_step

    def _enter(self, span: Span) -> None:
        self.restarts += 1
        self.spans.append(span)
        self.alive_since = span.first
        self.placed_before = self.placed
        self.candidate = None
        self.barren = 0

    def _keeps_others(self, chunk: int, source: int) -> bool:
        """Whether the window up to a chunk still holds the newest times of one in eight other sources, or of one."""
        if self.candidate is not None and self.refused and self._votes() > self.placed - self.said[-1][1]:
            return True  # the others have gone back, and must not
        start = min(chunk - self.window + 1, self.spans[-1].newest)
        since = max(self.spans[-1].first, self.alive_since)
        others = [batch // self.batches for other, batch in enumerate(self.newest_batch) if other != source]
        alive = sorted((newest for newest in others if newest >= since), reverse=True)
        return len(alive) <= 1 or start <= since or alive[max(len(alive) // 8, 1) - 1] >= start

    def _previous(self, stamp: int) -> tuple[int, int] | str | None:
        if len(self.spans) < 2:
            return None
        span = self.spans[-2]
        time = self._unwrap(span, stamp)
        chunk = time // self.chunk_step + span.shift
        ahead = chunk - span.newest
        if time % self.step or not -2 * self.window < ahead <= self.window:
            return None
        if ahead > 0:
            return "implausible_timestamp_heaps"
        return (chunk, time) if time >= 0 and chunk >= span.first else None

    def _vote(self, stamp: int) -> bool:
        if self.candidate is None:
            self._stand(stamp)
            return False
        self.barren = 0 if self.placed > self.said[-1][1] else self.barren + 1
        if self._poll(stamp):
            return True
        if self.barren < 8 * self.quorum or (self.refused and self._agree(stamp, self.candidate)):
            return False
        self._stand(stamp)
        return True

    def _poll(self, stamp: int) -> bool:
        assert self.candidate is not None
        if self._votes() <= self.placed - self.said[-1][1]:
            self._stand(stamp)
            return False
        voice = "for" if self._agree(stamp, self.candidate) else "against"
        self.said.append((voice, self.placed))
        if self._votes() == 0:
            self._stand(stamp)
            return False
        half = TIMESTAMP_RANGE // 2
        if voice == "for" and 0 < (stamp - self.candidate) % TIMESTAMP_RANGE < half:
            self.candidate = stamp
        return self._votes() >= self.quorum and not self.refused

    def _stand(self, stamp: int) -> None:
        self.candidate, self.refused = stamp, False
        self.said = [("for", self.placed)]

    def _votes(self) -> int:
        votes, placed = 0, self.said[0][1]
        for voice, placed_then in self.said:
            votes = max(votes - (placed_then - placed), 0)
            votes = min(votes + 1, self.quorum) if voice == "for" else votes - 1
            placed = placed_then
        return votes

    def _win(self, stamp: int) -> tuple[int, int] | str:
        assert self.candidate is not None
        span = self.spans[-1]
        time = self._unwrap(span, self.candidate)
        chunk = time // self.chunk_step + span.shift
        ahead = chunk - span.newest
        if time % self.step:
            ahead = 0  # only a restart explains it
        wraps = time // TIMESTAMP_RANGE != (span.newest - span.shift) * self.chunk_step // TIMESTAMP_RANGE
        proven = self.placed - self.placed_before >= self.quorum
        goes_on = ahead <= self.max_jump or (proven and not self.has_tick_rate and not (wraps and self.resync))
        if ahead > 0 and goes_on:
            span.newest = chunk
            self.candidate = None
            self.barren = 0
            self.alive_since = max(chunk - self.window + 1, 0)
        elif ahead > 0 and not self.resync:
            self._enter(Span(span.first, chunk, span.shift))
            del self.spans[-2]  # it is the same run of chunks still
            self.alive_since = max(chunk - self.window + 1, 0)
        elif self.resync:
            first = span.newest + self.window
            newest = first + self.window - 1
            begins = time if self.candidate % self.step and time % self.step == 0 else self.candidate
            shift = newest - begins // self.chunk_step
            self._enter(Span(max(first, shift), newest, shift))
        else:
            self.refused = True
            return "backward_timestamp_heaps"
        span = self.spans[-1]
        time = self._unwrap(span, stamp)
        chunk = time // self.chunk_step + span.shift
        if time % self.step:
            return "bad_timestamp_heaps"
        if chunk > span.newest or time < 0 or chunk < span.first:
            return "implausible_timestamp_heaps"
        return chunk, time


class ReferenceStream:
    """A stream that receives heaps into chunks.

    Parameters
    ----------
    layout
        The layout.
    user_data
        The fields of the stream's user data that the layout reads.
    window
        Number of chunks under construction.
    resync
        Whether time may begin again at an earlier time.
    fill
        Byte with which buffers for data and extra are filled before use.
    """

    def __init__(
        self, layout: Layout, user_data: Mapping[str, int], window: int, fill: int = 0, *, resync: bool = False
    ) -> None:
        self.layout = layout
        self.user_data = user_data
        self.window = window
        self.fill = fill
        self.sizes = axis_sizes(layout)
        self.strides, self.span = byte_strides(layout, user_data)
        self.chunk_heaps = int(np.prod([self.sizes[name] for name in self.sizes], dtype=object))
        self.heap_extra = sum(SIDE_ITEM_BITS[side_item.dtype] // 8 for side_item in layout.side_items)
        self.chunk_step = layout.time.step * layout.time.batches
        n_sources = self.sizes[layout.sources] if layout.sources is not None else 1

        self.placed = [0] * n_sources
        self.duplicates = [0] * n_sources
        self.newest = [-1] * n_sources
        self.rejected = dict.fromkeys(self._reasons(), 0)
        self.too_old = 0
        self.unfinished = 0
        self.done: list[ReferenceChunk] = []
        self.timeline = ReferenceTimeline(layout, window, resync)
        self._newest_chunk: int | None = None
        self._active: dict[int, ReferenceChunk] = {}
        self._next_chunk = 0

    def _reasons(self) -> list[str]:
        axes = [reject_name(axis) for axis in self.layout.axes if axis.item is not None]
        last = ["implausible_timestamp_heaps", "backward_timestamp_heaps", "internal_error_heaps"]
        names = ["metadata_heaps", "bad_timestamp_heaps", *axes, *last]
        return list(dict.fromkeys(names))

    def place(self, items: Mapping[int, int]) -> Slot | str:
        """Find the slot of a heap with these items, or the reason to reject it."""
        layout = self.layout
        time = layout.time

        # 1. The right heap, with all that is needed to place it.
        if items.get(spead2.HEAP_LENGTH_ID, -1) != layout.heap_bytes:
            return "metadata_heaps"
        item_axes = [axis for axis in layout.axes if axis.item is not None]
        for item in (time.item, *(axis.item for axis in item_axes), *layout.required_items):
            assert item is not None
            if items.get(item, -1) < 0:
                return "metadata_heaps"

        # 2. The time, except whether it is plausible.
        timestamp = items[time.item]
        if timestamp >= TIMESTAMP_RANGE:
            return "bad_timestamp_heaps"
        if time.align == "mask":
            timestamp -= timestamp % time.step
        # 3. The axes, if the time is aligned.
        index = {}
        for axis in layout.axes:
            if axis.from_user_data is not None:
                index[axis.name] = self.user_data[axis.from_user_data]
            else:
                assert axis.item is not None
                found = axis_index(axis, items[axis.item])
                if found is None:
                    verdict = self.timeline.judge(timestamp, None)
                    return verdict if isinstance(verdict, str) else reject_name(axis)
                index[axis.name] = found

        # 4. Is the time plausible?
        source = index[layout.sources] if layout.sources is not None else 0
        verdict = self.timeline.judge(timestamp, source)
        if isinstance(verdict, str):
            return verdict
        chunk_id, timestamp = verdict

        # 5. The slot.
        index[time.name] = timestamp // time.step % time.batches
        heap_index = 0
        for name in axis_order(layout):
            heap_index = heap_index * self.sizes[name] + index[name]
        return Slot(
            timestamp=timestamp,
            chunk_id=chunk_id,
            heap_index=heap_index,
            heap_offset=sum(index[name] * self.strides[name] for name in index),
            source=source,
            extra=b"".join(side_item_bytes(side, items.get(side.item, -1)) for side in layout.side_items),
        )

    def heap(self, items: Mapping[int, int], payload: bytes) -> Slot | str | None:
        """Receive a heap.

        Parameters
        ----------
        items
            Values of the immediate items of its first packet, HEAP_LENGTH among them.
        payload
            What arrives of its payload; if that is shorter than HEAP_LENGTH, the heap is never finished.

        Returns
        -------
        slot
            Its slot, the reason why it was rejected, or None if the callback never sees it.
        """
        heap_length = items.get(spead2.HEAP_LENGTH_ID, 0)
        if heap_length == 0:
            return None
        slot = self.place(items)
        if isinstance(slot, str):
            self.rejected[slot] += 1
            return slot

        # What our ledger knows. A heap behind the window cannot be told from its duplicate.
        self.placed[slot.source] += 1
        newest_batch = self.timeline.newest_batch[slot.source]
        self._follow(slot.chunk_id)
        chunk = self._active.get(slot.chunk_id)
        self.timeline.count(slot.source, slot.chunk_id, slot.timestamp, late=chunk is None)
        if self.timeline.newest_batch[slot.source] > newest_batch:
            self.newest[slot.source] = slot.timestamp
        if chunk is None:
            self.too_old += 1
            return slot
        if slot.heap_index in chunk.occupied:
            self.duplicates[slot.source] += 1
        chunk.occupied.add(slot.heap_index)

        # What spead2 does with the heap.
        chunk.extra[slot.heap_index * self.heap_extra :][: self.heap_extra] = np.frombuffer(slot.extra, np.uint8)
        chunk.data[slot.heap_offset :][: len(payload)] = np.frombuffer(payload, np.uint8)
        if len(payload) == heap_length:
            chunk.present[slot.heap_index] = 1
        else:
            self.unfinished += 1
        return slot

    def _follow(self, chunk_id: int) -> None:
        """Slide the window so that it holds the chunk, unless it is too old: spead2 opens all chunks up to it."""
        if self._newest_chunk is not None and chunk_id <= self._newest_chunk:
            return
        self._newest_chunk = chunk_id
        oldest = max(0, chunk_id - self.window + 1)
        while self._active and min(self._active) < oldest:
            self.done.append(self._active.pop(min(self._active)))
        for new in range(max(self._next_chunk, oldest), chunk_id + 1):
            self._active[new] = ReferenceChunk(
                chunk_id=new,
                data=np.full(self.span, self.fill, np.uint8),
                present=np.zeros(self.chunk_heaps, np.uint8),
                extra=np.full(self.chunk_heaps * self.heap_extra, self.fill, np.uint8),
            )
        self._next_chunk = chunk_id + 1

    def stop(self) -> None:
        """End the stream: all chunks under construction come out."""
        while self._active:
            self.done.append(self._active.pop(min(self._active)))
