"""A `Finding`: what a check has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["ok", "warning", "problem", "unknown"]


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Parameters
    ----------
    check
        Name of the check.
    severity
        ``"problem"``: packets are lost because of it, or will be. ``"warning"``: packets may be lost. ``"unknown"``:
        the check was not possible, and the summary says why.
    summary
        What was found, with its value.
    why
        How it affects reception.
    mend
        Shell commands, each of which fixes it. Most need root. Empty if there is none.
    """

    check: str
    severity: Severity
    summary: str
    why: str = ""
    mend: tuple[str, ...] = ()
