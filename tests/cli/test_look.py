"""`speadrx look`: its figures are those of numpy on the samples that were sent, and missing heaps do not matter."""

import json
import math
import os
import re
import socket
import threading
import xml.etree.ElementTree as ET

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from addresses import own_port
from speadrx import Axis, Field, Layout, TimeAxis
from speadrx.cli.group import group
from speadrx.cli.impression import Impression
from speadrx.cli.impression_view import document
from speadrx.cli.meaning import Meaning
from terminals import Terminal, run, run_here
from wire import heap, write_capture

EPOCH, RATE = 1_777_673_400, 1_000_000
#: 2026-05-01, at 22:10.
BEGIN = "2026-05-01T22:10:00"
TIME, SOURCE, PAYLOAD = 0x1600, 0x4101, 0x3300


def layout_of(n=3, batches=4, step=256, **changes):
    fields = {
        "heap_bytes": 320,
        "dtype": "int10",
        "sources": "antenna",
        "time": TimeAxis(item=TIME, step=step, batches=batches, tick_rate=RATE, epoch=EPOCH),
        "axes": (Axis(name="antenna", item=SOURCE, size=n),),
        **changes,
    }
    return Layout(**fields)


def packed(samples, bits=10):
    """Samples packed with the highest bit first, by numpy alone."""
    places = np.arange(bits - 1, -1, -1)
    return np.packbits(((samples.astype(np.int64).reshape(-1, 1) >> places) & 1).astype(np.uint8).reshape(-1)).tobytes()


def packets_of(payloads, step=256):
    """The packets of heaps, by batch and source."""
    for count, ((batch, source), payload) in enumerate(payloads.items()):
        yield from heap(count + 1, [(TIME, int(batch) * step), (SOURCE, int(source)), (PAYLOAD, None)], payload)


@pytest.fixture
def look(tmp_path):
    """Look at a capture of heaps with this layout; return the numbers, or what it prints."""

    def look_at(layout, payloads, *args, code=0, as_json=True):
        (tmp_path / "array.toml").write_text(layout.to_toml(), "utf-8")
        capture = write_capture(tmp_path / "capture.pcap", packets_of(payloads, layout.time.step))
        options = ["--json"] if as_json else []
        text = run_here("look", capture, "-l", str(tmp_path / "array.toml"), *options, *map(str, args), code=code)
        return json.loads(text) if as_json and not code else text

    return look_at


def noise(batches, sources, n, sigma, seed=1):
    """Samples of 10 bits, by batch and source; each source is louder than the one before."""
    rng = np.random.default_rng(seed)
    loud = sigma * (1 + np.arange(sources))[np.newaxis, :, np.newaxis]
    return np.clip(np.rint(rng.normal(0.5, 1, (batches, sources, n)) * loud), -512, 511).astype(int)


class TestLevels:
    def test_those_of_numpy(self, look):
        """So many chunks that their memory is used again, with heaps missing, which have stale samples then."""
        samples = noise(200, 3, 256, 60)
        samples[:80] = 511
        there = np.random.default_rng(2).random((200, 3)) > 0.2
        there[[0, -1]] = True
        payloads = {(b, s): packed(samples[b, s]) for b, s in zip(*np.nonzero(there), strict=True)}
        numbers = look(layout_of(), payloads, "--chunks", 50)
        assert (numbers["kind"], numbers["chunks"]) == ("voltage", 50)
        assert (numbers["present"], numbers["missing"]) == (there.sum(), (~there).sum())
        assert numbers["samples"] == 256 * there.sum()
        for source, found in enumerate(numbers["sources"]):
            sent = samples[there[:, source], source].reshape(-1)
            assert (found["label"], found["samples"]) == (str(source), sent.size)
            assert found["missing"] == np.count_nonzero(~there[:, source])
            assert found["mean"] == pytest.approx(sent.mean())
            assert found["rms"] == pytest.approx(math.sqrt((sent.astype(float) ** 2).mean()))
            assert (found["low"], found["high"]) == (sent.min(), sent.max())
            assert found["bits"] == pytest.approx(math.log2(sent.max() - sent.min() + 1))
            assert found["clipped"] == pytest.approx(((sent >= 511) | (sent <= -511)).mean())
        counts = np.array(numbers["histogram"]["counts"])
        edges = np.array(numbers["histogram"]["edges"])
        for source, row in enumerate(counts):
            sent = samples[there[:, source], source].reshape(-1)
            np.testing.assert_array_equal(row, np.histogram(sent, edges)[0])
            assert row.sum() == sent.size

    def test_dbfs_is_that_of_meerkat(self, look):
        """As in the own test of katgpucbf (TestEngine.test_dig_rms_dbfs_sensors): 64, in samples of 10 bits."""
        payloads = {(b, 0): packed(np.full(256, 64)) for b in range(4)}
        (source,) = look(layout_of(n=1), payloads)["sources"]
        assert source["dbfs"] == pytest.approx(-15.0345186)
        assert (source["mean"], source["bits"], source["clipped"]) == (64, 0, 0)

    def test_full_sine_has_0_dbfs(self, look):
        wave = 511 * np.cos(2 * np.pi * 16 * np.arange(256) / 256)
        (source,) = look(layout_of(n=1), {(b, 0): packed(np.rint(wave)) for b in range(4)})["sources"]
        assert source["dbfs"] == pytest.approx(0, abs=0.01)

    @pytest.mark.parametrize("value", [511, -511, -512])
    def test_saturated_on_both_sides(self, look, value):
        """As katgpucbf counts: a digitiser saturates at 511 and at -511."""
        samples = np.zeros((4, 256), int)
        samples[1, 10:74] = value
        (source,) = look(layout_of(n=1), {(b, 0): packed(samples[b]) for b in range(4)})["sources"]
        assert source["clipped"] == 64 / 1024

    def test_two_bits_clip_nothing(self, look):
        payloads = {(b, 0): packed(np.tile([-2, -1, 0, 1], 64), 2) for b in range(4)}
        (source,) = look(layout_of(n=1, heap_bytes=64, dtype="int2"), payloads)["sources"]
        assert source["clipped"] is None
        assert source["bits"] == 2

    def test_middle_of_unsigned_samples(self, look):
        samples = np.tile([0, 255, 100, 155], 64).astype(np.uint8)
        layout = layout_of(n=1, heap_bytes=256, dtype="uint8", heap_shape=(256,))
        (source,) = look(layout, {(b, 0): samples.tobytes() for b in range(4)})["sources"]
        assert source["mean"] == 127.5
        assert source["rms"] == pytest.approx((samples - 127.5).std())
        assert source["clipped"] == 0.5

    def test_complex_samples(self, look):
        rng = np.random.default_rng(3)
        parts = rng.integers(-100, 90, (8, 256, 2))
        layout = layout_of(n=1, heap_bytes=512, dtype="cint8")
        numbers = look(layout, {(b, 0): parts[b].astype(np.int8).tobytes() for b in range(8)})
        (source,) = numbers["sources"]
        assert source["samples"] == 8 * 256
        assert source["mean"] == pytest.approx(parts.reshape(-1, 2).mean(axis=0).tolist())
        assert source["rms"] == pytest.approx(math.sqrt((parts**2).mean()))
        assert (source["low"], source["high"]) == (parts.min(), parts.max())
        assert sum(numbers["histogram"]["counts"][0]) == parts.size

    def test_large_integers_have_wide_bins(self, look):
        samples = np.random.default_rng(4).integers(-30000, 30000, (8, 160)).astype(">i2")
        layout = layout_of(n=1, dtype=">i2")
        numbers = look(layout, {(b, 0): samples[b].tobytes() for b in range(8)})
        edges, counts = numbers["histogram"]["edges"], numbers["histogram"]["counts"][0]
        np.testing.assert_array_equal(counts, np.histogram(samples, edges)[0])
        assert sum(counts) == samples.size
        assert 512 < len(counts) <= 1024

    def test_what_is_not_finite_counts_for_nothing(self, look):
        samples = np.random.default_rng(5).normal(0, 1e-6, (4, 80)).astype("<f4")
        samples[0, :5] = [np.nan, np.inf, -np.inf, 0, 0]
        numbers = look(layout_of(n=1, dtype="<f4"), {(b, 0): samples[b].tobytes() for b in range(4)})
        (source,) = numbers["sources"]
        good = samples[np.isfinite(samples)]
        assert (source["samples"], source["not_finite"]) == (320, 3)
        assert source["rms"] == pytest.approx(math.sqrt((good.astype(float) ** 2).mean()))
        assert (source["dbfs"], source["bits"], source["clipped"]) == (None, None, None)
        assert sum(numbers["histogram"]["counts"][0]) == good.size
        # The other heaps make the spectrum.
        window = np.hanning(65)[:-1]
        powers = np.abs(np.fft.rfft(samples[1:, :64].astype(float) * window)) ** 2 * 2 / window.sum() ** 2
        np.testing.assert_allclose(numbers["spectrum"]["mean"][0][1:-1], powers.mean(axis=0)[1:-1], rtol=1e-6)


def absent_heaps_with(value):
    """What is seen of chunks whose missing heaps hold a value."""
    layout = layout_of(heap_bytes=1024, dtype="float32", heap_shape=(256,))
    impression = Impression(Meaning(layout), None, None, threading.Event())
    rng = np.random.default_rng(6)
    for number in range(3):
        numbers = rng.normal(size=(4, 3, 256)).astype(np.float32)
        present = rng.random((4, 3)) > 0.3
        numbers[~present] = value
        impression.look(numbers, present, number * 1024, np.datetime64(number, "s"), 0)
    return document(impression)


@pytest.mark.parametrize("rubbish", [3e38, -7.0, math.nan, math.inf])
def test_what_is_in_the_place_of_missing_heaps_does_not_matter(rubbish):
    assert absent_heaps_with(rubbish) == absent_heaps_with(0.0)


class TestSpectrum:
    @pytest.mark.parametrize("tone", [20, 37, 100])
    def test_tone_of_real_samples(self, look, tone):
        """In its bin, with its power: that of the samples."""
        wave = np.rint(400 * np.cos(2 * np.pi * tone * np.arange(256) / 256 + 0.3))
        numbers = look(layout_of(n=1), {(b, 0): packed(wave) for b in range(4)})
        spectrum = numbers["spectrum"]
        mean = np.array(spectrum["mean"][0])
        assert (spectrum["of"], len(mean)) == ("frequency", 129)
        assert int(mean.argmax()) == tone
        assert spectrum["frequency"][tone] == tone / 256 * RATE
        assert mean[tone] == pytest.approx((wave**2).mean(), rel=0.01)
        level = numbers["sources"][0]["dbfs"]
        assert 10 * math.log10(mean[tone] / spectrum["full_scale"] ** 2 * 2) == pytest.approx(level, abs=0.05)

    @pytest.mark.parametrize("tone", [-100, -3, 42])
    def test_tone_of_complex_samples(self, look, tone):
        wave = 100 * np.exp(2j * np.pi * tone * np.arange(256) / 256)
        payload = np.stack([np.rint(wave.real), np.rint(wave.imag)], -1).astype(np.int8).tobytes()
        layout = layout_of(n=1, heap_bytes=512, dtype="cint8")
        spectrum = look(layout, {(b, 0): payload for b in range(4)})["spectrum"]
        best = int(np.argmax(spectrum["mean"][0]))
        assert spectrum["frequency"][best] == tone / 256 * RATE
        assert spectrum["mean"][0][best] == pytest.approx(100**2 / 2, rel=0.01)

    def test_constant_is_at_frequency_0(self, look):
        spectrum = look(layout_of(n=1), {(b, 0): packed(np.full(256, -9)) for b in range(4)})["spectrum"]
        assert spectrum["mean"][0][0] == pytest.approx(81)

    def test_long_heaps_have_several_transforms(self, look):
        tone = np.rint(100 * np.cos(2 * np.pi * 300 * np.arange(4500) / 2048)).astype(np.int8)
        layout = layout_of(
            n=1, heap_bytes=4500, step=4500, dtype="int8", time=TimeAxis(item=TIME, step=4500, batches=4)
        )
        spectrum = look(layout, {(b, 0): tone.tobytes() for b in range(4)})["spectrum"]
        assert spectrum["of"] == "cycles per sample"
        assert int(np.argmax(spectrum["mean"][0])) == 300
        assert spectrum["cycles_per_sample"][300] == 300 / 2048

    @pytest.mark.parametrize("split", [False, True])
    def test_channelised_voltages(self, look, split):
        """Complex numbers, whatever they are called: of complex integers, or with a dimension of their parts."""
        parts = np.random.default_rng(7).integers(-127, 128, (4, 2, 16, 8, 2))
        parts[:, :, 5] //= 8
        layout = layout_of(
            n=2,
            heap_bytes=256,
            dtype="int8" if split else "cint8",
            heap_shape=(16, 8, 2) if split else (16, 8),
            heap_axes=("channel", "spectrum", "complex") if split else ("channel", "spectrum"),
        )
        payloads = {(b, s): parts[b, s].astype(np.int8).tobytes() for b in range(4) for s in range(2)}
        numbers = look(layout, payloads)
        assert numbers["kind"] == "voltage"
        assert numbers["spectrum"]["channel"] == list(range(16))
        wanted = (parts.astype(float) ** 2).mean(axis=(0, 3, 4))
        np.testing.assert_allclose(numbers["spectrum"]["mean"], wanted, rtol=1e-6)
        # Parseval: the channels have the power of the samples.
        for source, row in zip(numbers["sources"], wanted, strict=True):
            assert source["rms"] ** 2 == pytest.approx(row.mean())

    def test_visibilities_of_substreams_are_one_spectrum(self, look):
        parts = np.random.default_rng(8).integers(-(10**6), 10**6, (3, 4, 8, 5, 2))
        layout = layout_of(
            sources="substream",
            time=TimeAxis(item=TIME, step=256, batches=1),
            axes=(Axis(name="substream", item=SOURCE, size=4, step=8),),
            heap_bytes=8 * 5 * 8,
            dtype=">i4",
            heap_shape=(8, 5, 2),
            heap_axes=("channel", "product", "complex"),
        )
        payloads = {(b, 8 * s): parts[b, s].astype(">i4").tobytes() for b in range(3) for s in range(4)}
        numbers = look(layout, payloads, "--chunks", 3)
        assert numbers["kind"] == "power"
        assert [source["label"] for source in numbers["sources"]] == ["0", "1", "2", "3"]
        spectrum = numbers["spectrum"]
        assert spectrum["channel"] == list(range(32))
        wanted = np.abs(parts[..., 0] + 1j * parts[..., 1]).mean(axis=(0, 3)).reshape(-1)
        np.testing.assert_allclose(spectrum["mean"][0], wanted)
        np.testing.assert_allclose(np.mean(spectrum["waterfall"]["mean"], axis=0), wanted)
        assert spectrum["full_scale"] is None
        # Two of the substreams: their channels keep their numbers.
        some = look(layout, payloads, "--source", "substream=8,24", "--source", "product=2", "--chunks", 3)["spectrum"]
        assert some["channel"] == [*range(8, 16), *range(24, 32)]
        chosen = np.abs(parts[..., 2, 0] + 1j * parts[..., 2, 1]).mean(axis=0)[[1, 3]].reshape(-1)
        np.testing.assert_allclose(some["mean"][0], chosen)

    def test_axis_of_channels(self, look):
        samples = np.random.default_rng(9).integers(-100, 100, (4, 3, 256))
        layout = layout_of(
            sources=None,
            axes=(Axis(name="channel", item=SOURCE, values=(64, 65, 70)),),
            heap_bytes=256,
            dtype="int8",
        )
        names = (64, 65, 70)
        payloads = {(b, names[c]): samples[b, c].astype(np.int8).tobytes() for b in range(4) for c in range(3)}
        numbers = look(layout, payloads)
        assert numbers["spectrum"]["channel"] == [64, 65, 70]
        np.testing.assert_allclose(numbers["spectrum"]["mean"], [(samples.astype(float) ** 2).mean(axis=(0, 2))])
        assert [source["label"] for source in numbers["sources"]] == ["all"]

    def test_many_channels_are_averaged(self):
        n = 8193
        layout = layout_of(n=1, heap_bytes=4 * n, dtype="float32", heap_shape=(n,), heap_axes=("channel",))
        powers = np.random.default_rng(10).random((4, 1, n)).astype(np.float32)
        impression = Impression(Meaning(layout), None, None, threading.Event())
        impression.look(powers, np.ones((4, 1), bool), 0, None, None)
        spectra = impression.spectrum.spectra()
        assert spectra.mean.shape == (1, 2731)
        np.testing.assert_allclose(spectra.mean[0], powers.mean(axis=(0, 1)).reshape(-1, 3).mean(axis=1), rtol=1e-5)
        np.testing.assert_allclose(spectra.frequencies, np.arange(n).reshape(-1, 3).mean(axis=1))

    def test_names_that_are_lacking(self, look):
        layout = layout_of(n=1, heap_bytes=256, dtype="int8", heap_shape=(16, 8, 2))
        payloads = {(b, 0): bytes(range(256)) for b in range(4)}
        numbers = look(layout, payloads)
        assert numbers["spectrum"] is None
        assert "(16, 8, 2)" in numbers["why_no_spectrum"]
        named = look(layout, payloads, "--set", 'heap_axes=["channel", "spectrum", "complex"]')
        assert len(named["spectrum"]["channel"]) == 16
        assert "Name them" in look(layout, payloads, as_json=False)


class TestWaterfall:
    def test_rows_are_the_heaps_with_their_utc(self, look):
        samples = noise(16, 2, 256, 100)
        there = np.ones((16, 2), bool)
        there[5:8, 0] = False
        payloads = {(b, s): packed(samples[b, s]) for b, s in zip(*np.nonzero(there), strict=True)}
        waterfall = look(layout_of(n=2), payloads)["spectrum"]["waterfall"]
        assert (waterfall["source"], waterfall["row_batches"]) == ("0", 1)
        assert waterfall["timestamp"] == [256 * b for b in range(16)]
        assert waterfall["utc"] == [f"{BEGIN}.{256 * b:06d}000" for b in range(16)]
        window = np.hanning(257)[:-1]
        for batch, row in enumerate(waterfall["mean"]):
            if not there[batch, 0]:
                assert set(row) == {None}
                continue
            powers = np.abs(np.fft.rfft(samples[batch, 0] * window)) ** 2 * 2 / window.sum() ** 2
            np.testing.assert_allclose(row[1:-1], powers[1:-1])

    def test_many_rows_are_merged(self):
        layout = layout_of(n=1, heap_bytes=16, dtype="float32", heap_shape=(4,), heap_axes=("channel",), batches=10)
        impression = Impression(Meaning(layout), None, None, threading.Event())
        powers = np.random.default_rng(11).random((1000, 1, 4)).astype(np.float32)
        for begin in range(0, 1000, 10):
            impression.look(powers[begin : begin + 10], np.ones((10, 1), bool), begin * 256, None, 0 if begin else None)
        spectra = impression.spectrum.spectra()
        assert spectra.row_batches == 4
        np.testing.assert_allclose(spectra.rows, powers.reshape(250, 4, 4).mean(axis=1), rtol=1e-6)
        assert impression.ticks(spectra.first_batch).tolist() == list(range(0, 256 * 1000, 1024))

    def test_whole_chunk_is_missing(self, look):
        payload = packed(noise(1, 1, 256, 50)[0, 0])
        payloads = {(b, 0): payload for b in (*range(4), *range(8, 12))}
        numbers = look(layout_of(n=1), payloads, "--chunks", 9)
        assert (numbers["missing"], numbers["restarts"]) == (4, 0)
        assert numbers["spectrum"]["waterfall"]["mean"][5][0] is None
        assert numbers["spectrum"]["waterfall"]["timestamp"] == [256 * b for b in range(12)]
        assert numbers["utc"] == [f"{BEGIN}.000000000", f"{BEGIN}.{12 * 256:06d}000"]


class TestSelection:
    SAMPLES = noise(8, 3, 256, 40)

    def payloads(self):
        return {(b, s): packed(self.SAMPLES[b, s]) for b in range(8) for s in range(3)}

    @pytest.mark.parametrize("text", ["antenna=2", "antenna=0x2", "m002", "antenna=m002"])
    def test_a_source(self, look, text):
        layout = layout_of(source_labels=("m000", "m001", "m002"))
        numbers = look(layout, self.payloads(), "--source", text)
        (source,) = numbers["sources"]
        assert source["label"] == "m002"
        assert source["rms"] == pytest.approx(math.sqrt((self.SAMPLES[:, 2].astype(float) ** 2).mean()))
        assert numbers["present"] == 8

    def test_several(self, look):
        numbers = look(layout_of(), self.payloads(), "--source", "antenna=0,2")
        assert [source["label"] for source in numbers["sources"]] == ["0", "2"]

    def test_dimension_of_heaps(self, look):
        parts = np.random.default_rng(12).integers(-100, 100, (4, 128, 2)).astype(np.int8)
        layout = layout_of(n=1, heap_bytes=256, dtype="int8", heap_shape=(128, 2), heap_axes=("sample", "pol"))
        numbers = look(layout, {(b, 0): parts[b].tobytes() for b in range(4)}, "--source", "pol=1")
        assert numbers["sources"][0]["mean"] == pytest.approx(parts[..., 1].mean())
        assert numbers["samples"] == 4 * 128

    def test_field_of_records(self, look):
        layout = layout_of(
            n=1,
            heap_bytes=8 + 64 * 4,
            dtype="uint8",
            fields=(Field(name="status", dtype="<u8"), Field(name="spectrum", dtype=">f4", shape=(64,))),
        )
        records = np.zeros(4, [("status", "<u8"), ("spectrum", ">f4", 64)])
        records["status"] = [5, 6, 7, 8]
        records["spectrum"] = np.random.default_rng(13).random((4, 64))
        payloads = {(b, 0): records[b].tobytes() for b in range(4)}
        numbers = look(layout, payloads)
        np.testing.assert_allclose(numbers["spectrum"]["mean"], [records["spectrum"].mean(axis=0)], rtol=1e-6)
        assert look(layout, payloads, "--field", "status")["sources"][0]["mean"] == 6.5

    def test_amount(self, look):
        payloads = self.payloads()
        assert look(layout_of(), payloads)["present"] == 24
        assert look(layout_of(), payloads, "--chunks", 1)["present"] == 12
        assert look(layout_of(), payloads, "--seconds", "1024us")["present"] == 12
        assert look(layout_of(), payloads, "--seconds", "1025us")["present"] == 24

    def test_as_power(self, look):
        layout = layout_of(n=1, heap_bytes=256, dtype="int8", heap_shape=(256,), heap_axes=("channel",))
        payloads = {(b, 0): np.full(256, -5, np.int8).tobytes() for b in range(4)}
        assert look(layout, payloads)["spectrum"]["mean"][0][3] == 25
        assert look(layout, payloads, "--as", "power")["spectrum"]["mean"][0][3] == 5


@pytest.fixture
def recorded(tmp_path):
    """A capture, its layout, and a recording of it; heaps and a chunk are missing, and numbers have another order."""
    pytest.importorskip("zarr")
    samples = noise(24, 3, 256, 60)
    layout = layout_of(
        heap_shape=(256,), heap_axes=("sample",), samples_order=("antenna", "time", "sample"), name="array"
    )
    missing = {(1, 1), (9, 2), *((b, s) for b in range(12, 16) for s in range(3))}
    payloads = {(b, s): packed(samples[b, s]) for b in range(24) for s in range(3) if (b, s) not in missing}
    capture = write_capture(tmp_path / "capture.pcap", packets_of(payloads))
    (tmp_path / "array.toml").write_text(layout.to_toml(), "utf-8")
    run_here("record", capture, "-l", str(tmp_path / "array.toml"), "-o", str(tmp_path / "night.zarr"), "--json")
    return tmp_path


class TestRecording:
    def look(self, folder, *args):
        return json.loads(run_here("look", str(folder / "night.zarr"), "--json", *args))

    def test_same_as_the_capture(self, recorded):
        capture, layout = str(recorded / "capture.pcap"), str(recorded / "array.toml")
        for args in ([], ["--source", "antenna=1"], ["--chunks", "2"], ["--seconds", "2ms"]):
            wanted = json.loads(run_here("look", capture, "-l", layout, "--json", *args))
            found = self.look(recorded, *args)
            assert found["present"] > 0
            assert found | {"source": 0, "capture": 0} == wanted | {"source": 0, "capture": 0}
        assert self.look(recorded)["missing"] == 14

    def test_filler_does_not_matter(self, recorded):
        """In the bytes of heaps that are not there, whatever the disk holds."""
        before = self.look(recorded)
        # Each chunk has 4 batches of 3 heaps of 320 bytes: (1, 1) is heap 4 of chunk 0, (9, 2) heap 5 of chunk 2.
        for chunk, place in ((0, 4), (2, 5)):
            path = recorded / "night.zarr/data" / f"c.{chunk}.0.0"
            data = bytearray(path.read_bytes())
            assert data[320 * place : 320 * (place + 1)] == bytes(320)
            data[320 * place : 320 * (place + 1)] = b"\x7f" * 320
            path.write_bytes(data)
        assert self.look(recorded) == before

    def test_selected_and_restarted(self, tmp_path):
        pytest.importorskip("zarr")
        samples = noise(8, 3, 256, 60)
        order = [(b, s) for b in (*range(10**6, 10**6 + 4), *range(4)) for s in range(3)]
        packets = []
        for count, (b, s) in enumerate(order):
            payload = packed(samples[b % 10**6, s])
            packets += heap(count + 1, [(TIME, b * 256), (SOURCE, s), (PAYLOAD, None)], payload)
        capture = write_capture(tmp_path / "capture.pcap", packets)
        layout = layout_of(batches=2)
        (tmp_path / "array.toml").write_text(layout.to_toml(), "utf-8")
        options = ["-l", str(tmp_path / "array.toml"), "--select", "antenna=0,2", "--window=2"]
        account = json.loads(run_here("record", capture, *options, "-o", str(tmp_path / "night.zarr"), "--json"))
        numbers = self.look(tmp_path)
        assert [source["label"] for source in numbers["sources"]] == ["0", "2"]
        # The first heap of the new time only tells that it is new.
        lost = account["sources"][0]["missing"]
        assert (numbers["restarts"], numbers["present"]) == (1, 16 - lost)
        sent = np.concatenate([samples[:4, 2], samples[:4, 2]])
        assert numbers["sources"][1]["rms"] == pytest.approx(math.sqrt((sent.astype(float) ** 2).mean()))
        rows = numbers["spectrum"]["waterfall"]["timestamp"]
        assert rows == [256 * b for b, s in order if s == 0]
        assert "antenna here; there is 0, 2" in run_here(
            "look", str(tmp_path / "night.zarr"), "--source", "antenna=1", code=2
        )


@pytest.fixture
def live(tmp_path):
    """A port to which heaps come, as long as the test goes on."""
    port, over = own_port(), threading.Event()
    samples = noise(8, 3, 256, 60)
    # A time that keeps no pace: a busy machine sends at any rate.
    layout = layout_of(time=TimeAxis(item=TIME, step=256, batches=4))
    (tmp_path / "array.toml").write_text(layout.to_toml(), "utf-8")

    def send():
        batch = 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            while not over.wait(0.002):
                for packet in packets_of({(batch, s): packed(samples[batch % 8, s]) for s in range(3)}):
                    sock.sendto(packet, ("127.0.0.1", port))
                batch += 1

    thread = threading.Thread(target=send)
    thread.start()
    yield [f"127.0.0.1:{port}", "-l", str(tmp_path / "array.toml")], samples
    over.set()
    thread.join()


class TestNetwork:
    def test_live_port(self, live):
        arguments, samples = live
        # Beside the numbers, the log may say that this machine is slow.
        result = CliRunner().invoke(group, ["look", *arguments, "--chunks", "4", "--json"])
        assert result.exit_code == 0, result.output
        numbers = json.loads(result.stdout)
        assert numbers["chunks"] == 4
        assert numbers["present"] > 12
        for source, found in enumerate(numbers["sources"]):
            assert samples[:, source].min() <= found["low"]
            assert found["high"] <= samples[:, source].max()
        assert len(numbers["spectrum"]["mean"]) == 3

    def test_ctrl_c_shows_what_there_is(self, live):
        arguments, _ = live
        terminal = Terminal("look", *arguments, "--chunks", "1000000", columns=80, rows=60)
        try:
            terminal.read_until(lambda: re.search(r"looked at [1-9]", terminal.output) or terminal.closed)
            terminal.type("\x03")
            assert terminal.wait() == 0
        finally:
            terminal.close()
        assert re.search(r"Used: [\d,]+ samples of", terminal.output)
        assert "Waterfall" in terminal.output


class TestOutput:
    SAMPLES = noise(32, 3, 256, 70)

    def payloads(self):
        return {(b, s): packed(self.SAMPLES[b, s]) for b in range(32) for s in range(3) if (b, s) != (3, 1)}

    def test_text(self, look):
        text = look(layout_of(name="array"), self.payloads(), as_json=False)
        assert "layout array" in text
        assert "2026-05-01 22:10:00.000000 to 2026-05-01 22:10:00.008192 UTC" in text
        assert "Used: 24,320 samples of 95 heaps in 8 chunks. Missing: 1 heap (1.04%)" in " ".join(text.split())
        assert [word in text for word in ("Histogram", "Mean spectrum", "Waterfall", "kHz", "dBFS")] == [True] * 5
        assert max(map(len, text.splitlines())) <= 80
        assert "No spectrum" not in text

    @pytest.mark.parametrize("columns", [40, 80, 160])
    def test_it_fits_the_terminal(self, look, tmp_path, columns):
        look(layout_of(), self.payloads())
        text = run_here(
            "look", str(tmp_path / "capture.pcap"), "-l", str(tmp_path / "array.toml"), COLUMNS=str(columns)
        )
        assert max(map(len, text.splitlines())) <= columns
        assert "Waterfall" in text

    def test_figure(self, look, tmp_path):
        pytest.importorskip("matplotlib")
        figure = tmp_path / "look.svg"
        text = look(layout_of(name="array"), self.payloads(), "-o", figure, as_json=False)
        assert f"Figure: {figure}" in text
        texts = {element.text for element in ET.parse(figure).iter() if element.tag.endswith("}text")}
        assert {"UTC, 2026-05-01", "Mean spectrum", "Waterfall of antenna 0", "dBFS", "antenna 2"} <= texts
        assert "22:10:00.002" in texts
        assert "frequency in the sampled band, kHz" in texts
        again = look(layout_of(name="array"), self.payloads(), "-o", figure, code=2)
        assert "--force" in again

    def test_figure_of_size(self, look, tmp_path):
        pytest.importorskip("matplotlib")
        from matplotlib.image import imread

        figure = tmp_path / "look.png"
        look(layout_of(), self.payloads(), "-o", figure, "--size", "900x600")
        assert imread(figure).shape[:2] == (600, 900)

    def test_nothing_came(self, look):
        errors = look(layout_of(), {}, code=1, as_json=False)
        assert "nothing was received" in errors


@pytest.mark.parametrize(
    ("changes", "args", "message"),
    [
        ({"dtype": "uint8"}, [], "does not say what heaps hold"),
        ({}, ["--source", "pol=1"], "the layout has no axis 'pol'; its axes are antenna"),
        ({}, ["--source", "antenna=9"], "'9' is no antenna here; there is 0, 1, 2"),
        ({}, ["--source", "m007"], "'m007' is no antenna here"),
        ({"sources": None}, ["--source", "0"], "has no axis ''"),
        ({}, ["--field", "spectrum"], "the layout has no 'spectrum'"),
        ({"time": TimeAxis(item=TIME, step=256, batches=4)}, ["--seconds", "1s"], "give --chunks"),
        ({}, ["-o", "figure.pdf"], "'figure.pdf' must end in .png or .svg"),
        ({}, ["--size", "10x10"], "the width must be from 800"),
    ],
)
def test_what_cannot_be_used_is_named(look, changes, args, message):
    errors = look(layout_of(**changes), {(0, 0): bytes(320)}, *args, code=2)
    assert message in " ".join(errors.split())


def test_layout_is_needed_once(recorded):
    capture, layout, night = (str(recorded / name) for name in ("capture.pcap", "array.toml", "night.zarr"))
    assert "only a recording has its layout in it" in " ".join(run_here("look", capture, code=2).split())
    assert "leave out --layout" in " ".join(run_here("look", night, "-l", layout, code=2).split())
    assert "is not a recording" in run_here("look", str(recorded), code=2)


@pytest.mark.slow
def test_without_matplotlib_it_says_what_to_install(recorded, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError('No module', name='matplotlib')")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    night = str(recorded / "night.zarr")
    assert "pip install 'speadrx[plot]'" in run("look", night, "-o", "a.png", code=2, PYTHONPATH=path)
    assert "Used:" in run("look", night, PYTHONPATH=path)
