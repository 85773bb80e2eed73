"""The group of all sub-commands. Each is imported when it is used."""

from __future__ import annotations

import importlib

import click

from speadrx._core import __version__

#: The sub-commands. Each is a function in the module of the same name.
COMMANDS = ("demo", "recv", "send", "replay", "inspect", "plot", "doctor", "layout", "bench", "top")


class _Group(click.Group):
    """A group that imports only the command that is run."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f".{name}", __package__), name)
        return command


group = click.version_option(__version__, prog_name="speadrx")(
    _Group("speadrx", help="Receive SPEAD streams; every heap is accounted for.")
)
