"""Programs that are interrupted in the midst of what they do."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator

from terminals import PATIENCE, piped


@contextlib.contextmanager
def started(*args: str) -> Iterator[subprocess.Popen[str]]:
    """Start the command, and go on once it notes signals, or has ended."""
    with piped(*args) as process:
        deadline = time.monotonic() + PATIENCE
        while not _notes_sigterm(process.pid) and process.poll() is None:
            assert time.monotonic() < deadline, "it notes no signals"
            time.sleep(0.001)
        yield process


def _notes_sigterm(pid: int) -> bool:
    with open(f"/proc/{pid}/status") as file:
        (mask,) = (line.split()[1] for line in file if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> signal.SIGTERM - 1 & 1)
