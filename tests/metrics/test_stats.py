"""StatsCollector: what it exports, of stand-ins and of real streams, alive, deleted and shared by threads."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import prometheus_client
import pytest
import spead2
import spead2.recv
from prometheus_client import CollectorRegistry

import speadrx
from handmade import Heap, encode
from loopback import wait_until_gone
from speadrx import Axis, Layout, StatsCollector, TimeAxis

TIME_ID, ANTENNA_ID = 0x1600, 0x4101
STEP, BATCHES, ANTENNAS, HEAP_BYTES = 16, 4, 2, 8
LAYOUT = Layout(
    heap_bytes=HEAP_BYTES,
    time=TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES),
    axes=(Axis(name="antenna", item=ANTENNA_ID, size=ANTENNAS),),
    sources="antenna",
)
COUNTERS = {"second": ("input_second", "the second"), "first": ("input_first_total", "the first")}


class StandInConfig:
    def get_stat_index(self, name: str) -> int:
        try:
            return ["first", "second"].index(name)
        except ValueError:
            raise IndexError(name) from None


class StandIn:
    """No more than the collector may use of a stream."""

    __slots__ = ("__weakref__", "config", "stats")

    def __init__(self, first: int = 0, second: int = 0) -> None:
        self.config = StandInConfig()
        self.stats = [first, second]


class StandInGroup:
    """Makes a new object for a member at each access, as spead2 does."""

    def __init__(self, stats: Sequence[list[int]]) -> None:
        self.stats = stats

    def __len__(self) -> int:
        return len(self.stats)

    def __getitem__(self, index: int) -> StandIn:
        member = StandIn()
        member.stats = self.stats[index]
        return member


def sample(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def send(queue: spead2.InprocQueue, timestamps: Sequence[int], antenna: int = 0) -> None:
    """Send a single-packet heap for each timestamp."""
    for i, timestamp in enumerate(timestamps, 1):
        items = {TIME_ID: timestamp, spead2.HEAP_LENGTH_ID: HEAP_BYTES, ANTENNA_ID: antenna}
        for packet in encode(Heap(items, bytes(HEAP_BYTES)), i, 48):
            queue.add_packet(packet)


class Receiver:
    """A stream, or a group of streams, each fed from a queue."""

    def __init__(self, n_group: int | None = None) -> None:
        self.data = spead2.recv.ChunkRingbuffer(8)
        rings = {"data_ringbuffer": self.data, "free_ringbuffer": spead2.recv.ChunkRingbuffer(8)}
        self.queues = [spead2.InprocQueue() for _ in range(n_group or 1)]
        self.sink: speadrx.receive.stream.ChunkRingStream | speadrx.receive.stream.ChunkStreamRingGroup
        if n_group is None:
            self.sink = speadrx.make_stream(layout=LAYOUT, max_active_chunks=2, **rings)
            self.sink.add_inproc_reader(self.queues[0])
        else:
            self.sink = speadrx.make_stream_group(layout=LAYOUT, max_active_chunks=2, affinity=[-1] * n_group, **rings)
            for member, queue in zip(self.sink, self.queues, strict=True):
                member.add_inproc_reader(queue)
        self.pool = speadrx.ChunkPool(self.sink, 8)

    def receive(self, heaps: int) -> None:
        """Recycle chunks until the statistics of the streams show that many heaps."""
        streams = [self.sink] if isinstance(self.sink, spead2.recv.ChunkRingStream) else self.sink
        deadline = time.monotonic() + 60
        while sum(stream.stats["heaps"] for stream in streams) < heaps:
            assert time.monotonic() < deadline, f"{heaps} heaps were sent, and not all came"
            with contextlib.suppress(spead2.Empty):
                self.data.get_nowait().recycle()
            time.sleep(0.001)

    def close(self) -> None:
        for queue in self.queues:
            queue.stop()
        self.sink.stop()


@pytest.fixture
def make_receiver() -> Iterator[Callable[..., Receiver]]:
    receivers: list[weakref.ref[Receiver]] = []

    def make(n_group: int | None = None) -> Receiver:
        receiver = Receiver(n_group)
        receivers.append(weakref.ref(receiver))
        return receiver

    yield make
    for reference in receivers:
        if (receiver := reference()) is not None:
            receiver.close()


OWN_COUNTERS = {
    "heaps": ("rx_heaps", "heaps received"),
    "speadrx.bad_timestamp_heaps": ("rx_bad_timestamp_heaps", "timestamp not a multiple of the step"),
}


def test_export(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1234.5)
    collector = StatsCollector(COUNTERS, ["pol"], "ns", registry)
    stream = StandIn(first=3, second=5)
    collector.add_stream(stream, ["h"])
    monkeypatch.setattr(time, "time", lambda: 9999.0)
    stream.stats = [4, 7]
    # In the map's order, the name with the namespace in front, and one _total only.
    assert prometheus_client.generate_latest(registry).decode() == (
        "# HELP ns_input_second_total the second\n"
        "# TYPE ns_input_second_total counter\n"
        'ns_input_second_total{pol="h"} 7.0\n'
        "# HELP ns_input_second_created the second\n"
        "# TYPE ns_input_second_created gauge\n"
        'ns_input_second_created{pol="h"} 1234.5\n'
        "# HELP ns_input_first_total the first\n"
        "# TYPE ns_input_first_total counter\n"
        'ns_input_first_total{pol="h"} 4.0\n'
        "# HELP ns_input_first_created the first\n"
        "# TYPE ns_input_first_created gauge\n"
        'ns_input_first_created{pol="h"} 1234.5\n'
    )


def test_created_never_changes(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    collector = StatsCollector(COUNTERS, ["pol"], registry=registry)
    for now, label in ((100.0, "h"), (200.0, "v"), (300.0, "h")):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        collector.add_stream(StandIn(), [label])
    assert sample(registry, "input_first_created", pol="h") == 100.0
    assert sample(registry, "input_first_created", pol="v") == 200.0


def test_samples_without_labels_exist_at_once(registry: CollectorRegistry) -> None:
    StatsCollector(COUNTERS, registry=registry)
    assert sample(registry, "input_first_total") == 0
    assert sample(registry, "input_second_total") == 0


def test_metrics_with_labels_exist_before_samples(registry: CollectorRegistry) -> None:
    collector = StatsCollector(COUNTERS, ["pol"], registry=registry)
    assert [(metric.name, metric.type, metric.samples) for metric in registry.collect()] == [
        ("input_second", "counter", []),
        ("input_first", "counter", []),
    ]
    collector.add_label_set(["h"])
    collector.add_label_set(["h"])
    assert sample(registry, "input_first_total", pol="h") == 0
    collector.add_stream(StandIn(first=2), ["h"])
    collector.add_label_set(["h"])
    assert sample(registry, "input_first_total", pol="h") == 2


def test_registering_collects_at_once() -> None:
    registry = CollectorRegistry(auto_describe=True)
    StatsCollector(COUNTERS, ["pol"], registry=registry)
    with pytest.raises(ValueError, match="input_first"):
        StatsCollector({"first": ("input_first", "again")}, registry=registry)


def test_no_registry() -> None:
    collector = StatsCollector(COUNTERS, registry=None)
    collector.add_stream(StandIn(first=2, second=3))
    assert [metric.samples[0].value for metric in collector.collect()] == [3, 2]


def test_default_registry() -> None:
    collector = StatsCollector({"first": ("speadrx_test_default", "help")})
    try:
        assert prometheus_client.REGISTRY.get_sample_value("speadrx_test_default_total") == 0
    finally:
        prometheus_client.REGISTRY.unregister(collector)


@pytest.mark.parametrize("labels", [[], ["h", "v"]])
def test_wrong_number_of_labels(registry: CollectorRegistry, labels: list[str]) -> None:
    collector = StatsCollector(COUNTERS, ["pol"], registry=registry)
    stream = StandIn()
    group = StandInGroup([[0, 0]])
    for add in (
        lambda: collector.add_label_set(labels),
        lambda: collector.add_stream(stream, labels),
        lambda: collector.add_stream_group(group, labels),
    ):
        with pytest.raises(ValueError, match=rf"labels: .* has {len(labels)} values.*'pol'"):
            add()
    assert [metric.samples for metric in registry.collect()] == [[], []]


def test_unknown_statistic(registry: CollectorRegistry, make_receiver: Callable[..., Receiver]) -> None:
    collector = StatsCollector({"nonsense": ("nonsense", "help")}, registry=registry)
    with pytest.raises(IndexError, match="no statistic 'nonsense'"):
        collector.add_stream(StandIn())
    with pytest.raises(IndexError, match="no statistic 'nonsense'"):
        collector.add_stream(make_receiver().sink)
    with pytest.raises(IndexError, match="no statistic 'nonsense'"):
        collector.add_stream_group(make_receiver(2).sink)
    assert sample(registry, "nonsense_total") == 0


def test_failed_stream_leaves_no_samples(registry: CollectorRegistry) -> None:
    collector = StatsCollector({"nonsense": ("nonsense", "help")}, ["pol"], registry=registry)
    with pytest.raises(IndexError):
        collector.add_stream(StandIn(), ["h"])
    with pytest.raises(IndexError):
        collector.add_stream_group(StandInGroup([[0, 0]]), ["h"])
    assert sample(registry, "nonsense_total", pol="h") is None


def test_labels_count_as_they_are_exported(registry: CollectorRegistry) -> None:
    collector = StatsCollector(COUNTERS, ["pol"], registry=registry)
    collector.add_label_set([1])  # type: ignore[list-item]
    streams = [StandIn(first=1), StandIn(first=2)]
    for stream, label in zip(streams, [1, "1"], strict=True):
        collector.add_stream(stream, [label])  # type: ignore[list-item]
    samples = [s for metric in registry.collect() for s in metric.samples if s.name == "input_first_total"]
    assert [(s.labels, s.value) for s in samples] == [({"pol": "1"}, 3)]


@pytest.mark.parametrize("counter", ["h", "he", ("h",), ("h", "help", "more"), (1, "help"), ("h", None), None])
def test_counter_map_errors(counter: Any) -> None:
    with pytest.raises(ValueError, match=r"counter_map\['heaps'\]: given .*, but wanted a name and a help text"):
        StatsCollector({"heaps": counter}, registry=None)


def test_streams_add_up_and_totals_outlive_them(registry: CollectorRegistry) -> None:
    collector = StatsCollector(COUNTERS, ["pol"], registry=registry)
    streams = [StandIn(first=10, second=1), StandIn(first=20, second=2), StandIn(first=40, second=4)]
    for stream, pol in zip(streams, "hhv", strict=True):
        collector.add_stream(stream, pol)
    streams[0].stats[0] += 100
    assert sample(registry, "input_first_total", pol="h") == 130
    streams[0].stats[0] += 1000
    collector.update()  # of a stand-in, what comes after this is lost
    del stream, streams[0]
    gc.collect()
    assert sample(registry, "input_first_total", pol="h") == 1130
    streams[0].stats[0] += 5
    assert sample(registry, "input_first_total", pol="h") == 1135
    assert sample(registry, "input_second_total", pol="h") == 3
    assert sample(registry, "input_first_total", pol="v") == 40


@pytest.mark.fault(15)
def test_same_stream_twice(registry: CollectorRegistry) -> None:
    collector = StatsCollector(COUNTERS, ["pol"], registry=registry)
    stream = StandIn(first=10)
    collector.add_stream(stream, ["h"])
    stream.stats[0] += 1
    collector.add_stream(stream, ["h"])
    stream.stats[0] += 1
    assert sample(registry, "input_first_total", pol="h") == 12
    collector.add_stream(stream, ["v"])  # other labels are another matter
    assert sample(registry, "input_first_total", pol="v") == 12
    assert sample(registry, "input_first_total", pol="h") == 12


def test_group(registry: CollectorRegistry) -> None:
    collector = StatsCollector(COUNTERS, registry=registry)
    stats = [[1, 2], [3, 4]]
    group = StandInGroup(stats)
    collector.add_stream_group(group)
    collector.add_stream_group(group)
    gc.collect()
    assert sample(registry, "input_first_total") == 4
    stats[1][0] += 10
    assert sample(registry, "input_first_total") == 14
    reference = weakref.ref(group)
    del group
    gc.collect()
    assert reference() is None, "the collector keeps the group alive"
    stats[1][0] += 100
    assert sample(registry, "input_first_total") == 14


def test_counters_never_fall(registry: CollectorRegistry) -> None:
    collector = StatsCollector(COUNTERS, registry=registry)
    stream = StandIn(first=10)
    collector.add_stream(stream)
    stream.stats[0] = 4
    assert sample(registry, "input_first_total") == 10
    stream.stats[0] = 11
    assert sample(registry, "input_first_total") == 11


def test_last_statistics_of_a_closing_stream(registry: CollectorRegistry) -> None:
    """A stream that offers `_on_close` loses nothing, whether a scrape comes before or after it is gone."""

    class Closing(StandIn):
        def _on_close(self, callback: Callable[[StandIn], object]) -> None:
            self.callback = callback

        def __del__(self) -> None:
            self.callback(self)

    collector = StatsCollector(COUNTERS, registry=registry)
    stream = Closing(first=1)
    collector.add_stream(stream)
    stream.stats[0] = 5
    del stream
    gc.collect()
    assert sample(registry, "input_first_total") == 5
    assert sample(registry, "input_first_total") == 5

    cycle = Closing(first=10)
    cycle.me = cycle
    collector.add_stream(cycle)
    cycle.stats[0] = 20
    cycle.callback(cycle)  # stopped: the numbers are final, and counted once
    assert sample(registry, "input_first_total") == 25
    del cycle
    assert sample(registry, "input_first_total") == 25
    gc.collect()
    assert sample(registry, "input_first_total") == 25


def test_update_within_update(registry: CollectorRegistry) -> None:
    """A finaliser or a signal handler may call `update` while another one runs in the same thread."""

    class Nested(StandIn):
        nest = False

        @property
        def stats(self) -> list[int]:
            if self.nest:
                self.nest = False
                collector.update()
            return [7, 0]

        @stats.setter
        def stats(self, value: list[int]) -> None:
            pass

    collector = StatsCollector(COUNTERS, registry=registry)
    streams = [Nested(), Nested()]
    for stream in streams:
        collector.add_stream(stream)
        stream.nest = True
    assert sample(registry, "input_first_total") == 14


def test_stream_added_during_a_scrape(registry: CollectorRegistry) -> None:
    """A stream that another thread adds in the midst of a scrape is counted from then on."""
    scraping, added = threading.Event(), threading.Event()

    class Slow(StandIn):
        slow = False

        @property
        def stats(self) -> list[int]:
            if Slow.slow:
                scraping.set()
                added.wait(0.2)  # in vain, if `add_stream` waits for the scrape
            return [1, 0]

        @stats.setter
        def stats(self, value: list[int]) -> None:
            pass

    collector = StatsCollector(COUNTERS, ["pol"], registry=registry)
    slow, other = Slow(), StandIn(first=10)
    collector.add_stream(slow, "h")
    Slow.slow = True
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        scrape = executor.submit(collector.update)
        assert scraping.wait(60)
        collector.add_stream(other, "v")
        added.set()
        scrape.result()
    other.stats[0] += 5
    assert sample(registry, "input_first_total", pol="h") == 1
    assert sample(registry, "input_first_total", pol="v") == 15


def test_real_streams(registry: CollectorRegistry, make_receiver: Callable[..., Receiver]) -> None:
    collector = StatsCollector(OWN_COUNTERS, ["stream"], registry=registry)
    single, group = make_receiver(), make_receiver(2)
    collector.add_stream(single.sink, ["single"])
    collector.add_stream_group(group.sink, ["group"])
    send(single.queues[0], [0, STEP, STEP + 1, 2 * STEP])
    single.receive(4)
    assert sample(registry, "rx_heaps_total", stream="single") == 4
    assert sample(registry, "rx_bad_timestamp_heaps_total", stream="single") == 1
    for antenna, queue in enumerate(group.queues):
        send(queue, [0, STEP, 3], antenna)
    group.receive(6)
    assert sample(registry, "rx_heaps_total", stream="group") == 6
    assert sample(registry, "rx_bad_timestamp_heaps_total", stream="group") == 2


@pytest.mark.fault(15)
@pytest.mark.parametrize("n_group", [None, 2])
@pytest.mark.parametrize("stop_first", [True, False])
def test_nothing_of_our_streams_is_lost(
    registry: CollectorRegistry, make_receiver: Callable[..., Receiver], n_group: int | None, stop_first: bool
) -> None:
    """They are deleted with counts that no scrape has seen."""
    collector = StatsCollector(OWN_COUNTERS, registry=registry)
    sent = 0
    for _ in range(3):
        receiver = make_receiver(n_group)
        for _ in range(2):
            if n_group is None:
                collector.add_stream(receiver.sink)
            else:
                collector.add_stream_group(receiver.sink)
        for antenna, queue in enumerate(receiver.queues):
            send(queue, [0, STEP, 1, 2, 2 * STEP], antenna)
            sent += 5
        receiver.receive(5 * len(receiver.queues))
        if stop_first:
            receiver.close()
        reference = weakref.ref(receiver.sink)
        del receiver
        gc.collect()
        wait_until_gone(reference)
    assert sample(registry, "rx_heaps_total") == sent
    assert sample(registry, "rx_bad_timestamp_heaps_total") == sent * 2 / 5


def test_foreign_stream(registry: CollectorRegistry) -> None:
    """A stream of spead2's own is counted up to the last update before it goes away."""
    config = spead2.recv.StreamConfig(stop_on_stop_item=False)
    queue = spead2.InprocQueue()
    stream = spead2.recv.Stream(spead2.ThreadPool(), config, spead2.recv.RingStreamConfig(heaps=8))
    try:
        stream.add_inproc_reader(queue)
        collector = StatsCollector({"heaps": ("rx_heaps", "heaps")}, registry=registry)
        collector.add_stream(stream)
        send(queue, [0, STEP, 2 * STEP])
        for _ in range(3):
            stream.get()
        deadline = time.monotonic() + 60
        while sample(registry, "rx_heaps_total") != 3:  # spead2 publishes a batch a moment after its heaps
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        queue.stop()
        stream.stop()
    del stream
    gc.collect()
    assert sample(registry, "rx_heaps_total") == 3


@pytest.mark.fault(16)
def test_many_threads(registry: CollectorRegistry, make_receiver: Callable[..., Receiver]) -> None:
    """Eight threads scrape while streams come, receive and go: every counter rises, and ends exact."""
    n_threads, least_scrapes, n_streams, heaps = 8, 1250, 8, 40
    collector = StatsCollector(OWN_COUNTERS, registry=registry)
    sent = 0
    done = threading.Event()
    interval = sys.getswitchinterval()

    def scrape() -> list[float]:
        values: list[float] = []
        while not done.is_set() or len(values) < least_scrapes:
            value = sample(registry, "rx_heaps_total")
            assert value is not None
            assert value <= sent
            values.append(value)
        return values

    with concurrent.futures.ThreadPoolExecutor(n_threads) as executor:
        scrapers = [executor.submit(scrape) for _ in range(n_threads)]
        sys.setswitchinterval(1e-6)  # threads take turns far more often than they usually do
        try:
            for _ in range(n_streams):
                receiver = make_receiver()
                collector.add_stream(receiver.sink)
                sent += heaps
                send(receiver.queues[0], [i * STEP for i in range(heaps)])
                receiver.receive(heaps)
                del receiver
        finally:
            done.set()
            sys.setswitchinterval(interval)
    for scraper in scrapers:
        assert scraper.result() == sorted(scraper.result())
    assert sample(registry, "rx_heaps_total") == sent
