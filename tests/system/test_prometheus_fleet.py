"""The account of a fleet on a real Prometheus server, and the dashboard's row of fleets."""

import contextlib
import platform
import re
import threading

import pytest
from prometheus_client import CollectorRegistry

import dashboard
from addresses import own_port
from fleets import ANTENNAS, LAYOUT, Array, Shares, plan_of
from loopback import needs_multicast_route
from prometheus_server import program, prometheus_server, wait_for
from speadrx import metrics
from speadrx.fleet import metrics as fleet_metrics
from speadrx.fleet.metrics import FleetCollector
from speadrx.metrics.server import MetricsServer

pytestmark = needs_multicast_route

INTERVAL_MS = 500
HOST = platform.node()
#: The longest that anything here is waited for.
SECONDS = 90


def often_fails(chunk):
    """A function of a plan."""
    raise ValueError("as it is to")


class Fleet:
    """Shares that receive all the time, and a server that has their account."""

    def __init__(self, folder, stack):
        self.array = Array(own_port())
        stack.callback(self.array.close)
        self.shares = Shares(plan_of(self.array, function=often_fails))
        stack.callback(self.shares.end)
        self.shares.start(*range(ANTENNAS))
        registry = CollectorRegistry(auto_describe=True)
        registry.register(FleetCollector(self.shares.account))
        server = MetricsServer(registry, 0, "127.0.0.1")
        stack.callback(server.close)
        self.prometheus = stack.enter_context(
            prometheus_server(
                folder, target=f"127.0.0.1:{server.port}", rules="groups: []", interval=f"{INTERVAL_MS}ms"
            )
        )
        self.batch = 0
        #: Antennas that send.
        self.senders = set(range(ANTENNAS))
        self.stop = threading.Event()
        thread = threading.Thread(target=self._send)
        thread.start()
        stack.callback(thread.join)
        stack.callback(self.stop.set)

    def _send(self):
        while not self.stop.wait(0.05):
            self.array.send([self.batch], sorted(self.senders))
            self.batch += 1

    def values(self, metric, *labels):
        """The value of each series, by some of its labels."""
        found = self.prometheus.vector(metric)
        by_labels = {tuple(series.get(label, "") for label in labels): value for series, value in found}
        assert len(by_labels) == len(found)
        return by_labels

    def wait_for(self, what, condition):
        return wait_for(what, condition, SECONDS)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    program("promtool")
    with contextlib.ExitStack() as stack:
        made = Fleet(tmp_path_factory.mktemp("prometheus"), stack)
        # By then there is something to take a rate of.
        made.wait_for("data", lambda: made.prometheus.vector(f"min({metrics.CHUNKS}) > 10"))
        yield made


def query(expr):
    """Fill in a query's variables as Grafana does."""
    variables = {"instance": ".*", "__rate_interval": f"{8 * INTERVAL_MS}ms", "__range": "5m"}
    return re.sub(r"\$(\w+)", lambda match: variables[match[1]], expr)


@pytest.mark.timeout(400)
def test_account_and_row(fleet):
    """The server has what the account says, by share and host; then a share dies, and all panels show it."""
    account = fleet.shares.account
    scraped = fleet.values(metrics.HEAPS_PLACED, "share", "host", "source")
    expected = {(str(i), HOST, label) for i, label in enumerate(LAYOUT.source_labels)}
    assert set(scraped) == expected
    for share in account.stats().shares:
        before = share.placed

        def newer(name=share.name, before=before):
            found = fleet.values(f'{metrics.HEAPS_PLACED}{{share="{name}"}}', "share")
            return found[(name,)] if found[(name,)] > before else None

        assert before < fleet.wait_for("newer scrape", newer) <= account.stats().shares[int(share.name)].placed
    assert fleet.values(fleet_metrics.RECEIVES, "share") == {(str(i),): 1 for i in range(ANTENNAS)}
    # A share whose worker dies goes on, with a gap, and what its last incarnation reports comes too late.
    old, thread = fleet.shares.shares.pop(1)
    account.give_up("1")
    fleet.wait_for("share that does not receive", lambda: fleet.values(fleet_metrics.RECEIVES, "share")[("1",)] == 0)
    fleet.shares.start(1)
    fleet.wait_for("gap", lambda: fleet.prometheus.vector(fleet_metrics.GAP_HEAPS))
    gaps = fleet.values(fleet_metrics.GAP_HEAPS, "share", "cause")
    assert gaps == {("1", "worker_died"): account.stats().shares[1].gaps["worker_died"]}
    for panel in dashboard.FLEET.panels:
        for one in panel.queries:
            check(fleet, panel, one)
    old.end("it is over")
    thread.join(60)


def check(fleet, panel, one):
    """A query has data, each series looks different, and all is within the limits of its panel."""
    expr = query(one.expr)
    assert "$" not in expr
    found = fleet.wait_for(f"data: {expr}", lambda: fleet.prometheus.vector(expr))
    legends = ["".join(labels.get(name, "") for name in re.findall(r"\w+", one.legend)) for labels, _ in found]
    assert len(set(legends)) == len(found)
    values = [value for _, value in found if value == value]
    assert all(value >= (panel.minimum or 0) for value in values)
    assert panel.maximum is None or all(value <= panel.maximum for value in values)
