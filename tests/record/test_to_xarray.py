"""Datasets of what is in memory: the truth is what was sent, and `speadrx.open` gives the same of a recording."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import spead2

import speadrx
from handmade import Heap, encode
from recordings import (
    ANTENNA_ID,
    ANTENNAS,
    BATCHES,
    EPOCH,
    SAMPLES,
    SIDE_ID,
    STEP,
    TICK_RATE,
    TIME_ID,
    heaps_of,
    layout_of,
    receiver,
    status,
    value,
)
from speadrx import Axis, Field, Recorder, SideItem, TimeAxis

xarray = pytest.importorskip("xarray")
pytest.importorskip("zarr")

HEAPS = heaps_of([3, 4, 7, 8], missing=[(13, 1), (30, 2), (35, 0)])
FIRST = 3 * BATCHES
SHAPE = (6 * BATCHES, ANTENNAS)


def check(dataset, first: int, length: int, heaps, *, missing: float = 0) -> None:
    """Every number, by the formula."""
    assert dataset.data.dims == ("time", "antenna", "sample")
    assert dataset.sizes["time"] == length
    there = set(heaps)
    begin = np.datetime64(EPOCH * 1000, "ms")
    for i, antenna in np.ndindex(length, ANTENNAS):
        heap = dataset.isel(time=i).sel(antenna=antenna)
        came = (first + i, antenna) in there
        assert heap.present == came
        assert heap.status == (status(first + i, antenna) if came else 0)
        assert heap.time == begin + np.timedelta64((first + i) * STEP * 1000 // TICK_RATE, "ms")
        wanted = [value(first + i, antenna, j) if came else missing for j in range(SAMPLES)]
        np.testing.assert_array_equal(heap.data.values, wanted)


class TestContents:
    def test_a_reading(self) -> None:
        with receiver(layout_of(), HEAPS) as rx:
            reading = rx.read(chunks=6)
        dataset = reading.to_xarray()
        check(dataset, FIRST, SHAPE[0], HEAPS)
        assert dataset.data.dtype == np.int16
        assert dataset.data.dtype.isnative
        masked = reading.to_xarray(masked=True)
        check(masked, FIRST, SHAPE[0], HEAPS, missing=np.nan)
        assert masked.data.dtype == np.float32
        assert (dataset.attrs["first_timestamp"], dataset.attrs["restarts"]) == (FIRST * STEP, [])

    @pytest.mark.parametrize("kind", ["chunk", "copy"])
    def test_each_chunk(self, kind) -> None:
        """In the place of missing heaps there are zeros, not what came before, and no memory is shared."""
        missing = [(batch, batch % ANTENNAS) for batch in range(0, 80, 5)]
        heaps = heaps_of(range(20), missing)
        found = []
        with receiver(layout_of(), heaps, chunks=3, overwrite_recycled=True) as rx:
            for chunk in rx:
                with chunk:
                    one = chunk if kind == "chunk" else chunk.copy()
                    found.append((one.to_xarray(), one.to_xarray(masked=True)))
        assert len(found) == 20
        for number, (plain, masked) in enumerate(found):
            check(plain, number * BATCHES, BATCHES, heaps)
            check(masked, number * BATCHES, BATCHES, heaps, missing=np.nan)

    def test_fill(self) -> None:
        """A reading has what its receiver fills with."""
        with receiver(layout_of(), HEAPS, fill=-7) as rx:
            check(rx.read(chunks=6).to_xarray(), FIRST, SHAPE[0], HEAPS, missing=-7)

    def test_time_that_begins_again(self) -> None:
        again = heaps_of([700, 701, 702]) + heaps_of([2, 3, 4])
        with receiver(layout_of(), again, max_jump=None) as rx:
            reading = rx.read(chunks=100)
        dataset = reading.to_xarray()
        assert dataset.attrs["restarts"] == list(reading.restarts) != []
        ticks = (dataset.time.values - np.datetime64(EPOCH, "s")) // np.timedelta64(1, "ms")
        np.testing.assert_array_equal(ticks, reading.timestamp)

    def test_nothing_came(self) -> None:
        with receiver(layout_of(), []) as rx:
            dataset = rx.read(chunks=3).to_xarray(masked=True)
        assert dict(dataset.sizes) == {"time": 0, "antenna": ANTENNAS, "sample": SAMPLES}
        assert dataset.attrs["first_timestamp"] is None


PAYLOADS = {(batch, antenna): random.Random(9 * batch + antenna).randbytes(80) for batch, antenna in HEAPS}
FIELDS = (
    Field(name="power", dtype=">f4", shape=(2,)),
    Field(name="time", dtype=">i8"),
    Field(name="gain", dtype="cint16"),
)
LAYOUTS = {
    "uint8": {"dtype": "uint8"},
    "big-endian": {"dtype": ">i4"},
    "floating point": {"dtype": ">f8"},
    "complex integers": {"dtype": "cint8"},
    "wide complex integers": {"dtype": ">cint32"},
    "packed": {"dtype": "int10"},
    "packed complex integers": {"dtype": "cint4"},
    "unknown to Zarr": {"dtype": "longdouble"},
    "records": {"dtype": "uint8", "fields": FIELDS, "heap_shape": (4,)},
    "one record": {"dtype": "uint8", "fields": (Field(name="counts", dtype="u2", shape=(40,)),)},
    "no UTC": {"time": TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES, tick_rate=TICK_RATE)},
    "ticks": {"time": TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES, name="t")},
    "antennas first": {"order": ("antenna", "time")},
    "samples in another order": {
        "dtype": "cint8",
        "heap_shape": (8, 5),
        "heap_axes": ("channel", "spectrum"),
        "samples_order": ("antenna", "channel", "time", "spectrum"),
    },
    "a side item with the name of an array": {"side_items": (SideItem(name="data", item=SIDE_ID, dtype="u64"),)},
    "values of an axis": {"axes": (Axis(name="antenna", item=ANTENNA_ID, values=(2, 0, 1)),)},
}


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_as_a_recording_is_opened(tmp_path, name, is_masked) -> None:
    """Names, dimensions, types, coordinates, units and numbers of the same heaps are the same."""
    layout = layout_of(**{"heap_bytes": 80, "side_items": (), **LAYOUTS[name]})

    def one_receiver() -> speadrx.Receiver:
        queue = spead2.InprocQueue()
        for count, ((batch, antenna), payload) in enumerate(PAYLOADS.items(), 1):
            items = {spead2.HEAP_LENGTH_ID: 80, TIME_ID: batch * STEP, ANTENNA_ID: antenna, SIDE_ID: 7 * count}
            for packet in encode(Heap(items, payload), count, 48):
                queue.add_packet(packet)
        queue.stop()
        return speadrx.Receiver(layout, queue, window=2, chunks=60)

    with one_receiver() as rx, Recorder(rx, tmp_path / "a.zarr", queue=50) as recorder:
        for chunk in recorder:
            chunk.recycle()
    with one_receiver() as rx:
        dataset = rx.read(chunks=100).to_xarray(masked=is_masked)
    with one_receiver() as rx:
        chunks = []
        for chunk in rx:
            with chunk:
                chunks.append(chunk.to_xarray(masked=is_masked))
    opened = speadrx.open(tmp_path / "a.zarr", masked=is_masked)
    attributes = {key: opened.attrs[key] for key in dataset.attrs if key != "restarts"}
    assert dataset.attrs == {**attributes, "restarts": []}
    assert {key: var.dtype for key, var in dataset.variables.items()} == {
        key: var.dtype for key, var in opened.variables.items()
    }
    xarray.testing.assert_identical(dataset.drop_attrs(deep=False), opened.drop_attrs(deep=False))
    (time,) = {"time", "t"} & set(dataset.dims)
    batches = dataset[time].values
    for chunk in chunks:
        xarray.testing.assert_identical(
            chunk.drop_attrs(deep=False), opened.sel({time: chunk[time].values}).drop_attrs(deep=False)
        )
    assert len(chunks) == 4
    assert len(batches) == SHAPE[0]


class TestMistakes:
    def test_without_xarray(self, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "xarray", None)
        with receiver(layout_of(), HEAPS) as rx:
            chunk = next(iter(rx))
            for one in (chunk, chunk.copy(), rx.read(chunks=1)):
                with pytest.raises(ModuleNotFoundError, match=r"to_xarray needs xarray, .* 'speadrx\[xarray\]'"):
                    one.to_xarray()
            chunk.recycle()

    def test_a_recycled_chunk(self) -> None:
        with receiver(layout_of(), HEAPS) as rx:
            chunk = next(iter(rx))
            chunk.recycle()
            with pytest.raises(ValueError, match="in a ring, or was recycled"):
                chunk.to_xarray()
