"""Note Ctrl-C and SIGTERM, so that a command and the process it has started can finish their work."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any


def start_python(code: str) -> subprocess.Popen[bytes]:
    """Run Python code in a process with pipes as its standard input and output.

    Ctrl-C in a terminal goes to all processes there. The new one blocks it and SIGTERM: it must end with its input.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        command = [sys.executable, "-P", "-c", code]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Note the first SIGINT or SIGTERM, which does not end the program; the second does."""
    interrupted = threading.Event()
    old: dict[int, Any] = {}

    def restore() -> None:
        for signum, handler in old.items():
            signal.signal(signum, handler)

    def note(signum: int, frame: object) -> None:
        interrupted.set()
        restore()

    for signum in (signal.SIGINT, signal.SIGTERM):
        old[signum] = signal.signal(signum, note)
    try:
        yield interrupted
    finally:
        restore()
