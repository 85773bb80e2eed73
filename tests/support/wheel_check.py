"""Check an installed wheel in an otherwise empty environment: what it brings, imports and weighs, and that it receives.

Run by itself (``python -I wheel_check.py``), with nothing but the standard library, the package and its dependencies.
"""

import importlib.metadata
import importlib.util
import pathlib
import platform
import re
import socket
import sys

import numpy as np
import spead2
import spead2.recv
import spead2.send

#: The first version was to take 3 MB, and did. The reader of captures of all kinds and the mending of packets brought
#: the core from 1.3 to 1.9 MB, and the package with its bytecode to 4.0 MB. Comparison and interfaces added 0.2 MB,
#: recordings 0.25 MB, a fast sender 0.1 MB, and leaps of replays and a beginning for cuts 0.05 MB.
MAX_BYTES = 4_750_000
#: Fleets are an extra, as the command line is, and nothing else imports them.
MAX_FLEET_BYTES = 350_000
NEVER_IMPORTED = {"numba", "llvmlite", "scipy"}
TIME_ID, ANTENNA_ID, DATA_ID = 0x1600, 0x4101, 0x3300
N_ANTENNAS, N_CHUNKS, HEAP_SAMPLES, CHUNK_BATCHES = 3, 5, 512, 8
END_HEAP = spead2.send.HeapGenerator(spead2.send.ItemGroup()).get_end()


def check_environment() -> None:
    """Only the package, its dependencies and pip are installed."""
    allowed = {"speadrx", "numpy", "spead2", "prometheus-client", "pip", "setuptools"}
    installed = {re.sub("[-_.]+", "-", dist.name).lower() for dist in importlib.metadata.distributions()}
    assert "speadrx" in installed, "the wheel is not installed"
    assert installed <= allowed, f"not an empty environment: {sorted(installed - allowed)}"


def check_imports() -> None:
    """Importing the package imports nothing heavy, and metrics only when they are asked for."""
    before = set(sys.modules)
    import speadrx

    added = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert "prometheus_client" not in added, "prometheus_client is imported by speadrx itself"
    assert pathlib.Path(speadrx.__file__).is_relative_to(sys.prefix), f"imported from {speadrx.__file__}"
    assert speadrx.StatsCollector is not None
    assert "prometheus_client" in sys.modules


def check_layouts() -> None:
    """The layouts and their schema are in the wheel."""
    import speadrx

    assert "meerkat-digitiser" in speadrx.layouts.names()
    for name in speadrx.layouts.names():
        assert speadrx.layouts.load(name).name == name
    folder = pathlib.Path(speadrx.layouts.__file__).with_name("presets")
    assert pathlib.Path(folder, "layout.schema.json").is_file()


def package_bytes(part: str = "") -> int:
    """Size on disk of all that was installed below a path, with the bytecode that pip makes."""
    files = importlib.metadata.files("speadrx") or []
    paths = [pathlib.Path(file.locate()) for file in files if str(file).startswith(part)]
    return sum(path.stat().st_size for path in paths if path.exists())


def layout():
    import speadrx

    return speadrx.Layout(
        heap_bytes=HEAP_SAMPLES * 2,
        time=speadrx.TimeAxis(item=TIME_ID, step=HEAP_SAMPLES, batches=CHUNK_BATCHES),
        axes=(speadrx.Axis(name="antenna", item=ANTENNA_ID, size=N_ANTENNAS),),
        sources="antenna",
        dtype="int16",
    )


def make_heaps() -> tuple[list[spead2.send.Heap], np.ndarray]:
    """All heaps of a few chunks, and what each holds: indexed by time, antenna, sample."""
    shape = (N_CHUNKS * CHUNK_BATCHES, N_ANTENNAS, HEAP_SAMPLES)
    data = np.random.default_rng(1).integers(-(2**15), 2**15, shape, np.int16)
    heaps = []
    for batch, antenna in np.ndindex(shape[:2]):
        heap = spead2.send.Heap(spead2.Flavour(4, 64, 48))
        for name, item_id, value in (("time", TIME_ID, batch * HEAP_SAMPLES), ("antenna", ANTENNA_ID, antenna)):
            heap.add_item(spead2.Item(item_id, name, "", (), format=[("u", 48)], value=value))
        payload = data[batch, antenna]
        heap.add_item(spead2.Item(DATA_ID, "data", "", payload.shape, payload.dtype, value=payload))
        heaps.append(heap)
    return heaps, data


def make_stream():
    import speadrx

    stream = speadrx.make_stream(
        layout=layout(),
        max_active_chunks=2,
        data_ringbuffer=spead2.recv.ChunkRingbuffer(N_CHUNKS),
        free_ringbuffer=spead2.recv.ChunkRingbuffer(N_CHUNKS + 3),
    )
    speadrx.ChunkPool(stream, N_CHUNKS + 3)
    return stream


def check_chunks(stream, sent: np.ndarray, n_other: int) -> None:
    """Every heap arrived, in its place, and is accounted for, as are `n_other` heaps without metadata."""
    import speadrx

    n_chunks = 0
    chunks = speadrx.iter_chunks(stream)
    for chunk in chunks:
        with chunk:
            assert chunk.timestamp == n_chunks * CHUNK_BATCHES * HEAP_SAMPLES, chunk.timestamp
            assert np.all(chunk.present)
            want = sent[n_chunks * CHUNK_BATCHES :][:CHUNK_BATCHES]
            np.testing.assert_array_equal(stream.layout.view(chunk.data), want)
        n_chunks += 1
    assert n_chunks == N_CHUNKS, f"{n_chunks} of {N_CHUNKS} chunks"
    snapshot = stream.ledger.snapshot()
    assert snapshot.placed == sent.shape[0] * sent.shape[1], snapshot
    assert snapshot.duplicates == 0, snapshot
    rejected = {reason: count for reason, count in snapshot.rejected.items() if count}
    assert rejected == ({"metadata_heaps": n_other} if n_other else {}), snapshot


def check_inproc() -> None:
    heaps, sent = make_heaps()
    stream = make_stream()
    queue = spead2.InprocQueue()
    stream.add_inproc_reader(queue)
    sender = spead2.send.InprocStream(spead2.ThreadPool(), [queue])
    for heap in heaps:
        sender.send_heap(heap)
    queue.stop()
    check_chunks(stream, sent, n_other=0)


def check_udp() -> None:
    import speadrx

    heaps, sent = make_heaps()
    stream = make_stream()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    speadrx.add_reader(stream, src=[("127.0.0.1", port)], interface="127.0.0.1")
    # Slow enough for any machine: this checks that it works, not how fast.
    config = spead2.send.StreamConfig(rate=20e6)
    sender = spead2.send.UdpStream(spead2.ThreadPool(), [("127.0.0.1", port)], config)
    for heap in [*heaps, END_HEAP]:
        sender.send_heap(heap)
    check_chunks(stream, sent, n_other=1)
    assert stream.kernel_drops() == 0
    stream.stop()


def main() -> None:
    check_environment()
    check_imports()
    check_layouts()
    check_inproc()
    check_udp()
    imported = NEVER_IMPORTED & set(sys.modules)
    assert not imported, f"imported: {imported}"
    assert not any(name.startswith("speadrx.fleet") for name in sys.modules), "fleets are imported by who needs none"
    size, fleet = package_bytes(), package_bytes("speadrx/fleet/")
    # The command line and fleets are there for who has their extras.
    library = size - package_bytes("speadrx/cli/") - fleet
    assert library <= MAX_BYTES, f"without its extras the package takes {library} bytes, more than {MAX_BYTES}"
    assert 0 < fleet <= MAX_FLEET_BYTES, f"fleets take {fleet} bytes, more than {MAX_FLEET_BYTES}"
    sizes = f"{size / 1e6:.2f} MB, {library / 1e6:.2f} MB without the command line and fleets ({fleet / 1e6:.2f} MB)"
    version = importlib.metadata.version("speadrx")
    print(f"speadrx {version} on Python {platform.python_version()}: {sizes}; chunks received, all well")


if __name__ == "__main__":
    main()
