"""What a run saw over time: heaps present by time and source, in bounded memory, and the file that it is kept in."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np

from speadrx._core import Layout as CompiledLayout
from speadrx.layout.base import DeclarativeLayout

from .fields import FieldError, Fields

if TYPE_CHECKING:
    from speadrx.receive.chunk import Chunk

FORMAT = "speadrx-history"
VERSION = 1

#: Rows that a history has at most, unless it is told otherwise.
MAX_ROWS = 1024
#: With fewer there may be no room for a chunk beside what was before.
MIN_ROWS = 16

#: What `History.finish` takes over: plain numbers, counts by bucket, counts by name.
NUMBERS = (
    "seconds",
    "placed",
    "duplicates",
    "too_old",
    "unfinished",
    "kernel_drops",
    "packets",
    "incomplete",
    "epoch_gap_heaps",
)
BUCKETS = ("late_batches", "late_chunks")
NAMED = ("rejected",)
#: And of each source.
SOURCE_NUMBERS = ("placed", "duplicates", "rejected")


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What a history knows of the layout of the heaps."""

    #: Name of the layout; may be empty.
    layout: str
    #: Payload bytes of a heap.
    heap_bytes: int
    #: Ticks from one batch to the next.
    time_step: int
    #: Ticks per second in Hz, if known.
    tick_rate: float | None
    #: Batches in a chunk.
    chunk_batches: int
    #: Heaps of a source in a batch.
    batch_heaps: int
    #: Name of the axis whose index is the source, if any.
    source_axis: str | None
    #: Label of each source.
    source_labels: tuple[str, ...]


@runtime_checkable
class _TellsTime(Protocol):
    """A stream or group that knows what time its chunk IDs stand for."""

    def _locate(self, chunk_id: int) -> tuple[int, int, bool]: ...

    def _restarts(self, before: int, epoch: int) -> int: ...


class History:
    """Heaps present by time and source, from the chunks that were received.

    Time is cut into rows of neighbouring batches, in the order of reception. They begin with the first batch seen and
    end with the last chunk; those of whole chunks that never came have no heap present. Where time began anew (a
    restarted sender), so does a row: it says so, and what lies between is in no row, as with `Accounting`, to which the
    totals are equal. When there are too many rows, neighbours become one and rows are twice as long from then on.

    Used by one thread at a time.

    Parameters
    ----------
    layout
        Layout of the chunks.
    max_rows
        Rows that it has at most; from 16 on.

    Raises
    ------
    TypeError
        If the layout has a callback of its own: then the axes of a chunk are not known.
    ValueError
        If `max_rows` is less than 16.

    Examples
    --------
    Of a stream made by `make_stream`::

        history = History(layout)
        for chunk in iter_chunks(stream):
            with chunk:
                history.add(chunk)
        history.write("run.json")
    """

    #: What is known of the layout.
    axes: Axes
    #: Batches of a whole row; a power of two. Rows begin at multiples of it, but for the first and those after a
    #: restart; they are longer only where restarts were so many that rows had to share.
    row_batches: int
    #: Chunks that were added.
    chunks: int
    #: Other counts of the run, as given to `finish`: `NUMBERS`, `BUCKETS` (lists), `NAMED` (by reason), and ``sources``
    #: with a list by source for each of `SOURCE_NUMBERS`. What was not given is not there.
    accounts: dict[str, Any]

    def __init__(self, layout: DeclarativeLayout, *, max_rows: int = MAX_ROWS) -> None:
        if not isinstance(layout, DeclarativeLayout):
            raise TypeError(
                f"layout: given {type(layout).__name__}, but wanted a declarative layout: its axes are known"
            )
        if max_rows < MIN_ROWS:
            raise ValueError(f"max_rows: {max_rows} must be at least {MIN_ROWS}")
        declaration = layout.declaration
        labels = layout.source_labels
        axes = Axes(
            layout=declaration.name,
            heap_bytes=layout.heap_bytes,
            time_step=declaration.time.step,
            tick_rate=declaration.time.tick_rate,
            chunk_batches=layout.chunk_batches,
            batch_heaps=layout.batch_heaps // len(labels),
            source_axis=declaration.sources,
            source_labels=labels,
        )
        self._empty(axes, max_rows)
        self._core: CompiledLayout | None = declaration._compiled
        self._shape = layout.present_shape
        source = [] if declaration.sources is None else [declaration.sources]
        self._moved = [layout.axis_names.index(name) for name in (declaration.time.name, *source)]
        # How far the stream has come.
        self._last_chunk_id = -1
        self._epoch = 0
        self._end = 0  # in batches from time 0

    def _empty(self, axes: Axes, max_rows: int) -> None:
        self.axes = axes
        self.row_batches = 1
        self.chunks = 0
        self.accounts = {}
        self._rows = 0
        self._first_batch = np.zeros(max_rows, np.int64)
        self._batches = np.zeros(max_rows, np.int64)
        self._restarts = np.zeros(max_rows, np.int64)
        self._present = np.zeros((max_rows, len(axes.source_labels)), np.int64)

    # What was received

    def add(self, chunk: Chunk) -> None:
        """Add a chunk that was received; before it is recycled.

        Parameters
        ----------
        chunk
            As `iter_chunks` gives it out, each once and in that order.

        Raises
        ------
        ValueError
            If it is not newer than the one before, is in a ring already, or has another number of heaps.
        """
        if self._core is None:
            raise ValueError("chunk: this history was read from a file, nothing can be added to it")
        array: Any = chunk.present
        if array is None:
            raise ValueError("chunk: has no present (in a ring it has none: add it before it is recycled)")
        present, first_batch = self._core.account_present(array)
        if first_batch == self.axes.chunk_batches:
            return  # nothing is in it
        begin = chunk.timestamp // self.axes.time_step
        end = begin + self.axes.chunk_batches
        restarts = self._follow(chunk, begin)
        start = self._end
        if not self.chunks or restarts:
            start = begin = begin + first_batch
        self._extend(start, end, restarts, is_new=not self.chunks or restarts > 0)
        self.chunks += 1
        self._end = end
        cuts = [begin, *range((begin // self.row_batches + 1) * self.row_batches, end, self.row_batches)]
        if len(cuts) == 1:
            self._present[self._rows - 1] += present
        else:
            offsets = np.array(cuts) - (end - self.axes.chunk_batches)
            self._present[self._rows - len(cuts) : self._rows] += self._presence(array, offsets)

    def _follow(self, chunk: Chunk, begin: int) -> int:
        """Follow time; return how often it has begun anew since the chunk before."""
        sink = chunk.sink()
        if not isinstance(sink, _TellsTime):  # IDs need not tell anything
            return int(self.chunks > 0 and begin < self._end)
        _, epoch, _ = sink._locate(chunk.chunk_id)
        if self.chunks and chunk.chunk_id <= self._last_chunk_id:
            raise ValueError(f"chunk: ID {chunk.chunk_id} comes after {self._last_chunk_id}, but wanted a newer one")
        restarts = sink._restarts(self._epoch, epoch) if self.chunks else 0
        self._last_chunk_id, self._epoch = chunk.chunk_id, epoch
        return restarts

    def _presence(self, present: Any, offsets: np.ndarray) -> np.ndarray:
        """Count heaps by rows, which begin at these batches of the chunk, and by source."""
        array = np.asarray(present).reshape(self._shape) != 0
        array = np.moveaxis(array, self._moved, range(len(self._moved)))
        counts = np.add.reduceat(array, offsets, axis=0, dtype=np.int64)
        by_source: np.ndarray = counts.reshape(len(offsets), len(self.axes.source_labels), -1).sum(axis=2)
        return by_source

    # Rows

    def _extend(self, start: int, end: int, restarts: int, *, is_new: bool) -> None:
        """Add time, without any heap yet; a new beginning of it has a row of its own."""
        while self._rows + _cuts(start, end, self.row_batches) > len(self._batches):
            self._merge()
        bounds = np.array(
            [start, *range((start // self.row_batches + 1) * self.row_batches, end, self.row_batches), end]
        )
        lengths = np.diff(bounds)
        if not is_new and start % self.row_batches:  # the last row is not at its end
            self._batches[self._rows - 1] += lengths[0]
            bounds, lengths = bounds[1:], lengths[1:]
        rows = slice(self._rows, self._rows + len(lengths))
        self._first_batch[rows] = bounds[:-1]
        self._batches[rows] = lengths
        if is_new:
            self._restarts[self._rows] = restarts
        self._rows += len(lengths)

    def _merge(self) -> None:
        """Make fewer rows, twice as long."""
        n = self._rows
        if np.count_nonzero(self._restarts[:n]) > len(self._batches) // 2:
            begins = np.arange(n) % 2 == 0  # time begins anew again and again: rows have to cover several beginnings
        else:
            self.row_batches *= 2
            begins = (self._restarts[:n] > 0) | (self._first_batch[:n] % self.row_batches == 0)
        begins[:1] = True
        firsts = np.flatnonzero(begins)
        self._rows = len(firsts)
        self._first_batch[: self._rows] = self._first_batch[firsts]
        for counts in (self._batches, self._restarts, self._present):
            if n:
                counts[: self._rows] = np.add.reduceat(counts[:n], firsts, axis=0)
            counts[self._rows :] = 0

    @property
    def timestamps(self) -> np.ndarray:
        """Timestamp of the first batch of each row, in ticks: int64 of shape (rows,); not in order after a restart."""
        timestamps: np.ndarray = self._first_batch[: self._rows] * self.axes.time_step
        return timestamps

    @property
    def batches(self) -> np.ndarray:
        """Batches in each row: int64 of shape (rows,)."""
        return self._batches[: self._rows].copy()

    @property
    def row_restarts(self) -> np.ndarray:
        """How often time began anew in each row, which is at its beginning unless rows had to share: int64, (rows,)."""
        return self._restarts[: self._rows].copy()

    @property
    def present_by_row(self) -> np.ndarray:
        """Heaps present: int64 of shape (rows, sources)."""
        return self._present[: self._rows].copy()

    @property
    def expected_by_row(self) -> np.ndarray:
        """Heaps of each source that should have been present in each row: int64 of shape (rows,)."""
        expected: np.ndarray = self.batches * self.axes.batch_heaps
        return expected

    # Totals

    @property
    def present_by_source(self) -> np.ndarray:
        """Heaps present, by source: int64 of shape (sources,)."""
        present: np.ndarray = self._present[: self._rows].sum(axis=0)
        return present

    @property
    def expected_by_source(self) -> np.ndarray:
        """Heaps that should have been present, by source: int64 of shape (sources,)."""
        return np.full(len(self.axes.source_labels), self.expected_by_row.sum())

    @property
    def missing_by_source(self) -> np.ndarray:
        """Heaps missing, by source: int64 of shape (sources,)."""
        missing: np.ndarray = self.expected_by_source - self.present_by_source
        return missing

    @property
    def restarts(self) -> int:
        """How often time began anew."""
        return int(self._restarts.sum())

    # The end, and the file

    def finish(self, stats: Any) -> None:
        """Take over the other counts of the run, as they are at its end.

        Parameters
        ----------
        stats
            A `ReceiverStats`, or a mapping with any of its fields. Totals that follow from the rows are left out.

        Raises
        ------
        ValueError
            If a field is not of its type; the message names it and its value.
        """
        fields = dict(stats) if isinstance(stats, Mapping) else dataclasses.asdict(stats)
        accounts = {name: fields[name] for name in (*NUMBERS, *BUCKETS, *NAMED) if fields.get(name) is not None}
        if sources := fields.get("sources"):
            if not isinstance(sources, Mapping):
                sources = {name: [source[name] for source in sources] for name in SOURCE_NUMBERS}
            accounts["sources"] = dict(sources)
        self.accounts = _check_accounts(accounts, len(self.axes.source_labels))

    def to_json(self) -> dict[str, Any]:
        """Return it as what JSON can say.

        Returns
        -------
        dict
            Dicts, lists, numbers and strings; the fields are those of the files (see `write`).
        """
        axes = dataclasses.asdict(self.axes)
        return {
            "format": FORMAT,
            "version": VERSION,
            **axes,
            "source_labels": list(axes["source_labels"]),
            "chunks": self.chunks,
            "row_batches": self.row_batches,
            "rows": {
                "timestamp": self.timestamps.tolist(),
                "batches": self.batches.tolist(),
                "restarts": self.row_restarts.tolist(),
                "present": self.present_by_row.tolist(),
            },
            "accounts": self.accounts,
        }

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, as JSON.

        The document is an object with the fields ``format`` ("speadrx-history"), ``version`` (1), those of `Axes`,
        ``chunks``, ``row_batches``, ``rows`` and ``accounts``. ``rows`` has a list with an element for each row for
        each of ``timestamp`` (ticks), ``batches``, ``restarts`` and ``present`` (a list of heaps by source). Of each
        source, ``batches * batch_heaps`` heaps should be present in a row. ``accounts`` is what `accounts` has.

        Parameters
        ----------
        path
            The file; what it held is replaced.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        text = json.dumps(self.to_json(), separators=(",", ":"))
        pathlib.Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `write` has written; nothing can be added to what it gives.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        History
            As it was written.

        Raises
        ------
        FieldError
            If it is not such a file. The message names the file, the field and its value.
        OSError
            If the file cannot be read.
        """
        try:
            return cls.from_json(json.loads(pathlib.Path(path).read_bytes()))
        except FieldError as exc:
            raise FieldError(f"{os.fspath(path)}: {exc}") from None
        except (ValueError, RecursionError) as exc:
            raise FieldError(f"{os.fspath(path)}: is not JSON, and so no history: {exc}") from None

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Make it of what `to_json` has returned.

        Parameters
        ----------
        document
            That, or what `json.loads` makes of a file.

        Returns
        -------
        History
            Nothing can be added to it.

        Raises
        ------
        FieldError
            If a field is absent or wrong. The message names it and its value.
        """
        fields = Fields(document)
        if (kind := fields.take("format", str)) != FORMAT:
            raise FieldError(f"format: {kind!r} is not {FORMAT!r}")
        if (version := fields.count("version")) != VERSION:
            raise FieldError(f"version: {version} is not {VERSION}, which this version of speadrx reads")
        tick_rate = fields.optional("tick_rate", float)
        if tick_rate is not None and not tick_rate > 0:
            raise FieldError(f"tick_rate: {tick_rate} must be a positive number, or null")
        labels = fields.array("source_labels")
        if not labels or not all(isinstance(label, str) for label in labels):
            raise FieldError(f"source_labels: {labels!r} must be one or more strings")
        axes = Axes(
            layout=fields.take("layout", str),
            heap_bytes=fields.count("heap_bytes", 1),
            time_step=fields.count("time_step", 1),
            tick_rate=tick_rate,
            chunk_batches=fields.count("chunk_batches", 1),
            batch_heaps=fields.count("batch_heaps", 1),
            source_axis=fields.optional("source_axis", str),
            source_labels=tuple(labels),
        )
        self = cls.__new__(cls)
        rows = Fields(fields.take("rows", dict), "rows.")
        n = len(rows.array("timestamp"))
        self._empty(axes, n)
        self._core = None
        self._rows = n
        self.chunks = fields.count("chunks")
        self.row_batches = fields.count("row_batches", 1)
        self._first_batch = rows.counts("timestamp", (n,)) // axes.time_step
        self._batches = rows.counts("batches", (n,))
        self._restarts = rows.counts("restarts", (n,))
        self._present = rows.counts("present", (n, len(labels)))
        if (n > 0) != (self.chunks > 0):
            raise FieldError(f"chunks: {self.chunks} chunks cannot have {n} rows")
        self._check_rows(rows.counts("timestamp", (n,)))
        self.accounts = _check_accounts(fields.take("accounts", dict), len(labels))
        return self

    def _check_rows(self, timestamps: np.ndarray) -> None:
        """Check that rows hold together; each on its own is as it should be."""
        for row in np.flatnonzero(timestamps % self.axes.time_step):
            raise FieldError(
                f"rows.timestamp[{row}]: {timestamps[row]} must be a multiple of time_step, {self.axes.time_step}"
            )
        for row in np.flatnonzero(self._batches == 0):
            raise FieldError(f"rows.batches[{row}]: 0 must be an integer from 1 on")
        total = sum(self._batches.tolist()) * self.axes.batch_heaps
        if total >= 2**63:
            raise FieldError(f"rows.batches: {total} heaps of a source must be less than 2^63")
        for row in np.flatnonzero((self._present > self.expected_by_row[:, np.newaxis]).any(axis=1)):
            raise FieldError(
                f"rows.present[{row}]: {self._present[row].max()} heaps of a source are more than the "
                f"{self.expected_by_row[row]} that {self._batches[row]} batches have"
            )


def _cuts(start: int, end: int, row_batches: int) -> int:
    """How many rows a span of batches is cut into."""
    return (end - 1) // row_batches - start // row_batches + 1


def _check_accounts(accounts: Mapping[str, Any], n_sources: int) -> dict[str, Any]:
    """Make the final counts plain numbers, lists and dicts of them."""
    fields = Fields(accounts, "accounts.")
    checked: dict[str, Any] = {}
    for name in NUMBERS:
        if name in accounts:
            checked[name] = fields.take(name, float) if name == "seconds" else fields.count(name)
    for name in BUCKETS:
        if name in accounts:
            checked[name] = fields.counts(name, (len(fields.array(name)),)).tolist()
    for name in NAMED:
        if name in accounts:
            reasons = Fields(fields.take(name, dict), f"accounts.{name}.")
            checked[name] = {reason: reasons.count(reason) for reason in accounts[name]}
    if "sources" in accounts:
        sources = Fields(fields.take("sources", dict), "accounts.sources.")
        checked["sources"] = {name: sources.counts(name, (n_sources,)).tolist() for name in SOURCE_NUMBERS}
    return checked
