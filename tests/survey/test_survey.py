"""Packets decoded and gathered without a layout: counts against the simulator's truth, and packets made by hand."""

import numpy as np
import pytest
import spead2
import spead2.send
from speadrx.propose import propose

from handmade import SMALL
from speadrx.simulate import GARBAGE_KINDS, Faults, Simulator
from speadrx.simulate.packets import PacketEncoder
from speadrx.survey import Survey
from speadrx.survey.kinds import Flavour
from speadrx.survey.values import common_step, count, joint, profile, rise
from surveying import GROUP, SENDER, SurveySink

FLAVOUR = spead2.Flavour(4, 64, 48, 0)
OTHER_GROUP, OTHER_SENDER = ("239.1.2.4", 7148), ("10.1.2.4", 7148)


def encoder(address_bits=48, max_packet_size=1472):
    return PacketEncoder(spead2.Flavour(4, 64, address_bits, 0), 0x33, max_packet_size)


def surveyed(data, length=None):
    survey = Survey()
    survey.add(0, SENDER, GROUP, data, length)
    return survey


class TestDecode:
    """By spead2's rules."""

    @pytest.mark.parametrize("address_bits", [8, 24, 40, 48, 56])
    def test_flavours(self, address_bits):
        (data,) = encoder(address_bits).heap({0x10: 200, 0x11: 0}, b"payload")
        survey = surveyed(data)
        assert (survey.packets, survey.bytes, survey.heaps, survey.undecodable) == (1, len(data), 1, {})
        (stream,) = survey.streams()
        assert stream.flavour == Flavour(address_bits)
        assert str(stream.flavour) == f"64-{address_bits}"
        assert {item: values.tolist() for item, values in stream.items.items()} == {0x10: [200], 0x11: [0]}
        assert (stream.payload_items, stream.heap_bytes, stream.counters.tolist()) == ((0x33,), 7, [1])

    @pytest.mark.parametrize(
        ("spoil", "reason"),
        [
            (lambda data: data[:7], "shorter than a header"),
            (lambda data: b"\x54" + data[1:], "not SPEAD"),
            (lambda data: data[:1] + b"\x05" + data[2:], "SPEAD version 5"),
            (lambda data: data[:2] + b"\x03" + data[3:], "no flavour of 64 bits"),
            (lambda data: data[:2] + b"\x00\x08" + data[4:], "no flavour of 64 bits"),
            (lambda data: data[:2] + b"\x08\x00" + data[4:], "no flavour of 64 bits"),
            (lambda data: data[:6] + b"\x01\x00" + data[8:], "pointers beyond the end"),
            (lambda data: data[:7] + b"\x02" + data[8:], "no heap counter, payload offset or payload length"),
            (lambda data: data[:-1], "payload beyond the end"),
            (
                lambda data: data.replace(b"\x80\x02\0\0\0\0\0\x07", b"\x80\x02\0\0\0\0\0\x06"),
                "payload beyond the heap",
            ),
        ],
    )
    def test_undecodable(self, spoil, reason):
        """And spead2 agrees that none of them is a packet."""
        (data,) = encoder().heap({0x10: 200}, b"payload")
        assert surveyed(spoil(data)).undecodable == {reason: 1}
        stream = spead2.recv.Stream(spead2.ThreadPool())
        queue = spead2.InprocQueue()
        for packet in (spoil(data), data):
            queue.add_packet(packet)
        queue.stop()
        stream.add_inproc_reader(queue)
        assert len(list(stream)) == 1
        assert stream.stats["packets"] == 1

    def test_cut_short(self):
        (data,) = encoder().heap({0x10: 200}, bytes(1000))
        assert surveyed(data[:100]).undecodable == {"payload beyond the end": 1}
        survey = surveyed(data[:100], len(data))
        assert (survey.undecodable, survey.bytes, survey.heap_bytes()) == ({}, len(data), {1000: 1})


FAULTS = Faults(loss=0.1, reorder=10, duplicate=0.05, garbage=0.2, garbage_kinds=tuple(GARBAGE_KINDS))


@pytest.mark.parametrize("max_packet_size", [1472, 88])
def test_agrees_with_the_truth(max_packet_size):
    sink = SurveySink()
    simulator = Simulator(SMALL, faults=FAULTS, max_packet_size=max_packet_size)
    truth = simulator.send(sink, 300)
    survey = sink.survey
    assert (survey.packets, survey.bytes) == (truth.packets, truth.bytes)
    assert survey.undecodable.total() == truth.unseen["noise"]
    assert (survey.unsized, survey.empty) == (truth.unseen["unsized"], truth.unseen["empty"])
    assert survey.heaps == truth.copies - truth.unseen["noise"] - truth.unseen["unsized"]
    assert (survey.incomplete, survey.unkept, survey.duplicate_packets, survey.not_repeated) == (0, 0, 0, 0)
    assert survey.packets_per_heap.total() == survey.heaps
    assert survey.stops > 0
    assert survey.descriptors > 0
    (sender,), (destination,) = survey.senders.values(), survey.destinations.values()
    assert sender == destination
    assert (sender.packets, sender.heaps, sender.bytes) == (survey.packets, survey.heaps, survey.bytes)
    assert sender.undecodable == survey.undecodable.total()
    described = survey.described()
    assert list(described) == [0x3300]
    assert (described[0x3300].name, described[0x3300].shape, described[0x3300].dtype) == (
        "data",
        (SMALL.heap_bytes,),
        "|u1",
    )
    (stream,) = survey.streams()
    assert stream.heap_bytes == SMALL.heap_bytes
    assert stream.payload_items == (0x3300,)
    assert set(stream.items) == set(simulator.items(0, simulator.indices[0]))
    # Those that lack an item or have another length are no part of it; all other garbage is.
    others = survey.heaps - survey.stops - survey.descriptors - survey.empty - stream.heaps
    assert stream.others == others > 0


def test_incomplete_heaps():
    """Loss of packets, and one that comes twice."""
    survey = Survey()
    make = encoder(max_packet_size=88)
    first, second, third = make.heap({0x10: 1}, bytes(100))[:3]
    for packet in (second, first, second):
        survey.add(0, SENDER, GROUP, packet)
    assert (survey.heaps, survey.incomplete, survey.duplicate_packets) == (1, 1, 1)
    survey.add(0, SENDER, GROUP, third)
    assert survey.heaps == 1
    # The same counter of another sender is another heap.
    survey.add(0, OTHER_SENDER, GROUP, third)
    assert survey.heaps == 2


def test_items_only_in_the_first_packet():
    """As spead2 sends them, unless it is told to repeat them."""
    heap = spead2.send.Heap(FLAVOUR)
    heap.add_item(spead2.Item(0x10, "time", "", (), format=[("u", 48)], value=7))
    heap.add_item(spead2.Item(0x33, "data", "", (3000,), np.uint8, value=np.zeros(3000, np.uint8)))
    packets = list(spead2.send.PacketGenerator(heap, 1, 1472))
    survey = Survey()
    for packet in packets:
        survey.add(0, SENDER, GROUP, packet)
    assert survey.not_repeated == len(packets) - 1 > 0
    assert survey.packets_per_heap == {len(packets): 1}


def test_segmentation_offload():
    survey = Survey()
    make = encoder()
    survey.add(0, SENDER, GROUP, b"".join(make.heap({0x10: 1}, bytes(60)) + make.heap({0x10: 2}, bytes(60))))
    assert (survey.packets, survey.heaps, survey.trailing) == (1, 1, 1)


def test_streams_by_destination():
    """Destinations with the same heaps are one stream; other lengths and items are others."""
    survey = Survey()
    make = encoder()
    for i in range(100):
        for group in (GROUP, OTHER_GROUP):
            survey.add(i, SENDER, group, make.heap({0x10: i, 0x11: group is GROUP}, bytes(60))[0])
        survey.add(i, OTHER_SENDER, ("239.1.2.5", 7148), make.heap({0x10: i}, bytes(80))[0])
        # Of the heaps at that destination, some have an item more.
        items = {0x10: i, 0x12: 5} | ({0x13: 6} if i % 2 else {})
        survey.add(i, OTHER_SENDER, ("239.1.2.6", 7148), make.heap(items, bytes(80))[0])
    survey.add(100, SENDER, GROUP, make.heap({0x77: 1}, bytes(3))[0])
    streams = survey.streams()
    assert [(s.heaps, s.heap_bytes, s.destinations, set(s.items), s.others) for s in streams] == [
        (200, 60, (GROUP, OTHER_GROUP), {0x10, 0x11}, 1),
        (100, 80, (("239.1.2.5", 7148),), {0x10}, 0),
        (100, 80, (("239.1.2.6", 7148),), {0x10, 0x12}, 0),
    ]
    np.testing.assert_array_equal(streams[0].items[0x10], np.repeat(np.arange(100), 2))
    np.testing.assert_array_equal(streams[0].targets, np.tile([0, 1], 100))
    assert survey.heap_bytes() == {60: 200, 80: 200, 3: 1}
    assert survey.seconds == 100


def test_bounded():
    """Memory is, whatever comes: what is beyond is counted."""
    survey = Survey(most_values=1000)
    make = encoder()
    for i in range(500):
        survey.add(0, SENDER, GROUP, make.heap({0x10: i}, b"x")[0])
    (stream,) = survey.streams()
    assert stream.heaps == 1000 // 6
    assert (survey.heaps, survey.unkept) == (500, 500 - stream.heaps)
    kinds = Survey()
    for i in range(5000):
        kinds.add(0, ("10.0.0.1", i), GROUP, make.heap({0x100 + i: 0}, b"x")[0])
    assert (kinds.heaps, kinds.unkept) == (5000, 5000 - 4096)
    assert len(kinds.senders) == 5000


def test_hostile_packets(rng):
    """Whatever comes is counted; what is made of it is a proposal or an obstacle."""
    sink = SurveySink()
    Simulator(SMALL, faults=FAULTS).send(sink, 20)
    for _ in range(30):
        survey = Survey()
        for packet in sink.packets:
            data = bytearray(packet)
            for position in rng.integers(0, len(data), rng.integers(0, 4)):
                data[position] = rng.integers(256)
            survey.add(rng.random(), SENDER, GROUP, bytes(data[: rng.integers(len(data) // 2, 2 * len(data))]))
        described = survey.described()
        assert survey.packets == len(sink.packets)
        kept = [kind.lengths().size for kind in survey._kinds() if not kind.whole]
        assert survey.heap_bytes().total() == sum(kept)
        for stream in survey.streams():
            proposal = propose(stream, described=described, seconds=survey.seconds)
            assert (proposal.layout is None) == (proposal.obstacle is not None)


class TestValues:
    """What values look like."""

    @pytest.mark.parametrize(
        ("values", "kind", "step"),
        [
            ([7] * 10, "constant", None),
            (np.repeat(np.arange(50) * 4096, 3), "time-like", 4096),
            (np.arange(50), "counter", 1),
            (np.tile(np.arange(5) * 64, 20), "few values", 64),
            (np.tile(np.arange(100), 20), "recurring", 1),
            ([i * 0x9E3779B97F4A7C15 % 2**48 for i in range(1000)], "scattered", None),
        ],
    )
    def test_kinds(self, values, kind, step):
        values = np.array(values, np.uint64)
        found = profile(values)
        assert (found.kind, found.step, found.heaps) == (kind, step, values.size)
        assert (found.minimum, found.maximum) == (values.min(), values.max())
        assert found.distinct == len(set(values.tolist()))
        assert found.first == tuple(dict.fromkeys(values.tolist()))[:4]

    @pytest.mark.parametrize("largest", [2, 1000, 2**40, 2**62])
    def test_joint(self, rng, largest):
        """The same numbers as by sorting tuples, be they few or too many for a table."""
        for n in (1, 10, 1000):
            codes = [rng.integers(0, largest, n) for _ in range(3)]
            rows = list(zip(*(code.tolist() for code in codes), strict=True))
            names = {row: i for i, row in enumerate(sorted(set(rows)))}
            assert joint(*codes).tolist() == [names[row] for row in rows]
            assert count(joint(*codes)) == len(names)
        assert joint(np.array([], np.uint64)).size == 0

    def test_step_by_majority(self, rng):
        """Bad timestamps do not spoil it, be they many."""
        values = np.arange(1000, dtype=np.uint64) * np.uint64(1712) + np.uint64(5 * 1712)
        bad = rng.choice(1000, 150, replace=False)
        values[bad] = rng.integers(0, 2**48, 150)
        assert common_step(values) == 1712
        assert rise(values) > 0.7

    def test_step_among_garbage(self, rng):
        """Where there are many heaps of each time, bad timestamps are everywhere between the good ones."""
        values = np.repeat(np.arange(20, dtype=np.uint64) * np.uint64(1712), 1000)
        bad = rng.choice(20000, 400, replace=False)
        values[bad] += rng.integers(1, 1712, 400).astype(np.uint64)
        assert common_step(values) == 1712

    def test_wrap(self):
        values = (np.arange(1000, dtype=np.uint64) * np.uint64(4096) + np.uint64(2**48 - 4096 * 400)) % np.uint64(2**48)
        assert rise(values) == pytest.approx(1)
        assert common_step(values) == 4096
