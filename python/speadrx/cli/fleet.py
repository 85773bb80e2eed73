"""`speadrx fleet`: receive with many receivers on the workers of a Dask cluster, and account for every heap."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from rich.console import Console

from speadrx._words import counted, listed
from speadrx.receive.endpoints import format_endpoint

from . import quantities
from .interrupt import interruptible
from .options import all_sources_option
from .parameters import UnusableError
from .tables import Format, Rows, exact, percentage, printable, table_of, tally

if TYPE_CHECKING:
    from speadrx.fleet import Fleet, FleetStats, Plan, Share, ShareStats
    from speadrx.fleet.account import SourceLoss
    from speadrx.fleet.fit import Problem

#: Seconds between looks for a reason to end.
_LOOK = 0.1
#: Seconds that a scheduler has to answer.
_ANSWER_SECONDS = 60.0
#: Seconds without a report after which a share is named.
_SILENT = 3.0


def _read_plan(context: click.Context, parameter: click.Parameter, path: str) -> Plan:
    from speadrx.fleet.plan import Plan

    try:
        plan = Plan.from_toml(path)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from None
    except OSError as exc:
        raise click.BadParameter(f"{path}: {exc.strerror or exc}") from None
    if isinstance(plan.function, str):  # whose module is looked for beside the plan, here and by workers of --local
        sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    return plan


def _read_scheduler(context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    if text is not None and not re.fullmatch(r"(tcp|tls|ws|wss|ucx)://.+:[0-9]+", text):
        raise click.BadParameter(f"{text!r} is not the address of a scheduler, such as tcp://10.0.0.1:8786")
    return text


@click.command(
    epilog="\b\nExamples:\n  speadrx fleet plan.toml\n  speadrx fleet plan.toml --local 4 --seconds 10s\n"
    "  speadrx fleet plan.toml --scheduler tcp://10.0.0.1:8786"
)
@click.argument("plan", callback=_read_plan, metavar="PLAN")
@click.option("--local", type=click.IntRange(min=1), metavar="N", help="Start N workers on this machine.")
@click.option(
    "--scheduler", callback=_read_scheduler, metavar="ADDRESS", help="Use the workers of a scheduler that runs."
)
@click.option("--seconds", type=quantities.time(above_least=True), help="End after this time.  [default: never]")
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    help="Serve the account for Prometheus on this port; 0 means any free port.  [default: do not]",
)
@click.option(
    "--metrics-address",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to serve it on; 0.0.0.0 or :: means any.",
)
@click.option(
    "--interval", type=quantities.time(0.1), default="1s", show_default=True, help="Time between lines of the account."
)
@click.option("--quiet", is_flag=True, help="Show nothing until the end.")
@click.option(
    "--max-loss",
    type=quantities.FRACTION,
    help="Exit with 1 if more heaps are missing, such as 0.001 or 0.1%.  [default: 100%]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the account as JSON.")
@all_sources_option
def fleet(
    *,
    plan: Plan,
    local: int | None,
    scheduler: str | None,
    seconds: float | None,
    metrics_port: int | None,
    metrics_address: str,
    interval: float,
    quiet: bool,
    max_loss: float | None,
    as_json: bool,
    all_sources: bool,
) -> None:
    """Receive what PLAN says, with a receiver for each share of it.

    PLAN is a TOML file: a layout, endpoints, how they are dealt out, and what is done with the chunks. Without --local
    and --scheduler, it is only checked and shown. Otherwise it is shown with all that does not fit the workers, and
    receiving begins if all shares have a place. A share whose worker dies goes on elsewhere. Ctrl-C, SIGTERM, SIGHUP
    and --seconds end it. At the end, the account of all shares is printed.

    \b
    Exit codes:
      0  heaps were received
      1  no heap was received, more were missing than --max-loss, a share
         has failed, the account does not add up, or it was ended before
         it had connected
      2  wrong usage, or the plan does not fit the workers
    """  # noqa: D301 (click needs the backslash)
    context = click.get_current_context()
    if local is not None and scheduler is not None:
        raise click.BadParameter("starts workers of its own, so it needs no --scheduler", param_hint="--local")
    given = context.get_parameter_source("metrics_address")
    if metrics_port is None and given is not ParameterSource.DEFAULT:
        raise click.BadParameter("no metrics are served without --metrics-port", param_hint="--metrics-address")
    console = Console(highlight=False, stderr=as_json)
    if not (quiet or as_json):
        _show_plan(console, plan)
    obstacles = _obstacles(plan, here=scheduler is None)
    if local is not None and obstacles:
        raise UnusableError("\n".join(obstacles))
    if not (quiet or as_json):
        for text in obstacles:
            console.print(printable(f"Note: {text}"))
    if local is None and scheduler is None:
        if as_json:
            click.echo(json.dumps({"plan": plan.name, "shares": [_document(share) for share in plan.dealt]}))
        return
    if scheduler is not None:
        _reach(scheduler)
    with interruptible() as interrupted, _cluster(plan, local, scheduler) as cluster:
        from speadrx.fleet import Fleet

        one = Fleet(plan, cluster, metrics_port=metrics_port, metrics_address=metrics_address, keep_results=False)
        try:
            _start(one, console, interrupted)
            if not quiet and one.metrics_port is not None:
                console.print(f"Metrics: http://{metrics_address}:{one.metrics_port}/metrics")
            _watch(one, interrupted, seconds, None if quiet or as_json else interval)
        finally:
            stats = one.stop()
    if as_json:
        click.echo(json.dumps({"plan": plan.name, **dataclasses.asdict(stats)}))
    else:
        show(console, stats, all_sources=all_sources)
    context.exit(_conclude(stats, max_loss))


def _obstacles(plan: Plan, *, here: bool) -> list[str]:
    """What can be seen before anything starts: a function that is not there, and recordings that are.

    Workers of other machines have modules and recordings of their own.
    """
    from speadrx.fleet.share import find_function, recording_path

    found = []
    if here:
        try:
            find_function(plan.function)
        except ModuleNotFoundError as exc:
            found.append(f"function: {plan.function!r}: there is no module {exc.name!r} beside the plan or on sys.path")
        except Exception as exc:  # noqa: BLE001 (a module may raise anything as it is imported)
            found.append(f"function: {plan.function!r}: {type(exc).__name__}: {exc}")
    record = plan.record
    if record is not None and (here or "{share}" not in record):
        paths = dict.fromkeys(recording_path(record, share.name, 1) for share in plan.dealt)
        there = [path for path in paths if os.path.lexists(path)]
        if there:
            found.append(f"record: {listed(there)}: there already; move it, or take another path")
    return found


def _import_dask() -> None:
    try:
        import dask
        import distributed  # noqa: F401 (imported here so that the message is the same if it is missing)
    except ModuleNotFoundError as exc:
        raise UnusableError(f"{exc.name} is not installed; do: pip install 'speadrx[dask]'") from None
    # What it logs of workers that come and go is said by the fleet: here, and in the processes of local workers.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    dask.config.set({"logging.distributed": "critical"})


@contextlib.contextmanager
def _cluster(plan: Plan, local: int | None, scheduler: str | None) -> Iterator[Any]:
    """Workers on this machine, or the address of a scheduler."""
    _import_dask()
    if local is None:
        yield scheduler
        return
    from multiprocessing import resource_tracker

    from speadrx.fleet import local_cluster

    # Ctrl-C in a terminal goes to all processes there: the workers must go on until their shares have ended.
    # The tracker would be started with the first of them, and unblocks signals.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    with contextlib.ExitStack() as stack:
        try:
            cluster = stack.enter_context(local_cluster(local, plan.resources))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield cluster


def _reach(scheduler: str) -> None:
    """Wait until a scheduler answers. Unlike the connection of a client, that can be interrupted."""
    _import_dask()
    from distributed.comm import connect

    failures: list[OSError] = []

    async def reach() -> None:
        try:
            connection = await connect(scheduler, timeout=_ANSWER_SECONDS)
            await connection.close()
        except OSError as exc:
            failures.append(exc)

    def end(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    # In a thread that nobody waits for: if it is cancelled, a connection may try again for as long as it has time.
    thread = threading.Thread(target=lambda: asyncio.run(reach()), daemon=True)
    before = signal.signal(signal.SIGTERM, end)
    try:
        thread.start()
        while thread.is_alive():
            thread.join(_LOOK)
    finally:
        signal.signal(signal.SIGTERM, before)
    for failure in failures:
        raise UnusableError(f"scheduler: {scheduler} cannot be reached: {failure}")


def _start(one: Fleet, console: Console, interrupted: threading.Event) -> None:
    """Start, unless something does not fit, or it was interrupted meanwhile."""
    from speadrx.fleet import FleetError

    try:
        found: list[Problem] = one.connect(stop=interrupted.is_set)
        if interrupted.is_set():
            raise click.Abort
        for problem in found:
            console.print(printable(f"{'Does not fit' if problem.fatal else 'Note'}: {problem.text}"))
        if any(problem.fatal for problem in found):
            raise UnusableError("the plan does not fit the workers")
        one.start()
    except FleetError as exc:
        raise UnusableError(str(exc)) from None
    except OSError as exc:
        raise UnusableError(f"--metrics-port: {exc.strerror or exc}") from None


def _watch(one: Fleet, interrupted: threading.Event, seconds: float | None, interval: float | None) -> None:
    """Print a line after each interval, until there is a reason to end."""
    begin = time.monotonic()
    due = begin + (interval or 0)
    while not interrupted.wait(_LOOK):
        now = time.monotonic()
        states = {share.state for share in one.stats().shares}
        if states <= {"ended", "failed"} or (seconds is not None and now - begin >= seconds):
            return
        if interval is not None and now >= due:
            due += interval
            click.echo(_line(one.stats()))


def _line(stats: FleetStats) -> str:
    receiving = sum(share.state == "receives" for share in stats.shares)
    parts = [
        time.strftime("%H:%M:%S"),
        f"{receiving} of {counted(len(stats.shares), 'share')}",
        f"{stats.present:,} present",
        f"loss {percentage(stats.loss)}",
    ]
    if stats.gaps:
        parts.append(", ".join(f"{heaps:,} in gaps ({cause})" for cause, heaps in stats.gaps.items()))
    named = {
        "slow": [share.name for share in stats.shares if share.slow],
        "silent": [share.name for share in stats.shares if (share.silent or 0) > _SILENT and share.state == "receives"],
    }
    parts += [f"{what}: {listed(shares)}" for what, shares in named.items() if shares]
    return "  ".join(parts)


def _show_plan(console: Console, plan: Plan) -> None:
    def make(shares: list[Share], number: Format) -> Any:
        table = table_of(("share", "endpoints", "part"), ("MiB", "threads"))
        for share in shares:
            endpoints = listed((format_endpoint(*pair) for pair in share.endpoints), most=1)
            part = "all" if share.axis is None else f"{share.axis} {share.first} to {share.end - 1}"
            columns = (share.name, endpoints, part)
            table.add_row(*map(printable, columns), number(share.memory / 2**20), number(share.threads))
        return table

    console.print(Rows(plan.dealt, "shares", make))
    total = sum(share.memory for share in plan.dealt) / 2**30
    takes = ", ".join(f"{name} {amount:g}" for name, amount in plan.resources.items()) or "nothing"
    console.print(printable(f"{counted(len(plan.dealt), 'share')}, {total:.2f} GiB. Each takes {takes} of its worker."))


def _document(share: Share) -> dict[str, Any]:
    """A share as plain values."""
    return {
        "name": share.name,
        "endpoints": [format_endpoint(*pair) for pair in share.endpoints],
        "axis": share.axis,
        "first": share.first,
        "end": share.end,
        "memory": share.memory,
        "threads": share.threads,
    }


def show(console: Console, stats: FleetStats, *, all_sources: bool) -> None:
    """Print the account: by share, by source, and what became of all heaps."""
    idle = _idle(stats)

    def shares(rows: list[ShareStats], number: Format) -> Any:
        table = table_of(("share", "host"), ("starts", "present", "missing", "gaps", "loss"), ("died", "rejected"))
        for one in rows:
            counts = (one.incarnation, one.present, one.missing, sum(one.gaps.values()))
            extra = (one.died, sum(one.rejected.values()))
            columns = [*map(number, counts), percentage(one.loss), *map(number, extra)]
            if one.name in idle:
                columns[1] = "nothing"
            table.add_row(printable(one.name), printable(one.host), *columns)
        return table

    def sources(rows: list[SourceLoss], number: Format) -> Any:
        table = table_of(("source",), ("present", "missing", "gaps", "loss"), ("placed", "duplicates", "rejected"))
        for one in rows:
            counts = (one.present, one.missing, one.gaps)
            extra = (one.placed, one.duplicates, one.rejected)
            table.add_row(printable(one.label), *map(number, counts), percentage(one.loss), *map(number, extra))
        return table

    console.print(Rows(stats.shares, "shares", shares))
    room = None if all_sources or not console.is_terminal else max(3, console.height - len(stats.shares) - 10)
    worst = sorted(stats.sources, key=lambda one: -(one.loss or 0))
    console.print(Rows(worst, "sources", sources, room=room))
    for text in tally("Rejected", stats.rejected):
        console.print(text)
    for text in tally("In gaps", stats.gaps):
        console.print(text)
    explained = {
        "present": stats.present,
        "duplicates": stats.duplicates,
        "too old": stats.too_old,
        "unfinished": stats.unfinished + stats.in_flight,
        "died with a worker": stats.died,
    }
    sum_of = " + ".join(f"{exact(count)} {name}" for name, count in explained.items())
    console.print(f"Accounts: {exact(stats.placed)} placed = {sum_of}. Residual: {exact(stats.residual)}.")


def _idle(stats: FleetStats) -> dict[str, str]:
    """Shares of which nothing was placed, though others received: what is said of each."""
    if not stats.placed:
        return {}
    return {
        share.name: f"all of its {counted(rejected, 'heap')} were rejected"
        if (rejected := sum(share.rejected.values()))
        else "it has received nothing"
        for share in stats.shares
        if not share.placed and share.state != "failed"
    }


def _conclude(stats: FleetStats, max_loss: float | None) -> int:
    failed: defaultdict[str | None, list[str]] = defaultdict(list)
    for share in stats.shares:
        if share.state == "failed":
            failed[share.error].append(share.name)
    for error, names in failed.items():
        click.echo(f"Failed: {_named(names)} ({error}).", err=True)
    errors = sum(share.function_errors for share in stats.shares)
    if errors:
        click.echo(f"The function failed for {errors:,} of {counted(stats.chunks, 'chunk')}.", err=True)
    for name, text in _idle(stats).items():
        click.echo(f"Share {name}: {text}.", err=True)
    lost = stats.loss or 0
    if max_loss is not None and lost > max_loss:
        click.echo(f"Loss: {100 * lost:.4g} % is more than --max-loss, {100 * max_loss:.4g} %.", err=True)
        return 1
    return 1 if failed or stats.residual or not stats.present else 0


def _named(names: list[str]) -> str:
    return f"{'share' if len(names) == 1 else 'shares'} {listed(names)}"
