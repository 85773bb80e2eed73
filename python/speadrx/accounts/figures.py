"""The figure of a history: heaps missing by time and source, how late heaps were, and why heaps were lost."""

from __future__ import annotations

import datetime as dt
import math
import os
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import FuncNorm, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from speadrx._whole import whole_file
from speadrx._words import counted

from .history import History
from .loss import losses

DOTS_PER_INCH = 100
#: From the palette of Okabe and Ito, which colour-blind people can tell apart.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#555555"
#: The colours where nothing and where everything is missing. In between, the more is missing, the darker the colour.
COMPLETE, ABSENT = "#e3eaf0", "#000000"
#: Above this loss the scale of colours is linear, so that 67 % differs from 90 %; below, it is logarithmic.
LINEAR_FROM = 0.1
#: The part of the scale that is logarithmic.
LOGARITHMIC_PART = 0.6
#: The smallest loss with a colour of its own.
LEAST_LOSS = 1e-6
#: Smallest width and height of a mark for missing heaps, in pixels, so that it can be seen.
MARK = 2
#: A mark covers at least so many heaps, so that its colour tells the loss: of a few heaps, one is too large a part. But
#: there are always some marks.
MARK_HEAPS, LEAST_MARKS = 100, 50
#: Pixels: the width of a bar's label, the height of a source's label, the height of the bars with all around them.
LABEL_WIDTH, LABEL_HEIGHT, BARS_HEIGHT = 34, 16, 250
#: The largest number of restarts that are drawn as lines. More lines would hide the missing heaps.
MAX_LINES = 40
#: Pixels beside the bars for reasons (title, axis and its label), and of each bar. If there is no room for all reasons,
#: the rarest are added up.
REASONS_MARGIN, REASON_HEIGHT = 95, 19
#: How all figures look.
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "text.parse_math": False,  # labels come from the user: a dollar sign does not begin a formula
    "svg.fonttype": "none",  # text that can be searched
    "svg.hashsalt": "speadrx",  # the same figure makes the same file
}


def draw(history: History, *, title: str, size: tuple[int, int]) -> Figure:
    """Draw a history.

    Parameters
    ----------
    history
        The history.
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
        figure.suptitle(f"{shortened(title, size[0] // 9)}\n{summary(history)}", x=0.01, ha="left", fontsize=11)
        n_sources = len(history.axes.source_labels)
        share = min(0.3 + 0.02 * n_sources, 0.6, 1 - BARS_HEIGHT / size[1])  # of the height
        rows = figure.add_gridspec(2, 1, height_ratios=[share, 1 - share])
        below = rows[1].subgridspec(1, 2, width_ratios=[1.4, 1])
        waterfall = figure.add_subplot(rows[0])
        least = _draw_waterfall(waterfall, history)
        panels = _draw_lateness(figure, below[0], history)
        room = int((1 - share) * size[1] - REASONS_MARGIN) // REASON_HEIGHT
        _draw_reasons(figure.add_subplot(below[1]), history, room)
        # How much is drawn depends on the space that the labels leave.
        figure.draw_without_rendering()
        width, height = (int(length) for length in waterfall.get_window_extent().size)
        for image in waterfall.images:
            image.set_data(_pixels(history, max(width // MARK, 1), max(height // MARK, 1), least).T)
        waterfall.yaxis.set_major_locator(
            MaxNLocator(max(height // LABEL_HEIGHT, 1), integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])
        )
        for panel in panels:
            _thin_out(panel)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure to a file. Its suffix (.png or .svg) says in which format.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    kind = os.path.splitext(path)[1].lower().removeprefix(".")
    metadata = {"Date": None} if kind == "svg" else {}
    with mpl.rc_context(STYLE), warnings.catch_warnings(), whole_file(path) as file:
        warnings.simplefilter("ignore")
        figure.savefig(file, format=kind or None, dpi=DOTS_PER_INCH, metadata=metadata)


def shortened(text: str, n: int) -> str:
    """Cut a text to at most `n` letters, and replace letters that SVG cannot hold."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= n else f"{text[: n // 2 - 1]}\N{HORIZONTAL ELLIPSIS}{text[-(n // 2) :]}"


def percent(part: float, whole: float) -> str:
    """Write a part as a percentage. It says 100 or 0 only if that is exact."""
    if part in (0, whole):
        return f"{100 * part // whole if whole else 0:.0f} %"
    smaller = 100 * min(part, whole - part) / whole
    digits = min(max(1, 1 - math.floor(math.log10(smaller))), 12)  # two significant digits
    return f"{100 * part / whole:.{digits}f} %"


def summary(history: History) -> str:
    """Say in one line how many heaps are present and missing."""
    if not history.chunks:
        return "nothing was received"
    present, missing = int(history.present_by_source.sum()), int(history.missing_by_source.sum())
    parts = [
        f"{percent(present, present + missing)} of {counted(present + missing, 'heap')} present",
        f"{missing:,} missing ({percent(history.loss or 0, 1)})",
    ]
    if duplicates := history.accounts.get("duplicates"):
        parts.append(counted(duplicates, "duplicate"))
    if restarts := history.restarts:
        parts.append(counted(restarts, "restart"))
    return ", ".join(parts)


# Presence by time and source


def _time_unit(history: History) -> tuple[float, str]:
    """Return the length of a batch, and its unit."""
    axes = history.axes
    if axes.tick_rate is None:
        return 1.0, "batches"
    seconds = axes.time_step / axes.tick_rate
    total = seconds * float(history.batches.sum())
    for unit, name in ((3600.0, "h"), (1.0, "s"), (1e-3, "ms"), (1e-6, "\N{MICRO SIGN}s")):
        if total >= 3 * unit:
            return seconds / unit, name
    return seconds / 1e-6, "\N{MICRO SIGN}s"


def pool(missing: np.ndarray, expected: np.ndarray, batches: np.ndarray, columns: int, lines: int) -> np.ndarray:
    """Make pixels of equal size. Each shows the loss of what it covers, so it is 0 only if nothing is missing there.

    Parameters
    ----------
    missing
        Heaps, of shape (rows, sources).
    expected
        Heaps of each source, of shape (rows,).
    batches
        Length of each row.

    Returns
    -------
    numpy.ndarray
        Shape (pixels in time, pixels by source).
    """
    ends = np.cumsum(batches)
    edges = np.concatenate(([0], ends))
    bounds = np.linspace(0, edges[-1], columns + 1)
    # Rows that lie in two pixels count in both, so that a loss is never shown in too few heaps.
    first = np.searchsorted(edges, bounds[:-1], side="right") - 1
    last = np.maximum(np.searchsorted(edges, bounds[1:], side="left"), first + 1)

    def sums(counts: np.ndarray) -> np.ndarray:
        upto = np.concatenate((np.zeros_like(counts[:1]), np.cumsum(counts, axis=0)))
        covered: np.ndarray = upto[last] - upto[first]
        return covered

    lost, whole = sums(missing), sums(expected)[:, np.newaxis] * np.ones(missing.shape[1], np.int64)
    if missing.shape[1] > lines:
        groups = np.arange(lines) * missing.shape[1] // lines
        lost, whole = np.add.reduceat(lost, groups, axis=1), np.add.reduceat(whole, groups, axis=1)
    return losses(lost, whole - lost)


def _pixels(history: History, columns: int, lines: int, least: float) -> np.ndarray:
    """Make the pixels of a waterfall, as its scale has them: below it if nothing is missing, above it if all is."""
    expected = history.expected_by_row
    enough = int(expected.sum()) // MARK_HEAPS
    missing = expected[:, np.newaxis] - history.present_by_row
    loss = pool(missing, expected, history.batches, min(columns, max(enough, LEAST_MARKS)), lines)
    return np.select([loss == 0, loss == 1], [least / 2, 2.0], np.maximum(loss, least))


def _scale(least: float) -> FuncNorm:
    """A scale from the least loss to 1."""
    decades = math.log10(LINEAR_FROM / least)

    def forward(loss: np.ndarray) -> np.ndarray:
        low = LOGARITHMIC_PART * np.log10(np.maximum(loss, least / 10) / least) / decades
        high = LOGARITHMIC_PART + (1 - LOGARITHMIC_PART) * (loss - LINEAR_FROM) / (1 - LINEAR_FROM)
        return np.where(loss < LINEAR_FROM, low, high)

    def inverse(part: np.ndarray) -> np.ndarray:
        low = least * 10 ** (np.minimum(part, LOGARITHMIC_PART) * decades / LOGARITHMIC_PART)
        high = LINEAR_FROM + (part - LOGARITHMIC_PART) * (1 - LINEAR_FROM) / (1 - LOGARITHMIC_PART)
        return np.where(part < LOGARITHMIC_PART, low, high)

    return FuncNorm((forward, inverse), least, 1)


def _loss_colors() -> LinearSegmentedColormap:
    middle = mpl.colormaps["inferno_r"](np.linspace(0.12, 0.82, 256))  # without colours like COMPLETE and ABSENT
    colors = LinearSegmentedColormap.from_list("loss", middle)
    colors.set_extremes(under=COMPLETE, over=ABSENT)
    return colors


def _draw_waterfall(axes: Axes, history: History) -> float:
    """Draw all but the pixels. Return the least loss that has a colour of its own."""
    batch, unit = _time_unit(history)
    axes.set_ylabel(shortened(history.axes.source_axis or "source", 24))
    axes.set_title("Heaps missing, by time and source")
    _label_sources(axes, history.axes.source_labels)
    if not len(history.batches):
        axes.text(0.5, 0.5, "Nothing was received.", transform=axes.transAxes, ha="center", va="center")
        axes.set_xticks([])
        return LEAST_LOSS
    edges = np.concatenate(([0], np.cumsum(history.batches))) * batch
    axes.set_xlabel(f"data received from timestamp {history.timestamps[0]} on, {unit}{_began(history)}")
    source_loss = losses(history.missing_by_source, history.present_by_source)
    smallest = float(source_loss[source_loss > 0].min(initial=0.01))
    least: float = 10.0 ** math.floor(math.log10(max(smallest, LEAST_LOSS)))
    image = axes.imshow(
        np.full((len(history.axes.source_labels), 1), least),
        cmap=_loss_colors(),
        norm=_scale(least),
        aspect="auto",
        interpolation="nearest",
        extent=(0, edges[-1], len(history.axes.source_labels) - 0.5, -0.5),
    )
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=unit == "batches"))
    bar = axes.figure.colorbar(image, ax=axes, extend="both", pad=0.01, aspect=18)
    decades = -1 - round(math.log10(least))
    ticks = [*(10.0**power for power in range(-1, -2 - decades, -math.ceil(decades / 3))), 0.5, 1]
    bar.set_ticks(ticks, labels=[f"{100 * tick:.6g} %" for tick in ticks])
    bar.minorticks_off()
    bar.set_label("missing (pale: none, black: all)")
    _mark_restarts(axes, edges[:-1][history.row_restarts > 0])
    return least


def _began(history: History) -> str:
    """Say when the first heaps came, if that is known."""
    if history.began is None:
        return ""
    return f" (begins {dt.datetime.fromtimestamp(history.began, dt.UTC):%Y-%m-%d %H:%M:%S} UTC)"


def _label_sources(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_ylim(len(labels) - 0.5, -0.5)
    names = [shortened(label, 16) for label in labels]
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: names[int(value)] if value == int(value) and 0 <= value < len(names) else "")
    )


def _mark_restarts(axes: Axes, positions: np.ndarray) -> None:
    if not len(positions):
        return
    axes.set_title(f"{axes.get_title(loc='left')} (\N{BLACK DOWN-POINTING TRIANGLE} time begins again)")
    for position in positions if len(positions) <= MAX_LINES else ():
        axes.axvline(position, color=BLUE, linestyle=(0, (4, 3)), linewidth=1)
    marks = axes.get_xaxis_transform()
    axes.plot(positions, np.ones(len(positions)), "v", color=BLUE, markersize=6, transform=marks, clip_on=False)


# Lateness


def _draw_lateness(figure: Figure, place: Any, history: History) -> list[Axes]:
    """Draw two panels, or one that says why there is nothing to draw. Return the panels that have bars."""
    batches = history.accounts.get("late_batches", [])
    chunks = history.accounts.get("late_chunks", [])
    if not sum(batches) + sum(chunks):
        axes = figure.add_subplot(place)
        axes.set_title("Lateness of heaps")
        _say_unknown(axes, "no heap was placed" if batches else "not known")
        return []
    batches = _trimmed(batches, 2)
    within, too_old = _trimmed(chunks[1:-1], 1), chunks[-1:]
    places = place.subgridspec(1, 2, width_ratios=[len(batches) + 1, len(within) + 2], wspace=0.02)
    axes = figure.add_subplot(places[0])
    axes.set_title("Lateness of heaps")
    axes.set_ylabel("heaps")
    axes.set_xlabel("batches late, from")
    axes.bar(range(len(batches)), batches, color=BLUE)
    axes.set_xticks(range(len(batches)), ["0\n", *(_power(i) for i in range(len(batches) - 1))])
    axes.set_yscale("log", nonpositive="clip")
    axes.set_ylim(0.7, 2 * max(*batches, *within, *too_old))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_minor_locator(NullLocator())
    behind = figure.add_subplot(places[1], sharey=axes)
    behind.set_xlabel("chunks late")
    behind.bar(range(len(within) + len(too_old)), [*within, *too_old], color=[*[BLUE] * len(within), VERMILION])
    behind.set_xticks(range(len(within) + 1), [*(f"{i + 1}" for i in range(len(within))), "too\nold"])
    behind.tick_params(labelleft=False)
    for panel in (axes, behind):
        panel.grid(axis="y", color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return [axes, behind]


def _trimmed(counts: list[int], least: int) -> list[int]:
    """Leave out zeros at the end, but keep at least `least` elements."""
    return counts[: max(int(np.flatnonzero(counts).max(initial=-1)) + 1, least)]


def _power(exponent: int) -> str:
    """Write a power of two with few letters."""
    if exponent >= 40:
        return f"2^{exponent}"
    return f"{1 << exponent % 10}{'kMG'[exponent // 10 - 1] if exponent >= 10 else ''}"


def _thin_out(panel: Axes) -> None:
    """Leave out labels for which there is no room. The last label stays."""
    ticks = panel.get_xticks()
    step = math.ceil(LABEL_WIDTH * (len(ticks) + 1) / panel.get_window_extent().width)
    for tick, label in zip(ticks, panel.get_xticklabels(), strict=True):
        label.set_visible((len(ticks) - 1 - tick) % step == 0)


def _say_unknown(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set_xticks([])
    axes.set_yticks([])


# Loss


def reasons(history: History) -> list[tuple[str, int]]:
    """Heaps lost (and packets dropped) by reason, as far as known. The most frequent reason is first."""
    accounts = history.accounts
    found = [
        (name, accounts[key])
        for name, key in (("too old", "too_old"), ("unfinished", "unfinished"), ("packets dropped", "kernel_drops"))
        if key in accounts
    ]
    rejected = accounts.get("rejected", {})
    found += [
        (f"rejected: {name.removesuffix('_heaps').replace('_', ' ')}", heaps)
        for name, heaps in rejected.items()
        if heaps
    ]
    if rejected and not sum(rejected.values()):
        found.append(("rejected", 0))
    if found:
        # Rejected heaps may never have had a slot, and a heap may lack several packets.
        missing = int(history.missing_by_source.sum())
        found.append(("never came (at least)", max(missing - sum(heaps for _, heaps in found), 0)))
    return sorted(found, key=lambda reason: -reason[1])


def _draw_reasons(axes: Axes, history: History, most: int) -> None:
    found = reasons(history)
    axes.set_title("Loss, by reason" if found else "Loss (reasons are not known)")
    if len(found) >= most:
        others = found[most - 2 :]
        found = [*found[: most - 2], (f"{len(others)} others", sum(n for _, n in others))]
    bars = [("missing, for any reason", int(history.missing_by_source.sum())), *found]
    names, numbers = [shortened(name, 40) for name, _ in bars], [number for _, number in bars]
    axes.set_yticks(range(len(names)), names)
    axes.barh(range(len(names)), [max(number, 0.01) for number in numbers], color=[GREY] + [VERMILION] * len(found))
    axes.invert_yaxis()
    axes.set_xscale("log")
    least, most = 0.7, max(*numbers, 10)
    axes.set_xlim(least, least * (most / least) ** 1.35)  # with room for numbers
    for line, number in enumerate(numbers):
        axes.annotate(f"{number:,}", (max(number, least), line), (4, 0), textcoords="offset points", va="center")
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("heaps")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
