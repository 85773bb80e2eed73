"""What checks get and what they give: a `Case` to look at, and a `Finding` for each thing found."""

from __future__ import annotations

import errno
import functools
import itertools
import shlex
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from speadrx.layout.base import DeclarativeLayout
from speadrx.receive.endpoints import format_endpoint
from speadrx.receive.readers import Endpoint, resolve
from speadrx.receive.settings import DEFAULT_BUFFER

from .system import Link, read_links, route_to

Severity = Literal["ok", "warning", "problem", "unknown"]


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Parameters
    ----------
    check
        Name of the check.
    severity
        ``"problem"``: packets are lost by it, or will be; ``"warning"``: they may be; ``"unknown"``: the check
        could not be made, and the summary says why.
    summary
        What was found, with its value.
    why
        What it does to reception.
    mend
        Shell commands that mend it, each on its own; most need root. Empty if there is none.
    """

    check: str
    severity: Severity
    summary: str
    why: str = ""
    mend: tuple[str, ...] = ()


@dataclass(frozen=True)
class Heard:
    """What came while `listen` listened; endpoints are texts like ``239.1.2.3:7148``, interfaces are names."""

    #: How long it has listened, in seconds, which is less than it was to if it was stopped.
    seconds: float
    #: Packets at the socket, by endpoint and sender.
    came: dict[tuple[str, str], int]
    #: Packets at an interface, by endpoint, sender and interface; None without the right to look.
    seen: dict[tuple[str, str, str], int] | None
    #: Error numbers of endpoints that could not be listened to.
    errors: dict[str, int]
    #: Interface on which a multicast endpoint comes if it is joined there, where it did not come on its own.
    elsewhere: dict[str, str]
    #: The kernel's counters before and after.
    before: dict[str, int]
    after: dict[str, int]
    #: Packets dropped on our own sockets, as this program is no fast receiver.
    own_drops: int

    def rise(self, counter: str) -> int:
        """How far a counter rose while listening, without what was dropped on our own sockets."""
        rise = self.after.get(counter, 0) - self.before.get(counter, 0)
        return max(0, rise - self.own_drops) if counter == "Udp.RcvbufErrors" else rise

    def arrives(self, endpoint: str) -> bool:
        """Whether anything came out of the endpoint's socket."""
        return any(name == endpoint for name, _ in self.came)

    def interfaces(self, endpoint: str) -> dict[str, int]:
        """Packets of an endpoint seen at each interface."""
        found: dict[str, int] = {}
        for (name, _, interface), n in (self.seen or {}).items():
            if name == endpoint:
                found[interface] = found.get(interface, 0) + n
        return found


def _is_ipv4(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET, text)
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Case:
    """What is to be received, and how; all of it may be left out.

    Parameters
    ----------
    endpoints
        (host, port) pairs.
    interface
        Address or name of the interface that the receiver is given.
    senders
        Addresses of senders.
    buffer
        Bytes of socket buffer that the receiver asks for, split among the endpoints.
    packet_size
        Bytes of the largest UDP payload.
    layout
        Layout of the heaps.
    affinity
        Processors of the receiver's threads.
    heard
        What `listen` heard.
    """

    endpoints: tuple[tuple[str, int], ...] = ()
    interface: str | None = None
    senders: tuple[str, ...] = ()
    buffer: int = DEFAULT_BUFFER
    packet_size: int | None = None
    layout: DeclarativeLayout | None = None
    affinity: tuple[int, ...] = ()
    heard: Heard | None = None

    @functools.cached_property
    def resolved(self) -> tuple[Endpoint, ...]:
        """The endpoints, with hosts looked up; what interface they have is another matter.

        Raises
        ------
        ValueError
            If an endpoint is none, or its host is unknown.
        """
        return tuple(resolve(endpoint, None) for endpoint in self.endpoints)

    @functools.cached_property
    def links(self) -> dict[str, Link]:
        """All interfaces, by name."""
        return read_links()

    @functools.cached_property
    def _routes(self) -> dict[str, dict[str, Any] | None]:
        return {}

    def route(self, address: str) -> dict[str, Any] | None:
        """Ask the kernel, once, for the route to an address; None if there is none."""
        if address not in self._routes:
            self._routes[address] = route_to(address)
        return self._routes[address]

    def way_to(self, address: str) -> str:
        """Name the interface by which packets to an address go out; "" if there is none."""
        return str((self.route(address) or {}).get("dev", ""))

    @property
    def share(self) -> int:
        """Bytes of socket buffer that each endpoint asks for."""
        return -(-self.buffer // max(1, len(self.endpoints)))

    @property
    def link(self) -> Link | None:
        """The interface that the receiver is given; None if it is given none, or there is none like it."""
        return next(
            (link for link in self.links.values() if self.interface in (link.name, *link.addresses)),
            None,
        )

    def as_received(self, endpoint: Endpoint) -> Endpoint:
        """Make of an endpoint what the receiver makes of it with the interface.

        Raises
        ------
        OSError
            If there is no such interface.
        """
        wildcard = endpoint.address == "0.0.0.0"
        if self.interface is None or not (endpoint.multicast or wildcard):
            return endpoint
        interface = self.interface
        if not _is_ipv4(interface) or endpoint.family == socket.AF_INET6:
            link = self.link
            if link is None:
                raise OSError(errno.ENODEV, f"there is no interface {interface}")
            interface = link.name if endpoint.family == socket.AF_INET6 else link.ipv4 or "0.0.0.0"
        address = interface if wildcard else endpoint.address
        return Endpoint(endpoint.family, address, endpoint.port, interface)

    def inlet(self, endpoint: Endpoint) -> Link | None:
        """Find the interface by which an endpoint's packets must come in; None if it is any, or none."""
        if endpoint.interface is not None:  # it is a part of the address
            return self.links.get(endpoint.interface)
        if self.interface is not None and (endpoint.multicast or endpoint.address == "0.0.0.0"):
            return self.link
        if endpoint.multicast:
            return self.links.get(self.way_to(endpoint.address))
        return next((link for link in self.links.values() if endpoint.address in link.addresses), None)

    def inlets(self) -> dict[str, Link]:
        """All interfaces by which packets must come in, by name."""
        links = [self.inlet(endpoint) for endpoint in self.resolved]
        if not self.endpoints:
            links.append(self.link)
        return {link.name: link for link in links if link is not None}

    def routes_in(self) -> Iterator[tuple[str, Link]]:
        """Pairs of a sender and the interface by which its packets come in, as far as these are known."""
        inlets = set(self.inlets())
        seen = self.heard.seen or {} if self.heard is not None else {}
        # With a wildcard, or a route that is missing, the interface is only known by what was seen.
        pairs = {(sender, at) for _, sender, at in seen if at in self.links and (not inlets or at in inlets)}
        known = {sender for sender, _ in pairs}
        pairs |= {(sender, at) for sender in self.senders if sender not in known for at in inlets}
        for sender, interface in sorted(pairs):
            yield sender, self.links[interface]

    def command(self, interface: str) -> str:
        """Write the command that looks at this case with another interface."""
        endpoints = itertools.starmap(format_endpoint, self.endpoints)
        return shlex.join(["speadrx", "doctor", *endpoints, "--interface", interface])
