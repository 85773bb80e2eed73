"""Packets made with struct alone, as instruments send them; surveys of them, and captures."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable

from speadrx.survey import Survey

SENDER, GROUP = ("10.0.0.1", 5000), ("239.1.2.3", 7148)

#: An item: its ID and its immediate value, or None where it is addressed; or its place in the payload as ``(place,)``.
Item = tuple[int, int | tuple[int] | None]


def packet(items: Iterable[Item], payload: bytes = b"", bits: int = 48) -> bytes:
    """One packet with these items and no others; an address has so many bits."""
    pointers = []
    for item, value in items:
        immediate = isinstance(value, int)
        place = value if immediate else value[0] if value else 0
        pointers.append(immediate << 63 | item << bits | place)
    header = struct.pack(">BBBBHH", 0x53, 4, 8 - bits // 8, bits // 8, 0, len(pointers))
    return header + struct.pack(f">{len(pointers)}Q", *pointers) + payload


def heap(
    counter: int, items: list[Item], payload: bytes, *, parts: int = 1, bits: int = 48, repeat: bool = True
) -> list[bytes]:
    """The packets of a heap with the items of the protocol; without `repeat`, only the first has the others."""
    size = -(-len(payload) // parts)
    packets = []
    for start in range(0, len(payload), size):
        part = payload[start : start + size]
        special: list[Item] = [(1, counter), (2, len(payload)), (3, start), (4, len(part))]
        packets.append(packet([*special, *(items if repeat or not start else [])], part, bits))
    return packets


def survey_of(packets: Iterable[bytes | tuple[tuple[str, int], bytes]]) -> Survey:
    """Survey packets, each from `SENDER` unless it comes with another one."""
    survey = Survey()
    for n, one in enumerate(packets):
        sender, data = (SENDER, one) if isinstance(one, bytes) else one
        survey.add(n * 1e-6, sender, GROUP, data)
    return survey


def write_capture(path: os.PathLike[str], packets: Iterable[bytes | tuple[tuple[str, int], bytes]]) -> str:
    """Write packets to a file, each from `SENDER` unless it comes with another one; return its path."""
    with open(path, "wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 2**18, 1))
        for n, one in enumerate(packets):
            (host, port), data = (SENDER, one) if isinstance(one, bytes) else one
            udp = struct.pack(">HHHH", port, GROUP[1], 8 + len(data), 0) + data
            addresses = socket.inet_aton(host) + socket.inet_aton(GROUP[0])
            ip = bytearray(struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), n & 0xFFFF, 0, 8, 17, 0) + addresses)
            total = sum(struct.unpack(">10H", ip))
            total = (total & 0xFFFF) + (total >> 16)
            ip[10:12] = struct.pack(">H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF)
            frame = bytes(12) + b"\x08\x00" + ip + udp
            file.write(struct.pack("<IIII", n // 10**6, n % 10**6, len(frame), len(frame)) + frame)
    return os.fspath(path)
