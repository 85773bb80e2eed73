"""Missing heaps are filled, and nothing else: by layout, at random, and through real streams."""

import asyncio
import random
import signal
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import spead2.recv
import spead2.recv.asyncio

import speadrx
from guarded import FILL, GuardedBuffer
from handmade import SMALL, OwnLayout
from random_layouts import random_case
from reference import axis_order, axis_sizes, byte_strides
from speadrx import Axis, Layout, SideItem, TimeAxis, fill_missing, iter_chunks
from speadrx.simulate import Faults, InprocSink, Simulator

SEEDS = range(10)
LAYOUTS_PER_SEED = 100
assert len(SEEDS) * LAYOUTS_PER_SEED >= 1000

PRESENT = np.array([True, False, True, False])
RECORDS = [("a", "<i2"), ("b", "<i2")]


def layout(dtype="uint8", heap_bytes=8):
    return Layout(heap_bytes=heap_bytes, dtype=dtype, time=TimeAxis(item=0x10, step=1, batches=4))


class TestFill:
    """What can be written, and what each value becomes."""

    @pytest.mark.parametrize(
        ("dtype", "fill", "wanted"),
        [
            ("uint8", 255, b"\xff"),
            ("int8", -128, b"\x80"),
            ("int8", (-128, 0), b"\x80\0"),
            ("int8", np.array([[-128, 0]]), b"\x80\0"),
            ("int8", np.int64(-3), b"\xfd"),
            ("bool", True, b"\1"),
            ("int16", -2, b"\xfe\xff"),
            ("int16", 2.0, b"\2\0"),
            (">i2", -2, b"\xff\xfe"),
            ("int16", np.arange(4, dtype=np.int16), b"\0\0\1\0\2\0\3\0"),
            ("int16", [0, 1, 2, 3], b"\0\0\1\0\2\0\3\0"),
            ("uint64", 2**64 - 1, b"\xff" * 8),
            ("float32", 1, np.float32(1).tobytes()),
            ("float32", np.nan, np.float32(np.nan).tobytes()),
            ("float32", -np.inf, np.float32(-np.inf).tobytes()),
            ("float64", 1e300, np.float64(1e300).tobytes()),
            ("complex64", 1 - 2j, np.complex64(1 - 2j).tobytes()),
            ("complex64", 1, np.complex64(1).tobytes()),
            ("int16", b"\1\2\3\4\5\6\7\x08", b"\1\2\3\4\5\6\7\x08"),
            ("int16", bytearray(b"\1"), b"\1"),
            ("int16", memoryview(b"\1\2\3\4")[::2], b"\1\3"),
            (RECORDS, np.array((1, 2), RECORDS), b"\1\0\2\0"),
        ],
    )
    def test_values(self, dtype, fill, wanted):
        data = np.full((4, 8), FILL, np.uint8)
        assert fill_missing(layout(dtype), data, PRESENT, fill) == 2
        assert data[~PRESENT].tobytes() == wanted * (16 // len(wanted))
        assert (data[PRESENT] == FILL).all()

    @pytest.mark.parametrize(
        ("dtype", "fill", "message"),
        [
            ("int8", 128, "fill: 128 is out of the range of int8, -128 to 127"),
            ("int8", (0, 1, -129, 0), "fill: -129 is out of the range of int8, -128 to 127"),
            ("uint8", -1, "fill: -1 is out of the range of uint8, 0 to 255"),
            ("uint64", 2.0**64, "fill: 18446744073709551616 is out of the range of uint64, 0 to 18446744073709551615"),
            ("bool", 2, "fill: 2 is out of the range of bool, 0 to 1"),
            ("float16", 65505, r"fill: 65505 is out of the range of float16, -65504.0 to 65504.0"),
            ("float64", 10**400, r"fill: 1000+ is out of the range of float64, -1.79.* to 1.79"),
            ("complex64", 1e39j, r"fill: 1e\+39j is out of the range of complex64, -3.4.* to 3.4"),
            ("int16", 0.5, "fill: 0.5 is not a whole number, but the layout's dtype is int16"),
            ("int16", np.nan, "fill: nan is not a whole number, but the layout's dtype is int16"),
            ("int16", np.inf, "fill: inf is not a whole number, but the layout's dtype is int16"),
            ("float32", 1j, "fill: 1j is complex, but the layout's dtype is float32"),
            (
                RECORDS,
                5,
                "fill: given 5, but the layout's dtype is records of a, b: wanted bytes, or an array of that dtype",
            ),
            (
                "int16",
                (1, 2, 3),
                "fill: given 3 of int16, which are 6 bytes, but wanted a size that divides the 8 bytes of a",
            ),
            ("int16", b"\0" * 16, "fill: given 16 bytes, but wanted a size that divides the 8 bytes of a heap"),
            ("int16", b"", "fill: given 0 bytes, but wanted a size that divides"),
            ("int16", [], "fill: given 0 of int16, which are 0 bytes, but wanted a size that divides"),
        ],
    )
    def test_value_errors(self, dtype, fill, message):
        data = np.full(32, FILL, np.uint8)
        with pytest.raises(ValueError, match=message):
            fill_missing(layout(dtype), data, PRESENT, fill)
        assert (data == FILL).all()

    @pytest.mark.parametrize("fill", [None, "0", object(), [[1], [1, 2]], {"a": 1}, np.array("x")])
    def test_type_errors(self, fill):
        with pytest.raises(TypeError, match=r"fill: given .* but wanted a number, an array of numbers, or bytes"):
            fill_missing(layout(), np.zeros(32, np.uint8), PRESENT, fill)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"data": np.zeros((4, 16), np.uint8)[:, ::2]}, ValueError, "data: is not C-contiguous"),
            ({"data": bytes(32)}, ValueError, "data: is read-only"),
            ({"data": np.zeros(31, np.uint8)}, ValueError, "data: has 31 bytes, but a chunk needs 32"),
            ({"data": np.zeros(32, object)}, ValueError, "data: given dtype object, but wanted a plain numeric dtype"),
            ({"data": None}, TypeError, "data: given NoneType, but wanted an object with a buffer"),
            ({"present": np.zeros(5, bool)}, ValueError, "present: has 5 elements, but a chunk has 4 heaps"),
            ({"present": np.zeros(2, np.int16)}, ValueError, "present: has items of 2 bytes, not 1"),
            ({"present": np.zeros(8, bool)[::2]}, ValueError, "present: is not C-contiguous"),
            ({"present": [1, 0, 1, 0]}, TypeError, "present: given list, but wanted an object with a buffer"),
            ({"extra": np.zeros(7, np.uint8)}, ValueError, "extra: has 7 bytes, but a chunk needs 8"),
            ({"extra": bytes(8)}, ValueError, "extra: is read-only"),
            ({"extra": np.zeros(16, np.uint8)[::2]}, ValueError, "extra: is not C-contiguous"),
            ({"extra": np.zeros(4, object)}, ValueError, "extra: given dtype object, but wanted"),
            ({"layout": 5}, TypeError, "layout: given 5, but wanted a declarative layout"),
        ],
    )
    def test_buffers(self, change, error, message):
        with_side = replace(layout(), side_items=(SideItem(name="side", item=0x20, dtype="u16"),))
        good = {"layout": with_side, "data": np.zeros(32, np.uint8), "present": PRESENT, "extra": np.zeros(4, "u2")}
        assert fill_missing(**good, fill=0) == 2
        with pytest.raises(error, match=message):
            fill_missing(**good | change, fill=0)

    @pytest.mark.parametrize("shift", [-3, 0, 30, 31])
    def test_shared_memory(self, shift):
        memory = np.ones(64, np.uint8)
        data, present = memory[16:48], memory[16 + shift : 20 + shift]
        with pytest.raises(ValueError, match="present: shares memory with data"):
            fill_missing(layout(), data, present, 0)
        assert memory.all()
        memory[[12, 48]] = 0  # next to each other they may be
        assert fill_missing(layout(), data, memory[12:16], 3) == fill_missing(layout(), data, memory[48:52], 3) == 1

    def test_strides_from_user_data(self):
        padded = replace(layout(), strides={"time": "stride"})
        data = np.full(35, FILL, np.uint8)
        assert fill_missing(padded, data, PRESENT, 1, np.array([(9,)], [("stride", np.uintp)])) == 2
        assert np.flatnonzero(data == 1).tolist() == [*range(9, 17), *range(27, 35)]
        with pytest.raises(ValueError, match="data: has 35 bytes, but a chunk needs 38"):
            fill_missing(padded, data, PRESENT, 1, np.array([(10,)], [("stride", np.uintp)]))

    def test_lock_is_released(self):
        """Another thread runs meanwhile, though nothing asks for the interpreter's lock but by waiting for it."""
        many = replace(layout(), heap_bytes=2**22)
        data = np.zeros(many.chunk_bytes, np.uint8)
        go, ran = threading.Lock(), threading.Event()
        go.acquire()
        thread = threading.Thread(target=lambda: (go.acquire(), ran.set()))
        interval = sys.getswitchinterval()
        thread.start()
        sys.setswitchinterval(1000)
        try:
            go.release()
            deadline = time.monotonic() + 60
            while not ran.is_set():
                assert time.monotonic() < deadline, "the other thread has waited in vain"
                fill_missing(many, data, PRESENT, 0)
        finally:
            sys.setswitchinterval(interval)
            thread.join(60)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_layouts(seed):
    """Heap by heap, for any order of axes and strides, against what reference.py says of them."""
    rng = random.Random(seed)
    for _ in range(LAYOUTS_PER_SEED):
        case = random_case(rng)
        layout = case.layout
        strides, span = byte_strides(layout, case.user_data)
        user_data = np.array(tuple(case.user_data.values()), [(name, np.uintp) for name in case.user_data])
        buffers = [GuardedBuffer(span), GuardedBuffer(layout.chunk_heaps * layout.max_heap_extra)]
        data, extra = (buffer.inside for buffer in buffers)
        data[:] = np.frombuffer(rng.randbytes(data.size), np.uint8)
        loss = rng.choice([0, 0.1, 0.5, 1])
        present = np.array([rng.random() >= loss for _ in range(layout.chunk_heaps)])
        pattern = rng.randbytes(rng.choice([n for n in range(1, layout.heap_bytes + 1) if layout.heap_bytes % n == 0]))

        expected, expected_extra = data.copy(), np.full((layout.chunk_heaps, layout.max_heap_extra), FILL, np.uint8)
        order, sizes = axis_order(layout), axis_sizes(layout)
        for i, index in enumerate(np.ndindex(*(sizes[name] for name in order))):
            if not present[i]:
                start = sum(j * strides[name] for j, name in zip(index, order, strict=True))
                heap = np.frombuffer(pattern * (layout.heap_bytes // len(pattern)), np.uint8)
                expected[start : start + layout.heap_bytes] = heap
                expected_extra[i] = 0
        given = {"user_data": user_data} if case.user_data else {}
        assert fill_missing(layout, data, present, pattern, extra=extra, **given) == np.count_nonzero(~present)
        np.testing.assert_array_equal(data, expected)
        np.testing.assert_array_equal(extra, expected_extra.reshape(-1))
        for buffer in buffers:
            buffer.check_guards()


STREAM = Layout(
    heap_bytes=48,
    dtype="int16",
    time=TimeAxis(item=0x1600, step=16, batches=8),
    axes=(
        Axis(name="antenna", item=0x4101, size=3),
        Axis(name="pol", from_user_data="pol", size=2),
    ),
    order=("pol", "antenna", "time"),
    strides={"pol": "pol_stride", "antenna": 8 * 48 + 10},
    side_items=(SideItem(name="status", item=0x3102, dtype="u32"),),
    sources="antenna",
)
POL_STRIDE = 3 * (8 * 48 + 10) + 6
NOISE = np.random.default_rng(1).bytes(48)


class Array:
    """Both polarisations of an array that loses heaps and packets, each received by a stream of a group, or one."""

    def __init__(self, make, n_streams, ring=spead2.recv.ChunkRingbuffer):
        user_data = np.zeros(n_streams, STREAM.user_data_dtype)
        user_data["pol_stride"] = POL_STRIDE
        user_data["pol"] = range(n_streams)
        self.record = user_data[:1]
        arguments = {} if n_streams == 1 else {"affinity": [-1] * n_streams}
        self.source = make(
            layout=STREAM, user_data=user_data, data_ringbuffer=ring(8), max_active_chunks=4, chunks=0, **arguments
        )
        self.chunks = speadrx.ChunkPool(self.source, 6).chunks
        for _ in self.chunks:
            chunk = self.source.free_ringbuffer.get()
            chunk.data[:] = FILL
            chunk.extra.reshape(-1).view(np.uint8)[:] = FILL
            chunk.recycle()
        faults = Faults(loss=0.1, packet_loss=0.1)
        self.simulators = [
            Simulator(STREAM, seed=5, faults=faults, user_data={"pol": pol}, max_packet_size=100)
            for pol in range(n_streams)
        ]
        self.thread = threading.Thread(target=self.send)

    def send(self):
        streams = [self.source] if len(self.simulators) == 1 else self.source._streams()
        queues = [spead2.InprocQueue() for _ in streams]
        for stream, queue in zip(streams, queues, strict=True):
            stream.add_inproc_reader(queue)
        for _ in range(30):
            for simulator, queue in zip(self.simulators, queues, strict=True):
                simulator.send(InprocSink(queue), 8)
            # A group drops what comes late from another stream.
            deadline = time.monotonic() + 60
            while sum(s.stats["packets"] for s in streams) < sum(s.truth.packets for s in self.simulators):
                assert time.monotonic() < deadline
                time.sleep(0.001)
        for queue in queues:
            queue.stop()

    def check(self, chunk, heap):
        """Compare a chunk with what was sent, byte by byte."""
        present = chunk.present
        data = STREAM.view(chunk.data, self.record)
        sent = self.simulators[0].chunk_data(chunk.timestamp).view(np.int16)
        np.testing.assert_array_equal(data[present], sent[present])
        np.testing.assert_array_equal(chunk.extra[present], self.simulators[0].chunk_extra(chunk.timestamp)[present])
        assert (data[~present] == np.frombuffer(heap, np.int16)).all()
        assert not chunk.extra["status"][~present].any()
        gaps = np.ones_like(chunk.data)
        STREAM.view(gaps, self.record)[...] = 0
        assert gaps.sum() == 2 * 3 * 10 + 6 - 10
        assert (chunk.data[gaps == 1] == FILL).all()


class OwnCallback(Layout):
    """A declaration beside a callback of its own, which need not heed it."""

    def chunk_place(self, user_data=None):
        return SMALL.chunk_place()


class TestIterChunks:
    """Each chunk that comes out of a stream has its missing heaps filled."""

    @pytest.mark.parametrize("n_streams", [1, 2], ids=["stream", "group"])
    @pytest.mark.parametrize(
        ("fill", "heap"),
        [(-32768, b"\0\x80" * 24), ((1, -1, 5), b"\1\0\xff\xff\5\0" * 8), (NOISE, NOISE)],
        ids=["value", "numbers", "noise"],
    )
    def test_losses(self, make, n_streams, fill, heap):
        array = Array(make, n_streams)
        array.thread.start()
        chunks = iter_chunks(array.source, fill=fill)
        for chunk in chunks:
            with chunk:
                array.check(chunk, heap)
        array.thread.join()
        complete = sum(sum(simulator.truth.complete) for simulator in array.simulators)
        assert chunks.accounting.chunks == 30
        assert chunks.accounting.present == complete
        assert sum(sum(simulator.truth.incomplete) for simulator in array.simulators) > 0
        assert complete < 30 * 3 * 8 * n_streams

    @pytest.mark.parametrize("ring", [spead2.recv.ChunkRingbuffer, spead2.recv.asyncio.ChunkRingbuffer])
    async def test_async(self, make, ring):
        array = Array(make, 1, ring)
        array.thread.start()
        async with asyncio.timeout(60):
            async for chunk in iter_chunks(array.source, fill=7):
                with chunk:
                    array.check(chunk, b"\7\0" * 24)
        array.thread.join()

    def test_flags_only(self, make):
        """By default, what an earlier use of a chunk has left is left there."""
        array = Array(make, 1)
        array.thread.start()
        stale = 0
        for chunk in iter_chunks(array.source):
            with chunk:
                heaps = STREAM.view(chunk.data, array.record)[~chunk.present].reshape(-1)
                assert (chunk.data.reshape(-1) == FILL).sum() >= 2 * 3 * 10 + 6 - 10
                stale += (heaps != np.frombuffer(bytes([FILL] * 2), np.int16)).any()
        array.thread.join()
        assert stale

    def test_whole_chunks_are_left_alone(self, make):
        """Where no heap is missing there is nothing to look at."""
        source = make()
        queue = spead2.InprocQueue()
        source.add_inproc_reader(queue)
        Simulator(SMALL).send(InprocSink(queue), 2 * 4 + 1)
        queue.stop()
        chunks = iter_chunks(source, fill=0)
        fill, filled = chunks._fill, []
        chunks._fill = lambda chunk: filled.append((chunk.timestamp, fill(chunk)))
        for chunk in chunks:
            chunk.recycle()
        assert filled == [(2 * SMALL.chunk_timestamp_step, 9)]

    @pytest.mark.parametrize("before", [False, True])
    def test_interrupt(self, make, before):
        """Ctrl-C while a chunk is filled loses none, and each that the user gets is filled."""
        array = Array(make, 1)
        array.thread.start()
        chunks = iter_chunks(array.source, fill=3)
        fill, calls = chunks._fill, []

        def interrupted(chunk):
            calls.append(chunk)
            if before and len(calls) % 2:
                signal.raise_signal(signal.SIGINT)
            fill(chunk)
            if not before and len(calls) % 2:
                signal.raise_signal(signal.SIGINT)

        chunks._fill = interrupted
        interrupts = 0
        timestamps = []
        while True:
            try:
                chunk = next(chunks)
            except KeyboardInterrupt:
                interrupts += 1
                continue
            except StopIteration:
                break
            with chunk:
                assert chunk is calls[-1]
                array.check(chunk, b"\3\0" * 24)
                timestamps.append(chunk.timestamp)
        array.thread.join()
        assert timestamps == [i * STREAM.chunk_timestamp_step for i in range(30)]
        assert interrupts == 30
        assert chunks.accounting.chunks == 30
        assert chunks.accounting.present == sum(array.simulators[0].truth.complete)

    def test_different_strides(self, make):
        """Where a heap would be that neither stream has placed, nobody knows."""
        user_data = np.zeros(2, STREAM.user_data_dtype)
        user_data["pol"] = 0, 1
        user_data["pol_stride"] = POL_STRIDE, POL_STRIDE + 2
        group = make(layout=STREAM, user_data=user_data, affinity=[-1, -1])
        iter_chunks(group)
        strides = rf"\({POL_STRIDE}, 394, 48\) and \({POL_STRIDE + 2}, 394, 48\)"
        with pytest.raises(ValueError, match=f"fill: the streams of the group have different strides .*{strides}.*"):
            iter_chunks(group, fill=0)

    @pytest.mark.parametrize("kind", [OwnLayout, OwnCallback])
    def test_own_callback(self, make, kind):
        own = kind() if kind is OwnLayout else kind(heap_bytes=4, time=SMALL.time, axes=SMALL.axes)
        source = make(layout=own, spead_items=SMALL.spead_items, max_heap_extra=2)
        iter_chunks(source)
        with pytest.raises(ValueError, match=rf"fill: the layout \({kind.__name__}\) has a placement callback of its"):
            iter_chunks(source, fill=0)

    def test_wrong_value(self, make):
        source = make()
        with pytest.raises(ValueError, match="fill: 256 is out of the range of uint8, 0 to 255"):
            iter_chunks(source, fill=256)
