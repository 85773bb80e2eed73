"""Find the UDP datagram in a captured frame, behind the headers of its link layer and of IPv4 or IPv6."""

from __future__ import annotations

import functools
import ipaddress
import struct

#: For each link layer (https://www.tcpdump.org/linktypes.html): the bytes of its header, and the offset of the
#: Ethernet type in it. Without an Ethernet type (None), the first bits of the packet tell IPv4 from IPv6.
_LINKS: dict[int, tuple[int, int | None]] = {
    0: (4, None),  # BSD loopback
    1: (14, 12),  # Ethernet
    12: (0, None),  # raw IP, as is 14 and 101
    14: (0, None),
    101: (0, None),
    108: (4, None),  # OpenBSD loopback
    113: (16, 14),  # Linux cooked
    228: (0, None),  # raw IPv4
    229: (0, None),  # raw IPv6
    276: (20, 0),  # Linux cooked, version 2
}
_ETHERNET = 1
_TYPE_IPV4, _TYPE_IPV6 = 0x0800, 0x86DD
#: 802.1Q, 802.1ad (QinQ), and the older type for QinQ.
_TYPES_VLAN = (0x8100, 0x88A8, 0x9100)

#: Headers of IPv4 without options, and of UDP.
_IPV4_UDP = struct.Struct(">BxHxxHxBxx4s4sHHH2x")
_IPV6 = struct.Struct(">4xHBx16s16s")
_UDP = struct.Struct(">HHH2x")
_SHORT = struct.Struct(">H")
_PROTOCOL_UDP = 17
#: IPv6 extension headers that contain their own length: hop-by-hop options, routing, destination options.
_IPV6_EXTENSIONS = (0, 43, 60)
_IPV6_FRAGMENT = 44
#: The bits "more fragments follow" and "offset of this fragment".
_FRAGMENT_BITS = 0x3FFF

_Address = tuple[str, int]


@functools.lru_cache(65536)  # there are few addresses, and writing them as text takes long
def _address(packed: bytes, port: int) -> _Address:
    return str(ipaddress.ip_address(packed)), port


#: Sender, destination, payload and its length; or the reason why there is no datagram.
_Found = tuple[_Address, _Address, bytes, int] | str


def find_datagram(frame: bytes, link: int) -> _Found:
    """Find the datagram in a frame.

    Parameters
    ----------
    frame
        The bytes of the frame.
    link
        Number of its link layer.

    Raises
    ------
    struct.error
        If a header is cut off.
    """
    if link == _ETHERNET and frame[12:15] == b"\x08\x00\x45":  # nearly all frames are like this
        return _ipv4(frame, 14)
    if link not in _LINKS:
        return f"unknown link type {link}"
    offset, type_offset = _LINKS[link]
    if type_offset is None:
        version = frame[offset] >> 4 if offset < len(frame) else 0
        kind = {4: _TYPE_IPV4, 6: _TYPE_IPV6}.get(version, 0)
    else:
        (kind,) = _SHORT.unpack_from(frame, type_offset)
        while kind in _TYPES_VLAN:
            (kind,) = _SHORT.unpack_from(frame, offset + 2)
            offset += 4
    if kind == _TYPE_IPV4:
        return _ipv4(frame, offset)
    return _ipv6(frame, offset) if kind == _TYPE_IPV6 else "not IP"


def _ipv4(frame: bytes, offset: int) -> _Found:
    version, _, fragment, protocol, source, destination, from_port, to_port, length = _IPV4_UDP.unpack_from(
        frame, offset
    )
    if protocol != _PROTOCOL_UDP:
        return "not UDP"
    if fragment & _FRAGMENT_BITS:
        return "IP fragment"
    if version == 0x45:  # no options, as in nearly all headers
        start = offset + _IPV4_UDP.size
    else:
        start = offset + 4 * (version & 15)
        from_port, to_port, length = _UDP.unpack_from(frame, start)
        start += _UDP.size
    if length < _UDP.size:
        return "bad UDP length"
    length -= _UDP.size
    return _address(source, from_port), _address(destination, to_port), frame[start : start + length], length


def _ipv6(frame: bytes, offset: int) -> _Found:
    _, header, source, destination = _IPV6.unpack_from(frame, offset)
    start = offset + _IPV6.size
    while header in _IPV6_EXTENSIONS:
        (after,) = _SHORT.unpack_from(frame, start)
        header = after >> 8
        start += 8 * (1 + (after & 0xFF))
    if header == _IPV6_FRAGMENT:
        return "IP fragment"
    if header != _PROTOCOL_UDP:
        return "not UDP"
    from_port, to_port, length = _UDP.unpack_from(frame, start)
    if length < _UDP.size:
        return "bad UDP length"
    start, length = start + _UDP.size, length - _UDP.size
    return _address(source, from_port), _address(destination, to_port), frame[start : start + length], length
