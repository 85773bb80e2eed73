"""What a run saw over time: against a list of all batches, through real streams, and through files."""

import dataclasses
import json
import threading

import numpy as np
import pytest
import spead2
from speadrx.history import History

import receiving
from speadrx import Axis, Chunk, Layout, Receiver, TimeAxis
from speadrx.accounts.fields import FieldError
from speadrx.simulate import Faults, InprocSink, Simulator

SEEDS = range(4)
TICK_RATE = 1e9


def layout_of(rng, order, *, tick_rate):
    return Layout(
        heap_bytes=8,
        time=TimeAxis(item=0x1600, step=100, batches=int(rng.integers(1, 9)), tick_rate=tick_rate),
        axes=(
            Axis(name="antenna", item=0x4101, size=int(rng.integers(1, 6))),
            Axis(name="band", item=0x4103, values=(7, 3)),
        ),
        order=order,
        sources=rng.choice(["antenna", "band", None]),
    )


class Watched(receiving.Receiver):
    """A receiver that keeps a history, and all that the slow version of one needs."""

    def __init__(self, layout, max_rows):
        self.history = History(layout, max_rows=max_rows)
        self.seen = []
        super().__init__(layout, resync=True, window=3)

    def _copy(self, chunk):
        self.history.add(chunk)
        self.seen.append((chunk.chunk_id, chunk.timestamp, chunk.present.copy()))
        return super()._copy(chunk)


def all_batches(rx):
    """Restarts before it, number, and heaps present by source, of each batch in the order of reception."""
    layout, epochs = rx.layout, rx.stream.epochs()
    order = layout.order or ("time", "antenna", "band")
    time = order.index("time")
    others = tuple(i for i, name in enumerate(order) if name not in ("time", layout.sources))
    restarts_before = None
    found = []
    for chunk_id, timestamp, present in rx.seen:
        restarts = sum(epoch.cause == "restart" for epoch in epochs if epoch.chunk_id <= chunk_id)
        by_source = present.sum(axis=others, keepdims=True).swapaxes(0, time).reshape(layout.chunk_batches, -1)
        first = timestamp // layout.time.step
        batches = list(enumerate(by_source.tolist(), first))
        risen = 0 if restarts_before is None else restarts - restarts_before
        if restarts_before is None or risen:
            while not any(batches[0][1]):
                batches.pop(0)
        else:
            batches = [(n, [0] * by_source.shape[1]) for n in range(found[-1][1] + 1, first)] + batches
        found += [(risen if not i else 0, n, heaps) for i, (n, heaps) in enumerate(batches)]
        while not any(found[-1][2]):  # unless there is a later chunk, they are not known to have been sent
            found.pop()
        restarts_before = restarts
    return found


def assert_same(history, batches):
    """The rows are these batches, cut into pieces."""
    position = 0
    for timestamp, length, restarts, present in zip(
        history.timestamps, history.batches, history.row_restarts, history.present_by_row, strict=True
    ):
        piece = batches[position : position + length]
        assert length <= history.row_batches
        assert timestamp == piece[0][1] * history.axes.time_step
        assert restarts == piece[0][0]
        assert not any(batch[0] for batch in piece[1:])  # a restart begins a row
        np.testing.assert_array_equal(present, np.sum([batch[2] for batch in piece], axis=0))
        position += length
    assert position == len(batches)
    # A row ends where it must, and nowhere else.
    ends = history.timestamps[1:][history.row_restarts[1:] == 0] // history.axes.time_step
    assert not (ends % history.row_batches).any()


def assert_totals(history, accounting):
    np.testing.assert_array_equal(history.present_by_source, accounting.present_by_source)
    np.testing.assert_array_equal(history.missing_by_source, accounting.missing_by_source)
    np.testing.assert_array_equal(history.expected_by_source, accounting.expected_by_source)
    assert history.restarts == accounting.restarts
    assert history.chunks == accounting.chunks


def send_phases(rng, rx):
    """Send with faults; between times, senders go on, pause, go back, or jump far ahead; or all is flushed."""
    layout = rx.layout
    sink = InprocSink(rx.queues[0])
    batch = int(rng.integers(1, 40))
    faults = Faults(loss=0.2, reorder=5, duplicate=0.02)
    for _ in range(int(rng.integers(2, 7))):
        length = int(rng.integers(20, 120))
        Simulator(layout, seed=int(rng.integers(1000)), first_timestamp=batch * layout.time.step, faults=faults).send(
            sink, batches=length
        )
        batch += length
        kind = rng.choice(["on", "pause", "back", "ahead", "flush"])
        if kind == "pause":
            batch += 2 * layout.chunk_batches + 1
        elif kind == "back":
            batch = int(rng.integers(0, 20))
        elif kind == "ahead":
            batch += int(rng.integers(10**4, 10**9))
        elif kind == "flush":
            rx.stream.flush()


@pytest.mark.parametrize("tick_rate", [None, TICK_RATE])
@pytest.mark.parametrize("order", [None, ("antenna", "time", "band"), ("band", "antenna", "time")])
@pytest.mark.parametrize("max_rows", [16, 50, 4096])
@pytest.mark.parametrize("seed", SEEDS)
def test_history_is_that_of_all_batches(seed, max_rows, order, tick_rate, rng):
    rx = Watched(layout_of(rng, order, tick_rate=tick_rate), max_rows)
    try:
        send_phases(rng, rx)
        rx.finish()
    finally:
        rx.close()
    history = rx.history
    assert_totals(history, rx.iterator.accounting)
    assert len(history.batches) <= max_rows
    if rx.iterator.accounting.expected < 10**6:  # else there are too many missing batches to list them
        assert_same(history, all_batches(rx))
    assert json.loads(json.dumps(history.to_json())) == History.from_json(history.to_json()).to_json()


def made(layout, *, max_rows=64):
    """A history, and a function that adds a chunk at a time (in chunks) with these heaps present."""

    class Sink:
        def add_free_chunk(self, chunk):
            pass

    sink = Sink()
    history = History(layout, max_rows=max_rows)
    data = np.zeros(layout.chunk_bytes, np.uint8)

    def add(number, present=True):
        array = np.zeros(layout.present_shape, np.bool_)
        array[...] = present
        chunk = Chunk(sink=sink, data=data, present=array, timestamp=number * layout.chunk_timestamp_step)
        history.add(chunk)

    add.keep = sink
    return history, add


SIMPLE = Layout(
    heap_bytes=8,
    time=TimeAxis(item=0x1600, step=10, batches=4),
    axes=(Axis(name="antenna", item=0x4101, size=3),),
    sources="antenna",
)


def test_rows_double_when_there_are_too_many():
    history, add = made(SIMPLE, max_rows=16)
    for number in range(100):
        add(number)
    assert history.row_batches == 32
    np.testing.assert_array_equal(history.batches, [32] * 12 + [16])
    np.testing.assert_array_equal(history.present_by_row[0], [32] * 3)
    assert history.missing_by_source.sum() == 0


def test_gap_of_any_length_takes_no_more_rows():
    history, add = made(SIMPLE, max_rows=16)
    add(0)
    add(2**50)
    assert len(history.batches) <= 16
    assert history.batches.sum() == 4 * (2**50 + 1)
    np.testing.assert_array_equal(history.present_by_source, [8] * 3)
    assert history.present_by_row[-1].tolist() == [4] * 3


def test_time_that_always_begins_anew_takes_no_more_rows():
    history, add = made(SIMPLE, max_rows=16)
    for number in reversed(range(1000)):
        add(number)
    assert history.restarts == 999
    assert len(history.batches) <= 16
    assert history.batches.sum() == 4000
    assert history.present_by_source.tolist() == [4000] * 3
    assert not history.missing_by_source.any()


def test_first_chunk_counts_from_the_first_heap():
    history, add = made(SIMPLE)
    present = np.zeros((4, 3))
    present[2, 1] = 1
    add(7, present)
    np.testing.assert_array_equal(history.timestamps, [300])
    np.testing.assert_array_equal(history.present_by_row, [[0, 1, 0]])
    assert history.missing_by_source.tolist() == [1, 0, 1]


def test_rest_of_a_chunk_counts_once_a_later_one_comes():
    history, add = made(SIMPLE)
    present = np.zeros((4, 3))
    present[1, 0] = 1
    add(7, present)
    assert history.expected_by_source.tolist() == [1, 1, 1]
    add(8, present)
    assert history.expected_by_source.tolist() == [5, 5, 5]
    np.testing.assert_array_equal(history.present_by_row.sum(axis=0), [2, 0, 0])
    np.testing.assert_array_equal(history.batches, [1, 1, 1, 1, 1])


def test_chunk_without_heaps_is_none():
    history, add = made(SIMPLE)
    add(3, False)
    assert (history.chunks, len(history.batches)) == (0, 0)
    assert History.from_json(history.to_json()).to_json() == history.to_json()


def test_what_cannot_be_added_is_refused():
    history, add = made(SIMPLE)
    add(1)
    chunk = Chunk(sink=add.keep)
    with pytest.raises(ValueError, match="chunk: has no present"):
        history.add(chunk)
    with pytest.raises(ValueError, match="read from a file"):
        History.from_json(history.to_json()).add(chunk)
    with pytest.raises(TypeError, match="layout: given str"):
        History("layout")
    with pytest.raises(ValueError, match="max_rows: 15 must be at least 16"):
        History(SIMPLE, max_rows=15)


def test_chunk_that_is_added_twice_is_refused():
    rx = receiving.Receiver(SIMPLE)
    history = History(SIMPLE)
    errors = []

    def add_twice(chunk):
        history.add(chunk)
        try:
            history.add(chunk)
        except ValueError as exc:
            errors.append(str(exc))
        return chunk

    rx._copy = add_twice
    try:
        Simulator(SIMPLE).send(InprocSink(rx.queues[0]), batches=8)
        rx.finish()
    finally:
        rx.close()
    assert errors == [f"chunk: given ID {i} after ID {i}, but wanted a newer chunk each time" for i in range(2)]
    assert_totals(history, rx.iterator.accounting)


def test_receiver_with_threads_gives_the_same_totals(tmp_path):
    queues = [spead2.InprocQueue() for _ in range(2)]
    faults = Faults(loss=0.1, garbage=0.05, duplicate=0.05)
    sinks = [InprocSink(queue) for queue in queues]

    class Both:
        def send(self, flow, packet):
            sinks[flow % 2].send(flow, packet)

    Simulator(SIMPLE, faults=faults).send(Both(), batches=400)
    history = History(SIMPLE)
    with Receiver(SIMPLE, queues, threads=2, window=8) as receiver:
        threading.Timer(0, lambda: [queue.stop() for queue in queues]).start()
        for chunk in receiver:
            with chunk:
                history.add(chunk)
    stats = receiver.stats()
    history.finish(stats)
    assert_totals(history, receiver.accounting)
    path = tmp_path / "history.json"
    history.write(path)
    read = History.read(path)
    assert read.to_json() == history.to_json()
    assert_totals(read, receiver.accounting)
    for name in ("duplicates", "rejected", "too_old", "late_batches", "late_chunks", "packets", "seconds"):
        assert read.accounts[name] == getattr(stats, name)
    assert read.accounts["sources"]["duplicates"] == [source.duplicates for source in stats.sources]
    assert dataclasses.asdict(read.axes) == dataclasses.asdict(history.axes)


def document():
    history, add = made(SIMPLE)
    add(0)
    add(2)
    history.finish({"rejected": {"metadata_heaps": 3}, "late_batches": [1, 2], "seconds": 2, "too_old": np.int64(4)})
    return history.to_json()


def test_what_is_not_given_is_not_there():
    assert document()["accounts"] == {
        "rejected": {"metadata_heaps": 3},
        "late_batches": [1, 2],
        "seconds": 2.0,
        "too_old": 4,
    }


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "pcap", "format: 'pcap' must be 'speadrx-history'"),
        ("version", 2, "version: 2 must be 1"),
        ("version", None, "version: None must be an integer from 0 to"),
        ("time_step", 0, "time_step: 0 must be an integer from 1 to"),
        ("time_step", True, "time_step: True must be an integer from 1 to"),
        ("heap_bytes", 1.5, "heap_bytes: 1.5 must be an integer"),
        ("tick_rate", -1, "tick_rate: -1.0 must be a positive number or null"),
        ("tick_rate", "fast", "tick_rate: 'fast' must be a number"),
        ("layout", 3, "layout: 3 must be a string"),
        ("source_labels", [], "source_labels: .. must be a list of at least one string"),
        ("source_labels", ["a", 2, "b"], "source_labels: "),
        ("rows", [], r"rows: \[\] must be an object"),
        ("rows.batches", [4], r"rows.batches: \[4\] must be 12 integers"),
        ("rows.timestamp", 7, "rows.timestamp: 7 must be a list"),
        ("rows.restarts", [0.5] * 12, "rows.restarts: .* must be 12 integers"),
        ("rows.present", [[1, 1]] * 12, "rows.present: .* must be 12 lists of 3 integers"),
        ("rows.present", [[1, 1, -1]] * 12, "rows.present: .* must be 12 lists of 3 integers"),
        ("rows.present", [[1, 1, 1]] * 11 + [[1]], "rows.present: .* must be 12 lists of 3 integers"),
        ("rows.present", [[1, 1, 2**63]] * 12, "rows.present: .* must be 12 lists of 3 integers"),
        ("rows.present", [[1, 1, 2]] * 12, r"rows.present\[0\]: 2 heaps of a source must be at most 1,"),
        ("rows.timestamp", [5] * 12, r"rows.timestamp\[0\]: 5 must be a multiple of time_step, 10"),
        ("rows.batches", [1] * 11 + [0], r"rows.batches\[11\]: 0 must be at least 1"),
        ("rows.batches", [2**62] * 12, "rows.batches: .* heaps of each source must be less than 2.63"),
        ("chunks", 0, "chunks: 0 does not go with 12 rows: both must be 0, or neither"),
        ("accounts", None, "accounts: None must be an object"),
        ("accounts.too_old", -1, "accounts.too_old: -1 must be an integer from 0 to"),
        ("accounts.seconds", float("nan"), "accounts.seconds: nan must be a number"),
        ("accounts.rejected", {"a": "b"}, "accounts.rejected.a: 'b' must be an integer"),
        ("accounts.late_chunks", "many", "accounts.late_chunks: 'many' must be a list"),
        ("accounts.sources", {"placed": [1]}, r"accounts.sources.placed: \[1\] must be 3 integers"),
    ],
)
def test_field_that_is_wrong_is_named(path, value, message, tmp_path):
    fields = document()
    place = fields
    *parents, name = path.split(".")
    for parent in parents:
        place = place[parent]
    place[name] = value
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(fields))
    with pytest.raises(FieldError, match=f"^{file}: {message}"):
        History.read(file)


def leaves(value, path=()):
    """Paths of all that is in a document."""
    yield path
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, (*path, key))


@pytest.mark.parametrize("value", [None, -1, 0, 1, 2**63, 2**64, 1e300, float("nan"), "", "text", True, [], {}, [[]]])
def test_document_with_anything_anywhere_is_refused_or_can_be_used(value):
    for path in leaves(document()):
        fields = {"document": document()}
        *parents, name = ("document", *path)
        place = fields
        for parent in parents:
            place = place[parent]
        place[name] = value
        try:
            history = History.from_json(fields["document"])
        except FieldError:
            continue
        assert History.from_json(history.to_json()).to_json() == history.to_json()
        assert (history.missing_by_source >= 0).all()
        assert (history.expected_by_row > 0).all()


@pytest.mark.parametrize("name", ["format", "time_step", "rows", "accounts", "chunks"])
def test_field_that_is_absent_is_named(name):
    fields = document()
    del fields[name]
    with pytest.raises(FieldError, match=f"^{name}: is absent"):
        History.from_json(fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not a history, because it is not JSON"),
        (b"{", "is not a history, because it is not JSON"),
        (b"\xff\xfe{", "is not a history, because it is not JSON"),
        (b"[" * 100_000, "is not a history, because it is not JSON"),
        (b'{"format": ' + b"9" * 5000 + b"}", "is not a history, because it is not JSON"),
        (b"[]", r"document: \[\] must be an object"),
    ],
)
def test_file_that_is_none_is_refused(text, message, tmp_path):
    file = tmp_path / "none.json"
    file.write_bytes(text)
    with pytest.raises(FieldError, match=f"^{file}: {message}"):
        History.read(file)


def test_file_cut_short_anywhere_is_refused(tmp_path):
    file = tmp_path / "cut.json"
    text = json.dumps(document())
    for length in range(0, len(text), 7):
        file.write_text(text[:length])
        with pytest.raises(FieldError, match="is not JSON"):
            History.read(file)
