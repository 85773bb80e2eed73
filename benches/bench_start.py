"""Time until a digitiser stream stands: speadrx against a receiver with a numba callback.

Fresh processes take turns. Each imports numpy and spead2.recv, then times what comes on top of that: its other
imports, the layout, its callback and the stream.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

BOUND = 0.05
DIGITISER = (10, 4096, 2**20, False)
MAX_CHUNKS = 2


def start_speadrx(data: Any, free: Any) -> Any:
    from speadrx.meerkat import DigitiserLayout

    import speadrx

    return speadrx.make_stream(
        layout=DigitiserLayout(*DIGITISER), max_active_chunks=MAX_CHUNKS, data_ringbuffer=data, free_ringbuffer=free
    )


def start_numba(data: Any, free: Any) -> Any:
    import ctypes
    import types

    import numba_callbacks
    import numpy as np
    import scipy
    import spead2
    import spead2.recv

    sample_bits, heap_samples, chunk_samples, _ = DIGITISER
    layout: Any = types.SimpleNamespace(
        heap_bytes=heap_samples * sample_bits // 8,
        heap_samples=heap_samples,
        chunk_batches=chunk_samples // heap_samples,
        timestamp_mask=np.uint64(2**64 - 1),
    )
    user_data = np.zeros((), numba_callbacks.digitiser_user_data.dtype)
    config = spead2.recv.StreamConfig(memcpy=spead2.MEMCPY_NONTEMPORAL)
    user_data["stats_base"] = config.next_stat_index()
    user_data["stride"] = chunk_samples * sample_bits // 8
    for name in ("metadata_heaps", "bad_timestamp_heaps", "unused"):
        config.add_stat(f"bench.{name}")
    place = scipy.LowLevelCallable(
        numba_callbacks.digitiser(layout).ctypes,
        user_data=user_data.ctypes.data_as(ctypes.c_void_p),
        signature="void (void *, size_t, void *)",
    )
    chunk_config = spead2.recv.ChunkStreamConfig(
        items=[0x1600, spead2.HEAP_LENGTH_ID, 0x3101, 0x3102], max_chunks=MAX_CHUNKS, max_heap_extra=2, place=place
    )
    return spead2.recv.ChunkRingStream(spead2.ThreadPool(1), config, chunk_config, data, free)


STARTS: dict[str, Callable[[Any, Any], Any]] = {"speadrx": start_speadrx, "numba": start_numba}


def child(name: str) -> None:
    import numpy as np  # noqa: F401  # not counted
    import spead2.recv

    data, free = spead2.recv.ChunkRingbuffer(4), spead2.recv.ChunkRingbuffer(4)
    begin = time.perf_counter()
    stream = STARTS[name](data, free)
    print(time.perf_counter() - begin)
    stream.stop()


def measure(name: str) -> float:
    command = [sys.executable, __file__, "--child", name]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="processes of each kind [%(default)s]")
    parser.add_argument("--check", action="store_true", help=f"exit with 1 if the ratio is more than {BOUND}")
    parser.add_argument("--child", choices=STARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return

    times: dict[str, list[float]] = {name: [] for name in STARTS}
    for name in STARTS:
        measure(name)  # fills the caches of files and of compiled modules
    for _ in range(args.repeats):
        for name, results in times.items():
            results.append(measure(name))
    print(f"{'ms to a stream':16s} {'minimum':>9s} {'median':>9s} {'maximum':>9s}")
    for name, results in times.items():
        low, mid, high = min(results), statistics.median(results), max(results)
        print(f"{name:16s} {low * 1e3:9.1f} {mid * 1e3:9.1f} {high * 1e3:9.1f}")
    ratio = statistics.median(times["speadrx"]) / statistics.median(times["numba"])
    print(f"\nratio of medians {ratio:.4f} (bound {BOUND})")
    if args.check and ratio > BOUND:
        sys.exit("The bound is exceeded.")


if __name__ == "__main__":
    main()
