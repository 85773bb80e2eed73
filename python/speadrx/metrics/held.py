"""Streams that are held weakly, and the counts of streams that are gone."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

_Remains = TypeVar("_Remains")
_Total = TypeVar("_Total")


class HeldStream(Generic[_Remains]):
    """A stream or group, held weakly, and what remains when it is gone."""

    def __init__(self, stream: Any, remains: _Remains) -> None:
        self.reference = weakref.ref(stream)
        self.remains = remains
        #: Whether its counts are final. The garbage collector breaks weak references before it calls finalisers, so a
        #: stream that no longer exists may still have network threads.
        self.final = False


class _State(Generic[_Remains, _Total]):
    def __init__(self, held: list[HeldStream[_Remains]], gone: _Total) -> None:
        self.held = held
        self.gone = gone
        # Made once, as all scrapes between two changes need it: there may be a thousand streams.
        self.remains = tuple(each.remains for each in held)


class _Finished:
    """Whether the counts of any stream may be final."""

    any = False


class HeldStreams(Generic[_Remains, _Total]):
    """Streams and groups, each once, and the total of those that are gone.

    Finalisers of streams run anywhere, also inside the methods of this class. They take no lock: they only set
    attributes.

    Parameters
    ----------
    zero
        The total before any stream is gone.
    fold
        Adds to a total what remains of streams that are gone, and returns the new total. It may be called again for
        the same streams and the same total.
    """

    def __init__(self, zero: _Total, fold: Callable[[_Total, Sequence[_Remains]], _Total]) -> None:
        # Replaced as a whole, because a signal handler may scrape in the middle of a scrape.
        self._state = _State[_Remains, _Total]([], zero)
        self._fold = fold
        self._finished = _Finished()

    def find(self, stream: Any) -> HeldStream[_Remains] | None:
        """Return the entry of a stream, if it was added."""
        return next((held for held in self._state.held if held.reference() is stream), None)

    def add(self, stream: Any, remains: _Remains, on_close: Callable[[Any], object] | None = None) -> None:
        """Add a stream, unless it was added before.

        Parameters
        ----------
        stream
            A stream or group. One that speadrx has not made has no finaliser of ours, so its counts are final at any
            time.
        remains
            What remains of it when it is gone.
        on_close
            Called with the stream when its counts are final, by its finaliser at the latest.
        """
        if self.find(stream) is not None:
            return
        held = HeldStream(stream, remains)
        self._state = _State([*self._state.held, held], self._state.gone)
        if (register := getattr(stream, "_on_close", None)) is None:
            held.final = self._finished.any = True
        else:
            register(functools.partial(_finish, held, self._finished, on_close))

    def read(self) -> tuple[_Total, tuple[_Remains, ...]]:
        """Return the total of the streams that are gone, and what belongs to each of the others.

        The tuple is the same object until streams come or go.
        """
        state = self.forget_gone()
        return state.gone, state.remains

    def forget_gone(self) -> _State[_Remains, _Total]:
        """Move streams that are gone to the total. Return the new state."""
        while self._finished.any:
            state = self._state
            self._finished.any = False  # from here on, finalisers may set it again
            final = {held for held in state.held if held.final}
            gone = {held for held in final if held.reference() is None}
            if final - gone:
                self._finished.any = True
            if not gone:
                return state
            total = self._fold(state.gone, [held.remains for held in state.held if held in gone])
            new = _State([held for held in state.held if held not in gone], total)
            if self._state is state:
                self._state = new
            else:  # a signal handler has changed it
                self._finished.any = True
        return self._state

    def __iter__(self) -> Iterator[tuple[Any, HeldStream[_Remains]]]:
        """All entries, each with its stream, which is kept until the next one is asked for; None if it is gone."""
        for held in self._state.held:
            yield held.reference(), held


def _finish(held: HeldStream[Any], finished: _Finished, on_close: Callable[[Any], object] | None, stream: Any) -> None:
    if on_close is not None:
        on_close(stream)
    held.final = True
    finished.any = True
