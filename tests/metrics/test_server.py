"""The server of the metrics: whatever clients do, scrapes are answered, and the process keeps its descriptors."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ipaddress
import os
import pathlib
import re
import resource
import selectors
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest
import spead2
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import GaugeMetricFamily
from speadrx.collectors import Exporter

import speadrx
from handmade import SMALL
from loopback import wait_for
from speadrx.metrics import server as module
from speadrx.metrics.server import MetricsServer

PATIENCE = 60.0
GET = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    registry = CollectorRegistry()
    Gauge("answer", "The answer", registry=registry).set(42)
    with contextlib.closing(MetricsServer(registry, 0, "127.0.0.1")) as server:
        yield server


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def ask(port: int, request: bytes) -> bytes:
    """Send something, and read all that comes back; nothing if the connection is reset."""
    with connect(port) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(request)
        return b"".join(iter(lambda: sock.recv(65536), b""))
    return b""


def scrape(port: int, host: str = "127.0.0.1") -> str:
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=PATIENCE) as reply:
        return str(reply.read(), "ascii")


def listens_on(port: int) -> set[str]:
    """Addresses on which anybody on this machine listens on a port, as the kernel tells them."""
    found = set()
    for family in ("tcp", "tcp6"):
        for line in pathlib.Path("/proc/net", family).read_text("ascii").splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, _, number = local.partition(":")
            if state == "0A" and int(number, 16) == port:
                words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
                found.add(str(ipaddress.ip_address(b"".join(words))))
    return found


class TestAddress:
    def test_receiver(self):
        """By default, nobody else can reach it; with another address, just that."""
        for address in (None, "127.0.0.2", "::1", "0.0.0.0", "::"):
            given = {} if address is None else {"metrics_address": address}
            with speadrx.Receiver(SMALL, spead2.InprocQueue(), metrics_port=0, **given) as receiver:
                assert listens_on(receiver.metrics_port) == {address or "127.0.0.1"}

    def test_exporter(self):
        with Exporter() as exporter:
            assert listens_on(exporter.serve(0)) == {"127.0.0.1"}
            assert listens_on(exporter.serve(0, "::1")) == {"::1"}

    def test_ipv6(self):
        with Exporter() as exporter:
            assert "speadrx" in scrape(exporter.serve(0, "::1"), "[::1]")

    def test_no_name_server_is_asked(self, monkeypatch):
        """It may take long to answer, if it ever does."""

        def ask(*_):
            raise AssertionError("asked for a name")

        for function in ("getfqdn", "gethostbyaddr", "gethostname"):
            monkeypatch.setattr(socket, function, ask)
        with Exporter() as exporter:
            for address in ("127.0.0.1", "0.0.0.0", "::1"):
                assert exporter.serve(0, address) > 0

    def test_not_ours(self):
        receiver = speadrx.Receiver(SMALL, spead2.InprocQueue(), metrics_port=0, metrics_address="203.0.113.9")
        with pytest.raises(OSError, match=r"metrics_address: cannot serve on '203\.0\.113\.9': Cannot assign"):
            receiver.start()


class TestRequests:
    def test_reply(self, server):
        head, _, body = ask(server.port, GET).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.0 200 OK\r\n")
        assert b"\nanswer 42.0\n" in body
        length = re.search(rb"Content-Length: (\d+)", head)
        assert length is not None
        assert int(length[1]) == len(body)

    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            (b"\r\n\r\n", b""),
            (b"GET\r\n\r\n", b"400"),
            (b"GET /metrics HTTP/9.9\r\n\r\n", b"505"),
            (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400"),  # such as a browser that wants HTTPS
            (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\n", b"405"),
            (b"GET /?name[]=nothing HTTP/1.1\r\n\r\n", b"200"),
            (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 200 + b"\r\n", b"431"),
            (b"GET / HTTP/1.1\r\nContent-Length: many\r\nHost: \xff\r\n:\r\n\r\n", b"200"),
        ],
    )
    def test_odd_requests(self, server, request_, status):
        """Each has its answer, if any, and nothing is any different for the next client."""
        reply = ask(server.port, request_)
        assert status in reply
        assert bool(reply) == bool(status)
        assert "answer 42.0" in scrape(server.port)

    def test_request_in_pieces(self, server):
        with connect(server.port) as sock:
            for byte in GET:
                sock.sendall(bytes([byte]))
            assert sock.recv(15) == b"HTTP/1.0 200 OK"

    def test_request_without_end(self, server, monkeypatch):
        """It is cut off, and so is one that ends too early."""
        monkeypatch.setattr(module, "REQUEST_SECONDS", 10 * PATIENCE)
        assert ask(server.port, GET[:-2] + b"x: y\r\n" * 10_000) == b""
        with connect(server.port) as sock:
            sock.sendall(GET[:-2])
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""

    def test_time_for_a_request(self, server, monkeypatch):
        monkeypatch.setattr(module, "REQUEST_SECONDS", 0.05)
        assert ask(server.port, GET[:-2]) == b""

    def test_time_for_a_reply(self, monkeypatch):
        monkeypatch.setattr(module, "REPLY_SECONDS", 0.05)
        asked = threading.Event()

        class Large:
            def collect(self):
                asked.set()
                yield GaugeMetricFamily("large", "x" * (32 << 20), value=1)

        registry = CollectorRegistry()
        registry.register(Large())
        asked.clear()
        with contextlib.closing(MetricsServer(registry, 0, "127.0.0.1")) as server, connect(server.port) as sock:
            sock.sendall(GET)
            assert asked.wait(PATIENCE)
            wait_for(lambda: not server._clients)
            with contextlib.suppress(ConnectionError):
                while sock.recv(1 << 20):
                    pass

    def test_error_in_a_collector(self, capfd):
        class Broken:
            def collect(self):
                raise RuntimeError("broken collector")

        registry = CollectorRegistry(auto_describe=False)
        registry._collector_to_names[Broken()] = []  # `register` would collect at once
        with contextlib.closing(MetricsServer(registry, 0, "127.0.0.1")) as server:
            for _ in range(2):
                assert ask(server.port, GET).startswith(b"HTTP/1.0 500 ")
        assert "broken collector" in capfd.readouterr().err


class TestClients:
    def test_waiting_room(self, server, monkeypatch):
        """Those that keep the server waiting have to go when others come, the first one first; not before."""
        monkeypatch.setattr(module, "MAX_CLIENTS", 2)
        monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.01)
        with connect(server.port) as first, connect(server.port) as second:
            wait_for(lambda: len(server._clients) == 2)
            time.sleep(0.1)  # many times the patience, but nobody else has come
            assert len(server._clients) == 2
            assert "answer 42.0" in scrape(server.port)
            assert first.recv(1) == b""
            second.sendall(GET)
            assert second.recv(15) == b"HTTP/1.0 200 OK"

    def test_server_is_slow(self, monkeypatch):
        """It is not the fault of those whose requests it has not yet looked at."""
        monkeypatch.setattr(module, "MAX_CLIENTS", 4)
        collecting, may_go_on = threading.Event(), threading.Event()

        class Waiting:
            def collect(self):
                collecting.set()
                assert may_go_on.wait(PATIENCE)
                return []

        registry = CollectorRegistry()
        registry._collector_to_names[Waiting()] = []  # `register` would collect at once
        with contextlib.closing(MetricsServer(registry, 0, "127.0.0.1")) as server, contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connect(server.port)) for _ in range(4)]
            wait_for(lambda: len(server._clients) == 4)
            socks[0].sendall(GET)
            assert collecting.wait(PATIENCE)
            monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.0)
            socks += [stack.enter_context(connect(server.port)) for _ in range(8)]
            for sock in socks[1:]:
                sock.sendall(GET)
            may_go_on.set()
            for sock in socks:
                assert sock.recv(15) == b"HTTP/1.0 200 OK"

    def test_requests_at_once(self, monkeypatch):
        """They share a page; a page from before a client has come is not for it."""
        made = []

        class Counting:
            def collect(self):
                made.append(1)
                return []

        registry = CollectorRegistry()
        registry.register(Counting())
        with contextlib.closing(MetricsServer(registry, 0, "127.0.0.1")) as server, contextlib.ExitStack() as stack:
            made.clear()
            socks = [stack.enter_context(connect(server.port)) for _ in range(8)]
            wait_for(lambda: len(server._clients) == 8)
            for sock in socks:
                sock.sendall(GET)
                assert sock.recv(15) == b"HTTP/1.0 200 OK"
            assert len(made) == 1
            for n in (2, 3):
                ask(server.port, GET)
                assert len(made) == n
            with connect(server.port) as sock:
                wait_for(lambda: server._clients)
                ask(server.port, GET.replace(b"here", b"there"))
                sock.sendall(GET)
                assert sock.recv(15) == b"HTTP/1.0 200 OK"
                assert len(made) == 5

    def test_client_that_comes_in_the_moment_of_the_end(self, server, monkeypatch):
        """It is closed like all others."""
        accepted = []
        accept = socket.socket.accept

        def accept_last(listener):
            client, address = accept(listener)
            accepted.append(client)
            server._loop.call_soon(server._task.cancel)  # as `close` does
            return client, address

        monkeypatch.setattr(socket.socket, "accept", accept_last)
        with connect(server.port) as sock:
            assert sock.recv(1) == b""
        server.close()
        assert [client.fileno() for client in accepted] == [-1]

    def test_close(self, server):
        """It waits for nobody, and leaves nothing behind."""
        before = len(os.listdir("/proc/self/fd"))
        with connect(server.port) as idle, connect(server.port) as half:
            half.sendall(GET[:-2])
            wait_for(lambda: len(server._clients) == 2)
            server.close()
            assert (idle.recv(1), half.recv(1)) == (b"", b"")
        assert not server._thread.is_alive()
        assert len(os.listdir("/proc/self/fd")) < before
        with pytest.raises(ConnectionRefusedError):
            connect(server.port)
        server.close()


#: Forks a child that lives as long as it does, and serves again on the same port when it is told to.
FORKING = """
import os, sys
import speadrx
from speadrx.collectors import Exporter

exporter = Exporter()
port = exporter.serve(0)
end, kept_open = os.pipe()
if os.fork() == 0:
    os.close(1)
    os.close(kept_open)
    os.read(end, 1)
    exporter.close()
    os._exit(0)
print(port, flush=True)
sys.stdin.readline()
exporter.close()
Exporter().serve(port)
print("serves again", flush=True)
sys.stdin.read()
"""


@pytest.mark.timeout(30)
def test_forked_child():
    """It serves nobody, and keeps neither the port nor the connections."""
    with subprocess.Popen(
        [sys.executable, "-c", FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(process.stdout.readline())
        assert "HTTP/1.0 200 OK" in str(ask(port, GET), "ascii")
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "serves again\n"
        assert "HTTP/1.0 200 OK" in str(ask(port, GET), "ascii")
        process.stdin.close()
        assert process.wait(PATIENCE) == 0


#: Receives with few descriptors. For each line of input it sends itself so many chunks, and says what came out.
PROGRAM = """
import asyncio, resource, struct, sys, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
import spead2, speadrx
SOURCES = 1000  # so that a page of metrics is large
layout = speadrx.Layout(
    heap_bytes=8,
    time=speadrx.TimeAxis(item=0x1600, step=1, batches=4),
    axes=(speadrx.Axis(name="antenna", item=0x4101, size=SOURCES),),
    sources="antenna",
)
queue = spead2.InprocQueue()
receiver = speadrx.Receiver(layout, queue, metrics_port=0, window=2)
time = 0

def heap(time, antenna):
    items = [(1, time * SOURCES + antenna + 1), (2, 8), (3, 0), (4, 8), (0x1600, time), (0x4101, antenna)]
    head = struct.pack(">BBBBHH", 0x53, 4, 2, 6, 0, len(items))
    return head + b"".join(struct.pack(">Q", 1 << 63 | i << 48 | v) for i, v in items) + bytes(8)

def send(chunks):
    global time
    for time in range(time, time + 4 * chunks):
        for antenna in range(0, SOURCES, 100):
            queue.add_packet(heap(time, antenna))
    time += 1

async def main():
    receiver.start()
    print(receiver.metrics_port, flush=True)
    loop = asyncio.get_running_loop()
    send(2)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        send(int(line))
        present = n = 0
        async for chunk in receiver:
            with chunk:
                present += int(chunk.present.sum())
                n += 1
            if n == int(line):
                break
        print(n, present, flush=True)

asyncio.run(main())
"""


@contextlib.contextmanager
def attack(port: int, clients: int, act: Callable[[socket.socket], object], often: bool) -> Iterator[None]:
    """Connect so many clients, and let each act once, or again and again."""
    done = threading.Event()

    def run() -> None:
        with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
            for _ in range(clients):
                sock = stack.enter_context(socket.socket())
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", port))
                selector.register(sock, selectors.EVENT_WRITE)
            begun.wait()
            while not done.is_set():
                for key, _ in selector.select(0.1):
                    try:
                        act(key.fileobj)
                    except BlockingIOError:
                        continue
                    except OSError:  # it was thrown out
                        selector.unregister(key.fileobj)
                        continue
                    if not often:
                        selector.unregister(key.fileobj)
                done.wait(1 if often else 0.01)

    begun = threading.Barrier(2)
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        running = executor.submit(run)
        begun.wait()
        try:
            yield
        finally:
            done.set()
        running.result()


class Slow:
    """Sends a byte of a request that never ends at a time."""

    def __init__(self) -> None:
        self._sent: dict[socket.socket, int] = {}

    def __call__(self, sock: socket.socket) -> None:
        text = GET[:-2] + b"x: y\r\n" * 1000
        n = self._sent[sock] = self._sent.get(sock, -1) + 1
        sock.send(text[n : n + 1])


class Reader:
    """Asks, and then reads the reply byte by byte."""

    def __init__(self) -> None:
        self._asked: set[socket.socket] = set()

    def __call__(self, sock: socket.socket) -> None:
        if sock not in self._asked:
            sock.send(GET)
            self._asked.add(sock)
        elif not sock.recv(1):
            raise ConnectionError


ATTACKS: dict[str, tuple[int, Callable[[], Callable[[socket.socket], object]], bool]] = {
    "idle": (500, lambda: lambda sock: None, False),
    "half a request": (500, lambda: lambda sock: sock.send(GET[:-2]), False),
    "a byte a second": (100, Slow, True),
    "reads a byte a second": (100, Reader, True),
    "endless headers": (100, lambda: lambda sock: sock.send(b"x: y\r\n" * 1000), True),
}


@pytest.fixture(scope="module")
def enough_descriptors() -> Iterator[None]:
    """Clients take more than the process usually has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2048)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Receiving:
    """A receiver with few descriptors, in a process of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.chunks = 0

    def check(self) -> None:
        """All that is sent comes out of `async for`, and a scrape says so."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("20\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == f"20 {20 * 4 * 10}\n"
        self.chunks += 20
        page = scrape(self.port)
        assert f"\nspeadrx_chunks_total {self.chunks:.1f}\n" in page
        assert page.count("\nspeadrx_heaps_placed_total{") == 1000

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            assert self.process.wait(PATIENCE) == 0
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()


@pytest.fixture
def receiving(enough_descriptors) -> Iterator[Receiving]:
    receiving = Receiving()
    yield receiving
    receiving.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ATTACKS)
def test_attacks(receiving, kind):
    """With 128 descriptors, `async for` and scrapes are what they are without these clients."""
    clients, make, often = ATTACKS[kind]
    receiving.check()
    with attack(receiving.port, clients, make(), often):
        for _ in range(3):
            receiving.check()
    receiving.check()


def read_all(socks: list[socket.socket]) -> list[bytes]:
    """Read all that comes on each connection."""
    pages = {sock: bytearray() for sock in socks}
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            selector.register(sock, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(PATIENCE)
            assert ready
            for key, _ in ready:
                data = key.fileobj.recv(1 << 20)
                pages[key.fileobj] += data
                if not data:
                    selector.unregister(key.fileobj)
    return list(map(bytes, pages.values()))


@pytest.mark.slow
def test_many_scrapes(receiving):
    """A hundred at once, and all of them get all of it, three times."""
    receiving.check()
    for _ in range(3):
        with contextlib.ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(1) as executor:
            socks = [stack.enter_context(connect(receiving.port)) for _ in range(100)]
            for sock in socks:
                sock.sendall(GET)
            reading = executor.submit(read_all, socks)
            receiving.check()
            for reply in reading.result():
                head, _, page = reply.partition(b"\r\n\r\n")
                assert f"\r\nContent-Length: {len(page)}" in str(head, "ascii")
                assert page.count(b"\nspeadrx_heaps_placed_total{") == 1000
