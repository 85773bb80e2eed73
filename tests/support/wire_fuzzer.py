"""Hostile packets, mixed with good heaps, against running receivers: a program, and a part of the normal tests.

What is known of a hostile packet decides what can be asserted. Good heaps have sources and heap counts of their own; a
mutant that could pass for one of those, or that could move the window of a receiver, is not sent (`Mutator.clashes`
decodes it in any way in which a receiver might). Anything else may be rejected, placed, or never be seen, but good
heaps must arrive as if it were not there.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import gc
import itertools
import json
import logging
import pathlib
import random
import resource
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import spead2.recv

import speadrx
from addresses import own_port
from fault_reports import add_results
from guarded import FILL, GuardedBuffer
from handmade import SMALL, Heap, encode
from speadrx import Axis, Chunk, Layout, SideItem, TimeAxis
from speadrx.simulate.packets import axis_index, axis_items, axis_size

WINDOW = 3
CHUNKS = 8
#: Packets between two looks at whether they were received: few enough for any socket's buffer.
BURST = 48
#: Hostile packets for each good heap.
HOSTILITY = 4
#: Heap counts of good heaps have these bits set: several bits away from those of mutants.
GOOD_CNT = 0x5A << 24

LAYOUTS = {
    "small": SMALL,
    "padded": Layout(
        heap_bytes=64,
        time=TimeAxis(item=0x1600, step=4096, batches=4, align="mask"),
        axes=(Axis(name="beam", item=0x4101, shift=4, size=4), Axis(name="pol", item=0x4101, mask=1, size=2)),
        order=("pol", "beam", "time"),
        strides={"pol": 4 * 4 * 64 + 40, "beam": 4 * 64 + 8},
        sources="beam",
    ),
    "packets": Layout(
        heap_bytes=600,
        time=TimeAxis(item=0x1600, step=1_000_003, batches=3),
        axes=(Axis(name="antenna", item=0x4101, step=64, size=8),),
        side_items=(SideItem(name="status", item=0x4102, dtype="u64"), SideItem(name="flag", item=0x4103, dtype="u8")),
        sources="antenna",
    ),
    "many": Layout(
        heap_bytes=32,
        time=TimeAxis(item=0x1600, step=2**21, batches=2),
        axes=(Axis(name="antenna", item=0x4101, size=80),),
        required_items=(0x4104, 0x4105),
        sources="antenna",
    ),
}
N_PACKETS = {"packets": 3}


def is_good_source(source: int) -> bool:
    """Whether good heaps have this source: two of three, so that a majority of sources keeps the time."""
    return source % 3 != 2


class Mutator:
    """Makes hostile packets.

    Parameters
    ----------
    layout
        Layout of the heaps that mutants are made of.
    n_packets
        Packets of such a heap.
    rng
        Decides everything.
    """

    def __init__(self, layout: Layout, n_packets: int, rng: random.Random) -> None:
        self._layout = layout
        self._n_packets = n_packets
        self._random = rng
        self._time_item = layout.declaration.time.item
        (self._source_axis,) = (axis for axis in layout.declaration.axes if axis.name == layout.declaration.sources)
        self._mutations: list[Callable[[list[bytes]], list[bytes]]] = [
            self._flip_header_bits,
            self._flip_header_bits,
            self._flip_any_bits,
            self._truncate,
            self._extend,
            self._hostile_item_count,
            self._hostile_values,
            self._hostile_values,
            self._hostile_extent,
            self._hostile_extent,
            self._flip_immediate,
            self._repeat_item,
            self._remove_item,
            self._shuffle_items,
            self._other_widths,
            self._other_magic,
            self._spoil_payload,
            self._lose_packets,
            self._repeat_packets,
            self._twice,
        ]
        self.counts: collections.Counter[str] = collections.Counter()

    def make(self, front: int) -> list[bytes]:
        """Make the packets of a mutant, or noise; `front` is the timestamp of the newest good heap."""
        while True:
            if self._random.random() < 0.15:
                name, packets = "noise", [self._noise()]
            else:
                mutation = self._random.choice(self._mutations)
                name, packets = mutation.__name__.strip("_"), mutation(self._decoy(front))
            # spead2's in-process reader takes an empty packet for the one before it.
            if all(packets) and not any(self.clashes(packet, front) for packet in packets):
                self.counts[name] += len(packets)
                return packets
            self.counts["not sent"] += len(packets)

    def clashes(self, packet: bytes, front: int) -> bool:
        """Whether a packet could be taken for part of a good heap, or move the window."""
        if len(packet) < 8 or packet[:2] != b"\x53\x04" or packet[2] + packet[3] != 8 or not packet[2] or not packet[3]:
            return False
        address_bits = 8 * packet[3]
        (n_items,) = struct.unpack_from(">H", packet, 6)
        if len(packet) < 8 + 8 * n_items:
            return False
        # Of repeated items any may count, and which items count as immediate is left open.
        items = [
            (pointer >> address_bits & (1 << 63 - address_bits) - 1, pointer & (1 << address_bits) - 1)
            for pointer in struct.unpack_from(f">{n_items}Q", packet, 8)
        ]
        for item, value in items:
            if item == spead2.HEAP_CNT_ID and value & GOOD_CNT == GOOD_CNT and value < 1 << 32:
                return True
            if item == self._source_axis.item:
                source = axis_index(self._source_axis, value)
                if source is not None and is_good_source(source):
                    return True
            if item == self._time_item and value < 1 << 48 and self._moves_window(value, front):
                return True
        return False

    def _moves_window(self, value: int, front: int) -> bool:
        step = self._layout.chunk_timestamp_step
        newest = front // step * step
        ahead = (value - newest) % 2**48 // step
        if ahead == 0 or ahead >= 2**47 // step:  # of the newest chunk, or older
            return False
        return ahead < 4 * WINDOW

    def _decoy(self, front: int) -> list[bytes]:
        """Packets of a heap that is good but for its source and count."""
        declaration = self._layout.declaration
        choice = self._random.randrange
        indices = [choice(axis_size(axis)) for axis in declaration.axes]
        for i, axis in enumerate(declaration.axes):
            if axis is self._source_axis:
                indices[i] = choice(2, axis_size(axis), 3)
        chunk = front // self._layout.chunk_timestamp_step - choice(2)
        batch = max(chunk, 0) * declaration.time.batches + choice(declaration.time.batches)
        items = {
            self._time_item: batch * declaration.time.step % 2**48,
            spead2.HEAP_LENGTH_ID: declaration.heap_bytes,
            **axis_items(declaration.axes, indices),
            **{side.item: self._random.getrandbits(40) for side in declaration.side_items},
            **dict.fromkeys(declaration.required_items, 1),
        }
        heap = Heap(items, self._random.randbytes(declaration.heap_bytes), (0x4300,), self._n_packets)
        return encode(heap, choice(1 << 24), 48, self._random if choice(2) else None)

    def _number(self) -> int:
        choice = self._random.randrange
        match choice(5):
            case 0:
                return choice(10)
            case 1:
                return (1 << choice(64)) + choice(-2, 3) & 2**64 - 1
            case 2:
                return self._layout.heap_bytes + choice(-9, 10) & 2**64 - 1
            case 3:
                return choice(1 << 17)
            case _:
                return self._random.getrandbits(64)

    def _edit(self, packets: list[bytes], edit: Callable[[list[int]], list[int] | None]) -> list[bytes]:
        """Change the item pointers of one packet."""
        at = self._random.randrange(len(packets))
        packet = packets[at]
        (n_items,) = struct.unpack_from(">H", packet, 6)
        pointers = list(struct.unpack_from(f">{n_items}Q", packet, 8))
        pointers = edit(pointers) or pointers
        head = packet[:6] + struct.pack(f">H{len(pointers)}Q", len(pointers), *pointers)
        packets[at] = head + packet[8 + 8 * n_items :]
        return packets

    def _flip(self, packets: list[bytes], limit: Callable[[bytes], int]) -> list[bytes]:
        at = self._random.randrange(len(packets))
        packet = bytearray(packets[at])
        for _ in range(self._random.choice((1, 1, 1, 2, 3, 8))):
            bit = self._random.randrange(8 * limit(packets[at]))
            packet[bit // 8] ^= 1 << bit % 8
        packets[at] = bytes(packet)
        return packets

    def _flip_header_bits(self, packets: list[bytes]) -> list[bytes]:
        return self._flip(packets, lambda packet: 8 + 8 * packet[7])

    def _flip_any_bits(self, packets: list[bytes]) -> list[bytes]:
        return self._flip(packets, len)

    def _truncate(self, packets: list[bytes]) -> list[bytes]:
        at = self._random.randrange(len(packets))
        packets[at] = packets[at][: self._random.randrange(len(packets[at]))]
        return packets

    def _extend(self, packets: list[bytes]) -> list[bytes]:
        packets[-1] += self._random.randbytes(self._random.randrange(1, 200))
        return packets

    def _hostile_item_count(self, packets: list[bytes]) -> list[bytes]:
        at = self._random.randrange(len(packets))
        packet = packets[at]
        count = self._random.choice(
            (0, 1, packet[7] - 1, packet[7] + 1, 0x7FFF, 0xFFFF, self._random.randrange(1 << 16))
        )
        packets[at] = packet[:6] + struct.pack(">H", count) + packet[8:]
        return packets

    def _hostile_values(self, packets: list[bytes]) -> list[bytes]:
        def edit(pointers: list[int]) -> None:
            for _ in range(self._random.randrange(1, 4)):
                at = self._random.randrange(len(pointers))
                pointers[at] = pointers[at] >> 48 << 48 | self._number() & 2**48 - 1

        return self._edit(packets, edit)

    def _hostile_extent(self, packets: list[bytes]) -> list[bytes]:
        """Change what a packet says of where its payload belongs, and how long it is and its heap."""
        extent = (spead2.HEAP_LENGTH_ID, spead2.PAYLOAD_OFFSET_ID, spead2.PAYLOAD_LENGTH_ID)
        chosen = self._random.sample(extent, self._random.randrange(1, 4))

        def edit(pointers: list[int]) -> None:
            for at, pointer in enumerate(pointers):
                if pointer >> 48 & 0x7FFF in chosen:
                    pointers[at] = pointer >> 48 << 48 | self._number() & 2**48 - 1

        return self._edit(packets, edit)

    def _flip_immediate(self, packets: list[bytes]) -> list[bytes]:
        def edit(pointers: list[int]) -> None:
            pointers[self._random.randrange(len(pointers))] ^= 1 << 63

        return self._edit(packets, edit)

    def _repeat_item(self, packets: list[bytes]) -> list[bytes]:
        def edit(pointers: list[int]) -> None:
            for _ in range(self._random.choice((1, 1, 2, 40))):
                pointer = self._random.choice(pointers)
                if self._random.randrange(2):
                    pointer = pointer >> 48 << 48 | self._number() & 2**48 - 1
                pointers.insert(self._random.randrange(len(pointers) + 1), pointer)

        return self._edit(packets, edit)

    def _remove_item(self, packets: list[bytes]) -> list[bytes]:
        def edit(pointers: list[int]) -> list[int]:
            return self._random.sample(pointers, self._random.randrange(1, len(pointers)))

        return self._edit(packets, edit)

    def _shuffle_items(self, packets: list[bytes]) -> list[bytes]:
        return self._edit(packets, self._random.shuffle)

    def _other_widths(self, packets: list[bytes]) -> list[bytes]:
        """Another flavour, of the same bits: IDs and values are cut elsewhere."""
        address = self._random.randrange(10)
        widths = bytes((max(8 - address, 0), address)) if self._random.randrange(4) else self._random.randbytes(2)
        return [packet[:2] + widths + packet[4:] for packet in packets]

    def _other_magic(self, packets: list[bytes]) -> list[bytes]:
        magic = self._random.choice((b"\x53\x03", b"\x53\x05", b"\x00\x04", self._random.randbytes(2)))
        return [magic + packet[2:] for packet in packets]

    def _spoil_payload(self, packets: list[bytes]) -> list[bytes]:
        """Change bytes that no receiver can tell from good ones."""
        return [
            packet[: 8 + 8 * packet[7]] + self._random.randbytes(len(packet) - 8 - 8 * packet[7]) for packet in packets
        ]

    def _lose_packets(self, packets: list[bytes]) -> list[bytes]:
        return self._random.sample(packets, self._random.randrange(1, len(packets) + 1))

    def _repeat_packets(self, packets: list[bytes]) -> list[bytes]:
        return self._random.choices(packets, k=self._random.randrange(1, 5))

    def _twice(self, packets: list[bytes]) -> list[bytes]:
        """Mutate what is mutated already, where that can still be edited."""
        packets = self._hostile_extent(packets)
        return self._flip_header_bits(packets)

    def _noise(self) -> bytes:
        choice = self._random.randrange
        match choice(3):
            case 0:
                return self._random.randbytes(choice(1500))
            case 1:  # plausible up to its items
                n_items = choice(20)
                header = struct.pack(">4BHH", 0x53, 4, 2, 6, 0, n_items)
                return header + self._random.randbytes(8 * n_items + choice(40))
            case _:  # items of the protocol with any values
                pointers = [choice(2) << 63 | choice(8) << 48 | self._number() & 2**48 - 1 for _ in range(choice(12))]
                header = struct.pack(">4BHH", 0x53, 4, 2, 6, 0, len(pointers))
                return header + struct.pack(f">{len(pointers)}Q", *pointers) + self._random.randbytes(choice(64))


@dataclass
class Report:
    """What became of a run."""

    layout: str
    transport: str
    hostile_packets: int = 0
    good_heaps: int = 0
    placed: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    too_old: int = 0
    unfinished: int = 0
    #: Good heaps that did not arrive, and heaps that nobody accounts for.
    lost: int = 0
    residual: int = 0
    kinds: dict[str, int] = field(default_factory=dict)


class Target:
    """A running receiver, the good heaps that it must receive, and the mutants that must not hinder it.

    Parameters
    ----------
    name
        Key of `LAYOUTS`.
    transport
        ``"inproc"``, ``"udp"``, or ``"group"``: a group of two streams with a queue each.
    rng
        Decides everything.
    exact
        Allocate buffers of exactly the size that is needed, for a sanitizer to watch, rather than guard regions.
    """

    def __init__(self, name: str, transport: str, rng: random.Random, *, exact: bool = False) -> None:
        self.layout = LAYOUTS[name]
        self.report = Report(name, transport)
        self._n_packets = N_PACKETS.get(name, 1)
        self._random = rng
        self._mutator = Mutator(self.layout, self._n_packets, rng)
        self._payloads = np.frombuffer(rng.randbytes(256 * self.layout.heap_bytes), np.uint8).reshape(256, -1)
        self._shape = self.layout.present_shape
        declaration = self.layout.declaration
        self._order = declaration.axis_names
        self._good = self._good_slots()
        self._heap_cnt = itertools.count()
        self._first_chunk = rng.choice((0, 1, 1000, 2**48 // self.layout.chunk_timestamp_step - 20))
        self._chunk = self._first_chunk
        self._received: list[int] = []
        self._guards: list[GuardedBuffer] = []
        slots = np.zeros(self.layout.chunk_bytes, np.uint8)
        self.layout.view(slots)[...] = 1
        self._gaps = np.flatnonzero(slots == 0)
        self._stack = contextlib.ExitStack()
        self._start(transport, exact)

    def _good_slots(self) -> np.ndarray:
        source_axis = self._order.index(self.layout.declaration.sources or "")
        indices = np.indices(self._shape).reshape(len(self._shape), -1)
        return np.array([is_good_source(int(source)) for source in indices[source_axis]])

    def _start(self, transport: str, exact: bool) -> None:
        arguments: dict[str, Any] = {
            "layout": self.layout,
            "max_active_chunks": WINDOW,
            "data_ringbuffer": spead2.recv.ChunkRingbuffer(CHUNKS),
            "free_ringbuffer": spead2.recv.ChunkRingbuffer(CHUNKS),
            "stop_on_stop_item": False,
            "allow_out_of_order": self._n_packets > 1,
            # Without this, spead2 writes in ways of its own, which no sanitizer watches.
            **({"memcpy": spead2.MEMCPY_STD} if exact else {}),
        }
        if transport == "group":
            self.stream: Any = speadrx.make_stream_group(affinity=[-1, -1], **arguments)
            self._members = [self.stream[0], self.stream[1]]
        else:
            self.stream = speadrx.make_stream(**arguments)
            self._members = [self.stream]
        self._stack.callback(self.stream.stop)
        for _ in range(CHUNKS):
            self._add_chunk(exact)
        self._sends: list[Callable[[bytes], object]] = []
        for member in self._members:
            if transport == "udp":
                self._sends.append(self._connect(member))
            else:
                queue = spead2.InprocQueue()
                self._stack.callback(queue.stop)
                member.add_inproc_reader(queue)
                self._sends.append(queue.add_packet)
        self._iterator = speadrx.iter_chunks(self.stream)
        executor = self._stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
        self._stack.callback(self.stream.stop)  # before the executor waits for the consumer
        self._consumer = executor.submit(self._consume)

    def _add_chunk(self, exact: bool) -> None:
        def buffer(n_bytes: int) -> np.ndarray:
            if exact:
                return np.full(n_bytes, FILL, np.uint8)
            self._guards.append(GuardedBuffer(n_bytes))
            return self._guards[-1].inside

        present = buffer(self.layout.chunk_heaps)
        present[:] = 0
        extra = buffer(self.layout.chunk_heaps * self.layout.max_heap_extra) if self.layout.max_heap_extra else None
        chunk = Chunk(sink=self.stream, data=buffer(self.layout.chunk_bytes), present=present, extra=extra)
        chunk.recycle()

    def _connect(self, stream: Any) -> Callable[[bytes], object]:
        port = own_port()
        speadrx.add_reader(stream, src=[("127.0.0.1", port)], buffer=2**22)
        sock = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.connect(("127.0.0.1", port))
        return sock.send

    def _consume(self) -> None:
        for chunk in self._iterator:
            with chunk:
                self._check(chunk)
                chunk.data[:] = FILL

    def _check(self, chunk: Chunk) -> None:
        number = chunk.timestamp // self.layout.chunk_timestamp_step
        if number < self._first_chunk:
            return  # has nothing but mutants
        present = chunk.present.reshape(-1).astype(bool)
        missing = np.flatnonzero(self._good & ~present)
        assert not missing.size, f"chunk {number} lacks good heaps {missing}"
        heaps = np.ascontiguousarray(self.layout.view(chunk.data)).view(np.uint8).reshape(-1, self.layout.heap_bytes)
        wanted = self._payloads[(np.arange(len(present)) + number * 7) % 256]
        at = self._good & present
        wrong = np.flatnonzero((heaps[at] != wanted[at]).any(axis=1))
        assert not wrong.size, f"chunk {number} has wrong data in good heaps {np.flatnonzero(at)[wrong]}"
        assert (chunk.data[self._gaps] == FILL).all(), f"chunk {number} was written to between its slots"
        if chunk.extra is not None:
            record = self.layout.extra_dtype
            extra = chunk.extra.reshape(-1).view(record)
            for side in self.layout.declaration.side_items:
                sent = np.array([self._side_value(number, int(slot)) for slot in np.flatnonzero(at)])
                stored = sent.astype(record[side.name])
                np.testing.assert_array_equal(extra[side.name][at], stored)
        self._received.append(number)

    @staticmethod
    def _side_value(chunk: int, slot: int) -> int:
        return (chunk * 3 + slot) % 2**16

    def _good_heap(self, slot: int) -> list[bytes]:
        declaration = self.layout.declaration
        position = dict(zip(self._order, np.unravel_index(slot, self._shape), strict=True))
        batch = self._chunk * declaration.time.batches + int(position[declaration.time.name])
        items = {
            declaration.time.item: batch * declaration.time.step % 2**48,
            spead2.HEAP_LENGTH_ID: declaration.heap_bytes,
            **axis_items(declaration.axes, [int(position[axis.name]) for axis in declaration.axes]),
            **{side.item: self._side_value(self._chunk, slot) << side.shift for side in declaration.side_items},
            **dict.fromkeys(declaration.required_items, 1),
        }
        payload = self._payloads[(slot + self._chunk * 7) % 256].tobytes()
        cnt = GOOD_CNT | next(self._heap_cnt) % 2**24
        self.report.good_heaps += 1
        return encode(Heap(items, payload, (0x4300,), self._n_packets), cnt, 48, self._random)

    def send_chunk(self, hostility: int = HOSTILITY) -> None:
        """Send the good heaps of one chunk, with hostile packets in between, and wait until they were received."""
        slots = [int(slot) for slot in np.flatnonzero(self._good)]
        self._random.shuffle(slots)
        since = 0
        front = self._chunk * self.layout.chunk_timestamp_step
        for i, slot in enumerate(slots):
            send = self._sends[slot % len(self._sends)]
            for packet in self._good_heap(slot):
                send(packet)
                since += 1
            # Before a good heap has moved the window, mutants could not know where it is.
            for _ in range(hostility):
                for packet in self._mutator.make(front):
                    with contextlib.suppress(ConnectionRefusedError):
                        self._random.choice(self._sends)(packet)
                    self.report.hostile_packets += 1
                    since += 1
            if since >= BURST or i == len(slots) - 1:
                self._wait()
                since = 0
        self._chunk += 1

    def _wait(self) -> None:
        """Wait until all good heaps sent so far were seen, and so all that was sent before them."""
        deadline = time.monotonic() + 60
        while (placed := self._placed_good()) < self.report.good_heaps:
            if self._consumer.done():
                self._consumer.result()
            assert time.monotonic() < deadline, (
                f"{placed} of {self.report.good_heaps} good heaps came; "
                f"the kernel dropped {self.stream.kernel_drops()} packets"
            )
            time.sleep(0.0002)

    def _placed_good(self) -> int:
        placed = self.stream.ledger.snapshot().placed_by_source
        return sum(int(n) for source, n in enumerate(placed) if is_good_source(source))

    def finish(self) -> Report:
        """End the stream, after some chunks of good heaps alone, and check all that can be known."""
        for _ in range(2 * WINDOW):
            self.send_chunk(hostility=0)
        self.stream.drain()
        self._consumer.result(60)
        stats = [member.stats for member in self._members]
        ledger = self.stream.ledger.snapshot()
        present = self._iterator.accounting.present_by_source
        report = self.report
        assert self._received == list(range(self._first_chunk, self._chunk)), "chunks are missing, or out of order"
        for source, placed in enumerate(ledger.placed_by_source):
            if is_good_source(source):
                sent = self._good_of * (self._chunk - self._first_chunk)
                assert placed == sent, f"source {source}: {placed} heaps placed, {sent} sent"
                assert present[source] == self._good_of * len(self._received)
                assert ledger.duplicates_by_source[source] == 0
        assert ledger.rejected["internal_error_heaps"] == 0

        def total(name: str) -> int:
            return sum(int(stat[name]) for stat in stats)

        for reason, n in ledger.rejected.items():
            assert total(f"speadrx.{reason}") == n
        assert total("rejected_heaps") == sum(ledger.rejected.values())  # and no control heap
        report.placed, report.rejected, report.duplicates = ledger.placed, ledger.rejected, ledger.duplicates
        report.too_old = total("too_old_heaps")
        report.lost = report.good_heaps - sum(int(n) for source, n in enumerate(present) if is_good_source(source))
        report.unfinished = ledger.placed - int(present.sum()) - ledger.duplicates - report.too_old
        incomplete = total("incomplete_heaps_evicted") + total("incomplete_heaps_flushed")
        # Copies that different members of a group got are duplicates that none knows of.
        report.residual = -report.unfinished if report.unfinished < 0 else 0
        if len(self._members) == 1:
            report.residual = max(report.residual, report.unfinished - incomplete)
        assert report.residual == 0, f"{report.unfinished} unfinished heaps, {incomplete} incomplete"
        assert self.stream.kernel_drops() == 0
        for guard in self._guards:
            guard.check_guards()
        report.kinds = dict(self._mutator.counts)
        return report

    @property
    def _good_of(self) -> int:
        """Good heaps of a good source in each chunk."""
        return self.layout.chunk_heaps // len(self.layout.source_labels)

    def close(self) -> None:
        """Stop everything."""
        self._stack.close()


def run(name: str, transport: str, packets: int, seed: int, *, exact: bool = False) -> Report:
    """Send at least so many hostile packets to a receiver of a layout.

    Raises
    ------
    AssertionError
        If the receiver lost a good heap, wrote anywhere it should not, or lost count.
    """
    target = Target(name, transport, random.Random(f"{seed} {name} {transport}"), exact=exact)
    try:
        while target.report.hostile_packets < packets:
            target.send_chunk()
        return target.finish()
    finally:
        target.close()


TRANSPORTS = ("inproc", "udp", "group")

#: By how much memory may grow once everything was allocated (a sanitizer, though, keeps what was freed).
GROWTH = 0.02


def overrun() -> None:
    """Have spead2 write one byte beyond the data of a chunk, which a sanitizer must find."""
    layout = LAYOUTS["small"]
    rings = [spead2.recv.ChunkRingbuffer(1) for _ in range(2)]
    stream = speadrx.make_stream(
        layout=layout, max_active_chunks=1, data_ringbuffer=rings[0], free_ringbuffer=rings[1], memcpy=spead2.MEMCPY_STD
    )
    n_heaps = layout.chunk_heaps
    chunk = spead2.recv.Chunk(  # speadrx's own would refuse it
        data=np.zeros(layout.chunk_bytes - 1, np.uint8),
        present=np.zeros(n_heaps, np.uint8),
        extra=np.zeros(n_heaps, layout.extra_dtype),
    )
    rings[1].put(chunk)
    queue = spead2.InprocQueue()
    for packet in encode(Heap({0x10: 48, 2: 4, 0x20: 5 << 1, 0x30: 0, 0x40: 0}, b"last"), 1, 48):
        queue.add_packet(packet)
    queue.stop()
    stream.add_inproc_reader(queue)
    rings[0].get()
    stream.stop()


def _rss() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def rounds(packets: int, per_round: int, seed: int, exact: bool) -> Iterator[Report]:
    """Run against all layouts over all transports, again and again, until so many hostile packets were sent."""
    for i in itertools.count():
        for name, transport in itertools.product(LAYOUTS, TRANSPORTS):
            report = run(name, transport, min(per_round, packets), seed + i, exact=exact)
            packets -= report.hostile_packets
            yield report
            if packets <= 0:
                return


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program, and print a report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packets", type=int, default=1_000_000, help="hostile packets (default: %(default)s)")
    parser.add_argument(
        "--per-round", type=int, default=20_000, help="of these, to one receiver (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="start of the random numbers (default: %(default)s)")
    parser.add_argument("--fault-results", metavar="PATH", help="add the result to this file, for the table of faults")
    parser.add_argument("--short", action="store_true", help="receive into chunks that are a byte short, and no more")
    parser.add_argument("--exact", action="store_true", help="buffers without guard regions, for a sanitizer to watch")
    args = parser.parse_args(arguments)
    logging.getLogger("spead2").setLevel(logging.ERROR)  # a line for every packet that does not decode
    if args.short:
        overrun()
        return 0
    begin = time.monotonic()
    totals: collections.Counter[str] = collections.Counter()
    rejected: collections.Counter[str] = collections.Counter()
    kinds: collections.Counter[str] = collections.Counter()
    memory = []
    for report in rounds(args.packets, args.per_round, args.seed, args.exact):
        for key in (
            "hostile_packets",
            "good_heaps",
            "placed",
            "duplicates",
            "too_old",
            "unfinished",
            "lost",
            "residual",
        ):
            totals[key] += getattr(report, key)
        rejected.update({reason: n for reason, n in report.rejected.items() if n})
        kinds.update(report.kinds)
        gc.collect()
        memory.append(_rss())
        print(f"{report.layout} {report.transport}: {report.hostile_packets} hostile packets", file=sys.stderr)
    # Everything was allocated once after a round of everything.
    warm = memory[min(len(LAYOUTS) * len(TRANSPORTS), len(memory)) - 1]
    grows = memory[-1] > warm * (1 + GROWTH) and not args.exact
    summary = {
        **totals,
        "rejected": rejected,
        "kinds": kinds,
        "receivers": len(memory),
        "rss_warm": warm,
        "rss_end": memory[-1],
        "seconds": round(time.monotonic() - begin, 1),
    }
    print(json.dumps(summary, indent=2))
    if args.fault_results is not None:
        note = f"{totals['hostile_packets']} hostile packets in {len(memory)} receivers"
        result = {"sent": totals["good_heaps"], "lost": totals["lost"], "residual": totals["residual"], "note": note}
        outcome = "failed" if grows else "passed"
        tests = {"tests/support/wire_fuzzer.py::wire_fuzzer": {"rows": [13], "outcome": outcome, "reports": [result]}}
        add_results(pathlib.Path(args.fault_results), tests)
    if grows:
        print("memory grows with every receiver", file=sys.stderr)
    return int(grows)


if __name__ == "__main__":
    sys.exit(main())
