"""Layouts: what is refused and how, geometry, views, and the callback on its own."""

from __future__ import annotations

import copy
import logging
import pickle
import random
import re
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import spead2.recv

from example_layouts import ANTENNA, BASE, MEERKAT, POL, STATUS, TIME
from handmade import AXIS_ID, GOOD, SMALL, TIME_ID, receive_without_speadrx, small_heap
from random_layouts import random_case
from reference import axis_order, axis_sizes, byte_strides
from speadrx import Axis, BaseLayout, Layout, LayoutError, SideItem, _core
from speadrx.layout import user_data as user_data_module


def time(**changes: Any) -> dict[str, Any]:
    return {"time": replace(TIME, **changes)}


def antenna(**changes: Any) -> dict[str, Any]:
    return {"axes": (replace(ANTENNA, **changes), POL)}


def pol(**changes: Any) -> dict[str, Any]:
    return {"axes": (ANTENNA, replace(POL, **changes))}


def status(**changes: Any) -> dict[str, Any]:
    return {"side_items": (replace(STATUS, **changes),)}


#: Changes to `BASE`, and what the message must say: the field, its value, and what would be right.
BAD_LAYOUTS: list[tuple[dict[str, Any], list[str]]] = [
    ({"heap_bytes": 0}, ["heap_bytes: 0", "at least 1"]),
    ({"heap_bytes": -1}, ["heap_bytes", "-1"]),
    ({"heap_bytes": 2**63}, ["heap_bytes", str(2**63)]),
    ({"heap_bytes": 2**60}, ["heap_bytes", str(2**60), "at most"]),
    ({"heap_bytes": 2**64}, ["heap_bytes", str(2**64)]),
    ({"heap_bytes": "8"}, ["heap_bytes", "8"]),
    ({"heap_bytes": 8.5}, ["heap_bytes", "8.5"]),
    # Time
    (time(item=0), ["time.item: 0x0", "above 0x6"]),
    (time(item=spead2.HEAP_LENGTH_ID), ["time.item: 0x2", "reserved"]),
    (time(item=2**23), ["time.item: 0x800000", "0x7fffff"]),
    (time(item=-1), ["time.item", "-1"]),
    (time(step=0), ["time.step: 0", "at least 1"]),
    (time(step=-16), ["time.step", "-16"]),
    (time(batches=0), ["time.batches: 0", "at least 1"]),
    (time(batches=-1), ["time.batches", "-1"]),
    (time(step=2**45, batches=5), ["time.step x time.batches", f"{2**45} x 5", str(2**46)]),
    (time(step=2**62, batches=2**62), ["time.step x time.batches", f"{2**62} x {2**62}", str(2**46)]),
    (time(step=48, align="mask"), ["time.step: 48", "power of two"]),
    (time(align="round"), ["time.align", "round", "reject", "mask"]),
    (time(tick_rate=0.0), ["time.tick_rate: 0", "positive"]),
    (time(tick_rate=-1e9), ["time.tick_rate: -1000000000", "positive"]),
    (time(tick_rate=float("nan")), ["time.tick_rate: NaN", "positive"]),
    (time(tick_rate=float("inf")), ["time.tick_rate: inf", "positive"]),
    (time(name=""), ["time.name", '""', "letters"]),
    (time(name="my time"), ["time.name", '"my time"', "letters"]),
    # Names of axes
    (antenna(name="pol"), ["axes", '"pol"', "twice"]),
    (antenna(name="time"), ["axes", '"time"', "twice"]),
    (antenna(name="0"), ["axes[0].name", '"0"', "letters"]),
    (antenna(name=None), ["axes[0]", "name"]),
    # Where the index comes from
    (antenna(item=None), ["axes[0].item: is absent", "from_user_data"]),
    (antenna(from_user_data="antenna"), ["axes[0].item", "from_user_data", "one of them"]),
    (antenna(item=spead2.STREAM_CTRL_ID), ["axes[0].item: 0x6", "above 0x6"]),
    (antenna(item=2**40), ["axes[0].item: 0x10000000000", "0x7fffff"]),
    (antenna(shift=63), ["axes[0].shift: 63", "below 63"]),
    (antenna(shift=-1), ["axes[0].shift", "-1"]),
    (antenna(mask=0), ["axes[0].mask: 0", "at least one"]),
    (antenna(mask=-1), ["axes[0].mask", "-1"]),
    (antenna(mask=2**63), ["axes[0].mask", str(2**63)]),
    (antenna(mask=2**64 - 1), ["axes[0].mask", str(2**64 - 1)]),
    (antenna(mask=2**64), ["axes[0].mask", str(2**64)]),
    (pol(from_user_data="stats_base"), ["axes[1].from_user_data", "stats_base"]),
    (pol(from_user_data="which pol"), ["axes[1].from_user_data", '"which pol"', "letters"]),
    (pol(size=None), ["axes[1].size: is absent", "how many"]),
    (pol(size=0), ["axes[1].size: 0", "at least 1"]),
    (pol(mask=1), ["axes[1].from_user_data", '"pol"', "mask"]),
    (pol(values=(0, 1), size=None), ["axes[1].from_user_data", '"pol"', "values"]),
    (pol(reject_name="bad_pol_heaps"), ["axes[1].from_user_data", '"pol"', "reject_name"]),
    # Values to indices
    (antenna(size=None), ["axes[0].size: is absent", "values"]),
    (antenna(size=0), ["axes[0].size: 0", "at least 1"]),
    (antenna(size=-3), ["axes[0].size", "-3"]),
    (antenna(values=(1, 2, 3)), ["axes[0].size: 3", "values", "one of them"]),
    (antenna(values=(), size=None), ["axes[0].values: []", "at least one"]),
    (antenna(values=(4, 5, 4), size=None), ["axes[0].values: 4", "twice"]),
    (antenna(values=(4, -5), size=None), ["axes[0].values", "-5"]),
    (antenna(values=(4, 8), mask=7, size=None), ["axes[0].values: 8", "0x7 "]),
    (antenna(values=(4, 8), step=4, size=None), ["axes[0].step: 4", "values", "one of them"]),
    (antenna(step=0), ["axes[0].step: 0", "at least 1"]),
    (antenna(step=2**63, size=1), ["axes[0].step", str(2**63)]),
    (antenna(step=4, mask=7), ["axes[0].size: 3", "steps of 4", "0x7)"]),
    (antenna(step=2**62), ["axes[0].size: 3", f"steps of {2**62}", hex(2**63 - 1)]),
    (antenna(step=2**22, shift=40), ["axes[0].size: 3", f"steps of {2**22}", hex(2**23 - 1)]),
    # Reject names
    (antenna(reject_name="bad antenna"), ["axes[0].reject_name", '"bad antenna"', "letters"]),
    (antenna(reject_name="metadata_heaps"), ["axes[0].reject_name", '"metadata_heaps"', "another reject_name"]),
    (
        antenna(reject_name="internal_error_heaps"),
        ["axes[0].reject_name", '"internal_error_heaps"', "another reject_name"],
    ),
    # Order, strides, sources
    ({"order": ("pol", "time", "beam")}, ["order", '"beam"', "antenna"]),
    ({"order": ("pol", "time")}, ["order", '"antenna"', "every axis"]),
    ({"order": ("pol", "time", "antenna", "time")}, ["order", '"time"', "twice"]),
    ({"strides": {"beam": 8}}, ["strides", '"beam"', "antenna"]),
    ({"strides": {"antenna": 7}}, ['strides["antenna"]: 7', "overlap", "8 bytes"]),
    ({"strides": {"antenna": 0}}, ['strides["antenna"]: 0', "overlap", "8 bytes"]),
    ({"strides": {"pol": 95}}, ['strides["pol"]: 95', "overlap", "96 bytes"]),
    ({"strides": {"antenna": 16, "time": 39, "pol": 1000}}, ['strides["time"]: 39', "overlap", "40 bytes"]),
    ({"strides": {"pol": -96}}, ["strides", "-96"]),
    ({"strides": {"pol": 2**62}}, ["strides", str(2**62), "at most"]),
    ({"strides": {"time": 2**62, "pol": 2**62}}, ["strides", str(2**62), "at most"]),
    ({"strides": {"pol": 1.5}}, ["strides.pol", "number of bytes", "user_data"]),
    ({"strides": {"pol": "pol"}}, ["user_data", '"pol"', "two of from_user_data and strides"]),
    ({"strides": {"pol": "stats_base"}}, ["strides", "stats_base"]),
    ({"strides": {"pol": "the stride"}}, ["strides", '"the stride"', "letters"]),
    ({"sources": "beam"}, ["sources", '"beam"', "antenna"]),
    ({"sources": "time"}, ["sources", '"time"', "antenna"]),
    ({"source_labels": ("m000", "m001")}, ["source_labels: 2", "3 sources"]),
    ({"source_labels": ("m000", "m001", "m000")}, ["source_labels", '"m000"', "twice"]),
    # Other items
    (status(name=""), ["side_items[0].name", '""', "letters"]),
    (status(item=1), ["side_items[0].item: 0x1", "above 0x6"]),
    (status(shift=64), ["side_items[0].shift: 64", "below 63"]),
    (status(dtype="i8"), ["side_items[0].dtype", "i8", "u8", "u64"]),
    ({"side_items": (STATUS, replace(STATUS, item=0x3103))}, ["side_items", '"status"', "twice"]),
    ({"required_items": (5,)}, ["required_items[0]: 0x5", "above 0x6"]),
    ({"required_items": (0x4104, 0x4104)}, ["required_items", "0x4104", "twice"]),
    # What a heap holds
    ({"dtype": "int24"}, ["dtype", "int24"]),
    (
        {"payload_item": 0x4300, "required_items": (0x5000, 0x4300)},
        ["required_items: 0x4300", "is the payload_item", "leave it out of required_items"],
    ),
    ({"payload_item": 0x1600}, ["payload_item: 0x1600"]),
    ({"dtype": "object"}, ["dtype", "object", "numeric"]),
    ({"dtype": "complex128"}, ["heap_bytes: 8", "16 bytes", "complex128"]),
    ({"dtype": "int16", "heap_shape": (2, 4)}, ["heap_shape: (2, 4)", "16 bytes", "heap_bytes is 8"]),
    ({"heap_shape": (-2, -4)}, ["heap_shape", "-2"]),
    ({"samples_per_heap": -1}, ["samples_per_heap", "-1"]),
    ({"samples_per_heap": 2**63}, ["samples_per_heap", str(2**63)]),
    # Sequences and mappings
    ({"axes": ANTENNA}, ["axes: given Axis(name='antenna'", "sequence"]),
    ({"order": "time"}, ["order: given 'time'", "sequence"]),
    ({"side_items": STATUS}, ["side_items: given SideItem(name='status'", "sequence"]),
    ({"source_labels": 5}, ["source_labels: given 5", "sequence"]),
    ({"source_labels": "abc"}, ["source_labels: given 'abc'", "sequence"]),
    ({"required_items": 0x4104}, ["required_items: given 16644", "sequence"]),
    ({"heap_shape": 8}, ["heap_shape: given 8", "sequence"]),
    ({"strides": 5}, ["strides: given 5", "mapping"]),
    # Sizes
    (time(batches=2**27), ["axes", f"{2**27}", str(2**28)]),
    (antenna(size=2**40), ["axes", str(2**40), str(2**28)]),
    (
        {"axes": tuple(replace(ANTENNA, name=f"axis{i}") for i in range(9)), "order": None, "sources": None},
        ["axes: 9", "at most 8"],
    ),
]


@pytest.mark.parametrize(("changes", "parts"), BAD_LAYOUTS)
def test_bad_layout_says_why(changes: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(LayoutError) as info:
        Layout(**{**BASE, **changes})
    assert isinstance(info.value, ValueError)
    for part in parts:
        assert part in str(info.value)


@pytest.mark.parametrize("values", [5, "45"])
def test_values_of_an_axis_must_be_a_sequence(values: Any) -> None:
    with pytest.raises(LayoutError, match=f"values: given {values!r}, but wanted a sequence"):
        Axis(name="antenna", item=0x4101, values=values)


@pytest.mark.parametrize(
    ("field", "given", "wanted"),
    [
        ("time", {"item": TIME_ID, "step": 1, "batches": 8}, "TimeAxis"),
        ("axes", [{"name": "antenna", "item": AXIS_ID, "size": 2}], "Axis"),
        ("axes", [None], "Axis"),
        ("side_items", ["status"], "SideItem"),
        ("packets", {"heap_counter": "sender"}, "Packets"),
        ("send", 5, "Send"),
    ],
)
def test_parts_of_a_layout_are_objects(field: str, given: Any, wanted: str) -> None:
    where, value = (f"{field}[0]", given[0]) if isinstance(given, list) else (field, given)
    with pytest.raises(LayoutError, match=re.escape(f"{where}: given {value!r}, but wanted speadrx.{wanted}(")):
        Layout(**{"heap_bytes": 512, "time": TIME, field: given})


def test_axis_name_must_not_make_the_name_of_another_reason() -> None:
    with pytest.raises(LayoutError, match="bad_timestamp_heaps"):
        Layout(heap_bytes=8, time=TIME, axes=(replace(ANTENNA, name="timestamp"),))
    layout = Layout(heap_bytes=8, time=TIME, axes=(replace(ANTENNA, name="timestamp", reject_name="bad_when"),))
    assert layout.stream_stats[2] == "speadrx.bad_when"


def test_layout_needs_heap_bytes_and_keywords() -> None:
    with pytest.raises(LayoutError, match="heap_bytes: 0"):
        Layout(time=TIME)
    with pytest.raises(TypeError):
        Layout(8, TIME)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("user_data", "parts"),
    [
        ({}, ["user_data", "'pol'"]),
        ({"pol": 2}, ["user_data", '"pol"', "2", "less than 2, the size"]),
        ({"pol": 2**63}, ["user_data", '"pol"', str(2**63)]),
        ({"pol": -1}, ["user_data", "pol", "-1"]),
        ({"pol": 0, "stride": 95}, ['strides["pol"]: 95', "overlap", "96 bytes"]),
        ({"pol": 0, "stride": 2**62}, ["strides", str(2**62), "at most"]),
    ],
)
def test_bad_user_data_says_why(user_data: dict[str, int], parts: list[str]) -> None:
    layout = Layout(**BASE, strides={"pol": "stride"})
    record = np.zeros((), [(name, np.int64 if value < 0 else np.uint64) for name, value in user_data.items()])
    for name, value in user_data.items():
        record[name] = value
    with pytest.raises(ValueError) as info:  # noqa: PT011 (the parts are the match)
        layout.chunk_place(record)
    for part in parts:
        assert part in str(info.value)


def test_user_data_of_a_single_stream_is_one_record() -> None:
    layout = Layout(**BASE)
    with pytest.raises(ValueError, match="user_data: has 2 elements"):
        layout.chunk_place(np.zeros(2, [("pol", np.uintp)]))
    layout.chunk_place(np.zeros(1, [("pol", np.uintp)]))
    layout.chunk_place(np.zeros((), [("pol", np.uintp)]))


@pytest.mark.parametrize("field", ["pol", "stride", "stats_base"])
@pytest.mark.parametrize(("dtype", "value"), [("f8", 1.7), ("S3", b"1"), ("?", True), ((np.uintp, (2,)), 1)])
def test_user_data_must_be_integers(field: str, dtype: Any, value: Any) -> None:
    layout = Layout(**BASE, strides={"pol": "stride"})
    kept = [(name, np.uintp) for name in ("stats_base", "pol", "stride") if name != field]
    record = np.ones((), [*kept, (field, dtype)])
    record[field] = value
    record[{"pol": "stride"}.get(field, "pol")] = 1
    with pytest.raises(ValueError, match=rf"user_data\['{field}'\]: has dtype .*, but wanted an integer type"):
        layout.chunk_place(record)


def test_misspelt_stride_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    layout = Layout(**BASE, strides={"pol": "stride"})
    user_data_module._warn_unread.cache_clear()

    def place(*names: str) -> None:
        layout.chunk_place(np.zeros((), [(name, np.uintp) for name in names]))

    with caplog.at_level(logging.WARNING, "speadrx"):
        place("stats_base", "pol")
        assert caplog.messages == []
        for _ in range(2):
            place("stats_base", "pol", "strid")
    message = "user_data has no 'stride', so those strides are dense; it has 'strid', which the layout does not read"
    assert caplog.messages == [message]


# As Python objects


@pytest.mark.parametrize("layout", [Layout(**BASE), SMALL, *MEERKAT], ids=lambda layout: type(layout).__name__)
def test_copies_are_equal(layout: Any) -> None:
    for other in (pickle.loads(pickle.dumps(layout)), copy.copy(layout), copy.deepcopy(layout), replace(layout)):
        assert other == layout
        assert hash(other) == hash(layout)
        assert other.spead_items == layout.spead_items
        assert other.chunk_place is not None


def test_replace_checks_again() -> None:
    layout = Layout(**BASE)
    other = replace(layout, heap_bytes=16)
    assert other != layout
    assert (layout.chunk_bytes, other.chunk_bytes) == (192, 384)
    with pytest.raises(LayoutError, match="heap_bytes: 0"):
        replace(layout, heap_bytes=0)
    assert replace(MEERKAT[1], n_ants=4).present_shape == (8, 4)


def test_equality_and_hash() -> None:
    layout = Layout(**BASE)
    assert layout == Layout(**BASE)
    assert layout != Layout(**BASE, strides={"pol": 100})
    assert layout != Layout(**BASE, name="other")
    assert len({layout, Layout(**BASE), Layout(**BASE, strides={"pol": 100})}) == 2
    # Sequences of any kind, dtypes of any spelling.
    assert layout == Layout(**{**BASE, "axes": [ANTENNA, POL], "order": list(BASE["order"])})
    assert Layout(**BASE, dtype="i2") == Layout(**BASE, dtype="int16")
    assert Layout(**BASE, dtype=">i2") != Layout(**BASE, dtype="int16")


def test_layouts_are_frozen() -> None:
    layout = Layout(**BASE)
    with pytest.raises(FrozenInstanceError):
        layout.heap_bytes = 16  # type: ignore[misc]
    strides = {"pol": 100}
    layout = Layout(**BASE, strides=strides)
    strides["pol"] = 0
    assert layout.strides == {"pol": 100}


# Geometry


def test_geometry() -> None:
    layout = Layout(
        **BASE,
        required_items=(0x4104,),
        source_labels=("m000", "m001", "m002"),
        strides={"time": 32, "pol": "pol_stride"},
        dtype="int16",
        heap_shape=(2, 2),
    )
    assert layout.present_shape == (2, 4, 3)
    assert layout.chunk_batches == 4
    assert layout.batch_heaps == 6
    assert layout.chunk_heaps == 24
    assert layout.chunk_timestamp_step == 64
    assert layout.heap_sample_count == 4
    assert layout.spead_items == [0x1600, spead2.HEAP_LENGTH_ID, 0x4101, 0x3102, 0x4104]
    assert layout.stream_stats == [
        "speadrx.metadata_heaps",
        "speadrx.bad_timestamp_heaps",
        "speadrx.bad_antenna_heaps",
        "speadrx.implausible_timestamp_heaps",
        "speadrx.backward_timestamp_heaps",
        "speadrx.internal_error_heaps",
    ]
    assert layout.source_labels == ("m000", "m001", "m002")
    assert layout.user_data_dtype == np.dtype([("stats_base", np.uintp), ("pol", np.uintp), ("pol_stride", np.uintp)])
    assert layout.extra_dtype == np.dtype([("status", np.uint64)])
    assert layout.max_heap_extra == 8


def test_geometry_of_time_alone() -> None:
    layout = Layout(heap_bytes=8, time=TIME, dtype="int16")
    assert layout.present_shape == (4,)
    assert layout.chunk_heaps == 4
    assert layout.chunk_bytes == 32
    assert layout.heap_sample_count == 4
    assert layout.spead_items == [0x1600, spead2.HEAP_LENGTH_ID]
    assert layout.source_labels == ("0",)
    assert layout.extra_dtype is None
    assert layout.max_heap_extra == 0
    assert layout.user_data_dtype == np.dtype([("stats_base", np.uintp)])


def test_axes_with_one_reject_name_share_a_counter() -> None:
    axes = tuple(
        replace(ANTENNA, name=name, reject_name=reject_name)
        for name, reject_name in [("a", "bad_id"), ("b", None), ("c", "bad_id"), ("d", "bad_b_heaps")]
    )
    layout = Layout(heap_bytes=8, time=TIME, axes=axes)
    assert layout.stream_stats[2:-3] == ["speadrx.bad_id", "speadrx.bad_b_heaps"]


def test_side_items_are_packed() -> None:
    dtypes: list[Any] = ["u8", "u64", "u16", "u32"]
    layout = Layout(**{**BASE, "side_items": [SideItem(name=dtype, item=8, dtype=dtype) for dtype in dtypes]})
    assert layout.extra_dtype == np.dtype([("u8", "u1"), ("u64", "<u8"), ("u16", "<u2"), ("u32", "<u4")])
    assert layout.max_heap_extra == 15


@pytest.mark.parametrize(
    ("layout", "heap_bytes", "shape", "samples", "step", "n_items"),
    [
        (MEERKAT[0], 5120, (2, 256), 4096, 2**20, 4),
        (MEERKAT[1], 4096, (8, 80), 1024, 2**24, 3),
        (MEERKAT[2], 32768, (2, 4, 64), 16384, 2**23, 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseLayout) else "",
)
def test_geometry_of_meerkat_layouts(
    layout: Any, heap_bytes: int, shape: tuple[int, ...], samples: int, step: int, n_items: int
) -> None:
    assert layout.heap_bytes == heap_bytes
    assert layout.present_shape == shape
    assert layout.chunk_heaps == np.prod(shape)
    assert layout.chunk_bytes == heap_bytes * np.prod(shape)
    assert layout.heap_sample_count == samples
    assert layout.chunk_timestamp_step == step
    assert len(layout.spead_items) == n_items


def test_geometry_of_random_layouts() -> None:
    for i in range(300):
        case = random_case(random.Random(f"geometry/{i}"))
        layout = case.layout
        sizes = axis_sizes(layout)
        shape = tuple(sizes[name] for name in axis_order(layout))
        strides, span = byte_strides(layout, case.user_data)
        assert layout.present_shape == shape
        assert layout.chunk_heaps == np.prod(shape)
        assert layout.chunk_batches * layout.batch_heaps == layout.chunk_heaps
        assert layout.chunk_timestamp_step == layout.time.step * layout.time.batches
        geometry = layout._compiled.geometry(case.user_data)
        assert geometry.strides == tuple(strides[name] for name in axis_order(layout))
        assert geometry.span_bytes == span
        assert len(layout.source_labels) == (sizes[layout.sources] if layout.sources else 1)
        if not any(isinstance(stride, str) for stride in layout.strides.values()):
            # Like a numpy array, with the gap behind the last element too.
            assert layout.chunk_bytes == max(span, strides[axis_order(layout)[0]] * shape[0])


# Views


def fill_slots(layout: Layout, user_data: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Make a chunk's data with the heap index as each heap's elements; return it and the heap indices by axis."""
    strides, span = byte_strides(layout, user_data)
    data = np.zeros(span, np.uint8)
    heaps = np.arange(layout.chunk_heaps).reshape(layout.present_shape)
    dtype = np.dtype(layout.dtype)
    for index in np.ndindex(*layout.present_shape):
        offset = sum(i * strides[name] for i, name in zip(index, axis_order(layout), strict=True))
        heap = np.full(layout.heap_bytes // dtype.itemsize, heaps[index]).astype(dtype)
        data[offset : offset + layout.heap_bytes] = heap.view(np.uint8)
    return data, heaps


@pytest.mark.parametrize(
    ("changes", "inner_shape"),
    [
        ({}, (8,)),
        ({"dtype": ">i2"}, (4,)),
        ({"dtype": "int16", "heap_shape": (2, 1, 2)}, (2, 1, 2)),
        ({"strides": {"time": 32, "pol": 500}, "dtype": "float32"}, (2,)),
        ({"strides": {"pol": "stride"}}, (8,)),
        ({"strides": {"pol": 8, "time": 16, "antenna": 64}}, (8,)),
        ({"strides": {"time": 27}, "dtype": "uint32", "heap_shape": (2,)}, (2,)),
    ],
)
@pytest.mark.parametrize("user_data", [{"pol": 1}, {"pol": 0, "stride": 100}])
def test_view(changes: dict[str, Any], inner_shape: tuple[int, ...], user_data: dict[str, int]) -> None:
    layout = Layout(**{**BASE, **changes})
    data, heaps = fill_slots(layout, user_data)
    record = np.array(tuple(user_data.values()), [(name, np.uintp) for name in user_data])
    view = layout.view(data, record)
    assert view.shape == layout.present_shape + inner_shape
    assert view.dtype == layout.dtype
    expected = heaps.reshape(heaps.shape + (1,) * len(inner_shape))
    np.testing.assert_array_equal(view, np.broadcast_to(expected, view.shape))

    # It is a view: of what it shows, and of nothing else.
    assert np.shares_memory(view, data)
    gaps = data.copy()
    view.view(np.uint8)[...] = 0x55
    assert (data == gaps).sum() == data.size - layout.chunk_heaps * layout.heap_bytes


def test_view_takes_any_contiguous_buffer() -> None:
    layout = Layout(**BASE)
    record = np.zeros((), layout.user_data_dtype)
    data = np.arange(48, dtype=np.uint32).reshape(6, 8)
    assert layout.view(data, record).tobytes() == data.tobytes()
    larger = np.arange(300, dtype=np.uint8)
    assert layout.view(larger, record).tobytes() == larger[:192].tobytes()
    data.flags.writeable = False
    assert not layout.view(data, record).flags.writeable


@pytest.mark.parametrize("data", [np.zeros(400, np.uint8)[::2], np.zeros((12, 16), np.uint8).T])
def test_view_is_never_a_copy(data: np.ndarray) -> None:
    layout = Layout(**BASE)
    with pytest.raises(ValueError, match=r"data: given shape .* with strides .*, but wanted C-contiguous"):
        layout.view(data, np.zeros((), layout.user_data_dtype))


def test_view_of_too_small_buffer() -> None:
    layout = Layout(**BASE)
    with pytest.raises(ValueError, match=r"191 bytes.*192"):
        layout.view(np.zeros(191, np.uint8), np.zeros((), layout.user_data_dtype))
    with pytest.raises(ValueError, match=r"user_data.*'pol'"):
        layout.view(np.zeros(192, np.uint8))


# The callback on its own


@pytest.mark.parametrize("n_stats", [0, 2, 5, 20])
def test_chunk_place_alone_never_writes_statistics(n_stats: int) -> None:
    own = [f"own{i}" for i in range(n_stats)]
    bad: list[dict[int, int | None]] = [
        {TIME_ID: None},
        {TIME_ID: 65},
        {AXIS_ID: 2},
        {AXIS_ID: GOOD[AXIS_ID] | 1},
        {TIME_ID: 2**48 - 16},
    ]
    heaps = [small_heap({TIME_ID: 0}), *(small_heap(changes) for changes in bad for _ in range(3))]
    chunks, placement, stats = receive_without_speadrx(SMALL, heaps, stats=own)
    (chunk,) = chunks
    assert np.asarray(chunk.data)[4:8].tobytes() == b"data"
    assert {name: stats[name] for name in own} == dict.fromkeys(own, 0)
    assert stats["rejected_heaps"] == 15
    assert stats["too_old_heaps"] == 0
    assert stats["heaps"] == 16
    assert stats["worker_blocked"] == 0
    snapshot = placement.ledger.snapshot()
    rejected = np.frombuffer(snapshot.rejected_by_source, np.uint64).reshape(7, -1)
    assert rejected.sum(axis=1).tolist() == [3, 3, 3, 3, 3, 0, 0]
    assert np.frombuffer(snapshot.placed, np.uint64).tolist() == [0, 1, 0]


def test_chunk_place_keeps_what_it_needs_alive() -> None:
    capsule, placement = Layout(**BASE).chunk_place(np.ones((), [("pol", np.uintp)]))
    assert type(capsule).__name__ == "PyCapsule"
    assert '"void (void *, size_t, void *)"' in repr(capsule)
    assert isinstance(placement, _core.Placement)


def test_layout_of_ones_own_needs_a_callback() -> None:
    class OwnLayout(BaseLayout):
        heap_bytes = 8
        chunk_batches = 4
        batch_heaps = 3
        heap_sample_count = 8
        chunk_timestamp_step = 64

    layout = OwnLayout()
    assert layout.chunk_heaps == 12
    assert layout.chunk_bytes == 96
    with pytest.raises(NotImplementedError, match=r"OwnLayout.*chunk_place"):
        layout.chunk_place(np.zeros((), [("stats_base", np.uintp)]))
    with pytest.raises(TypeError):
        BaseLayout()  # type: ignore[abstract]


def test_sources_are_labelled_by_their_values() -> None:
    """Unless they have labels; and those that nobody gave follow the axis."""
    assert SMALL.source_labels == ("7", "3", "5")
    other = replace(SMALL, axes=(Axis(name="antenna", item=AXIS_ID, size=4),))
    assert other.source_labels == ("0", "1", "2", "3")
    assert replace(other, axes=SMALL.axes).source_labels == ("7", "3", "5")
    named = replace(SMALL, source_labels=("0", "1", "2"))
    assert replace(named, heap_bytes=8).source_labels == ("0", "1", "2")
    assert "source_labels" in named.to_toml()
    assert "source_labels" not in SMALL.to_toml()
    assert copy.deepcopy(SMALL) == SMALL == replace(SMALL, source_labels=("7", "3", "5"))
