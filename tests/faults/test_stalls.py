"""A consumer that stalls under load, or keeps every chunk: it shows in the metrics, and it passes."""

import contextlib
import threading
import time
import urllib.request

import numpy as np
import prometheus_client.parser
import pytest
import spead2.recv
from speadrx.collectors import Exporter

from loopback import wait_for
from receiving import CountingSink, GentleSink, assert_data, receiver, residual
from speadrx import Axis, Layout, TimeAxis, add_reader, metrics
from speadrx.simulate import Simulator, UdpSink

LAYOUT = Layout(
    heap_bytes=1024,
    time=TimeAxis(item=0x1600, step=4096, batches=16),
    axes=(Axis(name="antenna", item=0x4101, size=4),),
    sources="antenna",
)
WINDOW, POOL, DATA_RING = 4, 12, 4
STALL_SECONDS = 10
SCRAPE_INTERVAL = 0.05


class Scraper:
    """Scrapes an exporter over HTTP; no counter may ever fall."""

    def __init__(self, exporter):
        self.url = f"http://127.0.0.1:{exporter.serve(0, '127.0.0.1')}/metrics"
        self.counters = {}
        self.scrapes = 0
        self.slowest = 0.0

    def __call__(self):
        """Sum of the samples of each metric over all labels but that of the ring."""
        started = time.perf_counter()
        with urllib.request.urlopen(self.url, timeout=60) as reply:
            text = reply.read().decode()
        self.slowest = max(self.slowest, time.perf_counter() - started)
        self.scrapes += 1
        totals, counters = {}, {}
        for family in prometheus_client.parser.text_string_to_metric_families(text):
            for sample in family.samples:
                key = sample.name, sample.labels.get("ring")
                totals[key] = totals.get(key, 0) + sample.value
                if sample.name.endswith(("_total", "_bucket")):
                    counters[sample.name, *sorted(sample.labels.items())] = sample.value
        assert {key: value for key, value in self.counters.items() if counters.get(key, -1) < value} == {}
        self.counters = counters
        return totals


@contextlib.contextmanager
def sending(simulator, sink):
    """Send from a thread, in bursts that a small socket buffer does not hold."""
    done = threading.Event()

    def send():
        while not done.is_set():
            simulator.send(sink, LAYOUT.chunk_batches)
            done.wait(0.005)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def assert_all_accounted_for(rx, simulator, fault_report, note):
    """What is missing is what the kernel dropped; the first and the last chunk are whole.

    After so great a gap, a receiver may want to see more than a few heaps before it believes that time has jumped.
    """
    truth, accounting, drops = simulator.truth, rx.iterator.accounting, rx.stream.kernel_drops()
    ledger = rx.stream.ledger.snapshot()
    disbelieved = ledger.rejected["implausible_timestamp_heaps"]
    left = residual(rx, [truth])
    fault_report(sent=truth.copies, lost=truth.copies - accounting.present, residual=left, note=note)
    assert left == 0
    assert drops > 0
    assert disbelieved == sum(ledger.rejected.values()) < LAYOUT.chunk_heaps
    assert drops + disbelieved == accounting.missing == truth.copies - accounting.present
    assert ledger.placed == accounting.present
    assert rx.stat("packets") == truth.packets - drops
    assert_data(rx, [simulator])


@pytest.mark.slow
@pytest.mark.fault(8)
def test_consumer_stalls_under_load(udp_port, fault_report):
    """Scrapes are answered all through the stall, and tell of it; afterwards everything goes on."""
    simulator = Simulator(LAYOUT, max_packet_size=1472)
    data_ring = spead2.recv.ChunkRingbuffer(DATA_RING)
    with Exporter() as exporter, receiver(LAYOUT, window=WINDOW, pool=POOL, data_ringbuffer=data_ring) as rx:
        exporter.add(rx.stream)
        scrape = Scraper(exporter)
        add_reader(rx.stream, src=[("127.0.0.1", udp_port)], buffer=2**16)
        with UdpSink([("127.0.0.1", udp_port)]) as udp:
            sink = CountingSink(udp, rx)
            simulator.send(GentleSink(sink), (WINDOW + 2) * LAYOUT.chunk_batches)
            with rx.pause():
                paused = time.monotonic()
                with sending(simulator, sink):
                    # All that the receiver has room for is full.
                    wait_for(lambda: scrape()[metrics.SOCKET_DROPS, None] > 0)
                    wait_for(lambda: data_ring.qsize() == DATA_RING)
                    answers, drops = [scrape()], set()

                    def over():
                        """Not before the drops were seen to rise again and again, however slow the machine is."""
                        time.sleep(SCRAPE_INTERVAL)
                        answers.append(scrape())
                        drops.add(answers[-1][metrics.SOCKET_DROPS, None])
                        return len(drops) >= 20 and time.monotonic() > paused + STALL_SECONDS

                    wait_for(over, 90)
            before, after = answers[0], answers[-1]
            for answer in answers:
                assert answer[metrics.RING_CHUNKS, "data"] == answer[metrics.RING_CAPACITY_CHUNKS, "data"] == DATA_RING
                # The heaps that the network thread waits with are not lost from sight.
                assert answer[metrics.HEAPS_PLACED, None] > DATA_RING * LAYOUT.chunk_heaps
                assert answer[metrics.HEAPS_MISSING, None] == 0
            assert after[metrics.RING_BLOCKED_SECONDS, "data"] > before[metrics.RING_BLOCKED_SECONDS, "data"]
            sink.settle()
            simulator.send(GentleSink(sink), (WINDOW + 6) * LAYOUT.chunk_batches)
        rx.finish()
        end = scrape()
        assert end[metrics.SOCKET_DROPS, None] == rx.stream.kernel_drops()
        assert end[metrics.HEAPS_MISSING, None] == rx.iterator.accounting.missing
        assert end[metrics.HEAPS_PRESENT, None] == rx.iterator.accounting.present
        note = f"{len(answers)} scrapes in the stall, the slowest {scrape.slowest * 1000:.0f} ms"
        assert_all_accounted_for(rx, simulator, fault_report, note)


@pytest.mark.fault(19)
def test_user_keeps_every_chunk(udp_port, fault_report, caplog):
    """Metrics and one line in the log tell that the free ring is empty; what the chunks hold is still right."""
    simulator = Simulator(LAYOUT, max_packet_size=1472)
    with receiver(LAYOUT, window=WINDOW, pool=POOL) as rx, Exporter() as exporter:
        exporter.add(rx.stream)
        scrape = Scraper(exporter)
        add_reader(rx.stream, src=[("127.0.0.1", udp_port)], buffer=2**16)
        with UdpSink([("127.0.0.1", udp_port)]) as udp:
            sink = CountingSink(udp, rx)
            simulator.send(GentleSink(sink), LAYOUT.chunk_batches)
            assert scrape()[metrics.RING_CHUNKS, "free"] > 0
            with rx.keep() as kept, sending(simulator, sink):
                wait_for(lambda: scrape()[metrics.SOCKET_DROPS, None] > 1000)
                first = scrape()
                blocked = first[metrics.RING_BLOCKED_SECONDS, "free"]
                wait_for(lambda: scrape()[metrics.RING_BLOCKED_SECONDS, "free"] > blocked)
                wait_for(lambda: caplog.records)
                last = scrape()
                assert len(kept) >= POOL - WINDOW
                for chunk in kept:
                    expected = simulator.chunk_data(chunk.timestamp)
                    np.testing.assert_array_equal(chunk.data[chunk.present], expected[chunk.present])
                for answer in (first, last):
                    assert answer[metrics.RING_CHUNKS, "free"] == 0
                    assert answer[metrics.RING_CHUNKS, "data"] == 0
                    assert answer[metrics.RING_CAPACITY_CHUNKS, "free"] == POOL
            sink.settle()
            simulator.send(GentleSink(sink), (WINDOW + 6) * LAYOUT.chunk_batches)
        rx.finish()
        assert_all_accounted_for(rx, simulator, fault_report, "")
        assert rx.stream.free_ringbuffer.qsize() == POOL
    (record,) = caplog.records
    assert "free_ringbuffer: stays empty" in record.getMessage()
