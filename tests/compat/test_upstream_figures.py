"""The declarative layouts behind katgpucbf.recv's names: items, statistics, places and sample counts are upstream's.

The figures and the rules of placement are those of katgpucbf's source: fgpu/recv.py, xbgpu/recv.py, vgpu/recv.py and
spead.py, written once more in the slowest way, for one heap at a time.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import pathlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import prometheus_client
import pytest
import spead2
from prometheus_client import CollectorRegistry, Counter
from speadrx.meerkat import AntennaChannelisedVoltageLayout, DigitiserLayout, TiedArrayChannelisedVoltageLayout

from engine import Received, add_chunks, feed, packets, rings
from handmade import Heap
from loopback import wait_for
from speadrx.compat import katgpucbf as recv
from speadrx.layout import DeclarativeLayout

LENGTH = spead2.HEAP_LENGTH_ID
UPSTREAM, OURS = "katgpucbf.recv", "speadrx.compat.katgpucbf"
#: Chunks under construction.
WINDOW = 4
#: Statistics of heaps that come when their chunk has left the window. katgpucbf has only the first.
LATE = ["too_old_heaps", "speadrx.backward_timestamp_heaps", "speadrx.implausible_timestamp_heaps"]
Items = Mapping[int, int]
#: Chunk and place in it of a good heap; or which of the engine's statistics counts it.
Outcome = tuple[int, int] | int


@dataclass(frozen=True)
class Engine:
    layout: DeclarativeLayout
    #: In the order of the engine's call of make_stream.
    spead_items: list[int]
    stream_stats: list[str]
    place: Callable[[Items], Outcome]
    #: heap_bytes, heap_sample_count, chunk_heaps, chunk_timestamp_step.
    figures: tuple[int, int, int, int]
    user_data: dict[str, int]
    #: Values of an item that is no time: good ones and bad ones.
    values: dict[int, list[int]]
    #: Polarisations that iter_chunks counts each for itself; 0 if it counts them together.
    n_pols: int = 0
    #: Of the sensors of a polarisation, on the page; empty if the sensors are for both.
    prefix: tuple[str, ...] = ()


def digitiser_heap(items: Items) -> Outcome:
    """fgpu: 4096 samples of 10 bits; polarisation-major; the lowest bit of the digitiser ID is the polarisation."""
    if items.get(LENGTH) != 5120 or items.get(0x1600, -1) < 0 or items.get(0x3101, -1) < 0:
        return 0
    if items[0x1600] % 4096:
        return 1
    return items[0x1600] // 16384, items[0x3101] % 2 * 4 + items[0x1600] // 4096 % 4


def f_engine_heap(items: Items) -> Outcome:
    """xbgpu: 4 antennas, 16 channels of 256 spectra, so 16 x 256 x 2 polarisations x 2 bytes; time-major."""
    if items.get(LENGTH) != 16384 or items.get(0x1600, -1) < 0 or items.get(0x4101, -1) < 0:
        return 0
    if items[0x1600] % 2**21:
        return 1
    if items[0x4101] >= 4:
        return 2
    return items[0x1600] // 2**22, items[0x1600] // 2**21 % 2 * 4 + items[0x4101]


def beam_heap(items: Items) -> Outcome:
    """vgpu: 64 channels in substreams of 16; the polarisation is the stream's; beam_ants must be there."""
    absent = any(items.get(item, -1) < 0 for item in (0x1600, 0x4103, 0x5004))
    if items.get(LENGTH) != 8192 or absent:
        return 0
    if items[0x1600] % 2**15:
        return 1
    if items[0x4103] % 16 or items[0x4103] >= 64:
        return 2
    return items[0x1600] // 2**16, 1 * 8 + items[0x1600] // 2**15 % 2 * 4 + items[0x4103] // 16


ENGINES = {
    "fgpu": Engine(
        DigitiserLayout(10, 4096, 16384, False),
        [0x1600, LENGTH, 0x3101, 0x3102],
        ["katgpucbf.metadata_heaps", "katgpucbf.bad_timestamp_heaps"],
        digitiser_heap,
        (5120, 4096, 8, 16384),
        {},
        {0x3101: [0, 1, 0x1234, 0x1235], 0x3102: [0]},
        n_pols=2,
        prefix=("input",),
    ),
    "xbgpu": Engine(
        AntennaChannelisedVoltageLayout(4, 16, 256, 2**21, 8, 2),
        [0x1600, 0x4101, LENGTH],
        ["katgpucbf.metadata_heaps", "katgpucbf.bad_timestamp_heaps", "katgpucbf.bad_feng_id_heaps"],
        f_engine_heap,
        (16384, 16 * 256, 8, 2**22),
        {},
        {0x4101: [0, 1, 2, 3, 3, 2, 1, 0, 4, 1000], 0x4103: [512]},
    ),
    "vgpu": Engine(
        TiedArrayChannelisedVoltageLayout(8, 64, 16, 256, 2, 2**15),
        [0x1600, 0x4103, 0x5004, LENGTH],
        ["katgpucbf.metadata_heaps", "katgpucbf.bad_timestamp_heaps", "katgpucbf.bad_frequency_heaps"],
        beam_heap,
        (8192, 16 * 256, 16, 2**16),
        {"pol": 1},
        {0x4103: [0, 16, 32, 48, 0, 16, 32, 48, 8, 64], 0x5004: [64]},
        n_pols=2,
        prefix=("pol",),
    ),
}


@pytest.mark.parametrize("name", ENGINES)
def test_figures(name: str) -> None:
    engine = ENGINES[name]
    layout = engine.layout
    figures = (layout.heap_bytes, layout.heap_sample_count, layout.chunk_heaps, layout.chunk_timestamp_step)
    assert figures == engine.figures
    assert sorted(layout.spead_items) == sorted(engine.spead_items)
    # The first of the layout's statistics are the engine's, in its order.
    own = [stat.partition(".")[2] for stat in layout.stream_stats[: len(engine.stream_stats)]]
    assert own == [stat.partition(".")[2] for stat in engine.stream_stats]


def heaps_of(engine: Engine, rng: np.random.Generator, start: int = 40) -> list[Heap]:
    """Heaps in the order of time: good ones, and each kind that the engine counts."""
    layout, heaps = engine.layout, []
    step = layout.declaration.time.step
    for n in range(start, start + 16):
        for i in range(12):
            items = {0x1600: n * step, LENGTH: layout.heap_bytes}
            items |= {item: int(rng.choice(values)) for item, values in engine.values.items()}
            kind = rng.integers(8) if i > 8 else 7
            if kind == 0:
                items[0x1600] += 1
            elif kind == 1:
                items[LENGTH] -= 8
            elif kind == 2:
                del items[int(rng.choice([item for item in engine.spead_items if item in items and item != LENGTH]))]
            heaps.append(Heap(items, rng.bytes(items[LENGTH]), addressed=[0x3300]))
    return heaps


class UnixTime:
    """What an engine has to convert timestamps."""

    def adc_to_unix(self, samples: float) -> float:
        return samples / 1e9


def make_counters(registry: CollectorRegistry, labels: Sequence[str]) -> recv.Counters:
    """Make an engine's counters: all but that of chunks by polarisation, if the engine keeps polarisations apart."""

    def counter(name: str, labels: Sequence[str] = labels) -> Counter:
        return Counter(f"input_{name}", name, labels, registry=registry)

    return recv.Counters(
        heaps=counter("heaps"),
        chunks=counter("chunks", ()),
        samples=counter("samples"),
        bytes=counter("bytes"),
        missing_heaps=counter("missing_heaps"),
    )


@dataclass
class Run:
    chunks: list[Received]
    #: Statistics of the stream, or values of the sensors.
    stats: dict[str, Any]
    registry: CollectorRegistry

    def count(self, name: str, pol: int | None = None) -> float | None:
        labels = {} if pol is None else {"pol": str(pol)}
        return self.registry.get_sample_value(f"input_{name}_total", labels)

    def metrics(self) -> dict[tuple[str, str], float]:
        """All values, but for the times at which they began."""
        samples = [sample for metric in self.registry.collect() for sample in metric.samples]
        return {(s.name, str(s.labels)): s.value for s in samples if not s.name.endswith("_created")}

    def found(self, layout: DeclarativeLayout) -> dict[tuple[int, int], bytes]:
        """Payloads by chunk and place."""
        size = layout.heap_bytes
        return {
            (chunk.chunk_id, int(place)): chunk.data.reshape(-1)[place * size :][:size].tobytes()
            for chunk in self.chunks
            for place in np.flatnonzero(chunk.present)
        }


async def run_engine(engine: Engine, heaps: Sequence[Heap]) -> Run:
    """Receive heaps as an engine does, in one stream."""
    layout, n_pols = engine.layout, engine.n_pols
    user_data = np.zeros(1, [("stats_base", np.uintp)] + [(field, np.uintp) for field in engine.user_data])
    for field, value in engine.user_data.items():
        user_data[field] = value
    stream = recv.make_stream(
        layout=layout,
        spead_items=engine.spead_items,
        max_active_chunks=WINDOW,
        **rings(32),
        affinity=-1,
        stream_stats=engine.stream_stats,
        user_data=user_data,
    )
    registry = CollectorRegistry()
    counters = make_counters(registry, ["pol"] if n_pols else [])
    collector = recv.StatsCollector({"heaps": ("input_all_heaps", "all")}, registry=registry)
    collector.add_stream(stream)
    pols = [(str(pol), f"input{pol}") for pol in range(n_pols)] or None
    sensors = recv.make_sensors(1e6, [f"{prefix}." for _, prefix in pols] if pols else [""])
    add_chunks(stream, layout, 24, extra=engine.layout.max_heap_extra > 0)
    feed(stream, heaps)
    chunks = []
    ring = stream.data_ringbuffer
    async for chunk in recv.iter_chunks(ring, layout, sensors, UnixTime(), pols, counters, collector):
        with chunk:
            assert chunk.timestamp == chunk.chunk_id * engine.figures[3]
            chunks.append(Received(chunk.chunk_id, chunk.data.copy(), chunk.present.copy(), None))
    stats = {name: stream.stats[name] for name in [*engine.stream_stats, *LATE, "heaps"]}
    return Run(chunks, stats, registry)


@pytest.mark.parametrize("name", ENGINES)
def test_placed_and_counted_as_upstream_does(name: str, rng: np.random.Generator) -> None:
    engine = ENGINES[name]
    layout = engine.layout
    heaps = heaps_of(engine, rng)
    expected: dict[tuple[int, int], bytes] = {}
    counts = [0] * len(engine.stream_stats)
    for heap in heaps:
        if isinstance(outcome := engine.place(heap.items), int):
            counts[outcome] += 1
        else:
            expected.setdefault(outcome, heap.payload)
    assert all(counts)
    run = asyncio.run(run_engine(engine, heaps))
    assert [run.stats[stat] for stat in engine.stream_stats] == counts
    found = run.found(layout)
    # Of two heaps for one place, either may stay.
    copies = {key: [h.payload for h in heaps if engine.place(h.items) == key] for key in expected}
    assert found.keys() == expected.keys()
    assert all(found[key] in copies[key] for key in found)


def heaps_with_gaps(engine: Engine, rng: np.random.Generator, gaps: Sequence[int]) -> list[Heap]:
    """Heaps of batches that follow on each other, but for gaps of so many chunks; shuffled, some late and some lost."""
    step, batches = engine.layout.declaration.time.step, engine.layout.chunk_batches
    heaps, batch = [], 7 * batches
    for gap in gaps:
        for _ in range(3 * batches):
            items = {0x1600: batch * step, LENGTH: engine.layout.heap_bytes}
            rows = [items | {item: values[i % len(values)] for item, values in engine.values.items()} for i in range(4)]
            by_place = {engine.place(row): row for row in rows}
            heaps += [Heap(row, rng.bytes(items[LENGTH]), addressed=[0x3300]) for row in by_place.values()]
            batch += 1
        batch += gap * batches
    order = np.arange(len(heaps)) + rng.integers(0, 24, len(heaps))
    heaps = [heaps[i] for i in np.argsort(order, kind="stable")]
    return [heap for heap in heaps if rng.integers(10)]


def places_kept(engine: Engine, heaps: Sequence[Heap]) -> tuple[dict[tuple[int, int], bytes], int]:
    """Of heaps in the order of their coming: those that katgpucbf's receiver keeps, and the number that are too old.

    spead2 moves the window to the chunk of any heap that is newer, and takes heaps of the chunks in the window.
    """
    kept, newest, n_old = {}, -1, 0
    for heap in heaps:
        outcome = engine.place(heap.items)
        assert not isinstance(outcome, int)
        newest = max(newest, outcome[0])
        if outcome[0] > newest - WINDOW:
            kept[outcome] = heap.payload
        else:
            n_old += 1
    return kept, n_old


@pytest.mark.parametrize("name", ENGINES)
def test_no_gap_costs_heaps_that_upstream_keeps(name: str, rng: np.random.Generator) -> None:
    """Gaps of 1 to a million chunks, the first heap after each included; every count is that of katgpucbf."""
    engine = ENGINES[name]
    gaps = [0, 1, 2, 3, *(int(10**x) for x in (1, 1.5, 2, 3, 4, 5, 6)), *map(int, rng.integers(1, 10**6, 8))]
    heaps = heaps_with_gaps(engine, rng, [gaps[i] for i in rng.permutation(len(gaps))])
    kept, n_old = places_kept(engine, heaps)
    assert n_old > 0, "no heap came late"
    run = asyncio.run(run_engine(engine, heaps))
    assert run.found(engine.layout) == kept
    assert sum(run.stats[stat] for stat in LATE) == n_old
    check_counts(engine, run, kept)
    assert run.count("all_heaps") == run.stats["heaps"]


def check_counts(engine: Engine, run: Run, kept: Collection[tuple[int, int]]) -> None:
    """Compare the counters with those that the lines of katgpucbf's iter_chunks make of the same chunks."""
    heap_bytes, heap_samples, chunk_heaps, _ = engine.figures
    n_pols = max(engine.n_pols, 1)
    ids = sorted({chunk for chunk, _ in kept})
    assert [chunk.chunk_id for chunk in run.chunks] == ids
    assert run.count("chunks") == len(ids)
    for pol in range(n_pols):
        label = pol if engine.n_pols else None
        places = [place for _, place in kept if place * n_pols // chunk_heaps == pol]
        assert run.count("heaps", label) == len(places)
        # Of each heap, the samples of one polarisation: those of both would be twice as many.
        assert run.count("samples", label) == len(places) * heap_samples
        assert run.count("bytes", label) == len(places) * heap_bytes
        expected = (ids[-1] - ids[0] + 1) * chunk_heaps // n_pols
        assert run.count("missing_heaps", label) == expected - len(places)


def test_log_of_chunks(rng: np.random.Generator, caplog: pytest.LogCaptureFixture) -> None:
    """Each chunk has the line that it has in katgpucbf's log."""
    engine = ENGINES["xbgpu"]
    heaps = heaps_with_gaps(engine, rng, [0, 2])
    with caplog.at_level(logging.DEBUG, recv.logger.name):
        run = asyncio.run(run_engine(engine, heaps))
    lines, lost = [], 0
    for chunk in run.chunks:
        good = np.count_nonzero(chunk.present)
        lost += 8 - good
        lines.append(f"Received chunk: timestamp={chunk.chunk_id * 2**22:#x} ({good}/8, lost {lost})")
    assert lost > 0
    assert [record.getMessage() for record in caplog.records if record.name == recv.logger.name] == lines


def port(name: str) -> tuple[str, str]:
    """Return a receiver of the page as it was, with a numba callback, and as it is, with a declared layout."""
    title = {"xbgpu": "an X-engine", "fgpu": "an F-engine", "vgpu": "a V-engine"}[name]
    page = (pathlib.Path(__file__).parents[2] / "doc/coming-from-katgpucbf.md").read_text("utf-8")
    found = re.search(rf"^### [^\n]*{title}$.*?^```diff\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert found
    lines = found[1].splitlines(keepends=True)
    before, after = ("".join(line[1:] for line in lines if line[0] in (" ", sign)) for sign in "-+")
    return before, after


def load(program: str) -> tuple[dict[str, Any], CollectorRegistry]:
    """Run a program of the page, but not its main function; put its metrics into a registry of their own."""
    names: dict[str, Any] = {"__name__": "engine"}
    exec(compile(program, "engine", "exec"), names)
    registry = CollectorRegistry()
    for collector in [*filter(None, vars(names["counters"]).values()), names["stats_collector"]]:
        prometheus_client.REGISTRY.unregister(collector)
        registry.register(collector)
    return names, registry


def run_port(engine: Engine, program: str, turns: Sequence[Sequence[tuple[int, Heap]]]) -> Run:
    """Run a receiver of the page on heaps for its streams, a turn at a time: no stream gets far ahead of another."""
    names, registry = load(program)
    receiver = names["make_receiver"]()
    streams = list(receiver) if engine.n_pols else [receiver]
    queues = [spead2.InprocQueue() for _ in streams]
    for stream, queue in zip(streams, queues, strict=True):
        stream.add_inproc_reader(queue)
    chunks: list[Received] = []

    def keep(chunk: recv.Chunk) -> None:
        assert chunk.timestamp == chunk.chunk_id * engine.figures[3]
        extra = None if chunk.extra is None else np.array(chunk.extra).reshape(-1)
        chunks.append(Received(chunk.chunk_id, np.array(chunk.data), np.array(chunk.present).reshape(-1), extra))

    def send() -> None:
        sent = 0
        try:
            for turn in turns:
                for stream, heap in turn:
                    queues[stream].add_packet(packets([heap])[0])
                sent += len(turn)
                wait_for(lambda: sum(stream.stats["packets"] for stream in streams) == sent, 60)  # noqa: B023
        finally:
            for queue in queues:
                queue.stop()

    async def receive() -> dict[str, Any]:
        sensors = recv.make_sensors(1e6, [f"{prefix}{i}." for prefix in engine.prefix for i in range(2)] or [""])
        await asyncio.gather(names["receive"](receiver, sensors, keep), asyncio.to_thread(send))
        return {sensor.name: sensor.value for sensor in sensors.values()}

    return Run(chunks, asyncio.run(receive()), registry)


@dataclass
class Feed:
    """Heaps for the streams of a receiver, by the stream's index, in turns; and what becomes of them."""

    turns: list[list[tuple[int, Heap]]]
    #: Payloads by chunk and place: of two heaps for one place, either may stay.
    kept: dict[tuple[int, int], list[bytes]]
    counts: list[int]

    def check(self, engine: Engine, run: Run) -> None:
        found = run.found(engine.layout)
        assert found.keys() == self.kept.keys()
        assert all(found[key] in self.kept[key] for key in found)
        check_counts(engine, run, self.kept)
        assert [run.count(stat.partition(".")[2]) for stat in engine.stream_stats] == self.counts


def make_feed(engine: Engine, rng: np.random.Generator) -> Feed:
    """Make good and bad heaps, with two long gaps."""
    feed = Feed([], {}, [0] * len(engine.stream_stats))
    heaps = [heap for start in (40, 400, 10**6) for heap in heaps_of(engine, rng, start)]
    for _, turn in itertools.groupby(heaps, lambda heap: heap.items.get(0x1600, 0) // engine.figures[3]):
        feed.turns.append([])
        for heap in turn:
            is_digitiser = 0x3101 in engine.spead_items
            stream = heap.items.get(0x3101, 0) % 2 if is_digitiser else int(rng.integers(max(engine.n_pols, 1)))
            feed.turns[-1].append((stream, heap))
            if isinstance(outcome := engine.place(heap.items), int):
                feed.counts[outcome] += 1
            else:
                chunk, place = outcome
                if "pol" in engine.user_data:
                    place += (stream - engine.user_data["pol"]) * engine.figures[2] // 2
                feed.kept.setdefault((chunk, place), []).append(heap.payload)
    assert all(feed.counts)
    return feed


@pytest.mark.parametrize("name", ENGINES)
def test_ports_of_the_page(name: str, rng: np.random.Generator) -> None:
    """Both steps of a port leave all as it was: where heaps go, the metrics and the sensors."""
    engine, (before, after) = ENGINES[name], port(name)
    assert before.count(UPSTREAM) == 1
    assert "numba" not in after
    feed = make_feed(engine, rng)
    # As it was, but for the import line: the first step.
    runs = [run_port(engine, program, feed.turns) for program in (before.replace(UPSTREAM, OURS), after)]
    for run in runs:
        feed.check(engine, run)
    assert runs[0].metrics() == runs[1].metrics()
    assert runs[0].stats == runs[1].stats  # the sensors
    for one, other in zip(runs[0].chunks, runs[1].chunks, strict=True):
        np.testing.assert_array_equal(one.present, other.present)
        np.testing.assert_array_equal(one.extra, other.extra)


def test_layout_mixin(rng: np.random.Generator) -> None:
    """The newer way to write a layout: the step of a chunk is a field, and `heap_samples` counts the samples."""
    engine, (program, _) = ENGINES["fgpu"], port("fgpu")
    for name in ("heap_sample_count", "chunk_timestamp_step"):
        program, n = re.subn(rf"    @property\n    def {name}\(self\) -> int:\n        return .*\n\n", "", program)
        assert n == 1
    program = program.replace("BaseLayout", "LayoutMixin").replace("chunk_samples", "chunk_timestamp_step")
    feed = make_feed(engine, rng)
    feed.check(engine, run_port(engine, program.replace(UPSTREAM, OURS), feed.turns))
