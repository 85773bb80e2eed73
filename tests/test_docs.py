"""The code in the documents and docstrings runs, and what the documents point to is there."""

import doctest
import importlib
import pathlib
import pkgutil
import re
import runpy

import pytest

import speadrx

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = sorted(ROOT.glob("*.md"))
MODULES = [info.name for info in pkgutil.walk_packages(speadrx.__path__, "speadrx.") if "__main__" not in info.name]


def code_blocks(document: pathlib.Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text("utf-8"), re.DOTALL | re.MULTILINE)


PYTHON_BLOCKS = [
    pytest.param(block, id=f"{document.name}-{i}")
    for document in DOCUMENTS
    for i, block in enumerate(code_blocks(document, "python"))
]


@pytest.mark.parametrize("block", PYTHON_BLOCKS)
def test_block_runs_as_it_stands(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "block.py"
    script.write_text(block, "utf-8")
    runpy.run_path(str(script))


def test_readme_receiver(tmp_path, capfd):
    """The receiver is short, loses nothing, and its layout is the one shown in TOML."""
    (receiver,) = code_blocks(ROOT / "README.md", "python")
    assert len([line for line in receiver.splitlines() if line and not line.startswith(("import", "from"))]) <= 25
    script = tmp_path / "receiver.py"
    script.write_text(receiver, "utf-8")
    namespace = runpy.run_path(str(script))
    toml = tmp_path / "array.toml"
    (text,) = code_blocks(ROOT / "README.md", "toml")
    toml.write_text(text, "utf-8")
    assert speadrx.Layout.from_toml(toml) == namespace["layout"]


@pytest.mark.parametrize("name", ["speadrx", *MODULES])
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_document_points_to_what_is_there(document):
    text = document.read_text("utf-8")
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
