"""Checks of the way to the socket: interface, route to the groups, membership, reverse path, packet size."""

from __future__ import annotations

import collections
import ipaddress
import shlex
import socket
import struct
from collections.abc import Iterable, Iterator

from speadrx._words import counted, listed
from speadrx.receive.endpoints import Endpoint
from speadrx.receive.readers import MAX_UDP_PAYLOAD

from .case import Case
from .finding import Finding
from .system import NET, Link, raise_to, read, sysctl

#: Bytes of an IP header and a UDP header, by address family.
_OVERHEAD = {socket.AF_INET: 28, socket.AF_INET6: 48}

#: The largest packets that networks for such data usually support (9216 bytes with all headers).
_JUMBO_MTU = 9000
_JUMBO_PAYLOAD = 9172

#: Bytes in a packet for the SPEAD header and its usual items.
_SPEAD_BYTES = 96


def _networks(addresses: Iterable[str]) -> Iterator[ipaddress.IPv4Network]:
    return ipaddress.collapse_addresses(ipaddress.IPv4Network(address) for address in addresses)


def _multicast(case: Case, *families: socket.AddressFamily) -> list[Endpoint]:
    return [e for e in case.resolved if e.multicast and (not families or e.family in families)]


def interface(case: Case) -> Iterator[Finding]:
    """Nothing comes in at an interface that does not exist, is down, or has no link."""
    check = "interface"
    known = listed(f"{link.name} {link.ipv4 or '-'}" for link in case.links.values())
    for name in case.interfaces():
        if case.link(name) is None:
            summary = f"no interface has the name or address {shlex.quote(name)} (there are: {known})"
            likely = _likely_link(case) if _multicast(case) else None
            at_it = [str(endpoint) for endpoint in case.resolved if endpoint.interface == name]
            mend = () if likely is None else (case.command(likely.ipv4 or likely.name, at_it),)
            yield Finding(check, "problem", summary, "The receiver cannot join its groups on it.", mend)
    for endpoint in case.resolved:
        if not endpoint.multicast and not endpoint.wildcard:
            yield from _own_address(case, endpoint, known)
        elif endpoint.one_link and case.interface_of(endpoint) is None:
            summary = f"{endpoint} is a different group on each interface: give an interface (there are: {known})"
            likely = _likely_link(case)
            mend = () if likely is None else (case.command(likely.name),)
            yield Finding(check, "problem", summary, "The receiver cannot bind the group without one.", mend)
    for link in case.inlets().values():
        yield from _link_state(case, link)
    yield from _elsewhere(case)


def _own_address(case: Case, endpoint: Endpoint, known: str) -> Iterator[Finding]:
    """Check that a unicast endpoint belongs to this machine, and to the interface if one is given."""
    local = (case.route(endpoint.address) or {}).get("type") == "local"  # such as all of 127.0.0.0/8
    down = [link for link in case.links.values() if link.loopback and "UP" not in link.flags]
    if ipaddress.ip_address(endpoint.address).is_loopback and down:
        why = f"It has no address then, so the receiver cannot get packets at {endpoint}."
        for link in down:
            summary = f"{link.name}, the loopback interface, is down"
            yield Finding("interface", "problem", summary, why, (f"ip link set dev {link.name} up",))
    elif not local and case.inlet(endpoint) is None:
        summary = f"{endpoint.address} is not an address of this machine (there are: {known})"
        yield Finding("interface", "problem", summary, f"The receiver cannot bind {endpoint}.")
    elif (inlet := case.link(name := endpoint.own or case.interface)) and endpoint.address not in inlet.addresses:
        summary = f"{endpoint} is not an address of the interface {name}"
        yield Finding("interface", "problem", summary, "The receiver refuses this: leave the interface out.")


def _link_state(case: Case, link: Link) -> Iterator[Finding]:
    check = "interface"
    if "UP" not in link.flags:
        why = "Nothing comes in at an interface that is down."
        yield Finding(check, "problem", f"{link.name} is down", why, (f"ip link set dev {link.name} up",))
    elif "LOWER_UP" not in link.flags:
        why = "There is no cable, or its other end is down."
        yield Finding(check, "problem", f"{link.name} has no carrier", why)
    elif _multicast(case) and "MULTICAST" not in link.flags and not link.loopback:
        why = "The kernel does not ask the network for the groups."
        mend = (f"ip link set dev {link.name} multicast on",)
        yield Finding(check, "problem", f"{link.name} has multicast switched off", why, mend)
    elif link.ipv4 is None and _multicast(case, socket.AF_INET):
        yield Finding(check, "problem", f"{link.name} has no IPv4 address", "No IPv4 group can be joined on it.")
    else:
        yield Finding(check, "ok", f"{link.name} is up, {listed(link.addresses)}, MTU {link.mtu}")


def _elsewhere(case: Case) -> Iterator[Finding]:
    """Find groups that come in at another interface than the one that the receiver is told to use."""
    by_link = collections.defaultdict(list)
    elsewhere = {} if case.heard is None else case.heard.elsewhere
    for endpoint in case.resolved:
        wanted = case.interface_of(endpoint)
        if (link := case.link(wanted)) is not None and str(endpoint) in elsewhere:
            by_link[elsewhere[str(endpoint)], f"{wanted} ({link.name})"].append(str(endpoint))
    for (name, wanted), endpoints in by_link.items():
        summary = f"packets to {listed(endpoints)} come in at {name}, not at {wanted}"
        why = "The groups are joined on the wrong interface. Give the receiver the interface of this command:"
        mend = (case.command(case.links[name].ipv4 or name, endpoints),)
        yield Finding("interface", "problem", summary, why, mend)


def _likely_link(case: Case, endpoint: Endpoint | None = None) -> Link | None:
    """Find the interface at which packets should come in: where they do, where the senders are, or the only one."""
    elsewhere = {} if case.heard is None else case.heard.elsewhere
    if str(endpoint) in elsewhere:
        return case.links.get(elsewhere[str(endpoint)])
    if len(found := set(elsewhere.values())) == 1:
        return case.links.get(found.pop())
    usable = [link for link in case.links.values() if link.usable and not link.loopback]
    towards = {case.way_to(sender) for sender in case.senders}
    if len(links := [link for link in usable if link.name in towards]) == 1:
        return links[0]
    return usable[0] if len(usable) == 1 else None


def multicast_route(case: Case) -> Iterator[Finding]:
    """Without an interface, a receiver joins its groups on the interface of the route to them."""
    groups = [group for group in _multicast(case, socket.AF_INET) if case.interface_of(group) is None]
    wrong: dict[tuple[str, str, str], list[str]] = collections.defaultdict(list)
    for endpoint in groups:
        link, likely = case.inlet(endpoint), _likely_link(case, endpoint)
        target = likely.name if likely is not None else ""
        if link is None:
            summary = "there is no route to {}"
            wrong[summary, "The receiver cannot join the group (No such device).", target].append(endpoint.address)
        elif case.heard is not None and str(endpoint) in case.heard.elsewhere:
            target = case.heard.elsewhere[str(endpoint)]
            summary = f"the route to {{}} uses {link.name}, but packets come in at {target}"
            wrong[summary, "The groups are joined on the wrong interface.", target].append(endpoint.address)
        else:
            yield from _joined_well(case, endpoint, link)
    for (summary, why, target), addresses in wrong.items():
        mend = tuple(f"ip route replace {net} dev {target}" for net in _networks(addresses)) if target else ()
        if not target:
            names = listed(link.name for link in case.links.values() if link.usable)
            why += f" Give the receiver an interface (there are: {names or 'none'})."
        yield Finding("multicast_route", "problem", summary.format(listed(addresses)), why, mend)


def _joined_well(case: Case, endpoint: Endpoint, link: Link) -> Iterator[Finding]:
    towards = {case.way_to(sender) for sender in case.senders} - {"", link.name}
    if towards and (case.heard is None or not case.heard.arrives(str(endpoint))):
        summary = f"the route to {endpoint.address} uses {link.name}, but the route to the sender {listed(towards)}"
        why = "The group may be joined on the wrong interface: use --seconds to find out."
        yield Finding("multicast_route", "warning", summary, why)
    else:
        summary = f"{endpoint.address} is joined on {link.name}, as the route to it says"
        yield Finding("multicast_route", "ok", summary)


def membership(case: Case) -> Iterator[Finding]:
    """The network delivers a group only to machines that have joined it."""
    groups = _multicast(case, socket.AF_INET)
    if not groups:
        return
    joined: dict[str, list[str]] = collections.defaultdict(list)
    versions = {}
    name = ""
    for line in read(f"{NET}/igmp").splitlines()[1:]:
        fields = line.split()
        if not line.startswith("\t"):
            name = fields[1]
            versions[name] = fields[-1]
        else:
            joined[socket.inet_ntoa(struct.pack("@I", int(fields[0], 16)))].append(name)
    for endpoint in groups:
        version = versions.get(link.name, "?") if (link := case.inlet(endpoint)) is not None else "?"
        where = listed(joined[endpoint.address]) if endpoint.address in joined else "no interface"
        summary = f"{endpoint.address} is now joined on {where} (IGMP {version})"
        yield Finding("membership", "ok", summary, "A receiver joins when it starts.")


def rp_filter(case: Case) -> Iterator[Finding]:
    """A strict kernel drops packets if its route to their sender uses another interface."""
    everywhere = sysctl("net.ipv4.conf.all.rp_filter")
    wrong: dict[tuple[str, int, str], list[str]] = collections.defaultdict(list)
    good = set()
    for sender, link in case.routes_in():
        mode = max(everywhere, sysctl(_rp_setting(link.name)))
        back = case.way_to(sender)
        local = (case.route(sender) or {}).get("type") == "local"
        # IPv6 has no such filter.
        if mode == 0 or ":" in sender or local or back == link.name or (mode == 2 and back):
            good.add((link.name, mode))
        else:
            wrong[link.name, mode, back].append(sender)
    for (name, mode, back), senders in wrong.items():
        yield _reverse_path(name, mode, back, senders)
    for name, mode in sorted(good - {(name, mode) for name, mode, _ in wrong}):
        yield Finding("rp_filter", "ok", f"{mode} on {name}: it lets the senders' packets in")
    dropped = case.heard.rise("TcpExt.IPReversePathFilter") if case.heard is not None else 0
    for link in case.inlets().values() if not good and not wrong else ():
        mode = max(everywhere, sysctl(_rp_setting(link.name)))
        if mode and dropped:
            summary = f"{mode} on {link.name}: it dropped {counted(dropped, 'packet')} while listening"
            why = "The route to their senders uses another interface."
            yield Finding("rp_filter", "problem", summary, why, raise_to(_rp_setting(link.name), 2))
        else:
            why = "Strict (1) drops packets if the route to their sender uses another interface: check with --sender."
            yield Finding("rp_filter", "ok", f"{mode} on {link.name}", why if mode == 1 else "")


def _rp_setting(name: str) -> str:
    """Name the setting of an interface. The setting for all interfaces counts instead if it is greater."""
    return f"net.ipv4.conf.{name.replace('.', '/')}.rp_filter"


def _reverse_path(name: str, mode: int, back: str, senders: list[str]) -> Finding:
    route = f"the route to it uses {back}" if back else "there is no route to it"
    summary = f"{mode} on {name} drops packets from {listed(senders)}: {route}"
    why = f"The packets come in at {name}, but the kernel would not answer there, so it takes their sender for forged."
    if back:
        return Finding("rp_filter", "problem", summary, why, raise_to(_rp_setting(name), 2))
    mend = tuple(f"ip route replace {net} dev {name}" for net in _networks(senders))
    return Finding("rp_filter", "problem", summary, why, mend)


def mtu(case: Case) -> Iterator[Finding]:
    """The interface drops packets that are larger than its MTU, and no stream can count them."""
    overhead = max((_OVERHEAD[endpoint.family] for endpoint in case.resolved), default=_OVERHEAD[socket.AF_INET])
    for link in case.inlets().values():
        most = min(link.mtu - overhead, MAX_UDP_PAYLOAD)
        if case.packet_size is not None:
            yield _fits(link, case.packet_size, overhead)
        elif (
            case.heard is not None and not any(case.heard.arrives(str(e)) for e in case.resolved) and _drops(case, link)
        ):
            summary = (
                f"{link.name} (MTU {link.mtu}) dropped {counted(_drops(case, link), 'packet')}, perhaps because they "
                f"have more than {most} bytes"
            )
            why = "Nothing else came in, so packets may be too large. Use --packet-bytes to be sure."
            yield Finding("mtu", "warning", summary, why, (_set_mtu(link, _JUMBO_MTU),))
        elif case.layout is not None and most < (size := case.layout.heap_bytes + _SPEAD_BYTES) <= _JUMBO_PAYLOAD:
            summary = (
                f"MTU {link.mtu} of {link.name} is too small for heaps of {case.layout.heap_bytes} bytes in one packet"
            )
            why = "If senders do that, nothing comes in. Use --packet-bytes with the senders' maximum to be sure."
            yield Finding("mtu", "warning", summary, why, (_set_mtu(link, size + overhead),))
        else:
            yield Finding("mtu", "ok", f"MTU {link.mtu} of {link.name} allows {most} bytes of UDP payload")


def _drops(case: Case, link: Link) -> int:
    assert case.heard is not None
    return case.heard.rise(f"{link.name}.rx_errors") + case.heard.rise(f"{link.name}.rx_dropped")


def _set_mtu(link: Link, wanted: int) -> str:
    return f"ip link set dev {link.name} mtu {min(wanted, link.max_mtu or wanted)}"


def _fits(link: Link, packet_size: int, overhead: int) -> Finding:
    wanted = packet_size + overhead
    if wanted <= link.mtu:
        return Finding("mtu", "ok", f"MTU {link.mtu} of {link.name} has room for packets of {packet_size} bytes")
    summary = f"MTU {link.mtu} of {link.name} is too small: {packet_size} bytes of payload need {wanted}"
    if link.max_mtu and wanted > link.max_mtu:
        why = f"It can be at most {link.max_mtu}: make the senders send smaller packets."
        return Finding("mtu", "problem", summary, why)
    why = "The interface drops larger packets, and only it counts them."
    return Finding("mtu", "problem", summary, why, (_set_mtu(link, wanted),))
