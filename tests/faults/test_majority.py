"""Time belongs to the majority of live sources, in histories that were seen to take it from them."""

import dataclasses

import numpy as np
import pytest

from played import RANGE, play
from scenes import FAR, ODD_STEP, USUAL, drifting
from senders import History, Phase, Shape

FOUR = Shape(4, window=4, batches=8)


def check(outcome, fault_report=None, note=""):
    """Each good source has lost no more than it may, and every heap is accounted for."""
    if fault_report is not None:
        sent = sum(heap.good for heap in outcome.history.heaps)
        fault_report(sent=sent, lost=outcome.lost_in_all, residual=outcome.residual, note=note)
    assert outcome.beyond() == []
    assert outcome.complaints() == []


def always(batch):
    """A clock that goes on from a batch, whatever that of the others is."""
    return lambda i, good, rng: [batch + i]


def lost_by_phase(outcome):
    return [
        sum(heap.good and not outcome.received[heap.serial] for heap in outcome.history.heaps if heap.phase == phase)
        for phase in range(len(outcome.history.phases))
    ]


# Captures that are played in a loop


@pytest.mark.fault(28)
@pytest.mark.parametrize("chunks", [3, 5, 8, 15, 20, 31, 40])
def test_looped_capture(chunks, fault_report):
    """It comes out each time. If the loop is shorter than the window, time must first be seen to go back."""
    plays = 30
    shape = Shape(4, batches=8, window=16)
    phases = [Phase(length=8 * chunks, begins=0, era=i, allowed=0 if i == 0 else None) for i in range(plays)]
    outcome = play(History(shape, phases), window=None)
    assert outcome.stats.chunks > 0
    fault_report(sent=len(outcome.history.heaps), lost=outcome.lost_in_all, residual=outcome.residual)
    assert outcome.complaints() == []
    if chunks > shape.window:
        assert outcome.beyond() == []
    else:
        assert outcome.stats.present >= 2 * len(outcome.history.heaps) // 3
        # Once it is learned, it comes out each time.
        assert all(lost <= 2 * shape.sources for lost in lost_by_phase(outcome)[-5:])


# Time that may not go back


@pytest.mark.fault(26)
@pytest.mark.parametrize("garbage", [0, 1, 2])
def test_garbage_while_time_is_refused(garbage, fault_report):
    """Senders go back for a moment, and are refused; some heaps of one are garbage; then all are right again."""
    everyone = range(4)
    back = dict.fromkeys(everyone, always(0))
    phases = [
        Phase(length=400, begins=10**6, allowed=0),
        Phase(length=60, begins=10**6 + 400, wrong=back),
        Phase(length=garbage, begins=10**6 + 460, wrong={1: always(3 * 10**10)}, silent=frozenset({0, 2, 3})),
        Phase(length=2000, begins=10**6 + 460 + garbage),
    ]
    outcome = play(History(FOUR, phases), resync=False)
    check(outcome, fault_report, f"{garbage} garbage heaps")
    assert outcome.stats.restarts == 0
    assert sum(outcome.stats.rejected.values()) >= 240


@pytest.mark.fault(26)
@pytest.mark.parametrize("sources", [1, 4])
def test_jump_ahead_after_a_refusal(sources, fault_report):
    """A refusal makes a later jump ahead no dearer."""
    back = dict.fromkeys(range(sources), always(0))
    shape = dataclasses.replace(FOUR, sources=sources)
    phases = [
        Phase(length=400, begins=10**6, allowed=0),
        Phase(length=60, begins=10**6 + 400, wrong=back),
        Phase(length=400, begins=2 * 10**6),
    ]
    check(play(History(shape, phases), resync=False), fault_report)


# Members of a group


@pytest.mark.fault(27)
@pytest.mark.parametrize("length", [20, 1000])
def test_member_alone_with_a_wrong_source(length, fault_report):
    """One source jumps ahead while the sources of the other thread are silent. Then these go on, and it is silent."""
    shape = dataclasses.replace(FOUR, threads=2, dealt=(0, 1, 1, 1))
    phases = [
        Phase(length=400, begins=10**6, allowed=0),
        Phase(length=length, begins=10**6 + 400, wrong={0: always(2 * 10**6)}, silent=frozenset({1, 2, 3})),
        Phase(length=3000, begins=10**6 + 400 + length, silent=frozenset({0})),
        Phase(length=400, begins=10**6 + 3400 + length),
    ]
    outcome = play(History(shape, phases, exact=False))
    check(outcome, fault_report, f"alone for {length} heaps")


@pytest.mark.fault(27)
@pytest.mark.parametrize("silence", [20, 60, 500])
def test_member_that_was_silent(silence, fault_report):
    shape = dataclasses.replace(FOUR, threads=2)
    phases = [
        Phase(length=200, begins=USUAL, allowed=0),
        Phase(length=silence, begins=USUAL + 200, silent=frozenset({2, 3}), allowed=0),
        Phase(length=400, begins=USUAL + 200 + silence),
    ]
    check(play(History(shape, phases)), fault_report, f"silent for {silence} batches")


# Wrong clocks


@pytest.mark.fault(24)
@pytest.mark.parametrize("burst", [1, 16, 64])
@pytest.mark.parametrize("wrong_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("chunks", [30, 1000])
def test_wrong_clock_in_bursts(burst, wrong_last, chunks, fault_report):
    """Heaps of each source come in bursts, as spead2 reads sockets; one source of four is ahead."""
    shape = Shape(4, burst=burst, window=16, batches=16)
    phases = [Phase(length=3200, begins=40000, wrong={3: always(40000 + 16 * chunks)})]
    outcome = play(History(shape, phases, wrong_last=wrong_last))
    check(outcome, fault_report, f"bursts of {burst}")
    assert outcome.stats.restarts <= 1
    assert outcome.estranged == [3]


@pytest.mark.slow
@pytest.mark.fault(24)
@pytest.mark.parametrize(("threads", "chunks"), [(1, 30), (2, 30), (4, 1000)])
def test_wrong_clock_on_sockets(threads, chunks, fault_report):
    """Each source has a socket of its own, and sends 64 packets in a row."""
    shape = Shape(4, threads=threads, burst=64, window=16, batches=16)
    phases = [Phase(length=3200, begins=40000, wrong={3: always(40000 + 16 * chunks)})]
    outcome = play(History(shape, phases, exact=False), udp=True)
    check(outcome, fault_report, f"{threads} threads")
    assert outcome.stats.restarts <= 1


MINORITIES = [(16, 2), (5, 2), *(pytest.param(80, wrong, marks=pytest.mark.slow) for wrong in (10, 39))]


@pytest.mark.fault(25)
@pytest.mark.parametrize(("sources", "wrong"), MINORITIES)
@pytest.mark.parametrize("way", ["drift", "first", "others pause"])
def test_minority_ahead(sources, wrong, way, fault_report):
    """A minority gets 1.5 windows ahead of all others, in one of three ways, and stays there."""
    shape = Shape(sources, window=4, batches=4)
    ahead, begins = 6 * 4, 4000
    few = range(wrong)
    steady = dict.fromkeys(few, lambda i, good, rng: [good + ahead])
    drift = dict.fromkeys(few, lambda i, good, rng: [good + i // 50])
    rest = frozenset(range(sources)) - frozenset(few)
    phases = {
        "drift": [
            Phase(length=50, begins=begins, allowed=0),
            Phase(length=50 * ahead, begins=begins + 50, wrong=drift),
        ],
        "first": [],
        "others pause": [
            Phase(length=50, begins=begins, wrong=steady),
            Phase(length=40, begins=begins + 50, wrong=steady, silent=rest),
        ],
    }[way]
    end = phases[-1].begins + phases[-1].length if phases else begins
    phases = [*phases, Phase(length=600, begins=end, wrong=steady)]
    check(play(History(shape, phases)), fault_report, f"{wrong} of {sources}, {way}")


@pytest.mark.fault(24)
def test_two_of_sixteen_run_fast(fault_report):
    """Two sources run 1 % fast, from inside the window to far beyond."""
    shape = Shape(16, window=4, batches=4)
    fast = dict.fromkeys((3, 11), drifting(0.01))
    outcome = play(History(shape, [Phase(length=4000, begins=USUAL, wrong=fast)]))
    check(outcome, fault_report)
    assert outcome.stats.restarts == 0


# Outages and restarts


@pytest.mark.fault(25)
@pytest.mark.parametrize("alone", [1, 20])
@pytest.mark.parametrize("udp", [False, True], ids=["queue", "sockets"])
def test_wrong_source_first_after_an_outage(alone, udp, fault_report):
    """What it claims agrees with the clock as well as the truth does: it is 5 % of the outage ahead."""
    shape = Shape(4, window=4, batches=4)
    rate, pause = 2000, 800
    wrong = {1: lambda i, good, rng: [good + pause // 20]}
    begins = USUAL + 400 + pause
    phases = [
        Phase(length=400, begins=USUAL, allowed=0),
        Phase(length=alone, begins=begins, wrong=wrong, silent=frozenset({0, 2, 3}), pause=pause),
        Phase(length=200, begins=begins + alone, wrong=wrong),
    ]
    history = History(shape, phases, exact=not udp)
    check(play(history, rate=rate, udp=udp, tick_rate=rate * shape.step), fault_report)


@pytest.mark.fault(4)
@pytest.mark.parametrize("sources", [4, pytest.param(80, marks=pytest.mark.slow)])
@pytest.mark.parametrize("back", [-16, -3, 0, 5, 40])
def test_back_around_the_end_of_the_epoch_before(sources, back, fault_report):
    """Senders go elsewhere for a moment, and come back to where they were: those heaps too say what time it is."""
    shape = Shape(sources, window=4, batches=4)
    phases = [
        Phase(length=100, begins=USUAL, allowed=0),
        Phase(length=10, begins=77, era=1),
        Phase(length=200, begins=USUAL + 100 + back, era=2),
    ]
    check(play(History(shape, phases)), fault_report, f"{sources} sources")


@pytest.mark.fault(25)
@pytest.mark.parametrize("sources", [2, 4, 16])
@pytest.mark.parametrize("offset", [24, 16 * 1000, FAR, -24, -16 * 1000, -FAR])
@pytest.mark.parametrize("wrong_last", [False, True], ids=["first", "last"])
def test_equal_halves_that_disagree(sources, offset, wrong_last, fault_report):
    """Those whose time it was keep it, however long that lasts, and nothing turns to and fro."""
    shape = Shape(sources, window=4, batches=4)
    other = dict.fromkeys(range(sources // 2), lambda i, good, rng: [good + offset])
    phases = [
        Phase(length=100, begins=USUAL, allowed=0),
        Phase(length=800, begins=USUAL + 100, wrong=other),
    ]
    outcome = play(History(shape, phases, wrong_last=wrong_last))
    sent = sum(heap.good for heap in outcome.history.heaps)
    fault_report(sent=sent, lost=outcome.lost_in_all, residual=outcome.residual)
    assert outcome.complaints() == []
    assert outcome.stats.restarts <= 1
    assert outcome.lost_in_all <= 2 * sources // 2


@pytest.mark.fault(25)
@pytest.mark.parametrize("sources", [2, 4, 16])
@pytest.mark.parametrize("offset", [24, 16 * 1000, FAR])
def test_equal_halves_from_the_start(sources, offset):
    """Nobody can tell who is right. One half is received, and it stays so."""
    shape = Shape(sources, window=4, batches=4)
    other = dict.fromkeys(range(sources // 2), lambda i, good, rng: [good + offset])
    outcome = play(History(shape, [Phase(length=800, begins=USUAL, wrong=other)]))
    assert outcome.complaints() == []
    assert outcome.stats.restarts <= 1
    present = np.array([source.present for source in outcome.stats.sources])
    assert max(present[: sources // 2].min(), present[sources // 2 :].min()) >= 798


@pytest.mark.fault(29)
@pytest.mark.parametrize("step", [4096, ODD_STEP, 2**20 + 7])
@pytest.mark.parametrize("where", ["before", "across", "after"])
@pytest.mark.parametrize("sources", [1, 8])
def test_start_around_the_wrap(step, where, sources, fault_report):
    """Of a step that is no power of two, the 48 bits hold no whole number."""
    wrap = RANGE // step
    begins = {"before": 1000, "across": wrap - 200, "after": wrap + 200}[where]
    shape = Shape(sources, window=4, batches=1, step=step)
    allowed = int(where == "after" and RANGE % step != 0)
    outcome = play(History(shape, [Phase(length=400, begins=begins, allowed=allowed)]))
    check(outcome, fault_report, where)


@pytest.mark.fault(29)
def test_start_with_wrong_sources_first(fault_report):
    """Each right source is received from its second heap on."""
    wrong = dict.fromkeys((0, 1), lambda i, good, rng: [good + 24])
    history = History(Shape(16, window=4, batches=4), [Phase(length=100, begins=USUAL, wrong=wrong, allowed=1)])
    check(play(history), fault_report)


MEBIBYTE = 2**20


@pytest.mark.fault(4, 30)
@pytest.mark.parametrize("jump", [2, 40, 5000, -40, -FAR])
def test_slow_stream_of_large_heaps(jump, fault_report):
    """Of a stream of 2 heaps a second, a gap or a restart costs at most 1.5 s."""
    shape = Shape(1, window=16, batches=1)
    phases = [
        Phase(length=40, begins=USUAL, allowed=0),
        Phase(length=40, begins=USUAL + 40 + jump, era=int(jump < 0)),
    ]
    outcome = play(History(shape, phases), tick_rate=2.0 * shape.step, heap_bytes=MEBIBYTE, window=None)
    check(outcome, fault_report)
    assert lost_by_phase(outcome)[1] <= 3
