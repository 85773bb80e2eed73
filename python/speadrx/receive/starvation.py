"""Tells a loop that waits for ever because its user keeps all chunks: nobody is there to give one back."""

from __future__ import annotations

import sys
import threading
from typing import Any

from .gaps import GapChunk

#: Seconds between looks at a stream while its loop waits.
LOOK_INTERVAL = 0.5

#: So many looks in a row must see the same before a loop is told. It is no time, so that a process that was stopped for
#: a while is not told at once.
_LOOKS = 4

#: How the names of our own threads begin. They recycle nothing.
_OURS = "speadrx-"


class Starvation:
    """What a loop sees while it waits for a chunk. Each wait has its own.

    No chunk can come while all of this holds:

    - Both rings are empty, and chunks that came out were not given back.
    - The stream has fewer chunks than its window. As a chunk comes out only when a heap needs another in its place, the
      stream is in the midst of this: it has a heap, and no chunk for it. If senders are silent, the window is full. A
      group may keep one chunk more than the window of its streams; there, packets must wait in the kernel, unread.
    - Nobody else can give a chunk back: the thread that waits is the only one of the user's, and no other task runs in
      its event loop. Only a signal handler or a thread outside of Python could, and it did not for some looks.

    So a program with other threads or tasks is never told by an exception, since one of them may recycle later. Nor is
    a group that reads no sockets. The log tells them.

    Parameters
    ----------
    stream
        The stream or group.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._before: tuple[int, int] | None = None
        self._looks = 0

    def look(self, *, other_tasks: bool = False) -> None:
        """Look at the stream, some time after the last look.

        Parameters
        ----------
        other_tasks
            Whether other tasks run in the event loop that waits.

        Raises
        ------
        RuntimeError
            If no chunk can come any more. The message names the cure.
        """
        seen = None if other_tasks or _other_threads() else self._stuck_with()
        self._looks = self._looks + 1 if seen is not None and seen == self._before else 0
        self._before = seen
        if seen is not None and self._looks >= _LOOKS:
            raise RuntimeError(
                "this loop would wait for ever: the chunks that came out were not recycled, and the stream needs one "
                f"to go on (it has {seen[0]} left, for a window of {self._stream._window}). Recycle each chunk when "
                "you are done with it (at the end of `with chunk:`, or with chunk.recycle()), and copy what you keep "
                "(chunk.data.copy())"
            )

    def _stuck_with(self) -> tuple[int, int] | None:
        """How many chunks and packets the stream has, if it cannot go on without another chunk; otherwise None."""
        stream = self._stream
        if stream._stopped or not (stream.free_ringbuffer.empty() and stream.data_ringbuffer.empty()):
            return None
        chunks = [chunk for chunk in stream._chunks if not isinstance(chunk, GapChunk)]
        left = sum(chunk.data is None for chunk in chunks)
        needs_one = left < stream._stream_window or (
            left < stream._window and not all(sockets.are_read() for sockets in stream._socket_sets)
        )
        if left == len(chunks) or not needs_one:
            return None
        return left, sum(member.stats["packets"] for member in stream._streams())


def _other_threads() -> bool:
    """Whether threads run Python code besides this one and our own."""
    ours = {thread.ident for thread in threading.enumerate() if thread.name.startswith(_OURS)}
    return bool(set(sys._current_frames()) - ours - {threading.get_ident()})
