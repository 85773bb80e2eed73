"""Habits of senders that spead2, or a layout alone, cannot cope with, and what of a `[packets]` table would."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from speadrx.layout.meerkat import TIMESTAMP_ID

from .kinds import Stream
from .values import RISING, common_step, joint, rise

#: Heaps with the same counter are on the way together if no more than so many heaps of each sender lie between.
_TOGETHER = 4
#: It is a habit if at least this fraction of the heaps have it.
_HABIT = 0.01
#: Heaps have a wrong length if at least this fraction of them lack as many bytes.
_ALL = 0.9
#: Heaps that are looked at for reversed bytes.
_SAMPLE = 2**16
_BYTE = np.uint64(8)


def _neighbors(stream: Stream) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of heaps with the same counter and destination, on the way together; and whether their senders differ."""
    if stream.counters is None:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, bool)
    heaps = joint(stream.targets, stream.counters)
    order = np.argsort(heaps, kind="stable")
    near = np.diff(order) <= _TOGETHER * np.unique(stream.senders).size
    pairs = np.flatnonzero(near & (np.diff(heaps[order]) == 0))
    one, other = order[pairs], order[pairs + 1]
    return one, other, stream.senders[one] != stream.senders[other]


def shared_counters(stream: Stream) -> int:
    """Count the heaps whose counter a heap of another sender has at about the same time, to the same destination."""
    n = int(np.count_nonzero(_neighbors(stream)[2]))
    return n if n >= _HABIT * stream.heaps else 0


def telling_items(stream: Stream) -> tuple[int, ...]:
    """Find the items that tell heaps apart which have the same sender and counter at about the same time."""
    one, other, apart = _neighbors(stream)
    one, other = one[~apart], other[~apart]
    least = max(1, _HABIT * stream.heaps)
    return tuple(
        item for item, values in stream.items.items() if np.count_nonzero(values[one] != values[other]) >= least
    )


def little_endian(stream: Stream) -> dict[int, int]:
    """Find items whose values have their bytes reversed, and how many bytes each has.

    One shows it if its values rise only once they are put right, and then in small steps. If there is such an item,
    others that have only their first byte set are taken for the same.
    """
    sizes = [size for size in (2, 4, 6) if size <= stream.flavour.address_bits // 8]
    unknown = {item: values[:_SAMPLE] for item, values in stream.items.items() if item != TIMESTAMP_ID}
    # The fewest bytes that will do: with more, values only have larger steps.
    found = {item: size for size in reversed(sizes) for item, values in unknown.items() if _is_reversed(values, size)}
    for size in set(found.values()):
        for item, values in unknown.items():
            top = values.max(initial=0)
            if item not in found and 0 < top < 1 << 8 * size and not (values % np.uint64(1 << 8 * (size - 1))).any():
                found[item] = size
    return found


def _is_reversed(values: np.ndarray, size: int) -> bool:
    if values.max(initial=0) >= np.uint64(1) << np.uint64(8 * size) or np.unique(values).size < 3:
        return False
    right = put_right(values, size)
    before, after = common_step(values), common_step(right)
    if before is None or after is None or rise(right) < RISING or after << 8 > before:
        return False
    # Times that rise in large steps could be reversed as well, but hardly if their lowest byte is never 0.
    return rise(values) < RISING or (size > 2 and bool((values & np.uint64(0xFF)).all()))


def put_right(values: np.ndarray, size: int) -> np.ndarray:
    """Reverse the bytes of values that have so many."""
    right = np.zeros_like(values)
    for _ in range(size):
        right = (right << _BYTE) | (values & np.uint64(0xFF))
        values = values >> _BYTE
    return right


@dataclasses.dataclass(frozen=True)
class Habits:
    """What was found.

    Attributes
    ----------
    whole
        Whether each packet is a heap, but does not say so.
    too_long
        By how many bytes the length that packets give is longer than their heap.
    shared
        Heaps whose counter a heap of another sender has.
    telling
        Items that tell heaps of several packets apart which have the same sender and counter.
    reversed_items
        Items with their bytes reversed, and how many bytes each has.
    unrepeated
        Whether only the first packet of a heap has all of its items.
    reordered
        Whether that packet came behind others of the heap.
    several
        Whether heaps have several packets.
    heaps, heap_bytes
        Heaps in all, and the bytes of each.
    is_timed
        Whether the heap counter is the time, so that it has to stay.
    """

    whole: bool
    too_long: int
    shared: int
    telling: tuple[int, ...]
    reversed_items: dict[int, int]
    unrepeated: bool
    reordered: bool
    several: bool
    heaps: int
    heap_bytes: int
    is_timed: bool = False

    @classmethod
    def of(cls, stream: Stream, *, unrepeated: bool, reordered: bool, lacking: Mapping[int, int]) -> Habits:
        """Find those of the senders of a stream; `lacking` has incomplete heaps by the bytes that they lack."""
        too_long, n = max(lacking.items(), key=lambda item: item[1], default=(0, 0))
        if n < _ALL * stream.heaps:
            too_long = 0
        shared = 0 if stream.whole else shared_counters(stream)
        several = stream.several
        return cls(
            whole=stream.whole,
            too_long=too_long,
            shared=shared,
            telling=telling_items(stream) if several and not unrepeated else (),
            reversed_items=little_endian(stream),
            unrepeated=unrepeated and several,
            reordered=reordered and several,
            several=several,
            heaps=stream.heaps,
            heap_bytes=stream.heap_bytes - too_long,
        )

    def mends(self) -> dict[str, Any]:
        """The fields of a `[packets]` table that the stream needs."""
        fields: dict[str, Any] = {}
        if self.whole:
            fields |= self._whole_mends()
        elif self.telling:
            fields |= {"heap_counter": self.telling}
        elif self.shared and self.several:
            fields |= {"heap_counter": "sender"}
        if self.too_long:
            fields |= {"heap_length": self.heap_bytes}
        if self.reversed_items:
            fields |= {"items": {item: f"<u{size}" for item, size in self.reversed_items.items()}}
        if self.reordered:
            fields |= {"repeat_items": True}
        return fields

    def _whole_mends(self) -> dict[str, str]:
        """What mends packets that are whole heaps."""
        fields = {"heap_length": "payload", "payload_offset": "zero"}
        return fields if self.is_timed else {**fields, "heap_counter": "packet"}

    def said(self) -> Iterator[str]:
        """Say what was found, and what mends it."""
        if self.whole:
            *some, last = (f'{name} = "{value}"' for name, value in self._whole_mends().items())
            yield (
                "spead2 drops these packets, because they do not say that they are whole heaps, or say it wrong. "
                f"{', '.join(some)} and {last} in [packets] mends that."
            )
        if self.too_long:
            yield (
                f"Heaps never have the length that their packets give: each lacks {self.too_long:,} bytes. "
                f"heap_length = {self.heap_bytes} in [packets] mends that."
            )
        if self.shared:
            mixed = "spead2 mixes the packets of both" if self.several else "heaps of several packets would be mixed"
            yield (
                f"{self.shared:,} of {self.heaps:,} heaps have the heap counter of a heap that another sender has on "
                f'the way: {mixed}. heap_counter = "sender" in [packets] mends that, or a stream for each sender.'
            )
        if self.telling:
            items = ", ".join(f"{item:#x}" for item in self.telling)
            yield (
                "Heaps that are on the way together have the same sender and heap counter: spead2 mixes their packets. "
                f"heap_counter = [{items}] in [packets] mends that."
            )
        for item, size in self.reversed_items.items():
            yield (
                f"Item {item:#x} has its bytes reversed (little-endian, {size} bytes): "
                f'items = {{ {item:#x} = "<u{size}" }} in [packets] mends that.'
            )
        if self.unrepeated:
            yield (
                "Only the first packet of a heap has all of its items: a heap whose packets are reordered, or whose "
                "first packet is lost, is rejected. repeat_items = true in [packets] takes them in any order."
            )


def mended(stream: Stream, habits: Habits) -> Stream:
    """Return the stream as it is once its packets are mended."""
    right = {item: put_right(stream.items[item], size) for item, size in habits.reversed_items.items()}
    return dataclasses.replace(stream, heap_bytes=habits.heap_bytes, items={**stream.items, **right})
