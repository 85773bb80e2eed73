"""Changes to a layout that are given as text: ``time.batches=64``."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable
from typing import Any

from speadrx._core import LayoutError, spec_to_toml

from .contents import Field
from .declaration import Axis, Layout, Packets, Send, SideItem, TimeAxis

#: A value that starts with one of these must be TOML. Any other may be a bare word.
_TOML_STARTS = ('"', "'", "[", "{")
_PATHS = (
    "FIELD, time.FIELD, packets.FIELD, send.FIELD, strides.AXIS, axes.NAME.FIELD, fields.NAME.FIELD and "
    "side_items.NAME.FIELD"
)
#: Fields that have fields of their own, and what they are in Python.
_TABLES: dict[str, type] = {
    **dict.fromkeys(("time", "packets", "send", "strides"), dict),
    **dict.fromkeys(("axes", "fields", "side_items"), list),
}

_ENTRIES: dict[str, type] = {"axes": Axis, "fields": Field, "side_items": SideItem}


def apply(spec: dict[str, Any], override: str, parameters: Iterable[str] = ()) -> None:
    """Change one field of a declaration.

    Parameters
    ----------
    spec
        The fields that a declaration sets, as plain dicts and lists.
    override
        ``PATH=VALUE``. The path is that of a field: ``heap_bytes``, ``time.FIELD``, ``packets.FIELD``, ``send.FIELD``,
        ``strides.AXIS``, ``axes.NAME.FIELD``, ``fields.NAME.FIELD`` or ``side_items.NAME.FIELD``. The value is written
        as in TOML; a bare word is taken as a string. Without a value, the field gets its default back.
    parameters
        Other names that could have been meant.

    Raises
    ------
    LayoutError
        If `override` does not have that form, the field does not exist, or the value has the wrong type.
    """
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise LayoutError(f"{override!r} does not change a layout; wanted PATH=VALUE, like time.batches=64")
    path = path.strip()
    table, field = _find(spec, path, parameters)
    if text.strip():
        table[field] = _value(path, text.strip())
        if table is spec and not isinstance(table[field], _TABLES.get(field, object)):
            raise LayoutError(f"{path}: {text.strip()} is not a table; set its fields one by one: {_PATHS}")
    else:
        table.pop(field, None)
    spec_to_toml(spec)  # raises an error if a value has the wrong type


def changed(layout: Layout, overrides: Iterable[str]) -> Layout:
    """Make a layout with some fields changed. The changes are as for `apply`."""

    def change(spec: dict[str, Any]) -> None:
        for override in overrides:
            apply(spec, override)

    return Layout._from_toml_text(layout.to_toml().encode(), ", ".join(["the layout", *overrides]), change)


def assign(spec: dict[str, Any], path: str, value: Any) -> None:
    """Give a field of a declaration a value. The path is as for `apply`."""
    table, field = _find(spec, path)
    table[field] = value


def _value(path: str, text: str) -> Any:
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as exc:
        if text.startswith(_TOML_STARTS):
            raise LayoutError(f"{path}: {text} is not a TOML value ({exc})") from None
        return text
    return document["value"] if len(document) == 1 else text


def _find(spec: dict[str, Any], path: str, parameters: Iterable[str] = ()) -> tuple[dict[str, Any], str]:
    """Find the table that a path leads into, and the last part of the path."""
    match path.split("."):
        case [field]:
            return spec, _known(path, field, (*parameters, *_fields(Layout)))
        case ["packets", field]:
            return spec.setdefault("packets", {}), _known(path, field, _fields(Packets))
        case ["time", field]:
            return spec["time"], _known(path, field, _fields(TimeAxis))
        case ["send", field]:
            return spec.setdefault("send", {}), _known(path, field, _fields(Send))
        case ["strides", axis]:
            axes = [spec["time"].get("name", "time"), *(entry["name"] for entry in spec.get("axes", ()))]
            return spec.setdefault("strides", {}), _known(path, axis, axes)
        case ["axes" | "fields" | "side_items" as array, name, field]:
            entries = {entry["name"]: entry for entry in spec.get(array, ())}
            _known(path, name, entries)
            return entries[name], _known(path, field, _fields(_ENTRIES[array]))
    raise LayoutError(f"{path}: a layout has no such field; paths are {_PATHS}")


def _fields(declaration: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(declaration)]


def _known(path: str, name: str, known: Iterable[str]) -> str:
    known = list(known)
    if name not in known:
        raise LayoutError(f"{path}: there is no {name!r} here; {suggest(name, known)}")
    return name


def suggest(name: str, known: Iterable[str]) -> str:
    """List the known names, and first the one that is probably meant."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {close[0]!r}? Known: " if close else "known: "
    return meant + (", ".join(known) or "none")
