"""Habits of senders that a receiver cannot cope with are named, with what mends them."""

import struct

import numpy as np
import pytest
from speadrx.propose import propose

from speadrx.survey import Survey
from speadrx.survey.habits import Habits, little_endian, put_right, shared_counters, telling_items
from speadrx.survey.heaps import Descriptor
from wire import GROUP, heap, survey_of


def reversed_value(value, size=4):
    return int.from_bytes(value.to_bytes(size, "little"), "big")


def senders_of(n_senders, counter, times=64, parts=4):
    """Senders whose packets come in turn, each with its own heap counters."""
    for time in range(times):
        heaps = [
            heap(counter(time, sender), [(0x1600, time * 64), (0x4101, sender)], bytes(64), parts=parts)
            for sender in range(n_senders)
        ]
        for packets in zip(*heaps, strict=True):
            for sender, packet in enumerate(packets):
                yield (f"10.0.0.{sender}", 5000), packet


class TestSharedCounters:
    @pytest.mark.parametrize("n_senders", [2, 7])
    @pytest.mark.parametrize("start", [1, 2**40])
    def test_alike(self, n_senders, start):
        (stream,) = survey_of(senders_of(n_senders, lambda time, sender: start + time)).streams()
        assert shared_counters(stream) == 64 * (n_senders - 1)
        assert any("heap counter of a heap that another sender has" in text for text in propose(stream).uncertain)

    @pytest.mark.parametrize(
        "counter",
        [
            lambda time, sender: time * 4 + sender,
            lambda time, sender: sender << 40 | time,
            lambda time, sender: time + 30 * sender,  # reused, but long after
        ],
    )
    def test_apart(self, counter):
        (stream,) = survey_of(senders_of(4, counter)).streams()
        assert shared_counters(stream) == 0
        assert not any("heap counter" in text for text in propose(stream).uncertain)

    def test_of_one_sender(self):
        """One that relays antennas which all count alike: each of their heaps is seen, told apart by an item."""
        survey = survey_of(data for _, data in senders_of(3, lambda time, sender: time))
        assert (survey.heaps, survey.duplicate_packets, survey.incomplete) == (3 * 64, 0, 0)
        (stream,) = survey.streams()
        assert telling_items(stream) == (0x4101,)
        proposal = propose(stream)
        assert proposal.layout.packets.heap_counter == (0x4101,)
        assert (proposal.trial.fitting, proposal.trial.heaps) == (192, 192)
        assert any("heap_counter = [0x4101]" in text for text in proposal.uncertain)

    @pytest.mark.parametrize(
        "counter", [lambda time, sender: time * 3 + sender, lambda time, sender: (time * 3 + sender) % 32]
    )
    def test_of_one_sender_apart(self, counter):
        (stream,) = survey_of(data for _, data in senders_of(3, counter)).streams()
        assert telling_items(stream) == ()
        assert propose(stream).layout.packets is None

    def test_packets_that_came_twice(self):
        """They are no heaps of their own, if they come before their heap is whole."""
        packets = [data for _, data in senders_of(2, lambda time, sender: time * 2 + sender)]
        survey = survey_of(data for n, data in enumerate(packets) for _ in range(2 if n % 8 < 6 else 1))
        assert (survey.heaps, survey.duplicate_packets) == (128, 128 * 3)
        assert telling_items(survey.streams()[0]) == ()

    def test_other_destinations(self):
        """Those never mix: each has a stream of its own."""
        survey = Survey()
        for n, (sender, data) in enumerate(senders_of(2, lambda time, sender: time, parts=1)):
            survey.add(n, sender, ("239.1.2.4", 7148) if n % 2 else GROUP, data)
        assert shared_counters(survey.streams()[0]) == 0


class TestLittleEndian:
    @pytest.mark.parametrize(
        "values",
        [
            [1_500_000_000 + n for n in range(600)],
            [1_500_000_000 + n for n in range(40)],
            [70_000 + 10 * n for n in range(900)],
        ],
    )
    def test_times(self, values):
        (stream,) = survey_of(
            heap(n, [(0x6000, reversed_value(v)), (0x6002, reversed_value(n % 3))], bytes(8))[0]
            for n, v in enumerate(v for v in values for _ in range(3))
        ).streams()
        assert little_endian(stream) == {0x6000: 4, 0x6002: 4}
        np.testing.assert_array_equal(put_right(stream.items[0x6000], 4), np.repeat(values, 3))
        uncertain = " ".join(propose(stream).uncertain)
        assert 'items = { 0x6000 = "<u4" }' in uncertain

    def test_six_bytes(self):
        (stream,) = survey_of(
            heap(n, [(0x6100, reversed_value(2**33 + 5 * (n // 3), 6)), (0x6101, n % 3)], bytes(8))[0]
            for n in range(900)
        ).streams()
        assert little_endian(stream) == {0x6100: 6}
        layout = propose(stream).layout
        assert (layout.time.item, layout.time.step, layout.axes[0].item) == (0x6100, 5, 0x6101)

    @pytest.mark.parametrize(
        "values",
        [
            range(100),
            range(1, 101),
            range(0, 2**48, 2**40),  # large steps from 0
            range(0, 100 << 24, 1 << 24),
            range(2**30, 2**30 + 1000),
            [7] * 50,
        ],
    )
    def test_others(self, values):
        (stream,) = survey_of(heap(n, [(0x1600, v)], bytes(8))[0] for n, v in enumerate(values)).streams()
        assert little_endian(stream) == {}

    def test_two_bytes(self):
        assert put_right(np.array([0x1234], np.uint64), 2) == [struct.unpack("<H", struct.pack(">H", 0x1234))[0]]


def test_time_in_the_payload():
    """It is named as such, and not taken from elsewhere, such as the heap counter."""
    (stream,) = survey_of(
        heap(n, [(0x1600, (0,)), (0x4101, n % 2), (0x4300, (8,))], bytes(72))[0] for n in range(200)
    ).streams()
    proposal = propose(stream)
    assert proposal.layout is None
    assert "item 0x1600 (timestamp) seems to be the time, but it is addressed" in proposal.obstacle
    assert "take more packets" not in proposal.obstacle


def test_other_time_than_that_in_the_payload():
    """A counter of frames will do; but that there is a time in the payload is said."""
    (stream,) = survey_of(
        heap(n, [(0x1600, (0,)), (0x20, n * 8), (0x4300, (8,))], bytes(72))[0] for n in range(200)
    ).streams()
    proposal = propose(stream)
    assert (proposal.layout.time.item, proposal.layout.time.step) == (0x20, 8)
    assert any("Item 0x1600 (timestamp) seems to be the time" in text for text in proposal.uncertain)


def test_nothing_but_the_payload():
    (stream,) = survey_of(heap(n, [(0x1700, (0,)), (0x4300, (4,))], bytes(64))[0] for n in range(40)).streams()
    obstacle = propose(stream).obstacle
    assert "no items with immediate values" in obstacle
    assert "Items 0x1700 (band_select), 0x4300 (feng_raw) are addressed" in obstacle


def test_dump_index_in_the_payload():
    """As in MeerKAT's L0 streams, where the only immediate item is no time."""
    (stream,) = survey_of(
        heap(n, [(0x1004, (0,)), (0x1005, (8,)), (0x4103, n % 4 * 16)], bytes(72))[0] for n in range(200)
    ).streams()
    proposal = propose(stream, described={0x1005: Descriptor("dump_index", "", (), "<u8")})
    assert "item 0x1005 (dump_index) seems to be the time, but it is addressed" in proposal.obstacle


@pytest.mark.parametrize(("too_long", "parts"), [(48, 1), (48, 4), (100, 3)])
def test_length_that_is_too_long(too_long, parts):
    """As in VEGAS's simulator: no heap ever has all bytes, and all lack as many."""
    right, wrong = (struct.pack(">HIH", 0x8002, 0, length) for length in (600, 600 + too_long))
    heaps = (heap(n, [(0x1600, n * 64), (0x4300, None)], bytes(600), parts=parts) for n in range(40))
    packets = [data.replace(right, wrong) for packets in heaps for data in packets]
    survey = survey_of(packets)
    assert survey.lacking == {too_long: 40}
    (stream,) = survey.streams()
    habits = Habits.of(stream, unrepeated=False, reordered=False, lacking=survey.lacking)
    assert (habits.too_long, habits.mends()) == (too_long, {"heap_length": 600})
    assert any(f"each lacks {too_long} bytes" in text for text in habits.said())


def test_lost_packets_are_no_wrong_length():
    packets = [
        packet
        for n in range(40)
        for i, packet in enumerate(heap(n, [(0x1600, n * 64)], bytes(600), parts=4))
        if n % 2 or i != n // 2 % 4
    ]
    survey = survey_of(packets)
    assert survey.lacking == {150: 20}
    assert Habits.of(survey.streams()[0], unrepeated=False, reordered=False, lacking=survey.lacking).mends() == {}


def test_items_in_the_first_packet_only():
    survey = survey_of(
        packet
        for n in range(40)
        for packet in heap(n, [(0x1600, n * 64), (0x4300, None)], bytes(400), parts=4, repeat=False)
    )
    assert survey.not_repeated == 120
    (stream,) = survey.streams()
    assert any("repeat_items = true" in text for text in propose(stream, unrepeated=True).uncertain)
    assert not any("repeat_items" in text for text in propose(stream).uncertain)


def test_items_that_come_late(rng):
    """Packets that overtake the first of their heap do not make another kind of heaps of it."""
    heaps = [heap(n, [(0x1600, n // 2 * 64), (0x4101, n % 2)], bytes(64), parts=4, repeat=False) for n in range(80)]
    groups = [[packet for packets in heaps[group : group + 8] for packet in packets] for group in range(0, 80, 8)]
    packets = [group[i] for group in groups for i in rng.permutation(len(group))]
    survey = survey_of(packets)
    first = {}
    for packet in packets:
        first.setdefault(packet[8:16], packet[7])  # how many items the first packet of each counter has
    late = sum(n == 4 for n in first.values())
    assert (survey.heaps, survey.late_items) == (80, late)
    assert 20 < late < 80
    (stream,) = survey.streams()
    assert stream.heaps == 80
    proposal = propose(stream, unrepeated=True, reordered=True)
    assert proposal.layout.packets.repeat_items
    assert (proposal.layout.axes[0].item, proposal.trial.fitting) == (0x4101, 80)


def test_heaps_without_items():
    (stream,) = survey_of(packet for n in range(40) for packet in heap(n, [], bytes(64), parts=2)).streams()
    assert (stream.heaps, stream.items) == (40, {})
