"""The figure of an impression: levels by source, a histogram, mean spectra, and the waterfall with its time in UTC."""

from __future__ import annotations

import math
import warnings
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from speadrx.accounts.figures import BLUE, DOTS_PER_INCH, GREY, STYLE, VERMILION, save, shortened

from .impression import Impression
from .impression_view import decibels, limits, of_source, scaled, unit_of, when
from .spectra import Spectra

__all__ = ["draw", "save"]

#: From the palette of Okabe and Ito, which colour-blind people can tell apart; then the sources are drawn as one.
_COLORS = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MOST_BARS = 40
_MAP, _NOTHING = "viridis", "#d0d0d0"
#: Above this part, clipping is marked.
_CLIPPED = 0.001


def draw(impression: Impression, *, title: str, size: tuple[int, int]) -> Figure:
    """Draw an impression.

    Parameters
    ----------
    impression
        The impression.
    title
        Text at the top.
    size
        Width and height in pixels.

    Returns
    -------
    matplotlib.figure.Figure
        It belongs to no window. `save` writes it to a file.
    """
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # if no font has a letter, a box is drawn
        inches = (size[0] / DOTS_PER_INCH, size[1] / DOTS_PER_INCH)
        figure = Figure(figsize=inches, dpi=DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        lines = [shortened(line, size[0] // 7) for line in title.split("\n")]
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=11)
        spectra = impression.spectrum.spectra()
        has_rows = spectra is not None and len(spectra.rows) > 0 and impression.chunks > 0
        rows = figure.add_gridspec(2, 1, height_ratios=[1, 1.1]) if has_rows else figure.add_gridspec(1, 1)
        above = rows[0].subgridspec(1, 3, width_ratios=[0.8, 1, 1.5])
        _draw_levels(figure.add_subplot(above[0]), impression)
        _draw_histogram(figure.add_subplot(above[1]), impression)
        _draw_spectrum(figure.add_subplot(above[2]), impression, spectra)
        if spectra is not None and has_rows:
            _draw_waterfall(figure.add_subplot(rows[1]), impression, spectra)
    return figure


def _draw_levels(axes: Axes, impression: Impression) -> None:
    levels = impression.levels.by_source()
    is_dbfs = any(level.dbfs is not None for level in levels)
    unit = "dBFS" if is_dbfs else "rms"
    values = np.array([level.dbfs if is_dbfs else level.rms for level in levels], float)
    clips = np.array([bool(level.clipped and level.clipped > _CLIPPED) for level in levels])
    places = np.arange(len(levels))
    axes.set_title(f"Level, {unit}" + (" (orange: clips)" if clips.any() else ""))
    finite = values[np.isfinite(values)]
    least = (min(finite.min(initial=-20.0), -20.0) - 3) if is_dbfs else 0.0
    colors = [VERMILION if clip else BLUE for clip in clips]
    if len(levels) <= _MOST_BARS:
        axes.barh(places, np.nan_to_num(values - least, nan=0.0), left=least, color=colors, height=0.7)
    else:
        axes.scatter(values, places, c=colors, s=6)
    if len(levels) <= 12:
        for place, value in zip(places, values, strict=True):
            text = f"{value:.3g}" if np.isfinite(value) else "nothing came"
            axes.annotate(
                text,
                (max(value, least) if np.isfinite(value) else least, place),
                (3, 0),
                textcoords="offset points",
                va="center",
            )
        axes.margins(x=0.25)
    if is_dbfs:
        axes.set_xlim(least, max(0.0, finite.max(initial=0.0) + 6))
        axes.axvline(0, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_ylim(len(levels) - 0.4, -0.6)
    labels = impression.meaning.labels
    axes.yaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda y, _: shortened(labels[int(y)], 12) if y == int(y) and 0 <= y < len(labels) else "")
    )
    axes.set_ylabel(impression.meaning.layout.sources or "")
    axes.set_xlabel("dB, of a full sine wave" if is_dbfs else "rms")
    _tidy(axes)


def _lines(impression: Impression, values: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    """What to draw as lines: a label, a colour, and the row of each source; or the whole, if there are many."""
    labels = impression.meaning.labels
    if len(values) == 1 or len(values) > len(_COLORS):
        return [("", BLUE, values)]
    source = impression.meaning.layout.sources or ""
    return [
        (f"{source} {label}".strip(), color, row[np.newaxis])
        for label, color, row in zip(labels, _COLORS, values, strict=False)
    ]


def _draw_histogram(axes: Axes, impression: Impression) -> None:
    edges, counts = impression.levels.histogram()
    axes.set_title("Histogram of samples")
    if edges.size:
        for label, color, rows in _lines(impression, counts):
            total = rows.sum(axis=0)
            part = 100 * total / max(total.sum(), 1)
            axes.stairs(part, edges, color=color, fill=not label, alpha=1.0 if label else 0.8, label=label or None)
        axes.margins(x=0.01)
        axes.set_ylim(bottom=0)
        full = impression.meaning.full_scale
        if full is not None and edges[-1] >= full / 2:
            for end in (impression.meaning.middle - full, impression.meaning.middle + full):
                axes.axvline(end, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_xlabel("value" if not impression.meaning.is_complex else "value, real and imaginary")
    axes.set_ylabel("% of the source's")
    _tidy(axes)


def _draw_spectrum(axes: Axes, impression: Impression, spectra: Spectra | None) -> None:
    axes.set_title("Mean spectrum")
    if spectra is None:
        axes.text(
            0.5, 0.5, impression.spectrum.why_not or "", transform=axes.transAxes, ha="center", color=GREY, wrap=True
        )
        axes.set_xticks([])
        axes.set_yticks([])
        return
    frequencies, unit = scaled(spectra.frequencies, spectra.unit)
    for label, color, rows in _lines(impression, spectra.mean):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # nothing but NaN
            values = decibels(np.nanmean(rows, axis=0), impression.meaning.full_scale)
        axes.plot(frequencies, values, color=color, linewidth=0.9, label=label or None)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=8, frameon=False)
    axes.margins(x=0.01)
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.set_xlabel(_frequency_label(unit))
    axes.set_ylabel(unit_of(impression))
    _tidy(axes)


def _frequency_label(unit: str) -> str:
    return unit if unit in ("channel", "cycles per sample") else f"frequency in the sampled band, {unit}"


def _draw_waterfall(axes: Axes, impression: Impression, spectra: Spectra) -> None:
    frequencies, unit = scaled(spectra.frequencies, spectra.unit)
    rows = decibels(spectra.rows, impression.meaning.full_scale)
    low, high = limits(rows)
    half = (frequencies[-1] - frequencies[0]) / max(len(frequencies) - 1, 1) / 2 or 0.5
    begin, end, name, label = _time_axis(impression, spectra)
    image = axes.imshow(
        np.ma.masked_invalid(rows),
        aspect="auto",
        interpolation="nearest",
        extent=(frequencies[0] - half, frequencies[-1] + half, end, begin),
        cmap=mpl.colormaps[_MAP].with_extremes(bad=_NOTHING),
        vmin=low,
        vmax=high,
    )
    of = of_source(impression, spectra.row_source)
    axes.set_title(f"Waterfall{of}" + (" (grey: nothing came)" if np.isnan(rows).any() else ""))
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(label)
    axes.set_ylabel(name)
    axes.set_xlabel(_frequency_label(unit))
    axes.figure.colorbar(image, ax=axes, pad=0.01, label=unit_of(impression))


def _time_axis(impression: Impression, spectra: Spectra) -> tuple[float, float, str, Any]:
    """Where the rows begin and end on the axis of time, its name, and what writes its labels."""
    layout = impression.meaning.layout
    end = float(spectra.first_batch[-1] + spectra.row_batches)
    rate = layout.time.tick_rate
    first = impression.times(np.array([0]))
    if rate is None or impression.restarts:
        return 0.0, end, "batches, in the order of reception", FuncFormatter(lambda y, _: f"{y:,.0f}")
    seconds = end * layout.time.step / rate
    if first is None:
        return 0.0, seconds, f"seconds from {when(impression, 0)} on", FuncFormatter(lambda y, _: f"{y:g}")
    # Labels are at round times, not at round distances from the first.
    minute = first[0].astype("datetime64[m]")
    begin = float((first[0] - minute).astype("timedelta64[ns]").astype(np.int64)) / 1e9
    digits = min(max(math.ceil(-math.log10(seconds / 8)), 0), 9)

    def write(y: float, _: Any) -> str:
        time = minute.astype("datetime64[ns]") + np.timedelta64(round(y * 1e9), "ns")
        text = str(time).split("T")[1]
        return text[: 8 + (digits + 1 if digits else 0)]

    return begin, begin + seconds, f"UTC, {str(minute)[:10]}", FuncFormatter(write)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
