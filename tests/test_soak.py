"""The soak: a short one, ended by a signal, and what makes it fail."""

import json
import pathlib
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from complaints import complaints

SOAK = pathlib.Path(__file__).parents[1] / "benches" / "soak.py"


@pytest.mark.fault(23)
def test_every_heap_is_accounted_for_and_a_signal_ends_it(fault_report: Callable[..., None]) -> None:
    # Far longer than the test may take: without the signal it would never end.
    command = [sys.executable, str(SOAK), "--seconds", "3600", "--step-seconds", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            complaint = next(line for line in process.stderr if complaints(line))
            assert complaint.startswith("holding")
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    report = json.loads(output)
    lost = report["heaps_sent"] - report["present"]
    fault_report(sent=report["heaps_sent"], lost=lost, residual=report["residual"], note="a moment of it")
    assert report["residual"] == 0
    assert report["heaps_sent"] == report["present"] + report["kernel_drops"] + report["kernel_drops_of_search"]
    assert report["wrong"] == []
    assert report["ended_by_signal"]
    assert process.returncode == (0 if report["ok"] else 1), errors


@pytest.mark.parametrize(
    ("residual", "growth", "wrong", "good"),
    [(0, 0.01, [], True), (1, 0, [], False), (-1, 0, [], False), (0, 0.011, [], False), (0, 0, ["wrong data"], False)],
)
def test_what_fails(residual: int, growth: float, wrong: list[str], good: bool) -> None:
    assert runpy.run_path(str(SOAK))["is_good"](residual, growth, wrong) is good
