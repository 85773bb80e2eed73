"""Packets that spead2 would drop or misjudge, made with struct: from captures, over UDP and from this process."""

from __future__ import annotations

import itertools
import random
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import spead2
import spead2.recv
import spead2.send

from speadrx import Axis, Layout, Packets, Receiver, SideItem, TimeAxis, add_reader, make_stream
from wire import Item, heap, packet, write_capture

Sent = bytes | tuple[tuple[str, int], bytes]


def payload(*numbers: int, size: int = 64) -> bytes:
    """Bytes that tell heaps apart."""
    return (struct.pack(">4H", *numbers, *[0] * (4 - len(numbers))) * (size // 8 + 1))[:size]


def layout(axes: dict[str, Any] | None = None, *, size: int = 64, item: int = 0x1600, **more: Any) -> Layout:
    time = TimeAxis(item=item, step=1, batches=4)
    return Layout(heap_bytes=size, time=time, axes=(Axis(name="a", **axes),) if axes else (), **more)


def reverse(value: int) -> int:
    """The value as a PC has it in memory, read as SPEAD has it."""
    return int.from_bytes(struct.pack("<I", value), "big")


def ska_low(table: dict[str, Any]) -> tuple[Layout, list[Sent]]:
    """Station beams: six items, no heap length, no payload offset."""
    packets: list[Sent] = [
        packet([(1, t), (4, 64), (0x3010, 42), (0x3000, 64 + c), (0x1600, t), (0x3300, 0)], payload(t, c))
        for t in range(16)
        for c in range(3)
    ]
    return layout({"item": 0x3000, "values": (64, 65, 66)}, packets=Packets(**table)), packets


def roach() -> tuple[Layout, list[Sent]]:
    """Jodrell Bank: 64-40, the counter is 0, and the heap's length leaves out the data."""
    items: list[Item] = [(1, 0), (2, 51), (3, 0), (4, 64)]
    packets: list[Sent] = [
        packet([*items, (0x1601, t), (0x1700, c), (0x1800, None)], payload(t, c), bits=40)
        for t in range(16)
        for c in range(2)
    ]
    table = Packets(heap_length="payload", heap_counter="packet")
    return layout({"item": 0x1700, "size": 2}, item=0x1601, packets=table), packets


def vegas() -> tuple[Layout, list[Sent]]:
    """Several packets with a heap length that is 48 too long; items in the first packet only."""
    packets: list[Sent] = []
    for t in range(16):
        for start in range(0, 64, 16):
            items: list[Item] = [(0x1600, t), (0x21, 3)] if not start else []
            special: list[Item] = [(1, t), (2, 64 + 48), (3, start), (4, 16)]
            packets.append(packet([*special, *items], payload(t)[start : start + 16], bits=40))
    return layout(packets=Packets(heap_length=64, repeat_items=True)), packets


def sip() -> tuple[Layout, list[Sent]]:
    """Immediate values of '<u4', as spead2 sends them on a PC."""
    packets: list[Sent] = []
    for t in range(16):
        for c in range(2):
            items: list[Item] = [(0x6000, reverse(t)), (0x6002, reverse(c)), (0x600A, None)]
            packets += heap(1 + 2 * t + c, items, payload(t, c), parts=2, repeat=False)
    table = Packets(items={0x6000: "<u4", 0x6002: "<u4"})
    return layout({"item": 0x6002, "size": 2}, item=0x6000, packets=table), packets


def addressed() -> tuple[Layout, list[Sent]]:
    """A dump index behind the data, addressed; several arrays in a heap."""
    packets: list[Sent] = []
    for t in range(16):
        data = b"flags" + payload(t) + struct.pack(">Q", t)
        items: list[Item] = [(0x1006, (0,)), (0x1800, (5,)), (0x1005, (69,))]
        packets += heap(t + 1, items, data, parts=3, repeat=False)
    return layout(item=0x1005, payload_item=0x1800, packets=Packets(items={0x1005: ">u8"})), packets


def products() -> tuple[Layout, list[Sent]]:
    """Which product it is, only the payload item's ID says."""
    packets: list[Sent] = []
    for t in range(16):
        for c in range(3):
            packets += heap(1 + 3 * t + c, [(0x1600, t), (0x3301 + c, None)], payload(t, c))
    return layout({"payload_items": (0x3301, 0x3302, 0x3303)}), packets


def same_counters(apart: Any) -> tuple[Layout, list[Sent]]:
    """Each antenna counts from 1, and their packets are interleaved."""
    packets: list[Sent] = []
    for t in range(16):
        parts = [heap(t + 1, [(0x1600, t), (0x4101, c)], payload(t, c), parts=4) for c in range(3)]
        for turn in zip(*parts, strict=True):
            packets += [((f"10.0.0.{c}" if apart == "sender" else "10.0.0.1", 5000), one) for c, one in enumerate(turn)]
    return layout({"item": 0x4101, "size": 3}, packets=Packets(heap_counter=apart)), packets


def overtaking() -> tuple[Layout, list[Sent]]:
    """Items in the first packet only, and packets in any order."""
    rng = random.Random(7)
    packets: list[Sent] = []
    for t in range(16):
        parts = heap(t + 1, [(0x1600, t)], payload(t), parts=4, repeat=False)
        rng.shuffle(parts)
        packets += parts
    return layout(packets=Packets(repeat_items=True)), packets


def descriptors() -> tuple[Layout, list[Sent]]:
    """spead2's ItemGroup that describes its items with the data of every other heap."""
    group = spead2.send.ItemGroup(descriptor_frequency=2, flavour=spead2.Flavour(4, 64, 48, 0))
    group.add_item(0x1600, "timestamp", "", (), format=[("u", 48)])
    group.add_item(0x4300, "data", "", (64,), dtype=np.uint8)
    packets: list[Sent] = []
    for t in range(16):
        group[0x1600].value, group[0x4300].value = t, np.frombuffer(payload(t), np.uint8)
        sent = group.get_heap()
        sent.repeat_pointers = True
        packets += [bytes(one) for one in spead2.send.PacketGenerator(sent, t + 1, 8872)]
    return layout(packets=Packets()), packets


STREAMS = {
    "SKA-Low": lambda: ska_low({"heap_length": "payload"}),
    "SKA-Low, heaps of a number": lambda: ska_low({"heap_length": 64, "payload_offset": "zero"}),
    "SKA-Low, counters of our own": lambda: ska_low({"heap_length": "payload", "heap_counter": "packet"}),
    "Jodrell Bank": roach,
    "VEGAS": vegas,
    "SIP": sip,
    "L0": addressed,
    "products": products,
    "counters by sender": lambda: same_counters("sender"),
    "counters by antenna": lambda: same_counters([0x4101]),
    "counters by time and antenna": lambda: same_counters([0x1600, 0x4101]),
    "overtaking": overtaking,
    "descriptors": descriptors,
}


def check(receiver: Receiver) -> None:
    """Check that all heaps of 16 times are there, each at its place."""
    chunks = 0
    for chunk in receiver:
        with chunk:
            chunks += 1
            assert chunk.present.all(), receiver.stats()
            data = chunk.data.reshape(4, -1, 64)
            for t in range(4):
                for c in range(data.shape[1]):
                    wanted = (chunk.timestamp + t, c) if data.shape[1] > 1 else (chunk.timestamp + t,)
                    assert data[t, c].tobytes() == payload(*wanted)
            if chunks == 4:
                break
    assert chunks == 4, receiver.stats()
    assert receiver.stats().unused == {}


@pytest.mark.parametrize("name", STREAMS)
def test_from_a_capture(tmp_path, name):
    declared, packets = STREAMS[name]()
    with Receiver(declared, write_capture(tmp_path / "x.pcap", packets)) as receiver:
        check(receiver)


def bytes_of(packets: Iterable[Sent]) -> Iterator[bytes]:
    """The packets alone: whoever hands them over is their only sender."""
    return (one if isinstance(one, bytes) else one[1] for one in packets)


@pytest.mark.parametrize("name", [name for name in STREAMS if name != "counters by sender"])
def test_from_packets(name):
    declared, packets = STREAMS[name]()
    with Receiver(declared, bytes_of(packets)) as receiver:
        check(receiver)


@pytest.mark.parametrize(
    "of_bytes",
    [
        bytes,
        bytearray,
        memoryview,
        lambda data: np.frombuffer(data, np.uint8),
        lambda data: memoryview(data[::-1])[::-1],
    ],
    ids=["bytes", "bytearray", "memoryview", "numpy", "part"],
)
@pytest.mark.parametrize("collect", [list, tuple, iter])
def test_packets_of_any_kind(of_bytes, collect):
    packets = [one for t in range(16) for one in heap(t + 1, [(0x1600, t)], payload(t))]
    with Receiver(layout(), collect([of_bytes(one) for one in packets])) as receiver:
        check(receiver)


def test_packets_for_several_threads():
    packets = [heap(c * 100 + t, [(0x1600, t), (0x4101, c)], payload(t, c)) for c in range(2) for t in range(16)]
    parts = [[one for all_of in packets[start : start + 16] for one in all_of] for start in (0, 16)]
    with Receiver(layout({"item": 0x4101, "size": 2}), parts, threads=2, window=8) as receiver:
        check(receiver)


def test_packets_without_end():
    """A receiver that stops takes no more of them."""
    ended = threading.Event()

    def packets() -> Iterator[bytes]:
        try:
            for t in itertools.count():
                yield heap(t + 1, [(0x1600, t)], payload(t))[0]
        finally:
            ended.set()

    with Receiver(layout(), packets()) as receiver:
        next(iter(receiver)).recycle()
    assert ended.wait(60)


def test_packets_that_end_with_an_error(caplog):
    def packets() -> Iterator[bytes]:
        yield from (heap(t + 1, [(0x1600, t)], payload(t))[0] for t in range(16))
        raise LookupError("no disc in the drive")

    with Receiver(layout(), packets()) as receiver:
        assert sum(int(chunk.present.sum()) for chunk in receiver) == 16
    assert "no disc in the drive" in caplog.text


def test_something_among_the_packets_is_none(caplog):
    packets = [heap(t + 1, [(0x1600, t)], payload(t))[0] for t in range(16)]
    with Receiver(layout(), [*packets, "text"]) as receiver:
        assert sum(int(chunk.present.sum()) for chunk in receiver) == 16
    assert "TypeError" in caplog.text


def test_packets_that_cannot_be_used_are_counted():
    packets = [b"something else", *(heap(t + 1, [(0x1600, t)], payload(t))[0] for t in range(16))]
    with Receiver(layout(), packets) as receiver:
        assert sum(int(chunk.present.sum()) for chunk in receiver) == 16
        assert receiver.stats().unused == {"not_spead": 1}


@pytest.mark.parametrize("name", STREAMS)
def test_a_queue_cannot_be_mended(name):
    declared, _ = STREAMS[name]()
    with pytest.raises(ValueError, match=r"in-process queue cannot be mended.*an iterable of bytes"):
        Receiver(declared, spead2.InprocQueue())


def test_a_queue_that_needs_no_mending(udp_port):
    queue = spead2.InprocQueue()
    for t in range(16):
        queue.add_packet(heap(t + 1, [(0x1600, t), (0x4300, None)], payload(t))[0])
    queue.stop()
    with Receiver(layout(payload_item=0x4300), queue) as receiver:
        check(receiver)


@pytest.mark.parametrize("table", [None, {"repeat_items": True}, {"heap_counter": "sender"}, {"heap_length": 64}])
@pytest.mark.parametrize("made", ["by spead2", "empty", "with a good heap"])
def test_a_stop_item_ends_the_stream(table, made):
    sent = [one for t in range(16) for one in heap(t + 1, [(0x1600, t)], payload(t))]
    if made == "by spead2":
        stop = spead2.send.HeapGenerator(spead2.send.ItemGroup()).get_end()
        sent += [bytes(one) for one in spead2.send.PacketGenerator(stop, 17, 8872)]
    elif made == "empty":
        sent.append(packet([(1, 17), (2, 0), (3, 0), (4, 0), (6, 2)]))
    else:
        sent[-1] = packet([(1, 16), (2, 64), (3, 0), (4, 64), (6, 2), (0x1600, 15)], payload(15))
    sent += [one for t in range(16, 200) for one in heap(t + 2, [(0x1600, t)], payload(t))]
    declared = layout(packets=None if table is None else Packets(**table))
    with Receiver(declared, sent, stop_on_stop_item=True) as receiver:
        assert [chunk.timestamp for chunk in receiver] == [0, 4, 8, 12]


def heaps_of(antennas: int, parts: int, counter: Any, repeat: bool = True) -> list[list[bytes]]:
    """Heaps of 60 times, from antennas that count as they like."""
    return [
        heap(counter(a, t), [(0x1600, t), (0x4101, a)], payload(t, a, size=1024), parts=parts, repeat=repeat)
        for t in range(60)
        for a in range(antennas)
    ]


def received(declared: Layout, packets: Iterable[bytes]) -> int:
    """Receive packets, check that no heap has bytes of another, and return how many are present."""
    present = 0
    # So many that no incomplete heap makes spead2 give up another one.
    with Receiver(declared, packets, max_heaps=1024) as receiver:
        for chunk in receiver:
            with chunk:
                for t, a in zip(*np.nonzero(chunk.present), strict=True):
                    present += 1
                    assert chunk.data[t, a].tobytes() == payload(chunk.timestamp + int(t), int(a), size=1024)
    return present


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("loss", [0.0, 0.02])
@pytest.mark.parametrize(
    ("antennas", "parts", "counter"),
    [
        (4, 4, lambda a, t: t * 80 + a),
        (4, 4, lambda a, t: t + 1),
        (80, 2, lambda a, t: t + 1),
        (3, 8, lambda a, t: t % 16),
        (1, 4, lambda a, t: t % 16),
        (2, 4, lambda a, t: 0),
    ],
    ids=["unique", "from 1", "many from 1", "modulo 16", "one, modulo 16", "always 0"],
)
def test_counters_that_antennas_share(antennas, parts, counter, loss, together):
    """Senders count alike, or their counters come round; packets of several times are mixed, and some are lost."""
    rng = random.Random(1)
    size = together * antennas
    heaps = heaps_of(antennas, parts, counter)
    kept = [[one for one in packets if rng.random() >= loss] for packets in heaps]
    whole = sum(len(packets) == parts for packets in kept)
    sent = []
    for start in range(0, len(kept), size):
        some = [one for packets in kept[start : start + size] for one in packets]
        rng.shuffle(some)
        sent += some
    declared = layout({"item": 0x4101, "size": antennas}, size=1024, packets=Packets(heap_counter=[0x1600, 0x4101]))
    assert received(declared, sent) == whole


@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize(("antennas", "parts"), [(4, 4), (1, 2), (3, 16)])
@pytest.mark.parametrize("order", ["second first", "last first", "any"])
def test_items_in_the_first_packet_only(antennas, parts, repeat, order):
    rng = random.Random(2)
    sent = []
    for number, packets in enumerate(heaps_of(antennas, parts, lambda a, t: 1 + t * 80 + a, repeat)):
        if order == "any":
            rng.shuffle(packets)
        elif number % 4 == 1:
            packets = packets[::-1] if order == "last first" else [packets[1], packets[0], *packets[2:]]
        sent += packets
    declared = layout({"item": 0x4101, "size": antennas}, size=1024, packets=Packets(repeat_items=True))
    assert received(declared, sent) == 60 * antennas


@pytest.mark.parametrize("name", [name for name in STREAMS if name != "counters by sender"])
def test_over_udp(udp_port, name):
    declared, packets = STREAMS[name]()
    with Receiver(declared, f"127.0.0.1:{udp_port}") as receiver:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for one in packets:
                sender.sendto(one if isinstance(one, bytes) else one[1], ("127.0.0.1", udp_port))
        receiver.drain()
        check(receiver)


def test_senders_with_the_same_counters_over_udp(udp_port):
    declared, packets = same_counters("sender")
    with Receiver(declared, f"127.0.0.1:{udp_port}") as receiver:
        senders = {}
        for (host, _), one in packets:
            if host not in senders:
                senders[host] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            senders[host].sendto(one, ("127.0.0.1", udp_port))
        receiver.drain()
        check(receiver)
    for sender in senders.values():
        sender.close()


def test_what_cannot_be_used_is_counted(tmp_path, caplog):
    _, packets = ska_low({"heap_length": "payload"})
    packets += [b"something else", packet([(1, 1), (2, 0), (3, 0), (4, 0)]), heap(1, [(0x1600, 5)], bytes(64))[0][:-1]]
    caplog.set_level("INFO")
    with Receiver(layout({"item": 0x3000, "size": 3}), write_capture(tmp_path / "x.pcap", packets)) as receiver:
        assert list(receiver) == []
        assert receiver.stats().unused == {"no_payload_offset": 48, "not_spead": 1, "empty_heap": 1, "cut_short": 1}
    assert '[packets] payload_offset = "zero"' in caplog.text


def test_heaps_without_the_payload_item(tmp_path):
    packets: list[Sent] = [
        one for t in range(8) for one in heap(t + 1, [(0x1600, t), (0x4300 + t % 2, None)], payload(t), parts=2)
    ]
    declared = layout(payload_item=0x4300)
    with Receiver(declared, write_capture(tmp_path / "x.pcap", packets)) as receiver:
        present = sum(int(chunk.present.sum()) for chunk in receiver)
    assert present == 4
    assert receiver.stats().unused == {"no_payload_item": 8}


def test_senders_and_times_are_items(tmp_path):
    declared = layout(
        {"item": "sender", "values": tuple((0x0A000000 + c) << 16 | 5000 for c in range(2))},
        side_items=(SideItem(name="microseconds", item="packet_nanoseconds"),),
    )
    packets = [((f"10.0.0.{c}", 5000), heap(1 + t, [(0x1600, t)], payload(t, c))[0]) for t in range(4) for c in (0, 1)]
    with Receiver(declared, write_capture(tmp_path / "x.pcap", packets)) as receiver:
        for chunk in receiver:
            with chunk:
                assert chunk.present.all()
                assert chunk.extra["microseconds"].tolist() == [[2000 * t, 2000 * t + 1000] for t in range(4)]


def test_an_item_that_is_required_may_be_addressed(tmp_path):
    packets = [heap(t + 1, [(0x1600, t), (0x4300, None)], payload(t))[0] for t in range(16)]
    with Receiver(layout(required_items=(0x4300,)), write_capture(tmp_path / "x.pcap", packets)) as receiver:
        check(receiver)


def test_counters_that_come_round_after_losses(tmp_path):
    """Counters modulo 16, and a packet in fifty is lost: no heap has the bytes of another."""
    rng = random.Random(1)
    packets = []
    for t in range(400):
        packets += [one for one in heap(t % 16, [(0x1600, t)], payload(t, size=512), parts=4) if rng.random() > 0.02]
    declared = layout(size=512, packets=Packets(heap_counter=[0x1600]))
    seen = 0
    with Receiver(declared, write_capture(tmp_path / "x.pcap", packets)) as receiver:
        for chunk in receiver:
            with chunk:
                for t in range(4):
                    if chunk.present[t]:
                        seen += 1
                        assert chunk.data[t].tobytes() == payload(chunk.timestamp + t, size=512)
    assert seen > 300


def test_it_ends_at_once_while_packets_come(udp_port):
    declared, packets = roach()
    ending = threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not ending.is_set():
                for one in packets:
                    sender.sendto(one if isinstance(one, bytes) else one[1], ("127.0.0.1", udp_port))
                time.sleep(0.001)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        with Receiver(declared, f"127.0.0.1:{udp_port}") as receiver:
            deadline = time.monotonic() + 60
            while not receiver.stats().packets and time.monotonic() < deadline:
                time.sleep(0.01)
            feed = receiver.stream._socket_sets[0].feeds[0]
        assert feed.ended
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", udp_port))  # the port is free again
    finally:
        ending.set()
        thread.join()


def test_what_cannot_be_combined(udp_port):
    declared, _ = roach()
    rings = {name: spead2.recv.ChunkRingbuffer(2) for name in ("data_ringbuffer", "free_ringbuffer")}
    stream = make_stream(layout=declared, max_active_chunks=2, explicit_start=True, **rings)
    with pytest.raises(ValueError, match="explicit_start: cannot be combined"):
        add_reader(stream, src=[("127.0.0.1", udp_port)])
    stream.stop()
