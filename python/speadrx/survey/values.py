"""What the values of an item look like over many heaps: constant, rising like a time, recurring, or scattered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from speadrx.layout.items import TIMESTAMP_BITS

#: Rank correlation with the order of arrival from which on values are taken to rise with time.
RISING = 0.7
#: Distinct values that count as few.
FEW = 64
_FIRST_VALUES = 4
#: Heaps that a value must have of those of the typical heap's value, to count when the step is sought.
_FREQUENT = 0.1


@dataclass(frozen=True)
class Profile:
    """The values of an item.

    Attributes
    ----------
    kind
        ``"constant"``, ``"time-like"`` (rises as heaps arrive), ``"counter"`` (by 1 from heap to heap),
        ``"few values"``, ``"recurring"`` (more values, each in several heaps) or ``"scattered"``.
    heaps
        Heaps with the item.
    distinct
        Distinct values.
    minimum, maximum
        Least and greatest value.
    step
        What lies between most neighbouring values; None for a constant, and for values that are scattered.
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


def profile(values: np.ndarray) -> Profile:
    """Describe values (uint64, in the order of arrival, at least one)."""
    distinct, counts = np.unique(values, return_counts=True)
    step: int | None = None
    if distinct.size == 1:
        kind = "constant"
    else:
        step = common_step(values)
        if distinct.size > 2 and rise(values) >= RISING:
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


def rise(values: np.ndarray) -> float:
    """Rank correlation (Spearman's) of values with their order: 1 if they rise all the time.

    Timestamps wrap at 48 bits; the wrap does not count as a fall.
    """
    return max(_correlation(values), _correlation(_rotated(values)))


def unwrapped(values: np.ndarray) -> np.ndarray:
    """Values, or if they wrap at 48 bits in between, values half of that range further on."""
    if _correlation(values) >= RISING:
        return values  # a time just before 0 is none
    rotated = _rotated(values)
    return rotated if _correlation(rotated) >= RISING else values


def _rotated(values: np.ndarray) -> np.ndarray:
    half, full = np.uint64(1 << (TIMESTAMP_BITS - 1)), np.uint64(1 << TIMESTAMP_BITS)
    return np.where(values < full, (values + half) % full, values)


def _correlation(values: np.ndarray) -> float:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    if counts.size < 2:
        return 0.0
    ranks = np.cumsum(counts) - (counts - 1) / 2  # equal values share the mean of their ranks
    return float(np.corrcoef(ranks[inverse.reshape(-1)], np.arange(values.size))[0, 1])


def common_step(values: np.ndarray) -> int | None:
    """What lies between most neighbouring values: by majority, as a single bad one would spoil any divisor of all.

    A difference counts as often as the less frequent of its two values. None if there is one value only.
    """
    distinct, index, counts = np.unique(unwrapped(values), return_inverse=True, return_counts=True)
    # Where the typical heap shares its value with many, what a few have is garbage, and might separate all others.
    frequent = counts >= _FREQUENT * np.median(counts[index.reshape(-1)])
    if np.count_nonzero(frequent) > 1:
        distinct, counts = distinct[frequent], counts[frequent]
    if distinct.size < 2:
        return None
    steps, inverse = np.unique(np.diff(distinct), return_inverse=True)
    weights = np.bincount(inverse.reshape(-1), np.minimum(counts[1:], counts[:-1]))
    return int(steps[np.argmax(weights)])


def most_frequent(values: np.ndarray) -> int:
    """Return the value that is there most often."""
    distinct, counts = np.unique(values, return_counts=True)
    return int(distinct[np.argmax(counts)])


def joint(*codes: np.ndarray) -> np.ndarray:
    """Number the distinct combinations of values that stand at the same place in several arrays."""
    numbers = np.zeros(codes[0].size, np.int64)
    for code in codes:
        part = np.unique(code, return_inverse=True)[1].reshape(-1)
        numbers = np.unique(numbers * (int(part.max(initial=0)) + 1) + part, return_inverse=True)[1].reshape(-1)
    return numbers


def count(numbers: np.ndarray) -> int:
    """How many numbers `joint` has given."""
    return int(numbers.max(initial=-1)) + 1
