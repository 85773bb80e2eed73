"""What heaps hold, by the descriptor of the item in their payload: taken if a layout can say it, or named if not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .heaps import Descriptor
from .kinds import Stream
from .times import Notes


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
            dtype, shape, how = _read(described[item], stream.heap_bytes)
        except _UnclearError as exc:
            unclear.append(f"the descriptor of item {item:#x} {exc}")
            continue
        text = f"dtype: {dtype} of shape {shape}, from the descriptor of item {item:#x}{how}."
        found[text] = {"dtype": dtype.str, "heap_shape": shape}
    if not found:
        why = unclear[0] if unclear else "no descriptor says what heaps hold"
        notes.uncertain.append(f"dtype: uint8, because {why}.")
        return {}
    text, fields = next(iter(found.items()))
    if any(other != fields for other in found.values()):
        notes.uncertain.append("dtype: uint8, because the descriptors of the items in the payload differ.")
        return {}
    (notes.uncertain if "Fortran" in text else notes.reasons).append(text)
    return fields


def _read(descriptor: Descriptor, heap_bytes: int) -> tuple[np.dtype[Any], tuple[int, ...], str]:
    """The type and the shape of the data, and what else is to be said of them."""
    if descriptor.problem is not None:
        raise _UnclearError(f"is not understood: {descriptor.problem}")
    dtype, parts, how = _element(descriptor)
    shape = _shape(descriptor, dtype.itemsize * parts, heap_bytes)
    if descriptor.order == "F" and len(shape) > 1:
        # The same bytes are the transposed array in C order.
        shape = shape[::-1]
        how += (
            f", whose array of shape {shape[::-1]} is in Fortran order (column by column): it is transposed here, so "
            "data[...].T has its indices"
        )
    return dtype, (shape if parts == 1 else (*shape, parts)), how


def _element(descriptor: Descriptor) -> tuple[np.dtype[Any], int, str]:
    """The type of the numbers, and how many make an element of the array."""
    if descriptor.dtype is not None:
        dtype = np.dtype(descriptor.dtype)
        if dtype.kind not in "biufc":
            raise _UnclearError(f"says {descriptor.dtype}, which is no number")
        return dtype, 1, ""
    if descriptor.fields:
        names, types = zip(*descriptor.fields, strict=True)
        if len(set(types)) > 1:
            raise _UnclearError(f"says that elements have the fields {_list(descriptor.fields)}")
        return np.dtype(types[0]), len(types), f": the last axis has its fields {', '.join(names)}"
    if descriptor.format is None:
        raise _UnclearError("says no type")
    formats = set(descriptor.format)
    text = _list(descriptor.format)
    if len(formats) > 1:
        raise _UnclearError(f"says, in SPEAD's own format, that elements have the fields {text}")
    code, bits = formats.pop()
    if (code in "ui" and bits in (8, 16, 32, 64)) or (code == "f" and bits in (32, 64)):
        n = len(descriptor.format)
        how = ", in SPEAD's own format" if n == 1 else f", in SPEAD's own format: the last axis has its {n} fields"
        return np.dtype(f">{code}{bits // 8}"), n, how
    raise _UnclearError(f"says {text} in SPEAD's own format, which is no type of numpy")


def _list(fields: tuple[tuple[str, Any], ...]) -> str:
    return ", ".join(f"{name}{'' if isinstance(kind, int) else ' '}{kind}" for name, kind in fields)


def _shape(descriptor: Descriptor, element_bytes: int, heap_bytes: int) -> tuple[int, ...]:
    """The shape of the array; a dimension that is not fixed has what the others leave."""
    fixed = math.prod(n for n in descriptor.shape if n is not None) * element_bytes
    whole = heap_bytes // fixed if fixed else 0
    if fixed * (whole if None in descriptor.shape else 1) != heap_bytes:
        raise _UnclearError(f"says {fixed:,} bytes, but heaps have {heap_bytes:,}")
    return tuple(whole if n is None else n for n in descriptor.shape)
