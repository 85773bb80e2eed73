"""Floods: of packets while senders are silent, when the silence of heaps that are placed counts; and of wrong times."""

import contextlib
import itertools
import random
import struct
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
import spead2

from addresses import own_port
from handmade import SMALL, STOP_PACKET, encode, small_heap
from loopback import send, wait_for
from speadrx import Axis, Layout, Receiver, TimeAxis
from speadrx.receive.silence import Silence

pytestmark = pytest.mark.fault(9)

#: Sends a packet again and again, to several ports in turn.
FLOOD = """
import socket, sys
sockets = []
for port in sys.argv[2:]:
    sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sockets[-1].connect(("127.0.0.1", int(port)))
packet = bytes.fromhex(sys.argv[1])
while True:
    for sock in sockets:
        sock.send(packet)
"""

PACKETS = {
    "no SPEAD": b"garbage" * 40,
    "small": b"?",
    "rejected": encode(small_heap({0x10: 64, 0x20: 9 << 1}), 1, 48)[0],
    "stop": STOP_PACKET,
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("packet", PACKETS)
def test_flushed_in_a_flood(packet, threads):
    ports = [own_port() for _ in range(3)]
    with contextlib.ExitStack() as stack:
        endpoints = [("127.0.0.1", port) for port in ports]
        receiver = Receiver(SMALL, endpoints, threads=threads, window=4, flush_after=0.3)
        stack.enter_context(receiver)
        taker = threading.Thread(target=lambda: [chunk.recycle() for chunk in receiver])
        taker.start()
        stack.callback(taker.join)
        stack.callback(receiver.stop)
        command = [sys.executable, "-c", FLOOD, PACKETS[packet].hex(), *map(str, ports)]
        flood = stack.enter_context(subprocess.Popen(command))
        stack.callback(flood.kill)
        wait_for(lambda: all(stream.stats["batches"] > 100 for stream in receiver.stream._streams()))
        # All of it fits into the window, so nothing comes out without a flush. The kernel may drop some in the flood.
        send(("127.0.0.1", ports[0]), [encode(small_heap({0x10: i * SMALL.time.step}), i, 48)[0] for i in range(16)])
        wait_for(lambda: 0 < receiver.stats().placed == receiver.stats().present)
        assert flood.poll() is None, "the flood has ended"


SOURCES, WINDOW, START, COUNT = 4096, 4, 1000, 6
MANY = Layout(
    heap_bytes=8,
    time=TimeAxis(item=0x1600, step=16, batches=1),
    axes=(Axis(name="source", item=0x4101, size=SOURCES),),
    sources="source",
)
#: Source and batch of a wrong heap beside a good one. The last source sends nothing good.
WRONG = {
    "garbage": lambda source, batch, window, rng: (source, rng.randrange(2**43)),
    "elsewhere": lambda source, batch, window, rng: (source % (SOURCES // 2 - 1), batch + 10**6),
    "ahead": lambda source, batch, window, rng: (SOURCES - 1, batch + rng.randrange(1, 2 * window)),
    "late": lambda source, batch, window, rng: (source, batch - 3 * window // 2),
}


@pytest.mark.parametrize(("wrong", "threads"), list(zip(WRONG, [1, 4, 1, 4], strict=True)))
def test_good_heaps_in_a_flood_of_wrong_times(wrong, threads):
    """As many heaps have wrong times as right ones, and not one of the latter is lost."""
    # One of several threads may read all that it has before another begins: so far right sources lie apart then.
    window = WINDOW if threads == 1 else 2 * COUNT
    rng = random.Random(7)
    queues = [spead2.InprocQueue() for _ in range(threads)]
    numbers = itertools.count(1)

    def add(source, batch, value):
        number = next(numbers)
        items = {1: number, 2: 8, 3: 0, 4: 8, 0x1600: batch * 16, 0x4101: source}
        pointers = [1 << 63 | item << 48 | value for item, value in items.items()]
        packet = struct.pack(">8B7QQ", 0x53, 4, 2, 6, 0, 0, 0, 7, *pointers, 0x3300 << 48, value)
        queues[source % threads].add_packet(packet)
        return number

    for batch in range(START, START + COUNT):
        for source in range(SOURCES - 1):
            # The first batch is all right, so that everybody is known.
            if batch > START:
                add(*WRONG[wrong](source, batch, window, rng), 2**63)
            sent = add(source, batch, batch * SOURCES + source)
    received = {}
    with Receiver(MANY, queues, threads=threads, window=window) as receiver:
        for queue in queues:
            queue.stop()
        for chunk in receiver:
            with chunk:
                values = np.asarray(chunk.data).view(">u8").ravel()
                received[chunk.timestamp // 16] = np.where(np.ravel(chunk.present), values, 0)
        stats = receiver.stats()
    for batch in range(START, START + COUNT):
        expected = batch * SOURCES + np.arange(SOURCES - 1)
        np.testing.assert_array_equal(received[batch][:-1], expected)
    assert sum(stats.rejected.values()) > (SOURCES if wrong != "late" else -1)
    assert stats.placed + sum(stats.rejected.values()) == sent


class Sockets:
    """Stands in for the sockets of a stream, which has batches to read still."""

    unread = 0

    def unread_batches(self):
        return self.unread


@pytest.fixture
def owner():
    """Stands in for a stream."""
    ring = types.SimpleNamespace(full=lambda: False, empty=lambda: False)
    stream = types.SimpleNamespace(stats={"batches": 0})
    return types.SimpleNamespace(
        data_ringbuffer=ring, free_ringbuffer=ring, _socket_sets=[Sockets()], _streams=lambda: [stream], stream=stream
    )


def looks(owner, start):
    silence = Silence()
    silence.look(owner, 1, start)
    return lambda now, placed=1: silence.look(owner, placed, start + now)


def test_silence_of_what_is_read(owner):
    look = looks(owner, 1000.0)
    assert look(1) == 1
    assert look(2) == 2
    assert look(3, placed=2) == 0
    assert look(5, placed=2) == 2


def test_no_silence_while_packets_wait(owner):
    """They may be heaps: a stream that does not get to read them must not be flushed."""
    look = looks(owner, 1000.0)
    assert look(1) == 1
    owner._socket_sets[0].unread = 3
    assert [look(2), look(3), look(10)] == [1, 1, 1]
    owner.stream.stats["batches"] = 2
    assert look(11) == 1, "not all that came by the second look is read"
    owner.stream.stats["batches"] = 3
    assert look(12) == 2
    assert look(13) == 2
    owner.stream.stats["batches"] = 6
    assert look(14) == 12
    owner._socket_sets[0].unread = 0
    assert look(15) == 15


def test_no_silence_while_the_consumer_is_waited_for(owner):
    look = looks(owner, 1000.0)
    owner.data_ringbuffer = types.SimpleNamespace(full=lambda: True)
    assert look(5) == 0
    owner.data_ringbuffer = types.SimpleNamespace(full=lambda: False)
    assert look(6) == 1
