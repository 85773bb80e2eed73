"""The faults that a receiver must survive: the rows of doc/faults.md, without what the tests saw."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A row of the table."""

    number: int
    #: What happens.
    fault: str
    #: What it does to a receiver that is only spead2 and a placement callback; empty if that is not known.
    elsewhere: str
    #: What must happen here.
    here: str
    #: Rust tests, ``FILE::TEST`` with the file in ``tests/``; Python tests have the mark ``fault(number)``.
    rust: tuple[str, ...] = ()


FAULTS = (
    Fault(
        1,
        "A chunk's `data`, `present` or `extra` is too small, read-only, not contiguous or of another dtype",
        "Memory outside the buffer is overwritten",
        "An error names the buffer, what was given and what is needed, before spead2 gets the chunk",
    ),
    Fault(
        2,
        "HEAP_LENGTH is absent, 0, less or more than the layout says, or more than the packets carry",
        "Memory outside the slot, or outside the chunk, is overwritten",
        "Absent or 0: only spead2 sees the heap. Less or more: `metadata_heaps`. More than the packets carry: "
        "unfinished. Nothing is written outside the heap's own slot",
    ),
    Fault(
        3,
        "A garbage timestamp: in the middle of a stream, in the first heap, in one stream of a group",
        "Every heap after it is too old, for ever",
        "At most a few heaps are lost",
        rust=("timeline.rs::a_wrong_first_heap_is_outvoted",),
    ),
    Fault(
        4,
        "The senders restart at time 0, a day earlier or a day later",
        "If the time is earlier, every heap is too old, for ever",
        "At least 99 % of the heaps after that arrive, with true timestamps, and the gap does not count as missing",
        rust=(
            "timeline.rs::a_restart_costs_a_heap_or_two",
            "timeline.rs::a_restart_with_the_clock_beyond_half_the_range_has_true_times",
            "timeline.rs::without_resync_time_never_goes_back",
        ),
    ),
    Fault(
        5,
        "The 48 bits of the timestamp wrap",
        "Every heap after it is too old, for ever",
        "No heap is lost, and timestamps keep rising",
        rust=("timeline.rs::a_wrap_costs_nothing",),
    ),
    Fault(
        6,
        "One of 80 sources has a wrong, jumping or drifting clock",
        "It can take the window away from all the others",
        "The others lose nothing, and the counters name that source",
        rust=("timeline.rs::a_mad_source_costs_the_others_nothing",),
    ),
    Fault(
        7,
        "A stranger sends a stop item, descriptors, other flavours, unknown items",
        "The stop item ends the stream",
        "The stream goes on, and counts these heaps",
    ),
    Fault(
        8,
        "The consumer stops for 10 s under load, and then goes on",
        "The counters stop, and nobody sees the losses",
        "Scrapes are always answered. They show the stall, and the packets that the kernel drops. Then all goes on",
    ),
    Fault(
        9,
        "All senders fall silent while a chunk is half received",
        "The data stay in the receiver for ever",
        "They are delivered after a while, once and in order. Heaps of that chunk that come later are counted",
        rust=(
            "timeline.rs::what_was_flushed_is_too_old_and_what_comes_next_is_received",
            "timeline.rs::an_outage_that_agrees_with_the_clock_is_no_restart",
        ),
    ),
    Fault(
        10,
        "The receiver is stopped while whole chunks are in its window",
        "These chunks are lost",
        "Draining hands over all of them",
    ),
    Fault(
        11,
        "The network loses 0.1, 1, 10 or 50 % of the packets",
        "",
        "For each source, exactly as many heaps are missing as the senders know were lost",
    ),
    Fault(
        12,
        "Packets are reordered, duplicated, late or corrupted",
        "Part of it is not noticed",
        "Each heap is correct, or counted",
    ),
    Fault(
        13,
        "A million packets of random bytes, packets cut short, or packets with hostile items, between good ones",
        "",
        "No crash, and every good heap arrives",
    ),
    Fault(
        14,
        "The placement callback panics (only a test can make it do so)",
        "The process aborts",
        "That heap is rejected as `internal_error_heaps`, and reception goes on",
        rust=("callback.rs::panic_rejects_the_heap_and_reception_goes_on",),
    ),
    Fault(
        15,
        "A stream is deleted while it is scraped, is added twice, or is gone before its collector",
        "Counts are lost, or counted twice",
        "No counter ever falls. Nothing is lost, and nothing is counted twice",
    ),
    Fault(
        16,
        "Eight threads scrape at once",
        "A scrape returns less than an earlier one did",
        "Every counter only rises, is never more than was sent, and is exact once the stream is quiet",
        rust=("snapshots.rs::a_million_snapshots_are_monotonic_and_never_above_what_was_sent",),
    ),
    Fault(
        17,
        "The interpreter exits, is interrupted or terminated while streams run and a thread holds a chunk",
        "It hangs, or crashes",
        "It exits within 2 s with the right status. The command line still prints its summary",
    ),
    Fault(
        18,
        "The user's loop raises an exception, or is cancelled",
        "Chunks leak until the receiver has none",
        "Every chunk comes back to the free ring",
    ),
    Fault(
        19,
        "The user keeps every chunk",
        "Heaps are lost without a word",
        "The metrics and one line of the log say that the free ring is empty. When chunks come back, so do the heaps",
    ),
    Fault(
        20,
        "A group is stopped, and one of its streams never received anything",
        "With a shared thread pool it can hang, and the interpreter with it",
        "It stops within 2 s",
    ),
    Fault(
        21,
        "A wrong interface, a port in use, a bad address, a missing or truncated file, no ibverbs hardware",
        "An error that does not say what is wrong",
        "The error names the setting and its value, and the stream stays as it was",
    ),
    Fault(
        22,
        "Any layout, with any items",
        "",
        "Byte for byte what a slow and obvious implementation makes of it. Nothing is written outside a chunk, and no "
        "slot holds two heaps",
        rust=("properties.rs::callback_equals_reference",),
    ),
    Fault(
        23,
        "Ten minutes at the highest rate without loss",
        "",
        "Every heap is accounted for, and memory does not grow",
    ),
    Fault(
        24,
        "A source with a wrong clock whose heaps come in bursts of up to 64, as spead2 reads a socket; one that "
        "repeats a heap, or sends far more of them than the others",
        "It takes the window, and most heaps of all others are lost",
        "Each other source loses at most 2 heaps. The account, the metrics and the log name the wrong one",
    ),
    Fault(
        25,
        "A minority of sources, up to just under half, has a wrong time: by half a window to days, drifting there, "
        "heard first, or after a pause or an outage. Or two equal halves disagree",
        "It can take the window away from all the others, for ever",
        "Each other source loses at most 2 heaps, beside those read before more than half of the sources were read "
        "again. Of two equal halves, the one whose time it was keeps it, and nothing turns to and fro",
    ),
    Fault(
        26,
        "One heap in a hundred has a time up to two windows ahead. Or there is garbage while time may not go back",
        "Every heap after it is too old, or refused, for ever",
        "Only these heaps are lost",
    ),
    Fault(
        27,
        "Some streams of a group are silent, lag, or only one wrong source of them is heard. Then all is right again",
        "They are left behind for ever",
        "Each source is back within 2 heaps",
    ),
    Fault(
        28,
        "A capture is played in a loop, and is shorter than two windows",
        "It comes out once, and never again",
        "It comes out each time, once the receiver has seen that time goes back",
    ),
    Fault(
        29,
        "Receiving starts in the midst of anything: after 48 bits have wrapped with a step that is no power of two, "
        "with a wrong source first, in a restart",
        "Every heap is rejected, or too old",
        "Each source is received from its second heap on",
    ),
    Fault(
        30,
        "An outage, from part of a window to an hour: with the right tick rate, a wrong one or none",
        "It is taken for a restart, so nothing is missing",
        "All that was not sent is missing, exactly",
    ),
    Fault(
        31,
        "A run ends anywhere",
        "What it was cut off from counts as missing",
        "Nothing is missing that was sent",
    ),
    Fault(
        32,
        "Flush, drain, stop and readers of the counters come at once, from several threads, with a slow consumer",
        "A heap comes out that nobody sent, and heaps count twice",
        "Each heap counts under exactly one name, no counter falls, and nothing is invented",
    ),
    Fault(
        34,
        "A process forks or starts a program while it receives, or a thread lets go of streams while it exits",
        "The child hangs when it ends, and its parent goes deaf or crashes. The program holds the port",
        "The child is inert, and the parent goes on. Both can make receivers. No port is held. All exit with the right "
        "status",
    ),
    Fault(
        35,
        "The interface of a multicast group goes away, and comes back",
        "Nothing comes any more, without a word",
        "The log says so, and the group is joined again",
    ),
)
