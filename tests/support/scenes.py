"""What scenarios are made of: what they may depend on, and clocks that are wrong in all sorts of ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from senders import AGAIN, Clock, Phase, Shape

#: The batch at which senders usually are: in the middle of a chunk, far from 0 and from where 48 bits wrap.
USUAL = 10**9 + 3
#: Batches that are far beyond an hour at any rate used here.
FAR = 10**8
#: A step of 48 bits' worth of which there is no whole number.
ODD_STEP = 3000


@dataclass(frozen=True)
class Scene:
    """What a scenario may depend on."""

    shape: Shape
    #: How many sources are wrong, from the first on; fewer than half.
    wrong: int

    @property
    def span(self) -> int:
        return self.shape.span

    @property
    def everyone(self) -> frozenset[int]:
        return frozenset(range(self.shape.sources))

    @property
    def few(self) -> frozenset[int]:
        return frozenset(range(self.wrong))

    @property
    def rest(self) -> frozenset[int]:
        return self.everyone - self.few

    def spans(self, n: float) -> int:
        """Batches of so many windows."""
        return round(n * self.span)

    def clocks(self, clock: Clock) -> dict[int, Clock]:
        """The same wrong clock for the few."""
        return dict.fromkeys(self.few, clock)


@dataclass(frozen=True)
class Scenario:
    """Something that happens."""

    group: str
    name: str
    phases: Callable[[Scene], Sequence[Phase]]
    #: Whether somebody must be wrong, nobody may be, or either.
    with_wrong: bool | None = True
    #: Fewest sources.
    sources: int = 3
    #: Whether there must be several threads.
    threads: bool = False
    #: Whether only a tick rate tells an outage from a restart.
    needs_rate: bool = False
    #: Whether senders wait as long as is missing, so that a clock agrees.
    in_time: bool = True
    step: int = 4096
    #: Lengths of bursts.
    bursts: tuple[int, ...] = (1, 16, 64)
    #: Whether it has cells enough for any two choices to come together.
    thorough: bool = False

    def __str__(self) -> str:
        return f"{self.group}: {self.name}"


def shifted(scene: Scene, windows: float) -> Clock:
    offset = scene.spans(windows)
    return lambda i, good, rng: [good + offset]


def each_elsewhere(scene: Scene, windows: float) -> dict[int, Clock]:
    """Clocks that are wrong, each by more than the one before."""
    return {source: shifted(scene, windows * (source + 1)) for source in scene.few}


def jumping(reach: int) -> Clock:
    return lambda i, good, rng: [good + int(rng.integers(-reach, reach))]


def drifting(rate: float) -> Clock:
    return lambda i, good, rng: [good + math.floor(i * rate)]


def stuck(i: int, good: int, rng: np.random.Generator) -> Sequence[int]:
    return [good - i]


def repeating(n: int) -> Clock:
    """One heap, again and again."""
    return lambda i, good, rng: [AGAIN] * n if i else [good]


def flooding(scene: Scene, windows: float, n: int) -> Clock:
    offset = scene.spans(windows)
    return lambda i, good, rng: [good + offset + j for j in range(n)]


def back_and_forth(scene: Scene, windows: float) -> Clock:
    """Right and wrong in turn, for a moment each."""
    offset = scene.spans(windows)
    return lambda i, good, rng: [good + offset * (i // 3 % 2)]


WrongClocks = Callable[[Scene], Mapping[int, Clock]]


def nobody(scene: Scene) -> Mapping[int, Clock]:
    return {}


def alike(make: Callable[[Scene], Clock]) -> WrongClocks:
    return lambda scene: scene.clocks(make(scene))


WRONG: dict[str, WrongClocks] = {
    **{
        f"ahead by {windows} windows": alike(lambda scene, windows=windows: shifted(scene, windows))
        for windows in (0.5, 0.75, 1, 1.25, 1.5, 2, 3, 30, 1000)
    },
    "ahead by days": lambda scene: scene.clocks(lambda i, good, rng: [good + FAR]),
    **{
        f"behind by {windows} windows": alike(lambda scene, windows=windows: shifted(scene, -windows))
        for windows in (0.5, 1, 1.5, 2, 30, 1000)
    },
    "behind by days": lambda scene: scene.clocks(lambda i, good, rng: [good - FAR]),
    "ahead, each by another window and a half": lambda scene: each_elsewhere(scene, 1.5),
    "behind, each by another window and a half": lambda scene: each_elsewhere(scene, -1.5),
    "jumping far": alike(lambda scene: jumping(10**6)),
    "jumping by up to 3 windows": alike(lambda scene: jumping(scene.spans(3))),
    "jumping by up to a window": alike(lambda scene: jumping(scene.spans(1))),
    "drifting ahead by 25 %": alike(lambda scene: drifting(0.25)),
    "drifting back by 25 %": alike(lambda scene: drifting(-0.25)),
    "stuck": alike(lambda scene: stuck),
    "repeating a heap": alike(lambda scene: repeating(1)),
    "repeating a heap 20 times as fast": alike(lambda scene: repeating(20)),
    "flooding, 1.5 windows ahead": alike(lambda scene: flooding(scene, 1.5, 16)),
    "flooding, 100 windows ahead": alike(lambda scene: flooding(scene, 100, 16)),
    "right and a window ahead in turn": alike(lambda scene: back_and_forth(scene, 1)),
    "right and far behind in turn": alike(lambda scene: back_and_forth(scene, -50)),
}
