"""The simulator: what it sends is what it says it sent, through every sink, as a real stream receives it."""

import dataclasses
import ipaddress
import itertools
import json
import socket
import struct

import numpy as np
import pytest
import spead2
import spead2.send

from addresses import GROUP_PREFIX
from receiving import assert_accounts, assert_data, receiver, residual
from speadrx import simulate
from speadrx.layout import Axis, Layout, SideItem, TimeAxis
from speadrx.receive.readers import add_reader
from speadrx.simulate import GARBAGE_KINDS, Faults, InprocSink, PcapSink, Simulator, Truth, UdpSink

#: Antenna and polarisation in the bits of one item, a side item above them, and sparse sub-bands.
LAYOUT = Layout(
    heap_bytes=192,
    time=TimeAxis(item=0x1600, step=100, batches=4),
    axes=(
        Axis(name="antenna", item=0x3101, shift=1, mask=0xFF, size=3),
        Axis(name="pol", item=0x3101, mask=1, size=2),
        Axis(name="band", item=0x4103, values=(7, 3, 90)),
    ),
    order=("band", "time", "pol", "antenna"),
    side_items=(
        SideItem(name="level", item=0x3102, shift=32, dtype="u16"),
        SideItem(name="flags", item=0x3102, shift=8, dtype="u8"),
        SideItem(name="digitiser", item=0x3101, dtype="u32"),
    ),
    required_items=(0x4104,),
    sources="antenna",
)
CHUNK_HEAPS = LAYOUT.chunk_heaps  # 72

#: Of every kind, but late enough for no window.
FAULTS = Faults(loss=0.05, reorder=30, duplicate=0.05, garbage=0.3, garbage_kinds=tuple(GARBAGE_KINDS))

#: Few and small enough that any socket buffer takes all at once: no kernel drop can decide a test.
FEW = 4 * LAYOUT.chunk_batches


def packets(simulator, batches=12):
    return [packet for _, packet in simulator.packets(batches)]


def send_inproc(rx, simulator, batches, tmp_path, port):
    simulator.send(InprocSink(rx.queues[0]), batches)
    rx.finish()


def send_udp(rx, simulator, batches, tmp_path, port):
    add_reader(rx.stream, src=[("127.0.0.1", port)])
    with UdpSink([("127.0.0.1", port)]) as sink:
        simulator.send(sink, batches)
    rx.wait_for_packets(simulator.truth.decodable_packets)
    rx.finish()


def send_multicast(rx, simulator, batches, tmp_path, port):
    endpoints = [(f"{GROUP_PREFIX}71", port), (f"{GROUP_PREFIX}72", port)]
    add_reader(rx.stream, src=endpoints, interface="127.0.0.1")
    with UdpSink(endpoints, interface="127.0.0.1") as sink:
        simulator.send(sink, batches)
    rx.wait_for_packets(simulator.truth.decodable_packets)
    rx.finish()


def send_pcap(rx, simulator, batches, tmp_path, port):
    path = tmp_path / "heaps.pcap"
    with PcapSink(path, endpoint=("239.1.2.3", port)) as sink:
        simulator.send(sink, batches)
    add_reader(rx.stream, src=str(path))
    rx.wait()


@pytest.mark.parametrize("send", [send_inproc, send_udp, send_multicast, send_pcap])
def test_stream_receives_the_truth(send, tmp_path, udp_port):
    simulator = Simulator(LAYOUT, seed=3, first_timestamp=800, faults=FAULTS)
    with receiver(LAYOUT, window=6) as rx:
        send(rx, simulator, FEW, tmp_path, udp_port)
        assert [chunk.timestamp for chunk in rx.chunks] == [800, 1200, 1600, 2000]
        assert_data(rx, [simulator])
        assert_accounts(rx, [simulator])
        assert rx.stream.kernel_drops() == 0
    truth = simulator.truth
    # The seed has hit everything that can happen.
    assert min(truth.sent) > 0
    assert sum(truth.lost) > 0
    assert sum(truth.duplicated) > 0
    assert set(truth.rejected) == {
        "metadata_heaps",
        "bad_timestamp_heaps",
        "bad_antenna_heaps",
        "bad_band_heaps",
        "implausible_timestamp_heaps",
    }
    assert set(truth.unseen) == {"noise", "unsized", "empty"}


def test_heaps_of_many_packets():
    """Packets lost, reordered and of several heaps at a time; incomplete heaps are those unfinished."""
    faults = Faults(packet_loss=0.01, reorder=3, packet_reorder=20, duplicate=0.1, garbage=0.1)
    layout = dataclasses.replace(LAYOUT, heap_bytes=1000)
    simulator = Simulator(layout, faults=faults, max_packet_size=200)
    with receiver(layout, window=30, pool=40, allow_out_of_order=True, max_heaps=4096) as rx:
        simulator.send(InprocSink(rx.queues[0]), 80)
        rx.finish()
        assert_data(rx, [simulator])
        assert_accounts(rx, [simulator])
        assert rx.stat("single_packet_heaps") < 0.1 * simulator.truth.packets
    assert sum(simulator.truth.incomplete) > 50
    assert simulator.truth.packets > 8 * simulator.truth.copies


def test_late_heaps_are_too_old():
    faults = Faults(late=0.02, late_by=6 * CHUNK_HEAPS, reorder=10)
    simulator = Simulator(LAYOUT, faults=faults)
    with receiver(LAYOUT, window=4) as rx:
        simulator.send(InprocSink(rx.queues[0]), 200)
        rx.finish()
        assert_data(rx, [simulator])
        assert rx.stat("too_old_heaps") > 10
        assert rx.iterator.accounting.missing == rx.stat("too_old_heaps")
        assert residual(rx, [simulator.truth]) == 0


def test_goes_on_where_it_stopped():
    simulator = Simulator(LAYOUT, faults=Faults(reorder=5, loss=0.1))
    with receiver(LAYOUT) as rx:
        sink = InprocSink(rx.queues[0])
        simulator.send(sink, 7)
        after_first = sum(simulator.truth.sent)
        simulator.send(sink, 9)
        assert sum(simulator.truth.sent) > after_first
        rx.finish()
        assert len(rx.chunks) == 4
        assert_data(rx, [simulator])
        assert_accounts(rx, [simulator])


def test_timestamps_wrap():
    first = 2**48 // 400 * 400 - 400
    simulator = Simulator(LAYOUT, first_timestamp=first, faults=Faults(garbage=0.2, reorder=10))
    with receiver(LAYOUT) as rx:
        simulator.send(InprocSink(rx.queues[0]), 12)
        rx.finish()
        assert [chunk.timestamp for chunk in rx.chunks] == [first, first + 400, first + 800]
        assert first + 800 > 2**48
        assert_data(rx, [simulator])
        assert_accounts(rx, [simulator])


@pytest.mark.parametrize("address_bits", [32, 40, 48, 56])
def test_flavours(address_bits):
    """In 64-56, item IDs have 7 bits and timestamps may be wider than the protocol's 48."""
    layout = Layout(
        heap_bytes=64,
        time=TimeAxis(item=0x20, step=8, batches=8),
        axes=(Axis(name="antenna", item=0x21, step=16, size=4),),
    )
    flavour = spead2.Flavour(4, 64, address_bits, 0)
    simulator = Simulator(layout, flavour=flavour, payload_item=0x30, faults=Faults(garbage=0.5))
    with receiver(layout) as rx:
        simulator.send(InprocSink(rx.queues[0]), 32)
        rx.finish()
        assert_data(rx, [simulator])
        assert_accounts(rx, [simulator])
    assert simulator.truth.rejected["bad_timestamp_heaps"] > 0
    assert simulator.truth.rejected["bad_antenna_heaps"] > 0
    assert ("implausible_timestamp_heaps" in simulator.truth.rejected) == (address_bits >= 48)


@pytest.mark.parametrize("max_packet_size", [9000, 1472, 203])
def test_encodes_as_spead2_does(max_packet_size):
    simulator = Simulator(LAYOUT, max_packet_size=max_packet_size, first_timestamp=100)
    flavour = simulate.DEFAULT_FLAVOUR
    cnt = itertools.count(2)  # the first was used up when the arguments were checked
    for indices in simulator.indices:
        heap = spead2.send.Heap(flavour)
        heap.repeat_pointers = True
        for item, value in simulator.items(1, indices).items():
            immediate = np.frombuffer(value.to_bytes(6, "big"), np.uint8)
            heap.add_item(spead2.Item(item, "", "", (6,), np.uint8, value=immediate))
        payload = np.frombuffer(simulator.payload(1, indices), np.uint8)
        heap.add_item(spead2.Item(simulate.DEFAULT_PAYLOAD_ITEM, "", "", (192,), np.uint8, value=payload))
        expected = list(spead2.send.PacketGenerator(heap, next(cnt), max_packet_size))
        if indices == simulator.indices[0]:
            sent = simulator.packets(1)
        assert [next(sent)[1] for _ in expected] == expected


def test_seed_decides_all():
    def run(seed, **kwargs):
        simulator = Simulator(LAYOUT, seed=seed, faults=FAULTS, **kwargs)
        return packets(simulator), simulator.truth

    assert run(1) == run(1)
    assert run(1)[0] != run(2)[0]
    assert run(1)[1] != run(2)[1]


def test_members_of_a_group_fail_independently_but_share_payloads():
    layout = dataclasses.replace(LAYOUT, axes=(*LAYOUT.axes[:2], Axis(name="band", from_user_data="band", size=3)))
    simulators = [Simulator(layout, seed=5, faults=Faults(loss=0.5), user_data={"band": band}) for band in range(3)]
    for simulator in simulators:
        packets(simulator)
    assert len({tuple(simulator.truth.lost) for simulator in simulators}) == 3
    data = [simulator.chunk_data(1200) for simulator in simulators]
    np.testing.assert_array_equal(data[0], data[1])
    extra = [simulator.chunk_extra(1200) for simulator in simulators]
    np.testing.assert_array_equal(extra[0], extra[2])
    for band, simulator in enumerate(simulators):
        assert {indices[2] for indices in simulator.indices} == {band}
        np.testing.assert_array_equal(
            np.frombuffer(simulator.payload(13, (2, 1, band)), np.uint8), data[0][band, 1, 1, 2]
        )


@pytest.mark.parametrize(("faults", "most"), [(Faults(reorder=7), 7), (Faults(packet_reorder=7), 7)])
def test_reordering_is_bounded(faults, most):
    """A heap is overtaken by at most so many, and by none when that is 0."""
    in_order = packets(Simulator(LAYOUT))
    sent = packets(Simulator(LAYOUT, faults=faults))
    assert sorted(sent) == sorted(in_order)
    position = {packet: i for i, packet in enumerate(sent)}
    positions = [position[packet] for packet in in_order]
    overtaken = [sum(later < mine for later in positions[i:]) for i, mine in enumerate(positions)]
    assert 3 <= max(overtaken) <= most


def test_payloads_differ_and_are_recomputed():
    simulator = Simulator(LAYOUT, seed=9)
    places = [(batch, indices) for batch in range(1000) for indices in simulator.indices]
    assert len({bytes(simulator.payload(*place)) for place in places}) == len(places)
    data = simulator.chunk_data(800)
    assert data.shape == (*LAYOUT.present_shape, LAYOUT.heap_bytes)
    for antenna, pol, band in simulator.indices:
        for i in range(LAYOUT.chunk_batches):
            heap = simulator.payload(8 + i, (antenna, pol, band))
            np.testing.assert_array_equal(np.frombuffer(heap, np.uint8), data[band, i, pol, antenna])
    # Far away in time nothing overflows.
    far = 2**60 // 400 * 400
    heap = simulator.payload(far // 100, (2, 0, 1))
    np.testing.assert_array_equal(np.frombuffer(heap, np.uint8), simulator.chunk_data(far)[1, 0, 0, 2])


def test_payload_and_side_values_of_ones_own():
    simulator = Simulator(
        LAYOUT,
        payload=lambda batch, indices: bytes([batch % 256, *indices]) * 48,
        side_values={"level": lambda batch, indices: 1000 * batch + indices[0], "flags": lambda batch, indices: 300},
        items={0x4104: 17, 0x7000: 5},
    )
    items = simulator.items(3, (2, 1, 0))
    assert items == {0x1600: 300, 0x3101: 2 << 1 | 1, 0x4103: 7, 0x3102: 3002 << 32 | 44 << 8, 0x4104: 17, 0x7000: 5}
    with receiver(LAYOUT) as rx:
        simulator.send(InprocSink(rx.queues[0]), 8)
        rx.finish()
        assert_data(rx, [simulator])
        assert_accounts(rx, [simulator])
        band, batch, pol, antenna = 2, 1, 1, 0
        assert bytes(rx.chunks[1].data[band, batch, pol, antenna][:4]) == bytes([5, antenna, pol, band])
        assert rx.chunks[1].extra[band, batch, pol, antenna].tolist() == (5000, 44, 1)


def test_masked_timestamps():
    layout = dataclasses.replace(LAYOUT, time=TimeAxis(item=0x1600, step=128, batches=4, align="mask"))
    simulator = Simulator(layout, timestamp_jitter=127, faults=Faults(garbage=0.1))
    timestamps = {simulator.items(5, indices)[0x1600] for indices in simulator.indices}
    assert len(timestamps) > 10
    assert {timestamp // 128 for timestamp in timestamps} == {5}
    with receiver(layout) as rx:
        simulator.send(InprocSink(rx.queues[0]), 12)
        rx.finish()
        assert_data(rx, [simulator])
        assert_accounts(rx, [simulator])


@pytest.mark.parametrize("kind", [kind for kind in GARBAGE_KINDS if kind != "negative"])
def test_each_kind_of_garbage_alone(kind):
    """Also as the very first heaps, before any good one."""
    simulator = Simulator(LAYOUT, faults=Faults(garbage=1.0, garbage_kinds=(kind,)))
    with receiver(LAYOUT) as rx:
        simulator.send(InprocSink(rx.queues[0]), 8)
        rx.finish()
        assert_data(rx, [simulator])
        assert_accounts(rx, [simulator])
    assert sum(simulator.truth.rejected.values()) + sum(simulator.truth.unseen.values()) == 2 * CHUNK_HEAPS
    (reason,) = simulator.truth.rejected or simulator.truth.unseen if kind != "axis" else ["bad_<axis>_heaps"]
    assert reason in GARBAGE_KINDS[kind] or reason == kind


def test_stop_ends_after_a_whole_chunk():
    asked = []

    def stop():
        asked.append(True)
        return len(asked) == 3

    simulator = Simulator(LAYOUT, first_timestamp=200)
    assert len(list(simulator.packets(stop=stop))) == (2 + 2 * 4) * LAYOUT.batch_heaps
    assert sum(simulator.truth.sent) == 10 * LAYOUT.batch_heaps


def ones_complement_sum(data):
    words = struct.unpack(f">{len(data) // 2}H", data)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize("host", ["239.128.3.4", "10.9.8.7"])
def test_pcap_format(tmp_path, host):
    path = tmp_path / "a.pcap"
    simulator = Simulator(LAYOUT, faults=FAULTS)
    with PcapSink(path, endpoint=(host, 7777), source=("10.0.0.9", 1234)) as sink:
        simulator.send(sink, 12)
    sent = packets(Simulator(LAYOUT, faults=FAULTS))
    assert any(len(packet) % 2 for packet in sent)
    data = path.read_bytes()
    assert struct.unpack_from("<IHHiIII", data) == (0xA1B2C3D4, 2, 4, 0, 0, 0x40000, 1)
    position = 24
    for i, packet in enumerate(sent):
        seconds, microseconds, captured, length = struct.unpack_from("<IIII", data, position)
        assert (seconds, microseconds, captured, length) == (0, i, 42 + len(packet), 42 + len(packet))
        frame = data[position + 16 : position + 16 + captured]
        position += 16 + captured
        multicast = ipaddress.ip_address(host).is_multicast
        if multicast:
            assert frame[:6] == b"\x01\x00\x5e\x00\x03\x04"
        else:
            assert frame[0] & 3 == 2  # an address of one host, administered locally
        assert frame[12:14] == b"\x08\x00"
        ip, udp, payload = frame[14:34], frame[34:42], frame[42:]
        assert ip[0] == 0x45
        assert struct.unpack_from(">H", ip, 2) == (len(frame) - 14,)
        assert ip[9] == 17
        assert ip[12:] == ipaddress.ip_address("10.0.0.9").packed + ipaddress.ip_address(host).packed
        assert ones_complement_sum(ip) == 0xFFFF
        assert struct.unpack(">HHH", udp[:6]) == (1234, 7777, 8 + len(packet))
        pseudo_header = ip[12:] + struct.pack(">HH", 17, len(udp) + len(payload))
        assert ones_complement_sum(pseudo_header + udp + payload + bytes(len(payload) % 2)) == 0xFFFF
        assert payload == packet
    assert position == len(data)


def test_pcap_checksum_is_never_sent_as_none(tmp_path):
    """A UDP checksum that comes out as 0 is sent as all ones."""
    path = tmp_path / "a.pcap"
    with PcapSink(path) as sink:
        sink.send(0, bytes(2))
    (checksum,) = struct.unpack_from(">H", path.read_bytes(), 24 + 16 + 40)
    with PcapSink(path) as sink:
        sink.send(0, struct.pack(">H", checksum))
    assert struct.unpack_from(">H", path.read_bytes(), 24 + 16 + 40) == (0xFFFF,)


def test_pcap_addresses(tmp_path):
    with pytest.raises(ValueError, match="endpoint: '::1' must be an IPv4 address"):
        PcapSink(tmp_path / "a.pcap", endpoint=("::1", 1))
    with pytest.raises(ValueError, match="endpoint: 65536 is not a port"):
        PcapSink(tmp_path / "a.pcap", endpoint=("10.0.0.1", 65536))
    with pytest.raises(ValueError, match=r"source: given '10\.0\.0\.1:1', but wanted a pair"):
        PcapSink(tmp_path / "a.pcap", source="10.0.0.1:1")
    assert not (tmp_path / "a.pcap").exists()


def test_pcap_refuses_what_is_no_datagram(tmp_path):
    with PcapSink(tmp_path / "a.pcap") as sink, pytest.raises(ValueError, match="65508 bytes do not fit"):
        sink.send(0, bytes(65508))


def test_udp_spreads_flows(udp_port):
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as even,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as odd,
    ):
        for sock in (even, odd):
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(60)
        with UdpSink([even.getsockname(), odd.getsockname()], interface="127.0.0.1") as sink:
            for flow in range(4):
                sink.send(flow, bytes([flow]))
        assert [even.recv(10), even.recv(10)] == [b"\x00", b"\x02"]
        assert [odd.recv(10), odd.recv(10)] == [b"\x01", b"\x03"]


def test_truth_can_be_written_as_json():
    simulator = Simulator(LAYOUT, faults=FAULTS)
    simulator.send(InprocSink(spead2.InprocQueue()), 12)
    fields = json.loads(json.dumps(dataclasses.asdict(simulator.truth)))
    assert Truth(**fields) == simulator.truth
    assert simulator.truth.copies == simulator.truth.packets


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": 1.5}, "loss: 1.5 is not a probability from 0 to 1"),
        ({"garbage": -0.1}, "garbage: -0.1"),
        ({"reorder": -1}, "reorder: -1 must be at least 0"),
        ({"garbage": 0.5, "garbage_kinds": ()}, "garbage_kinds: is empty, but garbage is 0.5"),
        ({"garbage_kinds": ("lenght",)}, "garbage_kinds: 'lenght' is not one of length, absent"),
    ],
)
def test_faults_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Faults(**arguments)


OVERLAPPING = dataclasses.replace(
    LAYOUT,
    axes=(Axis(name="a", item=0x3101, mask=3, size=4), Axis(name="b", item=0x3101, shift=1, mask=1, size=2)),
    order=None,
    sources=None,
)
USER_DATA = dataclasses.replace(LAYOUT, axes=(Axis(name="a", from_user_data="x", size=4),), order=None, sources=None)
TIME_SHARED = dataclasses.replace(LAYOUT, axes=(Axis(name="a", item=0x1600, mask=3, size=4),), order=None, sources=None)
MASKED = dataclasses.replace(LAYOUT, time=TimeAxis(item=0x1600, step=64, batches=4, align="mask"))


@pytest.mark.parametrize(
    ("layout", "arguments", "message"),
    [
        (
            LAYOUT,
            {"first_timestamp": 150},
            r"first_timestamp: 150 must be a multiple of the layout's time step \(100\)",
        ),
        (LAYOUT, {"first_timestamp": -100}, "first_timestamp: -100"),
        (LAYOUT, {"timestamp_jitter": 5}, 'timestamp_jitter: 5 .* must have align="mask"'),
        (MASKED, {"timestamp_jitter": 64}, r"timestamp_jitter: 64 must be less than the time step \(64\)"),
        (LAYOUT, {"side_values": {"foo": None}}, r"side_values: .* no side item 'foo' \(it has \['level'"),
        (LAYOUT, {"max_packet_size": 90}, "max_packet_size: 90 has no room"),
        (LAYOUT, {"items": {0x8000: 1}}, "item 0x8000 .* does not fit flavour 64-48"),
        (LAYOUT, {"items": {0x7000: 2**48}}, "item 0x7000 with the value 0x1000000000000 does not fit"),
        (LAYOUT, {"flavour": spead2.Flavour(4, 64, 56, 0), "payload_item": 7}, "item 0x.* does not fit flavour 64-56"),
        (LAYOUT, {"flavour": spead2.Flavour(4, 64, 56, 0)}, "payload_item: 0x3300 does not fit flavour 64-56"),
        (LAYOUT, {"payload_item": 0x1600}, "payload_item: 0x1600 is the ID of another item"),
        (LAYOUT, {"payload_item": 0x3101}, "payload_item: 0x3101 is the ID of another item"),
        (LAYOUT, {"payload_item": 0x4104}, "payload_item: 0x4104 is the ID of another item"),
        (LAYOUT, {"payload_item": 0x7000, "items": {0x7000: 1}}, "payload_item: 0x7000 is the ID of another item"),
        (LAYOUT, {"payload_item": 6}, r"payload_item: 0x6 does not fit .* \(IDs above 0x6, below"),
        (LAYOUT, {"payload_item": 0x8000}, "payload_item: 0x8000 does not fit .* below 0x8000"),
        (OVERLAPPING, {}, "axis 'a': item 0x3101 .* must not overlap"),
        (TIME_SHARED, {}, "axis 'a': shares item 0x1600 with the time"),
        (USER_DATA, {}, "user_data: has no 'x', the index on axis 'a'"),
        (USER_DATA, {"user_data": {"x": 4}}, "user_data: 'x' is 4, but must be from 0 to 3"),
        (
            MASKED,
            {"faults": Faults(garbage_kinds=("timestamp",))},
            "garbage_kinds: this layout, flavour and timestamp have no 'timestamp' garbage",
        ),
    ],
)
def test_simulator_errors(layout, arguments, message):
    with pytest.raises(ValueError, match=message):
        Simulator(layout, **arguments)


def test_payload_of_the_wrong_length():
    simulator = Simulator(LAYOUT, payload=lambda batch, indices: bytes(191))
    with pytest.raises(ValueError, match="payload: made 191 bytes, but heap_bytes is 192"):
        packets(simulator)


def test_side_item_above_the_bits_of_a_value():
    layout = dataclasses.replace(LAYOUT, side_items=(SideItem(name="high", item=0x3102, shift=50, dtype="u8"),))
    simulator = Simulator(layout)
    assert simulator.items(3, (0, 0, 0))[0x3102] == 0
    assert not simulator.chunk_extra(0)["high"].any()


def test_no_side_items():
    with pytest.raises(ValueError, match="side_items: the layout has none"):
        Simulator(dataclasses.replace(LAYOUT, side_items=())).chunk_extra(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"endpoints": []}, "endpoints: is empty: wanted at least one"),
        ({"endpoints": [("127.0.0.1", 1), ("::1", 1)]}, "endpoints: .* mix IPv4 and IPv6"),
        ({"endpoints": [("no.such.host.invalid", 1)]}, "endpoints: 'no.such.host.invalid' cannot be resolved"),
        ({"endpoints": [("x" * 64, 1)]}, "endpoints: 'x{64}' cannot be resolved"),
        ({"endpoints": [("127.0.0.1", 65536 + 7)]}, "endpoints: 65543 is not a port: wanted 1 to 65535"),
        ({"endpoints": [("127.0.0.1", 0)]}, "endpoints: 0 is not a port"),
        ({"endpoints": [("127.0.0.1", "1")]}, r"endpoints: given \('127\.0\.0\.1', '1'\), but wanted a pair"),
        ({"endpoints": ["127.0.0.1:1"]}, "endpoints: given '127.0.0.1:1', but wanted a pair of host and port"),
        ({"endpoints": [(None, 1)]}, "endpoints: None is not a host"),
        ({"endpoints": [("127.0.0.1", 1)], "interface": "lo"}, "interface: cannot send from 'lo'"),
        ({"endpoints": [("127.0.0.1", 1)], "interface": "192.0.2.1"}, r"interface: cannot send from '192\.0\.2\.1'"),
        ({"endpoints": [("::1", 1)], "interface": "nosuch0"}, "interface: cannot send from 'nosuch0'"),
        ({"endpoints": [("127.0.0.1", 1)], "ttl": 256}, r"interface: .* \(ttl 256\)"),
    ],
)
def test_udp_sink_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        UdpSink(**arguments)
