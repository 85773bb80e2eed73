"""The group of all sub-commands. Each is imported when it is used."""

from __future__ import annotations

import importlib

import click

from speadrx._core import __version__

#: The sub-commands, and the first sentence of what each says of itself. Each is a function in the module of that name.
COMMANDS = {
    "demo": "Receive from a simulated array, and account for every heap.",
    "recv": "Receive from UDP ENDPOINTS, and account for every heap.",
    "send": "Send simulated heaps of a layout to DEST.",
    "record": "Receive from SOURCES, and write what comes to disk.",
    "replay": "Receive the heaps in a capture FILE, and account for every heap.",
    "inspect": "See what SPEAD packets carry, and propose a layout.",
    "plot": "Draw what a run has received, and what it has lost.",
    "look": "Look at the data: levels, a histogram, a mean spectrum, and a waterfall.",
    "doctor": "Find out why nothing arrives at ENDPOINTS, or not everything, and how to fix it.",
    "layout": "Check a layout, and show how its heaps lie in a chunk.",
    "compare": "Place the same heaps with two placements, and show which heaps are placed differently.",
    "bench": "Measure what a heap costs on this machine.",
    "top": "Watch a speadrx process by the URL of its metrics.",
    "fleet": "Receive what PLAN says, with a receiver for each share of it.",
}


class _Group(click.Group):
    """A group that imports only the command that is run.

    Its `commands` only have the names, of which click proposes one if somebody mistypes it, and what the list of
    commands says of each.
    """

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f".{name}", __package__), name)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        room = formatter.width - 6 - max(map(len, COMMANDS))
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands[name].get_short_help_str(room)) for name in COMMANDS])


group = click.version_option(__version__, prog_name="speadrx")(
    _Group(
        "speadrx",
        commands={name: click.Command(name, help=text) for name, text in COMMANDS.items()},
        help="Receive SPEAD streams; every heap is accounted for.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
)
