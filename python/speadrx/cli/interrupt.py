"""Note Ctrl-C and SIGTERM, so that a command can finish its work and print a summary."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


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
