"""Plays a history to a receiver, through queues or sockets, and compares what comes out with what was sent."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import spead2

import speadrx
from addresses import own_port
from senders import History, Sent, Shape
from speadrx import Axis, Layout, TimeAxis
from speadrx.accounts.report import ReceiverStats

TIME_ID, SOURCE_ID = 0x1600, 0x4101
RANGE = 2**48
#: Header, six items and the beginning of the payload of the only packet of a heap, in the flavour 64-48.
_PACKET = struct.Struct(">4BHH6QQ")
_SERIAL_BYTES = 8
_ITEMS = [1 << 63 | item << 48 for item in (1, 2, 3, 4, TIME_ID, SOURCE_ID)]
#: How long to wait for what must happen.
_PATIENCE = 60.0


def packet(heap: Sent, step: int, heap_bytes: int = _SERIAL_BYTES) -> bytes:
    """The packet of a heap whose payload begins with its serial number."""
    values = (heap.serial + 1, heap_bytes, 0, heap_bytes, heap.batch * step % RANGE, heap.source)
    items = (item | value for item, value in zip(_ITEMS, values, strict=True))
    return _PACKET.pack(0x53, 4, 2, 6, 0, len(_ITEMS), *items, heap.serial) + bytes(heap_bytes - _SERIAL_BYTES)


def layout(shape: Shape, heap_bytes: int, tick_rate: float | None = None) -> Layout:
    return Layout(
        heap_bytes=heap_bytes,
        time=TimeAxis(item=TIME_ID, step=shape.step, batches=shape.batches, tick_rate=tick_rate),
        axes=(Axis(name="source", item=SOURCE_ID, size=shape.sources),),
        sources="source",
    )


@dataclass
class Copied:
    """What is kept of a chunk."""

    timestamp: int
    present: np.ndarray  # batches, sources
    serials: np.ndarray


@dataclass
class Outcome:
    """What came out of a receiver, against what was sent into it."""

    history: History
    chunks: list[Copied]
    stats: ReceiverStats
    #: Sources that disagreed with the majority in the end.
    estranged: list[int]
    #: Whether each heap is in a chunk, by its serial number.
    received: np.ndarray = field(init=False)
    #: The same for those too whose place a later heap of their own source has taken, whose time was wrong.
    came: np.ndarray = field(init=False)
    #: Heaps in the wrong place.
    misplaced: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._by_serial = {heap.serial: heap for heap in self.history.heaps}
        self.received = np.zeros(len(self.history.heaps), bool)
        step = self.history.shape.step
        for chunk in self.chunks:
            for row, source in np.argwhere(chunk.present).tolist():
                heap = self._by_serial.get(int(chunk.serials[row, source]))
                stamp = (chunk.timestamp + row * step) % RANGE
                if heap is None or heap.source != source or heap.batch * step % RANGE != stamp:
                    self.misplaced += 1
                else:
                    self.received[heap.serial] = True
        self.came = self.received.copy()
        self._add_overwritten()

    def _add_overwritten(self) -> None:
        """Find good heaps that spead2 has overwritten, since a later heap said that it had the same time.

        There are no more of them than the receiver has counted as duplicates.
        """
        step = self.history.shape.step
        taken = {
            (heap.source, heap.batch * step % RANGE): heap.serial
            for heap in self.history.heaps
            if self.received[heap.serial]
        }
        duplicates = [source.duplicates for source in self.stats.sources]
        for heap in reversed(self.history.heaps):
            if not heap.good or self.came[heap.serial] or not duplicates[heap.source]:
                continue
            if taken.get((heap.source, heap.batch * step % RANGE), -1) > heap.serial:
                self.came[heap.serial] = True
                duplicates[heap.source] -= 1

    @property
    def lost(self) -> np.ndarray:
        """Good heaps that were lost and count, by phase and source."""
        return self.history.lost(self.came)

    @property
    def lost_in_all(self) -> int:
        """Good heaps that were lost, whether they count or not."""
        return sum(heap.good and not self.came[heap.serial] for heap in self.history.heaps)

    @property
    def residual(self) -> int:
        """Heaps that no counter accounts for. All heaps have one packet, so none is unfinished in the end."""
        stats = self.stats
        seen = stats.present + stats.duplicates + stats.too_old + sum(stats.rejected.values()) + stats.kernel_drops
        return len(self.history.heaps) - seen

    @property
    def allowed(self) -> np.ndarray:
        """How many of those may be lost, by phase."""
        return np.array([[self.history.allowed(phase)] for phase in range(len(self.history.phases))])

    def beyond(self) -> list[str]:
        """Where more good heaps were lost than may be, the worst first."""
        lost, allowed = self.lost, self.allowed
        return [
            f"phase {phase}: source {source} lost {lost[phase, source]} heaps, and may lose {allowed[phase, 0]}"
            for phase, source in sorted(np.argwhere(lost > allowed).tolist(), key=lambda at: -lost[*at])
        ]

    def complaints(self) -> list[str]:
        """What is wrong, apart from heaps that are lost and how many are missing."""
        stats = self.stats
        present = sum(int(chunk.present.sum()) for chunk in self.chunks)
        found = {
            f"residual {self.residual}": self.residual,
            f"{stats.unfinished} unfinished": stats.unfinished,
            f"{stats.in_flight} in flight": stats.in_flight,
            f"{self.misplaced} heaps in wrong places": self.misplaced,
            f"{stats.present} present by the account, {present} in the chunks": stats.present != present,
        }
        return [text for text, is_wrong in found.items() if is_wrong]

    def spans(self, choices: Mapping[int, bool] | None = None) -> list[tuple[int, int, int]]:
        """Eras in the order in which they came out: each with its first and last batch of which any heap came.

        A chunk with heaps of good clocks is of the era in which they were sent. One with heaps of wrong clocks alone
        goes on with the era before if that is within a window, or is of the era in which it was sent if it is near;
        else it is an era of its own (-1). Where time went back, there are two. For some chunks, by number, `choices`
        says whether they go on with the era before.
        """
        window = self.history.shape.span * self.history.shape.step
        found: list[tuple[int, int, int]] = []
        before = -1
        for number, chunk in enumerate(self.chunks):
            heaps = [self._by_serial[serial] for serial in chunk.serials[chunk.present].tolist()]
            first, last = min(heap.batch for heap in heaps), max(heap.batch for heap in heaps)
            best = max(heaps, key=lambda heap: heap.good)
            era = self._era(best)
            if found and not best.good and 0 < chunk.timestamp - before <= window:
                era = found[-1][0]
            goes_on = bool(found) and found[-1][0] == era and before < chunk.timestamp
            if (choices or {}).get(number, goes_on):
                first, last = min(first, found[-1][1]), max(last, found[-1][2])
                found.pop()
            found.append((era, first, last))
            before = chunk.timestamp
        return found

    def _era(self, heap: Sent) -> int:
        phase, near = self.history.phases[heap.phase], 3 * self.history.shape.span
        is_near = phase.begins - near <= heap.batch < phase.begins + phase.length + near
        return phase.era if heap.good or is_near else -1

    def missing(self, choices: Mapping[int, bool] | None = None) -> list[int]:
        """Heaps of each source that are missing in truth."""
        expected = sum(last - first + 1 for _, first, last in self.spans(choices))
        present = np.sum([chunk.present.sum(axis=0) for chunk in self.chunks], axis=0)
        return (expected - present).tolist()

    def truths(self) -> list[list[int]]:
        """What may be missing of each source.

        If time jumps ahead before more than half of the sources were heard, nobody can tell whether the first of them
        were wrong, or whether that was an outage.
        """
        shape = self.history.shape
        if not self.history.phases[0].wrong:
            return [self.missing()]
        is_few = [chunk.present.any(axis=0).sum() <= shape.sources / 2 for chunk in self.chunks]
        pairs = itertools.takewhile(lambda pair: is_few[pair[0]], enumerate(itertools.pairwise(self.chunks)))
        chunk_step = shape.batches * shape.step
        jumps = [i + 1 for i, (before, after) in pairs if after.timestamp - before.timestamp > chunk_step][:8]
        every = itertools.product((True, False), repeat=len(jumps))
        return [self.missing(), *(self.missing(dict(zip(jumps, choice, strict=True))) for choice in every)]

    @property
    def loss(self) -> float:
        """The loss figure in truth."""
        reported = [source.missing for source in self.stats.sources]
        missing = sum(reported if reported in self.truths() else self.missing())
        return missing / (missing + sum(int(chunk.present.sum()) for chunk in self.chunks))

    def miscounted(self) -> list[str]:
        """Where the account of missing heaps differs from the truth."""
        stats, missing = self.stats, self.missing()
        reported = [source.missing for source in stats.sources]
        found = []
        if reported not in self.truths() or stats.missing != sum(reported):
            found.append(
                f"missing {stats.missing}, in truth {sum(missing)}; by source {reported[:4]}, in truth {missing[:4]}; "
                f"eras {self.spans()}"
            )
        if stats.loss != self.loss:
            found.append(f"loss {stats.loss}, in truth {self.loss}")
        return found


class Played:
    """A receiver, and the senders that play to it."""

    def __init__(
        self,
        history: History,
        *,
        tick_rate: float | None = None,
        heap_bytes: int = _SERIAL_BYTES,
        udp: bool = False,
        **options: Any,
    ) -> None:
        shape = history.shape
        self.history = history
        self.heap_bytes = heap_bytes
        self._sent_to = [0] * shape.threads
        self._stack = contextlib.ExitStack()
        if udp:
            self._ports = [own_port() for _ in range(shape.sources)]
            sources = [("127.0.0.1", port) for port in self._ports]
            self._socket = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        else:
            sources = self._queues = [spead2.InprocQueue() for _ in range(shape.threads)]
        self.udp = udp
        options.setdefault("window", shape.window)
        self.rx = speadrx.Receiver(layout(shape, heap_bytes, tick_rate), sources, threads=shape.threads, **options)
        self.chunks: list[Copied] = []
        self._consumer = threading.Thread(target=self._consume)

    def _consume(self) -> None:
        for chunk in self.rx:
            with chunk:
                heaps = chunk.data.reshape(*chunk.present.shape, self.heap_bytes)
                serials = heaps[..., :_SERIAL_BYTES].copy().view(">u8")[..., 0].astype(np.int64)
                self.chunks.append(Copied(chunk.timestamp, chunk.present.astype(bool), serials))

    def __enter__(self) -> Played:
        self._stack.enter_context(self.rx)
        self._consumer.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()
        self._consumer.join()

    def send(self, heaps: list[Sent]) -> None:
        """Send heaps, all at once."""
        step = self.history.shape.step
        for heap in heaps:
            thread = self.history.shape.thread(heap.source)
            data = packet(heap, step, self.heap_bytes)
            if self.udp:
                self._socket.sendto(data, ("127.0.0.1", self._ports[heap.source]))
            else:
                self._queues[thread].add_packet(data)
            self._sent_to[thread] += 1

    def wait(self) -> None:
        """Wait until all have been read."""
        deadline = time.monotonic() + _PATIENCE
        for stream, sent in zip(self.rx.stream._streams(), self._sent_to, strict=True):
            while (count := stream.stats["packets"]) < sent:
                assert time.monotonic() < deadline, f"{count} of {sent} packets came"
                time.sleep(2e-5)

    def finish(self) -> Outcome:
        """End the streams, and return what came out."""
        self.wait()
        if self.udp:
            self.rx.drain()
        else:
            for queue in self._queues:
                queue.stop()
        self._consumer.join(_PATIENCE)
        assert not self._consumer.is_alive(), "the chunks do not end"
        estranged = np.flatnonzero(self.rx.stream.ledger.snapshot().estranged_by_source).tolist()
        return Outcome(self.history, self.chunks, self.rx.stats(), estranged)


def play(history: History, *, rate: float | None = None, paced: bool = False, **options: Any) -> Outcome:
    """Play a history to a receiver.

    Parameters
    ----------
    history
        What to send.
    rate
        Batches in a second, at most. By default, as fast as possible.
    paced
        Whether each round is read before the next is sent. It must be so where several threads or sockets are read.
    **options
        Of `Played` and the receiver.
    """
    with Played(history, **options) as played:
        started = time.monotonic()
        must_wait = paced or history.shape.threads > 1 or played.udp
        for round_ in history.rounds():
            if rate is not None:
                # Who is late does not catch up, for then a pause would be too short.
                late = time.monotonic() - (started + round_[0].due / rate)
                started += max(0.0, late)
                time.sleep(max(0.0, -late))
            played.send(round_)
            if must_wait:
                played.wait()
        return played.finish()
