"""What descriptors say of the data is taken right, or named: read back by spead2's own descriptors."""

import numpy as np
import pytest
import spead2
import spead2.send
from speadrx.propose import propose

from wire import heap, survey_of

CI8, CI16 = (np.dtype([("re", kind), ("im", kind)]) for kind in ("i1", ">i2"))


def proposal_for(n_bytes, *, dtype=None, shape=(), order="C", fields=None):
    group = spead2.send.ItemGroup(flavour=spead2.Flavour(4, 64, 48))
    group.add_item(0x1600, "timestamp", "", (), format=[("u", 48)])
    group.add_item(0x4300, "data", "", shape, dtype=dtype, order=order, format=fields)
    described = group.get_heap(descriptors="all", data="none")
    packets = list(map(bytes, spead2.send.PacketGenerator(described, 10**6, 9000)))
    packets += [heap(n, [(0x1600, n * 64), (0x4300, None)], bytes(n_bytes))[0] for n in range(20)]
    survey = survey_of(packets)
    (stream,) = survey.streams()
    proposal = propose(stream, described=survey.described())
    assert proposal.layout is not None, proposal.obstacle
    return proposal


@pytest.mark.parametrize(
    ("n_bytes", "given", "dtype", "shape"),
    [
        (256, {"dtype": CI8, "shape": (128,)}, "cint8", (128,)),
        (256, {"dtype": CI16, "shape": (8, 8)}, ">cint16", (8, 8)),
        (256, {"dtype": "<i2", "shape": (16, 8), "order": "F"}, "int16", (8, 16)),
        (256, {"dtype": CI8, "shape": (16, 8), "order": "F"}, "cint8", (8, 16)),
        (256, {"dtype": ">f4", "shape": (64,), "order": "F"}, ">f4", (64,)),
        (256, {"fields": [("i", 16)], "shape": (128,)}, ">i2", (128,)),
        (256, {"fields": [("f", 32)], "shape": (8, 8)}, ">f4", (8, 8)),
        (256, {"fields": [("i", 8), ("i", 8)], "shape": (128,)}, "int8", (128, 2)),
        (256, {"fields": [("u", 8)], "shape": (None, 16)}, "uint8", (16, 16)),
        (256, {"dtype": "<c8", "shape": (32,)}, "complex64", (32,)),
        (5120, {"fields": [("i", 10)], "shape": (4096,)}, "int10", (4096,)),  # MeerKAT's digitisers
        (6144, {"fields": [("u", 12)], "shape": (4096,)}, "uint12", (4096,)),
        (256, {"fields": [("i", 4), ("i", 4)], "shape": (16, 16)}, "int4", (16, 16, 2)),
        (21, {"fields": [("i", 5)], "shape": (33,)}, "int5", (33,)),  # the last byte has bits that are not used
        (21, {"fields": [("u", 5)], "shape": (None, 3)}, "uint5", (11, 3)),
    ],
)
def test_taken(n_bytes, given, dtype, shape):
    layout = proposal_for(n_bytes, **given).layout
    assert (layout.dtype, layout.heap_shape) == (dtype, shape)


@pytest.mark.parametrize(
    ("n_bytes", "given", "names", "record"),
    [
        (192, {"dtype": [("a", "u1"), ("b", "<u2")], "shape": (64,)}, ("a", "b"), [("a", "u1"), ("b", "<u2")]),
        (192, {"fields": [("u", 8), ("i", 16)], "shape": (64,)}, ("part0", "part1"), [("a", "u1"), ("b", ">i2")]),
    ],
)
def test_records(n_bytes, given, names, record):
    layout = proposal_for(n_bytes, **given).layout
    assert tuple(field.name for field in layout.fields) == names
    assert [np.dtype(field.dtype) for field in layout.fields] == [np.dtype(kind) for _, kind in record]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(16, 8), (4, 8, 4), (2, 8, 8)])
def test_the_array_is_that_of_the_sender(order, shape):
    """The bytes that a sender makes of an array are that array in the layout, transposed where it says so."""
    layout = proposal_for(256, dtype="<i2", shape=shape, order=order).layout
    array = np.arange(128, dtype="<i2").reshape(shape)
    got = np.frombuffer(array.tobytes(order), layout.dtype).reshape(layout.heap_shape)
    np.testing.assert_array_equal(got if order == "C" else got.T, array)


@pytest.mark.parametrize(
    ("n_bytes", "given", "named"),
    [
        (192, {"fields": [("u", 9), ("i", 15)], "shape": (64,)}, "says u9, i15 in SPEAD's own format"),
        (192, {"fields": [("u", 24)], "shape": (64,)}, "says u24 in SPEAD's own format"),
        (256, {"dtype": "S4", "shape": (64,)}, "says |S4, which is no number"),
        (200, {"dtype": "u1", "shape": (256,)}, "says 256 bytes, but heaps have 200"),
        (256, {"dtype": [("a", "u1", 4)], "shape": (64,)}, "is not understood"),
    ],
)
def test_named(n_bytes, given, named):
    """What a layout cannot say is bytes, and the reason is there."""
    proposal = proposal_for(n_bytes, **given)
    assert (proposal.layout.dtype, proposal.layout.heap_shape) == ("uint8", None)
    assert any(text.startswith("dtype: uint8, because") and named in text for text in proposal.uncertain)


def test_transposed_is_said():
    proposal = proposal_for(256, dtype="<i2", shape=(16, 8), order="F")
    assert any("of shape (16, 8) is in Fortran order" in text for text in proposal.uncertain)
