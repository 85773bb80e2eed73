"""The table of faults: each has tests, the document names no others, and nothing that went wrong is glossed over."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

import fault_table
from fault_rows import FAULTS

TESTS = pathlib.Path(__file__).parents[1]
DOCUMENT = fault_table.DOCUMENT.read_text("utf-8")
RUST_TESTS = sorted({test for fault in FAULTS for test in fault.rust})


def run_pytest(*arguments, directory=TESTS.parent, **environment):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *map(str, arguments)],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(TESTS / "support")} | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """Rows of each test of a fault that pytest finds, in all of tests/."""
    path = tmp_path_factory.mktemp("faults") / "results.json"
    files = [file for file in TESTS.rglob("test_*.py") if "mark.fault(" in file.read_text("utf-8")]
    result = run_pytest("--collect-only", "-m", "fault", f"--fault-results={path}", *files)
    assert result.returncode == 0, result.stdout + result.stderr
    return {test: run["rows"] for test, run in json.loads(path.read_text("utf-8"))["tests"].items()}


def test_rows_are_numbered():
    assert [fault.number for fault in FAULTS] == [*range(1, 33), 34, 35]


def test_every_fault_has_tests(collected):
    tested = {number for rows in collected.values() for number in rows}
    assert tested == {fault.number for fault in FAULTS}, "a fault has no test"


@pytest.mark.parametrize("test", RUST_TESTS)
def test_rust_test_is_there(test):
    file, _, name = test.partition("::")
    assert re.search(rf"#\[test\]\n(?: *#\[.*\]\n)* *fn {name}\(", (TESTS / file).read_text("utf-8"))


def test_document_names_tests_that_are_there(collected):
    python = {fault_table.function_name(test) for test in collected}
    rust = {f"tests/{test}" for test in RUST_TESTS}
    named = set(re.findall(r"`(tests/[^`]*::[^`]*)`", DOCUMENT))
    assert named - python - rust == set(), "run make faults"
    assert named


def test_document_has_every_row_as_it_is():
    start = DOCUMENT.index(fault_table.HEADER)
    assert DOCUMENT[:start] == fault_table.INTRODUCTION
    rows = [line for line in DOCUMENT[start:].splitlines() if re.match(r"\| \d", line)]
    assert len(rows) == len(FAULTS)
    for fault, row in zip(FAULTS, rows, strict=True):
        assert row.startswith(fault_table.plain_columns(fault) + " "), "run make faults"


def test_document_has_no_failure():
    assert "FAILED" not in DOCUMENT
    assert set(re.findall(r"residual (\d+)", DOCUMENT)) == {"0"}


# How results get into the table

EXAMPLE = """
import pytest

@pytest.mark.fault(1)
@pytest.mark.parametrize("residual", [1, -1])
def test_sees(fault_report, residual):
    fault_report(sent=1000, lost=10, residual=residual, note="a | note")

@pytest.mark.fault(1, 2)
def test_fails(fault_report):
    fault_report(sent=1, lost=0, residual=0)
    assert False

@pytest.mark.fault(2)
class TestFixtures:
    @pytest.fixture
    def bad_end(self):
        yield
        assert False

    @pytest.fixture
    def bad_begin(self):
        assert False

    def test_end(self, bad_end): pass
    def test_begin(self, bad_begin): pass

@pytest.mark.fault(3)
@pytest.mark.skip(reason="needs a telescope")
def test_skipped(): pass

@pytest.mark.fault(3)
@pytest.mark.xfail(reason="not yet")
def test_not_yet(): assert False

@pytest.mark.fault(10)
def test_passes(): pass

def test_of_no_fault(): pass
"""
CARGO = """\
     Running unittests src/lib.rs (target/debug/deps/speadrx-1)
test place::good ... ok
     Running tests/a.rs (target/debug/deps/a-1)
test good ... ok
test bad ... FAILED
test slow has been running for over 60 seconds
test slow ... ok
     Running tests/b.rs (target/debug/deps/b-1)
test good ... ignored
"""


@pytest.fixture
def example(tmp_path):
    """Run some tests of faults, and return what is written of them."""
    (tmp_path / "conftest.py").write_text(
        "import fault_reports\n"
        "def pytest_addoption(parser): parser.addoption(fault_reports.OPTION)\n"
        "def pytest_configure(config):\n"
        "    config.addinivalue_line('markers', 'fault')\n"
        "    config.pluginmanager.register(fault_reports.FaultResults(config.getoption(fault_reports.OPTION)))\n",
        "utf-8",
    )
    test, results = tmp_path / "test_example.py", tmp_path / "new" / "results.json"

    def run(source, *arguments):
        test.write_text(source, "utf-8")
        options = {"directory": tmp_path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # many take long to start
        result = run_pytest("test_example.py", f"--fault-results={results}", *arguments, **options)
        return result, json.loads(results.read_text("utf-8")) if results.exists() else None

    return run


def test_results(example):
    result, results = example(EXAMPLE)
    assert "1 failed, 5 passed, 1 skipped, 1 xfailed, 2 errors" in result.stdout
    rows = {fault.number: fault_table.row(fault, results["tests"], {}) for fault in FAULTS}
    seen = {number: row.rstrip(" |\n").rpartition(" | ")[2] for number, row in rows.items()}
    assert "`test_example.py::test_fails`: **FAILED**" in seen[1]
    # What is of opposite signs does not cancel.
    assert r"`test_example.py::test_sees` (2 cases): 2 000 sent, 20 lost, residual 2; a \| note" in rows[1]
    for test in ("test_fails", "TestFixtures::test_end", "TestFixtures::test_begin"):
        assert f"`test_example.py::{test}`: **FAILED**" in seen[2]
    assert "`test_example.py::test_skipped`: skipped (needs a telescope)" in seen[3]
    assert "`test_example.py::test_not_yet`: skipped (not yet)" in seen[3]
    assert seen[10] == "`test_example.py::test_passes`: passed"
    assert "test_of_no_fault" not in json.dumps(results)
    assert seen[7] == "(not run)"


def test_results_of_workers_are_those_of_one_process(example):
    _, alone = example(EXAMPLE)
    _, shared = example(EXAMPLE, "-p", "xdist", "-n", "2")
    assert shared == alone


def test_results_of_several_runs_are_merged(example):
    example(EXAMPLE)
    _, results = example(
        EXAMPLE.replace("    assert False\n\n@pytest.mark.fault(2)", "\n@pytest.mark.fault(2)"), "-k", "test_fails"
    )
    tests = results["tests"]
    assert len(tests) == 8
    assert tests["test_example.py::test_fails"]["outcome"] == "passed"
    assert tests["test_example.py::TestFixtures::test_end"]["outcome"] == "failed"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import pytest\n@pytest.mark.fault('3')\ndef test(): pass", "wants numbers of rows"),
        ("def test(fault_report): fault_report(sent=1, lost=0, residual=0)", "must have the mark"),
    ],
)
def test_mistakes(example, source, message):
    result, _ = example(source)
    assert result.returncode != 0
    assert message in result.stdout + result.stderr


def test_cargo():
    assert fault_table.cargo_outcomes(CARGO) == {
        "a.rs::good": "passed",
        "a.rs::bad": "failed",
        "a.rs::slow": "passed",
        "b.rs::good": "skipped",
        "src/lib.rs::place::good": "passed",
    }
