"""Habits of senders that spead2, or a layout alone, cannot cope with, and what of a `[packets]` table would."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from .kinds import Stream
from .values import RISING, common_step, joint, most_frequent, rise

#: Heaps with the same counter are on the way together if no more than so many heaps of each sender lie between.
_TOGETHER = 4
#: It is a habit if at least this fraction of the heaps have it.
_HABIT = 0.01
_BYTE = np.uint64(8)


def shared_counters(stream: Stream) -> int:
    """Count the heaps whose counter a heap of another sender has at about the same time, to the same destination."""
    if stream.counters is None:
        return 0
    heaps = joint(stream.targets, stream.counters)
    order = np.argsort(heaps, kind="stable")
    near = np.diff(order) <= _TOGETHER * np.unique(stream.senders).size
    shared = near & (np.diff(heaps[order]) == 0) & (np.diff(stream.senders[order].astype(np.int64)) != 0)
    n = int(np.count_nonzero(shared))
    return n if n >= _HABIT * stream.heaps else 0


def little_endian(stream: Stream) -> dict[int, int]:
    """Find items whose values have their bytes reversed, and how many bytes each has.

    One shows it if its values rise only once they are put right, and then in small steps. If there is such an item,
    others that have only their first byte set are taken for the same.
    """
    sizes = [size for size in (2, 4) if size <= stream.flavour.address_bits // 8]
    found = {item: size for item, values in stream.items.items() for size in sizes if _is_reversed(values, size)}
    for size in set(found.values()):
        for item, values in stream.items.items():
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
    # Times that rise in large steps could be reversed as well, but hardly those that are far from their multiples.
    return rise(values) < RISING or (size > 2 and most_frequent(values % np.uint64(before)) > 0)


def put_right(values: np.ndarray, size: int) -> np.ndarray:
    """Reverse the bytes of values that have so many."""
    right = np.zeros_like(values)
    for _ in range(size):
        right = (right << _BYTE) | (values & np.uint64(0xFF))
        values = values >> _BYTE
    return right


def mended(stream: Stream, reversed_items: dict[int, int]) -> Stream:
    """Return the stream with the values of its little-endian items put right."""
    right = {item: put_right(stream.items[item], size) for item, size in reversed_items.items()}
    return dataclasses.replace(stream, items={**stream.items, **right})


def said(stream: Stream, shared: int, reversed_items: dict[int, int], unrepeated: bool) -> Iterator[str]:
    """Say what was found, and what mends it."""
    if stream.whole:
        yield (
            "spead2 drops these packets, because they do not say that they are whole heaps, or say it wrong: "
            '[packets] with heap_length = "payload", payload_offset = "zero" and heap_counter = "packet" mends that.'
        )
    if shared:
        yield (
            f"{shared:,} of {stream.heaps:,} heaps have the heap counter of a heap that another sender has on the way: "
            "if heaps have several packets, spead2 mixes those of both. [packets] with "
            'heap_counter = "sender" mends that, or a stream for each sender.'
        )
    for item, size in reversed_items.items():
        yield (
            f"Item {item:#x} has its bytes reversed (little-endian, {size} bytes): [packets] with "
            f'items = {{ {item:#x} = "<u{size}" }} mends that.'
        )
    if unrepeated:
        yield (
            "Only the first packet of a heap has all of its items: a heap whose packets are reordered, or whose first "
            "packet is lost, is rejected. [packets] with repeat_items = true takes them in any order."
        )
