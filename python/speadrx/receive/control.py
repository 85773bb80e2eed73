"""Control heaps: they make a stream hand over the chunks in its window, in its own network thread."""

from __future__ import annotations

import logging
import secrets
import struct
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import spead2

logger = logging.getLogger(__name__)

# Control heaps have the flavour 64-48, whatever the flavour of the data: item IDs have 15 bits, values 48.
_ADDRESS_BITS = 48
_LAST_ITEM_ID = 0x7FFF

#: The statistic of a stream that counts its control heaps, each of which is a packet.
CONTROL_STAT = "speadrx.control_heaps"

#: If a stream could answer, but does not for this number of seconds, it has ended.
_PATIENCE = 5.0
_LOOK_INTERVAL = 0.002

#: A drain first lets a stream read what the kernel has received, for this number of seconds at most.
_KERNEL_SECONDS = 1.0

#: It then waits until all sources have come as far as most of them, for this number of seconds at most.
_SOURCE_SECONDS = 1.0

#: It does not wait if no heap comes for this number of seconds.
_SILENCE = 0.1


def control_item(used: Iterable[int]) -> int:
    """Choose an item ID that a layout does not use."""
    taken = set(used)
    return next(item for item in range(_LAST_ITEM_ID, 0, -1) if item not in taken)


class ControlHeaps:
    """The control heaps of a stream, or of all streams of a group.

    A control heap is recognised by the value of an item. The value is random, so that nobody on the network can forge
    one.

    Parameters
    ----------
    used
        Item IDs that the layout uses.
    """

    def __init__(self, used: Iterable[int]) -> None:
        #: The item by whose value a control heap is recognised.
        self.item = control_item(used)
        flush, end, done = secrets.SystemRandom().sample(range(1 << _ADDRESS_BITS), 3)
        #: The value in a heap that pushes out all chunks of the window; in one that also ends the stream; and in the
        #: heap after either, which says that this is done.
        self.cookie = (flush, end, done)
        self._queues: list[spead2.InprocQueue] = []
        self._lock = threading.RLock()  # reentrant: a signal handler may flush too
        self._sent = 0

    def post(self, streams: Sequence[Any], *, end: bool) -> int:
        """Give control heaps to the streams, so that they hand over all chunks of their windows. Do not wait for that.

        Parameters
        ----------
        streams
            The stream, or the members of the group. They must be the same each time.
        end
            Whether the streams receive nothing more after that.

        Returns
        -------
        int
            How many control heaps the streams have handled once this is done.
        """
        flush, end_value, done = self.cookie
        with self._lock:
            if not self._queues:
                # The queues are never stopped, because a stream ends when its first reader ends.
                self._queues = [spead2.InprocQueue() for _ in streams]
                for stream, queue in zip(streams, self._queues, strict=True):
                    stream.add_inproc_reader(queue)
            for queue in self._queues:
                queue.add_packet(self._packet(end_value if end else flush))
                queue.add_packet(self._packet(done))
            self._sent += len(self._queues)
            return self._sent

    def _packet(self, value: int) -> bytes:
        items = {
            # Another heap has the same number only by chance.
            spead2.HEAP_CNT_ID: secrets.randbits(_ADDRESS_BITS),
            spead2.HEAP_LENGTH_ID: 1,
            spead2.PAYLOAD_OFFSET_ID: 0,
            spead2.PAYLOAD_LENGTH_ID: 1,
            self.item: value,
        }
        pointers = (1 << 63 | item << _ADDRESS_BITS | value for item, value in items.items())
        header = (0x53, 4, 8 - _ADDRESS_BITS // 8, _ADDRESS_BITS // 8, 0, len(items))
        return struct.pack(f">4BHH{len(items)}Q", *header, *pointers) + b"\0"


def drain(owner: Any) -> None:
    """Make a stream or group hand over all its chunks and then stop. A thread of its own does this."""
    threading.Thread(target=_drain, args=(weakref.ref(owner),), name="speadrx-drain", daemon=True).start()


def _drain(reference: weakref.ref[Any]) -> None:
    # First the stream reads what the kernel has received. It must not wait for ever, since senders may go on.
    deadline = time.monotonic() + _KERNEL_SECONDS
    while (owner := _running(reference)) is not None and time.monotonic() < deadline:
        if all(sockets.are_read() for sockets in owner._socket_sets):
            break
        del owner  # so that its user can delete it meanwhile
        time.sleep(_LOOK_INTERVAL)
    owner = None
    _find_cut(reference)
    if (owner := _running(reference)) is None:
        return
    core = owner._core
    try:
        done = owner._control.post(owner._streams(), end=True)
    except BaseException:
        owner.stop()  # otherwise its consumer would wait for ever
        raise
    idle_since = time.monotonic()
    pushed = False
    while core.done < done:
        if _waits_for_consumer(owner):
            idle_since = time.monotonic()  # the stream waits for its consumer
        elif time.monotonic() - idle_since > _PATIENCE:
            logger.info("drain: a stream does not answer, as if its sender had ended it")
            break
        elif time.monotonic() - idle_since > _PATIENCE / 2 and not pushed:
            # In a group, chunks come out when the last member ends. One that was ended by its sender never will.
            pushed = True
            core.flush()
            owner._control.post(owner._streams(), end=False)
        del owner
        time.sleep(_LOOK_INTERVAL)
        if (owner := _running(reference)) is None:
            return
    owner.stop()


def _find_cut(reference: weakref.ref[Any]) -> None:
    """If heaps still come, choose the batch where the account is to end, and wait until all sources have passed it.

    spead2 may have read more of one source than of another, so without this, heaps would seem to be missing that were
    cut off. Each source counts once for each stream that it comes through, since the streams have threads of their own.
    """
    if (owner := _running(reference)) is None:
        return
    epoch, live = _live(owner)
    if not len(live):
        return
    cut = int(np.sort(live)[len(live) // 2]) + 1  # the batch after the newest that half of the sources have reached
    looked, placed = time.monotonic(), owner.ledger.snapshot().placed
    deadline, silent_at = looked + _SOURCE_SECONDS, looked + _SILENCE
    while looked < deadline:
        now, live = _live(owner)
        if now > epoch or (live > cut).all():  # the heaps of a batch may overtake those of the batch before
            break
        before, placed = placed, owner.ledger.snapshot().placed
        if placed != before or _waits_for_consumer(owner):
            silent_at = looked + _SILENCE
        elif looked >= silent_at:
            return
        del owner
        time.sleep(_LOOK_INTERVAL)
        looked = time.monotonic()
        if (owner := _running(reference)) is None:
            return
    owner._cut = epoch, cut


def _live(owner: Any) -> tuple[int, np.ndarray]:
    """Index of the newest epoch, and the newest batch of each source that has a heap in the window of that time."""
    epochs, batches = owner.ledger._newest()
    epoch = int(epochs.max())
    batches = batches[epochs == epoch]
    oldest = batches.max() - owner._window * owner.layout.chunk_batches
    return epoch, batches[(batches >= 0) & (batches >= oldest)]


def _waits_for_consumer(owner: Any) -> bool:
    return bool(owner.data_ringbuffer.full() or owner.free_ringbuffer.empty())


def _running(reference: weakref.ref[Any]) -> Any:
    """The stream or group, unless it is gone or stopped."""
    owner = reference()
    return None if owner is None or owner._stopped else owner
