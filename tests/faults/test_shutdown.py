"""Processes that end in the midst of reception: with the right exit code, soon, and without a word that is not due."""

import contextlib
import os
import pathlib
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from complaints import complaints
from handmade import SMALL, encode, small_heap

pytestmark = pytest.mark.fault(17)

PROGRAM = pathlib.Path(__file__).parents[1] / "support" / "shutdown.py"

#: Seconds until a process that is about to end, or got a signal, must have ended, on a machine that is not overloaded.
DEADLINE = 2.0
#: And that it has for all before.
START_SECONDS = 60

NORMAL = {}
#: As the interpreter's own developers would run it: with all its warnings, checks of memory and a traceback of a crash.
CAREFUL = {"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error"}
#: The careful one finds more, and so is the one that is always run.
ENVIRONMENTS = [pytest.param(NORMAL, id="normal", marks=pytest.mark.slow), pytest.param(CAREFUL, id="careful")]

#: What begins at the margin in the traceback of an interrupt; asyncio makes a chain of it.
TRACEBACK_LINES = {
    "Traceback (most recent call last):",
    "",
    "During handling of the above exception, another exception occurred:",
    "asyncio.exceptions.CancelledError",
    "KeyboardInterrupt",
}


class Sender:
    """Sends heaps, chunk after chunk, until it is closed."""

    def __init__(self, ports):
        self._endpoints = [("127.0.0.1", int(port)) for port in ports]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            i = 0
            while not self._stop.wait(0.0002):
                heap = encode(small_heap({0x10: i * SMALL.time.step}), i, 48)[0]
                for endpoint in self._endpoints:
                    sock.sendto(heap, endpoint)
                i += 1

    def close(self):
        self._stop.set()
        self._thread.join()


class Process:
    """A process that tells lines of what it does."""

    def __init__(self, stack, command, environment, **kwargs):
        self.process = stack.enter_context(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=os.environ | {"PYTHONFAULTHANDLER": "1"} | environment,
                start_new_session=True,
                **kwargs,
            )
        )
        stack.callback(self._kill)
        self.output = b""

    def _kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def wait_for_line(self, start):
        """Read up to the line that starts so, and return it."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            *lines, _ = self.output.split(b"\n")
            found = [line.decode() for line in lines if line.startswith(start.encode())]
            if found:
                return found[0]
            ready, _, _ = select.select([self.process.stdout], [], [], deadline - time.monotonic())
            assert ready, f"no {start!r} in {START_SECONDS} s, but {self.output}"
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"no {start!r}, but {self.output} and {self.process.stderr.read()}"
            self.output += data

    def end(self):
        """Wait until it has ended, as long as it may take; return its exit code, all its output, and its errors."""
        deadline = DEADLINE * max(1, os.getloadavg()[0] / os.cpu_count())
        try:
            output, errors = self.process.communicate(timeout=deadline)
        except subprocess.TimeoutExpired:
            # It says where every thread is, and leaves no file behind.
            resource.prlimit(self.process.pid, resource.RLIMIT_CORE, (0, 0))
            os.kill(self.process.pid, signal.SIGABRT)
            output, errors = self.process.communicate(timeout=deadline)
            pytest.fail(f"has not ended within {deadline:.1f} s: {errors.decode()}")
        return self.process.returncode, (self.output + output).decode(), complaints(errors.decode())


def run(program, environment, signum=None, data=True):
    """Run a program until it has ended, while data flow to it; give it a signal when it is ready for that."""
    with contextlib.ExitStack() as stack:
        process = Process(stack, [sys.executable, str(PROGRAM), program], environment)
        ports = process.wait_for_line("ports").split()[1:]
        if data:
            stack.callback(Sender(ports).close)
        process.wait_for_line("ready")
        if not data:
            time.sleep(0.1)  # so that it does wait by now; if not, it is as well
        if signum is not None:
            os.kill(process.process.pid, signum)
        return process.end()


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize(
    "program",
    [
        "exit_stream",
        "exit_group",
        "exit_local",
        "exit_cycle",
        "exit_holding_chunks",
        "exit_full_ring",
        "exit_exporter",
        "exit_thread_in_loop",
        "exit_thread_in_group_loop",
        "exit_thread_in_async_loop",
        "exit_thread_holds_chunk",
        "exit_stop_elsewhere",
        "exit_stop_at_exit",
        "exit_task_pending",
    ],
)
def test_exit(program, environment):
    """The interpreter exits while data flow."""
    code, _, errors = run(program, environment)
    assert code == 0, errors
    assert errors == ""


@pytest.mark.fault(34)
@pytest.mark.parametrize("program", ["exit_thread_waits", "exit_thread_lets_go", "exit_thread_ends"])
def test_exit_while_nothing_comes(program):
    code, _, errors = run(program, CAREFUL, data=False)
    assert code == 0, errors
    assert errors == ""


@pytest.mark.parametrize("program", ["exit_from_loop", "exit_from_async_loop"])
def test_exit_from_loop(program):
    code, _, errors = run(program, CAREFUL)
    assert code == 3, errors
    assert errors == ""


@pytest.mark.parametrize("program", ["raise_in_loop", "raise_in_async_loop"])
def test_exception_in_loop(program):
    code, _, errors = run(program, CAREFUL)
    assert code == 1
    assert errors.count("Traceback") == 1
    assert errors.endswith("RuntimeError: the user's own\n")


@pytest.mark.parametrize(
    ("program", "data"),
    [
        ("loop", True),
        ("loop_waits", False),
        ("loop_in_group", True),
        ("loop_holds_chunk", True),
        ("async_loop", True),
        ("async_loop_waits", False),
    ],
)
def test_interrupt(program, data):
    """Ctrl-C ends a program that does not care as it ends any."""
    code, _, errors = run(program, CAREFUL, signal.SIGINT, data)
    assert code == -signal.SIGINT, errors
    lines = [line for line in errors.splitlines() if not line.startswith("  ")]
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "KeyboardInterrupt"
    assert TRACEBACK_LINES.issuperset(lines), errors


@pytest.mark.parametrize("program", ["loop", "async_loop"])
def test_terminate(program):
    code, _, errors = run(program, NORMAL, signal.SIGTERM)
    assert code == -signal.SIGTERM, errors
    assert errors == ""


@pytest.mark.parametrize(
    ("program", "signum", "wanted", "data"),
    [
        ("loop_caught", signal.SIGINT, 5, True),
        ("loop_exits_on_sigterm", signal.SIGTERM, 6, True),
        ("loop_waits_exits_on_sigterm", signal.SIGTERM, 6, False),
        ("loop_stops_on_sigterm", signal.SIGTERM, 0, True),
        ("async_loop_cancelled_on_sigterm", signal.SIGTERM, 7, True),
    ],
)
def test_handled_signal(program, signum, wanted, data):
    """A program that cares ends as it wants to."""
    code, output, errors = run(program, CAREFUL, signum, data)
    assert code == wanted, errors
    assert errors == ""
    if wanted != 6:
        assert int(re.search(r"^summary (\d+)$", output, re.MULTILINE)[1]) > 0


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("program", ["any_order_1", pytest.param("any_order_2", marks=pytest.mark.slow)])
def test_objects_go_in_any_order(program, environment):
    """All that a receiver consists of may be deleted, or left to the garbage collector, in any order."""
    code, _, errors = run(program, environment)
    assert code == 0, errors
    assert errors == ""


@pytest.mark.parametrize("signum", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_demo(signum):
    """The demo ends early, and prints its tables."""
    for module in ("click", "rich"):
        pytest.importorskip(module)
    command = [sys.executable, "-m", "speadrx.cli", "demo", "--seconds", "8", "--rate", "0.1"]
    with contextlib.ExitStack() as stack:
        process = Process(stack, command, NORMAL)
        process.wait_for_line("Metrics:")
        time.sleep(1.0)  # in the midst of it; but any time will do
        os.kill(process.process.pid, signum)
        code, output, errors = process.end()
    assert code == 0, errors
    assert errors == ""
    assert "Heaps by source" in output
    assert "Residual: 0 (every heap is accounted for)." in output


#: Exit handlers run in the opposite order: this one after that of speadrx, like a daemon thread that is still running.
LATE = """
import atexit
atexit.register(lambda: late())

import spead2, speadrx
from speadrx.simulate import InprocSink, Simulator

layout = speadrx.Layout(heap_bytes=8, time=speadrx.TimeAxis(item=0x1600, step=1, batches=4))
queue = spead2.InprocQueue()
Simulator(layout).send(InprocSink(queue), batches=32)
queue.stop()
receiver = speadrx.Receiver(layout, queue)
chunks = iter(receiver)
first = next(chunks)

def late():
    print(next(chunks, None))
"""


def test_no_chunk_is_taken_late():
    """Once the interpreter exits, no thread enters spead2 to take a chunk, though there are more."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", LATE], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "None\n", "")


#: A daemon thread drops the last chunk that it has, of which the kernel needs a while to take the memory back.
LETS_GO = """
import atexit, threading
going, goes = threading.Event(), threading.Event()
atexit.register(lambda: (going.set(), goes.wait()))

import spead2.recv, speadrx

layout = speadrx.Layout(heap_bytes=2**22, time=speadrx.TimeAxis(item=0x1600, step=1, batches=16))
rings = {name: spead2.recv.ChunkRingbuffer(4) for name in ("data_ringbuffer", "free_ringbuffer")}
stream = speadrx.make_stream(layout=layout, max_active_chunks=1, **rings)
speadrx.ChunkPool(stream, 4)
chunks = [stream.free_ringbuffer.get_nowait()]

def let_go():
    going.wait()
    goes.set()
    chunks.clear()

threading.Thread(target=let_go, daemon=True).start()
"""


def test_no_chunk_goes_away_late():
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", LETS_GO], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
