"""Checks of packets on their last steps: what arrived, what the kernel dropped, which process has the port."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import pathlib
import sys
from collections.abc import Iterator

from speadrx._words import counted, listed
from speadrx.receive.endpoints import Endpoint

from .case import Case, Heard
from .finding import Finding, Severity
from .host import LARGE_BACKLOG
from .system import UdpSocket, counters, raise_to, udp_sockets

#: Counters of losses, and what they count.
_LOSSES = {
    "Udp.RcvbufErrors": "packets dropped because the socket buffer of any program was full",
    "Udp.InCsumErrors": "packets with a wrong UDP checksum",
    "Ip.ReasmFails": "fragmented packets with a missing fragment",
    "TcpExt.IPReversePathFilter": "packets dropped by rp_filter",
    "softnet.dropped": "packets dropped because net.core.netdev_max_backlog was reached",
}


def arrival(case: Case) -> Iterator[Finding]:
    """Whether packets come at all, and how far they get."""
    heard = case.heard
    if heard is None:
        if case.endpoints:
            why = "Use --seconds to find out how far packets get."
            yield Finding("arrival", "unknown", "nothing was listened to", why)
        return
    alike: dict[tuple[Severity, str, str], list[str]] = {}
    for endpoint in map(str, case.resolved):
        alike.setdefault(_how_far(heard, endpoint), []).append(endpoint)
    for (severity, text, why), endpoints in alike.items():
        yield Finding("arrival", severity, f"{listed(endpoints)}: {text}", why)


def _how_far(heard: Heard, endpoint: str) -> tuple[Severity, str, str]:
    """Say how far packets of an endpoint get: severity, summary, and what it means."""
    during = f"in {heard.seconds:g} s"
    at = heard.interfaces(endpoint)
    seen = f"{counted(sum(at.values()), 'packet')} at {listed(sorted(at))} {during}"
    error = heard.errors.get(endpoint)
    if heard.arrives(endpoint):
        came = counted(sum(n for (name, _), n in heard.came.items() if name == endpoint), "packet")
        if lost := _lost_between(heard, endpoint):
            text = f"{came} {during}, but none of {counted(sum(lost.values()), 'packet')} from {listed(lost)}"
            return "problem", text, "They reach the interface, and then the kernel drops them."
        return "ok", f"{came} {during}", ""
    if error == errno.EADDRINUSE:
        why = "Another process has the port, so only that process knows what comes out of its socket."
        return ("ok", seen, why) if at else ("unknown", "the port is in use, so nothing can listen to it", why)
    if endpoint in heard.elsewhere:
        where = heard.elsewhere[endpoint]
        return "problem", f"nothing {during}; it comes in at {where}", "The group is not joined on that interface."
    if error == errno.EMFILE:
        why = "A receiver needs a file for each endpoint. 'ulimit -n' shows the limit, and raises it."
        return "problem", f"cannot be received ({os.strerror(error)})", why
    if error is not None:
        return "problem", f"cannot be received ({os.strerror(error)})", "The receiver cannot bind or join it either."
    if at:
        return "problem", f"{seen}, but nothing at the socket", "The kernel drops them on the way to the socket."
    if heard.seen is None:
        return "problem", f"nothing {during}", "Run this as root to see whether anything comes to the interface."
    why = "Nothing comes to any interface: nobody sends, the network does not deliver, or packets are too large."
    return "problem", f"nothing {during}", why


def _lost_between(heard: Heard, endpoint: str) -> dict[str, int]:
    """Count packets at the interfaces from senders of which nothing came out of the socket."""
    lost: dict[str, int] = {}
    for (name, sender, _), n in (heard.seen or {}).items():
        if name == endpoint and (endpoint, sender) not in heard.came:
            lost[sender] = lost.get(sender, 0) + n
    return lost


def drops(case: Case) -> Iterator[Finding]:
    """Packets that the kernel drops never reach the receiver."""
    heard = case.heard
    now = counters() if heard is None else heard.after
    losses = dict(_LOSSES)
    for name in case.inlets():
        losses[f"{name}.rx_dropped"] = f"packets that {name} dropped, including packets that nobody here wanted"
        losses[f"{name}.rx_errors"] = f"packets that were damaged on the way to {name}"
    counts = {name: now[name] for name in losses if now.get(name)}
    for name, count in counts.items():
        why = f"These are {losses[name]}."
        rise = 0 if heard is None else heard.rise(name)
        if heard is not None and rise > 0:
            summary = f"{name} rose by {rise} in {heard.seconds:g} s, to {count}"
            # Only a warning: these counters are of all sockets. The check "port" knows those of the endpoints.
            yield Finding("drops", "warning", summary, why, _mend(name, case))
        else:
            summary = f"{name} is {count} since this machine started" + (", and is not rising now" if heard else "")
            yield Finding("drops", "ok", summary, why)
    if not counts:
        yield Finding("drops", "ok", "the kernel has dropped nothing since this machine started")


def _mend(counter: str, case: Case) -> tuple[str, ...]:
    if counter == "Udp.RcvbufErrors":
        return raise_to("net.core.rmem_max", case.share)
    if counter == "softnet.dropped":
        return raise_to("net.core.netdev_max_backlog", LARGE_BACKLOG)
    return ()


def port(case: Case) -> Iterator[Finding]:
    """Two sockets cannot have the same address and port, unless it is multicast."""
    sockets = udp_sockets()
    owners: dict[int, str] | None = None
    for endpoint in case.resolved:
        users = [sock for sock in sockets if sock.port == endpoint.port and _same_address(sock, endpoint.address)]
        for sock in users:
            owners = _owners() if owners is None else owners
            yield _user(case, endpoint, sock, owners.get(sock.inode, "a process that only root can see"))
        if not users:
            yield Finding("port", "ok", f"{endpoint} is not in use")


def _user(case: Case, endpoint: Endpoint, sock: UdpSocket, who: str) -> Finding:
    rise = 0 if case.heard is None else case.heard.rise(f"socket {sock.inode}.drops")
    if case.heard is not None and rise > 0:
        during = f"in {case.heard.seconds:g} s"
        summary = f"{who} lost {counted(rise, 'packet')} of {endpoint} {during}, because its buffer was full"
        return Finding("port", "problem", summary, "It does not read packets as fast as they come.")
    summary = f"{endpoint} is in use by {who}, which has lost {counted(sock.drops, 'packet')}"
    if not endpoint.multicast:
        return Finding("port", "warning", summary, "If that is not the receiver, no receiver can start.")
    return Finding("port", "warning" if sock.drops else "ok", summary)


def _same_address(sock: UdpSocket, address: str) -> bool:
    if sock.wildcard or address in ("0.0.0.0", "::"):
        return True
    packed = ipaddress.ip_address(address).packed
    words = [packed[i : i + 4] for i in range(0, len(packed), 4)]
    return sock.address == "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


def _owners() -> dict[int, str]:
    """Name the processes that have sockets, by inode, as far as we may see them."""
    owners: dict[int, str] = {}
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    target = os.readlink(descriptor)
                    if target.startswith("socket:["):
                        name = (process / "comm").read_text(errors="replace").strip()
                        owners[int(target[8:-1])] = f"{name} (process {process.name})"
    return owners
