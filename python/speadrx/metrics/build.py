"""Metric of the versions that a process runs."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Metric

from . import names
from .collector import Stream, StreamCollector


class _LabelSet:
    def add(self, stream: Stream) -> None:
        """A stream has no versions of its own."""


class BuildCollector(StreamCollector[_LabelSet]):
    """Export the versions of speadrx, spead2 and Python, with each set of labels, so that queries can join them."""

    def __init__(self, labelnames: Iterable[str] = (), registry: CollectorRegistry | None = None) -> None:
        super().__init__(_LabelSet, labelnames, registry)
        self._versions = (
            importlib.metadata.version("speadrx"),
            importlib.metadata.version("spead2"),
            platform.python_version(),
        )

    def collect(self) -> Iterable[Metric]:
        """Return the metric: what a registry calls at each scrape."""
        with self._lock:
            samples = {(*labels, *self._versions): 1 for labels, _ in self._label_sets}
        return [self._gauge(names.BUILD_INFO, samples, *names.VERSIONS)]
