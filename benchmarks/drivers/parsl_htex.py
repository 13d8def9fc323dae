"""Parsl: apps on a HighThroughputExecutor on the loopback address, one node, one manager with all workers.

Settings: a deep prefetch (the node's manager asks for tasks beyond its workers; of 0, 2, 100 and 1,000 the
larger two were the fastest), no encryption of the interchange's sockets, no scaling strategy (the block is
fixed), no log files: each makes it faster.
"""

# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-call"

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

from benchmarks.measure import main
from benchmarks.system import System


def run_true() -> str:
    """Command line of the bash app."""
    return "true"


class ParslHtex(System):
    """One loaded DataFlowKernel with one executor."""

    name = "parsl"
    packages = ("parsl",)

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.run_dir = tempfile.TemporaryDirectory(prefix="exex-bench-parsl-")
        executor = HighThroughputExecutor(
            address="127.0.0.1",
            max_workers_per_node=workers,
            cores_per_worker=0.01,  # else the number of cores of this machine would cap the number of workers
            prefetch_capacity=100,
            encrypted=False,
            provider=LocalProvider(init_blocks=1, max_blocks=1),
        )
        parsl.load(
            Config(
                executors=[executor],
                strategy="none",
                initialize_logging=False,
                run_dir=self.run_dir.name,
            )
        )
        self.apps: dict[Callable[..., Any], Any] = {}
        self.bash_true = parsl.bash_app(run_true)

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call the app of `fn`, made at its first use as a decorator would."""
        app = self.apps.get(fn)
        if app is None:
            app = self.apps[fn] = parsl.python_app(fn)
        return app(*args)

    def map(self, fn: Callable[..., Any], items: Sequence[Any], chunksize: int | None) -> list[Any]:
        """A task per item: Parsl's own pool executor accepts a chunk size and ignores it."""
        return self.gather([self.submit(fn, item) for item in items])

    def bash(self, count: int) -> None:
        """A bash app per run; its result is the exit code."""
        self.gather([self.bash_true() for _ in range(count)])

    def close(self) -> None:
        """Stop the executor and its processes."""
        parsl.dfk().cleanup()
        parsl.clear()


if __name__ == "__main__":
    main(ParslHtex)
