"""Readers of UDP endpoints: every kind of them, started at once or later, and what is said of mistakes."""

import contextlib
import dataclasses
import socket

import numpy as np
import pytest
import spead2
import spead2.recv

from addresses import GROUP_PREFIX, IPV6_GROUP
from handmade import SMALL, STOP_PACKET
from loopback import (
    IPV6_INTERFACE,
    check_receives,
    is_free,
    needs_ipv6,
    needs_ipv6_multicast,
    needs_multicast_route,
    own_sockets,
    packets,
    received,
    send,
    socket_descriptors,
    wait_for,
)
from speadrx import add_reader
from speadrx.simulate import Simulator, UdpSink


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

    def test_port_from_numpy(self, stream, udp_port):
        add_reader(stream, src=[("127.0.0.1", np.int64(udp_port))], buffer=2**16)
        assert [sock.getsockname() for sock in own_sockets(stream)] == [("127.0.0.1", udp_port)]

    @pytest.mark.fault(21)
    @pytest.mark.parametrize("other", [False, True])
    def test_taken(self, make, udp_port, other):
        """Two readers of one endpoint would share its packets out, or one of them would get none."""
        endpoint = ("127.0.0.1", udp_port)
        stream = make()
        add_reader(stream, src=[endpoint], buffer=2**16)
        with pytest.raises(OSError, match=f"src: cannot receive on 127.0.0.1:{udp_port}: Address already in use"):
            add_reader(make() if other else stream, src=[endpoint])
        check_receives(stream, endpoint)

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
        endpoint = (f"{scope}::{IPV6_GROUP}", udp_port)
        add_reader(stream, src=[endpoint], interface=IPV6_INTERFACE, buffer=2**16)
        check_receives(stream, endpoint, IPV6_INTERFACE)

    @needs_ipv6_multicast
    def test_interface_in_the_address(self, stream, udp_port):
        group = f"ff12::{IPV6_GROUP}"
        add_reader(stream, src=[(f"{group}%{IPV6_INTERFACE}", udp_port)], buffer=2**16)
        check_receives(stream, (group, udp_port), IPV6_INTERFACE)

    @needs_ipv6
    def test_ipv6_group_of_one_link_needs_an_interface(self, stream, udp_port):
        with pytest.raises(OSError, match=r"without the name of its interface, which such a group needs: Invalid"):
            add_reader(stream, src=[("ff12::1", udp_port)])


class TestExplicitStart:
    """Streams that receive only once they are started: spead2 makes their sockets."""

    @pytest.mark.parametrize(
        ("host", "interface"),
        [
            ("127.0.0.1", None),
            ("127.0.0.1", "127.0.0.1"),
            ("0.0.0.0", "127.0.0.1"),
            pytest.param(f"{GROUP_PREFIX}5", "127.0.0.1", id="multicast"),
            pytest.param(f"{GROUP_PREFIX}6", None, marks=needs_multicast_route, id="multicast, default interface"),
            pytest.param("::1", None, marks=needs_ipv6),
            pytest.param(f"ff1e::{IPV6_GROUP}", IPV6_INTERFACE, marks=needs_ipv6_multicast, id="IPv6 multicast"),
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

    def test_taken(self, make, ports):
        """What could not be bound is known only at the start."""
        stream = make(explicit_start=True)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", ports[1]))
            add_reader(stream, src=[("127.0.0.1", port) for port in ports[:2]])
            message = f"cannot receive on 127.0.0.1:{ports[0]} or 127.0.0.1:{ports[1]}: .*Address already in use"
            with pytest.raises(RuntimeError, match=message):
                stream.start()

    def test_added_after_start(self, make, udp_port):
        stream = make(explicit_start=True)
        stream.start()
        message = f"src: cannot receive on 127.0.0.1:{udp_port}: Cannot add readers after explicit start"
        with pytest.raises(RuntimeError, match=message):
            add_reader(stream, src=[("127.0.0.1", udp_port)])
        assert own_sockets(stream) == []

    @pytest.mark.fault(21)
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


class TestErrors:
    """Every mistake names the setting and the value."""

    @pytest.mark.fault(21)
    @pytest.mark.parametrize(
        ("kwargs", "error", "message"),
        [
            ({"src": []}, ValueError, "src: is empty: wanted at least one"),
            ({"src": ("127.0.0.1", 7148)}, ValueError, r"src: '127.0.0.1' is not an endpoint: wanted \(host, port\)"),
            ({"src": 7148}, TypeError, r"src: given 7148, but wanted \(host, port\) pairs, or the path"),
            ({"src": b"/tmp"}, TypeError, r"src: given b'/tmp', but wanted \(host, port\) pairs, or the path"),
            ({"src": [("127.0.0.1", 7148.0)]}, ValueError, "src: 7148.0 is not a port"),
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
                {"src": [("239.1.2.3", 7148)], "interface": "no-such"},
                ValueError,
                r"interface: 'no-such' is neither the name nor the IPv4 address of an interface \(there are: .*lo 127",
            ),
            (
                {"src": [("127.0.0.1", 7148)], "interface": "127.0.0.2"},
                ValueError,
                "interface: 127.0.0.2 differs from the address of the unicast endpoint 127.0.0.1:7148",
            ),
            (
                {"src": [("::1", 7148)], "interface": "lo"},
                ValueError,
                r"interface: 'lo' is not used by the IPv6 unicast endpoint \[::1\]:7148: leave it out",
            ),
            (
                {"src": [("ff11::1", 7148)], "interface": "no-such"},
                ValueError,
                r"interface: 'no-such' is not the name of an interface, which the IPv6 group \[ff11::1\]:7148 needs",
            ),
            ({"buffer": -1}, ValueError, "buffer: -1 must be at least 0"),
            ({"buffer_size": -1}, ValueError, "buffer: -1 must be at least 0"),
            ({"buffer": 1e6}, TypeError, "buffer: given 1000000.0, but wanted an integer"),
            (
                {"buffer": 5, "buffer_size": 5},
                TypeError,
                "buffer: 5 and buffer_size: 5 are the same setting: give only one",
            ),
            ({"max_size": 0}, ValueError, "max_size: 0 must be at least 1"),
            ({"max_size": 2**64}, ValueError, f"max_size: {2**64} must be at most {2**63 - 1}"),
            ({"buffer": 2**64}, ValueError, f"buffer: {2**64} must be at most {2**63 - 1}"),
            ({"comp_vector": 2**31}, ValueError, f"comp_vector: {2**31} must be at most {2**31 - 1}"),
            ({"interface": 5}, TypeError, "interface: given 5, but wanted a str"),
            ({"src": [("127.0.0.1\0", 7148)]}, ValueError, r"src: '127.0.0.1\\x00' is not a host"),
            (
                {"ibv": True, "src": [("ff11::1", 7148)], "interface": "lo"},
                ValueError,
                r"src: \[ff11::1\]:7148 is not an IPv4 endpoint, and ibv can receive on nothing else",
            ),
            ({"comp_vector": None}, TypeError, "comp_vector: given None, but wanted an integer"),
            ({"ibv": True}, ValueError, r"interface: None, but ibv needs an interface for 127.0.0.1:\d"),
            (
                {"ibv": True, "src": [("239.1.2.3", 7148)], "interface": "127.0.0.1"},
                RuntimeError,
                "ibv: cannot receive through ibverbs on interface 127.0.0.1: .",
            ),
        ],
    )
    def test_message(self, stream, udp_port, kwargs, error, message):
        with pytest.raises(error, match=message):
            add_reader(stream, **{"src": [("127.0.0.1", udp_port)]} | kwargs)

    def test_interface_that_is_not_there(self, stream, udp_port):
        message = f"src: cannot receive on 239.1.2.3:{udp_port} with interface 203.0.113.1: No such device"
        with pytest.raises(OSError, match=message):
            add_reader(stream, src=[("239.1.2.3", udp_port)], interface="203.0.113.1")
        assert own_sockets(stream) == []

    def test_privileged_port(self, stream, udp_port):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", udp_port))
            with pytest.raises(OSError, match="Address already in use") as raised:
                add_reader(stream, src=[("127.0.0.1", udp_port)])
        assert raised.value.errno is not None

    def test_not_a_stream(self, make):
        for affinity in ([-1], [-1, -1]):
            with pytest.raises(TypeError, match=r"stream: given a group, but wanted one of its members, group\[i\]"):
                add_reader(make(affinity=affinity), src=[("127.0.0.1", 7148)])
        with pytest.raises(TypeError, match="stream: given NoneType, but wanted a stream or a member of a group"):
            add_reader(None, src="a.pcap")

    def test_keyword_only(self, stream):
        with pytest.raises(TypeError):
            add_reader(stream, [("127.0.0.1", 7148)])

    @pytest.mark.fault(21)
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
        # spead2 takes the endpoints of one interface at a time.
        add_reader(stream, src=[("lo/239.1.2.3", 7148), ("127.0.0.2/239.1.2.4", 7148)], ibv=True, buffer=2**20)
        assert [config.interface_address for config in given[2:]] == ["127.0.0.1", "127.0.0.2"]
        assert [config.buffer_size for config in given[2:]] == [2**19, 2**19]
