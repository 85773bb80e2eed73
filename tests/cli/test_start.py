"""What the command imports before it does anything: what it imports, users wait for."""

import json
import subprocess
import sys

import click
import pytest

import speadrx
from speadrx.cli.group import COMMANDS, group

RUN = """
import json, sys
sys.argv = ["speadrx", *sys.argv[1:]]
from speadrx.cli import main
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
#: All of the package that is needed to say what there is.
NEEDED = {"speadrx", "speadrx._core", "speadrx._short_names", "speadrx.cli", "speadrx.cli.group"}


def run(*arguments: str) -> tuple[str, set[str]]:
    """What the command prints, and all modules that it has imported."""
    result = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=True)
    return result.stdout, set(json.loads(result.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    ("option", "words"), [("--version", speadrx.__version__), ("--help", COMMANDS["recv"]), ("-h", COMMANDS["top"])]
)
def test_nothing_but_click_is_imported(option, words):
    text, modules = run(option)
    assert words in text
    assert "click" in modules
    assert not {"rich", "numpy", "spead2", "prometheus_client", "importlib.resources"} & modules
    assert {name for name in modules if name.partition(".")[0] == "speadrx"} <= NEEDED


@pytest.mark.parametrize("name", COMMANDS)
def test_list_of_commands_says_what_each_says(name):
    command = group.get_command(click.Context(group), name)
    assert command is not None
    assert not command.hidden
    assert command.get_short_help_str(limit=1000) == COMMANDS[name]


def test_missing_rich_is_told():
    code = "import sys; sys.modules['rich'] = None; from speadrx.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "speadrx: rich is not installed; do: pip install 'speadrx[cli]'\n"
