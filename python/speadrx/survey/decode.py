"""Decode the header and the item pointers of SPEAD packets, as the SPEAD protocol (version 4) and spead2 have them.

The format is that of "SPEAD: Streaming Protocol for Exchanging Astronomical Data" (Manley, Welz, Parsons, Ratcliffe;
SKA SA SPD document): a header of 8 bytes, pointers of 8 bytes each, then payload.
"""

from __future__ import annotations

import functools
import struct
from typing import NamedTuple

import spead2

#: Magic, version, bytes of an item's ID and of a heap address, how many pointers there are.
_HEADER = struct.Struct(">BBBB2xH")
_MAGIC, _VERSION = 0x53, 4
_POINTER_BYTES = 8


class Flavour(NamedTuple):
    """How the pointers of a packet are divided: ``64-address_bits``.

    A pointer has one bit that says whether its value is immediate, the ID of its item, and the value itself: all
    bits above `address_bits` are its key here. Without the immediate bit, the value is an offset in the payload.
    """

    #: Bits of an immediate value or an offset.
    address_bits: int

    def __str__(self) -> str:
        return f"64-{self.address_bits}"

    @property
    def immediate(self) -> int:
        """The bit of a key that says that the value is immediate."""
        return 1 << (63 - self.address_bits)


class Packet(NamedTuple):
    """What the header of a packet says."""

    flavour: Flavour
    #: Value of each pointer, by its key.
    pointers: dict[int, int]
    #: Counter of the heap.
    heap_cnt: int
    #: Bytes of the heap's payload; None if the packet does not say.
    heap_bytes: int | None
    #: Where in the heap the payload of the packet belongs.
    offset: int
    #: Bytes of payload in the packet.
    payload_bytes: int
    #: Bytes of the packet.
    packet_bytes: int


@functools.cache
def _pointers(n: int) -> struct.Struct:
    return struct.Struct(f">{n}Q")


@functools.cache
def _flavour(address_bytes: int) -> tuple[Flavour, int, int, int, int, int]:
    """A flavour, the mask of values, and the keys of heap counter, heap length, payload offset and length."""
    flavour = Flavour(8 * address_bytes)
    special = (spead2.HEAP_CNT_ID, spead2.HEAP_LENGTH_ID, spead2.PAYLOAD_OFFSET_ID, spead2.PAYLOAD_LENGTH_ID)
    cnt, length, offset, payload = (flavour.immediate | item for item in special)
    return flavour, (1 << flavour.address_bits) - 1, cnt, length, offset, payload


def decode(data: bytes, length: int | None = None) -> Packet | str:
    """Decode a packet, by the rules of spead2.

    Parameters
    ----------
    data
        The packet; only its pointers are looked at, so that the payload may have been cut off.
    length
        Bytes that the packet had when it was whole (default: those of `data`).

    Returns
    -------
    Packet or str
        What the packet says; or why it does not decode, in a few words.

    Examples
    --------
    >>> decode(bytes.fromhex("5304020600000003 8001000000000007 8003000000000000 8004000000000000")).heap_cnt
    7
    >>> decode(b"something else")
    'not SPEAD'
    """
    packet_bytes = len(data) if length is None else length
    if len(data) < _HEADER.size:
        return "shorter than a header"
    magic, version, id_bytes, address_bytes, n = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        return "not SPEAD"
    if version != _VERSION:
        return f"SPEAD version {version}"
    if id_bytes + address_bytes != _POINTER_BYTES or not id_bytes or not address_bytes:
        return "no flavour of 64 bits"
    start = _HEADER.size + n * _POINTER_BYTES
    if start > len(data):
        return "pointers beyond the end"
    flavour, mask, cnt, heap_length, offset, payload_length = _flavour(address_bytes)
    shift = flavour.address_bits
    pointers = {pointer >> shift: pointer & mask for pointer in _pointers(n).unpack_from(data, _HEADER.size)}
    try:
        packet = Packet(
            flavour,
            pointers,
            pointers[cnt],
            pointers.get(heap_length),
            pointers[offset],
            pointers[payload_length],
            packet_bytes,
        )
    except KeyError:
        return "no heap counter, payload offset or payload length"
    if start + packet.payload_bytes > packet_bytes:
        return "payload beyond the end"
    if packet.heap_bytes is not None and packet.offset + packet.payload_bytes > packet.heap_bytes:
        return "payload beyond the heap"
    return packet
