"""Collectors: what each of them exports of real streams, alive, deleted, or in a group."""

from __future__ import annotations

import gc
import pathlib
import sys
import tomllib
import types
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import spead2
import spead2.recv

import speadrx
from addresses import GROUP_PREFIX
from handmade import SMALL, Heap, encode
from loopback import packets, received, send, wait_for, wait_until_gone
from receiving import receiver
from scraped import ANTENNA_ID, ANTENNAS, BATCHES, CHUNK, HEAP_BYTES, LAYOUT, STEP, TIME_ID, Metrics, feed
from speadrx import Axis, BaseLayout, Layout, TimeAxis, metrics
from speadrx._core import unused_reasons
from speadrx.metrics.build import BuildCollector
from speadrx.metrics.consumer import ConsumerCollector
from speadrx.metrics.kernel import KernelCollector
from speadrx.metrics.ledger import LedgerCollector
from speadrx.metrics.rings import RingCollector
from speadrx.metrics.unused import UnusedCollector
from speadrx.receive.feed import CaptureSource
from wire import GROUP, heap, packet, write_capture


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
        assert values(metrics.RECEIVED_BYTES, source="0", **wide) == HEAP_BYTES * (4 + 2 + 1 + 1 + 1)
        assert values(metrics.RECEIVED_BYTES, source="1", **wide) == HEAP_BYTES * (4 + 1 + 1)
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
            name: sum(key[0] == name for key in values)
            for name in (metrics.HEAPS_PLACED, metrics.RECEIVED_BYTES, metrics.HEAPS_REJECTED)
        }
        assert counts == {
            metrics.HEAPS_PLACED: ANTENNAS,
            metrics.RECEIVED_BYTES: ANTENNAS,
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

    def test_layouts_that_differ_in_bytes_only(self, registry):
        larger = Layout(
            heap_bytes=5 * HEAP_BYTES,
            time=TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES),
            axes=(Axis(name="antenna", item=ANTENNA_ID, size=ANTENNAS),),
            sources="antenna",
        )
        collector = LedgerCollector(registry=registry)
        with receiver(LAYOUT) as rx1, receiver(larger) as rx2:
            collector.add(rx1.stream)
            collector.add(rx2.stream)
            feed(rx1.queues[0], [0, STEP], [0])
            for antenna in (0, 1, 1):
                items = {TIME_ID: 0, spead2.HEAP_LENGTH_ID: 5 * HEAP_BYTES, ANTENNA_ID: antenna}
                for packet in encode(Heap(items, bytes(5 * HEAP_BYTES)), 1 + antenna, 48):
                    rx2.queues[0].add_packet(packet)
            rx1.finish()
            rx2.finish()
            values = Metrics(registry)
        assert values(metrics.HEAPS_PLACED, source="0") == 3
        assert values(metrics.RECEIVED_BYTES, source="0") == 7 * HEAP_BYTES
        assert values(metrics.RECEIVED_BYTES, source="1") == 10 * HEAP_BYTES

    def test_own_callback(self, make, registry):
        """A layout that has one has no ledger; there is nothing to export, and that is no error."""

        class Foreign(BaseLayout):
            heap_bytes = chunk_batches = batch_heaps = heap_sample_count = chunk_timestamp_step = 1

            def chunk_place(self, user_data):
                return SMALL.chunk_place(user_data)

        collector = LedgerCollector(registry=registry)
        collector.add(make(layout=Foreign(), spead_items=SMALL.spead_items, chunks=0))
        assert Metrics(registry).values == {}


class TestBuild:
    def test_versions(self, make, registry):
        collector = BuildCollector(["stream"], registry)
        collector.add(make(), ["wide"])
        collector.add(make(), ["wide"])
        ((name, labels),) = ((key[0], dict(key[1:])) for key in Metrics(registry).values)
        assert name == metrics.BUILD_INFO
        version = ".".join(map(str, sys.version_info[:3]))
        assert labels["python_version"].startswith(version)
        assert labels["spead2_version"] == spead2.__version__
        assert labels["stream"] == "wide"
        with pathlib.Path(__file__).parents[2].joinpath("Cargo.toml").open("rb") as file:
            assert labels["version"] == tomllib.load(file)["package"]["version"]


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
            wait_until_gone(reference)  # the collector does not keep it
            assert Metrics(registry)(metrics.SOCKET_DROPS, endpoint=f"127.0.0.1:{udp_port}") == total > 0


class TestUnused:
    """Packets that spead2 did not get, by reason."""

    LAYOUT = Layout(
        heap_bytes=8,
        time=TimeAxis(item=0x1600, step=1, batches=4),
        packets=speadrx.Packets(heap_counter=[0x1600]),
    )
    #: What is not used of packets(), by reason.
    WANTED = types.MappingProxyType({"not_spead": 2, "no_heap_length": 1, "cut_short": 3})

    def packets(self) -> list[bytes]:
        good = [one for t in range(8) for one in heap(t + 1, [(0x1600, t), (0x3300, None)], bytes(8))]
        no_length = packet([(1, 99), (3, 0), (4, 8), (0x1600, 99), (0x3300, None)], bytes(8))
        return [*good, b"not SPEAD", b"at all", no_length, *(packet[:-1] for packet in good[:3])]

    def receive(self, stream) -> None:
        stream.start()
        for chunk in stream.data_ringbuffer:
            stream.add_free_chunk(chunk)

    def by_reason(self, registry, **labels: str) -> dict[str, float]:
        values = Metrics(registry)
        found = {reason: values(metrics.PACKETS_UNUSED, reason=reason, **labels) for reason in unused_reasons()}
        assert None not in found.values(), "there from the beginning"
        return {reason: packets for reason, packets in found.items() if packets}

    def make(self):
        rings = [spead2.recv.ChunkRingbuffer(8) for _ in range(2)]
        stream = speadrx.make_stream(
            layout=self.LAYOUT, max_active_chunks=2, data_ringbuffer=rings[0], free_ringbuffer=rings[1]
        )
        speadrx.ChunkPool(stream, 8)
        return stream

    def test_of_captures(self, registry, tmp_path):
        """Streams with the same labels add up, and their counts outlive them."""
        path = write_capture(tmp_path / "capture", self.packets())
        collector = UnusedCollector(["stream"], registry)
        for rounds, name in ((1, "a"), (1, "b"), (2, "a"), (3, "a")):
            stream = self.make()
            speadrx.add_reader(stream, src=path)
            collector.add(stream, [name])
            self.receive(stream)
            wanted = {reason: rounds * packets for reason, packets in self.WANTED.items()}
            assert self.by_reason(registry, stream=name) == wanted
            reference = weakref.ref(stream)
            stream.stop()
            del stream
            gc.collect()
            wait_until_gone(reference)
            assert self.by_reason(registry, stream=name) == wanted

    def test_of_sockets(self, registry, udp_port):
        collector = UnusedCollector(registry=registry)
        stream = self.make()
        speadrx.add_reader(stream, src=[("127.0.0.1", udp_port)])
        collector.add(stream)
        assert self.by_reason(registry) == {}
        stream.start()
        send(("127.0.0.1", udp_port), self.packets())
        wait_for(lambda: self.by_reason(registry) == self.WANTED)
        stream.stop()
        assert self.by_reason(registry) == self.WANTED

    def test_of_both_members_of_a_group(self, registry, tmp_path):
        """One thread reads the capture for both: its packets count once."""
        path = write_capture(tmp_path / "capture", self.packets())
        collector = UnusedCollector(registry=registry)
        source = CaptureSource(path, endpoints=[GROUP, ("239.1.2.4", GROUP[1])], streams=2)
        with speadrx.Receiver(self.LAYOUT, source.parts, threads=2) as receiver:
            collector.add(receiver.stream)
            assert sum(int(chunk.present.sum()) for chunk in receiver) == 8
            assert self.by_reason(registry) == receiver.stats().unused == self.WANTED

    def test_of_streams_that_spead2_reads_itself(self, registry, make, udp_port):
        """Nobody knows of packets that spead2 drops, so there is no metric that says 0."""
        stream = make(layout=LAYOUT)
        speadrx.add_reader(stream, src=[("127.0.0.1", udp_port)])
        UnusedCollector(registry=registry).add(stream)
        assert not any(key[0] == metrics.PACKETS_UNUSED for key in Metrics(registry).values)


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
        monkeypatch.setattr("speadrx.metrics.rings.time", types.SimpleNamespace(monotonic=lambda: now))
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
        monkeypatch.setattr("speadrx.metrics.rings.time", types.SimpleNamespace(monotonic=lambda: now))
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
        thread.join(60)
        assert not thread.is_alive()

    @pytest.mark.parametrize("interval", [0, -1, float("inf"), float("nan")])
    def test_bad_interval(self, interval):
        with pytest.raises(ValueError, match="interval"):
            RingCollector(registry=None, interval=interval)
