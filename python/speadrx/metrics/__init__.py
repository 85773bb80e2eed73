"""The accounts for Prometheus and katcp, and the names of all metrics."""

from .names import *  # noqa: F403
