"""What importing the package brings along, and that all it promises by name is there."""

import ast
import importlib
import importlib.metadata
import importlib.util
import json
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import speadrx

JIT = {"numba", "llvmlite", "scipy"}

RECEIVE = """
import numpy as np, spead2, spead2.recv, spead2.send
from speadrx import Axis, ChunkPool, Layout, TimeAxis, iter_chunks, make_stream
layout = Layout(
    heap_bytes=8,
    time=TimeAxis(item=0x1600, step=1, batches=2),
    axes=(Axis(name="antenna", item=0x4101, size=1),),
)
stream = make_stream(
    layout=layout,
    max_active_chunks=1,
    data_ringbuffer=spead2.recv.ChunkRingbuffer(2),
    free_ringbuffer=spead2.recv.ChunkRingbuffer(4),
)
ChunkPool(stream, 4)
queue = spead2.InprocQueue()
stream.add_inproc_reader(queue)
heap = spead2.send.Heap(spead2.Flavour(4, 64, 48))
for item_id in (0x1600, 0x4101):
    heap.add_item(spead2.Item(item_id, "", "", (), format=[("u", 48)], value=0))
heap.add_item(spead2.Item(0x3300, "", "", (8,), "u1", value=np.zeros(8, "u1")))
spead2.send.InprocStream(spead2.ThreadPool(), [queue]).send_heap(heap)
queue.stop()
n_chunks = 0
for chunk in iter_chunks(stream):
    with chunk:
        n_chunks += 1
assert n_chunks == 1, n_chunks
"""


def all_modules() -> list[str]:
    found = pkgutil.walk_packages(speadrx.__path__, "speadrx.")
    left_out = {} if importlib.util.find_spec("distributed") else {"speadrx.fleet.worker"}
    names = [info.name for info in found if not info.name.endswith("__main__")]
    return ["speadrx", *(name for name in names if name not in left_out)]


def imported_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after running `code`."""
    report = "\nimport json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code + report], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_jit_is_never_imported():
    imports = "\n".join(f"import {name}" for name in all_modules())
    assert not JIT & imported_by(imports + RECEIVE)


def test_import_brings_numpy_and_spead2_only():
    added = imported_by("import speadrx") - imported_by("import numpy, spead2.recv")
    third_party = {name for name in added if name not in sys.stdlib_module_names and not name.startswith("_")}
    assert third_party == {"speadrx"}


def test_receiving_needs_no_metrics():
    assert "prometheus_client" not in imported_by(RECEIVE)


def test_names_of_metrics_need_no_collector():
    assert "prometheus_client" not in imported_by("import speadrx; speadrx.metrics.HELP")


def test_only_its_command_imports_fleets():
    others = [name for name in all_modules() if not name.startswith("speadrx.fleet")]
    code = "\n".join(f"import {name}" for name in others)
    added = imported_by(code + "\nimport sys; assert not any(name.startswith('speadrx.fleet') for name in sys.modules)")
    assert not {"dask", "distributed", "psutil"} & added


@pytest.mark.parametrize("use", ["speadrx.StatsCollector", "speadrx.stats.StatsCollector"])
def test_collector_imports_prometheus_client(use):
    module = use.rpartition(".")[0]
    assert "prometheus_client" in imported_by(f"import {module}; {use}")


@pytest.mark.parametrize("module", all_modules())
def test_all_names_resolve(module):
    namespace = importlib.import_module(module)
    names = getattr(namespace, "__all__", [])
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(namespace, name) is not None


def test_design_names_are_public():
    promised = {
        "Axis",
        "BaseLayout",
        "Chunk",
        "ChunkPool",
        "EVICTION_MODE",
        "Layout",
        "LayoutError",
        "RECV_SENSOR_TIMEOUT_CHUNKS",
        "RECV_SENSOR_TIMEOUT_MIN",
        "SideItem",
        "StatsCollector",
        "TimeAxis",
        "add_reader",
        "iter_chunks",
        "make_stream",
        "make_stream_group",
    }
    assert promised <= set(speadrx.__all__)


def names_for_type_checkers() -> list[tuple[str, str, str]]:
    """What type checkers see as names of the package: module, name in it, and name here."""
    found = []
    for node in ast.walk(ast.parse(pathlib.Path(speadrx.__file__).read_text())):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for line in node.body:
                if isinstance(line, ast.ImportFrom):
                    found += [(line.module or "", alias.name, alias.asname or alias.name) for alias in line.names]
    return found


def test_type_checkers_see_what_there_is():
    seen = names_for_type_checkers()
    assert {name for _, _, name in seen} >= set(speadrx.__all__) - {"LayoutError", "__version__"}
    for module, name, here in seen:
        if here == "sensors":  # needs aiokatcp
            continue
        home = importlib.import_module(f"speadrx.{module}".rstrip("."))
        there = getattr(home, name, None) or importlib.import_module(f"{home.__name__}.{name}")
        assert getattr(speadrx, "open" if here == "_open_recording" else here) is there, (module, name)


def test_import_brings_nothing_that_is_not_used():
    assert not {"numpy", "spead2"} & imported_by("import speadrx")
    assert {"numpy", "spead2"} <= imported_by("import speadrx; speadrx.Receiver")


def test_receiver_brings_few_modules():
    """What it imports above numpy and spead2, every receiving program waits for."""
    needed = imported_by("import numpy, spead2.recv")
    added = imported_by("import numpy, spead2.recv, speadrx; speadrx.Receiver") - needed
    costly = {"asyncio", "decimal", "fractions", "hashlib", "http", "json", "random", "secrets", "ssl", "tomllib"}
    assert not costly & added
    foreign = {name for name in added if not name.startswith("_") and name not in sys.stdlib_module_names}
    assert foreign == {"speadrx"}
    assert len(added) <= 25, sorted(added)


@pytest.mark.parametrize("name", ["accounts", "layout", "receive", "record", "simulate"])
def test_packages_are_found_without_an_import(name):
    code = f"import speadrx; assert speadrx.{name}.__name__ == 'speadrx.{name}'"
    assert "speadrx" in imported_by(code)


@pytest.mark.parametrize("package", ["accounts", "layout", "receive"])
def test_modules_of_packages_are_found_without_an_import(package):
    folder = pathlib.Path(speadrx.__file__).parent / package
    names = sorted(path.stem for path in folder.glob("[!_]*.py"))
    assert names
    code = f"""
import speadrx
for name in {names}:
    assert getattr(speadrx.{package}, name).__name__ == f"speadrx.{package}.{{name}}", name
"""
    imported_by(code)


@pytest.mark.parametrize("package", ["accounts", "layout", "receive"])
def test_unknown_module_is_attribute_error(package):
    with pytest.raises(AttributeError, match=f"speadrx.{package}.*no_such_name"):
        _ = importlib.import_module(f"speadrx.{package}").no_such_name


def test_unknown_name_is_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = speadrx.no_such_name


def test_version():
    assert speadrx.__version__ == importlib.metadata.version("speadrx")


def test_is_typed():
    package = pathlib.Path(speadrx.__file__).parent
    assert (package / "py.typed").is_file()
    assert (package / "_core.pyi").is_file()
