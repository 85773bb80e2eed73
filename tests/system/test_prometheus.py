"""The dashboard and the alerts, on a real Prometheus server that scrapes receivers with and without faults."""

import concurrent.futures
import contextlib
import itertools
import json
import pathlib
import re
import socket
import subprocess
import threading
import time
import urllib.request
from dataclasses import dataclass, replace

import numpy as np
import pytest
import spead2.recv
from speadrx.collectors import Exporter

import alerts
import dashboard
from addresses import own_port
from prometheus_server import PrometheusServer, program, prometheus_server, wait_for
from speadrx import metrics
from speadrx.layout import Axis, Layout, Packets, TimeAxis
from speadrx.receive.chunk import ChunkPool
from speadrx.receive.factory import make_stream
from speadrx.receive.iterate import iter_chunks
from speadrx.receive.readers import add_reader
from speadrx.simulate import Faults, InprocSink, Simulator, UdpSink

MONITORING = pathlib.Path(__file__).parents[2] / "monitoring"

#: The rules run with all their times multiplied by this.
TIME_SCALE = 1 / 15
INTERVAL_MS = 500

STEP = 4096
SOURCES = ("m000", "m001", "m002", "m003", "m004")
LAYOUT = Layout(
    name="system test",
    heap_bytes=64,
    time=TimeAxis(item=0x1600, step=STEP, batches=8),
    axes=(Axis(name="antenna", item=0x4101, size=len(SOURCES)),),
    sources="antenna",
    source_labels=SOURCES,
)
ALL_SOURCES = frozenset(range(len(SOURCES)))
FIRST_BATCH = 10**6
TICK_SECONDS = 0.02
WINDOW_CHUNKS = 16
POOL_CHUNKS = 22
#: As much time as the alert's threshold becomes if it is scaled too; the window is 2.56 s long.
AHEAD_SECONDS = 10 * TIME_SCALE

# What comes in a few tenths of a second fits into the buffer. A burst is more, and is repeated until the kernel has
# dropped some of it.
TINY_BUFFER = 32768
BURST_BATCHES = 32
BURST_TICKS = 10
MAX_BURSTS = 50

WAIT_SECONDS = 90


class Array:
    """The senders, the receiver and the consumer of one stream; subclasses have a fault."""

    layout = LAYOUT
    udp = False
    buffer = None
    batches = 1  # a tick
    faults = Faults()
    resync = False
    #: Sources that have another clock while there is a fault, and its first batch (or by how much it is ahead of the
    #: others then) and speed.
    odd_sources = frozenset()
    odd_first_batch = 0
    odd_lead = None
    odd_speed = 1
    #: Alert and source of each alert that has to fire for as long as there is the fault, and of those that fire for a
    #: while when it begins or when it ends.
    alerts = frozenset()
    passing_alerts = frozenset()

    def __init__(self, port):
        self.faulty = False
        self.may_consume = threading.Event()
        self.may_consume.set()
        self._simulator = Simulator(LAYOUT, first_timestamp=FIRST_BATCH * STEP, faults=self.faults)
        self._batch = FIRST_BATCH
        self._odd_simulator = None
        self._queue = None
        self.stream = make_stream(
            layout=self.layout,
            max_active_chunks=WINDOW_CHUNKS,
            data_ringbuffer=spead2.recv.ChunkRingbuffer(POOL_CHUNKS),
            free_ringbuffer=spead2.recv.ChunkRingbuffer(POOL_CHUNKS),
            stop_on_stop_item=False,
            resync=self.resync,
        )
        if self.udp:
            add_reader(self.stream, src=[("127.0.0.1", port)], buffer=self.buffer)
            self._sink = UdpSink([("127.0.0.1", port)])
        else:
            self._queue = spead2.InprocQueue()
            self.stream.add_inproc_reader(self._queue)
            self._sink = InprocSink(self._queue)
        ChunkPool(self.stream, POOL_CHUNKS)
        self.chunks = iter_chunks(self.stream)
        self._consumer = threading.Thread(target=self._consume)
        self._consumer.start()

    def _consume(self):
        for chunk in self.chunks:
            with chunk:
                self.may_consume.wait()

    def tick(self):
        """Send what is due."""
        odd = self.odd_sources if self.faulty else frozenset()
        if odd:
            if self._odd_simulator is None:
                first = self.odd_first_batch if self.odd_lead is None else self._batch + self.odd_lead
                self._odd_simulator = Simulator(LAYOUT, first_timestamp=first * STEP)
            self.send(self._odd_simulator, odd, self.batches * self.odd_speed)
        self.send(self._simulator, ALL_SOURCES - odd)
        self._batch += self.batches

    def send(self, simulator, sources=ALL_SOURCES, batches=None):
        for source, packet in simulator.packets(batches or self.batches):
            if source in sources and not (self.faulty and self.loses(source)):
                self._sink.send(source, packet)

    def loses(self, source):
        """Say whether this heap is lost; asked for every heap while there is a fault."""
        return False

    def close(self):
        self.may_consume.set()
        if self._queue is not None:
            self._queue.stop()
        self.stream.stop()
        self._consumer.join()
        if self.udp:
            self._sink.close()


class Healthy(Array):
    """Has nothing that an alert is for, but load, garbage, duplicates and reordering inside the window."""

    udp = True
    batches = 10
    faults = Faults(garbage=0.05, duplicate=0.01, reorder=20)


class Mended(Array):
    """Its packets are mended, and some are none of SPEAD's."""

    layout = replace(LAYOUT, packets=Packets(heap_length="payload"))
    udp = True

    def __init__(self, port):
        super().__init__(port)
        self._stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._stranger.connect(("127.0.0.1", port))

    def tick(self):
        super().tick()
        self._stranger.send(b"not SPEAD")

    def close(self):
        super().close()
        self._stranger.close()


class Dead(Array):
    """No antenna sends."""

    alerts = frozenset({("SpeadrxStreamSilent", "")})

    def loses(self, source):
        return True


class Silent(Array):
    """One antenna does not send."""

    alerts = frozenset({("SpeadrxSourceSilent", "m001")})

    def loses(self, source):
        return source == 1


class Lossy(Array):
    """5 % of the heaps of one antenna are lost."""

    alerts = frozenset({("SpeadrxLoss", "m002")})

    def __init__(self, port):
        super().__init__(port)
        self._heaps = itertools.count()

    def loses(self, source):
        return source == 2 and next(self._heaps) % 20 == 0


class Stalled(Array):
    """The consumer holds on to a chunk, so that in the end the kernel drops packets too."""

    udp = True
    buffer = 4 * TINY_BUFFER
    alerts = frozenset({("SpeadrxConsumerSlow", "")})

    def tick(self):
        if self.faulty:
            self.may_consume.clear()
        else:
            self.may_consume.set()
        super().tick()


class Dropping(Array):
    """Bursts come that the socket's buffer cannot hold."""

    udp = True
    buffer = TINY_BUFFER
    alerts = frozenset({("SpeadrxKernelDropping", "")})

    def __init__(self, port):
        super().__init__(port)
        self._ticks = itertools.count()

    def tick(self):
        super().tick()
        if self.faulty and next(self._ticks) % BURST_TICKS == 0:
            before = self.stream.kernel_drops()
            for _ in range(MAX_BURSTS):
                self.send(self._simulator, batches=BURST_BATCHES)
                if self.stream.kernel_drops() > before:
                    break


class Ahead(Array):
    """The clock of one antenna is ahead by more than a minute."""

    odd_sources = frozenset({0})
    odd_first_batch = FIRST_BATCH + round(100 / TICK_SECONDS)
    alerts = frozenset({("SpeadrxClockOutlier", "m000")})


class Behind(Array):
    """One antenna begins again at time 0."""

    odd_sources = frozenset({3})
    alerts = frozenset({("SpeadrxClockOutlier", "m003")})


class Early(Array):
    """The clocks of two antennas are ahead of the others, but not by more than the window is long."""

    odd_sources = frozenset({0, 1})
    odd_lead = round(1.5 * AHEAD_SECONDS / TICK_SECONDS)
    alerts = frozenset({("SpeadrxClocksAhead", "m000"), ("SpeadrxClocksAhead", "m001")})


class Fast(Array):
    """Two clocks run away from the others. Most heaps come from them, but each source has one voice."""

    resync = True
    odd_sources = frozenset({0, 1})
    odd_lead = 0
    odd_speed = 4
    alerts = frozenset({("SpeadrxClockOutlier", "m000"), ("SpeadrxClockOutlier", "m001")})


class FastMost(Array):
    """Most clocks run away, and the others are too late for them; when they are right again, time begins again."""

    resync = True
    odd_sources = frozenset({0, 1, 2})
    odd_lead = 0
    odd_speed = 4
    alerts = frozenset({("SpeadrxLoss", "m003"), ("SpeadrxLoss", "m004")})
    passing_alerts = frozenset({("SpeadrxTimeRestarted", "")})


class Refused(Array):
    """All antennas begin again at time 0, which the receiver must not follow."""

    odd_sources = ALL_SOURCES
    alerts = frozenset({("SpeadrxSenderRestart", "")})


class RefusedMost(Array):
    """The same, but for two antennas, which go on: those that are rejected are not silent."""

    odd_sources = ALL_SOURCES - {3, 4}
    alerts = frozenset({("SpeadrxSenderRestart", "")})


class Followed(Array):
    """All antennas begin again at time 0, and the receiver follows, but for one that has long been silent."""

    resync = True
    odd_sources = ALL_SOURCES
    alerts = frozenset({("SpeadrxSourceSilent", "m002")})
    passing_alerts = frozenset({("SpeadrxTimeRestarted", "")})

    def loses(self, source):
        return source == 2


KINDS = (
    *(Healthy, Mended, Dead, Silent, Lossy, Stalled, Dropping, Ahead, Behind),
    *(Early, Fast, FastMost, Refused, RefusedMost, Followed),
)


class Telescope:
    """All these arrays, and one thread that sends for them."""

    def __init__(self, stack):
        self.arrays = {}
        for kind in KINDS:
            array = self.arrays[kind.__name__] = kind(own_port())
            stack.callback(array.close)
        self._stop = threading.Event()
        executor = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
        stack.callback(self._stop.set)
        self._sender = executor.submit(self._send)

    def _send(self):
        while not self._stop.wait(TICK_SECONDS):
            for array in self.arrays.values():
                array.tick()

    def check(self):
        """Fail if the sender has died."""
        if self._sender.done():
            self._sender.result()

    def break_all(self, faulty):
        for array in self.arrays.values():
            array.faulty = faulty

    def expected(self, field):
        """Alert, stream and source of the alerts that the arrays say must fire."""
        return {(alert, name, source) for name, array in self.arrays.items() for alert, source in getattr(array, field)}


@dataclass
class System:
    """A telescope, and the Prometheus server that watches it."""

    telescope: Telescope
    url: str  # of the metrics
    prometheus: PrometheusServer

    def wait_for(self, what, condition, seconds=WAIT_SECONDS):
        def check():
            self.telescope.check()
            return condition()

        return wait_for(what, check, seconds)

    def wait_for_alerts(self, expected):
        """Wait until just these alerts fire."""
        try:
            self.wait_for("such alerts", lambda: self.firing() == expected)
        except AssertionError:
            assert self.firing() == expected
            raise

    def firing(self):
        alerts = self.prometheus.get("alerts")["alerts"]
        return {key(alert["labels"]) for alert in alerts if alert["state"] == "firing"}

    def fired(self):
        """All alerts that have fired so far."""
        history = self.prometheus.vector('last_over_time(ALERTS{alertstate="firing"}[1h])')
        return {key(labels) for labels, _ in history}


def key(labels):
    return labels["alertname"], labels["stream"], labels.get("source", "")


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    program("promtool")
    with contextlib.ExitStack() as stack:
        telescope = Telescope(stack)
        exporter = stack.enter_context(Exporter(["stream"]))
        for name, array in telescope.arrays.items():
            exporter.add(array.stream, [name])
        address = f"127.0.0.1:{exporter.serve(0, '127.0.0.1')}"
        prometheus = stack.enter_context(
            prometheus_server(
                tmp_path_factory.mktemp("prometheus"),
                target=address,
                rules=alerts.generate(alerts.Thresholds(ahead=AHEAD_SECONDS), TIME_SCALE),
                interval=f"{INTERVAL_MS}ms",
            )
        )
        system = System(telescope, f"http://{address}/metrics", prometheus)
        window = alerts.WINDOW * TIME_SCALE
        # By then every rate has a whole window to be taken over.
        system.wait_for("data", lambda: prometheus.vector(f"count_over_time(up[1h]) > {1000 * window / INTERVAL_MS}"))
        yield system


def promtool(*arguments, **kwargs):
    """Run promtool, which must find nothing to complain of."""
    result = subprocess.run(
        [program("promtool"), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.parametrize("time_scale", [1, TIME_SCALE])
def test_check_rules(tmp_path, time_scale):
    path = MONITORING / "alerts.yml"
    if time_scale != 1:
        path = tmp_path / "alerts.yml"
        path.write_text(alerts.generate(time_scale=time_scale), "utf-8")
    n_rules = sum(len(group["rules"]) for group in alerts.rules()["groups"])
    assert f"SUCCESS: {n_rules} rules found" in promtool("check", "rules", path)


def series(name, values, **labels):
    text = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return {"series": f"{name}{{{text}}}", "values": values}


def check_alert(tmp_path, alert, input_series, expected):
    """Fail unless the rules, fed with these series every 30 s, fire the alert for just these labels after 9 min."""
    labels = [
        '{__name__="ALERTS",' + ",".join(f'{key}="{value}"' for key, value in one.items()) + "}" for one in expected
    ]
    test = {
        "interval": "30s",
        "input_series": input_series,
        "promql_expr_test": [
            {
                "expr": f'ALERTS{{alertname="{alert}",alertstate="firing"}}',
                "eval_time": "9m",
                "exp_samples": [{"labels": one, "value": 1} for one in labels],
            }
        ],
    }
    path = tmp_path / "test.json"  # JSON is YAML
    path.write_text(json.dumps({"rule_files": [str(MONITORING / "alerts.yml")], "tests": [test]}), "utf-8")
    promtool("test", "rules", path)


def firing(alert, **labels):
    """All labels of an alert that fires."""
    (rule,) = (rule for rule in alerts.rules()["groups"][0]["rules"] if rule.get("alert") == alert)
    return {"alertname": alert, "alertstate": "firing", **rule["labels"], **labels}


def test_stream_that_is_gone(tmp_path):
    """Of two streams that receive nothing, the one that is gone, and so has no rings, raises no alarm."""
    capacities = {"there": 8, "gone": 0}
    input_series = [
        one
        for stream, capacity in capacities.items()
        for one in (
            series(metrics.HEAPS_PLACED, "5+0x20", stream=stream, source="m000"),
            *(
                series(metrics.RING_CAPACITY_CHUNKS, f"{capacity}+0x20", stream=stream, ring=r)
                for r in ("data", "free")
            ),
        )
    ]
    alert = "SpeadrxStreamSilent"
    check_alert(tmp_path, alert, input_series, [firing(alert, stream="there")])


def heaps(stream, source, *, present, missing=0, implausible=0, backward=0):
    """Series of a source that has so many more heaps every 30 s."""
    labels = {"stream": stream, "source": source}
    return [
        series(metrics.HEAPS_PLACED, f"0+{present}x20", **labels),
        series(metrics.HEAPS_PRESENT, f"0+{present}x20", **labels),
        series(metrics.HEAPS_MISSING, f"0+{missing}x20", **labels),
        series(metrics.HEAPS_REJECTED, f"0+{implausible}x20", reason=metrics.IMPLAUSIBLE, **labels),
        series(metrics.HEAPS_REJECTED, f"0+{backward}x20", reason=metrics.BACKWARD, **labels),
    ]


def test_implausible_part(tmp_path):
    """A clock is named if more than half of its heaps are implausible, and if there are others to compare it with."""
    input_series = [
        *heaps("several", "m000", present=400, implausible=600),
        *heaps("several", "m001", present=600, implausible=400),
        *heaps("several", "m002", present=1000),
        *heaps("alone", "m000", present=400, implausible=600),
    ]
    alert = "SpeadrxClockOutlier"
    check_alert(tmp_path, alert, input_series, [firing(alert, stream="several", source="m000")])


def test_loss_by_time(tmp_path):
    """Heaps that are missing for their time are no loss where another alert says so."""
    input_series = [
        *heaps("s", "m000", present=400, missing=600, implausible=600),
        *heaps("s", "m001", present=600, missing=400, implausible=400),
        *heaps("s", "m002", present=600, missing=400, backward=400),
        *heaps("s", "m003", present=1000),
        # Nothing is dropped, and the consumer is fast enough.
        series(metrics.SOCKET_DROPS, "0x20", stream="s", endpoint="127.0.0.1:7148"),
        *(series(metrics.RING_BLOCKED_SECONDS, "0x20", stream="s", ring=ring) for ring in ("data", "free")),
    ]
    check_alert(tmp_path, "SpeadrxLoss", input_series, [firing("SpeadrxLoss", stream="s", source="m001")])


def test_ahead(tmp_path):
    """A clock that is ahead is named; those that go on when most sources fall silent are not."""
    ticks = 1000  # in 30 s

    def newest(stream, source, values):
        return series(metrics.NEWEST_TIMESTAMP, values, stream=stream, source=source)

    input_series = [
        *(newest("odd", f"m00{i}", f"{ticks * (1 if i == 0 else 0)}+{ticks}x20") for i in range(3)),
        *(newest("silent", f"m00{i}", f"0+{ticks}x15 {15 * ticks}x5") for i in range(3)),
        *(newest("silent", f"m00{i}", f"0+{ticks}x20") for i in range(3, 5)),
    ]
    alert = "SpeadrxClocksAhead"
    check_alert(tmp_path, alert, input_series, [firing(alert, stream="odd", source="m000")])


def test_check_metrics(system):
    with urllib.request.urlopen(system.url) as reply:
        text = reply.read().decode()
    assert promtool("check", "metrics", input=text) == ""


def test_scrapes_under_load(system):
    """What the server has is what the receivers say, and it grows from scrape to scrape."""
    # On a busy machine, a scrape may take longer than the server waits. None fails for another reason.
    refused = f"(1 - up) * (scrape_duration_seconds < bool {0.9 * INTERVAL_MS / 1000})"
    ((_, value),) = system.prometheus.vector(f"max_over_time(({refused})[1h:{INTERVAL_MS}ms])")
    assert value == 0
    arrays = system.telescope.arrays
    before = {name: array.stream.ledger.snapshot().placed for name, array in arrays.items()}

    def scraped_since():
        placed = system.prometheus.vector(f"sum by (stream) ({metrics.HEAPS_PLACED})")
        counts = {labels["stream"]: count for labels, count in placed}
        return counts if all(counts[name] > before[name] for name in arrays) else None

    for name, count in system.wait_for("newer scrape", scraped_since).items():
        assert before[name] < count <= arrays[name].stream.ledger.snapshot().placed


def grafana(expr):
    """Fill in a query's variables as Grafana does, with all instances, streams and sources chosen."""
    variables = {"__rate_interval": f"{8 * INTERVAL_MS}ms", "__range": "1m"}
    variables |= dict.fromkeys(dashboard.VARIABLES, ".*")
    expr = re.sub(r"\$(\w+)", lambda match: variables[match[1]], expr)
    assert "$" not in expr
    return expr


#: Those of fleets have a test of their own.
PANELS = [panel for row in dashboard.ROWS if row is not dashboard.FLEET for panel in row.panels]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_panel(system, panel):
    if panel.quiet:  # `test_faults` checks it
        assert not any(data(system, query) for query in panel.queries)
    else:
        check_panel(system, panel)


def data(system, query):
    """What a query shows: labels and values of each series."""
    expr = grafana(query.expr)
    if query.kind == "table":
        return [(labels, [value]) for labels, value in system.prometheus.vector(expr)]
    return system.prometheus.matrix(expr, seconds=5, step=1)


def check_panel(system, panel):
    for query in panel.queries:
        expr = grafana(query.expr)
        series = data(system, query)
        assert series, f"no data: {expr}"
        legends = ["".join(labels.get(name, "") for name in re.findall(r"\w+", query.legend)) for labels, _ in series]
        assert len(set(legends)) == len(series), f"series that look the same in the legend: {legends}"
        streams = {labels["stream"] for labels, _ in series} if "stream" in query.legend else set()
        assert streams <= set(system.telescope.arrays)
        values = np.concatenate([values for _, values in series])
        finite = values[np.isfinite(values)]
        assert finite.size, f"no number: {expr}"
        if panel.minimum is not None:
            assert finite.min() >= panel.minimum
        if panel.maximum is not None:
            assert finite.max() <= panel.maximum
        if panel.type == "heatmap":
            bounds = [float(labels["le"]) for labels, _ in series]
            assert len(bounds) > 2
            assert max(bounds) == np.inf
            # Buckets hold all below them as well.
            last = [values[-1] for _, values in sorted(series, key=lambda one: float(one[0]["le"]))]
            assert last == sorted(last)
            assert last[-1] > 0


@pytest.mark.parametrize("label", dashboard.VARIABLES)
def test_variable(system, label):
    """The choices that the dashboard offers are there."""
    values = system.prometheus.get(f"label/{label}/values", **{"match[]": dashboard.VARIABLES[label]})
    expected = {"stream": set(system.telescope.arrays), "source": set(SOURCES)}
    if label in expected:
        assert set(values) == expected[label]
    else:
        assert len(values) == 1


def test_rules_without_faults(system):
    """Every rule is evaluated; those that record have a number for every stream, and nothing fires."""
    (group,) = system.prometheus.get("rules")["groups"]
    kinds = {rule["name"]: rule for rule in group["rules"]}
    assert len(kinds) == len(group["rules"])
    assert [(name, rule["lastError"]) for name, rule in kinds.items() if rule["health"] != "ok"] == []
    names = {rule["name"] for rule in group["rules"] if rule["type"] == "recording"}
    for name in names:
        data = system.prometheus.vector(name)
        streams = {labels["stream"] for labels, value in data if np.isfinite(value)}
        assert streams == (
            {"Healthy", "Mended", "Stalled", "Dropping"} if name == alerts.DROPS else set(system.telescope.arrays)
        )
    for name in set(kinds) - names:
        assert system.prometheus.vector(kinds[name]["query"]) == [], name
    assert system.fired() == set()


@pytest.mark.timeout(300)
def test_faults(system):
    """Each fault fires its own alert and no other; all end with the faults."""
    telescope = system.telescope
    expected, passing = telescope.expected("alerts"), telescope.expected("passing_alerts")
    telescope.break_all(True)
    system.wait_for_alerts(expected)
    for alert in system.prometheus.get("alerts")["alerts"]:
        if alert["state"] == "firing":
            texts = alert["annotations"]
            assert alert["labels"]["stream"] in texts["summary"]
            assert not re.search("{{|<no value>|<error", "".join(texts.values()))
    # The consumer's stall has made the kernel drop packets, too: that is not what is to be repaired.
    assert telescope.arrays["Stalled"].stream.kernel_drops() > 0
    # With one window more, what takes its time to begin or to end would have shown.
    time.sleep(alerts.WINDOW * TIME_SCALE)
    assert system.firing() == expected
    for panel in PANELS:
        if panel.quiet:
            check_panel(system, panel)
    telescope.break_all(False)
    system.wait_for_alerts(set())
    time.sleep(alerts.WINDOW * TIME_SCALE)
    assert system.firing() == set()
    assert system.fired() == expected | passing
