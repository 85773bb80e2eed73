"""`FleetRecording`: the one recording that all shares of a fleet write, if its plan has one."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

from .account import FleetStats
from .dealing import Share
from .plan import Plan
from .portion import CommonOutput, Portion


class FleetRecording:
    """The recording of a fleet. Shares write its chunks; its metadata are written here.

    If each share makes a recording of its own, or none, it does nothing.

    Parameters
    ----------
    plan
        The plan.
    id
        The fleet's own name.
    """

    def __init__(self, plan: Plan, id: str) -> None:  # noqa: A002
        self._plan, self._id = plan, id
        self._output: CommonOutput | None = None
        #: How many indices of the axis lie in a file: as many as all shares have some multiple of.
        self._width = math.gcd(*(share.end - share.first for share in plan.dealt))

    @property
    def _path(self) -> str | None:
        record = self._plan.record
        return None if record is None or "{share}" in record else os.path.abspath(record)

    def begin(self) -> None:
        """Make the folder.

        Raises
        ------
        OSError
            If that is not possible.
        """
        if self._path is not None:
            axis = self._plan.dealt[0].axis
            assert axis is not None  # the plan has seen to that
            self._output = CommonOutput(self._path, self._plan.layout, axis=axis, width=self._width, id=self._id)

    def of(self, share: Share, incarnation: int) -> str | Portion | None:
        """What a share records."""
        if self._path is None or share.axis is None:
            return self._plan.record
        return Portion(
            path=self._path,
            id=self._id,
            axis=share.axis,
            first=share.first,
            end=share.end,
            width=self._width,
            share=share.name,
            incarnation=incarnation,
        )

    def take(self, report: Mapping[str, Any]) -> None:
        """Declare what a share has reported."""
        if self._output is not None:
            self._output.grow(report["now"].get("recorded", ()))

    def end(self, stats: FleetStats) -> None:
        """Write the last metadata, with the account. It may be called again."""
        if self._output is not None:
            if any(share.incarnation > 1 or share.state == "lost" for share in stats.shares):
                self._output.look()
            self._output.close(lambda: {"recorder": _recorder(stats), "fleet": dataclasses.asdict(stats)})
            self._output = None


def _recorder(stats: FleetStats) -> dict[str, int]:
    """What all recorders have done."""
    return {
        "chunks": sum(share.recorded_chunks for share in stats.shares),
        "not_written": sum(share.not_recorded for share in stats.shares),
    }
