"""`speadrx send`: simulate the senders of any layout, at an exact rate and with known faults."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import click
import spead2
import spead2.send
from rich.console import Console
from rich.table import Table

from speadrx._words import counted
from speadrx.layout.base import DeclarativeLayout
from speadrx.simulate import (
    GARBAGE_KINDS,
    Faults,
    PcapSink,
    Simulator,
    Truth,
    UdpSink,
    VirtualClock,
    WallClock,
)
from speadrx.simulate.pacing import Clock
from speadrx.simulate.sinks import BURST_BYTES

from . import quantities
from .interrupt import interruptible
from .options import all_sources_option, layout_options
from .parameters import (
    UnusableError,
    describe,
    force_option,
    naming_options,
    read_assignments,
    read_endpoints,
    usable_file,
)
from .progress import PolledProgress
from .tables import Format, Rows, printable, table_of, tally

#: A rate that is off by more than this fraction gives a warning.
RATE_TOLERANCE = 0.01
#: Late heaps are late by so many chunks if nothing else is given. The default window has less.
LATE_CHUNKS = 20
_ADDRESS_BITS = (40, 48, 56)
_COUNT = click.IntRange(min=0)


@dataclass
class SendResult:
    """What was sent, and how fast."""

    truth: Truth
    seconds: float
    late: float  # seconds by which the sender fell behind

    @property
    def gigabits_per_second(self) -> float | None:
        """Rate of the packets, including SPEAD headers, but not the headers of UDP and below."""
        return self.truth.bytes * 8e-9 / self.seconds if self.seconds else None


def truth_report(truth: Truth, labels: tuple[str, ...]) -> dict[str, Any]:
    """The truth as plain values. Counts by source are by label."""
    by_source = {
        name: dict(zip(labels, getattr(truth, name), strict=True))
        for name in ("sent", "lost", "duplicated", "incomplete", "complete")
    }
    others = ("rejected", "unseen", "packets", "decodable_packets", "bytes", "copies")
    return by_source | {name: getattr(truth, name) for name in others}


def _summary(sent: SendResult, layout: DeclarativeLayout, settings: dict[str, Any]) -> dict[str, Any]:
    """The document that `--json` prints."""
    seconds = sent.seconds
    return {
        "layout": layout.declaration.name,
        **settings,
        "seconds": seconds,
        "seconds_behind": sent.late,
        "gigabits_per_second": sent.gigabits_per_second,
        "packets_per_second": sent.truth.packets / seconds if seconds else None,
        "heaps_per_second": sent.truth.copies / seconds if seconds else None,
        "truth": truth_report(sent.truth, layout.source_labels),
    }


def _show(
    console: Console, sent: SendResult, layout: DeclarativeLayout, where: str, pace: str, *, all_sources: bool
) -> None:
    truth = sent.truth

    def make(rows: Any, number: Format) -> Table:
        table = table_of([layout.declaration.sources or "source"], ("sent", "lost", "duplicated", "incomplete"))
        for label, *numbers in rows:
            table.add_row(printable(label), *map(number, numbers))
        return table

    columns = (truth.sent, truth.lost, truth.duplicated, truth.incomplete)
    rows = sorted(zip(layout.source_labels, *columns, strict=True), key=lambda row: row[2] + row[4], reverse=True)
    console.print(Rows(rows, "sources", make, room=None if all_sources else max(console.height - 6, 4)))
    for text in (
        *tally("Garbage that receivers reject", truth.rejected),
        *tally("Garbage that receivers never see", truth.unseen),
    ):
        console.print(text)
    rate = sent.gigabits_per_second
    amount = f"{counted(truth.copies, 'heap')} in {counted(truth.packets, 'packet')}, {truth.bytes / 1e6:,.1f} MB"
    console.print(printable(f"Sent to {where}: {amount}."))
    console.print(f"Rate: {'-' if rate is None else f'{rate:.4g}'} Gb/s{pace}, for {sent.seconds:.2f} s.")


def _run(
    simulator: Simulator,
    sinks: Sequence[UdpSink | PcapSink],
    clock: WallClock | VirtualClock | None,
    batches: int | None,
    seconds: float | None,
    pace: dict[str, float | None],
) -> SendResult:
    """Send until enough is sent, or the command is interrupted."""
    now = clock.now if isinstance(clock, VirtualClock) else time.perf_counter
    truth = simulator.truth
    start = now()
    with interruptible() as interrupted:

        def stop() -> bool:
            return interrupted.is_set() or (seconds is not None and now() - start >= seconds)

        def poll() -> tuple[float, str]:
            spent = now() - start
            made = sum(truth.sent) - sum(truth.duplicated) + sum(truth.lost)
            text = f"{counted(truth.copies, 'heap')}, {truth.bytes * 8e-9 / max(spent, 1e-9):.3g} Gb/s"
            return (spent if seconds is not None else made), text

        total = batches * len(simulator.indices) if seconds is None and batches is not None else seconds
        with PolledProgress(total, poll):
            simulator.send(sinks, batches, stop=stop, clock=clock, **pace)
    return SendResult(truth, now() - start, clock.lost if isinstance(clock, WallClock) else 0.0)


@contextlib.contextmanager
def _open_sinks(
    endpoints: list[tuple[str, int]],
    pcap: str | None,
    clock: Clock | None,
    interface: str | None,
    ttl: int,
    threads: int,
) -> Iterator[Sequence[UdpSink | PcapSink]]:
    """Open a capture file, or a socket for each thread: together they send no more at a time than one."""
    with contextlib.ExitStack() as stack:
        if pcap is None:
            burst = BURST_BYTES // threads
            made = (UdpSink(endpoints, interface=interface, ttl=ttl, burst_bytes=burst) for _ in range(threads))
            yield [stack.enter_context(sink) for sink in made]
            return
        with usable_file(pcap, "--pcap"):
            sink = PcapSink(pcap, endpoint=endpoints, clock=clock) if endpoints else PcapSink(pcap, clock=clock)
        yield [stack.enter_context(sink)]


def _open_truth(path: str | None) -> contextlib.AbstractContextManager[IO[str] | None]:
    if path is None:
        return contextlib.nullcontext()
    with usable_file(path, "--truth"):
        return click.open_file(path, "w")


def _write_truth(
    truth_file: contextlib.AbstractContextManager[IO[str] | None],
    path: str | None,
    sent: SendResult,
    layout: DeclarativeLayout,
) -> None:
    with usable_file(path or "", "--truth"), truth_file as file:
        if file is not None:
            file.write(json.dumps(truth_report(sent.truth, layout.source_labels)) + "\n")


def _check(
    layout: DeclarativeLayout,
    endpoints: list[tuple[str, int]],
    pcap: str | None,
    amounts: dict[str, float | None],
    rate: float | None,
    real_time: bool,
    threads: int,
) -> None:
    """Refuse options that contradict each other, and files without an end."""
    if not endpoints and pcap is None:
        raise click.UsageError("where to send? Wanted DEST, such as 239.1.2.3+3:7148, or --pcap FILE")
    given = [name for name, value in amounts.items() if value is not None]
    if len(given) > 1:
        raise click.UsageError(f"{given[0]} and {given[1]} both say how much to send: give only one of them")
    if pcap is not None and not given:
        raise click.UsageError("--pcap needs --batches, --chunks or --seconds, which say how much to write")
    if pcap is not None and threads > 1:
        raise click.UsageError("--threads is for the network: a capture file is written by one")
    if rate is not None and real_time:
        raise click.UsageError("--rate and --real-time both say how fast to send: give only one of them")
    if real_time and layout.declaration.time.tick_rate is None:
        raise click.UsageError("--real-time needs the layout's time.tick_rate: give it with --set time.tick_rate=HZ")
    if pcap is not None and amounts["--seconds"] is not None and rate is None and not real_time:
        raise click.UsageError("--seconds with --pcap needs --rate or --real-time, which say what a second holds")


def _faults(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `Faults`."""
    options: list[tuple[str, Any, Any, str]] = [
        ("--loss", quantities.FRACTION, "0%", "Probability that a heap is not sent at all."),
        ("--packet-loss", quantities.FRACTION, "0%", "Probability that a packet is not sent."),
        ("--reorder", _COUNT, 0, "Up to so many later heaps may overtake a heap."),
        ("--packet-reorder", _COUNT, 0, "Up to so many later packets may overtake a packet."),
        (
            "--late",
            quantities.FRACTION,
            0.0,
            "Probability that a heap is sent later, by --late-by heaps.",
        ),
        (
            "--late-by",
            _COUNT,
            None,
            f"How many heaps later.  [default: the heaps of {LATE_CHUNKS} chunks, which is too late]",
        ),
        ("--duplicate", quantities.FRACTION, "0%", "Probability that a heap is sent twice."),
        ("--garbage", quantities.FRACTION, "0%", "Probability that a garbage heap is sent before a heap."),
    ]
    kinds = click.option(
        "--garbage-kind",
        "garbage_kinds",
        type=click.Choice(list(GARBAGE_KINDS)),
        multiple=True,
        help="Kind of garbage. May be repeated.  [default: all kinds that the layout can have, except 'stop']",
    )
    command = kinds(command)
    for name, kind, default, text in reversed(options):
        command = click.option(name, type=kind, default=default, help=text, show_default=default is not None)(command)
    return command


@click.command(
    epilog="\b\nExample:\n  speadrx send -l meerkat-digitiser 239.1.2.3+7:7148 --interface 10.0.0.5 \\\n"
    "    --packet-bytes 8972 --real-time --seconds 10s --loss 0.1% --truth truth.json"
)
@click.argument("endpoints", nargs=-1, callback=read_endpoints, metavar="[DEST]...")
@layout_options
@click.option(
    "--pcap", type=click.Path(dir_okay=False), metavar="FILE", help="Write a capture file instead of sending."
)
@click.option("--interface", metavar="ADDRESS", help="Interface to send from.  [default: as the routes say]")
@click.option(
    "--ttl", type=click.IntRange(0, 255), default=1, show_default=True, help="Most hops of multicast packets."
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Threads, each with a socket of its own. The sources are dealt out to them.",
)
@click.option("--batches", type=click.IntRange(min=1), metavar="N", help="Send N batches.  [default: without end]")
@click.option("--chunks", type=click.IntRange(min=1), metavar="N", help="Send N chunks.  [default: without end]")
@click.option(
    "--seconds",
    type=quantities.time(above_least=True),
    help="Send for so long, and then to the end of the chunk.  [default: without end]",
)
@click.option(
    "--rate",
    type=quantities.rate(above_least=True),
    help="Rate of UDP payload (in Gb/s without a unit), including SPEAD headers.  [default: as fast as possible]",
)
@click.option("--real-time", is_flag=True, help="Send as fast as the timestamps say; needs the layout's tick_rate.")
@_faults
@click.option("--seed", type=_COUNT, default=0, show_default=True, help="Seed of the data and the faults.")
@click.option(
    "--first-timestamp",
    type=_COUNT,
    default=0,
    show_default=True,
    metavar="TICKS",
    help="Timestamp of the first batch.",
)
@click.option(
    "--jitter",
    type=_COUNT,
    default=0,
    show_default=True,
    metavar="TICKS",
    help="Add a random number to each timestamp, at most this.",
)
@click.option(
    "--user-data",
    callback=read_assignments,
    multiple=True,
    metavar="NAME=VALUE",
    help="Index on an axis that is not in the heaps. May be repeated.",
)
@click.option(
    "--packet-bytes",
    "--packet-size",
    "packet_bytes",
    type=quantities.size(1, 65507),  # the limit of IPv4
    help="Most bytes in a packet, including the SPEAD header but not the UDP header.  [default: as the layout says, or "
    f"{spead2.send.StreamConfig.DEFAULT_MAX_PACKET_SIZE}]",
)
@click.option(
    "--address-bits",
    type=click.Choice([str(bits) for bits in _ADDRESS_BITS]),
    help="Bits of an immediate value in the SPEAD flavour.  [default: as the layout says, or 48]",
)
@click.option(
    "--truth",
    "truth_path",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Write what was sent to FILE as JSON; - is standard output.",
)
@force_option
@click.option("--json", "as_json", is_flag=True, help="Print the summary and the truth as JSON.")
@all_sources_option
def send(
    *,
    layout: DeclarativeLayout,
    endpoints: list[tuple[str, int]],
    pcap: str | None,
    interface: str | None,
    ttl: int,
    threads: int,
    batches: int | None,
    chunks: int | None,
    seconds: float | None,
    rate: float | None,
    real_time: bool,
    late_by: int | None,
    garbage_kinds: tuple[str, ...],
    seed: int,
    first_timestamp: int,
    jitter: int,
    user_data: list[tuple[str, int]],
    packet_bytes: int | None,
    address_bits: str | None,
    truth_path: str | None,
    force: bool,
    as_json: bool,
    all_sources: bool,
    **faults: Any,
) -> None:
    """Send simulated heaps of a layout to DEST.

    DEST are UDP endpoints, unicast or multicast, such as 239.1.2.3+3:7148. The heaps of a batch are dealt out to them.
    The same options always send the same heaps. The faults are known: --truth has them, as a receiver should count
    them. Ctrl-C, SIGTERM and SIGHUP end it at the end of the chunk, with the summary.

    \b
    Exit codes:
      0  everything was sent; a warning says if it took longer than it should have
      2  wrong usage, or the network cannot be used
    """  # noqa: D301 (click needs the backslash)
    amounts = {"--batches": batches, "--chunks": chunks, "--seconds": seconds}
    _check(layout, endpoints, pcap, amounts, rate, real_time, threads)
    if as_json and truth_path == "-":
        raise click.UsageError("--truth - and --json both print to standard output: leave out --truth, JSON has it too")
    faults["late_by"] = LATE_CHUNKS * layout.chunk_heaps if late_by is None else late_by
    with naming_options():
        simulator = Simulator(
            layout,
            seed=seed,
            first_timestamp=first_timestamp,
            faults=Faults(garbage_kinds=garbage_kinds or None, **faults),
            user_data=dict(user_data),
            timestamp_jitter=jitter,
            flavour=None if address_bits is None else spead2.Flavour(4, 64, int(address_bits), 0),
            max_packet_size=packet_bytes,
        )
    where = pcap or describe(endpoints)
    if chunks is not None:
        batches = chunks * layout.chunk_batches
    truth_file = _open_truth(truth_path)  # before sending: an error is better now than at the end
    clock = None if rate is None and not real_time else WallClock() if pcap is None else VirtualClock()
    pace = {"rate": None if rate is None else rate * 1e9 / 8, "speed": 1.0 if real_time else None}
    try:
        with naming_options(), _open_sinks(endpoints, pcap, clock, interface, ttl, threads) as sinks:
            sent = _run(simulator, sinks, clock, batches, seconds, pace)
    except OSError as exc:
        raise UnusableError(f"cannot send to {where}: {exc.strerror or exc}") from None
    try:
        _write_truth(truth_file, truth_path, sent, layout)
    finally:  # the summary is printed even if the disk is full
        if as_json:
            settings = {"destination": where, "rate_gigabits_per_second": rate, "real_time": real_time}
            click.echo(json.dumps(_summary(sent, layout, settings)))
        else:
            console = Console(highlight=False, stderr=truth_path == "-")
            asked = f" ({rate:g} wanted)" if rate is not None else " (real time)" if real_time else ""
            _show(console, sent, layout, where, asked, all_sources=all_sources)
    if sent.late > RATE_TOLERANCE * sent.seconds:
        behind = f"it fell behind by {sent.late:.2f} of {sent.seconds:.2f} s"
        click.echo(f"Warning: this machine cannot send so fast: {behind}.", err=True)
