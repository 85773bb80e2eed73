"""Options that several sub-commands share."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import click
import numpy as np

from speadrx.layout import presets
from speadrx.layout.declaration import Layout
from speadrx.record.recording import Begin

from . import quantities
from .parameters import keep_files

_P = ParamSpec("_P")
_R = TypeVar("_R")


def load_layout(name_or_path: str, overrides: tuple[str, ...], param_hint: str) -> Layout:
    """Load a layout for a command: one that comes with speadrx, of a TOML file, or the one in a recording.

    Raises
    ------
    click.BadParameter
        If it cannot be loaded.
    """
    try:
        if os.path.isfile(os.path.join(name_or_path, "zarr.json")) and name_or_path not in presets.names():
            from speadrx.record.recording import recorded_layout

            return presets._from_text(recorded_layout(name_or_path), name_or_path, overrides)
        return presets.load(name_or_path, overrides)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint=param_hint) from None
    except OSError as exc:
        raise click.BadParameter(f"{name_or_path}: {exc.strerror or exc}", param_hint=param_hint) from None


def set_option(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Add ``--set``. The command gets it as the tuple `overrides`."""
    return click.option(
        "--set",
        "overrides",
        metavar="PATH=VALUE",
        multiple=True,
        help="Change a field of the layout, like time.batches=64 or axes.antenna.size=80. May be repeated.",
    )(command)


def all_sources_option(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Add ``--all-sources``."""
    return click.option(
        "--all-sources", is_flag=True, help="Show all sources, even if they do not fit in the terminal."
    )(command)


def read_begin(context: click.Context, parameter: click.Parameter, text: str | None) -> Begin | None:
    """Read UTC, or seconds after the beginning."""
    if text is None:
        return None
    seconds = quantities.read(text, quantities.SECONDS)
    if seconds is not None and 0 <= seconds < math.inf:
        return seconds
    with contextlib.suppress(ValueError), warnings.catch_warnings(action="ignore"):  # numpy warns of +01:00
        if "-" in text[1:] and not np.isnat(utc := np.datetime64(text.removesuffix("Z"), "ns")):
            return utc
    raise click.BadParameter(
        f"{text!r} is neither UTC, such as 2026-05-01T22:10, nor a time after the beginning, such as 10s or 5min"
    )


def begin_option(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Add ``--from``. The command gets it as `begin`."""
    return click.option(
        "--from",
        "begin",
        metavar="UTC|TIME",
        callback=read_begin,
        help="Begin there in a recording: at 2026-05-01T22:10, or 10min after its beginning.  [default: its beginning]",
    )(command)


def refuse_begin(begin: Begin | None) -> None:
    """Refuse ``--from`` for what is no recording.

    Raises
    ------
    click.BadParameter
        If it is given.
    """
    if begin is not None:
        raise click.BadParameter("only recordings can be read from some time on", param_hint="--from")


def layout_options(command: Callable[..., _R], *, required: bool = True) -> Callable[..., _R]:
    """Add ``--layout`` and ``--set``. The command gets the `Layout` that they make as `layout`, or None."""

    @click.option(
        "-l",
        "--layout",
        "name_or_path",
        metavar="FILE|PRESET",
        required=required,
        help="Layout: a TOML file, one that comes with speadrx ('speadrx layout --list'), or that of a recording.",
    )
    @set_option
    @functools.wraps(command)
    def with_layout(*args: Any, name_or_path: str | None, overrides: tuple[str, ...], **kwargs: Any) -> _R:
        keep_files(name_or_path)
        layout = None if name_or_path is None else load_layout(name_or_path, overrides, "-l/--layout")
        return command(*args, layout=layout, **kwargs)

    return with_layout
