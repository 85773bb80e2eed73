"""`speadrx plot`: draw what a run has received, and what it has lost."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import pathlib
from typing import Any

import click
from rich.console import Console

from speadrx._core import Feed
from speadrx.accounts.fields import FieldError
from speadrx.accounts.history import History
from speadrx.accounts.loss import loss
from speadrx.layout.declaration import Layout
from speadrx.receive.receiver import Receiver
from speadrx.record.recording import Begin

from .captured import open_capture, report, run_capture, show_capture
from .interrupt import interruptible
from .options import begin_option, load_layout, refuse_begin, set_option
from .parameters import UnusableError, force_option, keep_files, refuse_to_overwrite
from .receiving import usable
from .recorded import history_of, open_recording, readable
from .session import Session

SUFFIXES = (".png", ".svg")
DEFAULT_SIZE = "1200x800"
#: In smaller figures, labels overlap.
MIN_SIZE, MAX_SIZE = (800, 500), (10000, 10000)


def read_size(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, int]:
    """Read the size of a figure."""
    try:
        width, height = map(int, text.split("x"))
    except ValueError:
        raise click.BadParameter(f"{text!r} must be WIDTHxHEIGHT in pixels, like {DEFAULT_SIZE}") from None
    for length, name, least, most in zip((width, height), ("width", "height"), MIN_SIZE, MAX_SIZE, strict=True):
        if not least <= length <= most:
            raise click.BadParameter(f"{text!r}: the {name} must be from {least} to {most} pixels")
    return width, height


def read_figure(context: click.Context, parameter: click.Parameter, path: pathlib.Path | None) -> pathlib.Path | None:
    """Check the path of a figure to write."""
    if path is not None:
        if path.suffix.lower() not in SUFFIXES:
            raise click.BadParameter(f"{str(path)!r} must end in {' or '.join(SUFFIXES)}: the end chooses the format")
        if not path.parent.is_dir():
            raise click.BadParameter(f"{str(path)!r}: there is no directory {str(path.parent)!r}")
    return path


def import_figures(name: str = "speadrx.accounts.figures") -> Any:
    """Import a module that draws.

    Raises
    ------
    UnusableError
        If matplotlib is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] != "matplotlib":
            raise
        raise UnusableError("drawing needs matplotlib: pip install 'speadrx[plot]'") from None


def _is_history(path: pathlib.Path) -> bool:
    """Whether a file begins like a history. Captures do not begin with text."""
    with open(path, "rb") as file:
        return file.read(64).lstrip()[:1] == b"{"


def _receive(path: pathlib.Path, layout: Layout) -> tuple[History, Feed | None]:
    """Receive a capture to its end, or until Ctrl-C."""
    # A receiver warns if there are no free chunks for a while. Here that does no harm: a capture waits.
    logging.getLogger("speadrx").addHandler(logging.NullHandler())
    history = History(layout)

    source = open_capture(str(path))
    with interruptible() as interrupted:
        with usable():
            receiver = Receiver(layout, source.parts)
            receiver.start()
        session = Session(receiver, history)
        feed = run_capture(session, interrupted, source)
    session.keep_history(receiver.stats())
    return history, feed


def _load(
    path: pathlib.Path, layout: str | None, overrides: tuple[str, ...], begin: Begin | None
) -> tuple[History, Feed | None]:
    """Read a history or a recording, or receive a capture."""
    try:
        if path.is_dir():
            recording = open_recording(str(path))
            if layout is not None or overrides:
                raise click.UsageError(f"{path} has its layout in it: leave out --layout and --set")
            with readable(str(path)):
                return history_of(recording, begin), None
        refuse_begin(begin)
        if _is_history(path):
            if layout is not None or overrides:
                raise click.UsageError(f"{path} is a history: leave out --layout and --set")
            return History.read(path), None
        if layout is None:
            raise click.UsageError(f"{path} is not a history; if it is a capture, give its layout with -l/--layout")
        return _receive(path, load_layout(layout, overrides, "-l/--layout"))
    except FieldError as exc:
        raise UnusableError(str(exc)) from None
    except (OSError, ValueError) as exc:
        raise UnusableError(f"{path}: {getattr(exc, 'strerror', None) or exc}") from None


def _numbers(source: pathlib.Path, history: History) -> dict[str, Any]:
    """The numbers that are drawn, with the names of `ReceiverStats`."""
    document = history.to_json()
    present, missing = history.present_by_source.tolist(), history.missing_by_source.tolist()
    expected = history.expected_by_source.tolist()
    accounts = dict(history.accounts)
    counts = accounts.pop("sources", {})
    return {
        "source": str(source),
        **dataclasses.asdict(history.axes),
        "chunks": history.chunks,
        "present": sum(present),
        "missing": sum(missing),
        "expected": sum(expected),
        "loss": history.loss,
        "restarts": history.restarts,
        **accounts,
        "epoch_gap_seconds": _gap_seconds(history),
        "began": history.began,
        "sources": [
            {
                "label": label,
                "present": present[i],
                "missing": missing[i],
                "expected": expected[i],
                "loss": loss(missing[i], present[i]),
                **{name: counts[name][i] for name in counts},
            }
            for i, label in enumerate(history.axes.source_labels)
        ],
        "row_batches": history.row_batches,
        "rows": document["rows"],
    }


def _gap_seconds(history: History) -> float | None:
    ticks, rate = history.accounts.get("epoch_gap_ticks"), history.axes.tick_rate
    return None if ticks is None or rate is None else ticks / rate


@click.command()
@click.argument("source", type=click.Path(exists=True, path_type=pathlib.Path))
@click.option(
    "-l",
    "--layout",
    metavar="FILE|PRESET",
    help="Layout of the heaps of a capture: a TOML file, or one that comes with speadrx.",
)
@set_option
@begin_option
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, writable=True, path_type=pathlib.Path),
    callback=read_figure,
    help="Figure to write, as .png or .svg.  [default: the name of SOURCE with .png, in this directory]",
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
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON; draw them only with --output.")
@click.pass_context
def plot(
    context: click.Context,
    source: pathlib.Path,
    layout: str | None,
    overrides: tuple[str, ...],
    begin: Begin | None,
    output: pathlib.Path | None,
    force: bool,
    size: tuple[int, int],
    as_json: bool,
) -> None:
    """Draw what a run has received, and what it has lost.

    SOURCE is a history from 'speadrx recv' or 'speadrx replay' with --history, a recording (night.zarr), or a capture
    (pcap), which is received first. The figure shows which heaps are missing by time and source, when time restarted,
    how late heaps were, and why heaps were lost. Ctrl-C ends a long capture early, with what was received until then.

    \b
    Example:
      speadrx plot run.json -o run.svg
      speadrx plot capture.pcap -l meerkat-digitiser --json

    \b
    Exit codes:
      0  the figure was drawn, or the numbers printed
      1  nothing was received
      2  wrong usage, or SOURCE cannot be used
    """  # noqa: D301 (click needs the backslash)
    keep_files(layout)
    figures = None
    if output is not None or not as_json:
        figures = import_figures()
        output = output or pathlib.Path(f"{source.stem}.png")
        refuse_to_overwrite(output, None)
    history, feed = _load(source, layout, overrides, begin)
    if as_json:
        about = {"capture": None if feed is None else report(feed)}
        click.echo(json.dumps(_numbers(source, history) | about))
    if figures is not None and output is not None:
        title = f"{source.name}, layout {history.axes.layout}" if history.axes.layout else source.name
        try:
            figures.save(figures.draw(history, title=title, size=size), output)
        except OSError as exc:
            raise UnusableError(f"{output}: {exc.strerror or exc}") from None
        if not as_json:
            click.echo(f"{output}: {figures.summary(history)}.")
    elif not history.chunks:
        click.echo(f"{source}: nothing was received", err=True)
    if feed is not None:
        show_capture(Console(highlight=False, quiet=as_json), feed)
    context.exit(0 if history.chunks else 1)
