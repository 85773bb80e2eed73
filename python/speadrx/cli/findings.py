"""What `speadrx inspect` has found: as text, as TOML and as JSON."""

from __future__ import annotations

import dataclasses
import itertools
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from speadrx.layout.declaration import Layout
from speadrx.layout.items import item_name
from speadrx.layout.picture import escaped
from speadrx.receive.endpoints import format_endpoint
from speadrx.survey.capture import Capture
from speadrx.survey.heaps import Survey, Traffic
from speadrx.survey.kinds import Address, Stream
from speadrx.survey.propose import Proposal, propose
from speadrx.survey.values import Profile, profile

#: Streams, addresses and lengths that are shown; all are in the JSON.
MOST_SHOWN = 10
_TOML_COLUMNS = 100


@dataclasses.dataclass(frozen=True)
class Item:
    """An item of a stream."""

    id: int
    name: str | None
    profile: Profile


@dataclasses.dataclass(frozen=True)
class Found:
    """A stream, and what there is to say of it."""

    stream: Stream
    items: list[Item]
    payload: list[tuple[int, str | None]]
    proposal: Proposal


@dataclasses.dataclass
class Source:
    """Where packets came from, and which of them did not get here."""

    name: str
    live: bool
    interface: str | None = None
    capture: Capture | None = None
    #: Why a file was not read to its end.
    damage: str | None = None
    kernel_drops: int = 0
    interrupted: bool = False


def look(survey: Survey) -> list[Found]:
    """Look at each stream of a survey."""
    described = survey.described()

    def name(item: int) -> str | None:
        return escaped(described[item].name) if item in described else item_name(item)

    return [
        Found(
            stream,
            [Item(item, name(item), profile(values)) for item, values in stream.items.items()],
            [(item, name(item)) for item in stream.payload_items],
            propose(stream, described=described, seconds=survey.seconds),
        )
        for stream in survey.streams()
    ]


def _hexadecimal(layout: Layout) -> str:
    """A layout as TOML, with item IDs as they are known."""
    return re.sub(r"^item = (\d+)$", lambda match: f"item = {int(match[1]):#x}", layout.to_toml(), flags=re.MULTILINE)


def toml_text(found: Found, source: str) -> str:
    """The proposed layout, with what speaks for it and against it."""
    assert found.proposal.layout is not None
    said = [f"Proposed by speadrx inspect for {escaped(source)}."]
    said += found.proposal.reasons
    said += [f"Uncertain: {text}" for text in found.proposal.uncertain]
    comments = "\n".join(
        textwrap.fill(text, _TOML_COLUMNS, initial_indent="# ", subsequent_indent="#   ") for text in said
    )
    return f"{comments}\n\n{_hexadecimal(found.proposal.layout)}"


def json_document(source: Source, survey: Survey, streams: list[Found]) -> dict[str, Any]:
    """All that was found, as plain values."""

    def addresses(of: dict[Address, Traffic]) -> list[dict[str, Any]]:
        return [
            {"address": format_endpoint(*address), **dataclasses.asdict(traffic)} for address, traffic in of.items()
        ]

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
        "damage": source.damage,
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


def _stream_json(found: Found) -> dict[str, Any]:
    stream, proposal = found.stream, found.proposal
    return {
        "flavour": str(stream.flavour),
        "heap_bytes": stream.heap_bytes,
        "heaps": stream.heaps,
        "others": stream.others,
        "destinations": list(itertools.starmap(format_endpoint, stream.destinations)),
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


def show_totals(console: Console, source: Source, survey: Survey) -> None:
    """Print what holds for all packets together."""
    rates = ""
    if survey.seconds:
        packet_rate = _si(survey.packets / survey.seconds, "packets/s")
        rates = f": {packet_rate}, {_si(survey.bytes * 8 / survey.seconds, 'b/s')}"
    said = [
        f"{escaped(source.name)}: {survey.packets:,} packets, {survey.bytes:,} bytes in {survey.seconds:.6g} s{rates}"
    ]
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
        if source.damage is not None:
            said.append(f"{escaped(source.damage)}. What follows was not read.")
    said += [f"{n:,} packets do not decode: {reason}" for reason, n in survey.undecodable.most_common(MOST_SHOWN)]
    counts = [f"{getattr(survey, name):,} {text}" for name, text in _COUNTS.items() if getattr(survey, name)]
    said.append("; ".join(counts) or "No heaps.")
    if survey.heaps:
        sizes = survey.heap_bytes().most_common()
        said.append("Heap bytes: " + listed(f"{size:,} ({n:,})" for size, n in sizes))
        said.append("Packets per heap: " + listed(f"{n:,} ({c:,})" for n, c in survey.packets_per_heap.most_common()))
    for text in said:
        console.print(Text(text))
    for title, of in (("sender", survey.senders), ("destination", survey.destinations)) if survey.packets else ():
        console.print()
        _show_traffic(console, title, of)


def listed(texts: Iterable[str], separator: str = ", ") -> str:
    """Join texts, the first of them if there are many."""
    texts = list(texts)
    more = [f"and {len(texts) - MOST_SHOWN} more"] if len(texts) > MOST_SHOWN else []
    return separator.join(texts[:MOST_SHOWN] + more)


def _show_traffic(console: Console, title: str, of: dict[Address, Traffic]) -> None:
    busiest = sorted(of.items(), key=lambda item: item[1].packets, reverse=True)[:MOST_SHOWN]
    columns = [(title, False, [format_endpoint(*address) for address, _ in busiest])]
    columns += [
        (name, True, [f"{getattr(traffic, name):,}" for _, traffic in busiest])
        for name in ("packets", "heaps", "bytes", "undecodable")
    ]
    console.print(_fitted(console, columns))
    if len(of) > len(busiest):
        console.print(f"... and {len(of) - len(busiest)} more {title}s")


def show_stream(console: Console, number: int, found: Found) -> None:
    """Print the items of a stream, and the layout proposed for it."""
    stream = found.stream
    console.print(
        Text(
            f"Stream {number}: {stream.heaps:,} heaps of {stream.heap_bytes:,} bytes, SPEAD-{stream.flavour}, to "
            + listed(itertools.starmap(format_endpoint, stream.destinations)),
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
