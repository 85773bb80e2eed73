"""Ports and multicast groups that this process alone has, whatever else runs its tests on this machine."""

import itertools
import pathlib
import socket

_PORTS_EACH = 100


def _shares() -> list[list[int]]:
    """Shares of the ports that the kernel gives only to programs that ask for them by number."""
    first, last = map(int, pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split())
    numbers = [*range(10000, first), *range(last + 1, 2**16)]
    if len(numbers) < 20 * _PORTS_EACH:
        numbers = list(range(10000, 2**16))
    return [numbers[i : i + _PORTS_EACH] for i in range(0, len(numbers), _PORTS_EACH)]


def _claim(n: int) -> int:
    """Return the number of a share that no other process has.

    The name of a socket is the lock: one process can have it, and loses it when it ends, however it ends. It is no
    file, and there is one of it for each network of this machine, like the ports.
    """
    for i in range(n):
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(f"\0tests of speadrx {i}")
            lock.detach()  # open to the end of this process
            return i
        except OSError:
            lock.close()
    raise RuntimeError(f"all {n} shares of the ports of this machine are taken by other tests")


_SHARES = _shares()
_SHARE = _claim(len(_SHARES))
_PORTS = itertools.cycle(_SHARES[_SHARE])

#: Start of multicast groups of this process; tests add a last number of their own.
GROUP_PREFIX = f"239.{100 + _SHARE // 250}.{1 + _SHARE % 250}."
#: The same for IPv6: the end, after ``ff12::`` or another scope.
IPV6_GROUP = f"{1 + _SHARE:x}"


def _is_free(port: int) -> bool:
    """Whether nothing has the port, neither for UDP nor for TCP, on any interface."""
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(socket.AF_INET, kind) as sock:
            try:
                sock.bind(("", port))
            except OSError:
                return False
    return True


def own_port() -> int:
    """Return a port, for UDP or TCP, that nothing has, and that no other test is given meanwhile."""
    for port in itertools.islice(_PORTS, _PORTS_EACH):
        if _is_free(port):
            return port
    raise RuntimeError(f"all of the ports {_SHARES[_SHARE][0]} to {_SHARES[_SHARE][-1]} are in use")
