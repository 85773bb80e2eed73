"""What a receiver has seen so far, read from its stream and its account."""

from __future__ import annotations

import numpy as np

from speadrx.accounts.account import Account, Totals
from speadrx.accounts.ledger import LedgerSnapshot
from speadrx.accounts.loss import loss
from speadrx.accounts.report import ReceiverStats, RingStats, SourceStats

from .control import CONTROL_STAT
from .sockets import shared_counters, unused_packets
from .stream import ChunkRingStream, ChunkStreamRingGroup


def read_stats(stream: ChunkRingStream | ChunkStreamRingGroup, account: Account, seconds: float) -> ReceiverStats:
    """Read what a stream or group, and an account of its chunks, have counted.

    Parameters
    ----------
    stream
        Made with a declarative layout.
    account
        The account of an iterator over its chunks.
    seconds
        Seconds since it was started.

    Returns
    -------
    ReceiverStats
        As it is now. While heaps come, its numbers are from slightly different moments.
    """
    # Read in this order: otherwise a heap could be present that is not placed yet.
    has_ended = _has_ended(stream)
    totals = account._totals
    packets, incomplete = _spead2_counts(stream)
    assert stream.ledger is not None
    ledger = stream.ledger.snapshot()
    present, missing = sum(totals.present), sum(totals.missing)
    # Nobody knows of a placed heap whether it will stay unfinished until its chunk has come out.
    left = sum(_left(ledger, totals))
    tick_rate = stream.ledger._layout.declaration.time.tick_rate
    data, free = stream.data_ringbuffer, stream.free_ringbuffer
    feeds = [feed for sockets in stream._socket_sets for feed in sockets.feeds]
    return ReceiverStats(
        seconds=seconds,
        chunks=totals.chunks,
        first_timestamp=totals.first_timestamp,
        last_timestamp=totals.last_timestamp,
        placed=ledger.placed,
        present=present,
        missing=missing,
        expected=present + missing,
        loss=loss(missing, present),
        in_flight=0 if has_ended else left,
        duplicates=ledger.duplicates,
        rejected=ledger.rejected,
        rejections=stream.ledger.rejections(),
        too_old=ledger.too_old,
        unfinished=left if has_ended else 0,
        kernel_drops=stream.kernel_drops(),
        packets=packets,
        incomplete=incomplete,
        restarts=totals.restarts,
        epoch_gap_heaps=totals.epoch_gap * len(totals.present),
        epoch_gap_ticks=totals.epoch_gap_ticks,
        epoch_gap_seconds=None if tick_rate is None else totals.epoch_gap_ticks / tick_rate,
        measured_tick_rate=stream._measured_tick_rate(),
        late_batches=ledger.late_batches.tolist(),
        late_chunks=ledger.late_chunks.tolist(),
        data_ring=RingStats(data.qsize(), data.maxsize),
        free_ring=RingStats(free.qsize(), free.maxsize),
        sources=_source_stats(ledger, totals, has_ended=has_ended),
        unused=unused_packets(feeds),
        shared_counters=shared_counters(feeds),
    )


def _spead2_counts(stream: ChunkRingStream | ChunkStreamRingGroup) -> tuple[int, int]:
    """Read what spead2 counted: packets (without control heaps), and incomplete heaps."""
    stats = [member.stats for member in stream._streams()]

    def total(name: str) -> int:
        return sum(counts[name] for counts in stats)

    incomplete = total("incomplete_heaps_evicted") + total("incomplete_heaps_flushed")
    return total("packets") - total(CONTROL_STAT), incomplete


def in_flight_by_source(stream: ChunkRingStream | ChunkStreamRingGroup, totals: Totals) -> list[int]:
    """Count the placed heaps of each source whose chunk has not come out yet.

    Parameters
    ----------
    stream
        A stream or group. If its layout has a callback of its own, nothing is known to be in flight.
    totals
        What has come out of it, read before this is called.
    """
    if stream.ledger is None or _has_ended(stream):
        return [0] * len(totals.present)
    return _left(stream.ledger.snapshot(), totals)


def _has_ended(stream: ChunkRingStream | ChunkStreamRingGroup) -> bool:
    """Whether nothing more will come out."""
    return stream._stopped and not stream.data_ringbuffer.qsize()


def _left(ledger: LedgerSnapshot, totals: Totals) -> list[int]:
    """Placed heaps of each source that are neither present nor known to be duplicate or too old.

    They are never less than none, if the totals were read first.
    """
    known = ledger.duplicates_by_source + ledger.too_old_by_source
    left: list[int] = (ledger.placed_by_source.astype(np.int64) - known.astype(np.int64) - totals.present).tolist()
    return left


def _source_stats(ledger: LedgerSnapshot, totals: Totals, *, has_ended: bool) -> list[SourceStats]:
    # The last column is for heaps whose source is unknown.
    rejected: np.ndarray = np.sum([heaps[:-1] for heaps in ledger.rejected_by_source.values()], axis=0)
    columns = (
        ledger.source_labels,
        ledger.placed_by_source.tolist(),
        totals.present,
        totals.missing,
        list(map(loss, totals.missing, totals.present)),
        [0] * len(totals.present) if has_ended else _left(ledger, totals),
        ledger.duplicates_by_source.tolist(),
        rejected.tolist(),
        ledger.newest_timestamp_by_source.tolist(),
        ledger.estranged_by_source.tolist(),
    )
    return [SourceStats(*row) for row in zip(*columns, strict=True)]
