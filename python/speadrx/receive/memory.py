"""Memory for chunks: checked before it is taken, in huge pages if possible, and near the thread that fills it."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import pathlib
import weakref
from collections.abc import Callable

import numpy as np

#: Size of a huge page on common machines. Where huge pages are larger, the memory is not aligned to them.
_HUGE_PAGE = 2**21

#: Linux has it since 5.14, but the mmap module has no name for it.
_MADV_POPULATE_WRITE = 23

#: Bytes that are populated at a time. Between the steps Ctrl-C gets through, since they hold the interpreter's lock.
_STEP = 2**26

_CGROUPS = pathlib.Path("/sys/fs/cgroup")


def _meminfo_available() -> int | None:
    for line in pathlib.Path("/proc/meminfo").read_text("ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_available() -> list[int]:
    """Bytes that the limits of this process's control groups still allow, in version 2 or 1."""
    left = []
    for line in pathlib.Path("/proc/self/cgroup").read_text("utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        # Cached files do not count, because the kernel can drop them. Files in memory, as in /dev/shm, do count.
        if not controllers:
            root, limit_name, names = _CGROUPS, "memory.max", ("anon", "shmem")
        elif "memory" in controllers.split(","):
            root, limit_name, names = _CGROUPS / "memory", "memory.limit_in_bytes", ("total_rss", "total_shmem")
        else:
            continue
        group = root / path.lstrip("/")
        # In a container, the group may be mounted at the root, so that its path does not exist.
        for directory in (group, *group.parents):
            try:
                limit = int((directory / limit_name).read_text("ascii"))
                statistics = dict(line.split() for line in (directory / "memory.stat").read_text("ascii").splitlines())
            except (OSError, ValueError):  # the root group has no limit, and "max" means that there is none
                continue
            left.append(max(limit - sum(int(statistics.get(name, 0)) for name in names), 0))
    return left


def available() -> int | None:
    """Bytes of memory that this process can still take, or None if the kernel does not tell."""
    try:
        known = [_meminfo_available(), *_cgroup_available()]
    except OSError:
        return None
    return min((bytes_ for bytes_ in known if bytes_ is not None), default=None)


def check_available(what: str, n_bytes: int) -> None:
    """Check that there is enough memory. Linux grants more than there is, and kills the process that uses it.

    Parameters
    ----------
    what
        What needs the memory: the beginning of the message.
    n_bytes
        Bytes that it needs.

    Raises
    ------
    MemoryError
        If there is not enough. The message says how much is needed.
    """
    there = available()
    if there is not None and n_bytes > there:
        raise MemoryError(
            f"{what} need {n_bytes:,} bytes of memory, but only {there:,} are available: wanted fewer chunks, or "
            "smaller chunks (with fewer batches)"
        )


def allocate(n_bytes: int, processor: int = -1) -> np.ndarray:
    """Allocate memory that causes no page fault when it is first written to.

    It is aligned to a page. If it is at least as large as a huge page, it is aligned to that.

    Parameters
    ----------
    n_bytes
        Number of bytes, at least 1.
    processor
        The memory is taken from the NUMA node of this processor. A negative number means the caller's processor.

    Returns
    -------
    numpy.ndarray
        Unsigned bytes, all 0.

    Raises
    ------
    MemoryError
        If there is not enough.
    """
    huge = n_bytes >= _HUGE_PAGE
    try:
        mapping = mmap.mmap(-1, n_bytes + huge * _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as exc:
        raise MemoryError(f"cannot allocate {n_bytes:,} bytes: {exc.strerror}") from None
    memory = np.frombuffer(mapping, np.uint8)
    start = -memory.ctypes.data % _HUGE_PAGE if huge else 0
    if huge:
        with contextlib.suppress(OSError):  # the kernel has no huge pages
            mapping.madvise(mmap.MADV_HUGEPAGE)
    _on(processor, lambda: _populate(mapping, start, n_bytes))
    return memory[start : start + n_bytes]


def _populate(mapping: mmap.mmap, start: int, n_bytes: int) -> None:
    for offset in range(start, start + n_bytes, _STEP):
        length = min(_STEP, start + n_bytes - offset)
        try:
            mapping.madvise(_MADV_POPULATE_WRITE, offset, length)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise MemoryError(f"cannot allocate {n_bytes:,} bytes: {exc.strerror}") from None
            np.frombuffer(mapping, np.uint8)[offset : offset + length : mmap.PAGESIZE] = 0  # the kernel is too old


def _on(processor: int, function: Callable[[], object]) -> None:
    """Call a function on a processor, since the kernel takes memory from the node that first writes to it."""
    if processor < 0:
        function()
        return
    import concurrent.futures  # imported here because most receivers do not need it

    with concurrent.futures.ThreadPoolExecutor(1, initializer=os.sched_setaffinity, initargs=(0, [processor])) as pool:
        pool.submit(function).result()


class PrivateCopies:
    """Memory of which there can be any number of copies. They are one until somebody writes to one of them.

    Parameters
    ----------
    n_bytes
        Number of bytes, at least 1.

    Raises
    ------
    MemoryError
        If the kernel grants none.
    """

    def __init__(self, n_bytes: int) -> None:
        import ctypes  # imported here, and below, because most programs do not need it

        self._n_bytes = n_bytes
        # The mmap module would keep a file descriptor for each copy.
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long
        self._libc.munmap.argtypes = ctypes.c_void_p, ctypes.c_size_t
        self._file = os.memfd_create("speadrx", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        os.ftruncate(self._file, n_bytes)

    def original(self) -> np.ndarray:
        """Return what copies are made of: unsigned bytes, all 0 at first. Later writes may or may not reach copies."""
        return self._map(mmap.MAP_SHARED)

    def copy(self) -> np.ndarray:
        """Return a copy. Its memory is free again when no array refers to it.

        Raises
        ------
        MemoryError
            If the kernel grants none.
        """
        return self._map(mmap.MAP_PRIVATE)

    def _map(self, flags: int) -> np.ndarray:
        import ctypes

        size = self._n_bytes
        address = self._libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, self._file, 0)
        if address == ctypes.c_void_p(-1).value:
            raise MemoryError(f"cannot map {size:,} bytes: {os.strerror(ctypes.get_errno())}")
        memory = (ctypes.c_ubyte * size).from_address(address)
        # Not when the interpreter exits: a thread may still use it.
        weakref.finalize(memory, self._libc.munmap, address, size).atexit = False
        return np.ctypeslib.as_array(memory)
