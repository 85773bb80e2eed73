"""A header file of mkrecv as a layout, with what it says beside that as comments, for `speadrx layout`."""

from __future__ import annotations

import click

from speadrx._core import LayoutError
from speadrx.layout.mkrecv import MkrecvHeader
from speadrx.layout.overrides import changed
from speadrx.survey.capture import read_datagrams
from speadrx.survey.heaps import Survey

from .parameters import UnusableError, announce_pipe

#: Packets of a capture that are looked at.
_PACKETS = 100_000


def read_items(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> dict[int, int]:
    """Read item IDs by position, such as ``2=0x4101``."""
    found = {}
    for text in texts:
        position, _, item = text.partition("=")
        try:
            found[int(position)] = int(item, 0)
        except ValueError:
            raise click.BadParameter(f"{text!r} is not POSITION=ID, such as 2=0x4101") from None
    return found


def converted_toml(path: str, capture: str | None, items: dict[int, int], changes: tuple[str, ...]) -> str:
    """Convert a header file for a command. Comments say how to receive, and what has no equivalent.

    Raises
    ------
    click.BadParameter, UnusableError
        If the header cannot be converted, or the capture does not show its items.
    """
    try:
        header = MkrecvHeader.read(path)
        if capture is not None:
            items = _captured_items(header, capture) | items
        converted = header.convert(items)
        layout = changed(converted.layout, changes)
    except LayoutError as exc:
        raise click.BadParameter(str(exc), param_hint="--from-mkrecv") from None
    except OSError as exc:
        raise click.BadParameter(f"{path}: {exc.strerror or exc}", param_hint="--from-mkrecv") from None
    lines = [str(note) for note in converted.notes]
    if converted.endpoints:
        interface = f" --interface {converted.interface}" if converted.interface else ""
        lines.insert(0, f"Receive with: speadrx recv -l THIS_FILE{interface} {' '.join(converted.endpoints)}")
    return "".join(f"# {line}\n" for line in lines) + layout.to_toml()


def _captured_items(header: MkrecvHeader, capture: str) -> dict[int, int]:
    survey = Survey()
    announce_pipe(capture)
    try:
        with read_datagrams(capture, cut=True) as datagrams:
            survey.read(datagrams, _PACKETS)
    except (OSError, ValueError) as exc:
        raise UnusableError(str(exc)) from None
    found = survey.item_positions(header.heap_bytes)
    if not found:
        raise UnusableError(
            f"{capture} has no heaps of {header.heap_bytes:,} bytes, as the header asks for, in its first "
            f"{_PACKETS:,} packets"
        )
    return dict(enumerate(found))
