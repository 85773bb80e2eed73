"""Mean spectra of sources, and how they change with time: of channels, or by Fourier transforms of samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .meaning import Meaning

#: Samples of a transform, at most and at least.
_LONGEST, _SHORTEST = 2048, 16
#: Channels are averaged until there are no more than these; and until there is room for all sources.
_MOST_CHANNELS, _MOST_NUMBERS = 4096, 2**22
#: Rows of the waterfall. If there are more, neighbours are merged.
_MOST_ROWS = 256


@dataclass(frozen=True)
class Spectra:
    """Mean spectra of all sources, and the waterfall of one."""

    #: The frequency of each channel in Hz, or its number if that is not known.
    frequencies: np.ndarray
    #: What `frequencies` are: ``"frequency"``, ``"channel"`` or ``"cycles per sample"``.
    unit: str
    #: The mean by source and channel; NaN where there is nothing. A single row, if the sources are the channels.
    mean: np.ndarray
    #: Which source the waterfall is of; None if the sources are the channels.
    row_source: int | None
    #: The mean by time and channel.
    rows: np.ndarray
    #: The batch with which each row begins, in the order of reception, and how many batches a row has.
    first_batch: np.ndarray
    row_batches: int


class Spectrum:
    """Gathers spectra.

    Parameters
    ----------
    meaning
        What the numbers are.
    """

    def __init__(self, meaning: Meaning) -> None:
        self._meaning = meaning
        #: Why there is no spectrum; None if there is.
        self.why_not = _why_not(meaning)
        if self.why_not is not None:
            return
        if meaning.has_channels:
            self._transform = 0
            fine = math.prod(len(meaning.inner[i].chosen) for i in meaning.fine)
        else:
            samples = len(meaning.inner[meaning.moments[0]].chosen)
            self._transform = min(2 ** (samples.bit_length() - 1), _LONGEST)
            fine = self._transform if meaning.is_complex else self._transform // 2 + 1
            self._window = np.hanning(self._transform + 1)[:-1]
        self._places = [len(meaning.axes[i].chosen) for i in meaning.coarse]
        coarse, lines = math.prod(self._places), 1 if meaning.sources_are_channels else len(meaning.labels)
        room = max(min(_MOST_CHANNELS, _MOST_NUMBERS // lines) // coarse, 1)
        self._fine = fine
        #: Where channels begin that become one.
        self._starts = np.arange(0, fine, -(-fine // room))
        n = len(self._starts)
        self._sums, self._counts = np.zeros((lines, coarse, n)), np.zeros((lines, coarse), np.int64)
        self._rows, self._row_counts = np.zeros((_MOST_ROWS, coarse, n)), np.zeros((_MOST_ROWS, coarse), np.int64)
        self._row_batches = 1
        #: Of which source the rows are: of one, as a mean of several would show whose heaps are missing.
        self._row_source: int | None = None

    def add(self, source: int, batches: np.ndarray, places: tuple[np.ndarray, ...], heaps: np.ndarray) -> None:
        """Add heaps of a source: their batches, their places on the axes that are channels, and their numbers."""
        if self.why_not is not None or not len(heaps):
            return
        sizes = np.diff(np.append(self._starts, self._fine))
        with np.errstate(invalid="ignore", over="ignore"):
            powers = self._by_transform(heaps) if self._transform else self._by_channel(heaps)
            powers = np.add.reduceat(powers, self._starts, axis=1) / sizes
        meaning = self._meaning
        if meaning.sources_are_channels:  # it is one of the channels, at its place among the axes
            position = meaning.coarse.index(meaning.source or 0)
            own = np.full(len(heaps), source)
            places = (*places[:position], own, *places[position:])
            source = 0
        if self._row_source is None:
            self._row_source = source
        place = np.ravel_multi_index(places, self._places) if places else np.zeros(len(heaps), np.int64)
        # Numbers that are not finite count for nothing, here as in the levels.
        good = np.isfinite(powers).all(axis=1)
        powers, place = powers[good], place[good]
        np.add.at(self._sums[source], place, powers)
        np.add.at(self._counts[source], place, 1)
        if source == self._row_source:
            self._add_rows(batches[good], place, powers)

    def _add_rows(self, batches: np.ndarray, place: np.ndarray, powers: np.ndarray) -> None:
        while batches.max(initial=0) // self._row_batches >= _MOST_ROWS:
            self._merge()
        row = batches // self._row_batches
        np.add.at(self._rows, (row, place), powers)
        np.add.at(self._row_counts, (row, place), 1)

    def _merge(self) -> None:
        for array in (self._rows, self._row_counts):
            array[: _MOST_ROWS // 2] = array[::2] + array[1::2]
            array[_MOST_ROWS // 2 :] = 0
        self._row_batches *= 2

    def _by_channel(self, heaps: np.ndarray) -> np.ndarray:
        """The mean of each channel in each heap: of the square of a voltage, or of the amplitude of a power."""
        fine = [1 + i for i in self._meaning.fine]
        heaps = np.moveaxis(heaps, fine, range(1, 1 + len(fine)))
        heaps = heaps.reshape(len(heaps), self._fine, -1)
        if self._meaning.kind == "power":
            # The least integer has no opposite of its own type.
            amplitudes = np.abs(heaps) if np.iscomplexobj(heaps) else np.abs(heaps, dtype=np.float64)
            found: np.ndarray = amplitudes.mean(axis=2, dtype=np.float64)
        else:
            found = _square(heaps - self._meaning.middle).mean(axis=2, dtype=np.float64)
        return found

    def _by_transform(self, heaps: np.ndarray) -> np.ndarray:
        """The mean power of each frequency in each heap. A sine wave has the power that it has in the samples."""
        n, length = len(heaps), self._transform
        heaps = np.moveaxis(heaps, 1 + self._meaning.moments[0], -1)
        pieces = heaps.shape[-1] // length
        heaps = heaps[..., : pieces * length].reshape(n, -1, length) - self._meaning.middle
        powers: np.ndarray
        if self._meaning.is_complex:
            found = np.fft.fftshift(np.fft.fft(heaps * self._window), axes=-1)
            powers = _square(found).mean(axis=1) / self._window.sum() ** 2
            return powers
        powers = _square(np.fft.rfft(heaps * self._window)).mean(axis=1) * (4 / self._window.sum() ** 2)
        powers[:, [0, -1]] /= 2  # the others have the negative frequencies in them
        return powers

    def spectra(self) -> Spectra | None:
        """What was gathered; None if there is no spectrum."""
        if self.why_not is not None:
            return None
        lines = len(self._sums)
        with np.errstate(invalid="ignore"):
            mean = (self._sums / self._counts[:, :, np.newaxis]).reshape(lines, -1)
            rows = (self._rows / self._row_counts[:, :, np.newaxis]).reshape(_MOST_ROWS, -1)
        used = np.flatnonzero(self._row_counts.any(axis=1))
        end = int(used[-1]) + 1 if used.size else 0
        frequencies, unit = self._frequencies()
        first = np.arange(end) * self._row_batches
        of = None if self._meaning.sources_are_channels else self._row_source
        return Spectra(frequencies, unit, mean, of, rows[:end], first, self._row_batches)

    def _frequencies(self) -> tuple[np.ndarray, str]:
        meaning, ends = self._meaning, np.append(self._starts[1:], self._fine)
        middles = (self._starts + ends - 1) / 2
        if not self._transform:
            return self._channels(middles), "channel"
        cycles = middles / self._transform - (0.5 if meaning.is_complex else 0.0)
        rate, time = meaning.layout.time.tick_rate, meaning.layout.time
        if rate is None:
            return cycles, "cycles per sample"
        samples = len(meaning.inner[meaning.moments[0]].values)
        return cycles * (samples * rate / time.step), "frequency"

    def _channels(self, middles: np.ndarray) -> np.ndarray:
        """The numbers of the channels: those that the axes say, if they say so, and those in a heap."""
        meaning = self._meaning
        if len(meaning.fine) == 1:
            chosen = np.array(meaning.inner[meaning.fine[0]].chosen, float)
            middles = np.interp(middles, np.arange(len(chosen)), chosen)
        places = np.arange(math.prod(self._places)) * float(self._fine)
        if len(meaning.coarse) == 1:
            axis = meaning.axes[meaning.coarse[0]]
            places = np.array([axis.values[i] for i in axis.chosen], float)
            fine = math.prod(len(meaning.inner[i].values) for i in meaning.fine)
            steps = np.diff(axis.values)
            if fine > 1 and not (len(steps) and (steps == fine).all()):  # its values are not the first channel of each
                places = np.array(axis.chosen, float) * fine
        found: np.ndarray = (places[:, np.newaxis] + middles).reshape(-1)
        return found


def _square(numbers: np.ndarray) -> np.ndarray:
    """The square of real numbers; of complex ones, the mean of both parts' squares."""
    is_complex = numbers.dtype.kind == "c"
    found: np.ndarray = (np.square(numbers.real) + np.square(numbers.imag)) / 2 if is_complex else np.square(numbers)
    return found


def _why_not(meaning: Meaning) -> str | None:
    if meaning.has_channels:
        return None
    if len(meaning.moments) != 1:
        shape = ", ".join(str(len(dimension.values)) for dimension in meaning.inner)
        return (
            f"The layout does not name what the dimensions of a heap are, ({shape}). Name them, such as "
            """--set 'heap_axes=["channel", "spectrum", "pol", "complex"]'."""
        )
    if meaning.kind == "power":
        return "They are powers, and no dimension of them is called a channel."
    if len(meaning.inner[meaning.moments[0]].chosen) < _SHORTEST:
        return f"Heaps have fewer than {_SHORTEST} samples in a row."
    return None
