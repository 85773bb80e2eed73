"""`Compressor`: compresses what a recording stores, in threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from speadrx.receive.checks import check_integer

from .recording import import_extra

#: Of zstd: faster than any other, and noise, which most samples are, does not get smaller with the others.
_LEVEL = 1
#: Threads by default, at most.
_MOST_THREADS = 4


class Compressor:
    """Threads that compress, with the codec that all readers of Zarr know.

    Parameters
    ----------
    name
        The name of the codec: ``"zstd"``.
    threads
        How many. The default is half of the processors, but at most 4.

    Raises
    ------
    ValueError, TypeError
        If an argument is wrong.
    ModuleNotFoundError
        If numcodecs is not installed, which comes with zarr.
    """

    def __init__(self, name: str, threads: int | None) -> None:
        if name != "zstd":
            raise ValueError(f"compress: given {name!r}, but wanted 'zstd' or None")
        usual = min(max(len(os.sched_getaffinity(0)) // 2, 1), _MOST_THREADS)
        n = usual if threads is None else check_integer("threads", threads, 1)
        codecs = import_extra("numcodecs.zstd", "compression needs")
        self._codec = codecs.Zstd(level=_LEVEL)
        #: What the metadata of Zarr say of it.
        self.document: dict[str, Any] = {"name": name, "configuration": {"level": _LEVEL, "checksum": False}}
        self._threads = ThreadPoolExecutor(n, "recorder of speadrx: zstd")

    def submit(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function in one of the threads."""
        self._threads.submit(function, *arguments)

    def encode(self, array: np.ndarray) -> bytes:
        """Compress an array. The interpreter's lock is released meanwhile."""
        return bytes(self._codec.encode(array.reshape(-1).view(np.uint8)))

    def close(self) -> None:
        """End the threads, when they are done."""
        self._threads.shutdown()
