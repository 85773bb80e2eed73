"""`speadrx bench`, and what it measures with: calls of the callback, packets made once, the search for a rate."""

import json
import math
import pickle
import re
import signal
import socket
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import spead2

from interruption import started
from speadrx import Axis, Layout, Receiver, SideItem, TimeAxis, layouts
from speadrx.cli.bench import default_user_data, machine
from speadrx.cli.callback_cost import CallbackCost
from speadrx.cli.loopback import REACHED, Loopback
from speadrx.simulate import Simulator
from speadrx.simulate.premade import Premade, Sent
from terminals import PATIENCE, Terminal
from terminals import run as run_command

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("jsonschema")

import click.testing
import jsonschema

import speadrx.cli.bench

LAYOUT = Layout(
    heap_bytes=1000,
    time=TimeAxis(item=0x1600, step=100, batches=8),
    axes=(Axis(name="antenna", item=0x4101, size=3), Axis(name="pol", from_user_data="pol", size=2)),
    side_items=(SideItem(name="late", item=0x1600, dtype="u32"), SideItem(name="status", item=0x3102)),
    required_items=(0x4104,),
    sources="antenna",
)
#: Timestamps begin again after 32 batches.
WRAPPING = Layout(
    heap_bytes=64, time=TimeAxis(item=0x1600, step=2**43, batches=2), axes=(Axis(name="a", item=0x4101, size=5),)
)


class Queue:
    """Stands in for a socket: what is sent is cut into packets as the kernel does, and put into a queue."""

    def __init__(self, queue):
        self.queue = queue
        self.sizes = []

    def sendmsg(self, buffers, ancillary):
        (data,) = buffers
        size = len(data)
        for level, kind, value in ancillary:
            assert (level, kind) == (socket.IPPROTO_UDP, 103)
            (size,) = struct.unpack("H", value)
        self.sizes += [min(size, len(data) - first) for first in range(0, len(data), size)]
        assert len(data) <= 65507
        for first in range(0, len(data), size):
            self.queue.add_packet(bytes(data[first : first + size]))
        return len(data)


@pytest.mark.parametrize("max_packet_size", [200, 700, 9000])
@pytest.mark.parametrize(("layout", "user_data"), [(LAYOUT, {"pol": 1}), (WRAPPING, {})], ids=["side items", "wrap"])
def test_premade_packets_are_the_heaps_of_later_batches(layout, user_data, max_packet_size):
    queue = spead2.InprocQueue()
    sink = Queue(queue)
    premade = Premade(layout, 4, user_data=user_data, max_packet_size=max_packet_size)
    sent = [premade.send(sink, 1e-9, 1e12) for _ in range(20)]
    assert sum(part.bytes for part in sent) == sum(sink.sizes)
    queue.stop()
    data = Simulator(layout, user_data=user_data).chunk_data(0)
    record = np.array(tuple(user_data.values()), [(name, np.uintp) for name in user_data]) if user_data else None
    heaps = 0
    with Receiver(layout, queue, user_data=user_data or None, window=4) as rx:
        for i, chunk in enumerate(rx):
            with chunk:
                assert chunk.timestamp == i * layout.chunk_timestamp_step
                present = chunk.present.reshape(layout.present_shape).astype(bool)
                heaps += np.count_nonzero(present)
                if not i:  # its payload is that of the first four batches, again and again
                    batches = np.arange(layout.chunk_batches) % 4
                    view = layout.view(chunk.data, record).view(np.uint8).reshape(data.shape)
                    np.testing.assert_array_equal(view[present], data[batches][present])
    assert heaps == sum(part.heaps for part in sent) == 20 * premade.heaps
    assert rx.stats().missing == rx.stats().expected - heaps
    assert not sum(rx.stats().rejected.values())


def test_sender_ends_quietly_when_nobody_receives():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        endpoint = sock.getsockname()
    tell = pickle.dumps((WRAPPING, {}, 9000)) + pickle.dumps((endpoint, PATIENCE, 1e7))
    sender = [sys.executable, "-c", "from speadrx.cli.loopback import _send; _send()"]
    result = subprocess.run(sender, input=tell, capture_output=True, check=True, timeout=PATIENCE)
    assert (result.stdout, result.stderr) == (b"", b"")


def test_premade_packets_keep_to_a_rate():
    queue = spead2.InprocQueue()
    premade = Premade(WRAPPING, 4, user_data={}, max_packet_size=9000)
    sent = premade.send(Queue(queue), 0.2, 1e5)
    assert sent.end - sent.begin >= 0.2
    assert sent.bytes <= 1e5 * (sent.end - sent.begin) + sum(map(len, premade.packets))


#: All but those whose heaps no simulated sender makes.
TIMED = [name for name in layouts.names() if not any(axis.payload_items for axis in layouts.load(name).axes)]


@pytest.mark.parametrize("layout", [LAYOUT, WRAPPING, *map(layouts.load, TIMED)], ids=lambda layout: layout.name)
def test_callback_is_timed_while_it_places_every_heap(layout):
    cost = CallbackCost(layout, default_user_data(layout))
    for _ in range(3):
        assert math.isfinite(cost.measure(0.02))
    snapshot = cost._placement.ledger.snapshot()
    assert np.frombuffer(snapshot.placed, np.uint64).sum() == cost._turns * len(cost._pointers)
    assert not np.frombuffer(snapshot.duplicates, np.uint64).any()


class Machine(Loopback):
    """A machine that is known: what its sender and its receiver can do, and at which rate heaps are lost."""

    def __init__(self, sender, receiver, loss):
        super().__init__(LAYOUT, {"pol": 0}, max_packet_size=9000)
        self.limits = (sender, receiver, loss)
        self.steps = 0

    def _step(self, rate):
        self.steps += 1
        assert self.steps < 100
        sender, receiver, loss = self.limits
        sends = min(rate, sender)
        took = 1 / min(sends, receiver)
        return Sent(heaps=1, bytes=1, begin=0.0, end=1 / sends), took, sends < loss


@pytest.mark.parametrize("first", [1e6, 50e6, 1e11])
@pytest.mark.parametrize(
    ("sender", "receiver", "loss", "limit", "best"),
    [
        (1e9, 2e9, 3e9, "sender", 1e9),
        (2e9, 1e9, 3e9, "receiver", 1e9),
        (1e12, 1e12, 1e9, "loss", 1e9),
        (1e12, 1e12, 3e6, "loss", 3e6),
        (1e12, 1e12, 1e3, "loss", 0),
    ],
)
def test_search_finds_the_highest_rate_without_loss(sender, receiver, loss, limit, best, first):
    known = Machine(sender, receiver, loss)
    known._first_rate = first
    for _ in range(3):  # later rounds begin near what was found
        rate = known.measure()
        assert rate.limit == limit
        assert REACHED * 0.95 * best <= rate.heaps_per_second <= best
        assert rate.gigabits_per_second == pytest.approx(rate.heaps_per_second * 8e-6)
        known.steps = 0
    assert known.measure(lambda: True) is None


def test_rate_over_the_loopback_interface_is_found():
    with Loopback(LAYOUT, {"pol": 1}, max_packet_size=700, step_seconds=0.02) as loopback:
        for _ in range(2):
            rate = loopback.measure()
            assert rate.heaps_per_second > 0
            assert rate.limit in ("sender", "receiver", "loss")
            assert rate.gigabits_per_second == pytest.approx(rate.heaps_per_second * 8e-6)
        loopback._sender.kill()
        with pytest.raises(RuntimeError, match="the process that sends has ended"):
            loopback.measure()


def test_layout_that_cannot_be_sent_is_refused():
    with pytest.raises(ValueError, match="max_packet_size: 64 has no room"):
        Loopback(LAYOUT, {"pol": 1}, max_packet_size=64)


def test_machine_is_described_in_json():
    about = json.loads(json.dumps(machine()))
    assert about["cores"] >= 1
    assert about["kernel"].startswith("Linux")
    assert about["processor"]


# The command

SPREAD = {
    "type": "object",
    "required": ["median", "quartiles", "rounds"],
    "additionalProperties": False,
    "properties": {
        "median": {"type": "number"},
        "quartiles": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
        "rounds": {"type": "array", "items": {"type": "number"}, "minItems": 1},
    },
}
SCHEMA = {
    "type": "object",
    "required": ["machine", "placement_ns_per_heap", "loopback"],
    "additionalProperties": False,
    "properties": {
        "machine": {"type": "object", "required": ["processor", "cores", "kernel", "python", "spead2", "speadrx"]},
        "placement_ns_per_heap": {"type": "object", "additionalProperties": SPREAD, "minProperties": 1},
        "loopback": {
            "type": "object",
            "required": ["layout", "heap_bytes", "max_packet_bytes", "limits"],
            "properties": {
                "heaps_per_second": SPREAD,
                "gigabits_per_second": SPREAD,
                "limits": {"type": "object", "additionalProperties": {"type": "integer"}},
            },
        },
    },
}


def assert_report(report):
    jsonschema.validate(report, SCHEMA)
    loopback = report["loopback"]
    spreads = [*report["placement_ns_per_heap"].values(), loopback["heaps_per_second"], loopback["gigabits_per_second"]]
    rounds = {len(spread["rounds"]) for spread in spreads}
    assert rounds == {sum(loopback["limits"].values())}
    for spread in spreads:
        low, high = spread["quartiles"]
        assert min(spread["rounds"]) <= low <= spread["median"] <= high <= max(spread["rounds"])


@pytest.mark.slow
def test_report_has_all_layouts():
    report = json.loads(run_command("bench", "--seconds", "1", "--json"))
    assert_report(report)
    assert set(report["placement_ns_per_heap"]) == set(TIMED)
    assert report["loopback"]["layout"] == "meerkat-digitiser"


def test_report_of_one_layout(tmp_path):
    file = tmp_path / "layout.toml"
    file.write_text(LAYOUT.to_toml())
    text = run_command("bench", "-l", str(file), "--set", "heap_bytes=512", "--seconds", "1", "--packet-bytes", "300")
    assert "\x1b" not in text
    assert "Heaps have 512 bytes, packets at most 300." in text
    assert "Placement of a heap, in ns" in text


@pytest.mark.parametrize("columns", [80, pytest.param(200, marks=pytest.mark.slow)])
def test_report_fits_the_terminal(columns):
    terminal = Terminal("bench", "--seconds", "1", columns=columns, rows=40)
    try:
        assert terminal.wait() == 0
    finally:
        terminal.close()
    assert "round 1" in terminal.output  # the progress bar
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", terminal.output))
    assert all(len(line.rstrip()) <= columns for line in lines)
    (row,) = (line for line in lines if line.startswith("meerkat-antenna-channelised-voltage "))
    assert re.fullmatch(r"\S+ +-?[\d.]+ +-?[\d.]+ - -?[\d.]+ *", row)
    assert any(line.startswith("What limits the rate: ") for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_reports_the_rounds_so_far(signum):
    with started("bench", "-l", "meerkat-digitiser", "--seconds", "3600", "--json") as process:
        time.sleep(4)  # a round or two
        process.send_signal(signum)
        output, errors = process.communicate(timeout=PATIENCE)
    if process.returncode == 0:
        assert_report(json.loads(output))
        assert not errors
    else:  # no round had ended by then
        assert (process.returncode, output) == (1, "")
        assert "interrupted before the first round was finished" in errors


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--seconds", "0"], "--seconds"),
        (["--seconds", "soon"], "--seconds"),
        (["--seconds", "nan"], "'nan' is not a time"),
        (["--packet-bytes", "100"], "--packet-bytes"),
        (["--set", "heap_bytes=8"], "--set changes a layout: give one with -l/--layout"),
        (["-l", "nowhere.toml"], "nowhere.toml"),
        (["-l", "meerkat-digitiser", "--set", "time.batches=0"], "batches"),
    ],
)
def test_wrong_usage_is_named(args, message):
    result = click.testing.CliRunner().invoke(speadrx.cli.bench.bench, args)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_layout_whose_heaps_cannot_be_made_is_named(tmp_path):
    file = tmp_path / "layout.toml"
    shared = Layout(
        heap_bytes=8, time=TimeAxis(item=0x1600, step=8, batches=2), axes=(Axis(name="a", item=0x1600, mask=1, size=2),)
    )
    file.write_text(shared.to_toml())
    result = click.testing.CliRunner().invoke(speadrx.cli.bench.bench, ["-l", str(file)])
    assert result.exit_code == 2
    assert "heaps of this layout cannot be simulated: axis 'a': shares item" in " ".join(result.output.split())


def test_no_jit_is_needed():
    code = "import sys, speadrx.cli.bench; assert not {'numba', 'llvmlite', 'scipy', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
