"""mpi4py.futures: `mpiexec -n 3 python -m mpi4py.futures mpi4py_futures.py ...`, its manual's way for HPC.

Settings: `mpi4py` has none; its ranks back off to sleeps of 1 ms. `mpi4py-spin` is the same driver with
MPI4PY_FUTURES_BACKOFF=0: a tenth of the latency for ten times the idle CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mpi4py.futures import MPIPoolExecutor

from benchmarks import tasks
from benchmarks.measure import main
from benchmarks.system import System


class Mpi4pyFutures(System):
    """One MPIPoolExecutor over all ranks but the first."""

    name = "mpi4py"
    packages = ("mpi4py",)

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.pool = MPIPoolExecutor(max_workers=workers)

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        """One call, one message: the pool sends a task when a worker is free."""
        return self.pool.submit(fn, *args)

    def map(self, fn: Callable[..., Any], items: Sequence[Any], chunksize: int | None) -> list[Any]:
        """The default chunk size is 1."""
        return list(self.pool.map(fn, items, chunksize=chunksize or 1))

    def chain(self, links: int) -> int:
        """Without dependencies: wait for each link before submitting the next."""
        value = 0
        for _ in range(links):
            value = self.pool.submit(tasks.increment, value).result()
        return value

    def tree(self, leaves: int) -> int:
        """Without dependencies: one map per level, in chunks of 100, with a barrier between levels."""
        level = self.map(tasks.identity, range(leaves), 100)
        while len(level) > 1:
            level = self.map(tasks.add_pair, list(zip(level[::2], level[1::2])), 100)
        return int(level[0])

    def close(self) -> None:
        """Stop the pool; the worker ranks return from the `mpi4py.futures` main program."""
        self.pool.shutdown()


if __name__ == "__main__":
    main(Mpi4pyFutures)
