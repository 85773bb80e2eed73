"""A disk that is slow, or does nothing for a while, while a receiver records: reception goes on, and all is named.

It is a real one: a file system in a file, which the kernel lets nobody write to, or only slowly.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess

import pytest
import spead2

import speadrx
from handmade import Heap, encode
from loopback import wait_for
from network import leave_out
from recordings import (
    ANTENNA_ID,
    ANTENNAS,
    BATCHES,
    STEP,
    TIME_ID,
    attributes,
    check_part,
    heaps_of,
    layout_of,
    packets_of,
    receiver,
)
from speadrx import Recorder
from terminals import PATIENCE, piped, wait_for_line

EACH = BATCHES * ANTENNAS
#: Heaps so large that a chunk is written past the page cache, and so waits for the disk itself.
LARGE = 2**18
#: Bytes a second of a slow disk: so few that it has not written the first chunk when all others have come.
SLOW = 2**10
_CGROUPS = pathlib.Path("/sys/fs/cgroup")


class Disk:
    """A file system in a file."""

    def __init__(self, folder: pathlib.Path, device: str) -> None:
        self.folder, self._device = folder, device
        self._is_frozen = False

    def freeze(self) -> None:
        """Let nobody write to it any more: whoever does waits."""
        subprocess.run(["fsfreeze", "--freeze", self.folder], check=True)
        self._is_frozen = True

    def thaw(self) -> None:
        if self._is_frozen:
            subprocess.run(["fsfreeze", "--unfreeze", self.folder], check=True)
            self._is_frozen = False

    def __enter__(self):
        return self

    def __exit__(self, *error: object) -> None:
        self.thaw()  # no process can end while the disk has it

    @contextlib.contextmanager
    def slow(self):
        """Have what this process writes to it wait, by cgroups of either version; gives what ends that."""
        numbers = pathlib.Path("/sys/block", pathlib.Path(self._device).name, "dev").read_text().strip()
        versions = [
            (_CGROUPS / "blkio", "blkio.throttle.write_bps_device", "", "0"),
            (_CGROUPS, "io.max", "wbps=", "max"),
        ]
        for version in versions:
            root, file, words, none = version
            limit = f"{numbers} {words}"
            cgroup = root / f"speadrx-test-{os.getpid()}"
            with contextlib.suppress(OSError):
                cgroup.mkdir()
                try:
                    (cgroup / file).write_text(f"{limit}{SLOW}")
                except OSError:
                    cgroup.rmdir()
                    raise
                break
        else:
            leave_out("needs a cgroup that may limit what is written")
        before = _cgroup_of_this_process(root)
        try:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))
            yield lambda: (cgroup / file).write_text(f"{limit}{none}")
        finally:
            (cgroup / file).write_text(f"{limit}{none}")
            (before / "cgroup.procs").write_text(str(os.getpid()))
            cgroup.rmdir()


def _cgroup_of_this_process(root: pathlib.Path) -> pathlib.Path:
    for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if root.name in controllers.split(",") or (root == _CGROUPS and not controllers):
            return root / path.lstrip("/")
    raise LookupError(root)


@pytest.fixture
def disk(tmp_path):
    """A file system of 64 MiB in a file."""
    programs = ("mount", "mkfs.ext4", "losetup", "fsfreeze")
    if os.geteuid() or any(shutil.which(program) is None for program in programs):
        leave_out(f"needs root, and the programs {', '.join(programs)}")
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(2**26)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    found = subprocess.run(["losetup", "--find", "--show", image], check=False, capture_output=True, text=True)
    if found.returncode:
        leave_out(f"needs a loop device: {found.stderr.strip()}")
    device = found.stdout.strip()
    try:
        subprocess.run(["mount", device, folder], check=True)
        made = Disk(folder, device)
        try:
            yield made
        finally:
            made.thaw()
            subprocess.run(["umount", "--lazy", folder], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_slow(disk) -> None:
    """Chunks that do not fit into the queue are left out, and named; those in it are written, however long it takes."""
    layout = layout_of(heap_bytes=LARGE, dtype="uint8", side_items=())
    heaps = heaps_of(range(12))
    numbers = {heap: number for number, heap in enumerate(heaps)}
    packets = _large_packets(heaps)
    seen = 0
    with (
        receiver_of(layout, packets) as rx,
        disk.slow() as end,
        Recorder(rx, disk.folder / "a.zarr", queue=2) as recorder,
    ):
        for chunk in recorder:
            with chunk:
                seen += 1
        stats = recorder.stats()
        assert (seen, stats.chunks, stats.queued, stats.not_written) == (12, 0, 2, {"queue_full": 10})
        end()
    stats = recorder.stats()
    assert (stats.chunks, stats.heaps, stats.not_written, stats.finished) == (2, 2 * EACH, {"queue_full": 10}, True)
    assert stats.heaps + stats.heaps_not_written == len(heaps) == rx.stats().present
    for number in (0, 1):
        content = (disk.folder / f"a.zarr/data/c.{number}.0.0").read_bytes()
        of = [heap for heap in heaps if heap[0] // BATCHES == number]
        assert content == b"".join(bytes([numbers[heap]]) * LARGE for heap in of)


def _large_packets(heaps):
    for number, (batch, antenna) in enumerate(heaps):
        items = {spead2.HEAP_LENGTH_ID: LARGE, TIME_ID: batch * STEP, ANTENNA_ID: antenna}
        yield from encode(Heap(items, bytes([number]) * LARGE), number + 1, 48)


def receiver_of(layout, packets):
    queue = spead2.InprocQueue()
    for packet in packets:
        queue.add_packet(packet)
    queue.stop()
    return speadrx.Receiver(layout, queue, window=2, chunks=6, max_jump=5000)


def test_frozen_for_a_while(disk) -> None:
    """The loop goes on; what does not fit into the queue is named, and the rest is written later."""
    path = disk.folder / "a.zarr"
    heaps = heaps_of(range(30))
    with receiver(layout_of(), heaps) as rx, Recorder(rx, path, queue=2) as recorder, disk:
        for number, chunk in enumerate(recorder):
            with chunk:
                if number == 9:
                    wait_for(lambda: recorder.stats().chunks == 10)
                    disk.freeze()
                elif number == 20:
                    assert recorder.stats().not_written == {"queue_full": 9}
                    disk.thaw()
                if number < 9 or number >= 20:
                    wait_for(lambda: recorder.stats().queued == 0)
    stats = recorder.stats()
    assert (stats.chunks, stats.not_written, stats.finished) == (21, {"queue_full": 9}, True)
    assert check_part(path, 0, heaps) == stats.heaps == 21 * EACH


def test_command_on_a_frozen_disk(disk, tmp_path, udp_port) -> None:
    """It receives all, gives the disk up, names what is not written, and its exit code says it."""
    path, few = disk.folder / "a.zarr", 15
    heaps = heaps_of(range(few))
    (tmp_path / "array.toml").write_text(layout_of().declaration.to_toml(), "utf-8")
    options = ["-l", str(tmp_path / "array.toml"), "-o", str(path), "--window=2", "--max-jump=5000", "--pool=40"]
    options += ["--patience=500ms", "--interval=0.1"]
    with piped("record", f"127.0.0.1:{udp_port}", *options) as process, disk:
        wait_for_line(process.stdout, "Receiving")
        send(udp_port, heaps[: 7 * EACH])
        wait_for_line(process.stdout, "recorded 5 chunks")
        disk.freeze()
        send(udp_port, heaps[7 * EACH :])
        wait_for_line(process.stdout, f"queue {few - 7}/")
        process.send_signal(signal.SIGINT)
        wait_for_line(process.stderr, f"The first error: {path}: nothing was written for 0.5 s.")
        disk.thaw()
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3
    assert f"Recorded: {5 * EACH} heaps in 5 chunks" in output
    assert attributes(path)["complete"] is False
    assert check_part(path, 0, heaps, killed=True) >= 5 * EACH


def send(port: int, heaps) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for packet in packets_of(heaps):
            sock.sendto(packet, ("127.0.0.1", port))
