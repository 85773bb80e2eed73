"""Simulate the senders of any declarative layout."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import spead2
import spead2.send

from speadrx.layout.base import DeclarativeLayout
from speadrx.layout.declaration import Axis, Send
from speadrx.layout.items import SPECIAL_ITEMS

from .clock import SenderClock
from .faults import Faults, Truth
from .garbage import GarbageMaker
from .pacing import Clock, WallClock
from .packets import PacketEncoder, axis_items, axis_size
from .sinks import Packet, Sink

#: Flavour of MeerKAT's streams: 16-bit item IDs, 48-bit addresses and immediate values.
DEFAULT_FLAVOUR = spead2.Flavour(4, 64, 48, 0)

#: Item that holds the payload by default.
DEFAULT_PAYLOAD_ITEM = 0x3300

# A payload is a section of one random pattern, from one of these offsets on. The number of offsets is prime, and the
# multiplier that scatters them is coprime to it, so 65521 successive heaps are all different.
_OFFSETS = 65521
_SCATTER = 40503

_T = TypeVar("_T")


class Simulator:
    """The senders of one stream.

    Heaps are sent batch by batch, for all sources in turn. Each packet of a heap repeats all items of the heap. What
    is sent depends only on the arguments, never on the clock. When a simulator sends again, it goes on where it
    stopped.

    Parameters
    ----------
    layout
        Layout of the heaps.
    seed
        Seed of the payload and, together with `user_data`, of the faults.
    first_timestamp
        Timestamp of the first batch, in ticks: a multiple of the layout's time step, and its origin. Timestamps are
        sent modulo 2**48, or what the layout or the flavour says.
    faults
        What goes wrong.
    user_data
        Index on each axis that the layout takes from ``user_data``, by field.
    payload
        Makes the payload of a heap from its batch (timestamp / step) and its index on each axis, in the order of
        declaration. By default, payloads are sections of a random pattern.
    present
        Whether there is a heap at all, from the same. What is not there is not sent, and counts as lost. By default,
        all heaps are there.
    side_values
        Makes the value of each side item from batch and indices, by the item's name. By default, values are scattered.
    items
        Values of more items, by ID. Items that are not given here have the values of the layout's ``send.constants``,
        or are 0 if they are required.
    timestamp_jitter
        The largest number of ticks that is added to a timestamp, for layouts that round timestamps down.
    payload_item
        ID of the item that points to the payload (default: the layout's, or `DEFAULT_PAYLOAD_ITEM`).
    flavour
        SPEAD flavour (default: as the layout's ``send.flavour`` says, or `DEFAULT_FLAVOUR`).
    max_packet_size
        Largest size of a packet in bytes, including SPEAD header and items, without the UDP header (default: as the
        layout's ``send.packet_bytes`` says, or 1472).

    Raises
    ------
    ValueError
        If an argument does not fit the layout or flavour, or if axes that share an item cannot be told apart.

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
        present: Callable[[int, tuple[int, ...]], bool] | None = None,
        side_values: Mapping[str, Callable[[int, tuple[int, ...]], int]] | None = None,
        items: Mapping[int, int] | None = None,
        timestamp_jitter: int = 0,
        payload_item: int | None = None,
        flavour: spead2.Flavour | None = None,
        max_packet_size: int | None = None,
    ) -> None:
        self.layout = layout
        self.faults = faults if faults is not None else Faults()
        self._declaration = layout.declaration
        self._time = self._declaration.time
        self._axes = self._declaration.axes
        self._payload, self._present = payload, present
        self._side_values = dict(side_values or {})
        self._send = send = self._declaration.send or Send()
        self._items = {item: 0 for item in self._declaration.required_items if item not in SPECIAL_ITEMS}
        self._items |= {**send.constants, **(items or {})}
        self._jitter = timestamp_jitter
        self._user_data = dict(user_data or {})
        self._check_arguments()

        self._sizes = tuple(axis_size(axis) for axis in self._axes)
        pattern = np.random.default_rng(seed).bytes(layout.heap_bytes + _OFFSETS - 1)
        self._pattern = np.frombuffer(pattern, np.uint8)
        self._pattern_view = memoryview(pattern)
        self._random = random.Random(repr((seed, sorted(self._user_data.items()))))
        if payload_item is None:
            payload_item = self._declaration.payload_item or DEFAULT_PAYLOAD_ITEM
        if flavour is None:
            flavour = DEFAULT_FLAVOUR if send.flavour is None else spead2.Flavour(4, 64, send.flavour, 0)
        if max_packet_size is None:
            max_packet_size = send.packet_bytes or spead2.send.StreamConfig.DEFAULT_MAX_PACKET_SIZE
        packets_table = self._declaration.packets
        encodings = None if packets_table is None else packets_table.items
        self._encoder = PacketEncoder(flavour, payload_item, max_packet_size, send, encodings)
        self._described = not send.descriptors
        self._clock = SenderClock(self._time, first_timestamp, self._encoder.address_bits)
        self._next_batch = self._clock.batch(first_timestamp)
        #: Index on each axis of every heap of a batch, in the order of sending.
        self.indices: list[tuple[int, ...]] = list(itertools.product(*map(self._axis_range, self._axes)))
        self._axis_items = {indices: axis_items(self._axes, indices) for indices in self.indices}
        self._source_axis = next(
            (i for i, axis in enumerate(self._axes) if axis.name == self._declaration.sources), None
        )
        n_sources = 1 if self._source_axis is None else self._sizes[self._source_axis]
        #: What has been sent so far.
        self.truth = Truth([0] * n_sources, [0] * n_sources, [0] * n_sources, [0] * n_sources)
        # Encoding any heap checks the items. So a mistake is reported now, and not when the first packet is sent.
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
        self._heaps_begun = 0  # including lost heaps

    def _check_arguments(self) -> None:
        if self._jitter and not (self._time.align in ("floor", "mask") and 0 < self._jitter < self._time.step):
            raise ValueError(
                f"timestamp_jitter: {self._jitter} must be less than the time step ({self._time.step}), "
                'and the layout\'s time axis must have align="mask" or "floor"'
            )
        names = [item.name for item in self._declaration.side_items]
        for name in self._side_values:
            if name not in names:
                raise ValueError(f"side_values: the layout has no side item {name!r} (it has {names})")
        known = sorted(set(self.layout.user_data_dtype.names or ()) - {"stats_base"})
        for name in self._user_data:
            if name not in known:
                raise ValueError(f"user_data: {name!r} is not a field that the layout reads (it reads {known})")
        named = [(axis.name, axis.item) for axis in self._axes]
        for name, item in [*named, *((side.name, side.item) for side in self._declaration.side_items)]:
            if isinstance(item, str):
                raise ValueError(f"{name}: {item!r} is added to packets, and cannot be simulated")
        for axis in self._axes:
            if axis.payload_items is not None:
                raise ValueError(f"axis {axis.name!r}: payload items cannot be simulated")
            if axis.item in self._time.items:
                raise ValueError(
                    f"axis {axis.name!r}: shares item {axis.item:#x} with the time, which cannot be simulated"
                )
            if axis.from_user_data is not None:
                index = self._user_data.get(axis.from_user_data)
                if index is None:
                    raise ValueError(f"user_data: has no {axis.from_user_data!r}, the index on axis {axis.name!r}")
                if not 0 <= index < axis_size(axis):
                    raise ValueError(
                        f"user_data: {axis.from_user_data!r} is {index}, but must be from 0 to {axis_size(axis) - 1}"
                    )

    def _axis_range(self, axis: Axis) -> Iterable[int]:
        return range(axis_size(axis)) if axis.from_user_data is None else (self._user_data[axis.from_user_data],)

    # What heaps hold

    def _source_of(self, indices: tuple[int, ...]) -> int:
        return 0 if self._source_axis is None else indices[self._source_axis]

    def _linear(self, batch: int, indices: tuple[int, ...]) -> int:
        """Number the heap among all heaps."""
        for size, index in zip(self._sizes, indices, strict=True):
            batch = batch * size + index
        return batch

    def payload(self, batch: int, indices: tuple[int, ...]) -> bytes | memoryview:
        """Payload of a heap.

        Parameters
        ----------
        batch
            Timestamp divided by the layout's time step, rounded down.
        indices
            Index on each axis, in the order of declaration.
        """
        if self._payload is not None:
            payload = self._payload(batch, indices)
            if len(payload) != self.layout.heap_bytes:
                raise ValueError(f"payload: made {len(payload)} bytes, but heap_bytes is {self.layout.heap_bytes}")
            return payload
        offset = self._linear(batch, indices) * _SCATTER % _OFFSETS
        return self._pattern_view[offset : offset + self.layout.heap_bytes]

    def items(self, batch: int, indices: tuple[int, ...]) -> dict[int, int]:
        """Value of every item of a heap, by ID, without the items of the SPEAD protocol itself."""
        linear = self._linear(batch, indices)
        timestamp = self._clock.stamp(batch, self._source_of(indices))
        if self._jitter:
            timestamp += linear * _SCATTER % (self._jitter + 1)
        fixed = self._axis_items.get(indices)
        if fixed is None:  # the heap is from another stream of the group
            fixed = axis_items(self._axes, indices)
        # Where the time has several IDs, an axis may go by them.
        time_item = next((item for item in self._time.items if item in fixed), self._time.items[0])
        time = {time_item: self._clock.value(timestamp)}
        items = {**time, **self._items, **fixed, **time}  # it goes first, whatever else has its ID
        for side in self._declaration.side_items:
            if side.item == time_item or side.item in fixed or side.item in SPECIAL_ITEMS:
                continue
            make = self._side_values.get(side.name)
            # With an odd 64-bit multiplier, the high bits change too.
            value = make(batch, indices) if make else linear * 0x9E3779B97F4A7C15
            # A side item is always 0 if it is shifted by more bits than a value has.
            room = max(min(int(side.dtype[1:]), self._encoder.address_bits - side.shift), 0)
            items[side.item] = items.get(side.item, 0) | (value % 2**room) << side.shift
        return items

    def chunk_data(self, timestamp: int) -> np.ndarray:
        """Payloads of all heaps of a chunk, including heaps of other streams of the group.

        Parameters
        ----------
        timestamp
            Timestamp of the chunk, in ticks.

        Returns
        -------
        numpy.ndarray
            Unsigned bytes of shape ``layout.present_shape + (layout.heap_bytes,)``.
        """
        first = self._clock.batch(timestamp)
        if self._payload is not None:
            data = np.empty((*self.layout.present_shape, self.layout.heap_bytes), np.uint8)
            for position in np.ndindex(self.layout.present_shape):
                batch, indices = self._place(first, position)
                data[position] = np.frombuffer(self.payload(batch, indices), np.uint8)
            return data
        coordinates = dict(zip(self.layout.axis_names, np.indices(self.layout.present_shape, sparse=True), strict=True))
        # Modulo the number of offsets, since otherwise the number of a heap could overflow.
        linear = first % _OFFSETS + coordinates[self._time.name]
        for axis, size in zip(self._axes, self._sizes, strict=True):
            linear = linear * size % _OFFSETS + coordinates[axis.name]
        sections = np.lib.stride_tricks.sliding_window_view(self._pattern, self.layout.heap_bytes)
        return sections[linear * _SCATTER % _OFFSETS]

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
            items = self.items(*self._place(self._clock.batch(timestamp), position))
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
        """Make the packets of a heap of garbage, and count it as the receiver should."""
        kind = self._random.choice(self._garbage_maker.kinds)
        if kind == "negative" and self._heaps_sent <= self.faults.reorder + self.faults.packet_reorder + 1:
            kind = "length"  # until the receiver knows the time, no timestamp is before 0
        payload = bytes(self.payload(batch, indices))
        reason, packets = self._garbage_maker.make(kind, self.items(batch, indices), payload)
        counters, key = (self.truth.unseen, kind) if reason is None else (self.truth.rejected, reason)
        counters[key] = counters.get(key, 0) + 1
        return packets

    def _descriptors(self) -> Iterator[tuple[int, list[bytes]]]:
        """Describe the items, once in each flow: whoever sends data describes them."""
        self._described = True
        for flow, indices in enumerate(self.indices):
            items = self.items(self._next_batch, indices)
            self.truth.rejected["metadata_heaps"] = self.truth.rejected.get("metadata_heaps", 0) + 1
            yield flow, self._encoder.descriptors(items, self._declaration)

    def _heaps(self, batches: int | None, stop: Callable[[], bool] | None) -> Iterator[tuple[int, list[bytes]]]:
        """Make the flow and the packets of each copy of a heap, in the order of time."""
        faults, rand, truth = self.faults, self._random.random, self.truth
        if not self._described:
            yield from self._descriptors()
        for n in itertools.count() if batches is None else range(batches):
            batch = self._next_batch
            if stop is not None and n and batch % self._time.batches == 0 and stop():
                return
            for flow, indices in enumerate(self.indices):
                self._heaps_begun += 1
                if rand() < faults.garbage:
                    yield flow, self._garbage(batch, indices)
                source = self._source_of(indices)
                payload_item = self._send.payload_items[source] if self._send.payload_items else None
                sent = complete = 0
                is_lost = rand() < faults.loss or not (self._present is None or self._present(batch, indices))
                for _ in range(0 if is_lost else 1 + (rand() < faults.duplicate)):
                    data = self.payload(batch, indices)
                    packets = self._encoder.heap(self.items(batch, indices), data, payload_item=payload_item)
                    kept = [p for p in packets if rand() >= faults.packet_loss] if faults.packet_loss else packets
                    if kept:
                        sent += 1
                        complete += len(kept) == len(packets)
                        yield flow, kept
                truth.sent[source] += sent
                truth.lost[source] += not sent
                truth.duplicated[source] += max(sent - 1, 0)
                truth.incomplete[source] += bool(sent and not complete)
                self._heaps_sent += sent
            self._next_batch += 1

    def go_to(self, timestamp: int) -> None:
        """Go on with another batch: after a gap, or as senders do that were restarted.

        Parameters
        ----------
        timestamp
            Timestamp of the batch, in ticks, as for `first_timestamp`.

        Raises
        ------
        ValueError
            If no batch has that timestamp.
        """
        self._clock = SenderClock(self._time, timestamp, self._encoder.address_bits)
        self._next_batch = self._clock.batch(timestamp)

    def packets(self, batches: int | None = None, *, stop: Callable[[], bool] | None = None) -> Iterator[Packet]:
        """Make the packets of the next batches, and count them in `truth`.

        The truth is exact once the iterator has ended, because then all delayed packets have come out.

        Parameters
        ----------
        batches
            Number of batches. By default, the iterator does not end.
        stop
            Called before each chunk except the first. If it returns True, no more heaps are made.

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
            Where packets go.
        batches
            Number of batches. By default, sending does not end.
        rate
            Bytes per second, on average over a few milliseconds. The default is as fast as possible.
        speed
            How many times faster than real time, which follows from timestamps and the layout's ``tick_rate``. Lost
            heaps take their time too. Give it instead of `rate`.
        stop
            Called before each chunk except the first. If it returns True, sending ends there, after a whole chunk.
        clock
            The clock for `rate` and `speed`. The default is a `WallClock`.

        Returns
        -------
        Truth
            All that this simulator has sent so far (`truth`).

        Raises
        ------
        ValueError
            If `rate` or `speed` is not positive and finite, if both are given, or if the layout has no ``tick_rate``
            for `speed`.
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
        """Give each packet the time that its bytes take at the rate."""
        start, n_bytes = clock.now(), 0
        for flow, packet in packets:
            clock.wait_until(start + n_bytes / rate)
            yield flow, packet
            n_bytes += len(packet)
        clock.wait_until(start + n_bytes / rate)

    def _at_speed(self, packets: Iterable[Packet], clock: Clock, speed: float) -> Iterator[Packet]:
        """Give each heap its share of the time of a batch, and spread its packets over that time."""
        assert self._time.tick_rate is not None  # _check_pace has checked it
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
            raise ValueError(f"speed: {speed} cannot be combined with rate {rate}: give either speed or rate, not both")
        if speed is not None and self._time.tick_rate is None:
            raise ValueError(f"speed: {speed} needs a layout with a tick_rate, and this one has none: give rate")


def _delay(things: Iterable[_T], delay: Callable[[], int]) -> Iterator[_T]:
    """Let later things overtake each thing, as many as `delay` says."""
    waiting: list[tuple[int, int, _T]] = []
    for position, thing in enumerate(things):
        # The position keeps equals in the order of sending, so that things are never compared.
        heapq.heappush(waiting, (position + delay(), position, thing))
        while waiting and waiting[0][0] <= position:
            yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]
