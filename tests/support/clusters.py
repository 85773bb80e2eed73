"""Clusters for fleets, of processes of this machine: of one program, or each process a program of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any, Self

import dask
import numpy as np
import pytest
from distributed import Client, Scheduler, Worker
from distributed.utils import get_mp_context

from addresses import own_port
from fleets import ANTENNAS, BATCHES, as_arrays
from loopback import needs_multicast_route, wait_for
from speadrx.fleet import Fleet, local_cluster
from speadrx.fleet.cluster import PRELOAD, SETTINGS

#: Of tests with clusters.
MARKS = [
    needs_multicast_route,
    pytest.mark.slow,
    pytest.mark.timeout(170),
    # distributed's own, as its event loops and sockets end.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
#: Seconds to wait for what starts processes.
PATIENCE = 100
_TIMEOUTS = dict.fromkeys(("distributed.comm.timeouts.connect", "distributed.comm.timeouts.tcp"), f"{PATIENCE}s")


@contextlib.contextmanager
def workers(n: int) -> Iterator[Any]:
    """Workers, each a process with a NIC of its own; those that die come back."""
    with dask.config.set({"logging.distributed": "critical", **_TIMEOUTS}), local_cluster(n, {"NIC": 1}) as made:
        yield made


@contextlib.contextmanager
def start_of(cluster: Any, n_workers: int | None = None) -> Iterator[Any]:
    """Give a function that starts fleets, once all workers are back; they are ended after the block."""
    with contextlib.ExitStack() as stack:

        def start(plan, where=cluster):
            with Client(where, set_as_default=False, timeout=PATIENCE) as client:
                client.wait_for_workers(n_workers or len(where.workers), timeout=PATIENCE)
            fleet = Fleet(plan, where, patience=PATIENCE)
            stack.callback(fleet.stop)
            assert [problem.text for problem in fleet.connect(timeout=PATIENCE, grace=PATIENCE) if problem.fatal] == []
            fleet.start()
            fleet.wait_until_receiving(PATIENCE)
            return fleet

        yield start


def pids(cluster: Any) -> dict[str, int]:
    """The process of each worker."""
    with Client(cluster, set_as_default=False, timeout=PATIENCE) as client:
        return client.run(os.getpid)


def put_together(results: Any) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Data and presence of all antennas, by time; of those whose share gave no result, none are present."""
    whole: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for one in results:
        data = np.zeros((BATCHES, ANTENNAS, as_arrays(next(iter(one.results.values())), 1)[0].shape[-1]), ">i2")
        present = np.zeros((BATCHES, ANTENNAS), bool)
        for share, result in one.results.items():
            data[:, [int(share)]], present[:, [int(share)]] = as_arrays(result, 1)
        whole[one.timestamp] = data, present
    return whole


class Processes:
    """A scheduler and workers, each a process of its own without a nanny, as on machines of their own.

    They are forked from a process that has imported Dask: commands would take a minute to start on a busy machine.

    Parameters
    ----------
    n
        How many workers, each with a NIC.
    """

    def __init__(self, n: int) -> None:
        self._port, self._n = own_port(), n
        self.address = f"tcp://127.0.0.1:{self._port}"
        self._scheduler: Any = None
        self._workers: list[Any] = []

    def __enter__(self) -> Self:
        self.start_scheduler()
        self._start_workers()
        return self

    def __exit__(self, *exc: object) -> None:
        for one in (*self._workers, self._scheduler):
            one.kill()
            one.join()

    def start_scheduler(self) -> None:
        """Start it at the same address as the one before."""
        self._scheduler = _start(_schedule, self._port)
        # Dask tries again after ever longer pauses.
        wait_for(self._answers, PATIENCE)

    @property
    def scheduler(self) -> int:
        """Its process."""
        pid: int = self._scheduler.pid
        return pid

    def kill_scheduler(self) -> None:
        self._scheduler.kill()
        self._scheduler.join()

    def restart_workers(self) -> None:
        """Wait until all have ended by themselves, and start them anew, as systemd would."""
        wait_for(lambda: not any(one.is_alive() for one in self._workers), PATIENCE)
        assert [one.exitcode for one in self._workers] == [0] * self._n
        self._start_workers()

    def _start_workers(self) -> None:
        self._workers = [_start(_work, self.address) for _ in range(self._n)]

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=60).close()
        except OSError:
            return False
        return True


def _start(function: Any, *arguments: Any) -> Any:
    with dask.config.set(SETTINGS):
        process = get_mp_context().Process(target=function, args=arguments)
        get_mp_context().set_forkserver_preload(PRELOAD)
    process.start()
    return process


def _schedule(port: int) -> None:
    async def run() -> None:
        async with Scheduler(host="127.0.0.1", port=port, dashboard_address="127.0.0.1:0") as scheduler:
            await scheduler.finished()

    _serve(run())


def _work(address: str) -> None:
    async def run() -> None:
        async with Worker(address, nthreads=1, memory_limit=0, resources={"NIC": 1}) as worker:
            await worker.finished()

    _serve(run())


def _serve(what: Any) -> None:
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with dask.config.set(SETTINGS):
        asyncio.run(what)
