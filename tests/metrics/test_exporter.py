"""The exporter of all collectors: stalled, deleted, scraped by many at once, and how it serves."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
import weakref
from collections.abc import Iterator
from typing import Any

import prometheus_client
import pytest
import spead2
import spead2.recv
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from speadrx.collectors import Exporter

import speadrx
from addresses import own_port
from loopback import wait_for, wait_until_gone
from receiving import Receiver, receiver
from scraped import ANTENNAS, BATCHES, CHUNK, LAYOUT, STEP, Metrics, feed
from speadrx import metrics

WAITS = 0.05  # seconds for what is to go on meanwhile; nothing depends on how long it is


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    with Exporter(["stream"]) as exporter:
        yield exporter


class TestExporter:
    def test_metric_names(self, exporter, make):
        """What is exported is what dashboard, alerts and `top` count on, under the names that they use."""
        stream = make()
        speadrx.add_reader(stream, src=[("127.0.0.1", own_port())])
        exporter.add(stream, ["x"])
        exported = {sample.name for metric in exporter.registry.collect() for sample in metric.samples}
        families = {metric.name: metric for metric in exporter.registry.collect()}
        never_seen = {metrics.NEWEST_TIMESTAMP, metrics.PACKETS_UNUSED}  # nothing is placed, and nothing mended
        histograms = {metrics.HEAP_LATENESS_BATCHES, metrics.HEAP_LATENESS_CHUNKS}
        assert set(metrics.NAMES) - never_seen - histograms <= exported
        assert {name + "_bucket" for name in histograms} <= exported
        assert {name.removesuffix("_total") for name in metrics.NAMES} == set(families)
        for name in metrics.NAMES:
            metric = families[name.removesuffix("_total")]
            assert metric.documentation == metrics.HELP[name]
            kind = "counter" if name.endswith("_total") else "histogram" if name in histograms else "gauge"
            assert metric.type == kind
            assert name.startswith("speadrx_")

    def test_conventions(self, exporter):
        """Both text formats are as their parsers want them, and promtool finds nothing."""
        with receiver(LAYOUT) as rx:
            exporter.add(rx.stream, ["x"])
            feed(rx.queues[0], range(0, 3 * CHUNK, STEP))
            rx.finish()
        text = prometheus_client.generate_latest(exporter.registry)
        assert b"speadrx_heaps_placed_total" in text
        openmetrics = prometheus_client.openmetrics.exposition.generate_latest(exporter.registry).decode()
        assert len(list(text_string_to_metric_families(openmetrics))) == len(metrics.NAMES)
        if (promtool := shutil.which("promtool")) is not None:
            result = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
            assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")

    @pytest.mark.fault(15)
    def test_same_source_twice(self, exporter, fault_report):
        with receiver(LAYOUT) as rx:
            for label in ("x", "x", "y"):
                exporter.add(rx.stream, [label])
            n = feed(rx.queues[0], range(0, 3 * CHUNK, STEP))
            rx.finish()
            rx.stream.stop()
            exporter.add(rx.stream, ["x"])
            values = Metrics(exporter.registry)
            present = int(values.total(metrics.HEAPS_PRESENT, stream="x"))
            fault_report(sent=n, lost=n - present, residual=n - present)
            for label in ("x", "y"):
                for name in (metrics.HEAPS_PLACED, metrics.HEAPS_PRESENT, metrics.PACKETS):
                    assert values.total(name, stream=label) == n
                assert values.total(metrics.RING_CAPACITY_CHUNKS, stream=label) == 24

    @pytest.mark.fault(15)
    @pytest.mark.parametrize("members", [None, 2])
    @pytest.mark.parametrize("stop_first", [True, False])
    def test_nothing_of_a_source_is_lost(self, exporter, members, stop_first, fault_report):
        """They are deleted with counts that no scrape has seen."""
        sent = 0
        for _ in range(3):
            rx = Receiver(LAYOUT, members=members)
            exporter.add(rx.stream, ["x"])
            for antenna, queue in enumerate(rx.queues):
                sent += feed(queue, range(0, 3 * CHUNK, STEP), [antenna])
            rx.finish()
            if stop_first:
                rx.stream.stop()
            reference = weakref.ref(rx.stream)
            rx._executor.shutdown()
            del rx
            gc.collect()
            wait_until_gone(reference)
        values = Metrics(exporter.registry)
        present = int(values.total(metrics.HEAPS_PRESENT))
        fault_report(sent=sent, lost=sent - present, residual=sent - present)
        for name in (metrics.HEAPS_PLACED, metrics.PACKETS, metrics.HEAPS_PRESENT):
            assert values.total(name) == sent
        assert values.total(metrics.CHUNKS) == 9
        assert values(metrics.HEAP_LATENESS_CHUNKS + "_bucket", le="+Inf", stream="x") == sent
        assert not any(key[0] == metrics.NEWEST_TIMESTAMP for key in values.values), "nobody receives any more"
        held = [label_set for collector in exporter._collectors for _, label_set in collector._label_sets]
        assert len(held) == 6
        assert Metrics(exporter.registry).counters() == values.counters()

    def test_collector_goes_first(self, make):
        exporter = Exporter()
        stream = make()
        exporter.add(stream)
        reference = weakref.ref(exporter._collectors[0])
        exporter.close()
        del exporter
        stream.stop()
        gc.collect()
        wait_until_gone(reference)

    def test_serve(self, exporter, make):
        exporter.add(make(), ["x"])
        port = exporter.serve(0, "127.0.0.1")
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=60) as reply:
            assert b'speadrx_packets_total{stream="x"} 0.0' in reply.read()
        with Exporter() as other, pytest.raises(OSError, match="in use"):
            other.serve(port, "127.0.0.1")
        threads = threading.active_count()
        exporter.close()
        assert threading.active_count() < threads
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(url, timeout=60)
        exporter.close()
        with pytest.raises(ValueError, match="exporter is closed"):
            exporter.serve(0, "127.0.0.1")

    @pytest.mark.parametrize("port", [-1, 65536])
    def test_bad_port(self, exporter, port):
        with pytest.raises(ValueError, match=f"port: {port} must be from 0 to 65535"):
            exporter.serve(port, "127.0.0.1")

    def test_two_in_one_registry(self):
        """The second is refused as a whole, by a registry that looks, such as the default one."""
        registry = CollectorRegistry(auto_describe=True)
        with Exporter(registry=registry):
            before = set(Metrics(registry).values)
            threads = threading.active_count()
            with pytest.raises(ValueError, match="Duplicated"):
                Exporter(registry=registry)
            assert set(Metrics(registry).values) == before
            assert threading.active_count() == threads
        Exporter(registry=registry).close()

    def test_bad_arguments(self, exporter, make):
        for name in ("source", "reason", "ring", "endpoint", "le"):
            with pytest.raises(ValueError, match=f"labelnames: '{name}' is taken"):
                Exporter(["stream", name])
        for name in ("", "l-band", "1st", "__name__", "stream\n", "ström"):
            with pytest.raises(ValueError, match=r"labelnames: .* is not a label name of Prometheus"):
                Exporter(["stream", name])
        with pytest.raises(ValueError, match="labelnames: 'stream' is given more than once"):
            Exporter(["stream", "stream"])
        with pytest.raises(TypeError, match="labelnames: given the string 'stream'"):
            Exporter("stream")
        with pytest.raises(TypeError, match="labels: given the string 'x'"):
            exporter.add(make(), "x")
        with pytest.raises(ValueError, match=r"labels: \(\) has 0 values.*'stream'"):
            exporter.add(make())
        with pytest.raises(TypeError, match="stream: given InprocQueue"):
            exporter.add(spead2.InprocQueue(), ["x"])
        assert Metrics(exporter.registry).values == {}


class TestLive:
    """Scrapes go on, and tell the truth, whatever the consumer does."""

    def scrape(self, port: int) -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as reply:
            families = prometheus_client.parser.text_string_to_metric_families(reply.read().decode())
            totals: dict[str, float] = {}
            for family in families:
                for sample in family.samples:
                    name = sample.name + sample.labels.get("ring", "")
                    totals[name] = totals.get(name, 0) + sample.value
            return totals

    @pytest.mark.fault(8)
    def test_consumer_stalls(self, make):
        """With the data ring full the network thread waits for ever; heaps seen and drops still go up."""
        with Exporter() as exporter:
            stream = make(layout=LAYOUT, data_ringbuffer=spead2.recv.ChunkRingbuffer(1))
            queue = spead2.InprocQueue()
            stream.add_inproc_reader(queue)
            exporter.add(stream)
            port = exporter.serve(0, "127.0.0.1")
            feed(queue, range(0, 20 * CHUNK, STEP))
            # Two under construction, one in the ring, and then it waits to hand over the next.
            wait_for(lambda: stream.ledger.snapshot().placed > 3 * BATCHES * ANTENNAS)
            time.sleep(WAITS)
            before = self.scrape(port)
            assert before[metrics.RING_CHUNKS + "data"] == before[metrics.RING_CAPACITY_CHUNKS + "data"] == 1
            assert before[metrics.HEAPS_PLACED] > 3 * BATCHES * ANTENNAS
            wait_for(
                lambda: (
                    self.scrape(port)[metrics.RING_BLOCKED_SECONDS + "data"]
                    > before[metrics.RING_BLOCKED_SECONDS + "data"] + WAITS
                )
            )
            after = self.scrape(port)
            assert after[metrics.HEAPS_PLACED] == before[metrics.HEAPS_PLACED]

    @pytest.mark.fault(8)
    async def test_event_loop_is_blocked(self, make):
        """Nothing of it runs in the event loop."""
        with Exporter() as exporter:
            stream = make(layout=LAYOUT)
            queue = spead2.InprocQueue()
            stream.add_inproc_reader(queue)
            exporter.add(stream)
            port = exporter.serve(0, "127.0.0.1")
            n = feed(queue, range(0, CHUNK, STEP))
            with concurrent.futures.ThreadPoolExecutor(1) as executor:
                scrape = executor.submit(lambda: self.scrape(port))
                # Blocks the event loop until there is an answer.
                wait_for(scrape.done)
            wait_for(lambda: self.scrape(port)[metrics.PACKETS] == n)
        await asyncio.sleep(0)

    @pytest.mark.fault(15)
    def test_last_reference_goes_during_a_scrape(self, registry):
        """A stream may be deleted by a scrape, in the scrape's own thread; that neither hangs nor loses anything."""
        with Exporter(registry=registry) as exporter:
            rx = Receiver(LAYOUT)
            exporter.add(rx.stream)
            n = feed(rx.queues[0], range(0, CHUNK, STEP))
            rx.finish()
            rx._executor.shutdown()
            owner = [rx.stream]
            del rx
            ledgers, consumer, rings, kernel, unused, _ = (c._label_sets.of(()) for c in exporter._collectors)
            for stream, _ in rings._streams:
                del stream
                owner.clear()
            gc.collect()
            assert Metrics(registry).total(metrics.PACKETS) == n
            of_ledgers = (each._streams for each in ledgers._by_shape.values())
            held = [rings._streams, kernel._streams, unused._streams, *of_ledgers, *consumer._by_sources.values()]
            assert [list(streams) for streams in held] == [[]] * 5


@pytest.mark.fault(15, 16)
@pytest.mark.parametrize("n_scrapes", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_threads(n_scrapes, fault_report):
    """Eight threads scrape while sources come, receive and go: counters rise, never above the truth, and end exact."""
    n_threads, heaps = 8, 48
    exporter = Exporter(["stream"])
    sent = 0
    rounds = 0
    done = threading.Event()
    scrapes = [0] * n_threads

    def scrape(thread: int) -> None:
        last: dict[tuple[Any, ...], float] = {}
        while not done.is_set() or sum(scrapes) < n_scrapes:
            values = Metrics(exporter.registry)
            limit = sent  # after it: what was sent since is allowed, what was not is not
            counters = values.counters()
            fallen = {key: (value, counters.get(key)) for key, value in last.items() if counters.get(key, -1) < value}
            assert not fallen
            for name in (metrics.HEAPS_PLACED, metrics.HEAPS_PRESENT, metrics.PACKETS):
                assert values.total(name) <= limit
            last = counters
            scrapes[thread] += 1

    interval = sys.getswitchinterval()
    try:
        with concurrent.futures.ThreadPoolExecutor(n_threads) as executor:
            scrapers = [executor.submit(scrape, i) for i in range(n_threads)]
            sys.setswitchinterval(1e-5)  # threads take turns far more often than they usually do
            try:
                while sum(scrapes) < n_scrapes and not any(scraper.done() for scraper in scrapers):
                    rounds += 1
                    with receiver(LAYOUT, members=2 if rounds % 3 == 0 else None, window=8) as rx:  # no member is late
                        exporter.add(rx.stream, ["group" if rounds % 3 == 0 else "single"])
                        sent += heaps
                        for antenna, queue in enumerate(rx.queues):
                            share = range(ANTENNAS) if len(rx.queues) == 1 else [antenna]
                            assert feed(queue, range(0, 6 * CHUNK, STEP), share) == heaps // len(rx.queues)
                        if rounds % 2:
                            exporter.add(rx.stream, ["group" if rounds % 3 == 0 else "single"])
                        rx.finish()
                    del rx
            finally:
                done.set()
                sys.setswitchinterval(interval)
        for scraper in scrapers:
            scraper.result()
        assert sum(scrapes) >= n_scrapes
        gc.collect()
        values = Metrics(exporter.registry)
        present = int(values.total(metrics.HEAPS_PRESENT))
        note = f"{n_threads} threads, {sum(scrapes)} scrapes, {rounds} streams and groups"
        fault_report(sent=sent, lost=sent - present, residual=sent - present, note=note)
        for name in (metrics.HEAPS_PLACED, metrics.HEAPS_PRESENT, metrics.PACKETS):
            assert values.total(name) == sent
        assert values.total(metrics.HEAPS_MISSING) == 0
        assert values.total(metrics.CHUNKS) == 6 * rounds
    finally:
        exporter.close()


def test_exit_with_a_running_exporter():
    """The interpreter ends as it should with everything still going on."""
    program = (
        "import spead2.recv, speadrx\n"
        "from speadrx.collectors import Exporter\n"
        "layout = speadrx.Layout(heap_bytes=8, time=speadrx.TimeAxis(item=0x1600, step=1, batches=4))\n"
        "rings = [spead2.recv.ChunkRingbuffer(4) for _ in range(2)]\n"
        "stream = speadrx.make_stream(\n"
        "    layout=layout, max_active_chunks=2, data_ringbuffer=rings[0], free_ringbuffer=rings[1])\n"
        "exporter = Exporter()\n"
        "exporter.add(stream)\n"
        "exporter.serve(0, '127.0.0.1')\n"
        "print('end')\n"
    )
    for _ in range(3):
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, "end\n", "")
