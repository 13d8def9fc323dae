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

from exex.config import most_waiting
from exex.manager.loop import ManagerLoop
from exex.manager.settings import Settings
from exex.protocol import codec
from exex.protocol.messages import Applied, AppSpec, Assign, Attach, Beat, Bye, Done, Drop, Hello, Leave, Outcome, Stop, Submit
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
        self._events: list[tuple[float, int, int, list[Buffer]]] = []  # heap: when, number, rank, what it says
        self._number = 0
        self._slots: dict[int, list[float]] = {}  # of ranks that have had work: when each slot is free
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
            _, _, rank, frames = heapq.heappop(self._events)
            self.crowd.inbox.append((rank, frames))
        self._turn_client()

    def _count(self, began_s: float) -> None:
        took_s = time.process_time() - began_s
        self.manager_s += took_s
        self.now_s += took_s

    def _later(self, at_s: float, rank: int, message: object) -> None:
        self._number += 1
        heapq.heappush(self._events, (at_s + self.costs.one_way_s, self._number, rank, self.encoder.encode(message)))

    def _on_worker(self, rank: int, message: Any) -> None:
        now_s = self.now_s + self.costs.one_way_s
        if type(message) is Assign:
            self._run(rank, message, now_s)
        elif type(message) is Stop:
            self._later(now_s, rank, Bye(tasks_run=0))
        else:
            assert type(message) in (Drop, Leave, Beat), message

    def _run(self, rank: int, message: Assign, now_s: float) -> None:
        """Put calls on the slots of a rank, first come first served; tell their ends, those that end together at once."""
        slots = self._slots.get(rank)
        if slots is None:
            slots = self._slots[rank] = [0.0] * self.shape.slots
        ends: list[tuple[float, int, float]] = []
        for place, task in enumerate(message.tasks):
            length_s = self._lengths(task)
            used = message.grants[place].slots if place in message.grants else 1
            starts_s = max(now_s, heapq.nsmallest(used, slots)[-1]) if used > 1 else max(now_s, slots[0])
            for _ in range(used):
                heapq.heapreplace(slots, starts_s + length_s + self.costs.task_s)
            ends.append((starts_s + length_s + self.costs.task_s, task, length_s))
        ends.sort()
        while ends:
            count = 1
            while count < len(ends) and ends[count][0] <= ends[0][0] + SHORT_S:
                count += 1
            told, ends = ends[:count], ends[count:]
            done = Done(
                tasks=[task for _, task, _ in told], outcomes=bytes(count), payloads=[RESULT] * count,
                seconds=[length_s for _, _, length_s in told], started=[],
            )  # fmt: skip
            self._later(told[-1][0], rank, done)

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
            self.now_s += next_s
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
