"""Placement callbacks for the three MeerKAT formats as telescope code writes them: by hand, with numba.

They are what the benchmarks compare with. Each takes its layout's numbers as compile-time constants, and
checks what such code checks, and no more: heap length, the items that it needs, alignment of the timestamp,
and the range of the antenna or the channel. Nothing of speadrx is imported here.

The last two are no code that anybody would use: they check nothing, and are the floor for end-to-end measurements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from numba import types
from spead2.numba import intp_to_voidptr
from spead2.recv.numba import chunk_place_data

if TYPE_CHECKING:
    from speadrx.meerkat import (
        AntennaChannelisedVoltageLayout,
        DigitiserLayout,
        TiedArrayChannelisedVoltageLayout,
    )

# Order of the reject counters, from stats_base on.
METADATA, BAD_TIMESTAMP, BAD_SOURCE = range(3)

common_user_data = types.Record.make_c_struct([("stats_base", types.uintp)])
digitiser_user_data = types.Record.make_c_struct([("stats_base", types.uintp), ("stride", types.uintp)])
tied_array_user_data = types.Record.make_c_struct([("stats_base", types.uintp), ("pol", types.uintp)])


def _signature(user_data: types.Record) -> Any:
    return types.void(types.CPointer(chunk_place_data), types.uintp, types.CPointer(user_data))


@numba.njit
def _stride_of_array(user_data):  # type: ignore[no-untyped-def]
    return user_data.stride


@numba.njit
def _stride_of_record(user_data):  # type: ignore[no-untyped-def]
    return user_data[0].stride


def digitiser(layout: DigitiserLayout, *, tuned: bool = False) -> Any:
    """Items: timestamp, heap length, digitiser ID, digitiser status.

    In the field the stride is taken from ``user_data``, an array of one record, without indexing it. numba
    compiles that to array arithmetic, with a temporary array allocated for each heap: ten times the cost of
    the rest. `tuned` takes it from the record.
    """
    heap_bytes = layout.heap_bytes
    heap_samples = layout.heap_samples
    batches = layout.chunk_batches
    timestamp_mask = layout.timestamp_mask
    stride = _stride_of_record if tuned else _stride_of_array

    @numba.cfunc(_signature(digitiser_user_data), nopython=True)
    def place(data_ptr, data_size, user_data_ptr):  # type: ignore[no-untyped-def]
        data = numba.carray(data_ptr, 1)
        user_data = numba.carray(user_data_ptr, 1)
        items = numba.carray(intp_to_voidptr(data[0].items), 4, np.int64)
        stats = numba.carray(intp_to_voidptr(data[0].batch_stats), user_data[0].stats_base + 3, np.uint64)
        timestamp, length, digitiser_id, status = items[0], items[1], items[2], items[3]
        if length != heap_bytes or timestamp < 0 or digitiser_id < 0:
            stats[user_data[0].stats_base + METADATA] += 1
            return
        timestamp &= timestamp_mask
        if timestamp % heap_samples != 0:
            stats[user_data[0].stats_base + BAD_TIMESTAMP] += 1
            return
        batch = timestamp // heap_samples
        pol = digitiser_id & 1
        position = batch % batches
        data[0].chunk_id = batch // batches
        data[0].heap_index = pol * batches + position
        data[0].heap_offset = position * heap_bytes + pol * stride(user_data)
        extra = numba.carray(intp_to_voidptr(data[0].extra), 1, np.uint16)
        extra[0] = np.uint16(status >> 32) if status >= 0 else np.uint16(0)
        data[0].extra_offset = data[0].heap_index * np.uintp(2)
        data[0].extra_size = 2

    return place


def antenna_channelised(layout: AntennaChannelisedVoltageLayout) -> Any:
    """Items: timestamp, heap length, F-engine ID."""
    heap_bytes = layout.heap_bytes
    step = layout.heap_timestamp_step
    batches = layout.chunk_batches
    n_ants = layout.n_ants

    @numba.cfunc(_signature(common_user_data), nopython=True)
    def place(data_ptr, data_size, user_data_ptr):  # type: ignore[no-untyped-def]
        data = numba.carray(data_ptr, 1)
        user_data = numba.carray(user_data_ptr, 1)
        items = numba.carray(intp_to_voidptr(data[0].items), 3, np.int64)
        stats = numba.carray(intp_to_voidptr(data[0].batch_stats), user_data[0].stats_base + 3, np.uint64)
        timestamp, length, antenna = items[0], items[1], items[2]
        if length != heap_bytes or timestamp < 0 or antenna < 0:
            stats[user_data[0].stats_base + METADATA] += 1
            return
        if timestamp % step != 0:
            stats[user_data[0].stats_base + BAD_TIMESTAMP] += 1
            return
        if antenna >= n_ants:
            stats[user_data[0].stats_base + BAD_SOURCE] += 1
            return
        batch = timestamp // step
        data[0].chunk_id = batch // batches
        data[0].heap_index = batch % batches * n_ants + antenna
        data[0].heap_offset = data[0].heap_index * heap_bytes

    return place


def tied_array(layout: TiedArrayChannelisedVoltageLayout) -> Any:
    """Items: timestamp, heap length, first channel, beam antennas."""
    heap_bytes = layout.heap_bytes
    step = layout.heap_timestamp_step
    batches = layout.chunk_batches
    channels = layout.n_channels_per_substream
    substreams = layout.n_pol_substreams

    @numba.cfunc(_signature(tied_array_user_data), nopython=True)
    def place(data_ptr, data_size, user_data_ptr):  # type: ignore[no-untyped-def]
        data = numba.carray(data_ptr, 1)
        user_data = numba.carray(user_data_ptr, 1)
        items = numba.carray(intp_to_voidptr(data[0].items), 4, np.int64)
        stats = numba.carray(intp_to_voidptr(data[0].batch_stats), user_data[0].stats_base + 3, np.uint64)
        timestamp, length, channel, beam_ants = items[0], items[1], items[2], items[3]
        if length != heap_bytes or timestamp < 0 or channel < 0 or beam_ants < 0:
            stats[user_data[0].stats_base + METADATA] += 1
            return
        if timestamp % step != 0:
            stats[user_data[0].stats_base + BAD_TIMESTAMP] += 1
            return
        substream = channel // channels
        if channel % channels != 0 or substream >= substreams:
            stats[user_data[0].stats_base + BAD_SOURCE] += 1
            return
        batch = timestamp // step
        data[0].chunk_id = batch // batches
        data[0].heap_index = (user_data[0].pol * batches + batch % batches) * substreams + substream
        data[0].heap_offset = data[0].heap_index * heap_bytes

    return place


def shifts(layout: AntennaChannelisedVoltageLayout) -> Any:
    """As `antenna_channelised`, for numbers that are powers of two: shifts and additions, without a single check."""
    heap_bytes = layout.heap_bytes
    step_bits, chunk_bits, ant_bits = (
        (n - 1).bit_length() for n in (layout.heap_timestamp_step, layout.chunk_timestamp_step, layout.n_ants)
    )
    if (1 << step_bits, 1 << chunk_bits, 1 << ant_bits) != (
        layout.heap_timestamp_step,
        layout.chunk_timestamp_step,
        layout.n_ants,
    ):
        raise ValueError("shifts: needs powers of two")
    batch_mask = layout.chunk_batches - 1

    @numba.cfunc(_signature(common_user_data), nopython=True)
    def place(data_ptr, data_size, user_data_ptr):  # type: ignore[no-untyped-def]
        data = numba.carray(data_ptr, 1)
        items = numba.carray(intp_to_voidptr(data[0].items), 3, np.int64)
        timestamp = items[0]
        data[0].chunk_id = timestamp >> chunk_bits
        data[0].heap_index = ((timestamp >> step_bits & batch_mask) << ant_bits) + items[2]
        data[0].heap_offset = data[0].heap_index * heap_bytes

    return place


def fixed() -> Any:
    """Every heap goes to the first slot of the first chunk."""

    @numba.cfunc(_signature(common_user_data), nopython=True)
    def place(data_ptr, data_size, user_data_ptr):  # type: ignore[no-untyped-def]
        data = numba.carray(data_ptr, 1)
        data[0].chunk_id = 0
        data[0].heap_index = 0
        data[0].heap_offset = 0

    return place
