"""Descriptors of sockets of this process, among them those that spead2 has."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Container, Iterable


def own_sockets() -> dict[int, int]:
    """Inodes of all sockets of this process, by descriptor."""
    sockets = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # it may have been closed since
            status = os.fstat(int(name))
            if stat.S_ISSOCK(status.st_mode):
                sockets[int(name)] = status.st_ino
    return sockets


def inode_of(sock: socket.socket) -> int:
    """The inode of a socket, by which its duplicates are known."""
    return os.fstat(sock.fileno()).st_ino


def same_sockets(inodes: Container[int]) -> list[int]:
    """All descriptors of this process for some sockets."""
    return [fd for fd, inode in own_sockets().items() if inode in inodes]


def hide_from_programs(sockets: Iterable[socket.socket]) -> None:
    """Close sockets, and spead2's duplicates, in all programs that this process starts. They would hold the ports."""
    hide_inodes([inode_of(sock) for sock in sockets])


def hide_inodes(inodes: Container[int]) -> None:
    """The same for the sockets with these inodes."""
    for fd in same_sockets(inodes):
        with contextlib.suppress(OSError):  # another thread may have stopped the stream
            os.set_inheritable(fd, False)
