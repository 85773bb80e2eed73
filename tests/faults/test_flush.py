"""Senders that fall silent, and streams that are stopped, with chunks under construction: all of them come out."""

import contextlib
import dataclasses
import threading
import time

import numpy as np
import pytest
import spead2
import spead2.recv
import spead2.recv.asyncio

import speadrx
from handmade import Heap, encode
from loopback import wait_for
from receiving import assert_data, receiver, residual
from speadrx import Axis, Layout, TimeAxis, add_reader
from speadrx.receive.watch import _Watched
from speadrx.simulate import InprocSink, Simulator, UdpSink

TIME_ID, ANTENNA_ID = 0x1600, 0x4101
STEP, BATCHES, WINDOW, ANTENNAS = 16, 4, 3, 3
CHUNK = STEP * BATCHES
LAYOUT = Layout(
    heap_bytes=8,
    time=TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES),
    axes=(Axis(name="antenna", item=ANTENNA_ID, size=ANTENNAS),),
    sources="antenna",
)
#: A heap of each antenna every two seconds.
SLOW = dataclasses.replace(LAYOUT, time=dataclasses.replace(LAYOUT.time, tick_rate=STEP / 2))
members = pytest.mark.parametrize("members", [None, 1, 3], ids=["stream", "group of one", "group"])


@contextlib.contextmanager
def receiving(members, *, resync=True, pool=2 * (WINDOW + 1) + 1, **kwargs):
    with receiver(LAYOUT, members=members, window=WINDOW, pool=pool, resync=resync, **kwargs) as rx:
        yield rx


@pytest.fixture
def no_silence(monkeypatch):
    """A lock: while a test has it, no stream is silent, however long a busy machine keeps heaps from coming."""
    lock, real = threading.Lock(), _Watched._flush_if_silent

    def flush_if_silent(*args):
        with lock:
            real(*args)

    monkeypatch.setattr(_Watched, "_flush_if_silent", flush_if_silent)
    return lock


class Sender:
    """Sends batches to the first stream of a receiver, whose other streams stay silent."""

    def __init__(self, rx, **kwargs):
        self.rx = rx
        self.simulator = Simulator(LAYOUT, **kwargs)

    def send(self, batches):
        # Packets would not do: those of a flush before may still come.
        before = self.rx.stream.ledger.snapshot().seen
        sent = self.simulator.truth.copies
        self.simulator.send(InprocSink(self.rx.queues[0]), batches)
        wait_for(lambda: self.rx.stream.ledger.snapshot().seen - before >= self.simulator.truth.copies - sent)


def timestamps(rx):
    return [chunk.timestamp for chunk in rx.chunks]


@members
@pytest.mark.fault(9)
def test_silence_hands_over_what_there_is(members, fault_report, no_silence):
    """Once, in order, and after that data go on where they were."""
    with receiving(members, flush_after=0.05) as rx:
        sender = Sender(rx)
        with no_silence:
            sender.send(2 * BATCHES + 1)
        wait_for(lambda: len(rx.chunks) == 3)
        time.sleep(0.3)  # nothing more is handed over, however long the silence is
        assert timestamps(rx) == [0, CHUNK, 2 * CHUNK]
        assert [chunk.present.sum() for chunk in rx.chunks] == [12, 12, 3]
        # What is left of the last chunk comes too late; then they go on.
        with no_silence:
            sender.send(BATCHES - 1 + 5 * BATCHES)
        wait_for(lambda: len(rx.chunks) == 8)
        rx.finish()
        assert_data(rx, [sender.simulator])
        assert timestamps(rx) == [i * CHUNK for i in range(8)]
        left = residual(rx, [sender.simulator.truth])
        late = (BATCHES - 1) * ANTENNAS
        fault_report(sent=8 * BATCHES * ANTENNAS, lost=rx.iterator.accounting.missing, residual=left)
        assert (rx.stat("too_old_heaps"), rx.iterator.accounting.missing) == (late, late)
        assert left == 0
        assert (rx.iterator.accounting.restarts, rx.iterator.accounting.epoch_gap_heaps) == (0, 0)
        assert {epoch.cause for epoch in rx.stream.epochs()[1:]} == {"flush"}
        assert rx.stream.ledger.snapshot().newest_timestamp_by_source.tolist() == [(8 * BATCHES - 1) * STEP] * ANTENNAS


@members
@pytest.mark.fault(9)
def test_time_that_passes_in_silence_is_missing(members, fault_report):
    """A flush is no restart: what the senders did not send meanwhile counts as missing."""
    with receiving(members) as rx:
        sender = Sender(rx)
        sender.send(6 * BATCHES)
        rx.stream.flush()
        wait_for(lambda: len(rx.chunks) == 6)
        later = Sender(rx, first_timestamp=100 * CHUNK)
        later.send(6 * BATCHES)
        rx.finish()
        lost = rx.stream.ledger.snapshot().rejected["implausible_timestamp_heaps"]
        left = residual(rx, [sender.simulator.truth, later.simulator.truth])
        fault_report(sent=12 * BATCHES * ANTENNAS, lost=lost, residual=left)
        assert lost == 1, "time goes to the majority with the second of the three antennas"
        assert left == 0
        assert timestamps(rx)[:6] == [i * CHUNK for i in range(6)]
        accounting = rx.iterator.accounting
        assert accounting.expected == 106 * BATCHES * ANTENNAS
        assert (accounting.restarts, accounting.epoch_gap_heaps) == (0, 0)


@pytest.mark.fault(9)
def test_stalled_consumer_is_no_silence(fault_report, no_silence):
    """Nothing is placed while a stream waits for free chunks, but what comes next is there already."""
    with receiving(None, flush_after=0.05) as rx:
        sender = Sender(rx)
        with contextlib.ExitStack() as coming:
            with rx.pause():
                with no_silence:
                    sender.simulator.send(InprocSink(rx.queues[0]), 40 * BATCHES + 2)
                    wait_for(lambda: rx.stream.free_ringbuffer.empty())
                time.sleep(0.5)
                coming.enter_context(no_silence)
            wait_for(lambda: rx.stream.ledger.snapshot().seen == sum(sender.simulator.truth.sent))
        wait_for(lambda: len(rx.chunks) == 41)
        rx.finish()
        missing = rx.iterator.accounting.missing
        left = residual(rx, [sender.simulator.truth])
        fault_report(sent=sum(sender.simulator.truth.sent), lost=rx.stat("too_old_heaps"), residual=left)
        assert rx.stat("too_old_heaps") == left == 0
        assert missing == 0


@members
def test_flush_between_all_that_is_sent(members):
    """As many flushes as chunks: what was complete is complete, and all is in order."""
    with receiving(members) as rx:
        sender = Sender(rx)
        for i in range(30):
            sender.send(BATCHES)
            rx.stream.flush()
            wait_for(lambda i=i: len(rx.chunks) == i + 1)
        rx.finish()
        assert_data(rx, [sender.simulator])
        assert timestamps(rx) == [i * CHUNK for i in range(30)]
        assert all(chunk.present.all() for chunk in rx.chunks)
        assert residual(rx, [sender.simulator.truth]) == 0
        assert len(rx.stream.epochs()) == 31


@members
def test_flush_with_nothing_to_hand_over(members):
    with receiving(members) as rx:
        rx.stream.flush()
        assert rx.stream.epochs() == ()
        sender = Sender(rx)
        sender.send(BATCHES)
        for _ in range(3):
            rx.stream.flush()
        wait_for(lambda: len(rx.chunks) == 1)
        assert [epoch.cause for epoch in rx.stream.epochs()] == ["start", "flush"]
        rx.finish()
        rx.stream.stop()
        rx.stream.flush()  # does nothing to a stream that is stopped


def test_flush_waits_for_nobody():
    """The consumer takes no chunks, and there are no free ones: it returns all the same."""
    with receiving(None, pool=WINDOW + 1) as rx:
        sender = Sender(rx)
        with rx.pause():
            sender.send(2 * BATCHES)
            for _ in range(5):
                rx.stream.flush()
        rx.finish()
        assert timestamps(rx) == [0, CHUNK]


@members
@pytest.mark.parametrize("resync", [False, True], ids=["no resync", "resync"])
@pytest.mark.fault(10)
def test_drain_hands_over_every_chunk(members, resync, fault_report):
    with receiving(members, resync=resync) as rx:
        sender = Sender(rx, first_timestamp=1000 * CHUNK)
        sender.send(5 * BATCHES)
        rx.stream.drain()
        rx.wait()
        assert_data(rx, [sender.simulator])
        left = residual(rx, [sender.simulator.truth])
        fault_report(sent=5 * BATCHES * ANTENNAS, lost=rx.iterator.accounting.missing, residual=left)
        assert timestamps(rx) == [(1000 + i) * CHUNK for i in range(5)]
        assert rx.iterator.accounting.missing == 0
        assert left == 0
        rx.stream.drain()  # has nothing to do any more
        # Ports are free, and counts are final.
        wait_for(lambda: rx.stream._stopped)


@pytest.mark.fault(10)
def test_stop_throws_away_what_drain_hands_over(fault_report):
    """That this is so with spead2 is why there is `drain`."""
    with receiving(None) as rx:
        sender = Sender(rx)
        sender.send(5 * BATCHES)
        rx.stream.stop()
        rx.wait()
        assert len(rx.chunks) == 5 - WINDOW
        fault_report(sent=60, lost=60 - rx.iterator.accounting.present, residual=0, note="stop, not drain")


def test_drain_while_data_come():
    """The chunks that it hands over have right IDs and data, whatever comes meanwhile."""
    with receiving(None, resync=False) as rx:
        simulator = Simulator(LAYOUT)
        stop = threading.Event()

        def send():
            while not stop.is_set():
                simulator.send(InprocSink(rx.queues[0]), 10)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            wait_for(lambda: len(rx.chunks) > 50)
            rx.stream.drain()
            rx.wait()
        finally:
            stop.set()
            thread.join()
        assert_data(rx, [simulator])
        in_the_making = sum(not chunk.present.all() for chunk in rx.chunks)
        assert in_the_making <= WINDOW


def test_drain_of_a_slow_consumer():
    """It waits until all chunks have found room in the data ring."""
    rings = {
        "data_ringbuffer": spead2.recv.ChunkRingbuffer(1),
        "free_ringbuffer": spead2.recv.ChunkRingbuffer(2 * WINDOW + 1),
    }
    stream = speadrx.make_stream(layout=LAYOUT, max_active_chunks=WINDOW, **rings)
    try:
        speadrx.ChunkPool(stream, 2 * WINDOW + 1)
        queue = spead2.InprocQueue()
        stream.add_inproc_reader(queue)
        simulator = Simulator(LAYOUT)
        simulator.send(InprocSink(queue), WINDOW * BATCHES)
        wait_for(lambda: stream.stats["packets"] == simulator.truth.packets)
        stream.drain()
        received = []
        for chunk in speadrx.iter_chunks(stream):
            time.sleep(0.05)
            received.append((chunk.timestamp, int(chunk.present.sum())))
            chunk.recycle()
        assert received == [(i * CHUNK, BATCHES * ANTENNAS) for i in range(WINDOW)]
    finally:
        stream.stop()


async def test_drain_ends_async_for():
    rings = {
        "data_ringbuffer": spead2.recv.asyncio.ChunkRingbuffer(8),
        "free_ringbuffer": spead2.recv.ChunkRingbuffer(8),
    }
    group = speadrx.make_stream_group(layout=LAYOUT, max_active_chunks=WINDOW, affinity=[-1, -1], **rings)
    try:
        speadrx.ChunkPool(group, 8)
        queue = spead2.InprocQueue()
        group[1].add_inproc_reader(queue)
        Simulator(LAYOUT).send(InprocSink(queue), 2 * BATCHES)
        wait_for(lambda: group[1].stats["heaps"] == 2 * BATCHES * ANTENNAS)
        group.drain()
        received = []
        async for chunk in speadrx.iter_chunks(group):
            with chunk:
                received.append(chunk.timestamp)
        assert received == [0, CHUNK]
    finally:
        group.stop()


def test_drain_over_udp(udp_port):
    with receiving(2) as rx:
        for i, member in enumerate(rx.stream):
            add_reader(member, src=[("127.0.0.1", udp_port + i)])
        simulator = Simulator(LAYOUT)
        with UdpSink([("127.0.0.1", udp_port)]) as sink:
            simulator.send(sink, 3 * BATCHES)
        rx.stream.drain()  # reads what is in the sockets first
        rx.wait()
        assert timestamps(rx) == [0, CHUNK, 2 * CHUNK]
        assert residual(rx, [simulator.truth]) == 0


def test_drain_of_a_stream_that_its_sender_has_ended(monkeypatch):
    monkeypatch.setattr("speadrx.receive.control._PATIENCE", 0.2)
    with receiving(None) as rx:
        Sender(rx).send(2 * BATCHES)
        rx.finish()
        rx.stream.drain()
        wait_for(lambda: rx.stream._stopped)
        assert timestamps(rx) == [0, CHUNK]


def test_drained_stream_may_go_away():
    """Who lets go of a stream that drains has stopped it."""
    with receiving(None, pool=WINDOW + 1) as rx:
        stream = speadrx.make_stream(
            layout=LAYOUT,
            max_active_chunks=WINDOW,
            data_ringbuffer=spead2.recv.ChunkRingbuffer(1),
            free_ringbuffer=spead2.recv.ChunkRingbuffer(8),
        )
        stream.drain()
        del stream
        wait_for(lambda: not any(thread.name == "speadrx-drain" for thread in threading.enumerate()))
        Sender(rx).send(BATCHES)
        rx.finish()
        assert timestamps(rx) == [0]


def test_nobody_can_forge_a_control_heap():
    """Without the cookie, the item is that of a stranger, which says nothing."""
    with receiving(None) as rx:
        sender = Sender(rx)
        sender.send(BATCHES)
        control = rx.stream._control
        for cookie in (0, 1, control.cookie[0] ^ 2, control.cookie[1] ^ 2, 2**48 - 1):
            items = {control.item: cookie, spead2.HEAP_LENGTH_ID: 1}
            for packet in encode(Heap(items, b"x"), 2**40 + cookie % 1000, 48):
                rx.queues[0].add_packet(packet)
            # A heap that is good in all else is placed.
            items = {control.item: cookie, TIME_ID: 0, ANTENNA_ID: 0, spead2.HEAP_LENGTH_ID: 8}
            for packet in encode(Heap(items, bytes(8)), 2**41 + cookie % 1000, 48):
                rx.queues[0].add_packet(packet)
        rx.finish()
        ledger = rx.stream.ledger.snapshot()
        assert ledger.rejected["metadata_heaps"] == 5
        assert (ledger.placed, ledger.duplicates) == (BATCHES * ANTENNAS + 5, 5)
        assert [epoch.cause for epoch in rx.stream.epochs()] == ["start"]


def test_control_item_is_one_that_the_layout_has_no_use_for():
    items = dict.fromkeys(range(0x7FF0, 0x8000))
    axes = tuple(Axis(name=f"axis{item:x}", item=item, size=1) for item in list(items)[8:])
    layout = Layout(heap_bytes=8, time=TimeAxis(item=0x1600, step=1, batches=1), axes=axes)
    stream = speadrx.make_stream(
        layout=layout,
        max_active_chunks=1,
        data_ringbuffer=spead2.recv.ChunkRingbuffer(1),
        free_ringbuffer=spead2.recv.ChunkRingbuffer(1),
    )
    assert stream._control.item == 0x7FF7
    stream.stop()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"resync": 1}, TypeError, "resync: given 1, but wanted True or False"),
        ({"max_jump": 0}, ValueError, "max_jump: 0 must be at least 1"),
        ({"max_jump": 1.5}, TypeError, "max_jump: given 1.5, but wanted an integer"),
        ({"max_jump": 2**42}, speadrx.LayoutError, f"max_jump x ticks of a chunk: {2**42} x {CHUNK}"),
        ({"resync": True, "flush_after": 0}, ValueError, "flush_after: 0 must be more than 0 seconds, and finite"),
        ({"resync": True, "flush_after": float("inf")}, ValueError, "flush_after: inf must be more than 0 seconds"),
        ({"resync": True, "flush_after": "1"}, TypeError, "flush_after: given '1', but wanted a number of seconds"),
        ({"flush_after": 1}, ValueError, "flush_after: 1 needs resync=True"),
        (
            {"layout": SLOW, "resync": True, "flush_after": 0.5},
            ValueError,
            "flush_after: 0.5 must be more than the time between heaps of a source, 2 s",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    common = {
        "layout": LAYOUT,
        "max_active_chunks": WINDOW,
        "data_ringbuffer": spead2.recv.ChunkRingbuffer(1),
        "free_ringbuffer": spead2.recv.ChunkRingbuffer(1),
    }
    with pytest.raises(error, match=message):
        speadrx.make_stream(**common | arguments)


def test_flush_needs_resync():
    with receiving(None, resync=False) as rx, pytest.raises(ValueError, match=r"flush: needs .* resync=True"):
        rx.stream.flush()


@pytest.mark.parametrize("arguments", [{"resync": True}, {"max_jump": 3}, {"flush_after": 1.0}])
def test_layouts_with_callbacks_of_their_own_have_no_timeline(arguments):
    class Own(speadrx.BaseLayout):
        heap_bytes = 8
        chunk_batches = BATCHES
        batch_heaps = ANTENNAS
        heap_sample_count = 8
        chunk_timestamp_step = CHUNK

        def chunk_place(self, user_data):
            return LAYOUT.chunk_place()

    def make(**kwargs):
        return speadrx.make_stream(
            layout=Own(),
            spead_items=LAYOUT.spead_items,
            max_active_chunks=WINDOW,
            data_ringbuffer=spead2.recv.ChunkRingbuffer(1),
            free_ringbuffer=spead2.recv.ChunkRingbuffer(1),
            user_data=np.zeros(1, [("stats_base", np.uintp)]),
            **kwargs,
        )

    (name,) = arguments
    with pytest.raises(ValueError, match=f"{name}: .* needs a declarative layout"):
        make(**arguments)
    stream = make()
    assert stream.epochs() == ()
    with pytest.raises(ValueError, match="flush: needs"):
        stream.flush()
    with pytest.raises(ValueError, match="drain: needs a declarative layout"):
        stream.drain()
    stream.stop()
