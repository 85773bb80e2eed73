"""Recording while receiving: rates, processor time and the interpreter's lock, against raw writes and other writers.

Packets come from memory, through spead2, so that nothing but the recording limits the rate. The network thread has the
last processor to itself; everything else is on the first. All ways take turns, in an order drawn again for each round,
and write the same bytes to a file system in memory:

- "received": chunks come out and go back. Nothing is written.
- "raw": one thread writes each chunk to a file with pwrite, from the same memory. Nothing is received.
- "recorded": `speadrx.Recorder`, which waits for the disk, so that all is written.
- "zarr-python" and "tensorstore": what a competent user would write around the receiver: one thread writes, or futures
  do, whole chunks, not compressed, and a chunk is recycled when it is written.

The processor time of a recording is that of the whole process, less what "received" took in the same round. For the
interpreter's lock, the processor time of all Python code is taken: of `Recorder.write`, of giving chunks back, of
`close`, and of the thread that counts what was written, but for waiting, in which the lock is released; less what
giving chunks back took in "received". The lock is held for no longer than that.

Then a process sends over UDP on this machine: at half of the highest rate without drops, to see how long the user's
loop waits for the next chunk with a recorder and without; and for 30 s at the highest, after which what was sent must
be in the recording, or have a named cause. Files are checked as they come, and removed: they would not fit into memory.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import platform
import queue
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import spead2
import spead2.recv

import speadrx
from speadrx import Axis, Layout, TimeAxis
from speadrx.receive.memory import allocate

TIME_ID, ANTENNA_ID, PAYLOAD_ID = 0x1600, 0x4101, 0x4300
HEAP_BYTES, ANTENNAS, STEP = 8192, 64, 4096
ADDRESS_BITS = 48
WINDOW, POOL = 2, 10
SEED = 20240611
RECEIVED, RAW, RECORDED, ZARR, TENSORSTORE = "received", "raw", "recorded", "zarr-python", "tensorstore"
#: What must hold of the medians: name, bound, and whether more is better.
BOUNDS = {
    "rate / slower of raw and received": (0.9, True),
    "processor per GB / raw": (1.1, False),
    "lock held, ms per GB": (5.0, False),
    "wait for the next chunk / without": (1.1, False),
}


def make_layout(batches: int) -> Layout:
    return Layout(
        name="bench",
        heap_bytes=HEAP_BYTES,
        time=TimeAxis(item=TIME_ID, step=STEP, batches=batches, tick_rate=1e9, epoch=1.7e9),
        axes=(Axis(name="antenna", item=ANTENNA_ID, size=ANTENNAS),),
        sources="antenna",
    )


def make_packets(layout: Layout, chunks: int) -> np.ndarray:
    """Make all packets of some chunks: one for each heap, whose payload repeats its number in its chunk."""
    heaps = chunks * layout.chunk_heaps
    index = np.arange(heaps, dtype=np.uint64)
    items = [
        (spead2.HEAP_CNT_ID, index + np.uint64(1)),
        (spead2.HEAP_LENGTH_ID, HEAP_BYTES),
        (spead2.PAYLOAD_OFFSET_ID, 0),
        (spead2.PAYLOAD_LENGTH_ID, HEAP_BYTES),
        (TIME_ID, index // np.uint64(ANTENNAS) * np.uint64(STEP)),
        (ANTENNA_ID, index % np.uint64(ANTENNAS)),
    ]
    packets = np.empty((heaps, 1 + len(items) + 1 + HEAP_BYTES // 8), np.uint64)
    header = struct.pack(">4BHH", 0x53, 4, 2, 6, 0, len(items) + 1)
    packets[:, 0] = np.frombuffer(header, np.uint64)
    for i, (item, value) in enumerate(items, 1):
        packets[:, i] = (np.uint64(1 << 63 | item << ADDRESS_BITS) + np.asarray(value, np.uint64)).byteswap()
    packets[:, len(items) + 1] = np.array(PAYLOAD_ID << ADDRESS_BITS, np.uint64).byteswap()
    packets[:, len(items) + 2 :] = (index % np.uint64(layout.chunk_heaps))[:, np.newaxis]
    return packets.reshape(-1).view(np.uint8)


def thread_clock(native_id: int) -> int:
    """The number of the clock of a thread's processor time: Linux, as pthread_getcpuclockid makes it."""
    return ~native_id << 3 | 6


@dataclass
class Result:
    """What one turn took: seconds by the clock, of all processors, and of Python code."""

    seconds: float
    processor: float
    python: float = 0.0
    close: float = 0.0


class Waiting:
    """A writer of files that measures the processor time of waiting, which does not hold the interpreter's lock."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        #: Of the thread that counts, and of the loop that waits for the disk.
        self.counting = self.writing = 0.0
        # So that nothing but the waiting takes longer.
        self.put, self.submit = writer.put, writer.submit

    def wait(self, seconds: float) -> Any:
        before = time.thread_time()
        done = self._writer.wait(seconds)
        self.counting += time.thread_time() - before
        return done

    def wait_for_room(self, patience: float) -> Any:
        before = time.thread_time()
        has_room = self._writer.wait_for_room(patience)
        self.writing += time.thread_time() - before
        return has_room

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


class Bench:
    """The packets, and the ways that take turns."""

    def __init__(self, batches: int, chunks: int, folder: pathlib.Path, processor: int) -> None:
        self.layout = make_layout(batches)
        self.chunks, self.folder, self.processor = chunks, folder, processor
        self.packets = make_packets(self.layout, chunks)
        self.bytes = chunks * self.layout.chunk_bytes
        #: Memory as chunks have it, for raw writes.
        self._memory = [
            (allocate(self.layout.chunk_bytes, -1), allocate(self.layout.chunk_heaps, -1)) for _ in range(POOL)
        ]
        self._numbers = itertools.count()
        self.ways: dict[str, Callable[[], Result]] = {
            RECEIVED: self.received,
            RAW: self.raw,
            RECORDED: self.recorded,
        }
        for name, module, way in ((ZARR, "zarr", self.by_zarr), (TENSORSTORE, "tensorstore", self.by_tensorstore)):
            try:
                __import__(module)
            except ImportError:
                print(f"{name} is not installed, and left out", file=sys.stderr)
            else:
                self.ways[name] = way

    @contextlib.contextmanager
    def receiver(self) -> Iterator[tuple[speadrx.Receiver, Callable[[], None]]]:
        """A receiver that has started, and what has the packets sent to it; it ends after them."""
        options = {"window": WINDOW, "chunks": POOL, "affinity": self.processor, "max_jump": 10**6}
        with speadrx.Receiver(self.layout, spead2.InprocQueue(), **options) as rx:  # type: ignore[arg-type]
            yield rx, lambda: rx.stream.add_buffer_reader(self.packets)

    @contextlib.contextmanager
    def path(self) -> Iterator[pathlib.Path]:
        path = self.folder / f"{next(self._numbers)}.zarr"
        yield path
        shutil.rmtree(path)

    def received(self) -> Result:
        with self.receiver() as (rx, begin):
            before, start = time.process_time(), time.perf_counter()
            python = 0.0
            begin()
            for chunk in rx:
                inside = time.thread_time()
                chunk.recycle()
                python += time.thread_time() - inside
            result = Result(time.perf_counter() - start, time.process_time() - before, python)
            assert rx.stats().present == self.chunks * self.layout.chunk_heaps
        return result

    def raw(self) -> Result:
        with self.path() as path:
            path.mkdir()
            before, start = time.process_time(), time.perf_counter()
            for number in range(self.chunks):
                for name, array in zip(("data", "present"), self._memory[number % POOL], strict=True):
                    file = os.open(path / f"{name}.{number}", os.O_WRONLY | os.O_CREAT, 0o644)
                    done = 0
                    while done < array.nbytes:
                        done += os.pwrite(file, memoryview(array)[done:], done)
                    os.close(file)
            return Result(time.perf_counter() - start, time.process_time() - before)

    def recorded(self) -> Result:
        with self.receiver() as (rx, begin), self.path() as path:
            recorder = speadrx.Recorder(rx, path, wait=True)
            output = recorder._output
            output._writer = waiting = Waiting(output._writer)  # type: ignore[assignment]
            counting = thread_clock(output._thread.native_id or 0)
            before, start = time.process_time(), time.perf_counter()
            counted, waited = time.clock_gettime(counting), waiting.counting
            python = 0.0
            begin()
            for chunk in rx:
                inside = time.thread_time()
                recorder.write(chunk)
                chunk.recycle()
                python += time.thread_time() - inside
            while recorder.stats().queued:
                time.sleep(1e-3)
            python += time.clock_gettime(counting) - counted - (waiting.counting - waited) - waiting.writing
            inside = time.thread_time()
            recorder.close()
            close = time.thread_time() - inside
            result = Result(time.perf_counter() - start, time.process_time() - before, python, close)
            stats = recorder.stats()
            assert (stats.chunks, stats.not_written, stats.finished) == (self.chunks, {}, True), stats
        return result

    def by_zarr(self) -> Result:
        import zarr

        layout = self.layout
        with self.receiver() as (rx, begin), self.path() as path:
            group = zarr.create_group(path)
            # Otherwise it would look at every byte for whether there is anything to store.
            quick: dict[str, Any] = {"config": {"write_empty_chunks": True}}
            shapes = [
                (self.chunks * layout.chunk_batches, ANTENNAS, HEAP_BYTES),
                (self.chunks * layout.chunk_batches, ANTENNAS),
            ]
            data, present = (
                group.create_array(
                    name, shape=shape, chunks=(layout.chunk_batches, *shape[1:]), dtype=dtype, compressors=None, **quick
                )
                for name, shape, dtype in zip(("data", "present"), shapes, ("uint8", "bool"), strict=True)
            )
            waiting: queue.Queue[Any] = queue.Queue(POOL - WINDOW - 1)

            def write() -> None:
                while (chunk := waiting.get()) is not None:
                    first = chunk.timestamp // STEP
                    place = slice(first, first + layout.chunk_batches)
                    data[place] = chunk.data
                    present[place] = chunk.present
                    chunk.recycle()

            thread = threading.Thread(target=write)
            before, start = time.process_time(), time.perf_counter()
            thread.start()
            begin()
            for chunk in rx:
                waiting.put(chunk)
            waiting.put(None)
            thread.join()
            return Result(time.perf_counter() - start, time.process_time() - before)

    def by_tensorstore(self) -> Result:
        import tensorstore

        layout = self.layout
        with self.receiver() as (rx, begin), self.path() as path:

            def make(name: str, dtype: str, *inner: int) -> Any:
                length = self.chunks * layout.chunk_batches
                metadata = {
                    "shape": [length, *inner],
                    "data_type": dtype,
                    "chunk_grid": {
                        "name": "regular",
                        "configuration": {"chunk_shape": [layout.chunk_batches, *inner]},
                    },
                    "codecs": [{"name": "bytes"}],
                }
                spec = {
                    "driver": "zarr3",
                    "kvstore": {"driver": "file", "path": str(path / name)},
                    "metadata": metadata,
                    "create": True,
                    # Otherwise it would look at every byte for whether there is anything to store.
                    "store_data_equal_to_fill_value": True,
                }
                # As Recorder, it does not ask the disk whether it is there.
                context = tensorstore.Context({"file_io_sync": False})
                return tensorstore.open(spec, context=context).result()

            data, present = make("data", "uint8", ANTENNAS, HEAP_BYTES), make("present", "bool", ANTENNAS)
            before, start = time.process_time(), time.perf_counter()
            begin()
            writing: list[Any] = []

            def finish(chunk: Any, futures: list[Any]) -> None:
                for future in futures:
                    future.result()
                chunk.recycle()

            for chunk in rx:
                first = chunk.timestamp // STEP
                place = slice(first, first + layout.chunk_batches)
                futures = [
                    array[place].write(values, can_reference_source_data_indefinitely=True)
                    for array, values in ((data, chunk.data), (present, chunk.present.view(bool)))
                ]
                writing.append((chunk, futures))
                if len(writing) > POOL - WINDOW - 2:
                    finish(*writing.pop(0))
            for one in writing:
                finish(*one)
            return Result(time.perf_counter() - start, time.process_time() - before)


class Summary:
    """Medians with quartiles, printed as a table and kept for JSON."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, Any]] = {}

    def add(self, name: str, samples: list[float]) -> float:
        low, median, high = (float(value) for value in np.percentile(samples, [25, 50, 75]))
        bound, more = BOUNDS.get(name, (None, True))
        entry: dict[str, Any] = {"median": median, "quartiles": [low, high], "repeats": len(samples)}
        if bound is not None:
            entry |= {"bound": bound, "within": median >= bound if more else median <= bound}
        self.values[name] = entry
        shown = "" if bound is None else f"{'>=' if more else '<='} {bound:g} {'yes' if entry['within'] else 'NO'}"
        print(f"{name:42s} {median:10.3f}   {low:9.3f} - {high:9.3f}   {shown}", flush=True)
        return median


def compare(bench: Bench, repeats: int, summary: Summary) -> None:
    """Let all ways take turns; print rates and ratios."""
    rng = np.random.default_rng(SEED)
    names = list(bench.ways)
    rounds: list[dict[str, Result]] = []
    for number in range(repeats + 1):
        results = {names[i]: bench.ways[names[i]]() for i in rng.permutation(len(names))}
        if number:  # the first is to warm up
            rounds.append(results)
    giga = bench.bytes / 1e9
    for name in names:
        summary.add(f"{name}, GB/s", [giga / results[name].seconds for results in rounds])
    summary.add(
        "rate / slower of raw and received",
        [max(r[RAW].seconds, r[RECEIVED].seconds) / r[RECORDED].seconds for r in rounds],
    )
    for name in names:
        if name not in (RECEIVED, RAW, RECORDED):
            summary.add(f"rate / {name}", [r[name].seconds / r[RECORDED].seconds for r in rounds])
    summary.add("raw, processor ms per GB", [1e3 * r[RAW].processor / giga for r in rounds])
    for name in names:
        if name not in (RECEIVED, RAW):
            own = [1e3 * (r[name].processor - r[RECEIVED].processor) / giga for r in rounds]
            summary.add(f"{name}, processor ms per GB", own)
    summary.add(
        "processor per GB / raw", [(r[RECORDED].processor - r[RECEIVED].processor) / r[RAW].processor for r in rounds]
    )
    held = [r[RECORDED].python - r[RECEIVED].python for r in rounds]
    closing = [r[RECORDED].close for r in rounds]
    summary.add("lock held, us per chunk", [1e6 * seconds / bench.chunks for seconds in held])
    summary.add("lock held by close, ms", [1e3 * seconds for seconds in closing])
    summary.add("lock held, ms per GB", [1e3 * (a + b) / giga for a, b in zip(held, closing, strict=True)])


class Loopback:
    """A receiver on a port of this machine, and a process that sends to it."""

    def __init__(self, layout: Layout, stack: contextlib.ExitStack) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.layout = layout
        self.receiver = stack.enter_context(
            speadrx.Receiver(layout, ("127.0.0.1", port), window=4, chunks=24, buffer=2**27, max_jump=10**6)
        )
        command = [sys.executable, str(pathlib.Path(__file__).with_name("soak.py")), "--sender", str(port)]
        self._process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(self._process.terminate)
        self.sent = 0

    def send(self, seconds: float, rate: float) -> float:
        """Have chunks sent at a rate; return the rate that was reached."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps((max(1, round(seconds * rate)), rate)), file=self._process.stdin, flush=True)
        heaps, took = json.loads(self._process.stdout.readline())
        self.sent += heaps
        return float(heaps / self.layout.chunk_heaps / took)

    def settle(self) -> int:
        """Wait until all that was sent has come or was dropped; return how many heaps the kernel dropped so far."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            drops = int(self.receiver.stats().kernel_drops)
            if int(self.receiver.ledger.snapshot().seen) + drops >= self.sent:
                break
            time.sleep(0.01)
        return drops

    def highest(self, step: float) -> float:
        """Find the highest rate without drops, in chunks a second."""
        rate = best = 16.0
        while True:
            before = self.settle()
            reached = self.send(step, rate)
            if self.settle() > before:
                break
            best = reached
            if reached < 0.9 * rate:
                break  # the sender cannot do more
            rate *= 1.5
        best *= 0.9
        while True:
            before = self.settle()
            self.send(3 * step, best)
            if self.settle() == before:
                return best
            best *= 0.9


def soak_layout() -> Layout:
    import soak

    return soak.LAYOUT


def waits(folder: pathlib.Path, repeats: int, step: float, summary: Summary) -> None:
    """How long the user's loop waits for the next chunk, at half of the highest rate."""
    with contextlib.ExitStack() as stack:
        loop = Loopback(soak_layout(), stack)
        taken: list[float] = []
        state: dict[str, Any] = {"recorder": None}

        def consume() -> None:
            last = time.perf_counter()
            for chunk in loop.receiver:
                taken.append(time.perf_counter() - last)
                if state["recorder"] is not None:
                    state["recorder"].write(chunk)
                chunk.recycle()
                last = time.perf_counter()

        def in_time() -> list[float]:
            taken.clear()
            loop.send(step, rate)
            loop.settle()
            return list(taken)

        thread = threading.Thread(target=consume)
        thread.start()
        stack.callback(thread.join)
        stack.callback(loop.receiver.stop)
        rate = 0.5 * loop.highest(step)
        ratios = []
        for number in range(repeats):
            medians = {}
            for is_recorded in (False, True) if number % 2 else (True, False):
                path = folder / f"waits{number}.zarr"
                recorder = speadrx.Recorder(loop.receiver, path) if is_recorded else None
                state["recorder"] = recorder
                medians[is_recorded] = statistics.median(in_time())
                state["recorder"] = None
                if recorder is not None:
                    recorder.close()
                    shutil.rmtree(path)
            ratios.append(medians[True] / medians[False])
        summary.add("wait for the next chunk / without", ratios)


class Checker:
    """Checks the files of a recording as they come, and removes those of data, which would fill the memory."""

    def __init__(self, path: pathlib.Path, layout: Layout) -> None:
        self._path, self._layout = path, layout
        self._payload = np.repeat(np.arange(layout.chunk_heaps, dtype=np.uint64), layout.heap_bytes // 8)
        self.present = self.chunks = self.compared = 0
        self.wrong: list[str] = []

    def check(self, number: int) -> None:
        """Count the heaps of a chunk that is there; compare one chunk of eight byte for byte, and the rest in part."""
        present_path = self._path / "present" / f"c.{number}.0"
        data_path = self._path / "data" / f"c.{number}.0.0"
        if not present_path.exists():
            return
        present = np.fromfile(present_path, np.uint8).astype(bool)
        data = np.memmap(data_path, np.uint64, "r").reshape(self._layout.chunk_heaps, -1)
        wanted = self._payload.reshape(data.shape)
        step = 1 if number % 8 == 0 else 512
        if not np.array_equal(data[present, ::step], wanted[present, ::step]):
            self.wrong.append(f"chunk {number}")
        self.present += int(present.sum())
        self.chunks += 1
        self.compared += step == 1
        del data
        data_path.unlink()


def run_at_highest_rate(folder: pathlib.Path, seconds: float, step: float) -> dict[str, Any]:
    """Record what comes at the highest rate without drops: all that was sent is there, or has a named cause."""
    layout = soak_layout()
    path = folder / "long.zarr"
    with contextlib.ExitStack() as stack:
        loop = Loopback(layout, stack)
        recorder = speadrx.Recorder(loop.receiver, path)
        checker = Checker(path, layout)
        first: list[int] = []
        numbers: queue.Queue[int | None] = queue.Queue()

        def consume() -> None:
            for chunk in recorder:
                if chunk.present.any() and not first:
                    first.append(chunk.timestamp)
                number = (chunk.timestamp - first[0]) // layout.chunk_timestamp_step if first else None
                chunk.recycle()
                if number is not None:
                    numbers.put(number)

        def check() -> None:
            waiting: list[int] = []
            while (number := numbers.get()) is not None:
                waiting.append(number)
                if len(waiting) > 64:  # long written, or never
                    checker.check(waiting.pop(0))
            recorder.close()
            for number in waiting:
                checker.check(number)

        threads = [threading.Thread(target=consume), threading.Thread(target=check)]
        for thread in threads:
            thread.start()
        rate = loop.highest(step)
        before, sent_before = loop.settle(), loop.sent
        reached = loop.send(seconds, rate)
        drops = loop.settle() - before
        loop.receiver.drain()
        threads[0].join()
        numbers.put(None)
        threads[1].join()
        stats, written = loop.receiver.stats(), recorder.stats()
        sent, held = loop.sent, loop.sent - sent_before
    causes = {
        "kernel_drops": stats.kernel_drops,
        "too_old": stats.too_old,
        "duplicates": stats.duplicates,
        "unfinished": stats.unfinished,
        "rejected": sum(stats.rejected.values()),
        "not_written": written.heaps_not_written,
    }
    residual = sent - checker.present - sum(causes.values())
    shutil.rmtree(path)
    return {
        "seconds": seconds,
        "gigabytes_per_second": reached * layout.chunk_bytes / 1e9,
        "heaps_sent": sent,
        "heaps_sent_at_that_rate": held,
        "kernel_drops_at_that_rate": drops,
        "present_in_the_recording": checker.present,
        "causes": causes,
        "chunks_not_written": written.not_written,
        "chunks_compared_byte_for_byte": checker.compared,
        "wrong": checker.wrong[:10],
        "residual": residual,
        "ok": residual == 0 and not checker.wrong and written.finished,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="times that each takes its turn [%(default)s]")
    parser.add_argument("--batches", type=int, default=64, help="batches in a chunk, of 512 KiB each [%(default)s]")
    parser.add_argument("--chunks", type=int, default=48, help="chunks in a turn [%(default)s]")
    parser.add_argument("--seconds", type=float, default=30, help="of the run at the highest rate [%(default)s]")
    parser.add_argument("--folder", default="/dev/shm", help="where to write [%(default)s]")
    parser.add_argument("--json", default="-", metavar="FILE", help="where the figures go [standard output]")
    parser.add_argument("--quick", action="store_true", help="see in some seconds whether it works")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a figure is out of its bound")
    args = parser.parse_args()
    repeats, chunks, seconds, step = args.repeats, args.chunks, args.seconds, 1.0
    if args.quick:
        repeats, chunks, seconds, step = 3, min(chunks, 12), 1.0, 0.2
    processors = sorted(os.sched_getaffinity(0))
    summary = Summary()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="speadrx-bench-") as name:
        folder = pathlib.Path(name)
        # The sender of the second part may run on any.
        os.sched_setaffinity(0, {processors[0]})
        bench = Bench(args.batches, chunks, folder, processors[-1])
        print(
            f"chunks of {bench.layout.chunk_bytes / 2**20:g} MiB, {bench.bytes / 1e9:.2f} GB in each of {repeats} turns"
        )
        print(f"{'':42s} {'median':>10s}   {'quartiles':>21s}   bound")
        compare(bench, repeats, summary)
        os.sched_setaffinity(0, processors)
        del bench
        waits(folder, repeats if args.quick else max(7, repeats // 2), step, summary)
        long = run_at_highest_rate(folder, seconds, step)
    print(
        f"\n{long['seconds']:g} s at {long['gigabytes_per_second']:.2f} GB/s: {long['heaps_sent']:,} heaps sent, "
        f"{long['present_in_the_recording']:,} in the recording, causes {long['causes']}, residual {long['residual']}"
    )
    machine = f"{platform.machine()}, {len(processors)} processors, Linux {platform.release()}"
    report = {"machine": machine, "speadrx": speadrx.__version__, "figures": summary.values, "long": long}
    text = json.dumps(report, indent=1)
    print(text) if args.json == "-" else pathlib.Path(args.json).write_text(text + "\n", "utf-8")
    within = long["ok"] and all(entry.get("within", True) for entry in summary.values.values())
    return 1 if args.check and not within else 0


if __name__ == "__main__":
    sys.exit(main())
