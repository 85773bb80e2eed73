"""Every heap accounted for: residual 0 under every fault, against the sender's own count."""

import dataclasses
import random
import struct
import time

import numpy as np
import pytest
import spead2

from handmade import SMALL, encode, small_heap
from receiving import CountingSink, GentleSink, assert_data, by_reason, receiver, residual
from reference import ReferenceStream, Slot, axis_index, axis_order
from speadrx import Axis, Layout, TimeAxis, add_reader
from speadrx.simulate import Faults, InprocSink, Simulator, UdpSink

LAYOUT = Layout(
    heap_bytes=192,
    time=TimeAxis(item=0x1600, step=100, batches=4),
    axes=(
        Axis(name="antenna", item=0x4101, size=5),
        Axis(name="band", item=0x4103, values=(7, 3, 90)),
    ),
    order=("band", "time", "antenna"),
    required_items=(0x4104,),
    sources="antenna",
)
CHUNK_HEAPS = LAYOUT.chunk_heaps  # 60
WINDOW = 4
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]

#: What a receiver sees and rejects.
SEEN_GARBAGE = ("length", "absent", "descriptor", "stop", "timestamp", "axis", "negative")


def decode(packet):
    """Immediate items and payload of a packet, or None if it is no SPEAD."""
    magic, version, _, address_bytes, _, n_items = struct.unpack_from(">4BHH", packet.ljust(8, b"\0"))
    if (magic, version) != (0x53, 4):
        return None
    pointers = struct.unpack_from(f">{n_items}Q", packet, 8)
    bits = 8 * address_bytes
    items = {pointer % 2**63 >> bits: pointer % 2**bits for pointer in pointers if pointer >> 63}
    return items, packet[8 + 8 * n_items :]


class Oracle:
    """A sink that hands on packets, each a whole heap, and works out what must become of them.

    It knows the window of the receiver and the rules of placement (reference.py), and nothing of the receiver.
    """

    def __init__(self, sink, layout=LAYOUT, window=WINDOW):
        self.sink = sink
        self.layout = layout
        self.reference = ReferenceStream(layout, {}, window)
        (self.source_axis,) = (axis for axis in layout.axes if axis.name == layout.sources)
        self.n_sources = len(layout.source_labels)
        self.unseen = 0
        self.too_old = [0] * self.n_sources
        self.rejected = {reason: [0] * (self.n_sources + 1) for reason in self.reference.rejected}
        self.late_batches = [0] * 33
        self.late_chunks = [0] * (window + 1)
        self.newest_batch = -1

    def send(self, flow, packet):
        self.sink.send(flow, packet)
        decoded = decode(packet)
        too_old = self.reference.too_old
        outcome = None if decoded is None else self.reference.heap(*decoded)
        if outcome is None:
            self.unseen += 1
        elif isinstance(outcome, Slot):
            self.too_old[outcome.source] += self.reference.too_old - too_old
            self._lateness(outcome)
        else:
            item = decoded[0].get(self.source_axis.item)
            source = None if item is None else axis_index(self.source_axis, item)
            self.rejected[outcome][-1 if source is None else source] += 1

    def _lateness(self, slot):
        batch = slot.timestamp // self.layout.time.step
        self.newest_batch = max(self.newest_batch, batch)
        behind = self.newest_batch // self.layout.time.batches - slot.chunk_id
        self.late_chunks[min(behind, len(self.late_chunks) - 1)] += 1
        if not behind:
            self.late_batches[(self.newest_batch - batch).bit_length()] += 1

    def present(self):
        """Heaps present by source, once all packets are sent."""
        self.reference.stop()
        shape = [self.reference.sizes[name] for name in axis_order(self.layout)]
        others = tuple(i for i, name in enumerate(axis_order(self.layout)) if name != self.layout.sources)
        return sum(chunk.present.reshape(shape).sum(axis=others, dtype=int) for chunk in self.reference.done)


def assert_as_worked_out(rx, oracle):
    """Every count, of every source, is what the oracle says."""
    ledger, accounting = rx.stream.ledger.snapshot(), rx.iterator.accounting
    for source, heaps in enumerate(zip(*oracle.rejected.values(), strict=True)):
        mine = {reason: int(counts[source]) for reason, counts in ledger.rejected_by_source.items()}
        assert by_reason(mine) == by_reason(dict(zip(oracle.rejected, heaps, strict=True))), source
    assert ledger.placed_by_source.tolist() == oracle.reference.placed
    assert ledger.duplicates_by_source.tolist() == oracle.reference.duplicates
    assert ledger.newest_timestamp_by_source.tolist() == oracle.reference.newest
    assert ledger.late_chunks.tolist() == oracle.late_chunks
    assert ledger.late_batches.tolist() == oracle.late_batches
    assert rx.stat("too_old_heaps") == sum(oracle.too_old)
    present = oracle.present()
    np.testing.assert_array_equal(accounting.present_by_source, present)
    # Each source for itself: what has no source in the counters has one here.
    np.testing.assert_array_equal(
        ledger.placed_by_source - ledger.duplicates_by_source - accounting.present_by_source, oracle.too_old
    )


def assert_identities(rx, simulators):
    """The identities of the whole stream, and of each source as far as they go.

    Of simulators whose first and last batches have come, at least in part, and have filled whole chunks. The
    numbers on the right are the senders'.
    """
    truths = [simulator.truth for simulator in simulators]
    ledger, accounting = rx.stream.ledger.snapshot(), rx.iterator.accounting

    def total(name):
        return np.sum([getattr(truth, name) for truth in truths], axis=0)

    undelivered = ledger.placed_by_source - ledger.duplicates_by_source - accounting.present_by_source
    assert (undelivered.astype(np.int64) >= 0).all()
    assert undelivered.sum() == rx.stat("too_old_heaps") + total("incomplete").sum()
    np.testing.assert_array_equal(
        accounting.present_by_source + accounting.missing_by_source,
        total("sent") - total("duplicated") + total("lost"),
    )
    assert accounting.missing == accounting.missing_by_source.sum()
    assert accounting.expected == accounting.present + accounting.missing
    assert ledger.seen == ledger.placed + sum(ledger.rejected.values())
    assert ledger.late_chunks.sum() == ledger.placed
    assert ledger.late_batches.sum() == ledger.late_chunks[0]
    unseen = sum(sum(truth.unseen.values()) for truth in truths) + rx.stream.kernel_drops()
    assert sum(truth.copies for truth in truths) == ledger.seen + unseen
    assert residual(rx, truths) == 0


def run(faults, seed, batches=40 * 4):
    """Send heaps of one packet each with some faults, and check all that can be known."""
    simulator = Simulator(LAYOUT, seed=seed, first_timestamp=2400, faults=faults)
    with receiver(LAYOUT, window=WINDOW) as rx:
        oracle = Oracle(InprocSink(rx.queues[0]))
        simulator.send(oracle, batches)
        rx.finish()
        assert_data(rx, [simulator])
        assert_as_worked_out(rx, oracle)
        assert_identities(rx, [simulator])
        assert oracle.unseen == sum(simulator.truth.unseen.values())
        missing = rx.iterator.accounting.missing_by_source
    return simulator.truth, oracle, missing


@pytest.mark.parametrize("loss", [0.001, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("seed", SEEDS)
def test_loss(loss, seed):
    truth, _, missing = run(Faults(loss=loss), seed, batches=600)
    assert sum(truth.lost) > 0
    assert missing.tolist() == truth.lost


@pytest.mark.parametrize("seed", SEEDS)
def test_reordering_inside_the_window(seed):
    _, oracle, missing = run(Faults(reorder=2 * CHUNK_HEAPS), seed)
    assert sum(oracle.late_chunks[1:]) > 100
    assert missing.tolist() == [0] * 5


@pytest.mark.parametrize("seed", SEEDS)
def test_reordering_beyond_the_window(seed):
    _, oracle, missing = run(Faults(reorder=30, late=0.05, late_by=5 * CHUNK_HEAPS), seed)
    assert min(oracle.too_old) > 5
    assert missing.tolist() == oracle.too_old


@pytest.mark.parametrize("seed", SEEDS)
def test_duplicates(seed):
    """Copies inside the window are duplicates; later ones are too old, whether or not the first has come."""
    truth, oracle, missing = run(Faults(duplicate=0.2, reorder=20), seed)
    assert oracle.reference.duplicates == truth.duplicated
    assert missing.tolist() == [0] * 5
    truth, oracle, missing = run(Faults(duplicate=0.2, late=0.1, late_by=5 * CHUNK_HEAPS), seed)
    assert 0 < sum(oracle.reference.duplicates) < sum(truth.duplicated)
    assert sum(missing) < sum(oracle.too_old)


@pytest.mark.parametrize("kinds", [("length",), SEEN_GARBAGE, ("noise", "unsized", "empty"), None])
@pytest.mark.parametrize("seed", SEEDS)
def test_garbage(kinds, seed):
    truth, oracle, missing = run(Faults(garbage=0.5, garbage_kinds=kinds), seed)
    assert {reason: sum(heaps) for reason, heaps in oracle.rejected.items() if any(heaps)} == truth.rejected
    assert missing.tolist() == [0] * 5
    if kinds is None:
        assert min(oracle.rejected["metadata_heaps"]) > 0  # of each source, and of none
        assert min(truth.unseen.values()) > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_at_once(seed):
    faults = Faults(
        loss=0.05, reorder=100, late=0.05, late_by=5 * CHUNK_HEAPS, duplicate=0.1, garbage=0.3, garbage_kinds=None
    )
    truth, oracle, missing = run(faults, seed)
    assert min(*truth.lost, *oracle.too_old, *oracle.reference.duplicates, *truth.unseen.values()) > 0
    assert sum(missing) > sum(truth.lost)


@pytest.mark.parametrize("seed", SEEDS)
def test_incomplete_heaps(seed):
    """A heap that lacks a packet has a source: it is placed, but never present."""
    layout = dataclasses.replace(LAYOUT, heap_bytes=1000)
    faults = Faults(packet_loss=0.05, packet_reorder=20, reorder=3, duplicate=0.1, garbage=0.1)
    simulator = Simulator(layout, seed=seed, faults=faults, max_packet_size=300)
    with receiver(layout, window=30, pool=40, allow_out_of_order=True, max_heaps=4096) as rx:
        simulator.send(InprocSink(rx.queues[0]), 40 * 4)
        rx.finish()
        truth = simulator.truth
        assert_data(rx, [simulator])
        assert_identities(rx, [simulator])
        ledger, accounting = rx.stream.ledger.snapshot(), rx.iterator.accounting
        assert min(truth.incomplete) > 20
        assert ledger.placed_by_source.tolist() == truth.sent
        assert ledger.duplicates_by_source.tolist() == truth.duplicated
        assert accounting.present_by_source.tolist() == truth.complete
        assert accounting.missing_by_source.tolist() == np.add(truth.incomplete, truth.lost).tolist()


def test_incomplete_heaps_of_spead2_are_others():
    """spead2 counts incomplete heaps that are also rejected or too old: its counters are not for adding."""
    heaps = [
        {0x10: 640},
        {0x10: 656, "packets": 1},  # unfinished
        {0x10: 672, spead2.HEAP_LENGTH_ID: 5, "packets": 1},  # rejected
        {0x10: 512, "packets": 1},  # too old
        {0x10: 704},
    ]
    with receiver(SMALL, window=2) as rx:
        for i, changes in enumerate(heaps):
            packets = changes.pop("packets", 2)
            heap = dataclasses.replace(small_heap(changes), n_packets=2)
            for packet in encode(heap, i, 48)[:packets]:
                rx.queues[0].add_packet(packet)
        rx.finish()
        ledger = rx.stream.ledger.snapshot()
        assert (ledger.placed, rx.iterator.accounting.present, rx.stat("too_old_heaps")) == (4, 2, 1)
        assert ledger.rejected["metadata_heaps"] == 1
        assert rx.stat("incomplete_heaps_evicted") + rx.stat("incomplete_heaps_flushed") == 3


@pytest.mark.parametrize(("order", "complete"), [([0, 1], True), ([0, 0, 1], True), ([1, 0], False)])
def test_packets_repeated_or_out_of_order(order, complete):
    """What spead2 drops within a heap only shows in its packets, and if the heap suffers, as an unfinished heap."""
    heap = dataclasses.replace(small_heap({0x10: 656}), n_packets=2)
    with receiver(SMALL, window=2) as rx:
        rx.queues[0].add_packet(encode(small_heap({0x10: 640}), 0, 48)[0])
        packets = encode(heap, 1, 48)
        for i in order:
            rx.queues[0].add_packet(packets[i])
        rx.finish()
        ledger = rx.stream.ledger.snapshot()
        assert (ledger.placed, ledger.duplicates) == (2, 0)
        assert rx.iterator.accounting.present == 1 + complete
        assert rx.stat("packets") == 1 + len(order)


def test_stop_throws_chunks_away():
    """Heaps of chunks under construction count as unfinished if the stream is stopped rather than ended."""
    with receiver(SMALL, window=2) as rx:
        for i in range(6):
            rx.queues[0].add_packet(encode(small_heap({0x10: i * SMALL.chunk_timestamp_step}), i, 48)[0])
        deadline = time.monotonic() + 60
        while rx.stream.ledger.snapshot().seen < 6 or rx.iterator.accounting.chunks < 4:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        rx.stream.stop()
        rx.wait()
        accounting = rx.iterator.accounting
        assert rx.stream.ledger.snapshot().placed_by_source.tolist() == [0, 6, 0]
        assert accounting.present_by_source.tolist() == [0, 4, 0]
        assert (accounting.expected, rx.stat("too_old_heaps")) == (3 * SMALL.chunk_heaps + SMALL.batch_heaps, 0)


# Kernel drops


def overrun(rx, simulator, port, rounds=2):
    """Overrun a tiny socket buffer again and again, while nobody takes the chunks and all of them are in use.

    The first and the last chunk come whole, so that all that is missing can be known to be.
    """
    add_reader(rx.stream, src=[("127.0.0.1", port)], buffer=1)
    with UdpSink([("127.0.0.1", port)]) as udp:
        sink = CountingSink(udp, rx)
        simulator.send(GentleSink(sink), LAYOUT.chunk_batches)
        for _ in range(rounds):
            with rx.pause():
                simulator.send(sink, 30 * LAYOUT.chunk_batches)
            simulator.send(sink, LAYOUT.chunk_batches)  # the consumer is back, but far behind
            sink.settle()
        simulator.send(GentleSink(sink), (WINDOW + 6) * LAYOUT.chunk_batches)
        sink.settle()
    assert sink.sent == simulator.truth.packets
    rx.finish()
    return rx.stream.kernel_drops()


def test_kernel_drops(udp_port):
    simulator = Simulator(LAYOUT)
    with receiver(LAYOUT, window=WINDOW) as rx:
        drops = overrun(rx, simulator, udp_port)
        assert 1000 < drops < simulator.truth.packets
        assert_data(rx, [simulator])
        assert_identities(rx, [simulator])
        # A dropped packet has no source any more. But it is missing, and what is missing has one.
        # Once so much was dropped that time has jumped, some heaps are rejected before that is believed.
        doubted = rx.stream.ledger.snapshot().rejected["implausible_timestamp_heaps"]
        assert rx.iterator.accounting.missing == drops + doubted
        assert (rx.iterator.accounting.missing_by_source > 0).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_kernel_drops_and_all_else(udp_port, seed):
    # Garbage that nobody sees would count twice if the kernel dropped it.
    kinds = tuple(kind for kind in SEEN_GARBAGE if kind != "negative")
    faults = Faults(
        loss=0.05,
        reorder=30,
        late=0.02,
        late_by=5 * CHUNK_HEAPS,
        duplicate=0.1,
        garbage=0.1,
        garbage_kinds=kinds,
    )
    simulator = Simulator(LAYOUT, seed=seed, faults=faults)
    with receiver(LAYOUT, window=WINDOW) as rx:
        drops = overrun(rx, simulator, udp_port)
        assert drops > 1000
        assert_data(rx, [simulator])
        assert_identities(rx, [simulator])
        ledger = rx.stream.ledger.snapshot()
        assert rx.stat("too_old_heaps") > 0
        assert 0 < ledger.duplicates < sum(simulator.truth.duplicated)
        made = {**simulator.truth.rejected, "implausible_timestamp_heaps": ledger.seen}  # until a jump is believed
        assert all(heaps <= made.get(reason, 0) for reason, heaps in ledger.rejected.items())


def test_kernel_drops_of_many_packets(udp_port):
    """The kernel counts packets: of heaps of several packets, its drops are bounds of what is missing."""
    layout = dataclasses.replace(LAYOUT, heap_bytes=1000)
    simulator = Simulator(layout, max_packet_size=500)
    n_packets = len(list(Simulator(layout, max_packet_size=500).packets(1))) // layout.batch_heaps
    assert n_packets > 2
    with receiver(layout, window=WINDOW, allow_out_of_order=True, max_heaps=4096) as rx:
        drops = overrun(rx, simulator, udp_port)
        assert_data(rx, [simulator])
        truth, ledger, accounting = simulator.truth, rx.stream.ledger.snapshot(), rx.iterator.accounting
        assert rx.stat("packets") + drops == truth.packets
        np.testing.assert_array_equal(accounting.present_by_source + accounting.missing_by_source, truth.sent)
        assert ledger.duplicates == rx.stat("too_old_heaps") == 0
        unseen = sum(truth.sent) - ledger.seen
        unfinished = ledger.placed - accounting.present
        assert unseen > 0
        assert unfinished > 0
        # Those rejected before a jump is believed may lack packets too.
        partly = unfinished + sum(ledger.rejected.values())
        assert n_packets * unseen + unfinished <= drops <= n_packets * unseen + (n_packets - 1) * partly


# Groups


class Router:
    """A sink for a group: each antenna has its stream, and the packets of one stream may be held back."""

    def __init__(self, rx, simulator, members):
        self.rx = rx
        self.member = [members[indices[0]] for indices in simulator.indices]
        self.sent = [0] * len(rx.queues)
        self.slow = 1
        self.held = []

    def send(self, flow, packet):
        member = self.member[flow]
        if member == self.slow:
            self.held.append(packet)
        else:
            self._put(member, packet)

    def _put(self, member, packet):
        self.rx.queues[member].add_packet(packet)
        self.sent[member] += 1

    def release(self, n):
        """Send the oldest of the packets held back."""
        for packet in self.held[:n]:
            self._put(self.slow, packet)
        del self.held[:n]

    def settle(self):
        """Wait until the callbacks have seen all that was sent."""
        deadline = time.monotonic() + 60
        while [ledger.snapshot().seen for ledger in self.rx.stream.ledgers] != self.sent:
            assert time.monotonic() < deadline, "heaps were sent and not seen"
            time.sleep(0.0005)


@pytest.mark.parametrize("seed", SEEDS)
def test_eviction_in_a_lossy_group(seed):
    """A group drops the late heaps of a slow stream behind the callback's back: they are too old, of that stream."""
    members = [0, 0, 1, 0, 1]  # by antenna
    simulator = Simulator(LAYOUT, seed=seed, faults=Faults(loss=0.02, reorder=10))
    rng = random.Random(seed)
    with receiver(LAYOUT, members=2, window=WINDOW) as rx:
        router = Router(rx, simulator, members)
        for i in range(120):
            simulator.send(router, LAYOUT.chunk_batches)
            # At times the slow stream catches up, at times it races with the other, or falls far behind.
            if i % 3:
                router.settle()
            router.release(len(router.held) if i % 16 == 15 else rng.choice([0, 12, 24, 24]))
        router.settle()
        router.release(len(router.held))
        rx.finish()
        truth = simulator.truth
        assert_data(rx, [simulator])
        assert_identities(rx, [simulator])
        ledgers = [ledger.snapshot() for ledger in rx.stream.ledgers]
        accounting = rx.iterator.accounting
        for member, (stream, ledger) in enumerate(zip(rx.streams, ledgers, strict=True)):
            mine = np.equal(members, member)
            # Each member by itself, against what was sent to it.
            # Sources that are behind but not late hold the window: few heaps of others may be refused meanwhile.
            refused = ledger.rejected_by_source["implausible_timestamp_heaps"][: len(members)]
            assert (ledger.placed_by_source + refused).tolist() == np.multiply(truth.sent, mine).tolist()
            assert refused.sum() <= 0.01 * ledger.placed
            assert ledger.duplicates == 0
            present = accounting.present_by_source[mine].sum()
            assert np.sum(truth.sent, where=mine) == present + stream.stats["too_old_heaps"] + refused.sum()
        assert rx.streams[1].stats["too_old_heaps"] > 100
        assert rx.streams[0].stats["too_old_heaps"] == 0
        refused = ledgers[0].rejected_by_source["implausible_timestamp_heaps"][: len(members)]
        np.testing.assert_array_equal(
            accounting.missing_by_source[np.equal(members, 0)], (np.array(truth.lost) + refused)[[0, 1, 3]]
        )
