"""Played tasks that make tasks: what a task process says as a client, and how its task waits.

Whether a call makes tasks, how many, and whether it waits for all of them or ends before, is chosen by the seed and the call. A task
that does not wait must take its tasks with it.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from exex.protocol import codec
from exex.protocol.messages import (
    CLIENT_SHIFT,
    Answer,
    Applied,
    AppSpec,
    Attach,
    Cancel,
    Fulfil,
    Outcome,
    Promise,
    Release,
    Submit,
    Verdict,
    Welcome,
)
from exex.protocol.payload import Large, Payload, Stored
from exex.worker import waiting
from exex.worker.slot import Call
from tests.sim.played_client import CODE, FUNCTION, make_payload, value_of

if TYPE_CHECKING:
    from tests.sim.played_worker import PlayedProcess, SimWorker
    from tests.sim.simulation import Simulation

DEEPEST = 5
APPS = [
    AppSpec(app=0, name="child", function=FUNCTION),
    AppSpec(app=1, name="retried child", function=FUNCTION, retries=2, priority=1),
    AppSpec(app=2, name="asked child", function=FUNCTION, asks=True, priority=-1),
    AppSpec(app=3, name="limited child", function=FUNCTION, walltime_s=3.0, retries=1),
]


def is_parent(sim: Simulation, call: Call) -> bool:
    """Whether an attempt makes tasks."""
    task = sim.manager.tasks.get(call.task)
    if not sim.nest_rate or task is None or task.depth > DEEPEST or call.spec.ranks:
        return False
    return random.Random(f"{sim.seed} nest {call.task} {call.attempt}").random() < sim.nest_rate


class PlayedInner:
    """A task process as a client, for one task after the other.

    Attributes:
        phase: what its task does: "" for none that makes tasks; begins, makes, waits, wakes or ends.
    """

    def __init__(self, one: SimWorker, process: PlayedProcess) -> None:
        self.one, self.sim, self.process = one, one.sim, process
        self.number = one.new_client(self)
        self.encoder, self.decoder = codec.Encoder(), codec.to_client()
        self.known_as = -1
        self.next = self.applied = 0
        self.has_named = False
        self.phase = ""
        self.call: Call | None = None
        self.open: dict[int, tuple[bytes, list[int]]] = {}
        self.values: dict[int, tuple[int, bytes]] = {}  # of this task's
        self.promise = -1
        self.left_to_make = 0
        self.is_patient = True
        self.parent = 0
        self.stored: list[str] = []  # values that it may name
        self.say(Attach(version="1", pid=0, title="task"))

    def say(self, message: object) -> None:
        """Through the rank."""
        first, *more = self.encoder.encode(message)
        self.one.relay.said(self.number, self.parent, Large([first, *more]) if more else bytes(first))

    def begin(self, call: Call) -> None:
        """A task of this process begins to make tasks."""
        assert not self.open and not self.phase
        self.call, self.parent, self.phase = call, call.task, "makes"
        self.values.clear()
        rng = self.sim.rng
        self.left_to_make = rng.choice([1, 1, 2, 3])
        self.is_patient = rng.random() < 0.8

    def step(self) -> bool:
        """One thing that the task does as a client. True once it can end."""
        rng = self.sim.rng
        if self.phase == "makes" and self.known_as >= 0:
            if self.left_to_make:
                self._make()
            elif self.promise >= 0 and rng.random() < 0.5:
                self._keep()
            elif not self.is_patient and rng.random() < 0.5:
                self.phase = "ends"
            elif self.open:
                if self.promise >= 0:
                    return False
                self._leave()
            else:
                self.phase = "ends"
        elif self.phase == "waits" and not self.open:
            assert self.call is not None
            self.phase = "wakes"
            self.sim.tell(f"rank {self.one.rank}: task {self.call.task} would go on")
            waiting.on_back(self.one.state, self.process.slot)
            self.process.is_seated = self.process.slot.waits_s < 0
        elif self.phase == "wakes" and self.process.is_seated:
            self._seat()
        elif self.phase == "makes" and self.open and rng.random() < 0.02:
            self._cancel()
        return self.phase == "ends"

    def _leave(self) -> None:
        assert self.call is not None
        self.one.report_results(self.process)
        self.phase, self.process.is_seated = "waits", False
        self.sim.tell(f"rank {self.one.rank}: task {self.call.task} waits")
        waiting.on_left(self.one.state, self.process.slot, self.call.task, self.sim.now)
        if self.process.slot.waits_s >= 0:
            self.sim.usage.pause(self.call.task, self.one.rank)
            self.sim.waits += 1

    def _seat(self) -> None:
        assert self.call is not None
        self.sim.tell(f"rank {self.one.rank}: task {self.call.task} goes on")
        self.sim.usage.go_on(self.call.task, self.one.rank)
        self.phase = "makes"
        self.left_to_make = self.sim.rng.choice([0, 0, 1])

    def _make(self) -> None:
        rng = self.sim.rng
        self.left_to_make -= 1
        first, self.next = self.next, self.next + 1
        if self.promise < 0 and rng.random() < 0.1:
            self.promise = first
            self.open[first] = (b"", [])
            self.say(Promise(first=first, count=1))
            return
        needs = [need for need in self.open if rng.random() < 0.3]
        payload = make_payload(rng.choice([1, 2, 100]), [], False, False)
        self.open[first] = (payload, needs)
        self.say(
            Submit(
                first=first,
                apps=[] if self.has_named else APPS,
                functions={} if self.has_named else {FUNCTION: CODE},
                calls=[rng.randrange(len(APPS))],
                payloads=[payload],
                needs={0: needs} if needs else {},
                given={},
                answered=self.applied,
            )
        )
        self.has_named = True

    def _keep(self) -> None:
        task, self.promise = self.promise, -1
        self.say(Fulfil(tasks=[task], outcomes=bytes([Outcome.DONE]), payloads=[b"1"]))

    def _cancel(self) -> None:
        task = self.sim.rng.choice([task for task in self.open if task != self.promise] or [-1])
        if task >= 0:
            del self.open[task]
            self.values[task] = (Outcome.CANCELLED, b"")
            self.say(Cancel(tasks=[task]))

    def end(self) -> None:
        """Its task ends: whatever it has made, and is not done, nobody waits for any more."""
        if self.stored:
            self.say(Release(names=self.stored))
            self.stored = []
        if self.open:
            self.say(Cancel(tasks=list(self.open)))
        self.open.clear()
        self.promise = -1
        self.phase, self.call = "", None

    def hear(self, payload: Payload) -> None:
        """What the manager says."""
        message: Any = self.decoder.decode(payload.frames if type(payload) is Large else [payload])
        if type(message) is Welcome:
            self.known_as = message.client
            self.sim.inner_clients += 1
            return
        assert type(message) is Answer, message
        for task, outcome, value in zip(message.tasks, message.outcomes, message.payloads, strict=True):
            if outcome == Outcome.ASK:
                if task in self.open:
                    self.say(Verdict(task=task, retry=self.sim.rng.random() < 0.7, payload=b"given up"))
                continue
            if isinstance(value, Stored):
                self.stored.append(value.name)
            known = self.open.pop(task, None)
            if known is None:
                if not self.phase and isinstance(value, Stored):
                    self.say(Release(names=[self.stored.pop()]))
                continue  # of a task that has ended, or cancelled
            self.sim.tell(f"task {self.known_as << CLIENT_SHIFT | task}, of task {self.parent}, is {Outcome(outcome).name}")
            self.values[task] = (outcome, bytes(self.sim.data.open(value)) if outcome == Outcome.DONE else b"")
            self._check(task, outcome, *known)
        self.applied = message.sequence
        self.say(Applied(answered=self.applied))

    def _check(self, task: int, outcome: int, payload: bytes, needs: list[int]) -> None:
        if outcome != Outcome.DONE:
            return
        values = [self.values[need] for need in needs]
        assert all(got == Outcome.DONE for got, _ in values), f"task {task} is done before its needs"
        if payload:
            right = value_of((payload, tuple((place, value) for place, (_, value) in enumerate(values))))
            assert int(self.values[task][1]) == right, f"task {task} of task {self.parent} has another's value"
