"""Buffers between guard bytes, which show what was written outside of them."""

from __future__ import annotations

import numpy as np

FILL = 0xA5
GUARD_BYTES = 64


class GuardedBuffer:
    """A buffer with guard bytes on either side, all filled with `FILL`."""

    def __init__(self, size: int) -> None:
        self.all = np.full(size + 2 * GUARD_BYTES, FILL, np.uint8)
        self.inside = self.all[GUARD_BYTES : GUARD_BYTES + size]

    def check_guards(self) -> None:
        outside = np.concatenate([self.all[:GUARD_BYTES], self.all[GUARD_BYTES + self.inside.size :]])
        assert (outside == FILL).all(), "written outside the buffer"
