"""A layout, heaps of it, and the samples that a registry has of its streams."""

from __future__ import annotations

from typing import Any

import spead2
import spead2.recv
from prometheus_client import CollectorRegistry

from handmade import Heap, encode
from speadrx import Axis, Layout, TimeAxis

TIME_ID, ANTENNA_ID = 0x1600, 0x4101
STEP, BATCHES, ANTENNAS, HEAP_BYTES = 16, 4, 2, 8
CHUNK = STEP * BATCHES
LAYOUT = Layout(
    heap_bytes=HEAP_BYTES,
    time=TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES),
    axes=(Axis(name="antenna", item=ANTENNA_ID, size=ANTENNAS),),
    sources="antenna",
)


class Metrics:
    """The samples of a registry, by name and labels, without those of when counters were created."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.values = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for metric in registry.collect()
            for sample in metric.samples
            if not sample.name.endswith("_created")
        }

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.values.get((name, *sorted(labels.items())))

    def total(self, name: str, **labels: str) -> float:
        """The sum over all labels that are not given."""
        wanted = set(labels.items())
        return sum(value for key, value in self.values.items() if key[0] == name and wanted <= set(key[1:]))

    def counters(self) -> dict[tuple[Any, ...], float]:
        return {key: value for key, value in self.values.items() if key[0].endswith(("_total", "_bucket"))}


def feed(queue: spead2.InprocQueue, timestamps: Any, antennas: Any = range(ANTENNAS)) -> int:
    """Send single-packet heaps, and return how many."""
    heaps = [(timestamp, antenna) for timestamp in timestamps for antenna in antennas]
    for i, (timestamp, antenna) in enumerate(heaps, 1):
        items = {TIME_ID: timestamp, spead2.HEAP_LENGTH_ID: HEAP_BYTES, ANTENNA_ID: antenna}
        for packet in encode(Heap(items, bytes(HEAP_BYTES)), i, 48):
            queue.add_packet(packet)
    return len(heaps)
