"""What a receiver has seen so far, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .accounting import Accounting
from .stream import ChunkRingStream, ChunkStreamRingGroup


@dataclass(frozen=True)
class SourceStats:
    """What became of the heaps of one source (an antenna, say)."""

    #: Its label in the layout.
    label: str
    #: Heaps given a place by the placement callback, duplicates and heaps that came too late included.
    placed: int
    #: Heaps present in the chunks that came out.
    present: int
    #: Heaps that those chunks, and whole chunks in between that never came, lack.
    missing: int
    #: Placed heaps whose place was taken already.
    duplicates: int
    #: Rejected heaps known to be of this source.
    rejected: int
    #: Timestamp of its newest heap, in ticks; -1 before the first.
    newest_timestamp: int


@dataclass(frozen=True)
class RingStats:
    """How full a ring of chunks is."""

    #: Chunks that are in it.
    chunks: int
    #: Chunks that it can hold.
    capacity: int


@dataclass(frozen=True)
class ReceiverStats:
    """What a receiver has seen so far, as plain values (`dataclasses.asdict` makes JSON of it).

    While it receives, the numbers are of slightly different moments. Once it has ended (see `Receiver.drain`),
    ``placed == present + duplicates + too_old + unfinished``, and every heap that reached the placement callback is in
    ``placed`` or ``rejected``.
    """

    #: Seconds since it was started, until `Receiver.stop`; 0 before.
    seconds: float
    #: Chunks that came out with any heap in them.
    chunks: int
    #: Timestamps of the first and the last of them, in ticks; None before.
    first_timestamp: int | None
    last_timestamp: int | None
    #: Heaps given a place by the placement callback.
    placed: int
    #: Heaps present in the chunks that came out.
    present: int
    #: Heaps that those chunks, and whole chunks in between that never came, lack.
    missing: int
    #: The sum of both.
    expected: int
    #: Placed heaps whose place was taken already.
    duplicates: int
    #: Heaps rejected, by reason.
    rejected: dict[str, int]
    #: Placed heaps that came after their chunk was handed over.
    too_old: int
    #: Placed heaps that are none of these: their chunk has not come out yet, or a packet of them never came.
    unfinished: int
    #: Packets that the kernel dropped because a socket's buffer was full.
    kernel_drops: int
    #: Packets that spead2 has taken, without those by which it is flushed or drained.
    packets: int
    #: Heaps of which spead2 lacked packets in the end; rejected and too old ones are among them.
    incomplete: int
    #: How often time began anew.
    restarts: int
    #: Heaps for the time by which it jumped ahead then; they are not missing.
    epoch_gap_heaps: int
    #: Lateness of placed heaps in the newest chunk, in batches: not late, 1, 2 to 3, 4 to 7, and so on.
    late_batches: list[int]
    #: Lateness of placed heaps in chunks: 0, 1, and so on; the last element is of those too old.
    late_chunks: list[int]
    #: Finished chunks, and chunks that are free.
    data_ring: RingStats
    free_ring: RingStats
    #: By source, in the order of the layout.
    sources: list[SourceStats]


def report(stream: ChunkRingStream | ChunkStreamRingGroup, account: Accounting, seconds: float) -> ReceiverStats:
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
