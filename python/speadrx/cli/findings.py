"""What `speadrx inspect` has found, stream by stream, and that as TOML and JSON."""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
from typing import Any

from speadrx._words import counted
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
        **{name: getattr(survey, name) for name in COUNTS},
        "packets_per_heap": {str(n): heaps for n, heaps in sorted(survey.packets_per_heap.items())},
        "heap_bytes": {str(n): heaps for n, heaps in survey.heap_bytes().items()},
        "senders": addresses(survey.senders),
        "destinations": addresses(survey.destinations),
        "descriptors_by_item": {str(item): dataclasses.asdict(d) for item, d in survey.described().items()},
        "streams": [_stream_json(found) for found in streams],
    }


#: Counts of a survey: what each counts (heaps, if it does not say), and what these have in common.
COUNTS = {
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


def describe_stream(number: int, stream: Stream) -> str:
    """Say how many heaps of which length a stream has."""
    return f"{number}: {counted(stream.heaps, 'heap')} of {counted(stream.heap_bytes, 'byte')}"
