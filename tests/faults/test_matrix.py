"""The matrix of what may happen to an array: each source with a right clock loses no more than it may."""

import dataclasses

import pytest

from handmade import Heap, encode
from matrix import GROUP_ROWS, Cell, Setting, cells, known
from played import packet, play
from scenarios import SCENARIOS
from scenes import USUAL
from senders import History, Phase, Sent, Shape

BY_NAME = {str(scenario): scenario for scenario in SCENARIOS}
#: Cells that lose more than they may, in each run and in some, by the document.
IN_EACH_RUN, IN_SOME_RUNS = known(True), known(False)
KNOWN = IN_EACH_RUN | IN_SOME_RUNS


def report(seen, fault_report):
    fault_report(sent=seen.sent, lost=seen.lost, residual=seen.residual)
    assert seen.complaints == (), seen.cell


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_cells(name):
    """All cells that are the same in each run, but those that are known to be outside: the document has the others."""
    every = {str(cell): cell for cell in cells(BY_NAME[name])}
    known_here = {text for text in KNOWN if text.startswith(f"{name} | ")}
    assert every.keys() >= known_here, "run make matrix"
    for text in every.keys() - known_here:
        if every[text].setting.is_repeatable:
            assert every[text].run().complaints == (), text


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text, id=text, marks=pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason))
        for text, reason in IN_EACH_RUN.items()
    ],
)
def test_known_cells(text):
    """Once such a cell is as it must be, `make matrix` takes it off the list."""
    name, _, _ = text.partition(" | ")
    (cell,) = [cell for cell in cells(BY_NAME[name]) if str(cell) == text]
    assert cell.run().complaints == ()


#: Some cells of each kind that take little time.
FEW = {
    "Wrong clocks: ahead by 1.5 windows": Setting(16, 4, 1, "almost half", "first", "one by one", None),
    "Wrong clocks: jumping by up to 3 windows": Setting(16, 2, 16, "some", "last", "one by one", 1.0),
    "Wrong clocks from the start: drifting ahead by 25 %": Setting(
        16, 1, 16, "almost half", "first", "one by one", 1.6
    ),
    "Garbage: 1 % of all heaps, up to two windows ahead": Setting(16, 2, 1, "none", "first", "one by one", 1.04),
    "Gaps: all, 10 windows": Setting(4, 2, 1, "none", "first", "sockets", 1.0),
    "Gaps: all, 1000 windows, with a wrong clock far ahead": Setting(
        16, 4, 1, "almost half", "first", "one by one", 1.0
    ),
    "Restarts: all, back by 1.5 windows": Setting(4, 4, 16, "none", "first", "fast", 1.0),
    "Restarts: few, to 0, then all": Setting(16, 1, 1, "almost half", "last", "one by one", None),
    "Silence: most silent for 10 windows, then the few restart at 0": Setting(
        16, 4, 1, "one", "first", "one by one", None
    ),
    "Members of a group: one alone with a wrong source far ahead for 10 windows": Setting(
        16, 4, 1, "none", "first", "fast", 1.0
    ),
    "Starts: the wrong alone, far ahead, for 20 heaps": Setting(4, 2, 1, "one", "first", "one by one", 1.0),
    "Starts: after the wrap, step 3000": Setting(1, 1, 1, "none", "first", "one by one", None),
    "Wraps: a gap of 1.5 windows, step 3000": Setting(16, 4, 1, "none", "first", "one by one", 1.0),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.fault(*GROUP_ROWS[BY_NAME[name].group])) for name in FEW]
)
def test_few_cells(name, fault_report):
    report(Cell(BY_NAME[name], FEW[name]).run(), fault_report)


# The matrix itself


@pytest.mark.parametrize("udp", [False, True], ids=["queues", "sockets"])
@pytest.mark.parametrize(("sources", "threads", "burst"), [(1, 1, 1), (4, 2, 16), (16, 16, 1), (80, 4, 1)])
def test_nothing_is_lost_where_nothing_happens(sources, threads, burst, udp):
    shape = Shape(sources, threads, burst, window=6, batches=8)
    history = History(shape, [Phase(length=240, begins=USUAL, allowed=0)], exact=not udp)
    outcome = play(history, udp=udp)
    assert outcome.received.all()
    assert len(outcome.received) == 240 * sources
    assert outcome.complaints() == outcome.beyond() == outcome.miscounted() == []
    assert outcome.spans() == [(0, USUAL, USUAL + 239)]
    assert outcome.loss == outcome.stats.loss == 0


def test_packet_is_what_it_would_be_by_hand():
    heap = Sent(source=3, batch=2**36 + 5, phase=0, good=True, serial=77, moment=0, busy=0, due=0)
    (expected,) = encode(Heap({3: 0, 2: 16, 0x1600: 5 * 4096, 0x4101: 3}, (77).to_bytes(8, "big") + bytes(8)), 78, 48)
    assert sorted_items(packet(heap, 4096, 16)) == sorted_items(expected)


def sorted_items(data):
    """The header, the items in order of their IDs, and the payload."""
    end = 8 + 8 * int.from_bytes(data[6:8], "big")
    return data[:8], sorted(data[i : i + 8] for i in range(8, end, 8)), data[end:]


class TestMajority:
    """Which heaps count: from the first on by which more than half of the live sources were read that agree."""

    def majorities(self, phases, shape=None, **kwargs):
        return History(shape or Shape(4, window=2, batches=4), phases, **kwargs).majorities()

    def test_clean_start(self):
        assert self.majorities([Phase(length=3, begins=0)]) == [0]

    def test_wrong_first_at_the_start(self):
        wrong = {0: lambda i, good, rng: [good + 100]}
        # Heaps of the sources 0, 1, 2: two of three agree.
        assert self.majorities([Phase(length=3, begins=0, wrong=wrong)]) == [2]
        assert self.majorities([Phase(length=3, begins=0, wrong=wrong)], wrong_last=True) == [0]

    def test_restart_of_all(self):
        phases = [Phase(length=3, begins=0), Phase(length=3, begins=1000)]
        assert self.majorities(phases) == [0, 12 + 2]
        bursts = Shape(4, burst=3, window=2, batches=4)
        assert self.majorities(phases, bursts) == [0, 12 + 6]

    def test_half_is_no_majority(self):
        wrong = dict.fromkeys((0, 1), lambda i, good, rng: [good + 100])
        assert self.majorities([Phase(length=3, begins=0), Phase(length=3, begins=3, wrong=wrong)]) == [0, None]

    def test_silent_sources_are_live_for_a_while(self):
        phases = [Phase(length=3, begins=0), Phase(length=50, begins=1000, silent=frozenset({0, 1, 2}))]
        # Four windows of 8 batches after batch 2, the last of the others.
        assert self.majorities(phases) == [0, 12 + 32]

    def test_nobody_knows_the_order_in_a_round(self):
        phases = [Phase(length=4, begins=0), Phase(length=4, begins=1000)]
        history = History(Shape(4, window=2, batches=4), phases, exact=False)
        assert [heap.moment for heap in history.heaps] == [i // 8 for i in range(32)]
        assert history.majorities() == [1, 3]

    def test_what_counts(self):
        history = History(Shape(4, window=2, batches=4), [Phase(length=3, begins=0), Phase(length=3, begins=1000)])
        received = [True] * 24
        received[5] = received[13] = received[14] = received[17] = received[18] = False
        assert history.lost(received).tolist() == [[0, 1, 0, 0], [0, 1, 2, 0]]
        assert [history.allowed(phase) for phase in (0, 1)] == [2, 2]


def test_loss_is_seen():
    """A source that is not received is lost, and missing; a heap in another place is misplaced."""
    shape = Shape(4, window=4, batches=4)
    outcome = play(History(shape, [Phase(length=80, begins=USUAL)]))
    for chunk in outcome.chunks[2:4]:
        chunk.present[1, 2] = False
    outcome.chunks[5].timestamp += shape.step
    again = dataclasses.replace(outcome)
    assert again.lost.tolist() == [[4, 4, 6, 4]]
    assert again.misplaced == 16
    assert again.beyond() == [
        f"phase 0: source {i} lost {n} heaps, and may lose 2" for i, n in [(2, 6), (0, 4), (1, 4), (3, 4)]
    ]
    assert len(again.complaints()) == 2
