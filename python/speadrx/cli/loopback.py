"""Measure the highest rate without loss over the loopback interface."""

from __future__ import annotations

import contextlib
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
from speadrx.simulate import Simulator
from speadrx.simulate.premade import Premade, Sent

from .interrupt import start_python

#: About so many packets are made before sending, and sent again and again.
PREMADE_PACKETS = 1024
#: A rate counts as reached if at least this fraction of it is.
REACHED = 0.93
FIRST_RATE, LEAST_RATE = 50e6, 1e6  # bytes per second
#: Rates to try between one without loss and one with loss.
BISECTIONS = 4
#: After so many seconds without a heap, no more are on their way.
QUIET_SECONDS = 0.2
_SENDER_HAS_ENDED = "the process that sends has ended"


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

    Another process sends packets, which it has made before. The time of a step ends when the last heap is placed, so
    that heaps in the socket's buffer do not make the rate look higher. Use it as a context manager.

    Parameters
    ----------
    layout
        The layout.
    user_data
        The fields that it reads from ``user_data``.
    max_packet_size
        Most bytes in a packet, including the SPEAD header and items.
    step_seconds
        How long to try each rate, in seconds.

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
            sent, took, is_complete = self._step(rate)
            reached = sent.bytes / took
            if is_complete and reached > best:
                best, heaps = reached, sent.heaps / took
            if not is_complete:
                lossy = rate
            elif reached < REACHED * rate:
                is_late = REACHED * took > sent.end - sent.begin  # many heaps came after sending had ended
                return self._found(best, heaps, "receiver" if is_late else "sender")
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

    def _step(self, rate: float) -> tuple[Sent, float, bool]:
        """Send at a rate; return what was sent, the seconds until the last heap came, and whether all heaps came."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            endpoint = probe.getsockname()
        with Receiver(self._layout, [endpoint], user_data=self._user_data or None) as receiver:
            consumer = threading.Thread(target=_consume, args=(receiver,))
            consumer.start()
            try:
                self._tell((endpoint, self._step_seconds, rate))
                sent = self._reply()
                end = _settle(receiver, sent.heaps)
            finally:
                receiver.drain()
                consumer.join()
            return sent, end - sent.begin, receiver.stats().present == sent.heaps

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


def _settle(receiver: Receiver, heaps: int) -> float:
    """Wait until so many heaps have come, or no more come; return when the last one came."""
    placed, last = -1, time.monotonic()
    while placed < heaps and time.monotonic() - last < QUIET_SECONDS:
        now = receiver.ledger.snapshot().seen
        if now > placed:
            placed, last = now, time.monotonic()
        time.sleep(1e-3)
    return last


def _send() -> None:
    """Send as standard input says: first the layout, then, for each step, where to and how. The process runs this."""
    layout, user_data, max_packet_size = pickle.load(sys.stdin.buffer)
    batches = max(PREMADE_PACKETS // layout.batch_heaps, 1)
    premade = Premade(layout, batches, user_data=user_data, max_packet_size=max_packet_size)
    with contextlib.suppress(EOFError, ConnectionError):  # the receiver has ended
        while True:
            endpoint, seconds, rate = pickle.load(sys.stdin.buffer)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect(endpoint)
                pickle.dump(premade.send(sock, seconds, rate), sys.stdout.buffer)
            sys.stdout.buffer.flush()
