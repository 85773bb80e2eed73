"""Short names of modules: where users find them, whatever folder they are in."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

#: The module ``speadrx.KEY`` is another name of ``speadrx.VALUE``.
HOMES = {
    "capture": "survey.capture",
    "collectors": "metrics.exporter",
    "history": "accounts.history",
    "layouts": "layout.presets",
    "meerkat": "layout.meerkat",
    "propose": "survey.propose",
    "sensors": "metrics.sensors",
    "stats": "metrics.stats",
}


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets ``import speadrx.meerkat`` find the module in its folder: the same object, never a copy."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        return importlib.util.spec_from_loader(fullname, self) if package == __package__ and name in HOMES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(f"{__package__}.{HOMES[spec.name.rpartition('.')[2]]}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has put the spec of the short name in place of the module's own.
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def install() -> None:
    """Make the short names importable."""
    sys.meta_path.append(_Finder())
