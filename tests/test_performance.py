"""The table of all benchmarks, and the page that is made of it. Nothing is timed here."""

import json
import pathlib
import re
import runpy
import sys
import xml.etree.ElementTree as ET

import pytest

pytest.importorskip("matplotlib")

ROOT = pathlib.Path(__file__).parents[1]
BENCHES = ROOT / "benches"


@pytest.fixture
def benches(monkeypatch):
    monkeypatch.syspath_prepend(BENCHES)
    yield lambda name: runpy.run_path(str(BENCHES / f"{name}.py"))
    sys.modules.pop("rows", None)


def test_ratio_is_that_of_neighbours_in_time(benches):
    rows = benches("rows")
    # The machine was ten times slower in the last two turns, for both.
    entry = rows["row"]("it", "rival", "ns", [1, 2, 30, 10], [2, 2, 20, 20], most=1.0)
    assert entry["ratio"] == 0.75
    assert entry["quartiles"] == [0.5, 1.125]
    assert (entry["ours"], entry["theirs"], entry["turns"]) == (6.0, 11.0, 4)
    assert rows["is_met"](entry) is True


@pytest.mark.parametrize(
    ("bounds", "words", "met"),
    [
        ({}, "", [None, None, None]),
        ({"most": 0.5}, "at most 0.5", [True, False, False]),
        ({"least": 0.9}, "at least 0.9", [False, True, True]),
        ({"least": 0.9, "most": 1.1}, "at least 0.9", [False, True, False]),
    ],
)
def test_what_is_wanted_is_said_and_judged(benches, bounds, words, met):
    rows = benches("rows")
    entries = [rows["row"]("it", "rival", "s", [ratio] * 3, [1.0] * 3, **bounds) for ratio in (0.5, 1.0, 1.2)]
    assert [rows["is_met"](entry) for entry in entries] == met
    assert words in rows["wanted"](entries[0])
    titles, *lines = rows["table"](entries)
    assert [line[-1] for line in lines] == [{None: "", True: "yes", False: "no"}[each] for each in met]
    assert {len(line) for line in lines} == {len(titles)}


def test_every_benchmark_of_the_table_is_there_and_takes_its_arguments(benches):
    table = benches("table")
    for script, *ways in table["SCRIPTS"]:
        text = (BENCHES / script).read_text("utf-8")
        for option in {"--json", *(word for way in ways for word in way if word.startswith("--"))}:
            assert f'"{option}"' in text, f"{script} has no {option}"


def test_rows_of_benchmarks_with_documents_of_their_own(benches):
    table = benches("table")
    rates = {"gigabits_per_second": [2.0, 4.0, 6.0]}
    sent = {"results": [{"case": "heaps", "speadrx": rates, "spead2": rates}, {"case": "capture file"}]}
    (row,) = table["from_send"](sent)
    assert (row["what"], row["ratio"], row["ours"], row["least"]) == ("send: heaps", 1.0, 4.0, 0.9)
    figure = {"quartiles": [0.5, 2.0], "repeats": 7}
    recorded = {
        "recorded, GB/s": figure | {"median": 1.5},
        "rate / zarr-python": figure | {"median": 1.25},
        "lock held, ms per GB": {"median": 10.0, "quartiles": [5.0, 15.0], "repeats": 7},
    }
    by_zarr, lock = table["from_record"]({"figures": recorded})
    assert (by_zarr["rival"], by_zarr["ratio"], by_zarr["theirs"]) == ("zarr-python", 1.25, 1.2)
    assert (lock["ours"], lock["ratio"], lock["quartiles"]) == (10.0, 2.0, [1.0, 3.0])


@pytest.fixture
def document():
    return json.loads((ROOT / "doc" / "performance.json").read_text("utf-8"))


def test_page_in_the_documents_is_what_is_made(benches, document, tmp_path, monkeypatch):
    performance = benches("performance")
    monkeypatch.setattr(sys, "argv", ["performance.py", "--folder", str(tmp_path)])
    performance["main"]()
    assert (tmp_path / "performance.md").read_text("utf-8") == (ROOT / "doc" / "performance.md").read_text("utf-8")
    for folder in (tmp_path, ROOT / "doc"):
        texts = [each.text for each in ET.parse(folder / "performance.svg").iter() if each.text]
        assert {"sources", "bytes of a heap", "threads", "streams"} <= {text.strip() for text in texts}


def test_page_says_whether_its_figures_count(benches, document):
    page = benches("performance")["page"]
    for quick, load, is_provisional in ((False, 0.3, False), (True, 0.3, True), (False, 7.0, True)):
        text = page(document | {"quick": quick, "load": load})
        assert ("provisional" in text) is is_provisional
        assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120


def test_curves_reach_from_the_least_to_the_most(document):
    ends = {curve["x_label"]: (curve["x"][0], curve["x"][-1]) for curve in document["curves"]}
    assert ends == {"sources": (4, 4096), "bytes of a heap": (64, 65536), "threads": (1, 8), "streams": (1, 1024)}
    for curve in document["curves"]:
        for series in curve["series"].values():
            assert {len(values) for values in series.values()} == {len(curve["x"])}
            for low, median, high in zip(series["low"], series["median"], series["high"], strict=True):
                assert low <= median <= high


def test_table_has_no_row_twice(document):
    names = [row["what"] + row["rival"] for row in document["rows"]]
    assert len(names) == len(set(names))
    assert re.search(r"callback, geometric mean", " ".join(names))
