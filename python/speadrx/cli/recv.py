"""`speadrx recv`: receive heaps of a layout from the network, and account for every heap."""

from __future__ import annotations

import contextlib
import functools
import shlex
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from speadrx.accounts.report import ReceiverStats
from speadrx.layout.base import DeclarativeLayout

from . import quantities
from .interrupt import interruptible
from .mismatch import on_network
from .options import layout_options
from .parameters import ENDPOINTS_AS_TYPED, describe, read_endpoints, read_labels, read_processors
from .receiving import describe_receiver, make_receiver, receiver_options
from .session import Session, conclude, lines, live
from .tables import printable


@click.command(
    epilog="\b\nExample:\n  speadrx recv -l meerkat-digitiser 239.1.2.3+7:7148 --interface 10.0.0.5 \\\n"
    "    --tolerance 20ms --seconds 10s --max-loss 0.1%"
)
@click.argument("endpoints", nargs=-1, required=True, callback=read_endpoints, metavar="ENDPOINTS...")
@layout_options
@click.option("--interface", metavar="NAME|ADDRESS", help="Interface to join groups on.  [default: as the routes say]")
@click.option("--ibv", is_flag=True, help="Bypass the kernel with ibverbs. Every endpoint needs an interface then.")
@click.option(
    "--comp-vector",
    type=click.IntRange(-(2**31), 2**31 - 1),
    default=0,
    show_default=True,
    metavar="N",
    help="Completion vector (interrupt) of the first thread, for --ibv; -1 to poll. Further threads get the next ones.",
)
@click.option(
    "--affinity",
    callback=read_processors,
    metavar="CPUS",
    help="Processor for each thread: 2,4 or 2-5.  [default: any]",
)
@click.option("--buffer", type=quantities.size(), help="Socket buffer of each thread.  [default: 64MiB]")
@click.option(
    "--flush-after",
    type=quantities.time(above_least=True),
    help="Complete the chunks in the window after so long a silence.  [default: never]",
)
@click.option(
    "--seconds",
    type=quantities.time(above_least=True),
    help="End after this time.  [default: never]",
)
@click.option(
    "--chunks", type=click.IntRange(min=1), metavar="N", help="End when N chunks are complete.  [default: never]"
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    help="Serve metrics for Prometheus on this port; 0 means any free port.  [default: do not]",
)
@click.option(
    "--metrics-address",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to serve them on; 0.0.0.0 or :: means any, so that other machines can read them.",
)
@click.option(
    "--label",
    "labels",
    callback=read_labels,
    multiple=True,
    metavar="NAME=VALUE",
    help="Label that all of these metrics get, such as stream=l-band. It may be given several times.",
)
@click.option(
    "--interval",
    type=quantities.time(0.1),
    default="1s",
    show_default=True,
    help="Time between lines, if the output is not a terminal.",
)
@click.option("--quiet", is_flag=True, help="Show nothing until the end.")
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
    where = describe(endpoints)
    _check_metrics(options)
    first = options["comp_vector"]
    options["comp_vector"] = [first + i if first >= 0 else first for i in range(options["threads"])]
    with interruptible() as interrupted:
        session = Session(make_receiver(layout, endpoints, **options), history)
        run = functools.partial(session.run, interrupted, seconds=seconds, chunks=chunks)
        receiver = session.receiver
        watching: contextlib.AbstractContextManager[Callable[[], None] | None] = contextlib.nullcontext()
        if not quiet:
            console.print(printable(describe_receiver(receiver, where)))
            if receiver.metrics_port is not None:
                console.print(f"Metrics: {_metrics_url(options['metrics_address'], receiver.metrics_port)}")
            if console.is_terminal and not console.is_dumb_terminal:
                watching = live(console, session, f"{layout.declaration.name or 'heaps'} from {where}", interrupted)
            elif not as_json:
                run = functools.partial(run, look=lines(session, interval))
        with watching as look:
            run() if look is None else run(look=look)
    code = conclude(session, console, as_json=as_json, all_sources=all_sources, max_loss=max_loss, endpoints=endpoints)
    context = click.get_current_context()
    stats = receiver.stats()
    if not stats.present:
        typed = [",".join(context.meta[ENDPOINTS_AS_TYPED])]
        typed += [] if options["interface"] is None else ["--interface", options["interface"]]
        if stats.packets:
            for text in on_network(layout, endpoints, options["interface"]):
                click.echo(text, err=True)
        click.echo(_why_nothing(stats, typed), err=True)
    context.exit(code)


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
