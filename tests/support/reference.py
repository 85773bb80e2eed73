"""Placement and chunk assembly as the design describes them, slow and obvious, to hold the fast implementation to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import spead2

from speadrx import Axis, Layout, SideItem

TIMESTAMP_RANGE = 2**48
#: That of the flavour 64-40.
SMALL_RANGE = 2**40
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


class ReferenceTimeline:
    """What becomes of the time of a heap, as long as nobody disputes where time is.

    It knows nothing of majorities: `is_plain` says whether a heap can be judged without. Time does not begin again.
    """

    def __init__(self, layout: Layout, window: int) -> None:
        self.step = layout.time.step
        self.batches = layout.time.batches
        self.window = window
        self.max_jump = max(window - 1, 1)
        #: After so many ticks timestamps wrap.
        self.range = TIMESTAMP_RANGE
        #: Whether they have wrapped after fewer.
        self.has_wrapped_early = False
        #: The newest chunk, and the newest batch of each source that was received.
        self.newest: int | None = None
        self.newest_batch: dict[int, int] = {}
        #: The source that was last received elsewhere and has not gone on since, with its newest batch, and where.
        self.doubted: tuple[int, int, int] | None = None

    def is_plain(self, stamp: int, source: int) -> bool:
        """Whether a heap is in the window or late, of one source that goes on alone, or a single one anywhere else."""
        time = self._unwrap(stamp, self._range_of(stamp))
        if self.newest is None:
            return time % self.step == 0
        ahead = time // self.chunk_step - self.newest
        is_time = time >= 0 and time % self.step == 0
        if is_time and -self.window < ahead <= 0:
            return True
        if is_time and 0 < ahead <= self.max_jump and not self.newest_batch.keys() <= {source}:
            return False
        if self.doubted is None:
            return True
        elsewhere = self._unwrap(self.doubted[2])
        if is_time and 0 < ahead <= self.max_jump:
            return abs(elsewhere - time) > self.window * self.chunk_step
        # What is late stays late, however often.
        return is_time and self._is_late(ahead) and self._is_late(elsewhere // self.chunk_step - self.newest)

    def judge(self, stamp: int, source: int | None) -> tuple[int, int] | str:
        """Find the chunk ID and the true timestamp of a heap, or the reason to reject it.

        A heap without a source is not on its axes: only its alignment is of interest, and the result if that is right.
        """
        if source is not None:
            self.range = self._range_of(stamp)
            self.has_wrapped_early |= self.range == SMALL_RANGE
        if stamp >= self.range:
            self._doubt(stamp, source)
            return (0, 0) if source is None else "implausible_timestamp_heaps"
        time = self._unwrap(stamp)
        if time % self.step:
            self._doubt(stamp, source)
            return "bad_timestamp_heaps"
        chunk = time // self.chunk_step
        if source is None:
            return chunk, time
        if self.newest is None:
            self.newest = chunk
        ahead = chunk - self.newest
        in_window = -self.window < ahead <= self.max_jump
        if not in_window or time < 0:
            self._doubt(stamp, source)
        goes_on = ahead <= 0 and self.newest_batch.get(source, time // self.step) < time // self.step
        if time < 0 or not (in_window or self._is_late(ahead) or goes_on):
            return "implausible_timestamp_heaps"
        self.newest = max(self.newest, chunk)
        return chunk, time

    def count(self, source: int, time: int) -> None:
        """Note that a heap was placed."""
        batch = time // self.step
        self.newest_batch[source] = max(self.newest_batch.get(source, batch), batch)
        if self.doubted is not None and self.doubted[0] == source and self.doubted[1] < batch:
            self.doubted = None

    @property
    def chunk_step(self) -> int:
        return self.step * self.batches

    def _is_late(self, ahead: int) -> bool:
        return -2 * self.window < ahead <= -self.window

    def _doubt(self, stamp: int, source: int | None) -> None:
        if source is not None:
            self.doubted = source, self.newest_batch.get(source, -1), stamp

    def _unwrap(self, stamp: int, ticks: int | None = None) -> int:
        """The time nearest to the start of the newest chunk, if timestamps wrap after so many ticks."""
        if self.newest is None:
            return stamp
        start = self.newest * self.chunk_step
        ticks = ticks or self.range
        return start + (stamp - start + ticks // 2) % ticks - ticks // 2

    def _range_of(self, stamp: int) -> int:
        """After how many ticks timestamps wrap, given one that is seen now."""
        if self.newest is None or (self.window + self.max_jump) * self.chunk_step >= SMALL_RANGE // 2:
            return self.range
        start = self.newest * self.chunk_step

        def is_near(ticks: int) -> bool:
            return -self.window < self._unwrap(stamp, ticks) // self.chunk_step - self.newest <= self.max_jump

        is_small = stamp < SMALL_RANGE
        if self.range == SMALL_RANGE:
            return SMALL_RANGE if is_small or not is_near(TIMESTAMP_RANGE) else TIMESTAMP_RANGE
        has_wrapped = self._unwrap(stamp, SMALL_RANGE) // SMALL_RANGE > start // SMALL_RANGE
        was_small = start % TIMESTAMP_RANGE < SMALL_RANGE
        may_wrap = self.has_wrapped_early or (has_wrapped and was_small)
        makes_sense = is_near(SMALL_RANGE) and not is_near(TIMESTAMP_RANGE)
        return SMALL_RANGE if is_small and may_wrap and makes_sense else self.range


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
    fill
        Byte with which buffers for data and extra are filled before use.
    """

    def __init__(self, layout: Layout, user_data: Mapping[str, int], window: int, fill: int = 0) -> None:
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
        self.timeline = ReferenceTimeline(layout, window)
        self._newest_chunk: int | None = None
        self._active: dict[int, ReferenceChunk] = {}
        self._next_chunk = 0

    def _reasons(self) -> list[str]:
        axes = [reject_name(axis) for axis in self.layout.axes if axis.item is not None]
        last = ["implausible_timestamp_heaps", "backward_timestamp_heaps", "internal_error_heaps"]
        names = ["metadata_heaps", "bad_timestamp_heaps", *axes, *last]
        return list(dict.fromkeys(names))

    def read(self, items: Mapping[int, int]) -> tuple[int, dict[str, int] | str] | str:
        """Find the timestamp of a heap and its indices on all other axes, or the reason to reject it.

        If only an axis is the reason, it comes in place of the indices.
        """
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
        # 3. The axes.
        index = {}
        for axis in layout.axes:
            if axis.from_user_data is not None:
                index[axis.name] = self.user_data[axis.from_user_data]
            else:
                assert axis.item is not None
                found = axis_index(axis, items[axis.item])
                if found is None:
                    return timestamp, reject_name(axis)
                index[axis.name] = found
        return timestamp, index

    def is_plain(self, items: Mapping[int, int]) -> bool:
        """Whether `ReferenceTimeline` can judge a heap with these items."""
        read = self.read(items)
        if isinstance(read, str) or isinstance(read[1], str):
            return True
        return self.timeline.is_plain(read[0], self._source(read[1]))

    def _source(self, index: Mapping[str, int]) -> int:
        return index[self.layout.sources] if self.layout.sources is not None else 0

    def place(self, items: Mapping[int, int]) -> Slot | str:
        """Find the slot of a heap with these items, or the reason to reject it."""
        layout = self.layout
        read = self.read(items)
        if isinstance(read, str):
            return read
        timestamp, index = read
        # A time that is not aligned comes before an axis.
        verdict = self.timeline.judge(timestamp, None if isinstance(index, str) else self._source(index))
        if isinstance(verdict, str):
            return verdict
        if isinstance(index, str):
            return index
        chunk_id, timestamp = verdict

        index[layout.time.name] = timestamp // layout.time.step % layout.time.batches
        heap_index = 0
        for name in axis_order(layout):
            heap_index = heap_index * self.sizes[name] + index[name]
        return Slot(
            timestamp=timestamp,
            chunk_id=chunk_id,
            heap_index=heap_index,
            heap_offset=sum(index[name] * self.strides[name] for name in index),
            source=self._source(index),
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
        self.timeline.count(slot.source, slot.timestamp)
        self.newest[slot.source] = max(self.newest[slot.source], slot.timestamp)
        self._follow(slot.chunk_id)
        chunk = self._active.get(slot.chunk_id)
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
