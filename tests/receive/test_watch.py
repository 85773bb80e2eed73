"""The thread that looks at streams now and then: what it logs, and when it ends."""

import dataclasses
import gc
import threading
import types

import pytest
import spead2

import speadrx.receive.watch
from handmade import SMALL
from loopback import wait_for
from speadrx.simulate import InprocSink, Simulator


@pytest.fixture
def looks(monkeypatch):
    """Look at a stream by a clock of our own: gives the number of messages so far."""
    monkeypatch.setattr("speadrx.receive.stream.watch", lambda owner, flush_after: None)
    watched = []
    now = 1000.0

    def look(stream, seconds=1.0):
        nonlocal now
        if not watched:
            watched.append(speadrx.receive.watch._Watched(stream, None))
        now += seconds
        return watched[0].look(now)

    return look


@pytest.mark.fault(19)
def test_empty_free_ring_is_said_once(looks, make, caplog):
    """Not at once, and not again before it had chunks."""
    stream = make(chunks=3)
    looks(stream)
    looks(stream)
    chunks = [stream.free_ringbuffer.get_nowait() for _ in range(3)]
    looks(stream)
    assert not caplog.records
    for _ in range(5):
        looks(stream)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("speadrx.receive.watch", "WARNING")
    assert "free_ringbuffer: stays empty" in record.getMessage()
    chunks[0].recycle()
    looks(stream)
    stream.free_ringbuffer.get_nowait()
    for _ in range(5):
        looks(stream)
    assert len(caplog.records) == 1, "not so soon after the last"
    chunks[1].recycle()
    looks(stream, 60)
    stream.free_ringbuffer.get_nowait()
    for _ in range(5):
        looks(stream)
    assert len(caplog.records) == 2
    stream.stop()
    assert not looks(stream)


def test_chunks_that_are_still_allocated_are_not_missed(looks, make, caplog):
    """Allocating some GB takes longer than a few looks, and nothing is wrong meanwhile; without any, heaps wait."""
    stream = make(chunks=0)
    for _ in range(5):
        looks(stream)
    assert not caplog.records
    queue = spead2.InprocQueue()
    stream.add_inproc_reader(queue)
    Simulator(stream.layout).send(InprocSink(queue), batches=1)
    wait_for(lambda: stream.ledger.snapshot().seen > 0)
    for _ in range(3):
        looks(stream)
    assert "free_ringbuffer: stays empty" in caplog.text
    stream.stop()


@pytest.mark.fault(19)
def test_full_data_ring_is_said_once(looks, make, caplog):
    stream = make(chunks=8)
    for _ in range(7):
        stream.data_ringbuffer.put_nowait(stream.free_ringbuffer.get_nowait())
    looks(stream)
    looks(stream)
    stream.data_ringbuffer.put_nowait(stream.free_ringbuffer.get_nowait())
    stream.add_free_chunk(stream.data_ringbuffer.get_nowait())
    stream.data_ringbuffer.put_nowait(
        speadrx.Chunk(sink=stream, data=bytearray(48), present=bytearray(12), extra=bytearray(24))
    )
    for _ in range(5):
        looks(stream)
    (record,) = caplog.records
    assert "data_ringbuffer: stays full (8 chunks)" in record.getMessage()


@pytest.mark.parametrize(
    ("declared", "measured", "is_said"), [(1e6, 1.04e6, True), (1e6, 1.01e6, False), (None, 1, False)]
)
def test_other_rate_of_time_is_said_once(looks, make, caplog, monkeypatch, declared, measured, is_said):
    time = dataclasses.replace(SMALL.time, tick_rate=declared)
    stream = make(layout=dataclasses.replace(SMALL, time=time))
    looks(stream)
    monkeypatch.setattr(stream, "_measured_tick_rate", lambda: measured)
    looks(stream)
    assert not caplog.records, "it may be a moment only"
    for _ in range(5):
        looks(stream)
    said = "time goes on at 1.04e+06 ticks per second, but the layout's tick_rate is 1e+06"
    assert [said in record.getMessage() for record in caplog.records] == [True] * is_said
    stream.stop()


def test_thread_ends_with_the_last_stream(make, monkeypatch):
    monkeypatch.setattr("speadrx.receive.watch.LOOK_INTERVAL", 0.01)
    gc.collect()  # streams that are garbage, but not yet gone
    streams = [make(), make(affinity=[-1, -1])]

    def running():
        return any(thread.name == "speadrx-watch" for thread in threading.enumerate())

    assert running()
    for stream in streams:
        stream.stop()
    wait_for(lambda: not running())
    third = make()
    assert running()
    third.stop()


class Probe:
    """Something to look at, once."""

    interval = 0.01

    def __init__(self, error=None):
        self.looked = threading.Event()
        self._error = error

    def look(self, now):
        self.looked.set()
        if self._error is not None:
            raise self._error
        return False


def test_added_while_another_is_added():
    """As where a signal handler or a finaliser makes a stream in the midst of making another."""

    class Interrupted(list):
        def append(self, one):
            if one is probes[0]:
                watch.add(probes[1])
            super().append(one)

    probes = [Probe(), Probe()]
    watch = speadrx.receive.watch._Watch()
    watch._watched = Interrupted()
    watch.add(probes[0])
    for probe in probes:
        assert probe.looked.wait(60)


def test_added_while_others_are_let_go():
    """Nor is it forgotten then."""

    class Interrupted(list):
        def remove(self, one):
            super().remove(one)
            if one is probes[0]:
                watch.add(probes[1])

    probes = [Probe(), Probe()]
    watch = speadrx.receive.watch._Watch()
    watch._watched = Interrupted()
    watch.add(probes[0])
    for probe in probes:
        assert probe.looked.wait(60)


def test_interrupt_before_the_thread_begins(monkeypatch):
    """Ctrl-C comes while the first stream is made; the next one is watched all the same."""

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    watch = speadrx.receive.watch._Watch()
    with monkeypatch.context() as patch:
        patch.setattr("speadrx.receive.watch.threading", types.SimpleNamespace(Thread=interrupted))
        with pytest.raises(KeyboardInterrupt):
            watch.add(Probe())
    probe = Probe()
    watch.add(probe)
    assert probe.looked.wait(60)


@pytest.mark.parametrize("error", [ValueError("of one"), BaseException("like a panic of the core")])
def test_error_of_one_does_not_concern_others(caplog, error):
    watch = speadrx.receive.watch._Watch()
    probes = [Probe(error), Probe()]
    for probe in probes:
        watch.add(probe)
    for probe in probes:
        assert probe.looked.wait(60)
    wait_for(lambda: caplog.records)
    assert "a stream is no longer watched" in caplog.text
