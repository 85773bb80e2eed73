"""What SPEAD packets carry, without a layout."""

from .heaps import Descriptor, Survey, Traffic
from .kinds import Kind, Stream

__all__ = ["Descriptor", "Kind", "Stream", "Survey", "Traffic"]
