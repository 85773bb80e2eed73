"""The comparison of counted instructions with their limits, and what callgrind writes."""

import pathlib
import runpy
import tomllib

import pytest

BENCHES = pathlib.Path(__file__).parents[1] / "benches"
budgets = runpy.run_path(str(BENCHES / "budgets.py"))
#: A file as callgrind 3.19 writes it, but for its lines of costs.
DUMP = """# callgrind format
version: 1
creator: callgrind-3.19.0
pid: 4639
cmd:  python budgets.py
part: {part}

desc: I1 cache: 
desc: Timerange: Basic block 0 - 1000
desc: Trigger: Client Request: {label}

positions: line
events: Ir
summary: {total}


ob=(1) /usr/lib/libc.so.6

totals: {total}
"""  # noqa: W291


def test_counts_are_read_and_what_is_not_meant_is_taken_off():
    dumps = [
        DUMP.format(part=1, label="less 100 callback: digitiser, in order", total=2_000),
        DUMP.format(part=2, label="work 100 callback: digitiser, in order", total=11_250),
        DUMP.format(part=3, label="less 10 fill: one byte", total=0),
        DUMP.format(part=4, label="work 10 fill: one byte", total=50),
        "desc: Trigger: Program termination\nsummary: 77\n",
    ]
    assert budgets["parse"](dumps) == {"callback: digitiser, in order": 92.5, "fill: one byte": 5.0}


def test_five_more_instructions_are_too_many_and_both_figures_are_named():
    limits = {"callback": budgets["limit_of"](92.5), "fill": 40.0}
    assert budgets["compare"]({"callback": 92.5, "fill": 39.8}, limits) == ([], [])
    wrong, lower = budgets["compare"]({"callback": 97.5, "fill": 39.8}, limits)
    assert wrong == [f"callback: 97.5 instructions, and {limits['callback']:.1f} are allowed"]
    assert lower == []


@pytest.mark.parametrize("figure", [1.6, 3.0, 68.5, 92.5, 131.0, 200.0])
def test_limit_is_above_its_figure_but_not_by_what_anybody_adds(figure):
    limit = budgets["limit_of"](figure)
    assert figure < limit <= figure + 4.1
    assert budgets["compare"]({"it": figure}, {"it": limit}) == ([], [])
    assert budgets["compare"]({"it": figure + 5}, {"it": limit})[0]


def test_fewer_instructions_are_not_wrong_but_told():
    assert budgets["compare"]({"it": 50.0}, {"it": 94.0}) == (
        [],
        [f"it: 50.0 instructions; the limit may be {budgets['limit_of'](50.0):.1f}, not 94.0"],
    )


def test_budget_without_a_limit_and_limit_without_a_budget_are_wrong():
    assert budgets["compare"]({"new": 1.0}, {"old": 1.0})[0] == [
        "new: has no limit",
        "old: has a limit, but was not counted",
    ]


def test_limits_that_are_written_are_those_that_are_read(tmp_path):
    figures = {"callback: digitiser, in order": 92.5, "presence: side by side": 1.62}
    budgets["write_limits"](figures, tmp_path / "limits.toml")
    limits = tomllib.loads((tmp_path / "limits.toml").read_text("utf-8"))["limits"]
    assert budgets["compare"](figures, limits) == ([], [])


def test_every_budget_has_a_limit(tmp_path):
    limits = tomllib.loads((BENCHES / "budgets.toml").read_text("utf-8"))["limits"]
    assert set(budgets["budgets"](tmp_path)) == set(limits)


def test_what_is_counted_works_without_callgrind(tmp_path):
    for work, less, number in budgets["budgets"](tmp_path).values():
        work()
        less()
        assert number > 0
