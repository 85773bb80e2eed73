"""`Beside`: what stands in the place of a receiver: it takes each chunk, and gives it to the loop."""

from __future__ import annotations

import abc
import os
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, Self

from speadrx.receive.chunk import Chunk
from speadrx.receive.receiver import Receiver


class Beside(abc.ABC):
    """Takes each chunk of a receiver, and gives it to the loop that iterates over this.

    Parameters
    ----------
    receiver
        The receiver.

    Raises
    ------
    TypeError
        If it is none.
    """

    def __init__(self, receiver: Receiver) -> None:
        if not isinstance(receiver, Receiver):
            raise TypeError(f"receiver: given {type(receiver).__name__}, but wanted a speadrx.Receiver")
        self._receiver, self._layout = receiver, receiver.layout
        self._process = os.getpid()

    @abc.abstractmethod
    def write(self, chunk: Chunk) -> Any:
        """Take a chunk, for loops that iterate over the receiver itself. Recycle it as usual."""

    @abc.abstractmethod
    def _finish(self) -> None:
        """Finish what is not finished."""

    def close(self) -> None:
        """Finish. It may be called again. In a forked child nothing happens: the files are its parent's."""
        if os.getpid() == self._process:
            self._finish()

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in self._receiver:
            self._write_or_recycle(chunk)
            yield chunk

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        async for chunk in self._receiver:
            self._write_or_recycle(chunk)
            yield chunk

    def _write_or_recycle(self, chunk: Chunk) -> None:
        try:
            self.write(chunk)
        except BaseException:
            chunk.recycle()  # the loop never gets it
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
