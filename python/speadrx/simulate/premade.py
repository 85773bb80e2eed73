"""Packets that are made once and sent many times, with later times each time. This is faster than making new ones."""

from __future__ import annotations

import dataclasses
import itertools
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import spead2

from speadrx.layout.base import DeclarativeLayout

from .simulator import DEFAULT_FLAVOUR, Simulator

_POINTER_BYTES = 8
_VALUE_BITS = DEFAULT_FLAVOUR.heap_address_bits
_VALUE_MASK = np.uint64(2**_VALUE_BITS - 1)
_MIN_SLEEP = 1e-4  # seconds
#: Option of UDP sockets: the kernel cuts data into packets of that size (Linux 4.18, ``man 7 udp``).
_UDP_SEGMENT = 103
_MAX_SEGMENTS, _MAX_BYTES = 64, 65507

#: Neighbouring packets of one size, and the ancillary data that sends them with one call.
_Burst = tuple[memoryview, list[tuple[int, int, bytes]]]


@dataclass(frozen=True)
class Sent:
    """What was sent, and when, by the monotonic clock."""

    heaps: int
    bytes: int  # of all packets
    begin: float
    end: float


class Premade:
    """The packets of some batches of all sources, in the order of time.

    Parameters
    ----------
    layout
        Layout of the heaps.
    batches
        Number of batches.
    user_data
        Index on each axis that the layout takes from ``user_data``, by field.
    max_packet_size
        Largest size of a packet in bytes, including SPEAD header and items.

    Raises
    ------
    ValueError
        If the layout cannot be simulated.
    """

    #: The packets. `advance` changes them.
    packets: list[memoryview]
    #: Heaps in the packets.
    heaps: int

    def __init__(
        self, layout: DeclarativeLayout, batches: int, *, user_data: Mapping[str, int], max_packet_size: int
    ) -> None:
        # All packets have the same items: nothing is done as only the instrument does it.
        plain = dataclasses.replace(layout.declaration, send=None)
        simulator = Simulator(plain, user_data=user_data, max_packet_size=max_packet_size)
        packets = [packet for _, packet in simulator.packets(batches)]
        self.heaps = sum(simulator.truth.sent)
        memory = bytearray(b"".join(packets))
        self._bytes = np.frombuffer(memory, np.uint8)
        view = memoryview(memory)
        bounds = np.cumsum([0, *map(len, packets)])
        self.packets = [view[begin:end] for begin, end in itertools.pairwise(bounds)]
        self._bursts = list(_bursts(view, bounds, _MAX_SEGMENTS if _can_segment() else 1))
        axis = layout.declaration.time
        # Where the values are that change, and by how much they change each time. All packets have the same items.
        self._fields = [
            (bounds[:-1] + self._offset(packets[0], item), np.uint64(step))
            for item, step in ((spead2.HEAP_CNT_ID, self.heaps), (axis.items[0], batches * axis.step << axis.shift))
        ]

    @staticmethod
    def _offset(packet: bytes, item: int) -> int:
        """Find the offset of an item in a packet."""
        (n_items,) = np.frombuffer(packet, ">u2", 1, _POINTER_BYTES - 2)
        pointers = np.frombuffer(packet, ">u8", n_items, _POINTER_BYTES)
        (place,) = np.flatnonzero(pointers >> np.uint64(_VALUE_BITS) == 1 << 63 - _VALUE_BITS | item)
        return _POINTER_BYTES * (1 + int(place))

    def advance(self) -> None:
        """Turn the heaps into those of the next batches."""
        for begins, step in self._fields:
            where = begins[:, np.newaxis] + np.arange(_POINTER_BYTES)
            pointers = self._bytes[where].view(">u8")
            values = (pointers + step) & _VALUE_MASK
            self._bytes[where] = (pointers & ~_VALUE_MASK | values).astype(">u8").view(np.uint8)

    def send(self, sock: socket.socket, seconds: float, rate: float) -> Sent:
        """Send the packets again and again, for some time.

        Parameters
        ----------
        sock
            UDP socket that is connected to the receiver.
        seconds
            How long to send, at least.
        rate
            Bytes of packets per second. It may be less if this machine is not fast enough.
        """
        heaps = sent_bytes = 0
        begin = now = time.monotonic()
        while now - begin < seconds:
            for packets, segments in self._bursts:
                sent_bytes += sock.sendmsg([packets], segments)
                ahead = begin + sent_bytes / rate - time.monotonic()
                if ahead > _MIN_SLEEP:
                    time.sleep(ahead)
            heaps += self.heaps
            self.advance()
            now = time.monotonic()
        return Sent(heaps, sent_bytes, begin, now)


def _can_segment() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, 0)
        except OSError:
            return False
    return True


def _bursts(view: memoryview, bounds: np.ndarray, most: int) -> Iterator[_Burst]:
    """Cut packets into bursts of at most `most` packets of one size."""
    sizes = np.diff(bounds)
    first = 0
    while first < len(sizes):
        size = int(sizes[first])
        last = first + 1
        while last < len(sizes) and sizes[last] == size and (last - first) < min(most, _MAX_BYTES // size):
            last += 1
        segments = [(socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("H", size))] if last > first + 1 else []
        yield view[bounds[first] : bounds[last]], segments
        first = last
