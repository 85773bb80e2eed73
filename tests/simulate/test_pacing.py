"""The pace of the simulator: at a rate, at the speed of its timestamps, on the wall's clock and in capture files."""

import dataclasses
import ipaddress
import struct

import pytest

from speadrx.layout import Axis, Layout, TimeAxis
from speadrx.simulate import Faults, PcapSink, Simulator, VirtualClock, pacing

dpkt = pytest.importorskip("dpkt")

LAYOUT = Layout(
    heap_bytes=192,
    time=TimeAxis(item=0x1600, step=100, batches=4),
    axes=(Axis(name="antenna", item=0x4101, size=3), Axis(name="band", item=0x4103, size=6)),
)
FAULTS = Faults(loss=0.05, reorder=30, duplicate=0.05, garbage=0.3)


class FakeClock:
    """Time passes only in sleep, and when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds


class CountingSink:
    def __init__(self, clock, pause_after=None):
        self.clock = clock
        self.pause_after = pause_after
        self.sent = []

    def send(self, flow, packet):
        self.sent.append((self.clock.now, len(packet)))
        if len(self.sent) == self.pause_after:
            self.clock.now += 5.0


def test_rate(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(pacing, "time", clock)
    sink = CountingSink(clock)
    truth = Simulator(LAYOUT).send(sink, 100, rate=1e6)
    n_bytes = sum(size for _, size in sink.sent)
    assert n_bytes == truth.bytes
    assert clock.now - 1000.0 == pytest.approx(n_bytes / 1e6, abs=0.002)
    for i, (when, _) in enumerate(sink.sent):
        before = sum(size for _, size in sink.sent[:i])
        assert abs(when - 1000.0 - before / 1e6) < 0.002


def test_rate_after_a_pause_of_the_sender(monkeypatch):
    """Lost time is not made up for: that would overrun the receiver."""
    clock = FakeClock()
    monkeypatch.setattr(pacing, "time", clock)
    sink = CountingSink(clock, pause_after=500)
    Simulator(LAYOUT).send(sink, 100, rate=1e6)
    burst = sum(size for when, size in sink.sent[500:] if when == sink.sent[500][0])
    assert burst < 0.02 * 1e6


TIMED = dataclasses.replace(LAYOUT, time=dataclasses.replace(LAYOUT.time, tick_rate=1000.0))


def stamped(path):
    """Time stamp in seconds, destination and payload of each packet of a capture file."""
    with open(path, "rb") as file:
        for stamp, frame in dpkt.pcap.Reader(file):
            ip = dpkt.ethernet.Ethernet(frame).data
            yield float(stamp), (str(ipaddress.ip_address(ip.dst)), ip.data.dport), ip.data.data


def timestamp_of(packet):
    (n_items,) = struct.unpack_from(">H", packet, 6)
    pointers = struct.unpack_from(f">{n_items}Q", packet, 8)
    (timestamp,) = [pointer % 2**48 for pointer in pointers if pointer >> 48 == 0x8000 | LAYOUT.time.item]
    return timestamp


def test_speed_follows_the_timestamps(tmp_path):
    """Each heap has its share of the time of its batch, be others lost or not, and its packets share that."""
    simulator = Simulator(TIMED, faults=Faults(loss=0.3), max_packet_size=200)
    indices = len(simulator.indices)
    clock = VirtualClock()
    path = tmp_path / "a.pcap"
    with PcapSink(path, clock=clock) as sink:
        simulator.send(sink, 50, speed=2.0, clock=clock)
    batch_seconds = TIMED.time.step / 1000.0 / 2.0
    assert clock.now() == pytest.approx(50 * batch_seconds)
    spare = iter(Simulator(TIMED, faults=Faults(loss=0.3), max_packet_size=200).packets(50))
    assert simulator.truth.packets > sum(simulator.truth.sent) > 0
    times = [stamp for stamp, _, _ in stamped(path)]
    assert times == sorted(times)
    for stamp, (flow, packet) in zip(times, spare, strict=True):
        batch = timestamp_of(packet) // TIMED.time.step
        begin = (batch + flow / indices) * batch_seconds
        assert begin - 1e-6 <= stamp < begin + batch_seconds / indices + 1e-6


def test_rate_of_a_capture_file(tmp_path):
    """It is as if recorded: the same arguments make the same file, with every packet at its time."""
    for name in ("a.pcap", "b.pcap"):
        clock = VirtualClock()
        with PcapSink(tmp_path / name, clock=clock) as sink:
            Simulator(LAYOUT, faults=FAULTS).send(sink, 100, rate=1e5, clock=clock)
    assert (tmp_path / "a.pcap").read_bytes() == (tmp_path / "b.pcap").read_bytes()
    before = 0
    for stamp, _, payload in stamped(tmp_path / "a.pcap"):
        assert stamp == pytest.approx(before / 1e5, abs=1e-6)
        before += len(payload)
    assert clock.now() == pytest.approx(before / 1e5)


@pytest.mark.parametrize(
    ("pace", "message"),
    [
        ({"speed": 0}, "speed: 0 must be a positive number"),
        ({"speed": 1, "rate": 1}, "speed: 1 cannot be combined with rate 1"),
    ],
)
def test_speed_errors(pace, message):
    with pytest.raises(ValueError, match=message):
        Simulator(TIMED).send(CountingSink(FakeClock()), 1, **pace)


def test_speed_needs_a_tick_rate():
    with pytest.raises(ValueError, match="speed: 1 needs a layout with a tick_rate"):
        Simulator(LAYOUT).send(CountingSink(FakeClock()), 1, speed=1)


def test_pcap_of_several_endpoints(tmp_path):
    """As over UDP, flows are dealt out to them."""
    path = tmp_path / "a.pcap"
    endpoints = [("239.1.2.3", 7148), ("10.0.0.1", 7149)]
    with PcapSink(path, endpoint=endpoints) as sink:
        Simulator(LAYOUT).send(sink, 2)
    flows = [flow for flow, _ in Simulator(LAYOUT).packets(2)]
    assert [endpoint for _, endpoint, _ in stamped(path)] == [endpoints[flow % 2] for flow in flows]


@pytest.mark.parametrize("rate", [0, -1.0, float("inf"), float("nan")])
def test_rate_errors(rate):
    with pytest.raises(ValueError, match=r"rate: .* must be a positive number of bytes per second"):
        Simulator(LAYOUT).send(CountingSink(FakeClock()), 1, rate=rate)
