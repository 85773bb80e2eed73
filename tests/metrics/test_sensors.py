"""katcp sensors of a receiver: what they say as chunks come, in which order, and when none come; what clients see."""

import asyncio
import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from typing import Any

import aiokatcp
import pytest
import spead2
from aiokatcp import DeviceStatus
from aiokatcp.core import Timestamp
from speadrx.sensors import SensorUpdater, default_timeout, make_sensors, update_sensors

import speadrx
from handmade import Heap, encode
from speadrx import Axis, Layout, Receiver, TimeAxis
from speadrx.simulate import InprocSink, Simulator

NOMINAL, WARN, ERROR = (aiokatcp.Sensor.Status[name] for name in ("NOMINAL", "WARN", "ERROR"))
TIME_ID, ANTENNA_ID = 0x1600, 0x4101
STEP, BATCHES, ANTENNAS = 16, 4, 3
CHUNK = STEP * BATCHES
TICK_RATE, SYNC_TIME = 32.0, 1.6e9
LAYOUT = Layout(
    heap_bytes=8,
    time=TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES),
    axes=(Axis(name="antenna", item=ANTENNA_ID, size=ANTENNAS),),
    sources="antenna",
)
NAMES = ("timestamp", "unixtime", "missing-unixtime")
PREFIXES = [f"ant{i}." for i in range(ANTENNAS)]
FOR_EVER = 1e6  # longer than any test
DEADLINE = 60


def unixtime(timestamp: int) -> float:
    return SYNC_TIME + timestamp / TICK_RATE


class Sender:
    """Senders of all antennas, one chunk at a time."""

    def __init__(self) -> None:
        self.queue = spead2.InprocQueue()
        self.heap_cnt = 0

    def chunk(self, chunk: int, *, silent: Collection[int] = (), lost: Collection[tuple[int, int]] = ()) -> None:
        """Send a chunk of heaps, but for silent antennas and lost heaps (batch of the chunk, antenna)."""
        for batch in range(BATCHES):
            for antenna in range(ANTENNAS):
                if antenna in silent or (batch, antenna) in lost:
                    continue
                self.heap_cnt += 1
                items = {
                    TIME_ID: chunk * CHUNK + batch * STEP,
                    ANTENNA_ID: antenna,
                    spead2.HEAP_LENGTH_ID: LAYOUT.heap_bytes,
                }
                for packet in encode(Heap(items, bytes(LAYOUT.heap_bytes)), self.heap_cnt, 48):
                    self.queue.add_packet(packet)


@pytest.fixture
def sender() -> Iterator[Sender]:
    """Senders whose queue is stopped in the end."""
    sender = Sender()
    yield sender
    sender.queue.stop()


@pytest.fixture
def receiver(sender: Sender) -> Iterator[Receiver]:
    """Receiver that hands a chunk over when the one after the next begins."""
    with Receiver(LAYOUT, sender.queue, window=2, max_jump=8) as receiver:
        yield receiver


def updater(receiver: Any, sensors: aiokatcp.SensorSet, **kwargs: Any) -> SensorUpdater:
    return SensorUpdater(receiver, sensors, **{"sync_time": SYNC_TIME, "tick_rate": TICK_RATE, **kwargs})


async def take(chunks: SensorUpdater) -> int:
    async with asyncio.timeout(DEADLINE):
        with await anext(chunks) as chunk:
            return chunk.timestamp


class Record(list[tuple[str, Any]]):
    """Name of each sensor that is updated, and its status, or the value of device-status."""

    def __init__(self, sensors: aiokatcp.SensorSet) -> None:
        for sensor in sensors.values():
            sensor.attach(self.note)

    def note(self, sensor: aiokatcp.Sensor[Any], reading: aiokatcp.Reading[Any]) -> None:
        is_device = sensor.stype is DeviceStatus
        self.append((sensor.name, reading.value if is_device else reading.status))

    @property
    def device(self) -> list[DeviceStatus]:
        return [value for name, value in self if name == "rx.device-status"]


class Clock:
    """The clock of the running event loop, set by hand; it moves on a little whenever somebody looks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time()
        monkeypatch.setattr(loop, "time", self.time)

    def time(self) -> float:
        self.now += 1e-6
        return self.now

    async def advance(self, seconds: float) -> None:
        """Let the time pass, and do what is due then."""
        self.now += seconds
        for _ in range(3):
            await asyncio.sleep(0)


@pytest.mark.parametrize("prefixes", [[""], ["input0.", "input1."]])
async def test_sensors_before_the_first_chunk(prefixes: list[str]) -> None:
    sensors = make_sensors(FOR_EVER, prefixes)
    assert set(sensors) == {
        *(f"{prefix}rx.{name}" for prefix in prefixes for name in NAMES),
        "rx.device-status",
    }
    for prefix in prefixes:
        timestamp, time, missing = (sensors[f"{prefix}rx.{name}"] for name in NAMES)
        assert (timestamp.stype, timestamp.value, timestamp.status) == (int, -1, ERROR)
        assert (time.stype, time.value, time.status) == (Timestamp, Timestamp(-1.0), ERROR)
        assert (missing.stype, missing.value, missing.status) == (Timestamp, Timestamp(-1.0), NOMINAL)
        for sensor in (timestamp, time, missing):
            assert sensor.auto_strategy == aiokatcp.SensorSampler.Strategy.EVENT_RATE
            assert sensor.auto_strategy_parameters == (1.0, float("inf"))
    device = sensors["rx.device-status"]
    assert (device.stype, device.value, device.status) == (DeviceStatus, DeviceStatus.DEGRADED, WARN)


@pytest.mark.parametrize("timeout", [0, -1.0, float("inf"), float("nan"), None, "1", True])
def test_wrong_timeout(timeout: Any) -> None:
    with pytest.raises(ValueError, match=r"sensor_timeout: given .*, but wanted a positive number of seconds"):
        make_sensors(timeout)


@pytest.mark.parametrize("prefixes", [(), "input0.", ["a.", "a."]])
def test_wrong_prefixes(prefixes: Any) -> None:
    with pytest.raises(ValueError, match=r"prefixes: given .*, but wanted one or more, all different"):
        make_sensors(1.0, prefixes)


def test_default_timeout() -> None:
    """Ten chunks of time, but no less than a second."""
    assert default_timeout(LAYOUT, TICK_RATE) == 10 * CHUNK / TICK_RATE
    assert default_timeout(LAYOUT, 1e9) == 1.0
    with pytest.raises(ValueError, match="tick_rate: given None"):
        default_timeout(LAYOUT, None)  # type: ignore[arg-type]


async def test_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timestamps are stale so long after the last update, not after the first; then the status is again an error."""
    clock = Clock(monkeypatch)
    sensors = make_sensors(10.0)
    for i in range(5):
        update_sensors(sensors, i * CHUNK, unixtime(i * CHUNK), received=[""], missing=[])
        await clock.advance(9.0)
        assert sensors["rx.device-status"].value == DeviceStatus.OK
    await clock.advance(1.5)
    last = unixtime(4 * CHUNK)
    assert sensors["rx.timestamp"].reading == aiokatcp.Reading(last + 10.0, ERROR, 4 * CHUNK)
    assert sensors["rx.unixtime"].reading == aiokatcp.Reading(last + 10.0, ERROR, Timestamp(last))
    assert sensors["rx.missing-unixtime"].status == NOMINAL
    assert sensors["rx.device-status"].reading.value == DeviceStatus.DEGRADED
    update_sensors(sensors, 9 * CHUNK, unixtime(9 * CHUNK), received=[""], missing=[])
    assert sensors["rx.device-status"].reading.value == DeviceStatus.OK
    assert sensors["rx.device-status"].status == NOMINAL


async def test_silence_counts_from_the_last_update(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    sensors = make_sensors(10.0)
    for chunk in (0, 1):
        update_sensors(sensors, chunk * CHUNK, unixtime(chunk * CHUNK), received=[""], missing=[])
        await clock.advance(6.0)
    assert sensors["rx.timestamp"].status == NOMINAL
    await clock.advance(6.0)
    assert sensors["rx.timestamp"].status == ERROR


async def test_nothing_missing_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """All is well again when no more was missing for the timeout; the sensor still says when it was."""
    clock = Clock(monkeypatch)
    sensors = make_sensors(10.0)
    record = Record(sensors)
    update_sensors(sensors, 0, unixtime(0), received=[""], missing=[""])
    for i in range(1, 4):
        await clock.advance(3.0)
        update_sensors(sensors, i * CHUNK, unixtime(i * CHUNK), received=[""], missing=[])
        assert sensors["rx.missing-unixtime"].reading == aiokatcp.Reading(unixtime(0), ERROR, Timestamp(unixtime(0)))
    assert record.device == []  # degraded since the beginning
    await clock.advance(3.0)
    assert sensors["rx.missing-unixtime"].reading == aiokatcp.Reading(
        unixtime(0) + 10.0, NOMINAL, Timestamp(unixtime(0))
    )
    assert record.device == [DeviceStatus.OK]


async def test_silence_after_missing_heaps_never_looks_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is forgotten when the timestamps are stale, not the moment before."""
    clock = Clock(monkeypatch)
    sensors = make_sensors(10.0, PREFIXES)
    record = Record(sensors)
    update_sensors(sensors, 0, unixtime(0), received=PREFIXES, missing=PREFIXES[1:])
    record.clear()
    await clock.advance(10.0 - 1e-4)
    assert record == []
    for _ in range(1000):  # the clock moves on by itself, so that each is seen as it falls due
        await asyncio.sleep(0)
    assert record == [
        *((f"{prefix}rx.{name}", ERROR) for prefix in PREFIXES for name in ("timestamp", "unixtime")),
        *((f"{prefix}rx.missing-unixtime", NOMINAL) for prefix in PREFIXES[1:]),
    ]


async def test_device_status_of_changing_sets() -> None:
    """It follows sensors that come and go, and says only what has changed."""
    sensors = make_sensors(FOR_EVER)
    record = Record(sensors)
    update_sensors(sensors, 0, unixtime(0), received=[""], missing=[])
    other = aiokatcp.Sensor(int, "other", initial_status=WARN)
    sensors.add(other)
    other.set_value(1, ERROR)
    sensors.remove(other)
    assert record.device == [DeviceStatus.OK, DeviceStatus.DEGRADED, DeviceStatus.OK]


async def test_order_of_updates(sender: Sender, receiver: Receiver) -> None:
    """With heaps missing from the first chunk, the sensors never all look well; each chunk comes after its update."""
    sensors = make_sensors(FOR_EVER, PREFIXES)
    record = Record(sensors)
    chunks = updater(receiver, sensors, prefixes=PREFIXES)
    sender.chunk(0, lost=[(2, 0), (3, 2)])
    for chunk in range(1, 4):
        sender.chunk(chunk)
    assert await take(chunks) == 0
    received = [(f"{prefix}rx.{name}", NOMINAL) for prefix in PREFIXES for name in ("timestamp", "unixtime")]
    assert record == [("ant0.rx.missing-unixtime", ERROR), ("ant2.rx.missing-unixtime", ERROR), *received]
    record.clear()
    assert await take(chunks) == CHUNK
    assert record == received


async def test_sources_by_themselves(sender: Sender, receiver: Receiver) -> None:
    """A source that falls silent keeps the timestamp it had; of a chunk missing from all, all are told."""
    sensors = make_sensors(FOR_EVER, PREFIXES)
    chunks = updater(receiver, sensors, prefixes=PREFIXES)

    def say(name: str) -> list[Any]:
        return [sensors[f"{prefix}rx.{name}"].value for prefix in PREFIXES]

    sender.chunk(5)
    sender.chunk(6, silent=[1])
    sender.chunk(8)  # and nothing of 7
    for chunk in (9, 10, 11):
        sender.chunk(chunk)
    assert await take(chunks) == 5 * CHUNK
    assert say("timestamp") == [5 * CHUNK] * 3
    assert say("unixtime") == [unixtime(5 * CHUNK)] * 3
    assert say("missing-unixtime") == [-1.0] * 3
    assert sensors["rx.device-status"].value == DeviceStatus.OK
    assert await take(chunks) == 6 * CHUNK
    assert say("timestamp") == [6 * CHUNK, 5 * CHUNK, 6 * CHUNK]
    assert say("missing-unixtime") == [-1.0, unixtime(6 * CHUNK), -1.0]
    assert sensors["rx.device-status"].value == DeviceStatus.DEGRADED
    assert await take(chunks) == 8 * CHUNK
    assert say("timestamp") == [8 * CHUNK] * 3
    assert say("missing-unixtime") == [unixtime(8 * CHUNK)] * 3


async def test_one_set_for_all_sources(sender: Sender, receiver: Receiver) -> None:
    sensors = make_sensors(FOR_EVER)
    chunks = updater(receiver, sensors)
    sender.chunk(0)
    sender.chunk(1, silent=[1])
    for chunk in (2, 3, 4):
        sender.chunk(chunk)
    await take(chunks)
    assert sensors["rx.missing-unixtime"].status == NOMINAL
    await take(chunks)
    await take(chunks)
    assert sensors["rx.timestamp"].value == 2 * CHUNK
    assert sensors["rx.missing-unixtime"].reading == aiokatcp.Reading(unixtime(CHUNK), ERROR, unixtime(CHUNK))


@pytest.mark.parametrize("again", [0, 5000 * CHUNK], ids=["from 0", "ahead"])
async def test_restarted_senders(again: int) -> None:
    """Timestamps follow to another time; nothing is missing for it, and `sync_time` may be set again."""
    first = 1000 * CHUNK
    layout = dataclasses.replace(LAYOUT, time=dataclasses.replace(LAYOUT.time, tick_rate=TICK_RATE))
    queue = spead2.InprocQueue()
    for start in (first, again):
        Simulator(layout, first_timestamp=start).send(InprocSink(queue), batches=50 * BATCHES)
    queue.stop()
    sensors = make_sensors(FOR_EVER, PREFIXES)
    timestamps = []
    with Receiver(layout, queue, window=2) as receiver:
        chunks = updater(receiver, sensors, prefixes=PREFIXES)
        async with asyncio.timeout(DEADLINE):
            async for chunk in chunks:
                with chunk:
                    if receiver.accounting.restarts:
                        chunks.sync_time = 1.7e9
                    timestamps.append(chunk.timestamp)
                    for prefix in PREFIXES:
                        assert sensors[f"{prefix}rx.timestamp"].value == chunk.timestamp
        assert receiver.accounting.restarts == 1
        lost = receiver.accounting.missing
    # Heaps whose time is not believed yet are lost, of one chunk or two.
    assert timestamps[:50] == [first + i * CHUNK for i in range(50)]
    assert timestamps[-1] == again + 49 * CHUNK
    assert lost <= 2 * LAYOUT.chunk_heaps
    assert sensors["ant0.rx.unixtime"].value == 1.7e9 + timestamps[-1] / TICK_RATE


async def test_failing_update_loses_no_chunk(sender: Sender, receiver: Receiver) -> None:
    """The chunk goes back to be filled, and the iteration can go on."""
    sensors = make_sensors(FOR_EVER)
    chunks = updater(receiver, sensors)
    for chunk in range(5):
        sender.chunk(chunk)
    del sensors["rx.unixtime"]
    with pytest.raises(KeyError, match=r"rx\.unixtime"):
        await take(chunks)
    assert receiver.accounting.chunks == 1
    sensors.add(make_sensors(FOR_EVER)["rx.unixtime"])
    assert await take(chunks) == CHUNK
    sender.queue.stop()
    async with asyncio.timeout(DEADLINE):
        async for chunk in chunks:
            chunk.recycle()
    assert receiver.stats().free_ring.chunks == len(receiver.pool)


async def test_cancelled_wait_loses_no_chunk(sender: Sender, receiver: Receiver) -> None:
    chunks = updater(receiver, make_sensors(FOR_EVER))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(chunks), 0.01)
    for chunk in range(3):
        sender.chunk(chunk)
    assert await take(chunks) == 0


async def test_goes_on_where_another_was(sender: Sender, receiver: Receiver) -> None:
    """What was missing before it is not said again."""
    sensors = make_sensors(FOR_EVER)
    sender.chunk(0, lost=[(1, 1)])
    for chunk in (1, 2, 3):
        sender.chunk(chunk)
    await take(updater(receiver, make_sensors(FOR_EVER)))
    assert await take(updater(receiver, sensors)) == CHUNK
    assert sensors["rx.missing-unixtime"].status == NOMINAL


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prefixes": ["a.", "b."]}, "prefixes: given 2, but wanted one, or one for each of 3 sources"),
        (
            {"prefixes": PREFIXES},
            r"sensors: 'ant0\.rx\.timestamp' is absent, but wanted all sensors that make_sensors",
        ),
        ({"tick_rate": None}, "tick_rate: given None, but wanted a positive number"),
        ({"tick_rate": 0}, "tick_rate: given 0, but wanted a positive number"),
        ({"sync_time": "now"}, "sync_time: given 'now', but wanted seconds of UNIX time"),
        ({"sync_time": float("nan")}, "sync_time: given nan"),
    ],
)
def test_wrong_arguments(receiver: Receiver, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        updater(receiver, make_sensors(1.0), **arguments)


def test_sources_of_a_layout_with_a_callback_of_its_own(make: Callable[..., Any]) -> None:
    """`iter_chunks` will do as well as a Receiver."""
    chunks = speadrx.iter_chunks(make())
    with pytest.raises(ValueError, match="wanted one, or one for each of 3 sources"):
        updater(chunks, make_sensors(1.0), prefixes=["a.", "b."])
    updater(chunks, make_sensors(1.0))


class Server(aiokatcp.DeviceServer):
    VERSION = BUILD_STATE = "receiver-1.0"


@contextlib.asynccontextmanager
async def serve(sensors: aiokatcp.SensorSet) -> AsyncIterator[aiokatcp.Client]:
    """Serve sensors over TCP, with a client."""
    server = Server("127.0.0.1", 0)
    for sensor in sensors.values():
        server.sensors.add(sensor)
    await server.start()
    try:
        async with asyncio.timeout(DEADLINE):
            client = await aiokatcp.Client.connect("127.0.0.1", server.sockets[0].getsockname()[1])
        try:
            yield client
        finally:
            client.close()
            await client.wait_closed()
    finally:
        await server.stop()


class Seen:
    """What a client was told of each sensor, when it has asked for that."""

    def __init__(self, client: aiokatcp.Client) -> None:
        self.told: dict[str, list[tuple[str, bytes]]] = {}
        self._news = asyncio.Event()
        client.add_inform_callback("sensor-status", self._inform)

    def _inform(self, timestamp: Timestamp, n: int, name: str, status: str, value: bytes) -> None:
        self.told.setdefault(name, []).append((status, value))
        self._news.set()

    async def wait_for(self, name: str, status: str, value: bytes) -> None:
        async with asyncio.timeout(DEADLINE):
            while (status, value) not in self.told.get(name, []):
                self._news.clear()
                await self._news.wait()


async def test_client_sees_what_happens(sender: Sender, receiver: Receiver) -> None:
    """Over TCP: values and status as asked for, and each change of the status as an event."""
    sensors = make_sensors(FOR_EVER, PREFIXES)
    chunks = updater(receiver, sensors, prefixes=PREFIXES)
    async with serve(sensors) as client, asyncio.timeout(DEADLINE):
        seen = Seen(client)
        await client.request("sensor-sampling", "rx.device-status,ant1.rx.missing-unixtime", "event")
        await client.request("sensor-sampling", "ant1.rx.timestamp", "auto")
        await seen.wait_for("rx.device-status", "warn", b"degraded")
        await seen.wait_for("ant1.rx.timestamp", "error", b"-1")
        sender.chunk(3)
        sender.chunk(4, lost=[(0, 1)])
        for chunk in (5, 6, 7):
            sender.chunk(chunk)
        await take(chunks)
        await seen.wait_for("rx.device-status", "nominal", b"ok")
        await seen.wait_for("ant1.rx.timestamp", "nominal", b"%d" % (3 * CHUNK))  # a second after the one before
        reading = await client.sensor_reading("ant1.rx.unixtime", Timestamp)
        assert reading == aiokatcp.Reading(unixtime(3 * CHUNK), NOMINAL, Timestamp(unixtime(3 * CHUNK)))
        await take(chunks)
        await seen.wait_for("ant1.rx.missing-unixtime", "error", b"%.1f" % unixtime(4 * CHUNK))
        await client.request("watchdog")  # what was sent before it has come
        assert seen.told["rx.device-status"] == [("warn", b"degraded"), ("nominal", b"ok"), ("warn", b"degraded")]
        assert await client.sensor_value("ant0.rx.timestamp", int) == 4 * CHUNK


async def test_client_sees_that_nothing_comes(sender: Sender, receiver: Receiver) -> None:
    """Over TCP, with the clock that there is."""
    sensors = make_sensors(0.2)
    chunks = updater(receiver, sensors)
    async with serve(sensors) as client, asyncio.timeout(DEADLINE):
        seen = Seen(client)
        await client.request("sensor-sampling", "rx.device-status,rx.timestamp", "event")
        for chunk in range(3):
            sender.chunk(chunk)
        await take(chunks)
        await seen.wait_for("rx.timestamp", "error", b"0")
        await client.request("watchdog")
        assert seen.told["rx.device-status"] == [("warn", b"degraded"), ("nominal", b"ok"), ("warn", b"degraded")]


def test_without_aiokatcp() -> None:
    """Said in so many words, and only where it is needed."""
    program = """
import sys
sys.modules["aiokatcp"] = None
import speadrx.compat.katgpucbf
from speadrx import *
from speadrx.compat.katgpucbf import *
for use in ("speadrx.sensors", "speadrx.compat.katgpucbf.make_sensors"):
    try:
        eval(use)
    except ImportError as exc:
        assert str(exc).endswith("needs aiokatcp, which is not installed; do: pip install 'speadrx[katcp]'"), exc
    else:
        raise SystemExit(f"{use} did not fail")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=DEADLINE)
