"""`LazyArray`: an array of a recording that reads what xarray asks for, one chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from xarray.backends import BackendArray
from xarray.core import indexing

from .numbers import Decode, same

#: What selects from an axis: all are those of xarray's outer indexing.
Key = int | slice | np.ndarray


class LazyArray(BackendArray):
    """An array of a recording. It has no more than a chunk in memory beside what is selected.

    Parameters
    ----------
    array
        The Zarr array.
    time_axis
        Which of its axes is the time.
    axes
        The sizes of the axes of the layout, which come first.
    inner
        The sizes of its other axes, after decoding.
    dtype
        The dtype of its numbers.
    decode
        Makes numbers of what is stored.
    present
        The Zarr array that tells which heaps are present, if others are to be masked.
    skip
        Batches before the first one.
    """

    def __init__(
        self,
        array: Any,
        time_axis: int,
        axes: Sequence[int],
        inner: Sequence[int] = (),
        dtype: np.dtype | None = None,
        decode: Decode = same,
        present: Any = None,
        *,
        skip: int = 0,
    ) -> None:
        dtype = array.dtype.newbyteorder("=") if dtype is None else dtype
        self.shape = (*axes, *inner)
        self.dtype: np.dtype
        self._missing: Any
        self.dtype, self._missing = (dtype, None) if present is None else masked(dtype)
        self._array, self._decode, self._present = array, decode, present
        self._time_axis, self._n_axes, self._skip = time_axis, len(axes), skip

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, keys: tuple[Key, ...]) -> np.ndarray:
        # An axis of which one index is selected stays until the end.
        wide = [k if isinstance(k, (slice, np.ndarray)) else slice(int(k), int(k) + 1) for k in keys]
        axis = self._time_axis
        times = self._skip + _positions(wide[axis], self.shape[axis])
        sizes = [len(_positions(k, n)) for k, n in zip(wide, self.shape, strict=True)]
        out = np.empty(sizes, self.dtype)
        if out.size:
            for where, first, offsets in _by_chunk(times, self._array.chunks[axis]):
                wide[axis] = offsets
                out[_along(axis, where)] = self._numbers(first, wide)
        return out[tuple(slice(None) if isinstance(k, (slice, np.ndarray)) else 0 for k in keys)]

    def _numbers(self, first: int, keys: Sequence[Key]) -> np.ndarray:
        """What is selected of the chunk that begins with a batch."""
        chunk = _along(self._time_axis, slice(first, first + self._array.chunks[self._time_axis]))
        numbers = self._decode(_take(self._array[chunk], keys[: self._n_axes]))
        if self._present is not None:
            present = _take(self._present[chunk], keys[: self._n_axes])
            numbers = numbers.astype(self.dtype)
            numbers[~present] = self._missing
        return _take(numbers, keys[self._n_axes :], self._n_axes)


def masked(dtype: np.dtype) -> tuple[np.dtype, float | complex]:
    """The dtype that numbers have if some are missing, as xarray has it, and what stands for these."""
    if dtype.kind == "c":
        return dtype, complex(np.nan, np.nan)
    if dtype.kind == "f":
        return dtype, np.nan
    return np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64), np.nan


def _positions(key: Any, size: int) -> np.ndarray:
    return np.arange(*key.indices(size)) if isinstance(key, slice) else np.asarray(key)


def _by_chunk(positions: np.ndarray, batches: int) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """For each chunk that has some of the positions: which of them, its first batch, and their places in it."""
    numbers = positions // batches
    # They ascend, as xarray asks for them, so that each chunk is read once.
    for where in np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(numbers)) + 1):
        first = int(numbers[where[0]]) * batches
        yield where, first, positions[where] - first


def _along(axis: int, key: Key) -> tuple[Key, ...]:
    return (*(slice(None),) * axis, key)


def _take(array: np.ndarray, keys: Sequence[Key], first_axis: int = 0) -> np.ndarray:
    """Select from each axis by itself."""
    for axis, key in enumerate(keys, first_axis):
        array = array[_along(axis, key)]
    return array
