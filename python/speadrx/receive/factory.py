"""`make_stream` and `make_stream_group`: from checked arguments to streams."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import spead2
import spead2.recv

from speadrx._core import Geometry, Placement
from speadrx._core import Group as CoreGroup
from speadrx.accounts.ledger import Ledger
from speadrx.layout.base import BaseLayout, DeclarativeLayout
from speadrx.layout.user_data import user_data_values

from . import arguments
from .checks import check_integer
from .chunk import ChunkBuffers
from .control import CONTROL_STAT, ControlHeaps
from .stream import ChunkRingStream, ChunkStreamRingGroup, StreamParts

#: What the buffers of the chunks in each free ring must be.
_ring_buffers: weakref.WeakKeyDictionary[spead2.recv.ChunkRingbuffer, ChunkBuffers] = weakref.WeakKeyDictionary()


def make_stream(
    *,
    layout: BaseLayout,
    spead_items: Iterable[int] | None = None,
    max_active_chunks: int,
    data_ringbuffer: spead2.recv.ChunkRingbuffer,
    free_ringbuffer: spead2.recv.ChunkRingbuffer,
    affinity: int = -1,
    stream_stats: Iterable[str] | None = None,
    user_data: np.ndarray | None = None,
    max_heap_extra: int | None = None,
    resync: bool = False,
    max_jump: int | None = None,
    flush_after: float | None = None,
    **kwargs: Any,
) -> ChunkRingStream:
    """Make a stream that places heaps by a layout.

    Parameters
    ----------
    layout
        Says where each heap goes. A declarative layout also knows `spead_items`, `stream_stats` and `max_heap_extra`,
        so these may be left out. So may `user_data`, if the layout reads none of it. A layout that has a placement
        callback of its own needs them.
    spead_items
        Item IDs that the callback sees. With a declarative layout, their order does not matter.
    max_active_chunks
        The window: the number of chunks that the stream has under construction, so how late a heap may be. A heap for
        a newer chunk ends the oldest chunk in the window. Heaps that come later for that chunk are too old. (The name
        is spead2's.)
    data_ringbuffer, free_ringbuffer
        The ring of finished chunks, and the ring of free chunks. Put free chunks into it with
        ``stream.add_free_chunk`` (or `Chunk.recycle`, or `ChunkPool`), which checks them. ``free_ringbuffer.put``
        does not. Streams can share a free ring only if their layouts need the same chunks.
    affinity
        Processor for the stream's thread; negative for any.
    stream_stats
        Names of the statistics that the callback counts, in its order. With a declarative layout, they replace the
        first names of the layout's own.
    user_data
        Structured array of shape () or (1,), passed to the callback. Its ``stats_base`` field is set to the index of
        the first of `stream_stats`.
    max_heap_extra
        The largest number of bytes that the callback stores in the ``extra`` of chunks for each heap.
    resync
        What to do when senders are restarted at an earlier time (or when the first heap had a time far in the future).
        False: their heaps are rejected (``backward_timestamp_heaps``), so a chunk's ID times
        ``layout.chunk_timestamp_step`` is always its timestamp. True: a new epoch begins. Chunk IDs go on rising, and
        `iter_chunks` tells the timestamps. With True, the stream also survives the stop item of a sender that is
        restarted: ``stop_on_stop_item`` is then False, unless you set it.
    max_jump
        How many chunks a heap may be ahead of the newest chunk. The default is the window less one, but at least 1.
        With more, a single heap can end all chunks in the window, and one wrong clock can do so again and again.
        A heap that is further ahead is rejected (``implausible_timestamp_heaps``), unless as much time has passed (this
        needs the layout's ``tick_rate``), or so many heaps agree that they are the majority. Then time has jumped.
    flush_after
        Seconds of silence after which to `flush`; needs `resync`. By default, never. It must be more than the longest
        pause between heaps, because later heaps of a flushed chunk are too old.
    **kwargs
        Passed to `spead2.recv.StreamConfig`. ``memcpy`` is `spead2.MEMCPY_NONTEMPORAL` by default. If heaps have
        several packets that may be reordered, set ``allow_out_of_order=True``. Otherwise spead2 drops packets that
        come out of order.

    Raises
    ------
    ValueError, TypeError
        If an argument is wrong. The message names it and its value.
    """
    arguments.check_processor(affinity)
    parts = _make_parts(
        "make_stream",
        layout,
        [affinity],
        spead_items=spead_items,
        window=max_active_chunks,
        rings={"data_ringbuffer": data_ringbuffer, "free_ringbuffer": free_ringbuffer},
        stream_stats=stream_stats,
        user_data=user_data,
        max_heap_extra=max_heap_extra,
        timeline=_Timeline(resync, max_jump, flush_after),
        options=kwargs,
    )
    return ChunkRingStream(_thread_pool(affinity), parts, data_ringbuffer, free_ringbuffer)


def make_stream_group(
    *,
    layout: BaseLayout,
    spead_items: Iterable[int] | None = None,
    max_active_chunks: int,
    data_ringbuffer: spead2.recv.ChunkRingbuffer,
    free_ringbuffer: spead2.recv.ChunkRingbuffer,
    affinity: Sequence[int],
    stream_stats: Iterable[str] | None = None,
    user_data: np.ndarray | None = None,
    max_heap_extra: int | None = None,
    resync: bool = False,
    max_jump: int | None = None,
    flush_after: float | None = None,
    **kwargs: Any,
) -> ChunkStreamRingGroup:
    """Make a group of streams that place heaps into the same chunks, each in its own thread.

    The parameters are those of `make_stream`, except for these two. A group of more than one stream has one chunk more
    under construction than the window of each stream, and drops the late heaps of a slow stream (`EVICTION_MODE`).

    Parameters
    ----------
    affinity
        Processor for the thread of each stream; negative for any. Its length is the number of streams.
    user_data
        Of shape () or (1,), shared by all streams; or with one element for each stream.

    Raises
    ------
    ValueError, TypeError
        If an argument is wrong. The message names it and its value.
    """
    if not isinstance(affinity, Iterable):
        raise TypeError(f"affinity: given {affinity!r}, but wanted a sequence: one processor for each stream")
    processors = [arguments.check_processor(processor) for processor in affinity]
    if not processors:
        raise ValueError("affinity: is empty, but a group needs at least one stream")
    parts = _make_parts(
        "make_stream_group",
        layout,
        processors,
        spead_items=spead_items,
        window=max_active_chunks,
        rings={"data_ringbuffer": data_ringbuffer, "free_ringbuffer": free_ringbuffer},
        stream_stats=stream_stats,
        user_data=user_data,
        max_heap_extra=max_heap_extra,
        timeline=_Timeline(resync, max_jump, flush_after),
        options=kwargs,
    )
    # One pool for each: streams that share one can deadlock when they stop.
    pools = [_thread_pool(processor) for processor in processors]
    return ChunkStreamRingGroup(pools, parts, data_ringbuffer, free_ringbuffer)


def _thread_pool(processor: int) -> spead2.ThreadPool:
    return spead2.ThreadPool(1) if processor < 0 else spead2.ThreadPool(1, [processor])


@dataclass(frozen=True)
class _Timeline:
    """How a stream follows time."""

    resync: bool
    max_jump: int | None
    flush_after: float | None


@dataclass(frozen=True)
class _Callbacks:
    """The placement callback of each stream, and what belongs to it."""

    #: As spead2 takes them: a capsule, and an object that must live as long as the stream.
    places: list[Any]
    #: IDs of the items that the callbacks see.
    items: list[int]
    buffers: ChunkBuffers
    geometries: tuple[Geometry, ...] = ()
    placements: tuple[Placement, ...] = ()
    ledgers: tuple[Ledger, ...] = ()
    core: CoreGroup | None = None
    control: ControlHeaps | None = None


def _make_parts(
    function: str,
    layout: BaseLayout,
    processors: Sequence[int],
    *,
    spead_items: Iterable[int] | None,
    window: int,
    rings: dict[str, Any],
    stream_stats: Iterable[str] | None,
    user_data: np.ndarray | None,
    max_heap_extra: int | None,
    timeline: _Timeline,
    options: dict[str, Any],
) -> StreamParts:
    n_streams = len(processors)
    declared = arguments.check_layout(layout)
    check_integer("max_active_chunks", window, 1)
    arguments.check_rings(rings)
    arguments.check_timeline(declared, timeline.resync, timeline.max_jump, timeline.flush_after)
    config = arguments.stream_config(function, {"stop_on_stop_item": False, **options} if timeline.resync else options)
    stats_base = config.next_stat_index()
    names = arguments.stat_names(layout, declared, stream_stats)
    records = arguments.user_data_records(user_data, n_streams, stats_base, needed=bool(names) and declared is None)
    # Only now are the statistics registered, since the caller's array has to have its stats_base before that.
    for name in names:
        try:
            config.add_stat(name)
        except ValueError as exc:
            raise ValueError(f"stream_stats: {exc}") from None
    if declared is not None:
        config.add_stat(CONTROL_STAT)
    extra = arguments.heap_extra(declared, max_heap_extra)
    items = arguments.item_ids(layout, declared, spead_items)
    # If a group had no more chunks than the window of a stream, one stream that runs ahead would end chunks that the
    # others still fill.
    group_window = window + (n_streams > 1)
    callbacks = (
        _foreign_callbacks(layout, records, items, extra)
        if declared is None
        else _own_callbacks(declared, records, items, extra, (stats_base, len(names)), (window, group_window), timeline)
    )
    _check_ring_buffers(rings["free_ringbuffer"], callbacks.buffers)
    make_config: Callable[..., spead2.recv.ChunkStreamConfig] = spead2.recv.ChunkStreamConfig
    return StreamParts(
        layout=layout,
        buffers=callbacks.buffers,
        window=group_window,
        stream_config=config,
        chunk_configs=[
            make_config(items=callbacks.items, max_chunks=window, place=place, max_heap_extra=extra)
            for place in callbacks.places
        ],
        geometries=callbacks.geometries,
        placements=callbacks.placements,
        ledgers=callbacks.ledgers,
        core=callbacks.core,
        control=callbacks.control,
        resync=timeline.resync,
        flush_after=timeline.flush_after,
        processor=processors[0],
    )


def _foreign_callbacks(
    layout: BaseLayout, records: Sequence[np.ndarray | None], items: list[int], extra: int
) -> _Callbacks:
    """Take the callback that a layout has of its own."""
    return _Callbacks(
        places=[layout.chunk_place(record) for record in records],  # type: ignore[arg-type]
        items=items,
        buffers=ChunkBuffers(data_bytes=layout.chunk_bytes, heaps=layout.chunk_heaps, heap_extra=extra),
    )


def _own_callbacks(
    layout: DeclarativeLayout,
    records: Sequence[np.ndarray | None],
    items: list[int],
    extra: int,
    stats: tuple[int, int],
    windows: tuple[int, int],
    timeline: _Timeline,
) -> _Callbacks:
    """Make our callbacks; `stats` is the index and number of their statistics, `windows` of a stream and the group."""
    compiled = layout.declaration._compiled
    window, group_window = windows
    core = compiled.group(window=window, reach=group_window, max_jump=timeline.max_jump, resync=timeline.resync)
    control = ControlHeaps(items)
    geometries = tuple(compiled.geometry(user_data_values(layout, record)) for record in records)
    placements = tuple(
        geometry.placement(window=window, stats=stats, group=core, cookie=control.cookie) for geometry in geometries
    )
    return _Callbacks(
        places=[(placement.capsule(), placement) for placement in placements],
        items=[*items, control.item],
        buffers=arguments.declared_buffers(layout, geometries, extra),
        geometries=geometries,
        placements=placements,
        ledgers=tuple(Ledger(layout, [placement.ledger], [core]) for placement in placements),
        core=core,
        control=control,
    )


def _check_ring_buffers(ring: spead2.recv.ChunkRingbuffer, buffers: ChunkBuffers) -> None:
    """Check that all streams that share a free ring need the same chunks.

    A stream takes any chunk from its ring, and writes outside of a chunk that is too small.
    """
    if _ring_buffers.setdefault(ring, buffers) != buffers:
        raise ValueError(
            "free_ringbuffer: belongs to a stream that needs other chunks; only streams with equal layouts can share it"
        )
