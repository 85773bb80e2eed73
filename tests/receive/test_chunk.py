"""Chunks: what their buffers must be, where they go, and the pool that makes them."""

import dataclasses
import mmap
import weakref
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
import spead2.recv

import speadrx
from handmade import SMALL, OwnLayout
from loopback import wait_until_gone
from speadrx import Axis, Chunk, ChunkPool

# 4 batches of 3 antennas: 12 heaps of 4 bytes, with 2 bytes of extra each. With this dtype, a heap is two items.
LAYOUT = dataclasses.replace(SMALL, dtype="int16")
HEAPS, DATA_BYTES, EXTRA_BYTES = 12, 48, 24


def rings(n=4):
    return {
        "data_ringbuffer": spead2.recv.ChunkRingbuffer(n),
        "free_ringbuffer": spead2.recv.ChunkRingbuffer(n),
    }


def make_sink(kind, layout=LAYOUT, n_chunks=4, **kwargs):
    kwargs.update(layout=layout, max_active_chunks=2, **rings(n_chunks))
    if kind == "group":
        return speadrx.make_stream_group(affinity=[-1, -1], **kwargs)
    return speadrx.make_stream(**kwargs)


@pytest.fixture(params=["stream", "group"])
def sink(request: pytest.FixtureRequest) -> Iterator[speadrx.receive.stream.ChunkRingStream]:
    sink = make_sink(request.param)
    yield sink
    sink.stop()


@pytest.fixture
def own_sink() -> Iterator[speadrx.receive.stream.ChunkRingStream]:
    """A stream with a layout that is not declarative."""
    sink = make_sink("stream", OwnLayout(), spead_items=SMALL.spead_items, max_heap_extra=2)
    yield sink
    sink.stop()


class PlainSink:
    """A sink that is not ours, and takes everything."""

    def __init__(self):
        self.chunks = []

    def add_free_chunk(self, chunk):
        self.chunks.append(chunk)


def buffers(**changes):
    good = {
        "data": np.zeros(DATA_BYTES, np.uint8),
        "present": np.zeros(HEAPS, np.bool_),
        "extra": np.zeros(HEAPS, np.uint16),
    }
    return good | changes


def read_only(array):
    array.flags.writeable = False
    return array


# What is wrong with a buffer whatever it is for, and whatever its sink.
MEMORY_ERRORS = [
    ("data", [1, 2], TypeError, "data: given list, but wanted an object with a buffer"),
    ("data", np.full(DATA_BYTES, None), ValueError, "data: given dtype object, but spead2 writes bytes"),
    ("data", read_only(np.zeros(DATA_BYTES, np.uint8)), ValueError, "data: given a read-only buffer"),
    ("data", bytes(DATA_BYTES), ValueError, "data: given a read-only buffer"),
    (
        "data",
        np.zeros((DATA_BYTES, 2), np.uint8)[:, 0],
        ValueError,
        r"data: given shape \(48,\) with strides \(2,\), but wanted a C-contiguous buffer",
    ),
    ("data", np.zeros((8, 6), np.uint8, order="F"), ValueError, "data: given shape .* but wanted a C-contiguous"),
    ("present", "text", TypeError, "present: given str, but wanted an object with a buffer"),
    ("present", read_only(np.zeros(HEAPS, np.bool_)), ValueError, "present: given a read-only buffer"),
    ("present", np.zeros(2 * HEAPS, np.bool_)[::2], ValueError, "present: given shape .* but wanted a C-contiguous"),
    ("present", np.zeros(HEAPS, np.uint16), ValueError, "present: given dtype uint16, but wanted bool, uint8 or int8"),
    ("present", np.zeros(HEAPS, "S1"), ValueError, r"present: given dtype \|S1, but wanted bool, uint8 or int8"),
    ("extra", 5, TypeError, "extra: given int, but wanted an object with a buffer"),
    ("extra", read_only(np.zeros(HEAPS, np.uint16)), ValueError, "extra: given a read-only buffer"),
    ("extra", np.full(HEAPS, None), ValueError, "extra: given dtype object"),
    ("extra", np.zeros(2 * HEAPS, np.uint16)[::2], ValueError, "extra: given shape .* but wanted a C-contiguous"),
]
# What does not fit the layout.
SIZE_ERRORS = [
    ("data", None, ValueError, "data: no buffer given"),
    (
        "data",
        np.zeros(DATA_BYTES - 1, np.uint8),
        ValueError,
        "data: given 47 bytes, but wanted at least 48 for a chunk",
    ),
    ("data", np.zeros(0, np.uint8), ValueError, "data: given 0 bytes, but wanted at least 48"),
    ("present", None, ValueError, "present: no buffer given"),
    ("present", np.zeros(HEAPS - 1, np.bool_), ValueError, "present: given 11 elements, but wanted exactly 12"),
    ("present", np.zeros(HEAPS + 1, np.bool_), ValueError, "present: given 13 elements, but wanted exactly 12"),
    (
        "extra",
        None,
        ValueError,
        r"extra: no buffer given, but wanted at least 24 bytes \(2 for each of 12 heaps\)",
    ),
    ("extra", np.zeros(EXTRA_BYTES - 1, np.uint8), ValueError, "extra: given 23 bytes, but wanted at least 24"),
]
DTYPE_ERRORS = [
    ("data", np.zeros(24, np.float32), ValueError, "data: given dtype float32, but wanted int16 or a dtype of one"),
    ("data", np.zeros(24, np.uint16), ValueError, "data: given dtype uint16, but wanted int16 or a dtype of one"),
    ("data", np.zeros(24, ">i2"), ValueError, "data: given dtype >i2, but wanted int16 or a dtype of one byte"),
]
GOOD = [
    ("data", np.zeros(DATA_BYTES, np.int8)),
    ("data", np.zeros(DATA_BYTES, "V1")),
    ("data", np.zeros(24, np.int16)),
    ("data", np.zeros((4, 3, 2), np.int16)),
    ("data", np.zeros(DATA_BYTES + 1, np.uint8)),
    ("data", bytearray(DATA_BYTES)),
    ("data", mmap.mmap(-1, 4096)),
    ("present", np.zeros(HEAPS, np.uint8)),
    ("present", np.zeros(HEAPS, np.int8)),
    ("present", np.zeros((4, 3), np.bool_)),
    ("present", bytearray(HEAPS)),
    ("extra", np.zeros(HEAPS + 1, SMALL.extra_dtype)),
    ("extra", np.zeros((4, 3), SMALL.extra_dtype)),
    ("extra", bytearray(EXTRA_BYTES)),
]


class TestBuffers:
    """Checks of buffers, at both times when they are made."""

    @pytest.mark.fault(1)
    @pytest.mark.parametrize(("name", "buffer", "error", "message"), MEMORY_ERRORS + SIZE_ERRORS + DTYPE_ERRORS)
    def test_made_for_sink(self, sink, name, buffer, error, message):
        with pytest.raises(error, match=message):
            Chunk(sink=sink, **buffers(**{name: buffer}))

    @pytest.mark.fault(1)
    @pytest.mark.parametrize(("name", "buffer", "error", "message"), SIZE_ERRORS + DTYPE_ERRORS)
    def test_given_to_sink(self, sink, name, buffer, error, message):
        chunk = Chunk(sink=PlainSink(), **buffers(**{name: buffer}))
        with pytest.raises(error, match=message):
            sink.add_free_chunk(chunk)
        assert sink.free_ringbuffer.qsize() == 0
        # The chunk still has its buffers, so the mistake can be put right.
        setattr(chunk, name, buffers()[name])
        sink.add_free_chunk(chunk)
        assert sink.free_ringbuffer.qsize() == 1

    @pytest.mark.parametrize(("name", "buffer"), GOOD)
    def test_good(self, sink, name, buffer):
        given = buffers(**{name: buffer})
        chunk = Chunk(sink=sink, **given)
        assert (chunk.data, chunk.present, chunk.extra) == (given["data"], given["present"], given["extra"])
        sink.add_free_chunk(chunk)
        assert sink.free_ringbuffer.qsize() == 1

    @pytest.mark.parametrize(("name", "buffer", "error", "message"), MEMORY_ERRORS)
    def test_sink_not_ours(self, name, buffer, error, message):
        with pytest.raises(error, match=message):
            Chunk(sink=PlainSink(), **buffers(**{name: buffer}))

    @pytest.mark.parametrize(("name", "buffer"), [*GOOD, *((name, buffer) for name, buffer, *_ in SIZE_ERRORS)])
    def test_sink_not_ours_has_no_sizes(self, name, buffer):
        given = buffers(**{name: buffer})
        chunk = Chunk(sink=PlainSink(), **given)
        assert chunk.data is given["data"]
        assert chunk.present is given["present"]
        assert chunk.extra is given["extra"]

    @pytest.mark.parametrize(("name", "buffer", "error", "message"), MEMORY_ERRORS + SIZE_ERRORS)
    def test_own_layout(self, own_sink, name, buffer, error, message):
        with pytest.raises(error, match=message):
            Chunk(sink=own_sink, **buffers(**{name: buffer}))

    @pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint8])
    def test_own_layout_has_no_dtype(self, own_sink, dtype):
        Chunk(sink=own_sink, **buffers(data=np.zeros(DATA_BYTES, np.uint8).view(dtype))).recycle()
        assert own_sink.free_ringbuffer.qsize() == 1

    def test_padded(self):
        """The bytes needed are those that the strides span, for the greediest stream of a group."""
        layout = dataclasses.replace(LAYOUT, order=("antenna", "pol", "time"), strides={"antenna": "pitch"})
        user_data = np.zeros(2, layout.user_data_dtype)
        user_data["pitch"] = [16, 100]
        sink = make_sink("group", layout, user_data=user_data)
        Chunk(sink=sink, **buffers(data=np.zeros(2 * 100 + 16, np.uint8)))
        with pytest.raises(ValueError, match="data: given 215 bytes, but wanted at least 216 for a chunk"):
            Chunk(sink=sink, **buffers(data=np.zeros(2 * 100 + 15, np.uint8)))
        sink.stop()

    def test_no_side_items(self):
        sink = make_sink("stream", dataclasses.replace(LAYOUT, side_items=()))
        Chunk(sink=sink, **buffers(extra=None)).recycle()
        Chunk(sink=sink, **buffers(extra=np.zeros(1, np.uint8))).recycle()
        sink.stop()
        assert sink.free_ringbuffer.qsize() == 2


class TestChunk:
    """Where a chunk goes, and what it carries."""

    def test_attributes(self, sink):
        device = object()
        chunk = Chunk(sink=sink, device=device, timestamp=128, chunk_id=2, stream_id=5, **buffers())
        assert chunk.device is device
        assert chunk.timestamp == 128
        assert chunk.chunk_id == 2
        assert chunk.stream_id == 5
        assert chunk.sink() is sink
        assert isinstance(chunk, spead2.recv.Chunk)

    def test_keyword_only(self, sink):
        with pytest.raises(TypeError):
            Chunk(sink)
        with pytest.raises(TypeError, match="sink"):
            Chunk(**buffers())
        with pytest.raises(TypeError, match="presence"):
            Chunk(sink=sink, presence=None, **buffers())

    def test_defaults(self, sink):
        plain, ours = spead2.recv.Chunk(), Chunk(sink=sink, **buffers())
        assert (ours.chunk_id, ours.stream_id) == (plain.chunk_id, plain.stream_id)
        assert (ours.timestamp, ours.device) == (0, None)

    def test_recycle(self, sink):
        chunk = Chunk(sink=sink, **buffers(present=np.ones(HEAPS, np.bool_)))
        present = chunk.present
        chunk.recycle()
        assert sink.free_ringbuffer.qsize() == 1
        assert not present.any()  # spead2 has cleared it
        # spead2 has the buffers now, and gives them back with the same object.
        assert (chunk.data, chunk.present, chunk.extra) == (None, None, None)
        assert sink.free_ringbuffer.get_nowait() is chunk
        assert chunk.present is present

    def test_recycled_twice(self, sink):
        chunk = Chunk(sink=sink, **buffers())
        chunk.recycle()
        with pytest.raises(ValueError, match=r"data: no buffer given .*was this one recycled twice"):
            chunk.recycle()
        assert sink.free_ringbuffer.qsize() == 1

    def test_context_manager(self, sink):
        chunk = Chunk(sink=sink, **buffers())
        with chunk as entered:
            assert entered is chunk
            assert sink.free_ringbuffer.qsize() == 0
        assert sink.free_ringbuffer.qsize() == 1

    def test_context_manager_recycles_on_error(self, sink):
        with pytest.raises(ZeroDivisionError), Chunk(sink=sink, **buffers()):
            raise ZeroDivisionError
        assert sink.free_ringbuffer.qsize() == 1

    def test_full_ring(self, sink):
        for _ in range(sink.free_ringbuffer.maxsize):
            Chunk(sink=sink, **buffers()).recycle()
        chunk = Chunk(sink=sink, **buffers())
        with pytest.raises(spead2.Full):
            chunk.recycle()
        assert chunk.data is not None

    def test_stopped_sink(self, sink):
        chunk = Chunk(sink=sink, **buffers())
        sink.stop()
        chunk.recycle()
        assert sink.free_ringbuffer.qsize() == 0

    def test_sink_gone(self):
        sink = make_sink("stream")
        reference = weakref.ref(sink)
        chunk = Chunk(sink=sink, **buffers())
        del sink
        wait_until_gone(reference)
        with chunk:
            pass
        assert chunk.data is not None

    @pytest.mark.parametrize("what", ["NoneType", "ChunkStreamGroupMember", "ChunkRingbuffer"])
    def test_not_a_sink(self, what):
        """Nothing could be checked for it, and the chunk could not go back."""
        group = make_sink("group")
        given = {"NoneType": None, "ChunkStreamGroupMember": group[0], "ChunkRingbuffer": group.free_ringbuffer}[what]
        with pytest.raises(TypeError, match=f"sink: given {what}, but wanted a stream or group"):
            Chunk(sink=given, **buffers())
        group.stop()

    def test_stand_in(self):
        stand_in = mock.Mock()
        chunk = Chunk(sink=stand_in, data=np.zeros(3, np.float64), present=np.zeros(1, np.uint8))
        chunk.recycle()
        stand_in.add_free_chunk.assert_called_once_with(chunk)


class TestPool:
    """`ChunkPool`."""

    def test_allocates(self, sink):
        pool = ChunkPool(sink, 3)
        assert len(pool) == len(pool.chunks) == 3
        assert sink.free_ringbuffer.qsize() == 3
        chunk = sink.free_ringbuffer.get_nowait()
        assert chunk is pool.chunks[0]
        assert chunk.sink() is sink
        assert chunk.data.shape == (4, 3, 1, 2)
        assert chunk.data.dtype == np.int16
        assert chunk.data.ctypes.data % mmap.PAGESIZE == 0
        assert chunk.present.shape == (4, 3, 1)
        assert chunk.present.dtype == np.bool_
        assert chunk.extra.shape == (4, 3, 1)
        assert chunk.extra.dtype == SMALL.extra_dtype
        for array in (chunk.data, chunk.present, chunk.extra["status"]):
            assert not array.any()

    def test_own_layout(self, own_sink):
        ChunkPool(own_sink, 1)
        chunk = own_sink.free_ringbuffer.get_nowait()
        assert (chunk.data.shape, chunk.data.dtype) == ((DATA_BYTES,), np.uint8)
        assert (chunk.present.shape, chunk.present.dtype) == ((HEAPS,), np.bool_)
        assert (chunk.extra.shape, chunk.extra.dtype) == ((EXTRA_BYTES,), np.uint8)

    def test_padded(self):
        layout = dataclasses.replace(LAYOUT, order=("antenna", "pol", "time"), strides={"antenna": 100})
        sink = make_sink("stream", layout)
        ChunkPool(sink, 1)
        sink.stop()
        chunk = sink.free_ringbuffer.get_nowait()
        assert chunk.data.shape == (216,)
        assert layout.view(chunk.data).shape == (3, 1, 4, 2)

    def test_no_side_items(self):
        layout = dataclasses.replace(LAYOUT, side_items=(), axes=(Axis(name="antenna", item=0x20, size=5),))
        sink = make_sink("stream", layout)
        ChunkPool(sink, 1)
        sink.stop()
        assert sink.free_ringbuffer.get_nowait().extra is None

    @pytest.mark.parametrize("n", [0, -1, 5])
    def test_does_not_fit(self, sink, n):
        with pytest.raises(ValueError, match=rf"n: given {n}, but wanted 1 to 4, the space in the free ring .* is 4"):
            ChunkPool(sink, n)
        assert sink.free_ringbuffer.qsize() == 0

    @pytest.mark.parametrize("n", ["a", 1.0, None])
    def test_not_a_number(self, sink, n):
        with pytest.raises(TypeError, match=f"n: given {n!r}, but wanted an integer"):
            ChunkPool(sink, n)

    @pytest.mark.parametrize(("kind", "window"), [("stream", 2), ("group", 3)])
    def test_too_few(self, kind, window, caplog):
        """A stream that never gets all its chunks stands still, and would not say why."""
        sink = make_sink(kind)
        ChunkPool(sink, window)
        (record,) = caplog.records
        assert record.name == "speadrx.receive.chunk"
        message = f"n: with {window} chunks in the free ring, receiving may stall: the window needs {window}, and"
        assert record.getMessage().startswith(message)
        assert record.getMessage().endswith(f"wanted at least {window + 1}")
        caplog.clear()
        ChunkPool(sink, 1)
        assert not caplog.records
        sink.stop()

    def test_added_to(self, sink):
        ChunkPool(sink, 3)
        with pytest.raises(ValueError, match="n: given 2, but wanted 1 to 1"):
            ChunkPool(sink, 2)
        ChunkPool(sink, 1)

    def test_sink_not_ours(self):
        with pytest.raises(TypeError, match="sink: given PlainSink, but wanted a stream or group from make_stream"):
            ChunkPool(PlainSink(), 1)
