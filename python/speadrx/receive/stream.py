"""Streams and groups of streams that place their heaps by a layout."""

from __future__ import annotations

import atexit
import contextlib
import math
import numbers
import operator
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import spead2
import spead2.recv

from speadrx._core import Geometry, Placement
from speadrx._core import Group as CoreGroup
from speadrx.accounts.accounting import Accounts
from speadrx.accounts.ledger import Epoch, Ledger, LedgerSnapshot
from speadrx.layout.base import BaseLayout, DeclarativeLayout
from speadrx.layout.user_data import user_data_values

from .chunk import ChunkBuffers
from .control import ControlHeaps, drain
from .readers import SocketSet, add_reader, check_integer, member_sockets
from .watch import watch

__all__ = [
    "EVICTION_MODE",
    "RECV_SENSOR_TIMEOUT_CHUNKS",
    "RECV_SENSOR_TIMEOUT_MIN",
    "ChunkRingStream",
    "ChunkStreamRingGroup",
    "Epoch",
    "Ledger",
    "LedgerSnapshot",
    "add_reader",
    "make_stream",
    "make_stream_group",
]

#: A group drops the late heaps of a slow stream rather than let it hold up the others.
EVICTION_MODE = spead2.recv.ChunkStreamGroupConfig.EvictionMode.LOSSY

#: Chunks without data after which a sensor of received timestamps is out of date.
RECV_SENSOR_TIMEOUT_CHUNKS = 10

#: The least time after which it is, in seconds.
RECV_SENSOR_TIMEOUT_MIN = 1.0


#: Seconds to wait for a thread that is in spead2 when the interpreter exits.
_EXIT_PATIENCE = 1.0


@dataclass(frozen=True)
class _Plan:
    """What `make_stream` and `make_stream_group` hand to spead2, and to the objects that they return."""

    layout: BaseLayout
    buffers: ChunkBuffers
    stream_config: spead2.recv.StreamConfig
    #: One for each stream.
    chunk_configs: list[spead2.recv.ChunkStreamConfig]
    #: One for each stream, or none if the layout has a callback of its own; so are the next.
    geometries: tuple[Geometry, ...]
    placements: tuple[Placement, ...]
    ledgers: tuple[Ledger, ...]
    #: None if the layout has a callback of its own; so is the next.
    core: CoreGroup | None
    control: ControlHeaps | None
    resync: bool
    flush_after: float | None
    #: Of the first stream's thread; negative for any.
    processor: int


#: All streams and groups.
_all: weakref.WeakSet[_Receiving] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Stop what still runs when the interpreter exits, so that no thread is left waiting in spead2.

    It would want the interpreter back after that is gone, and the process would abort.
    """
    for source in list(_all):
        with contextlib.suppress(Exception):  # the others must stop all the same
            source.stop()
        source._accounts.settle(_EXIT_PATIENCE)


#: What the chunks of each free ring must be.
_ring_buffers: weakref.WeakKeyDictionary[spead2.recv.ChunkRingbuffer, ChunkBuffers] = weakref.WeakKeyDictionary()

if TYPE_CHECKING:
    _RingPair = spead2.recv.ChunkRingPair
else:
    _RingPair = object  # spead2's stream and group have it as a base already


class _Receiving(_RingPair):
    """What our streams and groups share: checks of buffers, sockets, and a last word when they go away."""

    #: The layout that heaps are placed by.
    layout: BaseLayout
    #: What the placement callback counted; None if the layout has a callback of its own.
    ledger: Ledger | None

    def _attach(self, plan: _Plan, n_streams: int) -> None:
        self.layout = plan.layout
        self.ledger = Ledger._sum(plan.ledgers) if plan.ledgers else None
        self._buffers = plan.buffers
        self._geometries = plan.geometries
        self._placements = plan.placements
        self._core = plan.core
        self._control = plan.control
        self._resync = plan.resync
        self._processor = plan.processor
        self._socket_sets = tuple(SocketSet() for _ in range(n_streams))
        # Of a layout that is not declarative a single source stands for all.
        self._accounts = Accounts(plan.layout.source_labels if isinstance(plan.layout, DeclarativeLayout) else ("0",))
        self._stopped = False
        # In spead2, two threads that stop the same stream can wait for each other for ever, as after `drain`. Taken
        # again by a signal handler, or by the garbage collector.
        self._stop_lock = threading.RLock()
        self._callbacks: list[Callable[[Any], object]] = []
        _all.add(self)
        watch(self, plan.flush_after)

    def _streams(self) -> Sequence[Any]:
        """The streams that read, each in its own thread."""
        raise NotImplementedError

    def epochs(self) -> tuple[Epoch, ...]:
        """The epochs so far, oldest first; none before the first heap, or if the layout has a callback of its own.

        `iter_chunks` dates chunks by them. In the first one, a chunk's timestamp is its ID times
        ``layout.chunk_timestamp_step``; with ``resync=False`` in all of them, until `drain`.
        """
        core = self._core
        if core is None:
            return ()
        found = (core[i] for i in range(len(core)))
        step = self.layout.chunk_timestamp_step
        return tuple(Epoch(chunk_id, chunk * step, cause) for chunk_id, chunk, cause in found)

    def _locate(self, chunk_id: int) -> tuple[int, int, bool]:
        """The number of chunks from time 0 to a chunk, the index of its epoch, and whether it is a control heap's."""
        if self._core is None or not len(self._core):
            return chunk_id, 0, False
        return self._core.locate(chunk_id)

    def _restarts(self, before: int, epoch: int) -> int:
        """How often time has begun anew between two epochs."""
        if epoch == before or self._core is None:
            return 0
        return sum(self._core[i][2] == "restart" for i in range(before + 1, epoch + 1))

    def flush(self) -> None:
        """Hand over the chunks under construction, though no newer data has come.

        Returns at once; the chunks come out of the data ring as soon as the network threads get to it. They are taken
        for finished: heaps of theirs that come later are too old. What comes for later chunks is received as before.
        Does nothing if no chunk is under construction.

        It makes as many chunks as are under construction come out empty later; `iter_chunks` returns them to the free
        ring. So that receiving need not wait for them, have twice as many chunks as are active at a time, and one.

        Raises
        ------
        ValueError
            If the stream was not made with ``resync=True``, or its layout has a callback of its own: chunk IDs would
            no longer tell the time.
        """
        if self._core is None or self._control is None or not self._resync:
            raise ValueError("flush: needs a stream made with resync=True and a declarative layout")
        if not self._stopped and self._core.flush():
            self._control.post(self._streams(), complete=True)

    def drain(self) -> None:
        """Hand over the chunks under construction, and then stop.

        Returns at once. The consumer gets all chunks, and then the end of the data ring, which comes when all are in
        it. Packets that the kernel has queued are read first (for a second at most); what arrives later is not waited
        for. `stop` alone throws away the chunks under construction.

        Raises
        ------
        ValueError
            If the layout has a callback of its own.
        """
        if self._core is None or self._control is None:
            raise ValueError("drain: needs a declarative layout; this one has a placement callback of its own")
        if not self._stopped:
            drain(self)

    def add_free_chunk(self, chunk: spead2.recv.Chunk) -> None:
        """Check the buffers of a chunk, and put it into the free ring.

        ``free_ringbuffer.put`` checks nothing: do not use it.

        Raises
        ------
        ValueError, TypeError
            If a buffer does not fit the layout. The message names the buffer, what was given and what is wanted.
        spead2.Full
            If the ring is full.
        """
        self._buffers.check(chunk.data, chunk.present, chunk.extra)
        super().add_free_chunk(chunk)

    def kernel_drops(self) -> int:
        """Packets that the kernel dropped because a socket's buffer was full.

        Keeps its value after `stop`, and once `iter_chunks` has come to the end of a stream that its sender ended.
        Only the sockets of `add_reader` are known. Packets that the kernel had coalesced (GRO) count as one.
        """
        return sum(sockets.drops() for sockets in self._socket_sets)

    def stop(self) -> None:
        """Stop receiving and close the sockets; may be called again.

        Call it also when the sender has ended the stream, so that the ports become free.
        """
        with self._stop_lock:
            if not self._stopped:
                super().stop()  # type: ignore[misc]
                self._close_sockets()
                self._stopped = True
        self._call_back()

    def _close_sockets(self) -> None:
        """Close the sockets, which nobody reads any more, so that the kernel's counts of drops stay as they are."""
        for sockets in self._socket_sets:
            sockets.close()

    def _on_close(self, callback: Callable[[Any], object]) -> None:
        """Have a function called with this object once its statistics are final, while they can be read."""
        self._callbacks.append(callback)
        if self._stopped:
            self._call_back()

    def _call_back(self) -> None:
        callbacks, self._callbacks = self._callbacks, []  # another thread may stop too
        for callback in callbacks:
            callback(self)

    def __del__(self) -> None:
        if "_callbacks" in self.__dict__:  # else it was never completed
            self.stop()


class ChunkRingStream(_Receiving, spead2.recv.ChunkRingStream):
    """A stream that places heaps by a layout; `make_stream` makes it."""

    def __init__(
        self,
        thread_pool: spead2.ThreadPool,
        plan: _Plan,
        data_ringbuffer: spead2.recv.ChunkRingbuffer,
        free_ringbuffer: spead2.recv.ChunkRingbuffer,
    ) -> None:
        super().__init__(thread_pool, plan.stream_config, plan.chunk_configs[0], data_ringbuffer, free_ringbuffer)
        self._attach(plan, 1)
        self._sockets = self._socket_sets[0]

    def _streams(self) -> Sequence[Any]:
        return [self]

    def start(self) -> None:
        """Start to receive, where the stream was made with ``explicit_start``.

        Raises
        ------
        RuntimeError
            If an endpoint cannot be bound. The message names the endpoints of the stream.
        """
        try:
            super().start()
        except RuntimeError as exc:
            if not self._sockets.deferred:
                raise
            raise RuntimeError(f"cannot receive on {' or '.join(self._sockets.deferred)}: {exc}") from exc


class ChunkStreamRingGroup(_Receiving, spead2.recv.ChunkStreamRingGroup):
    """A group of streams that place heaps into the same chunks; `make_stream_group` makes it.

    Its members are spead2's own. They are wrapped anew at each access. With ``explicit_start``, ``group[i].start()``
    does not name the endpoints that it cannot bind.
    """

    #: What the callback of each member counted; empty if the layout has a callback of its own.
    ledgers: tuple[Ledger, ...]

    def __init__(
        self,
        thread_pools: Sequence[spead2.ThreadPool],
        plan: _Plan,
        data_ringbuffer: spead2.recv.ChunkRingbuffer,
        free_ringbuffer: spead2.recv.ChunkRingbuffer,
    ) -> None:
        config = spead2.recv.ChunkStreamGroupConfig(max_chunks=plan.buffers.window, eviction_mode=EVICTION_MODE)
        super().__init__(config, data_ringbuffer, free_ringbuffer)
        self._attach(plan, len(thread_pools))
        self.ledgers = plan.ledgers
        for thread_pool, chunk_config in zip(thread_pools, plan.chunk_configs, strict=True):
            self.emplace_back(thread_pool, plan.stream_config, chunk_config)

    def _streams(self) -> Sequence[Any]:
        return self[: len(self._socket_sets)]

    @overload
    def __getitem__(self, index: int) -> spead2.recv.ChunkStreamGroupMember: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[spead2.recv.ChunkStreamGroupMember]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """A member, or several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        member = super().__getitem__(index)
        index = operator.index(index) % len(self)
        if index < len(self._socket_sets):  # else its user has added it
            member_sockets[member] = self._socket_sets[index]
        return member

    def member_kernel_drops(self) -> tuple[int, ...]:
        """`kernel_drops` of each member."""
        return tuple(sockets.drops() for sockets in self._socket_sets)


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
        Says where each heap goes. A declarative layout also knows `spead_items`, `stream_stats` and
        `max_heap_extra`, which may then be left out; so may `user_data`, if the layout reads none of it. One
        that brings a placement callback of its own needs the caller's.
    spead_items
        Item IDs that the callback sees. With a declarative layout, in any order.
    max_active_chunks
        Chunks under construction at a time. A heap for a newer chunk ends the oldest of them, and heaps that come
        for it later are too old.
    data_ringbuffer, free_ringbuffer
        The rings of finished and of free chunks. Give free chunks to ``stream.add_free_chunk`` (or
        `Chunk.recycle`, or `ChunkPool`), which checks them; ``free_ringbuffer.put`` does not. Streams can
        share a free ring only if their layouts want the same chunks.
    affinity
        Processor for the stream's thread; negative for any.
    stream_stats
        Names of the statistics that the callback counts, in its order. With a declarative layout they
        rename the first of the layout's own.
    user_data
        Structured array of shape () or (1,), passed to the callback. Its ``stats_base`` field is filled in
        with the index of the first of `stream_stats`.
    max_heap_extra
        Bytes that the callback stores in the ``extra`` of chunks for each heap, at most.
    resync
        What to do when senders are restarted at an earlier time (or the first heap had a time far in the future).
        False: their heaps are rejected (``backward_timestamp_heaps``), so that a chunk's ID times
        ``layout.chunk_timestamp_step`` is always its timestamp. True: a new epoch begins; chunk IDs go on rising and
        `iter_chunks` tells the timestamps. True also lets the stream survive the stop item of a sender that is
        restarted: ``stop_on_stop_item`` is then False unless it is given.
    max_jump
        How many chunks a heap may be ahead of the newest chunk. By default, `max_active_chunks` less one, at least 1.
        With more, a single heap can end all chunks under construction, and one wrong clock do so again and again.
        A heap further ahead is rejected (``implausible_timestamp_heaps``), unless as much time has passed (needs the
        layout's ``tick_rate``), or so many heaps agree that they are in the majority: then time has jumped.
    flush_after
        Seconds of silence after which to `flush`; needs `resync`. By default, never. It must be more than the longest
        pause between heaps, for what comes for a chunk that is flushed is too old.
    **kwargs
        Passed to `spead2.recv.StreamConfig`. ``memcpy`` defaults to `spead2.MEMCPY_NONTEMPORAL`. Where heaps have
        several packets that may be reordered, set ``allow_out_of_order=True``: without it, spead2 drops
        packets that come out of order.

    Raises
    ------
    ValueError, TypeError
        If an argument is wrong. The message names it and its value.
    """
    _check_processor(affinity)
    plan = _plan(
        "make_stream",
        layout,
        [affinity],
        spead_items=spead_items,
        max_active_chunks=max_active_chunks,
        rings={"data_ringbuffer": data_ringbuffer, "free_ringbuffer": free_ringbuffer},
        stream_stats=stream_stats,
        user_data=user_data,
        max_heap_extra=max_heap_extra,
        resync=resync,
        max_jump=max_jump,
        flush_after=flush_after,
        options=kwargs,
    )
    return ChunkRingStream(_thread_pool(affinity), plan, data_ringbuffer, free_ringbuffer)


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

    The parameters are those of `make_stream`, but for these. A group of more than one stream has one active
    chunk more than its streams, and drops the late heaps of a slow stream (`EVICTION_MODE`).

    Parameters
    ----------
    affinity
        Processor for the thread of each stream; negative for any. Its length is the number of streams.
    user_data
        Of shape () or (1,), shared by all streams; or of one element for each stream.

    Raises
    ------
    ValueError, TypeError
        If an argument is wrong. The message names it and its value.
    """
    if not isinstance(affinity, Iterable):
        raise TypeError(f"affinity: given {affinity!r}, but wanted a sequence: one processor for each stream")
    affinities = [_check_processor(processor) for processor in affinity]
    if not affinities:
        raise ValueError("affinity: is empty, but a group needs at least one stream")
    plan = _plan(
        "make_stream_group",
        layout,
        affinities,
        spead_items=spead_items,
        max_active_chunks=max_active_chunks,
        rings={"data_ringbuffer": data_ringbuffer, "free_ringbuffer": free_ringbuffer},
        stream_stats=stream_stats,
        user_data=user_data,
        max_heap_extra=max_heap_extra,
        resync=resync,
        max_jump=max_jump,
        flush_after=flush_after,
        options=kwargs,
    )
    # One pool for each: streams that share one can deadlock when they stop.
    pools = [_thread_pool(processor) for processor in affinities]
    return ChunkStreamRingGroup(pools, plan, data_ringbuffer, free_ringbuffer)


def _check_processor(processor: int) -> int:
    """Check an affinity, since spead2 only prints that it cannot have it."""
    processor = check_integer("affinity", processor)
    if processor >= 0:
        # The processors of this thread are not all that there are, if it is bound to some. The kernel knows.
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


def _thread_pool(affinity: int) -> spead2.ThreadPool:
    return spead2.ThreadPool(1) if affinity < 0 else spead2.ThreadPool(1, [affinity])


def _plan(
    function: str,
    layout: BaseLayout,
    affinities: Sequence[int],
    *,
    spead_items: Iterable[int] | None,
    max_active_chunks: int,
    rings: dict[str, Any],
    stream_stats: Iterable[str] | None,
    user_data: np.ndarray | None,
    max_heap_extra: int | None,
    resync: bool,
    max_jump: int | None,
    flush_after: float | None,
    options: dict[str, Any],
) -> _Plan:
    n_streams = len(affinities)
    if not isinstance(layout, BaseLayout):
        raise TypeError(f"layout: given {layout!r}, but wanted a layout, such as speadrx.Layout(...)")
    check_integer("max_active_chunks", max_active_chunks, 1)
    for name, ring in rings.items():
        if not isinstance(ring, spead2.recv.ChunkRingbuffer):
            raise TypeError(f"{name}: given {type(ring).__name__}, but wanted a spead2.recv.ChunkRingbuffer")
    if rings["data_ringbuffer"] is rings["free_ringbuffer"]:
        raise ValueError("data_ringbuffer: is also the free_ringbuffer, but wanted two rings")
    declared = layout if isinstance(layout, DeclarativeLayout) and not _has_own_callback(layout) else None
    _check_survival(declared, resync, max_jump, flush_after)
    config = _stream_config(function, {"stop_on_stop_item": False, **options} if resync else options)
    stats_base = config.next_stat_index()
    names = _stat_names(layout, declared, stream_stats)
    records = _user_data(user_data, n_streams, stats_base, needed=bool(names) and declared is None)
    # Only now: the caller's array has its stats_base before the statistics are registered.
    for name in names:
        try:
            config.add_stat(name)
        except ValueError as exc:
            raise ValueError(f"stream_stats: {exc}") from None
    extra = _heap_extra(declared, max_heap_extra)
    items = _items(layout, declared, spead_items)
    if declared is None:
        places = [layout.chunk_place(record) for record in records]  # type: ignore[arg-type]
        buffers = ChunkBuffers(data_bytes=layout.chunk_bytes, heaps=layout.chunk_heaps, heap_extra=extra)
        geometries: list[Geometry] = []
        placements: list[Placement] = []
        core = control = None
    else:
        # With as many chunks as its streams, one stream of a group that runs ahead would evict what the others still
        # fill.
        reach = max_active_chunks + (n_streams > 1)
        core = declared.declaration._compiled.group(
            window=max_active_chunks, reach=reach, max_jump=max_jump, resync=resync
        )
        control = ControlHeaps(items)
        items = [*items, control.item]
        geometries = [declared.declaration._compiled.geometry(user_data_values(declared, record)) for record in records]
        placements = [
            geometry.placement(
                window=max_active_chunks, stats=(stats_base, len(names)), group=core, cookie=control.cookie
            )
            for geometry in geometries
        ]
        places = [(placement.capsule(), placement) for placement in placements]
        buffers = _declared_buffers(declared, geometries, extra)
    plan = _Plan(
        layout=layout,
        buffers=replace(buffers, window=max_active_chunks + (n_streams > 1)),
        stream_config=config,
        chunk_configs=[
            spead2.recv.ChunkStreamConfig(items=items, max_chunks=max_active_chunks, place=place, max_heap_extra=extra)
            for place in places
        ],
        geometries=tuple(geometries),
        placements=tuple(placements),
        ledgers=() if declared is None else tuple(Ledger(declared, [placement.ledger]) for placement in placements),
        core=core,
        control=control,
        resync=resync,
        flush_after=flush_after,
        processor=affinities[0],
    )
    # A stream takes any chunk from its ring, whoever checked it, and writes outside of one that is too small.
    if _ring_buffers.setdefault(rings["free_ringbuffer"], buffers) != buffers:
        raise ValueError(
            "free_ringbuffer: is that of a stream that wants other chunks; only equal layouts can share it"
        )
    return plan


def _check_survival(
    declared: DeclarativeLayout | None, resync: bool, max_jump: int | None, flush_after: float | None
) -> None:
    for name, value, default in (
        ("resync", resync, False),
        ("max_jump", max_jump, None),
        ("flush_after", flush_after, None),
    ):
        if declared is None and value is not default:
            raise ValueError(f"{name}: {value!r} needs a declarative layout, for the timeline is part of its callback")
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


def _has_own_callback(layout: DeclarativeLayout) -> bool:
    overridden = type(layout).chunk_place is not DeclarativeLayout.chunk_place
    return overridden or getattr(layout, "_chunk_place", None) is not None


def _stream_config(function: str, options: dict[str, Any]) -> spead2.recv.StreamConfig:
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
            # spead2 answers a wrong type with the signature of a nameless function.
            reason = "wrong type" if isinstance(exc, TypeError) else str(exc)
            raise type(exc)(f"{name}: spead2.recv.StreamConfig does not take {value!r}: {reason}") from None
    return config


def _stat_names(layout: BaseLayout, declared: DeclarativeLayout | None, given: Iterable[str] | None) -> list[str]:
    if isinstance(given, str):
        raise TypeError(f"stream_stats: given {given!r}, but wanted a sequence of names")
    names = list(given or ())
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"stream_stats: given {name!r}, but wanted names")
    if declared is None:
        return names
    own = declared.stream_stats
    if len(names) > len(own):
        raise ValueError(
            f"stream_stats: given {len(names)} names, but the callback of {type(layout).__name__} has only {len(own)} "
            f"statistics to rename: {', '.join(own)}"
        )
    return names + own[len(names) :]


def _user_data(user_data: Any, n_streams: int, stats_base: int, *, needed: bool) -> list[np.ndarray | None]:
    """Fill in the caller's ``stats_base``, and return the part of the array that is each stream's."""
    if user_data is None:
        if needed:
            raise ValueError("user_data: None, but the callback needs its stats_base field to count stream_stats")
        return [None] * n_streams
    if not isinstance(user_data, np.ndarray):
        raise TypeError(f"user_data: given {type(user_data).__name__}, but wanted a structured numpy array")
    if user_data.shape not in ((), (1,), (n_streams,)):
        wanted = "() or (1,)" if n_streams == 1 else f"(), (1,) or ({n_streams},)"
        raise ValueError(f"user_data: given shape {user_data.shape}, but {n_streams} stream(s) want {wanted}")
    fields = user_data.dtype.names or ()
    if "stats_base" in fields:
        if not user_data.flags.writeable:
            raise ValueError("user_data: is read-only, but its stats_base field has to be filled in")
        user_data["stats_base"] = stats_base
    elif needed:
        raise ValueError(f"user_data: has no field 'stats_base' (it has {list(fields)}), needed to count stream_stats")
    if user_data.size == 1:
        return [user_data] * n_streams
    return [user_data[i : i + 1] for i in range(n_streams)]


def _heap_extra(declared: DeclarativeLayout | None, given: int | None) -> int:
    needed = declared.max_heap_extra if declared is not None else 0
    if given is None:
        return needed
    return check_integer("max_heap_extra", given, needed)


def _items(layout: BaseLayout, declared: DeclarativeLayout | None, given: Iterable[int] | None) -> list[int]:
    ids = None if given is None else [check_integer("spead_items", item, 0) for item in given]
    if declared is None:
        if ids is None:
            raise TypeError(f"spead_items: needed, since {type(layout).__name__} has a placement callback of its own")
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


def _declared_buffers(layout: DeclarativeLayout, geometries: Sequence[Geometry], extra: int) -> ChunkBuffers:
    declaration = layout.declaration
    dtype = np.dtype(declaration.dtype)
    heap_shape = declaration.heap_shape
    if heap_shape is None:
        heap_shape = (declaration.heap_bytes // dtype.itemsize,)
    axes = layout.present_shape
    dense = tuple(layout.heap_bytes * math.prod(axes[i + 1 :]) for i in range(len(axes)))
    return ChunkBuffers(
        data_bytes=max(geometry.span_bytes for geometry in geometries),
        heaps=layout.chunk_heaps,
        heap_extra=extra,
        dtype=dtype,
        shape=axes + heap_shape if all(geometry.strides == dense for geometry in geometries) else None,
        present_shape=axes,
        extra_dtype=layout.extra_dtype,
    )
