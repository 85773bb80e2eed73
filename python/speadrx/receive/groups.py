"""Multicast groups, which are joined again when their interface comes back."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import socket
import struct

from .endpoints import Endpoint
from .interfaces import bind_to_interface

logger = logging.getLogger(__name__)

# Linux has these, but Python has no names for them.
_MCAST_UNBLOCK_SOURCE = 44
_SIOCGIFNAME = 0x8910
_SIOCGIFINDEX = 0x8933

#: An interface: its name and number.
_IFREQ = struct.Struct("16si20x")
#: A source of a group: the number of an interface, and addresses of the group and the source.
_GROUP_SOURCE_REQ = struct.Struct("@I4x128s128s")


def join(sock: socket.socket, endpoint: Endpoint, index: int = 0) -> None:
    """Join the group of an endpoint, on the interface with a number, or else on that of the endpoint."""
    _change(sock, endpoint, index, socket.IP_ADD_MEMBERSHIP, socket.IPV6_JOIN_GROUP)


def _change(sock: socket.socket, endpoint: Endpoint, index: int, option: int, option_v6: int) -> None:
    group = socket.inet_pton(endpoint.family, endpoint.address)
    if endpoint.family == socket.AF_INET6:
        index = index or endpoint.interface_index
        sock.setsockopt(socket.IPPROTO_IPV6, option_v6, group + struct.pack("@I", index))
    else:
        interface = socket.inet_aton(endpoint.interface or "0.0.0.0")
        sock.setsockopt(socket.IPPROTO_IP, option, group + interface + struct.pack("@I", index))


class Membership:
    """That a socket has joined a group on an interface, which may go away.

    Then the kernel forgets who has joined groups there, and tells no socket: as when a driver is loaded anew, or a
    virtual interface is made anew. The socket is asked, since the thread that looks may be in another network
    namespace.

    Parameters
    ----------
    sock
        The socket, which has joined the group.
    endpoint
        The group, and the interface that its user has named.
    """

    def __init__(self, sock: socket.socket, endpoint: Endpoint) -> None:
        self._sock = sock
        self._endpoint = endpoint
        self._index = self._find()
        self._name = None if self._index is None else _name_of(sock, self._index)
        self._away = False

    def look(self) -> None:
        """If the interface has gone away, say so, and join the group again once it is back."""
        if self._index is None or self._name is None:
            return  # it is not known which it was
        if not self._away and _name_of(self._sock, self._index) is None:
            self._away = True
            logger.warning(
                "interface %s has gone away, so nothing can come to %s. The group is joined again when it is back",
                self._name,
                self._endpoint,
            )
        if self._away and self._join_again():
            self._away = False
            logger.warning("interface %s is back: %s is joined again", self._name, self._endpoint)

    def _join_again(self) -> bool:
        assert self._name is not None
        assert self._index is not None
        index = _index_of(self._sock, self._name)
        if not index and (self._endpoint.interface is None or self._endpoint.family == socket.AF_INET6):
            return False  # the kernel would choose another interface
        with contextlib.suppress(OSError):  # it remembers the old interface still, and a socket may have few groups
            _change(self._sock, self._endpoint, self._index, socket.IP_DROP_MEMBERSHIP, socket.IPV6_LEAVE_GROUP)
        try:
            if self._endpoint.shared and self._endpoint.family == socket.AF_INET6:
                bind_to_interface(self._sock, self._name)  # it is bound to the old one still
            join(self._sock, self._endpoint, index)
        except OSError:
            return False
        self._index = index or self._find()  # by its address it may be back with another name
        if self._index is not None:
            self._name = _name_of(self._sock, self._index) or self._name
        return True

    def _find(self) -> int | None:
        """Return the number of the interface on which the socket has joined the group."""
        return next((index for index, _ in socket.if_nameindex() if self._is_on(index)), None)

    def _is_on(self, index: int) -> bool:
        # No source is blocked, so none can be unblocked: the error says whether the socket is a member there.
        family = self._endpoint.family
        group = struct.pack("@H", family) + bytes(2 if family == socket.AF_INET else 6)
        group += socket.inet_pton(family, self._endpoint.address)
        source = struct.pack("@H", family) + bytes(126)
        level = socket.IPPROTO_IPV6 if family == socket.AF_INET6 else socket.IPPROTO_IP
        try:
            self._sock.setsockopt(level, _MCAST_UNBLOCK_SOURCE, _GROUP_SOURCE_REQ.pack(index, group, source))
        except OSError as exc:
            return exc.errno == errno.EADDRNOTAVAIL
        return True


def _name_of(sock: socket.socket, index: int) -> str | None:
    """Return the name of the interface with a number, as a socket sees it; None if there is none."""
    try:
        name, _ = _IFREQ.unpack(fcntl.ioctl(sock, _SIOCGIFNAME, _IFREQ.pack(b"", index)))
    except OSError:
        return None
    return bytes(name).rstrip(b"\0").decode(errors="surrogateescape")


def _index_of(sock: socket.socket, name: str) -> int:
    """Return the number of the interface with a name, as a socket sees it; 0 if there is none."""
    try:
        _, index = _IFREQ.unpack(
            fcntl.ioctl(sock, _SIOCGIFINDEX, _IFREQ.pack(name.encode(errors="surrogateescape"), 0))
        )
    except OSError:
        return 0
    return int(index)
