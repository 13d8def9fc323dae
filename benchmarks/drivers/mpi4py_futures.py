"""mpi4py.futures: `mpiexec -n 3 python -m mpi4py.futures mpi4py_futures.py ...`, its manual's way for HPC.

Settings: `mpi4py` has none; its ranks back off to sleeps of 1 ms. `mpi4py-spin` is the same driver with
MPI4PY_FUTURES_BACKOFF=0: a tenth of the latency for ten times the idle CPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from mpi4py.futures import MPIPoolExecutor

from benchmarks import tasks
from benchmarks.measure import main
from benchmarks.system import Needs, System


class Dataflow:
    """One run of a graph whose edges are followed by the client."""

    def __init__(self, pool: MPIPoolExecutor, needs: Needs, width: int, steps: int, iterations: int) -> None:
        self.pool, self.width, self.steps, self.iterations = pool, width, steps, iterations
        self.independent = not needs(width, 1, 0)
        self.needs = [[needs(width, step, point) for point in range(width)] for step in range(steps)]
        self.dependents: list[list[list[int]]] = [[[] for _ in range(width)] for _ in range(steps)]
        for step in range(1, steps):
            for point, needed in enumerate(self.needs[step]):
                for each in needed:
                    self.dependents[step - 1][each].append(point)
        self.missing = [[len(needed) for needed in row] for row in self.needs]
        self.values = [[0] * width for _ in range(steps)]
        self.left = width * steps
        self.ended = threading.Event()

    def run(self) -> list[int]:
        """The values that `System.graph` returns."""
        for step in range(self.steps if self.independent else 1):
            for point in range(self.width):
                self.submit(step, point)
        self.ended.wait()
        rows = self.values if self.independent else self.values[-1:]
        return [value for row in rows for value in row]

    def submit(self, step: int, point: int) -> None:
        """All that this point needs is there."""
        needed = self.needs[step][point] if step else []
        values = [self.values[step - 1][each] for each in needed]
        future = self.pool.submit(tasks.point, self.iterations, *values)
        future.add_done_callback(lambda done: self.on_done(step, point, done))

    def on_done(self, step: int, point: int, done: Any) -> None:
        """Keep the value, and submit what waited for it alone. An error ends the run: its value stays 0."""
        self.left -= 1
        if done.exception() is not None:
            self.left = 0
        else:
            self.values[step][point] = done.result()
            for each in self.dependents[step][point]:
                self.missing[step + 1][each] -= 1
                if self.missing[step + 1][each] == 0:
                    self.submit(step + 1, each)
        if self.left == 0:
            self.ended.set()


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

    def graph(self, needs: Needs, width: int, steps: int, iterations: int) -> list[int]:
        """Without dependencies: a point is submitted by the callback of the last future that it needs.

        Not step by step: a point never waits for others than those that it needs. All callbacks run in the pool's one thread.
        """
        flow = Dataflow(self.pool, needs, width, steps, iterations)
        return flow.run()

    def close(self) -> None:
        """Stop the pool; the worker ranks return from the `mpi4py.futures` main program."""
        self.pool.shutdown()


if __name__ == "__main__":
    main(Mpi4pyFutures)
