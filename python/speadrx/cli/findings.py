"""Show what `speadrx inspect` has found: as text, TOML or JSON."""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from speadrx._words import counted, listed
from speadrx.layout.items import item_name
from speadrx.layout.picture import escaped
from speadrx.receive.endpoints import format_endpoint
from speadrx.survey.capture import Capture
from speadrx.survey.heaps import Survey, Traffic
from speadrx.survey.kinds import Address, Stream
from speadrx.survey.propose import Proposal, propose
from speadrx.survey.times import bits_of
from speadrx.survey.values import Profile, profile

#: Most streams, addresses and lengths to show. JSON has all of them.
MOST_SHOWN = 10
#: Senders have a habit if it shows in more than this fraction of the packets.
_HABIT = 0.01
_TOML_COLUMNS = 100


@dataclasses.dataclass(frozen=True)
class Item:
    """An item of a stream."""

    id: int
    name: str | None
    profile: Profile


@dataclasses.dataclass(frozen=True)
class Found:
    """A stream, with its items and the layout proposed for it."""

    stream: Stream
    items: list[Item]
    #: IDs and names of the items in the payload, and the heaps that have them if each heap has one of several.
    payload: list[tuple[int, str | None, int | None]]
    proposal: Proposal


@dataclasses.dataclass
class Origin:
    """A capture or endpoints: what was inspected, and what could not be read of it."""

    name: str
    live: bool
    interface: str | None = None
    capture: Capture | None = None
    #: Why the rest of a file was not read.
    damage: str | None = None
    kernel_drops: int = 0
    interrupted: bool = False


def look(survey: Survey) -> list[Found]:
    """Describe each stream of a survey."""
    described = survey.described()

    def name(item: int) -> str | None:
        return escaped(described[item].name) if item in described else item_name(item)

    unrepeated = survey.not_repeated > _HABIT * survey.packets
    reordered = survey.late_items > 0
    found = []
    streams = survey.streams()
    lacking = survey.lacking if len(streams) == 1 else None
    for stream in streams:
        values = dict(stream.items)
        payload: list[tuple[int, str | None, int | None]] = [(item, name(item), None) for item in stream.payload_items]
        if stream.one_of is not None:
            values |= {item: stream.one_of.values[stream.one_of.which == item] for item in stream.one_of.items}
        if stream.payload_one_of is not None:
            which = stream.payload_one_of.which
            payload += [(item, name(item), int((which == item).sum())) for item in stream.payload_one_of.items]
        items = [Item(item, name(item), profile(column, bits_of(stream))) for item, column in sorted(values.items())]
        proposal = propose(
            stream,
            described=described,
            seconds=survey.seconds,
            unrepeated=unrepeated,
            reordered=reordered,
            lacking=lacking,
        )
        found.append(Found(stream, items, payload, proposal))
    return found


def toml_text(found: Found, origin: str) -> str:
    """Write the proposed layout, with comments that say why it is so, and what is uncertain."""
    assert found.proposal.layout is not None
    said = [f"Proposed by speadrx inspect for {escaped(origin)}."]
    said += found.proposal.reasons
    said += [f"Uncertain: {text}" for text in found.proposal.uncertain]
    comments = "\n".join(
        textwrap.fill(text, _TOML_COLUMNS, initial_indent="# ", subsequent_indent="#   ") for text in said
    )
    return f"{comments}\n\n{found.proposal.layout.to_toml()}"


def json_document(origin: Origin, survey: Survey, streams: list[Found]) -> dict[str, Any]:
    """All that was found, as plain values."""

    def addresses(of: dict[Address, Traffic]) -> list[dict[str, Any]]:
        return [
            {"address": format_endpoint(*address), **dataclasses.asdict(traffic)} for address, traffic in of.items()
        ]

    capture = origin.capture
    return {
        "source": origin.name,
        "live": origin.live,
        "interrupted": origin.interrupted,
        "seconds": survey.seconds,
        "packets": survey.packets,
        "bytes": survey.bytes,
        "packets_per_second": survey.packets / survey.seconds if survey.seconds else None,
        "bits_per_second": survey.bytes * 8 / survey.seconds if survey.seconds else None,
        "kernel_drops": origin.kernel_drops if origin.live else None,
        "skipped": {} if capture is None else dict(capture.skipped),
        "cut_short": 0 if capture is None else capture.cut_short,
        "truncated": capture is not None and capture.truncated,
        "damage": origin.damage,
        "undecodable": dict(survey.undecodable),
        **{name: getattr(survey, name) for name in _COUNTS},
        "packets_per_heap": {str(n): heaps for n, heaps in sorted(survey.packets_per_heap.items())},
        "heap_bytes": {str(n): heaps for n, heaps in survey.heap_bytes().items()},
        "senders": addresses(survey.senders),
        "destinations": addresses(survey.destinations),
        "descriptors_by_item": {str(item): dataclasses.asdict(d) for item, d in survey.described().items()},
        "streams": [_stream_json(found) for found in streams],
    }


#: Counts of a survey: what each counts (heaps, if it does not say), and what these have in common.
_COUNTS = {
    "heaps": ("heap", ""),
    "incomplete": ("", "incomplete"),
    "unsized": ("", "without a length"),
    "empty": ("", "of length 0"),
    "stops": ("", "with a stop item"),
    "descriptors": ("", "with only descriptors"),
    "duplicate_packets": ("packet", " that came twice"),
    "not_repeated": ("packet", " without all items of the heap"),
    "late_items": ("heap", " whose items did not come first"),
    "trailing": ("packet", " with bytes after the payload"),
    "unkept": ("heap", " too many to inspect"),
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
        + [{"id": item, "name": name, "immediate": False, "heaps": heaps} for item, name, heaps in found.payload],
        "proposal": {
            "toml": None if proposal.layout is None else proposal.layout.to_toml(),
            "reasons": proposal.reasons,
            "uncertain": proposal.uncertain,
            "obstacle": proposal.obstacle,
            "trial": None if proposal.trial is None else dataclasses.asdict(proposal.trial),
            "attempt": None if proposal.attempt is None else proposal.attempt.to_toml(),
        },
    }


def _fitted(console: Console, columns: list[tuple[str, bool, list[str]]]) -> Table:
    """A table with as many columns, from the left, as fit. Numbers are never cut."""
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
    """Write three digits and a unit with a prefix."""
    for prefix in ("", "k", "M", "G"):
        if number < 999.5 or prefix == "G":
            return f"{number:.3g} {prefix}{unit}"
        number /= 1000
    raise AssertionError


def _capture_notes(capture: Capture, damage: str | None) -> Iterator[str]:
    """Say what was not used of a capture."""
    for reason, n in capture.skipped.items():
        yield f"{counted(n, 'packet')} of the file not used: {reason}"
    if capture.cut_short:
        yield (
            f"{counted(capture.cut_short, 'packet')} cut short by the capture: their headers were inspected, but a "
            "receiver cannot use such packets."
        )
    if capture.truncated:
        yield "The last packet of the file is incomplete, and was left out."
    if damage is not None:
        yield f"{escaped(damage)}. The rest was not read."


def _notes(origin: Origin, survey: Survey) -> Iterator[str]:
    """Describe all packets together, line by line."""
    rates = ""
    if survey.seconds:
        packet_rate = _si(survey.packets / survey.seconds, "packets/s")
        rates = f": {packet_rate}, {_si(survey.bytes * 8 / survey.seconds, 'b/s')}"
    amount = f"{counted(survey.packets, 'packet')}, {counted(survey.bytes, 'byte')}"
    yield f"{escaped(origin.name)}: {amount} in {survey.seconds:.6g} s{rates}"
    if origin.interrupted:
        yield "Interrupted: this is what came until then."
    if origin.kernel_drops:
        yield f"The kernel dropped another {counted(origin.kernel_drops, 'packet')}: this is a sample."
    if origin.capture is not None:
        yield from _capture_notes(origin.capture, origin.damage)
    for reason, n in survey.undecodable.most_common(MOST_SHOWN):
        yield f"{counted(n, 'packet')} not decoded: {reason}"
    counts = [(getattr(survey, name), noun, text) for name, (noun, text) in _COUNTS.items()]
    texts = [(counted(n, noun) if noun else f"{n:,} ") + text for n, noun, text in counts if n]
    yield "; ".join(texts) or "No heaps."
    if survey.heaps:
        lengths, packets = survey.heap_bytes().most_common(), survey.packets_per_heap.most_common()
        yield "Heap lengths (number of heaps): " + listed((f"{length:,} ({n:,})" for length, n in lengths), MOST_SHOWN)
        yield "Packets per heap (number of heaps): " + listed((f"{p:,} ({n:,})" for p, n in packets), MOST_SHOWN)


def show_totals(console: Console, origin: Origin, survey: Survey) -> None:
    """Print what holds for all packets together."""
    for text in _notes(origin, survey):
        console.print(Text(text))
    for title, of in (("sender", survey.senders), ("destination", survey.destinations)) if survey.packets else ():
        console.print()
        _show_traffic(console, title, of)


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


def describe_stream(number: int, stream: Stream) -> str:
    """Say how many heaps of which length a stream has."""
    return f"{number}: {counted(stream.heaps, 'heap')} of {counted(stream.heap_bytes, 'byte')}"


def show_stream(console: Console, number: int, found: Found) -> None:
    """Print the items of a stream, and the layout proposed for it."""
    stream = found.stream
    destinations = listed(itertools.starmap(format_endpoint, stream.destinations), MOST_SHOWN)
    title = f"Stream {describe_stream(number, stream)}, SPEAD-{stream.flavour}, to {destinations}"
    console.print(Text(title, style="bold"))
    console.print(_items_table(console, found))
    console.print()
    _show_proposal(console, found.proposal)


def _items_table(console: Console, found: Found) -> Table:
    rows = [(item.id, item.name, item.profile) for item in found.items]
    payload = [(item, name, None) for item, name, _ in found.payload]
    everything: list[tuple[int, str | None, Profile | None]] = [*rows, *payload]

    def cells(get: Callable[[Profile], Any]) -> list[str]:
        return ["" if p is None or get(p) is None else str(get(p)) for _, _, p in everything]

    def heaps() -> list[str]:
        counts = [item.profile.heaps for item in found.items] + [heaps for _, _, heaps in found.payload]
        return ["" if n is None else str(n) for n in counts]

    return _fitted(
        console,
        [
            ("item", False, [f"{item:#06x}" for item, _, _ in everything]),
            ("name", False, [(name or "-")[:24] for _, name, _ in everything]),
            ("values", False, ["payload" if p is None else p.kind for _, _, p in everything]),
            ("distinct", True, cells(lambda p: p.distinct)),
            ("step", True, cells(lambda p: p.step)),
            ("least", True, cells(lambda p: p.minimum)),
            ("greatest", True, cells(lambda p: p.maximum)),
            ("heaps", True, heaps()),
            ("first", False, cells(lambda p: ", ".join(map(str, p.first)))),
        ],
    )


def _show_proposal(console: Console, proposal: Proposal) -> None:
    if proposal.layout is None:
        console.print(Text(f"No layout can be proposed: {proposal.obstacle}."))
    shown = proposal.layout or proposal.attempt
    if shown is not None:
        console.print("Proposed layout:\n" if proposal.layout else "What comes nearest:\n")
        console.print(Text(textwrap.indent(shown.to_toml(), "    ")), soft_wrap=True)
    for mark, texts in (("-", proposal.reasons), ("?", proposal.uncertain)):
        for text in texts:
            console.print(
                Text(textwrap.fill(text, console.width, initial_indent=f"{mark} ", subsequent_indent="  ")),
                soft_wrap=True,
            )
