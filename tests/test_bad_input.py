"""Bad input to every public function: the type of the error, and that its message names the field and the value."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import spead2
import spead2.recv
from prometheus_client import CollectorRegistry
from speadrx.stats import StatsCollector

import speadrx
from example_layouts import ANTENNA, BASE, MEERKAT, STATUS, TIME
from speadrx import Layout, LayoutError, Receiver, SideItem, TimeAxis, collectors
from speadrx.metrics.rings import RingCollector
from speadrx.receive.endpoints import parse_endpoints
from speadrx.simulate import Faults, InprocSink, PcapSink, Simulator, UdpSink

SMALL = Layout(heap_bytes=8, time=TimeAxis(item=0x1600, step=16, batches=4), axes=(ANTENNA,), sources="antenna")
TIMED = dataclasses.replace(SMALL, time=TimeAxis(item=0x1600, step=16, batches=4, tick_rate=16.0))


def rings(n: int = 8) -> dict[str, Any]:
    return {
        "data_ringbuffer": spead2.recv.ChunkRingbuffer(n),
        "free_ringbuffer": spead2.recv.ChunkRingbuffer(n),
    }


def layout(**changes: Any) -> Layout:
    return Layout(**{**BASE, **changes})


def time(**changes: Any) -> Layout:
    return layout(time=dataclasses.replace(TIME, **changes))


def axis(**changes: Any) -> Layout:
    return layout(axes=(dataclasses.replace(ANTENNA, **changes), BASE["axes"][1]))


def side(**changes: Any) -> Layout:
    return layout(side_items=(dataclasses.replace(STATUS, **changes),))


def stream(**changes: Any) -> Any:
    made = speadrx.make_stream(**{"layout": SMALL, "max_active_chunks": 2, **rings(), **changes})
    made.stop()
    return made


def group(**changes: Any) -> Any:
    arguments = {"layout": SMALL, "max_active_chunks": 2, "affinity": [-1, -1], **rings(), **changes}
    made = speadrx.make_stream_group(**arguments)
    made.stop()
    return made


def receiver(layout: Any = SMALL, sources: Any = ("127.0.0.1", 7148), **changes: Any) -> Any:
    made = Receiver(layout, sources, **changes)
    made.stop()
    return made


def reader(**changes: Any) -> None:
    made = speadrx.make_stream(layout=SMALL, max_active_chunks=2, **rings())
    try:
        speadrx.add_reader(**{"stream": made, "src": [("127.0.0.1", 7148)], **changes})
    finally:
        made.stop()


def chunk(**changes: Any) -> Any:
    buffers = {"data": np.zeros(96, np.uint8), "present": np.zeros(12, bool)}
    return speadrx.Chunk(**{"sink": stream(), **buffers, **changes})


def fill(**changes: Any) -> None:
    buffers = {"data": np.zeros(96, np.uint8), "present": np.zeros(12, bool)}
    speadrx.fill_missing(**{"layout": SMALL, **buffers, "fill": 0, **changes})


def exporter(*labels: str) -> Any:
    return collectors.Exporter(labels, registry=CollectorRegistry())


def stats(**changes: Any) -> Any:
    return StatsCollector(**{"counter_map": {"heaps": ("heaps", "Heaps")}, "registry": CollectorRegistry(), **changes})


def started(**changes: Any) -> None:
    made = Receiver(SMALL, **changes)
    try:
        made.start()
    finally:
        made.stop()


#: By public name: what is called, the error, and what its message has.
CASES: dict[str, list[tuple[Any, type[Exception], list[str]]]] = {
    "Layout": [
        (lambda: layout(heap_bytes=0), LayoutError, ["heap_bytes", "0", "at least 1"]),
        (lambda: layout(heap_bytes=-8), LayoutError, ["heap_bytes", "-8"]),
        (lambda: layout(heap_bytes="8"), LayoutError, ["heap_bytes", "8"]),
        (lambda: layout(axes=ANTENNA), LayoutError, ["axes", "Axis"]),
        (lambda: layout(order=("time", "antenna")), LayoutError, ["order", "time", "pol"]),
        (lambda: layout(order=("time", "antenna", "beam")), LayoutError, ["order", "beam", "antenna"]),
        (lambda: layout(strides={"beam": 8}), LayoutError, ["strides", "beam", "antenna"]),
        (lambda: layout(strides={"antenna": 4}), LayoutError, ['strides["antenna"]', "4", "overlap"]),
        (lambda: layout(strides=8), LayoutError, ["strides", "8", "mapping"]),
        (lambda: layout(sources="beam"), LayoutError, ["sources", "beam", "antenna"]),
        (lambda: layout(source_labels=("a", "b")), LayoutError, ["source_labels", "2", "3"]),
        (lambda: layout(source_labels="abc"), LayoutError, ["source_labels", "'abc'", "sequence"]),
        (lambda: layout(required_items=(2**63,)), LayoutError, ["required_items", str(2**63)]),
        (lambda: layout(dtype="int17"), LayoutError, ["dtype", "'int17'", "int16"]),
        (lambda: layout(dtype="V2"), LayoutError, ["dtype", "'V2'"]),
        (lambda: layout(dtype="O"), LayoutError, ["dtype", "'object'", "numeric"]),
        (lambda: layout(dtype="complex128"), LayoutError, ["heap_bytes", "8", "16"]),
        (lambda: layout(heap_shape=(3,)), LayoutError, ["heap_shape", "(3,)", "8"]),
        (lambda: layout(heap_shape=8), LayoutError, ["heap_shape", "8", "sequence"]),
    ],
    "TimeAxis": [
        (lambda: time(item=-1), LayoutError, ["time.item", "-1"]),
        (lambda: time(step=0), LayoutError, ["time.step", "0", "at least 1"]),
        (lambda: time(step=12, align="mask"), LayoutError, ["time.step", "12", "power of two"]),
        (lambda: time(batches=0), LayoutError, ["time.batches", "0", "at least 1"]),
        (lambda: time(batches=2**60), LayoutError, ["time", str(2**60)]),
        (lambda: time(tick_rate=-1.0), LayoutError, ["time.tick_rate", "-1", "positive"]),
        (lambda: time(tick_rate=math.nan), LayoutError, ["time.tick_rate", "NaN", "positive"]),
        (lambda: time(align="round"), LayoutError, ["time.align", "round", "mask"]),
    ],
    "Axis": [
        (lambda: axis(size=0), LayoutError, ["axes[0].size", "0", "at least 1"]),
        (lambda: axis(size=None), LayoutError, ["axes[0].size", "size or values"]),
        (lambda: axis(item=None), LayoutError, ["axes[0].item", "absent"]),
        (lambda: axis(shift=63), LayoutError, ["axes[0].shift", "63"]),
        (lambda: axis(mask=0), LayoutError, ["axes[0].mask", "0", "at least one"]),
        (lambda: axis(values=(1, 2)), LayoutError, ["axes[0].size", "3", "values"]),
        (lambda: axis(size=None, values=(1, 1)), LayoutError, ["axes[0].values", "1"]),
        (lambda: axis(values=7), LayoutError, ["values", "7", "sequence"]),
        (lambda: axis(name="time"), LayoutError, ["axes", '"time"', "twice"]),
        (lambda: axis(from_user_data="pol"), LayoutError, ["axes[0].item", "16641", "from_user_data"]),
    ],
    "SideItem": [
        (lambda: side(dtype="u12"), LayoutError, ["side_items[0].dtype", "u12", "u16"]),
        (lambda: side(shift=64), LayoutError, ["side_items[0].shift", "64", "63"]),
        (lambda: layout(side_items=(STATUS, STATUS)), LayoutError, ["side_items", '"status"', "twice"]),
        (lambda: layout(side_items=(SideItem(name="", item=1),)), LayoutError, ["side_items[0].name"]),
    ],
    "meerkat": [
        (lambda: type(MEERKAT[0])(10, 4096, 65537), ValueError, ["chunk_samples", "65537", "4096"]),
        (lambda: type(MEERKAT[0])(10, 3, 6), ValueError, ["heap_samples", "3", "10 bits"]),
        (lambda: dataclasses.replace(MEERKAT[1], n_ants=0), ValueError, ["n_ants", "0", "at least 1"]),
        (lambda: dataclasses.replace(MEERKAT[2], sample_bits=4), ValueError, ["sample_bits", "4", "multiple of 8"]),
        (lambda: dataclasses.replace(MEERKAT[2], n_channels=100), ValueError, ["n_channels", "100", "64"]),
    ],
    "view": [
        (lambda: SMALL.view(np.zeros(95, np.uint8)), ValueError, ["data", "95", "96"]),
        (lambda: SMALL.view(np.zeros(192, np.uint8)[::2]), ValueError, ["data", "(96,)", "C-contiguous"]),
        (lambda: MEERKAT[2].chunk_place(None), ValueError, ["user_data", "'pol'"]),
    ],
    "make_stream": [
        (lambda: stream(layout=BASE), TypeError, ["layout", "heap_bytes"]),
        (lambda: stream(max_active_chunks=0), ValueError, ["max_active_chunks", "0"]),
        (lambda: stream(max_active_chunks=1.5), TypeError, ["max_active_chunks", "1.5", "integer"]),
        (lambda: stream(data_ringbuffer=[]), TypeError, ["data_ringbuffer", "list", "ChunkRingbuffer"]),
        (lambda: stream(free_ringbuffer=None), TypeError, ["free_ringbuffer", "NoneType"]),
        (lambda: stream(affinity=4096), ValueError, ["affinity", "4096"]),
        (lambda: stream(affinity=None), TypeError, ["affinity", "None"]),
        (lambda: stream(stream_stats="heaps"), TypeError, ["stream_stats", "'heaps'"]),
        (lambda: stream(stream_stats=["a"] * 99), ValueError, ["stream_stats", "99"]),
        (lambda: stream(spead_items=[0x1600]), ValueError, ["spead_items", "0x4101"]),
        (lambda: stream(spead_items=["time"]), TypeError, ["spead_items", "'time'"]),
        (lambda: stream(user_data={}), TypeError, ["user_data", "dict"]),
        (lambda: stream(user_data=np.zeros(3, SMALL.user_data_dtype)), ValueError, ["user_data", "(3,)", "(1,)"]),
        (lambda: stream(max_heap_extra=-1), ValueError, ["max_heap_extra", "-1"]),
        (lambda: stream(resync=None), TypeError, ["resync", "None"]),
        (lambda: stream(max_jump=0), ValueError, ["max_jump", "0"]),
        (lambda: stream(flush_after=-1, resync=True), ValueError, ["flush_after", "-1"]),
        (lambda: stream(flush_after="1", resync=True), TypeError, ["flush_after", "'1'"]),
        (lambda: stream(layout=TIMED, flush_after=0.5, resync=True), ValueError, ["flush_after", "0.5", "1 s"]),
        (lambda: stream(max_heaps="8"), TypeError, ["max_heaps", "'8'"]),
        (lambda: stream(max_heaps=0), ValueError, ["max_heaps", "0"]),
        (lambda: stream(max_heap=8), TypeError, ["max_heap", "max_heaps"]),
    ],
    "make_stream_group": [
        (lambda: group(affinity=[]), ValueError, ["affinity", "empty", "at least one"]),
        (lambda: group(affinity=2), TypeError, ["affinity", "2", "sequence"]),
        (lambda: group(user_data=np.zeros(3, SMALL.user_data_dtype)), ValueError, ["user_data", "(3,)", "(2,)"]),
    ],
    "flush, drain": [
        (lambda: stream().flush(), ValueError, ["flush", "resync=True"]),
    ],
    "Chunk": [
        (lambda: chunk(sink=None), TypeError, ["sink", "NoneType"]),
        (lambda: chunk(data=np.zeros(95, np.uint8)), ValueError, ["data", "95", "96"]),
        (lambda: chunk(data=np.zeros(96, object)), ValueError, ["data", "object"]),
        (lambda: chunk(data=7), TypeError, ["data", "int", "buffer"]),
        (lambda: chunk(present=np.zeros(11, bool)), ValueError, ["present", "11", "12"]),
        (lambda: chunk(present=np.zeros(12, np.int16)), ValueError, ["present", "int16", "uint8"]),
        (lambda: chunk(data=None), ValueError, ["data", "no buffer"]),
        (lambda: chunk(data=np.zeros((96, 2), np.uint8)[:, 0]), ValueError, ["data", "(96,)", "C-contiguous"]),
    ],
    "ChunkPool": [
        (lambda: speadrx.ChunkPool(object(), 2), TypeError, ["sink", "object"]),
        (lambda: speadrx.ChunkPool(stream(), 0), ValueError, ["n", "0", "1 to 8"]),
        (lambda: speadrx.ChunkPool(stream(), 9), ValueError, ["n", "9", "1 to 8"]),
        (lambda: speadrx.ChunkPool(stream(), "2"), TypeError, ["n", "'2'", "integer"]),
    ],
    "add_reader": [
        (lambda: reader(stream=group()), TypeError, ["stream", "group"]),
        (lambda: reader(stream=7), TypeError, ["stream", "int"]),
        (lambda: reader(stream=stream()), ValueError, ["stream", "stopped"]),
        (lambda: reader(src=[]), ValueError, ["src", "empty"]),
        (lambda: reader(src=7148), TypeError, ["src", "7148"]),
        (lambda: reader(src=["127.0.0.1"]), ValueError, ["src", "'127.0.0.1'", "(host, port)"]),
        (lambda: reader(src=[("127.0.0.1", 0)]), ValueError, ["src", "0", "1 to 65535"]),
        (lambda: reader(src=[("no.such.host.invalid", 1)]), ValueError, ["src", "no.such.host.invalid"]),
        (lambda: reader(src="no.pcap"), FileNotFoundError, ["src", "no.pcap"]),
        (lambda: reader(src=__file__), ValueError, ["src", __file__, "not a pcap"]),
        (lambda: reader(interface="no-such"), ValueError, ["interface", "'no-such'", "IPv4"]),
        (lambda: reader(interface=1), TypeError, ["interface", "1"]),
        (lambda: reader(interface="127.0.0.2"), ValueError, ["interface", "127.0.0.2", "127.0.0.1:7148"]),
        (lambda: reader(ibv=True), ValueError, ["interface", "None", "ibv"]),
        (lambda: reader(buffer=-1), ValueError, ["buffer", "-1"]),
        (lambda: reader(buffer=1, buffer_size=2), TypeError, ["buffer", "1", "2"]),
        (lambda: reader(max_size=0), ValueError, ["max_size", "0"]),
        (lambda: reader(comp_vector=0.5), TypeError, ["comp_vector", "0.5"]),
    ],
    "fill_missing": [
        (lambda: fill(layout=BASE), TypeError, ["layout", "heap_bytes"]),
        (lambda: fill(fill=-1), ValueError, ["fill", "-1", "0 to 255"]),
        (lambda: fill(fill=b"abc"), ValueError, ["fill", "3 bytes", "8 bytes of a heap"]),
        (lambda: fill(fill=0.5), ValueError, ["fill", "0.5", "whole number"]),
        (lambda: fill(data=np.zeros(95, np.uint8)), ValueError, ["data", "95", "96"]),
        (lambda: fill(data=b"x" * 96), ValueError, ["data", "read-only"]),
        (lambda: fill(present=np.zeros(11, bool)), ValueError, ["present", "11", "12"]),
        (lambda: fill(data=7), TypeError, ["data", "int", "buffer"]),
    ],
    "iter_chunks": [
        (lambda: speadrx.iter_chunks(rings()["data_ringbuffer"]), TypeError, ["stream", "ChunkRingbuffer"]),
    ],
    "Receiver": [
        (lambda: receiver(layout="array.toml"), TypeError, ["layout: ", "'array.toml'"]),
        (lambda: receiver(sources=7148), TypeError, ["sources: ", "7148"]),
        (lambda: receiver(sources=b"a:1"), TypeError, ["sources: ", "b'a:1'"]),
        (lambda: receiver(sources=[7148]), TypeError, ["sources: ", "7148"]),
        (lambda: receiver(sources="a:0"), ValueError, ["sources: ", "'a:0'", "1 to 65535"]),
        (lambda: receiver(sources="300.0.0.1+1:7148"), ValueError, ["sources: ", "300.0.0.1"]),
        (lambda: receiver(sources={"a": 1}), TypeError, ["sources: ", "{'a': 1}"]),
        (lambda: receiver(sources="127.0.0.1:7148,"), ValueError, ["sources: ", "''", "host:port"]),
        (lambda: receiver(sources=[]), ValueError, ["sources: ", "[]", "at least one"]),
        (lambda: receiver(sources=["a.pcap", ("127.0.0.1", 7148)]), ValueError, ["sources: ", "a.pcap", "mergecap"]),
        (lambda: receiver(sources=["a.pcap", "b.pcap"], threads=2), ValueError, ["sources: ", "a.pcap", "window"]),
        (
            lambda: receiver(sources=[spead2.InprocQueue(), "127.0.0.1:7148"]),
            ValueError,
            ["sources: ", "in-process queue", "a thread for each"],
        ),
        (lambda: receiver(max_active_chunks=5), TypeError, ["max_active_chunks: ", "5", "make_stream"]),
        (lambda: receiver(data_ringbuffer=None), TypeError, ["data_ringbuffer: ", "None", "make_stream"]),
        (lambda: receiver(explicit_start=True), ValueError, ["explicit_start: ", "started"]),
        (lambda: receiver(user_data=3), TypeError, ["user_data: ", "3", "mapping"]),
        (lambda: receiver(threads=0), ValueError, ["threads: 0", "at least 1"]),
        (lambda: receiver(threads=1.0), TypeError, ["threads: ", "1.0", "integer"]),
        (lambda: receiver(threads=2), ValueError, ["threads: 2", "1 sources"]),
        (lambda: receiver(affinity=[0, 0]), ValueError, ["affinity: ", "[0, 0]", "1 thread(s)"]),
        (lambda: receiver(affinity=99999), ValueError, ["affinity: ", "99999"]),
        (lambda: receiver(affinity="0"), TypeError, ["affinity: ", "'0'"]),
        (lambda: receiver(window=0), ValueError, ["window: 0", "at least 1"]),
        (lambda: receiver(window=2, tolerance_bytes=3), ValueError, ["tolerance_bytes: 3", "window 2"]),
        (
            lambda: receiver(TIMED, tolerance_seconds=1, tolerance_bytes=3),
            ValueError,
            ["tolerance_bytes: 3", "tolerance_seconds 1"],
        ),
        (lambda: receiver(TIMED, tolerance_seconds="1"), TypeError, ["tolerance_seconds: ", "'1'"]),
        (lambda: receiver(TIMED, tolerance_seconds=True), TypeError, ["tolerance_seconds: ", "True"]),
        (lambda: receiver(TIMED, tolerance_seconds=-1), ValueError, ["tolerance_seconds: -1"]),
        (lambda: receiver(TIMED, tolerance_seconds=math.nan), ValueError, ["tolerance_seconds: nan"]),
        (lambda: receiver(tolerance_seconds=1), ValueError, ["tolerance_seconds: 1", "tick_rate"]),
        (lambda: receiver(tolerance_bytes=-1), ValueError, ["tolerance_bytes: -1"]),
        (lambda: receiver(tolerance_bytes=0.5), TypeError, ["tolerance_bytes: ", "0.5"]),
        (lambda: receiver(chunks=2, window=2), ValueError, ["chunks: 2", "2 in the window"]),
        (lambda: receiver(chunks="8"), TypeError, ["chunks: ", "'8'"]),
        (lambda: receiver(chunks=2**50), MemoryError, ["chunks: 1125899906842624", "96 bytes each"]),
        (lambda: receiver(buffer=-1), ValueError, ["buffer: -1"]),
        (lambda: receiver(metrics_port=65536), ValueError, ["metrics_port: 65536"]),
        (lambda: receiver(metrics_port="8000"), TypeError, ["metrics_port: ", "'8000'"]),
        (lambda: receiver(metrics_address=None), TypeError, ["metrics_address: ", "None", "127.0.0.1"]),
        (
            lambda: started(sources="127.0.0.1:7148", metrics_port=0, metrics_address="x y"),
            OSError,
            ["metrics_address", "'x y'"],
        ),
        (lambda: receiver(labels=["stream"]), TypeError, ["labels: ", "['stream']"]),
        (lambda: receiver(labels={"le": "1"}), ValueError, ["labels: ", "'le'", "taken"]),
        (lambda: receiver(labels={"l-band": "1"}), ValueError, ["labels: ", "'l-band'", "letters"]),
        (lambda: receiver(resync=1), TypeError, ["resync: ", "1"]),
        (lambda: receiver(max_jump=0), ValueError, ["max_jump: 0"]),
        (lambda: receiver(flush_after=0), ValueError, ["flush_after: 0"]),
        (lambda: receiver(flush_after=1, resync=False), ValueError, ["flush_after: 1", "resync"]),
        (lambda: receiver(max_hepas=3), TypeError, ["max_hepas", "max_heaps"]),
        (lambda: receiver(fill=256), ValueError, ["fill", "256", "uint8", "0 to 255"]),
        (lambda: receiver(fill="x"), TypeError, ["fill", "'x'", "number"]),
        (lambda: receiver(user_data={"pol": 1}), ValueError, ["user_data: 'pol'", "none"]),
        (lambda: receiver(user_data=[{}, {}]), ValueError, ["user_data: ", "2 mappings", "1 thread(s)"]),
        (lambda: receiver(user_data=[1]), TypeError, ["user_data: ", "1"]),
        (lambda: receiver(MEERKAT[2], user_data={"pol": "x"}), TypeError, ["user_data['pol']", "'x'"]),
        (lambda: receiver(MEERKAT[2], user_data={"pol": 2}), LayoutError, ["pol", "2"]),
        (lambda: receiver(MEERKAT[2]), ValueError, ["user_data", "'pol'"]),
        (lambda: started(sources="no.pcap"), FileNotFoundError, ["src", "no.pcap"]),
        (lambda: started(sources="203.0.113.1:7148"), OSError, ["src", "203.0.113.1:7148"]),
        (lambda: started(sources=("127.0.0.1", 0)), ValueError, ["src", "0", "1 to 65535"]),
    ],
    "layouts": [
        (lambda: speadrx.layouts.load("meerkat-digitizer"), LayoutError, ["meerkat-digitizer", "meerkat-digitiser"]),
        (lambda: speadrx.layouts.load("meerkat-digitiser", ["time.step=0"]), LayoutError, ["time.step", "0"]),
        (lambda: speadrx.layouts.load("meerkat-digitiser", ["x"]), LayoutError, ["'x'", "PATH=VALUE"]),
        (lambda: speadrx.layouts.summary("x"), LayoutError, ["name", "'x'", "meerkat-digitiser"]),
    ],
    "parse_endpoints": [
        (lambda: parse_endpoints("localhost"), ValueError, ["endpoint", "'localhost'", "no port", "localhost:7148"]),
        (lambda: parse_endpoints("a:99999"), ValueError, ["endpoint", "99999", "1 to 65535"]),
    ],
    "collectors": [
        (lambda: exporter("source"), ValueError, ["labelnames", "'source'"]),
        (lambda: exporter("a-b"), ValueError, ["labelnames", "'a-b'"]),
        (lambda: collectors.Exporter("stream"), TypeError, ["labelnames", "'stream'"]),
        (lambda: exporter("stream").add(stream(), "wide"), TypeError, ["labels", "'wide'"]),
        (lambda: exporter("stream").add(stream(), []), ValueError, ["labels", "stream"]),
        (lambda: exporter().add(object()), TypeError, ["object"]),
        (lambda: exporter().serve(65536), ValueError, ["port", "65536"]),
        (lambda: RingCollector(interval=0), ValueError, ["interval", "0"]),
        (lambda: stats().add_stream(stream(), ["wide"]), ValueError, ["labels", "wide"]),
        (lambda: stats(counter_map={"x": ("x", "X")}).add_stream(stream()), IndexError, ["counter_map", "'x'"]),
    ],
    "simulate": [
        (lambda: Faults(loss=1.5), ValueError, ["loss", "1.5", "0 to 1"]),
        (lambda: Faults(duplicate=math.nan), ValueError, ["duplicate", "nan"]),
        (lambda: Faults(reorder=-1), ValueError, ["reorder", "-1"]),
        (lambda: Faults(garbage_kinds=("rubbish",)), ValueError, ["garbage_kinds", "'rubbish'", "timestamp"]),
        (lambda: Simulator(SMALL, first_timestamp=8), ValueError, ["first_timestamp", "8", "16"]),
        (lambda: Simulator(SMALL, timestamp_jitter=1), ValueError, ["timestamp_jitter", "1"]),
        (lambda: Simulator(SMALL, payload_item=1), ValueError, ["payload_item", "0x1"]),
        (lambda: Simulator(SMALL, max_packet_size=40), ValueError, ["max_packet_size", "40"]),
        (lambda: Simulator(MEERKAT[2]), ValueError, ["user_data", "'pol'"]),
        (lambda: Simulator(MEERKAT[2], user_data={"pol": 2}), ValueError, ["user_data", "pol", "2"]),
        (lambda: Simulator(SMALL).send(InprocSink(spead2.InprocQueue()), 1, rate=0), ValueError, ["rate", "0"]),
        (lambda: UdpSink([]), ValueError, ["endpoints", "at least one"]),
        (lambda: UdpSink([("127.0.0.1", 0)]), ValueError, ["endpoints", "0", "1 to 65535"]),
        (lambda: UdpSink([("239.1.2.3", 1)], interface="lo"), ValueError, ["interface", "'lo'"]),
        (lambda: PcapSink("/nonexistent/x.pcap"), FileNotFoundError, ["/nonexistent/x.pcap"]),
        (lambda: PcapSink("x.pcap", endpoint=("::1", 1)), ValueError, ["endpoint", "'::1'", "IPv4"]),
    ],
}


@pytest.mark.parametrize(
    ("call", "error", "parts"),
    [pytest.param(*case, id=f"{name}-{number}") for name, cases in CASES.items() for number, case in enumerate(cases)],
)
def test_bad_input(call, error, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as info:
        call()
    assert type(info.value) is error
    message = str(info.value)
    for part in parts:
        assert part in message
    assert len(message) < 1000
