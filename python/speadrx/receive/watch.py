"""One thread that looks at all streams now and then. It flushes silent streams, and logs why a stream cannot go on."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
import weakref
from typing import Any

from speadrx.accounts.rejections import summary
from speadrx.accounts.report import mixed_heaps, rate_mismatch

from .disagreement import Disagreement
from .fork import check_descriptors
from .silence import Silence
from .sockets import SocketSet, shared_counters

logger = logging.getLogger(__name__)

#: Seconds between looks, unless a stream wants to be flushed sooner.
LOOK_INTERVAL = 1.0

#: Seconds after which the log may say again that a stream is stuck.
SILENT_SECONDS = 60.0

#: Seconds after which the log says that time goes on at another rate than the layout's.
RATE_SECONDS = 1.0

#: How often a silent stream is looked at before it is flushed.
_LOOKS_PER_FLUSH = 4

#: Seconds between looks at multicast groups.
_GROUPS_INTERVAL = 0.25


class _Watched:
    """What was seen of a stream or group at the last look."""

    def __init__(self, owner: Any, flush_after: float | None) -> None:
        self.owner = weakref.ref(owner)
        self.flush_after = flush_after
        self.interval = LOOK_INTERVAL if flush_after is None else min(LOOK_INTERVAL, flush_after / _LOOKS_PER_FLUSH)
        self._silence = Silence()
        self._seen = -1
        self._ready = False
        self._stuck: str | None = None
        self._said_stuck = False
        self._said_when = -math.inf
        self._said_refused = False
        self._said_mixed = False
        self._said_causes: set[str] = set()
        #: Since when time goes on at another rate than the layout's.
        self._other_rate_since: float | None = None
        self._said_other_rate = False
        self._disagreement = Disagreement()

    def look(self, now: float) -> bool:
        """Look at the stream. Return False if it is gone or stopped."""
        owner = self.owner()
        if owner is None or owner._stopped:
            return False
        with contextlib.suppress(RuntimeError):
            check_descriptors(owner)
        if owner._exiting:
            return False
        if owner.ledger is None:  # the layout has a callback of its own
            seen = 0
        else:
            snapshot = owner.ledger.snapshot()
            seen = snapshot.seen
            self._flush_if_silent(owner, snapshot.placed, now)
            self._say_if_refused(owner)
            self._say_if_mixed(owner)
            self._say_what_is_rejected(owner)
            self._say_if_other_rate(owner, now)
            for said in self._disagreement.look(snapshot, now):
                logger.warning("%s", said)
        self._say_if_stuck(owner, seen, now)
        return True

    def _flush_if_silent(self, owner: Any, placed: int, now: float) -> None:
        silence = self._silence.look(owner, placed, now)
        if self.flush_after is None or silence < self.flush_after:
            return
        if owner.ledger.snapshot().placed == placed:  # otherwise a heap has just come
            owner.flush()  # does nothing if it was flushed already

    def _say_if_refused(self, owner: Any) -> None:
        if owner._core.refusals and not self._said_refused:
            self._said_refused = True
            logger.warning(
                "timestamps have gone back, as if the senders had been restarted. Their heaps are rejected "
                "(backward_timestamp_heaps), since resync is False"
            )

    def _say_if_mixed(self, owner: Any) -> None:
        if self._said_mixed:
            return
        said = mixed_heaps(shared_counters([feed for sockets in owner._socket_sets for feed in sockets.feeds]))
        if said is not None:
            self._said_mixed = True
            logger.warning("%s", said)

    def _say_what_is_rejected(self, owner: Any) -> None:
        """Log each cause of rejections once, with its example."""
        if not logger.isEnabledFor(logging.DEBUG):
            return
        for rejection in owner.ledger.rejections():
            if rejection.cause not in self._said_causes:
                self._said_causes.add(rejection.cause)
                logger.debug("%s", summary(rejection))

    def _say_if_other_rate(self, owner: Any, now: float) -> None:
        """Log once that time goes on at another rate than the layout's, if it does so for a while."""
        mismatch = rate_mismatch(owner._measured_tick_rate(), owner.layout.declaration.time.tick_rate)
        if mismatch is None:
            self._other_rate_since = None
        elif self._other_rate_since is None:
            self._other_rate_since = now
        elif now - self._other_rate_since >= RATE_SECONDS and not self._said_other_rate:
            self._said_other_rate = True
            logger.warning("%s. Seconds are counted by the layout's: set time.tick_rate if it is wrong", mismatch)

    def _say_if_stuck(self, owner: Any, seen: int, now: float) -> None:
        """Log why the stream cannot go on: once, and again only if it has gone on in between."""
        # Large chunks take many seconds to allocate, and the stream exists before them.
        self._ready = self._ready or seen > 0 or owner.ledger is None or not owner.free_ringbuffer.empty()
        if not self._ready:
            return
        stuck = None
        if owner.free_ringbuffer.empty():
            stuck = (
                "free_ringbuffer: stays empty, so no new chunk can be begun, and heaps may be lost. Recycle chunks "
                "sooner (at the end of `with chunk:`, or with chunk.recycle()), or allocate more chunks"
            )
        elif owner.data_ringbuffer.full():
            stuck = (
                f"data_ringbuffer: stays full ({owner.data_ringbuffer.maxsize} chunks), so no chunk can be handed "
                "over, and heaps may be lost. The consumer is too slow"
            )
        if stuck is None or seen != self._seen:
            self._said_stuck = False
        elif stuck == self._stuck and not self._said_stuck and now - self._said_when >= SILENT_SECONDS:
            self._said_stuck, self._said_when = True, now
            logger.warning("%s", stuck)
        self._seen, self._stuck = seen, stuck


class _WatchedGroups:
    """The multicast groups of a stream, which are lost when an interface goes away."""

    interval = _GROUPS_INTERVAL

    def __init__(self, sockets: SocketSet) -> None:
        self._sockets = weakref.ref(sockets)

    def look(self, now: float) -> bool:
        """Look at the groups. Return False if the sockets are gone or closed."""
        sockets = self._sockets()
        if sockets is None or sockets.closed:
            return False
        sockets.look()
        return True


def _look(one: _Watched | _WatchedGroups, now: float) -> bool:
    """Look at a stream. An error must not prevent looking at the other streams."""
    try:
        return one.look(now)
    except BaseException:  # a panic of the core is no `Exception`
        logger.exception(
            "a stream is no longer watched: it will not be flushed when it is silent, nor join its groups again"
        )
        return False


class _Watch:
    def __init__(self) -> None:
        # Reentrant: a signal handler or a finaliser may make a stream anywhere, also while this is held.
        self._lock = threading.RLock()
        self._wake = threading.Condition(self._lock)
        self._watched: list[_Watched | _WatchedGroups] = []
        self._running = False

    def add(self, watched: _Watched | _WatchedGroups) -> None:
        with self._lock:
            self._watched.append(watched)
            if self._running:
                self._wake.notify()
            else:  # the thread itself says that it runs, since Ctrl-C may come before it has begun
                threading.Thread(target=self._run, name="speadrx-watch", daemon=True).start()

    def _run(self) -> None:
        with self._lock:
            if self._running:  # another thread has begun meanwhile
                return
            self._running = True
        due: dict[_Watched | _WatchedGroups, float] = {}
        while True:
            now = time.monotonic()
            with self._lock:
                watched = list(self._watched)
            gone = []
            for one in watched:
                if due.get(one, now) <= now:
                    due[one] = now + one.interval
                    if not _look(one, now):
                        gone.append(one)
                        del due[one]
            with self._lock:
                for one in gone:
                    self._watched.remove(one)
                if not self._watched:
                    self._running = False
                    return
                pause = min(due.get(one, now) for one in self._watched) - time.monotonic()
                self._wake.wait(max(pause, 0.0))


_watch = _Watch()


def _forked() -> None:
    """Begin anew in a forked child: the thread is not there, and another one may have had the lock."""
    global _watch
    _watch = _Watch()


os.register_at_fork(after_in_child=_forked)


def watch(owner: Any, flush_after: float | None) -> None:
    """Look at a stream or group from time to time, until it stops or is deleted. It is held weakly."""
    _watch.add(_Watched(owner, flush_after))


def watch_groups(sockets: SocketSet) -> None:
    """Look at multicast groups from time to time, until their sockets are closed. They are held weakly."""
    _watch.add(_WatchedGroups(sockets))
