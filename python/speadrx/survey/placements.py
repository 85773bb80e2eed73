"""Placements of any origin that are called on item sets as spead2 calls them: of layouts, and foreign callbacks."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import spead2.recv

from speadrx import _core
from speadrx.layout.base import STAT_PREFIX, DeclarativeLayout
from speadrx.layout.user_data import user_data_values
from speadrx.receive.settings import window_of

#: Statistics that a foreign callback may count, if their names are not known.
_UNNAMED_STATISTICS = 32
#: Statistics that our own callback counts after its reasons.
_MORE_STATISTICS = ("control", "too_old", "rejected")
#: Buffers that a callback must not have written to, in the order of the bits that say so.
_BUFFERS = (
    "the struct that it is called with",
    "items",
    "the packet",
    "batch_stats",
    "extra",
)
#: Bits of a value in the flavour 64-48.
_ADDRESS_BITS = 48

_TOLD = np.dtype(
    [
        *((name, np.int64) for name in ("chunk", "index", "offset", "extra_offset", "extra_size")),
        *((name, np.int64) for name in ("statistic", "by", "changed", "overrun")),
    ]
)


@dataclass(frozen=True)
class Outcomes:
    """What a placement did with heaps: arrays with an element for each.

    Attributes
    ----------
    told
        What the callback said and counted. Chunks are counted from time 0; -1 for a rejected heap.
    extra
        The bytes of side items: a row for each heap.
    """

    told: np.ndarray
    extra: np.ndarray

    @property
    def placed(self) -> np.ndarray:
        """Whether each heap was placed."""
        return self.told["chunk"] >= 0

    def take(self, heaps: np.ndarray) -> Outcomes:
        """Return some of them."""
        return Outcomes(self.told[heaps], self.extra[heaps])


class Placement:
    """A placement that can be called.

    Attributes
    ----------
    name
        What messages call it.
    items
        IDs of the items that it asks for, in order.
    extra_bytes
        Room that it has for side items.
    reads
        Fields of user data that it has been given.
    """

    reads: set[str]

    def __init__(self, name: str, items: Sequence[int], extra_bytes: int, statistics: Sequence[str], base: int) -> None:
        self.name = name
        self.items = tuple(items)
        self.extra_bytes = extra_bytes
        self._statistics = tuple(statistics)
        self._base = base
        self._counted = base + len(self._statistics)

    def start(self) -> Run:
        """Begin with the first heap."""
        raise NotImplementedError

    def reason(self, statistic: int, by: int, changed: int) -> str:
        """Name what a heap was counted as."""
        if statistic < 0:
            return "not counted"
        name = f"statistic {statistic - self._base}"
        if 0 <= statistic - self._base < len(self._statistics):
            name = self._statistics[statistic - self._base]
        name += f", {by} times" if by != 1 and changed == 1 else ""
        return name + (f" and {changed - 1} more" if changed > 1 and name not in _MORE_STATISTICS else "")

    def overruns(self, outcomes: Outcomes) -> dict[str, np.ndarray]:
        """Find what the callback should not have done, and the heaps."""
        bits = outcomes.told["overrun"]
        found = {f"wrote outside {name}": np.flatnonzero(bits >> bit & 1) for bit, name in enumerate(_BUFFERS)}
        found["has more bytes in extra than there is room for"] = np.flatnonzero(
            (outcomes.told["extra_size"] > self.extra_bytes) & outcomes.placed
        )
        return {what: heaps for what, heaps in found.items() if heaps.size}


class Run:
    """A placement at work on the heaps of a stream, in order."""

    def __init__(self, placement: Placement, capsule: object) -> None:
        self._placement = placement
        self._capsule = capsule

    def place(self, rows: np.ndarray) -> Outcomes:
        """Place heaps."""
        owner = self._placement
        told, extra = _core.place_heaps(self._capsule, *_arguments(owner, rows))
        outcomes = Outcomes(
            np.frombuffer(bytearray(told), _TOLD), np.frombuffer(extra, np.uint8).reshape(len(rows), owner.extra_bytes)
        )
        self._number(outcomes.told["chunk"])
        return outcomes

    def time(self, rows: np.ndarray) -> int:
        """Place heaps, and return how many nanoseconds it took."""
        return _core.time_heaps(self._capsule, *_arguments(self._placement, rows))

    def _number(self, chunks: np.ndarray) -> None:
        """Turn chunk IDs into numbers of chunks from time 0, in place."""


def time_nothing(placement: Placement, rows: np.ndarray) -> int:
    """Return how many nanoseconds it takes to call a function that does nothing, as a placement is called."""
    return _core.time_heaps(None, *_arguments(placement, rows))


def _arguments(placement: Placement, rows: np.ndarray) -> tuple[bytes, int, bytes, int, int]:
    items = placement.items
    packets = _packets(items, rows)
    return rows.tobytes(), len(items), packets.tobytes(), placement._counted, placement.extra_bytes


def _packets(items: Sequence[int], rows: np.ndarray) -> np.ndarray:
    """Make a packet of each heap: its header and items, those that are absent as padding; there is no payload."""
    packets = np.zeros((len(rows), 1 + len(items)), ">u8")
    packets[:, 0] = 0x53 << 56 | 4 << 48 | 2 << 40 | 6 << 32 | len(items)
    pointers = np.array([1 << 63 | item << _ADDRESS_BITS for item in items], np.uint64)
    values = rows.astype(np.uint64) & np.uint64((1 << _ADDRESS_BITS) - 1)
    packets[:, 1:] = np.where(rows < 0, np.uint64(1 << 63), pointers | values)
    return packets


class LayoutPlacement(Placement):
    """The placement of a layout.

    Parameters
    ----------
    layout
        The layout.
    name
        What messages call it.
    user_data
        Fields that it may read.
    window
        Chunks of its window (default: that of a stream).
    """

    def __init__(self, layout: DeclarativeLayout, name: str, user_data: Mapping[str, int], window: int | None) -> None:
        compiled = layout.declaration._compiled
        reasons = [reason.removeprefix(STAT_PREFIX) for reason in layout.stream_stats]
        super().__init__(name, layout.spead_items, layout.max_heap_extra, [*reasons, *_MORE_STATISTICS], 0)
        self.layout = layout
        self.window = window_of(layout, window, None, None)
        self._stats = (0, len(reasons))
        known = (*compiled.user_data_fields, *compiled.optional_user_data_fields)
        self.reads = {field for field in user_data if field in known}
        self._geometry = compiled.geometry(user_data_values(layout, _record({f: user_data[f] for f in self.reads})))

    def start(self) -> Run:  # noqa: D102
        return _LayoutRun(self)

    @property
    def begins_anywhere(self) -> bool:
        """Whether its first heap says where time begins."""
        time = self.layout.declaration.time
        return time.origin == "first" or time.phases == "first"


class _LayoutRun(Run):
    def __init__(self, placement: LayoutPlacement) -> None:
        window = placement.window
        compiled = placement.layout.declaration._compiled
        self._group = compiled.group(window=window, reach=window, resync=True)
        made = placement._geometry.placement(window=window, stats=placement._stats, group=self._group)
        super().__init__(placement, made.capsule())

    def _number(self, chunks: np.ndarray) -> None:
        ids, inverse = np.unique(chunks, return_inverse=True)
        # Chunk IDs go on where time begins again, and numbers do not.
        numbers = [self._group.locate(int(chunk))[0] if chunk >= 0 else -1 for chunk in ids]
        chunks[:] = np.array(numbers, np.int64)[inverse]


class ForeignPlacement(Placement):
    """A callback that is not ours.

    Parameters
    ----------
    callback
        An object with an ``address``, such as the ``CFunc`` of numba; a capsule; a tuple whose first element is one,
        such as scipy's ``LowLevelCallable``; or an object whose ``chunk_place`` returns one of these. It is kept alive.
    name
        What messages call it.
    items
        IDs of the items that it asks for, in order.
    user_data
        Fields of the record that it is called with, besides ``stats_base``, in order.
    statistics
        Names of what it counts, from ``stats_base`` on (default: numbers).
    extra_bytes
        Room for side items.

    Raises
    ------
    ValueError, TypeError
        If it is none of these, or reads fields that were not given.
    """

    def __init__(
        self,
        callback: Any,
        name: str,
        *,
        items: Sequence[int],
        user_data: Mapping[str, int],
        statistics: Sequence[str] | None,
        extra_bytes: int,
    ) -> None:
        base = spead2.recv.StreamConfig().next_stat_index()
        names = statistics or [f"statistic {i}" for i in range(_UNNAMED_STATISTICS)]
        super().__init__(name, items, extra_bytes, names, base)
        self.reads = set(user_data)
        self._kept = (callback, record := _foreign_record(callback, name, base, user_data))
        self._capsule, self._made = _capsule_of(callback, name, base, record)

    def start(self) -> Run:  # noqa: D102
        return Run(self, self._capsule)


def _record(fields: Mapping[str, int]) -> np.ndarray:
    record = np.zeros((), [(field, np.uintp) for field in ("stats_base", *fields)])
    for field, value in fields.items():
        if not 0 <= value < 1 << 64:
            raise ValueError(f"user_data[{field!r}]: {value} does not fit 64 bits")
        record[field] = value
    return record


def _foreign_record(callback: Any, name: str, base: int, fields: Mapping[str, int]) -> np.ndarray:
    """The record that a callback is called with: with the fields that it was compiled for, if it shows them."""
    dtype = _compiled_for(callback)
    if dtype is None or dtype.names is None:
        record = _record(fields)
    else:
        record = np.zeros((), dtype)
        for field in dtype.names:
            if field != "stats_base" and field not in fields:
                raise ValueError(f"user_data: {name} reads the field {field!r}, and it was not given")
        for field, value in fields.items():
            if field in dtype.names:
                record[field] = value
    if "stats_base" in (record.dtype.names or ()):
        record["stats_base"] = base
    return record


def _compiled_for(callback: Any) -> np.dtype | None:
    """The record type of the third argument of a numba callback, as far as numba shows it."""
    own = getattr(callback, "_chunk_place", callback)
    with contextlib.suppress(AttributeError, IndexError, TypeError):
        found: np.dtype = np.dtype(own._sig.args[2].dtype.dtype)
        return found
    return None


def _capsule_of(callback: Any, name: str, base: int, record: np.ndarray) -> tuple[object, object]:
    """The capsule of a callback, and what it needs to live."""
    made = callback
    if callable(getattr(callback, "chunk_place", None)):
        parameters = inspect.signature(callback.chunk_place).parameters
        made = callback.chunk_place(base if "stats_base" in parameters else record)
    else:
        made = getattr(callback, "_chunk_place", callback)
    address = getattr(made, "address", None)
    if isinstance(address, int):
        return _core.foreign_capsule(address, record.ctypes.data), made
    # scipy's tuple does not let itself be indexed.
    capsule = tuple.__getitem__(made, 0) if isinstance(made, tuple) and len(made) else made
    if type(capsule).__name__ == "PyCapsule":
        return capsule, made
    raise TypeError(
        f"{name}: is of type {type(callback).__name__}, but wanted a layout or a placement callback: an object with an "
        "address (a numba cfunc), a capsule, a tuple that begins with one (scipy's LowLevelCallable), or an object "
        "with chunk_place or _chunk_place"
    )
