"""Every layout that comes with speadrx receives what its instrument's own source sends, from a file and over UDP.

Neither the layout nor the simulator has a part in what is sent: both could be wrong in the same way.
"""

from __future__ import annotations

import pathlib
import socket
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from addresses import own_port
from instruments import INSTRUMENTS, Stream, by_spead2, by_struct
from loopback import wait_for
from speadrx import Layout, Receiver, ReceiverStats, layouts
from speadrx.simulate import PcapSink

Packets = Iterator[bytes]
#: Of each chunk its time, data, present and extra.
Chunks = list[tuple[int, np.ndarray, np.ndarray, np.ndarray | None]]


def read(receiver: Receiver) -> Chunks:
    got: Chunks = []
    for chunk in receiver:
        with chunk:
            extra = None if chunk.extra is None else chunk.extra.copy()
            got.append((chunk.timestamp, chunk.data.copy(), chunk.present.copy(), extra))
    return got


def from_file(layout: Layout, packets: Packets, stream: Stream, path: pathlib.Path) -> tuple[Chunks, ReceiverStats]:
    with PcapSink(path / "heaps.pcap") as sink:
        for packet in packets:
            sink.send(0, packet)
    with Receiver(layout, path / "heaps.pcap", user_data=stream.user_data or None) as receiver:
        return read(receiver), receiver.stats()


def taken(receiver: Receiver) -> int:
    """Packets that were taken from the sockets, used or not."""
    feeds = [feed for sockets in receiver.stream._socket_sets for feed in sockets.feeds]
    return sum(feed.taken for feed in feeds) if feeds else receiver.stats().packets


def over_udp(layout: Layout, packets: Packets, stream: Stream, path: pathlib.Path) -> tuple[Chunks, ReceiverStats]:
    port = own_port()
    # Nobody takes chunks meanwhile: the window has room for all.
    with (
        Receiver(layout, ("127.0.0.1", port), user_data=stream.user_data or None) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        receiver.start()
        for n, packet in enumerate(packets, 1):
            sock.sendto(packet, ("127.0.0.1", port))
            if n % 4 == 0:  # no socket buffer is too small for so few
                wait_for(lambda n=n: taken(receiver) >= n)
        wait_for(lambda: taken(receiver) >= n and receiver.stats().placed == len(stream.heaps))
        receiver.drain()
        return read(receiver), receiver.stats()


def check(layout: Layout, stream: Stream, chunks: Chunks, stats: ReceiverStats) -> None:
    """Every heap is present, once, at its time and place, with its bytes."""
    assert stats.present == len(stream.heaps)
    assert sum(int(present.sum()) for _, _, present, _ in chunks) == len(stream.heaps)
    for heap in stream.heaps:
        found = [c for c in chunks if 0 <= heap.time - c[0] < layout.chunk_timestamp_step]
        assert len(found) == 1, hex(heap.time)
        time, data, present, extra = found[0]
        batch, remainder = divmod(heap.time - time, layout.time.step)
        assert remainder == 0
        index = tuple(batch if name == layout.time.name else heap.where[name] for name in layout.axis_names)
        assert present[index] == 1
        held = data.reshape(-1).view(np.uint8)
        slot = int(np.ravel_multi_index(index, layout.present_shape))
        received = held[slot * layout.heap_bytes : (slot + 1) * layout.heap_bytes].tobytes()
        assert received == heap.payload[: stream.data_bytes]
        for name, value in stream.kept.items():
            assert extra is not None
            assert extra[name][index] == value(heap)


def test_each_layout_has_an_instrument() -> None:
    assert sorted(INSTRUMENTS) == list(layouts.names())


def senders() -> Iterator[tuple[str, Callable[[Stream], Packets]]]:
    """Who sends what each instrument sends; spead2 cannot where items or bytes are not as it has them."""
    for name, make in INSTRUMENTS.items():
        yield name, by_struct
        stream = make(np.random.default_rng(0))
        if not (stream.omit or stream.extra_length):
            yield name, by_spead2


@pytest.mark.parametrize("way", [from_file, over_udp])
@pytest.mark.parametrize(("name", "maker"), list(senders()))
def test_received(
    name: str,
    maker: Callable[[Stream], Packets],
    way: Callable[[Layout, Packets, Stream, pathlib.Path], tuple[Chunks, ReceiverStats]],
    rng: np.random.Generator,
    tmp_path: pathlib.Path,
) -> None:
    stream = INSTRUMENTS[name](rng)
    layout = layouts.load(name, stream.changes)
    chunks, stats = way(layout, maker(stream), stream, tmp_path)
    check(layout, stream, chunks, stats)
    # Of what came beside the data, only the descriptors are named: from a file, as packets that are not used.
    if maker is by_spead2 and stream.spead2_heaps is not None:  # there with the data of each heap
        assert not any(stats.rejected.values())
        assert stats.unused.keys() <= {"other_bytes"}
    else:
        assert sum(stats.rejected.values()) + sum(stats.unused.values()) == (maker is by_spead2)
