"""What the numbers of a layout mean, as far as their names tell: sources, channels, time; and which to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from speadrx.layout.contents import Element, Field
from speadrx.layout.declaration import Layout
from speadrx.record.numbers import plain

#: How the names of dimensions begin, or what they are, by their role.
_CHANNELS = ("chan", "freq", "subband", "sub_band", "substream", "band")
_TIMES = ("time", "sample", "spectr")
_COMPLEX = ("complex", "re_im", "reim", "real_imag")
#: What has such a dimension is correlated or detected already.
_DETECTED = ("baseline", "product", "stokes", "corr")
#: Fields whose names begin like this hold a number for each channel.
_SPECTRA = ("spec", "pow", "vis", "auto", *_CHANNELS)


@dataclass(frozen=True)
class Dimension:
    """A dimension of the numbers."""

    name: str
    #: The values of its indices, and which of these are looked at.
    values: tuple[int, ...]
    chosen: tuple[int, ...]

    def is_one_of(self, names: Sequence[str]) -> bool:
        """Whether its name begins like one of these."""
        return self.name.lower().startswith(tuple(names))


class Meaning:
    """What the numbers in the heaps of a layout are, and which of them are looked at.

    Parameters
    ----------
    layout
        The layout.
    selection
        What to look at of a dimension, by its name: ``"antenna=2"``, ``"antenna=3,7"``; or the label of a source.
    field
        Which field of records. By default, the one with the most numbers.
    recorded
        Which indices there are of each axis, if not all.
    kind
        ``"voltage"`` or ``"power"``, if it is not to be judged by the layout.

    Raises
    ------
    ValueError
        If the layout does not say what heaps hold, or does not have what is selected.
    """

    def __init__(
        self,
        layout: Layout,
        selection: Sequence[str] = (),
        *,
        field: str | None = None,
        recorded: Mapping[int, Sequence[int]] | None = None,
        kind: str | None = None,
    ) -> None:
        self.layout = layout
        contents = layout._contents
        if layout.dtype == "uint8" and not (layout.fields or layout.heap_shape or layout.heap_axes):
            raise ValueError(
                "the layout does not say what heaps hold: it has neither a dtype nor fields. Say it with --set "
                f"dtype=int16, say; or, if they are bytes, with --set heap_shape=[{layout.heap_bytes}]"
            )
        #: The name of the field, if heaps hold records.
        self.field = _field(layout, field)
        shape, names = contents.shape, layout.heap_axis_names
        #: The type of what numbers are made of.
        self.element: Element = contents.element
        if self.field is not None:
            chosen = next(f for f in layout.fields if f.name == self.field)
            self.element = chosen.element
            shape, names = (*shape, *chosen.shape), (*names, *_names_in(chosen, {*names, *layout.axis_names}))
        self._plain = plain(self.element)[1]
        #: Whether the last dimension has the real and the imaginary part.
        self.is_joined = bool(shape) and shape[-1] == 2 and names[-1].lower() in _COMPLEX
        if self.is_joined:
            shape, names = shape[:-1], names[:-1]
        axes = [_axis(layout, axis, (recorded or {}).get(axis)) for axis in range(len(layout.axis_names))]
        inner = [Dimension(name, tuple(range(n)), tuple(range(n))) for name, n in zip(names, shape, strict=True)]
        labels = _labels(layout, recorded or {})
        by_name = _read_selection(selection, layout, labels, [*axes, *inner])
        #: The axes, and the dimensions of a heap.
        self.axes = [_chosen(axis, by_name) for axis in axes]
        self.inner = [_chosen(dimension, by_name) for dimension in inner]
        self._find_roles()
        #: The label of each source.
        self.labels = ["all"] if self.source is None else [labels[i] for i in self.axes[self.source].chosen]
        #: Whether numbers are voltages, or powers: correlated or detected.
        self.kind = kind or self._judge()

    def _find_roles(self) -> None:
        names = list(self.layout.axis_names)
        #: Which of the axes is the time, and which has the sources, if any has.
        self.time = names.index(self.layout.time.name)
        self.source = None if self.layout.sources is None else names.index(self.layout.sources)
        #: The axes that are channels, and the dimensions of a heap that are channels, and time.
        self.coarse = [i for i, axis in enumerate(self.axes) if axis.is_one_of(_CHANNELS) and i != self.time]
        self.fine = [i for i, dimension in enumerate(self.inner) if dimension.is_one_of(_CHANNELS)]
        self.moments = [i for i, dimension in enumerate(self.inner) if dimension.is_one_of(_TIMES)]
        #: Whether each source has channels of its own, so that all of them make one spectrum.
        self.sources_are_channels = self.source in self.coarse
        first = [self.time, *([] if self.source is None else [self.source])]
        rest = [i for i in range(len(names)) if i not in first and i not in self.coarse]
        coarse = [i for i in self.coarse if i != self.source]
        self._order = [*first, *coarse, *rest]
        #: How many axes of `arranged` come after time and source: channels, and others.
        self.n_coarse, self.n_rest = len(coarse), len(rest)

    @property
    def has_channels(self) -> bool:
        """Whether there are channels already."""
        return bool(self.coarse or self.fine)

    @property
    def bits(self) -> int | None:
        """Bits of an integer, or of each part of a complex one; None if numbers are no integers."""
        if self.element.packing is not None:
            return self.element.packing.bits
        dtype = self.element.dtype if self.element.dtype.names is None else self.element.dtype[0]
        return {"b": 1}.get(dtype.kind, dtype.itemsize * 8) if dtype.kind in "iub" else None

    @property
    def is_signed(self) -> bool:
        """Whether numbers may be negative."""
        dtype = self.element.dtype if self.element.dtype.names is None else self.element.dtype[0]
        return dtype.kind not in "ub"

    @property
    def is_complex(self) -> bool:
        """Whether numbers are complex."""
        return self.is_joined or self.element.dtype.names is not None or self.element.dtype.kind == "c"

    @property
    def full_scale(self) -> float | None:
        """The largest deviation from the middle that voltages can have; None if there is no such."""
        if self.bits is None or self.bits < 2 or self.kind != "voltage":
            return None
        return float(2 ** (self.bits - 1) - 1 if self.is_signed else (2**self.bits - 1) / 2)

    @property
    def middle(self) -> float:
        """What stands for no voltage: unsigned samples have it in the middle of their range."""
        return 0.0 if self.is_signed or self.bits is None or self.kind != "voltage" else (2**self.bits - 1) / 2

    def _judge(self) -> str:
        if any(dimension.is_one_of(_DETECTED) for dimension in (*self.axes, *self.inner)):
            return "power"
        if not self.has_channels:
            return "voltage"
        is_long = self.bits is None or self.bits > 16
        return "power" if is_long or not (self.is_signed or self.is_complex) else "voltage"

    def arranged(self, numbers: np.ndarray) -> np.ndarray:
        """Select, and put axes in order: time, source, channels, others; then those of a heap."""
        n = len(self.axes)
        for axis, dimension in enumerate((*self.axes, *self.inner)):
            # The time is not selected, and a selection of all would make a copy.
            if axis != self.time and axis < numbers.ndim and dimension.chosen != tuple(range(numbers.shape[axis])):
                numbers = np.take(numbers, dimension.chosen, axis)
        numbers = numbers.transpose(*self._order, *range(n, numbers.ndim))
        return numbers if self.source is not None else numbers[:, np.newaxis]

    def numbers(self, heaps: np.ndarray) -> np.ndarray:
        """Make real or complex numbers of what is in heaps."""
        heaps = self._plain(heaps) if heaps.dtype.names is not None else heaps
        if self.is_joined:
            dtype = np.complex64 if heaps.dtype.itemsize <= 2 or heaps.dtype == np.float32 else np.complex128
            joined = np.empty(heaps.shape[:-1], dtype)
            joined.real, joined.imag = heaps[..., 0], heaps[..., 1]
            return joined
        if heaps.dtype.kind == "b":
            return heaps.astype(np.uint8)
        return heaps if heaps.dtype.isnative else heaps.astype(heaps.dtype.newbyteorder("="))

    @property
    def heap_numbers(self) -> int:
        """How many numbers are looked at in a heap."""
        return math.prod(len(dimension.chosen) for dimension in self.inner)


def _field(layout: Layout, wanted: str | None) -> str | None:
    names = [field.name for field in layout.fields]
    if wanted is None:
        return max(layout.fields, key=lambda field: math.prod(field.shape)).name if names else None
    if wanted not in names:
        there = f"its fields are {', '.join(names)}" if names else "its heaps hold no records"
        raise ValueError(f"field: the layout has no {wanted!r}: {there}")
    return wanted


def _names_in(field: Field, taken: set[str]) -> list[str]:
    """Names of the dimensions of a field, which layouts do not name."""
    n = len(field.shape)
    name = "channel" if field.name.lower().startswith(_SPECTRA) else "sample"
    if n > 1 or name in taken:
        name = f"{name}_of_{field.name}"
    return [name] if n == 1 else [f"{name}_{i}" for i in range(n)]


def _axis(layout: Layout, number: int, recorded: Sequence[int] | None) -> Dimension:
    name, size = layout.axis_names[number], layout.present_shape[number]
    declared: Any = next((axis for axis in layout.axes if axis.name == name), None)
    values = range(size) if declared is None else declared._numbers
    there = range(size) if recorded is None else recorded
    return Dimension(name, tuple(values[i] for i in there), tuple(range(len(there))))


def _labels(layout: Layout, recorded: Mapping[int, Sequence[int]]) -> list[str]:
    if layout.sources is None:
        return []
    there = recorded.get(layout.axis_names.index(layout.sources), range(len(layout.source_labels)))
    return [layout.source_labels[i] for i in there]


def _read_selection(
    selection: Sequence[str], layout: Layout, labels: Sequence[str], dimensions: Sequence[Dimension]
) -> dict[str, set[int]]:
    """Which indices are selected, by the name of their dimension."""
    names = [dimension.name for dimension in dimensions if dimension.name != layout.time.name]
    found: dict[str, set[int]] = {}
    for text in selection:
        name, equals, values = text.partition("=")
        if not equals:
            name, values = layout.sources or "", text
        if name not in names:
            raise ValueError(
                f"selection: {text!r}: the layout has no axis {name!r}; its axes are {', '.join(names) or 'none'}"
            )
        there = next(dimension.values for dimension in dimensions if dimension.name == name)
        for value in values.split(","):
            found.setdefault(name, set()).add(
                index_of("selection", value, name, there, labels if name == layout.sources else ())
            )
    return found


def index_of(option: str, text: str, name: str, values: Sequence[int], labels: Sequence[str]) -> int:
    """The index on an axis that an option selects, by its value there, or the label of a source."""
    try:
        return list(values).index(int(text, 0))
    except ValueError:
        if text in labels:
            return labels.index(text)
        there = [label for label in labels if not label.isdecimal()] or [str(value) for value in values]
        some = ", ".join(there if len(there) <= 8 else [*there[:7], "...", there[-1]])
        raise ValueError(f"{option}: {text!r} is no {name} here; there is {some}") from None


def _chosen(dimension: Dimension, by_name: Mapping[str, set[int]]) -> Dimension:
    chosen = by_name.get(dimension.name)
    return dimension if chosen is None else Dimension(dimension.name, dimension.values, tuple(sorted(chosen)))
