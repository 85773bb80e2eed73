"""Decode the header and the item pointers of SPEAD packets, by the rules of SPEAD version 4 and of spead2.

The format is that of "SPEAD: Streaming Protocol for Exchanging Astronomical Data" (Manley, Welz, Parsons, Ratcliffe;
SKA SA SPD document): a header of 8 bytes, pointers of 8 bytes each, then payload.
"""

from __future__ import annotations

import functools
import struct
from typing import NamedTuple

import spead2

#: Magic, version, bytes of an item's ID and of a heap address, number of pointers.
_HEADER = struct.Struct(">BBBB2xH")
_MAGIC, _VERSION = 0x53, 4
_POINTER_BYTES = 8


class Flavour(NamedTuple):
    """How the pointers of a packet are divided: ``64-address_bits``.

    A pointer has an immediate bit, the ID of its item, and a value of `address_bits` bits. With the immediate bit, it
    holds the value of the item; without, the value is an offset in the payload. The immediate bit and the ID together
    are called the key of the pointer here.
    """

    #: Bits of an immediate value or an offset.
    address_bits: int

    def __str__(self) -> str:
        return f"64-{self.address_bits}"

    @property
    def immediate(self) -> int:
        """The immediate bit of a key."""
        return 1 << (63 - self.address_bits)


class PacketHeader(NamedTuple):
    """The header and the item pointers of a packet."""

    flavour: Flavour
    #: Value of each pointer, by its key.
    pointers: dict[int, int]
    #: Number of the heap.
    heap_cnt: int
    #: Bytes of the heap's payload; None if the packet does not say.
    heap_bytes: int | None
    #: Where the payload of the packet belongs in that of the heap.
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
    """A flavour, its mask for values, and its keys of heap counter, heap length, payload offset and payload length."""
    flavour = Flavour(8 * address_bytes)
    special = (spead2.HEAP_CNT_ID, spead2.HEAP_LENGTH_ID, spead2.PAYLOAD_OFFSET_ID, spead2.PAYLOAD_LENGTH_ID)
    cnt, length, offset, payload = (flavour.immediate | item for item in special)
    return flavour, (1 << flavour.address_bits) - 1, cnt, length, offset, payload


#: Why packets do not decode that make sense if each is a heap of its own.
NO_OFFSET = "no heap counter, payload offset or payload length"
BEYOND_HEAP = "payload beyond the heap"


def decode(data: bytes, length: int | None = None, *, whole: bool = False) -> PacketHeader | str:
    """Decode a packet, by the rules of spead2.

    Parameters
    ----------
    data
        The packet. Its payload is not needed, and may have been cut off.
    length
        Bytes of the whole packet (default: those of `data`).
    whole
        Take the packet as a whole heap, whatever it says of the heap's length and of its own place there.

    Returns
    -------
    PacketHeader or str
        What the header says; or, in a few words, why it does not decode.

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
    if whole:
        size = min(pointers.get(payload_length, packet_bytes), max(0, packet_bytes - start))
        return PacketHeader(flavour, pointers, pointers.get(cnt, 0), size, 0, size, packet_bytes)
    try:
        header = PacketHeader(
            flavour,
            pointers,
            pointers[cnt],
            pointers.get(heap_length),
            pointers[offset],
            pointers[payload_length],
            packet_bytes,
        )
    except KeyError:
        return NO_OFFSET
    if start + header.payload_bytes > packet_bytes:
        return "payload beyond the end"
    if header.heap_bytes is not None and header.offset + header.payload_bytes > header.heap_bytes:
        return BEYOND_HEAP
    return header
