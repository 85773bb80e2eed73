"""Overwrite the missing heaps of a chunk, so that stale data is not taken for new data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from speadrx._core import Geometry
from speadrx.layout.base import BaseLayout, DeclarativeLayout
from speadrx.layout.contents import Contents, Element, Packing
from speadrx.layout.user_data import user_data_values

from .chunk import as_array


def fill_missing(
    layout: DeclarativeLayout,
    data: Any,
    present: Any,
    fill: Any,
    user_data: np.ndarray | None = None,
    *,
    extra: Any = None,
) -> int:
    """Overwrite each missing heap of a chunk completely.

    spead2 uses the memory of chunks again and again. In the place of a missing heap there is stale data of an earlier
    chunk, or a part of a heap whose other packets never came. Heaps that are present are not touched, nor are gaps
    that strides leave between heaps. Other threads can run meanwhile, as the interpreter's lock is released.

    Parameters
    ----------
    layout
        The layout of the chunk.
    data
        The chunk's data: a writable C-contiguous buffer of any shape and plain dtype, large enough for all heaps:
        ``layout.chunk_bytes`` bytes, or the span of the strides if ``user_data`` gives them.
    present
        The chunk's ``present``: one byte for each heap, which is not 0 if the heap is present.
    fill
        What to write. A number becomes an element of the layout's dtype (a packed sample, say), and is repeated. An
        array (or sequence) of numbers becomes as many elements, and is repeated: for example a sample of two elements,
        such as ``(-128, 0)``, or a whole heap of noise. Only its values count, not its dtype. They must be in range.
        ``bytes`` are repeated as they are.
    user_data
        One record. It is needed if a stride comes from ``user_data``.
    extra
        The chunk's ``extra``, if the side items of missing heaps are to be set to 0.

    Returns
    -------
    int
        How many heaps were missing.

    Raises
    ------
    ValueError
        If a buffer is too small, not contiguous or not writable, or shares memory with another; if the layout's dtype
        cannot hold a value of `fill`; or if the size of a heap is not a multiple of the size of `fill`.
    TypeError
        If an argument is of the wrong type, or the layout is not declarative.

    Examples
    --------
    >>> import numpy as np, speadrx
    >>> layout = speadrx.Layout(heap_bytes=4, dtype="int16", time=speadrx.TimeAxis(item=0x1600, step=1, batches=3))
    >>> data = np.ones((3, 2), np.int16)
    >>> speadrx.fill_missing(layout, data, np.array([True, False, True]), -32768)
    1
    >>> data.tolist()
    [[1, 1], [-32768, -32768], [1, 1]]
    """
    if not isinstance(layout, DeclarativeLayout):
        raise TypeError(f"layout: given {layout!r}, but wanted a declarative layout, such as speadrx.Layout(...)")
    pattern = _fill_bytes(layout, fill)
    buffers = {"data": data, "present": present} | ({} if extra is None else {"extra": extra})
    arrays = {name: as_array(name, buffer) for name, buffer in buffers.items()}
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise ValueError(f"{name}: given dtype {array.dtype}, but wanted a plain numeric dtype")
    geometry = layout.declaration._compiled.geometry(user_data_values(layout, user_data))
    return geometry.fill_missing(fill=pattern, **arrays)  # type: ignore[arg-type]  # an array is a buffer


def chunk_filler(layout: BaseLayout, geometries: Sequence[Geometry], fill: Any) -> Callable[[Any], int]:
    """Return a function that fills the missing heaps of a chunk, and sets their side items to 0.

    Parameters
    ----------
    layout, geometries
        The layout of the stream or group, and the geometry of each stream.
    fill
        See `fill_missing`.

    Returns
    -------
    callable
        Takes a chunk, and returns how many heaps were missing.

    Raises
    ------
    ValueError, TypeError
        If `fill` does not fit the layout, or if the place of a missing heap is not known, because the layout has a
        placement callback of its own, or because each stream of the group would place it elsewhere.
    """
    if not geometries or not isinstance(layout, DeclarativeLayout):
        raise ValueError(
            f"fill: the layout ({type(layout).__name__}) has a placement callback of its own, so the place of a "
            "missing heap is not known: wanted a declarative layout, or no fill"
        )
    strides = sorted({geometry.strides for geometry in geometries})
    if len(strides) != 1:
        raise ValueError(
            f"fill: the streams of the group have different strides in user_data ({' and '.join(map(str, strides))}), "
            "so the place of a missing heap is not known: wanted equal strides, or no fill"
        )
    geometry = geometries[0]
    pattern = _fill_bytes(layout, fill)
    return lambda chunk: geometry.fill_missing(chunk.data, chunk.present, pattern, chunk.extra)


def _fill_bytes(layout: DeclarativeLayout, fill: Any) -> bytes:
    """Return the bytes to repeat."""
    if isinstance(fill, (bytes, bytearray, memoryview)):
        pattern = bytes(fill)
        given = f"{len(pattern)} bytes"
    else:
        contents = layout.declaration._contents
        element = contents.element
        elements = _elements(fill, element)
        if element.packing is not None:
            return _packed_heap(contents, element.packing, elements)
        pattern = elements.tobytes()
        given = f"{elements.size} of {elements.dtype}, which are {elements.nbytes} bytes"
    if not pattern or layout.heap_bytes % len(pattern):
        raise ValueError(f"fill: given {given}, but wanted a size that divides the {layout.heap_bytes} bytes of a heap")
    return pattern


def _packed_heap(contents: Contents, packing: Packing, elements: np.ndarray) -> bytes:
    """Return a whole heap of packed samples: a shorter pattern need not end where a byte does."""
    wanted = math.prod(contents.shape)
    if not elements.size or wanted % elements.size:
        raise ValueError(
            f"fill: given {elements.size} of {contents.element.name}, but wanted a number that divides the {wanted} of "
            "a heap"
        )
    return packing.pack(np.tile(elements.reshape(-1), wanted // elements.size).view(packing.dtype))


def _elements(fill: Any, element: Element) -> np.ndarray:
    """Convert the values of a fill to elements of a layout's dtype, if it can hold them."""
    dtype, name = element.dtype, element.name
    try:
        values = np.asarray(fill)
    except ValueError:  # sequences of different lengths
        raise _wrong_type(fill) from None
    if values.dtype == dtype and element.packing is None:
        return values
    numbers = values.reshape(-1).tolist()
    if not all(isinstance(number, (int, float, complex)) for number in numbers):
        raise _wrong_type(fill)
    if element.is_complex_integer:
        parts = [part for number in numbers for part in (complex(number).real, complex(number).imag)]
        return np.array([_element(part, dtype[0], name, element.packing) for part in parts], dtype[0]).view(dtype)
    if dtype.kind not in "biufc":
        raise ValueError(
            f"fill: given {fill!r}, but the layout's dtype is {name}: wanted bytes, or an array of that dtype"
        )
    return np.array([_element(number, dtype, name, element.packing) for number in numbers], dtype)


def _wrong_type(fill: Any) -> TypeError:
    return TypeError(f"fill: given {fill!r}, but wanted a number, an array of numbers, or bytes")


def _element(number: Any, dtype: np.dtype, name: str, packing: Packing | None) -> Any:
    """Check that a dtype can hold a number. Otherwise numpy would wrap it, or turn it into infinity."""
    if isinstance(number, complex) and dtype.kind != "c":
        raise ValueError(f"fill: {number} is complex, but the layout's dtype is {name}")
    if dtype.kind in "fc":
        low, high = float(np.finfo(dtype).min), float(np.finfo(dtype).max)
    elif number % 1 != 0:
        raise ValueError(f"fill: {number} is not a whole number, but the layout's dtype is {name}")
    else:
        number = int(number)
        low, high = packing.range if packing is not None else _whole_range(dtype)
    if any((part < low or part > high) and abs(part) != math.inf for part in (number.real, number.imag)):
        raise ValueError(f"fill: {number} is out of the range of {name}, {low} to {high}")
    return number


def _whole_range(dtype: np.dtype) -> tuple[int, int]:
    return (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
