"""`speadrx send` as its users run it: what it sends is what it says, at the rate that it was told."""

import json
import re
import signal
import socket
import time

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
dpkt = pytest.importorskip("dpkt")

from simulated import FAULTS, capture, layout  # noqa: E402, F401
from terminals import PATIENCE, Terminal, piped, run, run_here  # noqa: E402


def payloads(path):
    with open(path, "rb") as file:
        return [(stamp, dpkt.ethernet.Ethernet(frame).data.data.data) for stamp, frame in dpkt.pcap.Reader(file)]


@pytest.fixture
def sink():
    """A socket that takes what is sent, and keeps none of it waiting."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(PATIENCE)
        yield sock


def endpoint(sock):
    return f"127.0.0.1:{sock.getsockname()[1]}"


def test_truth_of_a_capture(tmp_path, layout):  # noqa: F811
    path, truth = capture(tmp_path, layout, "--chunks=20", *FAULTS)
    assert list(truth["sent"]) == ["m000", "m001", "m002", "m003"]
    batches = 20 * 16
    for label in truth["sent"]:
        assert truth["sent"][label] - truth["duplicated"][label] + truth["lost"][label] == batches
        assert truth["complete"][label] == batches - truth["lost"][label] - truth["incomplete"][label]
    assert truth["copies"] == sum(map(sum, (truth[key].values() for key in ("sent", "rejected", "unseen"))))
    found = payloads(path)
    assert (len(found), sum(len(payload) for _, payload in found)) == (truth["packets"], truth["bytes"])
    assert all(sum(truth[kind].values()) for kind in ("lost", "duplicated", "rejected", "unseen"))


def test_same_options_send_the_same(tmp_path, layout):  # noqa: F811
    options = ["--chunks=3", "--rate=0.01", *FAULTS]
    paths = [capture(tmp_path, layout, *options, name=name)[0] for name in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    other, _ = capture(tmp_path, layout, *options, "--seed=4", name="c")
    assert other.read_bytes() != paths[0].read_bytes()


def test_time_stamps_of_a_rate(tmp_path, layout):  # noqa: F811
    path, truth = capture(tmp_path, layout, "--seconds=0.5", "--rate=0.008")
    stamps = [float(stamp) for stamp, _ in payloads(path)]
    seconds = truth["bytes"] / 1e6
    assert 0.5 <= seconds < 0.6  # to the end of a chunk
    assert stamps == pytest.approx([seconds * i / len(stamps) for i in range(len(stamps))], abs=1e-6)


def test_real_time(tmp_path, layout):  # noqa: F811
    """A heap that is lost takes its time."""
    path, _ = capture(tmp_path, layout, "--batches=400", "--real-time", "--loss=0.5")
    last = float(payloads(path)[-1][0])
    assert 400 * 256e-6 * 0.9 < last < 400 * 256e-6


def test_rate_over_udp(layout, sink):  # noqa: F811
    """It says what it has reached; a machine that is busy may not get there, and then says that."""
    started = time.monotonic()
    with piped("send", *layout, endpoint(sink), "--rate=0.02", "--seconds=1", "--json") as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert time.monotonic() - started >= 1
    summary = json.loads(output)
    assert process.returncode == 0
    assert summary["rate_gigabits_per_second"] == 0.02
    rate = summary["truth"]["bytes"] * 8e-9 / summary["seconds"]
    assert summary["gigabits_per_second"] == pytest.approx(rate)
    assert 0.01 < rate <= 0.0201
    if summary["seconds_behind"] > 0.01 * summary["seconds"]:
        assert "Warning: this machine cannot send so fast" in errors
    else:
        # It may be slower all the same: up to 10 ms at a time are made up for, and it may end late.
        assert errors == ""


def test_threads(tmp_path, layout):  # noqa: F811
    """Each has a socket of its own, and all together send what one does."""
    path, truth = tmp_path / "truth.json", capture(tmp_path, layout, "--batches=8", *FAULTS)[1]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(PATIENCE)
        run_here("send", *layout, endpoint(sock), "--batches=8", *FAULTS, "--threads=3", "--truth", str(path))
        assert json.loads(path.read_text("utf-8")) == truth
        ports = {sock.recvfrom(2048)[1] for _ in range(truth["packets"])}
    assert len(ports) == 3


def test_threads_at_a_rate(layout, sink):  # noqa: F811
    """What was sent, over the time that it took, is the rate; a signal ends all threads."""
    with piped("send", *layout, endpoint(sink), "--rate=0.01", "--json", "--threads=4") as process:
        sink.recv(2048)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE)
    summary = json.loads(output)
    assert process.returncode == 0
    assert set(summary["truth"]["sent"].values()) == {summary["truth"]["sent"]["m003"]} != {0}
    assert summary["gigabits_per_second"] <= 0.01005
    assert "Traceback" not in errors


def test_an_error_in_a_thread_is_said_once(layout):  # noqa: F811
    output = run_here("send", *layout, "127.255.255.255:9", "--threads=4", code=2)
    assert output.count("Permission denied") == 1
    assert output.startswith("Error: cannot send to 127.255.255.255:9: ")


def test_too_fast_is_a_warning(layout, sink):  # noqa: F811
    with piped("send", *layout, endpoint(sink), "--rate=1000", "--seconds=0.3") as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    found = re.search(r"^Rate: [\d.]+ Gb/s \(1000 wanted\), for ([\d.]+) s\.$", output, re.MULTILINE)
    assert found
    assert float(found[1]) >= 0.3  # then it ends as soon as the machine lets it
    assert "Warning: this machine cannot send so fast" in errors


def test_endpoints_get_their_flows(layout, sink):  # noqa: F811
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        other.settimeout(PATIENCE)
        run("send", *layout, endpoint(sink), endpoint(other), "--batches=8")
        for sock in (sink, other):
            assert len({sock.recv(2048) for _ in range(16)}) == 16


def test_summary(layout, sink):  # noqa: F811
    output = run("send", *layout, endpoint(sink), "--batches=8", "--loss=0.5", "--garbage=0.5", "--seed=1")
    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) <= 80
    assert re.search(r"^antenna +sent +lost +duplicated +incomplete *$", output, re.MULTILINE)
    lost = [int(count) for count in re.findall(r"^m00\d +\d+ +(\d+)", output, re.MULTILINE)]
    assert lost == sorted(lost, reverse=True)
    assert len(lost) == 4
    assert "Garbage that receivers reject: " in output


def test_truth_on_standard_output(tmp_path, layout):  # noqa: F811
    with piped("send", *layout, "--pcap", str(tmp_path / "a.pcap"), "--chunks=1", "--truth", "-") as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert json.loads(output)["complete"] == {"m000": 16, "m001": 16, "m002": 16, "m003": 16}
    assert ": 64 heaps in 64 packets" in " ".join(errors.split())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_it_with_the_chunk(layout, sink, signum):  # noqa: F811
    with piped("send", *layout, endpoint(sink), "--rate=0.01", "--json") as process:
        sink.recv(2048)
        process.send_signal(signum)
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    truth = json.loads(output)["truth"]
    assert truth["sent"]["m003"] % 16 == 0
    assert set(truth["sent"].values()) == {truth["sent"]["m003"]} != {0}


@pytest.mark.parametrize("columns", [80, pytest.param(200, marks=pytest.mark.slow)])
def test_terminal(layout, sink, columns):  # noqa: F811
    """There is a progress bar while it sends, and nothing of it is left."""
    terminal = Terminal("send", *layout, endpoint(sink), "--rate=0.01", columns=columns, rows=24)
    try:
        terminal.read_until(lambda: "heaps, " in terminal.output)
        terminal.type("\x03")
        assert terminal.wait() == 0
    finally:
        terminal.close()
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", terminal.output)
    assert "Sent to 127.0.0.1:" in text
    assert "\x1b[?25h" in terminal.output  # the cursor is back
    assert max(len(line) for part in text.split("\n") for line in part.split("\r")) <= columns


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "where to send? Wanted DEST"),
        (["nowhere"], "'nowhere' has no port: write nowhere:7148"),
        (["127.0.0.1:1", "--rate=1", "--real-time"], "--rate and --real-time both say how fast to send"),
        (["127.0.0.1:1", "--real-time", "--set", "time.tick_rate=0"], "tick_rate"),
        (["127.0.0.1:1", "--chunks=1", "--seconds=1"], "--chunks and --seconds both say how much to send"),
        (["127.0.0.1:1", "--rate=nan"], "'--rate': 'nan' is not a rate"),
        (["127.0.0.1:1", "--loss=2"], "2 must be at least 0 and at most 1"),
        (["127.0.0.1:1", "--first-timestamp=5"], "--first-timestamp': 5 must be a multiple"),
        (["127.0.0.1:1", "--jitter=5"], "--jitter': 5"),
        (["127.0.0.1:1", "--user-data=pol"], "'pol' is not NAME=VALUE"),
        (["127.0.0.1:1", "--interface=nowhere"], "cannot send from 'nowhere'"),
        (["127.0.0.1:1", "--packet-bytes=70"], "--packet-size': 70 has no room"),
        (["127.0.0.1:1", "--garbage=1", "--garbage-kind=dirt"], "'dirt' is not one of"),
        (["127.0.0.1:1", "--packet-bytes=70000"], "70000 must be at least 1 and at most 65507"),
        (["127.0.0.1:1", "--seed=-5"], "-5 is not in the range x>=0"),
        (["127.0.0.1:1", "--rate=1e300"], "'--rate': inf must be a positive number"),
        (["--pcap=a.pcap", "--rate=1e-13", "--chunks=1"], "must be less than 2^32 s in a capture file"),
        (["--pcap=/dev/full", "--chunks=1"], "cannot send to /dev/full: No space left"),
        (["--pcap=a.pcap", "--chunks=1", "--truth=a.pcap"], "'--truth': 'a.pcap' would overwrite 'a.pcap'"),
        (["--pcap=array.toml", "--chunks=1"], "array.toml' would overwrite"),
        (["127.0.0.1:1", "--user-data=pol=1"], "'--user-data': 'pol' is not a field that the layout reads"),
        (["127.0.0.1:1", "--json", "--truth=-"], "--truth - and --json both print"),
        (["--pcap=a.pcap"], "--pcap needs --batches"),
        (["--pcap=a.pcap", "--seconds=1"], "--seconds with --pcap needs --rate"),
        (["--pcap=/nowhere/a.pcap", "--chunks=1"], "/nowhere/a.pcap: No such file"),
        (["[::1]:1", "--pcap=a.pcap", "--chunks=1"], "'[DEST]...': '::1' must be an IPv4 address"),
        (["127.0.0.1:1", "--truth=/nowhere/t.json"], "No such file or directory"),
    ],
)
def test_usage_errors(tmp_path, monkeypatch, layout, args, message):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    assert message in " ".join(run_here("send", *layout, *args, code=2).split())


def test_a_truth_that_cannot_be_kept_keeps_the_summary(tmp_path, layout):  # noqa: F811
    args = ["--pcap", str(tmp_path / "a.pcap"), "--chunks=1", "--truth=/dev/full", "--json"]
    with piped("send", *layout, *args) as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert json.loads(output)["truth"]["copies"] == 64
    assert errors == "Error: --truth: /dev/full: No space left on device\n"
    assert process.returncode == 2


def test_user_data_is_needed(tmp_path):
    preset = ["-l", "meerkat-tied-array-channelised-voltage"]
    assert "has no 'pol'" in run("send", *preset, "127.0.0.1:1", "--chunks=1", code=2)
    _, truth = capture(tmp_path, preset, "--batches=1", "--user-data=pol=1")
    assert sum(truth["sent"].values()) > 0


def test_help_says_what_exit_codes_mean():
    text = " ".join(run("send", "--help").split())
    assert "Exit codes: 0 " in text
    assert "Example:" in text
