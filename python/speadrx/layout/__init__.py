"""What a stream looks like, declared."""

from .declaration import Axis, BaseLayout, DeclarativeLayout, Layout, SideItem, TimeAxis

__all__ = ["Axis", "BaseLayout", "DeclarativeLayout", "Layout", "SideItem", "TimeAxis"]
