"""Prometheus metrics from the statistics of spead2 streams."""

from __future__ import annotations

import contextlib
import functools
import operator
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

_T = TypeVar("_T")


class LabelSets(Generic[_T]):
    """What a collector keeps for each set of values of its labels, made when the values are first seen.

    Parameters
    ----------
    labelnames
        Names of the labels.
    make
        Called to make what is kept.
    """

    def __init__(self, labelnames: Iterable[str], make: Callable[[], _T]) -> None:
        self.labelnames = tuple(labelnames)
        self._make = make
        self._sets: dict[tuple[str, ...], _T] = {}

    def of(self, labels: Iterable[str]) -> _T:
        """What is kept for the values; `ValueError` if their number is wrong."""
        with self.adding(labels) as kept:
            return kept

    @contextlib.contextmanager
    def adding(self, labels: Iterable[str]) -> Iterator[_T]:
        """Give what is kept for the values, and keep it only if the block succeeds: a failure leaves no trace."""
        labels = tuple(map(str, labels))  # as they are exported: 1 and "1" are the same series
        if len(labels) != len(self.labelnames):
            raise ValueError(
                f"labels: {labels} has {len(labels)} values, but the collector has "
                f"{len(self.labelnames)} label names: {self.labelnames}"
            )
        kept = self._sets[labels] if labels in self._sets else self._make()
        yield kept
        self._sets[labels] = kept

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], _T]]:
        """All values, with what is kept for each."""
        return iter(list(self._sets.items()))


class _Source:
    """One stream, or one member of a group, as seen by one label set.

    spead2 wraps the members of a group anew at each access, so the weak reference is to the group.
    """

    def __init__(self, owner: Any, member: int | None, stat_names: Iterable[str]) -> None:
        self.owner = weakref.ref(owner)
        self.member = member
        config = self._stream(owner).config
        indices = []
        for name in stat_names:
            try:
                indices.append(config.get_stat_index(name))
            except IndexError as exc:
                raise IndexError(f"counter_map: the stream has no statistic {name!r}") from exc
        self._several = len(indices) > 1
        # Takes from the statistics those to count: a number, or a tuple of several.
        self.take = operator.itemgetter(*indices)
        #: What was taken last, and the most of each that was ever seen.
        self.taken: Any = None
        self.counted = [0] * len(indices)

    def _stream(self, owner: Any) -> Any:
        return owner if self.member is None else owner[self.member]

    def read(self, owner: Any) -> Any:
        return self.take(self._stream(owner).stats)

    def numbers(self, taken: Any) -> Iterable[int]:
        return taken if self._several else (taken,)


class _LabelSet:
    """The totals of all streams, present and past, that share the same labels."""

    def __init__(self, stat_names: Sequence[str]) -> None:
        self.created = time.time()
        self._stat_names = stat_names
        self.totals = [0] * len(stat_names)
        self._sources: list[_Source] = []
        # Last statistics of streams that go away. A finaliser runs anywhere, also inside `update`: it
        # must neither wait for a lock nor touch the totals, and this queue allows for that.
        self._last: queue.SimpleQueue[tuple[_Source, Any]] = queue.SimpleQueue()

    def add(self, owner: Any, members: Iterable[int | None]) -> None:
        known = {source.member for source in self._sources if source.owner() is owner}
        sources = [_Source(owner, member, self._stat_names) for member in members if member not in known]
        self._sources += sources
        if sources and (on_close := getattr(owner, "_on_close", None)) is not None:
            on_close(functools.partial(self._keep_last, sources))
        for source in sources:
            self._count(source, source.read(owner))

    def _keep_last(self, sources: list[_Source], owner: Any) -> None:
        for source in sources:
            self._last.put((source, source.read(owner)))

    def update(self) -> None:
        while not self._last.empty():
            self._count(*self._last.get_nowait())
        gone = []
        for source in self._sources:
            owner = source.owner()
            if owner is None:
                gone.append(source)
                continue
            # `source.read`, but without its calls: there may be hundreds of streams, most of them as they were.
            taken = source.take(owner.stats if source.member is None else owner[source.member].stats)
            if taken != source.taken:
                self._count(source, taken)
        if gone:
            self._sources = [source for source in self._sources if source not in gone]

    def _count(self, source: _Source, taken: Any) -> None:
        # What a finaliser left in the queue may be older than what was counted since: never step back.
        for i, value in enumerate(source.numbers(taken)):
            if value > source.counted[i]:
                self.totals[i] += value - source.counted[i]
                source.counted[i] = value
        source.taken = taken


class StatsCollector(Collector):
    """Export statistics of spead2 streams as Prometheus counters.

    Streams are held by weak references; their counts stay in the totals when they go away. Streams and
    groups made by speadrx hand over their last statistics when they stop or are deleted. Of other
    streams, what came after the last `update` (each scrape is one) is lost when they are deleted.

    Any number of threads may scrape and add streams at the same time, and no counter ever falls.

    Parameters
    ----------
    counter_map
        For each statistic of the streams, the name and the help text of its counter. The metrics
        appear in this order.
    labelnames
        Names of the labels of every counter.
    namespace
        Prefix of the names of the counters, joined with an underscore.
    registry
        Where to register the collector; None to leave that to the caller.

    Raises
    ------
    ValueError
        If an entry of the counter map is not a name and a help text.
    """

    def __init__(
        self,
        counter_map: Mapping[str, tuple[str, str]],
        labelnames: Iterable[str] = (),
        namespace: str = "",
        registry: CollectorRegistry | None = REGISTRY,
    ) -> None:
        prefix = f"{namespace}_" if namespace else ""
        self._stat_names = tuple(counter_map)
        self._counters: list[tuple[str, str]] = []
        for stat_name, counter in counter_map.items():
            match counter:
                case [str(name), str(text)]:
                    self._counters.append((prefix + name, text))
                case _:
                    raise ValueError(
                        f"counter_map[{stat_name!r}]: given {counter!r}, but wanted a name and a help text"
                    )
        self._label_sets = LabelSets(labelnames, lambda: _LabelSet(self._stat_names))
        # Reentrant because a finaliser or a signal handler may call `update` in the midst of another.
        self._lock = threading.RLock()
        if not self._label_sets.labelnames:
            self.add_label_set()
        if registry is not None:
            registry.register(self)  # last: it may collect at once

    def add_label_set(self, labels: Iterable[str] = ()) -> None:
        """Make the samples of a label set exist, at 0, before it has a stream.

        Does nothing if it exists already.

        Parameters
        ----------
        labels
            A value for each label name of the collector.

        Raises
        ------
        ValueError
            If the number of labels is not that of the label names.
        """
        with self._lock:
            self._label_sets.of(labels)

    def add_stream(self, stream: Any, labels: Iterable[str] = ()) -> None:
        """Count a stream, including what it has counted so far.

        A stream that was added under the same labels before is not counted again (katgpucbf's
        collector counts it twice).

        Parameters
        ----------
        stream
            A spead2 stream, or anything with ``config.get_stat_index(name)``, indexable ``stats``, and
            support for weak references. Use `add_stream_group` for the members of a group.
        labels
            A value for each label name of the collector.

        Raises
        ------
        ValueError
            If the number of labels is not that of the label names.
        IndexError
            If the stream lacks a statistic of the counter map.
        """
        self._add(stream, [None], labels)

    def add_stream_group(self, stream_group: Any, labels: Iterable[str] = ()) -> None:
        """Count all streams of a group, including what they have counted so far.

        A group that was added under the same labels before is not counted again (katgpucbf's
        collector counts it twice).

        Parameters
        ----------
        stream_group
            A spead2 stream group, or any sequence of streams that supports weak references.
        labels
            A value for each label name of the collector.

        Raises
        ------
        ValueError
            If the number of labels is not that of the label names.
        IndexError
            If a stream lacks a statistic of the counter map.
        """
        self._add(stream_group, range(len(stream_group)), labels)

    def update(self) -> None:
        """Bring the totals up to date with the streams.

        `collect` does so by itself. Call this just before a stream not made by speadrx goes away, so
        that nothing of its counts is lost.
        """
        with self._lock:
            for _, label_set in self._label_sets:
                label_set.update()

    def collect(self) -> Iterable[Metric]:
        """Return the counters, up to date: what a registry calls at each scrape."""
        metrics = [CounterMetricFamily(name, text, labels=self._label_sets.labelnames) for name, text in self._counters]
        with self._lock:
            self.update()
            for labels, label_set in self._label_sets:
                for metric, total in zip(metrics, label_set.totals, strict=True):
                    metric.add_metric(labels, total, created=label_set.created)
        return metrics

    def _add(self, owner: Any, members: Iterable[int | None], labels: Iterable[str]) -> None:
        with self._lock, self._label_sets.adding(labels) as label_set:
            label_set.add(owner, members)
