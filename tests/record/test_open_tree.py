"""All parts of recordings in one call: the truth is the formula of what was sent."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest

import speadrx
from recordings import EPOCH, SAMPLES, STEP, heaps_of, layout_of, receiver, status, value
from speadrx import Recorder

xarray = pytest.importorskip("xarray")
pytest.importorskip("zarr")

BEFORE, AFTER = heaps_of([700, 701, 702], [(2801, 2)]), heaps_of([300, 301, 302])
LAST = heaps_of([1, 2, 3], [(8, 0)])


def record(path: pathlib.Path, heaps) -> pathlib.Path:
    with receiver(layout_of(), heaps, chunks=60, max_jump=None) as rx, Recorder(rx, path, queue=50) as recorder:
        for chunk in recorder:
            chunk.recycle()
    return path


def check(dataset, heaps) -> set[tuple[int, int]]:
    """Compare what is in a part with the formula; return its heaps."""
    first = int((dataset.time.values[0] - np.datetime64(EPOCH, "s")) / np.timedelta64(STEP, "ms"))
    present = dataset.present.values
    there = {(first + int(i), int(antenna)) for i, antenna in zip(*np.nonzero(present), strict=True)}
    assert there <= set(heaps)
    for (i, antenna), came in np.ndenumerate(present):
        wanted = [value(first + i, antenna, j) if came else np.nan for j in range(SAMPLES)]
        np.testing.assert_array_equal(dataset.data.values[i, antenna], wanted)
        assert dataset.status.values[i, antenna] == (status(first + i, antenna) if came else 0)
    return there


def test_parts(tmp_path) -> None:
    path = record(tmp_path / "a.zarr", BEFORE + AFTER + LAST)
    tree = speadrx.open_tree(path, masked=True)
    assert isinstance(tree, xarray.DataTree)
    n = speadrx.open(path, part=0).attrs["parts"]
    assert list(tree) == [f"part_{part}" for part in range(n)]
    assert n == 3
    for part, (leaf, heaps) in enumerate(zip(tree.leaves, (BEFORE, AFTER, LAST), strict=True)):
        assert check(leaf.dataset, heaps)
        xarray.testing.assert_identical(leaf.to_dataset(), speadrx.open(path, part=part, masked=True))
    mean = tree.mean("time")
    assert mean["part_1"].data.shape == (3, SAMPLES)
    assert speadrx.open_tree(path)["part_0"].data.dtype == np.int16


def test_one_part(tmp_path) -> None:
    tree = speadrx.open_tree(str(record(tmp_path / "a.zarr", AFTER)), masked=True)
    assert list(tree) == ["part_0"]
    assert check(tree["part_0"].dataset, AFTER) == set(AFTER)


def test_several_recordings(tmp_path) -> None:
    """As ``record --split`` makes them, one of which was recorded over a restart."""
    sent = {"night_000": BEFORE + AFTER, "night_001": LAST}
    paths = [record(tmp_path / f"{name}.zarr", heaps) for name, heaps in sent.items()]
    tree = speadrx.open_tree(paths, masked=True)
    assert [leaf.path for leaf in tree.leaves] == ["/night_000/part_0", "/night_000/part_1", "/night_001/part_0"]
    for leaf, heaps in zip(tree.leaves, (BEFORE, AFTER, LAST), strict=True):
        assert check(leaf.dataset, heaps)
    assert check(tree["night_001/part_0"].dataset, LAST) == set(LAST)


def test_nothing_is_read_before_it_is_needed(tmp_path, monkeypatch) -> None:
    path = record(tmp_path / "a.zarr", BEFORE + AFTER)
    names = []
    real = pathlib.Path.open

    def counting(self, mode="r", *args, **kwargs):
        if self.name.startswith("c.") and "r" in mode:
            names.append("/".join(self.parts[-3:]))
        return real(self, mode, *args, **kwargs)

    monkeypatch.setattr(pathlib.Path, "open", counting)
    tree = speadrx.open_tree(path)
    assert {name.split("/")[1] for name in names} == {"time", "antenna"}
    names.clear()
    repr(tree)
    assert names == []
    _ = tree["part_1"].data[0, 0].values
    assert names == ["part_1/data/c.0.0.0"]


def test_without_speadrx(tmp_path) -> None:
    """By xarray alone: as a tree only if there is one part, as its trees have the times of the root in all groups."""
    path = record(tmp_path / "a.zarr", BEFORE + AFTER)
    groups = xarray.open_groups(path, engine="zarr", chunks=None)
    assert list(groups) == ["/", "/part_1"]
    for dataset, heaps in zip(groups.values(), (BEFORE, AFTER), strict=True):
        assert check(dataset.assign(data=dataset.data.where(dataset.present)), heaps)
    with xarray.open_datatree(record(tmp_path / "b.zarr", AFTER), engine="zarr", chunks=None) as tree:
        assert check(tree.dataset.assign(data=tree.data.where(tree.present)), AFTER) == set(AFTER)


class TestMistakes:
    def test_names(self, tmp_path) -> None:
        first, second = tmp_path / "x" / "a.zarr", tmp_path / "y" / "a.zarr"
        for path in (first, second):
            path.parent.mkdir()
            record(path, AFTER)
        with pytest.raises(ValueError, match=r"a\.zarr has the name of another recording that is given"):
            speadrx.open_tree([first, second])

    def test_none(self, tmp_path) -> None:
        with pytest.raises(ValueError, match="no recording is given"):
            speadrx.open_tree(tmp_path.glob("*.zarr"))

    def test_nothing_there(self, tmp_path) -> None:
        with pytest.raises(FileNotFoundError, match="no such recording"):
            speadrx.open_tree(tmp_path / "a.zarr")

    def test_nothing_was_recorded(self, tmp_path) -> None:
        with pytest.raises(ValueError, match="holds nothing"):
            speadrx.open_tree(record(tmp_path / "a.zarr", []))

    def test_without_the_extra(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "xarray", None)
        with pytest.raises(ModuleNotFoundError, match=r"open_tree needs xarray, .* 'speadrx\[xarray\]'"):
            speadrx.open_tree(tmp_path)
