"""Placement through real streams, rule by rule and at random: byte for byte what reference.py says."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import spead2.recv

import speadrx
from guarded import FILL, GuardedBuffer
from handmade import (
    AXIS_ID,
    REQUIRED_ID,
    SIDE_ID,
    SMALL,
    STOP_PACKET,
    TIME_ID,
    Heap,
    encode,
    receive_without_speadrx,
    small_heap,
)
from random_layouts import ID_BITS, PRIMES, Case, axis_values, is_power_of_two, random_case
from reference import SIDE_ITEM_BITS, ReferenceStream, Slot, axis_order, byte_strides, reject_name
from speadrx import Axis, TimeAxis, _core

SEEDS = range(12)
LAYOUTS_PER_SEED = 150
HEAPS_PER_LAYOUT = 100
assert len(SEEDS) * LAYOUTS_PER_SEED * HEAPS_PER_LAYOUT >= 100_000

TIMESTAMP_RANGE = 2**48


@dataclass(frozen=True)
class ReceivedChunk:
    """A copy of a chunk that came out of a stream."""

    chunk_id: int
    data: bytes
    present: bytes
    extra: bytes


def receive(
    case: Case, packets: Iterable[bytes], *, one_buffer: bool = False
) -> tuple[list[ReceivedChunk], speadrx.LedgerSnapshot, dict[str, int]]:
    """Send packets, then a stop heap, through a stream; return its chunks, its ledger and spead2's statistics."""
    layout = case.layout
    user_data = None
    if case.user_data:
        user_data = np.zeros((), [("stats_base", np.uintp), *((name, np.uintp) for name in case.user_data)])
        for name, value in case.user_data.items():
            user_data[name] = value
    _, span = byte_strides(layout, case.user_data)
    sizes = [span, layout.chunk_heaps, layout.chunk_heaps * layout.max_heap_extra]
    n_chunks = case.window + 2
    data_ring = spead2.recv.ChunkRingbuffer(n_chunks)
    stream = speadrx.make_stream(
        layout=layout,
        max_active_chunks=case.window,
        data_ringbuffer=data_ring,
        free_ringbuffer=spead2.recv.ChunkRingbuffer(n_chunks),
        user_data=user_data,
        stop_on_stop_item=True,
    )
    buffers = []
    chunks = []
    try:
        for _ in range(n_chunks):
            fresh = [GuardedBuffer(size) for size in sizes]
            buffers += fresh
            data, present, extra = (buffer.inside for buffer in fresh)
            stream.add_free_chunk(speadrx.Chunk(data=data, present=present, extra=extra, sink=stream))
        packets = [*packets, STOP_PACKET]
        if one_buffer:
            stream.add_buffer_reader(b"".join(packets))
        else:
            queue = spead2.InprocQueue()
            stream.add_inproc_reader(queue)
            for packet in packets:
                queue.add_packet(packet)
        for chunk in data_ring:
            assert isinstance(chunk, speadrx.Chunk)
            data, present, extra = (np.asarray(buffer) for buffer in (chunk.data, chunk.present, chunk.extra))
            chunks.append(ReceivedChunk(chunk.chunk_id, data.tobytes(), present.tobytes(), extra.tobytes()))
            data.fill(FILL)
            extra.fill(FILL)
            chunk.recycle()
    finally:
        stream.stop()
    for buffer in buffers:
        buffer.check_guards()
    assert stream.ledger is not None
    stats = stream.stats
    return chunks, stream.ledger.snapshot(), {name: stats[name] for name in stats}


# Single rules, one at a time

SMALL_CASE = Case(SMALL, {}, window=2, id_bits=7)


def receive_small(*heaps: Heap, case: Case = SMALL_CASE) -> tuple[list[ReceivedChunk], ReferenceStream, Counter[str]]:
    """Send heaps through a stream; return its chunks, the reference (found equal), and what was counted."""
    reference = ReferenceStream(case.layout, case.user_data, case.window, fill=FILL)
    for heap in heaps:
        assert reference.is_plain(heap.items)
        reference.heap(heap.items, heap.payload)
    reference.stop()
    packets = [packet for i, heap in enumerate(heaps) for packet in encode(heap, i, 56)]
    chunks, ledger, stats = receive(case, packets)
    check_equal(reference, chunks, ledger, stats)
    return chunks, reference, counted_heaps(ledger, stats)


def counted_heaps(ledger: speadrx.LedgerSnapshot, stats: Mapping[str, int]) -> Counter[str]:
    counted = Counter({"placed": ledger.placed, "duplicate": ledger.duplicates, "too old": stats["too_old_heaps"]})
    return +(counted + Counter(ledger.rejected))


def receive_times(*times: int) -> tuple[int, Counter[str]]:
    """Send heaps of one source with these times; return its newest time, and what was counted."""
    packets = [packet for i, time in enumerate(times) for packet in encode(small_heap({TIME_ID: time}), i, 56)]
    _, ledger, stats = receive(SMALL_CASE, packets)
    return int(ledger.newest_timestamp_by_source[1]), counted_heaps(ledger, stats)


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "placed"),
        ({SIDE_ID: None}, "placed"),
        ({TIME_ID: None}, "metadata_heaps"),
        ({AXIS_ID: None}, "metadata_heaps"),
        ({REQUIRED_ID: None}, "metadata_heaps"),
        ({spead2.HEAP_LENGTH_ID: 5}, "metadata_heaps"),
        ({TIME_ID: 2**48}, "bad_timestamp_heaps"),
        ({TIME_ID: 2**56 - 16}, "bad_timestamp_heaps"),
        ({TIME_ID: 65}, "bad_timestamp_heaps"),
        ({TIME_ID: 79}, "bad_timestamp_heaps"),
        ({AXIS_ID: 4 << 1}, "bad_antenna_heaps"),
        ({AXIS_ID: 1 << 40 | 4 << 1}, "bad_antenna_heaps"),
        ({AXIS_ID: 3 << 1 | 1}, "bad_pol"),
        ({AXIS_ID: 1 << 40 | 3 << 1}, "placed"),
        ({TIME_ID: 2**48 - 16}, "implausible_timestamp_heaps"),
        # Several flaws: the first check that fails is counted.
        ({REQUIRED_ID: None, TIME_ID: 65, AXIS_ID: 1}, "metadata_heaps"),
        ({TIME_ID: 2**48 - 1, AXIS_ID: 1}, "bad_timestamp_heaps"),
        ({TIME_ID: 2**48 - 16, AXIS_ID: 4 << 1 | 1}, "bad_antenna_heaps"),
        ({TIME_ID: 2**48 - 16, AXIS_ID: 3 << 1 | 1}, "bad_pol"),
    ],
)
def test_first_reason_is_counted(changes: dict[int, int | None], outcome: str) -> None:
    length = changes.get(spead2.HEAP_LENGTH_ID) or 4
    _, _, counted = receive_small(small_heap({AXIS_ID: 7 << 1}), small_heap(changes, bytes(length)))
    assert counted == Counter(["placed", outcome])


def test_placed_heap() -> None:
    chunks, _, _ = receive_small(small_heap({TIME_ID: 80}))
    # Chunk 1, its second step, the second antenna; chunk 0 is opened by spead2, and empty.
    assert [chunk.chunk_id for chunk in chunks] == [0, 1]
    assert chunks[0].present == bytes(12)
    assert chunks[1].present == bytes([0, 0, 0, 0, 1, *bytes(7)])
    blank = bytes([FILL])
    assert chunks[1].data == 16 * blank + b"data" + 28 * blank
    assert chunks[1].extra == 8 * blank + b"\x34\x12" + 14 * blank


def test_absent_side_item_is_stored_as_0() -> None:
    chunks, _, _ = receive_small(small_heap({TIME_ID: 0, SIDE_ID: None}))
    assert chunks[0].extra[2:4] == b"\0\0"


def test_duplicate_is_counted_and_stored() -> None:
    heaps = [small_heap({TIME_ID: 0, AXIS_ID: source << 1}, bytes([i] * 4)) for i, source in enumerate([7, 5, 7, 7])]
    chunks, reference, counted = receive_small(*heaps)
    assert counted == Counter({"placed": 4, "duplicate": 2})
    assert reference.duplicates == [2, 0, 0]
    assert chunks[0].data[:12] == bytes([3] * 4 + [FILL] * 4 + [1] * 4)


def test_window_follows_newest() -> None:
    # A window of two chunks of 64 ticks.
    times = [64, 128, 112, 48, 192, 128, 64, 256, 320]
    chunks, reference, counted = receive_small(*(small_heap({TIME_ID: time}) for time in times))
    assert counted == Counter({"placed": 9, "duplicate": 1, "too old": 2})
    assert [chunk.chunk_id for chunk in chunks] == [0, 1, 2, 3, 4, 5]
    assert reference.newest == [-1, 320, -1]


def test_duplicate_of_too_old_heap_is_too_old() -> None:
    _, _, counted = receive_small(*(small_heap({TIME_ID: time}) for time in [640, 512, 512]))
    assert counted == Counter({"placed": 3, "too old": 2})


def test_time_goes_on_after_wrap() -> None:
    times = [2**48 - 64, 2**48 - 16, 0, 2**48 - 32, 16, 64]
    chunks, reference, counted = receive_small(*(small_heap({TIME_ID: time}) for time in times))
    assert counted == Counter({"placed": 6})
    assert [chunk.chunk_id for chunk in chunks] == [2**42 - 2, 2**42 - 1, 2**42, 2**42 + 1]
    assert reference.newest[1] == 2**48 + 64


def test_step_that_does_not_divide_the_range_of_timestamps() -> None:
    # 2**48 = 1 modulo 5: a time after the wrap is a multiple of the step if its 48 bits are 4 modulo 5.
    case = replace(SMALL_CASE, layout=replace(SMALL, time=TimeAxis(item=TIME_ID, step=5, batches=4)))
    times = [2**48 - 6, 2**48 - 1, 4, 5, 9, 10]
    _, reference, counted = receive_small(*(small_heap({TIME_ID: time}) for time in times), case=case)
    assert counted == Counter({"placed": 4, "bad_timestamp_heaps": 2})
    assert reference.newest[1] == 2**48 + 9


def test_times_half_the_range_away() -> None:
    # Relative to the start of the newest chunk, half the range is behind, and anything less ahead.
    # Both are believed when the source says so twice, but time must not go back.
    newest, counted = receive_times(80, 64 + 2**47, 80 + 2**47, 64 + 2**47)
    assert counted == Counter({"placed": 1, "implausible_timestamp_heaps": 1, "backward_timestamp_heaps": 2})
    assert newest == 80
    newest, counted = receive_times(80, 32 + 2**47, 48 + 2**47)
    assert counted == Counter({"placed": 2, "implausible_timestamp_heaps": 1})
    assert newest == 48 + 2**47


def test_copies_of_a_heap_say_nothing_twice() -> None:
    newest, counted = receive_times(80, *[2**40] * 20, 96)
    assert counted == Counter({"placed": 2, "implausible_timestamp_heaps": 20})
    assert newest == 96


def test_newest_chunk_counts_from_the_beginning_of_time() -> None:
    # The first window holds chunks 0 and 1, whichever comes first; the newest is that of the newest heap.
    newest, counted = receive_times(0, 64, 2**47, 16 + 2**47)
    assert counted == Counter({"placed": 3, "implausible_timestamp_heaps": 1})
    assert newest == 16 + 2**47


def test_masked_timestamps() -> None:
    case = replace(SMALL_CASE, layout=replace(SMALL, time=replace(SMALL.time, align="mask")))
    times = [2**48 - 17, 2**48 - 1, 15, 31, 2**48 + 1]
    _, reference, counted = receive_small(*(small_heap({TIME_ID: time}) for time in times), case=case)
    assert counted == Counter({"placed": 4, "bad_timestamp_heaps": 1})
    assert reference.newest[1] == 2**48 + 16


@pytest.mark.fault(14)
def test_panic_in_callback_rejects_the_heap() -> None:
    def panic(placement: _core.Placement) -> None:
        placement._panic_next()

    heaps = [small_heap({TIME_ID: time}) for time in [0, 0, 16]]
    chunks, placement, stats = receive_without_speadrx(SMALL, heaps, before=panic)
    (chunk,) = chunks
    assert np.flatnonzero(np.asarray(chunk.present)).tolist() == [1, 4]
    assert stats["rejected_heaps"] == 1
    snapshot = placement.ledger.snapshot()
    rejected = np.frombuffer(snapshot.rejected_by_source, np.uint64).reshape(len(SMALL.stream_stats), -1)
    assert rejected.sum(axis=1).tolist() == [int(name == "speadrx.internal_error_heaps") for name in SMALL.stream_stats]
    assert np.frombuffer(snapshot.placed, np.uint64).tolist() == [0, 2, 0]


def test_placement_serves_one_stream() -> None:
    placement = SMALL._compiled.geometry({}).placement(window=2)
    placement.capsule()
    with pytest.raises(ValueError, match="serves a stream already"):
        placement.capsule()


# Random heaps


class HeapSource:
    """Heaps for a layout: times near a moving front, most of them good, some bad in one or more ways.

    All of a stream whose time nobody disputes: where it goes on, one source sends.
    """

    def __init__(self, rng: random.Random, case: Case, reference: ReferenceStream) -> None:
        self.rng = rng
        self.case = case
        self.reference = reference
        time = case.layout.time
        self.max_value = 2 ** ID_BITS[case.id_bits] - 1
        time_range = min(TIMESTAMP_RANGE, self.max_value + 1)
        steps_to_end = time_range // time.step
        near = 2 * case.window * time.batches
        #: Steps of the time axis that the newest heaps have reached.
        self.front = rng.choice(
            [0, rng.randrange(near), max(0, steps_to_end - rng.randrange(near)), rng.randrange(steps_to_end)]
        )
        #: Where wide enough values for a wrap cannot be sent, time ends.
        self.end = None if time_range == TIMESTAMP_RANGE else steps_to_end - 1
        self.rate = rng.choice([0.1, 0.5, 1.5])
        self.item_ids = {axis.item for axis in case.layout.axes if axis.item is not None}
        self.item_ids |= {side.item for side in case.layout.side_items} | set(case.layout.required_items)
        self.item_ids.discard(time.item)
        #: The only value of some axes.
        self.only: dict[str, int] = {}
        sources = next((axis for axis in case.layout.axes if axis.name == case.layout.sources), None)
        if sources is not None and sources.item is not None and rng.random() < 0.7:
            self.only[sources.name] = rng.choice(axis_values(sources))
        self.last: Heap | None = None

    def __next__(self) -> Heap:
        self.front += int(self.rng.expovariate(1 / self.rate))
        timeline = self.reference.timeline
        if timeline.newest is not None:
            ahead = timeline.max_jump if len(timeline.newest_batch) <= 1 else 0
            self.front = min(self.front, (timeline.newest + ahead + 1) * timeline.batches - 1)
        if self.end is not None:
            self.front = min(self.front, self.end)
        heap = next(heap for heap in iter(self._draw, None) if self.reference.is_plain(heap.items))
        self.last = heap
        return heap

    def _draw(self) -> Heap:
        """Any heap."""
        rng = self.rng
        if self.last is not None and rng.random() < 0.05:
            payload = rng.choice([self.last.payload, rng.randbytes(len(self.last.payload))])
            return replace(self.last, payload=payload)
        items = self._items()
        addressed = []
        length: int | None = self.case.layout.heap_bytes
        for _ in range(rng.choice([0, 0, 0, 1, 1, 2])):
            flaw = rng.choice([self._bad_time, self._bad_axis, self._bad_axis, self._lose, self._random_value, None])
            if flaw is not None:
                flaw(items)
            else:
                length = self._bad_length()
        if rng.random() < 0.05:
            addressed = [rng.choice(list(items))] if items else []
            for item in addressed:
                del items[item]
        payload = rng.randbytes(min(length or 0, self.case.layout.heap_bytes + 1))
        if rng.random() < 0.03:
            payload = payload[: rng.randint(0, len(payload))]
        if length is not None:
            items[spead2.HEAP_LENGTH_ID] = length
        # A packet without payload is one of none of a heap's bytes, but it comes first and so shows its items.
        n_packets = rng.randint(2, 3) if rng.random() < 0.1 and len(payload) >= 3 else 1
        return Heap(items, payload, addressed, n_packets)

    def _items(self) -> dict[int, int]:
        """Values of all items of a good heap, random bits where nobody looks."""
        rng = self.rng
        layout = self.case.layout
        time = layout.time
        behind = rng.choice([2, 2 * time.batches, (self.case.window + 2) * time.batches])
        timestamp = max(self.front - rng.randrange(behind), 0) * time.step
        if time.align == "mask":
            timestamp += rng.randrange(time.step)
        items = {item: rng.getrandbits(40) for item in self.item_ids}
        for axis in layout.axes:
            if axis.item is not None:
                self._set(items, axis, self.only.get(axis.name, rng.choice(axis_values(axis))))
        items[time.item] = min(timestamp % TIMESTAMP_RANGE, self.max_value)
        return items

    def _set(self, items: dict[int, int], axis: Axis, value: int) -> None:
        """Set the bits of an item that an axis looks at."""
        assert axis.item is not None
        mask = self.max_value >> axis.shift if axis.mask is None else axis.mask
        others = items.get(axis.item, 0) & ~(mask << axis.shift)
        items[axis.item] = others | (value & mask) << axis.shift

    def _bad_time(self, items: dict[int, int]) -> None:
        rng = self.rng
        layout = self.case.layout
        time = layout.time
        step = time.step
        chunk_step = step * time.batches
        start = self.front // time.batches * chunk_step
        kind = rng.choice(["off", "wide", "far back", "far ahead", "jump", "half the range", "first", "any"])
        timestamp = {
            "off": self.front * step + rng.choice([1, -1, rng.randrange(step)]),
            "wide": TIMESTAMP_RANGE + rng.choice([0, start, 2**55]),
            "far back": (self.front - rng.randrange(100 * time.batches)) * step,
            "far ahead": (self.front + rng.randrange(3 * self.case.window * time.batches)) * step,
            "jump": (self.front + rng.randrange(2**16)) * step,
            "half the range": start + rng.choice([-1, 1]) * 2**47 // step * step + rng.choice([-step, 0, step]),
            "first": rng.choice([0, step, -step]),
            "any": rng.randrange(TIMESTAMP_RANGE),
        }[kind]
        if kind != "wide":
            timestamp %= TIMESTAMP_RANGE
        items[time.item] = min(timestamp, self.max_value)

    def _bad_axis(self, items: dict[int, int]) -> None:
        rng = self.rng
        axes = [axis for axis in self.case.layout.axes if axis.item in items]
        if not axes:
            return
        axis = rng.choice(axes)
        values = axis_values(axis)
        good = rng.choice(values)
        bad = [max(values) + axis.step, max(values) + 1, good + 1, max(good - 1, 0), rng.getrandbits(56), 2**56 - 1]
        self._set(items, axis, rng.choice(bad))

    def _lose(self, items: dict[int, int]) -> None:
        if items:
            del items[self.rng.choice(list(items))]

    def _random_value(self, items: dict[int, int]) -> None:
        if items:
            items[self.rng.choice(list(items))] = self.rng.getrandbits(self.rng.randint(1, 56)) & self.max_value

    def _bad_length(self) -> int | None:
        heap_bytes = self.case.layout.heap_bytes
        return self.rng.choice([None, 0, heap_bytes - 1, heap_bytes + 1, 2 * heap_bytes, 2**39])


def random_flavour(rng: random.Random, heap: Heap, case: Case) -> int:
    """Address bits of a flavour in which the heap can be sent."""
    fitting = [bits for bits in ID_BITS.values() if bits <= ID_BITS[case.id_bits]]
    return rng.choice([bits for bits in fitting if max(heap.items.values(), default=0) < 2**bits])


# Comparing the two


def check_equal(
    reference: ReferenceStream,
    chunks: Sequence[ReceivedChunk],
    ledger: speadrx.LedgerSnapshot,
    stats: Mapping[str, int],
) -> None:
    """Compare all that came out of a stream with the reference."""
    layout = reference.layout
    assert [chunk.chunk_id for chunk in chunks] == [chunk.chunk_id for chunk in reference.done]
    for chunk, expected in zip(chunks, reference.done, strict=True):
        assert chunk.present == expected.present.tobytes(), f"present of chunk {chunk.chunk_id}"
        assert chunk.data == expected.data.tobytes(), f"data of chunk {chunk.chunk_id}"
        assert chunk.extra == expected.extra.tobytes(), f"extra of chunk {chunk.chunk_id}"

    assert list(ledger.placed_by_source) == reference.placed
    assert list(ledger.duplicates_by_source) == reference.duplicates
    assert list(ledger.newest_timestamp_by_source) == reference.newest
    assert ledger.rejected == reference.rejected
    assert ledger.placed == sum(reference.placed)
    assert ledger.duplicates == sum(reference.duplicates)

    assert layout.stream_stats == [f"speadrx.{name}" for name in reference.rejected]
    for name, count in reference.rejected.items():
        assert stats[f"speadrx.{name}"] == count
    assert stats["too_old_heaps"] == reference.too_old
    assert stats["rejected_heaps"] == sum(reference.rejected.values())


def layout_features(case: Case) -> dict[str, bool]:
    """Which of the things that are special about some layouts a layout has."""
    layout = case.layout
    step = layout.time.step
    dense = replace(layout, strides={})
    strides, span = byte_strides(layout, case.user_data)
    items = [axis.item for axis in layout.axes if axis.item is not None]
    dtypes = {side.dtype for side in layout.side_items}
    fields = [stride for stride in layout.strides.values() if isinstance(stride, str)]
    sources = next((axis for axis in layout.axes if axis.name == layout.sources), None)
    return {
        **{f"{n} axes": len(layout.axes) == n for n in range(4)},
        "many axes": len(layout.axes) > 3,
        **{f"window {n}": case.window == n for n in range(1, 5)},
        **{f"item IDs of {n} bits": case.id_bits == n for n in ID_BITS},
        **{f"align {align}": layout.time.align == align for align in ("reject", "mask")},
        **{f"side item {dtype}": dtype in dtypes for dtype in SIDE_ITEM_BITS},
        "side item shift": any(side.shift for side in layout.side_items),
        "side item of an axis": any(side.item in items for side in layout.side_items),
        "a required item": len(layout.required_items) == 1,
        "several required items": len(layout.required_items) > 1,
        "time step 1": step == 1,
        "time step power of two": step > 1 and is_power_of_two(step),
        "time step odd": step > 1 and step % 2 == 1,
        "time step large prime": step in PRIMES and step > 10**6,
        "window of half the range": case.window * layout.chunk_timestamp_step > 2**46,
        "axis step": any(axis.step > 1 for axis in layout.axes),
        "axis values": any(axis.values is not None for axis in layout.axes),
        "axis shift": any(axis.shift for axis in layout.axes),
        "axis mask": any(axis.mask is not None for axis in layout.axes),
        "axis from user data": any(axis.from_user_data is not None for axis in layout.axes),
        "bit fields of an item": len(set(items)) < len(items),
        "own reject name": any(axis.reject_name for axis in layout.axes),
        "shared reject name": [axis.reject_name for axis in layout.axes].count("bad_thing_heaps") > 1,
        "permuted": axis_order(layout) != axis_order(replace(dense, order=None)),
        "time not slowest": axis_order(layout)[0] != layout.time.name,
        "memory transposed": list(strides.values()) != sorted(strides.values(), reverse=True),
        "stride a number": len(fields) < len(layout.strides),
        "stride from user data": any(name in case.user_data for name in fields),
        "stride not in user data": any(name not in case.user_data for name in fields),
        "gaps": span > byte_strides(dense, {})[1],
        "no sources": sources is None,
        "sources from an item": sources is not None and sources.item is not None,
        "sources from user data": sources is not None and sources.from_user_data is not None,
    }


@pytest.mark.fault(22)
@pytest.mark.parametrize("seed", [*SEEDS[:3], *(pytest.param(seed, marks=pytest.mark.slow) for seed in SEEDS[3:])])
def test_random_layouts(seed: int, fault_report: Callable[..., None]) -> None:
    features: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    present = known = 0
    for i in range(LAYOUTS_PER_SEED):
        rng = random.Random(f"{seed}/{i}")
        case = random_case(rng)
        reference = ReferenceStream(case.layout, case.user_data, case.window, fill=FILL)
        axis_reasons = {reject_name(axis) for axis in case.layout.axes}
        heaps = HeapSource(rng, case, reference)
        packets = []
        for heap_cnt in range(HEAPS_PER_LAYOUT):
            heap = next(heaps)
            packets += encode(heap, heap_cnt, random_flavour(rng, heap, case), rng)
            outcome = reference.heap(heap.items, heap.payload)
            if isinstance(outcome, Slot):
                outcomes["placed"] += 1
                outcomes["wrapped"] += outcome.timestamp >= TIMESTAMP_RANGE
                outcomes["several packets"] += heap.n_packets > 1
            elif outcome is None:
                outcomes["unseen"] += 1
            else:
                outcomes["bad axis" if outcome in axis_reasons else outcome] += 1
        reference.stop()
        outcomes["too old"] += reference.too_old
        outcomes["duplicate"] += sum(reference.duplicates)
        outcomes["unfinished"] += reference.unfinished
        features.update(layout_features(case))

        received = receive(case, packets, one_buffer=rng.random() < 0.5)
        chunks, ledger, stats = received
        present += sum(sum(chunk.present) for chunk in chunks)
        known += ledger.duplicates + stats["too_old_heaps"] + sum(ledger.rejected.values())
        # Slots that heaps were placed in, and none of them was ever complete.
        known += sum(len(chunk.occupied) - int(chunk.present.sum()) for chunk in reference.done)
        try:
            check_equal(reference, *received)
        except AssertionError as exc:
            exc.add_note(f"random.Random('{seed}/{i}'): {case}")
            raise

    sent = LAYOUTS_PER_SEED * HEAPS_PER_LAYOUT
    fault_report(sent=sent, lost=sent - present, residual=sent - present - known - outcomes["unseen"])
    assert sent == present + known + outcomes["unseen"]
    # A test that no longer reaches a rule must not pass.
    few = {name: count for name, count in features.items() if count < 3}
    assert not few
    expected = {
        "placed": 3000,
        "metadata_heaps": 1000,
        "bad_timestamp_heaps": 300,
        "bad axis": 300,
        "implausible_timestamp_heaps": 50,
        "too old": 300,
        "duplicate": 300,
        "wrapped": 100,
        "unfinished": 50,
        "several packets": 100,
        "unseen": 50,
    }
    few = {name: outcomes[name] for name, least in expected.items() if outcomes[name] < least}
    assert not few
