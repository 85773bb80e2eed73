"""What a fleet costs its coordinator, with 1 to 64 shares: calls, or time, and bytes for each chunk and share.

The coordinator is a process with the scheduler of Dask and the `Fleet`: it adds up reports, puts results in the order
of time, and serves the account. A few workers have the shares. These are simulated, since so many receivers would not
fit a machine: each sends a report that a receiver has sent, with its own name and the next number, again and again.
The shares take turns, as those of many machines do. All together send as many reports in a second as 64 shares do with
an interval of 0.5 s, however few they are: what differs is the number of shares alone.

Calls are those of functions, of Python and of its extensions, in all threads, but for those of the event loop itself:
how many reports fall into one turn of it is chance. Processor time depends on what else runs on the machine, by up to a
factor of two; their number hardly does.

The cost with nothing to do is measured before and after, and taken off. Bytes are those that the scheduler passes on to
the fleet, counted by the kernel; about as many come from the workers.

Run it with the extra ``dask``: ``python benches/bench_fleet.py``, or with ``--seconds`` for processor time.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import pickle
import platform
import socket
import statistics
import struct
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import distributed
from distributed import get_worker, secede

from speadrx import Axis, Layout, TimeAxis
from speadrx.fleet import Fleet, Plan, local_cluster
from speadrx.fleet import worker as worker_module
from speadrx.fleet.share import ShareRun, Work

SHARES = (1, 2, 4, 8, 16, 32, 64)
#: Largest ratio of the cost with most shares to the least of all that is called flat.
BOUND = 1.2
WORKERS = 2
SOURCES, BATCHES, STEP = 4, 4, 16
#: Chunks in a report, and bytes of the result of each.
CHUNKS, RESULT_BYTES = 5, 1024
#: Reports of all shares in a second.
RATE = 128
#: How long nothing is done.
IDLE_SECONDS = 5
TIME_ID, SOURCE_ID = 0x1600, 0x4101
#: Where the kernel says how many bytes came, in what it tells of a TCP connection.
TCP_INFO_BYTES_RECEIVED = 128

LAYOUT = Layout(
    name="bench",
    heap_bytes=8,
    time=TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES),
    axes=(Axis(name="antenna", item=SOURCE_ID, size=SOURCES),),
    sources="antenna",
)


def result(chunk: Any) -> bytes:
    """What the function of the plan returns for each chunk."""
    return bytes(RESULT_BYTES)


def packet(batch: int, source: int) -> bytes:
    """A heap in one packet."""
    items = [(1, batch * SOURCES + source + 1), (2, 8), (3, 0), (4, 8), (TIME_ID, batch * STEP), (SOURCE_ID, source)]
    pointers = [1 << 63 | item << 48 | value for item, value in items]
    return struct.pack(f">4BHH{len(items)}Q8x", 0x53, 4, 2, 6, 0, len(items), *pointers)


def template() -> dict[str, Any]:
    """A report that a receiver has sent of some chunks."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        endpoint = other.getsockname()
    reports: list[dict[str, Any]] = []
    work = Work("bench", "0", 1, LAYOUT, (endpoint,), {"window": 2}, result, None, 0.1)
    run = ShareRun(work, reports.append)
    thread = threading.Thread(target=run.run)
    thread.start()
    deadline = time.monotonic() + 60
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while not reports and time.monotonic() < deadline:
            time.sleep(0.01)
        for batch in range((CHUNKS + 2) * BATCHES):
            for source in range(SOURCES):
                sender.sendto(packet(batch, source), endpoint)
        while sum(len(report["results"]) for report in reports) < CHUNKS and time.monotonic() < deadline:
            time.sleep(0.01)
    run.end("enough")
    thread.join()
    (found, *_) = (report for report in reports if len(report["results"]) >= CHUNKS)
    return {**found, "results": found["results"][:CHUNKS]}


def simulated(like: bytes, go: str, n_shares: int, n_reports: int, interval: float, topic: str, work: Work) -> None:
    """A share that sends so many reports from the moment in a file on, and then waits until it is ended."""
    worker: Any = get_worker()
    plugin, key = worker.plugins[topic], worker.get_current_task()
    report = pickle.loads(like)
    run = SimulatedRun()
    plugin.begin(key, run)
    secede()

    def send(number: int, kind: str, rise: Any, results: Any) -> None:
        more = {"share": work.share, "incarnation": work.incarnation, "number": number, "kind": kind, "rise": rise}
        worker.log_event(topic, {**report, **more, "worker": worker.address, "results": results, "error": None})

    try:
        send(1, "started", {}, [])
        while not (begin := float(pathlib.Path(go).read_text("ascii") or 0)) and not run.ended.wait(0.1):
            pass
        for n in range(n_reports):
            if run.ended.wait(max(begin + (n + int(work.share) / n_shares) * interval - time.time(), 0)):
                break
            times = ((n * CHUNKS + i) * BATCHES * STEP for i in range(CHUNKS))
            results = [(timestamp, one) for timestamp, (_, one) in zip(times, report["results"], strict=True)]
            send(2 + n, "running", report["rise"], results)
        run.ended.wait()
        send(2 + n_reports, "ended", {}, [])
    finally:
        run.finished.set()
        plugin.over(key)


class SimulatedRun:
    """What the plugin of a worker ends."""

    def __init__(self) -> None:
        self.ended, self.finished = threading.Event(), threading.Event()

    def end(self, reason: str) -> None:
        self.ended.set()


class Cost(NamedTuple):
    """What one chunk of one share costs."""

    used: float
    bytes: float
    #: In each second with nothing to do.
    idle: float


def received(client: Any) -> int:
    """Bytes that have come from the scheduler."""
    connection = client.scheduler_comm.comm.stream.socket
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
    (count,) = struct.unpack_from("Q", info, TCP_INFO_BYTES_RECEIVED)
    return int(count)


#: Modules of the event loop.
_LOOP = ("asyncio", "tornado", "selectors", "threading")


class Calls:
    """Counts calls in all threads that start from now on."""

    def __init__(self) -> None:
        #: By thread: so none has to wait for another one.
        self._counts: defaultdict[int, int] = defaultdict(int)
        threading.setprofile(self._count)

    def _count(self, frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call") and not frame.f_globals.get("__name__", "").startswith(_LOOP):
            self._counts[threading.get_ident()] += 1

    def __call__(self) -> int:
        return sum(self._counts.copy().values())


def microseconds() -> float:
    """Time of the processors that this process has taken."""
    return 1e6 * time.process_time()


def measure(
    cluster: Any, like: bytes, n_shares: int, n_reports: int, interval: float, meter: Callable[[], float]
) -> Cost:
    """Run a fleet of so many shares."""

    def busy(what: Callable[[], Any]) -> float:
        before = meter()
        what()
        return meter() - before

    endpoints = tuple(f"127.0.0.1:{10000 + i}" for i in range(n_shares))
    # Simulated shares are silent before and after.
    plan = Plan(layout=LAYOUT, endpoints=endpoints, function=result, silent_seconds=1000)
    n_chunks = n_reports * CHUNKS
    with tempfile.NamedTemporaryFile("w", encoding="ascii") as go:
        worker_module.receive_share = functools.partial(  # type: ignore[assignment]
            simulated, like, go.name, n_shares, n_reports, interval
        )
        with Fleet(plan, cluster) as fleet:
            fleet.wait_until_receiving()
            times: list[int] = []
            all_there = threading.Event()

            def consume() -> None:
                for results in fleet:
                    times.append(len(results.results))
                    if len(times) == n_chunks:
                        all_there.set()

            consumer = threading.Thread(target=consume)
            consumer.start()
            idle = busy(lambda: time.sleep(IDLE_SECONDS)) / IDLE_SECONDS
            before = received(fleet._client)
            begin = time.time()

            def run() -> None:
                go.write(str(begin + 1))
                go.flush()
                if not all_there.wait(300):
                    raise TimeoutError(f"only {len(times)} of {n_chunks} times came")

            used = busy(run)
            seconds = time.time() - begin
            n_bytes = received(fleet._client) - before
            idle = (idle + busy(lambda: time.sleep(IDLE_SECONDS)) / IDLE_SECONDS) / 2
        consumer.join()
    if set(times) != {n_shares}:
        raise AssertionError(f"results are missing: {sorted(set(times))}")
    n = n_chunks * n_shares
    return Cost((used - idle * seconds) / n, n_bytes / n, idle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="turns, of which the median counts")
    parser.add_argument("--reports", type=int, default=1280, help="reports of all shares")
    parser.add_argument("--shares", type=int, nargs="+", default=SHARES, help="how many shares")
    parser.add_argument("--seconds", action="store_true", help="measure processor time instead of calls")
    args = parser.parse_args()
    unit, meter = ("us", microseconds) if args.seconds else ("calls", Calls())
    like = pickle.dumps(template())
    print(f"{os.cpu_count()} processors, CPython {platform.python_version()}, distributed {distributed.__version__}")
    print(f"A report of {CHUNKS} chunks with results of {RESULT_BYTES} bytes each: {len(like)} bytes, pickled")
    costs: dict[int, list[Cost]] = {n: [] for n in args.shares}
    with local_cluster(WORKERS, {"NIC": max(args.shares)}) as cluster:
        for _ in range(args.repeats):
            for n in args.shares:
                costs[n].append(measure(cluster, like, n, args.reports // n, n / RATE, meter))
    print(f"shares   {unit}/chunk (least to most)     bytes/chunk   {unit}/s with nothing to do")
    for n, found in costs.items():
        used, n_bytes, idle = (sorted(column) for column in zip(*found, strict=True))
        median = statistics.median
        print(
            f"{n:6}   {median(used):8.1f} ({used[0]:.1f} to {used[-1]:.1f})   {median(n_bytes):11.0f}   "
            f"{median(idle):.0f}"
        )
    for i, name in enumerate((unit, "bytes")):
        medians = {n: statistics.median(one[i] for one in found) for n, found in costs.items()}
        least = min(medians, key=lambda n: medians[n])
        ratio = medians[max(medians)] / medians[least]
        verdict = "flat" if ratio <= BOUND else f"NOT flat (bound {BOUND})"
        print(f"{name} with {max(medians)} shares to the least, which is with {least}: {ratio:.2f}, {verdict}")


if __name__ == "__main__":
    main()
