"""Deals the endpoints of a plan out to shares, each with the layout of what its endpoints bring."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speadrx.layout.declaration import Axis, Layout
from speadrx.receive import settings
from speadrx.receive.checks import check_integer
from speadrx.receive.endpoints import deal_out

#: Each endpoint brings a stream of its own, of the whole layout.
GROUP = "group"


@dataclass(frozen=True)
class Share:
    """What one receiver of a fleet receives."""

    name: str
    layout: Layout
    endpoints: tuple[tuple[str, int], ...]
    #: The axis of the whole layout that was cut, and the first of its indices and the one after the last.
    axis: str | None
    first: int
    end: int
    #: Threads that receive.
    threads: int
    #: Bytes of chunks and socket buffers.
    memory: int


def deal(
    layout: Layout, pairs: Sequence[tuple[str, int]], by: str, shares: int | None, options: Mapping[str, Any]
) -> tuple[Share, ...]:
    """Deal endpoints out in order, and as evenly as possible.

    Parameters
    ----------
    layout
        The layout of the whole stream.
    pairs
        Host and port of each endpoint.
    by
        `GROUP`, or the name of an axis, of which each endpoint brings an equal part.
    shares
        Number of shares; None for one for each endpoint.
    options
        Arguments of each receiver.

    Raises
    ------
    ValueError, TypeError
        If that is not possible. The message names the field of the plan and its value.
    """
    n = len(pairs) if shares is None else shares
    if n > len(pairs):
        raise ValueError(f"shares: {n} have only {len(pairs)} endpoints to receive from: wanted one each")
    axis = None if by == GROUP else _axis(layout, by, len(pairs))
    width = 0 if axis is None else _size(axis) // len(pairs)
    dealt, done = [], 0
    for number, part in enumerate(deal_out(list(pairs), n)):
        first, end = done * width, (done + len(part)) * width
        done += len(part)
        cut_layout = layout if axis is None else _cut(layout, axis, first, end)
        threads, memory = _costs(cut_layout, options)
        if threads > len(part):
            raise ValueError(
                f"receiver.threads: {threads} have only {len(part)} endpoints to receive from, in share {number}: "
                "wanted one each"
            )
        name = str(number).zfill(len(str(n - 1)))
        dealt.append(
            Share(name, cut_layout, tuple(part), None if axis is None else axis.name, first, end, threads, memory)
        )
    return tuple(dealt)


def _axis(layout: Layout, name: str, n_endpoints: int) -> Axis:
    """The axis to cut, if it can be cut evenly."""
    axes = {axis.name: axis for axis in layout.axes}
    if name not in axes:
        wanted = ", ".join(map(repr, [GROUP, *axes]))
        raise ValueError(f"deal: {name!r} is neither 'group' nor an axis of the layout: wanted one of {wanted}")
    axis = axes[name]
    if axis.from_user_data is not None:
        raise ValueError(f"deal: the index on the axis {name!r} is the same for a whole stream: wanted 'group'")
    if _size(axis) % n_endpoints:
        raise ValueError(
            f"deal: the axis {name!r} has {_size(axis)} indices, which {n_endpoints} endpoints cannot bring in equal "
            "parts: wanted an axis whose size is a multiple of their number"
        )
    for field, value in (("origin", layout.time.origin), ("phases", layout.time.phases)):
        if value == "first":
            raise ValueError(
                f"layout: time.{field} 'first' is another time for each share: wanted what the senders have"
            )
    return axis


def _size(axis: Axis) -> int:
    listed = axis.values or axis.payload_items or axis.present_items
    return len(listed) if listed else axis.size or 0


def _cut(layout: Layout, axis: Axis, first: int, end: int) -> Layout:
    """The layout of some indices of an axis."""
    cut = slice(first, end)
    if axis.payload_items:
        part = dataclasses.replace(axis, payload_items=axis.payload_items[cut])
    elif axis.present_items:
        part = dataclasses.replace(axis, present_items=axis.present_items[cut])
    else:
        values = axis.values or tuple(axis.step * i for i in range(axis.size or 0))
        part = dataclasses.replace(axis, values=values[cut], size=None, step=1)
    changes: dict[str, Any] = {"axes": tuple(part if one is axis else one for one in layout.axes)}
    # Only simulated senders need what it says, of which some is by source.
    changes["send"] = None
    if axis.name == layout.sources:
        changes["source_labels"] = tuple(layout.source_labels[cut])
        if isinstance(layout.time.phases, tuple):
            changes["time"] = dataclasses.replace(layout.time, phases=layout.time.phases[cut])
    return dataclasses.replace(layout, **changes)


def _costs(layout: Layout, options: Mapping[str, Any]) -> tuple[int, int]:
    """Threads and bytes of a receiver. Errors name the argument."""
    threads = options.get("threads", 1)
    tolerance = (options.get(name) for name in ("window", "tolerance_seconds", "tolerance_bytes"))
    try:
        check_integer("threads", threads, 1)
        window = settings.window_of(layout, *tolerance)
        chunks = settings.chunks_of(options.get("chunks"), window + (threads > 1))
        buffer = check_integer("buffer", options.get("buffer", settings.DEFAULT_BUFFER), 0)
    except (ValueError, TypeError) as exc:
        raise ValueError(f"receiver.{exc}") from None
    return threads, chunks * layout.chunk_bytes + threads * buffer
