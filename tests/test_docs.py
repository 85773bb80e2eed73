"""The code in the documents and docstrings runs, and what the documents point to is there."""

import doctest
import importlib
import pathlib
import pkgutil
import re
import runpy
import threading
from typing import Any

import pytest
import spead2

import speadrx
from loopback import GROUP_PREFIX, wait_for
from speadrx.simulate import Faults, InprocSink, PcapSink, Simulator, UdpSink

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("doc/*.md")])
MODULES = [info.name for info in pkgutil.walk_packages(speadrx.__path__, "speadrx.") if "__main__" not in info.name]


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
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            receivers.append(self)

    monkeypatch.setattr(speadrx, "Receiver", Remembered)
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
        thread.join(30)
        assert not thread.is_alive()
    finally:
        for receiver in receivers:
            receiver.stop()
        thread.join(30)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in lines] == [str(i * 64 * 2048) for i in range(8)]
    assert all(" (64, 4, 2048) 0.9" in line or " (64, 4, 2048) 0.8" in line for line in lines)
    stats = receivers[0].stats()
    assert [source.present for source in stats.sources] == simulator.truth.complete
    assert [source.missing for source in stats.sources] == simulator.truth.lost


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


def test_readme_points_to_every_document():
    text = (ROOT / "README.md").read_text("utf-8").partition("## Read on")[2]
    pages = [d.relative_to(ROOT).as_posix() for d in [*DOCUMENTS, ROOT / "monitoring/README.md"] if d.parent != ROOT]
    assert [page for page in pages if f"]({page})" not in text] == []


@pytest.mark.parametrize(
    ("house", "suffixes", "shared_rows"),
    [
        ("src", ("rs",), ()),
        ("python/speadrx", ("py", "pyi", "typed"), ()),
        ("tests", ("py",), ("test_*.py", "faults/*", "system/*")),
        ("benches", ("py", "rs"), ()),
        ("doc", ("md",), ()),
    ],
)
def test_map_has_every_room(house, suffixes, shared_rows):
    """Each file has one row, and there is none of a file that is gone."""
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    section = re.search(rf"^### [^\n]* \(`{house}/`\).*?(?=^##+ )", text, re.DOTALL | re.MULTILINE)[0]
    rows = [
        name for cell in re.findall(r"^\| (`[^|]*?) \|", section, re.MULTILINE) for name in re.findall("`(.*?)`", cell)
    ]
    rooms = {
        file.relative_to(ROOT / house).as_posix()
        for suffix in suffixes
        for file in (ROOT / house).rglob(f"*.{suffix}")
        if not any(file.relative_to(ROOT / house).match(shared) for shared in shared_rows)
    }
    named = [row for row in rows if not row.endswith("/") and "*" not in row]
    assert sorted(named) == sorted(rooms)
