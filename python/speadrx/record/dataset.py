"""`speadrx.open`: a recording as an xarray Dataset whose numbers are read when they are needed."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .numbers import Decode, numbers_of, same
from .recording import RecordedPart, Recording, import_extra

if TYPE_CHECKING:
    import xarray

#: Up to so many batches can be selected by their time: that takes an index in memory.
_MOST_INDEXED = 2**24


def open_recording(path: str | os.PathLike[str], *, part: int | None = None, masked: bool = False) -> xarray.Dataset:
    """Open a recording as an xarray Dataset. Its numbers are read when they are needed.

    It has the variables ``data`` (or one for each of the layout's `fields`), ``present`` and the side items, with the
    dimensions that the layout names. Packed samples become integers, and complex integers complex numbers. The time is
    UTC (``datetime64[ns]``) if the layout knows it, or else in seconds since tick 0, or in ticks without a
    ``tick_rate``. What speadrx says of the recording is in ``attrs``, with its account.

    Parameters
    ----------
    path
        The folder of the recording. It may still grow: what is there now is opened.
    part
        Which part, counted from 0, if time began again while it was recorded, as when senders were restarted.
    masked
        Whether ``data`` has NaN where heaps are missing. Integers become floating-point numbers then: ``float32``, or
        ``float64`` if they have more than 16 bits. Otherwise what is missing reads as what it was filled with, which is
        0 in most cases: ``dataset.present`` tells.

    Returns
    -------
    xarray.Dataset
        The recording, or one of its parts.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    ValueError
        If it is not a recording, or was made by a newer speadrx; if it holds nothing; or if it has several parts, and
        none is chosen.
    ModuleNotFoundError
        If xarray or zarr is not installed: both come with the extra ``xarray``.
    """
    xarray = import_extra("xarray", "speadrx.open needs")
    # Not before: it derives from a class of xarray.
    from .lazy import LazyArray

    recording = Recording(path)
    opened = recording.part(_chosen(recording, part))
    stored = recording.stored
    length = opened.length()
    axes = [length if axis == stored.time_axis else n for axis, n in enumerate(stored.present.shape)]
    dims = stored.present.dims

    def variable(dims: tuple[str, ...], *args: Any, **kwargs: Any) -> Any:
        return xarray.Variable(dims, xarray.core.indexing.LazilyIndexedArray(LazyArray(*args, **kwargs)))

    data, present = (opened.group[array.name] for array in (stored.data, stored.present))
    variables = {
        numbers.name: variable(
            (*dims, *numbers.dims),
            data,
            stored.time_axis,
            axes,
            numbers.shape,
            numbers.dtype,
            numbers.decode,
            present if masked else None,
        )
        for numbers in numbers_of(recording.layout, stored)
    }
    for array in (stored.present, *stored.side.values()):
        variables[array.name] = variable(dims, opened.group[array.name], stored.time_axis, axes)
    coordinates = {array.name: opened.group[array.name][:] for array, _ in stored.coordinates}
    decode, dtype, attributes = _time(opened)
    time = variable((stored.time_name,), opened.group[stored.time_name], 0, [length], (), dtype, decode)
    time.attrs.update(attributes)
    dataset = xarray.Dataset(variables, coordinates, _attributes(opened, part or 0))
    if length <= _MOST_INDEXED:
        return dataset.assign_coords({stored.time_name: time})
    return dataset.assign_coords(xarray.Coordinates({stored.time_name: time}, indexes={}))


def _chosen(recording: Recording, part: int | None) -> int:
    """The number of the part to open."""
    n = len(recording.attributes["parts"])
    if not n:
        raise ValueError(f"{recording.path} holds nothing: no heap had come when it was written")
    if part is None and n > 1:
        raise ValueError(
            f"part: {recording.path} has {n} parts, since time began again while it was recorded; "
            f"give part=0 to part={n - 1}"
        )
    if part is not None and not 0 <= part < n:
        raise ValueError(f"part: given {part}, but {recording.path} has {n}, counted from 0")
    return part or 0


def _attributes(opened: RecordedPart, part: int) -> dict[str, Any]:
    """What speadrx says of the recording, and of the part."""
    attributes = {**opened.recording.attributes, **opened.attributes}
    return {**attributes, "part": part, "parts": len(opened.recording.attributes["parts"])}


def _time(opened: RecordedPart) -> tuple[Decode, np.dtype, dict[str, str]]:
    """How times are made of what is stored, their dtype and their attributes."""
    if opened.attributes["time_is_utc"]:
        return _as_utc, np.dtype("datetime64[ns]"), {"long_name": "UTC"}
    rate = opened.attributes["tick_rate"]
    if rate is None:
        return same, np.dtype(np.int64), {"long_name": "timestamp, in ticks"}
    decode = functools.partial(_as_seconds, float(rate))
    return decode, np.dtype(np.float64), {"long_name": "time since tick 0", "units": "s"}


def _as_utc(stored: np.ndarray) -> np.ndarray:
    return stored.astype(np.int64).view("datetime64[ns]")


def _as_seconds(tick_rate: float, stored: np.ndarray) -> np.ndarray:
    return stored / tick_rate
