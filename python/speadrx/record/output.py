"""`Output`: a recording that is being written: chunks are queued for a thread, and what became of each is counted."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import math
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from speadrx._core import Writer, __version__
from speadrx.layout.base import DeclarativeLayout
from speadrx.receive.chunk import Chunk

from .compression import Compressor
from .part import FORMAT, Part, Piece, Stored, check_selection, group_document

#: A longer gap begins a new part, so that a wrong time does not make arrays of any length.
_MOST_GAP_BATCHES = 2**20
#: Bytes that are kept free for the last metadata, in case the disk is full then.
_RESERVE = 2**18
_RESERVE_NAME = ".reserve"
#: Seconds between looks for an end.
_LOOK = 0.2


@dataclass(frozen=True)
class RecorderStats:
    """What a recorder has done so far, as plain values. Chunks without any heap are not among them."""

    #: Chunks that are on the disk, and their bytes.
    chunks: int
    bytes: int
    #: Chunks that wait or are written now, and how many may at a time.
    queued: int
    capacity: int
    #: Chunks that were not written, by cause: `queue_full` (the disk is slower than the stream), `disk_full`,
    #: `not_allowed`, `folder_gone`, `write_failed` or `disk_hung`.
    not_written: dict[str, int]
    #: The heaps that are present in chunks that were written, and in those that were not.
    heaps: int
    heaps_not_written: int
    #: What the system said of the first chunk that was not written.
    first_error: str | None
    #: Groups in the recording: one, and one more for each time that began again, or jumped very far.
    parts: int
    #: Whether the metadata are complete: not before `Recorder.close`.
    finished: bool


class Arrival(NamedTuple):
    """A chunk, as it is given to an `Output`."""

    timestamp: int
    #: UTC of its first batch, if that is known: asked for where a part begins.
    time: Callable[[], np.datetime64 | None]
    #: Whether time began again before it.
    begins: bool
    #: How many heaps are present.
    heaps: int
    #: What each array of the recording has of it.
    buffers: Mapping[str, np.ndarray]
    #: The chunk whose memory these are, if they are no copies.
    lent: Chunk | None = None
    #: The timestamp and time with which its part begins, if it begins one, but not with this chunk.
    begin: tuple[int, Callable[[], np.datetime64 | None]] | None = None


@dataclass
class _Pending:
    """A chunk that waits, or is written."""

    lent: Chunk | None
    heaps: int
    n_bytes: int


class _Job(NamedTuple):
    """What a ticket of the writer stands for; the last metadata have neither."""

    #: The key of a chunk.
    key: int | None
    #: The part whose metadata it writes.
    part: Part | None


class Output:
    """A recording that is being written.

    Parameters
    ----------
    path
        The folder to make.
    layout
        The layout of what is recorded.
    select
        Values to keep of some axes.
    queue
        How many chunks may wait for the disk.
    wait
        Whether `put` waits for the disk when the queue is full.
    overwrite
        Whether to remove a recording that is there already.
    compress
        A codec, or None.
    threads
        Threads that compress.
    patience
        After how many seconds without any progress a disk is given up.
    about
        What else to say of the recording in its attributes, from the beginning.

    Raises
    ------
    OSError
        If the folder cannot be made.
    ValueError, TypeError
        If an argument is wrong.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        layout: DeclarativeLayout,
        *,
        select: Mapping[str, Sequence[int]],
        queue: int,
        wait: bool,
        overwrite: bool,
        compress: str | None,
        threads: int | None,
        patience: float,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self._layout, self._select = os.fspath(path), layout, dict(select)
        self._compressor = None if compress is None else Compressor(compress, threads)
        codec = None if self._compressor is None else self._compressor.document
        #: How chunks are stored.
        self.stored = Stored(layout, check_selection(layout, self._select), codec)
        self._capacity, self._waits, self._patience = queue, wait, patience
        self._about = {"began": dt.datetime.now(dt.UTC).isoformat(), **(about or {})}
        #: The metadata of all in the recording, by path.
        self._documents: dict[str, bytes] = {}
        self._toml = layout.declaration.to_toml()
        self._make_folder(overwrite)
        # One thread, so that folders and metadata are there before the chunks that need them. Metadata come by
        # themselves if chunks are compressed first.
        self._writer = Writer(1, queue if self._compressor is None else 2 * queue + 2)
        self._lock = threading.Lock()
        #: Some jobs are over.
        self._over = threading.Condition(self._lock)
        self._keys = itertools.count()
        self._pending: dict[int, _Pending] = {}
        self._jobs: dict[int, _Job] = {}
        self._parts: list[Part] = []
        self._chunks = self._bytes = self._heaps = self._heaps_not_written = 0
        self._not_written = dict.fromkeys(("queue_full", *Writer.causes(), "disk_hung"), 0)
        self._first_error: str | None = None
        #: Why the last metadata were not written.
        self._last_failure: str | None = None
        self._ending = self._closed = self._finished = False
        #: When a job was over last, or the queue was empty.
        self._progress = time.monotonic()
        #: Whether time began again at a chunk that was not queued.
        self._is_broken = False
        # It recycles chunks, unlike the threads whose names begin with "speadrx-".
        self._thread = threading.Thread(target=self._settle, name="recorder of speadrx", daemon=True)
        self._thread.start()

    def _make_folder(self, overwrite: bool) -> None:
        if overwrite and os.path.isfile(os.path.join(self.path, "zarr.json")):
            shutil.rmtree(self.path)
        os.mkdir(self.path)
        try:
            with open(os.path.join(self.path, _RESERVE_NAME), "wb") as file:
                file.write(bytes(_RESERVE))
            with open(os.path.join(self.path, "zarr.json"), "wb") as file:
                file.write(self._root_document([], {}))
        except OSError:
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    @property
    def chunk_bytes(self) -> int:
        """The bytes of a chunk as it is stored, if it is not compressed, and without metadata."""
        return sum(math.prod(array.shape) * array.dtype.itemsize for array in self.stored.arrays)

    def put(self, arrival: Arrival) -> bool:
        """Queue a chunk. Returns whether it was queued; if not, that is counted."""
        with self._lock:
            while self._waits and len(self._pending) >= self._capacity and not self._is_hung():
                self._over.wait(self._patience)
            part, is_new = self._part_of(arrival)
            number = part.number(arrival.timestamp)
            chunks = part.grown(number)
            parts = [*self._parts, part] if is_new else self._parts
            metadata, documents = (
                self._metadata(part, chunks, parts) if chunks > part.declared else ([], self._documents)
            )
            if arrival.lent is not None:
                arrival.lent._share()
            try:
                is_queued = self._queue(arrival, part, number, metadata)
            except BaseException:
                if arrival.lent is not None:
                    arrival.lent._unshare()
                raise
            if not is_queued:
                if arrival.lent is not None:
                    arrival.lent._unshare()
                self._count_lost("disk_hung" if self._is_hung() else "queue_full", arrival.heaps)
                return False
            if is_new:
                self._parts.append(part)
                self._is_broken = False
            part.declared, part.chunks = chunks, max(part.chunks, number + 1)
            self._documents = documents
        return True

    def _queue(self, arrival: Arrival, part: Part, number: int, metadata: list[Piece]) -> bool:
        """Queue a chunk after the metadata that it needs, unless there is no room."""
        if self._ending:
            return False
        key = next(self._keys)
        if not self._pending:
            self._progress = time.monotonic()
        has_metadata = part if metadata else None
        if self._compressor is None:
            ticket = self._writer.submit(metadata + part.pieces(number, arrival.buffers))
            if ticket is None:
                return False
            self._jobs[ticket] = _Job(key, has_metadata)
        else:
            if len(self._pending) >= self._capacity:
                return False
            if metadata:
                ticket = self._writer.submit(metadata)
                assert ticket is not None  # there is room for as many as there are chunks
                self._jobs[ticket] = _Job(None, part)
            self._compressor.submit(self._compress, key, part, number, arrival.buffers)
        n_bytes = sum(array.nbytes for array in arrival.buffers.values())
        self._pending[key] = _Pending(arrival.lent, arrival.heaps, n_bytes)
        return True

    def _compress(self, key: int, part: Part, number: int, buffers: Mapping[str, np.ndarray]) -> None:
        """Compress a chunk, and have it written: in a thread of the compressor."""
        assert self._compressor is not None
        failure: tuple[str, str] | None = None
        packed: dict[str, Any] = {}
        try:
            packed = {name: self._compressor.encode(array) for name, array in buffers.items()}
        except Exception as exc:  # noqa: BLE001 (nobody else would hear of it)
            failure = ("write_failed", f"compressing: {exc}")
        with self._lock:
            if key not in self._pending:
                return  # it was given up
            if failure is None:
                self._pending[key].n_bytes = sum(len(content) for content in packed.values())
                ticket = self._writer.submit(part.pieces(number, packed))
                assert ticket is not None
                self._jobs[ticket] = _Job(key, None)
                return
        self._end_job(_Job(key, None), failure)

    def _part_of(self, arrival: Arrival) -> tuple[Part, bool]:
        """The part that a chunk belongs to, and whether it is new."""
        if self._parts:
            part = self._parts[-1]
            number = part.number(arrival.timestamp)
            goes_on = not arrival.begins and not self._is_broken and number >= part.chunks
            if goes_on and (number - part.chunks) * self._layout.chunk_batches <= _MOST_GAP_BATCHES:
                return part, False
        self._is_broken = True
        return self._new_part(arrival), True

    def _new_part(self, arrival: Arrival) -> Part:
        """The part that begins with a chunk."""
        first, time = arrival.begin or (arrival.timestamp, arrival.time)
        return Part(self.stored, self._layout, self._folder(len(self._parts)), first, time())

    def _folder(self, part: int) -> str:
        """The folder of a part, by its number."""
        return os.path.join(self.path, f"part_{part}") if part else self.path

    def reach(self, timestamp: int) -> None:
        """Have the newest part reach up to a timestamp, though nothing more came."""
        with self._lock:
            for part in self._parts[-1:]:
                part.chunks = max(part.chunks, part.number(timestamp))

    def _metadata(
        self, part: Part, chunks: int, parts: Sequence[Part], **more: Any
    ) -> tuple[list[Piece], dict[str, bytes]]:
        """All metadata for a part that is to have so many chunks; and those of the whole recording then, by path.

        The document of the root is the last. It has all others in it, so that readers find arrays of the same length,
        whenever this is interrupted.
        """
        pieces: list[Piece] = []
        if not part.declared and part is not parts[0]:
            pieces.append((part.folder, None, True))
        if part is not parts[0]:
            attributes = {"speadrx": self._part_attributes(part)}
            pieces.append((os.path.join(part.folder, "zarr.json"), group_document(attributes), True))
        pieces += part.metadata(chunks)
        documents = dict(self._documents)
        for path, content, _ in pieces:
            if os.path.basename(path) == "zarr.json":
                documents[os.path.relpath(os.path.dirname(path), self.path)] = content
        pieces.append((os.path.join(self.path, "zarr.json"), self._root_document(parts, documents, **more), True))
        return pieces, documents

    def _part_attributes(self, part: Part) -> dict[str, Any]:
        return {
            "first_timestamp": part.first,
            "timestamp_step": self._layout.chunk_timestamp_step // self._layout.chunk_batches,
            "tick_rate": self._layout.declaration.time.tick_rate,
            "time_is_utc": part.has_utc,
        }

    def _root_document(self, parts: Sequence[Part], documents: Mapping[str, bytes], **more: Any) -> bytes:
        ours = {
            "format": FORMAT,
            "version": __version__,
            "host": platform.node(),
            "layout": self._toml,
            "select": self._select,
            "complete": False,
            "parts": [os.path.basename(part.folder) if part is not parts[0] else "" for part in parts],
            **(self._part_attributes(parts[0]) if parts else {}),
            **self._about,
            **more,
        }
        return group_document({"speadrx": ours}, documents)

    def _settle(self) -> None:
        """Count what was written, and recycle it: a thread."""
        while not self._closed:
            for ticket, failure in self._writer.wait(_LOOK):
                with self._lock:
                    job = self._jobs.pop(ticket, None)
                if job is not None:  # otherwise it was given up
                    self._end_job(job, failure)

    def _end_job(self, job: _Job, failure: tuple[str, str] | None) -> None:
        with self._lock:
            self._progress = time.monotonic()
            pending = None if job.key is None else self._pending.pop(job.key)
            if pending is not None and failure is None:
                self._chunks += 1
                self._bytes += pending.n_bytes
                self._heaps += pending.heaps
            elif failure is not None and pending is None and job.part is None:
                self._last_failure = f"the last metadata: {failure[1]}"
            elif failure is not None:
                cause, words = failure
                self._first_error = self._first_error or words
                if pending is not None:
                    self._count_lost(cause, pending.heaps)
                if job.part is not None:
                    job.part.declared = 0  # so that the next chunk writes all of them
            self._over.notify_all()
        if pending is not None and pending.lent is not None:
            pending.lent._done()

    def _count_lost(self, cause: str, heaps: int) -> None:
        self._not_written[cause] += 1
        self._heaps_not_written += heaps

    def _is_hung(self) -> bool:
        """Whether something waits for the disk, and nothing was written for too long."""
        return bool(self._pending or self._jobs) and time.monotonic() - self._progress >= self._patience

    def stats(self) -> RecorderStats:
        """Read what was recorded so far, at any time, from any thread."""
        with self._lock:
            return RecorderStats(
                chunks=self._chunks,
                bytes=self._bytes,
                queued=len(self._pending),
                capacity=self._capacity,
                not_written={cause: n for cause, n in self._not_written.items() if n},
                heaps=self._heaps,
                heaps_not_written=self._heaps_not_written,
                first_error=self._first_error,
                parts=len(self._parts),
                finished=self._finished,
            )

    def close(self, account: Callable[[], Mapping[str, Any]]) -> None:
        """Write what is queued, and the account, and end: as long as the disk does anything. It may be called again."""
        with self._lock:
            if self._ending:
                return
            self._ending = True
            self._wait_until_idle()
        try:
            if not self._jobs and not self._pending:
                self._write_account(account)
        finally:
            if self._jobs or self._pending:
                self._give_up()
            self._closed = True
            self._writer.end()
            self._thread.join()
            if self._compressor is not None:
                self._compressor.close()

    def _wait_until_idle(self) -> None:
        while (self._jobs or self._pending) and not self._is_hung():
            self._over.wait(max(self._progress + self._patience - time.monotonic(), 0))

    def _give_up(self) -> None:
        """Leave the thread that hangs alone, and name what it has not written."""
        with self._lock:
            self._writer.abandon()
            self._jobs.clear()
            for pending in self._pending.values():
                self._count_lost("disk_hung", pending.heaps)
            self._pending.clear()
            self._first_error = self._first_error or f"nothing was written for {self._patience:g} s"

    def _write_account(self, account: Callable[[], Mapping[str, Any]]) -> None:
        """Write the last metadata, in the space that was kept for them."""
        ours = {"finished": True, "queued": 0}
        recorder = dataclasses.asdict(dataclasses.replace(self.stats(), **ours))  # type: ignore[arg-type]
        ended = dt.datetime.now(dt.UTC).isoformat()
        last = {"complete": True, "ended": ended, "recorder": recorder, **account()}
        pieces: list[Piece] = [(os.path.join(self.path, _RESERVE_NAME), None, False)]
        for part in self._parts:
            written, self._documents = self._metadata(part, part.chunks, self._parts, **last)
            pieces += written
        if not self._parts:
            pieces.append((os.path.join(self.path, "zarr.json"), self._root_document([], {}, **last), True))
        with self._lock:
            self._progress = time.monotonic()
            ticket = self._writer.submit(pieces)
            assert ticket is not None  # as nothing else is queued
            self._jobs[ticket] = _Job(None, None)
            self._wait_until_idle()
            self._finished = not self._jobs and self._last_failure is None
            self._first_error = self._first_error or self._last_failure
