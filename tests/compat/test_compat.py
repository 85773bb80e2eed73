"""Code written for katgpucbf.recv, as telescope code is, with only its import line changed."""

from __future__ import annotations

import dataclasses
import functools
import socket
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import pytest
import spead2
import spead2.recv
from numba import types
from prometheus_client import CollectorRegistry
from spead2.numba import intp_to_voidptr
from spead2.recv.numba import chunk_place_data
from speadrx.meerkat import (
    AntennaChannelisedVoltageLayout,
    DigitiserLayout,
    TiedArrayChannelisedVoltageLayout,
)

from engine import (
    DIGITISER_ID_ID,
    DIGITISER_STATUS_ID,
    FENG_ID_ID,
    TIMESTAMP_ID,
    Received,
    add_chunks,
    feed,
    packets,
    receive,
    rings,
)
from handmade import STOP_PACKET, Heap
from loopback import wait_until_gone
from speadrx.compat import katgpucbf as recv

STREAM_STATS = ["katgpucbf.metadata_heaps", "katgpucbf.bad_timestamp_heaps"]


@dataclass(frozen=True)
class EngineLayout(recv.BaseLayout):
    """An engine's own layout, with a callback in numba."""

    n_ants: int
    step: int
    batches: int
    heap_bytes: int = 16

    @property
    def chunk_batches(self) -> int:
        return self.batches

    @property
    def batch_heaps(self) -> int:
        return self.n_ants

    @property
    def heap_sample_count(self) -> int:
        return self.heap_bytes

    @property
    def chunk_timestamp_step(self) -> int:
        return self.step * self.batches

    @functools.cached_property
    def _chunk_place(self) -> Any:
        n_ants, step, batches, heap_bytes = self.n_ants, self.step, self.batches, self.heap_bytes

        @numba.cfunc(
            types.void(types.CPointer(chunk_place_data), types.uintp, types.CPointer(recv.user_data_type)),
            nopython=True,
        )
        def place(data_ptr, data_size, user_data_ptr):  # type: ignore[no-untyped-def]
            data = numba.carray(data_ptr, 1)[0]
            base = numba.carray(user_data_ptr, 1)[0].stats_base
            stats = numba.carray(intp_to_voidptr(data.batch_stats), base + 2, np.uint64)
            items = numba.carray(intp_to_voidptr(data.items), 3, np.int64)
            time, antenna, length = items[0], items[1], items[2]
            if length != heap_bytes or time < 0 or antenna < 0 or antenna >= n_ants:
                stats[base] += 1
            elif time % step != 0:
                stats[base + 1] += 1
            else:
                batch = time // step
                data.chunk_id = batch // batches
                data.heap_index = batch % batches * n_ants + antenna
                data.heap_offset = (batch % batches * n_ants + antenna) * heap_bytes

        return place


@dataclass(frozen=True)
class PolLayout(EngineLayout):
    """One stream for each polarisation: which it is, and where its part of the chunk starts, is in user data."""

    user_data_type = types.Record.make_c_struct(
        [("stats_base", types.uintp), ("pol", types.int64), ("stride", types.int64)]
    )

    @property
    def batch_heaps(self) -> int:
        return 2 * self.n_ants

    @functools.cached_property
    def _chunk_place(self) -> Any:
        n_ants, step, batches, heap_bytes = self.n_ants, self.step, self.batches, self.heap_bytes

        @numba.cfunc(
            types.void(types.CPointer(chunk_place_data), types.uintp, types.CPointer(self.user_data_type)),
            nopython=True,
        )
        def place(data_ptr, data_size, user_data_ptr):  # type: ignore[no-untyped-def]
            data = numba.carray(data_ptr, 1)[0]
            user_data = numba.carray(user_data_ptr, 1)[0]
            stats = numba.carray(intp_to_voidptr(data.batch_stats), user_data.stats_base + 2, np.uint64)
            items = numba.carray(intp_to_voidptr(data.items), 3, np.int64)
            time, antenna, length = items[0], items[1], items[2]
            if length != heap_bytes or time < 0 or antenna < 0 or antenna >= n_ants:
                stats[user_data.stats_base] += 1
            elif time % step != 0:
                stats[user_data.stats_base + 1] += 1
            else:
                batch = time // step
                slot = batch % batches * n_ants + antenna
                data.chunk_id = batch // batches
                data.heap_index = user_data.pol * batches * n_ants + slot
                data.heap_offset = user_data.pol * user_data.stride + slot * heap_bytes

        return place


ENGINE = EngineLayout(n_ants=3, step=64, batches=4)
POLS = PolLayout(n_ants=3, step=64, batches=4)
ENGINE_ITEMS = [TIMESTAMP_ID, FENG_ID_ID, spead2.HEAP_LENGTH_ID]


def engine_heap(layout: EngineLayout, batch: int, antenna: int, pol: int = 0, offset: int = 0) -> Heap:
    payload = bytes([batch, antenna, pol, 0xEE] * (layout.heap_bytes // 4))
    items = {
        TIMESTAMP_ID: batch * layout.step + offset,
        FENG_ID_ID: antenna,
        spead2.HEAP_LENGTH_ID: layout.heap_bytes,
    }
    return Heap(items, payload)


def check_engine_chunk(layout: EngineLayout, chunk: Received, missing: Sequence[tuple[int, int]] = ()) -> None:
    """Check a chunk of `engine_heap` heaps, but for some (batch, antenna) that are missing."""
    data = chunk.data.reshape(layout.batches, layout.n_ants, layout.heap_bytes)
    present = chunk.present.reshape(layout.batches, layout.n_ants)
    for position in range(layout.batches):
        batch = chunk.chunk_id * layout.batches + position
        for antenna in range(layout.n_ants):
            assert present[position, antenna] == ((batch, antenna) not in missing)
            if present[position, antenna]:
                assert data[position, antenna].tobytes() == engine_heap(layout, batch, antenna).payload


def test_user_data_type() -> None:
    from speadrx.compat.katgpucbf import user_data_type

    assert user_data_type is recv.user_data_type
    assert user_data_type.dtype == np.dtype([("stats_base", np.uintp)])
    assert types.CPointer(user_data_type).dtype is user_data_type


@pytest.mark.parametrize("shape", [(), (1,)])
async def test_numba_subclass(shape: tuple[int, ...]) -> None:
    user_data = np.zeros(shape, recv.user_data_type.dtype)
    stream = recv.make_stream(
        layout=ENGINE,
        spead_items=ENGINE_ITEMS,
        max_active_chunks=2,
        affinity=-1,
        stream_stats=STREAM_STATS,
        user_data=user_data,
        max_heap_extra=0,
        max_heaps=ENGINE.n_ants,
        stream_id=5,
        **rings(),
    )
    assert isinstance(stream, spead2.recv.ChunkRingStream)
    assert isinstance(stream, recv.AnyStream)
    assert stream.config.stream_id == 5
    assert user_data["stats_base"] == stream.config.get_stat_index(STREAM_STATS[0])
    assert stream.config.get_stat_index(STREAM_STATS[1]) == user_data["stats_base"] + 1
    add_chunks(stream, ENGINE, 8)
    missing = [(1, 2), (6, 0)]
    heaps = [
        engine_heap(ENGINE, batch, antenna)
        for batch in range(12)
        for antenna in range(3)
        if (batch, antenna) not in missing
    ]
    short = Heap({**heaps[0].items, spead2.HEAP_LENGTH_ID: 4}, b"bad!")
    heaps[3:3] = [engine_heap(ENGINE, 1, 2, offset=1), engine_heap(ENGINE, 1, 7), short]
    feed(stream, heaps)
    try:
        chunks = await receive(stream)
    finally:
        stream.stop()
    assert [chunk.chunk_id for chunk in chunks] == [0, 1, 2]
    for chunk in chunks:
        check_engine_chunk(ENGINE, chunk, missing)
    assert stream.stats[STREAM_STATS[0]] == 2
    assert stream.stats[STREAM_STATS[1]] == 1
    assert stream.stats["heaps"] == len(heaps)


@pytest.mark.parametrize("shape", [(), (1,), (2,)])
async def test_numba_subclass_group(shape: tuple[int, ...], registry: CollectorRegistry) -> None:
    """Each antenna's heaps come by the one or the other stream of a group, into the same chunks."""
    user_data = np.zeros(shape, recv.user_data_type.dtype)
    group = recv.make_stream_group(
        layout=ENGINE,
        spead_items=ENGINE_ITEMS,
        max_active_chunks=3,
        affinity=[-1, -1],
        stream_stats=STREAM_STATS,
        user_data=user_data,
        **rings(),
    )
    assert isinstance(group, spead2.recv.ChunkStreamRingGroup)
    assert group.config.max_chunks == 4
    assert all(isinstance(member, recv.AnyStream) for member in group)
    assert (user_data["stats_base"] == group[0].config.get_stat_index(STREAM_STATS[0])).all()
    collector = recv.StatsCollector(
        {STREAM_STATS[1]: ("bad_timestamps", "wrong"), "heaps": ("heaps", "all")}, registry=registry
    )
    collector.add_stream_group(group)
    add_chunks(group, ENGINE, 8)
    for antennas, member in zip(((0, 2), (1,)), group, strict=True):
        heaps = [engine_heap(ENGINE, batch, antenna) for batch in range(12) for antenna in antennas]
        feed(member, [engine_heap(ENGINE, 0, antennas[0], offset=5), *heaps])
    try:
        chunks = await receive(group)
    finally:
        group.stop()
    assert [chunk.chunk_id for chunk in chunks] == [0, 1, 2]
    for chunk in chunks:
        check_engine_chunk(ENGINE, chunk)
    assert registry.get_sample_value("bad_timestamps_total") == 2
    assert registry.get_sample_value("heaps_total") == 2 + 36


async def test_user_data_of_each_stream() -> None:
    """Fields `pol` and `stride` differ from stream to stream, and leave a gap between the polarisations."""
    stride = POLS.batches * POLS.n_ants * POLS.heap_bytes + 24
    user_data = np.zeros(2, POLS.user_data_type.dtype)
    user_data["pol"] = [0, 1]
    user_data["stride"] = stride
    group = recv.make_stream_group(
        layout=POLS,
        spead_items=ENGINE_ITEMS,
        max_active_chunks=3,
        affinity=[-1, -1],
        stream_stats=STREAM_STATS,
        user_data=user_data,
        **rings(),
    )
    add_chunks(group, POLS, 8, data_bytes=2 * stride)
    for pol, member in enumerate(group):
        feed(member, [engine_heap(POLS, batch, antenna, pol) for batch in range(8) for antenna in range(3)])
    try:
        chunks = await receive(group)
    finally:
        group.stop()
    assert [chunk.chunk_id for chunk in chunks] == [0, 1]
    for chunk in chunks:
        assert chunk.present.all()
        for pol in range(2):
            expected = b"".join(
                engine_heap(POLS, batch, antenna, pol).payload
                for batch in range(chunk.chunk_id * 4, chunk.chunk_id * 4 + 4)
                for antenna in range(3)
            )
            assert chunk.data[pol * stride :][: len(expected)].tobytes() == expected
            assert not chunk.data[pol * stride + len(expected) : (pol + 1) * stride].any()


def test_wrong_number_of_user_data() -> None:
    with pytest.raises(ValueError, match="user_data"):
        recv.make_stream_group(
            layout=ENGINE,
            spead_items=ENGINE_ITEMS,
            max_active_chunks=3,
            affinity=[-1, -1],
            stream_stats=STREAM_STATS,
            user_data=np.zeros(3, recv.user_data_type.dtype),
            **rings(),
        )


def test_layouts_are_dataclasses() -> None:
    digitiser = DigitiserLayout(10, 4096, 65536, False)
    assert (digitiser.heap_bytes, digitiser.chunk_batches, digitiser.batch_heaps) == (5120, 16, 2)
    assert digitiser.timestamp_mask == np.uint64(2**64 - 1)
    masked = dataclasses.replace(digitiser, mask_timestamp=True, chunk_samples=8192)
    assert masked == DigitiserLayout(10, 4096, 8192, True)
    assert masked.timestamp_mask == np.uint64(2**64 - 4096)
    assert masked.timestamp_mask.dtype == np.uint64
    assert masked.pol_chunk_bytes == 10240
    assert masked.chunk_bytes == 20480
    with pytest.raises(ValueError, match="chunk_samples"):
        dataclasses.replace(digitiser, chunk_samples=5000)
    with pytest.raises(dataclasses.FrozenInstanceError):
        digitiser.heap_samples = 1  # type: ignore[misc]
    channelised = AntennaChannelisedVoltageLayout(80, 64, 256, 2**21, 8, 32)
    assert (channelised.heap_bytes, channelised.batch_heaps) == (65536, 80)
    assert dataclasses.replace(channelised, n_ants=4).chunk_heaps == 128
    beam = TiedArrayChannelisedVoltageLayout(8, 4096, 64, 256, 16, 2**21)
    assert (beam.heap_bytes, beam.batch_heaps, beam.chunk_timestamp_step) == (32768, 128, 2**25)
    assert dataclasses.replace(beam, n_batches_per_chunk=2).chunk_heaps == 256


@pytest.mark.parametrize("own_statistics", [STREAM_STATS, [*STREAM_STATS, "katgpucbf.bad_feng_id_heaps"]])
async def test_declared_layout(own_statistics: list[str], registry: CollectorRegistry) -> None:
    """A declared layout used as if it had a numba callback: items in another order, statistics of one's own."""
    layout = AntennaChannelisedVoltageLayout(3, 4, 2, 64, 8, 4)
    user_data = np.zeros(1, recv.user_data_type.dtype)
    stream = recv.make_stream(
        layout=layout,
        spead_items=ENGINE_ITEMS,
        max_active_chunks=2,
        affinity=-1,
        stream_stats=own_statistics,
        user_data=user_data,
        max_heap_extra=0,
        substreams=3,
        **rings(),
    )
    assert user_data["stats_base"] == stream.config.get_stat_index(STREAM_STATS[0])
    names = [*own_statistics, "speadrx.bad_feng_id_heaps"][:3]
    collector = recv.StatsCollector(
        {name: (f"bad_{i}", name) for i, name in enumerate(names)}, ["stream"], "rx", registry
    )
    for _ in range(2):
        collector.add_stream(stream, ["0"])
    add_chunks(stream, layout, 8)
    engine = EngineLayout(n_ants=3, step=64, batches=4, heap_bytes=layout.heap_bytes)
    heaps = [engine_heap(engine, batch, antenna) for batch in range(8) for antenna in range(3)]
    heaps[5:5] = [
        engine_heap(engine, 1, 0, offset=1),
        engine_heap(engine, 1, 3),
        engine_heap(engine, 1, 4),
        Heap({**heaps[0].items, spead2.HEAP_LENGTH_ID: 3}, b"abc"),
    ]
    feed(stream, heaps)
    try:
        chunks = await receive(stream)
    finally:
        stream.stop()
    assert [chunk.chunk_id for chunk in chunks] == [0, 1]
    for chunk in chunks:
        check_engine_chunk(engine, chunk)
    assert [stream.stats[name] for name in names] == [1, 1, 2]
    reference = weakref.ref(stream)
    del stream
    wait_until_gone(reference)
    assert [registry.get_sample_value(f"rx_bad_{i}_total", {"stream": "0"}) for i in range(3)] == [1, 1, 2]


async def test_digitiser_from_user_data() -> None:
    """A group of two streams for the two polarisations, their parts of the chunk a stride apart; side items kept."""
    layout = DigitiserLayout(8, 16, 64, True)
    stride = layout.pol_chunk_bytes + 32
    user_data = np.zeros((), [("stats_base", np.uintp), ("stride", np.uintp)])
    user_data["stride"] = stride
    group = recv.make_stream_group(
        layout=layout,
        spead_items=[TIMESTAMP_ID, spead2.HEAP_LENGTH_ID, DIGITISER_STATUS_ID, DIGITISER_ID_ID],
        max_active_chunks=3,
        affinity=[-1, -1],
        stream_stats=STREAM_STATS,
        user_data=user_data,
        max_heap_extra=np.dtype(np.uint16).itemsize,
        **rings(),
    )
    add_chunks(group, layout, 8, data_bytes=2 * stride, extra=True)
    for pol, member in enumerate(group):
        feed(
            member,
            [
                Heap(
                    {
                        TIMESTAMP_ID: batch * 16 + 3,  # the low bits are masked off
                        spead2.HEAP_LENGTH_ID: 16,
                        DIGITISER_STATUS_ID: (batch * 2 + pol) << 32,
                        DIGITISER_ID_ID: 0xAA00 | pol,
                    },
                    bytes([batch, pol] * 8),
                )
                for batch in range(8)
            ],
        )
    try:
        chunks = await receive(group)
    finally:
        group.stop()
    assert [chunk.chunk_id for chunk in chunks] == [0, 1]
    for chunk in chunks:
        assert chunk.present.all()
        assert chunk.extra is not None
        for pol in range(2):
            for position in range(4):
                batch = chunk.chunk_id * 4 + position
                start = pol * stride + position * 16
                assert chunk.data[start : start + 16].tobytes() == bytes([batch, pol] * 8)
                assert chunk.extra[pol * 4 + position] == batch * 2 + pol
            assert not chunk.data[pol * stride + 64 : (pol + 1) * stride].any()


async def test_udp(udp_port: int) -> None:
    """`add_reader` with the keywords that are required there."""
    layout = AntennaChannelisedVoltageLayout(3, 4, 2, 64, 8, 4)
    stream = recv.make_stream(
        layout=layout,
        spead_items=ENGINE_ITEMS,
        max_active_chunks=2,
        affinity=-1,
        stream_stats=STREAM_STATS,
        user_data=np.zeros((), recv.user_data_type.dtype),
        **rings(),
    )
    add_chunks(stream, layout, 8)
    engine = EngineLayout(n_ants=3, step=64, batches=4, heap_bytes=layout.heap_bytes)
    try:
        recv.add_reader(
            stream, src=[("127.0.0.1", udp_port)], interface=None, ibv=False, comp_vector=0, buffer=64 * 1024
        )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", udp_port))
            for packet in packets(engine_heap(engine, batch, antenna) for batch in range(8) for antenna in range(3)):
                sock.send(packet)
            sock.send(STOP_PACKET)
        chunks = await receive(stream)
    finally:
        stream.stop()
    assert [chunk.chunk_id for chunk in chunks] == [0, 1]
    for chunk in chunks:
        check_engine_chunk(engine, chunk)
