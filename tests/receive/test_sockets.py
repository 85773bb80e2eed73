"""Sockets of readers: what the kernel dropped on them, how much they hold, and that none stays open."""

import asyncio
import ctypes
import logging
import os
import pathlib
import socket
import struct
import subprocess
import sys

import pytest
import spead2
import spead2.recv

import speadrx
from addresses import GROUP_PREFIX
from handmade import SMALL, STOP_PACKET, encode, small_heap
from loopback import check_receives, is_free, own_sockets, packets, received, send, wait_for
from speadrx import ChunkPool, add_reader
from speadrx.receive.sockets import SocketSet


class TestKernelDrops:
    """Packets that the kernel drops because nobody takes them from the socket in time."""

    def overrun(self, source, streams, endpoints, counts, interface=None):
        """Send more than the sockets hold while the network threads wait for a free chunk; then go on."""
        for endpoint, count in zip(endpoints, counts, strict=True):
            send(endpoint, packets(1), interface)
            send(endpoint, packets(count - 1, start=1), interface)
        # Sending on this machine puts packets into the socket, or drops them, before it returns.
        drops = [sets.drops() for sets in source._socket_sets]
        ChunkPool(source, 8)
        for stream, count, dropped in zip(streams, counts, drops, strict=True):
            assert 0 < dropped < count
            wait_for(lambda stream=stream, wanted=count - dropped: received(stream) == wanted)
        return drops

    @pytest.mark.parametrize("explicit_start", [False, True])
    def test_exact(self, make, udp_port, explicit_start):
        stream = make(chunks=0, explicit_start=explicit_start)
        add_reader(stream, src=[("127.0.0.1", udp_port)], buffer=1)
        stream.start()
        (drops,) = self.overrun(stream, [stream], [("127.0.0.1", udp_port)], [300])
        assert stream.kernel_drops() == drops
        assert stream.ledger.snapshot().seen == 300 - drops
        stream.stop()
        assert stream.kernel_drops() == drops

    @pytest.mark.parametrize("explicit_start", [False, True])
    def test_several_sockets_on_a_port(self, make, udp_port, explicit_start):
        streams = [make(chunks=0, explicit_start=explicit_start) for _ in range(2)]
        endpoints = [(f"{GROUP_PREFIX}8", udp_port), (f"{GROUP_PREFIX}9", udp_port)]
        for stream, endpoint in zip(streams, endpoints, strict=True):
            add_reader(stream, src=[endpoint], interface="127.0.0.1", buffer=1)
            stream.start()
        for stream, endpoint, count in zip(streams, endpoints, (300, 150), strict=True):
            (drops,) = self.overrun(stream, [stream], [endpoint], [count], "127.0.0.1")
            assert stream.kernel_drops() == drops

    @pytest.mark.parametrize("explicit_start", [False, True])
    def test_group(self, make, ports, explicit_start):
        group = make(chunks=0, affinity=[-1, -1], explicit_start=explicit_start)
        endpoints = [("127.0.0.1", port) for port in ports[:2]]
        for stream, endpoint in zip(group, endpoints, strict=True):
            add_reader(stream, src=[endpoint], buffer=1)
            stream.start()
        drops = self.overrun(group, group, endpoints, [300, 150])
        assert group.member_kernel_drops() == tuple(drops)
        assert group.kernel_drops() == sum(drops)
        group.stop()
        assert group.member_kernel_drops() == tuple(drops)

    def test_first_asked_after_stop(self, make, udp_port):
        """What was dropped before the stop is known after it, though nobody has asked until then."""
        stream = make(chunks=0)
        add_reader(stream, src=[("127.0.0.1", udp_port)], buffer=1)
        send(("127.0.0.1", udp_port), packets(300))
        lines = pathlib.Path("/proc/net/udp").read_text().splitlines()
        (drops,) = (int(line.split()[-1]) for line in lines if f"0100007F:{udp_port:04X} " in line)
        stream.stop()
        assert stream.kernel_drops() == drops > 0

    @pytest.mark.parametrize("asynchronous", [False, True])
    @pytest.mark.parametrize("group", [False, True])
    def test_after_end_of_stream(self, make, ports, group, asynchronous):
        """What comes once the sender has ended the stream is not dropped: nobody wants it, and the ports are free."""
        source = make(affinity=[-1, -1] if group else -1)
        endpoints = [("127.0.0.1", port) for port in ports[: 2 if group else 1]]
        for stream, endpoint in zip(source if group else [source], endpoints, strict=True):
            add_reader(stream, src=[endpoint], buffer=1)
            send(endpoint, [STOP_PACKET])

        async def iterate():
            assert [chunk async for chunk in speadrx.iter_chunks(source)] == []

        if asynchronous:
            asyncio.run(iterate())
        else:
            assert list(speadrx.iter_chunks(source)) == []
        wait_for(lambda: all(is_free(*endpoint) for endpoint in endpoints))  # spead2 has sockets of its own
        for endpoint in endpoints:
            send(endpoint, [bytes(1000)])
        assert source.kernel_drops() == 0

    def test_counter_wraps(self, udp_port, monkeypatch):
        """The kernel counts with 32 bits; we do not."""
        counts = iter([2**32 - 2, 2**32 - 1, 3, 3])
        sockets = SocketSet()
        sockets.add(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), "0.0.0.0:0")
        monkeypatch.setattr(
            socket.socket, "getsockopt", lambda *args: struct.pack("9I", *[0] * 8, next(counts)), raising=False
        )
        assert [sockets.drops(), sockets.drops(), sockets.drops()] == [2**32 - 2, 2**32 - 1, 2**32 + 3]
        sockets.close()
        assert sockets.drops() == 2**32 + 3


class TestClosed:
    """Nothing stays open: neither ports nor descriptors."""

    @pytest.mark.parametrize("explicit_start", [False, True])
    @pytest.mark.parametrize("how", ["stop", "del", "end of stream"])
    @pytest.mark.parametrize("group", [False, True])
    def test_ends(self, udp_port, explicit_start, how, group):
        before = os.listdir("/proc/self/fd")
        rings = [spead2.recv.ChunkRingbuffer(8) for _ in range(2)]
        source = (speadrx.make_stream_group if group else speadrx.make_stream)(
            layout=SMALL,
            max_active_chunks=2,
            data_ringbuffer=rings[0],
            free_ringbuffer=rings[1],
            affinity=[-1] if group else -1,
            explicit_start=explicit_start,
        )
        ChunkPool(source, 8)
        stream = source[0] if group else source
        endpoints = [("127.0.0.1", udp_port), (f"{GROUP_PREFIX}10", udp_port)]
        add_reader(stream, src=[endpoints[0]], buffer=2**16)
        add_reader(stream, src=[endpoints[1]], interface="127.0.0.1", buffer=2**16)
        stream.start()
        assert not any(is_free(*endpoint) for endpoint in endpoints)
        check_receives(stream, endpoints[0])
        if how == "end of stream":
            send(endpoints[0], [STOP_PACKET])
            assert len(list(rings[0])) > 0
        if how != "del":
            source.stop()
            assert all(is_free(*endpoint) for endpoint in endpoints)
        del stream, source, rings
        assert all(is_free(*endpoint) for endpoint in endpoints)
        wait_for(lambda: len(os.listdir("/proc/self/fd")) <= len(before))

    def test_member(self, make, udp_port):
        """Stopping through a member leaves the sockets to the group."""
        group = make(affinity=[-1, -1])
        add_reader(group[1], src=[("127.0.0.1", udp_port)], buffer=2**16)
        group[0].stop()
        group.stop()
        assert is_free("127.0.0.1", udp_port)

    @pytest.mark.parametrize("affinity", [-1, [-1]])
    @pytest.mark.parametrize("what", ["endpoint", "file"])
    def test_added_after_stop(self, make, udp_port, affinity, what):
        source = make(affinity=affinity)
        source.stop()
        stream = source if affinity == -1 else source[0]
        with pytest.raises(ValueError, match="stream: has stopped, so it can receive nothing"):
            add_reader(stream, src=[("127.0.0.1", udp_port)] if what == "endpoint" else "a.pcap")
        assert is_free("127.0.0.1", udp_port)

    def test_stream_not_ours(self, udp_port):
        """A stream of spead2's own has only spead2's duplicate of the socket."""
        capsule = SMALL.chunk_place()
        config = spead2.recv.ChunkStreamConfig(items=SMALL.spead_items, max_chunks=2, place=capsule, max_heap_extra=2)
        stream = spead2.recv.ChunkRingStream(
            spead2.ThreadPool(),
            spead2.recv.StreamConfig(),
            config,
            spead2.recv.ChunkRingbuffer(2),
            spead2.recv.ChunkRingbuffer(2),
        )
        add_reader(stream, src=[("127.0.0.1", udp_port)], buffer=2**16)
        assert not is_free("127.0.0.1", udp_port)
        send(("127.0.0.1", udp_port), [encode(small_heap({0x40: None}), 1, 48)[0]])
        wait_for(lambda: stream.stats["rejected_heaps"] == 1)
        stream.stop()
        assert is_free("127.0.0.1", udp_port)

    @pytest.mark.parametrize("explicit_start", [False, True])
    def test_one_of_several_fails(self, make, ports, explicit_start):
        """If one endpoint is taken, none of the others stays bound."""
        stream = make(explicit_start=explicit_start)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", ports[1]))
            if not explicit_start:
                message = rf"src: cannot receive on 127.0.0.1:{ports[1]}: Address already in use"
                with pytest.raises(OSError, match=message):
                    add_reader(stream, src=[("127.0.0.1", port) for port in ports])
                assert own_sockets(stream) == []
            assert is_free("127.0.0.1", ports[0])
            assert is_free("127.0.0.1", ports[2])


class TestBuffer:
    """Receive buffers of sockets."""

    def sizes(self, stream):
        return [sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2 for sock in own_sockets(stream)]

    @pytest.mark.parametrize("name", ["buffer", "buffer_size"])
    @pytest.mark.parametrize("explicit_start", [False, True])
    def test_split(self, make, ports, name, explicit_start):
        stream = make(explicit_start=explicit_start)
        add_reader(stream, src=[("127.0.0.1", port) for port in ports], **{name: 300_000})
        assert self.sizes(stream) == [100_000] * 3

    def test_smallest(self, stream, ports):
        """Less than a byte for each endpoint is not none."""
        add_reader(stream, src=[("127.0.0.1", port) for port in ports], buffer=1)
        assert all(size < 10_000 for size in self.sizes(stream))

    def test_default(self, stream, udp_port, monkeypatch):
        asked = []
        monkeypatch.setattr("speadrx.receive.sockets.set_buffer", lambda sock, size: asked.append(size))
        add_reader(stream, src=[("127.0.0.1", udp_port)])
        assert asked == [spead2.recv.ChunkRingStream.DEFAULT_UDP_BUFFER_SIZE]

    def test_system_default(self, stream, udp_port):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
            size = plain.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
        add_reader(stream, src=[("127.0.0.1", udp_port)], buffer=0)
        assert self.sizes(stream) == [size]

    def test_warning(self, ports):
        """A process without privileges asks for more than the system's limit, and is told so once."""
        limit = int(pathlib.Path("/proc/sys/net/core/rmem_max").read_text())
        asked = 2 * limit
        program = f"""
import logging, socket, spead2.recv, speadrx
logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
for explicit_start in (False, True):
    stream = speadrx.make_stream(
        layout=speadrx.Layout(heap_bytes=4, time=speadrx.TimeAxis(item=0x10, step=1, batches=4)), max_active_chunks=2,
        data_ringbuffer=spead2.recv.ChunkRingbuffer(4), free_ringbuffer=spead2.recv.ChunkRingbuffer(4),
        explicit_start=explicit_start,
    )
    speadrx.add_reader(stream, src=[("127.0.0.1", port) for port in {ports[:2]}], buffer={2 * asked})
    stream.stop()
"""
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, preexec_fn=drop_net_admin
        )
        assert result.returncode == 0, result.stderr
        assert result.stderr == (
            f"speadrx.receive.sockets WARNING buffer: asked for a socket receive buffer of {asked} bytes, but the "
            f"kernel granted {limit}, so packets may be lost. Raise the limit net.core.rmem_max with: "
            f"sysctl -w net.core.rmem_max={asked}\n"
        )

    def test_more_than_any_limit(self, stream, udp_port, caplog):
        """No advice that would not help."""
        caplog.set_level(logging.WARNING, "speadrx.receive.sockets")
        add_reader(stream, src=[("127.0.0.1", udp_port)], buffer=2**30)
        (record,) = caplog.records
        message = record.getMessage()
        assert "asked for a socket receive buffer of 1073741824 bytes" in message
        assert "No socket can have more than 1073741823 bytes." in message
        assert "1073741824" not in message.partition("granted")[2]


def drop_net_admin():
    """Take from this process what would let it exceed the system's limit (root has it again after an exec)."""
    pr_capbset_drop, cap_net_admin = 24, 12
    ctypes.CDLL(None).prctl(pr_capbset_drop, cap_net_admin, 0, 0, 0)
