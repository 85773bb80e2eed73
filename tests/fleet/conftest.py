"""What tests of fleets share: an array that sends, a cluster of processes, and fleets on it."""

import pytest

from addresses import own_port


@pytest.fixture
def array():
    """An array on a port of its own."""
    from fleets import Array

    made = Array(own_port())
    yield made
    made.close()


@pytest.fixture(scope="module")
def cluster():
    """For all tests of a module whose workers are all there at the end."""
    from clusters import workers
    from fleets import ANTENNAS

    with workers(ANTENNAS) as made:
        yield made


@pytest.fixture
def start(cluster):
    """Start fleets on the cluster, or on another one."""
    from clusters import start_of

    with start_of(cluster) as starts:
        yield starts
