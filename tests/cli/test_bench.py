"""`speadrx bench`, and what it measures with: calls of the callback, a process that sends, searches for a rate."""

import io
import json
import math
import pickle
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from interruption import started
from speadrx import Axis, Layout, SideItem, TimeAxis, layouts
from speadrx.cli.bench import default_user_data, machine
from speadrx.cli.callback_cost import CallbackCost
from speadrx.cli.critical import WIDTH, CriticalSearch
from speadrx.cli.loopback import LEAST_RATE, REACHED, Loopback, Sent, Trial
from terminals import PATIENCE, Terminal
from terminals import run as run_command

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("jsonschema")

import click.testing
import jsonschema

import speadrx.cli.bench
from speadrx.cli.group import group

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


def test_what_is_sent_is_told_and_the_sender_ends_with_its_input(udp_port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", udp_port))
        sock.settimeout(PATIENCE)
        tell = pickle.dumps((LAYOUT, {"pol": 1}, 700))
        where = {"endpoints": [sock.getsockname()]}
        tell += pickle.dumps((where, 1.0, 24e3)) + pickle.dumps((where, 0.1, 1e4))
        sender = [sys.executable, "-c", "from speadrx.cli.loopback import _send; _send()"]
        result = subprocess.run(sender, input=tell, capture_output=True, check=True, timeout=PATIENCE)
        assert result.stderr == b""
        replies = io.BytesIO(result.stdout)
        # 8 batches of 3 heaps of 1000 bytes in a second, and at least one batch.
        for heaps in (24, 3):
            sent = pickle.load(replies)
            packets = [sock.recv(9000) for _ in range(2 * heaps)]
            assert (sent.heaps, sent.bytes) == (heaps, sum(map(len, packets)))
            assert max(map(len, packets)) <= 700
            assert sent.begin < sent.end
        assert not replies.read()


def test_sender_ends_quietly_when_nobody_receives():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        where = {"endpoints": [sock.getsockname()]}
    tell = pickle.dumps((WRAPPING, {}, 9000)) + pickle.dumps((where, 0.1, 1e5))
    sender = [sys.executable, "-c", "from speadrx.cli.loopback import _send; _send()"]
    with subprocess.Popen(sender, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        process.stdin.write(tell)
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 0


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

    def trial(self, rate):
        self.steps += 1
        assert self.steps < 100
        sender, receiver, loss = self.limits
        sends = min(rate, sender)
        took = 1 / min(sends, receiver)
        return Trial(Sent(heaps=1, bytes=1, begin=0.0, end=1 / sends), took, int(sends >= loss), 0)


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


class Link:
    """A link with a known critical rate, and trials that go wrong now and then, as on a machine that does other things.

    Packets of 1000 bytes with a heap each; a trial takes a second.
    """

    def __init__(self, critical, *, sender=1e15, receiver=1e15, spoilt=()):
        self.critical, self.sender, self.receiver, self.spoilt = critical, sender, receiver, spoilt
        self.rates = []

    def trial(self, rate):
        assert len(self.rates) < 1000, "the search does not end"
        is_spoilt = len(self.rates) in self.spoilt
        self.rates.append(rate)
        sends = min(rate, self.sender)
        lost = max(1, int((sends - self.critical) / 1000)) if sends > self.critical or is_spoilt else 0
        sent = Sent(heaps=max(1, int(sends / 1000)), bytes=int(sends), begin=5.0, end=6.0)
        return Trial(sent, max(1.0, sends / self.receiver), lost, lost // 2)


@pytest.mark.parametrize("critical", [1.5e6, 49e6, 51e6, 333e6, 8e9, 7e12])
def test_critical_rate_is_found_to_its_width(critical):
    link = Link(critical)
    search = CriticalSearch(link.trial)
    for _ in range(3):
        before = len(link.rates)
        found = search.search()
        assert critical / (1 + WIDTH) <= found.bytes_per_second <= critical
        assert found.heaps_per_second == pytest.approx(found.bytes_per_second / 1000, rel=1e-3)
        assert critical < found.lossy_bytes_per_second <= found.bytes_per_second * (1 + WIDTH) * (1 + 1e-6)
        assert found.limit == "loss"
        assert found.trials == len(link.rates) - before
    assert found.trials <= 2 * 12, "later searches begin where the last has ended"


def test_rates_are_decided_by_most_trials():
    # Two of the first three trials at the first rate are good, as is most of all that follow.
    for spoilt in ((0,), (1,), (0, 3), (1, 4, 7)):
        link = Link(200e6, spoilt=spoilt)
        found = CriticalSearch(link.trial).search()
        assert 200e6 / (1 + WIDTH) <= found.bytes_per_second <= 200e6
        assert found.missing >= len(spoilt)
    # A machine that loses heaps in two trials of the first rate is not fast enough for it.
    link = Link(200e6, spoilt=(0, 1))
    assert CriticalSearch(link.trial).search().bytes_per_second < link.rates[0]


def test_slow_sender_is_named_and_what_it_sends_is_the_rate():
    found = CriticalSearch(Link(1e12, sender=3e8).trial).search()
    assert (found.limit, found.bytes_per_second, found.lossy_bytes_per_second) == ("sender", 3e8, None)
    assert (found.missing, found.kernel_drops) == (0, 0)


def test_receiver_that_falls_behind_is_not_hidden_by_a_buffer():
    # The buffer holds all that is late, so nothing is lost at any rate.
    found = CriticalSearch(Link(1e15, receiver=4e8).trial).search()
    assert found.limit == "receiver"
    assert found.bytes_per_second == pytest.approx(4e8 / REACHED, rel=2 * WIDTH)


def test_nothing_is_found_where_heaps_are_lost_at_all_rates():
    link = Link(LEAST_RATE / 2)
    found = CriticalSearch(link.trial).search()
    assert (found.bytes_per_second, found.heaps_per_second, found.limit) == (0, 0, "loss")
    assert min(link.rates) == LEAST_RATE
    assert found.missing == sum(link.trial(rate).missing for rate in list(link.rates))
    assert found.kernel_drops > 0


def test_search_that_is_stopped_finds_nothing():
    link = Link(1e9)
    answers = iter([False] * 5 + [True])
    assert CriticalSearch(link.trial).search(lambda: next(answers)) is None
    assert len(link.rates) == 5


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


CRITICAL_SCHEMA = {
    "type": "object",
    "required": ["machine", "critical"],
    "additionalProperties": False,
    "properties": {
        "machine": SCHEMA["properties"]["machine"],
        "critical": {
            "type": "object",
            "required": ["layout", "heap_bytes", "max_packet_bytes", "trial_seconds", "limits", "trials"],
            "properties": {
                "heaps_per_second": SPREAD,
                "gigabits_per_second": SPREAD,
                "missing": {"type": "integer", "minimum": 0},
                "kernel_drops": {"type": "integer", "minimum": 0},
            },
        },
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, True])
def test_critical_rate_of_this_machine(as_json, tmp_path, monkeypatch):
    """Which rate it is depends on what else the machine does; that there is a report does not."""
    monkeypatch.setattr(speadrx.cli.bench, "TRIAL_SECONDS", 0.02)
    monkeypatch.setattr(speadrx.cli.critical, "WIDTH", 1.0)
    file = tmp_path / "layout.toml"
    file.write_text(LAYOUT.to_toml())
    arguments = ["-l", str(file), "--critical", "--searches", "2", *["--json"] * as_json]
    result = click.testing.CliRunner().invoke(group, ["bench", *arguments])
    assert result.exit_code in (0, 1), result.output  # 1: heaps were lost at all rates
    if not as_json:
        assert "Critical rate, the highest without loss" in result.output
        assert "of 2 searches)" in result.output
        return
    report = json.loads(result.stdout)
    jsonschema.validate(report, CRITICAL_SCHEMA)
    assert sum(report["critical"]["limits"].values()) == len(report["critical"]["heaps_per_second"]["rounds"]) == 2
    assert report["critical"]["trials"] >= 4


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
        (["--critical", "--searches", "0"], "--searches"),
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
