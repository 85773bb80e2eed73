"""The options that recv and replay share, and the receiver that is made of them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from speadrx.layout.base import DeclarativeLayout
from speadrx.receive.receiver import Receiver

from .parameters import (
    Tolerance,
    naming_options,
    read_assignments,
    read_finite,
    read_number,
    read_tolerance,
    user_data_by_thread,
)

_R = TypeVar("_R")

_OPTIONS = [
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Streams, each in a thread of its own; what there is to receive is dealt out to them in order.",
    ),
    click.option(
        "--window",
        type=click.IntRange(min=1),
        metavar="CHUNKS",
        help="Chunks under construction.  [default: those of 64 MiB, from 2 to 16]",
    ),
    click.option(
        "--tolerance",
        callback=read_tolerance,
        metavar="TIME|SIZE",
        help="How late heaps may be, such as 0.5s or 64MiB; instead of --window.",
    ),
    click.option(
        "--pool",
        type=click.IntRange(min=1),
        metavar="CHUNKS",
        help="Chunks to allocate.  [default: twice those under construction, and a few]",
    ),
    click.option("--resync/--no-resync", default=True, show_default=True, help="Follow senders that go back in time."),
    click.option(
        "--max-jump",
        type=click.IntRange(min=0),
        metavar="CHUNKS",
        help="How far one heap may be ahead of the newest.  [default: the window less one]",
    ),
    click.option(
        "--user-data",
        callback=read_assignments,
        multiple=True,
        metavar="NAME=VALUE",
        help="Index or stride that is not told by the heaps: once, or once for each thread, in order.",
    ),
    click.option(
        "--fill", callback=read_number, metavar="VALUE", help="Overwrite missing heaps with it.  [default: leave them]"
    ),
    click.option(
        "--history", type=click.Path(dir_okay=False), metavar="FILE", help="Record the run for 'speadrx plot'."
    ),
    click.option(
        "--max-loss",
        type=click.FloatRange(0, 100),
        callback=read_finite,
        metavar="PERCENT",
        help="Exit with 1 if more heaps are missing, chunks that are cut short at the end left out.  [default: 100]",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the account as JSON."),
    click.option("--all-sources", is_flag=True, help="Show all sources, also if they do not fit the terminal."),
]


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
        If that is not possible.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)  # receivers have warnings
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
    """End the command with exit code 2, and a message, if what it was given cannot be used."""
    with naming_options():
        try:
            yield
        except OSError as exc:
            where = "" if exc.filename is None else f"{exc.filename}: "
            raise ValueError(where + (exc.strerror or str(exc))) from None


def describe_receiver(receiver: Receiver, where: str) -> str:
    """Say what is received, and with how much memory."""
    name, size = receiver.layout.declaration.name or "heaps", receiver.layout.chunk_bytes / 2**20
    chunks = f"chunks of {size:.3g} MiB, {receiver.window} at a time, {len(receiver.pool)} in all"
    return f"Receiving {name} from {where}: {chunks}."
