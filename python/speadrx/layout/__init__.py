"""What a stream looks like, declared."""

from .base import BaseLayout, DeclarativeLayout
from .declaration import Axis, Layout, SideItem, TimeAxis

__all__ = ["Axis", "BaseLayout", "DeclarativeLayout", "Layout", "SideItem", "TimeAxis"]
