"""A minimal receiver: what has come, chunk by chunk, and at the end what was lost of each source.

python receiver.py array.toml 239.1.2.3+7:7148   (endpoints, or the path of a capture)
"""

import signal
import sys

from speadrx import Receiver, layouts


def main(layout: str, source: str) -> None:
    """Receive until Ctrl-C, or to the end of a capture."""
    receiver = Receiver(layouts.load(layout), source)
    # Ctrl-C: the loop gets what has come so far, and then ends.
    signal.signal(signal.SIGINT, lambda *_: receiver.drain())
    with receiver:
        print("Receiving. Ctrl-C ends it.", flush=True)
        for chunk in receiver:
            with chunk:  # at the end of the block it goes back to be filled again: keep only copies
                when = chunk.timestamp if chunk.time is None else chunk.time
                power = chunk.samples()[chunk.present].astype(float).var()  # of the heaps that have come
                print(f"{when}: {chunk.present.mean():.2%} present, variance {power:.6g}", flush=True)
    for one in receiver.stats().sources:
        print(f"{one.label}: {one.present} heaps present, {one.missing} missing")


if __name__ == "__main__":
    main(*sys.argv[1:])
