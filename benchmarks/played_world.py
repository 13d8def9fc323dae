"""A world of simulated ranks around the real manager: its loop, codec, placement; only links, workers and time are played.

Time is the manager's own CPU time: while it turns, the clock goes on by what the turn has cost; while it waits, the clock
jumps to the next thing that happens. So a run tells what the manager costs, and how long the job would take if everything
else were as fast as it is played: `Costs` says how fast.
"""

from __future__ import annotations

import heapq
import pickle
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.played_rank import Call, Planned, PlayedRank
from exex.config import most_waiting
from exex.manager.loop import ManagerLoop
from exex.manager.settings import Settings
from exex.protocol import codec
from exex.protocol.messages import (
    Applied,
    AppSpec,
    Assign,
    Attach,
    Beat,
    Bye,
    Done,
    Drop,
    Hello,
    Leave,
    Outcome,
    Retract,
    Returned,
    Stop,
    Submit,
)
from exex.protocol.payload import Buffer
from exex.transport.memory import InProcess, Network

NODE_BYTES = 256 << 30
RESULT = pickle.dumps(None, 5)
SHORT_S = 1e-3
"""Results of calls that end within so much time are told in one Done."""

CLIENT_WAITING = most_waiting(1)
"""Unfinished tasks that the client may have: the default of `--max-waiting` for few slots, so that all shapes have the same."""

SUBMIT_TASKS = 1024
"""Calls in one Submit."""


class Costs(NamedTuple):
    """How fast the played parts are, in seconds."""

    one_way_s: float = 0.0  # from manager to worker and back, each
    task_s: float = 20e-6  # of a slot, beside the call itself: what a no-op takes


NOTHING = Costs()


class Shape(NamedTuple):
    """Ranks, slots of each, and how many ranks share a node."""

    ranks: int
    slots: int
    per_node: int

    def text(self) -> str:
        """For people."""
        return f"{self.ranks:,} ranks x {self.slots}"


class Crowd(InProcess):
    """The manager's link to ranks that are not there (`transport.base.Ranks`)."""

    def __init__(self) -> None:
        self.inbox: deque[tuple[int, list[Buffer]]] = deque()
        self.outbox: list[tuple[int, list[Buffer]]] = []
        self.forgotten: set[int] = set()

    def send(self, peer: int, frames: list[Buffer]) -> None:
        """See `Link.send`."""
        self.outbox.append((peer, frames))

    def receive(self) -> tuple[int, list[Buffer]] | None:
        """See `Link.receive`."""
        return self.inbox.popleft() if self.inbox else None

    def forget(self, peer: int) -> None:
        """See `Ranks.forget`."""
        self.forgotten.add(peer)

    def close(self) -> None:
        """See `Link.close`."""


class World:
    """Manager, played ranks, one played client.

    Attributes:
        now_s: the clock.
        manager_s: CPU time that the manager has used; `messages`: that it has received from and sent to workers.
        returned: tasks that were taken back from ranks.
        done: tasks of which the client has the outcome.
        ended_s: when the client had the last one.
    """

    def __init__(self, shape: Shape, costs: Costs = NOTHING, heartbeat_limit_s: float = 120.0) -> None:
        self.shape, self.costs = shape, costs
        self.now_s = self.manager_s = self.ended_s = 0.0
        self.messages = self.turns = self.done = 0
        self.crowd = Crowd()
        workers = range(1, shape.ranks + 1)
        settings = Settings("1", "3.11.0", 1, workers, "", 1e9, 1e9, 0.005, heartbeat_limit_s)
        self.loop = ManagerLoop(settings, self.crowd, None, lambda: None, clock=lambda: self.now_s)
        self.encoder = codec.Encoder()
        self._from_manager = codec.to_worker()
        self._answers = codec.to_client()
        network = Network()
        self.loop.listen(network.end(0))
        self._client = network.end(1)
        self._client.send(0, self.encoder.encode(Attach(version="1", pid=1, title="")))
        self._submitted = self._target = 0
        self._events: list[tuple[float, int, int, object]] = []  # heap: when, number, rank, what it says; or what it reports
        self._number = 0
        self._ranks: dict[int, PlayedRank] = {}  # those that have had work
        self.returned = 0
        self._lengths: Callable[[int], float] = lambda task: 0.0
        self._tasks: deque[Submit] = deque()

    # ---- start and end ----

    def register(self) -> None:
        """Every rank says Hello."""
        for rank in range(1, self.shape.ranks + 1):
            node = f"node{(rank - 1) // self.shape.per_node:05d}"
            hello = Hello("1", "3.11.0", node, rank, self.shape.slots, "", [0.1, 0.2, 0.3], [], NODE_BYTES)
            self.crowd.inbox.append((rank, self.encoder.encode(hello)))
            if len(self.crowd.inbox) == 256:
                self.turn()
        self.turn()
        assert len(self.loop.state.workers) == self.shape.ranks

    def stop(self) -> None:
        """Everybody leaves in order."""
        began_s = time.process_time()
        self.loop.stop()
        self._count(began_s)
        while not self.loop.finished:
            self.turn()

    # ---- turns ----

    def turn(self) -> None:
        """One turn of the manager, and what the others make of it."""
        began_s = time.process_time()
        waiting = len(self.crowd.inbox)
        self.loop.turn()
        self._count(began_s)
        self.messages += waiting - len(self.crowd.inbox)
        self.turns += 1
        said, self.crowd.outbox = self.crowd.outbox, []
        self.messages += len(said)
        for rank, frames in said:
            self._on_worker(rank, self._from_manager.decode(frames))
        while self._events and self._events[0][0] <= self.now_s:
            _, _, rank, message = heapq.heappop(self._events)
            if type(message) is list:
                message = self._report(self._ranks[rank].ended(message))
            if message is not None:
                self.crowd.inbox.append((rank, self.encoder.encode(message)))
        self._turn_client()

    def _count(self, began_s: float) -> None:
        took_s = time.process_time() - began_s
        self.manager_s += took_s
        self.now_s += took_s

    def _later(self, at_s: float, rank: int, message: object) -> None:
        self._number += 1
        heapq.heappush(self._events, (at_s + self.costs.one_way_s, self._number, rank, message))

    def _on_worker(self, rank: int, message: Any) -> None:
        now_s = self.now_s + self.costs.one_way_s
        if type(message) is Assign:
            self._run(rank, message, now_s)
        elif type(message) is Retract:
            returned, reports = self._ranks[rank].take_back(set(message.tasks), now_s)
            self.returned += len(returned)
            self._later(now_s, rank, Returned(tasks=returned))
            self._plan(rank, reports)
        elif type(message) is Stop:
            self._later(now_s, rank, Bye(tasks_run=0))
        else:
            assert type(message) in (Drop, Leave, Beat), message

    def _run(self, rank: int, message: Assign, now_s: float) -> None:
        """Calls arrive at a rank: their ends are told when they come."""
        played = self._ranks.get(rank)
        if played is None:
            played = self._ranks[rank] = PlayedRank(self.shape.slots, self.costs.task_s)
        grants = message.grants
        calls = [
            Call(task, self._lengths(task), grants[place].slots if place in grants else 1)
            for place, task in enumerate(message.tasks)
        ]
        self._plan(rank, played.put(calls, now_s))

    def _plan(self, rank: int, reports: list[list[Planned]]) -> None:
        for report in reports:
            self._later(report[-1].ends_s, rank, report)

    def _report(self, ended: Sequence[Call]) -> Done | None:
        if not ended:
            return None
        count = len(ended)
        return Done(
            tasks=[call.task for call in ended], outcomes=bytes(count), payloads=[RESULT] * count,
            seconds=[call.length_s for call in ended], started=[],
        )  # fmt: skip

    def _turn_client(self) -> None:
        while (arrived := self._client.receive()) is not None:
            message = self._answers.decode(arrived[1])
            tasks = getattr(message, "tasks", None)
            if tasks is not None:
                self._client.send(0, self.encoder.encode(Applied(answered=message.sequence)))
                assert not message.outcomes.strip(bytes([Outcome.DONE])), message
                self.done += len(tasks)
                self.ended_s = self.now_s
        while self._tasks and self._submitted - self.done < CLIENT_WAITING:
            submit = self._tasks.popleft()
            self._submitted += len(submit.payloads)
            self.send(submit)

    def send(self, message: object) -> None:
        """The client says something."""
        self._client.send(0, self.encoder.encode(message))

    # ---- work ----

    def run(self, submits: Sequence[Submit], lengths: Callable[[int], float] = lambda task: 0.0) -> float:
        """Submit all of it, as fast as the client may; returns how long it took on the clock."""
        began_s = self.now_s
        self.begin(submits, lengths)
        self.finish()
        return self.ended_s - began_s

    def begin(self, submits: Sequence[Submit], lengths: Callable[[int], float] = lambda task: 0.0) -> None:
        """Submit, and wait for nothing."""
        self._target = self.done + sum(len(submit.payloads) for submit in submits)
        self._lengths = lengths
        self._tasks.extend(submits)
        self._turn_client()

    def finish(self) -> None:
        """Turn until all that was submitted has ended."""
        while self.done < self._target:
            self.turn()
            if not self.crowd.inbox and self._events and self._is_quiet():
                self.now_s = max(self.now_s, self._events[0][0])

    def _is_quiet(self) -> bool:
        """Whether the manager waits for somebody else: it has nothing unread, and holds no answer back for a moment."""
        next_s = self.loop.next_s()
        if next_s < 1.0:
            self.now_s = min(self.now_s + next_s, max(self.now_s, self._events[0][0]))
        return next_s == 1.0 and not self.loop._clients.link.arrived  # type: ignore[union-attr]


def calls(
    first: int, count: int, spec: AppSpec | None = None, app: int = 0, needs: dict[int, list[int]] | None = None
) -> list[Submit]:
    """Submits of `count` calls of one app, which the first of them names if `spec` is given."""
    submits = []
    for at in range(first, first + count, SUBMIT_TASKS):
        size = min(SUBMIT_TASKS, first + count - at)
        payloads: list[Any] = [pickle.dumps(((task,), {}), 5) for task in range(at, at + size)]
        mine = {task - at: needs[task] for task in range(at, at + size) if task in needs} if needs else {}
        apps = [spec] if spec is not None and at == first else []
        functions: dict[bytes, Any] = {spec.function: b"function" for spec in apps}
        submits.append(Submit(at, apps, functions, [app], payloads, mine, {}, 0))
    return submits


def app(number: int, name: str, **options: Any) -> AppSpec:
    """An app of the played client."""
    return AppSpec(app=number, name=name, function=b"f%d" % number, **options)
