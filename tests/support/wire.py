"""Packets made with struct alone, as instruments send them, and surveys of them."""

from __future__ import annotations

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
