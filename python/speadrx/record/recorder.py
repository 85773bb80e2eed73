"""`Recorder`: writes each chunk of a receiver to disk, beside the loop that uses it."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping, Sequence
from typing import Any

from speadrx.receive.checks import check_integer
from speadrx.receive.chunk import Chunk
from speadrx.receive.fill import chunk_filler
from speadrx.receive.fork import check_ours
from speadrx.receive.receiver import Receiver

from .beside import Beside
from .output import Arrival, Output, RecorderStats

__all__ = ["Recorder", "RecorderStats"]

#: Seconds without any progress after which a disk is given up.
PATIENCE = 60.0


class Recorder(Beside):
    """Record what a receiver receives, as a Zarr v3 group, while a loop uses the same chunks.

    Iterate over it in place of the receiver. Each chunk is queued for writing, given to the loop, and recycled when
    both are done with it::

        with Receiver(layout, ":7148") as receiver, Recorder(receiver, "night.zarr") as recorder:
            for chunk in recorder:
                with chunk:
                    ...

    A thread writes; reception and the loop never wait for the disk. If the queue is full, a chunk is not written, and
    counted. Do not change ``chunk.data`` in the loop: it may be written at that moment. Missing heaps are stored as
    what the receiver's ``fill`` says, or else zeros; chunks that never came are not stored, and read as not present.

    Parameters
    ----------
    receiver
        The receiver. All its threads must have the same strides.
    path
        The folder to make.
    select
        What to keep of some axes, by value: ``{"antenna": [3, 7]}``. It costs a copy of what is kept.
    queue
        How many chunks may wait for the disk. The default is what the receiver's chunks leave beyond those that it
        needs: give the receiver more ``chunks`` for a longer queue.
    wait
        Whether the loop waits for the disk when the queue is full, so that no chunk is left out: for captures.
    overwrite
        Whether to remove a recording that is there already.
    compress
        ``"zstd"`` to compress each chunk, or None. It needs the extra ``xarray``, and much more of the processors.
    threads
        Threads that compress. The default is half of the processors, but at most 4.
    patience
        Seconds after which a disk that does nothing at all is given up by `close`, and by a loop that waits for it.

    Raises
    ------
    FileExistsError
        If there is something at `path`, and it may not be overwritten.
    OSError
        If the folder cannot be made, or another recorder writes there.
    ValueError, TypeError
        If an argument is wrong.
    ModuleNotFoundError
        If what compresses is not installed.
    """

    def __init__(
        self,
        receiver: Receiver,
        path: str | os.PathLike[str],
        *,
        select: Mapping[str, Sequence[int]] | None = None,
        queue: int | None = None,
        wait: bool = False,
        overwrite: bool = False,
        compress: str | None = None,
        threads: int | None = None,
        patience: float = PATIENCE,
    ) -> None:
        super().__init__(receiver)
        self._fill = chunk_filler(self._layout, receiver.stream._geometries, b"\0")
        if not patience > 0:
            raise ValueError(f"patience: given {patience}, but wanted seconds")
        spare = max(len(receiver.pool) - receiver.stream._window - 1, 1)
        self._output = self._open(
            path,
            self._layout,
            select=select or {},
            queue=spare if queue is None else check_integer("queue", queue, 1),
            wait=wait,
            overwrite=overwrite,
            compress=compress,
            threads=threads,
            patience=patience,
        )
        #: The folder of the recording.
        self.path = self._output.path
        atexit.register(self.close)

    def _open(self, *args: Any, **options: Any) -> Output:
        """Make what is written to."""
        return Output(*args, **options)

    @property
    def chunk_bytes(self) -> int:
        """The bytes of a chunk as it is stored, if it is not compressed, and without metadata."""
        return self._output.chunk_bytes

    def size(self) -> int:
        """The bytes of all chunks, when those are written that are in the queue now."""
        return self._output.size()

    @property
    def is_gone(self) -> bool:
        """Whether the folder was removed while it was written to: nothing more can be recorded there."""
        return self._output.is_gone

    def heaps(self, chunk: Chunk) -> int:
        """How many heaps are present in a chunk, of those that are selected."""
        return self._output.stored.held(chunk).heaps()

    def write(self, chunk: Chunk) -> bool:
        """Queue a chunk for writing, for loops that iterate over the receiver itself. Recycle it as usual.

        Returns whether it was queued. A chunk without any heap that is selected is not, and need not be.
        """
        check_ours(self._receiver.stream)
        held = self._output.stored.held(chunk)
        heaps = held.heaps()
        if not heaps:
            self._output.skip(chunk.timestamp + self._layout.chunk_timestamp_step, begins=chunk.gap is None)
            return False
        if heaps < self._output.stored.n_heaps and self._receiver._chunks._fill is None:
            self._fill(chunk)
        arrays, memory = held.take()
        begins = chunk.gap is None
        if held.is_lent and not begins and self._output.put_quickly(chunk.timestamp, memory, heaps, chunk):
            return True
        return self._output.put(
            Arrival(
                timestamp=chunk.timestamp,
                time=lambda: chunk.time,
                begins=begins,
                heaps=heaps,
                arrays=arrays,
                memory=memory,
                lent=chunk if held.is_lent else None,
            )
        )

    def stats(self) -> RecorderStats:
        """Read what was recorded so far, at any time, from any thread."""
        check_ours(self._receiver.stream)
        return self._output.stats()

    def close(self) -> None:
        """Write what is queued, and the account, and end. It waits for the disk. It may be called again.

        If the disk does nothing for `patience`, what was not written is counted as ``disk_hung``. In a forked child
        nothing happens.
        """
        atexit.unregister(self.close)
        super().close()

    def _finish(self) -> None:
        self._output.close(lambda: {"account": self._receiver.stats()})
