"""Captures of unusual kinds: compressed, fragmented, coalesced. Files by hand; dpkt reads them too, where it can."""

import gzip
import socket
import struct

import dpkt
import pytest
from speadrx.capture import read_datagrams

V4, V6 = b"\x08\x00", b"\x86\xdd"
VLAN, QINQ, OLD_QINQ = b"\x81\x00\x00\x64", b"\x88\xa8\x00\x05" + b"\x81\x00\x00\x64", b"\x91\x00\x00\x05" * 2
SOURCE, GROUP = bytes([10, 0, 0, 1]), bytes([239, 1, 2, 3])
SOURCE6, GROUP6 = socket.inet_pton(socket.AF_INET6, "fe80::1"), socket.inet_pton(socket.AF_INET6, "ff15::1")


def spead(counter, payload, *, address_bytes=6, extra=()):
    """A packet that is a heap."""
    items = [(1, counter), (2, len(payload)), (3, 0), (4, len(payload)), *extra]
    bits = 8 * address_bytes
    words = [1 << 63 | item << bits | value for item, value in items]
    return (
        struct.pack(f">4BHH{len(words)}Q", 0x53, 4, 8 - address_bytes, address_bytes, 0, len(words), *words) + payload
    )


def udp(payload, length=None):
    return struct.pack(">4H", 1000, 7148, 8 + len(payload) if length is None else length, 0) + payload


def ip4(rest, *, number=1, fragment=0, length=None, protocol=17):
    length = 20 + len(rest) if length is None else length
    return struct.pack(">BBHHHBBH4s4s", 0x45, 0, length, number, fragment, 4, protocol, 0, SOURCE, GROUP) + rest


def ip6(rest, header=17):
    return struct.pack(">IHBB16s16s", 6 << 28, len(rest), header, 4, SOURCE6, GROUP6) + rest


def fragments4(datagram, size, number=1):
    """The datagram in IPv4 packets that have at most so many bytes of it."""
    return [
        ip4(datagram[at : at + size], number=number, fragment=at // 8 | (at + size < len(datagram)) << 13)
        for at in range(0, len(datagram), size)
    ]


def fragments6(datagram, size, number=1):
    return [
        ip6(struct.pack(">BBHI", 17, 0, at | (at + size < len(datagram)), number) + datagram[at : at + size], 44)
        for at in range(0, len(datagram), size)
    ]


def pcap(frames, *, link=1, snaplen=None):
    records = [
        struct.pack("<IIII", 1000, i, len(frame[:snaplen]), len(frame)) + frame[:snaplen]
        for i, frame in enumerate(frames)
    ]
    return struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, snaplen or 65535, link) + b"".join(records)


def ethernet(packet, tags=b""):
    return bytes(12) + tags + (V4 if packet[0] >> 4 == 4 else V6) + packet


def read(tmp_path, content, **kwargs):
    path = tmp_path / "capture"
    path.write_bytes(content)
    with read_datagrams(path, **kwargs) as capture:
        return list(capture), capture


def payloads(tmp_path, frames, **kwargs):
    datagrams, capture = read(tmp_path, pcap(frames), **kwargs)
    given = len(datagrams) if kwargs.get("cut") else len(datagrams) + capture.cut_short
    skipped = capture.skipped.total() - capture.skipped["cut short by the capture"] if not kwargs.get("cut") else 0
    assert given + skipped == capture.frames - capture.joined + capture.split
    return [datagram.payload for datagram in datagrams], capture


def zstd_frame(content):
    """A frame of raw blocks (RFC 8878), without a checksum."""
    blocks = [content[at : at + 1000] for at in range(0, len(content), 1000)] or [b""]
    header = struct.pack("<IBB", 0xFD2FB528, 0x00, 0x58)  # a window of 2 MiB
    last = len(blocks) - 1
    return header + b"".join(
        struct.pack("<I", len(block) << 3 | (i == last))[:3] + block for i, block in enumerate(blocks)
    )


#: A frame without data, as other programs add them.
ZSTD_SKIPPED = struct.pack("<II", 0x184D2A53, 5) + b"extra"


class TestTags:
    @pytest.mark.parametrize("tags", [VLAN, QINQ, OLD_QINQ, VLAN * 4])
    @pytest.mark.parametrize("make", [ip4, ip6])
    def test_every_other(self, tmp_path, tags, make):
        """With and without tags, in one file; dpkt finds the same."""
        sent = [spead(i + 1, bytes([i]) * 64) for i in range(20)]
        content = pcap([ethernet(make(udp(p)), tags if i % 2 else b"") for i, p in enumerate(sent)])
        datagrams, capture = read(tmp_path, content)
        assert [d.payload for d in datagrams] == sent
        assert not capture.skipped
        if tags != VLAN * 4:
            with (tmp_path / "capture").open("rb") as file:
                theirs = [dpkt.ethernet.Ethernet(frame).data for _, frame in dpkt.pcap.Reader(file)]
            assert [packet.data.data for packet in theirs] == sent


class TestCompressed:
    FRAMES = tuple(ethernet(ip4(udp(spead(i + 1, bytes([i]) * 1000)))) for i in range(100))

    @pytest.mark.parametrize(
        "pack",
        [
            lambda content: gzip.compress(content),
            lambda content: gzip.compress(content[:10_000]) + gzip.compress(content[10_000:]),  # as `cat` joins them
            lambda content: zstd_frame(content),
            lambda content: zstd_frame(content[:20]) + ZSTD_SKIPPED + zstd_frame(b"") + zstd_frame(content[20:]),
            lambda content: ZSTD_SKIPPED + zstd_frame(content),
        ],
    )
    def test_same(self, tmp_path, pack):
        content = pcap(self.FRAMES)
        plain, _ = read(tmp_path, content)
        packed = pack(content)
        datagrams, capture = read(tmp_path, packed)
        assert datagrams == plain
        assert len(datagrams) == 100
        assert not capture.truncated
        assert capture.position == capture.size == len(packed)

    @pytest.mark.parametrize("pack", [gzip.compress, zstd_frame])
    @pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
    def test_cut_off(self, tmp_path, pack, share):
        """What there is of the file is read."""
        packed = pack(pcap(self.FRAMES))
        datagrams, capture = read(tmp_path, packed[: int(share * len(packed))])
        assert capture.truncated
        plain, _ = read(tmp_path, pcap(self.FRAMES))
        assert datagrams == plain[: len(datagrams)]
        if pack is zstd_frame:  # gzip cannot give what it has not seen whole
            assert len(datagrams) >= int(share * 100) - 3

    def test_damaged(self, tmp_path):
        packed = bytearray(gzip.compress(pcap(self.FRAMES), 0))  # as it is, in blocks that begin with their lengths
        packed[11] ^= 1
        with pytest.raises(ValueError, match=r"capture is damaged: its gzip data does not decompress: "):
            read(tmp_path, bytes(packed))
        packed = bytearray(zstd_frame(pcap(self.FRAMES)))
        packed[6 + 3 + 1000] |= 6  # a block of a kind that there is not
        with pytest.raises(ValueError, match=r"capture is damaged: its zstd data does not decompress: "):
            read(tmp_path, bytes(packed))

    def test_no_capture_inside(self, tmp_path):
        with pytest.raises(ValueError, match="is not a pcap or pcapng file: it starts with the bytes 6a 75 73 74"):
            read(tmp_path, gzip.compress(b"just text"))
        with pytest.raises(ValueError, match="is empty"):
            read(tmp_path, zstd_frame(b""))
        with pytest.raises(ValueError, match=r"7z.* is compressed with xz|fd 37 7a 58 \(it is compressed with xz"):
            read(tmp_path, b"\xfd7zXZ\0")

    def test_checksum_of_gzip(self, tmp_path):
        packed = bytearray(gzip.compress(pcap(self.FRAMES)))
        packed[-8] ^= 1
        (tmp_path / "capture").write_bytes(packed)
        with pytest.raises(ValueError, match="gzip data does not decompress"):
            list(read_datagrams(tmp_path / "capture"))


@pytest.mark.parametrize("split", [fragments4, fragments6])
class TestFragments:
    def test_joined(self, tmp_path, split):
        sent = [spead(i + 1, bytes([i]) * 4000) for i in range(10)]
        frames = [ethernet(packet) for i, p in enumerate(sent) for packet in split(udp(p), 1480, i)]
        found, capture = payloads(tmp_path, frames)
        assert found == sent
        assert (capture.joined, dict(capture.skipped)) == (len(frames) - 10, {})

    @pytest.mark.parametrize("size", [8, 64, 512, 4000])
    def test_any_order(self, tmp_path, rng, split, size):
        """Of several datagrams at once, with VLAN tags, and last fragments first."""
        sent = [spead(i + 1, rng.bytes(4000)) for i in range(8)]
        frames = [ethernet(packet, VLAN) for i, p in enumerate(sent) for packet in split(udp(p), size, i)]
        for order in (frames[::-1], [frames[i] for i in rng.permutation(len(frames))]):
            found, capture = payloads(tmp_path, order)
            assert sorted(found) == sorted(sent)
            assert not capture.skipped

    def test_lost(self, tmp_path, split):
        """Fragments without the rest of their datagram are counted, and are in no other datagram."""
        one, two, three = (split(udp(spead(i, bytes([i]) * 4000)), 1480, 7) for i in (1, 2, 3))
        whole = split(udp(spead(4, bytes(4000))), 1480, 8)
        # All have the number 7; of the first, the last fragment is lost, and of the second, the first.
        frames = [ethernet(packet) for packet in (*one[:-1], *whole, *three, *two[1:])]
        found, capture = payloads(tmp_path, frames)
        assert found == [spead(4, bytes(4000)), spead(3, b"\x03" * 4000)]
        assert capture.skipped == {"IP fragment": len(one) - 1 + len(two) - 1}

    @pytest.mark.parametrize("copies", [2, 3])
    @pytest.mark.parametrize("order", ["one by one", "reversed", "any"])
    def test_tapped_twice(self, tmp_path, rng, split, copies, order):
        """The same fragments, seen in two places or three, and mixed."""
        sent = [spead(i + 1, rng.bytes(4000)) for i in range(8)]
        frames = []
        for i, one in enumerate(sent):
            fragments = [ethernet(packet) for packet in split(udp(one), 1480, i)]
            mixed = [fragment for fragment in fragments for _ in range(copies)]
            if order != "one by one":
                mixed = mixed[::-1] if order == "reversed" else [mixed[k] for k in rng.permutation(len(mixed))]
            frames += mixed
        found, capture = payloads(tmp_path, frames)
        assert set(found) == set(sent)  # of several copies, some may be whole as well
        whole = sum(len(split(udp(one), 1480, 0)) for one in found)
        assert sum(capture.skipped.values()) == len(frames) - whole
        assert capture.joined == whole - len(found)

    def test_number_again(self, tmp_path, split):
        """Long after, the number of a datagram belongs to another one."""
        old = split(udp(spead(1, bytes(4000))), 1480, 7)
        other = ethernet(ip4(b"", protocol=6))
        new = split(udp(spead(2, b"\x02" * 4000)), 1480, 7)
        frames = [ethernet(old[-1]), *[other] * 40_000, *(ethernet(packet) for packet in new)]
        datagrams, capture = read(tmp_path, pcap(frames))
        assert [d.payload for d in datagrams] == [spead(2, b"\x02" * 4000)]
        assert capture.skipped == {"IP fragment": 1, "not UDP": 40_000}

    def test_flood(self, tmp_path, split):
        """The oldest give way: what is kept of unfinished datagrams is bounded."""
        first = [split(udp(spead(i, bytes(3000))), 1480, i) for i in range(1, 2000)]
        frames = [ethernet(packets[0]) for packets in first] + [ethernet(packets[-1]) for packets in first[:10]]
        frames += [ethernet(packet) for packets in first[-10:] for packet in packets[1:]]
        found, capture = payloads(tmp_path, frames)
        assert found == [spead(i, bytes(3000)) for i in range(1990, 2000)]
        assert capture.skipped == {"IP fragment": len(first) - 10 + 10}

    def test_cut_short(self, tmp_path, split):
        """The first has the headers: it stands for the whole datagram."""
        sent = [spead(i + 1, bytes([i]) * 4000) for i in range(5)]
        frames = [ethernet(packet) for i, p in enumerate(sent) for packet in split(udp(p), 1480, i)]
        datagrams, capture = read(tmp_path, pcap(frames, snaplen=200), cut=True)
        assert [d.length for d in datagrams] == [len(p) for p in sent]
        assert all(p.startswith(d.payload) and len(d.payload) > 90 for p, d in zip(sent, datagrams, strict=True))
        assert capture.cut_short == 5
        assert capture.skipped == {"cut short by the capture": len(frames) - 5}
        datagrams, capture = read(tmp_path, pcap(frames, snaplen=200))
        assert datagrams == []
        assert capture.skipped == {"cut short by the capture": len(frames)}


@pytest.mark.parametrize("make", [ip4, ip6])
class TestCoalesced:
    def test_split(self, tmp_path, make):
        """Packets of one length and a shorter last one, as offload makes them; and of any lengths."""
        for lengths in ((1000, 1000, 1000, 17), (5, 0, 700, 1), (8, 8)):
            sent = [spead(i + 1, bytes([i]) * n, address_bytes=5) for i, n in enumerate(lengths)]
            alone = spead(99, bytes(50))
            found, capture = payloads(
                tmp_path, [ethernet(make(udp(p))) for p in (alone, b"".join(sent), alone, alone * 2)]
            )
            assert found == [alone, *sent, alone, alone, alone]
            assert (capture.frames, capture.split) == (4, len(sent))

    def test_length_of_one_segment(self, tmp_path, make):
        """The UDP header has the length of the first packet, that of IP the length of all."""
        sent = [spead(i + 1, bytes([i]) * 100) for i in range(5)]
        frame = ethernet(make(udp(b"".join(sent), 8 + len(sent[0]))))
        found, capture = payloads(tmp_path, [frame])
        assert found == sent
        assert capture.split == 4

    def test_padding_is_no_packet(self, tmp_path, make):
        """What is behind the datagram, but not SPEAD from end to end, belongs to nobody."""
        first, second = spead(1, bytes(100)), spead(2, bytes(100))
        for behind in (b"\0" * 30, second[:-1], second + b"?", b"S"):
            found, _ = payloads(tmp_path, [ethernet(make(udp(first + behind, 8 + len(first))))])
            assert found == [first]

    def test_not_spead_from_end_to_end(self, tmp_path, make):
        """It is one datagram, as it is: others must judge it."""
        first, second = spead(1, bytes(100)), spead(2, bytes(100))
        odd = [first + second + b"?", first + b"?", first + second[:-1], second[1:] + first, bytes(500), b""]
        found, capture = payloads(tmp_path, [ethernet(make(udp(p))) for p in odd])
        assert found == odd
        assert capture.split == 0

    def test_cut_short(self, tmp_path, make):
        sent = [spead(i + 1, bytes([i]) * 400) for i in range(4)]
        content = pcap([ethernet(make(udp(b"".join(sent))))], snaplen=1000)
        datagrams, capture = read(tmp_path, content, cut=True)
        room = 1000 - 14 - len(make(udp(b"")))
        assert [d.payload for d in datagrams] == [sent[0], sent[1], b"".join(sent)[2 * len(sent[0]) : room]]
        assert datagrams[2].length == len(sent[2])
        assert (capture.cut_short, dict(capture.skipped)) == (2, {"cut short by the capture": 1})

    def test_in_fragments(self, tmp_path, make):
        sent = [spead(i + 1, bytes([i]) * 1000) for i in range(4)]
        split = fragments4 if make is ip4 else fragments6
        found, capture = payloads(tmp_path, [ethernet(p) for p in split(udp(b"".join(sent)), 1480)])
        assert found == sent
        assert (capture.joined, capture.split) == (2, 3)


def test_length_left_to_the_card(tmp_path):
    """Segmentation offload may leave the length of IPv4 at 0."""
    sent = [spead(i + 1, bytes([i]) * 100) for i in range(3)]
    frames = [ethernet(ip4(udp(sent[0]), length=0)), ethernet(ip4(udp(b"".join(sent), 8 + len(sent[0])), length=0))]
    found, capture = payloads(tmp_path, frames)
    assert found == [sent[0], *sent]
    assert not capture.skipped


def block(kind, body):
    """A block of a pcapng file."""
    return struct.pack("<II", kind, 12 + len(body)) + body + struct.pack("<I", 12 + len(body))


def test_length_left_to_the_card_is_that_of_the_frame(tmp_path):
    """What the capture has cut off belongs to it. In pcapng, simple packets have no other length."""
    sent = [spead(i + 1, bytes([i]) * 400) for i in range(4)]
    frame = ethernet(ip4(udp(b"".join(sent), 8 + len(sent[0])), length=0))
    section = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)) + block(1, struct.pack("<HHI", 1, 0, 1000))
    for content in (pcap([frame], snaplen=1000), section + block(3, struct.pack("<I", len(frame)) + frame[:1000])):
        datagrams, _ = read(tmp_path, content, cut=True)
        assert [d.payload for d in datagrams] == [*sent[:2], b"".join(sent)[2 * len(sent[0]) : 1000 - 42]]
        assert datagrams[2].length == len(sent[2])


def test_ipv6_extensions(tmp_path):
    """All that contain their own length, in a row; an authentication header, which counts words; a whole fragment."""
    sent = spead(1, bytes(100))
    options = bytes([43, 0]) + bytes(6) + bytes([60, 1]) + bytes(14) + bytes([17, 0]) + bytes(6)
    authentication = bytes([17, 4]) + bytes(22)
    atomic = bytes([17]) + bytes(7)
    frames = [(options, 0), (authentication, 51), (atomic, 44)]
    found, _ = payloads(tmp_path, [ethernet(ip6(headers + udp(sent), first)) for headers, first in frames])
    assert found == [sent] * 3
