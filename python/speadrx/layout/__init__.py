"""What a stream looks like, declared."""

from .base import BaseLayout, DeclarativeLayout
from .contents import Field
from .declaration import Axis, Layout, Packets, Send, SideItem, TimeAxis

__all__ = ["Axis", "BaseLayout", "DeclarativeLayout", "Field", "Layout", "Packets", "Send", "SideItem", "TimeAxis"]
