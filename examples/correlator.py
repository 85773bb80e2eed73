"""A correlator of two antennas, from channelised voltages: live, from a capture, or from a recording.

    python correlator.py night.zarr visibilities.npz
    python correlator.py 239.1.2.3:7148 visibilities.npz voltages.toml   (endpoints, or the path of a capture)

The layout is like `voltages.toml`: it has an axis `antenna`, and complex numbers by channel, spectrum and polarisation.
Where one of both antennas is missing, neither counts: each visibility is the mean over the `count` samples that both
have. It is NaN if there are none. Ctrl-C ends it.
"""

import itertools
import os
import signal
import sys
from collections.abc import Iterator

import numpy as np
import xarray

import speadrx

ANTENNAS = 0, 1
BATCHES = 32  # of an integration: the steps of the time axis


def integrations(source: str, layout: str | None) -> Iterator[xarray.Dataset]:
    """Yield what is to be integrated, a Dataset each, in which time goes on without a break."""
    if layout is None or os.path.isdir(source):
        for part in speadrx.open_tree(source).leaves:
            for begin in range(0, part.sizes["time"], BATCHES):
                yield part.dataset.isel(time=slice(begin, begin + BATCHES)).load()
        return
    receiver = speadrx.Receiver(speadrx.layouts.load(layout), source)
    signal.signal(signal.SIGINT, lambda *_: receiver.drain())  # Ctrl-C: what has come is used, and then it ends
    with receiver:
        chunks = -(-BATCHES // receiver.layout.chunk_batches)
        while (block := receiver.read(chunks=chunks).to_xarray()).sizes["time"]:
            edges = [0, *block.attrs["restarts"], block.sizes["time"]]  # where time began again
            yield from (block.isel(time=slice(*pair)) for pair in itertools.pairwise(edges) if pair[0] < pair[1])


def correlate(block: xarray.Dataset, a: int, b: int) -> tuple[xarray.DataArray, xarray.DataArray]:
    """Return the visibility of a baseline, by channel and polarisations, and of how many samples it is the mean."""
    both = block.present.sel(antenna=a, drop=True) & block.present.sel(antenna=b, drop=True)
    first, second = (block.data.sel(antenna=one, drop=True).where(both, 0).astype(complex) for one in (a, b))
    second = second.rename(pol="pol_b").conj()
    count = both.sum("time") * block.sizes["spectrum"]
    return xarray.dot(first, second, dim=["time", "spectrum"]) / count.where(count > 0), count


def main(source: str, path: str, layout: str | None = None) -> None:
    """Write the visibilities of all integrations to a file."""
    times, visibilities, counts = [], [], []
    for block in integrations(source, layout):
        visibility, count = correlate(block, *ANTENNAS)
        times.append(block.time.values[0])
        print(f"{times[-1]}: {count.values} of {block.sizes['time'] * block.sizes['spectrum']} samples", flush=True)
        visibilities.append(visibility.values)
        counts.append(count.values)
    np.savez(path, time=times, visibility=visibilities, count=counts)


if __name__ == "__main__":
    main(*sys.argv[1:])
