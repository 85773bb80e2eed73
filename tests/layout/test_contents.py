"""What heaps hold, declared: packed samples, complex integers and fields; and the mistakes that can be made there."""

from __future__ import annotations

import json
import pathlib
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from speadrx import Field, Layout, LayoutError, TimeAxis, layouts
from speadrx.cli.group import group
from speadrx.layout.picture import svg_picture

TIME = TimeAxis(item=0x1600, step=16, batches=4)
CINT8 = np.dtype([("re", "i1"), ("im", "i1")])


def make(**fields: Any) -> Layout:
    return Layout(time=TIME, **{"heap_bytes": 240, **fields})


def again(layout: Layout, tmp_path: pathlib.Path) -> Layout:
    path = tmp_path / "layout.toml"
    path.write_text(layout.to_toml(), encoding="utf-8")
    return Layout.from_toml(path)


@pytest.mark.parametrize(
    ("given", "name", "samples"),
    [
        ("int10", "int10", 192),
        (">int10", "int10", 192),
        (">i10", "int10", 192),
        ("i10", "int10", 192),
        ("<i12", "<int12", 160),
        ("<int12", "<int12", 160),
        ("uint4", "uint4", 480),
        ("<uint4", "<uint4", 480),
        (">u3", "uint3", 640),
        ("int1", "int1", 1920),
        ("int2", "int2", 960),
        ("cint4", "cint4", 240),
        ("<cint12", "<cint12", 80),
        # Whole bytes are numpy's, and so are the letters with a number of bytes.
        ("int8", "int8", 240),
        ("<int8", "int8", 240),
        (">int16", ">i2", 120),
        (">i16", ">i2", 120),
        ("<u32", "uint32", 60),
        (">i4", ">i4", 60),
        ("u8", "uint64", 30),
        ("cint8", "cint8", 120),
        ("<cint16", "cint16", 60),
        (">cint16", ">cint16", 60),
        (">cint32", ">cint32", 30),
        (CINT8, "cint8", 120),
        (np.dtype([("re", ">i2"), ("im", ">i2")]), ">cint16", 60),
    ],
)
def test_names(given: Any, name: str, samples: int, tmp_path: pathlib.Path) -> None:
    layout = make(dtype=given)
    assert layout.dtype == name
    assert layout.heap_sample_count == samples
    assert (
        again(layout, tmp_path) == layout == replace(layout) == make(dtype=name) == pickle.loads(pickle.dumps(layout))
    )
    assert make(dtype=given, heap_shape=(samples // 2, 2)).heap_sample_count == samples


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "int0"}, "dtype: 'int0' is not a dtype: packed samples have 1 to 16 bits, like 'int10'"),
        ({"dtype": "int17"}, "dtype: 'int17' is not a dtype: packed samples have 1 to 16 bits"),
        ({"dtype": ">i24"}, "dtype: '>i24' is not a dtype"),
        ({"dtype": "u16"}, r"dtype: 'u16' is not a dtype: .* like 'int16' or '>i2'"),
        ({"dtype": "cint128"}, "dtype: 'cint128' is not a dtype"),
        ({"dtype": "=int10"}, "dtype: '=int10' is not a numpy dtype"),
        ({"dtype": "float10"}, "dtype: 'float10' is not a numpy dtype"),
        ({"dtype": "int7"}, "heap_bytes: 240 is no whole number of int7, which have 7 bits; give heap_shape"),
        (
            {"dtype": "int10", "heap_shape": (191,)},
            r"heap_shape: \(191,\) of int10 is 239 bytes, but heap_bytes is 240",
        ),
        (
            {"dtype": "cint4", "heap_shape": (480,)},
            r"heap_shape: \(480,\) of cint4 is 480 bytes, but heap_bytes is 240",
        ),
    ],
)
def test_mistakes_in_names(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        make(**fields)


def test_the_last_byte_need_not_be_full() -> None:
    assert make(dtype="int7", heap_shape=(274,)).heap_sample_count == 274
    assert make(heap_bytes=1, dtype="uint3", heap_shape=(1, 2)).heap_sample_count == 2


VISIBILITIES = [("tci", "i1"), ("fd", "u1"), ("vis", "c8", (4,))]  # 34 bytes


class TestFields:
    """Records, in Python and TOML."""

    def test_a_record_of_numpy_becomes_fields(self, tmp_path: pathlib.Path) -> None:
        layout = make(heap_bytes=340, dtype=np.dtype(VISIBILITIES))
        named = (Field(name="tci", dtype="int8"), Field(name="fd", dtype="uint8"))
        assert layout.fields == (*named, Field(name="vis", dtype="complex64", shape=(4,)))
        assert layout == make(heap_bytes=340, dtype=VISIBILITIES) == make(heap_bytes=340, fields=[*layout.fields])
        assert again(layout, tmp_path) == layout == replace(layout)
        assert hash(layout) == hash(replace(layout))
        data = np.zeros(4 * 340, np.uint8)
        view = layout.view(data)
        assert (view.shape, view.dtype) == ((4, 10), np.dtype(VISIBILITIES))
        assert view["vis"].shape == (4, 10, 4)
        assert layout.samples(data).base is not None

    def test_several_arrays_in_a_heap(self, tmp_path: pathlib.Path) -> None:
        path = tmp_path / "l0.toml"
        path.write_text(
            """
            heap_bytes = 312
            fields = [
                { name = "vis", dtype = "complex64", shape = [4, 6] },
                { name = "flags", dtype = "uint8", shape = [4, 6] },
                { name = "weights", dtype = ">u4", shape = [4, 6] },
            ]
            [time]
            item = 0x1600
            step = 16
            batches = 4
            """
        )
        layout = Layout.from_toml(path)
        view = layout.view(np.arange(4 * 312, dtype=np.uint64).astype(np.uint8))
        assert view.shape == (4,)
        assert {name: view[name].shape for name in view.dtype.names} == dict.fromkeys(
            ("vis", "flags", "weights"), (4, 4, 6)
        )
        assert view["flags"][1].reshape(-1).tolist() == [(312 + 192 + i) % 256 for i in range(24)]
        changed = layouts.load(path, ["fields.weights.dtype=float32", "fields.flags.shape=[24]"])
        assert (changed.fields[2].dtype, changed.fields[1].shape) == ("float32", (24,))
        assert layouts.load(path, ["fields=[{name='all', dtype='cint8', shape=[156]}]"]).fields[0].dtype == "cint8"

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"fields": 5}, "fields: given 5, but wanted a sequence of speadrx.Field"),
            ({"fields": [("a", "i1")]}, "fields: given .*, but wanted speadrx.Field"),
            ({"fields": [Field(name="a b", dtype="i1")]}, r'fields\[0\].name: "a b" must be a name'),
            ({"fields": [Field(name="a", dtype="i1")] * 2}, 'fields: "a" is given twice'),
            ({"fields": [Field(name="a", dtype="i1", shape=(0,))]}, r'fields\["a"\].shape: 0 must be at least 1'),
            (
                {"fields": [Field(name="a", dtype="i1", shape=(7,))]},
                "heap_bytes: 240 is not a multiple of the 7 bytes of records of a",
            ),
            (
                {"fields": [Field(name="a", dtype="i1")], "dtype": "i2"},
                "dtype: 'int16' cannot be given together with fields",
            ),
            ({"fields": [Field(name="a", dtype="i1")], "dtype": "i1,i2"}, "dtype: a record cannot be given together"),
            (
                {"dtype": np.dtype("i1,i4", align=True)},
                "dtype: the field 'f1' begins at byte 4, but the fields before it have 1",
            ),
            ({"dtype": np.dtype("i4,i1", align=True)}, "dtype: a record has 8 bytes, but its fields have 5"),
            ({"dtype": [("a", [("b", "i1"), ("c", "i4")])]}, r"fields\['a'\].dtype: .* is a record"),
            ({"dtype": [("a", "O")]}, r"fields\['a'\].dtype: 'object' has no fixed binary form"),
        ],
    )
    def test_mistakes(self, given: dict[str, Any], message: str) -> None:
        with pytest.raises(LayoutError, match=message):
            make(**given)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"dtype": "int10"}, r"fields\['a'\].dtype: 'int10' is packed samples, but a field has whole bytes"),
            ({"dtype": "floaty"}, r"fields\['a'\].dtype: 'floaty' is not a numpy dtype"),
            ({"dtype": "i1", "shape": 5}, r"fields\['a'\].shape: given 5, but wanted a sequence"),
            ({"dtype": "S4"}, r"fields\['a'\].dtype: 'S4' is text, not numbers; use 'uint8' for its bytes"),
            ({"dtype": None}, r"fields\['a'\].dtype: None is not a numpy dtype"),
        ],
    )
    def test_mistakes_in_one(self, given: dict[str, Any], message: str) -> None:
        with pytest.raises(LayoutError, match=message):
            Field(name="a", **given)


#: Types of numpy that are no numbers of a fixed size, and what must be said of them.
NO_NUMBERS: list[tuple[Any, str]] = [
    *((text, "is text, not numbers; use 'uint8' for its bytes") for text in ("S4", "<U2", "S", str, bytes)),
    (np.dtype("S16"), "is text, not numbers"),
    ([("a", "i2"), ("b", "S2")], r"fields\['b'\].dtype: .* is text, not numbers"),
    ("O", "'object' has no fixed binary form"),
    (object, "'object' has no fixed binary form"),
    ("V3", "is raw bytes, not numbers; use a dtype like 'int16'"),
    (np.void, "is raw bytes, not numbers"),
    ("(2,)i2", "is raw bytes, not numbers"),
    ("M8[us]", r"'datetime64\[us\]' cannot be received into, .*; use 'int64', and view\('datetime64\[us\]'\)"),
    ("m8[ns]", r"'timedelta64\[ns\]' cannot be received into, .*; use 'int64', and view\('timedelta64\[ns\]'\)"),
    (">M8[s]", r"'>M8\[s\]' cannot be received into, .*; use '>i8', and view\('>M8\[s\]'\)"),
    (np.dtype("M8"), "'datetime64' cannot be received into, .*; use 'int64'"),
    ([("a", "i2"), ("b", "M8[us]")], r"fields\['b'\].dtype: 'datetime64\[us\]' cannot be received into"),
    ([("a", "i2"), ("b", ">m8[D]", (2,))], r"fields\['b'\].dtype: '>m8\[D\]' .*; use '>i8'"),
    (">g", "cannot be shared: .*; use 'uint8' for its bytes"),
    (None, "is not a numpy dtype"),
    (5, "is not a numpy dtype"),
    ("", "is not a numpy dtype"),
    ("float12", "is not a numpy dtype"),
    (["i2"], "is not a numpy dtype"),
    ({"a": 1}, "is not a numpy dtype"),
    (3.5, "is not a numpy dtype"),
]


@pytest.mark.parametrize(("dtype", "message"), NO_NUMBERS)
def test_types_of_numpy_that_are_no_numbers(dtype: Any, message: str) -> None:
    """The error names the field, what was given, and what is wanted."""
    with pytest.raises(LayoutError, match=message) as caught:
        make(dtype=dtype)
    assert str(caught.value).startswith(("dtype: ", "fields['b'].dtype: "))


@pytest.mark.parametrize("dtype", ["?", "f2", "g", "<c8", ">u8", np.int32, int, np.dtype(">f4")])
def test_types_of_numpy_that_are_numbers(tmp_path: pathlib.Path, dtype: Any) -> None:
    layout = make(dtype=dtype)
    path = tmp_path / "layout.toml"
    path.write_text(layout.to_toml(), encoding="utf-8")
    assert layout.view(np.zeros(4 * 240, np.uint8)).dtype == np.dtype(dtype)
    assert Layout.from_toml(path) == layout


def test_command_and_picture(tmp_path: pathlib.Path) -> None:
    def shown(layout: Layout, *options: str) -> str:
        path = tmp_path / "layout.toml"
        path.write_text(layout.to_toml(), encoding="utf-8")
        result = CliRunner().invoke(group, ["layout", str(path), *options])
        assert result.exit_code == 0, result.output
        return result.output

    packed, records = make(dtype="int10"), make(heap_bytes=340, dtype=VISIBILITIES)
    assert "240 bytes: 192 samples of int10" in shown(packed)
    assert "340 bytes: 10 samples of records of tci, fd, vis" in shown(records)
    assert "2,720 bytes: 192 samples, shape (96, 2) of int10".replace("2,720", "240") in shown(
        make(dtype="int10", heap_shape=(96, 2))
    )
    assert json.loads(shown(packed, "--json"))["fields"] == []
    assert json.loads(shown(records, "--json"))["fields"][2] == {"name": "vis", "dtype": "complex64", "shape": [4]}
    assert "192 int10" in svg_picture(packed)
    assert "10 records of tci, fd, vis" in svg_picture(records)
