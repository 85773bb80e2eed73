"""`speadrx record`: receive heaps of a layout, and write them to disk as Zarr, with an account of every heap."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import shutil
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from speadrx.layout.base import DeclarativeLayout
from speadrx.receive.feed import CaptureSource
from speadrx.receive.receiver import Receiver
from speadrx.record import Recorder
from speadrx.record.cut import Cutting, Source
from speadrx.record.part import Stored, check_selection
from speadrx.record.recording import Begin, hold_folder, is_recording, release_folder

from . import quantities
from .captured import open_capture, report, run_capture, show_capture
from .interrupt import interruptible
from .meaning import index_of
from .options import begin_option, layout_options, refuse_begin
from .parameters import UnusableError, describe, naming_options, read_sources
from .pieces import Limits, Pieces, complain, document, existing, summary
from .progress import PolledProgress
from .receiving import describe_receiver, make_receiver, network_options, receiver_options
from .recorded import open_recording, readable
from .recv import listen, say_why_nothing, watch
from .replay import say_what_came
from .session import Session, conclude
from .tables import printable

#: What does not make sense for a capture.
_OF_NETWORK = ("interface", "ibv", "comp_vector", "affinity", "buffer", "flush_after")
_OF_METRICS = ("metrics_port", "metrics_address", "labels")
#: What makes sense for a recording.
_OF_RECORDINGS = (
    *("source", "output", "seconds", "chunks", "max_bytes", "split", "begin", "select", "compress", "patience"),
    *("force", "as_json", "quiet"),
)


def _selected(layout: DeclarativeLayout, texts: tuple[str, ...]) -> dict[str, list[int]]:
    """Read values of axes, such as ``antenna=3,7``, or the label of a source."""
    axes, sources = {axis.name: axis for axis in layout.declaration.axes}, layout.declaration.sources
    selection: dict[str, list[int]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals:
            name, values = sources or "", text
        if name not in axes:
            raise ValueError(
                f"select: {text!r}: the layout has no axis {name!r}; its axes are {', '.join(axes) or 'none'}"
            )
        numbers, labels = axes[name]._numbers, layout.source_labels if name == sources else ()
        chosen = [numbers[index_of("select", value, name, numbers, labels)] for value in values.split(",")]
        selection[name] = selection.get(name, []) + chosen
    return selection


@click.command(
    epilog="\b\nExamples:\n  speadrx record -l array.toml :7148 -o night.zarr --seconds 10s\n"
    "  speadrx record -l array.toml capture.pcap -o night.zarr --select antenna=2\n"
    "  speadrx record night.zarr -o antenna2.zarr --select antenna=2 --compress zstd"
)
@click.argument("source", nargs=-1, required=True, callback=read_sources, metavar="SOURCES...")
@functools.partial(layout_options, required=False)
@click.option(
    "-o", "--output", type=click.Path(path_type=str), required=True, metavar="PATH", help="The recording to make."
)
@click.option(
    "--seconds",
    type=quantities.time(above_least=True),
    help="End after this time; of the data, if SOURCES is a capture.  [default: never]",
)
@click.option("--chunks", type=click.IntRange(min=1), metavar="N", help="End with N chunks.  [default: never]")
@click.option(
    "--max-bytes",
    type=quantities.size(1),
    help="End before the data, without metadata, takes more of the disk.  [default: never]",
)
@click.option(
    "--split",
    type=quantities.time(above_least=True),
    help="Begin another recording whenever so much time of the data has passed.  [default: never]",
)
@begin_option
@click.option(
    "--select",
    multiple=True,
    metavar="AXIS=VALUES",
    help="Keep only this of an axis, such as antenna=3,7; or the source with a label, such as m003.  [default: all]",
)
@click.option(
    "--compress",
    type=click.Choice(["zstd"]),
    help="Compress each chunk. It takes much of the processors, and noise hardly gets smaller.  [default: do not]",
)
@click.option(
    "--patience",
    type=quantities.time(above_least=True),
    default="1min",
    show_default=True,
    help="Give a disk up that has done nothing for so long, at the end.",
)
@network_options
@receiver_options
def record(
    *,
    layout: DeclarativeLayout | None,
    source: str | list[tuple[str, int]],
    output: str,
    seconds: float | None,
    chunks: int | None,
    max_bytes: int | None,
    split: float | None,
    begin: Begin | None,
    select: tuple[str, ...],
    compress: str | None,
    patience: float,
    interval: float,
    quiet: bool,
    history: str | None,
    force: bool,
    max_loss: float | None,
    as_json: bool,
    all_sources: bool,
    **options: Any,
) -> None:
    """Receive from SOURCES, and write what comes to disk.

    SOURCES are UDP endpoints, as for recv, or a capture, as for replay; or a recording, of which another one is made:
    of some of its sources, or some of its time, or compressed. The recording is a folder in the format Zarr
    v3, which xarray, zarr-python and others read: the data, what of it is present, and its time, with gaps where
    nothing came. A live view shows loss, rate, and the queue of chunks that wait for the disk.

    Reception from the network never waits for the disk: what cannot be written is counted, by its cause. A capture is
    read only as fast as it can be written. q (in the live view), Ctrl-C, SIGTERM, SIGHUP, --seconds, --chunks and
    --max-bytes end it; the recording is then finished. With --split, the recordings are night_000.zarr,
    night_001.zarr and so on.

    \b
    Exit codes:
      0  heaps were received, and all of them are in the recording
      1  no heap was received, more were missing than --max-loss,
         or the account does not add up
      2  wrong usage, or what cannot be used: network, capture, PATH
      3  not all of what was received could be written
    """  # noqa: D301 (click needs the backslash)
    output = os.path.normpath(output)
    if isinstance(source, str) and os.path.isdir(source):
        _cut(source, output, split, (chunks, max_bytes, seconds), select, begin, compress=compress, patience=patience)
    refuse_begin(begin)
    if layout is None:
        (parameter,) = (one for one in record.params if one.name == "name_or_path")
        raise click.MissingParameter(param=parameter)
    is_capture = isinstance(source, str)
    console = Console(highlight=False, stderr=as_json, quiet=as_json and is_capture)
    limits = Limits(chunks, max_bytes, _ticks(layout, seconds, "--seconds") if is_capture else None)
    split_ticks = _ticks(layout, split, "--split")
    old = _existing(output, force, is_split=split is not None)
    with naming_options():
        selection = _selected(layout, select)
        _check_room(layout, selection, max_bytes)
    made: list[Pieces] = []

    def make(receiver: Receiver) -> Session:
        recorder = functools.partial(
            Recorder,
            receiver,
            select=selection,
            wait=is_capture,
            overwrite=force,
            compress=compress,
            patience=patience,
        )
        try:
            with naming_options(), _usable(output):
                made.append(Pieces(receiver, output, recorder, split_ticks, limits, layout.chunk_timestamp_step))
        except ModuleNotFoundError as exc:
            raise UnusableError(str(exc)) from None
        _remove(old, made[0])
        return Session(receiver, history, made[0])

    feed = None
    capture = _open_capture(source, options) if isinstance(source, str) else None
    with interruptible() as interrupted:
        if isinstance(source, str):
            assert capture is not None
            rest = {name: value for name, value in options.items() if name not in (*_OF_NETWORK, *_OF_METRICS)}
            session = make(make_receiver(layout, capture.parts, **rest))
            console.print(printable(describe_receiver(session.receiver, source)))
            feed = run_capture(session, interrupted, capture)
        else:
            session = listen(layout, source, make, options)
            run = functools.partial(session.run, interrupted, seconds=seconds)
            watch(run, session, console, interrupted, describe(source), interval, quiet=quiet, is_logged=not as_json)
    about: dict[str, Any] = {"recording": document(made[0])}
    about |= {"endpoints": source} if feed is None else {"file": source, "capture": report(feed)}
    code = conclude(session, console, as_json=as_json, all_sources=all_sources, max_loss=max_loss, **about)
    for text in summary(made[0]):
        console.print(printable(text))
    unwritten = complain(made[0])
    if isinstance(source, str):
        say_what_came(session, layout, source)
        assert feed is not None
        show_capture(console, feed)
    else:
        say_why_nothing(session, layout, source, options["interface"])
    click.get_current_context().exit(unwritten or code)


def _cut(
    path: str,
    output: str,
    split: float | None,
    wanted: tuple[int | None, int | None, float | None],
    select: tuple[str, ...],
    begin: Begin | None,
    **options: Any,
) -> None:
    """Make a recording of a recording, and exit."""
    context = click.get_current_context()
    recording = open_recording(path)
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if given and parameter.name not in _OF_RECORDINGS:
            raise click.BadParameter(f"{path} is a recording, which needs no such option", param=parameter)
    as_json, force = context.params["as_json"], context.params["force"]
    console = Console(highlight=False, quiet=as_json or context.params["quiet"])
    with naming_options():
        chunks, max_bytes, seconds = wanted
        ticks, split_ticks = (
            _ticks(recording.layout, time, option) for time, option in ((seconds, "--seconds"), (split, "--split"))
        )
        for other in existing(output, is_split=split is not None):
            if os.path.exists(other) and os.path.samefile(path, other):
                raise click.BadParameter(f"{other} is the recording that is to be cut", param_hint="--output")
        if pathlib.Path(path).resolve() in pathlib.Path(output).resolve().parents:
            raise click.BadParameter(f"{output} is in the recording that is to be cut", param_hint="--output")
        try:
            old = _existing(output, force, is_split=split is not None)
            source = Source(recording, _selected(recording.layout, select), begin)
            _check_room(recording.layout, source.select, max_bytes)
            with _usable(output):
                make = functools.partial(Cutting, source, overwrite=force, **options)
                limits = Limits(chunks, max_bytes, ticks)
                pieces = Pieces(None, output, make, split_ticks, limits, recording.layout.chunk_timestamp_step)
        except ModuleNotFoundError as exc:
            raise UnusableError(str(exc)) from None
    _remove(old, pieces)
    console.print(printable(f"Cutting {path}."))
    ended_by = _copy(source, pieces, console)
    if as_json:
        click.echo(json.dumps({"file": path, "recording": document(pieces), "ended_by": ended_by}))
    for text in summary(pieces):
        console.print(printable(text))
    code = complain(pieces)
    if not code and not pieces.stats().heaps:
        click.echo(f"{path} has no heap of that.", err=True)
        code = 1
    context.exit(code)


def _copy(source: Source, pieces: Pieces, console: Console) -> str:
    """Write what is to be written of a recording, and show how far it is. Return why it ended."""
    done, is_whole = 0, False
    with interruptible() as interrupted, contextlib.ExitStack() as stack:
        # What breaks off must not look as if it were all.
        stack.callback(lambda: pieces.close(is_whole=is_whole))
        stack.enter_context(readable(source.recording.path))
        if not console.quiet:
            stack.enter_context(PolledProgress(source.n_chunks, lambda: (done, pieces.line())))
        ended_by: str | None = None
        for chunk in source.chunks():
            ended_by = "signal" if interrupted.is_set() else pieces.full()
            if ended_by is not None:
                break
            if isinstance(chunk, int):
                pieces.reach(chunk)
            else:
                pieces.add(chunk)
                done += 1
        is_whole = True
    return ended_by or "end"


def _ticks(layout: DeclarativeLayout, seconds: float | None, option: str) -> int | None:
    """A time of the data in ticks."""
    rate = layout.declaration.time.tick_rate
    if seconds is None:
        return None
    if rate is None:
        raise click.BadParameter(
            "the layout does not say how fast its time goes: --set time.tick_rate=1e6, say", param_hint=option
        )
    return max(round(seconds * rate), 1)


def _existing(output: str, force: bool, *, is_split: bool) -> list[str]:
    """Return what is to be removed: nothing, or with ``--force`` all that is there, if it is recordings."""
    found = existing(output, is_split=is_split)
    for path in found:
        if not force:
            raise click.BadParameter(f"{path} exists: use --force to overwrite it", param_hint="--output")
        if not is_recording(path):
            raise click.BadParameter(
                f"{path} exists, and is no recording: --force leaves it alone", param_hint="--output"
            )
        with _usable(path):
            release_folder(hold_folder(path))
    return found


def _check_room(layout: DeclarativeLayout, select: dict[str, list[int]], max_bytes: int | None) -> None:
    """Check what is to be stored, before anything is removed for it."""
    chunk_bytes = Stored(layout, check_selection(layout, select)).chunk_bytes
    if max_bytes is not None and max_bytes < chunk_bytes:
        raise ValueError(f"max_bytes: given {max_bytes}, but a chunk has {chunk_bytes}")


def _remove(old: list[str], pieces: Pieces) -> None:
    """Remove all that is left of what was there, now that nothing more can be wrong."""
    for path in set(old).difference(pieces.paths):
        with _usable(path):
            shutil.rmtree(path)


@contextlib.contextmanager
def _usable(path: str) -> Any:
    try:
        yield
    except OSError as exc:
        raise click.BadParameter(f"{path}: {exc.strerror or exc}", param_hint="--output") from None


def _open_capture(path: str, options: dict[str, Any]) -> CaptureSource:
    """Open a capture, if the options are such that it can be received."""
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") not in (ParameterSource.DEFAULT, None)
        if parameter.name in (*_OF_NETWORK, *_OF_METRICS) and given:
            raise click.BadParameter(f"{path} is a capture, which needs no such option", param=parameter)
    threads = options["threads"]
    if threads > 1:
        raise click.BadParameter(f"{path} is a capture, which takes one thread", param_hint="--threads")
    return open_capture(path)
