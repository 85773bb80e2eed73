"""Recordings as xarray Datasets whose numbers are read when they are needed, and what is in memory as such Datasets."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from speadrx._core import __version__
from speadrx.layout.base import DeclarativeLayout
from speadrx.receive.read import Reading

from .numbers import Decode, numbers_of, same
from .part import Stored
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
    skip = opened.begin() * recording.layout.chunk_batches
    length = opened.length() - skip
    axes = [length if axis == stored.time_axis else n for axis, n in enumerate(stored.present.shape)]
    dims = stored.present.dims

    def variable(dims: tuple[str, ...], *args: Any, **kwargs: Any) -> Any:
        return xarray.Variable(dims, xarray.core.indexing.LazilyIndexedArray(LazyArray(*args, skip=skip, **kwargs)))

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
    decode, dtype, attributes = _time(opened.attributes["time_is_utc"], opened.attributes["tick_rate"])
    time = variable((stored.time_name,), opened.group[stored.time_name], 0, [length], (), dtype, decode)
    time.attrs.update(attributes)
    dataset = xarray.Dataset(variables, coordinates, _attributes(opened, part or 0))
    if length <= _MOST_INDEXED:
        return dataset.assign_coords({stored.time_name: time})
    return dataset.assign_coords(xarray.Coordinates({stored.time_name: time}, indexes={}))


def open_tree(
    path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, masked: bool = False
) -> xarray.DataTree:
    """Open all parts of a recording, or of several, as an xarray DataTree. Numbers are read when they are needed.

    A recording has several parts if time began again while it was recorded, and several recordings are made by
    ``speadrx record --split``. ``tree.leaves`` are the parts in order, each with the Dataset that `open` gives.

    Parameters
    ----------
    path
        The folder of a recording: its parts are ``tree["part_0"]``, ``tree["part_1"]`` and so on. Or those of several
        recordings: the parts of ``night_001.zarr`` are ``tree["night_001/part_0"]`` and so on.
    masked
        As for `open`.

    Raises
    ------
    FileNotFoundError, ValueError, ModuleNotFoundError
        As for `open`; or if no recording is given, or two of the same name.
    """
    xarray = import_extra("xarray", "speadrx.open_tree needs")
    if isinstance(path, (str, os.PathLike)):
        return xarray.DataTree.from_dict(_parts(path, "", masked))
    datasets: dict[str, Any] = {}
    for one in path:
        parts = _parts(one, f"{pathlib.Path(one).stem}/", masked)
        if parts.keys() & datasets.keys():
            raise ValueError(f"path: {os.fspath(one)} has the name of another recording that is given")
        datasets |= parts
    if not datasets:
        raise ValueError("path: no recording is given")
    return xarray.DataTree.from_dict(datasets)


def _parts(path: str | os.PathLike[str], prefix: str, masked: bool) -> dict[str, xarray.Dataset]:
    """The parts of a recording by name."""
    first = open_recording(path, part=0, masked=masked)
    others = (open_recording(path, part=part, masked=masked) for part in range(1, first.attrs["parts"]))
    return {f"{prefix}part_{part}": dataset for part, dataset in enumerate([first, *others])}


def dataset_of(reading: Reading, layout: DeclarativeLayout, *, masked: bool) -> xarray.Dataset:
    """Make of what is in memory the Dataset that `open_recording` would make of it on disk."""
    xarray = import_extra("xarray", "to_xarray needs")
    from .lazy import masked as masked_dtype

    stored = Stored(layout, {})
    samples, order = reading.data, layout.declaration._contents.order
    if order is not None:
        samples = samples.transpose(np.argsort(order))
    dims = stored.present.dims
    variables = {}
    for numbers in numbers_of(layout.declaration, stored):
        values = numbers.convert(samples).astype(numbers.dtype, copy=False)
        if masked:
            dtype, mark = masked_dtype(values.dtype)
            values = values.astype(dtype)
            values[~reading.present] = mark
        variables[numbers.name] = ((*dims, *numbers.dims), values)
    variables[stored.present.name] = (dims, reading.present)
    for name, array in stored.side.items():
        assert reading.extra is not None
        variables[array.name] = (dims, reading.extra[name])
    is_utc, tick_rate = reading.time is not None, layout.declaration.time.tick_rate
    decode, _, attributes = _time(is_utc, tick_rate)
    ticks_or_utc = reading.timestamp if reading.time is None else reading.time.view(np.int64)
    coordinates: dict[str, Any] = {array.name: values for array, values in stored.coordinates}
    coordinates[stored.time_name] = (stored.time_name, decode(ticks_or_utc), attributes)
    return xarray.Dataset(
        variables,
        coordinates,
        {
            "version": __version__,
            "layout": layout.declaration.to_toml(),
            "first_timestamp": int(reading.timestamp[0]) if len(reading.timestamp) else None,
            "timestamp_step": layout.chunk_timestamp_step // layout.chunk_batches,
            "tick_rate": tick_rate,
            "time_is_utc": is_utc,
            "restarts": list(reading.restarts),
        },
    )


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
    skipped = opened.begin() * opened.recording.layout.chunk_batches * attributes["timestamp_step"]
    first = attributes["first_timestamp"] + skipped
    more = {"first_timestamp": first, "part": part, "parts": len(opened.recording.attributes["parts"])}
    return {**attributes, **more}


def _time(is_utc: bool, tick_rate: float | None) -> tuple[Decode, np.dtype, dict[str, str]]:
    """How times are made of what is stored, their dtype and their attributes."""
    if is_utc:
        return _as_utc, np.dtype("datetime64[ns]"), {"long_name": "UTC"}
    if tick_rate is None:
        return same, np.dtype(np.int64), {"long_name": "timestamp, in ticks"}
    decode = functools.partial(_as_seconds, float(tick_rate))
    return decode, np.dtype(np.float64), {"long_name": "time since tick 0", "units": "s"}


def _as_utc(stored: np.ndarray) -> np.ndarray:
    return stored.astype(np.int64).view("datetime64[ns]")


def _as_seconds(tick_rate: float, stored: np.ndarray) -> np.ndarray:
    return stored / tick_rate
