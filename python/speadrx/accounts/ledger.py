"""What the placement callback has counted, and the epochs of its timeline, for users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from speadrx._core import Ledger as CoreLedger
from speadrx.layout.base import DeclarativeLayout


class Epoch(NamedTuple):
    """A run of chunks whose IDs count time from the same point."""

    #: ID of the first chunk that it can have.
    chunk_id: int
    #: Timestamp of that chunk, in ticks. In the same epoch, later chunks are as many chunks of time later.
    timestamp: int
    #: ``"start"``: the first heap came. ``"restart"``: time began anew, because senders were restarted or the time so
    #: far was wrong. ``"flush"``: chunks were flushed; time goes on, but the chunk IDs in between are skipped.
    cause: str


@dataclass(frozen=True, eq=False)
class LedgerSnapshot:
    """What the placement callback has counted; every number only ever grows.

    After the sender has ended the stream (by a stop item, or by stopping its queue), with heaps of a single packet
    each: ``placed`` = heaps present in chunks + ``duplicates`` + spead2's ``too_old_heaps``. ``stop()`` of the
    stream throws away the chunks under construction, whose heaps are then missing from this sum.
    """

    #: Heaps given a place, by source: duplicates, and heaps that spead2 then finds too old, included.
    placed_by_source: np.ndarray
    #: Placed heaps whose place was taken already, by source.
    duplicates_by_source: np.ndarray
    #: Timestamp of the newest heap placed, in ticks, by source; -1 before the first. It falls when time begins anew.
    newest_timestamp_by_source: np.ndarray
    #: Heaps rejected, by reason (the names of the layout's `stream_stats`, without their prefix) and source; the last
    #: element counts those whose source is unknown, because the item that tells it is absent or wrong.
    rejected_by_source: dict[str, np.ndarray]
    #: Placed heaps of the chunk that was the newest, by how many batches they were behind the newest batch:
    #: not at all, 1, 2 to 3, 4 to 7, and so on.
    late_batches: np.ndarray
    #: Placed heaps by how many chunks they were behind the newest: 0 (as many as `late_batches` has), 1, and so on;
    #: the last element counts those older than all chunks under construction, which spead2 finds too old.
    late_chunks: np.ndarray
    #: Label of each source.
    source_labels: tuple[str, ...]

    @property
    def placed(self) -> int:
        """Heaps given a place."""
        return int(self.placed_by_source.sum())

    @property
    def duplicates(self) -> int:
        """Placed heaps whose place was taken already."""
        return int(self.duplicates_by_source.sum())

    @property
    def rejected(self) -> dict[str, int]:
        """Heaps rejected, by reason."""
        return {reason: int(heaps.sum()) for reason, heaps in self.rejected_by_source.items()}

    @property
    def seen(self) -> int:
        """Heaps that the callback was called for."""
        return self.placed + sum(self.rejected.values())


class Ledger:
    """The counts of a stream's placement callback, or their sum over a group; outlives the stream."""

    def __init__(self, layout: DeclarativeLayout, cores: Sequence[CoreLedger]) -> None:
        self._layout = layout
        self._cores = tuple(cores)

    @classmethod
    def _sum(cls, ledgers: Sequence[Ledger]) -> Ledger:
        return cls(ledgers[0]._layout, [core for ledger in ledgers for core in ledger._cores])

    def snapshot(self) -> LedgerSnapshot:
        """Read the counts; may be called at any time, from any thread, and blocks nobody."""
        total = CoreLedger.sum(self._cores)
        names = self._layout.declaration._compiled.reject_names
        rejected = np.frombuffer(total.rejected_by_source, np.uint64).reshape(len(names), -1)
        return LedgerSnapshot(
            placed_by_source=np.frombuffer(total.placed, np.uint64),
            duplicates_by_source=np.frombuffer(total.duplicates, np.uint64),
            newest_timestamp_by_source=np.frombuffer(total.newest, np.int64),
            rejected_by_source=dict(zip(names, rejected, strict=True)),
            late_batches=np.frombuffer(total.late_batches, np.uint64),
            late_chunks=np.frombuffer(total.late_chunks, np.uint64),
            source_labels=self._layout.source_labels,
        )
