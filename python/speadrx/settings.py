"""What the arguments of a receiver stand for, with the defaults of those that have one."""

from __future__ import annotations

import math
import numbers
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import spead2

from .endpoints import parse_endpoints
from .layout import DeclarativeLayout
from .readers import check_integer

#: Bytes by which heaps may be late by default: 50 ms of 10 Gb/s, more than the switches and senders of an array are
#: out of step.
DEFAULT_TOLERANCE_BYTES = 2**26

#: Chunks under construction by default, at least: with one alone, a heap that is late by a moment would be lost.
LEAST_WINDOW = 2

#: Chunks under construction by default, at most: a flush makes as many come out empty.
MOST_WINDOW = 16

#: Chunks for the user by default: one in hand, one that waits.
HELD_CHUNKS = 2

#: Bytes of socket buffer of each thread by default: 50 ms of 10 Gb/s, longer than a busy system keeps a thread waiting.
DEFAULT_BUFFER = 2**26

# Bounds of the heaps that spead2 has in hand at a time.
_LEAST_HEAPS, _MOST_HEAPS = 16, 8192

_LOOKS_LIKE_ENDPOINTS = re.compile(r"[^/]*:[0-9]+")


def chunks_of(chunks: int | None, active: int) -> int:
    """Count the chunks to allocate, with so many under construction."""
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


def read_sources(sources: Any) -> list[Any]:
    """Make a list of endpoints (as pairs), paths and queues."""
    if isinstance(sources, (os.PathLike, spead2.InprocQueue)):
        return [sources]
    if isinstance(sources, str):
        if not _LOOKS_LIKE_ENDPOINTS.fullmatch(sources):
            return [sources]
        try:
            return list(parse_endpoints(sources))
        except ValueError as exc:
            raise ValueError(f"sources: {exc}") from None
    if isinstance(sources, tuple) and len(sources) == 2 and isinstance(sources[1], int):
        return [sources]
    if isinstance(sources, bytes) or not isinstance(sources, Iterable):
        raise TypeError(
            f"sources: given {sources!r}, but wanted endpoints as text or (host, port) pairs, the path of a pcap file, "
            "or in-process queues"
        )
    found = []
    for source in sources:
        if isinstance(source, (str, os.PathLike, spead2.InprocQueue)):
            found += read_sources(source)
        elif isinstance(source, Sequence) and not isinstance(source, bytes) and len(source) == 2:
            found.append(tuple(source))
        else:
            raise TypeError(f"sources: {source!r} is neither a (host, port) pair, a path nor an in-process queue")
    return found


def deal(sources: list[Any], threads: int) -> list[list[Any]]:
    """Deal sources out to threads, in order."""
    if len(sources) < threads:
        raise ValueError(f"threads: {threads} have only {len(sources)} sources to receive from: wanted one each")
    each, more = divmod(len(sources), threads)
    parts = []
    for i in range(threads):
        n = each + (i < more)
        parts.append(sources[:n])
        sources = sources[n:]
    for part in parts:
        files = [source for source in part if isinstance(source, (str, os.PathLike))]
        if files and len(part) > 1:
            raise ValueError(
                f"sources: the end of {os.fspath(files[0])} would end its thread, which has other sources too: with "
                "several, wanted a thread for each"
            )
    return parts


def processors_of(affinity: int | Sequence[int] | None, threads: int) -> list[int]:
    """The processor of each thread, negative for any."""
    if affinity is None:
        return [-1] * threads
    processors = list(affinity) if isinstance(affinity, Iterable) else [affinity]
    if len(processors) != threads:
        raise ValueError(f"affinity: given {processors}, but {threads} thread(s) want one processor each")
    return processors


def window_of(layout: DeclarativeLayout, window: int | None, seconds: float | None, n_bytes: int | None) -> int:
    """Count the chunks under construction for a tolerance, or take the default."""
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
    usual = -(-DEFAULT_TOLERANCE_BYTES // layout.chunk_bytes) + 1
    return min(max(usual, LEAST_WINDOW), MOST_WINDOW, layout._assumed_window())


def labels_of(labels: Mapping[str, str] | None) -> dict[str, str]:
    """The labels of the metrics."""
    if labels is None:
        return {}
    if not isinstance(labels, Mapping):
        raise TypeError(f"labels: given {labels!r}, but wanted a mapping from names to values")
    return {str(name): str(value) for name, value in labels.items()}


def user_data_of(
    layout: DeclarativeLayout, given: Mapping[str, int] | Sequence[Mapping[str, int]] | None, threads: int
) -> np.ndarray | None:
    """Make the structured array that streams take."""
    if given is None:
        return None
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
