"""`speadrx inspect`: see what packets in a capture or on the network carry, and propose a layout."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import math
import os
import pathlib
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from speadrx import _core
from speadrx._whole import whole_file
from speadrx._words import counted, listed
from speadrx.receive.endpoints import parse_endpoints
from speadrx.survey.capture import MOST_VALUES, Capture, read_datagrams

from . import quantities
from .interrupt import interruptible
from .parameters import UnusableError, announce_pipe, force_option, keep_files, naming_options

if TYPE_CHECKING:
    from speadrx.survey.heaps import Survey

    from .findings import Found, Origin

_POLL_SECONDS = 0.1
#: Packets of a file between updates of the progress bar.
_PROGRESS_PACKETS = 65536


def _reason(exc: OSError | ValueError) -> str:
    text = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
    return text.removeprefix("src: ")  # an argument of the library, not an option


def gather(
    source: str,
    interface: str | None,
    seconds: float,
    packets: int | None,
    *,
    most_values: int = MOST_VALUES,
    module: str = "findings",
) -> tuple[Survey, Origin]:
    """Survey the packets of a capture, or those that come to endpoints, until it is interrupted.

    Meanwhile, the module of this package that looks at them is imported.

    Raises
    ------
    click.BadParameter, UnusableError
        If the capture cannot be read, or the endpoints cannot be listened to.
    """
    most = math.inf if packets is None else packets
    if not os.path.exists(source):
        with interruptible() as interrupted:
            return _listen(source, interface, most_values, seconds, most, interrupted)
    if interface is not None:
        raise click.BadParameter(f"{source} is a file, which has no interface", param_hint="--interface")
    announce_pipe(source)
    try:
        # While a pipe has no writer, signals end the command: nothing was found yet.
        capture = read_datagrams(source, cut=True)
    except (OSError, ValueError) as exc:
        raise UnusableError(_reason(exc)) from None
    with interruptible(capture.end) as interrupted:
        return _read_capture(source, capture, most_values, most, interrupted, module)


def _read_capture(
    path: str, capture: Capture, most_values: int, most: float, interrupted: threading.Event, module: str
) -> tuple[Survey, Origin]:
    """Survey the packets of a capture, with a progress bar.

    Raises
    ------
    UnusableError
        If it cannot be read.
    """
    damage: str | None = None
    gathered = _core.Survey(most_values)
    with capture, _progress(capture.size, "Reading") as advance, _importing(module):
        try:
            # What comes through a pipe may come slowly: Ctrl-C is noted after each packet. It ends the pipe, and what
            # has come through it is still taken.
            is_pipe = capture.size is None
            at_once = 1 if is_pipe else _PROGRESS_PACKETS
            done = 0
            while done < most and (is_pipe or not interrupted.is_set()):
                wanted = int(min(at_once, most - done))
                came = gathered.read(capture.reader, wanted)
                done += came
                if came < wanted:
                    break
                if done % _PROGRESS_PACKETS == 0:
                    advance(capture.position)
        except (OSError, ValueError) as exc:
            damage = _reason(exc)
            if not capture.frames:
                raise UnusableError(damage) from None
    from speadrx.survey.heaps import Survey

    from .findings import Origin

    origin = Origin(path, live=False, capture=capture, damage=damage, interrupted=interrupted.is_set())
    return Survey(gathered=gathered), origin


def _listen(
    source: str,
    interface: str | None,
    most_values: int,
    seconds: float,
    most: float,
    interrupted: threading.Event,
) -> tuple[Survey, Origin]:
    """Survey the packets that come to endpoints, for so many seconds.

    Raises
    ------
    click.BadParameter, UnusableError
        If they cannot be listened to.
    """
    from speadrx.survey.heaps import Survey
    from speadrx.survey.live import Listener

    from .findings import Origin

    survey = Survey(most_values=most_values)
    try:
        with naming_options():
            listener = Listener(_endpoints(source), interface)
    except OSError as exc:
        raise UnusableError(_reason(exc)) from None
    end = time.monotonic() + seconds
    with listener, _progress(None, "Listening") as advance:
        done, heard = False, 0
        while not done:
            left = end - time.monotonic()
            # At the end, take what has come already.
            done = left <= 0 or interrupted.is_set()
            for datagram in listener.receive(0 if done else min(left, _POLL_SECONDS)):
                survey.add(*datagram)
                heard += 1
                if heard >= most:
                    done = True
                    break
            advance(survey.bytes)
        drops = listener.drops()
    origin = Origin(source, live=True, interface=interface, kernel_drops=drops, interrupted=interrupted.is_set())
    return survey, origin


@contextlib.contextmanager
def _importing(module: str) -> Iterator[None]:
    """Import what looks at heaps, which takes as long as to read a million packets: both go on at once.

    Until it is there, nothing else may be imported: two threads that import modules which import each other may see
    half of them.
    """
    thread = threading.Thread(target=importlib.import_module, args=(f"{__package__}.{module}",))
    thread.start()
    try:
        yield
    finally:
        thread.join()


@contextlib.contextmanager
def _progress(total: int | None, what: str) -> Iterator[Callable[[int], None]]:
    """Show how many bytes have been read, if standard error is a terminal."""
    if not sys.stderr.isatty():  # nothing would be shown, and rich takes long to import
        yield lambda done: None
        return
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn

    from .progress import Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Bar(*columns) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


def _chosen(streams: list[Found], number: int | None) -> Found:
    """The stream whose layout is wanted."""
    from .findings import MOST_SHOWN, describe_stream

    if number is None and len(streams) > 1:
        kinds = listed((describe_stream(n, found.stream) for n, found in enumerate(streams, 1)), MOST_SHOWN, "; ")
        raise click.UsageError(f"there are {len(streams)} streams ({kinds}); choose one with --stream")
    return streams[(number or 1) - 1]


def _endpoints(text: str) -> list[tuple[str, int]]:
    try:
        return list(dict.fromkeys(parse_endpoints(text)))
    except ValueError as exc:
        raise click.BadParameter(
            f"{text!r} is neither a file nor a list of endpoints, such as 239.1.2.3+7:7148 ({exc})",
            param_hint="SOURCE",
        ) from None


@click.command()
@click.argument("source")
@click.option(
    "--interface",
    metavar="NAME|ADDRESS",
    help="Interface to join groups on.  [default: as the routes say]",
)
@click.option(
    "--seconds",
    type=quantities.time(0, 86400, above_least=True),
    default="5s",
    show_default=True,
    help="How long to listen to endpoints.",
)
@click.option(
    "--packets", type=click.IntRange(min=1), metavar="N", help="Inspect only the first N packets.  [default: all]"
)
@click.option(
    "--stream", "number", type=click.IntRange(min=1), metavar="N", help="Show only stream N, and propose its layout."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    help="Write the proposed layout to this file.",
)
@force_option
@click.option("--toml", "as_toml", is_flag=True, help="Print only the proposed layout.")
@click.option("--json", "as_json", is_flag=True, help="Print all that was found as JSON.")
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

    SOURCE is a capture file in the format pcap or pcapng, as tcpdump and Wireshark write it (- is standard
    input), or endpoints to listen to: host:port or group+n:port, separated by commas, perhaps with an interface in
    front (eth1/239.1.2.3:7148).

    No layout is needed: items, lengths, senders and rates come from the packets themselves. The items that tell
    heaps apart become the axes of the proposed layout. The command says why, and what is uncertain. You have to
    add what no packet says, such as the dtype. Ctrl-C ends it early, with what was found until then.

    \b
    Example:
        speadrx inspect capture.pcap -o layout.toml
        speadrx inspect 239.1.2.3+7:7148 --interface 10.0.0.1

    \b
    Exit codes:
        0  a layout is proposed
        1  nothing came, or no layout can be proposed
        2  wrong usage, or SOURCE cannot be read
    """  # noqa: D301 (click needs the backslash)
    if as_toml and as_json:
        raise click.UsageError("give either --toml or --json, not both")
    keep_files(source)
    if source == "-":
        source = "/dev/stdin"
    as_text = not (as_json or as_toml)
    survey, origin = gather(source, interface, seconds, packets, module="findings_view" if as_text else "findings")
    from .findings import json_document, look

    streams = look(survey)
    if number is not None and streams and number > len(streams):
        raise click.BadParameter(f"{number}: there are only streams 1 to {len(streams)}", param_hint="--stream")
    if as_json:
        click.echo(json.dumps(json_document(origin, survey, streams), allow_nan=False))
    elif as_text:
        _show(origin, survey, streams, number)
    _finish(context, origin, survey, streams, number, output, force, as_toml)


def _show(origin: Origin, survey: Survey, streams: list[Found], number: int | None) -> None:
    """Show all packets together, then each stream, or the one that is asked for."""
    from rich.console import Console

    from .findings import MOST_SHOWN
    from .findings_view import show_stream, show_totals

    console = Console(highlight=False)
    show_totals(console, origin, survey)
    first, last = (1, MOST_SHOWN) if number is None else (number, number)
    for n, stream in enumerate(streams[first - 1 : last], first):
        console.print()
        show_stream(console, n, stream)
    if number is None and len(streams) > MOST_SHOWN:
        console.print(f"\n... and {len(streams) - MOST_SHOWN:,} more streams (--stream N shows one)")


def _finish(
    context: click.Context,
    origin: Origin,
    survey: Survey,
    streams: list[Found],
    number: int | None,
    output: pathlib.Path | None,
    force: bool,
    as_toml: bool,
) -> None:
    """Write the layout, or say why there is none, and end with the right exit code."""
    from .findings import toml_text

    if not streams:
        raise click.ClickException(_why_nothing(origin, survey))
    shown = streams if number is None else [streams[number - 1]]
    if output is None and not as_toml:
        context.exit(0 if all(found.proposal.layout is not None for found in shown) else 1)
    chosen = _chosen(streams, number)
    if chosen.proposal.layout is None:
        raise click.ClickException(f"no layout can be proposed: {chosen.proposal.obstacle}")
    toml = toml_text(chosen, origin.name)
    if as_toml:
        click.echo(toml, nl=False)
    if output is not None:
        try:
            if output.exists() and not force:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            with whole_file(output) as file:
                file.write_text(toml, encoding="utf-8")
        except OSError as exc:
            raise UnusableError(f"{output} cannot be written: {exc.strerror}") from None
        click.echo(f"Wrote {output}", err=True)


def _why_nothing(origin: Origin, survey: Survey) -> str:
    if survey.packets:
        return f"{origin.name}: {counted(survey.packets, 'packet')}, but no heaps that a layout could place"
    if origin.live:
        command = ["speadrx", "doctor", origin.name]
        command += [] if origin.interface is None else ["--interface", origin.interface]
        return (
            f"{origin.name}: nothing came. Does anyone send to this address and port? To find out what is wrong:\n"
            f"    {shlex.join(command)}"
        )
    frames = 0 if origin.capture is None else origin.capture.frames
    return f"{origin.name}: no UDP datagrams in {counted(frames, 'packet')}"
