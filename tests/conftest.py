"""Fixtures that many tests need: a seeded generator, a private metrics registry, a free UDP port."""

import socket

import numpy as np
import prometheus_client
import pytest


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random generator that starts the same for the same test, whichever tests run before."""
    return np.random.default_rng(list(request.node.nodeid.encode()))


@pytest.fixture
def registry() -> prometheus_client.CollectorRegistry:
    """Registry of this test alone: the default one is global and keeps what it was given."""
    return prometheus_client.CollectorRegistry()


@pytest.fixture
def udp_port() -> int:
    """UDP port that was free on all interfaces a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 0))
        return int(sock.getsockname()[1])
