"""The loss figure of the commands is that of what was left out, and the same wherever it is shown."""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
import spead2

pytest.importorskip("click")
pytest.importorskip("rich")

from speadrx.history import History

from handmade import Heap, encode
from simulated import layout  # noqa: F401
from speadrx.simulate import PcapSink
from terminals import PATIENCE, Terminal, piped, wait_for_line

pytestmark = pytest.mark.usefixtures("layout")

TIME_ID, ANTENNA_ID = 0x1600, 0x4101
#: As in the layout of `simulated`.
STEP, BATCHES, ANTENNAS, HEAP_BYTES, TICK_RATE = 256, 16, 4, 1024, 1e6
LABELS = ["m000", "m001", "m002", "m003"]
MONITORING = Path(__file__).parents[2] / "monitoring"


def packet(batch, antenna):
    items = {TIME_ID: batch * STEP, spead2.HEAP_LENGTH_ID: HEAP_BYTES, ANTENNA_ID: antenna}
    return encode(Heap(items, bytes(HEAP_BYTES)), batch * ANTENNAS + antenna, 48)[0]


def write_capture(path, heaps):
    with PcapSink(path) as sink:
        for heap in heaps:
            sink.send(0, packet(*heap))


@contextlib.contextmanager
def sending(*ports, first_batch=1000, pause=0.001):
    """Send all heaps of one batch after the other, dealt out to the ports, until the block ends."""
    done = threading.Event()

    def send():
        batch = itertools.count(first_batch)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            while not done.is_set():
                packets = [packet(number := next(batch), 0), *(packet(number, i) for i in range(1, ANTENNAS))]
                for i, data in enumerate(packets):
                    sock.sendto(data, ("127.0.0.1", ports[i % len(ports)]))
                time.sleep(pause)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def account_of(process):
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output + errors
    return json.loads(output)


def assert_nothing_lost(account, history, *, at_most=0):
    assert account["present"] > 0
    assert 0 <= account["missing"] <= at_most
    assert (account["kernel_drops"], account["in_flight"], account["residual"]) == (0, 0, 0)
    read = History.read(history)
    assert read.missing_by_source.sum() == account["missing"]
    assert read.loss == account["loss"] == account["missing"] / account["expected"]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, None], ids=str)
def test_nothing_is_missing_when_it_ends_while_heaps_come(layout, ports, signum, threads, tmp_path):  # noqa: F811
    endpoints = [f"127.0.0.1:{port}" for port in ports[:2]]
    history = tmp_path / "history"
    options = ["--max-loss=0", f"--threads={threads}", "--set", "time.batches=64", "--history", str(history)]
    options += ["--seconds=0.7"] if signum is None else []
    with piped("recv", *layout, *endpoints, "--json", *options) as process:
        wait_for_line(process.stderr, "Receiving array")
        with sending(*ports[:2]):
            if signum is not None:
                time.sleep(0.5)
                process.send_signal(signum)
            account = account_of(process)
    assert account["ended_by"] == ("seconds" if signum is None else "signal")
    assert_nothing_lost(account, history)


@pytest.mark.parametrize("threads", [1, 2])
def test_it_starts_and_ends_while_heaps_come(layout, ports, threads, tmp_path):  # noqa: F811
    """If it starts in the middle of a batch, it cannot know that; but no more than that."""
    endpoints = [f"127.0.0.1:{port}" for port in ports[:2]]
    history = tmp_path / "history"
    options = [f"--threads={threads}", "--seconds=0.5", "--history", str(history)]
    with sending(*ports[:2]), piped("recv", *layout, *endpoints, "--json", *options) as process:
        account = account_of(process)
    assert_nothing_lost(account, history, at_most=ANTENNAS - 1)


def test_terminal_that_goes_away(layout, udp_port, tmp_path):  # noqa: F811
    """The program cannot print any more, but it drains, and keeps the history."""
    history = tmp_path / "history"
    terminal = Terminal("recv", *layout, f"127.0.0.1:{udp_port}", "--history", str(history), columns=80, rows=24)
    try:
        terminal.read_until(lambda: "data ring " in terminal.output)
        with sending(udp_port):
            terminal.read_until(lambda: re.search(r"m003.*\d,\d\d\d", terminal.output))
            os.close(terminal.master)
            terminal.process.wait(PATIENCE)
    finally:
        terminal.master = os.open(os.devnull, os.O_RDONLY)  # for it to close
        terminal.close()
    read = History.read(history)
    assert read.present_by_source.sum() > 0
    assert read.loss == 0
