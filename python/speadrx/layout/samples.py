"""The numbers in the data of a chunk: a view of them, or packed samples as integers."""

from __future__ import annotations

from typing import Any

import numpy as np

from speadrx._core import Geometry

from .contents import Contents, Packing


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
    """The numbers in a chunk's data: a view of it, or a copy if samples are packed or in another order.

    Parameters
    ----------
    contents, shape, geometry, data
        As in `view`.
    out
        Where to write them. By default, a copy is a new array.

    Raises
    ------
    ValueError
        If `data` or `out` has not the right size.
    TypeError
        If `out` is not an array, or of a dtype that does not hold such numbers.
    """
    element, order = contents.element, contents.order
    natural = shape + contents.shape
    wanted = natural if order is None else tuple(natural[axis] for axis in order)
    if out is not None:
        _check_out(out, wanted, element.dtype)
    if element.packing is None:
        numbers = view(contents, shape, geometry, data)
        if out is None and order is None:
            return data if (data.dtype, data.shape) == (numbers.dtype, numbers.shape) else numbers
    else:
        direct = out is not None and order is None and out.flags.c_contiguous and out.dtype == element.dtype
        numbers = out if out is not None and direct else np.empty(natural, element.dtype)
        _unpack(contents, element.packing, geometry, data, numbers)
        if order is None and (out is None or direct):
            return numbers
    if order is not None:
        numbers = numbers.transpose(order)
    if out is None:
        out = np.empty(wanted, element.dtype)
    _copy(numbers, out)
    return out


def _unpack(contents: Contents, packing: Packing, geometry: Geometry, data: np.ndarray, out: np.ndarray) -> None:
    geometry.unpack(
        data,  # type: ignore[arg-type]  # an array is a buffer
        out.view(packing.dtype),  # type: ignore[arg-type]
        packing=(packing.bits, packing.signed, packing.little),
        samples=contents.components,
    )


def _copy(numbers: np.ndarray, out: np.ndarray) -> None:
    """Copy an array. Numpy would copy records one by one, but not integers of their size."""
    size = numbers.dtype.itemsize
    if numbers.dtype.names is not None and numbers.dtype == out.dtype and size in (1, 2, 4, 8):
        np.copyto(out.view(f"u{size}"), numbers.view(f"u{size}"))
    else:
        np.copyto(out, numbers, casting="safe")


def _check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: given {type(out).__name__}, but wanted a numpy array")
    if out.shape != shape:
        raise ValueError(f"out: given shape {out.shape}, but wanted {shape}")
    if not np.can_cast(dtype, out.dtype):
        raise TypeError(f"out: given dtype {out.dtype}, but wanted {dtype}, or one that can hold it")
    if not out.flags.writeable:
        raise ValueError("out: given a read-only array, but wanted a writable one")
