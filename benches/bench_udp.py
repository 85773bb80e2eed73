"""The highest rate over UDP without loss (the critical rate), with speadrx's callback and with numba's.

Both streams are made by `make_stream` and receive heaps of one packet each on 127.0.0.1, from a process that simulates
the senders. They take turns: each searches for its rate by bisection, as `speadrx bench --critical` does. Nearly all of
the time is the kernel's and spead2's, so what is seen is whether anything of a callback is left in the whole. Where the
sender is the limit, it says no more than that both keep up.
"""

from __future__ import annotations

import argparse
import socket
import threading
from typing import Any

import numba_callbacks
import numpy as np
import rows
import spead2.recv
from bench_receive import NUMBA, SPEADRX, make_layout

import speadrx
from speadrx.cli.critical import CriticalSearch
from speadrx.cli.loopback import Loopback, Trial, settle

SEED = 20240611
WINDOW = 4
BUFFERS = 4 * WINDOW
#: Items of 64 bytes, antennas, and heaps of an antenna in a chunk.
CHANNELS, BATCHES = 128, 32
TRIAL_SECONDS = 0.5
#: Bytes in a packet: a heap fits.
PACKET_BYTES = 9000


class StreamLoopback(Loopback):
    """Trials with a bare stream, whose callback may be of any origin."""

    def __init__(self, callback: Any = None) -> None:
        layout = make_layout(BATCHES, channels=CHANNELS)
        super().__init__(layout, {}, max_packet_size=PACKET_BYTES, step_seconds=TRIAL_SECONDS)
        self._arguments: dict[str, Any] = {"layout": layout}
        if callback is not None:
            self._arguments = {
                "layout": make_layout(BATCHES, callback(layout), CHANNELS),
                "spead_items": layout.spead_items,
                "stream_stats": [f"heaps_{i}" for i in range(3)],
                "user_data": np.zeros((), numba_callbacks.common_user_data.dtype),
            }
        self._data = np.zeros((BUFFERS, layout.chunk_bytes), np.uint8)
        self._present = np.zeros((BUFFERS, layout.chunk_heaps), np.uint8)

    def trial(self, rate: float) -> Trial:
        """Send at a rate, in bytes of packets per second, and see what became of it."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            endpoint = probe.getsockname()
        ring = spead2.recv.ChunkRingbuffer(BUFFERS)
        stream: Any = speadrx.make_stream(
            data_ringbuffer=ring,
            free_ringbuffer=spead2.recv.ChunkRingbuffer(BUFFERS),
            max_active_chunks=WINDOW,
            **self._arguments,
        )
        for data, present in zip(self._data, self._present, strict=True):
            stream.add_free_chunk(spead2.recv.Chunk(data=data, present=present))
        speadrx.add_reader(stream, src=[endpoint])

        def consume() -> None:
            for chunk in ring:
                stream.add_free_chunk(chunk)

        consumer = threading.Thread(target=consume)
        consumer.start()
        try:
            self._tell((endpoint, self._step_seconds, rate))
            sent = self._reply()
            end = settle(lambda: stream.stats["heaps"], sent.heaps)
        finally:
            drops, stats = stream.kernel_drops(), stream.stats
            stream.stop()
            consumer.join()
        # Of heaps of one packet, each that is read comes to its chunk, or is counted here.
        present = stats["heaps"] - stats["rejected_heaps"] - stats["too_old_heaps"]
        return Trial(sent, end - sent.begin, sent.heaps - present, drops)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=7, help="times that each takes its turn [%(default)s]")
    parser.add_argument("--json", metavar="FILE", help="write the rows of the table of all benchmarks to a file")
    args = parser.parse_args()
    rng = np.random.default_rng(SEED)
    rates: dict[str, list[float]] = {SPEADRX: [], NUMBA: []}
    by_sender = 0
    with StreamLoopback() as ours, StreamLoopback(numba_callbacks.antenna_channelised) as theirs:
        searches = {SPEADRX: CriticalSearch(ours.trial), NUMBA: CriticalSearch(theirs.trial)}
        for _ in range(args.searches):
            for name in rng.permutation(list(searches)):
                found = searches[name].search()
                assert found is not None
                rates[name].append(found.heaps_per_second * CHANNELS * 64 * 8e-9)
                by_sender += found.limit == "sender"
                print(f"{name:8s} {rates[name][-1]:6.2f} Gb/s, limited by: {found.limit}", flush=True)
    what = f"UDP, critical rate, 8192 B (the sender was the limit in {by_sender} of {2 * args.searches})"
    entry = rows.row(what, "placement numba", "Gb/s", *rates.values())
    for line in rows.table([entry]):
        print("  ".join(line))
    rows.write(args.json, [entry])


if __name__ == "__main__":
    main()
