"""Cost of a scrape of many streams, against the way of katgpucbf: a Python loop over ``stream.stats``.

All take turns in one process on the same streams, which receive nothing: what they have counted changes nothing of
the cost. The loop reads three counters of each stream, and adds what is new since the scrape before to the totals of
the labels. Timed is ``collect()``, without the text that is made of it.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import rows
import spead2
import spead2.recv
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from speadrx.meerkat import DigitiserLayout

import speadrx
from speadrx import StatsCollector
from speadrx.metrics.ledger import LedgerCollector

N_STREAMS = 256
SEED = 20240611
#: What the loop reads: these counters, and the first alone.
COUNTERS = {
    "too_old_heaps": ("input_too_old_heaps", "Heaps that came too late"),
    "speadrx.metadata_heaps": ("input_metadata_heaps", "Heaps with wrong metadata"),
    "speadrx.bad_timestamp_heaps": ("input_bad_timestamp_heaps", "Heaps with a bad timestamp"),
}
SPEAD2_COUNTER = {"too_old_heaps": COUNTERS["too_old_heaps"]}
LOOP, BARE, LEDGER, SPEAD2, BOTH = "loop", "stream.stats alone", "the whole ledger", "a spead2 counter", "both"
#: Largest ratio to the loop.
BOUNDS = {LEDGER: 0.25, SPEAD2: 0.8}
#: What the table of all benchmarks says is wanted. Reading `stream.stats` alone is the least that a counter can take.
WANTED = {LEDGER: 0.2, SPEAD2: 0.7, BARE: None}


class LoopSource:
    def __init__(self, stream: Any) -> None:
        self.stream = weakref.ref(stream)
        self.indices = [stream.config.get_stat_index(name) for name in COUNTERS]
        self.last = [0] * len(self.indices)


class Loop:
    """The way of katgpucbf."""

    def __init__(self, streams: Iterable[Any]) -> None:
        self.sources = {("wide",): [LoopSource(stream) for stream in streams]}
        self.totals = {labels: [0] * len(COUNTERS) for labels in self.sources}

    def collect(self) -> list[Metric]:
        for labels, sources in self.sources.items():
            totals = self.totals[labels]
            for source in sources:
                stream = source.stream()
                if stream is not None:
                    stats = stream.stats
                    for i, index in enumerate(source.indices):
                        value = stats[index]
                        totals[i] += value - source.last[i]
                        source.last[i] = value
        metrics = []
        for i, (name, text) in enumerate(COUNTERS.values()):
            metric = CounterMetricFamily(name, text, labels=["stream"])
            for labels, totals in self.totals.items():
                metric.add_metric(labels, totals[i])
            metrics.append(metric)
        return metrics


def make_stream() -> Any:
    return speadrx.make_stream(
        layout=DigitiserLayout(10, 4096, 2**16, False),
        max_active_chunks=2,
        data_ringbuffer=spead2.recv.ChunkRingbuffer(1),
        free_ringbuffer=spead2.recv.ChunkRingbuffer(1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=300, help="times that each takes its turn [%(default)s]")
    parser.add_argument("--streams", type=int, default=N_STREAMS, help="number of streams [%(default)s]")
    parser.add_argument("--json", metavar="FILE", help="write the rows of the table of all benchmarks to a file")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a ratio is more than it may be")
    args = parser.parse_args()

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    streams = [make_stream() for _ in range(args.streams)]
    loop = Loop(streams)
    ledgers = LedgerCollector(["stream"], registry=None)
    statistics = StatsCollector(SPEAD2_COUNTER, ["stream"], registry=None)
    for stream in streams:
        ledgers.add(stream, ["wide"])
        statistics.add_stream(stream, ["wide"])

    def bare() -> None:
        for stream in streams:
            stream.stats  # noqa: B018

    scrapes: dict[str, Callable[[], object]] = {
        LOOP: loop.collect,
        BARE: bare,
        LEDGER: ledgers.collect,
        SPEAD2: statistics.collect,
        BOTH: lambda: (ledgers.collect(), statistics.collect()),
    }
    names = list(scrapes)
    times = np.empty((args.repeats + args.repeats // 10, len(names)))
    rng = np.random.default_rng(SEED)
    for row in times:
        for i in rng.permutation(len(names)):  # what one leaves in the caches must not always help the same other one
            start = time.perf_counter()
            scrapes[names[i]]()
            row[i] = time.perf_counter() - start
    times = times[args.repeats // 10 :] * 1e6  # without those to warm up
    ratios = times / times[:, :1]  # of neighbours in time: what else the machine does hits both

    print(f"spead2 {spead2.__version__}, Python {platform.python_version()}; {args.streams} streams\n")
    print(f"{'median, quartiles':20s} {'us per scrape':>22s} {'of the loop':>20s} {'at most':>8s}")
    within = True
    for i, name in enumerate(names):
        low, median, high = np.percentile(times[:, i], [25, 50, 75])
        ratio_low, ratio, ratio_high = np.percentile(ratios[:, i], [25, 50, 75])
        bound = BOUNDS.get(name)
        within &= bound is None or ratio <= bound
        print(
            f"{name:20s} {median:7.0f} ({low:.0f} - {high:.0f})".ljust(43)
            + f" {ratio:7.2f} ({ratio_low:.2f} - {ratio_high:.2f})"
            + ("" if bound is None else f" {bound:8.2f}")
        )
    for stream in streams:
        stream.stop()
    columns = dict(zip(names, times.T, strict=True))
    rows.write(
        args.json,
        [
            rows.row(
                f"scrape of {args.streams} streams: {name}",
                "Python loop",
                "us",
                columns[name],
                columns[LOOP],
                most=most,
            )
            for name, most in WANTED.items()
        ],
    )
    if args.check and not within:
        sys.exit("A ratio is more than it may be.")


if __name__ == "__main__":
    main()
