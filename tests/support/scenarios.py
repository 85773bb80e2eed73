"""What may happen to the senders of an array: wrong clocks, gaps, restarts, silence, starts, wraps, garbage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scenes import (
    FAR,
    ODD_STEP,
    USUAL,
    WRONG,
    Scenario,
    Scene,
    WrongClocks,
    alike,
    drifting,
    nobody,
    shifted,
)
from senders import Clock, Phase

SCENARIOS: list[Scenario] = []
GROUPS = (
    "Wrong clocks",
    "Wrong clocks from the start",
    "Garbage",
    "Gaps",
    "Restarts",
    "Silence",
    "Members of a group",
    "Starts",
    "Wraps",
)


def scenario(group: str, name: str, phases: Callable[[Scene], Sequence[Phase]], **properties: object) -> None:
    SCENARIOS.append(Scenario(group, name, phases, **properties))  # type: ignore[arg-type]


# Wrong clocks


def goes_wrong(clocks: WrongClocks, length: float = 5) -> Callable[[Scene], Sequence[Phase]]:
    """All right, then some wrong, then right again."""

    def phases(scene: Scene) -> Sequence[Phase]:
        before, during = scene.spans(3), scene.spans(length)
        return [
            Phase(length=before, begins=USUAL, allowed=0),
            Phase(length=during, begins=USUAL + before, wrong=clocks(scene)),
            Phase(length=scene.spans(3), begins=USUAL + before + during),
        ]

    return phases


def begins_wrong(clocks: WrongClocks, length: float = 6) -> Callable[[Scene], Sequence[Phase]]:
    """Some wrong from the start, then right."""

    def phases(scene: Scene) -> Sequence[Phase]:
        during = scene.spans(length)
        return [
            Phase(length=during, begins=USUAL, wrong=clocks(scene), allowed=1),
            Phase(length=scene.spans(3), begins=USUAL + during),
        ]

    return phases


for _name, _clocks in WRONG.items():
    scenario("Wrong clocks", _name, goes_wrong(_clocks))
    scenario("Wrong clocks from the start", _name, begins_wrong(_clocks))
for _rate, _name in ((0.01, "drifting ahead by 1 %"), (-0.01, "drifting back by 1 %")):
    # Until they have left the window by far.
    _clocks = alike(lambda scene, rate=_rate: drifting(rate))
    scenario("Wrong clocks", _name, goes_wrong(_clocks, 150), bursts=(1,))


# Gaps

GAPS: dict[str, Callable[[Scene], int]] = {
    "1 chunk": lambda scene: scene.shape.batches,
    "2 chunks": lambda scene: 2 * scene.shape.batches,
    **{
        f"{windows} windows": lambda scene, windows=windows: scene.spans(windows)
        for windows in (0.75, 1, 1.5, 2, 10, 100, 1000)
    },
}


def gap_of_all(gap: Callable[[Scene], int], wrong: WrongClocks) -> Callable[[Scene], Sequence[Phase]]:
    def phases(scene: Scene) -> Sequence[Phase]:
        before, missing = scene.spans(3), gap(scene)
        clocks = wrong(scene)
        return [
            Phase(length=before, begins=USUAL, wrong=clocks, allowed=1 if clocks else 0),
            Phase(length=scene.spans(4), begins=USUAL + before + missing, wrong=clocks, pause=missing),
        ]

    return phases


def gap_of_most(gap: Callable[[Scene], int]) -> Callable[[Scene], Sequence[Phase]]:
    """Most are silent, and come back with the right time."""

    def phases(scene: Scene) -> Sequence[Phase]:
        before, missing = scene.spans(3), gap(scene)
        return [
            Phase(length=before, begins=USUAL, allowed=0),
            Phase(length=missing, begins=USUAL + before, silent=scene.rest),
            Phase(length=scene.spans(4), begins=USUAL + before + missing),
        ]

    return phases


for _name, _gap in GAPS.items():
    scenario("Gaps", f"all, {_name}", gap_of_all(_gap, nobody), with_wrong=False, sources=1)
    scenario("Gaps", f"all, {_name}, with a wrong clock far ahead", gap_of_all(_gap, WRONG["ahead by 1000 windows"]))
    scenario("Gaps", f"all, {_name}, with a wrong clock near", gap_of_all(_gap, WRONG["ahead by 1.5 windows"]))
    if "00" not in _name:
        scenario("Gaps", f"most, {_name}", gap_of_most(_gap))


def wrong_after_a_gap(windows: float, alone: int) -> Callable[[Scene], Sequence[Phase]]:
    """After a gap of all, some clocks are wrong, and are heard first: alone, for so many batches."""

    def phases(scene: Scene) -> Sequence[Phase]:
        before, missing = scene.spans(3), scene.spans(20)
        clocks, begins = scene.clocks(shifted(scene, windows)), USUAL + before + missing
        return [
            Phase(length=before, begins=USUAL, allowed=0),
            Phase(length=alone, begins=begins, wrong=clocks, silent=scene.rest, pause=missing),
            Phase(length=scene.spans(5), begins=begins + alone, wrong=clocks),
            Phase(length=scene.spans(3), begins=begins + alone + scene.spans(5)),
        ]

    return phases


for _windows, _name in (
    (0.5, "half a window ahead"),
    (1.5, "1.5 windows ahead"),
    (-1.5, "1.5 windows behind"),
    (FAR, "far ahead"),
):
    for _alone in (1, 20):
        scenario("Gaps", f"all, then the wrong alone for {_alone} heaps, {_name}", wrong_after_a_gap(_windows, _alone))


# Restarts

RESTARTS: dict[str, Callable[[int, Scene], int]] = {
    "to 0": lambda now, scene: 0,
    "to 3 batches": lambda now, scene: 3,
    "back by 1.2 windows": lambda now, scene: now - scene.spans(1.2),
    "back by 1.5 windows": lambda now, scene: now - scene.spans(1.5),
    "back by 2 windows": lambda now, scene: now - scene.spans(2),
    "back by 10 windows": lambda now, scene: now - scene.spans(10),
    "back by days": lambda now, scene: now - FAR,
    "ahead by days": lambda now, scene: now + FAR,
}


def restart_of_all(
    to: Callable[[int, Scene], int], wrong: WrongClocks, times: int = 1
) -> Callable[[Scene], Sequence[Phase]]:
    def phases(scene: Scene) -> Sequence[Phase]:
        length = scene.spans(3)
        clocks = wrong(scene)
        found = [Phase(length=length, begins=USUAL, wrong=clocks, allowed=1 if clocks else 0)]
        for era in range(1, times + 1):
            begins = to(found[-1].begins + length, scene)
            found.append(Phase(length=length, begins=begins, era=era, wrong=clocks))
        return found

    return phases


def restart_of_few(to: Callable[[int, Scene], int], all_later: bool) -> Callable[[Scene], Sequence[Phase]]:
    """A minority is restarted and stays so; later, the others are too, or the minority comes back."""

    def phases(scene: Scene) -> Sequence[Phase]:
        before, during = scene.spans(3), scene.spans(5)
        elsewhere = to(USUAL + before, scene)
        clocks = scene.clocks(lambda i, good, rng: [good - USUAL - before + elsewhere])
        end = elsewhere + during if all_later else USUAL + before + during
        return [
            Phase(length=before, begins=USUAL, allowed=0),
            Phase(length=during, begins=USUAL + before, wrong=clocks),
            Phase(length=scene.spans(4), begins=end, era=int(all_later)),
        ]

    return phases


def restart_of_most(to: Callable[[int, Scene], int]) -> Callable[[Scene], Sequence[Phase]]:
    """Most are restarted; the few follow later."""

    def phases(scene: Scene) -> Sequence[Phase]:
        before, during = scene.spans(3), scene.spans(5)
        elsewhere = to(USUAL + before, scene)
        clocks = scene.clocks(lambda i, good, rng: [good - elsewhere + USUAL + before])
        return [
            Phase(length=before, begins=USUAL, allowed=0),
            Phase(length=during, begins=elsewhere, wrong=clocks, era=1),
            Phase(length=scene.spans(4), begins=elsewhere + during, era=1),
        ]

    return phases


for _name, _to in RESTARTS.items():
    _needs = {"needs_rate": _name.startswith("ahead"), "in_time": False}
    scenario("Restarts", f"all, {_name}", restart_of_all(_to, nobody), with_wrong=False, sources=1, **_needs)
    scenario(
        "Restarts",
        f"all, {_name}, with a wrong clock far ahead",
        restart_of_all(_to, WRONG["ahead by 1000 windows"]),
        **_needs,
    )
    scenario(
        "Restarts",
        f"all, {_name}, with a wrong clock near",
        restart_of_all(_to, WRONG["ahead by 1.5 windows"]),
        **_needs,
    )
    scenario("Restarts", f"few, {_name}, then all", restart_of_few(_to, all_later=True), **_needs)
    scenario("Restarts", f"few, {_name}, then back", restart_of_few(_to, all_later=False), **_needs)
    scenario("Restarts", f"most, {_name}, then all", restart_of_most(_to), **_needs)
scenario(
    "Restarts",
    "all, back by 1.5 windows, five times",
    restart_of_all(RESTARTS["back by 1.5 windows"], nobody, 5),
    with_wrong=False,
    sources=1,
    in_time=False,
)
scenario(
    "Restarts",
    "all, back by 10 windows, five times",
    restart_of_all(RESTARTS["back by 10 windows"], nobody, 5),
    with_wrong=False,
    sources=1,
    in_time=False,
)


def elsewhere_and_back(length: float, later: Callable[[Scene], int]) -> Callable[[Scene], Sequence[Phase]]:
    """All go far away for a while, and come back to about where they were."""

    def phases(scene: Scene) -> Sequence[Phase]:
        before, away = scene.spans(3), scene.spans(length)
        return [
            Phase(length=before, begins=USUAL, allowed=0),
            Phase(length=away, begins=USUAL // 2, era=1),
            Phase(length=scene.spans(4), begins=USUAL + before + later(scene), era=2),
        ]

    return phases


for _length in (0.5, 3):
    for _name, _later in {
        "where they were": lambda scene: 0,
        "a window before that": lambda scene: -scene.span,
        "a window after that": lambda scene: scene.span,
        "4 windows after that": lambda scene: scene.spans(4),
    }.items():
        scenario(
            "Restarts",
            f"all, elsewhere for {_length} windows, then {_name}",
            elsewhere_and_back(_length, _later),
            with_wrong=False,
            sources=1,
            in_time=False,
            needs_rate=True,
        )


# Silence of most


def silence(length: float, to: Callable[[int, Scene], int], era: int) -> Callable[[Scene], Sequence[Phase]]:
    """Most fall silent. After a while the few go elsewhere. Later, all are there."""

    def phases(scene: Scene) -> Sequence[Phase]:
        before, alone, after = scene.spans(3), scene.spans(length), scene.spans(12)
        elsewhere = to(USUAL + before + alone, scene)
        found = [Phase(length=before, begins=USUAL, allowed=0)]
        if alone:
            found.append(Phase(length=alone, begins=USUAL + before, silent=scene.rest))
        # Time has passed for these too, if it has.
        pause = elsewhere - (USUAL + before + alone) if era == 0 else 0
        return [
            *found,
            Phase(length=after, begins=elsewhere, silent=scene.rest, era=era, pause=pause),
            Phase(length=scene.spans(4), begins=elsewhere + after, era=era),
        ]

    return phases


for _length in (0, 2, 10):
    _when = f"most silent for {_length} windows" if _length else "most silent suddenly"
    scenario(
        "Silence",
        f"{_when}, then a gap of 10 windows of the few",
        silence(_length, lambda now, scene: now + scene.spans(10), 0),
    )
    scenario(
        "Silence",
        f"{_when}, then a gap of 2 chunks of the few",
        silence(_length, lambda now, scene: now + 2 * scene.shape.batches, 0),
    )
    scenario("Silence", f"{_when}, then the few restart at 0", silence(_length, RESTARTS["to 0"], 1), in_time=False)
    scenario(
        "Silence",
        f"{_when}, then the few restart 1.5 windows back",
        silence(_length, RESTARTS["back by 1.5 windows"], 1),
        in_time=False,
    )


# Members of a group


def members(scene: Scene, which: Callable[[int], bool]) -> frozenset[int]:
    return frozenset(source for source in scene.everyone if which(scene.shape.thread(source)))


def silent_member(length: Callable[[Scene], int]) -> Callable[[Scene], Sequence[Phase]]:
    def phases(scene: Scene) -> Sequence[Phase]:
        before, during = scene.spans(3), length(scene)
        return [
            Phase(length=before, begins=USUAL, allowed=0),
            Phase(length=during, begins=USUAL + before, silent=members(scene, lambda thread: thread == 0)),
            Phase(length=scene.spans(4), begins=USUAL + before + during),
        ]

    return phases


def alone_with_a_wrong_source(length: Callable[[Scene], int], offset: int) -> Callable[[Scene], Sequence[Phase]]:
    """One source of the first member goes on with a wrong time, while all others are silent."""

    def phases(scene: Scene) -> Sequence[Phase]:
        before, during = scene.spans(3), length(scene)
        clock: Clock = lambda i, good, rng: [good + offset]  # noqa: E731
        return [
            Phase(length=before, begins=USUAL, allowed=0),
            Phase(length=during, begins=USUAL + before, wrong={0: clock}, silent=scene.everyone - {0}),
            Phase(length=scene.spans(4), begins=USUAL + before + during, wrong={0: clock}),
            Phase(length=scene.spans(4), begins=USUAL + before + during + scene.spans(4)),
        ]

    return phases


def lagging_member(windows: float) -> Callable[[Scene], Sequence[Phase]]:
    """The first member reads what was sent some windows ago, until it has caught up."""

    def phases(scene: Scene) -> Sequence[Phase]:
        before, during = scene.spans(3), scene.spans(4)
        late = dict.fromkeys(members(scene, lambda thread: thread == 0), shifted(scene, -windows))
        return [
            Phase(length=before, begins=USUAL, allowed=0),
            Phase(length=during, begins=USUAL + before, wrong=late),
            Phase(length=scene.spans(4), begins=USUAL + before + during),
        ]

    return phases


LENGTHS: dict[str, Callable[[Scene], int]] = {
    "20 heaps": lambda scene: 20,
    "1.5 windows": lambda scene: scene.spans(1.5),
    "10 windows": lambda scene: scene.spans(10),
}
for _name, _length_of in LENGTHS.items():
    scenario("Members of a group", f"one silent for {_name}", silent_member(_length_of), with_wrong=False, threads=True)
    for _where, _offset in (("far ahead", FAR), ("far behind", -FAR)):
        scenario(
            "Members of a group",
            f"one alone with a wrong source {_where} for {_name}",
            alone_with_a_wrong_source(_length_of, _offset),
            with_wrong=False,
            threads=True,
            in_time=False,
            needs_rate=True,
        )
for _windows in (0.5, 1.5, 3):
    scenario(
        "Members of a group",
        f"one lags by {_windows} windows",
        lagging_member(_windows),
        with_wrong=False,
        threads=True,
    )


# Starts in the midst of anything


def start_at(batch: Callable[[Scene], int], allowed: int) -> Callable[[Scene], Sequence[Phase]]:
    return lambda scene: [Phase(length=scene.spans(6), begins=batch(scene), allowed=allowed)]


def wrong_alone_first(length: Callable[[Scene], int], offset: int) -> Callable[[Scene], Sequence[Phase]]:
    """The few, with a wrong time, are alone at first."""

    def phases(scene: Scene) -> Sequence[Phase]:
        alone = length(scene)
        clocks = scene.clocks(lambda i, good, rng: [good + offset])
        return [
            Phase(length=alone, begins=USUAL, wrong=clocks, silent=scene.rest),
            Phase(length=scene.spans(6), begins=USUAL + alone, wrong=clocks),
        ]

    return phases


def start_in_a_restart(scene: Scene) -> Sequence[Phase]:
    """Most have been restarted already; a moment later all are."""
    old = scene.clocks(lambda i, good, rng: [good + USUAL])
    return [
        Phase(length=5, begins=7, wrong=old, allowed=1),
        Phase(length=scene.spans(6), begins=12),
    ]


def one_after_another(scene: Scene) -> Sequence[Phase]:
    """Each source begins a while after the one before."""
    n = min(scene.shape.sources, 8)
    each = max(scene.span // 4, 1)
    return [
        Phase(length=each, begins=USUAL + i * each, silent=frozenset(range(i + 1, scene.shape.sources)), allowed=0)
        for i in range(n)
    ] + [Phase(length=scene.spans(4), begins=USUAL + n * each, allowed=0)]


def wrap(step: int) -> int:
    """The first batch beyond 48 bits."""
    return -(-(2**48) // step)


for _step in (4096, ODD_STEP):
    _beyond = f", step {_step}"
    scenario(
        "Starts",
        f"after the wrap{_beyond}",
        start_at(lambda scene: wrap(scene.shape.step) + 12345, 1),
        with_wrong=False,
        sources=1,
        step=_step,
    )
    scenario(
        "Starts",
        f"just after the wrap{_beyond}",
        start_at(lambda scene: wrap(scene.shape.step) + 1, 1),
        with_wrong=False,
        sources=1,
        step=_step,
    )
    scenario(
        "Wraps",
        f"goes on{_beyond}",
        start_at(lambda scene: wrap(scene.shape.step) - scene.spans(3) - 1, 0),
        with_wrong=False,
        sources=1,
        step=_step,
    )
scenario("Starts", "in the midst of a chunk", start_at(lambda scene: USUAL + 1, 0), with_wrong=False, sources=1)
scenario("Starts", "at 0", start_at(lambda scene: 0, 0), with_wrong=False, sources=1)
scenario("Starts", "one after another", one_after_another, with_wrong=False)
scenario("Starts", "in a restart of most", start_in_a_restart, in_time=False)
for _name, _length_of in {"1 heap": lambda scene: 1, **LENGTHS}.items():
    for _where, _offset in (("far ahead", FAR), ("ahead", 10**4), ("far behind", -FAR)):
        scenario(
            "Starts",
            f"the wrong alone, {_where}, for {_name}",
            wrong_alone_first(_length_of, _offset),
            in_time=False,
            needs_rate=_where == "far behind",
        )


# Wraps


def across_the_wrap(wrong: WrongClocks, missing: float = 0) -> Callable[[Scene], Sequence[Phase]]:
    def phases(scene: Scene) -> Sequence[Phase]:
        before, gap = scene.spans(3), scene.spans(missing)
        begins = wrap(scene.shape.step) - before - gap // 2 - 1
        clocks = wrong(scene)
        return [
            Phase(length=before, begins=begins, wrong=clocks, allowed=1 if clocks else 0),
            Phase(length=scene.spans(4), begins=begins + before + gap, wrong=clocks, pause=gap),
        ]

    return phases


for _step in (4096, ODD_STEP):
    _beyond = f", step {_step}"
    scenario("Wraps", f"a wrong clock wraps first{_beyond}", across_the_wrap(WRONG["ahead by 1.5 windows"]), step=_step)
    scenario("Wraps", f"a wrong clock wraps last{_beyond}", across_the_wrap(WRONG["behind by 1.5 windows"]), step=_step)
    for _windows in (0.75, 1.5, 10):
        scenario(
            "Wraps",
            f"a gap of {_windows} windows{_beyond}",
            across_the_wrap(nobody, _windows),
            with_wrong=False,
            sources=1,
            step=_step,
        )


# Garbage

scenario(
    "Garbage",
    "1 % of all heaps, up to two windows ahead",
    lambda scene: [Phase(length=scene.spans(20), begins=USUAL, garbage=0.01, allowed=0)],
    with_wrong=False,
    thorough=True,
)

SCENARIOS.sort(key=lambda one: GROUPS.index(one.group))
