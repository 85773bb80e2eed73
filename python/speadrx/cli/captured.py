"""Receive what is in a capture, and say what of it was not."""

from __future__ import annotations

import threading
from typing import Any

from rich.console import Console

from speadrx._core import Feed
from speadrx._words import counted
from speadrx.receive.feed import CaptureSource

from .parameters import UnusableError, announce_pipe
from .progress import PolledProgress
from .receiving import usable
from .session import Session
from .tables import tally

_A_YEAR = 365 * 86400.0
#: Seconds between looks whether a capture or the command has ended.
_LOOK = 0.02


def open_capture(
    path: str, *, threads: int = 1, endpoints: list[tuple[str, int]] | None = None, pace: float | None = None
) -> CaptureSource:
    """Open a capture, for so many threads; see `CaptureSource`.

    A pipe is waited for until somebody writes into it. So signals should still end the command then.

    Raises
    ------
    click.BadParameter, UnusableError
        If the file or the endpoints cannot be used.
    """
    announce_pipe(path)
    with usable():
        return CaptureSource(path, endpoints=endpoints or [], streams=threads, pace=pace)


def _since_1970(when: float | None) -> float | None:
    """A time of a capture; None if it is a simulated one, whose first packet has the time 0."""
    return when if when is not None and when >= _A_YEAR else None


def report(feed: Feed) -> dict[str, Any]:
    """Report what was in the capture, as plain values."""
    return {
        "datagrams": feed.taken,
        "elsewhere": feed.elsewhere,
        "skipped": feed.skipped,
        "truncated": feed.truncated,
        "error": feed.error,
        "seconds_behind": feed.seconds_behind,
    }


def show_capture(console: Console, feed: Feed, pace: float | None = None) -> None:
    """Print what was in the capture beside the packets that were received.

    Raises
    ------
    UnusableError
        If the rest of the capture could not be read.
    """
    if feed.elsewhere:
        console.print(f"Not replayed: {counted(feed.elsewhere, 'datagram')} to other endpoints.")
    for line in tally("Not replayed", feed.skipped):
        console.print(line)
    if feed.truncated:
        console.print("The last packet of the file is incomplete, and was left out.")
    if pace is not None and feed.seconds_behind > 0.01:
        console.print(f"Pace: the replay fell behind by {feed.seconds_behind:.2f} s.")
    if feed.error is not None:
        raise UnusableError(feed.error)


def run_capture(session: Session, interrupted: threading.Event, source: CaptureSource) -> Feed:
    """Receive until the capture ends, or the command is interrupted, and show how far it is.

    Returns
    -------
    Feed
        What has read the capture.
    """
    receiver, feed = session.receiver, source.feed
    assert feed is not None  # as the receiver has started
    session.is_live = False

    def wait() -> None:
        while not feed.ended and not session.ending.wait(_LOOK):
            session.began = _since_1970(feed.began)
        feed.end()
        session.began = _since_1970(feed.began)

    def poll() -> tuple[float, str]:
        return feed.position, "  ".join(
            filter(None, [counted(receiver.ledger.snapshot().placed, "heap"), session.beside()])
        )

    with PolledProgress(feed.size, poll):
        session.run(interrupted, feed=wait)
    return feed
