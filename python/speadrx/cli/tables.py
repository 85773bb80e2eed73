"""Numbers in tables that fit the terminal: names are cut and rows left out, but a number is never cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

UNLIMITED = 1 << 16  # columns
NAME_COLUMNS = 8  # least width of a name

Format = Callable[[float | None], str]


def exact(number: float | None) -> str:
    """Write all digits."""
    return "-" if number is None else f"{number:,.0f}"


def short(number: float | None) -> str:
    """Write the first three digits, in at most five characters."""
    if number is None:
        return "-"
    if number < 9999.5:
        return f"{number:.0f}"
    for unit in "kMGTPE":
        number /= 1000
        # The bounds allow for rounding: 999,950 becomes 1.00M, not 1000k.
        for bound, digits in ((9.995, 2), (99.95, 1), (999.5, 0)):
            if number < bound:
                return f"{number:.{digits}f}{unit}"
    return ">999E"


def percentage(fraction: float | None) -> str:
    """Write a fraction in percent, with two digits."""
    if fraction is None:
        return "-"
    # A small loss must not be shown as none.
    return "<0.01%" if 0 < fraction < 0.0001 else f"{fraction:.2%}"


def gigabits(byte_rate: float | None) -> str:
    """Write bytes per second as gigabits per second, without the unit."""
    if byte_rate is None:
        return "-"
    rate = byte_rate * 8e-9
    if 0 < rate < 0.001:
        return "<0.001"  # a small rate must not be shown as none
    return f"{rate:.3f}" if rate < 0.9995 else f"{rate:.2f}" if rate < 99.995 else f"{rate:,.0f}"


def loss_style(loss: float | None, *, silent: bool = False) -> str:
    """Choose the colour of a row by its loss."""
    if silent or (loss or 0) >= 0.01:
        return "red"
    return "yellow" if loss else ""


def printable(text: str) -> Text:
    """Show text from outside without control characters or markup."""
    return Text("".join(char if char.isprintable() else "?" for char in text))


def tally(title: str, counts: Mapping[str, float]) -> Iterator[Text]:
    """Make a line of counts by reason, the largest first; no line if there are none."""
    found = sorted(((count, reason) for reason, count in counts.items() if count), reverse=True)
    if found:
        text = ", ".join(f"{exact(count)} {reason}" for count, reason in found)
        yield Text(f"{title}: ").append_text(printable(text))


class FittedTable(Table):
    """A table whose last columns are left out if there is no room for them."""

    #: How many of its columns are the first to go.
    extra = 0


def table_of(names: Iterable[str], numbers: Iterable[str], extra: Sequence[str] = ()) -> FittedTable:
    """Make an empty table: columns of names, then columns of numbers. The `extra` ones are for wide terminals."""
    table = FittedTable(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for name in names:
        table.add_column(name, no_wrap=True, overflow="ellipsis", min_width=NAME_COLUMNS)
    for name in (*numbers, *extra):
        table.add_column(name, no_wrap=True, justify="right")
    table.extra = len(extra)
    return table


def _leave_out_extra(table: Table, console: Console, options: ConsoleOptions) -> None:
    extra = table.extra if isinstance(table, FittedTable) else 0
    while extra and _excess(table, console, options) > 0:
        table.columns.pop()
        extra -= 1


def _excess(table: Table, console: Console, options: ConsoleOptions) -> int:
    """By how many columns a table is wider than the terminal."""
    return console.measure(table, options=options.update(max_width=UNLIMITED)).maximum - options.max_width


def _fit(table: Table, console: Console, options: ConsoleOptions) -> None:
    """Cut names, then leave out columns from the right. Numbers are never cut: that would make other numbers."""
    for column in table.columns:
        excess = _excess(table, console, options)
        if column.justify == "left" and excess > 0:
            longest = max((cell.cell_len for cell in column.cells if isinstance(cell, Text)), default=0)
            column.max_width = max(NAME_COLUMNS, longest - excess)
    while _excess(table, console, options) > 0 and len(table.columns) > 1:
        table.columns.pop()


class Rows:
    """A table with as many rows as there is room for.

    Parameters
    ----------
    things
        One for each row, the most important first.
    what
        What the things are called, for "... and 5 more WHAT".
    make
        Makes the table from things, and from a function that writes numbers.
    room
        Lines for rows; the last line may say how many more there are (default: no limit).
    """

    def __init__(
        self, things: Sequence[Any], what: str, make: Callable[[Any, Format], Table], *, room: int | None = None
    ) -> None:
        self._things = things
        self._what = what
        self._make = make
        self._room = room

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        things, room = self._things, self._room
        shown = things if room is None or len(things) <= room else things[: max(0, room - 1)]
        table = self._make(shown, exact)
        _leave_out_extra(table, console, options)
        if _excess(table, console, options) > 0:
            table = self._make(shown, short)
            _leave_out_extra(table, console, options)
            _fit(table, console, options)
        yield table
        if len(shown) < len(things):
            yield Text(f"... and {len(things) - len(shown)} more {self._what}")
