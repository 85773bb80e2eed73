"""A pipe that falls silent: whoever waits for more of a capture can be interrupted, and has what came."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator

import pytest

from loopback import wait_for
from speadrx import Layout, Receiver, TimeAxis
from speadrx.survey.capture import read_datagrams
from terminals import HEEDING, piped
from wire import heap, write_capture

PATIENCE = 60


@pytest.fixture
def content(tmp_path: pathlib.Path) -> bytes:
    """A capture of three packets of 8 bytes."""
    packets = [one for n in range(3) for one in heap(n + 1, [(0x1600, 16 * n), (0x3300, None)], bytes(8))]
    return pathlib.Path(write_capture(tmp_path / "whole", packets)).read_bytes()


@pytest.fixture
def pipe(tmp_path: pathlib.Path) -> Iterator[tuple[str, int]]:
    """A pipe, and a descriptor of it that is open to write; neither end waits for the other."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    end = os.open(path, os.O_RDWR)
    yield str(path), end
    os.close(end)


def give(end: int, data: bytes) -> None:
    """Write into a pipe, and wait until all of it was taken."""
    os.write(end, data)
    wait_for(lambda: struct.unpack("i", fcntl.ioctl(end, termios.FIONREAD, bytes(4))) == (0,))


def pieces_of(content: bytes, kind: str) -> tuple[list[bytes], int]:
    """The pieces that are written, and how many packets are whole in them.

    The first is what opens a capture. Whoever has taken the second is about to wait for more.
    """
    size = (len(content) - 24) // 3
    return {
        "header": ([content[:4], content[4:24]], 0),
        "packets": ([content[:24], content[24:]], 3),
        "half a packet": ([content[:24], content[24 : -size // 2]], 2),
        "gzip": ([gzip.compress(content[:24]), gzip.compress(content[24:])], 3),
    }[kind]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["header", "packets", "half a packet", "gzip"])
def test_inspect_ends_with_what_came(pipe: tuple[str, int], content: bytes, kind: str, signum: int) -> None:
    path, end = pipe
    pieces, packets = pieces_of(content, kind)
    with piped("inspect", path, "--json") as process:
        for piece in pieces:
            give(end, piece)
        process.send_signal(signum)  # one is enough, though nobody writes and nobody closes the pipe
        output, errors = process.communicate(timeout=PATIENCE)
    found = json.loads(output)
    assert (found["packets"], found["interrupted"]) == (packets, True)
    assert found["truncated"] == (kind == "half a packet")
    assert process.returncode == (0 if packets else 1), errors


@pytest.mark.parametrize("kind", ["packets", "gzip"])
def test_a_program_hears_signals(pipe: tuple[str, int], content: bytes, kind: str) -> None:
    """Ctrl-C raises KeyboardInterrupt in a loop over datagrams that waits for more."""
    path, end = pipe
    program = (
        "import sys, speadrx.survey\n"
        "try:\n"
        f"    for datagram in speadrx.survey.capture.read_datagrams({path!r}):\n"
        "        print(datagram.length, flush=True)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", HEEDING, sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for piece in pieces_of(content, kind)[0]:
            os.write(end, piece)
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "interrupted\n"
        assert process.wait(PATIENCE) == 0
    assert lines == ["64\n"] * 3


def test_another_thread_ends_it(pipe: tuple[str, int], content: bytes) -> None:
    path, end = pipe
    os.write(end, content)
    lengths: list[int] = []
    with read_datagrams(path) as capture:
        reader = threading.Thread(target=lambda: lengths.extend(datagram.length for datagram in capture))
        reader.start()
        wait_for(lambda: capture.position == len(content))
        capture.end()
        reader.join(PATIENCE)
        assert lengths == [64] * 3


def test_a_receiver_is_closed_at_once(pipe: tuple[str, int], content: bytes) -> None:
    """It keeps the packets that came, and no thread waits for more."""
    path, end = pipe
    os.write(end, content)
    layout = Layout(heap_bytes=8, time=TimeAxis(item=0x1600, step=16, batches=4))
    with Receiver(layout, path) as receiver:
        receiver.start()
        wait_for(lambda: receiver.stats().placed == 3)
        receiver.drain()
        assert sum(int(chunk.present.sum()) for chunk in receiver) == 3
        feeds = [feed for sockets in receiver.stream._socket_sets for feed in sockets.feeds]
    wait_for(lambda: all(feed.ended for feed in feeds))


@pytest.mark.parametrize("kind", ["packets", "gzip"])
def test_a_signal_handler_closes_it(pipe: tuple[str, int], content: bytes, kind: str) -> None:
    """It runs in the thread that waits, which must not wait for itself."""
    path, end = pipe
    program = (
        "import signal, speadrx.survey\n"
        f"capture = speadrx.survey.capture.read_datagrams({path!r})\n"
        "signal.signal(signal.SIGUSR1, lambda *_: capture.close())\n"
        "for datagram in capture:\n"
        "    print(datagram.length, flush=True)\n"
        "print('closed')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", HEEDING, sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for piece in pieces_of(content, kind)[0]:
            os.write(end, piece)
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGUSR1)
        try:
            assert process.communicate(timeout=PATIENCE)[0] == "closed\n"
        finally:
            process.kill()
    assert lines == ["64\n"] * 3
