"""The merged account: nothing counts twice, and what is lost with a worker has a name."""

import dataclasses

import pytest
from prometheus_client import CollectorRegistry

from fleets import LAYOUT, STEP
from speadrx.fleet.account import FleetAccount
from speadrx.fleet.metrics import FleetCollector
from speadrx.fleet.plan import Plan

#: Two shares of two antennas each.
SHARES = Plan(layout=LAYOUT, endpoints="239.1.2.0+3:7148", deal="antenna", shares=2).dealt


def report(number, *, share="0", incarnation=1, kind="running", rise=None, span=None, placed=0, **now):
    """A report as a share sends it. `span` is in batches."""
    return {
        "kind": kind,
        "share": share,
        "incarnation": incarnation,
        "number": number,
        "host": "a",
        "worker": "tcp://a:1",
        "rise": rise or {},
        "now": {
            "in_flight": [0, 0],
            "unfinished": 0,
            "placed": placed,
            "span": span and [span[0] * STEP, span[1] * STEP],
            **now,
        },
        "results": [],
        "reason": "cancelled",
        "error": None,
    }


@pytest.fixture
def account():
    made = FleetAccount(SHARES)
    for share in ("0", "1"):
        assert made.submit(share, "tcp://a:1", "a") == 1
    return made


def test_increments_add_up(account):
    assert account.add(report(1, rise={"placed": [5, 4], "present": [4, 3]}, placed=9, in_flight=[1, 1]))
    assert account.add(report(2, rise={"placed": (3, 2), "present": (4, 3), "missing": (0, 1)}, placed=14))
    stats = account.stats()
    assert (stats.placed, stats.present, stats.missing, stats.in_flight, stats.residual) == (14, 14, 1, 0, 0)
    assert [(one.label, one.present, one.missing) for one in stats.sources] == [
        ("m000", 8, 0),
        ("m001", 6, 1),
        ("m002", 0, 0),
        ("m003", 0, 0),
    ]


def test_a_report_counts_once(account):
    one = report(1, rise={"placed": [5, 4], "present": [5, 4]}, placed=9)
    assert [account.add(one), account.add(one)] == [True, False]
    stats = account.stats()
    assert (stats.placed, stats.residual, stats.shares[0].repeated_reports) == (9, 0, 1)


def test_a_lost_report_shows(account):
    account.add(report(1, rise={"placed": [1, 1], "present": [1, 1]}, placed=2))
    account.add(report(3, rise={"placed": [1, 1], "present": [1, 1]}, placed=8))
    stats = account.stats()
    assert (stats.shares[0].lost_reports, stats.residual) == (1, 4)


def test_what_counts_twice_shows(account):
    """Whatever the cause: the residual compares increments with sums."""
    account.add(report(1, rise={"placed": [5, 4], "present": [5, 4]}, placed=9))
    account.add(report(2, rise={"present": [5, 4]}, placed=9))
    assert account.stats().residual == 9


def test_death_names_heaps_and_gap(account):
    account.add(report(1, rise={"placed": [10, 10], "present": [8, 8]}, span=(0, 8), placed=20, in_flight=[2, 2]))
    account.give_up("0")
    dead = account.stats()
    assert (dead.died, dead.in_flight, dead.residual, dead.shares[0].state) == (4, 0, 0, "lost")
    assert account.submit("0", "tcp://b:1", "b") == 2
    account.add(report(1, incarnation=2))
    account.add(report(2, incarnation=2, rise={"placed": [4, 4], "present": [4, 4]}, span=(20, 24), placed=8))
    stats = account.stats()
    assert stats.shares[0].gaps == {"worker_died": 2 * 12}
    assert [one.gaps for one in stats.sources[:2]] == [12, 12]
    # All batches from 0 to 24, of two antennas.
    assert stats.present + stats.missing + sum(stats.shares[0].gaps.values()) == 2 * 24
    assert (stats.residual, stats.shares[0].incarnation) == (0, 2)


def test_heaps_before_the_first_whole_batch_are_not_in_the_gap(account):
    account.add(report(1, rise={"present": [8, 8], "placed": [8, 8]}, span=(0, 8), placed=16))
    account.give_up("0")
    account.submit("0", "tcp://b:1", "b")
    rise = {"present": [1, 0], "placed": [1, 0], "before": [1, 0]}
    account.add(report(1, incarnation=2, rise=rise, span=(20, 20), placed=1))
    assert account.stats().shares[0].gaps == {}
    rise = {"present": [5, 4], "placed": [5, 4], "before": [1, 0]}
    account.add(report(2, incarnation=2, rise=rise, span=(20, 24), placed=10))
    assert [one.gaps for one in account.stats().sources[:2]] == [10, 12]


def test_the_dead_are_not_heard(account):
    account.add(report(1, rise={"placed": [8, 8], "present": [8, 8]}, span=(0, 8), placed=16))
    account.give_up("0")
    assert not account.add(report(2, rise={"placed": [8, 8], "present": [8, 8]}, span=(0, 16), placed=32))
    account.submit("0", "tcp://b:1", "b")
    assert not account.add(report(3, rise={"placed": [8, 8], "present": [8, 8]}, span=(0, 24), placed=48))
    stats = account.stats()
    assert (stats.present, stats.shares[0].refused_reports, stats.residual) == (16, 2, 0)


def test_moving_is_another_cause(account):
    account.add(report(1, rise={"placed": [8, 8], "present": [8, 8]}, span=(0, 8), placed=16))
    account.add(report(2, kind="ended", span=(0, 8), placed=17, rise={"placed": [1, 0]}, unfinished=1))
    assert account.stats().shares[0].state == "ended"
    account.submit("0", "tcp://b:1", "b")
    account.add(report(1, incarnation=2, span=(9, 10), rise={"placed": [1, 1], "present": [1, 1]}, placed=2))
    stats = account.stats()
    assert (stats.died, stats.unfinished, stats.residual) == (0, 1, 0)
    assert stats.shares[0].gaps == {"share_moved": 2}


def test_no_gap_where_time_began_again(account):
    account.add(report(1, rise={"placed": [8, 8], "present": [8, 8]}, span=(100, 108), placed=16))
    account.give_up("0")
    account.submit("0", "tcp://b:1", "b")
    account.add(report(1, incarnation=2, span=(0, 4), rise={"placed": [4, 4], "present": [4, 4]}, placed=8))
    assert account.stats().shares[0].gaps == {}


def test_a_share_with_nothing_has_missed_what_others_were_sent(account):
    """Also if it was never started, or has rejected all; not once it has received anything."""
    account.add(report(1, rise={"placed": [7, 6], "present": [7, 6], "missing": [0, 1]}, placed=13))
    account.add(report(1, share="1", rise={"rejected.length": [2, 3, 0]}))
    stats = account.stats()
    idle = stats.shares[1]
    assert (idle.present, idle.missing, idle.gaps, idle.loss, idle.residual) == (0, 0, {"nothing_received": 14}, 1, 0)
    assert stats.gaps == {"nothing_received": 14}
    assert [(one.gaps, one.loss) for one in stats.sources] == [(0, 0), (0, 1 / 7), (7, 1), (7, 1)]
    assert stats.loss == 15 / 28
    account.fail("1", 1, "ValueError: of no account")
    assert account.stats().gaps == {"nothing_received": 14}
    account.submit("1", "tcp://a:1", "a")
    account.add(report(1, share="1", incarnation=2, rise={"placed": [1, 0]}, placed=1, in_flight=[1, 0]))
    stats = account.stats()
    assert (stats.gaps, stats.loss, stats.residual) == ({}, 1 / 14, 0)


def test_nothing_is_missed_if_nothing_came(account):
    account.add(report(1, rise={"placed": [1, 0]}, placed=1, in_flight=[1, 0]))
    assert (account.stats().gaps, account.stats().loss) == ({}, None)


def test_failure_before_any_report(account):
    assert account.fail("0", 1, "KeyError()")
    assert not account.fail("0", 1, "KeyError()")
    assert (account.stats().shares[0].state, account.stats().shares[0].error) == ("failed", "KeyError()")


def test_plain_values(account):
    account.add(report(1, rise={"rejected.metadata_heaps": [1, 0, 2]}))
    stats = dataclasses.asdict(account.stats())
    assert stats["rejected"] == {"metadata_heaps": 3}
    assert [one["rejected"] for one in stats["sources"]] == [1, 0, 0, 0]


def test_metrics(account):
    registry = CollectorRegistry()
    registry.register(FleetCollector(account))
    account.add(report(1, rise={"placed": [5, 4], "present": [5, 4], "chunks": 2, "kernel_drops": 3}, placed=9))
    account.add(report(1, share="1", rise={"placed": [1, 1], "rejected.metadata_heaps": [0, 0, 2]}, placed=2))

    def value(name, **labels):
        return registry.get_sample_value(name, labels)

    at = {"share": "0", "host": "a"}
    assert value("speadrx_heaps_placed_total", source="m001", **at) == 4
    assert value("speadrx_received_bytes_total", source="m000", **at) == 5 * LAYOUT.heap_bytes
    assert value("speadrx_chunks_total", **at) == 2
    assert value("speadrx_socket_drops_total", endpoint="all", **at) == 3
    assert value("speadrx_fleet_share_receives", share="0") == 1
    rejected = {"share": "1", "host": "a", "reason": "metadata_heaps", "source": ""}
    assert value("speadrx_heaps_rejected_total", **rejected) == 2
    # On another host, its counters begin at 0, and those of the first stay.
    account.give_up("0")
    account.submit("0", "tcp://b:1", "b")
    account.add({**report(1, incarnation=2, rise={"placed": [7, 7]}, placed=14), "host": "b"})
    assert value("speadrx_heaps_placed_total", source="m001", **at) == 4
    assert value("speadrx_heaps_placed_total", source="m001", share="0", host="b") == 7
    assert value("speadrx_fleet_incarnations_total", share="0") == 2
