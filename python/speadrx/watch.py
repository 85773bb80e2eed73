"""One thread that looks at all streams now and then: it flushes the silent ones, and logs what nobody else could tell."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from typing import Any

logger = logging.getLogger(__name__)

#: Seconds between looks, unless a stream wants to be flushed sooner.
LOOK_INTERVAL = 1.0

#: Looks within the time after which a silent stream is flushed.
_LOOKS_PER_FLUSH = 4


class _Watched:
    """What was seen of a stream or group at the last look."""

    def __init__(self, owner: Any, flush_after: float | None) -> None:
        self.owner = weakref.ref(owner)
        self.flush_after = flush_after
        self.interval = LOOK_INTERVAL if flush_after is None else min(LOOK_INTERVAL, flush_after / _LOOKS_PER_FLUSH)
        self._placed = -1
        self._seen = -1
        self._changed = 0.0
        self._queued = False
        self._said_refused = False
        self._said_stuck = False

    def look(self, now: float) -> bool:
        """Look at it; False if there is nothing to look at any more."""
        owner = self.owner()
        if owner is None or owner._stopped:
            return False
        snapshot = owner.ledger.snapshot()
        queued = any(
            counts.receive_queue for sockets in owner._socket_sets for counts in sockets.counts().values()
        )
        if snapshot.seen == self._seen and queued and self._queued:
            self._say_stuck(owner)
        self._seen, self._queued = snapshot.seen, queued
        if snapshot.placed != self._placed:
            self._placed, self._changed = snapshot.placed, now
        elif self.flush_after is not None and now - self._changed >= self.flush_after:
            owner.flush()
        if owner._core.refusals and not self._said_refused:
            self._said_refused = True
            logger.warning(
                "timestamps have gone back, as if the senders had been restarted; their heaps are rejected "
                "(backward_timestamp_heaps), since resync is False"
            )
        return True

    def _say_stuck(self, owner: Any) -> None:
        """Log once why packets wait in the kernel and nothing goes on."""
        if self._said_stuck:
            return
        if owner.free_ringbuffer.empty():
            self._said_stuck = True
            logger.warning(
                "free_ringbuffer: is empty, so receiving waits and packets will be lost; chunks go back to it with "
                "chunk.recycle(), or at the end of `with chunk:`"
            )
        elif owner.data_ringbuffer.full():
            self._said_stuck = True
            logger.warning(
                "data_ringbuffer: is full (%d chunks), so receiving waits and packets will be lost; the consumer "
                "is too slow",
                owner.data_ringbuffer.maxsize,
            )


class _Watch:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._watched: list[_Watched] = []
        self._running = False

    def add(self, watched: _Watched) -> None:
        with self._lock:
            self._watched.append(watched)
            if self._running:
                self._wake.notify()
            else:
                self._running = True
                threading.Thread(target=self._run, name="speadrx-watch", daemon=True).start()

    def _run(self) -> None:
        due: dict[_Watched, float] = {}
        while True:
            now = time.monotonic()
            with self._lock:
                watched = list(self._watched)
            gone = []
            for one in watched:
                if due.get(one, now) <= now:
                    due[one] = now + one.interval
                    if not one.look(now):
                        gone.append(one)
                        del due[one]
            with self._lock:
                self._watched = [one for one in self._watched if one not in gone]
                if not self._watched:
                    self._running = False
                    return
                pause = min(due.get(one, now) for one in self._watched) - time.monotonic()
                self._wake.wait(max(pause, 0.0))


_watch = _Watch()


def watch(owner: Any, flush_after: float | None) -> None:
    """Look at a stream or group from time to time, as long as it is there and not stopped; it is held weakly."""
    _watch.add(_Watched(owner, flush_after))
