"""Streams that are held weakly, and what remains of them."""

import gc

from speadrx.metrics.held import HeldStreams

CALLBACKS = []


class Stream:
    """Tells whoever asks when its counts are final, and lives on in that callback only."""

    def __init__(self):
        self.callbacks = CALLBACKS

    def _on_close(self, callback):
        self.callbacks.append(callback)


def test_stream_that_is_gone_but_not_closed_still_counts():
    """The garbage collector breaks weak references while network threads still run, and count."""
    held = HeldStreams(0, lambda total, remains: total + sum(counts[0] for counts in remains))
    stream, counts = Stream(), [5]
    held.add(stream, counts)
    del stream
    gc.collect()
    assert held.read() == (0, [counts])
    counts[0] = 7
    assert held.read() == (0, [[7]])
    (callback,) = CALLBACKS
    CALLBACKS.clear()
    callback(None)
    assert held.read() == (7, [])
    counts[0] = 9  # nobody may count any more
    assert held.read() == (7, [])


def test_stream_that_is_closed_but_not_gone_still_counts():
    """It may be added again, and must not count twice then."""
    held = HeldStreams(0, lambda total, remains: total + len(remains))
    stream, counts = Stream(), [5]
    held.add(stream, counts)
    CALLBACKS.pop()(stream)
    assert held.read() == (0, [counts])
    held.add(stream, [0])
    assert held.read() == (0, [counts])
