"""The group of all sub-commands. Each is imported when it is used."""

from __future__ import annotations

import importlib

import click

from speadrx._core import __version__

#: The sub-commands. Each is a function in the module of the same name.
COMMANDS = (
    "demo",
    "recv",
    "send",
    "record",
    "replay",
    "inspect",
    "plot",
    "doctor",
    "layout",
    "compare",
    "bench",
    "top",
)


class _Group(click.Group):
    """A group that imports only the command that is run.

    Its `commands` only have the names, of which click proposes one if somebody mistypes it.
    """

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f".{name}", __package__), name)
        return command


group = click.version_option(__version__, prog_name="speadrx")(
    _Group(
        "speadrx",
        commands={name: click.Command(name) for name in COMMANDS},
        help="Receive SPEAD streams; every heap is accounted for.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
)
