"""Where simulated packets go: over UDP (also multicast), into an in-process queue, or into a pcap file."""

from __future__ import annotations

import ipaddress
import operator
import os
import socket
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
import spead2

from .pacing import Clock

#: A packet to be sent: its flow (the position of its heap in the batch), and its bytes.
Packet: TypeAlias = tuple[int, bytes]


class Sink(Protocol):
    """Where packets go."""

    def send(self, flow: int, packet: bytes) -> None:
        """Send one packet of a flow (the position of its heap in the batch)."""


class InprocSink:
    """Puts packets into an in-process queue of spead2.

    Parameters
    ----------
    queue
        The queue that an in-process reader of the stream reads.
    """

    def __init__(self, queue: spead2.InprocQueue) -> None:
        self._queue = queue

    def send(self, flow: int, packet: bytes) -> None:
        """Send one packet."""
        self._queue.add_packet(packet)


def _endpoint(name: str, endpoint: Any) -> tuple[str, int]:
    """Check an argument that must be a host and a port."""
    try:
        host, port = endpoint
        port = operator.index(port)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: given {endpoint!r}, but wanted a pair of host and port") from None
    if not isinstance(host, str):
        raise ValueError(f"{name}: {host!r} is not a host: wanted a name or an address")
    if not 1 <= port <= 65535:  # the system may take others modulo 65536
        raise ValueError(f"{name}: {port} is not a port: wanted 1 to 65535")
    return host, port


class _ClosingSink:
    """A sink that has to be closed. It is a context manager."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


class UdpSink(_ClosingSink):
    """Sends packets over UDP, unicast or multicast, each in one datagram (without segmentation offload).

    It is a context manager that closes its socket.

    Parameters
    ----------
    endpoints
        Host and port of each destination, either all IPv4 or all IPv6. Flow *i* goes to endpoint *i* modulo the number
        of endpoints.
    interface
        IPv4 address of the interface to send from; for IPv6, the name of the interface to send multicast from. By
        default, the system's routes decide.
    ttl
        Time to live of multicast packets.

    Raises
    ------
    ValueError
        If an argument is wrong. The message names it and its value.
    """

    def __init__(self, endpoints: Sequence[tuple[str, int]], *, interface: str | None = None, ttl: int = 1) -> None:
        if not endpoints:
            raise ValueError("endpoints: is empty: wanted at least one (host, port) pair")
        found = []
        for host, port in [_endpoint("endpoints", endpoint) for endpoint in endpoints]:
            if "/" in host:
                raise ValueError(f"endpoints: {host!r} names an interface, but wanted one for all endpoints: interface")
            try:
                found.append(socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0])
            except (OSError, UnicodeError) as exc:
                raise ValueError(f"endpoints: {host!r} cannot be resolved: {exc}") from exc
        (family, *others) = {family for family, *_ in found}
        if others:
            raise ValueError(f"endpoints: {list(endpoints)} mix IPv4 and IPv6: wanted only one of them")
        self._endpoints = [address for *_, address in found]
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            if family == socket.AF_INET6:
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, ttl)
                if interface is not None:
                    index = socket.if_nametoindex(interface)
                    self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            else:
                self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
                if interface is not None:  # for multicast, binding does not choose the interface
                    packed = ipaddress.IPv4Address(interface).packed
                    self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, packed)
                    self._socket.bind((interface, 0))
        except (OSError, ValueError) as exc:
            self._socket.close()
            raise ValueError(f"interface: cannot send from {interface!r} (ttl {ttl}): {exc}") from exc

    def send(self, flow: int, packet: bytes) -> None:
        """Send one packet."""
        self._socket.sendto(packet, self._endpoints[flow % len(self._endpoints)])

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _ipv4_address(name: str, host: str) -> ipaddress.IPv4Address:
    try:
        return ipaddress.IPv4Address(host)
    except ValueError:
        raise ValueError(f"{name}: {host!r} must be an IPv4 address, since it goes into the headers") from None


class _Headers:
    """The headers of packets from one address to another."""

    def __init__(self, source: tuple[str, int], destination: tuple[str, int]) -> None:
        source_ip, ip = _ipv4_address("source", source[0]), _ipv4_address("endpoint", destination[0])
        self._addresses = source_ip.packed + ip.packed
        self._ports = (source[1], destination[1])
        # RFC 1112: the Ethernet address of a group has the low 23 bits of its IP address.
        group = b"\x01\x00\x5e" + (int(ip) & 0x7FFFFF).to_bytes(3, "big")
        mac = group if ip.is_multicast else b"\x02\x00" + ip.packed
        self._ethernet = mac + b"\x02\x00" + source_ip.packed + b"\x08\x00"

    def frame(self, number: int, packet: bytes) -> bytes:
        """Put the headers before a packet."""
        udp_bytes = 8 + len(packet)
        ip_bytes = 20 + udp_bytes
        if ip_bytes > 0xFFFF:
            raise ValueError(f"packet: its {len(packet)} bytes do not fit in a UDP datagram")
        udp = struct.pack(">HHHH", *self._ports, udp_bytes, 0)
        pseudo = self._addresses + struct.pack(">HH", socket.IPPROTO_UDP, udp_bytes)
        # A checksum of 0 is sent as all ones, because 0 means that there is no checksum.
        udp = udp[:6] + struct.pack(">H", _checksum(pseudo + udp + packet) or 0xFFFF)
        # Version and header length, no service class, length, number, don't fragment, time to live, UDP.
        ip = struct.pack(">BBHHHBBH", 0x45, 0, ip_bytes, number, 0x4000, 64, socket.IPPROTO_UDP, 0)
        ip = ip[:10] + struct.pack(">H", _checksum(ip + self._addresses)) + self._addresses
        return b"".join((self._ethernet, ip, udp, packet))


class PcapSink(_ClosingSink):
    """Writes packets to a capture file, as Ethernet frames with IPv4 and UDP headers and checksums.

    It is a context manager that closes its file. The format is the classic one of libpcap ("PCAP Capture File Format",
    IETF draft-ietf-opsawg-pcap). The headers follow RFC 791 and RFC 768, and their checksums RFC 1071. The time stamp
    of a packet is its number in microseconds, or the time of the clock. The same packets make the same file, also with
    a `VirtualClock`.

    Parameters
    ----------
    path
        File to write.
    endpoint
        Destination address (IPv4) and port, or several. Flow *i* goes to number *i* modulo the number of endpoints.
    source
        Source address (IPv4) and port.
    clock
        Clock for the time stamps. Give `Simulator.send` the same clock.

    Raises
    ------
    ValueError
        If an argument is wrong. The message names it and its value.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        endpoint: tuple[str, int] | Sequence[tuple[str, int]] = ("239.1.2.3", 7148),
        source: tuple[str, int] = ("10.1.2.3", 7148),
        clock: Clock | None = None,
    ) -> None:
        single = not endpoint or isinstance(endpoint[0], str)
        source = _endpoint("source", source)
        self._flows = [_Headers(source, _endpoint("endpoint", each)) for each in ([endpoint] if single else endpoint)]
        self._clock = clock
        self._number = 0
        self._file = open(path, "wb")  # noqa: SIM115 (closed by close)
        # Magic, version 2.4, time zone, accuracy, longest packet, Ethernet.
        self._file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 0x40000, 1))

    def send(self, flow: int, packet: bytes) -> None:
        """Write one packet.

        Raises
        ------
        ValueError
            If the packet does not fit in a UDP datagram, or its time does not fit in the file.
        """
        frame = self._flows[flow % len(self._flows)].frame(self._number % 0x10000, packet)
        microseconds = self._number if self._clock is None else round(self._clock.now() * 1e6)
        if microseconds >= 2**32 * 1_000_000:
            raise ValueError(f"clock: its time, {microseconds / 1e6:g} s, must be less than 2^32 s in a capture file")
        self._file.write(struct.pack("<IIII", *divmod(microseconds, 1_000_000), len(frame), len(frame)))
        self._file.write(frame)
        self._number += 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _checksum(data: bytes) -> int:
    """Internet checksum: the complement of the ones' complement sum of the big-endian words."""
    total = int(np.frombuffer(data + bytes(len(data) % 2), dtype=">u2").sum(dtype=np.uint64))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
