"""Captures of samples with known levels and tones."""

import numpy as np

from speadrx import Axis, Layout, TimeAxis
from wire import heap

EPOCH, RATE = 1_777_673_400, 1_000_000
#: 2026-05-01, at 22:10.
BEGIN = "2026-05-01T22:10:00"
TIME, SOURCE, PAYLOAD = 0x1600, 0x4101, 0x3300


def layout_of(n=3, batches=4, step=256, **changes):
    fields = {
        "heap_bytes": 320,
        "dtype": "int10",
        "sources": "antenna",
        "time": TimeAxis(item=TIME, step=step, batches=batches, tick_rate=RATE, epoch=EPOCH),
        "axes": (Axis(name="antenna", item=SOURCE, size=n),),
        **changes,
    }
    return Layout(**fields)


def packed(samples, bits=10):
    """Samples packed with the highest bit first, by numpy alone."""
    places = np.arange(bits - 1, -1, -1)
    return np.packbits(((samples.astype(np.int64).reshape(-1, 1) >> places) & 1).astype(np.uint8).reshape(-1)).tobytes()


def packets_of(payloads, step=256):
    """The packets of heaps, by batch and source."""
    for count, ((batch, source), payload) in enumerate(payloads.items()):
        yield from heap(count + 1, [(TIME, int(batch) * step), (SOURCE, int(source)), (PAYLOAD, None)], payload)


def noise(batches, sources, n, sigma, seed=1):
    """Samples of 10 bits, by batch and source; each source is louder than the one before."""
    rng = np.random.default_rng(seed)
    loud = sigma * (1 + np.arange(sources))[np.newaxis, :, np.newaxis]
    return np.clip(np.rint(rng.normal(0.5, 1, (batches, sources, n)) * loud), -512, 511).astype(int)
