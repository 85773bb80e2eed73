"""Shows what `speadrx inspect` has found in a terminal."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from speadrx._words import counted, listed
from speadrx.layout.picture import escaped
from speadrx.receive.endpoints import format_endpoint
from speadrx.survey.capture import Capture
from speadrx.survey.heaps import Survey, Traffic
from speadrx.survey.kinds import Address
from speadrx.survey.propose import Proposal
from speadrx.survey.values import Profile

from .findings import COUNTS, MOST_SHOWN, Found, Origin, describe_stream


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
    counts = [(getattr(survey, name), noun, text) for name, (noun, text) in COUNTS.items()]
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
