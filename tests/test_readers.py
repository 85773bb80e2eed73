"""Readers: every kind of input, what the kernel dropped, and that nothing stays open."""

import contextlib
import ctypes
import dataclasses
import os
import pathlib
import re
import socket
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import spead2
import spead2.recv

import speadrx
from handmade import SMALL, STOP_PACKET, encode, small_heap
from speadrx import ChunkPool, add_reader, readers
from speadrx.simulate import PcapSink, Simulator, UdpSink

# Groups of their own for each kind of use, so that tests run at the same time do not mix on one machine.
GROUP_PREFIX = f"239.{os.getpid() % 251}.{os.getpid() // 251 % 251}."


def can(family, group=None):
    """Whether this machine has IPv6, or a route for multicast."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            if group is None:
                sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
            else:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + bytes(4))
    except OSError:
        return False
    return True


def ipv6_multicast_interface():
    """Name of an interface to which this machine can send IPv6 multicast, or None."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 0)
        for index, name in socket.if_nameindex():
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            with contextlib.suppress(OSError):
                sock.sendto(b"", ("ff1e::1", 9))
                return name
    return None


IPV6_INTERFACE = ipv6_multicast_interface()
needs_ipv6_multicast = pytest.mark.skipif(IPV6_INTERFACE is None, reason="needs an interface for IPv6 multicast")
needs_ipv6 = pytest.mark.skipif(not can(socket.AF_INET6), reason="needs IPv6")
needs_multicast_route = pytest.mark.skipif(
    not can(socket.AF_INET, "239.1.2.3"), reason="needs a default interface for multicast"
)


def wait_for(condition, seconds=20):
    """Wait until a condition holds; how long that takes is of no account unless it is for ever."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


@pytest.fixture
def make(request):
    """Make a stream, or a group if the affinity is a list, and stop it after the test."""

    def make(*, chunks=8, **kwargs):
        arguments = {
            "layout": SMALL,
            "max_active_chunks": 2,
            "data_ringbuffer": spead2.recv.ChunkRingbuffer(8),
            "free_ringbuffer": spead2.recv.ChunkRingbuffer(8),
            **kwargs,
        }
        group = isinstance(arguments.get("affinity"), list)
        made = (speadrx.make_stream_group if group else speadrx.make_stream)(**arguments)
        request.addfinalizer(made.stop)
        if chunks:
            ChunkPool(made, chunks)
        return made

    return make


@pytest.fixture
def stream(make):
    return make()


@pytest.fixture
def ports():
    """Several UDP ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(3)]
        for sock in sockets:
            sock.bind(("", 0))
        return [sock.getsockname()[1] for sock in sockets]


def packets(n, start=0):
    """Packets of good heaps, all of the same chunk."""
    return [encode(small_heap({0x10: 64 + i % 4 * 16}), start + i, 48)[0] for i in range(n)]


def send(endpoint, packets, interface=None):
    family = socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        if interface is not None and family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(interface))
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 0)
        elif interface is not None:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface))
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
        for packet in packets:
            assert sock.sendto(packet, endpoint) == len(packet)


def received(stream):
    return stream.stats["packets"]


def check_receives(stream, endpoint, interface=None, n=3):
    before = received(stream)
    send(endpoint, packets(n), interface)
    wait_for(lambda: received(stream) - before == n)


def socket_descriptors():
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum(link.startswith("socket:") for link in links)


def own_sockets(stream):
    return list(stream._sockets._counts)


def is_free(address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((address, port))
        except OSError:
            return False
    return True


class TestUnicast:
    """UDP endpoints of this machine's own."""

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", ""])
    def test_receives(self, stream, udp_port, host):
        add_reader(stream, src=[(host, udp_port)], buffer=2**16)
        check_receives(stream, ("127.0.0.1", udp_port))

    def test_prefers_ipv4(self, stream, udp_port, monkeypatch):
        """Where a host has both kinds of address, whatever their order."""
        infos = socket.getaddrinfo("::1", udp_port) + socket.getaddrinfo("127.0.0.1", udp_port)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: infos)
        add_reader(stream, src=[("both", udp_port)], buffer=2**16)
        assert [sock.getsockname() for sock in own_sockets(stream)] == [("127.0.0.1", udp_port)]

    def test_several(self, stream, ports):
        add_reader(stream, src=(("127.0.0.1", port) for port in ports), buffer=2**16)
        for port in ports:
            check_receives(stream, ("127.0.0.1", port))

    def test_added_later(self, stream, ports):
        for port in ports:
            add_reader(stream, src=[("127.0.0.1", port)], buffer=2**16)
            check_receives(stream, ("127.0.0.1", port))

    def test_data(self, stream, udp_port):
        add_reader(stream, src=[("127.0.0.1", udp_port)], buffer=2**20)
        simulator = Simulator(SMALL)
        with UdpSink([("127.0.0.1", udp_port)]) as sink:
            simulator.send(sink, 8)
        send(("127.0.0.1", udp_port), [STOP_PACKET])
        chunks = list(stream.data_ringbuffer)
        assert len(chunks) == 2
        for chunk in chunks:
            assert chunk.present.all()
            np.testing.assert_array_equal(chunk.data, simulator.chunk_data(chunk.chunk_id * 64))
            np.testing.assert_array_equal(chunk.extra, simulator.chunk_extra(chunk.chunk_id * 64))

    def test_interface(self, stream, udp_port):
        add_reader(stream, src=[("127.0.0.1", udp_port)], interface="127.0.0.1", buffer=2**16)
        check_receives(stream, ("127.0.0.1", udp_port))

    def test_interface_narrows(self, stream, udp_port):
        add_reader(stream, src=[("0.0.0.0", udp_port)], interface="127.0.0.1", buffer=2**16)
        assert [sock.getsockname() for sock in own_sockets(stream)] == [("127.0.0.1", udp_port)]
        check_receives(stream, ("127.0.0.1", udp_port))

    @needs_ipv6
    def test_ipv6(self, stream, udp_port):
        add_reader(stream, src=[("::1", udp_port)], buffer=2**16)
        check_receives(stream, ("::1", udp_port))

    def test_large_packet(self, make, udp_port):
        """A heap as large as UDP allows fits into one packet, which spead2 would cut off by default."""
        layout = dataclasses.replace(SMALL, heap_bytes=65000)
        stream = make(layout=layout)
        add_reader(stream, src=[("127.0.0.1", udp_port)], buffer=2**20)
        simulator = Simulator(layout, max_packet_size=65507)
        with UdpSink([("127.0.0.1", udp_port)]) as sink:
            simulator.send(sink, 1)
        wait_for(lambda: stream.stats["single_packet_heaps"] == 3)

    def test_max_size(self, make, udp_port):
        stream = make()
        add_reader(stream, src=[("127.0.0.1", udp_port)], buffer=2**16, max_size=100)
        long, short = packets(1)[0] + bytes(100), packets(1)[0]
        send(("127.0.0.1", udp_port), [long, short])
        wait_for(lambda: received(stream) == 1)

    def test_group(self, make, ports):
        group = make(affinity=[-1, -1])
        for stream, port in zip(group, ports, strict=False):
            add_reader(stream, src=[("127.0.0.1", port)], buffer=2**16)
        for stream, port in zip(group, ports, strict=False):
            check_receives(stream, ("127.0.0.1", port))


class TestMulticast:
    """UDP endpoints that many may listen to."""

    def test_receives(self, stream, ports):
        """Several groups, several ports; and of each port only what was sent to the group."""
        endpoints = [(f"{GROUP_PREFIX}1", ports[0]), (f"{GROUP_PREFIX}2", ports[0]), (f"{GROUP_PREFIX}1", ports[1])]
        add_reader(stream, src=endpoints, interface="127.0.0.1", buffer=2**18)
        for endpoint in endpoints:
            check_receives(stream, endpoint, "127.0.0.1")

    def test_shared(self, make, udp_port):
        """Two streams that listen to the same group both get everything."""
        endpoint = (f"{GROUP_PREFIX}3", udp_port)
        streams = [make(), make()]
        for stream in streams:
            add_reader(stream, src=[endpoint], interface="127.0.0.1", buffer=2**16)
        send(endpoint, packets(3), "127.0.0.1")
        for stream in streams:
            wait_for(lambda stream=stream: received(stream) == 3)

    @needs_multicast_route
    def test_default_interface(self, stream, udp_port):
        endpoint = (f"{GROUP_PREFIX}4", udp_port)
        add_reader(stream, src=[endpoint], buffer=2**16)
        check_receives(stream, endpoint)

    @needs_ipv6_multicast
    @pytest.mark.parametrize("scope", ["ff12", "ff1e"])
    def test_ipv6(self, stream, udp_port, scope):
        endpoint = (f"{scope}::{os.getpid() % 2**16:x}", udp_port)
        add_reader(stream, src=[endpoint], interface=IPV6_INTERFACE, buffer=2**16)
        check_receives(stream, endpoint, IPV6_INTERFACE)


class TestExplicitStart:
    """Streams that receive only once they are started: spead2 makes their sockets."""

    @pytest.mark.parametrize(
        ("host", "interface"),
        [
            ("127.0.0.1", None),
            ("127.0.0.1", "127.0.0.1"),
            ("0.0.0.0", "127.0.0.1"),
            (f"{GROUP_PREFIX}5", "127.0.0.1"),
            pytest.param(f"{GROUP_PREFIX}6", None, marks=needs_multicast_route),
            pytest.param("::1", None, marks=needs_ipv6),
            pytest.param(f"ff1e::{os.getpid() % 2**16:x}", IPV6_INTERFACE, marks=needs_ipv6_multicast),
        ],
    )
    def test_receives(self, make, udp_port, host, interface, caplog):
        stream = make(explicit_start=True)
        add_reader(stream, src=[(host, udp_port)], interface=interface, buffer=2**16)
        (sock,) = own_sockets(stream)
        target = ("127.0.0.1" if host == "0.0.0.0" else host, udp_port)
        assert sock.getsockname()[1] == 0
        # Nobody listens yet. (To a unicast port, the second of these is answered by an error.)
        with contextlib.suppress(OSError):
            send(target, packets(2), interface)
        assert stream.kernel_drops() == 0
        stream.start()
        assert sock.getsockname()[:2] == target
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * 2**16
        check_receives(stream, target, interface)
        assert received(stream) == 3
        stream.stop()
        assert is_free(*target)
        assert not caplog.records

    def test_group(self, make, ports):
        group = make(affinity=[-1, -1], explicit_start=True)
        for stream, port in zip(group, ports, strict=False):
            add_reader(stream, src=[("127.0.0.1", port)], buffer=2**16)
        assert all(is_free("127.0.0.1", port) for port in ports)
        for stream in group:
            stream.start()
        for stream, port in zip(group, ports, strict=False):
            check_receives(stream, ("127.0.0.1", port))
        group.stop()
        assert all(is_free("127.0.0.1", port) for port in ports)

    def test_added_after_start(self, make, udp_port):
        stream = make(explicit_start=True)
        stream.start()
        message = f"src: cannot receive on 127.0.0.1:{udp_port}: Cannot add readers after explicit start"
        with pytest.raises(RuntimeError, match=message):
            add_reader(stream, src=[("127.0.0.1", udp_port)])
        assert own_sockets(stream) == []

    def test_bad_interface(self, make, udp_port):
        stream = make(explicit_start=True)
        message = rf"src: cannot receive on {GROUP_PREFIX}7:{udp_port} with interface 203.0.113.1: .*No such device"
        with pytest.raises(RuntimeError, match=message):
            add_reader(stream, src=[(f"{GROUP_PREFIX}7", udp_port)], interface="203.0.113.1")

    def test_other_sockets_meanwhile(self, make, udp_port, monkeypatch, caplog):
        """Sockets that other threads make at the same time are not mistaken for spead2's, and not kept open."""
        stream = make(explicit_start=True)
        others = []

        def add_udp_reader(**kwargs):
            others.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            others.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            others[-1].bind(("127.0.0.1", 0))
            spead2.recv.ChunkRingStream.add_udp_reader(stream, **kwargs)
            if kwargs["port"] != udp_port:
                others.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

        monkeypatch.setattr(stream, "add_udp_reader", add_udp_reader, raising=False)
        before = socket_descriptors()
        add_reader(stream, src=[("127.0.0.1", udp_port)], buffer=2**16)
        (sock,) = own_sockets(stream)
        assert socket_descriptors() == before + len(others) + 2
        add_reader(stream, src=[("127.0.0.1", udp_port % 65535 + 1)], buffer=2**16)
        assert own_sockets(stream) == [sock]
        assert socket_descriptors() == before + len(others) + 3
        assert f"kernel drops of 127.0.0.1:{udp_port % 65535 + 1} are not counted" in caplog.text
        for other in others:
            other.close()
        stream.start()
        assert sock.getsockname() == ("127.0.0.1", udp_port)


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

    def test_counter_wraps(self, udp_port, monkeypatch):
        """The kernel counts with 32 bits; we do not."""
        counts = iter([2**32 - 2, 2**32 - 1, 3, 3])
        sockets = readers.SocketSet()
        sockets.add(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
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

    def test_added_after_stop(self, stream, udp_port):
        stream.stop()
        add_reader(stream, src=[("127.0.0.1", udp_port)], buffer=2**16)
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


class TestErrors:
    """Every mistake names the setting and the value."""

    @pytest.mark.parametrize(
        ("kwargs", "error", "message"),
        [
            ({"src": []}, ValueError, "src: is empty: wanted at least one"),
            ({"src": ("127.0.0.1", 7148)}, ValueError, r"src: '127.0.0.1' is not an endpoint: wanted \(host, port\)"),
            ({"src": [7148]}, ValueError, "src: 7148 is not an endpoint"),
            ({"src": [("127.0.0.1",)]}, ValueError, r"src: \('127.0.0.1',\) is not an endpoint"),
            ({"src": [(2130706433, 7148)]}, ValueError, "src: 2130706433 is not a host"),
            ({"src": [("127.0.0.1", 0)]}, ValueError, "src: 0 is not a port: wanted 1 to 65535"),
            ({"src": [("127.0.0.1", 65536)]}, ValueError, "src: 65536 is not a port"),
            ({"src": [("127.0.0.1", "7148")]}, ValueError, "src: '7148' is not a port"),
            ({"src": [("127.0.0.1", True)]}, ValueError, "src: True is not a port"),
            ({"src": [("256.0.0.1.", 7148)]}, ValueError, "src: host '256.0.0.1.' cannot be resolved"),
            ({"src": [("a" * 70, 7148)]}, ValueError, "src: host 'aaa.*' cannot be resolved"),
            ({"src": [("203.0.113.1", 7148)]}, OSError, "src: cannot receive on 203.0.113.1:7148: Cannot assign req"),
            (
                {"src": [("239.1.2.3", 7148)], "interface": "lo"},
                ValueError,
                "interface: 'lo' is not the IPv4 address of an interface",
            ),
            (
                {"src": [("239.1.2.3", 7148)], "interface": "203.0.113.1"},
                OSError,
                "src: cannot receive on 239.1.2.3:7148 with interface 203.0.113.1: No such device",
            ),
            (
                {"src": [("127.0.0.1", 7148)], "interface": "127.0.0.2"},
                ValueError,
                "interface: 127.0.0.2 differs from the address of the unicast endpoint 127.0.0.1:7148",
            ),
            (
                {"src": [("::1", 7148)], "interface": "lo"},
                ValueError,
                r"interface: 'lo' has no use for the IPv6 unicast endpoint \[::1\]:7148: leave it out",
            ),
            (
                {"src": [("ff11::1", 7148)], "interface": "no-such"},
                ValueError,
                r"interface: 'no-such' is not the name of an interface, as the IPv6 group \[ff11::1\]:7148 needs",
            ),
            ({"buffer": -1}, ValueError, "buffer: -1 must be at least 0"),
            ({"buffer_size": -1}, ValueError, "buffer: -1 must be at least 0"),
            ({"buffer": 1e6}, TypeError, "buffer: given 1000000.0, but wanted an integer"),
            (
                {"buffer": 5, "buffer_size": 5},
                TypeError,
                "buffer: 5 and buffer_size: 5 are the same setting: give one of them",
            ),
            ({"max_size": 0}, ValueError, "max_size: 0 must be at least 1"),
            ({"comp_vector": None}, TypeError, "comp_vector: given None, but wanted an integer"),
            ({"ibv": True}, ValueError, "interface: None, but ibv needs the address of an interface"),
            (
                {"ibv": True, "src": [("239.1.2.3", 7148)], "interface": "127.0.0.1"},
                RuntimeError,
                "ibv: cannot receive through ibverbs on interface 127.0.0.1: .",
            ),
        ],
    )
    def test_message(self, stream, kwargs, error, message):
        with pytest.raises(error, match=message):
            add_reader(stream, **{"src": [("127.0.0.1", 7148)]} | kwargs)
        assert own_sockets(stream) == []

    def test_privileged_port(self, stream, udp_port):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", udp_port))
            with pytest.raises(OSError, match="Address already in use") as raised:
                add_reader(stream, src=[("127.0.0.1", udp_port)])
        assert raised.value.errno is not None

    def test_keyword_only(self, stream):
        with pytest.raises(TypeError):
            add_reader(stream, [("127.0.0.1", 7148)])

    @pytest.mark.parametrize("missing", [True, False])
    def test_ibv(self, stream, monkeypatch, missing):
        """What goes to spead2; and what is said if it cannot use ibverbs at all."""
        given = []
        if missing:
            monkeypatch.delattr(spead2.recv, "UdpIbvConfig", raising=False)
            with pytest.raises(RuntimeError, match="ibv: this spead2 was built without ibverbs support"):
                add_reader(stream, src=[("239.1.2.3", 7148)], interface="127.0.0.1", ibv=True)
            return
        monkeypatch.setattr(
            type(stream), "add_udp_ibv_reader", lambda self, config: given.append(config), raising=False
        )
        add_reader(
            stream,
            src=[("239.1.2.3", 7148), ("239.1.2.4", 7149)],
            interface="127.0.0.1",
            ibv=True,
            comp_vector=-1,
            buffer=2**20,
        )
        add_reader(stream, src=[("239.1.2.3", 7148)], interface="127.0.0.1", ibv=True, max_size=1500)
        assert list(given[0].endpoints) == [("239.1.2.3", 7148), ("239.1.2.4", 7149)]
        assert given[0].interface_address == "127.0.0.1"
        assert (given[0].comp_vector, given[0].buffer_size) == (-1, 2**20)
        assert given[0].max_size == spead2.recv.UdpIbvConfig.DEFAULT_MAX_SIZE
        assert (given[1].comp_vector, given[1].max_size) == (0, 1500)
        assert given[1].buffer_size == spead2.recv.UdpIbvConfig.DEFAULT_BUFFER_SIZE


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
        monkeypatch.setattr(readers, "_set_buffer", lambda sock, size: asked.append(size))
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
            f"speadrx.readers WARNING buffer: asked for a socket receive buffer of {asked} bytes, but the kernel "
            f"granted {limit}, so packets may be lost. Raise the limit net.core.rmem_max with: "
            f"sysctl -w net.core.rmem_max={asked}\n"
        )


def drop_net_admin():
    """Take from this process what would let it exceed the system's limit (root has it again after an exec)."""
    pr_capbset_drop, cap_net_admin = 24, 12
    ctypes.CDLL(None).prctl(pr_capbset_drop, cap_net_admin, 0, 0, 0)


class TestPcap:
    """Captures in files."""

    @pytest.fixture
    def simulator(self):
        return Simulator(SMALL)

    @pytest.fixture
    def path(self, simulator, tmp_path):
        path = tmp_path / "heaps.pcap"
        with PcapSink(path) as sink:
            simulator.send(sink, 8)
        return path

    @staticmethod
    def records(path):
        """The link-layer frames of a (little-endian) pcap file."""
        data = path.read_bytes()
        offset = 24
        while offset < len(data):
            (length,) = struct.unpack_from("<I", data, offset + 8)
            yield data[offset + 16 : offset + 16 + length]
            offset += 16 + length

    def check(self, stream, simulator, path):
        add_reader(stream, src=path)
        chunks = list(stream.data_ringbuffer)
        assert [chunk.chunk_id for chunk in chunks] == [0, 1]
        for chunk in chunks:
            assert chunk.present.all()
            np.testing.assert_array_equal(chunk.data, simulator.chunk_data(chunk.chunk_id * 64))

    @pytest.mark.parametrize("kind", [str, pathlib.Path])
    def test_receives(self, stream, simulator, path, kind):
        self.check(stream, simulator, kind(path))

    def test_other_settings_have_no_use(self, stream, path):
        """The settings of the network are left alone, as they come with the same options of a program."""
        add_reader(stream, src=str(path), interface="10.0.0.1", ibv=True, comp_vector=3, buffer=2**20)
        assert len(list(stream.data_ringbuffer)) == 2

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("magic", [0xA1B2C3D4, 0xA1B23C4D])
    def test_kinds(self, stream, simulator, path, tmp_path, order, magic):
        other = tmp_path / "other.pcap"
        with other.open("wb") as file:
            file.write(struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, 1))
            for frame in self.records(path):
                file.write(struct.pack(order + "IIII", 1, 2, len(frame), len(frame)) + frame)
        self.check(stream, simulator, str(other))

    def make_pcapng(self, path, order):
        blocks = [
            struct.pack(order + "IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28),
            struct.pack(order + "IIHHII", 1, 20, 1, 0, 65535, 20),
        ]
        for frame in self.records(path):
            padded = frame + bytes(-len(frame) % 4)
            size = 32 + len(padded)
            blocks.append(
                struct.pack(order + "IIIIIII", 6, size, 0, 0, 0, len(frame), len(frame))
                + padded
                + struct.pack(order + "I", size)
            )
        return b"".join(blocks)

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_pcapng(self, stream, simulator, path, tmp_path, order):
        other = tmp_path / "other.pcapng"
        other.write_bytes(self.make_pcapng(path, order))
        self.check(stream, simulator, str(other))

    @pytest.mark.parametrize("cut", [1, 3, 40, "header", "global header"])
    @pytest.mark.parametrize("kind", ["pcap", "pcapng"])
    def test_truncated(self, stream, path, tmp_path, cut, kind):
        """spead2 would try to read on for ever."""
        data = path.read_bytes() if kind == "pcap" else self.make_pcapng(path, "<")
        last = len(list(self.records(path))[-1])
        last += 16 if kind == "pcap" else 32 + -last % 4
        length = {"header": len(data) - last + 5, "global header": 20 if kind == "pcap" else 7}.get(
            cut, len(data) - (cut if isinstance(cut, int) else 0)
        )
        short = tmp_path / "short"
        short.write_bytes(data[:length])
        with pytest.raises(
            ValueError,
            match=rf"src: {re.escape(str(short))} is truncated: its last packet ends .* the file has {length}",
        ):
            add_reader(stream, src=str(short))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty: wanted a pcap file"),
            (b"\xd4", "is not a pcap file: it starts with the bytes d4$"),
            (b"just some text", "is not a pcap file: it starts with the bytes 6a 75 73 74"),
            (
                struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + struct.pack("<4I", 0, 0, 2**31, 2**31),
                f"is damaged: the packet at byte 24 has the length {2**31}",
            ),
            (
                struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28) + struct.pack("<II", 1, 0),
                "is damaged: the packet at byte 28 has the length 0",
            ),
            (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101), "cannot be read: .*linktype"),
        ],
    )
    def test_damaged(self, stream, tmp_path, content, message):
        path = tmp_path / "damaged"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"src: {re.escape(str(path))} {message}"):
            add_reader(stream, src=path)

    def test_missing(self, stream, tmp_path):
        path = tmp_path / "missing.pcap"
        with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
            add_reader(stream, src=str(path))

    def test_not_a_file(self, stream, tmp_path):
        with pytest.raises(ValueError, match=rf"src: {re.escape(str(tmp_path))} is not a regular file"):
            add_reader(stream, src=str(tmp_path))

    def test_not_supported(self, stream, path, monkeypatch):
        monkeypatch.delattr(spead2.recv.ChunkRingStream.__mro__[2], "add_udp_pcap_file_reader")
        with pytest.raises(RuntimeError, match=f"src: cannot read {path}: this spead2 was built without pcap support"):
            add_reader(stream, src=str(path))
