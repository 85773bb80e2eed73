"""`DadaWriter`: writes what a receiver receives to files of PSRDADA, beside the loop that uses it."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import SimpleNamespace
from typing import BinaryIO

import numpy as np

from speadrx.receive.checks import check_integer
from speadrx.receive.chunk import Chunk, as_array
from speadrx.receive.fill import chunk_filler
from speadrx.receive.fork import check_ours
from speadrx.receive.receiver import Receiver

from .beside import Beside

#: Bytes of a header, as PSRDADA's ring buffers have them.
_HEADER_BYTES = 4096
#: Seconds in a file by default, as dada_dbdisk has it.
_FILE_SECONDS = 10
#: A longer gap begins a new observation, so that a wrong time does not write files of any length.
MOST_GAP_BATCHES = 2**20
#: Modified Julian date of 1970-01-01.
_MJD_1970 = 40587
#: Keys that say how the file is, so that only the writer knows them.
_OURS = {
    *("HEADER", "HDR_SIZE", "FILE_NAME", "FILE_SIZE", "FILE_NUMBER", "OBS_OFFSET", "OBS_OVERLAP"),
    *("UTC_START", "PICOSECONDS", "MJD_START", "SYNC_TIME", "SAMPLE_CLOCK", "SAMPLE_CLOCK_START"),
    *("BYTES_PER_SECOND", "RESOLUTION", "HEAPS", "HEAPS_MISSING"),
}


@dataclass(frozen=True)
class DadaStats:
    """What a writer has done so far, as plain values."""

    #: Files, the finished and the one that grows, and the bytes of data in them.
    files: int
    bytes: int
    #: Chunks that came, and those that did not, in whose place the fill was written.
    chunks: int
    filled_chunks: int
    #: Heaps that are in the files, and those that are not: the fill was written in their place.
    heaps: int
    missing_heaps: int
    #: Chunks that were left out, since their UTC was not known yet.
    untimed_chunks: int
    #: One, and one more for each time that began again, or jumped very far.
    observations: int


class DadaWriter(Beside):
    """Write what a receiver receives to files of PSRDADA, while a loop uses the same chunks.

    Iterate over it in place of the receiver::

        header = {"TELESCOPE": "MeerKAT", "SOURCE": "J0437-4715", "NPOL": 1, "NCHAN": 1}
        with Receiver(layout, ":7148") as receiver, DadaWriter(receiver, "night", header=header) as writer:
            for chunk in writer:
                with chunk:
                    ...

    A file is 4096 bytes of text and then the data of chunks as they are, named as ``dada_dbdisk`` names it. Time in it
    has no gaps: where a heap or a whole chunk is missing, there is what the receiver's ``fill`` says, or else zeros.
    The loop waits for the disk: give the receiver more ``chunks`` to bridge the times when that is slow.

    Parameters
    ----------
    receiver
        The receiver. Its layout must know UTC. All its threads must have the same strides.
    folder
        Where the files go. It is made if it is not there.
    header
        More keys, and their values. With ``NPOL`` and ``NCHAN`` there is a ``TSAMP``, too.
    file_bytes
        Bytes of data in a file, rounded down to whole chunks. By default it is what comes in ten seconds.

    Raises
    ------
    OSError
        If the folder cannot be made.
    ValueError, TypeError
        If an argument is wrong.
    """

    def __init__(
        self,
        receiver: Receiver,
        folder: str | os.PathLike[str],
        *,
        header: Mapping[str, object] | None = None,
        file_bytes: int | None = None,
    ) -> None:
        super().__init__(receiver)
        time = self._layout.declaration.time
        if time.tick_rate is None or (time.epoch is None and time.epoch_item is None):
            raise ValueError("receiver: its layout does not tell UTC, which a header needs: give tick_rate and epoch")
        self._header = _check_header(header or {})
        self._chunk_seconds = self._layout.chunk_timestamp_step / Fraction(time.tick_rate)
        self._fill = receiver._chunks._fill or chunk_filler(self._layout, receiver.stream._geometries, b"\0")
        # Without the gaps that strides may leave between heaps.
        self._chunk_bytes = self._layout.chunk_heaps * self._layout.heap_bytes
        usual = int(_FILE_SECONDS / self._chunk_seconds) * self._chunk_bytes
        wanted = max(usual, 1) if file_bytes is None else check_integer("file_bytes", file_bytes, 1)
        self._file_chunks = max(wanted // self._chunk_bytes, 1)
        self.folder = os.fspath(folder)
        os.makedirs(self.folder, exist_ok=True)
        self._file: BinaryIO | None = None
        #: Of the file that grows: its chunks, and the heaps in them.
        self._in_file = self._file_heaps = 0
        #: Of the observation: timestamp, time and UTC at tick 0 of its first chunk; and how many chunks it has.
        self._first: tuple[int, np.datetime64, float] | None = None
        self._next = 0
        #: Of the last file.
        self._utc_start, self._name, self._number, self._offset = "", "", 0, 0
        self._files = self._chunks = self._filled = self._heaps = self._untimed = self._observations = 0
        #: Whether time began again at a chunk that was left out.
        self._is_broken = False
        self._missing_chunk: np.ndarray | None = None

    def write(self, chunk: Chunk) -> None:
        """Write a chunk, for loops that iterate over the receiver itself. Recycle it as usual.

        Raises
        ------
        OSError
            If it cannot be written.
        FileExistsError
            If there is a file of that name already: none is overwritten.
        """
        check_ours(self._receiver.stream)
        if chunk.time is None or chunk._utc is None:
            self._untimed += 1
            self._is_broken = True
            return
        heaps = int(np.count_nonzero(as_array("present", chunk.present)))
        if heaps < self._layout.chunk_heaps and self._receiver._chunks._fill is None:
            self._fill(chunk)
        gap = self._gap(chunk)
        if gap is None:
            self._end_file()
            self._first = (chunk.timestamp, chunk.time, chunk._utc)
            self._next, self._is_broken = 0, False
            self._observations += 1
        for _ in range(gap or 0):
            self._write(self._fill_chunk(), 0)
            self._filled += 1
        data = as_array("data", chunk.data)
        self._write(data if chunk._buffers.shape is not None else self._layout.view(data), heaps)
        self._chunks += 1

    def _gap(self, chunk: Chunk) -> int | None:
        """How many chunks are missing before this one; None if it begins an observation."""
        if self._first is None or chunk.gap is None or self._is_broken:
            return None
        number, rest = divmod(chunk.timestamp - self._first[0], self._layout.chunk_timestamp_step)
        gap = number - self._next
        return gap if not rest and 0 <= gap * self._layout.chunk_batches <= MOST_GAP_BATCHES else None

    def _fill_chunk(self) -> np.ndarray:
        """The data of a chunk that never came."""
        if self._missing_chunk is None:
            buffers = self._receiver.stream._buffers
            data = np.zeros(buffers.data_bytes or self._layout.chunk_bytes, np.uint8)
            present = np.zeros(self._layout.chunk_heaps, np.uint8)
            self._fill(SimpleNamespace(data=data, present=present, extra=None))
            self._missing_chunk = data if buffers.shape is not None else self._layout.view(data)
        return self._missing_chunk

    def _write(self, data: np.ndarray, heaps: int) -> None:
        try:
            if self._file is None:
                self._begin_file()
            # Bytes, since not every record can be written as it is.
            self._put(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
        except BaseException:
            self._end_file()
            raise
        self._in_file += 1
        self._file_heaps += heaps
        self._heaps += heaps
        self._next += 1
        if self._in_file == self._file_chunks:
            self._end_file()

    def _put(self, content: bytes | memoryview) -> None:
        assert self._file is not None
        rest = memoryview(content)
        while rest:
            rest = rest[self._file.write(rest) :]

    def _begin_file(self) -> None:
        """Open a file, with a header for as many chunks as it is to have."""
        assert self._first is not None
        seconds = int(self._first[1].astype(np.int64)) // 10**9
        start = dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d-%H:%M:%S")
        # It goes on for an observation of the same second, so that it has names of its own.
        self._number = self._number + 1 if start == self._utc_start else 0
        self._utc_start, self._offset = start, self._next * self._chunk_bytes
        self._name = f"{start}_{self._offset:016d}.{self._number:06d}.dada"
        header = self._text(self._file_chunks)
        # Without a buffer, nothing is left to write when the disk is full.
        self._file = open(os.path.join(self.folder, self._name), "xb", buffering=0)  # noqa: SIM115
        self._in_file = self._file_heaps = 0
        self._files += 1
        self._put(header)

    def _end_file(self) -> None:
        """Close the file that grows, and say in its header what is in it. An empty one is removed."""
        if self._file is None:
            return
        file, self._file = self._file, None
        with file:
            if not self._in_file:
                os.unlink(os.path.join(self.folder, self._name))
                self._files -= 1
                return
            # A part of a chunk is there if the disk was full in the midst of it.
            file.truncate(_HEADER_BYTES + self._in_file * self._chunk_bytes)
            missing = self._in_file * self._layout.chunk_heaps - self._file_heaps
            file.seek(0)
            file.write(self._text(self._in_file, HEAPS=self._file_heaps, HEAPS_MISSING=missing))

    def _text(self, chunks: int, **more: object) -> bytes:
        """The header of the file that grows, for so many chunks."""
        assert self._first is not None
        ticks, time, utc = self._first
        nanoseconds = int(time.astype(np.int64))
        days, in_day = divmod(nanoseconds, 86_400 * 10**9)
        values: dict[str, object] = {
            "HEADER": "DADA",
            "HDR_VERSION": "1.0",
            "HDR_SIZE": _HEADER_BYTES,
            "DADA_VERSION": "1.0",
            "FILE_NAME": self._name,
            "FILE_SIZE": chunks * self._chunk_bytes,
            "FILE_NUMBER": self._number,
            "OBS_OFFSET": self._offset,
            "OBS_OVERLAP": 0,
            # Programs read it into as few bytes as a whole second needs.
            "UTC_START": self._utc_start,
            "PICOSECONDS": nanoseconds % 10**9 * 1000,
            "MJD_START": f"{_MJD_1970 + days}.{in_day * 10**15 // (86_400 * 10**9):015d}",
            # As mkrecv has them: time follows from these without rounding.
            "SYNC_TIME": float(utc),
            "SAMPLE_CLOCK": self._layout.declaration.time.tick_rate,
            "SAMPLE_CLOCK_START": ticks,
            "BYTES_PER_SECOND": round(self._chunk_bytes / self._chunk_seconds),
            "RESOLUTION": self._chunk_bytes,
            **self._element(),
            **more,
        }
        return _encode({**values, **self._header})

    def _element(self) -> dict[str, object]:
        """Keys for the samples, as far as the layout and the user know them."""
        declaration, header = self._layout.declaration, self._header
        element = declaration._contents.element
        if element.dtype.names is not None and not element.is_complex_integer:
            return {}  # a record has no samples of one kind
        n_dim = 2 if element.is_complex_integer or element.dtype.kind == "c" else 1
        keys: dict[str, object] = {"NBIT": element.bits // n_dim, "NDIM": n_dim}
        if not declaration.axes and not {"NPOL", "NCHAN"} & header.keys():
            keys |= {"NPOL": 1, "NCHAN": 1}
        known = {**keys, **header}
        if {"NPOL", "NCHAN"} <= known.keys():
            sample_bits = element.bits * int(known["NPOL"]) * int(known["NCHAN"])  # type: ignore[call-overload]
            micros = self._chunk_seconds * 10**6 * sample_bits / (8 * self._chunk_bytes)
            keys["TSAMP"] = repr(float(micros))
        return keys

    def stats(self) -> DadaStats:
        """Read what was written so far."""
        written = self._chunks + self._filled
        return DadaStats(
            files=self._files,
            bytes=written * self._chunk_bytes,
            chunks=self._chunks,
            filled_chunks=self._filled,
            heaps=self._heaps,
            missing_heaps=written * self._layout.chunk_heaps - self._heaps,
            untimed_chunks=self._untimed,
            observations=self._observations,
        )

    def _finish(self) -> None:
        self._end_file()


def _check_header(header: Mapping[str, object]) -> dict[str, object]:
    """Check keys of the user.

    Raises
    ------
    ValueError
        If a key or value does not fit a line, the header is too long, or a key is one that the writer knows better.
    """
    for key, value in header.items():
        if key in _OURS:
            raise ValueError(f"header: given {key}, but that follows from what is written")
        word = str(value)
        if not (key.isascii() and key.isprintable() and len(key.split()) == 1 and "#" not in key):
            raise ValueError(f"header: given key {key!r}, but wanted one word of ASCII")
        if not (word.isascii() and word.isprintable() and word.strip() and "#" not in word):
            raise ValueError(f"header: given {key} = {word!r}, but wanted a line of ASCII without '#'")
        if key in ("NPOL", "NCHAN"):
            check_integer(f"header: {key}", value, 1)
    _encode({**dict.fromkeys((*_OURS, "HDR_VERSION", "DADA_VERSION"), "x" * 64), **header})
    return dict(header)


def _encode(values: Mapping[str, object]) -> bytes:
    text = "".join(f"{key:<19} {value}\n" for key, value in values.items()) + "# end of header\n"
    if len(text) > _HEADER_BYTES:
        raise ValueError(f"header: {len(text)} bytes with what follows from the layout: wanted at most {_HEADER_BYTES}")
    return text.encode("ascii").ljust(_HEADER_BYTES, b"\0")
