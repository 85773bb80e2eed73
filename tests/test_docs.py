"""The code in the documents and docstrings runs, and what the documents point to is there."""

import doctest
import importlib
import pathlib
import pkgutil
import re
import runpy
from typing import Any

import pytest

import speadrx

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


def test_readme_receiver(run, tmp_path):
    """It is short, gets what it says, and its layout is the one shown in TOML."""
    (receiver,) = code_blocks(ROOT / "README.md", "python")
    statements = [line for line in receiver.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(statements) <= 21
    result = run(receiver)
    account = result["chunks"].accounting
    assert account.chunks == 8
    assert account.expected == 8 * result["layout"].chunk_heaps
    assert 0 < account.missing < account.expected
    assert sum(result["stream"].ledger.snapshot().rejected.values()) == 0
    toml = tmp_path / "array.toml"
    (text,) = code_blocks(ROOT / "README.md", "toml")
    toml.write_text(text, "utf-8")
    assert speadrx.Layout.from_toml(toml) == result["layout"]


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


def test_map_has_every_room():
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    rooms = [
        file.relative_to(house).as_posix()
        for house, suffix in ((ROOT / "src", "rs"), (ROOT / "python/speadrx", "py"))
        for file in house.rglob(f"*.{suffix}")
        if file.name != "__init__.py"
    ]
    assert [room for room in rooms if f"`{room}`" not in text] == []
