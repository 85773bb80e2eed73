"""Charts made of characters: bars of blocks, curves of braille, and waterfalls of shades."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.color import Color
from rich.style import Style
from rich.text import Text

_BLOCKS = " ▁▂▃▄▅▆▇█"
#: Without colours. What is not there is a dot.
_SHADES = " ░▒▓█"
_NOTHING = "·"
#: The dots of a braille character: by row, left and right.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
#: Colours of the scale of matplotlib's figures (viridis), from low to high.
_SCALE = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_CURVE, _BAR, _DIM = "cyan", "cyan", "dim"


def framed(rows: Sequence[Text], left: tuple[str, str], below: Sequence[str], width: int) -> list[Text]:
    """Put labels at a chart: at its upper and lower end, and below it: at its left end, in its middle, at its right."""
    margin = max(map(len, left), default=0)
    lines = []
    for number, row in enumerate(rows):
        label = left[0] if number == 0 else left[1] if number == len(rows) - 1 else ""
        lines.append(Text(f"{label:>{margin}} ", style=_DIM).append_text(row))
    inner = width - margin - 1
    first, middle, last = below
    text = list(f"{first:<{inner}}"[:inner])
    start = (inner - len(middle)) // 2
    if len(first) < start and start + len(middle) + len(last) + 1 < inner:
        text[start : start + len(middle)] = middle
    if len(first) + len(last) + 1 < inner:
        text[inner - len(last) :] = last
    lines.append(Text(" " * (margin + 1) + "".join(text).rstrip(), style=_DIM))
    return lines


def resampled(values: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest of the values that fall into each of n columns; NaN where there are none."""
    edges = np.linspace(0, len(values), n + 1)
    low, high = np.full(n, np.nan), np.full(n, np.nan)
    for column in range(n):
        first = int(edges[column])
        part = values[first : max(int(np.ceil(edges[column + 1])), first + 1)]
        part = part[np.isfinite(part)]
        if part.size:
            low[column], high[column] = part.min(), part.max()
    return low, high


def bars(values: np.ndarray, width: int, height: int) -> list[Text]:
    """A bar for each value, or for the greatest of several; the greatest of all is as high as the chart."""
    columns = min(width, len(values))
    tallest = resampled(values, columns)[1] if columns else values
    each = width // columns if columns else 1
    most = np.nanmax(tallest, initial=0.0) or 1.0
    # What is not nothing can be seen.
    eighths = np.where(tallest > 0, np.maximum(np.rint(tallest / most * height * 8), 1), 0).astype(int)
    rows = []
    for row in range(height):
        filled = np.clip(eighths - (height - 1 - row) * 8, 0, 8)
        rows.append(Text("".join(_BLOCKS[n] * each for n in filled), style=_BAR))
    return rows


def curve(values: np.ndarray, width: int, height: int, low: float, high: float) -> list[Text]:
    """A curve from the left to the right, in dots: two for each character, and four above each other."""
    bottom, top = resampled(values, 2 * width)
    span = high - low or 1.0
    cells = np.zeros((height, width), int)
    before = None
    for x in range(2 * width):
        if np.isnan(bottom[x]):
            before = None
            continue
        ends = [
            int(np.clip(round((high - v) / span * (4 * height - 1)), 0, 4 * height - 1)) for v in (top[x], bottom[x])
        ]
        # Columns are connected, so that a curve has no holes.
        first = ends[0] if before is None else min(ends[0], before[1] + 1)
        last = ends[1] if before is None else max(ends[1], before[0] - 1)
        before = (ends[0], ends[1])
        for y in range(min(first, last), max(first, last) + 1):
            cells[y // 4, x // 2] |= _DOTS[y % 4][x % 2]
    return [Text("".join(chr(0x2800 + n) for n in row), style=_CURVE) for row in cells]


def shades(values: np.ndarray, width: int, low: float, high: float, *, has_colors: bool) -> list[Text]:
    """A colour for each value: time goes down, a line has two rows. Without colours, a line has one, of shades."""
    columns = np.stack([resampled(row, width)[1] for row in values]) if len(values) else np.zeros((0, width))
    scaled = np.clip((columns - low) / (high - low or 1.0), 0, 1)
    if not has_colors:
        return [Text("".join(_shade(value) for value in row)) for row in scaled]
    if len(scaled) % 2:
        scaled = np.concatenate([scaled, np.full((1, width), np.nan)])
    lines = []
    for upper, lower in zip(scaled[::2], scaled[1::2], strict=True):
        line = Text()
        for above, below in zip(upper, lower, strict=True):
            line.append("▀", Style(color=_color(above), bgcolor=_color(below)))
        lines.append(line)
    return lines


def _shade(value: float) -> str:
    return _NOTHING if np.isnan(value) else _SHADES[min(int(value * len(_SHADES)), len(_SHADES) - 1)]


def _color(value: float) -> Color | None:
    """The colour of a value from 0 to 1; None where nothing is."""
    if np.isnan(value):
        return Color.from_rgb(0, 0, 0)
    place = value * (len(_SCALE) - 1)
    first = min(int(place), len(_SCALE) - 2)
    part = place - first
    return Color.from_rgb(*(a + (b - a) * part for a, b in zip(_SCALE[first], _SCALE[first + 1], strict=True)))
