"""Streams and groups: how they are configured, what they count, and how they end."""

import contextlib
import ctypes
import dataclasses
import functools
import gc
import os
import subprocess
import sys
import types
import weakref

import numpy as np
import pytest
import spead2
import spead2.recv
from speadrx.meerkat import DigitiserLayout

import speadrx
from handmade import SMALL, STOP_PACKET, encode, small_heap
from loopback import wait_for, wait_until_gone
from speadrx import Axis, BaseLayout, ChunkPool
from speadrx.receive import arguments
from speadrx.receive import stream as stream_module

REASONS = [
    "metadata_heaps",
    "bad_timestamp_heaps",
    "bad_antenna_heaps",
    "bad_pol",
    "implausible_timestamp_heaps",
    "backward_timestamp_heaps",
    "internal_error_heaps",
]
# As SMALL, but the polarisation is known for each stream rather than for each heap.
POL_LAYOUT = dataclasses.replace(
    SMALL, axes=(SMALL.axes[0], Axis(name="pol", from_user_data="pol", size=2)), order=("pol", "time", "antenna")
)


def rings(n=8):
    return {
        "data_ringbuffer": spead2.recv.ChunkRingbuffer(n),
        "free_ringbuffer": spead2.recv.ChunkRingbuffer(n),
    }


@pytest.fixture
def make(request):
    """Make a stream, or a group if the affinity is a list, and stop it after the test."""

    def make(**kwargs):
        arguments = {"layout": SMALL, "max_active_chunks": 2} | rings() | kwargs
        group = isinstance(arguments.get("affinity"), list | tuple)
        made = (speadrx.make_stream_group if group else speadrx.make_stream)(**arguments)
        request.addfinalizer(made.stop)
        return made

    return make


def packets(*changes):
    return [packet for i, change in enumerate(changes) for packet in encode(small_heap(change), i, 48)]


def feed(stream, *changes):
    """Send heaps to a stream, then end it, which brings its chunks out."""
    queue = spead2.InprocQueue()
    stream.add_inproc_reader(queue)
    for packet in packets(*changes):
        queue.add_packet(packet)
    queue.stop()


def chunks_of(source):
    """The chunks that hold data: spead2 also gives out empty ones, where the first heap is not in the first chunk."""
    return [chunk for chunk in source.data_ringbuffer if chunk.present.any()]


class OwnLayout(BaseLayout):
    """A layout with a callback of its own, which rejects everything (and touches nothing)."""

    heap_bytes = 4
    chunk_batches = 4
    batch_heaps = 3
    heap_sample_count = 4
    chunk_timestamp_step = 64

    @functools.cached_property
    def _chunk_place(self):
        function = ctypes.CDLL(None).getpid
        return types.SimpleNamespace(address=ctypes.cast(function, ctypes.c_void_p).value)


OWN = {"layout": OwnLayout(), "spead_items": [0x1600, 0x4]}


class TestConfiguration:
    """What `make_stream` and `make_stream_group` make of their arguments."""

    @pytest.mark.parametrize("affinity", [-1, [-1], [-1, -1]])
    def test_types(self, make, affinity):
        made = make(affinity=affinity)
        wanted = spead2.recv.ChunkStreamRingGroup if isinstance(affinity, list) else spead2.recv.ChunkRingStream
        assert isinstance(made, wanted)
        assert made.layout is SMALL

    def test_rings(self, make):
        given = rings()
        for affinity in (-1, [-1]):
            made = make(affinity=affinity, **given)
            assert made.data_ringbuffer is given["data_ringbuffer"]
            assert made.free_ringbuffer is given["free_ringbuffer"]

    def test_rings_of_other_chunks(self, make):
        """A stream would write outside of the chunks of another that are smaller than its own."""
        given = rings()
        stream = make(**given)
        ChunkPool(stream, 4)
        layout = dataclasses.replace(SMALL, heap_bytes=4096)
        for affinity in (-1, [-1, -1]):
            with pytest.raises(ValueError, match="free_ringbuffer: belongs to a stream that needs other chunks"):
                make(layout=layout, affinity=affinity, **rings() | {"free_ringbuffer": given["free_ringbuffer"]})
        # The stream that had the ring first goes on.
        feed(stream, {})
        assert [chunk.chunk_id for chunk in chunks_of(stream)] == [1]
        make(layout=dataclasses.replace(SMALL, source_labels=tuple("xyz")), **given)

    @pytest.mark.parametrize("affinity", [-1, [-1, -1]])
    def test_one_ring_for_both(self, make, affinity):
        ring = spead2.recv.ChunkRingbuffer(8)
        with pytest.raises(
            ValueError, match="data_ringbuffer: is the same ring as free_ringbuffer, but wanted two rings"
        ):
            make(affinity=affinity, data_ringbuffer=ring, free_ringbuffer=ring)

    @pytest.mark.parametrize("group", [False, True])
    def test_affinity(self, make, group):
        """The network threads run where they were told to, whatever the thread that makes the stream is bound to."""
        own = os.sched_getaffinity(0)
        first, last = min(own), max(own)
        before = set(os.listdir("/proc/self/task"))
        os.sched_setaffinity(0, [first])
        try:
            make(affinity=[last, first, -1] if group else last)
            assert os.sched_getaffinity(0) == {first}
        finally:
            os.sched_setaffinity(0, own)
        threads = set(os.listdir("/proc/self/task")) - before
        wanted = sorted([{last}, {first}, {first}] if group else [{last}], key=min)

        def affinities():
            for thread in threads:
                with contextlib.suppress(ProcessLookupError):  # one of another test, which has just ended
                    yield os.sched_getaffinity(int(thread))

        wait_for(lambda: sorted(affinities(), key=min) == wanted)

    @pytest.mark.parametrize("affinity", [999_999, 2**40])
    def test_no_such_processor(self, make, affinity):
        own = os.sched_getaffinity(0)
        for given in (affinity, [-1, affinity]):
            message = rf"affinity: no thread may run on processor {affinity} \(.*\); this one may run on {min(own)}"
            with pytest.raises(ValueError, match=message):
                make(affinity=given)
        assert os.sched_getaffinity(0) == own

    @pytest.mark.parametrize(("n", "max_chunks"), [(1, 2), (2, 3), (3, 3)])
    def test_group_window(self, make, n, max_chunks):
        group = make(affinity=[-1] * n)
        assert len(group) == n
        assert group.config.max_chunks == max_chunks
        assert group.config.eviction_mode == spead2.recv.ChunkStreamGroupConfig.EvictionMode.LOSSY
        assert speadrx.EVICTION_MODE == spead2.recv.ChunkStreamGroupConfig.EvictionMode.LOSSY

    def test_timeouts(self):
        assert speadrx.RECV_SENSOR_TIMEOUT_CHUNKS == 10
        assert speadrx.RECV_SENSOR_TIMEOUT_MIN == 1.0

    @pytest.mark.parametrize("affinity", [-1, [-1, -1]])
    def test_stream_config(self, make, affinity):
        made = make(affinity=affinity, max_heaps=7, stop_on_stop_item=False, allow_out_of_order=True, stream_id=3)
        for stream in made if isinstance(affinity, list) else [made]:
            config = stream.config
            assert config.max_heaps == 7
            assert config.stop_on_stop_item is False
            assert config.allow_out_of_order is True
            assert config.stream_id == 3

    def test_memcpy(self):
        # The streams replace it by their own, which calls it: it cannot be seen there.
        config = arguments.stream_config("make_stream", {})
        assert config.memcpy == spead2.MEMCPY_NONTEMPORAL
        config = arguments.stream_config("make_stream", {"memcpy": spead2.MEMCPY_STD})
        assert config.memcpy == spead2.MEMCPY_STD

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"layout": None}, TypeError, "layout: given None, but wanted a layout"),
            ({"layout": DigitiserLayout}, TypeError, "layout: given <class .*DigitiserLayout'>, but wanted a layout"),
            ({"max_active_chunks": 0}, ValueError, "max_active_chunks: 0 must be at least 1"),
            ({"max_active_chunks": 1.5}, TypeError, "max_active_chunks: given 1.5, but wanted an integer"),
            ({"data_ringbuffer": None}, TypeError, "data_ringbuffer: given NoneType, but wanted a spead2.recv.ChunkRi"),
            ({"free_ringbuffer": 4}, TypeError, "free_ringbuffer: given int, but wanted a spead2.recv.ChunkRingbuffer"),
            ({"affinity": "0"}, TypeError, "affinity: given '0', but wanted an integer"),
            ({"affinity": None}, TypeError, "affinity: given None, but wanted an integer"),
            ({"affinity": []}, ValueError, "affinity: is empty, but a group needs at least one stream"),
            ({"affinity": [0, "x"]}, TypeError, "affinity: given 'x', but wanted an integer"),
            (
                {"max_heap": 5},
                TypeError,
                r"make_stream\(\) got an unexpected keyword argument 'max_heap'; those of .* are max_heaps, substreams",
            ),
            (
                {"max_heap": 5, "affinity": [0]},
                TypeError,
                r"make_stream_group\(\) got an unexpected keyword argument 'max_heap'",
            ),
            (
                {"max_heaps": "many"},
                TypeError,
                "max_heaps: spead2.recv.StreamConfig does not take 'many': wrong type",
            ),
            (
                {"max_heaps": 0},
                ValueError,
                "max_heaps: spead2.recv.StreamConfig does not take 0: max_heaps cannot be 0",
            ),
            (
                {"spead_items": [*SMALL.spead_items, 0x4101, 0x99]},
                ValueError,
                "spead_items: differ from those of Layout: not in the layout 0x99, 0x4101$",
            ),
            (
                {"spead_items": SMALL.spead_items[2:]},
                ValueError,
                "spead_items: differ from those of Layout: missing 0x2, 0x10$",
            ),
            (
                {"spead_items": [0x99]},
                ValueError,
                "missing 0x2, 0x10, 0x20, 0x30, 0x40; not in the layout 0x99$",
            ),
            ({"spead_items": [0x10, "0x2"]}, TypeError, "spead_items: given '0x2', but wanted an integer"),
            (OWN | {"spead_items": [-1]}, ValueError, "spead_items: -1 must be at least 0"),
            ({"max_heap_extra": 1}, ValueError, "max_heap_extra: 1 must be at least 2"),
            ({"max_heap_extra": "2"}, TypeError, "max_heap_extra: given '2', but wanted an integer"),
            ({"stream_stats": "heaps"}, TypeError, "stream_stats: given 'heaps', but wanted a sequence of names"),
            ({"stream_stats": ["heaps"]}, ValueError, "stream_stats: A statistic called heaps already exists"),
            ({"stream_stats": ["x", "x"]}, ValueError, "stream_stats: A statistic called x already exists"),
            ({"stream_stats": [1]}, TypeError, "stream_stats: given 1, but wanted a name"),
            (
                {"stream_stats": list("abcdefgh")},
                ValueError,
                "stream_stats: given 8 names, but .* Layout has only 7 statistics to rename: speadrx.metadata_heaps, ",
            ),
            ({"user_data": {}}, TypeError, "user_data: given dict, but wanted a structured numpy array"),
            (
                {"user_data": np.zeros(2, SMALL.user_data_dtype)},
                ValueError,
                r"user_data: given shape \(2,\), but wanted \(\) or \(1,\) for 1 stream\(s\)",
            ),
            (
                {"user_data": np.zeros((1, 1), SMALL.user_data_dtype)},
                ValueError,
                r"user_data: given shape \(1, 1\), but wanted",
            ),
            (
                {"user_data": np.zeros(2, SMALL.user_data_dtype), "affinity": [-1] * 3},
                ValueError,
                r"user_data: given shape \(2,\), but wanted \(\), \(1,\) or \(3,\) for 3 stream\(s\)",
            ),
            ({"layout": POL_LAYOUT}, ValueError, "user_data: has no field 'pol', which the layout reads"),
            (
                {"layout": POL_LAYOUT, "user_data": np.full(1, 2, POL_LAYOUT.user_data_dtype)},
                ValueError,
                "pol",
            ),
            (
                OWN | {"spead_items": None},
                TypeError,
                "spead_items: is needed, since OwnLayout has a placement callback",
            ),
            (
                OWN | {"stream_stats": ["a"]},
                ValueError,
                "user_data: None, but the callback needs its field 'stats_base' to count stream_stats",
            ),
            (
                OWN | {"stream_stats": ["a"], "user_data": np.zeros(1, [("other", np.int32)])},
                ValueError,
                r"user_data: has no field 'stats_base', which is needed to count stream_stats \(it has \['other'\]\)",
            ),
            (OWN, ValueError, "user_data: None, but the callback of OwnLayout reads it"),
        ],
    )
    def test_errors(self, make, changes, error, message):
        with pytest.raises(error, match=message):
            make(**changes)

    def test_group_needs_affinity(self):
        with pytest.raises(TypeError, match="affinity: given 4, but wanted a sequence: one processor for each stream"):
            speadrx.make_stream_group(layout=SMALL, max_active_chunks=2, affinity=4, **rings())

    def test_item_order(self, make):
        """A list in another order means the same: the callback sees the layout's."""
        stream = make(spead_items=list(reversed(SMALL.spead_items)))
        ChunkPool(stream, 4)
        feed(stream, {})
        assert [chunk.chunk_id for chunk in chunks_of(stream)] == [1]
        assert stream.ledger.snapshot().placed == 1

    def test_more_extra(self, make):
        """More room than the layout needs is for chunks that have it."""
        stream = make(max_heap_extra=5)
        ChunkPool(stream, 1)
        chunk = stream.free_ringbuffer.get_nowait()
        assert chunk.extra.nbytes == 12 * 5


class TestStatistics:
    """Names and indices of the statistics."""

    def test_own_names(self, make):
        stream = make()
        assert SMALL.stream_stats == [f"speadrx.{reason}" for reason in REASONS]
        base = stream.config.get_stat_index(SMALL.stream_stats[0])
        names = [stat.name for stat in stream.config.stats]
        assert names[base : base + 7] == SMALL.stream_stats

    def test_renamed(self, make):
        user_data = np.zeros((), SMALL.user_data_dtype)
        stream = make(stream_stats=["mine", "yours"], user_data=user_data)
        names = [stat.name for stat in stream.config.stats]
        base = int(user_data["stats_base"])
        assert names[base : base + 7] == ["mine", "yours", *SMALL.stream_stats[2:]]
        ChunkPool(stream, 4)
        feed(stream, {0x40: None}, {0x10: 1}, {0x10: 2}, {0x20: 999})
        assert list(stream.data_ringbuffer) == []
        assert (stream.stats["mine"], stream.stats["yours"], stream.stats["speadrx.bad_antenna_heaps"]) == (1, 2, 1)
        assert stream.stats["rejected_heaps"] == 4
        assert stream.ledger.snapshot().rejected == dict.fromkeys(REASONS, 0) | {
            "metadata_heaps": 1,
            "bad_timestamp_heaps": 2,
            "bad_antenna_heaps": 1,
        }

    @pytest.mark.parametrize("shape", [(), (1,)])
    @pytest.mark.parametrize("affinity", [-1, [-1], [-1, -1]])
    def test_stats_base_shared(self, make, affinity, shape):
        user_data = np.zeros(shape, [("other", np.uint8), ("stats_base", np.uint32)])
        made = make(affinity=affinity, user_data=user_data)
        for stream in made if isinstance(affinity, list) else [made]:
            assert user_data["stats_base"] == stream.config.get_stat_index("speadrx.metadata_heaps")

    def test_stats_base_each(self, make):
        user_data = np.zeros(3, POL_LAYOUT.user_data_dtype)
        group = make(layout=POL_LAYOUT, affinity=[-1] * 3, user_data=user_data)
        base = group[0].config.get_stat_index("speadrx.metadata_heaps")
        assert user_data["stats_base"].tolist() == [base] * 3

    def test_stats_base_before_registering(self, make):
        """The caller's array is filled in even if the names then turn out to be taken."""
        user_data = np.zeros((), SMALL.user_data_dtype)
        with pytest.raises(ValueError, match="already exists"):
            make(stream_stats=["heaps"], user_data=user_data)
        assert user_data["stats_base"] == spead2.recv.StreamConfig().next_stat_index()

    def test_read_only(self, make):
        user_data = np.zeros((), SMALL.user_data_dtype)
        user_data.flags.writeable = False
        with pytest.raises(ValueError, match="user_data: is read-only, but its field 'stats_base' has to be set"):
            make(user_data=user_data)


class TestOwnCallback:
    """Layouts that bring a placement callback of their own."""

    @pytest.mark.parametrize("affinity", [-1, [-1, -1]])
    def test_chunk_place_attribute(self, make, affinity):
        user_data = np.zeros(1, [("stats_base", np.uintp)])
        made = make(**OWN, affinity=affinity, user_data=user_data, stream_stats=["one", "two"])
        assert made.ledger is None
        stream = made
        if isinstance(affinity, list):
            assert made.ledgers == ()
            stream = made[1]
        ChunkPool(made, 4)
        assert user_data["stats_base"][0] == stream.config.get_stat_index("one")
        queue = spead2.InprocQueue()
        stream.add_inproc_reader(queue)
        for packet in packets({}, {}):
            queue.add_packet(packet)
        wait_for(lambda: stream.stats["rejected_heaps"] == 2)

    def test_rows(self, make):
        """Each stream of a group gets a view of its own row."""
        given = []

        class Layout(OwnLayout):
            def chunk_place(self, user_data):
                given.append(user_data)
                return super().chunk_place(user_data)

        user_data = np.zeros(3, [("stats_base", np.uintp), ("pol", np.uintp)])
        user_data["pol"] = [5, 6, 7]
        make(**OWN | {"layout": Layout()}, affinity=[-1] * 3, user_data=user_data)
        assert [row["pol"].tolist() for row in given] == [[5], [6], [7]]
        assert all(np.shares_memory(row, user_data) for row in given)

    def test_declarative_with_own_callback(self, make):
        """A declarative layout can bring a callback too, which is then used instead."""

        class Layout(DigitiserLayout):
            _chunk_place = OwnLayout._chunk_place

            def __getstate__(self):
                raise NotImplementedError

        layout = Layout(10, 4096, 65536)
        user_data = np.zeros(1, layout.user_data_dtype)
        stream = make(layout=layout, spead_items=[0x10], user_data=user_data, max_heap_extra=2)
        assert stream.ledger is None
        ChunkPool(stream, 2)
        feed(stream, {})
        assert list(stream.data_ringbuffer) == []
        assert stream.stats["rejected_heaps"] == 1

    def test_declarative_with_own_chunk_place(self, make):
        class Layout(DigitiserLayout):
            def chunk_place(self, user_data=None):
                return SMALL.chunk_place()

        user_data = np.zeros(1, [("stats_base", np.uintp)])
        stream = make(
            layout=Layout(10, 4096, 65536), spead_items=SMALL.spead_items, user_data=user_data, max_heap_extra=2
        )
        assert stream.ledger is None
        ChunkPool(stream, 4)
        feed(stream, {})
        assert [chunk.chunk_id for chunk in chunks_of(stream)] == [1]


class TestReceive:
    """Heaps through real streams."""

    def test_stream(self, make):
        stream = make()
        ChunkPool(stream, 4)
        feed(stream, {0x10: 80}, {0x10: 80}, {0x10: 80, 0x20: 5 << 1}, {0x10: 160}, {0x10: -1 % 2**48}, {0x40: None})
        chunks = chunks_of(stream)
        assert [chunk.chunk_id for chunk in chunks] == [1, 2]
        assert np.argwhere(chunks[0].present).tolist() == [[1, 1, 0], [1, 2, 0]]
        assert chunks[0].data[1, 1, 0].tobytes() == b"data"
        assert chunks[0].extra[1, 1, 0]["status"] == 0x1234
        snapshot = stream.ledger.snapshot()
        assert snapshot.source_labels == ("7", "3", "5")
        assert snapshot.placed_by_source.tolist() == [0, 3, 1]
        assert snapshot.duplicates_by_source.tolist() == [0, 1, 0]
        assert snapshot.newest_timestamp_by_source.tolist() == [-1, 160, 80]
        assert snapshot.rejected == dict.fromkeys(REASONS, 0) | {"metadata_heaps": 1, "bad_timestamp_heaps": 1}
        assert (snapshot.placed, snapshot.duplicates, snapshot.seen) == (4, 1, 6)

    def test_multi_packet(self, make):
        """Out of order packets of a heap need spead2's `allow_out_of_order`."""
        heap = dataclasses.replace(small_heap({}), n_packets=4)
        for allow in (True, False):
            stream = make(allow_out_of_order=allow)
            ChunkPool(stream, 4)
            stream.add_buffer_reader(b"".join([*reversed(encode(heap, 1, 48)), STOP_PACKET]))
            present = [chunk.present.sum() for chunk in stream.data_ringbuffer]
            assert sum(present) == int(allow)

    def test_group(self, make):
        user_data = np.zeros(2, POL_LAYOUT.user_data_dtype)
        user_data["pol"] = [0, 1]
        group = make(layout=POL_LAYOUT, affinity=[-1, -1], user_data=user_data)
        ChunkPool(group, 8)
        feed(group[0], {}, {0x10: 80}, {0x40: None})
        feed(group[1], {0x20: 5 << 1}, {0x10: 1}, {0x40: None})
        chunks = chunks_of(group)
        assert [chunk.chunk_id for chunk in chunks] == [1]
        assert np.argwhere(chunks[0].present).tolist() == [[0, 0, 1], [0, 1, 1], [1, 0, 2]]
        total, first, second = (ledger.snapshot() for ledger in (group.ledger, *group.ledgers))
        assert first.placed_by_source.tolist() == [0, 2, 0]
        assert second.placed_by_source.tolist() == [0, 0, 1]
        assert total.placed_by_source.tolist() == [0, 2, 1]
        assert total.newest_timestamp_by_source.tolist() == [-1, 80, 64]
        assert total.rejected["metadata_heaps"] == 2
        assert total.rejected["bad_timestamp_heaps"] == second.rejected["bad_timestamp_heaps"] == 1
        assert total.seen == first.seen + second.seen == 6

    def test_group_time(self, make):
        """The streams of a group agree on time: the wrap of the timestamp is seen by both."""
        group = make(affinity=[-1, -1])
        ChunkPool(group, 8)
        last = 2**48 - 64
        queues = [spead2.InprocQueue(), spead2.InprocQueue()]
        for stream, queue in zip(group, queues, strict=True):
            stream.add_inproc_reader(queue)
        for step, queue in enumerate((queues[0], queues[1], queues[0])):
            for packet in packets({0x10: (last + 64 * (step > 0)) % 2**48}):
                queue.add_packet(packet)
            wait_for(lambda step=step: group.ledger.snapshot().seen == step + 1)
        for queue in queues:
            queue.stop()
        assert [chunk.chunk_id for chunk in chunks_of(group)] == [2**42 - 1, 2**42]

    def test_group_shares_time(self, make):
        """A stream that sees nothing before the timestamp wraps knows of the wrap from the other."""
        group = make(affinity=[-1, -1])
        ChunkPool(group, 8)
        queues = [spead2.InprocQueue(), spead2.InprocQueue()]
        for stream, queue in zip(group, queues, strict=True):
            stream.add_inproc_reader(queue)
        first = 2**48 - 64
        # A source for each stream: all of three chunks from the first, then from the second that in the middle.
        for antenna, (queue, batches, start) in enumerate(((queues[0], 12, first), (queues[1], 4, 2**48))):
            for i in range(batches):
                items = {0x10: (start + 16 * i) % 2**48, 0x20: (7, 3)[antenna] << 1}
                queue.add_packet(encode(small_heap(items, bytes([antenna, i, 0, 0])), i, 48)[0])
            wait_for(lambda i=antenna, n=batches: group.ledgers[i].snapshot().seen == n)
        for queue in queues:
            queue.stop()
        chunks = chunks_of(group)
        assert [stream.stats["too_old_heaps"] for stream in group] == [0, 0]
        assert [chunk.chunk_id for chunk in chunks] == [2**42 - 1, 2**42, 2**42 + 1]
        assert [chunk.present[:, :, 0].sum(axis=0).tolist() for chunk in chunks] == [[4, 0, 0], [4, 4, 0], [4, 0, 0]]
        for i in range(4):
            assert chunks[1].data[i, 0, 0].tobytes() == bytes([0, 4 + i, 0, 0])
            assert chunks[1].data[i, 1, 0].tobytes() == bytes([1, i, 0, 0])

    def test_group_sequence(self, make):
        group = make(affinity=[-1, -1])
        assert len(list(group)) == len(group[:]) == 2
        assert group[-1] is group[1]
        assert group[::-1][0] is group[1]
        for index in (2, -3):
            with pytest.raises(IndexError):
                group[index]


class TestEnd:
    """How streams and groups stop, and what is left of them."""

    @pytest.mark.parametrize("affinity", [-1, [-1], [-1, -1]])
    def test_stop(self, make, affinity):
        """A source that nothing was sent to stops at once, as often as asked."""
        made = make(affinity=affinity)
        for _ in range(3):
            made.stop()
        assert list(made.data_ringbuffer) == []
        assert made.kernel_drops() == 0

    def test_stop_from_another_thread(self, make):
        """Whatever another thread does meanwhile, each last word is said once."""
        stream = make()
        said = []

        class Callbacks(list):
            """The other thread takes all of them just after this one has seen that there are any."""

            def __len__(self):
                seen = super().__len__()
                while self.copy():
                    self.pop()(stream)
                return seen

        stream._callbacks = Callbacks([said.append])
        stream.stop()
        stream.stop()
        assert said == [stream]

    @pytest.mark.fault(20)
    def test_group_with_silent_stream(self, make):
        """One stream runs ahead of a silent one, and of a consumer that takes nothing; stopping ends it all."""
        group = make(affinity=[-1, -1])
        ChunkPool(group, 8)
        queue = spead2.InprocQueue()
        group[0].add_inproc_reader(queue)
        group[1].add_inproc_reader(spead2.InprocQueue())
        for packet in packets(*({0x10: 64 * i} for i in range(100))):
            queue.add_packet(packet)
        # The data ring is full, and the network thread waits.
        wait_for(lambda: group.free_ringbuffer.empty())
        group.stop()

    def test_stop_with_no_chunks(self, make):
        """The network thread waits for a free chunk, and there is none."""
        stream = make()
        queue = spead2.InprocQueue()
        stream.add_inproc_reader(queue)
        queue.add_packet(packets({})[0])
        wait_for(lambda: stream.ledger.snapshot().seen == 1)
        stream.stop()

    @pytest.mark.parametrize("affinity", [-1, [-1, -1]])
    def test_goes_away(self, make, affinity):
        """Neither chunks nor rings nor ledgers keep a source alive; its ledger outlives it."""
        arguments = rings()
        made = speadrx.make_stream_group if isinstance(affinity, list) else speadrx.make_stream
        source = made(layout=SMALL, max_active_chunks=2, affinity=affinity, **arguments)
        pool = ChunkPool(source, 4)
        stream = source[1] if isinstance(affinity, list) else source
        feed(stream, {}, {0x40: None})
        del stream
        ledger = source.ledger
        wait_for(lambda: ledger.snapshot().seen == 2)
        reference = weakref.ref(source)
        del source
        wait_until_gone(reference)
        assert len(pool) == 4
        assert ledger.snapshot().seen == 2
        with pytest.raises(spead2.Stopped):
            arguments["free_ringbuffer"].put_nowait(
                spead2.recv.Chunk(data=np.zeros(48, np.uint8), present=np.zeros(12, np.uint8))
            )

    @pytest.mark.parametrize("affinity", [-1, [-1, -1]])
    @pytest.mark.parametrize("end", ["stop", "del", "cycle", "stopped before"])
    def test_last_statistics(self, affinity, end):
        """Who asks for it can read the statistics when they are final, however the source ends."""
        read = []

        def on_close(source):
            stream = source[1] if isinstance(affinity, list) else source
            read.append((stream.stats["heaps"], stream.stats["speadrx.metadata_heaps"]))

        make = speadrx.make_stream_group if isinstance(affinity, list) else speadrx.make_stream
        source = make(layout=SMALL, max_active_chunks=2, affinity=affinity, **rings())
        ChunkPool(source, 4)
        stream = source[1] if isinstance(affinity, list) else source
        queue = spead2.InprocQueue()
        stream.add_inproc_reader(queue)
        for packet in packets({}, {0x40: None}, {0x40: None}):
            queue.add_packet(packet)
        wait_for(lambda stream=stream: stream.stats["heaps"] == 3)
        if end == "stopped before":
            source.stop()
            assert read == []
        source._on_close(on_close)
        if end == "stopped before":
            assert read == [(3, 2)]  # at once
        if end == "stop":
            source.stop()
            assert read == [(3, 2)]
        if end == "cycle":
            source.itself = source
        del source, stream
        gc.collect()
        wait_for(lambda: read)  # the thread that watches streams may hold it while it looks
        assert read == [(3, 2)]

    def test_failed_construction(self):
        """An object that was never completed goes away quietly."""
        source = stream_module.ChunkRingStream.__new__(stream_module.ChunkRingStream)
        del source
        gc.collect()

    @pytest.mark.parametrize("what", ["make_stream(affinity=-1, ", "make_stream_group(affinity=[-1, -1], "])
    @pytest.mark.parametrize("reader", ["True", "False"])
    def test_exit_without_stop(self, what, reader, udp_port):
        """A program may end without stopping anything; nothing complains, crashes or hangs."""
        program = f"""
import spead2.recv, speadrx
layout = speadrx.Layout(heap_bytes=4, time=speadrx.TimeAxis(item=0x10, step=1, batches=4))
rings = dict(
    data_ringbuffer=spead2.recv.ChunkRingbuffer(4), free_ringbuffer=spead2.recv.ChunkRingbuffer(4)
)
source = speadrx.{what}layout=layout, max_active_chunks=2, **rings)
source.itself = source
speadrx.ChunkPool(source, 4)
source._on_close(lambda source: None)
if {reader}:
    speadrx.add_reader(source[0] if hasattr(source, "ledgers") else source, src=[("127.0.0.1", {udp_port})], buffer=0)
print("done")
"""
        result = subprocess.run(
            [sys.executable, "-W", "error", "-X", "dev", "-c", program], capture_output=True, text=True, timeout=60
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")


def test_stop_at_the_end_of_a_drain(make, udp_port):
    # The thread that drains stops the stream too, just then: they must not wait for each other.
    for _ in range(300):
        stream = make()
        ChunkPool(stream, 8)
        queue = spead2.InprocQueue()
        stream.add_inproc_reader(queue)
        speadrx.add_reader(stream, src=[("127.0.0.1", udp_port)])
        queue.add_packet(encode(small_heap({}), 1, 48)[0])
        wait_for(lambda stream=stream: stream.stats["heaps"] == 1)
        stream.drain()
        for chunk in speadrx.iter_chunks(stream):
            chunk.recycle()
        stream.stop()
