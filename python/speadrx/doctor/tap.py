"""Count packets as they come in at any interface, before the kernel drops any."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import socket
import struct
from collections import Counter
from collections.abc import Mapping, Sequence

from speadrx.receive.endpoints import Endpoint

# Linux has this option, but the socket module does not.
_SO_ATTACH_FILTER = 26
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD

_BURST = 256  # packets to read before the next socket has its turn
_HEADERS_BYTES = 128
_BUFFER = 2**23
#: More would need jumps of more than 8 bits in the filter.
_MOST_PORTS = 200

# Instructions of the classic packet filter, from linux/filter.h.
_LOAD_BYTE, _LOAD_HALF, _LOAD_HALF_X, _LOAD_HEADER_SIZE = 0x30, 0x28, 0x48, 0xB1
_IF_EQUAL, _IF_BITS, _RETURN = 0x15, 0x45, 0x06


def _program(family: int, ports: Sequence[int]) -> bytes:
    """Make a filter that passes UDP packets to these ports; of a fragmented IPv4 packet, the first fragment."""
    n = len(ports)
    # A line: instruction, lines to skip if true, lines to skip if false, operand. The last two lines reject and pass.
    if family == socket.AF_INET6:
        lines = [(_LOAD_BYTE, 0, 0, 6), (_IF_EQUAL, 0, 1 + n, socket.IPPROTO_UDP), (_LOAD_HALF, 0, 0, 42)]
    else:
        lines = [
            (_LOAD_BYTE, 0, 0, 9),
            (_IF_EQUAL, 0, 4 + n, socket.IPPROTO_UDP),
            (_LOAD_HALF, 0, 0, 6),
            (_IF_BITS, 2 + n, 0, 0x1FFF),  # offset of the fragment
            (_LOAD_HEADER_SIZE, 0, 0, 0),
            (_LOAD_HALF_X, 0, 0, 2),
        ]
    lines += [(_IF_EQUAL, n - i, 0, port) for i, port in enumerate(ports)]
    lines += [(_RETURN, 0, 0, 0), (_RETURN, 0, 0, 0xFFFF)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


class Tap:
    """Counts packets to endpoints at all interfaces.

    Parameters
    ----------
    endpoints
        Endpoints to look for.
    stack
        Closes the sockets.
    inlets
        Interfaces, by endpoint: where several endpoints are the same group, packets count for that of their interface.

    Raises
    ------
    PermissionError
        Without CAP_NET_RAW.
    """

    def __init__(self, endpoints: Sequence[Endpoint], stack: contextlib.ExitStack, inlets: Mapping[str, str]) -> None:
        #: By endpoint, sender and interface.
        self.seen: Counter[tuple[str, str, str]] = Counter()
        self.sockets: list[socket.socket] = []
        self._endpoints: dict[tuple[str, int], dict[str, str]] = {}
        for e in endpoints:
            self._endpoints.setdefault((e.address, e.port), {})[inlets.get(str(e), "")] = str(e)
        self._wildcards = {e.port: {"": str(e)} for e in endpoints if e.wildcard}
        ports = sorted({endpoint.port for endpoint in endpoints})
        for family in sorted({endpoint.family for endpoint in endpoints}):
            protocol = socket.htons(_ETH_P_IP if family == socket.AF_INET else _ETH_P_IPV6)
            sock = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, protocol))
            if len(ports) <= _MOST_PORTS:
                program = _program(family, ports)
                memory = ctypes.create_string_buffer(program)
                pointer = struct.pack("HP", len(program) // 8, ctypes.addressof(memory))
                sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            # Packets that came before the filter was set.
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.recv(1, socket.MSG_DONTWAIT)
            self.sockets.append(sock)

    def read(self, sock: socket.socket) -> None:
        """Count the packets that have come to a socket."""
        buffer = bytearray(_HEADERS_BYTES)
        for _ in range(_BURST):
            try:
                size, address = sock.recvfrom_into(buffer, _HEADERS_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            interface, kind = address[0], address[2]
            if kind not in (socket.PACKET_OUTGOING, socket.PACKET_OTHERHOST):
                self._count(bytes(buffer[:size]), interface)

    def _count(self, packet: bytes, interface: str) -> None:
        if packet[0] >> 4 == 4:
            udp, source, destination = packet[0] % 16 * 4, packet[12:16], packet[16:20]
        else:
            udp, source, destination = 40, packet[8:24], packet[24:40]
        if len(packet) < udp + 8:
            return
        port = int.from_bytes(packet[udp + 2 : udp + 4])
        alike = self._endpoints.get((str(ipaddress.ip_address(destination)), port), self._wildcards.get(port, {}))
        # At an interface where none of them is, they are perhaps all expected.
        for endpoint in [alike[interface]] if interface in alike else alike.values():
            self.seen[endpoint, str(ipaddress.ip_address(source)), interface] += 1
