"""`Recording`: what lies in the folder of a recording, for all who read one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib
import json
import math
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from speadrx._core import LayoutError, __version__
from speadrx.layout.declaration import Layout

from .part import FORMAT, Stored, check_selection

#: When to begin in a recording: at this UTC, or so many seconds of the data after its beginning.
Begin = float | np.datetime64


class RecordedPart:
    """A part of a recording: a Zarr group whose time goes on without a break.

    Parameters
    ----------
    recording
        The recording.
    name
        Name of the group: "" for the first part.
    """

    #: The number of the chunk with which it begins for those who do not want all of it; see `Recording.parts`.
    start = 0

    def __init__(self, recording: Recording, name: str) -> None:
        self.recording = recording
        self.folder = os.path.join(recording.path, name)
        root = import_extra("zarr", "recordings are read with").open_group(recording.path, mode="r")
        #: The Zarr group.
        try:
            self.group = root[name] if name else root
            #: What speadrx says of it: `first_timestamp`, `timestamp_step`, `tick_rate`, `time_is_utc`.
            self.attributes: dict[str, Any] = dict(self.group.attrs["speadrx"])
        except KeyError as exc:
            raise ValueError(f"{recording.path} is damaged: part {name or 0} lacks {exc}") from exc

    def chunks(self) -> list[int]:
        """The numbers of the chunks that are there, in order, from `start` on: a chunk is there with its `present`."""
        stored = self.recording.stored
        place = 1 + stored.time_axis
        folder = os.path.join(self.folder, stored.present.name)
        with _naming(folder):
            keys = (name.split(".") for name in os.listdir(folder))
            # Of a fleet, each chunk lies in several files.
            numbers = {int(key[place]) for key in keys if key[0] == "c"}
        return sorted(number for number in numbers if number >= self.start)

    def begin(self) -> int:
        """The number of the first chunk that is there. Those before it are none in recordings of a single receiver."""
        declared = self.attributes.get("first_chunk", 0)
        return declared if self.recording.attributes["complete"] or not declared else min(self.chunks(), default=0)

    def read(self, array: Any, number: int) -> np.ndarray:
        """Read a chunk of one of the arrays of `Stored`, in its byte order, whatever that of the reader is."""
        stored, batches = self.recording.stored, self.recording.layout.chunk_batches
        with _naming(f"chunk {number} of {os.path.join(self.folder, array.name)}"):
            if (file := self._file(array, number)) is not None:
                return np.memmap(file, array.dtype, "r", shape=array.shape)
            chunk = (slice(None),) * stored.time_axis + (slice(number * batches, (number + 1) * batches),)
            values: np.ndarray = self.group[array.name][chunk].astype(array.dtype, copy=False)
        return values

    def _file(self, array: Any, number: int) -> str | None:
        """The file of a chunk, if it has the bytes of the array as they are: large chunks need no memory then."""
        there = self.group[array.name]
        if there.compressors or there.chunks != array.shape or sys.byteorder == "big":
            return None
        before, after = self.recording.stored.names(array)
        path = os.path.join(self.folder, array.name, f"{before}{number}{after}")
        return path if os.path.lexists(path) else None

    def utc(self, batch: int) -> np.datetime64 | None:
        """UTC of a batch; None if that is not known."""
        if not self.attributes["time_is_utc"]:
            return None
        name = self.recording.stored.time_name
        with _naming(os.path.join(self.folder, name)):
            return np.datetime64(int(self.group[name][batch]), "ns")

    def length(self) -> int:
        """How many batches it spans. While it grows, or if its end was not written, its arrays are longer."""
        stored = self.recording.stored
        declared = int(self.group[stored.present.name].shape[stored.time_axis])
        if self.recording.attributes["complete"]:
            return declared
        return min(declared, (max(self.chunks(), default=-1) + 1) * self.recording.layout.chunk_batches)


class Recording:
    """A recording as it lies on disk.

    Parameters
    ----------
    path
        Its folder.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    ValueError
        If it is not a recording, or one in a format that this version does not know.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        #: Its folder.
        self.path = os.fspath(path)
        #: What speadrx says of it: the attributes of the root.
        self.attributes = _attributes(self.path)
        try:
            #: The layout with which it was received.
            self.layout = Layout._from_toml_text(self.attributes["layout"].encode(), f"{self.path}: its layout")
            #: Which indices of each axis it has, if not all.
            self.select = check_selection(self.layout, self.attributes["select"])
        except (KeyError, AttributeError, TypeError, LayoutError) as exc:
            raise ValueError(f"{self.path} is damaged: {exc}") from exc
        #: Its arrays.
        self.stored = Stored(self.layout, self.select)

    def part(self, number: int) -> RecordedPart:
        """Open one of its parts, counted from 0.

        Raises
        ------
        ModuleNotFoundError
            If zarr is not installed.
        """
        return RecordedPart(self, self.attributes["parts"][number])

    def parts(self, begin: Begin | None = None) -> list[RecordedPart]:
        """Open its parts, from some time on. Of the chunk in whose time that is, all is there.

        Raises
        ------
        ValueError
            If the recording does not tell such times.
        ModuleNotFoundError
            If zarr is not installed.
        """
        parts = [self.part(number) for number in range(len(self.attributes["parts"]))]
        if begin is None:
            return parts
        rate, step = self.layout.time.tick_rate, self.layout.chunk_timestamp_step
        if rate is None or (
            isinstance(begin, np.datetime64) and not all(part.attributes["time_is_utc"] for part in parts)
        ):
            raise ValueError(f"begin: the recording does not tell its time in {'seconds' if rate is None else 'UTC'}")
        before = 0.0
        for part in parts:
            length = part.length() * step / self.layout.chunk_batches / rate
            utc = part.utc(0)
            if isinstance(begin, np.datetime64):
                assert utc is not None
                seconds = float((begin - utc) / np.timedelta64(1, "s"))
            else:
                seconds = begin - before
            part.start = max(math.floor(seconds * rate / step), 0)
            before += length
        return parts


def recorded_layout(path: str) -> bytes:
    """Read the layout in a recording, as TOML.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no recording, or it cannot be read.
    """
    return str(_attributes(path).get("layout")).encode()


def import_extra(name: str, what: str) -> Any:
    """Import a module that comes with the extra `xarray`.

    Raises
    ------
    ModuleNotFoundError
        If it is not installed; the message says how to.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        raise ModuleNotFoundError(
            f"{what} {exc.name}, which is not installed; do: pip install 'speadrx[xarray]'", name=exc.name
        ) from None


def is_recording(path: str | os.PathLike[str]) -> bool:
    """Whether something is a recording that this version can read, whole or not."""
    try:
        _attributes(os.fspath(path))
    except (OSError, ValueError):
        return False
    return True


def hold_folder(path: str) -> int:
    """Hold a folder as the one who writes there, until the descriptor that is returned is closed, or the process ends.

    Raises
    ------
    OSError
        If another one writes there.
    """
    held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise BlockingIOError(errno.EAGAIN, "another recorder writes there", path) from None
    except OSError:  # some network file systems have no locks
        pass
    return held


def inside(held: int) -> str:
    """The path of a folder that is held, which stays right if it is moved, and leads nowhere else if it is removed."""
    return f"/proc/self/fd/{held}"


def is_gone(held: int) -> bool:
    """Whether a folder that is held was removed, so that nothing can be written there any more."""
    try:
        return not os.fstat(held).st_nlink
    except OSError as exc:
        return exc.errno == errno.ESTALE  # as network file systems say it


def release_folder(held: int) -> None:
    """Let go of a folder, though a forked child may have the descriptor, too."""
    with contextlib.suppress(OSError):
        fcntl.flock(held, fcntl.LOCK_UN)
    with contextlib.suppress(OSError):
        os.close(held)


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    """Make errors of reading name what is damaged."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as exc:
        raise ValueError(f"{what} is damaged: {getattr(exc, 'strerror', None) or exc}") from exc


def _attributes(path: str) -> dict[str, Any]:
    """Read what speadrx says of a recording, and check that it is one."""
    if not os.path.exists(path):
        raise FileNotFoundError(errno.ENOENT, "there is no such recording", path)
    try:
        with open(os.path.join(path, "zarr.json"), "rb") as file:
            ours = json.loads(file.read())["attributes"]["speadrx"]
        found = ours.get("format")
    except NotADirectoryError:
        raise ValueError(f"{path} is not a recording, but a file; captures are read by speadrx.Receiver") from None
    except FileNotFoundError:
        raise ValueError(f"{path} is not a recording: there is no zarr.json in it") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is not a recording that speadrx has made: its zarr.json does not say so") from None
    if found is None and "first_timestamp" in ours:
        raise ValueError(f"{path} is a part of a recording: open {os.path.dirname(os.path.abspath(path))} instead")
    if found != FORMAT:
        raise ValueError(
            f"{path} has format {found}, of speadrx {ours.get('version')}, but speadrx {__version__} reads format "
            f"{FORMAT}: do pip install --upgrade speadrx"
        )
    return dict(ours)
