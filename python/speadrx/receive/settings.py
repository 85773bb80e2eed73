"""What the arguments of a receiver stand for, with the defaults of those that have one."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import spead2

from speadrx.layout.base import DeclarativeLayout

from .endpoints import parse_endpoints
from .readers import check_integer

#: Bytes by which heaps may be late by default: 50 ms of 10 Gb/s, more than the switches and senders of an array are
#: out of step.
DEFAULT_TOLERANCE_BYTES = 2**26

#: Chunks under construction by default, at most: a flush makes as many come out empty.
MOST_WINDOW = 16

#: Chunks for the user by default: one in hand, one that waits.
HELD_CHUNKS = 2

#: Bytes of socket buffer of each thread by default: 50 ms of 10 Gb/s, longer than a busy system keeps a thread waiting.
DEFAULT_BUFFER = 2**26

# Bounds of the heaps that spead2 has in hand at a time.
_LEAST_HEAPS, _MOST_HEAPS = 16, 8192

# Options of `make_stream` that a receiver sets itself, though they are not among its own arguments.
_TAKEN = ("max_active_chunks", "data_ringbuffer", "free_ringbuffer", "stream_stats", "spead_items", "max_heap_extra")


def chunks_of(chunks: int | None, active: int) -> int:
    """Count the chunks to allocate, with so many under construction.

    Raises
    ------
    ValueError, TypeError
        If `chunks` is no integer, or leaves none for the user.
    """
    if chunks is None:
        return 2 * active + 1 + HELD_CHUNKS
    if check_integer("chunks", chunks, 1) <= active:
        raise ValueError(
            f"chunks: {chunks} must be more than the {active} under construction, or the user can never have one"
        )
    return chunks


def heaps_at_a_time(layout: DeclarativeLayout) -> int:
    """How many heaps of a stream spead2 shall assemble at a time: every sender may have two in the air."""
    return min(max(2 * layout.batch_heaps, _LEAST_HEAPS), _MOST_HEAPS)


def check_options(options: Mapping[str, Any]) -> None:
    """Check that options of the stream are such that a receiver leaves to its user.

    Raises
    ------
    TypeError, ValueError
        If one is not. The message names it.
    """
    for name in _TAKEN:
        if name in options:
            raise TypeError(f"{name}: given {options[name]!r}, but a Receiver makes that itself; see make_stream")
    if options.get("explicit_start"):
        raise ValueError("explicit_start: a Receiver opens its sockets when it is started, and receives from then on")


def read_sources(sources: Any) -> list[Any]:
    """Make a list of endpoints (as pairs), paths and queues.

    Raises
    ------
    ValueError, TypeError
        If there is none, or one is something else. The message has it.
    """
    if isinstance(sources, (str, os.PathLike, spead2.InprocQueue)) or _is_pair(sources):
        found = _read_source(sources)
    elif isinstance(sources, (bytes, Mapping)) or not isinstance(sources, Iterable):
        raise TypeError(
            f"sources: given {sources!r}, but wanted endpoints as text or (host, port) pairs, the path of a pcap file, "
            "or in-process queues"
        )
    else:
        found = [one for source in sources for one in _read_source(source)]
    if not found:
        raise ValueError(f"sources: given {sources!r}, but wanted at least one")
    return found


def _is_pair(source: Any) -> bool:
    """Whether it is a host with a port; a sequence of two sources is none."""
    if not isinstance(source, Sequence) or isinstance(source, (str, bytes)) or len(source) != 2:
        return False
    host, port = source
    return isinstance(host, str) and (isinstance(port, numbers.Integral) or (isinstance(port, str) and port.isdigit()))


def _read_source(source: Any) -> list[Any]:
    if _is_pair(source):
        host, port = source
        return [(host, int(port))]
    if isinstance(source, (os.PathLike, spead2.InprocQueue)):
        return [source]
    if not isinstance(source, str):
        raise TypeError(f"sources: {source!r} is neither a (host, port) pair, a path nor an in-process queue")
    # A file may have a colon in its name.
    if ":" not in source or "/" in source or os.path.exists(source):
        return [source]
    try:
        return list(parse_endpoints(source))
    except ValueError as exc:
        raise ValueError(f"sources: {exc}") from None


def deal(sources: list[Any], threads: int) -> list[list[Any]]:
    """Deal sources out to threads, in order: a list for each.

    Raises
    ------
    ValueError
        If there are fewer sources than threads, or one whose end would end the thread of others.
    """
    if len(sources) < threads:
        raise ValueError(f"threads: {threads} have only {len(sources)} sources to receive from: wanted one each")
    each, more = divmod(len(sources), threads)
    parts = []
    for i in range(threads):
        n = each + (i < more)
        parts.append(sources[:n])
        sources = sources[n:]
    for part in parts:
        ending = [source for source in part if not isinstance(source, tuple)]
        if ending and len(part) > 1:
            raise ValueError(
                f"sources: the end of {_name(ending[0])} would end its thread, which has other sources too: "
                + ("wanted one file (mergecap joins several)" if _is_file(ending[0]) else "wanted a thread for each")
            )
    return parts


def check_files(parts: list[list[Any]], *, tolerance: bool) -> None:
    """Check that the user has thought of how far files that are read at once may come apart.

    Raises
    ------
    ValueError
        If there are such files, and no `tolerance` is given.
    """
    files = [source for part in parts for source in part if _is_file(source)]
    if len(parts) > 1 and files and not tolerance:
        raise ValueError(
            f"sources: {os.fspath(files[0])} would be read as fast as it can be, as would the other sources, and heaps "
            "are lost where they come apart by more than the window: wanted one file (mergecap joins several), or a "
            "window that holds all that they may come apart"
        )


def _is_file(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike))


def _name(source: Any) -> str:
    return os.fspath(source) if _is_file(source) else "an in-process queue"


def processors_of(affinity: int | Sequence[int] | None, threads: int) -> list[int]:
    """The processor of each thread, negative for any.

    Raises
    ------
    ValueError
        If there is not one for each thread.
    """
    if affinity is None:
        return [-1] * threads
    processors = list(affinity) if isinstance(affinity, Iterable) else [affinity]
    if len(processors) != threads:
        raise ValueError(f"affinity: given {processors}, but {threads} thread(s) want one processor each")
    return processors


def window_of(layout: DeclarativeLayout, window: int | None, seconds: float | None, n_bytes: int | None) -> int:
    """Count the chunks under construction for a tolerance in chunks, seconds or bytes, or take the default.

    Raises
    ------
    ValueError, TypeError
        If more than one is given, or one is wrong. The message names it.
    """
    given = {"window": window, "tolerance_seconds": seconds, "tolerance_bytes": n_bytes}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ValueError(
            f"{names[1]}: {given[names[1]]} says the same as {names[0]}, {given[names[0]]}: give one of them"
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
                f"tolerance_seconds: {seconds} needs the layout's tick_rate, which it has not: give tolerance_bytes or "
                "window"
            )
        return math.ceil(seconds * tick_rate / layout.chunk_timestamp_step) + 1
    if n_bytes is not None:
        return -(-check_integer("tolerance_bytes", n_bytes, 0) // layout.chunk_bytes) + 1
    # At least 2: with one alone, a heap that is late by a moment would be lost.
    usual = -(-DEFAULT_TOLERANCE_BYTES // layout.chunk_bytes) + 1
    return min(usual, MOST_WINDOW, layout._assumed_window())


def labels_of(labels: Mapping[str, str] | None) -> dict[str, str]:
    """The labels of the metrics, as text.

    Raises
    ------
    TypeError
        If they are no mapping.
    """
    if labels is None:
        return {}
    if not isinstance(labels, Mapping):
        raise TypeError(f"labels: given {labels!r}, but wanted a mapping from names to values")
    return {str(name): str(value) for name, value in labels.items()}


def user_data_of(
    layout: DeclarativeLayout, given: Mapping[str, int] | Sequence[Mapping[str, int]] | None, threads: int
) -> np.ndarray | None:
    """Make the structured array that streams take: a record for each thread; None if none is given.

    Raises
    ------
    ValueError, TypeError
        If a field is unknown to the layout, in some mappings only, or no integer from 0 on. The message names it.
    """
    if given is None:
        return None
    if not isinstance(given, (Mapping, Sequence)):
        raise TypeError(f"user_data: given {given!r}, but wanted a mapping from the layout's fields, or one per thread")
    rows = [given] * threads if isinstance(given, Mapping) else list(given)
    if len(rows) != threads:
        raise ValueError(f"user_data: given {len(rows)} mappings, but {threads} thread(s) want one, or one each")
    known = set(layout.user_data_dtype.names or ()) - {"stats_base"}
    for row in rows:
        if not isinstance(row, Mapping):
            raise TypeError(f"user_data: given {row!r}, but wanted a mapping from the layout's fields")
        if unknown := sorted(set(row) - known):
            wanted = ", ".join(sorted(known)) or "none"
            raise ValueError(f"user_data: {unknown[0]!r} is not a field that the layout reads (those are: {wanted})")
        if set(row) != set(rows[0]):
            raise ValueError(f"user_data: {dict(row)} and {dict(rows[0])} have different fields")
        for name, value in row.items():
            check_integer(f"user_data[{name!r}]", value, 0, 2**63 - 1)
    array = np.zeros(threads, [("stats_base", np.uintp), *((name, np.uintp) for name in rows[0])])
    for i, row in enumerate(rows):
        for name, value in row.items():
            array[i][name] = value
    return array
