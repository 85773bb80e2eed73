"""`Receiver`: rings, chunks, streams, readers and metrics in one object, with defaults that each have a reason."""

from __future__ import annotations

import _thread
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import spead2
import spead2.recv

from speadrx.accounts.accounting import Accounting
from speadrx.accounts.ledger import Ledger
from speadrx.accounts.report import ReceiverStats
from speadrx.layout.base import DeclarativeLayout

from . import settings
from .chunk import ChunkPool
from .iterate import ChunkIterator, iter_chunks
from .memory import check_available
from .readers import add_reader, check_integer
from .snapshot import read_stats
from .stream import ChunkRingStream, ChunkStreamRingGroup, make_stream, make_stream_group


class Receiver:
    """Receive by a layout: a stream or a group of them, with all that they need.

    It is a context manager and iterates over chunks, with ``async`` or without::

        with Receiver(layout, "239.10.10.0+3:7148", interface="10.0.0.5") as receiver:
            for chunk in receiver:
                with chunk:
                    process(chunk.timestamp, chunk.data, chunk.present)

    It allocates all memory when it is made; sockets are opened when it is started, by ``with`` or by the loop. Then it
    receives in threads of its own, also while nobody iterates. The loop ends when it is stopped or drained, or
    its source (a capture file, an in-process queue) ends. Leaving the ``with`` block stops it.

    It survives restarted senders (``resync``) and stop items, and takes packets of a heap in any order.

    Parameters
    ----------
    layout
        Says where each heap goes.
    sources
        What to receive: UDP endpoints as text (``"239.1.2.0+7:7148"``, see `speadrx.receive.endpoints`) or (host, port)
        pairs; the path of a pcap file; or in-process queues of spead2; or several in a sequence. A file or queue must
        have a thread of its own, which its end ends. Several files at once need a window (or tolerance) that is given,
        for they are read as fast as each can be: it must hold what they may come apart by.
    threads
        Streams, each with a thread of its own, that fill the same chunks. The sources are dealt out in order, as
        evenly as they can be. By default 1: a thread takes some millions of packets or some 10 Gb/s.
    interface
        IPv4 address of the interface on which to join multicast groups. By default, the system chooses.
    affinity
        Processor of each thread; chunks are allocated near the first. By default, any.
    window, tolerance_seconds, tolerance_bytes
        How late heaps may be, compared with the newest: as a number of chunks under construction, in seconds of
        data (needs the layout's ``tick_rate``), or in bytes of chunks. Give at most one. By default 64 MiB, but at
        least 2 and at most 16 chunks: 64 MiB are 50 ms at 10 Gb/s, while senders and switches are out of step by a
        few ms; a single chunk would have no tolerance at its end; and each flush makes as many come out empty.
    chunks
        Chunks to allocate. By default, twice those under construction and one, so that a flush waits for none,
        and 2 for the user.
    buffer
        Bytes of socket receive buffer of each thread, split among its endpoints. By default 64 MiB: 50 ms at 10 Gb/s,
        longer than a busy system keeps a thread from running. The log says if the kernel grants less.
    user_data
        Fields that the layout takes from the stream's user data (an index, a stride): one mapping for all threads, or
        one for each.
    fill
        What to overwrite missing heaps with; see `iter_chunks`. By default they hold what was there before, and
        ``chunk.present`` tells which they are.
    resync
        Follow senders that are restarted at an earlier time; see `make_stream`. By default True, for a receiver that
        waits for ever is of no use; chunks have their true timestamp either way.
    max_jump
        Chunks that one heap may be ahead of the newest; see `make_stream`. By default, the window less one.
    flush_after
        Seconds of silence after which to `flush`. By default never, for how long a pause may be only its user knows.
    metrics_port
        Port on which to serve metrics to Prometheus on all interfaces, 0 for any that is free. By default none.
    labels
        Labels of these metrics, by name.
    **stream_options
        Passed to `spead2.recv.StreamConfig`; ``explicit_start`` is not for a receiver. Other than in spead2,
        ``allow_out_of_order`` is True (packets of a heap that overtake each other are no reason to lose it) and
        ``max_heaps`` twice the heaps of a batch (all senders may be in the midst of a heap), from 16 to 8192.

    Raises
    ------
    ValueError, TypeError
        If an argument is wrong. The message names it and its value.
    MemoryError
        If there is not so much memory as the chunks need. The message says how much that is.

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

    #: The layout that heaps are placed by.
    layout: DeclarativeLayout
    #: The stream, or if it has several threads the group.
    stream: ChunkRingStream | ChunkStreamRingGroup
    #: Chunks under construction, at most.
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
        affinity: int | Sequence[int] | None = None,
        window: int | None = None,
        tolerance_seconds: float | None = None,
        tolerance_bytes: int | None = None,
        chunks: int | None = None,
        buffer: int | None = None,
        user_data: Mapping[str, int] | Sequence[Mapping[str, int]] | None = None,
        fill: Any = None,
        resync: bool = True,
        max_jump: int | None = None,
        flush_after: float | None = None,
        metrics_port: int | None = None,
        labels: Mapping[str, str] | None = None,
        **stream_options: Any,
    ) -> None:
        if not isinstance(layout, DeclarativeLayout):
            raise TypeError(f"layout: given {layout!r}, but wanted a declarative layout, such as speadrx.Layout(...)")
        self.layout = layout
        settings.check_options(stream_options)
        check_integer("threads", threads, 1)
        self._parts = settings.deal(settings.read_sources(sources), threads)
        tolerance = (window, tolerance_seconds, tolerance_bytes)
        settings.check_files(self._parts, tolerance=any(value is not None for value in tolerance))
        self._interface = interface
        self._buffer = settings.DEFAULT_BUFFER if buffer is None else check_integer("buffer", buffer, 0)
        if metrics_port is not None:
            check_integer("metrics_port", metrics_port, 0, 65535)
        self._wanted_port = metrics_port
        self._labels = settings.labels_of(labels)
        self._exporter: Any = None
        self._port: int | None = None
        self._start_lock = threading.RLock()  # several threads may begin to iterate at once, or a signal handler
        self._started: float | None = None
        self._ended: float | None = None

        processors = settings.processors_of(affinity, threads)
        self.window = settings.window_of(layout, *tolerance)
        active = self.window + (threads > 1)
        n_chunks = settings.chunks_of(chunks, active)
        what = f"chunks: {n_chunks} (for a window of {self.window}) of {layout.chunk_bytes:,} bytes each"
        check_available(what, n_chunks * layout.chunk_bytes)
        arguments: dict[str, Any] = {
            "layout": layout,
            "max_active_chunks": self.window,
            "data_ringbuffer": spead2.recv.ChunkRingbuffer(n_chunks),
            "free_ringbuffer": spead2.recv.ChunkRingbuffer(n_chunks),
            "user_data": settings.user_data_of(layout, user_data, threads),
            "resync": resync,
            "max_jump": max_jump,
            "flush_after": flush_after,
            "allow_out_of_order": True,
            "max_heaps": settings.heaps_at_a_time(layout),
            **stream_options,
        }
        self.stream = (
            make_stream(affinity=processors[0], **arguments)
            if threads == 1
            else make_stream_group(affinity=processors, **arguments)
        )
        try:
            self._chunks = iter_chunks(self.stream, fill=fill)
            self.pool = ChunkPool(self.stream, n_chunks)
        except BaseException:
            self.stream.stop()  # for whoever keeps the exception, such as an interactive shell
            raise

    def start(self) -> None:
        """Start to receive, if that has not been done.

        Raises
        ------
        ValueError
            If an endpoint, an interface or a file is none, or it has been stopped, or could not be started.
        OSError
            If a socket cannot be bound, a group cannot be joined, or a file cannot be read. The message names it.
        """
        with self._start_lock:
            if self._ended is not None:
                raise ValueError("stream: has stopped, so it can receive nothing: wanted a new Receiver")
            if self._started is not None:
                return
            self._started = time.monotonic()
            try:
                if self._wanted_port is not None:
                    self._serve(self._wanted_port)
                for stream, part in zip(self.stream._streams(), self._parts, strict=True):
                    self._add_readers(stream, part)
            except BaseException:
                self._started = None
                self.stop()
                raise

    def _serve(self, port: int) -> None:
        from speadrx.metrics.collectors import Exporter

        self._exporter = exporter = Exporter(tuple(self._labels))
        exporter.add(self.stream, tuple(self._labels.values()))
        try:
            self._port = exporter.serve(port)
        except OSError as exc:
            raise OSError(exc.errno, f"metrics_port: cannot serve on port {port}: {exc.strerror}") from exc
        # Where nobody stops it; the stream, not this object, is what an iterator holds. The collector may run in the
        # exporter's own thread, which cannot wait for itself.
        weakref.finalize(self.stream, _thread.start_new_thread, exporter.close, ()).atexit = False

    def _add_readers(self, stream: Any, part: list[Any]) -> None:
        endpoints = []
        for source in part:
            if isinstance(source, spead2.InprocQueue):
                stream.add_inproc_reader(source)
            elif isinstance(source, tuple):
                endpoints.append(source)
            else:
                add_reader(stream, src=source)
        if endpoints:
            add_reader(stream, src=endpoints, interface=self._interface, buffer=self._buffer)

    def stop(self) -> None:
        """Stop receiving at once; chunks under construction are thrown away (`drain` hands them over)."""
        self.stream.stop()
        if self._ended is None:
            self._ended = time.monotonic()
        if self._exporter is not None:
            self._exporter.close()

    def flush(self) -> None:
        """Hand over the chunks under construction, though no newer data has come; see `ChunkRingStream.flush`.

        Returns at once; the loop goes on.

        Raises
        ------
        ValueError
            If the receiver was made with ``resync=False``: chunk IDs would no longer tell the time.
        """
        self.stream.flush()

    def drain(self) -> None:
        """Hand over the chunks under construction, and then stop: the loop gets them, and ends.

        Returns at once. What has been sent is received first, as far as it has reached this machine.
        """
        self.stream.drain()

    @property
    def accounting(self) -> Accounting:
        """What is present and what is missing in the chunks that came out."""
        return self._chunks.accounting

    @property
    def ledger(self) -> Ledger:
        """What the placement callback has counted."""
        assert self.stream.ledger is not None  # as the layout is declarative
        return self.stream.ledger

    @property
    def metrics_port(self) -> int | None:
        """Port on which metrics are served; None if they are not."""
        return self._port

    def stats(self) -> ReceiverStats:
        """Read what was received so far; at any time, from any thread, also when it has stopped.

        Returns
        -------
        ReceiverStats
            Heaps in total, by source and by reason; times in seconds, timestamps in ticks.
        """
        now = time.monotonic() if self._ended is None else self._ended
        return read_stats(self.stream, self.accounting, 0.0 if self._started is None else now - self._started)

    def __iter__(self) -> ChunkIterator:
        self._start_once()
        return iter(self._chunks)

    def __aiter__(self) -> ChunkIterator:
        self._start_once()
        return aiter(self._chunks)

    def _start_once(self) -> None:
        with self._start_lock:
            if self._started is None:  # else there may be chunks left, though it has been stopped
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
