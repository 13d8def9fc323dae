"""exex: `mpiexec -n 3 python -m exex.run exex_run.py ...`; this script is the client beside rank 0."""

# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-call"

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

import exex
from benchmarks import tasks
from benchmarks.measure import main
from benchmarks.system import System


def run_true() -> str:
    """Command line of the bash app."""
    return "true"


class ExexRun(System):
    """Apps for `submit`, the executor for `map`."""

    name = "exex"
    packages = ("mpi4py",)

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.executor = exex.Executor()
        self.apps: dict[Callable[..., Any], Any] = {}
        self.bash_true = exex.bash_app(run_true)

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call the app of `fn`, made at its first use as a decorator would."""
        app = self.apps.get(fn)
        if app is None:
            app = self.apps[fn] = exex.python_app(fn)
        return app(*args)

    def map(self, fn: Callable[..., Any], items: Sequence[Any], chunksize: int | None) -> list[Any]:
        """The executor's map, with its own chunk size unless told otherwise."""
        if chunksize is None:
            return list(self.executor.map(fn, items))
        return list(self.executor.map(fn, items, chunksize=chunksize))

    def bash(self, count: int) -> None:
        """A bash app per run."""
        self.gather([self.bash_true() for _ in range(count)])

    def close(self) -> None:
        """Give the executor back; the job ends with this script."""
        self.executor.shutdown()

    def versions(self) -> dict[str, str]:
        """From the package itself: a source tree on PYTHONPATH has no distribution."""
        return {"exex": exex.__version__, **super().versions()}

    def waiting_bytes(self, count: int) -> tuple[float, float]:
        """Submit `count` calls that need one task that does not end, and see how much rank 0 grows.

        A last no-op, which needs nothing, comes back only after the manager has taken all before it.
        """
        manager = psutil.Process(exex.manager_pid())
        with tempfile.TemporaryDirectory(prefix="exex-bench-") as folder:
            gate = Path(folder, "open")
            blocked = self.submit(tasks.wait_for_file, str(gate))
            before_bytes = manager.memory_info().rss
            futures = [self.submit(tasks.noop, blocked, index) for index in range(count)]
            self.submit(tasks.noop).result()
            grown_bytes = manager.memory_info().rss - before_bytes
            gate.touch()
            self.gather(futures)
        payload_bytes = len(pickle.dumps(((None, count), {}), 5))
        return grown_bytes / count, float(payload_bytes)


if __name__ == "__main__":
    main(ExexRun)
