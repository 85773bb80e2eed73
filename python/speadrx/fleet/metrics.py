"""The account of a fleet for Prometheus, under the names of a receiver's metrics, by share and host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from speadrx.metrics import names

from .account import Counts, FleetAccount
from .dealing import Share

SHARE, HOST = "share", "host"
#: The label that names the cause of heaps lost between two incarnations.
CAUSE = "cause"

GAP_HEAPS = "speadrx_fleet_gap_heaps_total"
DIED_HEAPS = "speadrx_fleet_died_heaps_total"
INCARNATIONS = "speadrx_fleet_incarnations_total"
RECEIVES = "speadrx_fleet_share_receives"
SILENT_SECONDS = "speadrx_fleet_share_silent_seconds"
FUNCTION_ERRORS = "speadrx_fleet_function_errors_total"
REFUSED_REPORTS = "speadrx_fleet_refused_reports_total"
RESIDUAL = "speadrx_fleet_residual_heaps"

#: The help text of the metrics that only a fleet has.
HELP = {
    GAP_HEAPS: "Heaps missed between two incarnations of a share, or by one that has received nothing, by cause",
    DIED_HEAPS: "Placed heaps that died with their worker",
    INCARNATIONS: "How often the share was started",
    RECEIVES: "1 while the share receives, otherwise 0",
    SILENT_SECONDS: "Seconds since the last report of the share",
    FUNCTION_ERRORS: "Chunks for which the user's function failed",
    REFUSED_REPORTS: "Reports of incarnations that were given up",
    RESIDUAL: "Placed heaps that the account does not explain; 0 unless something is wrong",
}

_BY_SOURCE = {
    names.HEAPS_PLACED: "placed",
    names.HEAPS_DUPLICATE: "duplicates",
    names.HEAPS_PRESENT: "present",
    names.HEAPS_MISSING: "missing",
}
_TOTALS = {
    names.CHUNKS: "chunks",
    names.RESTARTS: "restarts",
    names.EPOCH_GAP_HEAPS: "epoch_gap",
    names.PACKETS: "packets",
    FUNCTION_ERRORS: "function_errors",
}


def _counter(name: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, HELP.get(name) or names.HELP[name], labels=(SHARE, HOST, *labels))


def _gauge(name: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, HELP.get(name) or names.HELP[name], labels=(SHARE, HOST, *labels))


class FleetCollector(Collector):
    """Export the account of a fleet.

    Parameters
    ----------
    account
        The account.
    """

    def __init__(self, account: FleetAccount) -> None:
        self._account = account

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is depends on the shares."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return the metrics: what a registry calls at each scrape."""
        return [*self._counted(), *self._states()]

    def _counted(self) -> Iterator[Metric]:
        """What shares have counted on each host."""
        rows = self._account.by_host()
        for name, counter in _BY_SOURCE.items():
            family = _counter(name, names.SOURCE)
            for share, host, counts, _ in rows:
                _add(family, (share.name, host), share.layout.source_labels, _of_sources(share, counts, counter))
            yield family
        received, rejected = (
            _counter(names.RECEIVED_BYTES, names.SOURCE),
            _counter(names.HEAPS_REJECTED, names.REASON, names.SOURCE),
        )
        too_old, drops = _counter(names.HEAPS_TOO_OLD), _counter(names.SOCKET_DROPS, names.ENDPOINT)
        for share, host, counts, _ in rows:
            labels = share.layout.source_labels
            placed = [heaps * share.layout.heap_bytes for heaps in _of_sources(share, counts, "placed")]
            _add(received, (share.name, host), labels, placed)
            for counter, heaps in counts.by_source.items():
                kind, _, reason = counter.partition(".")
                if kind == "rejected":
                    _add(rejected, (share.name, host, reason), (*labels, names.UNKNOWN_SOURCE), heaps)
            too_old.add_metric((share.name, host), counts.heaps("too_old"))
            drops.add_metric((share.name, host, "all"), counts.totals["kernel_drops"])
        yield from (received, rejected, too_old, drops)
        for name, total in _TOTALS.items():
            family = _counter(name)
            for share, host, counts, _ in rows:
                family.add_metric((share.name, host), counts.totals[total])
            yield family

    def _states(self) -> Iterator[Metric]:
        """What is so now, and what the fleet itself has counted, at the host where each share is."""
        shares = self._account.stats().shares
        values: dict[str, Any] = {
            INCARNATIONS: lambda one: one.incarnation,
            DIED_HEAPS: lambda one: one.died,
            REFUSED_REPORTS: lambda one: one.refused_reports,
            RECEIVES: lambda one: int(one.state == "receives"),
            RESIDUAL: lambda one: one.residual,
            SILENT_SECONDS: lambda one: one.silent,
        }
        # Without a host: a counter must not go on at another one when the share moves.
        for name, value in values.items():
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = kind(name, HELP[name], labels=(SHARE,))
            for one in shares:
                if (number := value(one)) is not None:
                    family.add_metric((one.name,), number)
            yield family
        gaps = CounterMetricFamily(GAP_HEAPS, HELP[GAP_HEAPS], labels=(SHARE, CAUSE))
        for one in shares:
            for cause, heaps in one.gaps.items():
                gaps.add_metric((one.name, cause), heaps)
        yield gaps
        ring, room = _gauge(names.RING_CHUNKS, names.RING), _gauge(names.RING_CAPACITY_CHUNKS, names.RING)
        for one in shares:
            ring.add_metric((one.name, one.host, names.DATA_RING), one.waiting_chunks)
            room.add_metric((one.name, one.host, names.DATA_RING), one.ring_chunks)
        yield from (ring, room)


def _of_sources(share: Share, counts: Counts, counter: str) -> list[int]:
    """A counter by source. One that has not risen yet is there with 0: its first rise would not be seen otherwise."""
    return counts.by_source.get(counter, [0] * len(share.layout.source_labels))


def _add(family: Any, labels: tuple[str, ...], sources: Iterable[str], heaps: Iterable[int]) -> None:
    for source, count in zip(sources, heaps, strict=True):
        family.add_metric((*labels, source), count)
