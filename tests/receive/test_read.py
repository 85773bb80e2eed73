"""Some seconds in memory (`Receiver.read`), copies of chunks, and data that are overwritten when recycled."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterable

import numpy as np
import pytest

import speadrx
from recordings import (
    ANTENNAS,
    BATCHES,
    EPOCH,
    SAMPLES,
    STEP,
    TICK_RATE,
    TIME_ID,
    heaps_of,
    layout_of,
    receiver,
    status,
    value,
)
from speadrx import TimeAxis


def check(reading: speadrx.Reading, first: int, heaps: Iterable[tuple[int, int]], fill: int = 0) -> None:
    """Every element, by a formula of its own."""
    there = set(heaps)
    for i in range(len(reading.timestamp)):
        batch = first + i
        assert reading.timestamp[i] == batch * STEP
        assert reading.time[i] == np.datetime64(EPOCH * TICK_RATE + batch * STEP, "ms")
        for antenna in range(ANTENNAS):
            came = (batch, antenna) in there
            assert reading.present[i, antenna] == came
            wanted = [value(batch, antenna, sample) if came else fill for sample in range(SAMPLES)]
            assert reading.data[i, antenna].tolist() == wanted
            assert reading.extra["status"][i, antenna] == (status(batch, antenna) if came else 0)


class TestRead:
    def test_missing_heaps_and_chunks(self) -> None:
        heaps = heaps_of([5, 6, 9, 10, 11], missing=[(21, 0), (26, 2), (36, 1)])
        with receiver(layout_of(), heaps) as rx:
            reading = rx.read(chunks=6)
            check(reading, 20, heaps)
            assert reading.data.shape == (24, ANTENNAS, SAMPLES)
            assert reading.data.flags.c_contiguous
            assert (reading.dims, reading.present_dims) == (("time", "antenna", "sample"), ("time", "antenna"))
            assert reading.restarts == ()
            rest = rx.read(chunks=100)
            check(rest, 44, heaps)
            assert len(rest.timestamp) == BATCHES
            assert len(rx.read(chunks=1).timestamp) == 0
            assert rx.accounting.missing == 3 + 2 * BATCHES * ANTENNAS

    def test_a_reading_that_ends_in_a_gap(self) -> None:
        """The chunk after the gap is still to come, for a reading or for a loop."""
        heaps = heaps_of([0, 5, 6])
        with receiver(layout_of(), heaps) as rx:
            check(rx.read(chunks=3), 0, heaps)
            check(rx.read(chunks=1), 12, heaps)
            chunks = []
            for chunk in rx:
                with chunk:
                    chunks.append((chunk.timestamp, chunk.gap))
            assert chunks == [(5 * BATCHES * STEP, BATCHES), (6 * BATCHES * STEP, 0)]

    def test_a_gap_longer_than_others_are_given_out(self) -> None:
        heaps = heaps_of([0, 1500])
        with receiver(layout_of(), heaps) as rx:
            reading = rx.read(chunks=1600)
            check(reading, 0, heaps)
            assert len(reading.timestamp) == 1501 * BATCHES

    @pytest.mark.parametrize("seconds", [0.065, 0.128, np.float32(0.125)])
    def test_seconds_are_those_of_the_data(self, seconds: float) -> None:
        heaps = heaps_of(range(5))
        with receiver(layout_of(), heaps) as rx:
            reading = rx.read(seconds=seconds)
            check(reading, 0, heaps)
            assert len(reading.timestamp) == 2 * BATCHES

    def test_fill(self) -> None:
        heaps = heaps_of([0, 2], missing=[(1, 1)])
        with receiver(layout_of(), heaps, fill=-7) as rx:
            check(rx.read(chunks=3), 0, heaps, fill=-7)

    def test_stale_data_are_not_read(self) -> None:
        """With few chunks, each holds the data of an earlier one."""
        missing = [(batch, batch % ANTENNAS) for batch in range(0, 80, 5)]
        heaps = heaps_of(range(20), missing)
        with receiver(layout_of(), heaps, chunks=3) as rx:
            check(rx.read(chunks=20), 0, heaps)

    def test_time_that_begins_again(self) -> None:
        again = heaps_of([700, 701, 702]) + heaps_of([2, 3, 4])
        with receiver(layout_of(), again, max_jump=None) as rx:
            reading = rx.read(chunks=100)
        steps = np.diff(reading.timestamp)
        backward = np.flatnonzero(steps < 0) + 1
        assert reading.restarts == tuple(backward)
        assert len(reading.restarts) == 1

    @pytest.mark.parametrize("order", [("antenna", "time"), ("time", "antenna")])
    def test_other_orders(self, order: tuple[str, str]) -> None:
        axes = {"heap_shape": (SAMPLES,), "heap_axes": ("channel",)}
        layout = layout_of(order=order, samples_order=("channel", "time", "antenna"), **axes)
        heaps = heaps_of([0, 2], missing=[(1, 1)])
        with receiver(layout, heaps) as rx:
            reading = rx.read(chunks=3)
        assert reading.dims == ("channel", "time", "antenna")
        assert reading.present_dims == order
        there = set(heaps)
        for (sample, batch, antenna), given in np.ndenumerate(reading.data):
            assert given == (value(batch, antenna, sample) if (batch, antenna) in there else 0)
        present = np.moveaxis(reading.present, order.index("time"), 0)
        assert set(zip(*(axis.tolist() for axis in np.nonzero(present)), strict=True)) == there

    def test_packed_samples(self) -> None:
        layout = layout_of(dtype="int4", heap_bytes=2 * SAMPLES)
        heaps = heaps_of([0, 1], missing=[(1, 1)])
        with receiver(layout, heaps) as rx:
            reading = rx.read(chunks=2)
        assert (reading.data.dtype, reading.data.shape) == (np.int8, (8, ANTENNAS, 4 * SAMPLES))
        for batch, antenna in np.ndindex(8, ANTENNAS):
            raw = struct.pack(f">{SAMPLES}h", *(value(batch, antenna, i) for i in range(SAMPLES)))
            nibbles = [(byte >> shift & 15) for byte in raw for shift in (4, 0)]
            wanted = [n - 16 if n > 7 else n for n in nibbles] if (batch, antenna) in heaps else [0] * 4 * SAMPLES
            assert reading.data[batch, antenna].tolist() == wanted

    def test_no_time(self) -> None:
        layout = layout_of(time=TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES))
        with receiver(layout, heaps_of([0, 1])) as rx:
            with pytest.raises(ValueError, match="seconds: 1 needs a layout with a tick_rate"):
                rx.read(seconds=1)
            assert rx.read(chunks=2).time is None

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({}, ValueError, "wanted one of them"),
            ({"seconds": 1, "chunks": 1}, ValueError, "wanted one of them"),
            ({"chunks": 0}, ValueError, "chunks"),
            ({"chunks": 1.5}, TypeError, "chunks"),
            ({"seconds": 0}, ValueError, "above 0"),
            ({"seconds": float("nan")}, ValueError, "above 0"),
            ({"seconds": "1"}, TypeError, "wanted a number of seconds"),
            ({"chunks": 2**40}, MemoryError, "read: "),
        ],
    )
    def test_mistakes(self, arguments, error, message) -> None:
        with receiver(layout_of(), heaps_of([0, 1])) as rx:
            with pytest.raises(error, match=message):
                rx.read(**arguments)
            assert len(rx.read(chunks=2).timestamp) == 2 * BATCHES


class TestCopy:
    def test_it_outlives_its_chunk_and_receiver(self) -> None:
        heaps = heaps_of(range(20), missing=[(batch, 1) for batch in range(0, 80, 5)])
        copies = []
        with receiver(layout_of(), heaps, chunks=3) as rx:
            for chunk in rx:
                with chunk:
                    copies.append(chunk.copy())
        del rx, chunk
        for number, copy in enumerate(copies):
            assert copy.timestamp == number * BATCHES * STEP
            assert copy.time == np.datetime64(EPOCH * 1000 + copy.timestamp, "ms")
            assert copy.gap == 0
            for batch, antenna in zip(*np.nonzero(copy.present), strict=True):
                true = number * BATCHES + int(batch)
                wanted = [value(true, antenna, sample) for sample in range(SAMPLES)]
                assert copy.data[batch, antenna].tolist() == wanted
                assert copy.samples()[batch, antenna].tolist() == wanted
                assert copy.extra["status"][batch, antenna] == status(true, antenna)
        assert len(copies) == 20
        assert sum(int(copy.present.sum()) for copy in copies) == len(heaps)

    def test_a_chunk_in_a_ring(self) -> None:
        with receiver(layout_of(), heaps_of([0, 1])) as rx:
            chunk = next(iter(rx))
            chunk.recycle()
            with pytest.raises(ValueError, match="in a ring, or was recycled"):
                chunk.copy()


class TestOverwriting:
    """A loop that keeps references to data sees it at once."""

    @staticmethod
    def kept(**kwargs) -> tuple[np.ndarray, np.ndarray]:
        with receiver(layout_of(), heaps_of([0, 1, 2]), chunks=6, **kwargs) as rx:
            chunk = next(iter(rx))
            with chunk:
                data = chunk.data
                copy = data.copy()
            return data, copy

    def test_on_request(self) -> None:
        data, copy = self.kept(overwrite_recycled=True)
        assert (data.view(np.uint8) == 0x7F).all()
        assert copy[0, 0, 1] == value(0, 0, 1)

    def test_not_by_default(self) -> None:
        data, copy = self.kept(overwrite_recycled=False)
        np.testing.assert_array_equal(data, copy)

    @pytest.mark.parametrize("mode", ["", "1"])
    def test_development_mode(self, mode: str) -> None:
        program = "import speadrx, test_read; print((test_read.TestOverwriting.kept()[0].view('u1') == 0x7F).all())"
        paths = [os.path.dirname(__file__), *sys.path]
        environment = {**os.environ, "PYTHONDEVMODE": mode, "PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100, check=True
        )
        assert done.stdout.split() == [str(bool(mode))]
