"""Checks of the machine: buffers, processors, memory, and what spead2 was built with."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import pathlib
import socket
from collections.abc import Iterator

import spead2.recv

from speadrx.receive import settings
from speadrx.receive.memory import available
from speadrx.receive.readers import MAX_BUFFER, request_buffer

from .finding import Case, Finding
from .system import Unknown, counters, parse_cpus, raise_to, read, sysctl

_CPUS = pathlib.Path("/sys/devices/system/cpu")
_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"

#: Clocks that are read without a system call.
_FAST_CLOCKS = ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter", "timebase")

#: What Linux has by default, and what ESnet advises for fast networks (fasterdata.es.net).
_BACKLOG = 1000
LARGE_BACKLOG = 250000


def socket_buffer(case: Case) -> Iterator[Finding]:
    """What comes while the receiver is held up, and does not fit the socket's buffer, is lost."""
    wanted = min(case.share, MAX_BUFFER)
    if not wanted:
        default = sysctl("net.core.rmem_default")
        yield Finding("socket_buffer", "ok", f"a socket has the system's default, {default} bytes")
        return
    limit = sysctl("net.core.rmem_max")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        granted = request_buffer(sock, wanted)
    why = "What comes while the receiver is held up, and does not fit the buffer, is lost."
    if not os.stat("/proc/sys/net/core/rmem_max").st_mode & 0o200:
        why += " The limit can be set outside of this network namespace only."
    mend = raise_to("net.core.rmem_max", wanted)
    if granted < wanted:
        summary = f"a socket asks for {wanted} bytes and gets {granted}: net.core.rmem_max is {limit}"
        yield Finding("socket_buffer", "problem", summary, why, mend)
    elif limit < wanted:
        summary = f"a socket gets {wanted} bytes by CAP_NET_ADMIN, but net.core.rmem_max is {limit}"
        yield Finding("socket_buffer", "warning", summary, f"A receiver without it gets no more than that. {why}", mend)
    else:
        yield Finding("socket_buffer", "ok", f"a socket gets {wanted} bytes, and net.core.rmem_max is {limit}")


def backlog(case: Case) -> Iterator[Finding]:
    """Packets that wait for a processor are dropped if they are more than the backlog holds."""
    limit, dropped = sysctl("net.core.netdev_max_backlog"), counters().get("softnet.dropped", 0)
    summary = f"net.core.netdev_max_backlog is {limit}, and {dropped} packets found it full since the start"
    if limit < _BACKLOG or dropped:
        why = "Packets that wait for a processor are dropped if they are more than that."
        mend = raise_to("net.core.netdev_max_backlog", LARGE_BACKLOG)
        yield Finding("backlog", "warning", summary, why, mend)
    else:
        yield Finding("backlog", "ok", summary)


def governor(case: Case) -> Iterator[Finding]:
    """A processor that saves power takes a while to get up to speed, and the socket's buffer may overflow meanwhile."""
    found: dict[str, set[int]] = {}
    for file in _CPUS.glob("cpu[0-9]*/cpufreq/scaling_governor"):
        cpu = int(file.parent.parent.name[3:])
        if not case.affinity or cpu in case.affinity:
            found.setdefault(file.read_text().strip(), set()).add(cpu)
    slow = {name: cpus for name, cpus in found.items() if name != "performance"}
    if not found:
        yield Finding("governor", "ok", "Linux does not set the frequency of these processors")
    elif slow:
        summary = "; ".join(f"{name} on processors {_ranges(cpus)}" for name, cpus in slow.items())
        why = (
            "A processor that saves power takes a while to get up to speed; the socket's buffer may overflow meanwhile."
        )
        files = " ".join(f"{_CPUS}/cpu{cpu}/cpufreq/scaling_governor" for cpu in sorted(set().union(*slow.values())))
        files = files if case.affinity else f"{_CPUS}/cpu*/cpufreq/scaling_governor"
        yield Finding("governor", "warning", summary, why, (f"echo performance | tee {files}",))
    else:
        yield Finding("governor", "ok", "performance")


def _ranges(cpus: set[int]) -> str:
    """Write processors as the kernel does."""
    starts = [cpu for cpu in sorted(cpus) if cpu - 1 not in cpus]
    ends = [cpu for cpu in sorted(cpus) if cpu + 1 not in cpus]
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def affinity(case: Case) -> Iterator[Finding]:
    """A receiving thread that shares its processor is held up by what else runs there."""
    allowed = os.sched_getaffinity(0)
    wanted = set(case.affinity)
    isolated = parse_cpus(read(str(_CPUS / "isolated")))
    if missing := wanted - allowed:
        summary = f"processors {_ranges(missing)} are not among those that this process may use ({_ranges(allowed)})"
        why = "A thread cannot be put there: it stays where it is."
        mend = () if missing - parse_cpus(read(str(_CPUS / "online"))) else (f"taskset -pc {_ranges(wanted)} $$",)
        yield Finding("affinity", "problem", summary, why, mend)
    elif len(wanted) < len(case.affinity):
        summary = f"several threads are to share a processor: {','.join(map(str, case.affinity))}"
        yield Finding("affinity", "warning", summary, "They hold each other up.")
    else:
        yield Finding(
            "affinity",
            "ok",
            f"may use processors {_ranges(allowed)}; isolated from others: {_ranges(isolated) or 'none'}",
        )
    yield from _irqbalance(wanted)


def _irqbalance(wanted: set[int]) -> Iterator[Finding]:
    for comm in pathlib.Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text().strip() == "irqbalance":
                why = "It moves the interface's interrupts about, also to the processors of receiving threads."
                mend = ("systemctl stop irqbalance",) if wanted else ()
                yield Finding("affinity", "warning" if wanted else "ok", "irqbalance is running", why, mend)
                return


def numa(case: Case) -> Iterator[Finding]:
    """Packets that are received on another NUMA node than the interface's cross between processors."""
    for link in case.inlets().values():
        folder = f"/sys/class/net/{link.name}"
        # Of another network namespace, /sys may show other interfaces of the same name.
        if link.loopback or int(read(f"{folder}/ifindex")) != link.index:
            continue
        try:
            node = int(read(f"{folder}/device/numa_node"))
        except Unknown:
            node = -1
        if node < 0:
            yield Finding("numa", "ok", f"{link.name} is near to all processors")
            continue
        near = parse_cpus(read(f"/sys/devices/system/node/node{node}/cpulist"))
        if far := set(case.affinity) - near:
            summary = f"{link.name} is at NUMA node {node}, and processors {_ranges(far)} are not"
            why = f"Each packet crosses between processors. Those of that node are {_ranges(near)}."
            yield Finding("numa", "warning", summary, why)
        else:
            yield Finding("numa", "ok", f"{link.name} is at NUMA node {node} (processors {_ranges(near)})")


def huge_pages(case: Case) -> Iterator[Finding]:
    """Chunks that lie in small pages take longer to write to."""
    setting = read(_HUGE_PAGES)
    reserved = sysctl("vm.nr_hugepages")
    summary = f"transparent huge pages: {setting}; reserved: {reserved}"
    if "[never]" in setting:
        why = "Chunks lie in small pages, which takes the network thread longer."
        yield Finding("huge_pages", "warning", summary, why, (f"echo madvise > {_HUGE_PAGES}",))
    else:
        yield Finding("huge_pages", "ok", summary)


def memory(case: Case) -> Iterator[Finding]:
    """Chunks are allocated when a receiver starts; without so much memory it does not."""
    free = available()
    if free is None:
        raise Unknown("the memory that is available cannot be read")
    if case.layout is None:
        yield Finding("memory", "ok", f"{free / 2**20:.0f} MiB are available")
        return
    n = settings.chunks_of(None, settings.window_of(case.layout, None, None, None))
    wanted = n * case.layout.chunk_bytes
    summary = f"{n} chunks, as a receiver has by default, take {wanted / 2**20:.0f} MiB of {free / 2**20:.0f} available"
    if wanted > free:
        why = "The receiver does not start. Choose fewer chunks, or fewer batches in a chunk."
        yield Finding("memory", "problem", summary, why)
    else:
        yield Finding("memory", "ok", summary)


def software(case: Case) -> Iterator[Finding]:
    """What spead2 was built with, and the clock."""
    version = importlib.metadata.version("spead2")
    devices = pathlib.Path("/dev/infiniband")
    ibv = "with" if hasattr(spead2.recv, "UdpIbvConfig") else "without"
    hardware = "there are" if devices.exists() and any(devices.glob("uverbs*")) else "no"
    yield Finding("spead2", "ok", f"spead2 {version}, {ibv} ibverbs; {hardware} devices for it")
    clock = read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    if clock in _FAST_CLOCKS:
        yield Finding("clock", "ok", f"the clock is {clock}")
    else:
        why = "Each look at the clock is a system call."
        yield Finding("clock", "warning", f"the clock is {clock}", why)
