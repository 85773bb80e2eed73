"""From heaps, as a recording stores them or a chunk has them, to numbers: packed samples, complex integers, records."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from speadrx.layout.contents import Contents, Element
from speadrx.layout.declaration import Layout, TimeAxis

from .part import Stored, free_name

#: Makes numbers of what is stored. Its leading axes, those of the layout, stay as they are, whatever their sizes.
Decode = Callable[[np.ndarray], np.ndarray]


class Numbers(NamedTuple):
    """Numbers that each heap has."""

    name: str
    #: The names and sizes of their dimensions in a heap, and their dtype, in the byte order of this machine.
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    decode: Decode
    #: Makes them of the samples of a chunk.
    convert: Decode


def numbers_of(layout: Layout, stored: Stored) -> list[Numbers]:
    """What the heaps of a layout hold: ``data``, or the fields of records."""
    contents, dims = layout._contents, layout.heap_axis_names
    if not layout.fields:
        dtype, convert = plain(contents.element)
        return [Numbers("data", dims, contents.shape, dtype, _decoder(contents, stored), convert)]
    found = []
    taken = {*stored.present.dims, *(array.name for array in stored.arrays)}
    axes = {*stored.present.dims, *dims}
    for field in layout.fields:
        name = free_name(field.name, "field_", taken)
        taken.add(name)
        dtype, convert = plain(field.element)
        inner = (*dims, *(free_name(f"{name}_{i}", "field_", axes) for i in range(len(field.shape))))
        pick = functools.partial(_pick, field.name, convert)
        decode = functools.partial(_view_as, contents.element.dtype, pick)
        found.append(Numbers(name, inner, (*contents.shape, *field.shape), dtype, decode, pick))
    return found


def same(stored: np.ndarray) -> np.ndarray:
    """Decode what is stored as it is."""
    return stored


def _decoder(contents: Contents, stored: Stored) -> Decode:
    element = contents.element
    dtype, convert = plain(element)
    if element.packing is not None:
        return functools.partial(_unpack, contents, convert)
    if element.is_complex_integer:
        return functools.partial(_join, dtype)
    if stored.data.dtype.name != element.dtype.name:
        return functools.partial(_view_as, element.dtype, same)
    return same


def plain(element: Element) -> tuple[np.dtype, Decode]:
    """How complex integers, which numpy has as records only, become complex numbers. Others stay as they are."""
    if element.dtype.names is None:
        return element.dtype.newbyteorder("="), same
    dtype = np.dtype(np.complex64 if element.dtype[0].itemsize <= 2 else np.complex128)
    return dtype, functools.partial(_from_records, dtype)


def _from_records(dtype: np.dtype, records: np.ndarray) -> np.ndarray:
    out = np.empty(records.shape, dtype)
    out.real, out.imag = records["re"], records["im"]
    return out


def _join(dtype: np.dtype, stored: np.ndarray) -> np.ndarray:
    """Real and imaginary parts are along the last axis."""
    out = np.empty(stored.shape[:-1], dtype)
    out.real, out.imag = stored[..., 0], stored[..., 1]
    return out


def _view_as(dtype: np.dtype, convert: Decode, stored: np.ndarray) -> np.ndarray:
    """What Zarr has no type for is bytes, along the last axis."""
    return convert(np.ascontiguousarray(stored).view(dtype)[..., 0])


def _pick(name: str, convert: Decode, records: np.ndarray) -> np.ndarray:
    return convert(records[name])


def _unpack(contents: Contents, convert: Decode, stored: np.ndarray) -> np.ndarray:
    """Unpack samples as a receiver does."""
    axes = stored.shape[:-1]
    row = _row_of_heaps(contents, math.prod(axes))
    return convert(row.samples(np.ascontiguousarray(stored))).reshape(axes + contents.shape)


@functools.lru_cache(64)
def _row_of_heaps(contents: Contents, n: int) -> Layout:
    """A layout whose chunks are so many heaps, whatever their axes."""
    return Layout(
        heap_bytes=contents.heap_bytes,
        time=TimeAxis(item=0x1600, step=1, batches=n),
        dtype=contents.element.name,
        heap_shape=contents.shape,
    )
