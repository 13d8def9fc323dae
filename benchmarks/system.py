"""What a driver implements: one system under test behind one interface.

The methods are written in the plainest way that a futures interface allows; a driver overrides those for
which its system has a better normal way. All return only when every result is in the hands of the caller.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from typing import Any

from benchmarks import tasks

Needs = Callable[[int, int, int], list[int]]
"""(width, step, point) to the points of the step before that this one needs; of step 0 nobody asks."""

WINDOW = 64  # blocks of the workload `megabyte` that may be on their way


class NotOfferedError(Exception):
    """The system has no such feature, or no way to measure it; the message says which, for a footnote."""


class System(ABC):
    """One started system with `workers` single-core workers.

    Attributes:
        name: key of the system in the table.
        packages: names of the distributions whose versions are reported.
        workers: number of workers (worker ranks, worker processes), each with room for one task.
    """

    name: str
    packages: tuple[str, ...] = ()

    def __init__(self, workers: int) -> None:
        self.workers = workers

    @abstractmethod
    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Hand one call to the system; returns its future."""

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        """Results of `futures`, in order."""
        return [future.result() for future in futures]

    @abstractmethod
    def map(self, fn: Callable[..., Any], items: Sequence[Any], chunksize: int | None) -> list[Any]:
        """Results of `fn` over `items`, in order; `chunksize` None is the system's default."""

    def noops(self, count: int) -> None:
        """Submit `count` no-op calls one by one, then take every result."""
        self.gather([self.submit(tasks.noop, index) for index in range(count)])

    def round_trip_s(self) -> float:
        """Seconds from the submission of one no-op to its result, with nothing else under way."""
        start_s = time.perf_counter()
        self.gather([self.submit(tasks.noop)])
        return time.perf_counter() - start_s

    def chain(self, links: int) -> int:
        """Run `links` calls, each of which needs the one before; returns the last result."""
        future = self.submit(tasks.increment, 0)
        for _ in range(links - 1):
            future = self.submit(tasks.increment, future)
        return int(self.gather([future])[0])

    def tree(self, leaves: int) -> int:
        """Sum 0..leaves-1 by a binary tree of 2 * leaves - 1 tasks; returns the sum."""
        level = [self.submit(tasks.identity, index) for index in range(leaves)]
        while len(level) > 1:
            level = [self.submit(tasks.add, *pair) for pair in zip(level[::2], level[1::2])]
        return int(self.gather(level)[0])

    def bash(self, count: int) -> None:
        """Run `true` under bash `count` times."""
        self.gather([self.submit(tasks.run_true) for _ in range(count)])

    def echo(self, blocks: Iterable[bytes]) -> int:
        """Send every block to a task and take it back; returns the number of bytes that came back.

        At most WINDOW blocks are on their way, and none is kept: else the clock would show how fast this
        machine finds memory.
        """
        got = 0
        window: deque[Any] = deque()
        for block in blocks:
            if len(window) == WINDOW:
                got += len(window.popleft().result())
            window.append(self.submit(tasks.echo, block))
        return got + sum(len(future.result()) for future in window)

    def spins(self, count: int, length_us: float) -> None:
        """Submit `count` tasks of `length_us` microseconds of CPU time each and wait for all."""
        self.gather([self.submit(tasks.spin, length_us) for _ in range(count)])

    def graph(self, needs: Needs, width: int, steps: int, iterations: int) -> list[int]:
        """Run a graph of `benchmarks.graphs`; futures among the arguments are its edges.

        Returns:
            What the points returned that nobody needs: all of `trivial`, else those of the last step.
        """
        rows: list[list[Any]] = []
        for step in range(steps):
            row = []
            for point in range(width):
                needed = needs(width, step, point) if step else []
                row.append(self.submit(tasks.point, iterations, *[rows[-1][each] for each in needed]))
            if step and needs(width, step, 0):
                rows.clear()
            rows.append(row)
        return self.gather([future for row in rows for future in row])

    def waiting_bytes(self, count: int) -> tuple[float, float]:
        """Grow the graph by `count` tasks that wait; see `benchmarks.drivers.exex_run`.

        Returns:
            Bytes of growth of the manager per task, and of that the bytes of the pickled call.
        """
        raise NotOfferedError("measured for exex only")

    def versions(self) -> dict[str, str]:
        """Versions of the system's distributions."""
        return {package: metadata.version(package) for package in self.packages}

    @abstractmethod
    def close(self) -> None:
        """Stop the system; no task is under way."""
