"""Streams and groups of streams that place their heaps by a layout."""

from __future__ import annotations

import _thread
import atexit
import contextlib
import operator
import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import spead2
import spead2.recv

from speadrx._core import Geometry, Placement
from speadrx._core import Group as CoreGroup
from speadrx.accounts.account import StreamAccounts
from speadrx.accounts.ledger import Epoch, Ledger
from speadrx.accounts.span import Ends
from speadrx.layout.base import BaseLayout, DeclarativeLayout

from .chunk import Chunk, ChunkBuffers
from .control import ControlHeaps, drain
from .fork import check_descriptors, check_ours, leave_to_parent
from .gaps import GapChunk
from .readers import member_sockets
from .sockets import SocketSet
from .watch import watch

#: A group drops the late heaps of a slow stream, so that the slow stream does not hold up the others.
EVICTION_MODE = spead2.recv.ChunkStreamGroupConfig.EvictionMode.LOSSY

#: Chunks without data after which a sensor of received timestamps is out of date.
RECV_SENSOR_TIMEOUT_CHUNKS = 10

#: The shortest time after which it is out of date, in seconds.
RECV_SENSOR_TIMEOUT_MIN = 1.0

#: Seconds to wait for a thread that is in spead2 when the interpreter exits.
_EXIT_PATIENCE = 1.0

#: Of an account that nothing cuts off.
_NOT_CUT = Ends()


@dataclass(frozen=True, kw_only=True)
class StreamParts:
    """What a stream or group is made of."""

    layout: BaseLayout
    #: What the buffers of its chunks must be.
    buffers: ChunkBuffers
    #: Chunks that the stream or group has under construction.
    window: int
    stream_config: spead2.recv.StreamConfig
    #: One for each stream.
    chunk_configs: list[spead2.recv.ChunkStreamConfig]
    #: One for each stream. These three are empty if the layout has a callback of its own.
    geometries: tuple[Geometry, ...]
    placements: tuple[Placement, ...]
    ledgers: tuple[Ledger, ...]
    #: These two are None if the layout has a callback of its own.
    core: CoreGroup | None
    control: ControlHeaps | None
    resync: bool
    flush_after: float | None
    #: Processor of the first stream's thread; negative for any.
    processor: int


#: All streams and groups.
_all: weakref.WeakSet[_Receiving] = weakref.WeakSet()
#: Those that were there when the interpreter began to exit.
_last: list[_Receiving] = []
#: Held while a stream goes away that a daemon thread has let go of.
_going = threading.Lock()
_exits = False


@atexit.register
def _stop_all() -> None:
    """Stop all streams when the interpreter exits, so that no thread is left waiting in spead2.

    Such a thread would want the interpreter back after it is gone, and the process would abort. So from now on no
    daemon thread enters spead2 any more to take a chunk or to give one back. Nor can it let go of the last reference to
    a stream: the exit handler of spead2 goes through all streams without keeping them, and crashes if one goes away
    meanwhile.
    """
    global _exits
    _exits = True
    if _going.acquire(timeout=_EXIT_PATIENCE):
        _going.release()
    _last.extend(_all)
    for stream in _last:
        stream._exiting = True
    for stream in _last:
        with contextlib.suppress(Exception):  # the other streams must stop all the same
            stream.stop()
        stream._accounts.wait_for_iterators(_EXIT_PATIENCE)


def _let_go(held: list[_Receiving]) -> None:
    """Let go of the last reference to a stream, unless the interpreter exits: it would not wait for this thread."""
    with _going:
        if _exits:
            _last.extend(held)
        held.clear()


def _forked() -> None:
    global _going
    _going = threading.Lock()  # a thread of the parent may have it
    leave_to_parent(_all)
    _all.clear()


os.register_at_fork(after_in_child=_forked)

if TYPE_CHECKING:
    _RingPair = spead2.recv.ChunkRingPair
else:
    _RingPair = object  # spead2's stream and group have it as a base already


class _Receiving(_RingPair):
    """What our streams and groups share: checks of buffers, sockets, accounts, flush and drain, and how they stop."""

    #: The layout by which heaps are placed.
    layout: BaseLayout
    #: What the placement callback counted; None if the layout has a callback of its own.
    ledger: Ledger | None
    #: Whether the data of recycled chunks are overwritten, so that whoever still uses them notices.
    _overwrites_recycled = sys.flags.dev_mode

    def _attach(self, parts: StreamParts) -> None:
        self.layout = parts.layout
        self.ledger = Ledger._sum(parts.ledgers) if parts.ledgers else None
        self._buffers = parts.buffers
        self._window = parts.window
        self._stream_window: int = parts.chunk_configs[0].max_chunks
        self._geometries = parts.geometries
        self._placements = parts.placements
        self._core = parts.core
        #: UTC at tick 0 by the layout, if it tells.
        self._declared_epoch: float | None = None
        if parts.core is not None and isinstance(parts.layout, DeclarativeLayout):
            self._declared_epoch = parts.layout.declaration.time.epoch
        self._control = parts.control
        self._resync = parts.resync
        self._processor = parts.processor
        on_network = None if parts.core is None else parts.core.set_live
        self._socket_sets = tuple(SocketSet(on_network, parts.layout) for _ in parts.chunk_configs)
        # If the layout is not declarative, a single source stands for all.
        labels = parts.layout.source_labels if isinstance(parts.layout, DeclarativeLayout) else ("0",)
        self._accounts = StreamAccounts(labels)
        #: All chunks that were made for it, and still exist.
        self._chunks: weakref.WeakSet[Chunk] = weakref.WeakSet()
        #: Chunks from the data ring, by ID, that come after whole missing chunks which are given out first. They are
        #: kept here, because another iterator may go on.
        self._waiting: dict[int, spead2.recv.Chunk] = {}
        #: Where the account begins and ends if heaps come before and after that; see `_account_ends`.
        self._begin: dict[str, tuple[int, int] | None] = {}
        self._end: tuple[int, int] | None = None
        self._stopped = False
        self._drains = threading.Lock()  # taken by the first drain, and never given back
        self._exiting = False
        self._process = os.getpid()
        self._inherited = False  # whether this is a forked child of that process
        self._lost = False  # whether somebody else has closed its descriptors
        self._ring_descriptor = self.data_ringbuffer.data_fd
        self._ring_status = os.fstat(self._ring_descriptor)
        # In spead2, two threads that stop the same stream can wait for each other for ever, as after `drain`. The lock
        # is reentrant, because a signal handler or the garbage collector may stop the stream too.
        self._stop_lock = threading.RLock()
        self._callbacks: list[Callable[[Any], object]] = []
        _all.add(self)
        watch(self, parts.flush_after)

    def _streams(self) -> Sequence[Any]:
        """The streams that read, each in its own thread."""
        raise NotImplementedError

    def _has_descriptors(self) -> bool:
        """Whether its sockets are open, and the descriptor at which its consumer waits."""
        try:
            there = os.path.samestat(os.fstat(self._ring_descriptor), self._ring_status)
        except OSError:
            return False
        return there and all(sockets.are_open() for sockets in self._socket_sets)

    def epochs(self) -> tuple[Epoch, ...]:
        """The epochs so far, oldest first. There is none before the first heap, or if the layout has its own callback.

        `iter_chunks` works out the timestamps of chunks from them. In the first epoch, a chunk's timestamp is its ID
        times ``layout.chunk_timestamp_step``, and a part of a step if the layout has an ``origin`` or phases. With
        ``resync=False`` this is so in all epochs, until `drain`.
        """
        core = self._core
        if core is None:
            return ()
        return tuple(Epoch(*core[i]) for i in range(len(core)))

    def _locate(self, chunk_id: int) -> tuple[int, int, bool, int, float | None]:
        """Return where a chunk is in time.

        That is the number of chunks from time 0 to it, its epoch's index, and if it is from a control heap; the
        timestamp of its first batch; and UTC at tick 0 in its epoch, in seconds since 1970, or None if not known.
        """
        if self._core is None:
            return chunk_id, 0, False, chunk_id * self.layout.chunk_timestamp_step, self._declared_epoch
        if self._declared_epoch is None:
            return self._core.locate(chunk_id)
        return *self._core.locate(chunk_id)[:4], self._declared_epoch

    def phases(self) -> tuple[int | None, ...]:
        """Ticks by which the timestamps of each source differ from those of others, by index of the source.

        None where that is not known yet. Empty if the layout has no ``phases``.
        """
        return () if self._core is None else tuple(self._core.phases())

    def _restarts(self, before: int, epoch: int) -> int:
        """Return how often time began again between two epochs."""
        if epoch == before or self._core is None:
            return 0
        return sum(self._core[i][2] == "restart" for i in range(before + 1, epoch + 1))

    def _measured_tick_rate(self) -> float | None:
        """Return the ticks per second at which time goes on, by the clock of this machine; None if not known (yet)."""
        return None if self._core is None else self._core.measured_rate

    def _choose_begin(self, begin: tuple[int, int] | None) -> tuple[int, int] | None:
        """Choose where the account begins. The first choice counts; the first chunk makes it at the latest."""
        return self._begin.setdefault("begin", begin)

    def _account_ends(self) -> Ends:
        """Return where the account begins and ends. From then on, it is too late to choose where it begins."""
        begin, end = self._begin.setdefault("begin", None), self._end
        return Ends(begin, end) if begin is not None or end is not None else _NOT_CUT

    def flush(self) -> None:
        """Hand over the chunks in the window now, without waiting for newer heaps.

        It returns at once. The chunks come out of the data ring as soon as the network threads have done it. They count
        as finished: heaps of these chunks that come later are too old. Heaps of later chunks are received as before. If
        there is no heap in the window, nothing happens.

        Afterwards, as many chunks as the window has come out empty, and `iter_chunks` returns them to the free ring. To
        receive without waiting for them, allocate twice as many chunks as the window has, and one more.

        Raises
        ------
        ValueError
            If the stream was not made with ``resync=True``, or its layout has a callback of its own. Then chunk IDs
            would no longer tell the time.
        """
        check_ours(self)
        if self._core is None or self._control is None or not self._resync:
            raise ValueError("flush: needs a stream made with resync=True and a declarative layout")
        if not self._stopped and self._core.flush():
            self._control.post(self._streams(), end=False)

    def drain(self) -> None:
        """Hand over the chunks in the window, and then stop.

        It returns at once. The consumer gets all chunks, and then the data ring ends. Packets that the kernel has
        queued are read first (for a second at most). If heaps still come then, those of sources that are behind are
        waited for (for another second at most), so that no source is cut off before another. `stop` alone throws away
        the chunks in the window.

        Raises
        ------
        ValueError
            If the layout has a callback of its own.
        """
        check_ours(self)
        check_descriptors(self)
        if self._core is None or self._control is None:
            raise ValueError("drain: needs a declarative layout, but this one has a placement callback of its own")
        if not self._stopped and self._drains.acquire(blocking=False):
            drain(self)

    @property
    def _drained(self) -> bool:
        """Whether it drains, or has done so."""
        return self._drains.locked()

    def add_free_chunk(self, chunk: spead2.recv.Chunk) -> None:
        """Check the buffers of a chunk, and put the chunk into the free ring.

        Do not use ``free_ringbuffer.put``, which checks nothing.

        Raises
        ------
        ValueError, TypeError
            If a buffer does not fit the layout. The message names the buffer, what was given and what is wanted.
        spead2.Full
            If the ring is full.
        """
        if isinstance(chunk, GapChunk):  # it came from no ring
            chunk.recycle()
            return
        self._buffers.check(chunk.data, chunk.present, chunk.extra)
        self._add_checked(chunk)

    def _add_checked(self, chunk: spead2.recv.Chunk) -> None:
        """Put a chunk into the free ring whose buffers have not changed since they were checked."""
        if not self._exiting:
            super().add_free_chunk(chunk)

    def kernel_drops(self) -> int:
        """Packets that the kernel dropped because the buffer of a socket was full.

        The number stays after `stop`, and after `iter_chunks` has come to the end of a stream that its sender ended.
        Only the sockets of `add_reader` are known. Packets that the kernel had merged into one (GRO) count as one.
        """
        return sum(sockets.drops() for sockets in self._socket_sets)

    def stop(self) -> None:
        """Stop receiving and close the sockets. It may be called again.

        Call it even if the sender has ended the stream, so that the ports become free. In a forked child, it does
        nothing.

        Raises
        ------
        RuntimeError
            If another part of the program has closed its descriptors.
        """
        if self._inherited:
            return
        with self._stop_lock:
            check_descriptors(self)
            if not self._stopped:
                super().stop()  # type: ignore[misc]
                self._close_sockets()
                for placement in self._placements:
                    placement.settle()
                self._stopped = True
        self._call_back()

    def _close_sockets(self) -> None:
        """Close the sockets. Nobody reads them any more, and open ones would go on to count drops."""
        for sockets in self._socket_sets:
            sockets.close()

    def _on_close(self, callback: Callable[[Any], object]) -> None:
        """Call a function with this object once its statistics are final, while they can still be read."""
        self._callbacks.append(callback)
        if self._stopped:
            self._call_back()

    def _call_back(self) -> None:
        callbacks, self._callbacks = self._callbacks, []  # another thread may stop it too
        for callback in callbacks:
            callback(self)

    def __del__(self) -> None:
        if "_callbacks" not in self.__dict__:  # its constructor failed
            return
        self.stop()
        if threading.current_thread().daemon:
            # The threads of spead2 end after this, and the interpreter may exit before they have. So it goes away in a
            # thread that the interpreter waits for.
            try:
                _thread.start_new_thread(_let_go, ([self],))
            except RuntimeError:  # it exits already
                _last.append(self)


class ChunkRingStream(_Receiving, spead2.recv.ChunkRingStream):
    """A stream that places heaps by a layout. `make_stream` makes it."""

    def __init__(
        self,
        thread_pool: spead2.ThreadPool,
        parts: StreamParts,
        data_ringbuffer: spead2.recv.ChunkRingbuffer,
        free_ringbuffer: spead2.recv.ChunkRingbuffer,
    ) -> None:
        super().__init__(thread_pool, parts.stream_config, parts.chunk_configs[0], data_ringbuffer, free_ringbuffer)
        self._attach(parts)
        self._sockets = self._socket_sets[0]

    def _streams(self) -> Sequence[Any]:
        return [self]

    def start(self) -> None:
        """Start to receive, if the stream was made with ``explicit_start``.

        Raises
        ------
        RuntimeError
            If an endpoint cannot be bound. The message names the endpoints of the stream.
        ValueError
            If the stream was drained before.
        """
        check_ours(self)
        if self._drained:
            raise ValueError("drain: was called before the start, so nothing can be received any more: drain later")
        try:
            super().start()
        except RuntimeError as exc:
            if not self._sockets.deferred:
                raise
            raise RuntimeError(f"cannot receive on {' or '.join(self._sockets.deferred)}: {exc}") from exc


class ChunkStreamRingGroup(_Receiving, spead2.recv.ChunkStreamRingGroup):
    """A group of streams that place heaps into the same chunks. `make_stream_group` makes it.

    Its members are spead2's own, and spead2 wraps a member again at each access. With ``explicit_start``,
    ``group[i].start()`` does not name the endpoints that it cannot bind.
    """

    #: What the callback of each member counted; empty if the layout has a callback of its own.
    ledgers: tuple[Ledger, ...]

    def __init__(
        self,
        thread_pools: Sequence[spead2.ThreadPool],
        parts: StreamParts,
        data_ringbuffer: spead2.recv.ChunkRingbuffer,
        free_ringbuffer: spead2.recv.ChunkRingbuffer,
    ) -> None:
        config = spead2.recv.ChunkStreamGroupConfig(max_chunks=parts.window, eviction_mode=EVICTION_MODE)
        super().__init__(config, data_ringbuffer, free_ringbuffer)
        self._attach(parts)
        self.ledgers = parts.ledgers
        for thread_pool, chunk_config in zip(thread_pools, parts.chunk_configs, strict=True):
            self.emplace_back(thread_pool, parts.stream_config, chunk_config)

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
        if index < len(self._socket_sets):  # otherwise its user has added it
            member_sockets[member] = self._socket_sets[index]
        return member

    def member_kernel_drops(self) -> tuple[int, ...]:
        """`kernel_drops` of each member."""
        return tuple(sockets.drops() for sockets in self._socket_sets)
