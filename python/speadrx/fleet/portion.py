"""One recording that many receivers write: each its own files, and one more process all the metadata."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from speadrx._core import Files, Memory
from speadrx.layout.base import DeclarativeLayout
from speadrx.receive.receiver import Receiver
from speadrx.record.output import MOST_GAP_BATCHES, Arrival, Output
from speadrx.record.part import Part, Piece, Stored
from speadrx.record.recorder import PATIENCE, Recorder

logger = logging.getLogger(__name__)

#: Who may write: the recording's own name, in a file that is there while it is written.
_OPEN = ".common"
#: Where each part begins: it is decided once, by who has its first chunk.
_CLAIM = ".part_{}.json"
#: The newest of those that have the same indices.
_LEASE = ".share_{}"
#: A part begins so many chunks, and seconds, before the first chunk that anybody has: others may have earlier ones.
_MARGIN_CHUNKS, _MARGIN_SECONDS = 16, 4
#: Seconds between looks whether another one writes in our place.
_LOOK = 1.0


@dataclass(frozen=True)
class Portion:
    """What one of many receivers writes of a recording."""

    #: The folder, as its machine sees it, and the recording's own name.
    path: str
    id: str
    #: The axis that is divided, the first of the receiver's indices and the one after the last.
    axis: str
    first: int
    end: int
    #: How many indices lie in a file.
    width: int
    #: Who writes it, and which start of it this is.
    share: str
    incarnation: int


@dataclass
class Extent:
    """What somebody has written of a part."""

    #: Timestamp of the part's first chunk, in ticks, and its UTC in ns, if that is known.
    begin: int
    utc: int | None
    #: Numbers of the first and of the last chunk; None if there are none.
    first: int | None = None
    last: int | None = None


class PortionRecorder(Recorder):
    """Record what a receiver receives as a portion of a recording that others write too.

    Parameters
    ----------
    receiver
        The receiver, of the portion's indices.
    portion
        What it writes.

    Raises
    ------
    FileNotFoundError
        If the recording is not there, or is another one.
    OSError
        If nothing can be written there.
    """

    def __init__(self, receiver: Receiver, portion: Portion) -> None:
        self._portion = portion
        super().__init__(receiver, portion.path)

    def _open(self, *args: Any, **options: Any) -> Output:
        pool = len(self._receiver.pool)
        self._shared = _PortionOutput(*args, portion=self._portion, margin=max(_MARGIN_CHUNKS, pool), **options)
        return self._shared

    def extents(self) -> list[dict[str, Any]]:
        """What was written of each part, as plain values."""
        return self._shared.extents()


class _PortionOutput(Output):
    """Writes chunks, and no metadata."""

    def __init__(self, path: str, layout: DeclarativeLayout, *, portion: Portion, margin: int, **options: Any) -> None:
        self._portion = portion
        rate, step = layout.declaration.time.tick_rate, layout.chunk_timestamp_step
        self._margin = margin if rate is None else max(margin, math.ceil(_MARGIN_SECONDS * rate / step))
        self._extents: dict[int, Extent] = {}
        #: The number of the newest part of which this has written, and the cause if it may write no more.
        self._number = -1
        self._lost: str | None = None
        self._over_watch = threading.Event()
        super().__init__(path, layout, **options)
        # Not by the loop: a disk may hang.
        self._watcher = threading.Thread(target=self._watch, name="speadrx-portion", daemon=True)
        self._watcher.start()

    def _make_folder(self, overwrite: bool) -> None:
        # The one that writes the metadata has locked it.
        with contextlib.suppress(OSError):
            self._hold(os.open(self.path, os.O_RDONLY | os.O_DIRECTORY))
        if self._held is None or not self._is_ours():
            self._release()
            raise FileNotFoundError(
                f"record: {self.path} is not the recording that the fleet has begun: all machines of a fleet, and the "
                "one that starts it, need the same folder there"
            )
        _write(os.path.join(self._root, _LEASE.format(self._portion.share)), str(self._portion.incarnation))

    def _is_ours(self) -> bool:
        try:
            with open(os.path.join(self._root, _OPEN), encoding="ascii") as file:
                return file.read() == self._portion.id
        except OSError:
            return False

    def _watch(self) -> None:
        """Write no more once somebody else was started in our place: we may be believed dead."""
        path = os.path.join(self._root, _LEASE.format(self._portion.share))
        while not self._over_watch.wait(_LOOK):
            with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
                if int(file.read()) > self._portion.incarnation:
                    self._lost = "replaced"
                    return

    def put_quickly(self, *chunk: Any) -> bool:
        """Nothing is: each chunk lies in several files."""
        return False

    def put(self, arrival: Arrival) -> bool:
        """Queue a chunk. Returns whether it was queued; if not, that is counted."""
        cause, words = self._lost, None
        if cause is None:
            try:
                return super().put(arrival)
            except OSError as exc:
                cause, words = "write_failed", str(exc)
        self._writer.lose(arrival.heaps, cause, False, words)
        return False

    def extents(self) -> list[dict[str, Any]]:
        with self._lock:
            return [asdict(self._extents[number]) for number in sorted(self._extents)]

    def _new_part(self, arrival: Arrival) -> Part:
        """Find the part that a chunk belongs to, or begin one."""
        while True:
            claims = list(_claims(self._root))
            for number in range(len(claims) - 1, self._number, -1):
                if (part := self._fitting(number, claims[number], arrival.timestamp)) is not None:
                    break
            else:
                self._claim(len(claims), arrival)
                continue
            for earlier, claim in enumerate(claims):
                self._extents.setdefault(earlier, claim)
            return part

    def _claim(self, number: int, arrival: Arrival) -> None:
        """Say where a part begins, unless another was faster."""
        if not self._is_ours():
            raise FileNotFoundError(f"{self.path} is finished")
        step, rate = self._layout.chunk_timestamp_step, self._layout.declaration.time.tick_rate
        before = min(self._margin, max(arrival.timestamp // step, 0))
        time = arrival.time()
        utc = None
        if time is not None and rate is not None:
            utc = int(time.astype("datetime64[ns]").astype(np.int64)) - round(before * step * 1e9 / rate)
        claim = {"begin": arrival.timestamp - before * step, "utc": utc}
        path = os.path.join(self._root, _CLAIM.format(number))
        own = f"{path}.{self._portion.share}"
        _write(own, json.dumps(claim))
        with contextlib.suppress(FileExistsError):
            os.link(own, path)  # as a whole, and only once
        os.unlink(own)

    def _fitting(self, number: int, claim: Extent, timestamp: int) -> _PortionPart | None:
        """A part, if a chunk with this timestamp goes on in it."""
        part = _PortionPart(self.stored, self._layout, self._folder(number), claim, self._portion)
        part.index = number
        here = part.number(timestamp)
        newest, ours = part.written()
        if here <= ours or here < 0 or (here - max(newest, 0)) * self._layout.chunk_batches > MOST_GAP_BATCHES:
            return None
        for array in self.stored.arrays:
            os.makedirs(os.path.join(part.folder, array.name), exist_ok=True)
        part.files.chunks = ours + 1
        return part

    def _queue(self, arrival: Arrival, part: Part, number: int, metadata: list[Piece]) -> bool:
        is_queued = super()._queue(arrival, part, number, metadata)
        if is_queued:
            assert isinstance(part, _PortionPart)
            self._number = part.index
            extent = self._extents[part.index]
            extent.first = number if extent.first is None else min(extent.first, number)
            extent.last = number if extent.last is None else max(extent.last, number)
        return is_queued

    def _write_account(self, account: Any) -> None:
        self._finished = self._writer.counts.first_error is None

    def close(self, account: Any) -> None:
        """Write what is queued, and end."""
        self._over_watch.set()
        super().close(account)
        self._watcher.join()


class _PortionPart(Part):
    """The files of one portion of a part."""

    def __init__(self, stored: Stored, layout: DeclarativeLayout, folder: str, claim: Extent, portion: Portion) -> None:
        utc = None if claim.utc is None else np.datetime64(claim.utc, "ns")
        super().__init__(stored, layout, folder, claim.begin, utc)
        #: Its number.
        self.index = 0
        self._axis = layout.axis_names.index(portion.axis)
        self._width = portion.width
        self._places = range(portion.first // portion.width, portion.end // portion.width)
        names = [self._name(array, place) for array in stored.arrays for place in self._places]
        self.files = Files(names, self.first, self._step)
        # Another process writes the metadata.
        self.files.declared = 2**62

    def _name(self, array: Any, place: int) -> tuple[str, str]:
        """What is before and after the number of a chunk in the path of its file at a place."""
        key = ["0"] * len(array.shape)
        key[self._axis], key[self._stored.time_axis] = str(place), "/"  # which is in no key
        before, after = ".".join(["c", *key]).split("/")
        return os.path.join(self.folder, array.name, before), after

    def memory(self, arrays: Sequence[np.ndarray], memory: Memory) -> Memory:
        """The files of a chunk, for each place that it has along the axis."""
        before = (slice(None),) * self._axis
        slices = [(*before, slice(i * self._width, (i + 1) * self._width)) for i in range(len(self._places))]
        return Memory([np.ascontiguousarray(array[own]) for array in arrays for own in slices])

    def written(self) -> tuple[int, int]:
        """The number of the last chunk that anybody has written, and of the last that has ours; -1 if there is none."""
        files = list(_written(self.folder, self._stored))
        time, axis = self._stored.time_axis, self._axis
        ours = (key[time] for key in files if key[axis] in self._places)
        return max((key[time] for key in files), default=-1), max(ours, default=-1)


class CommonOutput(Output):
    """The metadata of a recording whose chunks are written by others.

    Parameters
    ----------
    path
        The folder to make.
    layout
        The layout of the whole.
    axis
        The axis that is divided.
    width
        How many of its indices lie in a file.
    id
        The recording's own name.

    Raises
    ------
    OSError
        If the folder cannot be made.
    """

    def __init__(self, path: str, layout: DeclarativeLayout, *, axis: str, width: int, id: str) -> None:  # noqa: A002
        self._id = id
        super().__init__(
            path,
            layout,
            select={},
            queue=16,
            wait=False,
            overwrite=False,
            compress=None,
            threads=None,
            patience=PATIENCE,
        )
        i = layout.axis_names.index(axis)
        self.stored = Stored(layout, {}, beside=(i, layout.present_shape[i] // width))
        #: The first chunk of each part that is there.
        self._begins: list[int | None] = []

    def _make_folder(self, overwrite: bool) -> None:
        super()._make_folder(overwrite)
        _write(os.path.join(self._root, _OPEN), self._id)

    def grow(self, extents: Sequence[Mapping[str, Any]]) -> None:
        """Take what somebody has written of each part, and declare that much."""
        with self._lock:
            for number, fields in enumerate(extents):
                extent = Extent(**fields)
                if number == len(self._parts):
                    utc = None if extent.utc is None else np.datetime64(extent.utc, "ns")
                    self._parts.append(Part(self.stored, self._layout, self._folder(number), extent.begin, utc))
                    self._begins.append(None)
                if extent.first is not None and extent.last is not None:
                    begin = self._begins[number]
                    self._begins[number] = extent.first if begin is None else min(begin, extent.first)
                    self._declare(self._parts[number], extent.last)

    def _declare(self, part: Part, last: int) -> None:
        part.files.chunks = max(part.files.chunks, last + 1)
        before, chunks = part.files.declared, part.grown(last)
        if chunks > before and not self._ending:
            pieces, documents = self._metadata(part, chunks, self._parts)
            part.files.declared = chunks
            if self._writer.submit(pieces, part.files):
                self._documents = documents
            else:  # the next report tries again
                part.files.declared = before

    def _part_attributes(self, part: Part) -> dict[str, Any]:
        begin = self._begins[self._parts.index(part)]
        return {**super()._part_attributes(part), "first_chunk": begin or 0}

    def look(self) -> None:
        """Look for what was written, and not reported: by somebody that has died."""
        time = self.stored.time_axis
        extents = list(_claims(self._root))
        for number, extent in enumerate(extents):
            there = [key[time] for key in _written(self._folder(number), self.stored)]
            extent.first, extent.last = min(there, default=None), max(there, default=None)
        self.grow([asdict(extent) for extent in extents])

    def _release(self) -> None:
        """Remove what only those need who write: nobody does any more."""
        if self._held is not None:
            with contextlib.suppress(OSError):
                for name in os.listdir(self._root):
                    if name.startswith((_OPEN, _CLAIM[:6], _LEASE[:7])):
                        os.unlink(os.path.join(self._root, name))
        super()._release()


def _claims(path: str) -> Iterator[Extent]:
    """Where each part begins, in order."""
    number = 0
    with contextlib.suppress(FileNotFoundError):
        while True:
            with open(os.path.join(path, _CLAIM.format(number)), encoding="ascii") as file:
                yield Extent(**json.loads(file.read()))
            number += 1


def _written(folder: str, stored: Stored) -> Iterator[list[int]]:
    """The places of all files that a part has of `present`."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(os.path.join(folder, stored.present.name)):
            kind, *key = name.split(".")
            if kind == "c":
                yield [int(index) for index in key]


def _write(path: str, text: str) -> None:
    """Write a small file as a whole."""
    partial = f"{path}.{os.getpid()}.partial"
    with open(partial, "w", encoding="ascii") as file:
        file.write(text)
    os.replace(partial, path)
