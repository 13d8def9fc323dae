"""Dask distributed: a SubprocessCluster, that is a scheduler process and single-threaded worker processes.

Settings: the scheduler in a process of its own, as in a batch job (in the client's process, as LocalCluster
has it, both share one GIL); one thread per worker (the tasks are pure Python and hold the GIL); no
dashboard; `worker-saturation` of inf, which sends tasks to the workers ahead of time (the default of 1.1 is
meant for data larger than memory and halves the rate of short tasks); `pure=False` (otherwise equal calls
would be one task); results by `Client.gather`, in bulk.
"""

# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-call"

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

os.environ.setdefault("DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION", "inf")  # read at import, children too

import dask.bag
from distributed import Client
from distributed.deploy.subprocess import SubprocessCluster

from benchmarks import tasks
from benchmarks.measure import main
from benchmarks.system import WINDOW, System


class DaskDistributed(System):
    """One client of one cluster."""

    name = "dask"
    packages = ("dask", "distributed")

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.cluster = SubprocessCluster(
            n_workers=workers,
            scheduler_kwargs={"dashboard": False},
            worker_kwargs={"nthreads": 1, "dashboard": False},
            silence_logs=40,
        )
        self.client = Client(self.cluster)

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        """A call that is not taken for equal to another of the same arguments."""
        return self.client.submit(fn, *args, pure=False)

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        """All results in one request per worker, instead of one per future."""
        return list(self.client.gather(futures))

    def map(self, fn: Callable[..., Any], items: Sequence[Any], chunksize: int | None) -> list[Any]:
        """`Client.map`, a task per item; with a chunk size, a bag of partitions of that many items."""
        if chunksize is None:
            return self.gather(self.client.map(fn, items, pure=False))
        return list(dask.bag.from_sequence(items, partition_size=chunksize).map(fn).compute())

    def echo(self, blocks: Iterable[bytes]) -> int:
        """Arguments by `scatter`, as Dask advises for anything large, results by `gather`; in lots."""
        got = 0
        source = iter(blocks)
        while lot := list(islice(source, WINDOW)):
            placed = self.client.scatter(lot, hash=False)
            got += sum(map(len, self.gather([self.submit(tasks.echo, block) for block in placed])))
        return got

    def close(self) -> None:
        """Stop client and cluster."""
        self.client.close()
        self.cluster.close()


if __name__ == "__main__":
    main(DaskDistributed)
