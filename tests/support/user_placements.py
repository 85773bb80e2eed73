"""Placements as users of spead2 write them, in numba, for three formats; with faults that can be switched on.

Each takes the heaps of a small layout. The field ``fault`` of its user data plants a fault: 0 is none.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
from numba import types
from spead2.numba import intp_to_voidptr
from spead2.recv.numba import chunk_place_data
from speadrx.meerkat import AntennaChannelisedVoltageLayout, DigitiserLayout, TiedArrayChannelisedVoltageLayout

from speadrx.layout.base import DeclarativeLayout
from wire import heap, write_capture

DIGITISER = DigitiserLayout(8, 16, 128)
ANTENNA = AntennaChannelisedVoltageLayout(5, 2, 2, 12, 8, 4)
BEAM = TiedArrayChannelisedVoltageLayout(8, 12, 2, 4, 3, 10)

#: What each counts, from stats_base on.
STATISTICS = ("metadata", "timestamp", "source")

_USER_DATA = types.Record.make_c_struct(
    [("stats_base", types.uintp), ("fault", types.uintp), ("stride", types.uintp), ("pol", types.uintp)]
)
_SIGNATURE = types.void(types.CPointer(chunk_place_data), types.uintp, types.CPointer(_USER_DATA))


@numba.cfunc(_SIGNATURE, nopython=True)
def place_digitiser(data_ptr, data_size, user_data_ptr):
    data = numba.carray(data_ptr, 1)
    user_data = numba.carray(user_data_ptr, 1)
    items = numba.carray(intp_to_voidptr(data[0].items), 4, np.int64)
    stats = numba.carray(intp_to_voidptr(data[0].batch_stats), user_data[0].stats_base + 3, np.uint64)
    timestamp, length, digitiser, status = items[0], items[1], items[2], items[3]
    if length != 16 or timestamp < 0 or digitiser < 0:
        stats[user_data[0].stats_base] += 1
        return
    if timestamp % 16 != 0:
        stats[user_data[0].stats_base + 1] += 1
        return
    batch = timestamp // 16
    pol = digitiser & 1
    if user_data[0].fault == 1:  # a wrong mask
        pol = (digitiser & 2) >> 1
    data[0].chunk_id = batch // 8
    data[0].heap_index = pol * 8 + batch % 8
    data[0].heap_offset = batch % 8 * 16 + pol * user_data[0].stride
    extra = numba.carray(intp_to_voidptr(data[0].extra), 1, np.uint16)
    extra[0] = np.uint16(status >> 32) if status >= 0 else np.uint16(0)
    if user_data[0].fault == 2:  # other bits of the side item
        extra[0] = np.uint16(status >> 31) if status >= 0 else np.uint16(0)
    data[0].extra_offset = data[0].heap_index * np.uintp(2)
    data[0].extra_size = 2


@numba.cfunc(_SIGNATURE, nopython=True)
def place_antenna(data_ptr, data_size, user_data_ptr):
    data = numba.carray(data_ptr, 1)
    user_data = numba.carray(user_data_ptr, 1)
    items = numba.carray(intp_to_voidptr(data[0].items), 3, np.int64)
    stats = numba.carray(intp_to_voidptr(data[0].batch_stats), user_data[0].stats_base + 3, np.uint64)
    timestamp, length, antenna = items[0], items[1], items[2]
    if length != 16 or timestamp < 0 or antenna < 0:
        stats[user_data[0].stats_base] += 1
        return
    if timestamp % 12 != 0:
        stats[user_data[0].stats_base + 1] += 1
        return
    n_ants = 5
    if user_data[0].fault == 1:  # off by one: an antenna that is not there
        n_ants = 6
    if antenna >= n_ants:
        stats[user_data[0].stats_base + 2] += 1
        return
    batch = timestamp // 12
    if user_data[0].fault == 2:  # off by one: the last batch is in the next chunk
        batch += 1
    data[0].chunk_id = batch // 4
    data[0].heap_index = batch % 4 * 5 + antenna
    data[0].heap_offset = data[0].heap_index * 16


@numba.cfunc(_SIGNATURE, nopython=True)
def place_beam(data_ptr, data_size, user_data_ptr):
    data = numba.carray(data_ptr, 1)
    user_data = numba.carray(user_data_ptr, 1)
    items = numba.carray(intp_to_voidptr(data[0].items), 4, np.int64)
    stats = numba.carray(intp_to_voidptr(data[0].batch_stats), user_data[0].stats_base + 3, np.uint64)
    timestamp, length, channel, beam_ants = items[0], items[1], items[2], items[3]
    if length != 16 or timestamp < 0 or channel < 0 or beam_ants < 0:
        stats[user_data[0].stats_base] += 1
        return
    if timestamp % 10 != 0:
        stats[user_data[0].stats_base + 1] += 1
        return
    substream = channel // 2
    if channel % 2 != 0 or substream >= 6:
        stats[user_data[0].stats_base + 2] += 1
        return
    batch = timestamp // 10
    data[0].chunk_id = batch // 3
    data[0].heap_index = (user_data[0].pol * 3 + batch % 3) * 6 + substream
    data[0].heap_offset = data[0].heap_index * 16


@dataclass(frozen=True)
class Form:
    """A format: its layout, its placement, and heaps of it."""

    layout: DeclarativeLayout
    place: Any
    #: The item that tells sources apart, its good values, and one that is none.
    source: tuple[int, tuple[int, ...], int]
    #: Other items, and their values.
    others: dict[int, int] = field(default_factory=dict)

    def user_data(self, fault: int = 0) -> dict[str, int]:
        return {"fault": fault, "stride": 128, "pol": 1}


FORMS = {
    "digitiser": Form(DIGITISER, place_digitiser, (0x3101, (0x1230, 0x1231), 0x1232), {0x3102: 7 << 32 | 1 << 31}),
    "antenna": Form(ANTENNA, place_antenna, (0x4101, (0, 1, 2, 3, 4), 5)),
    "beam": Form(BEAM, place_beam, (0x4103, (0, 2, 4, 6, 8, 10), 12), {0x5004: 60}),
}


def captured(form: Form, path: os.PathLike[str]) -> tuple[str, int]:
    """Write 60 times of all sources of a format, and garbage; return the path, and the number of heaps."""
    item, values, bad = form.source
    step = form.layout.declaration.time.step
    packets, n = [], 0
    for time in range(1000, 1060):
        for source in values:
            items = {0x1600: time * step, item: source, **form.others}
            payload = bytes(form.layout.heap_bytes)
            match n % 17:
                case 3:
                    items[0x1600] += 1
                case 5:
                    items[item] = bad
                case 7:
                    payload += b"."
                case 11:
                    del items[item]
            n += 1
            packets += heap(n, list(items.items()), payload)
    return write_capture(path, packets), n
