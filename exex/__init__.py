"""exex runs millions of Python and bash tasks inside one MPI job.

The names below are loaded when they are first used: importing exex costs little, and never imports MPI.
"""

from __future__ import annotations

import importlib

from exex.version import __version__

TYPE_CHECKING = False  # as in typing, whose import would take longer than all else here
if TYPE_CHECKING:
    from typing import Any

    from exex.client.apps import bash_app, join_app, python_app
    from exex.client.broadcast import Broadcast, broadcast
    from exex.client.connect import Client, connect
    from exex.client.digests import id_for_memo
    from exex.client.executor import Executor, map
    from exex.client.futures import AppFuture, DataFuture
    from exex.client.mpi_apps import mpi_app
    from exex.client.options import AUTO_LOGNAME
    from exex.client.progress import Progress, progress
    from exex.client.session import checkpoint, manager_pid, wait_for_current_tasks
    from exex.client.start import start
    from exex.config import Config
    from exex.errors import (
        AppBadFormatting,
        AppException,
        AppTimeout,
        BadStdStreamFile,
        BashAppNoReturn,
        BashExitFailure,
        CacheKeyError,
        ConfigError,
        DataFlowException,
        DependencyError,
        DeserializationError,
        ExexError,
        InvalidResourceSpecification,
        JoinError,
        JournalError,
        ManagerLost,
        MemoryLimitExceeded,
        MissingOutputs,
        MpiTaskFailed,
        NoManagerError,
        PropagatedException,
        ProtocolError,
        SerializationError,
        StagingError,
        StartError,
        TaskProcessDied,
        TooManyParents,
        TransferError,
        WorkerLost,
    )
    from exex.files.file import File
    from exex.worker.staged import staged

_HOMES = {
    "exex.client.apps": ("bash_app", "join_app", "python_app"),
    "exex.client.broadcast": ("Broadcast", "broadcast"),
    "exex.client.connect": ("Client", "connect"),
    "exex.client.digests": ("id_for_memo",),
    "exex.client.executor": ("Executor", "map"),
    "exex.client.futures": ("AppFuture", "DataFuture"),
    "exex.client.mpi_apps": ("mpi_app",),
    "exex.client.options": ("AUTO_LOGNAME",),
    "exex.client.progress": ("Progress", "progress"),
    "exex.client.session": ("checkpoint", "manager_pid", "wait_for_current_tasks"),
    "exex.client.start": ("start",),
    "exex.config": ("Config",),
    "exex.errors": (
        "AppBadFormatting",
        "AppException",
        "AppTimeout",
        "BadStdStreamFile",
        "BashAppNoReturn",
        "BashExitFailure",
        "CacheKeyError",
        "ConfigError",
        "DataFlowException",
        "DependencyError",
        "DeserializationError",
        "ExexError",
        "InvalidResourceSpecification",
        "JoinError",
        "JournalError",
        "ManagerLost",
        "MemoryLimitExceeded",
        "MissingOutputs",
        "MpiTaskFailed",
        "NoManagerError",
        "PropagatedException",
        "ProtocolError",
        "SerializationError",
        "StagingError",
        "StartError",
        "TaskProcessDied",
        "TooManyParents",
        "TransferError",
        "WorkerLost",
    ),
    "exex.files.file": ("File",),
    "exex.worker.staged": ("staged",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AUTO_LOGNAME",
    "AppBadFormatting",
    "AppException",
    "AppFuture",
    "AppTimeout",
    "BadStdStreamFile",
    "BashAppNoReturn",
    "BashExitFailure",
    "Broadcast",
    "CacheKeyError",
    "Client",
    "Config",
    "ConfigError",
    "DataFlowException",
    "DataFuture",
    "DependencyError",
    "DeserializationError",
    "Executor",
    "ExexError",
    "File",
    "InvalidResourceSpecification",
    "JoinError",
    "JournalError",
    "ManagerLost",
    "MemoryLimitExceeded",
    "MissingOutputs",
    "MpiTaskFailed",
    "NoManagerError",
    "Progress",
    "PropagatedException",
    "ProtocolError",
    "SerializationError",
    "StagingError",
    "StartError",
    "TaskProcessDied",
    "TooManyParents",
    "TransferError",
    "WorkerLost",
    "__version__",
    "bash_app",
    "broadcast",
    "checkpoint",
    "connect",
    "id_for_memo",
    "join_app",
    "manager_pid",
    "map",
    "mpi_app",
    "progress",
    "python_app",
    "staged",
    "start",
    "wait_for_current_tasks",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'exex' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
