"""The layouts that come with speadrx, and how any layout is loaded."""

from __future__ import annotations

import functools
import importlib.resources
import os
from collections.abc import Iterable
from typing import Any

from speadrx._core import LayoutError

from . import overrides as _overrides
from .declaration import Layout, as_tuple, read_toml
from .json_schema import schema

__all__ = ["load", "names", "schema", "summary"]

_SUFFIX = ".toml"
_FILES = importlib.resources.files(__package__) / "presets"


@functools.cache
def names() -> tuple[str, ...]:
    """Names of the layouts that come with speadrx, in order."""
    return tuple(sorted(file.name.removesuffix(_SUFFIX) for file in _FILES.iterdir() if file.name.endswith(_SUFFIX)))


def summary(name: str) -> str:
    """Say in a few words what one of `names` is: the first line of its file but for the editor's directive.

    Parameters
    ----------
    name
        One of `names`.

    Returns
    -------
    str
        Such as "MeerKAT: a tied-array beam".

    Raises
    ------
    LayoutError
        If there is none of that name. The message has those that there are.
    """
    if name not in names():
        raise LayoutError(f"name: {name!r} is no layout that comes with speadrx; those are {', '.join(names())}")
    lines = (_FILES / (name + _SUFFIX)).read_text("utf-8").splitlines()
    return next(line for line in lines if not line.startswith("#:")).removeprefix("# ")


def load(name_or_path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Layout:
    """Load a layout from a TOML file, or one that comes with speadrx.

    Parameters
    ----------
    name_or_path
        One of `names`, or the path of a file. A file in the current directory that is called like one of `names`
        is ``./NAME``.
    overrides
        Changes, one after the other: ``PATH=VALUE``, where the path is that of a field in the file, with
        axes and side items by name (``heap_bytes``, ``time.batches``, ``axes.antenna.size``,
        ``side_items.status.shift``, ``strides.pol``) and the value is one of TOML. A bare word that is none
        is a string; no value at all takes the field back to its default.

    Returns
    -------
    Layout
        Checked, as any that is made.

    Raises
    ------
    LayoutError
        If there is no such layout, or a field is unknown, missing, of the wrong type or out of range. The message
        names the layout, the field, its value and what would be right.
    OSError
        If a file cannot be read.

    Examples
    --------
    >>> load("meerkat-digitiser", ["time.batches=64"]).present_shape
    (2, 64)
    """
    name = os.fspath(name_or_path)
    if name in names():
        text = (_FILES / (name + _SUFFIX)).read_bytes()
    else:
        try:
            text = read_toml(name)
        except FileNotFoundError:
            shown = name or repr(name)
            raise LayoutError(
                f"{shown}: neither a file nor a layout that comes with speadrx; {_overrides.suggest(name, names())}"
            ) from None
    overrides = as_tuple("overrides", overrides)

    def change(spec: dict[str, Any]) -> None:
        for override in overrides:
            _overrides.apply(spec, override)

    label = f"{name} with {', '.join(overrides)}" if overrides else name
    return Layout._from_toml_text(text, label, change)
