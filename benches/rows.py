"""What the benchmarks have measured against rivals, as rows of one table: see `table.py`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def row(
    what: str,
    rival: str,
    unit: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    most: float | None = None,
    least: float | None = None,
) -> dict[str, Any]:
    """Make a row of what was measured turn by turn.

    Parameters
    ----------
    what, rival
        What was done, and by whom besides us.
    unit
        Unit of the figures.
    ours, theirs
        Figures of each turn. The ratio is that of neighbours in time: what else the machine does hits both.
    most, least
        What is wanted of the ratio.
    """
    low, ratio, high = np.percentile(np.divide(ours, theirs), [25, 50, 75])
    return {
        "what": what,
        "rival": rival,
        "unit": unit,
        "ours": float(np.median(ours)),
        "theirs": float(np.median(theirs)),
        "ratio": float(ratio),
        "quartiles": [float(low), float(high)],
        "turns": len(ours),
        "most": most,
        "least": least,
    }


def wanted(entry: dict[str, Any]) -> str:
    """What is wanted of a row's ratio, in words; empty if nothing is."""
    parts = [f"at most {entry['most']:g}"] if entry["most"] is not None else []
    parts += [f"at least {entry['least']:g}"] if entry["least"] is not None else []
    return " and ".join(parts)


def is_met(entry: dict[str, Any]) -> bool | None:
    """Whether a row's ratio is what is wanted; None if nothing is."""
    if entry["most"] is None and entry["least"] is None:
        return None
    return (entry["most"] is None or entry["ratio"] <= entry["most"]) and (
        entry["least"] is None or entry["ratio"] >= entry["least"]
    )


def write(path: str | None, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows to a file, if there is one."""
    if path is not None:
        pathlib.Path(path).write_text(json.dumps(list(rows)), "utf-8")


def table(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The cells of the table, with a line of titles."""
    lines = [["what", "ours", "rival", "", "ratio", "quartiles", "wanted", ""]]
    for entry in rows:
        low, high = entry["quartiles"]
        met = is_met(entry)
        lines.append(
            [
                entry["what"],
                f"{entry['ours']:.3g} {entry['unit']}",
                entry["rival"],
                f"{entry['theirs']:.3g} {entry['unit']}",
                f"{entry['ratio']:.2f}",
                f"{low:.2f} - {high:.2f}",
                wanted(entry),
                "" if met is None else "yes" if met else "no",
            ]
        )
    return lines
