"""Ways into spead2 for packets that it does not read itself: those of captures, those that users have, and mended ones.

A thread of the core reads, mends and writes them into a TCP connection, from which spead2 reads them in order.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from speadrx._core import Feed, Handing, OpenCapture
from speadrx._core import Layout as CoreLayout
from speadrx.layout.base import DeclarativeLayout

from .descriptors import hide_from_programs, hide_inodes, inode_of
from .endpoints import deal_out
from .sockets import SocketSet

logger = logging.getLogger(__name__)

#: The largest packet that spead2 gets: mended ones have some more items than those that came.
_MAX_SIZE = 2**17
#: Bytes of buffer of the connections, if there are several: the streams must not be far apart.
_SMALL_BUFFER = 2**16
#: A connection is made anew so many times if another program connects in between.
_TRIES = 16
#: Seconds that a connection over loopback may take.
_PATIENCE = 5.0
#: Seconds until the next look whether there is room for a packet.
_ROOM_INTERVAL = 0.001

_ESTABLISHED = "01"
_TCP_TABLE = "/proc/net/tcp"


def _connections(port: int) -> dict[int, int]:
    """Ports that are connected to a port of 127.0.0.1, and the inode of its end of each: 0 until it is accepted."""
    here = "{:08X}:{:04X}".format(struct.unpack("=I", socket.inet_aton("127.0.0.1"))[0], port)
    found = {}
    with open(_TCP_TABLE, encoding="ascii") as table:
        for line in table:
            fields = line.split()
            if fields[1] == here and fields[3] == _ESTABLISHED:
                found[int(fields[2].partition(":")[2], 16)] = int(fields[9])
    return found


def _connect(buffer: int | None) -> tuple[socket.socket, socket.socket] | None:
    """Make a listening socket and a connection to it; None if another program has connected to it as well.

    A stream accepts the connection that was made first. So it must be ours.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        client = stack.enter_context(socket.socket())
        if buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        client.settimeout(_PATIENCE)
        client.connect(listener.getsockname())
        client.settimeout(None)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ours, port = client.getsockname()[1], listener.getsockname()[1]
        deadline = time.monotonic() + _PATIENCE
        while ours not in (waiting := _connections(port)):  # the kernel may need a moment
            if time.monotonic() > deadline:
                return None
            time.sleep(0.001)
        if list(waiting) != [ours]:
            return None
        stack.pop_all()
        return listener, client


def _hide_accepted(port: int, client: int) -> list[int]:
    """Close spead2's end of a connection in all programs that this process starts. Return its inode, if it has one.

    The stream accepts the connection in a thread of its own, so it may take a moment.
    """
    deadline = time.monotonic() + _PATIENCE
    while (inode := _connections(port).get(client)) == 0 and time.monotonic() < deadline:
        time.sleep(0.001)
    found = [inode] if inode else []  # there is none if the stream was stopped meanwhile
    hide_inodes(found)
    return found


def _connect_to(stream: Any, sockets: SocketSet | None, buffer: int | None = None) -> socket.socket:
    """Make a connection that a stream reads, and whose end ends it."""
    for _ in range(_TRIES):
        found = _connect(buffer)
        if found is None:
            continue
        listener, client = found
        try:
            with listener:
                stream.add_tcp_reader(listener, max_size=_MAX_SIZE)
                hide_from_programs([listener])
                inodes = [inode_of(listener), inode_of(client)]
                if not stream.config.explicit_start:
                    inodes += _hide_accepted(listener.getsockname()[1], client.getsockname()[1])
                if sockets is not None:
                    sockets.share(inodes)
        except BaseException:
            client.close()
            raise
        return client
    raise RuntimeError("src: another program keeps connecting to the sockets between speadrx and spead2")


def _core_layout(layout: Any) -> CoreLayout | None:
    return layout.declaration._compiled if isinstance(layout, DeclarativeLayout) else None


class CaptureSource:
    """A capture as what one or several streams receive.

    Parameters
    ----------
    path
        The file: pcap or pcapng, perhaps compressed.
    endpoints
        Only datagrams to these endpoints are received. They are dealt out to the streams, in order. If there are none,
        all datagrams go to the only stream. 0.0.0.0 stands for any address.
    streams
        The number of streams.
    pace
        How many times faster than recorded (None: as fast as possible).

    Raises
    ------
    ValueError
        If an endpoint is not an IP address, or the file is no capture.
    OSError
        If the file cannot be read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        endpoints: Sequence[tuple[str, int]] = (),
        streams: int = 1,
        pace: float | None = None,
    ) -> None:
        self.pace = pace
        self._capture = OpenCapture(path)
        found = [(_address(host), port) for host, port in endpoints]
        parts = deal_out(found, streams) if endpoints or streams > 1 else [[]]
        #: One for each stream: a `Receiver` takes them as sources.
        self.parts = [CapturePart(self, part) for part in parts]
        #: Reads the file, once all streams are there.
        self.feed: Feed | None = None
        self._connections: list[tuple[socket.socket, CapturePart]] = []
        self._owners: list[weakref.ref[SocketSet]] = []

    def _join(self, part: CapturePart, stream: Any, sockets: SocketSet | None) -> None:
        buffer = _SMALL_BUFFER if len(self.parts) > 1 else None
        self._connections.append((_connect_to(stream, sockets, buffer), part))
        if sockets is not None:
            self._owners.append(weakref.ref(sockets))
        if len(self._connections) < len(self.parts):
            return
        layout = _core_layout(getattr(stream, "layout", None) if sockets is None else sockets.layout)
        try:
            outputs = [(client.fileno(), list(part.endpoints)) for client, part in self._connections]
            self.feed = Feed.capture(layout, self._capture, outputs, self.pace)
        finally:
            for client, _ in self._connections:
                client.close()  # the feed has a duplicate
        for reference in self._owners:
            if (owner := reference()) is not None:
                owner.add_feed(self.feed, live=False)


class CapturePart:
    """What one stream receives of a capture.

    Attributes
    ----------
    source
        The capture.
    endpoints
        The endpoints whose datagrams it receives; all, if there are none.
    """

    def __init__(self, source: CaptureSource, endpoints: Sequence[tuple[str, int]]) -> None:
        self.source = source
        self.endpoints = tuple(endpoints)

    def add_to(self, stream: Any, sockets: SocketSet | None) -> None:
        """Let a stream read it. Reading begins once all parts have a stream."""
        self.source._join(self, stream, sockets)


class HandedPackets:
    """Packets that an iterable gives, as what a stream receives.

    Parameters
    ----------
    packets
        SPEAD packets: bytes, or anything with a buffer. A thread takes them one by one, as the stream reads them.
    """

    def __init__(self, packets: Iterable[Any]) -> None:
        self._packets = packets

    def add_to(self, stream: Any, sockets: SocketSet | None) -> None:
        """Let a stream read them. It ends with them."""
        with _connect_to(stream, sockets) as client:
            feed, handing = Feed.handed(None if sockets is None else _core_layout(sockets.layout), client.fileno())
        if sockets is not None:
            sockets.add_feed(feed, live=False)
        # Only the thread has them then, so that a generator ends with it.
        arguments, self._packets = (self._packets, handing), ()
        threading.Thread(target=_hand_over, args=arguments, name="speadrx-packets", daemon=True).start()


def _hand_over(packets: Iterable[Any], handing: Handing) -> None:
    """Hand over packets until there are no more, or nobody takes them any more."""
    try:
        for packet in packets:
            data = packet if isinstance(packet, bytes) else memoryview(packet).tobytes()
            # The core waits for nothing here, for a thread that waits there when Python ends could not end well.
            while not handing.give(data):
                if handing.closed:
                    return
                time.sleep(_ROOM_INTERVAL)
    except Exception as exc:
        logger.exception("sources: there are no more packets, because of an error of what gives them")
        handing.fail(f"sources: {type(exc).__name__}: {exc}")
    finally:
        del handing, packets  # whoever keeps the exception has this frame, and the stream would not end


def _address(host: str) -> str:
    """Write an address in the form that captures have."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        raise ValueError(
            f"endpoints: {host!r} is not an IP address; a capture has no host names and no interfaces"
        ) from None


def mends_packets(layout: Any) -> bool:
    """Whether packets from sockets are mended on their way to streams of a layout."""
    core = _core_layout(layout)
    return core is not None and core.mends_packets


def feed_from_sockets(stream: Any, made: Sequence[socket.socket], sockets: SocketSet) -> None:
    """Let a stream receive from sockets through a thread that mends packets."""
    layout = _core_layout(sockets.layout)
    assert layout is not None
    with _connect_to(stream, sockets) as client:
        sockets.add_feed(Feed.sockets(layout, client.fileno(), [sock.fileno() for sock in made]), live=True)
