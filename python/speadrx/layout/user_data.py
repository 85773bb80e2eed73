"""The fields of a stream's user data that a layout reads."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .base import DeclarativeLayout

logger = logging.getLogger(__name__)


def user_data_values(layout: DeclarativeLayout, user_data: np.ndarray | None) -> dict[str, int]:
    """Take the fields that a layout reads from one record of user data.

    Parameters
    ----------
    layout
        The layout.
    user_data
        Structured array of one element, or None.

    Raises
    ------
    ValueError
        If a field is missing, not of an integer type, or negative, or `user_data` has more than one element.
    """
    fields = layout.declaration._compiled.user_data_fields
    optional = layout.declaration._compiled.optional_user_data_fields
    if user_data is not None and user_data.size != 1:
        raise ValueError(f"user_data: has {user_data.size} elements, but a single stream takes one")
    have = () if user_data is None else (user_data.dtype.names or ())
    for name in fields:
        if name not in have:
            raise ValueError(f"user_data: has no field {name!r}, which the layout reads (it has {list(have)})")
    if user_data is None:
        return {}
    known = ("stats_base", *fields, *optional)
    for name in known:
        if name in have and user_data.dtype[name].kind not in "iu":
            raise ValueError(f"user_data[{name!r}]: has dtype {user_data.dtype[name]}, but wanted an integer type")
    lacking, unknown = tuple(n for n in optional if n not in have), tuple(n for n in have if n not in known)
    if lacking and unknown:
        _warn_unread(lacking, unknown)
    values = {name: int(user_data[name].reshape(-1)[0]) for name in (*fields, *optional) if name in have}
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"user_data[{name!r}]: {value} must not be negative")
    return values


@functools.cache  # warns once: chunks are viewed with the same user data again and again
def _warn_unread(lacking: tuple[str, ...], unknown: tuple[str, ...]) -> None:
    logger.warning(
        "user_data has no %s, so those strides are dense; it has %s, which the layout does not read",
        ", ".join(map(repr, lacking)),
        ", ".join(map(repr, unknown)),
    )
