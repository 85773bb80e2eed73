"""What SPEAD packets carry, without a layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from speadrx._short_names import submodule

if TYPE_CHECKING:
    from .heaps import Descriptor, Survey, Traffic
    from .kinds import Kind, Stream
else:
    # To read packets takes nothing of what looks at them, which takes long to import.
    def __getattr__(name: str) -> Any:
        if name not in __all__:
            return submodule(__name__, name)
        return getattr(submodule(__name__, "kinds" if name in ("Kind", "Stream") else "heaps"), name)


__all__ = ["Descriptor", "Kind", "Stream", "Survey", "Traffic"]
