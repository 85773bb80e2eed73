"""The faults of a simulation, the order in which things are sent, and the truth about what was sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .garbage import GARBAGE_KINDS

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong between the senders and the receiver.

    If heaps have several packets, a stream can only count everything if it is made with ``allow_out_of_order=True``,
    and with a ``max_heaps`` that is large enough for all heaps whose packets are mixed.

    Parameters
    ----------
    loss
        Probability that a heap is not sent at all.
    packet_loss
        Probability that a packet is not sent. Each packet is decided on its own.
    reorder
        The largest number of later heaps that overtake a heap.
    packet_reorder
        The largest number of later packets that overtake a packet.
    late, late_by
        Probability that a heap is held back, and the number of heaps by which it is held back (in addition to
        `reorder`). With several chunks of heaps, it is too old when it comes.
    duplicate
        Probability that a heap is sent twice. The copy has a heap counter of its own, so that the packets of both
        never mix.
    garbage
        Probability that a heap of garbage is sent before a heap. Garbage is never lost or duplicated.
    garbage_kinds
        Kinds to choose from, keys of `GARBAGE_KINDS`. The default is all kinds that the layout and flavour allow,
        except ``"stop"``.

    Raises
    ------
    ValueError
        If a probability is not from 0 to 1, a number of heaps is negative, or a kind is unknown; or if there is
        garbage, but `garbage_kinds` is empty.
    """

    loss: float = 0.0
    packet_loss: float = 0.0
    reorder: int = 0
    packet_reorder: int = 0
    late: float = 0.0
    late_by: int = 0
    duplicate: float = 0.0
    garbage: float = 0.0
    garbage_kinds: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("loss", "packet_loss", "late", "duplicate", "garbage"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: {getattr(self, name)} is not a probability from 0 to 1")
        for name in ("reorder", "packet_reorder", "late_by"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 0")
        if self.garbage_kinds is not None:
            object.__setattr__(self, "garbage_kinds", tuple(self.garbage_kinds))
            if self.garbage and not self.garbage_kinds:
                raise ValueError(f"garbage_kinds: is empty, but garbage is {self.garbage}")
            for kind in self.garbage_kinds:
                if kind not in GARBAGE_KINDS:
                    raise ValueError(f"garbage_kinds: {kind!r} is not one of {', '.join(GARBAGE_KINDS)}")


@dataclass
class Truth:
    """What a simulator has sent, and what a receiver should make of it.

    Attributes
    ----------
    sent
        Copies of heaps sent, for each source, including duplicates and incomplete heaps.
    lost
        Heaps that were not sent at all, for each source.
    duplicated
        Copies sent after the first copy of each heap, for each source.
    incomplete
        Heaps that were sent, but no copy of them with all its packets, for each source.
    rejected
        Heaps of garbage sent, for each reason that the receiver counts.
    unseen
        Heaps of garbage sent that never reach a placement callback, for each kind.
    packets, bytes
        All that was sent, including garbage, without UDP and lower headers.
    """

    sent: list[int]
    lost: list[int]
    duplicated: list[int]
    incomplete: list[int]
    rejected: dict[str, int] = field(default_factory=dict)
    unseen: dict[str, int] = field(default_factory=dict)
    packets: int = 0
    bytes: int = 0

    @property
    def copies(self) -> int:
        """All heaps sent: the *sent copies* for which a receiver has to account."""
        return sum(self.sent) + sum(self.rejected.values()) + sum(self.unseen.values())

    @property
    def complete(self) -> list[int]:
        """Different heaps of each source that a receiver gets complete if nothing else goes wrong."""
        return [s - d - i for s, d, i in zip(self.sent, self.duplicated, self.incomplete, strict=True)]

    @property
    def decodable_packets(self) -> int:
        """Packets that a receiver can decode, and that spead2 counts as ``packets``."""
        return self.packets - self.unseen.get("noise", 0)


def overtaken(
    give: Callable[[_T], object], rand: Callable[[], float], most: int, late: float = 0.0, late_by: int = 0
) -> tuple[Callable[[_T], None], Callable[[], None]]:
    """Let later things overtake each thing: at most `most`, and `late_by` more if it is late.

    Parameters
    ----------
    give
        Takes things in the order in which they are sent.

    Returns
    -------
    push, end
        Takes a thing, and gives those whose turn it is; gives those that are left.
    """
    position, most = -1, most + 1
    # What is sent after the thing of a position.
    waiting: dict[int, list[_T]] = {}

    def push(thing: _T) -> None:
        nonlocal position
        position += 1
        by = late_by if late and rand() < late else 0
        by += int(rand() * most)
        if position in waiting:
            for other in waiting.pop(position):
                give(other)
        if not by:
            give(thing)
        elif position + by in waiting:
            waiting[position + by].append(thing)
        else:
            waiting[position + by] = [thing]

    def end() -> None:
        for _, things in sorted(waiting.items()):
            for thing in things:
                give(thing)

    return push, end


class SendingOrder(Generic[_T]):
    """Puts the packets of heaps in the order in which they are sent.

    Parameters
    ----------
    faults
        The faults.
    rand
        Makes a random number from 0 to 1.

    Attributes
    ----------
    made
        The packets whose turn it is.
    send
        Takes the packets of a heap.
    """

    def __init__(self, faults: Faults, rand: Callable[[], float]) -> None:
        self.made: list[_T] = []
        self.send: Callable[[list[_T]], object] = self.made.extend
        self._ends: list[Callable[[], None]] = []
        if faults.packet_reorder:
            push, end = overtaken(self.made.append, rand, faults.packet_reorder)
            self.send = lambda heap: [push(packet) for packet in heap]
            self._ends = [end]
        if faults.reorder or faults.late:
            self.send, end = overtaken(self.send, rand, faults.reorder, faults.late, faults.late_by)
            self._ends = [end, *self._ends]

    def end(self) -> None:
        """Let everything come out."""
        for end in self._ends:
            end()

    def take(self) -> list[_T]:
        """Take the packets whose turn it is away."""
        made = self.made.copy()
        self.made.clear()
        return made
