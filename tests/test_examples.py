"""The examples, as users run them: over UDP, with captures and recordings. Numpy makes the truth of what was sent."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

import speadrx
from addresses import own_port
from loopback import is_bound, send, wait_for
from wire import heap, write_capture

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
README = EXAMPLES.parent / "README.md"
TIME_ID, FENG_ID, FENG_RAW_ID = 0x1600, 0x4101, 0x4300

#: Of 30 chunks: whole chunks, heaps at the edges of others, an antenna for long, and all of an integration of another.
LOST = {
    *((batch, antenna) for batch in range(8, 20) for antenna in range(2)),
    *((batch, 1) for batch in range(30, 41)),
    *((batch, 0) for batch in range(64, 96)),
    (0, 1),
    (47, 0),
    (116, 1),
}
BATCHES = 120


def sent_heaps(lost: set[tuple[int, int]], antennas: int = 2) -> Iterator[tuple[int, int]]:
    return ((batch, antenna) for batch in range(BATCHES) for antenna in range(antennas) if (batch, antenna) not in lost)


def waiting(port: int) -> tuple[int, int]:
    """Bytes of packets that wait in the socket at a port, and how many packets it has dropped."""
    lines = pathlib.Path("/proc/net/udp").read_text("ascii").splitlines()[1:]
    (fields,) = (line.split() for line in lines if int(line.split()[1].rpartition(":")[2], 16) == port)
    return int(fields[4].partition(":")[2], 16), int(fields[-1])


@contextlib.contextmanager
def running(name: str, *args: object, cwd: pathlib.Path) -> Iterator[subprocess.Popen[str]]:
    """Run an example. Data of chunks that are recycled are overwritten, so what is stale would show."""
    command = [sys.executable, "-X", "dev", "-W", "ignore", str(EXAMPLES / f"{name}.py"), *map(str, args)]
    env = {"PYTHONPATH": ":".join(sys.path)}
    with (
        (cwd / "stderr").open("w") as stderr,
        subprocess.Popen(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=stderr) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def rest_of(process: subprocess.Popen[str], cwd: pathlib.Path) -> list[str]:
    """Wait for the end; return what it still prints."""
    assert process.stdout is not None
    out = process.stdout.read()
    errors = (cwd / "stderr").read_text("utf-8")
    assert process.wait() == 0, errors
    assert "Traceback" not in errors  # but the log may say that this machine is slow
    return out.splitlines()


def run(name: str, *args: object, cwd: pathlib.Path) -> list[str]:
    """Run an example to its end; return what it prints."""
    with running(name, *args, cwd=cwd) as process:
        return rest_of(process, cwd)


def run_over_udp(
    name: str,
    before: Sequence[object],
    after: Sequence[object],
    packets: list[bytes],
    cwd: pathlib.Path,
    greeting: str | None = None,
) -> list[str]:
    """Run an example at a UDP port, send it packets (after its greeting, if it has one), and end it by Ctrl-C."""
    port = own_port()
    with running(name, *before, f"127.0.0.1:{port}", *after, cwd=cwd) as process:
        assert process.stdout is not None
        wait_for(lambda: is_bound(port) or process.poll() is not None)
        assert process.poll() is None, (cwd / "stderr").read_text("utf-8")
        if greeting is not None:
            assert process.stdout.readline() == f"{greeting}\n"
        for packet in packets:
            send(("127.0.0.1", port), [packet])
            wait_for(lambda: waiting(port)[0] == 0)
        assert waiting(port)[1] == 0
        first = process.stdout.readline()  # its loop has begun
        process.send_signal(signal.SIGINT)
        return [first.rstrip("\n"), *rest_of(process, cwd)]


class TestReceiver:
    """The layout is that of the README."""

    @pytest.mark.parametrize("source", ["udp", "capture"])
    def test_it_says_what_has_come(self, source, tmp_path, rng) -> None:
        toml = README.read_text("utf-8").partition("```toml\n")[2].partition("```")[0]
        layout = toml.replace("heap_bytes = 4096", "heap_bytes = 64").replace("batches = 64", "batches = 4")
        layout = layout.replace("tick_rate = 1_562_500\n", "")  # time does not go on so fast here
        (tmp_path / "array.toml").write_text(layout, "utf-8")
        samples = rng.integers(-(2**15), 2**15, (BATCHES, 4, 32), np.int16)
        heaps = list(sent_heaps(LOST, antennas=4))
        greeting = "Receiving. Ctrl-C ends it."
        packets = [
            packet
            for n, (batch, antenna) in enumerate(heaps, 1)
            for packet in heap(n, [(TIME_ID, 2048 * batch), (FENG_ID, antenna)], samples[batch, antenna].tobytes())
        ]
        if source == "udp":
            # What comes before all sockets are open is not in the account: so it must have begun.
            lines = run_over_udp("receiver", ["array.toml"], [], packets, tmp_path, greeting)
        else:
            first, *lines = run("receiver", "array.toml", write_capture(tmp_path / "a.pcap", packets), cwd=tmp_path)
            assert first == greeting
        wanted = []
        for begin in range(0, BATCHES, 4):
            there = [samples[batch, antenna] for batch, antenna in heaps if begin <= batch < begin + 4]
            if there:
                wanted.append(
                    f"{2048 * begin}: {len(there) / 16:.2%} present, variance {np.array(there, float).var():.6g}"
                )
        lost = [sum(antenna == one for _, antenna in LOST) for one in range(4)]
        wanted += [f"{one}: {BATCHES - n} heaps present, {n} missing" for one, n in enumerate(lost)]
        assert lines == wanted


CHANNELS, CHUNKS = 16, 8


@pytest.mark.parametrize("source", ["udp", "capture"])
def test_spectrometer(source, tmp_path, rng) -> None:
    """Each mean is that of the spectra of the heaps that were sent, and of as many as the weight says."""
    (tmp_path / "digitisers.toml").write_text(
        "heap_bytes = 256\nsources = 'antenna'\ndtype = '>i2'\n"
        "[time]\nitem = 0x1600\nstep = 128\nbatches = 4\n"
        "[[axes]]\nname = 'antenna'\nitem = 0x4101\nsize = 2\n",
        "utf-8",
    )
    samples = rng.integers(-(2**11), 2**11, (BATCHES, 2, 128)).astype(">i2")
    heaps = list(sent_heaps(LOST))
    packets = [
        packet
        for n, (batch, antenna) in enumerate(heaps, 1)
        for packet in heap(n, [(TIME_ID, 128 * batch), (FENG_ID, antenna)], samples[batch, antenna].tobytes(), parts=2)
    ]
    after = ["spectra.npz", CHANNELS, CHUNKS]
    if source == "udp":
        run_over_udp("spectrometer", ["digitisers.toml"], after, packets, tmp_path)
    else:
        capture = write_capture(tmp_path / "a.pcap", packets)
        run("spectrometer", "digitisers.toml", capture, *after, cwd=tmp_path)
    found = np.load(tmp_path / "spectra.npz")
    assert found["full"] == 32 * 128 // 32
    assert found["timestamp"].tolist() == [0, 32 * 128, 64 * 128, 96 * 128]
    n = np.arange(32)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / 31)
    transform = window * np.exp(-2j * np.pi * np.outer(np.arange(CHANNELS + 1), n) / 32)
    for integration in range(4):
        for antenna in range(2):
            there = [
                samples[batch, one].astype(float)
                for batch, one in heaps
                if one == antenna and batch // 32 == integration
            ]
            assert found["weight"][integration, antenna] == 4 * len(there)
            spectrum = found["spectrum"][integration, antenna]
            if not there:
                assert np.isnan(spectrum).all()
                continue
            power = np.abs(np.array(there).reshape(-1, 32) @ transform.T) ** 2
            np.testing.assert_allclose(spectrum, power.mean(axis=0), rtol=1e-9)
    assert (found["weight"] == 0).sum() == 1


@pytest.mark.parametrize(
    "source", [*(pytest.param(one, marks=pytest.mark.slow) for one in ("udp", "recording")), "capture"]
)
def test_correlator(source, tmp_path, rng) -> None:
    """Each visibility is the mean over exactly the samples that both antennas have sent, and is exact."""
    pytest.importorskip("xarray")
    layout = EXAMPLES / "voltages.toml"
    # By batch, antenna, channel, spectrum, polarisation, and real or imaginary part, as MeerKAT's F-engines send them.
    raw = rng.integers(60, 128, (BATCHES, 2, 4, 128, 2, 2), np.int8)
    heaps = list(sent_heaps(LOST))
    packets = [
        packet
        for n, (batch, antenna) in enumerate(heaps, 1)
        for packet in heap(
            n,
            [(TIME_ID, 2**20 * batch), (FENG_ID, antenna), (0x4103, 0), (FENG_RAW_ID, None)],
            raw[batch, antenna].tobytes(),
            parts=2,
        )
    ]
    capture = write_capture(tmp_path / "a.pcap", packets)
    if source == "udp":
        run_over_udp("correlator", [], ["found.npz", layout], packets, tmp_path)
    elif source == "capture":
        run("correlator", capture, "found.npz", layout, cwd=tmp_path)
    else:
        with (
            speadrx.Receiver(speadrx.Layout.from_toml(layout), capture, fill=99) as receiver,
            speadrx.Recorder(receiver, tmp_path / "night.zarr", wait=True) as recorder,
        ):
            for chunk in recorder:
                chunk.recycle()
        run("correlator", "night.zarr", "found.npz", cwd=tmp_path)
    found = np.load(tmp_path / "found.npz")
    assert found["time"].tolist() == [batch * 2**20 / 1712e6 for batch in range(0, BATCHES, 32)]
    voltages = raw[..., 0] + 1j * raw[..., 1]
    for integration in range(4):
        both = [
            batch
            for batch in range(32 * integration, min(BATCHES, 32 * integration + 32))
            if not {(batch, 0), (batch, 1)} & LOST
        ]
        assert found["count"][integration] == 128 * len(both)
        if not both:
            assert np.isnan(found["visibility"][integration]).all()
            continue
        first, second = np.moveaxis(voltages[both], 1, 0)  # by batch, channel, spectrum and polarisation
        for channel, p, q in np.ndindex(4, 2, 2):
            wanted = (first[:, channel, :, p] * second[:, channel, :, q].conj()).sum() / (128 * len(both))
            assert found["visibility"][integration, channel, p, q] == wanted
    assert found["count"].tolist() == [128 * n for n in (32 - 1 - 12 - 2, 32 - 9 - 1, 0, 24 - 1)]
