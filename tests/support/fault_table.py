"""Write doc/faults.md: the table of faults, with what the tests saw by the results of a run."""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Iterable
from typing import Any

from fault_rows import FAULTS, Fault

DOCUMENT = pathlib.Path(__file__).parents[2] / "doc" / "faults.md"

INTRODUCTION = """\
# What speadrx survives

Each of these faults has broken a receiver that is only spead2 and a placement callback, or is one that the network of a
telescope produces. Each has tests that use real streams. The tests know what they sent, and compare data and counters
with it.

*Seen here* is what these tests saw: how many heaps were sent, and how many of them did not reach the user, because the
fault lost them or because they had to be rejected. The *residual* is the number of heaps that no counter accounts for.
It must be 0. Tests without such numbers are about errors and the like; they only say that they passed. The
[glossary](glossary.md) explains the terms.

Faults of time (3 to 6, 24 to 30) come in many combinations. [matrix.md](matrix.md) has more of them, and names those in
which more is lost than may be.

"""
HEADER = "| # | Fault | Elsewhere | Must happen here | Seen here |\n|---|---|---|---|---|\n"

#: What cargo prints of test executables, and of their tests.
_CARGO_FILE = re.compile(r"Running (?:unittests |tests/)(\S+\.rs)")
_CARGO_TEST = re.compile(r"^test (\S+) \.\.\. (ok|FAILED|ignored)", re.MULTILINE)
_CARGO_OUTCOMES = {"ok": "passed", "FAILED": "failed", "ignored": "skipped"}


def cargo_outcomes(output: str) -> dict[str, str]:
    """What became of each Rust test, by ``FILE::TEST``, in the output of ``cargo test``."""
    (_, *parts) = _CARGO_FILE.split(output)
    return {
        f"{file}::{test}": _CARGO_OUTCOMES[outcome]
        for file, text in zip(parts[::2], parts[1::2], strict=True)
        for test, outcome in _CARGO_TEST.findall(text)
    }


def function_name(test: str) -> str:
    """Name of a Python test without its parameters."""
    return test.partition("[")[0]


def plain_columns(fault: Fault) -> str:
    """The columns of a row that do not depend on results."""
    return f"| {fault.number} | {fault.fault} | {fault.elsewhere or '(not known)'} | {fault.here} |"


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}".replace(",", " ")


def _seen(name: str, runs: list[dict[str, Any]]) -> str:
    """What all the runs of a test function saw, one for each set of its parameters."""
    test = f"`{name}`" + (f" ({len(runs)} cases)" if len(runs) > 1 else "")
    outcomes = [run["outcome"] for run in runs]
    if "failed" in outcomes:
        return f"{test}: **FAILED**"
    if "passed" not in outcomes:
        reason = next((run["why"] for run in runs if run.get("why")), "")
        return f"{test}: {outcomes[0]}" + (f" ({reason})" if reason else "")
    reports = [report for run in runs for report in run["reports"]]
    if not reports:
        return f"{test}: passed"
    sent, lost = (sum(report[key] for report in reports) for key in ("sent", "lost"))
    # Of opposite signs, they must not cancel.
    residual = sum(abs(report["residual"]) for report in reports)
    notes = dict.fromkeys(report["note"] for report in reports if report["note"])
    return f"{test}: " + "; ".join(
        [_number(sent, "sent") + ", " + _number(lost, "lost") + f", residual {residual}", *notes]
    )


def row(fault: Fault, tests: dict[str, dict[str, Any]], rust: dict[str, str]) -> str:
    """A row of the table."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for test, run in tests.items():
        if fault.number in run["rows"]:
            runs.setdefault(function_name(test), []).append(run)
    seen = [_seen(name, runs[name]) for name in sorted(runs)]
    for test in fault.rust:
        outcome = rust.get(test, "not run")
        seen.append(f"`tests/{test}`: " + ("**FAILED**" if outcome == "failed" else outcome))
    if not seen:
        seen = ["(not run)"]
    return f"{plain_columns(fault)} {'<br>'.join(text.replace('|', chr(92) + '|') for text in seen)} |\n"


def document(results: dict[str, Any], rust: dict[str, str], faults: Iterable[Fault] = FAULTS) -> str:
    """The whole document."""
    rows = "".join(row(fault, results["tests"], rust) for fault in faults)
    return f"{INTRODUCTION}{HEADER}{rows}\nWritten by `make faults`, from its run on {results['environment']}.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=pathlib.Path, help="what pytest --fault-results has written")
    parser.add_argument("--cargo", type=pathlib.Path, help="what cargo test has printed")
    parser.add_argument("--output", type=pathlib.Path, default=DOCUMENT)
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text("utf-8"))
    rust = {} if arguments.cargo is None else cargo_outcomes(arguments.cargo.read_text("utf-8"))
    if unknown := {number for run in results["tests"].values() for number in run["rows"]} - {f.number for f in FAULTS}:
        sys.exit(f"{arguments.results}: tests of unknown faults: {sorted(unknown)}")
    arguments.output.write_text(document(results, rust), "utf-8")


if __name__ == "__main__":
    main()
