"""`FleetAccount`: adds up what shares report, so that nothing counts twice, and names what was lost with a worker."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from speadrx.accounts.loss import loss

from .dealing import Share

#: Causes of a gap between two incarnations of a share.
WORKER_DIED = "worker_died"
SHARE_MOVED = "share_moved"
SCHEDULER_LOST = "scheduler_lost"
WORKER_SILENT = "worker_silent"
#: Cause of what a share has missed that has received nothing, while others did.
NOTHING_RECEIVED = "nothing_received"

#: Counters by source in reports, whose heaps are all that was placed, but for those in flight.
_EXPLAINING = ("present", "duplicates", "too_old")


@dataclass
class Counts:
    """What a share has counted, in all of its incarnations on one host, or a sum of that."""

    #: Heaps by name of the counter, and source. `rejected` counters have one more, for heaps whose source is unknown.
    by_source: dict[str, list[int]] = field(default_factory=dict)
    #: Other counters by name.
    totals: Counter[str] = field(default_factory=Counter)

    def rise(self, rise: Mapping[str, Any]) -> None:
        """Add what counters rose by."""
        for name, count in rise.items():
            if isinstance(count, int):
                self.totals[name] += count
            else:  # on its way it may have become a tuple
                before = self.by_source.get(name, [0] * len(count))
                self.by_source[name] = [a + b for a, b in zip(before, count, strict=True)]

    def heaps(self, name: str) -> int:
        """Heaps of a counter, over all sources."""
        return sum(self.by_source.get(name, ()))


class _ShareState:
    """One share: what is known of its newest incarnation, and what all of them have counted."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self.step = share.layout.chunk_timestamp_step // share.layout.chunk_batches
        self.n_sources = len(share.layout.source_labels)
        self.by_host: dict[str, Counts] = {}
        self.died = [0] * self.n_sources
        self.gaps: dict[str, list[int]] = {}
        #: Heaps present that are in no span, and not yet taken from a gap.
        self.before = [0] * self.n_sources
        self.unfinished = 0
        self.incarnation = 0
        self.state = "waits"
        self.host = self.worker = ""
        self.error: str | None = None
        #: Reports that never came, came again, or came from an incarnation that was given up.
        self.lost_reports = self.repeated_reports = self.refused_reports = 0
        self.residual = 0
        #: The end of what the incarnations until now have received, and the cause of the gap after it.
        self.end: int | None = None
        self.cause: str | None = None
        self.heard: float | None = None
        self._begin("", "")

    def _begin(self, host: str, worker: str) -> None:
        self.host, self.worker = host, worker
        self.number = 0
        self.now: dict[str, Any] = {"in_flight": [0] * self.n_sources, "placed": 0, "unfinished": 0}
        #: Of this incarnation alone.
        self.explained = 0
        self.spanned = False

    def submit(self, worker: str, host: str) -> int:
        """Number the next incarnation. What the last one had in flight is lost."""
        self.give_up(WORKER_DIED)
        self.incarnation += 1
        self._begin(host, worker)
        self.state = "starts"
        return self.incarnation

    def give_up(self, cause: str) -> None:
        """The newest incarnation reports no more. If it has not ended by itself, its heaps in flight died with it."""
        if self.state in ("starts", "receives"):
            in_flight = self.now["in_flight"]
            self.died = [a + b for a, b in zip(self.died, in_flight, strict=True)]
            self.explained += sum(in_flight)
            self.now["in_flight"] = [0] * self.n_sources
            self.residual += self._unexplained()
            self.state = "lost"
            self.cause = cause

    def add(self, report: Mapping[str, Any]) -> bool:
        """Add a report. Returns whether it counts."""
        if report["incarnation"] != self.incarnation or self.state not in ("starts", "receives"):
            self.refused_reports += 1
            return False
        if report["number"] <= self.number:
            self.repeated_reports += 1
            return False
        self.lost_reports += report["number"] - self.number - 1
        self.number = report["number"]
        self.heard = time.monotonic()
        self.host, self.worker, self.state = report["host"], report["worker"], "receives"
        self.now = dict(report["now"])
        rise = report["rise"]
        self.by_host.setdefault(self.host, Counts()).rise(rise)
        self.explained += sum(sum(rise.get(name, ())) for name in _EXPLAINING)
        self._follow(self.now["span"], rise.get("before", [0] * self.n_sources))
        if report["kind"] == "ended":
            self.error = report["error"]
            self.unfinished += self.now["unfinished"]
            self.explained += self.now["unfinished"]
            self.residual += self._unexplained()
            self.state = "ended" if self.error is None else "failed"
            self.cause = SHARE_MOVED
        return True

    def _unexplained(self) -> int:
        placed: int = self.now["placed"]
        in_flight: list[int] = self.now["in_flight"]
        return placed - self.explained - sum(in_flight)

    def _follow(self, span: Sequence[int] | None, before: Sequence[int]) -> None:
        """Find the gap before the first batch of an incarnation, and where it has got to.

        Some heaps may have come before that batch: they are present, and not in the gap.
        """
        self.before = [a + b for a, b in zip(self.before, before, strict=True)]
        if span is None or span[0] == span[1]:
            return
        begin, end = span
        if not self.spanned:
            self.spanned = True
            # Where time began again in between, nobody knows what was sent.
            if self.end is not None and begin > self.end and self.cause is not None:
                heaps = (begin - self.end) // self.step * (self.share.layout.batch_heaps // self.n_sources)
                gap = self.gaps.setdefault(self.cause, [0] * self.n_sources)
                self.gaps[self.cause] = [a + max(heaps - b, 0) for a, b in zip(gap, self.before, strict=True)]
            self.before = [0] * self.n_sources
        self.end = end

    def summed(self) -> Counts:
        """What it has counted on all hosts."""
        sum_of = Counts()
        for counts in self.by_host.values():
            sum_of.rise({**counts.by_source, **counts.totals})
        return sum_of

    def missed(self, counts: Counts, batches: int) -> dict[str, list[int]]:
        """Heaps that are in no chunk, by cause and source, where so many batches were sent according to all shares."""
        if counts.heaps("placed") or not batches:
            return self.gaps
        return {NOTHING_RECEIVED: [batches * self.share.layout.batch_heaps // self.n_sources] * self.n_sources}

    def batches(self, counts: Counts) -> int:
        """How many batches are in its account."""
        heaps = counts.heaps("present") + counts.heaps("missing") - counts.heaps("before")
        return (heaps + sum(map(sum, self.gaps.values()))) // self.share.layout.batch_heaps

    @property
    def total_residual(self) -> int:
        """Placed heaps that nothing explains, of all incarnations."""
        return self.residual + (self._unexplained() if self.state == "receives" else 0)


@dataclass(frozen=True)
class ShareStats:
    """One share of a fleet, as plain values."""

    name: str
    #: ``waits`` (for a worker), ``starts``, ``receives``, ``lost`` (its worker died), ``ended`` or ``failed``.
    state: str
    host: str
    worker: str
    #: How often it was started.
    incarnation: int
    #: Seconds since its last report; None before the first.
    silent: float | None
    #: Chunks that wait for the function, and how many may.
    waiting_chunks: int
    ring_chunks: int
    #: Chunks that are free. Without any, data is lost.
    free_chunks: int
    #: Whether more chunks wait than are free: it may soon lose data, and has not yet.
    slow: bool
    error: str | None
    chunks: int
    placed: int
    present: int
    missing: int
    #: Heaps in no chunk, by cause: between two incarnations, or all, if nothing came while other shares received.
    gaps: dict[str, int]
    #: Heaps that were placed and died with a worker.
    died: int
    in_flight: int
    unfinished: int
    duplicates: int
    too_old: int
    rejected: dict[str, int]
    kernel_drops: int
    restarts: int
    function_errors: int
    recorded_chunks: int
    not_recorded: int
    lost_reports: int
    repeated_reports: int
    refused_reports: int
    loss: float | None
    residual: int


@dataclass(frozen=True)
class SourceLoss:
    """One source, over the fleet."""

    label: str
    placed: int
    present: int
    #: Missing from chunks, and in gaps between incarnations.
    missing: int
    gaps: int
    duplicates: int
    rejected: int
    loss: float | None


@dataclass(frozen=True)
class FleetStats:
    """What a fleet has received so far, as plain values (`dataclasses.asdict` turns it into JSON values)."""

    shares: list[ShareStats]
    sources: list[SourceLoss]
    chunks: int
    placed: int
    present: int
    missing: int
    gaps: dict[str, int]
    died: int
    in_flight: int
    unfinished: int
    duplicates: int
    too_old: int
    rejected: dict[str, int]
    kernel_drops: int
    #: Missing heaps, and those in gaps, as a fraction of them and those present.
    loss: float | None
    #: Placed heaps that the account does not explain: 0, unless something is wrong.
    residual: int

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> FleetStats:
        """Make it of its plain values, as in the attributes of a recording."""
        shares, sources = ([kind(**one) for one in values[name]] for name, kind in _ROWS.items())
        return cls(**{**values, "shares": shares, "sources": sources})


_ROWS: dict[str, Any] = {"shares": ShareStats, "sources": SourceLoss}


def is_slow(now: Mapping[str, Any]) -> bool:
    """Whether so many chunks wait for the function, according to a report, that none may soon be free."""
    waiting: int = now.get("ring", (0, 0))[0]
    free: int = now.get("free", 0)
    return waiting > free


class FleetAccount:
    """The account of a fleet, of the reports of its shares. It may be read at any time, from any thread.

    Parameters
    ----------
    shares
        The shares of the plan.
    """

    def __init__(self, shares: Sequence[Share]) -> None:
        self._lock = threading.Lock()
        self._shares = {share.name: _ShareState(share) for share in shares}

    def submit(self, share: str, worker: str, host: str) -> int:
        """Return the number of the next incarnation of a share, which is to run on a worker."""
        with self._lock:
            return self._shares[share].submit(worker, host)

    def give_up(self, share: str, cause: str = WORKER_DIED) -> None:
        """Expect no more reports of the newest incarnation."""
        with self._lock:
            self._shares[share].give_up(cause)

    def add(self, report: Mapping[str, Any]) -> bool:
        """Add a report. Returns whether it counts: once, and of the newest incarnation."""
        with self._lock:
            return self._shares[report["share"]].add(report)

    def fail(self, share: str, incarnation: int, error: str) -> bool:
        """A share has failed without a last report. Returns whether it counts: of the newest incarnation."""
        with self._lock:
            state = self._shares[share]
            if incarnation != state.incarnation or state.state not in ("starts", "receives"):
                return False
            state.give_up(WORKER_DIED)
            state.state, state.error = "failed", error
            return True

    def state(self, share: str) -> str:
        """The state of a share."""
        return self._shares[share].state

    def by_host(self) -> list[tuple[Share, str, Counts, bool]]:
        """The counters of each share on each host, and whether it is there now."""
        with self._lock:
            return [
                (state.share, host, Counts(dict(counts.by_source), Counter(counts.totals)), host == state.host)
                for state in self._shares.values()
                for host, counts in state.by_host.items()
            ]

    def stats(self) -> FleetStats:
        """Read the account."""
        with self._lock:
            counted = [(state, state.summed()) for state in self._shares.values()]
            batches = max((state.batches(counts) for state, counts in counted), default=0)
            found = [(state, counts, state.missed(counts, batches)) for state, counts in counted]
            shares = [_share_stats(*one) for one in found]
            sources = _source_losses(found)

        def total(name: str) -> int:
            return sum(getattr(one, name) for one in shares)

        def merged(name: str) -> dict[str, int]:
            return dict(sum((Counter(getattr(one, name)) for one in shares), Counter()))

        gaps = merged("gaps")
        names = ("chunks", "placed", "present", "missing", "died", "in_flight", "unfinished", "duplicates", "too_old")
        return FleetStats(
            shares=shares,
            sources=sources,
            gaps=gaps,
            rejected=merged("rejected"),
            kernel_drops=total("kernel_drops"),
            loss=loss(total("missing") + sum(gaps.values()), total("present")),
            residual=sum(abs(one.residual) for one in shares),
            **{name: total(name) for name in names},
        )


def _share_stats(state: _ShareState, sum_of: Counts, missed: Mapping[str, list[int]]) -> ShareStats:
    gaps = {cause: sum(heaps) for cause, heaps in missed.items()}
    missing, present = sum_of.heaps("missing"), sum_of.heaps("present")
    waiting, ring = state.now.get("ring", (0, 0))
    return ShareStats(
        name=state.share.name,
        state=state.state,
        host=state.host,
        worker=state.worker,
        incarnation=state.incarnation,
        silent=None if state.heard is None else time.monotonic() - state.heard,
        waiting_chunks=waiting,
        ring_chunks=ring,
        free_chunks=state.now.get("free", 0),
        slow=is_slow(state.now),
        error=state.error,
        chunks=sum_of.totals["chunks"],
        placed=sum_of.heaps("placed"),
        present=present,
        missing=missing,
        gaps=gaps,
        died=sum(state.died),
        in_flight=sum(state.now["in_flight"]),
        unfinished=state.unfinished,
        duplicates=sum_of.heaps("duplicates"),
        too_old=sum_of.heaps("too_old"),
        rejected=_rejected(sum_of),
        kernel_drops=sum_of.totals["kernel_drops"],
        restarts=sum_of.totals["restarts"],
        function_errors=sum_of.totals["function_errors"],
        recorded_chunks=sum_of.totals["recorded_chunks"],
        not_recorded=sum_of.totals["not_recorded"],
        lost_reports=state.lost_reports,
        repeated_reports=state.repeated_reports,
        refused_reports=state.refused_reports,
        loss=loss(missing + sum(gaps.values()), present),
        residual=state.total_residual,
    )


def _rejected(counts: Counts) -> dict[str, int]:
    prefix = "rejected."
    return {name.removeprefix(prefix): sum(n) for name, n in counts.by_source.items() if name.startswith(prefix)}


def _source_losses(shares: Sequence[tuple[_ShareState, Counts, dict[str, list[int]]]]) -> list[SourceLoss]:
    """Add up each source over all shares that have it, in the order in which they have them."""
    columns = ("placed", "present", "missing", "gaps", "duplicates", "rejected")
    found: dict[str, Counter[str]] = {}
    for state, counts, missed in shares:
        labels = state.share.layout.source_labels
        for label in labels:
            found.setdefault(label, Counter())
        for gap in missed.values():
            for label, heaps in zip(labels, gap, strict=True):
                found[label]["gaps"] += heaps
        for name, by_source in counts.by_source.items():
            column = name.partition(".")[0]
            if column in columns:
                # A counter of rejected heaps ends with those whose source is unknown.
                for label, heaps in zip(labels, by_source, strict=False):
                    found[label][column] += heaps
    return [
        SourceLoss(
            label=label,
            loss=loss(row["missing"] + row["gaps"], row["present"]),
            **{name: row[name] for name in columns},
        )
        for label, row in found.items()
    ]
