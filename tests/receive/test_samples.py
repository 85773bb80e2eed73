"""The numbers in a chunk: packed samples against numpy, records by their fields; from memory, and through receivers."""

from __future__ import annotations

import pathlib
import random
import struct
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import spead2.recv

import speadrx
from handmade import Heap, OwnLayout, encode
from speadrx import Axis, Field, Layout, TimeAxis, fill_missing
from speadrx.simulate import InprocSink, PcapSink, Simulator

TIME = TimeAxis(item=0x1600, step=16, batches=2)
ANTENNA = Axis(name="antenna", item=0x4101, size=3)


def unpacked(data: bytes, bits: int, *, signed: bool, little: bool, samples: int) -> np.ndarray:
    """Samples as numpy's `unpackbits` finds them."""
    all_bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little" if little else "big")
    weights = 1 << np.arange(bits)
    values = all_bits[: samples * bits].reshape(samples, bits).astype(np.int64) @ (weights if little else weights[::-1])
    return np.where(values >> (bits - 1), values - (1 << bits), values) if signed else values


def name_of(bits: int, *, signed: bool, little: bool) -> str:
    return f"{'<' if little else '>'}{'int' if signed else 'uint'}{bits}"


@pytest.mark.parametrize("little", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", range(1, 17))
def test_all_widths_against_numpy(bits: int, signed: bool, little: bool) -> None:
    """Heaps of any length, with gaps between them, in any order of the axes."""
    rng = random.Random(f"{bits}/{signed}/{little}")
    for samples in (1, 2, 7, 8, 9, rng.randrange(10, 100), rng.randrange(100, 3000)):
        heap_bytes = -(-samples * bits // 8)
        stride = heap_bytes * 6 + rng.randrange(9)
        layout = Layout(
            heap_bytes=heap_bytes,
            heap_shape=(samples,),
            dtype=name_of(bits, signed=signed, little=little),
            time=TIME,
            axes=(ANTENNA,),
            order=rng.choice([("time", "antenna"), ("antenna", "time")]),
            strides={"time": stride} if rng.random() < 0.5 else {"antenna": stride},
        )
        data = np.frombuffer(rng.randbytes(layout.chunk_bytes), np.uint8)
        got = layout.samples(data)
        assert (got.dtype.itemsize, got.dtype.kind) == (1 if bits <= 8 else 2, "i" if signed else "u")
        heaps = layout.view(data).view(np.uint8).reshape(*layout.present_shape, -1)
        for index in np.ndindex(layout.present_shape):
            wanted = unpacked(heaps[index].tobytes(), bits, signed=signed, little=little, samples=samples)
            np.testing.assert_array_equal(got[index], wanted)


class TestOut:
    """Where the numbers are written."""

    layout = Layout(heap_bytes=10, dtype="int10", heap_shape=(4, 2), time=TIME, axes=(ANTENNA,))
    data = np.frombuffer(random.Random("out").randbytes(60), np.uint8)

    def test_array(self) -> None:
        wanted = self.layout.samples(self.data)
        assert (wanted.shape, wanted.dtype) == ((2, 3, 4, 2), np.int16)
        out = np.zeros((2, 3, 4, 2), np.int16)
        assert self.layout.samples(self.data, out=out) is out
        np.testing.assert_array_equal(out, wanted)
        for dtype in (np.int32, np.float32, np.float64, np.complex64, ">i2"):
            other = np.zeros((2, 3, 4, 2), dtype)
            np.testing.assert_array_equal(self.layout.samples(self.data, out=other), wanted)
        apart = np.full((3, 4, 2, 5), 77, np.int16)
        view = apart.transpose(3, 0, 1, 2)[1:4:2]
        assert self.layout.samples(self.data, out=view) is view
        np.testing.assert_array_equal(view, wanted)
        assert (apart[..., ::2] == 77).all()

    def test_plain_numbers_are_not_copied(self) -> None:
        layout = Layout(heap_bytes=10, dtype="int16", time=TIME, axes=(ANTENNA,))
        data = layout.view(self.data.copy())
        assert layout.samples(data) is data
        assert np.shares_memory(layout.samples(data.reshape(-1)), data)
        out = np.zeros((2, 3, 5), np.float32)
        np.testing.assert_array_equal(layout.samples(data, out=out), data)

    @pytest.mark.parametrize(
        ("out", "error", "message"),
        [
            (np.zeros((2, 3, 8), np.int16), ValueError, r"out: given shape \(2, 3, 8\), but wanted \(2, 3, 4, 2\)"),
            (np.zeros((2, 3, 4, 2), np.int8), None, ""),
            (np.zeros((2, 3, 4, 2), np.uint16), TypeError, "out: given dtype uint16, but wanted int16, or one that"),
            (np.zeros((2, 3, 4, 2), bool), TypeError, "out: given dtype bool"),
            (np.broadcast_to(np.int16(0), (2, 3, 4, 2)), ValueError, "out: given a read-only array"),
            ([], TypeError, "out: given list, but wanted a numpy array"),
        ],
    )
    def test_mistakes(self, out: Any, error: type[Exception] | None, message: str) -> None:
        if error is None:
            error, message = TypeError, "out: given dtype int8, but wanted int16, or one that can hold it"
        with pytest.raises(error, match=message):
            self.layout.samples(self.data, out=out)

    def test_shared_memory(self) -> None:
        memory = np.zeros(200, np.int16)
        with pytest.raises(ValueError, match="out: shares memory with data"):
            self.layout.samples(memory.view(np.uint8)[:60], out=memory[20:68].reshape(2, 3, 4, 2))

    def test_data_must_be_whole(self) -> None:
        with pytest.raises(ValueError, match="data: has 59 bytes, but a chunk needs 60"):
            self.layout.samples(self.data[:59])
        with pytest.raises(ValueError, match="data: is not C-contiguous"):
            self.layout.samples(np.zeros(120, np.uint8)[::2])


class TestOrder:
    """Rows of heaps that lie apart: each channel has all spectra of a chunk one after the other."""

    @staticmethod
    def beam(dtype: str, heap_bytes: int) -> Layout:
        """Heaps of 3 channels and 8 spectra, of 2 sub-bands and 4 times a chunk."""
        return Layout(
            heap_bytes=heap_bytes,
            dtype=dtype,
            heap_shape=(3, 8),
            heap_axes=("channel", "spectrum"),
            samples_order=("substream", "channel", "time", "spectrum"),
            time=TimeAxis(item=0x1600, step=16, batches=4),
            axes=(Axis(name="substream", item=0x4103, step=3, size=2),),
        )

    @pytest.mark.parametrize(
        ("dtype", "heap_bytes"), [("cint8", 48), ("int10", 30), ("uint4", 12), ("float32", 96), ("cint64", 384)]
    )
    @pytest.mark.parametrize("out", [None, "same", "apart", "wide"])
    def test_beam(self, dtype: str, heap_bytes: int, out: str | None) -> None:
        layout = self.beam(dtype, heap_bytes)
        data = np.frombuffer(random.Random(dtype).randbytes(layout.chunk_bytes), np.uint8)
        if dtype == "float32":
            data = np.arange(layout.chunk_bytes // 4, dtype=np.float32)
        given = None
        natural = replace(layout, samples_order=None).samples(data)
        if out is not None:
            wide = np.float64 if natural.dtype.names is None else natural.dtype  # records have no wider form
            given = np.zeros((2, 3, 4, 8), wide if out == "wide" else natural.dtype)
            if out == "apart":
                given = np.zeros((2, 4, 4, 8), natural.dtype)[:, :3]
        got = layout.samples(data, out=given)
        assert got.shape == (2, 3, 4, 8)
        assert got is given if out else got.flags.c_contiguous
        for time, substream, channel, spectrum in np.ndindex(4, 2, 3, 8):
            assert got[substream, channel, time, spectrum] == natural[time, substream, channel, spectrum]
        if out is None:  # a channel is one row
            rows = got.reshape(6, 32)
            assert np.shares_memory(rows, got)
            np.testing.assert_array_equal(rows[4, 8:16], natural[1, 1, 1])

    def test_received(self, tmp_path: pathlib.Path) -> None:
        """The first correlator's beams (katsdpbfingest): a heap is channel by time, and so is what is wanted."""
        values = (
            np.random.default_rng(6).integers(-128, 128, (6, 64, 2)).astype(np.int8)
        )  # channel, spectrum, re and im
        packets, n = [], 0
        for time in range(8):
            for substream in range(2):
                n += 1
                payload = values[3 * substream : 3 * substream + 3, 8 * time : 8 * time + 8].tobytes()
                items = {0x1600: 16 * time, 0x4103: 3 * substream, 0x2: len(payload)}
                packets += encode(Heap(items, payload, addressed=[0x5000]), n, 48)
        chunks = received(self.beam("cint8", 48), packets, tmp_path)
        rows = np.concatenate([chunk.reshape(6, 32) for chunk in chunks], axis=1)
        np.testing.assert_array_equal(rows["re"], values[..., 0])
        np.testing.assert_array_equal(rows["im"], values[..., 1])

    def test_toml(self, tmp_path: pathlib.Path) -> None:
        layout = self.beam("cint8", 48)
        path = tmp_path / "beam.toml"
        path.write_text(layout.to_toml(), encoding="utf-8")
        assert Layout.from_toml(path) == layout
        order = "samples_order=['time', 'spectrum', 'channel', 'substream']"
        assert speadrx.layouts.load(path, [order]).samples(np.zeros(384, np.uint8)).shape == (4, 8, 3, 2)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"heap_axes": ("channel",)}, "heap_axes: 1 is not the number of dimensions of heap_shape, which is 2"),
            ({"heap_axes": ("channel", "time")}, 'heap_axes: "time" is given twice'),
            ({"heap_axes": ("channel", "a b")}, r'heap_axes\[1\]: "a b" must be a name'),
            ({"heap_axes": ()}, "samples_order: .* must name all axes, and those of heap_axes"),
            ({"samples_order": ("time", "substream", "channel")}, 'must name all axes, .*"spectrum"'),
            ({"samples_order": ("time", "time", "substream", "channel")}, 'samples_order: "time" is given twice'),
            ({"heap_shape": None}, "heap_axes: 2 is not the number of dimensions of heap_shape, which is 0"),
            ({"samples_order": "time"}, "samples_order: given 'time', but wanted a sequence"),
        ],
    )
    def test_mistakes(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(speadrx.LayoutError, match=message):
            replace(self.beam("cint8", 48), **change)


def test_complex_samples() -> None:
    """Two parts of 4 bits a byte: the real part first."""
    layout = Layout(heap_bytes=4, dtype="cint4", time=TimeAxis(item=0x1600, step=1, batches=1))
    got = layout.samples(np.array([[0x1F, 0x80, 0x7E, 0x00]], np.uint8))
    assert got.dtype == np.dtype([("re", "i1"), ("im", "i1")])
    assert got.tolist() == [[(1, -1), (-8, 0), (7, -2), (0, 0)]]
    layout = Layout(heap_bytes=3, dtype="<cint12", time=TimeAxis(item=0x1600, step=1, batches=1))
    assert layout.samples(np.array([[0xFF, 0x1F, 0x80]], np.uint8)).tolist() == [[(-1, -2047)]]


class TestFill:
    """Missing heaps of packed samples and complex integers."""

    @pytest.mark.parametrize(
        ("dtype", "shape", "fill", "wanted"),
        [
            ("int10", (4,), -3, [-3] * 4),
            ("<int10", (4,), (-512, 511), [-512, 511] * 2),
            ("int10", (3,), 7, [7] * 3),
            ("uint12", (3,), (1, 2, 4095), [1, 2, 4095]),
            ("cint4", (5,), 1 - 8j, [(1, -8)] * 5),
            ("cint4", (5,), -1, [(-1, 0)] * 5),
            ("cint8", (2,), -128 + 127j, [(-128, 127)] * 2),
            ("cint8", (2,), np.array((5, 6), [("re", "i1"), ("im", "i1")]), [(5, 6)] * 2),
        ],
    )
    def test_values(self, dtype: str, shape: tuple[int, ...], fill: Any, wanted: list[Any]) -> None:
        bits = {"int10": 10, "<int10": 10, "uint12": 12, "cint4": 8, "cint8": 16}[dtype] * shape[0]
        layout = Layout(heap_bytes=-(-bits // 8), dtype=dtype, heap_shape=shape, time=TIME)
        data = np.full(2 * layout.heap_bytes, 0xA5, np.uint8)
        assert fill_missing(layout, data, np.array([True, False]), fill) == 1
        assert layout.samples(data)[1].tolist() == wanted
        assert (data[: layout.heap_bytes] == 0xA5).all()

    @pytest.mark.parametrize(
        ("dtype", "fill", "message"),
        [
            ("int10", 512, "fill: 512 is out of the range of int10, -512 to 511"),
            ("uint10", -1, "fill: -1 is out of the range of uint10, 0 to 1023"),
            ("int10", 1j, "fill: 1j is complex, but the layout's dtype is int10"),
            ("int10", 0.5, "fill: 0.5 is not a whole number, but the layout's dtype is int10"),
            ("int10", (1, 2, 3), "fill: given 3 of int10, but wanted a number that divides the 8 of a heap"),
            ("int10", (), "fill: given 0 of int10, but wanted a number that divides the 8 of a heap"),
            ("cint5", 16j, "fill: 16 is out of the range of cint5, -16 to 15"),
        ],
    )
    def test_mistakes(self, dtype: str, fill: Any, message: str) -> None:
        layout = Layout(heap_bytes=10, dtype=dtype, time=TIME)
        with pytest.raises(ValueError, match=message):
            fill_missing(layout, np.zeros(20, np.uint8), np.array([True, False]), fill)


def heaps_of(payloads: Sequence[bytes], item: int, step: int) -> list[bytes]:
    """Packets of a stream with one source, as its sender would make them."""
    packets = []
    for n, payload in enumerate(payloads):
        items = {0x1600: n * step, 0x2: len(payload)}
        packets += encode(Heap(items, payload, addressed=[item]), n + 1, 48)
    return packets


def received(layout: Layout, packets: list[bytes], tmp_path: pathlib.Path, **options: Any) -> list[np.ndarray]:
    """What `Chunk.samples` gives of all chunks of a capture."""
    path = tmp_path / "capture.pcap"
    with PcapSink(path) as sink:
        for packet in packets:
            sink.send(0, packet)
    with speadrx.Receiver(layout, path, **options) as receiver:
        return [copied(chunk) for chunk in receiver]


def copied(chunk: speadrx.Chunk) -> np.ndarray:
    with chunk:
        return chunk.samples().copy()


class TestReceived:
    """Streams as instruments send them."""

    def test_meerkat_digitiser(self, tmp_path: pathlib.Path) -> None:
        """10 bits, most significant first (katgpucbf, `dsim/signal.py`: packbits)."""
        values = np.random.default_rng(1).integers(-512, 512, (8, 4096))
        bits = (values[..., None] >> np.arange(9, -1, -1)) & 1
        payloads = [np.packbits(heap.astype(np.uint8).reshape(-1)).tobytes() for heap in bits]
        time = TimeAxis(item=0x1600, step=4096, batches=4)
        chunks = received(Layout(heap_bytes=5120, dtype="int10", time=time), heaps_of(payloads, 0x3300, 4096), tmp_path)
        np.testing.assert_array_equal(np.concatenate(chunks), values)

    def test_edd_packetiser(self, tmp_path: pathlib.Path) -> None:
        """12 bits, most significant first (MPIfR, `psrdada_cpp`: words of 64 bits, big-endian)."""
        values = np.random.default_rng(2).integers(-2048, 2048, (8, 64, 16))
        payloads = []
        for heap in values:
            words = [sum((int(v) & 0xFFF) << (12 * (15 - i)) for i, v in enumerate(row)) for row in heap]
            payloads.append(b"".join(word.to_bytes(24, "big") for word in words))
        layout = Layout(
            heap_bytes=1536, dtype=">i12", heap_shape=(64, 16), time=TimeAxis(item=0x1600, step=1024, batches=2)
        )
        np.testing.assert_array_equal(
            np.concatenate(received(layout, heaps_of(payloads, 0x1607, 1024), tmp_path)), values
        )

    def test_f_engine_of_4_bits(self, tmp_path: pathlib.Path) -> None:
        """As katgpucbf sends with --send-sample-bits 4: real and imaginary part share a byte; some heaps never came."""
        values = np.random.default_rng(3).integers(-7, 8, (6, 2, 16, 2, 2))  # channel, spectrum, pol, re and im
        payloads = [((heap[..., 0] & 15) << 4 | (heap[..., 1] & 15)).astype(np.uint8).tobytes() for heap in values]
        packets = heaps_of(payloads, 0x4300, 4096)
        del packets[3]
        layout = Layout(
            heap_bytes=64, dtype="cint4", heap_shape=(2, 16, 2), time=TimeAxis(item=0x1600, step=4096, batches=2)
        )
        got = np.concatenate(received(layout, packets, tmp_path, fill=-8 + 1j))
        values[3] = -8, 1
        np.testing.assert_array_equal(np.stack([got["re"], got["im"]], axis=-1), values)

    def test_records(self, tmp_path: pathlib.Path) -> None:
        """SDP's L0: several arrays in one heap, which `chunk.data` has by name."""
        fields = (
            Field(name="vis", dtype="complex64", shape=(3, 5)),
            Field(name="flags", dtype="uint8", shape=(3, 5)),
            Field(name="channel_weights", dtype="float32", shape=(3,)),
        )
        rng = np.random.default_rng(4)
        vis = rng.normal(size=(4, 3, 5, 2)).astype(np.float32)
        flags = rng.integers(0, 256, (4, 3, 5)).astype(np.uint8)
        weights = rng.normal(size=(4, 3)).astype(np.float32)
        payloads = [struct.pack("<30f15B3f", *v.flat, *f.flat, *w) for v, f, w in zip(vis, flags, weights, strict=True)]
        layout = Layout(heap_bytes=147, fields=fields, time=TimeAxis(item=0x1600, step=1, batches=2))
        got = np.concatenate(received(layout, heaps_of(payloads, 0x1000, 1), tmp_path))
        np.testing.assert_array_equal(got["vis"], vis.view(np.complex64)[..., 0])
        np.testing.assert_array_equal(got["flags"], flags)
        np.testing.assert_array_equal(got["channel_weights"], weights)

    def test_record_for_each_baseline(self, tmp_path: pathlib.Path) -> None:
        """SKA-Low's CBF (ska-low-csp-testware, `low_cbf_vis.py`): records; the heap counter has the channel."""
        packets, expected = [], np.zeros((4, 3, 6, 4), np.complex64)
        for integration in range(4):
            for channel in range(3):
                payload = b""
                for baseline in range(6):
                    values = [integration + 10 * channel + 100 * baseline + i / 8 for i in range(8)]
                    payload += struct.pack("<bB8f", -integration, baseline, *values)
                    expected[integration, channel, baseline] = np.array(values).view(np.complex128)
                heap = Heap({0x2: len(payload)}, payload, addressed=[0x6005])
                packets += encode(heap, 7 << 32 | (448 + channel) << 16 | integration, 48)
        layout = Layout(
            heap_bytes=6 * 34,
            dtype=np.dtype([("TCI", "i1"), ("FD", "u1"), ("VIS", "<c8", (4,))]),
            time=TimeAxis(item=1, mask=0xFFFF, bits=16, step=1, batches=4),
            axes=(Axis(name="channel", item=1, shift=16, mask=0xFFFF, values=(448, 449, 450)),),
        )
        [got] = received(layout, packets, tmp_path)
        assert got.shape == (4, 3, 6)
        assert got["FD"].tolist() == [[list(range(6))] * 3] * 4
        assert got["TCI"][2, 1].tolist() == [-2] * 6
        np.testing.assert_array_equal(got["VIS"], expected)

    def test_simulated(self) -> None:
        """Our own simulator sends such layouts."""
        layout = Layout(heap_bytes=15, dtype="uint12", time=TIME, axes=(ANTENNA,))
        simulator = Simulator(layout)
        queue = spead2.InprocQueue()
        simulator.send(InprocSink(queue), 4)
        queue.stop()
        with speadrx.Receiver(layout, queue) as receiver:
            got = {chunk.timestamp: copied(chunk) for chunk in receiver}
        assert sorted(got) == [0, 32]
        for timestamp, samples in got.items():
            np.testing.assert_array_equal(samples, layout.samples(simulator.chunk_data(timestamp)))


def rings() -> dict[str, Any]:
    ring = spead2.recv.ChunkRingbuffer
    return {"max_active_chunks": 2, "data_ringbuffer": ring(8), "free_ringbuffer": ring(8)}


class TestChunk:
    """Chunks whose samples are not known."""

    def test_recycled(self) -> None:
        stream = speadrx.make_stream(layout=Layout(heap_bytes=15, dtype="uint12", time=TIME), **rings())
        chunk = speadrx.ChunkPool(stream, 5).chunks[0]
        with pytest.raises(ValueError, match="data: the chunk has none: it is in a ring"):
            chunk.samples()

    def test_own_callback(self) -> None:
        stream = speadrx.make_stream(layout=OwnLayout(), spead_items=[0x1600], **rings())
        chunk = speadrx.Chunk(sink=stream, data=np.zeros(48, np.uint8), present=np.zeros(12, bool))
        with pytest.raises(ValueError, match="samples: it is not known what heaps hold"):
            chunk.samples()

    def test_different_strides(self) -> None:
        layout = Layout(heap_bytes=3, dtype="uint12", time=TIME, strides={"time": "stride"})
        user_data = np.zeros(2, layout.user_data_dtype)
        user_data["stride"] = 3, 5
        group = speadrx.make_stream_group(layout=layout, user_data=user_data, affinity=[-1, -1], **rings())
        chunk = speadrx.Chunk(sink=group, data=np.arange(8, dtype=np.uint8), present=np.zeros(2, bool))
        with pytest.raises(ValueError, match="samples: each stream of the group has strides of its own"):
            chunk.samples()
        assert layout.samples(chunk.data, user_data[1:]).tolist() == [[0, 0x102], [0x050, 0x607]]


def test_lock_is_released() -> None:
    """Another thread runs meanwhile, though nothing asks for the interpreter's lock but by waiting for it."""
    layout = Layout(heap_bytes=5 * 2**20, dtype="int10", time=TIME)
    data = np.zeros(layout.chunk_bytes, np.uint8)
    out = np.zeros((2, 2**22), np.int16)
    go, ran = threading.Lock(), threading.Event()
    go.acquire()

    def other() -> None:
        with go:
            ran.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        thread = threading.Thread(target=other)
        thread.start()
        go.release()
        for _ in range(100):
            layout.samples(data, out=out)
            if ran.is_set():
                break
        assert ran.is_set()
    finally:
        sys.setswitchinterval(interval)
        thread.join()
