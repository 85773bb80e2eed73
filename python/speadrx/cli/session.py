"""A receiver at work in a command: a thread takes its chunks, and this one waits for a reason to end it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import click
from rich.console import Console
from rich.live import Live

from speadrx.accounts.history import History
from speadrx.accounts.report import ReceiverStats
from speadrx.receive.receiver import Receiver

from .account import Account, LiveView, Moment, document, line, loss, residual
from .parameters import usable_file

#: Seconds between looks at whether there is a reason to end.
_LOOK = 0.1
#: Seconds that momentary rates are of, at least, once there are so many.
_RATE_SECONDS = 2.0
_REFRESHES_PER_SECOND = 2
#: Seconds without a heap after which senders are silent.
_SILENCE = 0.5


class Session:
    """A receiver and what is done with its chunks.

    Parameters
    ----------
    receiver
        The receiver.
    history
        File for a `History` of the chunks.

    Raises
    ------
    UnusableError
        If that file cannot be written.
    """

    def __init__(self, receiver: Receiver, history: str | None) -> None:
        self.receiver = receiver
        #: Why it was ended, or that nobody has done so: ``"end"`` (of what there was to receive).
        self.ended_by = "end"
        #: Set as soon as it shall end: for who feeds the receiver.
        self.ending = threading.Event()
        self._history_path = history
        self._history = None if history is None else History(receiver.layout)
        if history is not None:
            with usable_file(history, "--history"):
                open(history, "ab").close()  # better now than after hours
        # Between these times, in seconds since the start, heaps came.
        self._last_without = self._last_growth = 0.0
        self._placed = 0
        self._loss_when_ended: float | None = None
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
        """Receive until there is a reason to end, and hand over the chunks under construction then.

        Parameters
        ----------
        interrupted
            End when this is set.
        seconds, chunks
            End after so long, or when so many chunks have come out.
        feed
            Feeds the receiver, in a thread of its own, and ends that when `ending` is set.
        look
            Called now and then.
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
                reasons = {
                    "signal": interrupted.is_set(),
                    "seconds": end is not None and time.monotonic() >= end,
                    "chunks": chunks is not None and self.receiver.accounting.chunks >= chunks,
                }
                if any(reasons.values()) and not self.ending.is_set():
                    self.ended_by = next(reason for reason, holds in reasons.items() if holds)
                    self.ending.set()
                    self._note_loss()
                    if feed is None:  # else it ends by itself
                        self.receiver.drain()
                if consumer.done():
                    self.ending.set()
                look()
            self._note()
            for future in work:
                future.result()

    def _consume(self) -> None:
        for chunk in self.receiver:
            with chunk:
                if self._history is not None:
                    self._history.add(chunk)

    def keep_history(self, stats: ReceiverStats) -> None:
        """Write the history, if there is one."""
        if self._history is not None and self._history_path is not None:
            self._history.finish(stats)
            with usable_file(self._history_path, "--history"):
                self._history.write(self._history_path)

    def _note(self) -> None:
        stats = self.receiver.stats()
        if not stats.placed:
            self._last_without = self._last_growth = stats.seconds
        elif stats.placed != self._placed:
            self._placed, self._last_growth = stats.placed, stats.seconds

    def _note_loss(self) -> None:
        """Remember the loss up to now, if the senders go on: then all chunks under construction will lack heaps."""
        stats = self.receiver.stats()
        if stats.seconds - self._last_growth < _SILENCE:
            self._loss_when_ended = loss(stats)

    def moment(self) -> Moment:
        """See what has happened in the last seconds."""
        now, stats = time.monotonic(), self.receiver.stats()
        while len(self._seen) > 1 and now - self._seen[1][0] >= _RATE_SECONDS:
            self._seen.popleft()
        before, earlier = (None, stats.seconds) if not self._seen else (self._seen[0][1], now - self._seen[0][0])
        self._seen.append((now, stats))
        return Moment(self.receiver.layout, stats, before, earlier)

    def total(self) -> Moment:
        """See what has happened altogether, in the time that heaps came."""
        seconds = self._last_growth - self._last_without
        return Moment(self.receiver.layout, self.receiver.stats(), None, seconds, self._loss_when_ended)


@contextlib.contextmanager
def live(console: Console, session: Session, where: str) -> Iterator[None]:
    """Show what happens, on the terminal as it is; at the end, that is gone again."""
    with Live(
        get_renderable=lambda: LiveView(session.moment(), where),
        console=console,
        refresh_per_second=_REFRESHES_PER_SECOND,
        transient=True,
    ):
        yield


def lines(session: Session, interval: float) -> Callable[[], None]:
    """Make a function that prints a line whenever so many seconds have passed."""
    due = time.monotonic() + interval

    def look() -> None:
        nonlocal due
        if time.monotonic() >= due:
            due += interval
            click.echo(line(session.moment()))

    return look


def conclude(
    session: Session, console: Console, *, as_json: bool, all_sources: bool, max_loss: float | None, **about: Any
) -> int:
    """Keep the history, print the account, and say what the exit code is.

    Raises
    ------
    UnusableError
        If the history cannot be written after all; the account is printed all the same.
    """
    total = session.total()
    try:
        session.keep_history(total.stats)
    finally:  # a full disk costs the history, but not the account
        if as_json:
            click.echo(json.dumps(document(total, ended_by=session.ended_by, **about)))
        else:
            console.print(Account(total, all_sources=all_sources))
    lost = 100 * (loss(total.stats) or 0 if total.loss_when_ended is None else total.loss_when_ended)
    if max_loss is not None and lost > max_loss:
        click.echo(f"Loss: {lost:.4g} % is more than --max-loss {max_loss:g}.", err=True)
        return 1
    return 1 if residual(total.stats) or not total.stats.present else 0
