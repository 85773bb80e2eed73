"""`Plan`: what a fleet receives, and what each of its receivers does, declared and checked before anything starts."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from speadrx.layout import presets
from speadrx.layout.base import DeclarativeLayout
from speadrx.layout.declaration import Layout
from speadrx.receive.checks import check_integer
from speadrx.receive.endpoints import format_endpoint, parse_endpoints
from speadrx.receive.receiver import Receiver

from .dealing import GROUP, Share, deal

#: Arguments of a receiver that a fleet gives itself.
_OWN = ("self", "layout", "sources", "labels", "stream_options")


class PlanError(ValueError):
    """A plan is not possible. The message names the field and its value, and says what would be right."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a fleet receives, who receives which part of it, and what each does with its chunks.

    Parameters
    ----------
    layout
        The layout of the whole stream.
    endpoints
        UDP endpoints, as text or texts, as for `Receiver`: ``"239.1.2.0+7:7148"``.
    deal
        How they are dealt out. ``"group"``: each brings a stream of its own, of the whole layout. The name of an axis:
        in order, they bring equal parts of it.
    shares
        How many receivers share them, in order and as evenly as possible. By default, one for each endpoint.
    resources
        What each receiver takes of its worker, by the names that workers give to what they have. By default, a ``NIC``.
    function
        Called with each `Chunk`, in the process that received it. What it returns travels to whoever has the fleet. It
        is a function, or where to find one: ``"module:name"``.
    record
        Where to record. With ``{share}`` in it, each receiver makes a recording of its own there, on its machine; a
        share that goes on elsewhere makes another one, with ``_2`` and so on in its name. Without, all write one
        recording, in a folder that all machines have, such as one on a network file system. That takes an axis.
    receiver
        More arguments of each `Receiver`, such as ``interface``, ``window`` or ``metrics_port``.
    report_seconds
        Time between reports.
    silent_seconds
        How long a worker may be silent before its shares are taken as lost, and go on elsewhere if there is room. By
        default 3 s, or four reports if that is longer.
    name
        For messages, and the label ``fleet`` of the receivers' own metrics.

    Raises
    ------
    PlanError
        If a field is wrong. The message names it and its value, and says what would be right.
    """

    layout: Layout
    endpoints: str | tuple[str, ...]
    deal: str = GROUP
    shares: int | None = None
    resources: Mapping[str, float] = field(default_factory=lambda: {"NIC": 1})
    function: Callable[[Any], Any] | str | None = None
    record: str | None = None
    receiver: Mapping[str, Any] = field(default_factory=dict)
    report_seconds: float = 0.5
    silent_seconds: float | None = None
    name: str = "fleet"

    def __post_init__(self) -> None:
        try:
            pairs = self._check()
            object.__setattr__(self, "_dealt", deal(self.layout, pairs, self.deal, self.shares, self.receiver))
        except (ValueError, TypeError) as exc:
            raise exc if isinstance(exc, PlanError) else PlanError(str(exc)) from None

    @property
    def dealt(self) -> tuple[Share, ...]:
        """The shares, in order."""
        dealt: tuple[Share, ...] = self._dealt  # type: ignore[attr-defined]
        return dealt

    @property
    def silence(self) -> float:
        """Seconds after which a silent worker is taken as lost."""
        return max(3.0, 4 * self.report_seconds) if self.silent_seconds is None else self.silent_seconds

    def _check(self) -> list[tuple[str, int]]:
        layout: Any = self.layout
        if not isinstance(layout, DeclarativeLayout):
            raise PlanError(f"layout: given {self.layout!r}, but wanted a declarative layout, such as Layout(...)")
        pairs = _check_endpoints(self.endpoints)
        if self.shares is not None:
            check_integer("shares", self.shares, 1)
        _check_resources(self.resources)
        _check_function(self.function)
        record: Any = self.record
        if record is not None and (not isinstance(record, str) or not record):
            raise PlanError(f"record: given {self.record!r}, but wanted a path, such as night.zarr")
        if record is not None and "{share}" not in record and self.deal == GROUP:
            raise PlanError(
                f"record: {self.record!r} must have {{share}} in it, such as night_{{share}}.zarr: with "
                "deal = 'group', each share has a stream of its own"
            )
        _check_options(self.receiver)
        _check_number("report_seconds", self.report_seconds, 0.05)
        if self.silent_seconds is not None:
            _check_number("silent_seconds", self.silent_seconds, 2 * self.report_seconds)
        name: Any = self.name
        if not isinstance(name, str) or not name:
            raise PlanError(f"name: given {self.name!r}, but wanted a few letters")
        return pairs

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan from a TOML file.

        Its ``layout`` is the path of a layout's file, seen from the plan's folder, or the name of one that comes with
        speadrx; ``set`` is a list of changes to it, such as ``["time.batches=64"]``.

        Raises
        ------
        PlanError
            If it is not TOML, or a field is wrong. The message names the file, the field and its value.
        OSError
            If it cannot be read.
        """
        import tomllib  # imported here because few programs need it

        path = os.fspath(path)
        try:
            with open(path, "rb") as file:
                table = tomllib.load(file)
            return cls(**_from_table(table, os.path.dirname(path)))
        except (ValueError, TypeError) as exc:  # tomllib's errors and ours
            raise PlanError(f"{path}: {exc}") from None


def _from_table(table: dict[str, Any], folder: str) -> dict[str, Any]:
    """The arguments of a plan, of a table in TOML."""
    known = {one.name for one in fields(Plan)} | {"set"}
    for name in table:
        if name not in known:
            raise PlanError(f"{name}: is no field of a plan; {_suggest(name, known)}")
    for name in ("layout", "endpoints"):
        if name not in table:
            raise PlanError(f"{name}: is missing")
    layout, changes = table.pop("layout"), table.pop("set", [])
    if not isinstance(layout, str):
        raise PlanError(f"layout: given {layout!r}, but wanted the path of a file, or a layout that comes with speadrx")
    if not isinstance(changes, list) or not all(isinstance(change, str) for change in changes):
        raise PlanError(f"set: given {changes!r}, but wanted a list of changes, such as ['time.batches=64']")
    where = layout if layout in presets.names() else os.path.join(folder, layout)
    try:
        table["layout"] = presets.load(where, changes)
    except OSError as exc:
        raise PlanError(f"layout: {where}: {exc.strerror or exc}") from None
    except ValueError as exc:
        raise PlanError(f"layout: {exc}") from None
    endpoints = table["endpoints"]
    # Others are shown as they are in the file.
    if isinstance(endpoints, list) and endpoints and all(isinstance(text, str) for text in endpoints):
        table["endpoints"] = tuple(endpoints)
    return table


def _suggest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]}?" if close else f"its fields are {', '.join(sorted(known))}"


def _check_endpoints(endpoints: Any) -> list[tuple[str, int]]:
    texts = (endpoints,) if isinstance(endpoints, str) else endpoints
    if not isinstance(texts, (tuple, list)) or not texts or not all(isinstance(text, str) for text in texts):
        raise PlanError(f"endpoints: given {endpoints!r}, but wanted UDP endpoints, such as '239.1.2.0+7:7148'")
    try:
        pairs = [pair for text in texts for pair in parse_endpoints(text)]
    except ValueError as exc:
        raise PlanError(f"endpoints: {str(exc).removeprefix('endpoint: ')}") from None
    seen: set[tuple[str, int]] = set()
    for pair in pairs:
        if pair in seen:
            raise PlanError(f"endpoints: {format_endpoint(*pair)} is there twice: leave one of them out")
        seen.add(pair)
    return pairs


def _check_number(name: str, value: Any, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not least <= float(value) < math.inf:
        raise PlanError(f"{name}: given {value!r}, but wanted a number of at least {least}")


def _check_resources(resources: Any) -> None:
    if not isinstance(resources, Mapping) or not all(isinstance(name, str) and name for name in resources):
        raise PlanError(f"resources: given {resources!r}, but wanted numbers by name, such as NIC = 1")
    for name, amount in resources.items():
        _check_number(f"resources.{name}", amount, 0)


def _check_function(function: Any) -> None:
    if function is None or callable(function):
        return
    module, _, name = function.partition(":") if isinstance(function, str) else ("", "", "")
    parts = [*module.split("."), *name.split(".")]
    if not all(part.isidentifier() for part in parts):
        raise PlanError(
            f"function: given {function!r}, but wanted a function, or where it is, such as 'night:spectrum'"
        )


def _check_options(options: Any) -> None:
    if not isinstance(options, Mapping):
        raise PlanError(f"receiver: given {options!r}, but wanted arguments of a Receiver, such as window = 4")
    known = set(inspect.signature(Receiver.__init__).parameters) - set(_OWN)
    for name in options:
        if name not in known:
            raise PlanError(f"receiver.{name}: is no argument of a Receiver that a plan takes; {_suggest(name, known)}")
