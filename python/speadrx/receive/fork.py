"""Streams that are inert: those of the parent in a forked child, and those whose descriptors somebody else has closed.

A child has no network threads, and shares with its parent all that a stream has in the kernel. If it stopped a stream,
gave a chunk back, or only let go of a stream, it would wait for ever for threads that it does not have, and the parent
would go deaf or crash. If a program closes all descriptors, as it may to become a daemon, the network threads are
there, but wait at descriptors that nothing can wake any more.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
from collections.abc import Iterable
from typing import Any

from .sockets import leave_sockets

logger = logging.getLogger(__name__)

_CLOSED = (
    "stream: another part of this program has closed its descriptors (as os.closerange does), so it can receive "
    "nothing more: close only your own, or do so before there is a receiver"
)


def check_ours(owner: Any) -> None:
    """Check that this process may use a stream or group.

    Raises
    ------
    RuntimeError
        If this process is a forked child of the one that has made it, or has closed its descriptors.
    """
    if owner._lost:
        raise RuntimeError(_CLOSED)
    if owner._inherited:
        raise RuntimeError(
            f"stream: belongs to process {owner._process}, and this is process {os.getpid()}, forked from it, which "
            "has no threads that receive: wanted a stream or Receiver that was made in this process"
        )


def check_descriptors(owner: Any) -> None:
    """Check that a stream or group has its descriptors still. If not, it is inert from now on.

    Raises
    ------
    RuntimeError
        If somebody else has closed them.
    """
    if not owner._lost and not owner._stopped and not owner._has_descriptors():
        owner._lost = owner._exiting = True
        _keep_for_ever([owner])
        _end_without_spead2()
        logger.error("%s", _CLOSED)
    if owner._lost:
        raise RuntimeError(_CLOSED)


def leave_to_parent(streams: Iterable[Any]) -> None:
    """Make streams and groups inert in this process, which has just been forked."""
    streams = list(streams)
    if not streams:
        return
    for stream in streams:
        stream._inherited = stream._exiting = True
    _keep_for_ever(streams)
    _end_without_spead2()
    leave_sockets(sockets for stream in streams for sockets in stream._socket_sets)


def _keep_for_ever(objects: list[Any]) -> None:
    """Never delete objects, not even when the interpreter takes down all modules."""
    import ctypes  # imported here because few programs fork

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(objects))


class _AnyHandlerOfSpead2:
    """Equals exit handlers that look like spead2's: the module does not give it a name."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        kind = type(getattr(other, "__self__", None))
        return kind.__name__.startswith("pybind11") and getattr(other, "__name__", None) == ""


def _end_without_spead2() -> None:
    """Let this process end without stopping all that spead2 has, which includes what its parent has.

    Without the exit handler of spead2, its destructors would abort the process once the interpreter is gone. So the
    process then ends at once, with the same status.
    """
    import ctypes

    atexit.unregister(_AnyHandlerOfSpead2())  # type: ignore[arg-type]
    libc = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError):  # another C library than glibc
        libc.on_exit(libc._exit, None)
        libc.__cxa_atexit(libc.fflush, None, None)  # called before that
