"""What a receiver has seen so far, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from speadrx._words import counted, listed

from .rejections import Rejection

#: By how much the measured rate of time may differ from the layout's, as a fraction.
RATE_TOLERANCE = 0.02


def rate_mismatch(measured: float | None, declared: float | None) -> str | None:
    """Say that time goes on at another rate than the layout's; None if it does not, or if a rate is not known.

    Parameters
    ----------
    measured, declared
        Ticks per second: as heaps come, and as the layout says.
    """
    if measured is None or declared is None or abs(measured - declared) <= RATE_TOLERANCE * declared:
        return None
    return f"time goes on at {measured:.4g} ticks per second, but the layout's tick_rate is {declared:.4g}"


def disagreement(estranged: Sequence[str], others: int) -> str | None:
    """Say which sources say another time than most others; None if there are none, or no others.

    Parameters
    ----------
    estranged
        Labels of those sources.
    others
        How many other sources are heard.
    """
    if not estranged or not others:
        return None
    names = listed(estranged)
    what = f"source {names} says" if len(estranged) == 1 else f"{counted(len(estranged), 'source')} ({names}) say"
    if len(estranged) < others:
        return f"{what} another time than most others"
    return f"{what} another time than the other {others:,}, and nobody can tell who is right: time stays as it was"


def mixed_heaps(shared: int) -> str | None:
    """Say that senders share heap counters, and what would help; None if no packet has shown it.

    Parameters
    ----------
    shared
        Packets that came while a heap of another sender with the same counter lacked packets.
    """
    if not shared:
        return None
    return (
        f"senders share heap counters ({counted(shared, 'packet')} came into heaps of others), and spead2 mixes the "
        'bytes of such heaps: [packets] heap_counter = "sender" keeps them apart'
    )


@dataclass(frozen=True)
class SourceStats:
    """What became of the heaps of one source (an antenna, say)."""

    #: Its label in the layout.
    label: str
    #: Heaps placed by the placement callback. They include duplicates and heaps that are too old.
    placed: int
    #: Heaps present in the chunks that came out.
    present: int
    #: Heaps missing from those chunks, and from whole chunks in between that never came.
    missing: int
    #: Missing heaps as a fraction of `present` and `missing`; None if both are 0.
    loss: float | None
    #: Placed heaps whose chunk has not come out yet; 0 once the receiver has ended. While it runs, unfinished heaps are
    #: among them, and in a group heaps of chunks that spead2 has ended early, since their source is not known.
    in_flight: int
    #: Placed heaps whose place was taken already.
    duplicates: int
    #: Rejected heaps that are known to be from this source.
    rejected: int
    #: Timestamp of its newest heap, in ticks; -1 before the first.
    newest_timestamp: int
    #: Whether it says another time than most others, so that its heaps are not placed, or too old.
    estranged: bool


@dataclass(frozen=True)
class RingStats:
    """How full a ring of chunks is."""

    #: Chunks that are in it.
    chunks: int
    #: Chunks that it can hold.
    capacity: int


@dataclass(frozen=True)
class ReceiverStats:
    """What a receiver has seen so far, as plain values (`dataclasses.asdict` turns it into JSON values).

    ``placed == present + in_flight + duplicates + too_old + unfinished``, and every heap that reached the placement
    callback is either in ``placed`` or in ``rejected``. While the receiver runs, the numbers are from slightly
    different moments. Once it has ended (see `Receiver.drain`), ``in_flight`` is 0.
    """

    #: Seconds from the start to now, or to `Receiver.stop`; 0 before the start.
    seconds: float
    #: Chunks that came out with at least one heap.
    chunks: int
    #: Timestamps of the first and the last of them, in ticks; None if there is none yet.
    first_timestamp: int | None
    last_timestamp: int | None
    #: Heaps placed by the placement callback.
    placed: int
    #: Heaps present in the chunks that came out.
    present: int
    #: Heaps missing from those chunks, and from whole chunks in between that never came.
    missing: int
    #: The sum of `present` and `missing`.
    expected: int
    #: The loss figure: `missing` as a fraction of `expected`; None if none were expected. See `Account` for what is.
    loss: float | None
    #: Placed heaps whose chunk has not come out yet.
    in_flight: int
    #: Placed heaps whose place was taken already.
    duplicates: int
    #: Heaps rejected, by reason.
    rejected: dict[str, int]
    #: Why they were rejected, more exactly, with an example of each cause.
    rejections: list[Rejection]
    #: Placed heaps that came after their chunk was handed over.
    too_old: int
    #: All other placed heaps: one of their packets never came, or `Receiver.stop` threw their chunk away. While the
    #: receiver runs, they count as in flight.
    unfinished: int
    #: Packets that the kernel dropped because the buffer of a socket was full.
    kernel_drops: int
    #: Packets that spead2 has taken, without the packets that `flush` and `drain` make.
    packets: int
    #: Heaps that spead2 gave up because packets were missing. Some of them are also rejected or too old.
    incomplete: int
    #: How often time began again.
    restarts: int
    #: Heaps in the time that was jumped over when time began again. They do not count as missing.
    epoch_gap_heaps: int
    #: The same time in ticks, and in seconds; None without the layout's ``tick_rate``.
    epoch_gap_ticks: int
    epoch_gap_seconds: float | None
    #: Ticks per second at which time goes on, by the clock of this machine; None while it is not known.
    measured_tick_rate: float | None
    #: Placed heaps of the newest chunk by how many batches late they were: 0, 1, 2 to 3, 4 to 7, and so on.
    late_batches: list[int]
    #: Placed heaps by how many chunks late they were: 0, 1, and so on. The last element counts those too old.
    late_chunks: list[int]
    #: The ring of finished chunks, and the ring of free chunks.
    data_ring: RingStats
    free_ring: RingStats
    #: By source, in the order of the layout.
    sources: list[SourceStats]
    #: Packets of captures, and of sockets where packets are mended, that spead2 did not get, by reason.
    unused: dict[str, int] = field(default_factory=dict)
    #: Packets, of the same, that came while a heap of another sender with the same counter lacked packets: spead2 mixes
    #: their bytes. Where spead2 reads sockets itself, nobody sees it.
    shared_counters: int = 0
