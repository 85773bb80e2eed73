"""A network of the test's own: sender, network and receiver in namespaces, which are gone when nobody uses them."""

import contextlib
import ctypes
import json
import os
import pathlib
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence

import pytest

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

#: Addresses of the two ends of the network, and those of the sender and the receiver.
UPSTREAM, DOWNSTREAM, RECEIVER = "10.1.0.1", "10.2.0.1", "10.2.0.2"
SENDER_PREFIX = "10.1.0."

_PROGRAMS = {"ip": "iproute2", "nft": "nftables"}

#: Rules that need all of the kernel's modules that tests use.
_PROBE = f"""\
add table ip probe
add chain ip probe forward {{ type filter hook forward priority filter; }}
add rule ip probe forward numgen random mod 1000 < 1 counter dup to {RECEIVER} device "downstream"
add rule ip probe forward numgen inc mod 1000 {{ 1, 2 }} counter drop
delete table ip probe
"""


def _call(function: str, *args: int) -> None:
    if getattr(_libc, function)(*args):
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def leave_out(reason: str) -> None:
    """Skip the test, or fail it where nothing may be left out."""
    if os.environ.get("STRICT") == "1" or os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class Namespace:
    """A network namespace without a name: it lives as long as its descriptor and the sockets made in it.

    So nothing is left of it however the process ends.
    """

    def __init__(self) -> None:
        self._descriptor = -1
        errors = []

        def make() -> None:
            try:
                _call("unshare", _CLONE_NEWNET)
                self._descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            except OSError as exc:
                errors.append(exc)

        # In a thread that ends: this one stays where it is.
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]

    @property
    def path(self) -> str:
        """Where other processes find it."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def close(self) -> None:
        os.close(self._descriptor)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Move this thread here for a while: sockets that it makes belong here, wherever they are used then."""
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _call("setns", self._descriptor, _CLONE_NEWNET)
            try:
                yield
            finally:
                _call("setns", outside, _CLONE_NEWNET)
        finally:
            os.close(outside)

    def run(self, *command: str, stdin: str | None = None) -> str:
        """Run a program here, and return what it says."""
        with self.entered():
            done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def read(self, path: str) -> str:
        with self.entered():
            return pathlib.Path(path).read_text()

    def write(self, path: str, text: str) -> None:
        with self.entered():
            pathlib.Path(path).write_text(text)


class Network:
    """A sender and a receiver, each in a namespace, and the network between them in a third, which is a router.

    All neighbours are known from the start, so that no packet ever waits for an address to be resolved.
    """

    def __init__(self, sender_addresses: Sequence[str], stack: contextlib.ExitStack) -> None:
        def namespace() -> Namespace:
            made = Namespace()
            stack.callback(made.close)
            return made

        self.sender, self.network, self.receiver = (namespace() for _ in range(3))
        self._join(self.sender, "out", "upstream", [f"{address}/24" for address in sender_addresses], UPSTREAM)
        self._join(self.receiver, "in", "downstream", [f"{RECEIVER}/24"], DOWNSTREAM)
        self.network.write("/proc/sys/net/ipv4/ip_forward", "1")

    def _join(self, end: Namespace, name: str, peer: str, addresses: Sequence[str], router: str) -> None:
        link = ("type", "veth", "peer", "name", peer, "netns", self.network.path)
        end.run("ip", "link", "add", name, *link)
        for address in addresses:
            end.run("ip", "address", "add", address, "dev", name)
        self.network.run("ip", "address", "add", f"{router}/24", "dev", peer)
        for namespace, device in ((end, name), (self.network, peer)):
            namespace.run("ip", "link", "set", device, "addrgenmode", "none", "up")
        for namespace, device, other, there, neighbours in (
            (end, name, self.network, peer, [router]),
            (self.network, peer, end, name, [address.partition("/")[0] for address in addresses]),
        ):
            mac = json.loads(other.run("ip", "-j", "link", "show", there))[0]["address"]
            for neighbour in neighbours:
                namespace.run("ip", "neighbour", "replace", neighbour, "lladdr", mac, "dev", device, "nud", "permanent")
        end.run("ip", "route", "add", "default", "via", router)

    def rules(self, rules: str) -> None:
        """Load rules for nftables into the network."""
        self.network.run("nft", "-f", "-", stdin=rules)

    def counters(self) -> dict[str, int]:
        """Packets counted by each named counter of the rules."""
        listed = json.loads(self.network.run("nft", "-j", "list", "counters"))["nftables"]
        return {entry["counter"]["name"]: entry["counter"]["packets"] for entry in listed if "counter" in entry}

    def udp_counts(self) -> dict[str, int]:
        """What the receiver's kernel has counted of UDP."""
        names, values = (
            line.split()[1:]
            for line in self.receiver.read("/proc/thread-self/net/snmp").splitlines()
            if "Udp:" in line[:4]
        )
        return dict(zip(names, map(int, values), strict=True))


@contextlib.contextmanager
def network(sender_addresses: Sequence[str]) -> Iterator[Network]:
    """Make a network; without the means to, the test is left out."""
    if os.geteuid():
        leave_out("network namespaces can only be made by root")
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            leave_out(f"there is no {program} (Debian: apt-get install {package})")
    with contextlib.ExitStack() as stack:
        try:
            made = Network(sender_addresses, stack)
            made.rules(_PROBE)
        except OSError as exc:
            leave_out(f"this machine cannot have the network that the test needs: {exc}")
        yield made
