"""Header files of mkrecv become layouts that place heaps where mkrecv does.

The headers are written after mkrecv's own (header_fengine.cfg, header_packetizer_edd_2mc_12bit.cfg,
header_backend_edd_8mc.cfg) and those of mpikat (fbfuse, EDD). Where a heap belongs follows from mkrecv_rnt.cpp: a slot
has groups of heaps, one for each time; in a group the last index changes fastest.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import spead2

import speadrx
from handmade import Heap, encode
from speadrx import LayoutError
from speadrx.layout.mkrecv import MkrecvHeader

FENGINE = """\
HEADER       DADA                # Distributed aquisition and data analysis
NBIT         8
SYNC_TIME    1231235243.0000000
SAMPLE_CLOCK 1712000000.0
MCAST_SOURCES 239.2.1.150:7147,239.2.1.151:7148
PORT         60416
IBV_IF       192.168.1.20
IBV_VECTOR   -1
NGROUPS_DATA 4
HEAP_SIZE    1024
NINDICES    3
IDX1_ITEM   0         # First item of a SPEAD heap (timestamp)
IDX1_STEP   2097152   # The difference between successive timestamps
IDX1_MODULO 4194304
IDX2_ITEM   1
IDX2_MASK   0xffffffffffff
IDX2_LIST   7,2,5
IDX3_ITEM   2
IDX3_LIST   0:64:16   # a range, without its end
#IDX3_MASK  0x1
"""
PACKETISER = """\
NINDICES    2
IDX1_ITEM   0
IDX1_STEP   4096
IDX2_ITEM   1
IDX2_LIST   0,1
IDX2_MASK   0x1
SCI_LIST    2
NBIT        12
HEAP_NBYTES 6144
NGROUPS_DATA 8
PORT        7148
MCAST_SOURCES 225.0.0.152+3
SAMPLE_CLOCK unset
SYNC_TIME   unset
"""
BACKEND = """\
HEAP_SIZE    4096
NGROUPS_DATA 2
NINDICES    2
IDX1_ITEM   0
IDX1_STEP   1048576
IDX2_ITEM   2
IDX2_LIST   0,8,16,24,32,40,48,56
MCAST_SOURCES 239.2.1.150+6:2
PORT         60001
"""


def mkrecv_list(text: str) -> list[int]:
    """The values of a list, once more, as the comment in mkrecv_rnt.cpp explains them."""
    values: list[int] = []
    for part in text.split(","):
        numbers = [int(number, 0) for number in part.split(":")]
        first, end, step = (numbers + [numbers[0] + 1, 1][len(numbers) - 1 :])[:3]
        values.extend(range(first, end, step))
    return values


#: For each header: IDs by position, values of each index but the first, position and mask of each, bytes of a heap.
CASES = {
    "fengine": (FENGINE, {0: 0x1600, 1: 0x4101, 2: 0x4103}, [("7,2,5", 1, -1), ("0:64:16", 2, -1)], 1024, 2097152, 4),
    "packetiser": (PACKETISER, {0: 0x1600, 1: 0x3101, 2: 0x3102}, [("0,1", 1, 1)], 6144, 4096, 8),
    "backend": (BACKEND, {0: 0x1600, 2: 0x1602}, [("0,8,16,24,32,40,48,56", 2, -1)], 4096, 1048576, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_heaps_are_where_mkrecv_puts_them(name):
    """Each heap, good or bad, in any order, against the formula of mkrecv_rnt.cpp."""
    text, items, lists, heap_bytes, step, groups = CASES[name]
    converted = MkrecvHeader(text).convert(items)
    rng = random.Random(name)
    phase = rng.randrange(step)  # mkrecv divides and rounds down, so that timestamps need not be multiples
    values = [mkrecv_list(of) for of, _, _ in lists]
    n_heaps = int(np.prod([len(of) for of in values]))
    queue = spead2.InprocQueue()
    slots = {}  # payload by slot of the ring buffer, which has a chunk's groups, and byte in it
    for n in range(groups * 5):
        timestamp = 8 * groups * step + n * step + phase
        for i in rng.sample(range(n_heaps), n_heaps):
            heap_items = {items[0]: timestamp, spead2.HEAP_LENGTH_ID: heap_bytes}
            index, left = 0, i
            for of, (_, position, mask) in reversed(list(zip(values, lists, strict=True))):
                left, at = divmod(left, len(of))
                noise = rng.randrange(1 << 20) << 8 & ~mask  # the mask takes it away
                heap_items[items[position]] = of[at] | noise
            index = i
            good = rng.random() < 0.9
            if not good:  # a value that is not in the list
                heap_items[items[lists[0][1]]] = 1 if name == "backend" else 3
                good = name == "packetiser"  # 3 & 1 is in the list there
                index = index if not good else index | 1
            payload = rng.randbytes(heap_bytes)
            if good:
                group = timestamp // step % groups
                slots[timestamp // step // groups, (group * n_heaps + index) * heap_bytes] = payload
            for packet in encode(Heap(heap_items, payload), n * n_heaps + i + 2, 48):
                queue.add_packet(packet)
    queue.stop()
    found = {}
    with speadrx.Receiver(converted.layout, queue, user_data=None) as receiver:
        for chunk in receiver:
            with chunk:
                raw = chunk.data.reshape(groups * n_heaps, -1).view(np.uint8)
                for at in np.flatnonzero(chunk.present):
                    found[chunk.timestamp // step // groups, int(at) * heap_bytes] = raw[at].tobytes()
    assert found == slots


def test_what_else_a_header_says():
    converted = MkrecvHeader(FENGINE, "fengine.cfg").convert({0: 0x1600, 1: 0x4101, 2: 0x4103})
    layout = converted.layout
    assert (layout.time.tick_rate, layout.time.epoch) == (1712e6, 1231235243)
    assert layout.dtype == "int8"
    assert converted.endpoints == ("239.2.1.150:7147", "239.2.1.151:7148")
    assert converted.interface == "192.168.1.20"
    notes = {note.key: note for note in converted.notes}
    assert notes["IDX1_MODULO"].line == FENGINE.splitlines().index("IDX1_MODULO 4194304") + 1
    assert not {"IDX2_MASK", "HEAP_SIZE"} & notes.keys()
    assert [axis.name for axis in layout.axes] == ["feng_id", "frequency"]


def test_side_channel_items_and_ranges_of_addresses():
    converted = MkrecvHeader(PACKETISER).convert({0: 0x1600, 1: 0x3101, 2: 0x3102})
    (side,) = converted.layout.side_items
    assert side.item == 0x3102
    assert converted.layout.dtype == "int12"
    assert converted.endpoints == ("225.0.0.152+3:7148",)
    assert MkrecvHeader(BACKEND).convert({0: 0x1600, 2: 0x1602}).endpoints == tuple(
        f"239.2.1.{n}:60001" for n in (150, 152, 154, 156)
    )


def test_without_groups_a_chunk_has_a_usual_size():
    converted = MkrecvHeader(PACKETISER.replace("NGROUPS_DATA 8\n", "")).convert({0: 0x1600, 1: 0x3101, 2: 0x3102})
    assert converted.layout.time.batches == 1024  # 2 x 6,144 bytes each time
    assert any(note.key == "NGROUPS_DATA" for note in converted.notes)


def test_positions():
    assert MkrecvHeader(FENGINE).positions() == {0: "IDX1_ITEM", 1: "IDX2_ITEM", 2: "IDX3_ITEM"}
    assert MkrecvHeader(PACKETISER).positions() == {0: "IDX1_ITEM", 1: "IDX2_ITEM", 2: "SCI_LIST"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("IDX1_STEP   4096", ""), "IDX1_STEP is missing"),
        (("IDX1_STEP   4096", "IDX1_STEP 4k"), "IDX1_STEP: given 4k, but wanted a whole number"),
        (("IDX2_LIST   0,1", "IDX2_LIST 0:8:0"), "IDX2_LIST: given 0:8:0, but wanted a number, or a range"),
        (("HEAP_NBYTES 6144", ""), "HEAP_SIZE is missing"),
        (("SCI_LIST    2", "SCI_LIST 4"), "at position 4 (line 7, SCI_LIST)"),
        (("225.0.0.152+3", "225.0.0+3"), "MCAST_SOURCES: given 225.0.0+3, but wanted addresses"),
    ],
)
def test_errors_name_the_line(change, message):
    text = PACKETISER.replace(*change)
    assert text != PACKETISER
    with pytest.raises(LayoutError, match=r"^bad\.cfg: ") as caught:
        MkrecvHeader(text, "bad.cfg").convert({0: 0x1600, 1: 0x3101, 2: 0x3102})
    assert message in str(caught.value)
    if "missing" not in message:
        number = next(n for n, line in enumerate(text.splitlines(), 1) if line and line not in PACKETISER.splitlines())
        assert f"line {number}" in str(caught.value)
