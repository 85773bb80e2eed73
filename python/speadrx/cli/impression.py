"""A look at some chunks: levels and spectra of the heaps that are present, and of nothing else."""

from __future__ import annotations

import math
import threading

import numpy as np

from speadrx._words import counted
from speadrx.receive.chunk import Chunk, as_array

from .levels import Levels
from .meaning import Meaning
from .spectra import Spectrum

#: Numbers that are looked at at once, so that the memory that it takes is bounded.
_AT_ONCE = 2**20


class Impression:
    """Takes chunks until there are enough; a `Sink`.

    Parameters
    ----------
    meaning
        What the numbers are.
    chunks
        How many chunks are enough.
    ticks
        How much time of the data is enough.
    interrupted
        When it is set, the rest is left out.
    """

    def __init__(self, meaning: Meaning, chunks: int | None, ticks: int | None, interrupted: threading.Event) -> None:
        self.meaning, self._interrupted = meaning, interrupted
        #: How many chunks are wanted; None if that does not matter.
        self.wanted = chunks
        self._ticks = ticks
        self.levels, self.spectrum = Levels(meaning), Spectrum(meaning)
        #: Chunks that were looked at; heaps of them by source that were there, and that were not.
        self.chunks = 0
        self.present, self.missing = (np.zeros(len(meaning.labels), np.int64) for _ in range(2))
        #: Where time begins (again): the batch, counted in the order of reception, its timestamp, and its UTC if known.
        self.begins: list[tuple[int, int, np.datetime64 | None]] = []
        self._batches = 0
        #: Batches without any heap, which count as missing only if there is a heap after them.
        self._empty = 0
        #: Whether there was a heap, perhaps of a source that is not looked at.
        self._begun = False
        #: Heaps of a source in a batch.
        others = [len(axis.chosen) for i, axis in enumerate(meaning.axes) if i not in (meaning.time, meaning.source)]
        self._heaps = math.prod(others)
        self._full: str | None = None

    def add(self, chunk: Chunk) -> None:
        """Look at a chunk that was received."""
        present = as_array("present", chunk.present).reshape(self.meaning.layout.present_shape) != 0
        if not self.wants(chunk.timestamp):
            return
        if not present.any():
            self._skip(self.meaning.layout.time.batches + (chunk.gap or 0))
            return
        numbers = chunk.samples()
        if (order := self.meaning.layout._contents.order) is not None:
            numbers = numbers.transpose(np.argsort(order))
        if self.meaning.field is not None:
            numbers = numbers[self.meaning.field]
        self.look(numbers, present, chunk.timestamp, chunk.time, chunk.gap)

    def wants(self, timestamp: int) -> bool:
        """Whether to look at a chunk with this timestamp."""
        if self._ticks is not None and self.begins and timestamp - self.begins[-1][1] >= self._ticks:
            self._full = self._full or "seconds"
        return self._full is None and not (self._interrupted.is_set() and self.chunks)

    def _skip(self, batches: int) -> None:
        """Let time go on without heaps."""
        if self.begins:
            self._empty += batches
            self._batches += batches

    def look(
        self, numbers: np.ndarray, present: np.ndarray, timestamp: int, utc: np.datetime64 | None, gap: int | None
    ) -> None:
        """Look at the numbers of a chunk.

        Parameters
        ----------
        numbers
            By the axes of the layout, and then the dimensions of a heap.
        present
            Which heaps are there.
        timestamp
            Of the first batch, in ticks.
        utc
            The same in UTC, if that is known.
        gap
            Batches between the chunk before it and this one; None if time began again.
        """
        if gap is None or not self.begins:
            self._empty = 0
            self.begins.append((self._batches, timestamp, utc))
        else:
            self._skip(gap)
        there = self.meaning.arranged(present)
        by_batch = np.moveaxis(present, self.meaning.time, 0).reshape(present.shape[self.meaning.time], -1)
        self._count(there, np.flatnonzero(by_batch.any(axis=1)))
        self._take(self.meaning.arranged(numbers), there)
        self._batches += len(there)
        self.chunks += 1
        if self.wanted is not None and self.chunks >= self.wanted:
            self._full = "chunks"

    def _count(self, present: np.ndarray, occupied: np.ndarray) -> None:
        """Count heaps of a chunk, by the batches in which there is any, also of sources that are not looked at."""
        if not occupied.size:
            self._empty += len(present)
            return
        counts = present.reshape(len(present), len(self.present), -1).sum(axis=2)
        # Before the first heap of all, nothing is missing.
        before = self._empty if self._begun else -int(occupied[0])
        end, self._begun = int(occupied[-1]) + 1, True
        self.missing += self._heaps * (before + end) - counts.sum(axis=0)
        self.present += counts.sum(axis=0)
        self._empty = len(present) - end

    def _take(self, numbers: np.ndarray, present: np.ndarray) -> None:
        """Look at the heaps that are there, a piece after the other."""
        piece = max(_AT_ONCE // max(self._heaps * self.meaning.heap_numbers, 1), 1)
        for begin in range(0, len(present), piece):
            for source in range(present.shape[1]):
                where = np.nonzero(present[begin : begin + piece, source])
                heaps = self.meaning.numbers(numbers[begin : begin + piece, source][where])
                self.levels.add(source, heaps)
                places = where[1 : 1 + self.meaning.n_coarse]
                self.spectrum.add(source, self._batches + begin + where[0], places, heaps)

    def close(self) -> None:
        """Take no more."""

    def full(self) -> str | None:
        """Why there is enough; None if there is not."""
        return self._full

    def line(self) -> str:
        """What was looked at so far."""
        return f"looked at {counted(self.chunks, 'chunk')}"

    def ticks(self, batches: np.ndarray) -> np.ndarray:
        """Timestamps of batches that are counted in the order of reception."""
        firsts = np.array([first for first, _, _ in self.begins])
        stamps = np.array([stamp for _, stamp, _ in self.begins])
        segment = np.searchsorted(firsts, batches, side="right") - 1
        found: np.ndarray = stamps[segment] + (batches - firsts[segment]) * self.meaning.layout.time.step
        return found

    def times(self, batches: np.ndarray) -> np.ndarray | None:
        """UTC of batches; None if that is not known."""
        rate = self.meaning.layout.time.tick_rate
        if rate is None or not self.begins or any(utc is None for _, _, utc in self.begins):
            return None
        firsts = np.array([first for first, _, _ in self.begins])
        utcs = np.array([utc for _, _, utc in self.begins], "datetime64[ns]")
        segment = np.searchsorted(firsts, batches, side="right") - 1
        offsets = (batches - firsts[segment]) * (self.meaning.layout.time.step * 1e9 / rate)
        found: np.ndarray = utcs[segment] + np.rint(offsets).astype("timedelta64[ns]")
        return found

    @property
    def span(self) -> tuple[int, int]:
        """The first batch, and the one after the last."""
        return 0, self._batches

    @property
    def restarts(self) -> int:
        """How often time began again."""
        return max(len(self.begins) - 1, 0)
