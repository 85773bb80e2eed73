"""Layouts proposed for surveyed streams: a real stream receives with them what was sent."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import spead2.send
from speadrx.propose import propose

from example_layouts import MEERKAT
from random_layouts import random_case
from speadrx import Axis, Layout, TimeAxis, layouts
from speadrx.receive.feed import mends_packets
from speadrx.simulate import DEFAULT_FLAVOUR, Faults, Simulator
from speadrx.simulate.packets import PacketEncoder, axis_size
from speadrx.survey import Survey
from speadrx.survey.kinds import Flavour, Stream
from surveying import GROUP, SENDER, SurveySink, has_observable_time, random_simulator, receive

FAULTS = Faults(loss=0.05, reorder=5, duplicate=0.05, garbage=0.08)
BATCHES = 60
LAYOUTS = 240

DEMO = Layout(
    heap_bytes=5120,
    time=TimeAxis(item=0x1600, step=4096, batches=64),
    axes=(Axis(name="antenna", item=0x3101, shift=1, size=4), Axis(name="pol", item=0x3101, mask=1, size=2)),
    sources="antenna",
)


def survey_of(simulator, batches=BATCHES):
    sink = SurveySink()
    truth = simulator.send(sink, batches)
    return sink, truth


def fields_of(layout, value):
    """User data for a layout: the same value for each field that it reads."""
    return {name: value for name in layout.user_data_dtype.names or () if name != "stats_base"}


def best(sink, **kwargs):
    stream, *_ = sink.survey.streams()
    return propose(stream, described=sink.survey.described(), seconds=sink.survey.seconds, **kwargs)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
def test_random_layouts(seed):
    """Whatever the layout, as many heaps are present as with the layout itself.

    Left out is what no packet shows: see `surveying.random_simulator` and `has_observable_time`.
    """
    done = with_axes = 0
    for i in range(LAYOUTS // 4 + 20):
        rng = random.Random(f"propose/{seed}/{i}")
        case = random_case(rng)
        if not has_observable_time(case.layout):
            continue
        sink, truth = survey_of(random_simulator(case, rng, FAULTS))
        proposal = best(sink)
        try:
            assert proposal.layout is not None, proposal.obstacle
            assert proposal.layout.time.item == case.layout.time.item
            assert proposal.layout.time.step == case.layout.time.step
            assert proposal.layout.heap_bytes == case.layout.heap_bytes
            account = receive(proposal.layout, sink.packets)
            assert (account.present, account.too_old) == (sum(truth.complete), 0)
        except AssertionError as exc:
            exc.add_note(f"propose/{seed}/{i}: {case}, proposed {proposal}")
            raise
        done += 1
        with_axes += bool(proposal.layout.axes)
    assert done >= LAYOUTS // 4
    assert with_axes >= LAYOUTS // 10


@pytest.mark.parametrize("layout", [DEMO, *MEERKAT], ids=["demo", "digitiser", "channelised", "beam"])
@pytest.mark.parametrize("faults", [Faults(), FAULTS], ids=["clean", "faults"])
def test_known_layouts(layout, faults):
    simulator = Simulator(layout, faults=faults, user_data=fields_of(layout, 1), max_packet_size=60000, seed=5)
    sink, truth = survey_of(simulator)
    proposal = best(sink)
    declared = layout.declaration
    assert proposal.layout is not None, proposal.obstacle
    assert (proposal.layout.time.item, proposal.layout.time.step) == (0x1600, declared.time.step)
    (axis,) = proposal.layout.axes
    sizes = [axis.size for axis in declared.axes if axis.item is not None]
    assert axis.item == next(axis.item for axis in declared.axes if axis.item is not None)
    assert axis.size == np.prod(sizes)
    assert axis.name == {0x3101: "digitiser", 0x4101: "antenna", 0x4103: "frequency"}[axis.item]
    assert proposal.layout.sources == axis.name
    # A heap that lacks a required item is no worse than others, for all that a survey knows.
    expected = sum(truth.complete) if 0x4104 not in declared.required_items or not faults.garbage else None
    account = receive(proposal.layout, sink.packets)
    assert expected is None or (account.present, account.too_old) == (expected, 0)
    if not faults.garbage:
        assert (account.duplicates, account.rejected) == (0, 0)


def test_large_array():
    """Of many heaps a time, some have each bad value; and bad times are between all good ones."""
    layout = Layout(
        heap_bytes=8,
        time=TimeAxis(item=0x1600, step=2048, batches=2),
        axes=(Axis(name="antenna", item=0x4101, size=32), Axis(name="channel", item=0x4103, size=64, step=16)),
    )
    sink, truth = survey_of(Simulator(layout, faults=FAULTS, first_timestamp=2**30), 20)
    proposal = best(sink)
    assert proposal.layout is not None, proposal.obstacle
    assert proposal.layout.time.step == 2048
    assert [(axis.item, axis.size, axis.step) for axis in proposal.layout.axes] == [(0x4101, 32, 1), (0x4103, 64, 16)]
    account = receive(proposal.layout, sink.packets)
    assert (account.present, account.duplicates) == (sum(truth.complete), sum(truth.duplicated))
    assert account.rejected == sum(truth.rejected.values())


def table(items, heap_bytes=64, targets=None, senders=None):
    """A stream of heaps with these values of items."""
    items = {item: np.array(values, np.uint64) for item, values in items.items()}
    n = len(next(iter(items.values()), ()))
    zeros = np.zeros(n, np.int64)
    return Stream(
        flavour=Flavour(48),
        heap_bytes=heap_bytes,
        destinations=(GROUP,),
        items=items,
        payload_items=(),
        senders=zeros if senders is None else np.array(senders),
        targets=zeros if targets is None else np.array(targets),
        others=0,
    )


TIMES = np.repeat(np.arange(100), 4) * 512
ANTENNAS = np.tile(np.arange(4), 100)


class TestAxes:
    """Which items become axes, and how."""

    def test_fewest(self):
        """An item that follows from others is no axis; of any two that say the same, the known one is."""
        stream = table({0x1600: TIMES, 0x4101: ANTENNAS, 0x4000: ANTENNAS * 7, 0x77: TIMES // 512 % 3})
        (axis,) = propose(stream).layout.axes
        assert (axis.item, axis.size, axis.step) == (0x4101, 4, 1)

    def test_two(self):
        """Each of its own item; the slower comes first."""
        fast, slow = np.tile([0, 64, 128], 134)[:400], np.tile(np.repeat([0, 1], 3), 67)[:400]
        times = np.repeat(np.arange(67), 6)[:400] * 16
        layout = propose(table({0x1600: times, 0x20: fast, 0x21: slow})).layout
        assert [(axis.item, axis.size, axis.step) for axis in layout.axes] == [(0x21, 2, 1), (0x20, 3, 64)]

    def test_list(self):
        """Values that are no grid from 0 are listed, and label the sources."""
        layout = propose(table({0x1600: TIMES, 0x4101: ANTENNAS + 60})).layout
        assert layout.axes[0].values == (60, 61, 62, 63)
        assert layout.source_labels == ("60", "61", "62", "63")

    def test_silent(self):
        """A hole in a grid is a sender that was silent, and said to be a guess."""
        antennas = np.tile([0, 1, 2, 4], 100)
        proposal = propose(table({0x1600: TIMES, 0x4101: antennas}))
        assert proposal.layout.axes[0].size == 5
        assert any("not seen: 3." in text for text in proposal.uncertain)

    def test_garbage(self):
        """A value that is rare is none of the axis, also where it leaves a hole in it."""
        antennas = np.tile([0, 1, 2, 4], 100)
        antennas[[50, 300]] = 3, 2**40
        proposal = propose(table({0x1600: TIMES, 0x4101: antennas}))
        assert proposal.layout.axes[0].values == (0, 1, 2, 4)

    def test_joined_late(self):
        """A sender that is there in the last fifth only is no garbage."""
        late = np.arange(80, 100) * 512
        times = np.append(TIMES, late)
        order = np.argsort(times, kind="stable")
        antennas = np.append(ANTENNAS, np.full(20, 4))
        proposal = propose(table({0x1600: times[order], 0x4101: antennas[order]}))
        assert proposal.layout.axes[0].size == 5

    def test_guard(self):
        """A constant is an axis if heaps with other values only come where there is one already."""
        order = np.argsort(np.concatenate([np.arange(400), [50.5, 60.5, 70.5]]))
        times, antennas = (np.append(v, v[[50, 60, 70]])[order] for v in (TIMES, ANTENNAS))
        beam = np.append(np.full(400, 9), [1, 2, 3])[order]
        layout = propose(table({0x1600: times, 0x4101: antennas, 0x50: beam})).layout
        assert [(axis.item, axis.values or axis.size) for axis in layout.axes] == [(0x4101, 4), (0x50, (9,))]

    def test_status(self):
        """One that differs in a few heaps, each in a place of its own, is a status."""
        status = np.zeros(400)
        status[[50, 60, 70]] = 1, 2, 3
        layout = propose(table({0x1600: TIMES, 0x4101: ANTENNAS, 0x50: status})).layout
        assert [axis.item for axis in layout.axes] == [0x4101]

    def test_scattered(self):
        values = np.arange(400, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) % np.uint64(2**48)
        layout = propose(table({0x1600: TIMES, 0x4101: ANTENNAS, 0x50: values})).layout
        assert [axis.item for axis in layout.axes] == [0x4101]
        obstacle = propose(table({0x1600: TIMES, 0x50: values})).obstacle
        assert "(they differ only in 0x50, whose values do not come again)" in obstacle

    def test_sources_by_sender(self):
        items = {0x1600: TIMES, 0x20: np.tile([0, 0, 1, 1], 100), 0x21: np.tile([0, 1], 200)}
        proposal = propose(table(items, senders=np.tile([5, 6], 200)))
        assert proposal.layout.sources == "spectrum_counter"  # as VEGAS calls the item
        assert any("each of 2 senders has one value" in text for text in proposal.reasons)

    def test_several_destinations(self):
        """Polarisations that only their groups tell apart."""
        items = {item: np.repeat(values, 2) for item, values in ((0x1600, TIMES), (0x4103, ANTENNAS * 64))}
        proposal = propose(table(items, targets=np.tile([0, 1], 400)))
        assert proposal.layout.axes[0].size == 4
        assert any("come to 2 destinations" in text for text in proposal.uncertain)


class TestTime:
    """Which item is the time, and its step."""

    def test_unknown_item(self):
        layout = propose(table({0x44: ANTENNAS, 0x55: TIMES, 0x66: TIMES > 30000})).layout
        assert (layout.time.item, layout.time.step) == (0x55, 512)

    def test_others_that_rise(self):
        """A counter of heaps is no time, nor is a status that changes now and then, even if times are all distinct."""
        layout = propose(table({0x44: np.arange(400), 0x55: TIMES, 0x66: ANTENNAS, 0x77: TIMES // 5000})).layout
        assert (layout.time.item, [axis.item for axis in layout.axes]) == (0x55, [0x66])
        layout = propose(table({0x55: np.arange(400) * 512, 0x77: np.arange(400) // 50})).layout
        assert (layout.time.item, layout.time.step, layout.axes) == (0x55, 512, ())

    @pytest.mark.parametrize(("step", "phase"), [(512, 100), (500, 3), (512, 511)])
    def test_phase(self, step, phase):
        """Times beyond multiples of the step are counted from there, be the step a power of two or not."""
        proposal = propose(table({0x1600: TIMES // 512 * step + phase, 0x4101: ANTENNAS}))
        time = proposal.layout.time
        # Only if the step divides the range of timestamps are they as far above its multiples after a wrap.
        assert (time.step, time.origin, time.align) == (step, phase if step == 512 else "first", "reject")
        assert proposal.trial.fitting == proposal.trial.heaps
        assert any(f"{phase} above the multiples" in text for text in proposal.uncertain)

    @pytest.mark.parametrize("step", [4000, 4096])
    def test_wrap_at_40_bits(self, step):
        """A short item wraps early: that is said, and costs nothing."""
        times = (2**40 - 30 * step + TIMES // 512 * step) % 2**40
        stream = dataclasses.replace(table({0x1600: times, 0x4101: ANTENNAS}), flavour=Flavour(40))
        proposal = propose(stream)
        assert (proposal.layout.time.step, proposal.layout.time.bits) == (step, 40)
        assert proposal.trial.fitting == 400

    @pytest.mark.parametrize("first", [2**50, 2**50 + 2**49 + 7])
    def test_wide(self, first):
        """Times of 51 bits need an item of as many."""
        stream = dataclasses.replace(table({0x1600: first + TIMES, 0x4101: ANTENNAS}), flavour=Flavour(56))
        proposal = propose(stream)
        assert (proposal.layout.time.step, proposal.layout.time.bits) == (512, 56)
        assert proposal.trial.fitting == 400

    @pytest.mark.parametrize("phases", [(0, 7, 1000, 3), (4_000_000, 10, 4_600_000, 4_629_628), (5, 5, 5, 6)])
    def test_phases(self, phases):
        """Each source has the same step, and something else above its multiples; be it around a multiple."""
        numbers = TIMES // 512
        times = 2**40 + 12345 + numbers * 4_629_629 + np.array(phases)[ANTENNAS]
        proposal = propose(table({0x1600: times, 0x4101: ANTENNAS + 8}))
        time = proposal.layout.time
        assert time.step == 4_629_629
        assert len(time.phases) == 4
        assert [(p - time.phases[0]) % time.step for p in time.phases] == [(p - phases[0]) % time.step for p in phases]
        assert proposal.trial.fitting == 400
        # Those that come together are together, also around a multiple of the step.
        assert max(time.phases) - min(time.phases) == {0: 1000, 4_000_000: 629_639, 5: 1}[phases[0]]

    def test_heap_counter(self):
        """It is the time where no item has steps; not where some item is said to be the time, in the payload."""
        stream = table({0x21: np.cumsum(np.arange(1, 200))})
        stream = dataclasses.replace(stream, counters=np.arange(50, 249, dtype=np.uint64))
        proposal = propose(stream)
        assert (proposal.layout.time.item, proposal.layout.time.step) == (1, 1)
        assert any("the heap counter is taken for it" in text for text in proposal.uncertain)
        assert propose(dataclasses.replace(stream, payload_items=(0x1600,))).layout is None

    @pytest.mark.parametrize("shift", [0, 16, 32])
    def test_axis_in_the_heap_counter(self, shift):
        counters = (ANTENNAS << shift | TIMES // 512 << (16 if shift == 0 else 0)).astype(np.uint64)
        stream = dataclasses.replace(table({0x6015: TIMES // 512}), counters=counters)
        proposal = propose(stream)
        (axis,) = proposal.layout.axes
        assert (axis.item, axis.shift, axis.mask, axis.size) == (1, shift, 0xFFFF, 4)
        assert proposal.trial.fitting == 400

    @pytest.mark.parametrize(
        ("items", "obstacle"),
        [
            ({}, "have no items with immediate values"),
            ({0x1600: [5] * 10}, "all heaps together have only 1 time (item 0x1600)"),
            ({0x20: np.tile([0, 1, 2], 50)}, "no item rises as the heaps arrive"),
            ({0x20: np.cumsum(np.arange(1, 200))}, "have no common step"),
        ],
    )
    def test_obstacles(self, items, obstacle):
        proposal = propose(table(items))
        assert proposal.layout is None
        assert obstacle in proposal.obstacle

    def test_chunk_of_a_second(self):
        """Slow streams have chunks of a second, fast ones of 16 MiB."""
        items = {0x1600: TIMES, 0x4101: ANTENNAS}
        assert propose(table(items), seconds=10).layout.time.batches == 8
        assert propose(table(items), seconds=1000).layout.time.batches == 1
        assert propose(table(items, heap_bytes=2**20)).layout.time.batches == 4


def test_descriptors():
    """Name axes, and say what heaps hold."""
    survey = Survey()
    heap = spead2.send.Heap(DEFAULT_FLAVOUR)
    heap.add_descriptor(spead2.Descriptor(0x33, "voltages", "", (4, 8), np.int16))
    heap.add_descriptor(spead2.Descriptor(0x20, "beam number", "", (), format=[("u", 48)]))
    heap.add_descriptor(spead2.Descriptor(0x1600, "timestamp", "", (), format=[("u", 48)]))
    for packet in spead2.send.PacketGenerator(heap, 1, 200):
        survey.add(0, SENDER, GROUP, packet)
    make = PacketEncoder(DEFAULT_FLAVOUR, 0x33, 1472)
    for i in range(200):
        survey.add(i, SENDER, GROUP, make.heap({0x1600: i // 2 * 8, 0x20: i % 2}, bytes(64))[0])
    (stream,) = survey.streams()
    layout = propose(stream, described=survey.described()).layout
    assert (layout.dtype, layout.heap_shape) == ("int16", (4, 8))
    assert [axis.name for axis in layout.axes] == ["beam_number"]
    assert survey.descriptors == 1


@pytest.mark.parametrize("steps", [range(400, 0, -1), [*range(200), *range(200)]])
def test_times_that_do_not_rise(steps):
    """MeerKAT's timestamp is the time all the same, but it is not said to rise."""
    items = {0x1600: np.array(steps, np.uint64) * np.uint64(8)}
    zeros = np.zeros(400, np.uint64)
    proposal = propose(Stream(Flavour(48), 64, (GROUP,), items, (), zeros, zeros, 0))
    assert (proposal.layout.time.item, proposal.layout.time.step) == (0x1600, 8)
    assert not any("rises" in text for text in proposal.reasons)
    assert any(text.startswith("Times do not rise as heaps arrive") for text in proposal.uncertain)


# With heaps that are smaller than those of the telescopes.
SMALL = {
    "effelsberg-edd-gated-spectrometer": ("heap_bytes=16", "heap_shape=[4]", "samples_per_heap="),
    "effelsberg-edd-gated-stokes": ("heap_bytes=16", "heap_shape=[4]", "samples_per_heap="),
    "meerkat-baseline-correlation-products": ("heap_bytes=16", "heap_shape=[1,2,2]", "samples_per_heap="),
}


@pytest.mark.parametrize("name", [name for name in layouts.names() if not mends_packets(layouts.load(name))])
def test_streams_of_known_instruments(name):
    """The layouts that come with speadrx and have these items are pointed to; axes have the names of their items."""
    layout = layouts.load(name, SMALL.get(name, ()))
    simulator = Simulator(layout, faults=FAULTS, user_data=fields_of(layout, 0))
    proposal = best(survey_of(simulator, 16)[0])
    named = [text.split()[2] for text in proposal.uncertain if text.startswith("The layout ")]

    def key(known):
        return set(known.spead_items), known.payload_item

    assert named == [other for other in layouts.names() if key(layouts.load(other)) == key(layout)]
    seen = [axis for axis in layout.axes if axis.from_user_data is None and axis_size(axis) > 1]
    assert {(axis.item, axis.present_items) for axis in proposal.layout.axes} == {
        (a.item, a.present_items) for a in seen
    }
    assert len(proposal.layout.axes) == len(seen)
    assert {axis.name for axis in proposal.layout.axes} <= {
        *("polarization", "noise_diode_status", "digitiser", "antenna", "frequency", "beam_id", "present")
    }
