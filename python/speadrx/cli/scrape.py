"""Read the metrics of speadrx at a URL."""

from __future__ import annotations

import contextlib
import http.client
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from dataclasses import dataclass, field

import click
from prometheus_client.parser import text_string_to_metric_families

from speadrx import metrics

#: Labels that speadrx itself adds to metrics. All other labels tell streams apart.
OWN_LABELS = (metrics.SOURCE, metrics.REASON, metrics.RING, metrics.ENDPOINT)

TIMEOUT_SECONDS = 10.0
MAX_REPLY_BYTES = 256 << 20

Labels = tuple[tuple[str, str], ...]
Numbers = dict[str, float]


class ScrapeError(click.ClickException):
    """The metrics of speadrx could not be read; the message names the URL."""


@dataclass
class StreamSamples:
    """The samples of one stream: those whose other labels are the same."""

    totals: Numbers = field(default_factory=lambda: defaultdict(float))
    #: Sums of the samples, by each of `OWN_LABELS`, by its value, and by metric.
    parts: dict[str, dict[str, Numbers]] = field(
        default_factory=lambda: {label: defaultdict(lambda: defaultdict(float)) for label in OWN_LABELS}
    )


@dataclass
class Scrape:
    """What a process said about its streams at one time."""

    time: float  # of the monotonic clock
    counters: dict[tuple[str, Labels], float] = field(default_factory=dict)
    streams: dict[Labels, StreamSamples] = field(default_factory=lambda: defaultdict(StreamSamples))


def read_url(context: click.Context | None, parameter: click.Parameter | None, url: str) -> str:
    """Complete a URL: ``http://`` and ``/metrics`` may be left out."""
    with contextlib.suppress(ValueError):  # a bad address or port
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return urllib.parse.urlunsplit(parts._replace(path=parts.path or "/metrics"))
    raise click.BadParameter(f"{url!r} is not an http:// or https:// URL, such as http://localhost:8000/metrics")


def _fetch(url: str) -> tuple[float, str]:
    """Get the page, and the time at which it was made."""
    request = urllib.request.Request(url, headers={"Accept": "text/plain;version=0.0.4"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as reply:
            now = time.monotonic()  # the rest is only the transfer of the page
            page = reply.read(MAX_REPLY_BYTES + 1)
    except urllib.error.HTTPError as exc:
        exc.close()
        raise ScrapeError(f"{url} answers {exc.code} {exc.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as exc:
        reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
        text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise ScrapeError(f"cannot reach {url}: {text}") from None
    if len(page) > MAX_REPLY_BYTES:
        raise ScrapeError(f"{url} sends more than {MAX_REPLY_BYTES >> 20} MiB, which cannot be a page of metrics")
    return now, page.decode(errors="replace")


def scrape(url: str) -> Scrape:
    """Read the metrics of speadrx at a URL."""
    now, page = _fetch(url)
    found = Scrape(now)
    try:
        samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    except (ValueError, LookupError):
        raise ScrapeError(f"{url} does not serve metrics in the text format of Prometheus") from None
    for sample in samples:
        if sample.name not in metrics.NAMES or sample.name == metrics.BUILD_INFO or not math.isfinite(sample.value):
            continue
        labels = tuple(sorted(sample.labels.items()))
        stream = found.streams[tuple(label for label in labels if label[0] not in OWN_LABELS)]
        stream.totals[sample.name] += sample.value
        for label in OWN_LABELS:
            if label in sample.labels:
                stream.parts[label][sample.labels[label]][sample.name] += sample.value
        if sample.name.endswith("_total"):
            found.counters[sample.name, labels] = sample.value
    if not found.streams:
        raise ScrapeError(f"{url} does not serve metrics of speadrx (such as {metrics.HEAPS_PLACED})")
    return found
