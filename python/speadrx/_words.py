"""Words that messages of several folders need: plurals, and lists that may be cut."""

from __future__ import annotations

from collections.abc import Iterable


def counted(number: int, noun: str) -> str:
    """Write a number of things.

    Examples
    --------
    >>> counted(1, "packet"), counted(2000, "packet")
    ('1 packet', '2,000 packets')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(things: Iterable[object], most: int = 8, separator: str = ", ") -> str:
    """Write a list, which says how many more there are after the first things.

    Examples
    --------
    >>> listed("abcde", 3)
    'a, b, c and 2 more'
    """
    texts = [str(thing) for thing in things]
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return separator.join(texts[:most]) + more
