"""Readers with wrong settings: errors that name setting and value, and a stream that is none the worse for them."""

import contextlib
import re
import socket

import pytest

from handmade import SMALL
from loopback import is_free, socket_descriptors
from receiving import CountingSink, GentleSink, assert_accounts, assert_data, receiver, residual
from speadrx import add_reader
from speadrx.simulate import Simulator, UdpSink

GROUP = "239.1.2.3"
# What is wrong, and what the error has to name; "PORT" and "PATH" stand for those of the test.
WRONG = {
    "no such interface": ({"src": [(GROUP, "PORT")], "interface": "203.0.113.1"}, [GROUP, "PORT", "203.0.113.1"]),
    "no interface of that name": ({"src": [(GROUP, "PORT")], "interface": "no-such"}, ["interface: ", "'no-such'"]),
    "the same group twice": (
        {"src": [(GROUP, "PORT"), (f"lo/{GROUP}", "PORT")]},
        [f"{GROUP}:PORT", f"lo/{GROUP}:PORT"],
    ),
    "interface of another address": (
        {"src": [("127.0.0.1", "PORT")], "interface": "127.0.0.2"},
        ["interface: ", "127.0.0.2", "127.0.0.1:PORT"],
    ),
    "busy port": ({"src": [("127.0.0.1", "BUSY")]}, ["src: ", "127.0.0.1:BUSY", "in use"]),
    "busy port, second of two": (
        {"src": [("127.0.0.1", "PORT"), ("127.0.0.1", "BUSY")]},
        ["src: ", "127.0.0.1:BUSY", "in use"],
    ),
    "address of another machine": ({"src": [("203.0.113.1", "PORT")]}, ["src: ", "203.0.113.1:PORT"]),
    "multicast address out of range": ({"src": [("239.1.2.300", "PORT")]}, ["src: ", "'239.1.2.300'"]),
    "no multicast address": ({"src": [("240.1.2.3", "PORT")]}, ["src: ", "240.1.2.3:PORT"]),
    "port out of range": ({"src": [("127.0.0.1", 65536)]}, ["src: ", "65536"]),
    "missing file": ({"src": "PATH.missing"}, ["src: ", "PATH.missing", "No such file"]),
    "empty file": ({"src": "PATH.empty"}, ["src: ", "PATH.empty", "empty"]),
    "not a capture": ({"src": "PATH.text"}, ["src: ", "PATH.text", "not a pcap or pcapng file"]),
    "ibverbs without hardware": (
        {"src": [(GROUP, "PORT")], "interface": "127.0.0.1", "ibv": True},
        ["ibv: ", "interface 127.0.0.1"],
    ),
    "ibverbs without interface": ({"src": [(GROUP, "PORT")], "ibv": True}, ["interface: None", "ibv"]),
    "buffer": ({"src": [("127.0.0.1", "PORT")], "buffer": -1}, ["buffer: -1"]),
}


@pytest.fixture
def files(tmp_path):
    """Files that are no captures, by the path before their suffix."""
    path = tmp_path / "heaps"
    path.with_suffix(".empty").write_bytes(b"")
    path.with_suffix(".text").write_text("no capture at all")
    return path


@pytest.mark.fault(21)
@pytest.mark.parametrize("members", [None, 2], ids=["stream", "group"])
def test_wrong_settings_of_a_running_stream(members, files, ports, fault_report):
    """One after the other, while heaps come in: none is lost, no socket is left behind, what is right still works."""
    good, free, busy = ports
    names = {"PORT": str(free), "BUSY": str(busy), "PATH": str(files)}
    simulator = Simulator(SMALL, seed=1)
    with contextlib.ExitStack() as stack:
        taken = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        taken.bind(("127.0.0.1", busy))
        rx = stack.enter_context(receiver(SMALL, members=members))
        add_reader(rx.streams[0], src=[("127.0.0.1", good)])
        sink = GentleSink(CountingSink(stack.enter_context(UdpSink([("127.0.0.1", good)])), rx))
        descriptors = socket_descriptors()

        def resolve(value):
            """The arguments of this run."""
            if isinstance(value, str):
                return re.sub("PORT|BUSY|PATH", lambda match: names[match[0]], value)
            if isinstance(value, list):
                return [(host, int(names.get(port, port))) for host, port in value]
            return value

        for settings, named in WRONG.values():
            with pytest.raises((OSError, ValueError, RuntimeError)) as raised:
                add_reader(rx.streams[0], **{name: resolve(value) for name, value in settings.items()})
            assert [part for part in named if resolve(part) not in str(raised.value)] == [], str(raised.value)
            assert socket_descriptors() == descriptors
            assert is_free("127.0.0.1", free)
            simulator.send(sink, SMALL.chunk_batches)
        # The port that was busy can be had once it is free.
        taken.close()
        add_reader(rx.streams[0], src=[("127.0.0.1", busy)])
        other = CountingSink(stack.enter_context(UdpSink([("127.0.0.1", busy)])), rx)
        other.sent = sink.sink.sent  # it compares with the packets of both
        simulator.send(GentleSink(other), SMALL.chunk_batches)
        other.settle()
        rx.finish()
        sent, present = simulator.truth.copies, rx.iterator.accounting.present
        fault_report(sent=sent, lost=sent - present, residual=residual(rx, [simulator.truth]))
        assert rx.stream.kernel_drops() == 0
        assert_data(rx, [simulator])
        assert_accounts(rx, [simulator])
