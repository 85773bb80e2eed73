"""One share at work, without a cluster: what it reports, and how it ends."""

import pickle
import threading

import numpy as np
import pytest
import spead2

from fleets import ANTENNAS, AT_ONCE, LAYOUT, as_arrays, by_one_receiver, contents, packet, plan_of
from loopback import needs_multicast_route, wait_for
from speadrx.fleet.account import FleetAccount
from speadrx.fleet.share import ShareRun, Work, recording_path

pytestmark = needs_multicast_route


class Running:
    """A share in a thread, and the account of its reports."""

    def __init__(self, plan, number=0, **changes):
        share = plan.dealt[number]
        self.account = FleetAccount([share])
        self.account.submit(share.name, "worker", "host")
        self.reports = []
        fields = {
            "fleet": "test",
            "share": share.name,
            "incarnation": 1,
            "layout": share.layout,
            "endpoints": share.endpoints,
            "options": plan.receiver,
            "function": plan.function,
            "record": plan.record,
            "report_seconds": plan.report_seconds,
            **changes,
        }
        self.run = ShareRun(Work(**fields), self._take)
        self.thread = threading.Thread(target=self.run.run)
        self.thread.start()

    def _take(self, report):
        self.reports.append(pickle.loads(pickle.dumps(report)))
        self.account.add({**report, "worker": "worker"})

    @property
    def share(self):
        return self.account.stats().shares[0]

    def end(self, reason="enough"):
        self.run.end(reason)
        self.thread.join(60)
        assert not self.thread.is_alive()
        assert self.run.finished.is_set()
        return self.account.stats()

    def results(self):
        found = [entry for report in self.reports for entry in report["results"]]
        return {timestamp: pickle.loads(result) for timestamp, result in found}


@pytest.fixture
def run():
    started = []

    def run(*args, **kwargs):
        started.append(Running(*args, **kwargs))
        return started[-1]

    yield run
    for one in started:
        one.run.end("the test is over")
        one.thread.join(60)


def test_reports_add_up(array, run):
    one = run(plan_of(array), number=2)
    wait_for(lambda: one.share.state == "receives")
    for first in range(0, 96, AT_ONCE):
        array.send(range(first, first + AT_ONCE))
        wait_for(lambda n=first + AT_ONCE: one.share.placed == n)
    stats = one.end()
    assert (stats.placed, stats.present, stats.missing, stats.chunks) == (96, 96, 0, 24)
    assert (stats.in_flight, stats.unfinished, stats.residual) == (0, 0, 0)
    assert [report["number"] for report in one.reports] == list(range(1, len(one.reports) + 1))
    assert (one.reports[0]["kind"], one.reports[-1]["kind"]) == ("started", "ended")
    assert (one.share.state, one.reports[-1]["reason"]) == ("ended", "enough")
    whole = by_one_receiver(range(96))
    results = one.results()
    assert set(results) == set(whole)
    assert sum(len(report["results"]) for report in one.reports) == len(whole), "each is sent once"
    for timestamp, result in results.items():
        for ours, all_of_it in zip(as_arrays(result, 1), whole[timestamp], strict=True):
            np.testing.assert_array_equal(ours[:, 0], all_of_it[:, 2])


def test_reports_say_what_they_must(array, run):
    """What is missing, rejected and doubled, by source."""
    one = run(plan_of(array, shares=1))
    wait_for(lambda: one.share.state == "receives")
    array.send(range(8))
    array.send([1, 2], [3])
    array.send([8, 9, 10, 11], [0, 2, 3])
    array.send(range(12, 16))
    wait_for(lambda: one.share.placed == 12 * ANTENNAS + 12 + 2)
    stats = one.end()
    assert [(source.label, source.missing, source.duplicates) for source in stats.sources] == [
        ("m000", 0, 0),
        ("m001", 4, 0),
        ("m002", 0, 0),
        ("m003", 0, 2),
    ]
    assert stats.residual == 0


def test_only_what_rose_is_reported(array, run):
    one = run(plan_of(array))
    wait_for(lambda: len(one.reports) >= 5)
    assert all(report["rise"] == {} for report in one.reports[1:])


def test_failing_function_costs_no_data(array, run):
    def fail_often(chunk):
        if chunk.timestamp % 128:
            raise ValueError("of no account")
        return chunk.timestamp

    one = run(plan_of(array), function=fail_often)
    wait_for(lambda: one.share.state == "receives")
    array.send(range(16))
    wait_for(lambda: one.share.placed == 16)
    stats = one.end()
    assert (stats.present, stats.residual, one.share.function_errors) == (16, 0, 2)
    assert one.results() == {0: 0, 128: 128}


def test_function_by_name(array, run):
    one = run(plan_of(array, function=f"{contents.__module__}:contents"))
    wait_for(lambda: one.share.state == "receives")
    array.send(range(8))
    wait_for(lambda: one.share.placed == 8)
    one.end()
    assert set(one.results()) == {0, 64}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"function": "no_such_module:f"}, ["ModuleNotFoundError", "no_such_module"]),
        ({"function": "math:pi"}, ["TypeError", "function", "'math:pi'"]),
        ({"options": {"interface": "203.0.113.1"}}, ["OSError", "interface 203.0.113.1"]),
        ({"record": "/no/such/folder/{share}.zarr"}, ["FileNotFoundError", "/no/such/folder"]),
    ],
)
def test_what_goes_wrong_is_in_the_last_report(array, run, changes, parts):
    one = run(plan_of(array), **changes)
    one.thread.join(60)
    assert one.share.state == "failed"
    for part in parts:
        assert part in one.share.error


def test_ended_before_it_began(array):
    share = plan_of(array).dealt[0]
    reports = []
    work = Work("test", "0", 1, share.layout, share.endpoints, {"interface": "127.0.0.1"}, None, None, 0.05)
    run = ShareRun(work, reports.append)
    run.end("cancelled")
    run.run()
    assert (reports[-1]["kind"], reports[-1]["reason"], reports[-1]["error"]) == ("ended", "cancelled", None)


def test_recording(array, run, tmp_path):
    zarr = pytest.importorskip("zarr")
    one = run(plan_of(array, record=str(tmp_path / "night_{share}.zarr")), number=1)
    wait_for(lambda: one.share.state == "receives")
    array.send(range(AT_ONCE))
    wait_for(lambda: one.share.placed == AT_ONCE)
    one.end()
    assert (one.share.recorded_chunks, one.share.not_recorded) == (4, 0)
    group = zarr.open_group(tmp_path / "night_1.zarr", mode="r")
    assert group["present"][:].shape == (AT_ONCE, 1)
    assert group["present"][:].all()
    assert group.attrs["speadrx"]["complete"]


def test_recordings_are_one_dataset(array, run, tmp_path):
    """Recordings of all shares, joined along their axis, hold what one receiver records."""
    xarray = pytest.importorskip("xarray")
    import speadrx

    record = str(tmp_path / "night_{share}.zarr")
    shares = [run(plan_of(array, record=record), number=number) for number in range(ANTENNAS)]
    wait_for(lambda: all(one.share.state == "receives" for one in shares))
    for first in range(0, 64, AT_ONCE):
        array.send(range(first, first + AT_ONCE))
        wait_for(lambda n=first + AT_ONCE: all(one.share.placed == n for one in shares))
    for one in shares:
        one.end()
    queue = spead2.InprocQueue()
    for batch in range(64):
        for antenna in range(ANTENNAS):
            queue.add_packet(packet(batch, antenna))
    queue.stop()
    with (
        speadrx.Receiver(LAYOUT, queue, window=2) as receiver,
        speadrx.Recorder(receiver, tmp_path / "whole.zarr", wait=True) as recorder,
    ):
        for chunk in recorder:
            chunk.recycle()
    paths = [tmp_path / f"night_{number}.zarr" for number in range(ANTENNAS)]
    joined = xarray.concat([speadrx.open(path) for path in paths], dim="antenna")
    whole = speadrx.open(tmp_path / "whole.zarr")
    for name in ("data", "present", "time"):
        np.testing.assert_array_equal(joined[name].values, whole[name].values)
    assert joined.data.dims == whole.data.dims


def test_recordings_of_later_starts_lie_beside_the_first():
    assert recording_path("/data/night_{share}.zarr", "07", 1) == "/data/night_07.zarr"
    assert recording_path("/data/night_{share}.zarr", "07", 3) == "/data/night_07_3.zarr"


@pytest.mark.parametrize("option", [{"interface": "203.0.113.1"}, {"window": 0}], ids=["OSError", "ValueError"])
def test_what_a_receiver_cannot_be_made_of_is_no_traceback(array, caplog, run, option):
    """The fleet says it. What goes wrong later has its traceback."""
    with caplog.at_level("INFO"):
        share = run(plan_of(array), options=option)
        share.thread.join(60)
    assert share.share.state == "failed"
    assert str(*option.values()) in share.share.error
    (record,) = [one for one in caplog.records if one.name == "speadrx.fleet.share"]
    assert (record.levelname, record.exc_info) == ("INFO", False)
