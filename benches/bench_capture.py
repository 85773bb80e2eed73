"""Captures read by spead2's own reader, and by ours, in the same run: packets and bytes per second.

spead2 reads a file and places the heaps with our callback. Ours gathers them for a survey; `speadrx inspect` also looks
at what it has gathered, with the start of Python. They take turns, and the best of some rounds counts. The files lie in
memory.
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

import numpy as np
import spead2.recv
from speadrx.capture import read_datagrams

import speadrx
from speadrx.survey import Survey

ANTENNAS = 64
#: Wanted of ours: `inspect`, and reading.
LEAST_PACKETS, LEAST_BYTES = 1e6, 1e9


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


def by_spead2(path: pathlib.Path, payload_bytes: int, packets: int) -> None:
    batches = max(1, 2**22 // payload_bytes // ANTENNAS)
    layout = speadrx.Layout(
        heap_bytes=payload_bytes,
        time=speadrx.TimeAxis(item=0x1600, step=4096, batches=batches),
        axes=(speadrx.Axis(name="antenna", item=0x4101, size=ANTENNAS),),
    )
    data, free = spead2.recv.ChunkRingbuffer(4), spead2.recv.ChunkRingbuffer(8)
    stream = speadrx.make_stream(layout=layout, max_active_chunks=2, data_ringbuffer=data, free_ringbuffer=free)
    speadrx.ChunkPool(stream, 8)
    stream.add_udp_pcap_file_reader(str(path))
    present = 0
    for chunk in speadrx.iter_chunks(stream):
        with chunk:
            present += int(np.count_nonzero(chunk.present))
    assert present == packets, f"{present} of {packets} heaps"


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
    "ours, gathered": by_survey,
    "speadrx inspect": by_inspect,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="rounds [%(default)s]")
    parser.add_argument("--megabytes", type=int, default=800, help="size of each file [%(default)s]")
    args = parser.parse_args()
    memory = pathlib.Path("/dev/shm")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None))
        path = pathlib.Path(folder, "capture.pcap")
        print(f"{'':36}{'Mpackets/s':>12}{'GB/s':>8}   (best of {args.repeats})")
        for payload_bytes in (64, 1024, 8192):
            packets = write_capture(path, payload_bytes, args.megabytes * 10**6)
            best = dict.fromkeys(WAYS, float("inf"))
            for _ in range(args.repeats):
                for name, way in WAYS.items():
                    start = time.perf_counter()
                    way(path, payload_bytes, packets)
                    best[name] = min(best[name], time.perf_counter() - start)
            for name, seconds in best.items():
                label = f"{payload_bytes} bytes: {name}"
                print(f"{label:36}{packets / seconds / 1e6:12.2f}{path.stat().st_size / seconds / 1e9:8.2f}")
    wanted = f"{LEAST_BYTES / 1e9:.0f} GB/s for heaps of 8192 bytes; inspect {LEAST_PACKETS / 1e6:.0f} Mpackets/s"
    print(f"wanted of ours: {wanted}")


if __name__ == "__main__":
    main()
