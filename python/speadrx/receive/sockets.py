"""UDP sockets: made, bound and joined to their groups, and what the kernel dropped on them."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import struct
import termios
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from speadrx._core import Feed, unused_reasons

from .descriptors import inode_of, own_sockets, same_sockets
from .endpoints import Endpoint, resolve
from .groups import Membership, join
from .interfaces import bind_to_interface

logger = logging.getLogger(__name__)

# Linux has these options, but the socket module has no names for them.
_IP_MULTICAST_ALL = 49
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55

#: The values that SO_MEMINFO gives, and the indices of the three that are used here.
_MEMINFO = struct.Struct("9I")
_INT = struct.Struct("i")
_MEMINFO_QUEUE, _MEMINFO_BUFFER, _MEMINFO_DROPS = 0, 1, 8

#: The least memory that a packet takes in a receive buffer: the kernel's own structures.
_LEAST_MEMORY = 512
#: The packets that spead2 reads at once.
_BATCH_PACKETS = 64

#: The largest receive buffer that Linux ever grants a socket: it counts twice the size, in 31 bits.
MAX_BUFFER = 2**30 - 1

#: Sizes that were warned about: asked for, and granted.
_warned: set[tuple[int, int]] = set()

#: Only one thread at a time looks for the socket that spead2 has made.
_adopt_lock = threading.Lock()


class _Socket(socket.socket):
    """A socket that only its `SocketSet` closes.

    The garbage collector calls finalisers in any order, and the finaliser of a stream reads the kernel's counts once
    more.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _made.add(self)

    def __del__(self) -> None:
        """Leave it open."""


#: All that there are, also those that are in no set yet.
_made: weakref.WeakSet[_Socket] = weakref.WeakSet()


class SocketCounts(NamedTuple):
    """What the kernel says of the sockets of an endpoint."""

    #: Packets dropped because a receive buffer was full, or because their checksum was wrong.
    drops: int = 0
    #: Bytes of the receive buffers that are in use, including the kernel's overhead.
    receive_queue: int = 0
    #: Sizes of the receive buffers, in bytes; 0 once all sockets are closed.
    receive_buffer: int = 0


class SocketSet:
    """The UDP sockets of a stream, kept open to ask the kernel how many packets it dropped on them.

    Parameters
    ----------
    on_network
        What to call when the stream is to receive from a network.
    layout
        The layout of the stream.
    """

    def __init__(self, on_network: Callable[[], None] | None = None, layout: Any = None) -> None:
        self.layout = layout
        #: Threads that take packets to the stream.
        self.feeds: list[Feed] = []
        self._live_feeds: list[Feed] = []
        self._said = False
        self._on_network = on_network
        self._lock = threading.RLock()  # reentrant: a signal handler may interrupt a reader, and read or close too
        self._endpoints: dict[socket.socket, str] = {}
        self._last: dict[socket.socket, int] = {}
        self._drops: dict[str, int] = {}
        self._memberships: list[Membership] = []
        self._inodes: list[int] = []
        self._warned = False
        self.closed = False
        #: Endpoints that spead2 binds only when the stream starts.
        self.deferred: list[str] = []

    def add(self, sock: socket.socket, endpoint: str) -> None:
        """Take over a socket. If the set is closed, close the socket."""
        with self._lock:
            if self.closed:
                sock.close()
            else:
                self._inodes.append(inode_of(sock))  # first, for an interrupt may come at any line
                self._endpoints[sock] = endpoint
                self._last[sock] = 0
                self._drops.setdefault(endpoint, 0)

    def add_feed(self, feed: Feed, *, live: bool) -> None:
        """Take over a thread that takes packets to the stream. If the set is closed, stop it.

        Parameters
        ----------
        feed
            The thread.
        live
            Whether it reads the sockets of this set.
        """
        with self._lock:
            self.feeds.append(feed)
            if live:
                self._live_feeds.append(feed)
            closed = self.closed
        if closed:
            feed.stop()

    def share(self, inodes: Iterable[int]) -> None:
        """Note sockets of others that a forked child must close as well."""
        self._inodes += inodes

    def fed(self) -> int:
        """Packets of the sockets that were given to the stream by such a thread."""
        return sum(feed.written for feed in self._live_feeds)

    def keep_joined(self, groups: Mapping[socket.socket, Endpoint]) -> None:
        """Join groups again if their interface goes away and comes back; see `look`."""
        with self._lock:
            self._memberships += [Membership(sock, group) for sock, group in groups.items() if sock in self._endpoints]

    def look(self) -> None:
        """Look whether all groups are joined still."""
        with self._lock:
            for membership in self._memberships:
                membership.look()

    def expect_packets(self) -> None:
        """Note that the stream is to receive from a network: its heaps come as time passes."""
        if self._on_network is not None:
            self._on_network()

    def drops(self) -> int:
        """Packets dropped so far. After `close`, the number stays as it is."""
        return sum(counts.drops for counts in self.counts().values())

    def counts(self) -> dict[str, SocketCounts]:
        """What the kernel says now, by endpoint. After `close`, only the number of dropped packets remains."""
        with self._lock:
            return self._read()

    def are_read(self) -> bool:
        """Whether all packets that the kernel has received have been read."""
        with self._lock:
            pending = (fcntl.ioctl(sock, termios.FIONREAD, bytes(_INT.size)) for sock in self._endpoints)
            return all(_INT.unpack(size) == (0,) for size in pending)

    def are_open(self) -> bool:
        """Whether nobody else has closed a socket, or has its descriptor now."""
        with self._lock:
            try:
                # What an interrupt has closed is no longer its own.
                return all(inode_of(sock) in self._inodes for sock in self._endpoints if sock.fileno() >= 0)
            except OSError:
                return False

    def unread_batches(self) -> int:
        """At most how many batches a stream reads until it has read all packets that the kernel has now."""
        with self._lock:
            if self.are_read():
                return 0
            queues = [_meminfo(sock)[_MEMINFO_QUEUE] for sock in self._endpoints]
            # A batch has as many packets as there are, but not more than that. The sockets of a stream take turns.
            return len(queues) * max(queue // (_LEAST_MEMORY * _BATCH_PACKETS) + 2 for queue in queues)

    def close(self) -> None:
        """Close the sockets. Otherwise they would keep their ports, since spead2 has duplicates."""
        with self._lock:
            self.closed = True
            try:
                self._read()
            finally:
                for sock in self._endpoints:
                    sock.close()
                self._endpoints.clear()
                self._last.clear()
                self._memberships.clear()
        for feed in self.feeds:
            feed.stop()
        self._say_what_is_unused()

    def _say_what_is_unused(self) -> None:
        if not self._said:
            self._said, words = True, unused_reasons()
            for error in filter(None, (feed.error for feed in self.feeds)):
                logger.warning("the rest cannot be received: %s", error)
            for reason, packets in unused_packets(self.feeds).items():
                logger.info("packets that cannot be used: %d: %s", packets, words[reason])
            for feed in self.feeds:
                for skipped, packets in feed.skipped.items():
                    logger.info("packets of the capture that are not received: %d: %s", packets, skipped)
                if feed.truncated:
                    logger.info("the last packet of the capture is incomplete: it was cut off, or is not whole yet")

    def leave(self) -> list[int]:
        """Close what a forked child has of its parent's sockets, so that it holds no port.

        Returns
        -------
        list of int
            The inodes of all sockets that it ever had: spead2 may have duplicates even of those that were closed.
        """
        self._lock = threading.RLock()  # a thread that is not here may have it
        # Kept, since to stop them, or to let go of them, would end connections that are the parent's as well.
        self._of_parent = self.feeds
        self.feeds, self._live_feeds = [], []
        self.close()
        return self._inodes

    def _read(self) -> dict[str, SocketCounts]:
        queues = dict.fromkeys(self._drops, 0)
        buffers = dict(queues)
        for sock, endpoint in list(self._endpoints.items()):
            try:
                meminfo = _meminfo(sock)
            except OSError as exc:
                if sock in self._endpoints and not self._warned:  # otherwise a signal handler has just closed it
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


def unused_packets(feeds: Iterable[Feed]) -> dict[str, int]:
    """Packets that some threads did not give to their streams, by reason. The threads may be given several times."""
    counts: dict[str, int] = {}
    for feed in {id(feed): feed for feed in feeds}.values():
        for reason, packets in feed.unused.items():
            counts[reason] = counts.get(reason, 0) + packets
    return counts


def shared_counters(feeds: Iterable[Feed]) -> int:
    """Packets of heaps whose counter a heap of another sender had. The threads may be given several times."""
    return sum(feed.shared for feed in {id(feed): feed for feed in feeds}.values())


def leave_sockets(sets: Iterable[SocketSet]) -> None:
    """Close what a forked child has of its parent's sockets, in sets and still on their way into one."""
    inodes = {inode for sockets in sets for inode in sockets.leave()}
    on_the_way = [sock for sock in list(_made) if sock.fileno() >= 0]
    inodes.update(inode_of(sock) for sock in on_the_way)
    for sock in on_the_way:
        sock.close()
    for fd in same_sockets(inodes):
        os.close(fd)


def _meminfo(sock: socket.socket) -> tuple[int, ...]:
    return _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))


@contextlib.contextmanager
def _naming(endpoint: Endpoint) -> Iterator[None]:
    """Make operating system errors name the endpoint, and the interface if that may be the reason."""
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
    """Make a socket and bind it. The stack closes it, from the beginning, so that no interrupt leaves it open."""
    with _naming(endpoint):
        sock = stack.enter_context(_Socket(endpoint.family, socket.SOCK_DGRAM))
        if endpoint.multicast:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # These first: packets may come as soon as the socket is bound.
        set_buffer(sock, buffer)
        keep_to_endpoint(sock, endpoint)
        sock.bind(endpoint.bind_address)
        if endpoint.multicast:
            join(sock, endpoint)
        return sock


def keep_to_endpoint(sock: socket.socket, endpoint: Endpoint) -> None:
    """Let a socket receive what its endpoint stands for, and nothing else. It must not be bound yet."""
    if endpoint.family == socket.AF_INET6 and endpoint.wildcard:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # whatever the system's default is
    elif endpoint.multicast and endpoint.interface is not None:
        if endpoint.family == socket.AF_INET:
            # Otherwise it gets what comes to the group at any interface on which any socket has joined it.
            sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
        elif endpoint.shared:
            # For IPv6, the kernel does not look at which interface a socket has joined its group.
            bind_to_interface(sock, endpoint.interface)


def request_buffer(sock: socket.socket, size: int) -> int:
    """Ask the kernel for a receive buffer of `size` bytes. Return how many it grants."""
    request = min(size, 2**31 - 1)  # the kernel takes no larger number
    try:
        # This needs CAP_NET_ADMIN, and may then exceed the system's limit.
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, request)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, request)
    # The kernel doubles what it grants, to allow for its overhead, and reports the double.
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


def set_buffer(sock: socket.socket, size: int) -> None:
    """Set the receive buffer of a socket. If the kernel grants less, warn, once for each size."""
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


def open_sockets(
    src: Iterable[tuple[str, int]], interface: str | None = None, buffer: int = 0
) -> tuple[dict[socket.socket, tuple[str, int]], SocketSet]:
    """Make the sockets that `add_reader` would make, to be read by something else than a stream.

    Parameters
    ----------
    src, interface
        As for `add_reader`.
    buffer
        Bytes of receive buffer for each socket; with 0, the system's default.

    Returns
    -------
    sockets : dict
        The endpoint of each socket.
    owner : SocketSet
        Counts what the kernel drops on the sockets, and closes them.

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
        for endpoint in resolve(src, interface):
            sock = make_socket(endpoint, buffer, stack)
            owner.add(sock, str(endpoint))
            sockets[sock] = (endpoint.address, endpoint.port)
        stack.pop_all()
    return sockets, owner


def add_deferred_reader(stream: Any, endpoint: Endpoint, max_size: int) -> socket.socket | None:
    """Let spead2 make the socket, which it binds when the stream starts. Return a duplicate of the socket."""
    kwargs: dict[str, Any] = {"port": endpoint.port, "max_size": max_size, "buffer_size": 0}
    if not endpoint.multicast:
        scope = f"%{endpoint.interface}" if endpoint.family == socket.AF_INET6 and endpoint.interface else ""
        kwargs["bind_hostname"] = endpoint.address + scope
    elif endpoint.family == socket.AF_INET6:
        kwargs.update(multicast_group=endpoint.address, interface_index=endpoint.interface_index)
    else:
        kwargs.update(multicast_group=endpoint.address, interface_address=endpoint.interface or "0.0.0.0")
    with _adopt_lock, _naming(endpoint):
        before = set(own_sockets().values())
        stream.add_udp_reader(**kwargs)
        new = [fd for fd, inode in own_sockets().items() if inode not in before]
        candidates = [_Socket(fileno=os.dup(fd)) for fd in new]
    # Normally it is the only one, but other threads may have made sockets too.
    found = [sock for sock in candidates if _is_unbound(sock, endpoint.family)]
    for sock in candidates:
        if [sock] != found:
            sock.close()
    if len(found) == 1:
        with contextlib.ExitStack() as stack:
            stack.enter_context(found[0])
            keep_to_endpoint(found[0], endpoint)
            stack.pop_all()
        return found[0]
    if endpoint.shared:
        raise RuntimeError(f"src: spead2's socket for {endpoint} was not found, so it cannot be kept to its interface")
    logger.warning("kernel drops of %s are not counted: spead2's socket for it was not found", endpoint)
    return None


def _is_unbound(sock: socket.socket, family: socket.AddressFamily) -> bool:
    return sock.family == family and sock.type == socket.SOCK_DGRAM and sock.getsockname()[1] == 0
