"""Files of PSRDADA, read as its own programs read them, with every sample compared with what was sent."""

import errno
import os
import pathlib
import re
from fractions import Fraction

import numpy as np
import pytest

from recordings import (
    ANTENNAS,
    BATCHES,
    EPOCH,
    SAMPLES,
    STEP,
    TICK_RATE,
    TIME_ID,
    heaps_of,
    layout_of,
    receiver,
    value,
)
from speadrx import DadaWriter, TimeAxis

CHUNK_BYTES = BATCHES * ANTENNAS * SAMPLES * 2
SHAPE = (-1, ANTENNAS, SAMPLES)
#: 1 700 000 000 in UTC, as `date -u -d @1700000000` prints it. A tick is a millisecond.
DATE, MINUTE = "2023-11-14-22:13", 20


def header_value(header: bytes, key: str) -> str | None:
    """What `ascii_header_get` of psrdada finds: the key at the start of a line, and the word after it."""
    text = header.split(b"\0", 1)[0].decode("ascii")
    found = re.search(rf"^{key}[ \t]+(\S+)", text, re.MULTILINE)
    return found[1] if found else None


def read(path: pathlib.Path) -> tuple[dict[str, str | None], bytes]:
    """Take a file apart as `dada_diskdb` does: HDR_SIZE bytes of header, and FILE_SIZE bytes of data."""
    content = path.read_bytes()
    size = int(header_value(content[:4096], "HDR_SIZE") or "")
    header, data = content[:size], content[size:]
    keys = re.findall(rb"^([A-Z_]+) ", header, re.MULTILINE)
    assert len(keys) == len(set(keys))
    assert len(data) == int(header_value(header, "FILE_SIZE") or "")
    return {key.decode(): header_value(header, key.decode()) for key in keys}, data


def files_in(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.iterdir(), key=lambda path: path.name)


def wanted(first: int, n: int, heaps: set[tuple[int, int]], fill: int = 0) -> np.ndarray:
    """The samples of a span of batches, from the formula."""
    batches = range(first, first + n)
    return np.array(
        [
            [[value(b, a, i) if (b, a) in heaps else fill for i in range(SAMPLES)] for a in range(ANTENNAS)]
            for b in batches
        ]
    )


def record(folder, heaps, *, layout=None, header=None, file_bytes=2 * CHUNK_BYTES, **kwargs):
    layout = layout or layout_of()
    seen = []
    with (
        receiver(layout, heaps, **kwargs) as source,
        DadaWriter(source, folder, header=header, file_bytes=file_bytes) as writer,
    ):
        for chunk in writer:
            with chunk:
                seen.append(chunk.timestamp)
    return writer.stats(), seen


def test_files_of_an_observation(tmp_path):
    """Two chunks each, named by UTC and offset; the last is shorter. No sample is lost at their borders."""
    heaps = heaps_of(range(1000, 1005))
    stats, seen = record(tmp_path / "night", heaps, header={"TELESCOPE": "MeerKAT", "SOURCE": "J0437-4715"})
    assert len(seen) == 5
    paths = files_in(tmp_path / "night")
    # Chunk 1000 begins at batch 4000: tick 64 000, which are 64 s.
    assert [path.name for path in paths] == [
        f"{DATE[:-2]}14:24_{2 * n * CHUNK_BYTES:016d}.{n:06d}.dada" for n in range(3)
    ]
    data = b""
    for n, path in enumerate(paths):
        header, content = read(path)
        assert header["FILE_NAME"] == path.name
        assert header["UTC_START"] == f"{DATE[:-2]}14:24"
        assert (header["OBS_OFFSET"], header["FILE_NUMBER"]) == (str(len(data)), str(n))
        assert (header["NBIT"], header["NDIM"], header["TELESCOPE"]) == ("16", "1", "MeerKAT")
        assert header["HEAPS_MISSING"] == "0"
        data += content
    assert stats.files == 3
    assert stats.bytes == len(data) == 5 * CHUNK_BYTES
    samples = np.frombuffer(data, ">i2").reshape(SHAPE)
    np.testing.assert_array_equal(samples, wanted(4000, 5 * BATCHES, set(heaps)))


def test_gaps_hold_their_place(tmp_path):
    """A missing heap, and missing chunks, are zeros; the headers and the account tell how many heaps they are."""
    missing = [(4001, 2), (4003, 0), (4041, 1)]
    heaps = heaps_of([1000, 1001, 1005, 1010], missing)
    stats, seen = record(tmp_path, heaps, file_bytes=3 * CHUNK_BYTES)
    assert len(seen) == 4
    parts = [read(path) for path in files_in(tmp_path)]
    samples = np.frombuffer(b"".join(data for _, data in parts), ">i2").reshape(SHAPE)
    np.testing.assert_array_equal(samples, wanted(4000, 11 * BATCHES, set(heaps)))
    assert [int(header["OBS_OFFSET"] or "") // CHUNK_BYTES for header, _ in parts] == [0, 3, 6, 9]
    assert [header["HEAPS"] for header, _ in parts] == ["22", "12", "0", "11"]
    assert [header["HEAPS_MISSING"] for header, _ in parts] == ["14", "24", "36", "13"]
    assert (stats.chunks, stats.filled_chunks, stats.observations) == (4, 7, 1)
    assert (stats.heaps, stats.missing_heaps) == (45, 11 * BATCHES * ANTENNAS - 45)


def test_no_stale_data(tmp_path):
    """Memory is used again: what an earlier chunk left there is not in the file."""
    heaps = heaps_of(range(1000, 1030), [(4000 + 7 * n, n % ANTENNAS) for n in range(8, 17)])
    record(tmp_path, heaps, file_bytes=100 * CHUNK_BYTES)
    (path,) = files_in(tmp_path)
    samples = np.frombuffer(read(path)[1], ">i2").reshape(SHAPE)
    np.testing.assert_array_equal(samples, wanted(4000, 30 * BATCHES, set(heaps)))


@pytest.mark.parametrize("gaps", [False, True])
def test_fill_of_the_receiver(tmp_path, gaps):
    heaps = heaps_of([1000, 1003], [(4002, 1)])
    record(tmp_path, heaps, file_bytes=100 * CHUNK_BYTES, fill=-7, gaps=gaps)
    (path,) = files_in(tmp_path)
    samples = np.frombuffer(read(path)[1], ">i2").reshape(SHAPE)
    np.testing.assert_array_equal(samples, wanted(4000, 4 * BATCHES, set(heaps), fill=-7))


def test_time_of_any_sample(tmp_path):
    """UTC_START is a whole second; the rest is in PICOSECONDS. Ticks and MJD say the same, to their last digit."""
    layout = layout_of(time=TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES, tick_rate=TICK_RATE, epoch=EPOCH + 0.25))
    heaps = heaps_of([1001])
    record(tmp_path, heaps, layout=layout)
    (path,) = files_in(tmp_path)
    header, _ = read(path)
    ticks = 1001 * BATCHES * STEP
    exact = EPOCH + Fraction(1, 4) + Fraction(ticks, TICK_RATE)
    assert header["UTC_START"] == f"{DATE[:-2]}14:24"
    assert Fraction(int(header["PICOSECONDS"] or ""), 10**12) == exact % 1
    assert header["SAMPLE_CLOCK_START"] == str(ticks)
    sync, rate = Fraction(header["SYNC_TIME"] or ""), Fraction(header["SAMPLE_CLOCK"] or "")
    assert sync + ticks / rate == exact
    assert abs((Fraction(header["MJD_START"] or "") - 40587) * 86400 - exact) < Fraction(1, 10**9)
    # A chunk has so many bytes in 4 * 16 ms.
    assert header["BYTES_PER_SECOND"] == str(round(CHUNK_BYTES / 0.064))


def test_time_that_begins_again(tmp_path):
    """Another observation begins, with a UTC of its own."""
    heaps = heaps_of([1000, 1001, 1002]) + heaps_of([10, 11, 12])
    stats, seen = record(tmp_path, heaps, file_bytes=100 * CHUNK_BYTES, max_jump=50, resync=True)
    paths = files_in(tmp_path)
    assert stats.observations == len(paths) == 2
    assert len(seen) == stats.chunks
    for path in paths:
        header, data = read(path)
        assert header["OBS_OFFSET"] == "0"
        samples = np.frombuffer(data, ">i2").reshape(SHAPE)
        first = int(header["SAMPLE_CLOCK_START"] or "") // STEP
        # At the restart each source may lose a heap or two: what is there is right.
        there = {(first + b, a) for b, a in zip(*np.nonzero(samples.any(axis=2)), strict=True)}
        assert there <= set(heaps)
        np.testing.assert_array_equal(samples, wanted(first, len(samples), there))


def test_observations_of_the_same_second(tmp_path):
    """They have names of their own."""
    layout = layout_of()
    with receiver(layout, heaps_of([1000, 1001])) as source, DadaWriter(source, tmp_path) as writer:
        for chunk in source:
            with chunk:
                chunk.gap = None
                writer.write(chunk)
    names = [path.name for path in files_in(tmp_path)]
    assert [name.rpartition("_")[2] for name in names] == [f"{0:016d}.{n:06d}.dada" for n in range(2)]


@pytest.mark.parametrize(
    ("dtype", "keys"),
    [
        ("int8", {"NBIT": "8", "NDIM": "1"}),
        ("int10", {"NBIT": "10", "NDIM": "1"}),
        ("cint8", {"NBIT": "8", "NDIM": "2"}),
        ("complex64", {"NBIT": "32", "NDIM": "2"}),
    ],
)
def test_kinds_of_samples(tmp_path, dtype, keys):
    """NBIT is of one number; TSAMP follows from the user's NPOL and NCHAN, in microseconds."""
    layout = layout_of(dtype=dtype, heap_bytes=40, side_items=())
    with receiver(layout, []) as source:
        writer = DadaWriter(source, tmp_path, header={"NPOL": 2, "NCHAN": 2})
        elements = writer._element()
    bits = int(keys["NBIT"]) * int(keys["NDIM"])
    # 3 antennas of 40 bytes in 16 ms.
    assert Fraction(elements.pop("TSAMP")) == pytest.approx(16_000 * bits * 4 / (3 * 320))
    assert {key: str(number) for key, number in elements.items()} == keys


def test_one_source(tmp_path):
    """A stream of one source has one polarisation and one channel, unless the user says otherwise."""
    layout = layout_of(axes=(), side_items=())
    with receiver(layout, []) as source:
        assert DadaWriter(source, tmp_path)._element() == {
            "NBIT": 16,
            "NDIM": 1,
            "NPOL": 1,
            "NCHAN": 1,
            "TSAMP": repr(16_000 / SAMPLES),
        }
        assert DadaWriter(source, tmp_path, header={"NPOL": 5})._element() == {"NBIT": 16, "NDIM": 1}


@pytest.mark.parametrize("order", [("time", "antenna"), ("antenna", "time")])
def test_order_and_strides(tmp_path, order):
    """The data of a chunk are in the order of its axes. Gaps between heaps are left out."""
    heaps = heaps_of([1000, 1002], [(4003, 1)])
    for strides in ({}, {order[1]: 16}):
        folder = tmp_path / str(len(strides))
        record(folder, heaps, layout=layout_of(order=order, strides=strides), file_bytes=100 * CHUNK_BYTES, fill=5)
        (path,) = files_in(folder)
        samples = np.frombuffer(read(path)[1], ">i2")
        chunks = wanted(4000, 3 * BATCHES, set(heaps), fill=5).reshape(3, BATCHES, ANTENNAS, SAMPLES)
        if order[0] == "antenna":
            chunks = chunks.swapaxes(1, 2)
        np.testing.assert_array_equal(samples, chunks.ravel())


def test_nothing_is_overwritten(tmp_path):
    heaps = heaps_of([1000])
    record(tmp_path, heaps)
    (path,) = files_in(tmp_path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        record(tmp_path, heaps)
    assert path.read_bytes() == before


def test_full_disk(tmp_path, monkeypatch):
    """The error comes to the loop. What the file has before it is whole, and its header says how much that is."""
    heaps = heaps_of(range(1000, 1004))
    put, count = DadaWriter._put, iter(range(100))

    def full(self, content):
        if next(count) == 3:  # the header, two chunks, and now a part of the third
            put(self, bytes(content)[:7])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(self, content)

    monkeypatch.setattr(DadaWriter, "_put", full)
    with receiver(layout_of(), heaps) as source, DadaWriter(source, tmp_path) as writer:
        chunks = iter(writer)
        for _ in range(2):
            next(chunks).recycle()
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            next(chunks)
        (path,) = files_in(tmp_path)
        header, data = read(path)
        assert header["HEAPS"] == str(2 * BATCHES * ANTENNAS)
        np.testing.assert_array_equal(
            np.frombuffer(data, ">i2").reshape(SHAPE), wanted(4000, 2 * BATCHES, set(heaps_of([1000, 1001])))
        )


def test_full_disk_from_the_start(tmp_path, monkeypatch):
    """No empty file stays."""

    def full(_self, _content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(DadaWriter, "_put", full)
    with receiver(layout_of(), heaps_of([1000])) as source, DadaWriter(source, tmp_path) as writer:
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            next(iter(writer))
        assert not files_in(tmp_path)
        assert writer.stats().files == 0


def test_time_not_known_yet(tmp_path):
    """Chunks that come before the heap that tells UTC are left out, and counted."""
    layout = layout_of(
        time=TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES, tick_rate=TICK_RATE, epoch_item=0x1700), side_items=()
    )
    stats, seen = record(tmp_path, heaps_of([1000, 1001]), layout=layout)
    assert stats.untimed_chunks == len(seen) == 2
    assert not files_in(tmp_path)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"UTC_START": "x"}, "UTC_START"),
        ({"FILE_SIZE": 1}, "FILE_SIZE"),
        ({"TWO WORDS": 1}, "one word"),
        ({"": 1}, "one word"),
        ({"SOURCE": "a\nHDR_SIZE 1"}, "a line"),
        ({"SOURCE": "a#b"}, "a line"),
        ({"SOURCE": ""}, "a line"),
        ({"SOURCE": "é"}, "a line"),
        ({"NPOL": 0}, "NPOL"),
        ({"COMMENT": "x" * 4000}, "4096"),
    ],
)
def test_headers_that_cannot_be(tmp_path, header, words):
    with receiver(layout_of(), []) as source, pytest.raises(ValueError, match=words):
        DadaWriter(source, tmp_path / "night", header=header)
    assert not (tmp_path / "night").exists()


def test_layouts_without_utc(tmp_path):
    layout = layout_of(time=TimeAxis(item=TIME_ID, step=STEP, batches=BATCHES, tick_rate=TICK_RATE))
    with receiver(layout, []) as source, pytest.raises(ValueError, match="UTC"):
        DadaWriter(source, tmp_path)
    with pytest.raises(TypeError, match="Receiver"):
        DadaWriter("receiver", tmp_path)


def test_baseband_reads_it(tmp_path):
    """A reader that is not ours: samples and times over the files of an observation."""
    dada = pytest.importorskip("baseband.dada", reason="it is too large for every developer")
    sequentialfile = pytest.importorskip("baseband.helpers.sequentialfile")
    layout = layout_of(dtype="int8", heap_bytes=2 * SAMPLES, axes=(), side_items=())
    heaps = [(batch, 0) for batch in range(4000, 4020) if not 4008 <= batch < 4012]
    record(tmp_path, heaps, layout=layout, file_bytes=2 * BATCHES * 2 * SAMPLES)
    paths = files_in(tmp_path)
    assert len(paths) == 3
    with sequentialfile.open(paths[:2], "rb") as raw, dada.open(raw, "rs") as stream:
        assert stream.start_time.utc.isot == "2023-11-14T22:14:24.000"
        assert stream.sample_rate.to_value("Hz") == pytest.approx(10 / 0.016)
        samples = stream.read()
    there = {batch for batch, _ in heaps}
    numbers = [
        np.array([value(b, 0, i) for i in range(SAMPLES)], ">i2").view(np.int8) if b in there else np.zeros(2 * SAMPLES)
        for b in range(4000, 4016)
    ]
    np.testing.assert_array_equal(samples, np.concatenate(numbers))
    with dada.open(str(paths[2]), "rs") as stream:
        assert stream.start_time.utc.isot == "2023-11-14T22:14:24.256"
