"""`speadrx demo`: receive from a simulated digitiser array with known faults, and account for every heap."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import spead2.recv
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from speadrx.accounts.account import Account
from speadrx.layout.base import STAT_PREFIX
from speadrx.layout.declaration import Axis, Layout, TimeAxis
from speadrx.metrics.server import MetricsServer
from speadrx.metrics.stats import StatsCollector
from speadrx.receive.chunk import ChunkPool
from speadrx.receive.factory import make_stream
from speadrx.receive.iterate import iter_chunks
from speadrx.receive.readers import add_reader
from speadrx.receive.stream import ChunkRingStream
from speadrx.simulate import GARBAGE_KINDS, Faults, Simulator, Truth, UdpSink

from . import quantities
from .interrupt import interruptible, start_python

#: Four digitisers with two polarisations. A heap has 4096 samples of 10 bits, and is sent in one packet.
LAYOUT = Layout(
    name="demo",
    heap_bytes=5120,
    time=TimeAxis(item=0x1600, step=4096, batches=64),
    axes=(
        Axis(name="antenna", item=0x3101, shift=1, size=4),
        Axis(name="pol", item=0x3101, mask=1, size=2),
    ),
    sources="antenna",
    source_labels=("m000", "m001", "m002", "m003"),
    samples_per_heap=4096,
)

WINDOW_CHUNKS = 4
POOL_CHUNKS = 24
FIRST_TIMESTAMP = 2**20 * LAYOUT.chunk_timestamp_step
MAX_PACKET_BYTES = 9000  # so that a heap fits in one packet

FAULTS = Faults(
    loss=0.01,
    reorder=200,
    # Later than the window, so that they are too old when they come.
    late=0.0005,
    late_by=(WINDOW_CHUNKS + 2) * LAYOUT.chunk_heaps,
    duplicate=0.005,
    garbage=0.005,
    garbage_kinds=tuple(kind for kind in GARBAGE_KINDS if kind != "noise"),
)
# Nobody counts packets that do not decode. They are sent before everything else, when no buffer can be full. So the
# kernel drops none of them, and both numbers are exact.
NOISE = Faults(loss=1, garbage=1, garbage_kinds=("noise",))
NOISE_BATCHES = 2

STATS = ("too_old_heaps", *LAYOUT.stream_stats)
QUIET_SECONDS = 0.5
GIVE_UP_SECONDS = 5.0


@dataclass
class SenderReport:
    """What the sender knows at the end."""

    truth: Truth
    noise: int  # heaps of one packet each, which do not decode
    seconds: float

    @property
    def copies(self) -> int:
        """All heaps sent."""
        return self.truth.copies + self.noise


@dataclass
class ReceiverReport:
    """What the receiver knows at the end."""

    labels: tuple[str, ...]
    present: np.ndarray
    missing: np.ndarray
    duplicates: np.ndarray
    scraped: dict[str, int]  # from /metrics, by statistic
    seen: int
    packets: int
    kernel_drops: int
    wrong_heaps: int


def _simulator(seed: int, faults: Faults = FAULTS) -> Simulator:
    return Simulator(
        LAYOUT, seed=seed, first_timestamp=FIRST_TIMESTAMP, faults=faults, max_packet_size=MAX_PACKET_BYTES
    )


def _send(port: int, seconds: float, rate: float, seed: int) -> None:
    """Send until the time is up, or standard input has something or ends. Then report on standard output."""
    started = time.monotonic()

    def stop() -> bool:
        return time.monotonic() - started >= seconds or bool(select.select([sys.stdin], [], [], 0)[0])

    with UdpSink([("127.0.0.1", port)]) as sink:
        noise = _simulator(seed, NOISE).send(sink, NOISE_BATCHES)
        truth = _simulator(seed).send(sink, rate=rate, stop=stop)
    report = json.dumps([dataclasses.asdict(truth), noise.copies, time.monotonic() - started])
    with contextlib.suppress(BrokenPipeError):  # the receiver has ended
        os.write(sys.stdout.fileno(), report.encode())


def _start_sender(port: int, seconds: float, rate: float, seed: int) -> subprocess.Popen[bytes]:
    """Run `_send` in another process, so that it does not share the interpreter's lock with the receiver."""
    return start_python(f"from {__name__} import _send; _send({port}, {seconds}, {rate}, {seed})")


def _report(sender: subprocess.Popen[bytes], interrupted: threading.Event) -> SenderReport:
    """Wait for the report of the sender. If the demo is interrupted, stop the sender."""
    assert sender.stdin is not None
    assert sender.stdout is not None
    while not select.select([sender.stdout], [], [], 0.05)[0]:
        if interrupted.is_set():
            sender.stdin.close()
    try:
        truth, noise, seconds = json.load(sender.stdout)
    except json.JSONDecodeError:
        raise click.ClickException("the sender died before it had finished, so there is no account") from None
    return SenderReport(Truth(**truth), noise, seconds)


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _drain(stream: ChunkRingStream, decodable_packets: int) -> None:
    """Wait until the stream has read everything that was sent, or nothing more comes."""

    def progress() -> tuple[int, int]:
        return stream.stats["packets"], stream.kernel_drops()

    before = progress()
    quiet_since = time.monotonic()
    # If packets were dropped, nobody knows how many are still to come, so silence must be enough. Without drops, wait.
    while before[0] < decodable_packets and time.monotonic() - quiet_since < (
        QUIET_SECONDS if before[1] else GIVE_UP_SECONDS
    ):
        time.sleep(0.01)
        now = progress()
        if now != before:
            before, quiet_since = now, time.monotonic()


def _consume(chunks: Any, simulator: Simulator) -> int:
    """Take all chunks; return how many heaps differ from what was sent."""
    wrong = 0
    for chunk in chunks:
        with chunk:
            present = chunk.present.reshape(LAYOUT.present_shape).astype(bool)
            differs = LAYOUT.view(chunk.data) != simulator.chunk_data(chunk.timestamp)
            wrong += int(np.count_nonzero(differs.any(axis=-1) & present))
    return wrong


def _scrape(port: int) -> dict[str, int]:
    """Read the statistics that /metrics serves."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=GIVE_UP_SECONDS) as reply:
        text = reply.read().decode()
    samples = {
        sample.name: int(sample.value) for family in text_string_to_metric_families(text) for sample in family.samples
    }
    return {name: samples[f"speadrx_{name.removeprefix(STAT_PREFIX)}_total"] for name in STATS}


@contextlib.contextmanager
def _metrics(stream: ChunkRingStream) -> Iterator[int]:
    """Serve the statistics of the stream; yields the port."""
    registry = CollectorRegistry()
    collector = StatsCollector(
        {name: (name.removeprefix(STAT_PREFIX), f"Heaps counted as {name}") for name in STATS},
        namespace="speadrx",
        registry=registry,
    )
    collector.add_stream(stream)
    with contextlib.closing(MetricsServer(registry, 0, "127.0.0.1")) as server:
        yield server.port


def _run(
    seconds: float, rate: float, seed: int, announce: Callable[[int, int], None]
) -> tuple[SenderReport, ReceiverReport]:
    """Send and receive; return what both sides know."""
    stream = make_stream(
        layout=LAYOUT,
        max_active_chunks=WINDOW_CHUNKS,
        data_ringbuffer=spead2.recv.ChunkRingbuffer(POOL_CHUNKS),
        free_ringbuffer=spead2.recv.ChunkRingbuffer(POOL_CHUNKS),
        stop_on_stop_item=False,
    )
    with contextlib.ExitStack() as stack:
        stack.callback(stream.stop)
        interrupted = stack.enter_context(interruptible())
        ChunkPool(stream, POOL_CHUNKS)
        port = _free_port()
        add_reader(stream, src=[("127.0.0.1", port)])
        # When a queue that the stream reads is stopped, the stream ends as if its data had ended, and completes the
        # chunks in its window. stream.stop() would throw them away.
        end = spead2.InprocQueue()
        stream.add_inproc_reader(end)
        chunks = iter_chunks(stream)
        consumer = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
        wrong_heaps = consumer.submit(_consume, chunks, _simulator(seed))
        stack.callback(end.stop)
        metrics_port = stack.enter_context(_metrics(stream))
        with _start_sender(port, seconds, rate, seed) as sender:  # at the end, closes its input and waits for it
            announce(port, metrics_port)
            sent = _report(sender, interrupted)
        _drain(stream, sent.truth.decodable_packets)
        end.stop()
        wrong = wrong_heaps.result()
        return sent, _received(stream, chunks.accounting, _scrape(metrics_port), wrong)


def _received(stream: ChunkRingStream, account: Account, scraped: dict[str, int], wrong: int) -> ReceiverReport:
    assert stream.ledger is not None  # the layout is declarative
    ledger = stream.ledger.snapshot()
    return ReceiverReport(
        labels=ledger.source_labels,
        present=account.present_by_source,
        missing=account.missing_by_source,
        duplicates=ledger.duplicates_by_source,
        scraped=scraped,
        seen=ledger.seen,
        packets=stream.stats["packets"],
        kernel_drops=stream.kernel_drops(),
        wrong_heaps=wrong,
    )


def _accounts(sent: SenderReport, received: ReceiverReport) -> dict[str, int]:
    """Say what became of the heaps that were sent.

    Each heap here has one packet, so none stays unfinished.
    """
    # Of heaps without a length, or with length 0, spead2 counts the packets, and nothing more. Those that the kernel
    # dropped are among its drops.
    unsized = min(received.packets - received.seen, sum(sent.truth.unseen.values()))
    too_old = received.scraped["too_old_heaps"]
    return {
        "present": int(received.present.sum()),
        "duplicates": int(received.duplicates.sum()),
        "too old": too_old,
        "rejected": sum(received.scraped.values()) - too_old,
        "unseen": sent.noise + unsized,
        "dropped": received.kernel_drops,
    }


def _sources_table(sent: SenderReport, received: ReceiverReport) -> Table:
    table = Table(title="Heaps by source", title_justify="left")
    table.add_column("antenna")
    for name in ("withheld", "sent", "present", "missing", "duplicates"):
        table.add_column(name, justify="right")
    columns = (sent.truth.lost, sent.truth.sent, received.present, received.missing, received.duplicates)
    for label, *numbers in zip(received.labels, *columns, strict=True):
        table.add_row(label, *(f"{number:,}" for number in numbers))
    table.add_section()
    table.add_row("all", *(f"{sum(map(int, column)):,}" for column in columns))
    return table


def _others_table(sent: SenderReport, received: ReceiverReport) -> Table:
    table = Table(title="Other heaps by reason", title_justify="left")
    table.add_column("reason")
    table.add_column("sent", justify="right")
    table.add_column("counted", justify="right")
    table.add_column("by")
    for name in LAYOUT.stream_stats:
        reason = name.removeprefix(STAT_PREFIX)
        garbage = sent.truth.rejected.get(reason, 0)
        table.add_row(f"rejected: {reason}", f"{garbage:,}", f"{received.scraped[name]:,}", "/metrics")
    table.add_row("too old", "", f"{received.scraped['too_old_heaps']:,}", "/metrics")
    unsized = sum(sent.truth.unseen.values())
    table.add_row("unseen: no length", f"{unsized:,}", f"{received.packets - received.seen:,}", "spead2")
    table.add_row("unseen: not SPEAD", f"{sent.noise:,}", "", "nobody")
    table.add_row("kernel drops", "", f"{received.kernel_drops:,}", "the socket")
    return table


def _summary(sent: SenderReport, received: ReceiverReport, accounts: dict[str, int], residual: int) -> Iterator[str]:
    rate = sent.truth.copies / sent.seconds
    gigabits = sent.truth.bytes * 8e-9 / sent.seconds
    yield f"Rates: {rate:,.0f} heaps/s, {gigabits:.2f} Gb/s for {sent.seconds:.1f} s."
    if received.wrong_heaps:
        yield f"WRONG DATA in {received.wrong_heaps:,} of the {accounts['present']:,} heaps present."
    else:
        yield f"Data: every byte of the {accounts['present']:,} heaps present is as sent."
    sums = " + ".join(f"{number:,} {name}" for name, number in accounts.items())
    yield f"Accounts: {sent.copies:,} sent = {sums}."
    verdict = "every heap is accounted for" if residual == 0 else "SOME HEAPS ARE NOT ACCOUNTED FOR"
    yield f"Residual: {residual:,} ({verdict})."
    yield (
        "\nNext: README.md has a receiver of five lines, ARCHITECTURE.md says how it works,\n"
        "and 'speadrx send' and speadrx.simulate send heaps of your own layout."
    )


@click.command()
@click.option(
    "--seconds",
    type=quantities.time(0.1, 8.0),
    default="4s",
    show_default=True,
    help="How long to send.",
)
@click.option(
    "--rate",
    type=quantities.rate(0.01, 100.0),
    default="0.8Gb/s",
    show_default=True,
    help="Rate to send at. If it is too high for this machine, the kernel drops packets.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the data and the faults.")
@click.pass_context
def demo(context: click.Context, seconds: float, rate: float, seed: int) -> None:
    """Receive from a simulated array, and account for every heap.

    Four simulated digitisers, each with two polarisations, send heaps over UDP to this machine. Some heaps
    are lost, reordered, duplicated, much too late or garbage, and the sender knows how many. The receiver
    must find out what became of every heap. The exit code is 1 if some heaps are not accounted for (the
    residual is not 0). Ctrl-C ends the demo early, with an account of what was sent until then.
    """
    console = Console(highlight=False)

    def announce(port: int, metrics_port: int) -> None:
        console.print(
            f"Sending: 4 antennas, 2 polarisations, {rate:g} Gb/s for {seconds:g} s\n"
            f"Receiving: UDP, 127.0.0.1:{port}\n"
            f"Metrics: http://127.0.0.1:{metrics_port}/metrics\n"
        )

    sent, received = _run(seconds, rate * 1e9 / 8, seed, announce)
    accounts = _accounts(sent, received)
    residual = sent.copies - sum(accounts.values())
    console.print(_sources_table(sent, received))
    console.print(_others_table(sent, received))
    for text in _summary(sent, received, accounts, residual):
        console.print(text)
    context.exit(1 if residual or received.wrong_heaps else 0)
