"""Layouts against the hand-written numba callbacks that the benchmarks compare with."""

from __future__ import annotations

import importlib.util
import pathlib
import random
from typing import Any

import numpy as np
import pytest
import spead2
from speadrx.meerkat import (
    AntennaChannelisedVoltageLayout,
    DigitiserLayout,
    TiedArrayChannelisedVoltageLayout,
)

from engine import (
    BEAM_ANTS_ID,
    DIGITISER_ID_ID,
    DIGITISER_STATUS_ID,
    FENG_ID_ID,
    FREQUENCY_ID,
    TIMESTAMP_ID,
    add_chunks,
    feed,
    receive,
    rings,
)
from handmade import Heap
from speadrx.compat import katgpucbf as recv


def hand_written() -> Any:
    """The callbacks that the benchmarks compare with."""
    path = pathlib.Path(__file__).parents[2] / "benches" / "numba_callbacks.py"
    spec = importlib.util.spec_from_file_location("numba_callbacks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class HandWritten(recv.BaseLayout):
    """The geometry of another layout, with a numba callback."""

    heap_bytes = chunk_batches = batch_heaps = heap_sample_count = chunk_timestamp_step = 0

    def __init__(self, like: recv.BaseLayout, callback: Any) -> None:
        for name in ("heap_bytes", "chunk_batches", "batch_heaps", "heap_sample_count", "chunk_timestamp_step"):
            setattr(self, name, getattr(like, name))
        self._chunk_place = callback


@pytest.mark.parametrize("form", ["digitiser", "tuned digitiser", "antenna_channelised", "tied_array"])
async def test_hand_written_callbacks_agree(form: str, rng: np.random.Generator) -> None:
    """Good and bad heaps go where, and are counted as, a hand-written numba callback says."""
    callbacks = hand_written()
    random_int = random.Random(int(rng.integers(2**32))).randrange
    layout: Any
    if form.endswith("digitiser"):
        layout = DigitiserLayout(8, 16, 128)
        callback = callbacks.digitiser(layout, tuned=form.startswith("tuned"))
        user_data = np.zeros((), callbacks.digitiser_user_data.dtype)
        user_data["stride"] = layout.pol_chunk_bytes
        step, values = 16, {DIGITISER_ID_ID: 2, DIGITISER_STATUS_ID: 2**48}
    elif form == "antenna_channelised":
        layout = AntennaChannelisedVoltageLayout(5, 2, 2, 12, 8, 4)
        callback = callbacks.antenna_channelised(layout)
        user_data = np.zeros((), callbacks.common_user_data.dtype)
        step, values = 12, {FENG_ID_ID: 6}
    else:
        layout = TiedArrayChannelisedVoltageLayout(8, 12, 2, 4, 3, 10)
        callback = callbacks.tied_array(layout)
        user_data = np.zeros((), callbacks.tied_array_user_data.dtype)
        user_data["pol"] = 1
        step, values = 10, {FREQUENCY_ID: 14, BEAM_ANTS_ID: 64}
    heaps = []
    for i in range(3000):
        length = layout.heap_bytes + (random_int(20) == 0)
        items = {
            # Time goes on, with heaps in any order that some of them are too old by, but not out of the question.
            TIMESTAMP_ID: max(0, i // 24 + random_int(10) - 5) * step + (random_int(20) == 0),
            spead2.HEAP_LENGTH_ID: length,
            **{item: random_int(limit) for item, limit in values.items()},
        }
        if random_int(20) == 0:
            del items[[item for item in items if item != spead2.HEAP_LENGTH_ID][random_int(len(items) - 1)]]
        heaps.append(Heap(items, rng.bytes(length)))
    names = ["test.metadata", "test.timestamp"]
    if not form.endswith("digitiser"):  # whose one bit of polarisation is always good
        names.append("test.source")
    results = []
    for own in (layout, HandWritten(layout, callback)):
        stream = recv.make_stream(
            layout=own,
            spead_items=layout.spead_items,
            max_active_chunks=2,
            stream_stats=names,
            user_data=user_data.copy(),
            max_heap_extra=layout.max_heap_extra,
            **({"max_jump": 4} if own is layout else {}),
            **rings(64),
        )
        add_chunks(stream, layout, 64, extra=form.endswith("digitiser"))
        feed(stream, heaps)
        try:
            chunks = await receive(stream)
        finally:
            stream.stop()
        stats = {name: stream.stats[name] for name in (*names, "heaps", "too_old_heaps", "rejected_heaps")}
        results.append((chunks, stats))
    (chunks, stats), (expected_chunks, expected_stats) = results
    assert stats == expected_stats
    assert all(stats[name] for name in stats), "not every outcome was tried"
    assert len(chunks) == len(expected_chunks) > 8
    for chunk, expected in zip(chunks, expected_chunks, strict=True):
        assert chunk.chunk_id == expected.chunk_id
        np.testing.assert_array_equal(chunk.present, expected.present)
        np.testing.assert_array_equal(chunk.data, expected.data)
        if chunk.extra is not None:
            np.testing.assert_array_equal(chunk.extra, expected.extra)
