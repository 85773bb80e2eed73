"""Recordings that are compressed: every reader that is not ours sees what was sent."""

from __future__ import annotations

import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import numpy as np
import pytest

import speadrx
from loopback import wait_for
from recordings import (
    ANTENNAS,
    BATCHES,
    SAMPLES,
    STEP,
    attributes,
    heaps_of,
    layout_of,
    receiver,
    status,
    value,
)
from speadrx import Recorder

zarr = pytest.importorskip("zarr")

HEAPS = heaps_of([0, 1, 4, 5, *range(9, 40)], missing=[(1, 1), (18, 2)])
LENGTH = 40 * BATCHES


def wanted() -> dict[str, np.ndarray]:
    """What each array must have, from the formula."""
    present, side = np.zeros((LENGTH, ANTENNAS), bool), np.zeros((LENGTH, ANTENNAS), np.uint16)
    data = np.zeros((LENGTH, ANTENNAS, SAMPLES), np.int16)
    for batch, antenna in HEAPS:
        present[batch, antenna], side[batch, antenna] = True, status(batch, antenna)
        data[batch, antenna] = [value(batch, antenna, j) for j in range(SAMPLES)]
    return {"data": data, "present": present, "status": side}


def record(path: pathlib.Path, heaps=HEAPS, **options) -> speadrx.RecorderStats:
    with (
        receiver(layout_of(), heaps, chunks=60) as rx,
        Recorder(rx, path, **{"queue": 50, "compress": "zstd", **options}) as recorder,
    ):
        for chunk in recorder:
            with chunk:
                pass
    return recorder.stats()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> pathlib.Path:
    made = tmp_path_factory.mktemp("compressed") / "a.zarr"
    record(made, threads=2)
    return made


def test_zarr_python(path) -> None:
    group = zarr.open_group(path, mode="r")
    for name, array in wanted().items():
        np.testing.assert_array_equal(group[name][:], array)
        assert [type(codec).__name__ for codec in group[name].compressors] == ["ZstdCodec"]
    assert attributes(path)["complete"] is True


def test_others(path) -> None:
    for name, array in wanted().items():
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            pytest.importorskip("zarrs")
            np.testing.assert_array_equal(zarr.open_group(path, mode="r")[name][:], array)
        tensorstore = pytest.importorskip("tensorstore")
        store = {"driver": "file", "path": str(path / name)}
        np.testing.assert_array_equal(
            tensorstore.open({"driver": "zarr3", "kvstore": store}).result().read().result(), array
        )


def test_xarray_and_open(path) -> None:
    xarray = pytest.importorskip("xarray")
    with xarray.open_zarr(path, chunks=None) as dataset:
        for name, array in wanted().items():
            np.testing.assert_array_equal(dataset[name].values, array)
    masked = speadrx.open(path, masked=True).data.values
    np.testing.assert_array_equal(np.isnan(masked[..., 0]), ~wanted()["present"])


def test_frames_of_zstd(path) -> None:
    """As the program zstd decompresses them; what never came has no file, as ever."""
    files = {file.name for file in (path / "data").glob("c.*")}
    assert files == {f"c.{chunk}.0.0" for chunk in [0, 1, 4, 5, *range(9, 40)]}
    content = (path / "data/c.4.0.0").read_bytes()
    assert content[:4] == bytes.fromhex("28b52ffd")
    try:
        raw = subprocess.run(["zstd", "-dc"], input=content, capture_output=True, check=True, timeout=60).stdout
    except FileNotFoundError:
        pytest.skip("there is no program zstd")
    assert raw == wanted()["data"][4 * BATCHES : 5 * BATCHES].astype(">i2").tobytes()


def test_bytes_are_those_on_the_disk(tmp_path) -> None:
    stats = record(tmp_path / "a.zarr", threads=3)
    files = [file for name in wanted() for file in (tmp_path / "a.zarr" / name).glob("c.*")]
    assert (stats.chunks, stats.not_written, stats.finished) == (35, {}, True)
    assert stats.bytes == sum(file.stat().st_size for file in files)


def test_it_waits_if_asked_to(tmp_path) -> None:
    stats = record(tmp_path / "a.zarr", wait=True, queue=1)
    assert (stats.chunks, stats.not_written) == (35, {})
    for name, array in wanted().items():
        np.testing.assert_array_equal(zarr.open_group(tmp_path / "a.zarr", mode="r")[name][:], array)


def test_a_chunk_is_not_filled_again_before_it_is_compressed(tmp_path) -> None:
    with (
        receiver(layout_of(), HEAPS, chunks=4, overwrite_recycled=True) as rx,
        Recorder(rx, tmp_path / "a.zarr", compress="zstd", wait=True, queue=1) as recorder,
    ):
        for chunk in recorder:
            with chunk:
                pass
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "a.zarr", mode="r")["data"][:], wanted()["data"])


def test_restart_and_select(tmp_path) -> None:
    before, after = heaps_of([700, 701, 702]), heaps_of([2, 3, 4])
    with (
        receiver(layout_of(), before + after, chunks=60, max_jump=None) as rx,
        Recorder(rx, tmp_path / "a.zarr", compress="zstd", queue=50, select={"antenna": [2]}) as recorder,
    ):
        for chunk in recorder:
            chunk.recycle()
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    first = attributes(tmp_path / "a.zarr/part_1")["first_timestamp"] // 16
    for part, begin in ((group, 2800), (group["part_1"], first)):
        there = np.flatnonzero(part["present"][:, 0])
        assert len(there)
        for i in there.tolist():
            assert part["data"][i, 0].tolist() == [value(begin + i, 2, j) for j in range(SAMPLES)]


def test_what_cannot_be_compressed_is_named(tmp_path) -> None:
    path = tmp_path / "a.zarr"
    heaps = heaps_of(range(9))
    with (
        receiver(layout_of(), heaps, chunks=60) as rx,
        Recorder(rx, path, compress="zstd", queue=50, threads=1) as recorder,
    ):
        codec = recorder._output._compressor._codec

        class Failing:
            def __init__(self) -> None:
                self.calls = 0

            def encode(self, array):
                self.calls += 1
                if self.calls == 4:  # the first array of the second chunk
                    raise MemoryError("no memory")
                return codec.encode(array)

        recorder._output._compressor._codec = Failing()
        for chunk in recorder:
            chunk.recycle()
    stats = recorder.stats()
    assert (stats.chunks, stats.not_written, stats.finished) == (8, {"write_failed": 1}, True)
    assert stats.first_error == f"{path}: compressing: no memory"
    assert not zarr.open_group(path, mode="r")["present"][4:8].any()


def test_metadata_of_a_folder_that_was_gone_come_later(tmp_path) -> None:
    path = tmp_path / "a.zarr"
    with (
        receiver(layout_of(), heaps_of(range(9)), chunks=60) as rx,
        Recorder(rx, path, compress="zstd", queue=50) as recorder,
    ):
        (path / "data").touch()  # a file in its place
        for number, chunk in enumerate(recorder):
            with chunk:
                wait_for(lambda: recorder.stats().queued == 0)
                if number == 2:
                    (path / "data").unlink()
    stats = recorder.stats()
    assert (stats.chunks, stats.not_written, stats.finished) == (6, {"folder_gone": 3}, True)
    assert zarr.open_group(path, mode="r")["present"][:].sum() == 6 * BATCHES * ANTENNAS


@pytest.mark.parametrize(
    ("options", "message"),
    [({"compress": "lzma"}, "compress: given 'lzma', but wanted 'zstd'"), ({"threads": 0}, "threads")],
)
def test_mistakes(tmp_path, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        record(tmp_path / "a.zarr", [], **options)
    assert not (tmp_path / "a.zarr").exists()


def test_metadata(path) -> None:
    """As the specification of the codec says; times and axes are not compressed."""
    codecs = {name: json.loads((path / name / "zarr.json").read_text())["codecs"] for name in ("data", "time")}
    assert codecs["data"] == [
        {"name": "bytes", "configuration": {"endian": "big"}},
        {"name": "zstd", "configuration": {"level": 1, "checksum": False}},
    ]
    assert [codec["name"] for codec in codecs["time"]] == ["bytes"]


#: A program that is killed while it compresses: it says how much it had written.
IS_KILLED = """
import sys, recordings, speadrx
heaps = recordings.heaps_of([*range(700, 790), *range(2, 90)])
with recordings.receiver(recordings.layout_of(), heaps, chunks=60, max_jump=None) as rx:
    recorder = speadrx.Recorder(rx, sys.argv[1], queue=50, wait=True, compress="zstd", threads=2)
    for chunk in recorder:
        chunk.recycle()
        print(recorder.stats().heaps, flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_killed(tmp_path, seed) -> None:
    """Whenever it is killed, others read what it had said to be written, and nothing that is there is wrong."""
    path = tmp_path / "a.zarr"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", IS_KILLED, str(path)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        said = [int(process.stdout.readline()) for _ in range(random.Random(seed).randrange(60, 170))]
        process.send_signal(signal.SIGKILL)
    group = zarr.open_group(path, mode="r")
    present = 0
    for name in attributes(path)["parts"]:
        part = group[name] if name else group
        first = part.attrs["speadrx"]["first_timestamp"] // STEP
        # As far as all arrays are told to go.
        there = part["present"][:]
        data, side = part["data"][: len(there)], part["status"][: len(there)]
        for i, antenna in np.argwhere(there).tolist():
            assert data[i, antenna].tolist() == [value(first + i, antenna, j) for j in range(SAMPLES)]
            assert side[i, antenna] == status(first + i, antenna)
        present += int(there.sum())
    assert present >= said[-1] > 0
    assert attributes(path)["complete"] is False
