"""A fleet on a cluster of processes: its shares are one receiver, whatever happens to workers."""

import json
import signal
import subprocess
import sys
import urllib.request

import pytest

pytest.importorskip("distributed")

from distributed import Client

import speadrx
from addresses import own_port
from clusters import MARKS, PATIENCE, pids, put_together, workers
from fleets import (
    ANTENNAS,
    AT_ONCE,
    BATCHES,
    INTERFACE,
    LAYOUT,
    STEP,
    WINDOW,
    Array,
    by_one_receiver,
    groups_of,
    kill,
    plan_of,
    record_by_one_receiver,
)
from loopback import wait_for
from speadrx.fleet import Fleet, FleetError

pytestmark = MARKS


def test_the_union_is_one_receiver(cluster, array, start):
    fleet = start(plan_of(array))
    workers = [share.worker for share in fleet.stats().shares]
    assert len(set(workers)) == ANTENNAS
    # Each group is joined by the worker that has its share, and by no other.
    for antenna, worker in enumerate(workers):
        groups = groups_of(pids(cluster)[worker]) & {group for group, _ in array.groups}
        assert groups == {array.groups[antenna][0]}
    array.send_gently(fleet, range(200))
    stats = fleet.stop()
    ours, whole = put_together(fleet), by_one_receiver(range(200))
    assert list(ours) == sorted(whole)
    for timestamp, (data, present) in whole.items():
        assert ours[timestamp][0].tobytes() == data.tobytes()
        assert ours[timestamp][1].tobytes() == present.tobytes()
    assert (stats.present, stats.missing, stats.gaps, stats.died) == (200 * ANTENNAS, 0, {}, 0)
    assert (stats.residual, stats.in_flight, stats.unfinished) == (0, 0, 0)
    assert [one.state for one in stats.shares] == ["ended"] * ANTENNAS


def test_one_recording_over_a_death(cluster, array, start, tmp_path):
    """All shares write one recording. One of them is killed: it goes on there, and the others have everything."""
    pytest.importorskip("xarray")
    pytest.importorskip("zarr")
    fleet = start(plan_of(array, function=None, record=str(tmp_path / "night.zarr")))
    array.send_gently(fleet, range(128))
    kill(pids(cluster)[fleet.stats().shares[1].worker])
    assert fleet.wait(lambda: fleet.stats().shares[1].incarnation == 2, PATIENCE)
    fleet.wait_until_receiving(PATIENCE)
    array.send_gently(fleet, range(160, 224))
    stats = fleet.stop()
    ours = speadrx.open(tmp_path / "night.zarr")
    whole = record_by_one_receiver(tmp_path / "whole.zarr", [*range(128), *range(160, 224)])
    others = [0, 2, 3]
    assert ours.time.values.tobytes() == whole.time.values.tobytes()
    for name in ("data", "present"):
        assert ours[name].values[:, others].tobytes() == whole[name].values[:, others].tobytes()
    there = ours.present.values[:, 1]
    assert there[160:].all()
    assert not there[128:160].any()
    # What the worker wrote after its last report is there too.
    assert stats.shares[1].present <= there.sum() < 192
    assert ours.data.values[there, 1].tobytes() == whole.data.values[there, 1].tobytes()
    assert (ours.attrs["complete"], ours.attrs["parts"], stats.residual) == (True, 1, 0)


def test_a_worker_is_killed(cluster, array, start):
    """The others lose nothing, the share goes on elsewhere, and its gap is what was sent meanwhile."""
    fleet = start(plan_of(array))
    victim = 1
    array.send_gently(fleet, range(64))
    # Otherwise nobody would know when the gap began.
    assert fleet.wait(lambda: fleet.stats().shares[victim].present, PATIENCE)
    worker = fleet.stats().shares[victim].worker
    kill(pids(cluster)[worker])
    array.send(range(64, 64 + AT_ONCE))
    assert fleet.wait(lambda: fleet.stats().shares[victim].incarnation == 2, PATIENCE)
    fleet.wait_until_receiving(PATIENCE)
    assert fleet.stats().shares[victim].worker != worker
    array.send_gently(fleet, range(100, 164))
    stats = fleet.stop()
    others = [one for i, one in enumerate(stats.shares) if i != victim]
    # Batches that were never sent are missing for all.
    assert {(one.present, one.missing, one.died, str(one.gaps)) for one in others} == {(64 + AT_ONCE + 64, 20, 0, "{}")}
    assert [one.incarnation for one in others] == [1, 1, 1]
    share = stats.shares[victim]
    assert share.present + share.missing + sum(share.gaps.values()) == 164
    assert list(share.gaps) == ["worker_died"]
    assert (share.incarnation, share.residual, stats.residual) == (2, 0, 0)
    assert share.lost_reports == share.repeated_reports == 0
    # What the account has present is what the function has seen, and what it has not is in the gap.
    seen = {time: present[:, victim].sum() for time, (_, present) in put_together(fleet).items()}
    assert sum(seen.values()) == share.present
    before = [time for time, n in seen.items() if n and time < 64 * STEP]
    after = [time for time, n in seen.items() if n and time >= 64 * STEP]
    assert share.gaps["worker_died"] <= (min(after) - max(before)) // STEP
    assert stats.sources[victim].gaps == share.gaps["worker_died"]


def test_a_worker_that_retires_hands_over(array, start):
    with workers(3) as cluster:
        fleet = start(plan_of(array, shares=2), cluster)
        array.send_gently(fleet, range(32))
        before = fleet.stats().shares[0].worker
        with Client(cluster, set_as_default=False) as client:
            client.retire_workers([before], close_workers=True)
        assert fleet.wait(lambda: fleet.stats().shares[0].incarnation == 2, PATIENCE)
        fleet.wait_until_receiving(PATIENCE)
        array.send_gently(fleet, range(40, 72))
        stats = fleet.stop()
    share = stats.shares[0]
    assert share.worker != before
    assert (share.present, share.missing, share.gaps, share.died) == (2 * 64, 0, {"share_moved": 2 * 8}, 0)
    assert (stats.residual, share.refused_reports) == (0, 0)


def test_a_share_that_cannot_start_is_named(start, array):
    plan = plan_of(array, receiver={"interface": "203.0.113.1"})
    with pytest.raises(FleetError, match=r"4 shares of 4 .*203\.0\.113\.1"):
        start(plan)


def test_what_does_not_fit_is_said_at_once(cluster, array):
    fleet = Fleet(plan_of(array, resources={"GPU": 1}), cluster)
    try:
        (problem,) = [one for one in fleet.connect(grace=0.1) if one.fatal]
    finally:
        fleet.stop()
    assert "GPU" in problem.text


def test_who_waits_for_workers_can_stop(cluster, array):
    asked = []
    fleet = Fleet(plan_of(array, resources={"GPU": 1}), cluster)
    try:
        found = fleet.connect(grace=PATIENCE, stop=lambda: asked.append("once") or True)
    finally:
        fleet.stop()
    assert asked == ["once"]
    assert any(problem.fatal for problem in found)


def test_a_function_that_no_worker_has(cluster, array):
    fleet = Fleet(plan_of(array, function="nowhere_at_all:spectrum"), cluster)
    try:
        (problem,) = [one for one in fleet.connect(grace=0.1) if one.fatal]
    finally:
        fleet.stop()
    assert problem.text.startswith("function: 4 workers (")
    assert "cannot find it: ModuleNotFoundError: No module named 'nowhere_at_all'" in problem.text


def test_no_scheduler():
    with pytest.raises(FleetError, match=r"scheduler: tcp://127\.0\.0\.1"):
        Fleet(plan_of(Array(7148)), f"tcp://127.0.0.1:{own_port()}").connect(timeout=1)


def test_cancelled_shares_give_their_resources_back(array, start):
    for _ in range(3):
        fleet = start(plan_of(array))
        array.send_gently(fleet, range(8))
        assert fleet.stop().present == 8 * ANTENNAS


async def test_results_in_an_event_loop(array, start):
    fleet = start(plan_of(array))
    # More chunks than the window keeps.
    array.send_gently(fleet, range((WINDOW + 6) * BATCHES))
    times = []
    async for timestamp, results, missing, late in fleet:
        assert (len(results), missing, late) == (ANTENNAS, (), False)
        times.append(timestamp)
        if len(times) == 5:
            break
    assert times == [BATCHES * STEP * i for i in range(5)]


def scraped(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as reply:
        lines = reply.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines) if name[:1] != "#"}


def test_command(array, tmp_path):
    """`speadrx fleet --local`, from the plan to the account, with its metrics and `speadrx top` on them."""
    port = own_port()
    (tmp_path / "array.toml").write_text(LAYOUT.to_toml(), "utf-8")
    (tmp_path / "plan.toml").write_text(
        f'layout = "array.toml"\nendpoints = ["{array.endpoints}"]\ndeal = "antenna"\nshares = 2\n'
        f'report_seconds = 0.05\n[receiver]\ninterface = "{INTERFACE}"\nwindow = {WINDOW}\n',
        "utf-8",
    )
    speadrx = [sys.executable, "-m", "speadrx.cli"]
    arguments = ["fleet", "plan.toml", "--local", "2", "--json", "--metrics-port", str(port)]
    process = subprocess.Popen(
        [*speadrx, *arguments], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def total(name):
        assert process.poll() is None, process.communicate()
        try:
            found = scraped(port)
        except OSError:
            return 0
        return sum(value for sample, value in found.items() if sample.startswith(f"{name}{{"))

    try:
        wait_for(lambda: total("speadrx_fleet_share_receives") == 2, PATIENCE)
        for first in range(0, 64, AT_ONCE):
            array.send(range(first, first + AT_ONCE))
            wait_for(lambda n=(first + AT_ONCE) * ANTENNAS: total("speadrx_heaps_placed_total") == n, PATIENCE)
        top = [*speadrx, "top", f"http://127.0.0.1:{port}/metrics", "--once", "--json"]
        seen = subprocess.run(top, capture_output=True, text=True, timeout=120, check=True)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=120)
    assert process.returncode == 0, errors
    account = json.loads(output)
    assert (account["present"], account["missing"], account["residual"]) == (64 * ANTENNAS, 0, 0)
    assert [share["state"] for share in account["shares"]] == ["ended"] * 2
    report = json.loads(seen.stdout)
    assert sorted(stream["stream"]["share"] for stream in report["streams"]) == ["0", "1"]
    assert sum(stream["counters"]["placed"] for stream in report["streams"]) == 64 * ANTENNAS
