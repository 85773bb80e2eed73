"""`speadrx plot` and `speadrx top` of a recording say what a receiver has said, and what is in the files."""

import json
import shutil

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("zarr")

from recordings import ANTENNAS, BATCHES, STEP, heaps_of, layout_of, packets_of
from terminals import run_here
from wire import write_capture

#: The chunks that come: 3 and those from 6 to 9 do not. Then time begins again.
CHUNKS = [0, 1, 2, 4, 5, 10, 11]
AGAIN = range(2**21, 2**21 + 3)


def labelled(**changes):
    return layout_of(sources="antenna", name="array", **changes)


@pytest.fixture
def recorded(tmp_path):
    """Record heaps; return the folder of the capture, its layout, and its recording."""

    def record(heaps, *args, layout=None):
        (tmp_path / "array.toml").write_text((layout or labelled()).to_toml(), "utf-8")
        capture = write_capture(tmp_path / "capture.pcap", packets_of(heaps))
        options = ["-l", str(tmp_path / "array.toml"), "--window=2", "--max-jump=5000", "--json", "--force"]
        run_here("record", capture, *options, "-o", str(tmp_path / "night.zarr"), *args)
        return tmp_path

    return record


def plotted(folder, source="night.zarr", *args):
    return json.loads(run_here("plot", str(folder / source), "--json", *args))


def test_plot_of_a_recording_is_that_of_its_capture(recorded):
    missing = [(1, 1), (18, 2), (19, 0)]
    heaps = heaps_of(CHUNKS, missing=missing)
    folder = recorded(heaps)
    found = plotted(folder)
    wanted = plotted(folder, "capture.pcap", "-l", str(folder / "array.toml"), "--set", "time.batches=4")
    for name in (
        "layout",
        "tick_rate",
        "chunks",
        "present",
        "missing",
        "expected",
        "loss",
        "restarts",
        "sources",
        "rows",
    ):
        assert found[name] == wanted[name], name
    # And of what was sent.
    sent = [sum(antenna == one for _, antenna in heaps) for one in range(ANTENNAS)]
    assert [source["present"] for source in found["sources"]] == sent
    assert found["expected"] == 12 * BATCHES * ANTENNAS
    assert found["capture"] is None


def test_rows_are_the_batches_that_are_there(recorded):
    """The first and the last chunk are not full: what is beyond is not missing."""
    heaps = [(batch, antenna) for batch in (2, 3, 5, 6) for antenna in range(ANTENNAS) if (batch, antenna) != (3, 1)]
    found = plotted(recorded(heaps))
    assert found["rows"]["timestamp"] == [STEP * batch for batch in range(2, 7)]
    assert found["rows"]["present"] == [[1, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [1, 1, 1]]
    assert (found["present"], found["missing"]) == (11, 4)
    assert found["began"] == 1_700_000_000 + 2 * STEP / 1000


def test_time_that_jumps_very_far_is_a_restart(recorded):
    heaps = heaps_of([*range(3), *AGAIN])
    found = plotted(recorded(heaps))
    assert found["restarts"] == 1
    assert sum(found["rows"]["restarts"]) == 1
    assert found["present"] + found["missing"] == found["expected"] < 7 * BATCHES * ANTENNAS
    assert found["present"] >= len(heaps) - 2 * ANTENNAS, "a few heaps are lost until the new time is believed"


def test_selected_sources(recorded):
    heaps = heaps_of(range(4), missing=[(1, 1), (2, 2), (3, 2)])
    found = plotted(recorded(heaps, "--select", "antenna=0,2"))
    assert [(source["label"], source["missing"]) for source in found["sources"]] == [("0", 0), ("2", 2)]
    assert found["expected"] == 4 * BATCHES * 2


def test_without_sources(recorded):
    found = plotted(recorded(heaps_of(range(4), missing=[(5, 1)]), layout=layout_of()))
    assert [(source["present"], source["missing"]) for source in found["sources"]] == [(47, 1)]


def test_figure(recorded, monkeypatch):
    pytest.importorskip("matplotlib")
    folder = recorded(heaps_of(CHUNKS))
    monkeypatch.chdir(folder)
    assert run_here("plot", "night.zarr") == "night.png: 58.3 % of 144 heaps present, 60 missing (41.7 %).\n"
    assert (folder / "night.png").stat().st_size > 1000


def test_recording_has_its_layout(recorded):
    folder = recorded(heaps_of(range(2)))
    errors = run_here("plot", str(folder / "night.zarr"), "-l", str(folder / "array.toml"), code=2)
    assert "leave out --layout" in " ".join(errors.split())


@pytest.mark.parametrize("once", [["--once"], []])
def test_top_shows_the_account(recorded, once):
    folder = recorded(heaps_of(CHUNKS, missing=[(1, 1), (2, 1)]))
    text = run_here("top", str(folder / "night.zarr"), *once)
    assert "Expected: 144 heaps = 82 present + 62 missing (43.06%)." in text
    worst = text.split("antenna", 1)[1].splitlines()[1].split()
    assert worst[:2] == ["1", "45.83%"], "the worst source comes first"
    document = json.loads(run_here("top", str(folder / "night.zarr"), *once, "--json"))
    assert (document["present"], document["missing"], document["residual"]) == (82, 62, 0)
    assert document["recording"] == str(folder / "night.zarr")


def test_top_of_a_recording_whose_writer_was_killed(recorded):
    """It has no account, but what it holds can be drawn."""
    folder = recorded(heaps_of(range(3)))
    path = folder / "night.zarr/zarr.json"
    root = json.loads(path.read_text())
    ours = root["attributes"]["speadrx"]
    del ours["account"], ours["ended"]
    ours["complete"] = False
    path.write_text(json.dumps(root))
    errors = " ".join(run_here("top", str(folder / "night.zarr"), code=2).split())
    assert "lacks its account" in errors
    assert "speadrx plot" in errors
    found = plotted(folder)
    assert (found["present"], found["missing"]) == (36, 0)
    shutil.rmtree(folder / "night.zarr/present")
    assert "night.zarr" in run_here("plot", str(folder / "night.zarr"), "--json", code=2)


def test_what_is_no_recording(tmp_path):
    assert "is not a recording" in run_here("top", str(tmp_path), code=2)
