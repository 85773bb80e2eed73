#!/usr/bin/env python3
"""Generate the Grafana dashboard, monitoring/dashboard.json, from the names of `speadrx.metrics`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alerts import Thresholds
from speadrx import metrics as m
from speadrx.accounts.loss import loss_expression
from speadrx.fleet import metrics as f

OUTPUT = Path(__file__).with_suffix(".json")

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
GRID_COLUMNS = 24

#: How every query selects series. A stream without such a label matches the pattern for all of them.
SELECTOR = 'instance=~"$instance",stream=~"$stream"'
SOURCE_SELECTOR = SELECTOR + ',source=~"$source"'
INTERVAL = "$__rate_interval"

#: When the alerts fire, which is when panels turn red.
THRESHOLDS = Thresholds()
#: More than nothing.
ANY = 1e-9


@dataclass(frozen=True)
class Step:
    """A colour, and the value from which on a panel has it."""

    colour: str
    value: float | None = None


ALL_GOOD = (Step("green"), Step("red", ANY))
LOSS_STEPS = (Step("green"), Step("yellow", ANY), Step("red", THRESHOLDS.loss))
BLOCKED_STEPS = (Step("green"), Step("yellow", ANY), Step("red", THRESHOLDS.blocked))


@dataclass(frozen=True)
class Query:
    """A query and the legend of its series. `kind` is how Grafana asks for it."""

    expr: str
    legend: str
    kind: str = "range"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A panel.

    `unit` is Grafana's name of a unit; `steps` are its thresholds, the first from the lowest value on; `quiet` says
    that it is empty while there are no faults.
    """

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str
    type: str = "timeseries"
    width: int = 12
    height: int = 8
    minimum: float | None = 0
    maximum: float | None = None
    steps: tuple[Step, ...] = ()
    quiet: bool = False


@dataclass(frozen=True)
class Row:
    """A heading and the panels below it."""

    title: str
    panels: tuple[Panel, ...]


def _all(metric: str) -> str:
    return f"{metric}{{{SELECTOR}}}"


def _source(metric: str) -> str:
    return f"{metric}{{{SOURCE_SELECTOR}}}"


def _rate(series: str) -> str:
    return f"rate({series}[{INTERVAL}])"


def _by(labels: str, expr: str) -> str:
    return f"sum by ({labels}) ({expr})"


def _loss(labels: str) -> str:
    missing, present = (_by(labels, _rate(_source(name))) for name in (m.HEAPS_MISSING, m.HEAPS_PRESENT))
    return loss_expression(missing, present)


def _lateness(title: str, unit: str, metric: str, description: str) -> Panel:
    expr = f"sum by (le) (increase({_all(metric + '_bucket')}[{INTERVAL}]))"
    return Panel(
        title=title, description=description, queries=(Query(expr, "{{le}}", "heatmap"),), unit=unit, type="heatmap"
    )


STREAM = "instance, stream"
STREAM_LEGEND = "{{stream}}"
SOURCE_LEGEND = "{{stream}} {{source}}"

SUMMARY = Row(
    "Summary",
    (
        Panel(
            title="Heaps placed",
            description="Heaps placed in a chunk, including duplicates and heaps that are too old.",
            queries=(Query(_by(STREAM, _rate(_all(m.HEAPS_PLACED))), STREAM_LEGEND),),
            unit="suffix: heaps/s",
            type="stat",
            width=4,
            height=5,
            steps=(Step("red"), Step("green", ANY)),
        ),
        Panel(
            title="Received",
            description="Payload of the heaps placed, in bits per second.",
            queries=(Query(f"8 * {_by(STREAM, _rate(_all(m.RECEIVED_BYTES)))}", STREAM_LEGEND),),
            unit="bps",
            type="stat",
            width=4,
            height=5,
            steps=(Step("red"), Step("green", ANY)),
        ),
        Panel(
            title="Loss",
            description="Part of the expected heaps that is missing from the chunks.",
            queries=(Query(_loss(STREAM), STREAM_LEGEND),),
            unit="percentunit",
            type="stat",
            width=4,
            height=5,
            steps=LOSS_STEPS,
        ),
        Panel(
            title="Silent sources",
            description="Sources of which no heap was placed recently.",
            queries=(Query(f"sum by ({STREAM}) ({_rate(_source(m.HEAPS_PLACED))} == bool 0)", STREAM_LEGEND),),
            unit="none",
            type="stat",
            width=4,
            height=5,
            steps=ALL_GOOD,
        ),
        Panel(
            title="Consumer blocks",
            description="Part of the time for which a stream had no free chunk, or no room for a finished one.",
            queries=(Query(f"max by ({STREAM}) ({_rate(_all(m.RING_BLOCKED_SECONDS))})", STREAM_LEGEND),),
            unit="percentunit",
            type="stat",
            width=4,
            height=5,
            steps=BLOCKED_STEPS,
        ),
        Panel(
            title="Kernel drops",
            description="Packets dropped because a receive buffer was full (or, rarely, their checksum wrong).",
            queries=(Query(_by(STREAM, _rate(_all(m.SOCKET_DROPS))), STREAM_LEGEND),),
            unit="suffix: packets/s",
            type="stat",
            width=4,
            height=5,
            steps=ALL_GOOD,
        ),
    ),
)

LOSS = Row(
    "Loss",
    (
        Panel(
            title="Loss by source",
            description="Part of the expected heaps of each source that is missing from the chunks.",
            queries=(Query(_loss(f"{STREAM}, source"), SOURCE_LEGEND),),
            unit="percentunit",
            maximum=1,
            steps=(Step("green"), Step("red", THRESHOLDS.loss)),
        ),
        Panel(
            title="Loss by reason",
            description=(
                "Missing heaps, and the reasons that the receiver knows. Heaps without a reason never reached it, so"
                " the network lost them. Kernel drops are packets, and a heap may have several."
                " Duplicates are not lost."
            ),
            queries=(
                Query(_by("stream", _rate(_source(m.HEAPS_MISSING))), "{{stream}} missing"),
                Query(_by("stream, reason", _rate(_all(m.HEAPS_REJECTED))), "{{stream}} rejected: {{reason}}"),
                Query(_by("stream", _rate(_all(m.HEAPS_TOO_OLD))), "{{stream}} too old"),
                Query(_by("stream", _rate(_all(m.HEAPS_INCOMPLETE_EVICTED))), "{{stream}} incomplete, packets missing"),
                Query(_by("stream", _rate(_all(m.HEAPS_INCOMPLETE_FLUSHED))), "{{stream}} incomplete at the end"),
                Query(_by("stream", _rate(_all(m.HEAPS_DUPLICATE))), "{{stream}} duplicates"),
                Query(_by("stream", _rate(_all(m.SOCKET_DROPS))), "{{stream}} dropped by the kernel"),
            ),
            unit="suffix: /s",
        ),
        Panel(
            title="Worst sources",
            description="The 20 sources that have lost most heaps in the time shown.",
            queries=(
                Query(
                    f"topk(20, sum by ({STREAM}, source) (increase({_source(m.HEAPS_MISSING)}[$__range])))",
                    SOURCE_LEGEND,
                    "table",
                ),
            ),
            unit="suffix: heaps",
            type="table",
        ),
        Panel(
            title="Rejected by source",
            description=(
                "Heaps that arrived but were not placed. Without a source: the item that tells it is absent or wrong."
            ),
            queries=(
                Query(
                    _by(f"{STREAM}, source, reason", _rate(_all(m.HEAPS_REJECTED))) + " > 0",
                    "{{stream}} {{source}} {{reason}}",
                ),
            ),
            unit="suffix: heaps/s",
        ),
    ),
)

TIME = Row(
    "Time",
    (
        _lateness(
            "Lateness in the newest chunk",
            "suffix: batches",
            m.HEAP_LATENESS_BATCHES,
            "Heaps of the newest chunk, by how many batches behind the newest batch they were.",
        ),
        _lateness(
            "Lateness in chunks",
            "suffix: chunks",
            m.HEAP_LATENESS_CHUNKS,
            "Heaps, by how many chunks behind the newest chunk they were. Those older than the window are too old.",
        ),
        Panel(
            title="Newest timestamp, against the median",
            description=(
                "In ticks, of placed heaps. A source that keeps falling behind is silent, or its clock is so wrong that"
                " its heaps are rejected. Several sources that run ahead together move the window away from the others."
            ),
            queries=(
                Query(
                    f"{_source(m.NEWEST_TIMESTAMP)} - ignoring (source) group_left ()"
                    f" quantile without (source) (0.5, {_all(m.NEWEST_TIMESTAMP)})",
                    SOURCE_LEGEND,
                ),
            ),
            unit="short",
            minimum=None,
            width=GRID_COLUMNS,
        ),
        Panel(
            title="Sources that say another time",
            description=(
                "1 while a source says another time than most others: its heaps are lost. If that is half of the"
                " sources, nobody can tell who is right, and time stays as it was."
            ),
            queries=(Query(f"{_source(m.SOURCE_ESTRANGED)} > 0", SOURCE_LEGEND),),
            unit="none",
            width=8,
            quiet=True,
        ),
        Panel(
            title="Restarts",
            description=("How often time began again: senders were restarted, or the time so far was wrong."),
            queries=(Query(_by(STREAM, f"increase({_all(m.RESTARTS)}[{INTERVAL}])"), STREAM_LEGEND),),
            unit="none",
            width=8,
        ),
        Panel(
            title="Epoch gap",
            description=(
                "Heaps in the time that was jumped over when time began again. They do not count as missing, because"
                " nobody knows whether they were sent."
            ),
            queries=(Query(_by(STREAM, f"increase({_all(m.EPOCH_GAP_HEAPS)}[{INTERVAL}])"), STREAM_LEGEND),),
            unit="suffix: heaps",
            width=8,
        ),
    ),
)

RINGS = Row(
    "Rings and consumer",
    (
        Panel(
            title="Ring fill",
            description="Data ring: chunks that wait for the consumer. Free ring: chunks that wait to be filled.",
            queries=(Query(f"{_all(m.RING_CHUNKS)} / {_all(m.RING_CAPACITY_CHUNKS)}", "{{stream}} {{ring}} ring"),),
            unit="percentunit",
            maximum=1,
            width=8,
        ),
        Panel(
            title="Time blocked",
            description="Part of the time for which the data ring was full, or the free ring empty.",
            queries=(Query(_rate(_all(m.RING_BLOCKED_SECONDS)), "{{stream}} {{ring}} ring"),),
            unit="percentunit",
            width=8,
            steps=(Step("green"), Step("red", THRESHOLDS.blocked)),
        ),
        Panel(
            title="Heaps in flight",
            description="Placed heaps whose chunk has not been handed to the consumer yet.",
            queries=(Query(_by(STREAM, _source(m.HEAPS_IN_FLIGHT)), STREAM_LEGEND),),
            unit="suffix: heaps",
            width=8,
        ),
        Panel(
            title="Wait of a chunk for the consumer",
            description="Mean time in the data ring, by Little's law: chunks in the ring / chunks a second.",
            queries=(
                Query(
                    f"{_by(STREAM, _rate(_all(m.RING_CHUNK_SECONDS)))} / {_by(STREAM, _rate(_all(m.CHUNKS)))}",
                    STREAM_LEGEND,
                ),
            ),
            unit="s",
        ),
        Panel(
            title="Chunks",
            description="Chunks that the consumer has taken, and how often a stream had to wait for the consumer.",
            queries=(
                Query(_by(STREAM, _rate(_all(m.CHUNKS))), "{{stream}} chunks"),
                Query(_by(STREAM, _rate(_all(m.WORKER_BLOCKED))), "{{stream}} waits"),
            ),
            unit="suffix: /s",
        ),
    ),
)

KERNEL = Row(
    "Kernel and packets",
    (
        Panel(
            title="Kernel drops by endpoint",
            description="Packets dropped because the receive buffer was full (or, rarely, their checksum wrong).",
            queries=(Query(_rate(_all(m.SOCKET_DROPS)), "{{stream}} {{endpoint}}"),),
            unit="suffix: packets/s",
            width=8,
        ),
        Panel(
            title="Receive queue",
            description="Part of a socket's receive buffer that is in use when it is scraped.",
            queries=(
                Query(
                    f"{_all(m.SOCKET_RECEIVE_QUEUE_BYTES)} / {_all(m.SOCKET_RECEIVE_BUFFER_BYTES)}",
                    "{{stream}} {{endpoint}}",
                ),
            ),
            unit="percentunit",
            width=8,
            steps=(Step("green"), Step("yellow", 0.5), Step("red", 0.9)),
        ),
        Panel(
            title="Packets not used",
            description=(
                "Packets that came, but that spead2 did not get, by reason: of captures, and of streams whose packets"
                " are mended."
            ),
            queries=(Query(_rate(_all(m.PACKETS_UNUSED)), "{{stream}} {{reason}}"),),
            unit="suffix: packets/s",
            width=8,
        ),
    ),
)

RATES = Row(
    "Rates",
    (
        Panel(
            title="Heaps placed by source",
            description="Heaps placed in a chunk, including duplicates and heaps that are too old.",
            queries=(Query(_by(f"{STREAM}, source", _rate(_source(m.HEAPS_PLACED))), SOURCE_LEGEND),),
            unit="suffix: heaps/s",
        ),
        Panel(
            title="Packets",
            description="Packets that spead2 has received.",
            queries=(Query(_by(STREAM, _rate(_all(m.PACKETS))), STREAM_LEGEND),),
            unit="suffix: packets/s",
        ),
        Panel(
            title="Received by source",
            description="Payload of the heaps placed, in bits per second, with duplicates and heaps that are too old.",
            queries=(Query(f"8 * {_by(f'{STREAM}, source', _rate(_source(m.RECEIVED_BYTES)))}", SOURCE_LEGEND),),
            unit="bps",
        ),
        Panel(
            title="Versions",
            description="What each process runs.",
            queries=(
                Query(
                    _by(f"{STREAM}, {', '.join(m.VERSIONS)}", _all(m.BUILD_INFO)),
                    "{{instance}} {{stream}} " + " ".join(f"{{{{{version}}}}}" for version in m.VERSIONS),
                    "table",
                ),
            ),
            unit="none",
            type="table",
        ),
    ),
)


def _fleet(metric: str, *more: str) -> str:
    """A metric of fleets: one that receivers have too has a share there."""
    selector = ",".join(['instance=~"$instance"', *more])
    return f"{metric}{{{selector}}}"


SHARES = f"instance, {f.SHARE}"
SHARE_LEGEND = "share {{share}}"
_OF_SHARES = f'{f.SHARE}!=""'
_BY_HOST = f"instance, {f.SHARE}, {f.HOST}"

FLEET = Row(
    "Fleet",
    (
        Panel(
            title="Shares that do not receive",
            description="They wait for a worker, are about to start, have ended or have failed.",
            queries=(Query(f"sum by (instance) (1 - {_fleet(f.RECEIVES)})", "{{instance}}"),),
            unit="none",
            type="stat",
            width=6,
            height=5,
            steps=ALL_GOOD,
        ),
        Panel(
            title="Shares started again",
            description="How often shares went on elsewhere in the time shown, since their worker had died or left.",
            queries=(
                Query(f"sum by (instance) (increase({_fleet(f.INCARNATIONS)}[$__range]))", "{{instance}}", "table"),
            ),
            unit="none",
            type="stat",
            width=6,
            height=5,
            steps=(Step("green"), Step("yellow", ANY)),
        ),
        Panel(
            title="Residual",
            description="Placed heaps that the account of the fleet does not explain: 0, unless something is wrong.",
            queries=(Query(f"sum by (instance) (abs({_fleet(f.RESIDUAL)}))", "{{instance}}"),),
            unit="suffix: heaps",
            type="stat",
            width=6,
            height=5,
            steps=ALL_GOOD,
        ),
        Panel(
            title="Silent",
            description="The longest time since the last report of any share.",
            queries=(Query(f"max by (instance) ({_fleet(f.SILENT_SECONDS)})", "{{instance}}"),),
            unit="s",
            type="stat",
            width=6,
            height=5,
            steps=(Step("green"), Step("yellow", 5), Step("red", 30)),
        ),
        Panel(
            title="Loss by share",
            description="Part of the expected heaps that is missing from the chunks of each share, by its host.",
            queries=(
                Query(
                    loss_expression(
                        *(_by(_BY_HOST, _rate(_fleet(name, _OF_SHARES))) for name in (m.HEAPS_MISSING, m.HEAPS_PRESENT))
                    ),
                    "share {{share}} {{host}}",
                ),
            ),
            unit="percentunit",
            maximum=1,
            steps=(Step("green"), Step("red", THRESHOLDS.loss)),
        ),
        Panel(
            title="Lost with workers",
            description=(
                "Heaps that died with a worker, and those that were missed until the share went on elsewhere, by cause."
            ),
            queries=(
                Query(_by(f"{SHARES}, {f.CAUSE}", _rate(_fleet(f.GAP_HEAPS))), f"{SHARE_LEGEND} missed: {{{{cause}}}}"),
                Query(_by(SHARES, _rate(_fleet(f.DIED_HEAPS))), f"{SHARE_LEGEND} died"),
            ),
            unit="suffix: heaps/s",
        ),
        Panel(
            title="Heaps placed by share",
            description="Heaps placed in a chunk by each share, by its host.",
            queries=(Query(_by(_BY_HOST, _rate(_fleet(m.HEAPS_PLACED, _OF_SHARES))), "share {{share}} {{host}}"),),
            unit="suffix: heaps/s",
            width=8,
        ),
        Panel(
            title="Slow shares",
            description="Part of the data ring that waits for the function: a share that nears 1 will lose data soon.",
            queries=(
                Query(
                    f"{_fleet(m.RING_CHUNKS, _OF_SHARES)} / {_fleet(m.RING_CAPACITY_CHUNKS, _OF_SHARES)}",
                    "share {{share}} {{host}}",
                ),
            ),
            unit="percentunit",
            maximum=1,
            width=8,
            steps=(Step("green"), Step("yellow", 0.5), Step("red", 0.9)),
        ),
        Panel(
            title="Errors of shares",
            description=(
                "Chunks for which the function failed, and reports of workers that were given up, though they lived."
            ),
            queries=(
                Query(_by(_BY_HOST, _rate(_fleet(f.FUNCTION_ERRORS))), "share {{share}} {{host}} function"),
                Query(_by(SHARES, _rate(_fleet(f.REFUSED_REPORTS))), f"{SHARE_LEGEND} refused reports"),
            ),
            unit="suffix: /s",
            width=8,
        ),
    ),
)

#: The row of fleets is the last: few have one.
ROWS = (SUMMARY, LOSS, TIME, RINGS, KERNEL, RATES, FLEET)

#: Variables at the top of the dashboard: label, and the metric that has its values.
VARIABLES = {"instance": m.HEAPS_PLACED, "stream": m.HEAPS_PLACED, "source": m.HEAPS_PLACED}


def panels() -> list[Panel]:
    """Return all panels, in the order in which they are shown."""
    return [panel for row in ROWS for panel in row.panels]


def _target(query: Query, number: int) -> dict[str, Any]:
    return {
        "refId": chr(ord("A") + number),
        "datasource": DATASOURCE,
        "expr": query.expr,
        "legendFormat": query.legend,
        "format": {"heatmap": "heatmap", "table": "table"}.get(query.kind, "time_series"),
        "instant": query.kind == "table",
        "range": query.kind != "table",
    }


def _options(panel: Panel) -> dict[str, Any]:
    if panel.type == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"}
    if panel.type == "heatmap":
        return {
            "calculate": False,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Oranges", "scale": "exponential", "exponent": 0.3, "steps": 64},
            "filterValues": {"le": 1e-9},
            "yAxis": {"unit": panel.unit, "axisPlacement": "left"},
            "rowsFrame": {"layout": "auto"},
            "tooltip": {"mode": "single", "yHistogram": True},
        }
    if panel.type == "table":
        return {"sortBy": [{"displayName": "Value", "desc": True}]}
    return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    limits = {"min": panel.minimum, "max": panel.maximum}
    defaults: dict[str, Any] = {"unit": panel.unit} | {k: v for k, v in limits.items() if v is not None}
    if panel.steps:
        steps = [{"color": step.colour, "value": step.value} for step in panel.steps]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if panel.type == "timeseries":
        # Lines keep the colours of their series, and a line shows the threshold.
        style = {"thresholdsStyle": {"mode": "dashed"}} if panel.steps else {}
        defaults["custom"] = {"fillOpacity": 10} | style
    return {
        "id": number,
        "type": panel.type,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
        "targets": [_target(query, i) for i, query in enumerate(panel.queries)],
    }


def _layout() -> list[dict[str, Any]]:
    """Place the panels of each row from left to right, and go on below when there is no more room."""
    placed: list[dict[str, Any]] = []
    y = 0
    for row in ROWS:
        placed.append(
            {
                "id": len(placed) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": GRID_COLUMNS, "h": 1},
                "panels": [],
            }
        )
        x, y, height = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > GRID_COLUMNS:
                x, y, height = 0, y + height, 0
            placed.append(_panel(panel, len(placed) + 1, x, y))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return placed


def _variable(label: str, metric: str) -> dict[str, Any]:
    query = f"label_values({metric}, {label})"
    return {
        "type": "query",
        "name": label,
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": label},
        "refresh": 2,  # whenever the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",  # also matches series without such a label
        "current": {"text": ["All"], "value": ["$__all"], "selected": True},
    }


def dashboard() -> dict[str, Any]:
    """Make the dashboard, as Grafana's JSON model."""
    variables: list[dict[str, Any]] = [
        {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus", "refresh": 1},
        *(_variable(label, metric) for label, metric in VARIABLES.items()),
        # For any other labels that the user has given to the streams.
        {"type": "adhoc", "name": "filters", "label": "Filters", "datasource": DATASOURCE, "filters": []},
    ]
    return {
        "uid": "speadrx",
        "title": "SPEAD receivers (speadrx)",
        "description": "Made by monitoring/dashboard.py: change that file, not this dashboard.",
        "tags": ["speadrx"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "annotations": {
            "list": [
                {
                    "name": "Alerts",
                    "datasource": DATASOURCE,
                    "enable": True,
                    "iconColor": "red",
                    "expr": 'ALERTS{alertstate="firing",alertname=~"Speadrx.*"}',
                    "titleFormat": "{{alertname}}",
                    "textFormat": "{{stream}} {{source}}",
                }
            ]
        },
        "panels": _layout(),
    }


def generate() -> str:
    """Make the text of the dashboard's file."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(generate(), "utf-8")
