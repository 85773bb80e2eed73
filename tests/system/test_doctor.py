"""`speadrx doctor` in networks that are wrong on purpose: it names what is wrong, and what it says to do mends it."""

import contextlib
import ctypes
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from loopback import wait_for
from network import Namespace, leave_out
from receiving import assert_data, receiver
from speadrx import Axis, Layout, TimeAxis, add_reader
from speadrx.doctor import Case, diagnose
from speadrx.simulate import Simulator, UdpSink
from terminals import SPEADRX, environment

pytest.importorskip("click")
pytest.importorskip("rich")

GROUP, PORT = "239.1.2.3", 7148
ENDPOINT = f"{GROUP}:{PORT}"
#: Addresses of the sender and the receiver on two wires, and one of the sender's that is far away.
SENDER, RECEIVER = "10.1.0.1", "10.1.0.2"
OTHER_SENDER, OTHER = "10.3.0.1", "10.3.0.2"
FAR_SENDER = "10.9.0.1"
LAYOUT = Layout(
    heap_bytes=4096,
    time=TimeAxis(item=0x1600, step=4096, batches=2),
    axes=(Axis(name="antenna", item=0x4101, size=2),),
    sources="antenna",
)
HEAPS = 128
PACKET_SIZE = 4200  # of a heap with its header, and a little more
RMEM_MAX = "/proc/sys/net/core/rmem_max"
CAP_NET_ADMIN = 12


class Wires:
    """A sender and a receiver in namespaces, with a wire or two between them."""

    def __init__(self, stack):
        self.sender, self.receiver = Namespace(), Namespace()
        stack.callback(self.sender.close)
        stack.callback(self.receiver.close)
        for name in ("all", "default"):
            self.receiver.write(f"/proc/sys/net/ipv4/conf/{name}/rp_filter", "0")
        self.lay("out", SENDER, "in", RECEIVER)
        self.sender.run("ip", "address", "add", f"{FAR_SENDER}/32", "dev", "out")

    def lay(self, out, sender, name, receiver):
        self.sender.run("ip", "link", "add", out, "type", "veth", "peer", "name", name, "netns", self.receiver.path)
        for namespace, device, address in ((self.sender, out, sender), (self.receiver, name, receiver)):
            namespace.run("ip", "link", "set", device, "addrgenmode", "none", "mtu", "9000", "up")
            namespace.run("ip", "address", "add", f"{address}/24", "dev", device)

    def sysctl(self, name, value):
        self.receiver.write("/proc/sys/" + name.replace(".", "/"), str(value))

    def came(self, device="in"):
        """Packets that have come to an interface, and were let in or not."""
        for line in self.receiver.read("/proc/thread-self/net/dev").splitlines():
            name, _, numbers = line.partition(":")
            if name.strip() == device:
                return sum(int(numbers.split()[i]) for i in (1, 3))
        raise AssertionError(f"there is no {device}")

    def carries(self):
        """Whether the wire carries packets: some time after both of its ends are up. Before that they are lost."""
        return json.loads(self.sender.run("ip", "-json", "link", "show", "out"))[0]["operstate"] == "UP"

    @contextlib.contextmanager
    def sink(self, source=SENDER):
        wait_for(self.carries)
        with self.sender.entered():
            sink = UdpSink([(GROUP, PORT)], interface=source, segment=False)
        with sink:
            yield sink

    @contextlib.contextmanager
    def traffic(self, source=SENDER):
        """Keep packets coming, of no particular content."""
        stop = threading.Event()
        with self.sink(source) as sink:

            def send():
                while not stop.wait(0.005):
                    sink.send(0, bytes(PACKET_SIZE))

            thread = threading.Thread(target=send)
            thread.start()
            try:
                yield
            finally:
                stop.set()
                thread.join()


@pytest.fixture
def wires():
    if os.geteuid():
        leave_out("network namespaces can only be made by root")
    for program in ("ip", "setpriv", "nft"):
        if shutil.which(program) is None:
            leave_out(f"there is no {program} (Debian: apt-get install iproute2 util-linux nftables)")
    with contextlib.ExitStack() as stack:
        try:
            made = Wires(stack)
        except OSError as exc:
            leave_out(f"this machine cannot have the network that the test needs: {exc}")
        yield made


@contextlib.contextmanager
def without_net_admin():
    """Take CAP_NET_ADMIN from this thread for a while."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    old, new = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    for data in (old, new):
        assert libc.capget(header, data) == 0
    new[0] &= ~(1 << CAP_NET_ADMIN)  # of those in effect; it stays among those that may be
    assert libc.capset(header, new) == 0
    try:
        yield
    finally:
        assert libc.capset(header, old) == 0


def receive(wires, interface=None, source=SENDER, heaps=HEAPS):
    """Send heaps to a real receiver: return how many of them it has, or why it cannot receive."""
    simulator = Simulator(LAYOUT, max_packet_size=PACKET_SIZE)
    with receiver(LAYOUT, window=2) as rx, wires.sink(source) as sink:
        try:
            with wires.receiver.entered():
                add_reader(rx.stream, src=[(GROUP, PORT)], interface=interface)
        except OSError as exc:
            return os.strerror(exc.errno)
        before = wires.came()
        simulator.send(sink, heaps // 2)
        wait_for(lambda: wires.came() - before >= heaps)
        # The queue is read first, so that this waits for what has come, and for nothing else.
        rx.stream.drain()
        rx.wait()
        assert_data(rx, [simulator])
        return rx.iterator.accounting.present


def doctor(wires, *args, code, prefix=()):
    """Run it in the receiver's namespace; return what it prints, by paragraph: severity, check, text, commands."""
    command = [*prefix, *SPEADRX, "doctor", ENDPOINT, "--buffer", str(2**21), "--listen", "1", *args]
    with wires.receiver.entered():
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment())
    assert done.stderr == ""
    assert done.returncode == code, done.stdout
    found = []
    for paragraph in done.stdout.split("\n\n")[:-1]:
        lines = paragraph.splitlines()
        commands = [line.strip() for line in lines if line.startswith("    ")]
        text = " ".join(line.strip() for line in lines if not line.startswith("    "))
        severity, check, text = re.fullmatch(r"(\w+) (\w+): (.*)", text).groups()
        found.append((severity, check, text, commands))
    return found


def problems(findings):
    return {check: (text, commands) for severity, check, text, commands in findings if severity == "problem"}


def mend(wires, findings, *checks):
    """Run the commands of some checks in the receiver's namespace."""
    for check in checks:
        _, commands = problems(findings)[check]
        assert commands
        for command in commands:
            wires.receiver.run("sh", "-c", command)


@pytest.mark.parametrize("interface", [RECEIVER, "in"])
def test_nothing_is_wrong(wires, interface):
    assert receive(wires, RECEIVER) == HEAPS
    with wires.traffic():
        found = doctor(wires, "--interface", interface, "--sender", SENDER, "--packet-size", "4200", "--all", code=0)
    assert problems(found) == {}
    # All could be checked.
    assert {check for severity, check, _, _ in found if severity == "unknown"} <= {"backlog", "numa"}
    assert any(check == "arrival" and re.search(r"7148: [1-9]\d* packets in 1 s", text) for _, check, text, _ in found)


def test_small_buffer(wires):
    """Packets that come while the receiver is held up are lost, but for those that fit its buffer."""

    def receive_after_pause():
        simulator = Simulator(LAYOUT, max_packet_size=PACKET_SIZE)
        with receiver(LAYOUT, window=2, pool=4) as rx, wires.sink() as sink:
            with wires.receiver.entered(), without_net_admin():
                add_reader(rx.stream, src=[(GROUP, PORT)], interface=RECEIVER, buffer=2**21)
            before = wires.came()
            with rx.pause():
                simulator.send(sink, HEAPS // 2)
                wait_for(lambda: wires.came() - before >= HEAPS)
            wait_for(lambda: rx.stat("packets") + rx.stream.kernel_drops() == HEAPS)
            rx.stream.drain()
            rx.wait()
            return rx.iterator.accounting.present, rx.stream.kernel_drops()

    def examine(code):
        others = ["setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin"]
        with wires.traffic():
            return doctor(wires, "--interface", RECEIVER, code=code, prefix=others)

    with open(RMEM_MAX, encoding="ascii") as file:
        limit = file.read()
    try:
        with open(RMEM_MAX, "w", encoding="ascii") as file:
            file.write("65536")
        present, drops = receive_after_pause()
        assert drops > 0
        assert present <= HEAPS - drops
        found = examine(1)
        text, commands = problems(found)["socket_buffer"]
        assert "asks for 2097152 bytes and gets 65536: net.core.rmem_max is 65536" in text
        assert problems(found).keys() == {"socket_buffer"}
        # The limit is that of the machine, and of no namespace.
        for command in commands:
            subprocess.run(["sh", "-c", command], check=True, capture_output=True, timeout=60)
        assert receive_after_pause() == (HEAPS, 0)
        assert problems(examine(0)) == {}
    finally:
        with open(RMEM_MAX, "w", encoding="ascii") as file:
            file.write(limit)


@pytest.mark.parametrize("links", [1, 2])
def test_no_multicast_route(wires, links):
    """Without an interface and a route, no group can be joined; packets tell which of two interfaces is the one."""
    if links == 2:
        wires.lay("out2", OTHER_SENDER, "another", OTHER)
    assert receive(wires) == "No such device"
    with wires.traffic():
        found = doctor(wires, code=1)
    text, commands = problems(found)["multicast_route"]
    assert f"there is no route to {GROUP}" in text
    assert commands == [f"ip route replace {GROUP}/32 dev in"]
    assert problems(found).keys() == {"arrival", "multicast_route"}
    mend(wires, found, "multicast_route")
    assert receive(wires) == HEAPS
    with wires.traffic():
        assert problems(doctor(wires, code=0)) == {}


def test_route_by_the_wrong_interface(wires):
    wires.lay("out2", OTHER_SENDER, "another", OTHER)
    wires.receiver.run("ip", "route", "add", "239.0.0.0/8", "dev", "another")
    assert receive(wires) == 0
    with wires.traffic():
        found = doctor(wires, code=1)
    text, _ = problems(found)["multicast_route"]
    assert f"the route to {GROUP} uses another, but packets come in at in" in text
    mend(wires, found, "multicast_route")
    assert receive(wires) == HEAPS
    with wires.traffic():
        assert problems(doctor(wires, code=0)) == {}


@pytest.mark.parametrize("wrong", [OTHER, "10.1.0.77"])
def test_wrong_interface(wires, wrong):
    """The receiver is given another interface than that by which packets come in, or one that is not there."""
    wires.lay("out2", OTHER_SENDER, "another", OTHER)
    assert receive(wires, wrong) == (0 if wrong == OTHER else "No such device")
    with wires.traffic():
        found = doctor(wires, "--interface", wrong, code=1)
    text, (command,) = problems(found)["interface"]
    assert wrong in text
    # What mends it is an argument of the receiver.
    assert command == f"speadrx doctor {ENDPOINT} --interface {RECEIVER}"
    assert receive(wires, command.split()[-1]) == HEAPS
    with wires.traffic():
        assert problems(doctor(wires, *command.split()[-2:], code=0)) == {}
        wires.receiver.run("sh", "-c", shell_line(command))


def shell_line(command):
    """The command, with speadrx as it is run here."""
    return command.replace("speadrx", f"{sys.executable} -m speadrx.cli", 1)


@pytest.mark.parametrize("args", [[], ["--sender", FAR_SENDER], ["--sender", FAR_SENDER, "--listen", "0"]])
@pytest.mark.parametrize("where", ["all", "in"])
def test_strict_reverse_path(wires, args, where):
    """The route to the sender goes by another interface than the one by which its packets come in."""
    wires.lay("out2", OTHER_SENDER, "another", OTHER)
    wires.receiver.run("ip", "route", "add", f"{FAR_SENDER}/32", "dev", "another")
    wires.sysctl(f"net.ipv4.conf.{where}.rp_filter", 1)
    assert receive(wires, RECEIVER, FAR_SENDER) == 0
    args = ["--interface", RECEIVER, *args]
    with wires.traffic(FAR_SENDER):
        found = doctor(wires, *args, code=1)
    text, commands = problems(found)["rp_filter"]
    assert f"1 on in drops packets from {FAR_SENDER}: the route to it uses another" in text
    assert commands == ["sysctl -w net.ipv4.conf.in.rp_filter=2"]
    if "0" not in args:
        # It is the first that is named after how far packets get.
        assert [check for _, check, _, _ in found][:2] == ["arrival", "rp_filter"]
        assert "nothing at the socket" in found[0][2]
    mend(wires, found, "rp_filter")
    assert receive(wires, RECEIVER, FAR_SENDER) == HEAPS
    with wires.traffic(FAR_SENDER):
        assert problems(doctor(wires, *args, code=0)) == {}


def test_strict_reverse_path_of_a_vlan(wires):
    """A dot in the name of an interface is none that separates."""
    for command in ("down", "name in.5", "up"):
        wires.receiver.run("ip", "link", "set", "in" if command != "up" else "in.5", *command.split())
    wires.lay("out2", OTHER_SENDER, "another", OTHER)
    wires.receiver.run("ip", "route", "add", f"{FAR_SENDER}/32", "dev", "another")
    wires.sysctl("net.ipv4.conf.all.rp_filter", 1)
    args = ["--interface", RECEIVER, "--sender", FAR_SENDER]
    with wires.traffic(FAR_SENDER):
        found = doctor(wires, *args, code=1)
        mend(wires, found, "rp_filter")
        assert problems(doctor(wires, *args, code=0)) == {}


@pytest.mark.parametrize("mode", [1, 2])
def test_no_route_back(wires, mode):
    """Without any route to the sender, its packets are dropped in either mode."""
    wires.sysctl("net.ipv4.conf.all.rp_filter", mode)
    assert receive(wires, RECEIVER, FAR_SENDER) == 0
    with wires.traffic(FAR_SENDER):
        found = doctor(wires, "--interface", RECEIVER, code=1)
    assert f"{mode} on in drops packets from {FAR_SENDER}: there is no route to it" in problems(found)["rp_filter"][0]
    mend(wires, found, "rp_filter")
    assert receive(wires, RECEIVER, FAR_SENDER) == HEAPS
    with wires.traffic(FAR_SENDER):
        assert problems(doctor(wires, "--interface", RECEIVER, code=0)) == {}


def test_one_of_two_senders_is_dropped(wires):
    """Packets of the other come, and do not hide it."""
    wires.sysctl("net.ipv4.conf.all.rp_filter", 1)
    with wires.traffic(), wires.traffic(FAR_SENDER):
        found = doctor(wires, "--interface", RECEIVER, code=1)
    assert re.search(
        rf"7148: \d+ packets in 1 s, but none of \d+ packets from {FAR_SENDER}", problems(found)["arrival"][0]
    )
    assert "rp_filter" in problems(found)
    mend(wires, found, "rp_filter")
    with wires.traffic(), wires.traffic(FAR_SENDER):
        assert problems(doctor(wires, "--interface", RECEIVER, code=0)) == {}


def test_small_mtu(wires):
    """Packets that are larger than the interface's MTU do not come in."""
    wires.receiver.run("ip", "link", "set", "in", "mtu", "1500")
    assert receive(wires, RECEIVER) == 0
    args = ["--interface", RECEIVER, "--packet-size", str(PACKET_SIZE)]
    with wires.traffic():
        found = doctor(wires, *args, code=1)
    text, _ = problems(found)["mtu"]
    assert f"MTU 1500 of in is too small: {PACKET_SIZE} bytes of payload need {PACKET_SIZE + 28}" in text
    assert [check for _, check, _, _ in found][:2] == ["arrival", "mtu"]
    mend(wires, found, "mtu")
    assert receive(wires, RECEIVER) == HEAPS
    with wires.traffic():
        assert problems(doctor(wires, *args, code=0)) == {}


def test_small_mtu_without_packet_size(wires):
    """What the interface drops while nothing comes in gives it away."""
    wires.receiver.run("ip", "link", "set", "in", "mtu", "1500")
    with wires.traffic():
        found = doctor(wires, "--interface", RECEIVER, code=1)
    assert problems(found).keys() == {"arrival"}
    ((text, commands),) = [(text, commands) for severity, check, text, commands in found if check == "mtu"]
    assert re.match(r"in \(MTU 1500\) dropped \d+ packets, perhaps because they have more than 1472 bytes", text)
    for command in commands:
        wires.receiver.run("sh", "-c", command)
    assert receive(wires, RECEIVER) == HEAPS


def test_small_mtu_for_heaps(wires):
    """The layout alone tells only that packets may be too large."""
    case = Case(((GROUP, PORT),), interface=RECEIVER, layout=LAYOUT)
    for mtu, severity in ((1500, "warning"), (9000, "ok")):
        wires.receiver.run("ip", "link", "set", "in", "mtu", str(mtu))
        with wires.receiver.entered():
            found = [finding for finding in diagnose(replace(case)) if finding.check == "mtu"]
        assert [finding.severity for finding in found] == [severity]


def test_two_problems(wires):
    """Neither hides the other, and with one of them mended there is still nothing."""
    wires.lay("out2", OTHER_SENDER, "another", OTHER)
    wires.receiver.run("ip", "route", "add", f"{FAR_SENDER}/32", "dev", "another")
    wires.sysctl("net.ipv4.conf.in.rp_filter", 1)
    wires.receiver.run("ip", "link", "set", "in", "mtu", "1500")
    args = ["--interface", RECEIVER, "--packet-size", str(PACKET_SIZE), "--sender", FAR_SENDER]
    with wires.traffic(FAR_SENDER):
        found = doctor(wires, *args, code=1)
    assert problems(found).keys() == {"arrival", "mtu", "rp_filter"}
    mend(wires, found, "mtu")
    assert receive(wires, RECEIVER, FAR_SENDER) == 0
    mend(wires, found, "rp_filter")
    assert receive(wires, RECEIVER, FAR_SENDER) == HEAPS
    with wires.traffic(FAR_SENDER):
        assert problems(doctor(wires, *args, code=0)) == {}


FIREWALLS = {
    "rule": f"""
        chain input {{
            type filter hook input priority 0
            udp dport {{ 1-5, {PORT} }} counter drop
        }}
    """,
    "policy": """
        chain input {
            type filter hook input priority 0; policy drop
            iifname "lo" accept
            tcp dport 22 accept
        }
    """,
    "jump": f"""
        chain others {{
            ip daddr 239.0.0.0/8 udp dport != {PORT + 1} reject
        }}
        chain input {{
            type filter hook input priority 0
            ct state established accept
            jump others
            accept
        }}
    """,
    "early": """
        chain early {
            type filter hook prerouting priority -300
            meta l4proto udp drop
        }
    """,
}


@pytest.mark.parametrize("kind", FIREWALLS)
def test_firewall(wires, kind):
    wires.receiver.run("nft", "-f", "-", stdin=f"table inet wall {{\n{FIREWALLS[kind]}\n}}\n")
    assert receive(wires, RECEIVER) == 0
    with wires.traffic():
        found = doctor(wires, "--interface", RECEIVER, code=1)
    assert [check for _, check, _, _ in found][:2] == ["arrival", "firewall"]
    assert "drops UDP to port 7148" in problems(found)["firewall"][0]
    mend(wires, found, "firewall")
    assert receive(wires, RECEIVER) == HEAPS
    with wires.traffic():
        assert problems(doctor(wires, "--interface", RECEIVER, code=0)) == {}


def test_interface_is_down(wires):
    wires.receiver.run("ip", "link", "set", "in", "down")
    found = doctor(wires, "--interface", RECEIVER, "--listen", "0", code=1)
    assert "in is down" in problems(found)["interface"][0]
    mend(wires, found, "interface")
    assert receive(wires, RECEIVER) == HEAPS


def test_without_rights(wires):
    """Less is known then, and it says so; nothing else changes."""
    nothing = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]
    with wires.traffic():
        found = doctor(wires, "--interface", RECEIVER, code=0, prefix=nothing)
        assert any(severity == "unknown" and check == "firewall" for severity, check, _, _ in found)
    wires.sysctl("net.ipv4.conf.in.rp_filter", 1)
    with wires.traffic(FAR_SENDER):
        found = doctor(wires, "--interface", RECEIVER, code=1, prefix=nothing)
    assert "Run this as root to see" in problems(found)["arrival"][0]
    assert re.search(r"1 on in: it dropped \d+ packets while listening", problems(found)["rp_filter"][0])


def test_port_of_another_process(wires):
    """It names the process that has a unicast port, and how many packets that has lost."""
    with wires.receiver.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind((RECEIVER, PORT))
        command = [*SPEADRX, "doctor", f"{RECEIVER}:{PORT}", "--json", "--listen", "0.2"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment())
    findings = json.loads(done.stdout)["findings"]
    (finding,) = [finding for finding in findings if finding["check"] == "port"]
    assert f"(process {os.getpid()})" in finding["summary"]
    assert finding["severity"] == "warning"
