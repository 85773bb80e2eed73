"""What the placement callback has counted, and the epochs of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from speadrx._core import Group as CoreGroup
from speadrx._core import Ledger as CoreLedger
from speadrx._core import LedgerSum
from speadrx.layout.base import DeclarativeLayout

from .rejections import Rejection, rejections


class Epoch(NamedTuple):
    """A run of chunks whose IDs count time from the same point."""

    #: ID of the first chunk that the epoch can have.
    chunk_id: int
    #: Timestamp of that chunk, in ticks. A chunk whose ID is n higher is n chunks of time later.
    timestamp: int
    #: ``"start"``: the first heap came. ``"restart"``: time began again, because senders were restarted or because the
    #: time until then was wrong. ``"flush"``: chunks were flushed; time goes on, but some chunk IDs are skipped.
    cause: str


@dataclass(frozen=True, eq=False)
class LedgerSnapshot:
    """What the placement callback has counted. Counts only ever grow.

    If every heap is a single packet, and the stream has ended (by `drain`, or because its sender has ended it), then
    ``placed`` = heaps present in chunks + ``duplicates`` + ``too_old``, in total and of each source. ``stop()`` of the
    stream throws away the chunks in the window. Their heaps are then not in this sum.
    """

    #: Heaps placed, by source. They include duplicates, and heaps that spead2 then finds too old.
    placed_by_source: np.ndarray
    #: Placed heaps whose place was taken already, by source. Those that came through different streams of a group are
    #: known once the chunk has left the window.
    duplicates_by_source: np.ndarray
    #: Placed heaps older than the window, by source.
    too_old_by_source: np.ndarray
    #: Timestamp of the newest heap placed, in ticks, by source; -1 before the first. It falls when time begins again.
    newest_timestamp_by_source: np.ndarray
    #: Heaps rejected, by reason (the names of the layout's `stream_stats`, without their prefix) and source. The last
    #: element counts heaps whose source is unknown, because the item that tells it is absent or wrong.
    rejected_by_source: dict[str, np.ndarray]
    #: Placed heaps of the chunk that was the newest, by how many batches behind the newest batch they were:
    #: 0, 1, 2 to 3, 4 to 7, and so on.
    late_batches: np.ndarray
    #: Placed heaps by how many chunks behind the newest chunk they were: 0 (the sum of `late_batches`), 1, and so on.
    #: The last element counts heaps older than the whole window, which spead2 finds too old.
    late_chunks: np.ndarray
    #: Whether each source says another time than most others. It stays so until a heap of it is placed again, or until
    #: most others say what it says.
    estranged_by_source: np.ndarray
    #: Heaps that came after `drain` had ended the stream. They count nowhere else.
    after_end: int
    #: Label of each source.
    source_labels: tuple[str, ...]

    @property
    def placed(self) -> int:
        """Heaps placed."""
        return int(self.placed_by_source.sum())

    @property
    def duplicates(self) -> int:
        """Placed heaps whose place was taken already."""
        return int(self.duplicates_by_source.sum())

    @property
    def too_old(self) -> int:
        """Placed heaps older than the window."""
        return int(self.too_old_by_source.sum())

    @property
    def rejected(self) -> dict[str, int]:
        """Heaps rejected, by reason."""
        return {reason: int(heaps.sum()) for reason, heaps in self.rejected_by_source.items()}

    @property
    def seen(self) -> int:
        """Heaps for which the callback was called."""
        return self.placed + sum(self.rejected.values())


class Ledger:
    """The counts of a stream's placement callback, or their sum over a group. It outlives the stream."""

    def __init__(
        self, layout: DeclarativeLayout, cores: Sequence[CoreLedger], groups: Sequence[CoreGroup] = ()
    ) -> None:
        self._layout = layout
        self._cores = tuple(cores)
        self._groups = tuple(groups)
        self._total = LedgerSum(self._cores, self._groups)
        self._reasons = layout.declaration._compiled.reject_names

    @classmethod
    def _sum(cls, ledgers: Sequence[Ledger]) -> Ledger:
        cores = [core for ledger in ledgers for core in ledger._cores]
        groups = {id(group): group for ledger in ledgers for group in ledger._groups}
        return cls(ledgers[0]._layout, cores, list(groups.values()))

    def _newest(self) -> tuple[np.ndarray, np.ndarray]:
        """The newest heap of each source in each stream: index of its epoch, and batches from time 0; -1 if none."""
        step = self._layout.chunk_timestamp_step // self._layout.chunk_batches
        snapshots = [core.snapshot() for core in self._cores]
        epochs = np.concatenate([np.frombuffer(snapshot.newest_epoch, np.uint64) for snapshot in snapshots])
        timestamps = np.concatenate([np.frombuffer(snapshot.newest, np.int64) for snapshot in snapshots])
        return epochs, timestamps // step

    def rejections(self) -> list[Rejection]:
        """Say why heaps were rejected, with an example of each cause. It may be called at any time."""
        return rejections(self._layout, (raw for core in self._cores for raw in core.rejections()))

    def snapshot(self) -> LedgerSnapshot:
        """Read the counts. It may be called at any time, from any thread, and blocks nobody."""
        total, disagreeing = self._total.snapshot()
        rejected = np.frombuffer(total.rejected_by_source, np.uint64).reshape(len(self._reasons), -1)
        estranged = np.zeros(len(self._layout.source_labels), bool)
        estranged[disagreeing] = True
        return LedgerSnapshot(
            placed_by_source=np.frombuffer(total.placed, np.uint64),
            duplicates_by_source=np.frombuffer(total.duplicates, np.uint64),
            too_old_by_source=np.frombuffer(total.too_old, np.uint64),
            newest_timestamp_by_source=np.frombuffer(total.newest, np.int64),
            rejected_by_source=dict(zip(self._reasons, rejected, strict=True)),
            late_batches=np.frombuffer(total.late_batches, np.uint64),
            late_chunks=np.frombuffer(total.late_chunks, np.uint64),
            estranged_by_source=estranged,
            after_end=total.after_end,
            source_labels=self._layout.source_labels,
        )
