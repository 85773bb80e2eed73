"""What instruments send, made from their own public sources: nothing here knows a layout or the simulator.

One function for each instrument says what its heaps are: items, payloads, descriptors. `by_struct` and `by_spead2` make
packets of them: with bare `struct`, and with spead2's own sender, an item group with the instrument's descriptors.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import spead2
import spead2.send

#: Seconds that no epoch of an instrument depends on.
SYNC_TIME = 1_581_164_788


@dataclass(frozen=True)
class Heap:
    """A heap: its time, its index on each axis by name, its items in order, and its payload."""

    time: int
    where: dict[str, int]
    #: A tuple is where in the payload the value begins.
    items: dict[int, int | tuple[int]]
    payload: bytes
    #: ID of the payload, and the heap's counter, where they are not those of all heaps.
    payload_id: int | None = None
    counter: int | None = None


@dataclass(frozen=True)
class Stream:
    """What an instrument sends for a few batches."""

    heaps: list[Heap]
    payload_id: int
    #: Changes that make the layout as small as what is sent here.
    changes: tuple[str, ...] = ()
    #: Most bytes of payload in a packet.
    packet_payload: int = 8192
    address_bits: int = 48
    #: Name, shape, and dtype or format of each item, as the instrument's descriptors have them.
    descriptors: dict[int, tuple[str, tuple[int, ...], Any]] = field(default_factory=dict)
    #: Protocol items that packets lack.
    omit: tuple[int, ...] = ()
    #: By how much packets overstate the length of their heap.
    extra_length: int = 0
    #: Whether only the first packet of a heap has its items.
    first_only: bool = False
    #: Bytes of a payload that are the payload item's; None: all.
    data_bytes: int | None = None
    #: Makes the heaps with spead2 as the instrument does, where it does more than add items.
    spead2_heaps: Callable[[], Iterator[spead2.send.Heap]] | None = None
    user_data: dict[str, int] = field(default_factory=dict)
    #: Items whose values are kept beside the heaps, by the name of the field.
    kept: dict[str, Callable[[Heap], int]] = field(default_factory=dict)


def by_struct(stream: Stream) -> Iterator[bytes]:
    """Make the packets of a stream with nothing but `struct`."""
    bits = stream.address_bits
    for number, heap in enumerate(stream.heaps, 1):
        for offset in range(0, len(heap.payload), stream.packet_payload):
            part = heap.payload[offset : offset + stream.packet_payload]
            counter = number if heap.counter is None else heap.counter
            special = {1: counter, 2: len(heap.payload) + stream.extra_length, 3: offset, 4: len(part)}
            pointers = [1 << 63 | item << bits | value for item, value in special.items() if item not in stream.omit]
            if not (offset and stream.first_only):
                for item, value in heap.items.items():
                    pointers.append(
                        item << bits | value[0] if isinstance(value, tuple) else 1 << 63 | item << bits | value
                    )
                pointers.append((heap.payload_id or stream.payload_id) << bits)
            header = struct.pack(">4BHH", 0x53, 4, 8 - bits // 8, bits // 8, 0, len(pointers))
            yield header + struct.pack(f">{len(pointers)}Q", *pointers) + part


def by_spead2(stream: Stream) -> Iterator[bytes]:
    """Make the packets of a stream with spead2's sender; a heap with the descriptors comes first."""
    flavour = spead2.Flavour(4, 64, stream.address_bits, 0)
    if stream.spead2_heaps is not None:
        for number, heap in enumerate(stream.spead2_heaps(), 1):
            yield from spead2.send.PacketGenerator(heap, number, stream.packet_payload)
        return
    group = spead2.send.ItemGroup(flavour=flavour)
    for item, (name, shape, kind) in stream.descriptors.items():
        how = {"format": kind} if isinstance(kind, list) else {"dtype": kind}
        group.add_item(item, name, name, shape, **how)
    size = stream.packet_payload + 8 * (1 + 4 + len(stream.heaps[0].items) + 1)
    yield from spead2.send.PacketGenerator(group.get_heap(descriptors="all", data="none"), 2**30, size)
    for number, made in enumerate(stream.heaps, 1):
        heap = spead2.send.Heap(flavour)
        for item, value in made.items.items():
            heap.add_item(spead2.Item(item, "", "", (), format=[("u", stream.address_bits)], value=value))
        payload = np.frombuffer(made.payload, np.uint8)
        item = made.payload_id or stream.payload_id
        heap.add_item(spead2.Item(item, "", "", payload.shape, payload.dtype, value=payload))
        heap.repeat_pointers = True
        yield from spead2.send.PacketGenerator(heap, number if made.counter is None else made.counter, size)


_IMMEDIATE = [("u", 48)]


def meerkat_digitiser(rng: np.random.Generator) -> Stream:
    """katgpucbf, dsim/send.py (HeapSet.create) and dsim/descriptors.py: 4096 samples of 10 bits, one packet each."""
    heaps = []
    for n in range(4):
        for pol in range(2):
            saturated = 7 * n + pol
            items = {0x1600: (9000 + n) * 4096, 0x3101: 0x1230 | pol, 0x3102: saturated << 32}
            heaps.append(Heap((9000 + n) * 4096, {"pol": pol}, items, rng.bytes(4096 * 10 // 8)))
    return Stream(
        heaps,
        payload_id=0x3300,
        changes=("time.batches=2",),
        descriptors={
            0x1600: ("timestamp", (), _IMMEDIATE),
            0x3101: ("digitiser_id", (), _IMMEDIATE),
            0x3102: ("digitiser_status", (), _IMMEDIATE),
            0x3300: ("adc_samples", (4096,), [("i", 10)]),
        },
        kept={"saturated": lambda heap: heap.items[0x3102] >> 32},
    )


def _f_engine(rng: np.random.Generator, step: int, channels: int, changes: Sequence[str], spectra: int = 256) -> Stream:
    """katgpucbf, fgpu/send.py (Batch, make_descriptor_heap): timestamp, feng_id, frequency, feng_raw."""
    shape = (channels, spectra, 2, 2)
    heaps = [
        Heap(n * step, {"antenna": ant}, {0x1600: n * step, 0x4101: ant, 0x4103: 1024}, rng.bytes(int(np.prod(shape))))
        for n in range(500, 504)
        for ant in range(3)
    ]
    return Stream(
        heaps,
        payload_id=0x4300,
        changes=("antennas=3", "time.batches=2", *changes),
        descriptors={
            0x1600: ("timestamp", (), _IMMEDIATE),
            0x4101: ("feng_id", (), _IMMEDIATE),
            0x4103: ("frequency", (), _IMMEDIATE),
            0x4300: ("feng_raw", shape, np.int8),
        },
    )


def meerkat_f_engine(rng: np.random.Generator) -> Stream:
    """The wide-band F-engine: 4096 channels of a real signal, so a spectrum has 2 x 4096 samples."""
    return _f_engine(rng, 2 * 4096 * 256, 16, ())


def meerkat_f_engine_narrow(rng: np.random.Generator) -> Stream:
    """The narrow-band F-engine: fgpu/output.py has 2 x channels x decimation samples in a spectrum."""
    return _f_engine(rng, 2 * 1024 * 16 * 32, 32, ("decimation=16", "channels=1024", "substreams=32", "band=UHF"), 32)


def meerkat_x_engine(rng: np.random.Generator) -> Stream:
    """katgpucbf, xbgpu/xsend.py (make_item_group): frequency, timestamp, xeng_raw of int32, in the machine's order."""
    shape = (16, 2 * 4 * 5, 2)
    step = 855638016
    heaps = [
        Heap(n * step, {"substream": x}, {0x4103: 16 * x, 0x1600: n * step}, rng.bytes(4 * int(np.prod(shape))))
        for n in range(70, 73)
        for x in range(4)
    ]
    return Stream(
        heaps,
        payload_id=0x1800,
        changes=(
            "antennas=4",
            "channels=64",
            "substreams=4",
            f"time.step={step}",
        ),
        descriptors={
            0x4103: ("frequency", (), _IMMEDIATE),
            0x1600: ("timestamp", (), _IMMEDIATE),
            0x1800: ("xeng_raw", shape, np.dtype(np.int32)),
        },
    )


def meerkat_tied_array(rng: np.random.Generator) -> Stream:
    """katgpucbf, xbgpu/bsend.py (make_item_group) and spead.py: frequency, timestamp, beam_ants 0x5004, bf_raw."""
    heaps = []
    for n in range(40, 44):
        for x in range(4):
            items = {0x4103: 16 * x, 0x1600: n << 21, 0x5004: 60 + x}
            heaps.append(Heap(n << 21, {"substream": x, "pol": 1}, items, rng.bytes(16 * 256 * 2)))
    return Stream(
        heaps,
        payload_id=0x5000,
        changes=("axes.substream.size=4", "time.batches=2"),
        descriptors={
            0x4103: ("frequency", (), _IMMEDIATE),
            0x1600: ("timestamp", (), _IMMEDIATE),
            0x5004: ("beam_ants", (), _IMMEDIATE),
            0x5000: ("bf_raw", (16, 256, 2), np.int8),
        },
        user_data={"pol": 1},
        kept={"beam_ants": lambda heap: heap.items[0x5004]},
    )


def meerkat_first_correlator_beam(rng: np.random.Generator) -> Stream:
    """corr2, beam.py (descriptors_setup), and spip's UDPFormatMeerKATSPEAD.C: 64 bytes of header, so no beam_ants."""
    heaps = []
    for n in range(40, 44):
        for x in range(4):
            time = (n << 21) + 12345  # katsdpbfingest counts from the first timestamp
            items = {0x1600: time, 0x4103: 16 * x}
            heaps.append(Heap(time, {"substream": x, "pol": 0}, items, rng.bytes(16 * 256 * 2)))
    return Stream(
        heaps,
        payload_id=0x5000,
        changes=("axes.substream.size=4", "time.batches=2"),
        packet_payload=4096,
        descriptors={
            0x1600: ("timestamp", (), _IMMEDIATE),
            0x5000: ("bf_raw", (16, 256, 2), [("i", 8)]),
            0x4103: ("frequency", (), _IMMEDIATE),
        },
        user_data={"pol": 0},
    )


def meerkat_first_correlator_products(rng: np.random.Generator) -> Stream:
    """corr2, fxcorrelator_speadops.py, and katsdpingest: big-endian int32, times from the first heap's on."""
    shape, step = (16, 2 * 2 * 3, 2), 2 * 64 * 816 * 256
    heaps = []
    for n in range(70, 73):
        for x in range(4):
            time = n * step + 77777
            items = {0x1600: time, 0x4103: 16 * x}
            heaps.append(Heap(time, {"substream": x}, items, rng.bytes(4 * int(np.prod(shape)))))
    return Stream(
        heaps,
        payload_id=0x1800,
        changes=("antennas=2", "channels=64", "substreams=4"),
        packet_payload=4096,
        descriptors={
            0x1600: ("timestamp", (), _IMMEDIATE),
            0x4103: ("frequency", (), _IMMEDIATE),
            0x1800: ("xeng_raw", shape, np.dtype(">i4")),
        },
    )


def meerkat_fbfuse_input(rng: np.random.Generator) -> Stream:
    """mkrecv, header_fengine.cfg: F-engines and frequencies from lists, SAMPLE_CLOCK_START 13."""
    heaps = []
    for n in range(500, 503):
        for a, antenna in enumerate((7, 3, 60)):
            for x, frequency in enumerate((64, 80)):
                time = (n << 21) + 13
                items = {0x1600: time, 0x4101: antenna, 0x4103: frequency}
                heaps.append(Heap(time, {"antenna": a, "substream": x}, items, rng.bytes(16 * 256 * 2 * 2)))
    return Stream(
        heaps,
        payload_id=0x4300,
        changes=("axes.antenna.values=[7, 3, 60]", "axes.substream.values=[64, 80]", "time.batches=2"),
        packet_payload=1024,
        descriptors={
            0x1600: ("timestamp", (), _IMMEDIATE),
            0x4101: ("feng_id", (), _IMMEDIATE),
            0x4103: ("frequency", (), _IMMEDIATE),
            0x4300: ("feng_raw", (16, 256, 2, 2), np.int8),
        },
    )


def meerkat_apsuse_beams(rng: np.random.Generator) -> Stream:
    """mpikat, fbfuse_mksend_config.py: timestamp 5632, beam 21845 from a list, sub-band 16643, data 21846."""
    heaps = []
    for n in range(30, 34):
        for b, beam in enumerate((12, 15, 13)):
            time = (n << 24) + 10485760
            items = {5632: time, 21845: beam, 16643: 5}
            heaps.append(Heap(time, {"beam": b, "substream": 0}, items, rng.bytes(8192)))
    return Stream(
        heaps,
        payload_id=21846,
        changes=("axes.beam.values=[12, 15, 13]", "axes.substream.values=[5]", "time.batches=2"),
        packet_payload=8928,  # PACKET_SIZE 9000, of which 72 are header and items
        descriptors={item: (f"item {item}", (), _IMMEDIATE) for item in (5632, 21845, 16643)},
    )


def _spectrometer(rng: np.random.Generator, products: int, fft_length: int, naccumulate: int, rate: int) -> Stream:
    channels, step = fft_length // 2 + 1, fft_length * naccumulate
    heaps = []
    for n in range(5, 8):
        for product in range(products):
            for diode in range(2):
                samples = 10**6 + 10 * product + diode
                time = n * step + 118751
                values = (time, product, diode, fft_length, samples, SYNC_TIME, rate, naccumulate)
                where = {"polarization": product, "noise_diode": diode}
                heaps.append(Heap(time, where, dict(enumerate(values, 5632)), rng.bytes(4 * channels)))
    bytes_of_6 = {5632 + i: (f"item {i}", (6,), np.dtype(">u1")) for i in range(8)}
    return Stream(
        heaps,
        payload_id=5640,
        changes=(f"fft_length={fft_length}", f"naccumulate={naccumulate}"),
        packet_payload=8288,  # PACKET_SIZE 8400, of which 112 are header and items
        descriptors={**bytes_of_6, 5640: ("data", (channels,), np.dtype("<f4"))},
        kept={"input_samples": lambda heap: heap.items[5636]},
    )


def effelsberg_packetiser(rng: np.random.Generator) -> Stream:
    """mkrecv, header_packetizer_edd_1mc_12bit.cfg: HEAP_SIZE 6144, 4096 samples; items by position."""
    heaps = []
    for n in range(9000, 9004):
        for pol in range(2):
            items = {0x1600: n * 4096 + 99, 0x1601: pol, 0x1602: n & 1}
            heaps.append(Heap(n * 4096 + 99, {"pol": pol}, items, rng.bytes(4096 * 12 // 8)))
    return Stream(
        heaps,
        payload_id=0x3300,
        changes=("time.batches=2",),
        kept={"noise_diode": lambda heap: heap.items[0x1602]},
        descriptors={item: (f"item {item:#x}", (), _IMMEDIATE) for item in (0x1600, 0x1601, 0x1602)},
    )


def effelsberg_channeliser(rng: np.random.Generator) -> Stream:
    """mkrecv, header_backend_edd_8mc.cfg: HEAP_SIZE 262144, IDX1_STEP 1048576, IDX2_LIST 0,8,...,56 at position 2."""
    heaps = []
    for n in range(40, 43):
        for band in range(8):
            items = {0x1600: n * 1048576 + 77, 0x1601: n & 1, 0x1602: 8 * band}
            heaps.append(Heap(n * 1048576 + 77, {"band": band}, items, rng.bytes(262144)))
    return Stream(
        heaps,
        payload_id=0x3300,
        changes=("time.batches=2",),
        descriptors={item: (f"item {item:#x}", (), _IMMEDIATE) for item in (0x1600, 0x1601, 0x1602)},
    )


def effelsberg_gated_spectrometer(rng: np.random.Generator) -> Stream:
    """mpikat, GatedSpectrometerPipeline.py (mksend_header: items 5632 to 5640) and edd_fits_interface.py."""
    return _spectrometer(rng, products=2, fft_length=2**12, naccumulate=32, rate=3200000000)


def effelsberg_gated_stokes(rng: np.random.Generator) -> Stream:
    """mpikat, GatedFullStokesSpectrometerPipeline.py: ITEM2_LIST 0,1,2,3 are the Stokes parameters."""
    return _spectrometer(rng, products=4, fft_length=2**11, naccumulate=16, rate=2600000000)


def ska_low_station_beam(rng: np.random.Generator) -> Stream:
    """low-cbf-firmware, LFAAProcess.vhd (c_fieldmatch_loc): eight items, all immediate; no length, no offset."""
    heaps = []
    for n in range(1000, 1004):
        for c, frequency in enumerate((64, 65, 70)):
            for s, station in enumerate((345, 346)):
                items = {
                    0x1027: SYNC_TIME,
                    0x1600: n * 2211840,
                    0x1011: frequency * 781250,
                    0x3000: 3 << 16 | frequency,  # beam_id, frequency_id
                    0x3001: 1 << 40 | 2 << 32 | station << 16 | 256,  # substation, subarray, station, antennas
                }
                # The logical channel, and the packet counter.
                where = {"channel": c, "station": s}
                heaps.append(Heap(n, where, items, rng.bytes(8192), counter=c << 32 | n))
    return Stream(
        heaps,
        payload_id=0x3300,
        changes=("axes.channel.values=[64, 65, 70]", "axes.station.values=[345, 346]", "time.batches=2"),
        omit=(2, 3),
    )


def ska_low_tpm_integrated_channels(rng: np.random.Generator) -> Stream:
    """ska-low-mccs-daq, tests/cpp/test_integrated_channel.cpp (make_data_packet); each FPGA has a phase of its own."""
    heaps = []
    for n in range(3):
        for f in range(4):
            for c in range(8):
                batch = 0x1EDD251C53 + 0x4B4 + n * 4629629  # as the first of them tells it
                time = batch + (0, -0x4B4, 0xB2F6, 0x3AF)[f]
                items = {
                    0x1027: SYNC_TIME,
                    0x1600: time,
                    0x2004: 6,  # capture mode
                    0x2002: 64 * c << 24 | 64 << 16 | 0 << 8 | 8,  # first channel, channels, first antenna, antennas
                    0x2001: f // 2 << 32 | 4 << 16 | f % 2,  # tile, station, FPGA
                }
                where = {"fpga": f, "channels": c}
                counter = len(heaps)  # 24 bits
                heaps.append(Heap(batch, where, items, rng.bytes(2048), counter=counter))
    tiles = ", ".join(str(f // 2 << 32 | 4 << 16 | f % 2) for f in range(4))
    return Stream(heaps, payload_id=0x3300, omit=(2, 3), changes=(f"axes.fpga.values=[{tiles}]",))


def kat7_correlator(rng: np.random.Generator) -> Stream:
    """corr, corr_tx_spead_inter.py (pack_from_prms): of X-engine x, the time 0x1600 + x, the data 0x1800 + x."""
    heaps = []
    for n in range(3):
        for x in range(8):
            time = (2**40 - 2 * 2**20 + 77 + n * 2**20) % 2**40  # wraps
            heaps.append(
                Heap(
                    2**40 - 2 * 2**20 + 77 + n * 2**20,
                    {"xeng": x},
                    {0x1600 + x: time},
                    rng.bytes(2560),
                    payload_id=0x1800 + x,
                    counter=(time + x) % 2**40,
                )
            )
    return Stream(
        heaps,
        payload_id=0x1800,
        changes=("heap_bytes=2560", "heap_shape=[16, 5, 4, 2]"),
        packet_payload=4096,
        address_bits=40,
    )


def gbt_vegas(rng: np.random.Generator) -> Stream:
    """vegas_devel, vegas_spead_packet.h: items 0x20 to 0x24, data 0x25; the simulator's length counts 48 bytes more."""
    heaps = []
    for n in range(1500, 1506):
        values = (n * 100000 + n % 3, n * 733 - n % 5, 8, 1, n % 2)
        items = dict(enumerate(values, 0x20))
        heaps.append(Heap(n, {}, items, rng.bytes(16384), counter=n))
    return Stream(
        heaps,
        payload_id=0x25,
        changes=("time.batches=2",),
        address_bits=40,
        extra_length=48,
        kept={
            "time_stamp": lambda heap: heap.items[0x20],
            "spectrum_counter": lambda heap: heap.items[0x21],
            "switching_state": lambda heap: heap.items[0x24],
        },
    )


def kat7_beams(rng: np.random.Generator) -> Stream:
    """corr, bf_functions.py (spead_config_basics, spead_data_descriptor_issue): data 0xB000 + beam, time 0x1600."""
    heaps = []
    for n in range(4):
        for beam in range(2):
            time = 2**40 - 2 * 2**18 + 99 + n * 2**18
            payload = rng.bytes(64 * 128 * 2)
            heaps.append(Heap(time, {"beam": beam}, {0x1600: time % 2**40}, payload, payload_id=0xB000 + beam))
    return Stream(
        heaps,
        payload_id=0xB000,
        changes=("heap_bytes=16384", "heap_shape=[64, 128, 2]", "time.batches=2"),
        packet_payload=4096,
        address_bits=40,
    )


def meerkat_digitiser_spectrometer(rng: np.random.Generator) -> Stream:
    """katsdpspectrometer, spectrometer.py: digitiser_id is 24, 8, 14 and 2 bits, digitiser_status ends in 8 and 1."""
    heaps = []
    for n in range(3):
        for r, receptor in enumerate((17, 3)):
            for product in range(3):
                time = 5 * 10**12 + n * 1712000000
                digitiser = 0xABCDE << 24 | 3 << 16 | receptor << 2
                items = {0x1600: time, 0x3101: digitiser, 0x3102: (40 + product) << 1 | n % 2, 0x3301: 1}
                where = {"receptor": r, "product": product}
                heaps.append(Heap(time, where, items, rng.bytes(1024), payload_id=0x3302 + product))
    return Stream(
        heaps,
        payload_id=0x3302,
        changes=("axes.receptor.values=[17, 3]", "time.batches=2"),
        descriptors={item: (f"item {item:#x}", (), _IMMEDIATE) for item in (0x1600, 0x3101, 0x3102, 0x3301)},
        kept={"status": lambda heap: heap.items[0x3102]},
    )


def jodrell_bank_roach2(rng: np.random.Generator) -> Stream:
    """roach2_udpdb.c and decode_spead.c: counter 0, heap length 512, frames counted by 64, data of 64 bytes a frame."""
    heaps = []
    for n in range(6):
        frame = 2**40 - 2 * 64 + 64 * n
        items = {0x1601: frame % 2**40, 0x1700: 0}
        heaps.append(Heap(frame, {}, items, rng.bytes(4096), counter=0))
    return Stream(
        heaps,
        payload_id=0x1800,
        changes=("time.batches=4",),
        address_bits=40,
        extra_length=512 - 4096,
        kept={"band_select": lambda heap: heap.items[0x1700]},
    )


def _reversed(value: int) -> int:
    """The value as a PC has it in memory, in the place where SPEAD has the highest bytes of four first."""
    return int.from_bytes(struct.pack("<I", value), "big")


#: numpy's type of a baseline in the visibilities of SKA's prototypes.
_BASELINE = [("TCI", "i1"), ("FD", "u1"), ("VIS", "<c8", 4)]


def ska_sip_visibilities(rng: np.random.Generator) -> Stream:
    """integration-prototype, the senders of visibilities: items of `<u4`, descriptors and all data in every heap."""
    flavour = spead2.Flavour(4, 64, 48, 0)
    group = spead2.send.ItemGroup(flavour=flavour)
    for item, name, kind in (
        (0x6000, "visibility_timestamp_count", "<u4"),
        (0x6001, "visibility_timestamp_fraction", "<u4"),
        (0x6002, "visibility_channel_id", "<u4"),
        (0x6005, "visibility_baseline_count", "<u4"),
        (0x6008, "scan_id", "<u8"),
    ):
        group.add_item(item, name, "", (), dtype=kind)
    group.add_item(0x600A, "correlator_output_data", "", (10,), dtype=_BASELINE)
    heaps = []
    for n in range(6):
        for c, channel in enumerate((12345, 12346)):
            seconds, fraction = 1_500_000_000 + n, 77 * n + c
            values = {0x6000: seconds, 0x6001: fraction, 0x6002: channel, 0x6005: 10}
            items: dict[int, int | tuple[int]] = {item: _reversed(value) for item, value in values.items()}
            payload = rng.bytes(340)
            # The scan has 64 bits, so that it is addressed: behind the data.
            heaps.append(Heap(seconds, {"channel": c}, {**items, 0x6008: (340,)}, payload + struct.pack("<Q", 10**8)))

    def by_group() -> Iterator[spead2.send.Heap]:
        for heap in heaps:
            for item, value in heap.items.items():
                group[item].value = 10**8 if isinstance(value, tuple) else _reversed(value)
            group[0x600A].value = np.frombuffer(heap.payload[:340], _BASELINE)
            yield group.get_heap(descriptors="all", data="all")

    return Stream(
        heaps,
        payload_id=0x600A,
        changes=("axes.channel.values=[12345, 12346]",),
        packet_payload=256,
        data_bytes=340,
        first_only=True,
        spead2_heaps=by_group,
        kept={"fraction": lambda heap: _reversed(heap.items[0x6001])},
    )


def ska_low_visibilities(rng: np.random.Generator) -> Stream:
    """ska-low-csp-testware, low_cbf_vis.py: the channel is in bytes 2 and 3 of the heap counter's six."""
    heaps = []
    for n in range(6):
        for channel in range(3):
            counter = 7 << 32 | channel << 16 | n
            heaps.append(Heap(1000 + n, {"channel": channel}, {0x6015: 1000 + n}, rng.bytes(21 * 34), counter=counter))
    return Stream(
        heaps,
        payload_id=0x600A,
        changes=("axes.channel.size=3",),
        descriptors={0x6015: ("offset", (), _IMMEDIATE), 0x600A: ("Corre", (21,), np.dtype(_BASELINE))},
    )


def meerkat_sdp_visibilities(rng: np.random.Generator) -> Stream:
    """katsdpingest, sender.py (VisSender): an ItemGroup of four arrays, a float time, the dump index, the channel."""
    channels, baselines = 8, 6
    group = spead2.send.ItemGroup(descriptor_frequency=1, flavour=spead2.Flavour(4, 64, 48, 0))
    shape = (channels, baselines)
    arrays = (("correlator_data", shape, "c8"), ("flags", shape, "u1"), ("weights", shape, "u1"))
    for name, of, kind in (*arrays, ("weights_channel", (channels,), "f4")):
        group.add_item(None, name, "", of, dtype=np.dtype(kind))
    group.add_item(None, "timestamp", "", (), format=[("f", 64)])
    group.add_item(None, "dump_index", "", (), format=[("u", 64)])
    group.add_item(0x4103, "frequency", "", (), dtype=np.uint32)
    sizes = (channels * baselines * 8, channels * baselines, channels * baselines, channels * 4)
    starts = np.cumsum([0, *sizes]).tolist()
    heaps = []
    for dump in range(5):
        for x in range(2):
            values = [rng.bytes(size) for size in sizes]
            end = struct.pack(">dQ", 1234.5 + 2 * dump, dump)
            # The first array is the payload item; the others, the time and the index are behind it.
            items: dict[int, int | tuple[int]] = {0x1001 + i: (start,) for i, start in enumerate(starts[1:5])}
            items |= {0x1005: (starts[4] + 8,), 0x4103: _reversed(channels * x)}
            heaps.append(Heap(dump, {"substream": x}, items, b"".join(values) + end))

    def by_group() -> Iterator[spead2.send.Heap]:
        for heap in heaps:
            for i, (name, of, kind) in enumerate((*arrays, ("weights_channel", (channels,), "f4"))):
                group[name].value = np.frombuffer(heap.payload[starts[i] : starts[i + 1]], kind).reshape(of)
            group["timestamp"].value, group["dump_index"].value = struct.unpack(">dQ", heap.payload[-16:])
            group["frequency"].value = channels * heap.where["substream"]
            yield group.get_heap()

    visibilities = ", ".join(f'{{ name = "{name}", dtype = "{kind}", shape = [8, 6] }}' for name, _, kind in arrays)
    rest = '{ name = "weights_channel", dtype = "f4", shape = [8] }, { name = "timestamp", dtype = ">f8" }'
    return Stream(
        heaps,
        payload_id=0x1000,
        changes=(
            f'fields=[{visibilities}, {rest}, {{ name = "dump_index", dtype = ">u8" }}]',
            f"heap_bytes={starts[4] + 16}",
            "axes.substream.step=8",
            "axes.substream.size=2",
        ),
        packet_payload=200,
        first_only=True,
        spead2_heaps=by_group,
    )


#: The instrument that each layout is for. A layout without one has no test, which is an error.
INSTRUMENTS: dict[str, Callable[[np.random.Generator], Stream]] = {
    "effelsberg-edd-channeliser": effelsberg_channeliser,
    "effelsberg-edd-gated-spectrometer": effelsberg_gated_spectrometer,
    "effelsberg-edd-gated-stokes": effelsberg_gated_stokes,
    "effelsberg-edd-packetiser": effelsberg_packetiser,
    "gbt-vegas-spectra": gbt_vegas,
    "jodrell-bank-roach2": jodrell_bank_roach2,
    "kat7-beams": kat7_beams,
    "kat7-correlation-products": kat7_correlator,
    "meerkat-antenna-channelised-voltage": meerkat_f_engine,
    "meerkat-antenna-channelised-voltage-narrow": meerkat_f_engine_narrow,
    "meerkat-apsuse-beams": meerkat_apsuse_beams,
    "meerkat-baseline-correlation-products": meerkat_x_engine,
    "meerkat-digitiser": meerkat_digitiser,
    "meerkat-digitiser-spectrometer": meerkat_digitiser_spectrometer,
    "meerkat-fbfuse-input": meerkat_fbfuse_input,
    "meerkat-first-correlator-beam": meerkat_first_correlator_beam,
    "meerkat-first-correlator-products": meerkat_first_correlator_products,
    "meerkat-sdp-visibilities": meerkat_sdp_visibilities,
    "meerkat-tied-array-channelised-voltage": meerkat_tied_array,
    "ska-low-station-beam": ska_low_station_beam,
    "ska-low-tpm-integrated-channels": ska_low_tpm_integrated_channels,
    "ska-low-visibilities": ska_low_visibilities,
    "ska-sip-visibilities": ska_sip_visibilities,
}
