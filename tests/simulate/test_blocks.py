"""Packets that are made many at a time, and handed to the kernel together, are those that were meant."""

import dataclasses
import hashlib
import heapq
import itertools
import random
import socket
import struct

import numpy as np
import pytest

from speadrx.layout import Axis, Layout, SideItem, TimeAxis
from speadrx.layout import Packets as Mended
from speadrx.simulate import GARBAGE_KINDS, Faults, Packets, Simulator, UdpSink, VirtualClock
from speadrx.simulate.faults import SendingOrder
from speadrx.simulate.sinks import BURST_BYTES, BURST_SECONDS, _bursts

LAYOUT = Layout(
    heap_bytes=192,
    time=TimeAxis(item=0x1600, step=100, batches=4),
    axes=(
        Axis(name="antenna", item=0x3101, shift=1, mask=0xFF, size=3),
        Axis(name="pol", item=0x3101, mask=1, size=2),
        Axis(name="band", item=0x4103, values=(7, 3, 90)),
    ),
    order=("band", "time", "pol", "antenna"),
    side_items=(
        SideItem(name="level", item=0x3102, shift=32, dtype="u16"),
        SideItem(name="flags", item=0x3102, shift=8, dtype="u8"),
        SideItem(name="digitiser", item=0x3101, dtype="u32"),
    ),
    required_items=(0x4104,),
    sources="antenna",
)
LONG = dataclasses.replace(LAYOUT, time=TimeAxis(item=0x1600, step=64, batches=4, align="mask"), heap_bytes=1000)
PLAIN = Layout(
    heap_bytes=1000,
    payload_item=0x4300,
    time=TimeAxis(item=0x1600, step=10, batches=8),
    axes=(Axis(name="source", item=0x4101, size=3),),
    sources="source",
)
#: Receivers mend its packets, which are sent as those of any other.
MENDED = dataclasses.replace(PLAIN, packets=Mended(heap_counter="sender"))
ALL = Faults(loss=0.05, reorder=30, duplicate=0.05, garbage=0.3)
#: Of what was sent by the first simulator, which made packets one by one.
DIGESTS = {
    "no faults": (Faults(), "a40da4a066b45c6d", "ccb7dcb3a95ae7f2"),
    "heaps": (ALL, "4ba246cf66887738", "323b5fd9fee342de"),
    "packets": (
        Faults(packet_loss=0.01, reorder=3, packet_reorder=20, duplicate=0.1, garbage=0.1),
        "d1a52f6de72cb2b6",
        "0944a533b48ad4f8",
    ),
    "late": (Faults(late=0.02, late_by=400, reorder=10), "3d0fed816b341750", "0b73aed03e8cc804"),
}


def digest(simulator: Simulator) -> str:
    found = hashlib.sha256()
    for _ in range(3):
        for flow, packet in simulator.packets(13):
            found.update(f"{flow}:{len(packet)}:".encode() + packet)
    found.update(repr(simulator.truth).encode())
    return found.hexdigest()[:16]


@pytest.mark.parametrize(("faults", "short", "long"), DIGESTS.values(), ids=DIGESTS)
def test_same_seed_makes_the_same_packets_as_ever(faults, short, long):
    assert digest(Simulator(LAYOUT, seed=7, faults=faults, first_timestamp=800)) == short
    side_values = {"flags": lambda batch, indices: -batch}
    arguments = {"max_packet_size": 203, "timestamp_jitter": 50, "side_values": side_values}
    assert digest(Simulator(LONG, seed=7, faults=faults, first_timestamp=640, **arguments)) == long


def by_struct(batch: int, source: int, number: int, payload: bytes, room: int) -> list[bytes]:
    """The packets of a heap of `PLAIN`."""
    packets = []
    for offset in range(0, len(payload), room):
        part = payload[offset : offset + room]
        values = {1: number, 2: len(payload), 3: offset, 4: len(part), 0x1600: batch * 10, 0x4101: source}
        pointers = [1 << 63 | item << 48 | value for item, value in values.items()] + [0x4300 << 48]
        packets.append(struct.pack(">BBBBHH7Q", 0x53, 4, 2, 6, 0, 7, *pointers) + part)
    return packets


@pytest.mark.parametrize("n_endpoints", [1, 2])
@pytest.mark.parametrize("segment", [True, False], ids=["cut by the kernel", "one by one"])
@pytest.mark.parametrize("room", [1000, 400, 200])
@pytest.mark.parametrize("layout", [PLAIN, MENDED], ids=["plain", "mended"])
def test_datagrams_are_the_packets(layout, room, segment, n_endpoints):
    """In their order, each whole, whether the kernel cuts them or not; the last of a heap may be shorter."""
    batches = 5
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(n_endpoints)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(60)
        simulator = Simulator(layout, max_packet_size=room + 64)
        number = itertools.count(2)  # the first was used up when the arguments were checked
        expected: list[list[bytes]] = [[] for _ in sockets]
        for batch, source in itertools.product(range(batches), range(3)):
            payload = bytes(simulator.payload(batch, (source,)))
            expected[source % n_endpoints] += by_struct(batch, source, next(number), payload, room)
        with UdpSink([sock.getsockname() for sock in sockets], segment=segment) as sink:
            simulator.send(sink, batches)
            assert sink._segment == segment
        assert simulator._templates is not None, "they were made one by one"
        for sock, packets in zip(sockets, expected, strict=True):
            assert [sock.recv(65536) for _ in packets] == packets
    finally:
        for sock in sockets:
            sock.close()


def test_packets_of_all_sizes(udp_port):
    """Empty ones, longer and shorter than those before, and more than the kernel takes in one message."""
    rng = np.random.default_rng(5)
    sizes = [
        0,
        0,
        8,
        8,
        9,
        8,
        1,
        0,
        *[300] * 130,
        299,
        300,
        *rng.integers(0, 40, 100).tolist(),
        20000,
        20000,
        20000,
        20000,
    ]
    packets = [(0, rng.bytes(size)) for size in sizes]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind(("127.0.0.1", udp_port))
        sock.settimeout(60)
        with UdpSink([sock.getsockname()]) as sink:
            for begin in range(0, len(packets), 50):  # so few that any buffer takes them
                some = packets[begin : begin + 50]
                sink.send_block(Packets.whole(some), None, VirtualClock())
                assert [sock.recv(65536) for _ in some] == [packet for _, packet in some]


def test_packet_that_is_too_long_for_a_datagram(udp_port):
    with UdpSink([("127.0.0.1", udp_port)]) as sink, pytest.raises(OSError, match="Message too long"):
        sink.send_block(Packets.whole([(0, bytes(65508))]), None, VirtualClock())


@pytest.mark.parametrize("rate", [1e5, 1e8, 1e10])
@pytest.mark.parametrize("size", [100, 9000, 65000])
def test_bursts_are_short(size, rate):
    """No more bytes than fit in a burst are sent before they are due, nor earlier than a moment."""
    sizes = np.full(1000, size)
    due = np.arange(1000) * size / rate
    bursts = list(_bursts(sizes, due, BURST_BYTES))
    assert [end for _, end in bursts[:-1]] == [begin for begin, _ in bursts[1:]]
    assert (bursts[0][0], bursts[-1][1]) == (0, 1000)
    for begin, end in bursts:
        assert sizes[begin:end].sum() <= BURST_BYTES
        assert due[end - 1] - due[begin] <= BURST_SECONDS


class Waits:
    """A clock that notes until when was waited, and what a socket had got by then."""

    def __init__(self, sock):
        self.sock, self.got, self.time = sock, [], 0.0

    def now(self):
        return self.time

    def wait_until(self, due):
        with_time = 0
        while True:
            try:
                with_time += len(self.sock.recv(65536))
            except BlockingIOError:
                break
        self.got.append((self.time, with_time))
        self.time = max(self.time, due)


def test_rate_over_udp_is_exact(udp_port):
    """At no time has more than a burst too much been sent, nor less than is due."""
    rate = 1e9
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind(("127.0.0.1", udp_port))
        sock.setblocking(False)
        clock = Waits(sock)
        with UdpSink([("127.0.0.1", udp_port)]) as sink:
            truth = Simulator(PLAIN, faults=ALL).send(sink, 400, rate=rate, clock=clock)
    total = 0
    for time, got in clock.got:
        assert total <= time * rate + 1
        total += got
        assert time * rate <= total <= time * rate + BURST_BYTES
    assert total == truth.bytes
    assert clock.time == pytest.approx(truth.bytes / rate)


def test_packets_are_spread_over_the_time_of_their_heap():
    """A batch of three sources takes 10 ticks of a second each, at twice the speed half of that."""
    times: list[float] = []

    class Times:
        def send(self, flow, packet):
            times.append(clock.now())

    clock = VirtualClock()
    layout = dataclasses.replace(PLAIN, time=TimeAxis(item=0x1600, step=10, batches=8, tick_rate=1))
    Simulator(layout, max_packet_size=464).send(Times(), 2, speed=2, clock=clock)
    heap = 10 / 2 / 3
    assert times == pytest.approx([(i + part / 3) * heap for i in range(6) for part in range(3)])
    assert clock.now() == pytest.approx(6 * heap)


@pytest.mark.parametrize("seed", range(5))
def test_later_things_overtake(seed):
    """Each thing is sent when as many later ones as its delay says have come, those of one time in their order."""
    delays = random.Random(seed)
    order = SendingOrder(Faults(reorder=6, late=0.1, late_by=20), random.Random(seed).random)
    waiting, expected, got = [], [], []
    for i in range(500):
        by = 20 if delays.random() < 0.1 else 0
        heapq.heappush(waiting, (i + by + int(delays.random() * 7), i))
        while waiting and waiting[0][0] <= i:
            expected.append(heapq.heappop(waiting)[1])
        order.send([i])
        got += order.take()
        assert got == expected
    order.end()
    assert got + order.take() == expected + [i for _, i in sorted(waiting)]


def test_goes_on_with_another_origin():
    """Phases and origin are those of the time that it goes to."""
    layout = dataclasses.replace(PLAIN, time=TimeAxis(item=0x1600, step=10, batches=8, origin="first"))
    simulator = Simulator(layout, first_timestamp=3)
    times = []
    for first in (3, 57):
        simulator.go_to(first)
        for _, packet in simulator.packets(2):
            times.append(struct.unpack_from(">Q", packet, 8 + 8 * 4)[0] % 2**48)
    assert times == [3] * 3 + [13] * 3 + [57] * 3 + [67] * 3


def test_garbage_of_all_kinds_lies_between():
    """What is not made with the others keeps its place among them."""
    kinds = tuple(kind for kind in GARBAGE_KINDS if kind != "stop")
    faults = Faults(garbage=0.4, garbage_kinds=kinds, duplicate=0.1)
    simulator = Simulator(LAYOUT, faults=faults, max_packet_size=203)
    sizes: list[int] = []

    class Sizes:
        def send(self, flow, packet):
            raise AssertionError("a block is wanted")

        def send_block(self, packets, due, clock):
            assert [len(packet) for _, packet in packets] == packets.sizes.tolist()
            sizes.extend(packets.sizes.tolist())

    simulator.send(Sizes(), 40)
    assert sizes == [len(packet) for _, packet in Simulator(LAYOUT, faults=faults, max_packet_size=203).packets(40)]
    assert sum(sizes) == simulator.truth.bytes
