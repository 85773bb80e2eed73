"""Programs that fork while they receive, each in its own way: `test_forks.py` runs them.

Usage: forking.py PROGRAM. Parent and child check what they see themselves. All is well if the status is 0, and there
are no complaints.
"""

import asyncio
import functools
import gc
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import spead2

import speadrx
from addresses import own_port
from handmade import SMALL, encode, small_heap
from speadrx.metrics.exporter import Exporter

#: Newer versions of Python warn of each fork of a process with threads.
warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)

#: Seconds after which a child that hangs is killed, and those that its parent waits for anything.
PATIENCE = 60

#: What is there to the end.
kept: list[Any] = []

#: Programs by name.
PROGRAMS: dict[str, Callable[[], object]] = {}


def program(function: Callable[[], object]) -> Callable[[], object]:
    PROGRAMS[function.__name__] = function
    return function


def fork(child: Callable[[], object], status: int = 0) -> None:
    """Run a function in a forked child, which then ends as any program does; check its status."""
    pid = os.fork()
    if not pid:
        signal.alarm(PATIENCE)
        child()
        sys.exit(0)
    ended = os.waitpid(pid, 0)[1]
    assert ended == status << 8, f"the child ended with {ended:#x}"


class Sent:
    """A receiver, and all that was sent to it."""

    def __init__(self, sources: Any, **options: Any) -> None:
        self.receiver = speadrx.Receiver(SMALL, sources, **options)
        self.batches = 0

    def send(self, put: Callable[[bytes], object], batches: int) -> None:
        """Send one heap of each batch."""
        for i in range(self.batches, self.batches + batches):
            put(encode(small_heap({0x10: i * SMALL.time.step}), i + 1, 48)[0])
        self.batches += batches

    def check(self, put: Callable[[bytes], object], came: int = 0) -> None:
        """Send more, and check that every heap comes out, other than those that have come out already."""
        present = [came]

        def take() -> None:
            for chunk in self.receiver:
                with chunk:
                    present.append(int(np.sum(chunk.present)))

        thread = threading.Thread(target=take)
        thread.start()
        self.send(put, 40)
        deadline = time.monotonic() + PATIENCE
        while (placed := self.receiver.stats().placed) < self.batches and time.monotonic() < deadline:
            time.sleep(0.01)
        self.receiver.drain()
        thread.join()
        assert placed == sum(present) == self.batches, f"{placed} and {sum(present)} of {self.batches} heaps came"


def over_udp(threads: int = 1) -> tuple[Sent, Callable[[bytes], object]]:
    """A receiver that has started and has received something over UDP, and how to send more."""
    ports = [own_port() for _ in range(threads)]
    sent = Sent([("127.0.0.1", port) for port in ports], threads=threads, window=4)
    sent.receiver.start()
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    out.connect(("127.0.0.1", ports[-1]))
    put = functools.partial(os.write, out.detach())  # open to the end of the process
    sent.send(put, 10)
    return sent, put


def in_process() -> tuple[Sent, Callable[[bytes], object]]:
    """The same in an in-process queue."""
    queue = spead2.InprocQueue()
    sent = Sent(queue, window=4)
    sent.receiver.start()
    sent.send(queue.add_packet, 10)
    return sent, queue.add_packet


def every_kind() -> Iterator[tuple[Sent, Callable[[bytes], object]]]:
    yield over_udp()
    yield over_udp(threads=2)
    yield in_process()


@program
def child_just_ends() -> None:
    for sent, put in every_kind():
        fork(lambda: None)
        fork(lambda: sys.exit(3), status=3)
        sent.check(put)


@program
def child_leaves_blocks() -> None:
    """It ends inside ``with receiver`` and ``with chunk``."""
    for sent, put in every_kind():
        with sent.receiver:
            sent.send(put, 20)
            chunk = next(iter(sent.receiver))
            with chunk:
                came = int(np.sum(chunk.present))
                fork(lambda: None)
            fork(lambda: sys.exit(5), status=5)
            sent.check(put, came)


@program
def child_lets_go() -> None:
    for kind in range(3):
        sent, put = list(every_kind())[kind]

        def let_go() -> None:
            nonlocal sent
            del sent
            gc.collect()

        fork(let_go)
        sent.check(put)


@program
def child_uses_it() -> None:
    """Whatever it does with its parent's receiver, it is told, or nothing happens."""
    for sent, put in every_kind():
        receiver = sent.receiver
        chunks = iter(receiver)
        uses: list[Callable[[], object]] = [
            receiver.start,
            receiver.flush,
            receiver.drain,
            receiver.stats,
            receiver.stream.flush,
            receiver.stream.drain,
            functools.partial(next, chunks),
            functools.partial(list, receiver),
            functools.partial(loop_in_task, receiver),
            functools.partial(speadrx.iter_chunks, receiver.stream),
        ]
        fork(functools.partial(use_in_vain, receiver, uses))
        sent.check(put)


def loop_in_task(receiver: speadrx.Receiver) -> None:
    async def take() -> None:
        async for _ in receiver:
            pass

    asyncio.run(take())


def use_in_vain(receiver: speadrx.Receiver, uses: list[Callable[[], object]]) -> None:
    for use in uses:
        try:
            use()
            said = "nothing"
        except RuntimeError as exc:
            said = str(exc)
        assert said.startswith(f"stream: belongs to process {os.getppid()},"), (use, said)
    receiver.stop()
    receiver.stream.stop()


@program
def child_while_a_thread_waits() -> None:
    """A thread of the parent waits in the loop, with the locks that this takes, and the child comes to the same."""
    sent, put = over_udp()
    seen = []

    def take() -> None:
        for chunk in sent.receiver:
            with chunk:
                seen.append(int(np.sum(chunk.present)))

    thread = threading.Thread(target=take)
    thread.start()
    for _ in range(20):
        fork(lambda: None)
        sent.send(put, 4)
    sent.receiver.drain()
    thread.join()
    assert sum(seen) == sent.batches, (sum(seen), sent.batches)


@program
def child_receives() -> None:
    """It makes a receiver of its own, which is flushed after silence, and so does its own child."""
    sent, put = over_udp()

    def receive() -> None:
        own, _put = over_udp()
        own.receiver.stop()
        queue = spead2.InprocQueue()
        own = Sent(queue, window=4, flush_after=0.05)
        own.receiver.start()
        own.send(queue.add_packet, 12)  # whole chunks: what is flushed is finished
        seen = 0
        for chunk in own.receiver:
            with chunk:
                seen += int(np.sum(chunk.present))
            if seen == 12:
                break
        if os.getppid() == parent:
            fork(receive)
        own.check(queue.add_packet, seen)
        kept.append(over_udp())  # it ends while this receives

    parent = os.getpid()
    fork(receive)
    sent.check(put)


def receive_in_pool(n: int) -> int:
    sent, put = in_process()
    sent.check(put)
    return n * sent.batches


@program
def multiprocessing_by_fork() -> None:
    """Before there is a receiver, and after."""
    context = multiprocessing.get_context("fork")
    for _ in range(2):
        with context.Pool(2) as pool:
            assert pool.map(receive_in_pool, [1, 2, 3]) == [50, 100, 150]
        process = context.Process(target=receive_in_pool, args=(1,))
        process.start()
        process.join(PATIENCE)
        assert process.exitcode == 0
        sent, put = over_udp()
        sent.check(put)


@program
def child_holds_no_port() -> None:
    """The parent stops while its child lives, and the port is free."""
    port = own_port()
    receiver = speadrx.Receiver(SMALL, ("127.0.0.1", port))
    receiver.start()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    pid = os.fork()
    if not pid:
        signal.alarm(PATIENCE)
        signal.sigwait([signal.SIGUSR1])
        sys.exit(0)
    time.sleep(0.2)  # for the child to begin; it ends as it should in any case
    receiver.stop()
    with speadrx.Receiver(SMALL, ("127.0.0.1", port)):
        os.kill(pid, signal.SIGUSR1)
        assert os.waitpid(pid, 0)[1] == 0


@program
def child_leaves_metrics() -> None:
    """Parent and child both leave the blocks of an exporter and a receiver whose metrics are served."""
    queue = spead2.InprocQueue()
    with Exporter() as exporter:
        ports = [exporter.serve(0)]
        sent = Sent(queue, window=4, metrics_port=0)
        with sent.receiver:
            assert sent.receiver.metrics_port is not None
            ports.append(sent.receiver.metrics_port)
            exporter.add(sent.receiver.stream)
            parent = os.getpid()
            pid = os.fork()
            if not pid:
                signal.alarm(PATIENCE)
        if os.getpid() == parent:
            assert os.waitpid(pid, 0)[1] == 0
            with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/metrics") as reply:
                assert b"speadrx_heaps_placed" in reply.read()
    if os.getpid() != parent:
        sys.exit(0)
    for port in ports:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections are remembered for a while
            sock.bind(("127.0.0.1", port))


@program
def programs_hold_no_port() -> None:
    """The same for a program that is started with all descriptors that may be inherited."""
    for group in (False, True):
        ports = [own_port() for _ in range(3)]
        receiver = speadrx.Receiver(SMALL, [("127.0.0.1", port) for port in ports], threads=1 + group)
        receiver.start()
        stream = speadrx.make_stream(
            layout=SMALL,
            max_active_chunks=2,
            data_ringbuffer=spead2.recv.ChunkRingbuffer(4),
            free_ringbuffer=spead2.recv.ChunkRingbuffer(4),
            explicit_start=True,
        )
        deferred = own_port()
        speadrx.add_reader(stream, src=[("127.0.0.1", deferred)])
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
        receiver.stop()
        stream.stop()
        with speadrx.Receiver(SMALL, [("127.0.0.1", port) for port in [*ports, deferred]]):
            child.communicate()
        held = [fd for fd in os.listdir("/proc/self/fd") if _is_inherited_socket(int(fd))]
        assert not held, held


@program
def programs_hold_no_connection() -> None:
    """The same for what is between the core and spead2, where packets are handed over or mended."""
    mended = speadrx.Layout(heap_bytes=8, time=SMALL.time, packets=speadrx.Packets(heap_length="payload"))
    waiting = threading.Event()

    def packets() -> Iterator[bytes]:
        yield b""
        waiting.wait()

    for source in (packets(), ("127.0.0.1", own_port())):
        receiver = speadrx.Receiver(mended, source)
        receiver.start()
        held = [fd for fd in os.listdir("/proc/self/fd") if _is_inherited_socket(int(fd))]
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
        sockets = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{child.pid}/fd")]
        receiver.stop()
        child.communicate()
        assert not held, held
        assert not [name for name in sockets if name.startswith("socket")], sockets
    waiting.set()


def _is_inherited_socket(fd: int) -> bool:
    try:
        return os.get_inheritable(fd) and os.readlink(f"/proc/self/fd/{fd}").startswith("socket")
    except OSError:
        return False


if __name__ == "__main__":
    PROGRAMS[sys.argv[1]]()
