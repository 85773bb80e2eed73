"""Distinct values without sorting, against numpy's, which sorts."""

from __future__ import annotations

import numpy as np
import pytest

from speadrx.survey.times import _plausible
from speadrx.survey.values import distinct_of, first_of_each, joint

RNG = np.random.default_rng(1)
STEPS = np.repeat(np.arange(300, dtype=np.uint64) * 4096 + 123_456_789, 8)
#: By name: values as items have them.
VALUES = {
    "nothing": np.zeros(0, np.uint64),
    "one": np.array([7], np.uint64),
    "a constant": np.full(50, 2**47, np.uint64),
    "antennas": np.tile(np.arange(64, dtype=np.uint64), 20),
    "times in order": STEPS,
    "times out of order": RNG.permutation(STEPS),
    "times with one bad value": np.append(RNG.permutation(STEPS), np.uint64(2**47 + 1)),
    "times in order, with one far ahead": np.append(STEPS, np.uint64(2**47 + 1)),
    "anything": RNG.integers(0, 2**63, 500, np.uint64),
    "the largest numbers": np.array([2**64 - 1, 0, 2**64 - 1, 2**63], np.uint64),
    "with gaps": RNG.choice(np.array([3, 6, 60, 63], np.uint64), 100),
    "signed": RNG.integers(-3, 40, 500),
    "signed and far apart": RNG.integers(-(2**40), 2**40, 500),
}


@pytest.mark.parametrize("name", VALUES)
def test_distinct_values_are_those_of_numpy(name: str) -> None:
    values = VALUES[name]
    expected, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    found = distinct_of(values)
    assert found[0].dtype == values.dtype
    for one, other in zip(found, (expected, index.reshape(-1), counts), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", VALUES)
def test_the_first_of_each_is_that_of_numpy(name: str) -> None:
    numbers = joint(VALUES[name])
    np.testing.assert_array_equal(first_of_each(numbers), np.unique(numbers, return_index=True)[1])


def slowly_plausible(numbers: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Whether each is within 4096 of the median of the good ones in its block of 256."""
    plausible = np.ones(numbers.size, bool)
    for start in range(0, numbers.size, 256):
        part = slice(start, start + 256)
        if good[part].any():
            plausible[part] = np.abs(numbers[part] - np.median(numbers[part][good[part]])) <= 4096
    return plausible


@pytest.mark.parametrize("size", [0, 10, 256, 257, 5 * 256, 5 * 256 + 100])
@pytest.mark.parametrize("bad", [0, 3])
def test_plausible_times_are_near_those_around_them(size: int, bad: int) -> None:
    rng = np.random.default_rng(size + bad)
    numbers = np.arange(size) // 8 + 10**6
    good = np.ones(size, bool)
    if size:
        numbers[rng.integers(0, size, 5)] = 3
        good[rng.integers(0, size, bad)] = False
        good[512:768] = bad == 0
    np.testing.assert_array_equal(_plausible(numbers, good, 4096, 48), slowly_plausible(numbers, good))
