"""Turn a header file of mkrecv into a layout, with the endpoints that it names and what cannot be said here.

mkrecv (https://github.com/krajwade/mkrecv, and MPIfR's mpikat, which writes such files) receives SPEAD heaps into a
PSRDADA ring buffer. Its header file is that of DADA: a key and a value on each line, ``#`` begins a comment. What its
keys mean is taken from ``mkrecv_options.cpp`` and ``mkrecv_rnt.cpp``, of the branch that keeps ``HEAP_NBYTES``.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from speadrx._core import LayoutError
from speadrx._words import listed

from .declaration import Axis, Layout, SideItem, TimeAxis, read_toml
from .items import item_name

#: A value that says nothing.
_UNSET = "unset"
#: All bits of an item's value: a mask of so many keeps everything.
_ALL_BITS = (1 << 48) - 1
#: Bytes of a chunk, where a header does not say how many heaps there are in one.
_CHUNK_BYTES = 1 << 24
#: Longer lists are not values of an axis.
_MOST_VALUES = 1 << 20
#: Address, number of addresses that follow it, distance between them, port. What follows ``+n:`` is a distance in some
#: versions of mkrecv and a port in others.
_SOURCE = re.compile(r"(\d+(?:\.\d+){3})(?:\+(\d+))?(?:\|(\d+))?(?::(\d+))?")
#: Numbers beyond this are ports, not distances between addresses.
_LARGEST_DISTANCE = 255

#: Keys that a layout or its endpoints are made of.
_READ = {
    *("NINDICES", "IDX1_STEP", "SAMPLE_CLOCK", "SYNC_TIME", "SCI_LIST"),
    *("MCAST_SOURCES", "PORT", "UDP_IF", "IBV_IF"),
    *("HEAP_SIZE", "HEAP_NBYTES", "NGROUPS_DATA", "NBIT"),
}
_INDEX_KEY = re.compile(r"IDX(\d+)_(ITEM|MASK|LIST|STEP|MODULO)")
#: Keys that have no equivalent in a layout, and what to do instead.
_WITHOUT_EQUIVALENT = {
    "IDX1_MODULO": "the first chunk begins where the data does, not at a multiple: wait for one in your program",
    "PACKET_SIZE": "packets of any size are accepted",
    "PACKET_NBYTES": "packets of any size are accepted",
    "BUFFER_SIZE": "give the socket buffer to the receiver: recv --buffer",
    "BUFFER_NBYTES": "give the socket buffer to the receiver: recv --buffer",
    "NTHREADS": "give the number of threads to the receiver",
    "NHEAPS": "heaps are placed as they come; how late they may be is the window: recv --window",
    "NHEAPS_SWITCH": "a chunk is handed over when the window leaves it",
    "NGROUPS_TEMP": "a chunk is handed over when the window leaves it",
    "LEVEL_DATA": "a chunk is handed over when the window leaves it",
    "LEVEL_TEMP": "a chunk is handed over when the window leaves it",
    "SLOTS_SKIP": "the first chunks are handed over too: leave them out in your program",
    "DADA_NSLOTS": "give the number of chunks to the receiver: recv --chunks",
    "DADA_KEY": "chunks go to your program, not into a ring buffer of PSRDADA",
    "DADA_MODE": "chunks go to your program, not into a ring buffer of PSRDADA",
    "SAMPLE_CLOCK_START": "it is the timestamp of the first chunk",
    "UTC_START": "it is the time of the first chunk",
    "IBV_VECTOR": "give it to the receiver: comp_vector",
    "IBV_MAX_POLL": "spead2's default is used",
}


@dataclass(frozen=True)
class Note:
    """What a line of the header became, if it is not what mkrecv does, or has no equivalent."""

    #: Number of the line, from 1; 0 if it is about no line.
    line: int
    #: The key.
    key: str
    #: What it means here.
    text: str

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.key}: {self.text}"


@dataclass(frozen=True)
class Converted:
    """A layout made from a header, and how to receive with it."""

    layout: Layout
    #: Endpoints as `speadrx recv` reads them; empty if the header names none.
    endpoints: tuple[str, ...]
    #: Address of the interface; None if the header names none.
    interface: str | None
    #: What has no equivalent or is done differently.
    notes: tuple[Note, ...]


@dataclass
class MkrecvHeader:
    """The keys of a header file.

    Parameters
    ----------
    text
        The content of the file.
    label
        What messages call it.

    Raises
    ------
    LayoutError
        If a key has a value that mkrecv could not read either. The message has the line.
    """

    text: str
    label: str = "header"
    #: Value and number of the line, by key.
    _keys: dict[str, tuple[str, int]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for number, line in enumerate(self.text.splitlines(), 1):
            key, _, rest = line.partition("#")[0].strip().partition(" ")
            key, _, more = key.partition("\t")
            value = f"{more} {rest}".split()
            # The first of equal keys counts, as in DADA's ascii_header_get.
            if key and value and value[0] != _UNSET:
                self._keys.setdefault(key, (value[0], number))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> MkrecvHeader:
        """Read a header file.

        Raises
        ------
        LayoutError
            If it is not text, or far longer than a header.
        OSError
            If it cannot be read.
        """
        name = os.fspath(path)
        try:
            header = cls(read_toml(name).decode(), name)
        except UnicodeDecodeError as exc:
            raise LayoutError(f"{name}: is not text: {exc}") from None
        if "IDX1_ITEM" not in header._keys and "NINDICES" not in header._keys:
            raise LayoutError(f"{name}: has neither NINDICES nor IDX1_ITEM, so it is not a header file of mkrecv")
        return header

    def positions(self) -> dict[int, str]:
        """Return the positions of items that the header names, and the key of the first that names each.

        mkrecv counts the items of a packet from 0, without those at its start that SPEAD itself needs: heap counter,
        heap length, payload offset and payload length.
        """
        found = {self._number(key := f"IDX{i}_ITEM"): key for i in reversed(self._indices())}
        for position in self._list("SCI_LIST"):
            found.setdefault(position, "SCI_LIST")
        return found

    @property
    def heap_bytes(self) -> int:
        """Bytes of a heap."""
        for key in ("HEAP_NBYTES", "HEAP_SIZE"):
            if key in self._keys and (size := self._number(key)):
                return size
        raise LayoutError(
            f"{self.label}: HEAP_SIZE is missing: mkrecv takes the length of the first heap then, but a layout must "
            "say it; inspect shows it"
        )

    def convert(self, items: Mapping[int, int]) -> Converted:
        """Make a layout of the header.

        Parameters
        ----------
        items
            Item ID at each of `positions`.

        Raises
        ------
        LayoutError
            If a position has no ID, a key is missing or wrong, or the layout is not possible.
        """
        self._require(items)
        notes = list(self._notes())
        heap_bytes = self.heap_bytes
        axes = [self._axis(items, i) for i in self._indices() if i > 1]
        time = TimeAxis(
            item=self._item(items, "IDX1_ITEM"),
            step=self._number("IDX1_STEP"),
            batches=self._batches(heap_bytes * math.prod(_size(axis) for axis in axes), notes),
            # mkrecv divides and rounds down, so that any residue of the timestamps is accepted.
            align="floor",
            tick_rate=self._real("SAMPLE_CLOCK"),
            **self._optional(epoch=self._real("SYNC_TIME")),
        )
        _make_distinct(axes)
        side = [
            SideItem(name=_name_of(items[position], f"item_{position}"), item=items[position])
            for position in self._list("SCI_LIST")
        ]
        declared = [Axis(**axis) for axis in axes]
        layout = Layout(
            heap_bytes=heap_bytes,
            time=time,
            axes=tuple(declared),
            sources=declared[0].name if declared else None,
            side_items=tuple(side),
            **self._optional(dtype=self._dtype(heap_bytes, notes)),
        )
        interface, _ = self._keys.get("IBV_IF", self._keys.get("UDP_IF", (None, 0)))
        return Converted(layout, tuple(self._endpoints(notes)), interface, tuple(notes))

    def _indices(self) -> range:
        """Numbers of the indices, from 1."""
        given = [int(match[1]) for key in self._keys if (match := _INDEX_KEY.fullmatch(key)) and match[2] == "ITEM"]
        count = self._number_if("NINDICES") or max(given, default=0)
        if not 1 <= count <= len(self._keys):
            raise self._wrong("NINDICES", count, "the number of IDXn_ITEM that follow, at least 1")
        return range(1, count + 1)

    def _axis(self, items: Mapping[int, int], i: int) -> dict[str, Any]:
        """The arguments of an axis."""
        values = self._list(f"IDX{i}_LIST", required=True)
        item = self._item(items, f"IDX{i}_ITEM")
        mask = self._number_if(f"IDX{i}_MASK")
        axis: dict[str, Any] = {"name": _name_of(item, f"index_{i}"), "item": item}
        if mask is not None and mask & _ALL_BITS != _ALL_BITS:
            axis["mask"] = mask
        step = values[1] - values[0] if len(values) > 1 else 1
        if step > 0 and values == list(range(0, step * len(values), step)):
            axis |= {"step": step, "size": len(values)} if step > 1 else {"size": len(values)}
        else:
            axis["values"] = tuple(values)
        return axis

    def _batches(self, group_bytes: int, notes: list[Note]) -> int:
        """Groups of heaps in a chunk, each of which has those of one time."""
        if (batches := self._number_if("NGROUPS_DATA")) is not None:
            return batches
        batches = 1 << max(0, (_CHUNK_BYTES // group_bytes).bit_length() - 1)
        text = f"is missing, so a chunk gets {batches} heaps of each source, about 16 MB: time.batches"
        notes.append(Note(0, "NGROUPS_DATA", text))
        return batches

    def _dtype(self, heap_bytes: int, notes: list[Note]) -> str | None:
        """The type of samples, if the header says how many bits they have."""
        bits = self._number_if("NBIT")
        if bits is None:
            return None
        line = self._keys["NBIT"][1]
        if not 1 <= bits <= 16 or heap_bytes * 8 % bits:
            notes.append(Note(line, "NBIT", f"samples of {bits} bits stay bytes: say what they are with dtype"))
            return None
        return f"int{bits}"

    def _endpoints(self, notes: list[Note]) -> Iterable[str]:
        """The endpoints, as text."""
        text, line = self._keys.get("MCAST_SOURCES", ("", 0))
        port = self._number_if("PORT")
        if not text and port is not None:
            notes.append(Note(self._keys["PORT"][1], "PORT", "has no address beside it: give the endpoints to recv"))
        for part in filter(None, text.split(",")):
            match = _SOURCE.fullmatch(part)
            if match is None:
                raise self._wrong("MCAST_SOURCES", part, "addresses such as 239.2.1.150+3:7148")
            address, more, distance, last = match[1], int(match[2] or 0), match[3], match[4]
            if last is not None and int(last) <= _LARGEST_DISTANCE and distance is None and more:
                distance, last = last, None  # as in versions without ports
            its_port = port if last is None else int(last)
            if its_port is None:
                raise self._wrong("MCAST_SOURCES", part, "a port, here or as PORT")
            yield from _addresses(address, more, int(distance or 1), its_port)
        if text and port is not None and re.search(r":\d{4}", text):
            notes.append(Note(line, "MCAST_SOURCES", f"addresses with a port of their own use it, not PORT {port}"))

    def _notes(self) -> Iterable[Note]:
        """What of the header has no equivalent, in the order of its lines."""
        for key, (value, line) in self._keys.items():
            index = _INDEX_KEY.fullmatch(key)
            if key in _WITHOUT_EQUIVALENT:
                yield Note(line, key, _WITHOUT_EQUIVALENT[key])
            elif index is not None and int(index[1]) not in self._indices():
                yield Note(line, key, "is beyond NINDICES, so mkrecv does not read it either")
            elif index is not None and index[2] in ("STEP", "MODULO") and index[1] != "1":
                yield Note(line, key, "only the first index has it: mkrecv does not read it either")
            elif key == "IDX1_MASK":
                yield Note(line, key, "mkrecv does not mask the time, and neither does the layout")
            elif index is None and key not in _READ:
                yield Note(line, key, f"describes the data for programs behind mkrecv ({value}): not in a layout")
        yield Note(0, "heap counter 1", "mkrecv leaves out heaps with this counter; a layout judges them as any other")

    def _item(self, items: Mapping[int, int], key: str) -> int:
        return items[self._number(key)]

    def _require(self, items: Mapping[int, int]) -> None:
        """Check that the IDs of all items are known."""
        lacking = {position: key for position, key in sorted(self.positions().items()) if position not in items}
        if lacking:
            named = listed([f"{position} (line {self._keys[key][1]}, {key})" for position, key in lacking.items()])
            raise LayoutError(
                f"{self.label}: names items by position, which does not tell their IDs: give a capture, or the IDs "
                f"(such as {min(lacking)}=0x1600) at position {named}"
            )

    def _list(self, key: str, *, required: bool = False) -> list[int]:
        """Numbers and ranges (first:end:step, without the end), separated by commas."""
        if key not in self._keys and not required:
            return []
        values: list[int] = []
        text = self._text(key)
        for part in filter(None, text.split(",")):
            numbers = [self._parse(key, number) for number in part.split(":")]
            if len(numbers) > 3 or (len(numbers) == 3 and numbers[2] < 1):
                raise self._wrong(key, part, "a number, or a range first:end:step")
            first, end, step = (*numbers, *(numbers[0] + 1, 1)[len(numbers) - 1 :])
            values.extend(itertools.islice(range(first, end, step), _MOST_VALUES))
            if len(values) >= _MOST_VALUES:
                raise self._wrong(key, part, f"fewer than {_MOST_VALUES} values")
        if not values:
            raise self._wrong(key, text, "at least one value")
        return values

    def _number(self, key: str) -> int:
        return self._parse(key, self._text(key))

    def _number_if(self, key: str) -> int | None:
        return self._number(key) if key in self._keys else None

    def _real(self, key: str) -> float | None:
        if key not in self._keys:
            return None
        try:
            return float(self._keys[key][0])
        except ValueError:
            raise self._wrong(key, self._keys[key][0], "a number") from None

    def _parse(self, key: str, text: str) -> int:
        """A number, decimal or with 0x or 0b, as mkrecv reads it."""
        try:
            base = {"0x": 16, "0b": 2}.get(text[:2], 10)
            number = int(text, base)
        except ValueError:
            number = -1
        if number < 0:
            raise self._wrong(key, text, "a whole number, such as 4096 or 0x1000")
        return number

    def _text(self, key: str) -> str:
        if key not in self._keys:
            raise LayoutError(f"{self.label}: {key} is missing")
        return self._keys[key][0]

    def _wrong(self, key: str, value: object, wanted: str) -> LayoutError:
        line = self._keys[key][1] if key in self._keys else 0
        return LayoutError(f"{self.label}: line {line}: {key}: given {value}, but wanted {wanted}")

    @staticmethod
    def _optional(**values: Any) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value is not None}


def _addresses(address: str, more: int, distance: int, port: int) -> Iterable[str]:
    """Endpoints for an address and those that follow it, up to `more` further on."""
    if more and distance == 1:
        yield f"{address}+{more}:{port}"
        return
    head, _, last = address.rpartition(".")
    for beyond in range(0, more + 1, distance):
        yield f"{head}.{int(last) + beyond}:{port}"


def _size(axis: Mapping[str, Any]) -> int:
    return len(axis["values"]) if "values" in axis else int(axis["size"])


def _name_of(item: int, default: str) -> str:
    """A name for an axis or a side item."""
    return item_name(item) or default


def _make_distinct(axes: list[dict[str, Any]]) -> None:
    """Number axes of the same name: several may come from one item, with different masks."""
    names = [axis["name"] for axis in axes]
    for i, axis in enumerate(axes):
        if names.count(axis["name"]) > 1 or axis["name"] == "time":
            axis["name"] = f"{axis['name']}_{i + 2}"
