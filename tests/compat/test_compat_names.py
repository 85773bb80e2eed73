"""The names of katgpucbf.recv, also by a star import, and what they import."""

from __future__ import annotations

import subprocess
import sys

import pytest
import spead2.recv

import speadrx
from speadrx.compat import katgpucbf as recv

#: All that src/katgpucbf/recv.py of https://github.com/ska-sa/katgpucbf defines (it has no ``__all__``), and what its
#: newer engines import from it besides (fgpu/recv.py, xbgpu/recv.py and vgpu/recv.py: ``LayoutMixin``).
UPSTREAM = [
    "AnyStream",
    "BaseLayout",
    "Chunk",
    "Counters",
    "EVICTION_MODE",
    "LayoutMixin",
    "RECV_SENSOR_TIMEOUT_CHUNKS",
    "RECV_SENSOR_TIMEOUT_MIN",
    "StatsCollector",
    "add_reader",
    "iter_chunks",
    "logger",
    "make_sensors",
    "make_stream",
    "make_stream_group",
    "user_data_type",
]


def run(program: str, *, without: str = "") -> None:
    """Run a program in a fresh interpreter, as if some module were not installed."""
    hide = f"import sys\nsys.modules[{without!r}] = None\n" if without else ""
    subprocess.run([sys.executable, "-c", hide + program], check=True)


def test_names() -> None:
    assert sorted(recv.__all__) == sorted(UPSTREAM)
    for name in recv.__all__:
        assert hasattr(recv, name)
    assert recv.BaseLayout is speadrx.BaseLayout
    assert recv.Chunk is speadrx.Chunk
    assert recv.StatsCollector is speadrx.StatsCollector
    assert recv.EVICTION_MODE == spead2.recv.ChunkStreamGroupConfig.EvictionMode.LOSSY
    assert recv.RECV_SENSOR_TIMEOUT_CHUNKS == 10
    assert recv.RECV_SENSOR_TIMEOUT_MIN == 1.0
    assert recv.make_sensors is speadrx.sensors.make_sensors
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        recv.nonsense  # noqa: B018


def test_star_import() -> None:
    """It binds every name, and brings the module by which engines annotate their callbacks."""
    run(f"""
import numba
from speadrx.compat.katgpucbf import *
for name in {UPSTREAM}:
    globals()[name]
class Layout(BaseLayout):
    def _chunk_place(self) -> numba.core.ccallback.CFunc: ...
""")


@pytest.mark.parametrize(("library", "name"), [("numba", "user_data_type"), ("aiokatcp", "make_sensors")])
def test_star_import_without_a_library(library: str, name: str) -> None:
    names = [other for other in UPSTREAM if other != name]
    run(
        f"""
from speadrx.compat.katgpucbf import *
for name in {names}:
    globals()[name]
assert {name!r} not in globals()
""",
        without=library,
    )


def test_callback_type_comes_with_numba() -> None:
    """Where numba is loaded, its module of callbacks is loaded too, as importing katgpucbf.recv loads it."""
    run("""
import sys, numba
assert "numba.core.ccallback" not in sys.modules
import speadrx.compat.katgpucbf
assert numba.core.ccallback.CFunc
""")


def test_imports_are_lazy() -> None:
    """Fresh interpreters import nothing heavy until a name needs it."""
    run("""
import sys
import speadrx.compat.katgpucbf as recv
from speadrx.compat.katgpucbf import AnyStream, BaseLayout, Chunk, Counters, add_reader, iter_chunks, logger
from speadrx.compat.katgpucbf import make_stream, make_stream_group
for name in ("aiokatcp", "numba", "llvmlite", "scipy", "prometheus_client"):
    assert name not in sys.modules, name
recv.StatsCollector
assert "prometheus_client" in sys.modules
from speadrx.compat.katgpucbf import user_data_type
assert sys.modules["numba"].core.ccallback.CFunc
assert "aiokatcp" not in sys.modules
recv.make_sensors
assert "aiokatcp" in sys.modules
""")
