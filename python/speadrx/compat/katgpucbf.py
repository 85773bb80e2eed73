"""The names of ``katgpucbf.recv``, for code written for it: one import line to change.

Layouts derived from `BaseLayout` keep their numba ``_chunk_place``. `user_data_type` imports numba and
`StatsCollector` prometheus_client, each at first use only.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import spead2.recv

from speadrx import (
    EVICTION_MODE,
    RECV_SENSOR_TIMEOUT_CHUNKS,
    RECV_SENSOR_TIMEOUT_MIN,
    BaseLayout,
    Chunk,
    add_reader,
    make_stream,
    make_stream_group,
)

if TYPE_CHECKING:
    from speadrx.stats import StatsCollector

    user_data_type: Any

# A star import must not need numba: user_data_type is left out.
__all__ = [
    "EVICTION_MODE",
    "RECV_SENSOR_TIMEOUT_CHUNKS",
    "RECV_SENSOR_TIMEOUT_MIN",
    "AnyStream",
    "BaseLayout",
    "Chunk",
    "StatsCollector",
    "add_reader",
    "make_stream",
    "make_stream_group",
]

#: What `add_reader` connects to a transport: a stream, or a member of a group.
AnyStream = spead2.recv.ChunkRingStream | spead2.recv.ChunkStreamGroupMember


@functools.cache
def _user_data_type() -> Any:
    """A numba record with the one field that every callback needs, ``stats_base``."""
    from numba import types

    return types.Record.make_c_struct([("stats_base", types.uintp)])


def __getattr__(name: str) -> Any:
    if name == "user_data_type":
        return _user_data_type()
    if name == "StatsCollector":
        from speadrx.stats import StatsCollector

        return StatsCollector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
