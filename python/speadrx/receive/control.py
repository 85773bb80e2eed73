"""Control heaps: they make a stream hand over the chunks in its window, in its own network thread."""

from __future__ import annotations

import logging
import os
import struct
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import spead2

from . import ends

logger = logging.getLogger(__name__)

# Control heaps have the flavour 64-48, whatever the flavour of the data: item IDs have 15 bits, values 48.
_ADDRESS_BITS = 48
_LAST_ITEM_ID = 0x7FFF

#: Bits of the timestamp in a mark.
_MARK_STAMP_BITS = 39

#: The statistic of a stream that counts its control heaps, each of which is a packet.
CONTROL_STAT = "speadrx.control_heaps"

#: If a stream could answer, but does not for this number of seconds, it has ended.
_PATIENCE = 5.0


def control_item(used: Iterable[int]) -> int:
    """Choose an item ID that a layout does not use. In heaps of recordings, the item has a `mark`."""
    taken = set(used)
    return next(item for item in range(_LAST_ITEM_ID, 0, -1) if item not in taken)


def mark(before: int, *, begins: bool, bits: int) -> int:
    """What that item says in a heap of a recording that is sent again: see `src/mark.rs`.

    Parameters
    ----------
    before
        The timestamp that was sent before.
    begins
        Whether time begins again with this heap; otherwise nothing was received in between.
    bits
        Bits of timestamps.
    """
    return begins << _MARK_STAMP_BITS | before % (1 << min(bits, _MARK_STAMP_BITS))


def _random() -> int:
    """Draw a value that nobody can guess. The module `secrets` does the same, but takes long to import."""
    return int.from_bytes(os.urandom(_ADDRESS_BITS // 8), "big")


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
        flush = end = done = _random()
        while len({flush, end, done}) < 3:
            end, done = _random(), _random()
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
            spead2.HEAP_CNT_ID: _random(),
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
    ends.read_kernel(reference)
    ends.find_end(reference)
    if (owner := ends.running(reference)) is None:
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
        if ends.waits_for_consumer(owner):
            idle_since = time.monotonic()  # the stream waits for its consumer
        elif time.monotonic() - idle_since > _PATIENCE:
            logger.info("drain: a stream does not answer, as if its sender had ended it")
            break
        elif time.monotonic() - idle_since > _PATIENCE / 2 and not pushed:
            # In a group, chunks come out when the last member ends. One that was ended by its sender never will.
            pushed = True
            core.flush()
            owner._control.post(owner._streams(), end=False)
        del owner  # so that its user can delete it meanwhile
        time.sleep(ends.LOOK_INTERVAL)
        if (owner := ends.running(reference)) is None:
            return
    owner.stop()
