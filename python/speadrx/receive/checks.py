"""Checks of arguments that many functions share."""

from __future__ import annotations

import operator
from typing import Any


def check_integer(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """Check an argument that must be an integer, and return it."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):  # for Python, True is 1
        raise TypeError(f"{name}: given {value!r}, but wanted an integer")
    if least is not None and number < least:
        raise ValueError(f"{name}: {number} must be at least {least}")
    if most is not None and number > most:
        raise ValueError(f"{name}: {number} must be at most {most}")
    return number
