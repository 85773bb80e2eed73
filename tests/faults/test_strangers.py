"""What strangers send to the port of a stream: stop items, descriptors, other flavours, unknown items."""

import random

import numpy as np
import pytest
import spead2
import spead2.send

from handmade import SMALL
from receiving import assert_accounts, assert_data, receiver, residual
from speadrx.simulate import Simulator

CHUNKS = 40
FLAVOURS = [spead2.Flavour(4, 64, bits, 0) for bits in (40, 48, 56)]
UNKNOWN_ID = 0x7E
# With a payload item that even the short item IDs of flavour 64-56 can express.
PAYLOAD_ID = 0x7F


def stop(flavour, i):
    heap = spead2.send.Heap(flavour)
    heap.add_end()
    return heap


def start(flavour, i):
    heap = spead2.send.Heap(flavour)
    heap.add_start()
    return heap


def item_group(flavour):
    group = spead2.send.ItemGroup(flavour=flavour)
    group.add_item(UNKNOWN_ID, "unknown", "an item of somebody else", (30,), np.uint8, value=np.arange(30, dtype="u1"))
    return spead2.send.HeapGenerator(group, flavour=flavour)


def descriptors(flavour, i):
    return item_group(flavour).get_heap(descriptors="all", data="none")


def descriptors_and_data(flavour, i):
    return item_group(flavour).get_heap(descriptors="all", data="all")


def unknown_items(flavour, i):
    """A heap of the right length, with everything but what makes it one of ours."""
    heap = spead2.send.Heap(flavour)
    heap.add_item(spead2.Item(PAYLOAD_ID, "data", "", (SMALL.heap_bytes,), np.uint8, value=np.full(4, i % 256, "u1")))
    heap.add_item(spead2.Item(UNKNOWN_ID, "unknown", "", (), format=[("u", 40)], value=i))
    return heap


STRANGERS = [stop, start, descriptors, descriptors_and_data, unknown_items]


def packets(heap, cnt, size):
    return list(spead2.send.PacketGenerator(heap, cnt, size))


class Crowd:
    """A sink that sends packets of a stranger between those that it is given."""

    def __init__(self, queue, strangers, rng):
        self.queue = queue
        self.strangers = strangers
        self.rng = rng
        self.heaps = self.packets = 0

    def send(self, flow, packet):
        for _ in range(self.rng.choice([0, 0, 1, 3])):
            self.heaps += 1
            for stranger in next(self.strangers):
                self.queue.add_packet(stranger)
                self.packets += 1
        self.queue.add_packet(packet)


@pytest.mark.fault(7)
@pytest.mark.parametrize("flavour", FLAVOURS, ids=[f"64-{flavour.heap_address_bits}" for flavour in FLAVOURS])
@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("members", [None, 2], ids=["stream", "group"])
def test_heaps_of_a_stranger(stranger, flavour, members, fault_report):
    """They are counted as what they are: not of the layout. No heap is lost, and the stream goes on to its end."""
    simulator = Simulator(SMALL, seed=1)
    rng = random.Random(f"{stranger.__name__} {flavour.heap_address_bits}")
    # Numbers that no good heap has: packets of different heaps must not seem to be of one.
    strangers = (packets(stranger(flavour, i), 2**39 + i, 1472) for i in range(10**6))
    with receiver(SMALL, members=members) as rx:
        crowd = Crowd(rx.queues[0], strangers, rng)
        simulator.send(crowd, CHUNKS * SMALL.chunk_batches)
        rx.finish()
        assert crowd.heaps > 200
        simulator.truth.rejected["metadata_heaps"] = crowd.heaps
        simulator.truth.packets += crowd.packets
        sent, left = simulator.truth.copies, residual(rx, [simulator.truth])
        fault_report(sent=sent, lost=sent - rx.iterator.accounting.present, residual=left)
        assert rx.iterator.accounting.present == sum(simulator.truth.sent)
        assert_data(rx, [simulator])
        assert_accounts(rx, [simulator])


@pytest.mark.fault(7)
def test_good_heaps_of_every_flavour_in_one_stream(fault_report):
    """It is all the same to the layout, which looks at items; also with more items than it knows."""
    simulators = []
    with receiver(SMALL) as rx:
        mixed = []
        for chunk in range(CHUNKS):
            simulator = Simulator(
                SMALL,
                seed=1,
                first_timestamp=chunk * SMALL.chunk_timestamp_step,
                flavour=FLAVOURS[chunk % 3],
                payload_item=PAYLOAD_ID,
                items={UNKNOWN_ID: chunk, UNKNOWN_ID - 1: 2**40 - 1} if chunk % 2 else None,
            )
            mixed += [packet for _, packet in simulator.packets(SMALL.chunk_batches)]
            simulators.append(simulator)
        # Neighbours in time come in different flavours, packet by packet.
        order = np.argsort(np.arange(len(mixed)) + np.random.default_rng(1).integers(20, size=len(mixed)))
        for i in order:
            rx.queues[0].add_packet(mixed[i])
        rx.finish()
        truths = [simulator.truth for simulator in simulators]
        sent = sum(truth.copies for truth in truths)
        present = rx.iterator.accounting.present
        fault_report(sent=sent, lost=sent - present, residual=residual(rx, truths))
        assert present == sent == CHUNKS * SMALL.chunk_heaps
        assert_data(rx, simulators)
        assert_accounts(rx, simulators)


@pytest.mark.fault(7)
def test_stop_item_in_a_good_heap(fault_report):
    """It is placed like any other, and does not end the stream either."""
    simulator = Simulator(SMALL, seed=1)
    good = [packet for _, packet in simulator.packets(4 * SMALL.chunk_batches)]
    stopping = []
    for packet in good:
        n_items = int.from_bytes(packet[6:8], "big")
        item = (1 << 63 | spead2.STREAM_CTRL_ID << 48 | spead2.CTRL_STREAM_STOP).to_bytes(8, "big")
        stopping.append(packet[:6] + (n_items + 1).to_bytes(2, "big") + item + packet[8:])
    with receiver(SMALL) as rx:
        for packet in stopping:
            rx.queues[0].add_packet(packet)
        rx.finish()
        sent, present = simulator.truth.copies, rx.iterator.accounting.present
        fault_report(sent=sent, lost=sent - present, residual=residual(rx, [simulator.truth]))
        assert_data(rx, [simulator])
        assert_accounts(rx, [simulator])
