"""What a recording says of the run that made it: its account, and a history of which heaps it has."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from typing import Any

import click
import numpy as np
from rich.console import Console

from speadrx.accounts.history import FORMAT, VERSION, History
from speadrx.accounts.rejections import ItemValue, Rejection
from speadrx.accounts.report import ReceiverStats, RingStats, SourceStats
from speadrx.record.recording import Begin, RecordedPart, Recording

from .account import AccountView, Moment, document
from .parameters import UnusableError, naming_options
from .tables import printable

#: Rows of a history, at most, but for one more of each part.
_MOST_ROWS = 4096


@contextlib.contextmanager
def readable(path: str) -> Iterator[None]:
    """End the command with a message if a recording cannot be read.

    Raises
    ------
    UnusableError
        The message says why.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        raise UnusableError(str(exc)) from None
    except (OSError, ValueError) as exc:
        raise UnusableError(f"{path}: {getattr(exc, 'strerror', None) or exc}") from None


def open_recording(path: str) -> Recording:
    """Open a recording.

    Raises
    ------
    UnusableError
        If it is none.
    """
    with naming_options():
        return Recording(path)


def show_account(path: str, *, as_json: bool) -> None:
    """Write the account of the run that made a recording, as JSON or for a terminal.

    Raises
    ------
    UnusableError
        If there is none, because the run has not ended, or was killed.
    """
    recording = open_recording(path)
    if "fleet" in recording.attributes:
        _show_fleet(recording, as_json=as_json)
        return
    if "account" not in recording.attributes:
        raise UnusableError(
            f"{path} lacks its account: it is still being written, or its writer was killed. 'speadrx plot {path}' "
            "shows what it holds"
        )
    with readable(f"{path}: its account"):
        stats = _stats(recording.attributes["account"])
    moment = Moment(recording.layout, stats, None, stats.seconds)
    if as_json:
        click.echo(json.dumps(document(moment, recording=path)))
        return
    began, ended = (str(recording.attributes.get(name, "?"))[:19].replace("T", " ") for name in ("began", "ended"))
    console = Console(highlight=False)
    console.print(printable(f"{path}, recorded from {began} to {ended} UTC on {recording.attributes.get('host')}"))
    console.print()
    console.print(AccountView(moment, all_sources=False))


def _stats(account: dict[str, Any]) -> ReceiverStats:
    """Make of plain values what they were.

    Raises
    ------
    ValueError
        If something is missing, or has another name.
    """
    try:
        rejections = [
            Rejection(**{**cause, "items": [ItemValue(**item) for item in cause["items"]]})
            for cause in account["rejections"]
        ]
        rings = {name: RingStats(**account[name]) for name in ("data_ring", "free_ring")}
        sources = [SourceStats(**source) for source in account["sources"]]
        return ReceiverStats(**{**account, **rings, "rejections": rejections, "sources": sources})
    except (KeyError, TypeError) as exc:
        raise ValueError(f"not that of this version of speadrx: {exc}") from None


def _show_fleet(recording: Recording, *, as_json: bool) -> None:
    """Write the account of a fleet."""
    from speadrx.fleet.account import FleetStats

    from .fleet import show

    account = recording.attributes["fleet"]
    if as_json:
        click.echo(json.dumps(account))
        return
    with readable(f"{recording.path}: its account"):
        stats = FleetStats.from_plain(account)
    show(Console(highlight=False), stats, all_sources=True)


def history_of(recording: Recording, begin: Begin | None = None) -> History:
    """Make a history of the heaps that a recording has, and of those of the run that were counted for other reasons.

    What is not there is missing: it never came, or was not written. What was not selected is left out, and what is
    before `begin`, as for `Recording.parts`.

    Raises
    ------
    OSError, ValueError, ModuleNotFoundError
        If it cannot be read.
    """
    layout, stored, attributes = recording.layout, recording.stored, recording.attributes
    axis = None if layout.sources is None else layout.axis_names.index(layout.sources)
    shape = stored.present.shape
    chosen = range(1) if axis is None else recording.select.get(axis, range(shape[axis]))
    with naming_options():
        parts = recording.parts(begin)
    row_batches = -(-sum(part.length() for part in parts) // _MOST_ROWS) or 1
    rows = _Rows(recording, axis, row_batches)
    for part in parts:
        rows.add(part)
    batch_heaps = math.prod(n for i, n in enumerate(shape) if i not in (axis, stored.time_axis))
    history = History.from_json(
        {
            "format": FORMAT,
            "version": VERSION,
            "layout": layout.name,
            "heap_bytes": layout.heap_bytes,
            "time_step": layout.time.step,
            "tick_rate": layout.time.tick_rate,
            "chunk_batches": layout.chunk_batches,
            "batch_heaps": batch_heaps,
            "source_axis": layout.sources,
            "source_labels": [layout.source_labels[index] for index in chosen],
            "chunks": rows.chunks,
            "row_batches": row_batches,
            "rows": rows.columns,
            "began": rows.began,
            "accounts": {},
        }
    )
    if "account" in attributes and not recording.select and begin is None:
        history.finish(attributes["account"])
    return history


class _Rows:
    """The rows of a history, of one part of a recording after the other."""

    def __init__(self, recording: Recording, source_axis: int | None, row_batches: int) -> None:
        self._layout, self._stored = recording.layout, recording.stored
        self._axes = [self._stored.time_axis, *([] if source_axis is None else [source_axis])]
        self._sources = 1 if source_axis is None else self._stored.present.shape[source_axis]
        self._row_batches = row_batches
        self.columns: dict[str, list[Any]] = {
            name: [] for name in ("timestamp", "batches", "restarts", "present", "phase")
        }
        #: Chunks that have any heap, and when the first heaps were, in seconds since 1970, if the layout knows UTC.
        self.chunks = 0
        self.began: float | None = None

    def add(self, part: RecordedPart) -> None:
        """Add a part: from the first batch of which there is a heap to the last one."""
        size, batches = self._row_batches, self._layout.chunk_batches
        present = np.zeros((-(-part.length() // size), self._sources), np.int64)
        occupied = []
        for number in part.chunks():
            there = np.moveaxis(part.read(self._stored.present, number), self._axes, range(len(self._axes)))
            counts = there.reshape(len(there), self._sources, -1).sum(axis=2)
            found = number * batches + np.flatnonzero(counts.any(axis=1))
            if found.size:
                self.chunks += 1
                occupied += [int(found[0]), int(found[-1])]
                np.add.at(present, (number * batches + np.arange(len(counts))) // size, counts)
        if not occupied:
            return
        first, end = occupied[0], occupied[-1] + 1
        starts = np.array([first, *range((first // size + 1) * size, end, size)])
        step, begin = self._layout.time.step, part.attributes["first_timestamp"]
        if self.began is None and part.attributes["time_is_utc"] and not self.columns["timestamp"]:
            self.began = int(part.group[self._stored.time_name][first]) / 1e9
        self.columns["restarts"] += [int(bool(self.columns["restarts"])), *[0] * (len(starts) - 1)]
        self.columns["timestamp"] += (begin + starts * step).tolist()
        self.columns["batches"] += np.diff(starts, append=end).tolist()
        self.columns["present"] += present[starts // size].tolist()
        self.columns["phase"] += [begin % step] * len(starts)
