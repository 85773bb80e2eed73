"""`speadrx recv` as its users run it, against `speadrx send` in a process of its own."""

import json
import re
import signal
import socket
import threading
import time
import urllib.request

import pytest
import spead2

from addresses import GROUP_PREFIX

pytest.importorskip("click")
pytest.importorskip("rich")

from speadrx.history import History

import screens
from complaints import complaints
from handmade import SMALL, TIME_ID, encode, small_heap
from loopback import wait_for
from simulated import FAULTS, assert_agrees, layout  # noqa: F401
from speadrx import Receiver
from speadrx.cli import session
from terminals import PATIENCE, Terminal, piped, run, run_here, wait_for_line

#: So few and so slow that no socket's buffer overflows.
FEW = ["--chunks=4", "--rate=0.01"]


def account_of(process, code=0):
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, output + errors
    assert "Traceback" not in errors
    return json.loads(output)


def send(layout, *args):  # noqa: F811
    with piped("send", *layout, "--json", *args) as process:  # which may warn that the machine is busy
        return account_of(process)["truth"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_every_heap_is_accounted_for(layout, udp_port, signum):  # noqa: F811
    """What the sender knows and what the receiver has counted is the same, chunks under construction included."""
    endpoint = f"127.0.0.1:{udp_port}"
    with piped("recv", *layout, endpoint, "--json") as process:
        wait_for_line(process.stderr, "Receiving array")
        truth = send(layout, endpoint, *FEW, *FAULTS)
        process.send_signal(signum)
        account = account_of(process)
    assert_agrees(account, truth)
    assert account["ended_by"] == "signal"
    assert account["loss"] == account["missing"] / account["expected"]
    assert account["endpoints"] == [["127.0.0.1", udp_port]]


def test_multicast(layout, udp_port):  # noqa: F811
    groups = f"{GROUP_PREFIX}81+1:{udp_port}"
    with piped("recv", *layout, groups, "--interface=127.0.0.1", "--json", "--threads=2") as process:
        wait_for_line(process.stderr, "Receiving array")
        truth = send(layout, groups, "--interface=127.0.0.1", *FEW)
        process.send_signal(signal.SIGINT)
        assert_agrees(account_of(process), truth)


def test_threads_get_their_polarisation(ports):
    preset = ["-l", "meerkat-tied-array-channelised-voltage", "--set", "heap_bytes=1024"]
    preset += ["--set", "heap_shape=[2,256,2]", "--set", "samples_per_heap=512", "--set", "axes.substream.size=4"]
    endpoints = [f"127.0.0.1:{port}" for port in ports[:2]]
    options = ["--threads=2", "--user-data=pol=0", "--user-data=pol=1", "--window=8"]
    with piped("recv", *preset, *endpoints, *options, "--json") as process:
        wait_for_line(process.stderr, "Receiving")
        truths = [
            send(preset, endpoint, "--chunks=4", "--rate=0.01", f"--user-data=pol={pol}", "--loss=0.1")
            for pol, endpoint in enumerate(endpoints)
        ]
        process.send_signal(signal.SIGTERM)
        account = account_of(process)
    for source in account["sources"]:
        assert source["present"] == sum(truth["complete"][source["label"]] for truth in truths)
    assert (account["chunks"], account["residual"], account["kernel_drops"]) == (4, 0, 0)


def test_chunks_end_it(layout, udp_port):  # noqa: F811
    """Those under construction come out too: so many more, at most."""
    endpoint = f"127.0.0.1:{udp_port}"
    with piped("recv", *layout, endpoint, "--chunks=3", "--window=2", "--json") as process:
        wait_for_line(process.stderr, "Receiving array")
        with piped("send", *layout, endpoint, "--rate=0.01"):
            account = account_of(process)
    assert account["ended_by"] == "chunks"
    assert account["chunks"] >= 3
    assert account["residual"] == 0
    assert account["placed"] == account["present"] + account["unfinished"] + account["too_old"]


def test_chunks_that_are_cut_short_are_no_loss(layout, udp_port):  # noqa: F811
    """Who ends it while data comes is not told that the network has lost the rest of it."""
    endpoint = f"127.0.0.1:{udp_port}"
    options = ["--set", "time.batches=512", "--window=2", "--max-loss=0", "--chunks=2"]
    with piped("recv", *layout, endpoint, *options, "--json") as process:
        wait_for_line(process.stderr, "Receiving array")
        with piped("send", *layout, endpoint, "--rate=0.04"):
            account = account_of(process)
    assert account["present"] > 0
    assert (account["missing"], account["loss"], account["in_flight"]) == (0, 0, 0)


def test_seconds_end_it_with_nothing(layout, udp_port):  # noqa: F811
    with piped("recv", *layout, f"127.0.0.1:{udp_port}", "--seconds=0.3", "--quiet", "--json") as process:
        output, errors = process.communicate(timeout=PATIENCE)
    account = json.loads(output)
    hint = f"No packet came. To find out what is wrong:\n    speadrx doctor 127.0.0.1:{udp_port}\n"
    assert (process.returncode, complaints(errors)) == (1, hint)
    assert (account["ended_by"], account["present"], account["loss"]) == ("seconds", 0, None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("heap_bytes=2048", "The layout says heap_bytes = 2048, but the heaps that came have 1,024 bytes."),
        ("axes.antenna.item=0x4102", "The layout needs item 0x4102, but no heap that came has it."),
    ],
)
def test_wrong_layout(layout, udp_port, change, told):  # noqa: F811
    """It says what came in place of what the layout says, and where to see more."""
    endpoint = f"127.0.0.1:{udp_port}"
    with piped("recv", *layout, "--set", change, endpoint, "--interval=0.1") as process:
        wait_for_line(process.stdout, "Receiving array")
        with piped("send", *layout, endpoint, "--rate=0.001"):
            assert any(re.search("  rejected [1-9]", line) for line in process.stdout)
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output.splitlines()[-1]) == (1, "Nothing was received.")
    *lines, inspect = complaints(errors).splitlines()
    assert lines == [told, "Packets came, but no heap of this layout. To see what they carry:"]
    assert inspect == f"    speadrx inspect {endpoint}"


def test_pipe(layout, udp_port):  # noqa: F811
    """A line now and then, and the account; nothing that steers a terminal."""
    endpoint = f"127.0.0.1:{udp_port}"
    with piped("recv", *layout, endpoint, "--interval=0.2") as process:
        wait_for_line(process.stdout, "Receiving array")
        with piped("send", *layout, endpoint, "--rate=0.01", "--loss=0.2"):
            line = wait_for_line(process.stdout, "%)")
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=PATIENCE)
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d  [\d.e-]+ Gb/s  [\d,]+ heaps/s  [\d,]+ chunks  missing [\d,]+ \([\d.]+%\)  "
        r"rejected 0  drops 0  data ring \d+/\d+, free \d+/\d+\n",
        line,
    )
    assert (process.returncode, complaints(errors)) == (0, "")
    assert "\x1b" not in output
    assert re.search(r"^Placed: [\d,]+ heaps = [\d,]+ present \+ 0 duplicates", output, re.MULTILINE)


def test_quiet(layout, udp_port):  # noqa: F811
    output = []
    with piped("recv", *layout, f"127.0.0.1:{udp_port}", "--seconds=0.5", "--interval=0.1", "--quiet") as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "speadrx doctor" in errors) == (1, True)
    assert output.startswith("antenna ")
    assert output.endswith("Nothing was received.\n")


@pytest.mark.parametrize("columns", [80, pytest.param(200, marks=pytest.mark.slow)])
def test_terminal(layout, udp_port, columns):  # noqa: F811
    """A live table on the screen as it is, gone at the end; then the account."""

    def plain():
        return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", terminal.output)

    endpoint = f"127.0.0.1:{udp_port}"
    terminal = Terminal("recv", *layout, endpoint, columns=columns, rows=24)
    try:
        terminal.read_until(lambda: "data ring " in terminal.output)
        with piped("send", *layout, endpoint, "--rate=0.01", "--loss=0.2", "--garbage=0.1"):
            terminal.read_until(lambda: re.search(r"m003 +\d[\d.]*%", plain()))
            terminal.type("s")
            terminal.read_until(lambda: "s: sort (by rate)" in terminal.output)
            terminal.type("\x03" if columns == 80 else "q")
            assert terminal.wait() == 0
    finally:
        terminal.close()
    text = plain()
    live, _, account = text.rpartition("newest")
    for heading in ("overall", "heaps/s", "placed", "present", "missing", "dupl.", "rejected"):
        assert heading in live
    assert "Rejected: " in live
    assert "Placed: " in account
    assert "\x1b[?1049h" not in terminal.output  # what was on the screen before stays
    assert "\x1b[?25h" in terminal.output  # the cursor is back
    text = complaints(text).replace("^C", "")  # the terminal's own
    assert max(len(line) for part in text.split("\n") for line in part.split("\r")) <= columns


@pytest.mark.slow
def test_many_sources_in_a_terminal(layout, udp_port):  # noqa: F811
    """Only as many as there is room for, unless all are asked for."""
    options = ["--set", "axes.antenna.size=64", "--set", "source_labels=[]", f"127.0.0.1:{udp_port}", "--seconds=1"]
    for more, found in ([], True), (["--all-sources"], False):
        terminal = Terminal("recv", *layout, *options, *more, columns=80, rows=24)
        try:
            assert terminal.wait() == 1
        finally:
            terminal.close()
        account = terminal.output.rpartition("newest")[2]
        assert ("more sources" in account) == found
        assert account.count("\n") <= 24 or not found


@pytest.mark.parametrize("address", [None, "::", "::1", "127.0.0.2"])
def test_metrics(layout, udp_port, address):  # noqa: F811
    options = ["--metrics-port=0", "--label=stream=l-band", "--label=site=a=b"]
    options += [] if address is None else [f"--metrics-address={address}"]
    with piped("recv", *layout, f"127.0.0.1:{udp_port}", *options) as process:
        url = wait_for_line(process.stdout, "Metrics: ").split()[1]
        assert url.startswith({None: "http://localhost:", "::": "http://localhost:"}.get(address, "http://"))
        with urllib.request.urlopen(url, timeout=PATIENCE) as page:
            samples = [line for line in page.read().splitlines() if not line.startswith(b"#")]
        assert samples
        for sample in samples:
            assert b'stream="l-band"' in sample
            assert b'site="a=b"' in sample
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)


def test_history(tmp_path, layout, udp_port):  # noqa: F811
    from speadrx.history import History

    endpoint = f"127.0.0.1:{udp_port}"
    with piped("recv", *layout, endpoint, "--json", "--history", str(tmp_path / "run.json")) as process:
        wait_for_line(process.stderr, "Receiving array")
        truth = send(layout, endpoint, *FEW, "--loss=0.1")
        process.send_signal(signal.SIGINT)
        account_of(process)
    history = History.read(tmp_path / "run.json")
    assert dict(zip(history.axes.source_labels, history.present_by_source.tolist(), strict=True)) == truth["complete"]


def test_port_in_use(layout):  # noqa: F811
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        errors = run("recv", *layout, f"127.0.0.1:{port}", code=2)
    assert f"127.0.0.1:{port}" in errors
    assert "in use" in errors
    assert "src" not in errors  # which is what the library calls it


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Missing argument 'ENDPOINTS...'"),
        (["7148"], "'7148' has no host: write host:7148, or :7148 for all IPv4 addresses"),
        (["127.0.0.1:0"], "port 0, but wanted 1 to 65535"),
        (["127.0.0.1:1", "--threads=2"], "--threads': 2 have only 1 sources"),
        (["127.0.0.1:1", "--affinity=a"], "'a': wanted processors, such as 2,4 or 2-5"),
        (["127.0.0.1:1", "--affinity=0,1"], "1 thread(s) want one processor each"),
        (["127.0.0.1:1", "--buffer=1 furlong"], "'1 furlong' is not a size"),
        (["127.0.0.1:1", "--tolerance=soon"], "'soon' is neither a time"),
        (["127.0.0.1:1", "--window=2", "--tolerance=64MiB"], "cannot be combined with window 2"),
        (["127.0.0.1:1", "--flush-after=0"], "0 must be more than 0"),
        (["127.0.0.1:1", "--seconds=nan"], "'nan' is not a time"),
        (["127.0.0.1:1", "--fill=1.5"], "--fill': 1.5"),
        (["127.0.0.1:1", "--interface=nowhere"], "nowhere"),
        (["239.1.2.3:1", "--ibv", "--interface=lo"], "cannot receive through ibverbs on interface 127.0.0.1: "),
        (["239.1.2.3:1", "--ibv"], "ibv needs an interface for 239.1.2.3:1"),
        (["127.0.0.1:1", "--user-data=pol=1"], "'pol' is not a field that the layout reads"),
        (["nowhere.invalid:7148"], "nowhere.invalid"),
    ],
)
def test_usage_errors(layout, args, message):  # noqa: F811
    assert message in " ".join(run_here("recv", *layout, *args, code=2).split())


def test_history_cannot_be_kept(layout, udp_port):  # noqa: F811
    errors = run_here("recv", *layout, f"127.0.0.1:{udp_port}", "--history=/nowhere/run.json", code=2)
    assert "/nowhere/run.json: No such file" in " ".join(errors.split())


@pytest.mark.parametrize("command", ["recv", "replay"])
def test_help_says_what_exit_codes_mean(command):
    text = " ".join(run(command, "--help").split())
    assert "Exit codes: 0 " in text
    assert "Example:" in text


def test_error_of_the_system_names_what_the_user_gave(tmp_path, udp_port):
    """Its number, and what an argument is called in the library, say nothing to the user of a command."""
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for arguments, message in (
            (["203.0.113.9:7148"], "Error: cannot receive on 203.0.113.9:7148: Cannot assign requested address"),
            (
                [f"127.0.0.1:{udp_port}", f"--metrics-port={port}"],
                f"Error: Invalid value for '--metrics-port': cannot serve on port {port}: Address already in use",
            ),
        ):
            errors = run("recv", "-l", "meerkat-digitiser", *arguments, code=2, COLUMNS="200")
            assert errors.splitlines()[-1] == message


def test_history_is_there_while_the_run_goes_on(tmp_path, monkeypatch):
    """It is whole whenever it is read, so a crash loses only the last seconds."""
    monkeypatch.setattr(session, "HISTORY_SECONDS", 0.05)
    queue = spead2.InprocQueue()
    receiver = Receiver(SMALL, queue, window=2)
    path, ended = tmp_path / "run.json", threading.Event()
    run = session.Session(receiver, str(path))
    assert History.read(path).chunks == 0
    before = time.time()
    runner = threading.Thread(target=run.run, args=(ended,))
    runner.start()
    try:
        for batch in range(28):  # seven chunks
            queue.add_packet(encode(small_heap({TIME_ID: batch * 16}), batch, 48)[0])
            if batch in (15, 27):  # a chunk comes out once the one after the next begins
                wait_for(lambda: History.read(path).chunks == batch // 4 - 1)  # noqa: B023
        history = History.read(path)
        assert history.present_by_source.sum() == history.chunks * 4
        assert history.accounts["placed"] > 0
        assert before <= history.began <= time.time()
    finally:
        ended.set()
        runner.join()
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_a_warning_in_the_live_view(layout, udp_port):  # noqa: F811
    """It stands above the view, which is gone at the end."""
    endpoint = f"127.0.0.1:{udp_port}"
    wrong = ["--set", "time.tick_rate=1"]
    terminal = Terminal("recv", *layout, *wrong, endpoint, columns=80, rows=40)
    try:
        with piped("send", *layout, endpoint, "--rate=0.01"):
            terminal.read_until(lambda: "WARNING: time goes on" in terminal.output)
            shown = len(re.findall("data ring ", terminal.output))
            terminal.read_until(lambda: len(re.findall("data ring ", terminal.output)) > shown + 2)
            terminal.type("q")
            assert terminal.wait() == 0
    finally:
        terminal.close()
    lines = screens.drawn(terminal.output, 80)
    assert sum(line.startswith("WARNING: time goes on") for line in lines) == 1
    assert not any("data ring " in line for line in lines)
