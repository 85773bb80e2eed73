"""Checks of the machine: buffers, processors, memory, and what spead2 was built with."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import pathlib
import socket
from collections.abc import Iterator

from speadrx._words import counted
from speadrx.receive import settings
from speadrx.receive.memory import available
from speadrx.receive.sockets import MAX_BUFFER, request_buffer

from .case import Case
from .finding import Finding
from .system import Unknown, counters, parse_cpus, raise_to, read, sysctl

_CPUS = pathlib.Path("/sys/devices/system/cpu")
_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"

#: Clocks that can be read without a system call.
_FAST_CLOCKS = ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter", "timebase")

#: The default of Linux, and what ESnet advises for fast networks (fasterdata.es.net).
_BACKLOG = 1000
LARGE_BACKLOG = 250000


def socket_buffer(case: Case) -> Iterator[Finding]:
    """When the receiver is held up for a moment, packets that do not fit in the socket's buffer are lost."""
    wanted = min(case.share, MAX_BUFFER)
    if not wanted:
        default = sysctl("net.core.rmem_default")
        yield Finding("socket_buffer", "ok", f"a socket gets the system's default, {default} bytes")
        return
    limit = sysctl("net.core.rmem_max")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        granted = request_buffer(sock, wanted)
    why = "When the receiver is held up for a moment, packets that do not fit in the buffer are lost."
    if not os.stat("/proc/sys/net/core/rmem_max").st_mode & 0o200:
        why += " The limit can only be set outside of this network namespace."
    mend = raise_to("net.core.rmem_max", wanted)
    if granted < wanted:
        summary = f"a socket asks for {wanted} bytes and gets {granted}: net.core.rmem_max is {limit}"
        yield Finding("socket_buffer", "problem", summary, why, mend)
    elif limit < wanted:
        summary = f"a socket gets {wanted} bytes thanks to CAP_NET_ADMIN, but net.core.rmem_max is {limit}"
        why = f"A receiver without CAP_NET_ADMIN gets only {limit} bytes. {why}"
        yield Finding("socket_buffer", "warning", summary, why, mend)
    else:
        yield Finding("socket_buffer", "ok", f"a socket gets {wanted} bytes, and net.core.rmem_max is {limit}")


def backlog(case: Case) -> Iterator[Finding]:
    """Packets that wait for a processor are dropped if the backlog is full."""
    limit, dropped = sysctl("net.core.netdev_max_backlog"), counters().get("softnet.dropped", 0)
    since = f"has dropped {counted(dropped, 'packet')} since this machine started"
    summary = f"the backlog (net.core.netdev_max_backlog) holds {counted(limit, 'packet')}, and {since}"
    if limit < _BACKLOG or dropped:
        why = "Packets that wait for a processor are dropped if the backlog is full."
        mend = raise_to("net.core.netdev_max_backlog", LARGE_BACKLOG)
        yield Finding("backlog", "warning", summary, why, mend)
    else:
        yield Finding("backlog", "ok", summary)


def governor(case: Case) -> Iterator[Finding]:
    """A processor that saves power needs a while to speed up, and the socket's buffer may overflow meanwhile."""
    found: dict[str, set[int]] = {}
    for file in _CPUS.glob("cpu[0-9]*/cpufreq/scaling_governor"):
        cpu = int(file.parent.parent.name[3:])
        if not case.affinity or cpu in case.affinity:
            found.setdefault(file.read_text().strip(), set()).add(cpu)
    slow = {name: cpus for name, cpus in found.items() if name != "performance"}
    if not found:
        yield Finding("governor", "ok", "Linux does not control the frequency of these processors")
    elif slow:
        summary = "; ".join(f"{name} on processors {_ranges(cpus)}" for name, cpus in slow.items())
        why = "A processor that saves power needs a while to speed up, and the socket's buffer may overflow meanwhile."
        files = " ".join(f"{_CPUS}/cpu{cpu}/cpufreq/scaling_governor" for cpu in sorted(set().union(*slow.values())))
        files = files if case.affinity else f"{_CPUS}/cpu*/cpufreq/scaling_governor"
        yield Finding("governor", "warning", summary, why, (f"echo performance | tee {files}",))
    else:
        yield Finding("governor", "ok", "performance")


def _ranges(cpus: set[int]) -> str:
    """Write a list of processors in the kernel's format."""
    starts = [cpu for cpu in sorted(cpus) if cpu - 1 not in cpus]
    ends = [cpu for cpu in sorted(cpus) if cpu + 1 not in cpus]
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def affinity(case: Case) -> Iterator[Finding]:
    """A receiving thread that shares its processor is held up by whatever else runs there."""
    allowed = os.sched_getaffinity(0)
    wanted = set(case.affinity)
    isolated = parse_cpus(read(str(_CPUS / "isolated")))
    if missing := wanted - allowed:
        summary = f"this process may not use processors {_ranges(missing)} (it may use {_ranges(allowed)})"
        why = "A thread cannot be moved there, and stays where it is."
        mend = () if missing - parse_cpus(read(str(_CPUS / "online"))) else (f"taskset -pc {_ranges(wanted)} $$",)
        yield Finding("affinity", "problem", summary, why, mend)
    elif len(wanted) < len(case.affinity):
        summary = f"several threads would share a processor: {','.join(map(str, case.affinity))}"
        yield Finding("affinity", "warning", summary, "They hold each other up.")
    else:
        summary = f"this process may use processors {_ranges(allowed)}; isolated: {_ranges(isolated) or 'none'}"
        yield Finding("affinity", "ok", summary)
    yield from _irqbalance(wanted)


def _irqbalance(wanted: set[int]) -> Iterator[Finding]:
    for comm in pathlib.Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text().strip() == "irqbalance":
                why = "It moves the interface's interrupts, sometimes to the processors of receiving threads."
                mend = ("systemctl stop irqbalance",) if wanted else ()
                yield Finding("affinity", "warning" if wanted else "ok", "irqbalance is running", why, mend)
                return


def numa(case: Case) -> Iterator[Finding]:
    """Packets must cross between processors if the threads and the interface are on different NUMA nodes."""
    for link in case.inlets().values():
        folder = f"/sys/class/net/{link.name}"
        # /sys may belong to another network namespace, with other interfaces of the same name.
        if link.loopback or int(read(f"{folder}/ifindex")) != link.index:
            continue
        try:
            node = int(read(f"{folder}/device/numa_node"))
        except Unknown:
            node = -1
        if node < 0:
            yield Finding("numa", "ok", f"{link.name} is equally near to all processors")
            continue
        near = parse_cpus(read(f"/sys/devices/system/node/node{node}/cpulist"))
        if far := set(case.affinity) - near:
            summary = f"{link.name} is on NUMA node {node}, but processors {_ranges(far)} are not"
            why = f"Each packet must cross between processors. That node has processors {_ranges(near)}."
            yield Finding("numa", "warning", summary, why)
        else:
            yield Finding("numa", "ok", f"{link.name} is on NUMA node {node} (processors {_ranges(near)})")


def huge_pages(case: Case) -> Iterator[Finding]:
    """Writing to chunks in small pages takes longer."""
    setting = read(_HUGE_PAGES)
    reserved = sysctl("vm.nr_hugepages")
    summary = f"transparent huge pages: {setting}; reserved: {reserved}"
    if "[never]" in setting:
        why = "Chunks are in small pages, so the network thread takes longer to write to them."
        yield Finding("huge_pages", "warning", summary, why, (f"echo madvise > {_HUGE_PAGES}",))
    else:
        yield Finding("huge_pages", "ok", summary)


def memory(case: Case) -> Iterator[Finding]:
    """A receiver allocates its chunks when it starts, and does not start without enough memory."""
    free = available()
    if free is None:
        raise Unknown("the available memory cannot be read")
    if case.layout is None:
        yield Finding("memory", "ok", f"{free / 2**20:,.0f} MiB are available")
        return
    n = settings.chunks_of(None, settings.window_of(case.layout, None, None, None))
    wanted = n * case.layout.chunk_bytes
    have = f"{free / 2**20:,.0f} MiB are available"
    summary = f"{n} chunks, the default for this layout, take {wanted / 2**20:,.0f} MiB; {have}"
    if wanted > free:
        why = "The receiver will not start. Use fewer chunks, or fewer batches in each chunk."
        yield Finding("memory", "problem", summary, why)
    else:
        yield Finding("memory", "ok", summary)


def software(case: Case) -> Iterator[Finding]:
    """The version of spead2, and the clock."""
    yield Finding("spead2", "ok", f"spead2 {importlib.metadata.version('spead2')}")
    clock = read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    if clock in _FAST_CLOCKS:
        yield Finding("clock", "ok", f"the clock is {clock}")
    else:
        why = "Reading this clock needs a system call."
        yield Finding("clock", "warning", f"the clock is {clock}", why)
