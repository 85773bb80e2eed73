"""Recordings: chunks written to disk as Zarr, beside the user's own loop."""

from __future__ import annotations

from .recorder import Recorder, RecorderStats

__all__ = ["Recorder", "RecorderStats"]
