"""`speadrx bench`: measure what a heap costs on this machine, and the rate over its loopback interface."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

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
from .critical import Critical, CriticalSearch
from .interrupt import interruptible
from .loopback import Loopback, Rate
from .options import load_layout, set_option
from .progress import Bar

#: Layout for the loopback interface, if none is given.
DEFAULT_LAYOUT = "meerkat-digitiser"
#: Seconds to time the placement of a layout for, in each round.
PLACEMENT_SECONDS = 0.2
#: Seconds of a trial of the search for the critical rate.
TRIAL_SECONDS = 0.5


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
    loopback = report["loopback"]
    _show_machine(console, report["machine"])
    placement = _table("Placement of a heap, in ns")
    for name, spread in report["placement_ns_per_heap"].items():
        _add(placement, name, spread, 1)
    console.print(placement)
    rates = _table(f"\nHighest loopback rate without loss, {loopback['layout']}")
    _add(rates, "heaps/s", loopback["heaps_per_second"], 0)
    _add(rates, "Gb/s of payload", loopback["gigabits_per_second"], 2)
    console.print(rates)
    _show_limits(console, loopback, "round", "rounds")


def _show_machine(console: Console, about: dict[str, Any]) -> None:
    console.print(
        f"{about['processor']}, {about['cores']} cores, {about['kernel']}; "
        f"Python {about['python']}, spead2 {about['spead2']}, speadrx {about['speadrx']}\n"
    )


def _show_limits(console: Console, rates: dict[str, Any], one: str, many: str) -> None:
    number = len(rates["heaps_per_second"]["rounds"])
    among = f"{number} {one if number == 1 else many}"
    limits = "; ".join(f"{_LIMITS[limit]} (in {n} of {among})" for limit, n in rates["limits"].items() if n)
    console.print(
        f"\nHeaps have {rates['heap_bytes']:,} bytes, packets at most {rates['max_packet_bytes']:,}.\n"
        f"What limits the rate: {limits}."
    )


def _report_critical(found: list[Critical], layout: Layout, chosen: str, max_packet_size: int) -> dict[str, Any]:
    """What all searches for the critical rate have found, as plain values."""
    heaps = [each.heaps_per_second for each in found]
    limits = [each.limit for each in found]
    return {
        "machine": machine(),
        "critical": {
            "layout": chosen,
            "heap_bytes": layout.heap_bytes,
            "max_packet_bytes": max_packet_size,
            "trial_seconds": TRIAL_SECONDS,
            "heaps_per_second": _spread(heaps),
            "gigabits_per_second": _spread([rate * layout.heap_bytes * 8e-9 for rate in heaps]),
            "limits": {limit: limits.count(limit) for limit in ("sender", "receiver", "loss")},
            "trials": sum(each.trials for each in found),
            "missing": sum(each.missing for each in found),
            "kernel_drops": sum(each.kernel_drops for each in found),
        },
    }


def _show_critical(console: Console, report: dict[str, Any]) -> None:
    critical = report["critical"]
    _show_machine(console, report["machine"])
    table = _table(f"Critical rate, the highest without loss, {critical['layout']}")
    _add(table, "heaps/s", critical["heaps_per_second"], 0)
    _add(table, "Gb/s of payload", critical["gigabits_per_second"], 2)
    console.print(table)
    _show_limits(console, critical, "search", "searches")
    console.print(
        f"{counted(critical['trials'], 'trial')} of {critical['trial_seconds']:g} s. Beyond the rate, "
        f"{counted(critical['missing'], 'heap')} were lost; the kernel dropped "
        f"{counted(critical['kernel_drops'], 'packet')}."
    )


def _check_layout(
    layout: Layout, name: str, max_packet_size: int, trial_seconds: float
) -> tuple[CallbackCost, Loopback]:
    try:
        user_data = default_user_data(layout)
        loopback = Loopback(layout, user_data, max_packet_size=max_packet_size, step_seconds=trial_seconds)
        return CallbackCost(layout, user_data), loopback
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
@click.option(
    "--critical",
    is_flag=True,
    help="Only search for the critical rate: the highest without loss, as RFC 2544 has it, by trials and bisection.",
)
@click.option(
    "--searches",
    type=click.IntRange(1, 1000),
    default=7,
    show_default=True,
    help="With --critical: how often to search. Each takes about half a minute.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, with the figures of each round.")
@click.pass_context
def bench(
    context: click.Context,
    name: str | None,
    overrides: tuple[str, ...],
    seconds: float,
    packet_bytes: int,
    critical: bool,
    searches: int,
    as_json: bool,
) -> None:
    """Measure what a heap costs on this machine.

    Placement: the time that the network thread needs to place a heap, in nanoseconds. It is measured as a call of
    the placement callback, less a call of a function that does nothing.

    Loopback: the highest rate at which one process can send heaps over UDP to a receiver on 127.0.0.1 without
    loss. Both are on this machine, so a network card and its driver play no part.

    Both are measured in several rounds. The report has the median and the quartiles of the rounds. Ctrl-C ends it
    early, with the rounds so far.

    With --critical, only the rate is searched for, more closely and several times: most of two or three trials decide
    on each rate, until the highest without loss is known to 2 %.

    \b
    Example:
      speadrx bench --seconds 60
      speadrx bench -l array.toml --json
      speadrx bench --critical

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
    cost, loopback = _check_layout(layout, chosen, packet_bytes, TRIAL_SECONDS if critical else 0.25)
    if critical:
        found = _run_critical(loopback, searches)
        report = _report_critical(found, layout, chosen, packet_bytes)
        _finish(context, report, report["critical"], _show_critical, as_json)
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
    _finish(context, report, report["loopback"], _show, as_json)


def _finish(
    context: click.Context,
    report: dict[str, Any],
    rates: dict[str, Any],
    show: Callable[[Console, dict[str, Any]], None],
    as_json: bool,
) -> NoReturn:
    if as_json:
        click.echo(json.dumps(report))
    else:
        show(Console(highlight=False), report)
    context.exit(0 if rates["heaps_per_second"]["median"] > 0 else 1)


@contextlib.contextmanager
def _progress(description: str, total: float) -> Iterator[tuple[Callable[[], bool], Callable[..., None]]]:
    """Show progress: whether to stop, and what changes the bar."""
    # Near its limit, a receiver logs warnings; but this limit is what is measured.
    logging.getLogger("speadrx").addHandler(logging.NullHandler())
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with interruptible() as interrupted, Bar(*columns) as progress:
        task = progress.add_task(description, total=total)
        yield interrupted.is_set, functools.partial(progress.update, task)


def _run_critical(loopback: Loopback, searches: int) -> list[Critical]:
    """Search until it is done often enough, or until Ctrl-C."""
    found: list[Critical] = []
    try:
        with loopback, _progress("search 1", searches) as (is_interrupted, update):
            search = CriticalSearch(loopback.trial)
            while len(found) < searches and (critical := search.search(is_interrupted)) is not None:
                found.append(critical)
                update(completed=len(found), description=f"search {len(found) + 1}")
    except (RuntimeError, MemoryError, OSError, ValueError) as exc:
        raise click.ClickException(str(exc)) from None
    if not found:
        raise click.ClickException("interrupted before the first search was finished: nothing was measured")
    return found


def _run(costs: dict[str, CallbackCost], loopback: Loopback, seconds: float) -> Results:
    results = Results()
    with loopback, _progress("round 1", seconds) as (is_interrupted, update):
        begin = time.monotonic()

        def stop() -> bool:
            update(completed=time.monotonic() - begin)
            return is_interrupted()

        for results in _measure(costs, loopback, seconds, stop):
            update(description=f"round {len(results.loopback) + 1}")
    return results
