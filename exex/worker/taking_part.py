"""The parts of a worker rank in calls on communicators: they run in the rank itself, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from exex.errors import ProtocolError
from exex.protocol.messages import Done, Part, TaskId
from exex.worker.context import Place
from exex.worker.needs import Needs, mapped
from exex.worker.slot import Call
from exex.worker.state import WorkerState
from exex.worker.together import Head, Together, make_head


class TakingPart:
    """Of one rank.

    Args:
        needs: where stored payloads are; None: there are none.
        make: makes what runs the functions; None where that cannot be. It is called when it is needed.
    """

    def __init__(self, state: WorkerState, place: Place, needs: Needs | None, make: Callable[[], Together] | None) -> None:
        self._state = state
        self._place = place
        self._needs = needs
        self._make = make
        self._together: Together | None = None

    def run_next(self) -> Part | Done | None:
        """Run the next part, and do nothing else until it ends; what the manager is to be told of it.

        Raises:
            ProtocolError: this rank has no MPI.
        """
        if self._together is None:
            if self._make is None:
                raise ProtocolError(f"{self._place} is to take part in a call on a communicator, and has no MPI")
            self._together = self._make()
        join, call = self._state.parts.popleft()
        head = None if call is None else self._head(call)
        outcome, payload, seconds = self._together.run(join, head)
        if call is None:
            self._state.tasks_run += 1
            return Part(task=join.task, outcome=outcome, payload=payload, seconds=seconds)
        self._state.report(call, outcome, payload, seconds)
        return self._state.take_done()

    def revoke(self, tasks: Sequence[TaskId]) -> None:
        """Nobody wants these any more."""
        if self._together is not None:
            self._together.revoke(tasks)

    def _head(self, call: Call) -> Head | None:
        """What the lead of a call on a communicator hands round; None, so that nobody runs it, if something is missing."""
        try:
            payload, values = mapped(self._needs, call)
        except FileNotFoundError:
            return None
        return make_head(call.spec, self._state.functions[call.spec.function], payload, values, call.attempt)
