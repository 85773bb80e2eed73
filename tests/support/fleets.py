"""An array whose antennas send to a multicast group each, packet by packet, and what a fleet makes of it."""

from __future__ import annotations

import os
import pathlib
import re
import socket
import struct
import threading
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import spead2

import speadrx
from addresses import GROUP_PREFIX
from handmade import Heap, encode
from loopback import wait_for
from speadrx import Axis, Layout, Receiver, TimeAxis
from speadrx.fleet import Fleet, FleetAccount, FleetStats, Plan, ShareStats
from speadrx.fleet.recording import FleetRecording
from speadrx.fleet.share import ShareRun, Work

TIME_ID, ANTENNA_ID = 0x1600, 0x4101
STEP, BATCHES, ANTENNAS, SAMPLES = 16, 4, 4, 6
#: Where these groups are joined, and packets are sent from.
INTERFACE = "127.0.0.1"
#: Batches that are sent at once: fewer packets for each socket than the smallest buffer of a kernel holds.
AT_ONCE = 16
#: Chunks: more than are sent at once, since nobody knows which socket is read first.
WINDOW = 8

LAYOUT = Layout(
    name="array",
    heap_bytes=2 * SAMPLES,
    dtype=">i2",
    time=TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES),
    axes=(Axis(name="antenna", item=ANTENNA_ID, size=ANTENNAS),),
    sources="antenna",
    source_labels=("m000", "m001", "m002", "m003"),
)


def packet(batch: int, antenna: int) -> bytes:
    """A heap in one packet, made without speadrx."""
    payload = struct.pack(f">{SAMPLES}h", *(100 * (batch % 300) + 10 * antenna + i for i in range(SAMPLES)))
    items = {spead2.HEAP_LENGTH_ID: len(payload), TIME_ID: batch * STEP, ANTENNA_ID: antenna}
    return encode(Heap(items, payload), batch * ANTENNAS + antenna + 1, 48)[0]


class Array:
    """Sends the packets of antennas to their groups.

    Parameters
    ----------
    port
        The port of all groups.
    """

    def __init__(self, port: int) -> None:
        self.groups = [(f"{GROUP_PREFIX}{80 + antenna}", port) for antenna in range(ANTENNAS)]
        self.endpoints = f"{self.groups[0][0]}+{ANTENNAS - 1}:{port}"
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(INTERFACE))
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)

    def close(self) -> None:
        self._socket.close()

    def send(self, batches: Iterable[int], antennas: Iterable[int] = range(ANTENNAS)) -> None:
        for batch in batches:
            for antenna in antennas:
                self._socket.sendto(packet(batch, antenna), self.groups[antenna])

    def send_gently(self, fleet: Fleet, batches: range, antennas: Iterable[int] = range(ANTENNAS)) -> None:
        """Send no more at a time than the sockets of any kernel hold, to a fleet whose shares all receive."""
        antennas = list(antennas)
        for i in range(0, len(batches), AT_ONCE):
            part = batches[i : i + AT_ONCE]
            wanted = fleet.stats().placed + len(part) * len(antennas)
            self.send(part, antennas)
            wait_for(lambda n=wanted: fleet.stats().placed >= n)

    def send_on(self, fleet: Fleet, batches: range, shares: Iterable[int]) -> None:
        """Send to all, but not before some shares, which have an antenna each, have read what was sent before."""
        for i in range(0, len(batches), AT_ONCE):
            part = batches[i : i + AT_ONCE]
            self.send(part)
            wait_for(lambda last=part[-1]: all(has_read(fleet, share, last) for share in shares))


def has_read(fleet: Fleet, share: int, batch: int) -> bool:
    """Whether a share says that it has seen a batch, so that its socket has nothing older."""
    newest = fleet.account._shares[str(share)].now.get("newest")
    return bool(newest) and max(newest) >= batch * STEP


def plan_of(array: Array, **changes) -> Plan:
    """A share for each antenna."""
    fields = {
        "layout": LAYOUT,
        "endpoints": array.endpoints,
        "deal": "antenna",
        "function": contents,
        # So many chunks that none is left out of a recording because the disk is slow.
        "receiver": {"interface": INTERFACE, "window": WINDOW, "max_jump": 10_000, "buffer": 2**20, "chunks": 64},
        "report_seconds": 0.05,
        # Of tests in which nobody is.
        "silent_seconds": 100,
        **changes,
    }
    return Plan(**fields)


def contents(chunk) -> tuple[bytes, bytes]:
    """What is in a chunk, for heaps that are present."""
    present = np.asarray(chunk.present, bool)
    data = np.where(present[..., np.newaxis], chunk.data, 0)
    return data.astype(">i2").tobytes(), present.tobytes()


def contents_when(path: str, chunk) -> tuple[bytes, bytes]:
    """The same, once there is a file."""
    wait_for(lambda: os.path.exists(path))
    return contents(chunk)


def as_arrays(result: tuple[bytes, bytes], antennas: int) -> tuple[np.ndarray, np.ndarray]:
    data, present = result
    return (
        np.frombuffer(data, ">i2").reshape(BATCHES, antennas, SAMPLES),
        np.frombuffer(present, bool).reshape(BATCHES, antennas),
    )


def by_one_receiver(batches: Iterable[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """What one receiver of the whole layout makes of the same packets: data and presence, by time."""
    queue = spead2.InprocQueue()
    for batch in batches:
        for antenna in range(ANTENNAS):
            queue.add_packet(packet(batch, antenna))
    queue.stop()
    found = {}
    with Receiver(LAYOUT, queue, window=2, max_jump=10_000) as receiver:
        for chunk in receiver:
            with chunk:
                found[chunk.timestamp] = as_arrays(contents(chunk), ANTENNAS)
    return found


def record_by_one_receiver(
    path: pathlib.Path, batches: Iterable[int], antennas: Iterable[int] = range(ANTENNAS)
) -> Any:
    """Record the same packets with one receiver of the whole layout, and open that."""
    queue = spead2.InprocQueue()
    antennas = list(antennas)
    for batch in batches:
        for antenna in antennas:
            queue.add_packet(packet(batch, antenna))
    queue.stop()
    with (
        Receiver(LAYOUT, queue, window=2, max_jump=10_000) as receiver,
        speadrx.Recorder(receiver, path, wait=True) as recorder,
    ):
        for chunk in recorder:
            chunk.recycle()
    return speadrx.open(path)


class Shares:
    """Shares in threads of this process, and what a fleet makes of their reports: account and recording."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.account = plan, FleetAccount(plan.dealt)
        self.recording = FleetRecording(plan, "night of the test")
        self.recording.begin()
        self.shares: dict[int, tuple[ShareRun, threading.Thread]] = {}
        self.lock = threading.Lock()

    def start(self, *numbers: int) -> None:
        for number in numbers:
            share = self.plan.dealt[number]
            incarnation = self.account.submit(share.name, "worker", "host")
            work = Work(
                fleet="test",
                share=share.name,
                incarnation=incarnation,
                layout=share.layout,
                endpoints=share.endpoints,
                options=self.plan.receiver,
                function=self.plan.function,
                record=self.recording.of(share, incarnation),
                report_seconds=self.plan.report_seconds,
            )
            run = ShareRun(work, self._take)
            thread = threading.Thread(target=run.run)
            self.shares[number] = run, thread
            thread.start()
        wait_for(lambda: all(self.stats(number).state == "receives" for number in numbers))

    def _take(self, report: dict[str, Any]) -> None:
        with self.lock:
            if self.account.add({**report, "worker": "worker"}):
                self.recording.take(report)

    def stats(self, number: int) -> ShareStats:
        return self.account.stats().shares[number]

    def send(self, array: Array, batches: range, antennas: Iterable[int] = range(ANTENNAS)) -> None:
        """Send what the sockets hold, and wait until those who receive it have it."""
        antennas = list(antennas)
        for first in range(0, len(batches), AT_ONCE):
            part = batches[first : first + AT_ONCE]
            wanted = self.heaps() + len(part) * len(antennas)
            array.send(part, antennas)
            wait_for(lambda n=wanted: self.heaps() >= n)

    def heaps(self) -> int:
        """Heaps that have come: where time begins again, receivers reject one or two."""
        stats = self.account.stats()
        return stats.placed + sum(stats.rejected.values())

    def end_shares(self, *numbers: int) -> None:
        for number in numbers:
            run, thread = self.shares.pop(number)
            run.end("enough")
            thread.join(60)
            assert not thread.is_alive()
            assert self.stats(number).error is None

    def end(self) -> FleetStats:
        self.end_shares(*list(self.shares))
        stats = self.account.stats()
        self.recording.end(stats)
        return stats


def scraped_sum(port: int, name: str) -> float:
    """The sum of a metric that is served on a port, over all its labels; 0 if it is not served yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as reply:
            text = reply.read().decode()
    except OSError:
        return 0
    return sum(float(value) for value in re.findall(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE))


def is_there(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pid: int) -> None:
    """Kill a process, and wait until it is gone, and its sockets with it."""
    os.kill(pid, 9)
    wait_for(lambda: not is_there(pid))


def groups_of(pid: int) -> set[str]:
    """Addresses that UDP sockets of a process are bound to: of those that join groups, the groups."""
    inodes = set()
    for link in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    return {address for address, inode in _udp_sockets() if inode in inodes}


def _udp_sockets() -> Iterator[tuple[str, str]]:
    """The IPv4 address that each UDP socket is bound to, and its inode."""
    for line in pathlib.Path("/proc/net/udp").read_text("ascii").splitlines()[1:]:
        columns = line.split()
        address = int(columns[1].partition(":")[0], 16)
        yield socket.inet_ntoa(struct.pack("<I", address)), columns[9]
