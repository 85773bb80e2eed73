"""The UDP datagrams of a capture: of pcap and pcapng files, through any of the usual link layers.

Unlike spead2's own reader of such files, this one tells when and between whom each datagram was sent, and takes
what there is of a damaged file. It needs dpkt, which comes with the extra ``cli``.
"""

from __future__ import annotations

import collections
import functools
import io
import ipaddress
import os
import stat
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

try:
    from dpkt import UnpackError, pcap, pcapng
except ModuleNotFoundError as exc:
    raise ModuleNotFoundError(
        f"speadrx.capture needs {exc.name}, which is not installed; do: pip install 'speadrx[cli]'", name=exc.name
    ) from None

#: Of each link layer (https://www.tcpdump.org/linktypes.html): the bytes of its header, and where in that the
#: Ethernet type is. Without one, the first bits of the packet tell IPv4 from IPv6.
_LINKS: dict[int, tuple[int, int | None]] = {
    0: (4, None),  # BSD loopback
    1: (14, 12),  # Ethernet
    12: (0, None),  # raw IP, as is 14 and 101
    14: (0, None),
    101: (0, None),
    108: (4, None),  # OpenBSD loopback
    113: (16, 14),  # Linux cooked
    228: (0, None),  # raw IPv4
    229: (0, None),  # raw IPv6
    276: (20, 0),  # Linux cooked, version 2
}
_ETHERNET = 1
_TYPE_IPV4, _TYPE_IPV6 = 0x0800, 0x86DD
#: 802.1Q, 802.1ad (QinQ), and what was used for it before.
_TYPES_VLAN = (0x8100, 0x88A8, 0x9100)

#: Headers of IPv4 without options, and of UDP.
_IPV4_UDP = struct.Struct(">BxHxxHxBxx4s4sHHH2x")
_IPV6 = struct.Struct(">4xHBx16s16s")
_UDP = struct.Struct(">HHH2x")
_SHORT = struct.Struct(">H")
_PROTOCOL_UDP = 17
#: IPv6 extension headers that say their own length: hop-by-hop options, routing, destination options.
_IPV6_EXTENSIONS = (0, 43, 60)
_IPV6_FRAGMENT = 44
#: More fragments follow, and the offset of this one.
_FRAGMENT_BITS = 0x3FFF

#: The largest packet and the largest pcapng block that libpcap reads.
_MAX_PACKET = 262144
_MAX_BLOCK = 2**24
#: How packed files begin.
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zX": "xz", b"BZh": "bzip2"}
_PCAP_MAGICS = (pcap.TCPDUMP_MAGIC, pcap.TCPDUMP_MAGIC_NANO, pcap.MODPCAP_MAGIC)

#: Time of capture in seconds, number of the link layer, and the bytes captured.
_Frame = tuple[float, int, bytes]
_Address = tuple[str, int]


class Datagram(NamedTuple):
    """A UDP datagram, as it was captured."""

    #: When it was captured, in seconds (since 1970, as most programs write it).
    time: float
    #: Host and port that it came from.
    source: tuple[str, int]
    #: Host and port that it was sent to.
    destination: tuple[str, int]
    #: What was captured of its payload.
    payload: bytes
    #: Bytes of payload that were sent: more than those of `payload` if the capture cut it short.
    length: int


class _File:
    """A file that knows how far it was read, and whether it ended too soon."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file = file
        self.name = path
        self.position = 0
        self.lacking = 0

    def read(self, size: int) -> bytes:
        """Read as dpkt does, which believes any length."""
        if not 0 <= size <= _MAX_BLOCK:
            raise ValueError(f"{self.name} is damaged: what is before byte {self.position} gives the length {size}")
        data = self._file.read(size)
        self.position += len(data)
        self.lacking = size - len(data)
        return data


class Capture(Iterator[Datagram]):
    """The datagrams of a capture, in order; `read_datagrams` opens one.

    It can be iterated over once. The file is closed at the end of it, by `close`, and at the end of a ``with`` block.

    Attributes
    ----------
    path
        The file.
    size
        Bytes of the file; None where that is not known (a pipe).
    frames
        Packets read so far, of any kind.
    skipped
        Packets so far that gave no datagram, by the reason for that.
    cut_short
        Datagrams so far of which the capture holds a part only, whether they were given or not.
    truncated
        At the end: whether the file ends in the midst of a packet, which was left out.

    Raises
    ------
    ValueError
        If the file is empty, no capture at all, or (by ``next``) damaged. The message names it.
    """

    def __init__(self, file: BinaryIO, path: str, magic: bytes, *, cut: bool = False) -> None:
        status = os.fstat(file.fileno())
        self.path = path
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else None
        self.frames = 0
        self.skipped: collections.Counter[str] = collections.Counter()
        self.cut_short = 0
        self.truncated = False
        self._file = file
        self._counting = _File(file, path)
        self._cut = cut
        if not magic:
            raise ValueError(f"{path} is empty: wanted a pcap or pcapng file")
        if {int.from_bytes(magic, "big"), int.from_bytes(magic, "little")}.intersection(_PCAP_MAGICS):
            frames = _pcap_frames(self._counting)
        elif int.from_bytes(magic, "big") == pcapng.PCAPNG_BT_SHB:
            frames = _pcapng_frames(self._counting)
        else:
            packed = next((f" ({name}: unpack it)" for start, name in _PACKED.items() if magic.startswith(start)), "")
            raise ValueError(f"{path} is not a pcap or pcapng file: it starts with the bytes {magic.hex(' ')}{packed}")
        self._datagrams = self._read(frames)

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self._counting.position

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __next__(self) -> Datagram:
        return next(self._datagrams)

    def _read(self, frames: Iterator[_Frame]) -> Iterator[Datagram]:
        skipped = self.skipped
        with self._file:
            for time, link, frame in frames:
                self.frames += 1
                try:
                    if link == _ETHERNET and frame[12:15] == b"\x08\x00\x45":  # nearly all are such
                        found = _ipv4(frame, 14)
                    else:
                        found = _datagram(frame, link)
                except struct.error:
                    skipped["no whole headers"] += 1
                    continue
                if isinstance(found, str):
                    skipped[found] += 1
                    continue
                source, destination, payload, length = found
                if len(payload) < length:
                    self.cut_short += 1
                    if not self._cut:
                        skipped["cut short by the capture"] += 1
                        continue
                yield Datagram(time, source, destination, payload, length)
            self.truncated = self._counting.lacking > 0


def read_datagrams(path: str | os.PathLike[str], *, cut: bool = False) -> Capture:
    """Read the UDP datagrams of a pcap or pcapng file.

    Link layers may be Ethernet (with VLAN tags), Linux cooked, raw IP or loopback; the network IPv4 or IPv6. IP
    fragments are not put together. Checksums are not looked at.

    Parameters
    ----------
    path
        The file; a pipe will do.
    cut
        Also give datagrams that the capture has cut short (``tcpdump --snapshot-length``), with what there is of
        them.

    Returns
    -------
    Capture
        An iterator of the datagrams, in the order of the file, which counts what it cannot use.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is empty, no capture at all, or (when that is reached) damaged. The message names the file.

    Examples
    --------
    >>> import tempfile
    >>> from speadrx.simulate import PcapSink
    >>> with tempfile.NamedTemporaryFile(suffix=".pcap") as file:
    ...     with PcapSink(file.name, endpoint=("239.1.2.3", 7148)) as sink:
    ...         sink.send(0, b"some payload")
    ...     [(datagram.destination, datagram.payload) for datagram in read_datagrams(file.name)]
    [(('239.1.2.3', 7148), b'some payload')]
    """
    name = os.fspath(path)
    try:
        file = io.BufferedReader(io.FileIO(name), 2**20)
    except OSError as exc:
        raise OSError(exc.errno, f"{name} cannot be read: {exc.strerror}") from None
    try:
        return Capture(file, name, file.peek(4)[:4], cut=cut)
    except BaseException:
        file.close()
        raise


def _pcap_frames(file: _File) -> Iterator[_Frame]:
    try:
        reader = pcap.Reader(file)
        link = reader.datalink() & 0xFFFF  # above are flags
        for time, frame in reader:
            if len(frame) > _MAX_PACKET:
                raise ValueError(
                    f"{file.name} is damaged: the packet before byte {file.position} has the length {len(frame)}"
                )
            if file.lacking:
                return
            yield float(time), link, frame
        file.lacking = 0  # it ends where a packet would begin
    except UnpackError:  # a header is not whole
        file.lacking = 1


class _Interface(NamedTuple):
    """What a pcapng file says of an interface."""

    link: int
    snaplen: int
    ticks_per_second: float
    offset: int

    @classmethod
    def decode(cls, block: bytes, order: str) -> _Interface:
        kind = pcapng.InterfaceDescriptionBlockLE if order == "<" else pcapng.InterfaceDescriptionBlock
        description = kind(block)
        ticks_per_second, offset = 1e6, 0
        for option in description.opts:
            if option.code == pcapng.PCAPNG_OPT_IF_TSRESOL:
                exponent = option.data[0] & 0x7F
                ticks_per_second = float(2**exponent if option.data[0] & 0x80 else 10**exponent)
            elif option.code == pcapng.PCAPNG_OPT_IF_TSOFFSET:
                (offset,) = struct.unpack(order + "q", option.data)
        return cls(description.linktype, description.snaplen, ticks_per_second, offset)


def _pcapng_frames(file: _File) -> Iterator[_Frame]:
    """Walk through the blocks (draft-ietf-opsawg-pcapng): dpkt's own reader knows of one interface only."""
    order = "<"
    interfaces: list[_Interface] = []
    while header := file.read(8):
        start = file.position - len(header)
        if len(header) == 8 and header[:4] == b"\x0a\x0d\x0d\x0a":  # a section, which has its own byte order
            header += file.read(4)
            order = "<" if header[8:] == b"\x4d\x3c\x2b\x1a" else ">"
            interfaces = []
        if file.lacking:
            return
        kind, length = struct.unpack_from(order + "II", header)
        if not 12 <= length <= _MAX_BLOCK:
            raise ValueError(f"{file.name} is damaged: the block at byte {start} has the length {length}")
        block = header + file.read(length - len(header))
        if file.lacking:
            return
        try:
            if kind == pcapng.PCAPNG_BT_IDB:
                interfaces.append(_Interface.decode(block, order))
            elif kind in _PACKET_BLOCKS:
                yield _packet(kind, block, order, interfaces)
        except (UnpackError, struct.error, IndexError, ValueError) as exc:
            raise ValueError(f"{file.name} is damaged: the block at byte {start} does not decode: {exc}") from None
    file.lacking = 0


_PACKET_BLOCKS = (pcapng.PCAPNG_BT_EPB, pcapng.PCAPNG_BT_SPB, pcapng.PCAPNG_BT_PB)


def _packet(kind: int, block: bytes, order: str, interfaces: list[_Interface]) -> _Frame:
    if kind == pcapng.PCAPNG_BT_SPB:  # without a time, and of the first interface
        interface, start = interfaces[0], 12
        (length,) = struct.unpack_from(order + "I", block, 8)
        captured = min(length, interface.snaplen or length, len(block) - 16)
        return 0.0, interface.link, block[start : start + captured]
    layout = "IIII" if kind == pcapng.PCAPNG_BT_EPB else "HxxIII"
    number, high, low, captured = struct.unpack_from(order + layout, block, 8)
    interface, start = interfaces[number], 28
    if captured > len(block) - start - 4:
        raise ValueError(f"it holds {captured} bytes of a packet, but has {len(block)} itself")
    time = interface.offset + (high << 32 | low) / interface.ticks_per_second
    return time, interface.link, block[start : start + captured]


@functools.lru_cache(65536)  # there are few, and naming them takes long
def _address(packed: bytes, port: int) -> _Address:
    return str(ipaddress.ip_address(packed)), port


#: Source, destination, payload and its length; or why there is none.
_Found = tuple[_Address, _Address, bytes, int] | str


def _datagram(frame: bytes, link: int) -> _Found:
    """Find the datagram in a packet; a header that is not whole is a `struct.error`."""
    if link not in _LINKS:
        return f"unknown link type {link}"
    offset, type_offset = _LINKS[link]
    if type_offset is None:
        version = frame[offset] >> 4 if offset < len(frame) else 0
        kind = {4: _TYPE_IPV4, 6: _TYPE_IPV6}.get(version, 0)
    else:
        (kind,) = _SHORT.unpack_from(frame, type_offset)
        while kind in _TYPES_VLAN:
            (kind,) = _SHORT.unpack_from(frame, offset + 2)
            offset += 4
    if kind == _TYPE_IPV4:
        return _ipv4(frame, offset)
    return _ipv6(frame, offset) if kind == _TYPE_IPV6 else "not IP"


def _ipv4(frame: bytes, offset: int) -> _Found:
    version, _, fragment, protocol, source, destination, from_port, to_port, length = _IPV4_UDP.unpack_from(
        frame, offset
    )
    if protocol != _PROTOCOL_UDP:
        return "not UDP"
    if fragment & _FRAGMENT_BITS:
        return "IP fragment"
    if version == 0x45:  # nearly all are without options
        start = offset + _IPV4_UDP.size
    else:
        start = offset + 4 * (version & 15)
        from_port, to_port, length = _UDP.unpack_from(frame, start)
        start += _UDP.size
    if length < _UDP.size:
        return "bad UDP length"
    length -= _UDP.size
    return _address(source, from_port), _address(destination, to_port), frame[start : start + length], length


def _ipv6(frame: bytes, offset: int) -> _Found:
    _, header, source, destination = _IPV6.unpack_from(frame, offset)
    start = offset + _IPV6.size
    while header in _IPV6_EXTENSIONS:
        (after,) = _SHORT.unpack_from(frame, start)
        header = after >> 8
        start += 8 * (1 + (after & 0xFF))
    if header == _IPV6_FRAGMENT:
        return "IP fragment"
    if header != _PROTOCOL_UDP:
        return "not UDP"
    from_port, to_port, length = _UDP.unpack_from(frame, start)
    if length < _UDP.size:
        return "bad UDP length"
    start, length = start + _UDP.size, length - _UDP.size
    return _address(source, from_port), _address(destination, to_port), frame[start : start + length], length
