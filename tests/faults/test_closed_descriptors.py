"""Programs that close all descriptors while they receive, as to become a daemon: they end, and are told why."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from addresses import own_port

#: A program that closes all descriptors but three in the midst of reception, and then does what its argument says.
CLOSES = """
import os, sys, threading
import speadrx
from handmade import SMALL

def run(rx):
    for chunk in rx:
        chunk.recycle()

what, source = sys.argv[1], sys.argv[2]
rx = speadrx.Receiver(SMALL, source)
rx.start()
if what == "loop":
    threading.Timer(0.2, os.closerange, (3, 4096)).start()
    run(rx)
os.closerange(3, 4096)
if what == "reused":
    kept = [open(os.devnull) for _ in range(64)]
if what in ("stop", "reused"):
    rx.stop()
if what == "drain":
    rx.drain()
if what == "later loop":
    run(rx)
if what == "del":
    del rx
print("at its end", flush=True)
"""
WORDS = "stream: another part of this program has closed its descriptors (as os.closerange does)"


@pytest.mark.parametrize(
    ("what", "status"),
    [("end", 0), ("del", 0), ("stop", 1), ("reused", 1), ("drain", 1), ("loop", 1), ("later loop", 1)],
)
def test_it_ends_and_is_told(what, status) -> None:
    """It would wait for ever for network threads that nothing wakes any more."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CLOSES, what, f"127.0.0.1:{own_port()}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, WORDS in done.stderr) == (status, True), done.stderr
    assert ("at its end" in done.stdout) == (status == 0)
    if status:
        assert f"RuntimeError: {WORDS}" in done.stderr
