"""Turn good heaps into garbage, which a receiver must reject for a known reason, or which it never sees."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping

from speadrx.layout.base import DeclarativeLayout
from speadrx.layout.items import SPECIAL_ITEMS, TIMESTAMP_BITS

from .packets import PacketEncoder, axis_index, axis_size

#: The kinds of garbage for `Faults`, and what a receiver does with each.
GARBAGE_KINDS = {
    "length": "a heap of the wrong length (metadata_heaps)",
    "absent": "a heap that lacks the time, an axis item or a required item (metadata_heaps)",
    "descriptor": "a heap with nothing but a descriptor (metadata_heaps)",
    "stop": "a stray stop heap (metadata_heaps; ends the stream unless stop_on_stop_item is off)",
    "timestamp": "a timestamp that is misaligned, or of more than 48 bits (bad_timestamp_heaps)",
    "axis": "an axis value that is out of range, misaligned or not listed (bad_<axis>_heaps)",
    "negative": "a timestamp before 0 (implausible_timestamp_heaps)",
    "noise": "random bytes (unseen: they do not decode)",
    "unsized": "a heap without HEAP_LENGTH (unseen)",
    "empty": "a heap whose HEAP_LENGTH is 0 (unseen)",
}


class GarbageMaker:
    """Makes garbage for one stream.

    Parameters
    ----------
    layout
        Layout of the good heaps.
    axis_items
        Items that place one of the good heaps on the axes.
    first_timestamp
        Timestamp of the first good heap.
    encoder
        Makes the packets.
    rng
        Makes the random choices.
    kinds
        Kinds to make, keys of `GARBAGE_KINDS`. The default is all possible kinds except ``"stop"``.

    Attributes
    ----------
    kinds
        Kinds that are made.

    Raises
    ------
    ValueError
        If one of the given kinds is not possible.
    """

    def __init__(
        self,
        layout: DeclarativeLayout,
        axis_items: Mapping[int, int],
        first_timestamp: int,
        encoder: PacketEncoder,
        rng: random.Random,
        kinds: Iterable[str] | None,
    ) -> None:
        self._heap_bytes = layout.heap_bytes
        self._time = layout.declaration.time
        self._axes = layout.declaration.axes
        self._required_items = layout.declaration.required_items
        self._axis_items = dict(axis_items)
        self._encoder = encoder
        self._random = rng
        self._bad_axis_items = self._find_bad_axis_items()
        #: By how many ticks a timestamp exceeds a whole number of steps.
        self._phase = first_timestamp % self._time.step
        time = self._time
        is_plain = time.bits is None and time.mask is None and not time.shift and time.phases is None
        # Time and axes may come from the heap counter, which every heap has.
        placing = {*self._time.items, *self._required_items, *axis_items} - set(SPECIAL_ITEMS)
        possible = {
            "absent": bool(placing),
            # What becomes of these depends on how packets are mended.
            **dict.fromkeys(("length", "unsized", "empty", "descriptor"), layout.declaration.packets is None),
            "timestamp": is_plain
            and ((time.align == "reject" and time.step > 1) or encoder.address_bits > TIMESTAMP_BITS),
            "axis": bool(self._bad_axis_items),
            # A receiver takes it for a time just before 0 while the newest time is in the first half of the range.
            "negative": is_plain
            and first_timestamp < 2 ** (TIMESTAMP_BITS - 2)
            and encoder.address_bits >= TIMESTAMP_BITS,
        }
        if kinds is None:
            kinds = (kind for kind in GARBAGE_KINDS if kind != "stop" and possible.get(kind, True))
        self.kinds = list(kinds)
        for kind in self.kinds:
            if not possible.get(kind, True):
                raise ValueError(f"garbage_kinds: this layout, flavour and timestamp have no {kind!r} garbage")

    def _find_bad_axis_items(self) -> list[tuple[str, dict[int, int]]]:
        """Find ways for a heap to miss an axis: the reason that the receiver counts, and the items of all axes."""
        good = self._axis_items
        limit = 2**self._encoder.address_bits
        found = []
        for axis in self._axes:
            if axis.item is None:
                continue
            if axis.values is None:
                size = axis_size(axis)
                candidates = [size * axis.step, (limit - 1 >> axis.shift) & (axis.mask or limit - 1)]
                candidates += [1] if axis.step > 1 else []
            else:
                candidates = [max(axis.values) + 1, next(v for v in itertools.count() if v not in axis.values)]
            field_bits = (limit - 1 if axis.mask is None else axis.mask) << axis.shift
            for candidate in candidates:
                value = good[axis.item] & ~field_bits | candidate << axis.shift
                bad = good | {axis.item: value}
                # The receiver counts the first axis, in the order of declaration, that the heap misses.
                missed = [a for a in self._axes if a.item is not None and axis_index(a, bad[a.item]) is None]
                if value < limit and missed and missed[0] is axis:
                    found.append((axis.reject_name or f"bad_{axis.name}_heaps", bad))
        return found

    def make(self, kind: str, items: dict[int, int], payload: bytes) -> tuple[str | None, list[bytes]]:
        """Turn a good heap into garbage.

        Parameters
        ----------
        kind
            One of `kinds`.
        items
            Value of each item of the good heap, by ID.
        payload
            Its payload.

        Returns
        -------
        reason : str or None
            Why the receiver rejects it; None if the receiver never sees it.
        packets : list of bytes
            Its packets.
        """
        choice = self._random.choice
        time_item = next(item for item in self._time.items if item in items)
        match kind:
            case "length":
                shorter, longer = payload[: len(payload) // 2], payload + bytes(8)
                return "metadata_heaps", self._encoder.heap(items, choice([shorter or longer, longer]))
            case "absent":
                placing = {time_item, *self._required_items, *self._axis_items}
                # What tells an index by its presence is the time, too, or nothing that every heap has.
                placing -= {item for axis in self._axes for item in axis.present_items or ()} - {time_item}
                absent = choice(sorted(placing - set(SPECIAL_ITEMS)))
                present = {item: value for item, value in items.items() if item != absent}
                return "metadata_heaps", self._encoder.heap(present, payload)
            case "timestamp":
                bad_time = {time_item: self._bad_timestamp(items[time_item])}
                return "bad_timestamp_heaps", self._encoder.heap(items | bad_time, payload)
            case "axis":
                reason, bad_items = choice(self._bad_axis_items)
                return reason, self._encoder.heap(items | bad_items, payload)
            case "negative":
                before_0 = {time_item: 2**TIMESTAMP_BITS - self._time.step + self._phase}
                return "implausible_timestamp_heaps", self._encoder.heap(items | before_0, payload)
            case "noise":  # the first byte is enough to tell that this is not SPEAD
                return None, [b"\xff" + self._random.randbytes(self._random.randrange(200))]
            case "unsized":
                return None, self._encoder.heap(items, payload[:8], sized=False)
            case "empty":
                return None, self._encoder.heap(items, b"")
            case "stop":
                return "metadata_heaps", self._encoder.stop()
            case _:
                return "metadata_heaps", self._encoder.descriptor(self._heap_bytes)

    def _bad_timestamp(self, timestamp: int) -> int:
        options: list[int] = []
        if self._time.align == "reject" and self._time.step > 1:
            options.append((timestamp + self._random.randrange(1, self._time.step)) % 2**TIMESTAMP_BITS)
        if self._encoder.address_bits > TIMESTAMP_BITS:
            options.append(timestamp + 2**TIMESTAMP_BITS)
        return self._random.choice(options)
