"""`Receiver` over every kind of source: what comes out, what it says of it, its defaults, and its errors."""

import asyncio
import contextlib
import dataclasses
import dis
import json
import linecache
import socket
import sys
import threading
import time
import tracemalloc
import types
import urllib.request

import numpy as np
import pytest
import spead2
import spead2.recv

import speadrx
from addresses import GROUP_PREFIX
from example_layouts import MEERKAT
from loopback import wait_for
from speadrx import Axis, Layout, Receiver, TimeAxis
from speadrx.receive import readers, settings, sockets
from speadrx.receive import receiver as receiver_module
from speadrx.simulate import Faults, InprocSink, PcapSink, Simulator, UdpSink

LAYOUT = Layout(
    heap_bytes=1024,
    time=TimeAxis(item=0x1600, step=512, batches=8, tick_rate=1e6),
    axes=(Axis(name="antenna", item=0x4101, size=4),),
    sources="antenna",
    dtype="int16",
)
BATCHES = 200
FAULTS = Faults(loss=0.05, duplicate=0.05, reorder=5, garbage=0.05, garbage_kinds=("timestamp", "length", "absent"))


def simulate(sink, *, faults=FAULTS, batches=BATCHES, rate=None, layout=LAYOUT, **kwargs):
    simulator = Simulator(layout, faults=faults, seed=3, **kwargs)
    simulator.send(sink, batches=batches, rate=rate)
    return simulator


class Consumer:
    """Takes all chunks, in a thread of its own, and checks that their data is what the simulator makes."""

    def __init__(self, receiver, *, asynchronous=False):
        self.receiver = receiver
        self.present = 0
        self.timestamps = []
        self.wrong = 0
        self.simulator = Simulator(receiver.layout, seed=3)
        self.failure = None
        self.thread = threading.Thread(target=self._run, args=(asynchronous,))
        self.thread.start()

    def _run(self, asynchronous):
        try:
            if asynchronous:
                asyncio.run(self._take_async())
            else:
                for chunk in self.receiver:
                    self._take(chunk)
        except BaseException as exc:  # noqa: BLE001 (the test shall see it)
            self.failure = exc

    async def _take_async(self):
        async for chunk in self.receiver:
            self._take(chunk)

    def _take(self, chunk):
        with chunk:
            present = chunk.present.astype(bool)
            expected = self.simulator.chunk_data(chunk.timestamp)
            data = chunk.data.view(np.uint8).reshape(expected.shape)
            self.wrong += int(np.count_nonzero((data != expected).any(axis=-1) & present))
            self.present += int(present.sum())
            self.timestamps.append(chunk.timestamp)

    def wait(self):
        self.thread.join(60)
        assert not self.thread.is_alive()
        if self.failure is not None:
            raise self.failure
        assert self.wrong == 0
        return self


def settle(receiver, sent):
    """Wait until all packets have been read or dropped."""
    wait_for(lambda: receiver.stats().packets + receiver.stats().kernel_drops >= sent)


def assert_accounts(receiver, truths, consumer):
    stats = receiver.stats()
    assert stats.kernel_drops == 0

    def total(name):
        return np.sum([getattr(truth, name) for truth in truths], axis=0).tolist()

    def merged(name):
        keys = {key for truth in truths for key in getattr(truth, name)}
        return {key: sum(getattr(truth, name).get(key, 0) for truth in truths) for key in keys}

    assert [source.present for source in stats.sources] == total("complete")
    assert [source.placed for source in stats.sources] == total("sent")
    assert [source.duplicates for source in stats.sources] == total("duplicated")
    assert [source.missing for source in stats.sources] == (np.add(total("lost"), total("incomplete"))).tolist()
    assert {reason: n for reason, n in stats.rejected.items() if n} == merged("rejected")
    assert stats.present == consumer.present == sum(total("complete"))
    assert stats.expected == stats.present + stats.missing
    assert stats.placed == stats.present + stats.duplicates + stats.too_old + stats.unfinished
    assert stats.unfinished == sum(total("incomplete"))
    assert stats.too_old == 0
    assert (stats.first_timestamp, stats.last_timestamp) == (consumer.timestamps[0], consumer.timestamps[-1])
    assert stats.chunks == len(consumer.timestamps)
    assert stats.packets == sum(truth.decodable_packets for truth in truths)
    # Those that were rejected are among them, where garbage is too short.
    assert sum(total("incomplete")) <= stats.incomplete <= sum(total("incomplete")) + sum(stats.rejected.values())
    assert stats.seconds > 0
    assert json.loads(json.dumps(dataclasses.asdict(stats))) == dataclasses.asdict(stats)


@contextlib.contextmanager
def receiving(sources, *, asynchronous=False, layout=LAYOUT, **kwargs):
    with Receiver(layout, sources, **kwargs) as receiver:
        consumer = Consumer(receiver, asynchronous=asynchronous)
        try:
            yield receiver, consumer
        finally:
            receiver.drain()
            consumer.thread.join(60)


@pytest.fixture(params=[False, True], ids=["for", "async for"])
def asynchronous(request):
    return request.param


@pytest.mark.parametrize("kind", ["udp", "multicast", "pcap", "inproc"])
@pytest.mark.parametrize("threads", [1, 3])
def test_sources(kind, threads, asynchronous, tmp_path, ports):
    """Every heap comes out and is accounted for, whatever it comes through."""
    kwargs = {"threads": threads, "buffer": 2**24, "tolerance_bytes": 16 * LAYOUT.chunk_bytes}
    if kind in ("udp", "multicast"):
        hosts = ["127.0.0.1"] * 3 if kind == "udp" else [f"{GROUP_PREFIX}{171 + i}" for i in range(3)]
        endpoints = list(zip(hosts, ports, strict=True))
        interface = "127.0.0.1" if kind == "multicast" else None
        with (
            UdpSink(endpoints, interface=interface, ttl=0) as sink,
            receiving(endpoints, asynchronous=asynchronous, interface=interface, **kwargs) as (receiver, consumer),
        ):
            truths = [simulate(sink, rate=20e6).truth]
            settle(receiver, truths[0].decodable_packets)
            receiver.drain()
            consumer.wait()
    else:
        # Each thread has a part of the time, as files of a recording would.
        truths, sources = [], []
        for i in range(threads):
            first = i * (BATCHES // threads // 8 * 8) * 512
            batches = BATCHES // threads // 8 * 8
            if kind == "pcap":
                path = tmp_path / f"{i}.pcap"
                with PcapSink(path) as sink:
                    truths.append(simulate(sink, batches=batches, first_timestamp=first).truth)
                sources.append(str(path) if i % 2 else path)
            else:
                queue = spead2.InprocQueue()
                truths.append(simulate(InprocSink(queue), batches=batches, first_timestamp=first).truth)
                queue.stop()
                sources.append(queue)
        # One after the other they come out of order, so that the window must hold all.
        if threads > 1:
            kwargs = {"threads": threads, "window": BATCHES // 8}
        with Receiver(LAYOUT, sources[0] if threads == 1 else sources, **kwargs) as receiver:
            consumer = Consumer(receiver, asynchronous=asynchronous).wait()
    assert_accounts(receiver, truths, consumer)


def test_source_as_text(udp_port):
    with receiving(f"127.0.0.1:{udp_port}") as (receiver, consumer), UdpSink([("127.0.0.1", udp_port)]) as sink:
        truth = simulate(sink, rate=20e6).truth
        settle(receiver, truth.decodable_packets)
        receiver.drain()
        consumer.wait()
    assert_accounts(receiver, [truth], consumer)


def test_one_pair(udp_port):
    with receiving(("127.0.0.1", udp_port)) as (receiver, consumer), UdpSink([("127.0.0.1", udp_port)]) as sink:
        simulate(sink, batches=8, faults=Faults())
        settle(receiver, 32)
        receiver.drain()
        consumer.wait()
    assert consumer.timestamps == [0]
    assert (receiver.stats().packets, receiver.stats().incomplete) == (32, 0)


def test_packets_of_a_heap_in_any_order(tmp_path):
    """Heaps of many packets, of all sources at once, whose packets overtake each other."""
    faults = Faults(packet_loss=0.002, packet_reorder=40)
    with PcapSink(tmp_path / "mixed.pcap") as sink:
        truth = simulate(sink, faults=faults, max_packet_size=256).truth
    assert sum(truth.incomplete) > 0
    with Receiver(LAYOUT, tmp_path / "mixed.pcap") as receiver:
        consumer = Consumer(receiver).wait()
    assert_accounts(receiver, [truth], consumer)


def test_user_data_by_thread():
    """A beam's polarisations come from different endpoints, and only the stream knows which is which."""
    layout = MEERKAT[2]
    queues, truths = [], []
    for pol in range(2):
        queue = spead2.InprocQueue()
        simulator = Simulator(layout, user_data={"pol": pol}, seed=3, faults=Faults(loss=0.1))
        truths.append(simulator.send(InprocSink(queue), batches=8))
        queue.stop()
        queues.append(queue)
    present = np.zeros(2, int)
    with Receiver(layout, queues, threads=2, user_data=[{"pol": 0}, {"pol": 1}], window=4) as receiver:
        for chunk in receiver:
            with chunk:
                expected = simulator.chunk_data(chunk.timestamp)
                data = chunk.data.view(np.uint8).reshape(expected.shape)
                np.testing.assert_array_equal(data[chunk.present], expected[chunk.present])
                present += chunk.present.sum(axis=(1, 2))
    assert present.tolist() == [sum(truth.complete) for truth in truths]


@pytest.mark.parametrize("fill", [None, -1])
def test_fill(fill):
    queue = spead2.InprocQueue()
    simulator = simulate(InprocSink(queue), faults=Faults(loss=0.3))
    queue.stop()
    left = 0
    with Receiver(LAYOUT, queue, fill=fill) as receiver:
        for chunk in receiver:
            with chunk:
                present = chunk.present.astype(bool)
                expected = simulator.chunk_data(chunk.timestamp).view(np.int16)
                np.testing.assert_array_equal(chunk.data[present], expected[present])
                left += np.count_nonzero((chunk.data[~present] != -1).any(axis=-1))
                chunk.data[...] = 7
    assert left == (sum(simulator.truth.lost) if fill is None else 0)


def test_flush_and_drain(udp_port):
    """Chunks under construction come out when told to, and those after them too."""
    with (
        Receiver(LAYOUT, [("127.0.0.1", udp_port)]) as receiver,
        UdpSink([("127.0.0.1", udp_port)]) as sink,
    ):
        simulator = Simulator(LAYOUT, seed=3)
        simulator.send(sink, batches=8)
        settle(receiver, 32)
        receiver.flush()
        chunks = iter(receiver)
        with next(chunks) as chunk:
            assert (chunk.timestamp, int(chunk.present.sum())) == (0, 32)
        simulator.send(sink, batches=4)
        settle(receiver, 48)
        receiver.drain()
        with next(chunks) as chunk:
            assert (chunk.timestamp, int(chunk.present.sum())) == (LAYOUT.chunk_timestamp_step, 16)
        assert list(chunks) == []
    stats = receiver.stats()
    assert (stats.present, stats.missing, stats.restarts) == (48, 0, 0)
    assert stats.incomplete == 0, "what tells the stream to drain is no heap of the user's"


def test_flush_after(udp_port):
    with (
        Receiver(LAYOUT, [("127.0.0.1", udp_port)], flush_after=0.05) as receiver,
        UdpSink([("127.0.0.1", udp_port)]) as sink,
    ):
        Simulator(LAYOUT).send(sink, batches=3)
        with next(iter(receiver)) as chunk:
            assert int(chunk.present.sum()) == 12


def test_survives_a_restart_and_a_stop_item():
    queue = spead2.InprocQueue()
    sink = InprocSink(queue)
    with receiving(queue) as (receiver, consumer):
        first = simulate(sink, faults=Faults(), first_timestamp=512 * 8 * 1000)
        simulate(sink, faults=Faults(garbage=1, garbage_kinds=("stop",)), batches=1, first_timestamp=512 * 8 * 1000)
        again = simulate(sink, faults=Faults())
        queue.stop()
        consumer.wait()
    stats = receiver.stats()
    assert stats.restarts == 1
    lost = stats.rejected["implausible_timestamp_heaps"]
    assert 0 < lost <= 2 * 4, "each source loses at most two"
    assert consumer.present == stats.present >= sum(first.truth.sent) + sum(again.truth.sent) - lost
    assert 0 in consumer.timestamps


def test_metrics(udp_port):
    with (
        receiving([("127.0.0.1", udp_port)], metrics_port=0, labels={"stream": "wide"}) as (receiver, consumer),
        UdpSink([("127.0.0.1", udp_port)]) as sink,
    ):
        truth = simulate(sink, rate=20e6).truth
        settle(receiver, truth.decodable_packets)
        receiver.flush()
        wait_for(lambda: receiver.stats().in_flight == 0)
        url = f"http://127.0.0.1:{receiver.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=60) as reply:
            page = reply.read().decode()
        for i, present in enumerate(truth.complete):
            assert f'speadrx_heaps_present_total{{source="{i}",stream="wide"}} {present}.0' in page
        receiver.drain()
        consumer.wait()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=60)


def test_nothing_is_received_before_the_start(udp_port):
    receiver = Receiver(LAYOUT, [("127.0.0.1", udp_port)])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", udp_port))  # the port is free
    assert (receiver.stats().seconds, receiver.metrics_port) == (0.0, None)
    receiver.start()
    receiver.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(OSError, match="in use"):
        sock.bind(("127.0.0.1", udp_port))
    receiver.stop()
    receiver.stop()
    seconds = receiver.stats().seconds
    assert seconds == receiver.stats().seconds > 0


def test_stopped_is_not_started(udp_port):
    receiver = Receiver(LAYOUT, [("127.0.0.1", udp_port)])
    receiver.stop()
    with pytest.raises(ValueError, match="has stopped"):
        iter(receiver)


@pytest.mark.parametrize("of_stream", [False, True])
def test_drained_is_not_started(of_stream):
    """Without a word, it would ignore all that comes."""
    queue = spead2.InprocQueue()
    receiver = Receiver(LAYOUT, queue)
    (receiver.stream if of_stream else receiver).drain()
    for start in (receiver.start, receiver.__enter__, lambda: iter(receiver)):
        with pytest.raises(ValueError, match=r"^drain: was called before the start, .* wanted a new Receiver"):
            start()
    wait_for(lambda: receiver.stream._stopped)
    with pytest.raises(ValueError, match=r"^drain: "):
        receiver.start()


def test_stopped_stream_is_not_started():
    receiver = Receiver(LAYOUT, spead2.InprocQueue())
    receiver.stream.stop()
    with pytest.raises(ValueError, match="has stopped"):
        receiver.start()


def test_making_that_fails_leaves_nothing(monkeypatch):
    """Also while the exception is kept, with all that its traceback refers to."""

    def fail(*args):
        raise MemoryError("no more")

    before = set(speadrx.receive.stream._all)
    kept = []
    with pytest.raises(ValueError, match="fill: 40000") as failure:
        Receiver(LAYOUT, "127.0.0.1:7148", fill=40000)
    kept.append(failure)
    monkeypatch.setattr("speadrx.receive.chunk.allocate", fail)
    with pytest.raises(MemoryError, match="no more") as failure:
        Receiver(LAYOUT, "127.0.0.1:7148")
    kept.append(failure)
    made = set(speadrx.receive.stream._all) - before
    assert len(made) == len(kept)
    assert all(stream._stopped for stream in made)


def test_start_that_fails_leaves_nothing(ports):
    """All sockets are closed again, and the metrics too."""
    first, second, _ = ports
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", second))
        receiver = Receiver(LAYOUT, [("127.0.0.1", first), ("127.0.0.1", second)], threads=2, metrics_port=0, window=2)
        with pytest.raises(OSError, match=f"127.0.0.1:{second}"):
            receiver.start()
    for port in (first, second):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", port))
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{receiver.metrics_port}/metrics", timeout=60)


def test_threads_that_begin_to_iterate_at_once(monkeypatch):
    """Only one of them starts the receiver; all get chunks."""
    both = threading.Barrier(2)

    def slow():
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.2)
        return time.monotonic()

    queue = spead2.InprocQueue()
    simulate(InprocSink(queue), faults=Faults())
    queue.stop()
    receiver = Receiver(LAYOUT, queue)
    added = []
    monkeypatch.setattr(receiver, "_add_readers", lambda *args: added.append(Receiver._add_readers(receiver, *args)))
    monkeypatch.setattr("speadrx.receive.receiver.time", types.SimpleNamespace(monotonic=slow))
    consumers = [Consumer(receiver) for _ in range(2)]
    assert sum(consumer.wait().present for consumer in consumers) == BATCHES * 4
    assert len(added) == 1


def test_start_that_failed_is_no_start(udp_port):
    """Who tries again must not wait for chunks that cannot come, nor take their lack for the end."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", udp_port))
        receiver = Receiver(LAYOUT, ("127.0.0.1", udp_port))
        with pytest.raises(OSError, match="in use"):
            receiver.start()
    for again in (receiver.start, receiver.__enter__, lambda: iter(receiver)):
        with pytest.raises(ValueError, match="has stopped, so it can receive nothing: wanted a new Receiver"):
            again()


def test_what_has_ended_is_not_started(udp_port):
    """But its chunks can be taken still."""
    receiver = Receiver(LAYOUT, ("127.0.0.1", udp_port), window=2)
    with receiver, UdpSink([("127.0.0.1", udp_port)]) as sink:
        simulate(sink, faults=Faults(), batches=32)
        wait_for(lambda: receiver.stats().data_ring.chunks == 2)
    with pytest.raises(ValueError, match="has stopped"), receiver:
        pass
    assert [chunk.timestamp for chunk in receiver] == [0, LAYOUT.chunk_timestamp_step]


def test_metrics_port_that_is_taken(udp_port):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        receiver = Receiver(LAYOUT, ("127.0.0.1", udp_port), metrics_port=port)
        with pytest.raises(OSError, match=f"metrics_port: cannot serve on port {port}: Address already in use"):
            receiver.start()
    assert receiver.metrics_port is None


def test_metrics_end_with_the_receiver(udp_port):
    """Also of one that nobody has stopped; but the loop over it may hold the last reference to what it receives."""
    queue = spead2.InprocQueue()
    simulate(InprocSink(queue), faults=Faults())
    receiver = Receiver(LAYOUT, queue, metrics_port=0)
    chunks = iter(receiver)
    url = f"http://127.0.0.1:{receiver.metrics_port}/metrics"
    del receiver
    with next(chunks), urllib.request.urlopen(url, timeout=60) as reply:
        assert reply.status == 200
    del chunks

    def refused():
        try:
            urllib.request.urlopen(url, timeout=60).close()
        except OSError:
            return True
        return False

    wait_for(refused)


def heeds_signals(frame):
    """Whether Ctrl-C can come at the line that is about to run.

    Python heeds signals after calls only. A trace function can raise in between as well: where a block of ``with`` is
    left, which then keeps its lock for ever, or before ``try`` takes effect.
    """
    word = linecache.getline(frame.f_code.co_filename, frame.f_lineno).split()[0]
    is_entered = dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith(("LOAD_FAST", "LOAD_GLOBAL"))
    return word != "try:" and (word != "with" or is_entered)


def test_interrupted_at_any_line_of_the_start(ports):
    """Whatever has been opened is closed again, and no lock stays taken: the thread that watches streams needs some."""
    endpoints = [("127.0.0.1", port) for port in ports]
    modules = (receiver_module, readers, speadrx.receive.endpoints, sockets)
    traced = [module.__file__ for module in modules]

    def interrupt(after):
        """Start, and raise `KeyboardInterrupt` at a line; whether there were so many."""
        seen = 0

        def trace(frame, event, _):
            nonlocal seen
            if frame.f_code.co_filename not in traced:
                return None
            if event == "line" and heeds_signals(frame):
                seen += 1
                if seen == after:
                    raise KeyboardInterrupt
            return trace

        receiver = Receiver(LAYOUT, endpoints, threads=2, window=2)
        locks = [receiver._start_lock, sockets._adopt_lock, *(own._lock for own in receiver.stream._socket_sets)]
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            receiver.start()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
            if seen < after:
                receiver.stop()
        asking = threading.Thread(target=lambda: [lock.acquire() and lock.release() for lock in locks], daemon=True)
        asking.start()
        asking.join(60)
        assert not asking.is_alive(), f"a lock stays taken after line {after}"
        return seen >= after

    line = 1
    while interrupt(line):
        for endpoint in endpoints:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(endpoint)
        line += 1
    assert line > 50


def test_leaving_the_block_stops(udp_port):
    with pytest.raises(RuntimeError, match="of the user"), Receiver(LAYOUT, ("127.0.0.1", udp_port)) as receiver:
        raise RuntimeError("of the user")
    assert list(receiver._chunks) == []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", udp_port))


async def test_cancelled(udp_port):
    async def forever():
        async with Receiver(LAYOUT, ("127.0.0.1", udp_port)) as receiver:
            async for _ in receiver:
                pass

    task = asyncio.create_task(forever())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", udp_port))


def sized(chunk_bytes, **time_axis):
    return Layout(heap_bytes=chunk_bytes // 4, time=TimeAxis(item=0x1600, step=1, batches=4, **time_axis))


@pytest.mark.parametrize(
    ("layout", "kwargs", "window"),
    [
        (sized(2**12), {}, settings.MOST_WINDOW),
        (sized(2**24), {}, 5),
        (sized(2**26), {}, 2),
        (sized(2**27), {}, 2),
        (sized(2**12), {"window": 7}, 7),
        (sized(2**12), {"tolerance_bytes": 0}, 1),
        (sized(2**12), {"tolerance_bytes": 1}, 2),
        (sized(2**12), {"tolerance_bytes": 3 * 2**12}, 4),
        (sized(2**12), {"tolerance_bytes": 3 * 2**12 + 1}, 5),
        (sized(2**12, tick_rate=8.0), {"tolerance_seconds": 0}, 1),
        (sized(2**12, tick_rate=8.0), {"tolerance_seconds": 1}, 3),
        (sized(2**12, tick_rate=8.0), {"tolerance_seconds": 1.1}, 4),
    ],
)
def test_window(layout, kwargs, window):
    assert (
        settings.window_of(layout, *(kwargs.get(n) for n in ("window", "tolerance_seconds", "tolerance_bytes")))
        == window
    )


def test_defaults(udp_port):
    receiver = Receiver(LAYOUT, ("127.0.0.1", udp_port), window=2)
    assert len(receiver.pool) == 2 * 2 + 1 + settings.HELD_CHUNKS
    config = receiver.stream.config
    assert (config.allow_out_of_order, config.stop_on_stop_item, config.max_heaps) == (True, False, 16)
    group = Receiver(LAYOUT, [("127.0.0.1", udp_port)] * 2, window=2, threads=2, allow_out_of_order=False, max_heaps=3)
    assert len(group.pool) == 2 * 3 + 1 + settings.HELD_CHUNKS
    assert (group.stream[1].config.allow_out_of_order, group.stream[1].config.max_heaps) == (False, 3)
    wide = dataclasses.replace(LAYOUT, axes=(Axis(name="antenna", item=0x4101, size=100),))
    assert Receiver(wide, ("127.0.0.1", udp_port), window=2).stream.config.max_heaps == 200


@pytest.mark.parametrize(
    ("sources", "threads", "parts"),
    [
        ("a:1,b:2", 1, [[("a", 1), ("b", 2)]]),
        (
            ["10.0.0.1+4:1"],
            2,
            [[("10.0.0.1", 1), ("10.0.0.2", 1), ("10.0.0.3", 1)], [("10.0.0.4", 1), ("10.0.0.5", 1)]],
        ),
        ([["a", 1], ("b", 2)], 2, [[("a", 1)], [("b", 2)]]),
        (["a", np.int64(1)], 1, [[("a", 1)]]),
        (("a", "1"), 1, [[("a", 1)]]),
        (" a:1, b:2 ", 1, [[("a", 1), ("b", 2)]]),
        (["dir/a:1.pcap", "b.pcap"], 2, [["dir/a:1.pcap"], ["b.pcap"]]),
    ],
)
def test_sources_are_dealt_out_in_order(sources, threads, parts):
    assert settings.deal(settings.read_inputs(sources), threads) == parts


def test_file_with_a_colon_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "12:30").touch()
    assert settings.read_inputs("12:30") == ["12:30"]
    assert settings.read_inputs("12:31") == [("12", 31)]


def test_missing_file(tmp_path):
    receiver = Receiver(LAYOUT, tmp_path / "no.pcap")
    with pytest.raises(FileNotFoundError, match=r"no\.pcap"):
        receiver.start()


def test_stats_while_receiving():
    """Whenever they are read, no number contradicts another, and none falls."""
    queue = spead2.InprocQueue()
    done = threading.Event()
    with receiving(queue) as (receiver, consumer):
        sender = threading.Thread(target=lambda: (simulate(InprocSink(queue)), queue.stop(), done.set()))
        sender.start()
        before = receiver.stats()
        reads = 0
        deadline = time.monotonic() + 60
        while not done.is_set() or consumer.thread.is_alive():
            assert time.monotonic() < deadline
            now = receiver.stats()
            for name in ("placed", "present", "missing", "duplicates", "chunks", "packets"):
                assert getattr(now, name) >= getattr(before, name)
            assert now.present <= now.placed
            before = now
            reads += 1
        sender.join()
    assert reads > 0
    assert speadrx.ReceiverStats is type(now)


@pytest.mark.slow
def test_memory_does_not_grow():
    """What a chunk takes is given back: nothing is left of a hundred thousand of them."""
    chunks = 100_000
    layout = Layout(heap_bytes=8, time=TimeAxis(item=0x1600, step=1, batches=1))
    queue = spead2.InprocQueue()
    Simulator(layout, faults=Faults(loss=0.01), seed=3).send(InprocSink(queue), batches=chunks)
    queue.stop()
    sizes = []
    with Receiver(layout, queue) as receiver:
        tracemalloc.start()
        try:
            for i, chunk in enumerate(receiver):
                with chunk:
                    # By 5000 the interpreter keeps as many small tuples for reuse as it ever does.
                    if i % 10_000 == 5000:
                        sizes.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    assert receiver.stats().expected >= chunks - 100
    assert len(sizes) == 10
    assert max(sizes) - min(sizes) < 4096


def test_ibv(monkeypatch):
    """What goes to spead2: for each thread its endpoints and its completion vector, and spead2's default buffer."""
    given = []
    monkeypatch.setattr(
        spead2.recv.ChunkStreamGroupMember, "add_udp_ibv_reader", lambda self, config: given.append(config)
    )
    endpoints = "lo/239.1.2.3+3:7148"
    with Receiver(LAYOUT, endpoints, threads=2, window=2, ibv=True, comp_vector=[3, -1]):
        pass
    assert [[host for host, _ in config.endpoints] for config in given] == [
        ["239.1.2.3", "239.1.2.4"],
        ["239.1.2.5", "239.1.2.6"],
    ]
    assert [config.comp_vector for config in given] == [3, -1]
    assert {config.interface_address for config in given} == {"127.0.0.1"}
    assert {config.buffer_size for config in given} == {spead2.recv.UdpIbvConfig.DEFAULT_BUFFER_SIZE}


@pytest.mark.parametrize(
    ("sources", "options", "error", "message"),
    [
        ("239.1.2.3:7148", {"ibv": 1}, TypeError, "ibv: given 1, but wanted True or False"),
        (spead2.InprocQueue(), {"ibv": True}, ValueError, "ibv: an in-process queue does not come from a network"),
        ([b"a packet"], {"ibv": True}, ValueError, "ibv: an iterable of packets does not come from a network"),
        ("some.pcap", {"ibv": True}, ValueError, "ibv: some.pcap does not come from a network"),
        ("239.1.2.3:7148", {"comp_vector": [1, 2]}, ValueError, r"comp_vector: given \[1, 2\], but 1 thread"),
        ("239.1.2.3:7148", {"comp_vector": 0.5}, TypeError, "comp_vector: given 0.5, but wanted an integer"),
    ],
)
def test_ibv_errors(sources, options, error, message):
    with pytest.raises(error, match=message):
        Receiver(LAYOUT, sources, **options)


def test_ibv_without_an_interface():
    receiver = Receiver(LAYOUT, "239.1.2.3:7148", ibv=True)
    with pytest.raises(ValueError, match=r"interface: None, but ibv needs an interface for 239\.1\.2\.3:7148"):
        receiver.start()
