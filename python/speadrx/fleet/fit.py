"""`Places`: which worker gets which share; and what of a plan does not fit the workers that there are."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from speadrx._core import __version__
from speadrx._words import counted, listed

from .dealing import Share


@dataclass(frozen=True)
class Place:
    """A worker, and what it has."""

    worker: str
    host: str
    #: By name, as the worker was started with.
    resources: Mapping[str, float]
    #: Bytes that its machine had free when the worker was asked.
    memory: int
    processors: int
    version: str
    #: Why it cannot find the function of the plan.
    function_error: str | None = None

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Place:
        """Read what a worker says."""
        return cls(**{field.name: facts[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class Problem:
    """Something that does not fit."""

    text: str
    #: Whether the fleet cannot receive all because of it.
    fatal: bool


class Places:
    """The workers that there are, and which share each has.

    The scheduler of Dask would also give a share to a worker whose resources are in use, where it waits for ever.

    Parameters
    ----------
    resources
        What each share takes.
    """

    def __init__(self, resources: Mapping[str, float]) -> None:
        self._resources = dict(resources)
        self.places: dict[str, Place] = {}
        #: Workers of which nothing is heard: they get no share.
        self.silent: set[str] = set()
        self._shares: dict[str, str] = {}
        #: How many shares each worker, and each host has: with many shares, counting them each time takes long.
        self._on_worker: Counter[str] = Counter()
        self._on_host: Counter[str] = Counter()

    def add(self, place: Place) -> None:
        """There is a worker."""
        self.places[place.worker] = place

    def remove(self, worker: str) -> list[str]:
        """A worker is gone. Return the shares that it had."""
        gone = self.on(worker)
        for share in gone:
            self.release(share)
        self.places.pop(worker, None)
        self.silent.discard(worker)
        return gone

    def on(self, worker: str) -> list[str]:
        """The shares that a worker has."""
        return [share for share, where in self._shares.items() if where == worker]

    def free(self) -> list[Place]:
        """The workers with room for a share."""
        return [one for one in self.places.values() if one.worker not in self.silent and self._has_room(one)]

    def take(self, share: str) -> Place | None:
        """Choose a worker for a share: of those with room, the one whose machine has the fewest. None if none has."""
        free = self.free()
        if not free:
            return None
        place = min(free, key=lambda one: (self._on_host[one.host], one.worker))
        self._shares[share] = place.worker
        self._on_worker[place.worker] += 1
        self._on_host[place.host] += 1
        return place

    def release(self, share: str) -> None:
        """A share is no longer where it was."""
        worker = self._shares.pop(share, None)
        if worker is not None:
            self._on_worker[worker] -= 1
            self._on_host[self.places[worker].host] -= 1

    def _has_room(self, place: Place) -> bool:
        taken = self._on_worker[place.worker]
        return all(place.resources.get(name, 0) >= (taken + 1) * n for name, n in self._resources.items())


def problems(shares: Sequence[Share], resources: Mapping[str, float], places: Iterable[Place]) -> list[Problem]:
    """Say all that does not fit.

    Parameters
    ----------
    shares
        The shares of the plan.
    resources
        What each takes.
    places
        The workers.
    """
    trial = Places(resources)
    for place in places:
        trial.add(place)
    if not trial.places:
        return [Problem("there are no workers", fatal=True)]
    found = [
        Problem(f"{place.worker} on {place.host} has speadrx {place.version}, and this is {__version__}", fatal=True)
        for place in trial.places.values()
        if place.version != __version__
    ]
    without: defaultdict[str, list[str]] = defaultdict(list)
    for place in trial.places.values():
        if place.function_error is not None:
            without[place.function_error].append(f"{place.worker} on {place.host}")
    found += [
        Problem(f"function: {counted(len(names), 'worker')} ({listed(names)}) cannot find it: {error}", fatal=True)
        for error, names in without.items()
    ]
    on_host: defaultdict[str, list[Share]] = defaultdict(list)
    left = []
    for share in shares:
        chosen = trial.take(share.name)
        if chosen is None:
            left.append(share.name)
        else:
            on_host[chosen.host].append(share)
    if left:
        wanted = ", ".join(f"{name} {n:g}" for name, n in resources.items())
        found.append(
            Problem(
                f"resources: {counted(len(left), 'share')} ({listed(left)}) find no worker with {wanted} free: "
                f"{_what_there_is(resources, list(trial.places.values()))}",
                fatal=True,
            )
        )
    for host, there in on_host.items():
        found += _on_host(host, there, [place for place in trial.places.values() if place.host == host])
    return found


def _what_there_is(wanted: Mapping[str, float], places: Sequence[Place]) -> str:
    """How many workers have how much, and what nobody has."""
    having = Counter((name, amount) for place in places for name, amount in place.resources.items())
    texts = [
        f"{counted(n, 'worker')} {'has' if n == 1 else 'have'} {name} {amount:g}"
        for (name, amount), n in sorted(having.items())
    ]
    nobody = [name for name in wanted if not any(name in place.resources for place in places)]
    if nobody:
        texts.append(f"of {counted(len(places), 'worker')}, none has {listed(nobody)}")
    return listed(texts, separator="; ")


def _on_host(host: str, shares: Sequence[Share], places: Sequence[Place]) -> Iterable[Problem]:
    needed, free = sum(share.memory for share in shares), min(place.memory for place in places)
    if needed > free:
        yield Problem(
            f"memory: {host} has {free / 2**30:.1f} GiB free, but its {counted(len(shares), 'share')} need "
            f"{needed / 2**30:.1f} GiB: take fewer chunks, a smaller window, or more machines",
            fatal=True,
        )
    threads, processors = sum(share.threads + 1 for share in shares), max(place.processors for place in places)
    if threads > processors:
        yield Problem(
            f"processors: {host} has {processors}, but its {counted(len(shares), 'share')} have {threads} threads that "
            "may all be busy",
            fatal=False,
        )
