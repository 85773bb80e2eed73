"""The JSON Schema of layouts: it lets all layouts pass, and refuses what the reader finds malformed."""

from __future__ import annotations

import copy
import random
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest

from example_layouts import BASE, MEERKAT
from random_layouts import random_case
from speadrx import Layout, LayoutError, _core, layouts

VALIDATOR = jsonschema.Draft202012Validator(layouts.schema())
MANY = 300


def accepts(document: Any) -> bool:
    return bool(VALIDATOR.is_valid(document))


def malformed(document: dict[str, Any]) -> bool:
    """Whether the reader refuses it for its form."""
    try:
        _core.spec_to_toml(document)
    except LayoutError:
        return True
    return False


def document(layout: Layout) -> dict[str, Any]:
    return tomllib.loads(layout.to_toml())


def test_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(layouts.schema())


def test_every_field_is_explained() -> None:
    def fields(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
        for name, field in schema.get("properties", {}).items():
            yield path + name, field
            yield from fields(field, f"{path}{name}.")
            yield from fields(field.get("items", {}), f"{path}{name}.")

    found = list(fields(layouts.schema()))
    assert len(found) == 63
    assert [name for name, field in found if len(field["description"]) < 10] == []
    assert {name: field["default"] for name, field in found if "default" in field} == {
        "name": "",
        "dtype": "uint8",
        "time.name": "time",
        "time.align": "reject",
        "time.shift": 0,
        "axes.shift": 0,
        "axes.step": 1,
        "side_items.shift": 0,
        "side_items.dtype": "u64",
        "packets.repeat_items": False,
        "send.repeat_items": True,
    }


@pytest.mark.parametrize("name", layouts.names())
def test_presets_pass(name: str) -> None:
    VALIDATOR.validate(tomllib.loads((layouts._FILES / f"{name}.toml").read_text("utf-8")))
    VALIDATOR.validate(document(layouts.load(name)))


def test_examples_pass() -> None:
    for layout in (Layout(**BASE), *(each.declaration for each in MEERKAT)):
        VALIDATOR.validate(document(layout))


def test_random_layouts_pass() -> None:
    for i in range(MANY):
        VALIDATOR.validate(document(random_case(random.Random(f"schema/{i}")).layout))


def tables(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """All tables with fixed fields."""
    return [spec, spec["time"], *spec.get("axes", []), *spec.get("side_items", [])]


def drop(rng: random.Random, spec: dict[str, Any]) -> None:
    table = rng.choice(tables(spec))
    del table[rng.choice(list(table))]


def add(rng: random.Random, spec: dict[str, Any]) -> None:
    rng.choice(tables(spec))[rng.choice(["", "nmae", "Item", "units", "sizes", "time.step"])] = 1


# No floats without a fraction, which JSON Schema takes for integers.
VALUES = [True, -1, 2**63, 1.5, "", "abc", "mask", "u9", [], [1], ["a"], [-1], [1.5], [[]], {}, {"a": 1}, {"time": -1}]


def replace(rng: random.Random, spec: dict[str, Any]) -> None:
    table = rng.choice(tables(spec))
    table[rng.choice(list(table))] = copy.deepcopy(rng.choice(VALUES))


@pytest.mark.parametrize("spoil", [drop, add, replace])
def test_what_is_malformed_is_refused(spoil: Callable[[random.Random, dict[str, Any]], None]) -> None:
    refused = 0
    for i in range(MANY):
        rng = random.Random(f"schema/{spoil.__name__}/{i}")
        spec = document(random_case(rng).layout)
        spoil(rng, spec)
        if malformed(spec):
            refused += 1
            assert not accepts(spec), spec
    assert refused > MANY / 4


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("time", "batches"), 0),
        (("time", "step"), 0),
        (("time", "item"), 6),
        (("time", "item"), 2**23),
        (("time", "tick_rate"), 0),
        (("time", "name"), "1st"),
        (("axes", 0, "name"), "two words"),
        (("axes", 0, "shift"), 63),
        (("axes", 0, "mask"), 0),
        (("axes", 0, "size"), 0),
        (("axes", 0, "step"), 0),
        (("axes", 1, "from_user_data"), "1"),
        (("side_items", 0, "shift"), 63),
        (("side_items", 0, "item"), 0),
        (("heap_bytes",), 0),
    ],
)
def test_limits_are_those_of_the_layout(path: tuple[Any, ...], value: Any) -> None:
    """What no single field can be is refused by both."""
    spec = document(Layout(**BASE))
    assert accepts(spec)
    table: Any = spec
    for part in path[:-1]:
        table = table[part]
    table[path[-1]] = value
    assert not accepts(spec)
    with pytest.raises(LayoutError):
        _core.Layout(spec)
