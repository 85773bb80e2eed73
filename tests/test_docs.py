"""The code in the documents and docstrings runs, and what the documents point to is there."""

import doctest
import importlib
import importlib.util
import pathlib
import pkgutil
import re
import runpy
import signal
import threading
from typing import Any

import numpy as np
import pytest
import spead2

import speadrx
from addresses import GROUP_PREFIX
from loopback import wait_for
from speadrx.simulate import Faults, InprocSink, PcapSink, Simulator, UdpSink
from wire import heap, write_capture

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("doc/**/*.md"), ROOT / "monitoring/README.md"])
#: Folders of which the map names every source file; so it does for all folders of the package.
MAPPED = ("src", "python/speadrx", "tests/support", "benches")
MODULES = [info.name for info in pkgutil.walk_packages(speadrx.__path__, "speadrx.") if "__main__" not in info.name]
if importlib.util.find_spec("distributed") is None:  # the extra dask, which few developers have
    MODULES.remove("speadrx.fleet.worker")


def code_blocks(document: pathlib.Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def run(tmp_path, monkeypatch, udp_port):
    """Run a code block as it stands, but for its UDP port; return its globals."""

    def run_block(block: str) -> dict[str, Any]:
        monkeypatch.chdir(tmp_path)
        script = tmp_path / "block.py"
        script.write_text(block.replace("7148", str(udp_port)), "utf-8")
        return runpy.run_path(str(script))

    return run_block


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d.name != "README.md"], ids=lambda d: d.name)
def test_blocks_run(document, run):
    for block in code_blocks(document, "python"):
        run(block)


@pytest.mark.parametrize("block", [0, 1], ids=["for", "async for"])
@pytest.mark.parametrize("source", ["udp", "multicast", "pcap", "inproc"])
def test_readme_receiver(source, block, tmp_path, monkeypatch, udp_port, capsys):
    """It is short, and gets what is sent, whatever it is given for its source."""
    receivers = []

    class Remembered(speadrx.Receiver):
        def start(self):
            super().start()
            if self not in receivers:
                receivers.append(self)

    monkeypatch.setattr(speadrx, "Receiver", Remembered)
    handlers = {}  # only the main thread can have real ones
    monkeypatch.setattr("asyncio.SelectorEventLoop.add_signal_handler", lambda _, *handler: handlers.update([handler]))
    monkeypatch.chdir(tmp_path)
    (toml,) = code_blocks(ROOT / "README.md", "toml")
    pathlib.Path("array.toml").write_text(toml, "utf-8")
    code = code_blocks(ROOT / "README.md", "python")[block]
    assert block or len([line for line in code.splitlines() if line]) == 5
    simulator = Simulator(speadrx.Layout.from_toml("array.toml"), faults=Faults(loss=0.1))
    queue = spead2.InprocQueue()
    group = f"{GROUP_PREFIX}181"
    given = {
        "udp": f'"127.0.0.1:{udp_port}"',
        "multicast": f'"{group}:{udp_port}", interface="127.0.0.1"',
        "pcap": '"capture.pcap"',
        "inproc": "queue",
    }[source]
    if source == "pcap":
        with PcapSink("capture.pcap") as sink:
            simulator.send(sink, batches=512)
    elif source == "inproc":
        simulator.send(InprocSink(queue), batches=512)
        queue.stop()
    program = compile(code.replace('"127.0.0.1:7148"', given), f"README.md, {block}", "exec")
    thread = threading.Thread(target=exec, args=(program, {"queue": queue}))
    thread.start()
    try:
        if source in ("udp", "multicast"):
            wait_for(lambda: receivers and receivers[0].stats().seconds > 0 and receivers[0].stream._sockets.counts())
            host, interface = ("127.0.0.1", None) if source == "udp" else (group, "127.0.0.1")
            with UdpSink([(host, udp_port)], interface=interface, ttl=0) as sink:
                simulator.send(sink, batches=512, rate=50e6)
            wait_for(lambda: receivers[0].stats().packets == simulator.truth.packets)
            receivers[0].drain()
        thread.join(60)
        assert not thread.is_alive()
    finally:
        for receiver in receivers:
            receiver.stop()
        thread.join(60)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in lines] == [str(i * 64 * 2048) for i in range(8)]
    assert all(" (64, 4, 2048) 0.9" in line or " (64, 4, 2048) 0.8" in line for line in lines)
    assert handlers == ({signal.SIGINT: receivers[0].drain} if block else {})
    stats = receivers[0].stats()
    assert [source.present for source in stats.sources] == simulator.truth.complete
    assert [source.missing for source in stats.sources] == simulator.truth.lost


def test_readme_recording(tmp_path, monkeypatch):
    """Its commands, but for where the data come from, say what was lost, and show the one antenna."""
    for module in ("click", "rich", "xarray", "zarr"):
        pytest.importorskip(module)
    from terminals import run_here

    monkeypatch.chdir(tmp_path)
    (toml,) = code_blocks(ROOT / "README.md", "toml")
    pathlib.Path("array.toml").write_text(toml, "utf-8")
    lost = {(batch, antenna) for batch in range(128, 192) for antenna in range(4)}
    lost |= {(batch, 2) for batch in range(100, 120)}
    tone = np.rint(1000 * np.sin(2 * np.pi * np.arange(2048) / 8)).astype("<i2").tobytes()
    heaps = [(batch, antenna) for batch, antenna in np.ndindex(640, 4) if (batch, antenna) not in lost]
    packets = [
        packet
        for n, (batch, antenna) in enumerate(heaps, 1)
        for packet in heap(n, [(0x1600, 2048 * batch), (0x4101, antenna)], tone if antenna == 2 else bytes(4096))
    ]
    write_capture("capture.pcap", packets)
    section = (ROOT / "README.md").read_text("utf-8").partition("## Ten seconds on disk")[2].partition("\n## ")[0]
    commands = [line.split()[1:] for line in section.splitlines() if line.startswith("    speadrx ")]
    assert [command[0] for command in commands] == ["record", "look", "top"]
    account, shown, again = (
        run_here(*("capture.pcap" if word == "127.0.0.1:7148" else word for word in command)) for command in commands
    )
    assert f"Expected: 2,560 heaps = {len(heaps):,} present + {len(lost)} missing" in account
    assert f"Recorded: {len(heaps):,} heaps" in account
    worst = ["2", "0", "1", "3"]
    assert [line.split()[0] for line in account.splitlines() if line[:1].isdigit()] == worst
    assert [line.split()[0] for line in again.splitlines() if line[:1].isdigit()] == worst
    assert f"Expected: 2,560 heaps = {len(heaps):,} present + {len(lost)} missing" in again
    assert "antenna 2" in shown
    assert "antenna 1" not in shown
    dataset = speadrx.open("night.zarr", masked=True)
    assert int(np.isnan(dataset.data[..., 0]).sum()) == len(lost)


@pytest.mark.parametrize("name", ["speadrx", *MODULES])
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_document_points_to_what_is_there(document):
    text = document.read_text("utf-8")
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    assert [link for link in links if not (document.parent / link).exists()] == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets


def test_every_document_is_linked():
    """The README lists them all, but for the pages on design, which have a list of their own."""
    unlinked = []
    for document in DOCUMENTS:
        index = document.parent / "README.md" if document.parent.name == "design" else ROOT / "README.md"
        index = ROOT / "README.md" if index == document else index
        text = index.read_text("utf-8")
        link = document.relative_to(index.parent).as_posix()
        if document != index and f"]({link})" not in (text.partition("## Read on")[2] or text):
            unlinked.append(link)
    assert unlinked == []


def test_map_is_short_and_true():
    """Each source file is named once, in the part about its folder, and no file is named that is gone."""
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    assert text.count("\n") <= 200
    parts = re.split(r"^\*\*`([\w/]+)/`\*\*", text.partition("## The map")[2], flags=re.MULTILINE)[1:]
    named = sorted(
        f"{folder}/{name}"
        for folder, part in zip(parts[::2], parts[1::2], strict=True)
        for name in re.findall(r"`([\w/]+\.(?:rs|pyi?))`", re.split(r"^(?:###|\*\*)", part, flags=re.MULTILINE)[0])
        if folder.startswith(MAPPED)
    )
    there = {
        file.relative_to(ROOT).as_posix()
        for folder in MAPPED
        for suffix in ("rs", "py", "pyi")
        for file in (ROOT / folder).rglob(f"*.{suffix}")
        if file.name != "__init__.py"
    }
    assert {"missing": there - set(named), "gone": set(named) - there} == {"missing": set(), "gone": set()}
    assert [name for name in named if named.count(name) > 1] == []


def test_design_names_files_that_are_there():
    files = [f"/{file}" for folder in (*MAPPED, "tests") for file in (ROOT / folder).rglob("*.*")]
    named = {
        name
        for page in ROOT.glob("doc/design/*.md")
        for name in re.findall(r"`([\w/]+\.(?:rs|py))`", page.read_text("utf-8"))
    }
    assert named
    assert {name for name in named if not any(file.endswith(f"/{name}") for file in files)} == set()
