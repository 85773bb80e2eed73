"""Simulated senders tell the time as the layout says, and receivers find it again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import spead2

import speadrx
from speadrx import Axis, Layout, TimeAxis
from speadrx.simulate import Simulator
from speadrx.simulate.sinks import InprocSink

IDS = (0x1600, 0x1601, 0x1602)


def layout_of(axis: dict[str, Any], **time: Any) -> Layout:
    return Layout(
        heap_bytes=64,
        time=TimeAxis(**{"item": 0x1600, "step": 1000, "batches": 4, **time}),
        axes=(Axis(**{"name": "source", **axis}),),
        sources="source",
    )


@pytest.mark.parametrize(
    ("first", "axis", "time"),
    [
        (1_000_123, {}, {"origin": "first"}),
        (1_000_123, {}, {"origin": 123}),
        (2**48 - 40_000 + 8, {}, {"origin": "first"}),
        (500_007, {}, {"phases": (7, 900, 450)}),
        (500_007, {}, {"phases": (7, 900, 450), "align": "floor"}),
        (500_000, {}, {"phases": "first"}),
        (2**40 - 40_000, {}, {"bits": 40, "step": 1024, "origin": "first"}),
        (640_000, {}, {"shift": 8, "mask": 2**32 - 1, "bits": 32}),
        (500_000, {"present_items": IDS}, {"item": IDS}),
        (500_000, {"present_items": (0x20, 0x30, 0x40)}, {"item": IDS}),
        (77, {"item": 0x4101, "size": 3}, {"item": 1, "step": 1}),
    ],
)
def test_what_is_sent_is_received(first: int, axis: dict[str, Any], time: dict[str, Any]) -> None:
    layout = layout_of(axis or {"item": 0x4101, "size": 3}, **time)
    simulator = Simulator(layout, first_timestamp=first, seed=3)
    queue = spead2.InprocQueue()
    simulator.send(InprocSink(queue), 80)
    queue.stop()
    present = 0
    with speadrx.Receiver(layout, queue) as receiver:
        for chunk in receiver:
            with chunk:
                here = np.array(chunk.present, bool).reshape(layout.present_shape)
                expected = simulator.chunk_data(chunk.timestamp)
                assert np.array_equal(np.array(chunk.data).reshape(expected.shape)[here], expected[here])
                assert (chunk.timestamp - first) % layout.time.step == 0
                present += int(here.sum())
    assert present == 240


@pytest.mark.parametrize(("first", "time"), [(5, {}), (1000, {"origin": 5}), (-1, {"origin": "first"})])
def test_no_batch_begins_then(first: int, time: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"first_timestamp: {first} must be a multiple"):
        Simulator(layout_of({"item": 0x4101, "size": 3}, **time), first_timestamp=first)
