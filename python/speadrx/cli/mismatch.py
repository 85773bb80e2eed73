"""Why no heap is placed although packets come: what they carry, beside what the layout says."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator

from speadrx._words import listed
from speadrx.layout.base import DeclarativeLayout
from speadrx.layout.items import SPECIAL_ITEMS, item_name
from speadrx.survey.capture import Datagram, read_datagrams
from speadrx.survey.heaps import Survey
from speadrx.survey.live import Listener

#: Packets and seconds that are looked at.
_MOST_PACKETS = 4096
_SECONDS = 1.0
#: Lengths that are named.
_MOST_LENGTHS = 3


def in_capture(layout: DeclarativeLayout, path: str) -> list[str]:
    """Say how the heaps in a capture differ from a layout; nothing if they do not, or it cannot be read."""
    with contextlib.suppress(OSError, ValueError), contextlib.closing(read_datagrams(path, cut=True)) as capture:
        return list(_differences(layout, itertools.islice(capture, _MOST_PACKETS)))
    return []


def on_network(layout: DeclarativeLayout, endpoints: list[tuple[str, int]], interface: str | None) -> list[str]:
    """Listen for a moment, and say how heaps differ from a layout; nothing if they do not, or it cannot listen."""
    with contextlib.suppress(OSError, ValueError), Listener(endpoints, interface) as listener:
        return list(_differences(layout, itertools.islice(_heard(listener), _MOST_PACKETS)))
    return []


def _heard(listener: Listener) -> Iterator[Datagram]:
    end = time.monotonic() + _SECONDS
    while (left := end - time.monotonic()) > 0:
        yield from listener.receive(left)


def _differences(layout: DeclarativeLayout, datagrams: Iterable[Datagram]) -> Iterator[str]:
    survey = Survey()
    for datagram in datagrams:
        survey.add(*datagram)
    lengths = survey.heap_bytes()
    if not lengths:
        return
    if layout.heap_bytes not in lengths:
        came = listed((f"{length:,}" for length, _ in lengths.most_common()), most=_MOST_LENGTHS)
        yield f"The layout says heap_bytes = {layout.heap_bytes}, but the heaps that came have {came} bytes."
    streams = survey.streams()
    alternatives = [stream.payload_one_of for stream in streams if stream.payload_one_of is not None]
    addressed = {item for stream in streams for item in stream.payload_items}
    addressed |= {item for one_of in alternatives for item in one_of.items}
    there = {item for stream in streams for item in stream.items}
    there |= {item for stream in streams if stream.one_of is not None for item in stream.one_of.items}
    lacking = [item for item in layout.spead_items if item not in SPECIAL_ITEMS and item not in there]
    for item in lacking if there else ():
        name = f" ({name})" if (name := item_name(item)) else ""
        if item in addressed:
            yield (
                f"The layout needs the value of item {item:#x}{name}, but in the heaps that came it is addressed: its "
                "value is in the payload, where placement does not look."
            )
        else:
            yield f"The layout needs item {item:#x}{name}, but no heap that came has it."
