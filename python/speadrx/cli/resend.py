"""Sends a recording as the SPEAD stream that it was: what `speadrx replay` does with one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import click
import numpy as np
from click.core import ParameterSource
from rich.console import Console

from speadrx._words import counted
from speadrx.record.recording import RecordedPart, Recording
from speadrx.simulate import Simulator, Sink, Truth, UdpSink, WallClock
from speadrx.simulate.pacing import Clock

from .interrupt import interruptible
from .parameters import UnusableError, describe, naming_options
from .progress import PolledProgress
from .send import truth_report
from .tables import printable

#: Options of replay that have a meaning for a recording.
_OPTIONS = {"path", "endpoints", "pace", "user_data", "as_json"}
#: Seconds between looks for an interruption, during a gap.
_LOOK = 0.2


class Resender:
    """Sends a recording: chunk by chunk, with the items and bytes that the heaps had.

    Parameters
    ----------
    recording
        The recording.
    user_data
        Which index to send of each axis that heaps do not tell.

    Raises
    ------
    ValueError
        If it holds nothing, or a stream of its layout cannot be made.
    """

    def __init__(self, recording: Recording, user_data: Mapping[str, int] | None = None) -> None:
        self._recording = recording
        layout = recording.layout
        #: The parts of the recording.
        self.parts = [recording.part(number) for number in range(len(recording.attributes["parts"]))]
        if not self.parts:
            raise ValueError(f"{recording.path} holds nothing: no heap had come when it was written")
        self._first_batch = 0
        #: The arrays of the chunk that is sent, by name; the time is their first axis.
        self._arrays: dict[str, np.ndarray] = {}
        self._simulator = Simulator(
            layout,
            first_timestamp=self.parts[0].attributes["first_timestamp"],
            present=lambda batch, indices: bool(self._read("present", batch, indices)),
            payload=lambda batch, indices: self._read("data", batch, indices).tobytes(),
            side_values={name: self._side(array.name) for name, array in recording.stored.side.items()},
            user_data=user_data,
        )
        self._places = {indices: self._place(indices) for indices in self._simulator.indices}

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
            expected = 0
            for number in part.chunks():
                if pace is not None and rate is not None and expected:
                    _wait(clock, (number - expected) * step / rate / pace, stop)
                if stop():
                    return
                self._simulator.go_to(part.attributes["first_timestamp"] + number * step)
                self._load(part, number)
                self._simulator.send(sink, layout.chunk_batches, speed=pace, clock=clock)
                expected = number + 1

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
    path: str, endpoints: list[tuple[str, int]], *, pace: float | None, user_data: Mapping[str, int], as_json: bool
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
            resender = Resender(recording, user_data)
        except ModuleNotFoundError as exc:
            raise UnusableError(str(exc)) from None
    where = describe(endpoints)
    console = Console(highlight=False, quiet=as_json)
    console.print(printable(f"Sending {path} to {where}, {'as fast as possible' if pace is None else f'{pace:g}x'}."))
    start = time.perf_counter()
    try:
        with naming_options(), UdpSink(endpoints) as sink:
            _send(resender, sink, pace)
    except OSError as exc:
        raise UnusableError(f"cannot send to {where}: {exc.strerror or exc}") from None
    truth = resender.truth
    if as_json:
        about = {"file": path, "destination": where, "pace": pace, "seconds": time.perf_counter() - start}
        click.echo(json.dumps({**about, "truth": truth_report(truth, recording.layout.source_labels)}))
    amount = f"{counted(truth.copies, 'heap')} in {counted(truth.packets, 'packet')}, {truth.bytes / 1e6:,.1f} MB"
    console.print(printable(f"Sent to {where}: {amount}."))


def _send(resender: Resender, sink: Sink, pace: float | None) -> None:
    total = sum(len(part.chunks()) for part in resender.parts) * resender.parts[0].recording.layout.chunk_heaps
    truth = resender.truth
    with interruptible() as interrupted:

        def poll() -> tuple[float, str]:
            return sum(truth.sent) + sum(truth.lost), counted(truth.copies, "heap")

        with PolledProgress(total, poll):
            resender.send(sink, pace=pace, stop=interrupted.is_set)
