"""Readers of a stream: UDP sockets of our own (and what the kernel dropped on them), ibverbs, pcap files."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import operator
import os
import socket
import stat
import struct
import termios
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import spead2.recv

from .endpoints import format_endpoint

logger = logging.getLogger(__name__)

# Linux has these, the socket module does not.
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55

#: Values that SO_MEMINFO gives, and the indices of those that matter here.
_MEMINFO = struct.Struct("9I")
_INT = struct.Struct("i")
_MEMINFO_QUEUE, _MEMINFO_BUFFER, _MEMINFO_DROPS = 0, 1, 8

#: The largest receive buffer that Linux grants a socket, whatever its limits: it counts the double with 31 bits.
MAX_BUFFER = 2**30 - 1

#: The largest UDP payload. spead2's default is less, and it drops packets that are larger.
MAX_UDP_PAYLOAD = 65507

#: The largest packet and the largest pcapng block that libpcap reads.
_MAX_PCAP_PACKET = 262144
_MAX_PCAPNG_BLOCK = 2**24


def check_integer(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """Check an argument that must be an integer, and return it."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: given {value!r}, but wanted an integer") from None
    if least is not None and number < least:
        raise ValueError(f"{name}: {number} must be at least {least}")
    if most is not None and number > most:
        raise ValueError(f"{name}: {number} must be at most {most}")
    return number


class _Socket(socket.socket):
    """A socket that is closed by its `SocketSet` and no sooner.

    The garbage collector calls finalisers in any order, and that of a stream reads the kernel's counts a last time.
    """

    def __del__(self) -> None:
        """Leave it open."""


class SocketCounts(NamedTuple):
    """What the kernel says of the sockets of an endpoint."""

    #: Packets dropped because a receive buffer was full, or because their checksum was wrong.
    drops: int = 0
    #: Bytes of the receive buffers that are in use, the kernel's overhead included.
    receive_queue: int = 0
    #: Sizes of the receive buffers, in bytes; 0 once all sockets are closed.
    receive_buffer: int = 0


class SocketSet:
    """The UDP sockets of a stream, kept open to ask the kernel how many packets it dropped on them."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may interrupt a reader, and read or close too
        self._endpoints: dict[socket.socket, str] = {}
        self._last: dict[socket.socket, int] = {}
        self._drops: dict[str, int] = {}
        self._warned = False
        self.closed = False
        #: Endpoints that spead2 binds only when the stream starts.
        self.deferred: list[str] = []

    def add(self, sock: socket.socket, endpoint: str) -> None:
        """Take over a socket; closes it if the set is closed."""
        with self._lock:
            if self.closed:
                sock.close()
            else:
                self._endpoints[sock] = endpoint
                self._last[sock] = 0
                self._drops.setdefault(endpoint, 0)

    def drops(self) -> int:
        """Packets dropped so far; after `close`, those dropped until then."""
        return sum(counts.drops for counts in self.counts().values())

    def counts(self) -> dict[str, SocketCounts]:
        """What the kernel says now, by endpoint; after `close`, only the packets dropped until then remain."""
        with self._lock:
            return self._read()

    def are_read(self) -> bool:
        """Whether the kernel holds no packet that has not been read."""
        with self._lock:
            pending = (fcntl.ioctl(sock, termios.FIONREAD, bytes(_INT.size)) for sock in self._endpoints)
            return all(_INT.unpack(size) == (0,) for size in pending)

    def close(self) -> None:
        """Close the sockets. Without this they would keep their ports, as spead2 has duplicates."""
        with self._lock:
            self.closed = True
            try:
                self._read()
            finally:
                for sock in self._endpoints:
                    sock.close()
                self._endpoints.clear()
                self._last.clear()

    def _read(self) -> dict[str, SocketCounts]:
        queues = dict.fromkeys(self._drops, 0)
        buffers = dict(queues)
        for sock, endpoint in list(self._endpoints.items()):
            try:
                meminfo = _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
            except OSError as exc:
                if sock in self._endpoints and not self._warned:  # else closed meanwhile, by a signal handler
                    self._warned = True
                    logger.warning("kernel drops of %s cannot be read: %s", endpoint, exc)
                continue
            if sock not in self._endpoints:
                continue
            self._drops[endpoint] += (meminfo[_MEMINFO_DROPS] - self._last[sock]) % 2**32  # the kernel has 32 bits
            self._last[sock] = meminfo[_MEMINFO_DROPS]
            queues[endpoint] += meminfo[_MEMINFO_QUEUE]
            buffers[endpoint] += meminfo[_MEMINFO_BUFFER]
        return {name: SocketCounts(drops, queues[name], buffers[name]) for name, drops in self._drops.items()}


#: The socket sets of the members of our groups. Members are wrapped by spead2 anew at each access and take
#: no attributes, so this is how a member is known to be one of ours.
member_sockets: weakref.WeakKeyDictionary[Any, SocketSet] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Endpoint:
    """A resolved endpoint, and the interface to join its group on."""

    family: socket.AddressFamily
    address: str
    port: int
    interface: str | None

    def __str__(self) -> str:
        return format_endpoint(self.address, self.port)

    @property
    def multicast(self) -> bool:
        """Whether it is a group."""
        packed = socket.inet_pton(self.family, self.address)
        return packed[0] == 0xFF if self.family == socket.AF_INET6 else packed[0] >> 4 == 0xE

    @property
    def one_link(self) -> bool:
        """Whether it is an IPv6 group that each interface has for itself (RFC 4291, 2.7): of scope 1 or 2."""
        packed = socket.inet_pton(self.family, self.address)
        return self.family == socket.AF_INET6 and self.multicast and packed[1] & 0xF in (1, 2)

    @property
    def interface_index(self) -> int:
        """Number of the interface that is named; 0 if none is."""
        return 0 if self.interface is None else socket.if_nametoindex(self.interface)

    @property
    def bind_address(self) -> tuple[Any, ...]:
        """What its socket is bound to."""
        # An IPv6 address of narrow scope belongs to an interface.
        return (self.address, self.port, *((0, self.interface_index) if self.family == socket.AF_INET6 else ()))


def resolve(endpoint: Any, interface: str | None) -> Endpoint:
    """Check an endpoint and its interface, and look the host up."""
    try:
        host, port = endpoint
    except (TypeError, ValueError):
        raise ValueError(f"src: {endpoint!r} is not an endpoint: wanted (host, port) pairs") from None
    if not isinstance(host, str) or "\0" in host:  # the system would not see what follows
        raise ValueError(f"src: {host!r} is not a host: wanted a name or an address, in (host, port) pairs")
    try:
        number = 0 if isinstance(port, bool) else operator.index(port)
    except TypeError:
        number = 0
    if not 1 <= number <= 65535:
        raise ValueError(f"src: {port!r} is not a port: wanted 1 to 65535")
    try:
        found = socket.getaddrinfo(host or None, number, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise ValueError(f"src: host {host!r} cannot be resolved: {reason}") from exc
    family, _, _, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    resolved = Endpoint(family, str(address[0]).partition("%")[0], number, interface)
    if interface is None:
        if len(address) == 4 and address[3]:  # the interface of an IPv6 address, as in ff12::1%eth0
            return replace(resolved, interface=socket.if_indextoname(address[3]))
        return resolved
    if family == socket.AF_INET6:
        _check_v6_interface(resolved, interface)
        return resolved
    try:
        socket.inet_pton(socket.AF_INET, interface)
    except OSError:
        raise ValueError(f"interface: {interface!r} is not the IPv4 address of an interface") from None
    if resolved.multicast or resolved.address == interface:
        return resolved
    if resolved.address == "0.0.0.0":
        return Endpoint(family, interface, number, interface)
    raise ValueError(f"interface: {interface} differs from the address of the unicast endpoint {resolved}")


def _check_v6_interface(endpoint: Endpoint, interface: str) -> None:
    if not endpoint.multicast:
        raise ValueError(f"interface: {interface!r} has no use for the IPv6 unicast endpoint {endpoint}: leave it out")
    try:
        socket.if_nametoindex(interface)
    except OSError:
        raise ValueError(
            f"interface: {interface!r} is not the name of an interface, as the IPv6 group {endpoint} needs"
        ) from None


@contextlib.contextmanager
def _naming(endpoint: Endpoint) -> Iterator[None]:
    """Make operating system errors name the endpoint, and the interface if it may be to blame."""
    try:
        yield
    except (OSError, RuntimeError) as exc:
        where = f"src: cannot receive on {endpoint}"
        if endpoint.interface is not None:
            where += f" with interface {endpoint.interface}"
        elif endpoint.one_link:
            where += " without the name of its interface, which such a group needs"
        if isinstance(exc, OSError):
            raise OSError(exc.errno, f"{where}: {exc.strerror}") from exc
        raise RuntimeError(f"{where}: {exc}") from exc


def make_socket(endpoint: Endpoint, buffer: int, stack: contextlib.ExitStack) -> socket.socket:
    """Make a socket that the stack closes, from the beginning, so that no interrupt leaves it open."""
    with _naming(endpoint):
        sock = stack.enter_context(_Socket(endpoint.family, socket.SOCK_DGRAM))
        if endpoint.multicast:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The buffer first: packets may come from the moment that the socket is bound.
        _set_buffer(sock, buffer)
        sock.bind(endpoint.bind_address)
        if endpoint.multicast:
            group = socket.inet_pton(endpoint.family, endpoint.address)
            if endpoint.family == socket.AF_INET6:
                membership = group + struct.pack("@I", endpoint.interface_index)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
            else:
                membership = group + socket.inet_aton(endpoint.interface or "0.0.0.0")
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        return sock


def request_buffer(sock: socket.socket, size: int) -> int:
    """Ask the kernel for a receive buffer of so many bytes; return how many it grants."""
    request = min(size, 2**31 - 1)  # the kernel takes no more
    try:
        # Needs CAP_NET_ADMIN, and may then exceed the system's limit.
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, request)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, request)
    # The kernel doubles what it grants (to allow for its overhead), and tells the double.
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


_warned: set[tuple[int, int]] = set()


def _set_buffer(sock: socket.socket, size: int) -> None:
    """Set the receive buffer of a socket, and warn (once for each size) if the kernel does not grant it."""
    if not size:
        return
    granted = request_buffer(sock, size)
    if granted < size and (size, granted) not in _warned:
        _warned.add((size, granted))
        advice = f" No socket can have more than {MAX_BUFFER} bytes." if size > MAX_BUFFER else ""
        if granted < (attainable := min(size, MAX_BUFFER)):
            advice += f" Raise the limit net.core.rmem_max with: sysctl -w net.core.rmem_max={attainable}"
        logger.warning(
            "buffer: asked for a socket receive buffer of %d bytes, but the kernel granted %d, so packets may be "
            "lost.%s",
            size,
            granted,
            advice,
        )


#: Only one thread at a time looks for the socket that spead2 has made.
_adopt_lock = threading.Lock()


def _own_sockets() -> dict[int, int]:
    """Descriptors of all sockets of this process, by inode."""
    sockets = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            status = os.fstat(int(name))
            if stat.S_ISSOCK(status.st_mode):
                sockets[status.st_ino] = int(name)
    return sockets


def _is_unbound(sock: socket.socket, family: socket.AddressFamily) -> bool:
    return sock.family == family and sock.type == socket.SOCK_DGRAM and sock.getsockname()[1] == 0


def _add_deferred_reader(stream: Any, endpoint: Endpoint, max_size: int) -> socket.socket | None:
    """Let spead2 make the socket, which it binds when the stream starts, and return a duplicate of it."""
    kwargs: dict[str, Any] = {"port": endpoint.port, "max_size": max_size, "buffer_size": 0}
    if not endpoint.multicast:
        scope = f"%{endpoint.interface}" if endpoint.family == socket.AF_INET6 and endpoint.interface else ""
        kwargs["bind_hostname"] = endpoint.address + scope
    elif endpoint.family == socket.AF_INET6:
        kwargs.update(multicast_group=endpoint.address, interface_index=endpoint.interface_index)
    else:
        kwargs.update(multicast_group=endpoint.address, interface_address=endpoint.interface or "0.0.0.0")
    with _adopt_lock, _naming(endpoint):
        before = _own_sockets()
        stream.add_udp_reader(**kwargs)
        new = [fd for inode, fd in _own_sockets().items() if inode not in before]
        candidates = [_Socket(fileno=os.dup(fd)) for fd in new]
    # Normally it is the only one. Other threads may have made sockets meanwhile.
    found = [sock for sock in candidates if _is_unbound(sock, endpoint.family)]
    for sock in candidates:
        if [sock] != found:
            sock.close()
    if len(found) == 1:
        return found[0]
    logger.warning("kernel drops of %s are not counted: spead2's socket for it was not found", endpoint)
    return None


def _add_udp(stream: Any, endpoints: list[Endpoint], buffer: int, max_size: int, sockets: SocketSet) -> None:
    if stream.config.explicit_start:
        # A socket of ours, bound now, would queue packets before the start.
        for endpoint in endpoints:
            sock = _add_deferred_reader(stream, endpoint, max_size)
            sockets.deferred.append(str(endpoint))
            if sock is not None:
                _set_buffer(sock, buffer)
                sockets.add(sock, str(endpoint))
        return
    with contextlib.ExitStack() as stack:
        made = [make_socket(endpoint, buffer, stack) for endpoint in endpoints]
        for sock in made:
            stream.add_udp_reader(sock, max_size=max_size)
        for sock, endpoint in zip(made, endpoints, strict=True):
            sockets.add(sock, str(endpoint))
        stack.pop_all()


def _add_ibv(
    stream: Any, endpoints: list[Endpoint], interface: str, comp_vector: int, buffer: int | None, max_size: int | None
) -> None:
    if not hasattr(spead2.recv, "UdpIbvConfig"):
        raise RuntimeError("ibv: this spead2 was built without ibverbs support; use ibv=False")
    options = {"buffer_size": buffer, "max_size": max_size}
    config = spead2.recv.UdpIbvConfig(
        endpoints=[(endpoint.address, endpoint.port) for endpoint in endpoints],
        interface_address=interface,
        comp_vector=comp_vector,
        **{name: value for name, value in options.items() if value is not None},
    )
    try:
        stream.add_udp_ibv_reader(config)
    except (OSError, RuntimeError, ValueError) as exc:
        raise RuntimeError(f"ibv: cannot receive through ibverbs on interface {interface}: {exc}") from exc


def _pcap_end(path: str, data: mmap.mmap) -> int:
    """Where the last packet of a pcap or pcapng file ends, by its own word."""
    classic = {b"\xd4\xc3\xb2\xa1": "<", b"\x4d\x3c\xb2\xa1": "<", b"\xa1\xb2\xc3\xd4": ">", b"\xa1\xb2\x3c\x4d": ">"}
    magic = data[:4]
    if magic in classic:
        position, least, most = 24, 0, _MAX_PCAP_PACKET
        header = struct.Struct(classic[magic] + "8xI4x")
        overhead = header.size
    elif magic == b"\x0a\x0d\x0d\x0a":  # pcapng: all blocks are alike, and their lengths include everything
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


def _check_pcap(path: str) -> None:
    """Check a pcap file from end to end, since spead2 tries for ever to read on in a truncated one."""
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
        file = open(path, "rb")  # noqa: SIM115 (closed below; errors of what follows are others)
    except OSError as exc:
        raise OSError(exc.errno, f"src: {path} cannot be read: {exc.strerror}") from None
    with file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = _pcap_end(path, data)
    if end > status.st_size:
        raise ValueError(
            f"src: {path} is truncated: its last packet ends at byte {end}, but the file has {status.st_size}"
        )


def _add_pcap(stream: Any, path: str) -> None:
    if not hasattr(stream, "add_udp_pcap_file_reader"):
        raise RuntimeError(f"src: cannot read {path}: this spead2 was built without pcap support")
    _check_pcap(path)
    try:
        stream.add_udp_pcap_file_reader(path)
    except RuntimeError as exc:
        raise ValueError(f"src: {path} cannot be read: {exc}") from exc


def add_reader(
    stream: Any,
    *,
    src: str | os.PathLike[str] | Iterable[tuple[str, int]],
    interface: str | None = None,
    ibv: bool = False,
    comp_vector: int = 0,
    buffer: int | None = None,
    buffer_size: int | None = None,
    max_size: int | None = None,
) -> None:
    """Let a stream receive from the network or from a file.

    UDP sockets are made here, not by spead2, so that ``stream.kernel_drops()`` is exact; ``stream.stop()``
    closes them. Where the stream has ``explicit_start``, spead2 makes them and binds them when it starts, and
    ``stream.start()`` is what fails if an endpoint is in use.

    Parameters
    ----------
    stream
        A stream, or a member of a group (``group[i]``).
    src
        UDP endpoints, as (host, port) pairs, unicast or multicast; or the path of a pcap file, for which all other
        settings are ignored. A host that has both kinds of address is taken by its IPv4 address.
    interface
        IPv4 address of the interface on which to join multicast groups (for an IPv6 group, the name of the
        interface). By default, the system chooses. If given with a unicast endpoint, it must be that
        endpoint's address; an endpoint at 0.0.0.0 is narrowed down to it.
    ibv
        Receive through ibverbs, which bypasses the kernel; needs `interface`.
    comp_vector
        Completion vector (interrupt) for ibverbs; negative to poll.
    buffer
        Bytes of receive buffer, split evenly among the endpoints. By default, each has spead2's default; with
        0, each has the system's. A warning is logged if the kernel grants less.
    buffer_size
        Another name for `buffer`.
    max_size
        Largest packet to accept, in bytes. By default any UDP packet, and spead2's default with ibverbs.

    Raises
    ------
    ValueError, TypeError
        If an argument is wrong, or the stream has stopped. The message names the argument and its value.
    OSError
        If a socket cannot be bound or cannot join its group, or a file cannot be opened.
    RuntimeError
        If ibverbs cannot be used, or spead2 cannot make the socket where the stream has ``explicit_start``.
    """
    if buffer is not None and buffer_size is not None:
        raise TypeError(f"buffer: {buffer} and buffer_size: {buffer_size} are the same setting: give one of them")
    buffer = buffer if buffer is not None else buffer_size
    if buffer is not None:
        check_integer("buffer", buffer, 0, 2**63 - 1)
    if max_size is not None:
        check_integer("max_size", max_size, 1, 2**63 - 1)
    check_integer("comp_vector", comp_vector, -(2**31), 2**31 - 1)
    if isinstance(stream, spead2.recv.ChunkStreamRingGroup):
        raise TypeError("stream: given a group; add readers to its members, group[i]")
    if not hasattr(stream, "add_udp_reader"):
        raise TypeError(f"stream: given {type(stream).__name__}, but wanted a stream or a member of a group")
    sockets = getattr(stream, "_sockets", member_sockets.get(stream))
    if sockets is not None and sockets.closed:
        raise ValueError("stream: has stopped, so it can receive nothing")
    if isinstance(src, (str, os.PathLike)):
        _add_pcap(stream, os.fspath(src))
        return
    if isinstance(src, bytes) or not isinstance(src, Iterable):  # type: ignore[redundant-expr]
        raise TypeError(f"src: given {src!r}, but wanted (host, port) pairs, or the path of a pcap file as a str")
    if interface is not None and not isinstance(interface, str):
        raise TypeError(f"interface: given {interface!r}, but wanted a str")
    if ibv and interface is None:
        raise ValueError("interface: None, but ibv needs the address of an interface")
    endpoints = [resolve(endpoint, interface) for endpoint in src]
    if not endpoints:
        raise ValueError("src: is empty: wanted at least one (host, port) pair, or the path of a pcap file")
    if ibv:
        assert interface is not None
        for endpoint in endpoints:
            if endpoint.family != socket.AF_INET:
                raise ValueError(f"src: {endpoint} is not an IPv4 endpoint, which is all that ibv can receive on")
        _add_ibv(stream, endpoints, interface, comp_vector, buffer, max_size)
        return
    # Rounded up, since 0 would mean the system's default.
    share = stream.DEFAULT_UDP_BUFFER_SIZE if buffer is None else -(-buffer // len(endpoints))
    # Of streams that are not ours nobody would ask for the drops, nor close the sockets.
    owned = sockets if sockets is not None else SocketSet()
    _add_udp(stream, endpoints, share, max_size or MAX_UDP_PAYLOAD, owned)
    if sockets is None:
        owned.close()


def open_sockets(
    src: Iterable[tuple[str, int]], interface: str | None = None, buffer: int = 0
) -> tuple[dict[socket.socket, tuple[str, int]], SocketSet]:
    """Make the sockets that `add_reader` would make, for others than a stream to read.

    Parameters
    ----------
    src, interface
        As for `add_reader`.
    buffer
        Bytes of receive buffer of each; with 0, the system's default.

    Returns
    -------
    sockets : dict
        The endpoint of each socket.
    owner : SocketSet
        Counts what the kernel drops on them, and closes them.

    Raises
    ------
    ValueError
        If an argument is wrong. The message names the argument and its value.
    OSError
        If a socket cannot be bound or cannot join its group.
    """
    owner = SocketSet()
    sockets: dict[socket.socket, tuple[str, int]] = {}
    with contextlib.ExitStack() as stack:
        for endpoint in [resolve(endpoint, interface) for endpoint in src]:
            sock = make_socket(endpoint, buffer, stack)
            owner.add(sock, str(endpoint))
            sockets[sock] = (endpoint.address, endpoint.port)
        stack.pop_all()
    return sockets, owner
