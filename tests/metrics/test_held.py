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
    stream, other, counts = Stream(), Stream(), [5]
    held.add(stream, counts)
    held.add(other, [100])
    del stream, other
    gc.collect()
    assert held.read() == (0, (counts, [100]))
    counts[0] = 7
    callback, callback_of_other = CALLBACKS
    CALLBACKS.clear()
    callback_of_other(None)
    assert held.read() == (100, ([7],))
    callback(None)
    assert held.read() == (107, ())
    counts[0] = 9  # nobody may count any more
    assert held.read() == (107, ())


def test_stream_that_is_closed_but_not_gone_still_counts():
    """It may be added again, and must not count twice then."""
    held = HeldStreams(0, lambda total, remains: total + len(remains))
    stream, counts = Stream(), [5]
    held.add(stream, counts)
    CALLBACKS.pop()(stream)
    assert held.read() == (0, (counts,))
    held.add(stream, [0])
    assert held.read() == (0, (counts,))


def test_what_is_read_is_made_once_between_changes():
    held = HeldStreams(0, lambda total, remains: total + len(remains))
    streams = [Stream(), Stream()]
    held.add(streams[0], "a")
    first = held.read()[1]
    assert held.read()[1] is first
    held.add(streams[1], "b")
    second = held.read()[1]
    assert second == ("a", "b")
    CALLBACKS.pop(0)(streams[0])
    assert held.read()[1] is second
    del streams[0]
    assert held.read() == (1, ("b",))
    CALLBACKS.pop()(None)


def test_streams_that_are_closed_go_one_by_one():
    held = HeldStreams(0, lambda total, remains: total + sum(remains))
    streams = [Stream() for _ in range(3)]
    for i, stream in enumerate(streams):
        held.add(stream, 10**i)
    del stream
    while CALLBACKS:
        CALLBACKS.pop()(None)
    assert held.read() == (0, (1, 10, 100))
    for total, remains in ((10, (1, 100)), (110, (1,)), (111, ())):
        del streams[min(1, len(streams) - 1)]
        assert held.read() == (total, remains)


def test_stream_of_others_counts_until_it_is_gone():
    """It has no finaliser of ours, so nobody says that its counts are final."""

    class Other:
        pass

    held = HeldStreams(0, lambda total, remains: total + sum(remains))
    streams = [Other(), Other()]
    for i, stream in enumerate(streams):
        held.add(stream, 10**i)
    del stream
    assert held.read() == (0, (1, 10))
    streams.pop()
    assert held.read() == (10, (1,))
    streams.clear()
    assert held.read() == (11, ())
