"""Collectors: what they export of real streams, alive, stalled, deleted, and scraped by many at once."""

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
from addresses import GROUP_PREFIX, own_port
from handmade import SMALL, Heap, encode
from loopback import packets, received, send, wait_for
from receiving import Receiver, receiver
from speadrx import Axis, BaseLayout, Layout, TimeAxis, metrics
from speadrx.metrics.consumer import ConsumerCollector
from speadrx.metrics.kernel import KernelCollector
from speadrx.metrics.ledger import LedgerCollector
from speadrx.metrics.rings import RingCollector

TIME_ID, ANTENNA_ID = 0x1600, 0x4101
STEP, BATCHES, ANTENNAS, HEAP_BYTES = 16, 4, 2, 8
CHUNK = STEP * BATCHES
LAYOUT = Layout(
    heap_bytes=HEAP_BYTES,
    time=TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES),
    axes=(Axis(name="antenna", item=ANTENNA_ID, size=ANTENNAS),),
    sources="antenna",
)
WAITS = 0.05  # seconds for what is to go on meanwhile; nothing depends on how long it is


class Metrics:
    """The samples of a registry, by name and labels, without those of when counters were created."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.values = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for metric in registry.collect()
            for sample in metric.samples
            if not sample.name.endswith("_created")
        }

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.values.get((name, *sorted(labels.items())))

    def total(self, name: str, **labels: str) -> float:
        """The sum over all labels that are not given."""
        wanted = set(labels.items())
        return sum(value for key, value in self.values.items() if key[0] == name and wanted <= set(key[1:]))

    def counters(self) -> dict[tuple[Any, ...], float]:
        return {key: value for key, value in self.values.items() if key[0].endswith(("_total", "_bucket"))}


def feed(queue: spead2.InprocQueue, timestamps: Any, antennas: Any = range(ANTENNAS)) -> int:
    """Send single-packet heaps, and return how many."""
    heaps = [(timestamp, antenna) for timestamp in timestamps for antenna in antennas]
    for i, (timestamp, antenna) in enumerate(heaps, 1):
        items = {TIME_ID: timestamp, spead2.HEAP_LENGTH_ID: HEAP_BYTES, ANTENNA_ID: antenna}
        for packet in encode(Heap(items, bytes(HEAP_BYTES)), i, 48):
            queue.add_packet(packet)
    return len(heaps)


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    with Exporter(["stream"]) as exporter:
        yield exporter


class TestLedger:
    def test_counts(self, registry):
        collector = LedgerCollector(["stream"], registry)
        with receiver(LAYOUT, window=2) as rx:
            collector.add(rx.stream, ["wide"])
            queue = rx.queues[0]
            feed(queue, [0, STEP, STEP, 3 * STEP])  # one twice
            feed(queue, [2 * STEP], [1])  # a batch behind
            feed(queue, [CHUNK], [0, 0, 7, 8])  # a new chunk; one twice; two antennas that there are not
            feed(queue, [CHUNK + 1], [1])
            feed(queue, [3 * STEP + STEP // 2], [0])
            feed(queue, [2 * STEP], [0])  # a chunk behind
            feed(queue, [2 * CHUNK], [1, 0])
            feed(queue, [0], [0])  # beyond the window
            rx.finish()
            values = Metrics(registry)
        wide = {"stream": "wide"}
        assert values(metrics.HEAPS_PLACED, source="0", **wide) == 4 + 2 + 1 + 1 + 1
        assert values(metrics.HEAPS_PLACED, source="1", **wide) == 4 + 1 + 1
        assert values(metrics.HEAPS_DUPLICATE, source="0", **wide) == 2
        assert values(metrics.HEAPS_DUPLICATE, source="1", **wide) == 1
        assert values(metrics.HEAPS_REJECTED, source="", reason="bad_antenna_heaps", **wide) == 2
        assert values.total(metrics.HEAPS_REJECTED, source="0") == 1
        assert values(metrics.HEAPS_REJECTED, source="1", reason="bad_timestamp_heaps", **wide) == 1
        assert values.total(metrics.HEAPS_REJECTED) == 4
        assert values(metrics.NEWEST_TIMESTAMP, source="0", **wide) == 2 * CHUNK
        # Cumulative: 12 of 13 heaps of the newest chunk in the newest batch, one a batch behind.
        batches = [values(metrics.HEAP_LATENESS_BATCHES + "_bucket", le=le, **wide) for le in ("0.0", "1.0", "+Inf")]
        assert batches == [12, 13, 13]
        chunks = [values(metrics.HEAP_LATENESS_CHUNKS + "_bucket", le=le, **wide) for le in ("0.0", "1.0", "+Inf")]
        assert chunks == [13, 14, 15]
        assert chunks[-1] == values.total(metrics.HEAPS_PLACED)

    def test_every_series_is_there_from_the_start(self, make, registry):
        """A rate needs a zero to begin from."""
        collector = LedgerCollector(registry=registry)
        stream = make(layout=LAYOUT)
        collector.add(stream)
        values = Metrics(registry).values
        counts = {
            name: sum(key[0] == name for key in values) for name in (metrics.HEAPS_PLACED, metrics.HEAPS_REJECTED)
        }
        assert counts == {
            metrics.HEAPS_PLACED: ANTENNAS,
            metrics.HEAPS_REJECTED: (ANTENNAS + 1) * len(stream.ledger.snapshot().rejected),
        }
        assert set(values.values()) == {0}
        assert not any(key[0] == metrics.NEWEST_TIMESTAMP for key in values), "none of a source that was never seen"

    def test_layouts_of_several_shapes_under_the_same_labels(self, registry):
        other = Layout(
            heap_bytes=HEAP_BYTES,
            time=TimeAxis(item=TIME_ID, step=STEP, batches=64),
            axes=(Axis(name="beam", item=ANTENNA_ID, size=3),),
            sources="beam",
        )
        collector = LedgerCollector(registry=registry)
        with receiver(LAYOUT, window=2) as rx1, receiver(other, window=3) as rx2:
            collector.add(rx1.stream)
            collector.add(rx2.stream)
            feed(rx1.queues[0], [0, STEP], [0, 1])
            feed(rx2.queues[0], [0, STEP], [0, 2])
            rx1.finish()
            rx2.finish()
            values = Metrics(registry)
        assert values(metrics.HEAPS_PLACED, source="0") == 4
        assert values.total(metrics.HEAPS_PLACED) == 8
        assert values(metrics.HEAP_LATENESS_CHUNKS + "_bucket", le="+Inf") == 8

    def test_own_callback(self, make, registry):
        """A layout that has one has no ledger; there is nothing to export, and that is no error."""

        class Foreign(BaseLayout):
            heap_bytes = chunk_batches = batch_heaps = heap_sample_count = chunk_timestamp_step = 1

            def chunk_place(self, user_data):
                return SMALL.chunk_place(user_data)

        collector = LedgerCollector(registry=registry)
        collector.add(make(layout=Foreign(), spead_items=SMALL.spead_items, chunks=0))
        assert Metrics(registry).values == {}


class TestConsumer:
    def test_counts(self, registry):
        collector = ConsumerCollector(["stream"], registry)
        with receiver(LAYOUT) as rx:
            collector.add(rx.stream, ["wide"])
            assert Metrics(registry)(metrics.HEAPS_PRESENT, source="1", stream="wide") == 0
            feed(rx.queues[0], range(STEP, 3 * CHUNK, STEP), [0])
            feed(rx.queues[0], [2 * CHUNK], [1])
            rx.finish()
            values = Metrics(registry)
        assert values(metrics.CHUNKS, stream="wide") == 3
        assert values(metrics.HEAPS_PRESENT, source="0", stream="wide") == 11
        assert values(metrics.HEAPS_MISSING, source="0", stream="wide") == 0
        assert values(metrics.HEAPS_PRESENT, source="1", stream="wide") == 1
        assert values(metrics.HEAPS_MISSING, source="1", stream="wide") == 10

    def test_iterators_come_and_go(self, make, registry):
        """Each has an account of its own; the counters have all of them, also those from before `add`."""
        stream = make(layout=LAYOUT)
        queue = spead2.InprocQueue()
        stream.add_inproc_reader(queue)
        collector = ConsumerCollector(registry=registry)
        feed(queue, range(0, 7 * CHUNK, STEP))
        for i in range(5):
            with next(speadrx.iter_chunks(stream)):
                pass
            if i == 1:
                collector.add(stream)
            assert i == 0 or Metrics(registry)(metrics.CHUNKS) == i + 1
        gc.collect()
        assert Metrics(registry).total(metrics.HEAPS_PRESENT) == 5 * ANTENNAS * BATCHES
        speadrx.iter_chunks(stream)
        assert len(stream._accounts._open) <= 1, "accounts pile up"


class TestKernel:
    def overrun(self, ledger: Any, endpoint: tuple[str, int], count: int, interface: str | None = None) -> None:
        """Send more than a socket holds while the network thread waits for a free chunk."""
        send(endpoint, packets(1), interface)
        wait_for(lambda: ledger.snapshot().seen == 1)  # from here on it takes nothing from the socket
        send(endpoint, packets(count - 1, start=1), interface)

    @pytest.mark.parametrize("explicit_start", [False, True])
    def test_several_sockets_on_a_port(self, make, udp_port, registry, explicit_start):
        """Drops are those of the very socket, and stay when the streams are gone."""
        collector = KernelCollector(["stream"], registry)
        groups = [f"{GROUP_PREFIX}18", f"{GROUP_PREFIX}19"]
        streams = {}
        for name, group in zip(("a", "b"), groups, strict=True):
            streams[name] = make(chunks=0, explicit_start=explicit_start)
            speadrx.add_reader(streams[name], src=[(group, udp_port)], interface="127.0.0.1", buffer=1)
            streams[name].start()
            collector.add(streams[name], [name])
        for stream, group, count in zip(streams.values(), groups, (300, 150), strict=True):
            self.overrun(stream.ledger, (group, udp_port), count, "127.0.0.1")
        values = Metrics(registry)
        drops = {}
        for (name, stream), group, count in zip(streams.items(), groups, (300, 150), strict=True):
            labels = {"stream": name, "endpoint": f"{group}:{udp_port}"}
            drops[name] = values(metrics.SOCKET_DROPS, **labels)
            assert 0 < drops[name] < count
            assert drops[name] == stream.kernel_drops()
            assert values(metrics.SOCKET_RECEIVE_QUEUE_BYTES, **labels) > 0
            assert values(metrics.SOCKET_RECEIVE_BUFFER_BYTES, **labels) > 0
            assert values.total(metrics.SOCKET_DROPS, stream=name) == drops[name]
        for (name, stream), count in zip(streams.items(), (300, 150), strict=True):
            speadrx.ChunkPool(stream, 8)
            wait_for(lambda stream=stream, wanted=count - drops[name]: received(stream) == wanted)
            stream.stop()
        after = Metrics(registry)
        assert {name: after.total(metrics.SOCKET_DROPS, stream=name) for name in drops} == drops
        assert after.total(metrics.SOCKET_RECEIVE_BUFFER_BYTES) == 0, "a closed socket has no buffer"

    def test_group(self, make, ports, registry):
        collector = KernelCollector(registry=registry)
        group = make(chunks=0, affinity=[-1, -1])
        for member, port in zip(group, ports[:2], strict=True):
            speadrx.add_reader(member, src=[("127.0.0.1", port)], buffer=1)
        collector.add(group)
        for ledger, port, count in zip(group.ledgers, ports[:2], (300, 150), strict=True):
            self.overrun(ledger, ("127.0.0.1", port), count)
        values = Metrics(registry)
        drops = tuple(values(metrics.SOCKET_DROPS, endpoint=f"127.0.0.1:{port}") for port in ports[:2])
        assert min(drops) > 0
        assert drops == group.member_kernel_drops()

    @pytest.mark.fault(15)
    def test_outlives_its_stream(self, udp_port, registry):
        collector = KernelCollector(registry=registry)
        total = 0
        for _ in range(2):
            rings = [spead2.recv.ChunkRingbuffer(8) for _ in range(2)]
            stream = speadrx.make_stream(
                layout=SMALL, max_active_chunks=2, data_ringbuffer=rings[0], free_ringbuffer=rings[1]
            )
            speadrx.add_reader(stream, src=[("127.0.0.1", udp_port)], buffer=1)
            collector.add(stream)
            self.overrun(stream.ledger, ("127.0.0.1", udp_port), 200)
            total += stream.kernel_drops()
            reference = weakref.ref(stream)
            del stream
            gc.collect()
            assert reference() is None, "the collector keeps the stream alive"
            assert Metrics(registry)(metrics.SOCKET_DROPS, endpoint=f"127.0.0.1:{udp_port}") == total > 0


class TestRings:
    @pytest.fixture
    def collector(self, registry) -> Iterator[RingCollector]:
        collector = RingCollector(registry=registry)
        yield collector
        collector.close()

    def test_fill(self, make, registry, collector):
        stream = make(layout=LAYOUT, chunks=6)
        queue = spead2.InprocQueue()
        stream.add_inproc_reader(queue)
        collector.add(stream)
        values = Metrics(registry)
        assert (values(metrics.RING_CHUNKS, ring="data"), values(metrics.RING_CHUNKS, ring="free")) == (0, 6)
        assert values.total(metrics.RING_CAPACITY_CHUNKS) == 16
        feed(queue, range(0, 4 * CHUNK, STEP))
        wait_for(lambda: received(stream) == 4 * BATCHES * ANTENNAS)
        values = Metrics(registry)
        assert (values(metrics.RING_CHUNKS, ring="data"), values(metrics.RING_CHUNKS, ring="free")) == (2, 2)

    def test_blocked(self, registry, monkeypatch, make, collector):
        """By a clock of our own: seconds full and empty, and what the chunks waited together."""
        collector.close()
        now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: now)
        stream = make(chunks=3, data_ringbuffer=spead2.recv.ChunkRingbuffer(1))
        collector.add(stream)
        now += 8  # the free ring has 3
        assert Metrics(registry).total(metrics.RING_BLOCKED_SECONDS) == 0
        chunks = [stream.free_ringbuffer.get_nowait() for _ in range(3)]
        stream.data_ringbuffer.put_nowait(chunks[0])
        Metrics(registry)  # at the same moment, so that what comes is not halved
        now += 4
        values = Metrics(registry)
        assert values(metrics.RING_BLOCKED_SECONDS, ring="data") == 4
        assert values(metrics.RING_BLOCKED_SECONDS, ring="free") == 4
        assert values(metrics.RING_CHUNK_SECONDS, ring="data") == 4
        chunks[1].recycle()
        Metrics(registry)
        now += 2
        values = Metrics(registry)
        assert values(metrics.RING_BLOCKED_SECONDS, ring="data") == 6
        assert values(metrics.RING_BLOCKED_SECONDS, ring="free") == 4
        assert values(metrics.RING_CHUNK_SECONDS, ring="data") == 6
        stream.stop()
        Metrics(registry)
        now += 50
        values = Metrics(registry)
        assert values(metrics.RING_BLOCKED_SECONDS, ring="data") == 6, "what is stopped does not wait"
        assert values(metrics.RING_CHUNK_SECONDS, ring="data") == 56
        assert values(metrics.RING_CHUNKS, ring="data") == 1

    def test_time_never_goes_back(self, registry, monkeypatch, make, collector):
        """As it seems to, where a signal handler samples in the midst of a sample; nor does any time count twice."""
        collector.close()
        now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: now)
        collector.add(make(chunks=0))
        for now, blocked in ((104, 4), (102, 4), (104, 4), (105, 5)):  # noqa: B007
            assert Metrics(registry)(metrics.RING_BLOCKED_SECONDS, ring="free") == blocked

    def test_samples_without_scrapes(self, registry, make):
        collector = RingCollector(registry=registry, interval=0.001)
        try:
            collector.add(make(chunks=0))
            seconds = collector._label_sets.of(()).rings["free"]
            wait_for(lambda: seconds.blocked_seconds > 0.01)
        finally:
            collector.close()
        collector.close()
        assert not collector._thread.is_alive()

    def test_rings_that_streams_share_count_once(self, registry, make, collector):
        rings = {name: spead2.recv.ChunkRingbuffer(8) for name in ("data_ringbuffer", "free_ringbuffer")}
        for chunks in (4, 0):
            collector.add(make(chunks=chunks, **rings))
        values = Metrics(registry)
        assert values(metrics.RING_CHUNKS, ring="free") == 4
        assert values(metrics.RING_CAPACITY_CHUNKS, ring="free") == 8

    def test_thread_ends_with_the_collector(self):
        collector = RingCollector(registry=None, interval=0.001)
        thread = collector._thread
        assert thread.daemon
        del collector
        thread.join(20)
        assert not thread.is_alive()

    @pytest.mark.parametrize("interval", [0, -1, float("inf"), float("nan")])
    def test_bad_interval(self, interval):
        with pytest.raises(ValueError, match="interval"):
            RingCollector(registry=None, interval=interval)


class TestExporter:
    def test_metric_names(self, exporter, make):
        """What is exported is what dashboard, alerts and `top` count on, under the names that they use."""
        stream = make()
        speadrx.add_reader(stream, src=[("127.0.0.1", own_port())])
        exporter.add(stream, ["x"])
        exported = {sample.name for metric in exporter.registry.collect() for sample in metric.samples}
        families = {metric.name: metric for metric in exporter.registry.collect()}
        never_seen = {metrics.NEWEST_TIMESTAMP}
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
            assert reference() is None, "something keeps the source alive"
        values = Metrics(exporter.registry)
        present = int(values.total(metrics.HEAPS_PRESENT))
        fault_report(sent=sent, lost=sent - present, residual=sent - present)
        for name in (metrics.HEAPS_PLACED, metrics.PACKETS, metrics.HEAPS_PRESENT):
            assert values.total(name) == sent
        assert values.total(metrics.CHUNKS) == 9
        assert values(metrics.HEAP_LATENESS_CHUNKS + "_bucket", le="+Inf", stream="x") == sent
        assert not any(key[0] == metrics.NEWEST_TIMESTAMP for key in values.values), "nobody receives any more"
        held = [label_set for collector in exporter._collectors for _, label_set in collector._label_sets]
        assert len(held) == 4
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
        assert reference() is None

    def test_serve(self, exporter, make):
        exporter.add(make(), ["x"])
        port = exporter.serve(0, "127.0.0.1")
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=20) as reply:
            assert b'speadrx_packets_total{stream="x"} 0.0' in reply.read()
        with Exporter() as other, pytest.raises(OSError, match="in use"):
            other.serve(port, "127.0.0.1")
        threads = threading.active_count()
        exporter.close()
        assert threading.active_count() < threads
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(url, timeout=20)
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
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as reply:
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
            ledgers, consumer, rings, kernel = (c._label_sets.of(()) for c in exporter._collectors)
            for stream, _ in rings._streams:
                del stream
                owner.clear()
            gc.collect()
            assert Metrics(registry).total(metrics.PACKETS) == n
            held = [rings._streams, kernel._streams, *ledgers._by_shape.values(), *consumer._by_sources.values()]
            assert [list(streams) for streams in held] == [[], [], [], []]


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
