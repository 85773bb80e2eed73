"""The level of each source, as operators check a digitiser: power, offset, clipping, bits in use, and a histogram."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .meaning import Meaning

#: Bins on each side of 0.
_HALF = 512
#: The narrowest bins have this power of two as their width.
_NARROWEST = -64
#: With fewer bits, most samples are at the ends of their range.
_LEAST_BITS_THAT_CLIP = 3


@dataclass(frozen=True)
class Level:
    """The level of a source. The real and the imaginary part of a complex number count as two numbers."""

    label: str
    #: Samples (a complex one counts once).
    samples: int
    #: Their mean; None if there are none.
    mean: float | complex | None
    #: The root of the mean square of the deviation from 0, or from the middle of the range of unsigned samples.
    rms: float | None
    #: That, in decibels, where 0 is a sine wave that just does not clip; None unless samples are integer voltages.
    dbfs: float | None
    low: float | None
    high: float | None
    #: The part of all numbers that is at an end of its range; None unless they are integers of three bits or more.
    clipped: float | None
    #: log2 of how many values there are from the lowest to the highest; None unless they are integers.
    bits: float | None
    #: Numbers that are infinite or none at all, which count for nothing.
    not_finite: int


class Levels:
    """Gathers the levels of the sources of a layout."""

    def __init__(self, meaning: Meaning) -> None:
        self._meaning = meaning
        n = len(meaning.labels)
        self._samples, self._finite, self._odd, self._clipped = (np.zeros(n, np.int64) for _ in range(4))
        self._sums, self._squares = np.zeros((n, 2)), np.zeros(n)
        self._low, self._high = np.full(n, np.inf), np.full(n, -np.inf)
        #: Numbers by source and bin. All have the same bins, which become wider when they must.
        self._counts = np.zeros((n, 2 * _HALF), np.int64)
        self._power: int | None = 0 if meaning.bits is not None else None

    def add(self, source: int, numbers: np.ndarray) -> None:
        """Count numbers of a source."""
        numbers = np.ascontiguousarray(numbers).reshape(-1)
        self._samples[source] += numbers.size
        width = 2 if numbers.dtype.kind == "c" else 1
        parts = numbers.view(numbers.real.dtype)
        if parts.dtype.kind == "f" and not (finite := np.isfinite(parts)).all():
            self._odd[source] += np.count_nonzero(~finite)
            pairs = finite.reshape(-1, width).all(axis=1)
            numbers = numbers[pairs]
            parts = numbers.view(parts.dtype)
        if not parts.size:
            return
        self._finite[source] += numbers.size
        low, high = parts.min(), parts.max()
        self._low[source], self._high[source] = min(self._low[source], low), max(self._high[source], high)
        self._clipped[source] += self._count_clipped(parts)
        self._bin(source, parts, float(max(abs(float(low)), abs(float(high)))))
        exact = parts.astype(np.float64)
        self._sums[source, :width] += exact.reshape(-1, width).sum(axis=0)
        exact -= self._meaning.middle
        self._squares[source] += np.dot(exact, exact)

    def _count_clipped(self, parts: np.ndarray) -> int:
        """Count what is at an end of its range. Digitisers saturate at the same number on both sides of 0."""
        bits = self._meaning.bits
        if bits is None or bits < _LEAST_BITS_THAT_CLIP:
            return 0
        if not self._meaning.is_signed:
            most = 2**bits - 1
            at_zero = np.count_nonzero(parts == 0) if self._meaning.kind == "voltage" else 0
            return int(np.count_nonzero(parts >= most)) + int(at_zero)
        most = 2 ** (bits - 1) - 1
        return int(np.count_nonzero(parts >= most)) + int(np.count_nonzero(parts <= -most))

    def _bin(self, source: int, parts: np.ndarray, largest: float) -> None:
        if self._power is None:
            self._power = max(math.frexp(largest)[1] - _HALF.bit_length() + 1, _NARROWEST)
        while largest >= _HALF * 2.0**self._power:
            merged = self._counts.reshape(len(self._counts), _HALF, 2).sum(axis=2)
            self._counts[:] = 0
            self._counts[:, _HALF // 2 : _HALF + _HALF // 2] = merged
            self._power += 1
        if parts.dtype.kind in "iu":
            bins = (parts >> self._power).astype(np.int64)
        else:
            bins = np.floor(parts * 2.0**-self._power).astype(np.int64)
        self._counts[source] += np.bincount(bins + _HALF, minlength=2 * _HALF)

    def histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """The lower edges of the bins that are in use, with the end of the last; and the numbers by source and bin."""
        used = np.flatnonzero(self._counts.any(axis=0))
        if not used.size:
            return np.zeros(0), self._counts[:, :0]
        first, end = int(used[0]), int(used[-1]) + 1
        edges = (np.arange(first, end + 1) - _HALF) * 2.0 ** (self._power or 0)
        return edges, self._counts[:, first:end]

    def by_source(self) -> list[Level]:
        """The level of each source."""
        return [self._level(source) for source in range(len(self._meaning.labels))]

    def _level(self, source: int) -> Level:
        meaning, label = self._meaning, self._meaning.labels[source]
        samples, finite, odd = int(self._samples[source]), int(self._finite[source]), int(self._odd[source])
        if not finite:
            return Level(label, samples, *(None,) * 7, not_finite=odd)
        parts = finite * (2 if meaning.is_complex else 1)
        real, imaginary = (self._sums[source] / finite).tolist()
        rms = math.sqrt(self._squares[source] / parts)
        low, high = float(self._low[source]), float(self._high[source])
        bits, full = meaning.bits, meaning.full_scale
        return Level(
            label,
            samples,
            mean=complex(real, imaginary) if meaning.is_complex else real,
            rms=rms,
            dbfs=20 * math.log10(rms / full * math.sqrt(2)) if full and rms else None,
            low=low,
            high=high,
            clipped=None if bits is None or bits < _LEAST_BITS_THAT_CLIP else int(self._clipped[source]) / parts,
            bits=None if bits is None else math.log2(high - low + 1),
            not_finite=odd,
        )
