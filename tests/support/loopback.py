"""UDP on this machine: which kinds of it there are, packets sent by hand, and the sockets of a stream."""

import contextlib
import os
import pathlib
import socket
import time

import pytest

from handmade import encode, small_heap


def can(family, group=None):
    """Whether this machine has IPv6, or a route for multicast."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            if group is None:
                sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
            else:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + bytes(4))
    except OSError:
        return False
    return True


def ipv6_multicast_interface():
    """Name of an interface to which this machine can send IPv6 multicast, or None."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 0)
        for index, name in socket.if_nameindex():
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            with contextlib.suppress(OSError):
                sock.sendto(b"", ("ff1e::1", 9))
                return name
    return None


IPV6_INTERFACE = ipv6_multicast_interface()
needs_ipv6_multicast = pytest.mark.skipif(IPV6_INTERFACE is None, reason="needs an interface for IPv6 multicast")
needs_ipv6 = pytest.mark.skipif(not can(socket.AF_INET6), reason="needs IPv6")
needs_multicast_route = pytest.mark.skipif(
    not can(socket.AF_INET, "239.1.2.3"), reason="needs a default interface for multicast"
)


def wait_for(condition, seconds=60):
    """Wait until a condition holds; how long that takes is of no account unless it is for ever."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def wait_until_gone(reference):
    """Wait until an object that nobody keeps is gone: the thread that watches streams may hold it while it looks."""
    wait_for(lambda: reference() is None)


def wait_for_delivery():
    """Wait until sockets have what this thread has sent over loopback before: the kernel keeps the order."""
    with contextlib.ExitStack() as stack:
        to, sock = (stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2))
        to.settimeout(60)
        to.bind(("127.0.0.1", 0))
        sock.sendto(b"last", to.getsockname())
        assert to.recv(8) == b"last"


def packets(n, start=0):
    """Packets of good heaps, all of the same chunk."""
    return [encode(small_heap({0x10: 64 + i % 4 * 16}), start + i, 48)[0] for i in range(n)]


def send(endpoint, packets, interface=None):
    family = socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        if interface is not None and family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(interface))
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 0)
        elif interface is not None:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface))
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
        for packet in packets:
            assert sock.sendto(packet, endpoint) == len(packet)


def received(stream):
    return stream.stats["packets"]


def check_receives(stream, endpoint, interface=None, n=3):
    before = received(stream)
    send(endpoint, packets(n), interface)
    wait_for(lambda: received(stream) - before == n)


def socket_descriptors():
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum(link.startswith("socket:") for link in links)


def own_sockets(stream):
    return list(stream._sockets._endpoints)


def is_free(address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((address, port))
        except OSError:
            return False
    return True


def is_bound(port):
    """Whether any socket has this UDP port.

    Nothing is bound to find out, unlike in `is_free`: a program that is about to open the port must not find it in use.
    """
    for table in ("udp", "udp6"):
        for line in pathlib.Path("/proc/net", table).read_text("ascii").splitlines()[1:]:
            if int(line.split()[1].rpartition(":")[2], 16) == port:
                return True
    return False
