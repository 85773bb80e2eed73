"""Makes `doc/performance.md` and its figure from what `table.py` has written."""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import matplotlib as mpl
import rows
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from speadrx.accounts.figures import BLUE, GREY, STYLE, VERMILION

DOC = pathlib.Path(__file__).parents[1] / "doc"
COLOURS = (BLUE, VERMILION, GREY)
#: Says that figures do not count.
PROVISIONAL = """
**These figures are provisional: they were taken in quick mode, or while the machine did other things.** They show what
is measured, and nothing else.
"""


def draw(curves: list[dict[str, Any]]) -> Figure:
    """Draw the curves, each with the band of its quartiles."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 7), layout="constrained")
        FigureCanvasSVG(figure)
        for axes, curve in zip(figure.subplots(2, 2).flat, curves, strict=True):
            for colour, (name, series) in zip(COLOURS, curve["series"].items(), strict=False):
                axes.plot(curve["x"], series["median"], "o-", color=colour, label=name, markersize=3, linewidth=1.2)
                axes.fill_between(curve["x"], series["low"], series["high"], color=colour, alpha=0.2, linewidth=0)
            axes.set_xscale("log", base=2)
            if curve["x_label"] in ("bytes of a heap", "streams"):
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=0)
            axes.set_xticks(curve["x"])
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlabel(curve["x_label"])
            axes.set_title(curve["y_label"])
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
        return figure


def table(found: list[dict[str, Any]]) -> str:
    """The rows as a table in Markdown."""
    titles, *lines = rows.table(found)
    text = [titles, ["---"] * len(titles), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in text)


def page(document: dict[str, Any]) -> str:
    """The page in Markdown."""
    about, critical = document["about"], document["critical"]
    rate = critical["gigabits_per_second"]
    limits = ", ".join(f"{limit} in {n}" for limit, n in critical["limits"].items() if n)
    most, (low, high) = f"{critical['max_packet_bytes']:,}", rate["quartiles"]
    is_provisional = document["quick"] or document["load"] > 1
    return f"""# What it costs, against others

`make performance` makes this page of `performance.json`, which `make bench ARGS="--json doc/performance.json"` has
written. [design/cost.md](design/cost.md) says what was measured how, and what was tried.
{PROVISIONAL if is_provisional else ""}
{about["processor"]}, {about["cores"]} cores, {about["kernel"]}; Python {about["python"]}, spead2 {about["spead2"]},
numba {about["numba"]}. It took {document["seconds"] / 60:.0f} minutes; the load before was {document["load"]:.2f}.

## Ratios

Ours and the rival took turns. Of each ratio, the median of the turns and their quartiles are given. Of times, less than
1 is better; of rates, more.

{table(document["rows"])}

## The critical rate

The highest rate over UDP on 127.0.0.1 without loss, as [`speadrx bench --critical`](bench.md) finds it, for heaps of
{critical["heap_bytes"]:,} bytes in packets of at most {most}: **{rate["median"]:.2f} Gb/s** of payload
(quartiles {low:.2f} to {high:.2f}; {critical["trials"]} trials; limited by: {limits}).

## Curves

![Cost by sources, bytes of a heap, threads and streams](performance.svg)

*Medians, and the band of the quartiles. Sources: the callback alone, less the loop that calls it. Bytes of a heap: the
network thread, from packets in memory to chunks; "fixed" puts all heaps into one slot. Threads: callbacks in threads
of their own, with the loop, on {about["cores"]} cores. Streams: a scrape; the loop reads three counters, the ledger has
all of ours.*
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", nargs="?", default=DOC / "performance.json", type=pathlib.Path, help="[%(default)s]")
    parser.add_argument("--folder", default=DOC, type=pathlib.Path, help="where to write [%(default)s]")
    args = parser.parse_args()
    document = json.loads(args.json.read_text("utf-8"))
    with mpl.rc_context(STYLE):
        draw(document["curves"]).savefig(args.folder / "performance.svg", format="svg", metadata={"Date": None})
    (args.folder / "performance.md").write_text(page(document), "utf-8")


if __name__ == "__main__":
    main()
