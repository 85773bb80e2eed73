"""A fleet of receivers on the machines of a Dask cluster, with one account (extra ``dask``)."""

from __future__ import annotations

from .account import FleetAccount, FleetStats, ShareStats
from .cluster import local_cluster
from .dealing import Share
from .fleet import Fleet, FleetError
from .plan import Plan, PlanError
from .results import Results

__all__ = [
    "Fleet",
    "FleetAccount",
    "FleetError",
    "FleetStats",
    "Plan",
    "PlanError",
    "Results",
    "Share",
    "ShareStats",
    "local_cluster",
]
