"""The loss figure of the commands is that of what was left out, and the same wherever it is shown."""

import contextlib
import itertools
import json
import os
import pathlib
import re
import runpy
import signal
import socket
import threading
import time
import urllib.request

import pytest
import spead2
from speadrx.history import History

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from handmade import Heap, encode
from simulated import LAYOUT, layout  # noqa: F401
from speadrx import Layout, Receiver, metrics
from speadrx.cli.group import group
from speadrx.simulate import PcapSink
from terminals import PATIENCE, Terminal, piped, run_here, wait_for_line

TIME_ID, ANTENNA_ID = 0x1600, 0x4101
#: As in the layout of `simulated`.
STEP, BATCHES, ANTENNAS, HEAP_BYTES, TICK_RATE = 256, 16, 4, 1024, 1e6
LABELS = ["m000", "m001", "m002", "m003"]
MONITORING = pathlib.Path(__file__).parents[2] / "monitoring"


def packet(batch, antenna):
    items = {TIME_ID: batch * STEP, spead2.HEAP_LENGTH_ID: HEAP_BYTES, ANTENNA_ID: antenna}
    return encode(Heap(items, bytes(HEAP_BYTES)), batch * ANTENNAS + antenna, 48)[0]


def write_capture(path, heaps):
    with PcapSink(path) as sink:
        for heap in heaps:
            sink.send(0, packet(*heap))


@contextlib.contextmanager
def sending(*ports, first_batch=1000, pause=0.001):
    """Send all heaps of one batch after the other, dealt out to the ports, until the block ends."""
    done = threading.Event()

    def send():
        batch = itertools.count(first_batch)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            while not done.is_set():
                packets = [packet(number := next(batch), 0), *(packet(number, i) for i in range(1, ANTENNAS))]
                for i, data in enumerate(packets):
                    sock.sendto(data, ("127.0.0.1", ports[i % len(ports)]))
                time.sleep(pause)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def account_of(process):
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output + errors
    return json.loads(output)


def assert_nothing_lost(account, history, *, at_most=0):
    assert account["present"] > 0
    assert 0 <= account["missing"] <= at_most
    assert (account["kernel_drops"], account["in_flight"], account["residual"]) == (0, 0, 0)
    read = History.read(history)
    assert read.missing_by_source.sum() == account["missing"]
    assert read.loss == account["loss"] == account["missing"] / account["expected"]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, None], ids=str)
def test_nothing_is_missing_when_it_ends_while_heaps_come(layout, ports, signum, threads, tmp_path):  # noqa: F811
    endpoints = [f"127.0.0.1:{port}" for port in ports[:2]]
    history = tmp_path / "history"
    options = ["--max-loss=0", f"--threads={threads}", "--set", "time.batches=64", "--history", str(history)]
    options += ["--seconds=0.7"] if signum is None else []
    with piped("recv", *layout, *endpoints, "--json", *options) as process:
        wait_for_line(process.stderr, "Receiving array")
        with sending(*ports[:2]):
            if signum is not None:
                time.sleep(0.5)
                process.send_signal(signum)
            account = account_of(process)
    assert account["ended_by"] == ("seconds" if signum is None else "signal")
    assert_nothing_lost(account, history)


@pytest.mark.parametrize("threads", [1, 2])
def test_it_starts_and_ends_while_heaps_come(layout, ports, threads, tmp_path):  # noqa: F811
    """If it starts in the middle of a batch, it cannot know that; but no more than that."""
    endpoints = [f"127.0.0.1:{port}" for port in ports[:2]]
    history = tmp_path / "history"
    options = [f"--threads={threads}", "--seconds=0.5", "--history", str(history)]
    with sending(*ports[:2]), piped("recv", *layout, *endpoints, "--json", *options) as process:
        account = account_of(process)
    assert_nothing_lost(account, history, at_most=ANTENNAS - 1)


@pytest.mark.slow
def test_terminal_that_goes_away(layout, udp_port, tmp_path):  # noqa: F811
    """The program cannot print any more, but it drains, and keeps the history."""
    history = tmp_path / "history"
    terminal = Terminal("recv", *layout, f"127.0.0.1:{udp_port}", "--history", str(history), columns=80, rows=24)
    try:
        terminal.read_until(lambda: "data ring " in terminal.output)
        with sending(udp_port):
            terminal.read_until(lambda: re.search(r"m003.*\d,\d\d\d", terminal.output))
            os.close(terminal.master)
            terminal.process.wait(PATIENCE)
    finally:
        terminal.master = os.open(os.devnull, os.O_RDONLY)  # for it to close
        terminal.close()
    read = History.read(history)
    assert read.present_by_source.sum() > 0
    assert read.loss == 0


# The same everywhere


def left_out(rng, n_batches):
    """Some heaps, but none of the first and the last batch."""
    return {
        (batch, antenna)
        for batch, antenna in itertools.product(range(1, n_batches - 1), range(ANTENNAS))
        if rng.random() < 0.02 * (antenna + 1)
    }


def without(lost, n_batches, first_batch=0):
    """The heaps of a run from which some are left out."""
    heaps = itertools.product(range(n_batches), range(ANTENNAS))
    return [(first_batch + batch, antenna) for batch, antenna in heaps if (batch, antenna) not in lost]


def by_promql(expr, counts):
    """Evaluate an expression of rates, with counts in place of them, as over a whole run they have the same ratio."""
    names = {metrics.HEAPS_MISSING: "missing", metrics.HEAPS_PRESENT: "present"}
    names["speadrx:heaps_missing:rate"] = "missing"
    for name, count in names.items():
        expr = re.sub(rf"sum by \([^)]*\) \(rate\({name}\{{[^}}]*\}}\[[^]]*\]\)\)", count, expr)
        expr = re.sub(rf"rate\({name}\[[^]]*\]\)", count, expr).replace(name, count)
    assert set(re.findall(r"\w+", expr)) == {"missing", "present"}, expr
    return eval(expr, dict(counts))


def scraped(url):
    """Heaps present and missing, by source, of a page of metrics."""
    with urllib.request.urlopen(url, timeout=PATIENCE) as reply:
        page = reply.read().decode()
    return {
        kind: {
            source: float(value)
            for source, value in re.findall(rf'^{name}{{source="(\w+)"}} (\S+)$', page, flags=re.MULTILINE)
        }
        for kind, name in (("present", metrics.HEAPS_PRESENT), ("missing", metrics.HEAPS_MISSING))
    }


def test_it_is_the_same_in_all_places(layout, rng, tmp_path):  # noqa: F811
    """Table, JSON, `stats()`, history, plot, metrics with dashboard and alerts, `top`, and the exit code."""
    n_batches = 200
    lost = left_out(rng, n_batches)
    truth = [sum(antenna == lost_antenna for _, lost_antenna in lost) for antenna in range(ANTENNAS)]
    figure = sum(truth) / (n_batches * ANTENNAS)
    figures = [n / n_batches for n in truth]
    capture, history = tmp_path / "run.pcap", tmp_path / "history"
    write_capture(capture, without(lost, n_batches))

    table = run_here("replay", str(capture), *layout, "--history", str(history), COLUMNS="200")
    assert f"= {n_batches * ANTENNAS - len(lost)} present + {len(lost)} missing ({figure:.2%})." in table
    assert {row[0]: row[1] for row in map(str.split, table.splitlines()) if row and row[0] in LABELS} == {
        label: f"{loss:.2%}" for label, loss in zip(LABELS, figures, strict=True)
    }
    document = json.loads(run_here("replay", str(capture), *layout, "--json"))
    assert (document["loss"], [source["loss"] for source in document["sources"]]) == (figure, figures)
    read = History.read(history)
    assert (read.loss, read.missing_by_source.tolist()) == (figure, truth)
    plotted = json.loads(run_here("plot", str(history), "--json"))
    assert (plotted["loss"], [source["loss"] for source in plotted["sources"]]) == (figure, figures)
    for most, code in ((repr(figure), 0), (repr(0.99 * figure), 1), (f"{101 * figure}%", 0), (f"{99 * figure}%", 1)):
        arguments = ["replay", str(capture), *layout, f"--max-loss={most}", "--json"]
        assert CliRunner().invoke(group, arguments).exit_code == code

    with Receiver(Layout.from_toml(layout[1]), capture, metrics_port=0) as receiver:
        for chunk in receiver:
            chunk.recycle()
            url = f"http://localhost:{receiver.metrics_port}/metrics"
            counts, top = scraped(url), json.loads(run_here("top", url, "--once", "--interval=0", "--json"))
        stats = receiver.stats()
    assert (stats.loss, [source.loss for source in stats.sources]) == (figure, figures)
    assert receiver.accounting.loss == figure
    assert [counts["missing"][label] for label in LABELS] == truth
    assert top["streams"][0]["loss_total"] == figure
    assert {row["source"]: row["loss_total"] for row in top["sources"]} == dict(zip(LABELS, figures, strict=True))
    totals = {kind: sum(by_source.values()) for kind, by_source in counts.items()}
    panels = runpy.run_path(str(MONITORING / "dashboard.py"))
    assert by_promql(panels["_loss"]("stream"), totals) == figure
    rules = runpy.run_path(str(MONITORING / "alerts.py"))
    assert by_promql(rules["records"]("2m")["speadrx:heaps_missing:ratio"], totals) == figure


@pytest.mark.parametrize("gap", [1, 20, 40])
def test_gap_in_a_capture(layout, rng, tmp_path, gap):  # noqa: F811
    """Nothing comes for some batches: all their heaps are missing."""
    lost = left_out(rng, 300) | set(itertools.product(range(100, 100 + gap), range(ANTENNAS)))
    capture = tmp_path / "run.pcap"
    write_capture(capture, without(lost, 300))
    account = json.loads(run_here("replay", str(capture), *layout, "--json"))
    assert (account["missing"], account["loss"]) == (len(lost), len(lost) / (300 * ANTENNAS))
    assert (account["restarts"], account["epoch_gap_ticks"], account["residual"]) == (0, 0, 0)


def test_gap_of_a_restart_is_named(layout, tmp_path):  # noqa: F811
    """Senders begin again where time cannot be: what lies between is not missing, and is told in seconds and heaps."""
    capture = tmp_path / "run.pcap"
    ahead = int(3 * 3600 * TICK_RATE / STEP)
    write_capture(capture, without(set(), 300) + without(set(), 300, first_batch=300 + ahead))
    account = json.loads(run_here("replay", str(capture), *layout, "--json"))
    assert account["restarts"] == 1
    # The new time is believed after a few heaps, but each heap in between is one or the other.
    assert 0 <= account["missing"] < 3 * ANTENNAS
    assert account["expected"] + account["epoch_gap_heaps"] == (600 + ahead) * ANTENNAS
    assert account["epoch_gap_ticks"] == account["epoch_gap_heaps"] // ANTENNAS * STEP
    assert account["epoch_gap_seconds"] == account["epoch_gap_ticks"] / TICK_RATE == pytest.approx(3 * 3600, abs=0.1)
    text = " ".join(run_here("replay", str(capture), *layout).split())
    heaps = f"{account['epoch_gap_heaps']:,}"
    assert f"Time restarted 1 time: 10,800.0 s lie between, {heaps} heaps if nothing was restarted" in text


def test_restart_that_goes_back_has_no_gap(layout, tmp_path):  # noqa: F811
    capture = tmp_path / "run.pcap"
    write_capture(capture, without(set(), 300, first_batch=10**6) + without(set(), 300))
    account = json.loads(run_here("replay", str(capture), *layout, "--json"))
    assert (account["restarts"], account["epoch_gap_heaps"], account["epoch_gap_seconds"]) == (1, 0, 0)
    assert "Time restarted 1 time, without a gap." in run_here("replay", str(capture), *layout)


@pytest.mark.slow
def test_outage(layout, udp_port, tmp_path):  # noqa: F811
    """All senders fall silent for a while, and go on where time is by then: all that they did not send is missing."""
    seconds, n_batches = 1.5, 300
    silent = int(seconds * TICK_RATE / STEP)
    heaps = without(set(), n_batches) + without(set(), n_batches, first_batch=n_batches + silent)
    history = tmp_path / "history"
    with piped("recv", *layout, f"127.0.0.1:{udp_port}", "--json", "--history", str(history)) as process:
        wait_for_line(process.stderr, "Receiving array")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            start = time.monotonic()
            for batch, antenna in heaps:
                time.sleep(max(0, start + batch * STEP / TICK_RATE - time.monotonic()))
                sock.sendto(packet(batch, antenna), ("127.0.0.1", udp_port))
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        account = account_of(process)
    assert (account["restarts"], account["epoch_gap_heaps"]) == (0, 0)
    assert account["expected"] == (2 * n_batches + silent) * ANTENNAS
    assert account["missing"] == account["expected"] - account["present"]
    assert account["present"] == len(heaps) - sum(account["rejected"].values())
    assert account["loss"] == History.read(history).loss == account["missing"] / account["expected"]
