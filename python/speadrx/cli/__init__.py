"""The command `speadrx`, with a module for each of its sub-commands."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import sys


def main() -> None:
    """Run the command line.

    Raises
    ------
    SystemExit
        When the command has ended, packages that it needs are not installed, or there is no space for its output.
    """
    try:
        import click
    except ModuleNotFoundError as exc:
        raise SystemExit(f"speadrx: {exc.name} is not installed; do: pip install 'speadrx[cli]'") from None
    # Not imported here: it takes long, and neither the version nor the list of commands needs it.
    if importlib.util.find_spec("rich") is None:
        raise SystemExit("speadrx: rich is not installed; do: pip install 'speadrx[cli]'")

    from .group import group

    try:
        group()
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        # Python would try to write the rest once more at its end, and complain.
        with contextlib.suppress(OSError):
            sys.stdout.close()
        click.echo(f"speadrx: {exc.strerror}", err=True)
        raise SystemExit(2) from None
