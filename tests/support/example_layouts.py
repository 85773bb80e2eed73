"""A layout to spoil in every way, and one of each of MeerKAT's."""

from __future__ import annotations

from typing import Any

from speadrx import Axis, SideItem, TimeAxis, meerkat

TIME = TimeAxis(item=0x1600, step=16, batches=4)
ANTENNA = Axis(name="antenna", item=0x4101, size=3)
POL = Axis(name="pol", from_user_data="pol", size=2)
STATUS = SideItem(name="status", item=0x3102)
#: Shape (pol 2, time 4, antenna 3), dense strides 96, 24, 8.
BASE: dict[str, Any] = {
    "heap_bytes": 8,
    "time": TIME,
    "axes": (ANTENNA, POL),
    "order": ("pol", "time", "antenna"),
    "sources": "antenna",
    "side_items": (STATUS,),
}
MEERKAT: list[Any] = [
    meerkat.DigitiserLayout(sample_bits=10, heap_samples=4096, chunk_samples=2**20, mask_timestamp=True),
    meerkat.AntennaChannelisedVoltageLayout(
        n_ants=80,
        n_channels_per_substream=4,
        n_spectra_per_heap=256,
        heap_timestamp_step=2**21,
        sample_bits=8,
        heaps_per_fengine_per_chunk=8,
    ),
    meerkat.TiedArrayChannelisedVoltageLayout(
        sample_bits=8,
        n_channels=4096,
        n_channels_per_substream=64,
        n_spectra_per_heap=256,
        n_batches_per_chunk=4,
        heap_timestamp_step=2**21,
    ),
]
