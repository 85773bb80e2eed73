"""The demo as its users run it: in a process of its own, through a pipe, a terminal, and with Ctrl-C."""

import contextlib
import itertools
import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

from complaints import complaints
from terminals import SPEADRX, environment

pytest.importorskip("click")
pytest.importorskip("rich")

DEMO = [*SPEADRX, "demo"]


def number(text):
    return int(text.replace(",", "")) if text else None


def table(output, title):
    """Rows of a table, by their first cell; column names too."""
    lines = iter(output.splitlines())
    assert any(line.strip() == title for line in lines), output
    rows = {}
    for line in itertools.takewhile(lambda line: line.startswith(tuple("┏┃┡│├└+|")), lines):
        cells = [cell.strip() for cell in re.split("[│┃|]", line)[1:-1]]
        if len(cells) > 1 and not re.fullmatch("[-+]*", cells[0]):
            rows[cells[0]] = cells[1:]
    return rows


def assert_accounts(output):
    """The table adds up, and the residual is 0."""
    text = " ".join(output.split())
    assert "Residual: 0 (every heap is accounted for)." in text
    accounts = re.search(r"Accounts: ([\d,]+) sent = (.*?)\.", text)
    causes = {name: number(count) for count, name in re.findall(r"([\d,]+) ([a-z ]+?)(?: \+|$)", accounts[2])}
    assert list(causes) == ["present", "duplicates", "too old", "rejected", "unseen", "dropped"]
    assert number(accounts[1]) == sum(causes.values())

    sources = table(output, "Heaps by source")
    assert sources.pop("antenna") == ["withheld", "sent", "present", "missing", "duplicates"]
    total = [number(cell) for cell in sources.pop("all")]
    assert list(sources) == ["m000", "m001", "m002", "m003"]
    rows = [[number(cell) for cell in row] for row in sources.values()]
    assert [sum(column) for column in zip(*rows, strict=True)] == total
    for row in rows:
        assert row[2] + row[3] == rows[0][2] + rows[0][3]  # as much is expected of each source
    withheld, _, present, missing, duplicates = total
    assert present > 0
    assert (present, duplicates) == (causes["present"], causes["duplicates"])

    others = table(output, "Other heaps by reason")
    assert others.pop("reason") == ["sent", "counted", "by"]
    rejected = {reason: row for reason, row in others.items() if reason.startswith("rejected: ")}
    assert sum(number(row[1]) for row in rejected.values()) == causes["rejected"]
    if not causes["dropped"]:
        assert missing <= withheld + causes["too old"]
        assert all(row[0] == row[1] for row in rejected.values())
        assert number(others["unseen: no length"][0]) == number(others["unseen: no length"][1])
    return causes


def senders_of(pid):
    """Processes whose parent is, or whose session is that of, a process."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if pid in (int(fields[1]), int(fields[3])) and int(stat.parent.name) != pid:
            found.append(int(stat.parent.name))
    return found


@pytest.fixture
def start():
    """Starts the demo in a session of its own, and ends it whatever happens."""
    processes = []

    def start(*args, **env):
        process = subprocess.Popen(
            [*DEMO, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**env),
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for_output(process, text):
    """Read up to and including the line with the text."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    pytest.fail(f"{text!r} is not in: {''.join(lines)}{process.stderr.read()}")


def test_pipe(start):
    process = start("--seconds", "0.8", "--seed", "7")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, output + errors
    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) <= 80
    causes = assert_accounts(output)
    # This seed has such faults in the first chunk already, so that there is something to account for.
    assert min(causes[cause] for cause in ("duplicates", "rejected", "unseen")) > 0
    assert "every byte of the" in output
    assert "Next: README.md has" in output
    assert senders_of(process.pid) == []


def test_ascii_terminal(start):
    process = start("--seconds", "0.2", LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, output + errors
    assert output.isascii()
    assert_accounts(output)


@pytest.mark.parametrize(("signum", "whole_group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_interrupted(start, signum, whole_group):
    """Ctrl-C in a terminal reaches the sender too; a kill reaches the command alone."""
    process = start("--seconds", "8")
    head = wait_for_output(process, "Metrics:")
    time.sleep(1.0)  # in the midst of it; but any time will do
    (os.killpg if whole_group else os.kill)(process.pid, signum)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, output + errors
    assert complaints(errors) == ""
    assert_accounts(head + output)
    assert senders_of(process.pid) == []


def test_interrupted_at_once(start):
    """Before the sender has sent anything, a single chunk is sent."""
    process = start("--seconds", "8")
    head = wait_for_output(process, "Metrics:")
    os.kill(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, output + errors
    assert_accounts(head + output)


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, -signal.SIGTERM)])
def test_interrupted_twice(start, signum, code):
    """The second Ctrl-C means it; no process is left behind."""
    process = start("--seconds", "8")
    wait_for_output(process, "Metrics:")
    os.kill(process.pid, signum)
    time.sleep(0.02)
    os.kill(process.pid, signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (code, 0)  # 0 if it was quick, or took the signals for one
    assert "Traceback" not in errors
    wait_until_gone(process.pid)


def test_sender_goes_when_the_demo_is_killed(start):
    process = start("--seconds", "8")
    wait_for_output(process, "Metrics:")
    os.kill(process.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert complaints(errors) == ""
    wait_until_gone(process.pid)


def wait_until_gone(pid):
    deadline = time.monotonic() + 60
    while left := senders_of(pid):
        assert time.monotonic() < deadline, f"processes {left} are left"
        time.sleep(0.05)


@pytest.mark.slow
def test_stalled_receiver(start):
    """Heaps that the kernel drops are accounted for as well."""
    process = start("--seconds", "2", "--rate", "1")
    head = wait_for_output(process, "Metrics:")
    time.sleep(1.0)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGCONT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, output + errors
    assert_accounts(head + output)


def test_dead_sender(start):
    process = start("--seconds", "8")
    wait_for_output(process, "Metrics:")
    (sender,) = senders_of(process.pid)
    os.kill(sender, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the sender died before it had finished" in errors
    assert "Traceback" not in errors


def test_lost_account_fails(start, tmp_path):
    """The exit code is 1 if heaps cannot be accounted for."""
    # The sender claims one heap more than it sends.
    (tmp_path / "sitecustomize.py").write_text(
        "import speadrx.simulate as s\n"
        "send = s.Simulator.send\n"
        "def claim(self, *args, **kwargs):\n"
        "    truth = send(self, *args, **kwargs)\n"
        "    truth.sent[0] += 1\n"
        "    return truth\n"
        "s.Simulator.send = claim\n"
    )
    process = start("--seconds", "0.2", PYTHONPATH=str(tmp_path))
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1, output + errors
    assert "Residual: 1 (SOME HEAPS ARE NOT ACCOUNTED FOR)." in " ".join(output.split())


def test_help():
    run = subprocess.run([*DEMO, "--help"], capture_output=True, text=True, check=True, env=environment())
    assert "account for every heap" in run.stdout
    version = subprocess.run([*DEMO[:-1], "--version"], capture_output=True, text=True, check=True, env=environment())
    assert re.fullmatch(r"speadrx, version \d+\.\d+\.\d+\S*", version.stdout.strip())


@pytest.mark.parametrize("module", ["click", "rich"])
def test_missing_package(module, tmp_path):
    """The command line says which extra it needs."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules['{module}'] = None\n", "utf-8")
    env = environment(PYTHONPATH=str(tmp_path))
    run = subprocess.run(DEMO, capture_output=True, text=True, check=False, env=env)
    assert run.returncode == 1
    assert run.stderr == f"speadrx: {module} is not installed; do: pip install 'speadrx[cli]'\n"
