"""Senders that count their heaps alike: spead2 mixes the bytes of such heaps, and the account and the log say so."""

from __future__ import annotations

import json
import logging
import pathlib
import socket
import struct

import pytest

from addresses import own_port
from loopback import wait_for
from speadrx import Axis, Layout, Packets, Receiver, TimeAxis
from terminals import piped
from wire import heap, write_capture

LAYOUT = Layout(
    heap_bytes=64, time=TimeAxis(item=0x1600, step=1, batches=4), axes=(Axis(name="a", item=0x4101, size=2),)
)
#: Heaps of each of two senders.
HEAPS = 8


def packets(counters: int, parts: int) -> list[tuple[tuple[str, int], bytes]]:
    """Heaps of two senders, packet by packet in turn; the second sender's counters are higher by so much."""
    made = []
    for t in range(HEAPS):
        turns = [
            heap(1 + t + a * counters, [(0x1600, t), (0x4101, a)], struct.pack(">8Q", *[t << 8 | a] * 8), parts=parts)
            for a in range(2)
        ]
        for turn in zip(*turns, strict=True):
            made += [((f"10.0.0.{1 + a}", 5000), one) for a, one in enumerate(turn)]
    return made


def test_packets_in_heaps_of_another_sender_are_counted(tmp_path: pathlib.Path) -> None:
    """Of two packets of each heap, all but the first come when the other sender's heap has one."""
    with Receiver(LAYOUT, write_capture(tmp_path / "mixed.pcap", packets(0, parts=2))) as receiver:
        for chunk in receiver:
            chunk.recycle()
    # a0 begins; b0 comes into it and begins its own; a1 comes into that, b1 into that of a1.
    assert receiver.stats().shared_counters == 3 * HEAPS


@pytest.mark.parametrize(("counters", "parts"), [(1000, 2), (0, 1)])
def test_heaps_that_are_not_mixed_are_not_counted(tmp_path: pathlib.Path, counters: int, parts: int) -> None:
    """Senders with counters of their own; and heaps of one packet, which have nothing to be mixed with."""
    with Receiver(LAYOUT, write_capture(tmp_path / "whole.pcap", packets(counters, parts))) as receiver:
        for chunk in receiver:
            chunk.recycle()
    assert (receiver.stats().shared_counters, receiver.stats().present) == (0, 2 * HEAPS)


def test_counters_by_sender_keep_them_apart(tmp_path: pathlib.Path) -> None:
    layout = Layout(
        heap_bytes=64, time=LAYOUT.time, axes=LAYOUT.declaration.axes, packets=Packets(heap_counter="sender")
    )
    with Receiver(layout, write_capture(tmp_path / "mixed.pcap", packets(0, parts=2))) as receiver:
        for chunk in receiver:
            with chunk:
                for batch, row in enumerate(chunk.data.reshape(4, 2, 64)):
                    for a in range(2):
                        assert row[a].tobytes() == struct.pack(">8Q", *[(chunk.timestamp + batch) << 8 | a] * 8)
    assert (receiver.stats().shared_counters, receiver.stats().present) == (0, 2 * HEAPS)


def test_the_command_says_so(tmp_path: pathlib.Path) -> None:
    path = write_capture(tmp_path / "mixed.pcap", packets(0, parts=2))
    (tmp_path / "layout.toml").write_text(LAYOUT.to_toml(), "utf-8")
    outputs = []
    for option in ("--all-sources", "--json"):
        with piped("replay", path, "-l", str(tmp_path / "layout.toml"), option) as process:
            outputs.append(process.communicate(timeout=60)[0])
    assert f"senders share heap counters ({3 * HEAPS} packets" in " ".join(outputs[0].split())
    assert json.loads(outputs[1])["shared_counters"] == 3 * HEAPS


def test_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    """Live, where packets are mended."""
    layout = Layout(heap_bytes=64, time=LAYOUT.time, axes=LAYOUT.declaration.axes, packets=Packets())
    port = own_port()
    with (
        caplog.at_level(logging.WARNING, "speadrx"),
        Receiver(layout, ("127.0.0.1", port)) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        receiver.start()
        senders = {"10.0.0.1": one, "10.0.0.2": other}
        for (host, _), data in packets(0, parts=2):
            senders[host].sendto(data, ("127.0.0.1", port))
        wait_for(lambda: any("senders share heap counters" in record.getMessage() for record in caplog.records))
        assert sum("share heap counters" in record.getMessage() for record in caplog.records) == 1
