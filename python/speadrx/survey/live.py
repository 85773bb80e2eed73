"""UDP datagrams as they come, for programs that look at packets themselves; streams have readers for that."""

from __future__ import annotations

import contextlib
import pathlib
import selectors
import socket
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from speadrx.receive.readers import open_sockets

from .capture import Datagram

#: Bytes of receive buffer that are enough; what does not fit is dropped and counted.
_BUFFER_BYTES = 2**23
_BUFFER_LIMIT = pathlib.Path("/proc/sys/net/core/rmem_max")
#: Datagrams to take from one socket before the others have their turn.
_BURST = 256
_MAX_DATAGRAM = 65535


class Listener:
    """Receives datagrams on UDP endpoints; a context manager that closes its sockets.

    Parameters
    ----------
    endpoints
        Host and port of each; multicast groups are joined.
    interface
        IPv4 address of the interface on which to join groups (for an IPv6 group, the name of the interface).

    Raises
    ------
    ValueError
        If an argument is wrong. The message names it and its value.
    OSError
        If a socket cannot be bound or cannot join its group.
    """

    def __init__(self, endpoints: Iterable[tuple[str, int]], interface: str | None = None) -> None:
        # No more than anyone is granted, as that would be warned of, and a sample is good enough here.
        buffer = min(_BUFFER_BYTES, int(_BUFFER_LIMIT.read_text("ascii")))
        sockets, self._owner = open_sockets(endpoints, interface, buffer)
        self._selector = selectors.DefaultSelector()
        for sock, endpoint in sockets.items():
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ, endpoint)

    def receive(self, seconds: float) -> Iterator[Datagram]:
        """Wait for datagrams, for so long at most, and give those that are there."""
        for key, _ in self._selector.select(seconds):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            with contextlib.suppress(BlockingIOError):  # it has no more
                for _ in range(_BURST):
                    data, sender = sock.recvfrom(_MAX_DATAGRAM)
                    yield Datagram(time.time(), (sender[0], sender[1]), key.data, data, len(data))

    def drops(self) -> int:
        """Packets that the kernel dropped so far, since the receive buffers were full."""
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
