"""Modules that users find under a short name, whatever folder they are in."""

import importlib
import subprocess
import sys

import pytest

import speadrx
from speadrx._short_names import HOMES


@pytest.mark.parametrize("name", HOMES)
def test_short_name_is_another_name_of_the_module(name):
    home = importlib.import_module(f"speadrx.{HOMES[name]}")
    assert importlib.import_module(f"speadrx.{name}") is home
    assert getattr(speadrx, name) is home
    # Reloading, pickling and tracebacks count on what the module says of itself.
    assert home.__name__ == f"speadrx.{HOMES[name]}"
    assert home.__spec__.name == home.__name__
    assert home.__spec__.origin == home.__file__


@pytest.mark.parametrize(
    "code",
    [
        "import speadrx.meerkat",
        "from speadrx import meerkat",
        "from speadrx.meerkat import *",
        "import importlib; importlib.import_module('speadrx.meerkat')",
        "import speadrx; speadrx.meerkat",
        "import speadrx.layout.meerkat; import speadrx.meerkat",
    ],
)
def test_first_use_in_an_interpreter(code):
    check = "import sys; assert sys.modules['speadrx.layout.meerkat'].__spec__.name == 'speadrx.layout.meerkat'"
    result = subprocess.run([sys.executable, "-W", "error", "-c", f"{code}\n{check}"], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_star_import_brings_what_the_module_has():
    names = {}
    exec("from speadrx.meerkat import *", names)
    assert {name for name in vars(speadrx.meerkat) if not name.startswith("_")} <= set(names)


@pytest.mark.parametrize("code", ["import speadrx.no_such", "from speadrx import no_such"])
def test_unknown_name_is_an_import_error(code):
    with pytest.raises(ImportError, match="no_such"):
        exec(code, {})
