"""The numbers in the data of a chunk: a view of them, or packed samples as integers."""

from __future__ import annotations

from typing import Any

import numpy as np

from speadrx._core import Geometry

from .contents import Contents


def view(contents: Contents, shape: tuple[int, ...], geometry: Geometry, data: np.ndarray) -> np.ndarray:
    """View a chunk's data by axis.

    Parameters
    ----------
    contents
        What heaps hold.
    shape
        Sizes of the axes.
    geometry
        Where heaps are.
    data
        Contiguous data of a chunk, of any shape.

    Raises
    ------
    ValueError
        If `data` is too small or not contiguous.
    """
    if not data.flags.c_contiguous:  # reshape would make a copy
        raise ValueError(f"data: given shape {data.shape} with strides {data.strides}, but wanted C-contiguous")
    raw = data.reshape(-1).view(np.uint8)
    if raw.nbytes < geometry.span_bytes:
        raise ValueError(f"data has {raw.nbytes} bytes, but the layout needs {geometry.span_bytes}")
    dtype, heap_shape = contents.stored_dtype, contents.stored_shape
    inner = np.empty(heap_shape, dtype).strides
    return np.ndarray(shape + heap_shape, dtype, buffer=raw.data, strides=geometry.strides + inner)


def samples(
    contents: Contents, shape: tuple[int, ...], geometry: Geometry, data: np.ndarray, out: np.ndarray | None
) -> np.ndarray:
    """The numbers in a chunk's data: a view of it, or integers if samples are packed.

    Parameters
    ----------
    contents, shape, geometry, data
        As in `view`.
    out
        Where to write them. By default, packed samples get a new array, and all others are not copied.

    Raises
    ------
    ValueError
        If `data` or `out` has not the right size.
    TypeError
        If `out` is not an array, or of a dtype that does not hold such numbers.
    """
    element = contents.element
    wanted = shape + contents.shape
    if out is not None:
        _check_out(out, wanted, element.dtype)
    if element.packing is None:
        numbers = view(contents, shape, geometry, data)
        if out is None:
            return data if (data.dtype, data.shape) == (numbers.dtype, numbers.shape) else numbers
        np.copyto(out, numbers, casting="safe")
        return out
    direct = out is not None and out.flags.c_contiguous and out.dtype == element.dtype
    integers = out if out is not None and direct else np.empty(wanted, element.dtype)
    packing = element.packing
    geometry.unpack(
        data,  # type: ignore[arg-type]  # an array is a buffer
        integers.view(packing.dtype),  # type: ignore[arg-type]
        packing=(packing.bits, packing.signed, packing.little),
        samples=contents.components,
    )
    if out is None or direct:
        return integers
    np.copyto(out, integers, casting="safe")
    return out


def _check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: given {type(out).__name__}, but wanted a numpy array")
    if out.shape != shape:
        raise ValueError(f"out: given shape {out.shape}, but wanted {shape}")
    if not np.can_cast(dtype, out.dtype):
        raise TypeError(f"out: given dtype {out.dtype}, but wanted {dtype}, or one that can hold it")
    if not out.flags.writeable:
        raise ValueError("out: given a read-only array, but wanted a writable one")
