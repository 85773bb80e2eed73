"""Search for the critical rate: the highest at which nothing is lost.

This is the "throughput" of RFC 2544 (section 26.1), searched for by bisection. A single trial says little on a machine
that does other things too, so most of some trials decide on a rate, and the whole search is repeated: how much its
results differ is a part of the result. Both are after MLRsearch of FD.io's CSIT (draft-ietf-bmwg-mlrsearch): there,
the "exceed ratio" says how many trials may be lossy, the "relative width" when a search ends, and a trial whose packets
come only after it has ended counts as if it were slower.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .loopback import FIRST_RATE, LEAST_RATE, REACHED, Trial

#: A search ends when the lowest lossy rate is at most this much above the highest without loss.
WIDTH = 0.02
#: A rate is decided on when so many of its trials say the same: two of three at most.
MAJORITY = 2
#: By what factor the first search goes up or down at first, and the later ones, which begin where the last has ended.
FIRST_STEP, LATER_STEP = 2.0, 1.1


@dataclass(frozen=True)
class Critical:
    """What a search has found."""

    #: The highest rate without loss. Zero if heaps were lost at all rates.
    heaps_per_second: float
    #: Bytes of packets at that rate.
    bytes_per_second: float
    #: The lowest rate, in bytes per second, at which heaps are lost, or come late; None where the sender is the limit.
    lossy_bytes_per_second: float | None
    #: What limits the rate: the ``"sender"``, the ``"receiver"`` (it falls behind), or ``"loss"``.
    limit: str
    trials: int
    #: Of all lossy trials: heaps missing from the account, and packets dropped by the kernel.
    missing: int
    kernel_drops: int


class CriticalSearch:
    """Searches for the critical rate, again and again.

    Parameters
    ----------
    trial
        Sends at a rate, in bytes per second, and says what became of it.
    """

    def __init__(self, trial: Callable[[float], Trial]) -> None:
        self._trial = trial
        self._first, self._step = FIRST_RATE, FIRST_STEP

    def search(self, stop: Callable[[], bool] = lambda: False) -> Critical | None:
        """Search once.

        Parameters
        ----------
        stop
            Called before each trial. If it returns True, the search ends and returns None.
        """
        rate, step = self._first, self._step
        best: Trial | None = None
        low = high = 0.0
        trials: list[Trial] = []
        limit = "loss"
        while not high or not low or high > low * (1 + WIDTH):
            decided = self._decide(rate, stop)
            if decided is None:
                return None
            trials += decided
            last = decided[-1]  # it is of the majority
            reached = last.sent.bytes / (last.sent.end - last.sent.begin)
            if last.missing or last.is_behind:
                high, limit = rate, "loss" if last.missing else "receiver"
                if not low and rate <= LEAST_RATE:
                    break
            else:
                best, low = last, rate
                if reached < REACHED * rate:
                    high, limit = 0.0, "sender"
                    break
            if low and high:
                rate = math.sqrt(low * high)
            else:
                rate = rate * step if low else max(rate / step, LEAST_RATE)
                step = min(step * step, FIRST_STEP)
        return self._found(best, high, limit, trials)

    def _decide(self, rate: float, stop: Callable[[], bool]) -> list[Trial] | None:
        """Try a rate until most trials are without loss, or most are not. The last one is of the majority."""
        trials: list[Trial] = []
        good = 0
        while max(good, len(trials) - good) < MAJORITY:
            if stop():
                return None
            trials.append(self._trial(rate))
            good += not (trials[-1].missing or trials[-1].is_behind)
        return trials

    def _found(self, best: Trial | None, high: float, limit: str, trials: list[Trial]) -> Critical:
        heaps = sent_bytes = 0.0
        if best is not None:
            seconds = best.sent.end - best.sent.begin
            heaps, sent_bytes = best.sent.heaps / seconds, best.sent.bytes / seconds
            self._first, self._step = sent_bytes, LATER_STEP
        missing, drops = sum(each.missing for each in trials), sum(each.kernel_drops for each in trials)
        return Critical(heaps, sent_bytes, high or None, limit, len(trials), missing, drops)
