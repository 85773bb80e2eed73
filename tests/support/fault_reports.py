"""The mark ``fault(row)``, the fixture `fault_report`, and the file into which a run of tests writes what they saw."""

from __future__ import annotations

import json
import os
import pathlib
import platform
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import spead2

OPTION = "--fault-results"

#: What a test has of each row whose number its mark gives.
Report = dict[str, Any]

_REPORTS = pytest.StashKey[list[Report]]()
_PROPERTY = "fault"


def fault_numbers(item: pytest.Item) -> list[int]:
    """Rows of the table that a test is about."""
    return sorted({number for mark in item.iter_markers("fault") for number in mark.args})


class FaultResults:
    """A plugin that keeps what tests of faults report, and whether they passed.

    Parameters
    ----------
    path
        File that the results are written to; those of other tests that it has already stay. None to write nothing.
    """

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else pathlib.Path(path)
        self._tests: dict[str, dict[str, Any]] = {}

    @pytest.fixture
    def fault_report(self, request: pytest.FixtureRequest) -> Callable[..., None]:
        """Function with which a test of a fault records what it saw, before it asserts that this is right."""
        reports = request.node.stash.setdefault(_REPORTS, [])

        def fault_report(*, sent: int, lost: int, residual: int, note: str = "") -> None:
            """Record heaps sent, those of them that did not reach the user, and those that nobody accounts for."""
            assert fault_numbers(request.node), "a test that reports must have the mark fault(row)"
            reports.append({"sent": int(sent), "lost": int(lost), "residual": int(residual), "note": note})

        return fault_report

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Refuse marks that name no row."""
        for item in items:
            for mark in item.iter_markers("fault"):
                if not (mark.args and all(isinstance(arg, int) for arg in mark.args) and not mark.kwargs):
                    raise pytest.UsageError(f"{item.nodeid}: fault{mark.args} wants numbers of rows")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Take down the tests that are going to run."""
        for item in session.items:
            if numbers := fault_numbers(item):
                self._tests[item.nodeid] = _not_run(numbers)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Iterator[None]:
        """Give a report of a test of faults what the test has seen; a worker of pytest-xdist sends it on."""
        report: Any = yield
        if fault_numbers(item):
            report.user_properties.append((_PROPERTY, item.stash.get(_REPORTS, [])))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take down how a test, its beginning or its end went."""
        test = self._tests.setdefault(report.nodeid, _not_run([]))
        if report.outcome != "passed" or test["outcome"] == "not run":
            test["outcome"] = report.outcome
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else getattr(report, "wasxfail", "")
            test["why"] = reason.removeprefix("Skipped: ")
        test["reports"] = dict(report.user_properties).get(_PROPERTY, test["reports"])

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take over which tests a worker of pytest-xdist knows to be of faults."""
        for nodeid, numbers in getattr(node, "workeroutput", {}).get(_PROPERTY, {}).items():
            self._tests.setdefault(nodeid, _not_run(numbers))["rows"] = numbers

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the results, or tell the process that does."""
        tests = {nodeid: test for nodeid, test in self._tests.items() if test["rows"]}
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[_PROPERTY] = {nodeid: test["rows"] for nodeid, test in tests.items()}
        elif self._path is not None:
            add_results(self._path, tests)


def _not_run(rows: list[int]) -> dict[str, Any]:
    return {"rows": rows, "outcome": "not run", "reports": []}


def add_results(path: pathlib.Path, tests: dict[str, dict[str, Any]]) -> None:
    """Add what tests saw to a file, in place of what they saw before; programs outside of pytest may call it too.

    Parameters
    ----------
    path
        JSON file; made if it is not there.
    tests
        By the name of each test (of a Python file, ``FILE::TEST``): the numbers of its ``rows``; its ``outcome``
        ("passed", "failed", "skipped", "not run"), with a reason as ``why`` if it has one; and its ``reports``, each
        of ``sent``, ``lost``, ``residual`` and ``note``.
    """
    results = json.loads(path.read_text("utf-8")) if path.exists() else {"tests": {}}
    results["environment"] = environment()
    results["tests"].update(tests)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", "utf-8")


def environment() -> str:
    """What the tests ran on."""
    kernel = ".".join(platform.release().split("-")[0].split(".")[:2])
    return (
        f"{platform.python_implementation()} {platform.python_version()}, spead2 {spead2.__version__}, "
        f"Linux {kernel}, {platform.machine()}, {os.cpu_count()} processors"
    )
