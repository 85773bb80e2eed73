"""The history of a run: heaps present by time and source, in bounded memory. It can be written to a file."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from speadrx._whole import whole_file
from speadrx.layout.base import DeclarativeLayout

from .fields import FieldError, Fields
from .loss import loss
from .presence import Presence, PresenceReader
from .span import Span, TellsTime

if TYPE_CHECKING:
    from speadrx.receive.chunk import Chunk

FORMAT = "speadrx-history"
VERSION = 1

#: By default, a history has at most this number of rows.
MAX_ROWS = 1024
#: With fewer rows there may be no room for the next chunk.
MIN_ROWS = 16

#: What `History.finish` copies: plain numbers, counts by bucket, counts by name.
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
    "epoch_gap_ticks",
)
BUCKETS = ("late_batches", "late_chunks")
NAMED = ("rejected",)
#: The same, for each source.
SOURCE_NUMBERS = ("placed", "duplicates", "rejected")


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What a history knows of the layout of the heaps."""

    #: Name of the layout. It may be empty.
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


class History:
    """Heaps present by time and source, from the chunks that were received.

    Time is cut into rows. Each row is a number of neighbouring batches, and rows are in the order of reception. The
    first row begins with the first batch that has a heap, and the last row ends with the last batch that has one. Rows
    of chunks that never came have no heap present. Where time began again (because a sender was restarted), a new row
    begins, and says so. The time that was jumped over is in no row. Nor are heaps that came after the account had ended
    (see `Account`); they only count in the totals. The totals are equal to those of an `Account`.

    When there are too many rows, neighbouring rows are merged, and rows are twice as long from then on.

    Only one thread may use it at a time.

    Parameters
    ----------
    layout
        Layout of the chunks.
    max_rows
        The largest number of rows: at least 16.

    Raises
    ------
    TypeError
        If the layout has a callback of its own, so that the axes of a chunk are not known.
    ValueError
        If `max_rows` is less than 16.

    Examples
    --------
    With a stream that `make_stream` made::

        history = History(layout)
        for chunk in iter_chunks(stream):
            with chunk:
                history.add(chunk)
        history.write("run.json")
    """

    #: What is known of the layout.
    axes: Axes
    #: Batches in a whole row; a power of two. Rows begin at multiples of it, except the first row and rows after a
    #: restart. Rows are longer only if there were so many restarts that several had to share a row.
    row_batches: int
    #: Chunks that were added.
    chunks: int
    #: Other counts of the run, as given to `finish`: `NUMBERS`, `BUCKETS` (lists), `NAMED` (by reason), and ``sources``
    #: (a list by source for each of `SOURCE_NUMBERS`). Counts that were not given are absent.
    accounts: dict[str, Any]
    #: When the first heaps came, in seconds since 1970 (UTC), if whoever made the history has said so.
    began: float | None

    def __init__(self, layout: DeclarativeLayout, *, max_rows: int = MAX_ROWS) -> None:
        if not isinstance(layout, DeclarativeLayout):
            raise TypeError(
                f"layout: given {type(layout).__name__}, but wanted a declarative layout, whose axes are known"
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
        self._reader: PresenceReader | None = PresenceReader(layout)
        self._shape = layout.present_shape
        source = [] if declaration.sources is None else [declaration.sources]
        self._moved = [layout.axis_names.index(name) for name in (declaration.time.name, *source)]
        # How far the stream has come.
        self._last_chunk_id = -1
        self._span: Span | None = None

    def _empty(self, axes: Axes, max_rows: int) -> None:
        self.axes = axes
        self.row_batches = 1
        self.chunks = 0
        self.accounts = {}
        self.began = None
        self._rows = 0
        self._first_batch = np.zeros(max_rows, np.int64)
        #: Ticks by which the timestamps of each row exceed whole steps.
        self._phase = np.zeros(max_rows, np.int64)
        self._batches = np.zeros(max_rows, np.int64)
        self._restarts = np.zeros(max_rows, np.int64)
        self._present = np.zeros((max_rows, len(axes.source_labels)), np.int64)
        self._outside = np.zeros(len(axes.source_labels), np.int64)

    # What was received

    def add(self, chunk: Chunk) -> None:
        """Add a chunk that was received. This must be done before the chunk is recycled.

        Parameters
        ----------
        chunk
            A chunk from `iter_chunks`. Add each once, in the order in which they come.

        Raises
        ------
        ValueError
            If the chunk is not newer than the one before, is in a ring already, or has another number of heaps.
        """
        if self._reader is None:
            raise ValueError("chunk: this history was read from a file, so nothing can be added to it")
        array: Any = chunk.present
        if array is None:
            raise ValueError("chunk: has no present, as if it were in a ring: add it before it is recycled")
        presence = self._reader.read(array)
        _, first, end = presence
        if not end:
            return  # it holds no heap
        start, phase = divmod(chunk.timestamp, self.axes.time_step)
        rows = self._rows
        self._count(chunk, array, presence, start, start + first, start + end)
        # If rows were merged, this is right for the last of them at least, and the phase changes with a restart only.
        self._phase[min(rows, self._rows - 1) : self._rows] = phase
        self.chunks += 1

    def _count(self, chunk: Chunk, array: Any, presence: Presence, start: int, first: int, end: int) -> None:
        """Count a chunk that begins with the batch `start`, and has heaps from `first` on, before `end`."""
        assert self._reader is not None
        span, first, end = self._follow(chunk, first, end)
        present, first_present, end_present = presence
        if end - first < end_present - first_present:
            others = self._reader.read_outside(array, first - start, end - start)
            self._outside += others
            present = present - others
        begin = span.first if span.is_new or self._span is None else self._span.end
        if span.end > begin:
            self._extend(begin, span.end, span.restarts, is_new=span.is_new or not self._rows)
        self._span = span
        if end == first:
            return
        cuts = [first, *range((first // self.row_batches + 1) * self.row_batches, end, self.row_batches)]
        if len(cuts) == 1:
            self._present[self._rows - 1] += present
        else:
            rows = slice(self._rows - len(cuts), self._rows)
            self._present[rows] += self._presence(array, np.array(cuts) - start, end - start)

    def _follow(self, chunk: Chunk, first: int, end: int) -> tuple[Span, int, int]:
        """Follow time to a chunk, with heaps in these batches. Return what `Span.following` does."""
        sink = chunk.sink()
        if not isinstance(sink, TellsTime):  # the IDs may mean anything
            before = self._span
            if before is None or first < before.end:
                return Span(0, first, end, int(before is not None)), first, end
            return before._replace(end=end, restarts=0, is_new=False), first, end
        epoch = sink._locate(chunk.chunk_id)[1]
        if self.chunks and chunk.chunk_id <= self._last_chunk_id:
            raise ValueError(
                f"chunk: given ID {chunk.chunk_id} after ID {self._last_chunk_id}, but wanted a newer chunk each time"
            )
        self._last_chunk_id = chunk.chunk_id
        ends = sink._account_ends() if chunk._ends is None else chunk._ends
        return Span.following(self._span, sink, ends, epoch, (first, end))

    def _presence(self, present: Any, offsets: np.ndarray, end: int) -> np.ndarray:
        """Count heaps by row and source. The rows begin at these batches of the chunk, and the last ends with `end`."""
        array = np.asarray(present).reshape(self._shape) != 0
        array = np.moveaxis(array, self._moved, range(len(self._moved)))[:end]
        counts = np.add.reduceat(array, offsets, axis=0, dtype=np.int64)
        by_source: np.ndarray = counts.reshape(len(offsets), len(self.axes.source_labels), -1).sum(axis=2)
        return by_source

    # Rows

    def _extend(self, start: int, end: int, restarts: int, *, is_new: bool) -> None:
        """Add time, without any heaps yet. If time begins again, so does a row."""
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
        """Merge neighbouring rows."""
        n = self._rows
        if np.count_nonzero(self._restarts[:n]) > len(self._batches) // 2:
            begins = np.arange(n) % 2 == 0  # there are so many restarts that several have to share a row
        else:
            self.row_batches *= 2
            begins = (self._restarts[:n] > 0) | (self._first_batch[:n] % self.row_batches == 0)
        begins[:1] = True
        firsts = np.flatnonzero(begins)
        self._rows = len(firsts)
        self._first_batch[: self._rows] = self._first_batch[firsts]
        self._phase[: self._rows] = self._phase[firsts]
        for counts in (self._batches, self._restarts, self._present):
            if n:
                counts[: self._rows] = np.add.reduceat(counts[:n], firsts, axis=0)
            counts[self._rows :] = 0

    @property
    def timestamps(self) -> np.ndarray:
        """Timestamp of the first batch of each row, in ticks: int64 of shape (rows,). It may fall at a restart."""
        timestamps: np.ndarray = self._first_batch[: self._rows] * self.axes.time_step + self._phase[: self._rows]
        return timestamps

    @property
    def batches(self) -> np.ndarray:
        """Batches in each row: int64 of shape (rows,)."""
        return self._batches[: self._rows].copy()

    @property
    def row_restarts(self) -> np.ndarray:
        """How often time began again in each row (usually at its beginning): int64 of shape (rows,)."""
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
        present: np.ndarray = self._present[: self._rows].sum(axis=0) + self._outside
        return present

    @property
    def expected_by_source(self) -> np.ndarray:
        """Heaps that should have been present, by source: int64 of shape (sources,)."""
        expected: np.ndarray = self._outside + self.expected_by_row.sum()
        return expected

    @property
    def missing_by_source(self) -> np.ndarray:
        """Heaps missing, by source: int64 of shape (sources,)."""
        missing: np.ndarray = self.expected_by_source - self.present_by_source
        return missing

    @property
    def loss(self) -> float | None:
        """Heaps missing, as a fraction of those expected; None if none were expected."""
        return loss(int(self.missing_by_source.sum()), int(self.present_by_source.sum()))

    @property
    def restarts(self) -> int:
        """How often time began again."""
        return int(self._restarts.sum())

    # The end, and the file

    def finish(self, stats: Any) -> None:
        """Store the other counts of the run, as they are at its end.

        Parameters
        ----------
        stats
            A `ReceiverStats`, or a mapping with any of its fields. Totals that can be derived from the rows are not
            stored.

        Raises
        ------
        ValueError
            If a field has the wrong type. The message names it and its value.
        """
        fields = dict(stats) if isinstance(stats, Mapping) else dataclasses.asdict(stats)
        accounts = {name: fields[name] for name in (*NUMBERS, *BUCKETS, *NAMED) if fields.get(name) is not None}
        if sources := fields.get("sources"):
            if not isinstance(sources, Mapping):
                sources = {name: [source[name] for source in sources] for name in SOURCE_NUMBERS}
            accounts["sources"] = dict(sources)
        self.accounts = _check_accounts(accounts, len(self.axes.source_labels))

    def copy(self) -> Self:
        """Return a copy, which another thread may use."""
        other = copy.copy(self)
        for name in ("_first_batch", "_phase", "_batches", "_restarts", "_present", "_outside"):
            setattr(other, name, getattr(self, name).copy())
        return other

    def to_json(self) -> dict[str, Any]:
        """Return the history as JSON values.

        Returns
        -------
        dict
            Dicts, lists, numbers and strings. The fields are those of a file (see `write`).
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
                **({"phase": phases} if any(phases := self._phase[: self._rows].tolist()) else {}),
            },
            "outside": self._outside.tolist(),
            "began": self.began,
            "accounts": self.accounts,
        }

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the history to a file, as JSON.

        The document is an object with the fields ``format`` ("speadrx-history"), ``version`` (1), those of `Axes`,
        ``chunks``, ``row_batches``, ``rows``, ``outside``, ``began`` and ``accounts``. ``rows`` is an object of lists,
        each with an element for each row: ``timestamp`` (ticks), ``batches``, ``restarts`` and ``present`` (a list of
        heaps by source); and ``phase``, if timestamps are no whole steps: the ticks beyond. A source should have
        ``batches * batch_heaps`` heaps in a row. ``outside`` is a list by source of heaps that are in no row, because
        they came before the account began or after it ended. ``accounts`` has the content of `accounts`. ``began`` is
        null or a time in seconds since 1970 (UTC).

        Parameters
        ----------
        path
            The file. If it exists, it is replaced once the new one is whole.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        text = json.dumps(self.to_json(), separators=(",", ":")) + "\n"
        with whole_file(path) as file:
            file.write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `write` has written.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        History
            The same history, but nothing can be added to it.

        Raises
        ------
        FieldError
            If the file is not a history. The message names the file, the field and its value.
        OSError
            If the file cannot be read.
        """
        try:
            return cls.from_json(json.loads(pathlib.Path(path).read_bytes()))
        except FieldError as exc:
            raise FieldError(f"{os.fspath(path)}: {exc}") from None
        except (ValueError, RecursionError) as exc:
            raise FieldError(f"{os.fspath(path)}: is not a history, because it is not JSON: {exc}") from None

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Make a history from what `to_json` returns.

        Parameters
        ----------
        document
            What `to_json` returned, or what `json.loads` returns for a file.

        Returns
        -------
        History
            The same history, but nothing can be added to it.

        Raises
        ------
        FieldError
            If a field is absent or wrong. The message names it and its value.
        """
        fields = Fields(document)
        if (kind := fields.take("format", str)) != FORMAT:
            raise FieldError(f"format: {kind!r} must be {FORMAT!r}")
        if (version := fields.count("version")) != VERSION:
            raise FieldError(f"version: {version} must be {VERSION}, the only one that this version of speadrx reads")
        tick_rate = fields.optional("tick_rate", float)
        if tick_rate is not None and not tick_rate > 0:
            raise FieldError(f"tick_rate: {tick_rate} must be a positive number or null")
        labels = fields.array("source_labels")
        if not labels or not all(isinstance(label, str) for label in labels):
            raise FieldError(f"source_labels: {labels!r} must be a list of at least one string, and of nothing else")
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
        self._reader = None
        self._rows = n
        self.chunks = fields.count("chunks")
        self.row_batches = fields.count("row_batches", 1)
        timestamps = rows.counts("timestamp", (n,))
        self._first_batch = timestamps // axes.time_step
        self._phase = rows.counts("phase", (n,)) if "phase" in document["rows"] else np.zeros(n, np.int64)
        self._batches = rows.counts("batches", (n,))
        self._restarts = rows.counts("restarts", (n,))
        self._present = rows.counts("present", (n, len(labels)))
        if "outside" in document:
            self._outside = fields.counts("outside", (len(labels),))
        self.began = fields.optional("began", float) if "began" in document else None
        if (n > 0) != (self.chunks > 0) and not self._outside.any():
            raise FieldError(f"chunks: {self.chunks} does not go with {n} rows: both must be 0, or neither")
        self._check_rows(timestamps)
        self.accounts = _check_accounts(fields.take("accounts", dict), len(labels))
        return self

    def _check_rows(self, timestamps: np.ndarray) -> None:
        """Check that the columns of the rows agree with each other."""
        for row in np.flatnonzero(timestamps % self.axes.time_step != self._phase):
            phase = f", and {self._phase[row]} more" if self._phase[row] else ""
            step = self.axes.time_step
            raise FieldError(f"rows.timestamp[{row}]: {timestamps[row]} must be a multiple of time_step, {step}{phase}")
        for row in np.flatnonzero(self._batches == 0):
            raise FieldError(f"rows.batches[{row}]: 0 must be at least 1")
        total = sum(self._batches.tolist()) * self.axes.batch_heaps
        if total >= 2**63:
            raise FieldError(f"rows.batches: {total} heaps of each source must be less than 2^63")
        for row in np.flatnonzero((self._present > self.expected_by_row[:, np.newaxis]).any(axis=1)):
            raise FieldError(
                f"rows.present[{row}]: {self._present[row].max()} heaps of a source must be at most "
                f"{self.expected_by_row[row]}, the number of heaps in {self._batches[row]} batches"
            )


def _cuts(start: int, end: int, row_batches: int) -> int:
    """Count the rows that a span of batches is cut into."""
    return (end - 1) // row_batches - start // row_batches + 1


def _check_accounts(accounts: Mapping[str, Any], n_sources: int) -> dict[str, Any]:
    """Check the final counts, and make plain numbers, lists and dicts of them."""
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
