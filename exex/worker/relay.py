"""What tasks of this rank say as clients, and that they wait, on its way to the manager; and what that tells them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

from exex.protocol.messages import FromTasks, TaskId, ToTasks
from exex.protocol.payload import Payload
from exex.worker import waiting
from exex.worker.state import WorkerState

if TYPE_CHECKING:
    from exex.worker.port import ProcessPort


class Relay:
    """Between the task processes of a rank and the manager.

    Args:
        unwatch: nothing comes from this descriptor any more.
        sending: ports to whose process there may be something unsent.
        on_new: a task process says something for the first time.

    Attributes:
        clients: ports with a process, by its number as a client.
        gone: task processes that have ended, and had said something.
    """

    def __init__(
        self, state: WorkerState, unwatch: Callable[[int], None], sending: set[ProcessPort], on_new: Callable[[], None]
    ) -> None:
        self.clients: dict[int, ProcessPort] = {}
        self._state = state
        self._unwatch = unwatch
        self._sending = sending
        self._on_new = on_new
        self._numbers = itertools.count()
        self._clear()

    def _clear(self) -> None:
        self._processes: list[int] = []
        self._tasks: list[TaskId] = []
        self._messages: list[Payload] = []
        self.gone: list[int] = []

    # ---- processes ----

    def new_client(self, port: ProcessPort) -> int:
        """A number for a new task process."""
        number = next(self._numbers)
        self.clients[number] = port
        return number

    def forget(self, port: ProcessPort) -> None:
        """The process of a port is gone."""
        del self.clients[port.client]

    def died(self, port: ProcessPort) -> None:
        """The process of a port has died. The manager is to hear of it, if that knows it."""
        if port.is_client:
            self.gone.append(port.client)

    # ---- from tasks ----

    def said(self, process: int, task: TaskId, message: Payload) -> None:
        """A task has said something as a client."""
        self._processes.append(process)
        self._tasks.append(task)
        self._messages.append(message)

    def from_client(self, port: ProcessPort) -> bool:
        """What its task says as a client. Always before its results: it says nothing of a task after that has ended."""
        process, traffic = port.process, False
        while process is not None and (said := process.said()) is not None:
            if not port.is_client:
                self._on_new()
            port.is_client = traffic = True
            self.said(port.client, *said)
        if process is not None and process.client.gone:
            self._unwatch(process.client.fileno())
        return traffic

    def from_seat(self, port: ProcessPort, before: Callable[[ProcessPort, float], object], now_s: float) -> bool:
        """Whether its task waits. What it has reported comes first: `before` takes it."""
        if port.process is None:
            return False
        moves = port.process.moves()
        if moves:
            before(port, now_s)
        for task in moves or ():
            if task is None:
                waiting.on_back(self._state, port.slot)
            else:
                waiting.on_left(self._state, port.slot, task, now_s)
        if moves is None:
            self._unwatch(port.process.seat.fileno())
        return bool(moves)

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

    # ---- to tasks ----

    def on_message(self, message: ToTasks) -> None:
        """What the manager tells them."""
        for task in message.seats:
            waiting.on_seat(self._state, task)
        for number, said in zip(message.processes, message.messages):
            port = self.clients.get(number)
            if port is not None and port.process is not None:
                port.process.tell(said)
                self._sending.add(port)
