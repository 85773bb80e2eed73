#!/usr/bin/env python3
"""Generate the Prometheus rules, monitoring/alerts.yml, from the names of `speadrx.metrics`."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from speadrx import metrics as m

OUTPUT = Path(__file__).with_suffix(".yml")

# What the alerts share, so that each can leave to another what that one explains. Every rule keeps the labels
# that it does not name: job, instance, and those that the user gave to the stream.
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
    """When to raise an alarm."""

    #: Part of a source's heaps that may be missing.
    loss: float = 0.01
    #: Part of the time that a stream may wait for free chunks.
    blocked: float = 0.1
    #: Part of a source's heaps whose time may be implausible.
    implausible: float = 0.5
    #: Seconds of the stream's own time that a source may be ahead of the median of all, itself included.
    ahead: float = 10.0


@dataclass(frozen=True)
class Alert:
    """One alert; `hold` is for how many seconds it must be true. With 0 it fires at once."""

    name: str
    severity: str
    hold: float
    expr: str
    summary: str
    description: str
    runbook: str


#: Seconds that rates are taken over. An alert that something else explains has to hold for longer, since the two
#: expressions do not change at the same moment.
WINDOW = 120


def records(window: str) -> dict[str, str]:
    """Expressions of the recording rules, by name, in an order in which each finds what it needs."""

    def rejected(reason: str) -> str:
        return f'sum without ({m.REASON}) (rate({m.HEAPS_REJECTED}{{{m.REASON}="{reason}"}}[{window}]))'

    # A source that stands still, or was never seen, is no measure of what time it is for the others. Nor is it ahead of
    # them: it may be silent since before they went back in time.
    advance = f"deriv({m.NEWEST_TIMESTAMP}[{window}]) > 0"
    return {
        PLACED: f"rate({m.HEAPS_PLACED}[{window}])",
        MISSING: f"rate({m.HEAPS_MISSING}[{window}])",
        MISSING_RATIO: f"{MISSING} / (rate({m.HEAPS_PRESENT}[{window}]) + {MISSING})",
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


def alerts(thresholds: Thresholds, window: str) -> list[Alert]:
    """All alerts. Each names one cause, and is silent where another one names it already."""
    blocked = f"{BLOCKED_RATIO} > {thresholds.blocked:g}"
    ahead = f"{AHEAD} > {thresholds.ahead:g}"
    outlier = (
        f"{IMPLAUSIBLE_RATIO} > {thresholds.implausible:g}"
        f" and {PLACED} < ignoring (source) group_left () sum without (source) ({PLACED})"
    )
    gone_back = f"sum without (source) ({BACKWARD}) > 0"
    return [
        Alert(
            "SpeadrxStreamSilent",
            "critical",
            60,
            # A stream that is gone keeps its counters, but has no rings.
            f"sum without (source) ({PLACED}) == 0\n"
            f"unless {blocked}\n"
            f"unless {gone_back}\n"
            f'unless ignoring (ring) {m.RING_CAPACITY_CHUNKS}{{ring="{m.DATA_RING}"}} == 0',
            "Stream {{ $labels.stream }} receives nothing",
            f"No heap of the stream has found a place for {window}.",
            f"""
            Either nothing arrives, or nothing of what arrives is usable.
            1. {m.PACKETS} grows: packets arrive. See {m.HEAPS_REJECTED} by reason: metadata_heaps point to
               another kind of stream or heap length on this address, bad_<axis>_heaps to other channels or antennas,
               {m.IMPLAUSIBLE} to senders that do not agree what time it is.
               If nothing is rejected either, the packets are not SPEAD heaps with a length.
            2. It does not grow: look whether the sender runs and has subscribers, whether the multicast groups are
               joined on the right interface (ip maddr show), and whether a firewall or rp_filter drops the
               packets before the socket (nstat, ethtool -S).
            """,
        ),
        Alert(
            "SpeadrxSourceSilent",
            "warning",
            60,
            f"{PLACED} == 0\nand ignoring (source) sum without (source) ({PLACED}) > 0\n"
            f"unless ({outlier})\n"
            f"unless {BACKWARD} > 0",
            "Nothing comes from source {{ $labels.source }} of stream {{ $labels.stream }}",
            f"No heap of the source has found a place for {window}, while others of the stream have.",
            f"""
            1. {m.HEAPS_REJECTED} of this source (or of source "") grows: it sends, but with a wrong
               heap length, timestamp or index; the reason says which.
            2. Else look at the sender and its network link. If the source is on multicast groups of its own, see
               that these are joined.
            3. A source that is away on purpose: silence this alert for its label.
            """,
        ),
        Alert(
            "SpeadrxLoss",
            "warning",
            300,
            f"{MISSING_RATIO} > {thresholds.loss:g} and {PLACED} > 0\n"
            f"unless ignoring (source) sum without (endpoint) ({DROPS}) > 0.5 * sum without (source) ({MISSING})\n"
            f"unless ignoring (source) {blocked}\n"
            f"unless ignoring (source) {ahead}\n"
            f"unless ({outlier})\n"
            f"unless {BACKWARD} > 0",
            "Source {{ $labels.source }} of stream {{ $labels.stream }} loses {{ $value | humanizePercentage }} of its"
            " heaps",
            "Heaps of the source are missing from the chunks, and neither a slow consumer, nor the kernel, nor a wrong"
            " clock accounts for most of it.",
            f"""
            1. {m.HEAPS_REJECTED} of this source grows: the heaps arrive, but are wrong; the reason says how.
            2. {m.HEAPS_TOO_OLD} grows: heaps arrive later than the window. See the lateness on the dashboard;
               either the source's clock or pipeline lags (then only its heaps are late), or max_active_chunks is too
               small for the network's reordering.
            3. {m.HEAPS_INCOMPLETE_EVICTED} grows: packets of heaps are lost, or come out of order to a stream
               made without allow_out_of_order.
            4. Else the network loses them. Compare sources: those that share a switch or link point to it. Look at
               the drop counters of switch ports and of the interface (ethtool -S).
            """,
        ),
        Alert(
            "SpeadrxConsumerSlow",
            "critical",
            120,
            blocked,
            "The consumer of stream {{ $labels.stream }} is too slow",
            "Free chunks are lacking for {{ $value | humanizePercentage }} of the time: the stream waits for the"
            " consumer, and the kernel drops packets meanwhile. An empty free ring counts also while no thread waits:"
            " the pool should have at least two chunks more than the window.",
            f"""
            1. {m.CHUNKS} stands still: the consumer hangs, or never gives its chunks back (use each as a context
               manager, or call recycle).
            2. It grows: the consumer takes longer for a chunk than the senders. Look for what has changed in what it
               does, for a busy processor, and for a disk or a network that it waits for.
            3. Short peaks only: more chunks in the pool bridge them.
            """,
        ),
        Alert(
            "SpeadrxKernelDropping",
            "critical",
            180,
            f"{DROPS} > 0\nunless ignoring (endpoint) {blocked}",
            "The kernel drops packets of stream {{ $labels.stream }} at {{ $labels.endpoint }}",
            "{{ $value | humanize }} packets/s are dropped because the receive buffer is full, although the consumer"
            " keeps up.",
            f"""
            The stream's network thread does not empty the socket fast enough.
            1. {m.SOCKET_RECEIVE_BUFFER_BYTES} is small: give add_reader a larger buffer, and allow it
               (sysctl net.core.rmem_max). It must hold the senders' bursts.
            2. The thread's processor is shared or its NUMA node is not that of the interface: set the affinity.
            3. One thread is not enough for the rate: divide the endpoints among a group of streams, or use ibverbs.
            4. If the buffer is never full ({m.SOCKET_RECEIVE_QUEUE_BYTES}), packets are damaged: Linux counts those
               with a wrong checksum here too (nstat -az UdpInCsumErrors).
            """,
        ),
        Alert(
            "SpeadrxClockOutlier",
            "warning",
            60,
            outlier,
            "The clock of source {{ $labels.source }} of stream {{ $labels.stream }} is wrong",
            "{{ $value | humanizePercentage }} of the heaps of the source are rejected, because their time is far ahead"
            " of that of the other sources, or far behind it.",
            f"""
            Only the source's own heaps are lost: the time of a stream is that of the majority.
            1. Synchronise the source anew. If it has been restarted alone, it must begin at the time that it is for the
               others. Then its heaps are placed again; the receiver needs no restart.
            2. Half of the sources are named: the receiver cannot know which half is right, and has kept to the time
               that it had. It may be the other half that has jumped.
            3. It does not end: see {m.HEAPS_REJECTED} of the source, reason {m.IMPLAUSIBLE}.
               If only a part of its heaps is wrong, a second sender may use its index.
            """,
        ),
        Alert(
            "SpeadrxClocksAhead",
            "critical",
            60,
            ahead,
            "The clock of source {{ $labels.source }} of stream {{ $labels.stream }} is ahead of the others",
            "The newest timestamp of the source is {{ $value | humanizeDuration }} ahead of the median of those that"
            " advance, and its heaps find a place.",
            f"""
            No clock can move the window (max_active_chunks) away from the others alone. Either it is ahead inside a
            long window, which leaves less of that to the reordering of the others; or several clocks run ahead
            together, and the heaps of all others are too old ({m.HEAPS_TOO_OLD}).
            1. Stop the sources named, or synchronise them anew.
            2. The heaps of the others remain too old: where the stream was made with resync=True, time begins again as
               soon as the sources named are right. Otherwise restart the receiver.
            """,
        ),
        Alert(
            "SpeadrxSenderRestart",
            "critical",
            60,
            gone_back,
            "The senders of stream {{ $labels.stream }} have gone back in time, and are not followed",
            f"{{{{ $value | humanize }}}} heaps/s are rejected ({m.BACKWARD}): most senders have been restarted at an"
            " earlier time, or their clocks were set back, and the stream was made with resync=False.",
            f"""
            Heaps are rejected until the senders get to the time where they were before.
            1. Make the stream with resync=True, which follows them; or restart the receiver after each restart of the
               senders.
            2. The receiver has just been started, and the senders have not: the time of its very first heap was wrong.
               Restart it, or make the stream with resync=True. If a source is placed meanwhile ({m.HEAPS_PLACED}), it
               is that one's clock that is wrong.
            """,
        ),
        Alert(
            "SpeadrxTimeRestarted",
            "info",
            0,
            f"increase({m.RESTARTS}[{window}]) > 0",
            "Time has begun again in stream {{ $labels.stream }}",
            f"In the last {window} senders were restarted at another time, or the time until then was wrong. The"
            " receiver has followed.",
            f"""
            1. The senders were restarted: nothing is to be done. What they sent before the receiver followed was
               rejected ({m.IMPLAUSIBLE}).
            2. Nobody has restarted them: look for a clock that was set, or for a second sender on the same addresses.
            3. Timestamps that jumped ahead: {m.EPOCH_GAP_HEAPS} says by how many heaps.
            """,
        ),
    ]


def _duration(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


def rules(thresholds: Thresholds | None = None, time_scale: float = 1.0) -> dict[str, Any]:
    """Make the rule file's content; `time_scale` stretches every window and every holding time."""
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
    """As much YAML as these rules need; text of several lines stays readable."""
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
