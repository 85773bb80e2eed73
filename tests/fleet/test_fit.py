"""Which worker gets which share, and what does not fit."""

import dataclasses

from fleets import LAYOUT
from speadrx import __version__
from speadrx.fleet.fit import Place, Places, problems
from speadrx.fleet.plan import Plan


def place(name, host, **changes):
    fields = {"resources": {"NIC": 1}, "memory": 2**40, "processors": 64, "version": __version__, **changes}
    return Place(worker=name, host=host, **fields)


def test_machines_are_filled_evenly():
    places = Places({"NIC": 1})
    for name, host in (("w0", "a"), ("w1", "a"), ("w2", "a"), ("w3", "b"), ("w4", "b")):
        places.add(place(name, host))
    assert [places.take(share).host for share in "01234"] == ["a", "b", "a", "b", "a"]
    assert places.take("5") is None


def test_machines_are_filled_evenly_again():
    """What has left a machine does not count there any more."""
    places = Places({"NIC": 1})
    for name, host in (("w0", "b"), ("w1", "b"), ("w2", "b"), ("w3", "a"), ("w4", "a")):
        places.add(place(name, host))
    assert [places.take(share).host for share in "0123"] == ["b", "a", "b", "a"]
    for share in "13":
        places.release(share)
    assert places.take("4").host == "a"


def test_a_worker_has_room_for_what_it_has():
    places = Places({"NIC": 1, "cores": 2})
    places.add(place("w0", "a", resources={"NIC": 3, "cores": 5}))
    places.add(place("w1", "b", resources={"NIC": 3}))
    assert [bool(places.take(share)) for share in "012"] == [True, True, False]
    places.release("0")
    assert places.take("2").worker == "w0"


def test_a_worker_that_is_gone_has_no_share():
    places = Places({"NIC": 1})
    places.add(place("w0", "a"))
    places.add(place("w1", "b"))
    assert {places.take(share).worker for share in "01"} == {"w0", "w1"}
    (gone,) = places.remove("w0")
    assert places.take(gone) is None
    assert places.remove("w0") == []
    places.add(place("w2", "a"))
    assert places.take(gone).worker == "w2"


def texts(plan, *places):
    return [(one.text.partition(":")[0], one.fatal) for one in problems(plan.dealt, plan.resources, places)]


PLAN = Plan(layout=LAYOUT, endpoints="239.1.2.0+3:7148")


def test_what_does_not_fit():
    four = [place(f"w{i}", "abcd"[i]) for i in range(4)]
    assert texts(PLAN, *four) == []
    assert texts(PLAN) == [("there are no workers", True)]
    assert texts(PLAN, *four[:3]) == [("resources", True)]
    gpus = [dataclasses.replace(one, resources={"GPU": 1}) for one in four]
    (problem,) = problems(PLAN.dealt, PLAN.resources, gpus)
    assert "4 shares (0, 1, 2, 3)" in problem.text
    assert "NIC 1" in problem.text
    assert "GPU" in problem.text
    poor = dataclasses.replace(four[2], memory=PLAN.dealt[0].memory - 1)
    assert texts(PLAN, four[0], four[1], poor, four[3]) == [("memory", True)]
    old = dataclasses.replace(four[1], version="0.0.1")
    assert [fatal for _, fatal in texts(PLAN, four[0], old, *four[2:])] == [True]


def test_a_function_that_workers_do_not_have():
    error = "ModuleNotFoundError: No module named 'night'"
    places = [place(f"w{i}", "abcd"[i], function_error=error if i in (1, 3) else None) for i in range(4)]
    (problem,) = problems(PLAN.dealt, PLAN.resources, places)
    assert problem.fatal
    assert problem.text == f"function: 2 workers (w1 on b, w3 on d) cannot find it: {error}"


def test_silent_workers_get_no_share():
    places = Places({"NIC": 1})
    places.add(place("w0", "a"))
    places.add(place("w1", "b"))
    places.silent.add("w0")
    assert places.take("0").worker == "w1"
    assert places.take("1") is None
    places.remove("w0")
    places.add(place("w0", "a"))
    assert places.take("1").worker == "w0"


def test_machines_are_judged_as_a_whole():
    together = [place(f"w{i}", "a", memory=3 * PLAN.dealt[0].memory, processors=7) for i in range(4)]
    assert texts(PLAN, *together) == [("memory", True), ("processors", False)]


def test_what_there_is_of_each():
    one, two, three = (place(f"w{i}", "abc"[i], resources={"NIC": n}) for i, n in enumerate((1, 1, 4)))
    (problem,) = problems(PLAN.dealt, {"NIC": 2, "GPU": 1}, [one, two, three])
    assert problem.text == (
        "resources: 4 shares (0, 1, 2, 3) find no worker with NIC 2, GPU 1 free: "
        "2 workers have NIC 1; 1 worker has NIC 4; of 3 workers, none has GPU"
    )
