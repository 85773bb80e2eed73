"""Checks of what comes of packets: what arrived, what the kernel dropped, who else has the port."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import pathlib
import sys
from collections.abc import Iterator

from speadrx.readers import _Endpoint

from .finding import Case, Finding, Heard
from .host import LARGE_BACKLOG
from .paths import _listed
from .system import UdpSocket, counters, udp_sockets

#: Counters of losses, and what they count.
_LOSSES = {
    "Udp.RcvbufErrors": "packets dropped because the buffer of a socket was full, here of any program's",
    "Udp.InCsumErrors": "packets with a wrong UDP checksum",
    "Ip.ReasmFails": "fragmented packets that lacked a fragment",
    "TcpExt.IPReversePathFilter": "packets dropped by rp_filter",
    "softnet.dropped": "packets dropped because net.core.netdev_max_backlog was reached",
}


def arrival(case: Case) -> Iterator[Finding]:
    """Whether packets come at all, and how far they get."""
    heard = case.heard
    if heard is None:
        if case.endpoints:
            why = "Listening tells how far packets get: give --listen SECONDS."
            yield Finding("arrival", "unknown", "nobody has listened", why)
        return
    for endpoint in case.resolved:
        yield _how_far(case, heard, str(endpoint))


def _how_far(case: Case, heard: Heard, endpoint: str) -> Finding:
    during = f"in {heard.seconds:g} s"
    at = heard.interfaces(endpoint)
    seen = f"{sum(at.values())} packets at {_listed(sorted(at))}"
    lost = _lost_between(heard, endpoint)
    if heard.arrives(endpoint):
        n = sum(n for (name, _), n in heard.came.items() if name == endpoint)
        if not lost:
            return Finding("arrival", "ok", f"{endpoint}: {n} packets {during}")
        summary = (
            f"{endpoint}: {n} packets {during}, but none of what {_listed(lost)} sends ({sum(lost.values())} packets)"
        )
        return Finding("arrival", "problem", summary, "It comes to the interface, and the kernel drops it there.")
    error = heard.errors.get(endpoint)
    if error == errno.EADDRINUSE:
        return Finding(
            "arrival",
            "ok" if at else "unknown",
            f"{endpoint}: {seen} {during}" if at else f"{endpoint} is in use, so it cannot be listened to",
            "Another process has the port, so what comes to it is known to that process alone.",
        )
    if endpoint in heard.elsewhere:
        summary = f"{endpoint}: nothing {during}; it comes in by {heard.elsewhere[endpoint]}"
        return Finding("arrival", "problem", summary, "The receiver does not join on that interface.")
    if error is not None:
        return Finding(
            "arrival", "problem", f"{endpoint} cannot be received: {os.strerror(error)}", "Nothing is received."
        )
    if at:
        summary = f"{endpoint}: {seen} {during}, but nothing at the socket"
        return Finding("arrival", "problem", summary, "Packets come to the interface, and the kernel drops them there.")
    if heard.seen is None:
        why = "Whether anything comes to the interface only root can see."
        return Finding("arrival", "problem", f"{endpoint}: nothing {during}", why)
    why = "Nothing comes to any interface: nobody sends, the network does not deliver, or packets are too large."
    return Finding("arrival", "problem", f"{endpoint}: nothing {during}", why)


def _lost_between(heard: Heard, endpoint: str) -> dict[str, int]:
    """Count packets of senders that are seen at an interface, of which none came out of the socket."""
    lost: dict[str, int] = {}
    for (name, sender, _), n in (heard.seen or {}).items():
        if name == endpoint and (endpoint, sender) not in heard.came:
            lost[sender] = lost.get(sender, 0) + n
    return lost


def drops(case: Case) -> Iterator[Finding]:
    """What the kernel has dropped never reaches the receiver."""
    heard = case.heard
    now = counters() if heard is None else heard.after
    losses = dict(_LOSSES)
    for name in case.inlets():
        losses[f"{name}.rx_dropped"] = f"packets that {name} dropped, also such as nobody here has asked for"
        losses[f"{name}.rx_errors"] = f"packets damaged on the way to {name}"
    counts = {name: now[name] for name in losses if now.get(name)}
    for name, count in counts.items():
        why = f"These are {losses[name]}."
        rise = 0 if heard is None else heard.rise(name)
        if heard is not None and rise > 0:
            summary = f"{name} rose by {rise} in {heard.seconds:g} s, to {count}"
            # Of whichever socket on this machine they are; the check of the port knows those of the endpoints.
            yield Finding("drops", "warning", summary, why, _mend(name, case))
        else:
            summary = f"{name} is {count} since this machine started" + (", and does not rise now" if heard else "")
            yield Finding("drops", "ok", summary, why)
    if not counts:
        yield Finding("drops", "ok", "the kernel has dropped nothing since this machine started")


def _mend(counter: str, case: Case) -> tuple[str, ...]:
    if counter == "Udp.RcvbufErrors":
        return (f"sysctl -w net.core.rmem_max={case.share}",)
    if counter == "softnet.dropped":
        return (f"sysctl -w net.core.netdev_max_backlog={LARGE_BACKLOG}",)
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
            yield Finding("port", "ok", f"{endpoint} is in use by nobody")


def _user(case: Case, endpoint: _Endpoint, sock: UdpSocket, who: str) -> Finding:
    rise = 0 if case.heard is None else case.heard.rise(f"socket {sock.inode}.drops")
    if case.heard is not None and rise > 0:
        summary = f"{who} lost {rise} packets of {endpoint} in {case.heard.seconds:g} s, as its buffer was full"
        return Finding("port", "problem", summary, "It does not take packets as fast as they come.")
    summary = f"{endpoint} is in use by {who}, which has lost {sock.drops} packets"
    if not endpoint.multicast:
        return Finding("port", "warning", summary, "Unless it is the receiver, no receiver can be started.")
    return Finding("port", "warning" if sock.drops else "ok", summary)


def _same_address(sock: UdpSocket, address: str) -> bool:
    if sock.wildcard or address in ("0.0.0.0", "::"):
        return True
    packed = ipaddress.ip_address(address.partition("%")[0]).packed
    words = [packed[i : i + 4] for i in range(0, len(packed), 4)]
    return sock.address == "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


def _owners() -> dict[int, str]:
    """Name the processes that have sockets, by inode, as far as they may be looked at."""
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
