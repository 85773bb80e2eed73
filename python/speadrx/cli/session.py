"""Run a receiver in a command: one thread takes the chunks, and another waits for a reason to end."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import click
from rich.console import Console
from rich.live import Live

from speadrx.accounts.history import History
from speadrx.accounts.report import ReceiverStats
from speadrx.receive.chunk import Chunk
from speadrx.receive.receiver import Receiver

from .account import SORTS, AccountView, LiveView, Moment, document, line, residual
from .keys import Browsing, Keys
from .parameters import usable_file

#: Seconds between checks for a reason to end.
_LOOK = 0.1
#: Seconds between writes of the history, so that a crash loses no more. If a write takes long, it is longer.
HISTORY_SECONDS = 10.0
_HISTORY_SHARE = 0.05
#: Current rates are means over at least so many seconds, after that time.
_RATE_SECONDS = 2.0
_REFRESHES_PER_SECOND = 2


class Sink(Protocol):
    """Where a command puts chunks, beside their account."""

    def add(self, chunk: Chunk) -> None:
        """Take a chunk; it is recycled as usual after this."""

    def close(self) -> None:
        """Finish: there are no more chunks."""

    def full(self) -> str | None:
        """The reason why it wants no more; None if it does."""

    def line(self) -> str:
        """What it has done so far, in a few words."""


class Session:
    """A receiver, and what a command does with its chunks.

    Parameters
    ----------
    receiver
        The receiver.
    history
        File to write a `History` of the chunks to; or a `History`, to which they are added.
    sink
        Where else to put them.

    Raises
    ------
    UnusableError
        If the file cannot be written.
    """

    def __init__(self, receiver: Receiver, history: str | History | None, sink: Sink | None = None) -> None:
        self.receiver, self._sink = receiver, sink
        #: Why it ended; ``"end"`` if there was nothing more to receive.
        self.ended_by = "end"
        #: Set when it must end: for the thread that feeds the receiver.
        self.ending = threading.Event()
        self._history_path = history if isinstance(history, str) else None
        self._history = History(receiver.layout) if isinstance(history, str) else history
        if isinstance(history, str) and self._history is not None:
            with usable_file(history, "--history"):
                # An error is better now than after hours.
                if os.path.isfile(history) or not os.path.exists(history):
                    self._history.write(history)
                else:
                    open(history, "ab").close()
        self._history_lock = threading.Lock()
        self._history_due = time.monotonic() + HISTORY_SECONDS
        #: When the first heaps came, in seconds since 1970; None if that is not known (yet).
        self.began: float | None = None
        #: Whether heaps come now, and not as they were captured once.
        self.is_live = True
        # Heaps came between these times, in seconds since the start.
        self._last_without = self._last_growth = 0.0
        self._placed = 0
        self._seen: deque[tuple[float, ReceiverStats]] = deque()

    def run(
        self,
        interrupted: threading.Event,
        *,
        seconds: float | None = None,
        chunks: int | None = None,
        feed: Callable[[], None] | None = None,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """Receive until there is a reason to end, and then take the chunks in the window too.

        Parameters
        ----------
        interrupted
            End when this is set.
        seconds, chunks
            End after so many seconds, or when so many chunks are complete.
        feed
            Feeds the receiver in a thread of its own; it must return when `ending` is set.
        look
            Called about every 0.1 seconds.
        """
        end = None if seconds is None else time.monotonic() + seconds
        with concurrent.futures.ThreadPoolExecutor(2) as threads, contextlib.ExitStack() as stack:
            stack.enter_context(self.receiver)
            stack.callback(self.ending.set)
            consumer = threads.submit(self._consume)
            work = [consumer] if feed is None else [consumer, threads.submit(feed)]
            while not all(future.done() for future in work):
                concurrent.futures.wait(work, _LOOK)
                self._note()
                self._keep_so_far()
                reasons = {
                    "signal": interrupted.is_set(),
                    "seconds": end is not None and time.monotonic() >= end,
                    "chunks": chunks is not None and self.receiver.accounting.chunks >= chunks,
                }
                if self._sink is not None and (full := self._sink.full()) is not None:
                    reasons[full] = True
                if any(reasons.values()) and not self.ending.is_set():
                    self.ended_by = next(reason for reason, holds in reasons.items() if holds)
                    self.ending.set()
                    if feed is None:  # otherwise the receiver ends when it is no longer fed
                        self.receiver.drain()
                if consumer.done():
                    self.ending.set()
                look()
            self._note()
            for future in work:
                future.result()

    def _consume(self) -> None:
        with contextlib.nullcontext() if self._sink is None else contextlib.closing(self._sink):
            for chunk in self.receiver:
                with chunk:
                    if self._sink is not None:
                        self._sink.add(chunk)
                    if self._history is not None:
                        with self._history_lock:
                            self._history.add(chunk)

    def beside(self) -> str:
        """What was done with the chunks beside their account, in a few words."""
        return "" if self._sink is None else self._sink.line()

    def keep_history(self, stats: ReceiverStats) -> None:
        """Complete the history, if there is one, and write it."""
        if self._history is not None:
            self._history.finish(stats)
            self._history.began = self.began
            if self._history_path is not None:
                with usable_file(self._history_path, "--history"):
                    self._history.write(self._history_path)

    def _keep_so_far(self) -> None:
        """Write the history as it is now, if it is time to."""
        begin = time.monotonic()
        if self._history is None or self._history_path is None or begin < self._history_due:
            return
        if os.path.isfile(self._history_path):  # a pipe gets it once, at the end
            with self._history_lock:
                history = self._history.copy()
            history.finish(self.receiver.stats())
            history.began = self.began
            with contextlib.suppress(OSError):  # it is said at the end, if it is so then
                history.write(self._history_path)
        end = time.monotonic()
        self._history_due = end + max(HISTORY_SECONDS, (end - begin) / _HISTORY_SHARE)

    def _note(self) -> None:
        stats = self.receiver.stats()
        if stats.placed and self.began is None and self.is_live:
            self.began = time.time()
        if not stats.placed:
            self._last_without = self._last_growth = stats.seconds
        elif stats.placed != self._placed:
            self._placed, self._last_growth = stats.placed, stats.seconds

    def moment(self) -> Moment:
        """What has happened in the last seconds."""
        now, stats = time.monotonic(), self.receiver.stats()
        while len(self._seen) > 1 and now - self._seen[1][0] >= _RATE_SECONDS:
            self._seen.popleft()
        before, earlier = (None, stats.seconds) if not self._seen else (self._seen[0][1], now - self._seen[0][0])
        self._seen.append((now, stats))
        return Moment(self.receiver.layout, stats, before, earlier)

    def total(self) -> Moment:
        """What has happened from the first heap to the last."""
        seconds = self._last_growth - self._last_without
        return Moment(self.receiver.layout, self.receiver.stats(), None, seconds)


@contextlib.contextmanager
def live(console: Console, session: Session, where: str, interrupted: threading.Event) -> Iterator[Callable[[], None]]:
    """Show a live view below what the terminal shows; it disappears at the end.

    It gives a function to call often: it heeds keys, one of which sets `interrupted`.
    """
    keys, browsing = Keys(), Browsing(SORTS, "loss")

    def look() -> None:
        for key in keys.pressed(0):
            browsing.heed(key, console.height)
        if browsing.done:
            interrupted.set()

    view = Live(
        get_renderable=lambda: LiveView(
            session.moment(), where, browsing if keys.are_read else None, beside=session.beside()
        ),
        console=console,
        refresh_per_second=_REFRESHES_PER_SECOND,
        transient=True,
        redirect_stderr=sys.stderr.isatty(),
    )
    with keys:
        view.start()
        try:
            yield look
        finally:
            # The terminal may have gone away, which must not keep the account from being kept.
            with contextlib.suppress(OSError):
                view.stop()


def lines(session: Session, interval: float) -> Callable[[], None]:
    """Make a function that prints a line if so many seconds have passed since the last one."""
    due = time.monotonic() + interval

    def look() -> None:
        nonlocal due
        if time.monotonic() >= due:
            due += interval
            click.echo("  ".join(filter(None, [line(session.moment()), session.beside()])))

    return look


def conclude(
    session: Session, console: Console, *, as_json: bool, all_sources: bool, max_loss: float | None, **about: Any
) -> int:
    """Write the history, print the account, and return the exit code.

    Raises
    ------
    UnusableError
        If the history cannot be written. The account is still printed.
    """
    total = session.total()
    try:
        session.keep_history(total.stats)
    finally:  # the account is printed even if the disk is full
        if as_json:
            click.echo(json.dumps(document(total, ended_by=session.ended_by, **about)))
        else:
            console.print(AccountView(total, all_sources=all_sources))
    lost = total.stats.loss or 0
    if max_loss is not None and lost > max_loss:
        click.echo(f"Loss: {100 * lost:.4g} % is more than --max-loss, {100 * max_loss:.4g} %.", err=True)
        return 1
    return 1 if residual(total.stats) or not total.stats.present else 0
