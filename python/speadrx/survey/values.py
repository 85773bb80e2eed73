"""Describe the values of an item over many heaps: constant, rising like a time, recurring, or scattered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from speadrx.layout.items import TIMESTAMP_BITS

#: Values count as rising if their rank correlation with the order of arrival is at least this.
RISING = 0.7
#: Up to so many distinct values count as few.
FEW = 64
_FIRST_VALUES = 4
#: A table with an element for each number is faster than sorting, up to so many elements for each value.
_DENSE = 8
#: Values that are enough to see whether they rise.
_SAMPLE = 2**17
#: A value counts for the step if at least this fraction of the typical number of heaps has it.
_FREQUENT = 0.1


@dataclass(frozen=True)
class Profile:
    """The values of an item.

    Attributes
    ----------
    kind
        ``"constant"``, ``"time-like"`` (rising with the order of arrival), ``"counter"`` (rising by 1 from heap to
        heap), ``"few values"``, ``"recurring"`` (more values, each in several heaps) or ``"scattered"``.
    heaps
        Heaps with the item.
    distinct
        Distinct values.
    minimum, maximum
        Smallest and largest value.
    step
        The difference between most neighbouring values; None if they are constant or scattered.
    first
        The first few values, in the order of arrival.
    """

    kind: str
    heaps: int
    distinct: int
    minimum: int
    maximum: int
    step: int | None
    first: tuple[int, ...]


def distinct_of(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the distinct values, as `np.unique` does, but mostly without sorting them.

    Returns
    -------
    tuple of numpy.ndarray
        The distinct values in rising order, for each value the index of its own among them, and how often each comes.
    """
    least = values.min() if values.size else 0
    above = values - least
    scale = np.gcd.reduce(above) if values.size else 0
    size = int(above.max()) // int(scale) + 1 if scale else min(values.size, 1)
    if size > _DENSE * values.size:
        if not (values[1:] >= values[:-1]).all():
            found, index, counts = np.unique(values, return_inverse=True, return_counts=True)
            return found, index.reshape(-1), counts
        new = np.ones(values.size, bool)
        np.not_equal(values[1:], values[:-1], out=new[1:])
        firsts = np.flatnonzero(new)
        return values[firsts], np.cumsum(new) - 1, np.diff(firsts, append=values.size)
    # Steps have a common divisor, so a table with an element for each multiple of it is small.
    numbers = (above // scale if scale > 1 else above).astype(np.int64)
    table = np.bincount(numbers, minlength=size)
    there = np.flatnonzero(table)
    index = (np.cumsum(table > 0) - 1)[numbers] if there.size < size else numbers
    return values[:0] if not size else least + there.astype(values.dtype) * scale, index, table[there]


def profile(values: np.ndarray, bits: int = TIMESTAMP_BITS) -> Profile:
    """Describe values: at least one, as uint64, in the order of arrival. Times wrap at so many bits."""
    distinct, _, counts = distinct_of(values)
    step: int | None = None
    if distinct.size == 1:
        kind = "constant"
    else:
        step = common_step(values, bits)
        if distinct.size > 2 and rise(values, bits) >= RISING:
            kind = "counter" if step == 1 and distinct.size >= 0.9 * values.size else "time-like"
        elif distinct.size <= FEW:
            kind = "few values"
        elif np.median(counts) > 1:
            kind = "recurring"
        else:
            kind, step = "scattered", None
    _, where = np.unique(values[: 16 * FEW], return_index=True)
    return Profile(
        kind=kind,
        heaps=int(values.size),
        distinct=int(distinct.size),
        minimum=int(distinct[0]),
        maximum=int(distinct[-1]),
        step=step,
        first=tuple(int(value) for value in values[np.sort(where)[:_FIRST_VALUES]]),
    )


def rise(values: np.ndarray, bits: int = TIMESTAMP_BITS) -> float:
    """Rank correlation (Spearman's) of values with their order: 1 if they always rise.

    Timestamps wrap, MeerKAT's at 48 bits. The wrap does not count as a fall.
    """
    sample = _sampled(values)
    return max(_correlation(sample), _correlation(_rotated(sample, bits)))


def unwrapped(values: np.ndarray, bits: int = TIMESTAMP_BITS) -> np.ndarray:
    """The values; if they wrap at so many bits on the way, they are moved by half of that range, so that they rise."""
    sample = _sampled(values)
    if _correlation(sample) >= RISING or _correlation(_rotated(sample, bits)) < RISING:
        return values
    return _rotated(values, bits)


def _sampled(values: np.ndarray) -> np.ndarray:
    return values[:: values.size // _SAMPLE + 1]


def _rotated(values: np.ndarray, bits: int) -> np.ndarray:
    half, full = np.uint64(1 << (bits - 1)), np.uint64(1 << bits)
    return np.where(values < full, (values + half) & (full - np.uint64(1)), values)


def _correlation(values: np.ndarray) -> float:
    _, index, counts = distinct_of(values)
    if counts.size < 2:
        return 0.0
    ranks = np.cumsum(counts) - (counts - 1) / 2  # equal values share the mean of their ranks
    return float(np.corrcoef(ranks[index], np.arange(values.size))[0, 1])


def common_step(values: np.ndarray, bits: int = TIMESTAMP_BITS) -> int | None:
    """The most frequent difference between neighbouring values; None if there is only one value.

    A difference counts as often as the less frequent of its two values. A common divisor of all differences would be
    simpler, but a single bad value would spoil it.
    """
    distinct, index, counts = distinct_of(unwrapped(values, bits))
    # If many heaps share the typical value, a value that only a few have is garbage, and may lie between good ones.
    frequent = counts >= _FREQUENT * np.median(counts[index])
    if np.count_nonzero(frequent) > 1:
        distinct, counts = distinct[frequent], counts[frequent]
    if distinct.size < 2:
        return None
    steps, index, _ = distinct_of(np.diff(distinct))
    weights = np.bincount(index, np.minimum(counts[1:], counts[:-1]))
    return int(steps[np.argmax(weights)])


def most_frequent(values: np.ndarray) -> int:
    """Return the most frequent value."""
    distinct, _, counts = distinct_of(values)
    return int(distinct[np.argmax(counts)])


def joint(*codes: np.ndarray) -> np.ndarray:
    """Number the distinct combinations of the values at the same index of several arrays."""
    numbers, total = np.zeros(codes[0].size, np.int64), 1
    if not numbers.size:
        return numbers
    for code in codes:
        least = code.min()
        size = int(code.max()) - int(least) + 1
        if size > _DENSE * code.size:
            part = distinct_of(code)[1]
            size = int(part.max()) + 1
        else:
            part = (code - least).astype(np.int64)
        if total * size >= 2**62:
            numbers = _compact(numbers, total)
            total = int(numbers.max()) + 1
        numbers, total = part if total == 1 else numbers * size + part, total * size
    return _compact(numbers, total)


def _compact(numbers: np.ndarray, total: int) -> np.ndarray:
    """Number the distinct ones among numbers below `total`."""
    if total > _DENSE * numbers.size:
        return distinct_of(numbers)[1]
    there = np.zeros(total, bool)
    there[numbers] = True
    found: np.ndarray = (np.cumsum(there) - 1)[numbers]
    return found


def first_of_each(numbers: np.ndarray) -> np.ndarray:
    """Where each of the numbers that `joint` has given comes first."""
    first = np.zeros(count(numbers), np.int64)
    # Of several values for one place, the last is kept.
    first[numbers[::-1]] = np.arange(numbers.size - 1, -1, -1)
    return first


def count(numbers: np.ndarray) -> int:
    """How many different numbers `joint` has given."""
    return int(numbers.max(initial=-1)) + 1
