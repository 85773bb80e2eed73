"""Read JSON documents: each field is checked when it is taken, and an error names the field and its value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


class FieldError(ValueError):
    """A field is absent or wrong. The message names it, its value and what would be right."""


class Fields:
    """The fields of an object of a JSON document.

    Parameters
    ----------
    fields
        The object. Arrays and integers of numpy count as lists and integers.
    prefix
        Put before the names of its fields in errors, such as ``"rows."``.
    """

    def __init__(self, fields: Any, prefix: str = "") -> None:
        if not isinstance(fields, Mapping):
            raise FieldError(f"{prefix.rstrip('.') or 'document'}: {_short(fields)} must be an object")
        self._fields = fields
        self._prefix = prefix

    def take(self, name: str, kind: type) -> Any:
        """Take a field of a type: str, float, list or dict."""
        if name not in self._fields:
            raise FieldError(f"{self._prefix}{name}: is absent")
        value: Any = self._fields[name]
        if kind is float and isinstance(value, (int, np.number)) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, float) and not math.isfinite(value)):
            raise FieldError(f"{self._prefix}{name}: {_short(value)} must be {_KINDS[kind]}")
        return value

    def optional(self, name: str, kind: type) -> Any:
        """Take a field, or None if it is absent or null."""
        return None if self._fields.get(name, ...) is None else self.take(name, kind)

    def count(self, name: str, least: int = 0) -> int:
        """Take an integer that is at least `least`, and fits in 64 bits."""
        value = self._fields.get(name)
        if name not in self._fields:
            raise FieldError(f"{self._prefix}{name}: is absent")
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not least <= value < 2**63:
            raise FieldError(f"{self._prefix}{name}: {_short(value)} must be an integer from {least} to 2^63 - 1")
        return int(value)

    def array(self, name: str) -> list[Any]:
        """Take a list."""
        if name in self._fields and isinstance(self._fields[name], (tuple, np.ndarray)):
            return list(self._fields[name])
        value: list[Any] = self.take(name, list)
        return value

    def counts(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Take a list of integers that are not negative, or a list of such lists, as an int64 array of that shape."""
        value = self.array(name)
        try:
            array = np.array(value or np.zeros(shape, np.int64))
        except (ValueError, OverflowError):  # lists of different lengths
            array = np.zeros(())
        # Integers from 2^63 on become negative.
        counts = array.astype(np.int64) if array.dtype.kind in "iu" else np.zeros(())
        if counts.shape != shape or counts.min(initial=0) < 0:
            wanted = " lists of ".join(map(str, shape))
            raise FieldError(f"{self._prefix}{name}: {_short(value)} must be {wanted} integers from 0 to 2^63 - 1")
        return counts


_KINDS = {str: "a string", float: "a number", list: "a list", dict: "an object"}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
