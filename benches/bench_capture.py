"""Captures read by spead2's own reader, and by ours, in the same run, and packets that are mended live.

spead2 reads a file and places the heaps with our callback. A receiver of ours reads it and takes the packets to spead2,
as they are or mended. A survey gathers the heaps; `speadrx inspect` also looks at what was gathered, with the start of
Python. They take turns, and the best of some rounds counts. The files lie in memory. At the end, heaps of 8192 bytes
come over the loopback interface, to be read by spead2 itself, and mended first.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import rows
import spead2.recv
from speadrx.capture import read_datagrams

import speadrx
from speadrx.cli.loopback import Loopback
from speadrx.survey import Survey

ANTENNAS = 64
#: What makes each packet be written anew.
MENDED = speadrx.Packets(heap_length="payload")


def write_capture(path: pathlib.Path, payload_bytes: int, file_bytes: int) -> int:
    """Write heaps of one packet each, from many antennas; returns how many."""
    pointers, spead_bytes = 7, 8 + 8 * 7 + payload_bytes
    headers = np.dtype(
        [
            ("record", "<u4", 4),
            ("ethernet", "u1", 14),
            ("ip", ">u2", 6),
            ("source", ">u4"),
            ("destination", ">u4"),
            ("udp", ">u2", 4),
            ("spead", "u1", 8),
            ("pointers", ">u8", pointers),
            ("payload", "u1", payload_bytes),
        ]
    )
    packets = file_bytes // headers.itemsize // ANTENNAS * ANTENNAS
    frames = np.zeros(packets, headers)
    n = np.arange(packets, dtype=np.uint64)
    frames["record"] = np.stack([1000 + n // 1_000_000, n % 1_000_000, *[n * 0 + headers.itemsize - 16] * 2], axis=1)
    frames["ethernet"][:, 12] = 8
    frames["ip"] = [0x4500, 28 + spead_bytes, 1, 0x4000, 0x0411, 0]
    frames["source"] = 0x0A000001 + n % ANTENNAS
    frames["destination"] = 0xEF010203
    frames["udp"] = [7148, 7148, 8 + spead_bytes, 0]
    frames["spead"] = [0x53, 4, 2, 6, 0, 0, 0, pointers]
    values = [n + 1, payload_bytes, 0, payload_bytes, n // ANTENNAS * 4096, n % ANTENNAS, 0]
    for i, (item, value) in enumerate(zip([1, 2, 3, 4, 0x1600, 0x4101, 0x3300], values, strict=True)):
        immediate = 0 if item == 0x3300 else 1 << 63
        frames["pointers"][:, i] = np.uint64(immediate | item << 48) | np.asarray(value, np.uint64)
    with path.open("wb") as file:
        np.array([0xA1B2C3D4, 0x00040002, 0, 0, 65535, 1], "<u4").tofile(file)
        frames.tofile(file)
    return packets


def layout_of(payload_bytes: int) -> speadrx.Layout:
    batches = max(1, 2**22 // payload_bytes // ANTENNAS)
    return speadrx.Layout(
        heap_bytes=payload_bytes,
        time=speadrx.TimeAxis(item=0x1600, step=4096, batches=batches),
        axes=(speadrx.Axis(name="antenna", item=0x4101, size=ANTENNAS),),
    )


def by_spead2(path: pathlib.Path, payload_bytes: int, packets: int) -> None:
    layout = layout_of(payload_bytes)
    data, free = spead2.recv.ChunkRingbuffer(4), spead2.recv.ChunkRingbuffer(8)
    stream = speadrx.make_stream(layout=layout, max_active_chunks=2, data_ringbuffer=data, free_ringbuffer=free)
    speadrx.ChunkPool(stream, 8)
    stream.add_udp_pcap_file_reader(str(path))
    present = 0
    for chunk in speadrx.iter_chunks(stream):
        with chunk:
            present += int(np.count_nonzero(chunk.present))
    assert present == packets, f"{present} of {packets} heaps"


def by_receiver(path: pathlib.Path, payload_bytes: int, packets: int, mended: speadrx.Packets | None = None) -> None:
    with speadrx.Receiver(replace(layout_of(payload_bytes), packets=mended), path) as receiver:
        for chunk in receiver:
            chunk.recycle()
    assert receiver.stats().present == packets


def by_mender(path: pathlib.Path, payload_bytes: int, packets: int) -> None:
    by_receiver(path, payload_bytes, packets, MENDED)


def by_survey(path: pathlib.Path, payload_bytes: int, packets: int) -> None:
    survey = Survey()
    with read_datagrams(path) as capture:
        survey.read(capture)
    assert survey.heaps == packets


def by_inspect(path: pathlib.Path, payload_bytes: int, packets: int) -> None:
    command = [sys.executable, "-m", "speadrx.cli", "inspect", str(path), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


WAYS: dict[str, Callable[[pathlib.Path, int, int], None]] = {
    "spead2's reader, placed": by_spead2,
    "ours, received": by_receiver,
    "ours, mended": by_mender,
    "ours, gathered": by_survey,
    "speadrx inspect": by_inspect,
}


def show_live(seconds: float) -> None:
    """Show the highest rates without loss over the loopback interface."""
    plain = layout_of(8192)
    rates = []
    for name, layout in (("spead2's sockets", plain), ("mended", replace(plain, packets=MENDED))):
        with Loopback(layout, {}, max_packet_size=9000, step_seconds=seconds) as loopback:
            rate = loopback.measure()
        assert rate is not None
        rates.append(rate.heaps_per_second)
        label = f"live, 8192 bytes: {name}"
        print(f"{label:36}{rates[-1] / 1e6:12.2f}{rate.gigabits_per_second / 8:8.2f}   (limit: {rate.limit})")
    print(f"live, mended to plain: {rates[1] / rates[0]:.2f}" if rates[0] else "live: heaps were lost at all rates")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="rounds [%(default)s]")
    parser.add_argument("--megabytes", type=int, default=800, help="size of each file [%(default)s]")
    parser.add_argument("--live-seconds", type=float, default=0.5, help="time to try each live rate [%(default)s]")
    parser.add_argument("--json", metavar="FILE", help="write the rows of the table of all benchmarks to a file")
    args = parser.parse_args()
    found = []
    memory = pathlib.Path("/dev/shm")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None))
        path = pathlib.Path(folder, "capture.pcap")
        print(f"{'':36}{'Mpackets/s':>12}{'GB/s':>8}   (best of {args.repeats})")
        for payload_bytes in (64, 1024, 8192):
            packets = write_capture(path, payload_bytes, args.megabytes * 10**6)
            times: dict[str, list[float]] = {name: [] for name in WAYS}
            for _ in range(args.repeats):
                for name, way in WAYS.items():
                    start = time.perf_counter()
                    way(path, payload_bytes, packets)
                    times[name].append(time.perf_counter() - start)
            rates = {name: packets / np.array(each) / 1e6 for name, each in times.items()}
            rival = "spead2's reader, placed"
            for name in ("ours, received", "ours, gathered"):
                what = f"capture of {payload_bytes} B packets: {name}"
                found.append(rows.row(what, rival, "Mpackets/s", rates[name], rates[rival]))
            for name, seconds in ((name, min(each)) for name, each in times.items()):
                label = f"{payload_bytes} bytes: {name}"
                print(f"{label:36}{packets / seconds / 1e6:12.2f}{path.stat().st_size / seconds / 1e9:8.2f}")
    rows.write(args.json, found)
    show_live(args.live_seconds)
    print("wanted: received 1 GB/s (8192 bytes) and 1.5 Mpackets/s, inspect 1 Mpackets/s; live, mended to plain 0.5")


if __name__ == "__main__":
    main()
