"""`Recorder`: writes each chunk of a receiver to disk, beside the loop that uses it."""

from __future__ import annotations

import atexit
import dataclasses
import datetime as dt
import math
import os
import platform
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from speadrx._core import Writer, __version__
from speadrx.receive.checks import check_integer
from speadrx.receive.chunk import Chunk, as_array
from speadrx.receive.fill import chunk_filler
from speadrx.receive.receiver import Receiver

from .beside import Beside
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
    #: `not_allowed`, `folder_gone` or `write_failed`.
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


class _Pending(NamedTuple):
    chunk: Chunk | None
    part: Part
    heaps: int
    n_bytes: int
    is_lent: bool
    has_metadata: bool


def _write(path: str, content: Any) -> None:
    """Make a folder, or write a file whole."""
    if content is None:
        os.makedirs(path, exist_ok=True)
        return
    partial = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.partial")
    with open(partial, "wb") as file:
        file.write(content)
    os.replace(partial, path)


class Recorder(Beside):
    """Record what a receiver receives, as a Zarr v3 group, while a loop uses the same chunks.

    Iterate over it in place of the receiver. Each chunk is queued for writing, given to the loop, and recycled when
    both are done with it::

        with Receiver(layout, ":7148") as receiver, Recorder(receiver, "night.zarr") as recorder:
            for chunk in recorder:
                with chunk:
                    ...

    A thread writes; reception and the loop never wait for the disk. If the queue is full, a chunk is not written, and
    counted. Do not change ``chunk.data`` in the loop: it may be written at that moment. Missing heaps are stored as
    what the receiver's ``fill`` says, or else zeros; chunks that never came are not stored, and read as not present.

    Parameters
    ----------
    receiver
        The receiver. All its threads must have the same strides.
    path
        The folder to make.
    select
        What to keep of some axes, by value: ``{"antenna": [3, 7]}``. It costs a copy of what is kept.
    queue
        How many chunks may wait for the disk. The default is what the receiver's chunks leave beyond those that it
        needs: give the receiver more ``chunks`` for a longer queue.
    wait
        Whether the loop waits for the disk when the queue is full, so that no chunk is left out: for captures.
    overwrite
        Whether to remove a recording that is there already.

    Raises
    ------
    FileExistsError
        If there is something at `path`, and it may not be overwritten.
    OSError
        If the folder cannot be made.
    ValueError, TypeError
        If an argument is wrong.
    """

    def __init__(
        self,
        receiver: Receiver,
        path: str | os.PathLike[str],
        *,
        select: Mapping[str, Sequence[int]] | None = None,
        queue: int | None = None,
        wait: bool = False,
        overwrite: bool = False,
    ) -> None:
        super().__init__(receiver)
        #: The folder of the recording.
        self.path = os.fspath(path)
        self._select = dict(select or {})
        self._stored = Stored(self._layout, check_selection(self._layout, self._select))
        self._fill = chunk_filler(self._layout, receiver.stream._geometries, b"\0")
        spare = max(len(receiver.pool) - receiver.stream._window - 1, 1)
        self._capacity = spare if queue is None else check_integer("queue", queue, 1)
        self._began = dt.datetime.now(dt.UTC).isoformat()
        #: The metadata of all in the recording, by path.
        self._documents: dict[str, bytes] = {}
        self._make_folder(overwrite)
        # One thread, so that folders and metadata are there before the chunks that need them.
        self._writer = Writer(1, self._capacity)
        self._waits = wait
        self._lock = threading.Lock()
        #: Some jobs are over.
        self._over = threading.Condition(self._lock)
        self._pending: dict[int, _Pending] = {}
        self._parts: list[Part] = []
        self._chunks = self._bytes = self._heaps = self._heaps_not_written = 0
        self._not_written = dict.fromkeys(("queue_full", *Writer.causes()), 0)
        self._first_error: str | None = None
        self._ending = self._finished = False
        #: Whether time began again at a chunk that was not queued.
        self._is_broken = False
        self._process = os.getpid()
        # It recycles chunks, unlike the threads whose names begin with "speadrx-".
        self._thread = threading.Thread(target=self._settle, name="recorder of speadrx", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _make_folder(self, overwrite: bool) -> None:
        if overwrite and os.path.isfile(os.path.join(self.path, "zarr.json")):
            shutil.rmtree(self.path)
        os.mkdir(self.path)
        try:
            with open(os.path.join(self.path, _RESERVE_NAME), "wb") as file:
                file.write(bytes(_RESERVE))
            with open(os.path.join(self.path, "zarr.json"), "wb") as file:
                file.write(self._root_document([]))
        except OSError:
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    @property
    def chunk_bytes(self) -> int:
        """The bytes of a chunk as it is stored, with those that say what is present, and without metadata."""
        return sum(math.prod(array.shape) * array.dtype.itemsize for array in self._stored.arrays)

    def write(self, chunk: Chunk) -> bool:
        """Queue a chunk for writing, for loops that iterate over the receiver itself. Recycle it as usual.

        Returns whether it was queued. A chunk without any heap is not, and need not be.
        """
        heaps = int(np.count_nonzero(as_array("present", chunk.present)))
        if not heaps:
            return False
        if heaps < self._layout.chunk_heaps and self._receiver._chunks._fill is None:
            self._fill(chunk)
        buffers, is_lent = self._stored.buffers(chunk)
        with self._lock:
            while self._waits and len(self._pending) >= self._capacity:
                self._over.wait()
            part, is_new = self._part_of(chunk)
            number = part.number(chunk.timestamp)
            chunks = part.grown(number)
            parts = [*self._parts, part] if is_new else self._parts
            pieces = self._metadata(part, chunks, parts) if chunks > part.declared else []
            has_metadata = bool(pieces)
            pieces += part.pieces(number, buffers)
            n_bytes = sum(array.nbytes for array in buffers.values())
            if is_lent:
                chunk._share()
            try:
                ticket = self._writer.submit(pieces)
            except BaseException:
                chunk._unshare()
                raise
            if ticket is None:
                chunk._unshare()
                self._not_written["queue_full"] += 1
                self._heaps_not_written += heaps
                return False
            if is_new:
                self._parts.append(part)
                self._is_broken = False
            part.declared, part.chunks = chunks, max(part.chunks, number + 1)
            self._pending[ticket] = _Pending(chunk if is_lent else None, part, heaps, n_bytes, is_lent, has_metadata)
        return True

    def _part_of(self, chunk: Chunk) -> tuple[Part, bool]:
        """The part that a chunk belongs to, and whether it is new."""
        if self._parts:
            part = self._parts[-1]
            number = part.number(chunk.timestamp)
            goes_on = chunk.gap is not None and not self._is_broken and number >= part.chunks
            if goes_on and (number - part.chunks) * self._layout.chunk_batches <= _MOST_GAP_BATCHES:
                return part, False
        self._is_broken = True
        name = f"part_{len(self._parts)}" if self._parts else ""
        return Part(self._stored, self._layout, os.path.join(self.path, name), chunk.timestamp, chunk.time), True

    def _metadata(self, part: Part, chunks: int, parts: Sequence[Part], **more: Any) -> list[Piece]:
        """All metadata for a part that is to have so many chunks. The document of the root is the last.

        It has all others in it, so that readers find arrays of the same length, whenever this is interrupted.
        """
        pieces: list[Piece] = []
        if not part.declared and part is not parts[0]:
            pieces.append((part.folder, None, True))
        if part is not parts[0]:
            attributes = {"speadrx": self._part_attributes(part)}
            pieces.append((os.path.join(part.folder, "zarr.json"), group_document(attributes), True))
        pieces += part.metadata(chunks)
        for path, content, _ in pieces:
            if os.path.basename(path) == "zarr.json":
                self._documents[os.path.relpath(os.path.dirname(path), self.path)] = content
        pieces.append((os.path.join(self.path, "zarr.json"), self._root_document(parts, **more), True))
        return pieces

    def _part_attributes(self, part: Part) -> dict[str, Any]:
        return {
            "first_timestamp": part.first,
            "timestamp_step": self._layout.chunk_timestamp_step // self._layout.chunk_batches,
            "tick_rate": self._layout.declaration.time.tick_rate,
            "time_is_utc": part.has_utc,
        }

    def _root_document(self, parts: Sequence[Part], **more: Any) -> bytes:
        ours = {
            "format": FORMAT,
            "version": __version__,
            "host": platform.node(),
            "began": self._began,
            "layout": self._layout.declaration.to_toml(),
            "select": self._select,
            "complete": False,
            "parts": [os.path.basename(part.folder) if part is not parts[0] else "" for part in parts],
            **(self._part_attributes(parts[0]) if parts else {}),
            **more,
        }
        return group_document({"speadrx": ours}, self._documents)

    def _settle(self) -> None:
        """Count what was written, and recycle it: a thread."""
        while True:
            with self._lock:
                if self._ending and not self._pending:
                    return
            for ticket, failure in self._writer.wait(_LOOK):
                with self._lock:
                    pending = self._pending.pop(ticket)
                    if failure is None:
                        self._chunks += 1
                        self._bytes += pending.n_bytes
                        self._heaps += pending.heaps
                    else:
                        cause, words = failure
                        self._not_written[cause] += 1
                        self._heaps_not_written += pending.heaps
                        self._first_error = self._first_error or words
                        if pending.has_metadata:
                            pending.part.declared = 0  # so that the next chunk writes all of them
                    self._over.notify_all()
                if pending.chunk is not None:
                    pending.chunk._done()

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

    def close(self) -> None:
        """Write what is queued, and the account, and end. It waits for the disk. It may be called again."""
        atexit.unregister(self.close)
        if self._ending or os.getpid() != self._process:
            return
        self._writer.end()
        with self._lock:
            self._ending = True
        self._thread.join()
        try:
            os.unlink(os.path.join(self.path, _RESERVE_NAME))
            account = self._account()
            for part in self._parts:
                for path, content, _ in self._metadata(part, part.chunks, self._parts, **account):
                    _write(path, content)
            if not self._parts:
                _write(os.path.join(self.path, "zarr.json"), self._root_document([], **account))
        except OSError as exc:
            self._first_error = self._first_error or f"the last metadata: {exc}"
        else:
            self._finished = True

    def _account(self) -> dict[str, Any]:
        recorder = dataclasses.asdict(dataclasses.replace(self.stats(), finished=True))
        account = dataclasses.asdict(self._receiver.stats())
        ended = dt.datetime.now(dt.UTC).isoformat()
        return {"complete": True, "ended": ended, "recorder": recorder, "account": account}
