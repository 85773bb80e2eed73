"""UDP on this machine: which kinds of it there are, packets sent by hand, and the sockets of a stream."""

import contextlib
import os
import pathlib
import socket
import sys
import threading
import time
import traceback

import pytest

from handmade import encode, small_heap
from speadrx.receive import watch


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
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited in vain. Threads, innermost calls first:\n{where_threads_are()}")
        time.sleep(0.001)


def where_threads_are(lines=20, calls=4):
    """What every thread of Python is doing, in a few lines, those of speadrx first, and which streams are watched."""
    frames = sys._current_frames()
    threads = sorted(threading.enumerate(), key=lambda thread: not thread.name.startswith("speadrx"))
    said = ["watched: " + ", ".join(map(_watched, list(watch._watch._watched)))]
    for thread in threads:
        frame = frames.pop(thread.ident, None)
        stack = [] if frame is None else traceback.extract_stack(frame)[: -calls - 1 : -1]
        where = " < ".join(f"{pathlib.Path(call.filename).name}:{call.lineno} {call.name}" for call in stack)
        said.append(f"{thread.name}: {where or 'no frame: it has not begun, or is over'}")
    said += [f"thread {ident}, unknown to Python" for ident in frames]
    return "\n".join(said[:lines] + [f"and {len(said) - lines} more"] * (len(said) > lines))


def _watched(one):
    """What is watched, and whether it has stopped."""
    owner = one.owner() if hasattr(one, "owner") else one._sockets()
    return f"{type(owner).__name__}{' (stopped)' * bool(getattr(owner, '_stopped', False))}"


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
