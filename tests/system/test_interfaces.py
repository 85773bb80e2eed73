"""Groups that come in at several interfaces with different data: each is received from its own, and only there."""

import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
import threading

import pytest
import spead2

import speadrx
from handmade import AXIS_ID, SMALL, TIME_ID, encode, small_heap
from loopback import wait_for as wait_at_most
from network import Namespace, leave_out
from terminals import SPEADRX, environment

PORT = 7148
GROUP, GROUP_V6, ON_LINK = "239.9.8.7", "ff15::9:8:7", "ff12::9:8:7"
#: The interfaces of the receiver, with their addresses, and what of the layout's antennas comes in there.
ADDRESSES = {"in1": "10.11.0.2", "in2": "10.12.0.2"}
ANTENNAS = {"in1": 7, "in2": 5}
HEAPS = 20


def wait_for(condition):
    wait_at_most(condition, seconds=60)


class Links:
    """A sender and a receiver in namespaces, with two links between them."""

    def __init__(self, stack):
        self.sender, self.receiver = Namespace(), Namespace()
        stack.callback(self.sender.close)
        stack.callback(self.receiver.close)
        for name in ADDRESSES:
            self.lay(name)

    def lay(self, name):
        out, address = f"out-{name}", ADDRESSES[name]
        self.sender.run("ip", "link", "add", out, "type", "veth", "peer", "name", name, "netns", self.receiver.path)
        number = address.split(".")[1]
        for end, device, last in ((self.sender, out, 1), (self.receiver, name, 2)):
            end.run("ip", "link", "set", device, "addrgenmode", "none")
            end.run("ip", "address", "add", f"10.{number}.0.{last}/24", "dev", device)
            end.run("ip", "address", "add", f"fe80::{number}:{last}/64", "dev", device, "nodad")
            end.run("ip", "link", "set", device, "up")
        self.receiver.write(f"/proc/sys/net/ipv4/conf/{name}/rp_filter", "0")
        wait_for(lambda: self._is_up(self.sender, out) and self._is_up(self.receiver, name))

    @staticmethod
    def _is_up(end, device):
        return json.loads(end.run("ip", "-j", "link", "show", device))[0]["operstate"] == "UP"

    def send(self, group, name, heaps=HEAPS, first=0):
        """Send heaps over one of the links: those of its antenna."""
        family = socket.AF_INET6 if ":" in group else socket.AF_INET
        with self.sender.entered(), socket.socket(family, socket.SOCK_DGRAM) as sock:
            index = socket.if_nametoindex(f"out-{name}")
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            else:
                address = socket.inet_aton(ADDRESSES[name][:-1] + "1")
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, address)
            for i in range(first, first + heaps):
                sock.sendto(heap(i, ANTENNAS[name]), (group, PORT))

    @contextlib.contextmanager
    def traffic(self, group, *names):
        """Keep heaps coming over some of the links."""
        stop = threading.Event()

        def send():
            i = 0
            while not stop.wait(0.005):
                for name in names:
                    self.send(group, name, 1, i)
                i += 1

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def speadrx(self, *words, code):
        with self.receiver.entered():
            done = subprocess.run(
                [*SPEADRX, *words], capture_output=True, text=True, check=False, timeout=120, env=environment()
            )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout


def heap(i, antenna):
    changes = {TIME_ID: i * SMALL.time.step, AXIS_ID: antenna << 1}
    return encode(small_heap(changes, bytes([antenna, i % 256, 0, 0])), 2 * i + (antenna == 5), 48)[0]


@pytest.fixture
def links():
    if os.geteuid():
        leave_out("network namespaces can only be made by root")
    if shutil.which("ip") is None:
        leave_out("there is no ip (Debian: apt-get install iproute2)")
    with contextlib.ExitStack() as stack:
        try:
            made = Links(stack)
        except OSError as exc:
            leave_out(f"this machine cannot have the network that the test needs: {exc}")
        yield made


def written(interface, group):
    return f"{interface}/[{group}]:{PORT}" if ":" in group else f"{interface}/{group}:{PORT}"


KINDS = [(GROUP, dict(zip(ADDRESSES, ADDRESSES, strict=True))), (GROUP, ADDRESSES)]
KINDS += [(group, KINDS[0][1]) for group in (GROUP_V6, ON_LINK)]
IDS = ["by-name", "by-address", "ipv6", "ipv6-on-link"]


@contextlib.contextmanager
def receiving(links, *endpoints, **options):
    with links.receiver.entered():
        receiver = speadrx.Receiver(SMALL, list(endpoints), window=16, chunks=40, **options)
        receiver.start()
    try:
        yield receiver
    finally:
        receiver.stop()


def came(receiver):
    """The antennas and numbers of the heaps that came; each heap says both."""
    receiver.drain()
    found = []
    for chunk in receiver:
        with chunk:
            for batch, antenna in zip(*chunk.present[:, :, 0].nonzero(), strict=True):
                told = chunk.data[batch, antenna, 0].tolist()[:2]
                assert told == [(7, 3, 5)[antenna], chunk.timestamp // SMALL.time.step + batch]
                found.append(tuple(told))
    return sorted(found)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("group", "names"), KINDS, ids=IDS)
def test_both(links, group, names, threads):
    """The same group with different data at two interfaces: every heap comes once."""
    endpoints = [written(name, group) for name in names.values()]
    with receiving(links, *endpoints, threads=threads) as receiver:
        for name in names:
            links.send(group, name)
        wait_for(lambda: receiver.stats().placed == 2 * HEAPS)
        assert receiver.stats().packets == 2 * HEAPS
        assert came(receiver) == sorted((antenna, i) for antenna in ANTENNAS.values() for i in range(HEAPS))


@pytest.mark.parametrize("given", ["interface", "endpoint"])
@pytest.mark.parametrize("name", ADDRESSES)
@pytest.mark.parametrize("spelling", [str, ADDRESSES.get])
def test_one(links, given, name, spelling):
    """What comes to the group at another interface is not received, even if another program has joined it there."""
    (other,) = set(ADDRESSES) - {name}
    arguments = {
        "interface": ([f"{GROUP}:{PORT}"], {"interface": spelling(name)}),
        "endpoint": ([written(spelling(name), GROUP)], {}),
    }
    endpoints, options = arguments[given]
    with contextlib.ExitStack() as stack:
        with links.receiver.entered():
            witness = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            witness.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            witness.bind((GROUP, PORT))
            membership = socket.inet_aton(GROUP) + socket.inet_aton(ADDRESSES[other])
            witness.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        witness.settimeout(60)
        receiver = stack.enter_context(receiving(links, *endpoints, **options))
        links.send(GROUP, other)
        for _ in range(HEAPS):
            witness.recv(100)  # the kernel gives a packet to all sockets that it is for, one after the other
        links.send(GROUP, name)
        wait_for(lambda: receiver.stats().placed == HEAPS)
        assert receiver.stats().packets == HEAPS
        assert came(receiver) == [(ANTENNAS[name], i) for i in range(HEAPS)]


@pytest.mark.parametrize(("group", "names"), KINDS, ids=IDS)
def test_started_later(links, group, names):
    """spead2 makes the sockets of streams that have `explicit_start`."""
    data, free = (spead2.recv.ChunkRingbuffer(20) for _ in range(2))
    stream = speadrx.make_stream(
        layout=SMALL,
        max_active_chunks=8,
        data_ringbuffer=data,
        free_ringbuffer=free,
        explicit_start=True,
    )
    speadrx.ChunkPool(stream, 20)
    try:
        with links.receiver.entered():
            pairs = [(f"{name}/{group}", PORT) for name in names.values()]
            speadrx.add_reader(stream, src=pairs)
            stream.start()
        for n, name in enumerate(names, 1):
            links.send(group, name)
            wait_for(lambda n=n: stream.stats["packets"] >= n * HEAPS)
        links.send(group, "in1", 2 * HEAPS, HEAPS)  # they move the window on, so that chunks come out
        with next(speadrx.iter_chunks(stream)) as chunk:
            assert chunk.present[:, :, 0].sum(axis=0).tolist() == [SMALL.time.batches, 0, SMALL.time.batches]
        wait_for(lambda: stream.stats["packets"] >= 4 * HEAPS)
        assert stream.stats["packets"] == 4 * HEAPS
    finally:
        stream.stop()


@pytest.mark.parametrize("group", [GROUP, GROUP_V6])
def test_made_anew(links, caplog, group):
    """One of the interfaces goes away and comes back: the group is joined there again, and still only there."""
    caplog.set_level(logging.WARNING, "speadrx")

    def said(words):
        return any(record.getMessage().startswith(words) for record in caplog.records)

    with receiving(links, written("in1", group), written("in2", group)) as receiver:
        links.receiver.run("ip", "link", "delete", "in1")
        wait_for(lambda: said("interface in1 has gone away"))
        links.lay("in1")
        wait_for(lambda: said("interface in1 is back"))
        for name in ADDRESSES:
            links.send(group, name)
        wait_for(lambda: receiver.stats().placed == 2 * HEAPS)
        assert receiver.stats().packets == 2 * HEAPS


def test_names_of_what_the_kernel_drops(links):
    with receiving(links, written("in1", GROUP), written("in2", GROUP)) as receiver:
        (sockets,) = (stream._sockets for stream in receiver.stream._streams())
        assert list(sockets.counts()) == [f"in1/{GROUP}:{PORT}", f"in2/{GROUP}:{PORT}"]


@pytest.mark.slow
def test_inspect(links):
    pytest.importorskip("click")
    pytest.importorskip("rich")
    endpoints = f"{written('in1', GROUP)},{written('10.12.0.2', GROUP)}"
    with links.traffic(GROUP, *ADDRESSES):
        found = json.loads(links.speadrx("inspect", endpoints, "--packets", "200", "--seconds", "60", "--json", code=0))
        (stream,) = found["streams"]
        assert stream["heaps"] >= 100
        text = links.speadrx("inspect", written("in2", GROUP), "--packets", "40", "--seconds", "60", "--json", code=0)
        (stream,) = json.loads(text)["streams"]
        (item,) = [item for item in stream["items"] if item["id"] == AXIS_ID]
        assert (item["kind"], item["first"]) == ("constant", [ANTENNAS["in2"] << 1])


@pytest.mark.slow
def test_doctor(links):
    """It judges each endpoint by its own interface."""
    pytest.importorskip("click")
    pytest.importorskip("rich")
    one, two = written("in1", GROUP), written("in2", GROUP)
    with links.traffic(GROUP, "in1", "in2"):
        text = links.speadrx("doctor", one, two, "--seconds", "3", "--json", code=0)
        arrivals = [f for f in json.loads(text)["findings"] if f["check"] == "arrival"]
        assert {f["severity"] for f in arrivals} == {"ok"}
    with links.traffic(GROUP, "in1"):
        # Nothing comes in at in2. That it does at in1 is as it should be.
        findings = json.loads(links.speadrx("doctor", one, two, "--seconds", "3", "--json", code=1))["findings"]
        arrivals = {f["summary"].partition(" ")[0]: f for f in findings if f["check"] == "arrival"}
        assert arrivals[f"{one}:"]["severity"] == "ok"
        assert arrivals[f"{two}:"]["severity"] == "problem"
        assert "comes in at" not in arrivals[f"{two}:"]["summary"]
        # The wrong interface: the command that mends it has the right one.
        findings = json.loads(links.speadrx("doctor", two, "--seconds", "3", "--json", code=1))["findings"]
        (wrong,) = [f for f in findings if f["check"] == "interface" and f["severity"] == "problem"]
        assert wrong["summary"] == f"packets to {two} come in at in1, not at in2 (in2)"
        assert wrong["mend"] == [f"speadrx doctor 10.11.0.2/{GROUP}:{PORT}"]
        links.speadrx(*wrong["mend"][0].split()[1:], "--seconds", "3", code=0)
    findings = json.loads(links.speadrx("doctor", f"in3/{GROUP}:{PORT}", "--seconds", "0", "--json", code=1))[
        "findings"
    ]
    (wrong,) = [f for f in findings if f["check"] == "interface" and f["severity"] == "problem"]
    assert wrong["summary"].startswith("no interface has the name or address in3 (there are: ")
