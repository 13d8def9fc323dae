"""A Python function on a communicator of several worker ranks: its share in one of them.

It runs in the rank itself, in its main thread, since task processes have no MPI. So what it does to its process is done to the
rank: a crash costs the rank, and the others of its communicator, which wait for it, too.

All ranks of the task form the communicator; the first, the lead, has the call and hands it round. What each of them comes to is
its own to report: no message between them is needed for that, and none waits for another that has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from exex.errors import AppException
from exex.protocol import payload as payloads
from exex.protocol.messages import AppSpec, Outcome, TaskId
from exex.protocol.payload import Large, Payload
from exex.transport.interrupt import Interrupts
from exex.worker.condition import Condition
from exex.worker.context import Place, TaskStopped
from exex.worker.execute import execute, open_function

Form = Callable[[Sequence[int], int], Any]
"""Make a communicator of these ranks of the world, in this order, with a tag that is theirs alone. Collective over them."""


class Head(NamedTuple):
    """What the lead hands round. Payloads are bytes, or lists of frames."""

    spec: AppSpec
    function: bytes | list[bytes]
    payload: bytes | list[bytes]
    values: list[bytes | list[bytes]] | None
    attempt: int


class Share(NamedTuple):
    """What one rank has come to."""

    outcome: int
    payload: Payload
    seconds: float


class Together:
    """Of one worker rank.

    Args:
        form: see `Form`.
        interrupts: what ends a function from outside.
    """

    def __init__(self, form: Form, place: Place, interrupts: Interrupts) -> None:
        self._form = form
        self._place = place
        self._interrupts = interrupts
        self._home = Condition()
        self._functions: dict[bytes, Callable[..., Any]] = {}

    def run(self, task: TaskId, ranks: Sequence[int], head: Head | None) -> Share:
        """Take part in a task. Returns when this rank's part is over.

        Args:
            ranks: of all that take part, the lead first.
            head: at the lead; None at the others.
        """
        seconds = 0.0
        try:
            with self._interrupts.heeded(task):
                comm = self._form(ranks, task % _TAGS)
                try:
                    share = self._run_on(comm, task, comm.bcast(head))
                finally:
                    comm.Free()
        except TaskStopped:
            stopped = AppException(f"its share on {self._place} was stopped")
            share = Share(Outcome.FAILED, payloads.dump_error(stopped, ""), seconds)
        self._home.restore()
        return share

    def _run_on(self, comm: Any, task: TaskId, head: Head) -> Share:
        function = self._functions.get(head.spec.function)
        if function is None:
            function = self._functions[head.spec.function] = open_function(_payload(head.function))
        is_lead = comm.rank == 0
        told = function if is_lead or head.spec.every_rank else _silently(function)

        def adapt(call: tuple[Any, ...]) -> tuple[Any, ...]:
            """The communicator first; files for the lead's output only."""
            return ((comm, *call[0]), call[1], *(call[2:] if is_lead else ()))

        values = None if head.values is None else [_payload(value) for value in head.values]
        return Share(*execute(head.spec, told, _payload(head.payload), values, task, head.attempt, self._place, adapt))


_TAGS = 32767
"""MPI promises tags up to here. Two tasks with one tag have no rank in common, or do not run at one time."""


def _silently(function: Callable[..., Any]) -> Callable[..., None]:
    def without_value(*args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)

    return without_value


def handed(payload: Payload) -> bytes | list[bytes]:
    """A payload as `Head` has it."""
    return [bytes(frame) for frame in payload.frames] if type(payload) is Large else bytes(payload)


def _payload(handed: bytes | list[bytes]) -> Payload:
    return Large([handed[0], *(bytearray(frame) for frame in handed[1:])]) if isinstance(handed, list) else handed
