"""The arguments of a receiver: checked, converted, and with their defaults."""

from __future__ import annotations

import itertools
import math
import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import spead2

from speadrx.layout.base import DeclarativeLayout

from .checks import check_integer
from .endpoints import deal_out, is_endpoints, parse_endpoints
from .feed import HandedPackets, mends_packets

#: How late heaps may be by default, in bytes of chunks: 50 ms at 10 Gb/s. The senders and switches of an array differ
#: by less than that.
DEFAULT_TOLERANCE_BYTES = 2**26

#: The largest default window: after a flush, as many chunks come out empty.
MOST_WINDOW = 16

#: Chunks for the user by default: one in use, and one that waits.
HELD_CHUNKS = 2

#: Default bytes of socket buffer for each thread: 50 ms at 10 Gb/s. A busy system does not delay a thread for longer.
DEFAULT_BUFFER = 2**26

# Bounds for the number of heaps that spead2 assembles at a time.
_LEAST_HEAPS, _MOST_HEAPS = 16, 8192

# Options of `make_stream` that a receiver sets itself, and that are not its own arguments.
_TAKEN = ("max_active_chunks", "data_ringbuffer", "free_ringbuffer", "stream_stats", "spead_items", "max_heap_extra")


def chunks_of(chunks: int | None, window: int) -> int:
    """Return the number of chunks to allocate for a window.

    Raises
    ------
    ValueError, TypeError
        If `chunks` is not an integer, or leaves no chunk for the user.
    """
    if chunks is None:
        return 2 * window + 1 + HELD_CHUNKS
    if check_integer("chunks", chunks, 1) <= window:
        raise ValueError(
            f"chunks: {chunks} must be more than the {window} in the window, or the user never gets a chunk"
        )
    return chunks


def heaps_at_a_time(layout: DeclarativeLayout) -> int:
    """Return how many heaps spead2 should assemble at a time. Every sender may have two on the way."""
    return min(max(2 * layout.batch_heaps, _LEAST_HEAPS), _MOST_HEAPS)


def check_options(options: Mapping[str, Any]) -> None:
    """Check the options of the stream: a receiver sets some of them itself.

    Raises
    ------
    TypeError, ValueError
        If a receiver does not take an option. The message names it.
    """
    for name in _TAKEN:
        if name in options:
            raise TypeError(f"{name}: given {options[name]!r}, but a Receiver sets it itself; see make_stream")
    if options.get("explicit_start"):
        raise ValueError("explicit_start: a Receiver opens its sockets when it is started, and receives from then on")


def read_inputs(sources: Any) -> list[Any]:
    """Make a list of endpoints (as pairs), paths, queues and packets.

    Raises
    ------
    ValueError, TypeError
        If there is none, or one is something else. The message says which.
    """
    if isinstance(sources, (str, os.PathLike, spead2.InprocQueue)) or _is_pair(sources) or hasattr(sources, "add_to"):
        found = _read_input(sources)
    elif isinstance(sources, (bytes, Mapping)) or not isinstance(sources, Iterable):
        raise TypeError(
            f"sources: given {sources!r}, but wanted endpoints as text or (host, port) pairs, the path of a pcap file, "
            "in-process queues, or packets (an iterable of bytes)"
        )
    else:
        packets, all_given = _look_into(sources)
        found = [packets] if packets is not None else [one for given in all_given for one in _read_input(given)]
    if not found:
        raise ValueError(f"sources: given {sources!r}, but wanted at least one")
    return found


def _look_into(given: Iterable[Any]) -> tuple[HandedPackets | None, Iterable[Any]]:
    """See whether the first of some objects is a packet. If so, all are; otherwise, give them as they were."""
    iterator = iter(given)
    first = list(itertools.islice(iterator, 1))
    rest = itertools.chain(first, iterator)
    try:
        memoryview(*first)
    except TypeError:  # there is none, or it is something else
        return None, rest
    return HandedPackets(rest), ()


def _is_pair(given: Any) -> bool:
    """Whether it is a host with a port, and not a sequence of two inputs."""
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)) or len(given) != 2:
        return False
    host, port = given
    return isinstance(host, str) and (isinstance(port, numbers.Integral) or (isinstance(port, str) and port.isdigit()))


def _read_input(given: Any) -> list[Any]:
    if _is_pair(given):
        host, port = given
        return [(host, int(port))]
    if isinstance(given, (os.PathLike, spead2.InprocQueue)) or hasattr(given, "add_to"):
        return [given]
    if not isinstance(given, str):
        packets = _look_into(given)[0] if isinstance(given, Iterable) and not isinstance(given, bytes) else None
        if packets is None:
            raise TypeError(f"sources: {given!r} is not a (host, port) pair, a path, an in-process queue or packets")
        return [packets]
    # The name of a file may have a colon.
    if ":" not in given or os.path.exists(given) or ("/" in given and not is_endpoints(given)):
        return [given]
    try:
        return list(parse_endpoints(given))
    except ValueError as exc:
        raise ValueError(f"sources: {exc}") from None


def deal(inputs: list[Any], threads: int) -> list[list[Any]]:
    """Deal out inputs to threads, in order, and return a list for each thread.

    Raises
    ------
    ValueError
        If there are fewer inputs than threads, or if the end of one would end the thread of others.
    """
    parts = deal_out(inputs, threads)
    for part in parts:
        ending = [one for one in part if not isinstance(one, tuple)]
        if ending and len(part) > 1:
            raise ValueError(
                f"sources: the end of {_name(ending[0])} would end its thread, which has other sources too: "
                + ("wanted one file (mergecap joins several)" if _is_file(ending[0]) else "wanted a thread for each")
            )
    return parts


def check_files(parts: list[list[Any]], *, tolerance: bool) -> None:
    """Check that the user gives a tolerance if several files are read at once, since they drift apart.

    Raises
    ------
    ValueError
        If there are such files, and no `tolerance` is given.
    """
    files = [one for part in parts for one in part if _is_file(one)]
    if len(parts) > 1 and files and not tolerance:
        raise ValueError(
            f"sources: {os.fspath(files[0])} and the other sources would each be read as fast as possible, and heaps "
            "are lost if they drift apart by more than the window: wanted one file (mergecap joins several), or a "
            "window that is large enough"
        )


def check_queues(layout: DeclarativeLayout, parts: list[list[Any]]) -> None:
    """Check that no packets of in-process queues are to be mended: only spead2 can take them out.

    Raises
    ------
    ValueError
        If there is such a queue. The message says what to do.
    """
    if mends_packets(layout) and any(isinstance(one, spead2.InprocQueue) for part in parts for one in part):
        raise ValueError(
            "sources: the packets of an in-process queue cannot be mended, as the layout asks for (by [packets], or by "
            "an item that no sender sends), because only spead2 can take them out of the queue: give the packets "
            "themselves (an iterable of bytes), a capture, or a UDP endpoint"
        )


def _is_file(given: Any) -> bool:
    return isinstance(given, (str, os.PathLike))


def _name(given: Any) -> str:
    if isinstance(given, spead2.InprocQueue):
        return "an in-process queue"
    if isinstance(given, HandedPackets):
        return "an iterable of packets"
    return os.fspath(given) if _is_file(given) else "a capture"


def check_ibv(ibv: bool, parts: list[list[Any]]) -> bool:
    """Check that everything is an endpoint if ibverbs is wanted.

    Raises
    ------
    ValueError, TypeError
        If a source is a file or a queue, or `ibv` is not a truth value.
    """
    if not isinstance(ibv, bool):
        raise TypeError(f"ibv: given {ibv!r}, but wanted True or False")
    others = [one for part in parts for one in part if not isinstance(one, tuple)]
    if ibv and others:
        raise ValueError(f"ibv: {_name(others[0])} does not come from a network: wanted endpoints only")
    return ibv


def comp_vectors_of(comp_vector: int | Sequence[int], threads: int) -> list[int]:
    """Return the completion vector of each thread.

    Raises
    ------
    ValueError, TypeError
        If it is not an integer, or there is not one for each thread.
    """
    vectors = list(comp_vector) if isinstance(comp_vector, Iterable) else [comp_vector] * threads
    if len(vectors) != threads:
        raise ValueError(f"comp_vector: given {vectors}, but {threads} thread(s) want one completion vector each")
    return [check_integer("comp_vector", vector, -(2**31), 2**31 - 1) for vector in vectors]


def processors_of(affinity: int | Sequence[int] | None, threads: int) -> list[int]:
    """Return the processor of each thread; negative for any.

    Raises
    ------
    ValueError
        If there is not one processor for each thread.
    """
    if affinity is None:
        return [-1] * threads
    processors = list(affinity) if isinstance(affinity, Iterable) else [affinity]
    if len(processors) != threads:
        raise ValueError(f"affinity: given {processors}, but {threads} thread(s) want one processor each")
    return processors


def window_of(layout: DeclarativeLayout, window: int | None, seconds: float | None, n_bytes: int | None) -> int:
    """Return the window for a tolerance in chunks, seconds or bytes, or the default window.

    Raises
    ------
    ValueError, TypeError
        If more than one is given, or one is wrong. The message names it.
    """
    given = {"window": window, "tolerance_seconds": seconds, "tolerance_bytes": n_bytes}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ValueError(
            f"{names[1]}: {given[names[1]]} cannot be combined with {names[0]} {given[names[0]]}: "
            f"give either {names[0]} or {names[1]}, not both"
        )
    if window is not None:
        return check_integer("window", window, 1)
    if seconds is not None:
        if isinstance(seconds, bool) or not isinstance(seconds, numbers.Real):
            raise TypeError(f"tolerance_seconds: given {seconds!r}, but wanted a number of seconds")
        if not 0 <= seconds < math.inf:
            raise ValueError(f"tolerance_seconds: {seconds} must be at least 0 seconds, and finite")
        tick_rate = layout.declaration.time.tick_rate
        if tick_rate is None:
            raise ValueError(
                f"tolerance_seconds: {seconds} needs a layout with a tick_rate, and this one has none: "
                "give tolerance_bytes or window"
            )
        return math.ceil(seconds * tick_rate / layout.chunk_timestamp_step) + 1
    if n_bytes is not None:
        return -(-check_integer("tolerance_bytes", n_bytes, 0) // layout.chunk_bytes) + 1
    # At least 2: with a single chunk, a heap that is only a moment late would be lost.
    usual = -(-DEFAULT_TOLERANCE_BYTES // layout.chunk_bytes) + 1
    return min(usual, MOST_WINDOW, layout._assumed_window())


def labels_of(labels: Mapping[str, str] | None) -> dict[str, str]:
    """Return the labels of the metrics, as text.

    Raises
    ------
    TypeError
        If they are not a mapping.
    ValueError
        If Prometheus does not allow a name, or metrics have it already.
    """
    if labels is None:
        return {}
    if not isinstance(labels, Mapping):
        raise TypeError(f"labels: given {labels!r}, but wanted a mapping from names to values")
    from speadrx.metrics.labels import check_labelnames

    return dict(zip(check_labelnames(map(str, labels), "labels"), map(str, labels.values()), strict=True))


def user_data_of(
    layout: DeclarativeLayout, given: Mapping[str, int] | Sequence[Mapping[str, int]] | None, threads: int
) -> np.ndarray | None:
    """Make the structured array that streams take, with a record for each thread, or None if nothing is given.

    Raises
    ------
    ValueError, TypeError
        If the layout does not know a field, only some mappings have it, or its value is not an integer of at least 0.
        The message names the field.
    """
    if given is None:
        return None
    if not isinstance(given, (Mapping, Sequence)):
        raise TypeError(
            f"user_data: given {given!r}, but wanted a mapping from the layout's fields to numbers, or one for each "
            "thread"
        )
    rows = [given] * threads if isinstance(given, Mapping) else list(given)
    if len(rows) != threads:
        raise ValueError(
            f"user_data: given {len(rows)} mappings, but wanted one, or one for each of {threads} thread(s)"
        )
    known = set(layout.user_data_dtype.names or ()) - {"stats_base"}
    for row in rows:
        if not isinstance(row, Mapping):
            raise TypeError(f"user_data: given {row!r}, but wanted a mapping from the layout's fields to numbers")
        if unknown := sorted(set(row) - known):
            wanted = ", ".join(sorted(known)) or "none"
            raise ValueError(f"user_data: {unknown[0]!r} is not a field that the layout reads (it reads: {wanted})")
        if set(row) != set(rows[0]):
            raise ValueError(f"user_data: {dict(row)} and {dict(rows[0])} have different fields")
        for name, value in row.items():
            check_integer(f"user_data[{name!r}]", value, 0, 2**63 - 1)
    array = np.zeros(threads, [("stats_base", np.uintp), *((name, np.uintp) for name in rows[0])])
    for i, row in enumerate(rows):
        for name, value in row.items():
            array[i][name] = value
    return array
