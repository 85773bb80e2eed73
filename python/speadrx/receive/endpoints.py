"""UDP endpoints: read from text such as ``239.1.2.3+7:7148``, and looked up."""

from __future__ import annotations

import ipaddress
import operator
import re
import socket
from dataclasses import dataclass, replace
from typing import Any

#: Host (IPv6 in brackets), the number of addresses that follow it, port.
_ENDPOINT = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^\[\]:+]*))(?:\+(?P<more>[0-9]+))?:(?P<port>[0-9]+)")

#: More addresses than any stream has sources.
_MOST_ADDRESSES = 4096


def parse_endpoints(text: str) -> list[tuple[str, int]]:
    """Parse endpoints.

    Parameters
    ----------
    text
        ``host:port``. ``address+n:port`` stands for an address and the next n addresses, as in MeerKAT's programs.
        ``[address]:port`` is for IPv6, and ``:port`` is for all interfaces. Commas separate several.

    Returns
    -------
    list of (str, int)
        Host and port of each, in order.

    Raises
    ------
    ValueError
        If the text is anything else. The message has the part that is wrong.

    Examples
    --------
    >>> parse_endpoints("239.1.2.254+2:7148,[ff12::1]:7150")
    [('239.1.2.254', 7148), ('239.1.2.255', 7148), ('239.1.3.0', 7148), ('ff12::1', 7150)]
    """
    return [endpoint for part in text.split(",") for endpoint in _parse(part.strip())]


def format_endpoint(host: str, port: int) -> str:
    """Write an endpoint as `parse_endpoints` reads it: ``host:port``, or ``[address]:port`` for IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parse(part: str) -> list[tuple[str, int]]:
    match = _ENDPOINT.fullmatch(part)
    if match is None:
        raise ValueError(_what_is_wrong(part))
    port = int(match["port"])
    if not 1 <= port <= 65535:
        raise ValueError(f"endpoint: {part!r} has port {port}, but wanted 1 to 65535")
    host = match["v6"] or match["host"] or "0.0.0.0"
    if match["more"] is None and match["v6"] is None:
        return [(host, port)]
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
    return [(f"{first + i}{percent}{scope}" if i else host, port) for i in range(more + 1)]


def _what_is_wrong(part: str) -> str:
    if part.isdecimal():
        return f"endpoint: {part!r} has no host: write host:{part}, or :{part} for all interfaces"
    if part and (":" not in part or part.endswith("]")):
        return f"endpoint: {part!r} has no port: write {part}:7148"
    return f"endpoint: {part!r} is not an endpoint: wanted host:port, address+n:port or [IPv6 address]:port"


@dataclass(frozen=True)
class Endpoint:
    """An endpoint whose host was looked up, and the interface on which to join its group."""

    family: socket.AddressFamily
    address: str
    port: int
    interface: str | None

    def __str__(self) -> str:
        return format_endpoint(self.address, self.port)

    @property
    def multicast(self) -> bool:
        """Whether its address is a multicast group."""
        packed = socket.inet_pton(self.family, self.address)
        return packed[0] == 0xFF if self.family == socket.AF_INET6 else packed[0] >> 4 == 0xE

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


def resolve(endpoint: Any, interface: str | None) -> Endpoint:
    """Check an endpoint and its interface, and look up the host."""
    host, port = _check_pair(endpoint)
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise ValueError(f"src: host {host!r} cannot be resolved: {reason}") from exc
    family, _, _, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    resolved = Endpoint(family, str(address[0]).partition("%")[0], port, interface)
    if interface is None:
        if len(address) == 4 and address[3]:  # an IPv6 address may name its interface, as in ff12::1%eth0
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
        return Endpoint(family, interface, port, interface)
    raise ValueError(f"interface: {interface} differs from the address of the unicast endpoint {resolved}")


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


def _check_v6_interface(endpoint: Endpoint, interface: str) -> None:
    if not endpoint.multicast:
        raise ValueError(f"interface: {interface!r} is not used by the IPv6 unicast endpoint {endpoint}: leave it out")
    try:
        socket.if_nametoindex(interface)
    except OSError:
        raise ValueError(
            f"interface: {interface!r} is not the name of an interface, which the IPv6 group {endpoint} needs"
        ) from None
