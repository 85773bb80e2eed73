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
        import click  # noqa: F401 (missing either shall be said here)
        import rich  # noqa: F401
    except ModuleNotFoundError as exc:
        raise SystemExit(f"speadrx: {exc.name} is not installed; do: pip install 'speadrx[cli]'") from None

    from .group import group

    group()
