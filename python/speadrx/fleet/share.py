"""`ShareRun`: one share at work: a receiver, what is done with its chunks, and the reports of that."""

from __future__ import annotations

import importlib
import logging
import operator
import os
import pickle
import platform
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from speadrx.accounts.account import Totals
from speadrx.layout.declaration import Layout
from speadrx.receive.chunk import Chunk
from speadrx.receive.receiver import Receiver
from speadrx.record.recorder import Recorder

from .portion import Portion, PortionRecorder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What a worker needs to know to receive a share."""

    fleet: str
    share: str
    incarnation: int
    layout: Layout
    endpoints: tuple[tuple[str, int], ...]
    options: Mapping[str, Any]
    function: Callable[[Chunk], Any] | str | None
    #: Where to record: a path with ``{share}`` in it, or a portion of a recording of all shares.
    record: str | Portion | None
    report_seconds: float


class Span(NamedTuple):
    """From the first batch of the present run of time that is in the account to the one after the last, in ticks."""

    begin: int
    end: int


class _Done(NamedTuple):
    """What the loop is through with: replaced as a whole, so that a report has all of a chunk or nothing."""

    totals: Totals
    span: Span | None
    #: Heaps of chunks that begin before the span, outside of it: they came while sockets were opened.
    before: list[int]
    function_errors: int


class ShareRun:
    """Receive a share until it is told to end, and report.

    Parameters
    ----------
    work
        What to do.
    send
        Takes a report, in any thread.
    """

    def __init__(self, work: Work, send: Callable[[dict[str, Any]], None]) -> None:
        self._work, self._send = work, send
        self._lock = threading.Lock()
        self._receiver: Receiver | None = None
        self._recorder: Recorder | None = None
        self._reason: str | None = None
        #: Set when all is over, and the last report was sent.
        self.finished = threading.Event()
        self._ending = threading.Event()
        n_sources = len(work.layout.source_labels)
        self._done = _Done(Totals.zero(n_sources), None, [0] * n_sources, 0)
        self._results: list[tuple[int, bytes]] = []
        self._reported: dict[str, Any] = {}
        self._number = 0

    def end(self, reason: str) -> None:
        """Drain the receiver: `run` gets what has come, and returns. It may be called at any time, in any thread."""
        with self._lock:
            if self._reason is None:
                self._reason = reason
                if self._receiver is not None:
                    self._receiver.drain()

    def run(self) -> None:
        """Receive. It never raises: what goes wrong is the reason in the last report."""
        error = None
        try:
            self._receive()
        except Exception as exc:  # whatever it is, the fleet must hear of it
            error = f"{type(exc).__name__}: {exc}"
            # What stands in the way of a receiver is in the plan or the machine: the fleet says it, once for all.
            is_said = self._receiver is None and isinstance(exc, (OSError, ValueError))
            level = logging.INFO if is_said else logging.WARNING
            logger.log(level, "share %s of %s: %s", self._work.share, self._work.fleet, error, exc_info=not is_said)
        finally:
            try:
                self._report("ended", reason=self._reason or "stopped by itself", error=error)
            finally:
                self.finished.set()

    def _receive(self) -> None:
        work = self._work
        function = find_function(work.function)
        options = dict(work.options)
        if options.get("metrics_port") is not None:
            options["labels"] = {"fleet": work.fleet, "share": work.share}
        receiver = Receiver(work.layout, list(work.endpoints), **options)
        reporter = threading.Thread(target=self._report_often, name="speadrx-share", daemon=True)
        with receiver:
            with self._lock:
                self._receiver = receiver
                if self._reason is not None:  # before there was anything to drain
                    receiver.drain()
            if work.record is not None:
                self._recorder = _recorder(receiver, work.record, work.share, work.incarnation)
            self._report("started")
            reporter.start()
            try:
                for chunk in receiver if self._recorder is None else self._recorder:
                    with chunk:
                        self._handle(receiver, chunk, function)
            finally:
                self._ending.set()
                reporter.join()
                receiver.stop()
                if self._recorder is not None:
                    self._recorder.close()

    def _handle(self, receiver: Receiver, chunk: Chunk, function: Callable[[Chunk], Any] | None) -> None:
        result, errors = None, self._done.function_errors
        if function is not None:
            try:
                result = pickle.dumps(function(chunk), pickle.HIGHEST_PROTOCOL)
            except Exception:  # the data, and what is recorded of it, go on
                errors += 1
                if errors == 1:
                    logger.warning(
                        "share %s: the function failed; it is not said again", self._work.share, exc_info=True
                    )
        with self._lock:
            totals, span, before = receiver.accounting._totals, _span(receiver, chunk), self._done.before
            if chunk.timestamp < span.begin:
                rose = map(operator.sub, totals.outside, self._done.totals.outside)
                before = list(map(operator.add, before, rose))
            self._done = _Done(totals, span, before, errors)
            if result is not None:
                self._results.append((chunk.timestamp, result))

    def _report_often(self) -> None:
        while not self._ending.wait(self._work.report_seconds):
            self._report("running")

    def _report(self, kind: str, **more: Any) -> None:
        with self._lock:
            # The totals first: a heap that is present was placed.
            done, results = self._done, self._results
            counts, now = self._read(done)
            self._results = []
            self._number += 1
            rise = _rise(self._reported, counts)
            self._reported = counts
            self._send(
                {
                    "kind": kind,
                    "share": self._work.share,
                    "incarnation": self._work.incarnation,
                    "number": self._number,
                    "host": platform.node(),
                    "pid": os.getpid(),
                    "rise": rise,
                    "now": now,
                    "results": results,
                    **more,
                }
            )

    def _read(self, done: _Done) -> tuple[dict[str, Any], dict[str, Any]]:
        """The counters, and what is not counted but is so now."""
        totals = done.totals
        counts: dict[str, Any] = {
            "present": totals.present,
            "missing": totals.missing,
            "before": done.before,
            "chunks": totals.chunks,
            "restarts": totals.restarts,
            "epoch_gap": totals.epoch_gap * len(totals.present),
            "function_errors": done.function_errors,
        }
        now: dict[str, Any] = {"in_flight": [0] * len(totals.present), "newest": [], "unfinished": 0, "placed": 0}
        now["span"] = None if done.span is None else list(done.span)
        if self._receiver is not None:
            ledger = self._receiver.ledger.snapshot()
            stats = self._receiver.stats()
            counts["placed"] = ledger.placed_by_source.tolist()
            counts["duplicates"] = ledger.duplicates_by_source.tolist()
            counts["too_old"] = ledger.too_old_by_source.tolist()
            counts |= {f"rejected.{reason}": heaps.tolist() for reason, heaps in ledger.rejected_by_source.items()}
            counts |= {"kernel_drops": stats.kernel_drops, "packets": stats.packets}
            columns = (counts[name] for name in ("placed", "present", "duplicates", "too_old"))
            left = [heaps - sum(others) for heaps, *others in zip(*columns, strict=True)]
            # Once the loop has ended, no heap is on its way any more.
            has_ended = self._ending.is_set()
            now["unfinished" if has_ended else "in_flight"] = sum(left) if has_ended else left
            now["placed"] = ledger.placed
            now["newest"] = ledger.newest_timestamp_by_source.tolist()
            now["ring"] = [stats.data_ring.chunks, stats.data_ring.capacity]
            now["free"] = stats.free_ring.chunks
        if self._recorder is not None:
            recorded = self._recorder.stats()
            counts |= {"recorded_chunks": recorded.chunks, "not_recorded": sum(recorded.not_written.values())}
            if isinstance(self._recorder, PortionRecorder):
                now["recorded"] = self._recorder.extents()
        return counts, now


def _recorder(receiver: Receiver, record: str | Portion, share: str, incarnation: int) -> Recorder:
    if isinstance(record, Portion):
        return PortionRecorder(receiver, record)
    return Recorder(receiver, recording_path(record, share, incarnation))


def recording_path(template: str, share: str, incarnation: int) -> str:
    """Where an incarnation of a share records: the first where the plan says, others beside it."""
    path = template.replace("{share}", share)
    if incarnation == 1:
        return path
    stem, suffix = os.path.splitext(path)
    return f"{stem}_{incarnation}{suffix}"


def find_function(function: Callable[[Chunk], Any] | str | None) -> Callable[[Chunk], Any] | None:
    """Import a function that is given as ``module:name``."""
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"function: {function!r} is {found!r}, which cannot be called")
    return found  # type: ignore[no-any-return]


def _span(receiver: Receiver, chunk: Chunk) -> Span:
    """The time that is in the account with a chunk."""
    progress = receiver._chunks._progress
    assert progress is not None, "a chunk was given out"
    assert chunk.timestamp is not None, "so it has its time"
    layout = receiver.layout
    step = layout.chunk_timestamp_step // layout.chunk_batches
    first_of_chunk = (progress.next_number - 1) * layout.chunk_batches
    end = chunk.timestamp + (progress.span.end - first_of_chunk) * step
    return Span(end - (progress.span.end - progress.span.first) * step, end)


def _rise(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What counters rose by: only those that did."""
    rise: dict[str, Any] = {}
    for name, count in after.items():
        last = before.get(name)
        if isinstance(count, list):
            difference: Any = count if last is None else [b - a for a, b in zip(last, count, strict=True)]
            if any(difference):
                rise[name] = difference
        elif count != (last or 0):
            rise[name] = count - (last or 0)
    return rise
