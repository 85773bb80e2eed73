"""What a stream looks like, declared."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from speadrx._short_names import submodule

from .base import BaseLayout, DeclarativeLayout
from .contents import Field
from .declaration import Axis, Layout, Packets, Send, SideItem, TimeAxis

__all__ = ["Axis", "BaseLayout", "DeclarativeLayout", "Field", "Layout", "Packets", "Send", "SideItem", "TimeAxis"]


if not TYPE_CHECKING:  # which would take any name for one of ours

    def __getattr__(name: str) -> ModuleType:
        return submodule(__name__, name)
