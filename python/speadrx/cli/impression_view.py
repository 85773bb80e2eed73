"""An impression on a terminal: a table of levels, a histogram, a spectrum and a waterfall. And as plain values."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from speadrx._words import counted

from . import charts
from .impression import Impression
from .levels import Level
from .spectra import Spectra
from .tables import Format, Rows, percentage, printable, table_of

#: From this width on, histogram and spectrum are side by side.
_WIDE = 120
_HEIGHT = 8
#: Rows of the waterfall: lines, or twice as many in colours.
_LINES = 12
#: Sources in the table.
_MOST_SOURCES = 20


def decibels(values: np.ndarray, full_scale: float | None) -> np.ndarray:
    """Write powers in decibels: of a sine wave that just does not clip, if that is known, or else of 1."""
    reference = 1.0 if full_scale is None else full_scale**2 / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = 10 * np.log10(values / reference)
    return np.where(np.isfinite(found), found, np.nan)


def unit_of(impression: Impression) -> str:
    """The unit of `decibels`."""
    meaning = impression.meaning
    if meaning.full_scale is not None:
        return "dBFS"
    return "dB of amplitude" if meaning.kind == "power" else "dB"


def limits(values: np.ndarray) -> tuple[float, float]:
    """Between which values nearly all of them are; with room for noise to look like noise."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(np.percentile(finite, 1)), float(finite.max())
    return low, max(high, low + 3)


def scaled(frequencies: np.ndarray, unit: str) -> tuple[np.ndarray, str]:
    """Frequencies in the unit in which they have few digits, and its name."""
    if unit != "frequency" or not frequencies.size:
        return frequencies, unit
    largest = float(np.abs(frequencies).max())
    for size, name in ((1e9, "GHz"), (1e6, "MHz"), (1e3, "kHz")):
        if largest >= size:
            return frequencies / size, name
    return frequencies, "Hz"


def merged(spectra: Spectra, rows: int) -> np.ndarray:
    """The waterfall with at most so many rows."""
    n = len(spectra.rows)
    if n <= rows:
        return spectra.rows
    edges = np.linspace(0, n, rows + 1).astype(int)
    with np.errstate(all="ignore"):
        return np.stack([_mean(spectra.rows[a:b]) for a, b in itertools.pairwise(edges)])


def _mean(rows: np.ndarray) -> np.ndarray:
    there = np.isfinite(rows)
    counts = there.sum(axis=0)
    return np.where(counts > 0, np.where(there, rows, 0).sum(axis=0) / np.maximum(counts, 1), np.nan)


def when(impression: Impression, batch: int) -> str:
    """When a batch was, in UTC; or in seconds since tick 0, or ticks, if that is all that is known."""
    at = np.array([batch])
    times = impression.times(at)
    if times is not None:
        return str(times[0].astype("datetime64[us]")).replace("T", " ")
    ticks, rate = int(impression.ticks(at)[0]), impression.meaning.layout.time.tick_rate
    if rate is None:
        return f"timestamp {ticks}"
    return f"{ticks / rate:.6f} s"


def of_source(impression: Impression, source: int | None) -> str:
    """Name a source, if there is anything to name."""
    name = impression.meaning.layout.sources
    return "" if source is None or name is None else f" of {name} {impression.meaning.labels[source]}"


def used(impression: Impression) -> str:
    """Say how much was looked at, and what was not there."""
    samples = sum(level.samples for level in impression.levels.by_source())
    present, missing = int(impression.present.sum()), int(impression.missing.sum())
    text = f"Used: {counted(samples, 'sample')} of {counted(present, 'heap')} in {counted(impression.chunks, 'chunk')}."
    if missing:
        share = percentage(missing / (present + missing))
        text += f" Missing: {counted(missing, 'heap')} ({share}), of which nothing counts."
    if impression.restarts:
        text += f" Time began again {counted(impression.restarts, 'time')}."
    return text


class ImpressionView:
    """Shows an impression."""

    def __init__(self, impression: Impression, name: str, *, all_sources: bool = False) -> None:
        self._impression, self._name, self._all = impression, name, all_sources
        self._spectra = impression.spectrum.spectra()
        n, source = len(impression.meaning.labels), impression.meaning.layout.sources
        self._all_of = of_source(impression, 0) if n == 1 else f", all {n} of {source}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        impression, width = self._impression, options.max_width
        first, end = impression.span
        yield printable(self._name)
        if impression.chunks:
            zone = " UTC" if impression.times(np.array([0])) is not None else ""
            yield Text(f"{when(impression, first)} to {when(impression, end)}{zone}")
        yield Text(used(impression))
        yield Text()
        levels = impression.levels.by_source()
        room = None if self._all else _MOST_SOURCES
        yield Rows(levels, "sources (--all-sources)", self._table, room=room)
        if impression.chunks:
            yield from self._charts(console, width)

    def _table(self, levels: Sequence[Level], number: Format) -> Table:
        names = self._impression.meaning.layout.sources or "source"
        table = table_of(
            [names], ("rms", "dBFS", "mean", "clipped", "bits", "lowest", "highest"), ("samples", "missing")
        )
        missing = dict(zip(self._impression.meaning.labels, self._impression.missing.tolist(), strict=True))
        is_float = self._impression.meaning.bits is None
        for level in levels:
            is_bad = bool(level.clipped and level.clipped > 0.001) or level.rms == 0
            table.add_row(
                printable(level.label),
                short(level.rms),
                "-" if level.dbfs is None else f"{level.dbfs:.1f}",
                short(level.mean if is_float or level.mean is None else _rounded(level.mean)),
                percentage(level.clipped),
                "-" if level.bits is None else f"{level.bits:.1f}",
                short(level.low),
                short(level.high),
                number(level.samples),
                number(missing[level.label]),
                style="red" if not level.samples else "yellow" if is_bad else "",
            )
        return table

    def _charts(self, console: Console, width: int) -> Iterator[RenderableType]:
        side = (width - 3) // 2 if width >= _WIDE else width
        parts = [Group(*self._histogram(side))]
        if self._spectra is not None:
            parts.append(Group(*self._spectrum(side)))
        yield Text()
        if width >= _WIDE and len(parts) > 1:
            grid = Table.grid(padding=(0, 3, 0, 0))
            grid.add_row(*parts)
            yield grid
        else:
            for number, part in enumerate(parts):
                if number:
                    yield Text()
                yield part
        if self._spectra is None:
            yield Text(f"No spectrum. {self._impression.spectrum.why_not}")
        elif len(self._spectra.rows) > 1:
            yield Text()
            yield from self._waterfall(console, width)

    def _histogram(self, width: int) -> Iterator[RenderableType]:
        edges, counts = self._impression.levels.histogram()
        total = counts.sum(axis=0)
        step = edges[1] - edges[0] if edges.size else 1.0
        of = "values" if step == 1 and self._impression.meaning.bits else f"values, {step:g} in each bar"
        yield Text(f"Histogram{self._all_of}: {of}", style="bold")
        if not total.sum():
            yield Text("nothing")
            return
        share = f"{total.max() / total.sum():.1%}"
        rows = charts.bars(total, width - len(share) - 1, _HEIGHT)
        last = edges[-1] - (step if self._impression.meaning.bits else 0)
        labels = (f"{edges[0]:g}", f"{(edges[0] + last) / 2:g}", f"{last:g}")
        used_width = max(row.cell_len for row in rows) + len(share) + 1
        yield from charts.framed(rows, (share, "0%"), labels, used_width)

    def _spectrum(self, width: int) -> Iterator[RenderableType]:
        assert self._spectra is not None
        values = decibels(_mean(self._spectra.mean), self._impression.meaning.full_scale)
        low, high = limits(values)
        labels, unit = self._frequency_labels()
        yield Text(f"Mean spectrum{self._all_of}: {unit_of(self._impression)} by {unit}", style="bold")
        left = (f"{high:.1f}", f"{low:.1f}")
        rows = charts.curve(values, width - max(map(len, left)) - 1, _HEIGHT, low, high)
        yield from charts.framed(rows, left, labels, width)

    def _waterfall(self, console: Console, width: int) -> Iterator[RenderableType]:
        spectra = self._spectra
        assert spectra is not None
        has_colors = console.is_terminal and console.color_system is not None and not console.no_color
        rows = decibels(merged(spectra, 2 * _LINES if has_colors else _LINES), self._impression.meaning.full_scale)
        low, high = limits(rows)
        labels, unit = self._frequency_labels()
        ends_of_scale = ("dark", "bright") if has_colors else ("' '", "'█'")
        scale = f"{ends_of_scale[0]} {low:.1f}, {ends_of_scale[1]} {high:.1f} {unit_of(self._impression)}"
        what = f"Waterfall{of_source(self._impression, spectra.row_source)} by {unit}: {scale}"
        yield Text(what, style="bold")
        # The day stands above.
        ends = [when(self._impression, batch).removeprefix(self._day()) for batch in (0, self._impression.span[1])]
        left = ends if len(ends[0]) <= width // 4 else ("", "")
        inner = width - max(map(len, left)) - 1
        yield from charts.framed(
            charts.shades(rows, inner, low, high, has_colors=has_colors), (left[0], left[1]), labels, width
        )

    def _day(self) -> str:
        first = self._impression.times(np.array([0]))
        return "" if first is None else f"{first[0].astype('datetime64[D]')} "

    def _frequency_labels(self) -> tuple[tuple[str, str, str], str]:
        assert self._spectra is not None
        values, unit = scaled(self._spectra.frequencies, self._spectra.unit)
        first, last = float(values[0]), float(values[-1])
        return (f"{first:g}", f"{(first + last) / 2:g}", f"{last:g}"), unit


def short(number: float | complex | None) -> str:
    """Write a number with few digits."""
    if number is None:
        return "-"
    if isinstance(number, complex):
        return f"{short(number.real)}{'-' if number.imag < 0 else '+'}{short(abs(number.imag))}j"
    size = abs(number)
    if size and (size >= 1e6 or size < 0.001):
        return f"{number:.3g}"
    return f"{number:,.{0 if size >= 1000 or number == int(number) else 3 if size < 1 else 2}f}"


def _rounded(mean: float | complex) -> float | complex:
    """The mean of integers, as far as it matters."""
    return complex(round(mean.real, 3), round(mean.imag, 3)) if isinstance(mean, complex) else round(mean, 3)


def document(impression: Impression) -> dict[str, Any]:
    """An impression as plain values."""
    meaning = impression.meaning
    edges, counts = impression.levels.histogram()
    spectra = impression.spectrum.spectra()
    batches = np.array(impression.span)
    times = impression.times(batches) if impression.chunks else None
    sources = [
        {
            **dataclasses.asdict(level),
            "mean": [level.mean.real, level.mean.imag] if isinstance(level.mean, complex) else level.mean,
            "present": int(impression.present[i]),
            "missing": int(impression.missing[i]),
        }
        for i, level in enumerate(impression.levels.by_source())
    ]
    return {
        "kind": meaning.kind,
        "chunks": impression.chunks,
        "samples": sum(source["samples"] for source in sources),
        "present": int(impression.present.sum()),
        "missing": int(impression.missing.sum()),
        "restarts": impression.restarts,
        "first_timestamp": int(impression.ticks(batches)[0]) if impression.chunks else None,
        "utc": None if times is None else [str(time) for time in times],
        "sources": sources,
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "why_no_spectrum": impression.spectrum.why_not,
        "spectrum": None if spectra is None else _spectra_document(impression, spectra),
    }


def _spectra_document(impression: Impression, spectra: Spectra) -> dict[str, Any]:
    times = impression.times(spectra.first_batch)
    return {
        "of": spectra.unit,
        spectra.unit.replace(" ", "_"): spectra.frequencies.tolist(),
        "full_scale": impression.meaning.full_scale,
        "mean": _numbers(spectra.mean),
        "waterfall": {
            "source": None if spectra.row_source is None else impression.meaning.labels[spectra.row_source],
            "row_batches": spectra.row_batches,
            "timestamp": impression.ticks(spectra.first_batch).tolist() if impression.chunks else [],
            "utc": None if times is None else [str(time) for time in times],
            "mean": _numbers(spectra.rows),
        },
    }


def _numbers(values: np.ndarray) -> list[Any]:
    """Nested lists; None where there is nothing."""
    return [[None if np.isnan(value) else value for value in row] for row in values.tolist()]
