"""Screens of every command: what each shows in terminals of two widths and through a pipe; writes doc/screens.md.

A program (``make screens``), and the list of commands for `test_screens.py`.
"""

import argparse
import contextlib
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import pyte

from addresses import own_port
from loopback import wait_for
from terminals import HEEDING, PATIENCE, SPEADRX, Terminal, environment

ROOT = pathlib.Path(__file__).parents[2]
DOCUMENT = ROOT / "doc/screens.md"
WIDTHS = (80, 200)
#: Rows of the terminals: enough that nothing scrolls off.
ROWS = 100

ARRAY = """\
heap_bytes = 1024
sources = "antenna"
dtype = "int16"

[time]
item = 0x1600
step = 512
batches = 64
tick_rate = 1e6

[[axes]]
name = "antenna"
item = 0x4101
size = 8
"""
#: A fleet that receives it.
PLAN = """\
layout = "array.toml"
endpoints = ["239.10.10.0+7:7148"]
deal = "antenna"
shares = 4
"""
#: What is sent: losses, copies, heaps out of order, garbage.
FAULTS = ["--loss", "0.02", "--duplicate", "0.005", "--reorder", "20", "--garbage", "0.002", "--seed", "7"]
BATCHES = 4096


@dataclass(frozen=True)
class Command:
    """A command as its user types it."""

    line: str
    #: What to run beside it, in the background.
    beside: str = ""
    #: How to end it: not at all, or once it has drawn a text so many times.
    end: signal.Signals | None = None
    text: str = ""
    code: int = 0
    #: Whether it draws on the whole terminal, and puts it right at the end.
    whole: bool = False
    #: Whether it is shown without colours, which the page does not have.
    plain: bool = False
    #: A file that it leaves, for others to read.
    leaves: str = ""

    @property
    def name(self) -> str:
        return self.line.split()[0]


#: PORT and OTHER stand for free ports.
COMMANDS = (
    Command("demo --seconds 1"),
    Command("layout --list"),
    Command("layout array.toml"),
    Command(
        f"send -l array.toml --pcap capture.pcap --force --batches {BATCHES} --truth truth.json " + " ".join(FAULTS),
        leaves="capture.pcap",
    ),
    Command("inspect capture.pcap -o proposed.toml --force", leaves="proposed.toml"),
    Command("record capture.pcap -l array.toml -o night.zarr --seconds 2 --force"),
    Command("replay capture.pcap -l proposed.toml --history run.json --force", leaves="run.json"),
    Command("compare capture.pcap array.toml proposed.toml --set time.batches=64"),
    Command("plot run.json -o run.png --force"),
    Command("look capture.pcap -l array.toml --source antenna=2", plain=True),
    Command(
        "recv -l array.toml 127.0.0.1:PORT --seconds 3",
        # It goes on for longer than a busy machine takes to begin to receive.
        beside="send -l array.toml 127.0.0.1:PORT --rate 0.05 --seconds 60 " + " ".join(FAULTS),
    ),
    Command(
        "inspect 127.0.0.1:PORT --seconds 1",
        beside="send -l array.toml 127.0.0.1:PORT --rate 0.05 --seconds 60",
    ),
    Command("doctor 127.0.0.1:PORT --listen 0.5", code=1),
    Command("bench --seconds 3"),
    Command(
        "top http://127.0.0.1:OTHER/metrics --interval 0.5",
        beside="recv -l array.toml 127.0.0.1:PORT --metrics-port OTHER --quiet & "
        "send -l array.toml 127.0.0.1:PORT --rate 0.05 " + " ".join(FAULTS),
        end=signal.SIGINT,
        text="heaps/s",
        whole=True,
    ),
    Command("fleet plan.toml"),
)


class Stage:
    """A directory with what the commands need, and their ports."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        (directory / "array.toml").write_text(ARRAY, "utf-8")
        (directory / "plan.toml").write_text(PLAN, "utf-8")
        self._ports = {"PORT": str(own_port()), "OTHER": str(own_port())}

    def arguments(self, line: str) -> list[str]:
        for name, port in self._ports.items():
            line = line.replace(name, port)
        return line.split()

    def _bring(self, command: Command) -> None:
        """Run the other commands that leave the files that a command names, if they are not there."""
        for other in COMMANDS:
            needed = other.name != command.name and other.leaves in command.line.split()
            if needed and not (self.directory / other.leaves).exists():
                code, _, errors = self.pipe(other)
                assert code == other.code, errors

    @contextlib.contextmanager
    def _beside(self, command: Command) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for line in filter(None, command.beside.split(" & ")):
                process = subprocess.Popen(
                    [*SPEADRX, *self.arguments(line)],
                    cwd=self.directory,
                    env=environment(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                stack.callback(process.wait)
                stack.callback(process.kill)
            if "OTHER" in command.beside:
                wait_for(self._is_served, PATIENCE)
            elif command.beside:
                self._wait_for_data()
            yield

    def _is_served(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", int(self._ports["OTHER"]))) == 0

    def _wait_for_data(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", int(self._ports["PORT"])))
            sock.settimeout(PATIENCE)
            sock.recv(1)

    def screen(self, command: Command, columns: int) -> tuple[int, list[str]]:
        """Run a command in a terminal; return its exit code, and what is on the screen (or was, before it left)."""
        self._bring(command)
        with contextlib.chdir(self.directory), self._beside(command):
            changes = {"NO_COLOR": "1"} if command.plain else {}
            terminal = Terminal(*self.arguments(command.line), columns=columns, rows=ROWS, **changes)
            try:
                if command.end is not None:
                    terminal.read_until(lambda: terminal.output.count(command.text) > 12 or terminal.closed)
                    before = terminal.output
                    terminal.type("\x03")
                code = terminal.wait()
            finally:
                terminal.close()
        return code, drawn(before if command.whole else terminal.output, columns)

    def pipe(self, command: Command) -> tuple[int, str, str]:
        """Run a command with its output to pipes; return its exit code, what it printed, and what it said beside."""
        self._bring(command)
        with self._beside(command):
            process = subprocess.Popen(
                [sys.executable, "-c", HEEDING, *SPEADRX, *self.arguments(command.line)],
                cwd=self.directory,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                head = ""
                if command.end is not None:
                    assert process.stdout is not None
                    head = "".join(next(process.stdout) for _ in range(12))
                    process.send_signal(command.end)
                output, errors = process.communicate(timeout=PATIENCE)
            finally:
                process.kill()
                process.wait()
        return process.returncode, head + output, errors


def drawn(output: str, columns: int) -> list[str]:
    """Return the lines that a terminal shows after an output."""
    screen = pyte.Screen(columns, ROWS)
    pyte.Stream(screen).feed(output)
    return [line.rstrip() for line in screen.display]


def page(stage: Stage) -> Iterator[str]:
    yield "# Screens"
    yield (
        "This is what each command shows in a terminal of 80 columns, and of 200 columns if that differs.\n"
        "`make screens` runs all commands and writes this page. What depends on the machine is from one run."
    )
    seen = set()
    for command in COMMANDS:
        screens = []
        for columns in WIDTHS:
            code, lines = stage.screen(command, columns)
            text = "\n".join(lines).rstrip()
            if code != command.code:
                raise SystemExit(f"speadrx {command.line}: exit code {code}, not {command.code}\n{text}")
            screens.append(text)
        if command.name not in seen:
            yield f"## speadrx {command.name}"
        seen.add(command.name)
        yield f"`speadrx {' '.join(stage.arguments(command.line))}`"
        yield f"```text\n{screens[0]}\n```"
        narrow, wide = (re.sub(r"[\d,.]+", "0", screen).split() for screen in screens)
        if narrow != wide or screens[0].count("\n") != screens[1].count("\n"):
            yield f"In {WIDTHS[1]} columns:"
            yield f"```text\n{screens[1]}\n```"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        DOCUMENT.write_text("\n\n".join(page(Stage(pathlib.Path(name)))) + "\n", "utf-8")


if __name__ == "__main__":
    main()
