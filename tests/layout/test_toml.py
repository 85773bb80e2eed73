"""Layouts in TOML: what is written is read back, and mistakes are found where they are."""

from __future__ import annotations

import pathlib
import pickle
import random
from dataclasses import replace
from typing import Any

import pytest

from example_layouts import ANTENNA, BASE, MEERKAT, POL, TIME
from random_layouts import random_case
from speadrx import Axis, Layout, LayoutError, Packets, SideItem, TimeAxis, layouts


def round_trip(layout: Layout, tmp_path: pathlib.Path) -> Layout:
    path = tmp_path / "layout.toml"
    path.write_text(layout.to_toml(), encoding="utf-8")
    return Layout.from_toml(path)


def test_toml_round_trip_of_random_layouts(tmp_path: pathlib.Path) -> None:
    for i in range(300):
        layout = random_case(random.Random(f"toml/{i}")).layout
        again = round_trip(layout, tmp_path)
        assert again == layout
        assert again.to_toml() == layout.to_toml()


@pytest.mark.parametrize("layout", MEERKAT, ids=lambda layout: type(layout).__name__)
def test_toml_round_trip_of_meerkat_layouts(layout: Any, tmp_path: pathlib.Path) -> None:
    assert round_trip(layout.declaration, tmp_path) == layout.declaration


def test_toml_round_trip_of_everything_else(tmp_path: pathlib.Path) -> None:
    layout = Layout(
        **{**BASE, "axes": (replace(ANTENNA, mask=2**63 - 1, reject_name="bad_feng_id_heaps"), POL)},
        name='Größe "quoted"\n\\',
        source_labels=("m000", "élan", 'a"b'),
        dtype=">i2",
        heap_shape=(2, 2),
        samples_per_heap=2,
        strides={"pol": "pol_stride", "time": 100},
    )
    layout = replace(layout, time=replace(TIME, tick_rate=1712e6 / 3))
    again = round_trip(layout, tmp_path)
    assert again == layout
    assert again.time.tick_rate == 1712e6 / 3


def test_toml_as_people_write_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "digitiser.toml"
    path.write_text(
        """
        # A comment
        heap_bytes = 5120
        sources = "pol"
        order = ["pol", "time"]
        strides = { pol = "stride" }

        [time]
        item = 0x1600
        step = 4096
        batches = 16
        align = "mask"

        [[axes]]
        name = "pol"
        item = 0x3101
        mask = 0b1
        size = 2

        [[side_items]]
        name = "saturated"
        item = 0x3102
        shift = 32
        dtype = "u16"
        """
    )
    assert Layout.from_toml(path) == Layout(
        heap_bytes=5120,
        time=TimeAxis(item=0x1600, step=4096, batches=16, align="mask"),
        axes=(Axis(name="pol", item=0x3101, mask=1, size=2),),
        order=("pol", "time"),
        strides={"pol": "stride"},
        side_items=(SideItem(name="saturated", item=0x3102, shift=32, dtype="u16"),),
        sources="pol",
    )
    assert Layout.from_toml(str(path)) == Layout.from_toml(path)


GOOD_TOML = """
heap_bytes = 8
[time]
item = 0x1600
step = 16
batches = 4
[[axes]]
name = "antenna"
item = 0x4101
size = 3
"""


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("heap_bytes = 8", "heap_bytes = 0", ["heap_bytes: 0", "at least 1"]),
        ("heap_bytes = 8", "heap_bytes = -8", ["heap_bytes", "-8"]),
        ("heap_bytes = 8", 'heap_bytes = "8"', ["heap_bytes", "'8'"]),
        ("heap_bytes = 8", "heap_bytes = ", ["line 2"]),
        ("heap_bytes = 8", "", ["heap_bytes", "missing"]),
        ("heap_bytes = 8", "heap_bytes = 8\nheap_size = 8", ["heap_size", "heap_bytes"]),
        ("[time]", "[when]", ["when", "time"]),
        ("step = 16", "", ["time", "step", "missing"]),
        ("step = 16", "step = 1.6", ["time.step", "1.6"]),
        ("step = 16", 'step = 16\nalign = "up"', ["time.align", "up", "reject", "mask"]),
        ("step = 16", "step = 16\nunit = 1", ["time.unit", "tick_rate"]),
        ("size = 3", "size = true", ["axes[0].size", "True"]),
        ("size = 3", "size = 0", ["axes[0].size: 0", "at least 1"]),
        ("size = 3", "values = [1, 2, -3]", ["axes[0].values[2]", "-3"]),
        ("size = 3", "sizes = 3", ["axes[0].sizes", "size"]),
        ('name = "antenna"', "", ["axes[0]", "name", "missing"]),
    ],
)
def test_bad_toml_says_where(old: str, new: str, parts: list[str], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(GOOD_TOML)
    Layout.from_toml(path)
    path.write_text(GOOD_TOML.replace(old, new))
    with pytest.raises(LayoutError) as info:
        Layout.from_toml(path)
    for part in [str(path), *parts]:
        assert part in str(info.value)


def test_missing_toml_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError):
        Layout.from_toml(tmp_path / "none.toml")


def test_item_ids_are_written_as_everybody_writes_them(tmp_path: pathlib.Path) -> None:
    layout = Layout(
        heap_bytes=8,
        time=TimeAxis(item=0x1600, step=16, batches=4),
        axes=(Axis(name="item", item=0x4101, mask=0xFF, values=(16, 17)),),
        side_items=(SideItem(name="mask", item=0x3102, dtype="u16"),),
        required_items=(0x1234, 0x40),
        sources="item",
        name="item = 17",
    )
    text = layout.to_toml()
    for line in ("item = 0x4101", "mask = 0xff", "item = 0x3102", "required_items = [0x1234, 0x40]"):
        assert f"\n{line}\n" in text
    assert "values = [16, 17]\n" in text
    assert 'name = "item = 17"\n' in text
    path = tmp_path / "layout.toml"
    path.write_text(text, "utf-8")
    assert Layout.from_toml(path) == layout


def test_packets_and_payload_items(tmp_path: pathlib.Path) -> None:
    layout = Layout(
        heap_bytes=64,
        time=TimeAxis(item=0x1600, step=16, batches=4),
        axes=(
            Axis(name="product", payload_items=[0x4300, 0x4301]),  # type: ignore[arg-type]
            Axis(name="sender", item="sender", values=(1, 2)),
        ),
        side_items=(SideItem(name="came", item="packet_seconds"),),
        payload_item=0x4300,
        packets=Packets(
            heap_length="payload",
            payload_offset="zero",
            heap_counter=[0x1601],  # type: ignore[arg-type]
            repeat_items=True,
            items={0x1600: "<u4", 0x1601: ">u8"},
        ),
    )
    text = layout.to_toml()
    for line in (
        "payload_item = 0x4300",
        "payload_items = [0x4300, 0x4301]",
        'item = "sender"',
        "heap_counter = [0x1601]",
        '0x1600 = "<u4"',
    ):
        assert line in text
    path = tmp_path / "layout.toml"
    path.write_text(text)
    assert Layout.from_toml(path) == layout
    assert pickle.loads(pickle.dumps(layout)) == layout
    assert hash(layout) == hash(Layout.from_toml(path))
    assert layout._compiled.items[2:4] == [0x7FF8, 0x7FF9]
    assert layout._compiled.mends_packets
    assert not Layout(heap_bytes=8, time=layout.time, payload_item=0x4300)._compiled.mends_packets


def test_packets_as_overrides() -> None:
    layout = layouts.load("meerkat-digitiser", ["packets.heap_length=payload", "packets.heap_counter=sender"])
    assert layout.packets == Packets(heap_length="payload", heap_counter="sender")


@pytest.mark.parametrize("change", [{"items": {"time": "<u4"}}, {"items": 3}, {"heap_counter": 0x1600}])
def test_wrong_packets(change: dict[str, Any]) -> None:
    with pytest.raises(LayoutError, match=r"items|heap_counter"):
        Layout(heap_bytes=8, time=TIME, packets=Packets(**change))
