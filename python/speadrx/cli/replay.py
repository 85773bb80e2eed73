"""`speadrx replay`: receive the heaps in a capture, or send a recording, as fast as possible or at its own pace."""

from __future__ import annotations

import functools
import os
from typing import Any

import click
from rich.console import Console

from speadrx.layout.base import DeclarativeLayout

from .captured import open_capture, report, run_capture, show_capture
from .interrupt import interruptible
from .mismatch import in_capture
from .options import layout_options
from .parameters import STDIN, read_endpoints, read_finite
from .receiving import describe_receiver, make_receiver, receiver_options
from .session import Session, conclude
from .tables import printable


@click.command(epilog="\b\nExample:\n  speadrx replay capture.pcap -l meerkat-digitiser --to 239.1.2.3+7:7148 --json")
@click.argument("path", metavar="FILE", type=click.Path(exists=True, allow_dash=True))
@functools.partial(layout_options, required=False)
@click.option(
    "--pace",
    type=click.FloatRange(min=0, min_open=True),
    callback=read_finite,
    metavar="FACTOR",
    help="How many times faster than recorded.  [default: as fast as possible; for recordings 1, if their layout has a "
    "tick_rate]",
)
@click.option(
    "--to",
    "endpoints",
    callback=read_endpoints,
    multiple=True,
    metavar="ENDPOINTS",
    help="Replay only packets to these endpoints; :7148 is port 7148 of any address. They are dealt out to --threads.  "
    "[default: all packets]  For recordings: where to send.",
)
@click.option(
    "--marks/--no-marks",
    default=True,
    help="For recordings: whether heaps that follow a gap, or a restart, have an item more, which tells a receiver of "
    "speadrx to go there at once. Others take no notice.  [default: marks]",
)
@receiver_options
def replay(
    *,
    layout: DeclarativeLayout | None,
    path: str,
    pace: float | None,
    endpoints: list[tuple[str, int]],
    marks: bool,
    threads: int,
    history: str | None,
    force: bool,
    max_loss: float | None,
    as_json: bool,
    all_sources: bool,
    **options: Any,
) -> None:
    """Receive the heaps in a capture FILE, and account for every heap. Or send a recording.

    A capture is in the format pcap or pcapng, and needs a layout; - is standard input, as in
    'tcpdump -w - udp | speadrx replay -'. Its link layer need not be Ethernet.

    Without --pace, the file is read as fast as possible and no heap is lost, because reading waits for the receiver.
    With --pace, packets come as they were recorded. Ctrl-C, SIGTERM and SIGHUP end it with the account so far.

    If FILE is a recording (night.zarr), it is sent to --to as the SPEAD stream that it was: with its own layout, times
    and gaps. What is missing in it is not sent. Of the other options, --pace, --marks, --user-data and --json have a
    meaning then.

    \b
    Exit codes:
      0  heaps were received, or a recording was sent
      1  no heap was received or sent, more were missing than --max-loss,
         or the account does not add up
      2  wrong usage, or FILE cannot be used (what comes before damage is received)
    """  # noqa: D301 (click needs the backslash)
    if os.path.isdir(path):
        from .resend import resend

        resend(path, endpoints, pace=pace, user_data=dict(options["user_data"]), marks=marks, as_json=as_json)
        return
    if not marks:
        raise click.UsageError(f"--marks/--no-marks has no meaning for a capture, which is received as it is: {path}")
    if layout is None:
        context = click.get_current_context()
        raise click.MissingParameter(ctx=context, param=context.command.params[1])
    if threads > 1 and len(endpoints) < threads:
        raise click.UsageError(
            f"--threads {threads} needs at least {threads} endpoints in --to, to deal out to threads"
        )
    if path == "-":
        path = STDIN
    console = Console(highlight=False, quiet=as_json)
    source = open_capture(path, threads=threads, endpoints=endpoints, pace=pace)
    with interruptible() as interrupted:
        receiver = make_receiver(layout, source.parts, threads=threads, **options)
        session = Session(receiver, history)
        console.print(printable(describe_receiver(receiver, path)))
        feed = run_capture(session, interrupted, source)
    about = {"file": path, "pace": pace, "capture": report(feed)}
    code = conclude(session, console, as_json=as_json, all_sources=all_sources, max_loss=max_loss, **about)
    say_what_came(session, layout, path)
    show_capture(console, feed, pace)
    click.get_current_context().exit(code)


def say_what_came(session: Session, layout: DeclarativeLayout, path: str) -> None:
    """Say what came instead, if most heaps of a capture are not of the layout."""
    stats = session.receiver.stats()
    if stats.rejected["metadata_heaps"] > stats.present and os.path.isfile(path):  # a pipe is empty now
        for text in in_capture(layout, path):
            click.echo(text, err=True)
