"""The highest rate over UDP without loss (the critical rate), with speadrx's callback, numba's, and a fixed placement.

Any receiver can follow one sender, so several read the same: streams that have all joined one multicast group on the
loopback interface, with all their threads on one processor, while the sender has another. It sends a packet once, and
the kernel gives it to each stream, which receives, places and copies it. The heaps have one packet each. The callbacks
take turns: each searches for its rate by bisection, as `speadrx bench --critical` does. "fixed" puts every heap into
the same slot of the same chunk: the least that a callback can do. Nearly all of the time is the kernel's and spead2's,
so what is seen is whether anything of a callback is left in the whole. It says how often the sender was the limit
nevertheless: then a figure says no more than that the receiver keeps up.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import threading
from typing import Any

import numba_callbacks
import numpy as np
import rows
import spead2.recv
from bench_receive import FIXED, NUMBA, SPEADRX, make_layout

import speadrx
from speadrx.cli.critical import CriticalSearch
from speadrx.cli.loopback import Loopback, Trial, settle

SEED = 20240611
GROUP, INTERFACE = "239.255.71.48", "127.0.0.1"
WINDOW = 4
#: Heaps of an antenna in a chunk.
BATCHES = 32
TRIAL_SECONDS = 0.15
#: Bytes in a packet: a heap fits.
PACKET_BYTES = 9000


class StreamLoopback(Loopback):
    """Trials with bare streams, whose callback may be of any origin.

    Parameters
    ----------
    n_streams
        How many receive the same.
    processor
        Where their threads run.
    channels
        Items of 64 bytes in a heap.
    callback
        Makes a callback for a layout (default: ours).
    """

    def __init__(self, n_streams: int, processor: int, channels: int, callback: Any = None) -> None:
        layout = make_layout(BATCHES, channels=channels)
        super().__init__(layout, {}, max_packet_size=PACKET_BYTES, step_seconds=TRIAL_SECONDS)
        self._n_streams = n_streams
        self._arguments: dict[str, Any] = {"layout": layout}
        if callback is not None:
            self._arguments = {
                "layout": make_layout(BATCHES, callback(layout), channels),
                "spead_items": layout.spead_items,
                "stream_stats": [f"heaps_{i}" for i in range(3)],
                "user_data": np.zeros((), numba_callbacks.common_user_data.dtype),
            }
        self._arguments.update(max_active_chunks=WINDOW, affinity=processor)
        n_buffers = (n_streams + 2) * WINDOW  # those under construction, and some on their way
        self._data = np.zeros((n_buffers, layout.chunk_bytes), np.uint8)
        self._present = np.zeros((n_buffers, layout.chunk_heaps), np.uint8)

    def trial(self, rate: float) -> Trial:
        """Send at a rate, in bytes of packets per second, and see what became of it in all streams."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("", 0))
            endpoint = (GROUP, probe.getsockname()[1])
        ring = spead2.recv.ChunkRingbuffer(len(self._data))
        rings = {"data_ringbuffer": ring, "free_ringbuffer": spead2.recv.ChunkRingbuffer(len(self._data))}
        streams: list[Any] = [speadrx.make_stream(**rings, **self._arguments) for _ in range(self._n_streams)]
        for data, present in zip(self._data, self._present, strict=True):
            streams[0].add_free_chunk(spead2.recv.Chunk(data=data, present=present))
        for stream in streams:
            speadrx.add_reader(stream, src=[endpoint], interface=INTERFACE)

        def consume() -> None:
            for chunk in ring:
                streams[0].add_free_chunk(chunk)

        consumer = threading.Thread(target=consume)
        consumer.start()
        try:
            self._tell(({"endpoints": [endpoint], "interface": INTERFACE}, self._step_seconds, rate))
            sent = self._reply()
            heaps = sent.heaps * self._n_streams
            end = settle(lambda: sum(stream.stats["heaps"] for stream in streams), heaps)
        finally:
            drops, stats = sum(stream.kernel_drops() for stream in streams), [stream.stats for stream in streams]
            for stream in streams:
                stream.stop()
            consumer.join()
        # Of heaps of one packet, each that is read comes to its chunk, or is counted here.
        present = sum(each["heaps"] - each["rejected_heaps"] - each["too_old_heaps"] for each in stats)
        return Trial(sent, end - sent.begin, heaps - present, drops)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=7, help="times that each takes its turn [%(default)s]")
    parser.add_argument("--streams", type=int, default=8, help="streams that receive the same [%(default)s]")
    parser.add_argument("--channels", type=int, default=10, help="64 bytes of a heap each [%(default)s]")
    parser.add_argument("--json", metavar="FILE", help="write the rows of the table of all benchmarks to a file")
    args = parser.parse_args()
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[0]})  # the sender's too
    rng = np.random.default_rng(SEED)
    callbacks = {SPEADRX: None, NUMBA: numba_callbacks.antenna_channelised, FIXED: lambda _: numba_callbacks.fixed()}
    rates: dict[str, list[float]] = {name: [] for name in callbacks}
    by_sender = dict.fromkeys(callbacks, 0)
    with contextlib.ExitStack() as stack:
        searches = {}
        for name, callback in callbacks.items():
            loopback = StreamLoopback(args.streams, processors[-1], args.channels, callback)
            searches[name] = CriticalSearch(stack.enter_context(loopback).trial)
        for _ in range(args.searches):
            for name in rng.permutation(list(searches)):
                found = searches[name].search()
                assert found is not None
                rates[name].append(found.heaps_per_second * args.streams * 1e-6)
                by_sender[name] += found.limit == "sender"
                print(f"{name:8s} {rates[name][-1]:6.3f} Mheaps/s, limited by: {found.limit}", flush=True)
    entries = []
    for name in (NUMBA, FIXED):
        limits = f"sender the limit in {by_sender[SPEADRX] + by_sender[name]} of {2 * args.searches}"
        what = f"UDP, critical rate, {64 * args.channels} B, {args.streams} streams on a core ({limits})"
        entries.append(rows.row(what, f"placement {name}", "Mheaps/s", rates[SPEADRX], rates[name]))
    for line in rows.table(entries):
        print("  ".join(line))
    rows.write(args.json, entries)


if __name__ == "__main__":
    main()
