"""The committed dashboard and rules are what their generators make, of metrics that exist; tests/system runs them."""

import itertools
import json
import re

import pytest
from speadrx.meerkat import DigitiserLayout

import alerts
import dashboard
from speadrx import metrics
from speadrx.fleet.metrics import HELP as FLEET_METRICS

#: All that there are.
NAMES = metrics.NAMES | FLEET_METRICS.keys()


@pytest.mark.parametrize("generator", [dashboard, alerts], ids=lambda generator: generator.__name__)
def test_committed_file(generator):
    assert generator.OUTPUT.read_text("utf-8") == generator.generate(), f"run monitoring/{generator.__name__}.py"


def known(text):
    """Metrics in a text, all of which have to exist."""
    names = {re.sub("_bucket$", "", name) for name in re.findall(r"\bspeadrx_\w+", text)}
    assert names <= NAMES
    return names


def test_dashboard_metrics():
    """The dashboard shows every metric that there is."""
    queries = [query.expr for panel in dashboard.panels() for query in panel.queries]
    assert known("\n".join([*queries, *dashboard.VARIABLES.values()])) == NAMES


def test_dashboard_grid():
    """Panels have numbers of their own, cover no other, and fit into Grafana's 24 columns."""
    panels = json.loads(dashboard.generate())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        x, y, width, height = (panel["gridPos"][key] for key in "xywh")
        cells = set(itertools.product(range(x, x + width), range(y, y + height)))
        assert x + width <= 24
        assert not cells & taken
        taken |= cells
    assert len(taken) == 24 * len({y for _, y in taken})  # without gaps


def test_thresholds_of_panels():
    """Panels turn red where alerts fire; a value of nothing is good, unless it is what is received."""
    limits = alerts.Thresholds()
    red = {"Loss": limits.loss, "Loss by source": limits.loss, "Consumer blocks": limits.blocked}
    red |= {"Time blocked": limits.blocked}
    for panel in json.loads(dashboard.generate())["panels"]:
        if panel["type"] == "row":
            continue
        defaults = panel["fieldConfig"]["defaults"]
        if "thresholds" not in defaults:
            assert panel["type"] != "stat", "Grafana would turn it red from 80 on"
            assert panel["title"] not in red
            continue
        first, *others = defaults["thresholds"]["steps"]
        values = [step["value"] for step in others]
        assert first["value"] is None
        assert values == sorted(set(values))
        assert min(values) > 0
        assert (first["color"] == "red") == (panel["title"] in ("Heaps placed", "Received"))
        if panel["title"] in red:
            assert others[-1] == {"color": "red", "value": red[panel["title"]]}


def test_alerts():
    (group,) = alerts.rules()["groups"]
    recorded = set()
    for rule in group["rules"]:
        text = json.dumps(rule)
        known(text)
        if "record" in rule:
            recorded.add(rule["record"])
        else:
            assert rule["annotations"].keys() == {"summary", "description", "runbook"}
            assert all(rule["annotations"].values())
            assert rule["labels"]["severity"] in ("critical", "warning", "info")
        # Rules of a group are evaluated in order.
        assert set(re.findall(r"\bspeadrx:\w+:\w+", text)) <= recorded


def test_reasons():
    """The alerts look for reasons that there are."""
    reasons = {statistic.rpartition(".")[2] for statistic in DigitiserLayout(10, 4096, 65536).stream_stats}
    assert {metrics.IMPLAUSIBLE, metrics.BACKWARD} <= reasons


def test_time_scale():
    """Every duration is stretched, and nothing else is changed."""
    seconds = {"h": 3600, "m": 60, "s": 1}

    def durations(rules, pattern=r"\[(\d+)([hms])\]|for: \"(\d+)([hms])\""):
        found = (tuple(filter(None, match)) for match in re.findall(pattern, rules))
        return [int(number) * seconds[unit] for number, unit in found]

    plain, scaled = alerts.generate(), alerts.generate(time_scale=2)
    assert durations(scaled) == [2 * duration for duration in durations(plain)]
    assert len(durations(plain)) > len(alerts.rules()["groups"][0]["rules"])
    duration = re.compile(r"\b\d+[hms]\b")
    assert duration.sub("", plain) == duration.sub("", scaled)


def test_thresholds(tmp_path, monkeypatch):
    output = tmp_path / "rules.yml"
    options = ["--loss", "0.2", "--blocked", "0.3", "--implausible", "0.4", "--ahead", "4"]
    monkeypatch.setattr("sys.argv", ["alerts.py", str(output), *options])
    alerts.main()
    assert output.read_text("utf-8") == alerts.generate(
        alerts.Thresholds(loss=0.2, blocked=0.3, implausible=0.4, ahead=4)
    )
    for text in ("ratio > 0.2 ", "ratio > 0.3", "ratio > 0.4 ", "seconds > 4"):
        assert text in output.read_text("utf-8")
