"""The command `speadrx`, with one module for each of its sub-commands."""

from __future__ import annotations


def main() -> None:
    """Run the command line.

    Raises
    ------
    SystemExit
        When the command has ended, or the packages that the command line needs are not installed.
    """
    try:
        import click
        import rich  # noqa: F401 (missing it shall be said here, too)
    except ModuleNotFoundError as exc:
        raise SystemExit(f"speadrx: {exc.name} is not installed; do: pip install 'speadrx[cli]'") from None

    from speadrx import _core

    from .demo import demo
    from .top import top

    group = click.Group("speadrx", commands=[demo, top], help="Receive SPEAD streams; every heap is accounted for.")
    click.version_option(_core.__version__, prog_name="speadrx")(group)
    group()
