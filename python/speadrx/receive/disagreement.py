"""Notes which sources say another time than most others, and tells when that begins and ends."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import numpy as np

from speadrx._words import counted, listed
from speadrx.accounts.ledger import LedgerSnapshot
from speadrx.accounts.report import disagreement

#: Seconds after which it is no matter of a moment, as it is when senders are restarted one after the other.
LASTING_SECONDS = 2.0

#: Seconds after which it may be said of other sources.
QUIET_SECONDS = 60.0


class Disagreement:
    """Which sources of a stream say another time than most others, as far as it was told."""

    def __init__(self) -> None:
        #: Since when each does, and how many heaps of all sources had been seen then.
        self._since: dict[int, tuple[float, np.ndarray]] = {}
        self._told: set[int] = set()
        self._told_when = -math.inf

    def look(self, snapshot: LedgerSnapshot, now: float) -> Iterator[str]:
        """Give what has to be told now."""
        estranged = set(np.flatnonzero(snapshot.estranged_by_source).tolist())
        if not estranged and not self._since:
            return
        # The last column is for heaps whose source is unknown.
        seen = snapshot.placed_by_source + sum(heaps[:-1] for heaps in snapshot.rejected_by_source.values())
        self._since = {source: self._since.get(source, (now, seen)) for source in estranged}
        labels = snapshot.source_labels
        if back := self._told - estranged:
            self._told -= back
            yield f"{_named(back, labels)} with the others about the time again"
        # Those that have fallen silent say nothing.
        lasting = {
            source
            for source, (since, before) in self._since.items()
            if now - since >= LASTING_SECONDS and seen[source] > before[source]
        }
        if lasting <= self._told or now - self._told_when < QUIET_SECONDS:
            return
        _, before = min(self._since.values(), key=lambda since: since[0])
        heard = set(np.flatnonzero(seen > before).tolist())
        said = disagreement([labels[source] for source in sorted(lasting)], len(heard - estranged))
        if said is not None:
            self._told, self._told_when = lasting, now
            yield f"{said}. {'Its' if len(lasting) == 1 else 'Their'} heaps are lost"


def _named(sources: Collection[int], labels: tuple[str, ...]) -> str:
    names = listed(labels[source] for source in sorted(sources))
    if len(sources) == 1:
        return f"source {names} agrees"
    return f"{counted(len(sources), 'source')} ({names}) agree"
