"""What a receiver has seen so far, as plain values."""

from __future__ import annotations

from dataclasses import dataclass


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
