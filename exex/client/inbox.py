"""What the manager's answers do to the futures. Runs in the client; no I/O."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures._base import CANCELLED_AND_NOTIFIED
from itertools import repeat
from typing import Any

from exex.client.futures import AppFuture
from exex.client.outbox import Outbox
from exex.client.outcomes import Failed, NeedFailed
from exex.client.settling import finish_all, mark_running, settle
from exex.errors import JournalError, ManagerLost
from exex.protocol import payload as payloads
from exex.protocol.messages import Answer, Checkpointed, Outcome, TaskId
from exex.protocol.payload import Payload

_QUOTED = 10
"""Failures whose error is kept for the last words, if nobody looks at them."""


class Lost(Failed):
    """A raw outcome: the job has ended before the task was answered."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        super().__init__(b"")
        self.reason = reason

    def error(self, future: Any) -> BaseException:
        """A ManagerLost for each future, since a raised error collects tracebacks."""
        return ManagerLost(f"{future._title()} was not answered: {self.reason}")


class CheckpointAnswer:
    """What somebody waits for who has asked for a checkpoint.

    Attributes:
        done: set when there is an answer.
        error: None if it succeeded.
    """

    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: Exception | None = None


class Inbox:
    """Gives futures their outcomes.

    Attributes:
        answered: number of the last Answer that was applied.
        checkpoints: that were asked for and are not answered, by number.
    """

    def __init__(self, outbox: Outbox, ask: Callable[[AppFuture, Payload], None]) -> None:
        self.answered = 0
        self.checkpoints: dict[int, CheckpointAnswer] = {}
        self._outbox = outbox
        self._ask = ask
        self._unseen: dict[TaskId, tuple[str, Payload]] = {}

    def apply(self, answer: Answer) -> None:
        """Settle the futures of the tasks that have ended, and mark those that have started."""
        self.answered = answer.sequence
        if not answer.outcomes.strip(b"\0"):  # all are Outcome.DONE
            futures = map(self._outbox.unfinished.pop, answer.tasks, repeat(None))
            self._outbox.unfinished_bytes -= finish_all(futures, answer.payloads, self._outbox.ended)
        else:
            self._apply_one_by_one(answer)
        for tid in answer.started:
            future = self._outbox.unfinished.get(tid)
            if future is not None:
                mark_running(future)

    def _apply_one_by_one(self, answer: Answer) -> None:
        futures: list[AppFuture] = []
        raws: list[Any] = []
        failed: list[AppFuture] = []  # holds those that nobody else holds until their dependents are done
        unfinished = self._outbox.unfinished
        for i, (tid, outcome, payload) in enumerate(zip(answer.tasks, answer.outcomes, answer.payloads)):
            future = unfinished.get(tid)
            if future is None:
                self._outbox.note_collected(tid)
                continue  # cancelled, or a promise
            if outcome == Outcome.ASK:
                self._ask(future, payload)
                continue
            del unfinished[tid]
            if outcome == Outcome.CANCELLED:
                self._outbox.unfinished_bytes -= future._raw if type(future._raw) is int else 0
                settle(future, CANCELLED_AND_NOTIFIED, None, self._outbox.ended)
                failed.append(future)
                self._outbox.note_failed(future)
                self._outbox.note_collected(tid)
                continue
            raw = payload
            if outcome != Outcome.DONE:
                raw = self._failure(payload, answer.causes.get(i, ()) if outcome == Outcome.NEED_FAILED else None)
                failed.append(future)
                self._outbox.note_failed(future)
                self.note_failure(future, payload)
            futures.append(future)
            raws.append(raw)
        self._outbox.unfinished_bytes -= finish_all(futures, raws, self._outbox.ended)

    def _failure(self, payload: Payload, needs: Any) -> Failed:
        if needs is None:
            return Failed(payload)
        causes = [cause for cause in map(self._outbox.failed.get, needs) if cause is not None]
        for tid in needs:
            self._unseen.pop(tid, None)  # whoever looks at the dependent sees it
        return NeedFailed(causes, payload, f"task {needs[0]}" if needs else "a need")

    # ---- checkpoints -------------------------------------------------------------------------------------

    def checkpointed(self, message: Checkpointed) -> None:
        """The journal is written, or cannot be."""
        answer = self.checkpoints.pop(message.number, None)
        if answer is not None:
            if message.error:
                answer.error = JournalError(f"exex.checkpoint() could not write the journal: {message.error}")
            answer.done.set()

    def lose_checkpoints(self, reason: str) -> None:
        """Nothing will be answered any more."""
        while self.checkpoints:
            _, answer = self.checkpoints.popitem()
            answer.error = ManagerLost(f"exex.checkpoint() was not answered: {reason}")
            answer.done.set()

    # ---- failures that nobody looks at -------------------------------------------------------------------

    def note_failure(self, future: Any, payload: Payload | str) -> None:
        """The future is about to fail; unless somebody looks at it, it belongs into the last words.

        Args:
            payload: the pickled error, or a text about it.
        """
        self._unseen[future._tid] = (future._call.name, payload if len(self._unseen) < _QUOTED else b"")

    def seen(self, future: Any) -> None:
        """Somebody has looked at the error."""
        self._unseen.pop(future._tid, None)

    def forget_failures(self) -> None:
        """Nobody wants to hear of them."""
        self._unseen.clear()

    def last_words(self) -> str:
        """A line about the failures at which nobody has looked; "" if there are none."""
        if not self._unseen:
            return ""
        tid = min(self._unseen)
        name, payload = self._unseen[tid]
        error = f": {payload}" if isinstance(payload, str) else ""
        if payload and not error:
            try:
                found = payloads.load(payload)
                error = f": {type(found).__name__}: {found}"
            except Exception as failure:
                error = f": an error that cannot be unpickled here ({type(failure).__name__}: {failure})"
        task = f"task {tid} ({name}){error}"
        if len(self._unseen) == 1:
            return f"1 task failed and nobody asked for its result: {task}"
        return f"{len(self._unseen)} tasks failed and nobody asked for their results; first: {task}"
