"""Which batches an account expects: the rules, for accounts and histories."""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self, runtime_checkable


class Ends(NamedTuple):
    """Where an account begins and ends if heaps came before and after that. None if it is not cut there.

    Each is the index of an epoch and a number of batches from time 0.
    """

    #: The first batch of which all heaps are expected.
    begin: tuple[int, int] | None = None
    #: The batch after the last one of which all heaps are expected.
    end: tuple[int, int] | None = None


@runtime_checkable
class TellsTime(Protocol):
    """A stream or group that knows the time of each chunk ID, and the ends of its account."""

    def _locate(self, chunk_id: int) -> tuple[int, int, bool, int, float | None]: ...

    def _restarts(self, before: int, epoch: int) -> int: ...

    def _account_ends(self) -> Ends: ...


class Span(NamedTuple):
    """The batches since time last began again of which all heaps are expected. They are counted from time 0."""

    #: Index of the epoch of the last chunk.
    epoch: int
    #: The first batch, and the one after the last.
    first: int
    end: int
    #: How often time began again since the chunk before. If it did, or if there was none, this is a new span.
    restarts: int = 0
    is_new: bool = True
    #: Batches jumped over between the span before and this new one.
    gap: int = 0

    @classmethod
    def following(
        cls, before: Self | None, stream: TellsTime, ends: Ends, epoch: int, batches: tuple[int, int]
    ) -> tuple[Self, int, int]:
        """Add one more chunk, whose heaps are in these batches: the first, and the one after the last.

        Return the span, and those of the batches that are not cut off.
        """
        # Most accounts are cut nowhere: this happens for every chunk.
        is_cut = ends.begin is not None or ends.end is not None
        first, end = _clamped(stream, ends, epoch, *batches) if is_cut else batches
        if before is None:
            return cls(epoch, first, end), first, end
        restarts = stream._restarts(before.epoch, epoch) if epoch != before.epoch else 0
        if restarts and first < end:
            # Nobody knows what was sent in the gap. If time went back, there is no gap.
            return cls(epoch, first, end, restarts, gap=max(0, first - before.end)), first, end
        # If it began again later than the account, that does not count. This is so for nearly every chunk, and the
        # constructor would be a call of Python more.
        return tuple.__new__(cls, (epoch, before.first, max(before.end, end), 0, False, 0)), first, end


def _clamped(stream: TellsTime, ends: Ends, epoch: int, first: int, end: int) -> tuple[int, int]:
    """Limit batches to those of which all heaps are expected. If none is left, the two numbers are equal."""
    low = 0
    if ends.begin is not None and epoch <= ends.begin[0]:
        low = end if stream._restarts(epoch, ends.begin[0]) else ends.begin[1]
    high = max(low, end)
    if ends.end is not None and epoch >= ends.end[0]:
        high = 0 if stream._restarts(ends.end[0], epoch) else ends.end[1]
    low = min(low, high)
    return min(max(first, low), high), min(max(end, low), high)
