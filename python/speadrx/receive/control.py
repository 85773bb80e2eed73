"""Control heaps: how a stream is told, in its own network thread, to hand over the chunks under construction."""

from __future__ import annotations

import logging
import secrets
import struct
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import spead2

logger = logging.getLogger(__name__)

# Control heaps are of the flavour 64-48, whatever that of the data: item IDs have 15 bits, values 48.
_ADDRESS_BITS = 48
_LAST_ITEM_ID = 0x7FFF

#: Seconds after which a stream that could answer, but does not, is taken for ended.
_PATIENCE = 5.0
_LOOK_INTERVAL = 0.002

#: Seconds at most for which a drain first lets a stream read what the kernel has for it.
_KERNEL_SECONDS = 1.0


def control_item(used: Iterable[int]) -> int:
    """Choose an item ID that a layout has no use for."""
    taken = set(used)
    return next(item for item in range(_LAST_ITEM_ID, 0, -1) if item not in taken)


class ControlHeaps:
    """The control heaps of a stream, or of all streams of a group.

    Each is known by the value of an item, which is random, so that nobody on the network can forge one.

    Parameters
    ----------
    used
        Item IDs that the layout uses.
    """

    def __init__(self, used: Iterable[int]) -> None:
        #: The item whose value tells a control heap.
        self.item = control_item(used)
        flush = secrets.randbits(_ADDRESS_BITS - 1) << 1
        #: Its values: of a heap that pushes out all chunks under construction, and of one that says that this is done.
        self.cookie = (flush, flush | 1)
        self._queues: list[spead2.InprocQueue] = []
        self._lock = threading.RLock()  # a signal handler may flush too
        self._sent = 0
        #: How many were sent by the end of each lot that lacked its payload.
        self._lacking: list[int] = []

    def post(self, streams: Sequence[Any], *, complete: bool) -> int:
        """Give control heaps to streams, which pass on all their chunks; wait for nothing.

        Parameters
        ----------
        streams
            The stream, or the members of the group: the same each time.
        complete
            Whether the heap has its payload, a byte. Without, nothing is written to its chunk and it is never shown
            as present there, but spead2 will count it as incomplete.

        Returns
        -------
        int
            How many control heaps the streams will have done with when all this is done.
        """
        flush, done = self.cookie
        with self._lock:
            if not self._queues:
                # Open for ever: a stream ends when the first of its readers does.
                self._queues = [spead2.InprocQueue() for _ in streams]
                for stream, queue in zip(streams, self._queues, strict=True):
                    stream.add_inproc_reader(queue)
            for queue in self._queues:
                queue.add_packet(self._packet(flush, b"\0" if complete else b""))
                queue.add_packet(self._packet(done, b"\0"))
            self._sent += len(self._queues)
            if not complete:
                self._lacking.append(self._sent)
            return self._sent

    def counted(self, done: int) -> tuple[int, int]:
        """How many packets, and incomplete heaps, of spead2's counts are of control heaps.

        Parameters
        ----------
        done
            How many control heaps the streams have done with. Incomplete ones are counted once they have stopped.
        """
        return 2 * done, len(self._queues) * sum(sent <= done for sent in self._lacking)

    def _packet(self, value: int, payload: bytes) -> bytes:
        items = {
            # By chance alone that of another live heap.
            spead2.HEAP_CNT_ID: secrets.randbits(_ADDRESS_BITS),
            spead2.HEAP_LENGTH_ID: 1,
            spead2.PAYLOAD_OFFSET_ID: 0,
            spead2.PAYLOAD_LENGTH_ID: len(payload),
            self.item: value,
        }
        pointers = (1 << 63 | item << _ADDRESS_BITS | value for item, value in items.items())
        header = (0x53, 4, 8 - _ADDRESS_BITS // 8, _ADDRESS_BITS // 8, 0, len(items))
        return struct.pack(f">4BHH{len(items)}Q", *header, *pointers) + payload


def drain(owner: Any) -> None:
    """Have a stream or group hand over all its chunks and stop, from a thread of its own."""
    threading.Thread(target=_drain, args=(weakref.ref(owner),), name="speadrx-drain", daemon=True).start()


def _drain(reference: weakref.ref[Any]) -> None:
    # What the kernel has already is read first, but not for ever what senders go on to send.
    deadline = time.monotonic() + _KERNEL_SECONDS
    while (owner := _running(reference)) is not None and time.monotonic() < deadline:
        if all(sockets.are_read() for sockets in owner._socket_sets):
            break
        del owner  # its user may let go of it while this waits
        time.sleep(_LOOK_INTERVAL)
    if (owner := _running(reference)) is None:
        return
    core = owner._core
    core.finish()
    try:
        done = owner._control.post(owner._streams(), complete=False)
    except BaseException:
        owner.stop()  # or its consumer would wait for ever
        raise
    idle_since = time.monotonic()
    while core.done < done:
        if owner.data_ringbuffer.full() or owner.free_ringbuffer.empty():
            idle_since = time.monotonic()  # it waits for its consumer
        elif time.monotonic() - idle_since > _PATIENCE:
            logger.info("drain: a stream does not answer, so its sender has ended it")
            break
        del owner
        time.sleep(_LOOK_INTERVAL)
        if (owner := _running(reference)) is None:
            return
    owner.stop()


def _running(reference: weakref.ref[Any]) -> Any:
    """The stream or group, unless it is gone or stopped."""
    owner = reference()
    return None if owner is None or owner._stopped else owner
