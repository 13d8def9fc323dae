"""Python calls that run in the worker rank itself, with `--isolation none`. Nobody can stop them."""

from __future__ import annotations

import time
from typing import Any

from exex.protocol import payload as payloads
from exex.protocol.messages import Outcome
from exex.protocol.payload import Payload
from exex.worker import execute, filling
from exex.worker.context import Place
from exex.worker.needs import Needs, mapped
from exex.worker.slot import Call
from exex.worker.state import WorkerState
from exex.worker.stored import StoredValues


class Inline:
    """Runs what a worker has queued.

    Args:
        needs: where stored payloads are; None: there are none.
        values: puts large values where they belong.
    """

    def __init__(self, state: WorkerState, place: Place, needs: Needs | None, values: StoredValues) -> None:
        self._state = state
        self._place = place
        self._needs = needs
        self._values = values
        self._functions: dict[bytes, Any] = {}

    def has_more(self) -> bool:
        """Whether the next queued call may run here."""
        queue = self._state.queue
        return bool(queue) and filling.may_run_inline(queue[0].spec)

    def run(self, until_s: float) -> bool:
        """Run queued Python calls until the time is up; whether there were any. Bash, and what has a limit, stays queued."""
        state, queue, ran = self._state, self._state.queue, False
        while queue and filling.may_run_inline(queue[0].spec):
            call = queue.popleft()
            ran = True
            digest = call.spec.function
            function = self._functions.get(digest)
            if function is None:
                function = self._functions[digest] = execute.open_function(state.functions[digest])
            try:
                payload, values = mapped(self._needs, call, payloads.writable)
            except FileNotFoundError:
                state.report(call, Outcome.STARVED, b"")
                continue
            outcome, result, seconds = execute.execute(
                call.spec, function, payload, values, call.task, call.attempt, self._place
            )
            if type(result) is payloads.Large:
                result = self._keep(call, outcome, result)
            state.report(call, outcome, result, seconds)
            if type(result) is payloads.Large:
                break  # over memory that the next call may write to: send it first
            if time.monotonic() >= until_s:
                break
        return ran

    def _keep(self, call: Call, outcome: int, value: payloads.Large) -> Payload:
        """The value of a call that has run here, in the store if it belongs there."""
        kept = self._values.kept(call.spec, outcome, value, call.task, call.attempt)
        if type(kept) is payloads.Stored and self._needs is not None:
            self._needs.adopt([kept])
        return kept
