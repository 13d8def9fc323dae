"""Which task runs in this process, and its way to the manager. Set by whoever runs tasks, read by apps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol


class OfTasks(NamedTuple):
    """Settings of the job that concern the tasks that tasks make.

    Attributes:
        retries: of apps that do not say how many they want.
        staging, fetch_to: of files, as in `Config`.
        modules: what a task process needs to be a client.
    """

    retries: int = 0
    staging: tuple[str, ...] = ()
    fetch_to: str = "run"
    modules: tuple[str, ...] = ()


NOTHING_SET = OfTasks()


class Way(Protocol):
    """How a task is a client of the manager.

    Attributes:
        settings: of what they make.
    """

    settings: OfTasks

    def open(self) -> Any:
        """The `Link` to the manager. To be called once in a process."""

    def leave(self) -> int:
        """A thread of the task begins to wait for other tasks. The task's slot may be another's from now on.

        Returns:
            To be given to `take`: which task that was.
        """

    def take(self, left: int) -> None:
        """A thread waits no more. If it was the last, this returns when the task has a slot again."""


current_task: object | None = None
"""The task that runs in this process; None outside a task. Its `str` says which one it is: "task 7 (f)"."""

number = 0
"""Of that task, as the manager counts."""

way: Way | None = None
"""Of tasks in this process; None if they cannot be clients."""

at_end: Callable[[], None] | None = None
"""To be called at the end of each task before its result is sent, once a task of this process was a client."""
