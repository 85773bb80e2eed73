"""`speadrx look`: a look at the data itself: levels, a histogram, a mean spectrum, a waterfall."""

from __future__ import annotations

import functools
import io
import json
import os
import pathlib
import sys
import threading
from typing import Any

import click
from rich.console import Console

from speadrx._core import Feed
from speadrx.layout.declaration import Layout
from speadrx.record.numbers import Numbers, numbers_of
from speadrx.record.recording import Begin, RecordedPart, Recording

from . import quantities
from .captured import open_capture, report, run_capture, show_capture
from .impression import Impression
from .impression_view import ImpressionView, document, used
from .interrupt import interruptible
from .meaning import Meaning
from .options import all_sources_option, begin_option, layout_options, refuse_begin
from .parameters import (
    Tolerance,
    UnusableError,
    describe,
    force_option,
    naming_options,
    read_assignments,
    read_sources,
)
from .plot import DEFAULT_SIZE, import_figures, read_figure, read_size
from .progress import PolledProgress
from .receiving import make_receiver
from .recorded import open_recording, readable
from .recv import say_why_nothing
from .replay import say_what_came
from .session import Session

#: By default, it looks at so many bytes of chunks, but at so many chunks at most.
_BYTES, _MOST_CHUNKS = 2**26, 16


@click.command(
    epilog="\b\nExamples:\n  speadrx look -l meerkat-digitiser 239.1.2.3+7:7148\n"
    "  speadrx look night.zarr --source antenna=2 -o antenna2.png"
)
@click.argument("source", nargs=-1, required=True, callback=read_sources, metavar="SOURCES...")
@functools.partial(layout_options, required=False)
@click.option(
    "--source",
    "selection",
    multiple=True,
    metavar="AXIS=VALUES",
    help="Look only at this of an axis, or of a dimension of heaps, such as antenna=2 or pol=0,1. It may be given once "
    "for each.  [default: all]",
)
@click.option(
    "--field", metavar="NAME", help="Which field, if heaps hold records.  [default: the one with most numbers]"
)
@click.option(
    "--as",
    "kind",
    type=click.Choice(["voltage", "power"]),
    help="What numbers are: spectra show the square of voltages, and the amplitude of what is correlated or detected "
    "already.  [default: as the layout looks]",
)
@begin_option
@click.option(
    "--chunks",
    type=click.IntRange(min=1),
    metavar="N",
    help="Look at N chunks.  [default: 64 MiB of chunks, but 1 to 16]",
)
@click.option(
    "--seconds",
    type=quantities.time(above_least=True),
    help="Look for this time; of the data, unless it comes from the network.",
)
@click.option("--interface", metavar="NAME|ADDRESS", help="Interface to join groups on.  [default: as the routes say]")
@click.option(
    "--user-data",
    callback=read_assignments,
    multiple=True,
    metavar="NAME=VALUE",
    help="Index or stride that the heaps do not say.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, writable=True, path_type=pathlib.Path),
    callback=read_figure,
    help="Draw a figure too, as .png or .svg.",
)
@force_option
@click.option(
    "--size",
    default=DEFAULT_SIZE,
    metavar="WIDTHxHEIGHT",
    callback=read_size,
    show_default=True,
    help="Size of the figure in pixels.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
@all_sources_option
def look(
    *,
    layout: Layout | None,
    source: str | list[tuple[str, int]],
    selection: tuple[str, ...],
    field: str | None,
    kind: str | None,
    begin: Begin | None,
    chunks: int | None,
    seconds: float | None,
    interface: str | None,
    user_data: list[tuple[str, int]],
    output: pathlib.Path | None,
    force: bool,
    size: tuple[int, int],
    as_json: bool,
    all_sources: bool,
) -> None:
    """Look at the data: levels, a histogram, a mean spectrum, and a waterfall.

    SOURCES are UDP endpoints, as for recv; a capture; or a recording (night.zarr), which has its layout in it. What
    the numbers are follows from the layout: its dtype or fields, and the names of its axes and heap_axes. If one is
    called a channel (or frequency, or substream), spectra are by channel; otherwise they come from Fourier transforms
    of the samples. Heaps that are missing count for nothing.

    "rms" is in units of the samples. In "dBFS", a sine wave that just does not clip has 0. "bits" is log2 of how many
    values there are from the lowest to the highest. "clipped" is what is at an end of its range. Ctrl-C ends it early,
    with what there is until then.

    \b
    Exit codes:
      0  there was something to look at
      1  nothing was received
      2  wrong usage, or what cannot be used: network, capture, recording
    """  # noqa: D301 (click needs the backslash)
    figures = None if output is None else import_figures("speadrx.cli.impression_figure")
    is_recording = isinstance(source, str) and os.path.isdir(source)
    recording = _recording(str(source), layout) if is_recording else None
    if recording is None:
        refuse_begin(begin)
    if recording is not None:
        layout = recording.layout
    elif layout is None:
        raise click.UsageError("Missing option '-l' / '--layout': only a recording has its layout in it")
    assert layout is not None
    with naming_options():
        recorded = None if recording is None else recording.select
        meaning = Meaning(layout, selection, field=field, recorded=recorded, kind=kind)
    if chunks is None and seconds is None:
        chunks = min(max(_BYTES // layout.chunk_bytes, 1), _MOST_CHUNKS)
    ticks = None if seconds is None or isinstance(source, list) else _ticks(layout, seconds)
    with interruptible() as interrupted:
        impression = Impression(meaning, chunks, ticks, interrupted)
        feed = session = None
        if recording is not None:
            _look_at_recording(recording, impression, interrupted, begin)
        else:
            session, feed = _receive(impression, source, interrupted, seconds, interface, user_data)
    name = source if isinstance(source, str) else describe(source)
    title = f"{name}, layout {layout.name}" if layout.name else name
    _show(impression, title, feed, as_json=as_json, all_sources=all_sources)
    if figures is not None and output is not None:
        _draw(figures, impression, title, size, output)
        if not as_json:
            click.echo(f"Figure: {output}")
    if session is not None and not impression.chunks:
        if isinstance(source, str):
            say_what_came(session, layout, source)
        else:
            say_why_nothing(session, layout, source, interface)
    if feed is not None:
        show_capture(Console(highlight=False, quiet=as_json), feed)
    click.get_current_context().exit(0 if impression.chunks else 1)


def _ticks(layout: Layout, seconds: float) -> int:
    rate = layout.time.tick_rate
    if rate is None:
        raise click.BadParameter(
            "the layout does not say how fast its time goes: give --chunks, or --set time.tick_rate=1e6, say",
            param_hint="--seconds",
        )
    return max(round(seconds * rate), 1)


def _recording(path: str, layout: Layout | None) -> Recording:
    recording = open_recording(path)
    if layout is not None:
        raise click.UsageError(f"{path} is a recording, which has its layout in it: leave out --layout and --set")
    return recording


def _look_at_recording(
    recording: Recording, impression: Impression, interrupted: threading.Event, begin: Begin | None
) -> None:
    """Look at a recording from its beginning, or some time on.

    Raises
    ------
    UnusableError
        If it cannot be read.
    """
    every = numbers_of(recording.layout, recording.stored)
    numbers = every[0]
    if impression.meaning.field is not None:
        numbers = every[[field.name for field in recording.layout.fields].index(impression.meaning.field)]
    with readable(recording.path):
        with naming_options():
            parts = recording.parts(begin)
        for part in parts:
            there = part.chunks()
            with PolledProgress(len(there), lambda: (impression.chunks, impression.line())):
                for before, chunk in zip([None, *there], there, strict=False):
                    _look_at_chunk(part, numbers, impression, before, chunk)
                    if impression.full() or interrupted.is_set():
                        return


def _look_at_chunk(
    part: RecordedPart, numbers: Numbers, impression: Impression, before: int | None, number: int
) -> None:
    """Look at the chunk of a part with this number, after the one with the number `before`."""
    recording = part.recording
    stored, batches = recording.stored, recording.layout.chunk_batches
    timestamp = part.attributes["first_timestamp"] + number * recording.layout.chunk_timestamp_step
    if not impression.wants(timestamp):
        return
    present, utc = part.read(stored.present, number), part.utc(number * batches)
    gap = None if before is None else (number - before - 1) * batches
    impression.look(numbers.decode(part.read(stored.data, number)), present, timestamp, utc, gap)


def _receive(
    impression: Impression,
    source: str | list[tuple[str, int]],
    interrupted: threading.Event,
    seconds: float | None,
    interface: str | None,
    user_data: list[tuple[str, int]],
) -> tuple[Session, Feed | None]:
    """Receive from the network, or what is in a capture, until there is enough."""
    layout = impression.meaning.layout
    make = functools.partial(
        make_receiver, layout, threads=1, tolerance=Tolerance(), pool=None, user_data=user_data, fill=None
    )
    if isinstance(source, str):
        capture = open_capture(source)
        session = Session(make(capture.parts), None, impression)
        return session, run_capture(session, interrupted, capture)
    session = Session(make(source, interface=interface), None, impression)
    with PolledProgress(impression.wanted, lambda: (impression.chunks, impression.line())):
        session.run(interrupted, seconds=seconds)
    return session, None


def _show(impression: Impression, title: str, feed: Feed | None, *, as_json: bool, all_sources: bool) -> None:
    if as_json:
        about = {"source": title, "capture": None if feed is None else report(feed)}
        click.echo(json.dumps(about | document(impression), allow_nan=False))
    elif impression.chunks:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # not all terminals can show the characters of charts
        Console(highlight=False).print(ImpressionView(impression, title, all_sources=all_sources))
    else:
        click.echo(f"{title}: nothing was received", err=True)


def _draw(figures: Any, impression: Impression, title: str, size: tuple[int, int], output: pathlib.Path) -> None:
    try:
        figures.save(figures.draw(impression, title=f"{title}\n{used(impression)}", size=size), output)
    except OSError as exc:
        raise UnusableError(f"{output}: {exc.strerror or exc}") from None
