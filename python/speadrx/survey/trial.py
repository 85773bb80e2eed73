"""Try a layout on the heaps that were seen: its own placement callback places them, as it would in a stream."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import spead2

from speadrx._words import counted, listed
from speadrx.accounts.ledger import Ledger
from speadrx.layout.declaration import Layout
from speadrx.receive.settings import window_of

from .kinds import Stream
from .values import count, joint

#: IDs that items have which are added to packets: the ID of the payload item, and the sender.
_PAYLOAD_ITEM, _SENDER = 0x7FF8, 0x7FF9

#: A layout is good if at least this fraction of the heaps have a slot of their own: the others may be garbage.
LEAST_FITTING = 4 / 5


@dataclass(frozen=True)
class Trial:
    """What a layout does with the heaps of a stream.

    Attributes
    ----------
    heaps
        Heaps that were tried. Those that came twice count once.
    fitting
        Heaps that have a slot of their own.
    sharing
        Heaps whose slot another heap has already.
    too_old
        Heaps that came too late for their slot.
    rejected
        Heaps that were rejected, by reason.
    """

    heaps: int
    fitting: int
    sharing: int
    too_old: int
    rejected: dict[str, int]

    @property
    def passed(self) -> bool:
        """Whether so many heaps fit that the others may be garbage."""
        return self.fitting >= LEAST_FITTING * self.heaps

    def __str__(self) -> str:
        """Say how many heaps fit, and why others do not."""
        failed = [f"{counted(self.sharing, 'heap')} for the slot of another"] if self.sharing else []
        failed += [f"{counted(self.too_old, 'heap')} too late"] if self.too_old else []
        failed += [f"{counted(n, 'heap')} rejected ({reason})" for reason, n in self.rejected.items() if n]
        text = f"{self.fitting:,} of {counted(self.heaps, 'heap')} get a slot of their own"
        return f"{text}; {listed(failed, len(failed))}" if failed else text


def try_layout(layout: Layout, stream: Stream, *, by_destination: bool = False) -> Trial:
    """Place the heaps of a stream, in the order in which they came.

    Parameters
    ----------
    layout
        The layout.
    stream
        The heaps.
    by_destination
        Whether the heaps to each destination are for a stream of their own.

    Returns
    -------
    Trial
        What became of them.
    """
    rows = _rows(layout, stream)
    if by_destination:
        parts = [stream.targets == target for target in np.unique(stream.targets)]
    else:
        parts = [np.ones(stream.heaps, bool)]
    trials = [_try(layout, stream, rows, part) for part in parts]
    reasons = {reason for trial in trials for reason in trial.rejected}
    return Trial(
        heaps=sum(trial.heaps for trial in trials),
        fitting=sum(trial.fitting for trial in trials),
        sharing=sum(trial.sharing for trial in trials),
        too_old=sum(trial.too_old for trial in trials),
        rejected={reason: sum(trial.rejected.get(reason, 0) for trial in trials) for reason in sorted(reasons)},
    )


def _try(layout: Layout, stream: Stream, rows: np.ndarray, part: np.ndarray) -> Trial:
    compiled = layout._compiled
    window = window_of(layout, None, None, None)
    group = compiled.group(window=window, reach=window, resync=True)
    placement = compiled.geometry({}).placement(window=window, group=group)
    places = np.frombuffer(placement.try_heaps(rows[part].tobytes()), np.int64).reshape(-1, 2)
    placed = places[:, 0] >= 0
    slots = joint(places[placed, 0], places[placed, 1])
    # A heap that came twice has the same sender and the same counter.
    numbers = np.zeros(stream.heaps, np.uint64) if stream.counters is None else stream.counters
    same = joint(slots, stream.senders[part][placed], numbers[part][placed])
    snapshot = Ledger(layout, [placement.ledger], [group]).snapshot()
    twice = slots.size - count(same)
    return Trial(
        heaps=int(part.sum()) - twice,
        fitting=max(0, count(slots) - snapshot.too_old),
        sharing=count(same) - count(slots),
        too_old=snapshot.too_old,
        rejected={reason: n for reason, n in snapshot.rejected.items() if n},
    )


def _rows(layout: Layout, stream: Stream) -> np.ndarray:
    """The items of each heap, as the callback of the layout sees them: -1 for those that are absent."""
    rows = np.full((stream.heaps, len(layout._compiled.items)), -1, np.int64)
    for position, item in enumerate(layout._compiled.items):
        if item == spead2.HEAP_LENGTH_ID:
            rows[:, position] = stream.heap_bytes
        elif item == spead2.HEAP_CNT_ID and stream.counters is not None:
            rows[:, position] = stream.counters
        elif item == _PAYLOAD_ITEM and stream.payload_one_of is not None:
            rows[:, position] = stream.payload_one_of.which
        elif item == _SENDER and stream.sender_ids is not None:
            rows[:, position] = stream.sender_ids
        elif item in stream.items:
            rows[:, position] = stream.items[item]
        elif stream.one_of is not None and item in stream.one_of.items:
            has = stream.one_of.which == item
            rows[has, position] = stream.one_of.values[has]
    return rows
