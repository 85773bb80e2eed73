"""`speadrx replay` as its users run it: what was sent into a capture comes out of it, to the heap."""

import contextlib
import json
import os
import re
import signal
import struct
import subprocess

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("dpkt")

from loopback import wait_for
from simulated import FAULTS, assert_agrees, capture, layout  # noqa: F401
from terminals import PATIENCE, SPEADRX, Terminal, environment, piped, run, run_here, wait_for_line

WAYS = {"spead2": [], "paced": ["--pace=20"], "to": ["--to=239.1.2.3:7148"], "port": ["--to", ":7148"]}


def replay(layout, path, *args):  # noqa: F811
    return json.loads(run("replay", *layout, str(path), "--json", *args))


@pytest.mark.parametrize("way", WAYS)
def test_every_heap_is_accounted_for(tmp_path, layout, way):  # noqa: F811
    path, truth = capture(tmp_path, layout, "--chunks=30", "--rate=0.02", *FAULTS)
    account = replay(layout, path, *WAYS[way])
    assert_agrees(account, truth)
    assert account["ended_by"] == "end"
    assert account["chunks"] == 30
    if account["capture"] is not None:
        assert account["capture"]["datagrams"] == truth["packets"]
    rates = account["rates"]
    assert rates["heaps_per_second"] == pytest.approx(account["placed"] / rates["seconds"])


@pytest.mark.parametrize("chunks", [5, 20])
def test_heaps_that_are_too_late(tmp_path, layout, chunks):  # noqa: F811
    """Those that come after their chunk are too old, and those of long ago are taken for wrong."""
    path, truth = capture(tmp_path, layout, "--chunks=60", "--late=0.01", f"--late-by={chunks * 64}")
    account = replay(layout, path, "--window=4")
    rejected = sum(account["rejected"].values())
    assert account["too_old"] > 0
    assert (rejected > 0) == (chunks > 5)
    assert account["present"] + account["too_old"] + rejected == sum(truth["complete"].values())
    assert account["missing"] == account["too_old"] + rejected
    assert account["residual"] == 0


def test_incomplete_heaps(tmp_path, layout):  # noqa: F811
    """Heaps of several packets, of which some lack one."""
    faults = ["--packet-loss=0.05", "--packet-reorder=5", "--loss=0.02"]
    path, truth = capture(tmp_path, layout, "--chunks=40", "--packet-bytes=400", *faults)
    account = replay(layout, path)
    assert {source["label"]: source["present"] for source in account["sources"]} == truth["complete"]
    assert account["unfinished"] == sum(truth["incomplete"].values()) > 0
    assert account["residual"] == 0


def test_threads_get_their_polarisation(tmp_path):
    preset = ["-l", "meerkat-tied-array-channelised-voltage", "--set", "heap_bytes=1024"]
    preset += ["--set", "heap_shape=[2,256,2]", "--set", "samples_per_heap=512", "--set", "axes.substream.size=4"]
    captures = [
        capture(tmp_path, preset, f"239.1.2.{pol}:7148", "--chunks=4", f"--user-data=pol={pol}", *FAULTS, name=f"{pol}")
        for pol in (0, 1)
    ]
    both = tmp_path / "both.pcap"
    both.write_bytes(captures[0][0].read_bytes() + captures[1][0].read_bytes()[24:])  # one header
    options = ["--threads=2", "--user-data=pol=0", "--user-data=pol=1", "--window=8"]
    account = replay(preset, both, "--to=239.1.2.0:7148", "--to=239.1.2.1:7148", *options)
    for source in account["sources"]:
        assert source["present"] == sum(truth["complete"][source["label"]] for _, truth in captures)
    assert (account["chunks"], account["residual"]) == (4, 0)


def test_what_was_sent_elsewhere_is_counted(tmp_path, layout):  # noqa: F811
    path, truth = capture(tmp_path, layout, "239.1.2.3+1:7148", "--chunks=3")
    account = replay(layout, path, "--to=239.1.2.4:7148")
    assert account["capture"]["elsewhere"] == account["capture"]["datagrams"] == truth["packets"] / 2
    assert [source["present"] for source in account["sources"]] == [0, 48, 0, 48]


def test_truncated_file(tmp_path, layout):  # noqa: F811
    """As tcpdump leaves it when it is killed: all but the last packet is replayed."""
    path, truth = capture(tmp_path, layout, "--chunks=4")
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    account = replay(layout, path)
    assert account["present"] == truth["packets"] - 1
    assert account["capture"]["truncated"]


def test_standard_input(tmp_path, layout):  # noqa: F811
    """Through a pipe, as from tcpdump, and as a file."""
    path, truth = capture(tmp_path, layout, "--chunks=4", *FAULTS)
    command = [*SPEADRX, "replay", *layout, "-", "--json"]
    for by in ("pipe", "file"):
        with path.open("rb") as file:
            given = {"input": file.read()} if by == "pipe" else {"stdin": file}
            output = subprocess.run(command, **given, stdout=subprocess.PIPE, check=True, env=environment()).stdout
        assert_agrees(json.loads(output), truth)


def test_raw_ip(tmp_path, layout):  # noqa: F811
    """As from an interface without Ethernet, which spead2's own reader refuses."""
    path, truth = capture(tmp_path, layout, "--chunks=4")
    data = path.read_bytes()
    raw = bytearray(data[:20] + struct.pack("<I", 101))
    position = 24
    while position < len(data):
        seconds, microseconds, captured, length = struct.unpack_from("<IIII", data, position)
        frame = data[position + 16 : position + 16 + captured]
        raw += struct.pack("<IIII", seconds, microseconds, captured - 14, length - 14) + frame[14:]
        position += 16 + captured
    path.write_bytes(raw)
    assert_agrees(replay(layout, path), truth)


def test_damaged_file(tmp_path, layout):  # noqa: F811
    """What is before the damage is accounted for, and the exit code says that it is not all."""
    path, truth = capture(tmp_path, layout, "--chunks=4")
    size = (path.stat().st_size - 24) // truth["packets"]
    data = bytearray(path.read_bytes())
    data[24 + 100 * size :] = b"\xff" * (len(data) - 24 - 100 * size)
    path.write_bytes(data)
    with piped("replay", *layout, str(path), "--json") as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert json.loads(output)["present"] == 100
    assert "is damaged" in errors
    assert "Traceback" not in errors


def test_account_for_people(tmp_path, layout):  # noqa: F811
    path, truth = capture(tmp_path, layout, "--chunks=30", *FAULTS)
    output = run("replay", *layout, str(path))
    assert "\x1b" not in output
    text = " ".join(output.split())
    present, duplicates = (sum(truth[name].values()) for name in ("complete", "duplicated"))
    placed = f"{present + duplicates:,} heaps = {present:,} present + {duplicates:,} duplicates"
    assert f"Placed: {placed} + 0 too old + 0 unfinished." in text
    missing = re.search(r"Expected: 1,920 heaps = [\d,]+ present \+ (\d+) missing", text)
    assert missing
    assert int(missing[1]) == 1920 - present
    lost = [float(loss) for loss in re.findall(r"^m00\d +([\d.]+)%", output, re.MULTILINE)]
    assert lost == sorted(lost, reverse=True)
    assert len(lost) == 4


def test_history(tmp_path, layout):  # noqa: F811
    from speadrx.history import History

    path, truth = capture(tmp_path, layout, "--chunks=30", *FAULTS)
    run("replay", *layout, str(path), "--history", str(tmp_path / "run.json"))
    history = History.read(tmp_path / "run.json")
    assert dict(zip(history.axes.source_labels, history.present_by_source.tolist(), strict=True)) == truth["complete"]


def test_a_history_that_cannot_be_kept_keeps_the_account(tmp_path, layout):  # noqa: F811
    path, truth = capture(tmp_path, layout, "--chunks=3")
    with piped("replay", *layout, str(path), "--json", "--history=/dev/full") as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert json.loads(output)["present"] == truth["copies"]
    assert errors == "Error: --history: /dev/full: No space left on device\n"
    assert process.returncode == 2


def test_max_loss(tmp_path, layout):  # noqa: F811
    path, _ = capture(tmp_path, layout, "--chunks=30", "--loss=0.1")
    run("replay", *layout, str(path), "--max-loss=50%")
    with piped("replay", *layout, str(path), "--max-loss=1%") as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert re.search(r"Loss: [\d.]+ % is more than --max-loss, 1 %\.", errors)


def test_nothing_received(tmp_path, layout):  # noqa: F811
    path, _ = capture(tmp_path, layout, "--chunks=3", "--loss=1", "--garbage=1", "--garbage-kind=noise")
    with piped("replay", *layout, str(path)) as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "Nothing was received." in output


def test_wrong_heap_bytes_are_named(tmp_path, layout):  # noqa: F811
    path, _ = capture(tmp_path, layout, "--chunks=3")
    with piped("replay", *layout, str(path), "--set=heap_bytes=512", "--json") as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert errors == "The layout says heap_bytes = 512, but the heaps that came have 1,024 bytes.\n"


def test_noise_does_not_hold_up_the_rest(tmp_path, layout):  # noqa: F811
    """The receiver takes no packets that it cannot decode, so they never leave the queue by its count."""
    noise = ["--garbage=1", "--garbage-kind=noise"]
    path, truth = capture(tmp_path, layout, "--chunks=80", *noise)
    assert truth["unseen"]["noise"] > 4096
    assert_agrees(replay(layout, path, "--to", ":7148"), truth)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_it_with_the_account_so_far(tmp_path, layout, signum):  # noqa: F811
    path, truth = capture(tmp_path, layout, "--chunks=300", "--rate=0.001")
    with piped("replay", *layout, str(path), "--pace=1") as process:
        wait_for_line(process.stdout, "Receiving array")
        process.send_signal(signum)
        output, errors = process.communicate(timeout=PATIENCE)
    accounts = re.search(r"Placed: (\d+) heaps = (\d+) present \+ 0 duplicates", output)
    assert accounts, output + errors
    placed, present = map(int, accounts.groups())
    assert placed == present < truth["copies"]
    assert process.returncode == (0 if present else 1)


@pytest.mark.parametrize("columns", [80, 200])
def test_terminal(tmp_path, layout, columns):  # noqa: F811
    path, _ = capture(tmp_path, layout, "--chunks=300", "--rate=0.001")
    terminal = Terminal("replay", *layout, str(path), "--pace=1", columns=columns, rows=24)
    try:
        terminal.read_until(lambda: re.search(r"[1-9]\d* heaps", terminal.output))
        terminal.type("\x03")
        assert terminal.wait() == 0
    finally:
        terminal.close()
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", terminal.output)
    assert "Placed: " in text
    assert "\x1b[?25h" in terminal.output  # the cursor is back
    assert max(len(line) for part in text.split("\n") for line in part.split("\r")) <= columns


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["/nowhere/a.pcap"], "'/nowhere/a.pcap' does not exist"),
        (["text.txt"], "text.txt is not a pcap or pcapng file"),
        (["empty"], "empty is empty"),
        (["a.pcap", "--pace=0"], "0.0 is not in the range x>0"),
        (["a.pcap", "--pace=inf"], "'--pace': inf is not a finite number"),
        (["a.pcap", "--threads=2"], "--threads 2 needs at least 2 endpoints in --to"),
        (["a.pcap", "--to=localhost:7148"], "'--to': 'localhost' is not an IP address"),
        (["a.pcap", "--to=nowhere"], "'nowhere' has no port: write nowhere:7148"),
        (["a.pcap", "--window=2", "--tolerance=1s"], "cannot be combined with window 2"),
        (["a.pcap", "--tolerance=1"], "'1' is neither a time"),
        (["a.pcap", "--pool=1"], "--pool': 1 must be more than"),
        (["a.pcap", "--user-data=pol=1"], "'pol' is not a field that the layout reads"),
        (["a.pcap", "--user-data=a=1", "--user-data=a=2"], "a is given 2 times: wanted once"),
        (["a.pcap", "--fill=x"], "'x' is not a number"),
        (["a.pcap", "--history=/nowhere/run.json"], "/nowhere/run.json: No such file"),
        (["a.pcap", "--history=./a.pcap"], "'--history': './a.pcap' would overwrite 'a.pcap'"),
        (["a.pcap", "--history=array.toml"], "'array.toml' would overwrite"),
    ],
)
def test_usage_errors(tmp_path, monkeypatch, layout, args, message):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("no capture", "utf-8")
    (tmp_path / "empty").touch()
    capture(tmp_path, layout, "--chunks=1")
    assert message in " ".join(run_here("replay", *layout, *args, code=2).split())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["replay", "inspect", "compare"])
def test_a_pipe_without_a_writer_can_be_interrupted(tmp_path, signum, command):
    """It says what it waits for, and the first signal ends it."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    layouts = {"replay": ["-l", "meerkat-digitiser"], "inspect": [], "compare": ["meerkat-digitiser"] * 2}
    with piped(command, str(path), *layouts[command]) as process:
        wait_for(lambda: str(path) in open_files(process.pid))
        process.send_signal(signum)
        assert process.wait(60) != 0
        said = process.stderr.read()
    assert f"{path} is a pipe: waiting for a program that writes a capture into it" in said
    assert "Traceback" not in said


def test_a_capture_through_a_pipe(tmp_path, layout):  # noqa: F811
    """It is said that the pipe is waited for, and nothing reads it a second time, even if no heap is placed."""
    content = capture(tmp_path, layout, "--chunks=1")[0].read_bytes()
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with piped("replay", str(path), "-l", "meerkat-digitiser") as process:
        path.write_bytes(content)  # waits until it is opened
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert f"{path} is a pipe: waiting for a program that writes a capture into it" in said


def open_files(pid):
    names = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            names.append(os.readlink(entry.path))
    return names
