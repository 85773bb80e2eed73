"""Options that several sub-commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import click

from speadrx._core import LayoutError
from speadrx.layout import presets
from speadrx.layout.declaration import Layout

from .parameters import keep_files

_P = ParamSpec("_P")
_R = TypeVar("_R")


def load_layout(name_or_path: str, overrides: tuple[str, ...], param_hint: str) -> Layout:
    """Load a layout for a command.

    Raises
    ------
    click.BadParameter
        If it cannot be loaded.
    """
    try:
        return presets.load(name_or_path, overrides)
    except LayoutError as exc:
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


def force_option(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Add ``--force``, which `keep_files` heeds. The command gets it as `force`."""
    return click.option("--force", is_flag=True, help="Overwrite files that exist.")(command)


def layout_options(command: Callable[..., _R]) -> Callable[..., _R]:
    """Add ``--layout`` and ``--set``. The command gets the `Layout` that they make as `layout`."""

    @click.option(
        "-l",
        "--layout",
        "name_or_path",
        metavar="FILE|PRESET",
        required=True,
        help="Layout: a TOML file, or one that comes with speadrx ('speadrx layout --list').",
    )
    @set_option
    @functools.wraps(command)
    def with_layout(*args: Any, name_or_path: str, overrides: tuple[str, ...], **kwargs: Any) -> _R:
        keep_files(name_or_path)
        return command(*args, layout=load_layout(name_or_path, overrides, "-l/--layout"), **kwargs)

    return with_layout
