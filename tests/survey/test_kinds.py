"""Heaps that differ only in which items they have are told apart; what spead2 drops is kept for a proposal."""

import numpy as np
import pytest

from wire import heap, packet, survey_of


def only(packets):
    (stream,) = survey_of(packets).streams()
    return stream


@pytest.mark.parametrize("ids", [range(0x5000, 0x5008), (0xB000, 0xB007), (0x3301, 0x3302, 0x3303)])
def test_payload_items(ids):
    """Beams, or products, that only the ID of their payload item tells apart."""
    ids = tuple(ids)
    stream = only(
        packet
        for time in range(10)
        for n, item in enumerate(ids)
        for packet in heap(time * len(ids) + n, [(0x1600, time * 64), (item, None)], bytes(32), bits=40)
    )
    assert stream.payload_one_of.items == ids
    np.testing.assert_array_equal(stream.payload_one_of.which, np.tile(ids, 10))
    assert (stream.payload_items, stream.one_of, stream.others) == ((), None, 0)


@pytest.mark.parametrize("first", [0x1600, 0x2000])
def test_items_of_which_there_is_one(first):
    """KAT-7's X-engines: each has its own item for the time, and for the data; another item is in all heaps."""
    stream = only(
        packet
        for time in range(10)
        for x in range(4)
        for packet in heap(time * 4 + x, [(first + x, time), (0x1800 + x, None), (0x77, 5)], bytes(32), bits=40)
    )
    ids = tuple(range(first, first + 4))
    assert (stream.one_of.items, set(stream.items)) == (ids, {0x77})
    np.testing.assert_array_equal(stream.one_of.which, np.tile(ids, 10))
    np.testing.assert_array_equal(stream.one_of.values, np.repeat(np.arange(10), 4))
    assert stream.payload_one_of.items == tuple(range(0x1800, 0x1804))


def test_rare_payload_item_is_none_of_them():
    """Garbage among the heaps does not become a kind of its own."""
    packets = [heap(n, [(0x1600, n), (0x5000, None)], bytes(32))[0] for n in range(40)]
    packets[20] = heap(20, [(0x1600, 20), (0x6000, None)], bytes(32))[0]
    stream = only(packets)
    assert (stream.payload_items, stream.payload_one_of, stream.heaps) == ((0x5000,), None, 40)


def test_optional_item_is_no_kind():
    """Heaps that have an item more than others are no kind of their own, as before."""
    stream = only(
        heap(n, [(0x1600, n), (0x5000, None), *([(0x5100, None)] if n % 2 else [])], bytes(32))[0] for n in range(40)
    )
    assert (stream.payload_items, stream.payload_one_of, stream.heaps) == ((0x5000,), None, 40)


@pytest.mark.parametrize(
    "special",
    [
        lambda n: [(1, n), (4, 64)],  # SKA-Low, TPM: neither length nor offset
        lambda n: [(1, n), (3, 0), (4, 64)],  # no length
        lambda n: [(1, 0), (2, 16), (3, 0), (4, 64)],  # Jodrell Bank: a length that is no length
    ],
)
def test_packets_that_spead2_drops(special):
    """Each is kept as a heap, apart from proper heaps to the same destination."""
    packets = [packet([*special(n), (0x1600, n * 8), (0x3300, None)], bytes(64)) for n in range(40)]
    survey = survey_of([*packets, heap(1, [(0x1600, 5), (0x4300, None)], bytes(64))[0]])
    (stream,) = survey.streams()
    assert (stream.whole, stream.heap_bytes, stream.heaps, stream.others) == (True, 64, 40, 0)
    np.testing.assert_array_equal(stream.items[0x1600], np.arange(40) * 8)
    assert survey.heap_bytes() == {64: 1}
    assert survey.undecodable.total() + survey.unsized >= 1
