"""`Output`: a recording that is being written: chunks are queued for a thread, and what became of each is counted."""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
import os
import platform
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from speadrx._core import Files, Memory, Writer, __version__
from speadrx.layout.base import DeclarativeLayout
from speadrx.receive.chunk import Chunk

from .compression import Compressor
from .part import FORMAT, Part, Piece, Stored, check_selection, group_document, named
from .recording import hold_folder, inside, is_gone, is_recording, release_folder

logger = logging.getLogger(__name__)

#: A longer gap begins a new part, so that a wrong time does not make arrays of any length.
MOST_GAP_BATCHES = 2**20
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
    #: What the system said of the first chunk that was not written, and in which recording.
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
    #: How many heaps are present, of those that are stored.
    heaps: int
    #: What each array of the recording has of it, and the memory of that.
    arrays: Sequence[np.ndarray]
    memory: Memory
    #: The chunk whose memory these are, if they are no copies.
    lent: Chunk | None = None
    #: The timestamp and time with which its part begins, if it begins one, but not with this chunk.
    begin: tuple[int, Callable[[], np.datetime64 | None]] | None = None


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

    #: What holds the folder, unless that is over; and its path by that.
    _held: int | None = None
    _root: str
    #: Whether it was removed before that.
    _was_gone = False

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
        self.path, self._layout = os.fspath(path), layout
        given: Any = select
        if not isinstance(given, Mapping) or any(not isinstance(values, Iterable) for values in given.values()):
            raise TypeError(
                f"select: given {given!r}, but wanted a list of values for each axis, such as {{'antenna': [2, 3]}}"
            )
        self._select = {name: list(dict.fromkeys(values)) for name, values in select.items()}
        self._compressor = None if compress is None else Compressor(compress, threads)
        codec = None if self._compressor is None else self._compressor.document
        #: How chunks are stored.
        self.stored = Stored(layout, check_selection(layout, self._select), codec)
        self._capacity, self._waits, self._patience = queue, wait, patience
        self._most_gap = MOST_GAP_BATCHES // layout.chunk_batches
        self._about = {"began": dt.datetime.now(dt.UTC).isoformat(), **(about or {})}
        #: The metadata of all in the recording, by path, as they are in the document of the root.
        self._documents: dict[str, bytes] = {}
        self._toml = layout.declaration.to_toml()
        self._make_folder(overwrite)
        # One thread, so that folders and metadata are there before the chunks that need them.
        self._writer = Writer(1, queue)
        self._lock = threading.Lock()
        self._parts: list[Part] = []
        #: The files of the newest part, if chunks can be queued that need nothing else.
        self._quick: Files | None = None
        self._ending = self._closed = self._finished = False
        #: Whether time began again at a chunk that was not queued.
        self._is_broken = False
        # It recycles chunks, unlike the threads whose names begin with "speadrx-".
        self._thread = threading.Thread(target=self._settle, name="recorder of speadrx", daemon=True)
        self._thread.start()

    def _make_folder(self, overwrite: bool) -> None:
        if overwrite and is_recording(self.path):
            held = hold_folder(self.path)
            shutil.rmtree(self.path)
            release_folder(held)
        os.mkdir(self.path)
        try:
            self._hold(hold_folder(self.path))
            with open(os.path.join(self._root, _RESERVE_NAME), "wb") as file:
                file.write(bytes(_RESERVE))
            with open(os.path.join(self._root, "zarr.json"), "wb") as file:
                file.write(self._root_document([], {}))
        except OSError:
            shutil.rmtree(self.path, ignore_errors=True)
            self._release()
            raise

    def _hold(self, held: int) -> None:
        """Write to this folder, and to no other that may come to its path."""
        self._held, self._root = held, inside(held)

    @property
    def is_gone(self) -> bool:
        """Whether the folder was removed while it was written to."""
        held = self._held
        return self._was_gone if held is None else is_gone(held)

    def _release(self) -> None:
        """Let others write to the folder."""
        held = self._held
        if held is not None:
            self._was_gone, self._held = is_gone(held), None
            release_folder(held)

    @property
    def chunk_bytes(self) -> int:
        """The bytes of a chunk as it is stored, if it is not compressed, and without metadata."""
        return self.stored.chunk_bytes

    def put_quickly(self, timestamp: int, memory: Memory, heaps: int, lent: Chunk) -> bool:
        """Queue a chunk that goes on where the last one ended and needs no metadata. Returns whether it was queued."""
        # Before it is shared: an interrupt may come meanwhile.
        if self._waits and not self._writer.wait_for_room(self._patience):
            return False
        with self._lock:
            if self._quick is None:
                return False
            lent._share()
            if self._writer.put(self._quick, timestamp, self._most_gap, memory, heaps, lent):
                return True
            lent._unshare()
            return False

    def put(self, arrival: Arrival) -> bool:
        """Queue a chunk. Returns whether it was queued; if not, that is counted."""
        while True:
            # Without the lock, for whoever closes it meanwhile.
            has_room = self._waits and self._writer.wait_for_room(self._patience)
            with self._lock:
                if not self._ending and self._put(arrival):
                    return True
                if self._ending or not has_room:
                    self._writer.lose(arrival.heaps, "disk_hung" if self._is_hung() else "queue_full")
                    return False

    def _put(self, arrival: Arrival) -> bool:
        """Queue a chunk after the metadata that it needs, unless there is no room."""
        part, number, is_new = self._part_of(arrival)
        metadata: list[Piece] = []
        before, documents = part.files.declared, self._documents
        if number >= before:
            chunks = part.grown(number)
            metadata, documents = self._metadata(part, chunks, [*self._parts, part] if is_new else self._parts)
            part.files.declared = chunks
        if arrival.lent is not None:
            arrival.lent._share()
        is_queued = False
        try:
            is_queued = self._queue(arrival, part, number, metadata)
        finally:
            if not is_queued:
                if arrival.lent is not None:
                    arrival.lent._unshare()
                if metadata:
                    part.files.declared = before
        if is_queued:
            if is_new:
                self._parts.append(part)
                self._is_broken = False
            part.files.chunks = number + 1
            self._documents = documents
            self._quick = part.files if self._compressor is None else None
        return is_queued

    def _queue(self, arrival: Arrival, part: Part, number: int, metadata: list[Piece]) -> bool:
        if self._compressor is None:
            chunk = (number, part.memory(arrival.arrays, arrival.memory), arrival.heaps, arrival.lent, False)
            return self._writer.submit(metadata, part.files, chunk)
        if not self._writer.reserve(arrival.heaps):
            return False
        if metadata:
            self._writer.submit(metadata, part.files)
        self._compressor.submit(self._compress, arrival, part, number)
        return True

    def _compress(self, arrival: Arrival, part: Part, number: int) -> None:
        """Compress a chunk, and have it written: in a thread of the compressor."""
        assert self._compressor is not None
        words = None
        try:
            memory = Memory([self._compressor.encode(array) for array in arrival.arrays])
            if self._writer.submit([], part.files, (number, memory, arrival.heaps, arrival.lent, True)):
                return
        except Exception as exc:  # noqa: BLE001 (nobody else would hear of it)
            words = f"compressing: {exc}"
        if arrival.lent is not None:
            arrival.lent._done()
        self._writer.lose(arrival.heaps, "write_failed", True, words)

    def _part_of(self, arrival: Arrival) -> tuple[Part, int, bool]:
        """The part that a chunk belongs to, the number that it has there, and whether the part is new."""
        if self._parts:
            part = self._parts[-1]
            number = part.number(arrival.timestamp)
            if not arrival.begins and not self._is_broken and 0 <= number - part.files.chunks <= self._most_gap:
                return part, number, False
        self._is_broken, self._quick = True, None
        part = self._new_part(arrival)
        return part, part.number(arrival.timestamp), True

    def _new_part(self, arrival: Arrival) -> Part:
        """The part that begins with a chunk."""
        first, time = arrival.begin or (arrival.timestamp, arrival.time)
        return Part(self.stored, self._layout, self._folder(len(self._parts)), first, time())

    def _folder(self, part: int) -> str:
        """The folder of a part, by its number."""
        return os.path.join(self._root, f"part_{part}") if part else self._root

    def skip(self, end: int, *, begins: bool) -> None:
        """Take note of a chunk that has nothing to store: of its end, and of whether time began again before it."""
        with self._lock:
            for part in self._parts[-1:]:
                number = part.number(end)
                self._is_broken |= begins or not 0 < number - part.files.chunks <= self._most_gap
                if self._is_broken:
                    self._quick = None
                else:
                    part.files.chunks = number

    def reach(self, timestamp: int) -> None:
        """Have the newest part reach up to a timestamp, though nothing more came."""
        with self._lock:
            for part in self._parts[-1:]:
                part.files.chunks = max(part.files.chunks, part.number(timestamp))

    def _metadata(
        self, part: Part, chunks: int, parts: Sequence[Part], **more: Any
    ) -> tuple[list[Piece], dict[str, bytes]]:
        """All metadata for a part that is to have so many chunks; and those of the whole recording then, by path.

        The document of the root is the last. It has all others in it, so that readers find arrays of the same length,
        whenever this is interrupted.
        """
        pieces: list[Piece] = []
        if not part.files.declared and part is not parts[0]:
            pieces.append((part.folder, None, True))
        if part is not parts[0]:
            attributes = {"speadrx": self._part_attributes(part)}
            pieces.append((os.path.join(part.folder, "zarr.json"), group_document(attributes), True))
        pieces += part.metadata(chunks)
        documents = dict(self._documents)
        for path, content, _ in pieces:
            if path.endswith("/zarr.json"):
                name = path[len(self._root) : -len("/zarr.json")].lstrip("/")
                documents[name] = named(name, content)
        pieces.append((os.path.join(self._root, "zarr.json"), self._root_document(parts, documents, **more), True))
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
        return group_document({"speadrx": ours}, documents.values())

    def _settle(self) -> None:
        """Recycle what was written: a thread."""
        while not self._closed:
            for chunk in self._writer.wait(_LOOK):
                try:
                    chunk._done()
                except Exception:
                    # Its user has put another buffer into it, which its stream does not take.
                    logger.exception("a chunk that was recorded could not be recycled")

    def _is_hung(self) -> bool:
        """Whether something waits for the disk, and nothing was written for too long."""
        return self._writer.stuck >= self._patience

    def stats(self) -> RecorderStats:
        """Read what was recorded so far, at any time, from any thread."""
        counts = self._writer.counts
        first_error = counts.first_error
        if counts.last_error is not None:
            first_error = first_error or f"the last metadata: {counts.last_error}"
        if first_error is not None:
            first_error = f"{self.path}: {first_error}"
        return RecorderStats(
            chunks=counts.chunks,
            bytes=counts.bytes,
            queued=counts.open + counts.returning,
            capacity=self._capacity,
            not_written=dict(counts.lost),
            heaps=counts.heaps,
            heaps_not_written=counts.heaps_lost,
            first_error=first_error,
            parts=len(self._parts),
            finished=self._finished,
        )

    def size(self) -> int:
        """The bytes of all chunks, when those are written that are in the queue now."""
        counts = self._writer.counts
        return counts.bytes + counts.open * self.chunk_bytes

    def close(self, account: Callable[[], Mapping[str, Any]] | None) -> None:
        """Write what is queued, and the account, and end: as long as the disk does anything. It may be called again.

        Without an account, the recording stays one whose end was not written.
        """
        with self._lock:
            if self._ending:
                return
            self._ending, self._quick = True, None
        try:
            if self._writer.wait_until_settled(self._patience) and account is not None:
                self._write_account(account)
        finally:
            is_hung = not self._writer.wait_until_settled(0)
            if is_hung:
                self._writer.abandon(f"nothing was written for {self._patience:g} s")
            self._closed = True
            self._writer.end()
            self._thread.join()
            if self._compressor is not None:
                self._compressor.close()
            if not is_hung:  # otherwise a thread may write there still
                self._release()

    def _write_account(self, account: Callable[[], Mapping[str, Any]]) -> None:
        """Write the last metadata, in the space that was kept for them."""
        recorder = dataclasses.replace(self.stats(), finished=True, queued=0)
        ended = dt.datetime.now(dt.UTC).isoformat()
        last = {"complete": True, "ended": ended, "recorder": recorder, **account()}
        pieces: list[Piece] = [(os.path.join(self._root, _RESERVE_NAME), None, False)]
        for part in self._parts:
            written, self._documents = self._metadata(part, part.files.chunks, self._parts, **last)
            pieces += written
        if not self._parts:
            pieces.append((os.path.join(self._root, "zarr.json"), self._root_document([], {}, **last), True))
        self._writer.submit(pieces)
        self._finished = self._writer.wait_until_settled(self._patience) and self._writer.counts.last_error is None
