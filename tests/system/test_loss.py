"""Packets lost in a network of namespaces: what is missing of each source is what nftables has dropped of it."""

import contextlib
import time

import numpy as np
import pytest

from network import RECEIVER, SENDER_PREFIX, network
from receiving import assert_data, receiver
from speadrx import Axis, Layout, TimeAxis, add_reader
from speadrx.simulate import Simulator, UdpSink

pytestmark = pytest.mark.fault(11)

PORT = 7148
SOURCES = ("m000", "m001", "m002", "m003")
LAYOUT = Layout(
    heap_bytes=512,
    time=TimeAxis(item=0x1600, step=4096, batches=64),
    axes=(Axis(name="antenna", item=0x4101, size=len(SOURCES)),),
    sources="antenna",
    source_labels=SOURCES,
)
FIRST_TIMESTAMP = 1000 * LAYOUT.chunk_timestamp_step
WINDOW = 4
BUFFER = 2**24

#: Each source sends from an address of its own, so that nftables can tell the sources apart.
ADDRESSES = tuple(f"{SENDER_PREFIX}{10 + i}" for i in range(len(SOURCES)))
BY_SOURCE = "ip saddr map {{ {} }}".format(", ".join(f'{a} : "{s}"' for a, s in zip(ADDRESSES, SOURCES, strict=True)))

#: Chunks that lossy packets fill, by the per mille that are lost: enough to lose some of every source.
LOSSY_CHUNKS = {1: 80, 10: 30, 100: 20, 500: 20}


class Senders:
    """A sink that sends the packets of each source from its own address."""

    def __init__(self, simulator, stack, place):
        with place.entered():
            self.sinks = [stack.enter_context(UdpSink([(RECEIVER, PORT)], interface=address)) for address in ADDRESSES]
        self.source = [indices[0] for indices in simulator.indices]
        self.sent = [0] * len(SOURCES)

    def send(self, flow, packet):
        source = self.source[flow]
        self.sinks[source].send(flow, packet)
        self.sent[source] += 1


class Run:
    """Send through a network that loses packets; the first and the last chunk come whole.

    So all heaps lost are between heaps that came, where what is missing can be known.
    """

    def __init__(self, drop, simulator, chunks, **kwargs):
        self.simulator = simulator
        with contextlib.ExitStack() as stack:
            net = stack.enter_context(network(ADDRESSES))
            net.rules(
                "table ip loss {\n"
                + "".join(f"counter {source} {{ }}\n" for source in SOURCES)
                + "counter arrived { }\n"
                + "chain forward { type filter hook forward priority filter; }\n"
                + "}"
            )
            rx = self.rx = stack.enter_context(receiver(simulator.layout, window=WINDOW, **kwargs))
            with net.receiver.entered():
                add_reader(rx.stream, src=[(RECEIVER, PORT)], buffer=BUFFER)
            senders = Senders(simulator, stack, net.sender)
            counts = f"udp dport {PORT} counter name arrived"
            for rules, n in (
                (counts, 1),
                (f"{counts} {drop} counter name {BY_SOURCE} drop", chunks),
                (counts, 1),
            ):
                net.rules(f"flush chain ip loss forward\nadd rule ip loss forward {rules}")
                for _ in range(n):
                    simulator.send(senders, LAYOUT.chunk_batches)
                    self._settle(net, sum(senders.sent))
            rx.finish()
            counters = net.counters()
            # Neither coalesced nor lost elsewhere: the counters count packets as they were sent.
            assert counters["arrived"] == sum(senders.sent) == simulator.truth.packets
            self.sent = senders.sent
            self.dropped = [counters[source] for source in SOURCES]
            self.ledger = rx.stream.ledger.snapshot()
            self.missing = rx.iterator.accounting.missing_by_source.tolist()

    def _settle(self, net, sent):
        """Wait until all packets sent have been received or dropped, so that no queue on their way is ever full."""
        deadline = time.monotonic() + 60
        dropped = 0
        while (received := self.rx.stat("packets")) + dropped < sent:
            assert time.monotonic() < deadline, f"of {sent} packets {received} came, {dropped} were dropped"
            counters = net.counters()
            dropped = sum(counters[source] for source in SOURCES)
        assert received + dropped == sent

    def check(self, fault_report, note, *, unseen, unfinished):
        """What must hold whatever was lost, where so many heaps were never seen, and so many came in part."""
        rx, truth, accounting = self.rx, self.simulator.truth, self.rx.iterator.accounting
        residual = truth.copies - accounting.present - unseen - unfinished
        fault_report(sent=truth.copies, lost=accounting.missing, residual=residual, note=note)
        assert residual == 0
        assert self.ledger.seen == truth.copies - unseen
        assert_data(rx, [self.simulator])
        assert rx.stat("packets") == sum(self.sent) - sum(self.dropped)
        assert accounting.expected_by_source.tolist() == truth.sent
        assert rx.stat("too_old_heaps") == rx.stat("rejected_heaps") == rx.stream.kernel_drops() == 0
        assert not any(self.ledger.rejected.values())
        assert self.ledger.duplicates == 0
        assert sum(chunk.present.sum() for chunk in rx.chunks) == accounting.present


@pytest.mark.parametrize("per_mille", LOSSY_CHUNKS)
def test_random_loss(per_mille, fault_report):
    """A heap of one packet is missing if its packet was dropped: of each source exactly as many as nftables says."""
    simulator = Simulator(LAYOUT, seed=per_mille, first_timestamp=FIRST_TIMESTAMP)
    run = Run(f"numgen random mod 1000 < {per_mille}", simulator, LOSSY_CHUNKS[per_mille])
    note = f"{per_mille / 10:g} % of the packets: {sum(run.dropped)} dropped by nftables, each a heap"
    run.check(fault_report, note, unseen=sum(run.dropped), unfinished=0)
    assert sum(run.dropped) > 0
    assert run.missing == run.dropped
    np.testing.assert_array_equal(run.ledger.placed_by_source, np.subtract(run.sent, run.dropped))


@pytest.mark.parametrize("per_mille", LOSSY_CHUNKS)
def test_loss_of_heaps_of_several_packets(per_mille, rng, fault_report):
    """A heap is missing if any of its packets was dropped, and it is never seen if all were.

    Of each so many packets that pass, nftables drops the ones that the test has chosen: so it is known of each heap.
    """
    period, n_packets = 2000, 2
    chosen = np.zeros(period, bool)
    chosen[rng.choice(period, per_mille * period // 1000, replace=False)] = True
    simulator = Simulator(LAYOUT, seed=per_mille, first_timestamp=FIRST_TIMESTAMP, max_packet_size=400)
    drop = f"numgen inc mod {period} {{ {', '.join(map(str, np.flatnonzero(chosen)))} }}"
    chunks = LOSSY_CHUNKS[per_mille]
    run = Run(drop, simulator, chunks, allow_out_of_order=True, max_heaps=2 * WINDOW * LAYOUT.chunk_heaps)
    heaps = chunks * LAYOUT.chunk_heaps
    # The packets of a heap follow each other, and the sources take turns.
    lost = np.resize(chosen, heaps * n_packets).reshape(-1, len(SOURCES), n_packets)
    unseen = lost.all(axis=2).sum(axis=0)
    unfinished = lost.any(axis=2).sum() - unseen.sum()
    note = f"{per_mille / 10:g} % of the packets: {sum(run.dropped)} dropped by nftables, {n_packets} a heap"
    run.check(fault_report, note, unseen=unseen.sum(), unfinished=unfinished)
    assert run.dropped == lost.sum(axis=(0, 2)).tolist()
    assert run.missing == lost.any(axis=2).sum(axis=0).tolist()
    np.testing.assert_array_equal(run.ledger.placed_by_source, run.simulator.truth.sent - unseen)
    assert unfinished > 0
    # Not only as many, but the very heaps.
    present = np.concatenate([chunk.present for chunk in run.rx.chunks[1:-1]])
    np.testing.assert_array_equal(present, ~lost.any(axis=2))
