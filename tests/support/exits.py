"""Ends processes in every way, many times, and says which did not end as they should.

Usage: exits.py [--runs N] [--at-once N] [--load N] [WAY...]: the programs of `shutdown.py` and `forking.py`, and
``recv`` in a terminal. All that ends otherwise than it should is listed, with what it has said last.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import forking
import shutdown
from addresses import own_port
from handmade import SMALL, encode, small_heap
from loopback import send
from terminals import Terminal

HERE = pathlib.Path(__file__).parent
PATIENCE = 120

#: Status, signal, and whether data flow: of programs that do not just end with status 0 while data flow.
SPECIAL: dict[str, tuple[int, int | None, bool]] = {
    "exit_thread_waits": (0, None, False),
    "exit_thread_lets_go": (0, None, False),
    "exit_thread_ends": (0, None, False),
    "exit_from_loop": (3, None, True),
    "exit_from_async_loop": (3, None, True),
    "raise_in_loop": (1, None, True),
    "raise_in_async_loop": (1, None, True),
    "loop": (-signal.SIGINT, signal.SIGINT, True),
    "loop_waits": (-signal.SIGINT, signal.SIGINT, False),
    "loop_in_group": (-signal.SIGINT, signal.SIGINT, True),
    "loop_holds_chunk": (-signal.SIGINT, signal.SIGINT, True),
    "async_loop": (-signal.SIGINT, signal.SIGINT, True),
    "async_loop_waits": (-signal.SIGINT, signal.SIGINT, False),
    "loop_caught": (5, signal.SIGINT, True),
    "loop_exits_on_sigterm": (6, signal.SIGTERM, True),
    "loop_waits_exits_on_sigterm": (6, signal.SIGTERM, False),
    "loop_stops_on_sigterm": (0, signal.SIGTERM, True),
    "async_loop_cancelled_on_sigterm": (7, signal.SIGTERM, True),
}
#: They take as long as many of the others.
LONG = {"any_order_1", "any_order_2"}


def end_program(name: str) -> tuple[bool, str]:
    """Run a program of `shutdown.py`; return whether it ended as it should, and how."""
    status, signum, data = SPECIAL.get(name, (0, None, True))
    command = [sys.executable, str(HERE / "shutdown.py"), name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment()) as process:
        timer = threading.Timer(PATIENCE, process.kill)
        timer.start()
        assert process.stdout is not None
        ports = [int(port) for port in process.stdout.readline().split()[1:]]
        with sending(ports if data else []):
            process.stdout.readline()
            if signum is not None:
                time.sleep(0 if data else 0.1)
                process.send_signal(signum)
            output, errors = process.communicate()
        timer.cancel()
    said = (output + errors).decode()
    wrong = process.returncode != status or "Fatal" in said or "Exception ignored" in said
    return not wrong, f"{process.returncode}, not {status}: {said[-2000:]}"


def end_fork(name: str) -> tuple[bool, str]:
    command = [sys.executable, str(HERE / "forking.py"), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=_environment(), check=False)
    return not done.returncode and "Fatal" not in done.stderr, f"{done.returncode}: {done.stderr[-2000:]}"


def end_command(signum: int) -> tuple[bool, str]:
    """End ``recv`` in a terminal: by typing Ctrl-C, or by a signal."""
    port = own_port()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "small.toml"
        path.write_text(SMALL.to_toml(), "utf-8")
        terminal = Terminal("recv", "-l", str(path), f"127.0.0.1:{port}", columns=80, rows=24)
        try:
            terminal.read_until(lambda: "data ring " in terminal.output)
            with sending([port]):
                time.sleep(0.3)
                if signum == signal.SIGINT:
                    terminal.type("\x03")
                else:
                    terminal.process.send_signal(signum)
                status = terminal.wait()
        finally:
            terminal.close()
    return status == 0 and "Placed: " in terminal.output, f"{status}: {terminal.output[-1000:]}"


@contextlib.contextmanager
def sending(ports: list[int]):
    """Send heaps to all ports until the block ends."""
    done = threading.Event()

    def go() -> None:
        i = 0
        while ports and not done.wait(0.001):
            heaps = [encode(small_heap({0x10: (i + k) * SMALL.time.step}), i + k, 48)[0] for k in range(4)]
            for port in ports:
                send(("127.0.0.1", port), heaps)
            i += 4

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONFAULTHANDLER": "1"}


def every_way() -> dict[str, Callable[[], tuple[bool, str]]]:
    ways: dict[str, Callable[[], tuple[bool, str]]] = {}
    for name in shutdown.PROGRAMS.keys() - LONG:
        ways[name] = lambda name=name: end_program(name)  # type: ignore[misc]
    for name in forking.PROGRAMS:
        ways[f"fork: {name}"] = lambda name=name: end_fork(name)  # type: ignore[misc]
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        ways[f"recv in a terminal, {signum.name}"] = lambda signum=signum: end_command(signum)  # type: ignore[misc]
    return ways


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200, help="of each way")
    parser.add_argument("--at-once", type=int, default=os.cpu_count())
    parser.add_argument("--load", type=int, default=0, help="processes that are busy meanwhile")
    parser.add_argument("ways", nargs="*", help="words in the names of ways")
    args = parser.parse_args()
    ways = {name: end for name, end in every_way().items() if not args.ways or any(way in name for way in args.ways)}
    wrong = collections.Counter[str]()
    with contextlib.ExitStack() as stack:
        for _ in range(args.load):
            busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(busy.kill)
        workers = stack.enter_context(concurrent.futures.ThreadPoolExecutor(args.at_once))
        work = {workers.submit(end): name for _ in range(args.runs) for name, end in ways.items()}
        for future in concurrent.futures.as_completed(work):
            right, how = future.result()
            if not right:
                wrong[work[future]] += 1
                print(f"{work[future]} ended with {how}", flush=True)
    for name in ways:
        print(f"{name:<40} {args.runs} runs, {args.runs - wrong[name]} ended as they should")
    return min(wrong.total(), 1)


if __name__ == "__main__":
    sys.exit(main())
