"""Compare two scrapes: how fast the counters of streams and sources rose from one to the next."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from speadrx import metrics
from speadrx.accounts.loss import loss

from .scrape import Labels, Numbers, Scrape, StreamSamples

#: Counters of a source, and their names in reports.
SOURCE_COUNTERS = {
    "placed": metrics.HEAPS_PLACED,
    "present": metrics.HEAPS_PRESENT,
    "missing": metrics.HEAPS_MISSING,
    "duplicates": metrics.HEAPS_DUPLICATE,
    "rejected": metrics.HEAPS_REJECTED,
    "bytes": metrics.RECEIVED_BYTES,
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


@dataclass
class SourceReport:
    """A source of a stream, and how its counters rose since the last scrape."""

    stream: dict[str, str]
    source: str
    counters: dict[str, float | None]
    rates: dict[str, float | None]
    loss: float | None  # missing heaps as a fraction of those expected, since the last scrape
    loss_total: float | None
    in_flight: float | None  # heaps placed whose chunk has not come out yet
    newest_timestamp: float | None


@dataclass
class StreamReport:
    """A stream, and how its counters rose since the last scrape."""

    stream: dict[str, str]
    counters: dict[str, float | None]
    rates: dict[str, float | None]
    loss: float | None
    loss_total: float | None
    in_flight: float | None
    rejected: dict[str, dict[str, float | None]]  # by reason: count, rate
    rings: dict[str, dict[str, float | None]]
    endpoints: dict[str, dict[str, float | None]]


@dataclass
class Report:
    """All that follows from two scrapes, worst first."""

    url: str
    time: float  # in seconds since 1970
    seconds: float | None  # since the last scrape
    restarted: bool
    rate: float | None  # heaps placed per second, in all streams
    byte_rate: float | None  # bytes of payload per second, in all streams
    streams: list[StreamReport]
    sources: list[SourceReport]


def _loss_key(row: SourceReport | StreamReport) -> tuple[float, ...]:
    silent = row.rates["placed"] == 0  # always the worst: what is missing is only known when a chunk ends
    return (silent, row.loss or 0, row.loss_total or 0, row.rates["rejected"] or 0, row.counters["rejected"] or 0)


#: Keys for `--sort`: the largest comes first.
SORTS: dict[str, Callable[[SourceReport], Any]] = {
    "loss": _loss_key,
    "rate": lambda row: -(row.rates["placed"] or 0),
    "placed": lambda row: -(row.counters["placed"] or 0),
    "present": lambda row: -(row.counters["present"] or 0),
    "missing": lambda row: row.counters["missing"] or 0,
    "duplicates": lambda row: row.counters["duplicates"] or 0,
    "rejected": lambda row: row.counters["rejected"] or 0,
    "source": lambda row: 0,
}


def _number(value: float | None) -> float | None:
    """Make whole numbers integers, as counts of heaps must be in JSON."""
    return value if value is None or value != int(value) else int(value)


class _Rise:
    """How much counters rose from one scrape to the next."""

    def __init__(self, before: Numbers | None, seconds: float | None) -> None:
        self._before = before
        self._seconds = seconds

    def of(self, now: Numbers, name: str) -> float | None:
        if self._before is None or name not in now:
            return None
        # Counters never fall, but a sum of them may, if some of its labels are gone.
        return max(0.0, now[name] - self._before.get(name, 0))

    def rate(self, now: Numbers, name: str) -> float | None:
        rise = self.of(now, name)
        return None if rise is None or not self._seconds else rise / self._seconds


def _common(names: Mapping[str, str], now: Numbers, rise: _Rise) -> dict[str, Any]:
    """Make the fields that reports on sources and on streams have in common."""
    missing, present = metrics.HEAPS_MISSING, metrics.HEAPS_PRESENT
    return {
        "counters": {name: _number(now.get(metric)) for name, metric in names.items()},
        "rates": {name: rise.rate(now, metric) for name, metric in names.items()},
        "loss": loss(rise.of(now, missing), rise.of(now, present)),
        "loss_total": loss(now.get(missing), now.get(present)),
        "in_flight": _number(now.get(metrics.HEAPS_IN_FLIGHT)),
    }


def _report_stream(
    labels: Labels, now: StreamSamples, before: StreamSamples | None, seconds: float | None
) -> StreamReport:
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


def _report_sources(
    labels: Labels, now: StreamSamples, before: StreamSamples | None, seconds: float | None
) -> Iterator[SourceReport]:
    for source, part in now.parts[metrics.SOURCE].items():
        if source == metrics.UNKNOWN_SOURCE and not any(part.values()):
            continue  # so far, the source of every heap is known
        yield SourceReport(
            stream=dict(labels),
            source=source,
            **_common(
                SOURCE_COUNTERS,
                part,
                _Rise(None if before is None else before.parts[metrics.SOURCE].get(source, {}), seconds),
            ),
            newest_timestamp=_number(part.get(metrics.NEWEST_TIMESTAMP)),
        )


def make_report(url: str, now: Scrape, before: Scrape | None, sort: str, limit: int | None) -> Report:
    """Make the report from two scrapes. Without a last scrape, it has no rates."""
    seconds = None if before is None else now.time - before.time
    # Counters fall only if a new process begins again from 0.
    restarted = before is not None and any(
        value < before.counters.get(key, -math.inf) for key, value in now.counters.items()
    )
    streams: list[StreamReport] = []
    sources: list[SourceReport] = []
    for labels, stream in now.streams.items():
        old = None if before is None else StreamSamples() if restarted else before.streams.get(labels)
        streams.append(_report_stream(labels, stream, old, seconds))
        sources += _report_sources(labels, stream, old, seconds)

    def key(row: SourceReport) -> Any:
        return row.source != metrics.UNKNOWN_SOURCE, SORTS[sort](row)  # the unknown source comes last

    def total(name: str) -> float | None:
        rates = [rate for report in streams if (rate := report.rates[name]) is not None]
        return sum(rates) if rates else None

    return Report(
        url=url,
        time=time.time(),
        seconds=seconds,
        restarted=restarted,
        rate=total("placed"),
        byte_rate=total("bytes"),
        streams=sorted(streams, key=_loss_key, reverse=True),
        sources=sorted(sources, key=key, reverse=True)[:limit],
    )
