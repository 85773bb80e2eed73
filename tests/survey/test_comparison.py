"""`speadrx.compare`: layouts against numba placements as users write them, right ones and faulty ones."""

import ctypes
import struct
import types

import numpy as np
import pytest
import scipy

import speadrx
from handmade import GOOD, SMALL
from speadrx import Axis, Layout, SideItem, TimeAxis
from speadrx.survey.item_sets import random_item_sets
from user_placements import FORMS, STATISTICS, captured

#: The struct of spead2's `chunk_place_data`, from its header `recv_chunk_stream.h`.
FIELDS = {
    "packet": ctypes.c_void_p,
    "packet_size": ctypes.c_size_t,
    "items": ctypes.c_void_p,
    "chunk_id": ctypes.c_int64,
    "heap_index": ctypes.c_size_t,
    "heap_offset": ctypes.c_size_t,
    "batch_stats": ctypes.c_void_p,
    "extra": ctypes.c_void_p,
    "extra_offset": ctypes.c_size_t,
    "extra_size": ctypes.c_size_t,
}


class PlaceData(ctypes.Structure):
    _fields_ = tuple(FIELDS.items())


forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def compared(form, heaps, fault=0, **options):
    return speadrx.compare(
        form.layout, form.place, heaps, user_data=form.user_data(fault), statistics=STATISTICS, **options
    )


def per_heap(n):
    """Heaps of `SMALL` at successive times."""
    return [{**GOOD, 0x10: 64 + 16 * i} for i in range(n)]


def foreign(function):
    """A placement written in Python, as an object with an address."""
    kept = ctypes.CFUNCTYPE(None, ctypes.POINTER(PlaceData), ctypes.c_size_t, ctypes.c_void_p)(
        lambda data, size, context: function(data[0])
    )
    return types.SimpleNamespace(address=ctypes.cast(kept, ctypes.c_void_p).value, kept=kept)


@pytest.mark.parametrize(
    "heaps", [10_000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
@forms
def test_random_heaps_show_no_difference(form, heaps):
    comparison = compared(form, heaps, seed=5)
    comparison.assert_equal()
    assert comparison.heaps == sum(comparison.outcomes.values()) == heaps
    # They hit: most are placed, and each reason comes up.
    assert comparison.reasons(0)["placed"] > heaps * 0.8
    wanted = {"placed", "metadata", "timestamp"} | ({"source"} if form is not FORMS["digitiser"] else set())
    assert set(comparison.reasons(1)) == wanted
    assert comparison.explained > 0


@forms
def test_a_capture_shows_no_difference(form, tmp_path):
    path, n = captured(form, tmp_path / "night.pcap")
    comparison = compared(form, path)
    comparison.assert_equal()
    assert comparison.heaps == n
    assert comparison.outcomes["metadata_heaps", "metadata"] > 0
    assert comparison.outcomes["bad_timestamp_heaps", "timestamp"] > 0


@pytest.mark.parametrize(("name", "fault"), [("digitiser", 1), ("digitiser", 2), ("antenna", 1), ("antenna", 2)])
@pytest.mark.parametrize("of_a_capture", [False, True])
def test_planted_faults_are_found(name, fault, of_a_capture, tmp_path):
    form = FORMS[name]
    heaps = captured(form, tmp_path / "night.pcap")[0] if of_a_capture else 10_000
    comparison = compared(form, heaps, fault)
    assert not comparison.equal
    assert comparison.differing > 0
    first = comparison.differences[0]
    ours, theirs = first.slots
    match name, fault:
        case "digitiser", 1:
            assert ours.index != theirs.index
        case "digitiser", 2:
            assert (ours.index, ours.offset) == (theirs.index, theirs.offset)
            assert ours.extra != theirs.extra
        case "antenna", 1:
            assert ours is None
            assert first.reasons == ("bad_feng_id_heaps", "placed")
            assert first.items[0x4101] == 5
        case "antenna", 2:
            assert (ours.chunk, ours.index) != (theirs.chunk, theirs.index)
    with pytest.raises(AssertionError, match="placed differently"):
        comparison.assert_equal()
    assert compared(FORMS["digitiser"], 1000, 2, ignore_extra=True).equal


@pytest.mark.parametrize(("name", "items"), [("antenna", [0x1600, 2, 0x4103]), ("beam", [0x1600, 2, 0x4101, 0x5004])])
def test_wrong_item_is_found(name, items, tmp_path):
    for heaps in (10_000, captured(FORMS[name], tmp_path / "night.pcap")[0]):
        comparison = compared(FORMS[name], heaps, items=items)
        assert comparison.differing > comparison.heaps / 2
        assert comparison.differences[0].reasons == ("placed", "metadata")
        assert comparison.differences[0].slots[1] is None


def test_two_layouts():
    other = Layout(
        heap_bytes=4,
        time=SMALL.time,
        axes=SMALL.axes,
        side_items=(SideItem(name="status", item=0x30, shift=16, dtype="u16"),),
        required_items=SMALL.required_items,
        sources="antenna",
    )
    comparison = speadrx.compare(SMALL, other, 5000)
    assert comparison.differing > 2500
    assert "extra" in comparison.differences[0].outcomes[0]
    speadrx.compare(SMALL, other, 5000, ignore_extra=True).assert_equal()
    speadrx.compare(SMALL, SMALL, 5000).assert_equal()


def test_what_only_the_heaps_before_explain():
    """A layout rejects a jump that a placement without a memory follows: it is no fault of either."""
    form = FORMS["antenna"]
    heaps = [{0x1600: 12 * (n if n != 50 else 10_000), 2: 16, 0x4101: n % 5} for n in range(100)]
    comparison = compared(form, heaps)
    assert (comparison.equal, comparison.explained) == (True, 1)
    assert comparison.outcomes["implausible_timestamp_heaps", "placed"] == 1
    strict = compared(form, heaps, strict=True)
    assert (strict.differing, strict.explained) == (1, 0)
    assert strict.differences[0].heap == 50
    # A fault of the heap that jumps is still one.
    heaps[50][0x4101] = 5
    assert compared(form, heaps, fault=1).differing == 1


def test_time_that_begins_with_the_first_heap():
    """Chunks are counted from time 0, wherever the first heap is."""
    time = {"item": 0x10, "step": 16, "batches": 4}
    axes = (Axis(name="antenna", item=0x20, size=2),)
    told, first = (Layout(heap_bytes=4, time=TimeAxis(**time, origin=o), axes=axes) for o in (6405, "first"))
    heaps = [{0x10: 6421 + 16 * n, 2: 4, 0x20: n % 2} for n in range(200)]
    comparison = speadrx.compare(told, first, heaps)
    comparison.assert_equal()
    assert comparison.outcomes == {("placed", "placed"): 200}


def test_time_that_wraps():
    """A layout counts on, and a placement without a memory begins again: it is no fault of either."""
    form = FORMS["digitiser"]
    heaps = [{0x1600: (2**48 - 16 * 100 + 16 * n) % 2**48, 2: 16, 0x3101: n % 2, 0x3102: 0} for n in range(200)]
    comparison = compared(form, heaps)
    assert (comparison.equal, comparison.explained) == (True, 100)
    assert compared(form, heaps, strict=True).differing == 100


def write_behind_extra(data):
    ctypes.memset(data.extra + 2, 1, 1)


def write_behind_statistics(data):
    ctypes.memset(data.batch_stats + 8 * 10, 1, 1)


def write_before_items(data):
    ctypes.memset(data.items - 1, 1, 1)


def write_to_items(data):
    ctypes.memset(data.items, 1, 1)


def write_to_packet(data):
    ctypes.memset(data.packet + data.packet_size, 1, 1)


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (write_behind_extra, "wrote outside extra"),
        (write_behind_statistics, "wrote outside batch_stats"),
        (write_before_items, "wrote outside items"),
        (write_to_items, "wrote outside items"),
        (write_to_packet, "wrote outside the packet"),
    ],
)
def test_overruns_are_reported(function, what):
    """What would damage the memory of spead2 is seen, and damages nothing here."""
    comparison = speadrx.compare(SMALL, foreign(function), per_heap(5), statistics=["only"], names=("ours", "mine"))
    assert comparison.overruns == {("mine", what): (0, 5)}
    assert not comparison.equal
    with pytest.raises(AssertionError, match=f"mine {what}: 5 heaps, the first is heap 0"):
        comparison.assert_equal()


def test_more_extra_than_there_is_room_for():
    def place(data):
        data.chunk_id = 1
        data.extra_size = 3

    comparison = speadrx.compare(SMALL, foreign(place), per_heap(2), names=("ours", "mine"))
    assert comparison.overruns == {("mine", "has more bytes in extra than there is room for"): (0, 2)}


def test_a_callback_gets_what_spead2_gives():
    """All fields have the values that spead2 sets, and the packet can be read."""
    seen = []

    def place(data):
        packet = ctypes.string_at(data.packet, data.packet_size)
        items = struct.unpack("6q", ctypes.string_at(data.items, 48))
        seen.append((packet, items, data.chunk_id, data.heap_index, data.heap_offset, data.extra_size))

    speadrx.compare(SMALL, foreign(place), [GOOD, {0x10: 64}])
    assert SMALL.spead_items[:2] == [0x10, 2]
    for (packet, items, *others), given in zip(seen, ([GOOD.get(i, -1) for i in SMALL.spead_items], None), strict=True):
        assert others == [-1, 0, 0, 0]
        assert given is None or list(items) == given
        magic, version, id_bytes, address_bytes, _, n = struct.unpack(">4BHH", packet[:8])
        assert (magic, version, id_bytes, address_bytes, n) == (0x53, 4, 2, 6, len(SMALL.spead_items))
        pointers = struct.unpack(f">{n}Q", packet[8:])
        decoded = {p >> 48 & 0x7FFF: p & (1 << 48) - 1 for p in pointers if p >> 48 & 0x7FFF}
        assert decoded == {i: v for i, v in zip(SMALL.spead_items, items, strict=True) if v >= 0}


def test_forms_of_callbacks():
    """A callback may be given in each form that spead2 and katgpucbf have."""

    def place(data):
        data.chunk_id = struct.unpack("q", ctypes.string_at(data.items, 8))[0] // 64

    made = foreign(place)
    low_level = scipy.LowLevelCallable(made.kept, signature="void (void *, size_t, void *)")
    calls = []

    class Old:
        def chunk_place(self, stats_base):
            calls.append(stats_base)
            return low_level

    class New:
        _chunk_place = made

        def chunk_place(self, user_data):
            calls.append(int(user_data["stats_base"]))
            return low_level

    class Bare:
        _chunk_place = made

    wanted = speadrx.compare(SMALL, made, per_heap(3)).differences
    assert [difference.slots[1].chunk for difference in wanted] == [1, 1, 1]
    for form in (low_level, tuple.__getitem__(low_level, 0), Old(), New(), Bare()):
        found = speadrx.compare(SMALL, form, per_heap(3)).differences
        assert [difference.slots for difference in found] == [difference.slots for difference in wanted]
    assert len(calls) == 2
    assert calls[0] == calls[1] > 0


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((SMALL, 3), {}, "int: is of type int"),
        ((SMALL, SMALL), {"heaps": 0}, "heaps: 0 must be at least 1"),
        ((SMALL, SMALL), {"heaps": []}, "heaps: there are none"),
        ((SMALL, SMALL), {"user_data": {"pol": 1}}, r"user_data\['pol'\]: neither of the two reads it"),
        ((foreign(print), foreign(print)), {}, "items: neither of the two is a layout"),
        ((foreign(print), foreign(print)), {"items": [2]}, "heaps: random heaps are drawn for a layout"),
        ((SMALL, FORMS["antenna"].place), {}, "reads the field 'fault', and it was not given"),
    ],
)
def test_wrong_arguments(arguments, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        speadrx.compare(*arguments, **options)


def test_the_seed_decides():
    first, again, other = (random_item_sets(SMALL, 2000, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(first.columns[item], again.columns[item]) for item in first.columns)
    assert not np.array_equal(first.columns[0x10], other.columns[0x10])


def test_time_is_measured_of_heaps_that_both_place():
    form = FORMS["beam"]
    assert compared(form, 3000).nanoseconds is None
    timed = compared(form, 3000, timed=True).nanoseconds
    assert len(timed) == 3
    assert all(figure > 0 for figure in timed)
    assert compared(form, [{0x1600: 0}], timed=True).nanoseconds is None
