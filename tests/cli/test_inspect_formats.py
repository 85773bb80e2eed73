"""`speadrx inspect` on captures whose heaps are not as others: what it says, and what a receiver makes of it."""

import json
import re

import numpy as np
import pytest
import spead2
import spead2.send

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from speadrx import Layout, Receiver
from speadrx.cli.group import group
from terminals import environment
from wire import heap, write_capture


def command(*arguments, code=0):
    """Run the command in this process; return what it printed, and what it complained of, as one line."""
    result = CliRunner(env=environment(COLUMNS="200")).invoke(group, arguments)
    assert result.exit_code == code, result.output
    return result.stdout, re.sub(r"\s+", " ", result.output)


def beams(n_beams, first=0x5000):
    return [
        packet
        for time in range(40)
        for beam in range(n_beams)
        for packet in heap(time * n_beams + beam, [(0x1600, time * 4096), (first + beam, None)], bytes([beam]) * 512)
    ]


@pytest.mark.parametrize("n_beams", [2, 8])
def test_kinds_by_payload_item(tmp_path, n_beams):
    """Each is shown, with the number of its heaps; and it is never said that each time has one heap."""
    output, _ = command("inspect", write_capture(tmp_path / "c.pcap", beams(n_beams)))
    for beam in range(n_beams):
        assert re.search(rf"^0x500{beam} .* payload +40", output, re.MULTILINE)
    assert "one heap for each time" not in output


def test_not_proposed_if_it_does_not_fit(tmp_path):
    """Two heaps of each time, which nothing tells apart."""
    packets = [packet for n in range(200) for packet in heap(n, [(0x1600, n // 2 * 64)], bytes(64))]
    path = write_capture(tmp_path / "c.pcap", packets)
    _, output = command("inspect", path, code=1)
    assert "50% of the heaps have the same time and the same values of all items as another heap" in output
    assert "No layout can be proposed" in output


def described(tmp_path, dtype, shape, order, make):
    items = spead2.send.ItemGroup(flavour=spead2.Flavour(4, 64, 48))
    items.add_item(0x1600, "timestamp", "", (), format=[("u", 48)])
    items.add_item(0x4300, "samples", "", shape, dtype=dtype, order=order)
    items["timestamp"].value, items["samples"].value = 0, make(0)
    packets = list(map(bytes, spead2.send.PacketGenerator(items.get_heap(descriptors="all", data="none"), 9999, 9000)))
    for time in range(32):
        items["timestamp"].value, items["samples"].value = 4096 * time, make(time)
        data = items.get_heap(descriptors="none", data="all")
        packets += map(bytes, spead2.send.PacketGenerator(data, time + 1, 9000))
    path, toml = write_capture(tmp_path / "c.pcap", packets), tmp_path / "l.toml"
    command("inspect", path, "-o", str(toml))
    with Receiver(Layout.from_toml(toml), path) as receiver:
        for chunk in receiver:
            with chunk:
                for i in np.flatnonzero(chunk.present):
                    yield int(chunk.timestamp) // 4096 + int(i), chunk.data[i].copy()


def test_fortran_order(tmp_path):
    """The array is that of the sender, once it is transposed; and the file says so."""

    def make(time):
        return (np.arange(128).reshape(16, 8) + 1000 * time).astype("<i2")

    received = dict(described(tmp_path, "<i2", (16, 8), "F", make))
    assert len(received) == 32
    for time, array in received.items():
        np.testing.assert_array_equal(array.T, make(time))
    assert "in Fortran order" in re.sub(r"\n#\s+", " ", (tmp_path / "l.toml").read_text("utf-8"))


def test_complex_integers(tmp_path):
    kind = np.dtype([("re", "i1"), ("im", "i1")])

    def make(time):
        array = np.zeros((16, 8), kind)
        array["re"], array["im"] = time, -time
        return array

    received = dict(described(tmp_path, kind, (16, 8), "C", make))
    assert len(received) == 32
    for time, array in received.items():
        np.testing.assert_array_equal(array, make(time))


@pytest.mark.parametrize(("every", "n_bytes"), [(5, 512), (1, 512), (2, 64)])
def test_descriptors_beside_the_data(tmp_path, every, n_bytes):
    """Heaps of data that carry descriptors, too, now and then or always: those are cut out, and no heap is lost."""
    items = spead2.send.ItemGroup(descriptor_frequency=every, flavour=spead2.Flavour(4, 64, 48, 0))
    items.add_item(0x1600, "timestamp", "", (), format=[("u", 48)])
    items.add_item(0x4300, "data", "", (n_bytes,), dtype=np.uint8)
    packets = []
    for n in range(40):
        items[0x1600].value, items[0x4300].value = n * 64, np.full(n_bytes, n, np.uint8)
        made = items.get_heap()
        made.repeat_pointers = True
        packets += map(bytes, spead2.send.PacketGenerator(made, n + 1, 8872))
    path, toml = write_capture(tmp_path / "c.pcap", packets), tmp_path / "l.toml"
    command("inspect", path, "-o", str(toml))
    layout = Layout.from_toml(toml)
    assert (layout.heap_bytes, layout.payload_item) == (n_bytes, 0x4300)
    assert layout.packets is not None  # or sockets would not be read so
    with Receiver(layout, path) as receiver:
        for chunk in receiver:
            with chunk:
                for i in np.flatnonzero(chunk.present):
                    assert (chunk.data[i] == int(chunk.timestamp) // 64 + i).all()
    assert receiver.stats().present == 40


def test_senders_with_equal_counters(tmp_path):
    """What is proposed keeps the packets of both apart."""
    packets = [
        ((f"10.0.0.{sender}", 5000), data)
        for n in range(64)
        for pair in zip(
            *(
                heap(n + 1, [(0x1600, n * 4096), (0x4101, sender)], bytes([10 + sender]) * 4096, parts=4)
                for sender in range(2)
            ),
            strict=True,
        )
        for sender, data in enumerate(pair)
    ]
    path, toml = write_capture(tmp_path / "c.pcap", packets), tmp_path / "l.toml"
    command("inspect", path, "-o", str(toml))
    assert "heap counter" in re.sub(r"\n#\s+", " ", toml.read_text("utf-8"))
    with Receiver(Layout.from_toml(toml), path) as receiver:
        for chunk in receiver:
            with chunk:
                for place in np.argwhere(chunk.present):
                    assert (chunk.data[tuple(place)] == 10 + place[1]).all()
    assert receiver.stats().present == 128


def test_trial_in_json(tmp_path):
    packets = [packet for n in range(100) for packet in heap(n, [(0x1600, n * 64)], bytes(64))]
    output, _ = command("inspect", write_capture(tmp_path / "c.pcap", packets), "--json")
    document = json.loads(output)
    trial = document["streams"][0]["proposal"]["trial"]
    assert trial == {"heaps": 100, "fitting": 100, "sharing": 0, "too_old": 0, "rejected": {}}


@pytest.mark.parametrize("item", [0x1600, 0x2000])
def test_layout_that_needs_an_addressed_item(tmp_path, item):
    """`replay` says that the item is there, but addressed."""
    packets = [
        packet for n in range(100) for packet in heap(n, [(item, (0,)), (0x4101, n % 2), (0x4300, (8,))], bytes(72))
    ]
    toml = tmp_path / "l.toml"
    toml.write_text(f"heap_bytes = 72\n[time]\nitem = {item}\nstep = 1000\nbatches = 4\n")
    _, error = command("replay", write_capture(tmp_path / "c.pcap", packets), "-l", str(toml), code=1)
    assert f"The layout needs the value of item {item:#x}" in error
    assert "it is addressed: its value is in the payload" in error


@pytest.mark.parametrize("sets", [[(0, 1)], [(0, 1), (1, 0)]])
def test_items_behind_other_packets(tmp_path, sets):
    """What is proposed takes heaps whose items come late, and is no other layout for them."""
    packets, swapped = [], 0
    for n in range(80):
        order = sets[n // 2 % len(sets)]
        swapped += order != (0, 1)
        both = heap(n, [(0x1600, n // 2 * 64), (0x4101, n % 2), (0x4300, None)], bytes([n]) * 64, parts=2, repeat=False)
        packets += [both[i] for i in order]
    path, toml = write_capture(tmp_path / "c.pcap", packets), tmp_path / "layout.toml"
    document = json.loads(command("inspect", path, "--json")[0])
    assert (len(document["streams"]), document["late_items"]) == (1, swapped)
    command("inspect", path, "-o", str(toml))
    layout = Layout.from_toml(toml)
    assert (layout.packets is not None) == (swapped > 0)
    with Receiver(layout, path) as receiver:
        for chunk in receiver:
            chunk.recycle()
    assert receiver.stats().present == 80
