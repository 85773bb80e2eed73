"""Reading documents of JSON: each field is checked as it is taken, and an error names it and its value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


class FieldError(ValueError):
    """A field is absent or wrong; the message names it, its value and what would be right."""


class Fields:
    """The fields of an object of a JSON document.

    Parameters
    ----------
    fields
        The object; arrays and integers of numpy are taken for lists and integers.
    prefix
        What stands before the names of its fields in errors, such as ``"rows."``.
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
        """Take a field that may be absent or null: None then."""
        return None if self._fields.get(name, ...) is None else self.take(name, kind)

    def count(self, name: str, least: int = 0) -> int:
        """Take an integer of 64 bits that is not less than another."""
        value = self._fields.get(name)
        if name not in self._fields:
            raise FieldError(f"{self._prefix}{name}: is absent")
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not least <= value < 2**63:
            raise FieldError(f"{self._prefix}{name}: {_short(value)} must be an integer from {least} to 2^63 - 1")
        return int(value)

    def array(self, name: str) -> list[Any]:
        """Take a list of anything."""
        if name in self._fields and isinstance(self._fields[name], (tuple, np.ndarray)):
            return list(self._fields[name])
        value: list[Any] = self.take(name, list)
        return value

    def counts(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Take a list of integers from 0 on, or of lists of them, as an array of int64 of that shape."""
        value = self.array(name)
        try:
            array = np.array(value or np.zeros(shape, np.int64))
        except (ValueError, OverflowError):  # lists of different lengths
            array = np.zeros(())
        counts = array.astype(np.int64) if array.dtype.kind in "iu" else np.zeros(())  # of 2^63 or more: negative
        if counts.shape != shape or counts.min(initial=0) < 0:
            wanted = " lists of ".join(map(str, shape))
            raise FieldError(f"{self._prefix}{name}: {_short(value)} must be {wanted} integers from 0 to 2^63 - 1")
        return counts


_KINDS = {str: "a string", float: "a number", list: "a list", dict: "an object"}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
