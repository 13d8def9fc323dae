"""What a worker holds, and what it has to report. Pure: what comes from the manager is handled in `assigned`, what becomes of
calls in slots in `running`, and `filling` says which slot gets which.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

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

    def __post_init__(self) -> None:
        self.slots = [Slot(number, port) for number, port in enumerate(self.ports)]
        self._clear_done()
        self._returned: list[TaskId] | None = None

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
