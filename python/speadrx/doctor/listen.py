"""Listen at sockets, as the receiver would, and at interfaces, to find out how far packets get."""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from speadrx.receive.endpoints import Endpoint
from speadrx.receive.sockets import SocketSet, make_socket

from .case import Case, Heard
from .system import Unknown, counters
from .tap import Tap

# Linux has this option, but the socket module does not.
_IP_MULTICAST_ALL = 49

_POLL_SECONDS = 0.1
_BURST = 256  # packets to read from a socket before the next one has its turn
_LAST_SECONDS = 1.0  # to read what the kernel has queued

#: Longest time for which groups are joined on other interfaces, in seconds: a link may be too slow for them.
_SEARCH_SECONDS = 2.0


class _Ears:
    """Sockets, and the packets that came out of them."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        #: Packets, by endpoint, sender and the interface that the socket was added with.
        self.came: Counter[tuple[str, str, str]] = Counter()
        self._selector = stack.enter_context(selectors.DefaultSelector())
        self._readers: dict[socket.socket, Callable[[], object]] = {}

    def add(self, sock: socket.socket, endpoint: str, interface: str = "") -> None:
        def read() -> bool:
            buffer = bytearray(1)
            for _ in range(_BURST):
                try:
                    _, sender = sock.recvfrom_into(buffer, 1, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return False
                self.came[endpoint, sender[0].partition("%")[0], interface] += 1
            return True

        self._readers[sock] = read
        self._selector.register(sock, selectors.EVENT_READ, read)

    def listen(
        self, tap: Tap | None, seconds: float, stop: threading.Event, enough: Callable[[], bool] = lambda: False
    ) -> None:
        for sock in tap.sockets if tap is not None else ():
            assert tap is not None
            self._selector.register(sock, selectors.EVENT_READ, lambda sock=sock: tap.read(sock))
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not stop.is_set() and not enough():
            for key, _ in self._selector.select(min(left, _POLL_SECONDS)):
                key.data()
        # The tap ends first. What it has seen is then either in a socket or lost.
        for sock in tap.sockets if tap is not None else ():
            self._selector.unregister(sock)
            sock.close()
        deadline = time.monotonic() + _LAST_SECONDS
        unread = set(self._readers.values())
        while unread and time.monotonic() < deadline:
            unread = {read for read in unread if read()}


def _tap(case: Case, endpoints: list[Endpoint], stack: contextlib.ExitStack) -> Tap | None:
    try:
        return Tap(endpoints, stack, {str(endpoint): _inlet(case, endpoint) for endpoint in endpoints})
    except OSError:
        return None


def _inlet(case: Case, endpoint: Endpoint) -> str:
    """Name the interface of a group that comes in at several, as far as it is known."""
    with contextlib.suppress(Unknown):
        if len(case.alike(endpoint)) > 1 and (link := case.inlet(endpoint)) is not None:
            return link.name
    return ""


def listen(case: Case, seconds: float, stop: threading.Event | None = None) -> Heard:
    """Bind and join as the receiver would, and count the packets that come.

    If nothing comes to a multicast endpoint, its group is then joined on each of the other interfaces, for at most 2
    seconds. So the checks name another interface only if packets have come in there.

    Parameters
    ----------
    case
        What to listen to.
    seconds
        How long to listen, in seconds.
    stop
        Ends it early when it is set.

    Returns
    -------
    Heard
        What came, by endpoint and sender, and what the kernel counted meanwhile. Endpoints that cannot be bound or
        joined are in its `errors`.

    Raises
    ------
    ValueError
        If an endpoint is invalid, or its host is unknown.
    """
    stop = stop or threading.Event()
    before, start = counters(), time.monotonic()
    errors: dict[str, int] = {}
    sockets = SocketSet()
    with contextlib.ExitStack() as stack:
        stack.callback(sockets.close)
        ears = _Ears(stack)
        for endpoint in case.resolved:
            name = str(endpoint)
            try:
                with contextlib.ExitStack() as opened:
                    sock = make_socket(case.as_received(endpoint), 0, opened)
                    sockets.add(sock, name)
                    opened.pop_all()
            except OSError as exc:
                errors[name] = exc.errno or errno.EIO
            except Unknown:
                errors[name] = errno.ENODEV
            else:
                ears.add(sock, name)
        tap = _tap(case, list(case.resolved), stack)
        ears.listen(tap, seconds, stop)
        if stop.is_set():
            seconds = min(seconds, round(time.monotonic() - start, 1))
        own_drops = sockets.drops()
    after = counters()
    came = {(endpoint, sender): n for (endpoint, sender, _), n in ears.came.items()}
    seen = None if tap is None else dict(tap.seen)
    silent = [e for e in case.resolved if e.multicast and str(e) not in {name for name, _ in came}]
    elsewhere = {} if stop.is_set() else _search(case, silent, seen or {}, min(seconds, _SEARCH_SECONDS), stop)
    return Heard(seconds, came, seen, errors, elsewhere, before, after, own_drops)


def _search(
    case: Case, silent: list[Endpoint], seen: dict[tuple[str, str, str], int], seconds: float, stop: threading.Event
) -> dict[str, str]:
    """Find multicast endpoints that come in at the wrong interface, and that interface."""
    found: dict[str, str] = {}
    try:
        inlets = {str(endpoint): case.inlet(endpoint) for endpoint in silent}
        others = {(str(endpoint), _inlet(case, one)) for endpoint in silent for one in case.alike(endpoint)}
        links = [link for link in case.links.values() if link.usable]
    except Unknown:
        return found
    missing = []
    for endpoint in silent:
        name, inlet = str(endpoint), inlets[str(endpoint)]
        at = {interface for e, _, interface in seen if e == name}
        if inlet is not None and inlet.name in at:
            continue
        if at:
            found[name] = min(at)
        elif endpoint.family == socket.AF_INET:
            missing.append(endpoint)
    if not missing:
        return found
    with contextlib.ExitStack() as stack:
        ears = _Ears(stack)
        for endpoint in missing:
            for link in links:
                if link != inlets[str(endpoint)] and (str(endpoint), link.name) not in others:
                    with contextlib.suppress(OSError):
                        ears.add(_join(endpoint, link.index, stack), str(endpoint), link.name)
        tap = _tap(case, missing, stack)

        def heard() -> dict[str, str]:
            counts: Any = ears.came if tap is None else ears.came | tap.seen
            # An endpoint may have begun to come in at the right interface meanwhile.
            right = {(name, inlet.name) for name, inlet in inlets.items() if inlet is not None}
            return {name: at for name, _, at in counts if (name, at) not in right | others}

        ears.listen(tap, seconds, stop, lambda: len(heard()) == len(missing))
        return found | heard()


def _join(endpoint: Endpoint, index: int, stack: contextlib.ExitStack) -> socket.socket:
    """Make a socket that receives an IPv4 group from one interface only."""
    sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
    sock.bind((endpoint.address, endpoint.port))
    membership = struct.pack("@4s4si", socket.inet_aton(endpoint.address), bytes(4), index)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    return sock
