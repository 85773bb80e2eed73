"""Labels of collectors: checks of their names, and what is kept for each set of their values."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from . import names

_T = TypeVar("_T")

#: Labels that collectors add to the user's labels.
_OWN_LABELS = (names.SOURCE, names.REASON, names.RING, names.ENDPOINT, *names.VERSIONS, names.BUCKET)

#: The names that Prometheus allows for labels.
_LABEL_NAME = re.compile("(?!__)[a-zA-Z_][a-zA-Z0-9_]*")


def check_labelnames(labelnames: Iterable[str], argument: str = "labelnames") -> tuple[str, ...]:
    """Check the names of the labels that tell streams apart. Errors name the argument."""
    if isinstance(labelnames, str):
        raise TypeError(f"{argument}: given the string {labelnames!r}, but wanted a list of strings")
    checked = tuple(labelnames)
    for name in checked:
        if not _LABEL_NAME.fullmatch(name):
            raise ValueError(
                f"{argument}: {name!r} is not a label name of Prometheus: wanted letters, digits and underscores, "
                "not beginning with a digit or with two underscores"
            )
        if name in _OWN_LABELS:
            raise ValueError(f"{argument}: {name!r} is taken: some metrics have {', '.join(_OWN_LABELS)} already")
        if checked.count(name) > 1:
            raise ValueError(f"{argument}: {name!r} is given more than once")
    return checked


class LabelSets(Generic[_T]):
    """What a collector keeps for each set of values of its labels. It is made when the values are first seen.

    Parameters
    ----------
    labelnames
        Names of the labels.
    make
        Makes what is kept.
    """

    def __init__(self, labelnames: Iterable[str], make: Callable[[], _T]) -> None:
        self.labelnames = tuple(labelnames)
        self._make = make
        self._sets: dict[tuple[str, ...], _T] = {}

    def of(self, labels: Iterable[str]) -> _T:
        """Return what is kept for the values. Raise `ValueError` if their number is wrong."""
        with self.adding(labels) as kept:
            return kept

    @contextlib.contextmanager
    def adding(self, labels: Iterable[str]) -> Iterator[_T]:
        """Give what is kept for the values. If it is new, keep it only if the block succeeds."""
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
