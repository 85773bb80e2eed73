"""Times, fractions, rates and sizes, written in the same way for every command: a number, and a unit if you like."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import click

_QUANTITY = re.compile(r"([-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?) ?([A-Za-z/%]*)")

# Fractions, since a float is not always the nearest to 7 %.
Units = Mapping[str, Fraction]

SECONDS = {
    "s": Fraction(1),
    "ms": Fraction(1, 1000),
    "us": Fraction(1, 1000000),
    "min": Fraction(60),
    "h": Fraction(3600),
}
BYTES = {"B": Fraction(1)} | {
    prefix + suffix: Fraction(base**power)
    for suffix, base, prefixes in (("B", 1000, "kMGT"), ("iB", 1024, "KMGT"))
    for power, prefix in enumerate(prefixes, 1)
}
_GIGABITS_PER_SECOND = {
    f"{prefix}{letter}/s": Fraction(bits * 10**power, 10**9)
    for letter, bits in (("b", 1), ("B", 8))
    for prefix, power in (("", 0), ("k", 3), ("M", 6), ("G", 9))
}


def read(text: str, units: Units, *, bare: bool = True) -> float | None:
    """Read a quantity; None if it is none with these units. A `bare` number has the unit 1."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or not (match[2] in units or (bare and not match[2])):
        return None
    number = float(match[1])
    if not number or math.isinf(number):  # so that exponents are small from here on
        return number
    return float(Fraction(match[1]) * units.get(match[2], 1))


class Quantity(click.ParamType):  # type: ignore[type-arg] # older versions have no arguments here
    """A number with a unit. The command gets it in the unit that a number without a unit has.

    Parameters
    ----------
    name
        What it is, as help and messages call it.
    units
        What each unit stands for.
    examples
        How it is written.
    least, most
        Bounds, in the unit that a number without a unit has.
    above_least
        Whether the least is too little itself.
    whole
        Whether the command gets an integer.
    """

    def __init__(
        self,
        name: str,
        units: Units,
        examples: str,
        *,
        least: float = 0.0,
        most: float = math.inf,
        above_least: bool = False,
        whole: bool = False,
    ) -> None:
        self.name = name
        self._units = units
        self._examples = examples
        self._least, self._most, self._above_least = least, most, above_least
        self._whole = whole

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it, or raise `click.BadParameter`."""
        found = read(value, self._units) if isinstance(value, str) else float(value)
        if found is None:
            self.fail(f"{value!r} is not a {self.name}, such as {self._examples}", param, ctx)
        too_little = found <= self._least if self._above_least else found < self._least
        if too_little or found > self._most or math.isinf(found):
            least = f"{'more than' if self._above_least else 'at least'} {self._least:g}"
            most = "" if math.isinf(self._most) else f" and at most {self._most:g}"
            self.fail(f"{value} must be {least}{most} ({self.name}, such as {self._examples})", param, ctx)
        return round(found) if self._whole else found


def time(least: float = 0.0, most: float = math.inf, *, above_least: bool = False) -> Quantity:
    """Make a type for seconds."""
    return Quantity("time", SECONDS, "10s, 500ms or 2min", least=least, most=most, above_least=above_least)


def size(least: int = 0, most: float = math.inf) -> Quantity:
    """Make a type for bytes."""
    return Quantity("size", BYTES, "9000, 9kB or 64MiB", least=least, most=most, whole=True)


def rate(least: float = 0.0, most: float = math.inf, *, above_least: bool = False) -> Quantity:
    """Make a type for rates in Gb/s."""
    examples = "0.5 (Gb/s), 500Mb/s or 60MB/s"
    return Quantity("rate", _GIGABITS_PER_SECOND, examples, least=least, most=most, above_least=above_least)


#: A probability, or a part of a whole.
FRACTION = Quantity("fraction", {"%": Fraction(1, 100)}, "0.01 or 1%", most=1.0)
