"""exex as a backend of joblib, and so of scikit-learn: `import exex.integrations.joblib`, then `joblib.parallel_config("exex")`.

Runs in the client. A batch of joblib's is a task; `joblib.Parallel` inside a task runs its calls one after the other there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from joblib import register_parallel_backend
from joblib._parallel_backends import AutoBatchingMixin, ParallelBackendBase, SequentialBackend

from exex.client.executor import Executor
from exex.client.threads import Threads

NAME = "exex"

_LOGGER = logging.getLogger("exex")
_run = Threads("exex-joblib", 4, lambda: None).run  # callbacks of joblib read the script's generators, which may take long


class ExexBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """The backend `"exex"`.

    Args:
        options: of `exex.Executor`, for all tasks: retries, priority, walltime, memory, cores, ...; the others are joblib's own.
    """

    default_n_jobs = -1
    supports_retrieve_callback = True
    MIN_IDEAL_BATCH_DURATION = 0.02  # a task costs some 0.1 ms
    MAX_IDEAL_BATCH_DURATION = 0.5

    def __init__(self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **options: Any) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._executor = Executor(**options)
        self._futures: set[Future[Any]] = set()
        self._lock = threading.Lock()

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Calls that run at a time: as many as the job has slots, or fewer if fewer are asked for."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        slots = max(1, self._executor.slots)
        if n_jobs is None:
            return 1
        return max(1, slots + 1 + n_jobs) if n_jobs < 0 else min(n_jobs, slots)

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], object] | None = None) -> Future[Any]:
        """Make a task of a batch. The callback runs when it has ended."""
        future: Future[Any]
        try:
            future = self._executor.submit(func)
        except Exception as error:  # joblib calls this in the callback, too, where nobody would hear of it
            future = Future()
            future.set_exception(error)
        else:
            with self._lock:
                self._futures.add(future)
            future.add_done_callback(self._forget)
        if callback is not None:
            future.add_done_callback(lambda ended: _run(lambda: _call_back(callback, ended)))
        return future

    apply_async = submit  # its name until joblib 1.4

    def _forget(self, future: Any) -> None:
        with self._lock:
            self._futures.discard(future)
        if future._has_failed():
            future._call.proxy.seen(future)  # joblib reports the first error, and none of those behind it

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """The values of a batch, or its error."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """A call has failed: cancel the others."""
        with self._lock:
            futures = list(self._futures)
        for future in futures:
            future.cancel()

    def get_nested_backend(self) -> tuple[Any, int | None]:
        """Of `joblib.Parallel` inside a task, which has one slot."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None


def _call_back(callback: Callable[[Any], object], future: Future[Any]) -> None:
    try:
        callback(future)
    except Exception:
        _LOGGER.exception("exception calling callback of joblib for %r", future)


register_parallel_backend(NAME, ExexBackend)
