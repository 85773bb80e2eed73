"""Random histories of a receiver, and the truth about them, which is compared with all counts."""

from __future__ import annotations

import random
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable

import spead2

import speadrx
from handmade import Heap, encode
from loopback import wait_for
from speadrx import Axis, Layout, TimeAxis

TIME_ID, ANTENNA_ID = 0x1600, 0x4101
STEP, BATCHES, ANTENNAS = 2048, 4, 4
HEAP_BYTES = 16
LAYOUT = Layout(
    heap_bytes=HEAP_BYTES,
    time=TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES),
    axes=(Axis(name="antenna", item=ANTENNA_ID, size=ANTENNAS),),
    sources="antenna",
)
#: Counters of `ReceiverStats` that must never fall.
COUNTERS = ("chunks", "placed", "present", "missing", "expected", "duplicates", "too_old", "packets", "incomplete")


def payload(antenna: int, stamp: int) -> bytes:
    """What an antenna sends with a timestamp of 48 bits."""
    return struct.pack(">HQ", antenna, stamp) + b"a heap"


class Falls(threading.Thread):
    """Reads the counters of a receiver again and again, and notes each that falls, or says more than is placed."""

    def __init__(self, rx: speadrx.Receiver) -> None:
        super().__init__()
        self.rx = rx
        self.stopping = threading.Event()
        self.found: list[str] = []
        self.reads = 0

    def run(self) -> None:
        last: dict[str, int] = {}
        while True:
            ending = self.stopping.is_set()
            stats = self.rx.stats()
            now = {name: getattr(stats, name) for name in COUNTERS}
            now |= stats.rejected
            for source in stats.sources:
                now |= {
                    f"{name} of {source.label}": getattr(source, name) for name in ("placed", "present", "duplicates")
                }
            self.found += [f"{name}: {last[name]}, then {n}" for name, n in now.items() if n < last.get(name, 0)]
            named = stats.present + stats.duplicates + stats.too_old + stats.unfinished + stats.in_flight
            if named != stats.placed:
                self.found.append(f"{named} named, {stats.placed} placed")
            last = now
            self.reads += 1
            if ending:
                return


class History:
    """A receiver, and the senders of a random history. Heaps have one packet each."""

    def __init__(self, seed: object, threads: int, *, window: int = 3, start: int = 4000) -> None:
        self.rng = random.Random(str(seed))
        self.threads = threads
        self.window = window
        self.queues = [spead2.InprocQueue() for _ in range(threads)]
        self.rx = speadrx.Receiver(LAYOUT, self.queues, threads=threads, window=window)
        #: The batch that is sent next.
        self.front = start
        #: What was sent, by antenna and timestamp, of heaps that are good.
        self.sent: Counter[tuple[int, int]] = Counter()
        #: Heaps that are bad, by the reason for which they must be rejected.
        self.bad: Counter[str] = Counter()
        #: What was present: each must have been sent, and may come once.
        self.present: Counter[tuple[int, int]] = Counter()
        self.wrong: list[str] = []
        self._heap_counter = 0
        self._going = threading.Event()
        self._going.set()
        self._others: list[threading.Thread] = []
        self._consumer = threading.Thread(target=self._consume)
        self._falls = Falls(self.rx)

    # Consumer

    def _consume(self) -> None:
        for chunk in self.rx:
            with chunk:
                self._going.wait()
                for batch, antenna in zip(*chunk.present.nonzero(), strict=True):
                    stamp = (chunk.timestamp + int(batch) * STEP) % 2**48
                    self.present[int(antenna), stamp] += 1
                    if chunk.data[batch, antenna].tobytes() != payload(int(antenna), stamp):
                        self.wrong.append(f"data of antenna {antenna} at {stamp}")

    # Senders

    @property
    def copies(self) -> int:
        """Heaps sent so far, good and bad."""
        return self._heap_counter

    def _post(self, queue: int, items: dict[int, int], data: bytes) -> None:
        self._heap_counter += 1
        (packet,) = encode(Heap(items, data), self._heap_counter, 48)
        self.queues[queue].add_packet(packet)

    def send(self, queue: int, antenna: int, batch: int) -> None:
        """Send a good heap."""
        stamp = batch * STEP % 2**48
        self.sent[antenna, stamp] += 1
        items = {TIME_ID: stamp, ANTENNA_ID: antenna, spead2.HEAP_LENGTH_ID: HEAP_BYTES}
        self._post(queue, items, payload(antenna, stamp))

    def send_bad(self, queue: int) -> None:
        """Send a heap that must be rejected, whatever the time is."""
        items = {TIME_ID: self.front * STEP % 2**48, ANTENNA_ID: 1, spead2.HEAP_LENGTH_ID: HEAP_BYTES}
        reason, changes = self.rng.choice(
            [
                ("metadata_heaps", {spead2.HEAP_LENGTH_ID: HEAP_BYTES - 1}),
                ("metadata_heaps", {TIME_ID: None}),
                ("bad_timestamp_heaps", {TIME_ID: items[TIME_ID] + 1}),
                ("bad_antenna_heaps", {ANTENNA_ID: ANTENNAS}),
            ]
        )
        self.bad[reason] += 1
        items = {item: value for item, value in (items | changes).items() if value is not None}
        self._post(queue, items, bytes(items[spead2.HEAP_LENGTH_ID]))

    # Operations

    def go_on(self) -> None:
        """Some batches, of each antenna, in an order that is not quite that of time; some through two streams."""
        n = self.rng.choice([1, 1, 2, BATCHES, 3 * BATCHES])
        heaps = [(self.front + i, antenna) for i in range(n) for antenna in range(1, ANTENNAS)]
        self.front += n
        heaps.sort(key=lambda heap: heap[0] + self.rng.uniform(0, 3))
        for batch, antenna in heaps:
            if self.rng.random() < 0.03:
                continue  # lost
            queues = [antenna % self.threads]
            if self.rng.random() < 0.2:
                queues += self.rng.choices(range(self.threads), k=self.rng.choice([1, 1, 2]))
            for queue in queues:
                self.send(queue, antenna, batch)

    def repeat(self) -> None:
        """Copies of heaps that came a short or a long time ago, or heaps of that time that never came."""
        behind = self.rng.choice([2, BATCHES, self.window * BATCHES, (self.window + 1) * BATCHES, 40 * BATCHES])
        for _ in range(self.rng.randrange(1, 12)):
            batch = self.front - self.rng.randint(1, behind)
            self.send(self.rng.randrange(self.threads), self.rng.randrange(1, ANTENNAS), max(batch, 0))

    def spoil(self) -> None:
        """Bad heaps."""
        for _ in range(self.rng.randrange(1, 5)):
            self.send_bad(self.rng.randrange(self.threads))

    def restart(self) -> None:
        """The senders begin again elsewhere."""
        self.front = self.rng.choice([0, self.front + 10**5, max(self.front - 10**4, 5), self.rng.randrange(2**37)])
        for _ in range(3):
            self.go_on()

    def settle(self) -> None:
        """Wait until all that was sent was taken."""
        self._going.set()
        wait_for(lambda: self.rx.ledger.snapshot().seen == self.copies)

    def flush(self) -> None:
        self.rx.flush()

    def pause(self) -> None:
        """The consumer is busy with something else for a while, or is back."""
        (self._going.clear if self._going.is_set() else self._going.set)()

    def breathe(self) -> None:
        """Let the other threads run."""
        time.sleep(self.rng.choice([0, 0.0005, 0.002]))

    def storm(self) -> None:
        """Flushes, and reads of the counters, from a thread of their own."""

        def run(rng: random.Random) -> None:
            for _ in range(rng.randrange(1, 8)):
                rng.choice([self.rx.flush, self.rx.stats, lambda: time.sleep(0.0005)])()

        thread = threading.Thread(target=run, args=(random.Random(self.rng.random()),))
        self._others.append(thread)
        thread.start()

    def run(self, steps: int, end: str) -> None:
        """Run so many random operations, and then end."""
        weights: dict[Callable[[], None], int] = {
            self.go_on: 12,
            self.repeat: 4,
            self.spoil: 2,
            self.restart: 1,
            self.settle: 2,
            self.flush: 3,
            self.pause: 2,
            self.breathe: 3,
            self.storm: 2,
        }
        with self.rx:
            self._consumer.start()
            self._falls.start()
            try:
                for _ in range(steps):
                    self.rng.choices(list(weights), list(weights.values()))[0]()
                self._end(end)
                for thread in self._others:
                    thread.join(60)
                self._going.set()
                self._consumer.join(60)
                assert not self._consumer.is_alive()
            finally:
                self._going.set()
                self._falls.stopping.set()
        self._falls.join(60)

    def _end(self, end: str) -> None:
        if end in ("drain at rest", "queues"):
            self.settle()
        if end == "queues":
            for queue in self.queues:
                queue.stop()
        elif end == "stop":
            self.rx.stop()
        else:
            ends = [self.rx.drain, self.rx.flush, self.rx.drain, self.rx.stats]
            self.rng.shuffle(ends)
            for call in ends:
                self._others.append(threading.Thread(target=call))
                self._others[-1].start()
            if end == "drain":
                self.go_on()

    @property
    def residual(self) -> int:
        """Heaps that came and have no name, or two."""
        stats, ledger = self.rx.stats(), self.rx.ledger.snapshot()
        named = stats.present + stats.duplicates + stats.too_old + stats.unfinished + ledger.after_end
        return stats.packets - named - sum(ledger.rejected.values())

    def compare(self, end: str) -> None:
        """Compare what was counted with what was sent."""
        stats, ledger = self.rx.stats(), self.rx.ledger.snapshot()
        assert self._falls.found == []
        assert self.wrong == []
        assert not self.present - self.sent, "nobody sent these, or not so often"
        if not stats.restarts:
            assert max(self.present.values(), default=1) == 1, "a heap is present twice"
        present = Counter(antenna for antenna, _ in self.present.elements())
        assert [source.present for source in stats.sources] == [present[antenna] for antenna in range(ANTENNAS)]
        # Every heap has exactly one name.
        assert self.residual == 0
        assert ledger.placed + sum(ledger.rejected.values()) + ledger.after_end == stats.packets
        assert min(stats.present, stats.duplicates, stats.too_old, stats.unfinished) >= 0
        assert stats.placed == stats.present + stats.duplicates + stats.too_old + stats.unfinished
        assert stats.in_flight == 0
        for reason in ("metadata_heaps", "bad_timestamp_heaps", "bad_antenna_heaps"):
            assert ledger.rejected[reason] <= self.bad[reason]
        if end in ("drain at rest", "queues"):
            assert (stats.packets, ledger.after_end) == (self.copies, 0)
            assert {reason: ledger.rejected[reason] for reason in self.bad} == self.bad
        if end != "stop":
            assert stats.unfinished == 0
            undelivered = ledger.placed_by_source - ledger.duplicates_by_source - ledger.too_old_by_source
            assert undelivered.tolist() == [present[antenna] for antenna in range(ANTENNAS)]
        spead2_counts = [stream.stats for stream in self.rx.stream._streams()]
        if end != "stop":  # which makes every chunk too old, while the callback still places heaps
            assert sum(counts["too_old_heaps"] for counts in spead2_counts) == ledger.too_old
        assert sum(counts["rejected_heaps"] for counts in spead2_counts) == sum(ledger.rejected.values())
