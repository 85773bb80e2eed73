"""`speadrx inspect`: what the packets of a capture or on the network carry, and a layout that fits them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from speadrx.capture import Capture, read_datagrams
from speadrx.endpoints import parse_endpoints
from speadrx.items import item_name
from speadrx.layout import Layout
from speadrx.listen import Listener
from speadrx.propose import Proposal, propose
from speadrx.survey import Address, Stream, Survey, Traffic
from speadrx.values import Profile, profile

from .interrupt import interruptible

_POLL_SECONDS = 0.1
#: Progress is shown after so many packets of a file.
_PROGRESS_PACKETS = 4096
#: Addresses and lengths that are shown; all are in the JSON.
_MOST_SHOWN = 10
_TOML_COLUMNS = 100


class _BadFileError(click.ClickException):
    """A file or a socket that cannot be used; the message names it."""

    exit_code = 2


@dataclasses.dataclass(frozen=True)
class _Item:
    """An item of a stream."""

    id: int
    name: str | None
    profile: Profile


@dataclasses.dataclass(frozen=True)
class _Found:
    """A stream, and what there is to say of it."""

    stream: Stream
    items: list[_Item]
    payload: list[tuple[int, str | None]]
    proposal: Proposal


@dataclasses.dataclass
class _Source:
    """Where packets came from, and which of them did not get here."""

    name: str
    live: bool
    capture: Capture | None = None
    kernel_drops: int = 0
    interrupted: bool = False


def _address(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def _read_capture(path: str, survey: Survey, most: float, interrupted: threading.Event) -> _Source:
    try:
        capture = read_datagrams(path, cut=True)
        with capture, _progress(capture.size, "Reading") as advance:
            for n, datagram in enumerate(capture, 1):
                survey.add(*datagram)
                if n >= most or interrupted.is_set():
                    break
                if n % _PROGRESS_PACKETS == 0:
                    advance(capture.position)
    except (OSError, ValueError) as exc:
        raise _BadFileError(str(exc)) from None
    return _Source(path, live=False, capture=capture, interrupted=interrupted.is_set())


def _listen(
    endpoints: list[tuple[str, int]],
    interface: str | None,
    survey: Survey,
    seconds: float,
    most: float,
    interrupted: threading.Event,
) -> _Source:
    try:
        listener = Listener(endpoints, interface)
    except (OSError, ValueError) as exc:
        raise _BadFileError(getattr(exc, "strerror", None) or str(exc)) from None
    end = time.monotonic() + seconds
    with listener, _progress(None, "Listening") as advance:
        done = False
        while not done:
            left = end - time.monotonic()
            # What has come by then is taken all the same.
            done = left <= 0 or interrupted.is_set()
            for datagram in listener.receive(0 if done else min(left, _POLL_SECONDS)):
                survey.add(*datagram)
                if survey.packets >= most:
                    done = True
                    break
            advance(survey.bytes)
        return _Source(
            ",".join(map(_address, endpoints)),
            live=True,
            kernel_drops=listener.drops(),
            interrupted=interrupted.is_set(),
        )


@contextlib.contextmanager
def _progress(total: int | None, what: str) -> Iterator[Callable[[int], None]]:
    """Show how many bytes have been read, if standard error is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


def _look(survey: Survey) -> list[_Found]:
    described = survey.described()

    def name(item: int) -> str | None:
        return _printable(described[item].name) if item in described else item_name(item)

    return [
        _Found(
            stream,
            [_Item(item, name(item), profile(values)) for item, values in stream.items.items()],
            [(item, name(item)) for item in stream.payload_items],
            propose(stream, described=described, seconds=survey.seconds),
        )
        for stream in survey.streams()
    ]


def _hexadecimal(layout: Layout) -> str:
    """A layout as TOML, with item IDs as they are known."""
    return re.sub(r"^item = (\d+)$", lambda match: f"item = {int(match[1]):#x}", layout.to_toml(), flags=re.MULTILINE)


def _toml(found: _Found, source: str) -> str:
    """The proposed layout, with what speaks for it and against it."""
    assert found.proposal.layout is not None
    said = [f"Proposed by speadrx inspect for {_printable(source)}."]
    said += found.proposal.reasons
    said += [f"Uncertain: {text}" for text in found.proposal.uncertain]
    comments = "\n".join(
        textwrap.fill(text, _TOML_COLUMNS, initial_indent="# ", subsequent_indent="#   ") for text in said
    )
    return f"{comments}\n\n{_hexadecimal(found.proposal.layout)}"


def _json(source: _Source, survey: Survey, streams: list[_Found]) -> dict[str, Any]:
    """All that was found, as plain values."""

    def addresses(of: dict[Address, Traffic]) -> list[dict[str, Any]]:
        return [{"address": _address(address), **dataclasses.asdict(traffic)} for address, traffic in of.items()]

    capture = source.capture
    return {
        "source": source.name,
        "live": source.live,
        "interrupted": source.interrupted,
        "seconds": survey.seconds,
        "packets": survey.packets,
        "bytes": survey.bytes,
        "packets_per_second": survey.packets / survey.seconds if survey.seconds else None,
        "bits_per_second": survey.bytes * 8 / survey.seconds if survey.seconds else None,
        "kernel_drops": source.kernel_drops if source.live else None,
        "skipped": {} if capture is None else dict(capture.skipped),
        "cut_short": 0 if capture is None else capture.cut_short,
        "truncated": capture is not None and capture.truncated,
        "undecodable": dict(survey.undecodable),
        **{name: getattr(survey, name) for name in _COUNTS},
        "packets_per_heap": {str(n): heaps for n, heaps in sorted(survey.packets_per_heap.items())},
        "heap_bytes": {str(n): heaps for n, heaps in survey.heap_bytes().items()},
        "senders": addresses(survey.senders),
        "destinations": addresses(survey.destinations),
        "descriptors_by_item": {str(item): dataclasses.asdict(d) for item, d in survey.described().items()},
        "streams": [_stream_json(found) for found in streams],
    }


#: Counts of a survey, with what they are called where they are shown.
_COUNTS = {
    "heaps": "heaps",
    "incomplete": "incomplete",
    "unsized": "without a length",
    "empty": "of length 0",
    "stops": "stop heaps",
    "descriptors": "with descriptors only",
    "duplicate_packets": "packets that came twice",
    "not_repeated": "packets that do not repeat the items of their heap",
    "trailing": "packets with bytes behind their payload",
    "unkept": "heaps beyond what is looked at",
}


def _stream_json(found: _Found) -> dict[str, Any]:
    stream, proposal = found.stream, found.proposal
    return {
        "flavour": str(stream.flavour),
        "heap_bytes": stream.heap_bytes,
        "heaps": stream.heaps,
        "others": stream.others,
        "destinations": list(map(_address, stream.destinations)),
        "senders": len(set(stream.senders.tolist())),
        "items": [
            {"id": item.id, "name": item.name, "immediate": True, **dataclasses.asdict(item.profile)}
            for item in found.items
        ]
        + [{"id": item, "name": name, "immediate": False} for item, name in found.payload],
        "proposal": {
            "toml": None if proposal.layout is None else _hexadecimal(proposal.layout),
            "reasons": proposal.reasons,
            "uncertain": proposal.uncertain,
            "obstacle": proposal.obstacle,
        },
    }


def _fitted(console: Console, columns: list[tuple[str, bool, list[str]]]) -> Table:
    """A table of as many columns, from the left, as there is room for: numbers are never cut."""
    while True:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for title, number, _ in columns:
            table.add_column(title, justify="right" if number else "left", no_wrap=True)
        for row in zip(*(cells for _, _, cells in columns), strict=True):
            table.add_row(*map(Text, row))
        width = console.measure(table, options=console.options.update(max_width=10_000)).maximum
        if width <= console.width or len(columns) <= 2:
            return table
        columns = columns[:-1]


def _si(number: float, unit: str) -> str:
    """Three digits and a prefix."""
    for prefix in ("", "k", "M", "G"):
        if number < 999.5 or prefix == "G":
            return f"{number:.3g} {prefix}{unit}"
        number /= 1000
    raise AssertionError


def _show_totals(console: Console, source: _Source, survey: Survey) -> None:
    rates = ""
    if survey.seconds:
        packet_rate = _si(survey.packets / survey.seconds, "packets/s")
        rates = f": {packet_rate}, {_si(survey.bytes * 8 / survey.seconds, 'b/s')}"
    said = [f"{source.name}: {survey.packets:,} packets, {survey.bytes:,} bytes in {survey.seconds:.6g} s{rates}"]
    if source.interrupted:
        said.append("Interrupted: this is what came until then.")
    if source.kernel_drops:
        said.append(f"{source.kernel_drops:,} packets more were dropped by the kernel: this is a sample.")
    if source.capture is not None:
        said += [f"{n:,} packets of the file not used: {reason}" for reason, n in source.capture.skipped.items()]
        if source.capture.cut_short:
            said.append(
                f"{source.capture.cut_short:,} packets were cut short by the capture: what is here was learned from "
                "their headers, but a receiver takes none of them."
            )
        if source.capture.truncated:
            said.append("The file ends in the midst of a packet, which was left out.")
    said += [f"{n:,} packets do not decode: {reason}" for reason, n in survey.undecodable.most_common(_MOST_SHOWN)]
    counts = [f"{getattr(survey, name):,} {text}" for name, text in _COUNTS.items() if getattr(survey, name)]
    said.append("; ".join(counts) or "No heaps.")
    if survey.heaps:
        sizes = survey.heap_bytes().most_common()
        said.append("Heap bytes: " + _list(f"{size:,} ({n:,})" for size, n in sizes))
        said.append("Packets per heap: " + _list(f"{n:,} ({c:,})" for n, c in survey.packets_per_heap.most_common()))
    for text in said:
        console.print(Text(_printable(text)))
    for title, of in (("sender", survey.senders), ("destination", survey.destinations)) if survey.packets else ():
        console.print()
        _show_traffic(console, title, of)


def _list(texts: Iterable[str]) -> str:
    texts = list(texts)
    more = f", and {len(texts) - _MOST_SHOWN} more" if len(texts) > _MOST_SHOWN else ""
    return ", ".join(texts[:_MOST_SHOWN]) + more


def _show_traffic(console: Console, title: str, of: dict[Address, Traffic]) -> None:
    busiest = sorted(of.items(), key=lambda item: item[1].packets, reverse=True)[:_MOST_SHOWN]
    columns = [(title, False, [_address(address) for address, _ in busiest])]
    columns += [
        (name, True, [f"{getattr(traffic, name):,}" for _, traffic in busiest])
        for name in ("packets", "heaps", "bytes", "undecodable")
    ]
    console.print(_fitted(console, columns))
    if len(of) > len(busiest):
        console.print(f"... and {len(of) - len(busiest)} more {title}s")


def _show_stream(console: Console, number: int, found: _Found) -> None:
    stream = found.stream
    console.print(
        Text(
            f"Stream {number}: {stream.heaps:,} heaps of {stream.heap_bytes:,} bytes, SPEAD-{stream.flavour}, to "
            + _list(map(_address, stream.destinations)),
            style="bold",
        )
    )
    rows = [(item.id, item.name, item.profile) for item in found.items]
    payload = [(item, name, None) for item, name in found.payload]
    everything: list[tuple[int, str | None, Profile | None]] = [*rows, *payload]

    def cells(get: Callable[[Profile], Any]) -> list[str]:
        return ["" if p is None or get(p) is None else str(get(p)) for _, _, p in everything]

    console.print(
        _fitted(
            console,
            [
                ("item", False, [f"{item:#06x}" for item, _, _ in everything]),
                ("name", False, [(name or "-")[:24] for _, name, _ in everything]),
                ("values", False, ["payload" if p is None else p.kind for _, _, p in everything]),
                ("distinct", True, cells(lambda p: p.distinct)),
                ("step", True, cells(lambda p: p.step)),
                ("least", True, cells(lambda p: p.minimum)),
                ("greatest", True, cells(lambda p: p.maximum)),
                ("heaps", True, cells(lambda p: p.heaps)),
                ("first", False, cells(lambda p: ", ".join(map(str, p.first)))),
            ],
        )
    )
    console.print()
    proposal = found.proposal
    if proposal.layout is None:
        console.print(Text(f"No layout can be proposed: {proposal.obstacle}."))
    else:
        console.print("Proposed layout:\n")
        console.print(Text(textwrap.indent(_hexadecimal(proposal.layout), "    ")), soft_wrap=True)
    for mark, texts in (("-", proposal.reasons), ("?", proposal.uncertain)):
        for text in texts:
            console.print(
                Text(textwrap.fill(text, console.width, initial_indent=f"{mark} ", subsequent_indent="  ")),
                soft_wrap=True,
            )


def _chosen(streams: list[_Found], number: int | None) -> _Found:
    """The stream whose layout is wanted."""
    if number is None and len(streams) > 1:
        kinds = "; ".join(
            f"{n}: {found.stream.heaps:,} heaps of {found.stream.heap_bytes:,} bytes"
            for n, found in enumerate(streams, 1)
        )
        raise click.UsageError(f"there are {len(streams)} streams ({kinds}); choose one with --stream")
    return streams[(number or 1) - 1]


def _endpoints(text: str) -> list[tuple[str, int]]:
    try:
        return parse_endpoints(text)
    except ValueError as exc:
        raise click.BadParameter(
            f"{text!r} is neither a file nor endpoints such as 239.1.2.3+7:7148 ({exc})", param_hint="SOURCE"
        ) from None


@click.command()
@click.argument("source")
@click.option(
    "--interface",
    metavar="ADDRESS",
    help="Join multicast groups on the interface of this IPv4 address (IPv6: of this name; default: the system's).",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, 86400, min_open=True),
    default=5.0,
    show_default=True,
    help="Listen for so many seconds; files are read whole.",
)
@click.option(
    "--packets", type=click.IntRange(min=1), metavar="N", help="Look at the first N packets only (default: all)."
)
@click.option("--stream", "number", type=click.IntRange(min=1), metavar="N", help="Show and propose for stream N only.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=pathlib.Path), help="Write the proposed layout there."
)
@click.option("--force", is_flag=True, help="Let --output overwrite a file.")
@click.option("--toml", "as_toml", is_flag=True, help="Print the proposed layout, and nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print all that was found as a JSON document.")
@click.pass_context
def inspect(
    context: click.Context,
    source: str,
    interface: str | None,
    seconds: float,
    packets: int | None,
    number: int | None,
    output: pathlib.Path | None,
    force: bool,
    as_toml: bool,
    as_json: bool,
) -> None:
    """See what SPEAD packets carry, and propose a layout.

    SOURCE is a capture (pcap or pcapng, such as tcpdump and Wireshark write), or endpoints to listen on,
    as host:port or group+n:port, separated by commas. No layout is needed: items, lengths, senders and rates are
    read from the packets themselves. A layout is proposed from which items tell heaps apart, with the
    reasons and what is uncertain; what no packet says, such as a dtype, is yours to add.

    Ctrl-C ends it early, with what was found until then.

    \b
    Example:
        speadrx inspect capture.pcap -o layout.toml
        speadrx inspect 239.1.2.3+7:7148 --interface 10.0.0.1

    \b
    Exit codes:
        0  a layout is proposed
        1  nothing came, or no layout can be proposed
        2  the usage is wrong, or the source cannot be read
    """  # noqa: D301 (click wants the character)
    if math.isnan(seconds):
        raise click.BadParameter("nan is no time to listen for", param_hint="--seconds")
    if as_toml and as_json:
        raise click.UsageError("--toml and --json exclude each other")
    if output is not None and output.exists() and not force:
        raise click.BadParameter(f"{output} exists; --force overwrites it", param_hint="--output")
    survey = Survey()
    most = math.inf if packets is None else packets
    with interruptible() as interrupted:
        if os.path.exists(source):
            if interface is not None:
                raise click.BadParameter(f"{source} is a file, which has no interface", param_hint="--interface")
            found = _read_capture(source, survey, most, interrupted)
        else:
            found = _listen(_endpoints(source), interface, survey, seconds, most, interrupted)
    streams = _look(survey)
    if number is not None and streams and number > len(streams):
        raise click.BadParameter(f"{number}, but there are {len(streams)} streams", param_hint="--stream")
    console = Console(highlight=False)
    if as_json:
        click.echo(json.dumps(_json(found, survey, streams), allow_nan=False))
    elif not as_toml:
        _show_totals(console, found, survey)
        for n, stream in enumerate(streams, 1):
            if number in (None, n):
                console.print()
                _show_stream(console, n, stream)
    _finish(context, found, survey, streams, number, output, force, as_toml)


def _finish(
    context: click.Context,
    source: _Source,
    survey: Survey,
    streams: list[_Found],
    number: int | None,
    output: pathlib.Path | None,
    force: bool,
    as_toml: bool,
) -> None:
    """Write the layout where it is wanted, say why there is none, and end with the exit code for it."""
    if not streams:
        raise click.ClickException(_why_nothing(source, survey))
    shown = streams if number is None else [streams[number - 1]]
    if output is None and not as_toml:
        context.exit(0 if all(found.proposal.layout is not None for found in shown) else 1)
    chosen = _chosen(streams, number)
    if chosen.proposal.layout is None:
        raise click.ClickException(f"no layout can be proposed: {chosen.proposal.obstacle}")
    toml = _toml(chosen, source.name)
    if as_toml:
        click.echo(toml, nl=False)
    if output is not None:
        try:
            with output.open("w" if force else "x", encoding="utf-8") as file:
                file.write(toml)
        except OSError as exc:
            raise _BadFileError(f"{output} cannot be written: {exc.strerror}") from None
        click.echo(f"Wrote {output}", err=True)


def _why_nothing(source: _Source, survey: Survey) -> str:
    if survey.packets:
        return f"{source.name}: {survey.packets:,} packets came, but no heaps that a layout could place"
    if source.live:
        return (
            f"{source.name}: nothing came. Is it sent to this machine and port? "
            f"'speadrx doctor {source.name}' looks for what is in the way"
        )
    frames = 0 if source.capture is None else source.capture.frames
    return f"{source.name}: no UDP datagrams among its {frames:,} packets"
