"""The command line as its users run it: in terminals and through pipes."""

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

SPEADRX = [sys.executable, "-m", "speadrx.cli"]
# These tests may run in the background of a shell, or by nohup: then they ignore Ctrl-C or SIGHUP, and what they start
# does, too.
HEEDING = """
import os, signal, sys
for signum in signal.SIGINT, signal.SIGHUP:
    signal.signal(signum, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""
# Makes the terminal on its stdin its own, so that Ctrl-C typed there reaches it.
IN_TERMINAL = f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); {HEEDING}"
PATIENCE = 60


def environment(**changes):
    """The environment without what changes the output of programs, or the way to servers."""
    unwanted = ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    env = {
        key: value for key, value in os.environ.items() if key not in unwanted and not key.lower().endswith("_proxy")
    }
    return env | {"TERM": "xterm-256color"} | changes


def run(*args, code=0, **env):
    """Run the command; return what it printed, or with another exit code than 0, what it complained of."""
    result = subprocess.run(
        [*SPEADRX, *args], capture_output=True, text=True, check=False, env=environment(**env), timeout=PATIENCE
    )
    return checked(result.returncode, code, result.stdout, result.stderr)


def run_here(*args, code=0, **env):
    """Do the same in this process, which takes less time: for what does not depend on where it runs."""
    from click.testing import CliRunner  # not all have it, and tests that need it are skipped

    from speadrx.cli.group import group

    unset = dict.fromkeys(set(os.environ) - set(environment()))
    result = CliRunner(env=unset | environment(**env)).invoke(group, args)
    return checked(result.exit_code, code, result.stdout, result.stderr)


def end_of(text):
    """What fits a screen of what a command has written: it is at the end that it says what went wrong."""
    return text[-3000:].split("\x1b[H")[-1].strip()


def checked(code, expected, output, errors):
    """Check how a command ended; return what it printed, or complained of."""
    assert code == expected, end_of(output + errors)
    assert "Traceback" not in errors
    silent = output if code else errors
    assert silent == "", end_of(silent)
    return errors if code else output


class Terminal:
    """A terminal in which the command runs, and what has been written to it."""

    def __init__(self, *args, columns, rows, **changes):
        self.master, slave = pty.openpty()
        self.resize(columns, rows)
        self.output = ""
        # A read may end within a character.
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self.closed = False
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, *SPEADRX, *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment(**changes),
            start_new_session=True,
        )
        os.close(slave)

    def resize(self, columns, rows):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text):
        os.write(self.master, text.encode())

    def read_until(self, enough):
        deadline = time.monotonic() + PATIENCE
        while not enough():
            assert time.monotonic() < deadline, end_of(self.output)
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    data = os.read(self.master, 1 << 16)
                except OSError:
                    self.closed = True  # the other side is
                    assert enough(), end_of(self.output)
                    return
                self.output += self._decode(data)

    def frames(self):
        """Screens drawn so far, as lines, without colours. The last may be incomplete."""
        text = re.sub(r"\x1b\[[\d;]*m", "", self.output)
        return [frame.replace("\r", "").split("\n") for frame in text.split("\x1b[H") if "\n" in frame]

    def wait(self):
        """Wait for its end, and return its exit code."""
        self.read_until(lambda: self.closed)
        return self.process.wait(PATIENCE)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@contextlib.contextmanager
def piped(*args):
    """Start the command with its output in pipes; it heeds Ctrl-C, and is gone at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEEDING, *SPEADRX, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_line(stream, text):
    """Read up to and including the line with the text; the test's timeout is the deadline."""
    lines = []
    for line in stream:
        lines.append(line)
        if text in line:
            return line
    raise AssertionError(f"{text!r} is not in what was written, which ends with:\n{end_of(''.join(lines))}")
