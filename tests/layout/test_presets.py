"""The layouts that come with speadrx are what they say, and receive what their instruments send."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import spead2
import spead2.send

from receiving import Receiver, assert_accounts, assert_data, receiver
from speadrx import layouts, meerkat
from speadrx.layout.items import item_name
from speadrx.receive.feed import mends_packets
from speadrx.simulate import Faults, InprocSink, Simulator

FLAVOUR = spead2.Flavour(4, 64, 48)
TICK_RATE = 1712e6
TWINS = {
    "meerkat-digitiser": meerkat.DigitiserLayout(sample_bits=10, heap_samples=4096, chunk_samples=2**20),
    "meerkat-antenna-channelised-voltage": meerkat.AntennaChannelisedVoltageLayout(
        n_ants=64,
        n_channels_per_substream=16,
        n_spectra_per_heap=256,
        heap_timestamp_step=2**21,
        sample_bits=8,
        heaps_per_fengine_per_chunk=8,
    ),
    "meerkat-tied-array-channelised-voltage": meerkat.TiedArrayChannelisedVoltageLayout(
        sample_bits=8,
        n_channels=4096,
        n_channels_per_substream=16,
        n_spectra_per_heap=256,
        n_batches_per_chunk=4,
        heap_timestamp_step=2**21,
    ),
}
#: Changes that make each quick to simulate: as it stands, but for less of it.
SMALLER = {
    "effelsberg-edd-gated-spectrometer": [  # fft_length 4096
        "time.step=0x2_0000",
        "heap_bytes=8196",
        "heap_shape=[2049]",
    ],
    "effelsberg-edd-channeliser": ["time.batches=2"],
    "effelsberg-edd-packetiser": ["time.batches=16"],
    "meerkat-antenna-channelised-voltage-narrow": ["antennas=20", "time.batches=2"],
    "effelsberg-edd-gated-stokes": ["time.step=0x2_0000", "heap_bytes=8196", "heap_shape=[2049]"],
    "meerkat-antenna-channelised-voltage": ["axes.antenna.size=20", "time.batches=2"],
    "meerkat-baseline-correlation-products": [  # four antennas, 16 channels
        "axes.substream.size=16",
        "heap_bytes=5120",
        "heap_shape=[16, 40, 2]",
        "samples_per_heap=640",
        "axes.substream.step=16",
        "time.batches=2",
    ],
    "meerkat-digitiser": ["time.batches=16"],
    "kat7-correlation-products": ["heap_bytes=2560", "heap_shape=[16, 5, 4, 2]", "time.batches=2"],
    "meerkat-fbfuse-input": ["time.batches=2"],
    "meerkat-first-correlator-products": ["antennas=2", "channels=64", "substreams=4", "time.batches=2"],
    "meerkat-apsuse-beams": ["time.batches=2"],
    "meerkat-first-correlator-beam": ["axes.substream.size=32"],
    "meerkat-tied-array-channelised-voltage": ["axes.substream.size=32"],
}
FAULTS = Faults(
    loss=0.05,
    reorder=5,
    duplicate=0.05,
    garbage=0.1,
    garbage_kinds=("descriptor", "stop", "length", "absent", "unsized"),
)


@pytest.mark.parametrize("name", layouts.names())
def test_what_it_is_called(name: str) -> None:
    assert layouts.load(name).name == name
    assert 10 < len(layouts.summary(name)) < 40
    assert not layouts.summary(name).startswith("#")


@pytest.mark.parametrize("name", layouts.names())
def test_items_have_names(name: str) -> None:
    assert None not in map(item_name, layouts.load(name).spead_items)


@pytest.mark.parametrize("name", TWINS)
def test_meerkat_layouts_are_those_of_the_classes(name: str) -> None:
    twin = TWINS[name].declaration
    layout = replace(layouts.load(name), send=None)
    if meerkat.BEAM_ANTS_ID in twin.required_items:  # there demanded, here kept
        assert [item.item for item in layout.side_items] == [meerkat.BEAM_ANTS_ID]
        layout = replace(layout, side_items=(), required_items=twin.required_items)
    assert layout == replace(twin, name=name, time=replace(twin.time, tick_rate=TICK_RATE))


def test_correlation_products_are_as_documented() -> None:
    """The sizes that katgpucbf's documentation has for 80 antennas and 8192 channels."""
    layout = layouts.load("meerkat-baseline-correlation-products")
    assert layout.heap_bytes == 128 * 12960 * 8
    assert layout.heap_shape == (128, 80 * 81 // 2 * 4, 2)
    (substream,) = layout.axes
    assert substream.size is not None
    assert substream.size * substream.step == 8192
    assert layout.time.step % (2 * 8192 * 256) == 0
    assert layout.chunk_timestamp_step / TICK_RATE == pytest.approx(0.4998, abs=1e-4)


def test_gated_spectrometer_is_as_configured() -> None:
    layout = layouts.load("effelsberg-edd-gated-spectrometer")
    fft_length, naccumulate = 1024 * 1024 * 2 * 8, 32
    assert layout.time.step == fft_length * naccumulate
    assert layout.time.tick_rate == 3.2e9
    assert layout.heap_shape == (fft_length // 2 + 1,)
    layout = layouts.load("effelsberg-edd-gated-stokes")
    fft_length, naccumulate = 1024 * 1024, 512
    assert layout.time.step == fft_length * naccumulate == 2**29
    assert layout.time.tick_rate == 2.6e9
    assert (layout.heap_bytes, layout.heap_shape) == (2097156, (524289,))
    assert [axis.size for axis in layout.axes] == [4, 2]


#: Layouts whose packets spead2 takes as they are.
PLAIN = [name for name in layouts.names() if not mends_packets(layouts.load(name))]


@pytest.mark.parametrize("name", PLAIN)
def test_simulated(name: str) -> None:
    """With loss, reordering, duplicates and garbage, every heap is right and accounted for."""
    layout = layouts.load(name, SMALLER[name])
    # Where the polarisation is that of the stream, a group of two.
    streams: list[dict[str, int]] = [{}]
    arguments: dict[str, Any] = {}
    if any(axis.from_user_data == "pol" for axis in layout.axes):
        streams = [{"pol": 0}, {"pol": 1}]
        user_data = np.zeros(2, layout.user_data_dtype)
        user_data["pol"] = [0, 1]
        arguments = {"members": 2, "user_data": user_data}
    simulators = [
        Simulator(
            layout,
            seed=1,
            first_timestamp=layout.chunk_timestamp_step * 1000,
            faults=FAULTS,
            user_data=stream,
            timestamp_jitter=layout.time.step - 1 if layout.time.align == "mask" else 0,
            max_packet_size=65000,
        )
        for stream in streams
    ]
    # The window holds all chunks, so that neither stream runs ahead of the other.
    with receiver(layout, window=20, pool=24, allow_out_of_order=True, max_heaps=64, **arguments) as rx:
        for simulator, queue in zip(simulators, rx.queues, strict=True):
            simulator.send(InprocSink(queue), 20 * layout.time.batches)
        rx.finish()
        assert len(rx.chunks) == 20
        assert all(sum(simulator.truth.lost) > 0 for simulator in simulators)
        assert_data(rx, simulators)
        assert_accounts(rx, simulators)


def immediate(item: int, value: int) -> spead2.Item:
    return spead2.Item(item, "", "", (), format=[("u", 48)], value=value)


def send(rx: Receiver, heaps: Iterable[spead2.send.Heap]) -> None:
    sender = spead2.send.InprocStream(spead2.ThreadPool(), rx.queues)
    for heap in heaps:
        heap.repeat_pointers = True
        sender.send_heap(heap)
    rx.finish()


def test_correlation_products_as_an_x_engine_sends_them(rng: np.random.Generator) -> None:
    """Heaps at their real size, with the items that katgpucbf's xsend.py gives them."""
    layout = layouts.load("meerkat-baseline-correlation-products", ["axes.substream.size=2"])
    shape = (128, 12960, 2)
    data = rng.integers(-(2**31), 2**31, (2, 2, *shape), np.int32)
    heaps = []
    for dump, engine in np.ndindex(2, 2):
        heap = spead2.send.Heap(FLAVOUR)
        heap.add_item(immediate(meerkat.FREQUENCY_ID, engine * 128))
        heap.add_item(immediate(meerkat.TIMESTAMP_ID, (7 + dump) * layout.time.step))
        payload = data[dump, engine]
        heap.add_item(spead2.Item(meerkat.XENG_RAW_ID, "xeng_raw", "", shape, np.int32, value=payload))
        heaps.append(heap)
    with receiver(layout, pool=6) as rx:
        send(rx, heaps)
        assert [chunk.timestamp for chunk in rx.chunks] == [7 * layout.time.step, 8 * layout.time.step]
        for chunk, sent in zip(rx.chunks, data, strict=True):
            np.testing.assert_array_equal(layout.view(chunk.data.reshape(-1))[0], sent)
        assert not any(rx.stream.ledger.snapshot().rejected.values())


def test_spectra_as_the_edd_sends_them(rng: np.random.Generator) -> None:
    """Heaps with the items that mpikat's GatedSpectrometerPipeline gives them, between multiples of the step."""
    fft_length, naccumulate = 2**14, 32
    channels = fft_length // 2 + 1
    layout = layouts.load(
        "effelsberg-edd-gated-spectrometer",
        [f"time.step={fft_length * naccumulate}", f"heap_bytes={4 * channels}", f"heap_shape=[{channels}]"],
    )
    data = rng.normal(size=(3, 2, 2, channels)).astype("<f4")
    first = 5 * layout.time.step + 118751  # not a multiple of the step
    heaps = []
    for spectrum, polarization, diode in np.ndindex(3, 2, 2):
        heap = spead2.send.Heap(FLAVOUR)
        values = (first + spectrum * layout.time.step, polarization, diode, fft_length, 10**6 + diode, 1562662573)
        for offset, value in enumerate((*values, 2600000000, naccumulate)):
            heap.add_item(immediate(5632 + offset, value))
        payload = data[spectrum, polarization, diode]
        heap.add_item(spead2.Item(5640, "data", "", (channels,), "<f4", value=payload))
        heaps.append(heap)
    with receiver(layout) as rx:
        send(rx, heaps)
        assert [chunk.timestamp for chunk in rx.chunks] == [first + i * layout.time.step for i in range(3)]
        for chunk, sent in zip(rx.chunks, data, strict=True):
            np.testing.assert_array_equal(layout.view(chunk.data.reshape(-1))[0], sent)
            assert chunk.extra is not None
            assert chunk.extra["input_samples"].tolist() == [[[10**6, 10**6 + 1]] * 2]
        assert not any(rx.stream.ledger.snapshot().rejected.values())


@pytest.mark.parametrize("name", layouts.names())
def test_file_tells_its_source(name: str) -> None:
    """The schema for editors comes first, the source and what to change after it."""
    text = (layouts._FILES / f"{name}.toml").read_text("utf-8")
    comment = [line for line in text.splitlines() if line.startswith("#")]
    assert comment[0] == "#:schema ./layout.schema.json"
    assert any("Source: " in line for line in comment)
    assert any("Change: " in line for line in comment)
    assert "https://" in text
    assert tomllib.loads(text)["name"] == name


@pytest.mark.parametrize("name", layouts.names())
def test_parameters_are_those_of_the_file(name: str) -> None:
    """Parameters with the values that they have anyway change nothing; each other value changes something."""
    parameters = layouts.parameters(name)
    layout = layouts.load(name)
    assert layouts.load(name, [f"{key}={value}" for key, value in parameters.items()]) == layout
    others = {"band": "UHF", "bits": "8"}
    for key, value in parameters.items():
        assert layouts.load(name, [f"{key}={others.get(key) or int(value) * 2}"]) != layout


def test_parameters_and_fields() -> None:
    """Parameters go first, whatever the order; fields that are given go over what follows from them."""
    name = "meerkat-antenna-channelised-voltage"
    layout = layouts.load(name, ["time.batches=2", "antennas=80", "channels=8192", "substreams=64", "band=UHF"])
    assert layout.heap_shape == (128, 256, 2, 2)
    assert layout.heap_bytes == 128 * 256 * 4
    assert layout.time.step == 2 * 8192 * 256
    assert layout.time.tick_rate == 1088e6
    assert layout.present_shape == (2, 80)
    assert layouts.load(name, ["time.step=77", "antennas=80"]).time.step == 77


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("band=X", "band: 'X' is not one of L, UHF, S"),
        ("antennas=0", "antennas: '0' is not a whole number from 1 on"),
        ("antennas=many", "antennas: 'many'"),
        ("channels=1000", r"channels: 1000 is not a multiple of substreams \(256\)"),
        ("antenas=80", "did you mean 'antennas'"),
    ],
)
def test_parameters_that_cannot_be(change: str, problem: str) -> None:
    with pytest.raises(layouts.LayoutError, match=problem):
        layouts.load("meerkat-antenna-channelised-voltage", [change])
