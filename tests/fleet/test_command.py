"""`speadrx fleet` before its workers start, and what it says at the end."""

import contextlib
import re
import signal
import socket
import subprocess
import sys

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("distributed")

from click.testing import CliRunner
from rich.console import Console

from fleets import LAYOUT, STEP
from speadrx.cli.fleet import _conclude, show
from speadrx.cli.group import group
from speadrx.fleet import FleetAccount, Plan

PLAN = 'layout = "array.toml"\nendpoints = ["239.1.2.0+3:7148"]\ndeal = "antenna"\n'
SHARES = Plan(layout=LAYOUT, endpoints="239.1.2.0+3:7148", deal="antenna", shares=2).dealt


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    """Run the command with more lines in the plan."""
    (tmp_path / "array.toml").write_text(LAYOUT.to_toml(), "utf-8")
    monkeypatch.setattr(sys, "path", sys.path.copy())
    # Whatever else there is, no worker must start.
    monkeypatch.setattr("speadrx.fleet.local_cluster", lambda *args: pytest.fail("workers were started"))

    def run(more, *arguments):
        (tmp_path / "plan.toml").write_text(PLAN + more, "utf-8")
        return CliRunner().invoke(group, ["fleet", str(tmp_path / "plan.toml"), *arguments])

    return run


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("nowhere_at_all:spectrum", "there is no module 'nowhere_at_all' beside the plan or on sys.path"),
        ("json:spectrum", "no attribute 'spectrum'"),
        ("json:__name__", "cannot be called"),
    ],
)
def test_a_function_that_is_not_there_is_refused(fleet, function, text):
    done = fleet(f'function = "{function}"\n', "--local", "1")
    assert done.exit_code == 2
    assert f"function: '{function}': " in done.output
    assert text in done.output
    assert "Note: function: " in fleet(f'function = "{function}"\n').output


def test_the_function_may_be_beside_the_plan(fleet, tmp_path):
    (tmp_path / "beside_this_plan.py").write_text("def spectrum(chunk): ...\n", "utf-8")
    done = fleet('function = "beside_this_plan:spectrum"\n')
    assert done.exit_code == 0
    assert "function" not in done.output


@pytest.mark.parametrize("name", ["night.zarr", "night_{share}.zarr"])
def test_a_recording_that_is_there_is_refused(fleet, tmp_path, name):
    there = tmp_path / name.replace("{share}", "3")
    there.mkdir()
    done = fleet(f'record = "{tmp_path / name}"\n', "--local", "1")
    assert done.exit_code == 2
    assert f"record: {there}: there already; move it, or take another path" in done.output


CODE = """
import contextlib, signal
import speadrx.fleet
from multiprocessing import resource_tracker
from speadrx.cli.fleet import _cluster
from speadrx.fleet import Plan

@contextlib.contextmanager
def local_cluster(*args):
    resource_tracker.ensure_running()
    yield signal.pthread_sigmask(signal.SIG_BLOCK, ())

speadrx.fleet.local_cluster = local_cluster
plan = Plan.from_toml("plan.toml")
with _cluster(plan, 1, None) as blocked:
    print(signal.SIGINT in blocked, signal.SIGHUP in blocked)
print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


def test_workers_do_not_hear_ctrl_c(fleet, tmp_path):
    """What Python starts with the first process must not unblock it."""
    fleet("")
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines() == ["True True", "False"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("accepts", [True, False])
def test_it_ends_while_it_connects(fleet, tmp_path, signum, accepts):
    """To a scheduler that never answers, or to none, which is tried again and again: that would end with 2."""
    fleet("")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        scheduler = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "speadrx.cli", "fleet", "plan.toml", "--scheduler", scheduler],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        stack.callback(process.communicate)
        stack.callback(process.kill)
        connection, _ = listener.accept()
        if accepts:
            stack.enter_context(connection)
        else:
            connection.close()
            listener.close()
        process.send_signal(signum)
        _, errors = process.communicate()
    assert (process.returncode, errors.strip()) == (1, "Aborted!")


def stats_of(*rises):
    account = FleetAccount(SHARES)
    for share, rise in zip(SHARES, rises, strict=True):
        account.submit(share.name, "tcp://a:1", "a")
        placed = sum(rise.get("placed", ()))
        now = {"in_flight": [0, 0], "unfinished": 0, "placed": placed, "span": [0, 4 * STEP]}
        known = {"incarnation": 1, "host": "a", "worker": "tcp://a:1", "reason": "", "error": None}
        account.add({"kind": "ended", "share": share.name, "number": 1, "rise": rise, "now": now, **known})
    return account.stats()


HEAPS = {"placed": [8, 8], "present": [8, 8], "chunks": 2}


@pytest.mark.parametrize(
    ("rise", "text"),
    [
        ({}, "Share 1: it has received nothing."),
        ({"rejected.length": [3, 4, 0]}, "Share 1: all of its 7 heaps were rejected."),
    ],
)
def test_a_share_with_nothing_is_named(capsys, rise, text):
    stats = stats_of(HEAPS, rise)
    # Two antennas of four.
    assert [_conclude(stats, most) for most in (None, 0.5, 0.49)] == [0, 0, 1]
    assert capsys.readouterr().err.count(text) == 3
    console = Console(width=100)
    show(console, stats, all_sources=True)
    shown = capsys.readouterr().out
    assert re.search("^In gaps: .*16", shown, re.MULTILINE)
    assert shown.count("nothing ") == 1


def test_nobody_is_named_if_all_or_none_have_received(capsys):
    assert (_conclude(stats_of(HEAPS, HEAPS), 0.5), _conclude(stats_of({}, {}), 0.5)) == (0, 1)
    assert capsys.readouterr().err == ""


def test_chunks_for_which_the_function_failed_are_counted(capsys):
    stats = stats_of({**HEAPS, "function_errors": 1}, {**HEAPS, "function_errors": 2})
    assert _conclude(stats, None) == 0
    assert capsys.readouterr().err == "The function failed for 3 of 4 chunks.\n"


def test_an_error_of_many_shares_is_said_once(capsys):
    account = FleetAccount(SHARES)
    for share in SHARES:
        account.submit(share.name, "tcp://a:1", "a")
        account.fail(share.name, 1, "ValueError: src: 'x'")
    assert _conclude(account.stats(), None) == 1
    assert capsys.readouterr().err == "Failed: shares 0, 1 (ValueError: src: 'x').\n"
