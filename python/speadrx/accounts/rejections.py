"""Why heaps are rejected, in words, with an example of each cause."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from speadrx._words import counted, listed
from speadrx.layout.base import DeclarativeLayout
from speadrx.layout.items import SPECIAL_ITEMS, TIMESTAMP_BITS, item_name

_HEAP_LENGTH_ID, _PAYLOAD_OFFSET_ID = SPECIAL_ITEMS[1], 3

#: What the core knows of a cause: its name (None: no more exact than the reason), the index of the reason, heaps, and
#: bytes and items (ID, value, whether it is immediate) of an example.
Raw = tuple[str | None, int, int, tuple[int, list[tuple[int, int, bool]]] | None]


@dataclass(frozen=True)
class ItemValue:
    """An item in the packet of a rejected heap."""

    #: Its ID.
    id: int
    #: Its name, if it is known.
    name: str | None
    #: Its value; if it is addressed, where in the heap's payload its bytes begin.
    value: int
    #: Whether its value is in the payload, where placement does not look.
    addressed: bool


@dataclass(frozen=True)
class Rejection:
    """Heaps that were rejected for the same cause."""

    #: The reason that they are counted as: a key of `ReceiverStats.rejected`.
    reason: str
    #: The cause: ``"wrong_length"``; ``"addressed_item"``, an item's value is in the payload; ``"items_not_repeated"``,
    #: the first packet that came of a heap is not its first one, and lacks items; ``"wide_timestamp"``; or the reason.
    cause: str
    #: How many there are.
    heaps: int
    #: What is wrong with the example, in words.
    text: str
    #: The length that the example has in its header; None if it has none.
    heap_bytes: int | None
    #: Bytes of the first packet that came of the example.
    packet_bytes: int | None
    #: The items of that packet, in their order.
    items: list[ItemValue]


def rejections(layout: DeclarativeLayout, raws: Iterable[Raw]) -> list[Rejection]:
    """Say why heaps were rejected.

    Parameters
    ----------
    layout
        The layout of the stream or group.
    raws
        What the core knows, of all streams of a group one after the other.

    Returns
    -------
    list of Rejection
        By reason, in the order of the layout's checks.
    """
    heaps: dict[tuple[int, str], int] = {}
    examples: dict[tuple[int, str], tuple[int, list[tuple[int, int, bool]]]] = {}
    names = layout.declaration._compiled.reject_names
    for cause, reason, n, example in raws:
        key = (reason, cause or names[reason])
        heaps[key] = heaps.get(key, 0) + n
        if example is not None:
            examples.setdefault(key, example)
    found = []
    for key in sorted(heaps, key=lambda key: (key[0], key[1] == names[key[0]])):
        packet_bytes, pointers = examples.get(key, (None, []))
        items = [ItemValue(item, item_name(item), value, not immediate) for item, value, immediate in pointers]
        case = _Case(layout, items)
        found.append(
            Rejection(
                reason=names[key[0]],
                cause=key[1],
                heaps=heaps[key],
                text=case.text(*key),
                heap_bytes=case.values.get(_HEAP_LENGTH_ID),
                packet_bytes=packet_bytes,
                items=items,
            )
        )
    return found


def summary(rejection: Rejection) -> str:
    """Write a rejection with its example in a line.

    Parameters
    ----------
    rejection
        What was rejected, and why.
    """
    shown = [f"{item.id:#x} {'at' if item.addressed else '='} {item.value:,}" for item in rejection.items]
    example = f" Example: {rejection.packet_bytes:,} bytes with {listed(shown, most=16)}." if shown else ""
    return f"{counted(rejection.heaps, 'heap')} rejected ({rejection.reason}): {rejection.text}.{example}"


def _named(item: int) -> str:
    name = item_name(item)
    return f"item {item:#x}" + (f" ({name})" if name else "")


class _Case:
    """An example, and what the layout wants of it."""

    def __init__(self, layout: DeclarativeLayout, items: Sequence[ItemValue]) -> None:
        self._layout = layout
        self._declaration = layout.declaration
        self._items = items
        self.values = {item.id: item.value for item in items if not item.addressed}
        times = self._declaration.time.items
        self._told = [item for item in times if item in self.values]
        axes = [axis.item for axis in self._declaration.axes]
        needed = {*(() if self._told else times), *self._declaration.required_items, *axes}
        self._absent = [item for item in dict.fromkeys(layout.spead_items) if item in needed - self.values.keys()]
        self._time = next((self.values[item] for item in self._told), 0)

    def text(self, reason: int, cause: str) -> str:
        """Say what is wrong with it."""
        name = self._declaration._compiled.reject_names[reason]
        if name == "internal_error_heaps":
            return "the placement callback has failed, which is a mistake in speadrx"
        if not self._items:
            return "their packets could not be kept"
        if cause in _TEXTS:
            return _TEXTS[cause](self)
        if reason == 0 and len(self._told) > 1:
            return f"heaps have {listed(map(_named, self._told), most=4)}, of which each tells the time; wanted one"
        if reason == 0:
            lacking = listed(map(_named, self._absent), most=4)
            return f"heaps lack {lacking or 'an item'}, which the layout needs"
        if reason == 1:
            return f"the time {self._time:,} does not fit the layout's step of {self._declaration.time.step:,} ticks"
        if name in _TIMES:
            return f"the time {self._time:,} {_TIMES[name]}"
        axis = [axis for axis in self._declaration.axes if axis.from_user_data is None][reason - 2]
        if axis.item is None:
            wanted = listed((f"{item:#x}" for item in axis.present_items or ()), most=4)
            return f"not exactly one of the items {wanted} is present, which tells the index on the axis {axis.name}"
        size = axis.size if axis.values is None else len(axis.values)
        return f"{_named(axis.item)} is {self.values.get(axis.item)}: not on the axis {axis.name}, of size {size}"

    def wrong_length(self) -> str:
        length = self.values.get(_HEAP_LENGTH_ID)
        came = "no length" if length is None else f"{length:,} bytes"
        return f"heaps have {came}, the layout wants {self._layout.heap_bytes:,}"

    def addressed(self) -> str:
        addressed = [item.id for item in self._items if item.addressed and item.id in self._absent]
        verb = "is" if len(addressed) == 1 else "are"
        what = "the time" if set(addressed) & {*self._declaration.time.items} else "the value"
        named = listed(map(_named, addressed), most=4)
        return f"{named} {verb} addressed: {what} is in the payload, where placement does not look"

    def not_repeated(self) -> str:
        offset, lacking = self.values.get(_PAYLOAD_OFFSET_ID, 0), listed(map(_named, self._absent), most=4)
        return (
            f"the first packet that came of a heap begins at byte {offset:,} of it, and lacks {lacking}: senders must "
            "repeat items in each packet of a heap"
        )

    def wide(self) -> str:
        time = self._declaration.time
        shifted = self._time >> time.shift & (-1 if time.mask is None else time.mask)
        bits = TIMESTAMP_BITS if time.bits is None else time.bits
        return f"the time {shifted:,} has {shifted.bit_length()} bits, the layout's times have {bits}"


_TEXTS: dict[str, Callable[[_Case], str]] = {
    "wrong_length": _Case.wrong_length,
    "addressed_item": _Case.addressed,
    "items_not_repeated": _Case.not_repeated,
    "wide_timestamp": _Case.wide,
}
_TIMES = {
    "implausible_timestamp_heaps": "is too far from that of other heaps",
    "backward_timestamp_heaps": "is earlier than that of other heaps, and time must not begin again",
}
