"""Simulate the senders of any declarative layout: heaps with seeded faults, and the truth about what was sent."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import spead2
import spead2.send

from speadrx.layout.base import DeclarativeLayout
from speadrx.layout.declaration import Axis
from speadrx.layout.items import SPECIAL_ITEMS, TIMESTAMP_BITS

from .garbage import GARBAGE_KINDS, GarbageMaker
from .pacing import Clock, WallClock
from .packets import PacketEncoder, axis_items, axis_size
from .sinks import Packet, Sink

#: Flavour of MeerKAT's streams: 16-bit item IDs, 48-bit addresses and immediate values.
DEFAULT_FLAVOUR = spead2.Flavour(4, 64, 48, 0)

#: Item that holds the payload, unless a simulator is told another.
DEFAULT_PAYLOAD_ITEM = 0x3300

# Payloads are windows on one random pattern. The prime number of windows makes every 65521 successive
# heaps differ, whatever the (coprime) multiplier that scatters them.
_WINDOWS = 65521
_SCATTER = 40503

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong between the senders and the receiver.

    Where heaps have several packets, a stream can only count all that happens to them if it is made with
    ``allow_out_of_order=True`` and enough ``max_heaps`` for all heaps whose packets are mixed.

    Parameters
    ----------
    loss
        Probability that a heap is not sent at all.
    packet_loss
        Probability that a packet is not sent, for each packet on its own.
    reorder
        A heap is overtaken by up to that many later heaps.
    packet_reorder
        A packet is overtaken by up to that many later packets.
    late, late_by
        Probability that a heap is held back by that many heaps more (make it several chunks, and it is
        too old when it comes).
    duplicate
        Probability that a heap is sent twice (the copy has a heap counter of its own, so that the
        packets of both never mix).
    garbage
        Probability that a heap of garbage is sent before a heap. Garbage is never lost or duplicated.
    garbage_kinds
        Kinds to choose from, keys of `GARBAGE_KINDS` (default: all that the layout and flavour have,
        but not ``"stop"``).

    Raises
    ------
    ValueError
        If a probability is not in 0..1, a number of heaps is negative, or a kind is unknown; or if there is
        garbage, but of no kind.
    """

    loss: float = 0.0
    packet_loss: float = 0.0
    reorder: int = 0
    packet_reorder: int = 0
    late: float = 0.0
    late_by: int = 0
    duplicate: float = 0.0
    garbage: float = 0.0
    garbage_kinds: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("loss", "packet_loss", "late", "duplicate", "garbage"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: {getattr(self, name)} is not a probability from 0 to 1")
        for name in ("reorder", "packet_reorder", "late_by"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} must not be negative")
        if self.garbage_kinds is not None:
            object.__setattr__(self, "garbage_kinds", tuple(self.garbage_kinds))
            if self.garbage and not self.garbage_kinds:
                raise ValueError(f"garbage_kinds: is empty, but garbage is {self.garbage}")
            for kind in self.garbage_kinds:
                if kind not in GARBAGE_KINDS:
                    raise ValueError(f"garbage_kinds: {kind!r} is not one of {', '.join(GARBAGE_KINDS)}")


@dataclass
class Truth:
    """What a simulator has sent, and what a receiver should make of it.

    Attributes
    ----------
    sent
        Copies of heaps sent, for each source (duplicates and incomplete ones included).
    lost
        Heaps of which nothing was sent, for each source.
    duplicated
        Copies sent beyond the first of each heap, for each source.
    incomplete
        Heaps of which no copy was sent with all its packets, for each source.
    rejected
        Heaps of garbage sent, for each reason that the receiver counts.
    unseen
        Heaps of garbage sent that never reach a placement callback, for each kind.
    packets, bytes
        All that was sent, garbage included (without UDP and lower headers).
    """

    sent: list[int]
    lost: list[int]
    duplicated: list[int]
    incomplete: list[int]
    rejected: dict[str, int] = field(default_factory=dict)
    unseen: dict[str, int] = field(default_factory=dict)
    packets: int = 0
    bytes: int = 0

    @property
    def copies(self) -> int:
        """All heaps sent: the *sent copies* that a receiver has to account for."""
        return sum(self.sent) + sum(self.rejected.values()) + sum(self.unseen.values())

    @property
    def complete(self) -> list[int]:
        """Distinct heaps of each source that a receiver gets whole if nothing else goes wrong."""
        return [s - d - i for s, d, i in zip(self.sent, self.duplicated, self.incomplete, strict=True)]

    @property
    def decodable_packets(self) -> int:
        """Packets that a receiver can decode: the ones that spead2 counts as ``packets``."""
        return self.packets - self.unseen.get("noise", 0)


class Simulator:
    """The senders of one stream.

    Heaps are sent batch by batch, for all sources in turn. Each packet of a heap repeats all its items.
    What is sent depends on the arguments only, never on the clock. A simulator goes on where it stopped
    when it is told to send again.

    Parameters
    ----------
    layout
        Layout of the heaps.
    seed
        Seed of the payload, and with `user_data` of the faults.
    first_timestamp
        Timestamp of the first batch, in ticks: a multiple of the layout's time step. Timestamps are sent
        modulo 2**48.
    faults
        What goes wrong.
    user_data
        Index on each axis that the layout takes from ``user_data``, by field.
    payload
        Makes the payload of a heap from its batch (timestamp / step) and its index on each axis, in
        the order of declaration (default: windows on a random pattern).
    side_values
        Makes the value of each side item from batch and indices, by the item's name (default: scattered).
    items
        Value of further items, by ID. Required items not given here are 0.
    timestamp_jitter
        Add up to that many ticks to each timestamp, for layouts that mask timestamps.
    payload_item
        ID of the item that points to the payload.
    flavour
        SPEAD flavour.
    max_packet_size
        Bytes of a packet at most, SPEAD header and items included, UDP header not.

    Raises
    ------
    ValueError
        If an argument does not fit the layout or flavour, or axes that share an item cannot be told apart.

    Examples
    --------
    >>> from speadrx.meerkat import DigitiserLayout
    >>> from speadrx.simulate import Faults, Simulator
    >>> simulator = Simulator(DigitiserLayout(10, 4096, 65536), faults=Faults(loss=0.25), max_packet_size=9000)
    >>> sum(1 for _ in simulator.packets(1000)) == sum(simulator.truth.sent)
    True
    >>> sum(simulator.truth.sent) + sum(simulator.truth.lost)
    2000
    """

    def __init__(
        self,
        layout: DeclarativeLayout,
        *,
        seed: int = 0,
        first_timestamp: int = 0,
        faults: Faults | None = None,
        user_data: Mapping[str, int] | None = None,
        payload: Callable[[int, tuple[int, ...]], bytes | memoryview] | None = None,
        side_values: Mapping[str, Callable[[int, tuple[int, ...]], int]] | None = None,
        items: Mapping[int, int] | None = None,
        timestamp_jitter: int = 0,
        payload_item: int = DEFAULT_PAYLOAD_ITEM,
        flavour: spead2.Flavour = DEFAULT_FLAVOUR,
        max_packet_size: int = spead2.send.StreamConfig.DEFAULT_MAX_PACKET_SIZE,
    ) -> None:
        self.layout = layout
        self.faults = faults if faults is not None else Faults()
        self._declaration = layout.declaration
        self._time = self._declaration.time
        self._axes = self._declaration.axes
        self._payload = payload
        self._side_values = dict(side_values or {})
        self._items = {item: 0 for item in self._declaration.required_items if item not in SPECIAL_ITEMS}
        self._items.update(items or {})
        self._jitter = timestamp_jitter
        self._user_data = dict(user_data or {})
        self._check_arguments(first_timestamp)

        self._sizes = tuple(axis_size(axis) for axis in self._axes)
        pattern = np.random.default_rng(seed).bytes(layout.heap_bytes + _WINDOWS - 1)
        self._pattern = np.frombuffer(pattern, np.uint8)
        self._pattern_view = memoryview(pattern)
        self._random = random.Random(repr((seed, sorted(self._user_data.items()))))
        self._next_batch = first_timestamp // self._time.step
        self._encoder = PacketEncoder(flavour, payload_item, max_packet_size)
        #: Index on each axis of every heap of a batch, in the order of sending.
        self.indices: list[tuple[int, ...]] = list(itertools.product(*map(self._axis_range, self._axes)))
        self._axis_items = {indices: axis_items(self._axes, indices) for indices in self.indices}
        self._source_axis = next(
            (i for i, axis in enumerate(self._axes) if axis.name == self._declaration.sources), None
        )
        n_sources = 1 if self._source_axis is None else self._sizes[self._source_axis]
        #: What has been sent so far.
        self.truth = Truth([0] * n_sources, [0] * n_sources, [0] * n_sources, [0] * n_sources)
        # Encoding any heap checks the items, so that a mistake is reported here and not by the first packet.
        packets = self._encoder.heap(self.items(self._next_batch, self.indices[0]), bytes(layout.heap_bytes))
        self._heap_packets = len(packets)
        self._garbage_maker = GarbageMaker(
            layout,
            self._axis_items[self.indices[0]],
            first_timestamp,
            self._encoder,
            self._random,
            self.faults.garbage_kinds,
        )
        self._heaps_sent = 0
        self._heaps_begun = 0  # lost ones included

    def _check_arguments(self, first_timestamp: int) -> None:
        if first_timestamp < 0 or first_timestamp % self._time.step:
            raise ValueError(
                f"first_timestamp: {first_timestamp} must be a multiple of the layout's time step ({self._time.step})"
            )
        if self._jitter and not (self._time.align == "mask" and 0 < self._jitter < self._time.step):
            raise ValueError(
                f"timestamp_jitter: {self._jitter} must be less than the time step ({self._time.step}), "
                'and the layout\'s time axis must have align="mask"'
            )
        names = [item.name for item in self._declaration.side_items]
        for name in self._side_values:
            if name not in names:
                raise ValueError(f"side_values: the layout has no side item {name!r} (it has {names})")
        known = sorted(set(self.layout.user_data_dtype.names or ()) - {"stats_base"})
        for name in self._user_data:
            if name not in known:
                raise ValueError(f"user_data: the layout reads no {name!r} (it reads {known})")
        for axis in self._axes:
            if axis.item == self._time.item:
                raise ValueError(f"axis {axis.name!r}: shares item {axis.item:#x} with the time, cannot be simulated")
            if axis.from_user_data is not None:
                index = self._user_data.get(axis.from_user_data)
                if index is None:
                    raise ValueError(f"user_data: has no {axis.from_user_data!r}, the index on axis {axis.name!r}")
                if not 0 <= index < axis_size(axis):
                    raise ValueError(f"user_data: {axis.from_user_data} is {index}, not below {axis_size(axis)}")

    def _axis_range(self, axis: Axis) -> Iterable[int]:
        return range(axis_size(axis)) if axis.from_user_data is None else (self._user_data[axis.from_user_data],)

    # What heaps hold

    def _linear(self, batch: int, indices: tuple[int, ...]) -> int:
        """Number all heaps ever."""
        for size, index in zip(self._sizes, indices, strict=True):
            batch = batch * size + index
        return batch

    def payload(self, batch: int, indices: tuple[int, ...]) -> bytes | memoryview:
        """Payload of a heap.

        Parameters
        ----------
        batch
            Timestamp divided by the layout's time step.
        indices
            Index on each axis, in the order of declaration.
        """
        if self._payload is not None:
            payload = self._payload(batch, indices)
            if len(payload) != self.layout.heap_bytes:
                raise ValueError(f"payload: made {len(payload)} bytes, but heap_bytes is {self.layout.heap_bytes}")
            return payload
        offset = self._linear(batch, indices) * _SCATTER % _WINDOWS
        return self._pattern_view[offset : offset + self.layout.heap_bytes]

    def items(self, batch: int, indices: tuple[int, ...]) -> dict[int, int]:
        """Value of every item of a heap, by ID (those of the SPEAD protocol itself left out)."""
        linear = self._linear(batch, indices)
        timestamp = batch * self._time.step
        if self._jitter:
            timestamp += linear * _SCATTER % (self._jitter + 1)
        fixed = self._axis_items.get(indices)
        if fixed is None:  # a heap of another stream of the group
            fixed = axis_items(self._axes, indices)
        items = {**self._items, self._time.item: timestamp % 2**TIMESTAMP_BITS, **fixed}
        for side in self._declaration.side_items:
            if side.item == self._time.item or side.item in fixed or side.item in SPECIAL_ITEMS:
                continue
            make = self._side_values.get(side.name)
            # An odd 64-bit multiplier reaches the high bits too.
            value = make(batch, indices) if make else linear * 0x9E3779B97F4A7C15
            # A side item that is shifted by more bits than a value has is always 0.
            room = max(min(int(side.dtype[1:]), self._encoder.address_bits - side.shift), 0)
            items[side.item] = items.get(side.item, 0) | (value % 2**room) << side.shift
        return items

    def chunk_data(self, timestamp: int) -> np.ndarray:
        """Payloads of all heaps of a chunk, those of other streams of the group included.

        Parameters
        ----------
        timestamp
            Timestamp of the chunk, in ticks.

        Returns
        -------
        numpy.ndarray
            Unsigned bytes of shape ``layout.present_shape + (layout.heap_bytes,)``.
        """
        first = timestamp // self._time.step
        if self._payload is not None:
            data = np.empty((*self.layout.present_shape, self.layout.heap_bytes), np.uint8)
            for position in np.ndindex(self.layout.present_shape):
                batch, indices = self._place(first, position)
                data[position] = np.frombuffer(self.payload(batch, indices), np.uint8)
            return data
        coordinates = dict(zip(self.layout.axis_names, np.indices(self.layout.present_shape, sparse=True), strict=True))
        # Kept small, as the linear number of a late heap could overflow.
        linear = first % _WINDOWS + coordinates[self._time.name]
        for axis, size in zip(self._axes, self._sizes, strict=True):
            linear = linear * size % _WINDOWS + coordinates[axis.name]
        windows = np.lib.stride_tricks.sliding_window_view(self._pattern, self.layout.heap_bytes)
        return windows[linear * _SCATTER % _WINDOWS]

    def chunk_extra(self, timestamp: int) -> np.ndarray:
        """Side items of all heaps of a chunk.

        Parameters
        ----------
        timestamp
            Timestamp of the chunk, in ticks.

        Returns
        -------
        numpy.ndarray
            Shape ``layout.present_shape``, dtype ``layout.extra_dtype``.

        Raises
        ------
        ValueError
            If the layout has no side items.
        """
        if self.layout.extra_dtype is None:
            raise ValueError("side_items: the layout has none")
        extra = np.empty(self.layout.present_shape, self.layout.extra_dtype)
        for position in np.ndindex(self.layout.present_shape):
            items = self.items(*self._place(timestamp // self._time.step, position))
            extra[position] = tuple(
                (items[side.item] >> side.shift) % 2 ** int(side.dtype[1:]) for side in self._declaration.side_items
            )
        return extra

    def _place(self, first_batch: int, position: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """Batch and indices of the heap at a position of a chunk's ``present``."""
        coordinates = dict(zip(self.layout.axis_names, position, strict=True))
        return first_batch + coordinates[self._time.name], tuple(coordinates[axis.name] for axis in self._axes)

    # What is sent

    def _garbage(self, batch: int, indices: tuple[int, ...]) -> list[bytes]:
        """Packets of a heap of garbage in place of a good one, counted as what a receiver makes of it."""
        kind = self._random.choice(self._garbage_maker.kinds)
        if kind == "negative" and self._heaps_sent <= self.faults.reorder + self.faults.packet_reorder + 1:
            kind = "length"  # nothing is before 0 until the receiver knows what time it is
        payload = bytes(self.payload(batch, indices))
        reason, packets = self._garbage_maker.make(kind, self.items(batch, indices), payload)
        counters, key = (self.truth.unseen, kind) if reason is None else (self.truth.rejected, reason)
        counters[key] = counters.get(key, 0) + 1
        return packets

    def _heaps(self, batches: int | None, stop: Callable[[], bool] | None) -> Iterator[tuple[int, list[bytes]]]:
        """Flow and packets of each copy of a heap, in the order of time."""
        faults, rand, truth = self.faults, self._random.random, self.truth
        for n in itertools.count() if batches is None else range(batches):
            batch = self._next_batch
            if stop is not None and n and batch % self._time.batches == 0 and stop():
                return
            for flow, indices in enumerate(self.indices):
                self._heaps_begun += 1
                if rand() < faults.garbage:
                    yield flow, self._garbage(batch, indices)
                sent = complete = 0
                for _ in range(0 if rand() < faults.loss else 1 + (rand() < faults.duplicate)):
                    packets = self._encoder.heap(self.items(batch, indices), self.payload(batch, indices))
                    kept = [p for p in packets if rand() >= faults.packet_loss] if faults.packet_loss else packets
                    if kept:
                        sent += 1
                        complete += len(kept) == len(packets)
                        yield flow, kept
                source = 0 if self._source_axis is None else indices[self._source_axis]
                truth.sent[source] += sent
                truth.lost[source] += not sent
                truth.duplicated[source] += max(sent - 1, 0)
                truth.incomplete[source] += bool(sent and not complete)
                self._heaps_sent += sent
            self._next_batch += 1

    def packets(self, batches: int | None = None, *, stop: Callable[[], bool] | None = None) -> Iterator[Packet]:
        """Make the packets of the next batches, counting them in `truth`.

        The truth is exact once the iterator has ended: by then all that was delayed has come out.

        Parameters
        ----------
        batches
            Number of batches (default: no end).
        stop
            Asked before each chunk but the first; if it says True, no more heaps are made.

        Yields
        ------
        flow : int
            Position of the heap in its batch.
        packet : bytes
            The packet.
        """
        faults, rand = self.faults, self._random.random

        def heap_delay() -> int:
            late = faults.late_by if faults.late and rand() < faults.late else 0
            return late + int(rand() * (faults.reorder + 1))

        def packet_delay() -> int:
            return int(rand() * (faults.packet_reorder + 1))

        heaps = self._heaps(batches, stop)
        if faults.reorder or faults.late:
            heaps = _delay(heaps, heap_delay)
        packets: Iterator[Packet] = ((flow, packet) for flow, heap in heaps for packet in heap)
        if faults.packet_reorder:
            packets = _delay(packets, packet_delay)
        for flow, packet in packets:
            self.truth.packets += 1
            self.truth.bytes += len(packet)
            yield flow, packet

    def send(
        self,
        sink: Sink,
        batches: int | None = None,
        *,
        rate: float | None = None,
        speed: float | None = None,
        stop: Callable[[], bool] | None = None,
        clock: Clock | None = None,
    ) -> Truth:
        """Send the next batches.

        Parameters
        ----------
        sink
            Where to.
        batches
            Number of batches (default: no end).
        rate
            Bytes per second, on average over a few milliseconds (default: as fast as possible).
        speed
            How many times faster than in real time, as timestamps and the layout's ``tick_rate`` say; heaps that
            are lost take their time, too. Instead of `rate`.
        stop
            Asked before each chunk but the first; if it says True, sending ends with the chunk complete.
        clock
            What `rate` and `speed` refer to (default: a `WallClock`).

        Returns
        -------
        Truth
            All that this simulator has sent so far (`truth`).

        Raises
        ------
        ValueError
            If `rate` or `speed` is not positive and finite, both are given, or the layout has no ``tick_rate``.
        """
        self._check_pace(rate, speed)
        clock = WallClock() if clock is None else clock
        packets = self.packets(batches, stop=stop)
        if speed is not None:
            packets = self._at_speed(packets, clock, speed)
        elif rate is not None:
            packets = self._at_rate(packets, clock, rate)
        for flow, packet in packets:
            sink.send(flow, packet)
        return self.truth

    def _at_rate(self, packets: Iterable[Packet], clock: Clock, rate: float) -> Iterator[Packet]:
        """Let each packet take as long as it is, at so many bytes per second."""
        start, n_bytes = clock.now(), 0
        for flow, packet in packets:
            clock.wait_until(start + n_bytes / rate)
            yield flow, packet
            n_bytes += len(packet)
        clock.wait_until(start + n_bytes / rate)

    def _at_speed(self, packets: Iterable[Packet], clock: Clock, speed: float) -> Iterator[Packet]:
        """Let each heap take its share of the time of a batch, and spread its packets over that."""
        assert self._time.tick_rate is not None  # as check_pace has seen
        heap_seconds = self._time.step / self._time.tick_rate / len(self.indices) / speed
        start, before = clock.now(), self._heaps_begun
        begun, n_packets = 0, 0
        for flow, packet in packets:
            if begun != (begun := self._heaps_begun - before):
                n_packets = 0
            clock.wait_until(start + (begun - 1 + min(n_packets / self._heap_packets, 1)) * heap_seconds)
            yield flow, packet
            n_packets += 1
        clock.wait_until(start + (self._heaps_begun - before) * heap_seconds)

    def _check_pace(self, rate: float | None, speed: float | None) -> None:
        for name, value, unit in (("rate", rate, " of bytes per second"), ("speed", speed, "")):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}: {value} must be a positive number{unit}")
        if speed is not None and rate is not None:
            raise ValueError(f"speed: {speed} cannot be kept beside the rate {rate}: give one of them")
        if speed is not None and self._time.tick_rate is None:
            raise ValueError(f"speed: {speed} needs the time's tick_rate, which the layout does not say")


def _delay(things: Iterable[_T], delay: Callable[[], int]) -> Iterator[_T]:
    """Let each thing be overtaken by as many later ones as `delay` says."""
    waiting: list[tuple[int, int, _T]] = []
    for position, thing in enumerate(things):
        # The position makes the order of equals that of sending, and things are never compared.
        heapq.heappush(waiting, (position + delay(), position, thing))
        while waiting and waiting[0][0] <= position:
            yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]
