"""The network interfaces of this machine, by name or address, and sockets that are bound to one."""

from __future__ import annotations

import array
import fcntl
import ipaddress
import pathlib
import socket
import struct
from collections.abc import Iterator

from speadrx._words import listed

# Linux has it, but Python has no name for it.
_SIOCGIFCONF = 0x8912
#: An address of an interface: its name, and a socket address.
_IFREQ = struct.Struct("16s2xH4s16x")
_MOST_ADDRESSES = 4096


def ipv4_of(text: str) -> list[str] | None:
    """Find the IPv4 addresses of an interface, given by its name; of an address, that address.

    Returns
    -------
    list of str or None
        None if it is neither an IPv4 address nor the name of an interface. The kernel knows whether an address belongs
        to an interface.
    """
    if _is_ipv4(text):
        return [text]
    if not _exists(text):
        return None
    return [address for name, address in _ipv4_addresses() if name == text]


def name_of(text: str) -> str | None:
    """Find the name of an interface by its name or one of its addresses; None if there is none."""
    if _exists(text):
        return text
    try:
        wanted = ipaddress.ip_address(text)
    except ValueError:
        return None
    addresses = _ipv4_addresses() if wanted.version == 4 else _ipv6_addresses()
    return next((name for name, address in addresses if ipaddress.ip_address(address) == wanted), None)


def bind_to_interface(sock: socket.socket, name: str) -> None:
    """Let a socket receive only what comes in at an interface. To do it again needs CAP_NET_RAW."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode(errors="surrogateescape"))


def known() -> str:
    """Say which interfaces there are, for a message."""
    addresses = dict(reversed(list(_ipv4_addresses())))
    names = [name for _, name in socket.if_nameindex()]
    return "there are: " + listed(f"{name} {addresses.get(name, '')}".rstrip() for name in names)


def _is_ipv4(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET, text)
    except OSError:
        return False
    return True


def _exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except (OSError, ValueError):
        return False
    return True


def _ipv4_addresses() -> Iterator[tuple[str, str]]:
    """The IPv4 addresses of this machine, each with the name of its interface."""
    buffer = array.array("B", bytes(_IFREQ.size * _MOST_ADDRESSES))
    address, size = buffer.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFCONF, struct.pack("iP", size, address))
    used, _ = struct.unpack("iP", answer)
    for label, _, packed in _IFREQ.iter_unpack(buffer[:used]):
        # A further address may have a name of its own, such as eth0:1.
        name = bytes(label).partition(b"\0")[0].decode(errors="surrogateescape").partition(":")[0]
        yield name, socket.inet_ntoa(packed)


def _ipv6_addresses() -> Iterator[tuple[str, str]]:
    """The IPv6 addresses of this machine, each with the name of its interface."""
    file = pathlib.Path("/proc/thread-self/net/if_inet6")
    for line in file.read_text("ascii").splitlines() if file.exists() else ():
        packed, *_, name = line.split()
        yield name, str(ipaddress.IPv6Address(bytes.fromhex(packed)))
