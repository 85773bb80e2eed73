"""The ends of an account: which batches it begins and ends with if heaps come all the time.

spead2 reads up to 64 packets of a socket in a row, threads are not equally far, and sockets are not opened all at once.
So when a receiver starts or ends while heaps come, the first and the last batches lack heaps that nobody has lost. They
are left out: of these batches, only the heaps that came are expected.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import Any

import numpy as np

#: Seconds between looks.
LOOK_INTERVAL = 0.002

#: Heaps are not waited for if none comes for this number of seconds: then senders are silent.
_SILENCE = 0.1

#: A stream reads what the kernel has received before for this number of seconds at most.
_KERNEL_SECONDS = 1.0

#: All sources come as far as most of them within this number of seconds, or are not waited for.
_SOURCE_SECONDS = 1.0


def running(reference: weakref.ref[Any]) -> Any:
    """The stream or group, unless it is gone, stopped or inert."""
    owner = reference()
    return None if owner is None or owner._stopped or owner._exiting else owner


def waits_for_consumer(owner: Any) -> bool:
    """Whether a stream cannot go on before its consumer has taken a chunk or given one back."""
    return bool(owner.data_ringbuffer.full() or owner.free_ringbuffer.empty())


def read_kernel(reference: weakref.ref[Any]) -> None:
    """Wait until a stream has read what the kernel has received; not for ever, since senders may go on."""
    deadline = time.monotonic() + _KERNEL_SECONDS
    while (owner := running(reference)) is not None and time.monotonic() < deadline:
        if _has_read(owner):
            return
        del owner  # so that its user can delete it meanwhile
        time.sleep(LOOK_INTERVAL)


def _has_read(owner: Any) -> bool:
    """Whether a stream or group has read what the kernel has received, and what was read for it."""
    if not all(sockets.are_read() for sockets in owner._socket_sets):
        return False
    fed = [sockets.fed() for sockets in owner._socket_sets]
    return all(n <= stream.stats["packets"] for n, stream in zip(fed, owner._streams(), strict=True) if n)


def find_begin(owner: Any) -> None:
    """Choose the batch where the account begins, now that all sockets are open.

    If nothing has come by now, all that comes later comes to open sockets. Otherwise a thread waits until what came
    before is read.
    """
    came = any(stream.stats["packets"] for stream in owner._streams())
    if came or not _has_read(owner):
        threading.Thread(target=_find_begin, args=(weakref.ref(owner),), name="speadrx-begin", daemon=True).start()


def _find_begin(reference: weakref.ref[Any]) -> None:
    read_kernel(reference)
    time.sleep(LOOK_INTERVAL)  # for what was read last to be placed
    if (owner := running(reference)) is not None:
        epoch, live = _live(owner)
        if len(live):
            owner._choose_begin((epoch, int(live.max()) + 1))


def find_end(reference: weakref.ref[Any]) -> None:
    """If heaps still come, choose the batch where the account ends, and wait until all sources have passed it.

    Each source counts once for each stream that it comes through.
    """
    if (owner := running(reference)) is None:
        return
    epoch, live = _live(owner)
    if not len(live):
        return
    end = int(np.sort(live)[len(live) // 2]) + 1  # the batch after the newest that half of the sources have reached
    looked, placed = time.monotonic(), owner.ledger.snapshot().placed
    deadline, silent_at = looked + _SOURCE_SECONDS, looked + _SILENCE
    while looked < deadline:
        now, live = _live(owner)
        if now > epoch or (live > end).all():  # the heaps of a batch may overtake those of the batch before
            break
        before, placed = placed, owner.ledger.snapshot().placed
        if placed != before or waits_for_consumer(owner):
            silent_at = looked + _SILENCE
        elif looked >= silent_at:
            return
        del owner
        time.sleep(LOOK_INTERVAL)
        looked = time.monotonic()
        if (owner := running(reference)) is None:
            return
    owner._end = epoch, end


def _live(owner: Any) -> tuple[int, np.ndarray]:
    """Index of the newest epoch, and the newest batch of each source that has a heap in the window of that time."""
    epochs, batches = owner.ledger._newest()
    epoch = int(epochs.max())
    batches = batches[epochs == epoch]
    oldest = batches.max() - owner._window * owner.layout.chunk_batches
    return epoch, batches[(batches >= 0) & (batches >= oldest)]
