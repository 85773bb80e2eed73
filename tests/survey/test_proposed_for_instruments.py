"""What is proposed for the streams of real instruments: packets made with struct, as their public sources make them.

Sources: katgpucbf (`dsim/descriptors.py`, `spead.py`), katsdpingest, ska-sa/corr (`corr_tx_spead_inter.py`), corr2,
spip (`UDPFormatMeerKATSPEAD.C`), mpikat and mkrecv, katsdpspectrometer, casper-astro/vegas_devel, low-cbf-firmware
(`LFAAProcess.vhd`), ska-low-mccs-daq, ska-low-csp-testware, SKA's integration-prototype, Jodrell Bank's decoder.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from speadrx.propose import propose

from speadrx import Layout, Receiver
from speadrx.survey.heaps import Descriptor
from wire import heap, packet, survey_of, write_capture

Packets = Iterator[bytes]


@dataclass(frozen=True)
class Row:
    """A stream of an instrument, and what is proposed for it."""

    packets: list[bytes]
    #: Fields of the layout, by their path: those of axes by the position of the axis.
    wanted: dict[str, Any] = field(default_factory=dict)
    #: What the obstacle says, if no layout is proposed.
    obstacle: str | None = None
    described: dict[int, Descriptor] = field(default_factory=dict)


def digitiser() -> Packets:
    """MeerKAT's digitisers: 4,096 samples of 10 bits; two polarisations by the lowest bit of the ID."""
    for n in range(64):
        for pol in range(2):
            items = [(0x1600, 2**40 + n * 4096), (0x3101, 5 << 1 | pol), (0x3102, n % 2), (0x3300, (0,))]
            yield from heap(2 * n + pol + 1, items, bytes(5120))


def f_engines(antennas: tuple[int, ...] = (0, 1, 2, 3)) -> Packets:
    """F-engines of katgpucbf."""
    for n in range(40):
        for antenna in antennas:
            items = [(0x1600, 2**30 + n * 2**21), (0x4101, antenna), (0x4103, 1024), (0x4300, (0,))]
            yield from heap(n << 8 | antenna, items, bytes(4096), parts=4)


def visibilities(start: int, step: int) -> Packets:
    """X-engines: each has its own channels."""
    for n in range(24):
        for engine in range(4):
            items = [(0x1600, start + n * step), (0x4103, 16 * engine), (0x1800, (0,))]
            yield from heap(n * 4 + engine + 1, items, bytes(1024))


def beams(*more: tuple[int, int]) -> Packets:
    """Tied-array beams: channels of substreams."""
    for n in range(24):
        for substream in range(4):
            items = [(0x1600, n << 21), (0x4103, 16 * substream), *more, (0x5000, (0,))]
            yield from heap(n * 4 + substream + 1, items, bytes(8192), parts=2)


def apsuse() -> Packets:
    """APSUSE's beams by number, and their channels."""
    for n in range(24):
        for beam in (2, 7, 11):
            for channel in range(0, 256, 64):
                items = [(0x1600, 10_485_760 + n * 2**24), (0x5555, beam), (0x4103, channel), (0x5556, (0,))]
                yield from heap(n << 16 | beam << 8 | channel >> 6, items, bytes(512))


def spectrometer(*, phase: int) -> Packets:
    """Effelsberg's gated spectrometer: polarisation and noise diode."""
    for n in range(40):
        for pol in range(2):
            for gate in range(2):
                items = [(0x1600, phase + n * 2**25), (0x1601, pol), (0x1602, gate), (0x1603, 2048), (0x1604, 9)]
                items += [(0x1605, 1_700_000_000), (0x1606, 3_200_000_000), (0x1607, 16), (0x1608, (0,))]
                yield from heap(n * 4 + pol * 2 + gate + 1, items, bytes(1024))


def products(ids: tuple[int, ...], bits: int = 48) -> Packets:
    """Heaps that only the ID of their payload item tells apart: MeerKAT's digitiser spectrometers, KAT-7's beams."""
    for n in range(40):
        for i, item in enumerate(ids):
            items = [(0x1600, n * 4096), (0x3101, 9), (0x3102, 0), (item, (0,))]
            yield from heap(n * len(ids) + i + 1, items, bytes(256), bits=bits)


def kat7(engines: int = 8) -> Packets:
    """KAT-7 and PAPER: each X-engine has its own items for time and data, in 64-40."""
    for n in range(24):
        for x in range(engines):
            items = [(0x1600 + x, 2**40 - 3 * 4000 + n * 4000 - (2**40 if n > 2 else 0)), (0x1800 + x, (0,))]
            yield from heap(n * 4000 + x + 1, items, bytes(640), bits=40)


def vegas(too_long: int = 0) -> Packets:
    """GBT's VEGAS: no item has steps, but the heap counter counts spectra; items are in the first packet only.

    The length that its simulator gives is 48 bytes too long.
    """
    right, wrong = ((1 << 23 | 2) << 40 | length for length in (512, 512 + too_long))
    for n in range(64):
        items = [(0x20, 5), (0x21, n * 733 - n * n), (0x22, n % 3), (0x25, (0,))]
        for data in heap(1500 + n, items, bytes(512), parts=2, bits=40, repeat=False):
            yield data.replace(struct.pack(">Q", right), struct.pack(">Q", wrong))


def stations() -> Packets:
    """SKA-Low station beams: neither a heap length nor a payload offset."""
    for n in range(16):
        for channel in range(8):
            for station in range(2):
                items = [(1, n), (4, 1024), (0x3010, 42 + n), (0x3000, 5 << 16 | 64 + channel)]
                items += [(0x3001, 1 << 40 | 2 << 32 | station << 16), (0x3300, (0,))]
                yield packet(items, bytes(1024))


def stations_by_counter() -> Packets:
    """The same, but only the heap counter tells the time: it has the channel above the number of the packet."""
    for n in range(40):
        for channel in range(3):
            for station in range(2):
                items = [(1, channel << 32 | 1000 + n), (4, 1024), (0x1027, 1581164788), (0x1600, 0)]
                items += [(0x3000, 5 << 16 | 64 + channel), (0x3001, 1 << 40 | station << 16), (0x3300, (0,))]
                yield packet(items, bytes([n, channel, station, 0] * 256))


def counted_packets() -> Packets:
    """Whole heaps without any time but the heap counter, which is the same for all antennas."""
    for n in range(60):
        for antenna in range(2):
            yield packet([(1, 500 + n), (4, 256), (0x4101, antenna), (0x3300, (0,))], bytes([n, antenna] * 128))


PHASES = (0x4B4, 0xC19, 0x2F, 0x927, 0, 0x863, 0x4FD, 0xC7C, 0x34C, 0xB4D, 0x945, 0xF1A, 0xB7AA, 0xC149, 0xA3B, 0x10B2)


def tiles(*, whole: bool) -> Packets:
    """TPM's integrated data: 16 sources, each with a phase of its own."""
    for n in range(12):
        for source, phase in enumerate(PHASES):
            items = [(0x1600, 0x1EDD251C53 + phase + n * 4629629), (0x2001, source // 2 << 32 | 4 << 16 | source % 2)]
            counter = n * 16 + source + 1
            if whole:
                yield packet([(1, counter), (4, 64), (0x1027, 1_700_000_000), *items, (0x3300, (0,))], bytes(64))
            else:
                yield from heap(counter, [*items, (0x3300, (0,))], bytes(64))


def cbf(channels: int = 4) -> Packets:
    """SKA-Low's visibilities: the channel is in bits 16 to 31 of the heap counter."""
    for n in range(24):
        for channel in range(channels):
            yield from heap(7 << 32 | channel << 16 | n, [(0x6015, n), (0x600A, (0,))], bytes(512))


def swapped(value: int) -> int:
    return int.from_bytes(struct.pack("<I", value), "big")


def sip() -> Packets:
    """SKA SIP's visibilities: immediate values of type `<u4`."""
    for n in range(300):
        for channel in range(2):
            items = [(0x6000, swapped(1_500_000_000 + n)), (0x6002, swapped(channel)), (0x600A, (0,))]
            yield from heap(n * 2 + channel + 1, items, bytes(64))


def l0() -> Packets:
    """MeerKAT's L0: the times are in the payload, with several arrays."""
    for n in range(40):
        for channel in range(4):
            items = [(0x4103, swapped(16 * channel)), (0x1004, (0,)), (0x1005, (8,)), (0x4300, (12,))]
            yield from heap(n * 4 + channel + 1, items, bytes(140))


def jodrell() -> Packets:
    """Jodrell Bank's ROACH2: heap counter 0, and a length far less than the payload."""
    for n in range(64):
        items = [(1, 0), (2, 512), (3, 0), (4, 2048), (0x1601, 5), (0x1700, n * 2048), (0x1800, (0,))]
        yield packet(items, bytes(2048), bits=40)


STEP = 1632 * 2 * 4096 * 256
WHOLE = {
    "packets.heap_length": "payload",
    "packets.payload_offset": "zero",
    "packets.heap_counter": "packet",
}
ROWS = {
    "digitiser": Row(list(digitiser()), {"time.item": 0x1600, "time.step": 4096, "axes.0.item": 0x3101}),
    "f-engines": Row(list(f_engines()), {"time.step": 2**21, "axes.0.item": 0x4101, "axes.0.size": 4}),
    "x-engines": Row(list(visibilities(0, 2**28)), {"time.step": 2**28, "axes.0.step": 16, "time.origin": None}),
    "first correlator": Row(
        list(visibilities(1234567890123, STEP)),
        {"time.step": STEP, "time.origin": "first", "axes.0.size": 4},
    ),
    "beams": Row(list(beams((0x5004, 60))), {"time.step": 2**21, "axes.0.item": 0x4103, "axes.0.size": 4}),
    "first beams": Row(list(beams()), {"time.step": 2**21, "axes.0.item": 0x4103}),
    "fbfuse": Row(list(f_engines((0, 3, 17))), {"axes.0.values": (0, 3, 17)}),
    "apsuse": Row(
        list(apsuse()), {"time.step": 2**24, "time.origin": 10_485_760, "axes.0.item": 0x5555, "axes.1.item": 0x4103}
    ),
    "spectrometer": Row(list(spectrometer(phase=0)), {"axes.0.item": 0x1601, "axes.1.item": 0x1602}),
    "spectrometer, phase": Row(list(spectrometer(phase=10**6)), {"time.step": 2**25, "time.origin": 10**6}),
    "products": Row(list(products((0x3302, 0x3303, 0x3304))), {"axes.0.payload_items": (0x3302, 0x3303, 0x3304)}),
    "beams by ID": Row(list(products((0xB000, 0xB001), 40)), {"axes.0.payload_items": (0xB000, 0xB001)}),
    "beams by 5000": Row(
        list(products(tuple(range(0x5000, 0x5008)))), {"axes.0.payload_items": tuple(range(0x5000, 0x5008))}
    ),
    "kat-7": Row(
        list(kat7()),
        {
            "time.item": tuple(range(0x1600, 0x1608)),
            "time.bits": 40,
            "time.step": 4000,
            "axes.0.present_items": tuple(range(0x1600, 0x1608)),
        },
    ),
    "vegas": Row(list(vegas()), {"time.item": 1, "time.step": 1, "time.bits": 40}),
    "vegas, length too long": Row(list(vegas(48)), {"time.item": 1, "heap_bytes": 512, "packets.heap_length": 512}),
    "stations": Row(list(stations()), {**WHOLE, "time.item": 0x3010, "time.step": 1}),
    "stations, by counter": Row(
        list(stations_by_counter()),
        {
            "packets.heap_length": "payload",
            "packets.heap_counter": None,
            "time.item": 1,
            "time.mask": 0xFFFF_FFFF,
            "time.bits": 32,
            "time.step": 1,
        },
    ),
    "counted": Row(list(counted_packets()), {"packets.heap_counter": None, "time.item": 1, "axes.0.item": 0x4101}),
    "tiles": Row(list(tiles(whole=False)), {"time.step": 4629629, "axes.0.item": 0x2001}),
    "tiles, whole": Row(list(tiles(whole=True)), {**WHOLE, "time.step": 4629629, "axes.0.item": 0x2001}),
    "cbf": Row(
        list(cbf()),
        {"time.item": 0x6015, "axes.0.item": 1, "axes.0.shift": 16, "axes.0.mask": 0xFFFF, "axes.0.size": 4},
    ),
    "sip": Row(
        list(sip()),
        {
            "time.item": 0x6000,
            "time.step": 1,
            "axes.0.item": 0x6002,
            "axes.0.size": 2,
            "packets.items": {0x6000: "<u4", 0x6002: "<u4"},
        },
    ),
    "l0": Row(
        list(l0()),
        obstacle="item 0x1005 (dump_index) seems to be the time, but it is addressed",
        described={0x1005: Descriptor("dump_index", "", (), "<u4")},
    ),
    "jodrell": Row(list(jodrell()), {**WHOLE, "time.item": 0x1700, "time.step": 2048}),
}


def at(layout: Any, path: str) -> Any:
    """The field of a layout at a path."""
    for name in path.split("."):
        layout = layout[int(name)] if name.isdigit() else getattr(layout, name)
    return layout


@pytest.mark.parametrize("name", ROWS)
def test_proposal(name, tmp_path):
    """The fields that the instrument needs; and a receiver of the packets has all heaps that were seen."""
    row = ROWS[name]
    survey = survey_of(row.packets)
    (stream,) = survey.streams()
    proposal = propose(stream, described=row.described, lacking=survey.lacking)
    if row.obstacle is not None:
        assert row.obstacle in proposal.obstacle
        return
    layout = proposal.layout
    assert layout is not None, proposal.obstacle
    assert {path: at(layout, path) for path in row.wanted} == row.wanted
    assert (proposal.trial.fitting, proposal.trial.heaps) == (stream.heaps, stream.heaps)
    toml = tmp_path / "layout.toml"
    toml.write_text(layout.to_toml(), "utf-8")
    assert Layout.from_toml(toml) == layout
    with Receiver(layout, write_capture(tmp_path / "capture.pcap", row.packets)) as receiver:
        for chunk in receiver:
            chunk.recycle()
    assert receiver.stats().present == stream.heaps
