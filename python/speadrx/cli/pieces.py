"""Recordings that a command makes: one, or one after the other; up to limits, and what became of each chunk."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click

from speadrx._words import counted
from speadrx.receive.chunk import Chunk
from speadrx.receive.receiver import Receiver
from speadrx.record import Recorder, RecorderStats
from speadrx.record.cut import Cutting, RecordedChunk

#: Why chunks were not written, for those who read it the next morning.
_CAUSES = {
    "queue_full": "the disk was slower than the stream",
    "disk_full": "the disk was full",
    "not_allowed": "writing was not allowed",
    "folder_gone": "the folder was gone",
    "write_failed": "the system reported an error",
    "disk_hung": "the disk did nothing any more",
}
#: Current rates are means over at least so many seconds.
_RATE_SECONDS = 2.0


@dataclass(frozen=True)
class Limits:
    """When a recording has enough; None stands for never. It never has more."""

    chunks: int | None = None
    #: Bytes of chunks, without metadata.
    bytes: int | None = None
    #: Time of the data, in ticks.
    ticks: int | None = None


def existing(path: str, *, is_split: bool) -> list[str]:
    """What is there already at the path of a recording, or of one of its pieces."""
    if not is_split:
        return [path] if os.path.lexists(path) else []
    root, suffix = os.path.splitext(path)
    found = glob.glob(f"{glob.escape(root)}_*{glob.escape(suffix)}")
    name = re.compile(re.escape(root) + r"_\d{3,}" + re.escape(suffix))
    return sorted(other for other in found if name.fullmatch(other))


class Pieces:
    """A recording, or one after the other, of which each has a time of the same length.

    Parameters
    ----------
    receiver
        The receiver, if it is one that has the chunks: they are then dealt out to pieces.
    path
        The folder to make. Pieces get a number before its suffix.
    make
        Makes the recorder of a path, and of the arguments that are named.
    split
        The length of a piece, in ticks.
    limits
        When there is enough.
    chunk_ticks
        The time of a chunk.

    Raises
    ------
    OSError
        If the first cannot be made.
    ValueError, TypeError, ModuleNotFoundError
        As for `make`.
    """

    def __init__(
        self,
        receiver: Receiver | None,
        path: str,
        make: Callable[..., Recorder | Cutting],
        split: int | None,
        limits: Limits,
        chunk_ticks: int,
    ) -> None:
        self.path, self._make, self._split, self._limits = path, make, split, limits
        self._chunk_ticks = chunk_ticks
        self._options: dict[str, Any] = {}
        if split is not None and receiver is not None:
            # Two pieces may have chunks at the same time: one ends while the next one begins.
            spare = max(len(receiver.pool) - receiver.window - 1, 1)
            self._options["queue"] = max(spare // 2, 1)
        self._recorders: list[Any] = []
        self._closing: threading.Thread | None = None
        #: The timestamp with which the piece begins, and that of the newest chunk.
        self._begin: int | None = None
        self._newest: int | None = None
        #: The time of the data so far, with the gaps in it, but not those where it began again.
        self._ticks = 0
        #: Chunks that were taken, and what is left out as there is enough: chunks and heaps.
        self._taken = 0
        self.left_out = self.heaps_left_out = 0
        self._full: str | None = None
        self._lock = threading.Lock()
        self._rate = (time.monotonic(), 0, 0.0)
        self._open()

    def _open(self) -> None:
        root, suffix = os.path.splitext(self.path)
        path = self.path if self._split is None else f"{root}_{len(self._recorders):03d}{suffix}"
        recorder = self._make(path, **self._options)
        with self._lock:
            self._recorders.append(recorder)

    def add(self, chunk: Chunk | RecordedChunk) -> None:
        """Record a chunk, unless there is enough. One with nothing that is selected is as one that never came."""
        if not (heaps := self._recorders[-1].heaps(chunk)):
            self._recorders[-1].write(chunk)
            return
        rise = 0 if self._newest is None else chunk.timestamp - self._newest
        ticks = self._ticks + (rise if rise >= 0 else self._chunk_ticks)  # time may have begun again
        self._full = self._full or self._reached(ticks)
        if self._full is not None:
            self.left_out += 1
            self.heaps_left_out += heaps
            return
        self._turn(chunk.timestamp)
        self._recorders[-1].write(chunk)
        self._newest, self._ticks = chunk.timestamp, ticks
        self._taken += 1
        self._full = self._reached(None)

    def reach(self, timestamp: int) -> None:
        """Have the piece that is a cutting reach up to a timestamp, unless there is enough."""
        if self._full is None:
            self._recorders[-1].reach(timestamp)

    def _reached(self, ticks: int | None) -> str | None:
        """The limit that a chunk so long after the first would exceed; None stands for any chunk."""
        limits = self._limits
        if limits.chunks is not None and self._taken >= limits.chunks:
            return "chunks"
        if limits.bytes is not None:
            size = sum(recorder.size() for recorder in self._recorders)
            if size + self._recorders[0].chunk_bytes > limits.bytes:
                return "max_bytes"
        return "seconds" if limits.ticks is not None and ticks is not None and ticks >= limits.ticks else None

    def _turn(self, timestamp: int) -> None:
        """Begin the next piece if it is time to. If it cannot be made, this one goes on."""
        if self._split is None:
            return
        if self._begin is None or timestamp < self._begin:  # time began again, which is no reason for a new piece
            self._begin = timestamp
        elif timestamp - self._begin >= self._split:
            with contextlib.suppress(OSError):
                self._open()
                self._begin += (timestamp - self._begin) // self._split * self._split
                if self._closing is not None:
                    self._closing.join()
                self._closing = threading.Thread(target=self._recorders[-2].close, daemon=True)
                self._closing.start()

    def close(self, **options: Any) -> None:
        """Finish all pieces; the last with the options of its recorder."""
        if self._closing is not None:
            self._closing.join()
        self._recorders[-1].close(**options)

    def full(self) -> str | None:
        """The limit that is reached; or that the folder was removed, unless another piece comes."""
        if self._full is None and self._split is None and self._recorders[-1].is_gone:
            return "folder_gone"
        return self._full

    def gone(self) -> list[str]:
        """Those of the recordings that were removed while they were written to."""
        with self._lock:
            return [recorder.path for recorder in self._recorders if recorder.is_gone]

    @property
    def paths(self) -> list[str]:
        """The recordings."""
        with self._lock:
            return [recorder.path for recorder in self._recorders]

    def stats(self) -> RecorderStats:
        """What was recorded in all pieces."""
        with self._lock:
            every = [recorder.stats() for recorder in self._recorders]
        causes: Counter[str] = Counter()
        for stats in every:
            causes.update(stats.not_written)
        return RecorderStats(
            chunks=sum(stats.chunks for stats in every),
            bytes=sum(stats.bytes for stats in every),
            queued=sum(stats.queued for stats in every),
            capacity=every[-1].capacity,
            not_written=dict(causes),
            heaps=sum(stats.heaps for stats in every),
            heaps_not_written=sum(stats.heaps_not_written for stats in every),
            first_error=next((stats.first_error for stats in every if stats.first_error is not None), None),
            parts=sum(stats.parts for stats in every),
            finished=all(stats.finished for stats in every),
        )

    def line(self) -> str:
        """What was recorded so far, how fast, how full the queue is, and what was not written."""
        stats, now = self.stats(), time.monotonic()
        since, before, rate = self._rate
        if now - since >= _RATE_SECONDS:
            rate = (stats.bytes - before) / (now - since)
            self._rate = (now, stats.bytes, rate)
        lost = "".join(f", {cause} {n:,}" for cause, n in stats.not_written.items())
        return (
            f"recorded {counted(stats.chunks, 'chunk')}, {stats.bytes / 1e6:,.3g} MB, {rate / 1e6:,.3g} MB/s, "
            f"queue {stats.queued}/{stats.capacity}{lost}"
        )


def summary(pieces: Pieces) -> Iterator[str]:
    """Say what was recorded, and where."""
    stats, paths = pieces.stats(), pieces.paths
    where = paths[0] if len(paths) == 1 else f"{paths[0]} to {os.path.basename(paths[-1])}"
    chunks = f"{counted(stats.heaps, 'heap')} in {counted(stats.chunks, 'chunk')}"
    yield f"Recorded: {chunks}, {stats.bytes / 1e6:,.3g} MB, in {where}."
    if stats.parts > len(paths):
        yield f"Its time began again, or jumped far: {counted(stats.parts, 'group')}."
    if pieces.left_out:
        rest = counted(pieces.left_out, "chunk")
        yield f"Enough: {counted(pieces.heaps_left_out, 'heap')} in {rest} came after that, and are not in it."


def document(pieces: Pieces) -> dict[str, Any]:
    """What was recorded, as plain values."""
    left_out = {"chunks": pieces.left_out, "heaps": pieces.heaps_left_out}
    return {"paths": pieces.paths, **dataclasses.asdict(pieces.stats()), "left_out": left_out}


def complain(pieces: Pieces) -> int:
    """Say what could not be written, and why. Return the exit code of that, or 0."""
    stats = pieces.stats()
    lost = sum(stats.not_written.values())
    if lost:
        causes = ", ".join(f"{_CAUSES[cause]} ({n:,})" for cause, n in stats.not_written.items())
        what = f"{counted(stats.heaps_not_written, 'heap')} in {counted(lost, 'chunk')}"
        click.echo(f"Not recorded: {what}: {causes}.", err=True)
    for path in (gone := pieces.gone()):
        click.echo(f"The folder was removed while it was recorded to: {path}.", err=True)
    if not stats.finished and not gone:
        click.echo("The recording can be read, but lacks its account.", err=True)
    if stats.first_error is not None:
        click.echo(f"The first error: {stats.first_error}.", err=True)
    if stats.not_written.get("queue_full"):
        click.echo("More chunks (--pool) make a longer queue, and --select takes less of the disk.", err=True)
    return 3 if lost or not stats.finished else 0
