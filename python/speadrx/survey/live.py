"""Receive UDP datagrams one by one, for a survey. Streams do not use this: they have readers."""

from __future__ import annotations

import contextlib
import pathlib
import selectors
import socket
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from speadrx.receive.sockets import open_sockets

from .capture import Datagram

#: Bytes of receive buffer that are enough for a sample. Datagrams that do not fit are dropped and counted.
_BUFFER_BYTES = 2**23
_BUFFER_LIMIT = pathlib.Path("/proc/sys/net/core/rmem_max")
#: Datagrams to take from one socket before the next one has its turn.
_BURST = 256
_MAX_DATAGRAM = 65535


class Listener:
    """Receives datagrams on UDP endpoints; a context manager that closes its sockets.

    Parameters
    ----------
    endpoints
        Host and port of each; multicast groups are joined.
    interface
        Interface on which to join groups that name none: its name or address.

    Raises
    ------
    ValueError
        If an argument is wrong. The message names it and its value.
    OSError
        If a socket cannot be bound or cannot join its group.
    """

    def __init__(self, endpoints: Iterable[tuple[str, int]], interface: str | None = None) -> None:
        # Asking for more than the system's limit would give a warning, and a sample is good enough here.
        buffer = min(_BUFFER_BYTES, int(_BUFFER_LIMIT.read_text("ascii")))
        sockets, self._owner = open_sockets(endpoints, interface, buffer)
        self._selector = selectors.DefaultSelector()
        for sock, endpoint in sockets.items():
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ, endpoint)

    def receive(self, seconds: float) -> Iterator[Datagram]:
        """Wait for datagrams, at most for so many seconds, and give those that have come."""
        for key, _ in self._selector.select(seconds):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            with contextlib.suppress(BlockingIOError):  # the socket has no more
                for _ in range(_BURST):
                    data, sender = sock.recvfrom(_MAX_DATAGRAM)
                    yield Datagram(time.time(), (sender[0], sender[1]), key.data, data, len(data))

    def drops(self) -> int:
        """Packets that the kernel has dropped so far because a receive buffer was full."""
        return self._owner.drops()

    def close(self) -> None:
        """Close the sockets."""
        self._selector.close()
        self._owner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
