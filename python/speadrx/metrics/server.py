"""`MetricsServer`: serves metrics over HTTP to few clients at a time, and to none for long."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import select
import socket
import socketserver
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

#: Clients that are served at a time. Each takes a descriptor; others wait in the kernel, where they take none.
MAX_CLIENTS = 32
#: Seconds that a client has for its request, and then for taking the reply. Servers of Prometheus wait for 10 seconds.
REQUEST_SECONDS = 5.0
REPLY_SECONDS = 30.0
#: Seconds that a client may make the server wait while others find no room.
PATIENCE_SECONDS = 0.2

_MAX_REQUEST_BYTES = 16384
_PIECE_BYTES = 65536
_WAITING_CLIENTS = 1024


class _Exchange(WSGIRequestHandler):
    """Reads a request from bytes, and writes the reply into bytes, so that no client can keep it waiting."""

    def setup(self) -> None:
        request, _ = self.request
        self.reply = io.BytesIO()
        self.rfile, self.wfile = io.BytesIO(request), self.reply

    def finish(self) -> None:
        pass

    def log_message(self, *args: Any) -> None:
        pass


class _Listener(WSGIServer):
    request_queue_size = _WAITING_CLIENTS

    def __init__(self, addr: str, port: int) -> None:
        self.address_family, _, _, _, address = socket.getaddrinfo(
            addr, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        super().__init__(address, _Exchange)  # type: ignore[arg-type]  # IPv6 addresses have more than two parts
        self.socket.setblocking(False)

    def server_bind(self) -> None:
        # Without the name of the address, which may take a name server long to find.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.socket.getsockname()[:2]
        self.setup_environ()


@dataclass(eq=False)
class _Client:
    sock: socket.socket
    address: Any
    #: What the server waits for, and since when.
    event: int
    since: float
    #: Serves it.
    task: asyncio.Task[None] | None = None


@dataclass(eq=False)
class _Reply:
    request: bytes
    #: When it was begun to be made.
    begun: float
    content: memoryview


class MetricsServer:
    """Serve a registry over HTTP, from one thread, until `close`.

    prometheus_client's own server takes any number of clients for any time, each with a thread and a descriptor.

    Parameters
    ----------
    registry
        What is served.
    port
        TCP port; 0 for any free port.
    addr
        Address to listen on.

    Raises
    ------
    OSError
        If it cannot listen on the port and address.
    """

    #: The TCP port.
    port: int

    def __init__(self, registry: CollectorRegistry, port: int, addr: str) -> None:
        self._listener = _Listener(addr, port)
        self._listener.set_app(make_wsgi_app(registry))
        self.port = self._listener.server_port
        self._clients: set[_Client] = set()
        self._last: _Reply | None = None
        try:
            # Whatever event loop the user prefers elsewhere.
            self._loop = asyncio.SelectorEventLoop()
        except BaseException:
            self._listener.server_close()
            raise
        _servers.add(self)
        self._task = self._loop.create_task(self._serve())
        self._thread = threading.Thread(target=self._run, name="speadrx-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close all connections, and end the thread. It may be called again, but not by the thread itself."""
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    def _let_go(self) -> None:
        # Not through the event loop: what it changes in the kernel belongs to both processes.
        self._listener.server_close()
        for client in self._clients:
            client.sock.close()

    def _run(self) -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._task)
        finally:
            self._listener.server_close()
            self._loop.close()

    async def _serve(self) -> None:
        try:
            while True:
                await self._make_room()
                try:
                    await self._knock()
                    sock, address = self._listener.socket.accept()
                except BlockingIOError:  # it has gone away again
                    continue
                except OSError:  # most likely, the process has no descriptor left
                    await asyncio.sleep(PATIENCE_SECONDS)
                else:
                    sock.setblocking(False)
                    self._admit(_Client(sock, address, select.POLLIN, time.monotonic()))
        finally:
            for task in self._tasks():
                task.cancel()
            await asyncio.gather(*self._tasks(), return_exceptions=True)

    async def _knock(self) -> None:
        """Wait until a client wants to be accepted.

        The loop's own `sock_accept` forgets a client that it accepts in the moment in which it is cancelled.
        """
        knocked = self._loop.create_future()

        def note() -> None:
            if not knocked.done():
                knocked.set_result(None)

        self._loop.add_reader(self._listener, note)
        try:
            await knocked
        finally:
            self._loop.remove_reader(self._listener)

    def _admit(self, client: _Client) -> None:
        self._clients.add(client)
        client.task = self._loop.create_task(self._attend(client))
        client.task.add_done_callback(lambda _: self._dismiss(client))

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [client.task for client in self._clients if client.task is not None]

    def _dismiss(self, client: _Client) -> None:
        client.sock.close()
        self._clients.discard(client)

    async def _attend(self, client: _Client) -> None:
        with contextlib.suppress(OSError, TimeoutError):  # it has gone away, or is too slow
            async with asyncio.timeout(REQUEST_SECONDS):
                request = await self._request(client)
            if request is None:
                return
            reply = self._reply(client, request)
            async with asyncio.timeout(REPLY_SECONDS):
                for start in range(0, len(reply), _PIECE_BYTES):
                    client.event, client.since = select.POLLOUT, time.monotonic()
                    await self._loop.sock_sendall(client.sock, reply[start : start + _PIECE_BYTES])

    async def _request(self, client: _Client) -> bytes | None:
        """Read a request up to the empty line. None if it is too long, or ends before."""
        request = bytearray()
        while b"\r\n\r\n" not in request and b"\n\n" not in request:
            data = await self._loop.sock_recv(client.sock, 4096)
            request += data
            if not data or len(request) > _MAX_REQUEST_BYTES:
                return None
        return bytes(request)

    def _reply(self, client: _Client, request: bytes) -> memoryview:
        """Make the reply, or take the last one if it was made for the same request, since the client came.

        So what many scrapes at once cost is what one costs.
        """
        if self._last is None or self._last.request != request or self._last.begun < client.since:
            begun = time.monotonic()
            exchange = _Exchange((request, client.sock), client.address, self._listener)
            self._last = _Reply(request, begun, exchange.reply.getbuffer())
        return self._last.content

    async def _make_room(self) -> None:
        """Wait for room for another client. If one waits, the slowest may have to go."""
        while len(self._clients) >= MAX_CLIENTS:
            if (client := self._slowest()) is not None and client.task is not None:
                await asyncio.sleep(0)  # its task may be about to learn that it was quick
                if self._slowest() is client:
                    client.task.cancel()
            await asyncio.wait(self._tasks(), timeout=PATIENCE_SECONDS / 10, return_when=asyncio.FIRST_COMPLETED)

    def _slowest(self) -> _Client | None:
        """The client that has kept the server waiting longest, if another one waits for room."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        for client in self._clients:
            poll.register(client.sock, client.event)
        ready = {descriptor for descriptor, _ in poll.poll(0)}
        if self._listener.fileno() not in ready:
            return None
        # One whose request is there, and just was not read yet, is not slow: the server is.
        latest = time.monotonic() - PATIENCE_SECONDS
        slow = [each for each in self._clients if each.since <= latest and each.sock.fileno() not in ready]
        return min(slow, key=lambda client: client.since, default=None)


_servers: weakref.WeakSet[MetricsServer] = weakref.WeakSet()


def _forked() -> None:
    """Close the sockets in a forked child, which has no thread to serve them and may outlive its parent."""
    for server in list(_servers):
        server._let_go()


os.register_at_fork(after_in_child=_forked)
