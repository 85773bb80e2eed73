"""Heaps whose every number follows from a formula, and a reader of recordings that shares nothing with the writer."""

from __future__ import annotations

import json
import pathlib
import struct
from collections.abc import Iterable, Iterator

import numpy as np
import spead2

import speadrx
from handmade import Heap, encode
from speadrx import Axis, Layout, SideItem, TimeAxis

TIME_ID, ANTENNA_ID, SIDE_ID = 0x1600, 0x4101, 0x4102
STEP, BATCHES, ANTENNAS, SAMPLES = 16, 4, 3, 5
EPOCH, TICK_RATE = 1_700_000_000, 1000
WRAP = 2**48 // STEP


def layout_of(**changes) -> Layout:
    fields = {
        "heap_bytes": 2 * SAMPLES,
        "dtype": ">i2",
        "time": TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES, tick_rate=TICK_RATE, epoch=EPOCH),
        "axes": (Axis(name="antenna", item=ANTENNA_ID, size=ANTENNAS),),
        "side_items": (SideItem(name="status", item=SIDE_ID, dtype="u16"),),
        **changes,
    }
    return Layout(**fields)


def value(batch: int, antenna: int, sample: int) -> int:
    return 1000 * (batch % 30) + 10 * antenna + sample


def status(batch: int, antenna: int) -> int:
    return (batch * 7 + antenna) % 2**16


def packets_of(heaps: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """A packet for each heap, by batch and antenna, made without speadrx."""
    for count, (batch, antenna) in enumerate(heaps):
        payload = struct.pack(f">{SAMPLES}h", *(value(batch, antenna, i) for i in range(SAMPLES)))
        items = {
            spead2.HEAP_LENGTH_ID: len(payload),
            TIME_ID: batch * STEP % 2**48,
            ANTENNA_ID: antenna,
            SIDE_ID: status(batch, antenna),
        }
        yield from encode(Heap(items, payload), count + 1, 48)


def queue_of(heaps: Iterable[tuple[int, int]]) -> spead2.InprocQueue:
    """Packets of heaps. The queue ends."""
    queue = spead2.InprocQueue()
    for packet in packets_of(heaps):
        queue.add_packet(packet)
    queue.stop()
    return queue


def heaps_of(chunks: Iterable[int], missing: Iterable[tuple[int, int]] = ()) -> list[tuple[int, int]]:
    batches = [chunk * BATCHES + i for chunk in chunks for i in range(BATCHES)]
    missing = set(missing)
    return [(batch, a) for batch in batches for a in range(ANTENNAS) if (batch, a) not in missing]


def receiver(layout: Layout, heaps: Iterable[tuple[int, int]], **kwargs) -> speadrx.Receiver:
    return speadrx.Receiver(layout, queue_of(heaps), **{"window": 2, "chunks": 6, "max_jump": 5000, **kwargs})


def attributes(path: pathlib.Path) -> dict:
    """What speadrx says of a group."""
    return json.loads((path / "zarr.json").read_text("utf-8"))["attributes"]["speadrx"]


def read_array(folder: pathlib.Path) -> np.ndarray:
    """Read an array of Zarr v3, as the specification says: uncompressed, in a regular grid."""
    document = json.loads((folder / "zarr.json").read_text("utf-8"))
    (codec,) = document["codecs"]
    assert codec["name"] == "bytes"
    assert document["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "."}}
    dtype = np.dtype(document["data_type"])
    if dtype.itemsize > 1:
        dtype = dtype.newbyteorder({"big": ">", "little": "<"}[codec["configuration"]["endian"]])
    grid = document["chunk_grid"]["configuration"]["chunk_shape"]
    shape = document["shape"]
    counts = [-(-n // size) for n, size in zip(shape, grid, strict=True)]
    array = np.full([n * size for n, size in zip(counts, grid, strict=True)], document["fill_value"], dtype)
    for index in np.ndindex(*counts):
        file = folder / ".".join(["c", *map(str, index)])
        if file.exists():
            place = tuple(slice(i * size, (i + 1) * size) for i, size in zip(index, grid, strict=True))
            array[place] = np.frombuffer(file.read_bytes(), dtype).reshape(grid)
    return array[tuple(slice(n) for n in shape)]


def check_part(part: pathlib.Path, first: int, heaps: Iterable[tuple[int, int]], *, killed: bool = False) -> int:
    """Compare each element of a part with the formula; return how many heaps are present. `heaps` may be more.

    If the writer was killed, there may be data of a chunk whose presence was not written yet.
    """
    root = part if "parts" in attributes(part) else part.parent
    consolidated = json.loads((root / "zarr.json").read_text("utf-8"))["consolidated_metadata"]["metadata"]
    names = ("data", "present", "status", "time")
    (length,) = {consolidated[str((part / name).relative_to(root))]["shape"][0] for name in names}
    # If the writer was killed in between, some arrays are longer, by what is not present.
    data, present, side, time = (read_array(part / name) for name in names)
    assert not present[length:].any()
    data, present, side, time = (array[:length] for array in (data, present, side, time))
    assert len(data) == len(present) == len(side) == len(time) == length
    there = {heap for heap in heaps if 0 <= heap[0] - first < len(data)}
    for i, at in enumerate(time.tolist()):
        batch = first + i
        assert at == EPOCH * 10**9 + batch * STEP * 10**9 // TICK_RATE
        for antenna in range(ANTENNAS):
            came = bool(present[i, antenna])
            assert not came or (batch, antenna) in there
            there_too = came or (killed and (batch, antenna) in there and bool(data[i, antenna].any()))
            wanted = [value(batch, antenna, j) if there_too else 0 for j in range(SAMPLES)]
            assert data[i, antenna].tolist() == wanted
            assert side[i, antenna] in ({status(batch, antenna)} if came else {0, status(batch, antenna) * killed})
    return int(present.sum())
