"""Every error that exex raises. Names and attributes that Parsl users know mean the same here.

```
ExexError
├── ConfigError                 an option, variable or file that cannot be used
├── JournalError                the journal cannot be used, or something could not be recorded in it
├── RecordError                 a run record cannot be made or read
├── OutputError                 what tasks printed is not kept, or not where it is looked for
├── StoreFull                   neither memory nor disk of a node has room for a value
├── CacheKeyError               an argument of a cached app of which no key can be made
├── TransferError               a file could not be fetched or sent
├── StartError                  the world did not come up
│   └── StagingError            a node could not be given what was to be staged
├── NoManagerError              an app was called outside a running exex job
├── ManagerLost                 the job ended while the client waited for it
├── ProtocolError               a peer said something that it may not say
├── SerializationError          something cannot be pickled
│   └── DeserializationError    something cannot be unpickled where it arrived
├── InvalidResourceSpecification
├── DataFlowException
│   └── PropagatedException
│       ├── DependencyError     a need failed, so the task never ran
│       └── JoinError           a future returned by a join app failed
├── WorkerLost                  the attempt's process or rank died
│   └── TaskProcessDied         ... by a signal, `os._exit` or `sys.exit`
└── AppException
    ├── BashExitFailure         non-zero exit code of a bash app
    ├── AppTimeout              longer than its `walltime`
    ├── MemoryLimitExceeded     more memory than its `memory`
    ├── TooManyParents          would have waited for its tasks, as `--max-parents` others of its worker do
    ├── BashAppNoReturn         a bash app's function returned no command line
    ├── AppBadFormatting        its command line could not be formatted
    ├── MpiTaskFailed           a function on a communicator failed on some of its ranks
    ├── MissingOutputs          declared outputs that do not exist afterwards
    └── BadStdStreamFile        `stdout=` or `stderr=` that cannot be opened
```

Every error survives pickling with all of its attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


def _rebuild(cls: type[ExexError], args: tuple[Any, ...], attributes: dict[str, Any]) -> ExexError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(attributes)
    return error


class ExexError(Exception):
    """Base of all errors of exex."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class ConfigError(ExexError):
    """An option, a variable or a file cannot be used; the message names it and what is accepted."""


class OutputError(ExexError):
    """What tasks printed is not kept, or not where it was looked for; the message says what to do."""


class RecordError(ExexError):
    """A run record cannot be made or read; the message names the file."""


class JournalError(ExexError):
    """The journal cannot be used, or something could not be recorded in it; the message names the file and the ways out."""


class StoreFull(ExexError):
    """Neither memory nor disk of a node has room for a value; the message names the node, its directories and the bytes."""


class CacheKeyError(ExexError, TypeError):
    """A call of a cached app has no key; the message names the argument, its type, and what to register."""


class TransferError(ExexError):
    """A file could not be fetched or sent, or is not what it should be; the message names task, file and node.

    Attributes:
        url: of the file.
        node: host name.
    """

    def __init__(self, message: str, url: str = "", node: str = "") -> None:
        super().__init__(message)
        self.url = url
        self.node = node


class StartError(ExexError):
    """The world did not come up: a rank is missing, failed, or runs something else."""


class StagingError(StartError):
    """An environment or a file could not be staged on every node. Every rank of the world knows."""


class NoManagerError(ExexError):
    """An app was called in a process that no exex manager listens to."""


class ManagerLost(ExexError):
    """The job ended, or its manager died, before this task was answered."""


class ProtocolError(ExexError):
    """A peer sent a message that its state does not allow."""


class SerializationError(ExexError):
    """Something cannot be pickled; the message says which part of it."""


class DeserializationError(SerializationError):
    """Something cannot be unpickled in the process that needs it."""


class InvalidResourceSpecification(ExexError):
    """A resource request has unknown keys or impossible values.

    Attributes:
        invalid_keys: the keys at fault.
    """

    def __init__(self, invalid_keys: set[str], message: str = "") -> None:
        super().__init__(f"invalid resource specification {sorted(invalid_keys)}. {message}".rstrip(". ") + ".")
        self.invalid_keys = invalid_keys
        self.message = message


class DataFlowException(ExexError):
    """Something is wrong with the graph, not with the app."""


_NAMED_TASKS = 12
"""Tasks that a PropagatedException names at most between the one that failed and the root cause."""


class PropagatedException(DataFlowException):
    """A failure that came from other tasks.

    Attributes:
        dependent_exceptions_tids: (exception, description of its task) for each failed predecessor that is known.
        task_id: the task that failed because of them.
    """

    kind = "Propagated"

    def __init__(self, dependent_exceptions_tids: Sequence[tuple[BaseException, str]], task_id: int) -> None:
        self.dependent_exceptions_tids = list(dependent_exceptions_tids)
        self.task_id = task_id
        error, name = self.dependent_exceptions_tids[0]
        self._path: tuple[str, ...] = (name,)  # from the nearest task to the root cause
        self.__cause__ = error
        if isinstance(error, PropagatedException):
            self._path = (name, *error._path)
            self.__cause__ = error.__cause__  # its root cause
        if len(self._path) > _NAMED_TASKS:
            self._path = (*self._path[: _NAMED_TASKS - 2], "...", self._path[-1])
        others = " (+ others)" if len(self.dependent_exceptions_tids) > 1 else ""
        super().__init__(
            f"{self.kind} failure for task {task_id}. The representative cause is {type(self.__cause__).__name__} "
            f"via {' <- '.join(self._path)}{others}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.dependent_exceptions_tids, self.task_id)


class DependencyError(PropagatedException):
    """A need of the task failed or was cancelled; the task never ran. `__cause__` is the root cause."""

    kind = "Dependency"


class JoinError(PropagatedException):
    """A future that a join app returned failed. `__cause__` is the root cause."""

    kind = "Join"


class WorkerLost(ExexError):
    """The process or the rank that ran the attempt is gone.

    Attributes:
        rank: of the worker, in the MPI world.
        node: host name.
    """

    def __init__(self, message: str, rank: int = -1, node: str = "") -> None:
        super().__init__(message)
        self.rank = rank
        self.node = node


class TaskProcessDied(WorkerLost):
    """The task's own process ended before the task did.

    Attributes:
        exitcode: as `subprocess` has it: the exit code, or minus the signal's number.
        stderr_tail: the last lines that the process wrote to stderr.
    """

    def __init__(self, message: str, rank: int, node: str, exitcode: int, stderr_tail: str) -> None:
        super().__init__(message, rank, node)
        self.exitcode = exitcode
        self.stderr_tail = stderr_tail


class AppException(ExexError):
    """An app failed in a way that exex, not the app's own code, has found."""


class BashExitFailure(AppException):
    """A bash app ended with a non-zero exit code.

    Attributes:
        app_name: of the app.
        exitcode: of bash; minus the signal's number if a signal killed it.
        stderr_tail: the last lines of its stderr.
    """

    def __init__(self, app_name: str, exitcode: int, where: str = "", stderr_tail: str = "") -> None:
        how = f"exit code {exitcode}" if exitcode >= 0 else f"signal {-exitcode}"
        text = f"bash_app {app_name} failed with unix {how}"
        if where:
            text += f" ({where})"
        if stderr_tail:
            text += f"; its stderr ends:\n{stderr_tail}"
        super().__init__(text)
        self.app_name = app_name
        self.exitcode = exitcode
        self.stderr_tail = stderr_tail


class AppTimeout(AppException):
    """The task ran longer than its `walltime` and was stopped, with everything it had started."""


class TooManyParents(AppException):
    """A task would have waited for tasks that it had made, and too many tasks of its worker wait; the message says what to do.

    Attributes:
        waiting: how many do.
    """

    def __init__(self, message: str, waiting: int = 0) -> None:
        super().__init__(message)
        self.waiting = waiting


class MemoryLimitExceeded(AppException):
    """The task used more memory than its `memory` allows and was stopped, with everything it had started.

    Attributes:
        used_bytes: of the task process and all that it had started, when it was measured.
        limit_bytes: what was allowed.
    """

    def __init__(self, message: str, used_bytes: int, limit_bytes: int) -> None:
        super().__init__(message)
        self.used_bytes = used_bytes
        self.limit_bytes = limit_bytes


class RankFailure(NamedTuple):
    """What happened on one rank of a communicator.

    Attributes:
        rank: in the communicator.
        node: host name.
    """

    rank: int
    node: str
    error: BaseException


class MpiTaskFailed(AppException):
    """A function on a communicator failed on some of its ranks. The first one's error is its `__cause__`.

    Attributes:
        failures: of each rank that failed; of those that were stopped because of that, nothing.
    """

    def __init__(self, message: str, failures: Sequence[RankFailure] = ()) -> None:
        super().__init__(message)
        self.failures = list(failures)


class BashAppNoReturn(AppException):
    """The function of a bash app returned no command line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class AppBadFormatting(AppException):
    """The command line of a bash app could not be formatted with its arguments."""


class MissingOutputs(AppException):
    """A bash app ended well, but outputs that it declared do not exist.

    Attributes:
        outputs: the missing files.
    """

    def __init__(self, reason: str, outputs: Sequence[Any]) -> None:
        super().__init__(f"{reason}: {', '.join(str(output) for output in outputs)}")
        self.reason = reason
        self.outputs = list(outputs)


class BadStdStreamFile(AppException):
    """A file for `stdout` or `stderr` cannot be opened."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
