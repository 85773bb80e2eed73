"""A disk that runs full, or may not be written to any more, while a receiver records: what is missing is named."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import subprocess

import pytest

from loopback import wait_for
from network import leave_out
from recordings import ANTENNAS, BATCHES, attributes, check_part, heaps_of, layout_of, packets_of, receiver
from speadrx import Recorder
from terminals import PATIENCE, SPEADRX, environment
from wire import write_capture


@pytest.fixture
def disk(tmp_path):
    """A file system of 1 MiB."""
    if os.geteuid() or shutil.which("mount") is None:
        leave_out("needs root, and the program mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def record(folder: pathlib.Path, heaps, between) -> Recorder:
    """Record chunks one after the other, with something done after each."""
    with receiver(layout_of(), heaps) as rx, Recorder(rx, folder / "a.zarr") as recorder:
        for number, chunk in enumerate(recorder):
            with chunk:
                wait_for(lambda: recorder.stats().queued == 0)
                between(number)
    return recorder


def test_full_for_a_while(disk) -> None:
    heaps = heaps_of(range(30))
    filler = disk / "filler"

    def between(number: int) -> None:
        if number == 9:
            with filler.open("wb") as file, contextlib.suppress(OSError):
                while True:
                    os.write(file.fileno(), bytes(4096))
        if number == 19:
            filler.unlink()

    stats = record(disk, heaps, between).stats()
    assert (stats.chunks, stats.not_written, stats.finished) == (20, {"disk_full": 10}, True)
    assert "No space" in stats.first_error
    assert stats.heaps + stats.heaps_not_written == len(heaps)
    assert check_part(disk / "a.zarr", 0, heaps) == stats.heaps == 20 * BATCHES * ANTENNAS


def test_full_to_the_end(disk) -> None:
    """Even then the recording is finished, and has its account: space was kept for it."""
    heaps = heaps_of(range(30))

    def between(number: int) -> None:
        if number == 9:
            with (disk / "filler").open("wb") as file, contextlib.suppress(OSError):
                while True:
                    os.write(file.fileno(), bytes(4096))

    stats = record(disk, heaps, between).stats()
    assert (stats.chunks, stats.not_written, stats.finished) == (10, {"disk_full": 20}, True)
    assert attributes(disk / "a.zarr")["recorder"]["not_written"] == {"disk_full": 20}
    assert check_part(disk / "a.zarr", 0, heaps) == 10 * BATCHES * ANTENNAS
    assert not list(disk.rglob("*.partial"))


def test_read_only_for_a_while(disk) -> None:
    heaps = heaps_of(range(30))

    def between(number: int) -> None:
        if number in (9, 19):
            how = "ro" if number == 9 else "rw"
            subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)

    stats = record(disk, heaps, between).stats()
    assert (stats.chunks, stats.not_written, stats.finished) == (20, {"not_allowed": 10}, True)
    assert check_part(disk / "a.zarr", 0, heaps) == 20 * BATCHES * ANTENNAS


def test_command(disk, tmp_path) -> None:
    """What is written is there, and what is not is named; the exit code says it."""
    heaps = heaps_of(range(300))
    capture = write_capture(tmp_path / "capture.pcap", packets_of(heaps))
    (tmp_path / "array.toml").write_text(layout_of().declaration.to_toml(), "utf-8")
    command = ["record", capture, "-l", str(tmp_path / "array.toml"), "-o", str(disk / "a.zarr"), "--json"]
    done = subprocess.run([*SPEADRX, *command], capture_output=True, text=True, env=environment(), timeout=PATIENCE)
    assert done.returncode == 3, done.stderr
    recording = json.loads(done.stdout)["recording"]
    lost = recording["not_written"]["disk_full"]
    assert (recording["chunks"] + lost, recording["finished"]) == (300, True)
    assert (
        f"Not recorded: {lost * BATCHES * ANTENNAS:,} heaps in {lost} chunks: the disk was full ({lost})."
        in done.stderr
    )
    assert "No space" in done.stderr
    assert (
        0 < check_part(disk / "a.zarr", 0, heaps) == recording["heaps"] == len(heaps) - recording["heaps_not_written"]
    )
    assert attributes(disk / "a.zarr")["recorder"]["not_written"] == {"disk_full": lost}


@pytest.mark.parametrize("compress", [None, "zstd"])
def test_cutting_a_recording(disk, tmp_path, compress) -> None:
    """What fits is there, compressed or not; the rest is named."""
    zarr = pytest.importorskip("zarr")
    heaps = heaps_of(range(300))
    with receiver(layout_of(), heaps) as rx, Recorder(rx, tmp_path / "night.zarr", wait=True) as recorder:
        for chunk in recorder:
            chunk.recycle()
    with (disk / "filler").open("wb") as file:
        file.write(bytes(2**18))
    command = ["record", str(tmp_path / "night.zarr"), "-o", str(disk / "a.zarr"), "--json"]
    command += [] if compress is None else ["--compress", compress]
    done = subprocess.run([*SPEADRX, *command], capture_output=True, text=True, env=environment(), timeout=PATIENCE)
    assert done.returncode == 3, done.stderr
    recording = json.loads(done.stdout)["recording"]
    lost = recording["not_written"]["disk_full"]
    assert (recording["chunks"] + lost, recording["finished"]) == (300, True)
    assert recording["heaps"] + recording["heaps_not_written"] == len(heaps)
    group = zarr.open_group(disk / "a.zarr", mode="r")
    present = group["present"][:]
    assert 0 < present.sum() == recording["heaps"]
    whole = zarr.open_group(tmp_path / "night.zarr", mode="r")["data"][: len(present)]
    assert (group["data"][:][present] == whole[present]).all()
    assert not list(disk.rglob("*.partial"))


def test_compressed(disk, tmp_path) -> None:
    """A recording that is compressed while the disk runs full, and has room again."""
    zarr = pytest.importorskip("zarr")
    heaps = heaps_of(range(30))
    with (
        receiver(layout_of(), heaps) as rx,
        Recorder(rx, disk / "a.zarr", compress="zstd", threads=2) as recorder,
    ):
        for number, chunk in enumerate(recorder):
            with chunk:
                wait_for(lambda: recorder.stats().queued == 0)
                if number == 9:
                    with (disk / "filler").open("wb") as file, contextlib.suppress(OSError):
                        while True:
                            os.write(file.fileno(), bytes(4096))
                if number == 19:
                    (disk / "filler").unlink()
    stats = recorder.stats()
    assert (stats.chunks, stats.not_written, stats.finished) == (20, {"disk_full": 10}, True)
    present = zarr.open_group(disk / "a.zarr", mode="r")["present"][:]
    assert present.sum() == stats.heaps == 20 * BATCHES * ANTENNAS
    assert not present[10 * BATCHES : 20 * BATCHES].any()
