"""`Exporter`: all metrics of streams, served to Prometheus over HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry

from speadrx.receive.stream import ChunkStreamRingGroup

from . import names
from .build import BuildCollector
from .collector import Stream
from .consumer import ConsumerCollector
from .kernel import KernelCollector
from .labels import check_labelnames
from .ledger import LedgerCollector
from .rings import RingCollector
from .server import MetricsServer
from .stats import StatsCollector
from .unused import UnusedCollector

__all__ = ["Exporter"]

#: What spead2 counts itself, and the names under which it is exported.
_SPEAD2_STATISTICS = {
    "too_old_heaps": names.HEAPS_TOO_OLD,
    "incomplete_heaps_evicted": names.HEAPS_INCOMPLETE_EVICTED,
    "incomplete_heaps_flushed": names.HEAPS_INCOMPLETE_FLUSHED,
    "packets": names.PACKETS,
    "worker_blocked": names.WORKER_BLOCKED,
}


class Exporter:
    """Export all that is known of streams and groups, and serve it over HTTP, from a thread of its own.

    It exports the ledgers, the accounts of `iter_chunks`, the rings, what the kernel says of the sockets, the
    packets that are not used, what spead2 counts, and the versions that run. It is a context manager that closes
    itself.

    Parameters
    ----------
    labelnames
        Names of the labels that tell streams apart.
    registry
        Where to register the metrics. By default, a new registry that has nothing else.

    Examples
    --------
    >>> import speadrx.collectors
    >>> with speadrx.collectors.Exporter(["stream"]) as exporter:
    ...     port = exporter.serve(0)  # any free port; the metrics are at http://localhost:port/metrics
    """

    #: Where the metrics are registered.
    registry: CollectorRegistry

    def __init__(self, labelnames: Iterable[str] = (), registry: CollectorRegistry | None = None) -> None:
        labels = check_labelnames(labelnames)
        self.registry = CollectorRegistry(auto_describe=True) if registry is None else registry
        self._statistics = StatsCollector(
            {statistic: (name, names.HELP[name]) for statistic, name in _SPEAD2_STATISTICS.items()},
            labels,
            registry=None,
        )
        rings = RingCollector(labels)
        self._collectors = (
            LedgerCollector(labels),
            ConsumerCollector(labels),
            rings,
            KernelCollector(labels),
            UnusedCollector(labels),
            BuildCollector(labels),
        )
        self._closed = False
        self._close = contextlib.ExitStack()
        self._close.callback(rings.close)
        try:
            for collector in (*self._collectors, self._statistics):
                self.registry.register(collector)
                self._close.callback(self.registry.unregister, collector)
        except BaseException:
            self.close()
            raise

    def add(self, stream: Stream, labels: Iterable[str] = ()) -> None:
        """Export a stream or group, including what it has counted so far.

        Streams under the same labels add up. A stream that was added under the same labels before is not counted again.

        Parameters
        ----------
        stream
            A stream or group made by `make_stream` or `make_stream_group`. It is held weakly. Its counts stay after it
            is gone.
        labels
            A value for each label name.

        Raises
        ------
        TypeError
            If `stream` was not made by this package, or `labels` is a string.
        ValueError
            If there is not one value for each label name.
        """
        if isinstance(labels, str):
            raise TypeError(f"labels: given the string {labels!r}, but wanted a list of strings")
        labels = tuple(labels)
        for collector in self._collectors:
            collector.add(stream, labels)
        if isinstance(stream, ChunkStreamRingGroup):
            self._statistics.add_stream_group(stream, labels)
        else:
            self._statistics.add_stream(stream, labels)

    def serve(self, port: int, addr: str = "127.0.0.1") -> int:
        """Serve the metrics over HTTP under ``/metrics``, from a thread of its own, until `close`.

        While it serves, the exporter stays alive. Few clients are served at a time, and none for long, so that clients
        cannot take the descriptors that the process needs.

        Parameters
        ----------
        port
            TCP port; 0 for any free port.
        addr
            Address to listen on. By default, only programs of this machine reach the metrics; ``"0.0.0.0"`` is for all
            addresses of IPv4, ``"::"`` for all.

        Returns
        -------
        int
            The port.

        Raises
        ------
        ValueError
            If `port` is not a port, or the exporter is closed.
        OSError
            If it cannot listen on the port and address.
        """
        if not 0 <= port <= 65535:
            raise ValueError(f"port: {port} must be from 0 to 65535")
        if self._closed:
            raise ValueError("serve: the exporter is closed")
        server = MetricsServer(self.registry, port, addr)
        self._close.callback(server.close)
        return server.port

    def close(self) -> None:
        """End the threads, and remove the metrics from the registry. It may be called again."""
        self._closed = True
        self._close.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
