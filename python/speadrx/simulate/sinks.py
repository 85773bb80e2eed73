"""Where simulated packets go: over UDP (also multicast), into an in-process queue, or into a pcap file."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import ipaddress
import operator
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import spead2

from speadrx import _core

from .blocks import Packets
from .pacing import Clock, WallClock

#: Packets that are paced are sent at most so many bytes at a time, and at most so many seconds before they are due.
BURST_BYTES, BURST_SECONDS = 1 << 16, 1e-3


class Sink(Protocol):
    """Where packets go."""

    def send(self, flow: int, packet: bytes) -> None:
        """Send one packet of a flow (the position of its heap in the batch)."""


@runtime_checkable
class BlockSink(Sink, Protocol):
    """Where packets go, many at a time."""

    def send_block(self, packets: Packets, due: np.ndarray | None, clock: Clock) -> None:
        """Send packets, each when it is due by the clock; all at once if nothing is said."""


def _give(sink: Sink, packets: Packets, due: np.ndarray | None, clock: Clock) -> None:
    if isinstance(sink, BlockSink):
        sink.send_block(packets, due, clock)
        return
    for i, (flow, packet) in enumerate(packets):
        if due is not None:
            clock.wait_until(due[i])
        sink.send(flow, packet)


@contextlib.contextmanager
def sending(
    sinks: Sequence[Sink], sink_of_flow: np.ndarray
) -> Iterator[Callable[[Packets, np.ndarray | None, Clock], None]]:
    """Send blocks of packets through one sink; or through several, each in a thread of its own.

    Threads have a block at a time, so that none gets far ahead of another. Meanwhile the next block may be made.

    Parameters
    ----------
    sinks
        Where packets go.
    sink_of_flow
        The number of the sink for each flow.

    Yields
    ------
    send
        Sends a block of packets. At the end, all have been sent; the first error in a thread is raised.
    """
    if len(sinks) == 1:
        yield functools.partial(_give, sinks[0])
        return
    running: list[concurrent.futures.Future[None]] = []

    def finish() -> None:
        concurrent.futures.wait(running)  # nothing is sent any more when there is an error
        for part in running:
            part.result()
        running.clear()

    def send(packets: Packets, due: np.ndarray | None, clock: Clock) -> None:
        numbers = sink_of_flow[packets.places["flow"]]
        finish()
        if due is not None:
            clock.wait_until(due[0])  # here an interrupt ends it
        for number, sink in enumerate(sinks):
            mine = numbers == number
            if mine.any():
                running.append(pool.submit(_give, sink, packets[mine], None if due is None else due[mine], clock))

    with concurrent.futures.ThreadPoolExecutor(len(sinks), "speadrx-send") as pool:
        yield send
        finish()


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
    """Sends packets over UDP, unicast or multicast, each in one datagram.

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
    segment
        Whether packets of one size may be handed over as one message, where the kernel can cut that (``UDP_SEGMENT``).
        What counts, drops or copies packets before they are cut, as on a virtual network, then takes them for one.
    burst_bytes
        Packets that are paced are sent at most so many bytes at a time, or one by one if they have more.

    Raises
    ------
    ValueError
        If an argument is wrong. The message names it and its value.
    """

    def __init__(
        self,
        endpoints: Sequence[tuple[str, int]],
        *,
        interface: str | None = None,
        ttl: int = 1,
        segment: bool = True,
        burst_bytes: int = BURST_BYTES,
    ) -> None:
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
        self._addresses = [_raw_address(family, address) for address in self._endpoints]
        self._segment, self._burst_bytes = segment, burst_bytes
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

    def send_block(self, packets: Packets, due: np.ndarray | None, clock: Clock) -> None:
        """Send packets, each when it is due."""
        for begin, end in _bursts(packets.sizes, due, self._burst_bytes):
            if due is not None:
                clock.wait_until(due[begin])
            memory = packets[begin:end].memory
            error, self._segment = _core.send_packets(self._socket.fileno(), self._addresses, memory, self._segment)
            if error:
                raise OSError(error, os.strerror(error))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _raw_address(family: int, address: tuple[Any, ...]) -> bytes:
    """Make an address as the kernel has it."""
    host, port, *more = address
    packed = struct.pack("=H", family) + struct.pack(">H", port)
    if family == socket.AF_INET:
        return packed + socket.inet_pton(family, host) + bytes(8)
    flow_info, scope = more
    host = host.partition("%")[0]
    return packed + struct.pack(">I", flow_info) + socket.inet_pton(family, host) + struct.pack("=I", scope)


def _bursts(sizes: np.ndarray, due: np.ndarray | None, most: int) -> Iterator[tuple[int, int]]:
    """Begin and end of packets that are sent together."""
    if due is None:
        yield 0, len(sizes)
        return
    ends = np.cumsum(sizes)
    begin = 0
    while begin < len(sizes):
        sent = ends[begin] - sizes[begin]
        full = np.searchsorted(ends, sent + most, side="right")
        later = np.searchsorted(due, due[begin] + BURST_SECONDS)
        end = max(begin + 1, int(min(full, later)))
        yield begin, end
        begin = end


def _ipv4_address(name: str, host: str) -> ipaddress.IPv4Address:
    try:
        return ipaddress.IPv4Address(host)
    except ValueError:
        raise ValueError(f"{name}: {host!r} must be an IPv4 address, since it goes into the headers") from None


def _prefix(source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    """Make what the headers of packets from one address to another have alike: of Ethernet, IP and UDP."""
    source_ip, ip = _ipv4_address("source", source[0]), _ipv4_address("endpoint", destination[0])
    # RFC 1112: the Ethernet address of a group has the low 23 bits of its IP address.
    group = b"\x01\x00\x5e" + (int(ip) & 0x7FFFFF).to_bytes(3, "big")
    mac = group if ip.is_multicast else b"\x02\x00" + ip.packed
    ethernet = mac + b"\x02\x00" + source_ip.packed + b"\x08\x00"
    return ethernet + source_ip.packed + ip.packed + struct.pack(">HH", source[1], destination[1])


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
        self._prefixes = [_prefix(source, _endpoint("endpoint", each)) for each in ([endpoint] if single else endpoint)]
        self._clock = clock
        self._number = 0
        self._path = os.fspath(path)
        self._file = open(path, "wb")  # noqa: SIM115 (closed by close)
        self._status = os.fstat(self._file.fileno())
        # Magic, version 2.4, time zone, accuracy, longest packet, Ethernet.
        self._file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 0x40000, 1))

    def send(self, flow: int, packet: bytes) -> None:
        """Write one packet.

        Raises
        ------
        ValueError
            If the packet does not fit in a UDP datagram, or its time does not fit in the file.
        """
        self.send_block(Packets.whole([(flow, packet)]), None, WallClock())

    def send_block(self, packets: Packets, due: np.ndarray | None, clock: Clock) -> None:
        """Write packets, each with the time when it is due."""
        n = len(packets)
        stamps: Any = np.arange(self._number, self._number + n, dtype=np.uint64)
        if self._clock is not None or due is not None:
            for i in range(n):
                if due is not None:
                    clock.wait_until(due[i])
                if self._clock is not None:
                    microseconds = round(self._clock.now() * 1e6)
                    if microseconds >= 2**32 * 1_000_000:
                        raise ValueError(
                            f"clock: its time, {microseconds / 1e6:g} s, must be less than 2^32 s in a capture file"
                        )
                    stamps[i] = microseconds
        with self._removing():
            self._file.write(_core.frame_packets(self._prefixes, packets.memory, stamps, self._number % 0x10000))
        self._number += n

    def close(self) -> None:
        """Close the file."""
        with self._removing():
            self._file.close()

    @contextlib.contextmanager
    def _removing(self) -> Iterator[None]:
        """Leave no file behind that cannot be written to its end: it would break off within a packet."""
        try:
            yield
        except OSError:
            with contextlib.suppress(OSError):
                own = os.lstat(self._path)
                if stat.S_ISREG(own.st_mode) and os.path.samestat(own, self._status):
                    os.unlink(self._path)
            raise
