"""The layouts of MeerKAT's three voltage streams, and the SPEAD item IDs that they use."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import DeclarativeLayout
from .declaration import Axis, Layout, SideItem, TimeAxis

# Item IDs of the MeerKAT interface documents, as in the public module katgpucbf.spead.
TIMESTAMP_ID = 0x1600
XENG_RAW_ID = 0x1800
DIGITISER_ID_ID = 0x3101
DIGITISER_STATUS_ID = 0x3102
ADC_SAMPLES_ID = 0x3300
RAW_DATA_ID = ADC_SAMPLES_ID  # as katgpucbf called it before
FENG_ID_ID = 0x4101
FREQUENCY_ID = 0x4103
FENG_RAW_ID = 0x4300
BF_RAW_ID = 0x5000
BEAM_ANTS_ID = 0x5004

#: Bits of the digitiser status below the count of saturated samples.
DIGITISER_STATUS_SATURATION_COUNT_SHIFT = 32

N_POLS = 2
COMPLEX = 2
BYTE_BITS = 8


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_positive(layout: object, *names: str) -> None:
    for name in names:
        value = getattr(layout, name)
        _check(value >= 1, f"{name}: {value} must be at least 1")


@dataclass(frozen=True)
class DigitiserLayout(DeclarativeLayout):
    """Raw digitiser voltages of one antenna, both polarisations in each chunk.

    ``present`` has the axes polarisation, time. The polarisation is the lowest bit of the digitiser ID.
    The count of saturated samples of each heap (upper 32 bits of the digitiser status) is stored in
    ``extra``. The byte stride between polarisations is the field ``stride`` of ``user_data``. Without this
    field they are dense (`pol_chunk_bytes`).

    Parameters
    ----------
    sample_bits
        Bits of a sample; samples are packed without padding.
    heap_samples
        Samples in a heap.
    chunk_samples
        Samples of each polarisation in a chunk.
    mask_timestamp
        Clear the low bits of timestamps. Otherwise heaps are rejected whose timestamp is not a multiple of
        `heap_samples`.

    Raises
    ------
    ValueError
        If heaps are not whole bytes or chunks not whole heaps.
    """

    sample_bits: int
    heap_samples: int
    chunk_samples: int
    mask_timestamp: bool = False

    def __post_init__(self) -> None:
        _check_positive(self, "sample_bits", "heap_samples", "chunk_samples")
        bits = self.heap_samples * self.sample_bits
        _check(
            bits % BYTE_BITS == 0,
            f"heap_samples: {self.heap_samples} of {self.sample_bits} bits are not a whole number of bytes",
        )
        _check(
            self.chunk_samples % self.heap_samples == 0,
            f"chunk_samples: {self.chunk_samples} is not a multiple of heap_samples ({self.heap_samples})",
        )
        _ = self.declaration

    @functools.cached_property
    def declaration(self) -> Layout:  # noqa: D102
        return Layout(
            name="digitiser",
            heap_bytes=self.heap_samples * self.sample_bits // BYTE_BITS,
            payload_item=ADC_SAMPLES_ID,
            time=TimeAxis(
                item=TIMESTAMP_ID,
                step=self.heap_samples,
                batches=self.chunk_samples // self.heap_samples,
                align="mask" if self.mask_timestamp else "reject",
            ),
            axes=(Axis(name="pol", item=DIGITISER_ID_ID, mask=1, size=N_POLS),),
            order=("pol", "time"),
            strides={"pol": "stride"},
            side_items=(
                SideItem(
                    name="saturated",
                    item=DIGITISER_STATUS_ID,
                    shift=DIGITISER_STATUS_SATURATION_COUNT_SHIFT,
                    dtype="u16",
                ),
            ),
            sources="pol",
            samples_per_heap=self.heap_samples,
            # Samples that are no whole bytes are unpacked by chunk.samples().
            dtype=f"int{self.sample_bits}" if self.sample_bits % BYTE_BITS and self.sample_bits < 16 else "uint8",
        )

    @property
    def timestamp_mask(self) -> np.uint64:
        """Mask that timestamps are ANDed with."""
        return np.uint64(2**64 - (self.heap_samples if self.mask_timestamp else 1))

    @property
    def pol_chunk_bytes(self) -> int:
        """Bytes of one polarisation of a chunk."""
        return self.chunk_samples * self.sample_bits // BYTE_BITS


@dataclass(frozen=True)
class AntennaChannelisedVoltageLayout(DeclarativeLayout):
    """Channelised voltages of an array, one sub-band of every antenna; ``present`` has the axes time, antenna.

    Parameters
    ----------
    n_ants
        Antennas.
    n_channels_per_substream
        Channels in a heap.
    n_spectra_per_heap
        Spectra in a heap.
    heap_timestamp_step
        Increase in timestamp between successive heaps of an antenna, in digitiser samples.
    sample_bits
        Bits of the real part, and of the imaginary part.
    heaps_per_fengine_per_chunk
        Heaps of each antenna in a chunk.

    Raises
    ------
    ValueError
        If a heap is not a whole number of bytes, or a number is not positive.
    """

    n_ants: int
    n_channels_per_substream: int
    n_spectra_per_heap: int
    heap_timestamp_step: int
    sample_bits: int
    heaps_per_fengine_per_chunk: int

    def __post_init__(self) -> None:
        _check_positive(
            self,
            "n_ants",
            "n_channels_per_substream",
            "n_spectra_per_heap",
            "heap_timestamp_step",
            "sample_bits",
            "heaps_per_fengine_per_chunk",
        )
        bits = self.heap_sample_count * N_POLS * COMPLEX * self.sample_bits
        _check(bits % BYTE_BITS == 0, f"sample_bits: {self.sample_bits} makes heaps of {bits} bits, not whole bytes")
        _ = self.declaration

    @property
    def heap_sample_count(self) -> int:
        """Complex samples of each polarisation in a heap: katgpucbf's metrics count so."""
        return self.n_channels_per_substream * self.n_spectra_per_heap

    @functools.cached_property
    def declaration(self) -> Layout:  # noqa: D102
        shape = (self.n_channels_per_substream, self.n_spectra_per_heap, N_POLS, COMPLEX)
        return Layout(
            name="antenna-channelised-voltage",
            heap_bytes=self.heap_sample_count * N_POLS * COMPLEX * self.sample_bits // BYTE_BITS,
            payload_item=FENG_RAW_ID,
            time=TimeAxis(item=TIMESTAMP_ID, step=self.heap_timestamp_step, batches=self.heaps_per_fengine_per_chunk),
            axes=(Axis(name="antenna", item=FENG_ID_ID, size=self.n_ants, reject_name="bad_feng_id_heaps"),),
            sources="antenna",
            samples_per_heap=self.heap_sample_count,
            **_component_view(self.sample_bits, shape, ("channel", "spectrum", "pol", "complex")),
        )


@dataclass(frozen=True)
class TiedArrayChannelisedVoltageLayout(DeclarativeLayout):
    """A dual-polarisation beam; ``present`` has the axes polarisation, time, substream.

    The polarisation is a property of the stream: the ``pol`` field of its ``user_data``.

    Parameters
    ----------
    sample_bits
        Bits of the real part, and of the imaginary part: a multiple of 8.
    n_channels
        Channels of the beam.
    n_channels_per_substream
        Channels in a heap.
    n_spectra_per_heap
        Spectra in a heap.
    n_batches_per_chunk
        Heaps of each substream in a chunk.
    heap_timestamp_step
        Increase in timestamp between successive heaps of a substream, in digitiser samples.

    Raises
    ------
    ValueError
        If the substreams do not divide the channels, or `sample_bits` is not a multiple of 8.
    """

    sample_bits: int
    n_channels: int
    n_channels_per_substream: int
    n_spectra_per_heap: int
    n_batches_per_chunk: int
    heap_timestamp_step: int

    def __post_init__(self) -> None:
        _check_positive(
            self,
            "sample_bits",
            "n_channels",
            "n_channels_per_substream",
            "n_spectra_per_heap",
            "n_batches_per_chunk",
            "heap_timestamp_step",
        )
        _check(self.sample_bits % BYTE_BITS == 0, f"sample_bits: {self.sample_bits} must be a multiple of {BYTE_BITS}")
        _check(
            self.n_channels % self.n_channels_per_substream == 0,
            f"n_channels: {self.n_channels} is not a multiple of "
            f"n_channels_per_substream ({self.n_channels_per_substream})",
        )
        _ = self.declaration

    @property
    def n_pol_substreams(self) -> int:
        """Substreams of each polarisation."""
        return self.n_channels // self.n_channels_per_substream

    @property
    def heap_sample_count(self) -> int:
        """Complex samples in a heap."""
        return self.n_channels_per_substream * self.n_spectra_per_heap

    @functools.cached_property
    def declaration(self) -> Layout:  # noqa: D102
        shape = (self.n_channels_per_substream, self.n_spectra_per_heap, COMPLEX)
        return Layout(
            name="tied-array-channelised-voltage",
            heap_bytes=self.heap_sample_count * COMPLEX * self.sample_bits // BYTE_BITS,
            payload_item=BF_RAW_ID,
            time=TimeAxis(item=TIMESTAMP_ID, step=self.heap_timestamp_step, batches=self.n_batches_per_chunk),
            axes=(
                Axis(
                    name="substream",
                    item=FREQUENCY_ID,
                    step=self.n_channels_per_substream,
                    size=self.n_pol_substreams,
                    reject_name="bad_frequency_heaps",
                ),
                Axis(name="pol", from_user_data="pol", size=N_POLS),
            ),
            order=("pol", "time", "substream"),
            required_items=(BEAM_ANTS_ID,),
            sources="substream",
            samples_per_heap=self.heap_sample_count,
            **_component_view(self.sample_bits, shape, ("channel", "spectrum", "complex")),
        )


def _component_view(sample_bits: int, shape: tuple[int, ...], axes: tuple[str, ...]) -> dict[str, Any]:
    """The `dtype`, `heap_shape` and `heap_axes` of signed components, which may be packed; else those of bytes."""
    if sample_bits <= 16 or sample_bits in (32, 64):
        return {"dtype": f"int{sample_bits}", "heap_shape": shape, "heap_axes": axes}
    return {}
