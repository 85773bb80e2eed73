"""Layouts by name: those that come with speadrx, and those in files."""

from __future__ import annotations

import functools
import importlib.resources
import json
import os
from collections.abc import Iterable
from typing import Any

from speadrx._core import LayoutError

from . import overrides as _overrides
from . import parameters as _parameters
from .declaration import Layout, as_tuple, read_toml

__all__ = ["load", "names", "parameters", "schema", "summary"]

_SUFFIX = ".toml"
_FILES = importlib.resources.files(__package__) / "presets"


def schema() -> dict[str, Any]:
    """Read the JSON Schema (draft 2020-12) of layouts, for editors and other programs.

    What it refuses is not a layout. It checks each field by itself: it cannot see two fields that do not go together,
    and does not tell 8.0 from 8.

    Returns
    -------
    dict
        The schema, as `json.dumps` takes it.

    Examples
    --------
    >>> schema()["properties"]["time"]["required"]
    ['item', 'step', 'batches']
    """
    return dict(json.loads((_FILES / "layout.schema.json").read_text("utf-8")))


@functools.cache
def names() -> tuple[str, ...]:
    """Names of the layouts that come with speadrx, in order."""
    return tuple(sorted(file.name.removesuffix(_SUFFIX) for file in _FILES.iterdir() if file.name.endswith(_SUFFIX)))


def summary(name: str) -> str:
    """Describe one of `names` in a few words, with the first line of text in its file.

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
        If no layout has that name. The message lists the names.
    """
    if name not in names():
        raise LayoutError(f"name: {name!r} does not come with speadrx; these layouts do: {', '.join(names())}")
    lines = (_FILES / (name + _SUFFIX)).read_text("utf-8").splitlines()  # a line with #: is for the editor
    return next(line for line in lines if not line.startswith("#:")).removeprefix("# ")


def parameters(name: str) -> dict[str, int | str]:
    """List the parameters of one of `names`, which `load` takes as changes: ``antennas=80``.

    Parameters
    ----------
    name
        One of `names`.

    Returns
    -------
    dict
        The value of each parameter in the layout's file, by name.

    Examples
    --------
    >>> parameters("meerkat-antenna-channelised-voltage")["antennas"]
    64
    """
    return {parameter.name: parameter.default for parameter in _parameters.of_layout(name)}


def load(name_or_path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Layout:
    """Load a layout from a TOML file, or one that comes with speadrx.

    Parameters
    ----------
    name_or_path
        One of `names`, or the path of a file. Write ``./NAME`` for a file that is called like one of `names`.
    overrides
        Changes: ``PARAMETER=VALUE``, if it is one of the layout's `parameters` (``band=UHF``, ``antennas=80``): all
        fields that follow from it change; then, in order, ``PATH=VALUE``. The path leads to a field, with axes and side
        items by name
        (``heap_bytes``, ``time.batches``, ``axes.antenna.size``, ``side_items.status.shift``, ``strides.pol``).
        The value is written as in TOML; a bare word is taken as a string. Without a value, the field gets its
        default back.

    Returns
    -------
    Layout
        The layout, checked like any other.

    Raises
    ------
    LayoutError
        If there is no such layout, or a field is unknown, missing, of the wrong type or out of range. The message
        names the layout, the field and its value, and says what would be right.
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
    return _from_text(text, name, overrides)


def _from_text(text: bytes, name: str, overrides: Iterable[str]) -> Layout:
    """Make the layout that a text in TOML declares, with changes; `name` is for messages."""
    known = parameters(name)
    overrides = as_tuple("overrides", overrides)

    def change(spec: dict[str, Any]) -> None:
        split = [override.partition("=") for override in overrides]
        given = {path.strip(): value.strip() for path, equals, value in split if equals and path.strip() in known}
        for path, value in _parameters.fields(name, given).items():
            _overrides.assign(spec, path, value)
        for override in overrides:
            if override.partition("=")[0].strip() not in given:
                _overrides.apply(spec, override, known)

    label = f"{name} with {', '.join(overrides)}" if overrides else name
    return Layout._from_toml_text(text, label, change)
