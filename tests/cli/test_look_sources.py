"""`speadrx look` at recordings, captures and ports; what it writes, and what it refuses."""

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
from looking import PAYLOAD, SOURCE, TIME, layout_of, noise, packed, packets_of
from speadrx import TimeAxis
from speadrx.cli.group import group
from terminals import Terminal, run, run_here
from wire import heap, write_capture


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

    def test_missing_of_one_source_is_the_same_alone(self, tmp_path):
        """Others tell how much time there was, also those that are not looked at: source 0 never came."""
        pytest.importorskip("zarr")
        samples = noise(12, 3, 256, 60)
        heaps = [(b, 1) for b in range(12)] + [(b, 2) for b in range(3, 9)]
        write_capture(tmp_path / "capture.pcap", packets_of({at: packed(samples[at]) for at in sorted(heaps)}))
        (tmp_path / "array.toml").write_text(layout_of().to_toml(), "utf-8")
        capture, layout = str(tmp_path / "capture.pcap"), str(tmp_path / "array.toml")
        run_here("record", capture, "-l", layout, "-o", str(tmp_path / "night.zarr"))
        for source, missing in enumerate((12, 0, 6)):
            chosen = ("--source", f"antenna={source}")
            assert self.look(tmp_path, *chosen)["missing"] == missing
            assert json.loads(run_here("look", capture, "-l", layout, "--json", *chosen))["missing"] == missing

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
