"""Fields of a layout's file with values of the wrong type: each error names the field, the value, and what is right."""

from __future__ import annotations

import copy
import datetime as dt
import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

import speadrx
from speadrx import Layout, LayoutError

SCHEMA = json.loads((pathlib.Path(speadrx.__file__).parent / "layout/presets/layout.schema.json").read_text("utf-8"))
#: A layout with every table that there can be.
BASE: dict[str, Any] = {
    "heap_bytes": 8,
    "time": {"item": 0x1600, "step": 1, "batches": 4},
    "axes": [{"name": "antenna", "item": 0x4101, "size": 2}],
    "side_items": [{"name": "status", "item": 0x4102}],
    "fields": [{"name": "a", "dtype": "u8"}],
    "packets": {"items": {"0x1600": ">u6"}},
    "send": {"constants": {"0x4103": 1}},
    "strides": {"time": 64},
}
#: What values of TOML are in the words of the schema.
VALUES = [
    ("boolean", True),
    ("integer", 3),
    ("number", 1.5),
    ("string", "1GHz"),
    ("array", [[7]]),
    ("object", {"z": 7}),
    ("date", dt.date(1979, 5, 27)),
]


def kinds(schema: dict[str, Any]) -> set[str]:
    """What values of a field may be."""
    found: set[str] = set()
    for name in ("anyOf", "oneOf"):
        for one in schema.get(name, ()):
            found |= kinds(one)
    if "const" in schema or "enum" in schema:
        found |= {"string"} if "type" not in schema else set()
    declared = schema.get("type", [])
    found |= {declared} if isinstance(declared, str) else set(declared)
    return found | ({"integer"} if "number" in found else set())


def fields(
    schema: dict[str, Any], path: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], set[str]]]:
    """All fields, and what they may be."""
    for name, field in schema.get("properties", {}).items():
        yield (*path, name), kinds(field)
        for one in [field, *field.get("anyOf", ())]:
            yield from fields(one, (*path, name))
            if "properties" in one.get("items", {}):
                yield (*path, name, 0), {"object"}
                yield from fields(one["items"], (*path, name, 0))
            elif "array" in kinds(one) and one.get("items"):
                yield (*path, name, 0), kinds(one["items"])
            if isinstance(one.get("additionalProperties"), dict):
                (key,) = BASE_KEYS.get(name, ["z"])
                yield (*path, name, key), kinds(one["additionalProperties"])


#: A key of each table whose keys are free.
BASE_KEYS = {"items": ["0x1600"], "constants": ["0x4103"], "strides": ["time"]}

CASES = [
    (path, value)
    for path, right in fields(SCHEMA)
    for kind, value in VALUES
    # A number is as good as a list of one there.
    if kind not in right and (path, kind) != (("time", "phases"), "integer")
]


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return str(value) if isinstance(value, dt.date) else json.dumps(value)


def words(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def test_all_fields_are_there() -> None:
    assert {"heap_shape", "time.tick_rate", "axes[0].values[0]", "send.constants.0x4103", "strides.time"} <= {
        words(path) for path, _ in CASES
    }
    assert len(CASES) > 300


@pytest.mark.parametrize(("path", "value"), CASES, ids=lambda one: words(one) if isinstance(one, tuple) else str(one))
def test_the_error_tells_all(tmp_path, path, value) -> None:
    spec = copy.deepcopy(BASE)
    table: Any = spec
    for part, following in itertools.pairwise(path):
        if isinstance(following, int) and not isinstance(table.get(part), list):
            table[part] = [None]
        elif isinstance(part, str):
            table.setdefault(part, {})
        table = table[part]
    table[path[-1]] = value
    file = tmp_path / "a.toml"
    file.write_text("".join(f"{name} = {toml(one)}\n" for name, one in spec.items()), "utf-8")
    with pytest.raises(LayoutError) as caught:
        Layout.from_toml(file)
    said = str(caught.value)
    assert said.startswith(f"{file}: {words(path)}"), said
    inner = [value, *(value if isinstance(value, list) else ())]
    shown = {text for one in inner for text in (repr(one), json.dumps(one, default=str), str(one))}
    assert any(text in said for text in shown), said
    assert any(word in said for word in ("expected", "wanted", "must")), said
