"""Read the UDP datagrams of a capture: a pcap or pcapng file.

spead2 has a reader for such files too. This one also gives the time and the addresses of each datagram, knows more
link layers, and reads a damaged file up to the damage. It needs dpkt, which comes with the extra ``cli``.
"""

from __future__ import annotations

import collections
import io
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

from .frames import find_datagram

#: The largest packet and the largest pcapng block that libpcap reads.
_MAX_PACKET = 262144
_MAX_BLOCK = 2**24
#: The first bytes of compressed files.
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zX": "xz", b"BZh": "bzip2"}
_PCAP_MAGICS = (pcap.TCPDUMP_MAGIC, pcap.TCPDUMP_MAGIC_NANO, pcap.MODPCAP_MAGIC)

#: Time of capture in seconds, number of the link layer, and the bytes captured.
_Frame = tuple[float, int, bytes]


class Datagram(NamedTuple):
    """A UDP datagram, as it was captured."""

    #: When it was captured, in seconds. Most programs count them from 1970.
    time: float
    #: Host and port of the sender.
    source: tuple[str, int]
    #: Host and port that it was sent to.
    destination: tuple[str, int]
    #: Its payload, as far as it was captured.
    payload: bytes
    #: Bytes of payload that were sent: more than `payload` has, if the capture cut it short.
    length: int


class _File:
    """A file that knows how far it has been read, and how many bytes the last read lacked."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file = file
        self.name = path
        self.position = 0
        self.lacking = 0

    def read(self, size: int) -> bytes:
        """Read bytes; dpkt calls this with any length that it finds in the file."""
        if not 0 <= size <= _MAX_BLOCK:
            raise ValueError(f"{self.name} is damaged: the header before byte {self.position} gives the length {size}")
        data = self._file.read(size)
        self.position += len(data)
        self.lacking = size - len(data)
        return data


class Capture(Iterator[Datagram]):
    """The datagrams of a capture, in order; `read_datagrams` opens one.

    It can be iterated over once. The file is closed after the last datagram, by `close`, and at the end of a ``with``
    block.

    Attributes
    ----------
    path
        The file.
    size
        Bytes of the file; None if that is not known (for a pipe).
    frames
        Packets of any kind read so far.
    skipped
        Packets read so far that gave no datagram, by reason.
    cut_short
        Datagrams so far that the capture has cut short, whether they were given or not.
    truncated
        At the end: whether the last packet of the file is incomplete. It was left out.

    Raises
    ------
    ValueError
        If the file is empty, not a capture, or (when ``next`` reaches it) damaged. The message names the file.
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
            packed = next(
                (
                    f" (it is compressed with {name}: decompress it)"
                    for start, name in _PACKED.items()
                    if magic.startswith(start)
                ),
                "",
            )
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
                    found = find_datagram(frame, link)
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

    The link layer may be Ethernet (with VLAN tags), Linux cooked, raw IP or loopback. The network may be IPv4 or IPv6.
    IP fragments are not put together. Checksums are not checked.

    Parameters
    ----------
    path
        The file, which may be a pipe.
    cut
        Also give datagrams that the capture has cut short (``tcpdump --snapshot-length``), as far as they were
        captured.

    Returns
    -------
    Capture
        An iterator of the datagrams, in the order of the file. It counts the packets that it cannot use.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If the file is empty, not a capture, or (when the iterator reaches it) damaged. The message names the file.

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
        file.lacking = 0  # the file ends between two packets
    except UnpackError:  # a header is cut off
        file.lacking = 1


class _Interface(NamedTuple):
    """What a pcapng file says about an interface."""

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
    """Walk through the blocks (draft-ietf-opsawg-pcapng): dpkt's own reader knows only one interface."""
    order = "<"
    interfaces: list[_Interface] = []
    while header := file.read(8):
        start = file.position - len(header)
        if len(header) == 8 and header[:4] == b"\x0a\x0d\x0d\x0a":  # a section; each has its own byte order
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
    if kind == pcapng.PCAPNG_BT_SPB:  # it has no time, and belongs to the first interface
        interface, start = interfaces[0], 12
        (length,) = struct.unpack_from(order + "I", block, 8)
        captured = min(length, interface.snaplen or length, len(block) - 16)
        return 0.0, interface.link, block[start : start + captured]
    layout = "IIII" if kind == pcapng.PCAPNG_BT_EPB else "HxxIII"
    number, high, low, captured = struct.unpack_from(order + layout, block, 8)
    interface, start = interfaces[number], 28
    if captured > len(block) - start - 4:
        raise ValueError(f"its packet has {captured} bytes, but the whole block has {len(block)}")
    time = interface.offset + (high << 32 | low) / interface.ticks_per_second
    return time, interface.link, block[start : start + captured]
