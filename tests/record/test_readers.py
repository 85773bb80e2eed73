"""Recordings as others read them: zarr-python, xarray, tensorstore and zarrs see the same."""

from __future__ import annotations

import random

import numpy as np
import pytest
import spead2

import speadrx
from handmade import Heap, encode
from recordings import ANTENNAS, BATCHES, EPOCH, SAMPLES, heaps_of, layout_of, receiver, status, value
from speadrx import Recorder

zarr = pytest.importorskip("zarr")

HEAPS = heaps_of([0, 1, 4, 5], missing=[(1, 1), (18, 2)])
SHAPE = (6 * BATCHES, ANTENNAS)


@pytest.fixture
def path(tmp_path):
    with receiver(layout_of(), HEAPS, chunks=60) as rx, Recorder(rx, tmp_path / "a.zarr", queue=50) as recorder:
        for chunk in recorder:
            chunk.recycle()
    return tmp_path / "a.zarr"


@pytest.fixture(scope="module")
def wanted() -> dict[str, np.ndarray]:
    present, side = np.zeros(SHAPE, bool), np.zeros(SHAPE, np.uint16)
    data = np.zeros((*SHAPE, SAMPLES), np.int16)
    for batch, antenna in HEAPS:
        present[batch, antenna], side[batch, antenna] = True, status(batch, antenna)
        data[batch, antenna] = [value(batch, antenna, j) for j in range(SAMPLES)]
    return {"data": data, "present": present, "status": side}


def test_zarr_python(path, wanted) -> None:
    group = zarr.open_group(path, mode="r")
    for name, array in wanted.items():
        np.testing.assert_array_equal(group[name][:], array)
    assert group["data"].metadata.dimension_names == ("time", "antenna", "sample")
    assert group.attrs["speadrx"]["account"]["present"] == len(HEAPS)
    assert set(group.array_keys()) == {*wanted, "time", "antenna"}


def test_xarray(path, wanted) -> None:
    xarray = pytest.importorskip("xarray")
    with xarray.open_zarr(path, chunks=None) as dataset:
        for name, array in wanted.items():
            np.testing.assert_array_equal(dataset[name].values, array)
        times = [np.datetime64(EPOCH * 1000 + batch * 16, "ms") for batch in range(SHAPE[0])]
        np.testing.assert_array_equal(dataset.time.values, np.array(times))
        there = dataset.data.where(dataset.present).sel(antenna=1)
        assert np.isnan(there.values[1]).all()
        assert there.values[0].tolist() == [value(0, 1, j) for j in range(SAMPLES)]


def test_tensorstore(path, wanted) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    for name, array in wanted.items():
        store = {"driver": "file", "path": str(path / name)}
        opened = tensorstore.open({"driver": "zarr3", "kvstore": store}).result()
        np.testing.assert_array_equal(opened.read().result(), array)
        assert opened.domain.labels[0] == "time"


def test_zarrs(path, wanted) -> None:
    pytest.importorskip("zarrs")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        group = zarr.open_group(path, mode="r")
        for name, array in wanted.items():
            np.testing.assert_array_equal(group[name][:], array)


@pytest.mark.parametrize(
    ("dtype", "dims"),
    [
        ("uint8", ("sample",)),
        (">u2", ("sample",)),
        ("<i8", ("sample",)),
        (">f4", ("sample",)),
        ("complex64", ("sample",)),
        (">c16", ("sample",)),
        ("float16", ("sample",)),
        ("bool", ("sample",)),
        ("cint8", ("sample", "complex")),
        (">cint16", ("sample", "complex")),
        ("int10", ("byte",)),
        ("longdouble", ("sample", "byte")),
    ],
)
def test_each_kind_of_number(tmp_path, dtype, dims) -> None:
    """Each is read as numpy reads the bytes that were sent."""
    layout = layout_of(dtype=dtype, heap_bytes=80, side_items=())
    payload = random.Random(dtype).randbytes(80)
    if dtype == "bool":
        payload = bytes(byte & 1 for byte in payload)
    queue = spead2.InprocQueue()
    items = {spead2.HEAP_LENGTH_ID: 80, 0x1600: 0, 0x4101: 1}
    for packet in encode(Heap(items, payload), 1, 48):
        queue.add_packet(packet)
    queue.stop()
    with speadrx.Receiver(layout, queue) as rx, Recorder(rx, tmp_path / "a.zarr") as recorder:
        for chunk in recorder:
            chunk.recycle()
    array = zarr.open_group(tmp_path / "a.zarr", mode="r")["data"]
    assert array.metadata.dimension_names[2:] == dims
    plain = {"cint8": "i1", ">cint16": ">i2", "int10": "u1", "longdouble": "u1"}.get(dtype, dtype)
    read = array[0, 1]
    assert read.dtype.newbyteorder("=") == np.dtype(plain).newbyteorder("=")
    assert read.astype(plain).tobytes() == payload
