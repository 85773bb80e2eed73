"""`speadrx top`: a live view of any speadrx process, by the URL of its metrics."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
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
from .rates import SORTS, Report, SourceReport, StreamReport, make_report
from .scrape import Numbers, ScrapeError, read_url, scrape
from .tables import Format, Rows, exact, gigabits, loss_style, percentage, printable, table_of, tally

REDRAW_SECONDS = 0.25  # between looks at the size of the terminal


def _name(labels: Mapping[str, str]) -> Text:
    """Name a stream by its label: by the value if there is one label, else by names and values."""
    if len(labels) == 1:
        return printable(next(iter(labels.values())))
    return printable(",".join(f"{name}={value}" for name, value in labels.items()) or "-")


def _stream_table(streams: Sequence[StreamReport], number: Format) -> Table:
    counts = ("rejected", "too old", "drops", "data", "full s", "free", "empty s", "in flight")
    table = table_of(["stream"], ("loss", "Gb/s", "heaps/s", *counts))
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
            style=loss_style(row.loss, silent=row.rates["placed"] == 0),
        )
    return table


def _source_table(sources: Sequence[SourceReport], number: Format, *, with_stream: bool) -> Table:
    counts = ("placed", "present", "missing", "dupl.", "rejected")
    columns = ("loss", "overall", "Gb/s", "heaps/s", *counts)
    table = table_of(["source", "stream"] if with_stream else ["source"], columns)
    for row in sources:
        table.add_row(
            printable(row.source or "(unknown)"),
            *([_name(row.stream)] if with_stream else []),
            percentage(row.loss),
            percentage(row.loss_total),
            gigabits(row.rates["bytes"]),
            number(row.rates["placed"]),
            *(number(row.counters[name]) for name in ("placed", "present", "missing", "duplicates", "rejected")),
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
    """

    def __init__(self, report: Report, error: str | None = None, *, cut: bool = False) -> None:
        self.report = report
        self.error = error
        self.cut = cut

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.max_height if self.cut else None

        streams, sources = self.report.streams, self.report.sources
        above = Group(
            *self._head(),
            Rows(streams, "streams", _stream_table, room=None if height is None else max(2, height // 3)),
            *_rejected(streams),
            Text(),
        )
        room = None if height is None else height - len(console.render_lines(above, options)) - 1
        make = functools.partial(_source_table, with_stream=len(streams) > 1)
        yield above
        yield Rows(sources, "sources", make, room=room)

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


def _reports(
    url: str, interval: float, sort: str, limit: int | None, wait: Callable[[float], None]
) -> Iterator[tuple[Report, str | None]]:
    """Scrape for ever. If a later scrape fails, the last report comes again, with the reason."""
    before = scrape(url)
    report = make_report(url, before, None, sort, limit)
    yield report, None
    due = time.monotonic()
    while True:
        clock = time.monotonic()
        due = max(due + interval, clock)
        wait(due - clock)
        try:
            now = scrape(url)
        except ScrapeError as exc:
            yield report, exc.message
        else:
            report = make_report(url, now, before, sort, limit)
            yield report, None
            before = now


def _live(console: Console, url: str, interval: float, sort: str, limit: int | None) -> None:
    """Show reports on the whole terminal, and restore it at the end."""
    live = Live(console=console, screen=True, auto_refresh=False)
    size = console.size

    def draw(report: Report, error: str | None) -> None:
        nonlocal size
        size = console.size
        live.update(View(report, error, cut=True), refresh=True)

    def wait(seconds: float) -> None:
        nonlocal size
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, REDRAW_SECONDS))
            if console.size != size:
                size = console.size
                live.refresh()

    reports = _reports(url, interval, sort, limit, wait)
    first = next(reports)  # an error here ends the command before the terminal is changed
    with live:
        draw(*first)
        for report, error in reports:
            draw(report, error)


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


@click.command()
@click.argument("url", callback=read_url)
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

    If the output is not a terminal, a report is printed after each interval. Ctrl-C ends the command. The exit
    code is 1 if the URL has no metrics of speadrx. After the first report, failures are shown and it goes on.
    """
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

    if once:
        reports = _reports(url, interval, sort, limit, time.sleep)
        report, error = next(reports)
        if interval:
            report, error = next(reports)
        if error is not None:
            raise ScrapeError(error)
        show(report)
        return
    with _until_interrupted():
        if sys.stdout.isatty() and not as_json and not console.is_dumb_terminal:
            _live(console, url, interval, sort, limit)
        else:
            reports = _reports(url, interval, sort, limit, time.sleep)
            next(reports)  # it has no rates
            for report, error in reports:
                if error is None:
                    show(report)
                    if not as_json:
                        console.print()
                else:
                    click.echo(f"Error: {error}", err=True)
