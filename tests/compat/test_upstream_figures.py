"""The declarative layouts behind katgpucbf.recv's names: items, statistics, places and sample counts are upstream's.

The figures and the rules of placement are those of katgpucbf's source: fgpu/recv.py, xbgpu/recv.py, vgpu/recv.py and
spead.py, written once more in the slowest way, for one heap at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import spead2
from speadrx.meerkat import AntennaChannelisedVoltageLayout, DigitiserLayout, TiedArrayChannelisedVoltageLayout

from engine import add_chunks, feed, receive, rings
from handmade import Heap
from speadrx.compat import katgpucbf as recv
from speadrx.layout import DeclarativeLayout

LENGTH = spead2.HEAP_LENGTH_ID
Items = Mapping[int, int]
#: Chunk and place in it of a good heap; or which of the engine's statistics counts it.
Outcome = tuple[int, int] | int


@dataclass(frozen=True)
class Engine:
    layout: DeclarativeLayout
    #: In the order of the engine's call of make_stream.
    spead_items: list[int]
    stream_stats: list[str]
    place: Callable[[Items], Outcome]
    #: heap_bytes, heap_sample_count, chunk_heaps, chunk_timestamp_step.
    figures: tuple[int, int, int, int]
    user_data: dict[str, int]
    #: Values of an item that is no time: good ones and bad ones.
    values: dict[int, list[int]]


def digitiser_heap(items: Items) -> Outcome:
    """fgpu: 4096 samples of 10 bits; polarisation-major; the lowest bit of the digitiser ID is the polarisation."""
    if items.get(LENGTH) != 5120 or items.get(0x1600, -1) < 0 or items.get(0x3101, -1) < 0:
        return 0
    if items[0x1600] % 4096:
        return 1
    return items[0x1600] // 16384, items[0x3101] % 2 * 4 + items[0x1600] // 4096 % 4


def f_engine_heap(items: Items) -> Outcome:
    """xbgpu: 4 antennas, 16 channels of 256 spectra, so 16 x 256 x 2 polarisations x 2 bytes; time-major."""
    if items.get(LENGTH) != 16384 or items.get(0x1600, -1) < 0 or items.get(0x4101, -1) < 0:
        return 0
    if items[0x1600] % 2**21:
        return 1
    if items[0x4101] >= 4:
        return 2
    return items[0x1600] // 2**22, items[0x1600] // 2**21 % 2 * 4 + items[0x4101]


def beam_heap(items: Items) -> Outcome:
    """vgpu: 64 channels in substreams of 16; the polarisation is the stream's; beam_ants must be there."""
    absent = any(items.get(item, -1) < 0 for item in (0x1600, 0x4103, 0x5004))
    if items.get(LENGTH) != 8192 or absent:
        return 0
    if items[0x1600] % 2**15:
        return 1
    if items[0x4103] % 16 or items[0x4103] >= 64:
        return 2
    return items[0x1600] // 2**16, 1 * 8 + items[0x1600] // 2**15 % 2 * 4 + items[0x4103] // 16


ENGINES = {
    "fgpu": Engine(
        DigitiserLayout(10, 4096, 16384, False),
        [0x1600, LENGTH, 0x3101, 0x3102],
        ["katgpucbf.metadata_heaps", "katgpucbf.bad_timestamp_heaps"],
        digitiser_heap,
        (5120, 4096, 8, 16384),
        {},
        {0x3101: [0, 1, 0x1234, 0x1235], 0x3102: [0]},
    ),
    "xbgpu": Engine(
        AntennaChannelisedVoltageLayout(4, 16, 256, 2**21, 8, 2),
        [0x1600, 0x4101, LENGTH],
        ["katgpucbf.metadata_heaps", "katgpucbf.bad_timestamp_heaps", "katgpucbf.bad_feng_id_heaps"],
        f_engine_heap,
        (16384, 16 * 256, 8, 2**22),
        {},
        {0x4101: [0, 1, 2, 3, 3, 2, 1, 0, 4, 1000], 0x4103: [512]},
    ),
    "vgpu": Engine(
        TiedArrayChannelisedVoltageLayout(8, 64, 16, 256, 2, 2**15),
        [0x1600, 0x4103, 0x5004, LENGTH],
        ["katgpucbf.metadata_heaps", "katgpucbf.bad_timestamp_heaps", "katgpucbf.bad_frequency_heaps"],
        beam_heap,
        (8192, 16 * 256, 16, 2**16),
        {"pol": 1},
        {0x4103: [0, 16, 32, 48, 0, 16, 32, 48, 8, 64], 0x5004: [64]},
    ),
}


@pytest.mark.parametrize("name", ENGINES)
def test_figures(name: str) -> None:
    engine = ENGINES[name]
    layout = engine.layout
    figures = (layout.heap_bytes, layout.heap_sample_count, layout.chunk_heaps, layout.chunk_timestamp_step)
    assert figures == engine.figures
    assert sorted(layout.spead_items) == sorted(engine.spead_items)
    # The first of the layout's statistics are the engine's, in its order.
    own = [stat.partition(".")[2] for stat in layout.stream_stats[: len(engine.stream_stats)]]
    assert own == [stat.partition(".")[2] for stat in engine.stream_stats]


def heaps_of(engine: Engine, rng: np.random.Generator) -> list[Heap]:
    """Heaps in the order of time: good ones, and each kind that the engine counts."""
    layout, heaps = engine.layout, []
    step = layout.declaration.time.step
    for n in range(40, 56):
        for i in range(12):
            items = {0x1600: n * step, LENGTH: layout.heap_bytes}
            items |= {item: int(rng.choice(values)) for item, values in engine.values.items()}
            kind = rng.integers(8) if i > 8 else 7
            if kind == 0:
                items[0x1600] += 1
            elif kind == 1:
                items[LENGTH] -= 8
            elif kind == 2:
                del items[int(rng.choice([item for item in engine.spead_items if item in items and item != LENGTH]))]
            heaps.append(Heap(items, rng.bytes(items[LENGTH]), addressed=[0x3300]))
    return heaps


@pytest.mark.parametrize("name", ENGINES)
def test_placed_and_counted_as_upstream_does(name: str, rng: np.random.Generator) -> None:
    engine = ENGINES[name]
    layout = engine.layout
    heaps = heaps_of(engine, rng)
    expected: dict[tuple[int, int], bytes] = {}
    counts = [0] * len(engine.stream_stats)
    for heap in heaps:
        if isinstance(outcome := engine.place(heap.items), int):
            counts[outcome] += 1
        else:
            expected.setdefault(outcome, heap.payload)
    assert all(counts)

    async def run() -> Any:
        user_data = np.zeros(1, [("stats_base", np.uintp)] + [(field, np.uintp) for field in engine.user_data])
        for field, value in engine.user_data.items():
            user_data[field] = value
        stream = recv.make_stream(
            layout=layout,
            spead_items=engine.spead_items,
            max_active_chunks=4,
            **rings(32),
            affinity=-1,
            stream_stats=engine.stream_stats,
            user_data=user_data,
        )
        add_chunks(stream, layout, 24, extra=name == "fgpu")
        feed(stream, heaps)
        return await receive(stream), [stream.stats[stat] for stat in engine.stream_stats]

    chunks, stats = asyncio.run(run())
    assert stats == counts
    found = {
        (chunk.chunk_id, int(place)): chunk.data.reshape(-1)[place * layout.heap_bytes :][: layout.heap_bytes].tobytes()
        for chunk in chunks
        for place in np.flatnonzero(chunk.present)
    }
    # Of two heaps for one place, either may stay.
    copies = {key: [h.payload for h in heaps if engine.place(h.items) == key] for key in expected}
    assert found.keys() == expected.keys()
    assert all(found[key] in copies[key] for key in found)
