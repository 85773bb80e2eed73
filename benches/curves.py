"""What a heap and a scrape cost, against what they may depend on: for `doc/performance.md`.

- Sources, 4 to 4096: the callback alone, in a native loop, less a call of a function that does nothing.
- Bytes of a heap, 64 to 65,536: the network thread, from packets in memory through spead2 into chunks.
- Threads, 1 to 8: callbacks in threads of their own, each with its layout; heaps per second altogether.
- Streams, 1 to 1024: a scrape.

All take turns with a rival for the same work; each point has its quartiles.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import threading
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

import bench_receive
import bench_scrape
import numba_callbacks
import numpy as np
import spead2

from speadrx import Axis, Layout, StatsCollector, TimeAxis, _core
from speadrx.metrics.ledger import LedgerCollector

SOURCES = [4, 16, 64, 256, 1024, 4096]
HEAP_BYTES = [64, 256, 1024, 4096, 16384, 65536]
THREADS = [1, 2, 3, 4, 6, 8]
STREAMS = [1, 4, 16, 64, 256, 1024]
TURN_HEAPS = 16384
STEP = 4096
SPEADRX, NUMBA = "speadrx", "numba"


def statistics(samples: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Median and quartiles of each point."""
    low, median, high = np.percentile(np.asarray(samples), [25, 50, 75], axis=1).tolist()
    return {"low": low, "median": median, "high": high}


class Callback:
    """A callback for an array, ours or one of numba, and heaps for some turns."""

    def __init__(self, name: str, sources: int) -> None:
        batches = max(1, TURN_HEAPS // 4 // sources)
        layout = Layout(
            heap_bytes=1024,
            time=TimeAxis(item=0x1600, step=STEP, batches=batches),
            axes=(Axis(name="source", item=0x4101, size=sources),),
            sources="source",
        )
        if name == SPEADRX:
            self.capsule, self._keep = layout.chunk_place()
        else:
            numbers: Any = types.SimpleNamespace(
                heap_bytes=1024, heap_timestamp_step=STEP, chunk_batches=batches, n_ants=sources
            )
            place = numba_callbacks.antenna_channelised(numbers)
            user_data = np.zeros((), numba_callbacks.common_user_data.dtype)
            self.capsule = _core.foreign_capsule(place.address, user_data.ctypes.data)
            self._keep = (place, user_data)
        times = max(1, TURN_HEAPS // sources)
        time_index, source = (index.ravel() for index in np.indices((times, sources)))
        self._items = np.stack([time_index * STEP, np.full(len(source), 1024), source], axis=1)
        self._span = times * STEP

    def turn(self) -> bytes:
        """The next heaps."""
        heaps = self._items.tobytes()
        self._items[:, 0] += self._span
        return heaps

    def time(self, heaps: bytes) -> float:
        """Nanoseconds per heap, with those of the loop."""
        return _core.time_heaps(self.capsule, heaps, 3, b"", 4, 0) / (len(heaps) // 24)


def nothing(heaps: bytes) -> float:
    """Nanoseconds per heap of the loop, with a function that does nothing."""
    return _core.time_heaps(None, heaps, 3, b"", 4, 0) / (len(heaps) // 24)


def by_sources(turns: int) -> dict[str, Any]:
    found: dict[str, list[list[float]]] = {SPEADRX: [], NUMBA: []}
    for sources in SOURCES:
        callbacks = {name: Callback(name, sources) for name in found}
        samples: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(turns + 2):
            for name, callback in callbacks.items():
                heaps = callback.turn()
                samples[name].append(callback.time(heaps) - nothing(heaps))
        for name in found:
            found[name].append(samples[name][2:])
    return curve("sources", "ns per heap, callback", SOURCES, found)


def by_heap_bytes(turns: int) -> dict[str, Any]:
    processors = sorted(os.sched_getaffinity(0))
    found: dict[str, list[list[float]]] = {bench_receive.SPEADRX: [], bench_receive.NUMBA: [], bench_receive.FIXED: []}
    for size in HEAP_BYTES:
        chunks = max(8, min(25, 2**25 // (size * 256)))
        bench = bench_receive.Bench(4, chunks, processors[-1], spead2.MEMCPY_NONTEMPORAL, size // 64)
        samples: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(turns + 1):
            for name in found:
                samples[name].append(bench.time(name) / bench.n_heaps * 1e9)
        for name in found:
            found[name].append(samples[name][1:])
    return curve("bytes of a heap", "ns per heap, network thread", HEAP_BYTES, found)


def together(callbacks: Sequence[Callback], turns: int) -> float:
    """Million heaps per second of callbacks that run at the same time."""
    heaps = [[callback.turn() for _ in range(turns)] for callback in callbacks]
    barrier = threading.Barrier(len(callbacks) + 1)

    def run(callback: Callback, turns: list[bytes]) -> None:
        barrier.wait()
        for each in turns:
            callback.time(each)
        barrier.wait()

    threads = [threading.Thread(target=run, args=pair) for pair in zip(callbacks, heaps, strict=True)]
    for thread in threads:
        thread.start()
    barrier.wait()
    begin = time.perf_counter()
    barrier.wait()
    elapsed = time.perf_counter() - begin
    for thread in threads:
        thread.join()
    return len(callbacks) * turns * TURN_HEAPS / elapsed / 1e6


def by_threads(turns: int) -> dict[str, Any]:
    found: dict[str, list[list[float]]] = {SPEADRX: [], NUMBA: []}
    for threads in THREADS:
        callbacks = {name: [Callback(name, 64) for _ in range(threads)] for name in found}
        samples: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(turns + 1):
            for name, each in callbacks.items():
                samples[name].append(together(each, 16))
        for name in found:
            found[name].append(samples[name][1:])
    return curve("threads", "million heaps/s, with the loop", THREADS, found)


def by_streams(turns: int) -> dict[str, Any]:
    found: dict[str, list[list[float]]] = {"the whole ledger": [], "a spead2 counter": [], "Python loop": []}
    for number in STREAMS:
        streams = [bench_scrape.make_stream() for _ in range(number)]
        loop = bench_scrape.Loop(streams)
        ledgers = LedgerCollector(["stream"], registry=None)
        counters = StatsCollector(bench_scrape.SPEAD2_COUNTER, ["stream"], registry=None)
        for stream in streams:
            ledgers.add(stream, ["wide"])
            counters.add_stream(stream, ["wide"])
        ways: dict[str, Callable[[], object]] = dict(
            zip(found, (ledgers.collect, counters.collect, loop.collect), strict=True)
        )
        samples: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(turns + 5):
            for name, way in ways.items():
                begin = time.perf_counter()
                way()
                samples[name].append((time.perf_counter() - begin) * 1e6)
        for name in found:
            found[name].append(samples[name][5:])
        for stream in streams:
            stream.stop()
    return curve("streams", "us per scrape", STREAMS, found)


def curve(x_label: str, y_label: str, x: list[int], found: dict[str, list[list[float]]]) -> dict[str, Any]:
    """A plot as data."""
    series = {name: statistics(samples) for name, samples in found.items()}
    return {"x_label": x_label, "y_label": y_label, "x": x, "series": series}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15, help="turns at each point [%(default)s]")
    parser.add_argument("--json", required=True, metavar="FILE", help="where the curves go")
    args = parser.parse_args()
    curves = [by(args.turns) for by in (by_sources, by_heap_bytes, by_threads, by_streams)]
    pathlib.Path(args.json).write_text(json.dumps(curves), "utf-8")


if __name__ == "__main__":
    main()
