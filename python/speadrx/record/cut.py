"""Recordings made of a recording: some of its sources, some of its time, or all of it, compressed."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from speadrx._core import Memory

from .output import Arrival, Output, RecorderStats
from .part import check_selection
from .recording import Begin, RecordedPart, Recording

#: What the attributes of the new recording say of the one that it was made of.
_OF_SOURCE = ("version", "host", "began", "ended", "complete", "select", "recorder")


@dataclass(frozen=True)
class RecordedChunk:
    """A chunk of a recording, with what is selected of it."""

    timestamp: int
    #: UTC of its first batch, if that is known.
    time: Callable[[], np.datetime64 | None]
    #: Whether it is the first that is there of its part; and the timestamp and time with which that part begins.
    begins: bool
    begin: tuple[int, Callable[[], np.datetime64 | None]]
    #: What is in each array, in the order of `Stored.arrays`.
    arrays: list[np.ndarray]
    #: How many heaps are present.
    heaps: int


class Source:
    """A recording from which others are made.

    Parameters
    ----------
    recording
        The recording.
    select
        What to take of some axes, by value.
    begin
        From when on, as for `Recording.parts`.

    Raises
    ------
    ValueError
        If there is no such axis, the recording does not have such a value, or it does not tell such times.
    ModuleNotFoundError
        If zarr is not installed.
    """

    def __init__(
        self,
        recording: Recording,
        select: Mapping[str, Sequence[int]],
        begin: Begin | None = None,
    ) -> None:
        self.recording, self.layout = recording, recording.layout
        recorded = recording.attributes["select"]
        for name, values in select.items():
            for value in values:
                if value not in recorded.get(name, [value]):
                    there = ", ".join(map(str, sorted(recorded[name])))
                    raise ValueError(f"select: {recording.path} has no {name} {value}, but {there}")
        #: What others have of each axis, by value.
        self.select = {**recorded, **select}
        #: Which indices to take of each axis that does not stay as it is.
        self._take: dict[int, list[int]] = {}
        for axis, wanted in check_selection(self.layout, self.select).items():
            has = list(recording.select.get(axis, range(self.layout.present_shape[axis])))
            if wanted != has:
                self._take[axis] = [has.index(index) for index in wanted]
        self._parts = recording.parts(begin)
        #: How many chunks it has.
        self.n_chunks = sum(len(part.chunks()) for part in self._parts)

    @property
    def account(self) -> dict[str, Any]:
        """What a recording that is made of it says of what was received; nothing if its end was not written."""
        attributes = self.recording.attributes
        return {name: attributes[name] for name in ("account", "ended") if name in attributes}

    @property
    def about(self) -> dict[str, Any]:
        """What a recording that is made of it says from the beginning."""
        attributes = self.recording.attributes
        cut_from = {name: attributes[name] for name in _OF_SOURCE if name in attributes}
        return {"began": attributes["began"], "cut_from": {"path": os.path.abspath(self.recording.path), **cut_from}}

    def chunks(self) -> Iterator[RecordedChunk | int]:
        """Read all chunks that have any heap, in order. After each part comes the timestamp that it reaches up to."""
        step, batches = self.layout.chunk_timestamp_step, self.layout.chunk_batches
        for part in self._parts:
            first = part.attributes["first_timestamp"]
            is_first = True
            for number in part.chunks():
                arrays = self._read(part, number)
                heaps = int(np.count_nonzero(arrays[-1]))
                if not heaps:
                    continue
                yield RecordedChunk(
                    first + number * step,
                    functools.partial(part.utc, number * batches),
                    is_first,
                    (first + part.start * step, functools.partial(part.utc, part.start * batches)),
                    arrays,
                    heaps,
                )
                is_first = False
            yield first + part.length() // batches * step

    def _read(self, part: RecordedPart, number: int) -> list[np.ndarray]:
        arrays = []
        for array in self.recording.stored.arrays:
            values = part.read(array, number)
            for axis, indices in self._take.items():
                values = np.take(values, indices, axis)
            arrays.append(np.ascontiguousarray(values))
        return arrays


class Cutting:
    """A recording that is made of another one: it takes the chunks of a `Source`, as `Recorder` takes those that come.

    Parameters
    ----------
    source
        What it is made of.
    path
        The folder to make.
    queue
        How many chunks may wait for the disk, which is waited for.
    overwrite, compress, threads, patience
        As for `Recorder`.

    Raises
    ------
    OSError
        If the folder cannot be made.
    ValueError, TypeError, ModuleNotFoundError
        As for `Recorder`.
    """

    def __init__(
        self,
        source: Source,
        path: str | os.PathLike[str],
        *,
        queue: int = 4,
        overwrite: bool = False,
        compress: str | None = None,
        threads: int | None = None,
        patience: float = 60.0,
    ) -> None:
        self._source = source
        self._output = Output(
            path,
            source.layout,
            select=source.select,
            queue=queue,
            wait=True,
            overwrite=overwrite,
            compress=compress,
            threads=threads,
            patience=patience,
            about=source.about,
        )
        #: The folder of the recording.
        self.path = self._output.path

    @property
    def is_gone(self) -> bool:
        """Whether the folder was removed while it was written to: nothing more can be recorded there."""
        return self._output.is_gone

    @property
    def chunk_bytes(self) -> int:
        """The bytes of a chunk as it is stored, if it is not compressed, and without metadata."""
        return self._output.chunk_bytes

    def size(self) -> int:
        """The bytes of all chunks, when those are written that are in the queue now."""
        return self._output.size()

    def heaps(self, chunk: RecordedChunk) -> int:
        """How many heaps are present in a chunk."""
        return chunk.heaps

    def write(self, chunk: RecordedChunk) -> bool:
        """Queue a chunk. Returns whether it was queued."""
        return self._output.put(
            Arrival(
                timestamp=chunk.timestamp,
                time=chunk.time,
                begins=chunk.begins,
                begin=chunk.begin if chunk.begins else None,
                heaps=chunk.heaps,
                arrays=chunk.arrays,
                memory=Memory(chunk.arrays),
            )
        )

    def reach(self, timestamp: int) -> None:
        """Have the newest part reach up to a timestamp, though nothing more came."""
        self._output.reach(timestamp)

    def stats(self) -> RecorderStats:
        """Read what was written so far."""
        return self._output.stats()

    def close(self, *, is_whole: bool = True) -> None:
        """Write what is queued and, if all is there that should be, the account of what was received; and end."""
        self._output.close((lambda: self._source.account) if is_whole else None)
