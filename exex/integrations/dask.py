"""exex as a scheduler of Dask: `dask.compute(x, scheduler=exex.integrations.dask.get)`. Runs in the client.

The graph is handed to the manager as it is: each of Dask's tasks is a task, and its dependencies are its needs. The script is not
asked between two of them.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, wait
from functools import partial
from typing import Any

from dask._task_spec import Alias, DataNode, convert_legacy_graph
from dask.callbacks import local_callbacks, unpack_callbacks
from dask.core import flatten
from dask.order import order
from dask.utils import ensure_dict

from exex.client import session
from exex.client.executor import Executor
from exex.client.futures import AppFuture
from exex.client.outcomes import Call
from exex.client.promises import keep, promise
from exex.errors import DependencyError
from exex.protocol import payload as payloads
from exex.protocol.payload import Large

_OPTIONS = frozenset(("retries", "priority", "walltime", "memory", "cores", "gpus", "nodes", "exclusive"))


def get(dsk: Any, keys: Any, **options: Any) -> Any:
    """Compute keys of a graph, as Dask's own `get` functions do.

    Args:
        dsk: a graph, or what has one.
        keys: a key, or lists of keys, of any depth.
        options: of `exex.Executor`, for all tasks, such as retries or memory; those of other schedulers mean nothing here.

    Returns:
        The value, or nested tuples of values.

    Raises:
        NoManagerError: outside an exex job.
        Exception: what a task raised; all others are cancelled.
    """
    current = session.current("exex.integrations.dask.get")
    graph = convert_legacy_graph(ensure_dict(dsk.__dask_graph__() if hasattr(dsk, "__dask_graph__") else dsk))
    executor = Executor(**{name: value for name, value in options.items() if name in _OPTIONS})
    wanted = list(dict.fromkeys(flatten([keys])))
    graph = _needed(graph, wanted)
    with local_callbacks(options.get("callbacks")) as callbacks:
        watch = _Watch(graph, callbacks) if callbacks else None
        run = _Run(graph, executor, current.foreign_call(), watch)
        has_failed = True
        try:
            futures = run.submit(wanted)
            wait([future for future in futures.values() if isinstance(future, AppFuture)], return_when=FIRST_EXCEPTION)
            values = {key: _value(future) for key, future in sorted(futures.items(), key=lambda item: not _is_bad(item[1]))}
            has_failed = False
        finally:
            if has_failed:
                run.cancel()
            if watch is not None:
                watch.finish(has_failed)
    return _nested(keys, values)


def _needed(graph: Mapping[Any, Any], wanted: list[Any]) -> dict[Any, Any]:
    """The part of a graph that some of its keys need."""
    found: dict[Any, Any] = {}
    todo = list(wanted)
    while todo:
        key = todo.pop()
        if key not in found:
            found[key] = graph[key]
            todo += graph[key].dependencies
    return found


def _nested(keys: Any, values: Mapping[Any, Any]) -> Any:
    return tuple(_nested(key, values) for key in keys) if isinstance(keys, list) else values[keys]


def _is_bad(future: Any) -> bool:
    return isinstance(future, AppFuture) and (future.cancelled() or future._has_failed())


def _value(future: Any) -> Any:
    """The value; of a failure the root cause, since Dask's users know nothing of the tasks in between."""
    if not isinstance(future, AppFuture):
        return future
    try:
        return future.result()
    except DependencyError as error:
        if error.__cause__ is None:
            raise
        raise error.__cause__ from error.__cause__.__cause__


def dask_task(task: Callable[[dict[Any, Any]], Any], values: dict[Any, Any]) -> Any:
    """Run one of Dask's tasks. In the task process."""
    return task(values)


class _Run:
    """One graph on its way.

    A future is let go of as soon as all that need it are submitted, so that values in between do not pile up in the script.

    Args:
        promises: what those values belong to that come from the script itself.
    """

    def __init__(self, graph: Mapping[Any, Any], executor: Executor, promises: Call, watch: _Watch | None) -> None:
        self._graph = graph
        self._executor = executor
        self._promises = promises
        self._watch = watch
        self._all: weakref.WeakSet[AppFuture] = weakref.WeakSet()
        self._dependents = Counter(key for task in graph.values() for key in task.dependencies)

    def submit(self, wanted: list[Any]) -> dict[Any, Any]:
        """Make all tasks. Returns the futures of the keys that are wanted; the values themselves of those that are no tasks."""
        left, kept = self._dependents.copy(), frozenset(wanted)
        futures: dict[Any, Any] = {}
        shared: dict[Any, Large] = {}
        places = order(self._graph)
        for key in sorted(self._graph, key=places.__getitem__):
            task = self._graph[key]
            if isinstance(task, DataNode):
                payload = self._apart(key, task.value) if key not in kept else None
                futures[key] = task.value if payload is None else self._promise()
                if payload is not None:
                    shared[key] = payload
            elif isinstance(task, Alias):
                futures[key] = futures[task.target]
            else:
                values = {need: futures[need] for need in task.dependencies}
                futures[key] = self._start(key, task, values)
            for need in task.dependencies:
                left[need] -= 1
                if not left[need] and need not in kept:
                    future = futures.pop(need)
                    if need in shared:
                        keep(future, shared.pop(need))
        return {key: futures[key] for key in wanted}

    def _apart(self, key: Any, value: Any) -> Large | None:
        """The payload of a value that goes to the manager once, since several tasks need it and it is not small."""
        if self._dependents[key] < 2:
            return None
        payload = payloads.dump_apart(value)
        return payload if type(payload) is Large and len(payload) >= payloads.LARGE_BYTES else None

    def _promise(self) -> AppFuture:
        """It is kept when all that need it are on their way, so that none of them takes the value along."""
        future = promise(self._promises)
        self._all.add(future)
        return future

    def _start(self, key: Any, task: Any, values: dict[Any, Any]) -> AppFuture:
        if self._watch is not None:
            self._watch.begin(key)
        future = self._executor.submit(dask_task, task, values)
        self._all.add(future)
        if self._watch is not None:
            future.add_done_callback(partial(self._watch.end, key))
        return future

    def cancel(self) -> None:
        """Cancel what is left; failures beside the one that is reported are no news."""
        for future in list(self._all):
            if not future.cancel():
                future._call.proxy.seen(future)


class _Watch:
    """Tells Dask's callbacks (progress bars, profilers) how far a graph is.

    Args:
        callbacks: of which each is (start, start_state, pretask, posttask, finish), None where it has none.
    """

    def __init__(self, graph: Mapping[Any, Any], callbacks: Iterable[Any]) -> None:
        self._graph = graph
        starts, start_states, self._pretasks, self._posttasks, self._finishes = unpack_callbacks(callbacks)
        tasks = {key for key, task in graph.items() if not isinstance(task, (Alias, DataNode))}
        self._state: dict[str, Any] = {"waiting": tasks, "ready": set(), "running": set(), "finished": set(), "cache": {}}
        for call in starts:
            call(graph)
        for call in start_states:
            call(graph, self._state)

    def begin(self, key: Any) -> None:
        """A task is submitted."""
        self._state["waiting"].discard(key)
        self._state["running"].add(key)
        for call in self._pretasks:
            call(key, self._graph, self._state)

    def end(self, key: Any, future: AppFuture) -> None:
        """It has ended. In the proxy thread."""
        self._state["running"].discard(key)
        self._state["finished"].add(key)
        if self._posttasks and not _is_bad(future):
            for call in self._posttasks:
                call(key, future.result(), self._graph, self._state, None)

    def finish(self, has_failed: bool) -> None:
        """All have."""
        for call in self._finishes:
            call(self._graph, self._state, has_failed)
