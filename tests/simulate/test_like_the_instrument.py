"""What simulated senders send for a layout that comes with speadrx could be mistaken for the instrument's own."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spead2
import spead2.recv

from instruments import INSTRUMENTS, by_spead2, by_struct
from speadrx import Layout, LayoutError, Packets, Receiver, Send, TimeAxis, layouts
from speadrx.simulate import InprocSink, PcapSink, Simulator

LAYOUT = Layout(heap_bytes=5000, payload_item=0x4300, time=TimeAxis(item=0x1600, step=10, batches=4))


def shape(packet: bytes) -> tuple[Any, ...]:
    """Flavour, the kind and ID of each item in order, and the length of the payload."""
    _, _, width, bits, _, n = struct.unpack_from(">4BHH", packet)
    pointers = struct.unpack_from(f">{n}Q", packet, 8)
    return width, bits, [pointer >> 8 * bits for pointer in pointers], len(packet) - 8 - 8 * n


def value(packet: bytes, item: int, bits: int = 48) -> int | None:
    (n,) = struct.unpack_from(">H", packet, 6)
    for pointer in struct.unpack_from(f">{n}Q", packet, 8):
        if pointer >> bits == 1 << 63 - bits | item:
            return int(pointer & (1 << bits) - 1)
    return None


def is_descriptor(packet: bytes) -> bool:
    return any(item == spead2.DESCRIPTOR_ID for item in shape(packet)[2])


def simulated(layout: Layout, batches: int = 2, **arguments: Any) -> Iterator[bytes]:
    user_data = {axis.from_user_data: 0 for axis in layout.axes if axis.from_user_data is not None}
    for _, packet in Simulator(layout, user_data=user_data, **arguments).packets(batches):
        yield packet


#: Simulated senders cannot choose the payload item.
BY_PAYLOAD_ITEM = ("kat7-beams", "meerkat-digitiser-spectrometer")
#: The instrument has further items behind its data.
BEHIND_THE_DATA = ("meerkat-sdp-visibilities", "ska-sip-visibilities")


@pytest.mark.parametrize("name", BY_PAYLOAD_ITEM)
def test_what_cannot_be_simulated_says_so(name: str) -> None:
    with pytest.raises(ValueError, match="payload items cannot be simulated"):
        Simulator(layouts.load(name))


@pytest.mark.parametrize("name", [name for name in INSTRUMENTS if name not in BY_PAYLOAD_ITEM + BEHIND_THE_DATA])
def test_packets_look_like_those_of_the_instrument(name: str, rng: np.random.Generator) -> None:
    """The same items in the same order, packets of the same length, and descriptors of the same items."""
    stream = INSTRUMENTS[name](rng)
    layout = layouts.load(name, stream.changes)
    sent = list(simulated(layout))
    assert layout.send is not None
    if layout.send.descriptors:
        assert described(sent) == described(by_spead2(stream))
    data = [shape(packet) for packet in sent if not is_descriptor(packet)]
    # All batches look the same.
    expected = [shape(packet) for packet in by_struct(stream)]
    n_batches = len({heap.time for heap in stream.heaps})
    assert data == expected[: len(expected) // n_batches * 2]


def described(packets: Any) -> dict[int, tuple[Any, ...]]:
    """What the descriptors among packets say: shape, and bits or type of each item."""
    queue, found = spead2.InprocQueue(), {}
    for packet in packets:
        if is_descriptor(packet):
            queue.add_packet(packet)
    queue.stop()
    stream = spead2.recv.Stream(spead2.ThreadPool())
    stream.add_inproc_reader(queue)
    for heap in stream:
        for item in heap.get_descriptors():
            raw = spead2.Descriptor.from_raw(item, heap.flavour)
            found[raw.id] = (raw.name, tuple(raw.shape), raw.itemsize_bits)
    return found


def test_constants_order_and_payload() -> None:
    send = Send(order=(0x4103, 0x1600), constants={0x4103: 77, 0x3102: 9})
    layout = Layout(heap_bytes=8, payload_item=0x4300, time=LAYOUT.time, send=send)
    (packet, *_) = simulated(layout)
    assert [item & 0x7FFF for item in shape(packet)[2]] == [1, 2, 3, 4, 0x4103, 0x1600, 0x3102, 0x4300]
    assert (value(packet, 0x4103), value(packet, 0x3102)) == (77, 9)
    # What the user says goes first.
    (packet, *_) = simulated(layout, items={0x4103: 78}, payload_item=0x1800)
    assert value(packet, 0x4103) == 78
    assert shape(packet)[2][-1] == 0x1800


def test_flavour_and_packet_size() -> None:
    layout = Layout(heap_bytes=5000, time=LAYOUT.time, send=Send(flavour=40, packet_bytes=2064))
    packets = list(simulated(layout, 1))
    assert [shape(packet)[::3] for packet in packets] == [(3, 2008), (3, 2008), (3, 984)]
    packets = list(simulated(layout, 1, flavour=spead2.Flavour(4, 64, 48, 0), max_packet_size=9000))
    assert [shape(packet)[::3] for packet in packets] == [(2, 5000)]


def test_items_in_the_first_packet_only() -> None:
    layout = Layout(heap_bytes=5000, time=LAYOUT.time, send=Send(repeat_items=False, constants={0x4103: 5}))
    first, second, *others = [[item & 0x7FFF for item in shape(packet)[2]] for packet in simulated(layout, 1)]
    assert first == [1, 2, 3, 4, 0x1600, 0x4103, 0x3300]
    assert all(items == [1, 2, 3, 4] for items in (second, *others))
    # spead2 makes heaps of them all the same.
    queue = spead2.InprocQueue()
    Simulator(layout).send(InprocSink(queue), 4)
    queue.stop()
    stream = spead2.recv.Stream(spead2.ThreadPool())
    stream.add_inproc_reader(queue)
    assert [len(heap.get_items()) for heap in stream] == [3] * 4


@pytest.mark.parametrize(("omit", "left"), [((2,), [1, 3, 4]), ((3,), [1, 2, 4]), ((2, 3), [1, 4])])
def test_omitted_items(omit: tuple[int, ...], left: list[int]) -> None:
    layout = Layout(heap_bytes=8, time=LAYOUT.time, send=Send(omit=omit))
    (packet,) = simulated(layout, 1)
    assert [item & 0x7FFF for item in shape(packet)[2]] == [*left, 0x1600, 0x3300]


def test_descriptors_come_first_and_are_counted() -> None:
    layout = layouts.load("meerkat-antenna-channelised-voltage", ["axes.antenna.size=3"])
    simulator = Simulator(layout)
    packets = [packet for _, packet in simulator.packets(2)]
    assert [is_descriptor(packet) for packet in packets] == [True] * 3 + [False] * 12
    assert simulator.truth.rejected == {"metadata_heaps": 3}
    assert not any(is_descriptor(packet) for _, packet in simulator.packets(1))  # once is enough


@pytest.mark.parametrize(
    ("send", "problem"),
    [
        ({"flavour": 20}, "send.flavour: 20 must be a multiple of 8"),
        ({"packet_bytes": 70000}, "send.packet_bytes: 70000"),
        ({"order": [3]}, r"send.order\[0\]: 0x3"),
        ({"omit": [1]}, r"send.omit\[0\]: 1 must be 2"),
        ({"omit": [2, 2]}, "send.omit: 2 is given twice"),
        ({"constants": {"x": 1}}, "x is no item ID"),
        ({"constants": {4: 1}}, "0x4 is reserved"),
        ({"constants": {0x4103: 1 << 57}}, "more bits"),
        ({"constants": {"0x4103": 1, "16643": 2}}, None),
        ({"constants": 5}, "wanted a mapping"),
    ],
)
def test_what_cannot_be_is_refused(send: dict[str, Any], problem: str | None) -> None:
    if problem is None:  # one ID, written twice: the later holds
        assert Send(**send).constants == {0x4103: 2}
        return
    with pytest.raises(LayoutError, match=problem):
        Layout(heap_bytes=8, time=LAYOUT.time, send=Send(**send))


@pytest.mark.parametrize("item", [0x1600, 6, 2**23])
def test_payload_item_is_no_other_item(item: int) -> None:
    with pytest.raises(LayoutError, match="payload_item: 0x"):
        Layout(heap_bytes=8, time=LAYOUT.time, payload_item=item)


def test_in_toml_and_by_words(tmp_path: Path) -> None:
    send = Send(constants={0x4103: 5}, order=(0x4103,), omit=(2,))
    layout = Layout(heap_bytes=8, time=LAYOUT.time, payload_item=0x4300, send=send)
    text = layout.to_toml()
    for line in ("payload_item = 0x4300", "order = [0x4103]", "0x4103 = 5"):
        assert line in text
    path = tmp_path / "it.toml"
    path.write_text(text, "utf-8")
    assert Layout.from_toml(path) == layout
    changed = layouts.load(path, ["send.constants={0x4103 = 6}", "send.flavour=40", "send.omit="])
    assert changed.send == Send(constants={0x4103: 6}, order=(0x4103,), flavour=40)


def test_inspect_names_the_payload_of_a_simulated_stream(tmp_path: Path) -> None:
    """The F-engine's heaps are feng_raw, with a frequency; not adc_samples, as those of the digitisers are."""
    testing = pytest.importorskip("click.testing")
    from speadrx.cli.group import group

    path = tmp_path / "s.pcap"
    layout = layouts.load("meerkat-antenna-channelised-voltage", ["axes.antenna.size=2"])
    with PcapSink(path) as sink:
        Simulator(layout).send(sink, 4)
    report = json.loads(testing.CliRunner().invoke(group, ["inspect", str(path), "--json"]).output)
    names = [item["name"] for item in report["streams"][0]["items"]]
    assert sorted(names) == ["feng_id", "feng_raw", "frequency", "timestamp"]


@pytest.mark.parametrize(
    "name", [n for n in INSTRUMENTS if layouts.load(n).packets is not None and n != "meerkat-sdp-visibilities"]
)
def test_simulated_packets_that_are_mended(name: str, rng: np.random.Generator, tmp_path: Path) -> None:
    """Packets without lengths, or with wrong ones, reach the layout from a file: every heap is there."""
    layout = layouts.load(name, INSTRUMENTS[name](rng).changes)
    simulator = Simulator(layout, first_timestamp=1000 * layout.time.step)
    with PcapSink(tmp_path / "s.pcap") as sink:
        simulator.send(sink, 4 * layout.time.batches)
    with Receiver(layout, tmp_path / "s.pcap") as receiver:
        for chunk in receiver:
            with chunk:
                assert chunk.present.all()
                data = np.ascontiguousarray(chunk.data).view(np.uint8).reshape(*layout.present_shape, -1)
                np.testing.assert_array_equal(data, simulator.chunk_data(chunk.timestamp))
        assert receiver.stats().present == sum(simulator.truth.sent) == 4 * layout.chunk_heaps


@pytest.mark.parametrize(
    ("encoding", "value"), [("<u4", 0x78563412), (">u4", 0x12345678), ("<u8", None), (">u8", None)]
)
def test_values_written_as_the_instrument_writes_them(encoding: str, value: int | None, tmp_path: Path) -> None:
    """Little-endian values, and values that are addressed because they are too long, reach the layout."""
    layout = Layout(
        heap_bytes=64,
        payload_item=0x600A,
        time=TimeAxis(item=0x6000, step=1, batches=4),
        packets=Packets(items={0x6000: encoding}),
    )
    simulator = Simulator(layout, first_timestamp=0x12345678)
    (packet,) = list(simulated(layout, 1, first_timestamp=0x12345678))
    assert pointer_value(packet, 0x6000) == (64 if value is None else value)
    with PcapSink(tmp_path / "s.pcap") as sink:
        simulator.send(sink, 16)
    with Receiver(layout, tmp_path / "s.pcap") as receiver:
        times = []
        for chunk in receiver:
            with chunk:
                assert chunk.present.all()
                times.append(chunk.timestamp)
                data = np.ascontiguousarray(chunk.data).reshape(4, 64)
                np.testing.assert_array_equal(data, simulator.chunk_data(chunk.timestamp))
    assert times == [0x12345678 + 4 * i for i in range(4)]


def pointer_value(packet: bytes, item: int) -> int:
    """The value or the address of an item."""
    (n,) = struct.unpack_from(">H", packet, 6)
    return next(p & (1 << 48) - 1 for p in struct.unpack_from(f">{n}Q", packet, 8) if p >> 48 & 0x7FFF == item)
