"""UDP endpoints as text: ``239.1.2.3+7:7148`` and the like, as MeerKAT's programs write them."""

from __future__ import annotations

import ipaddress
import re

#: Host (IPv6 in brackets), how many addresses follow it, port.
_ENDPOINT = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^\[\]:+]*))(?:\+(?P<more>[0-9]+))?:(?P<port>[0-9]+)")

#: More addresses than a stream could have sources.
_MOST = 4096


def parse_endpoints(text: str) -> list[tuple[str, int]]:
    """Parse endpoints.

    Parameters
    ----------
    text
        ``host:port``; ``address+n:port`` stands for an address and the n that follow it (the notation of MeerKAT's
        programs); ``[address]:port`` is for IPv6; ``:port`` is every interface. Several are separated by commas.

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
        raise ValueError(f"endpoint: {part!r} is none: wanted host:port, address+n:port or [IPv6 address]:port")
    port = int(match["port"])
    if not 1 <= port <= 65535:
        raise ValueError(f"endpoint: {part!r} has the port {port}: wanted 1 to 65535")
    host = match["v6"] or match["host"] or "0.0.0.0"
    if match["more"] is None and match["v6"] is None:
        return [(host, port)]
    try:
        # Of an IPv6 address of narrow scope, the interface may be a part.
        first = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"endpoint: {part!r}: {host!r} is not an IP address") from None
    more = int(match["more"] or 0)
    if more >= _MOST:
        raise ValueError(f"endpoint: {part!r} stands for {more + 1} addresses: wanted at most {_MOST}")
    if more and int(first) + more >= 2**first.max_prefixlen:
        raise ValueError(f"endpoint: {part!r}: there are not so many addresses after {host}")
    _, percent, scope = host.partition("%")  # which a sum of addresses loses
    return [(f"{first + i}{percent}{scope}" if i else host, port) for i in range(more + 1)]
