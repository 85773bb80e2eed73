"""The matrix: what happens to an array, by how many senders there are and how their heaps are received.

Run as a program, it plays all cells and writes doc/matrix.md: what they lost, and where that was more than it may be.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import itertools
import operator
import os
import pathlib
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np

from fault_reports import environment
from played import Outcome, play
from scenarios import SCENARIOS
from scenes import Scenario, Scene
from senders import History, Shape

#: Batches in a second where heaps are sent by the clock, and a layout's tick rate means just that.
RATE = 2000
#: Longest pause of senders that send by the clock.
LONGEST_PAUSE = RATE // 2
#: Chunks in the window and batches in each that hold what bursts of good sources differ by, by the length of bursts.
WINDOWS = {1: (4, 4), 16: (6, 8), 64: (10, 8)}

DOCUMENT = pathlib.Path(__file__).parents[2] / "doc" / "matrix.md"

INTRODUCTION = """\
# What happens to an array, and what is lost

[faults.md](faults.md) has what a receiver must survive. Much of it is about time: who says what time it is, and what is
lost when sources disagree, or when time jumps. Here each line is a history of an array. It was played to receivers
through real streams, in several runs, which are the *cells* of this matrix. They differ in: the number of sources (1,
4, 16, 80) and of threads (1, 2, 4, 16); how many heaps of a source are read in a row (1, 16, 64), in a window that just
holds what this makes right sources differ by; how many sources are wrong (from one to just under half), and whether
they are read first or last; how heaps are read (one by one, as fast as possible, by the clock, from sockets by the
clock); and the layout's tick rate (none, right, wrong by 4 % or by a factor of 1.6).

- *Good heaps* are those of sources with right clocks. *Lost* is how many of them did not reach the user.
- After each event some loss cannot be avoided: what is read before more than half of the live sources have been read
  again that agree. (A source is live if it was heard in the last 4 windows.) Where threads read as fast as they can,
  nobody notes the order: the round in which that comes about counts as read before, and the next one too if a
  minority could be the first to be heard in it. *Worst source* is what a single source has lost apart from this,
  after one event. It may be 2 heaps; 3 if there is one source; 1 where receiving begins; 0 where nothing happens.
- *Outside* is the number of cells in which a source has lost more than it may, or something else was wrong.
- The *figure* is exact if the loss figure and the missing heaps of each source are what they are in truth.
- The *residual* is the number of heaps that no counter accounts for.

"""
OUTSIDE = """\
## Cells outside

In these cells a source with a right clock has lost more than it may, or something else was wrong. The first of it is
here. [The design of time](design/time.md#what-it-costs) says what a receiver cannot do, or does less well.
"""
#: Parts of their list: whether such a cell is the same in each run.
PARTS = {
    True: "### In each run",
    False: "### In some runs: it depends on how threads meet, or on a clock",
}


@dataclass(frozen=True)
class Setting:
    """How the senders and their receiver are set up."""

    sources: int
    threads: int
    burst: int
    #: Which part of the sources is wrong.
    wrong: str
    #: Whether those are read first or last.
    order: str
    #: Whether heaps are read one by one, in rounds as fast as possible, in rounds by the clock, or from sockets by it.
    pace: str
    #: The layout's tick rate in terms of the true one; None for none.
    tick_rate: float | None

    @property
    def n_wrong(self) -> int:
        most = (self.sources - 1) // 2
        return {"none": 0, "one": 1, "some": max(1, self.sources // 8), "almost half": most}[self.wrong]

    @property
    def is_exact(self) -> bool:
        """Whether heaps are read in the order in which they are sent."""
        return self.pace == "one by one" or (self.threads == 1 and self.pace != "sockets")

    @property
    def is_repeatable(self) -> bool:
        """Whether all is the same in each run: it depends neither on how threads meet, nor on a clock."""
        return self.pace == "one by one"

    def __str__(self) -> str:
        rate = "no tick rate" if self.tick_rate is None else f"tick rate x {self.tick_rate:g}"
        return (
            f"{self.sources} sources, {self.threads} threads, bursts of {self.burst}, wrong: {self.wrong} "
            f"({self.order}), {self.pace}, {rate}"
        )


#: Rows of the table of faults that a group belongs to.
GROUP_ROWS = {
    "Wrong clocks": (6, 24, 25),
    "Wrong clocks from the start": (6, 25, 29),
    "Garbage": (26,),
    "Gaps": (25, 30),
    "Restarts": (4,),
    "Silence": (25,),
    "Members of a group": (27,),
    "Starts": (29,),
    "Wraps": (5, 30),
}


CHOICES: dict[str, tuple] = {
    "sources": (4, 16, 80, 1),
    "threads": (1, 2, 4, 16),
    "burst": (1, 16, 64),
    "wrong": ("one", "some", "almost half", "none"),
    "order": ("first", "last"),
    "pace": ("one by one", "fast", "by the clock", "sockets"),
    "tick_rate": (None, 1.0, 1.04, 1 / 1.04, 1.6, 1 / 1.6),
}


@dataclass(frozen=True)
class Cell:
    """One run."""

    scenario: Scenario
    setting: Setting

    def __str__(self) -> str:
        return f"{self.scenario} | {self.setting}"

    def history(self) -> History:
        setting, scenario = self.setting, self.scenario
        window, batches = WINDOWS[setting.burst]
        shape = Shape(setting.sources, setting.threads, setting.burst, window, batches, scenario.step)
        phases = scenario.phases(Scene(shape, setting.n_wrong))
        return History(
            shape,
            phases,
            exact=setting.is_exact,
            wrong_last=setting.order == "last",
            seed=zlib.crc32(str(self).encode()),
        )

    def run(self) -> Seen:
        setting, history = self.setting, self.history()
        by_clock = setting.pace in ("by the clock", "sockets")
        rate = None if setting.tick_rate is None else setting.tick_rate * RATE * history.shape.step
        outcome = play(
            history,
            rate=RATE if by_clock else None,
            paced=setting.pace == "one by one",
            udp=setting.pace == "sockets",
            tick_rate=rate,
        )
        return judge(self, outcome)


@dataclass(frozen=True)
class Seen:
    """What a cell has shown."""

    group: str
    scenario: str
    cell: str
    is_repeatable: bool
    #: Good heaps.
    sent: int
    #: Good heaps that were lost, whether they count or not.
    lost: int
    #: The most that a source has lost in a phase of those that count.
    worst: int
    #: What is wrong with the loss figure and with what is missing; None if nobody can tell an outage from a restart.
    miscounted: tuple[str, ...] | None
    residual: int
    #: All that is wrong.
    complaints: tuple[str, ...]


def judge(cell: Cell, outcome: Outcome) -> Seen:
    """Compare what came out with what may be lost, and with the account."""
    history = outcome.history
    complaints = [*outcome.beyond(), *outcome.complaints()]
    since = history.majorities()
    if not any(
        heap.good and (start := since[heap.phase]) is not None and heap.moment >= start for heap in history.heaps
    ):
        complaints.append("no heap counts")
    miscounted = outcome.miscounted() if has_true_figure(cell.scenario, cell.setting) else None
    return Seen(
        group=cell.scenario.group,
        scenario=cell.scenario.name,
        cell=str(cell),
        is_repeatable=cell.setting.is_repeatable,
        sent=sum(heap.good for heap in history.heaps),
        lost=outcome.lost_in_all,
        worst=int(outcome.lost.max()),
        miscounted=None if miscounted is None else tuple(miscounted),
        residual=outcome.residual,
        complaints=(*complaints, *(miscounted or ())),
    )


def has_true_figure(scenario: Scenario, setting: Setting) -> bool:
    """Whether a receiver can tell outages from restarts."""
    if setting.tick_rate is None:
        return not scenario.needs_rate
    # If time goes faster than it should, the clock must have shown that for longer than these runs take.
    return not (setting.pace == "sockets" and setting.tick_rate < 1 / 1.1)


def is_possible(scenario: Scenario, setting: Setting) -> bool:
    """Whether there is such a cell."""
    n, wrong = setting.sources, setting.n_wrong
    if n < scenario.sources or setting.threads > n or setting.burst not in scenario.bursts:
        return False
    if scenario.threads and (setting.threads == 1 or setting.threads * 2 > n or setting.threads == 2):
        return False  # a member has fewer than half of the sources
    if scenario.with_wrong is not (setting.wrong != "none"):
        return False
    if setting.wrong == "none" and setting.order == "last":
        return False
    if setting.pace == "fast" and setting.threads == 1:
        return False  # the same as one by one
    if setting.pace in ("by the clock", "sockets"):
        if not scenario.in_time or n > 16 or setting.burst == 64:
            return False
        window, batches = WINDOWS[setting.burst]
        phases = scenario.phases(Scene(Shape(n, setting.threads, setting.burst, window, batches, scenario.step), wrong))
        length = sum(phase.length for phase in phases)
        return length <= RATE and all(phase.pause <= LONGEST_PAUSE for phase in phases)
    return True


_NAMES = [field.name for field in fields(Setting)]


def _together(setting: Setting) -> set[tuple]:
    """Which choices come together in a setting: each alone, and any two."""
    values = [(name, getattr(setting, name)) for name in _NAMES]
    return {(value,) for value in values} | set(itertools.combinations(values, 2))


@functools.cache
def _every() -> dict[Setting, set[tuple]]:
    every = itertools.product(*(CHOICES[name] for name in _NAMES))
    return {setting: _together(setting) for setting in itertools.starmap(Setting, every)}


def cells(scenario: Scenario, samples: int = 40) -> Iterator[Cell]:
    """Few cells of a scenario, in which there is each choice that there can be, and many pairs of choices."""
    rng = np.random.default_rng(zlib.crc32(str(scenario).encode()))
    together = {setting: choices for setting, choices in _every().items() if is_possible(scenario, setting)}
    possible = list(together)
    seen: set[tuple] = set()
    every: set[tuple] = set().union(*together.values())
    wanted = every if scenario.thorough else {choice for choice in every if len(choice) == 1}
    while wanted:
        tried = [possible[i] for i in rng.choice(len(possible), samples)]
        best = max(tried, key=lambda setting: 9 * len(together[setting] & wanted) + len(together[setting] - seen))
        if together[best] & wanted:
            wanted = wanted - together[best]
            seen |= together[best]
            yield Cell(scenario, best)


COLUMNS = ("Cells", "Good heaps", "Lost", "Worst source", "Outside", "Figure", "Residual")


def row(name: str, runs: Sequence[Seen]) -> str:
    """What some cells have shown together."""
    judged = [seen.miscounted for seen in runs if seen.miscounted is not None]
    wrong = sum(bool(miscounted) for miscounted in judged)
    numbers = (
        len(runs),
        sum(seen.sent for seen in runs),
        sum(seen.lost for seen in runs),
        max(seen.worst for seen in runs),
        sum(bool(seen.complaints) for seen in runs),
    )
    columns = [
        name,
        *(f"{number:,}".replace(",", " ") for number in numbers),
        (f"wrong in {wrong}" if wrong else "exact") if judged else "-",
        str(sum(abs(seen.residual) for seen in runs)),
    ]
    return f"| {' | '.join(columns)} |"


def table(first: str, rows: Iterable[tuple[str, Sequence[Seen]]]) -> str:
    """A table of cells that are taken together."""
    head = [f"| {' | '.join((first, *COLUMNS))} |", "|---" + "|---:" * len(COLUMNS) + "|"]
    return "\n".join([*head, *(row(name, runs) for name, runs in rows)]) + "\n"


def outside(results: Sequence[Seen]) -> str:
    """Each cell that is not as it must be, with the first of what is wrong."""
    text = OUTSIDE
    for is_repeatable, heading in PARTS.items():
        some = [seen for seen in results if seen.complaints and seen.is_repeatable is is_repeatable]
        text += f"\n{heading}\n\n" + ("".join(f"- `{seen.cell}`: {seen.complaints[0]}\n" for seen in some) or "None.\n")
    return text


def document(results: Sequence[Seen]) -> str:
    """The whole document."""

    def grouped(by: str, some: Sequence[Seen]) -> list[tuple[str, list[Seen]]]:
        return [(name, list(runs)) for name, runs in itertools.groupby(some, operator.attrgetter(by))]

    groups = grouped("group", results)
    parts = [
        f"{INTRODUCTION}{table('Group', [*groups, ('All', results)])}",
        outside(results),
        *(f"## {group}\n\n{table('What happens', grouped('scenario', runs))}" for group, runs in groups),
        f"Written by `make matrix`, from its run on {environment()}.\n",
    ]
    return "\n".join(parts)


def known(is_repeatable: bool) -> dict[str, str]:
    """Cells that are outside by the document, of either part of the list, with the first of what is wrong."""
    text = DOCUMENT.read_text("utf-8").partition(PARTS[is_repeatable])[2].partition("\n#")[0]
    return dict(re.findall(r"^- `(.*)`: (.*)$", text, re.MULTILINE))


def run(number: int) -> list[Seen]:
    """Play the cells of a scenario, by its number."""
    return [cell.run() for cell in cells(SCENARIOS[number])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="scenarios whose group and name have this text; writes no document")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    numbers = [number for number, scenario in enumerate(SCENARIOS) if arguments.only in str(scenario)]
    before = known(True) | known(False)
    results = []
    with concurrent.futures.ProcessPoolExecutor(arguments.processes) as pool:
        for seen in itertools.chain.from_iterable(pool.map(run, numbers)):
            results.append(seen)
            if seen.complaints:
                new = "" if seen.cell in before else "NEW: "
                print(f"{new}{seen.cell}", *seen.complaints[:4], sep="\n    ", file=sys.stderr, flush=True)
    text = document(results)
    if arguments.only:
        print(text.removeprefix(INTRODUCTION))
    else:
        DOCUMENT.write_text(text, "utf-8")
    if new := {seen.cell for seen in results if seen.complaints} - set(before):
        sys.exit(f"{len(new)} of {len(results)} cells are outside and were not before")


if __name__ == "__main__":
    main()
