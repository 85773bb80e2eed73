"""Measure the highest rate without loss over the loopback interface."""

from __future__ import annotations

import contextlib
import functools
import math
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from speadrx.layout.base import DeclarativeLayout
from speadrx.receive.receiver import Receiver
from speadrx.simulate import Simulator, UdpSink

from .interrupt import start_python

#: A rate counts as reached if at least this fraction of it is.
REACHED = 0.93
FIRST_RATE, LEAST_RATE = 50e6, 1e6  # bytes per second
#: Rates to try between one without loss and one with loss.
BISECTIONS = 4
#: After so many seconds without a heap, no more are on their way.
QUIET_SECONDS = 0.2
_SENDER_HAS_ENDED = "the process that sends has ended"


@dataclass(frozen=True)
class Sent:
    """What was sent, and when, by the monotonic clock."""

    heaps: int
    bytes: int  # of all packets
    begin: float
    end: float


@dataclass(frozen=True)
class Trial:
    """What became of heaps that were sent at a rate for some time."""

    sent: Sent
    #: Seconds from the first packet until the last heap had come.
    took: float
    #: Heaps that are not in the account.
    missing: int
    #: Packets that the kernel dropped, for no room in the socket's buffer.
    kernel_drops: int

    @property
    def is_behind(self) -> bool:
        """Whether many heaps came after sending had ended: the buffer has hidden that the receiver is slower."""
        return REACHED * self.took > self.sent.end - self.sent.begin


@dataclass(frozen=True)
class Rate:
    """The highest rate without loss."""

    #: Zero if heaps were lost at all rates.
    heaps_per_second: float
    #: Payload of these heaps.
    gigabits_per_second: float
    #: What limits the rate: the ``"sender"``, the ``"receiver"``, or ``"loss"``.
    limit: str


class Loopback:
    """Finds the highest rate at which heaps of a layout come over UDP on 127.0.0.1 without loss.

    Another process simulates the senders. The time of a trial ends when the last heap is placed, so that heaps in the
    socket's buffer do not make the rate look higher. Use it as a context manager.

    Parameters
    ----------
    layout
        The layout.
    user_data
        The fields that it reads from ``user_data``.
    max_packet_size
        Most bytes in a packet, including the SPEAD header and items.
    step_seconds
        How long to send in a trial, in seconds.

    Raises
    ------
    ValueError
        If the layout cannot be simulated, or its items leave no room in a packet.
    """

    def __init__(
        self, layout: DeclarativeLayout, user_data: dict[str, int], *, max_packet_size: int, step_seconds: float = 0.25
    ) -> None:
        Simulator(layout, user_data=user_data, max_packet_size=max_packet_size)  # raises an error if it cannot be sent
        self._layout = layout
        self._user_data = user_data
        self._max_packet_size = max_packet_size
        self._step_seconds = step_seconds
        self._first_rate = FIRST_RATE
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._sender = self._stack.enter_context(start_python(f"from {__name__} import _send; _send()"))
        self._tell((self._layout, self._user_data, self._max_packet_size))
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # the sender has ended without reading its last message
            self._stack.close()

    def _tell(self, message: Any) -> None:
        assert self._sender.stdin is not None
        try:
            pickle.dump(message, self._sender.stdin)
            self._sender.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(_SENDER_HAS_ENDED) from None

    def measure(self, stop: Callable[[], bool] = lambda: False) -> Rate | None:
        """Search for the rate.

        Parameters
        ----------
        stop
            Called before each step. If it returns True, the search ends and returns None.

        Raises
        ------
        RuntimeError
            If the process that sends has ended.
        MemoryError
            If there is not enough memory for the chunks.
        """
        rate, lossy, steps_left = self._first_rate, 0.0, BISECTIONS
        best = heaps = 0.0
        while not stop():
            trial = self.trial(rate)
            sent, took = trial.sent, trial.took
            reached = sent.bytes / took
            if not trial.missing and reached > best:
                best, heaps = reached, sent.heaps / took
            if trial.missing:
                lossy = rate
            elif reached < REACHED * rate:
                return self._found(best, heaps, "receiver" if trial.is_behind else "sender")
            if not lossy:
                rate *= 2
            elif not best:
                rate = lossy / 2
                if rate < LEAST_RATE:
                    return self._found(best, heaps, "loss")
            elif steps_left:
                steps_left -= 1
                rate = math.sqrt(best * lossy)
            else:
                return self._found(best, heaps, "loss")
        return None

    def _found(self, best: float, heaps: float, limit: str) -> Rate:
        self._first_rate = max(best / 2, LEAST_RATE)
        return Rate(heaps, heaps * self._layout.heap_bytes * 8e-9, limit)

    def trial(self, rate: float) -> Trial:
        """Send at a rate, in bytes of packets per second, and see what became of it."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            endpoint = probe.getsockname()
        with Receiver(self._layout, [endpoint], user_data=self._user_data or None) as receiver:
            consumer = threading.Thread(target=_consume, args=(receiver,))
            consumer.start()
            try:
                self._tell(({"endpoints": [endpoint]}, self._step_seconds, rate))
                sent = self._reply()
                end = settle(lambda: receiver.ledger.snapshot().seen, sent.heaps)
            finally:
                receiver.drain()
                consumer.join()
            stats = receiver.stats()
            return Trial(sent, end - sent.begin, sent.heaps - stats.present, stats.kernel_drops)

    def _reply(self) -> Sent:
        assert self._sender.stdout is not None
        try:
            sent: Sent = pickle.load(self._sender.stdout)
        except EOFError:
            raise RuntimeError(_SENDER_HAS_ENDED) from None
        return sent


def _consume(receiver: Receiver) -> None:
    for chunk in receiver:
        chunk.recycle()


def settle(count: Callable[[], int], heaps: int) -> float:
    """Wait until so many heaps have come, as `count` tells, or no more come; return when the last one came."""
    came, last = -1, time.monotonic()
    while came < heaps and time.monotonic() - last < QUIET_SECONDS:
        now = count()
        if now > came:
            came, last = now, time.monotonic()
        time.sleep(1e-3)
    return last


def _send() -> None:
    """Send as standard input says: first the layout, then, for each trial, where to and how. The process runs this."""
    layout, user_data, max_packet_size = pickle.load(sys.stdin.buffer)
    simulator = Simulator(layout, user_data=user_data, max_packet_size=max_packet_size)
    batch_bytes = len(simulator.indices) * layout.heap_bytes
    with contextlib.suppress(EOFError, ConnectionError):  # the receiver has ended
        while True:
            where, seconds, rate = pickle.load(sys.stdin.buffer)
            heaps, sent_bytes = sum(simulator.truth.sent), simulator.truth.bytes
            batches = max(1, round(seconds * rate / batch_bytes))
            with UdpSink(**where) as sink:
                begin = time.monotonic()
                # Where the sender cannot follow, the trial ends nevertheless.
                late = functools.partial(_is_past, begin + 2 * seconds)
                truth = simulator.send(sink, batches, rate=rate, stop=late)
                end = time.monotonic()
            sent = Sent(sum(truth.sent) - heaps, truth.bytes - sent_bytes, begin, end)
            pickle.dump(sent, sys.stdout.buffer)
            sys.stdout.buffer.flush()


def _is_past(end: float) -> bool:
    return time.monotonic() > end
