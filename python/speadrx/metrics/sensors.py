"""katcp sensors that say what a receiver receives, and whether all is well. MeerKAT's engines have the same sensors.

This needs the extra ``katcp``. The names and meanings of the sensors are those of the public module
``katgpucbf.recv``, so that programs that watch MeerKAT's engines can watch any receiver.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

try:
    import aiokatcp
except ModuleNotFoundError as exc:
    raise ModuleNotFoundError(
        f"speadrx.sensors needs {exc.name}, which is not installed; do: pip install 'speadrx[katcp]'", name=exc.name
    ) from None

import numpy as np

from speadrx.layout.base import BaseLayout
from speadrx.receive.chunk import Chunk
from speadrx.receive.stream import RECV_SENSOR_TIMEOUT_CHUNKS, RECV_SENSOR_TIMEOUT_MIN

if TYPE_CHECKING:
    from speadrx.receive.iterate import ChunkIterator
    from speadrx.receive.receiver import Receiver

#: The shortest time between two updates that a client gets of a sensor, in seconds. Sensors change with each chunk.
MIN_UPDATE_PERIOD = 1.0

_Status = aiokatcp.Sensor.Status

_TIMESTAMP, _UNIXTIME, _MISSING = "rx.timestamp", "rx.unixtime", "rx.missing-unixtime"

#: The sensors of each prefix: name, type, value before the first chunk, status without updates, description.
_SENSORS: tuple[tuple[str, Any, Any, _Status, str], ...] = (
    (_TIMESTAMP, int, -1, _Status.ERROR, "Timestamp of the last chunk received, in ticks of the digitiser"),
    (
        _UNIXTIME,
        aiokatcp.core.Timestamp,
        aiokatcp.core.Timestamp(-1.0),
        _Status.ERROR,
        "Time of the last chunk received, in UNIX time",
    ),
    (
        _MISSING,
        aiokatcp.core.Timestamp,
        aiokatcp.core.Timestamp(-1.0),
        _Status.NOMINAL,
        "Time of the last chunk in which, or before which, heaps were missing, in UNIX time",
    ),
)


class _Timeouts:
    """Sets sensors to their status without updates, once they have had none for some time.

    There is one timer for all sensors. Sensors that were updated together time out together, in the order of
    `statuses`. Those that become errors come first, so that the sensors never look well in between.
    """

    def __init__(self, timeout: float, statuses: dict[aiokatcp.Sensor[Any], _Status]) -> None:
        self._timeout = timeout
        self._statuses = statuses
        self._due: dict[aiokatcp.Sensor[Any], float] = {}
        self._now: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        for sensor in statuses:
            sensor.attach(self)

    def __call__(self, sensor: aiokatcp.Sensor[Any], reading: aiokatcp.Reading[Any]) -> None:
        if reading.status == self._statuses[sensor]:
            self._due.pop(sensor, None)
            return
        loop = asyncio.get_running_loop()
        if self._now is None:
            # All updates until the loop goes on count as one moment.
            self._now = loop.time()
            loop.call_soon(self._go_on)
        self._due[sensor] = self._now + self._timeout
        if self._timer is None:
            self._timer = loop.call_at(self._due[sensor], self._expire)

    def _go_on(self) -> None:
        self._now = None

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer = None
        for sensor, status in self._statuses.items():
            if self._due.get(sensor, math.inf) <= now:
                sensor.set_value(sensor.value, status, sensor.timestamp + self._timeout)
        if self._due:
            self._timer = loop.call_at(min(self._due.values()), self._expire)


class DeviceStatusSensor(aiokatcp.AggregateSensor[aiokatcp.DeviceStatus]):
    """Whether all is well: degraded while the status of any sensor in a set is worse than nominal.

    Parameters
    ----------
    target
        The sensors. Sensors that sum up others do not count.
    name, description
        As in `aiokatcp.Sensor`.
    """

    def __init__(
        self,
        target: aiokatcp.SensorSet,
        name: str = "device-status",
        description: str = "Whether all is well",
    ) -> None:
        self._bad = 0
        super().__init__(target, aiokatcp.DeviceStatus, name, description)

    def update_aggregate(
        self,
        updated_sensor: aiokatcp.Sensor[Any] | None,
        reading: aiokatcp.Reading[Any] | None,
        old_reading: aiokatcp.Reading[Any] | None,
    ) -> aiokatcp.Reading[aiokatcp.DeviceStatus] | None:
        """Count the sensors that are not well. Return a new reading only if the value changes."""
        was_bad = self._bad > 0
        if updated_sensor is None:
            self._bad = sum(_is_bad(sensor.reading) for sensor in self.target.values() if self.filter_aggregate(sensor))
        else:
            self._bad += _is_bad(reading) - _is_bad(old_reading)
            if (self._bad > 0) == was_bad:
                return None
        # A sensor is added or removed now. The timestamp of a reading is that of the data, and must not go back.
        now = time.time() if reading is None or old_reading is None else reading.timestamp
        status, value = (
            (_Status.WARN, aiokatcp.DeviceStatus.DEGRADED) if self._bad else (_Status.NOMINAL, aiokatcp.DeviceStatus.OK)
        )
        return aiokatcp.Reading(max(now, self.timestamp), status, value)

    def filter_aggregate(self, sensor: aiokatcp.Sensor[Any]) -> bool:
        """Leave out sensors that sum up others, as those others are counted already."""
        return not isinstance(sensor, aiokatcp.AggregateSensor)


def _is_bad(reading: aiokatcp.Reading[Any] | None) -> bool:
    return reading is not None and reading.status > _Status.NOMINAL


def make_sensors(sensor_timeout: float, prefixes: Sequence[str] = ("",)) -> aiokatcp.SensorSet:
    """Make the sensors of a receiver: three for each prefix, and one that sums them up.

    - ``rx.timestamp`` (int): timestamp of the last chunk, in ticks of the digitiser.
    - ``rx.unixtime`` (`aiokatcp.core.Timestamp`): time of the last chunk. The status of both is error before the first
      chunk, and again if no chunk comes for `sensor_timeout`.
    - ``rx.missing-unixtime`` (`aiokatcp.core.Timestamp`): time of the last chunk for which heaps were missing. The
      status is then error, and nominal again if none are missing for `sensor_timeout`.
    - ``rx.device-status`` (`aiokatcp.DeviceStatus`), one for all prefixes: degraded (status warn) while any of the
      other sensors has an error, otherwise ok (status nominal).

    The timestamp of a reading is the time of the data. A client that asks for the strategy ``auto`` gets at most one
    update each second from each of the first three.

    Parameters
    ----------
    sensor_timeout
        Seconds. `default_timeout` works out the value of MeerKAT's engines.
    prefixes
        Prefixes of the names, each with a dot at its end, such as ``("input0.", "input1.")``.

    Returns
    -------
    aiokatcp.SensorSet
        Add them to the sensors of a server. Update them only from its event loop, while it runs.

    Raises
    ------
    ValueError
        If the timeout is not a positive number, or if there is no prefix, or the same prefix twice.
    """
    _check_number("sensor_timeout", sensor_timeout, "a positive number of seconds", above=0)
    if isinstance(prefixes, str) or not prefixes or len(set(prefixes)) < len(prefixes):
        raise ValueError(
            f"prefixes: given {prefixes!r}, but wanted one or more, all different (for no prefix, give ('',))"
        )
    sensors = aiokatcp.SensorSet()
    statuses = {}
    for prefix in prefixes:
        for name, sensor_type, default, status, description in _SENSORS:
            sensor = aiokatcp.Sensor(
                sensor_type,
                prefix + name,
                description,
                default=default,
                initial_status=status,
                auto_strategy=aiokatcp.SensorSampler.Strategy.EVENT_RATE,
                auto_strategy_parameters=(MIN_UPDATE_PERIOD, math.inf),
            )
            sensors.add(sensor)
            statuses[sensor] = status
    _Timeouts(sensor_timeout, dict(sorted(statuses.items(), key=lambda item: item[1], reverse=True)))
    sensors.add(DeviceStatusSensor(sensors, "rx.device-status", "Whether data come in, with nothing missing"))
    return sensors


def default_timeout(layout: BaseLayout, tick_rate: float) -> float:
    """Return the seconds without updates after which the sensors of MeerKAT's engines change their status.

    They are `RECV_SENSOR_TIMEOUT_CHUNKS` chunks of time, but at least `RECV_SENSOR_TIMEOUT_MIN` seconds.

    Parameters
    ----------
    layout
        The layout of the stream.
    tick_rate
        Ticks of its timestamps per second, in Hz.

    Returns
    -------
    float
        Seconds.

    Raises
    ------
    ValueError
        If `tick_rate` is not a positive number.
    """
    _check_number("tick_rate", tick_rate, "a positive number of ticks in a second", above=0)
    return max(RECV_SENSOR_TIMEOUT_MIN, RECV_SENSOR_TIMEOUT_CHUNKS * layout.chunk_timestamp_step / tick_rate)


def update_sensors(
    sensors: aiokatcp.SensorSet, timestamp: int, unixtime: float, *, received: Iterable[str], missing: Iterable[str]
) -> None:
    """Update the sensors for a chunk.

    Parameters
    ----------
    sensors
        Has at least the sensors that `make_sensors` makes.
    timestamp
        Timestamp of the chunk, in ticks.
    unixtime
        Its time, in seconds of UNIX time.
    received
        Prefixes of the sensors whose heaps have come.
    missing
        Prefixes of the sensors whose heaps were found to be missing.
    """
    value = aiokatcp.core.Timestamp(unixtime)
    # Missing heaps come first. Otherwise all would look well for a moment if heaps of the first chunk are missing.
    for prefix in missing:
        sensors[prefix + _MISSING].set_value(value, _Status.ERROR, unixtime)
    for prefix in received:
        sensors[prefix + _TIMESTAMP].set_value(timestamp, _Status.NOMINAL, unixtime)
        sensors[prefix + _UNIXTIME].set_value(value, _Status.NOMINAL, unixtime)


class SensorUpdater:
    """The chunks of a receiver, for ``async for``. The sensors are updated before each chunk is given out.

    With a prefix for each source, there are sensors for each source. If one source falls silent, its timestamps are
    stale, and its heaps are missing. With a single prefix, the sensors are for all sources together.

    If time begins again, because the senders were restarted, the timestamps follow. Nothing is missing for the time in
    between. If the senders then count from another moment, set `sync_time` to the new value.

    Parameters
    ----------
    chunks
        A `Receiver`, or what `iter_chunks` returns.
    sensors
        Made by `make_sensors`, or a set that includes these sensors, such as the set of the server.
    sync_time
        UNIX time of timestamp 0, in seconds.
    tick_rate
        Ticks of the timestamps per second, in Hz.
    prefixes
        The prefixes given to `make_sensors`: one for each source, in the order of ``chunks.accounting.source_labels``;
        or a single one.

    Raises
    ------
    ValueError
        If the number of prefixes is wrong, a sensor is absent, or a number is wrong.

    Examples
    --------
    >>> import asyncio, spead2, speadrx
    >>> from speadrx.sensors import SensorUpdater, make_sensors
    >>> from speadrx.simulate import InprocSink, Simulator
    >>> layout = speadrx.Layout(heap_bytes=8, time=speadrx.TimeAxis(item=0x1600, step=1, batches=4, tick_rate=2))
    >>> queue = spead2.InprocQueue()
    >>> truth = Simulator(layout).send(InprocSink(queue), batches=8)
    >>> queue.stop()
    >>> async def receive():
    ...     sensors = make_sensors(sensor_timeout=10)
    ...     async with speadrx.Receiver(layout, queue) as receiver:
    ...         async for chunk in SensorUpdater(receiver, sensors, sync_time=1e9, tick_rate=2):
    ...             with chunk:
    ...                 print(sensors["rx.timestamp"].value, sensors["rx.unixtime"].value)
    ...     print(sensors["rx.device-status"].value)
    >>> asyncio.run(receive())
    0 1000000000.0
    4 1000000002.0
    DeviceStatus.OK
    """

    #: UNIX time of timestamp 0, in seconds.
    sync_time: float

    def __init__(
        self,
        chunks: ChunkIterator | Receiver,
        sensors: aiokatcp.SensorSet,
        *,
        sync_time: float,
        tick_rate: float,
        prefixes: Sequence[str] = ("",),
    ) -> None:
        self._iterable = chunks
        self._chunks: ChunkIterator | None = None
        self._accounting = chunks.accounting
        self._sensors = sensors
        self.sync_time = _check_number("sync_time", sync_time, "seconds of UNIX time")
        self._tick_rate = _check_number("tick_rate", tick_rate, "a positive number of ticks in a second", above=0)
        self._prefixes = tuple(prefixes)
        labels = self._accounting.source_labels
        if len(self._prefixes) not in (1, len(labels)):
            raise ValueError(
                f"prefixes: given {len(self._prefixes)}, but wanted one, or one for each of {len(labels)} sources"
            )
        names = [prefix + name for prefix in self._prefixes for name, *_ in _SENSORS]
        if absent := [name for name in names if name not in sensors]:
            raise ValueError(
                f"sensors: {absent[0]!r} is absent, but wanted all sensors that make_sensors makes for these prefixes"
            )
        self._seen = self._counts()

    def _counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Heaps present and heaps missing so far, by prefix."""
        present, missing = self._accounting.present_by_source, self._accounting.missing_by_source
        if len(self._prefixes) == 1:
            return present.sum(keepdims=True), missing.sum(keepdims=True)
        return present, missing

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if self._chunks is None:
            self._chunks = aiter(self._iterable)  # starts a Receiver
        chunk = await anext(self._chunks)
        try:
            self._update(chunk)
        except BaseException:
            chunk.recycle()
            raise
        return chunk

    def _update(self, chunk: Chunk) -> None:
        before, self._seen = self._seen, self._counts()
        received, missing = (
            [self._prefixes[i] for i in np.flatnonzero(new > old)] for old, new in zip(before, self._seen, strict=True)
        )
        unixtime = self.sync_time + chunk.timestamp / self._tick_rate
        update_sensors(self._sensors, chunk.timestamp, unixtime, received=received, missing=missing)


def _check_number(name: str, value: Any, wanted: str, *, above: float = -math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not above < value < math.inf:
        raise ValueError(f"{name}: given {value!r}, but wanted {wanted}")
    return float(value)
