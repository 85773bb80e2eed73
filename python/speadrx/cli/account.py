"""Show what a receiver has seen: as a live view, a line, the full account, or JSON."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from speadrx._core import unused_reasons
from speadrx._words import counted
from speadrx.accounts.loss import loss
from speadrx.accounts.report import ReceiverStats, SourceStats, disagreement, mixed_heaps, rate_mismatch
from speadrx.layout.base import DeclarativeLayout

from .keys import Browsing
from .tables import Format, Rows, exact, loss_style, percentage, printable, table_of, tally

#: Lines of the full account besides the table of sources, so that all of it fits in the terminal.
_OTHER_LINES = 14
_LEAST_ROWS = 4


#: The reasons why packets are not used.
_WORDS = unused_reasons()


@dataclass(frozen=True)
class Rates:
    """How fast heaps were placed and chunks were completed."""

    gigabits_per_second: float
    heaps_per_second: float
    packets_per_second: float
    chunks_per_second: float


@dataclass(frozen=True)
class Moment:
    """What a receiver has seen now, and at an earlier time (None: at its start)."""

    layout: DeclarativeLayout
    stats: ReceiverStats
    before: ReceiverStats | None
    seconds: float  # from the earlier time to now

    def rates(self) -> Rates:
        """Rates since the earlier time. Gigabits are of payload."""

        def rate(name: str) -> float:
            rise = getattr(self.stats, name) - (0 if self.before is None else getattr(self.before, name))
            return rise / self.seconds if self.seconds > 0 else 0.0

        heaps = rate("placed")
        return Rates(heaps * self.layout.heap_bytes * 8e-9, heaps, rate("packets"), rate("chunks"))

    def sources(self) -> list[SourceRow]:
        """The sources, worst first."""
        before: Sequence[SourceStats | None]
        before = [None] * len(self.stats.sources) if self.before is None else self.before.sources
        rows = [
            SourceRow(
                now,
                loss(now.missing - (old.missing if old else 0), now.present - (old.present if old else 0)),
                (now.placed - (old.placed if old else 0)) / self.seconds if self.seconds > 0 else 0.0,
            )
            for now, old in zip(self.stats.sources, before, strict=True)
        ]
        return sorted(rows, key=lambda row: (row.loss or 0, row.stats.missing, row.stats.rejected), reverse=True)


@dataclass(frozen=True)
class SourceRow:
    """A source, with its loss and its rate since the earlier time."""

    stats: SourceStats
    loss: float | None
    heaps_per_second: float


def residual(stats: ReceiverStats) -> int:
    """Placed heaps that the account does not explain: 0, unless something is wrong."""
    return stats.placed - stats.present - stats.in_flight - stats.duplicates - stats.too_old - stats.unfinished


def document(moment: Moment, **about: Any) -> dict[str, Any]:
    """Write the full account as plain values."""
    stats = moment.stats
    return {
        "layout": moment.layout.declaration.name,
        **about,
        **dataclasses.asdict(stats),
        "residual": residual(stats),
        "rates": {"seconds": moment.seconds, **dataclasses.asdict(moment.rates())},
    }


def _disagreement(stats: ReceiverStats) -> str | None:
    """Say which sources say another time than most others; None if none does."""
    estranged = [source.label for source in stats.sources if source.estranged]
    others = sum(source.placed > 0 and not source.estranged for source in stats.sources)
    return disagreement(estranged, others)


def _rings(stats: ReceiverStats) -> str:
    data, free = stats.data_ring, stats.free_ring
    return f"data ring {data.chunks}/{data.capacity}, free {free.chunks}/{free.capacity}"


def _gap(stats: ReceiverStats) -> str:
    """Say how long the time is that was jumped over, if it was."""
    if not stats.epoch_gap_ticks:
        return ", without a gap"
    seconds = stats.epoch_gap_seconds
    if seconds is None:
        length = f"{exact(stats.epoch_gap_ticks)} ticks"
    else:
        length = f"{seconds:.3g} s" if seconds < 0.1 else f"{seconds:,.1f} s"
    return f": {length} lie between, {counted(stats.epoch_gap_heaps, 'heap')} if nothing was restarted (not missing)"


def line(moment: Moment) -> str:
    """Summarise it in a line, for logs."""
    stats, rates = moment.stats, moment.rates()
    return (
        f"{time.strftime('%H:%M:%S')}  {rates.gigabits_per_second:.3g} Gb/s  {exact(rates.heaps_per_second)} heaps/s  "
        f"{exact(stats.chunks)} chunks  missing {exact(stats.missing)} ({percentage(stats.loss)})  "
        f"rejected {exact(sum(stats.rejected.values()))}  drops {exact(stats.kernel_drops)}  {_rings(stats)}"
        + ("" if (said := _disagreement(stats)) is None else f"  {said}")
    )


def _time(stats: ReceiverStats) -> Iterator[Text]:
    """Name the sources that say another time than most others, if there are any."""
    if (said := _disagreement(stats)) is not None:
        yield printable(f"Time: {said}.")


#: Orders of the sources in the live view: the largest comes first. Sources are in the order of their loss before.
SORTS: dict[str, Callable[[SourceRow], float]] = {
    "loss": lambda row: 0,
    "rate": lambda row: -row.heaps_per_second,
    "placed": lambda row: -row.stats.placed,
    "present": lambda row: -row.stats.present,
    "missing": lambda row: row.stats.missing,
    "duplicates": lambda row: row.stats.duplicates,
    "rejected": lambda row: row.stats.rejected,
}


class LiveView:
    """Shows what a receiver has seen while it runs, as far as it fits in the terminal.

    Parameters
    ----------
    moment
        What it has seen.
    where
        What it receives.
    browsing
        What keys have chosen, if there are keys.
    beside
        What else the command does with the data.
    """

    def __init__(self, moment: Moment, where: str, browsing: Browsing | None = None, *, beside: str = "") -> None:
        self._moment, self._beside = moment, beside
        self._where = where
        self._browsing = browsing

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        moment, stats, rates = self._moment, self._moment.stats, self._moment.rates()
        before = moment.before
        since = (0, 0) if before is None else (before.missing, before.present)
        newly = percentage(loss(stats.missing - since[0], stats.present - since[1]))
        above = Group(
            printable(f"{time.strftime('%H:%M:%S')}  {self._where}, {stats.seconds:.0f} s"),
            Text(
                f"{rates.gigabits_per_second:.3g} Gb/s, {exact(rates.heaps_per_second)} heaps/s, "
                f"{exact(stats.chunks)} chunks, loss {newly} (overall {percentage(stats.loss)})"
            ),
            Text(
                f"{_rings(stats)}, in flight {exact(stats.in_flight)}, kernel drops {exact(stats.kernel_drops)}, "
                f"too old {exact(stats.too_old)}, incomplete {exact(stats.incomplete)}"
            ),
            *([printable(self._beside)] if self._beside else []),
            *tally("Rejected", stats.rejected),
            *_time(stats),
            Text(),
        )
        yield above
        room = options.max_height - len(console.render_lines(above, options)) - 2
        rows: Sequence[SourceRow] = moment.sources()
        if self._browsing is not None:
            rows = self._browsing.rows(sorted(rows, key=SORTS[self._browsing.sort], reverse=True))
            room -= 1
        yield Rows(rows, "sources", self._table, room=max(room, 1))
        if self._browsing is not None:
            yield Text(self._browsing.hint, style="dim", no_wrap=True, overflow="crop")

    def _table(self, rows: Sequence[SourceRow], number: Format) -> Table:
        names = ("loss", "overall", "heaps/s", "placed", "present", "missing", "in flight", "dupl.", "rejected")
        table = table_of([self._moment.layout.declaration.sources or "source"], names)
        for row in rows:
            stats = row.stats
            counts = (stats.placed, stats.present, stats.missing, stats.in_flight, stats.duplicates, stats.rejected)
            table.add_row(
                printable(stats.label),
                percentage(row.loss),
                percentage(stats.loss),
                number(row.heaps_per_second),
                *map(number, counts),
                style=loss_style(row.loss),
            )
        return table


class AccountView:
    """Shows the full account of a receiver that has ended.

    Parameters
    ----------
    moment
        What it has seen from start to end.
    all_sources
        Show all sources, even if they do not fit in the terminal.
    """

    def __init__(self, moment: Moment, *, all_sources: bool) -> None:
        self._moment = moment
        self._all_sources = all_sources

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        stats = self._moment.stats
        room = None if self._all_sources else max(console.height - _OTHER_LINES, _LEAST_ROWS)
        yield Rows(self._moment.sources(), "sources", self._table, room=room)
        yield Text()
        yield from tally("Rejected", stats.rejected)
        for rejection in stats.rejections:
            yield printable(f"  {rejection.cause}, {counted(rejection.heaps, 'heap')}: {rejection.text}.")
        yield from tally("Packets not used", {_WORDS[reason]: packets for reason, packets in stats.unused.items()})
        mixed = mixed_heaps(stats.shared_counters)
        if mixed is not None:
            yield Text(f"Heap counters: {mixed}.")
        yield from _time(stats)
        yield from map(Text, self._sums())

    def _table(self, rows: Sequence[SourceRow], number: Format) -> Table:
        names = ("loss", "placed", "present", "missing", "dupl.", "rejected", "newest")
        table = table_of([self._moment.layout.declaration.sources or "source"], names)
        for row in rows:
            stats = row.stats
            counts = (stats.placed, stats.present, stats.missing, stats.duplicates, stats.rejected)
            newest = "-" if stats.newest_timestamp < 0 else str(stats.newest_timestamp)
            table.add_row(printable(stats.label), percentage(row.loss), *map(number, counts), newest)
        return table

    def _length(self) -> str:
        """How much time of the data there is: nobody knows, if it began again."""
        stats, layout = self._moment.stats, self._moment.layout
        assert stats.first_timestamp is not None
        assert stats.last_timestamp is not None
        if stats.restarts:
            return f" to {stats.last_timestamp}, in between which time restarted"
        ticks, rate = stats.last_timestamp - stats.first_timestamp, layout.declaration.time.tick_rate
        ticks += layout.chunk_timestamp_step
        length = f"{exact(ticks)} ticks" if rate is None else f"{ticks / rate:.3f} s"
        return f": {length} of data"

    def _sums(self) -> Iterator[str]:
        stats, rates = self._moment.stats, self._moment.rates()
        if stats.first_timestamp is not None and stats.last_timestamp is not None:
            yield f"Chunks: {exact(stats.chunks)}, from timestamp {stats.first_timestamp}{self._length()}."
        yield (
            f"Rates: {rates.gigabits_per_second:.3g} Gb/s, {exact(rates.heaps_per_second)} heaps/s, "
            f"{exact(rates.packets_per_second)} packets/s in {self._moment.seconds:.2f} s."
        )
        mismatch = rate_mismatch(stats.measured_tick_rate, self._moment.layout.declaration.time.tick_rate)
        if mismatch is not None:
            yield f"Rate of time: {mismatch}."
        drops, incomplete = counted(stats.kernel_drops, "packet"), counted(stats.incomplete, "heap")
        yield f"Lost on the way: {drops} dropped by the kernel, {incomplete} incomplete."
        if stats.restarts:
            yield f"Time restarted {counted(stats.restarts, 'time')}{_gap(stats)}."
        present, missing = f"{exact(stats.present)} present", f"{exact(stats.missing)} missing"
        yield f"Expected: {counted(stats.expected, 'heap')} = {present} + {missing} ({percentage(stats.loss)})."
        others = f"{counted(stats.duplicates, 'duplicate')} + {exact(stats.too_old)} too old"
        yield f"Placed: {counted(stats.placed, 'heap')} = {present} + {others} + {exact(stats.unfinished)} unfinished."
        left = residual(stats)
        if left:
            yield f"Residual: {exact(left)} (SOME HEAPS ARE NOT ACCOUNTED FOR)."
        if not stats.present:
            yield "Nothing was received."
