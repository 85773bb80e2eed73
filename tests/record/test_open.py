"""`speadrx.open`: the truth is the bytes that were sent, and what zarr-python reads."""

from __future__ import annotations

import builtins
import json
import pathlib
import pickle
import random
import shutil
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import spead2

import speadrx
from handmade import Heap, encode
from loopback import wait_for
from recordings import (
    ANTENNA_ID,
    ANTENNAS,
    BATCHES,
    EPOCH,
    SAMPLES,
    STEP,
    TICK_RATE,
    TIME_ID,
    heaps_of,
    layout_of,
    receiver,
    status,
    value,
)
from speadrx import Axis, Field, Layout, Recorder, SideItem, TimeAxis
from speadrx.record.recording import Recording

xarray = pytest.importorskip("xarray")
zarr = pytest.importorskip("zarr")

HEAPS = heaps_of([3, 4, 7, 8], missing=[(13, 1), (30, 2), (35, 0)])
FIRST = 3 * BATCHES
SHAPE = (6 * BATCHES, ANTENNAS)


def record(path: pathlib.Path, heaps, layout: Layout | None = None, **kwargs) -> pathlib.Path:
    """Record heaps whose numbers follow from a formula."""
    select = kwargs.pop("select", None)
    with (
        receiver(layout or layout_of(), heaps, **{"chunks": 60, **kwargs}) as rx,
        Recorder(rx, path, queue=50, select=select) as recorder,
    ):
        for chunk in recorder:
            chunk.recycle()
    return path


def record_bytes(path: pathlib.Path, layout: Layout, payloads: dict[tuple[int, int], bytes]) -> pathlib.Path:
    """Record heaps with any bytes, by batch and antenna."""
    queue = spead2.InprocQueue()
    for count, ((batch, antenna), payload) in enumerate(payloads.items(), 1):
        items = {spead2.HEAP_LENGTH_ID: len(payload), TIME_ID: batch * STEP, ANTENNA_ID: antenna}
        for packet in encode(Heap(items, payload), count, 48):
            queue.add_packet(packet)
    queue.stop()
    with speadrx.Receiver(layout, queue, chunks=60) as rx, Recorder(rx, path, queue=50) as recorder:
        for chunk in recorder:
            chunk.recycle()
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> pathlib.Path:
    return record(tmp_path_factory.mktemp("recording") / "night.zarr", HEAPS)


@pytest.fixture(scope="module")
def wanted() -> np.ndarray:
    """The numbers that were sent, NaN for those that were not."""
    data = np.full((*SHAPE, SAMPLES), np.nan)
    for batch, antenna in HEAPS:
        data[batch - FIRST, antenna] = [value(batch, antenna, j) for j in range(SAMPLES)]
    return data


class TestContents:
    def test_numbers(self, path, wanted) -> None:
        dataset = speadrx.open(path)
        present = ~np.isnan(wanted[..., 0])
        np.testing.assert_array_equal(dataset.present.values, present)
        np.testing.assert_array_equal(dataset.data.values, np.nan_to_num(wanted))
        assert (dataset.data.dtype, dataset.data.dims) == (np.int16, ("time", "antenna", "sample"))
        for batch, antenna in HEAPS:
            assert dataset.status.values[batch - FIRST, antenna] == status(batch, antenna)

    def test_as_zarr_python_reads_them(self, path) -> None:
        dataset, group = speadrx.open(path), zarr.open_group(path, mode="r")
        for name in ("data", "present", "status"):
            np.testing.assert_array_equal(dataset[name].values, group[name][:])
        assert dataset.time.values.astype(np.int64).tolist() == group["time"][:].tolist()

    def test_masked(self, path, wanted) -> None:
        dataset = speadrx.open(path, masked=True)
        assert dataset.data.dtype == np.float32
        np.testing.assert_array_equal(dataset.data.values, wanted)
        plain = speadrx.open(path)
        xarray.testing.assert_equal(dataset.data, plain.data.where(plain.present))
        assert dataset.status.dtype == np.uint16
        assert not np.isnan(dataset.data.sel(antenna=1).mean("time")).any()

    def test_utc(self, path) -> None:
        time = speadrx.open(path).time
        assert time.dtype == np.dtype("datetime64[ns]")
        begin = np.datetime64(EPOCH * 1000 + FIRST * STEP, "ms")
        np.testing.assert_array_equal(time.values, begin + np.arange(SHAPE[0]) * np.timedelta64(STEP, "ms"))
        assert TICK_RATE == 1000

    def test_select_by_values(self, path, wanted) -> None:
        dataset = speadrx.open(path, masked=True)
        begin = np.datetime64(EPOCH * 1000 + 16 * STEP, "ms")
        found = dataset.data.sel(time=slice(begin, None), antenna=[2, 0])
        np.testing.assert_array_equal(found.values, wanted[16 - FIRST :][:, [2, 0]])

    @pytest.mark.parametrize("is_masked", [False, True])
    def test_any_index(self, path, wanted, is_masked) -> None:
        """Any selection is that which numpy makes of the whole."""
        rng = random.Random(16)
        data = speadrx.open(path, masked=is_masked).data
        whole = wanted if is_masked else np.nan_to_num(wanted)

        def key(size: int):
            kind = rng.randrange(5)
            if kind == 0:
                return rng.randrange(-size, size)
            if kind == 1:
                return [rng.randrange(size) for _ in range(rng.randrange(4))]
            if kind == 2:
                return slice(None, None, rng.choice([-3, -1, 2, 5]))
            begin, end = sorted(rng.randrange(size + 1) for _ in range(2))
            return slice(begin, end)

        for _ in range(200):
            keys = [key(size) for size in data.shape]
            found = data[tuple(keys)].values
            expected = whole
            for axis, k in reversed(list(enumerate(keys))):
                expected = expected[(slice(None),) * axis + (np.array(k, int) if isinstance(k, list) else k,)]
            np.testing.assert_array_equal(found, expected, err_msg=str(keys))

    def test_points(self, path, wanted) -> None:
        data = speadrx.open(path, masked=True).data
        times, antennas = xarray.DataArray([0, 5, 23], dims="point"), xarray.DataArray([2, 1, 0], dims="point")
        found = data.isel(time=times, antenna=antennas).transpose("point", "sample")
        np.testing.assert_array_equal(found.values, wanted[[0, 5, 23], [2, 1, 0]])

    def test_attributes(self, path) -> None:
        attributes = speadrx.open(path).attrs
        assert attributes["account"]["present"] == len(HEAPS)
        assert attributes["complete"] is True
        assert attributes["first_timestamp"] == FIRST * STEP
        assert (attributes["part"], attributes["parts"]) == (0, 1)
        assert 'dtype = ">i2"' in attributes["layout"]

    def test_selected_antennas(self, tmp_path, wanted) -> None:
        dataset = speadrx.open(record(tmp_path / "a.zarr", HEAPS, select={"antenna": [2, 0]}), masked=True)
        assert dataset.antenna.values.tolist() == [0, 2]
        np.testing.assert_array_equal(dataset.data.values, wanted[:, [0, 2]])

    def test_time_is_not_the_first_axis(self, tmp_path, wanted) -> None:
        path = record(tmp_path / "a.zarr", HEAPS, layout_of(order=("antenna", "time")))
        for is_masked, whole in ((True, wanted), (False, np.nan_to_num(wanted))):
            data = speadrx.open(path, masked=is_masked).data
            assert data.dims == ("antenna", "time", "sample")
            np.testing.assert_array_equal(data.values, whole.swapaxes(0, 1))
            np.testing.assert_array_equal(data[1, [9, 2, 3], 1:].values, whole[[9, 2, 3], 1, 1:])

    def test_a_copy_for_other_processes(self, path, wanted) -> None:
        dataset = pickle.loads(pickle.dumps(speadrx.open(path, masked=True)))
        np.testing.assert_array_equal(dataset.data.values, wanted)


class TestTimes:
    def test_seconds_without_an_epoch(self, tmp_path) -> None:
        time = TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES, tick_rate=TICK_RATE)
        dataset = speadrx.open(record(tmp_path / "a.zarr", HEAPS, layout_of(time=time)))
        wanted = [(FIRST + i) * STEP / TICK_RATE for i in range(SHAPE[0])]
        assert dataset.time.values.tolist() == wanted
        assert dataset.time.attrs["units"] == "s"

    def test_ticks_without_a_rate(self, tmp_path) -> None:
        time = TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES)
        dataset = speadrx.open(record(tmp_path / "a.zarr", HEAPS, layout_of(time=time)))
        assert dataset.time.dtype == np.int64
        assert dataset.time.values.tolist() == [(FIRST + i) * STEP for i in range(SHAPE[0])]

    def test_a_time_axis_of_another_name(self, tmp_path, wanted) -> None:
        time = TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES, tick_rate=TICK_RATE, epoch=EPOCH, name="t")
        dataset = speadrx.open(record(tmp_path / "a.zarr", HEAPS, layout_of(time=time)), masked=True)
        np.testing.assert_array_equal(dataset.data.transpose("t", "antenna", "sample").values, wanted)
        assert dataset.t.dtype == np.dtype("datetime64[ns]")

    def test_more_than_can_be_indexed(self, path, wanted, monkeypatch) -> None:
        """Such times are read when they are needed, too."""
        monkeypatch.setattr("speadrx.record.dataset._MOST_INDEXED", SHAPE[0] - 1)
        dataset = speadrx.open(path, masked=True)
        assert "time" not in dataset.indexes
        assert dataset.time[2].values == np.datetime64(EPOCH * 1000 + (FIRST + 2) * STEP, "ms")
        np.testing.assert_array_equal(dataset.data.isel(time=slice(4, 9)).values, wanted[4:9])

    def test_parts(self, tmp_path) -> None:
        before, after = heaps_of([700, 701, 702]), heaps_of([2, 3, 4])
        path = record(tmp_path / "a.zarr", before + after, max_jump=None)
        with pytest.raises(ValueError, match=r"has 2 parts, since time began again .* part=0 to part=1"):
            speadrx.open(path)
        for part, first, heaps in ((0, 2800, before), (1, 8, after)):
            dataset = speadrx.open(path, part=part)
            assert (dataset.attrs["part"], dataset.attrs["parts"]) == (part, 2)
            first = dataset.attrs["first_timestamp"] // STEP
            there = {(first + i, a) for i, a in zip(*np.nonzero(dataset.present.values), strict=True)}
            assert there <= set(heaps)
            assert there
            for batch, antenna in there:
                wanted = [value(batch, antenna, j) for j in range(SAMPLES)]
                assert dataset.data.values[batch - first, antenna].tolist() == wanted
        for part in (2, -1):
            with pytest.raises(ValueError, match="counted from 0"):
                speadrx.open(path, part=part)


def signed(number: int, bits: int) -> int:
    return number - 2**bits if number >> (bits - 1) else number


def unpacked(payload: bytes, bits: int, *, is_signed: bool = True, little: bool = False) -> list[int]:
    """The samples in a payload, by arithmetic on one large integer."""
    whole = int.from_bytes(payload, "little" if little else "big")
    n = 8 * len(payload) // bits
    places = range(n) if little else range(n - 1, -1, -1)
    numbers = [whole >> (place * bits) & (2**bits - 1) for place in places]
    return [signed(number, bits) for number in numbers] if is_signed else numbers


BYTES = {(batch, antenna): random.Random(7 * batch + antenna).randbytes(80) for batch, antenna in HEAPS}


def numbers_of(payload: bytes, dtype: str) -> list:
    """What Python reads in the payload."""
    if dtype in ("int10", "uint4", "<int10", "uint1"):
        bits = int("".join(filter(str.isdigit, dtype)))
        return unpacked(payload, bits, is_signed="u" not in dtype, little=dtype.startswith("<"))
    if dtype.lstrip(">").startswith("cint"):
        bits = int(dtype.lstrip(">").removeprefix("cint"))
        order = ">" if dtype.startswith(">") else "<"
        parts = (
            unpacked(payload, 4) if bits == 4 else struct.unpack(f"{order}{640 // bits}{' bh i'[bits // 8]}", payload)
        )
        return [complex(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]
    code = {">i2": ">40h", "<u4": "<20I", ">i8": ">10q", "uint8": "80B", "<f4": "<20f", ">f8": ">10d"}[dtype]
    return list(struct.unpack(code, payload))


@pytest.mark.parametrize(
    ("dtype", "plain", "masked"),
    [
        ("uint8", "u1", "f4"),
        (">i2", "i2", "f4"),
        ("<u4", "u4", "f8"),
        (">i8", "i8", "f8"),
        ("<f4", "f4", "f4"),
        (">f8", "f8", "f8"),
        ("cint8", "c8", "c8"),
        (">cint16", "c8", "c8"),
        ("cint32", "c16", "c16"),
        ("int10", "i2", "f4"),
        ("<int10", "i2", "f4"),
        ("uint4", "u1", "f4"),
        ("uint1", "u1", "f4"),
        ("cint4", "c8", "c8"),
    ],
)
def test_each_kind_of_number(tmp_path, dtype, plain, masked) -> None:
    path = record_bytes(tmp_path / "a.zarr", layout_of(dtype=dtype, heap_bytes=80, side_items=()), BYTES)
    dataset, with_nan = speadrx.open(path), speadrx.open(path, masked=True)
    assert (dataset.data.dtype, with_nan.data.dtype) == (np.dtype(plain), np.dtype(masked))
    assert dataset.data.dims == ("time", "antenna", "sample")
    for i, antenna in np.ndindex(SHAPE):
        there, masked_there = dataset.data[i, antenna], with_nan.data[i, antenna].values
        if (FIRST + i, antenna) not in BYTES:
            assert not there.any()
            assert np.isnan(masked_there).all()
            continue
        wanted = np.array(numbers_of(BYTES[FIRST + i, antenna], dtype), dtype=np.dtype(plain))
        np.testing.assert_array_equal(there.values, wanted)
        np.testing.assert_array_equal(masked_there, wanted.astype(masked))
    n = dataset.sizes["sample"]
    some = dataset.data.isel(antenna=1, sample=[n - 1, 0], time=slice(None, None, 7)).values
    np.testing.assert_array_equal(some, dataset.data.values[::7, 1][:, [n - 1, 0]])


def test_dimensions_of_heaps(tmp_path) -> None:
    """Samples that do not fill the last byte, in several dimensions with names."""
    layout = layout_of(
        dtype="int10", heap_bytes=79, heap_shape=(3, 21), heap_axes=("channel", "spectrum"), side_items=()
    )
    dataset = speadrx.open(
        record_bytes(tmp_path / "a.zarr", layout, {heap: payload[:79] for heap, payload in BYTES.items()})
    )
    assert dataset.data.dims == ("time", "antenna", "channel", "spectrum")
    for (batch, antenna), payload in BYTES.items():
        wanted = unpacked(payload, 10)[:63]
        assert dataset.data[batch - FIRST, antenna].values.reshape(-1).tolist() == wanted


def test_a_chunk_that_is_not_compressed_takes_no_memory(tmp_path) -> None:
    layout = layout_of(heap_bytes=2**20, dtype="uint8", side_items=())
    payloads = {(batch, antenna): bytes([16 * batch + antenna]) * 2**20 for batch in range(4) for antenna in range(3)}
    recording = Recording(record_bytes(tmp_path / "a.zarr", layout, payloads))
    part = recording.part(0)
    tracemalloc.start()
    try:
        numbers = part.read(recording.stored.data, 0)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert numbers[:, :, -1].tolist() == [[16 * batch + antenna for antenna in range(3)] for batch in range(4)]


def test_names_do_not_collide(tmp_path) -> None:
    """Side items with names that recordings need, or that others have then; each with its own values."""
    names = ("data", "item_data", "part_1", "antenna")
    layout = layout_of(side_items=tuple(SideItem(name=name, item=0x4200 + i) for i, name in enumerate(names)))
    packets = []
    for count, (batch, antenna) in enumerate([*heaps_of([700, 701]), *heaps_of([2, 3])], 1):
        items = {0x4200 + i: 10 * i + antenna for i in range(len(names))}
        items |= {spead2.HEAP_LENGTH_ID: 2 * SAMPLES, TIME_ID: batch * STEP, ANTENNA_ID: antenna}
        packets += encode(Heap(items, bytes(2 * SAMPLES)), count, 48)
    queue = spead2.InprocQueue()
    for packet in packets:
        queue.add_packet(packet)
    queue.stop()
    with (
        speadrx.Receiver(layout, queue, window=2, chunks=6) as rx,
        speadrx.Recorder(rx, tmp_path / "a.zarr", wait=True) as recorder,
    ):
        for chunk in recorder:
            chunk.recycle()
    for part in (0, 1):
        dataset = speadrx.open(tmp_path / "a.zarr", part=part, masked=True)
        stored = ("item_data", "item_item_data", "item_part_1", "item_antenna")
        assert set(dataset.data_vars) == {"data", "present", *stored}
        for i, name in enumerate(stored):
            for antenna in range(3):
                there = dataset[name].values[:, antenna][dataset.present.values[:, antenna]]
                assert set(there.tolist()) == {10 * i + antenna}


@pytest.mark.parametrize("dtype", ["cint8", "int10", "f2>"])
@pytest.mark.parametrize("name", ["byte", "complex"])
def test_axes_with_names_of_dimensions(tmp_path, name, dtype) -> None:
    fields = (Field(name=name, dtype=">i2"), Field(name=f"field_{name}", dtype=">i2")) if dtype == "f2>" else ()
    axes = (Axis(name=name, item=ANTENNA_ID, size=3),)
    changes = {"fields": fields, "heap_shape": (4,)} if fields else {"dtype": dtype}
    layout = layout_of(
        **{"dtype": "uint8", "heap_bytes": 80 if not fields else 16, **changes}, axes=axes, side_items=()
    )
    payloads = {heap: payload[: layout.heap_bytes] for heap, payload in BYTES.items()}
    dataset = speadrx.open(record_bytes(tmp_path / "a.zarr", layout, payloads))
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    dims = group["data"].metadata.dimension_names
    assert len(set(dims)) == len(dims)
    for (batch, antenna), payload in payloads.items():
        heap = dataset.isel({"time": batch - FIRST, name: antenna})
        if fields:
            pairs = np.frombuffer(payload, ">i2").reshape(4, 2)
            assert heap[f"field_{name}"].values.tolist() == pairs[:, 0].tolist()
            assert heap[f"field_field_{name}"].values.tolist() == pairs[:, 1].tolist()
        elif dtype == "cint8":
            parts = np.frombuffer(payload, "i1").reshape(-1, 2)
            assert heap.data.values.tolist() == (parts[:, 0] + 1j * parts[:, 1]).tolist()
        else:
            assert heap.data.values.tolist() == unpacked(payload, 10)


@pytest.mark.parametrize("name", ["data", "present", "part_1"])
def test_axes_that_cannot_be_called_so(tmp_path, name) -> None:
    for changes in (
        {"axes": (Axis(name=name, item=ANTENNA_ID, size=3),)},
        {"time": TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES, name=name)},
    ):
        layout = layout_of(**changes)
        with (
            speadrx.Receiver(layout, spead2.InprocQueue(), window=2, chunks=6) as rx,
            pytest.raises(ValueError, match=f"an axis is called '{name}'"),
        ):
            speadrx.Recorder(rx, tmp_path / "a.zarr")
        assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize(("heap_shape", "dims"), [((4,), ("sample",)), ((2, 2), ("sample_0", "sample_1"))])
def test_records(tmp_path, heap_shape, dims) -> None:
    """Each field is a variable; what has the name of another is called otherwise."""
    fields = (
        Field(name="power", dtype=">f4", shape=(2,)),
        Field(name="count", dtype="uint16"),
        Field(name="time", dtype=">i8"),
        Field(name="gain", dtype="cint8"),
    )
    layout = layout_of(dtype="uint8", fields=fields, heap_bytes=80, heap_shape=heap_shape, side_items=())
    dataset = speadrx.open(record_bytes(tmp_path / "a.zarr", layout, BYTES), masked=True)
    assert dataset.power.dims == ("time", "antenna", *dims, "power_0")
    assert set(dataset.data_vars) == {"power", "count", "field_time", "gain", "present"}
    for (batch, antenna), payload in BYTES.items():
        heap = dataset.isel(time=batch - FIRST, antenna=antenna)
        records = [struct.unpack_from(">ff", payload, 20 * i) for i in range(4)]
        np.testing.assert_array_equal(heap.power.values.reshape(4, 2), np.array(records, np.float32))
        assert heap["count"].values.reshape(-1).tolist() == [
            struct.unpack_from("<H", payload, 20 * i + 8)[0] for i in range(4)
        ]
        times = np.array([struct.unpack_from(">q", payload, 20 * i + 10)[0] for i in range(4)], np.float64)
        np.testing.assert_array_equal(heap.field_time.values.reshape(-1), times)
        gains = [complex(*struct.unpack_from("bb", payload, 20 * i + 18)) for i in range(4)]
        assert heap.gain.values.reshape(-1).tolist() == gains
    assert np.isnan(dataset.gain.values[1, 1]).all()


def test_a_type_that_zarr_does_not_know(tmp_path) -> None:
    path = record_bytes(tmp_path / "a.zarr", layout_of(dtype="longdouble", heap_bytes=80, side_items=()), BYTES)
    data = speadrx.open(path).data
    assert (data.dims, data.dtype) == (("time", "antenna", "sample"), np.dtype("longdouble"))
    for (batch, antenna), payload in BYTES.items():
        assert data[batch - FIRST, antenna].values.tobytes() == payload
    assert np.isnan(speadrx.open(path, masked=True).data[1, 1].values).all()


class TestLazy:
    @pytest.fixture
    def opened(self, monkeypatch) -> list[str]:
        """The names of the files of chunks that are read."""
        names: list[str] = []
        real = pathlib.Path.open

        def counting(self, mode="r", *args, **kwargs):
            if self.name.startswith("c.") and "r" in mode:
                names.append(f"{self.parent.name}/{self.name}")
            return real(self, mode, *args, **kwargs)

        monkeypatch.setattr(pathlib.Path, "open", counting)
        return names

    @pytest.mark.parametrize("is_masked", [False, True])
    def test_no_more_is_read_than_is_needed(self, path, opened, is_masked) -> None:
        dataset = speadrx.open(path, masked=is_masked)
        assert {name.partition("/")[0] for name in opened} <= {"time", "antenna"}
        opened.clear()
        repr(dataset)
        chosen = dataset.data.sel(antenna=2).isel(sample=0)[5:7]
        assert not opened
        assert chosen.shape == (2,)
        _ = chosen.values
        assert opened[0] == "data/c.1.0.0"
        assert set(opened) == {"data/c.1.0.0", "present/c.1.0"} if is_masked else {"data/c.1.0.0"}
        opened.clear()
        _ = dataset.data[[5, 1, 6]].values  # a chunk is read once, in whatever order
        assert sorted(name for name in opened if "data" in name) == ["data/c.0.0.0", "data/c.1.0.0"]

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", ["uint8", "int10"])
    def test_more_than_memory(self, tmp_path, dtype) -> None:
        """A recording of which no more than a chunk fits into the memory that is left."""
        heap_bytes, chunks = 5 * 10**5, 30
        layout = Layout(
            heap_bytes=heap_bytes,
            dtype=dtype,
            time=TimeAxis(item=TIME_ID, step=STEP, batches=8),
            axes=(Axis(name="antenna", item=ANTENNA_ID, size=1),),
        )
        queue = spead2.InprocQueue()
        for batch in range(8 * chunks):
            payload = struct.pack("<H", batch) * (heap_bytes // 2)
            items = {spead2.HEAP_LENGTH_ID: heap_bytes, TIME_ID: batch * STEP, ANTENNA_ID: 0}
            for packet in encode(Heap(items, payload, n_packets=10), batch + 1, 48):
                queue.add_packet(packet)
        queue.stop()
        with speadrx.Receiver(layout, queue) as rx, Recorder(rx, tmp_path / "a.zarr", wait=True) as recorder:
            for chunk in recorder:
                chunk.recycle()
        program = (
            "import resource, sys, speadrx\n"
            "dataset = speadrx.open(sys.argv[1], masked=True)\n"
            "dataset.data[0, 0, 0].values\n"  # all that is imported is there now
            "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
            "limit = used + 100 * 2**20\n"
            "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
            "print(*dataset.data[:, 0, 1].astype(int).values)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "a.zarr")],
            env={"PYTHONPATH": ":".join(sys.path), "MALLOC_ARENA_MAX": "2"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not done.returncode, done.stderr
        payloads = (struct.pack("<H", batch) * 5 for batch in range(8 * chunks))
        wanted = [unpacked(payload, 10)[1] if dtype == "int10" else payload[1] for payload in payloads]
        assert list(map(int, done.stdout.split())) == wanted


class TestUnfinished:
    def test_a_recording_that_grows(self, tmp_path, wanted) -> None:
        """What has come so far is there, and no more than that."""
        with receiver(layout_of(), HEAPS, chunks=60) as rx:
            recorder = Recorder(rx, tmp_path / "a.zarr", queue=50, wait=True)
            lengths = []
            for chunk in recorder:
                chunk.recycle()
                wait_for(lambda: not recorder.stats().queued)
                dataset = speadrx.open(tmp_path / "a.zarr", masked=True)
                assert dataset.attrs["complete"] is False
                np.testing.assert_array_equal(dataset.data.values, wanted[: dataset.sizes["time"]])
                lengths.append(dataset.sizes["time"] // BATCHES)
            assert lengths == [1, 2, 5, 6]
            recorder.close()
        assert speadrx.open(tmp_path / "a.zarr").attrs["complete"] is True

    def test_killed(self, tmp_path, wanted) -> None:
        program = (
            "import os, sys, loopback, recordings, speadrx, test_heaps\n"
            "with recordings.receiver(recordings.layout_of(), test_heaps.HEAPS, chunks=60) as rx:\n"
            "    recorder = speadrx.Recorder(rx, sys.argv[1], queue=50)\n"
            "    for chunk in recorder:\n"
            "        chunk.recycle()\n"
            "        loopback.wait_for(lambda: not recorder.stats().queued)\n"
            "    os.kill(os.getpid(), 9)\n"
        )
        (tmp_path / "test_heaps.py").write_text(f"HEAPS = {HEAPS}\n", "utf-8")
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "a.zarr")],
            env={"PYTHONPATH": ":".join([str(tmp_path), *sys.path])},
            check=False,
        )
        assert done.returncode == -9
        dataset = speadrx.open(tmp_path / "a.zarr", masked=True)
        assert dataset.attrs["complete"] is False
        np.testing.assert_array_equal(dataset.data.values, wanted)
        assert len(dataset.time) == SHAPE[0]


class TestMistakes:
    def test_nothing_there(self, tmp_path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no such recording.*a\.zarr"):
            speadrx.open(tmp_path / "a.zarr")

    def test_a_file(self, tmp_path) -> None:
        (tmp_path / "a.pcap").write_bytes(b"")
        with pytest.raises(ValueError, match="is not a recording, but a file"):
            speadrx.open(tmp_path / "a.pcap")

    def test_any_folder(self, tmp_path) -> None:
        with pytest.raises(ValueError, match="is not a recording: there is no zarr"):
            speadrx.open(tmp_path)

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"attributes": {"speadrx": 3}}', '{"attributes": {}}', "\xff"])
    def test_zarr_of_others(self, tmp_path, text) -> None:
        (tmp_path / "zarr.json").write_text(text, "latin-1")
        with pytest.raises(ValueError, match="is not a recording that speadrx has made"):
            speadrx.open(tmp_path)

    def test_a_part(self, tmp_path) -> None:
        path = record(tmp_path / "a.zarr", heaps_of([700, 701]) + heaps_of([2, 3]), max_jump=None)
        with pytest.raises(ValueError, match=r"is a part of a recording: open .*a\.zarr instead"):
            speadrx.open(path / "part_1")

    def test_nothing_was_recorded(self, tmp_path) -> None:
        with pytest.raises(ValueError, match="holds nothing: no heap had come"):
            speadrx.open(record(tmp_path / "a.zarr", []))

    def test_a_newer_format(self, tmp_path) -> None:
        record(tmp_path / "a.zarr", HEAPS)
        document = json.loads((tmp_path / "a.zarr/zarr.json").read_text("utf-8"))
        document["attributes"]["speadrx"].update(format=2, version="9.9")
        (tmp_path / "a.zarr/zarr.json").write_text(json.dumps(document), "utf-8")
        with pytest.raises(ValueError, match=r"has format 2, of speadrx 9\.9, but .* reads format 1: do pip install"):
            speadrx.open(tmp_path / "a.zarr")

    @pytest.mark.parametrize("layout", [3, "heap_bytes = 0", "no TOML"])
    def test_a_damaged_layout(self, tmp_path, layout) -> None:
        record(tmp_path / "a.zarr", HEAPS)
        document = json.loads((tmp_path / "a.zarr/zarr.json").read_text("utf-8"))
        document["attributes"]["speadrx"]["layout"] = layout
        (tmp_path / "a.zarr/zarr.json").write_text(json.dumps(document), "utf-8")
        with pytest.raises(ValueError, match=r"a\.zarr is damaged"):
            speadrx.open(tmp_path / "a.zarr")

    def test_a_part_that_is_not_there(self, tmp_path) -> None:
        path = record(tmp_path / "a.zarr", heaps_of([700, 701]) + heaps_of([2, 3]), max_jump=None)
        shutil.rmtree(path / "part_1")
        document = json.loads((path / "zarr.json").read_text("utf-8"))
        document.pop("consolidated_metadata", None)
        (path / "zarr.json").write_text(json.dumps(document), "utf-8")
        with pytest.raises(ValueError, match=r"a\.zarr is damaged: part part_1 lacks 'part_1'"):
            speadrx.open(path, part=1)

    @pytest.mark.parametrize("missing", ["xarray", "zarr"])
    def test_without_the_extra(self, path, monkeypatch, missing) -> None:
        monkeypatch.setitem(sys.modules, missing, None)
        with pytest.raises(
            ModuleNotFoundError, match=rf"needs? .*{missing}|with {missing}.* pip install 'speadrx\[xarray\]'"
        ):
            speadrx.open(path)


def test_a_star_import_leaves_open_as_it_is() -> None:
    names: dict = {}
    exec("from speadrx import *", names)
    assert "open" not in names
    assert builtins.open is not speadrx.open
    assert "open" in dir(speadrx)
