"""How the heaps of a layout lie in a chunk, as data, and as a picture in text or SVG."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from .base import DeclarativeLayout

#: ASCII characters that replace those of the text picture, one for one.
_ASCII = str.maketrans("┌┬┐│└┴┘─░×…", "+++|+++-:x~")

_SVG = "http://www.w3.org/2000/svg"


@dataclass(frozen=True)
class Level:
    """How the indices of an axis lie in a chunk's data.

    Attributes
    ----------
    name
        Name of the axis.
    size
        Number of indices, at least 2.
    stride
        Bytes from one index to the next.
    extent
        Bytes that all heaps of one index span; the rest of the stride is a gap.
    """

    name: str
    size: int
    stride: int
    extent: int

    @property
    def gap(self) -> int:
        """Bytes between the heaps of one index and those of the next."""
        return self.stride - self.extent

    @property
    def span(self) -> int:
        """Bytes from the first heap of the first index to the end of the last heap of the last one."""
        return (self.size - 1) * self.stride + self.extent


def escaped(text: str) -> str:
    """The text; if it has control characters, as Python would write it in a program."""
    return text if text.isprintable() else repr(text)


def axis_strides(layout: DeclarativeLayout) -> dict[str, int]:
    """Bytes from one index to the next of each axis, in the order of ``present_shape``.

    Strides from ``user_data`` are assumed to be dense, which they are without that field.
    """
    declaration = layout.declaration
    at_rest = dict.fromkeys(declaration._compiled.user_data_fields, 0)
    return dict(zip(layout.axis_names, declaration._compiled.geometry(at_rest).strides, strict=True))


def nesting(layout: DeclarativeLayout) -> list[Level]:
    """The axes from the outermost to the innermost, as they lie in a chunk's data.

    Axes of one index are left out. The order is that of the strides, which need not be the layout's `order`.
    """
    levels: list[Level] = []
    extent = layout.heap_bytes
    axes = zip(axis_strides(layout).items(), layout.present_shape, strict=True)
    for (name, stride), size in sorted(axes, key=lambda axis: axis[0][1]):
        if size > 1:
            level = Level(name, size, stride, extent)
            levels.insert(0, level)
            extent = level.span
    return levels


def address(layout: DeclarativeLayout) -> str:
    """The byte at which a heap begins, as a sum over the axes."""
    return " + ".join(f"{level.name} × {level.stride:,}" for level in nesting(layout)) or "0"


def text_picture(layout: DeclarativeLayout, width: int = 80, *, ascii_only: bool = False) -> str:
    """Draw the heaps of a chunk in text.

    Parameters
    ----------
    layout
        The layout.
    width
        Columns to use, at least 40.
    ascii_only
        Draw with ASCII characters only.

    Returns
    -------
    str
        Lines of text. Each axis has a row of its indices, the outermost axis first. Below each index is the byte
        at which it begins, counted within one index of the axis above. An ellipsis stands for indices that do not
        fit. Gaps are shaded.
    """
    lines: list[str] = []
    within = "chunk"
    for level in nesting(layout):
        gap = f", {level.gap:,} of them a gap" if level.gap else ""
        lines.append(f"{level.name}, in each {within}: {level.size:,} × {level.stride:,} bytes{gap}")
        lines += _row(level, width)
        within = level.name
    lines.append(f"heap, in each {within}: {layout.heap_bytes:,} bytes")
    text = "\n".join(lines)
    return text.translate(_ASCII) if ascii_only else text


def _row(level: Level, width: int) -> list[str]:
    """Draw the indices of an axis: the first ones, as many as fit, and the last."""
    last = level.size - 1
    cell = max(len(f"{last:,}"), len(f"{last * level.stride:,}")) + 2
    shade = "│░░│" if level.gap else "│"
    each = cell + len(shade)
    elided = level.size > (width - 2 + len(shade)) // each
    shown = range(max(1, (width - len("│ … │")) // each - 1) if elided else level.size)

    def line(left: str, cells: list[str], between: str, filler: str, right: str) -> str:
        parts = list(cells)
        if elided:
            parts.insert(-1, filler)
        return left + between.join(parts) + right

    indices = [*shown, last] if elided else shown
    edge = {corners: corners[1] + ("──" + corners[1]) * (level.gap > 0) for corners in ("┌┬┐", "└┴┘")}
    bars = ["─" * cell for _ in indices]
    return [
        line("┌", bars, edge["┌┬┐"], "─" * 3, "┐"),
        line("│", [f"{index:,}".center(cell) for index in indices], shade, " … ", "│"),
        line("│", [f"{index * level.stride:,}".center(cell) for index in indices], shade, "   ", "│"),
        line("└", bars, edge["└┴┘"], "─" * 3, "┘"),
    ]


# Sizes in the SVG, in pixels.
_WIDTH, _MARGIN, _BAND, _ROW = 960, 20, 40, 124
#: Most lines in a band that can still be told apart.
_MOST_LINES = 160


def svg_picture(layout: DeclarativeLayout) -> str:
    """Draw the heaps of a chunk as an SVG document, to scale.

    Each axis is a band of its indices, the outermost axis first. The first index of a band is coloured, and the
    band below shows it enlarged.
    """
    declaration = layout.declaration
    levels = nesting(layout)
    height = _MARGIN + 30 + _ROW * len(levels) + _BAND + 44
    svg = ET.Element("svg", xmlns=_SVG, viewBox=f"0 0 {_WIDTH} {height}", width=str(_WIDTH), height=str(height))
    svg.set("font-family", "sans-serif")
    svg.set("font-size", "13")
    name = escaped(declaration.name) or "layout"
    title = f"{name}: a chunk of {layout.chunk_heaps:,} heaps, {layout.chunk_bytes:,} bytes"
    ET.SubElement(svg, "title").text = title
    hatch = ET.SubElement(
        ET.SubElement(svg, "defs"), "pattern", id="gap", width="6", height="6", patternUnits="userSpaceOnUse"
    )
    ET.SubElement(hatch, "path", d="M0,6 L6,0", stroke="#999999")
    _box(svg, 0, 0, _WIDTH, height, fill="white", stroke="none")
    _text(svg, _MARGIN, _MARGIN + 10, title, bold=True)
    y = _MARGIN + 30
    within = "chunk"
    for level in levels:
        _band(svg, y, level, within)
        within = level.name
        y += _ROW
    _text(svg, _MARGIN, y + 12, f"heap, in each {within}: {layout.heap_bytes:,} bytes")
    _box(svg, _MARGIN, y + 20, _WIDTH - 2 * _MARGIN, _BAND, fill="#f2b84b")
    contents = declaration._contents
    content = f"{layout.heap_sample_count:,} samples"
    if declaration.heap_shape or contents.element.name != "uint8":
        content = f"{' × '.join(f'{size:,}' for size in contents.shape)} {contents.element.name}".strip()
    _text(svg, _WIDTH / 2, y + 45, content, anchor="middle")
    ET.indent(svg)
    return ET.tostring(svg, encoding="unicode", xml_declaration=True) + "\n"


def _band(svg: ET.Element, y: float, level: Level, within: str) -> None:
    """Draw the indices of an axis, and lines that lead from the first one to the band below."""
    gap = f", {level.gap:,} of them a gap" if level.gap else ""
    header = f"{level.name}, in each {within}: {level.size:,} × {level.stride:,} bytes{gap}"
    every = math.ceil(level.size / _MOST_LINES)
    if every > 1:
        header += f" (a line is drawn every {every:,})"
    left, room = float(_MARGIN), _WIDTH - 2 * _MARGIN
    scale = room / level.span
    top, bottom = y + 20, y + 20 + _BAND
    cell = level.extent * scale
    below = y + _ROW + 20
    zoom = f"{left},{bottom} {left + cell:.2f},{bottom} {left + room},{below} {left},{below}"
    ET.SubElement(svg, "polygon", points=zoom, fill="#fdf3dd")
    _text(svg, left, y + 12, header)
    _box(svg, left, top, room, _BAND, fill="url(#gap)" if level.gap and every == 1 else "#dbe7f5")
    for index in range(0, level.size, every):
        x = left + index * level.stride * scale
        width = cell if every == 1 else min(every * level.stride * scale, left + room - x)
        _box(svg, x, top, width, _BAND, fill="#f2b84b" if index == 0 and every == 1 else "#dbe7f5")
        label = f"{index:,}"
        if width > 8 * len(label) + 6:
            _text(svg, x + width / 2, top + 25, label, anchor="middle")
    if every > 1:
        _box(svg, left, top, max(cell, 1), _BAND, fill="#f2b84b", stroke="none")
    _text(svg, left, bottom + 15, "byte 0")
    _text(svg, left + room, bottom + 15, f"{level.span:,}", anchor="end")


def _box(
    svg: ET.Element, x: float, y: float, width: float, height: float, *, fill: str, stroke: str = "#4a6d8c"
) -> None:
    sizes = {"x": f"{x:.2f}", "y": f"{y:.2f}", "width": f"{width:.2f}", "height": f"{height:.2f}"}
    ET.SubElement(svg, "rect", sizes, fill=fill, stroke=stroke)


def _text(svg: ET.Element, x: float, y: float, text: str, *, anchor: str = "start", bold: bool = False) -> None:
    where = {"x": f"{x:.2f}", "y": f"{y:.2f}", "text-anchor": anchor}
    ET.SubElement(svg, "text", where, fill="#222222", **({"font-weight": "bold"} if bold else {})).text = text
