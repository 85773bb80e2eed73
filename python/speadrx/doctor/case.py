"""A `Case`: what to receive, and how, with what was `Heard` while listening."""

from __future__ import annotations

import errno
import functools
import itertools
import shlex
import socket
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from typing import Any

from speadrx.layout.base import DeclarativeLayout
from speadrx.receive.endpoints import Endpoint, format_endpoint, look_up
from speadrx.receive.settings import DEFAULT_BUFFER

from .system import Link, read_links, route_to


@dataclass(frozen=True)
class Heard:
    """What came while `listen` listened. Endpoints are texts like ``239.1.2.3:7148``, interfaces are names."""

    #: How long it listened, in seconds. This is less than asked for if it was stopped early.
    seconds: float
    #: Packets that came out of a socket, by endpoint and sender.
    came: dict[tuple[str, str], int]
    #: Packets that came to an interface, by endpoint, sender and interface; None if we may not look there.
    seen: dict[tuple[str, str, str], int] | None
    #: Error numbers of the endpoints that cannot be received.
    errors: dict[str, int]
    #: For multicast endpoints that did not come: the interface on which they do come, if they are joined there.
    elsewhere: dict[str, str]
    #: The kernel's counters before listening, and after it.
    before: dict[str, int]
    after: dict[str, int]
    #: Packets dropped on our own sockets, because this program is not a fast receiver.
    own_drops: int

    def rise(self, counter: str) -> int:
        """How much a counter rose while listening, without the drops on our own sockets."""
        rise = self.after.get(counter, 0) - self.before.get(counter, 0)
        return max(0, rise - self.own_drops) if counter == "Udp.RcvbufErrors" else rise

    def arrives(self, endpoint: str) -> bool:
        """Whether anything came out of the endpoint's socket."""
        return any(name == endpoint for name, _ in self.came)

    def interfaces(self, endpoint: str) -> dict[str, int]:
        """Packets of an endpoint that came to each interface."""
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
    """What to receive, and how. Everything is optional.

    Parameters
    ----------
    endpoints
        (host, port) pairs. A host may have an interface in front, as in ``eth1/239.1.2.3``.
    interface
        Address or name of the interface that the receiver uses for endpoints that name none.
    senders
        Addresses of senders.
    buffer
        Bytes of socket buffer that the receiver asks for, shared by the endpoints.
    packet_size
        Bytes of the largest UDP payload.
    layout
        Layout of the heaps.
    affinity
        Processors for the receiver's threads.
    heard
        What `listen` heard.
    ibv
        Whether it receives through ibverbs.
    """

    endpoints: tuple[tuple[str, int], ...] = ()
    interface: str | None = None
    senders: tuple[str, ...] = ()
    buffer: int = DEFAULT_BUFFER
    packet_size: int | None = None
    layout: DeclarativeLayout | None = None
    affinity: tuple[int, ...] = ()
    heard: Heard | None = None
    ibv: bool = False

    @functools.cached_property
    def resolved(self) -> tuple[Endpoint, ...]:
        """The endpoints with their hosts looked up, without an interface that they do not name.

        Raises
        ------
        ValueError
            If an endpoint is invalid, or its host is unknown.
        """
        return tuple(look_up(endpoint) for endpoint in self.endpoints)

    @functools.cached_property
    def links(self) -> dict[str, Link]:
        """All interfaces, by name."""
        return read_links()

    @functools.cached_property
    def _routes(self) -> dict[str, dict[str, Any] | None]:
        return {}

    def route(self, address: str) -> dict[str, Any] | None:
        """Ask the kernel for the route to an address (only once); None if there is none."""
        if address not in self._routes:
            self._routes[address] = route_to(address)
        return self._routes[address]

    def way_to(self, address: str) -> str:
        """Name the interface that packets to an address leave by; "" if there is no route."""
        return str((self.route(address) or {}).get("dev", ""))

    @property
    def share(self) -> int:
        """Bytes of socket buffer that each endpoint asks for."""
        return -(-self.buffer // max(1, len(self.endpoints)))

    def link(self, interface: str | None) -> Link | None:
        """Find an interface by its name or address; None if there is none."""
        return next((link for link in self.links.values() if interface in (link.name, *link.addresses)), None)

    def interface_of(self, endpoint: Endpoint) -> str | None:
        """The interface that the receiver is told to use for an endpoint; None if the system chooses.

        Only groups and wildcard addresses use that of all endpoints.
        """
        return endpoint.interface or (self.interface if endpoint.multicast or endpoint.wildcard else None)

    def interfaces(self) -> list[str]:
        """The interfaces that are named, for all endpoints or for one."""
        named = [self.interface, *(endpoint.interface for endpoint in self.resolved)]
        return list(dict.fromkeys(name for name in named if name is not None))

    def as_received(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint as the receiver would use it with the interface.

        Raises
        ------
        OSError
            If the interface does not exist.
        """
        interface = self.interface_of(endpoint)
        if interface is None or (endpoint.family == socket.AF_INET6 and not endpoint.multicast):
            return endpoint
        if not _is_ipv4(interface) or endpoint.family == socket.AF_INET6:
            link = self.link(interface)
            if link is None:
                raise OSError(errno.ENODEV, f"there is no interface {interface}")
            interface = link.name if endpoint.family == socket.AF_INET6 else link.ipv4 or "0.0.0.0"
        address = interface if endpoint.wildcard else endpoint.address
        return replace(endpoint, address=address, interface=interface, shared=len(self.alike(endpoint)) > 1)

    def alike(self, endpoint: Endpoint) -> list[Endpoint]:
        """The endpoints with the same address and port: itself, and those at other interfaces."""
        wanted = endpoint.address, endpoint.port
        return [one for one in self.resolved if (one.address, one.port) == wanted]

    def inlet(self, endpoint: Endpoint) -> Link | None:
        """Find the interface at which an endpoint's packets must come in; None if any will do, or none is known."""
        if (interface := self.interface_of(endpoint)) is not None:
            return self.link(interface)
        if endpoint.multicast:
            return self.links.get(self.way_to(endpoint.address))
        return next((link for link in self.links.values() if endpoint.address in link.addresses), None)

    def inlets(self) -> dict[str, Link]:
        """All interfaces at which packets must come in, by name."""
        links = [self.inlet(endpoint) for endpoint in self.resolved]
        if not self.endpoints:
            links.append(self.link(self.interface))
        return {link.name: link for link in links if link is not None}

    def routes_in(self) -> Iterator[tuple[str, Link]]:
        """Pairs of a sender and the interface at which its packets come in, as far as they are known."""
        inlets = set(self.inlets())
        seen = self.heard.seen or {} if self.heard is not None else {}
        # With a wildcard address, or without a route, only packets that came can tell the interface.
        pairs = {(sender, at) for _, sender, at in seen if at in self.links and (not inlets or at in inlets)}
        known = {sender for sender, _ in pairs}
        pairs |= {(sender, at) for sender in self.senders if sender not in known for at in inlets}
        for sender, interface in sorted(pairs):
            yield sender, self.links[interface]

    def command(self, interface: str, only: Container[str] = ()) -> str:
        """Write the command that checks this case with another interface: for some endpoints only, or for all."""
        if not any(endpoint.own for endpoint in self.resolved):
            endpoints = itertools.starmap(format_endpoint, self.endpoints)
            return shlex.join(["speadrx", "doctor", *endpoints, "--interface", interface])
        at_it = [str(replace(one, own=interface)) if str(one) in only else str(one) for one in self.resolved]
        default = [] if self.interface is None else ["--interface", self.interface]
        return shlex.join(["speadrx", "doctor", *at_it, *default])
