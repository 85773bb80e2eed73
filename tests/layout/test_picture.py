"""Pictures of chunks: offsets, gaps, width and scale are those of the layout."""

from __future__ import annotations

import random
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from random_layouts import random_case
from speadrx import Axis, Layout, TimeAxis, layouts
from speadrx.layout.picture import address, axis_strides, nesting, svg_picture, text_picture

SVG = "{http://www.w3.org/2000/svg}"
LAYOUT = Layout(
    name="small",
    heap_bytes=8,
    time=TimeAxis(item=0x1600, step=1, batches=3),
    axes=(Axis(name="antenna", item=0x4101, size=400), Axis(name="single", item=0x4102, size=1)),
    strides={"time": 4000},
)
PICTURE = """\
time, in each chunk: 3 × 4,000 bytes, 800 of them a gap
┌───────┬──┬───────┬──┬───────┐
│   0   │░░│   1   │░░│   2   │
│   0   │░░│ 4,000 │░░│ 8,000 │
└───────┴──┴───────┴──┴───────┘
antenna, in each time: 400 × 8 bytes
┌───────┬───────┬───────┬───────┬───────┬───────┬───────┬───────┬───┬───────┐
│   0   │   1   │   2   │   3   │   4   │   5   │   6   │   7   │ … │  399  │
│   0   │   8   │   16  │   24  │   32  │   40  │   48  │   56  │   │ 3,192 │
└───────┴───────┴───────┴───────┴───────┴───────┴───────┴───────┴───┴───────┘
heap, in each antenna: 8 bytes"""


def test_text_picture() -> None:
    assert text_picture(LAYOUT) == PICTURE
    assert address(LAYOUT) == "time × 4,000 + antenna × 8"


def test_ascii_picture_has_the_same_shape() -> None:
    picture = text_picture(LAYOUT, ascii_only=True)
    assert picture.isascii()
    assert [len(line) for line in picture.splitlines()] == [len(line) for line in PICTURE.splitlines()]


def test_axis_that_just_fits_is_shown_in_full() -> None:
    layout = replace(LAYOUT, axes=(), time=replace(LAYOUT.time, batches=13), strides={})
    # Each of two digits, in cells of four.
    assert "│ 11 │ 12 │" in text_picture(layout, 13 * 5 + 1)
    assert "│ … │ 12 │" in text_picture(layout, 13 * 5)


def test_layout_of_one_heap() -> None:
    layout = Layout(heap_bytes=8, time=TimeAxis(item=0x1600, step=1, batches=1))
    assert nesting(layout) == []
    assert address(layout) == "0"
    assert text_picture(layout) == "heap, in each chunk: 8 bytes"
    assert ET.fromstring(svg_picture(layout)) is not None


def test_nesting_is_by_stride_whatever_the_order() -> None:
    layout = replace(LAYOUT, strides={"time": 8, "antenna": 24})
    assert [(level.name, level.stride, level.gap) for level in nesting(layout)] == [("antenna", 24, 0), ("time", 8, 0)]
    assert list(axis_strides(layout)) == ["time", "antenna", "single"]


def test_random_layouts() -> None:
    """Strides are those of the view; the text has the offset of each axis's last index, and fits."""
    for i in range(200):
        layout = replace(random_case(random.Random(f"picture/{i}")).layout, dtype="uint8")
        geometry = layout._compiled.geometry(dict.fromkeys(layout._compiled.user_data_fields, 0))
        user_data = np.zeros(1, [(name, np.uintp) for name in ("stats_base", *layout._compiled.user_data_fields)])
        view = layout.view(np.zeros(geometry.span_bytes, np.uint8), user_data)
        assert tuple(axis_strides(layout).values()) == view.strides[:-1]
        for width in (70, 80, 200):
            lines = text_picture(layout, width).splitlines()
            # The lines above the rows are as long as names and numbers make them.
            assert max((len(line) for line in lines if line[0] in "┌│└"), default=0) <= width
        for level in nesting(layout):
            assert f" {(level.size - 1) * level.stride:,} " in text_picture(layout)


def rectangles(svg: ET.Element) -> list[tuple[float, float, float, float]]:
    found = []
    for rect in svg.iter(f"{SVG}rect"):
        x, y, width, height = (float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
        found.append((x, y, width, height))
    return found


def test_svg_is_to_scale() -> None:
    svg = ET.fromstring(svg_picture(LAYOUT))
    texts = [text.text or "" for text in svg.iter(f"{SVG}text")]
    assert any(text.startswith("small: a chunk of 1,200 heaps") for text in texts)
    assert "time, in each chunk: 3 × 4,000 bytes, 800 of them a gap" in texts
    assert "antenna, in each time: 400 × 8 bytes (a line is drawn every 3)" in texts
    assert {"0", "1", "2", "byte 0", "11,200", "3,200"} <= set(texts)
    _, band, *cells = rectangles(svg)
    scale = band[2] / 11_200
    times = cells[:3]
    assert [x - band[0] for x, _, _, _ in times] == pytest.approx([0, 4000 * scale, 8000 * scale], abs=0.02)
    assert {width for _, _, width, _ in times} == {round(3200 * scale, 2)}


@pytest.mark.parametrize("name", layouts.names())
def test_svg_of_presets_stays_inside(name: str) -> None:
    text = svg_picture(layouts.load(name))
    svg = ET.fromstring(text)
    assert re.match(r"<\?xml .*\?>\n<svg ", text)
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    for x, y, w, h in rectangles(svg):
        assert 0 <= x <= x + w <= width + 0.01
        assert 0 <= y <= y + h <= height + 0.01
    assert len(text) < 100_000
