"""What this machine can do: the cost of a layout's placement callback, and the rate over its loopback interface."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import itertools
import math
import os
import pickle
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import spead2

from speadrx._core import __version__
from speadrx.layout.base import DeclarativeLayout
from speadrx.receive.receiver import Receiver
from speadrx.simulate import Simulator
from speadrx.simulate.premade import Premade, Sent

#: Heaps that are placed in one turn: a short one is seldom interrupted.
TURN_HEAPS = 1024
#: Packets that are made once, about.
PREMADE_PACKETS = 1024
#: A rate counts as reached with this part of it.
REACHED = 0.93
FIRST_RATE, LEAST_RATE = 50e6, 1e6  # bytes per second
#: Rates that are tried between one without loss and one with it.
BISECTIONS = 4
#: After this long without any, no more heaps are on their way.
QUIET_SECONDS = 0.2
_SENDER_HAS_ENDED = "the process that sends has ended"


def machine() -> dict[str, Any]:
    """What figures of this machine depend on, as JSON can say it."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), model)
    largest_buffer = None
    with contextlib.suppress(OSError, ValueError), open("/proc/sys/net/core/rmem_max", encoding="ascii") as file:
        largest_buffer = int(file.read())
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {platform.release()}",
        "rmem_max": largest_buffer,
        "python": platform.python_version(),
        "spead2": spead2.__version__,
        "numpy": np.__version__,
        "speadrx": __version__,
    }


def default_user_data(layout: DeclarativeLayout) -> dict[str, int]:
    """Return index 0 for each axis that a layout takes from ``user_data``."""
    return {axis.from_user_data: 0 for axis in layout.declaration.axes if axis.from_user_data is not None}


# The placement callback


class _PlaceData(ctypes.Structure):
    """What spead2 passes to a callback: see `src/abi.rs`."""

    _fields_ = (
        ("packet", ctypes.c_void_p),
        ("packet_size", ctypes.c_size_t),
        ("items", ctypes.c_void_p),
        ("chunk_id", ctypes.c_int64),
        ("heap_index", ctypes.c_size_t),
        ("heap_offset", ctypes.c_size_t),
        ("batch_stats", ctypes.c_void_p),
        ("extra", ctypes.c_void_p),
        ("extra_offset", ctypes.c_size_t),
        ("extra_size", ctypes.c_size_t),
    )


_Callback = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_CapsuleGetter = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_ContextGetter = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)
_CAPSULE_NAME = b"void (void *, size_t, void *)"


class CallbackCost:
    """Times the placement callback of a layout: calls to it, less as many to a C function that does nothing.

    Both are called through `ctypes`, which takes some 40 times as long, so that one turn says little: they take turns,
    and the median of the differences is good to about 2 ns. Every heap is placed for the first time, batch after batch.

    Parameters
    ----------
    layout
        The layout.
    user_data
        Fields that it takes from ``user_data``.
    """

    def __init__(self, layout: DeclarativeLayout, user_data: dict[str, int]) -> None:
        simulator = Simulator(layout, user_data=user_data)
        indices = simulator.indices[:TURN_HEAPS]
        batches = max(TURN_HEAPS // len(indices), 1)
        given = {spead2.HEAP_LENGTH_ID: layout.heap_bytes}
        heaps = [simulator.items(batch, index) | given for batch in range(batches) for index in indices]
        self._items = np.array([[heap[item] for item in layout.spead_items] for heap in heaps], np.int64)
        time_axis = layout.declaration.time
        self._times = [i for i, item in enumerate(layout.spead_items) if item == time_axis.item]
        self._span = batches * time_axis.step
        # Without the fields for strides, heaps are dense.
        record = np.zeros((), [(name, np.uintp) for name in ("stats_base", *user_data)])
        for name, value in user_data.items():
            record[name] = value
        placement: Any
        capsule, placement = layout.chunk_place(record)
        self._placement = placement
        address = _CapsuleGetter(("PyCapsule_GetPointer", ctypes.pythonapi))(capsule, _CAPSULE_NAME)
        self._callback = _Callback(address)
        nothing = ctypes.cast(ctypes.CDLL(None).labs, ctypes.c_void_p).value
        assert nothing is not None
        self._nothing = _Callback(nothing)
        context = ctypes.c_void_p(_ContextGetter(("PyCapsule_GetContext", ctypes.pythonapi))(capsule))
        self._extra = ctypes.create_string_buffer(max(layout.max_heap_extra, 1))
        self._data = (_PlaceData * len(heaps))()
        first, row = self._items.ctypes.data, self._items.strides[0]
        for i, data in enumerate(self._data):
            data.items = first + i * row
            data.extra = ctypes.addressof(self._extra)
        size = ctypes.sizeof(_PlaceData)
        self._pointers = [ctypes.c_void_p(ctypes.addressof(self._data) + i * size) for i in range(len(heaps))]
        self._arguments = (itertools.repeat(ctypes.c_size_t(size)), itertools.repeat(context))
        self._turns = 0

    def measure(self, seconds: float) -> float:
        """Take turns for some time; return ns per heap."""
        differences: list[float] = []
        end = time.perf_counter() + seconds
        while not differences or time.perf_counter() < end:
            nothing = self._turn(self._nothing)
            differences.append(self._turn(self._callback) - nothing)
            self._items[:, self._times] = (self._items[:, self._times] + self._span) % 2**48
        self._turns += len(differences)
        placed = int(np.frombuffer(self._placement.ledger.snapshot().placed, np.uint64).sum())
        assert placed == self._turns * len(self._pointers), f"{placed} heaps were placed"
        return float(np.median(differences)) * 1e9

    def _turn(self, function: Callable[..., None]) -> float:
        """Call for every heap, in a loop of C; return seconds per heap."""
        begin = time.perf_counter()
        collections.deque(map(function, self._pointers, *self._arguments), maxlen=0)
        return (time.perf_counter() - begin) / len(self._pointers)


# The loopback interface


@dataclass(frozen=True)
class Rate:
    """The highest rate without loss that was found."""

    #: Zero if heaps were lost at any rate.
    heaps_per_second: float
    #: Payload of these heaps.
    gigabits_per_second: float
    #: What kept it from being higher: the ``"sender"``, the ``"receiver"``, or ``"loss"``.
    limit: str


class Loopback:
    """Finds the rate at which heaps of a layout come over UDP on 127.0.0.1 without loss.

    A process of its own sends packets that were made before. The time of a step goes on until the last heap was placed,
    so that what a socket's buffer holds for a while makes no rate higher. Use it as a context manager.

    Parameters
    ----------
    layout
        The layout.
    user_data
        Fields that it takes from ``user_data``.
    max_packet_size
        Bytes of a packet at most, SPEAD header and items included.
    step_seconds
        For how long each rate is tried.

    Raises
    ------
    ValueError
        If the layout cannot be simulated, or its items leave no room in a packet.
    """

    def __init__(
        self, layout: DeclarativeLayout, user_data: dict[str, int], *, max_packet_size: int, step_seconds: float = 0.25
    ) -> None:
        Simulator(layout, user_data=user_data, max_packet_size=max_packet_size)  # complains of what cannot be sent
        self._layout = layout
        self._user_data = user_data
        self._max_packet_size = max_packet_size
        self._step_seconds = step_seconds
        self._first_rate = FIRST_RATE
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        code = f"from {__name__} import _send; _send()"
        # Ctrl-C in a terminal goes to both processes. The sender inherits that it is blocked, and ends with its input.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._sender = self._stack.enter_context(
                subprocess.Popen([sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._tell((self._layout, self._user_data, self._max_packet_size))
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # what it was told last, and will not hear any more
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
            Asked before each step; if it says True, the search is given up and None returned.

        Raises
        ------
        RuntimeError
            If the process that sends has ended.
        MemoryError
            If there is not so much memory as the chunks need.
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
                is_late = REACHED * took > sent.end - sent.begin  # much came after all had been sent
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
        """Send at a rate; return what was sent, the seconds until it had come, and whether all of it came."""
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
    """Wait until so many heaps have come, or no more do; return when the last one came."""
    placed, last = -1, time.monotonic()
    while placed < heaps and time.monotonic() - last < QUIET_SECONDS:
        now = receiver.ledger.snapshot().seen
        if now > placed:
            placed, last = now, time.monotonic()
        time.sleep(1e-3)
    return last


def _send() -> None:
    """Send what comes on standard input: a layout, then how to send it. For a process of its own."""
    layout, user_data, max_packet_size = pickle.load(sys.stdin.buffer)
    batches = max(PREMADE_PACKETS // layout.batch_heaps, 1)
    premade = Premade(layout, batches, user_data=user_data, max_packet_size=max_packet_size)
    with contextlib.suppress(EOFError, ConnectionError):  # nobody wants to receive or know any more
        while True:
            endpoint, seconds, rate = pickle.load(sys.stdin.buffer)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect(endpoint)
                pickle.dump(premade.send(sock, seconds, rate), sys.stdout.buffer)
            sys.stdout.buffer.flush()
