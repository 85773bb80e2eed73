"""Receive SPEAD streams into chunks: declarative layouts, placed in Rust, every heap accounted for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import _short_names
from ._core import LayoutError, __version__

if TYPE_CHECKING:
    from . import doctor, metrics, simulate, survey
    from .accounts import history
    from .accounts.ledger import Epoch, LedgerSnapshot
    from .accounts.rejections import ItemValue, Rejection
    from .accounts.report import ReceiverStats, RingStats, SourceStats
    from .layout import Axis, BaseLayout, Field, Layout, Packets, Send, SideItem, TimeAxis, meerkat
    from .layout import presets as layouts
    from .metrics import exporter as collectors
    from .metrics import sensors as sensors
    from .metrics import stats
    from .metrics.stats import StatsCollector
    from .receive.chunk import Chunk, ChunkCopy, ChunkPool
    from .receive.factory import make_stream, make_stream_group
    from .receive.fill import fill_missing
    from .receive.iterate import iter_chunks
    from .receive.read import Reading
    from .receive.readers import add_reader
    from .receive.receiver import Receiver
    from .receive.stream import EVICTION_MODE, RECV_SENSOR_TIMEOUT_CHUNKS, RECV_SENSOR_TIMEOUT_MIN
    from .record import DadaStats, DadaWriter, Recorder, RecorderStats, open_tree
    from .record import open_recording as _open_recording
    from .survey import capture, propose
    from .survey.comparison import compare

    open = _open_recording  # noqa: A001

# A star import must not need aiokatcp, nor hide what is built in: sensors and open are left out.
__all__ = [
    "EVICTION_MODE",
    "RECV_SENSOR_TIMEOUT_CHUNKS",
    "RECV_SENSOR_TIMEOUT_MIN",
    "Axis",
    "BaseLayout",
    "Chunk",
    "ChunkCopy",
    "ChunkPool",
    "DadaStats",
    "DadaWriter",
    "Epoch",
    "Field",
    "ItemValue",
    "Layout",
    "LayoutError",
    "LedgerSnapshot",
    "Packets",
    "Reading",
    "Receiver",
    "ReceiverStats",
    "Recorder",
    "RecorderStats",
    "Rejection",
    "RingStats",
    "Send",
    "SideItem",
    "SourceStats",
    "StatsCollector",
    "TimeAxis",
    "__version__",
    "add_reader",
    "capture",
    "collectors",
    "compare",
    "doctor",
    "fill_missing",
    "history",
    "iter_chunks",
    "layouts",
    "make_stream",
    "make_stream_group",
    "meerkat",
    "metrics",
    "open_tree",
    "propose",
    "simulate",
    "stats",
    "survey",
]

_short_names.install()


#: What is imported when it is first used, by the module that has it.
_NAMES = {
    "accounts.ledger": ("Epoch", "LedgerSnapshot"),
    "accounts.rejections": ("ItemValue", "Rejection"),
    "accounts.report": ("ReceiverStats", "RingStats", "SourceStats"),
    "layout": ("Axis", "BaseLayout", "Field", "Layout", "Packets", "Send", "SideItem", "TimeAxis"),
    "metrics.stats": ("StatsCollector",),
    "receive.chunk": ("Chunk", "ChunkCopy", "ChunkPool"),
    "receive.factory": ("make_stream", "make_stream_group"),
    "receive.fill": ("fill_missing",),
    "receive.iterate": ("iter_chunks",),
    "receive.read": ("Reading",),
    "receive.readers": ("add_reader",),
    "receive.receiver": ("Receiver",),
    "receive.stream": ("EVICTION_MODE", "RECV_SENSOR_TIMEOUT_CHUNKS", "RECV_SENSOR_TIMEOUT_MIN"),
    "record": ("DadaStats", "DadaWriter", "Recorder", "RecorderStats", "open_tree"),
    "survey.comparison": ("compare",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
_PACKAGES = ("accounts", "doctor", "layout", "metrics", "receive", "record", "simulate", "survey")


if not TYPE_CHECKING:  # which would take any name for one of ours
    # To import the package costs almost nothing: what a program does not use, it does not wait for.
    def __getattr__(name: str) -> Any:
        if name in _short_names.HOMES or name in _PACKAGES:
            return importlib.import_module(f".{name}", __name__)
        if name == "open":
            value = importlib.import_module(".record", __name__).open_recording
        elif name in _HOMES:
            value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value  # found there from now on
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "open"})
