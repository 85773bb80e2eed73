"""Garbage timestamps, restarted senders, the 48-bit wrap, and a source whose clock is wrong."""

import dataclasses
import logging

import numpy as np
import pytest
import spead2

from handmade import Heap, encode
from loopback import wait_for
from receiving import receiver, residual
from speadrx import Axis, Layout, TimeAxis
from speadrx.simulate import DEFAULT_FLAVOUR, InprocSink, Simulator

# IDs of 7 bits, for the flavour 64-56.
TIME_ID, ANTENNA_ID, PAYLOAD_ID = 0x16, 0x41, 0x33
STEP, BATCHES, WINDOW = 4096, 8, 4
CHUNK = STEP * BATCHES
RANGE = 2**48
#: Ticks a second of MeerKAT's L-band digitisers, and of a day.
TICK_RATE = 1712e6
DAY = int(86400 * TICK_RATE) // CHUNK * CHUNK
#: Where the senders are when nothing is wrong yet.
START = 2**47 // CHUNK * CHUNK
#: Of which a hundredth is more than may be lost, and half is a number of chunks.
GOOD_BATCHES = {4: 416, 80: 208}


def layout(n_sources, *, tick_rate=TICK_RATE):
    return Layout(
        heap_bytes=32,
        time=TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES, tick_rate=tick_rate),
        axes=(Axis(name="antenna", item=ANTENNA_ID, size=n_sources), Axis(name="pol", from_user_data="pol", size=2)),
        sources="antenna",
    )


def most_lost(array, shape):
    """Heaps of sources in step before more than half of them have said where time is, and one that was wrong.

    The threads of a group's streams may read the same sources side by side. What one has read then says nothing that
    the others have not said, so that each stream can lose as much.
    """
    return array.n_streams * (shape[0] // 2 + 1)


class Array:
    """Senders of one polarisation each (of one only, without a group), and the receiver of both."""

    def __init__(self, rx, n_streams):
        self.rx = rx
        self.n_streams = n_streams
        self.heap_cnt = 2**40
        #: What was sent, in the order of sending: simulators of all streams for each run of time.
        self.runs = []
        self.made = 0

    @property
    def good_batches(self):
        return GOOD_BATCHES[self.rx.layout.axes[0].size]

    def send(self, first_timestamp, batches=None, flavour=DEFAULT_FLAVOUR):
        """Send heaps from a time on, all streams alike."""
        batches = self.good_batches if batches is None else batches
        simulators = [
            Simulator(
                self.rx.layout,
                seed=len(self.runs),
                first_timestamp=first_timestamp,
                user_data={"pol": pol},
                flavour=flavour,
                payload_item=PAYLOAD_ID,
            )
            for pol in range(self.n_streams)
        ]
        self.runs.append(simulators)
        while batches:
            # Streams of a group that run ahead evict what the others still fill.
            n = min(batches, BATCHES // 2)
            batches -= n
            for queue, simulator in zip(self.rx.queues, simulators, strict=True):
                simulator.send(InprocSink(queue), n)
            self.settle()

    def heap(self, timestamp, *, antenna=0, stream=0, address_bits=48):
        """Send a heap with any timestamp."""
        self.heap_cnt += 1
        self.made += 1
        items = {TIME_ID: timestamp, spead2.HEAP_LENGTH_ID: self.rx.layout.heap_bytes, ANTENNA_ID: antenna}
        for packet in encode(Heap(items, bytes(self.rx.layout.heap_bytes)), self.heap_cnt, address_bits):
            self.rx.queues[stream].add_packet(packet)
        self.settle()

    def settle(self):
        self.rx.wait_for_packets(self.made + sum(simulator.truth.packets for run in self.runs for simulator in run))

    @property
    def truths(self):
        return [simulator.truth for run in self.runs for simulator in run]

    @property
    def residual(self):
        return self.made + residual(self.rx, self.truths)

    def received(self):
        """Heaps received of each run, all with their true timestamps and the bytes that were sent."""
        counts = [0] * len(self.runs)
        run = 0
        previous = -1
        for chunk in self.rx.chunks:
            ends = [run[0]._next_batch * STEP for run in self.runs]
            starts = [end - run[0].truth.sent[0] * STEP for end, run in zip(ends, self.runs, strict=True)]
            if chunk.timestamp <= previous or not starts[run] - CHUNK < chunk.timestamp < ends[run]:
                run += 1
            previous = chunk.timestamp
            assert starts[run] - CHUNK < chunk.timestamp < ends[run], "a chunk of no time that was sent"
            expected = self.runs[run][0].chunk_data(chunk.timestamp)
            np.testing.assert_array_equal(chunk.data[chunk.present], expected[chunk.present])
            counts[run] += int(chunk.present.sum())
        return counts

    def sent(self, run):
        return sum(sum(simulator.truth.sent) for simulator in self.runs[run])


@pytest.fixture(
    params=[
        pytest.param((4, None), id="4 sources"),
        pytest.param((4, 2), id="4 sources, a group"),
        pytest.param((80, None), id="80 sources", marks=pytest.mark.slow),
        pytest.param((80, 2), id="80 sources, a group", marks=pytest.mark.slow),
    ]
)
def shape(request):
    """Number of sources, and of streams of a group."""
    return request.param


@pytest.fixture
def array(shape):
    """Make an array of senders with its receiver."""
    n_sources, members = shape
    receivers = []

    def array(*, resync=True, tick_rate=TICK_RATE):
        pols = np.zeros(members or 1, [("stats_base", np.uintp), ("pol", np.uintp)])
        pols["pol"] = range(members or 1)
        rx = receiver(
            layout(n_sources, tick_rate=tick_rate),
            members=members,
            user_data=pols,
            window=WINDOW,
            pool=2 * (WINDOW + 1) + 2,
            resync=resync,
        )
        receivers.append(rx)
        return Array(rx.__enter__(), members or 1)

    yield array
    for rx in receivers:
        rx.__exit__(None, None, None)


GARBAGE = {
    "2^40": (2**40, 48, "implausible_timestamp_heaps"),
    "2^47 away": ((START + 2**47) % RANGE, 48, "implausible_timestamp_heaps"),
    "2^48-1": (2**48 - 1, 48, "bad_timestamp_heaps"),
    "last of 48 bits": (2**48 - STEP, 48, "implausible_timestamp_heaps"),
    "above 2^48": (2**48 + START, 56, "bad_timestamp_heaps"),
    "2^56 - 1": (2**56 - 1, 56, "bad_timestamp_heaps"),
}


@pytest.mark.fault(3)
@pytest.mark.parametrize("resync", [False, True], ids=["no resync", "resync"])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_timestamp_in_mid_stream(array, shape, garbage, resync, fault_report):
    timestamp, address_bits, reason = GARBAGE[garbage]
    array = array(resync=resync)
    flavour = spead2.Flavour(4, 64, address_bits, 0)
    array.send(START, 100, flavour)
    for stream in range(array.n_streams):
        array.heap(timestamp, antenna=shape[0] - 1, stream=stream, address_bits=address_bits)
    (simulators,) = array.runs
    for _ in range(53):  # to the end of a chunk
        for queue, simulator in zip(array.rx.queues, simulators, strict=True):
            simulator.send(InprocSink(queue), 4)
        array.settle()
    array.rx.finish()
    (received,) = array.received()
    fault_report(sent=array.sent(0), lost=array.sent(0) - received, residual=array.residual, note=garbage)
    assert received == array.sent(0)
    assert array.residual == 0
    ledger = array.rx.stream.ledger.snapshot()
    assert ledger.rejected_by_source[reason].tolist()[shape[0] - 1] == array.n_streams
    assert sum(ledger.rejected.values()) == array.n_streams
    assert array.rx.iterator.accounting.missing == array.sent(0) * (2 // array.n_streams - 1)


@pytest.mark.fault(3)
@pytest.mark.parametrize("timestamp", [0, 2**40, 2**46, 2**48 - CHUNK])
def test_garbage_timestamp_in_the_first_heap(array, shape, timestamp, fault_report):
    array = array()
    array.heap(timestamp)
    array.send(START + 3 * STEP)
    array.rx.finish()
    chunks = array.rx.chunks
    assert chunks[0].timestamp == timestamp // CHUNK * CHUNK
    assert chunks[0].present.sum() == 1
    del chunks[0]
    (received,) = array.received()
    lost = array.sent(0) - received
    fault_report(sent=array.sent(0), lost=lost, residual=array.residual)
    assert 0 < lost <= most_lost(array, shape)
    assert array.residual == 0
    accounting = array.rx.iterator.accounting
    assert accounting.restarts == 1
    # Of the one heap its chunk, and none of the time between.
    assert accounting.expected <= (array.good_batches + 3 * BATCHES) * shape[0] * 2
    assert array.rx.stream.ledger.snapshot().rejected["implausible_timestamp_heaps"] == lost


RESTARTS = {
    "from 0": lambda end: 0,
    "a day back": lambda end: (end - DAY) % RANGE // CHUNK * CHUNK,
    "a day ahead": lambda end: (end + DAY) % RANGE // CHUNK * CHUNK,
    "an hour back": lambda end: end - DAY // 24 // CHUNK * CHUNK,
    "an hour ahead": lambda end: end + DAY // 24 // CHUNK * CHUNK,
    "a hundred chunks back": lambda end: end - 100 * CHUNK,
}


@pytest.mark.fault(4)
@pytest.mark.parametrize("restart", RESTARTS)
def test_restarted_senders(array, shape, restart, fault_report):
    array = array()
    array.send(START)
    first = RESTARTS[restart](START + array.good_batches * STEP)
    array.send(first)
    array.rx.finish()
    before, after = array.received()
    lost = array.sent(1) - after
    fault_report(sent=array.sent(1), lost=lost, residual=array.residual, note=restart)
    assert before == array.sent(0)
    assert lost <= most_lost(array, shape)
    assert lost < array.sent(1) // 100
    assert array.residual == 0
    accounting, ledger = array.rx.iterator.accounting, array.rx.stream.ledger.snapshot()
    assert ledger.rejected["implausible_timestamp_heaps"] == lost
    # One of each stream, in its first batch: then half of the sources have been heard.
    assert ledger.rejected_by_source["implausible_timestamp_heaps"].max() <= array.n_streams
    assert accounting.restarts == 1
    # Nothing is missing but what was lost, the rest of the chunks, and the other polarisation without a group.
    whole = 2 * array.good_batches * 2 * shape[0]
    assert accounting.expected <= whole + 2 * CHUNK // STEP * 2 * shape[0]
    gap = (first - START) // STEP - array.good_batches
    if gap > 0:
        # From the end of the last chunk to the first batch that came.
        assert abs(accounting.epoch_gap_heaps - gap * 2 * shape[0]) <= 4 * BATCHES * 2 * shape[0]
    else:
        assert accounting.epoch_gap_heaps == 0
    assert [epoch.cause for epoch in array.rx.stream.epochs()] == ["start", "restart"]
    newest = ledger.newest_timestamp_by_source.tolist()
    assert newest == [first + (array.good_batches - 1) * STEP] * shape[0], (
        "the newest timestamps are those after the restart"
    )


@pytest.mark.fault(4)
def test_restart_backwards_without_resync(array, shape, caplog, fault_report):
    """Chunk IDs go on to tell the time, so heaps from before it are rejected; once it is right again, they go on."""
    array = array(resync=False, tick_rate=None)
    array.send(START)
    with caplog.at_level(logging.WARNING, logger="speadrx.receive.watch"):
        array.send(START - 10**6 * CHUNK)
        wait_for(lambda: caplog.records)
        array.send(START - 10**7 * CHUNK, 100)
    array.send(START + array.good_batches * STEP)
    array.rx.finish()
    del array.runs[1:3]  # nothing of these was received
    before, after = array.received()
    ledger = array.rx.stream.ledger.snapshot()
    rejected = sum(ledger.rejected.values())
    lost = (array.good_batches + 100) * shape[0] * array.n_streams
    left = array.residual + lost
    fault_report(sent=array.sent(0) + array.sent(1) + lost, lost=rejected, residual=left, note="without resync")
    assert (before, after) == (array.sent(0), array.sent(1))
    assert rejected == lost
    assert left == 0
    assert 0 < ledger.rejected["implausible_timestamp_heaps"] <= 3 * most_lost(array, shape)
    assert ledger.rejected["backward_timestamp_heaps"] > rejected * 0.9
    assert array.rx.iterator.accounting.missing == (2 // array.n_streams - 1) * (array.sent(0) + array.sent(1))
    (record,) = caplog.records
    assert "resync" in record.message


@pytest.mark.fault(4)
def test_jump_ahead_without_resync(array, shape, fault_report):
    """It is followed. Without a tick rate nobody can tell it from an outage, so what lies between is missing."""
    array = array(resync=False, tick_rate=None)
    array.send(START)
    array.send(START + 1000 * CHUNK)
    array.rx.finish()
    before, after = array.received()
    lost = array.sent(1) - after
    fault_report(sent=array.sent(1), lost=lost, residual=array.residual, note="ahead, without resync")
    assert before == array.sent(0)
    assert lost <= most_lost(array, shape)
    assert array.residual == 0
    accounting = array.rx.iterator.accounting
    assert (accounting.restarts, accounting.epoch_gap_heaps) == (0, 0)
    assert accounting.expected == (1000 * BATCHES + array.good_batches) * 2 * shape[0]


@pytest.mark.fault(5)
@pytest.mark.parametrize("resync", [False, True], ids=["no resync", "resync"])
def test_wrap(array, shape, resync, fault_report):
    array = array(resync=resync)
    array.send(RANGE - array.good_batches // 2 * STEP)
    array.rx.finish()
    (received,) = array.received()
    fault_report(sent=array.sent(0), lost=array.sent(0) - received, residual=array.residual)
    assert received == array.sent(0)
    assert array.residual == 0
    assert [chunk.timestamp for chunk in array.rx.chunks] == [
        RANGE + (i - array.good_batches // BATCHES // 2) * CHUNK for i in range(array.good_batches // BATCHES)
    ]
    assert [epoch.cause for epoch in array.rx.stream.epochs()] == ["start"]


MADNESS = {
    "ahead": lambda batch: batch + 10**6,
    "behind": lambda batch: batch - 10**6,
    "jumping": lambda batch: batch + (batch * 40503) % 10**7,
    "drifting ahead": lambda batch: batch + batch // 4,
    "drifting behind": lambda batch: batch - batch // 4,
}


@pytest.mark.fault(6)
@pytest.mark.parametrize("madness", MADNESS)
def test_one_mad_clock(madness, fault_report):
    """One of 80 sources, from the start; the others lose nothing, and it is named."""
    mad, batches = 33, 500
    with receiver(layout(80), user_data=pol_0(), window=WINDOW, resync=True) as rx:
        queue = rx.queues[0]
        for batch in range(batches):
            for antenna in range(80):
                time = START // STEP + (MADNESS[madness](batch) if antenna == mad else batch)
                items = {TIME_ID: time * STEP % RANGE, spead2.HEAP_LENGTH_ID: 32, ANTENNA_ID: antenna}
                payload = (batch * 80 + antenna).to_bytes(8, "big") * 4
                for packet in encode(Heap(items, payload), batch * 80 + antenna + 1, 48):
                    queue.add_packet(packet)
        rx.finish()
        ledger, accounting = rx.stream.ledger.snapshot(), rx.iterator.accounting
        others = np.arange(80) != mad
        present = np.zeros(80, int)
        for chunk in rx.chunks:
            first = (chunk.timestamp - START) // STEP
            for in_chunk, antenna in np.argwhere(chunk.present[..., 0]):
                present[antenna] += 1
                if antenna != mad:
                    heap = (first + in_chunk) * 80 + antenna
                    assert chunk.data[in_chunk, antenna, 0].tobytes() == int(heap).to_bytes(8, "big") * 4
        sent = batches * 80
        rejected = sum(ledger.rejected.values())
        left = sent - accounting.present - ledger.duplicates - rx.stat("too_old_heaps") - rejected
        lost = batches * 79 - int(present[others].sum())
        fault_report(sent=batches * 79, lost=lost, residual=left, note=madness)
        assert present[others].tolist() == [batches] * 79
        assert left == 0
        # It is named: by its rejected heaps, or by what was placed but never present.
        implausible = ledger.rejected_by_source["implausible_timestamp_heaps"]
        undelivered = ledger.placed_by_source.astype(int) - ledger.duplicates_by_source.astype(int) - present
        wrong = implausible[:-1].astype(int) + undelivered
        assert wrong[mad] > batches // 4
        assert wrong[others].tolist() == [0] * 79
        assert accounting.restarts == 0


def pol_0():
    return np.zeros(1, [("stats_base", np.uintp), ("pol", np.uintp)])


@pytest.mark.fault(6)
def test_clock_that_goes_wrong_and_comes_right(fault_report):
    """A source that is restarted alone, with a wrong time at first, is received again once its time is right."""
    with receiver(layout(80), user_data=pol_0(), window=WINDOW, resync=True) as rx:
        array = Array(rx, 1)
        array.send(START, 80)
        for batch in range(40):
            array.heap(batch * STEP, antenna=7)
        (simulators,) = array.runs
        simulators[0].send(InprocSink(rx.queues[0]), 80)
        array.settle()
        rx.finish()
        (received,) = array.received()
        fault_report(sent=array.sent(0), lost=array.sent(0) - received, residual=array.residual)
        assert received == array.sent(0)
        assert array.residual == 0
        rejected = rx.stream.ledger.snapshot().rejected_by_source["implausible_timestamp_heaps"]
        assert rejected.tolist() == [40 * (i == 7) for i in range(81)]


def test_time_that_jumps_while_the_window_is_partly_filled(array):
    """Chunks under construction when time begins again come out with what they have, once."""
    array = array()
    array.send(START, 13)
    array.send(0, 100)
    array.rx.finish()
    before, after = array.received()
    assert before == array.sent(0)
    assert array.residual == 0
    timestamps = [chunk.timestamp for chunk in array.rx.chunks]
    assert timestamps[:2] == [START, START + CHUNK]
    assert len(set(timestamps)) == len(timestamps)
    assert after > 0


def test_layout_with_a_wrong_time_axis_is_seen_at_once():
    """What all heaps have wrong is no matter of time: nothing is ever placed."""
    wrong = dataclasses.replace(layout(4), time=TimeAxis(item=TIME_ID, step=STEP * 3, batches=BATCHES))
    with receiver(wrong, user_data=pol_0(), window=WINDOW, resync=True) as rx:
        simulator = Simulator(layout(4), first_timestamp=START + STEP, user_data={"pol": 0}, payload_item=PAYLOAD_ID)
        simulator.send(InprocSink(rx.queues[0]), 2)
        rx.finish()
        assert rx.stream.ledger.snapshot().rejected["bad_timestamp_heaps"] >= 4
