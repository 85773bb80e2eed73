"""`speadrx bench`: what a heap costs on this machine, and the rate over its loopback interface."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from speadrx.layout import presets
from speadrx.layout.declaration import Layout

from .interrupt import interruptible
from .measure import CallbackCost, Loopback, Rate, default_user_data, machine
from .options import load_layout, set_option
from .parameters import read_finite
from .progress import Bar

#: For the loopback interface, if no layout is given.
DEFAULT_LAYOUT = "meerkat-digitiser"
#: Seconds that the placement of a layout is timed for in a round.
PLACEMENT_SECONDS = 0.2


@dataclass
class Results:
    """What was measured, round by round."""

    #: ns per heap, by layout.
    placement: dict[str, list[float]] = field(default_factory=dict)
    loopback: list[Rate] = field(default_factory=list)


def _measure(
    costs: dict[str, CallbackCost], loopback: Loopback, seconds: float, stop: Callable[[], bool]
) -> Iterator[Results]:
    """Measure round by round until the time is up; each round is whole, and the first always ends unless stopped."""
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
    """All that was measured, as JSON can say it."""
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
    "sender": "the sender can do no more",
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
    placement = _table("Placement, ns per heap")
    for name, spread in report["placement_ns_per_heap"].items():
        _add(placement, name, spread, 1)
    console.print(placement)
    rates = _table(f"\nLoopback without loss, {loopback['layout']}")
    _add(rates, "heaps/s", loopback["heaps_per_second"], 0)
    _add(rates, "Gb/s of payload", loopback["gigabits_per_second"], 2)
    console.print(rates)
    rounds = len(loopback["heaps_per_second"]["rounds"])
    limits = "; ".join(f"{_LIMITS[limit]} ({n} of {rounds} rounds)" for limit, n in loopback["limits"].items() if n)
    console.print(
        f"\nHeaps have {loopback['heap_bytes']:,} bytes, packets at most {loopback['max_packet_bytes']:,}.\n"
        f"What limits the rate: {limits}."
    )


def _check_layout(layout: Layout, name: str, max_packet_size: int) -> tuple[CallbackCost, Loopback]:
    try:
        user_data = default_user_data(layout)
        return CallbackCost(layout, user_data), Loopback(layout, user_data, max_packet_size=max_packet_size)
    except ValueError as exc:
        raise click.UsageError(f"{name}: heaps of this layout cannot be made: {exc}") from None


@click.command()
@click.option(
    "-l",
    "--layout",
    "name",
    metavar="FILE|PRESET",
    help=f"Layout to measure: a TOML file, or one that comes with speadrx.  [default: the placement of all that "
    f"come with it, and {DEFAULT_LAYOUT} for the loopback interface]",
)
@set_option
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    callback=read_finite,
    default=20.0,
    show_default=True,
    help="Time after which no further round begins; a round takes some seconds.",
)
@click.option(
    "--packet-bytes",
    type=click.IntRange(256, 65507),
    default=9000,
    show_default=True,
    help="Bytes of a packet at most, SPEAD header included, UDP header not.",
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

    Placement: what a call of the placement callback takes in the network thread, above a call of nothing,
    in ns per heap. Loopback: the highest rate at which a process sends heaps over UDP to a receiver on
    127.0.0.1 without losing any, both on this machine; a network card and its driver are not in it. These are
    measured in turn, in rounds; the report has medians and quartiles of the rounds. Ctrl-C ends it early, with the
    rounds so far.

    \b
    Example:
      speadrx bench --seconds 60
      speadrx bench -l array.toml --json

    Exit codes: 0, measured; 1, no round was finished, or heaps were lost at any rate; 2, wrong usage.
    """  # noqa: D301
    if name is None and overrides:
        raise click.UsageError("--set changes the layout given by -l/--layout, but there is none")
    chosen = name or DEFAULT_LAYOUT
    layout = load_layout(chosen, overrides, "-l/--layout")
    cost, loopback = _check_layout(layout, chosen, packet_bytes)
    costs = {chosen: cost}
    if name is None:
        for other in presets.names():
            preset = presets.load(other)
            costs[other] = CallbackCost(preset, default_user_data(preset))
    try:
        results = _run(costs, loopback, seconds)
    except (RuntimeError, MemoryError, OSError, ValueError) as exc:
        raise click.ClickException(str(exc)) from None
    if not results.loopback:
        raise click.ClickException("interrupted before a round was finished: nothing was measured")
    report = _report(results, layout, chosen, packet_bytes)
    if as_json:
        click.echo(json.dumps(report))
    else:
        _show(Console(highlight=False), report)
    context.exit(0 if report["loopback"]["heaps_per_second"]["median"] > 0 else 1)


def _run(costs: dict[str, CallbackCost], loopback: Loopback, seconds: float) -> Results:
    # What a receiver has to complain of near its limit is what is measured.
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
