"""`local_cluster`: workers on this machine, set up as receivers need them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

#: How a cluster of receivers differs from one for computations. Nobody is ended because a function has held the
#: interpreter's lock for long. Nor is a worker that has died, and takes longer than 15 s to come back: it may receive
#: by the time that it is ended. Workers are forked from a process that has imported what they need: one that starts
#: from nothing takes seconds on a machine at rest, and 40 s were seen on a busy one, in which its share is missing.
SETTINGS = {
    "distributed.scheduler.worker-ttl": None,
    "distributed.deploy.lost-worker-timeout": "520 weeks",
    "distributed.worker.multiprocessing-method": "forkserver",
}
#: What that process imports.
PRELOAD = ["distributed", "speadrx.fleet.worker"]


@contextlib.contextmanager
def local_cluster(workers: int, resources: Mapping[str, float]) -> Iterator[Any]:
    """Start a scheduler and workers, each a process, on this machine; end them at the end of the block.

    Parameters
    ----------
    workers
        How many workers.
    resources
        What each of them has.
    """
    import dask
    from distributed import LocalCluster
    from distributed.utils import get_mp_context

    with dask.config.set(SETTINGS):
        # Once Dask has set what it would import itself.
        get_mp_context().set_forkserver_preload(PRELOAD)
        with LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            # The memory of a receiver is allocated once, when it starts; whoever nears a limit would be paused.
            memory_limit=0,
            resources=dict(resources),
            # Any free port: nobody needs it, but there is no cluster without it.
            dashboard_address="127.0.0.1:0",
        ) as cluster:
            yield cluster
