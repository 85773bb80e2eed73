"""`speadrx replay` of recordings: what it sends is what was recorded, and recording it again gives the same files."""

from __future__ import annotations

import collections
import json
import pathlib
import random
import shutil
import struct
import sys
import threading
from collections.abc import Iterable, Mapping

import numpy as np
import pytest
import spead2

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("zarr")

import speadrx
from addresses import own_port
from handmade import Heap, encode
from loopback import wait_for
from recordings import (
    ANTENNA_ID,
    ANTENNAS,
    BATCHES,
    EPOCH,
    SAMPLES,
    SIDE_ID,
    STEP,
    TICK_RATE,
    TIME_ID,
    WRAP,
    attributes,
    heaps_of,
    layout_of,
    packets_of,
    queue_of,
    read_array,
    status,
    value,
)
from speadrx import Axis, Layout, Recorder, Send, TimeAxis
from speadrx.cli.resend import Resender
from speadrx.record.recording import Recording
from speadrx.simulate import VirtualClock
from terminals import PATIENCE, piped, run, run_here


class Packets:
    """Keeps what is sent, and when."""

    def __init__(self, clock: VirtualClock | None = None) -> None:
        self.all: list[bytes] = []
        self.times: list[float] = []
        self._clock = clock

    def send(self, flow: int, packet: bytes) -> None:
        self.all.append(packet)
        self.times.append(self._clock.now() if self._clock else 0)

    def queue(self) -> spead2.InprocQueue:
        queue = spead2.InprocQueue()
        for packet in self.all:
            queue.add_packet(packet)
        queue.stop()
        return queue


def items_of(packet: bytes) -> tuple[dict[int, int], bytes]:
    """Read a packet of flavour 64-48 with nothing but struct: the values of its items, and its payload."""
    magic, version, id_bytes, address_bytes, _, n = struct.unpack_from(">4BHH", packet)
    assert (magic, version, id_bytes, address_bytes) == (0x53, 4, 2, 6)
    pointers = struct.unpack_from(f">{n}Q", packet, 8)
    items = {pointer >> 48 & 0x7FFF: pointer & (2**48 - 1) for pointer in pointers if pointer >> 63}
    return items, packet[8 + 8 * n :]


def record(path: pathlib.Path, queue: spead2.InprocQueue, layout: Layout, **kwargs) -> pathlib.Path:
    how = {name: kwargs.pop(name, None) for name in ("select", "compress")}
    with (
        speadrx.Receiver(layout, queue, **kwargs) as rx,
        Recorder(rx, path, wait=True, **how) as recorder,
    ):
        for chunk in recorder:
            chunk.recycle()
    assert recorder.stats().not_written == {}
    return path


def sent_again(path: pathlib.Path, **kwargs) -> Packets:
    clock = kwargs.pop("clock", VirtualClock())
    packets = Packets(clock)
    resender = Resender(Recording(path), kwargs.pop("user_data", None), marks=kwargs.pop("marks", True))
    resender.send(packets, clock=clock, **kwargs)
    return packets


def check_same(one: pathlib.Path, other: pathlib.Path) -> None:
    """Compare recordings byte for byte, but for the times at which they were made."""

    def files(path: pathlib.Path) -> dict[str, bytes]:
        return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}

    def timeless(path: pathlib.Path) -> dict:
        document = json.loads((path / "zarr.json").read_text("utf-8"))
        ours = document["attributes"]["speadrx"]
        account = ours.pop("account")
        kept = ("chunks", "present", "missing", "restarts", "epoch_gap_heaps", "first_timestamp", "last_timestamp")
        ours["account"] = {name: account[name] for name in kept}
        del ours["began"], ours["ended"], ours["recorder"]["capacity"]
        return document

    first, second = files(one), files(other)
    assert len(first) > 5
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name] and name != "zarr.json"] == []
    assert timeless(one) == timeless(other)
    # What the receiver had to refuse at first, in doubt about the time, it has not: that is not sent again.
    account = attributes(other)["account"]
    assert set(account["rejected"].values()) == {0}
    assert account["duplicates"] == account["too_old"] == 0


def made_by_hand(
    layout: Layout, heaps: list[tuple[int, int]], more: dict[int, int] | None = None
) -> spead2.InprocQueue:
    """Heaps with random bytes."""
    rng = random.Random(len(heaps))
    queue = spead2.InprocQueue()
    for count, (batch, antenna) in enumerate(heaps, 1):
        payload = rng.randbytes(layout.heap_bytes)
        items = {spead2.HEAP_LENGTH_ID: len(payload), TIME_ID: batch * STEP, ANTENNA_ID: antenna, **(more or {})}
        for packet in encode(Heap(items, payload), count, 48):
            queue.add_packet(packet)
    queue.stop()
    return queue


def stream(layout: Layout, heaps: list[tuple[int, int]], more: Mapping[int, int] | None = None, **how) -> list[bytes]:
    """Packets made with struct: what is in a heap tells which it is. Timestamps may have phases, and other widths."""
    phases, bits, origin = how.get("phases", [0] * 99), how.get("bits", 48), how.get("origin", 0)
    packets = []
    for count, (batch, source) in enumerate(heaps, 1):
        stamp = (batch * layout.time.step + origin + phases[source]) % 2**bits
        items = {spead2.HEAP_LENGTH_ID: 2 * SAMPLES, TIME_ID: stamp, ANTENNA_ID: source, **(more or {})}
        packets += encode(Heap(items, struct.pack(">QH", batch, source)), count, bits)
    return packets


def queue_with(packets: Iterable[bytes]) -> spead2.InprocQueue:
    queue = spead2.InprocQueue()
    for packet in packets:
        queue.add_packet(packet)
    queue.stop()
    return queue


# A heap, a chunk, a minute.
MINUTE = 60 * TICK_RATE // STEP // BATCHES
GAPS = heaps_of([5, 6, 8, 9 + MINUTE, 10 + MINUTE], missing=[(21, 0), (26, 2), (35, 1), (36, 1)])


class TestWhatIsSent:
    def test_is_what_was_recorded(self, tmp_path) -> None:
        path = record(tmp_path / "a.zarr", queue_of(GAPS), layout_of(), max_jump=5000)
        sent = [items_of(packet) for packet in sent_again(path).all]
        assert [(items[TIME_ID] // STEP, items[ANTENNA_ID]) for items, _ in sent] == sorted(GAPS)
        for items, payload in sent:
            batch, antenna = items[TIME_ID] // STEP, items[ANTENNA_ID]
            assert payload == struct.pack(f">{SAMPLES}h", *(value(batch, antenna, i) for i in range(SAMPLES)))
            assert items[SIDE_ID] == status(batch, antenna)
            assert items[spead2.HEAP_LENGTH_ID] == len(payload)
        counters = [items[spead2.HEAP_CNT_ID] for items, _ in sent]
        assert len(set(counters)) == len(counters)

    def test_restarts(self, tmp_path) -> None:
        path = record(
            tmp_path / "a.zarr", queue_of(heaps_of([700, 701]) + heaps_of([2, 3, 4])), layout_of(), max_jump=None
        )
        assert attributes(path)["parts"] == ["", "part_1"]
        wanted = []
        for part in (0, 1):
            dataset = pytest.importorskip("xarray") and speadrx.open(path, part=part)
            first = dataset.attrs["first_timestamp"] // STEP
            wanted += [
                (first + i, a) for i, a in zip(*map(np.ndarray.tolist, np.nonzero(dataset.present.values)), strict=True)
            ]
        sent = [items_of(packet)[0] for packet in sent_again(path).all]
        assert [(items[TIME_ID] // STEP, items[ANTENNA_ID]) for items in sent] == wanted
        assert wanted[0] == (2800, 0)
        assert wanted[-1] == (19, 2)

    def test_pace(self, tmp_path) -> None:
        """Gaps take their time: of a heap, a chunk and a minute."""
        path = record(tmp_path / "a.zarr", queue_of(GAPS), layout_of(), max_jump=5000)
        for pace in (1, 4):
            packets = sent_again(path, clock=VirtualClock(), pace=pace)
            for packet, at in zip(packets.all, packets.times, strict=True):
                items = items_of(packet)[0]
                batches = items[TIME_ID] // STEP - 5 * BATCHES + items[ANTENNA_ID] / ANTENNAS
                assert at == pytest.approx(batches * STEP / TICK_RATE / pace, abs=1e-6)

    def test_it_stops_in_a_gap(self, tmp_path) -> None:
        path = record(tmp_path / "a.zarr", queue_of(GAPS), layout_of(), max_jump=5000)
        clock = VirtualClock()
        packets = sent_again(path, clock=clock, pace=1, stop=lambda: clock.now() > 2)
        assert len(packets.all) == sum(batch < 9 * BATCHES for batch, _ in GAPS)
        assert clock.now() < 3

    def test_a_recording_that_was_not_finished(self, tmp_path) -> None:
        layout = layout_of()
        with speadrx.Receiver(layout, queue_of(GAPS), chunks=60, max_jump=5000) as rx:
            recorder = Recorder(rx, tmp_path / "a.zarr", wait=True)
            for chunk in recorder:
                chunk.recycle()
            wait_for(lambda: not recorder.stats().queued)
            assert len(sent_again(tmp_path / "a.zarr").all) == len(GAPS)
            recorder.close()


class TestMarks:
    """Heaps that a receiver might not follow have an item more: the timestamp before, and whether time began again."""

    MARK = 0x7FFF

    def marks_of(self, packets: Packets) -> dict[int, set[int | None]]:
        """The marks of the heaps of each chunk."""
        found: dict[int, set[int | None]] = collections.defaultdict(set)
        for packet in packets.all:
            items, _ = items_of(packet)
            found[items[TIME_ID] // STEP // BATCHES].add(items.get(self.MARK))
        return dict(found)

    def test_where_they_are(self, tmp_path) -> None:
        heaps = heaps_of([5, 6, 8, 9, 10 + MINUTE, 11 + MINUTE, 2, 3, 4], missing=[(13, 1)])
        path = record(tmp_path / "a.zarr", queue_of(heaps), layout_of(), window=2, max_jump=5000)
        last = (12 + MINUTE) * BATCHES * STEP - STEP
        began_again = 2**39 + last
        assert {chunk: marks for chunk, marks in self.marks_of(sent_again(path)).items() if marks != {None}} == {
            8: {(7 * BATCHES - 1) * STEP},
            10 + MINUTE: {(10 * BATCHES - 1) * STEP},
            2: {began_again},
            # Of these, or of the chunk before, heaps are missing: one that was refused, and (13, 1).
            3: {(3 * BATCHES - 1) * STEP},
            4: {(4 * BATCHES - 1) * STEP},
        }
        unmarked = sent_again(path, marks=False)
        assert set().union(*self.marks_of(unmarked).values()) == {None}
        # But for the mark, the packets are the same.
        for packet, plain in zip(sent_again(path).all, unmarked.all, strict=True):
            items, payload = items_of(packet)
            assert ({item: value for item, value in items.items() if item != self.MARK}, payload) == items_of(plain)

    def test_what_is_whole_has_none(self, tmp_path) -> None:
        path = record(tmp_path / "a.zarr", queue_of(heaps_of(range(5, 30))), layout_of())
        assert set().union(*self.marks_of(sent_again(path)).values()) == {None}

    def test_wrong_ones_do_no_harm(self, tmp_path) -> None:
        """Another recording, sent to where one is received, does not move its time."""
        layout = layout_of()
        stray = record(tmp_path / "stray.zarr", queue_of(heaps_of([3, 90])), layout, max_jump=5000)
        marked = [packet for packet in sent_again(stray).all if self.MARK in items_of(packet)[0]]
        heaps = list(packets_of(heaps_of(range(5000, 5020))))
        mixed = heaps[:100] + marked[:1] + heaps[100:]
        path = record(tmp_path / "a.zarr", queue_with(mixed), layout)
        account = attributes(path)["account"]
        assert (account["present"], account["missing"], account["restarts"]) == (len(heaps), 0, 0)
        assert account["rejected"]["implausible_timestamp_heaps"] == 1


class TestRecordedAgain:
    """Recording what was sent gives the same recording."""

    def check(self, tmp_path, queue: spead2.InprocQueue, layout: Layout, **kwargs) -> pathlib.Path:
        one = record(tmp_path / "one.zarr", queue, layout, **kwargs)
        user_data = kwargs.get("user_data")
        packets = sent_again(one, user_data=user_data)
        check_same(one, record(tmp_path / "other.zarr", packets.queue(), layout, **kwargs))
        return one

    def test_gaps(self, tmp_path) -> None:
        self.check(tmp_path, queue_of(GAPS), layout_of())

    @pytest.mark.parametrize("window", [None, 1, 2, 3])
    @pytest.mark.parametrize(
        "chunks",
        [
            [(5, 9), (9 + MINUTE, 13 + MINUTE)],
            [(700, 704), (2, 5)],
            [(700, 740), (640, 700), (650, 690), (0, 1), (0, 3)],
            [(2, 5), (3_000_000, 3_000_004), (3_000_020, 3_000_021)],
            [(WRAP // BATCHES - 2, WRAP // BATCHES + 2)],
            [(WRAP // BATCHES - 2, WRAP // BATCHES), (WRAP // BATCHES + MINUTE, WRAP // BATCHES + MINUTE + 2), (0, 2)],
        ],
        ids=["minute", "back", "back often", "ahead", "wrap", "a minute with a wrap"],
    )
    @pytest.mark.parametrize("lossy", [False, True])
    def test_settings_by_default(self, tmp_path, chunks, window, lossy) -> None:
        """Heaps are refused only at first, while it is in doubt where time is. What was recorded comes back."""
        rng = random.Random(repr((chunks, window)))
        heaps = [heap for some in chunks for heap in heaps_of(range(*some)) if not lossy or rng.random() < 0.6]
        kwargs = {} if window is None else {"window": window, "chunks": 9}
        one = self.check(tmp_path, queue_of(heaps), layout_of(), **kwargs)
        account = attributes(one)["account"]
        absent = sum(account["rejected"].values()) + account["too_old"] + account["duplicates"]
        assert len(heaps) - account["present"] == absent
        plain = record(tmp_path / "plain.zarr", sent_again(one, marks=False).queue(), layout_of(), **kwargs)
        lost = account["present"] - attributes(plain)["account"]["present"]
        assert lossy or (lost > 0) == (len(chunks) > 1)

    def test_sources_that_fall_silent(self, tmp_path) -> None:
        """Where most are missing, a receiver waits for them; not for those that are not in a recording."""
        rng = random.Random(1)
        gone = [set(), {0, 1}, {2}, {0, 2}, {1}, set(), {1, 2}]
        heaps = [
            heap for i in range(70) for heap in heaps_of([i]) if heap[1] not in gone[i // 10] and rng.random() < 0.8
        ]
        for window in (2, 3, 16):
            (tmp_path / str(window)).mkdir()
            self.check(tmp_path / str(window), queue_of(heaps), layout_of(), window=window)

    @pytest.mark.parametrize("sync", [[EPOCH], [EPOCH, EPOCH + 1000], [None]])
    def test_utc_that_an_item_tells(self, tmp_path, sync) -> None:
        time = TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES, tick_rate=1e9 / 3, epoch_item=0x1027)
        layout = layout_of(time=time, side_items=(), required_items=() if None in sync else (0x1027,))
        packets = []
        for i, seconds in enumerate(sync):
            heaps = heaps_of(range(700, 704) if i == 0 else range(2, 7))
            packets += stream(layout, heaps, {} if seconds is None else {0x1027: seconds})
        one = self.check(tmp_path, queue_with(packets), layout)
        assert attributes(one)["time_is_utc"] is (None not in sync)
        if None not in sync:
            first = EPOCH * 10**9 + round(700 * BATCHES * STEP * 3)
            assert int(read_array(one / "time")[0]) == first
            told = [items_of(packet)[0][0x1027] for packet in sent_again(one).all]
            assert sorted(set(told)) == sync

    @pytest.mark.parametrize("first", [0, 1, 2])
    @pytest.mark.parametrize("origin", [None, "first"])
    def test_phases_that_are_shown(self, tmp_path, first, origin) -> None:
        """Whichever source is heard first, of those that are recorded or of all, times are the same."""
        time = TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES, tick_rate=TICK_RATE, phases="first", origin=origin)
        layout = layout_of(time=time, side_items=(), sources="antenna")
        heaps = [heap for heap in GAPS if heap > (20, first - 1)]
        packets = stream(layout, heaps, phases=[3, 0, 7], origin=2)
        self.check(tmp_path, queue_with(packets), layout)

    def test_phases_that_are_declared(self, tmp_path) -> None:
        phases = (3, 0, 17)
        time = TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES, tick_rate=TICK_RATE, phases=phases)
        layout = layout_of(time=time, side_items=(), sources="antenna")
        self.check(tmp_path, queue_with(stream(layout, GAPS, phases=phases)), layout)

    @pytest.mark.parametrize("declared", [False, True])
    def test_timestamps_of_40_bits(self, tmp_path, declared) -> None:
        first = 2**40 // STEP // BATCHES - 2
        heaps = heaps_of([first, first + 1, first + 3, first + 4 + MINUTE]) + heaps_of([1, 2])
        layout = layout_of(side_items=(), send=Send(flavour=40) if declared else None)
        one = self.check(tmp_path, queue_with(stream(layout, heaps, bits=40)), layout)
        assert attributes(one)["first_timestamp"] == first * BATCHES * STEP

    def test_a_beginning_after_a_wrap(self, tmp_path) -> None:
        """Where the step tells how often timestamps have wrapped, the first heap is in doubt."""
        time = TimeAxis(item=TIME_ID, step=24, batches=BATCHES, tick_rate=TICK_RATE)
        layout = layout_of(time=time, side_items=())
        batch = (2**48 // 24 // BATCHES + 5) * BATCHES
        heaps = [(batch + i, antenna) for i in range(20) for antenna in range(ANTENNAS)]
        one = self.check(tmp_path, queue_with(stream(layout, heaps)), layout)
        assert attributes(one)["first_timestamp"] == batch * 24

    @pytest.mark.parametrize("seed", range(5))
    def test_random_gaps(self, tmp_path, seed) -> None:
        rng = random.Random(seed)
        chunks = sorted(rng.sample(range(3, 40), 12))
        heaps = [heap for heap in heaps_of(chunks) if rng.random() < 0.7]
        self.check(tmp_path, queue_of(heaps), layout_of())

    def test_a_wrap(self, tmp_path) -> None:
        first = WRAP // BATCHES - 2
        self.check(tmp_path, queue_of(heaps_of([first, first + 1, first + 3], missing=[(WRAP + 5, 1)])), layout_of())

    @pytest.mark.parametrize("dtype", ["uint8", "int10", "cint8", ">f4", "cint4", "longdouble"])
    def test_numbers(self, tmp_path, dtype) -> None:
        layout = layout_of(dtype=dtype, heap_bytes=80, side_items=())
        self.check(tmp_path, made_by_hand(layout, GAPS), layout)

    @pytest.mark.parametrize("select", [{"antenna": [2, 0]}, {"antenna": [1]}])
    @pytest.mark.parametrize("order", [("antenna", "time"), ("time", "antenna")])
    def test_order_and_selection(self, tmp_path, order, select) -> None:
        one = record(tmp_path / "one.zarr", queue_of(GAPS), layout_of(order=order), select=select, max_jump=5000)
        again = sent_again(one)
        found = collections.Counter(items_of(packet)[0][ANTENNA_ID] for packet in again.all)
        assert found == collections.Counter(antenna for _, antenna in GAPS if antenna in select["antenna"])
        other = record(tmp_path / "other.zarr", again.queue(), layout_of(order=order), select=select)
        for name in ("data", "present", "status", "antenna", "time"):
            files = sorted(file.name for file in (one / name).iterdir())
            assert files == sorted(file.name for file in (other / name).iterdir())
            for file in files:
                assert (one / name / file).read_bytes() == (other / name / file).read_bytes()

    def test_values_and_bits_of_items(self, tmp_path) -> None:
        """An axis whose indices are any values, in bits of an item that others share."""
        layout = layout_of(
            axes=(Axis(name="antenna", item=ANTENNA_ID, values=(0, 2, 1), mask=0xFF),),
            required_items=(0x1234,),
            send=Send(constants={0x1235: 7}, order=(0x1235, TIME_ID)),
        )
        self.check(tmp_path, made_by_hand(layout, GAPS, {0x1234: 0, SIDE_ID: 77}), layout)

    def test_an_origin(self, tmp_path) -> None:
        time = TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES, tick_rate=TICK_RATE, origin="first")
        layout = layout_of(time=time, side_items=())
        queue = spead2.InprocQueue()
        for count, (batch, antenna) in enumerate(GAPS, 1):
            items = {spead2.HEAP_LENGTH_ID: 10, TIME_ID: batch * STEP + 5, ANTENNA_ID: antenna}
            for packet in encode(Heap(items, bytes(range(10))), count, 48):
                queue.add_packet(packet)
        queue.stop()
        self.check(tmp_path, queue, layout)

    def test_an_axis_from_user_data(self, tmp_path) -> None:
        layout = layout_of(axes=(*layout_of().axes, Axis(name="pol", size=2, from_user_data="pol")))
        self.check(tmp_path, queue_of(GAPS), layout, user_data={"pol": 1})
        with pytest.raises(ValueError, match="user_data: has no 'pol'"):
            Resender(Recording(tmp_path / "one.zarr"))


def test_command(tmp_path) -> None:
    """Over UDP, from the command to a receiver that records. All of it fits into the socket's buffer."""
    heaps = heaps_of([5, 6, 8], missing=[(21, 0), (26, 2)])
    one = record(tmp_path / "one.zarr", queue_of(heaps), layout_of())
    to = f"127.0.0.1:{own_port()}"
    with (
        speadrx.Receiver(layout_of(), to, window=2, chunks=6, max_jump=5000) as rx,
        Recorder(rx, tmp_path / "other.zarr", wait=True) as recorder,
    ):

        def consume() -> None:
            for chunk in recorder:
                chunk.recycle()

        thread = threading.Thread(target=consume)
        thread.start()
        summary = json.loads(run("replay", str(one), "--to", to, "--pace", "50", "--json"))
        wait_for(lambda: rx.stats().placed == len(heaps))
        rx.drain()
        thread.join()
    truth = summary["truth"]
    assert (sum(truth["sent"].values()), truth["packets"]) == (len(heaps), len(heaps))
    assert (summary["pace"], summary["destination"]) == (50, to)
    check_same(one, tmp_path / "other.zarr")


def test_command_says_what_it_sent(tmp_path) -> None:
    path = record(tmp_path / "a.zarr", queue_of(heaps_of([5], missing=[(21, 0)])), layout_of())
    to = f"127.0.0.1:{own_port()}"
    said = " ".join(run_here("replay", str(path), "--to", to).split())
    assert f"a.zarr to {to}, 1x." in said
    assert f"Sent to {to}: 11 heaps in 11 packets" in said


class TestMistakes:
    @pytest.fixture
    def path(self, tmp_path) -> str:
        return str(record(tmp_path / "a.zarr", queue_of(heaps_of([5])), layout_of()))

    def test_nowhere_to_send(self, path) -> None:
        assert "Wanted --to ENDPOINTS" in run_here("replay", path, code=2)

    @pytest.mark.parametrize(
        "options", [["-l", "meerkat-digitiser"], ["--set", "heap_bytes=3"], ["--threads", "2"], ["--fill", "0"]]
    )
    def test_options_of_receivers(self, path, options) -> None:
        said = run_here("replay", path, "--to", "127.0.0.1:7148", *options, code=2)
        assert options[0] in said
        assert "has no meaning for a recording" in said

    def test_captures_have_no_marks(self, tmp_path) -> None:
        (tmp_path / "a.pcap").touch()
        said = run_here("replay", str(tmp_path / "a.pcap"), "-l", "meerkat-digitiser", "--no-marks", code=2)
        assert "no meaning for a capture" in said

    def test_no_recording(self, tmp_path) -> None:
        assert "is not a recording" in run_here("replay", str(tmp_path), "--to", "127.0.0.1:7148", code=2)

    def test_an_empty_one(self, tmp_path) -> None:
        path = str(record(tmp_path / "a.zarr", queue_of([]), layout_of()))
        assert "holds nothing" in run_here("replay", path, "--to", "127.0.0.1:7148", code=2)

    def test_no_heap_is_there(self, tmp_path) -> None:
        """As when the disk was full before the first chunk."""
        path = record(tmp_path / "a.zarr", queue_of(heaps_of([0])), layout_of())
        (path / "present/c.0.0").unlink()
        with piped("replay", str(path), "--to", f"127.0.0.1:{own_port()}") as process:
            output, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, errors) == (1, f"{path} has no heap.\n")
        assert "0 heaps in 0 packets" in output

    @pytest.mark.parametrize("compress", [None, "zstd"])
    @pytest.mark.parametrize(
        ("damage", "what", "why"),
        [
            ("data/c.1.0.0", "chunk 1 of {}/data", "Too many levels of symbolic links"),
            ("present/c.0.0", "chunk 0 of {}/present", "Too many levels of symbolic links"),
            ("time/c.0", "{}/time", "Too many levels of symbolic links"),
            ("present", "{}/present", "No such file or directory"),
            ("present/c.x.0", "{}/present", "invalid literal for int() with base 10: 'x'"),
        ],
    )
    def test_what_is_damaged_is_named(self, tmp_path, compress, damage, what, why) -> None:
        """Not the network, which has nothing to do with it."""
        path = record(tmp_path / "a.zarr", queue_of(heaps_of(range(3))), layout_of(), compress=compress)
        if damage == "present":
            shutil.rmtree(path / damage)
        else:
            (path / damage).unlink(missing_ok=True)
            (path / damage).symlink_to((path / damage).name)
        said = run_here("replay", str(path), "--to", f"127.0.0.1:{own_port()}", "--json", "--pace=1000", code=2)
        assert " ".join(said.split()).endswith(f"{what.format(path)} is damaged: {why}"), said

    def test_user_data_that_is_missing(self, tmp_path) -> None:
        layout = layout_of(axes=(*layout_of().axes, Axis(name="pol", size=2, from_user_data="pol")))
        path = str(record(tmp_path / "a.zarr", queue_of(GAPS), layout, user_data={"pol": 1}))
        said = run_here("replay", path, "--to", "127.0.0.1:7148", code=2)
        assert "--user-data" in said
        assert "has no 'pol'" in said

    def test_no_pace_without_a_tick_rate(self, tmp_path) -> None:
        layout = layout_of(time=TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES))
        path = str(record(tmp_path / "a.zarr", queue_of(heaps_of([5])), layout))
        to = f"127.0.0.1:{own_port()}"
        assert "as fast as possible" in run_here("replay", path, "--to", to)
        assert "tick_rate" in run_here("replay", path, "--to", to, "--pace", "2", code=2)

    def test_a_capture_needs_a_layout(self, tmp_path) -> None:
        (tmp_path / "a.pcap").write_bytes(b"")
        assert "Missing option '-l' / '--layout'" in run_here("replay", str(tmp_path / "a.pcap"), code=2)

    def test_without_zarr(self, path, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "zarr", None)
        said = run_here("replay", path, "--to", "127.0.0.1:7148", code=2)
        assert "pip install 'speadrx[xarray]'" in said


class TestLayout:
    """Where a layout is wanted, a recording gives the one that it has."""

    def test_printed(self, tmp_path) -> None:
        path = record(tmp_path / "a.zarr", queue_of(heaps_of([5])), layout_of())
        printed = run_here("layout", str(path), "--toml")
        (tmp_path / "a.toml").write_text(printed, "utf-8")
        assert Layout.from_toml(tmp_path / "a.toml") == layout_of()
        assert json.loads(run_here("layout", str(path), "--json"))["heap_bytes"] == 2 * SAMPLES

    def test_with_changes(self, tmp_path) -> None:
        path = record(tmp_path / "a.zarr", queue_of(heaps_of([5])), layout_of())
        described = json.loads(run_here("layout", str(path), "--set", "time.batches=8", "--json"))
        assert described["chunk_heaps"] == 8 * ANTENNAS

    def test_zarr_of_others(self, tmp_path) -> None:
        (tmp_path / "zarr.json").write_text("{}", "utf-8")
        assert "is not a recording that speadrx has made" in run_here("layout", str(tmp_path), code=2)
