"""From sockets to chunks in the user's loop.

The *window* of a stream is the number of chunks that it has under construction, so it says how late a heap may be. A
heap for a newer chunk moves the window on and ends the oldest chunk in it. Heaps that come later for an ended chunk are
too old. A group of several streams has one chunk more than the window of each stream, so that a stream that runs ahead
does not end chunks that the others still fill.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from speadrx._short_names import submodule

if not TYPE_CHECKING:  # which would take any name for one of ours

    def __getattr__(name: str) -> ModuleType:
        return submodule(__name__, name)
