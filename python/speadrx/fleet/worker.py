"""What runs on a worker of Dask: a task for each share, and a plugin that tells shares when to end."""

from __future__ import annotations

import asyncio
import os
import platform
import threading
from typing import Any

import psutil
from distributed import Worker, WorkerPlugin, get_worker, secede
from distributed.comm import connect

from speadrx._core import __version__

from .share import ShareRun, Work, find_function

#: Seconds that a worker that closes waits for its shares: what has come is handed over, and recordings are finished.
_PATIENCE = 30.0
#: Seconds between looks for a scheduler, and that one has to answer.
_LOOK = 0.5
_ANSWER_SECONDS = 5.0


def topic_of(fleet: str) -> str:
    """The topic of a fleet's events."""
    return f"speadrx-{fleet}"


class SharesPlugin(WorkerPlugin):
    """Says what a worker has, and ends its shares when their tasks are cancelled or the worker closes.

    Parameters
    ----------
    fleet
        The fleet's own name on this scheduler.
    seconds
        Time between signs of life of a worker without a share.
    function
        Where to find the function, if the plan says that in words.
    """

    def __init__(self, fleet: str, seconds: float, function: str | None) -> None:
        self.name = topic_of(fleet)
        self._seconds, self._function = seconds, function

    async def setup(self, worker: Worker) -> None:
        """Say what the worker has."""
        self._lock = threading.Lock()
        self._running: dict[Any, ShareRun] = {}
        #: Tasks that were cancelled before they had begun to receive.
        self._cancelled: set[Any] = set()
        facts = {
            "kind": "worker",
            "worker": worker.address,
            "host": platform.node(),
            "resources": dict(worker.state.total_resources),
            "memory": psutil.virtual_memory().available,
            "processors": len(os.sched_getaffinity(0)),
            "version": __version__,
            # Not by the loop: what is imported may take long.
            "function_error": await asyncio.to_thread(_import_error, self._function),
        }
        worker.log_event(self.name, facts)
        self._signs = asyncio.create_task(self._give_signs(worker))

    async def _give_signs(self, worker: Worker) -> None:
        """Say that the worker is there while it has no share: those have reports."""
        while True:
            await asyncio.sleep(self._seconds)
            if not self._running:
                worker.log_event(self.name, {"kind": "idle", "worker": worker.address})

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """End the share of a task that was cancelled."""
        if finish not in ("cancelled", "released", "forgotten") or not str(key).startswith(self.name):
            return
        with self._lock:
            run = self._running.get(key)
            if run is None:
                if start == "executing":
                    self._cancelled.add(key)
                return
        run.end("cancelled")

    async def teardown(self, worker: Worker) -> None:
        """End all shares, and wait until they have.

        A worker also closes when its scheduler has died, or cannot be reached. Then its shares go on, and record, until
        a scheduler answers at the same address: that one has them started anew.
        """
        self._signs.cancel()
        with self._lock:
            runs = list(self._running.values())
        while not all(run.finished.is_set() for run in runs) and not await _scheduler_answers(worker):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK)  # nothing in this process knows when one does
        for run in runs:
            run.end("worker closed")
        waits = [asyncio.to_thread(run.finished.wait, _PATIENCE) for run in runs]
        await asyncio.gather(*waits)

    def begin(self, key: Any, run: ShareRun) -> None:
        """Remember a share, in the thread of its task."""
        with self._lock:
            self._running[key] = run
            if key in self._cancelled:
                run.end("cancelled")

    def over(self, key: Any) -> None:
        """Forget it."""
        with self._lock:
            self._running.pop(key, None)
            self._cancelled.discard(key)


def _import_error(function: str | None) -> str | None:
    """Why a function cannot be found here."""
    try:
        find_function(function)
    except Exception as exc:  # noqa: BLE001 (a module may raise anything as it is imported)
        return f"{type(exc).__name__}: {exc}"
    return None


async def _scheduler_answers(worker: Worker) -> bool:
    try:
        comm = await connect(worker.scheduler.address, timeout=_ANSWER_SECONDS, **worker.connection_args)
    except OSError:  # of which those of Dask are kinds, and timeouts
        return False
    await comm.close()
    return True


def receive_share(topic: str, work: Work) -> None:
    """Receive a share: a task that keeps its resources until it is over, but no thread of the worker's pool."""
    worker = get_worker()
    plugin: SharesPlugin = worker.plugins[topic]
    address = worker.address
    key = worker.get_current_task()
    run = ShareRun(work, lambda report: worker.log_event(topic, {**report, "worker": address}))
    plugin.begin(key, run)
    secede()
    try:
        run.run()
    finally:
        plugin.over(key)
