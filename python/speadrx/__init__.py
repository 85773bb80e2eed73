"""Receive SPEAD streams into chunks: declarative layouts, placed in Rust, every heap accounted for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import _short_names
from ._core import LayoutError, __version__
from .accounts.ledger import Epoch, LedgerSnapshot
from .accounts.rejections import ItemValue, Rejection
from .accounts.report import ReceiverStats, RingStats, SourceStats
from .layout import Axis, BaseLayout, Field, Layout, Packets, Send, SideItem, TimeAxis
from .receive.chunk import Chunk, ChunkCopy, ChunkPool
from .receive.factory import make_stream, make_stream_group
from .receive.fill import fill_missing
from .receive.iterate import iter_chunks
from .receive.read import Reading
from .receive.readers import add_reader
from .receive.receiver import Receiver
from .receive.stream import EVICTION_MODE, RECV_SENSOR_TIMEOUT_CHUNKS, RECV_SENSOR_TIMEOUT_MIN

if TYPE_CHECKING:
    from . import doctor, metrics, simulate, survey
    from .accounts import history
    from .layout import meerkat
    from .layout import presets as layouts
    from .metrics import exporter as collectors
    from .metrics import sensors as sensors
    from .metrics import stats
    from .metrics.stats import StatsCollector
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


# What not every user needs, or needs more than numpy and spead2, is imported when it is first used.
def __getattr__(name: str) -> Any:
    if name in _short_names.HOMES or name in ("doctor", "metrics", "simulate", "survey"):
        return importlib.import_module(f".{name}", __name__)
    if name in ("DadaStats", "DadaWriter", "Recorder", "RecorderStats", "open", "open_tree"):
        record = importlib.import_module(".record", __name__)
        return getattr(record, "open_recording" if name == "open" else name)
    if name == "StatsCollector":
        return importlib.import_module(".metrics.stats", __name__).StatsCollector
    if name == "compare":
        return importlib.import_module(".survey.comparison", __name__).compare
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "open"})
