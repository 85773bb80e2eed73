"""Rate of `speadrx send` against spead2's own sender, which is given heaps that were made before.

Both take turns in one process and send to the same socket on 127.0.0.1, which nobody reads: the kernel drops what does
not fit, so only senders are measured. spead2 sends as the simulators of katgpucbf do: heaps made once, timestamps
updated in place, many at a time, round robin, without a rate. Ratios are of heaps per second, and of heaps per second
of the processor's time, in one round. Before that, the bytes of both are checked with `struct` alone. --json writes all
figures to a file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import spead2
import spead2.send

import speadrx
from speadrx.simulate import Faults, PcapSink, Simulator, UdpSink

HEAP_BYTES, SOURCES, STEP = 8192, 4, 8192
TIME_ID, SOURCE_ID, FREQUENCY_ID, PAYLOAD_ID = 0x1600, 0x4101, 0x4103, 0x4300
LAYOUT = speadrx.Layout(
    heap_bytes=HEAP_BYTES,
    payload_item=PAYLOAD_ID,
    time=speadrx.TimeAxis(item=TIME_ID, step=STEP, batches=256),
    axes=(speadrx.Axis(name="source", item=SOURCE_ID, size=SOURCES),),
    required_items=(FREQUENCY_ID,),
    sources="source",
)
FAULTS = Faults(loss=0.01, duplicate=0.01, reorder=20, garbage=0.01)
PACKET_FAULTS = Faults(loss=0.01, packet_loss=0.001, duplicate=0.01, reorder=5, packet_reorder=20, garbage=0.01)
#: What each packet has beside its payload: header, four items of the protocol, four more.
OVERHEAD = 72
CASES = {
    "8 KiB heaps in one packet": (8192, Faults()),
    "8 KiB heaps in one packet, faults": (8192, FAULTS),
    "8 KiB heaps in 1 KiB packets": (1024, Faults()),
    "8 KiB heaps in 1 KiB packets, faults": (1024, FAULTS),
    "8 KiB heaps in 1 KiB packets, of packets too": (1024, PACKET_FAULTS),
}
#: Smallest median ratio.
BOUND = 0.9
PREMADE = 512


@dataclass(frozen=True)
class Sent:
    heaps: int
    bytes: int
    seconds: float
    processor: float


class Premade:
    """spead2's own sender, and heaps that were made before."""

    def __init__(self, endpoint: tuple[str, int], packet_bytes: int, heaps: int) -> None:
        self.times = (np.arange(heaps) // SOURCES * STEP).astype(">u8")
        self.payload = np.random.default_rng(1).integers(0, 256, (heaps, HEAP_BYTES), np.uint8)
        config = spead2.send.StreamConfig(max_packet_size=packet_bytes, rate=0, max_heaps=heaps)
        self.stream = spead2.send.UdpStream(spead2.ThreadPool(), [endpoint], config)
        self.heaps = spead2.send.HeapReferenceList(
            [spead2.send.HeapReference(self._heap(number)) for number in range(heaps)]
        )
        self.n_heaps = heaps

    def _heap(self, number: int) -> spead2.send.Heap:
        heap = spead2.send.Heap(spead2.Flavour(4, 64, 48, 0))
        heap.repeat_pointers = True
        values = {
            TIME_ID: self.times[number : number + 1].view(np.uint8)[2:],
            SOURCE_ID: np.frombuffer((number % SOURCES).to_bytes(6, "big"), np.uint8),
            FREQUENCY_ID: np.zeros(6, np.uint8),
            PAYLOAD_ID: self.payload[number],
        }
        for item, value in values.items():
            heap.add_item(spead2.Item(item, "", "", value.shape, value.dtype, value=value))
        return heap

    def send(self, turns: int = 1) -> tuple[int, int]:
        sent = 0
        for _ in range(turns):
            sent += self.stream.send_heaps(self.heaps, spead2.send.GroupMode.ROUND_ROBIN)
            self.times += self.n_heaps // SOURCES * STEP
        return turns * self.n_heaps, sent


class Ours:
    """The simulator, as `speadrx send` has it."""

    def __init__(self, sink: UdpSink | PcapSink, packet_bytes: int, faults: Faults) -> None:
        self.simulator = Simulator(LAYOUT, faults=faults, max_packet_size=packet_bytes)
        self.sink = sink

    def send(self, batches: int) -> tuple[int, int]:
        truth = self.simulator.truth
        before = sum(truth.sent), truth.bytes
        self.simulator.send(self.sink, batches, stop=lambda: False)
        return sum(truth.sent) - before[0], truth.bytes - before[1]


def timed(send: Callable[[], tuple[int, int]]) -> Sent:
    start, processor = time.perf_counter(), time.process_time()
    heaps, n_bytes = send()
    return Sent(heaps, n_bytes, time.perf_counter() - start, time.process_time() - processor)


def read(packet: bytes) -> tuple[dict[int, int], bytes]:
    """The items of a packet of flavour 64-48 (values, and addresses), and its payload."""
    magic, version, id_bytes, address_bytes, _, n = struct.unpack_from(">4BHH", packet)
    assert (magic, version, id_bytes, address_bytes) == (0x53, 4, 2, 6)
    pointers = struct.unpack_from(f">{n}Q", packet, 8)
    return {pointer >> 48 & 0x7FFF: pointer & (2**48 - 1) for pointer in pointers}, packet[8 + 8 * n :]


def check(
    sock: socket.socket, packet_payload: int, send: Callable[[], object], payload_of: Callable[..., bytes]
) -> None:
    """Send a few heaps, and compare every byte."""
    drain(sock)
    send()
    heaps: dict[tuple[int, int], bytearray] = {}
    for packet in drain(sock):
        items, payload = read(packet)
        assert items[2] == HEAP_BYTES
        assert items[4] == len(payload) == packet_payload
        heap = heaps.setdefault((items[TIME_ID], items[SOURCE_ID]), bytearray(HEAP_BYTES))
        heap[items[3] : items[3] + len(payload)] = payload
    assert set(heaps) == {(batch * STEP, source) for batch in range(2) for source in range(SOURCES)}
    for (timestamp, source), heap in heaps.items():
        assert heap == payload_of(timestamp // STEP, source)


def drain(sock: socket.socket) -> list[bytes]:
    packets = []
    while True:
        try:
            packets.append(sock.recv(65536))
        except BlockingIOError:
            return packets


def check_both(sock: socket.socket, packet_payload: int) -> None:
    packet_bytes = packet_payload + OVERHEAD
    premade = Premade(sock.getsockname(), packet_bytes, 2 * SOURCES)
    check(sock, packet_payload, premade.send, lambda batch, source: premade.payload[batch * SOURCES + source].tobytes())
    with UdpSink([sock.getsockname()]) as sink:
        ours = Ours(sink, packet_bytes, Faults())
        check(
            sock, packet_payload, lambda: ours.send(2), lambda batch, source: ours.simulator.payload(batch, (source,))
        )
    drain(sock)


def compare(name: str, sock: socket.socket, rounds: int, heaps: int) -> dict[str, Any]:
    packet_payload, faults = CASES[name]
    check_both(sock, packet_payload)
    packet_bytes = packet_payload + OVERHEAD
    premade = Premade(sock.getsockname(), packet_bytes, PREMADE)
    with UdpSink([sock.getsockname()]) as sink:
        ours = Ours(sink, packet_bytes, faults)
        ways = {
            "spead2": lambda: premade.send(-(-heaps // PREMADE)),
            "speadrx": lambda: ours.send(-(-heaps // SOURCES)),
        }
        found: dict[str, list[Sent]] = {way: [] for way in ways}
        order = np.random.default_rng(2)
        for i in range(-1, rounds):  # the first warms up
            for way in order.permutation(list(ways)):
                sent = timed(ways[way])
                if i >= 0:
                    found[way].append(sent)
    result: dict[str, Any] = {"case": name}
    for way, runs in found.items():
        result[way] = {
            "gigabits_per_second": [run.bytes * 8e-9 / run.seconds for run in runs],
            "us_per_heap": [run.seconds / run.heaps * 1e6 for run in runs],
            "processor_us_per_heap": [run.processor / run.heaps * 1e6 for run in runs],
        }
    for ratio, figure in (("wall", "us_per_heap"), ("processor", "processor_us_per_heap")):
        both = np.divide(result["spead2"][figure], result["speadrx"][figure])
        result[f"{ratio}_ratio"] = np.percentile(both, [0, 50, 100]).tolist()
    return result


def captures(rounds: int, heaps: int) -> dict[str, Any]:
    """Packets per second into a capture file."""
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            with PcapSink(f"{folder}/a.pcap") as sink:
                sent = timed(lambda: Ours(sink, 1024 + OVERHEAD, FAULTS).send(heaps // SOURCES))
            rates.append(sent.heaps * 8 / sent.seconds)
    return {"case": "capture file", "packets_per_second": rates}


def show(result: dict[str, Any]) -> None:
    median = {way: {name: np.median(runs) for name, runs in result[way].items()} for way in ("spead2", "speadrx")}
    row = f"{result['case']:46s}"
    for way in ("spead2", "speadrx"):
        figures = median[way]
        row += (
            f"{figures['gigabits_per_second']:7.2f}{figures['us_per_heap']:8.2f}{figures['processor_us_per_heap']:7.2f}"
        )
    for ratio in ("wall", "processor"):
        low, middle, high = result[f"{ratio}_ratio"]
        row += f"  {middle:5.2f} ({low:.2f} - {high:.2f})"
    print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="times that each takes its turn [%(default)s]")
    parser.add_argument("--heaps", type=int, default=40000, help="heaps of a turn [%(default)s]")
    parser.add_argument("--json", metavar="FILE", help="write all figures to a file")
    parser.add_argument("--check", action="store_true", help=f"exit with 1 if a ratio is below {BOUND}")
    args = parser.parse_args()

    about = f"Python {platform.python_version()}, spead2 {spead2.__version__}, Linux {platform.release()}"
    print(f"{about}, {os.cpu_count()} processors; medians, ratios with least and most")
    print(
        f"{'':46s}{'spead2':>7s}{'us/heap':>8s}{'cpu':>7s}{'speadrx':>7s}{'us/heap':>8s}{'cpu':>7s}"
        f"  {'ratio by the wall':21s}{'by processor time'}"
    )
    results = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        for name in CASES:
            results.append(compare(name, sock, args.rounds, args.heaps))
            show(results[-1])
    results.append(captures(args.rounds, args.heaps))
    print(f"Into a capture file: {np.median(results[-1]['packets_per_second']):,.0f} packets of 1 KiB per second.")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"about": about, "results": results}, file, indent=1)
    if args.check and any(min(r["wall_ratio"][1], r["processor_ratio"][1]) < BOUND for r in results[:-1]):
        sys.exit("The bound is exceeded.")


if __name__ == "__main__":
    main()
    # spead2's threads may keep an interpreter from ending.
    sys.stdout.flush()
    os._exit(0)
