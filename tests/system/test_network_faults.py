"""A network of namespaces that reorders, duplicates and damages packets: each heap is right, or it is counted."""

import contextlib
import heapq
import random
import socket
import struct
import time
from collections import Counter

import numpy as np
import pytest
import spead2

from network import DOWNSTREAM, RECEIVER, SENDER_PREFIX, UPSTREAM, network
from receiving import assert_data, receiver
from speadrx import Axis, Layout, TimeAxis, add_reader
from speadrx.simulate import DEFAULT_PAYLOAD_ITEM, Simulator, UdpSink

pytestmark = pytest.mark.fault(12)

PORT = 7148
SENDER = f"{SENDER_PREFIX}2"
TIME_ID, ANTENNA_ID = 0x1600, 0x4101
SOURCES = ("m000", "m001", "m002", "m003")
#: No change of a single byte makes another good heap: good timestamps, and good values of the antenna, differ in more.
LAYOUT = Layout(
    heap_bytes=0x1F0,  # so that a change of a byte makes it longer, or shorter
    time=TimeAxis(item=TIME_ID, step=65537, batches=16),
    axes=(Axis(name="antenna", item=ANTENNA_ID, values=(0x1234, 0x4321, 0x5678, 0x8765)),),
    sources="antenna",
    source_labels=SOURCES,
)
N = len(SOURCES)
CHUNK_HEAPS = LAYOUT.chunk_heaps
FIRST_TIMESTAMP = 1000 * LAYOUT.chunk_timestamp_step
WINDOW = 4
CHUNKS = 40
BUFFER = 2**24


class Relay:
    """A sink from which packets go through the network to a middle box, and from there to the receiver as `plan` says.

    `plan` has the number of a packet and its bytes, and gives what comes of it: how many later packets overtake it, its
    bytes, and whether its UDP checksum is right (if not, it is that of the packet before it was damaged).
    """

    def __init__(self, net, stack, plan):
        self.plan = plan
        with net.sender.entered():
            self._sink = stack.enter_context(UdpSink([(UPSTREAM, PORT)], interface=SENDER))
        with net.network.entered():
            self._inlet = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self._inlet.bind((UPSTREAM, PORT))
            self._inlet.settimeout(60)
            self._outlet = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self._outlet.bind((DOWNSTREAM, PORT))
            self._raw = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
        self._waiting = []
        self._taken = self._copies = 0
        #: Number of each packet handed on, in that order.
        self.order = []

    def send(self, flow, packet):
        self._sink.send(flow, packet)
        packet = self._inlet.recv(65536)
        for overtaken_by, damaged, valid in self.plan(self._taken, packet):
            due = self._taken + overtaken_by
            datagram = damaged if valid else (damaged, packet)
            heapq.heappush(self._waiting, (due, self._copies, self._taken, datagram))
            self._copies += 1
        while self._waiting and self._waiting[0][0] <= self._taken:
            self._hand_on()
        self._taken += 1

    def finish(self):
        while self._waiting:
            self._hand_on()

    def _hand_on(self):
        _, _, number, datagram = heapq.heappop(self._waiting)
        self.order.append(number)
        if isinstance(datagram, bytes):
            self._outlet.sendto(datagram, (RECEIVER, PORT))
        else:
            self._raw.sendto(with_checksum_of(*datagram), (RECEIVER, 0))


def with_checksum_of(payload, original):
    """An IP packet with UDP whose checksum is that of another payload of the same length."""
    addresses = socket.inet_aton(DOWNSTREAM) + socket.inet_aton(RECEIVER)
    udp_bytes = 8 + len(payload)
    udp = struct.pack(">HHHH", PORT, PORT, udp_bytes, 0)
    words = addresses + struct.pack(">HH", socket.IPPROTO_UDP, udp_bytes) + udp + original + bytes(len(original) % 2)
    total = sum(struct.unpack(f">{len(words) // 2}H", words))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    udp = udp[:6] + struct.pack(">H", ~total & 0xFFFF or 0xFFFF)
    # The kernel fills in the number and the header's own checksum.
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + udp_bytes, 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses
    return ip + udp + payload


class Outcome:
    """What must become of packets, each a whole heap, that come in a certain order."""

    def __init__(self, order):
        self.present, self.duplicates, self.too_old = ([0] * N for _ in range(3))
        self.behind = Counter()
        taken = set()
        newest = 0
        for number in order:
            chunk, source = number // CHUNK_HEAPS, number % N
            newest = max(newest, chunk)
            self.behind[newest - chunk] += 1
            if newest - chunk >= WINDOW:
                self.too_old[source] += 1
            elif number in taken:
                self.duplicates[source] += 1
            else:
                self.present[source] += 1
            taken.add(number)
        assert max(self.behind) < 2 * WINDOW, "heaps that late are implausible, and not too old"


class Run:
    """Send through a network to a receiver, by way of a relay if there is a plan for it, and take all that comes."""

    def __init__(self, simulator, plan=None, rules=None, chunks=CHUNKS, **kwargs):
        self.simulator = simulator
        self.layout = simulator.layout
        with contextlib.ExitStack() as stack:
            net = stack.enter_context(network([SENDER]))
            if rules is not None:
                net.rules(rules)
            rx = self.rx = stack.enter_context(receiver(self.layout, window=WINDOW, **kwargs))
            with net.receiver.entered():
                add_reader(rx.stream, src=[(RECEIVER, PORT)], buffer=BUFFER)
            if plan is not None:
                sink = relay = Relay(net, stack, plan)
            else:
                relay = None
                with net.sender.entered():
                    sink = stack.enter_context(UdpSink([(RECEIVER, PORT)], interface=SENDER, segment=False))
            for _ in range(chunks):
                simulator.send(sink, self.layout.chunk_batches)
                self.counters = net.counters()
                self._settle(net, len(relay.order) if relay else self.forwarded())
            if relay is not None:
                relay.finish()
                self._settle(net, len(relay.order))
                self.order = relay.order
            self.udp = net.udp_counts()
            rx.finish()
            self.ledger = rx.stream.ledger.snapshot()
            self.accounting = rx.iterator.accounting

    def forwarded(self):
        return self.simulator.truth.packets + sum(self.counters.values())

    @staticmethod
    def _settle(net, n):
        """Wait until the receiver has taken so many packets from its socket, or thrown them away."""
        deadline = time.monotonic() + 60
        while True:
            counts = net.udp_counts()
            if (came := counts["InDatagrams"] + counts["InErrors"]) == n:
                return
            assert came < n
            assert time.monotonic() < deadline, f"of {n} packets {came} came"
            time.sleep(0.0005)

    def check(self, fault_report, copies, *, unseen=0, unfinished=0, note=""):
        """Report and check the sums, where it is known how many heaps were never seen or came in part."""
        ledger, present = self.ledger, self.accounting.present
        rejected = sum(ledger.rejected.values())
        too_old = self.rx.stat("too_old_heaps")
        residual = copies - present - ledger.duplicates - too_old - unfinished - rejected - unseen
        fault_report(sent=copies, lost=copies - present, residual=residual, note=note)
        assert ledger.seen == copies - unseen
        assert residual == 0


def simulator(seed, **kwargs):
    return Simulator(LAYOUT, seed=seed, first_timestamp=FIRST_TIMESTAMP, **kwargs)


def assert_outcome(run, outcome, copies, fault_report):
    """Whole heaps came, good ones, in a certain order."""
    counts = {"late, in time": outcome.behind.total() - outcome.behind[0] - sum(outcome.too_old)}
    counts |= {"duplicates": sum(outcome.duplicates), "too old": sum(outcome.too_old)}
    run.check(fault_report, copies, note=", ".join(f"{n} {what}" for what, n in counts.items() if n))
    assert_data(run.rx, [run.simulator])
    assert run.accounting.present_by_source.tolist() == outcome.present
    assert run.accounting.expected_by_source.tolist() == run.simulator.truth.sent
    assert run.ledger.duplicates_by_source.tolist() == outcome.duplicates
    assert run.rx.stat("too_old_heaps") == sum(outcome.too_old)
    placed = np.sum([outcome.present, outcome.duplicates, outcome.too_old], axis=0)
    assert run.ledger.placed_by_source.tolist() == placed.tolist()
    late = [outcome.behind[i] for i in range(WINDOW)]
    assert run.ledger.late_chunks.tolist() == [*late, outcome.behind.total() - sum(late)]
    assert not any(run.ledger.rejected.values())
    assert run.rx.stream.kernel_drops() == run.udp["InErrors"] == 0
    assert run.rx.stat("packets") == copies


@pytest.mark.parametrize("seed", range(2))
def test_reordering_inside_the_window(seed, fault_report):
    rand = random.Random(seed)
    run = Run(simulator(seed), lambda i, packet: [(rand.randrange(2 * CHUNK_HEAPS), packet, True)])
    outcome = Outcome(run.order)
    assert outcome.behind[2] > 0
    assert_outcome(run, outcome, CHUNKS * CHUNK_HEAPS, fault_report)
    assert run.accounting.missing == 0


def test_reordering_of_packets(fault_report):
    """Packets of several heaps, mixed: each heap is complete."""
    rand = random.Random(1)
    run = Run(
        simulator(1, max_packet_size=240),
        lambda i, packet: [(rand.randrange(CHUNK_HEAPS), packet, True)],
        allow_out_of_order=True,
        max_heaps=2 * WINDOW * CHUNK_HEAPS,
    )
    run.check(fault_report, CHUNKS * CHUNK_HEAPS)
    assert run.order != sorted(run.order)
    assert run.rx.stat("packets") == len(run.order) == 3 * CHUNKS * CHUNK_HEAPS
    assert_data(run.rx, [run.simulator])
    assert run.accounting.missing == run.ledger.duplicates == run.rx.stat("too_old_heaps") == 0
    assert run.ledger.placed_by_source.tolist() == run.accounting.present_by_source.tolist() == run.simulator.truth.sent
    assert run.rx.stream.kernel_drops() == 0


@pytest.mark.parametrize("seed", range(2))
def test_reordering_beyond_the_window(seed, fault_report):
    """Some heaps come when their chunk has been handed over: too old, and missing of their source."""
    rand = random.Random(seed)

    def plan(i, packet):
        late = 5 * CHUNK_HEAPS if rand.random() < 0.05 and i >= CHUNK_HEAPS else 0
        return [(rand.randrange(CHUNK_HEAPS) + late, packet, True)]

    run = Run(simulator(seed), plan)
    outcome = Outcome(run.order)
    assert min(outcome.too_old) > 0
    assert_outcome(run, outcome, CHUNKS * CHUNK_HEAPS, fault_report)
    assert run.accounting.missing_by_source.tolist() == outcome.too_old


def test_duplicates(fault_report):
    """The network doubles packets, and counts of which source."""
    values = LAYOUT.axes[0].values
    # The pointer that tells the antenna is the sixth (four are SPEAD's own); its last bits are the value.
    at = 8 * (8 + 8 + 8 * 6 - 2)
    rules = ["table ip duplicates {", *(f"counter {source} {{ }}" for source in SOURCES)]
    rules += ["chain forward { type filter hook forward priority filter;"]
    rules += [
        f"udp dport {PORT} @th,{at},16 {value} numgen random mod 10 < 2 counter name {source} "
        f'dup to {RECEIVER} device "downstream"'
        for value, source in zip(values, SOURCES, strict=True)
    ]
    run = Run(simulator(0), rules="\n".join([*rules, "}", "}"]))
    duplicated = [run.counters[source] for source in SOURCES]
    assert min(duplicated) > 0
    outcome = Outcome(range(CHUNKS * CHUNK_HEAPS))
    outcome.duplicates = duplicated
    copies = CHUNKS * CHUNK_HEAPS + sum(duplicated)
    run.check(fault_report, copies, note=f"{sum(duplicated)} duplicated by nftables")
    assert_data(run.rx, [run.simulator])
    assert run.accounting.present_by_source.tolist() == run.accounting.expected_by_source.tolist() == outcome.present
    assert run.ledger.duplicates_by_source.tolist() == duplicated
    assert run.ledger.placed == run.rx.stat("packets") == copies
    assert run.rx.stat("too_old_heaps") == run.rx.stream.kernel_drops() == 0


@pytest.mark.parametrize("seed", range(2))
def test_duplicates_in_and_beyond_the_window(seed, fault_report):
    """A copy of a heap whose chunk has been handed over is too old, whatever became of the first."""
    rand = random.Random(seed)

    def plan(i, packet):
        yield rand.randrange(CHUNK_HEAPS // 2), packet, True
        if rand.random() < 0.2:
            yield rand.choice([0, 1, CHUNK_HEAPS, 3 * CHUNK_HEAPS, 5 * CHUNK_HEAPS]), packet, True

    run = Run(simulator(seed), plan)
    outcome = Outcome(run.order)
    assert min(*outcome.duplicates, *outcome.too_old) > 0
    assert_outcome(run, outcome, len(run.order), fault_report)
    assert run.accounting.missing == 0


def damage(packet, at, rand):
    """Change the byte at a position."""
    changed = bytearray(packet)
    changed[at] ^= rand.randrange(1, 256)
    return bytes(changed)


def pointers(packet):
    """Position of the item pointer of each item of a packet, by ID."""
    (n,) = struct.unpack_from(">H", packet, 6)
    return {int.from_bytes(packet[at : at + 2]) % 2**15: at for at in range(8, 8 + 8 * n, 8)}


def value_of(packet, item):
    at = pointers(packet)[item]
    return int.from_bytes(packet[at + 2 : at + 8])


def test_invalid_checksum(fault_report):
    """The kernel throws the packet away, and counts it; the heap is missing of its source."""
    rand = random.Random(0)
    damaged = [0] * N

    def plan(i, packet):
        # The first chunk and the last come whole, so that what is missing can be known.
        if rand.random() >= 0.1 or not CHUNK_HEAPS <= i < (CHUNKS - 1) * CHUNK_HEAPS:
            return [(0, packet, True)]
        damaged[i % N] += 1
        return [(0, damage(packet, rand.randrange(len(packet)), rand), False)]

    run = Run(simulator(0), plan)
    note = f"{sum(damaged)} with a wrong checksum"
    run.check(fault_report, CHUNKS * CHUNK_HEAPS, unseen=sum(damaged), note=note)
    assert min(damaged) > 0
    assert run.udp["InCsumErrors"] == run.udp["InErrors"] == sum(damaged)
    assert_data(run.rx, [run.simulator])
    assert run.rx.stat("packets") == CHUNKS * CHUNK_HEAPS - sum(damaged)
    assert run.accounting.missing_by_source.tolist() == damaged
    assert not any(run.ledger.rejected.values())
    assert run.ledger.duplicates == run.rx.stat("too_old_heaps") == 0
    # Linux counts them among the drops of the socket too.
    assert run.rx.stream.kernel_drops() == sum(damaged)


def value_bytes(item):
    """Chooses a byte of the value of an item."""
    return lambda packet, rand: pointers(packet)[item] + rand.randrange(2, 8)


def always(outcome):
    return lambda packet: outcome


def by_length(packet):
    # Payload that reaches beyond the heap does not decode.
    return "metadata_heaps" if value_of(packet, spead2.HEAP_LENGTH_ID) > LAYOUT.heap_bytes else "unseen"


def by_address(packet):
    # The heap must be so long that the item can be in it.
    return "unfinished" if value_of(packet, DEFAULT_PAYLOAD_ITEM) > LAYOUT.heap_bytes else "present"


#: What is damaged: where a byte of it is, and what becomes of the heap then.
DAMAGE = {
    "magic": (lambda packet, rand: rand.randrange(2), always("unseen")),
    "widths": (lambda packet, rand: rand.randrange(2, 4), always("unseen")),
    "reserved": (lambda packet, rand: rand.randrange(4, 6), always("present")),
    "heap counter": (value_bytes(spead2.HEAP_CNT_ID), always("present")),
    "heap length": (value_bytes(spead2.HEAP_LENGTH_ID), by_length),
    "payload offset": (value_bytes(spead2.PAYLOAD_OFFSET_ID), always("unseen")),
    "payload length": (value_bytes(spead2.PAYLOAD_LENGTH_ID), always("unseen")),
    "time": (value_bytes(TIME_ID), always("bad_timestamp_heaps")),
    "ID of the time": (lambda packet, rand: pointers(packet)[TIME_ID] + rand.randrange(2), always("metadata_heaps")),
    "antenna": (value_bytes(ANTENNA_ID), always("bad_antenna_heaps")),
    "place of the payload": (value_bytes(DEFAULT_PAYLOAD_ITEM), by_address),
    "payload": (lambda packet, rand: len(packet) - 1 - rand.randrange(LAYOUT.heap_bytes), always("present")),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_rewritten_checksum(what, fault_report):
    """With a checksum that is right for the damaged bytes, the header is all that can tell."""
    where, outcome_of = DAMAGE[what]
    rand = random.Random(what)
    came = {}  # payload of each heap damaged, as it came
    outcomes = {}  # and what should become of it

    def plan(i, packet):
        if rand.random() >= 0.1 or not CHUNK_HEAPS <= i < (CHUNKS - 1) * CHUNK_HEAPS:
            return [(0, packet, True)]
        packet = damage(packet, where(packet, rand), rand)
        came[i], outcomes[i] = packet[-LAYOUT.heap_bytes :], outcome_of(packet)
        return [(0, packet, True)]

    run = Run(simulator(0), plan)
    counted = Counter(outcomes.values())
    lost = {i for i, outcome in outcomes.items() if outcome != "present"}
    by_source = [sum(i % N == source for i in lost) for source in range(N)]
    copies = CHUNKS * CHUNK_HEAPS
    unseen, unfinished = counted["unseen"], counted["unfinished"]
    note = f"{what}: {counted.total()} damaged"
    run.check(fault_report, copies, unseen=unseen, unfinished=unfinished, note=note)
    assert counted.total() > 100
    assert len(counted) == (2 if what in ("heap length", "place of the payload") else 1)
    assert_heaps(run, came, lost)
    assert run.accounting.missing_by_source.tolist() == by_source
    rejected = {reason: n for reason, n in run.ledger.rejected.items() if n}
    assert rejected == {reason: n for reason, n in counted.items() if reason.endswith("_heaps")}
    for reason in rejected:
        # Their source is known, but where the item that tells it is what was damaged.
        known = (
            [0] * N
            if what == "antenna"
            else [sum(i % N == s and outcomes[i] == reason for i in lost) for s in range(N)]
        )
        assert run.ledger.rejected_by_source[reason].tolist() == [*known, counted[reason] - sum(known)]
    assert run.ledger.duplicates == run.rx.stat("too_old_heaps") == run.rx.stream.kernel_drops() == 0
    assert run.udp["InErrors"] == 0
    assert run.rx.stat("packets") == copies - unseen


def assert_heaps(run, came, lost):
    """Every heap but the lost ones is present and right, or as it came."""
    timestamps = [chunk.timestamp for chunk in run.rx.chunks]
    assert timestamps == [FIRST_TIMESTAMP + i * LAYOUT.chunk_timestamp_step for i in range(CHUNKS)]
    for i in range(CHUNKS * CHUNK_HEAPS):
        chunk, position = run.rx.chunks[i // CHUNK_HEAPS], divmod(i % CHUNK_HEAPS, N)
        assert chunk.present[position] == (i not in lost)
        if chunk.present[position]:
            expected = came.get(i) or bytes(run.simulator.payload(1000 * LAYOUT.chunk_batches + i // N, (i % N,)))
            assert chunk.data[position].tobytes() == expected


def read_header(packet):
    """The immediate items of a packet, the highest address that other items point to, and its payload.

    By the rules of SPEAD; None if the packet breaks one.
    """
    if len(packet) < 8 or packet[:2] != b"\x53\x04":
        return None
    id_bytes, address_bytes, _, n = struct.unpack_from(">BBHH", packet, 2)
    if not id_bytes or not address_bytes or id_bytes + address_bytes != 8 or len(packet) < 8 + 8 * n:
        return None
    items, address = {}, 0
    for (pointer,) in struct.iter_unpack(">Q", packet[8 : 8 + 8 * n]):
        value = pointer % 2 ** (8 * address_bytes)
        if pointer >> 63:
            items[pointer % 2**63 >> 8 * address_bytes] = value
        else:
            address = max(address, value)
    try:
        offset, size = items[spead2.PAYLOAD_OFFSET_ID], items[spead2.PAYLOAD_LENGTH_ID]
    except KeyError:
        return None
    payload = packet[8 + 8 * n :]
    length = items.get(spead2.HEAP_LENGTH_ID)
    if spead2.HEAP_CNT_ID not in items or len(payload) != size or (length is not None and offset + size > length):
        return None
    return items, address, payload


def becomes(packet):
    """What must become of a heap of this packet, and its payload if it has one."""
    header = read_header(packet)
    if header is None:
        return "undecodable", b""
    items, address, payload = header
    if spead2.HEAP_LENGTH_ID not in items:
        return "without length", b""
    if items[spead2.PAYLOAD_OFFSET_ID]:
        return "out of order", b""  # since no packet came before, and the stream takes no other order
    if items[spead2.HEAP_LENGTH_ID] != LAYOUT.heap_bytes or not {TIME_ID, ANTENNA_ID} <= items.keys():
        return "metadata_heaps", b""
    if items[TIME_ID] >= 2**48 or items[TIME_ID] % LAYOUT.time.step:
        return "bad_timestamp_heaps", b""
    if items[ANTENNA_ID] not in LAYOUT.axes[0].values:
        return "bad_antenna_heaps", b""
    # With an item that points beyond its end, a heap waits for what never comes.
    return ("present" if address <= LAYOUT.heap_bytes == len(payload) else "unfinished"), payload


@pytest.mark.parametrize("seed", range(3))
def test_damage_anywhere(seed, fault_report):
    """Bytes anywhere change, and packets end early: no heap but those damaged suffers, and each of these is counted."""
    rand = random.Random(seed)
    came, outcomes = {}, {}

    def plan(i, packet):
        if rand.random() >= 0.3 or not CHUNK_HEAPS <= i < (CHUNKS - 1) * CHUNK_HEAPS:
            return [(0, packet, True)]
        header = len(packet) - LAYOUT.heap_bytes
        for _ in range(rand.randrange(1, 4)):
            packet = damage(packet, rand.randrange(rand.choice([header, len(packet)])), rand)
        if rand.random() < 0.2:
            packet = packet[: rand.randrange(len(packet))]
        outcomes[i], came[i] = becomes(packet)
        return [(0, packet, True)]

    run = Run(simulator(seed), plan)
    counted = Counter(outcomes.values())
    copies = CHUNKS * CHUNK_HEAPS
    unseen = counted["undecodable"] + counted["without length"] + counted["out of order"]
    note = f"anywhere: {counted.total()} damaged"
    run.check(fault_report, copies, unseen=unseen, unfinished=counted["unfinished"], note=note)
    # All that can become of a heap, but for being out of order, which takes two bytes of a kind.
    assert len(counted.keys() - {"out of order"}) == 7
    lost = {i for i, outcome in outcomes.items() if outcome != "present"}
    assert_heaps(run, came, lost)
    assert run.accounting.missing_by_source.tolist() == [sum(i % N == source for i in lost) for source in range(N)]
    rejected = {reason: n for reason, n in run.ledger.rejected.items() if n}
    assert rejected == {reason: n for reason, n in counted.items() if reason.endswith("_heaps")}
    assert run.rx.stat("packets") == copies - counted["undecodable"]
    assert run.ledger.duplicates == run.rx.stat("too_old_heaps") == run.rx.stream.kernel_drops() == 0
