"""A simulator that sends in several threads sends what one does, at the same pace, and ends as a whole."""

import collections
import contextlib
import socket
import struct
import threading

import pytest
import spead2

from speadrx.layout import Axis, Layout, TimeAxis
from speadrx.simulate import Faults, InprocSink, Simulator, UdpSink, WallClock, pacing
from speadrx.simulate.sinks import BURST_BYTES

LAYOUT = Layout(
    heap_bytes=1000,
    payload_item=0x4300,
    time=TimeAxis(item=0x1600, step=10, batches=8),
    axes=(Axis(name="source", item=0x4101, size=4), Axis(name="band", item=0x4103, size=2)),
    sources="source",
)
FAULTS = Faults(
    loss=0.05,
    packet_loss=0.01,
    reorder=30,
    packet_reorder=5,
    duplicate=0.05,
    garbage=0.3,
    garbage_kinds=("length", "noise"),
)
RATE = 1e6


class Draining:
    """Time that passes by waiting, and before that takes what a socket has got, so that it never has much."""

    def __init__(self, sock):
        self.sock, self.time, self.lock = sock, 0.0, threading.Lock()
        self.got = []  # the time until then, the sender's port, the packet

    def now(self):
        return self.time

    def wait_until(self, due):
        with self.lock:
            with contextlib.suppress(BlockingIOError):
                while True:
                    packet, (_, port) = self.sock.recvfrom(65536)
                    self.got.append((self.time, port, packet))
            self.time = max(self.time, due)


@pytest.fixture
def sock():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        yield sock


@contextlib.contextmanager
def opened(*endpoints):
    burst = BURST_BYTES // len(endpoints)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(UdpSink([endpoint], burst_bytes=burst)) for endpoint in endpoints]


def send(sock, n, rate=RATE):
    """Send in n threads; return the truth, when all was over, and what came."""
    clock = Draining(sock)
    with opened(*[sock.getsockname()] * n) as sinks:
        truth = Simulator(LAYOUT, faults=FAULTS, max_packet_size=464).send(sinks, 60, rate=rate, clock=clock)
    return truth, clock.time, clock.got


def items(packet):
    """Values of the immediate items of a packet by ID; none if it is not SPEAD."""
    if packet[:4] != b"\x53\x04\x02\x06":
        return {}
    (n,) = struct.unpack_from(">H", packet, 6)
    pointers = struct.unpack_from(f">{n}Q", packet, 8)
    return {pointer >> 48 & 0x7FFF: pointer % 2**48 for pointer in pointers}


def heaps_by_source(packets):
    """Count heaps of the right length by source, and those of another."""
    good, bad = collections.defaultdict(set), set()
    for found in filter(None, map(items, packets)):
        if found[0x2] == LAYOUT.heap_bytes:
            good[found[0x4101]].add(found[0x1])
        else:
            bad.add(found[0x1])
    return {source: len(heaps) for source, heaps in good.items()}, len(bad)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_threads_send_what_one_sends(sock, n):
    """The same packets, each source's in their order and from one port, and the truth about them."""
    alone, _, before = send(sock, 1)
    truth, _, got = send(sock, n)
    assert truth == alone
    position = {packet: i for i, (_, _, packet) in enumerate(before)}
    assert len(position) == len(before) == len(got) == truth.packets
    packets = [packet for _, _, packet in got]
    assert set(packets) == set(position)
    good, bad = heaps_by_source(packets)
    assert good == dict(enumerate(truth.sent))
    assert truth.rejected == {"metadata_heaps": bad}
    sources = {}
    for port in {port for _, port, _ in got}:
        of_port = [packet for _, by, packet in got if by == port]
        assert sorted(of_port, key=position.__getitem__) == of_port
        sources[port] = set(heaps_by_source(of_port)[0])
    assert len(sources) == n
    assert sorted(source for some in sources.values() for source in some) == [0, 1, 2, 3]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("rate", [RATE, 1e9])
def test_all_threads_make_the_rate(sock, n, rate):
    """At no time has more than a burst too much been sent, and all is over when the rate says."""
    truth, end, got = send(sock, n, rate)
    total = 0
    for time, _, packet in got:
        total += len(packet)
        assert total <= time * rate + BURST_BYTES
    assert total == truth.bytes
    assert end == pytest.approx(truth.bytes / rate)


def test_threads_take_turns_block_by_block(sock):
    """No thread gets ahead of another by more than a block, here of 10 ms: 30 packets, and what comes with the last."""
    _, _, got = send(sock, 4)
    newest = dict.fromkeys({port for _, port, _ in got}, 0)
    _, _, before = send(sock, 1)
    position = {packet: i for i, (_, _, packet) in enumerate(before)}
    for _, port, packet in got:
        newest[port] = position[packet]
        assert position[packet] > max(newest.values()) - 60


@pytest.mark.parametrize("batches", [1, None])
def test_an_error_in_one_thread_ends_all(sock, batches):
    """The kernel refuses to send to everybody, also the last packets. No thread is left, and nothing more is made."""
    threads = threading.active_count()
    clock = Draining(sock)
    with opened(sock.getsockname(), ("127.255.255.255", 9), sock.getsockname()) as sinks:
        simulator = Simulator(LAYOUT)
        with pytest.raises(PermissionError):
            simulator.send(sinks, batches, rate=RATE, clock=clock)
    assert threading.active_count() == threads
    assert sum(simulator.truth.sent) < 60


def test_stops_after_a_whole_chunk(sock):
    clock = Draining(sock)
    chunks = iter([False, False, True])
    with opened(*[sock.getsockname()] * 2) as sinks:
        truth = Simulator(LAYOUT).send(sinks, rate=RATE, clock=clock, stop=lambda: next(chunks))
    good, _ = heaps_by_source([packet for _, _, packet in clock.got])
    assert good == dict(enumerate(truth.sent)) == dict.fromkeys(range(4), 3 * 8 * 2)


def test_sinks_of_any_kind():
    """A sink that takes packets one by one has a thread too."""

    class Kept(list):
        def send(self, flow, packet):
            self.append((flow, packet))
            threads.add(threading.current_thread())

    threads: set[threading.Thread] = set()
    sinks = [Kept(), Kept()]
    alone = list(Simulator(LAYOUT, faults=FAULTS).packets(40))
    Simulator(LAYOUT, faults=FAULTS).send(tuple(sinks), 40)
    flows = [{0, 1, 4, 5}, {2, 3, 6, 7}]  # two bands of each source
    assert sinks == [[packet for packet in alone if packet[0] in some] for some in flows]
    assert threading.current_thread() not in threads


@pytest.mark.parametrize("n", [0, 5])
def test_threads_without_a_source(n):
    wanted = f"sink: {n}, but wanted at least 1 and at most the number of sources, 4"
    with pytest.raises(ValueError, match=wanted):
        Simulator(LAYOUT).send([InprocSink(spead2.InprocQueue())] * n, 1)


def test_threads_that_are_late_together_are_late_once(monkeypatch):
    """Both find that they are 5 s late before either says so."""
    both, asked = threading.Barrier(2), threading.local()

    class Met(WallClock):
        def now(self):
            now = super().now()
            if not hasattr(asked, "before"):
                asked.before = True
                both.wait(60)
            return now

    clock = Met()
    monkeypatch.setattr(pacing.time, "perf_counter", lambda: 5.0)
    threads = [threading.Thread(target=clock.wait_until, args=(0.0,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.lost == pytest.approx(5.0 - pacing._MAX_DEBT)
