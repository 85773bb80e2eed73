"""`speadrx compare`: place the same heaps with two placements, and show which are placed differently."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from speadrx._words import counted
from speadrx.layout import presets
from speadrx.survey.comparison import MOST_VALUES, Comparison, surveyed
from speadrx.survey.comparison import compare as compare_placements
from speadrx.survey.heaps import Survey

from . import quantities
from .inspect import gather
from .options import load_layout, set_option
from .parameters import naming_options, read_assignments

#: ``module:object``, as entry points are written.
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def load_placement(text: str, overrides: tuple[str, ...], hint: str) -> Any:
    """Load a layout, or import an object of a module, which may be in the current directory.

    Raises
    ------
    click.BadParameter
        If it cannot be loaded or imported.
    """
    if text in presets.names() or os.path.exists(text) or not _REFERENCE.fullmatch(text):
        return load_layout(text, overrides, hint)
    module, _, path = text.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except Exception as exc:  # noqa: BLE001 (the module is the user's)
        raise click.BadParameter(f"{text}: {type(exc).__name__}: {exc}", param_hint=hint) from None
    finally:
        sys.path.remove(here)
    return found


def read_items(context: click.Context, parameter: click.Parameter, text: str | None) -> list[int] | None:
    """Read item IDs, separated by commas."""
    try:
        return None if text is None else [int(item, 0) for item in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r}: wanted item IDs, such as 0x1600,2,0x4101") from None


def _document(comparison: Comparison) -> dict[str, Any]:
    """All that was found, as plain values."""
    return {
        "placements": list(comparison.names),
        "heaps": comparison.heaps,
        "equal": comparison.equal,
        "differing": comparison.differing,
        "explained_by_time": comparison.explained,
        "reasons": [comparison.reasons(which) for which in (0, 1)],
        "outcomes": [{"reasons": list(pair), "heaps": n} for pair, n in comparison.outcomes.most_common()],
        "overruns": [
            {"placement": name, "what": what, "heaps": heaps, "first": first}
            for (name, what), (first, heaps) in comparison.overruns.items()
        ],
        "nanoseconds_per_heap": None
        if comparison.nanoseconds is None
        else dict(zip(("first", "second", "nothing"), comparison.nanoseconds, strict=True)),
        "differences": [
            {
                "heap": difference.heap,
                "items": {f"{item:#x}": value for item, value in difference.items.items()},
                "reasons": list(difference.reasons),
                "slots": [
                    None if slot is None else {**vars(slot), "extra": slot.extra.hex()} for slot in difference.slots
                ],
            }
            for difference in comparison.differences
        ],
    }


def _show(console: Console, comparison: Comparison) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("heaps", justify="right")
    for name in comparison.names:
        table.add_column(Text(name), overflow="fold")
    for pair, heaps in comparison.outcomes.most_common():
        table.add_row(f"{heaps:,}", *map(Text, pair))
    console.print(table)
    console.print()
    lines = []
    if comparison.nanoseconds is not None:
        first, second, nothing = comparison.nanoseconds
        both = f"{first:.1f} ns and {second:.1f} ns, both with the loop that calls them ({nothing:.1f} ns)"
        lines += [f"Per heap that both place: {both}."]
    if comparison.explained:
        n = counted(comparison.explained, "heap")
        lines += [f"{n} would go to the same place, but heaps before made the time impossible (--strict counts them)."]
    if comparison.equal:
        lines += [f"No difference: {counted(comparison.heaps, 'heap')} go to the same place."]
    for line in [*lines, *comparison.problems()]:
        console.print(line, markup=False)


def _survey(source: str, interface: str | None, seconds: float, packets: int | None) -> Survey:
    survey, origin = gather(source, interface, seconds, packets, most_values=MOST_VALUES)
    if origin.damage is not None:
        click.echo(f"Warning: {origin.damage}: only what came before was compared", err=True)
    if survey.unkept:
        click.echo(f"Warning: {counted(survey.unkept, 'heap')} at the end were not compared: too many", err=True)
    return survey


@click.command()
@click.argument("arguments", metavar="[SOURCE] FIRST SECOND", nargs=-1)
@click.option("--random", "n_random", type=click.IntRange(min=1), metavar="N", help="Draw N random heaps: no SOURCE.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the random heaps.")
@click.option("--interface", metavar="ADDRESS", help="Interface to join groups on.  [default: as the routes say]")
@click.option(
    "--seconds",
    type=quantities.time(0, 86400, above_least=True),
    default="5s",
    show_default=True,
    help="How long to listen to endpoints.",
)
@click.option("--packets", type=click.IntRange(min=1), metavar="N", help="Use only the first N packets.")
@click.option(
    "--items",
    callback=read_items,
    metavar="ID,...",
    help="Items that a callback asks for, in order.  [default: as the layout]",
)
@click.option("--statistics", metavar="NAME,...", help="Names of what a callback counts, from stats_base on.")
@click.option(
    "--user-data",
    callback=read_assignments,
    multiple=True,
    metavar="NAME=VALUE",
    help="A field of user data besides stats_base. May be repeated.",
)
@click.option("--window", type=click.IntRange(min=1), metavar="CHUNKS", help="Window of layouts.  [default: as recv]")
@click.option("--ignore-extra", is_flag=True, help="Do not compare side items.")
@click.option("--strict", is_flag=True, help="Also count heaps as different that a layout rejects because of others.")
@set_option
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@click.pass_context
def compare(
    context: click.Context,
    arguments: tuple[str, ...],
    n_random: int | None,
    seed: int,
    interface: str | None,
    seconds: float,
    packets: int | None,
    items: list[int] | None,
    statistics: str | None,
    user_data: list[tuple[str, int]],
    window: int | None,
    ignore_extra: bool,
    strict: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Place the same heaps with two placements, and show which heaps are placed differently.

    FIRST and SECOND are each a layout (a TOML file, or a PRESET of 'speadrx layout --list') or a placement callback as
    MODULE:OBJECT, such as a numba cfunc. The module may be in the current directory. SOURCE is a capture, or endpoints
    to listen to: host:port or group+n:port. --random needs none.

    \b
    Example:
      speadrx compare night.pcap meerkat-digitiser engine:place --user-data stride=1310720
      speadrx compare --random 1000000 array.toml engine:place

    \b
    Exit codes:
      0  no heap is placed differently
      1  heaps are placed differently, a callback wrote where it must not, or there was no heap
      2  wrong usage, or something cannot be read
    """  # noqa: D301 (click needs the backslash)
    wanted = 2 if n_random is not None else 3
    if len(arguments) != wanted:
        raise click.UsageError(
            f"wanted {'FIRST SECOND' if wanted == 2 else 'SOURCE FIRST SECOND, or --random N FIRST SECOND'}, "
            f"but got {counted(len(arguments), 'argument')}"
        )
    *sources, one, other = arguments
    first, second = load_placement(one, overrides, "FIRST"), load_placement(other, overrides, "SECOND")
    given: Any = n_random
    if sources:
        given = surveyed(_survey(sources[0], interface, seconds, packets), (first, second))
        if not len(given):
            raise click.ClickException(f"{sources[0]}: no heaps came that a placement would see")
    with naming_options():
        comparison = compare_placements(
            first,
            second,
            given,
            seed=seed,
            items=items,
            user_data=dict(user_data),
            statistics=None if statistics is None else statistics.split(","),
            window=window,
            ignore_extra=ignore_extra,
            strict=strict,
            timed=True,
            names=(one, other),
        )
    if as_json:
        click.echo(json.dumps(_document(comparison), allow_nan=False))
    else:
        _show(Console(highlight=False), comparison)
    context.exit(0 if comparison.equal else 1)
