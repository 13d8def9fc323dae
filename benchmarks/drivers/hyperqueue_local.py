"""HyperQueue: the LocalCluster of its Python package (server and workers are native threads of this process).

What HyperQueue is for is processes: a Python function is a fresh interpreter per call, and its return value
goes nowhere. So a no-op by `submit` or `map` is a Python function here, which is what such a call costs
there, while `bash`, `chain` and `tree` are process tasks that run `true`.

Settings: one worker with all the cores, as on a node; no output files (`stdout=None`), of which it would
create two per task. Its client learns of the end of a job by asking once per second. So that this does not
blur rates, the end of a job is taken from a last process task, which needs all others and touches a file;
`latency` is what the client's own wait gives.
"""

# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-call"

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hyperqueue import Job
from hyperqueue.cluster import LocalCluster, WorkerConfig
from hyperqueue.task.function import PythonEnv

from benchmarks import tasks
from benchmarks.measure import main
from benchmarks.system import NotOfferedError, System

QUIET: dict[str, None] = {"stdout": None, "stderr": None}


class HyperQueueLocal(System):
    """One local cluster and its client."""

    name = "hyperqueue"
    packages = ("hyperqueue",)

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.home = tempfile.TemporaryDirectory(prefix="exex-bench-hq-")
        self.cluster = LocalCluster(str(Path(self.home.name, "server")), WorkerConfig(cores=workers))
        self.client = self.cluster.client(python_env=PythonEnv(python_bin=sys.executable))
        self.jobs = 0

    def run(self, job: Any, leaders: Sequence[Any]) -> None:
        """Submit `job` and return when `leaders`, the tasks that no other needs, are done."""
        self.jobs += 1
        mark = Path(self.home.name, f"done-{self.jobs}")
        job.program(["touch", str(mark)], deps=leaders, **QUIET)
        self.client.submit(job)
        while not mark.exists():
            time.sleep(0.001)

    def job(self) -> Any:
        """An empty job whose tasks run in the temporary directory."""
        return Job(default_workdir=self.home.name)

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        """The call, for `gather`: HyperQueue's Python API submits whole jobs and has no futures."""
        return fn, args

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        """One job with a Python function per call; the results are lost."""
        job = self.job()
        self.run(job, [job.function(fn, args=args, **QUIET) for fn, args in futures])
        return [None] * len(futures)

    def map(self, fn: Callable[..., Any], items: Sequence[Any], chunksize: int | None) -> list[Any]:
        """A function per item."""
        if chunksize is not None:
            raise NotOfferedError("HyperQueue does not group calls into one task")
        return self.gather([(fn, (item,)) for item in items])

    def round_trip_s(self) -> float:
        """One job of one `true`, by the client's own wait."""
        job = self.job()
        job.program(["true"], **QUIET)
        start_s = time.perf_counter()
        with open(os.devnull, "w", encoding="ascii") as nowhere, contextlib.redirect_stderr(nowhere):
            self.client.wait_for_jobs([self.client.submit(job)])
        return time.perf_counter() - start_s

    def chain(self, links: int) -> int:
        """Process tasks that run `true`, each after the one before; the number of links is taken on trust."""
        job = self.job()
        task = job.program(["true"], **QUIET)
        for _ in range(links - 1):
            task = job.program(["true"], deps=[task], **QUIET)
        self.run(job, [task])
        return links

    def tree(self, leaves: int) -> int:
        """Process tasks that run `true`; no values travel, so the sum is taken on trust."""
        job = self.job()
        level = [job.program(["true"], **QUIET) for _ in range(leaves)]
        while len(level) > 1:
            level = [job.program(["true"], deps=pair, **QUIET) for pair in zip(level[::2], level[1::2])]
        self.run(job, level)
        return leaves * (leaves - 1) // 2

    def bash(self, count: int) -> None:
        """An array of process tasks that run `true`, which needs no bash."""
        job = self.job()
        self.run(job, [job.program(["true"], **QUIET) for _ in range(count)])

    def echo(self, blocks: Iterable[bytes]) -> int:
        """Left out."""
        raise NotOfferedError("a HyperQueue function returns nothing")

    def spins(self, count: int, length_us: float) -> None:
        """A Python function per task."""
        self.gather([(tasks.spin, (length_us,))] * count)

    def close(self) -> None:
        """Stop the cluster."""
        self.cluster.stop()


if __name__ == "__main__":
    main(HyperQueueLocal)
