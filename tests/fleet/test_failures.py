"""What fails under a fleet: workers, again and again; workers that stand still; the scheduler; a slow function."""

import contextlib
import functools
import os
import random
import signal
import time

import pytest

pytest.importorskip("distributed")


from clusters import MARKS, PATIENCE, Processes, pids, put_together, start_of, workers
from fleets import ANTENNAS, AT_ONCE, BATCHES, WINDOW, contents_when, groups_of, has_read, plan_of
from loopback import wait_for

pytestmark = MARKS
KILLS = 10


def test_ten_workers_are_killed(cluster, array, start):
    """While packets come without a pause: the others lose nothing, and each gap is what was sent meanwhile."""
    rand = random.Random(10)
    fleet = start(plan_of(array))
    everybody = range(ANTENNAS)
    sent, victims = 0, []

    def send(shares):
        nonlocal sent
        array.send_on(fleet, range(sent, sent + AT_ONCE), shares)
        sent += AT_ONCE

    # More than the window keeps: if a share died before its first chunk, nobody would know when its gap begins.
    for _ in range(2 * WINDOW * BATCHES // AT_ONCE):
        send(everybody)
    assert fleet.wait(lambda: all(share.present for share in fleet.stats().shares), PATIENCE)
    for _ in range(KILLS):
        for _ in range(rand.randrange(1, 4)):
            send(everybody)
        victim = rand.randrange(ANTENNAS)
        before = fleet.stats().shares[victim]
        pid = pids(cluster)[before.worker]
        moment = rand.randrange(AT_ONCE)
        array.send(range(sent, sent + moment))
        os.kill(pid, signal.SIGKILL)
        array.send(range(sent + moment, sent + AT_ONCE))
        sent += AT_ONCE
        victims.append(victim)
        others = [share for share in everybody if share != victim]

        def is_back(victim=victim, before=before):
            now = fleet.stats().shares[victim]
            return now.incarnation > before.incarnation and now.state == "receives"

        while not is_back():
            send(others)
            fleet.wait(is_back, 0.2)
    send(everybody)
    stats = fleet.stop()
    results = list(fleet)
    for number, share in enumerate(stats.shares):
        deaths = victims.count(number)
        assert (share.incarnation, set(share.gaps) <= {"worker_died"}) == (1 + deaths, True)
        assert (share.missing, share.kernel_drops, share.lost_reports, share.repeated_reports) == (0, 0, 0, 0)
        assert share.present + sum(share.gaps.values()) == sent
        assert (sum(share.gaps.values()) > 0) == (deaths > 0)
        assert share.residual == 0
    # What the account has present is what the function has seen, and all else is in a gap.
    whole = put_together(results)
    for number, share in enumerate(stats.shares):
        assert sum(int(present[:, number].sum()) for _, present in whole.values()) == share.present
    assert stats.residual == 0


def test_a_worker_stands_still(cluster, array, start):
    """Without room elsewhere it keeps its share. Packets wait in its sockets; those without room there are missing."""
    fleet = start(plan_of(array, silent_seconds=1))
    array.send_gently(fleet, range(32))
    victim = 2
    pid = pids(cluster)[fleet.stats().shares[victim].worker]
    os.kill(pid, signal.SIGSTOP)
    try:
        array.send_on(fleet, range(32, 64), [share for share in range(ANTENNAS) if share != victim])
        # It is named by its silence.
        assert fleet.wait(lambda: fleet.stats().shares[victim].silent > 3, PATIENCE)
        assert not has_read(fleet, victim, 63)
        array.send(range(64, 4064), [victim])
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: has_read(fleet, victim, 64))
    array.send_gently(fleet, range(4064, 4096))
    stats = fleet.stop()
    share = stats.shares[victim]
    assert (share.incarnation, share.gaps, share.residual, stats.residual) == (1, {}, 0, 0)
    assert share.present + share.missing == 4096
    assert share.missing == share.kernel_drops > 0
    for other in stats.shares[:victim] + stats.shares[victim + 1 :]:
        assert (other.present, other.missing, other.kernel_drops) == (96, 4000, 0)


def test_a_silent_worker_is_replaced(array, start):
    """And ends its receiver once it can be reached: it may have a share again. Nothing of it counts twice."""
    victim = 1
    others = [share for share in range(ANTENNAS) if share != victim]
    with workers(ANTENNAS + 1) as cluster:
        fleet = start(plan_of(array, silent_seconds=3), cluster)
        where = pids(cluster)
        group, sent, holders = array.groups[victim][0], 0, []

        def send(batches, shares):
            nonlocal sent
            array.send_on(fleet, range(sent, sent + batches), shares)
            sent += batches

        send(2 * WINDOW * BATCHES, range(ANTENNAS))
        assert fleet.wait(lambda: fleet.stats().shares[victim].present, PATIENCE)
        for n in (1, 2):
            before = fleet.stats().shares[victim]
            pid = where[before.worker]
            holders.append(before.worker)
            os.kill(pid, signal.SIGSTOP)
            try:
                send(AT_ONCE, others)
                assert fleet.wait(lambda n=n: fleet.stats().shares[victim].incarnation == n + 1, PATIENCE)
                fleet.wait_until_receiving(PATIENCE)
                send(2 * WINDOW * BATCHES, range(ANTENNAS))
                # Both have it: nobody can tell the one that stands still.
                assert group in groups_of(pid)
            finally:
                os.kill(pid, signal.SIGCONT)
            # It hands over what it had, and leaves the group.
            wait_for(lambda pid=pid: group not in groups_of(pid), PATIENCE)
            refused = before.refused_reports
            assert fleet.wait(lambda n=refused: fleet.stats().shares[victim].refused_reports > n, PATIENCE)
            wait_for(lambda: not fleet._places.silent, PATIENCE)
        assert fleet.stats().shares[victim].worker == holders[0] != holders[1]
        stats = fleet.stop()
    share = stats.shares[victim]
    assert (share.incarnation, set(share.gaps), stats.residual) == (3, {"worker_silent"}, 0)
    assert share.present + share.missing + sum(share.gaps.values()) == sent
    assert {(stats.shares[i].incarnation, stats.shares[i].present, stats.shares[i].missing) for i in others} == {
        (1, sent, 0)
    }
    whole = put_together(fleet)
    assert sum(int(present[:, victim].sum()) for _, present in whole.values()) == share.present


def test_a_scheduler_stands_still(array, caplog):
    """Then nobody can be heard, so nobody is silent."""
    with Processes(3) as processes, start_of(processes.address, 3) as start:
        fleet = start(plan_of(array, shares=2, silent_seconds=1))
        array.send_gently(fleet, range(64))
        ticks = fleet._ticks
        os.kill(processes.scheduler, signal.SIGSTOP)
        try:
            time.sleep(4)
        finally:
            os.kill(processes.scheduler, signal.SIGCONT)
        # As many as make a worker silent.
        assert fleet.wait(lambda: fleet._ticks > ticks + 20, PATIENCE)
        array.send_gently(fleet, range(64, 128))
        stats = fleet.stop()
    assert "silent" not in caplog.text
    assert [(one.incarnation, one.present, one.gaps) for one in stats.shares] == [(1, 128 * ANTENNAS // 2, {})] * 2


def test_a_slow_share_is_named_before_it_loses_data(array, start, tmp_path):
    gate = tmp_path / "go"
    # The function has a chunk, six wait, and four are free.
    n_chunks, out = 8 + 1 + 6 + 4, 1 + 6
    options = plan_of(array).receiver | {"window": 8, "chunks": n_chunks}
    fleet = start(plan_of(array, receiver=options, function=functools.partial(contents_when, str(gate))))
    sent = (8 + out) * BATCHES
    array.send_on(fleet, range(sent - 2 * BATCHES), range(ANTENNAS))
    wait_for(lambda: all(has_read(fleet, share, sent - 2 * BATCHES - 1) for share in range(ANTENNAS)))
    assert not any(share.slow for share in fleet.stats().shares)
    array.send_on(fleet, range(sent - 2 * BATCHES, sent), range(ANTENNAS))
    assert fleet.wait(lambda: all(share.slow for share in fleet.stats().shares), PATIENCE)
    named = fleet.stats()
    assert (named.missing, named.kernel_drops) == (0, 0)
    gate.touch()
    array.send_on(fleet, range(sent, sent + 16), range(ANTENNAS))
    assert fleet.wait(lambda: not any(share.slow for share in fleet.stats().shares), PATIENCE)
    stats = fleet.stop()
    assert (stats.present, stats.missing, stats.kernel_drops) == (ANTENNAS * (sent + 16), 0, 0)


def recorded(path):
    """How many batches a recording has, and whether it was finished."""
    import speadrx

    try:
        with contextlib.closing(speadrx.open(path)) as dataset:
            return int(dataset.present.values.sum()), bool(dataset.attrs.get("complete"))
    except (OSError, ValueError, KeyError):  # it has only begun
        return 0, False


@pytest.mark.parametrize("goes_on", [True, False])
def test_the_scheduler_dies(array, tmp_path, goes_on):
    """Its receivers go on, and record, until there is another; the fleet goes on there, or has ended meanwhile."""
    pytest.importorskip("xarray")
    paths = [tmp_path / f"night_{share}.zarr" for share in (0, 1)]
    with Processes(2) as processes, start_of(processes.address, 2) as start:
        fleet = start(plan_of(array, shares=2, record=str(tmp_path / "night_{share}.zarr")))
        array.send_gently(fleet, range(64))
        # Otherwise nobody would know when the gap begins.
        assert fleet.wait(lambda: all(share.present for share in fleet.stats().shares), PATIENCE)
        processes.kill_scheduler()
        assert fleet.wait(lambda: [share.state for share in fleet.stats().shares] == ["lost"] * 2, PATIENCE)
        if not goes_on:
            assert [share.state for share in fleet.stop().shares] == ["lost"] * 2
        # Nobody says any more what was received, but each chunk that leaves the window is on disk.
        for batches in range(64, 128, AT_ONCE):
            array.send(range(batches, batches + AT_ONCE))
            done = (batches + AT_ONCE - WINDOW * BATCHES) * ANTENNAS // 2
            wait_for(lambda n=done: all(recorded(path)[0] >= n for path in paths), PATIENCE)
        processes.start_scheduler()
        wait_for(lambda: all(recorded(path) == (128 * ANTENNAS // 2, True) for path in paths), PATIENCE)
        if not goes_on:
            return
        processes.restart_workers()
        fleet.wait_until_receiving(PATIENCE)
        array.send_gently(fleet, range(132, 164))
        stats = fleet.stop()
    for share in stats.shares:
        assert (share.incarnation, set(share.gaps), share.missing, share.residual) == (2, {"scheduler_lost"}, 0, 0)
        assert share.present + share.gaps["scheduler_lost"] == 164 * ANTENNAS // 2
    assert [recorded(tmp_path / f"night_{share}_2.zarr") for share in (0, 1)] == [(32 * ANTENNAS // 2, True)] * 2
