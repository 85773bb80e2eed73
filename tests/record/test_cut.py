"""`speadrx record night.zarr -o other.zarr`: what numpy cuts of what zarr-python reads is in the other recording."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess

import numpy as np
import pytest

import speadrx
from recordings import (
    ANTENNA_ID,
    ANTENNAS,
    BATCHES,
    EPOCH,
    SAMPLES,
    STEP,
    TIME_ID,
    attributes,
    check_part,
    heaps_of,
    layout_of,
    packets_of,
    receiver,
    status,
    value,
)
from speadrx import Axis, Recorder, TimeAxis
from terminals import PATIENCE, SPEADRX, environment, run_here
from wire import write_capture

pytest.importorskip("click")
pytest.importorskip("rich")
zarr = pytest.importorskip("zarr")

HEAPS = heaps_of([3, 4, 7, 8, 9, 12], missing=[(13, 1), (30, 2), (35, 0)])
NAMES = ("data", "present", "status", "time")


def record(path: pathlib.Path, heaps=HEAPS, layout=None, **kwargs) -> pathlib.Path:
    options = {name: kwargs.pop(name) for name in ("select", "compress") if name in kwargs}
    with (
        receiver(layout or layout_of(), heaps, **{"chunks": 60, **kwargs}) as rx,
        Recorder(rx, path, queue=50, **options) as recorder,
    ):
        for chunk in recorder:
            chunk.recycle()
    return path


@pytest.fixture(scope="module")
def night(tmp_path_factory) -> pathlib.Path:
    return record(tmp_path_factory.mktemp("cut") / "night.zarr")


def cut(source: pathlib.Path, to: pathlib.Path, *args: str, code: int = 0) -> str:
    return run_here("record", str(source), "-o", str(to), *args, code=code)


def arrays(path: pathlib.Path, part: str = "") -> dict[str, np.ndarray]:
    group = zarr.open_group(path, mode="r")
    group = group[part] if part else group
    return {name: group[name][:] for name in NAMES if name in group}


def files(path: pathlib.Path) -> dict[str, bytes]:
    """All chunks of all arrays."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("c.*"))}


class TestSelect:
    def test_sources(self, night, tmp_path) -> None:
        said = json.loads(cut(night, tmp_path / "a.zarr", "--select", "antenna=2,0", "--json"))
        before, after = arrays(night), arrays(tmp_path / "a.zarr")
        for name in ("data", "present", "status"):
            np.testing.assert_array_equal(after[name], before[name][:, [0, 2]])
        np.testing.assert_array_equal(after["time"], before["time"])
        assert zarr.open_group(tmp_path / "a.zarr")["antenna"][:].tolist() == [0, 2]
        assert said["recording"]["heaps"] == np.count_nonzero(before["present"][:, [0, 2]])
        assert set(os.listdir(tmp_path / "a.zarr/data")) == set(os.listdir(night / "data"))

    def test_against_the_formula(self, night, tmp_path) -> None:
        cut(night, tmp_path / "a.zarr", "--select", "antenna=1")
        after = arrays(tmp_path / "a.zarr")
        for i in range(10 * BATCHES):
            batch = 3 * BATCHES + i
            came = (batch, 1) in HEAPS
            assert after["present"][i, 0] == came
            assert after["status"][i, 0] == (status(batch, 1) if came else 0)
            assert after["data"][i, 0].tolist() == [value(batch, 1, j) * came for j in range(SAMPLES)]
            assert after["time"][i] == EPOCH * 10**9 + batch * STEP * 10**6

    def test_as_if_it_had_been_recorded_so(self, tmp_path) -> None:
        """Every file of a chunk is the same, byte for byte."""
        record(tmp_path / "all.zarr")
        record(tmp_path / "some.zarr", select={"antenna": [0, 1]})
        cut(tmp_path / "all.zarr", tmp_path / "cut.zarr", "--select", "antenna=0,1")
        assert files(tmp_path / "cut.zarr") == files(tmp_path / "some.zarr")

    def test_again(self, night, tmp_path) -> None:
        cut(night, tmp_path / "a.zarr", "--select", "antenna=0,2")
        cut(tmp_path / "a.zarr", tmp_path / "b.zarr", "--select", "antenna=2")
        np.testing.assert_array_equal(arrays(tmp_path / "b.zarr")["data"], arrays(night)["data"][:, [2]])
        errors = cut(tmp_path / "a.zarr", tmp_path / "c.zarr", "--select", "antenna=1", code=2)
        assert "a.zarr has no antenna 1, but 0, 2" in errors
        assert not (tmp_path / "c.zarr").exists()

    def test_a_source_that_comes_late_and_ends_early(self, tmp_path) -> None:
        """Its recording spans the same time, so that both can be compared; its chunks are absent."""
        missing = [(batch, 2) for batch in [*range(8), *range(16, 24)]]
        record(tmp_path / "all.zarr", heaps_of(range(6), missing))
        cut(tmp_path / "all.zarr", tmp_path / "a.zarr", "--select", "antenna=2")
        before, after = arrays(tmp_path / "all.zarr"), arrays(tmp_path / "a.zarr")
        np.testing.assert_array_equal(after["time"], before["time"])
        np.testing.assert_array_equal(after["present"], before["present"][:, [2]])
        assert {name for name in os.listdir(tmp_path / "a.zarr/data") if name[0] == "c"} == {"c.2.0.0", "c.3.0.0"}

    def test_values_of_an_axis(self, tmp_path) -> None:
        """Antennas by the numbers that the layout gives them."""
        axis = Axis(name="antenna", item=ANTENNA_ID, values=(0, 2, 1))
        record(tmp_path / "all.zarr", layout=layout_of(axes=(axis,)))
        cut(tmp_path / "all.zarr", tmp_path / "a.zarr", "--select", "antenna=2,1")
        assert zarr.open_group(tmp_path / "a.zarr")["antenna"][:].tolist() == [2, 1]
        np.testing.assert_array_equal(arrays(tmp_path / "a.zarr")["data"], arrays(tmp_path / "all.zarr")["data"][:, 1:])

    @pytest.mark.parametrize("order", [("antenna", "time"), ("time", "antenna")])
    @pytest.mark.parametrize("dtype", [">i2", "cint8", "int10", "uint8"])
    def test_order_and_kinds(self, tmp_path, order, dtype) -> None:
        record(tmp_path / "all.zarr", layout=layout_of(order=order, dtype=dtype))
        cut(tmp_path / "all.zarr", tmp_path / "a.zarr", "--select", "antenna=2,0")
        before, after = arrays(tmp_path / "all.zarr"), arrays(tmp_path / "a.zarr")
        axis = order.index("antenna")
        for name in ("data", "present", "status"):
            np.testing.assert_array_equal(after[name], np.take(before[name], [0, 2], axis))
            assert after[name].dtype == before[name].dtype


class TestTime:
    def test_chunks(self, night, tmp_path) -> None:
        cut(night, tmp_path / "a.zarr", "--chunks", "3")
        before, after = arrays(night), arrays(tmp_path / "a.zarr")
        assert len(after["time"]) == 5 * BATCHES  # chunks 3, 4 and 7
        for name in NAMES:
            np.testing.assert_array_equal(after[name], before[name][: 5 * BATCHES])

    @pytest.mark.parametrize(("seconds", "chunks"), [("64ms", 1), ("256ms", 2), ("257ms", 5), ("1h", 10)])
    def test_seconds(self, night, tmp_path, seconds, chunks) -> None:
        """A chunk has 64 ms. What begins later is not in it."""
        cut(night, tmp_path / "a.zarr", "--seconds", seconds)
        for name, array in arrays(tmp_path / "a.zarr").items():
            np.testing.assert_array_equal(array, arrays(night)[name][: chunks * BATCHES])

    @pytest.mark.parametrize(
        ("begin", "first"),
        # A chunk has 64 ms, and the first begins at 44.8 s.
        [
            ("0s", 0),
            ("64ms", 1),
            ("127ms", 1),
            ("2023-11-14T22:14:04.800", 0),
            ("2023-11-14T22:14:04.93Z", 2),
            ("2023-11-15T00:14:04.93+02:00", 2),
        ],
    )
    def test_from(self, tmp_path, begin, first) -> None:
        """A cut, a look and a plot begin at the same time, with the chunk in which it is."""
        path = record(tmp_path / "all.zarr", heaps_of([700, 701, 703, 704]), layout_of(sources="antenna"))
        cut(path, tmp_path / "a.zarr", "--from", begin)
        before, after = arrays(path), arrays(tmp_path / "a.zarr")
        for name in NAMES:
            np.testing.assert_array_equal(after[name], before[name][first * BATCHES :])
        there = [chunk for chunk in (700, 701, 703, 704) if chunk >= 700 + first]
        seen = json.loads(run_here("look", str(path), "--from", begin, "--json"))
        assert (seen["chunks"], seen["present"]) == (len(there), len(there) * BATCHES * 3)
        drawn = json.loads(run_here("plot", str(path), "--from", begin, "--json"))
        assert (drawn["chunks"], drawn["present"]) == (len(there), len(there) * BATCHES * 3)
        assert drawn["rows"]["timestamp"][0] == there[0] * BATCHES * 16

    def test_from_after_time_began_again(self, tmp_path) -> None:
        """Seconds go on in the next part; so does UTC, by the times that it has."""
        path = record(tmp_path / "all.zarr", heaps_of([700, 701, *range(3, 8)]), max_jump=None)
        assert attributes(path)["parts"] == ["", "part_1"]
        rest = arrays(path, "part_1")["time"]
        cut(path, tmp_path / "a.zarr", "--from", "192ms")  # two chunks, and one
        np.testing.assert_array_equal(arrays(tmp_path / "a.zarr")["time"], rest[BATCHES:])
        assert attributes(tmp_path / "a.zarr")["parts"] == [""]

    def test_max_bytes(self, night, tmp_path) -> None:
        each = BATCHES * ANTENNAS * (2 * SAMPLES + 2 + 1)
        said = json.loads(cut(night, tmp_path / "a.zarr", "--max-bytes", str(3 * each - 1), "--json"))
        assert (said["recording"]["chunks"], said["recording"]["bytes"]) == (2, 2 * each)
        assert said["ended_by"] == "max_bytes"

    def test_split(self, night, tmp_path) -> None:
        cut(night, tmp_path / "a.zarr", "--split", "320ms", "--select", "antenna=1")
        pieces = sorted(tmp_path.glob("a_*.zarr"))
        assert [path.name for path in pieces] == ["a_000.zarr", "a_001.zarr"]
        before = arrays(night)
        for path, (begin, end) in zip(pieces, [(0, 5), (5, 10)], strict=True):
            for name, array in arrays(path).items():
                wanted = before[name][begin * BATCHES : end * BATCHES]
                np.testing.assert_array_equal(array, wanted if name == "time" else wanted[:, [1]])

    def test_time_that_is_not_whole_nanoseconds(self, tmp_path) -> None:
        time = TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES, tick_rate=3e9 / 7, epoch=EPOCH)
        record(tmp_path / "all.zarr", layout=layout_of(time=time))
        cut(tmp_path / "all.zarr", tmp_path / "a.zarr", "--select", "antenna=1")
        np.testing.assert_array_equal(arrays(tmp_path / "a.zarr")["time"], arrays(tmp_path / "all.zarr")["time"])

    def test_ticks(self, tmp_path) -> None:
        """Without a rate, time is in ticks, and --seconds is refused."""
        record(tmp_path / "all.zarr", layout=layout_of(time=TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES)))
        cut(tmp_path / "all.zarr", tmp_path / "a.zarr", "--chunks", "2")
        assert arrays(tmp_path / "a.zarr")["time"].tolist() == [STEP * batch for batch in range(12, 20)]
        assert "tick_rate" in cut(tmp_path / "all.zarr", tmp_path / "b.zarr", "--seconds", "1", code=2)

    def test_restarts(self, tmp_path) -> None:
        """Groups stay groups."""
        record(tmp_path / "all.zarr", heaps_of([700, 701, 703]) + heaps_of([2, 3, 4, 6]), max_jump=None)
        cut(tmp_path / "all.zarr", tmp_path / "a.zarr", "--select", "antenna=1,2")
        assert attributes(tmp_path / "a.zarr")["parts"] == ["", "part_1"]
        for part in ("", "part_1"):
            before, after = arrays(tmp_path / "all.zarr", part), arrays(tmp_path / "a.zarr", part)
            ours, theirs = attributes(tmp_path / "a.zarr" / part), attributes(tmp_path / "all.zarr" / part)
            assert ours["first_timestamp"] == theirs["first_timestamp"]
            for name in NAMES:
                np.testing.assert_array_equal(after[name], before[name] if name == "time" else before[name][:, 1:])


class TestWhatItSays:
    def test_account(self, night, tmp_path) -> None:
        """What was received stays; what this has written, and of what it was made, is said beside."""
        cut(night, tmp_path / "a.zarr", "--select", "antenna=1", "--chunks", "2")
        before, after = attributes(night), attributes(tmp_path / "a.zarr")
        for name in ("layout", "account", "began", "ended", "first_timestamp", "format"):
            assert after[name] == before[name]
        assert (after["complete"], after["select"]) == (True, {"antenna": [1]})
        assert (after["recorder"]["chunks"], after["recorder"]["heaps"]) == (2, 7)
        assert after["cut_from"]["path"] == str(night)
        assert after["cut_from"]["recorder"] == before["recorder"]

    def test_one_whose_writer_was_killed(self, night, tmp_path) -> None:
        """What is there can be cut; there is no account, as nobody knows it."""
        source = tmp_path / "killed.zarr"
        record(source)
        document = json.loads((source / "zarr.json").read_text())
        for name in ("account", "ended", "recorder"):
            del document["attributes"]["speadrx"][name]
        document["attributes"]["speadrx"]["complete"] = False
        (source / "zarr.json").write_text(json.dumps(document))
        (source / "present/c.9.0").unlink()  # the chunk that was being written
        cut(source, tmp_path / "a.zarr")
        ours = attributes(tmp_path / "a.zarr")
        assert (ours["complete"], ours["cut_from"]["complete"], "account" in ours) == (True, False, False)
        assert check_part(tmp_path / "a.zarr", 3 * BATCHES, HEAPS) == len(HEAPS) - BATCHES * ANTENNAS
        assert speadrx.open(tmp_path / "a.zarr").sizes["time"] == 7 * BATCHES

    def test_compressed_and_back(self, night, tmp_path) -> None:
        cut(night, tmp_path / "small.zarr", "--compress", "zstd")
        for name, array in arrays(tmp_path / "small.zarr").items():
            np.testing.assert_array_equal(array, arrays(night)[name])
        assert files(tmp_path / "small.zarr")["data/c.0.0.0"].startswith(b"\x28\xb5\x2f\xfd")
        cut(tmp_path / "small.zarr", tmp_path / "back.zarr")
        assert files(tmp_path / "back.zarr") == files(night)

    def test_lines(self, night, tmp_path) -> None:
        output = " ".join(cut(night, tmp_path / "a.zarr", "--select", "antenna=1").split())
        assert "Recorded: 23 heaps in 6 chunks" in output

    def test_nothing(self, tmp_path) -> None:
        command = [*SPEADRX, "record", str(record(tmp_path / "empty.zarr", [])), "-o", str(tmp_path / "a.zarr")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=PATIENCE)
        assert done.returncode == 1
        assert "Recorded: 0 heaps" in done.stdout
        assert "empty.zarr has no heap of that." in done.stderr
        assert attributes(tmp_path / "a.zarr")["parts"] == []

    def test_what_cannot_be(self, night, tmp_path) -> None:
        to = tmp_path / "a.zarr"
        layout = str(night)
        assert "needs no such option" in cut(night, to, "-l", layout, code=2)
        assert "needs no such option" in cut(night, to, "--window", "4", code=2)
        assert "'7' is no antenna here" in cut(night, to, "--select", "antenna=7", code=2)
        assert "its axes are antenna" in cut(night, to, "--select", "beam=7", code=2)
        piece = record(tmp_path / "b_000.zarr")
        for source, path, options in ((piece, piece, ()), (piece, tmp_path / "b.zarr", ("--split", "1s"))):
            assert "that is to be cut" in cut(source, path, "--force", *options, code=2)
            assert (source / "zarr.json").exists()
        assert "is in the recording that is to be cut" in cut(night, night / "data" / "a.zarr", code=2)
        assert "No such file" in cut(night, tmp_path / "no/a.zarr", code=2)
        cut(night, to)
        assert "exists" in cut(night, to, code=2)
        cut(night, to, "--force", "--chunks", "1")
        assert len(arrays(to)["time"]) == BATCHES

    def test_captures_still_need_a_layout(self, tmp_path) -> None:
        capture = write_capture(tmp_path / "capture.pcap", packets_of(HEAPS))
        errors = run_here("record", capture, "-o", str(tmp_path / "a.zarr"), code=2)
        assert "Missing option '-l'" in errors

    @pytest.mark.parametrize("args", [(), ("-l", "meerkat-digitiser"), ("--window", "4")])
    def test_a_folder_that_is_none(self, tmp_path, args) -> None:
        errors = run_here("record", str(tmp_path), "-o", str(tmp_path / "a.zarr"), *args, code=2)
        assert "is not a recording: there is no zarr.json in it" in errors

    @pytest.mark.parametrize("command", ["record", "look"])
    def test_two_at_once(self, night, tmp_path, command) -> None:
        output = ("-o", str(tmp_path / "a.png")) if command == "look" else ("-o", str(tmp_path / "a.zarr"))
        errors = run_here(command, str(night), str(night), *output, code=2)
        assert "give one recording or capture alone" in " ".join(errors.split())
        assert "has no port" not in errors


@pytest.mark.parametrize("compress", [None, "zstd"])
def test_what_breaks_off_is_not_complete(tmp_path: pathlib.Path, compress: str | None) -> None:
    """A chunk is damaged: what comes before it is in the other recording, which does not look as if it were all."""
    night = record(tmp_path / "night.zarr", **({} if compress is None else {"compress": compress}))
    assert (whole := attributes(night))["complete"]
    assert "account" in whole
    os.truncate(night / "data" / "c.4.0.0", 20)
    for command in (["record", str(night), "-o", str(tmp_path / "a.zarr"), "--quiet"], ["look", str(night)]):
        assert f"chunk 4 of {night / 'data'} is damaged" in run_here(*command, code=2)
    part = attributes(tmp_path / "a.zarr")
    assert part["complete"] is False
    assert "account" not in part
    before = [(batch, antenna) for batch, antenna in HEAPS if batch < 7 * BATCHES]  # it begins with chunk 3
    assert check_part(tmp_path / "a.zarr", 3 * BATCHES, before) == len(before)
