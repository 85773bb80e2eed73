"""`speadrx top`: a live view of any speadrx process, by the URL of its metrics."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import http.client
import io
import json
import math
import signal
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from speadrx import metrics

from .parameters import read_finite
from .tables import Format, Rows, exact, percentage, printable, table_of

#: Counters of a source, under the names they have here.
SOURCE_COUNTERS = {
    "placed": metrics.HEAPS_PLACED,
    "present": metrics.HEAPS_PRESENT,
    "missing": metrics.HEAPS_MISSING,
    "duplicates": metrics.HEAPS_DUPLICATE,
    "rejected": metrics.HEAPS_REJECTED,
}
#: Counters of a stream.
STREAM_COUNTERS = {
    **SOURCE_COUNTERS,
    "too_old": metrics.HEAPS_TOO_OLD,
    "kernel_drops": metrics.SOCKET_DROPS,
    "incomplete_evicted": metrics.HEAPS_INCOMPLETE_EVICTED,
    "incomplete_flushed": metrics.HEAPS_INCOMPLETE_FLUSHED,
    "packets": metrics.PACKETS,
    "chunks": metrics.CHUNKS,
    "restarts": metrics.RESTARTS,
    "worker_blocked": metrics.WORKER_BLOCKED,
}

#: Labels that speadrx itself puts on metrics; all others tell streams apart.
OWN_LABELS = (metrics.SOURCE, metrics.REASON, metrics.RING, metrics.ENDPOINT)

TIMEOUT_SECONDS = 10.0
MAX_REPLY_BYTES = 256 << 20
REDRAW_SECONDS = 0.25  # after how long a change of the terminal's size is seen

Labels = tuple[tuple[str, str], ...]
Numbers = dict[str, float]


class ScrapeError(click.ClickException):
    """No metrics of speadrx could be had; the message names the URL."""


@dataclass
class Stream:
    """The samples of one stream: of all that have the same labels of the user's."""

    totals: Numbers = field(default_factory=lambda: defaultdict(float))
    #: By each of `OWN_LABELS`, and by its values: the sums of the samples, by metric.
    parts: dict[str, dict[str, Numbers]] = field(
        default_factory=lambda: {label: defaultdict(lambda: defaultdict(float)) for label in OWN_LABELS}
    )


@dataclass
class Scrape:
    """What a process said of its streams at one time."""

    time: float  # of the monotonic clock
    counters: dict[tuple[str, Labels], float] = field(default_factory=dict)
    streams: dict[Labels, Stream] = field(default_factory=lambda: defaultdict(Stream))


@dataclass
class Source:
    """A source of a stream, and how its counters rose since the scrape before."""

    stream: dict[str, str]
    source: str
    counters: dict[str, float | None]
    rates: dict[str, float | None]
    loss: float | None  # missing heaps as a fraction of those expected, since the scrape before
    loss_total: float | None
    newest_timestamp: float | None


@dataclass
class StreamReport:
    """A stream, and how its counters rose since the scrape before."""

    stream: dict[str, str]
    counters: dict[str, float | None]
    rates: dict[str, float | None]
    loss: float | None
    loss_total: float | None
    rejected: dict[str, dict[str, float | None]]  # by reason: count, rate
    rings: dict[str, dict[str, float | None]]
    endpoints: dict[str, dict[str, float | None]]


@dataclass
class Report:
    """What is shown: all that follows from two scrapes, worst first."""

    url: str
    time: float  # of the clock on the wall
    seconds: float | None  # since the scrape before
    restarted: bool
    rate: float | None  # heaps placed per second, all streams
    streams: list[StreamReport]
    sources: list[Source]


def _loss_key(row: Source | StreamReport) -> tuple[float, ...]:
    silent = row.rates["placed"] == 0  # worst, whether or not a chunk has ended that says what is missing
    return (silent, row.loss or 0, row.loss_total or 0, row.rates["rejected"] or 0, row.counters["rejected"] or 0)


#: For `--sort`: what is greatest comes first.
SORTS: dict[str, Callable[[Source], Any]] = {
    "loss": _loss_key,
    "rate": lambda row: -(row.rates["placed"] or 0),
    "placed": lambda row: -(row.counters["placed"] or 0),
    "present": lambda row: -(row.counters["present"] or 0),
    "missing": lambda row: row.counters["missing"] or 0,
    "duplicates": lambda row: row.counters["duplicates"] or 0,
    "rejected": lambda row: row.counters["rejected"] or 0,
    "source": lambda row: 0,
}


def _full_url(context: click.Context | None, parameter: click.Parameter | None, url: str) -> str:
    """Complete what may be left out of a URL: ``http://`` and ``/metrics``."""
    with contextlib.suppress(ValueError):  # of the address, or of the port
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return urllib.parse.urlunsplit(parts._replace(path=parts.path or "/metrics"))
    raise click.BadParameter(f"{url!r} is not an http:// or https:// URL, such as http://localhost:8000/metrics")


def _fetch(url: str) -> tuple[float, str]:
    """Get the page, and when it was made."""
    request = urllib.request.Request(url, headers={"Accept": "text/plain;version=0.0.4"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as reply:
            now = time.monotonic()  # what follows is only the way of the page to here
            page = reply.read(MAX_REPLY_BYTES + 1)
    except urllib.error.HTTPError as exc:
        exc.close()
        raise ScrapeError(f"{url} answers {exc.code} {exc.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as exc:
        reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
        text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise ScrapeError(f"cannot reach {url}: {text}") from None
    if len(page) > MAX_REPLY_BYTES:
        raise ScrapeError(f"{url} sends more than {MAX_REPLY_BYTES >> 20} MiB; that is no page of metrics")
    return now, page.decode(errors="replace")


def _scrape(url: str) -> Scrape:
    """Read the metrics of speadrx at a URL."""
    now, page = _fetch(url)
    scrape = Scrape(now)
    try:
        samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    except (ValueError, LookupError):
        raise ScrapeError(f"{url} serves no metrics in Prometheus' text format") from None
    for sample in samples:
        if sample.name not in metrics.NAMES or not math.isfinite(sample.value):
            continue
        labels = tuple(sorted(sample.labels.items()))
        stream = scrape.streams[tuple(label for label in labels if label[0] not in OWN_LABELS)]
        stream.totals[sample.name] += sample.value
        for label in OWN_LABELS:
            if label in sample.labels:
                stream.parts[label][sample.labels[label]][sample.name] += sample.value
        if sample.name.endswith("_total"):
            scrape.counters[sample.name, labels] = sample.value
    if not scrape.streams:
        raise ScrapeError(f"{url} serves no metrics of speadrx (none that is called {metrics.HEAPS_PLACED}, ...)")
    return scrape


def _number(value: float | None) -> float | None:
    """Make whole numbers integers, as what counts heaps is to be in JSON."""
    return value if value is None or value != int(value) else int(value)


class _Rise:
    """How far counters rose from one scrape to the next."""

    def __init__(self, before: Numbers | None, seconds: float | None) -> None:
        self._before = before
        self._seconds = seconds

    def of(self, now: Numbers, name: str) -> float | None:
        if self._before is None or name not in now:
            return None
        # What is summed here may lose a part (its labels are gone), though no counter falls.
        return max(0.0, now[name] - self._before.get(name, 0))

    def rate(self, now: Numbers, name: str) -> float | None:
        rise = self.of(now, name)
        return None if rise is None or not self._seconds else rise / self._seconds


def _fraction(part: float | None, rest: float | None) -> float | None:
    return None if part is None or rest is None or part + rest == 0 else part / (part + rest)


def _common(names: Mapping[str, str], now: Numbers, rise: _Rise) -> dict[str, Any]:
    """Make what reports on sources and on streams have in common."""
    missing, present = metrics.HEAPS_MISSING, metrics.HEAPS_PRESENT
    return {
        "counters": {name: _number(now.get(metric)) for name, metric in names.items()},
        "rates": {name: rise.rate(now, metric) for name, metric in names.items()},
        "loss": _fraction(rise.of(now, missing), rise.of(now, present)),
        "loss_total": _fraction(now.get(missing), now.get(present)),
    }


def _report_stream(labels: Labels, now: Stream, before: Stream | None, seconds: float | None) -> StreamReport:
    def rise(label: str, value: str) -> _Rise:
        return _Rise(None if before is None else before.parts[label].get(value, {}), seconds)

    rejected, blocked, drops = metrics.HEAPS_REJECTED, metrics.RING_BLOCKED_SECONDS, metrics.SOCKET_DROPS
    return StreamReport(
        stream=dict(labels),
        **_common(STREAM_COUNTERS, now.totals, _Rise(None if before is None else before.totals, seconds)),
        rejected={
            reason: {"count": _number(part[rejected]), "rate": rise(metrics.REASON, reason).rate(part, rejected)}
            for reason, part in now.parts[metrics.REASON].items()
        },
        rings={
            ring: {
                "chunks": _number(part.get(metrics.RING_CHUNKS)),
                "capacity_chunks": _number(part.get(metrics.RING_CAPACITY_CHUNKS)),
                "blocked_seconds": _number(part.get(blocked)),
                "blocked": rise(metrics.RING, ring).rate(part, blocked),  # seconds per second: a fraction
            }
            for ring, part in now.parts[metrics.RING].items()
        },
        endpoints={
            endpoint: {
                "drops": _number(part.get(drops)),
                "drops_rate": rise(metrics.ENDPOINT, endpoint).rate(part, drops),
                "receive_queue_bytes": _number(part.get(metrics.SOCKET_RECEIVE_QUEUE_BYTES)),
                "receive_buffer_bytes": _number(part.get(metrics.SOCKET_RECEIVE_BUFFER_BYTES)),
            }
            for endpoint, part in now.parts[metrics.ENDPOINT].items()
        },
    )


def _report_sources(labels: Labels, now: Stream, before: Stream | None, seconds: float | None) -> Iterator[Source]:
    for source, part in now.parts[metrics.SOURCE].items():
        if source == metrics.UNKNOWN_SOURCE and not any(part.values()):
            continue  # heaps of unknown sources: none so far
        yield Source(
            stream=dict(labels),
            source=source,
            **_common(
                SOURCE_COUNTERS,
                part,
                _Rise(None if before is None else before.parts[metrics.SOURCE].get(source, {}), seconds),
            ),
            newest_timestamp=_number(part.get(metrics.NEWEST_TIMESTAMP)),
        )


def _report(url: str, now: Scrape, before: Scrape | None, sort: str, limit: int | None) -> Report:
    """Make the report from two scrapes; without one before, nothing in it is known per second."""
    seconds = None if before is None else now.time - before.time
    # Counters never fall, unless they begin again from 0: with a new process all of them do.
    restarted = before is not None and any(
        value < before.counters.get(key, -math.inf) for key, value in now.counters.items()
    )
    streams: list[StreamReport] = []
    sources: list[Source] = []
    for labels, stream in now.streams.items():
        old = None if before is None else Stream() if restarted else before.streams.get(labels)
        streams.append(_report_stream(labels, stream, old, seconds))
        sources += _report_sources(labels, stream, old, seconds)

    def key(row: Source) -> Any:
        return row.source != metrics.UNKNOWN_SOURCE, SORTS[sort](row)  # what has no known source comes last

    rates = [rate for report in streams if (rate := report.rates["placed"]) is not None]
    return Report(
        url=url,
        time=time.time(),
        seconds=seconds,
        restarted=restarted,
        rate=sum(rates) if rates else None,
        streams=sorted(streams, key=_loss_key, reverse=True),
        sources=sorted(sources, key=key, reverse=True)[:limit],
    )


def _name(labels: Mapping[str, str]) -> Text:
    """Name a stream: by its label's value, or by several with their names."""
    if len(labels) == 1:
        return printable(next(iter(labels.values())))
    return printable(",".join(f"{name}={value}" for name, value in labels.items()) or "-")


def _style(loss: float | None, rate: float | None) -> str:
    if rate == 0 or (loss or 0) >= 0.01:
        return "red"
    return "yellow" if loss else ""


def _stream_table(streams: Sequence[StreamReport], number: Format) -> Table:
    columns = ("loss", "heaps/s", "rejected", "too old", "drops", "data", "full s", "free", "empty s")
    table = table_of(["stream"], columns)
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
            number(row.rates["placed"]),
            *(number(row.counters[name]) for name in ("rejected", "too_old", "kernel_drops")),
            *rings,
            style=_style(row.loss, row.rates["placed"]),
        )
    return table


def _source_table(sources: Sequence[Source], number: Format, *, with_stream: bool) -> Table:
    columns = ("loss", "overall", "heaps/s", "placed", "present", "missing", "dupl.", "rejected")
    table = table_of(["source", "stream"] if with_stream else ["source"], columns)
    for row in sources:
        table.add_row(
            printable(row.source or "(unknown)"),
            *([_name(row.stream)] if with_stream else []),
            percentage(row.loss),
            percentage(row.loss_total),
            number(row.rates["placed"]),
            *(number(row.counters[name]) for name in SOURCE_COUNTERS),
            style=_style(row.loss, row.rates["placed"]),
        )
    return table


def _reasons(streams: Iterable[StreamReport]) -> Iterator[Text]:
    counts: Numbers = defaultdict(float)
    for stream in streams:
        for reason, part in stream.rejected.items():
            counts[reason] += part["count"] or 0
    found = sorted(((count, reason) for reason, count in counts.items() if count), reverse=True)
    if found:
        text = ", ".join(f"{reason} {exact(count)}" for count, reason in found)
        yield Text("rejected: ").append_text(printable(text))


class View:
    """A report as a terminal shows it.

    Parameters
    ----------
    report
        What to show.
    error
        Why there is no newer report.
    cut
        Show no more than what the height of the terminal has room for.
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
            *_reasons(streams),
            Text(),
        )
        room = None if height is None else height - len(console.render_lines(above, options)) - 1
        make = functools.partial(_source_table, with_stream=len(streams) > 1)
        yield above
        yield Rows(sources, "sources", make, room=room)

    def _head(self) -> Iterator[Text]:
        report = self.report
        parts = [time.strftime("%H:%M:%S", time.localtime(report.time)), f"{exact(report.rate)} heaps/s"]
        if report.seconds is not None:
            parts.append(f"(of the last {report.seconds:.1f} s)")
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
    """Scrape for ever. When that fails (not the first time) the last report comes again, with the reason."""
    before = _scrape(url)
    report = _report(url, before, None, sort, limit)
    yield report, None
    due = time.monotonic()
    while True:
        clock = time.monotonic()
        due = max(due + interval, clock)
        wait(due - clock)
        try:
            now = _scrape(url)
        except ScrapeError as exc:
            yield report, exc.message
        else:
            report = _report(url, now, before, sort, limit)
            yield report, None
            before = now


def _live(console: Console, url: str, interval: float, sort: str, limit: int | None) -> None:
    """Show reports on the whole terminal, which is put right at the end."""
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
    first = next(reports)  # an error ends it here, on the terminal as it was
    with live:
        draw(*first)
        for report, error in reports:
            draw(report, error)


@contextlib.contextmanager
def _until_interrupted() -> Iterator[None]:
    """Let Ctrl-C end the block, and SIGTERM too, so that the terminal is put right on the way out."""

    def end(signum: int, frame: object) -> None:
        raise SystemExit(128 + signum)

    old = signal.signal(signal.SIGTERM, end)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, old)


@click.command()
@click.argument("url", callback=_full_url)
@click.option("--once", is_flag=True, help="Print one report, of two scrapes an --interval apart, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print each report as a line of JSON.")
@click.option(
    "--interval",
    type=click.FloatRange(0, 86400),
    callback=read_finite,
    default=1.0,
    show_default=True,
    help="Seconds between scrapes. 0 (only with --once): one scrape, without rates.",
)
@click.option(
    "--sort",
    type=click.Choice(list(SORTS)),
    default="loss",
    show_default=True,
    help="What the first source is to be worst in (for placed and present: the fewest); source: in the layout's order.",
)
@click.option("--sources", "limit", type=click.IntRange(min=1), metavar="N", help="Show the first N sources only.")
def top(url: str, once: bool, as_json: bool, interval: float, sort: str, limit: int | None) -> None:
    """Watch a speadrx process by the URL of its metrics.

    The upper table has the streams, the lower one their sources, worst first. Loss and heaps/s are since
    the scrape before; all else is since the process started. "data" and "free" are the chunks in the
    rings, "full s" and "empty s" the seconds that the data ring was full or the free ring empty: the
    consumer was too slow. "drops" are packets that the kernel dropped.

    Without a terminal, a report is printed after each interval. The exit code is 1 if there are no metrics
    of speadrx at the URL; once some have come, failures are shown and the watch goes on. Ctrl-C ends it.
    """
    if interval == 0 and not once:
        raise click.BadParameter("0 is no time between scrapes (0 is for --once)", param_hint="--interval")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # labels may have what the terminal has not
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
            next(reports)  # nothing in it is known per second
            for report, error in reports:
                if error is None:
                    show(report)
                    if not as_json:
                        console.print()
                else:
                    click.echo(f"Error: {error}", err=True)
