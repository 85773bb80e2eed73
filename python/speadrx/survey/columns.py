"""Which items of heaps tell those of the same time apart, and which of their values are garbage."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np

from .values import count, joint

#: From its first heap to its last, a value that is not garbage is there at so many of the times of the typical value.
_DENSITY = 0.5
#: In that time, it has so many of the heaps of the typical value.
_RATE = 0.25
#: And it is there at so many of the times of the typical value in all, so that one that joined late is believed.
_LEAST_TIMES = 0.1
_FEW_TIMES = 3
#: Heaps that may share a slot with others, of all: what garbage there is by chance.
_COLLISIONS = 0.002


@dataclass
class Column:
    """An item that may be an axis, over the heaps whose time is good."""

    item: int
    values: np.ndarray
    #: The values that are not garbage, in rising order, and which heaps have one of them.
    established: np.ndarray
    good: np.ndarray
    #: In how many times the typical value is seen.
    times: int

    @property
    def recurs(self) -> bool:
        """Whether it has values that are there at more than one time, and are not garbage."""
        return self.times >= 2 and self.established.size > 0


def sort_out(item: int, values: np.ndarray, times: np.ndarray) -> Column:
    """Tell the values of an item that belong to it from garbage, which is anywhere, but never for long."""
    distinct, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    index = index.reshape(-1)
    times = np.unique(times, return_inverse=True)[1].reshape(-1)
    _, first = np.unique(joint(index, times), return_index=True)
    n_times = np.bincount(index[first], minlength=distinct.size)
    earliest, latest = np.full(distinct.size, times.size), np.zeros(distinct.size, np.int64)
    np.minimum.at(earliest, index, times)
    np.maximum.at(latest, index, times)
    span = latest - earliest + 1
    density, rate = n_times / span, counts / span
    # Typical is the value of the typical heap, so that many values that are there once do not decide it.
    typical = float(np.median(n_times[index]))
    least = max(_LEAST_TIMES * typical, min(_FEW_TIMES, typical / 2))
    established = n_times >= least
    established &= density >= _DENSITY * np.median(density[index])
    established &= rate >= _RATE * np.median(rate[index])
    return Column(item, values, distinct[established], established[index], int(typical))


def all_good(columns: list[Column], heaps: int) -> np.ndarray:
    """Which of so many heaps have a value that is not garbage of each item."""
    good = np.ones(heaps, bool)
    for column in columns:
        good &= column.good
    return good


def distinguishing(times: np.ndarray, columns: list[Column], known: Container[int]) -> list[Column] | None:
    """Find the fewest items that tell the heaps of a time apart; None if those that recur do not.

    Of any two that would do, it is that of fewer values, then one of those `known`, then one that garbage has
    wrong values of.
    """
    recurring = [column for column in columns if column.recurs]
    clean = all_good(recurring, times.size)
    _, rows = np.unique(joint(times[clean], *(column.values[clean] for column in columns)), return_index=True)
    times = times[clean][rows]
    values = {column.item: column.values[clean][rows] for column in recurring}

    def collisions(chosen: list[Column]) -> int:
        return rows.size - count(joint(times, *(values[column.item] for column in chosen)))

    allowed = collisions(recurring) + max(1, int(_COLLISIONS * rows.size))
    if allowed > max(2, 0.05 * rows.size):
        return None
    chosen = list(recurring)
    for column in sorted(recurring, key=lambda c: (-c.established.size, c.item in known, not c.good.all(), -c.item)):
        without = [other for other in chosen if other is not column]
        if collisions(without) <= allowed:
            chosen = without
    return chosen


def guards(column: Column, times: np.ndarray, chosen: list[Column]) -> bool:
    """Whether the few heaps with another value than all others are garbage: their slots have heaps already."""
    if column.established.size != 1 or column.good.all():
        return False
    placed = all_good(chosen, times.size)
    slots = joint(times, *(other.values for other in chosen))
    odd = slots[placed & ~column.good]
    return odd.size > 0 and bool(np.isin(odd, slots[placed & column.good]).mean() > 0.5)
