"""The check of what ibverbs needs: spead2's support, libraries, a device, a capability, locked memory."""

from __future__ import annotations

import ctypes
import pathlib
import resource
from collections.abc import Iterator

import spead2.recv

from .case import Case
from .finding import Finding
from .system import read

_DEVICES = pathlib.Path("/sys/class/infiniband")
#: The libraries that spead2 loads when ibverbs is used first, and the packages of Debian that have them.
_LIBRARIES = {"librdmacm.so.1": "librdmacm1", "libibverbs.so.1": "libibverbs1 ibverbs-providers"}
_CAP_NET_RAW = 13
_STATUS = "/proc/thread-self/status"


def ibverbs(case: Case) -> Iterator[Finding]:
    """A receiver that bypasses the kernel with ibverbs needs libraries, a device, a capability and locked memory."""
    check = "ibverbs"
    found = [*_software(), *_device(case), *_rights(case)] if _supported() else [_without()]
    lacking = [finding for finding in found if finding.severity == "problem"]
    yield from lacking if case.ibv else ()
    if case.ibv and not lacking:
        yield Finding(check, "ok", "spead2, libraries, a device, CAP_NET_RAW and locked memory are there")
    elif not case.ibv:
        lacks = "; ".join(finding.summary for finding in lacking) or "nothing is lacking"
        yield Finding(check, "ok", f"not asked for (--ibv), and {lacks}")


def _supported() -> bool:
    return hasattr(spead2.recv, "UdpIbvConfig")


def _problem(summary: str, why: str, *mend: str) -> Finding:
    return Finding("ibverbs", "problem", summary, why, mend)


def _without() -> Finding:
    return _problem("this spead2 was built without ibverbs", "The packages of spead2 in PyPI for Linux have it.")


def _software() -> Iterator[Finding]:
    for library, packages in _LIBRARIES.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            yield _problem(
                f"{library} is not installed",
                "spead2 loads it when a receiver asks for ibverbs, and refuses otherwise.",
                f"apt-get install {packages}",
            )


def _device(case: Case) -> Iterator[Finding]:
    names = sorted(path.name for path in _DEVICES.iterdir()) if _DEVICES.is_dir() else []
    if not names:
        why = "ibverbs needs a network card with an RDMA driver: spead2 is tested with NVIDIA ConnectX."
        yield _problem(f"there is no RDMA device in {_DEVICES}", why)
        return
    links = {path.name for name in names for path in (_DEVICES / name / "device" / "net").glob("*")}
    for link in case.inlets().values():
        if links and link.name not in links:
            known = ", ".join(sorted(links))
            yield _problem(f"{link.name} does not belong to an RDMA device", f"These interfaces do: {known}.")


def _rights(case: Case) -> Iterator[Finding]:
    lines = dict(line.split(":\t", 1) for line in read(_STATUS).splitlines() if ":\t" in line)
    if not int(lines["CapEff"], 16) >> _CAP_NET_RAW & 1:
        yield _problem(
            "this process does not have CAP_NET_RAW",
            "The kernel lets only such processes take packets off the card. Run the receiver as root, or with the "
            "capability; spead2's tool spead2_net_raw (in its C++ build) gives it to a program.",
            "sudo setpriv --reuid=$(id -u) --regid=$(id -g) --init-groups "
            "--inh-caps=+net_raw --ambient-caps=+net_raw COMMAND",
        )
    wanted = spead2.recv.UdpIbvConfig.DEFAULT_BUFFER_SIZE
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit != resource.RLIM_INFINITY and limit < wanted:
        yield _problem(
            f"this process may lock {limit} bytes of memory, but each thread locks {wanted} by default",
            "The card writes to memory that stays where it is. The limit is RLIMIT_MEMLOCK (ulimit -l).",
            'echo "* - memlock unlimited" > /etc/security/limits.d/speadrx.conf',
        )
