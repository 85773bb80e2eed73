"""A spectrometer: mean power spectra of each antenna, from a stream of real samples such as that of digitisers.

    python spectrometer.py array.toml 239.1.2.3+7:7148 spectra.npz   (endpoints, or the path of a capture)

Only heaps that have come are used. `weight` is the number of spectra that each mean is made of, and `full` what it
would be without loss: a whole chunk that never came counts as lost, too. Ctrl-C ends it.
"""

import signal
import sys
from collections.abc import Iterator

import numpy as np

from speadrx import Receiver, layouts

CHANNELS = 1024
CHUNKS = 16  # of an integration


def integrate(receiver: Receiver, channels: int, chunks: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield each integration: the timestamp at which it begins, the sums of power, and the weights, by antenna."""
    ticks = chunks * receiver.layout.chunk_timestamp_step
    window = np.hanning(2 * channels)
    antennas = receiver.layout.present_shape[1]
    current = None
    for chunk in receiver:
        with chunk:
            time = chunk.timestamp // ticks * ticks
            # There is no gap to speak of if time has begun again, as when senders are restarted.
            if current is None or time != current[0] or chunk.gap is None:
                if current is not None:
                    yield current
                current = time, np.zeros((antennas, channels + 1)), np.zeros(antennas, int)
            _, power, weight = current
            samples = chunk.samples()  # by time, antenna and sample
            for antenna in range(antennas):
                heaps = samples[chunk.present[:, antenna], antenna]
                spectra = np.fft.rfft(window * heaps.reshape(-1, 2 * channels))
                power[antenna] += (np.abs(spectra) ** 2).sum(axis=0)
                weight[antenna] += len(spectra)
    if current is not None:
        yield current


def main(layout: str, source: str, path: str, channels: int = CHANNELS, chunks: int = CHUNKS) -> None:
    """Write the spectra of all integrations to a file."""
    receiver = Receiver(layouts.load(layout), source)
    full = chunks * receiver.layout.chunk_batches * receiver.layout.heap_sample_count // (2 * channels)
    signal.signal(signal.SIGINT, lambda *_: receiver.drain())  # Ctrl-C: the loop gets what has come, and then ends
    timestamps, spectra, weights = [], [], []
    with receiver:
        for timestamp, power, weight in integrate(receiver, channels, chunks):
            print(f"{timestamp}: weights {weight} of {full}", flush=True)
            timestamps.append(timestamp)
            spectra.append(
                np.divide(power, weight[:, None], where=weight[:, None] > 0, out=np.full_like(power, np.nan))
            )
            weights.append(weight)
    np.savez(path, timestamp=timestamps, spectrum=spectra, weight=weights, full=full)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
