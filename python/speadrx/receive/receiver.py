"""`Receiver`: rings, chunks, streams, readers and metrics in one object."""

from __future__ import annotations

import _thread
import errno
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import spead2
import spead2.recv

from speadrx.accounts.account import Account
from speadrx.accounts.ledger import Ledger
from speadrx.accounts.report import ReceiverStats
from speadrx.layout.base import DeclarativeLayout

from . import settings
from .checks import check_integer
from .chunk import ChunkPool
from .endpoints import Endpoint, resolve
from .ends import find_begin
from .factory import make_stream, make_stream_group
from .feed import CapturePart, HandedPackets
from .fork import check_ours
from .iterate import ChunkIterator, iter_chunks
from .memory import check_available
from .read import Reading, chunks_to_read, read_chunks
from .readers import add_reader, sockets_of
from .snapshot import read_stats
from .stream import ChunkRingStream, ChunkStreamRingGroup


class Receiver:
    """Receive by a layout: one stream or a group of streams, with all that they need.

    It is a context manager, and iterates over chunks, with or without ``async``::

        with Receiver(layout, "239.10.10.0+3:7148", interface="10.0.0.5") as receiver:
            for chunk in receiver:
                with chunk:
                    process(chunk.timestamp, chunk.data, chunk.present)

    ``chunk.data`` is filled again after the block: copy what you keep (``chunk.copy()``), or `read` some seconds at
    once.

    All memory is allocated when the receiver is made. Sockets are opened when it is started, by ``with`` or by the
    loop. Then it receives in threads of its own, even while nobody iterates. The loop ends when the receiver is stopped
    or drained, or when what it receives (a capture file, an in-process queue) ends. Leaving the ``with`` block stops
    the receiver. If Ctrl-C comes while ``for`` waits for a chunk, the receiver is drained: the loop gets what has come,
    and then raises `KeyboardInterrupt`.

    It survives restarted senders (``resync``) and stop items, and takes the packets of a heap in any order.

    Parameters
    ----------
    layout
        Says where each heap goes.
    sources
        What to receive: UDP endpoints as text (``"239.1.2.0+7:7148"``, see `speadrx.receive.endpoints`) or as
        (host, port) pairs; the path of a capture (pcap or pcapng, perhaps
        compressed); an in-process queue of spead2; SPEAD packets, as an iterable of bytes (or the like); or several of
        them in a sequence. A file, queue or iterable needs a thread of its own, and its end ends that thread. The
        packets of a queue cannot be mended, if the layout asks for that; those of an iterable can. Its first packet is
        taken at once, and the others in a thread. Several files at once need a window (or
        tolerance): each is read as fast as possible, and the window must be larger than the time by which they drift
        apart.
    threads
        Number of streams that fill the same chunks. Each stream has a thread of its own. The sources are dealt out to
        them in order, as evenly as possible. The default is 1: a thread can take some million packets or some 10 Gb
        per second.
    interface
        Interface on which to join multicast groups: its name, or its IPv4 address. By default, the system chooses. An
        endpoint may name its own instead: ``["eth1/239.1.2.0+7:7148", "eth2/239.1.2.0+7:7148"]``.
    ibv
        Receive through ibverbs, which bypasses the kernel; see doc/tuning.md. Every endpoint needs an interface then,
        and all sources must be IPv4 endpoints.
    comp_vector
        Completion vector (interrupt) for ibverbs, modulo the number of vectors, for all threads or one for each;
        negative to poll all the time.
    affinity
        Processor of each thread. Chunks are allocated near the first. By default, any processor.
    window, tolerance_seconds, tolerance_bytes
        The window, so how late heaps may be: as a number of chunks under construction, in seconds of data (needs the
        layout's ``tick_rate``), or in bytes of chunks. Give at most one. The default is 64 MiB, but at least 2 and at
        most 16 chunks. 64 MiB are 50 ms at 10 Gb/s, while senders and switches differ by a few ms. A single chunk would
        have no tolerance at its end, and after each flush as many chunks as the window has come out empty.
    chunks
        Chunks to allocate. The default is twice the window and one, so that receiving need not wait after a flush, and
        2 for the user.
    buffer
        Bytes of socket receive buffer for each thread, divided among its endpoints. The default is 64 MiB: 50 ms at
        10 Gb/s. A busy system does not delay a thread for longer. A warning is logged if the kernel grants less. For
        ibverbs the default is spead2's, 16 MiB.
    user_data
        Values of the fields that the layout takes from the stream's user data (an index, a stride): one mapping for
        all threads, or one for each.
    fill
        What to overwrite missing heaps with; see `iter_chunks`. By default they keep stale data, and ``chunk.present``
        tells which heaps are missing. Whole missing chunks are not given out, unless you ask for `gaps`.
    gaps
        Whether to give out a chunk with no heap present, filled if you ask for `fill`, for each whole chunk that never
        came: at most 1000 in a row, or as many as `gaps` says; see `iter_chunks`. By default they are left out, and
        ``chunk.gap`` tells how many batches were left out before a chunk.
    resync
        Follow senders that are restarted at an earlier time; see `make_stream`. The default is True, since otherwise
        the receiver could wait for ever. Chunks have their true timestamp either way.
    max_jump
        How many chunks a heap may be ahead of the newest chunk; see `make_stream`. The default is the window less one.
    overwrite_recycled
        Whether to overwrite the data of each chunk that is recycled with the byte 0x7F, so that code that still uses it
        is noticed at once. The default is whether Python runs in its development mode (``PYTHONDEVMODE=1``).
    flush_after
        Seconds without a heap that is placed after which to `flush`, whatever else comes. By default never, because
        only the user knows how long a pause may be.
    metrics_port
        Port on which to serve metrics to Prometheus; 0 for any free port. By default, metrics are not served.
    metrics_address
        Address on which to serve them. By default, only programs of this machine reach them. ``"0.0.0.0"`` is for
        everyone who reaches this machine by IPv4, ``"::"`` for everyone; anybody may read them then.
    labels
        Labels that all of these metrics get, as a mapping from names to values.
    **stream_options
        Passed to `spead2.recv.StreamConfig`. A receiver does not take ``explicit_start``. Two defaults differ from
        spead2's. ``allow_out_of_order`` is True, so that no heap is lost because its packets overtake each other.
        ``max_heaps`` is twice the number of heaps in a batch, from 16 to 8192, since all senders may be in the middle
        of a heap.

    Raises
    ------
    ValueError, TypeError
        If an argument is wrong. The message names it and its value.
    MemoryError
        If there is not enough memory for the chunks. The message says how much they need.

    Examples
    --------
    >>> import spead2, speadrx
    >>> from speadrx.simulate import InprocSink, Simulator
    >>> layout = speadrx.Layout(heap_bytes=8, time=speadrx.TimeAxis(item=0x1600, step=1, batches=4))
    >>> queue = spead2.InprocQueue()
    >>> truth = Simulator(layout).send(InprocSink(queue), batches=8)
    >>> queue.stop()
    >>> with speadrx.Receiver(layout, queue) as receiver:
    ...     for chunk in receiver:
    ...         with chunk:
    ...             print(chunk.timestamp, chunk.data.shape, chunk.present.all())
    0 (4, 8) True
    4 (4, 8) True
    >>> receiver.stats().missing
    0
    """

    #: The layout by which heaps are placed.
    layout: DeclarativeLayout
    #: The stream, or the group if there are several threads.
    stream: ChunkRingStream | ChunkStreamRingGroup
    #: The window of each stream, in chunks.
    window: int
    #: The chunks.
    pool: ChunkPool

    def __init__(
        self,
        layout: DeclarativeLayout,
        sources: Any,
        *,
        threads: int = 1,
        interface: str | None = None,
        ibv: bool = False,
        comp_vector: int | Sequence[int] = 0,
        affinity: int | Sequence[int] | None = None,
        window: int | None = None,
        tolerance_seconds: float | None = None,
        tolerance_bytes: int | None = None,
        chunks: int | None = None,
        buffer: int | None = None,
        user_data: Mapping[str, int] | Sequence[Mapping[str, int]] | None = None,
        fill: Any = None,
        gaps: bool | int = False,
        resync: bool = True,
        max_jump: int | None = None,
        flush_after: float | None = None,
        overwrite_recycled: bool | None = None,
        metrics_port: int | None = None,
        metrics_address: str = "127.0.0.1",
        labels: Mapping[str, str] | None = None,
        **stream_options: Any,
    ) -> None:
        if not isinstance(layout, DeclarativeLayout):
            raise TypeError(f"layout: given {layout!r}, but wanted a declarative layout, such as speadrx.Layout(...)")
        self.layout = layout
        settings.check_options(stream_options)
        check_integer("threads", threads, 1)
        self._inputs = settings.deal(settings.read_inputs(sources), threads)
        settings.check_queues(layout, self._inputs)
        tolerance = (window, tolerance_seconds, tolerance_bytes)
        settings.check_files(self._inputs, tolerance=any(value is not None for value in tolerance))
        self._interface = interface
        self._ibv = settings.check_ibv(ibv, self._inputs)
        self._comp_vectors = settings.comp_vectors_of(comp_vector, threads)
        # For ibverbs, the default is spead2's: it is locked memory, of which there is a limit.
        default = None if ibv else settings.DEFAULT_BUFFER
        self._buffer = default if buffer is None else check_integer("buffer", buffer, 0)
        if metrics_port is not None:
            check_integer("metrics_port", metrics_port, 0, 65535)
        self._wanted_port = metrics_port
        if not isinstance(metrics_address, str):
            raise TypeError(f"metrics_address: given {metrics_address!r}, but wanted an address, such as '127.0.0.1'")
        self._metrics_address = metrics_address
        self._labels = settings.labels_of(labels)
        self._exporter: Any = None
        self._port: int | None = None
        # Several threads, or a signal handler, may begin to iterate at the same time.
        self._start_lock = threading.RLock()
        self._started: float | None = None
        self._ended: float | None = None
        processors = settings.processors_of(affinity, threads)
        self.window = settings.window_of(layout, *tolerance)
        n_chunks = settings.chunks_of(chunks, self.window + (threads > 1))
        what = f"chunks: {n_chunks} (for a window of {self.window}) of {layout.chunk_bytes:,} bytes each"
        check_available(what, n_chunks * layout.chunk_bytes)
        stream_options.setdefault("allow_out_of_order", True)
        stream_options.setdefault("max_heaps", settings.heaps_at_a_time(layout))
        self.stream = _make_stream(
            processors,
            n_chunks,
            layout=layout,
            max_active_chunks=self.window,
            user_data=settings.user_data_of(layout, user_data, threads),
            resync=resync,
            max_jump=max_jump,
            flush_after=flush_after,
            **stream_options,
        )
        try:
            self._chunks = iter_chunks(self.stream, fill=fill, gaps=gaps)
            self._chunks._drains_on_interrupt = True
            self.pool = ChunkPool(self.stream, n_chunks)
            if overwrite_recycled is not None:
                self.stream._overwrites_recycled = bool(overwrite_recycled)
        except BaseException:
            self.stream.stop()  # someone may keep the exception, such as an interactive shell, and with it the stream
            raise

    def start(self) -> None:
        """Start to receive, unless it was started already.

        Raises
        ------
        ValueError
            If an endpoint, an interface or a file is wrong, or the receiver has stopped or could not be started before.
        OSError
            If a socket cannot be bound, a group cannot be joined, or a file cannot be read. The message names it.
        """
        check_ours(self.stream)
        with self._start_lock:
            if self._ended is not None:
                raise ValueError("stream: has stopped, so it can receive nothing: wanted a new Receiver")
            if self._started is not None:
                return
            if self.stream._drained:
                raise ValueError(
                    "drain: was called before the start, so nothing can be received any more: wanted a new Receiver, "
                    "started (by `with`, a loop or start()) before drain()"
                )
            if self.stream._stopped:
                raise ValueError("stream: has stopped, so it can receive nothing: wanted a new Receiver")
            self._started = time.monotonic()
            try:
                if self._wanted_port is not None:
                    self._serve(self._wanted_port)
                for stream, inputs, vector in zip(
                    self.stream._streams(), self._resolved(), self._comp_vectors, strict=True
                ):
                    self._add_readers(stream, inputs, vector)
                if any(isinstance(one, tuple) for inputs in self._inputs for one in inputs):
                    find_begin(self.stream)
            except BaseException:
                self._started = None
                self.stop()
                raise

    def _serve(self, port: int) -> None:
        from speadrx.metrics.exporter import Exporter

        self._exporter = exporter = Exporter(tuple(self._labels))
        exporter.add(self.stream, tuple(self._labels.values()))
        try:
            self._port = exporter.serve(port, self._metrics_address)
        except OSError as exc:
            # Only these two errors are about the port.
            what = "metrics_port" if exc.errno in (errno.EADDRINUSE, errno.EACCES) else "metrics_address"
            where = f"port {port}" if what == "metrics_port" else f"{self._metrics_address!r}"
            raise OSError(exc.errno, f"{what}: cannot serve on {where}: {exc.strerror}") from exc
        # This closes the exporter even if nobody stops the receiver. It depends on the stream, since an iterator holds
        # the stream and not the receiver. A new thread does it, since the garbage collector may run in the exporter's
        # own thread, which cannot wait for itself.
        weakref.finalize(self.stream, _thread.start_new_thread, exporter.close, ()).atexit = False

    def _resolved(self) -> list[list[Any]]:
        """The inputs, with all endpoints resolved: together, since those of several threads may overlap too."""
        pairs = [one for inputs in self._inputs for one in inputs if isinstance(one, tuple)]
        endpoints = iter(resolve(pairs, self._interface))
        return [[next(endpoints) if isinstance(one, tuple) else one for one in inputs] for inputs in self._inputs]

    def _add_readers(self, stream: Any, inputs: list[Any], comp_vector: int) -> None:
        endpoints = []
        for one in inputs:
            if isinstance(one, spead2.InprocQueue):
                stream.add_inproc_reader(one)
            elif isinstance(one, Endpoint):
                endpoints.append(one)
            elif isinstance(one, (CapturePart, HandedPackets)):
                one.add_to(stream, sockets_of(stream))
            else:
                add_reader(stream, src=one)
        if endpoints:
            add_reader(stream, src=endpoints, ibv=self._ibv, comp_vector=comp_vector, buffer=self._buffer)

    def stop(self) -> None:
        """Stop receiving at once. The chunks in the window are thrown away; `drain` would hand them over.

        In a forked child, it does nothing.
        """
        if self.stream._inherited:
            return
        self.stream.stop()
        if self._ended is None:
            self._ended = time.monotonic()
        if self._exporter is not None:
            self._exporter.close()

    def flush(self) -> None:
        """Hand over the chunks in the window now, without waiting for newer heaps; see `ChunkRingStream.flush`.

        It returns at once, and the loop goes on.

        Raises
        ------
        ValueError
            If the receiver was made with ``resync=False``. Then chunk IDs would no longer tell the time.
        """
        self.stream.flush()

    def drain(self) -> None:
        """Hand over the chunks in the window, and then stop. The loop gets these chunks, and then ends.

        It returns at once. Packets that have reached this machine are received first. A receiver that was not started
        has none, and cannot be started any more.
        """
        self.stream.drain()

    def read(self, *, seconds: float | None = None, chunks: int | None = None) -> Reading:
        """Copy the next seconds of the stream into arrays of their own, with gaps marked.

        It starts the receiver if need be, goes on where a loop or the last `read` ended, and waits until so much has
        come. It returns less if the receiver ends before, because it is stopped or drained, or a capture ends.
        Reading is for one thread at a time, and while no loop runs.

        Parameters
        ----------
        seconds
            Seconds of data, by the timestamps; needs the layout's ``tick_rate``. It is rounded up to whole chunks.
        chunks
            Chunks, instead.

        Returns
        -------
        Reading
            Samples, which heaps are present, and the time of each batch, with the names of the axes.

        Raises
        ------
        ValueError, TypeError
            If not exactly one of both is given, or it is wrong; or if each thread has strides of its own.
        MemoryError
            If there is not enough memory. Nothing is read then.

        Examples
        --------
        >>> import spead2, speadrx
        >>> from speadrx.simulate import InprocSink, Simulator
        >>> layout = speadrx.Layout(heap_bytes=8, time=speadrx.TimeAxis(item=0x1600, step=1, batches=4))
        >>> queue = spead2.InprocQueue()
        >>> truth = Simulator(layout).send(InprocSink(queue), batches=8)
        >>> queue.stop()
        >>> with speadrx.Receiver(layout, queue) as receiver:
        ...     reading = receiver.read(chunks=2)
        >>> reading.dims, reading.data.shape, bool(reading.present.all())
        (('time', 'sample'), (8, 8), True)
        >>> reading.timestamp.tolist()
        [0, 1, 2, 3, 4, 5, 6, 7]
        """
        n = chunks_to_read(self.layout, seconds, chunks)
        self._start_once()
        return read_chunks(self._chunks, self.layout, n)

    @property
    def accounting(self) -> Account:
        """Heaps present and missing in the chunks that came out."""
        return self._chunks.accounting

    @property
    def ledger(self) -> Ledger:
        """What the placement callback has counted."""
        assert self.stream.ledger is not None  # as the layout is declarative
        return self.stream.ledger

    @property
    def metrics_port(self) -> int | None:
        """Port on which metrics are served; None if they are not served."""
        return self._port

    def stats(self) -> ReceiverStats:
        """Read what was received so far, at any time, from any thread, even after it has stopped.

        Returns
        -------
        ReceiverStats
            Heaps in total, by source and by reason; times in seconds, timestamps in ticks.
        """
        check_ours(self.stream)  # a thread of the parent may have had any lock
        now = time.monotonic() if self._ended is None else self._ended
        return read_stats(self.stream, self.accounting, 0.0 if self._started is None else now - self._started)

    def __iter__(self) -> ChunkIterator:
        self._start_once()
        return iter(self._chunks)

    def __aiter__(self) -> ChunkIterator:
        self._start_once()
        return aiter(self._chunks)

    def _start_once(self) -> None:
        check_ours(self.stream)
        with self._start_lock:
            if self._started is None:  # after a stop it must not start again, but there may be chunks left
                self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _make_stream(processors: list[int], n_chunks: int, **arguments: Any) -> ChunkRingStream | ChunkStreamRingGroup:
    arguments["data_ringbuffer"] = spead2.recv.ChunkRingbuffer(n_chunks)
    arguments["free_ringbuffer"] = spead2.recv.ChunkRingbuffer(n_chunks)
    if len(processors) == 1:
        return make_stream(affinity=processors[0], **arguments)
    return make_stream_group(affinity=processors, **arguments)
