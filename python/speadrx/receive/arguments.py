"""Checks of the arguments of `make_stream` and `make_stream_group`, and what follows from them."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import spead2
import spead2.recv

from speadrx._core import Geometry
from speadrx.layout.base import BaseLayout, DeclarativeLayout

from .checks import check_integer
from .chunk import ChunkBuffers


def check_layout(layout: Any) -> DeclarativeLayout | None:
    """Check a layout. Return it if it is declarative, and None if it has a placement callback of its own."""
    if not isinstance(layout, BaseLayout):
        raise TypeError(f"layout: given {layout!r}, but wanted a layout, such as speadrx.Layout(...)")
    return layout if isinstance(layout, DeclarativeLayout) and not _has_own_callback(layout) else None


def _has_own_callback(layout: DeclarativeLayout) -> bool:
    overridden = type(layout).chunk_place is not DeclarativeLayout.chunk_place
    return overridden or getattr(layout, "_chunk_place", None) is not None


def check_rings(rings: dict[str, Any]) -> None:
    """Check that there are two rings of chunks."""
    for name, ring in rings.items():
        if not isinstance(ring, spead2.recv.ChunkRingbuffer):
            raise TypeError(f"{name}: given {type(ring).__name__}, but wanted a spead2.recv.ChunkRingbuffer")
    if rings["data_ringbuffer"] is rings["free_ringbuffer"]:
        raise ValueError("data_ringbuffer: is the same ring as free_ringbuffer, but wanted two rings")


def check_processor(processor: int) -> int:
    """Check an affinity. spead2 would only print that it cannot use it."""
    processor = check_integer("affinity", processor)
    if processor >= 0:
        # This thread may be bound to some of the processors. Only the kernel knows which others there are.
        own = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, [processor])
        except (OSError, OverflowError) as exc:
            raise ValueError(
                f"affinity: no thread may run on processor {processor} ({exc}); this one may run on "
                f"{', '.join(map(str, sorted(own)))}; a negative number is for any"
            ) from None
        finally:
            os.sched_setaffinity(0, own)
    return processor


def check_timeline(
    declared: DeclarativeLayout | None, resync: bool, max_jump: int | None, flush_after: float | None
) -> None:
    """Check the arguments that say how a stream follows time."""
    for name, value, default in (
        ("resync", resync, False),
        ("max_jump", max_jump, None),
        ("flush_after", flush_after, None),
    ):
        if declared is None and value is not default:
            raise ValueError(f"{name}: {value!r} needs a declarative layout, whose callback follows time")
    if not isinstance(resync, bool):
        raise TypeError(f"resync: given {resync!r}, but wanted True or False")
    if max_jump is not None:
        check_integer("max_jump", max_jump, 1)
    if flush_after is not None:
        if isinstance(flush_after, bool) or not isinstance(flush_after, numbers.Real):
            raise TypeError(f"flush_after: given {flush_after!r}, but wanted a number of seconds")
        if not 0 < flush_after < math.inf:
            raise ValueError(f"flush_after: {flush_after} must be more than 0 seconds, and finite")
        if not resync:
            raise ValueError(f"flush_after: {flush_after} needs resync=True")
        time = declared.declaration.time if declared is not None else None
        if time is not None and time.tick_rate is not None and flush_after <= time.step / time.tick_rate:
            raise ValueError(
                f"flush_after: {flush_after} must be more than the time between heaps of a source, "
                f"{time.step / time.tick_rate:g} s"
            )


def stream_config(function: str, options: dict[str, Any]) -> spead2.recv.StreamConfig:
    """Make spead2's configuration of a stream from the further arguments of a function."""
    config = spead2.recv.StreamConfig(memcpy=spead2.MEMCPY_NONTEMPORAL)
    properties = vars(spead2.recv.StreamConfig).items()
    known = [name for name, attr in properties if isinstance(attr, property) and attr.fset is not None]
    for name, value in options.items():
        if name not in known:
            raise TypeError(
                f"{function}() got an unexpected keyword argument {name!r}; those of spead2.recv.StreamConfig are "
                + ", ".join(known)
            )
        try:
            setattr(config, name, value)
        except (TypeError, ValueError) as exc:
            # For a wrong type, spead2's message is the signature of a function without a name.
            reason = "wrong type" if isinstance(exc, TypeError) else str(exc)
            raise type(exc)(f"{name}: spead2.recv.StreamConfig does not take {value!r}: {reason}") from None
    return config


def stat_names(layout: BaseLayout, declared: DeclarativeLayout | None, given: Iterable[str] | None) -> list[str]:
    """Return the names of the statistics that the callback counts."""
    if isinstance(given, str):
        raise TypeError(f"stream_stats: given {given!r}, but wanted a sequence of names")
    names = list(given or ())
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"stream_stats: given {name!r}, but wanted a name, as a str")
    if declared is None:
        return names
    own = declared.stream_stats
    if len(names) > len(own):
        raise ValueError(
            f"stream_stats: given {len(names)} names, but the callback of {type(layout).__name__} has only {len(own)} "
            f"statistics to rename: {', '.join(own)}"
        )
    return names + own[len(names) :]


def user_data_records(user_data: Any, n_streams: int, stats_base: int, *, needed: bool) -> list[np.ndarray | None]:
    """Set ``stats_base`` in the caller's array, and return the part of the array that belongs to each stream."""
    if user_data is None:
        if needed:
            raise ValueError("user_data: None, but the callback needs its field 'stats_base' to count stream_stats")
        return [None] * n_streams
    if not isinstance(user_data, np.ndarray):
        raise TypeError(f"user_data: given {type(user_data).__name__}, but wanted a structured numpy array")
    if user_data.shape not in ((), (1,), (n_streams,)):
        wanted = "() or (1,)" if n_streams == 1 else f"(), (1,) or ({n_streams},)"
        raise ValueError(f"user_data: given shape {user_data.shape}, but wanted {wanted} for {n_streams} stream(s)")
    fields = user_data.dtype.names or ()
    if "stats_base" in fields:
        if not user_data.flags.writeable:
            raise ValueError("user_data: is read-only, but its field 'stats_base' has to be set")
        user_data["stats_base"] = stats_base
    elif needed:
        raise ValueError(
            f"user_data: has no field 'stats_base', which is needed to count stream_stats (it has {list(fields)})"
        )
    if user_data.size == 1:
        return [user_data] * n_streams
    return [user_data[i : i + 1] for i in range(n_streams)]


def heap_extra(declared: DeclarativeLayout | None, given: int | None) -> int:
    """Return how many bytes of ``extra`` each heap has."""
    needed = declared.max_heap_extra if declared is not None else 0
    if given is None:
        return needed
    return check_integer("max_heap_extra", given, needed)


def item_ids(layout: BaseLayout, declared: DeclarativeLayout | None, given: Iterable[int] | None) -> list[int]:
    """Return the IDs of the items that the callback sees."""
    ids = None if given is None else [check_integer("spead_items", item, 0) for item in given]
    if declared is None:
        if ids is None:
            raise TypeError(
                f"spead_items: is needed, since {type(layout).__name__} has a placement callback of its own"
            )
        return ids
    items = declared.spead_items
    if ids is not None:
        chosen = set(ids)
        differences = [
            f"{what} {', '.join(f'{item:#x}' for item in sorted(some))}"
            for what, some in (("missing", set(items) - chosen), ("not in the layout", chosen - set(items)))
            if some
        ]
        if differences:
            raise ValueError(f"spead_items: differ from those of {type(layout).__name__}: {'; '.join(differences)}")
    return items


def declared_buffers(layout: DeclarativeLayout, geometries: Sequence[Geometry], extra: int) -> ChunkBuffers:
    """Work out what the buffers of chunks must be."""
    contents = layout.declaration._contents
    axes = layout.present_shape
    dense = tuple(layout.heap_bytes * math.prod(axes[i + 1 :]) for i in range(len(axes)))
    return ChunkBuffers(
        data_bytes=max(geometry.span_bytes for geometry in geometries),
        heaps=layout.chunk_heaps,
        heap_extra=extra,
        dtype=contents.stored_dtype,
        shape=axes + contents.stored_shape if all(geometry.strides == dense for geometry in geometries) else None,
        present_shape=axes,
        extra_dtype=layout.extra_dtype,
        contents=contents,
        geometry=geometries[0] if len({geometry.strides for geometry in geometries}) == 1 else None,
    )
