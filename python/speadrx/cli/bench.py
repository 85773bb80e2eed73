"""`speadrx bench`: measure what a heap costs on this machine, and the rate over its loopback interface."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import click
import numpy as np
import spead2
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from speadrx._core import __version__
from speadrx._words import counted
from speadrx.layout import presets
from speadrx.layout.base import DeclarativeLayout
from speadrx.layout.declaration import Layout

from . import quantities
from .callback_cost import CallbackCost
from .interrupt import interruptible
from .loopback import Loopback, Rate
from .options import load_layout, set_option
from .progress import Bar

#: Layout for the loopback interface, if none is given.
DEFAULT_LAYOUT = "meerkat-digitiser"
#: Seconds to time the placement of a layout for, in each round.
PLACEMENT_SECONDS = 0.2


def machine() -> dict[str, Any]:
    """What the figures depend on, as plain values."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), model)
    largest_buffer = None
    with contextlib.suppress(OSError, ValueError), open("/proc/sys/net/core/rmem_max", encoding="ascii") as file:
        largest_buffer = int(file.read())
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {platform.release()}",
        "rmem_max": largest_buffer,
        "python": platform.python_version(),
        "spead2": spead2.__version__,
        "numpy": np.__version__,
        "speadrx": __version__,
    }


def default_user_data(layout: DeclarativeLayout) -> dict[str, int]:
    """Return index 0 for each axis that a layout takes from ``user_data``."""
    return {axis.from_user_data: 0 for axis in layout.declaration.axes if axis.from_user_data is not None}


@dataclass
class Results:
    """What was measured, round by round."""

    #: Nanoseconds per heap, by layout.
    placement: dict[str, list[float]] = field(default_factory=dict)
    loopback: list[Rate] = field(default_factory=list)


def _measure(
    costs: dict[str, CallbackCost], loopback: Loopback, seconds: float, stop: Callable[[], bool]
) -> Iterator[Results]:
    """Measure round by round until the time is up. The first round is always finished, unless it is stopped."""
    results = Results({name: [] for name in costs})
    end = time.monotonic() + seconds
    while not stop() and (not results.loopback or time.monotonic() < end):
        times = {name: cost.measure(PLACEMENT_SECONDS) for name, cost in costs.items()}
        rate = loopback.measure(stop)
        if rate is None:
            return
        for name, nanoseconds in times.items():
            results.placement[name].append(nanoseconds)
        results.loopback.append(rate)
        yield results


def _spread(values: list[float]) -> dict[str, Any]:
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "quartiles": [float(low), float(high)], "rounds": values}


def _report(results: Results, layout: Layout, chosen: str, max_packet_size: int) -> dict[str, Any]:
    """All that was measured, as plain values."""
    limits = [rate.limit for rate in results.loopback]
    return {
        "machine": machine(),
        "placement_ns_per_heap": {name: _spread(times) for name, times in results.placement.items()},
        "loopback": {
            "layout": chosen,
            "heap_bytes": layout.heap_bytes,
            "max_packet_bytes": max_packet_size,
            "heaps_per_second": _spread([rate.heaps_per_second for rate in results.loopback]),
            "gigabits_per_second": _spread([rate.gigabits_per_second for rate in results.loopback]),
            "limits": {limit: limits.count(limit) for limit in ("sender", "receiver", "loss")},
        },
    }


_LIMITS = {
    "sender": "the sender cannot send faster",
    "receiver": "the receiver falls behind",
    "loss": "heaps are lost",
}


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("", min_width=40)
    table.add_column("median", justify="right", min_width=9)
    table.add_column("quartiles", justify="right", min_width=19)
    return table


def _add(table: Table, label: str, spread: dict[str, Any], digits: int) -> None:
    low, high = spread["quartiles"]
    table.add_row(label, f"{spread['median']:,.{digits}f}", f"{low:,.{digits}f} - {high:,.{digits}f}")


def _show(console: Console, report: dict[str, Any]) -> None:
    about, loopback = report["machine"], report["loopback"]
    console.print(
        f"{about['processor']}, {about['cores']} cores, {about['kernel']}; "
        f"Python {about['python']}, spead2 {about['spead2']}, speadrx {about['speadrx']}\n"
    )
    placement = _table("Placement of a heap, in ns")
    for name, spread in report["placement_ns_per_heap"].items():
        _add(placement, name, spread, 1)
    console.print(placement)
    rates = _table(f"\nHighest loopback rate without loss, {loopback['layout']}")
    _add(rates, "heaps/s", loopback["heaps_per_second"], 0)
    _add(rates, "Gb/s of payload", loopback["gigabits_per_second"], 2)
    console.print(rates)
    rounds = len(loopback["heaps_per_second"]["rounds"])
    limits = "; ".join(
        f"{_LIMITS[limit]} (in {n} of {counted(rounds, 'round')})" for limit, n in loopback["limits"].items() if n
    )
    console.print(
        f"\nHeaps have {loopback['heap_bytes']:,} bytes, packets at most {loopback['max_packet_bytes']:,}.\n"
        f"What limits the rate: {limits}."
    )


def _check_layout(layout: Layout, name: str, max_packet_size: int) -> tuple[CallbackCost, Loopback]:
    try:
        user_data = default_user_data(layout)
        return CallbackCost(layout, user_data), Loopback(layout, user_data, max_packet_size=max_packet_size)
    except ValueError as exc:
        raise click.UsageError(f"{name}: heaps of this layout cannot be simulated: {exc}") from None


@click.command()
@click.option(
    "-l",
    "--layout",
    "name",
    metavar="FILE|PRESET",
    help=f"Layout to measure: a TOML file, or one that comes with speadrx.  [default: all that come with speadrx for "
    f"the placement, {DEFAULT_LAYOUT} for the loopback interface]",
)
@set_option
@click.option(
    "--seconds",
    type=quantities.time(1),
    default="20s",
    show_default=True,
    help="Begin no more rounds after this time. A round takes a few seconds.",
)
@click.option(
    "--packet-bytes",
    "--packet-size",
    "packet_bytes",
    type=quantities.size(256, 65507),
    default=9000,
    show_default=True,
    help="Most bytes in a packet, including the SPEAD header but not the UDP header.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, with the figures of each round.")
@click.pass_context
def bench(
    context: click.Context,
    name: str | None,
    overrides: tuple[str, ...],
    seconds: float,
    packet_bytes: int,
    as_json: bool,
) -> None:
    """Measure what a heap costs on this machine.

    Placement: the time that the network thread needs to place a heap, in nanoseconds. It is measured as a call of
    the placement callback, less a call of a function that does nothing.

    Loopback: the highest rate at which one process can send heaps over UDP to a receiver on 127.0.0.1 without
    loss. Both are on this machine, so a network card and its driver play no part.

    Both are measured in several rounds. The report has the median and the quartiles of the rounds. Ctrl-C ends it
    early, with the rounds so far.

    \b
    Example:
      speadrx bench --seconds 60
      speadrx bench -l array.toml --json

    \b
    Exit codes:
      0  it was measured
      1  no round was finished, or heaps were lost at all rates
      2  wrong usage
    """  # noqa: D301 (click needs the backslash)
    if name is None and overrides:
        raise click.UsageError("--set changes a layout: give one with -l/--layout")
    chosen = name or DEFAULT_LAYOUT
    layout = load_layout(chosen, overrides, "-l/--layout")
    cost, loopback = _check_layout(layout, chosen, packet_bytes)
    costs = {chosen: cost}
    if name is None:
        for other in presets.names():
            preset = presets.load(other)
            if any(axis.payload_items for axis in preset.axes):
                continue  # no simulated sender makes such heaps
            costs[other] = CallbackCost(preset, default_user_data(preset))
    try:
        results = _run(costs, loopback, seconds)
    except (RuntimeError, MemoryError, OSError, ValueError) as exc:
        raise click.ClickException(str(exc)) from None
    if not results.loopback:
        raise click.ClickException("interrupted before the first round was finished: nothing was measured")
    report = _report(results, layout, chosen, packet_bytes)
    if as_json:
        click.echo(json.dumps(report))
    else:
        _show(Console(highlight=False), report)
    context.exit(0 if report["loopback"]["heaps_per_second"]["median"] > 0 else 1)


def _run(costs: dict[str, CallbackCost], loopback: Loopback, seconds: float) -> Results:
    # Near its limit, a receiver logs warnings; but this limit is what is measured.
    logging.getLogger("speadrx").addHandler(logging.NullHandler())
    results = Results()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with contextlib.ExitStack() as stack:
        interrupted = stack.enter_context(interruptible())
        progress = stack.enter_context(Bar(*columns))
        task = progress.add_task("round 1", total=seconds)
        begin = time.monotonic()

        def stop() -> bool:
            progress.update(task, completed=time.monotonic() - begin)
            return interrupted.is_set()

        with loopback:
            for results in _measure(costs, loopback, seconds, stop):
                progress.update(task, description=f"round {len(results.loopback) + 1}")
    return results
