"""Recordings: chunks written to disk as Zarr or for PSRDADA, beside the user's own loop, and read again."""

from __future__ import annotations

from .dada import DadaStats, DadaWriter
from .dataset import open_recording, open_tree
from .recorder import Recorder, RecorderStats

__all__ = ["DadaStats", "DadaWriter", "Recorder", "RecorderStats", "open_recording", "open_tree"]
