"""The names of ``katgpucbf.recv``. Code that was written for it only has to change one import line.

Layouts that are derived from `BaseLayout` keep their numba ``_chunk_place``. Other packages are imported when they are
first needed: numba by `user_data_type`, prometheus_client by `StatsCollector`, and aiokatcp (the extra ``katcp``) by
`make_sensors` and `iter_chunks`. A star import imports all three. Where numba is not installed, it leaves out
`user_data_type`, and where aiokatcp is not, `make_sensors`.

As there, a stream follows a jump forward in time at once, however far it is: see `make_stream`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
import spead2.recv

import speadrx
from speadrx import (
    EVICTION_MODE,
    RECV_SENSOR_TIMEOUT_CHUNKS,
    RECV_SENSOR_TIMEOUT_MIN,
    BaseLayout,
    Chunk,
    add_reader,
)
from speadrx.layout.items import TIMESTAMP_BITS
from speadrx.receive.arguments import check_layout
from speadrx.receive.stream import ChunkRingStream, ChunkStreamRingGroup

if TYPE_CHECKING:
    import aiokatcp
    from prometheus_client import Counter

    from speadrx.metrics.sensors import make_sensors as make_sensors
    from speadrx.metrics.stats import StatsCollector

    user_data_type: Any

# All that katgpucbf.recv defines, but for what needs a library that is not installed.
__all__ = [
    "EVICTION_MODE",
    "RECV_SENSOR_TIMEOUT_CHUNKS",
    "RECV_SENSOR_TIMEOUT_MIN",
    "AnyStream",
    "BaseLayout",
    "Chunk",
    "Counters",
    "LayoutMixin",
    "StatsCollector",
    "add_reader",
    "iter_chunks",
    "logger",
    "make_stream",
    "make_stream_group",
]
if importlib.util.find_spec("numba") is not None:
    __all__ += ["user_data_type"]
if importlib.util.find_spec("aiokatcp") is not None:
    __all__ += ["make_sensors"]

logger = logging.getLogger(__name__)

#: What `add_reader` takes: a stream, or a member of a group.
AnyStream = spead2.recv.ChunkRingStream | spead2.recv.ChunkStreamGroupMember


#: Engines annotate ``_chunk_place`` with ``numba.core.ccallback.CFunc``. Mere ``import numba`` does not import this.
_CFUNC_MODULE = "numba.core.ccallback"
if sys.modules.get("numba") is not None:
    importlib.import_module(_CFUNC_MODULE)


@functools.cache
def _user_data_type() -> Any:
    """Make a numba record with the one field that every callback needs, ``stats_base``."""
    from numba import types

    importlib.import_module(_CFUNC_MODULE)
    return types.Record.make_c_struct([("stats_base", types.uintp)])


def __getattr__(name: str) -> Any:
    if name == "user_data_type":
        return _user_data_type()
    if name == "StatsCollector":
        from speadrx.metrics.stats import StatsCollector

        return StatsCollector
    if name == "make_sensors":
        from speadrx.metrics.sensors import make_sensors

        return make_sensors
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class LayoutMixin:
    """What the layouts of katgpucbf's newer engines derive from, where those of others derive from `BaseLayout`.

    The figures (``heap_bytes``, ``chunk_batches``, ``batch_heaps`` and ``chunk_timestamp_step``) may be fields of a
    dataclass, and the samples in a heap are ``heap_samples``.
    """

    heap_samples: int

    chunk_heaps = BaseLayout.chunk_heaps
    chunk_bytes = BaseLayout.chunk_bytes
    chunk_place = BaseLayout.chunk_place

    @property
    def heap_sample_count(self) -> int:
        """Samples in a heap."""
        return self.heap_samples


# Not by inheritance: fields of a dataclass cannot take the place of abstract properties.
BaseLayout.register(LayoutMixin)


def make_stream(*, layout: BaseLayout, **kwargs: Any) -> ChunkRingStream:
    """Make a stream that places heaps by a layout, as `speadrx.make_stream` does, but follow any jump forward in time.

    The one difference is the default of ``max_jump`` with a declarative layout, such as those of `speadrx.meerkat`: it
    is as large as possible. So no heap is lost after a gap, however long it is, and one heap with a time far in the
    future ends all chunks in the window. A numba callback does the same.

    Parameters
    ----------
    layout
        Says where each heap goes.
    **kwargs
        See `speadrx.make_stream`.
    """
    return speadrx.make_stream(layout=layout, **(_any_jump(layout) | kwargs))


def make_stream_group(*, layout: BaseLayout, **kwargs: Any) -> ChunkStreamRingGroup:
    """Make a group of streams, as `speadrx.make_stream_group` does, but follow any jump forward: see `make_stream`.

    Parameters
    ----------
    layout
        Says where each heap goes.
    **kwargs
        See `speadrx.make_stream_group`.
    """
    return speadrx.make_stream_group(layout=layout, **(_any_jump(layout) | kwargs))


def _any_jump(layout: BaseLayout) -> dict[str, Any]:
    """Return the argument ``max_jump`` for the longest jump that can be told from one back: half the range of times."""
    declared = check_layout(layout)
    if declared is None:
        return {}
    bits = declared.declaration.time.bits or TIMESTAMP_BITS
    return {"max_jump": 2 ** (bits - 1) // layout.chunk_timestamp_step}


class TimeConverter(Protocol):
    """What `iter_chunks` needs to convert timestamps to UNIX time."""

    def adc_to_unix(self, samples: float) -> float:
        """Return the UNIX time of a timestamp, in seconds."""


@dataclasses.dataclass
class Counters:
    """The Prometheus counters that `iter_chunks` keeps.

    If `iter_chunks` is given polarisations, all except `chunks` have a label for the polarisation.
    """

    #: Heaps present.
    heaps: Counter
    #: Chunks with at least one heap.
    chunks: Counter
    #: Samples in the heaps present.
    samples: Counter
    #: Payload bytes of the heaps present.
    bytes: Counter
    #: Heaps missing, including those of whole missing chunks.
    missing_heaps: Counter
    #: The sum of the values that present heaps stored in ``extra``: with a digitiser, the samples that saturated.
    clipped_samples: Counter | None = None

    #: Counters that get labels from `labels`.
    PER_POL_COUNTERS: ClassVar[tuple[str, ...]] = ("heaps", "samples", "bytes", "missing_heaps", "clipped_samples")

    def labels(self, *labelvalues: Any, **labelkwargs: Any) -> Self:
        """Return the same with the counters of one polarisation; see `prometheus_client.Counter`."""
        counters = {name: getattr(self, name) for name in self.PER_POL_COUNTERS}
        labelled = {name: c.labels(*labelvalues, **labelkwargs) for name, c in counters.items() if c is not None}
        return dataclasses.replace(self, **labelled)


async def iter_chunks(
    ringbuffer: AsyncIterable[spead2.recv.Chunk],
    layout: BaseLayout,
    sensors: aiokatcp.SensorSet,
    time_converter: TimeConverter,
    pols: Sequence[tuple[str, str]] | None,
    counters: Counters,
    stats_collector: StatsCollector,
) -> AsyncGenerator[Chunk, None]:
    """Iterate over the chunks of a ring, and keep counters and sensors. These are updated before a chunk is given out.

    It sets the ``timestamp`` of each chunk, and sets ``extra`` to 0 for missing heaps. Chunks without heaps are
    recycled. Missing heaps are counted from the beginning of the first chunk that has a heap. The number of missing
    heaps never falls. `speadrx.iter_chunks` is more exact, and counts by source.

    Parameters
    ----------
    ringbuffer
        The data ring of a stream or group.
    layout
        The layout of that stream or group.
    sensors
        Has at least the sensors that `make_sensors` makes, with a prefix for each of `pols`.
    time_converter
        Converts timestamps to UNIX time.
    pols
        For each polarisation, its label in the counters, and the prefix of its sensors without the dot. Polarisations
        are the first axis of the chunks. None if sensors and counters are for all of a chunk.
    counters
        The counters to keep.
    stats_collector
        A collector to which the stream or group was added. It is updated when the iteration ends.

    Yields
    ------
    Chunk
        Recycle it after use, for example with ``with chunk:``.
    """
    from speadrx.metrics.sensors import update_sensors

    prefixes = [""] if pols is None else [f"{prefix}." for _, prefix in pols]
    counts = _PolarisationCounts(layout, [counters] if pols is None else [counters.labels(label) for label, _ in pols])
    try:
        async for chunk in ringbuffer:
            if not isinstance(chunk, Chunk):
                raise TypeError(f"the data ring has a {type(chunk).__name__}, but iter_chunks needs speadrx.Chunk")
            try:
                found_missing = counts.add(chunk)
                if found_missing is not None:
                    missing = [prefixes[pol] for pol in found_missing]
                    unixtime = time_converter.adc_to_unix(chunk.timestamp)
                    update_sensors(sensors, chunk.timestamp, unixtime, received=prefixes, missing=missing)
            except BaseException:
                chunk.recycle()
                raise
            if found_missing is None:
                chunk.recycle()
            else:
                yield chunk
    finally:
        stats_collector.update()


class _PolarisationCounts:
    """What `iter_chunks` has counted, by polarisation."""

    def __init__(self, layout: BaseLayout, counters: Sequence[Counters]) -> None:
        self._layout = layout
        self._counters = counters
        self._chunk_heaps = layout.chunk_heaps // len(counters)
        self._expected = 0  # of each polarisation
        self._present = [0] * len(counters)
        self._missing = [0] * len(counters)
        self._lost = 0  # of chunks that came; only for the log
        self._last: tuple[int, int] | None = None  # number and epoch of a chunk

    def add(self, chunk: Chunk) -> list[int] | None:
        """Set the timestamp of a chunk, and count it.

        Return the polarisations of which more heaps are missing than before, or None if the chunk is empty.
        """
        sink = chunk.sink()
        stream = sink if isinstance(sink, (ChunkRingStream, ChunkStreamRingGroup)) else None
        if stream is None:
            number, epoch, is_control = chunk.chunk_id, 0, False
            timestamp = number * self._layout.chunk_timestamp_step
        else:
            number, epoch, is_control, timestamp, _ = stream._locate(chunk.chunk_id)
        present = np.asarray(chunk.present)
        heaps = int(np.count_nonzero(present))
        if is_control or not heaps:
            return None
        chunk.timestamp = timestamp
        if self._last is None or (stream is not None and stream._restarts(self._last[1], epoch)):
            n_chunks = 1
        else:
            n_chunks = number - self._last[0]
        self._last = number, epoch
        self._expected += n_chunks * self._chunk_heaps
        extra = None if chunk.extra is None else np.asarray(chunk.extra)
        if extra is not None:
            # Missing heaps have stale values there.
            extra.reshape(present.size, -1)[present.reshape(-1) == 0] = 0
        self._lost += present.size - heaps
        logger.debug("Received chunk: timestamp=%#x (%d/%d, lost %d)", chunk.timestamp, heaps, present.size, self._lost)
        self._counters[0].chunks.inc()
        return [pol for pol in range(len(self._counters)) if self._count(pol, present, extra)]

    def _count(self, pol: int, present: np.ndarray, extra: np.ndarray | None) -> bool:
        """Count the heaps of a polarisation in a chunk. Return whether more are missing than before."""
        counters = self._counters[pol]
        n_pols = len(self._counters)
        heaps = int(np.count_nonzero(present.reshape(n_pols, -1)[pol]))
        counters.heaps.inc(heaps)
        counters.samples.inc(heaps * self._layout.heap_sample_count)
        counters.bytes.inc(heaps * self._layout.heap_bytes)
        if counters.clipped_samples is not None and extra is not None:
            # Chunks of a ChunkPool have a record for each heap, with one side item.
            values = extra if extra.dtype.names is None else extra[extra.dtype.names[0]]
            counters.clipped_samples.inc(int(values.reshape(n_pols, -1)[pol].sum(dtype=np.uint64)))
        self._present[pol] += heaps
        more = self._expected - self._present[pol] - self._missing[pol]
        if more <= 0:
            return False
        counters.missing_heaps.inc(more)
        self._missing[pol] += more
        return True
