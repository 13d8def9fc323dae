"""What a worker holds, and what it has to report. Pure: what comes from the manager is handled in `assigned`, what becomes of
calls in slots in `running`, and `filling` says which slot gets which.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from exex.protocol.messages import AppSpec, Done, Join, Rank, Returned, TaskId
from exex.protocol.payload import Payload
from exex.worker.slot import Call, Slot, SlotPort


@dataclass
class WorkerState:
    """All that a worker rank knows.

    Attributes:
        inline: calls that need no process of their own are left in the queue, for the loop to run.
        queue: calls that no slot holds yet, in order; `big`: those that hold more than a slot, or nothing may stand behind.
        slot_cores: CPU numbers to which each slot is bound; empty if they are not.
        paces: per app, a moving average of the running time, in seconds.
        tasks_per_process: after so many a task process is replaced; 0: never.
        joins: calls on communicators that this rank is to lead, and that have not come yet.
        parts: calls on communicators in which it is to take part now; with the call where it leads.
        aside: calls that need stored payloads which are not here yet; with the names of these.
        most_parents: so many tasks may wait, each with a process; 0: any number.
        new_place: makes a further place for a slot's number, where a task of it waits; None: tasks that wait keep their slots.
        waiting: places without a slot, whose tasks wait.
        asked: those of them that would go on, and that the manager has not allowed slots yet; returning: the others, in order.
        to_begin_again: calls that have waited, and whose processes were lost: to be queued when the manager allows them slots.
        spare: places without a task, by the number of the slot for which they were made.
        waiters: apps of which tasks have waited: their tasks are not queued behind others, nor others behind them.
        left: tasks of which the manager is to hear that they wait; back: that they count again.
    """

    rank: Rank
    node: str
    ports: list[SlotPort]
    grace_s: float = 2.0
    inline: bool = False
    tasks_per_process: int = 0
    slots: list[Slot] = field(init=False)
    queue: deque[Call] = field(default_factory=deque)
    big: deque[Call] = field(default_factory=deque)
    slot_cores: list[list[int]] = field(default_factory=list)
    apps: dict[int, AppSpec] = field(default_factory=dict)
    functions: dict[bytes, Payload] = field(default_factory=dict)
    paces: dict[int, float] = field(default_factory=dict)
    tasks_run: int = 0
    joins: dict[TaskId, Join] = field(default_factory=dict)
    parts: deque[tuple[Join, Call | None]] = field(default_factory=deque)
    aside: dict[TaskId, tuple[Call, set[str]]] = field(default_factory=dict)
    most_parents: int = 0
    new_place: Callable[[int], Slot] | None = None
    waiting: dict[Slot, None] = field(default_factory=dict)
    asked: dict[TaskId, Slot] = field(default_factory=dict)
    returning: deque[Slot] = field(default_factory=deque)
    to_begin_again: dict[TaskId, Call] = field(default_factory=dict)
    spare: dict[int, list[Slot]] = field(default_factory=dict)
    waiters: set[int] = field(default_factory=set)
    left: dict[TaskId, None] = field(default_factory=dict)
    back: dict[TaskId, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.slots = [Slot(number, port) for number, port in enumerate(self.ports)]
        self._clear_done()
        self._returned: list[TaskId] | None = None

    def places(self) -> Iterator[Slot]:
        """All that may hold calls: those with a slot, and those whose tasks wait."""
        return chain(self.slots, tuple(self.waiting)) if self.waiting else iter(self.slots)

    def put_first(self, call: Call) -> None:
        """Queue a call that is to begin again, or has not begun where it was."""
        (self.queue if call.grant is None else self.big).appendleft(call)

    # ---- who waits ----

    def note_left(self, task: TaskId) -> None:
        """The manager is to hear that a task waits."""
        if self.back.pop(task, True):
            self.left[task] = None

    def note_back(self, task: TaskId) -> None:
        """The manager is to hear that a task counts again, unless it has not heard that it waits."""
        if self.left.pop(task, True):
            self.back[task] = None

    def forget_waiting(self, slot: Slot, call: Call) -> None:
        """A task does not wait any more, since its process is gone."""
        del self.waiting[slot]
        slot.waits_s = -1.0
        if slot in self.returning:
            self.returning.remove(slot)
        elif self.asked.pop(call.task, None) is None:
            self.note_back(call.task)

    # ---- what is to be reported ----

    def _clear_done(self) -> None:
        self.tasks: list[TaskId] = []
        self.outcomes = bytearray()
        self.payloads: list[Payload] = []
        self.seconds: list[float] = []
        self.started: list[TaskId] = []
        self.ran_in: list[int] = []
        self.peaks: dict[int, int] = {}

    def report(  # noqa: PLR0917
        self, call: Call, outcome: int, payload: Payload, seconds: float = 0.0, slot: int = -1, peak_bytes: int = 0
    ) -> None:
        """Put the end of an attempt into the next Done; `slot`: where it ran, -1: nowhere."""
        self.tasks_run += 1
        if peak_bytes:
            self.peaks[len(self.tasks)] = peak_bytes
        self.ran_in.append(slot)
        self.tasks.append(call.task)
        self.outcomes.append(outcome)
        self.payloads.append(payload)
        self.seconds.append(seconds)

    def take_done(self) -> Done | None:
        """The next Done, if there is anything to report."""
        if not self.tasks and not self.started:
            return None
        done = Done(
            tasks=self.tasks,
            outcomes=bytes(self.outcomes),
            payloads=self.payloads,
            seconds=self.seconds,
            started=self.started,
            slots=self.ran_in if len(self.slots) > 1 else [],
            peaks=self.peaks,
        )
        self._clear_done()
        return done

    def give_back(self, tasks: list[TaskId]) -> None:
        """Put calls that are not here any more into the next Returned."""
        self._returned = (self._returned or []) + tasks

    def take_returned(self) -> Returned | None:
        """The next Returned, if the manager has asked for anything."""
        returned, self._returned = self._returned, None
        return None if returned is None else Returned(tasks=returned)

    def place(self) -> str:
        """Where this worker is, for messages to people."""
        return f"rank {self.rank} at {self.node}"
