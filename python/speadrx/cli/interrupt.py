"""Note Ctrl-C, SIGTERM and SIGHUP, so that a command and the process it has started can finish their work."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


def start_python(code: str) -> subprocess.Popen[bytes]:
    """Run Python code in a process with pipes as its standard input and output.

    Ctrl-C in a terminal goes to all processes there. The new one blocks it, SIGTERM and SIGHUP, as it must end with its
    input.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        command = [sys.executable, "-P", "-c", code]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def interruptible(also: Callable[[], object] = bool) -> Iterator[threading.Event]:
    """Note the first SIGINT, SIGTERM or SIGHUP, which does not end the program; the second does.

    A SIGHUP that the program was told to ignore (by ``nohup``) stays ignored.

    Parameters
    ----------
    also
        What the signal does besides.
    """
    interrupted = threading.Event()
    old: dict[int, Any] = {}

    def restore() -> None:
        for signum, handler in old.items():
            signal.signal(signum, handler)

    def note(signum: int, frame: object) -> None:
        interrupted.set()
        restore()
        also()

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
            old[signum] = signal.signal(signum, note)
    try:
        yield interrupted
    finally:
        restore()
