"""Why heaps are rejected: each cause in words, with the heap that showed it first."""

from __future__ import annotations

import json
import logging
import pathlib
import struct
import time
from collections.abc import Iterable, Sequence

import pytest
import spead2
from click.testing import CliRunner

import speadrx
from speadrx import Axis, ItemValue, Layout, Rejection, SideItem, TimeAxis
from speadrx.accounts.rejections import summary
from speadrx.cli.group import group
from speadrx.receive.watch import _Watched
from speadrx.simulate import PcapSink

LAYOUT = Layout(
    heap_bytes=64,
    time=TimeAxis(item=0x1600, step=16, batches=4),
    axes=(
        Axis(name="antenna", item=0x4101, size=2),
        Axis(name="band", item=0x4103, step=8, size=1, reject_name="bad_band"),
    ),
    required_items=(0x5000,),
    side_items=(SideItem(name="status", item=0x3102),),
    sources="antenna",
)
IMMEDIATE, ADDRESSED = 1, 0


def packet(
    items: Sequence[tuple[int, int, int]], payload: bytes, *, counter: int, length: int, offset: int = 0, bits: int = 48
) -> bytes:
    """A packet with these items: whether each is immediate, its ID, and its value."""
    special = [(1, 1, counter), (1, 2, length), (1, 3, offset), (1, 4, len(payload))]
    pointers = [immediate << 63 | item << bits | value for immediate, item, value in (*special, *items)]
    head = struct.pack(">4BHH", 0x53, 4, 8 - bits // 8, bits // 8, 0, len(pointers))
    return head + struct.pack(f">{len(pointers)}Q", *pointers) + payload


def items(
    stamp: tuple[int, int] = (IMMEDIATE, 0),
    antenna: int = 0,
    band: int = 0,
    required: tuple[int, int] | None = (IMMEDIATE, 1),
) -> list[tuple[int, int, int]]:
    present = [(stamp[0], 0x1600, stamp[1]), (1, 0x4101, antenna), (1, 0x4103, band)]
    return present if required is None else [*present, (required[0], 0x5000, required[1])]


def received(packets: Iterable[bytes], layout: Layout = LAYOUT, **options: object) -> speadrx.ReceiverStats:
    queue = spead2.InprocQueue()
    for each in packets:
        queue.add_packet(each)
    queue.stop()
    with speadrx.Receiver(layout, queue, **options) as receiver:
        for chunk in receiver:
            chunk.recycle()
    return receiver.stats()


GOOD = [packet(items((1, 16 * n)), bytes(64), counter=n + 1, length=64) for n in range(8)]


@pytest.mark.parametrize(
    ("bad", "reason", "cause", "text"),
    [
        (
            packet(items((1, 16)), bytes(32), counter=99, length=32),
            "metadata_heaps",
            "wrong_length",
            "heaps have 32 bytes, the layout wants 64",
        ),
        (
            packet(items((1, 16)), bytes(1024), counter=99, length=4096),
            "metadata_heaps",
            "wrong_length",
            "heaps have 4,096 bytes, the layout wants 64",
        ),
        (
            packet(items((ADDRESSED, 0)), bytes(64), counter=99, length=64),
            "metadata_heaps",
            "addressed_item",
            "item 0x1600 (timestamp) is addressed: the time is in the payload, where placement does not look",
        ),
        (
            packet(items(required=(ADDRESSED, 8)), bytes(64), counter=99, length=64),
            "metadata_heaps",
            "addressed_item",
            "item 0x5000 (bf_raw) is addressed: the value is in the payload, where placement does not look",
        ),
        (
            packet(items((1, 16))[:1], bytes(64), counter=99, length=64),
            "metadata_heaps",
            "metadata_heaps",
            "heaps lack item 0x4101 (feng_id), item 0x4103 (frequency), item 0x5000 (bf_raw), which the layout needs",
        ),
        (
            packet([], bytes(32), counter=99, length=64, offset=32),
            "metadata_heaps",
            "items_not_repeated",
            (
                "the first packet that came of a heap begins at byte 32 of it, and lacks item 0x1600 (timestamp), item "
                "0x4101 (feng_id), item 0x4103 (frequency), item 0x5000 (bf_raw): senders must repeat items in each "
                "packet of a heap"
            ),
        ),
        (
            packet(items((1, 17)), bytes(64), counter=99, length=64),
            "bad_timestamp_heaps",
            "bad_timestamp_heaps",
            "the time 17 does not fit the layout's step of 16 ticks",
        ),
        (
            packet(items((1, 16), antenna=2), bytes(64), counter=99, length=64),
            "bad_antenna_heaps",
            "bad_antenna_heaps",
            "item 0x4101 (feng_id) is 2: not on the axis antenna, of size 2",
        ),
        (
            packet(items((1, 16), band=4), bytes(64), counter=99, length=64),
            "bad_band",
            "bad_band",
            "item 0x4103 (frequency) is 4: not on the axis band, of size 1",
        ),
        (
            packet(items((1, 1 << 40)), bytes(64), counter=99, length=64),
            "implausible_timestamp_heaps",
            "implausible_timestamp_heaps",
            "the time 1,099,511,627,776 is too far from that of other heaps",
        ),
    ],
)
def test_each_cause_has_its_own_words(bad: bytes, reason: str, cause: str, text: str) -> None:
    again = bad.replace(struct.pack(">Q", 1 << 63 | 1 << 48 | 99), struct.pack(">Q", 1 << 63 | 1 << 48 | 98))
    stats = received([*GOOD[:4], bad, again, *GOOD[4:]])
    assert stats.present == 8
    assert {name: n for name, n in stats.rejected.items() if n} == {reason: len({bad, again})}
    [found] = stats.rejections
    assert (found.reason, found.cause, found.heaps) == (reason, cause, len({bad, again}))
    assert found.text == text
    # The example is the first heap, with all that its packet had.
    assert found.packet_bytes == len(bad)
    n = struct.unpack_from(">H", bad, 6)[0]
    bits = 8 * bad[3]
    words = struct.unpack_from(f">{n}Q", bad, 8)
    assert [(item.addressed, item.id, item.value) for item in found.items] == [
        (not word >> 63, (word & (1 << 63) - 1) >> bits, word % (1 << bits)) for word in words
    ]
    assert found.heap_bytes == next(item.value for item in found.items if item.id == 2)
    assert found.items[1] == ItemValue(2, "heap_length", found.heap_bytes, False)


def test_times_that_are_too_wide() -> None:
    """Only flavours with fewer bits for IDs have room for them."""
    layout = Layout(heap_bytes=8, time=TimeAxis(item=0x20, step=16, batches=4))
    heaps = [packet([(1, 0x20, 1 << 50 | 16 * n)], bytes(8), counter=n + 1, length=8, bits=56) for n in range(4)]
    stats = received(heaps, layout)
    assert stats.rejected["bad_timestamp_heaps"] == 4
    [found] = stats.rejections
    assert (found.reason, found.cause, found.heaps) == ("bad_timestamp_heaps", "wide_timestamp", 4)
    assert found.text == "the time 1,125,899,906,842,624 has 51 bits, the layout's times have 48"


def test_times_of_fewer_bits() -> None:
    layout = Layout(heap_bytes=8, time=TimeAxis(item=0x1600, step=16, batches=4, bits=20, shift=4))
    heaps = [packet([(1, 0x1600, 1 << 30 | 256 * n)], bytes(8), counter=n + 1, length=8) for n in range(4)]
    [found] = received(heaps, layout).rejections
    assert (found.cause, found.heaps) == ("wide_timestamp", 4)
    assert found.text == "the time 67,108,864 has 27 bits, the layout's times have 20"


def test_items_that_tell_by_being_present() -> None:
    """Of several items, exactly one must be there."""
    axis = Axis(name="beam", present_items=(0x1800, 0x1801))
    layout = Layout(heap_bytes=8, time=TimeAxis(item=(0x1600, 0x1601), step=16, batches=4), axes=(axis,))
    good = [packet([(1, 0x1600 + n % 2, 16 * n), (1, 0x1800, 0)], bytes(8), counter=n + 1, length=8) for n in range(4)]
    bad = [
        packet([(1, 0x1600, 0), (1, 0x1601, 0), (1, 0x1800, 0)], bytes(8), counter=90, length=8),
        packet([(0, 0x1601, 0), (1, 0x1800, 0)], bytes(8), counter=91, length=8),
        packet([(1, 0x1800, 0)], bytes(8), counter=92, length=8, offset=0),
        packet([(1, 0x1601, 0)], bytes(8), counter=93, length=8),
        packet([(1, 0x1601, 0), (1, 0x1800, 0)], bytes(4), counter=94, length=4),
    ]
    stats = received([*good, *bad], layout)
    assert stats.present == 4
    texts = {found.cause: (found.heaps, found.text) for found in stats.rejections}
    assert texts == {
        "wrong_length": (1, "heaps have 4 bytes, the layout wants 8"),
        "addressed_item": (
            1,
            "item 0x1601 (polarization) is addressed: the time is in the payload, where placement does not look",
        ),
        "metadata_heaps": (
            2,
            "heaps have item 0x1600 (timestamp), item 0x1601 (polarization), of which each tells the time; wanted one",
        ),
        "bad_beam_heaps": (
            1,
            "not exactly one of the items 0x1800, 0x1801 is present, which tells the index on the axis beam",
        ),
    }


def test_items_of_first_packets_only() -> None:
    """Heaps of two packets: in order they are placed; the other way round, nobody knows what they are."""
    packets = []
    for n in range(8):
        halves = [
            packet(items((1, 16 * n)), bytes(32), counter=n + 1, length=64),
            packet([], bytes(32), counter=n + 1, length=64, offset=32),
        ]
        packets += halves if n % 4 else halves[::-1]
    stats = received(packets)
    assert stats.present == 6
    [found] = stats.rejections
    assert (found.cause, found.heaps) == ("items_not_repeated", 2)


def test_causes_are_in_the_order_of_the_checks() -> None:
    bad = [
        packet(items((1, 16), band=4), bytes(64), counter=90, length=64),
        packet(items((1, 17)), bytes(64), counter=91, length=64),
        packet(items((1, 16))[1:], bytes(64), counter=92, length=64),
        packet(items((1, 16)), bytes(32), counter=93, length=32),
        packet(items((1, 16)), bytes(16), counter=94, length=16),
    ]
    stats = received([*GOOD, *bad])
    assert [(found.cause, found.heaps) for found in stats.rejections] == [
        ("wrong_length", 2),
        ("metadata_heaps", 1),
        ("bad_timestamp_heaps", 1),
        ("bad_band", 1),
    ]
    assert stats.rejections[0].text == "heaps have 32 bytes, the layout wants 64"
    assert sum(found.heaps for found in stats.rejections) == sum(stats.rejected.values())


def test_streams_of_a_group_are_summed() -> None:
    queues = [spead2.InprocQueue() for _ in range(2)]
    bad = packet(items((1, 16)), bytes(32), counter=93, length=32)
    for queue in queues:
        queue.add_packet(bad)
        queue.stop()
    with speadrx.Receiver(LAYOUT, queues, threads=2) as receiver:
        for chunk in receiver:
            chunk.recycle()
    [found] = receiver.stats().rejections
    assert (found.cause, found.heaps) == ("wrong_length", 2)


def test_many_items_are_cut() -> None:
    many = [*items((1, 17)), *((1, 0x6000 + n, n) for n in range(200))]
    [found] = received([*GOOD, packet(many, bytes(64), counter=99, length=64)]).rejections
    assert len(found.items) == 64
    assert " and 48 more." in summary(found)


def test_log_at_debug_level(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "speadrx"):
        queue = spead2.InprocQueue()
        with speadrx.Receiver(LAYOUT, queue) as receiver:
            for n in range(2):
                queue.add_packet(packet(items((1, 16)), bytes(32), counter=93 + n, length=32))
            deadline = time.monotonic() + 60
            while not caplog.records:
                assert time.monotonic() < deadline, "nothing was logged"
                time.sleep(0.05)
            queue.stop()
        caplog.clear()
        watched = _Watched(receiver.stream, None)
        for _ in range(2):  # it says so once
            watched._say_what_is_rejected(receiver.stream)
    [record] = [record for record in caplog.records if "rejected" in record.message]
    assert record.levelno == logging.DEBUG
    assert record.message.endswith(
        "rejected (metadata_heaps): heaps have 32 bytes, the layout wants 64. Example: 104 bytes with 0x1 = 93, "
        "0x2 = 32, 0x3 = 0, 0x4 = 32, 0x1600 = 16, 0x4101 = 0, 0x4103 = 0, 0x5000 = 1."
    )


def test_account_and_json(tmp_path: pathlib.Path) -> None:
    capture, layout = tmp_path / "capture.pcap", tmp_path / "layout.toml"
    layout.write_text(LAYOUT.to_toml(), encoding="utf-8")
    with PcapSink(capture) as sink:
        for each in [*GOOD, packet(items((1, 16)), bytes(32), counter=93, length=32)]:
            sink.send(0, each)
    shown = CliRunner().invoke(group, ["replay", str(capture), "-l", str(layout)], terminal_width=200)
    assert "wrong_length, 1 heap: heaps have 32 bytes, the layout wants 64." in " ".join(shown.output.split())
    written = CliRunner().invoke(group, ["replay", str(capture), "-l", str(layout), "--json"])
    document = json.loads(written.output.splitlines()[-1])
    [found] = document["rejections"]
    assert Rejection(**{**found, "items": [ItemValue(**item) for item in found["items"]]}).heaps == 1
    assert found["heap_bytes"] == 32
    assert found["items"][4] == {"id": 0x1600, "name": "timestamp", "value": 16, "addressed": False}
