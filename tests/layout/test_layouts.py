"""Layouts are loaded by name or from files, and changed by a few words."""

from __future__ import annotations

import pathlib

import click
import pytest
from click.testing import CliRunner

from speadrx import Layout, LayoutError, layouts
from speadrx.cli.options import layout_options

FILE = """
heap_bytes = 8
sources = "antenna"
source_labels = ["a", "b", "c"]
[time]
item = 0x1600
step = 16
batches = 4
[[axes]]
name = "antenna"
item = 0x4101
size = 3
[[side_items]]
name = "status"
item = 0x3102
"""


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "array.toml"
    path.write_text(FILE)
    return path


def test_file_is_loaded(file: pathlib.Path) -> None:
    assert layouts.load(file) == layouts.load(str(file)) == Layout.from_toml(file)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("heap_bytes=4096", "heap_bytes", 4096),
        ("heap_bytes = 0x1000", "heap_bytes", 4096),
        ("time.batches=64", "time.batches", 64),
        ("time.tick_rate=1712e6", "time.tick_rate", 1712e6),
        ("time.tick_rate=1712", "time.tick_rate", 1712.0),
        ("time.align=mask", "time.align", "mask"),
        ('time.align="mask"', "time.align", "mask"),
        ('source_labels=["x", "y", "z"]', "source_labels", ("x", "y", "z")),
        ("source_labels=", "source_labels", ("0", "1", "2")),
        ("strides.antenna=16", "strides", {"antenna": 16}),
        ("strides.time=stride", "strides", {"time": "stride"}),
        ("required_items=[0x4104]", "required_items", (0x4104,)),
        ("dtype=>i2", "dtype", ">i2"),
        ("name=a=b", "name", "a=b"),
        ("name=2 beams", "name", "2 beams"),
        ("axes.antenna.reject_name=lost", "axes.0.reject_name", "lost"),
        ("axes.antenna.shift=3", "axes.0.shift", 3),
        ("side_items.status.dtype=u8", "side_items.0.dtype", "u8"),
        ("side_items=[]", "side_items", ()),
    ],
)
def test_override(file: pathlib.Path, override: str, path: str, value: object) -> None:
    found: object = layouts.load(file, [override])
    for part in path.split("."):
        found = found[int(part)] if isinstance(found, tuple) else getattr(found, part)
    assert found == value


def test_overrides_follow_one_another(file: pathlib.Path) -> None:
    layout = layouts.load(file, iter(["axes.antenna.size=80", "source_labels=", "axes.antenna.size=64"]))
    assert layout.present_shape == (4, 64)
    assert layout == layouts.load(file, ["source_labels=", "axes.antenna.size=64"])


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("time.batchs=3", ["time.batchs", "did you mean 'batches'", "tick_rate"]),
        ("heap_size=3", ["heap_size", "heap_bytes"]),
        ("axes.antena.size=3", ["axes.antena.size", "did you mean 'antenna'"]),
        ("axes.antenna.sise=3", ["axes.antenna.sise", "did you mean 'size'"]),
        ("side_items.state.shift=3", ["side_items.state", "status"]),
        ("strides.antena=3", ["strides.antena", "did you mean 'antenna'", "time"]),
        ("axes.antenna=3", ["axes.antenna", "axes.NAME.FIELD"]),
        ("a.b.c.d=3", ["a.b.c.d", "axes.NAME.FIELD"]),
        ("time.batches", ["'time.batches'", "PATH=VALUE"]),
        ("=3", ["'=3'", "PATH=VALUE"]),
        ("", ["PATH=VALUE"]),
        ("axes.antenna.values=[1, 2", ["[1, 2", "not a TOML value"]),
        ("time.batches=0", ["time.batches: 0", "at least 1"]),
        ("time.batches=many", ["time.batches", "many", "whole number"]),
        ("time.batches=", ["time", "batches", "missing"]),
        ("time=", ["time", "missing"]),
        ("time=3", ["time: 3 is not a table", "time.FIELD"]),
        ("axes=3", ["axes: 3 is not a table", "axes.NAME.FIELD"]),
        ("axes=[3]", ["axes[0]"]),
        ('axes=[{name="x", size=1}]', ["axes[0].item"]),
        ("strides=3", ["strides: 3 is not a table", "strides.AXIS"]),
        ("name=2020-01-01", ["name", "2020, 1, 1", "text"]),
        ("axes.antenna.size=2", ["source_labels: 3", "2 sources"]),
        ("heap_bytes=1\nname='x'", ["heap_bytes", "whole number"]),
    ],
)
@pytest.mark.parametrize("then", [[], ["time.tick_rate=1", "strides.time=", "name=x"]])
def test_bad_override_says_where(file: pathlib.Path, override: str, parts: list[str], then: list[str]) -> None:
    with pytest.raises(LayoutError) as info:
        layouts.load(file, [override, *then])
    for part in [str(file), override, *parts]:
        assert part in str(info.value)


def test_override_that_is_not_in_a_sequence() -> None:
    with pytest.raises(LayoutError, match=r"overrides: given 'time.batches=2'"):
        layouts.load("meerkat-digitiser", "time.batches=2")


def test_unknown_layout(tmp_path: pathlib.Path) -> None:
    with pytest.raises(LayoutError, match="'meerkat-digitiser'"):
        layouts.load("meerkat-digitizer")
    with pytest.raises(LayoutError, match=r"none\.toml: neither a file"):
        layouts.load(tmp_path / "none.toml")


def test_file_that_cannot_be_read(tmp_path: pathlib.Path) -> None:
    with pytest.raises(IsADirectoryError):
        layouts.load(tmp_path)
    with pytest.raises(LayoutError, match=r"^'': neither a file"):
        layouts.load("")
    path = tmp_path / "latin.toml"
    path.write_bytes("heap_bytes = 8\nname = 'Größe'".encode("latin-1"))
    with pytest.raises(LayoutError, match=r"latin\.toml: line 2 has the byte 0xf6, which is not UTF-8"):
        layouts.load(path)
    with pytest.raises(
        LayoutError, match=r"/dev/zero: too long for a layout in TOML: it has more than 16,777,216 bytes"
    ):
        layouts.load("/dev/zero")


@click.command()
@layout_options
@click.option("--times", default=1)
def command(layout: Layout, times: int) -> None:
    click.echo(layout.heap_bytes * times)


@pytest.mark.parametrize(
    ("args", "code", "parts"),
    [
        (["-l", "meerkat-digitiser"], 0, ["5120"]),
        (["--set", "heap_bytes=10240", "--times", "2", "--set", "time.step=1", "--layout", "{file}"], 0, ["20480"]),
        ([], 2, ["Missing option '-l' / '--layout'"]),
        (["-l", "meerkat-digitizer"], 2, ["meerkat-digitiser", "--layout"]),
        (["-l", "{file}", "--set", "time.step=0"], 2, ["array.toml", "time.step: 0"]),
        (["-l", "/"], 2, ["/: Is a directory"]),
    ],
)
def test_options_of_commands(file: pathlib.Path, args: list[str], code: int, parts: list[str]) -> None:
    result = CliRunner().invoke(command, [arg.format(file=file) for arg in args])
    assert result.exit_code == code, result.output
    for part in parts:
        assert part in result.output
