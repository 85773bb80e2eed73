"""Disks that hang, folders that go away, time that jumps, processes that fork: what is there is right."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys

import pytest

from loopback import wait_for
from recordings import (
    ANTENNAS,
    BATCHES,
    SAMPLES,
    STEP,
    attributes,
    check_part,
    heaps_of,
    layout_of,
    read_array,
    receiver,
)
from speadrx import Recorder

EACH = BATCHES * ANTENNAS
#: Seconds for which a disk may do nothing, where it never does anything again.
SOON = 0.2


class TestHung:
    """What is written into a pipe waits until somebody reads it."""

    @pytest.fixture
    def path(self, tmp_path) -> pathlib.Path:
        return tmp_path / "a.zarr"

    @staticmethod
    def block(path: pathlib.Path) -> pathlib.Path:
        """Have the first chunk written into a pipe."""
        (path / "data").mkdir()
        os.mkfifo(path / "data/.c.0.0.0.partial")
        return path / "data/.c.0.0.0.partial"

    @pytest.mark.parametrize("wait", [False, True])
    @pytest.mark.parametrize("compress", [None, "zstd"])
    def test_it_is_given_up(self, path, wait, compress) -> None:
        """The loop goes on, `close` returns, and what was not written is named. Memory that is lent stays as it is."""
        if compress is not None:
            pytest.importorskip("numcodecs")
        heaps = heaps_of(range(20))
        options = {"wait": wait, "compress": compress, "patience": SOON, "queue": 3}
        seen = 0
        with (
            receiver(layout_of(), heaps, chunks=9, overwrite_recycled=True) as rx,
            Recorder(rx, path, **options) as recorder,
        ):
            pipe = self.block(path)
            for chunk in recorder:
                with chunk:
                    seen += 1
            if compress is None:  # it has begun with the first chunk, and does not end
                wait_for(lambda: attributes(path)["parts"])
        stats = recorder.stats()
        assert (seen, stats.chunks, stats.queued, stats.finished) == (20, 0, 0, False)
        assert sum(stats.not_written.values()) == 20
        assert stats.not_written["disk_hung"] >= 3
        assert stats.heaps_not_written == len(heaps)
        assert stats.first_error == f"{path}: nothing was written for {SOON:g} s"
        assert attributes(path)["complete"] is False
        if compress is None:
            del rx, recorder, chunk
            written = pipe.read_bytes()  # the thread that hangs goes on
            assert len(written) == EACH * 2 * SAMPLES
            assert written[:4] == bytes([0, 0, 0, 1])

    def test_at_the_last_metadata(self, path) -> None:
        heaps = heaps_of(range(5))
        with receiver(layout_of(), heaps) as rx, Recorder(rx, path, patience=SOON, queue=50) as recorder:
            for chunk in recorder:
                chunk.recycle()
            wait_for(lambda: recorder.stats().queued == 0)
            os.mkfifo(path / ".zarr.json.partial")
        stats = recorder.stats()
        assert (stats.chunks, stats.not_written, stats.finished) == (5, {}, False)
        assert stats.first_error == f"{path}: nothing was written for {SOON:g} s"
        assert attributes(path)["complete"] is False
        assert read_array(path / "present").sum() == len(heaps)

    def test_a_slow_disk_is_not_given_up(self, path) -> None:
        heaps = heaps_of(range(5))
        with receiver(layout_of(), heaps, chunks=60) as rx:
            recorder = Recorder(rx, path, queue=50)
            pipe = self.block(path)
            for chunk in recorder:
                chunk.recycle()
            assert recorder.stats().queued == 5
            content = pipe.read_bytes()
            recorder.close()
        stats = recorder.stats()
        assert (stats.chunks, stats.not_written, stats.finished) == (5, {}, True)
        (path / "data/c.0.0.0").unlink()  # the pipe
        (path / "data/c.0.0.0").write_bytes(content)
        assert check_part(path, 0, heaps) == len(heaps)


def test_metadata_say_only_what_was_queued(tmp_path) -> None:
    """A chunk that would have needed longer arrays is left out: nobody is told of longer ones afterwards."""
    path = tmp_path / "a.zarr"
    heaps = heaps_of([0, 100]) + heaps_of([250_000, 250_001, 250_002])
    with receiver(layout_of(), heaps, chunks=60) as rx, Recorder(rx, path, queue=1) as recorder:
        pipe = TestHung.block(path)
        for chunk in recorder:
            with chunk:
                if chunk.timestamp == 100 * BATCHES * STEP:
                    assert recorder.stats().not_written == {"queue_full": 1}
                    pipe.read_bytes()
                if chunk.timestamp:
                    wait_for(lambda: recorder.stats().queued == 0)
        root = json.loads((path / "zarr.json").read_text())
        assert root["attributes"]["speadrx"]["parts"] == ["", "part_1"]
        for name, document in root["consolidated_metadata"]["metadata"].items():
            assert json.loads((path / name / "zarr.json").read_text()) == document


@contextlib.contextmanager
def without_permission(folder: pathlib.Path):
    """For a while, this process may not write to a folder."""
    if os.geteuid():
        modes = {path: path.stat().st_mode for path in [folder, *folder.rglob("*")] if path.is_dir()}
        for path in modes:
            path.chmod(0o500)
        yield
        for path, mode in modes.items():
            path.chmod(mode)
    else:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)


def test_permission_lost_for_a_while(tmp_path) -> None:
    path = tmp_path / "a.zarr"
    heaps = heaps_of(range(9))
    with receiver(layout_of(), heaps) as rx, Recorder(rx, path) as recorder, contextlib.ExitStack() as stack:
        for number, chunk in enumerate(recorder):
            with chunk:
                wait_for(lambda: recorder.stats().queued == 0)
                if number == 2:
                    stack.enter_context(without_permission(path))
                if number == 5:
                    stack.close()
    stats = recorder.stats()
    assert (stats.chunks, stats.not_written, stats.finished) == (6, {"not_allowed": 3}, True)
    assert "Permission denied" in stats.first_error
    assert check_part(path, 0, heaps) == stats.heaps == 6 * EACH


def test_removed_for_good(tmp_path) -> None:
    """Nothing is made anew at its place, where it may not be wanted."""
    path = tmp_path / "a.zarr"
    with receiver(layout_of(), heaps_of(range(9))) as rx, Recorder(rx, path) as recorder:
        for number, chunk in enumerate(recorder):
            with chunk:
                wait_for(lambda: recorder.stats().queued == 0)
                if number == 2:
                    shutil.rmtree(path)
    stats = recorder.stats()
    assert (stats.chunks, stats.not_written, stats.finished) == (3, {"folder_gone": 6}, False)
    assert not path.exists()


@pytest.mark.parametrize("compress", [None, "zstd"])
def test_removed_and_another_begun_there(tmp_path, compress) -> None:
    """Nothing of the first gets into the second, not even its end."""
    if compress is not None:
        pytest.importorskip("numcodecs")
    path = tmp_path / "a.zarr"
    heaps = heaps_of([0, 1, 2, 3])
    with receiver(layout_of(), heaps_of(range(9))) as rx, receiver(layout_of(), heaps) as other:
        first = Recorder(rx, path, compress=compress, wait=True)
        for number, chunk in enumerate(first):
            with chunk:
                wait_for(lambda: first.stats().queued == 0)
                if number == 2:
                    assert not first.is_gone
                    shutil.rmtree(path)
                    second = Recorder(other, path, wait=True)
                if number == 5:
                    for chunk_of_second in second:
                        chunk_of_second.recycle()
        assert first.is_gone
        second.close()
        content = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
        first.close()
    stats = first.stats()
    assert (stats.chunks, stats.not_written, stats.finished) == (3, {"folder_gone": 6}, False)
    assert stats.first_error == f"{path}: No such file or directory (os error 2)"
    assert second.stats().not_written == {}
    assert check_part(path, 0, heaps) == len(heaps)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == content


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param([700, 701, 702], [2, 3, 4], id="back"),
        pytest.param([2, 3, 4], [250_000, 250_001, 250_002], id="forward"),
        pytest.param([2, 3, 4], [2**20, 2**20 + 1, 2**20 + 2], id="far forward"),
        pytest.param([2**30, 2**30 + 1, 2**30 + 2], [5, 6, 7], id="far back"),
    ],
)
def test_senders_that_begin_again(tmp_path, before, after) -> None:
    """A group for each time."""
    path = tmp_path / "a.zarr"
    earlier, later = heaps_of(before), heaps_of(after)
    with (
        receiver(layout_of(), earlier + later, max_jump=None, chunks=60) as rx,
        Recorder(rx, path, queue=50) as recorder,
    ):
        for chunk in recorder:
            chunk.recycle()
        restarts = rx.stats().restarts
    ours = attributes(path)
    assert restarts == 1
    assert ours["parts"] == ["", "part_1"]
    first = attributes(path / "part_1")["first_timestamp"] // STEP
    assert first // BATCHES in after
    there = check_part(path, before[0] * BATCHES, earlier) + check_part(path / "part_1", first, later)
    assert there == recorder.stats().heaps == ours["account"]["present"]


#: A program that forks while it writes; the child leaves all blocks, and ends as any program does.
FORKS = """
import os, sys, warnings
import recordings, speadrx
warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
kind, path, when = sys.argv[1], sys.argv[2], int(sys.argv[3])
heaps = recordings.heaps_of(range(20))
parent = os.getpid()
with recordings.receiver(recordings.layout_of(), heaps, chunks=60) as rx:
    writer = speadrx.Recorder(rx, path, queue=50) if kind == "zarr" else speadrx.DadaWriter(rx, path)
    with writer:
        for number, chunk in enumerate(writer):
            with chunk:
                if number == when and not os.fork():
                    try:
                        writer.write(chunk)
                    except RuntimeError as exc:
                        assert "forked" in str(exc), exc
                        sys.exit(7)
                    sys.exit(1)
                if number == when:
                    assert os.wait()[1] == 7 << 8
assert os.getpid() == parent
"""


@pytest.mark.parametrize("when", [0, 12, 19])
@pytest.mark.parametrize("kind", ["zarr", "dada"])
def test_a_child_leaves_the_files_alone(tmp_path, kind, when) -> None:
    path = tmp_path / "night"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", FORKS, kind, str(path), str(when)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    heaps = heaps_of(range(20))
    if kind == "zarr":
        assert attributes(path)["complete"] is True
        assert check_part(path, 0, heaps) == len(heaps)
    else:
        (file,) = path.iterdir()
        content = file.read_bytes()
        assert b"\nHEAPS               240\n" in content[:4096]
        assert len(content) == 4096 + len(heaps) * 2 * SAMPLES


#: A program that is killed while it records several parts: it says how much it had written.
IS_KILLED = """
import sys, recordings, speadrx
heaps = recordings.heaps_of([*range(700, 790), *range(2, 90)])
with recordings.receiver(recordings.layout_of(), heaps, chunks=60, max_jump=None) as rx:
    recorder = speadrx.Recorder(rx, sys.argv[1], queue=50)
    for chunk in recorder:
        chunk.recycle()
        print(recorder.stats().chunks, flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_killed_with_several_parts(tmp_path, seed) -> None:
    path = tmp_path / "a.zarr"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", IS_KILLED, str(path)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        said = [int(process.stdout.readline()) for _ in range(random.Random(seed).randrange(60, 170))]
        process.send_signal(signal.SIGKILL)
    parts = attributes(path)["parts"]
    # A jump back of several windows costs each source a heap or two. The second part may begin before all 90 chunks of
    # the first are written, for some find the queue full.
    first = {"": 2800, **{name: attributes(path / name)["first_timestamp"] // STEP for name in parts[1:]}}
    heaps = {"": heaps_of(range(700, 790)), "part_1": heaps_of(range(2, 90))}
    present = sum(check_part(path / name, first[name], heaps[name], killed=True) for name in parts)
    assert present > (said[-1] - 2) * EACH if len(parts) > 1 else present >= said[-1] * EACH
    assert attributes(path)["complete"] is False
