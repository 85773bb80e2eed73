"""What a heap holds: numbers of any numpy dtype, packed samples, complex integers, or records of fields."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from speadrx._core import LayoutError

# A name of integers by their width in bits; [iu] with 1, 2, 4 and 8 are numpy's names by the width in bytes.
_BY_BITS = re.compile(r"([<>]?)(cint|u?int|[iu])([0-9]{1,9})")
_WHOLE = (8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field of the records that heaps hold.

    Parameters
    ----------
    name
        Name of the field: ``chunk.data[name]`` is an array of its values.
    dtype
        Type of its elements: numpy's name, or one of complex integers, such as ``"cint8"``.
    shape
        Its shape (default: a single element).
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.shape, (int, str)):
            raise LayoutError(f"fields[{self.name!r}].shape: given {self.shape!r}, but wanted a sequence")
        object.__setattr__(self, "shape", tuple(self.shape))
        element = read_element(f"fields[{self.name!r}].dtype", self.dtype)
        if element.packing is not None:
            raise LayoutError(
                f"fields[{self.name!r}].dtype: {self.dtype!r} is packed samples, but a field has whole bytes; use a "
                "dtype like 'int16', or 'uint8' for the bytes of the samples"
            )
        object.__setattr__(self, "dtype", element.name)

    @property
    def element(self) -> Element:
        """The type of the elements."""
        return read_element("dtype", self.dtype)


@dataclass(frozen=True)
class Packing:
    """How samples are packed that are no whole bytes.

    Parameters
    ----------
    bits
        Bits of a sample, 1 to 16.
    signed
        Whether samples are signed, as two's complement.
    little
        Whether the first sample has the lowest bits of the first byte; otherwise it has the highest.
    """

    bits: int
    signed: bool
    little: bool

    @property
    def dtype(self) -> np.dtype:
        """The integers that samples become."""
        return np.dtype(("int" if self.signed else "uint") + ("8" if self.bits <= 8 else "16"))

    @property
    def range(self) -> tuple[int, int]:
        """The smallest and the largest sample."""
        if self.signed:
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1

    def pack(self, samples: np.ndarray) -> bytes:
        """Pack samples, in order. If they end within a byte, the rest of it is 0."""
        places = np.arange(self.bits) if self.little else np.arange(self.bits)[::-1]
        bits = (samples.reshape(-1, 1).astype(np.uint16) >> places.astype(np.uint16)) & 1
        return np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little" if self.little else "big").tobytes()


@dataclass(frozen=True)
class Element:
    """The type of what a heap holds.

    Parameters
    ----------
    name
        Its name in a layout.
    dtype
        It in numpy: if it is packed, what it becomes.
    packing
        How it is packed, if it is.
    """

    name: str
    dtype: np.dtype
    packing: Packing | None = None

    @property
    def is_complex_integer(self) -> bool:
        """Whether it is a complex integer: numpy has these only as records."""
        return self.dtype.names is not None and self.dtype == _complex(self.dtype[0])

    @property
    def bits(self) -> int:
        """Bits of it in a heap."""
        if self.packing is None:
            return self.dtype.itemsize * 8
        return self.packing.bits * len(self.dtype.names or "1")


@dataclass(frozen=True)
class Contents:
    """What a heap holds.

    Parameters
    ----------
    element
        The type of its elements.
    shape
        Their shape.
    heap_bytes
        Bytes of a heap.
    order
        Which axis is at each place in the samples of a chunk, counted over the axes and then the dimensions of a heap;
        None if they stay as they are.
    """

    element: Element
    shape: tuple[int, ...]
    heap_bytes: int
    order: tuple[int, ...] | None = None

    @property
    def stored_dtype(self) -> np.dtype:
        """The dtype of a chunk's data."""
        return self.element.dtype if self.element.packing is None else np.dtype(np.uint8)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of a heap in a chunk's data."""
        return self.shape if self.element.packing is None else (self.heap_bytes,)

    @property
    def components(self) -> int:
        """Numbers in a heap, two for each complex integer."""
        return math.prod(self.shape) * len(self.element.dtype.names or "1")


def _complex(part: np.dtype) -> np.dtype:
    return np.dtype([("re", part), ("im", part)])


def read_element(where: str, given: Any) -> Element:
    """Read a dtype: one that numpy knows, or the name of packed samples or complex integers.

    Parameters
    ----------
    where
        The field that has it, for messages.
    given
        What the user has written.

    Raises
    ------
    LayoutError
        If there is no such type, or it has no binary form of a fixed size.
    """
    if isinstance(given, str) and (match := _BY_BITS.fullmatch(given)):
        order, kind, bits = match[1], match[2], int(match[3])
        if len(kind) > 1 or bits not in (1, 2, 4, 8):
            return _by_bits(where, given, order, kind, bits)
    try:
        if given is None:  # numpy takes it for float64
            raise TypeError("it is none at all")
        dtype = np.dtype(given)
    except (TypeError, ValueError) as exc:
        raise LayoutError(
            f"{where}: {given!r} is not a numpy dtype ({exc}); use one like 'int16', or 'int10' for packed samples"
        ) from None
    if dtype.kind in "SU":
        raise LayoutError(f"{where}: {given!r} is text, not numbers; use 'uint8' for its bytes")
    if dtype.names is not None and dtype == _complex(dtype[0]) and dtype[0].kind == "i":
        return _by_bits(where, given, dtype[0].str[0].strip("|="), "cint", dtype[0].itemsize * 8)
    if dtype.kind == "V":  # np.dtype cannot read back the names of such types
        what = "a record" if dtype.names is not None else "raw bytes"
        raise LayoutError(f"{where}: {given!r} is {what}, not numbers; use a dtype like 'int16'")
    # The readable name if it says everything ("int16"), else the one with the byte order (">i2").
    element = Element(dtype.name if np.dtype(dtype.name) == dtype else dtype.str, dtype)
    if dtype.hasobject or not dtype.itemsize:
        raise LayoutError(f"{where}: {element.name!r} has no fixed binary form; use a plain numeric dtype")
    _check_shareable(where, element)
    return element


def _check_shareable(where: str, element: Element) -> None:
    """Check that numpy lends memory of such elements to others: spead2 fills the chunks."""
    try:
        _ = np.empty(0, element.dtype).data
    except ValueError as exc:
        if element.dtype.kind not in "mM":
            raise LayoutError(f"{where}: {element.name!r} cannot be shared: {exc}; use 'uint8' for its bytes") from None
        plain = np.dtype(element.dtype.str[0] + "i8")
        integer = plain.name if plain.isnative else plain.str
        raise LayoutError(
            f"{where}: {element.name!r} cannot be received into, because numpy shares no such memory; use {integer!r}, "
            f"and view({element.name!r}) on the data that came"
        ) from None


def _by_bits(where: str, given: Any, order: str, kind: str, bits: int) -> Element:
    """Integers whose width is given in bits."""
    signed, is_complex = not kind.startswith("u"), kind == "cint"
    if bits in _WHOLE and (len(kind) > 1 or order):
        part = np.dtype(f"{order}{'i' if signed else 'u'}{bits // 8}")
        if not is_complex:
            return Element(part.name if part.isnative else part.str, part)
        return Element(f"{'' if part.isnative else part.str[0]}cint{bits}", _complex(part))
    if not 1 <= bits <= 16 or bits in _WHOLE:
        raise LayoutError(
            f"{where}: {given!r} is not a dtype: packed samples have 1 to 16 bits, like 'int10', and numpy's integers "
            "have 8, 16, 32 or 64, like 'int16' or '>i2'"
        )
    packing = Packing(bits, signed, order == "<")
    name = f"{'<' if packing.little else ''}{'cint' if is_complex else 'int' if signed else 'uint'}{bits}"
    return Element(name, _complex(packing.dtype) if is_complex else packing.dtype, packing)


def fields_of(dtype: np.dtype) -> tuple[Field, ...]:
    """Take a record of numpy apart into its fields.

    Raises
    ------
    LayoutError
        If there are gaps between fields, or a field has fields of its own.
    """
    fields, end = [], 0
    for name in dtype.names or ():
        assert dtype.fields is not None
        part, offset = dtype.fields[name][:2]
        if offset != end:
            raise LayoutError(
                f"dtype: the field {name!r} begins at byte {offset}, but the fields before it have {end} bytes; fields "
                "follow one another: declare a gap as a field of its own"
            )
        base, shape = part.subdtype or (part, ())
        fields.append(Field(name=name, dtype=cast("str", base), shape=shape))
        end += part.itemsize
    if end != dtype.itemsize:
        raise LayoutError(
            f"dtype: a record has {dtype.itemsize} bytes, but its fields have {end}; declare the gap as a field"
        )
    return tuple(fields)


def read_contents(dtype: Any, fields: Any) -> tuple[str, tuple[Field, ...]]:
    """Read what a heap holds, as a user has given it, into the name of a dtype, and fields.

    Raises
    ------
    LayoutError
        If there is no such type.
    """
    if isinstance(fields, (str, Field)) or not isinstance(fields, Sequence):
        raise LayoutError(f"fields: given {fields!r}, but wanted a sequence of speadrx.Field")
    for field in fields:
        if not isinstance(field, Field):
            raise LayoutError(f"fields: given {field!r}, but wanted speadrx.Field(name=..., dtype=..., shape=...)")
    record = _record(dtype)
    if record is not None:
        if fields:
            raise LayoutError("dtype: a record cannot be given together with fields; give one of them")
        return "uint8", fields_of(record)
    name = read_element("dtype", dtype).name
    if fields and name != "uint8":
        raise LayoutError(f"dtype: {name!r} cannot be given together with fields; give one of them")
    return name, tuple(fields)


def _record(dtype: Any) -> np.dtype | None:
    """The dtype, if it is a record other than a complex integer."""
    try:
        record = np.dtype(dtype)
    except (TypeError, ValueError):
        return None
    return record if record.names and not (record == _complex(record[0]) and record[0].kind == "i") else None


def make_contents(
    dtype: str,
    fields: Sequence[Field],
    heap_shape: tuple[int, ...] | None,
    heap_bytes: int,
    order: tuple[int, ...] | None,
) -> Contents:
    """Find the shape of what a heap holds, and check that it fits.

    Raises
    ------
    LayoutError
        If a heap has not as many bytes.
    """
    element = read_element("dtype", dtype)
    if fields:
        record = np.dtype([(field.name, field.element.dtype, field.shape) for field in fields])
        element = Element(f"records of {', '.join(field.name for field in fields)}", record)
    if heap_shape is None:
        n, rest = divmod(heap_bytes * 8, element.bits)
        if rest and element.packing is None:
            raise LayoutError(
                f"heap_bytes: {heap_bytes} is not a multiple of the {element.dtype.itemsize} bytes of {element.name}"
            )
        if rest:
            raise LayoutError(
                f"heap_bytes: {heap_bytes} is no whole number of {element.name}, which have {element.bits} bits; give "
                "heap_shape if the last byte has bits that are not used"
            )
        return Contents(element, () if fields and n == 1 else (n,), heap_bytes, order)
    size = -(-math.prod(heap_shape) * element.bits // 8)
    if size != heap_bytes:
        raise LayoutError(f"heap_shape: {heap_shape} of {element.name} is {size} bytes, but heap_bytes is {heap_bytes}")
    return Contents(element, heap_shape, heap_bytes, order)
