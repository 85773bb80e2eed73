"""`speadrx top`: a live view of any speadrx process, by the URL of its metrics."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import click
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from speadrx import metrics

from . import quantities
from .keys import Browsing, Keys
from .rates import SORTS, Report, SourceReport, StreamReport, make_report
from .scrape import Numbers, Scrape, ScrapeError, read_url, scrape
from .tables import Format, Rows, exact, gigabits, loss_style, percentage, printable, table_of, tally

REDRAW_SECONDS = 0.25  # between looks at the size of the terminal


def _name(labels: Mapping[str, str]) -> Text:
    """Name a stream by its label: by the value if there is one label, else by names and values."""
    if len(labels) == 1:
        return printable(next(iter(labels.values())))
    return printable(",".join(f"{name}={value}" for name, value in labels.items()) or "-")


def _stream_table(streams: Sequence[StreamReport], number: Format) -> Table:
    counts = ("rejected", "too old", "drops", "data", "full s", "free", "empty s", "in flight")
    extra = ("overall", "placed", "present", "missing", "dupl.", "incompl.", "packets/s", "chunks", "restarts")
    table = table_of(["stream"], ("loss", "Gb/s", "heaps/s", *counts), extra)
    for row in streams:
        rings = []
        for ring in (metrics.DATA_RING, metrics.FREE_RING):
            part = row.rings.get(ring, {})
            fill = (part.get("chunks"), part.get("capacity_chunks"))
            blocked = part.get("blocked_seconds")
            rings.append("-" if None in fill else "/".join(map(number, fill)))
            rings.append(f"{blocked:.1f}" if blocked is not None and blocked < 99.95 else number(blocked))
        table.add_row(
            _name(row.stream),
            percentage(row.loss),
            gigabits(row.rates["bytes"]),
            number(row.rates["placed"]),
            *(number(row.counters[name]) for name in ("rejected", "too_old", "kernel_drops")),
            *rings,
            number(row.in_flight),
            percentage(row.loss_total),
            *(number(row.counters[name]) for name in ("placed", "present", "missing", "duplicates")),
            number(_incomplete(row)),
            number(row.rates["packets"]),
            *(number(row.counters[name]) for name in ("chunks", "restarts")),
            style=loss_style(row.loss, silent=row.rates["placed"] == 0),
        )
    return table


def _incomplete(row: StreamReport) -> float | None:
    """Heaps that spead2 gave up; None if neither count is known."""
    counts = [row.counters[name] for name in ("incomplete_evicted", "incomplete_flushed")]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _source_table(sources: Sequence[SourceReport], number: Format, *, with_stream: bool) -> Table:
    counts = ("placed", "present", "missing", "dupl.", "rejected")
    columns = ("loss", "overall", "Gb/s", "heaps/s", *counts)
    table = table_of(["source", "stream"] if with_stream else ["source"], columns, ("in flight", "newest timestamp"))
    for row in sources:
        table.add_row(
            printable(row.source or "(unknown)"),
            *([_name(row.stream)] if with_stream else []),
            percentage(row.loss),
            percentage(row.loss_total),
            gigabits(row.rates["bytes"]),
            number(row.rates["placed"]),
            *(number(row.counters[name]) for name in ("placed", "present", "missing", "duplicates", "rejected")),
            number(row.in_flight),
            "-" if row.newest_timestamp is None or row.newest_timestamp < 0 else f"{row.newest_timestamp:.0f}",
            style=loss_style(row.loss, silent=row.rates["placed"] == 0),
        )
    return table


def _rejected(streams: Iterable[StreamReport]) -> Iterator[Text]:
    counts: Numbers = defaultdict(float)
    for stream in streams:
        for reason, part in stream.rejected.items():
            counts[reason] += part["count"] or 0
    return tally("Rejected", counts)


class View:
    """Shows a report in a terminal.

    Parameters
    ----------
    report
        The report.
    error
        Why there is no newer report.
    cut
        Show only as many rows as fit in the height of the terminal.
    browsing
        What keys have chosen, if there are keys.
    """

    def __init__(
        self, report: Report, error: str | None = None, *, cut: bool = False, browsing: Browsing | None = None
    ) -> None:
        self.report = report
        self.error = error
        self.cut = cut
        self.browsing = browsing

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.max_height if self.cut else None

        streams, sources = self.report.streams, self.report.sources
        above = Group(
            *self._head(),
            Rows(streams, "streams", _stream_table, room=None if height is None else max(2, height // 3)),
            *_rejected(streams),
            Text(),
        )
        room = (
            None
            if height is None
            else height - len(console.render_lines(above, options)) - 1 - (self.browsing is not None)
        )
        make = functools.partial(_source_table, with_stream=len(streams) > 1)
        yield above
        yield Rows(sources if self.browsing is None else self.browsing.rows(sources), "sources", make, room=room)
        if self.browsing is not None:
            yield Text(self.browsing.hint, style="dim", no_wrap=True, overflow="crop", end="")

    def _head(self) -> Iterator[Text]:
        report = self.report
        rates = f"{gigabits(report.byte_rate)} Gb/s, {exact(report.rate)} heaps/s"
        if report.seconds is not None:
            rates += f" in {report.seconds:.1f} s"
        parts = [time.strftime("%H:%M:%S", time.localtime(report.time)), rates]
        if report.restarted:
            parts.append("RESTARTED")
        yield printable("  ".join([*parts, report.url]))
        if self.error is not None:
            text = printable(self.error)
            text.stylize("red")
            yield text


class _Watcher:
    """Scrapes again and again, and reports the last two scrapes."""

    def __init__(self, url: str, sort: str, limit: int | None) -> None:
        self.sort = sort
        #: Why there is no newer scrape.
        self.error: str | None = None
        self._url, self._limit = url, limit
        self._before: Scrape | None = None
        self._now = scrape(url)

    def look(self) -> None:
        """Scrape. If it fails, the last scrapes stay."""
        try:
            now = scrape(self._url)
        except ScrapeError as exc:
            self.error = exc.message
        else:
            self._before, self._now, self.error = self._now, now, None

    def report(self) -> Report:
        """Report what the last scrapes say."""
        return make_report(self._url, self._now, self._before, self.sort, self._limit)


def _reports(
    watcher: _Watcher, interval: float, wait: Callable[[float], None] = time.sleep
) -> Iterator[tuple[Report, str | None]]:
    """Report for ever, first without rates. If a scrape fails, the last report comes again, with the reason."""
    due = time.monotonic()
    while True:
        yield watcher.report(), watcher.error
        clock = time.monotonic()
        due = max(due + interval, clock)
        wait(due - clock)
        watcher.look()


class _Screen:
    """Shows reports on the whole terminal, and heeds keys."""

    def __init__(self, console: Console, watcher: _Watcher, keys: Keys) -> None:
        self.live = Live(console=console, screen=True, auto_refresh=False)
        self.browsing = Browsing(SORTS, watcher.sort)
        self._console, self._watcher, self._keys = console, watcher, keys
        self._size = console.size

    def draw(self, report: Report, error: str | None) -> None:
        """Draw a report."""
        self._size = self._console.size
        browsing = self.browsing if self._keys.are_read else None
        self.live.update(View(report, error, cut=True, browsing=browsing), refresh=True)

    def wait(self, seconds: float) -> None:
        """Wait, and meanwhile redraw the report if the terminal changes, or a key asks for it."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.browsing.done:
            pressed = self._keys.pressed(min(left, REDRAW_SECONDS))
            for key in pressed:
                self.browsing.heed(key, self._console.height)
            if pressed or self._console.size != self._size:
                self._watcher.sort = self.browsing.sort
                self.draw(self._watcher.report(), self._watcher.error)


def _live(console: Console, watcher: _Watcher, interval: float) -> None:
    """Show reports on the whole terminal, and restore it at the end."""
    with Keys() as keys:
        screen = _Screen(console, watcher, keys)
        with screen.live:
            for report, error in _reports(watcher, interval, screen.wait):
                if screen.browsing.done:
                    return
                screen.draw(report, error)


@contextlib.contextmanager
def _until_interrupted() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the block, so that the terminal is restored on the way out."""

    def end(signum: int, frame: object) -> None:
        raise SystemExit(128 + signum)

    old = signal.signal(signal.SIGTERM, end)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, old)


def _read_source(context: click.Context, parameter: click.Parameter, text: str) -> str:
    """Complete a URL. The folder of a recording stays as it is."""
    return text if os.path.isdir(text) else read_url(context, parameter, text)


@click.command()
@click.argument("url", callback=_read_source, metavar="URL")
@click.option("--once", is_flag=True, help="Scrape twice, an --interval apart, print one report, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print each report as a line of JSON.")
@click.option(
    "--interval",
    type=quantities.time(0, 86400),
    default="1s",
    show_default=True,
    help="Time between scrapes. With --once, 0 means a single scrape, without rates.",
)
@click.option(
    "--sort",
    type=click.Choice(list(SORTS)),
    default="loss",
    show_default=True,
    help="Show the sources with the highest value first; for rate, placed and present those with the lowest. "
    "source: in the order of the layout.",
)
@click.option("--sources", "limit", type=click.IntRange(min=1), metavar="N", help="Show only the first N sources.")
def top(url: str, once: bool, as_json: bool, interval: float, sort: str, limit: int | None) -> None:
    """Watch a speadrx process by the URL of its metrics.

    The upper table shows the streams, the lower one their sources, worst first. "loss", "Gb/s" (of payload)
    and "heaps/s" are since the last scrape; everything else is since the process started. "data" and "free"
    are the chunks in the rings. "full s" and "empty s" are the seconds for which the data ring was full or
    the free ring was empty, because the consumer was too slow. "drops" are packets that the kernel dropped.

    In a terminal, q ends the command, s sorts by the next column (S: by the one before), and arrows and page keys
    scroll the sources. The wider it is, the more columns there are.

    If the output is not a terminal, a report is printed after each interval. Ctrl-C ends the command. The exit
    code is 1 if the URL has no metrics of speadrx. After the first report, failures are shown and it goes on.

    In place of the URL, a recording (night.zarr) can be given: its account is shown once, as the run left it.
    """
    if os.path.isdir(url):
        from .recorded import show_account

        show_account(url, as_json=as_json)
        return
    if interval == 0 and not once:
        raise click.BadParameter("0 is only possible with --once: wanted seconds above 0", param_hint="--interval")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # labels may have characters that the terminal cannot show
    console = Console(highlight=False)

    def show(report: Report) -> None:
        if as_json:
            click.echo(json.dumps(dataclasses.asdict(report), allow_nan=False))
        else:
            console.print(View(report))

    watcher = _Watcher(url, sort, limit)  # an error here ends the command before the terminal is changed
    if once:
        if interval:
            time.sleep(interval)
            watcher.look()
        if watcher.error is not None:
            raise ScrapeError(watcher.error)
        show(watcher.report())
        return
    with _until_interrupted():
        if sys.stdout.isatty() and not as_json and not console.is_dumb_terminal:
            _live(console, watcher, interval)
        else:
            reports = _reports(watcher, interval)
            next(reports)  # it has no rates
            for report, error in reports:
                if error is None:
                    show(report)
                    if not as_json:
                        console.print()
                else:
                    click.echo(f"Error: {error}", err=True)
