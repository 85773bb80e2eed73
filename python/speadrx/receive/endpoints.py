"""UDP endpoints: read from text such as ``eth1/239.1.2.3+7:7148``, and looked up."""

from __future__ import annotations

import ipaddress
import operator
import re
import socket
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import interfaces

#: The interface, host (IPv6 in brackets), the number of addresses that follow it, port.
_ENDPOINT = re.compile(
    r"(?:(?P<interface>[^/\[\]]+)/)?"
    r"(?:\[(?P<v6>[^\]/]+)\]|(?P<host>[^\[\]:+/]*))(?:\+(?P<more>[0-9]+))?:(?P<port>[0-9]+)"
)

#: More addresses than any stream has sources.
_MOST_ADDRESSES = 4096


def parse_endpoints(text: str) -> list[tuple[str, int]]:
    """Parse endpoints.

    Parameters
    ----------
    text
        ``host:port``. ``address+n:port`` stands for an address and the next n addresses, as in MeerKAT's programs.
        ``[address]:port`` is for IPv6. ``:port`` is for all IPv4 addresses of this machine, and ``[::]:port`` for all
        addresses, IPv6 and IPv4. ``interface/`` before any of them names the interface to receive it from, by its name
        or its address. Commas separate several.

    Returns
    -------
    list of (str, int)
        Host and port of each, in order. The host has the interface in front, if one is named.

    Raises
    ------
    ValueError
        If the text is anything else. The message has the part that is wrong.

    Examples
    --------
    >>> parse_endpoints("239.1.2.254+2:7148,[ff12::1]:7150")
    [('239.1.2.254', 7148), ('239.1.2.255', 7148), ('239.1.3.0', 7148), ('ff12::1', 7150)]
    >>> parse_endpoints("eth1/239.1.2.3+1:7148,10.0.0.1/239.1.2.3:7148")
    [('eth1/239.1.2.3', 7148), ('eth1/239.1.2.4', 7148), ('10.0.0.1/239.1.2.3', 7148)]
    """
    return [endpoint for part in text.split(",") for endpoint in _parse(part.strip())]


def format_endpoint(host: str, port: int) -> str:
    """Write an endpoint as `parse_endpoints` reads it: ``host:port``, or ``[address]:port`` for IPv6."""
    interface, slash, host = host.rpartition("/")
    return f"{interface}{slash}[{host}]:{port}" if ":" in host else f"{interface}{slash}{host}:{port}"


def is_endpoints(text: str) -> bool:
    """Whether a text has the form of endpoints. The name of a file may have it too."""
    return all(_ENDPOINT.fullmatch(part.strip()) for part in text.split(","))


def _parse(part: str) -> list[tuple[str, int]]:
    match = _ENDPOINT.fullmatch(part)
    if match is None:
        raise ValueError(_what_is_wrong(part))
    port = int(match["port"])
    if not 1 <= port <= 65535:
        raise ValueError(f"endpoint: {part!r} has port {port}, but wanted 1 to 65535")
    host = match["v6"] or match["host"] or "0.0.0.0"
    before = "" if match["interface"] is None else f"{match['interface']}/"
    if match["more"] is None and match["v6"] is None:
        return [(before + host, port)]
    try:
        # An IPv6 address of narrow scope may name its interface.
        first = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"endpoint: {part!r}: {host!r} is not an IP address") from None
    more = int(match["more"] or 0)
    if more >= _MOST_ADDRESSES:
        raise ValueError(f"endpoint: {part!r} stands for {more + 1} addresses, but wanted at most {_MOST_ADDRESSES}")
    if more and int(first) + more >= 2**first.max_prefixlen:
        raise ValueError(f"endpoint: {part!r}: fewer than {more} addresses follow {host}")
    _, percent, scope = host.partition("%")  # adding to an address loses its scope
    return [(before + (f"{first + i}{percent}{scope}" if i else host), port) for i in range(more + 1)]


def _what_is_wrong(part: str) -> str:
    if part.isdecimal():
        return f"endpoint: {part!r} has no host: write host:{part}, or :{part} for all IPv4 addresses"
    if part and (":" not in part or part.endswith("]")):
        return f"endpoint: {part!r} has no port: write {part}:7148"
    return (
        f"endpoint: {part!r} is not an endpoint: wanted host:port, address+n:port or [IPv6 address]:port, which may "
        "follow interface/"
    )


@dataclass(frozen=True)
class Endpoint:
    """An endpoint whose host was looked up, and the interface on which to join its group."""

    family: socket.AddressFamily
    address: str
    port: int
    #: For IPv4, the address of the interface; for IPv6, its name.
    interface: str | None
    #: The interface as the endpoint itself names it; None if it does not.
    own: str | None = None
    #: Whether the same group is received from another interface too.
    shared: bool = False

    def __str__(self) -> str:
        return format_endpoint(self.address if self.own is None else f"{self.own}/{self.address}", self.port)

    @property
    def wildcard(self) -> bool:
        """Whether it stands for all addresses of this machine."""
        return self.address in ("0.0.0.0", "::")

    @property
    def multicast(self) -> bool:
        """Whether its address is a multicast group."""
        packed = socket.inet_pton(self.family, self.address)
        return packed[0] == 0xFF if self.family == socket.AF_INET6 else packed[0] >> 4 == 0xE

    @property
    def link_local(self) -> bool:
        """Whether it is an IPv6 address that belongs to one link, so that its interface is part of it."""
        return self.family == socket.AF_INET6 and ipaddress.IPv6Address(self.address).is_link_local

    @property
    def one_link(self) -> bool:
        """Whether it is an IPv6 group of scope 1 or 2, which exists once on each interface (RFC 4291, 2.7)."""
        packed = socket.inet_pton(self.family, self.address)
        return self.family == socket.AF_INET6 and self.multicast and packed[1] & 0xF in (1, 2)

    @property
    def interface_index(self) -> int:
        """Number of its interface, or 0 if it names none."""
        return 0 if self.interface is None else socket.if_nametoindex(self.interface)

    @property
    def bind_address(self) -> tuple[Any, ...]:
        """The address to which a socket is bound."""
        # An IPv6 address of narrow scope belongs to an interface.
        return (self.address, self.port, *((0, self.interface_index) if self.family == socket.AF_INET6 else ()))


def resolve(src: Iterable[Any], interface: str | None) -> list[Endpoint]:
    """Check endpoints and their interfaces, and look up the hosts.

    Parameters
    ----------
    src
        (host, port) pairs. A host may have an interface in front, as in ``eth1/239.1.2.3``. What was resolved already
        is returned as it is.
    interface
        The interface of those that name none themselves: its name or an address of it. If None, the system chooses.

    Raises
    ------
    ValueError, TypeError
        If an endpoint or its interface is wrong, or two endpoints would receive the same packets. The message names
        the argument and its value.
    """
    if interface is not None and not isinstance(interface, str):
        raise TypeError(f"interface: given {interface!r}, but wanted a str")
    given = list(src)
    if all(isinstance(one, Endpoint) for one in given):
        return given
    return _apart([_at_interface(look_up(one), interface) for one in given])


def look_up(endpoint: Any) -> Endpoint:
    """Check an endpoint, and look up the host. The interface stays as the endpoint names it.

    Raises
    ------
    ValueError
        If it is no endpoint, or the host is unknown.
    """
    before, port = _check_pair(endpoint)
    interface, slash, host = before.rpartition("/")
    if slash and not interface:
        raise ValueError(f"src: {before!r} has no interface before the /")
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise ValueError(f"src: host {host!r} cannot be resolved: {reason}") from exc
    family, _, _, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    # An IPv6 address may name its interface, as in ff12::1%eth0.
    scope = socket.if_indextoname(address[3]) if len(address) == 4 and address[3] else ""
    if interface and scope:
        raise ValueError(f"src: {before!r} names two interfaces, {interface!r} and {scope!r}: wanted only one")
    own = interface or scope or None
    return Endpoint(family, str(address[0]).partition("%")[0], port, own, own)


def _at_interface(endpoint: Endpoint, interface: str | None) -> Endpoint:
    """Find the interface of an endpoint: its own, or else that of all."""
    text = endpoint.own or interface
    if text is None:
        return endpoint
    what = "interface: " if endpoint.own is None else f"src: {endpoint}: interface "
    if endpoint.family == socket.AF_INET6:
        if not (endpoint.multicast or endpoint.link_local):
            raise ValueError(f"{what}{text!r} is not used by the IPv6 unicast endpoint {endpoint}: leave it out")
        kind = "group" if endpoint.multicast else "address"
        if (name := interfaces.name_of(text)) is None:
            raise ValueError(
                f"{what}{text!r} is not the name of an interface, which the IPv6 {kind} {endpoint} needs "
                f"({interfaces.known()})"
            )
        return replace(endpoint, interface=name)
    addresses = interfaces.ipv4_of(text)
    if addresses is None:
        raise ValueError(
            f"{what}{text!r} is neither the name nor the IPv4 address of an interface ({interfaces.known()})"
        )
    if not addresses:
        raise ValueError(f"{what}{text!r} has no IPv4 address, which the IPv4 endpoint {endpoint} needs")
    if endpoint.multicast:
        return replace(endpoint, interface=addresses[0])
    if endpoint.wildcard:
        return replace(endpoint, address=addresses[0], interface=addresses[0])
    if endpoint.address not in addresses:
        raise ValueError(f"{what}{text} differs from the address of the unicast endpoint {endpoint}")
    return replace(endpoint, interface=endpoint.address)


def _apart(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """Check that no two endpoints receive the same packets, and mark groups that come from several interfaces."""
    by_address = defaultdict(list)
    for endpoint in endpoints:
        by_address[endpoint.family, endpoint.address, endpoint.port].append(endpoint)
    several = [alike for alike in by_address.values() if len(alike) > 1]
    for alike in several:
        _check_alike(alike)
    for wildcard in endpoints:
        if wildcard.wildcard:
            _check_wildcard(wildcard, endpoints)
    shared = {endpoint for alike in several for endpoint in alike}
    return [replace(one, shared=True) if one in shared else one for one in endpoints] if shared else list(endpoints)


def _check_wildcard(wildcard: Endpoint, endpoints: Sequence[Endpoint]) -> None:
    """Check that no other endpoint has the port of one that is all addresses."""
    for one in endpoints:
        if one is not wildcard and one.port == wildcard.port and one.family <= wildcard.family:
            raise ValueError(
                f"src: {wildcard} and {one} overlap: {wildcard} is all {_meaning(wildcard)} of this machine: leave one "
                "of them out, or give them different ports"
            )


def _meaning(wildcard: Endpoint) -> str:
    return "IPv4 addresses" if wildcard.family == socket.AF_INET else "addresses, IPv6 and IPv4,"


def _check_alike(alike: list[Endpoint]) -> None:
    """Check that endpoints of the same address and port come from different interfaces."""
    seen: dict[str, Endpoint] = {}
    for endpoint in alike:
        if not endpoint.multicast:
            raise ValueError(f"src: {alike[0]} and {alike[1]} are the same endpoint: leave one of them out")
        if endpoint.interface is None:
            raise ValueError(
                f"src: {alike[0]} and {alike[1]} are the same group: leave one of them out, or name the interface of "
                f"each, as in eth0/{format_endpoint(endpoint.address, endpoint.port)}"
            )
        name = interfaces.name_of(endpoint.interface) or endpoint.interface
        if name in seen:
            raise ValueError(
                f"src: {seen[name]} and {endpoint} are the same group on the same interface ({name}): leave one of "
                "them out"
            )
        seen[name] = endpoint


def _check_pair(endpoint: Any) -> tuple[str, int]:
    try:
        host, port = endpoint
    except (TypeError, ValueError):
        raise ValueError(f"src: {endpoint!r} is not an endpoint: wanted (host, port) pairs") from None
    if not isinstance(host, str) or "\0" in host:  # the system would not see what follows the 0
        raise ValueError(f"src: {host!r} is not a host: wanted a name or an address, in (host, port) pairs")
    try:
        number = 0 if isinstance(port, bool) else operator.index(port)
    except TypeError:
        number = 0
    if not 1 <= number <= 65535:
        raise ValueError(f"src: {port!r} is not a port: wanted 1 to 65535")
    return host, number


def deal_out(inputs: list[Any], threads: int) -> list[list[Any]]:
    """Deal out inputs to threads, in order, and as evenly as possible.

    Raises
    ------
    ValueError
        If there are fewer inputs than threads.
    """
    if len(inputs) < threads:
        raise ValueError(f"threads: {threads} have only {len(inputs)} sources to receive from: wanted one each")
    each, more = divmod(len(inputs), threads)
    parts = []
    for i in range(threads):
        n = each + (i < more)
        parts.append(inputs[:n])
        inputs = inputs[n:]
    return parts
