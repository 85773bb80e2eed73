"""Readers of a stream: UDP sockets, ibverbs, pcap files."""

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from collections.abc import Iterable
from typing import Any

import spead2.recv

from .checks import check_integer
from .descriptors import hide_from_programs
from .endpoints import Endpoint, resolve
from .feed import CaptureSource, feed_from_sockets, mends_packets
from .sockets import SocketSet, add_deferred_reader, make_socket, set_buffer
from .watch import watch_groups

#: The largest UDP payload. spead2's default is smaller, and it drops larger packets.
MAX_UDP_PAYLOAD = 65507

#: The socket sets of the members of our groups. spead2 wraps a member again at each access, and a wrapper takes no
#: attributes. So this is how a member is known to be ours.
member_sockets: weakref.WeakKeyDictionary[Any, SocketSet] = weakref.WeakKeyDictionary()


def add_reader(
    stream: Any,
    *,
    src: str | os.PathLike[str] | Iterable[tuple[str, int]] | Iterable[Endpoint],
    interface: str | None = None,
    ibv: bool = False,
    comp_vector: int = 0,
    buffer: int | None = None,
    buffer_size: int | None = None,
    max_size: int | None = None,
) -> None:
    """Let a stream receive from the network or from a file.

    UDP sockets are made here, not by spead2, so that ``stream.kernel_drops()`` is exact. ``stream.stop()`` closes
    them. If the stream has ``explicit_start``, spead2 makes the sockets, and binds them when the stream starts. Then
    ``stream.start()`` fails if an endpoint is in use.

    Parameters
    ----------
    stream
        A stream, or a member of a group (``group[i]``).
    src
        UDP endpoints, as (host, port) pairs, unicast or multicast; or the path of a capture (pcap or pcapng), for which
        all other settings are ignored. If a host has an IPv4 and an IPv6 address, the IPv4 address is used.
    interface
        Interface on which to join multicast groups: its name, or its IPv4 address. By default, the system chooses. A
        host may have an interface of its own in front, as in ``("eth1/239.1.2.3", 7148)``, which counts instead. An
        IPv4 unicast endpoint must be an address of its interface. An endpoint at 0.0.0.0 is narrowed to it.
    ibv
        Receive through ibverbs, which bypasses the kernel. It needs `interface`.
    comp_vector
        Completion vector (interrupt) for ibverbs; negative to poll.
    buffer
        Bytes of receive buffer, divided evenly among the endpoints. By default, each endpoint has spead2's default.
        With 0, each has the system's default. A warning is logged if the kernel grants less.
    buffer_size
        Another name for `buffer`.
    max_size
        Largest packet to accept, in bytes. The default is any UDP packet, or spead2's default with ibverbs.

    Raises
    ------
    ValueError, TypeError
        If an argument is wrong, or the stream has stopped. The message names the argument and its value.
    OSError
        If a socket cannot be bound or cannot join its group, or a file cannot be opened.
    RuntimeError
        If ibverbs cannot be used, or spead2 cannot make the socket of a stream that has ``explicit_start``.
    """
    if buffer is not None and buffer_size is not None:
        raise TypeError(f"buffer: {buffer} and buffer_size: {buffer_size} are the same setting: give only one")
    buffer = buffer if buffer is not None else buffer_size
    if buffer is not None:
        check_integer("buffer", buffer, 0, 2**63 - 1)
    if max_size is not None:
        check_integer("max_size", max_size, 1, 2**63 - 1)
    check_integer("comp_vector", comp_vector, -(2**31), 2**31 - 1)
    sockets = sockets_of(stream)
    if isinstance(src, (str, os.PathLike)):
        _open_capture(src).parts[0].add_to(stream, sockets)
        return
    endpoints = _endpoints(src, interface, ibv)
    if sockets is not None and mends_packets(sockets.layout):
        for name, wanted in (("ibv", ibv), ("explicit_start", stream.config.explicit_start)):
            if wanted:
                raise ValueError(f"{name}: cannot be combined with a layout whose packets are mended")
    if sockets is not None:
        sockets.expect_packets()
    if ibv:
        _add_ibv(stream, endpoints, comp_vector, buffer, max_size)
        return
    # Rounded up, since 0 would mean the system's default.
    share = stream.DEFAULT_UDP_BUFFER_SIZE if buffer is None else -(-buffer // len(endpoints))
    # Nobody would ask for the drops of a stream that is not ours, and nobody would close its sockets.
    owned = sockets if sockets is not None else SocketSet()
    _add_udp(stream, endpoints, share, max_size or MAX_UDP_PAYLOAD, owned)
    if sockets is None:
        owned.close()


def _open_capture(src: str | os.PathLike[str]) -> CaptureSource:
    """Open a capture, before anything is made for it."""
    if "\0" in os.fspath(src):
        raise ValueError(f"src: {src!r} cannot be read: embedded null character")
    try:
        return CaptureSource(src)
    except OSError as exc:
        hint = " (for UDP, give [(host, port)])" if isinstance(exc, FileNotFoundError) else ""
        raise OSError(exc.errno, f"src: {exc.strerror}{hint}") from None
    except ValueError as exc:
        raise ValueError(f"src: {exc}") from None


def sockets_of(stream: Any) -> SocketSet | None:
    """Check a stream, and return the set of its sockets if it is ours."""
    if isinstance(stream, spead2.recv.ChunkStreamRingGroup):
        raise TypeError("stream: given a group, but wanted one of its members, group[i]")
    if not hasattr(stream, "add_udp_reader"):
        raise TypeError(f"stream: given {type(stream).__name__}, but wanted a stream or a member of a group")
    sockets: SocketSet | None = getattr(stream, "_sockets", member_sockets.get(stream))
    if sockets is not None and sockets.closed:
        raise ValueError("stream: has stopped, so it can receive nothing")
    if getattr(stream, "_drained", False):
        raise ValueError("stream: was drained, so it can receive nothing more: add readers before drain()")
    return sockets


def _endpoints(src: Any, interface: Any, ibv: bool) -> list[Endpoint]:
    """Check UDP endpoints and the interface, and look up the hosts."""
    if isinstance(src, bytes) or not isinstance(src, Iterable):
        raise TypeError(f"src: given {src!r}, but wanted (host, port) pairs, or the path of a pcap file as a str")
    endpoints = resolve(src, interface)
    if not endpoints:
        raise ValueError("src: is empty: wanted at least one (host, port) pair, or the path of a pcap file")
    for endpoint in endpoints:
        if ibv and endpoint.family != socket.AF_INET:
            raise ValueError(f"src: {endpoint} is not an IPv4 endpoint, and ibv can receive on nothing else")
        if ibv and endpoint.interface is None:
            raise ValueError(f"interface: None, but ibv needs an interface for {endpoint}")
    return endpoints


def _add_udp(stream: Any, endpoints: list[Endpoint], buffer: int, max_size: int, sockets: SocketSet) -> None:
    add = _add_deferred if stream.config.explicit_start else _add_bound
    made = add(stream, endpoints, buffer, max_size, sockets)
    groups = {sock: endpoint for sock, endpoint in made.items() if endpoint.multicast}
    if groups:
        sockets.keep_joined(groups)
        watch_groups(sockets)


def _add_deferred(
    stream: Any, endpoints: list[Endpoint], buffer: int, max_size: int, sockets: SocketSet
) -> dict[socket.socket, Endpoint]:
    """Let spead2 make the sockets: if bound now, they would queue packets before the start."""
    made = {}
    for endpoint in endpoints:
        sock = add_deferred_reader(stream, endpoint, max_size)
        sockets.deferred.append(str(endpoint))
        if sock is not None:
            hide_from_programs([sock])
            set_buffer(sock, buffer)
            sockets.add(sock, str(endpoint))
            made[sock] = endpoint
    return made


def _add_bound(
    stream: Any, endpoints: list[Endpoint], buffer: int, max_size: int, sockets: SocketSet
) -> dict[socket.socket, Endpoint]:
    """Make the sockets, and let the stream read them, or a thread that mends packets."""
    mends = mends_packets(sockets.layout)
    with contextlib.ExitStack() as stack:
        made = {}
        for endpoint in endpoints:
            # No comprehension: if one is interrupted, Python 3.13 leaves the block without closing the stack.
            made[make_socket(endpoint, buffer, stack)] = endpoint
        for sock in () if mends else made:
            stream.add_udp_reader(sock, max_size=max_size)
        hide_from_programs(made)
        for sock, endpoint in made.items():
            sockets.add(sock, str(endpoint))
        stack.pop_all()
    if mends:
        feed_from_sockets(stream, list(made), sockets)
    return made


def _add_ibv(
    stream: Any, endpoints: list[Endpoint], comp_vector: int, buffer: int | None, max_size: int | None
) -> None:
    if not hasattr(spead2.recv, "UdpIbvConfig"):
        raise RuntimeError("ibv: this spead2 was built without ibverbs support; use ibv=False")
    by_interface: dict[str, list[tuple[str, int]]] = {}
    for endpoint in endpoints:
        assert endpoint.interface is not None
        by_interface.setdefault(endpoint.interface, []).append((endpoint.address, endpoint.port))
    share = buffer if buffer is None else -(-buffer // len(by_interface))
    options = {name: value for name, value in (("buffer_size", share), ("max_size", max_size)) if value is not None}
    for interface, pairs in by_interface.items():
        config = spead2.recv.UdpIbvConfig(
            endpoints=pairs, interface_address=interface, comp_vector=comp_vector, **options
        )
        try:
            stream.add_udp_ibv_reader(config)
        except (OSError, RuntimeError, ValueError) as exc:
            raise RuntimeError(
                f"ibv: cannot receive through ibverbs on interface {interface}: {exc} "
                "('speadrx doctor --ibv' says what this machine lacks)"
            ) from exc
