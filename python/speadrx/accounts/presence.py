"""What is present in a chunk, as accounts and histories see it."""

from __future__ import annotations

from typing import Any

import numpy as np

from speadrx.layout.base import BaseLayout, DeclarativeLayout

#: Heaps present in a chunk, by source; the first batch that has a heap (the number of batches if none has), and the one
#: after the last that has one. Batches are counted from the beginning of the chunk. It is a plain tuple, as each chunk
#: makes one.
Presence = tuple[np.ndarray, int, int]


class PresenceReader:
    """Reads what is present in chunks of a layout.

    If the layout is not declarative, it is not known where its batches are. Then a single source stands for all, and a
    chunk that has a heap has heaps from its first batch to its last.
    """

    def __init__(self, layout: BaseLayout) -> None:
        self._batches = layout.chunk_batches
        self._core = None
        if isinstance(layout, DeclarativeLayout):
            self._core = layout.declaration._compiled
            self._shape = layout.present_shape
            self._time = layout.axis_names.index(layout.declaration.time.name)

    def read(self, present: Any) -> Presence:
        """Read the flags of a chunk."""
        if self._core is not None:
            counts, first, end = self._core.account_present(present)
            return np.frombuffer(counts, np.int64), first, end
        count = int(np.count_nonzero(present))
        return np.array([count]), *((0, self._batches) if count else (self._batches, 0))

    def read_outside(self, present: Any, first: int, end: int) -> np.ndarray:
        """Count the heaps before the batch `first` and from the batch `end` on, by source."""
        if self._core is None:
            return self.read(present)[0]
        others: Any = np.array(present).reshape(self._shape)
        np.moveaxis(others, self._time, 0)[max(first, 0) : max(end, 0)] = 0
        return np.frombuffer(self._core.account_present(others)[0], np.int64)
