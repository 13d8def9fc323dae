"""A task's way to the manager: what it says as a client, and that it waits, goes through its rank. Runs in task processes."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from time import perf_counter

from exex.errors import NoManagerError
from exex.protocol import context
from exex.protocol.context import OfTasks
from exex.protocol.payload import Buffer
from exex.transport.stream import StreamLink
from exex.worker.condition import Condition
from exex.worker.context import stop
from exex.worker.granted import bind
from exex.worker.task_streams import GO_ON, TASK_BYTES, Waits, decode_go_on, encode


class TaskLink(StreamLink):
    """The stream to the rank, which passes messages on; each is said to come from the task that runs when it is sent."""

    def send(self, peer: int, frames: list[Buffer]) -> None:
        """See `Link.send`."""
        first, *more = frames
        super().send(peer, [context.number.to_bytes(TASK_BYTES, "little") + bytes(first), *more])


class Inside:
    """Implements `context.Way`, for the one task that runs.

    Args:
        client: descriptor of the stream of what tasks say as clients.
        seat: of the socket by which they say that they wait.
        home: the condition of this process.

    Attributes:
        waited_s: how long the task has waited without a slot.
        before_waiting: called in the task's own thread before it waits: sends the results of earlier tasks.
    """

    def __init__(self, client: int, seat: int, home: Condition, settings: OfTasks) -> None:
        self.settings = settings
        self.waited_s = 0.0
        self.before_waiting: Callable[[], None] = lambda: None
        self._client = client
        self._seat = socket.socket(fileno=seat)
        self._home = home
        self._own = threading.get_ident()
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._waiting = 0  # threads
        self._task = 0  # counts those that have ended
        self._left_s = 0.0

    def open(self) -> StreamLink:
        """See `context.Way`.

        Raises:
            NoManagerError: in a process that the task has forked.
        """
        if os.getpid() != self._pid:
            raise NoManagerError("this process was forked from a task, and only the task itself can start tasks")
        return TaskLink(socket.socket(fileno=self._client))

    def leave(self) -> int:
        """See `context.Way`."""
        with self._lock:
            self._waiting += 1
            if self._waiting > 1 or os.getpid() != self._pid:
                return self._task
            if threading.get_ident() == self._own:
                self.before_waiting()
            self._left_s = perf_counter()
            self._seat.send(encode(Waits(context.number)))
            return self._task

    def take(self, left: int) -> None:
        """See `context.Way`. A task that was told to stop gets no slot: it has only to end."""
        with self._lock:
            if left != self._task:
                return
            self._waiting -= 1
            if not self._waiting:
                self._go_on()

    def end(self) -> None:
        """The task has ended: it waits no more, whatever its threads do."""
        with self._lock:
            self._task += 1
            if self._waiting:
                self._waiting = 0
                self._go_on()

    def _go_on(self) -> None:
        if stop.wanted or os.getpid() != self._pid:
            return
        self._seat.send(GO_ON)
        packet = self._seat.recv(1 << 16)
        if not packet:
            raise ConnectionResetError("the rank is gone")
        answer = decode_go_on(packet)
        self._home.move(answer.home)
        bind(answer.cores)
        self.waited_s += perf_counter() - self._left_s
