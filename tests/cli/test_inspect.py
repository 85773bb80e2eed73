"""`speadrx inspect` as its users run it: on captures and on the network, in terminals, through pipes, interrupted."""

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import threading

import numpy as np
import pytest

from addresses import GROUP_PREFIX

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("dpkt")

from loopback import is_bound, wait_for, wait_for_delivery
from receiving import receiver
from speadrx import Axis, Layout, TimeAxis, add_reader
from speadrx.simulate import GARBAGE_KINDS, Faults, PcapSink, Simulator, UdpSink
from terminals import SPEADRX, Terminal, environment, piped, run, run_here

LAYOUT = Layout(
    heap_bytes=1024,
    time=TimeAxis(item=0x1600, step=2048, batches=64),
    axes=(Axis(name="antenna", item=0x4101, size=4),),
    sources="antenna",
)
FAULTS = Faults(loss=0.05, reorder=20, duplicate=0.05, garbage=0.1, garbage_kinds=tuple(GARBAGE_KINDS))
FIRST = 2**20 * LAYOUT.chunk_timestamp_step


def simulator(layout=LAYOUT, faults=FAULTS, **kwargs):
    first = 2**20 * layout.chunk_timestamp_step
    return Simulator(layout, faults=faults, first_timestamp=first, max_packet_size=9000, **kwargs)


@pytest.fixture
def capture(tmp_path):
    path = tmp_path / "sent.pcap"
    with PcapSink(path) as sink:
        simulator().send(sink, 300)
    return path


@pytest.mark.slow
def test_end_to_end(tmp_path):
    """Of a capture with all faults, a stream with the proposed layout gets exactly what was sent."""
    path, output = tmp_path / "sent.pcap", tmp_path / "layout.toml"
    sim = simulator()
    with PcapSink(path) as sink:
        truth = sim.send(sink, 2**14)
    result = subprocess.run(
        [*SPEADRX, "inspect", str(path), "-o", str(output)], capture_output=True, text=True, env=environment()
    )
    assert (result.returncode, result.stderr) == (0, f"Wrote {output}\n")
    layout = Layout.from_toml(output)
    assert 2**14 % layout.time.batches == 0  # chunks are whole
    assert FIRST % layout.chunk_timestamp_step == 0
    with receiver(layout) as rx:
        add_reader(rx.stream, src=path)
        chunks = rx.wait()
        accounting = rx.iterator.accounting
        ledger = rx.stream.ledger.snapshot()
        np.testing.assert_array_equal(accounting.present_by_source, truth.complete)
        np.testing.assert_array_equal(accounting.missing_by_source, truth.lost)
        np.testing.assert_array_equal(ledger.duplicates_by_source, truth.duplicated)
        assert rx.stat("too_old_heaps") == 0
        (feed,) = rx.stream._socket_sets[0].feeds
    rejected = {reason: n for reason, n in ledger.rejected.items() if n}
    # Heaps without the payload item (each a packet) do not come so far.
    rejected["metadata_heaps"] += feed.unused["no_payload_item"] + feed.unused.get("stream_control", 0)
    assert rejected == truth.rejected
    assert min(truth.rejected.values()) > 100
    for chunk in chunks[::7]:
        n = layout.chunk_timestamp_step // LAYOUT.chunk_timestamp_step
        parts = [sim.chunk_data(chunk.timestamp + i * LAYOUT.chunk_timestamp_step) for i in range(n)]
        np.testing.assert_array_equal(chunk.data[chunk.present], np.concatenate(parts)[chunk.present])


def test_screen(capture):
    """What is printed to a pipe: plain text of at most 80 columns."""
    output = run("inspect", str(capture))
    assert "\x1b" not in output
    assert "…" not in output
    assert max(map(len, output.splitlines()[1:])) <= 80
    for pattern in (
        r"sent\.pcap: [\d,]+ packets, [\d,]+ bytes in 0\.\d+ s: \S+ Mpackets/s, \S+ Gb/s",
        r"packets not decoded: not SPEAD",
        r"heaps; \d+ without a length; \d+ of length 0; \d+ with a stop item; \d+ with only descriptors",
    ):
        assert re.search(pattern, " ".join(output.split())), pattern
    for pattern in (
        r"Heap lengths \(number of heaps\): 1,024 \([\d,]+\)",
        r"10\.1\.2\.3:7148 +[\d,]+",
        r"239\.1\.2\.3:7148 +[\d,]+",
        r"Stream 1: [\d,]+ heaps of 1,024 bytes, SPEAD-64-48, to 239\.1\.2\.3:7148",
        r"0x1600 +timestamp +time-like +\d+ +2048 +\d+",
        r"0x4101 +feng_id +few values +\d +1 +0 +\d",
        r"0x3300 +data +payload",
        r"    item = 0x1600\n    step = 2048",
        r'    name = "antenna"\n    item = 0x4101\n    size = 4',
        r"- axis antenna: item 0x4101 tells heaps of the same time apart; 4 values from 0\.",
    ):
        assert re.search(pattern, output), pattern


@pytest.mark.parametrize("columns", [80, pytest.param(200, marks=pytest.mark.slow)])
def test_terminal(capture, columns):
    terminal = Terminal("inspect", str(capture), columns=columns, rows=60)
    try:
        assert terminal.wait() == 0
        text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", terminal.output)
        assert "…" not in text
        assert ("  first" in text) == (columns == 200)
        assert all(len(line) <= columns for line in re.split("[\r\n]+", text))
    finally:
        terminal.close()


def test_progress_of_a_file(tmp_path):
    """Only in a terminal, on standard error."""
    path = tmp_path / "long.pcap"
    with PcapSink(path) as sink:
        simulator(faults=None).send(sink, 5000)
    terminal = Terminal("inspect", str(path), columns=80, rows=60)
    try:
        assert terminal.wait() == 0
        assert "Reading" in terminal.output
    finally:
        terminal.close()


def test_json(capture):
    document = json.loads(run("inspect", str(capture), "--json"))
    sim = simulator()
    packets = list(sim.packets(300))
    assert document["packets"] == len(packets)
    assert document["bytes"] == sim.truth.bytes
    assert document["undecodable"].keys() <= {"not SPEAD", "shorter than a header"}
    assert document["unsized"] == sim.truth.unseen["unsized"]
    assert document["kernel_drops"] is None
    assert document["senders"][0]["address"] == "10.1.2.3:7148"
    (stream,) = document["streams"]
    assert stream["flavour"] == "64-48"
    assert [(item["id"], item["name"], item["immediate"]) for item in stream["items"]] == [
        (0x1600, "timestamp", True),
        (0x4101, "feng_id", True),
        (0x3300, "data", False),
    ]
    assert (stream["items"][0]["kind"], stream["items"][0]["step"]) == ("time-like", 2048)
    assert stream["proposal"]["obstacle"] is None
    assert run("inspect", str(capture), "--json", "--packets", "10").startswith("{")


def test_toml_alone(capture, tmp_path):
    """Comments say why; the rest is a layout."""
    text = run("inspect", str(capture), "--toml")
    path = tmp_path / "layout.toml"
    path.write_text(text, "utf-8")
    assert Layout.from_toml(path).axes[0].item == 0x4101
    comment = text.partition("heap_bytes:")[0].replace("-\n#   ", "-")  # however it was wrapped
    assert comment.startswith(f"# Proposed by speadrx inspect for {capture}")


def test_output_is_kept(capture, tmp_path):
    path = tmp_path / "layout.toml"
    path.write_text("precious", "utf-8")
    assert f"{path} exists: use --force to overwrite it" in run("inspect", str(capture), "-o", str(path), code=2)
    assert path.read_text("utf-8") == "precious"
    result = subprocess.run([*SPEADRX, "inspect", str(capture), "-o", str(path), "--force"], env=environment())
    assert result.returncode == 0
    assert Layout.from_toml(path).heap_bytes == 1024


def test_several_streams(tmp_path):
    """Other lengths and items at another destination make another stream; one is to be chosen."""
    other = Layout(heap_bytes=512, time=TimeAxis(item=0x50, step=7, batches=4))
    first, second, both = (tmp_path / name for name in ("first", "second", "both"))
    with PcapSink(first) as sink:
        simulator().send(sink, 100)
    with PcapSink(second, endpoint=("239.1.2.9", 7150), source=("10.9.9.9", 1000)) as sink:
        simulator(other, faults=None).send(sink, 100)
    both.write_bytes(first.read_bytes() + second.read_bytes()[24:])
    output = run("inspect", str(both))
    assert "Stream 1: " in output
    assert "Stream 2: 100 heaps of 512 bytes" in output
    error = run("inspect", str(both), "--toml", code=2)
    assert re.search(r"there are 2 streams \(1: \d+ heaps of 1,024 bytes; 2: 100 heaps of 512 bytes\)", error)
    assert "item = 0x50\nstep = 7" in run("inspect", str(both), "--toml", "--stream", "2")
    assert "Stream 1" not in run("inspect", str(both), "--stream", "2")
    assert "3: there are only streams 1 to 2" in " ".join(run("inspect", str(both), "--stream", "3", code=2).split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/"], "Error: / cannot be read: Is a directory"),
        (["nonsense"], "'nonsense' is neither a file nor a list of endpoints, such as"),
        (["127.0.0.1:0"], "has port 0"),
        (["239.1.2.3:7148", "--interface", "here"], "'here' is neither the name nor the IPv4 address of an interface"),
        (["192.0.2.1:7148"], "Error: cannot receive on 192.0.2.1:7148: Cannot assign requested address"),
        (["127.0.0.1:7148", "--seconds", "0"], "--seconds"),
        (["127.0.0.1:7148", "--seconds", "nan"], "--seconds"),
        (["127.0.0.1:7148", "--packets", "0"], "--packets"),
        (["127.0.0.1:7148", "--toml", "--json"], "give either --toml or --json"),
    ],
)
def test_wrong_usage(arguments, message):
    assert message in " ".join(run_here("inspect", *arguments, code=2).split())


@pytest.mark.parametrize("content", [b"", b"just text", struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)[:4]])
def test_bad_file(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    code = 1 if content[:1] == b"\xd4" else 2
    result = subprocess.run([*SPEADRX, "inspect", str(path)], capture_output=True, text=True, env=environment())
    assert result.returncode == code
    assert str(path) in result.stderr
    assert "Traceback" not in result.stderr


def test_many_streams(tmp_path, rng):
    """Garbage of many kinds does not fill the screen."""
    path = tmp_path / "kinds.pcap"
    with PcapSink(path) as sink:
        for n, item in enumerate(rng.permutation(2000)[:30]):
            pointers = [1 << 48 | n, 2 << 48 | 8, 3 << 48, 4 << 48 | 8, (int(item) + 7) << 48]
            sink.send(0, struct.pack(">BBBBHH5Q", 0x53, 4, 2, 6, 0, 5, *(1 << 63 | p for p in pointers)) + bytes(8))
    result = subprocess.run([*SPEADRX, "inspect", str(path)], capture_output=True, text=True, env=environment())
    assert (result.returncode, result.stderr) == (1, "")
    assert re.findall(r"^Stream (\d+)", result.stdout, re.MULTILINE) == [str(n) for n in range(1, 11)]
    assert result.stdout.endswith("... and 20 more streams (--stream N shows one)\n")
    error = " ".join(run("inspect", str(path), "--toml", code=2).split())
    assert "10: 1 heap of 8 bytes and 20 more); choose one" in error


def test_standard_input(capture):
    command = [*SPEADRX, "inspect", "-", "--toml"]
    with capture.open("rb") as file:
        output = subprocess.check_output(command, stdin=file, text=True, env=environment())
    assert "Proposed by speadrx inspect for /dev/stdin." in output
    # The name of the file, which may be wrapped, comes first.
    assert output.partition("# heap_bytes")[2] == run("inspect", str(capture), "--toml").partition("# heap_bytes")[2]


def test_damaged_file(capture, tmp_path):
    """What comes before the damage is looked at, and the damage is told."""
    damaged = tmp_path / "damaged.pcap"
    damaged.write_bytes(capture.read_bytes() + b"\xff" * 100)
    whole, output = run("inspect", str(capture)), run("inspect", str(damaged))
    assert f"{damaged} is damaged: the header before byte {capture.stat().st_size + 16} gives" in " ".join(
        output.split()
    )
    assert whole.partition("sender")[2] == output.partition("sender")[2]
    document = json.loads(run("inspect", str(damaged), "--json"))
    assert "gives the length 4294967295" in document["damage"]
    damaged.write_bytes(capture.read_bytes()[:24] + b"\xff" * 100)
    assert "is damaged" in run("inspect", str(damaged), code=2)


def test_interface_of_a_file(capture):
    error = run("inspect", str(capture), "--interface", "127.0.0.1", code=2)
    assert "is a file, which has no interface" in " ".join(error.split())


def test_garbage_alone(tmp_path, rng):
    """Packets that are no SPEAD: counted, and the exit code says that nothing was found."""
    path = tmp_path / "garbage.pcap"
    with PcapSink(path) as sink:
        for _ in range(200):
            sink.send(0, rng.bytes(rng.integers(0, 200)))
        for _ in range(200):
            sink.send(0, b"S\x04\x02\x06\0\0" + rng.bytes(rng.integers(2, 200)))
    result = subprocess.run([*SPEADRX, "inspect", str(path)], capture_output=True, text=True, env=environment())
    assert (result.returncode, "Traceback" in result.stderr) == (1, False)
    assert "400 packets, but no heaps that a layout could place" in result.stderr
    assert "packets not decoded: not SPEAD" in result.stdout


def test_no_proposal(tmp_path):
    """Of one time there is no step; the exit code is 1, and nothing is written."""
    path, output = tmp_path / "short.pcap", tmp_path / "layout.toml"
    with PcapSink(path) as sink:
        simulator(faults=None).send(sink, 1)
    for arguments in ([], ["-o", str(output)]):
        result = subprocess.run(
            [*SPEADRX, "inspect", str(path), *arguments], capture_output=True, text=True, env=environment()
        )
        assert result.returncode == 1
        assert "all heaps together have only 1 time (item 0x1600)" in " ".join(result.stdout.split())
    assert not output.exists()


def test_cut_short(capture, tmp_path):
    """Headers are enough to learn from."""
    data, short = capture.read_bytes(), bytearray(capture.read_bytes()[:24])
    offset = 24
    while offset < len(data):
        (length,) = struct.unpack_from("<I", data, offset + 8)
        kept = min(length, 160)
        short += data[offset : offset + 8] + struct.pack("<II", kept, length)
        short += data[offset + 16 : offset + 16 + kept]
        offset += 16 + length
    path = tmp_path / "short.pcap"
    path.write_bytes(short)
    output = run("inspect", str(path))
    assert "packets cut short by the capture" in output
    assert 'name = "antenna"' in output


@contextlib.contextmanager
def sending(sink):
    """Send heaps until the end of the block, gently."""
    end = threading.Event()

    def send():
        sim = simulator(faults=None)
        while not end.is_set():
            sim.send(sink, 16)
            end.wait(0.005)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def finish(process):
    output, errors = process.communicate(timeout=60)
    assert errors == ""
    return output


class TestLive:
    """Packets from the network."""

    def test_unicast(self, udp_port):
        endpoint = ("127.0.0.1", udp_port)
        arguments = [f"127.0.0.1:{udp_port}", "--packets", "400", "--seconds", "60", "--json"]
        with UdpSink([endpoint]) as sink, sending(sink), piped("inspect", *arguments) as process:
            document = json.loads(finish(process))
            assert process.returncode == 0
        assert document["packets"] == 400
        assert document["live"]
        assert document["seconds"] > 0
        assert document["destinations"] == [{**document["destinations"][0], "address": f"127.0.0.1:{udp_port}"}]
        assert document["streams"][0]["proposal"]["obstacle"] is None

    def test_multicast(self, udp_port):
        """Two groups, joined on the loopback interface."""
        groups = [(f"{GROUP_PREFIX}{i}", udp_port) for i in (60, 61)]
        with UdpSink(groups, interface="127.0.0.1", ttl=0) as sink, sending(sink):
            arguments = [f"{GROUP_PREFIX}60+1:{udp_port}", "--interface", "127.0.0.1", "--packets", "400"]
            with piped("inspect", *arguments, "--seconds", "60", "--toml") as process:
                output = finish(process)
                assert process.returncode == 0
        assert "item = 0x4101\nsize = 4" in output

    def test_seconds(self, udp_port):
        with UdpSink([("127.0.0.1", udp_port)]) as sink, sending(sink):
            assert "Proposed layout" in run("inspect", f"127.0.0.1:{udp_port}", "--seconds", "0.5")

    def test_nothing(self, udp_port):
        """It says how to find out why; an endpoint that is there twice does no harm."""
        source, interface = f"127.0.0.1:{udp_port},127.0.0.1:{udp_port}", "127.0.0.1"
        result = subprocess.run(
            [*SPEADRX, "inspect", source, "--interface", interface, "--seconds", "0.2"],
            capture_output=True,
            text=True,
            env=environment(),
        )
        assert result.returncode == 1
        assert f"    speadrx doctor {source} --interface {interface}\n" in result.stderr

    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
    def test_interrupted(self, udp_port, signum):
        """It ends with what was found until then."""
        with piped("inspect", f"127.0.0.1:{udp_port}", "--seconds", "600") as process:
            wait_for(lambda: is_bound(udp_port))
            with UdpSink([("127.0.0.1", udp_port)]) as sink:
                simulator(faults=None).send(sink, 25)
            wait_for_delivery()
            process.send_signal(signum)
            output = finish(process)
        assert process.returncode == 0
        assert "100 packets, " in output
        assert "Interrupted: this is what came until then." in output
        assert 'name = "antenna"' in output

    def test_kernel_drops(self, udp_port):
        """A flood is sampled, and said to be."""
        with piped("inspect", f"127.0.0.1:{udp_port}", "--seconds", "600", "--json") as process:
            wait_for(lambda: is_bound(udp_port))
            os.kill(process.pid, signal.SIGSTOP)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                for _, packet in simulator(faults=None).packets(5000):
                    sock.sendto(packet, ("127.0.0.1", udp_port))
            process.send_signal(signal.SIGINT)
            os.kill(process.pid, signal.SIGCONT)
            document = json.loads(finish(process))
        assert document["kernel_drops"] > 0
        assert document["packets"] + document["kernel_drops"] <= 20000
