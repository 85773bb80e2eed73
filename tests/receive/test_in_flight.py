"""Heaps in flight: placed, and not given out yet. With all other names, they are all that was placed."""

import dataclasses

import pytest
import spead2
from prometheus_client import CollectorRegistry
from speadrx.collectors import Exporter

from loopback import wait_for
from scraped import ANTENNAS, BATCHES, CHUNK, LAYOUT, STEP, Metrics, feed
from speadrx import Receiver, metrics


def identity(stats):
    return stats.placed == stats.present + stats.in_flight + stats.duplicates + stats.too_old + stats.unfinished


@pytest.mark.parametrize("threads", [1, 2])
def test_every_placed_heap_has_one_name(threads):
    """Chunks are filled, wait in the ring, and come out; some heaps come twice, and some too late."""
    queues = [spead2.InprocQueue() for _ in range(threads)]
    with Receiver(LAYOUT, queues, threads=threads, window=2, chunks=20) as receiver:
        exporter = Exporter(registry=CollectorRegistry())
        exporter.add(receiver.stream)

        def in_flight(sent, by_source):
            wait_for(lambda: receiver.stats().placed == sent)
            stats = receiver.stats()
            assert identity(stats)
            assert [source.in_flight for source in stats.sources] == by_source
            assert stats.in_flight == sum(by_source)
            for source, heaps in enumerate(by_source):
                assert Metrics(exporter.registry)(metrics.HEAPS_IN_FLIGHT, source=str(source)) == heaps

        assert receiver.stats().in_flight == 0
        sent = feed(queues[0], range(0, 8 * CHUNK, STEP))
        in_flight(sent, [8 * BATCHES] * ANTENNAS)  # in the ring, and in the window
        sent += feed(queues[0], [7 * CHUNK, 7 * CHUNK + STEP], antennas=[1])
        in_flight(sent, [8 * BATCHES] * ANTENNAS)  # these came twice
        chunks = iter(receiver)
        next(chunks).recycle()
        in_flight(sent, [7 * BATCHES] * ANTENNAS)
        sent += feed(queues[0], [4 * CHUNK], antennas=[0])  # too late
        in_flight(sent, [7 * BATCHES] * ANTENNAS)
        receiver.drain()
        for chunk in chunks:
            chunk.recycle()
        in_flight(sent, [0] * ANTENNAS)
        stats = receiver.stats()
        assert (stats.present, stats.duplicates, stats.too_old) == (8 * BATCHES * ANTENNAS, 2, 1)
        assert dataclasses.asdict(stats)["in_flight"] == 0
        exporter.close()


def test_stop_leaves_nothing_in_flight():
    """What it throws away is unfinished, once what waited in the ring has come out."""
    queue = spead2.InprocQueue()
    with Receiver(LAYOUT, queue, window=2) as receiver:
        sent = feed(queue, range(0, 4 * CHUNK, STEP))
        wait_for(lambda: receiver.stats().placed == sent and receiver.stats().data_ring.chunks == 2)
        receiver.stop()
        assert (receiver.stats().in_flight, receiver.stats().unfinished) == (sent, 0)
        for chunk in receiver:
            chunk.recycle()
        stats = receiver.stats()
        assert (stats.in_flight, stats.unfinished) == (0, 2 * BATCHES * ANTENNAS)
        assert identity(stats)
