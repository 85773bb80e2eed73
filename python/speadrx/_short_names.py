"""Where users find modules: by short names, whatever folder they are in, and without an import of their own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from importlib.abc import Loader

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


# Not derived from the classes of importlib.abc: to import these takes longer than all the rest of this package.
class _Finder:
    """Lets ``import speadrx.meerkat`` find the module in its folder: the same object, never a copy."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, cast("Loader", self)) if package == __package__ and name in HOMES else None

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


def submodule(package: str, name: str) -> ModuleType:
    """Import a module of a package when it is first asked for, as an attribute of that package."""
    try:
        return importlib.import_module(f"{package}.{name}")
    except ModuleNotFoundError as exc:
        if exc.name != f"{package}.{name}":
            raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
