"""Filling the missing heaps of chunks with `_core.Geometry.fill_missing`, against memset of the same bytes.

The baseline is a native loop (numba) over the missing runs, found beforehand, that calls the C library's memset for
each: it reads no flags. It writes zeros, as memset mostly does. Where all is missing, rows also have memset of another
byte as the rival: the processor writes zeros to memory much faster than anything else. All take turns on the same
chunks, in an order that changes from round to round. Before each call other memory is written over, so that the chunk
is in no cache, as where the heaps of its last use are long past; with --warm it is not. Ratios are of rates, within a
round.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np
import rows

import speadrx

#: Smallest median ratio to memset's rate, where a heap is filled with one value.
BOUND = 0.8
PATTERNS = {
    "value 0": b"\0",
    "2 bytes": b"\x80\0",
    "4 bytes": b"\0\0\xc0\x7f",
    "12 bytes": bytes(range(12)),
    "heap": None,  # one heap of noise
}
ZEROS, OTHER = "memset", "memset of 0x80"
#: Bytes written between calls: more than the last cache has.
EVICTION = 96 * 2**20
SEED = 20240611
SOURCES = 16

memset = ctypes.CDLL(None).memset
memset.argtypes = [ctypes.c_size_t, ctypes.c_int, ctypes.c_size_t]
memset.restype = ctypes.c_size_t


@numba.njit
def memset_runs(base: int, byte: int, starts: np.ndarray, sizes: np.ndarray) -> None:
    for i in range(len(starts)):
        memset(base + starts[i], byte, sizes[i])


@dataclass(frozen=True)
class Missing:
    """Which heaps of a chunk are missing, and where they are."""

    present: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    @classmethod
    def choose(cls, fraction: float, run: int, heaps: int, heap_bytes: int, rng: np.random.Generator) -> Missing:
        """A fraction of the heaps, so many together."""
        groups = rng.permutation(heaps // run) >= max(1, round(fraction * (heaps // run)))
        present = np.repeat(groups, run).astype(np.uint8)
        edges = np.flatnonzero(np.diff(present, prepend=np.uint8(1), append=np.uint8(1)))
        return cls(present, edges[::2] * heap_bytes, np.diff(edges)[::2] * heap_bytes)


class Bench:
    """Chunks with a fraction of their heaps missing, and the ways to fill them."""

    def __init__(self, heap_bytes: int, heaps: int, chunks: int, *, warm: bool) -> None:
        layout = speadrx.Layout(
            heap_bytes=heap_bytes,
            time=speadrx.TimeAxis(item=0x1600, step=1, batches=heaps // SOURCES),
            axes=(speadrx.Axis(name="source", item=0x4101, size=SOURCES),),
            order=("source", "time"),
        )
        self.heap_bytes = heap_bytes
        self.heaps = layout.chunk_heaps
        self.geometry = layout.declaration._compiled.geometry({})
        self.scratch, *self.chunks = (np.ones(layout.chunk_bytes, np.uint8) for _ in range(chunks + 1))
        self.next = 0
        self.other = np.ones(0 if warm else EVICTION, np.uint8)

    def memset(self, chunk: np.ndarray, missing: Missing, byte: int) -> None:
        memset_runs(chunk.ctypes.data, byte, missing.starts, missing.sizes)

    def fill(self, chunk: np.ndarray, missing: Missing, pattern: bytes) -> None:
        self.geometry.fill_missing(chunk, missing.present, pattern)

    def time(self, function: Callable[[np.ndarray, Missing], None], missing: Missing, calls: int) -> float:
        """Seconds for a chunk."""
        elapsed = 0.0
        for _ in range(calls):
            chunk = self.chunks[self.next % len(self.chunks)]
            self.next += 1
            self.other += 1
            # The code, but not the chunk, is in the caches.
            function(self.scratch, missing)
            start = time.perf_counter()
            function(chunk, missing)
            elapsed += time.perf_counter() - start
        return elapsed / calls


def wanted(name: str, heap_bytes: int) -> float | None:
    """What is wanted of a way's ratio to memset."""
    if name == OTHER or (name == "heap" and heap_bytes > 640):
        return None
    return {"value 0": 0.9, "heap": 0.7}.get(name, 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heap-bytes", type=int, default=8192, help="bytes of a heap [%(default)s]")
    parser.add_argument("--heaps", type=int, default=4096, help="heaps of a chunk [%(default)s]")
    parser.add_argument("--chunks", type=int, default=4, help="chunks that take turns [%(default)s]")
    parser.add_argument("--run", type=int, default=32, help="heaps of a run [%(default)s]")
    parser.add_argument("--rounds", type=int, default=40, help="times that each takes its turn [%(default)s]")
    parser.add_argument("--warm", action="store_true", help="leave in the caches what is there")
    parser.add_argument("--json", metavar="FILE", help="write the rows of the table of all benchmarks to a file")
    parser.add_argument("--check", action="store_true", help=f"exit with 1 if one value is filled below {BOUND}")
    args = parser.parse_args()

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rng = np.random.default_rng(SEED)
    bench = Bench(args.heap_bytes, args.heaps, args.chunks, warm=args.warm)
    ways = {ZEROS: functools.partial(bench.memset, byte=0), OTHER: functools.partial(bench.memset, byte=0x80)} | {
        name: functools.partial(bench.fill, pattern=pattern or rng.bytes(args.heap_bytes))
        for name, pattern in PATTERNS.items()
        if pattern is None or args.heap_bytes % len(pattern) == 0
    }
    print(
        f"{bench.heaps} heaps of {args.heap_bytes} bytes a chunk, {args.chunks} chunks; ratio to memset, (quartiles)\n"
    )
    print(f"{'missing':12s}{'memset':>11s}" + "".join(f"{name:>21s}" for name in list(ways)[1:]))
    within = True
    found = []
    for fraction, run in ((0.01, 1), (0.01, args.run), (0.5, 1), (0.5, args.run), (1.0, bench.heaps)):
        missing = Missing.choose(fraction, run, bench.heaps, args.heap_bytes, rng)
        calls = max(1, round(0.05 / fraction))
        times = {name: np.empty(args.rounds) for name in ways}
        for i in range(-3, args.rounds):  # the first warm up
            for name in rng.permutation(list(ways)):
                elapsed = bench.time(ways[name], missing, calls)
                if i >= 0:
                    times[name][i] = elapsed
        rate = missing.sizes.sum() / np.median(times[ZEROS]) / 1e9
        row = f"{fraction:4.0%} by {run:<4d}{rate:6.1f} GB/s"
        for name in list(ways)[1:]:
            low, median, high = np.percentile(times[ZEROS] / times[name], [25, 50, 75])
            row += f"   {median:4.2f} ({low:.2f} - {high:.2f})"
            within &= name != "value 0" or median >= BOUND
            what = f"fill, {args.heap_bytes} B heaps, {fraction:.0%} by {run}: {name}"
            rates = {way: missing.sizes.sum() / taken / 1e9 for way, taken in times.items()}
            least = wanted(name, args.heap_bytes)
            if name != OTHER or fraction == 1:
                found.append(rows.row(what, ZEROS, "GB/s", rates[name], rates[ZEROS], least=least))
            if name not in (OTHER, "value 0") and fraction == 1:
                found.append(rows.row(what, OTHER, "GB/s", rates[name], rates[OTHER], least=least))
        print(row, flush=True)
    rows.write(args.json, found)
    none = Missing(np.ones(bench.heaps, np.uint8), *np.empty((2, 0), np.intp))
    elapsed = min(bench.time(ways["value 0"], none, 10) for _ in range(args.rounds))
    print(f"\nWith no heap missing, a call takes {elapsed * 1e6:.2f} us; iter_chunks does not make it.")
    if args.check and not within:
        sys.exit("The bound is exceeded.")


if __name__ == "__main__":
    main()
