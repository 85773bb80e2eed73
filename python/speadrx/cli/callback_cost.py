"""Measure the time of a call of a layout's placement callback."""

from __future__ import annotations

import collections
import ctypes
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import spead2

from speadrx.layout.base import DeclarativeLayout
from speadrx.layout.items import TIMESTAMP_BITS
from speadrx.simulate import Simulator

#: Heaps to place in one turn: short turns are seldom interrupted.
TURN_HEAPS = 1024


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
    """Times the placement callback of a layout, less the time of a C function that does nothing.

    Both are called through `ctypes`, which takes about 40 times as long as the callback. So they take many turns, and
    the median of the differences is accurate to about 2 ns. Each call places a heap for the first time.

    Parameters
    ----------
    layout
        The layout.
    user_data
        The fields that it reads from ``user_data``.
    """

    def __init__(self, layout: DeclarativeLayout, user_data: dict[str, int]) -> None:
        simulator = Simulator(layout, user_data=user_data)
        indices = simulator.indices[:TURN_HEAPS]
        batches = max(TURN_HEAPS // len(indices), 1)
        given = {spead2.HEAP_LENGTH_ID: layout.heap_bytes}
        heaps = [simulator.items(batch, index) | given for batch in range(batches) for index in indices]
        self._items = np.array([[heap.get(item, -1) for item in layout.spead_items] for heap in heaps], np.int64)
        time_axis = layout.declaration.time
        self._times = [i for i, item in enumerate(layout.spead_items) if item in time_axis.items]
        self._span = batches * time_axis.step << time_axis.shift
        self._wrap = 1 << (time_axis.bits or TIMESTAMP_BITS) + time_axis.shift
        # There are no fields for strides, so heaps are dense.
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
        """Take turns for so many seconds; return nanoseconds per heap."""
        differences: list[float] = []
        end = time.perf_counter() + seconds
        while not differences or time.perf_counter() < end:
            nothing = self._turn(self._nothing)
            differences.append(self._turn(self._callback) - nothing)
            times = self._items[:, self._times]
            # Where the time is one of several items, the others are absent.
            self._items[:, self._times] = np.where(times < 0, times, (times + self._span) % self._wrap)
        self._turns += len(differences)
        placed = int(np.frombuffer(self._placement.ledger.snapshot().placed, np.uint64).sum())
        assert placed == self._turns * len(self._pointers), f"{placed} heaps were placed"
        return float(np.median(differences)) * 1e9

    def _turn(self, function: Callable[..., None]) -> float:
        """Call the function for every heap, in a loop that runs in C; return seconds per heap."""
        begin = time.perf_counter()
        collections.deque(map(function, self._pointers, *self._arguments), maxlen=0)
        return (time.perf_counter() - begin) / len(self._pointers)
