"""`speadrx record` as its users run it: what was sent is in the recording, byte for byte, or named."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

import spead2

import speadrx
from complaints import complaints
from handmade import Heap, encode
from recordings import (
    ANTENNA_ID,
    ANTENNAS,
    BATCHES,
    SAMPLES,
    STEP,
    TIME_ID,
    attributes,
    check_part,
    heaps_of,
    layout_of,
    packets_of,
    read_array,
    receiver,
    value,
)
from speadrx import Axis
from speadrx.cli.pieces import Limits, Pieces
from terminals import PATIENCE, SPEADRX, Terminal, environment, piped, run, run_here, wait_for_line
from wire import write_capture

#: So few that any socket's buffer holds their packets.
FEW = 15
#: Bytes of a chunk: numbers, statuses, and what is present.
CHUNK_BYTES = BATCHES * ANTENNAS * (2 * SAMPLES + 2 + 1)


@pytest.fixture
def options(tmp_path):
    """Options of all runs."""
    path = tmp_path / "array.toml"
    path.write_text(layout_of().declaration.to_toml(), "utf-8")
    return ["-l", str(path), "-o", str(tmp_path / "a.zarr"), "--window=2", "--max-jump=5000", "--pool=40"]


def record(options, tmp_path, heaps, *args, start=run_here, code=0):
    """Record a capture of heaps; return the account."""
    capture = write_capture(tmp_path / "capture.pcap", packets_of(heaps))
    return json.loads(start("record", capture, *options, "--json", *args, code=code))


def send(port, heaps):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for packet in packets_of(heaps):
            sock.sendto(packet, ("127.0.0.1", port))


class TestCapture:
    def test_gaps(self, options, tmp_path):
        """Of a heap, of a chunk, and of a minute, which is 938 chunks: all that came is there, and only that."""
        chunks = [0, 1, 2, 4, 5, 5 + 938, 6 + 938]
        heaps = heaps_of(chunks, missing=[(1, 1), (18, 2)])
        account = record(options, tmp_path, heaps, start=run)
        assert check_part(tmp_path / "a.zarr", 0, heaps) == len(heaps)
        recording = account["recording"]
        assert (recording["heaps"], recording["chunks"]) == (account["present"], len(chunks)) == (len(heaps), 7)
        assert (recording["not_written"], recording["finished"]) == ({}, True)
        assert account["residual"] == 0
        written = attributes(tmp_path / "a.zarr")
        assert written["complete"] is True
        assert written["account"]["present"] == written["recorder"]["heaps"] == len(heaps)
        assert written["account"]["missing"] == account["missing"]

    def test_it_is_read_no_faster_than_it_can_be_written(self, options, tmp_path):
        heaps = heaps_of(range(300))
        account = record(options, tmp_path, heaps, "--pool=4")
        assert (account["recording"]["heaps"], account["recording"]["not_written"]) == (len(heaps), {})

    def test_read_by_zarr(self, options, tmp_path):
        zarr = pytest.importorskip("zarr")
        heaps = heaps_of([0, 2])
        record(options, tmp_path, heaps)
        group = zarr.open_group(tmp_path / "a.zarr", mode="r")
        wanted = [[[value(i, a, j) * ((i, a) in heaps) for j in range(SAMPLES)] for a in range(3)] for i in range(12)]
        assert group["data"][:].tolist() == wanted
        assert group["present"][:].tolist() == [[(i, a) in heaps for a in range(3)] for i in range(12)]

    def test_a_restart_begins_a_group(self, options, tmp_path):
        before, after = heaps_of([700, 701, 702]), heaps_of([2, 3, 4])
        options = [option for option in options if option != "--max-jump=5000"]
        account = record(options, tmp_path, before + after)
        assert account["restarts"] == 1
        path = tmp_path / "a.zarr"
        first = attributes(path / "part_1")["first_timestamp"] // STEP
        assert check_part(path, 2800, before) + check_part(path / "part_1", first, after) == account["present"]
        assert account["recording"]["parts"] == 2

    def test_no_time_is_negative(self, options, tmp_path):
        """As the account of a run said in which time restarted backwards."""
        options = [option for option in options if option != "--max-jump=5000"]
        capture = write_capture(tmp_path / "capture.pcap", packets_of(heaps_of([700, 701, 702]) + heaps_of([2, 3, 4])))
        shown = run_here("record", capture, *options)
        first = attributes(tmp_path / "a.zarr")["first_timestamp"]
        last = 4 * BATCHES * STEP
        assert f"Chunks: 6, from timestamp {first} to {last}, in between which time restarted." in shown
        assert " s of data" not in shown

    @pytest.mark.parametrize(
        ("limit", "chunks", "ended_by"),
        [
            ("--chunks=3", 3, "chunks"),
            (f"--max-bytes={3 * CHUNK_BYTES}", 3, "max_bytes"),
            (f"--max-bytes={4 * CHUNK_BYTES - 1}", 3, "max_bytes"),
            # A chunk has 64 ms.
            ("--seconds=192ms", 3, "seconds"),
            ("--seconds=193ms", 4, "seconds"),
        ],
    )
    def test_limits(self, options, tmp_path, limit, chunks, ended_by):
        """They are kept exactly, and what came after that is counted."""
        heaps = heaps_of(range(30), missing=[(1, 1)])
        account = record(options, tmp_path, heaps, limit)
        recording = account["recording"]
        kept = chunks * BATCHES * ANTENNAS - 1
        assert (recording["chunks"], recording["heaps"]) == (chunks, kept)
        assert recording["bytes"] == chunks * CHUNK_BYTES
        assert kept + recording["left_out"]["heaps"] == account["present"]
        assert account["ended_by"] in (ended_by, "end")  # the capture may end first
        assert read_array(tmp_path / "a.zarr/present").shape == (chunks * BATCHES, ANTENNAS)
        assert check_part(tmp_path / "a.zarr", 0, heaps) == kept

    def test_metadata_are_as_small_as_the_page_says(self, options, tmp_path):
        heaps = heaps_of(range(1000))
        record(options, tmp_path, heaps)
        files = [file for file in (tmp_path / "a.zarr").rglob("*") if file.is_file()]
        data = [file for file in files if file.name[:2] == "c." and file.parent.name in ("data", "present", "status")]
        assert len(data) == 3 * 1000
        assert sum(file.stat().st_size for file in set(files).difference(data)) < 10 * 1000 * BATCHES + 1e6

    @pytest.mark.parametrize("text", ["antenna=m2,1", "m2", "2", "antenna=0x2"])
    def test_select_by_label(self, options, tmp_path, text):
        """As `look` does."""
        labels = ["--set", "sources=antenna", "--set", 'source_labels=["m0", "m1", "m2"]']
        record([*options, *labels], tmp_path, heaps_of(range(3)), f"--select={text}")
        wanted = [2, 1] if "," in text else [2]
        assert attributes(tmp_path / "a.zarr")["select"] == {"antenna": wanted}
        cut = tmp_path / "cut.zarr"
        run_here("record", str(tmp_path / "a.zarr"), "-o", str(cut), "--select=m2")
        assert attributes(cut)["select"] == {"antenna": [2]}

    def test_select(self, options, tmp_path):
        heaps = heaps_of(range(5))
        record(options, tmp_path, heaps, "--select=antenna=2,0")
        data = read_array(tmp_path / "a.zarr/data")
        assert read_array(tmp_path / "a.zarr/antenna").tolist() == [0, 2]
        assert data.tolist() == [[[value(i, a, j) for j in range(SAMPLES)] for a in (0, 2)] for i in range(20)]
        assert attributes(tmp_path / "a.zarr")["select"] == {"antenna": [2, 0]}

    def test_compress(self, options, tmp_path):
        zarr = pytest.importorskip("zarr")
        heaps = heaps_of([0, 2])
        recording = record(options, tmp_path, heaps, "--compress=zstd")["recording"]
        group = zarr.open_group(tmp_path / "a.zarr", mode="r")
        wanted = [[[value(i, a, j) * ((i, a) in heaps) for j in range(SAMPLES)] for a in range(3)] for i in range(12)]
        assert group["data"][:].tolist() == wanted
        files = [file for name in ("data", "present", "status") for file in (tmp_path / "a.zarr" / name).glob("c.*")]
        assert all(file.read_bytes().startswith(b"\x28\xb5\x2f\xfd") for file in files)
        assert recording["bytes"] == sum(file.stat().st_size for file in files)

    def test_split(self, options, tmp_path):
        """Each piece is a recording by itself; the pieces lie on a grid, also after a gap."""
        chunks = [10, 11, 12, 13, 14, 15, 27, 28, 29, 30]
        heaps = heaps_of(chunks)
        account = record(options, tmp_path, heaps, "--split=320ms")  # 5 chunks
        paths = [pathlib.Path(path) for path in account["recording"]["paths"]]
        assert [path.name for path in paths] == [f"a_00{i}.zarr" for i in range(4)]
        firsts = [10, 15, 27, 30]
        assert [attributes(path)["first_timestamp"] // (STEP * BATCHES) for path in paths] == firsts
        present = [check_part(path, first * BATCHES, heaps) for path, first in zip(paths, firsts, strict=True)]
        assert [n // (BATCHES * ANTENNAS) for n in present] == [5, 1, 3, 1]
        assert account["recording"]["heaps"] == len(heaps)
        assert all(attributes(path)["complete"] for path in paths)

    def test_nothing_is_overwritten_unasked(self, options, tmp_path):
        record(options, tmp_path, heaps_of(range(9)), "--split=192ms")
        capture = str(tmp_path / "capture.pcap")
        errors = run_here("record", capture, *options, "--split=1s", code=2)
        assert "a_000.zarr exists: use --force" in errors
        record(options, tmp_path, heaps_of(range(2)), "--split=192ms", "--force")
        assert sorted(path.name for path in tmp_path.glob("*.zarr")) == ["a_000.zarr"]
        (tmp_path / "a.zarr").mkdir()
        (tmp_path / "a.zarr/mine").write_text("a night's work")
        for force in ([], ["--force"]):
            assert "a.zarr exists" in run_here("record", capture, *options, *force, code=2)
        assert (tmp_path / "a.zarr/mine").read_text() == "a night's work"

    def test_wrong_layout(self, options, tmp_path):
        """Nothing is recorded, which is an error; the recording is there, and says so."""
        capture = write_capture(tmp_path / "capture.pcap", packets_of(heaps_of([0])))
        process = subprocess.run(
            [*SPEADRX, "record", capture, *options, "--set", "heap_bytes=20"],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=PATIENCE,
        )
        assert process.returncode == 1
        assert "The layout says heap_bytes = 20, but the heaps" in process.stderr
        assert "Recorded: 0 heaps" in process.stdout
        assert attributes(tmp_path / "a.zarr")["account"]["present"] == 0


class TestNetwork:
    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_signals_finish_it(self, options, tmp_path, udp_port, signum):
        heaps = heaps_of(range(FEW), missing=[(1, 1), (18, 2)])
        with piped("record", f"127.0.0.1:{udp_port}", *options, "--json") as process:
            wait_for_line(process.stderr, "Receiving")
            send(udp_port, heaps)
            process.send_signal(signum)
            output, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
        account = json.loads(output)
        assert account["ended_by"] == "signal"
        assert account["present"] == account["recording"]["heaps"] == len(heaps)
        assert check_part(tmp_path / "a.zarr", 0, heaps) == len(heaps)
        assert attributes(tmp_path / "a.zarr")["complete"] is True

    def test_chunks_end_it(self, options, tmp_path, udp_port):
        heaps = heaps_of(range(FEW))
        with piped("record", f"127.0.0.1:{udp_port}", *options, "--chunks=4") as process:
            wait_for_line(process.stdout, "Receiving")
            send(udp_port, heaps)
            output, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, complaints(errors)) == (0, "")
        recorded = 4 * BATCHES * ANTENNAS
        assert f"Recorded: {recorded} heaps in 4 chunks" in output
        assert check_part(tmp_path / "a.zarr", 0, heaps) == recorded

    def test_seconds_end_it_with_nothing(self, options, tmp_path, udp_port):
        with piped("record", f"127.0.0.1:{udp_port}", *options, "--seconds=0.3", "--quiet") as process:
            output, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert complaints(errors).startswith("No packet came.")
        assert "Recorded: 0 heaps" in output
        assert attributes(tmp_path / "a.zarr")["parts"] == []

    def test_a_folder_that_is_removed(self, options, tmp_path, udp_port):
        """Nothing more can be recorded: it ends by itself, though nothing comes any more, and names the folder."""
        path = tmp_path / "a.zarr"
        with piped("record", f"127.0.0.1:{udp_port}", *options, "--interval=0.1") as process:
            wait_for_line(process.stdout, "Receiving")
            send(udp_port, heaps_of(range(7)))
            wait_for_line(process.stdout, "recorded 5 chunks")
            shutil.rmtree(path)
            output, errors = process.communicate(timeout=PATIENCE)
        each = BATCHES * ANTENNAS
        assert process.returncode == 3
        assert f"Not recorded: {2 * each} heaps in 2 chunks: the folder was gone (2)." in errors
        assert f"The folder was removed while it was recorded to: {path}." in errors
        assert "can be read" not in errors
        assert f"Recorded: {5 * each} heaps in 5 chunks" in output
        assert not path.exists()

    def test_a_disk_that_hangs(self, options, tmp_path, udp_port):
        """What is written into a pipe that nobody reads: the command ends, and says what it could not write."""
        heaps = heaps_of(range(FEW))
        data = tmp_path / "a.zarr/data"
        with piped("record", f"127.0.0.1:{udp_port}", *options, "--patience=200ms") as process:
            wait_for_line(process.stdout, "Receiving")
            data.mkdir()
            os.mkfifo(data / ".c.0.0.0.partial")
            send(udp_port, heaps)
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 3
        lost = f"{FEW * BATCHES * ANTENNAS} heaps in {FEW} chunks"
        assert f"Not recorded: {lost}: the disk did nothing any more ({FEW})." in errors
        assert "The recording can be read, but lacks its account." in errors
        assert "Recorded: 0 heaps in 0 chunks" in output
        assert attributes(tmp_path / "a.zarr")["complete"] is False

    @pytest.mark.parametrize("chunks", [1, 6, 13])
    def test_killed(self, options, tmp_path, udp_port, chunks):
        """What it had said to be recorded is there, and nothing that is there is wrong."""
        heaps = heaps_of(range(FEW))
        each = BATCHES * ANTENNAS
        with piped("record", f"127.0.0.1:{udp_port}", *options, "--interval=0.1") as process:
            wait_for_line(process.stdout, "Receiving")
            send(udp_port, heaps[: (chunks + 2) * each])
            wait_for_line(process.stdout, f"recorded {chunks} chunk")
            process.kill()
            process.communicate(timeout=PATIENCE)
        assert check_part(tmp_path / "a.zarr", 0, heaps, killed=True) == chunks * each
        assert attributes(tmp_path / "a.zarr")["complete"] is False

    def test_live_view(self, options, tmp_path, udp_port):
        terminal = Terminal("record", f"127.0.0.1:{udp_port}", *options, columns=100, rows=40)
        try:
            terminal.read_until(lambda: "recorded 0 chunks" in terminal.output)
            send(udp_port, heaps_of(range(FEW)))
            terminal.read_until(lambda: f"recorded {FEW - 2} chunks" in terminal.output)
            assert re.search(r"queue \d+/\d+", terminal.output)
            terminal.type("q")
            assert terminal.wait() == 0
        finally:
            terminal.close()
        assert f"Recorded: {FEW * BATCHES * ANTENNAS} heaps in {FEW} chunks" in " ".join(terminal.output.split())
        assert attributes(tmp_path / "a.zarr")["complete"] is True


class TestPieces:
    def test_a_piece_that_cannot_be_made(self, tmp_path):
        """The one before it goes on."""
        heaps = heaps_of(range(12))
        made = []

        def make(path, **kwargs):
            if len(made) == 1 and len(tries) < 2:
                tries.append(path)
                raise OSError("no space")
            made.append(path)
            return speadrx.Recorder(rx, path, wait=True, **kwargs)

        tries = []
        with receiver(layout_of(), heaps) as rx:
            pieces = Pieces(rx, str(tmp_path / "a.zarr"), make, 4 * BATCHES * STEP, Limits(), BATCHES * STEP)
            for chunk in rx:
                with chunk:
                    pieces.add(chunk)
            pieces.close()
        assert tries == [str(tmp_path / "a_001.zarr")] * 2
        assert [pathlib.Path(path).name for path in made] == ["a_000.zarr", "a_001.zarr", "a_002.zarr"]
        firsts = [attributes(pathlib.Path(path))["first_timestamp"] // (BATCHES * STEP) for path in made]
        assert firsts == [0, 6, 8]
        assert pieces.stats().heaps == len(heaps)
        for path, first in zip(made, firsts, strict=True):
            check_part(pathlib.Path(path), first * BATCHES, heaps)

    def test_time_that_begins_again_begins_no_piece(self, tmp_path):
        """From there on, pieces are as long as before."""
        heaps = heaps_of([700, 701, *range(2, 40)])

        def make(path, **kwargs):
            return speadrx.Recorder(rx, path, wait=True, **kwargs)

        with receiver(layout_of(), heaps, max_jump=None) as rx:
            pieces = Pieces(rx, str(tmp_path / "a.zarr"), make, 10 * BATCHES * STEP, Limits(), BATCHES * STEP)
            for chunk in rx:
                with chunk:
                    pieces.add(chunk)
            pieces.close()
        first, *others = [attributes(pathlib.Path(path)) for path in pieces.paths]
        assert first["parts"] == ["", "part_1"]
        assert others
        begin = attributes(pathlib.Path(pieces.paths[0]) / "part_1")["first_timestamp"]
        assert [(piece["first_timestamp"] - begin) // (BATCHES * STEP) for piece in others] == [10, 20, 30][
            : len(others)
        ]
        assert pieces.stats().parts == 2 + len(others)


class TestForce:
    """What is there already is removed only if it is a recording, and only once nothing else is wrong."""

    @pytest.fixture
    def old(self, options, tmp_path):
        """A recording in the place of the new one."""
        record(options, tmp_path, heaps_of([0]))
        return attributes(tmp_path / "a.zarr")["ended"]

    def test_an_old_recording_is_replaced(self, options, old, tmp_path):
        record(options, tmp_path, heaps_of([1, 2]), "--force")
        assert attributes(tmp_path / "a.zarr")["ended"] != old
        assert check_part(tmp_path / "a.zarr", 4, heaps_of([1, 2])) == len(heaps_of([1, 2]))

    @pytest.mark.parametrize(
        "args", [["--select=antena=1"], ["--select=antenna=77"], ["--max-bytes=1"], ["--interface=lo"]]
    )
    def test_wrong_usage_removes_nothing(self, options, old, tmp_path, args):
        run_here("record", str(tmp_path / "capture.pcap"), *options, "--force", *args, code=2)
        assert attributes(tmp_path / "a.zarr")["ended"] == old

    @pytest.mark.parametrize("args", [["--select=antena=1"], ["--max-bytes=1"]])
    def test_a_wrong_cut_removes_nothing(self, options, old, tmp_path, args):
        path = str(tmp_path / "b.zarr")
        run_here("record", str(tmp_path / "a.zarr"), "-o", path)
        ended = attributes(tmp_path / "b.zarr")["complete"], os.stat(path).st_ino
        run_here("record", str(tmp_path / "a.zarr"), "-o", path, "--force", *args, code=2)
        assert (attributes(tmp_path / "b.zarr")["complete"], os.stat(path).st_ino) == ended

    def test_a_capture_that_cannot_be_read_removes_nothing(self, options, old, tmp_path):
        (tmp_path / "bad.pcap").write_bytes(b"no capture at all")
        run_here("record", str(tmp_path / "bad.pcap"), *options, "--force", code=2)
        assert attributes(tmp_path / "a.zarr")["ended"] == old

    @pytest.mark.parametrize("of", ["capture.pcap", "a.zarr"])
    def test_a_codec_that_is_not_installed_removes_nothing(self, options, old, tmp_path, monkeypatch, of):
        path = tmp_path / "b.zarr"
        run_here("record", str(tmp_path / "a.zarr"), "-o", str(path), "--quiet")
        before = os.stat(path).st_ino
        monkeypatch.setitem(sys.modules, "numcodecs", None)
        monkeypatch.setitem(sys.modules, "numcodecs.zstd", None)
        layout = options[:2] if of == "capture.pcap" else []
        run_here("record", str(tmp_path / of), *layout, "-o", str(path), "--force", "--compress=zstd", code=2)
        assert os.stat(path).st_ino == before

    def test_old_pieces_go(self, options, old, tmp_path):
        record([*options, "--split=64ms"], tmp_path, heaps_of(range(3)))
        assert (tmp_path / "a_002.zarr").is_dir()
        record([*options, "--split=64ms", "--force"], tmp_path, heaps_of(range(2)))
        assert [path.name for path in sorted(tmp_path.glob("a_*"))] == ["a_000.zarr", "a_001.zarr"]

    def test_an_interface_that_is_not_there_removes_nothing(self, options, old, tmp_path):
        run_here("record", ":7148", *options, "--force", "--interface=nosuch0", code=2)
        assert attributes(tmp_path / "a.zarr")["ended"] == old

    def test_other_groups_of_zarr_stay(self, options, tmp_path):
        capture = write_capture(tmp_path / "capture.pcap", packets_of(heaps_of([0])))
        other = tmp_path / "a.zarr"
        other.mkdir()
        document = {"zarr_format": 3, "node_type": "group", "attributes": {"whose": "somebody else's"}}
        (other / "zarr.json").write_text(json.dumps(document))
        assert "is no recording" in run_here("record", capture, *options, "--force", code=2)
        with receiver(layout_of(), heaps_of([0])) as rx, pytest.raises(FileExistsError):
            speadrx.Recorder(rx, other, overwrite=True)
        assert json.loads((other / "zarr.json").read_text()) == document


class TestSelection:
    def test_chunks_without_it_do_not_count(self, options, tmp_path):
        """Antenna 1 comes late: what has none of it is as what never came."""
        heaps = [(batch, antenna) for batch, antenna in heaps_of(range(8)) if antenna != 1 or batch >= 4 * BATCHES]
        wanted = [heap for heap in heaps if heap[1] == 1 and heap[0] < 7 * BATCHES]
        account = record(options, tmp_path, heaps, "--select=antenna=1", "--chunks=3")
        assert account["recording"]["heaps"] == len(wanted) == 3 * BATCHES
        account = record([*options, "--force"], tmp_path, heaps, "--select=antenna=1", "--seconds=128ms")  # two chunks
        assert account["recording"]["heaps"] == 2 * BATCHES

    def test_twice_the_same(self, options, tmp_path):
        heaps = heaps_of(range(2))
        account = record(options, tmp_path, heaps, "--select=antenna=1,1", "--select=antenna=1")
        assert account["recording"]["heaps"] == 2 * BATCHES
        assert attributes(tmp_path / "a.zarr")["select"] == {"antenna": [1]}


def test_numbers_of_an_axis_are_what_senders_send(options, tmp_path):
    """Of an axis with a step, too: where it is selected, in coordinates, and where one looks at it."""
    zarr = pytest.importorskip("zarr")
    layout = layout_of(
        axes=(Axis(name="antenna", item=ANTENNA_ID, step=2, size=ANTENNAS),), sources="antenna", side_items=()
    )
    pathlib.Path(options[1]).write_text(layout.to_toml(), "utf-8")
    packets = [
        packet
        for count, (batch, antenna) in enumerate(heaps_of(range(3)), 1)
        for packet in encode(
            Heap(
                {spead2.HEAP_LENGTH_ID: 2 * SAMPLES, TIME_ID: batch * STEP, ANTENNA_ID: 2 * antenna},
                struct.pack(f">{SAMPLES}h", *(value(batch, antenna, i) for i in range(SAMPLES))),
            ),
            count,
            48,
        )
    ]
    capture = write_capture(tmp_path / "capture.pcap", packets)
    night, whole, cut = str(tmp_path / "a.zarr"), str(tmp_path / "whole.zarr"), str(tmp_path / "cut.zarr")
    run_here("record", capture, *options, "--select", "antenna=2")
    run_here("record", capture, *options, "-o", whole)
    run_here("record", whole, "-o", cut, "--select", "antenna=2")
    wanted = [[value(i, 1, j) for j in range(SAMPLES)] for i in range(3 * BATCHES)]
    for path in (night, cut):
        group = zarr.open_group(path, mode="r")
        assert group["antenna"][:].tolist() == [2]
        assert group["data"][:, 0].tolist() == wanted
    assert zarr.open_group(whole, mode="r")["antenna"][:].tolist() == [0, 2, 4]
    for source in ([capture, *options[:2]], [whole]):
        (level,) = json.loads(run_here("look", *source, "--source", "antenna=2", "--json"))["sources"]
        assert level["label"] == "2"
        assert (level["low"], level["high"]) == (value(0, 1, 0), value(11, 1, SAMPLES - 1))
    bad = str(tmp_path / "bad.zarr")
    for command in (["look", whole, "--source", "antenna=1"], ["record", whole, "-o", bad, "--select", "antenna=1"]):
        assert "0, 2, 4" in run_here(*command, code=2)


def test_seconds_go_on_when_time_begins_again(options, tmp_path):
    options = [option for option in options if option != "--max-jump=5000"]
    heaps = [*heaps_of(range(700, 704)), *heaps_of(range(2, 12))]
    account = record(options, tmp_path, heaps, "--seconds=384ms")  # six chunks
    assert account["recording"]["chunks"] == 6
    assert account["recording"]["parts"] == 2
