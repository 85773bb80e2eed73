"""Receive SPEAD streams into chunks: declarative layouts, placed in Rust, every heap accounted for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._core import LayoutError, __version__
from .chunk import Chunk, ChunkPool
from .fill import fill_missing
from .layout import Axis, BaseLayout, Layout, SideItem, TimeAxis
from .receive import iter_chunks
from .receiver import Receiver
from .report import ReceiverStats, RingStats, SourceStats
from .stream import (
    EVICTION_MODE,
    RECV_SENSOR_TIMEOUT_CHUNKS,
    RECV_SENSOR_TIMEOUT_MIN,
    Epoch,
    LedgerSnapshot,
    add_reader,
    make_stream,
    make_stream_group,
)

if TYPE_CHECKING:
    from . import capture as capture
    from . import collectors, doctor, history, layouts, meerkat, metrics, propose, simulate, stats, survey
    from . import sensors as sensors
    from .stats import StatsCollector

# A star import must not need aiokatcp or dpkt: sensors and capture are left out.
__all__ = [
    "EVICTION_MODE",
    "RECV_SENSOR_TIMEOUT_CHUNKS",
    "RECV_SENSOR_TIMEOUT_MIN",
    "Axis",
    "BaseLayout",
    "Chunk",
    "ChunkPool",
    "Epoch",
    "Layout",
    "LayoutError",
    "LedgerSnapshot",
    "Receiver",
    "ReceiverStats",
    "RingStats",
    "SideItem",
    "SourceStats",
    "StatsCollector",
    "TimeAxis",
    "__version__",
    "add_reader",
    "collectors",
    "doctor",
    "fill_missing",
    "history",
    "iter_chunks",
    "layouts",
    "make_stream",
    "make_stream_group",
    "meerkat",
    "metrics",
    "propose",
    "simulate",
    "stats",
    "survey",
]

# What not every user needs, or needs more than numpy and spead2, is imported when it is first used.
_LAZY_MODULES = (
    "capture",
    "collectors",
    "doctor",
    "history",
    "layouts",
    "meerkat",
    "metrics",
    "propose",
    "sensors",
    "simulate",
    "stats",
    "survey",
)


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name == "StatsCollector":
        from .stats import StatsCollector

        return StatsCollector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
