"""Processes that fork, or start programs, while they receive: the child is inert, and the parent goes on."""

import os
import pathlib
import subprocess
import sys

import pytest

from complaints import complaints

pytestmark = pytest.mark.fault(34)

PROGRAM = pathlib.Path(__file__).parents[1] / "support" / "forking.py"


@pytest.mark.parametrize(
    "program",
    [
        "child_just_ends",
        "child_leaves_blocks",
        "child_lets_go",
        "child_uses_it",
        "child_while_a_thread_waits",
        "child_receives",
        "multiprocessing_by_fork",
        "child_holds_no_port",
        "child_leaves_metrics",
        "programs_hold_no_port",
        "programs_hold_no_connection",
    ],
)
def test_fork(program):
    environment = os.environ | {"PYTHONFAULTHANDLER": "1", "PYTHONWARNINGS": "error"}
    result = subprocess.run(
        [sys.executable, str(PROGRAM), program],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert complaints(result.stderr) == ""
