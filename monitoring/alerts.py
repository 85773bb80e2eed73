#!/usr/bin/env python3
"""Generate the Prometheus rules, monitoring/alerts.yml, from the names of `speadrx.metrics`."""

from __future__ import annotations

import argparse
import json
import string
import sys
import textwrap
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from speadrx import metrics as m
from speadrx.accounts.loss import loss_expression

OUTPUT = Path(__file__).with_suffix(".yml")

# What the alerts share, so that an alert can leave to another one what that explains. Every rule keeps the labels
# that it does not name: job, instance, and the labels that the user gave to the stream.
PLACED = "speadrx:heaps_placed:rate"
MISSING = "speadrx:heaps_missing:rate"
MISSING_RATIO = "speadrx:heaps_missing:ratio"
DROPS = "speadrx:socket_drops:rate"
BLOCKED_RATIO = "speadrx:consumer_blocked:ratio"
IMPLAUSIBLE = "speadrx:heaps_implausible:rate"
IMPLAUSIBLE_RATIO = "speadrx:heaps_implausible:ratio"
BACKWARD = "speadrx:heaps_backward:rate"
AHEAD = "speadrx:timestamp_ahead:seconds"


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When alerts fire."""

    #: Part of a source's heaps that may be missing.
    loss: float = 0.01
    #: Part of the time for which a stream may wait for free chunks.
    blocked: float = 0.1
    #: Part of a source's heaps that may have an implausible time.
    implausible: float = 0.5
    #: Seconds of the stream's own time by which a source may be ahead of the median of all sources, itself included.
    ahead: float = 10.0


@dataclass(frozen=True)
class Alert:
    """One alert. Its condition must hold for `hold` seconds; with 0 it fires at once."""

    name: str
    severity: str
    hold: float
    expr: str
    summary: str
    description: str
    runbook: str


#: Seconds over which rates are taken. An alert that something else may explain has to hold for longer, since the two
#: expressions do not change at the same moment.
WINDOW = 120


def records(window: str) -> dict[str, str]:
    """Return the expressions of the recording rules, by name. Each comes after the rules that it needs."""

    def rejected(reason: str) -> str:
        return f'sum without ({m.REASON}) (rate({m.HEAPS_REJECTED}{{{m.REASON}="{reason}"}}[{window}]))'

    # A source that stands still, or was never seen, does not tell the time of the others. Nor is it ahead of them: it
    # may have fallen silent before they went back in time.
    advance = f"deriv({m.NEWEST_TIMESTAMP}[{window}]) > 0"
    return {
        PLACED: f"rate({m.HEAPS_PLACED}[{window}])",
        MISSING: f"rate({m.HEAPS_MISSING}[{window}])",
        MISSING_RATIO: loss_expression(MISSING, f"rate({m.HEAPS_PRESENT}[{window}])"),
        DROPS: f"rate({m.SOCKET_DROPS}[{window}])",
        BLOCKED_RATIO: f"max without (ring) (rate({m.RING_BLOCKED_SECONDS}[{window}]))",
        IMPLAUSIBLE: rejected(m.IMPLAUSIBLE),
        IMPLAUSIBLE_RATIO: f"{IMPLAUSIBLE} / ({IMPLAUSIBLE} + {PLACED})",
        BACKWARD: rejected(m.BACKWARD),
        AHEAD: (
            f"(({m.NEWEST_TIMESTAMP} and {advance})\n"
            "  - ignoring (source) group_left ()\n"
            f"    quantile without (source) (0.5, {m.NEWEST_TIMESTAMP} and {advance}))\n"
            "  / ignoring (source) group_left ()\n"
            f"    quantile without (source) (0.5, {advance})"
        ),
    }


class _Text(string.Template):
    """Text with placeholders such as ``@window``; Prometheus has its own, such as ``{{ $value }}``."""

    delimiter = "@"


#: All alerts. Each names one cause, and is silent while another alert names that cause already.
ALERTS = (
    Alert(
        "SpeadrxStreamSilent",
        "critical",
        60,
        # A stream that is gone keeps its counters, but has no rings.
        f"sum without (source) ({PLACED}) == 0\n"
        "unless @blocked\n"
        "unless @gone_back\n"
        f'unless ignoring (ring) {m.RING_CAPACITY_CHUNKS}{{ring="{m.DATA_RING}"}} == 0',
        "Stream {{ $labels.stream }} receives nothing",
        "No heap of the stream was placed for @window.",
        f"""
        Either nothing arrives, or nothing that arrives can be used.
        1. {m.PACKETS} grows: packets arrive. Look at {m.HEAPS_REJECTED} by reason. metadata_heaps point to
           another kind of stream or another heap length on this address, bad_<axis>_heaps to other channels or
           antennas, {m.IMPLAUSIBLE} to senders that do not agree on the time.
           If nothing is rejected either, the packets are not SPEAD heaps with a length.
        2. It does not grow: check that the sender runs and has subscribers, that the multicast groups are joined on
           the right interface (ip maddr show), and that no firewall or rp_filter drops the packets before the
           socket (nstat, ethtool -S).
        """,
    ),
    Alert(
        "SpeadrxSourceSilent",
        "warning",
        60,
        f"{PLACED} == 0\nand ignoring (source) sum without (source) ({PLACED}) > 0\n"
        "unless (@outlier)\n"
        f"unless {BACKWARD} > 0",
        "Nothing comes from source {{ $labels.source }} of stream {{ $labels.stream }}",
        "No heap of the source was placed for @window, while heaps of other sources of the stream were.",
        f"""
        1. {m.HEAPS_REJECTED} of this source (or of source "") grows: it sends, but with a wrong
           heap length, timestamp or index. The reason says which.
        2. Otherwise look at the sender and its network link. If the source has multicast groups of its own, check that
           they are joined.
        3. If the source is switched off on purpose, silence this alert for its label.
        """,
    ),
    Alert(
        "SpeadrxLoss",
        "warning",
        300,
        f"{MISSING_RATIO} > @loss and {PLACED} > 0\n"
        f"unless ignoring (source) sum without (endpoint) ({DROPS}) > 0.5 * sum without (source) ({MISSING})\n"
        "unless ignoring (source) @blocked\n"
        "unless ignoring (source) @ahead\n"
        "unless (@outlier)\n"
        f"unless {BACKWARD} > 0",
        "Source {{ $labels.source }} of stream {{ $labels.stream }} loses {{ $value | humanizePercentage }} of its"
        " heaps",
        "Heaps of the source are missing from the chunks. Neither a slow consumer, nor the kernel, nor a wrong clock"
        " explains most of them.",
        f"""
        1. {m.HEAPS_REJECTED} of this source grows: the heaps arrive, but are wrong. The reason says how.
        2. {m.HEAPS_TOO_OLD} grows: heaps arrive later than the window. Look at the lateness on the dashboard.
           Either the clock or the pipeline of the source lags (then only its heaps are late), or the window
           (max_active_chunks) is too small for the reordering in the network.
        3. {m.HEAPS_INCOMPLETE_EVICTED} grows: packets of heaps are lost, or come out of order to a stream
           that was made without allow_out_of_order.
        4. Otherwise the network loses them. Compare sources: those that lose heaps may share a switch or a link. Look
           at the drop counters of switch ports and of the interface (ethtool -S).
        """,
    ),
    Alert(
        "SpeadrxConsumerSlow",
        "critical",
        120,
        "@blocked",
        "The consumer of stream {{ $labels.stream }} is too slow",
        "There is no free chunk for {{ $value | humanizePercentage }} of the time. Then the stream waits for the"
        " consumer, and the kernel drops packets. An empty free ring also counts while no thread waits, so the pool"
        " should have at least two chunks more than the window.",
        f"""
        1. {m.CHUNKS} stands still: the consumer hangs, or never gives its chunks back (use each as a context
           manager, or call recycle).
        2. It grows: the consumer takes longer for a chunk than the senders do. Check what has changed in the consumer,
           and whether it waits for a busy processor, a disk or a network.
        3. If there are only short peaks, allocate more chunks.
        """,
    ),
    Alert(
        "SpeadrxKernelDropping",
        "critical",
        180,
        f"{DROPS} > 0\nunless ignoring (endpoint) @blocked",
        "The kernel drops packets of stream {{ $labels.stream }} at {{ $labels.endpoint }}",
        "{{ $value | humanize }} packets/s are dropped because the receive buffer is full, although the consumer"
        " is fast enough.",
        f"""
        The stream's network thread does not empty the socket fast enough.
        1. {m.SOCKET_RECEIVE_BUFFER_BYTES} is small: give add_reader a larger buffer, and allow it
           (sysctl net.core.rmem_max). It must hold the bursts of the senders.
        2. The thread shares its processor, or runs on another NUMA node than the interface: set the affinity.
        3. One thread is not enough for the rate: divide the endpoints among a group of streams, or use ibverbs.
        4. If the buffer is never full ({m.SOCKET_RECEIVE_QUEUE_BYTES}), packets are damaged: Linux also counts
           packets with a wrong checksum here (nstat -az UdpInCsumErrors).
        """,
    ),
    Alert(
        "SpeadrxClockOutlier",
        "warning",
        60,
        "@outlier",
        "The clock of source {{ $labels.source }} of stream {{ $labels.stream }} is wrong",
        "{{ $value | humanizePercentage }} of the heaps of the source are rejected, because their time is far ahead"
        " of the time of the other sources, or far behind it.",
        f"""
        Only heaps of the source itself are lost, because the majority of sources decides the time of a stream.
        1. Synchronise the source again. If it was restarted alone, it must begin at the time of the other sources.
           Then its heaps are placed again. The receiver needs no restart.
        2. If half of the sources are named ({m.SOURCE_ESTRANGED} is 1 for them), the receiver cannot know which
           half is right, and has kept the time that it had. The other half may have jumped.
        3. If it does not end, look at {m.HEAPS_REJECTED} of the source, reason {m.IMPLAUSIBLE}.
           If only a part of its heaps is wrong, a second sender may use its index.
        """,
    ),
    Alert(
        "SpeadrxClocksAhead",
        "critical",
        150,  # when most sources fall silent, they still advance for a window, and the others seem to be ahead of them
        "@ahead",
        "The clock of source {{ $labels.source }} of stream {{ $labels.stream }} is ahead of the others",
        "The newest timestamp of the source is {{ $value | humanizeDuration }} ahead of the median of those that"
        " advance, and its heaps are placed.",
        f"""
        The clocks of a few sources cannot move the window (max_active_chunks) away from the others. They are ahead
        inside a long window, which leaves less of the window to the reordering of the others.
        1. Stop the sources that are named, or synchronise them again.
        2. If the heaps of the others are too old ({m.HEAPS_TOO_OLD}), more than half of the sources have been ahead:
           with resync=True, time begins again in the stream as soon as they are right. Otherwise restart the
           receiver.
        """,
    ),
    Alert(
        "SpeadrxSenderRestart",
        "critical",
        60,
        "@gone_back",
        "The senders of stream {{ $labels.stream }} have gone back in time, and are not followed",
        f"{{{{ $value | humanize }}}} heaps/s are rejected ({m.BACKWARD}). Most senders were restarted at an"
        " earlier time, or their clocks were set back, and the stream was made with resync=False.",
        f"""
        Heaps are rejected until the senders reach the time where they were before.
        1. Make the stream with resync=True, which follows them. Or restart the receiver after each restart of the
           senders.
        2. If the receiver was just started, and the senders were not, the time of its very first heap was wrong.
           Restart it, or make the stream with resync=True. If heaps of one source are placed meanwhile
           ({m.HEAPS_PLACED}), the clock of that source is wrong.
        """,
    ),
    Alert(
        "SpeadrxTimeRestarted",
        "info",
        0,
        f"increase({m.RESTARTS}[@window]) > 0",
        "Time has begun again in stream {{ $labels.stream }}",
        "In the last @window, senders were restarted at another time, or the time until then was wrong. The"
        " receiver has followed.",
        f"""
        1. If the senders were restarted, there is nothing to do. What they sent before the receiver followed was
           rejected ({m.IMPLAUSIBLE}).
        2. If nobody has restarted them, look for a clock that was set, or for a second sender on the same addresses.
        3. If timestamps jumped ahead, {m.EPOCH_GAP_HEAPS} says by how many heaps.
        """,
    ),
)


def alerts(thresholds: Thresholds, window: str) -> list[Alert]:
    """Return all alerts, with the conditions that several of them use filled in."""
    values = {
        "window": window,
        "loss": f"{thresholds.loss:g}",
        "blocked": f"{BLOCKED_RATIO} > {thresholds.blocked:g}",
        "ahead": f"{AHEAD} > {thresholds.ahead:g}",
        "outlier": (
            f"{IMPLAUSIBLE_RATIO} > {thresholds.implausible:g}"
            f" and {PLACED} < ignoring (source) group_left () sum without (source) ({PLACED})"
        ),
        "gone_back": f"sum without (source) ({BACKWARD}) > 0",
    }
    return [
        replace(
            alert,
            expr=_Text(alert.expr).substitute(values),
            description=_Text(alert.description).substitute(values),
        )
        for alert in ALERTS
    ]


def _duration(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


def rules(thresholds: Thresholds | None = None, time_scale: float = 1.0) -> dict[str, Any]:
    """Make the content of the rule file. `time_scale` stretches every window and every holding time."""
    window = _duration(WINDOW * time_scale)
    recording = [{"record": name, "expr": expr} for name, expr in records(window).items()]
    alerting = [
        {
            "alert": alert.name,
            "expr": alert.expr,
            **({"for": _duration(alert.hold * time_scale)} if alert.hold else {}),
            "labels": {"severity": alert.severity},
            "annotations": {
                "summary": alert.summary,
                "description": alert.description,
                "runbook": textwrap.dedent(alert.runbook).strip(),
            },
        }
        for alert in alerts(thresholds or Thresholds(), window)
    ]
    return {"groups": [{"name": "speadrx", "rules": recording + alerting}]}


def _yaml(value: Any, indent: int = 0) -> str:
    """Write as much YAML as these rules need. Text of several lines stays readable."""
    margin = "  " * indent
    if isinstance(value, dict):
        items = ((f"{key}:", item) for key, item in value.items())
    elif isinstance(value, list):
        return "".join(f"{margin}- {_yaml(item, indent + 1).lstrip()}" for item in value)
    else:
        raise TypeError(f"{value!r} is neither a mapping nor a list")
    text = ""
    for key, item in items:
        if not isinstance(item, str):
            text += f"{margin}{key}\n{_yaml(item, indent + 1)}"
        elif "\n" in item:
            text += f"{margin}{key} |-\n{textwrap.indent(item, margin + '  ')}\n"
        else:
            text += f"{margin}{key} {json.dumps(item)}\n"
    return text


def generate(thresholds: Thresholds | None = None, time_scale: float = 1.0) -> str:
    """Make the text of the rule file."""
    command = f"python monitoring/{Path(__file__).name}"
    return f"# Made by `{command}`: change that file, not this one.\n" + _yaml(rules(thresholds, time_scale))


def main() -> None:
    """Write the rules to monitoring/alerts.yml, or elsewhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", nargs="?", type=Path, default=OUTPUT, help="file to write; - for standard output")
    for field in fields(Thresholds):
        parser.add_argument(f"--{field.name}", type=float, default=field.default)
    arguments = vars(parser.parse_args())
    output = arguments.pop("output")
    text = generate(Thresholds(**arguments))
    if str(output) == "-":
        sys.stdout.write(text)
    else:
        output.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
