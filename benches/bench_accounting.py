"""Cost of taking a chunk from a `Receiver`, which is that of `iter_chunks`, against taking it from a bare ring.

Both take turns with the same chunks: a ring is filled with them, and then emptied by one of them. Only the emptying is
timed; the chunks are kept meanwhile, and recycling them afterwards is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import rows
import spead2
import spead2.recv
import spead2.recv.asyncio
from speadrx.meerkat import AntennaChannelisedVoltageLayout

import speadrx

#: Largest median cost of the accounting, in microseconds.
BOUND = 15.0
N_ANTS = 80
HEAPS_PER_ANTENNA = 32
SEED = 20240611


class Bench:
    """A receiver whose data ring is filled by hand, a bare ring, and the ways to empty them."""

    def __init__(self, ring: type[spead2.recv.ChunkRingbuffer], chunks: int) -> None:
        layout = AntennaChannelisedVoltageLayout(N_ANTS, 4, 16, 2**21, 8, HEAPS_PER_ANTENNA)
        self.ring = ring(chunks)
        self.receiver = speadrx.Receiver(layout, spead2.InprocQueue(), window=1, chunks=chunks)
        self.receiver.start()
        self.chunks = self.receiver.pool.chunks
        self.iterator = iter(self.receiver)
        self.loop = asyncio.new_event_loop()
        self.next_id = 0
        self.rng = np.random.default_rng(SEED)
        self.taken: list[Any] = []

    def fill(self, ring: spead2.recv.ChunkRingbuffer) -> None:
        """Put chunks with most of their heaps into a ring."""
        for _ in self.chunks:
            chunk = self.receiver.stream.free_ringbuffer.get_nowait()
            chunk.chunk_id = self.next_id
            self.next_id += 1
            chunk.present[:] = self.rng.random(chunk.present.shape) < 0.99
            ring.put_nowait(chunk)

    def empty(self) -> None:
        """Recycle what was taken."""
        assert len(self.taken) == len(self.chunks)
        for chunk in self.taken:
            chunk.recycle()
        self.taken.clear()

    def bare(self) -> None:
        for _ in self.chunks:
            self.taken.append(self.ring.get())

    def iterate(self) -> None:
        for _ in self.chunks:
            self.taken.append(next(self.iterator))

    def bare_async(self) -> None:
        async def take() -> None:
            for _ in self.chunks:
                self.taken.append(await self.ring.get())  # type: ignore[misc]

        self.loop.run_until_complete(take())

    def iterate_async(self) -> None:
        async def take() -> None:
            for _ in self.chunks:
                self.taken.append(await anext(self.iterator))

        self.loop.run_until_complete(take())

    def time(self, take: Callable[[], None]) -> float:
        """Microseconds for each chunk."""
        bare = take in (self.bare, self.bare_async)
        self.fill(self.ring if bare else self.receiver.stream.data_ringbuffer)
        start = time.perf_counter()
        take()
        elapsed = time.perf_counter() - start
        self.empty()
        return elapsed / len(self.chunks) * 1e6

    def close(self) -> None:
        self.loop.close()
        self.receiver.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=300, help="times that each takes its turn [%(default)s]")
    parser.add_argument("--chunks", type=int, default=32, help="chunks in a turn [%(default)s]")
    parser.add_argument("--json", metavar="FILE", help="write the rows of the table of all benchmarks to a file")
    parser.add_argument("--check", action="store_true", help=f"exit with 1 if the cost is more than {BOUND} us")
    args = parser.parse_args()

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    plain = Bench(spead2.recv.ChunkRingbuffer, args.chunks)
    asynchronous = Bench(spead2.recv.asyncio.ChunkRingbuffer, args.chunks)
    pairs = {
        "for": (plain, plain.bare, plain.iterate),
        "async for": (asynchronous, asynchronous.bare_async, asynchronous.iterate_async),
    }
    print(f"spead2 {spead2.__version__}, Python {platform.python_version()}; {N_ANTS} antennas, ", end="")
    print(f"{plain.receiver.layout.chunk_heaps} heaps a chunk, {args.chunks} chunks a turn\n")
    print(f"{'us per chunk, median':24s} {'bare ring':>10s} {'Receiver':>12s} {'difference':>11s} {'quartiles':>14s}")
    within = True
    found = []
    for name, (bench, bare, iterate) in pairs.items():
        for _ in range(args.repeats // 10 + 1):  # warm up
            bench.time(bare), bench.time(iterate)
        times = np.array([(bench.time(bare), bench.time(iterate)) for _ in range(args.repeats)])
        cost = times[:, 1] - times[:, 0]
        low, median, high = np.percentile(cost, [25, 50, 75])
        within &= median <= BOUND
        what = f"a chunk of 80 x 32 heaps with {name!r}, above the bare ring"
        found.append(rows.row(what, "6 us, which are wanted", "us", cost, np.full(len(cost), 6.0), most=1.0))
        bare_median, iterate_median = np.median(times, axis=0)
        quartiles = f"{low:.1f} - {high:.1f}"
        print(f"{name:24s} {bare_median:10.2f} {iterate_median:12.2f} {median:11.2f} {quartiles:>14s}")
        bench.close()
    rows.write(args.json, found)
    print(f"\nThe difference may be {BOUND:.0f} us.")
    if args.check and not within:
        sys.exit("The bound is exceeded.")


if __name__ == "__main__":
    main()
