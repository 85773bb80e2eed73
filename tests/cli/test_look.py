"""`speadrx look`: its figures are those of numpy on the samples that were sent, and missing heaps do not matter."""

import math
import threading

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from looking import BEGIN, RATE, SOURCE, TIME, layout_of, noise, packed
from speadrx import Axis, Field, TimeAxis
from speadrx.cli.impression import Impression
from speadrx.cli.impression_view import document
from speadrx.cli.meaning import Meaning


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
        assert [source["label"] for source in numbers["sources"]] == ["0", "8", "16", "24"]
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

    @pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
    def test_the_least_power(self, look, dtype):
        """It has no opposite in its type."""
        layout = layout_of(
            n=1, heap_bytes=256, dtype=dtype, heap_shape=(256 // np.dtype(dtype).itemsize,), heap_axes=("channel",)
        )
        least = np.iinfo(dtype).min
        payloads = {(b, 0): np.full(256 // np.dtype(dtype).itemsize, least, dtype).tobytes() for b in range(4)}
        assert look(layout, payloads, "--as", "power")["spectrum"]["mean"][0][3] == -float(least)
