"""Memory for chunks is there before it is used."""

import mmap
import os
import pathlib
import re
import resource

import numpy as np
import pytest
import spead2.recv

from speadrx import ChunkPool, Layout, SideItem, TimeAxis, make_stream
from speadrx.receive import memory

MIB = 2**20


def mapping_of(array):
    """What the kernel says of the mapping that holds an array."""
    address = array.ctypes.data
    found = {}
    inside = False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.endswith(" kB"):
            name, value = line.split(":")
            found[name] = int(value.split()[0]) * 1024
    return found


@pytest.mark.parametrize("n_bytes", [1, 4095, 4096, 2 * MIB - 1, 2 * MIB, 3 * MIB + 5])
def test_alignment(n_bytes):
    array = memory.allocate(n_bytes)
    assert (array.dtype, array.shape, array.flags.writeable) == (np.uint8, (n_bytes,), True)
    assert array.ctypes.data % (2 * MIB if n_bytes >= 2 * MIB else mmap.PAGESIZE) == 0
    assert not array.any()
    array[:] = 255


def test_no_page_faults():
    array = memory.allocate(64 * MIB)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    array[:: mmap.PAGESIZE] = 1
    faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before
    fresh = np.frombuffer(mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    fresh[:: mmap.PAGESIZE] = 1
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before > 16  # what is to be avoided
    assert faults <= 16


def test_no_page_faults_in_any_buffer_of_a_chunk():
    """The flags and side items of small heaps take as much as data."""
    layout = Layout(
        heap_bytes=8,
        time=TimeAxis(item=0x1600, step=1, batches=2**20),
        side_items=(SideItem(name="clipped", item=0x3300),),
    )
    rings = [spead2.recv.ChunkRingbuffer(1) for _ in range(2)]
    stream = make_stream(layout=layout, max_active_chunks=1, data_ringbuffer=rings[0], free_ringbuffer=rings[1])
    ChunkPool(stream, 1)
    chunk = rings[1].get_nowait()
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for array in (chunk.data, chunk.present, chunk.extra):
        # Memory of malloc may have been used before, by chance; it is never aligned to a page.
        assert array.ctypes.data % mmap.PAGESIZE == 0
        array.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE] = 1
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before <= 16
    stream.stop()


def test_huge_pages():
    setting = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("the kernel gives no huge pages")
    array = memory.allocate(64 * MIB)
    assert mapping_of(array)["AnonHugePages"] >= 32 * MIB


def test_more_than_there_is():
    there = memory.available()
    assert 0 < there < 2**50
    with pytest.raises(
        MemoryError, match=r"some chunks need 1,125,899,906,842,624 bytes of memory, but only [\d,]+ are"
    ):
        memory.check_available("some chunks", 2**50)
    with pytest.raises(MemoryError, match=r"cannot allocate 1,152,921,504,606,846,976 bytes: Cannot allocate memory"):
        memory.allocate(2**60)


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """Control groups of our own: writes the files of a directory, and what /proc/self/cgroup says."""
    own = tmp_path / "own"
    real = pathlib.Path.read_text
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(
        pathlib.Path, "read_text", lambda self, *args: real(own if str(self) == "/proc/self/cgroup" else self, *args)
    )

    def write(directory, limit, own_groups, **statistics):
        (tmp_path / directory).mkdir(parents=True, exist_ok=True)
        name = "memory.limit_in_bytes" if directory.startswith("memory") else "memory.max"
        (tmp_path / directory / name).write_text(f"{limit}\n")
        rows = [f"{name} {value}\n" for name, value in statistics.items()]
        (tmp_path / directory / "memory.stat").write_text("".join(rows))
        own.write_text(own_groups)

    return write


def test_limit_of_the_control_group(cgroups):
    """The closest limit counts, less what cannot be given up."""
    own = "1:name=systemd:/x\n0::/a/b\n"
    cgroups("a/b", "max", own, anon=1, file=2)
    cgroups("a", 100 * MIB, own, anon=30 * MIB, file=60 * MIB, shmem=20 * MIB)
    assert memory.available() == 50 * MIB


def test_limit_in_version_1(cgroups):
    own = "5:cpu,cpuacct:/x\n4:memory:/a/b\n0::/\n"
    cgroups("memory/a/b", 2**63 - 4096, own, total_rss=1)
    cgroups("memory/a", 100 * MIB, own, rss=1, total_rss=30 * MIB, total_cache=60 * MIB, total_shmem=20 * MIB)
    assert memory.available() == 50 * MIB


@pytest.mark.parametrize("own", ["0::/docker/0123\n", "0::/../b\n"])
def test_control_group_that_is_mounted_at_the_root(cgroups, own):
    """As in a container that has no namespace of control groups: the path is that of the host, and not there."""
    cgroups(".", 100 * MIB, own, anon=30 * MIB)
    assert memory.available() == 70 * MIB


def test_pool_fails_early():
    """Nothing is allocated if not all can be."""
    layout = Layout(heap_bytes=2**30, time=TimeAxis(item=0x1600, step=1, batches=8))
    stream = make_stream(
        layout=layout,
        max_active_chunks=2,
        data_ringbuffer=spead2.recv.ChunkRingbuffer(100_000),
        free_ringbuffer=spead2.recv.ChunkRingbuffer(100_000),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MemoryError, match=r"chunks: 100000 of 8,589,934,600 bytes each need 858,993,460,000,000 bytes"):
        ChunkPool(stream, 100_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
    stream.stop()


def test_first_written_on_the_processor(monkeypatch):
    """The kernel takes memory from the node of the processor that first writes to it."""
    processor = max(os.sched_getaffinity(0))
    seen = []
    populate = memory._populate
    monkeypatch.setattr(memory, "_populate", lambda *args: (seen.append(os.sched_getaffinity(0)), populate(*args)))
    own = os.sched_getaffinity(0)
    memory.allocate(4096, processor)
    memory.allocate(4096)
    assert seen == [{processor}, own]
    assert os.sched_getaffinity(0) == own


def test_private_copies():
    """Each is its holder's own, and takes memory only where it was written to."""
    copies = memory.PrivateCopies(8 * MIB)
    copies.original()[:] = 5
    first, second = copies.copy(), copies.copy()
    first[: mmap.PAGESIZE] = 1
    assert (second == 5).all()
    assert (first[mmap.PAGESIZE :] == 5).all()
    assert mapping_of(first)["Anonymous"] == mmap.PAGESIZE
    assert mapping_of(second)["Anonymous"] == 0
    del copies
    assert (first[0], second[0]) == (1, 5)


def test_private_copies_that_the_kernel_refuses():
    with pytest.raises(MemoryError, match=f"cannot map {2**60:,} bytes: Cannot allocate memory"):
        memory.PrivateCopies(2**60).copy()
