"""Simulate the senders of any declarative layout."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import spead2
import spead2.send

from speadrx.layout.base import DeclarativeLayout
from speadrx.layout.declaration import Axis, Send
from speadrx.layout.items import SPECIAL_ITEMS

from .blocks import WHOLE, Made, Packet, Packets, Templates, split
from .clock import SenderClock
from .faults import Faults, SendingOrder, Truth
from .garbage import GarbageMaker
from .pacing import AtOnce, AtRate, AtSpeed, Clock, Pace, WallClock, check_pace
from .packets import PacketEncoder, axis_items, axis_size, check_arguments
from .sinks import Sink, sending

#: Flavour of MeerKAT's streams: 16-bit item IDs, 48-bit addresses and immediate values.
DEFAULT_FLAVOUR = spead2.Flavour(4, 64, 48, 0)

#: Item that holds the payload by default.
DEFAULT_PAYLOAD_ITEM = 0x3300

# A payload is a section of one random pattern, from one of these offsets on. The number of offsets is prime, and the
# multiplier that scatters them is coprime to it, so 65521 successive heaps are all different.
_OFFSETS = 65521
_SCATTER = 40503

#: Packets that are made at a time: so many, or of so many bytes, and if there is a pace, those of so many seconds.
_BLOCK_PACKETS, _BLOCK_BYTES = 512, 1 << 21
_ONCE, _TWICE = (None,), (None, None)
_BLOCK_SECONDS = 0.01

_SideValue = Callable[[int, tuple[int, ...]], int]


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
        check_arguments(layout, self._user_data, self._side_values, timestamp_jitter)

        self._sizes = tuple(axis_size(axis) for axis in self._axes)
        self._pattern = np.frombuffer(np.random.default_rng(seed).bytes(layout.heap_bytes + _OFFSETS - 1), np.uint8)
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
        self._flow_source = [self._source_of(indices) for indices in self.indices]
        self._payload_items = [send.payload_items[i] if send.payload_items else None for i in self._flow_source]
        #: None if packets are made one by one.
        self._templates: Templates | None = None
        self._has_templates = False  # they take time, and not every simulator sends
        self._heaps_begun = 0  # including lost heaps

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
        offset: int = self._offset(self._linear(batch, indices))
        return self._pattern.data[offset : offset + self.layout.heap_bytes]

    @staticmethod
    def _offset(linear: Any) -> Any:
        """Where the payload of a heap, or of each of many, begins in the pattern."""
        return linear % _OFFSETS * _SCATTER % _OFFSETS

    def items(self, batch: int, indices: tuple[int, ...]) -> dict[int, int]:
        """Value of every item of a heap, by ID, without the items of the SPEAD protocol itself."""
        linear = self._linear(batch, indices)
        fixed = self._axis_items.get(indices)
        if fixed is None:  # the heap is from another stream of the group
            fixed = axis_items(self._axes, indices)
        stamp = self._clock.stamp(batch, self._source_of(indices))
        values = self._values(fixed, linear, stamp, lambda make: make(batch, indices))
        (time_item, *_) = values  # it goes first, whatever else has its ID
        return {time_item: 0, **self._items, **fixed, **values}

    def _values(
        self, fixed: Mapping[int, int], linear: Any, stamp: Any, side_value: Callable[[_SideValue], Any]
    ) -> dict[int, Any]:
        """Values of the items that are others in each heap, by ID: of one heap, or arrays for many.

        Parameters
        ----------
        fixed
            The items that place the heap on the axes.
        linear
            Number of the heap among all heaps.
        stamp
            Its timestamp.
        side_value
            Calls a user's function for the value of a side item.
        """
        if self._jitter:
            stamp = stamp + linear % (self._jitter + 1) * _SCATTER % (self._jitter + 1)
        # Where the time has several IDs, an axis may go by them.
        time_item = next((item for item in self._time.items if item in fixed), self._time.items[0])
        values = {time_item: self._clock.value(stamp)}
        for side in self._declaration.side_items:
            if side.item == time_item or side.item in fixed or side.item in SPECIAL_ITEMS:
                continue
            make = self._side_values.get(side.name)
            # With an odd 64-bit multiplier, the high bits change too.
            value = side_value(make) if make else linear * 0x9E3779B97F4A7C15
            # A side item is always 0 if it is shifted by more bits than a value has.
            room = max(min(int(side.dtype[1:]), self._encoder.address_bits - side.shift), 0)
            before = values.get(side.item, self._items.get(side.item, 0))
            values[side.item] = before | (value % 2**room) << side.shift
        return values

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
        return np.asarray(sections[self._offset(linear)])

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
        if kind == "negative" and sum(self.truth.sent) <= self.faults.reorder + self.faults.packet_reorder + 1:
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

    def _heap(self, flow: int, batch: int) -> list[Made]:
        """Make the packets of a heap."""
        indices, payload_item = self.indices[flow], self._payload_items[flow]
        payload = self.payload(batch, indices)
        heap = self._encoder.heap(self.items(batch, indices), payload, payload_item=payload_item)
        return [(flow, packet) for packet in heap]

    def _heap_maker(self, by_packet: bool) -> Callable[[int, int], list[Made]]:
        """How to make the packets of a heap of a flow and a batch: at once, or later, when many are made at a time."""
        if self._templates is None:
            return self._heap
        numbers = self._encoder.numbers
        if self._by_heap(by_packet):
            return lambda flow, batch: [(flow, next(numbers), batch, WHOLE)]

        def make(flow: int, batch: int) -> list[Made]:
            number = next(numbers)
            return [(flow, number, batch, part) for part in range(self._heap_packets)]

        return make

    def _by_heap(self, by_packet: bool) -> bool:
        """Whether the packets of a heap have nothing of their own."""
        faults = self.faults
        return not (by_packet or self._templates is None or faults.packet_loss or faults.packet_reorder)

    def _in_order(
        self, batches: int | None, stop: Callable[[], bool] | None, block: int, by_packet: bool
    ) -> Iterator[tuple[list[Made], list[int]]]:
        """Decide what is sent, and in what order: some packets at a time, and for each, if asked, the heaps begun.

        Before `stop` is called, all packets so far have been given.
        """
        order: SendingOrder[Made] = SendingOrder(self.faults, self._random.random)
        begun: list[int] | None = [] if by_packet else None
        make = self._heap_maker(by_packet)
        for flow, described in () if self._described else self._descriptors():
            order.send([(flow, packet) for packet in described])
        for n in itertools.count() if batches is None else range(batches):
            if stop is not None and n and self._next_batch % self._time.batches == 0:
                yield self._given(order, begun)
                if stop():
                    break
            for _ in self._batch(order, begun, make, block):
                yield self._given(order, begun)
            self._next_batch += 1
        order.end()
        yield self._given(order, begun)

    def _given(self, order: SendingOrder[Made], begun: list[int] | None) -> tuple[list[Made], list[int]]:
        """Take the packets whose turn it is, and when."""
        made = order.take()
        if begun is None:
            return made, []
        upto = begun + [self._heaps_begun] * (len(made) - len(begun))
        begun.clear()
        return made, upto

    def _batch(
        self,
        order: SendingOrder[Made],
        begun: list[int] | None,
        make: Callable[[int, int], list[Made]],
        block: int,
    ) -> Iterator[None]:
        """Send the heaps of a batch, with what goes wrong, and count them. Yields when there is a block of packets."""
        faults, truth, rand, present = self.faults, self.truth, self._random.random, self._present
        garbage, loss, duplicate, packet_loss = faults.garbage, faults.loss, faults.duplicate, faults.packet_loss
        batch, send, made = self._next_batch, order.send, order.made
        for flow, source in enumerate(self._flow_source):
            self._heaps_begun += 1
            if rand() < garbage:
                send([(flow, packet) for packet in self._garbage(batch, self.indices[flow])])
            sent = complete = 0
            if rand() >= loss and (present is None or present(batch, self.indices[flow])):
                for _ in _TWICE if rand() < duplicate else _ONCE:
                    heap = make(flow, batch)
                    kept = [packet for packet in heap if rand() >= packet_loss] if packet_loss else heap
                    if kept:
                        sent += 1
                        complete += len(kept) == len(heap)
                        send(kept)
            truth.sent[source] += sent
            if sent != 1 or not complete:
                truth.lost[source] += not sent
                truth.duplicated[source] += max(sent - 1, 0)
                truth.incomplete[source] += bool(sent and not complete)
            if begun is not None:
                begun += [self._heaps_begun] * (len(made) - len(begun))
            if len(made) >= block:
                yield

    def _blocks(
        self,
        batches: int | None,
        stop: Callable[[], bool] | None,
        *,
        block: int = _BLOCK_PACKETS,
        by_packet: bool = False,
    ) -> Iterator[tuple[Packets, list[int]]]:
        """Make the packets that are sent next, many at a time, and for each, if `by_packet`, the heaps begun."""
        if not self._has_templates:
            self._templates, self._has_templates = self._make_templates(), True
        if self._by_heap(by_packet):
            block = max(1, block // self._heap_packets)
        for made, begun in self._in_order(batches, stop, block, by_packet):
            if made:
                yield self._packets(made), begun

    def _make_templates(self) -> Templates | None:
        """Make headers that serve for all batches; None if packets have to be made one by one."""
        packets = self._declaration.packets
        own = self._payload is not None or (packets is not None and packets.items)  # encoded in ways of their own
        if own or self._clock.bits + self._time.shift > self._encoder.address_bits:
            return None
        items = [self.items(self._next_batch, indices) for indices in self.indices]
        heaps = list(zip(items, self._payload_items, strict=True))
        values = [self._values(self._axis_items[i], 0, 0, lambda make: 0) for i in self.indices]
        if any(value.keys() != values[0].keys() for value in values):
            return None
        self._numbered = spead2.HEAP_CNT_ID not in items[0]
        changing = {*values[0], spead2.HEAP_CNT_ID} if self._numbered else {*values[0]}
        self._batch_size = math.prod(self._sizes)
        self._flow_linear = np.array([self._linear(0, indices) for indices in self.indices], np.uint64)
        stamps = [self._clock.stamp(0, source) for source in self._flow_source]
        self._flow_stamp = np.array(stamps, np.uint64)
        try:
            return Templates(self._encoder, heaps, self.layout.heap_bytes, changing)
        except ValueError:
            return None

    def _packets(self, made: list[Made]) -> Packets:
        """Make packets of what was left for later, in the order of sending."""
        if self._templates is None:
            return Packets.whole(made)
        ready, where = split(made)
        columns = np.fromiter(itertools.chain.from_iterable(where), np.int64, 4 * len(where)).reshape(-1, 4)
        flow, number, batch, part = np.ascontiguousarray(columns.T)
        linear = batch.view(np.uint64) * self._batch_size + self._flow_linear[flow]
        stamp = batch.view(np.uint64) * self._time.step + self._flow_stamp[flow]
        indices = self.indices

        def side_value(make: _SideValue) -> np.ndarray:
            given = zip(batch.tolist(), flow.tolist(), strict=True)
            return np.array([make(batch, indices[flow]) % 2**64 for batch, flow in given], np.uint64)

        values = self._values(self._axis_items[indices[0]], linear, stamp, side_value)
        if self._numbered:
            counters = number.view(np.uint64) & (2**self._encoder.address_bits - 1)
            values = {spead2.HEAP_CNT_ID: counters, **values}
        return self._templates.packets(flow, part, values, self._offset(linear), self._pattern, ready)

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
        self._has_templates = False  # the origin of time may be another

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
        for block, _ in self._blocks(batches, stop):
            for flow, packet in block:
                self.truth.packets += 1
                self.truth.bytes += len(packet)
                yield flow, packet

    def send(
        self,
        sink: Sink | Sequence[Sink],
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
            Where packets go. If there are several, the sources are dealt out to them, and each sends in a thread of its
            own. What is sent is the same, and so is the order of the packets of a source.
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
            for `speed`; or if there are no sinks, or more than sources.
        """
        sinks = sink if isinstance(sink, Sequence) else [sink]
        sink_of_flow = self._deal(len(sinks))
        clock = WallClock() if clock is None else clock
        pace = self._pace(rate, speed, clock.now())
        most = max(_BLOCK_PACKETS, _BLOCK_BYTES * self._heap_packets // self.layout.heap_bytes)
        block = max(1, int(min(most, _BLOCK_SECONDS / max(pace.packet_seconds, 1e-12))))
        with sending(sinks, sink_of_flow) as give:
            for packets, begun in self._blocks(batches, stop, block=block, by_packet=speed is not None):
                sizes = packets.sizes
                self.truth.packets += len(packets)
                self.truth.bytes += int(sizes.sum())
                give(packets, pace.due(sizes, begun), clock)
        end = pace.end(self._heaps_begun)
        if end is not None:
            clock.wait_until(end)
        return self.truth

    def _deal(self, n_sinks: int) -> np.ndarray:
        """Deal out the sources to sinks; return the number of the sink for each flow."""
        sources = list(dict.fromkeys(self._flow_source))
        if not 1 <= n_sinks <= len(sources):
            raise ValueError(
                f"sink: {n_sinks}, but wanted at least 1 and at most the number of sources, {len(sources)}"
            )
        return np.array([sources.index(source) % n_sinks for source in self._flow_source])

    def _pace(self, rate: float | None, speed: float | None, start: float) -> Pace:
        check_pace(rate, speed, self._time.tick_rate)
        if rate is not None:
            return AtRate(rate, start, self.layout.heap_bytes / self._heap_packets)
        if speed is not None and self._time.tick_rate is not None:
            heap_seconds = self._time.step / self._time.tick_rate / len(self.indices) / speed
            return AtSpeed(heap_seconds, self._heap_packets, start, self._heaps_begun)
        return AtOnce()
