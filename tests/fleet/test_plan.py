"""Plans: how endpoints and layouts are dealt out, and what is said of plans that are not possible."""

import dataclasses

import numpy as np
import pytest

from fleets import LAYOUT
from speadrx import Axis, TimeAxis, layouts
from speadrx.fleet.plan import Plan, PlanError

GROUPS = "239.1.2.0+3:7148"


def test_each_endpoint_is_a_share_of_its_own():
    dealt = Plan(layout=LAYOUT, endpoints=GROUPS).dealt
    assert [share.name for share in dealt] == ["0", "1", "2", "3"]
    assert [share.endpoints for share in dealt] == [((f"239.1.2.{i}", 7148),) for i in range(4)]
    assert all(share.layout == LAYOUT and share.axis is None for share in dealt)


def test_endpoints_are_dealt_out_evenly():
    dealt = Plan(layout=LAYOUT, endpoints="239.1.2.0+10:7148", shares=3).dealt
    assert [len(share.endpoints) for share in dealt] == [4, 4, 3]
    assert [pair for share in dealt for pair in share.endpoints] == [(f"239.1.2.{i}", 7148) for i in range(11)]


def test_an_axis_is_cut_as_its_endpoints_bring_it():
    dealt = Plan(layout=LAYOUT, endpoints=GROUPS, deal="antenna", shares=3).dealt
    assert [(share.first, share.end) for share in dealt] == [(0, 2), (2, 3), (3, 4)]
    assert [share.layout.source_labels for share in dealt] == [("m000", "m001"), ("m002",), ("m003",)]
    assert [share.layout.present_shape for share in dealt] == [(4, 2), (4, 1), (4, 1)]


@pytest.mark.parametrize(
    "axis",
    [
        Axis(name="channel", item=0x4103, step=512, size=8),
        Axis(name="channel", item=0x4103, shift=4, mask=0xFFFF, step=512, size=8),
        Axis(name="channel", item=0x4103, values=(7, 3, 9, 1, 0, 2, 5, 4)),
        Axis(name="channel", present_items=tuple(range(0x4200, 0x4208))),
    ],
    ids=["steps", "bits", "values", "items"],
)
def test_cut_axes_are_those_of_the_whole(axis):
    """Each index of a share is the same value as in the whole layout."""

    def values_of(one):
        return one.values or one.present_items or tuple(one.step * i for i in range(one.size))

    layout = dataclasses.replace(LAYOUT, axes=(*LAYOUT.axes, axis))
    dealt = Plan(layout=layout, endpoints=GROUPS, deal="channel").dealt
    assert sum((values_of(share.layout.axes[1]) for share in dealt), ()) == values_of(axis)
    assert all(share.layout.source_labels == LAYOUT.source_labels for share in dealt)
    assert [share.layout.axes[0] for share in dealt] == [LAYOUT.axes[0]] * 4
    assert (dealt[0].layout.axes[1].shift, dealt[0].layout.axes[1].mask) == (axis.shift, axis.mask)


def test_phases_go_with_their_sources():
    time = TimeAxis(item=0x1600, step=16, batches=4, phases=(0, 2, 4, 6))
    layout = dataclasses.replace(LAYOUT, time=time)
    dealt = Plan(layout=layout, endpoints=GROUPS, deal="antenna", shares=2).dealt
    assert [share.layout.time.phases for share in dealt] == [(0, 2), (4, 6)]


def test_instruments():
    """Of real streams: the sub-bands of a beam, and the antennas of F-engines."""
    beam = layouts.load("meerkat-tied-array-channelised-voltage")
    axis = max(beam.axes, key=lambda one: one.size or 0)
    dealt = Plan(layout=beam, endpoints="239.9.0.0+15:7148", deal=axis.name, shares=4).dealt
    assert sum(share.layout.chunk_bytes for share in dealt) == beam.chunk_bytes
    antennas = layouts.load("meerkat-antenna-channelised-voltage", ["antennas=80"])
    dealt = Plan(layout=antennas, endpoints="239.9.0.0+79:7148", deal="antenna", shares=7).dealt
    assert sum((share.layout.source_labels for share in dealt), ()) == antennas.source_labels
    assert np.prod([len(share.endpoints) for share in dealt]) == 12**3 * 11**4


def test_memory_is_that_of_the_receiver():
    (share,) = Plan(layout=LAYOUT, endpoints=":7148", receiver={"chunks": 10, "window": 3, "buffer": 1000}).dealt
    assert share.memory == 10 * LAYOUT.chunk_bytes + 1000


BAD = [
    ({"layout": "array"}, ["layout", "'array'"]),
    ({"endpoints": "localhost"}, ["endpoints", "'localhost'", "7148"]),
    ({"endpoints": ()}, ["endpoints", "()"]),
    ({"endpoints": ("239.1.2.3:1", "239.1.2.3:1")}, ["endpoints", "239.1.2.3:1", "twice"]),
    ({"deal": "antena"}, ["deal", "'antena'", "'group'", "'antenna'"]),
    ({"deal": "antenna", "endpoints": "239.1.2.0+2:7148"}, ["deal", "'antenna'", "4", "3"]),
    ({"shares": 5}, ["shares", "5", "4"]),
    ({"shares": 0}, ["shares", "0", "1"]),
    ({"shares": 2.5}, ["shares", "2.5", "integer"]),
    ({"shares": True}, ["shares", "True", "integer"]),
    ({"report_seconds": True}, ["report_seconds", "True", "number"]),
    ({"silent_seconds": True}, ["silent_seconds", "True", "number"]),
    ({"resources": {"NIC": -1}}, ["resources.NIC", "-1"]),
    ({"resources": {"NIC": True}}, ["resources.NIC", "True"]),
    ({"resources": ["NIC"]}, ["resources", "['NIC']"]),
    ({"function": "night"}, ["function", "'night'", "night:spectrum"]),
    ({"function": "night:1st"}, ["function", "'night:1st'"]),
    ({"function": 7}, ["function", "7"]),
    ({"record": "night.zarr"}, ["record", "'night.zarr'", "{share}"]),
    *(
        ({"receiver": {name: True}}, [f"receiver.{name}", "True", "wanted a"])
        for name in ("threads", "window", "tolerance_seconds", "tolerance_bytes", "chunks", "buffer")
    ),
    ({"receiver": {"windw": 4}}, ["receiver.windw", "window"]),
    ({"receiver": {"labels": {}}}, ["receiver.labels"]),
    ({"receiver": {"window": 0}}, ["receiver.window", "0", "1"]),
    ({"receiver": {"chunks": 2, "window": 2}}, ["receiver.chunks", "2"]),
    ({"receiver": {"threads": 2}}, ["receiver.threads", "2", "1"]),
    ({"report_seconds": 0}, ["report_seconds", "0", "0.05"]),
    ({"report_seconds": float("nan")}, ["report_seconds", "nan"]),
    ({"silent_seconds": 0.9}, ["silent_seconds", "0.9", "1.0"]),
    ({"name": ""}, ["name", "''"]),
]


@pytest.mark.parametrize(("changes", "parts"), BAD, ids=[str(changes) for changes, _ in BAD])
def test_bad_field(changes, parts):
    with pytest.raises(PlanError) as failure:
        Plan(**{"layout": LAYOUT, "endpoints": GROUPS, **changes})
    for part in parts:
        assert part in str(failure.value)


def test_silence_is_longer_than_a_few_reports():
    seconds = [({}, 3), ({"report_seconds": 2}, 8), ({"report_seconds": 2, "silent_seconds": 5}, 5)]
    for changes, expected in seconds:
        assert Plan(layout=LAYOUT, endpoints=GROUPS, **changes).silence == expected


def test_axis_of_the_stream_cannot_be_cut():
    layout = dataclasses.replace(LAYOUT, axes=(*LAYOUT.axes, Axis(name="pol", from_user_data="pol", size=2)))
    with pytest.raises(PlanError, match=r"deal: .*'pol'.*'group'"):
        Plan(layout=layout, endpoints="239.1.2.0+1:7148", deal="pol")


@pytest.mark.parametrize("field", ["origin", "phases"])
def test_time_must_be_the_same_for_all(field):
    layout = dataclasses.replace(LAYOUT, time=dataclasses.replace(LAYOUT.time, **{field: "first"}))
    with pytest.raises(PlanError, match=rf"layout: time\.{field} 'first'"):
        Plan(layout=layout, endpoints=GROUPS, deal="antenna")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "array.toml").write_text(LAYOUT.to_toml(), "utf-8")
    return tmp_path


def write(folder, text):
    (folder / "plan.toml").write_text(text, "utf-8")
    return folder / "plan.toml"


def test_toml(folder, monkeypatch):
    path = write(
        folder,
        'layout = "array.toml"\nset = ["time.batches=8"]\nendpoints = ["239.1.2.0+3:7148"]\ndeal = "antenna"\n'
        'shares = 2\nrecord = "night_{share}.zarr"\nfunction = "night:spectrum"\nname = "night"\n'
        "[resources]\nNIC = 1\ncores = 2\n[receiver]\nwindow = 3\n",
    )
    monkeypatch.chdir("/")
    plan = Plan.from_toml(path)
    assert plan.layout == dataclasses.replace(LAYOUT, time=dataclasses.replace(LAYOUT.time, batches=8))
    assert (len(plan.dealt), plan.resources, plan.receiver) == (2, {"NIC": 1, "cores": 2}, {"window": 3})
    assert plan == Plan(
        layout=plan.layout,
        endpoints=(GROUPS,),
        deal="antenna",
        shares=2,
        record="night_{share}.zarr",
        function="night:spectrum",
        name="night",
        resources={"NIC": 1, "cores": 2},
        receiver={"window": 3},
    )


def test_toml_of_a_layout_that_comes_along(folder):
    path = write(folder, 'layout = "meerkat-digitiser"\nendpoints = "239.1.2.0+7:7148"\n')
    assert Plan.from_toml(path).layout == layouts.load("meerkat-digitiser")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("layout =", ["plan.toml", "Invalid value"]),
        ('layout = "array.toml"', ["plan.toml", "endpoints", "missing"]),
        ('endpoints = ":7148"', ["plan.toml", "layout", "missing"]),
        ('layout = "aray.toml"\nendpoints = ":7148"', ["plan.toml", "layout", "aray.toml"]),
        ('layout = "array.toml"\nendpoint = ":7148"', ["plan.toml", "endpoint:", "endpoints?"]),
        ('layout = "array.toml"\nendpoints = ":7148"\nset = ["time.batchs=8"]', ["layout", "batchs", "batches"]),
        ('layout = "array.toml"\nendpoints = ":7148"\nset = "time.batches=8"', ["set", "'time.batches=8'"]),
        ('layout = 3\nendpoints = ":7148"', ["layout", "3"]),
        ('layout = "array.toml"\nendpoints = [3]', ["endpoints", "[3]"]),
        ('layout = "array.toml"\nendpoints = []', ["endpoints: given []"]),
        ('layout = "array.toml"\nendpoints = ":7148"\nshares = 2', ["shares", "2", "1"]),
    ],
)
def test_bad_toml(folder, text, parts):
    with pytest.raises(PlanError) as failure:
        Plan.from_toml(write(folder, text))
    for part in parts:
        assert part in str(failure.value)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Plan.from_toml(tmp_path / "plan.toml")
