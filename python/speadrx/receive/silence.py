"""How long no heap of a stream was placed although all that came for it was read."""

from __future__ import annotations

import time
from typing import Any

from .ends import waits_for_consumer


class Silence:
    """The silence of a stream or group: of heaps that are placed, whatever else comes.

    A heap that waits in the kernel breaks the silence, though it was not placed yet. So a stretch of time counts once
    all that came in it is read. While somebody floods a socket, it is never empty. Then what counts is that spead2 has
    read as many packets since a look as were there at that look.
    """

    def __init__(self) -> None:
        self._placed = 0
        self._since = self._read = time.monotonic()  # no heap was placed since then, and all is read that came by then
        #: When packets were unread, and how many batches each stream has read once it has read these packets.
        self._unread: tuple[float, list[int]] | None = None

    def look(self, owner: Any, placed: int, now: float) -> float:
        """Look at the stream. Return the seconds of silence.

        Parameters
        ----------
        owner
            The stream or group.
        placed
            Its heaps placed so far.
        now
            The time.
        """
        # A stream that waits for its consumer is not silent: the next packets are still in the kernel.
        if placed != self._placed or waits_for_consumer(owner):
            self._placed, self._since, self._read, self._unread = placed, now, now, None
        else:
            self._note_reading(owner, now)
        return self._read - self._since

    def _note_reading(self, owner: Any, now: float) -> None:
        unread = [sockets.unread_batches() for sockets in owner._socket_sets]
        if not any(unread):
            self._read, self._unread = now, None
            return
        batches = [stream.stats["batches"] for stream in owner._streams()]
        if self._unread is not None:
            then, wanted = self._unread
            if any(have < want for have, want in zip(batches, wanted, strict=True)):
                return
            self._read = then
        self._unread = now, [have + more for have, more in zip(batches, unread, strict=True)]
