"""What the command imports before it does anything: what it imports, users wait for."""

import importlib
import json
import pkgutil
import subprocess
import sys

import click
import pytest

import speadrx
from speadrx import cli
from speadrx.cli.group import COMMANDS, group
from wire import heap, write_capture

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

#: Beside click and what it imports: these, and what it takes to format text and to look for another package.
MAX_MORE = 30


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
    code = "import click, json, sys; print(json.dumps(sorted(sys.modules)))"
    click_alone = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    more = modules - set(json.loads(click_alone))
    assert len(more) <= MAX_MORE, sorted(more)


def test_top_needs_no_arrays():
    text, modules = run("top", "--help")
    assert "Watch a speadrx process" in text
    assert not {"numpy", "spead2", "asyncio", "matplotlib", "xarray"} & modules


@pytest.mark.parametrize("option", ["--json", "--toml"])
def test_inspect_needs_nothing_for_terminals(option, tmp_path):
    """What programs read is there sooner without."""
    path = write_capture(tmp_path / "c.pcap", [heap(n, [(0x1600, n * 64)], bytes(64))[0] for n in range(40)])
    text, modules = run("inspect", path, option)
    assert "0x1600" in text
    assert "rich" not in modules


@pytest.mark.parametrize("name", COMMANDS)
def test_list_of_commands_says_what_each_says(name):
    command = group.get_command(click.Context(group), name)
    assert command is not None
    assert not command.hidden
    assert command.get_short_help_str(limit=1000) == COMMANDS[name]


def test_every_command_is_in_the_list():
    for module in pkgutil.iter_modules(cli.__path__):
        if module.name in ("__main__", "group"):
            continue
        command = getattr(importlib.import_module(f"{cli.__name__}.{module.name}"), module.name, None)
        if isinstance(command, click.Command) and module.name not in COMMANDS:
            pytest.fail(f"COMMANDS in cli/group.py lacks {module.name!r}: {command.get_short_help_str(1000)!r}")


def test_missing_rich_is_told():
    code = "import sys; sys.modules['rich'] = None; from speadrx.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "speadrx: rich is not installed; do: pip install 'speadrx[cli]'\n"
