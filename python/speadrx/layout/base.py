"""The base classes of layouts: `BaseLayout` for any, `DeclarativeLayout` for those that a `Layout` describes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from speadrx._core import foreign_capsule

from .samples import samples, view
from .user_data import user_data_values

if TYPE_CHECKING:
    from .declaration import Layout

#: Prefix of the names under which spead2's statistics count the heaps that we reject.
STAT_PREFIX = "speadrx."

_SIDE_DTYPES = {"u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64}


class BaseLayout(ABC):
    """How the heaps of a stream fill its chunks.

    Use `Layout`, or derive from it, if a declaration can describe the stream. Derive from this class to
    use a placement callback of your own: override `chunk_place`, or define ``_chunk_place``, an object
    with an ``address`` (such as the ``CFunc`` that ``numba.cfunc`` makes).
    """

    @property
    @abstractmethod
    def heap_bytes(self) -> int:
        """Payload bytes of a heap."""

    @property
    @abstractmethod
    def chunk_batches(self) -> int:
        """Batches in a chunk: steps of its time axis."""

    @property
    @abstractmethod
    def batch_heaps(self) -> int:
        """Heaps in a batch: in one step of the time axis, over all other axes."""

    @property
    @abstractmethod
    def heap_sample_count(self) -> int:
        """Samples in a heap (the layout says what a sample is; used for statistics only)."""

    @property
    @abstractmethod
    def chunk_timestamp_step(self) -> int:
        """Increase in timestamp from one chunk to the next, in ticks."""

    @property
    def chunk_heaps(self) -> int:
        """Heaps in a chunk."""
        return self.chunk_batches * self.batch_heaps

    @property
    def chunk_bytes(self) -> int:
        """Payload bytes of a chunk."""
        return self.heap_bytes * self.chunk_heaps

    def chunk_place(self, user_data: np.ndarray) -> tuple[object, ...]:
        """Make the placement callback, in the form that `spead2.recv.ChunkStreamConfig` takes.

        Parameters
        ----------
        user_data
            Passed to the callback by address. The returned tuple keeps it alive.

        Returns
        -------
        tuple
            A capsule with the C function pointer and its context, then the objects that both need.

        Raises
        ------
        NotImplementedError
            If the class neither overrides this method nor has ``_chunk_place``.
        """
        callback = getattr(self, "_chunk_place", None)
        if callback is None:
            raise NotImplementedError(
                f"{type(self).__name__} has no placement callback: override chunk_place, "
                "or define _chunk_place with an address attribute"
            )
        if user_data is None:
            raise ValueError(f"user_data: None, but the callback of {type(self).__name__} reads it")
        return (foreign_capsule(callback.address, user_data.ctypes.data), callback, user_data)


class DeclarativeLayout(BaseLayout):
    """A layout that is described by a `Layout`, which `declaration` returns."""

    @property
    @abstractmethod
    def declaration(self) -> Layout:
        """The declaration behind this layout."""

    @property
    def heap_bytes(self) -> int:  # noqa: D102
        return self.declaration.heap_bytes

    @property
    def chunk_batches(self) -> int:  # noqa: D102
        return self.declaration.time.batches

    @property
    def batch_heaps(self) -> int:  # noqa: D102
        return self.declaration._compiled.batch_heaps

    @property
    def chunk_timestamp_step(self) -> int:  # noqa: D102
        return self.declaration._compiled.chunk_timestamp_step

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk's data, including the gaps that strides leave.

        Gaps that follow from strides in ``user_data`` are not known here, and not included.
        """
        known = self.declaration._compiled.chunk_bytes
        return self.heap_bytes * self.chunk_heaps if known is None else known

    @property
    def heap_sample_count(self) -> int:  # noqa: D102
        declaration = self.declaration
        if declaration.samples_per_heap is not None:
            return declaration.samples_per_heap
        return math.prod(declaration._contents.shape)

    @property
    def spead_items(self) -> list[int]:
        """Item IDs to ask spead2 for, in the order that the callback expects.

        The order is time, HEAP_LENGTH, axes, side items, required items, then the other IDs that time and axes can
        have, and the item of the epoch. An ID that is used twice is listed twice.
        """
        return self.declaration._compiled.items

    @property
    def stream_stats(self) -> list[str]:
        """Names of the statistics that count rejected heaps, in the order of the checks."""
        return [STAT_PREFIX + name for name in self.declaration._compiled.reject_names]

    @property
    def user_data_dtype(self) -> np.dtype:
        """Record type of ``user_data``: ``stats_base`` and all fields that the layout reads, all of pointer size."""
        compiled = self.declaration._compiled
        names = ["stats_base", *compiled.user_data_fields, *compiled.optional_user_data_fields]
        return np.dtype([(name, np.uintp) for name in names])

    @property
    def extra_dtype(self) -> np.dtype | None:
        """Packed record type of the side items, one record for each heap; None without side items."""
        items = self.declaration.side_items
        return np.dtype([(item.name, _SIDE_DTYPES[item.dtype]) for item in items]) if items else None

    @property
    def max_heap_extra(self) -> int:
        """Bytes that the callback writes to a chunk's ``extra`` for each heap."""
        return self.declaration._compiled.extra_bytes

    @property
    def axis_names(self) -> tuple[str, ...]:
        """Names of all axes, slowest first."""
        declaration = self.declaration
        return declaration.order or (declaration.time.name, *(axis.name for axis in declaration.axes))

    @property
    def present_shape(self) -> tuple[int, ...]:
        """Sizes of the axes, slowest first: the shape of a chunk's ``present`` and ``extra``."""
        return self.declaration._compiled.shape

    @property
    def heap_axis_names(self) -> tuple[str, ...]:
        """Names of the dimensions of a heap: the layout's `heap_axes`, or else ``sample``, ``sample_0`` and so on."""
        declaration = self.declaration
        n = len(declaration._contents.shape)
        if declaration.heap_axes or not n:
            return declaration.heap_axes
        names = ["sample"] if n == 1 else [f"sample_{i}" for i in range(n)]
        return tuple(f"heap_{name}" if name in self.axis_names else name for name in names)

    @property
    def source_labels(self) -> tuple[str, ...]:
        """The name of each source in the accounts."""
        return self.declaration.source_labels

    def view(self, data: np.ndarray, user_data: np.ndarray | None = None) -> np.ndarray:
        """View a chunk's data by axis.

        Parameters
        ----------
        data
            Contiguous data buffer of a chunk, of any shape.
        user_data
            One record; needed if a stride comes from ``user_data``.

        Returns
        -------
        numpy.ndarray
            Shape ``present_shape + heap_shape`` and the layout's dtype, sharing the memory of `data`. Packed samples
            are shown as the bytes of heaps.

        Raises
        ------
        ValueError
            If `data` is too small or not contiguous, or a field that the layout reads is missing from `user_data`.
        """
        declaration = self.declaration
        geometry = declaration._compiled.geometry(user_data_values(self, user_data))
        return view(declaration._contents, self.present_shape, geometry, data)

    def samples(
        self, data: np.ndarray, user_data: np.ndarray | None = None, *, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Read the numbers in a chunk's data.

        If the layout's dtype is one of packed samples, such as ``"int10"``, they become integers of 8 or 16 bits, with
        the interpreter's lock released. Otherwise the data hold the numbers as they are, and this is `view`.

        What is read of missing heaps is what their bytes say: stale samples, unless they were filled before, by
        ``fill=`` of `iter_chunks` or `Receiver`, or by `fill_missing`.

        Parameters
        ----------
        data, user_data
            As in `view`.
        out
            Where to write the numbers, if not to a new array. It must have the shape that is returned. Any dtype will
            do that can hold the numbers (``float32``, say), and there may be gaps between its elements; both cost a
            copy more than a contiguous array of the dtype that is returned by default.

        Returns
        -------
        numpy.ndarray
            Shape ``present_shape + heap_shape``, or in the layout's `samples_order`. It is `out`, if that is given.
            Without `out`, it shares the memory of `data` if samples are neither packed nor in another order.

        Raises
        ------
        ValueError, TypeError
            If `data` or `out` is too small, or not of the right kind.
        """
        declaration = self.declaration
        geometry = declaration._compiled.geometry(user_data_values(self, user_data))
        return samples(declaration._contents, self.present_shape, geometry, data, out)

    def chunk_place(self, user_data: np.ndarray | None = None) -> tuple[object, ...]:
        """Make the placement callback for a single stream.

        The callback copies the fields of `user_data` that the layout reads. It counts in its own ledger
        only: `speadrx.make_stream` makes one that feeds ``stream.stats`` too. It does not know the window of
        the stream, and assumes 16 chunks.

        Parameters
        ----------
        user_data
            Structured array of shape () or (1,). Optional if the layout reads no fields of it.

        Returns
        -------
        tuple
            The capsule, and the `Placement` that it belongs to.

        Raises
        ------
        ValueError
            If a field that the layout reads is missing or out of range.
        """
        if getattr(self, "_chunk_place", None) is not None:
            return super().chunk_place(user_data)  # type: ignore[arg-type]

        geometry = self.declaration._compiled.geometry(user_data_values(self, user_data))
        placement = geometry.placement(window=self._assumed_window())
        return (placement.capsule(), placement)

    def _assumed_window(self) -> int:
        # Fewer if chunks are long or large: see check_window in src/place.rs.
        limits = (2**47 // self.chunk_timestamp_step, (2**31 - 1) // self.chunk_batches, 2**30 // self.chunk_heaps)
        return min(16, *limits)
