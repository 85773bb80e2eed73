"""Time as instruments tell it, with packets made by hand: each heap's payload says which source sent it, and when."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import spead2.recv

import speadrx
from handmade import Heap, encode
from speadrx import Axis, Layout, TimeAxis
from speadrx.accounts.history import History
from speadrx.compat import katgpucbf

#: They fit the flavour 64-56, too.
TIME, SOURCE = 0x16, 0x41
#: What a heap has: its source, its batch, and its time as the senders count, before it wraps.
CONTENT = struct.Struct(">HIQ")


class Sent(NamedTuple):
    """A heap of a source, and the items that tell its place."""

    source: int
    time: int
    items: Mapping[int, int]


class Got(NamedTuple):
    """What a chunk says of itself."""

    timestamp: int
    time: np.datetime64 | None
    present: np.ndarray
    data: np.ndarray


def layout_of(
    n_sources: int, step: int, batches: int = 4, axis: Mapping[str, Any] | None = None, **time: Any
) -> Layout:
    return Layout(
        heap_bytes=CONTENT.size,
        time=TimeAxis(**{"item": TIME, "step": step, "batches": batches, **time}),
        axes=(Axis(**({"name": "source", "item": SOURCE, "size": n_sources} if axis is None else axis)),),
        sources="source",
    )


def usual(times: Iterable[Sequence[int]], bits: int = 48) -> Iterator[Sent]:
    """Heaps of all sources, batch by batch: for each batch the times of all sources."""
    for batch in times:
        for source, time in enumerate(batch):
            yield Sent(source, time, {TIME: time % 2**bits, SOURCE: source})


def steady(n_sources: int, start: int, step: int, batches: int, bits: int = 48) -> list[Sent]:
    return list(usual(([start + n * step] * n_sources for n in range(batches)), bits))


def queue_of(sent: Iterable[Sent], address_bits: int = 48) -> spead2.InprocQueue:
    queue = spead2.InprocQueue()
    for counter, heap in enumerate(sent):
        content = CONTENT.pack(heap.source, 0, heap.time)
        items = {spead2.HEAP_LENGTH_ID: len(content), **heap.items}
        queue.add_packet(encode(Heap(items, content), items.get(spead2.HEAP_CNT_ID, counter + 1), address_bits)[0])
    queue.stop()
    return queue


def receive(
    layout: Layout, sent: Iterable[Sent], address_bits: int = 48, **options: Any
) -> tuple[list[Got], speadrx.ReceiverStats]:
    got = []
    with speadrx.Receiver(layout, queue_of(sent, address_bits), **options) as receiver:
        for chunk in receiver:
            with chunk:
                data = np.array(chunk.data).reshape(*layout.present_shape, -1)
                present = np.array(chunk.present).reshape(layout.present_shape)
                got.append(Got(chunk.timestamp, chunk.time, present, data))
    return got, receiver.stats()


def rejected(stats: speadrx.ReceiverStats) -> dict[str, int]:
    """Heaps rejected, by reason, if there are any."""
    return {reason: heaps for reason, heaps in stats.rejected.items() if heaps}


def true_times(layout: Layout, got: Iterable[Got]) -> set[tuple[int, int, int]]:
    """Of each heap received: its source, its time as it says itself, and the time that the chunk gives it."""
    found = set()
    for chunk in got:
        for batch, source in zip(*np.nonzero(chunk.present), strict=True):
            sender, _, time = CONTENT.unpack(chunk.data[batch, source].tobytes())
            assert sender == source
            found.add((sender, time, chunk.timestamp + int(batch) * layout.time.step))
    return found


def check_all(layout: Layout, sent: Sequence[Sent], got: Sequence[Got], phases: Sequence[int] = ()) -> None:
    """Check that all heaps are there, at their true times."""
    expected = {(heap.source, heap.time, heap.time - (phases[heap.source] if phases else 0)) for heap in sent}
    assert true_times(layout, got) == expected
    assert all(a.timestamp < b.timestamp for a, b in itertools.pairwise(got))


# The first MeerKAT correlator's visibilities (the base of katsdpingest's own test), Effelsberg's gated spectrometer,
# beams of APSUSE, a step of 1, and a clock that started at 0.
ORIGINS = [
    (1632 * 2 * 4096 * 256, 1234567890123),
    (2**20 * 4, 3_200_000_000 * 1777 + 12345),
    (2**21 * 5, 2**21 * 5 * 1000 + 10_485_759),
    (1, 98765),
    (4096, 5),
]


class TestOrigin:
    @pytest.mark.parametrize("origin", ["number", "earlier", "later", "first"])
    @pytest.mark.parametrize(("step", "start"), ORIGINS)
    def test_times_with_a_phase(self, step: int, start: int, origin: str) -> None:
        value = {"number": start, "earlier": start % step, "later": start + 7 * step, "first": "first"}[origin]
        layout = layout_of(3, step, origin=value)
        sent = steady(3, start, step, 13)
        got, stats = receive(layout, sent)
        check_all(layout, sent, got)
        assert not rejected(stats)
        assert stats.missing == 0
        assert {source.newest_timestamp for source in stats.sources} == {start + 12 * step}
        assert (stats.first_timestamp, stats.last_timestamp) == (got[0].timestamp, got[-1].timestamp)

    def test_wrap(self) -> None:
        """After the wrap, times are still as many ticks beyond steps that are no power of two."""
        step = 4_629_629
        start = 2**48 - 20 * step + 77
        layout = layout_of(3, step, origin="first")
        sent = steady(3, start, step, 60)
        got, stats = receive(layout, sent)
        check_all(layout, sent, got)
        assert (stats.restarts, rejected(stats)) == (0, {})

    def test_chunks_begin_at_the_same_times_whatever_is_seen_first(self) -> None:
        step = 1000
        layout = layout_of(2, step, origin="first")
        starts = set()
        for first in range(6):
            got, _ = receive(layout, steady(2, 10_000_123 + first * step, step, 20))
            starts |= {chunk.timestamp % layout.chunk_timestamp_step for chunk in got}
        assert len(starts) == 1

    def test_gaps_have_their_times(self) -> None:
        step, start = 3000, 1_000_001
        layout = layout_of(2, step, origin="first")
        sent = [heap for heap in steady(2, start, step, 60) if not 16 <= (heap.time - start) // step < 40]
        got, _ = receive(layout, sent, gaps=True)
        times = [chunk.timestamp for chunk in got]
        assert np.diff(times).tolist() == [layout.chunk_timestamp_step] * (len(times) - 1)
        assert sum(not chunk.present.any() for chunk in got) >= 5
        check_all(layout, sent, [chunk for chunk in got if chunk.present.any()])

    @pytest.mark.parametrize("n_sources", [1, 4, 9])
    @pytest.mark.parametrize(
        ("wrong", "make"),
        [
            *itertools.product(["within a step", "elsewhere", "both"], ["receiver"]),
            # Such a stream takes the first heap's time at its word, unless it is between the steps of others.
            *itertools.product(["within a step", "both"], ["stream"]),
        ],
    )
    def test_a_wrong_first_heap_is_outvoted(self, wrong: str, n_sources: int, make: str) -> None:
        step, start = 4096 * 3, 50_000_000_077
        layout = layout_of(n_sources, step, origin="first")
        off = {"within a step": 1000, "elsewhere": step * 10**7, "both": step * 10**7 + 1000}[wrong]
        sent = steady(n_sources, start, step, 40)
        bad = Sent(0, start + off, {TIME: start + off, SOURCE: 0})
        if make == "receiver":
            got, stats = receive(layout, [bad, *sent])
            restarts = stats.restarts
        else:
            got, epochs = receive_without_resync(layout, [bad, *sent])
            restarts = sum(epoch.cause == "restart" for epoch in epochs)
        good = {time for time in true_times(layout, got) if time[1] != start + off}
        assert all(time == told for _, time, told in good)
        lost = [40 - sum(source == each for each, *_ in good) for source in range(n_sources)]
        assert max(lost) <= (3 if n_sources == 1 else 2), lost
        assert restarts == 1

    def test_single_wrong_heaps_move_nothing(self) -> None:
        step, start = 4096, 10_000_000_123
        layout = layout_of(4, step, origin="first")
        sent = steady(4, start, step, 60)
        mixed = list(sent)
        for n in range(200, 0, -17):
            mixed.insert(n, Sent(n % 4, 1, {TIME: start + n * step + 1 + n % 5, SOURCE: n % 4}))
        got, stats = receive(layout, mixed)
        check_all(layout, sent, got)
        assert stats.restarts == 0
        assert rejected(stats) == {"bad_timestamp_heaps": len(mixed) - len(sent)}

    def test_senders_that_are_restarted_show_another_origin(self) -> None:
        step = 1_000_003
        layout = layout_of(4, step, origin="first")
        before, after = steady(4, 70_000_000_011, step, 40), steady(4, 5_000_000, step, 40)
        got, stats = receive(layout, before + after)
        found = true_times(layout, got)
        assert all(time == told for _, time, told in found)
        assert len(found) >= 4 * (80 - 2)
        assert stats.restarts == 1


@pytest.mark.parametrize("align", ["floor", "nearest"])
@pytest.mark.parametrize("first", [8000, 8003, 8099])
def test_first_time_is_the_origin_whichever_way_times_are_rounded(align: str, first: int) -> None:
    """Chunks begin whole steps from the first time. Where the nearest step counts, times may be before it, too."""
    off = itertools.cycle([0, 40, -40, 30] if align == "nearest" else [0, 40, 90, 30])
    sent = [Sent(0, time, {TIME: time, SOURCE: 0}) for n in range(32) for time in [first + n * 100 + next(off)]]
    layout = layout_of(1, 100, align=align, origin="first")
    got, stats = receive(layout, sent)
    assert (stats.present, stats.missing, stats.duplicates) == (32, 0, 0)
    steps = {(time, (on_grid - first) / 100) for _, time, on_grid in true_times(layout, got)}
    assert steps == {(heap.time, n) for n, heap in enumerate(sent)}


def receive_without_resync(
    layout: Layout, sent: Iterable[Sent], address_bits: int = 48
) -> tuple[list[Got], Sequence[Any]]:
    """Receive with a stream that may not begin again at an earlier time, but follows any jump ahead."""
    data, free = spead2.recv.ChunkRingbuffer(64), spead2.recv.ChunkRingbuffer(64)
    stream = katgpucbf.make_stream(layout=layout, max_active_chunks=4, data_ringbuffer=data, free_ringbuffer=free)
    pool = speadrx.ChunkPool(stream, 64)
    stream.add_inproc_reader(queue_of(sent, address_bits))
    got = []
    for chunk in speadrx.iter_chunks(stream):
        with chunk:
            content = np.array(chunk.data).reshape(*layout.present_shape, -1)
            present = np.array(chunk.present).reshape(layout.present_shape)
            got.append(Got(chunk.timestamp, chunk.time, present, content))
    assert pool is not None
    return got, stream.epochs()


class TestRounding:
    @pytest.mark.parametrize("step", [4096, 4_629_629, 10])
    @pytest.mark.parametrize("align", ["floor", "nearest"])
    @pytest.mark.parametrize("origin", [0, 10**9 + 7])
    def test_times_between_the_steps(self, align: str, step: int, origin: int) -> None:
        layout = layout_of(3, step, align=align, origin=origin)
        start = origin + 1000 * step
        offs = (0, 1, step - 1) if align == "floor" else (0, step // 2 - 1, -(step // 2) + 1)
        sent = list(usual([start + n * step + off for off in offs] for n in range(20)))
        got, stats = receive(layout, sent)
        check_all(layout, sent, got, offs)
        assert not rejected(stats)

    def test_wrap(self) -> None:
        step = 1_000_003
        start = 2**48 - 20 * step
        start -= start % step
        layout = layout_of(2, step, align="nearest")
        sent = list(usual([start + n * step - 100, start + n * step + 100] for n in range(50)))
        got, _ = receive(layout, sent)
        check_all(layout, sent, got, [-100, 100])


class TestBits:
    @pytest.mark.parametrize("declared", [False, True])
    @pytest.mark.parametrize("step", [4096, 5000, 2**20 + 1])
    @pytest.mark.parametrize("origin", [None, "first"])
    def test_wrap_of_40_bits(self, step: int, declared: bool, origin: str | None) -> None:
        start = 2**40 - 33 * step
        start -= start % step
        layout = layout_of(5, step, bits=40 if declared else None, origin=origin)
        sent = steady(5, start, step, 200, bits=40)
        got, stats = receive(layout, sent, 40)
        check_all(layout, sent, got)
        assert (stats.restarts, rejected(stats), stats.missing) == (0, {}, 0)

    def test_several_wraps_of_40_bits(self) -> None:
        """With steps so long that timestamps wrap every 128 batches, four windows."""
        step = 2**33
        layout = layout_of(3, step, batches=2)
        sent = steady(3, 2**40 - 20 * step, step, 800, bits=40)
        got, stats = receive(layout, sent, 40)
        check_all(layout, sent, got)
        assert (stats.restarts, rejected(stats)) == (0, {})

    @pytest.mark.parametrize("bits", [16, 24, 32, 52])
    def test_other_widths(self, bits: int) -> None:
        step = 2 ** (bits - 10)
        layout = layout_of(2, step, bits=bits)
        sent = steady(2, 2**bits - 40 * step, step, 3000 if bits < 52 else 100, bits=bits)
        got, stats = receive(layout, sent, 56)
        check_all(layout, sent, got)
        assert (stats.restarts, rejected(stats)) == (0, {})

    @pytest.mark.parametrize("bits", [40, 16])
    def test_a_larger_timestamp_than_declared_is_bad(self, bits: int) -> None:
        layout = layout_of(1, 16, bits=bits)
        sent = steady(1, 64, 16, 20)
        bad = Sent(0, 0, {TIME: 2**bits + 64, SOURCE: 0})
        got, stats = receive(layout, [*sent[:10], bad, *sent[10:]], 56)
        check_all(layout, sent, got)
        assert rejected(stats) == {"bad_timestamp_heaps": 1}

    def test_48_bits_go_on_beyond_2_to_40(self) -> None:
        step = 4096
        layout = layout_of(3, step)
        sent = steady(3, 2**40 - 40 * step, step, 120)
        got, stats = receive(layout, sent)
        check_all(layout, sent, got)
        assert stats.restarts == 0

    @pytest.mark.parametrize("at", range(36 * 3, 48 * 3, 5))
    def test_one_heap_that_seems_to_wrap_does_not_narrow_48_bits(self, at: int) -> None:
        """A heap with the one timestamp that looks like a wrap of 40 bits, just where time passes 2**40."""
        step = 4096
        layout = layout_of(3, step)
        sent = steady(3, 2**40 - 40 * step, step, 120)
        bad = Sent(0, 0, {TIME: 2 * step, SOURCE: 0})
        got, stats = receive(layout, [*sent[:at], bad, *sent[at:]])
        found = {heap for heap in true_times(layout, got) if heap[1]}
        assert len(found) >= len(sent) - 1  # it may have taken the place of another
        assert all(time == told for _, time, told in found)
        assert stats.restarts == 0

    def test_one_large_timestamp_does_not_widen_40_bits(self) -> None:
        step = 4096
        layout = layout_of(3, step)
        sent = steady(3, 2**40 - 40 * step, step, 200, bits=40)
        mixed = list(sent)
        for at, value in [(550, 2**41), (500, 2**40), (400, 2**47 + step), (300, 2**40 + 60 * step), (200, 2**44)]:
            mixed.insert(at, Sent(0, 0, {TIME: value, SOURCE: 0}))
        got, stats = receive(layout, mixed)
        found = {heap for heap in true_times(layout, got) if heap[1]}
        assert len(found) >= len(sent) - 1
        assert all(time == told for _, time, told in found)
        assert stats.restarts == 0

    @pytest.mark.parametrize("at", [0, 5 * 4096])
    def test_senders_of_40_bits_that_are_restarted(self, at: int) -> None:
        step = 4096
        layout = layout_of(4, step)
        sent = steady(4, 2**40 - 30 * step, step, 60, bits=40)
        again = steady(4, 3 * 2**38 + at, step, 60, bits=40)  # that is back, not ahead
        got, stats = receive(layout, sent + again, 40)
        found = true_times(layout, got)
        assert all(time == told for _, time, told in found)
        assert len(found) >= 4 * (120 - 2)
        assert stats.restarts == 1

    @pytest.mark.parametrize("bits", [40, 48])
    def test_a_wrap_where_any_jump_ahead_is_followed(self, bits: int) -> None:
        """As the module that stands in for katgpucbf's does."""
        step = 4096
        layout = layout_of(4, step)
        sent = steady(4, 2**bits - 100 * step, step, 200, bits=bits)
        got, _ = receive_without_resync(layout, sent, address_bits=bits)
        check_all(layout, sent, got)

    @pytest.mark.parametrize("begin", [2**40 - 2**38, 2**40 - 300 * 4096])
    def test_a_heap_with_time_0_is_no_wrap_where_any_jump_ahead_is_followed(self, begin: int) -> None:
        step = 4096
        layout = layout_of(4, step)
        sent = steady(4, begin, step, 200)
        bad = Sent(1, 0, {TIME: 0, SOURCE: 1})
        got, epochs = receive_without_resync(layout, [*sent[:400], bad, *sent[400:]])
        check_all(layout, sent, got)
        assert len(epochs) == 1


class TestPhases:
    #: Public TPM data: 16 sources with a step of 4,629,629 ticks, up to 50,000 ticks apart.
    TPM = tuple(
        0x1EDD251C53 + phase
        for phase in [0x4B4, 0xC19, 0x2F, 0x927, 0, 0x863, 0x4FD, 0xC7C, 0x34C, 0xB4D, 0x945, 0xF1A, 0xB7AA, 0xC149]
    )

    @pytest.mark.parametrize(
        ("step", "times"),
        [(4_629_629, TPM), (2**21, (5, 2**20, 2**21 + 3)), (100, (1_000_000, 1_000_099, 1_000_050)), (4096, (0, 0, 7))],
    )
    def test_list(self, step: int, times: tuple[int, ...]) -> None:
        layout = layout_of(len(times), step, phases=times)
        sent = list(usual([time + n * step for time in times] for n in range(1000, 1040)))
        got, stats = receive(layout, sent)
        check_all(layout, sent, got, [time - min(times) for time in times])
        assert not rejected(stats)
        assert all(chunk.present[:, 0].all() == chunk.present.all() for chunk in got)

    @pytest.mark.parametrize("step", [4_629_629, 2**17])
    def test_first(self, step: int) -> None:
        times = self.TPM
        layout = layout_of(len(times), step, phases="first")
        sent = list(usual([time + n * step for time in times] for n in range(40)))
        got, stats = receive(layout, sent)
        check_all(layout, sent, got, [time - times[0] for time in times])
        assert not rejected(stats)

    @pytest.mark.parametrize("origin", [None, 0, 12_345, "first"])
    @pytest.mark.parametrize("start", [2**47 + 1, 2**48 - 10**10, 3 * 2**46])
    def test_first_is_late(self, start: int, origin: Any) -> None:
        """Timestamps with all their bits in use, of which the range is no whole number of steps."""
        step = 4_629_629
        start -= start % step
        phases = [0, 17, -900_000]
        layout = layout_of(3, step, phases="first", **({} if origin is None else {"origin": origin}))
        shift = origin if isinstance(origin, int) else 0
        sent = list(usual([start + shift + phase + n * step for phase in phases] for n in range(40)))
        got, stats = receive(layout, sent)
        check_all(layout, sent, got, phases)
        assert not rejected(stats)

    def test_first_is_known(self) -> None:
        layout = layout_of(3, 1000, phases="first")
        queue = queue_of(usual([10_000 + n * 1000, 9_900 + n * 1000] for n in range(20)))
        with speadrx.Receiver(layout, queue) as receiver:
            for chunk in receiver:
                chunk.recycle()
        assert receiver.stream.phases() == (0, -100, None)

    def test_a_wrong_first_heap_of_a_source(self) -> None:
        step = 10_000
        phases = [0, 321, -4000, 4000]
        layout = layout_of(4, step, phases="first")
        sent = list(usual([10**9 + phase + n * step for phase in phases] for n in range(60)))
        bad = Sent(2, 0, {TIME: 10**9 + 17, SOURCE: 2})
        got, stats = receive(layout, [*sent[:2], bad, *sent[2:]])
        found = {heap for heap in true_times(layout, got) if heap[1]}
        assert {(heap.source, heap.time) for heap in sent} - {heap[:2] for heap in found} == {(2, sent[2].time)}
        assert all(time - phases[source] == told for source, time, told in found)
        assert stats.restarts == 0

    def test_sources_that_come_later(self) -> None:
        step = 10_000
        phases = [0, 4999, -4999]
        layout = layout_of(3, step, phases="first")
        sent = list(usual([10**9 + phase + n * step for phase in phases] for n in range(60)))
        sent = [heap for heap in sent if heap.time > 10**9 + 17 * step * heap.source]
        got, stats = receive(layout, sent)
        check_all(layout, sent, got, phases)
        assert not rejected(stats)

    def test_wrap(self) -> None:
        step = 2**20
        phases = [0, 400_000, 7]
        start = 2**48 - 20 * step
        layout = layout_of(3, step, phases="first")
        sent = list(usual([start + phase + n * step for phase in phases] for n in range(50)))
        got, _ = receive(layout, sent)
        check_all(layout, sent, got, phases)


class TestItems:
    @pytest.mark.parametrize("ids", [(0x1600, 0x1601, 0x1602, 0x1603), (0x1700, 0x1600)])
    def test_time_of_each_source_in_its_own_item(self, ids: tuple[int, ...]) -> None:
        """KAT-7's correlator in the format "inter": X-engine x has its time in item 0x1600 + x."""
        layout = layout_of(len(ids), 4000, item=ids, axis={"name": "source", "present_items": ids})
        sent = [Sent(x, n * 4000, {ids[x]: n * 4000}) for n in range(30) for x in range(len(ids))]
        got, stats = receive(layout, sent, 40)
        check_all(layout, sent, got)
        assert not rejected(stats)

    def test_none_or_several(self) -> None:
        ids = (0x1600, 0x1601)
        layout = layout_of(2, 10, item=ids, axis={"name": "source", "present_items": (0x20, 0x30)})
        good = [Sent(0, n * 10, {0x1600: n * 10, 0x20: 5}) for n in range(10)]
        bad = [
            Sent(0, 0, {0x20: 1}),
            Sent(0, 0, {0x1600: 50, 0x1601: 50, 0x20: 1}),
            Sent(0, 0, {0x1600: 50}),
            Sent(0, 0, {0x1600: 50, 0x20: 0, 0x30: 0}),
        ]
        got, stats = receive(layout, good + bad)
        check_all(layout, good, got)
        assert rejected(stats) == {"metadata_heaps": 2, "bad_source_heaps": 2}

    def test_time_in_some_bits_of_an_item(self) -> None:
        """SKA-Low: the counter of packets is in the lower 32 bits of item 1, above it is the channel."""
        step = 1
        layout = layout_of(
            3,
            step,
            item=1,
            mask=0xFFFFFFFF,
            bits=32,
            axis={"name": "source", "item": 1, "shift": 32, "mask": 0xFF, "size": 3},
        )
        start = 2**32 - 100
        sent = [Sent(s, start + n, {1: s << 32 | (start + n) % 2**32}) for n in range(300) for s in range(3)]
        got, stats = receive(layout, sent)
        check_all(layout, sent, got)
        assert not rejected(stats)

    def test_shifted_time(self) -> None:
        layout = layout_of(2, 16, shift=8, mask=0xFFFFFF, bits=24)
        sent = [Sent(s, n * 16, {TIME: 0x9 << 32 | (n * 16) << 8 | s, SOURCE: s}) for n in range(100) for s in range(2)]
        got, _ = receive(layout, sent)
        check_all(layout, sent, got)

    @pytest.mark.parametrize("address_bits", [40, 48])
    def test_heap_counter_as_time(self, address_bits: int) -> None:
        """GBT's VEGAS: one more for each spectrum. It wraps as any other time."""
        layout = Layout(heap_bytes=CONTENT.size, time=TimeAxis(item=1, step=1, batches=8))
        start = 2**address_bits - 50
        queue = queue_of((Sent(0, start + n, {1: (start + n) % 2**address_bits}) for n in range(200)), address_bits)
        with speadrx.Receiver(layout, queue) as receiver:
            times = []
            for chunk in receiver:
                with chunk:
                    rows = np.array(chunk.data).reshape(8, -1)
                    told = {int(batch): CONTENT.unpack(rows[batch].tobytes())[2] for batch in range(8)}
                    times += [
                        (told[batch], chunk.timestamp + batch) for batch in np.flatnonzero(chunk.present).tolist()
                    ]
        assert times == [(start + n, start + n) for n in range(200)]

    def test_flush_where_the_heap_counter_is_the_time(self) -> None:
        """A control heap has a heap counter, too."""
        layout = Layout(heap_bytes=1, time=TimeAxis(item=1, step=1, batches=4))
        queue = spead2.InprocQueue()
        with speadrx.Receiver(layout, queue) as receiver:
            for n in range(10):
                queue.add_packet(encode(Heap({spead2.HEAP_LENGTH_ID: 1}, b"x"), n, 48)[0])
            while receiver.stats().placed < 10:
                pass
            receiver.drain()
            present = 0
            for chunk in receiver:
                with chunk:
                    present += int(np.count_nonzero(chunk.present))
        assert present == 10


class TestUtc:
    #: 2024-01-01 00:00:00 UTC.
    EPOCH = 1_704_067_200

    @pytest.mark.parametrize("rate", [1712e6, 1.6e9 / 3, 1e6])
    def test_epoch(self, rate: float) -> None:
        step, start = 4096, 123_456_789_012_345
        layout = layout_of(1, step, origin="first", tick_rate=rate, epoch=self.EPOCH)
        got, _ = receive(layout, steady(1, start, step, 12))
        for chunk in got:
            assert chunk.time is not None
            nanoseconds = int((chunk.time - np.datetime64("2024-01-01", "ns")).astype(np.int64))
            assert abs(nanoseconds - chunk.timestamp * 10**9 / rate) < 100  # a float has no more digits

    def test_digits(self) -> None:
        layout = layout_of(1, 1, tick_rate=1e9, epoch=self.EPOCH)
        got, _ = receive(layout, steady(1, 10**14 + 4, 1, 4))
        assert got[0].time == np.datetime64("2024-01-01", "ns") + np.timedelta64(10**14 + 4, "ns")

    @pytest.mark.parametrize("time", [{}, {"epoch": 5.0}, {"tick_rate": 1e9}])
    def test_unknown(self, time: dict[str, Any]) -> None:
        got, _ = receive(layout_of(1, 1, **time), steady(1, 0, 1, 8))
        assert [chunk.time for chunk in got] == [None, None]

    def test_epoch_item(self) -> None:
        """MeerKAT's sync_time. A wrong one changes nothing, and a restart brings another."""
        step = 1000
        layout = layout_of(2, step, tick_rate=1e6, epoch_item=0x1027)
        sent = [*steady(2, 0, step, 40), *steady(2, 10**12, step, 40)]
        told = [
            heap._replace(items={**heap.items, 0x1027: self.EPOCH + (100 if i >= 80 else 0)})
            for i, heap in enumerate(sent)
        ]
        told[40] = told[40]._replace(items={**told[40].items, 0x1027: 99})
        got, _ = receive(layout, told)
        start = np.datetime64("2024-01-01", "ns")
        for chunk in got:
            later = 100 if chunk.timestamp >= 10**12 else 0
            assert chunk.time == start + np.timedelta64(later * 10**9 + chunk.timestamp * 1000, "ns")

    def test_heaps_without_the_item(self) -> None:
        got, stats = receive(layout_of(1, 1, tick_rate=1e9, epoch_item=0x1027), steady(1, 0, 1, 8))
        assert [chunk.time for chunk in got] == [None, None]
        assert stats.present == 8


def test_history_has_the_times() -> None:
    step, start = 3000, 1_000_001
    layout = layout_of(2, step, origin="first")
    history = History(layout)
    with speadrx.Receiver(layout, queue_of(steady(2, start, step, 30))) as receiver:
        for chunk in receiver:
            with chunk:
                history.add(chunk)
    assert history.timestamps[0] == start
    again = History.from_json(history.to_json())
    assert again.timestamps.tolist() == history.timestamps.tolist()
    assert again.present_by_row.sum() == 60


def test_epochs_have_the_times() -> None:
    step, start = 3000, 1_000_001
    layout = layout_of(2, step, origin=start)
    got, epochs = receive_without_resync(layout, steady(2, start, step, 30))
    assert [epoch.timestamp for epoch in epochs] == [start % step]
    assert got[0].timestamp % step == start % step


@pytest.mark.parametrize(
    ("time", "axis", "problem"),
    [
        ({"origin": "last"}, None, "time.origin"),
        ({"origin": -1}, None, "time.origin"),
        ({"origin": 2**48}, None, "time.origin: 281474976710656 is no timestamp; those have 48 bits"),
        ({"origin": 2**40, "bits": 40}, None, "time.origin: 1099511627776 is no timestamp; those have 40 bits"),
        ({"origin": 256, "bits": 8, "step": 1}, None, "time.origin: 256 is no timestamp; those have 8 bits"),
        ({"align": "mask", "step": 3}, None, "must be a power of two"),
        ({"align": "up"}, None, "time.align"),
        ({"bits": 7}, None, "time.bits: 7 must be from 8 to 60"),
        ({"bits": 61}, None, "time.bits: 61 must be from 8 to 60"),
        ({"bits": 16, "step": 2**14}, None, "is the length of a chunk in ticks"),
        ({"shift": 63}, None, "time.shift"),
        ({"mask": 0}, None, "time.mask: 0 keeps no bit"),
        ({"phases": [1]}, None, "time.phases: 1 phases, but there are 2 sources"),
        ({"phases": [1, 2**48]}, None, "is no timestamp"),
        ({"phases": "later"}, None, "time.phases"),
        ({"phases": "first", "align": "floor"}, None, "needs align"),
        ({"item": 2}, None, "time.item: 0x2 is reserved"),
        ({"item": []}, None, "must have at least one item ID"),
        ({"item": [16, 16]}, None, "is given twice"),
        ({"epoch": float("nan")}, None, "time.epoch"),
        ({"epoch": 1.0, "epoch_item": 0x1027}, None, "cannot be given together with epoch_item"),
        ({"epoch_item": 1}, None, "time.epoch_item"),
        ({}, {"name": "source", "present_items": []}, "must have at least one item ID"),
        ({}, {"name": "source", "present_items": [1, 16]}, "is reserved"),
        ({}, {"name": "source", "present_items": [16], "item": 16}, "cannot be given together"),
        ({}, {"name": "source", "present_items": [16], "size": 1}, "cannot be given together"),
    ],
)
def test_what_cannot_be(time: dict[str, Any], axis: dict[str, Any] | None, problem: str) -> None:
    with pytest.raises(speadrx.LayoutError, match=problem):
        layout_of(2, time.pop("step", 4), axis=axis, **time)


def test_phases_need_sources() -> None:
    with pytest.raises(speadrx.LayoutError, match="needs an axis of sources"):
        Layout(heap_bytes=1, time=TimeAxis(item=16, step=1, batches=1, phases=(0,)))


@pytest.mark.parametrize(
    "time",
    [
        {"origin": "first", "bits": 40, "phases": "first", "epoch": 1.5},
        {"item": (0x1600, 0x1700), "origin": 7, "shift": 3, "mask": 0xFF, "bits": 40, "phases": (1, 2)},
        {"align": "nearest", "epoch_item": 0x1027},
    ],
)
def test_toml(time: dict[str, Any], tmp_path: Any) -> None:
    layout = layout_of(2, 4, axis={"name": "source", "present_items": (0x20, 0x30)}, **time)
    file = tmp_path / "layout.toml"
    file.write_text(layout.to_toml())
    assert Layout.from_toml(file) == layout
    assert "[0x20, 0x30]" in layout.to_toml().replace("\n", " ").replace("    ", "").replace("[ ", "[")
