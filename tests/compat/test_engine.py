"""A whole engine written for katgpucbf.recv, with only its import line changed: chunks, counters, katcp sensors."""

import asyncio
import contextlib
import functools
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import aiokatcp
import numba
import numpy as np
import pytest
import spead2
import spead2.recv.asyncio
from aiokatcp.core import Timestamp
from numba import types
from prometheus_client import CollectorRegistry, Counter
from spead2.numba import intp_to_voidptr
from spead2.recv.numba import chunk_place_data
from speadrx.meerkat import DigitiserLayout

from engine import DIGITISER_ID_ID, DIGITISER_STATUS_ID, TIMESTAMP_ID, packets, rings
from handmade import STOP_PACKET, Heap
from loopback import wait_for
from speadrx import ChunkPool
from speadrx.compat import katgpucbf as recv

N_POLS, HEAP_SAMPLES, BATCHES = 2, 16, 4
CHUNK = HEAP_SAMPLES * BATCHES
#: So slow that no sensor is too old during a test, however busy the machine is.
SYNC_TIME, RATE = 1.6e9, 0.5
STREAM_STATS = ["katgpucbf.metadata_heaps", "katgpucbf.bad_timestamp_heaps"]
DEADLINE = 60
FOR_EVER = 1e6
DEGRADED, OK = aiokatcp.DeviceStatus.DEGRADED, aiokatcp.DeviceStatus.OK
NOMINAL, ERROR = aiokatcp.Sensor.Status.NOMINAL, aiokatcp.Sensor.Status.ERROR

Lost = frozenset[tuple[int, int, int]]  # (chunk, batch, polarisation)


@dataclass(frozen=True)
class Layout(recv.BaseLayout):
    """Both polarisations of a digitiser, with samples of 8 bits."""

    heap_samples: int
    chunk_samples: int

    @property
    def heap_bytes(self) -> int:
        return self.heap_samples

    @property
    def chunk_batches(self) -> int:
        return self.chunk_samples // self.heap_samples

    @property
    def batch_heaps(self) -> int:
        return N_POLS

    @property
    def heap_sample_count(self) -> int:
        return self.heap_samples

    @property
    def chunk_timestamp_step(self) -> int:
        return self.chunk_samples

    @functools.cached_property
    def _chunk_place(self) -> Any:
        heap_samples, chunk_samples, chunk_batches = self.heap_samples, self.chunk_samples, self.chunk_batches

        @numba.cfunc(
            types.void(types.CPointer(chunk_place_data), types.uintp, types.CPointer(recv.user_data_type)),
            nopython=True,
        )
        def place(data_ptr, data_size, user_data_ptr):  # type: ignore[no-untyped-def]
            data = numba.carray(data_ptr, 1)
            base = numba.carray(user_data_ptr, 1)[0].stats_base
            stats = numba.carray(intp_to_voidptr(data[0].batch_stats), base + 2, np.uint64)
            items = numba.carray(intp_to_voidptr(data[0].items), 4, np.int64)
            timestamp, length, digitiser, status = items[0], items[1], items[2], items[3]
            if length != heap_samples or timestamp < 0 or digitiser < 0:
                stats[base] += 1
            elif timestamp % heap_samples != 0:
                stats[base + 1] += 1
            else:
                data[0].chunk_id = timestamp // chunk_samples
                data[0].heap_index = digitiser % 2 * chunk_batches + timestamp // heap_samples % chunk_batches
                data[0].heap_offset = data[0].heap_index * heap_samples
                extra = numba.carray(intp_to_voidptr(data[0].extra), 1, np.uint16)
                extra[0] = status >> 32
                data[0].extra_offset = data[0].heap_index * 2
                data[0].extra_size = 2

        return place


LAYOUT = Layout(HEAP_SAMPLES, CHUNK)
ITEMS = [TIMESTAMP_ID, spead2.HEAP_LENGTH_ID, DIGITISER_ID_ID, DIGITISER_STATUS_ID]


def clipped(chunk: int, batch: int, pol: int) -> int:
    return chunk * 100 + batch * 10 + pol


def heap(chunk: int, batch: int, pol: int) -> Heap:
    items = {
        TIMESTAMP_ID: chunk * CHUNK + batch * HEAP_SAMPLES,
        spead2.HEAP_LENGTH_ID: HEAP_SAMPLES,
        DIGITISER_ID_ID: 0xAA00 | pol,
        DIGITISER_STATUS_ID: clipped(chunk, batch, pol) << 32,
    }
    return Heap(items, bytes([chunk % 256, batch, pol, 0xEE] * (HEAP_SAMPLES // 4)))


def heaps(chunks: Iterable[int], pol: int, lost: Lost = frozenset()) -> list[Heap]:
    return [heap(chunk, batch, pol) for chunk in chunks for batch in range(BATCHES) if (chunk, batch, pol) not in lost]


class TimeConverter:
    """As an engine has one."""

    def __init__(self, sync_time: float, adc_sample_rate: float) -> None:
        self.sync_time = sync_time
        self.adc_sample_rate = adc_sample_rate

    def adc_to_unix(self, samples: float) -> float:
        return samples / self.adc_sample_rate + self.sync_time


def unixtime(chunk: int) -> float:
    return SYNC_TIME + chunk * CHUNK / RATE


def make_counters(registry: CollectorRegistry, labels: tuple[str, ...] = ("pol",)) -> recv.Counters:
    def counter(name: str, labels: tuple[str, ...] = labels) -> Counter:
        return Counter(f"input_{name}", name, labels, registry=registry)

    return recv.Counters(
        heaps=counter("heaps"),
        chunks=counter("chunks", ()),
        samples=counter("samples"),
        bytes=counter("bytes"),
        missing_heaps=counter("missing_heaps"),
        clipped_samples=counter("clipped_samples"),
    )


class Collector(recv.StatsCollector):
    """Counts its updates, but for those of scrapes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.updates = 0
        super().__init__({STREAM_STATS[1]: ("input_bad_timestamp_heaps", "wrong")}, registry=registry)
        self.updates = 0

    def update(self) -> None:
        self.updates += 1
        super().update()


class Receiver:
    """What engines do to receive: a group of two streams, and chunks put into the free ring by hand."""

    def __init__(
        self, registry: CollectorRegistry, layout: Any = LAYOUT, *, pooled: bool = False, **kwargs: Any
    ) -> None:
        self.layout = layout
        self.registry = registry
        self.n_chunks = n_chunks = 32
        self.counters = make_counters(registry)
        self.stats_collector = Collector(registry)
        self.group = recv.make_stream_group(
            layout=layout,
            spead_items=ITEMS,
            max_active_chunks=3,
            affinity=[-1] * N_POLS,
            stream_stats=STREAM_STATS,
            user_data=np.zeros(N_POLS, recv.user_data_type.dtype),
            max_heap_extra=np.dtype(np.uint16).itemsize,
            max_heaps=1,
            stop_on_stop_item=True,
            **{**rings(n_chunks), **kwargs},
        )
        self.stats_collector.add_stream_group(self.group)
        if pooled:
            self.pool = ChunkPool(self.group, n_chunks)
        for _ in range(0 if pooled else n_chunks):
            shape = (N_POLS, layout.chunk_batches)
            chunk = recv.Chunk(
                data=np.zeros((N_POLS, layout.chunk_bytes // N_POLS), np.uint8),
                present=np.zeros(shape, np.uint8),
                extra=np.full(shape, 0xFFFF, np.uint16),
                sink=self.group,
            )
            chunk.recycle()
        self.queues = [spead2.InprocQueue() for _ in self.group]

        for stream, queue in zip(self.group, self.queues, strict=True):
            stream.add_inproc_reader(queue)

    def feed(self, chunks: Iterable[int], lost: Lost = frozenset(), *, stop: bool = True) -> None:
        """Send each stream the heaps of one polarisation; then end them."""
        self.send(chunks, lost, lambda pol, packet: self.queues[pol].add_packet(packet))
        if stop:
            for queue in self.queues:
                queue.stop()

    def send(self, chunks: Iterable[int], lost: Lost, put: Callable[[int, bytes], object]) -> None:
        """Send chunk by chunk: a stream that falls behind another of its group loses heaps."""

        def received() -> int:
            return sum(stream.stats["packets"] for stream in self.group)

        for chunk in chunks:
            before = received()
            sent = [(pol, packet) for pol in range(N_POLS) for packet in packets(heaps([chunk], pol, lost))]
            for pol, packet in sent:
                put(pol, packet)
            wait_for(lambda: received() - before >= len(sent))  # noqa: B023 (called at once)

    def iter_chunks(self, sensors: aiokatcp.SensorSet, converter: Any = None, pols: Any = ()) -> Any:
        return recv.iter_chunks(
            self.group.data_ringbuffer,
            self.layout,
            sensors,
            TimeConverter(SYNC_TIME, RATE) if converter is None else converter,
            [("0", "input0"), ("1", "input1")] if pols == () else pols,
            self.counters,
            self.stats_collector,
        )

    def count(self, name: str) -> list[float | None]:
        """Value of a counter, by polarisation."""
        return [self.registry.get_sample_value(f"input_{name}_total", {"pol": str(pol)}) for pol in range(N_POLS)]

    def close(self) -> None:
        for queue in self.queues:
            queue.stop()
        self.group.stop()


@pytest.fixture
def receiver(registry: CollectorRegistry) -> Iterator[Receiver]:
    with contextlib.closing(Receiver(registry)) as receiver:
        yield receiver


def make_sensors() -> aiokatcp.SensorSet:
    return recv.make_sensors(FOR_EVER, ["input0.", "input1."])


#: Chunks, and heaps that are lost: at the beginning, of one polarisation all of a chunk, and whole chunks.
CHUNKS = [10, 11, 12, 20, 21, 22]
LOST: Lost = frozenset(
    [(10, 0, 0), (12, 1, 0), (12, 2, 0), (12, 3, 1), *((11, batch, 0) for batch in range(BATCHES))]
    + [(22, batch, 1) for batch in range(BATCHES)]
)


def lost_of(chunk: int, pol: int) -> int:
    return sum((chunk, batch, pol) in LOST for batch in range(BATCHES))


@dataclass
class Expected:
    """What was counted of a polarisation, up to a chunk."""

    heaps: int = 0
    missing: int = 0
    clipped: int = 0
    last_missing: int | None = None  # chunk

    def add(self, chunk: int, pol: int) -> None:
        sent = [batch for batch in range(BATCHES) if (chunk, batch, pol) not in LOST]
        self.heaps += len(sent)
        self.clipped += sum(clipped(chunk, batch, pol) for batch in sent)
        missing = (chunk - CHUNKS[0] + 1) * BATCHES - self.heaps
        if missing > self.missing:
            self.missing, self.last_missing = missing, chunk


def check_chunk(chunk: recv.Chunk, chunk_id: int) -> None:
    assert chunk.chunk_id == chunk_id
    assert chunk.timestamp == chunk_id * CHUNK
    present, extra, data = (np.asarray(array) for array in (chunk.present, chunk.extra, chunk.data))
    data, extra = data.reshape(N_POLS, -1), extra.view(np.uint16)
    for pol in range(N_POLS):
        for batch in range(BATCHES):
            is_lost = (chunk_id, batch, pol) in LOST
            assert present[pol, batch] == (not is_lost)
            assert extra[pol, batch] == (0 if is_lost else clipped(chunk_id, batch, pol))
            if not is_lost:
                stored = data[pol, batch * HEAP_SAMPLES : (batch + 1) * HEAP_SAMPLES]
                assert stored.tobytes() == heap(chunk_id, batch, pol).payload


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        (LAYOUT, {}),
        (DigitiserLayout(8, HEAP_SAMPLES, CHUNK), {}),
        (DigitiserLayout(8, HEAP_SAMPLES, CHUNK), {"pooled": True}),
    ],
    ids=["numba", "declared", "declared, with a pool"],
)
async def test_chunks_counters_and_sensors(registry: CollectorRegistry, layout: Any, options: dict[str, Any]) -> None:
    """All are up to date as each chunk is given out; empty chunks are not given out, and are filled again."""
    with contextlib.closing(Receiver(registry, layout, **options)) as receiver:
        sensors = make_sensors()
        receiver.feed(CHUNKS, LOST)
        expected = [Expected(), Expected()]
        n_chunks = 0
        async with asyncio.timeout(DEADLINE):
            async for chunk in receiver.iter_chunks(sensors):
                with chunk:
                    chunk_id = CHUNKS[n_chunks]
                    check_chunk(chunk, chunk_id)
                    n_chunks += 1
                    for pol in range(N_POLS):
                        expected[pol].add(chunk_id, pol)
                    assert registry.get_sample_value("input_chunks_total") == n_chunks
                    assert receiver.count("heaps") == [e.heaps for e in expected]
                    assert receiver.count("samples") == receiver.count("bytes")
                    assert receiver.count("bytes") == [e.heaps * HEAP_SAMPLES for e in expected]
                    assert receiver.count("missing_heaps") == [e.missing for e in expected]
                    assert receiver.count("clipped_samples") == [e.clipped for e in expected]
                    check_sensors(sensors, chunk_id, expected)
        assert n_chunks == len(CHUNKS)
        assert receiver.stats_collector.updates >= 1
        assert receiver.group.free_ringbuffer.qsize() == receiver.n_chunks


def check_sensors(sensors: aiokatcp.SensorSet, chunk_id: int, expected: list[Expected]) -> None:
    time = unixtime(chunk_id)
    for pol in range(N_POLS):
        prefix = f"input{pol}.rx."
        assert sensors[prefix + "timestamp"].reading == aiokatcp.Reading(time, NOMINAL, chunk_id * CHUNK)
        assert sensors[prefix + "unixtime"].reading == aiokatcp.Reading(time, NOMINAL, Timestamp(time))
        last_missing = expected[pol].last_missing
        missing = sensors[prefix + "missing-unixtime"].reading
        if last_missing is None:
            assert (missing.status, missing.value) == (NOMINAL, Timestamp(-1.0))
        else:
            time_missing = unixtime(last_missing)
            assert missing == aiokatcp.Reading(time_missing, ERROR, Timestamp(time_missing))
    assert sensors["rx.device-status"].value == DEGRADED


async def test_order_of_updates(receiver: Receiver) -> None:
    """What is missing comes before any timestamp: the device never looks well for a moment."""
    sensors = make_sensors()
    record: list[tuple[str, Any]] = []
    for sensor in sensors.values():
        sensor.attach(lambda sensor, reading: record.append((sensor.name, reading.status)))
    receiver.feed([10, 11], frozenset([(10, 2, 0), (10, 3, 1), (11, 0, 1)]))
    timestamps = [(f"input{pol}.rx.{name}", NOMINAL) for pol in range(N_POLS) for name in ("timestamp", "unixtime")]
    missing = [(f"input{pol}.rx.missing-unixtime", ERROR) for pol in range(N_POLS)]
    async with asyncio.timeout(DEADLINE):
        chunks = receiver.iter_chunks(sensors)
        (await anext(chunks)).recycle()
        assert record == [*missing, *timestamps]
        record.clear()
        (await anext(chunks)).recycle()
        assert record == [missing[1], *timestamps]


async def test_nothing_missing(receiver: Receiver) -> None:
    sensors = make_sensors()
    receiver.feed([5, 6])
    async with asyncio.timeout(DEADLINE):
        async for chunk in receiver.iter_chunks(sensors):
            chunk.recycle()
            assert sensors["rx.device-status"].value == OK
    assert receiver.count("missing_heaps") == [0, 0]


async def test_polarisations_together(receiver: Receiver) -> None:
    """Without polarisations, counters have no labels and sensors no prefix; what is not there is not counted."""
    registry = CollectorRegistry()
    receiver.counters = make_counters(registry, ())
    receiver.counters.clipped_samples = None
    sensors = recv.make_sensors(FOR_EVER)
    receiver.feed(CHUNKS, LOST)
    async with asyncio.timeout(DEADLINE):
        async for chunk in receiver.iter_chunks(sensors, pols=None):
            with chunk:
                check_chunk(chunk, chunk.chunk_id)
    sent = len(CHUNKS) * BATCHES * N_POLS - len(LOST)
    assert registry.get_sample_value("input_heaps_total") == sent
    assert registry.get_sample_value("input_missing_heaps_total") == 13 * BATCHES * N_POLS - sent
    assert registry.get_sample_value("input_clipped_samples_total") == 0
    assert sensors["rx.timestamp"].value == CHUNKS[-1] * CHUNK
    assert sensors["rx.missing-unixtime"].value == unixtime(CHUNKS[-1])


async def test_missing_never_falls(receiver: Receiver) -> None:
    """Though a chunk that was given out early is older than one before, as where streams share a ring."""
    sensors = make_sensors()
    ring = spead2.recv.asyncio.ChunkRingbuffer(4)
    for chunk_id, present in ((5, 0), (9, 1), (6, 1)):
        chunk = receiver.group.free_ringbuffer.get()
        chunk.chunk_id = chunk_id
        chunk.present[:] = present
        chunk.present[0, 0] = 1
        ring.put_nowait(chunk)
    ring.stop()
    missing = []
    chunks = recv.iter_chunks(
        ring, LAYOUT, sensors, TimeConverter(SYNC_TIME, RATE), [("0", "input0"), ("1", "input1")],
        receiver.counters, receiver.stats_collector,
    )  # fmt: skip
    async with asyncio.timeout(DEADLINE):
        async for chunk in chunks:
            chunk.recycle()
            missing.append(receiver.count("missing_heaps"))
    assert missing == [[3, 4], [3 + 12, 4 + 12], [3 + 12, 4 + 12]]


@pytest.mark.parametrize("how", ["close", "cancel", "error"])
async def test_last_statistics(receiver: Receiver, how: str) -> None:
    """The collector takes them however the iteration ends."""
    receiver.feed([1, 2], stop=False)
    chunks = receiver.iter_chunks(make_sensors())
    receiver.stats_collector.updates = 0
    if how == "close":
        receiver.feed([8])
        async for chunk in chunks:
            chunk.recycle()
            break
        assert receiver.stats_collector.updates == 0
        await chunks.aclose()
    elif how == "cancel":
        waiting = asyncio.create_task(anext(chunks))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    else:
        receiver.feed([8])
        with pytest.raises(ZeroDivisionError):
            await anext(receiver.iter_chunks(make_sensors(), TimeConverter(SYNC_TIME, 0)))
    assert receiver.stats_collector.updates == 1


async def test_failing_update_loses_no_chunk(receiver: Receiver) -> None:
    receiver.feed([1])
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(ZeroDivisionError):
            await anext(receiver.iter_chunks(make_sensors(), TimeConverter(SYNC_TIME, 0)))
        async for chunk in receiver.iter_chunks(make_sensors()):
            chunk.recycle()
    assert receiver.group.free_ringbuffer.qsize() == receiver.n_chunks


async def test_flush_and_restart(registry: CollectorRegistry) -> None:
    """What katgpucbf has not: chunks keep their true time, nothing is missing for a restart, and a flush is no heap."""
    layout = DigitiserLayout(8, HEAP_SAMPLES, CHUNK)
    first, again, n_chunks = 1000, 10, 20
    timestamps = []

    async def consume(receiver: Receiver) -> None:
        async for chunk in receiver.iter_chunks(make_sensors()):
            with chunk:
                timestamps.append(chunk.timestamp)

    with contextlib.closing(Receiver(registry, layout, resync=True)) as receiver:
        async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as tasks:
            tasks.create_task(consume(receiver))
            await asyncio.to_thread(receiver.feed, range(first, first + n_chunks), stop=False)
            receiver.group.flush()
            await asyncio.to_thread(wait_for, lambda: len(timestamps) == n_chunks)
            await asyncio.to_thread(receiver.feed, range(again, again + n_chunks), stop=False)
            receiver.group.drain()
        sent = 2 * n_chunks * BATCHES * N_POLS
        n_lost = sent - int(sum(receiver.count("heaps")))
    assert timestamps[:n_chunks] == [(first + i) * CHUNK for i in range(n_chunks)]
    assert set(timestamps[n_chunks:]) <= {(again + i) * CHUNK for i in range(n_chunks)}
    assert timestamps[-1] == (again + n_chunks - 1) * CHUNK
    # Until the restart is believed, heaps are lost; in whole chunks that nobody knows of, they are not missing.
    assert 0 < n_lost <= n_chunks * BATCHES
    assert n_lost % (BATCHES * N_POLS) <= sum(receiver.count("missing_heaps")) <= n_lost


async def test_foreign_chunk(receiver: Receiver) -> None:
    ring = spead2.recv.asyncio.ChunkRingbuffer(1)
    ring.put_nowait(spead2.recv.Chunk(data=np.zeros(1, np.uint8), present=np.zeros(1, np.uint8)))
    chunks = recv.iter_chunks(ring, LAYOUT, make_sensors(), None, None, receiver.counters, receiver.stats_collector)
    with pytest.raises(TypeError, match=r"the data ring has a Chunk, but iter_chunks needs speadrx\.Chunk"):
        await anext(chunks)


def test_labels(registry: CollectorRegistry) -> None:
    """All counters but that of chunks get the label; a counter that is not there stays away."""
    counters = make_counters(registry)
    counters.clipped_samples = None
    for labelled in (counters.labels("0"), counters.labels(pol="0")):
        assert labelled.chunks is counters.chunks
        assert labelled.clipped_samples is None
        labelled.missing_heaps.inc(2)
    assert registry.get_sample_value("input_missing_heaps_total", {"pol": "0"}) == 4


class Engine(aiokatcp.DeviceServer):
    """An engine: receives over UDP, processes what it receives, and serves its sensors."""

    VERSION = BUILD_STATE = "engine-1.0"

    def __init__(self, registry: CollectorRegistry, ports: Iterable[int]) -> None:
        super().__init__("127.0.0.1", 0)
        self.receiver = Receiver(registry)
        self.processed: list[int] = []
        timeout = max(recv.RECV_SENSOR_TIMEOUT_MIN, recv.RECV_SENSOR_TIMEOUT_CHUNKS * LAYOUT.chunk_samples / RATE)
        self.rx_sensors = recv.make_sensors(timeout, [f"input{pol}." for pol in range(N_POLS)])
        for sensor in self.rx_sensors.values():
            self.sensors.add(sensor)
        for stream, port in zip(self.receiver.group, ports, strict=True):
            recv.add_reader(
                stream, src=[("127.0.0.1", port)], interface=None, ibv=False, comp_vector=0, buffer=64 * 1024
            )

    async def run_receive(self) -> None:
        async for chunk in self.receiver.iter_chunks(self.rx_sensors):
            with chunk:
                check_chunk(chunk, chunk.chunk_id)
                self.processed.append(chunk.chunk_id)

    async def start(self) -> None:
        self.receive_task = asyncio.create_task(self.run_receive())
        self.add_service_task(self.receive_task)
        await super().start()

    async def on_stop(self) -> None:
        self.receiver.close()
        await super().on_stop()


async def test_engine(registry: CollectorRegistry, ports: list[int]) -> None:
    """UDP in, katcp over TCP out."""
    engine = Engine(registry, ports[:N_POLS])
    await engine.start()
    try:
        async with (
            asyncio.timeout(DEADLINE),
            await aiokatcp.Client.connect("127.0.0.1", engine.sockets[0].getsockname()[1]) as client,
        ):
            assert await client.sensor_value("rx.device-status") == b"degraded"
            assert (await client.sensor_reading("input1.rx.timestamp")).status == ERROR
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:

                def put(pol: int, packet: bytes) -> None:
                    sock.sendto(packet, ("127.0.0.1", ports[pol]))

                await asyncio.to_thread(engine.receiver.send, CHUNKS, LOST, put)
                for pol in range(N_POLS):
                    put(pol, STOP_PACKET)
            await engine.receive_task
            assert engine.processed == CHUNKS
            last = unixtime(CHUNKS[-1])
            reading = await client.sensor_reading("input0.rx.unixtime", Timestamp)
            assert reading == aiokatcp.Reading(last, NOMINAL, Timestamp(last))
            reading = await client.sensor_reading("input1.rx.missing-unixtime", Timestamp)
            assert reading == aiokatcp.Reading(last, ERROR, Timestamp(last))
            assert await client.sensor_value("input1.rx.timestamp", int) == CHUNKS[-1] * CHUNK
            assert await client.sensor_value("rx.device-status") == b"degraded"
            expected = len(CHUNKS) * BATCHES
            assert engine.receiver.count("heaps") == [
                expected - sum(lost_of(chunk, pol) for chunk in CHUNKS) for pol in range(N_POLS)
            ]
    finally:
        await engine.stop()
