"""Receive for a long time at the highest rate without drops: memory must stay flat, and every heap be accounted for.

A process of its own sends heaps of one packet each over UDP on 127.0.0.1. First the rate is found, in short steps that
double it until the kernel drops packets or the sender cannot follow; then a part of it is held. The report on standard
output is JSON. The exit status is 0 if memory stayed flat and no heap is unaccounted for, 1 if not; SIGINT and SIGTERM
end the run early, with the same report and status.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import pathlib
import platform
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import numpy as np
import spead2.recv

sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests" / "support"))

import speadrx
from fault_reports import add_results
from speadrx import Axis, ChunkPool, Layout, TimeAxis

TIME_ID, ANTENNA_ID, PAYLOAD_ID = 0x1600, 0x4101, 0x4300
LAYOUT = Layout(
    name="soak",
    heap_bytes=8192,
    time=TimeAxis(item=TIME_ID, step=2**12, batches=8),
    axes=(Axis(name="antenna", item=ANTENNA_ID, size=64),),
    sources="antenna",
)
WINDOW, CHUNKS = 4, 16
SOCKET_BUFFER = 2**27
#: What is held of the highest rate that was found: other programs need a processor too, now and then.
MARGIN = 0.8
#: Chunks a second that the search begins with.
FIRST_RATE = 16.0
#: By how much memory may grow, after the first part of the run.
GROWTH, WARM_UP = 0.01, 0.1
ADDRESS_BITS = 48


class Sender:
    """Sends the heaps of chunk after chunk from packets made once, of which only timestamp and heap count change."""

    def __init__(self, port: int) -> None:
        heaps = LAYOUT.chunk_heaps
        index = np.arange(heaps)
        items = [
            (spead2.HEAP_CNT_ID, 0),
            (spead2.HEAP_LENGTH_ID, LAYOUT.heap_bytes),
            (spead2.PAYLOAD_OFFSET_ID, 0),
            (spead2.PAYLOAD_LENGTH_ID, LAYOUT.heap_bytes),
            (TIME_ID, 0),
            (ANTENNA_ID, 0),
        ]
        pointers = [1 << 63 | item << ADDRESS_BITS | value for item, value in items] + [PAYLOAD_ID << ADDRESS_BITS]
        header = struct.pack(f">4BHH{len(pointers)}Q", 0x53, 4, 2, 6, 0, len(pointers), *pointers)
        self._packets = np.zeros((heaps, len(header) + LAYOUT.heap_bytes), np.uint8)
        self._packets[:, : len(header)] = np.frombuffer(header, np.uint8)
        self._packets[:, len(header) :] = payload()
        fields = self._packets[:, 8 : len(header)].view(">u8")
        antenna, batch = index % 64, index // 64
        fields[:, 5] += antenna.astype(np.uint64)
        self._counts, self._times = fields[:, 0], fields[:, 4]
        self._first_count = self._counts[0] + index.astype(np.uint64)
        self._first_time = self._times[0] + (batch * 2**12).astype(np.uint64)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect(("127.0.0.1", port))
        self._libc = ctypes.CDLL(None, use_errno=True)
        # struct iovec, and struct mmsghdr of 64-bit Linux, of which only these fields are used.
        self._vectors = np.zeros((heaps, 2), np.uint64)
        self._vectors[:, 0] = self._packets.ctypes.data + index * self._packets.shape[1]
        self._vectors[:, 1] = self._packets.shape[1]
        self._messages = np.zeros((heaps, 8), np.uint64)
        self._messages[:, 2] = self._vectors.ctypes.data + index * 16
        self._messages[:, 3] = 1
        self._chunk = 0

    def send(self, chunks: int, rate: float) -> tuple[int, float]:
        """Send chunks at a rate; return how many heaps that were, and the seconds it took."""
        burst = 64
        begin = time.perf_counter()
        for i in range(chunks):
            self._counts[:] = self._first_count + np.uint64(self._chunk * LAYOUT.chunk_heaps % 2**40)
            self._times[:] = self._first_time + np.uint64(self._chunk * LAYOUT.chunk_timestamp_step % 2**48)
            self._chunk += 1
            for first in range(0, LAYOUT.chunk_heaps, burst):
                self._send_messages(first, burst)
                due = begin + (i + (first + burst) / LAYOUT.chunk_heaps) / rate
                if (wait := due - time.perf_counter()) > 1e-4:
                    time.sleep(wait)
        return chunks * LAYOUT.chunk_heaps, time.perf_counter() - begin

    def _send_messages(self, first: int, n: int) -> None:
        while n:
            address = self._messages.ctypes.data + first * 64
            sent = self._libc.sendmmsg(self._socket.fileno(), ctypes.c_void_p(address), n, 0)
            if sent < 0:
                error = ctypes.get_errno()
                raise OSError(error, os.strerror(error))
            first, n = first + sent, n - sent


def payload() -> np.ndarray:
    """Payload of each heap of any chunk: its index, in every word."""
    words = np.arange(LAYOUT.chunk_heaps, dtype=np.uint64)
    return np.repeat(words, LAYOUT.heap_bytes // 8).view(np.uint8).reshape(LAYOUT.chunk_heaps, -1)


def sender_main(port: int) -> None:
    """Carry out what comes on standard input: how many chunks to send, at what rate."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the receiver gets it too, and says when to end
    sender = Sender(port)
    for line in sys.stdin:
        chunks, rate = json.loads(line)
        print(json.dumps(sender.send(chunks, rate)), flush=True)


class Soak:
    """The receiver, and the process that sends to it."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stop = threading.Event()
        self.stream: Any = speadrx.make_stream(
            layout=LAYOUT,
            max_active_chunks=WINDOW,
            data_ringbuffer=spead2.recv.ChunkRingbuffer(CHUNKS),
            free_ringbuffer=spead2.recv.ChunkRingbuffer(CHUNKS),
            # Where the search for the rate loses more than a window, time goes on all the same.
            max_jump=1000,
        )
        stack.callback(self.stream.stop)
        ChunkPool(self.stream, CHUNKS)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        speadrx.add_reader(self.stream, src=[("127.0.0.1", port)], buffer=SOCKET_BUFFER)
        self._process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, __file__, "--sender", str(port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(self._process.terminate)
        self.iterator = speadrx.iter_chunks(self.stream)
        self.wrong: list[str] = []
        self._consumer = threading.Thread(target=self._consume)
        self._consumer.start()
        stack.callback(self._consumer.join)
        stack.callback(self.stream.stop)
        self.sent = 0

    def stop(self, signum: int, frame: FrameType | None) -> None:
        """End early: for a signal."""
        self._stop.set()

    @property
    def is_stopped(self) -> bool:
        return self._stop.is_set()

    def _consume(self) -> None:
        expected = payload()[:, :8]
        last = -1
        for chunk in self.iterator:
            with chunk:
                present = chunk.present.reshape(-1).astype(bool)
                heads = chunk.data.reshape(-1).view(np.uint8).reshape(LAYOUT.chunk_heaps, -1)[:, :8]
                if not np.array_equal(heads[present], expected[present]):
                    self.wrong.append(f"chunk at {chunk.timestamp} has wrong data")
                if chunk.timestamp <= last:
                    self.wrong.append(f"chunk at {chunk.timestamp} came after {last}")
                last = chunk.timestamp

    def send(self, seconds: float, rate: float) -> tuple[int, float]:
        """Have chunks sent at a rate; return heaps and seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps((max(1, round(seconds * rate)), rate)), file=self._process.stdin, flush=True)
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"the sender ended with status {self._process.wait()}")
        heaps, took = json.loads(line)
        self.sent += heaps
        return heaps, took

    def outstanding(self) -> int:
        """Heaps sent that neither the callback has seen nor the kernel dropped."""
        return self.sent - int(self.stream.ledger.snapshot().seen) - int(self.stream.kernel_drops())

    def settle(self, seconds: float = 20) -> None:
        """Wait until all heaps sent have come or were dropped."""
        deadline = time.monotonic() + seconds
        while self.outstanding() and time.monotonic() < deadline:
            time.sleep(0.01)

    def find_rate(self, step_seconds: float) -> tuple[float, float]:
        """Find the highest rate without drops, in chunks a second, and the one to hold."""
        rate, best = FIRST_RATE, FIRST_RATE / 2
        while not self.is_stopped:
            drops = self.stream.kernel_drops()
            heaps, took = self.send(step_seconds, rate)
            self.settle()
            reached = heaps / LAYOUT.chunk_heaps / took
            if self.stream.kernel_drops() > drops:
                break
            best = max(best, reached)
            if reached < 0.9 * rate:
                break  # the sender cannot do more
            rate *= 2
        held = best * MARGIN
        while not self.is_stopped:
            drops = self.stream.kernel_drops()
            self.send(2 * step_seconds, held)
            self.settle()
            if self.stream.kernel_drops() == drops:
                break
            held *= 0.8
        return best, held

    def finish(self) -> None:
        """Have all chunks handed over."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.settle()
        self.stream.drain()
        self._consumer.join(60)


def rss() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def is_good(residual: int, growth: float, wrong: Sequence[str]) -> bool:
    """Whether every heap is accounted for and right, and memory stayed flat."""
    return residual == 0 and growth <= GROWTH and not wrong


def hold(soak: Soak, rate: float, seconds: float) -> Iterator[tuple[int, float, int]]:
    """Hold a rate, or less once it costs packets; tell heaps, seconds and memory each second or so."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not soak.is_stopped:
        drops = soak.stream.kernel_drops()
        heaps, took = soak.send(min(1.0, seconds), rate)
        if soak.stream.kernel_drops() > drops:
            rate *= 0.9
            print(f"the kernel dropped packets: holding {rate:.1f} chunks/s", file=sys.stderr, flush=True)
        yield heaps, took, rss()


def run(seconds: float, step_seconds: float) -> dict[str, Any]:
    """Find the rate, hold it, and report."""
    with contextlib.ExitStack() as stack:
        soak = Soak(stack)
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, soak.stop))
        best, rate = soak.find_rate(step_seconds)
        drops_before = soak.stream.kernel_drops()
        heaps, took, memory = 0, 0.0, []
        cpu = time.process_time()
        print(f"holding {rate:.1f} chunks/s for {seconds:.0f} s", file=sys.stderr, flush=True)
        begin = time.monotonic()
        for step_heaps, step_took, step_memory in hold(soak, rate, seconds):
            heaps += step_heaps
            took += step_took
            memory.append(step_memory)
        elapsed = time.monotonic() - begin
        cpu = time.process_time() - cpu
        drops = soak.stream.kernel_drops() - drops_before
        soak.finish()
        too_old = int(soak.stream.stats["too_old_heaps"])
        ledger = soak.stream.ledger.snapshot()
        accounting = soak.iterator.accounting
        rejected = sum(ledger.rejected.values())
        all_drops = int(soak.stream.kernel_drops())
        residual = soak.sent - accounting.present - ledger.duplicates - too_old - rejected - all_drops
        warm = memory[min(int(len(memory) * WARM_UP), len(memory) - 1) :] or [rss()]
        growth = max(warm) / warm[0] - 1
        return {
            "machine": f"{platform.machine()}, {os.cpu_count()} processors, Linux {platform.release()}",
            "seconds": round(elapsed, 1),
            "highest_rate_gbps": round(best * LAYOUT.chunk_bytes * 8e-9, 2),
            "gbps": round(heaps * LAYOUT.heap_bytes * 8e-9 / took, 2) if took else 0.0,
            "heaps_per_second": round(heaps / took) if took else 0,
            "chunks_per_second": round(heaps / LAYOUT.chunk_heaps / took, 1) if took else 0.0,
            "receiver_processors": round(cpu / elapsed, 2) if elapsed else 0.0,
            "heaps_sent": soak.sent,
            "present": accounting.present,
            "missing": accounting.missing,
            "rejected": rejected,
            "too_old": too_old,
            "duplicates": ledger.duplicates,
            "kernel_drops": drops,
            "kernel_drops_of_search": all_drops - drops,
            "residual": residual,
            "rss_start": warm[0],
            "rss_end": warm[-1],
            "rss_max": max(warm),
            "rss_growth": round(growth, 5),
            "ended_by_signal": soak.is_stopped,
            "wrong": soak.wrong[:10],
            "ok": is_good(residual, growth, soak.wrong),
        }


def fault_result(report: dict[str, Any]) -> dict[str, Any]:
    """What the table of faults wants to know."""
    note = f"{report['gbps']} Gb/s for {report['seconds']:.0f} s, memory grew by {100 * report['rss_growth']:.2f} %"
    result = {
        "sent": report["heaps_sent"],
        "lost": report["heaps_sent"] - report["present"],
        "residual": report["residual"],
        "note": note,
    }
    return {"rows": [23], "outcome": "passed" if report["ok"] else "failed", "reports": [result]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="how long to hold the rate (default: %(default)s)")
    parser.add_argument("--step-seconds", type=float, default=1, help="of the search for it (default: %(default)s)")
    parser.add_argument("--fault-results", metavar="PATH", help="add the result to this file, for the table of faults")
    parser.add_argument("--sender", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.sender is not None:
        sender_main(args.sender)
        return 0
    report = run(args.seconds, args.step_seconds)
    print(json.dumps(report, indent=2))
    if args.fault_results is not None:
        add_results(pathlib.Path(args.fault_results), {"benches/soak.py::soak": fault_result(report)})
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
