"""Recordings: chunks written to disk as Zarr, beside the user's own loop, and read again."""

from __future__ import annotations

from .dataset import open_recording
from .recorder import Recorder, RecorderStats

__all__ = ["Recorder", "RecorderStats", "open_recording"]
