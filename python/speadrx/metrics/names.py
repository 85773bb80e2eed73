"""Names, labels and meanings of the metrics, for collectors, dashboard, alerts and ``speadrx top``."""

from __future__ import annotations

#: Labels of the metrics, in addition to the labels that the user gives to a stream.
SOURCE = "source"
REASON = "reason"
RING = "ring"
ENDPOINT = "endpoint"
BUCKET = "le"
#: Labels of `BUILD_INFO`: of speadrx, spead2 and Python.
VERSIONS = ("version", "spead2_version", "python_version")

#: Values of the label `RING`.
DATA_RING = "data"
FREE_RING = "free"

#: Value of the label `SOURCE` for heaps whose source is unknown.
UNKNOWN_SOURCE = ""

# Values of the label `REASON` for heaps that are good except for their time.
IMPLAUSIBLE = "implausible_timestamp_heaps"
BACKWARD = "backward_timestamp_heaps"

# By source, from the ledger.
HEAPS_PLACED = "speadrx_heaps_placed_total"
RECEIVED_BYTES = "speadrx_received_bytes_total"
HEAPS_DUPLICATE = "speadrx_heaps_duplicate_total"
HEAPS_REJECTED = "speadrx_heaps_rejected_total"
NEWEST_TIMESTAMP = "speadrx_newest_timestamp"
SOURCE_ESTRANGED = "speadrx_source_estranged"

# Histograms, from the ledger.
HEAP_LATENESS_BATCHES = "speadrx_heap_lateness_batches"
HEAP_LATENESS_CHUNKS = "speadrx_heap_lateness_chunks"

# From the iterators over chunks; heaps are by source.
HEAPS_PRESENT = "speadrx_heaps_present_total"
HEAPS_MISSING = "speadrx_heaps_missing_total"
HEAPS_IN_FLIGHT = "speadrx_heaps_in_flight"
CHUNKS = "speadrx_chunks_total"
RESTARTS = "speadrx_restarts_total"
EPOCH_GAP_HEAPS = "speadrx_epoch_gap_heaps_total"

# By ring.
RING_CHUNKS = "speadrx_ring_chunks"
RING_CAPACITY_CHUNKS = "speadrx_ring_capacity_chunks"
RING_BLOCKED_SECONDS = "speadrx_ring_blocked_seconds_total"
RING_CHUNK_SECONDS = "speadrx_ring_chunk_seconds_total"

# By endpoint, from the kernel.
SOCKET_DROPS = "speadrx_socket_drops_total"
SOCKET_RECEIVE_QUEUE_BYTES = "speadrx_socket_receive_queue_bytes"
SOCKET_RECEIVE_BUFFER_BYTES = "speadrx_socket_receive_buffer_bytes"

# By reason, from what reads packets in front of spead2.
PACKETS_UNUSED = "speadrx_packets_unused_total"

# From spead2.
HEAPS_TOO_OLD = "speadrx_heaps_too_old_total"
HEAPS_INCOMPLETE_EVICTED = "speadrx_heaps_incomplete_evicted_total"
HEAPS_INCOMPLETE_FLUSHED = "speadrx_heaps_incomplete_flushed_total"
PACKETS = "speadrx_packets_total"
WORKER_BLOCKED = "speadrx_worker_blocked_total"

# Of the process.
BUILD_INFO = "speadrx_build_info"

#: The help text of each metric, by its name.
HELP = {
    HEAPS_PLACED: "Heaps placed in a chunk, including duplicates and heaps then found too old",
    RECEIVED_BYTES: "Payload bytes of the heaps placed",
    HEAPS_DUPLICATE: "Placed heaps whose place was taken already",
    HEAPS_REJECTED: "Heaps rejected, by reason; the source is empty if the heap does not tell it",
    NEWEST_TIMESTAMP: "Timestamp of the newest heap placed, in ticks",
    SOURCE_ESTRANGED: "1 while the source says another time than most others, otherwise 0",
    HEAP_LATENESS_BATCHES: "Batches that a placed heap of the newest chunk was behind the newest batch",
    HEAP_LATENESS_CHUNKS: "Chunks that a placed heap was behind the newest chunk; +Inf: older than the window",
    HEAPS_PRESENT: "Heaps present in the chunks handed to the consumer",
    HEAPS_MISSING: "Heaps missing from the chunks handed to the consumer, and from chunks that never came",
    HEAPS_IN_FLIGHT: "Placed heaps whose chunk has not been handed to the consumer yet",
    CHUNKS: "Chunks handed to the consumer",
    RESTARTS: "How often time began again, because senders were restarted or the time so far was wrong",
    EPOCH_GAP_HEAPS: "Heaps in the time that was jumped over when time began again; they do not count as missing",
    RING_CHUNKS: "Chunks in the ring",
    RING_CAPACITY_CHUNKS: "Chunks that the ring can hold",
    RING_BLOCKED_SECONDS: "Seconds that the data ring was full or the free ring empty, sampled",
    RING_CHUNK_SECONDS: "Chunks in the ring integrated over time, sampled; divided by chunks taken, the mean wait",
    SOCKET_DROPS: "Packets that the kernel dropped: the socket's receive buffer was full, or their checksum was wrong",
    SOCKET_RECEIVE_QUEUE_BYTES: "Bytes of its receive buffer that the socket uses",
    SOCKET_RECEIVE_BUFFER_BYTES: "Size of the socket's receive buffer",
    PACKETS_UNUSED: "Packets that came, but that spead2 did not get, by reason",
    HEAPS_TOO_OLD: "Placed heaps that came after their chunk was finished",
    HEAPS_INCOMPLETE_EVICTED: "Heaps given up before all their packets came",
    HEAPS_INCOMPLETE_FLUSHED: "Heaps still incomplete when the stream ended",
    PACKETS: "Packets received",
    WORKER_BLOCKED: "How often a network thread waited for space in a ring or for a free chunk",
    BUILD_INFO: "Always 1; the labels are the versions of speadrx, spead2 and Python",
}

#: All names. Histograms add suffixes to theirs.
NAMES = frozenset(HELP)
