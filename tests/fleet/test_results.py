"""Results in the order of time: who is waited for, and for how long."""

import random

import pytest

from speadrx.fleet.results import ByTime, Results


def take_all(by_time, now, **how):
    return list(iter(lambda: by_time.next(now, **how), None))


def test_complete_times_need_no_waiting():
    by_time = ByTime("ab", patience=5)
    by_time.add("a", 16, "a16", now=0)
    assert by_time.next(0) is None
    by_time.add("b", 16, "b16", now=0)
    assert by_time.next(0) == Results(16, {"a": "a16", "b": "b16"}, (), False)
    assert by_time.next(0) is None


def test_later_results_tell_that_none_comes():
    by_time = ByTime("ab", patience=5)
    by_time.add("a", 16, "a16", now=0)
    by_time.add("b", 32, "b32", now=0)
    assert take_all(by_time, 0) == [Results(16, {"a": "a16"}, ("b",), False)]


def test_slow_share_is_named_after_a_time():
    by_time = ByTime("ab", patience=5)
    by_time.add("a", 16, "a16", now=10)
    assert by_time.next(14.9) is None
    assert by_time.next(15) == Results(16, {"a": "a16"}, ("b",), False)
    by_time.add("b", 16, "b16", now=15.1)
    assert by_time.next(15.1) == Results(16, {"b": "b16"}, ("a",), True)
    assert by_time.late == {"b": 1}


def test_who_has_ended_is_not_waited_for():
    by_time = ByTime("ab", patience=5)
    by_time.end("b")
    by_time.add("a", 16, "a16", now=0)
    assert by_time.next(0) == Results(16, {"a": "a16"}, ("b",), False)
    by_time.end("b", ended=False)
    by_time.add("a", 32, "a32", now=0)
    assert by_time.next(0) is None
    assert take_all(by_time, 0, at_once=True) == [Results(32, {"a": "a32"}, ("b",), False)]


def test_what_nobody_takes_is_bounded():
    by_time = ByTime("ab", patience=5, most=3)
    for timestamp in range(10):
        by_time.add("a", timestamp, timestamp, now=0)
    assert [one.timestamp for one in take_all(by_time, 100)] == [7, 8, 9]
    assert by_time.thrown_away == 7


@pytest.mark.parametrize("seed", range(20))
def test_any_order_gives_all(seed):
    rng = random.Random(seed)
    shares = "abcd"
    queues = {share: [(share, 16 * i) for i in range(30) if rng.random() < 0.8] for share in shares}
    wanted = {entry for entries in queues.values() for entry in entries}
    by_time, given = ByTime(shares, patience=1e9), []
    while any(queues.values()):
        share = rng.choice([share for share in shares if queues[share]])
        by_time.add(*queues[share].pop(0), None, now=0)
        if not queues[share]:
            by_time.end(share)
        given += take_all(by_time, 0)
    given += take_all(by_time, 0, at_once=True)
    assert [one.timestamp for one in given] == sorted({timestamp for _, timestamp in wanted})
    assert {(share, one.timestamp) for one in given for share in one.results} == wanted
    assert all(set(one.results) | set(one.missing) == set(shares) and not one.late for one in given)
