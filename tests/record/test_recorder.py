"""Recordings against a formula: every number, with gaps, restarts, a full queue and a folder that goes away."""

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
    STEP,
    WRAP,
    attributes,
    check_part,
    heaps_of,
    layout_of,
    packets_of,
    read_array,
    receiver,
    value,
)
from speadrx import Recorder
from terminals import run_here
from wire import write_capture


def record(path: pathlib.Path, heaps, layout=None, *, queue: int = 1000, **kwargs) -> speadrx.RecorderStats:
    """Record all heaps; the queue is long enough for all of them."""
    options = {name: kwargs.pop(name) for name in ("select", "overwrite", "wait") if name in kwargs}
    with (
        receiver(layout or layout_of(), heaps, **{"chunks": 60, **kwargs}) as rx,
        Recorder(rx, path, queue=queue, **options) as recorder,
    ):
        for chunk in recorder:
            with chunk:
                pass
    return recorder.stats()


class TestContents:
    def test_missing_heaps_and_chunks(self, tmp_path) -> None:
        path = tmp_path / "a.zarr"
        heaps = heaps_of([5, 6, 9, 10, 11], missing=[(21, 0), (26, 2), (36, 1)])
        stats = record(path, heaps)
        assert check_part(path, 5 * BATCHES, heaps) == len(heaps) == stats.heaps
        assert (stats.chunks, stats.not_written, stats.parts, stats.finished) == (5, {}, 1, True)
        assert stats.bytes == 5 * BATCHES * ANTENNAS * (10 + 2 + 1)
        files = {name.name for name in (path / "data").iterdir()}
        assert files == {"zarr.json", "c.0.0.0", "c.1.0.0", "c.4.0.0", "c.5.0.0", "c.6.0.0"}
        assert len(read_array(path / "time")) == 7 * BATCHES
        assert not [name for name in path.rglob("*") if name.name.startswith(".")]

    def test_stale_data_are_not_stored(self, tmp_path) -> None:
        heaps = heaps_of(range(40), missing=[(batch, batch % ANTENNAS) for batch in range(0, 160, 5)])
        record(tmp_path / "a.zarr", heaps, queue=1, wait=True, chunks=4)
        assert check_part(tmp_path / "a.zarr", 0, heaps) == len(heaps)

    def test_it_grows(self, tmp_path) -> None:
        heaps = heaps_of([*range(30), 200, 201])
        record(tmp_path / "a.zarr", heaps)
        assert check_part(tmp_path / "a.zarr", 0, heaps) == len(heaps)
        assert len(read_array(tmp_path / "a.zarr/time")) == 202 * BATCHES

    def test_times_in_several_files(self, tmp_path) -> None:
        heaps = heaps_of([0, 2500])
        record(tmp_path / "a.zarr", heaps)
        assert len(list((tmp_path / "a.zarr/time").glob("c.*"))) > 2
        assert check_part(tmp_path / "a.zarr", 0, heaps) == len(heaps)

    def test_it_waits_if_asked_to(self, tmp_path) -> None:
        heaps = heaps_of(range(60))
        stats = record(tmp_path / "a.zarr", heaps, queue=1, wait=True, chunks=6)
        assert (stats.chunks, stats.not_written) == (60, {})
        assert check_part(tmp_path / "a.zarr", 0, heaps) == len(heaps)

    def test_a_restart_begins_a_group(self, tmp_path) -> None:
        path = tmp_path / "a.zarr"
        before, after = heaps_of([700, 701, 702]), heaps_of([2, 3, 4])
        stats = record(path, before + after, max_jump=None)
        assert stats.parts == 2
        assert attributes(path)["parts"] == ["", "part_1"]
        first = attributes(path / "part_1")["first_timestamp"] // STEP
        assert check_part(path, 2800, before) + check_part(path / "part_1", first, after) == stats.heaps
        assert attributes(path)["account"]["restarts"] == 1

    def test_a_wrap_does_not(self, tmp_path) -> None:
        chunks = range(WRAP // BATCHES - 3, WRAP // BATCHES + 3)
        heaps = heaps_of(chunks)
        stats = record(tmp_path / "a.zarr", heaps)
        assert (stats.parts, stats.chunks) == (1, 6)
        assert attributes(tmp_path / "a.zarr")["first_timestamp"] == chunks[0] * BATCHES * STEP
        present = read_array(tmp_path / "a.zarr/present")
        assert present.shape == (6 * BATCHES, ANTENNAS)
        assert present.all()
        data = read_array(tmp_path / "a.zarr/data")
        for i, antenna in np.ndindex(present.shape):
            assert data[i, antenna, 0] == value(chunks[0] * BATCHES + i, antenna, 0)

    @pytest.mark.parametrize("order", [("antenna", "time"), ("time", "antenna")])
    def test_order_and_strides(self, tmp_path, order) -> None:
        """Memory that is not contiguous is copied, and the time need not be the first axis."""
        heaps = heaps_of([0, 2], missing=[(1, 1)])
        for strides in ({}, {order[1]: 16}):
            path = tmp_path / f"{len(strides)}.zarr"
            record(path, heaps, layout_of(order=order, strides=strides))
            data, present = (
                np.moveaxis(read_array(path / name), order.index("time"), 0) for name in ("data", "present")
            )
            for i, antenna in np.ndindex(3 * BATCHES, ANTENNAS):
                came = (i, antenna) in heaps
                assert present[i, antenna] == came
                assert data[i, antenna].tolist() == [value(i, antenna, j) if came else 0 for j in range(5)]

    def test_select(self, tmp_path) -> None:
        heaps = heaps_of(range(30), missing=[(1, 1), (2, 2)])
        stats = record(tmp_path / "a.zarr", heaps, select={"antenna": [2, 0]})
        data, present = read_array(tmp_path / "a.zarr/data"), read_array(tmp_path / "a.zarr/present")
        assert read_array(tmp_path / "a.zarr/antenna").tolist() == [0, 2]
        assert present.sum() == stats.heaps == len([heap for heap in heaps if heap[1] != 1])
        for i, k in np.ndindex(30 * BATCHES, 2):
            came = (i, 2 * k) in heaps
            assert present[i, k] == came
            assert data[i, k].tolist() == [value(i, 2 * k, j) if came else 0 for j in range(5)]
        assert stats.chunks == 30

    @pytest.mark.parametrize("compress", [None, "zstd"])
    def test_chunks_with_nothing_that_is_selected(self, tmp_path, compress) -> None:
        """They are as chunks that never came; the recording spans their time, and a new time begins a group."""
        if compress is not None:
            pytest.importorskip("numcodecs")
        path = tmp_path / "a.zarr"
        without = {
            (batch, 1) for chunk in (0, 702, 703, 2, 5) for batch in range(chunk * BATCHES, (chunk + 1) * BATCHES)
        }
        before = heaps_of([*range(699, 704)], missing=without)
        after = heaps_of(range(2, 6), missing=without)
        with (
            receiver(layout_of(), before + after, chunks=60, max_jump=None) as rx,
            Recorder(rx, path, queue=50, select={"antenna": [1]}, compress=compress) as recorder,
        ):
            for chunk in recorder:
                with chunk:
                    if chunk.timestamp // STEP in (700 * BATCHES, 703 * BATCHES):
                        assert recorder.heaps(chunk) == (BATCHES if chunk.timestamp // STEP == 700 * BATCHES else 0)
        stats = recorder.stats()
        assert attributes(path)["parts"] == ["", "part_1"]
        files = {
            name: {int(file.name.split(".")[1]) for file in (path / name / "present").glob("c.*")}
            for name in ("", "part_1")
        }
        assert files[""] == {0, 1, 2}  # 699, 700 and 701
        lengths = [json.loads((path / name / "present/zarr.json").read_text())["shape"][0] for name in files]
        first = attributes(path / "part_1")["first_timestamp"] // STEP // BATCHES
        assert first >= 3  # which has none before
        assert lengths == [5 * BATCHES, (6 - first) * BATCHES]
        assert files["part_1"] == set(range(5 - first))
        if compress is None:
            assert stats.heaps == sum(int(read_array(path / name / "present").sum()) for name in files)

    def test_account(self, tmp_path) -> None:
        heaps = heaps_of([0, 2], missing=[(1, 1)])
        record(tmp_path / "a.zarr", heaps)
        ours = attributes(tmp_path / "a.zarr")
        assert ours["complete"] is True
        assert ours["account"]["present"] == ours["recorder"]["heaps"] == len(heaps)
        assert ours["account"]["missing"] == 1 + BATCHES * ANTENNAS
        (tmp_path / "a.toml").write_text(ours["layout"], "utf-8")
        assert speadrx.Layout.from_toml(tmp_path / "a.toml") == layout_of()


class TestBeside:
    """The loop has the same chunks, which go back when both are done."""

    @pytest.fixture
    def blocked(self, tmp_path):
        """A path at which the file of the first chunk is written into a pipe: that waits until somebody reads it."""
        path = tmp_path / "a.zarr"

        def block():
            (path / "data").mkdir()
            os.mkfifo(path / "data/.c.0.0.0.partial")
            return path / "data/.c.0.0.0.partial"

        return path, block

    def test_a_full_queue_holds_nothing_up(self, blocked) -> None:
        path, block = blocked
        heaps = heaps_of(range(20))
        seen = []
        with receiver(layout_of(), heaps) as rx, Recorder(rx, path, queue=1) as recorder:
            pipe = block()
            for chunk in recorder:
                with chunk:
                    seen.append(chunk.timestamp)
            stats = recorder.stats()
            assert (stats.queued, stats.not_written) == (1, {"queue_full": 19})
            written = pipe.read_bytes()
        assert seen == [i * BATCHES * STEP for i in range(20)]
        assert len(written) == BATCHES * ANTENNAS * 10
        stats = recorder.stats()
        assert (stats.chunks, stats.not_written) == (1, {"queue_full": 19})
        assert stats.heaps + stats.heaps_not_written == len(heaps)
        assert attributes(path)["recorder"]["not_written"] == {"queue_full": 19}

    def test_a_chunk_is_not_filled_again_before_it_is_written(self, blocked) -> None:
        path, block = blocked
        with receiver(layout_of(), heaps_of(range(20)), chunks=4, overwrite_recycled=True) as rx:
            with Recorder(rx, path, queue=1) as recorder:
                pipe = block()
                first = None
                for chunk in recorder:
                    with chunk:
                        first = chunk if first is None else first
                assert first.data[0, 0].tolist() == [value(0, 0, j) for j in range(5)]
                with pytest.raises(ValueError, match="recycled twice"):
                    first.recycle()
                written = pipe.read_bytes()
            assert first.data is None
        wanted = np.array(
            [[[value(i, a, j) for j in range(5)] for a in range(ANTENNAS)] for i in range(BATCHES)], ">i2"
        )
        assert written == wanted.tobytes()

    def test_written_before_the_loop_is_done(self, tmp_path) -> None:
        with receiver(layout_of(), heaps_of(range(3))) as rx, Recorder(rx, tmp_path / "a.zarr") as recorder:
            for chunk in recorder:
                wait_for(lambda: recorder.stats().queued == 0)
                assert chunk.data is not None
                chunk.recycle()
                assert chunk.data is None

    async def test_async(self, tmp_path) -> None:
        heaps = heaps_of(range(9))
        async with receiver(layout_of(), heaps, chunks=60) as rx:
            with Recorder(rx, tmp_path / "a.zarr", queue=60) as recorder:
                async for chunk in recorder:
                    chunk.recycle()
        assert check_part(tmp_path / "a.zarr", 0, heaps) == len(heaps)

    def test_two_recorders(self, blocked, tmp_path) -> None:
        """A chunk goes back when the loop and both are done with it."""
        path, block = blocked
        heaps = heaps_of(range(3))
        with (
            receiver(layout_of(), heaps, overwrite_recycled=True) as rx,
            Recorder(rx, path) as first,
            Recorder(rx, tmp_path / "b.zarr", select={"antenna": [0, 1, 2]}) as second,
            Recorder(rx, tmp_path / "c.zarr") as third,
        ):
            pipe = block()
            chunks = []
            for chunk in first:
                second.write(chunk)
                third.write(chunk)
                chunks.append(chunk)
                chunk.recycle()
            wait_for(lambda: second.stats().queued == third.stats().queued == 0)
            assert chunks[0].data[0, 0].tolist() == [value(0, 0, j) for j in range(5)]
            content = pipe.read_bytes()
            wait_for(lambda: first.stats().queued == 0)
            assert all(chunk.data is None for chunk in chunks)
        (path / "data/c.0.0.0").unlink()  # the pipe
        (path / "data/c.0.0.0").write_bytes(content)
        for name in ("a", "b", "c"):
            assert check_part(tmp_path / f"{name}.zarr", 0, heaps) == len(heaps)


class TestTrouble:
    def test_a_buffer_that_does_not_fit(self, tmp_path, caplog) -> None:
        """Nobody is there to hear of it when it is given back; but the rest is recorded."""
        heaps = heaps_of(range(9))
        with receiver(layout_of(), heaps, chunks=9) as rx, Recorder(rx, tmp_path / "a.zarr", queue=50) as recorder:
            for number, chunk in enumerate(recorder):
                if number == 3:
                    chunk.data = np.zeros(4, np.uint8)
                chunk.recycle()
                if number == 3:
                    wait_for(lambda: recorder.stats().queued == 0)
        assert check_part(tmp_path / "a.zarr", 0, heaps) == recorder.stats().heaps == len(heaps)
        assert "data: given 4 bytes" in caplog.text

    def test_a_chunk_that_cannot_be_queued_is_recycled(self, tmp_path, monkeypatch) -> None:
        """The loop never gets it, so nobody else would give it back: this would wait for a free one for ever."""
        heaps = heaps_of(range(30))
        write = Recorder.write

        def fail(self, chunk):
            if chunk.timestamp // (BATCHES * STEP) % 2:
                self._output._quick = None
                self._output._queue = None  # so that it fails where the chunk is lent already
            return write(self, chunk)

        monkeypatch.setattr(Recorder, "write", fail)
        with receiver(layout_of(), heaps, chunks=4) as rx:
            seen = failed = 0
            while seen + failed < 30:
                recorder = Recorder(rx, tmp_path / f"{seen + failed}.zarr")
                try:
                    for chunk in recorder:
                        chunk.recycle()
                        seen += 1
                except TypeError:
                    failed += 1
                recorder.close()
        assert (seen, failed) == (15, 15)

    def test_a_folder_that_is_moved(self, tmp_path) -> None:
        """It is the same folder, wherever it is: nothing is lost, and nothing is made at its old place."""
        path, away = tmp_path / "a.zarr", tmp_path / "away"
        heaps = heaps_of(range(9))
        with receiver(layout_of(), heaps) as rx, Recorder(rx, path, wait=True) as recorder:
            for number, chunk in enumerate(recorder):
                with chunk:
                    if number == 2:
                        path.rename(away)
        stats = recorder.stats()
        assert (stats.chunks, stats.not_written, stats.finished) == (9, {}, True)
        assert check_part(away, 0, heaps) == len(heaps)
        assert not path.exists()
        assert not recorder.is_gone

    def test_a_folder_of_data_that_is_gone_for_a_while(self, tmp_path) -> None:
        path, away = tmp_path / "a.zarr", tmp_path / "away"
        heaps = heaps_of(range(9))
        with receiver(layout_of(), heaps) as rx, Recorder(rx, path) as recorder:
            for number, chunk in enumerate(recorder):
                with chunk:
                    wait_for(lambda: recorder.stats().queued == 0)
                    if number == 2:
                        (path / "data").rename(away)
                    if number == 5:
                        away.rename(path / "data")
        stats = recorder.stats()
        assert (stats.chunks, stats.not_written, stats.finished) == (6, {"folder_gone": 3}, True)
        assert stats.first_error == f"{path}: No such file or directory (os error 2)"
        present = check_part(path, 0, heaps)
        assert present == stats.heaps == len(heaps) - stats.heaps_not_written == 6 * BATCHES * ANTENNAS

    def test_gone_at_the_begin(self, tmp_path) -> None:
        """The metadata that could not be written come later."""
        path = tmp_path / "a.zarr"
        heaps = heaps_of(range(9))
        with receiver(layout_of(), heaps) as rx, Recorder(rx, path) as recorder:
            (path / "data").touch()  # a file in the place of a folder
            for number, chunk in enumerate(recorder):
                with chunk:
                    wait_for(lambda: recorder.stats().queued == 0)
                    if number == 2:
                        (path / "data").unlink()
            assert (path / "data/zarr.json").exists()
        stats = recorder.stats()
        assert (stats.chunks, stats.not_written, stats.finished) == (6, {"folder_gone": 3}, True)
        assert check_part(path, 0, heaps) == stats.heaps == 6 * BATCHES * ANTENNAS

    def test_gone_at_the_end(self, tmp_path) -> None:
        path = tmp_path / "a.zarr"
        with receiver(layout_of(), heaps_of(range(9))) as rx, Recorder(rx, path) as recorder:
            for chunk in recorder:
                chunk.recycle()
            wait_for(lambda: recorder.stats().queued == 0)
            (path / "data").rename(tmp_path / "away")
        assert not recorder.stats().finished
        assert "the last metadata" in recorder.stats().first_error

    def test_a_file_that_cannot_be_written_leaves_none_of_its_chunk(self, tmp_path) -> None:
        path = tmp_path / "a.zarr"
        heaps = heaps_of(range(5))
        with receiver(layout_of(), heaps) as rx, Recorder(rx, path, queue=50) as recorder:
            (path / "present" / "c.2.0").mkdir(parents=True)
            for chunk in recorder:
                chunk.recycle()
        assert recorder.stats().not_written == {"write_failed": 1}
        (path / "present" / "c.2.0").rmdir()
        assert not (path / "data" / "c.2.0.0").exists()
        assert check_part(path, 0, heaps) == recorder.stats().heaps == 4 * BATCHES * ANTENNAS

    def test_nothing_is_overwritten(self, tmp_path) -> None:
        heaps = heaps_of([3])
        record(tmp_path / "a.zarr", heaps_of(range(9)))
        with pytest.raises(FileExistsError):
            record(tmp_path / "a.zarr", heaps)
        record(tmp_path / "a.zarr", heaps, overwrite=True)
        assert check_part(tmp_path / "a.zarr", 12, heaps) == len(heaps)
        (tmp_path / "mine").mkdir()
        with pytest.raises(FileExistsError):  # it is no recording
            record(tmp_path / "mine", heaps, overwrite=True)

    def test_a_folder_that_another_recorder_writes_to_is_left_alone(self, tmp_path) -> None:
        """Or else chunks of both would be in it."""
        path, heaps = tmp_path / "a.zarr", heaps_of([3])
        (tmp_path / "array.toml").write_text(layout_of().to_toml(), "utf-8")
        capture = write_capture(tmp_path / "capture.pcap", packets_of(heaps))
        arguments = (capture, "-l", str(tmp_path / "array.toml"), "-o", str(path), "--force")
        with receiver(layout_of(), heaps_of(range(9))) as rx, Recorder(rx, path, queue=50) as recorder:
            with pytest.raises(BlockingIOError, match="another recorder writes there"):
                record(path, heaps, overwrite=True)
            assert "another recorder writes there" in run_here("record", *arguments, code=2)
            for chunk in recorder:
                chunk.recycle()
        assert check_part(path, 0, heaps_of(range(9))) == recorder.stats().heaps == 9 * BATCHES * ANTENNAS
        record(path, heaps, overwrite=True)
        assert check_part(path, 12, heaps) == len(heaps)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"select": {"feed": [1]}}, ValueError, "select: given axis 'feed', but wanted one of antenna"),
            ({"select": {"antenna": [7]}}, ValueError, "select: antenna has no 7"),
            ({"select": {"antenna": []}}, ValueError, "nothing is selected"),
            ({"select": {"antenna": 1}}, TypeError, "select: given {'antenna': 1}, but wanted a list of values"),
            ({"select": "antenna=1"}, TypeError, "select: given 'antenna=1', but wanted a list of values"),
            ({"queue": 0}, ValueError, "queue"),
        ],
    )
    def test_mistakes(self, tmp_path, options, error, message) -> None:
        with pytest.raises(error, match=message):
            record(tmp_path / "a.zarr", [], **options)
        assert not (tmp_path / "a.zarr").exists()

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(6))
    def test_killed(self, tmp_path, seed) -> None:
        """Whenever it is killed, what it had said to be written is there, and nothing that is there is wrong."""
        path = tmp_path / "a.zarr"
        program = (
            "import sys, recordings, speadrx\n"
            "heaps = recordings.heaps_of(range(400))\n"
            "with recordings.receiver(recordings.layout_of(), heaps, chunks=60) as rx:\n"
            "    recorder = speadrx.Recorder(rx, sys.argv[1], queue=50)\n"
            "    for chunk in recorder:\n"
            "        chunk.recycle()\n"
            "        print(recorder.stats().chunks, flush=True)\n"
            "    sys.stdin.read()\n"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", program, str(path)]
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            said = [int(process.stdout.readline()) for _ in range(random.Random(seed).randrange(1, 390))]
            process.send_signal(signal.SIGKILL)
        heaps = heaps_of(range(400))
        if attributes(path)["parts"] or said[-1]:
            assert check_part(path, 0, heaps, killed=True) >= said[-1] * BATCHES * ANTENNAS
        assert attributes(path)["complete"] is False
        assert json.loads((path / "zarr.json").read_text("utf-8"))["node_type"] == "group"
