"""Heaps per second from a memory buffer into chunks through spead2, against callbacks that check and count nothing.

All streams are made by `make_stream`, read the same packets, and take turns, in an order drawn again for each round:
with speadrx's callback (everything on: guard of time, ledger, duplicates), with a numba callback for the same format,
and with two floors. "fixed" puts every heap into the same slot of the same chunk: the least that a callback can do, but
then no chunk is ever finished, and all is copied to one place, which is no merit of the callback (small chunks and
`--memcpy std` show that most). "shifts" finds the slot of the format by shifting and adding, without any check: chunks
fill and turn over as they do with the others, so that what is left is the cost of the checks and the counting.

Timed is what the network thread takes on its processor from the first packet to the end of the stream; the chunks
suffice for all heaps, so it never waits. They share some memory, as chunks do that are recycled in time.
"""

from __future__ import annotations

import argparse
import os
import platform
import struct
import sys
import time
from typing import Any

import numba
import numba_callbacks
import numpy as np
import rows
import spead2
import spead2.recv
from speadrx.meerkat import FENG_ID_ID, TIMESTAMP_ID, AntennaChannelisedVoltageLayout

import speadrx

SEED = 20240611
PAYLOAD_ID = 0x4300
ADDRESS_BITS = 48
WINDOW = 4
#: Chunks that memory is allocated for: those under construction, and as many again.
BUFFERS = 2 * WINDOW

MEMCPY = {"nontemporal": spead2.MEMCPY_NONTEMPORAL, "std": spead2.MEMCPY_STD}

SPEADRX, NUMBA, SHIFTS, FIXED = "speadrx", "numba", "shifts", "fixed"
#: Smallest ratio of our rate to that of each of the others (None: shown, but not judged).
BOUNDS = {SHIFTS: 0.95, FIXED: 0.95, NUMBA: None}


def make_layout(batches: int, callback: Any = None, channels: int = 10) -> AntennaChannelisedVoltageLayout:
    """Make a layout with heaps of 64 bytes a channel, which may bring a callback of its own.

    All that matters to the callback that shifts is a power of two.
    """
    kind = AntennaChannelisedVoltageLayout
    if callback is not None:
        kind = type("ForeignLayout", (kind,), {"_chunk_place": callback})
    return kind(64, channels, 16, 2**21, 8, batches)


def make_heads(layout: AntennaChannelisedVoltageLayout) -> np.ndarray:
    """Make eight bytes for each heap of a chunk, which its payload repeats."""
    return np.arange(1, layout.chunk_heaps + 1, dtype=np.uint64)


def make_packets(layout: AntennaChannelisedVoltageLayout, chunks: int) -> np.ndarray:
    """Make the packets of some chunks: one for each heap, time by time, with all antennas at each time."""
    batches = chunks * layout.chunk_batches
    n_heaps = batches * layout.n_ants
    heap = np.arange(n_heaps)
    items = [
        (spead2.HEAP_CNT_ID, 1 + heap),
        (spead2.HEAP_LENGTH_ID, layout.heap_bytes),
        (spead2.PAYLOAD_OFFSET_ID, 0),
        (spead2.PAYLOAD_LENGTH_ID, layout.heap_bytes),
        (TIMESTAMP_ID, heap // layout.n_ants * layout.heap_timestamp_step),
        (FENG_ID_ID, heap % layout.n_ants),
    ]
    pointers = np.empty((n_heaps, len(items) + 1), np.uint64)
    for i, (item, value) in enumerate(items):
        pointers[:, i] = np.uint64(1 << 63 | item << ADDRESS_BITS) + np.asarray(value, np.uint64)
    pointers[:, -1] = PAYLOAD_ID << ADDRESS_BITS
    header = np.frombuffer(struct.pack(">4BHH", 0x53, 4, 2, 6, 0, pointers.shape[1]), np.uint8)
    words = 1 + pointers.shape[1] + layout.heap_bytes // 8
    packets = np.empty((n_heaps, words), np.uint64)
    packets[:, 0] = header.view(np.uint64)
    packets[:, 1 : 1 + pointers.shape[1]] = pointers.byteswap()
    packets[:, 1 + pointers.shape[1] :] = np.tile(make_heads(layout), chunks)[:, np.newaxis]
    return packets.reshape(-1).view(np.uint8)


class Bench:
    """The packets, the memory of the chunks, and the callbacks that take turns."""

    def __init__(self, batches: int, chunks: int, processor: int, memcpy: int, channels: int = 10) -> None:
        self.layout = make_layout(batches, channels=channels)
        self.heads = make_heads(self.layout)
        # The thread that watches all streams runs as long as there is one: what is new with others is theirs.
        self.watched = speadrx.make_stream(
            layout=self.layout,
            max_active_chunks=WINDOW,
            data_ringbuffer=spead2.recv.ChunkRingbuffer(1),
            free_ringbuffer=spead2.recv.ChunkRingbuffer(WINDOW + 1),
        )
        speadrx.ChunkPool(self.watched, WINDOW + 1)
        self.chunks = chunks
        self.packets = make_packets(self.layout, chunks)
        self.n_heaps = chunks * self.layout.chunk_heaps
        self.data = np.zeros((BUFFERS, self.layout.chunk_bytes), np.uint8)
        self.present = np.zeros((BUFFERS, self.layout.chunk_heaps), np.uint8)
        self.arguments: dict[str, dict[str, Any]] = {SPEADRX: {"layout": self.layout}}
        for name, callback in {
            NUMBA: numba_callbacks.antenna_channelised(self.layout),
            SHIFTS: numba_callbacks.shifts(self.layout),
            FIXED: numba_callbacks.fixed(),
        }.items():
            self.arguments[name] = {
                "layout": make_layout(batches, callback, channels),
                "spead_items": self.layout.spead_items,
                "stream_stats": [f"heaps_{i}" for i in range(3)],
                "user_data": np.zeros((), numba_callbacks.common_user_data.dtype),
            }
        for arguments in self.arguments.values():
            arguments.update(max_active_chunks=WINDOW, affinity=processor, memcpy=memcpy)

    def time(self, name: str) -> float:
        """Receive all heaps; return seconds of the network thread."""
        free = spead2.recv.ChunkRingbuffer(self.chunks + WINDOW)
        ring = spead2.recv.ChunkRingbuffer(self.chunks + WINDOW)
        before = set(os.listdir("/proc/self/task"))
        stream: Any = speadrx.make_stream(data_ringbuffer=ring, free_ringbuffer=free, **self.arguments[name])
        (thread,) = set(os.listdir("/proc/self/task")) - before
        # Linux: the processor time of a thread, as pthread_getcpuclockid makes the clock's number.
        clock = ~int(thread) << 3 | 6
        for i in range(self.chunks + WINDOW):
            chunk = spead2.recv.Chunk(data=self.data[i % BUFFERS], present=self.present[i % BUFFERS])
            stream.add_free_chunk(chunk)
        self.data[:, :: self.layout.heap_bytes] = 0
        start = time.clock_gettime(clock)
        stream.add_buffer_reader(self.packets)
        while stream.stats["heaps"] < self.n_heaps:
            time.sleep(1e-3)
        received = list(ring)
        elapsed = time.clock_gettime(clock) - start
        stream.stop()
        self.verify(name, stream, received)
        return elapsed

    def verify(self, name: str, stream: Any, received: list[spead2.recv.Chunk]) -> None:
        """See that every heap has come to where it belongs, so that all have done the same work."""
        if name == FIXED:
            assert [chunk.chunk_id for chunk in received] == [0]
            assert self.data[0, : self.layout.heap_bytes].any()
            return
        assert [chunk.chunk_id for chunk in received] == list(range(self.chunks)), name
        found = self.data.view(np.uint64).reshape(BUFFERS, self.layout.chunk_heaps, -1)
        assert (found[:, :, 0] == self.heads).all(), name
        if name == SPEADRX:
            snapshot = stream.ledger.snapshot()
            assert (snapshot.placed, snapshot.duplicates) == (self.n_heaps, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200, help="times that each takes its turn [%(default)s]")
    parser.add_argument("--batches", type=int, default=32, help="heaps of an antenna in a chunk [%(default)s]")
    parser.add_argument("--chunks", type=int, default=25, help="chunks in a turn [%(default)s]")
    parser.add_argument("--memcpy", choices=MEMCPY, default="nontemporal", help="how spead2 copies [%(default)s]")
    parser.add_argument("--json", metavar="FILE", help="write the rows of the table of all benchmarks to a file")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a ratio is less than its bound")
    args = parser.parse_args()
    if args.chunks < BUFFERS:
        parser.error(f"--chunks: must be at least {BUFFERS}")

    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[0]})
    bench = Bench(args.batches, args.chunks, processors[-1], MEMCPY[args.memcpy])
    names = list(bench.arguments)
    times = np.empty((args.repeats + args.repeats // 10, len(names)))
    rng = np.random.default_rng(SEED)
    for row in times:
        for i in rng.permutation(len(names)):
            row[i] = bench.time(names[i])
    times = times[args.repeats // 10 :] / bench.n_heaps * 1e9  # without those to warm up

    print(f"numba {numba.__version__}, spead2 {spead2.__version__}, Python {platform.python_version()}; ", end="")
    print(f"heaps of {bench.layout.heap_bytes} bytes, {bench.layout.chunk_heaps} a chunk, {bench.n_heaps} a turn\n")
    print(f"{'ns per heap':24s} {'minimum':>8s} {'median':>8s} {'quartiles':>16s} {'million heaps/s':>16s}")
    for name, column in zip(names, times.T, strict=True):
        low, median, high = np.percentile(column, [25, 50, 75])
        quartiles = f"{low:.1f} - {high:.1f}"
        print(f"{name:24s} {column.min():8.1f} {median:8.1f} {quartiles:>16s} {1e3 / median:16.3f}")
    within = True
    print(f"\n{'ratio of rates':24s} {'fastest':>8s} {'median':>8s} {'quartiles':>16s} {'at least':>16s}")
    for name, bound in BOUNDS.items():
        own, other = times[:, names.index(SPEADRX)], times[:, names.index(name)]
        low, median, high = np.percentile(other / own, [25, 50, 75])  # of one round: what disturbs it hits both
        within &= bound is None or median >= bound
        quartiles = f"{low:.3f} - {high:.3f}"
        shown = "-" if bound is None else f"{bound:.2f}"
        label = f"speadrx / {name}"
        print(f"{label:24s} {other.min() / own.min():8.3f} {median:8.3f} {quartiles:>16s} {shown:>16s}")
    rates = {name: 1e3 / column for name, column in zip(names, times.T, strict=True)}
    rows.write(
        args.json,
        [
            rows.row(
                f"received from memory, {bench.layout.heap_bytes} B",
                f"placement {name}",
                "Mheaps/s",
                *pair,
                least=bound,
            )
            for name, bound in BOUNDS.items()
            for pair in [(rates[SPEADRX], rates[name])]
        ],
    )
    if args.check and not within:
        sys.exit("A rate is too low.")


if __name__ == "__main__":
    main()
