"""What tasks of this rank say as clients, on its way to the manager. Pure."""

from __future__ import annotations

from exex.protocol.messages import FromTasks, TaskId
from exex.protocol.payload import Payload
from exex.worker.state import WorkerState


class Relay:
    """The columns of the next FromTasks.

    Attributes:
        gone: task processes that have ended, and had said something.
    """

    def __init__(self, state: WorkerState) -> None:
        self._state = state
        self._clear()

    def _clear(self) -> None:
        self._processes: list[int] = []
        self._tasks: list[TaskId] = []
        self._messages: list[Payload] = []
        self.gone: list[int] = []

    def said(self, process: int, task: TaskId, message: Payload) -> None:
        """A task has said something."""
        self._processes.append(process)
        self._tasks.append(task)
        self._messages.append(message)

    def take(self) -> FromTasks | None:
        """The next FromTasks, if there is anything to tell."""
        left, back = self._state.left, self._state.back
        if not (self._processes or self.gone or left or back):
            return None
        message = FromTasks(
            processes=self._processes,
            tasks=self._tasks,
            messages=self._messages,
            gone=self.gone,
            waiting=list(left),
            back=list(back),
        )
        left.clear()
        back.clear()
        self._clear()
        return message
