"""`speadrx top` as its users run it: against HTTP servers, in terminals, through pipes, for scripts."""

import contextlib
import functools
import http.server
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from speadrx.collectors import Exporter

from receiving import receiver
from speadrx import Axis, Layout, TimeAxis, add_reader, metrics
from speadrx.cli.tables import gigabits
from speadrx.simulate import Faults, Simulator, UdpSink
from terminals import HEEDING, PATIENCE, SPEADRX, Terminal, environment, run_here
from terminals import run as run_command

pytest.importorskip("click")
pytest.importorskip("rich")


HEAP_BYTES = 5000


def page(sources, *, streams=("wide",), **others):
    """A page of metrics in the text format, as it is served; sources are rows of counters."""
    lines = []

    def add(name, value, **labels):
        text = ",".join(f'{key}="{label}"' for key, label in labels.items())
        lines.append(f"{name}{{{text}}} {float(value)}" if text else f"{name} {float(value)}")

    for stream in streams:
        labels = {} if stream is None else {"stream": stream}
        for source, row in sources.items():
            placed, present, missing, duplicates, rejected = row
            add(metrics.HEAPS_PLACED, placed, source=source, **labels)
            add(metrics.RECEIVED_BYTES, HEAP_BYTES * placed, source=source, **labels)
            add(metrics.HEAPS_PRESENT, present, source=source, **labels)
            add(metrics.HEAPS_MISSING, missing, source=source, **labels)
            add(metrics.HEAPS_IN_FLIGHT, 3, source=source, **labels)
            add(metrics.HEAPS_DUPLICATE, duplicates, source=source, **labels)
            add(metrics.HEAPS_REJECTED, rejected, source=source, reason="bad_timestamp_heaps", **labels)
            add(metrics.HEAPS_REJECTED, 0, source=source, reason="metadata_heaps", **labels)
            add(metrics.NEWEST_TIMESTAMP, 4096 * placed, source=source, **labels)
        add(metrics.HEAPS_REJECTED, others.get("unknown", 0), source="", reason="metadata_heaps", **labels)
        add(metrics.HEAPS_TOO_OLD, others.get("too_old", 0), **labels)
        add(metrics.RESTARTS, others.get("restarts", 0), **labels)
        for ring, fill, blocked in (("data", 3, others.get("full", 0)), ("free", 5, 0)):
            add(metrics.RING_CHUNKS, fill, ring=ring, **labels)
            add(metrics.RING_CAPACITY_CHUNKS, 8, ring=ring, **labels)
            add(metrics.RING_BLOCKED_SECONDS, blocked, ring=ring, **labels)
        for endpoint, drops in others.get("drops", {"239.1.0.1:7148": 0}).items():
            add(metrics.SOCKET_DROPS, drops, endpoint=endpoint, **labels)
        versions = {"version": "1.2.3", "spead2_version": "4.5.1", "python_version": "3.11.7"}
        add(metrics.BUILD_INFO, 1, **versions, **labels)
    add("process_start_time_seconds", 1.5e9)
    return "\n".join([*lines, ""])


class Server:
    """Serves one page after the other; the last one for ever."""

    def __init__(self):
        self.pages = []
        self.requests = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests += 1
                reply = outer.pages.pop(0) if len(outer.pages) > 1 else outer.pages[0]
                if isinstance(reply, int):
                    self.send_error(reply)
                elif reply is not None:  # None: no answer
                    body = reply if isinstance(reply, bytes) else reply.encode()
                    self.send_response(200 if self.path == "/metrics" else 404)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *args):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/metrics"

    def wait_for_requests(self, n):
        n += self.requests
        deadline = time.monotonic() + PATIENCE
        while self.requests < n:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def run(*args, **env):
    return run_command("top", *args, **env)


top = functools.partial(run_here, "top")


def report(*args):
    return json.loads(top("--once", "--json", *args))


def rows(output):
    """Rows of the lower table, by source."""
    lines = output.splitlines()
    (head,) = (i for i, line in enumerate(lines) if line.startswith("source "))
    return {line.split()[0]: line.split()[1:] for line in lines[head + 1 :] if line.strip()}


BEFORE = {"m000": (1000, 990, 10, 1, 0), "m001": (1000, 1000, 0, 0, 0), "m002": (1000, 1000, 0, 0, 2)}
AFTER = {"m000": (1100, 1090, 10, 1, 0), "m001": (1180, 1175, 25, 4, 0), "m002": (1100, 1100, 0, 0, 5)}


def test_json(server):
    server.pages = [page(BEFORE), page(AFTER, too_old=7, restarts=2, full=0.05, unknown=3)]
    result = report(server.url, "--interval", "0.2")
    assert result["url"] == server.url
    assert abs(result["time"] - time.time()) < PATIENCE
    assert not result["restarted"]
    seconds = result["seconds"]
    assert seconds > 0.1

    m001, m000, m002, unknown = result["sources"]  # lost now, lost once, rejected; of no source
    assert [row["source"] for row in result["sources"]] == ["m001", "m000", "m002", ""]
    assert m001["stream"] == {"stream": "wide"}
    assert m001["counters"] == {
        "placed": 1180,
        "present": 1175,
        "missing": 25,
        "duplicates": 4,
        "rejected": 0,
        "bytes": 1180 * HEAP_BYTES,
    }
    assert m001["rates"] == pytest.approx(
        {
            "placed": 180 / seconds,
            "present": 175 / seconds,
            "missing": 25 / seconds,
            "duplicates": 4 / seconds,
            "rejected": 0,
            "bytes": 180 * HEAP_BYTES / seconds,
        }
    )
    assert m001["loss"] == 25 / 200
    assert m001["loss_total"] == 25 / 1200
    assert m001["newest_timestamp"] == 4096 * 1180
    assert m000["loss"] == 0
    assert m000["loss_total"] == 10 / 1100
    assert m002["rates"]["rejected"] == pytest.approx(3 / seconds)
    assert unknown["counters"] == {
        "placed": None,
        "present": None,
        "missing": None,
        "duplicates": None,
        "rejected": 3,
        "bytes": None,
    }

    (stream,) = result["streams"]
    assert stream["stream"] == {"stream": "wide"}
    assert stream["counters"]["placed"] == 3380
    assert stream["counters"]["rejected"] == 8
    assert stream["counters"]["too_old"] == 7
    assert stream["counters"]["restarts"] == 2
    assert stream["counters"]["packets"] is None  # the page has none
    assert stream["rates"]["placed"] == result["rate"] == pytest.approx(380 / seconds)
    assert stream["rates"]["bytes"] == result["byte_rate"] == pytest.approx(380 * HEAP_BYTES / seconds)
    assert stream["rates"]["too_old"] == pytest.approx(7 / seconds)
    assert stream["loss"] == 25 / (100 + 200 + 100)
    assert stream["rejected"] == {
        "bad_timestamp_heaps": {"count": 5, "rate": pytest.approx(3 / seconds)},
        "metadata_heaps": {"count": 3, "rate": pytest.approx(3 / seconds)},
    }
    assert stream["rings"]["data"] == {
        "chunks": 3,
        "capacity_chunks": 8,
        "blocked_seconds": 0.05,
        "blocked": pytest.approx(0.05 / seconds),
    }
    assert stream["rings"]["free"]["blocked"] == 0
    assert stream["endpoints"]["239.1.0.1:7148"]["drops"] == 0


def test_one_scrape(server):
    """With an interval of 0 there is one scrape, and nothing is known per second."""
    server.pages = [page(BEFORE), page(AFTER)]
    result = report(server.url, "--interval", "0")
    assert server.requests == 1
    assert result["seconds"] is None
    assert result["rate"] is None
    (stream,) = result["streams"]
    assert set(stream["rates"].values()) == {None}
    assert stream["rings"]["data"]["blocked"] is None
    m000 = result["sources"][0]
    assert m000["source"] == "m000"
    assert m000["loss"] is None
    assert m000["loss_total"] == 0.01
    assert set(m000["rates"].values()) == {None}


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("loss", ["m001", "m000", "m002"]),
        ("rate", ["m000", "m002", "m001"]),
        ("placed", ["m000", "m002", "m001"]),
        ("missing", ["m001", "m000", "m002"]),
        ("duplicates", ["m001", "m000", "m002"]),
        ("rejected", ["m002", "m000", "m001"]),
        ("source", ["m000", "m001", "m002"]),
    ],
)
def test_sort(server, sort, order):
    server.pages = [page(BEFORE), page(AFTER)]
    result = report(server.url, "--interval", "0.01", "--sort", sort, "--sources", "2")
    assert [row["source"] for row in result["sources"]] == order[:2]


def test_silent_source_is_worst(server):
    silent = {**AFTER, "m002": BEFORE["m002"]}
    server.pages = [page(BEFORE), page(silent)]
    assert report(server.url, "--interval", "0.01")["sources"][0]["source"] == "m002"


def test_restart(server):
    """Counters that begin again count from 0; none goes backwards, also none that has already passed its old value."""
    again = {"m000": (40, 30, 20, 0, 0), "m001": (1200, 1195, 5, 1, 0)}
    server.pages = [page(BEFORE, drops={"a:1": 10}), page(again, drops={"a:1": 11})]
    result = report(server.url, "--interval", "0.01")
    assert result["restarted"]
    seconds = result["seconds"]
    rises = {
        row["source"]: {name: round(rate * seconds) for name, rate in row["rates"].items()} for row in result["sources"]
    }
    names = ("placed", "present", "missing", "duplicates", "rejected")
    assert rises == {
        source: {**dict(zip(names, row, strict=True)), "bytes": row[0] * HEAP_BYTES} for source, row in again.items()
    }
    assert {row["source"]: row["loss"] for row in result["sources"]} == {"m000": 0.4, "m001": 5 / 1200}
    (stream,) = result["streams"]
    assert stream["rates"]["kernel_drops"] * seconds == pytest.approx(11)


def test_numbers_that_are_none(server):
    """JSON has no NaN and no infinity."""
    text = page(BEFORE)
    for name, value in (
        (metrics.RING_CHUNKS, "NaN"),
        (metrics.NEWEST_TIMESTAMP, "NaN"),
        (metrics.HEAPS_PLACED, "+Inf"),
    ):
        text = re.sub(rf"^({name}{{.*}}) .*", rf"\1 {value}", text, flags=re.MULTILINE)
    server.pages = [page(BEFORE), text]
    result = report(server.url, "--interval", "0.01")
    assert result["streams"][0]["rings"]["data"]["chunks"] is None
    assert {row["newest_timestamp"] for row in result["sources"]} == {None}
    assert {row["rates"]["placed"] for row in result["sources"]} == {None}
    assert "-/8" not in run(server.url, "--once", "--interval", "0.01")


def test_streams_come_and_sockets_go(server):
    """What is new has no rates yet; what went away makes none negative, and is no restart."""
    server.pages = [
        page(BEFORE, drops={"a:1": 10, "b:2": 5}),
        page(AFTER, drops={"a:1": 11}, streams=("wide", "narrow")),
    ]
    result = report(server.url, "--interval", "0.01")
    assert not result["restarted"]
    streams = {row["stream"]["stream"]: row for row in result["streams"]}
    assert streams["wide"]["rates"]["kernel_drops"] == 0
    assert streams["wide"]["endpoints"]["a:1"]["drops_rate"] > 0
    assert set(streams["narrow"]["rates"].values()) == {None}
    assert {row["stream"]["stream"] for row in result["sources"]} == {"wide", "narrow"}


def test_table(server):
    server.pages = [page(BEFORE), page(AFTER, too_old=7, full=2.5, unknown=3, drops={"a:1": 12})]
    output = run(server.url, "--once", "--interval", "0.01", COLUMNS="120")
    assert "\x1b" not in output
    assert server.url in output

    def rates(source):
        (found,) = re.findall(rf"{source} .*%\s+([\d.]+)\s+([\d,]+)", output)
        assert float(found[0]) == pytest.approx(8e-9 * HEAP_BYTES * int(found[1].replace(",", "")), rel=0.01)
        return found

    assert rows(output) == {
        "m001": ["12.50%", "2.08%", *rates("m001"), "1,180", "1,175", "25", "4", "0", "3", "4833280"],
        "m000": ["0.00%", "0.91%", *rates("m000"), "1,100", "1,090", "10", "1", "0", "3", "4505600"],
        "m002": ["0.00%", "0.00%", *rates("m002"), "1,100", "1,100", "0", "0", "5", "3", "4505600"],
        "(unknown)": ["-", "-", "-", "-", "-", "-", "-", "-", "3", "-", "-"],
    }
    (stream,) = (line.split() for line in output.splitlines() if line.startswith("wide"))
    assert stream[4:12] == ["8", "7", "12", "3/8", "2.5", "5/8", "0.0", "9"]
    assert "Rejected: 5 bad_timestamp_heaps, 3 metadata_heaps\n" in output


@pytest.mark.parametrize("columns", [80, 200])
def test_large_numbers(server, columns):
    """Numbers are never cut: they are shortened where there is no room for all digits."""
    large = {f"m{i:03}": (10**12 + i, 10**12, 10**10, 10**9, 10**8) for i in range(80)}
    server.pages = [page(large, streams=("wide", "narrow"))]
    output = top(server.url, "--once", "--interval", "0.01", COLUMNS=str(columns))
    lines = output.splitlines()
    assert max(map(len, lines)) <= columns
    assert len(lines) > 160  # all of them: a pipe has no bottom
    assert "…" not in output
    assert ("1,000,000,000,079" if columns == 200 else "1.00T") in output


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (None, "-"),
        (0, "0.000"),
        (1, "<0.001"),
        (125e3, "0.001"),
        (62.4e6, "0.499"),
        (124.9e6, "0.999"),
        (125e6, "1.00"),
        (12.4e9, "99.20"),
        (12.5e9, "100"),
        (125e12, "1,000,000"),
    ],
)
def test_gigabits(rate, text):
    assert gigabits(rate) == text


def test_foreign_text(server):
    """Labels are shown as they are, and cannot do anything to the terminal."""
    text = page({"[red]\x1b[2J\\u00fc\u00fc": (1, 1, 0, 0, 0)}, streams=(None,))
    server.pages = [text.replace("\\u00fc", "")]
    output = top(server.url, "--once", "--interval", "0")
    assert "[red]?[2J\u00fc" in output
    output = run(server.url, "--once", "--interval", "0", PYTHONIOENCODING="ascii")
    assert "[red]?[2J?" in output


def test_url_may_be_short(server):
    server.pages = [page(BEFORE)]
    for url in (f"127.0.0.1:{server.port}", f"http://127.0.0.1:{server.port}"):
        assert report(url, "--interval", "0")["url"] == server.url


def test_unreachable():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/metrics"  # nobody listens
        for args in ([], ["--once"], ["--once", "--json"], ["--json"]):
            assert top(url, *args, code=1) == f"Error: cannot reach {url}: Connection refused\n"


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (404, "{url} answers 404 Not Found"),
        (None, "cannot reach {url}: Remote end closed connection without response"),
        (
            "<html><body class='x'>Hello {</body></html>",
            "{url} does not serve metrics in the text format of Prometheus",
        ),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "{url} does not serve metrics in the text format of Prometheus"),
        ('{HELP=, ="_total', "{url} does not serve metrics in the text format of Prometheus"),
        ("", "{url} does not serve metrics of speadrx (such as speadrx_heaps_placed_total)"),
        (
            "# TYPE up gauge\nup 1\nspeadrx_something_else 3\n",
            "{url} does not serve metrics of speadrx (such as speadrx_heaps_placed_total)",
        ),
    ],
)
def test_bad_replies(server, reply, error):
    server.pages = [reply]
    assert top(server.url, "--once", code=1) == f"Error: {error.format(url=server.url)}\n"


def test_second_scrape_fails(server):
    server.pages = [page(BEFORE), 503]
    error = top(server.url, "--once", "--interval", "0.01", code=1)
    assert error == f"Error: {server.url} answers 503 Service Unavailable\n"


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["file:///etc/passwd"], "is not an http:// or https:// URL"),
        (["localhost:http"], "is not an http:// or https:// URL"),
        (["http://"], "is not an http:// or https:// URL"),
        (["http://[::1"], "is not an http:// or https:// URL"),
        (["localhost:1", "--interval", "0"], "--interval: 0 is only possible with --once"),
        (["localhost:1", "--interval", "nan"], "'nan' is not a time"),
        (["localhost:1", "--sort", "colour"], "colour"),
        (["localhost:1", "--sources", "0"], "--sources"),
        ([], "URL"),
    ],
)
def test_usage(args, error):
    assert error in top(*args, code=2)


@contextlib.contextmanager
def running(*args, **kwargs):
    """It runs until the end of the block, whatever happens there."""
    command = [sys.executable, "-c", HEEDING, *SPEADRX, "top", *args]
    with subprocess.Popen(command, env=environment(), start_new_session=True, **kwargs) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)])
@pytest.mark.parametrize("as_json", [False, True])
def test_pipe(server, as_json, signum, code):
    """A report after each interval, without control codes; failures go to stderr, and it goes on."""
    server.pages = [page(BEFORE), page(AFTER), 503, page(AFTER)]
    args = [server.url, "--interval", "0.05", *(["--json"] if as_json else [])]
    with running(*args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        lines = []
        end = "}" if as_json else ""
        while sum(line.rstrip().endswith(end) if as_json else line == "\n" for line in lines) < (3 if as_json else 6):
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read()
        process.send_signal(signum)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert errors == f"Error: {server.url} answers 503 Service Unavailable\n"
    assert "\x1b" not in "".join(lines)
    if as_json:
        first, second, third = map(json.loads, lines)
        assert first["rate"] * first["seconds"] == pytest.approx(380)
        assert second["rate"] == third["rate"] == 0
    else:
        assert max(map(len, lines)) <= 81
        assert sum(line.startswith("m001") for line in lines) == 3


def test_reader_goes_away(server):
    server.pages = [page(BEFORE)]
    with running(
        server.url, "--interval", "0.05", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
        assert process.wait(PATIENCE) == 1


def test_receiver(udp_port):
    """Against a real one: each number is what its ledger and its account say, and the rates add up to them."""
    layout = Layout(
        heap_bytes=512,
        time=TimeAxis(item=0x1600, step=100, batches=8),
        axes=(Axis(name="antenna", item=0x4101, size=4),),
        sources="antenna",
        source_labels=("m000", "m001", "m002", "m003"),
    )
    simulator = Simulator(layout, seed=3, faults=Faults(loss=0.1, duplicate=0.05, garbage=0.05))
    with contextlib.ExitStack() as stack:
        rx = stack.enter_context(receiver(layout))
        add_reader(rx.stream, src=[("127.0.0.1", udp_port)])
        exporter = stack.enter_context(Exporter(["stream"]))
        exporter.add(rx.stream, ["wide"])
        url = f"127.0.0.1:{exporter.serve(0, '127.0.0.1')}"
        args = ("--json", "--interval", "0.05", "--sort", "source")
        process = stack.enter_context(running(url, *args, stdout=subprocess.PIPE, text=True))
        sink = stack.enter_context(UdpSink([("127.0.0.1", udp_port)]))
        reports = map(json.loads, process.stdout)
        (stream,) = next(reports)["streams"]
        assert stream["counters"]["placed"] == 0
        simulator.send(sink, 200, rate=2e6)
        rx.wait_for_packets(simulator.truth.decodable_packets)
        rx.finish()

        ledger, account = rx.stream.ledger.snapshot(), rx.iterator.accounting
        expected = [
            {
                "placed": placed,
                "present": present,
                "missing": missing,
                "duplicates": duplicates,
                "rejected": rejected,
                "bytes": 512 * placed,
            }
            for placed, present, missing, duplicates, rejected in zip(
                ledger.placed_by_source,
                account.present_by_source,
                account.missing_by_source,
                ledger.duplicates_by_source,
                sum(ledger.rejected_by_source.values()),
                strict=False,  # of rejected heaps, the last are those of no known source
            )
        ]
        risen = [dict.fromkeys(row, 0.0) for row in expected]
        for report in reports:
            sources = report["sources"]
            for row, sums in zip(sources, risen, strict=False):
                for name, rate in row["rates"].items():
                    sums[name] += rate * report["seconds"]
            (stream,) = report["streams"]
            if stream["counters"]["present"] == account.present:
                break
        drops = rx.stream.kernel_drops()
    assert account.present > 500
    assert [row["source"] for row in sources[:4]] == list(layout.source_labels)
    assert [row["counters"] for row in sources[:4]] == expected
    assert risen == [pytest.approx(row) for row in expected]
    assert [row["loss_total"] for row in sources[:4]] == [
        row["missing"] / (row["present"] + row["missing"]) for row in expected
    ]
    assert {reason: part["count"] for reason, part in stream["rejected"].items()} == ledger.rejected
    assert sum(ledger.rejected.values()) > 0
    assert stream["counters"]["duplicates"] == ledger.duplicates > 0
    assert stream["counters"]["too_old"] == rx.stat("too_old_heaps")
    assert stream["counters"]["packets"] == rx.stat("packets")
    assert stream["counters"]["chunks"] == account.chunks
    assert stream["counters"]["kernel_drops"] == drops
    assert [*stream["endpoints"]] == [f"127.0.0.1:{udp_port}"]
    assert {ring: part["capacity_chunks"] for ring, part in stream["rings"].items()} == {"data": 12, "free": 12}


@pytest.fixture
def terminal():
    terminals = []

    def start(*args, columns=80, rows=24):
        terminals.append(Terminal("top", *args, columns=columns, rows=rows))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


def drawn(terminal, n):
    """Whether n frames are complete."""
    return lambda: len(terminal.frames()) > n


@pytest.mark.parametrize("columns", [80, 200])
def test_terminal(server, terminal, columns):
    before = {f"m{i:03}": (10**9, 10**9, 0, 0, 0) for i in range(80)}
    after = dict.fromkeys(before, (10**9 + 10**6,) * 2 + (0, 0, 0)) | {
        "m041": (10**9 + 9 * 10**5, 10**9 + 9 * 10**5, 10**5, 0, 0)
    }
    server.pages = [page(before), page(after)]
    term = terminal(server.url, "--interval", "0.3", columns=columns, rows=24)
    term.read_until(lambda: "m041" in term.output)
    term.read_until(drawn(term, len(term.frames())))
    for frame in term.frames()[:-1]:
        assert len(frame) == 24
        assert max(map(len, frame)) <= columns
    worst = next(frame for frame in term.frames() if any(line.startswith("m041") for line in frame))
    (head,) = (i for i, line in enumerate(worst) if line.startswith("source "))
    assert worst[head + 1].split()[:2] == ["m041", "10.00%"]
    assert ("1,000,900,000" if columns == 200 else "1.00G") in worst[head + 1]
    shown = sum(line.startswith("m0") for line in worst)
    assert f"... and {80 - shown} more sources" in worst[-2]
    assert worst[-1].startswith("q: quit   s: sort (by loss) ")
    assert shown == 24 - 2 - (head + 1)  # the screen is full
    assert ("newest timestamp" in worst[head]) == (columns == 200)
    term.type("\x03")
    assert term.wait() == 0
    assert_terminal_is_right(term)


def assert_terminal_is_right(term):
    """The ordinary screen and the cursor are back, and nothing was left on it."""
    assert term.output.rindex("\x1b[?1049l") > term.output.rindex("\x1b[?1049h")
    assert term.output.rindex("\x1b[?25h") > term.output.rindex("\x1b[?25l")
    left = re.sub(r"\x1b\[\?\d+[hl]", "", term.output[term.output.rindex("\x1b[?1049l") :])
    assert left.strip() in ("", "^C")


def test_keys(server, terminal):
    """They act at once, however long the interval is, and leave nothing in the terminal."""
    server.pages = [page({f"m{i:03}": (1000 + i, 1000 + i, 80 - i, 0, i) for i in range(80)})]
    term = terminal(server.url, "--interval", "300", rows=24)

    def first_source():
        lines = term.frames()[-2 if "\x1b[" in term.output[-4:] else -1]
        (head,) = (i for i, line in enumerate(lines) if line.startswith("source "))
        return lines[head + 1].split()[0]

    def press(key, source, sort="loss"):
        before = len(term.output)
        term.type(key)
        term.read_until(lambda: f"(by {sort})" in term.output[before:] and source in term.output[before:])
        assert first_source() == source

    term.read_until(lambda: "(by loss)" in term.output)
    assert first_source() == "m000"
    press("j", "m001")
    press("\x1b[B", "m002")
    press("\x1b[6~", "m014")
    press("k", "m013")
    press("\x1b[H", "m000")
    press("\x1b[B\x1b[B ", "m014")
    for sort in ("rate", "placed"):
        press("s", "m000", sort)
    press("S", "m000", "rate")
    press("SS", "m000", "source")
    press("S", "m079", "rejected")
    term.type("q")
    assert term.wait() == 0
    assert_terminal_is_right(term)


def test_terminal_resized(server, terminal):
    server.pages = [page(BEFORE)]
    term = terminal(server.url, "--interval", "300", columns=80, rows=24)
    term.read_until(lambda: "m002" in term.output)
    term.resize(60, 12)
    term.read_until(lambda: len(term.frames()[-1]) == 12)
    assert max(map(len, term.frames()[-1])) <= 60
    assert "…" not in term.output  # columns are left out, numbers are not cut
    term.type("\x03")
    assert term.wait() == 0


def test_terminal_while_the_process_is_away(server, terminal):
    """The last report stays, and says why there is no newer one; then it goes on."""
    server.pages = [page(BEFORE), 503]
    term = terminal(server.url, "--interval", "0.1")
    term.read_until(lambda: any("answers 503" in line for frame in term.frames()[:-1] for line in frame))
    frame = next(frame for frame in term.frames() if any("answers 503" in line for line in frame))
    assert any(line.startswith("m000") for line in frame)
    server.pages = [page({"m007": (1, 1, 0, 0, 0)})]
    term.read_until(lambda: "m007" in term.output)
    term.process.terminate()
    assert term.wait() == 128 + signal.SIGTERM
    assert_terminal_is_right(term)


def test_terminal_error_stays(terminal):
    """No other screen is opened, and so closed, before there is something to show."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        term = terminal(f"127.0.0.1:{sock.getsockname()[1]}")
        assert term.wait() == 1
    assert "Connection refused" in term.output
    assert "\x1b[?1049h" not in term.output
