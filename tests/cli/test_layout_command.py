"""`speadrx layout` as its users run it."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import tomllib
import xml.etree.ElementTree as ET

import jsonschema
import pytest

from speadrx import Layout, layouts
from terminals import SPEADRX, Terminal, environment, run, run_here

DOCUMENT = pathlib.Path(__file__).parents[2] / "doc" / "layouts.md"
BAD = """
heap_bytes = 8
[time]
item = 0x1600
step = 16
batches = 4
[[axes]]
name = "antenna"
item = 0x4101
size = true
"""


def test_description() -> None:
    output = run("layout", "meerkat-digitiser", "--set", "strides.pol=1400000")
    for part in [
        "Layout   meerkat-digitiser\n",
        "5,120 bytes: 4,096 samples of int10\n",
        "512 heaps, 2,800,000 bytes\n",
        "1,048,576 ticks, 0.000612486 s at 34.24 Gb/s\n",
        "2, by pol: 0, 1\n",
        "metadata_heaps, bad_timestamp_heaps, bad_pol_heaps,",
        "pol × 1,400,000 + time × 5,120\n",
        "│ pol  │    2 │ 0x3101 & 0x1   │      1,400,000 │      89,280 │",
        "│ 0x3102 │ digitiser_status │ extra saturated: u16, >> 32 │",
        "time, in each pol: 256 × 5,120 bytes\n",
    ]:
        assert part in output
    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) <= 80


@pytest.mark.parametrize("name", layouts.names())
def test_presets_fit_80_columns(name: str) -> None:
    assert max(map(len, run("layout", name).splitlines())) <= 80


def test_wide_output_uses_the_room() -> None:
    (wide,) = (line for line in run("layout", "meerkat-digitiser", COLUMNS="200").splitlines() if "1,305,600" in line)
    (narrow,) = (line for line in run("layout", "meerkat-digitiser").splitlines() if "1,305,600" in line)
    assert 80 >= len(narrow) > 70
    assert 200 >= len(wide) > 180


def test_in_a_terminal() -> None:
    terminal = Terminal("layout", "meerkat-digitiser", columns=100, rows=60)
    try:
        assert terminal.wait() == 0
        assert "heap, in each time: 5,120 bytes" in terminal.output
    finally:
        terminal.close()


def test_ascii() -> None:
    output = run("layout", "meerkat-digitiser", PYTHONIOENCODING="ascii")
    assert output.isascii()
    assert "pol x 1,310,720 + time x 5,120\n" in output
    assert "?" not in output


def test_without_tick_rate_or_sources() -> None:
    output = run("layout", "meerkat-digitiser", "--set", "time.tick_rate=", "--set", "sources=", "--set", "name=")
    assert "seconds unknown without time.tick_rate" in output
    assert "one, for all heaps" in output
    assert "Layout " not in output


def test_json() -> None:
    facts = json.loads(run("layout", "meerkat-tied-array-channelised-voltage", "--json", "--set", "strides.time=rows"))
    assert facts["name"] == "meerkat-tied-array-channelised-voltage"
    assert facts["chunk_seconds"] == pytest.approx(4 * 2**21 / 1712e6)
    assert [(axis["name"], axis["size"], axis["stride"]) for axis in facts["axes"]] == [
        ("pol", 2, 8388608),
        ("time", 4, 2097152),
        ("substream", 256, 8192),
    ]
    assert facts["axes"][0]["from_user_data"] == "pol"
    assert facts["axes"][1]["stride_from_user_data"] == "rows"
    assert facts["user_data"] == ["pol", "rows"]
    assert [item["id"] for item in facts["items"]] == [0x1600, 2, 0x4103, 0x5004]
    assert facts["items"][3] == {"id": 0x5004, "hex": "0x5004", "name": "beam_ants", "uses": ["extra beam_ants: u16"]}
    assert "bad_frequency_heaps" in facts["rejected"]


@pytest.mark.parametrize("rate", ["1e-308", "1e308"])
def test_json_has_no_infinities(rate: str) -> None:
    facts = json.loads(run("layout", "meerkat-digitiser", "--json", "--set", f"time.tick_rate={rate}"))
    assert None in (facts["chunk_seconds"], facts["bytes_per_second"])
    assert "seconds unknown" in run("layout", "meerkat-digitiser", "--set", f"time.tick_rate={rate}")


def test_toml_is_the_layout_that_was_asked_for(tmp_path: pathlib.Path) -> None:
    changes = ["axes.antenna.size=80", "time.batches=32"]
    arguments = [word for change in changes for word in ("--set", change)]
    path = tmp_path / "mine.toml"
    path.write_text(run("layout", "meerkat-antenna-channelised-voltage", "--toml", *arguments), "utf-8")
    assert Layout.from_toml(path) == layouts.load("meerkat-antenna-channelised-voltage", changes)
    assert "(32, 80)" not in run("layout", str(path))


def test_svg(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "chunk.svg"
    assert run("layout", "meerkat-digitiser", "--svg", str(path)) == run("layout", "meerkat-digitiser")
    assert ET.parse(path).getroot().tag.endswith("svg")


def test_names_with_control_characters(tmp_path: pathlib.Path) -> None:
    svg = tmp_path / "chunk.svg"
    changes = ["--set", 'name="\\u001b[2J"', "--set", 'source_labels=["\\u0007", "y"]']
    output = run("layout", "meerkat-digitiser", *changes, "--svg", str(svg))
    assert "Layout   '\\x1b[2J'\n" in output
    assert "by pol: '\\x07', y\n" in output
    assert ET.parse(svg).getroot().tag.endswith("svg")


def test_list_and_schema() -> None:
    lines = run("layout", "--list").splitlines()
    assert [line for line in lines if not line.startswith(" ")] == list(layouts.names())
    assert max(map(len, lines)) <= 80
    begin = lines.index("meerkat-antenna-channelised-voltage")
    assert lines[begin + 1 : begin + 6] == [
        "  MeerKAT: a sub-band of all antennas",
        "  6.848 Gb/s; time 8 x antenna 64",
        "  heaps of 16,384 bytes: [16, 256, 2, 2] of int8",
        "  --set band=L, antennas=64, channels=4096, substreams=256, spectra=256",
        "meerkat-antenna-channelised-voltage-narrow",
    ]
    assert json.loads(run("layout", "--schema")) == layouts.schema()


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ([], ["which layout?", "--list"]),
        (["meerkat-digitizer"], ["meerkat-digitizer", "did you mean 'meerkat-digitiser'"]),
        (["none.toml"], ["none.toml"]),
        (["/"], ["/: Is a directory"]),
        (["{bad}"], ["bad.toml", "axes[0].size", "True", "whole number"]),
        (["meerkat-digitiser", "--set", "time.batches=0"], ["time.batches: 0", "at least 1"]),
        (["meerkat-digitiser", "--set", "time.batchs=1"], ["did you mean 'batches'"]),
        (["meerkat-digitiser", "--json", "--toml"], ["one of", "--json"]),
        (["--list", "--schema"], ["one of", "--schema"]),
        (["meerkat-digitiser", "--list"], ["--list"]),
        (["--schema", "--set", "time.batches=1"], ["--schema"]),
        (["meerkat-digitiser", "--svg", "/nowhere/at/all.svg"], ["--svg", "/nowhere/at/all.svg", "No such file"]),
    ],
)
def test_wrong_usage(args: list[str], parts: list[str], tmp_path: pathlib.Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text(BAD)
    complaint = run_here("layout", *(arg.format(bad=bad) for arg in args), code=2)
    for part in parts:
        assert part in complaint


@pytest.mark.parametrize("args", [[], ["--json"]])
def test_full_disk(args: list[str]) -> None:
    command = [*SPEADRX, "layout", "meerkat-digitiser", *args]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    assert (result.returncode, result.stderr) == (2, "speadrx: No space left on device\n")


def test_help_has_an_example_and_exit_codes() -> None:
    output = run("layout", "--help")
    for part in ["Example:\n", "speadrx layout array.toml --svg array.svg\n", "exit code"]:
        assert part in output


def test_screens_in_the_document_are_what_is_printed() -> None:
    screens = re.findall(r"^```console\n\$ speadrx (.*)\n((?:.*\n)*?)```$", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    assert len(screens) == 2
    for command, screen in screens:
        assert run(*command.split()) == screen


def test_picture_in_the_document_is_what_is_drawn(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "layout.svg"
    run("layout", "meerkat-digitiser", "--set", "strides.pol=1600000", "--svg", str(path))
    assert path.read_text("utf-8") == DOCUMENT.with_name("layout.svg").read_text("utf-8")


def test_layout_in_the_document(tmp_path: pathlib.Path) -> None:
    text, *_ = re.findall(r"^```toml\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    path = tmp_path / "array.toml"
    path.write_text(text, "utf-8")
    layout = layouts.load(path)
    assert layout.present_shape == (64, 4, 2)
    assert layout.source_labels == ("m000", "m001", "m002", "m003")
    jsonschema.validate(tomllib.loads(text), layouts.schema())
    (command,) = re.findall(r"^    array.toml: (.*)$", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    assert command in run("layout", str(path), "--set", "axes.antenna.size=0", code=2)
