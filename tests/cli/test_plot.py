"""`speadrx plot` as its users run it: histories and captures, numbers and figures."""

import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from speadrx.history import History

from interruption import started
from receiving import receiver
from speadrx import Axis, Chunk, Layout, Receiver, TimeAxis
from speadrx.simulate import Faults, InprocSink, PcapSink, Simulator
from terminals import PATIENCE, SPEADRX, Terminal, environment
from terminals import run as run_command

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

import click.testing
from matplotlib.image import imread

from speadrx.accounts import figures
from speadrx.cli.group import group

LAYOUT = Layout(
    name="array of five",
    heap_bytes=64,
    time=TimeAxis(item=0x1600, step=4096, batches=8, tick_rate=1e6),
    axes=(Axis(name="antenna", item=0x4101, size=5),),
    sources="antenna",
    source_labels=("m000", "m001", "$x^$", "d_e", "antenna <5> & more"),
)
FAULTS = Faults(loss=0.05, reorder=6, duplicate=0.02, garbage=0.03, late=0.02, late_by=40)


def run(*args, code=0):
    return run_command("plot", *map(str, args), code=code)


@pytest.fixture
def layout_file(tmp_path):
    file = tmp_path / "layout.toml"
    file.write_text(LAYOUT.to_toml())
    return file


@pytest.fixture
def capture(tmp_path):
    """A capture with losses, and with senders that begin again."""
    file = tmp_path / "run.pcap"
    with PcapSink(file) as sink:
        Simulator(LAYOUT, faults=FAULTS, first_timestamp=4096 * 10**6).send(sink, batches=600)
        Simulator(LAYOUT, faults=FAULTS, seed=2).send(sink, batches=300)
    return file


def received(capture):
    """What a receiver says of the capture, and its history."""
    history = History(LAYOUT)
    with Receiver(LAYOUT, capture) as rx:
        for chunk in rx:
            with chunk:
                history.add(chunk)
        history.finish(rx.stats())
        return dataclasses.asdict(rx.stats()), history


def assert_numbers(numbers, stats):
    """The numbers are those of the receiver, and the rows add up to them."""
    left_out = {"seconds", "data_ring", "free_ring", "sources", "first_timestamp", "last_timestamp"}
    left_out |= {"in_flight", "measured_tick_rate"}  # of a receiver that runs
    left_out |= {"rejections", "shared_counters", "unused"}  # a history does not have them
    for name in stats.keys() - left_out:
        assert numbers[name] == stats[name], name
    for found, expected in zip(numbers["sources"], stats["sources"], strict=True):
        assert found["expected"] == expected["present"] + expected["missing"]
        del expected["newest_timestamp"], expected["estranged"]
        assert expected.pop("in_flight") == 0, "the run has ended"
        assert expected.items() <= found.items()
    rows = numbers["rows"]
    np.testing.assert_array_equal(np.sum(rows["present"], axis=0), [source["present"] for source in numbers["sources"]])
    assert sum(rows["batches"]) * numbers["batch_heaps"] == numbers["sources"][0]["expected"]
    assert sum(rows["restarts"]) == numbers["restarts"]


def test_numbers_of_a_capture_are_those_of_the_receiver(capture, layout_file):
    stats, _ = received(capture)
    assert stats["restarts"] == 1
    assert stats["missing"]
    assert sum(stats["rejected"].values())
    numbers = json.loads(run(capture, "-l", layout_file, "--json"))
    assert numbers["source"] == str(capture)
    assert (numbers["tick_rate"], numbers["time_step"]) == (1e6, 4096)
    assert_numbers(numbers, stats)
    assert not list(capture.parent.glob("*.png"))


def test_numbers_of_a_history_are_those_of_the_receiver(capture, tmp_path):
    stats, history = received(capture)
    file = tmp_path / "history"  # what it is shows in what is in it
    history.write(file)
    assert_numbers(json.loads(run(file, "--json")), stats)


def test_layout_can_be_changed(capture, layout_file):
    numbers = json.loads(run(capture, "-l", layout_file, "--set", "time.batches=16", "--json"))
    assert numbers["chunk_batches"] == 16


def png_size(file):
    height, width, _ = imread(file).shape
    return width, height


def test_figure_has_the_name_of_the_source_and_the_size_asked_for(capture, layout_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = run(capture, "-l", layout_file)
    stats, history = received(capture)
    assert output == f"run.png: {figures.summary(history)}.\n"
    assert f"{stats['missing']:,} missing" in output
    assert "1 restart" in output
    assert png_size(tmp_path / "run.png") == (1200, 800)
    run(capture, "-l", layout_file, "--size", "800x500", "-o", "small.PNG")
    assert png_size(tmp_path / "small.PNG") == (800, 500)


def texts_of(file):
    return {element.text for element in ET.parse(file).iter() if element.tag.endswith("}text")}


def test_svg_has_all_labels_and_is_the_same_each_time(capture, layout_file, tmp_path):
    files = [tmp_path / "one.svg", tmp_path / "two.svg"]
    stats, _ = received(capture)
    for file in files:
        numbers = json.loads(run(capture, "-l", layout_file, "-o", file, "--json"))
    assert_numbers(numbers, stats)
    assert files[0].read_bytes() == files[1].read_bytes()
    texts = texts_of(files[0])
    assert {*LAYOUT.source_labels[:4], "antenna", "too old", "missing, for any reason", "heaps"} <= texts
    assert "antenna \N{HORIZONTAL ELLIPSIS} & more" in texts or any("more" in text for text in texts if text)
    assert f"{stats['missing']:,}" in texts
    for reason, heaps in stats["rejected"].items():
        name = f"rejected: {reason.removesuffix('_heaps').replace('_', ' ')}"
        assert (name in texts) == bool(heaps)
        assert not heaps or f"{heaps:,}" in texts
    assert any("time begins again" in text for text in texts if text)
    assert "data received from timestamp 4096000000 on, s" in texts


def test_time_without_a_rate_is_in_batches(capture, layout_file, tmp_path):
    file = tmp_path / "batches.svg"
    run(capture, "-l", layout_file, "--set", "time.tick_rate=", "-o", file)
    assert "data received from timestamp 4096000000 on, batches" in texts_of(file)


def test_names_from_elsewhere_make_a_figure_that_can_be_read(capture, tmp_path):
    _, history = received(capture)
    document = history.to_json()
    n = len(document["source_labels"])
    document |= {"source_labels": ["\x1b[31m\0\ud800"] * n, "source_axis": "$\n" * 100, "layout": "\x07"}
    document["accounts"] |= {"rejected": {"\x01" * 100: 3, "\x02" * 100: 4}, "late_batches": [1] * 65}
    history = History.from_json(document)
    file = tmp_path / "odd.svg"
    figures.save(figures.draw(history, title="\x1b", size=(1200, 800)), file)
    assert {"?[31m??", "3", "4", "2^63"} <= texts_of(file)


def test_nothing_received_is_said(layout_file, tmp_path):
    capture = tmp_path / "other.pcap"
    other = dataclasses.replace(LAYOUT, heap_bytes=32)
    with PcapSink(capture) as sink:
        Simulator(other).send(sink, batches=10)
    result = subprocess.run(
        [*SPEADRX, "plot", capture, "-l", layout_file, "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    numbers = json.loads(result.stdout)
    assert (numbers["present"], numbers["rejected"]["metadata_heaps"], result.returncode) == (0, 50, 1)
    assert result.stderr == f"{capture}: nothing was received\n"
    file = tmp_path / "nothing.svg"
    subprocess.run([*SPEADRX, "plot", capture, "-l", layout_file, "-o", file], check=False, env=environment())
    assert {"Nothing was received.", "rejected: metadata", "50"} <= texts_of(file)


def test_what_cannot_be_used_is_named(capture, layout_file, tmp_path):
    history = tmp_path / "history.json"
    History(LAYOUT).write(history)
    misnamed = tmp_path / "history.png"
    History(LAYOUT).write(misnamed)
    text = tmp_path / "text"
    text.write_text("heaps")
    cut = tmp_path / "cut.json"
    cut.write_text(history.read_text()[:100])
    wrong = tmp_path / "wrong.json"
    wrong.write_text(history.read_text().replace('"version":1', '"version":7'))
    for args, message in [
        ([tmp_path / "absent"], "does not exist"),
        ([tmp_path], "is not a recording"),
        ([text], f"{text} is not a history; if it is a capture, give its layout with -l/--layout"),
        ([text, "-l", layout_file], "is not a pcap or pcapng file"),
        ([capture, "-l", "nowhere.toml"], "nowhere.toml"),
        ([capture, "-l", layout_file, "--set", "time.batches=0"], "batches"),
        ([history, "-l", layout_file], "is a history: leave out --layout and --set"),
        ([history, "--set", "time.batches=3"], "is a history: leave out --layout and --set"),
        ([cut], f"{cut}: is not a history, because it is not JSON"),
        ([wrong], f"{wrong}: version: 7 must be 1"),
        ([history, "-o", "figure.pdf"], "'figure.pdf' must end in .png or .svg"),
        ([history, "-o", "figure"], "'figure' must end in .png or .svg"),
        ([misnamed, "-o", misnamed], f"'{misnamed}' would overwrite '{misnamed}'"),
        ([history, "-o", tmp_path / "no" / "figure.png"], "there is no directory"),
        ([history, "--size", "big"], "'big' must be WIDTHxHEIGHT in pixels, like 1200x800"),
        ([history, "--size", "100x800"], "'100x800': the width must be from 800 to 10000 pixels"),
        ([history, "--size", "800x20000"], "'800x20000': the height must be from 500 to 10000 pixels"),
    ]:
        result = click.testing.CliRunner().invoke(group, ["plot", *map(str, args)])
        assert result.exit_code == 2, args
        assert message in " ".join(result.output.split()), args


def test_truncated_capture_is_drawn_as_it_is_replayed(capture, layout_file, tmp_path):
    """As tcpdump leaves it when it is killed: all but the last packet counts, and both commands say so."""
    data = capture.read_bytes()
    capture.write_bytes(data[:-10])
    replayed = json.loads(run_command("replay", str(capture), "-l", str(layout_file), "--json"))
    drawn = json.loads(run(capture, "-l", layout_file, "--json"))
    assert replayed["capture"]["truncated"]
    for name in ("capture", "present", "missing", "duplicates", "rejected"):
        assert drawn[name] == replayed[name] or name == "capture", name
    assert drawn["capture"] | {"seconds_behind": 0} == replayed["capture"] | {"seconds_behind": 0}
    told = "The last packet of the file is incomplete, and was left out."
    assert told in run_command("replay", str(capture), "-l", str(layout_file))
    assert told in run(capture, "-l", layout_file, "-o", tmp_path / "run.svg")


def test_without_matplotlib_it_says_what_to_install(capture, layout_file, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError('No module', name='matplotlib')")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    arguments = ("plot", str(capture), "-l", str(layout_file))
    errors = run_command(*arguments, code=2, PYTHONPATH=path)
    assert "drawing needs matplotlib: pip install 'speadrx[plot]'" in errors
    numbers = json.loads(run_command(*arguments, "--json", PYTHONPATH=path))
    assert numbers["chunks"] > 0


@pytest.mark.parametrize("columns", [80, pytest.param(200, marks=pytest.mark.slow)])
def test_terminal_shows_progress_and_leaves_one_line(capture, layout_file, tmp_path, columns):
    output = tmp_path / "figure.png"
    terminal = Terminal("plot", str(capture), "-l", str(layout_file), "-o", str(output), columns=columns, rows=24)
    try:
        assert terminal.wait() == 0
    finally:
        terminal.close()
    assert re.search(r"\d heaps", terminal.output)
    assert terminal.output.rstrip().endswith("1 restart.")
    assert png_size(output) == (1200, 800)


@pytest.mark.parametrize("signum", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_interrupt_draws_what_came_until_then(layout_file, tmp_path, signum):
    capture = tmp_path / "long.pcap"
    with PcapSink(capture) as sink:
        Simulator(LAYOUT).send(sink, batches=40_000)
    small_chunks = ("--set", "time.batches=1")  # which take seconds
    with started("plot", str(capture), "-l", str(layout_file), *small_chunks, "--json") as process:
        process.send_signal(signum)
        output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) in [(0, ""), (1, f"{capture}: nothing was received\n")]
    numbers = json.loads(output)
    assert numbers["expected"] < 200_000
    assert numbers["missing"] < 5  # of the last batch, which was cut short


# What is drawn


def made(present, *, max_rows=1024, batches=4):
    """A history of chunks with these heaps present, of shape (batches, sources)."""

    class Sink:
        def add_free_chunk(self, chunk):
            pass

    sink = Sink()
    n_sources = present.shape[1]
    layout = Layout(
        heap_bytes=1,
        time=TimeAxis(item=0x1600, step=1, batches=batches),
        axes=(Axis(name="antenna", item=0x4101, size=n_sources),),
        sources="antenna",
    )
    history = History(layout, max_rows=max_rows)
    for i, part in enumerate(present.reshape(-1, batches, n_sources)):
        array = np.ascontiguousarray(part.astype(np.bool_))
        data = np.zeros(array.shape, np.uint8)
        history.add(Chunk(sink=sink, data=data, present=array, timestamp=i * batches))
    return history


def waterfall(figure):
    return figure.axes[0].images[0].get_array()


@pytest.mark.parametrize("n_sources", [1, 7, 1000])
@pytest.mark.parametrize("size", [(800, 500), (1200, 800), (2400, 1600)])
def test_single_missing_heap_is_never_overlooked(n_sources, size, rng):
    """One pixel has a colour of the scale, which says how much of it is missing; the others have that of none."""
    present = np.ones((4000, n_sources))
    batch, source = int(rng.integers(4000)), int(rng.integers(n_sources))
    present[batch, source] = 0
    figure = figures.draw(made(present, max_rows=4096), title="one", size=size)
    pixels, norm = waterfall(figure), figure.axes[0].images[0].norm
    width, height = figure.axes[0].get_window_extent().size
    assert pixels.shape[1] <= width
    assert pixels.shape[0] <= height or n_sources == pixels.shape[0]
    found = np.argwhere(pixels >= norm.vmin)
    assert 1 <= len(found) <= 2  # two, if it lies at the edge
    assert np.all(np.abs(found[:, 1] / pixels.shape[1] - batch / 4000) < 2 / pixels.shape[1])
    assert np.all(np.abs(found[:, 0] / pixels.shape[0] - source / n_sources) <= 2 / min(n_sources, 100))


@pytest.mark.parametrize("loss", [0.0025, 0.05, 0.67])
def test_colour_tells_the_loss(loss, rng):
    """Pixels are as dark as the loss is, and all but a few have more in common than one missing heap."""
    present = rng.random((2**17, 3)) >= loss
    figure = figures.draw(made(present, batches=16), title="loss", size=(1200, 800))
    pixels = np.asarray(waterfall(figure))
    pixels = np.where(pixels < figure.axes[0].images[0].norm.vmin, 0, pixels)
    assert np.median(pixels) == pytest.approx(loss, rel=0.3)
    assert pixels.mean() == pytest.approx(loss, rel=0.1)
    assert pixels.max() < min(0.02 + 3 * loss, 0.9)


def test_colour_tells_the_loss_of_a_short_run(rng):
    """A mark has a hundred heaps: one of a few that is missing would look like a great loss."""
    figure = figures.draw(made(rng.random((8192, 3)) >= 0.05), title="", size=(1200, 800))
    assert np.asarray(waterfall(figure)).std() < 0.03


def test_little_most_and_all_differ():
    """In lightness too, for who sees no colours, and on the scale beside it."""
    image = figures.draw(made(np.ones((64, 2))), title="", size=(800, 500)).axes[0].images[0]

    def lightness(loss):
        red, green, blue, _ = image.cmap(image.norm(loss))
        return 0.3 * red + 0.59 * green + 0.11 * blue

    found = [lightness(loss) for loss in (0.001, 0.01, 0.05, 0.1, 0.25, 0.67, 0.9, 2.0)]
    assert all(before - after > 0.02 for before, after in itertools.pairwise(found)), found
    assert found[-1] == 0
    present = np.ones((6400, 3))
    present[:, 1] = 0
    present[::3, 2] = 0
    figure = figures.draw(made(present), title="", size=(800, 500))
    by_source = np.asarray(waterfall(figure))
    assert (by_source[1] > 1).all(), "beyond the scale: black"
    assert by_source[2] == pytest.approx(1 / 3, abs=0.05)
    ticks = [tick.get_text() for tick in figure.axes[1].get_yticklabels()]
    assert {"1 %", "10 %", "50 %", "100 %"} <= set(ticks)
    assert "all" in figure.axes[1].get_ylabel()


def test_pixels_have_the_loss_of_what_they_cover(rng):
    batches = rng.integers(1, 9, 37)
    expected = batches * 3
    missing = rng.integers(0, expected[:, np.newaxis] + 1, (37, 23))
    edges = np.concatenate(([0], np.cumsum(batches)))
    for columns, lines in [(1, 1), (5, 4), (37, 23), (100, 100)]:
        pixels = figures.pool(missing, expected, batches, columns, lines)
        bounds = np.linspace(0, edges[-1], columns + 1)
        assert pixels.shape == (columns, min(lines, 23))
        for i in range(columns):
            rows = (edges[:-1] < bounds[i + 1]) & (edges[1:] > bounds[i])
            for j in range(pixels.shape[1]):
                first, last = (j * 23 // lines, (j + 1) * 23 // lines) if lines < 23 else (j, j + 1)
                whole = expected[rows].sum() * (last - first)
                assert pixels[i, j] == missing[rows, first:last].sum() / whole


def test_every_heap_that_is_missing_has_a_cause():
    present = np.ones((64, 2))
    present[3:13, 0] = 0
    history = made(present)
    history.finish({"too_old": 3, "unfinished": 2, "kernel_drops": 1, "rejected": {"metadata_heaps": 1}})
    assert dict(figures.reasons(history)) == {
        "too old": 3,
        "never came (at least)": 3,
        "unfinished": 2,
        "packets dropped": 1,
        "rejected: metadata": 1,
    }


def test_figure_says_when_it_began():
    history = made(np.ones((64, 2)))
    assert "UTC" not in figures.draw(history, title="", size=(800, 500)).axes[0].get_xlabel()
    history.began = 1_700_000_000.0
    label = figures.draw(History.from_json(history.to_json()), title="", size=(800, 500)).axes[0].get_xlabel()
    assert label.endswith("(begins 2023-11-14 22:13:20 UTC)")


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 0, "0 %"),
        (0, 5, "0 %"),
        (5, 5, "100 %"),
        (1, 2, "50.0 %"),
        (999, 1000, "99.90 %"),
        (10**9 - 1, 10**9, "99.99999990 %"),
        (1, 10**9, "0.00000010 %"),
    ],
)
def test_percentages_say_all_only_if_it_is_all(part, whole, text):
    assert figures.percent(part, whole) == text


@pytest.mark.parametrize("n_sources", [1, 20, 64])
@pytest.mark.parametrize("size", [(800, 500), (1200, 800)])
def test_labels_do_not_overlap(size, n_sources):
    history = made(np.ones((8, n_sources)))
    reasons = {f"{name}_heaps": 10**i for i, name in enumerate("abcdefghijkl")}
    late = [10**6 >> i for i in range(14)]
    lateness = {"late_batches": late, "late_chunks": [sum(late), *late]}
    history.finish({"rejected": reasons, "too_old": 3, "unfinished": 0, "kernel_drops": 7, **lateness})
    figure = figures.draw(history, title="a title that is long " * 20, size=size)
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            boxes = [label.get_window_extent(renderer) for label in labels if label.get_visible() and label.get_text()]
            inside = [box for box in boxes if axes.get_window_extent().padded(20).overlaps(box)]
            for i, box in enumerate(inside):
                assert not any(box.overlaps(other) for other in inside[i + 1 :]), axes.get_title(loc="left")
    assert figure._suptitle.get_window_extent(renderer).x1 <= size[0]


def test_history_of_a_running_stream_can_be_drawn():
    """Without the final counts: they are said to be unknown."""
    with receiver(LAYOUT) as rx:
        history = History(LAYOUT)
        rx._copy = history.add
        Simulator(LAYOUT).send(InprocSink(rx.queues[0]), batches=16)
        rx.finish()
    figure = figures.draw(history, title="unknown", size=(800, 500))
    titles = {axes.get_title(loc="left") for axes in figure.axes}
    assert "Loss (reasons are not known)" in titles
