"""What became of every heap: what was placed, rejected, present and missing, by source."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from speadrx._short_names import submodule

if not TYPE_CHECKING:  # which would take any name for one of ours

    def __getattr__(name: str) -> ModuleType:
        return submodule(__name__, name)
