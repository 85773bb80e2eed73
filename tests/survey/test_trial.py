"""Layouts tried on the heaps that were seen: what the real callback does with them."""

import pytest
from speadrx.propose import propose

from speadrx import Axis, Layout, TimeAxis
from speadrx.survey.trial import LEAST_FITTING, try_layout
from wire import heap, survey_of

TIMES, BEAMS = 40, 4


def stream_of(items, times=TIMES, senders=1):
    (stream,) = survey_of(
        ((f"10.0.0.{beam % senders}", 5000), packet)
        for time in range(times)
        for beam in range(BEAMS)
        for packet in heap(time * BEAMS + beam, items(time, beam), bytes(8))
    ).streams()
    return stream


def layout(*axes, step=64):
    return Layout(heap_bytes=8, time=TimeAxis(item=0x1600, step=step, batches=4), axes=axes)


BEAM = Axis(name="beam", item=0x20, size=BEAMS)


def test_all_fit():
    trial = try_layout(layout(BEAM), stream_of(lambda time, beam: [(0x1600, time * 64), (0x20, beam)]))
    assert (trial.heaps, trial.fitting, trial.sharing, trial.too_old, trial.rejected) == (160, 160, 0, 0, {})
    assert trial.passed
    assert str(trial) == "160 of 160 heaps get a slot of their own"


def test_shared_slots():
    """Without the axis of the beams, each slot is wanted by four heaps."""
    trial = try_layout(layout(), stream_of(lambda time, beam: [(0x1600, time * 64), (0x20, beam)]))
    assert (trial.heaps, trial.fitting, trial.sharing) == (160, 40, 120)
    assert not trial.passed
    assert "120 heaps for the slot of another" in str(trial)


def test_reasons():
    """Each heap that does not fit has its reason."""
    stream = stream_of(lambda time, beam: [(0x1600, time * 64 + (time == 7)), (0x20, beam if time != 9 else 99)])
    trial = try_layout(layout(BEAM), stream)
    assert (trial.fitting, trial.rejected) == (152, {"bad_beam_heaps": 4, "bad_timestamp_heaps": 4})
    assert "4 heaps rejected (bad_beam_heaps)" in str(trial)
    assert trial.passed


def test_heaps_that_come_twice_share_nothing():
    stream = survey_of(heap(n // 2, [(0x1600, n // 2 * 64)], bytes(8))[0] for n in range(80)).streams()[0]
    trial = try_layout(layout(), stream)
    assert (trial.heaps, trial.fitting, trial.sharing) == (40, 40, 0)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_the_rule(share):
    """A layout is proposed if few enough heaps are garbage; a time is garbage that is on no grid."""
    n = int(TIMES * share)
    bad = set(range(5, 5 + n))
    stream = stream_of(lambda time, beam: [(0x1600, time * 64 + 3 * (time in bad)), (0x20, beam)])
    trial = try_layout(layout(BEAM), stream)
    assert trial.fitting == (TIMES - n) * BEAMS
    assert trial.passed == (share < 1 - LEAST_FITTING)


def test_heaps_that_only_their_senders_tell_apart():
    """No layout is proposed that places two senders' heaps in one slot: they are an axis."""
    proposal = propose(stream_of(lambda time, beam: [(0x1600, time * 64), (0x20, beam // 2)], senders=2))
    names = {axis.name: axis for axis in proposal.layout.axes}
    assert (names["sender"].item, names["sender"].values) == (
        "sender",
        (0x0A000000 << 16 | 5000, 0x0A000001 << 16 | 5000),
    )
    assert proposal.trial.fitting == 160


def test_heaps_that_nothing_tells_apart():
    proposal = propose(stream_of(lambda time, beam: [(0x1600, time * 64), (0x20, beam // 2)]))
    assert proposal.layout is None
    assert "50% of the heaps have the same time and the same values of all items as another heap" in proposal.obstacle


def test_no_proposal_that_was_not_tried():
    """The proposal says how many of the heaps fit."""
    proposal = propose(stream_of(lambda time, beam: [(0x1600, time * 64), (0x20, beam)]))
    assert proposal.trial.fitting == 160
    assert proposal.reasons[-1] == "tried: 160 of 160 heaps get a slot of their own."


def test_placement_serves_once():
    """What is tried with is used up, and wants whole heaps."""
    compiled = layout()._compiled
    placement = compiled.geometry({}).placement(window=2)
    with pytest.raises(ValueError, match="24 bytes are not a multiple of the 16 of a heap"):
        placement.try_heaps(bytes(24))
    placement.try_heaps(b"")
    with pytest.raises(ValueError, match="serves a stream already"):
        placement.try_heaps(b"")
    with pytest.raises(ValueError, match="serves a stream already"):
        placement.capsule()
