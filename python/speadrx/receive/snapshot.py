"""What a receiver has seen so far, read from its stream and its account."""

from __future__ import annotations

import numpy as np

from speadrx.accounts.accounting import Accounting
from speadrx.accounts.report import ReceiverStats, RingStats, SourceStats

from .stream import ChunkRingStream, ChunkStreamRingGroup


def read_stats(stream: ChunkRingStream | ChunkStreamRingGroup, account: Accounting, seconds: float) -> ReceiverStats:
    """Read what a stream or group and an account of its chunks have counted.

    Parameters
    ----------
    stream
        Made with a declarative layout.
    account
        That of what iterates over its chunks.
    seconds
        Since it was started.

    Returns
    -------
    ReceiverStats
        As it is now; while heaps come, its numbers are of slightly different moments.
    """
    # In this order nothing is present that is not placed yet.
    counts = account._counts
    stats = [member.stats for member in stream._streams()]
    assert stream.ledger is not None
    ledger = stream.ledger.snapshot()

    def total(name: str) -> int:
        return sum(part[name] for part in stats)

    assert stream._core is not None
    assert stream._control is not None
    packets, incomplete = total("packets"), total("incomplete_heaps_evicted") + total("incomplete_heaps_flushed")
    own_packets, own_incomplete = stream._control.counted(stream._core.done)
    present, expected = sum(counts.present), counts.expected * len(counts.present)
    too_old = total("too_old_heaps")
    # The last column is of those whose source is unknown.
    rejected: np.ndarray = np.sum([heaps[:-1] for heaps in ledger.rejected_by_source.values()], axis=0)
    rows = zip(
        account.source_labels,
        ledger.placed_by_source.tolist(),
        counts.present,
        ledger.duplicates_by_source.tolist(),
        rejected.tolist(),
        ledger.newest_timestamp_by_source.tolist(),
        strict=True,
    )
    data, free = stream.data_ringbuffer, stream.free_ringbuffer
    return ReceiverStats(
        seconds=seconds,
        chunks=counts.chunks,
        first_timestamp=counts.first_timestamp,
        last_timestamp=counts.last_timestamp,
        placed=ledger.placed,
        present=present,
        missing=expected - present,
        expected=expected,
        duplicates=ledger.duplicates,
        rejected=ledger.rejected,
        too_old=too_old,
        unfinished=max(ledger.placed - present - ledger.duplicates - too_old, 0),
        kernel_drops=stream.kernel_drops(),
        packets=max(packets - own_packets, 0),
        incomplete=max(incomplete - (own_incomplete if stream._stopped else 0), 0),
        restarts=counts.restarts,
        epoch_gap_heaps=account.epoch_gap_heaps,
        late_batches=ledger.late_batches.tolist(),
        late_chunks=ledger.late_chunks.tolist(),
        data_ring=RingStats(data.qsize(), data.maxsize),
        free_ring=RingStats(free.qsize(), free.maxsize),
        sources=[
            SourceStats(label, placed, here, counts.expected - here, duplicates, refused, newest)
            for label, placed, here, duplicates, refused, newest in rows
        ],
    )
