"""Read the state of the system from /proc, /sys and iproute2; what cannot be read is `Unknown`."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

#: Longest time to wait for a program of the system, in seconds.
_PATIENCE = 10.0

#: More processors than Linux supports.
_MOST_CPUS = 1 << 16

#: Of this thread, whose network namespace may differ from that of the process.
NET = "/proc/thread-self/net"


class Unknown(Exception):  # noqa: N818 (it is a result, not an error)
    """Something cannot be known here; the message says why."""


def read(path: str) -> str:
    """Read a file of the system.

    Raises
    ------
    Unknown
        If it cannot be read.
    """
    try:
        return pathlib.Path(path).read_text(errors="replace").strip()
    except OSError as exc:
        raise Unknown(f"{path} cannot be read: {exc.strerror}") from None


def sysctl(name: str) -> int:
    """Read a number that ``sysctl`` would show. As there, a slash stands for a dot within a part of the name.

    Raises
    ------
    Unknown
        If there is no such setting.
    """
    return int(read("/proc/sys/" + name.translate(str.maketrans("./", "/."))))


def raise_to(name: str, value: int) -> tuple[str, ...]:
    """Write the command that raises a setting to a value, if it is lower."""
    try:
        enough = sysctl(name) >= value
    except Unknown:  # it may be known where the command is run
        enough = False
    return () if enough else (f"sysctl -w {name}={value}",)


def run(package: str, *command: str) -> str:
    """Run a program, and return its output.

    Raises
    ------
    Unknown
        If it is not installed (the message names the package), or fails.
    """
    # These directories are not on every user's PATH.
    program = shutil.which(command[0]) or shutil.which(command[0], path="/usr/sbin:/sbin")
    if program is None:
        raise Unknown(f"{command[0]} is not installed (Debian: apt-get install {package})")
    try:
        done = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, errors="replace", check=False, timeout=_PATIENCE
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise Unknown(f"{command[0]} cannot be run: {exc}") from None
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise Unknown(f"{' '.join(command)}: {reason[0]}")
    return done.stdout


@dataclass(frozen=True)
class Link:
    """An interface."""

    name: str
    index: int
    flags: frozenset[str]
    mtu: int
    max_mtu: int  # 0 if there is no limit
    addresses: tuple[str, ...]

    @property
    def ipv4(self) -> str | None:
        """Its first IPv4 address."""
        return next((address for address in self.addresses if ":" not in address), None)

    @property
    def loopback(self) -> bool:
        """Whether it is a loopback interface."""
        return "LOOPBACK" in self.flags

    @property
    def usable(self) -> bool:
        """Whether IPv4 multicast could come in here."""
        return {"UP", "MULTICAST"} <= self.flags and self.ipv4 is not None


def read_links() -> dict[str, Link]:
    """Read all interfaces, by name."""
    links = {}
    for entry in json.loads(run("iproute2", "ip", "-json", "-details", "address", "show")):
        if "ifname" not in entry:  # iproute2 prints empty objects for interfaces that it leaves out
            continue
        links[entry["ifname"]] = Link(
            name=entry["ifname"],
            index=entry["ifindex"],
            flags=frozenset(entry["flags"]),
            mtu=entry["mtu"],
            max_mtu=entry.get("max_mtu", 0),
            addresses=tuple(address["local"] for address in entry["addr_info"] if "local" in address),
        )
    return links


def route_to(address: str) -> dict[str, Any] | None:
    """Ask the kernel for the route to an address; None if there is no route."""
    try:
        found = json.loads(run("iproute2", "ip", "-json", "route", "get", address))
    except Unknown as exc:
        if "RTNETLINK answers:" in str(exc):
            return None
        raise
    return dict(found[0])


def counters() -> dict[str, int]:
    """Read the kernel's counters of packets, by names such as ``Udp.RcvbufErrors``, as far as they can be read."""
    found: dict[str, int] = {}
    for file in ("snmp", "netstat"):
        try:
            lines = read(f"{NET}/{file}").splitlines()
        except Unknown:
            continue
        for names, values in zip(lines[::2], lines[1::2], strict=False):
            protocol, *fields = names.split()
            found |= {protocol[:-1] + "." + n: int(v) for n, v in zip(fields, values.split()[1:], strict=False)}
    try:
        for line in read(f"{NET}/dev").splitlines()[2:]:
            name, _, numbers = line.partition(":")
            found[f"{name.strip()}.rx_errors"], found[f"{name.strip()}.rx_dropped"] = map(int, numbers.split()[2:4])
    except Unknown:
        pass
    try:
        rows = [line.split() for line in read(f"{NET}/softnet_stat").splitlines()]
        found["softnet.dropped"] = sum(int(row[1], 16) for row in rows)
    except Unknown:
        pass
    for row in udp_sockets():
        found[f"socket {row.inode}.drops"] = row.drops
    return found


@dataclass(frozen=True)
class UdpSocket:
    """A UDP socket: a row of /proc/net/udp."""

    address: str  # in hexadecimal digits, as the kernel writes it
    port: int
    inode: int
    drops: int

    @property
    def wildcard(self) -> bool:
        """Whether it receives packets to any address."""
        return not self.address.strip("0")


def udp_sockets() -> list[UdpSocket]:
    """List the UDP sockets of this network namespace, of IPv4 and IPv6."""
    found = []
    for file in ("udp", "udp6"):
        try:
            lines = read(f"{NET}/{file}").splitlines()[1:]
        except Unknown:
            continue
        for row in map(str.split, lines):
            address, _, port = row[1].partition(":")
            found.append(UdpSocket(address, int(port, 16), inode=int(row[9]), drops=int(row[12])))
    return found


def parse_cpus(text: str) -> set[int]:
    """Parse a list of processors in the kernel's format.

    Raises
    ------
    ValueError
        If the text is not such a list.

    Examples
    --------
    >>> sorted(parse_cpus("0,2-4"))
    [0, 2, 3, 4]
    """
    cpus: set[int] = set()
    for part in text.split(",") if text else []:
        first, dash, last = part.partition("-")
        end = int(last if dash else first)
        if end >= _MOST_CPUS:
            raise ValueError(f"there is no processor {end}")
        if end < int(first):
            raise ValueError(f"{part} ends before it begins")
        cpus |= set(range(int(first), end + 1))
    return cpus
