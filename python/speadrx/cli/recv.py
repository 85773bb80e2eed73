"""`speadrx recv`: receive heaps of a layout from the network, and account for every heap."""

from __future__ import annotations

import contextlib
import functools
import shlex
import threading
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from speadrx.accounts.report import ReceiverStats
from speadrx.layout.base import DeclarativeLayout
from speadrx.receive.receiver import Receiver

from . import quantities
from .interrupt import interruptible
from .mismatch import on_network
from .options import layout_options
from .parameters import ENDPOINTS_AS_TYPED, describe, read_endpoints
from .receiving import describe_receiver, make_receiver, network_options, receiver_options
from .session import Session, conclude, lines, live
from .tables import printable


@click.command(
    epilog="\b\nExample:\n  speadrx recv -l meerkat-digitiser 239.1.2.3+7:7148 --interface 10.0.0.5 \\\n"
    "    --tolerance 20ms --seconds 10s --max-loss 0.1%"
)
@click.argument("endpoints", nargs=-1, required=True, callback=read_endpoints, metavar="ENDPOINTS...")
@layout_options
@network_options
@click.option(
    "--seconds",
    type=quantities.time(above_least=True),
    help="End after this time.  [default: never]",
)
@click.option(
    "--chunks", type=click.IntRange(min=1), metavar="N", help="End when N chunks are complete.  [default: never]"
)
@receiver_options
def recv(
    *,
    layout: DeclarativeLayout,
    endpoints: list[tuple[str, int]],
    seconds: float | None,
    chunks: int | None,
    interval: float,
    quiet: bool,
    history: str | None,
    force: bool,
    max_loss: float | None,
    as_json: bool,
    all_sources: bool,
    **options: Any,
) -> None:
    """Receive from UDP ENDPOINTS, and account for every heap.

    ENDPOINTS are addresses of this machine, or multicast groups, such as :7148 or 239.1.2.3+7:7148, which stands for
    8 groups. eth1/239.1.2.3:7148 is a group on the interface eth1. A terminal shows a live view, with the worst
    source first. Otherwise a line is printed after each --interval. The data is not kept.

    q (in the live view), Ctrl-C, SIGTERM, SIGHUP, --seconds and --chunks end it. The chunks in the window are then
    completed too, so there may be a few more than --chunks. At the end, the full account is printed.

    \b
    Exit codes:
      0  heaps were received
      1  no heap was received, more were missing than --max-loss,
         or the account does not add up
      2  wrong usage, or the network cannot be used
    """  # noqa: D301 (click needs the backslash)
    console = Console(highlight=False, stderr=as_json)
    with interruptible() as interrupted:
        session = listen(layout, endpoints, lambda receiver: Session(receiver, history), options)
        run = functools.partial(session.run, interrupted, seconds=seconds, chunks=chunks)
        watch(run, session, console, interrupted, describe(endpoints), interval, quiet=quiet, is_logged=not as_json)
    code = conclude(session, console, as_json=as_json, all_sources=all_sources, max_loss=max_loss, endpoints=endpoints)
    say_why_nothing(session, layout, endpoints, options["interface"])
    click.get_current_context().exit(code)


def listen(
    layout: DeclarativeLayout,
    endpoints: list[tuple[str, int]],
    make: Callable[[Receiver], Session],
    options: dict[str, Any],
) -> Session:
    """Make a receiver that listens to the network, as the options say, and a session of it.

    Raises
    ------
    click.BadParameter, UnusableError
        If the arguments cannot be used.
    """
    _check_metrics(options)
    first = options["comp_vector"]
    vectors = [first + i if first >= 0 else first for i in range(options["threads"])]
    return make(make_receiver(layout, endpoints, **{**options, "comp_vector": vectors}))


def watch(
    run: Callable[..., None],
    session: Session,
    console: Console,
    interrupted: threading.Event,
    where: str,
    interval: float,
    *,
    quiet: bool,
    is_logged: bool,
) -> None:
    """Run a session; meanwhile show it live in a terminal, or else, if it `is_logged`, in lines, or not at all."""
    receiver = session.receiver
    watching: contextlib.AbstractContextManager[Callable[[], None] | None] = contextlib.nullcontext()
    if not quiet:
        console.print(printable(describe_receiver(receiver, where)))
        if receiver.metrics_port is not None:
            address = click.get_current_context().params["metrics_address"]
            console.print(f"Metrics: {_metrics_url(address, receiver.metrics_port)}")
        if console.is_terminal and not console.is_dumb_terminal:
            name = receiver.layout.declaration.name or "heaps"
            watching = live(console, session, f"{name} from {where}", interrupted)
        elif is_logged:
            watching = contextlib.nullcontext(lines(session, interval))
    with watching as look:
        run() if look is None else run(look=look)


def say_why_nothing(
    session: Session, layout: DeclarativeLayout, endpoints: list[tuple[str, int]], interface: str | None
) -> None:
    """Say what came instead, and what to do next, if no heap was received."""
    stats = session.receiver.stats()
    if stats.present:
        return
    typed = [",".join(click.get_current_context().meta[ENDPOINTS_AS_TYPED])]
    typed += [] if interface is None else ["--interface", interface]
    if stats.packets:
        for text in on_network(layout, endpoints, interface):
            click.echo(text, err=True)
    click.echo(_why_nothing(stats, typed), err=True)


def _why_nothing(stats: ReceiverStats, where: list[str]) -> str:
    """Say what to do next if no heap was received."""
    if not stats.packets:
        return f"No packet came. To find out what is wrong:\n    {shlex.join(['speadrx', 'doctor', *where])}"
    text = "Packets came, but no heap of this layout. To see what they carry:\n    "
    return text + shlex.join(["speadrx", "inspect", *where])


def _check_metrics(options: dict[str, Any]) -> None:
    """Refuse what only changes metrics that are not served."""
    source = click.get_current_context().get_parameter_source("metrics_address")
    given = {"--label": options["labels"], "--metrics-address": source is not ParameterSource.DEFAULT}
    for option, is_given in given.items():
        if is_given and options["metrics_port"] is None:
            raise click.BadParameter("no metrics are served without --metrics-port", param_hint=option)


def _metrics_url(address: str, port: int) -> str:
    """Where to read metrics on this machine."""
    host = "localhost" if address in ("127.0.0.1", "0.0.0.0", "::") else f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}/metrics"
