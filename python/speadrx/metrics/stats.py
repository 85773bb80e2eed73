"""Prometheus metrics from the statistics of spead2 streams."""

from __future__ import annotations

import operator
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from .held import HeldStreams
from .labels import LabelSets

__all__ = ["StatsCollector"]


class _Member:
    """One stream, or one member of a group, as it was last counted.

    spead2 wraps a member of a group again at each access, so a member is known by its index.
    """

    def __init__(self, owner: Any, index: int | None, stat_names: Iterable[str]) -> None:
        self.owner = weakref.ref(owner)
        self.index = index
        config = self._stream(owner).config
        indices = []
        for name in stat_names:
            try:
                indices.append(config.get_stat_index(name))
            except IndexError as exc:
                raise IndexError(f"counter_map: the stream has no statistic {name!r}") from exc
        self._several = len(indices) > 1
        # Takes from the statistics those to count: a number, or a tuple of several numbers.
        self.take = operator.itemgetter(*indices)
        #: What was taken last, and the highest value of each statistic so far.
        self.taken: Any = None
        self.counted = [0] * len(indices)

    def _stream(self, owner: Any) -> Any:
        return owner if self.index is None else owner[self.index]

    def read(self, owner: Any) -> Any:
        return self.take(self._stream(owner).stats)

    def numbers(self, taken: Any) -> Iterable[int]:
        return taken if self._several else (taken,)


class _Members:
    """The streams of one owner: the stream itself, or the members of a group."""

    def __init__(self) -> None:
        self.members: list[_Member] = []
        #: The last statistics, read when the owner was closed.
        self.last: list[tuple[_Member, Any]] = []

    def keep_last(self, owner: Any) -> None:
        """Read the statistics a last time. A finaliser may call this."""
        self.last = [(member, member.read(owner)) for member in self.members]


class _LabelSet:
    """The totals of all streams, present and past, that have the same labels."""

    def __init__(self, stat_names: Sequence[str]) -> None:
        self.created = time.time()
        self._stat_names = stat_names
        self.totals = [0] * len(stat_names)
        self._streams = HeldStreams[_Members, None](None, self._count_last)
        #: The members of all owners, in one list, as going through them must be quick.
        self._members: list[_Member] = []

    def add(self, owner: Any, indices: Iterable[int | None]) -> None:
        held = self._streams.find(owner)
        owned = _Members() if held is None else held.remains
        known = {member.index for member in owned.members}
        new = [_Member(owner, index, self._stat_names) for index in indices if index not in known]
        owned.members += new
        self._members += new
        self._streams.add(owner, owned, owned.keep_last)
        for member in new:
            self._count(member, member.read(owner))

    def _count_last(self, total: None, gone: Sequence[_Members]) -> None:
        for members in gone:
            for member, taken in members.last:
                self._count(member, taken)

    def update(self) -> None:
        self._streams.forget_gone()  # counts their last statistics
        any_gone = False
        for member in self._members:
            owner = member.owner()
            if owner is None:
                any_gone = True
                continue
            # `member.read` without its calls: there may be hundreds of streams, and most have not changed.
            taken = member.take(owner.stats if member.index is None else owner[member.index].stats)
            if taken != member.taken:
                self._count(member, taken)
        if any_gone:
            self._members = [member for member in self._members if member.owner() is not None]

    def _count(self, member: _Member, taken: Any) -> None:
        # The last statistics may be older than what was counted since, so never step back.
        for i, value in enumerate(member.numbers(taken)):
            if value > member.counted[i]:
                self.totals[i] += value - member.counted[i]
                member.counted[i] = value
        member.taken = taken


class StatsCollector(Collector):
    """Export statistics of spead2 streams as Prometheus counters.

    Streams are held by weak references. Their counts stay in the totals when they are gone. Streams and groups made by
    speadrx hand over their last statistics when they stop or are deleted. Of other streams, whatever is counted between
    the last `update` (each scrape is one) and their deletion is lost.

    Any number of threads may scrape and add streams at the same time, and no counter ever falls.

    Parameters
    ----------
    counter_map
        For each statistic of the streams, the name and the help text of its counter. The metrics appear in this order.
    labelnames
        Names of the labels of every counter.
    namespace
        Prefix of the names of the counters, joined with an underscore.
    registry
        Where to register the collector. If it is None, the caller does that.

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
        # Reentrant because a finaliser or a signal handler may call `update` in the middle of another `update`.
        self._lock = threading.RLock()
        if not self._label_sets.labelnames:
            self.add_label_set()
        if registry is not None:
            registry.register(self)  # last, as it may collect at once

    def add_label_set(self, labels: Iterable[str] = ()) -> None:
        """Make the samples of a set of labels exist, at 0, before it has a stream.

        If they exist already, nothing happens.

        Parameters
        ----------
        labels
            A value for each label name of the collector.

        Raises
        ------
        ValueError
            If there is not one value for each label name.
        """
        with self._lock:
            self._label_sets.of(labels)

    def add_stream(self, stream: Any, labels: Iterable[str] = ()) -> None:
        """Count a stream, including what it has counted so far.

        A stream that was added under the same labels before is not counted again (katgpucbf's collector counts it
        twice).

        Parameters
        ----------
        stream
            A spead2 stream, or any object with ``config.get_stat_index(name)``, indexable ``stats``, and support for
            weak references. Use `add_stream_group` for the members of a group.
        labels
            A value for each label name of the collector.

        Raises
        ------
        ValueError
            If there is not one value for each label name.
        IndexError
            If the stream lacks a statistic of the counter map.
        """
        self._add(stream, [None], labels)

    def add_stream_group(self, stream_group: Any, labels: Iterable[str] = ()) -> None:
        """Count all streams of a group, including what they have counted so far.

        A group that was added under the same labels before is not counted again (katgpucbf's collector counts it
        twice).

        Parameters
        ----------
        stream_group
            A spead2 stream group, or any sequence of streams that supports weak references.
        labels
            A value for each label name of the collector.

        Raises
        ------
        ValueError
            If there is not one value for each label name.
        IndexError
            If a stream lacks a statistic of the counter map.
        """
        self._add(stream_group, range(len(stream_group)), labels)

    def update(self) -> None:
        """Bring the totals up to date with the streams.

        `collect` does this itself. Call it just before a stream goes away that speadrx has not made, so that none of
        its counts are lost.
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

    def _add(self, owner: Any, indices: Iterable[int | None], labels: Iterable[str]) -> None:
        with self._lock, self._label_sets.adding(labels) as label_set:
            label_set.add(owner, indices)
