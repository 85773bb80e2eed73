"""Sources that say another time than most others are named: in the account, the metrics and the log."""

import dataclasses
import json

import pytest
import spead2

import speadrx
import speadrx.receive.watch
from handmade import Heap, encode
from loopback import wait_for
from scraped import Metrics
from speadrx import Axis, Layout, TimeAxis, metrics
from speadrx.accounts.report import disagreement
from speadrx.metrics.ledger import LedgerCollector

STEP, START = 16, 10**6
FAR = 10**5
STAYS = "and nobody can tell who is right: time stays as it was"
LAYOUT = Layout(
    heap_bytes=8,
    time=TimeAxis(item=0x1600, step=STEP, batches=4),
    axes=(Axis(name="antenna", item=0x4101, size=4),),
    sources="antenna",
    source_labels=("m000", "m001", "m002", "m003"),
)


class Array:
    """A receiver, looked at by a clock of our own, and its four senders."""

    def __init__(self, threads=1, **options):
        self.queues = [spead2.InprocQueue() for _ in range(threads)]
        self.rx = speadrx.Receiver(LAYOUT, self.queues, threads=threads, window=4, **options)
        self.rx.start()
        self.watched = speadrx.receive.watch._Watched(self.rx.stream, None)
        self.batch, self.sent, self.now = START, 0, 1000.0

    def send(self, *wrong, by=FAR, silent=(), batches=8):
        """Send batches, in which the clocks of some sources are wrong, and look a second later."""
        for _ in range(batches):
            for source in sorted({0, 1, 2, 3} - set(silent)):
                time = (self.batch + by * (source in wrong)) * STEP
                (packet,) = encode(Heap({0x1600: time, 0x4101: source, 2: 8}, bytes(8)), self.sent, 48)
                self.queues[source % len(self.queues)].add_packet(packet)
                self.sent += 1
            self.batch += 1
        wait_for(lambda: self.rx.ledger.snapshot().seen == self.sent)
        while not self.rx.stream.data_ringbuffer.empty():
            self.rx.stream.data_ringbuffer.get_nowait().recycle()
        self.look()

    def look(self):
        self.now += 1
        assert self.watched.look(self.now)

    @property
    def estranged(self):
        return [source.label for source in self.rx.stats().sources if source.estranged]


@pytest.fixture
def array(monkeypatch, request):
    monkeypatch.setattr("speadrx.receive.stream.watch", lambda owner, flush_after: None)
    array = Array(**getattr(request, "param", {}))
    yield array
    array.rx.stop()


@pytest.mark.fault(24)
@pytest.mark.parametrize("array", [{"threads": 1}, {"threads": 2}], indirect=True, ids=["stream", "group"])
def test_in_stats_and_metrics(array, registry):
    """While it says another time, and not before and after."""
    LedgerCollector(registry=registry).add(array.rx.stream)

    def exported():
        values = Metrics(registry)
        return [values(metrics.SOURCE_ESTRANGED, source=label) for label in LAYOUT.source_labels]

    array.send()
    assert (array.estranged, exported()) == ([], [0, 0, 0, 0])
    for by in (FAR, -FAR):
        array.send(2, by=by)
        assert (array.estranged, exported()) == (["m002"], [0, 0, 1, 0])
        document = json.loads(json.dumps(dataclasses.asdict(array.rx.stats())))
        assert [source["estranged"] for source in document["sources"]] == [False, False, True, False]
        array.send(batches=24)
        assert (array.estranged, exported()) == ([], [0, 0, 0, 0])
    array.send(2)
    array.rx.stop()
    assert array.estranged == ["m002"], "the account of a stream that has ended stays as it was"


def test_metric_of_a_stream_that_is_gone(array, registry):
    collector = LedgerCollector(registry=registry)
    collector.add(array.rx.stream)
    array.send()
    array.send(2)
    assert Metrics(registry).total(metrics.SOURCE_ESTRANGED) == 1
    array.rx.stop()
    del array.rx, array.watched
    values = Metrics(registry)
    assert values.total(metrics.SOURCE_ESTRANGED) == 0
    assert values.total(metrics.HEAPS_PLACED) == array.sent - 8
    array.rx = speadrx.Receiver(LAYOUT, array.queues)  # for the fixture to stop


@pytest.mark.fault(24)
def test_log_says_so_once_and_when_it_is_over(array, caplog):
    array.send()
    for _ in range(2):
        array.send(2)
        assert not caplog.records, "it may be for a moment only"
    for _ in range(5):
        array.send(2)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("speadrx.receive.watch", "WARNING")
    assert record.getMessage() == "source m002 says another time than most others. Its heaps are lost"
    for _ in range(3):
        array.send()
    assert [record.getMessage() for record in caplog.records[1:]] == [
        "source m002 agrees with the others about the time again"
    ]


def test_log_is_not_flooded(array, caplog):
    """By a source that is wrong again and again: two lines a minute."""
    array.send()
    for _ in range(30):
        for _ in range(3):
            array.send(2)
        array.send()
    assert array.now == 1000 + 1 + 30 * 4
    assert len(caplog.records) == 4


@pytest.mark.parametrize(("length", "silent"), [(2, ()), (9, (2,))], ids=["for a moment", "and then silent"])
def test_log_leaves_out(array, caplog, length, silent):
    array.send()
    array.send(2)
    for _ in range(length - 1):
        array.send(2, silent=silent)
    if not silent:
        array.send()
    assert not caplog.records


@pytest.mark.fault(25)
def test_halves(array, caplog):
    """Time stays with those that had it, and the log says that nobody can tell who is right."""
    array.send()
    for _ in range(100):
        array.send(1, 2)
    assert array.estranged == ["m001", "m002"]
    (record,) = caplog.records
    said = f"2 sources (m001, m002) say another time than the other 2, {STAYS}"
    assert record.getMessage() == f"{said}. Their heaps are lost"
    assert array.rx.stats().restarts == 0


def test_more_sources_are_named_later(array, caplog):
    """All of them, a minute after the first."""
    array.send()
    for _ in range(5):
        array.send(2)
    for _ in range(100):
        array.send(2, 3)
    assert [record.getMessage().partition(" say")[0] for record in caplog.records] == [
        "source m002",
        "2 sources (m002, m003)",
    ]


@pytest.mark.parametrize("array", [{"resync": False}], indirect=True, ids=["refused"])
def test_nobody_is_left_to_disagree_with(array, caplog):
    """All go back, which is refused: there is a warning of its own for that."""
    array.send()
    for _ in range(10):
        array.send(0, 1, 2, 3, by=-FAR)
    (record,) = caplog.records
    assert "timestamps have gone back" in record.getMessage()


def test_restart_of_all_is_no_disagreement(array, caplog):
    array.send()
    for _ in range(10):
        array.send(0, 1, 2, 3, by=-FAR)
    assert array.estranged == []
    assert not caplog.records


@pytest.mark.parametrize(
    ("estranged", "others", "said"),
    [
        ([], 4, None),
        (["a"], 0, None),
        (["a"], 2, "source a says another time than most others"),
        (["a", "b"], 3, "2 sources (a, b) say another time than most others"),
        (
            ["a"],
            1,
            "source a says another time than the other 1, and nobody can tell who is right: time stays as it was",
        ),
    ],
)
def test_words(estranged, others, said):
    assert disagreement(estranged, others) == said


def test_commands_show_it(array):
    """In the line, the live view and the account."""
    pytest.importorskip("click")
    pytest.importorskip("rich")
    from rich.console import Console

    from speadrx.cli.account import AccountView, LiveView, Moment, line

    def shown(moment):
        console = Console(width=120)
        with console.capture() as capture:
            console.print(LiveView(moment, "here"))
            console.print(AccountView(moment, all_sources=True))
        return capture.get()

    array.send()
    moment = Moment(LAYOUT, array.rx.stats(), None, 1.0)
    assert "another time" not in shown(moment) + line(moment)
    array.send(1)
    moment = Moment(LAYOUT, array.rx.stats(), None, 1.0)
    said = "source m001 says another time than most others"
    assert shown(moment).count(f"Time: {said}.") == 2
    assert line(moment).endswith(f"  {said}")
