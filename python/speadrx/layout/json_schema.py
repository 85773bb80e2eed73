"""The JSON Schema of layouts in TOML, made from the dataclasses that they become."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal

from .declaration import Axis, Layout, SideItem, TimeAxis

_NUMBER: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
_TYPES: dict[Any, dict[str, Any]] = {int: _NUMBER, float: {"type": "number"}, str: {"type": "string"}}
_ITEM = {"minimum": 7, "maximum": 2**23 - 1}
_NAME = {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}
_POSITIVE = {"minimum": 1}
# What no single field may be, as src/check.rs has it, so that an editor knows.
_LIMITS: dict[tuple[type[Any], str], dict[str, Any]] = {
    (TimeAxis, "item"): _ITEM,
    (TimeAxis, "step"): _POSITIVE,
    (TimeAxis, "batches"): _POSITIVE,
    (TimeAxis, "tick_rate"): {"exclusiveMinimum": 0},
    (TimeAxis, "name"): _NAME,
    (Axis, "name"): _NAME,
    (Axis, "item"): _ITEM,
    (Axis, "shift"): {"maximum": 62},
    (Axis, "mask"): _POSITIVE,
    (Axis, "step"): _POSITIVE,
    (Axis, "size"): _POSITIVE,
    (Axis, "from_user_data"): _NAME,
    (SideItem, "name"): _NAME,
    (SideItem, "item"): _ITEM,
    (SideItem, "shift"): {"maximum": 62},
    (Layout, "heap_bytes"): _POSITIVE,
}


def schema() -> dict[str, Any]:
    """Make the JSON Schema (draft 2020-12) of layouts, for editors and other programs.

    What it refuses is no layout. It cannot see all that makes one: two fields that do not go together, say,
    nor does it tell 8.0 from 8.

    Returns
    -------
    dict
        The schema, as `json.dumps` takes it.

    Examples
    --------
    >>> schema()["properties"]["time"]["required"]
    ['item', 'step', 'batches']
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "speadrx layout",
        **_object(Layout),
    }


def _object(declaration: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(declaration)
    texts = _parameters(declaration)
    properties = {}
    required = []
    for field in dataclasses.fields(declaration):
        entry: dict[str, Any] = {"description": texts.get(field.name, "")}
        entry |= _type(hints[field.name]) | _LIMITS.get((declaration, field.name), {})
        if field.name == "heap_bytes" or (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ):
            required.append(field.name)
        elif isinstance(field.default, int | str):
            entry["default"] = field.default
        properties[field.name] = entry
    summary = (inspect.getdoc(declaration) or "").partition("\n")[0]
    return {
        "description": summary,
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _type(hint: Any) -> dict[str, Any]:
    """The schema of a type annotation. None stands for the field's absence: TOML has none."""
    if hint in _TYPES:
        return dict(_TYPES[hint])
    if dataclasses.is_dataclass(hint):
        # Its field says what it is for.
        return {key: value for key, value in _object(typing.cast("type[Any]", hint)).items() if key != "description"}
    arguments = [argument for argument in typing.get_args(hint) if argument not in (type(None), Ellipsis)]
    origin = typing.get_origin(hint)
    if origin is Literal:
        return {"enum": arguments}
    if origin is tuple:
        return {"type": "array", "items": _type(arguments[0])}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _type(arguments[1])}
    if origin in (UnionType, typing.Union):
        return _type(arguments[0]) if len(arguments) == 1 else {"anyOf": [_type(argument) for argument in arguments]}
    raise TypeError(f"{hint}: no schema is known for such a field")


def _parameters(declaration: type[Any]) -> dict[str, str]:
    """The text on each parameter in a docstring in numpy's style."""
    section = (inspect.getdoc(declaration) or "").partition("Parameters\n----------\n")[2].partition("\n\n")[0]
    texts = {}
    for names, text in re.findall(r"^(\w[\w, ]*)\n((?: +.*\n?)+)", section, re.MULTILINE):
        for name in names.split(", "):
            texts[name] = " ".join(text.split()).replace("``", "`")
    return texts
