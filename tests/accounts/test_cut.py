"""A run that is cut anywhere shows the loss that there was: packets made by hand, some of them left out."""

import itertools
import socket
import time

import pytest
import spead2
from speadrx.history import History

import receiving
from handmade import Heap, encode
from loopback import wait_for
from speadrx import Axis, Layout, Receiver, TimeAxis
from speadrx.receive import ends

TIME_ID, ANTENNA_ID = 0x1600, 0x4101
STEP, ANTENNAS = 16, 4


def layout_of(batches):
    return Layout(
        heap_bytes=8,
        time=TimeAxis(item=TIME_ID, step=STEP, batches=batches),
        axes=(Axis(name="antenna", item=ANTENNA_ID, size=ANTENNAS),),
        sources="antenna",
    )


def packet(batch, antenna):
    items = {TIME_ID: batch * STEP, spead2.HEAP_LENGTH_ID: 8, ANTENNA_ID: antenna}
    return encode(Heap(items, bytes(8)), batch * ANTENNAS + antenna, 48)[0]


def in_bursts(n_batches, burst):
    """Batches and antennas in the order in which they are read, `burst` heaps of an antenna in a row."""
    for begin in range(0, n_batches, burst):
        for antenna, batch in itertools.product(range(ANTENNAS), range(begin, min(begin + burst, n_batches))):
            yield batch, antenna


class Cut(receiving.Receiver):
    """A receiver with a history, of one stream or of two that have two antennas each."""

    def __init__(self, batches, members, **options):
        layout = layout_of(batches)
        self.history = History(layout)
        super().__init__(layout, members=members, resync=True, **options)

    def _copy(self, chunk):
        self.history.add(chunk)
        return super()._copy(chunk)

    def put(self, batch, antenna):
        self.queues[antenna % len(self.queues)].add_packet(packet(batch, antenna))

    def settle(self, n):
        """Wait until so many heaps have been seen, or it has ended."""
        deadline = time.monotonic() + 60
        while self.stream.ledger.snapshot().seen < n and not self.stream._stopped:
            assert time.monotonic() < deadline
            time.sleep(0.0002)

    def drain(self):
        """End it; check that all figures agree; return the heaps missing by antenna."""
        self.stream.drain()
        self.wait()
        account = self.iterator.accounting
        missing = account.missing_by_source.tolist()
        assert self.history.missing_by_source.tolist() == missing
        assert self.history.expected_by_source.tolist() == account.expected_by_source.tolist()
        assert self.history.present_by_source.tolist() == account.present_by_source.tolist()
        assert account.loss == self.history.loss
        assert History.from_json(self.history.to_json()).missing_by_source.tolist() == missing
        assert account.expected == account.present + account.missing
        return missing


@pytest.fixture
def silent(monkeypatch):
    """Nothing more comes, so there is nothing to wait for."""
    monkeypatch.setattr(ends, "_SILENCE", 0.0)


@pytest.mark.fault(31)
@pytest.mark.parametrize("members", [None, 2], ids=["1-thread", "2-threads"])
@pytest.mark.parametrize("batches", [1, 4])
def test_at_each_heap(batches, members, silent):
    """After each heap of a stream that loses some: within one batch, of what was left out until then."""
    lost = {(1, 2), (2, 0), (2, 3), (5, 1), (5, 2), (6, 2), (9, 0), (9, 1), (9, 2), (9, 3), (12, 3)}
    order = [heap for heap in in_bursts(16, 1) if heap not in lost]
    for cut in range(1, len(order) + 1):
        rx = Cut(batches, members)
        try:
            for i, heap in enumerate(order[:cut], 1):
                rx.put(*heap)
                rx.settle(i)
            missing = rx.drain()
        finally:
            rx.close()
        newest = order[cut - 1]
        truth = [sum(heap <= newest and heap[1] == antenna for heap in lost) for antenna in range(ANTENNAS)]
        # Those of the last batch that were cut off count, because nobody knows that they were not lost.
        truth = [n + (antenna > newest[1]) for antenna, n in enumerate(truth)]
        assert missing == truth


@pytest.mark.fault(31)
@pytest.mark.parametrize("members", [None, 2], ids=["1-thread", "2-threads"])
@pytest.mark.parametrize("batches", [1, 4])
@pytest.mark.parametrize("burst", [1, 8])
@pytest.mark.parametrize("seed", range(3))
def test_while_heaps_come(seed, burst, batches, members, rng, monkeypatch):
    """It ends in the midst of bursts, which go on: then nothing is missing but what was left out, exactly."""
    # Only sources that have passed the cut end the wait, however busy this machine is.
    monkeypatch.setattr(ends, "_SILENCE", 60.0)
    monkeypatch.setattr(ends, "_SOURCE_SECONDS", 60.0)
    left_out = {(batch, antenna) for batch, antenna in in_bursts(400, 1) if batch and rng.random() < 0.05}
    cut = int(rng.integers(200, 800))
    newest = [-1] * ANTENNAS
    rx = Cut(batches, members, window=24 // batches, pool=60 // batches)
    try:
        for i, (batch, antenna) in enumerate(heap for heap in in_bursts(10**6, burst) if heap not in left_out):
            rx.put(batch, antenna)
            newest[antenna] = batch
            rx.settle(i + 1)
            if rx.stream._stopped:
                break
            if i == cut:
                oldest = min(newest)
                rx.stream.drain()
        missing = rx.drain()
    finally:
        rx.close()
    # All antennas are judged up to the same batch.
    truths = (
        [sum((batch, antenna) in left_out for batch in range(end)) for antenna in range(ANTENNAS)]
        for end in range(oldest, max(newest) + 1)
    )
    assert missing in truths
    assert sum(missing) > 0


def test_heaps_come_before_all_sockets_are_open(ports, monkeypatch):
    """Senders send all the time, so the socket that is opened first gets heaps whose like the other one never got."""
    endpoints = [("127.0.0.1", port) for port in ports[:2]]
    batches = iter(range(1000, 1400))
    add_readers = Receiver._add_readers

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:

        def send(n_batches):
            for batch, antenna in itertools.product(itertools.islice(batches, n_batches), range(ANTENNAS)):
                sock.sendto(packet(batch, antenna), endpoints[antenna % 2])

        def add_and_send(*args):
            add_readers(*args)
            send(5)

        monkeypatch.setattr(Receiver, "_add_readers", add_and_send)
        with Receiver(layout_of(4), endpoints, threads=2, window=4, chunks=80) as receiver:
            history = History(receiver.layout)
            wait_for(lambda: receiver.stream._begin)
            send(40)
            wait_for(lambda: receiver.stats().packets == 5 * 2 + 45 * 4)
            receiver.drain()
            for chunk in receiver:
                with chunk:
                    history.add(chunk)
            stats = receiver.stats()
    assert (stats.present, stats.missing, stats.loss) == (5 * 2 + 45 * 4, 0, 0)
    assert history.expected_by_source.tolist() == history.present_by_source.tolist() == [50, 45, 50, 45]
