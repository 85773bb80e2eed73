"""Receive what is in a capture: with the reader of spead2, or else packet by packet."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

import spead2
from rich.console import Console

from speadrx._words import counted
from speadrx.receive.receiver import Receiver
from speadrx.receive.settings import deal
from speadrx.simulate.pacing import WallClock
from speadrx.survey.capture import Capture, read_datagrams

from .parameters import UnusableError
from .progress import PolledProgress
from .receiving import usable
from .session import Session
from .tables import tally

_A_YEAR = 365 * 86400.0
#: Most packets in the queues that the receiver has not taken yet.
_MOST_WAITING = 4096
_LOOK_EVERY = 256  # packets
_PAUSE = 0.001  # seconds
#: Packets that the receiver has not taken after so many seconds, although it could, are not SPEAD packets.
_PATIENCE = 0.1
#: A long wait for the next packet checks after so many seconds whether to end.
_NAP = 0.1


def _address(host: str) -> str:
    """Write an address in the form that captures have."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        raise ValueError(f"endpoints: {host!r} is not an IP address; a capture has no host names") from None


def _since_1970(when: float) -> float | None:
    """A time of a capture; None if it is a simulated one, whose first packet has the time 0."""
    return when if when >= _A_YEAR else None


class Feeder:
    """Puts the datagrams of a capture into queues.

    Parameters
    ----------
    capture
        The datagrams.
    queues
        One for each thread of the receiver.
    endpoints
        Only datagrams to these endpoints are put into the queues, to which the endpoints are dealt out in order. If
        there are none, all datagrams go to the one queue.
    pace
        How many times faster than recorded (None: as fast as possible).

    Raises
    ------
    ValueError
        If there are several queues, but not so many endpoints; or if an endpoint is not an IP address.
    """

    def __init__(
        self,
        capture: Capture,
        queues: list[spead2.InprocQueue],
        endpoints: list[tuple[str, int]],
        pace: float | None,
    ) -> None:
        self.capture = capture
        #: Datagrams that were put into the queues, and those to other endpoints.
        self.taken = self.elsewhere = 0
        #: Why the rest of the capture cannot be read.
        self.error: str | None = None
        #: When the first was captured, if that is known.
        self.began: float | None = None
        self.clock = WallClock()
        self._queues = queues
        self._pace = pace
        parts = deal(list(endpoints), len(queues)) if endpoints or len(queues) > 1 else []
        self._queue_of = {
            (_address(host), port): queue for part, queue in zip(parts, queues, strict=False) for host, port in part
        }
        self._undecodable = 0

    def _queue(self, destination: tuple[str, int]) -> spead2.InprocQueue | None:
        if not self._queue_of:
            return self._queues[0]
        return self._queue_of.get(destination) or self._queue_of.get(("0.0.0.0", destination[1]))

    def run(self, receiver: Receiver, ending: threading.Event) -> None:
        """Feed the receiver until the capture or the command ends; then stop the queues."""
        try:
            self._run(receiver, ending)
        except (ValueError, OSError) as exc:
            self.error = str(exc)
        finally:
            self.capture.close()
            for queue in self._queues:
                queue.stop()

    def _run(self, receiver: Receiver, ending: threading.Event) -> None:
        start, first, due = self.clock.now(), None, 0.0
        for datagram in self.capture:
            if self.began is None:
                self.began = _since_1970(datagram.time)
            queue = self._queue(datagram.destination)
            if queue is None:
                self.elsewhere += 1
            else:
                if self._pace is not None:
                    first = datagram.time if first is None else first
                    due = max(due, (datagram.time - first) / self._pace)  # some captures are not in order of time
                    while start + due - self.clock.now() > _NAP and not ending.wait(_NAP):
                        pass
                if ending.is_set():
                    return
                if self._pace is not None:
                    self.clock.wait_until(start + due)
                queue.add_packet(datagram.payload)
                self.taken += 1
                if self.taken % _LOOK_EVERY == 0:
                    self._wait_for_room(receiver, ending)

    def _wait_for_room(self, receiver: Receiver, ending: threading.Event) -> None:
        """Wait until the receiver has caught up, so that the queues stay short."""
        packets, since = -1, time.monotonic()
        while not ending.is_set():
            stats = receiver.stats()
            waiting = self.taken - self._undecodable - stats.packets
            if waiting <= _MOST_WAITING:
                return
            if stats.packets != packets or not stats.free_ring.chunks:
                packets, since = stats.packets, time.monotonic()
            elif time.monotonic() - since > _PATIENCE:
                self._undecodable += waiting
                return
            time.sleep(_PAUSE)

    def report(self) -> dict[str, Any]:
        """Report what was in the capture, as plain values."""
        capture = self.capture
        return {
            "datagrams": self.taken,
            "elsewhere": self.elsewhere,
            "skipped": dict(capture.skipped),
            "truncated": capture.truncated,
            "error": self.error,
            "seconds_behind": self.clock.lost,
        }


def open_capture(
    make: Callable[[Any], Receiver],
    path: str,
    *,
    threads: int = 1,
    endpoints: list[tuple[str, int]] | None = None,
    pace: float | None = None,
) -> tuple[Receiver, Feeder | None]:
    """Make a receiver, and a feeder for it unless spead2 can read the file itself, which is faster.

    Parameters
    ----------
    make
        Makes the receiver of a file or queues, and starts it. It raises `UnusableError` if spead2 cannot read the file.
    path
        The capture.
    threads
        Threads of the receiver.
    endpoints, pace
        See `Feeder`.

    Raises
    ------
    click.BadParameter, UnusableError
        If the file or the endpoints cannot be used.
    """
    if pace is None and not endpoints:
        # spead2 cannot read some files: damaged ones, those of other link layers, and pipes. A feeder may.
        with contextlib.suppress(UnusableError):
            return make(path), None
    queues = [spead2.InprocQueue() for _ in range(threads)]
    with contextlib.ExitStack() as stack:
        with usable():
            capture = stack.enter_context(contextlib.closing(read_datagrams(path)))
            feeder = Feeder(capture, queues, endpoints or [], pace)
        receiver = make(queues)
        stack.pop_all()  # the feeder closes it
    return receiver, feeder


def _position_of(path: str) -> int:
    """How far this process has read a file, in bytes."""
    for link in pathlib.Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError, ValueError):  # it was closed meanwhile
            if os.path.samefile(link, path):
                fields = pathlib.Path("/proc/self/fdinfo", link.name).read_text().split()
                return int(fields[1])
    return 0


def show_capture(console: Console, feeder: Feeder, pace: float | None = None) -> None:
    """Print what was in the capture beside the packets that were received.

    Raises
    ------
    UnusableError
        If the rest of the capture could not be read.
    """
    capture = feeder.capture
    if feeder.elsewhere:
        console.print(f"Not replayed: {counted(feeder.elsewhere, 'datagram')} to other endpoints.")
    for line in tally("Not replayed", capture.skipped):
        console.print(line)
    if capture.truncated:
        console.print("The last packet of the file is incomplete, and was left out.")
    if pace is not None and feeder.clock.lost > 0.01:
        console.print(f"Pace: the replay fell behind by {feeder.clock.lost:.2f} s.")
    if feeder.error is not None:
        raise UnusableError(feeder.error)


def run_capture(session: Session, interrupted: threading.Event, feeder: Feeder | None, path: str) -> None:
    """Receive until the capture ends, or the command is interrupted, and show how far it is."""
    receiver = session.receiver
    session.is_live = False
    if feeder is None:
        with contextlib.suppress(OSError, ValueError), read_datagrams(path) as capture:
            session.began = next((_since_1970(datagram.time) for datagram in capture), None)
    size = os.path.getsize(path) or None
    feed: Callable[[], None] | None = None
    if feeder is not None:
        size = feeder.capture.size

        def feed() -> None:
            feeder.run(receiver, session.ending)
            session.began = feeder.began

    def poll() -> tuple[float, str]:
        position = _position_of(path) if feeder is None else feeder.capture.position
        return position, counted(receiver.ledger.snapshot().placed, "heap")

    with PolledProgress(size, poll):
        session.run(interrupted, feed=feed)
