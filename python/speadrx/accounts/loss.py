"""The loss figure: the one definition that every table, document, metric and exit code goes by."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # who asks only for the loss of all, as top does, needs no numpy
    import numpy as np


def loss(missing: float | None, present: float | None) -> float | None:
    """Return the missing heaps as a fraction of those that should have been present.

    Parameters
    ----------
    missing, present
        Heaps, of an account (see `Account`) or of a part of its time; None if not known.

    Returns
    -------
    float or None
        From 0 to 1. None if nothing should have been present, or if it is not known.
    """
    if missing is None or present is None or missing + present == 0:
        return None
    return missing / (missing + present)


def losses(missing: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Return the same for each element of two arrays. Something must be expected of each."""
    fractions: np.ndarray = missing / (missing + present)
    return fractions


def loss_expression(missing: str, present: str) -> str:
    """Write the same in PromQL, for two expressions with the same labels. Where nothing is expected, it is NaN."""
    return f"{missing} / ({missing} + {present})"
