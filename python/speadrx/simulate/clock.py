"""The time as simulated senders tell it: from a batch and a source to the value of an item."""

from __future__ import annotations

from speadrx.layout.declaration import TimeAxis
from speadrx.layout.items import TIMESTAMP_BITS

#: Scatters the phases of sources that show them by themselves.
_SCATTER = 0x9E3779B1


class SenderClock:
    """The times of the senders of one stream.

    Parameters
    ----------
    time
        The time axis.
    first_timestamp
        Timestamp of the first batch, in ticks.
    address_bits
        Bits of an immediate value.

    Raises
    ------
    ValueError
        If no batch has that timestamp, or it is below 0.
    """

    #: Timestamp of batch 0.
    origin: int

    def __init__(self, time: TimeAxis, first_timestamp: int, address_bits: int) -> None:
        self._time = time
        self._phases = time.phases if isinstance(time.phases, tuple) else ()
        self._least = min(self._phases, default=0)
        shows = time.origin == "first" or (time.origin is None and time.phases == "first")
        origin = first_timestamp if shows or isinstance(time.origin, str) else (time.origin or 0) + self._least
        self.origin = origin % time.step
        if first_timestamp < 0 or (first_timestamp - self.origin) % time.step:
            beyond = f", and {self.origin} more" if self.origin else ""
            raise ValueError(
                f"first_timestamp: {first_timestamp} must be a multiple of the layout's time step ({time.step}){beyond}"
            )
        #: Bits of a timestamp.
        self.bits = time.bits or min(TIMESTAMP_BITS, address_bits)

    def batch(self, timestamp: int) -> int:
        """The batch that begins at a timestamp or has it."""
        return timestamp // self._time.step

    def stamp(self, batch: int, source: int) -> int:
        """The timestamp of a source's heap, before it wraps."""
        return batch * self._time.step + self.origin + self._phase(source)

    def value(self, stamp: int) -> int:
        """The value of the item that tells a timestamp."""
        return (stamp & ((1 << self.bits) - 1)) << self._time.shift

    def _phase(self, source: int) -> int:
        if self._time.phases == "first":
            # Less than half a step, so that all are nearest to the same one.
            return source * _SCATTER % max(self._time.step // 2, 1)
        return self._phases[source] - self._least if self._phases else 0
