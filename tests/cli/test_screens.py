"""Every command in terminals of two widths and through a pipe."""

import json
import re

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from screens import COMMANDS, DOCUMENT, WIDTHS, Stage
from speadrx.cli.group import COMMANDS as NAMES


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """What one command leaves, others read."""
    return Stage(tmp_path_factory.mktemp("stage"))


def test_none_is_left_out():
    assert {command.name for command in COMMANDS} == set(NAMES)
    text = DOCUMENT.read_text("utf-8")
    assert [name for name in NAMES if f"## speadrx {name}\n" not in text] == []


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.line.split()[:2]))
def test_terminals_and_pipe(stage, command):
    heights = []
    for columns in WIDTHS:
        code, lines = stage.screen(command, columns)
        text = "\n".join(lines).rstrip()
        assert code == command.code, text
        assert "Traceback" not in text
        assert text
        heights.append(len(text.splitlines()))
    assert heights[1] <= heights[0], "a wide terminal is made use of, or at least does no harm"
    code, output, errors = stage.pipe(command)
    assert code == command.code, output + errors
    assert output
    assert "Traceback" not in errors
    assert "\x1b" not in output + errors
    assert "\r" not in output + errors
    # But for what is a line each time, for logs.
    lines = [line for line in output.splitlines() if not re.match(r"\d\d:\d\d:\d\d  \d", line)]
    assert max(map(len, lines)) <= 80


@pytest.mark.slow
def test_json_documents(stage):
    """With --json, there is nothing but JSON on the standard output."""
    for command in COMMANDS:
        if command.name in ("demo", "top") or command.line == "layout --list":
            continue
        arguments = command.line.replace(" -o run.png", "").replace(" -o proposed.toml --force", "")
        code, output, errors = stage.pipe(type(command)(arguments + " --json", beside=command.beside))
        assert code == command.code, output + errors
        assert isinstance(json.loads(output), dict), command
