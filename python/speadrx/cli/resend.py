"""Sends a recording as the SPEAD stream that it was: what `speadrx replay` does with one."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import click
import numpy as np
from click.core import ParameterSource
from rich.console import Console

from speadrx._words import counted
from speadrx.layout.items import TIMESTAMP_BITS
from speadrx.receive.control import control_item, mark
from speadrx.record.output import MOST_GAP_BATCHES
from speadrx.record.recording import RecordedPart, Recording
from speadrx.simulate import Simulator, Sink, Truth, UdpSink, WallClock
from speadrx.simulate.pacing import Clock

from .interrupt import interruptible
from .parameters import UnusableError, describe, naming_options
from .progress import PolledProgress
from .send import truth_report
from .tables import printable

#: Options of replay that have a meaning for a recording.
_OPTIONS = {"path", "endpoints", "pace", "user_data", "marks", "as_json"}
#: Seconds between looks for an interruption, during a gap.
_LOOK = 0.2
#: Seconds between parts, and over gaps if there is no pace: by then receivers that read several sockets have read what
#: came before.
_BREAK = 0.1


class _Senders(Simulator):
    """Senders whose heaps have more items than the layout says."""

    #: The UTC at tick 0, and the mark, of all heaps that are sent now.
    utc: Mapping[int, int] = {}
    mark: Mapping[int, int] = {}

    def items(self, batch: int, indices: tuple[int, ...]) -> dict[int, int]:
        return {**super().items(batch, indices), **self.utc, **self.mark}


class Resender:
    """Sends a recording: chunk by chunk, with the items and bytes that the heaps had.

    Parameters
    ----------
    recording
        The recording.
    user_data
        Which index to send of each axis that heaps do not tell.
    marks
        Whether heaps are marked before which something is missing, or time begins again, so that a receiver of speadrx
        goes there at once. They have one item more then.

    Raises
    ------
    ValueError
        If it holds nothing, or a stream of its layout cannot be made.
    """

    def __init__(self, recording: Recording, user_data: Mapping[str, int] | None = None, *, marks: bool = True) -> None:
        self._recording, self._marks = recording, marks
        layout = recording.layout
        time_axis = layout.time
        if time_axis.phases == "first":  # which nobody has recorded, and which would move the origin
            time_axis = dataclasses.replace(time_axis, phases=None, origin=time_axis.origin or "first")
        #: The parts of the recording.
        self.parts = [recording.part(number) for number in range(len(recording.attributes["parts"]))]
        if not self.parts:
            raise ValueError(f"{recording.path} holds nothing: no heap had come when it was written")
        self._first_batch = 0
        #: The arrays of the chunk that is sent, by name; the time is their first axis.
        self._arrays: dict[str, np.ndarray] = {}
        self._simulator = _Senders(
            dataclasses.replace(layout, time=time_axis),
            first_timestamp=self.parts[0].attributes["first_timestamp"],
            present=lambda batch, indices: bool(self._read("present", batch, indices)),
            payload=lambda batch, indices: self._read("data", batch, indices).tobytes(),
            side_values={name: self._side(array.name) for name, array in recording.stored.side.items()},
            user_data=user_data,
        )
        self._places = {indices: self._place(indices) for indices in self._simulator.indices}
        self._sent = tuple(np.array([place for place in self._places.values() if place is not None]).T)
        self._mark_item = control_item(layout.spead_items)
        self._time_bits = layout.time.bits or TIMESTAMP_BITS
        #: The timestamp of the last batch that was sent, and whether something was missing in its chunk.
        self._before: int | None = None
        self._lacked = False

    @property
    def truth(self) -> Truth:
        """What has been sent so far. What is missing in chunks of the recording counts as lost."""
        return self._simulator.truth

    def send(
        self,
        sink: Sink,
        *,
        pace: float | None = None,
        stop: Callable[[], bool] = lambda: False,
        clock: Clock | None = None,
    ) -> None:
        """Send all of it.

        Parameters
        ----------
        sink
            Where packets go.
        pace
            How many times faster than it was, as its timestamps say. By default, as fast as possible, without gaps.
        stop
            Called before each chunk, and often in gaps. If it returns True, sending ends.
        clock
            The clock for `pace`. The default is a `WallClock`.
        """
        layout = self._recording.layout
        clock = WallClock() if clock is None else clock
        step, rate = layout.chunk_timestamp_step, layout.time.tick_rate
        for part in self.parts:
            self._simulator.utc = self._utc(part)
            expected: int | None = None
            for number in part.chunks():
                seconds = 0.0 if self._before is None or number == expected else _BREAK
                if pace is not None and rate is not None and expected is not None:
                    seconds = (number - expected) * step / rate / pace
                _wait(clock, seconds, stop)
                if stop():
                    return
                timestamp = part.attributes["first_timestamp"] + number * step
                self._simulator.go_to(timestamp)
                self._load(part, number)
                begins = expected is None and self._begins(timestamp)
                self._mark(timestamp, goes_on=number == expected, begins=begins)
                self._simulator.send(sink, layout.chunk_batches, speed=pace, clock=clock)
                expected = number + 1

    def _utc(self, part: RecordedPart) -> dict[int, int]:
        """The item that tells the UTC at tick 0, if the layout has one and it was known."""
        item, rate, utc = self._recording.layout.time.epoch_item, self._recording.layout.time.tick_rate, part.utc(0)
        if item is None or rate is None or utc is None:
            return {}
        since = part.attributes["first_timestamp"] / Fraction(rate)
        return {item: round(Fraction(int(utc.astype(np.int64)), 10**9) - since)}

    def _begins(self, timestamp: int) -> bool:
        """Whether time began again with a part; otherwise it is one because the gap was too long for an array."""
        recording, before = self._recording, self._before
        if before is None:
            return False
        if timestamp - before <= MOST_GAP_BATCHES * recording.layout.time.step:
            return True
        restarts = (recording.attributes.get("account") or {}).get("restarts")
        if restarts is not None and not 0 < restarts < len(self.parts) - 1:
            return bool(restarts)
        return not timestamp >> self._time_bits  # as a rule, time begins again before it wraps

    def _mark(self, timestamp: int, *, goes_on: bool, begins: bool) -> None:
        """Mark the heaps of the chunk that is sent next, if a receiver might not go there at once."""
        present = self._arrays["present"][(slice(None), *self._sent)]
        counts = np.count_nonzero(present.reshape(len(present), -1), axis=1)
        (batches,) = np.nonzero(counts)
        if not len(batches):
            return
        every, before = len(self._simulator.indices), self._before
        is_first = before is None and not timestamp >> self._time_bits
        is_needed = self._lacked or counts[batches[0]] < every or not (goes_on or is_first)
        value = mark(timestamp if before is None else before, begins=begins, bits=self._time_bits)
        self._simulator.mark = {self._mark_item: value} if is_needed and self._marks else {}
        self._lacked = bool((counts < every).any())
        self._before = timestamp + int(batches[-1]) * self._recording.layout.time.step

    def _load(self, part: RecordedPart, number: int) -> None:
        """Read a chunk."""
        stored, layout = self._recording.stored, self._recording.layout
        self._first_batch = part.attributes["first_timestamp"] // layout.time.step + number * layout.chunk_batches
        for array in stored.arrays:
            self._arrays[array.name] = np.moveaxis(part.read(array, number), stored.time_axis, 0)

    def _place(self, indices: tuple[int, ...]) -> tuple[int, ...] | None:
        """Where the heaps with these indices are in a batch of an array; None if they were not selected."""
        layout, select = self._recording.layout, self._recording.select
        by_name = dict(zip((axis.name for axis in layout.axes), indices, strict=True))
        place = []
        for axis, name in enumerate(layout.axis_names):
            if name == layout.time.name:
                continue
            chosen = select.get(axis)
            if chosen is not None and by_name[name] not in chosen:
                return None
            place.append(by_name[name] if chosen is None else chosen.index(by_name[name]))
        return tuple(place)

    def _read(self, name: str, batch: int, indices: tuple[int, ...]) -> Any:
        """What an array of the chunk has for a heap."""
        place = self._places[indices]
        return np.False_ if place is None else self._arrays[name][(batch - self._first_batch, *place)]

    def _side(self, name: str) -> Callable[[int, tuple[int, ...]], int]:
        # The simulator tries a heap before there is a chunk.
        return lambda batch, indices: int(self._read(name, batch, indices)) if self._arrays else 0


def _wait(clock: Clock, seconds: float, stop: Callable[[], bool]) -> None:
    """Let a gap pass."""
    end = clock.now() + seconds
    while clock.now() < end and not stop():
        clock.wait_until(min(clock.now() + _LOOK, end))


def resend(
    path: str,
    endpoints: list[tuple[str, int]],
    *,
    pace: float | None,
    user_data: Mapping[str, int],
    marks: bool,
    as_json: bool,
) -> None:
    """Send a recording over UDP, and say what was sent.

    Raises
    ------
    click.UsageError, UnusableError
        If options do not fit, the recording cannot be read or sent, or the network cannot be used.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if given and parameter.name not in _OPTIONS:
            raise click.BadParameter("has no meaning for a recording, which is sent as it is", param=parameter)
    if not endpoints:
        raise click.UsageError(f"where to send {path}? Wanted --to ENDPOINTS, such as --to 239.1.2.3+3:7148")
    with naming_options():
        recording = Recording(path)
        tick_rate = recording.layout.time.tick_rate
        if pace is not None and tick_rate is None:
            raise click.UsageError(f"--pace needs a tick_rate, which the layout of {path} does not have")
        if pace is None and tick_rate is not None:
            pace = 1.0
        try:
            resender = Resender(recording, user_data, marks=marks)
        except ModuleNotFoundError as exc:
            raise UnusableError(str(exc)) from None
    where = describe(endpoints)
    console = Console(highlight=False, quiet=as_json)
    console.print(printable(f"Sending {path} to {where}, {'as fast as possible' if pace is None else f'{pace:g}x'}."))
    start = time.perf_counter()
    try:
        with naming_options(), UdpSink(endpoints) as sink:
            interrupted = _send(resender, sink, pace)
    except OSError as exc:
        raise UnusableError(f"cannot send to {where}: {exc.strerror or exc}") from None
    truth = resender.truth
    if as_json:
        about = {"file": path, "destination": where, "pace": pace, "seconds": time.perf_counter() - start}
        click.echo(json.dumps({**about, "truth": truth_report(truth, recording.layout.source_labels)}))
    amount = f"{counted(truth.copies, 'heap')} in {counted(truth.packets, 'packet')}, {truth.bytes / 1e6:,.1f} MB"
    console.print(printable(f"Sent to {where}: {amount}."))
    if not truth.copies and not interrupted:
        click.echo(f"{path} has no heap.", err=True)
        context.exit(1)


def _send(resender: Resender, sink: Sink, pace: float | None) -> bool:
    """Send it, and return whether it was interrupted."""
    total = sum(len(part.chunks()) for part in resender.parts) * resender.parts[0].recording.layout.chunk_heaps
    truth = resender.truth
    with interruptible() as interrupted:

        def poll() -> tuple[float, str]:
            return sum(truth.sent) + sum(truth.lost), counted(truth.copies, "heap")

        with PolledProgress(total, poll):
            resender.send(sink, pace=pace, stop=interrupted.is_set)
        return interrupted.is_set()
