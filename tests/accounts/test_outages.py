"""Outages, on the network and in captures: what was not sent or not read is missing, whatever the clocks show."""

import socket
import threading
import time

import pytest

import speadrx
from handmade import Heap, encode
from loopback import wait_for
from speadrx import Axis, Layout, TimeAxis
from speadrx.simulate import PcapSink

TIME_ID, ANTENNA_ID = 0x1600, 0x4101
STEP, BATCHES, ANTENNAS = 200, 8, 4
#: Ticks in a second by the senders' own clocks: 500 batches.
TICK_RATE = 100_000
START = 10**6


def layout(tick_rate):
    return Layout(
        heap_bytes=64,
        time=TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES, tick_rate=tick_rate),
        axes=(Axis(name="antenna", item=ANTENNA_ID, size=ANTENNAS),),
        sources="antenna",
    )


def packet(batch, antenna):
    items = {TIME_ID: (START + batch) * STEP, ANTENNA_ID: antenna, 2: 64}
    return encode(Heap(items, bytes(64)), batch * ANTENNAS + antenna, 48)[0]


class Live:
    """A receiver of a socket whose consumer can be put to sleep, and the array that sends to it as time passes."""

    def __init__(self, port, tick_rate, speed, **options):
        self.endpoint = ("127.0.0.1", port)
        self.rx = speadrx.Receiver(layout(tick_rate), [self.endpoint], window=4, **options)
        self.batches_per_second = speed * TICK_RATE / STEP
        self.awake = threading.Event()
        self.awake.set()
        self.sent = 0
        self.gaps = 0
        self._batch = 0
        self._consumer = threading.Thread(target=self._consume)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def _consume(self):
        for chunk in self.rx:
            self.awake.wait()
            chunk.recycle()

    def __enter__(self):
        self.rx.start()
        self._consumer.start()
        self._begun = time.monotonic()
        return self

    def __exit__(self, *exc):
        self.awake.set()
        self._socket.close()
        self.rx.stop()
        self._consumer.join(60)

    def send(self, seconds):
        """Send what is due in so many seconds, and no sooner than it is due."""
        for _ in range(round(seconds * self.batches_per_second)):
            time.sleep(max(0.0, self._begun + self._batch / self.batches_per_second - time.monotonic()))
            for antenna in range(ANTENNAS):
                self._socket.sendto(packet(self._batch, antenna), self.endpoint)
                self.sent += 1
            self._batch += 1

    def be_silent(self, seconds):
        batches = round(seconds * self.batches_per_second)
        self._batch += batches
        self.gaps += batches * ANTENNAS

    def end(self):
        """Drain it; what it has seen."""
        self.awake.set()
        self.rx.drain()
        self._consumer.join(60)
        return self.rx.stats()


def check(live, fault_report, note):
    stats = live.end()
    never_read = live.sent - stats.present - stats.too_old - sum(stats.rejected.values())
    residual = never_read - stats.kernel_drops
    fault_report(sent=live.sent, lost=live.sent - stats.present, residual=residual, note=note)
    assert (residual, stats.restarts, stats.epoch_gap_heaps, stats.duplicates, stats.in_flight) == (0, 0, 0, 0, 0)
    # Each has lost at most the heap by which time is seen to have gone on.
    assert stats.too_old + sum(stats.rejected.values()) <= 2 * ANTENNAS
    assert stats.missing == live.gaps + live.sent - stats.present
    assert stats.loss == stats.missing / (live.gaps + live.sent)
    return stats


#: How fast the senders' clocks are, and the layout's tick rate.
CLOCKS = {
    "right": (1.0, TICK_RATE),
    "4 % slow": (1 / 1.04, TICK_RATE),
    "4 % fast": (1.04, TICK_RATE),
    "no tick rate": (1.0, None),
}
CASES = [pytest.param(name, id=name, marks=[] if name == "4 % slow" else pytest.mark.slow) for name in CLOCKS]


@pytest.mark.fault(30)
@pytest.mark.parametrize("clock", CASES)
@pytest.mark.parametrize("sleeps", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["awake", "asleep"])
def test_senders_are_silent(clock, sleeps, udp_port, fault_report):
    """All are for half a second, and then go on where time is by their clocks; the consumer may sleep through it."""
    speed, tick_rate = CLOCKS[clock]
    with Live(udp_port, tick_rate, speed) as live:
        live.send(0.4)
        if sleeps:
            live.awake.clear()
            live.send(0.2)
        live.be_silent(0.5)
        live.send(0.2)
        live.awake.set()
        live.send(0.3)
        assert check(live, fault_report, clock).kernel_drops == 0


@pytest.mark.fault(30)
@pytest.mark.parametrize("clock", CASES)
def test_consumer_sleeps_until_the_kernel_drops_packets(clock, udp_port, fault_report):
    """The socket holds little, and the senders go on."""
    speed, tick_rate = CLOCKS[clock]
    with Live(udp_port, tick_rate, speed, buffer=4096) as live:
        live.send(0.3)
        live.awake.clear()
        live.send(0.8)
        wait_for(lambda: live.rx.stats().kernel_drops > 0)
        live.awake.set()
        live.send(0.4)
        stats = check(live, fault_report, f"{clock}, asleep")
        assert stats.missing >= stats.kernel_drops > 0


@pytest.mark.fault(30)
@pytest.mark.parametrize("tick_rate", [TICK_RATE, TICK_RATE * 1.04, TICK_RATE / 1.6, None])
@pytest.mark.parametrize("seconds", [0.05, 0.5, 60, 3000])
def test_gap_in_a_capture(seconds, tick_rate, tmp_path, fault_report):
    """Up to an hour."""
    silent = round(seconds * (tick_rate or TICK_RATE) / STEP)
    path = tmp_path / "run.pcap"
    with PcapSink(path) as sink:
        for batch in (*range(200), *range(200 + silent, 400 + silent)):
            for antenna in range(ANTENNAS):
                sink.send(0, packet(batch, antenna))
    with speadrx.Receiver(layout(tick_rate), path, window=4) as rx:
        for chunk in rx:
            chunk.recycle()
    stats, sent = rx.stats(), 400 * ANTENNAS
    residual = sent - stats.present - stats.too_old - sum(stats.rejected.values())
    fault_report(sent=sent, lost=sent - stats.present, residual=residual, note="in captures")
    assert (residual, stats.restarts, stats.epoch_gap_heaps) == (0, 0, 0)
    assert sent - stats.present <= 2 * ANTENNAS
    assert stats.missing == silent * ANTENNAS + sent - stats.present
    assert stats.loss == stats.missing / (silent * ANTENNAS + sent)
