"""Options of a receiver, for recv and replay."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from speadrx._words import counted
from speadrx.layout.base import DeclarativeLayout
from speadrx.receive.receiver import Receiver

from . import quantities
from .options import all_sources_option
from .parameters import (
    Tolerance,
    force_option,
    naming_options,
    read_assignments,
    read_labels,
    read_number,
    read_processors,
    read_tolerance,
    user_data_by_thread,
)

_R = TypeVar("_R")

_OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Number of streams, each with a thread of its own. Endpoints are dealt out to them in order.",
    ),
    click.option(
        "--window",
        type=click.IntRange(min=1),
        metavar="CHUNKS",
        help="Chunks that are filled at the same time: the window.  [default: 64 MiB of chunks, but 2 to 16]",
    ),
    click.option(
        "--tolerance",
        callback=read_tolerance,
        metavar="TIME|SIZE",
        help="How late heaps may be, such as 0.5s or 64MiB: another way to give --window.",
    ),
    click.option(
        "--pool",
        type=click.IntRange(min=1),
        metavar="CHUNKS",
        help="Chunks to allocate.  [default: twice the window, and a few]",
    ),
    click.option("--resync/--no-resync", default=True, show_default=True, help="Follow senders that restart time."),
    click.option(
        "--max-jump",
        type=click.IntRange(min=0),
        metavar="CHUNKS",
        help="How far a heap may be ahead of the newest one.  [default: one chunk less than the window]",
    ),
    click.option(
        "--user-data",
        callback=read_assignments,
        multiple=True,
        metavar="NAME=VALUE",
        help="Index or stride that the heaps do not say. Give it once, or once for each thread, in order.",
    ),
    click.option(
        "--fill",
        callback=read_number,
        metavar="VALUE",
        help="Fill missing heaps with this value.  [default: they keep stale data]",
    ),
    click.option(
        "--history", type=click.Path(dir_okay=False), metavar="FILE", help="Record the run in FILE for 'speadrx plot'."
    ),
    force_option,
    click.option(
        "--max-loss",
        type=quantities.FRACTION,
        help="Exit with 1 if more heaps are missing, such as 0.001 or 0.1%.  [default: 100%]",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the account as JSON."),
    all_sources_option,
]


_NETWORK_OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--interface", metavar="NAME|ADDRESS", help="Interface to join groups on.  [default: as the routes say]"
    ),
    click.option("--ibv", is_flag=True, help="Bypass the kernel with ibverbs. Every endpoint needs an interface then."),
    click.option(
        "--comp-vector",
        type=click.IntRange(-(2**31), 2**31 - 1),
        default=0,
        show_default=True,
        metavar="N",
        help="Completion vector (interrupt) of the first thread, for --ibv; -1 to poll. Other threads get the next.",
    ),
    click.option(
        "--affinity",
        callback=read_processors,
        metavar="CPUS",
        help="Processor for each thread: 2,4 or 2-5.  [default: any]",
    ),
    click.option("--buffer", type=quantities.size(), help="Socket buffer of each thread.  [default: 64MiB]"),
    click.option(
        "--flush-after",
        type=quantities.time(above_least=True),
        help="Complete the chunks in the window after so long a silence.  [default: never]",
    ),
    click.option(
        "--metrics-port",
        type=click.IntRange(0, 65535),
        help="Serve metrics for Prometheus on this port; 0 means any free port.  [default: do not]",
    ),
    click.option(
        "--metrics-address",
        default="127.0.0.1",
        show_default=True,
        metavar="ADDRESS",
        help="Address to serve them on; 0.0.0.0 or :: means any, so that other machines can read them.",
    ),
    click.option(
        "--label",
        "labels",
        callback=read_labels,
        multiple=True,
        metavar="NAME=VALUE",
        help="Label that all of these metrics get, such as stream=l-band. It may be given several times.",
    ),
    click.option(
        "--interval",
        type=quantities.time(0.1),
        default="1s",
        show_default=True,
        help="Time between lines, if the output is not a terminal.",
    ),
    click.option("--quiet", is_flag=True, help="Show nothing until the end."),
]


def network_options(command: Callable[..., _R]) -> Callable[..., _R]:
    """Add the options of receivers that listen to the network, and of what such commands show meanwhile."""
    for option in reversed(_NETWORK_OPTIONS):
        command = option(command)
    return command


def receiver_options(command: Callable[..., _R]) -> Callable[..., _R]:
    """Add the options that `make_receiver` and `conclude` take."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def make_receiver(
    layout: DeclarativeLayout,
    sources: Any,
    *,
    threads: int,
    tolerance: Tolerance,
    pool: int | None,
    user_data: list[tuple[str, int]],
    fill: complex | None,
    **options: Any,
) -> Receiver:
    """Make a receiver and start it.

    Raises
    ------
    click.BadParameter, UnusableError
        If the arguments cannot be used.
    """
    # Receivers log warnings. This handler writes to what is sys.stderr then: a live view puts it above itself.
    assert logging.lastResort is not None
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, handlers=[logging.lastResort])
    if fill is not None:
        options["fill"] = fill
    with usable():
        receiver = Receiver(
            layout,
            sources,
            threads=threads,
            tolerance_seconds=tolerance.seconds,
            tolerance_bytes=tolerance.bytes,
            chunks=pool,
            user_data=user_data_by_thread(user_data, threads),
            **options,
        )
        receiver.start()
    return receiver


@contextlib.contextmanager
def usable() -> Iterator[None]:
    """End the command with a message and exit code 2 if it cannot use what it was given."""
    with naming_options():
        try:
            yield
        except OSError as exc:
            where = "" if exc.filename is None else f"{exc.filename}: "
            raise ValueError(where + (exc.strerror or str(exc))) from None
        except RuntimeError as exc:  # ibverbs cannot be used
            raise ValueError(str(exc)) from None


def describe_receiver(receiver: Receiver, where: str) -> str:
    """Say what is received, and how much memory it takes."""
    name, size = receiver.layout.declaration.name or "heaps", receiver.layout.chunk_bytes / 2**20
    window = counted(receiver.window, "chunk")
    return f"Receiving {name} from {where}: {len(receiver.pool)} chunks of {size:.3g} MiB, a window of {window}."
