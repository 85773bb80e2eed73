"""What heaps hold, by the descriptor of the item in their payload: taken if a layout can say it, or named if not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .heaps import Descriptor
from .kinds import Stream
from .times import Notes

#: Most bits of packed samples.
_MOST_PACKED = 16


class _UnclearError(Exception):
    """A layout cannot say what a descriptor says; the message says what."""


def contents(stream: Stream, described: Mapping[int, Descriptor], notes: Notes) -> dict[str, Any]:
    """Find the type and shape of a heap's data.

    Parameters
    ----------
    stream
        The heaps.
    described
        Descriptors of their items.
    notes
        Where it is said what was found.

    Returns
    -------
    dict
        The fields `dtype` and `heap_shape` of a layout; empty if its heaps are just bytes.
    """
    alternatives = () if stream.payload_one_of is None else stream.payload_one_of.items
    found: dict[str, dict[str, Any]] = {}
    unclear = []
    for item in (*stream.payload_items, *alternatives):
        if item not in described:
            continue
        try:
            fields, how = _read(described[item], stream.heap_bytes)
        except _UnclearError as exc:
            unclear.append(f"the descriptor of item {item:#x} {exc}")
        else:
            found[f"{how[0]}, from the descriptor of item {item:#x}{how[1]}."] = fields
    if not found:
        why = unclear[0] if unclear else "no descriptor says what heaps hold"
        notes.uncertain.append(f"dtype: uint8, because {why}.")
        return {}
    text, fields = next(iter(found.items()))
    if any(other != fields for other in found.values()):
        notes.uncertain.append("dtype: uint8, because the descriptors of the items in the payload differ.")
        return {}
    (notes.uncertain if "Fortran" in text else notes.reasons).append(f"dtype: {text}")
    return fields


def _read(descriptor: Descriptor, heap_bytes: int) -> tuple[dict[str, Any], tuple[str, str]]:
    """The fields of a layout for the data, and what is to be said of them."""
    if descriptor.problem is not None:
        raise _UnclearError(f"is not understood: {descriptor.problem}")
    dtype, bits, parts = _element(descriptor)
    shape = _shape(descriptor, bits * parts, heap_bytes)
    how = ", in SPEAD's own format" if descriptor.format else ""
    if descriptor.order == "F" and len(shape) > 1:
        # The same bytes are the transposed array in C order.
        shape = shape[::-1]
        how += (
            f", whose array of shape {shape[::-1]} is in Fortran order (column by column): it is transposed here, so "
            "data[...].T has its indices"
        )
    if parts > 1:
        shape = (*shape, parts)
        how += f": the last axis has the {parts} parts of an element"
    name = "records" if isinstance(dtype, np.dtype) and dtype.names else str(dtype)
    return {"dtype": dtype, "heap_shape": shape}, (f"{name} of shape {shape}", how)


def _element(descriptor: Descriptor) -> tuple[str | np.dtype[Any], int, int]:
    """The type of the numbers, the bits of one, and how many make an element of the array."""
    if descriptor.dtype is not None:
        dtype = np.dtype(descriptor.dtype)
        if dtype.kind not in "biufc":
            raise _UnclearError(f"says {descriptor.dtype}, which is no number")
        return dtype, 8 * dtype.itemsize, 1
    if descriptor.fields:
        dtype = np.dtype(list(descriptor.fields))
        return dtype, 8 * dtype.itemsize, 1
    if not descriptor.format:
        raise _UnclearError("says no type")
    text = ", ".join(f"{code}{bits}" for code, bits in descriptor.format)
    formats = list(dict.fromkeys(descriptor.format))
    if len(formats) == 1:
        (code, bits), parts = formats[0], len(descriptor.format)
        if _is_whole(code, bits):
            return np.dtype(f">{code}{bits // 8}"), bits, parts
        if code in "ui" and 1 <= bits <= _MOST_PACKED:
            return f"{'u' if code == 'u' else ''}int{bits}", bits, parts
    elif all(_is_whole(code, bits) for code, bits in descriptor.format):
        dtype = np.dtype([(f"part{i}", f">{code}{bits // 8}") for i, (code, bits) in enumerate(descriptor.format)])
        return dtype, 8 * dtype.itemsize, 1
    raise _UnclearError(f"says {text} in SPEAD's own format, for which a layout has no type")


def _is_whole(code: str, bits: int) -> bool:
    """Whether numpy has the type."""
    return (code in "ui" and bits in (8, 16, 32, 64)) or (code == "f" and bits in (32, 64))


def _shape(descriptor: Descriptor, element_bits: int, heap_bytes: int) -> tuple[int, ...]:
    """The shape of the array; a dimension that is not fixed has what the others leave."""
    fixed = math.prod(n for n in descriptor.shape if n is not None) * element_bits
    whole = 8 * heap_bytes // fixed if fixed else 0
    unused = 8 * heap_bytes - fixed * (whole if None in descriptor.shape else 1)
    if not 0 <= unused < 8:  # packed samples may end within a byte
        raise _UnclearError(f"says {fixed / 8:,g} bytes, but heaps have {heap_bytes:,}")
    return tuple(whole if n is None else n for n in descriptor.shape)
