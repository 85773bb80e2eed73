"""Datagrams of captures: link layers, networks, both file formats, and files that are damaged."""

import bz2
import ipaddress
import os
import re
import struct
import threading

import pytest
from speadrx.capture import read_datagrams

from speadrx.simulate import PcapSink

SOURCE, GROUP = ("10.1.2.3", 7148), ("239.1.2.3", 7149)
SOURCE6, GROUP6 = ("fe80::1", 7148), ("ff12::3", 7149)
PAYLOAD = b"this is the payload"
ETHERNET = bytes(12)
IPV4, IPV6 = b"\x08\x00", b"\x86\xdd"


def udp(payload=PAYLOAD, length=None):
    return struct.pack(">4H", 7148, 7149, 8 + len(payload) if length is None else length, 0) + payload


def ipv4(rest=None, *, protocol=17, fragment=0x4000, options=b""):
    rest = udp() if rest is None else rest
    addresses = ipaddress.ip_address(SOURCE[0]).packed + ipaddress.ip_address(GROUP[0]).packed
    words = 5 + len(options) // 4
    length = 4 * words + len(rest)
    return struct.pack(">BBHHHBBH", 0x40 | words, 0, length, 1, fragment, 64, protocol, 0) + addresses + options + rest


def ipv6(rest=None, *, header=17):
    rest = udp() if rest is None else rest
    addresses = ipaddress.ip_address(SOURCE6[0]).packed + ipaddress.ip_address(GROUP6[0]).packed
    return struct.pack(">IHBB", 6 << 28, len(rest), header, 64) + addresses + rest


def pcap(frames, *, link=1, order="<", magic=0xA1B2C3D4, snaplen=65535):
    records = [struct.pack(order + "IIII", 1000 + i, 500, len(f[:snaplen]), len(f)) + f[:snaplen] for i, f in frames]
    return struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, snaplen, link) + b"".join(records)


def option(order, code, value):
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def block(order, kind, body):
    body += bytes(-len(body) % 4)
    return struct.pack(order + "II", kind, 12 + len(body)) + body + struct.pack(order + "I", 12 + len(body))


def section(order):
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order, link, options=b"", snaplen=65535):
    return block(order, 1, struct.pack(order + "HHI", link, 0, snaplen) + options)


def enhanced(order, number, ticks, frame):
    return block(
        order, 6, struct.pack(order + "5I", number, ticks >> 32, ticks % 2**32, len(frame), len(frame)) + frame
    )


def read(tmp_path, content, **kwargs):
    path = tmp_path / "capture"
    path.write_bytes(content)
    with read_datagrams(path, **kwargs) as capture:
        return list(capture), capture


def assert_one(tmp_path, content, source=SOURCE, destination=GROUP):
    (datagram,), capture = read(tmp_path, content)
    assert datagram[1:] == (source, destination, PAYLOAD, len(PAYLOAD))
    assert (capture.frames, dict(capture.skipped), capture.truncated) == (1, {}, False)
    assert capture.position == capture.size == len(content)
    return datagram


def test_our_own(tmp_path):
    with PcapSink(tmp_path / "sent", endpoint=GROUP, source=SOURCE) as sink:
        for i in range(3):
            sink.send(0, b"%d" % i)
    datagrams = list(read_datagrams(tmp_path / "sent"))
    assert [(d.source, d.destination, d.payload) for d in datagrams] == [(SOURCE, GROUP, b"%d" % i) for i in range(3)]
    assert [d.time for d in datagrams] == pytest.approx([0, 1e-6, 2e-6])


@pytest.mark.parametrize("network", [IPV4, IPV6])
@pytest.mark.parametrize(
    ("link", "header"),
    [
        (1, lambda kind: ETHERNET + kind),
        (1, lambda kind: ETHERNET + b"\x81\x00\x00\x05" + kind),
        (1, lambda kind: ETHERNET + b"\x88\xa8\x00\x05\x81\x00\x00\x07" + kind),
        (113, lambda kind: bytes(14) + kind),
        (113, lambda kind: bytes(14) + b"\x81\x00\x00\x05" + kind),
        (276, lambda kind: kind + bytes(18)),
        (0, lambda kind: b"\x02\x00\x00\x00"),
        (108, lambda kind: b"\x00\x00\x00\x02"),
        (12, lambda kind: b""),
        (101, lambda kind: b""),
        (228, lambda kind: b""),
        (229, lambda kind: b""),
    ],
)
def test_links(tmp_path, link, header, network):
    packet = ipv4() if network == IPV4 else ipv6()
    ends = (SOURCE, GROUP) if network == IPV4 else (SOURCE6, GROUP6)
    assert_one(tmp_path, pcap([(0, header(network) + packet)], link=link), *ends)


def test_padding_is_not_payload(tmp_path):
    """Ethernet frames have at least 60 bytes, and some captures their check sequence too."""
    assert_one(tmp_path, pcap([(0, ETHERNET + IPV4 + ipv4() + bytes(30))], link=1 | 4 << 28 | 1 << 26))


def test_ipv4_options(tmp_path):
    assert_one(tmp_path, pcap([(0, ETHERNET + IPV4 + ipv4(options=bytes(8)))]))


def test_ipv6_extensions(tmp_path):
    hop_by_hop, options = bytes([60, 0]) + bytes(6), bytes([17, 1]) + bytes(14)
    frame = ETHERNET + IPV6 + ipv6(hop_by_hop + options + udp(), header=0)
    assert_one(tmp_path, pcap([(0, frame)]), SOURCE6, GROUP6)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (ETHERNET + b"\x08\x06" + bytes(28), "not IP"),
        (ETHERNET + IPV4 + ipv4(protocol=6), "not UDP"),
        (ETHERNET + IPV6 + ipv6(header=58), "not UDP"),
        (ETHERNET + IPV4 + ipv4(fragment=0x2000), "IP fragment"),
        (ETHERNET + IPV4 + ipv4(fragment=0x0010), "IP fragment"),
        (ETHERNET + IPV6 + ipv6(header=44), "IP fragment"),
        (ETHERNET + IPV4 + ipv4(udp(length=7)), "bad UDP length"),
        (ETHERNET + IPV6 + ipv6(udp(length=0)), "bad UDP length"),
        (ETHERNET + IPV4 + ipv4()[:22], "no whole headers"),
        (ETHERNET, "no whole headers"),
        (b"", "no whole headers"),
        (ETHERNET + IPV4 + ipv4()[:-1], "cut short by the capture"),
    ],
)
def test_skipped(tmp_path, frame, reason):
    good = ETHERNET + IPV4 + ipv4()
    datagrams, capture = read(tmp_path, pcap([(0, good), (1, frame), (2, good)]))
    assert [d.payload for d in datagrams] == [PAYLOAD] * 2
    assert capture.skipped == {reason: 1}
    assert capture.frames == 3


def test_unknown_link(tmp_path):
    _, capture = read(tmp_path, pcap([(0, bytes(60))], link=147))
    assert capture.skipped == {"unknown link type 147": 1}


def test_cut_short(tmp_path):
    """With `cut`, what there is of a datagram is given."""
    content = pcap([(i, ETHERNET + IPV4 + ipv4(udp(bytes(1000)))) for i in range(3)], snaplen=96)
    datagrams, capture = read(tmp_path, content)
    assert (datagrams, capture.cut_short) == ([], 3)
    datagrams, capture = read(tmp_path, content, cut=True)
    assert [(d.payload, d.length) for d in datagrams] == [(bytes(96 - 42), 1000)] * 3
    assert (capture.cut_short, dict(capture.skipped)) == (3, {})


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "fraction"), [(0xA1B2C3D4, 500e-6), (0xA1B23C4D, 500e-9)])
def test_times(tmp_path, order, magic, fraction):
    datagram = assert_one(tmp_path, pcap([(0, ETHERNET + IPV4 + ipv4())], order=order, magic=magic))
    assert datagram.time == pytest.approx(1000 + fraction, abs=1e-10)


@pytest.mark.parametrize("order", ["<", ">"])
class TestPcapng:
    """The newer format: sections, interfaces, and blocks of several kinds."""

    def test_interfaces(self, tmp_path, order):
        """Each has a link layer and a clock of its own."""
        nanoseconds = option(order, 9, b"\x09") + option(order, 14, struct.pack(order + "q", 100)) + bytes(4)
        content = b"".join(
            [
                section(order),
                block(order, 0xBAD, b"some block that nobody knows"),
                interface(order, 1),
                interface(order, 113, nanoseconds),
                interface(order, 101, option(order, 9, b"\x81")),
                enhanced(order, 0, 5_000_000, ETHERNET + IPV4 + ipv4()),
                enhanced(order, 1, 6_000_000_001, bytes(14) + IPV6 + ipv6()),
                enhanced(order, 2, 13, ipv4()),
            ]
        )
        datagrams, capture = read(tmp_path, content)
        assert [d.source for d in datagrams] == [SOURCE, SOURCE6, SOURCE]
        assert [d.time for d in datagrams] == pytest.approx([5, 106.000000001, 6.5], abs=1e-10)
        assert (capture.truncated, dict(capture.skipped)) == (False, {})

    def test_sections(self, tmp_path, order):
        """A second section may have another byte order, and has interfaces of its own."""
        other = "<>"[order == "<"]
        parts = [
            section(o) + interface(o, link) + enhanced(o, 0, 1, frame)
            for o, link, frame in ((order, 1, ETHERNET + IPV4 + ipv4()), (other, 101, ipv4()))
        ]
        assert [d.payload for d in read(tmp_path, b"".join(parts))[0]] == [PAYLOAD] * 2

    def test_old_and_simple_packets(self, tmp_path, order):
        frame = ETHERNET + IPV4 + ipv4()
        obsolete = block(order, 2, struct.pack(order + "HHIIII", 0, 0, 0, 7, len(frame), len(frame)) + frame)
        simple = block(order, 3, struct.pack(order + "I", len(frame)) + frame)
        datagrams, _ = read(tmp_path, section(order) + interface(order, 1) + obsolete + simple)
        assert [(d.time, d.payload) for d in datagrams] == [(7e-6, PAYLOAD), (0, PAYLOAD)]

    @pytest.mark.parametrize(("snaplen", "room"), [(60, 60), (61, 64), (0, 60), (200, 60)])
    def test_simple_packets_are_as_long_as_the_capture_took_them(self, tmp_path, order, snaplen, room):
        """Such a block says how long the packet was; how much there is of it, its interface and the block say."""
        payload = bytes(range(1, 201))
        frame = ETHERNET + IPV4 + ipv4(udp(payload))
        # What lies between the end of the packet and that of the block is padding.
        body = struct.pack(order + "I", len(frame)) + frame[: min(snaplen or room, room)].ljust(room, b"?")
        content = section(order) + interface(order, 1, snaplen=snaplen) + block(order, 3, body)
        (datagram,), capture = read(tmp_path, content, cut=True)
        taken = min(snaplen or room, room) - 42
        assert (datagram.payload, datagram.length) == (payload[:taken], len(payload))
        assert capture.cut_short == 1

    @pytest.mark.parametrize("snaplen", [0, 100, 65535])
    def test_simple_packets_end_where_they_did_on_the_way(self, tmp_path, order, snaplen):
        """A packet that was cut short before this capture took it has no more bytes for the padding of its block."""
        payload = bytes(range(1, 101))
        frame = (ETHERNET + IPV4 + ipv4(udp(payload)))[:61]
        body = struct.pack(order + "I", len(frame)) + frame + b"???"
        content = section(order) + interface(order, 1, snaplen=snaplen) + block(order, 3, body)
        (datagram,), capture = read(tmp_path, content, cut=True)
        assert (datagram.payload, datagram.length) == (payload[:19], len(payload))
        assert capture.cut_short == 1

    def test_simple_packets_are_of_the_first_interface(self, tmp_path, order):
        frame = ETHERNET + IPV4 + ipv4()
        interfaces = interface(order, 1, snaplen=50) + interface(order, 101, snaplen=20)
        content = section(order) + interfaces + block(order, 3, struct.pack(order + "I", len(frame)) + frame[:50])
        (datagram,), _ = read(tmp_path, content, cut=True)
        assert (datagram.payload, datagram.length) == (PAYLOAD[:8], len(PAYLOAD))

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            (lambda order: struct.pack(order + "II", 6, 8), "the block at byte 48 has the length 8"),
            (lambda order: struct.pack(order + "II", 6, 2**31), f"the block at byte 48 has the length {2**31}"),
            (lambda order: enhanced(order, 3, 0, ipv4()), "the block at byte 48 does not decode"),
            (lambda order: block(order, 6, b"short"), "the block at byte 48 does not decode"),
            (lambda order: block(order, 6, struct.pack(order + "5I", 0, 0, 0, 99, 99)), "its packet has 99 bytes"),
            (lambda order: block(order, 1, b""), "the block at byte 48 does not decode"),
        ],
    )
    def test_damaged(self, tmp_path, order, bad, message):
        content = section(order) + interface(order, 1) + bad(order)
        with pytest.raises(ValueError, match=rf"{tmp_path}/capture is damaged: .*{message}"):
            read(tmp_path, content)


@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
@pytest.mark.parametrize("cut", [1, 20, 60, 75])
def test_truncated(tmp_path, kind, cut):
    """What is there of a file that was cut off is read."""
    frame = ETHERNET + IPV4 + ipv4()
    content = (
        pcap([(0, frame), (1, frame)])
        if kind == "pcap"
        else section("<") + interface("<", 1) + enhanced("<", 0, 0, frame) + enhanced("<", 0, 1, frame)
    )
    datagrams, capture = read(tmp_path, content[:-cut])
    assert [d.payload for d in datagrams] == [PAYLOAD]
    assert capture.truncated


@pytest.mark.parametrize("length", [4, 10, 23])
def test_truncated_in_its_header(tmp_path, length):
    for content in (pcap([]), section("<")):
        datagrams, capture = read(tmp_path, content[:length])
        assert datagrams == []
        assert capture.truncated


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: wanted a pcap or pcapng file"),
        (b"just text", "is not a pcap or pcapng file: it starts with the bytes 6a 75 73 74$"),
        (
            bz2.compress(b"anything"),
            r"is not a pcap or pcapng file: .* 42 5a 68 39 \(it is compressed with bzip2: decompress it\)",
        ),
        (pcap([]) + struct.pack("<4I", 0, 0, 2**31, 2**31), f"is damaged: .* byte 40 gives the length {2**31}"),
        (
            pcap([]) + struct.pack("<4I", 0, 0, 300_000, 300_000) + bytes(300_000),
            "is damaged: .* byte 40 gives the length 300000",
        ),
    ],
)
def test_no_capture(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))}/capture {message}"):
        read(tmp_path, content)


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/nothing cannot be read: No such file"):
        read_datagrams(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError, match=f"{tmp_path} cannot be read: Is a directory"):
        read_datagrams(tmp_path)


def test_pipe(tmp_path):
    """A pipe is read as it comes; its size is not known."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    content = pcap([(i, ETHERNET + IPV4 + ipv4()) for i in range(100)])
    writer = threading.Thread(target=path.write_bytes, args=(content,))
    writer.start()
    try:
        with read_datagrams(path) as capture:
            assert capture.size is None
            assert len(list(capture)) == 100
    finally:
        writer.join()


def test_random_bytes_after_the_header(tmp_path, rng):
    """Whatever comes, it is datagrams, counts or one of the errors."""
    frame = ETHERNET + IPV4 + ipv4()
    for i in range(300):
        base = bytearray(
            pcap([(0, frame)] * 3) if i % 2 else section("<") + interface("<", 1) + enhanced("<", 0, 0, frame) * 3
        )
        for position in rng.integers(4, len(base), 4):
            base[position] = rng.integers(256)
        try:
            datagrams, capture = read(tmp_path, bytes(base))
        except ValueError as exc:
            assert "is damaged" in str(exc)  # noqa: PT017 (most are no errors)
        else:
            assert len(datagrams) + capture.skipped.total() == capture.frames
