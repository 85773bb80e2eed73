"""One recording that all shares write: it holds what one receiver of the same packets records."""

import json
import os
import shutil
import struct

import numpy as np
import pytest

pytest.importorskip("xarray")

import xarray
import zarr

import speadrx
from fleets import ANTENNAS, AT_ONCE, BATCHES, SAMPLES, STEP, WINDOW, Shares, plan_of, record_by_one_receiver
from loopback import needs_multicast_route, wait_for
from speadrx.fleet import PlanError
from speadrx.fleet.recording import FleetRecording
from speadrx.fleet.share import ShareRun, Work
from speadrx.record.output import Arrival

pytestmark = needs_multicast_route

VARIABLES = ("data", "present", "time", "antenna")


@pytest.fixture
def running(array, tmp_path):
    made = []

    def running(*numbers, **changes):
        made.append(Shares(plan_of(array, record=str(tmp_path / "night.zarr"), function=None, **changes)))
        made[-1].start(*(numbers or range(len(made[-1].plan.dealt))))
        return made[-1]

    yield running
    for one in made:
        one.end()


def assert_same(ours, theirs):
    """Byte for byte, but for the account."""
    assert set(ours.variables) == set(theirs.variables)
    for name in theirs.variables:
        assert ours[name].dims == theirs[name].dims
        assert ours[name].dtype == theirs[name].dtype
        assert ours[name].values.tobytes() == theirs[name].values.tobytes(), name
    names = ("layout", "first_timestamp", "timestamp_step", "tick_rate", "time_is_utc", "parts", "complete")
    assert {name: ours.attrs[name] for name in names} == {name: theirs.attrs[name] for name in names}


@pytest.mark.parametrize(("shares", "width"), [(4, 1), (2, 2), (3, 1), (1, 4)])
def test_it_is_that_of_one_receiver(running, array, tmp_path, shares, width):
    """Also where shares have different numbers of antennas: 2, 1 and 1."""
    one = running(shares=shares)
    one.send(array, range(64))
    stats = one.end()
    path = tmp_path / "night.zarr"
    ours = speadrx.open(path)
    assert_same(ours, record_by_one_receiver(tmp_path / "whole.zarr", range(64)))
    # What was sent, by the packets' own formula.
    expected = [[[100 * b + 10 * a + i for i in range(SAMPLES)] for a in range(ANTENNAS)] for b in range(64)]
    assert ours.data.values.tolist() == expected
    assert ours.attrs["fleet"]["present"] == stats.present == 64 * ANTENNAS
    assert ours.attrs["recorder"] == {"chunks": 16 * shares, "not_written": 0}
    # Another reader, without speadrx.
    group = zarr.open_group(path, mode="r")
    assert group["data"].chunks == (BATCHES, width, SAMPLES)
    assert group["data"][:].tolist() == expected
    assert xarray.open_zarr(path).present.values.all()
    # No file of the writers is left, and those of chunks are as many as the grid says.
    assert sorted(os.listdir(path)) == ["antenna", "data", "present", "time", "zarr.json"]
    files = [name for name in os.listdir(path / "data") if name != "zarr.json"]
    assert sorted(files) == sorted(f"c.{n}.{place}.0" for n in range(16) for place in range(ANTENNAS // width))


def test_files_are_the_bytes_that_came(running, array, tmp_path):
    one = running()
    one.send(array, range(16))
    one.end()
    content = (tmp_path / "night.zarr" / "data" / "c.2.3.0").read_bytes()
    expected = [100 * batch + 30 + i for batch in range(8, 12) for i in range(SAMPLES)]
    assert content == struct.pack(f">{len(expected)}h", *expected)


def test_a_dead_share_is_absent(running, array, tmp_path):
    """Where a share was not there, nothing is present; the others have all of it."""
    one = running()
    one.send(array, range(32))
    one.end_shares(1)
    one.send(array, range(32, 64), [0, 2, 3])
    one.start(1)
    one.send(array, range(64, 96))
    one.end()
    ours = speadrx.open(tmp_path / "night.zarr", masked=True)
    present = ours.present.values
    assert present[:, [0, 2, 3]].all()
    assert present[:, 1].tolist() == [*[True] * 32, *[False] * 32, *[True] * 32]
    assert np.isnan(ours.data.values[32:64, 1]).all()
    assert not np.isnan(ours.data.values[64:]).any()
    names = os.listdir(tmp_path / "night.zarr" / "data")
    assert [n for n in range(24) if f"c.{n}.1.0" not in names] == list(range(8, 16))
    assert ours.attrs["parts"] == 1


def test_a_share_that_never_came_is_absent(running, array, tmp_path):
    one = running(0, 3)
    one.send(array, range(32), [0, 3])
    one.end()
    ours = speadrx.open(tmp_path / "night.zarr")
    assert_same(ours, record_by_one_receiver(tmp_path / "whole.zarr", range(32), [0, 3]))
    assert ours.sizes["antenna"] == ANTENNAS


def test_who_has_the_first_chunk_does_not_matter(running, array, tmp_path):
    """A share may write an earlier chunk than the one that began: other readers see what is before as not present."""
    one = running()
    one.send(array, range(1008, 1024), [2])
    one.end_shares(2)
    one.send(array, range(1000, 1024), [0, 1, 3])
    one.end()
    path = tmp_path / "night.zarr"
    ours = speadrx.open(path)
    theirs = record_by_one_receiver(tmp_path / "whole.zarr", [*range(1000, 1024)])
    assert ours.time.values.tobytes() == theirs.time.values.tobytes()
    assert ours.attrs["first_timestamp"] == theirs.attrs["first_timestamp"] == 1000 * STEP
    assert ours.data.values[:, [0, 1, 3]].tobytes() == theirs.data.values[:, [0, 1, 3]].tobytes()
    assert ours.data.values[8:].tobytes() == theirs.data.values[8:].tobytes()
    assert ours.present.values[:8, 2].tolist() == [False] * 8
    # Any selection of time begins where the recording does.
    assert ours.isel(time=0).data.values[0].tolist() == [100 * (1000 % 300) + i for i in range(SAMPLES)]
    assert ours.data.sel(time=1010 * STEP).values[3, 0] == 100 * (1010 % 300) + 30
    plain = xarray.open_zarr(path)
    there = np.flatnonzero(plain.present.values.any(axis=1))
    assert plain.time.values[there].tolist() == [batch * STEP for batch in range(1000, 1024)]


def test_time_began_again(running, array, tmp_path):
    """Shares notice it one after the other, and one only when it comes back: all go on in the same part."""
    one = running()
    one.send(array, range(500, 532))
    one.end_shares(3)
    for antenna in (1, 0, 2):
        one.send(array, range(16), [antenna])
    one.start(3)
    one.send(array, range(16, 32))
    one.end()
    path = tmp_path / "night.zarr"
    first, second = (speadrx.open(path, part=part) for part in range(2))
    assert first.attrs["parts"] == 2
    assert first.time.values.tolist() == [batch * STEP for batch in range(500, 532)]
    assert first.present.values.all()
    assert second.time.values.tolist() == [batch * STEP for batch in range(32)]
    # Where time begins again, each source may lose a heap or two.
    assert second.present.values[2:, :3].all()
    assert second.present.values[:, 3].tolist() == [*[False] * 16, *[True] * 16]
    assert second.data.values[31, :, 0].tolist() == [3100 + 10 * antenna for antenna in range(ANTENNAS)]


def test_time_began_again_twice(running, array, tmp_path):
    """A share that was dead meanwhile goes on in the newest part, though its time is in an older one too."""
    one = running(0, 1)
    one.send(array, range(500, 532), [0, 1])
    one.end_shares(1)
    one.send(array, range(100, 132), [0])
    one.send(array, range(32), [0])
    one.start(1)
    one.send(array, range(200, 232), [0, 1])
    one.end()
    parts = [speadrx.open(tmp_path / "night.zarr", part=part) for part in range(3)]
    assert [part.attrs["parts"] for part in parts] == [3] * 3
    assert [bool(part.present.values[:, 1].any()) for part in parts] == [True, False, True]
    last = parts[2].sel(time=slice(200 * STEP, None))
    assert last.present.values[:, 1].all()
    assert last.data.values[0, 1, 0] == 100 * 200 + 10


def test_nothing_is_written_over(running, array, tmp_path):
    """Time begins again while the only share is dead: it has that time already, so another part begins."""
    one = running(0)
    one.send(array, range(64), [0])
    one.end_shares(0)
    one.start(0)
    one.send(array, range(32), [0])
    one.end()
    first, second = (speadrx.open(tmp_path / "night.zarr", part=part) for part in range(2))
    assert (first.sizes["time"], second.sizes["time"]) == (64, 32)
    assert first.present.values[:, 0].all()
    assert second.present.values[:, 0].all()


def test_the_first_decides_where_a_part_begins(running, array, tmp_path):
    """Whoever comes second gets what the first has said, even if both looked at the same time."""
    one = running(0, 1)
    outputs = [one.shares[number][0]._recorder._shared for number in range(2)]
    nothing = {"time": lambda: None, "begins": True, "heaps": 1, "arrays": [], "memory": None}
    outputs[0]._claim(0, Arrival(timestamp=100 * BATCHES * STEP, **nothing))
    before = (tmp_path / "night.zarr" / ".part_0.json").read_bytes()
    outputs[1]._claim(0, Arrival(timestamp=90 * BATCHES * STEP, **nothing))
    assert (tmp_path / "night.zarr" / ".part_0.json").read_bytes() == before
    assert sorted(os.listdir(tmp_path / "night.zarr" / "..")) == ["night.zarr"]
    assert [name for name in os.listdir(tmp_path / "night.zarr") if name.startswith(".part")] == [".part_0.json"]


def test_it_can_be_opened_while_it_grows(running, array, tmp_path):
    one = running()
    one.send(array, range(128))

    def there():
        try:
            found = speadrx.open(tmp_path / "night.zarr")
        except ValueError:  # nothing yet
            return False
        return found.sizes["time"] >= 64 and bool(found.present.values[:64].all())

    wait_for(there)
    assert not speadrx.open(tmp_path / "night.zarr").attrs["complete"]


def test_the_older_of_two_writes_no_more(running, array, tmp_path):
    """A worker that was given up, but lives, does not write what another one writes."""
    one = running()
    one.send(array, range(64))
    zombie, thread = one.shares.pop(0)
    recorder = zombie._recorder
    # Those that are in no window any more.
    wait_for(lambda: recorder.stats().chunks == 16 - WINDOW)
    one.account.give_up("0")
    one.start(0)
    wait_for(lambda: recorder._shared._lost == "replaced")
    one.send(array, range(64, 128))
    zombie.end("it is noticed")
    thread.join(60)
    assert recorder.stats().not_written["replaced"] >= WINDOW
    one.end()
    present = speadrx.open(tmp_path / "night.zarr").present.values
    assert present[:, 1:].all()
    assert present[:, 0].tolist() == [*[True] * 32, *[False] * 32, *[True] * 64]


def test_it_is_used_as_any_other(running, array, tmp_path):
    """Cut and copied by `speadrx record`: what is copied has the grid of one receiver."""
    from click.testing import CliRunner

    from speadrx.cli.group import group

    one = running()
    one.send(array, range(1000, 1032))
    one.end()
    arguments = ["record", str(tmp_path / "night.zarr"), "-o", str(tmp_path / "copy.zarr"), "--quiet"]
    done = CliRunner().invoke(group, arguments)
    assert done.exit_code == 0, done.output
    copy, ours = speadrx.open(tmp_path / "copy.zarr"), speadrx.open(tmp_path / "night.zarr")
    batches = [time // STEP for time in copy.time.values.tolist()]
    at = batches.index(1000)
    assert batches[at:] == list(range(1000, 1032))
    assert copy.data.values[at:].tobytes() == ours.data.values.tobytes()
    done = CliRunner().invoke(group, ["top", str(tmp_path / "night.zarr"), "--once", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["present"] == 32 * ANTENNAS


def test_what_a_dead_worker_has_written_stays(running, array, tmp_path):
    """Its last report may have come before its last chunks."""
    one = running()
    one.send(array, range(96))
    wait_for(lambda: all(run._recorder.stats().chunks == 24 - WINDOW for run, _ in one.shares.values()))
    with one.lock:  # all that comes now dies
        for share in one.plan.dealt:
            one.account.give_up(share.name)
    array.send(range(96, 96 + AT_ONCE))
    wait_for(lambda: all(run._recorder.stats().chunks == 28 - WINDOW for run, _ in one.shares.values()))
    for run, thread in one.shares.values():
        run._recorder._shared._lost = "replaced"  # what is in windows dies with a worker
        run.end("it is dead")
        thread.join(60)
    one.shares.clear()
    one.end()
    ours = speadrx.open(tmp_path / "night.zarr")
    assert ours.sizes["time"] == (28 - WINDOW) * BATCHES
    assert ours.present.values.all()


def test_the_folder_must_be_the_same_everywhere(array, tmp_path):
    """A share whose machine does not have the folder says so, and receives nothing that it could not record."""
    plan = plan_of(array, record=str(tmp_path / "night.zarr"), function=None)
    one = Shares(plan)
    shutil.rmtree(tmp_path / "night.zarr")
    reports = []
    share = plan.dealt[0]
    portion = one.recording.of(share, 1)
    ShareRun(
        Work("test", "0", 1, share.layout, share.endpoints, plan.receiver, None, portion, 0.05), reports.append
    ).run()
    assert reports[-1]["kind"] == "ended"
    assert "night.zarr is not the recording that the fleet has begun" in reports[-1]["error"]


def test_it_is_not_made_over_another(array, tmp_path):
    plan = plan_of(array, record=str(tmp_path / "night.zarr"))
    (tmp_path / "night.zarr").mkdir()
    with pytest.raises(FileExistsError):
        FleetRecording(plan, "another").begin()


def test_streams_of_their_own_have_no_common_axis(array):
    with pytest.raises(PlanError, match=r"record: 'night\.zarr' must have \{share\} in it.*deal = 'group'"):
        plan_of(array, deal="group", record="night.zarr")
