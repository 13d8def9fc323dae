"""EXEX for Parsl: an executor whose workers are the ranks of an MPI job. Runs in the Parsl program.

`Config(executors=[ExtremeScaleExecutor()])` is all that a Parsl program needs. Parsl keeps its graph, its retries and its files;
a task that is ready is a task of exex.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any, NamedTuple

from parsl.executors.base import ParslExecutor
from parsl.executors.errors import BadStateException, ExecutorError, InvalidResourceSpecification
from parsl.executors.high_throughput import errors as htex
from parsl.monitoring.radios.udp import UDPRadio
from parsl.serialize import deserialize, facade, serialize
from parsl.serialize.concretes import DillSerializer
from parsl.serialize.errors import SerializationError
from parsl.utils import RepresentationMixin

from exex import errors
from exex.client import session
from exex.client.connect import Client, connect
from exex.client.executor import Executor
from exex.client.futures import AppFuture
from exex.client.outcomes import Call
from exex.client.resources import Specification
from exex.client.start import World, start
from exex.integrations.packed import Function, Pickling, dump_call
from exex.integrations.prepared import name_of
from exex.protocol import payload as payloads
from exex.protocol.messages import Kind

logger = logging.getLogger("parsl.executors.exex")  # so that it is in parsl.log

_NEEDED = ("parsl.app.bash", "parsl.app.python", "parsl.serialize")
"""Modules that every task needs: imported once per rank."""

_GATHERED_S = 0.002
"""For how long calls are gathered, to be sent together."""

_REMEMBERED = 1024
"""Functions, each with the resources that it asked for, that travel to each worker once."""


class WorkerLost(htex.WorkerLost):  # type: ignore[misc]
    """The process of a task ended before the task did. `__cause__` is the error of exex, with exit code and last words."""

    def __init__(self, error: errors.WorkerLost) -> None:
        super().__init__(error.rank, error.node)
        self.__cause__ = error

    def __str__(self) -> str:
        return str(self.__cause__)


class ManagerLost(htex.ManagerLost):  # type: ignore[misc]
    """The rank that had the task is gone. `__cause__` is the error of exex."""

    def __init__(self, error: errors.WorkerLost) -> None:
        super().__init__(b"rank %d" % error.rank, error.node)
        self.__cause__ = error

    def __str__(self) -> str:
        return str(self.__cause__)


class ExtremeScaleExecutor(ParslExecutor, RepresentationMixin):  # type: ignore[misc]
    """Runs the tasks of a Parsl program in a world of exex.

    In a script of `exex run` or `python -m exex.run` that is the script's own job. Elsewhere it is the job that listens under
    `connection`, or else a world that `start` starts and `shutdown` ends: on this machine, or on all nodes of the
    allocation in which the program runs.

    Args:
        label: name of the executor.
        connection: connection file of a running job.
        workers: on this machine, beside the manager; None: as many as use its cores.
        launcher: `local`, `auto`, or a name that `exex launchers` lists.
        nodes: of the allocation; None: all.
        ranks_per_node: with one, each rank has a slot for each core.
        cores_per_node: None: as the batch system says.
        settings: of the world, as `exex run` has them: `{"slots": 2}`.
        storage_access: how files are staged; None: Parsl's default.
        working_dir: for staged files.
        remote_monitoring_radio: how tasks report to Parsl's monitoring; None: by UDP.
    """

    def __init__(  # noqa: PLR0917  Parsl's repr knows no other arguments
        self,
        label: str = "exex",
        connection: str | None = None,
        workers: int | None = None,
        launcher: str = "auto",
        nodes: int | None = None,
        ranks_per_node: int = 1,
        cores_per_node: int | None = None,
        settings: Mapping[str, Any] | None = None,
        storage_access: list[Any] | None = None,
        working_dir: str | None = None,
        remote_monitoring_radio: Any = None,
    ) -> None:
        super().__init__()
        self.label = label
        self.connection = connection
        self.workers = workers
        self.launcher = launcher
        self.nodes = nodes
        self.ranks_per_node = ranks_per_node
        self.cores_per_node = cores_per_node
        self.settings = settings
        self.storage_access = storage_access
        self.working_dir = working_dir
        self.remote_monitoring_radio = remote_monitoring_radio or UDPRadio(address=socket.gethostname())
        self._client: Client | None = None
        self._submissions: _Submissions | None = None
        self._pace: _Pace
        self._lock = threading.Lock()
        self._open: set[AppFuture] = set()
        self._exception: Exception | None = None

    # ---- what Parsl calls ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Have a world. Returns when its workers are there.

        Raises:
            ConfigError: what cannot be used here.
            StartError: the world did not come up, or the job cannot be reached.
        """
        super().start()
        if session.is_client():
            if self.connection:
                raise errors.ConfigError(f"executor {self.label}: connection= is for programs that are not the script of a job")
        elif self.connection:
            self._client = connect(self.connection, f"{self.label}-{os.getpid()}@{socket.gethostname()}")
        else:
            self._client = self._start_world()
        self._submissions = _Submissions()
        self._pace = _Pace(self._submissions.executor._session.proxy.wake)
        logger.info("Executor %s has %d slots", self.label, self._submissions.executor.slots)

    def submit(self, func: Callable[..., Any], resource_specification: dict[str, Any], *args: Any, **kwargs: Any) -> Future[Any]:
        """Make a task of a call.

        Raises:
            BadStateException: the world has ended.
            InvalidResourceSpecification: unknown keys, or what no node can ever meet.
            SerializationError: the function or an argument cannot travel.
        """
        if self._exception is not None:
            raise BadStateException(self, self._exception)
        if self._submissions is None:
            raise ExecutorError(self, "it has not been started, or was shut down")
        try:
            task = self._submissions.submit(func, resource_specification, args, kwargs)
        except errors.InvalidResourceSpecification as error:
            raise InvalidResourceSpecification(error.invalid_keys, error.message) from error
        except (errors.ManagerLost, errors.NoManagerError) as error:
            raise self._fail(error) from error
        future: Future[Any] = Future()
        future.parsl_executor_task_id = task.tid  # type: ignore[attr-defined]
        is_alone = not self._open
        self._open.add(task)
        task.add_done_callback(partial(self._settle, future))
        self._pace.submitted(is_alone)
        return future

    def shutdown(self) -> None:
        """Cancel what is left, and end the world if it is this executor's."""
        submissions, self._submissions = self._submissions, None
        if submissions is not None:
            self._pace.end()
            for task in list(self._open):
                task.cancel()
        client, self._client = self._client, None
        if client is not None:
            client.close(cancel=True)
        super().shutdown()

    def monitor_resources(self) -> bool:
        """Whether tasks may be watched from within: they run in processes of their own, which know nothing of MPI."""
        return True

    # ---- as Parsl's executors of blocks have it ------------------------------------------------------------------

    @property
    def bad_state_is_set(self) -> bool:
        """Whether the world has ended before its time. Every task fails from then on."""
        return self._exception is not None

    @property
    def executor_exception(self) -> Exception | None:
        """Why."""
        return self._exception

    def outstanding(self) -> int:
        """Tasks that have not ended."""
        return len(self._open)

    # ---- functions -----------------------------------------------------------------------------------------------

    def _start_world(self) -> World:
        settings = dict(self.settings or {})
        preload = settings.pop("preload", ())
        modules = preload.split(",") if isinstance(preload, str) else preload
        return start(
            self.workers,
            launcher=self.launcher,
            nodes=self.nodes,
            ranks_per_node=self.ranks_per_node,
            cores_per_node=self.cores_per_node,
            log=os.path.join(self.run_dir, self.label, "exex.log"),
            title=self.label,
            preload=[*_NEEDED, *modules],
            **settings,
        )

    def _settle(self, future: Future[Any], task: AppFuture) -> None:
        """Pass on how a task has ended."""
        self._open.discard(task)
        try:
            value = task.result()
        except CancelledError:
            future.set_exception(ExecutorError(self, "it was shut down before the task had ended"))
        except errors.ManagerLost as error:
            future.set_exception(self._fail(error))
        except errors.WorkerLost as error:
            future.set_exception(WorkerLost(error) if isinstance(error, errors.TaskProcessDied) else ManagerLost(error))
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(value)

    def _fail(self, error: Exception) -> BadStateException:
        """The world is lost. What is to be said of each task."""
        with self._lock:
            if self._exception is None:
                self._exception = error
                logger.error("Executor %s: %s", self.label, error)
        return BadStateException(self, self._exception)


class _Pace:
    """Lets calls that follow one another closely travel together: Parsl makes one every few hundred microseconds.

    Args:
        wake: sends what there is.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._sent_s = 0.0
        self._waiting = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="exex-pace", daemon=True)
        self._thread.start()

    def submitted(self, alone: bool) -> None:
        """There is a call to send.

        Args:
            alone: nothing else is under way, so that somebody may wait for just this one.
        """
        if alone or time.monotonic() - self._sent_s > _GATHERED_S:
            self._sent_s = time.monotonic()
            self._wake()
        else:
            self._waiting.set()

    def end(self) -> None:
        """Send what there is, and no more."""
        self._ended = True
        self._waiting.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended:
            self._waiting.wait()
            time.sleep(_GATHERED_S)
            self._waiting.clear()
            self._sent_s = time.monotonic()
            self._wake()


class _Kept(NamedTuple):
    """What calls of a function with the same resources share.

    Attributes:
        options: as `payload.dump_call` takes them: what an MPI program that it starts is to be.
    """

    call: Call
    options: dict[str, Any] | None


class _Submissions:
    """Makes tasks of calls. One thread at a time: Parsl sees to that.

    A function that comes a second time travels to each worker once. For calls with a walltime, with files that are staged, and if
    it monitors, Parsl makes new functions: these travel with their arguments.
    """

    def __init__(self) -> None:
        self._executors: dict[Any, tuple[Executor, dict[str, Any] | None]] = {}  # by resources
        self._kept: dict[Any, _Kept | None] = {}  # by function and resources; None: it came once
        self._once: dict[Any, _Kept] = {}  # by name and resources
        self.executor = self._executor((), {})[0]

    def submit(
        self, func: Callable[..., Any], specification: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AppFuture:
        """A task.

        Raises:
            exex.InvalidResourceSpecification: unknown keys, impossible values, and what no node can ever meet.
            parsl.SerializationError: of what cannot be pickled.
            exex.ManagerLost, exex.NoManagerError: there is no world any more.
        """
        pickling = _pickling()
        kept, comes_along = self._find(func, specification, pickling)
        proxy = kept.call.proxy
        proxy.check_open("ExtremeScaleExecutor.submit")
        try:
            if comes_along:
                args = (Function(func, pickling), *args)
            payload, needs = dump_call(args, kwargs, kept.options, pickling)
        except Exception as error:
            raise SerializationError(name_of(func)) from error
        task = proxy.new_future(kept.call, payload, needs)
        proxy.send(task, later=True)
        return task  # type: ignore[no-any-return]

    def _find(self, func: Callable[..., Any], specification: dict[str, Any], pickling: Pickling) -> tuple[_Kept, bool]:
        """What calls of `func` share, and whether it travels with each."""
        resources = _key(specification) if specification else ()
        try:
            kept = self._kept.get((func, resources))
            has_come = (func, resources) in self._kept
        except TypeError:  # unhashable
            return self._with_arguments(name_of(func), resources, specification), True
        if kept is not None:
            return kept, False
        executor, options = self._executor(resources, specification)
        if has_come:
            call = executor._new_call(_packed(func, pickling), name_of(func), Kind.PYTHON)
            kept = self._kept[func, resources] = _Kept(call, options)
            return kept, False
        self._kept[func, resources] = None
        _shorten(self._kept)
        return self._with_arguments(name_of(func), resources, specification), True

    def _with_arguments(self, name: str, resources: Any, specification: dict[str, Any]) -> _Kept:
        """For functions of this name that travel with their arguments."""
        kept = self._once.get((name, resources))
        if kept is None:
            executor, options = self._executor(resources, specification)
            kept = self._once[name, resources] = _Kept(executor._new_call(payloads.call_argument, name, Kind.PYTHON), options)
            _shorten(self._once)
        return kept

    def _executor(self, resources: Any, specification: dict[str, Any]) -> tuple[Executor, dict[str, Any] | None]:
        """Whose tasks have these resources, and their options."""
        found = self._executors.get(resources)
        if found is None:
            asked = Specification(specification)
            ranks = asked.ranks()
            found = Executor(retries=0, **asked.values()), None if ranks is None else {"mpi": ranks}
            self._executors[resources] = found
            _shorten(self._executors)
        return found


def _key(specification: dict[str, Any]) -> Any:
    """The same for equal specifications, also of those that will be refused."""
    try:
        key = tuple(sorted(specification.items()))
        hash(key)
    except (TypeError, AttributeError):
        return repr(specification)
    return key


def _packed(func: Callable[..., Any], pickling: Pickling) -> Function:
    try:
        return Function(func, pickling)
    except Exception as error:
        raise SerializationError(name_of(func)) from error


def _shorten(known: dict[Any, Any]) -> None:
    if len(known) > _REMEMBERED:
        del known[next(iter(known))]


_PLAIN = Pickling(serialize, deserialize)
_ALWAYS = Pickling(serialize, deserialize, always=True)


def _pickling() -> Pickling:
    """How to pickle: a serializer that a user has registered sees everything."""
    methods = facade.methods_for_data
    return _PLAIN if len(methods) == 1 and DillSerializer.identifier in methods else _ALWAYS
