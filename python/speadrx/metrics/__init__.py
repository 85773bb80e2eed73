"""The accounts for Prometheus and katcp; the names of all metrics."""

from .names import *  # noqa: F403
