"""Find the items that tell heaps of the same time apart, and the values of items that are garbage."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from .values import count, distinct_of, first_of_each, joint

# A value is compared with the typical value of its item. It is garbage if it has less than these fractions of...
#: ... the times at which heaps have it, per time between its first heap and its last.
_DENSITY = 0.5
#: ... the heaps that have it, per time between its first heap and its last.
_RATE = 0.25
#: ... the times in all: few, because a sender may have joined late.
_LEAST_TIMES = 0.1
#: At least so many times in all are needed (or half of the typical number, if that is less).
_FEW_TIMES = 3
#: Fraction of the heaps that may share a slot with another one: so much may be garbage that looks good.
_COLLISIONS = 0.002


class From(IntEnum):
    """Where the values of a column come from; of two that say the same, the later one here is preferred."""

    #: The host and port of the sender.
    SENDER = 0
    #: Bits of the heap counter.
    COUNTER = 1
    #: The ID of an item in the payload.
    PAYLOAD = 2
    #: The ID of the one of several items that is present.
    PRESENT = 3
    #: The value of an item.
    ITEM = 4


@dataclass
class Column:
    """Values that may be an axis, in all heaps whose time is good."""

    origin: From
    #: The item, if the values are of one.
    item: int
    values: np.ndarray
    #: The values that are not garbage, in rising order.
    established: np.ndarray
    #: For each heap, whether its value is one of these.
    good: np.ndarray
    #: At how many times the typical value is seen.
    times: int
    #: The bits of the item that are the values.
    shift: int = 0
    mask: int | None = None

    @property
    def recurs(self) -> bool:
        """Whether values that are not garbage come again at other times."""
        return self.times >= 2 and self.established.size > 0


def sort_out(item: int, values: np.ndarray, times: np.ndarray, origin: From = From.ITEM) -> Column:
    """Tell the good values of an item from garbage, which may be anything, but does not last."""
    distinct, index, counts = distinct_of(values)
    _, times, _ = distinct_of(times)
    first = first_of_each(joint(index, times))
    n_times = np.bincount(index[first], minlength=distinct.size)
    earliest, latest = np.full(distinct.size, times.size), np.zeros(distinct.size, np.int64)
    np.minimum.at(earliest, index, times)
    np.maximum.at(latest, index, times)
    span = latest - earliest + 1
    density, rate = n_times / span, counts / span
    # Medians are over heaps, not over values: many values that come only once must not decide what is typical.
    typical = float(np.median(n_times[index]))
    least = max(_LEAST_TIMES * typical, min(_FEW_TIMES, typical / 2))
    established = n_times >= least
    established &= density >= _DENSITY * np.median(density[index])
    established &= rate >= _RATE * np.median(rate[index])
    return Column(origin, item, values, distinct[established], established[index], int(typical))


def all_good(columns: list[Column], heaps: int) -> np.ndarray:
    """For each of so many heaps, whether its values of all these items are good."""
    good = np.ones(heaps, bool)
    for column in columns:
        good &= column.good
    return good


def distinguishing(times: np.ndarray, columns: list[Column], known: Container[int]) -> list[Column] | None:
    """Find the smallest set of items that tells the heaps of a time apart; None if all recurring items do not.

    If either of two items would do, the value of an item is taken rather than an ID or the heap counter, then the one
    with fewer values, then one that is `known`, then one that has garbage values.
    """
    recurring = [column for column in columns if column.recurs]
    clean = all_good(recurring, times.size)
    rows = first_of_each(joint(times[clean], *(column.values[clean] for column in columns)))
    times = times[clean][rows]
    values = {id(column): column.values[clean][rows] for column in recurring}

    def collisions(chosen: list[Column]) -> int:
        return rows.size - count(joint(times, *(values[id(column)] for column in chosen)))

    allowed = collisions(recurring) + max(1, int(_COLLISIONS * rows.size))
    if allowed > max(2, 0.05 * rows.size):
        return None
    chosen = list(recurring)

    def rank(column: Column) -> tuple[int, ...]:
        return column.origin, -column.established.size, column.item in known, not column.good.all(), -column.item

    for column in sorted(recurring, key=rank):
        without = [other for other in chosen if other is not column]
        if collisions(without) <= allowed:
            chosen = without
    return chosen


def guards(column: Column, times: np.ndarray, chosen: list[Column]) -> bool:
    """Whether the few heaps with another value than all others are garbage: their slots have good heaps already."""
    if column.established.size != 1 or column.good.all():
        return False
    placed = all_good(chosen, times.size)
    slots = joint(times, *(other.values for other in chosen))
    odd = slots[placed & ~column.good]
    return odd.size > 0 and bool(np.isin(odd, slots[placed & column.good]).mean() > 0.5)
