"""Checks of capture files that spead2 is to read."""

from __future__ import annotations

import mmap
import os
import stat
import struct

#: The largest packet and the largest pcapng block that libpcap reads.
_MAX_PCAP_PACKET = 262144
_MAX_PCAPNG_BLOCK = 2**24

#: How a pcap file starts, and the byte order that this means.
_BYTE_ORDERS = {
    b"\xd4\xc3\xb2\xa1": "<",
    b"\x4d\x3c\xb2\xa1": "<",
    b"\xa1\xb2\xc3\xd4": ">",
    b"\xa1\xb2\x3c\x4d": ">",
}


def check_pcap(path: str) -> None:
    """Check a pcap file from beginning to end, since spead2 tries for ever to read on in a truncated one.

    Raises
    ------
    ValueError
        If it is not a pcap file, or is truncated or damaged.
    OSError
        If it cannot be read.
    """
    try:
        status = os.stat(path)
    except OSError as exc:
        hint = " (for UDP, give [(host, port)])" if isinstance(exc, FileNotFoundError) else ""
        raise OSError(exc.errno, f"src: {path} cannot be read: {exc.strerror}{hint}") from None
    except ValueError as exc:  # no file can have this name
        raise ValueError(f"src: {path!r} cannot be read: {exc}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"src: {path} is not a regular file")
    if status.st_size == 0:
        raise ValueError(f"src: {path} is empty: wanted a pcap file")
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below; the errors of reading differ from this one)
    except OSError as exc:
        raise OSError(exc.errno, f"src: {path} cannot be read: {exc.strerror}") from None
    with file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = _end(path, data)
    if end > status.st_size:
        raise ValueError(
            f"src: {path} is truncated: its last packet ends at byte {end}, but the file has {status.st_size}"
        )


def _end(path: str, data: mmap.mmap) -> int:
    """Find where the last packet of a pcap or pcapng file ends, as its header says."""
    magic = data[:4]
    if magic in _BYTE_ORDERS:
        position, least, most = 24, 0, _MAX_PCAP_PACKET
        header = struct.Struct(_BYTE_ORDERS[magic] + "8xI4x")
        overhead = header.size
    elif magic == b"\x0a\x0d\x0d\x0a":  # pcapng: all blocks have the same form, and their lengths include everything
        position, least, most = 0, 12, _MAX_PCAPNG_BLOCK
        header = struct.Struct(("<" if data[8:12] == b"\x4d\x3c\x2b\x1a" else ">") + "4xI")
        overhead = 0
    else:
        raise ValueError(f"src: {path} is not a pcap file: it starts with the bytes {magic.hex(' ')}")
    while position + header.size <= len(data):
        (length,) = header.unpack_from(data, position)
        if not least <= length <= most:
            raise ValueError(f"src: {path} is damaged: the packet at byte {position} has the length {length}")
        position += overhead + length
    return position if position >= len(data) else position + header.size
