"""What many tests need: a generator, a metrics registry, UDP ports, streams, reports of faults, and a last timeout."""

import contextlib
import faulthandler
import itertools
import pathlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import prometheus_client
import pytest
import spead2.recv
from _pytest.faulthandler import fault_handler_stderr_fd_key

import fault_reports
import speadrx
from addresses import own_port
from handmade import SMALL

#: Seconds for a test, and again for its end; longer than the timeout that pytest-timeout has by default.
LAST_TIMEOUT = 180
#: Those of the documents' examples, of data and of metrics.
USUAL_PORTS = (7148, 7149, 8000)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add where to write what tests of faults saw."""
    parser.addoption(fault_reports.OPTION, metavar="PATH", help="add what tests of faults saw to this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    """Add the marks and the fixture of tests of faults, heed Ctrl-C, and take the ports that no test may rely on."""
    # A shell has what it starts in the background ignore SIGINT, and programs that tests interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What helpers assert is explained as what tests assert is.
    helpers = {path.stem for path in (pathlib.Path(__file__).parent / "support").glob("*.py")}
    pytest.register_assert_rewrite(*(helpers - set(sys.modules)))
    config.addinivalue_line("markers", "fault(row, ...): a test of these rows of tests/support/fault_rows.py")
    config.addinivalue_line("markers", "slow: left out by `make test`, and run by `make test-all`")
    config.pluginmanager.register(fault_reports.FaultResults(config.getoption(fault_reports.OPTION)))
    if not hasattr(config, "workerinput"):  # that of pytest-xdist: one process takes them for all workers
        config.add_cleanup(take_usual_ports().close)


def take_usual_ports() -> contextlib.ExitStack:
    """Take the ports of the documents' examples: what users run meanwhile, or another run of tests, may have them."""
    with contextlib.ExitStack() as stack:
        for port, kind in itertools.product(USUAL_PORTS, (socket.SOCK_DGRAM, socket.SOCK_STREAM)):
            sock = stack.enter_context(socket.socket(socket.AF_INET, kind))
            with contextlib.suppress(OSError):  # another program has it, which is just as well
                sock.bind(("", port))
        return stack.pop_all()


@contextlib.contextmanager
def last_timeout(config: pytest.Config) -> Iterator[None]:
    """End this process if this takes too long; pytest-xdist names the test, and goes on in another process.

    spead2 holds the interpreter's lock while a stream stops. If it hangs then, no other timeout gets to run.
    """
    # Standard error itself is captured.
    faulthandler.dump_traceback_later(LAST_TIMEOUT, file=config.stash[fault_handler_stderr_fd_key], exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Limit the test."""
    with last_timeout(item.config):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Limit its end, where most streams are stopped."""
    with last_timeout(item.config):
        return (yield)


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
    """UDP port that no other test has."""
    return own_port()


@pytest.fixture
def ports() -> list[int]:
    """Three UDP ports that no other test has."""
    return [own_port() for _ in range(3)]


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Make a stream of `SMALL` heaps, or a group if the affinity is a list, and stop it after the test."""

    def make(*, chunks: int = 8, **kwargs: Any) -> Any:
        arguments: dict[str, Any] = {
            "layout": SMALL,
            "max_active_chunks": 2,
            "data_ringbuffer": spead2.recv.ChunkRingbuffer(8),
            "free_ringbuffer": spead2.recv.ChunkRingbuffer(8),
            **kwargs,
        }
        group = isinstance(arguments.get("affinity"), list)
        made = (speadrx.make_stream_group if group else speadrx.make_stream)(**arguments)
        request.addfinalizer(made.stop)
        if chunks:
            speadrx.ChunkPool(made, chunks)
        return made

    return make


@pytest.fixture
def stream(make: Callable[..., Any]) -> Any:
    """Stream of `SMALL` heaps with free chunks."""
    return make()
