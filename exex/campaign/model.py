"""A discrete-event simulation of one job: manager, workers, network. Pure; a seed chooses what is left to luck.

The manager takes turns as the real one does: it drains up to 256 messages, places, and sends, and each of these costs what was
measured of the real one (`benchmarks.manager_scale`). Placement follows the manager's rules for tasks of one length. The network
is LogGP (Alexandrov, Ionescu, Schauser, Scheiman, SPAA 1995). What the model leaves out: congestion of the network, noise of the
machine, shared file systems, and all that happens before every rank is up.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass, field

from exex.config import most_waiting
from exex.manager.clients import MESSAGES_A_TURN
from exex.manager.placement import MESSAGE_S, WORKERS_A_TURN, prefetch_s
from exex.manager.task import LEAST_TASK_S
from exex.transport.wait import LONGEST_S

SUBMIT_TASKS = 1024
"""Calls in one Submit, while the client has more."""

TOGETHER_S = 1e-3
"""Results of one worker that come within so much time travel in one Done."""

LATE_PART = 0.1
"""A process that has been silent for t looks again after so much of t, up to LONGEST_S: see transport/wait."""


@dataclass(frozen=True)
class Network:
    """LogGP, in seconds; `gap_byte_s` per byte.

    The defaults are those of LogGOPSim (Hoefler, Schneider, Lumsdaine, HPDC 2010; simulator.ggo): L 2.5 us, o 1.5 us, g 1 us,
    G 6 ns/B. They are modest for any machine of the last fifteen years.
    """

    latency_s: float = 2.5e-6
    overhead_s: float = 1.5e-6
    gap_s: float = 1e-6
    gap_byte_s: float = 6e-9

    def way_s(self, size_bytes: int) -> float:
        """From the end of the sender's work to the beginning of the receiver's."""
        return self.latency_s + 2 * self.overhead_s + (size_bytes - 1) * self.gap_byte_s


@dataclass(frozen=True)
class Costs:
    """What the parts of exex cost, in seconds of one core of the machine on which they were measured.

    Attributes:
        task_s: at the manager, for each task: submit, placement, result; `message_s`: for an Assign and its Done.
        link_send_s: MPI and its Python side at the manager, for each message; so `link_receive_s`.
        hello_s: at the manager, for each rank that comes up.
        submit_s: at the client, for each task.
        slot_s: of a slot for each of many short tasks; `alone_s`: for a task that travels alone: processes must wake up. Some
            half of the round trip from a script, on an idle machine.
    """

    task_s: float = 2.9e-6
    message_s: float = 4.1e-6
    link_send_s: float = 1.6e-6
    link_receive_s: float = 3.2e-6
    hello_s: float = 4.2e-6
    submit_s: float = 3.6e-6
    slot_s: float = 20e-6
    alone_s: float = 150e-6


@dataclass(frozen=True)
class Design:
    """What is run.

    Attributes:
        slots: of all ranks together, spread evenly.
        length_s: of each task.
        waiting: unfinished tasks that the client may have.
        prefetch_s: see `--prefetch-s`.
        payload_bytes: of a call and its share of the message; the same for a result.
        one_node: ranks ring each other, and nobody sleeps between looks at MPI.
    """

    ranks: int
    slots: int
    tasks: int
    length_s: float
    waiting: int = most_waiting(1)
    prefetch_s: float = 0.005
    payload_bytes: int = 60
    one_node: bool = False

    @property
    def ideal_s(self) -> float:
        """With a runtime that costs nothing."""
        return math.ceil(self.tasks / self.slots) * self.length_s


@dataclass
class Run:
    """What came of it; times in seconds since the first call.

    Attributes:
        starts_s: when the first task began; `half_s`: when half of all tasks had ended; `ends_s`: when the client had the last.
        manager_s: how long the manager was busy; `messages`: that it exchanged with workers.
    """

    starts_s: float = math.inf
    half_s: float = 0.0
    ends_s: float = 0.0
    manager_s: float = 0.0
    messages: int = 0


@dataclass
class _Worker:
    """A rank: when each slot is free, and what it holds."""

    free_s: list[float]
    held: int = 0
    heard_s: float = 0.0


@dataclass
class Simulation:
    """One run; call `run` once."""

    design: Design
    costs: Costs = field(default_factory=Costs)
    network: Network = field(default_factory=Network)
    seed: int = 1

    def run(self) -> Run:
        """Play it to its end. Cost: O(messages log messages + tasks)."""
        design = self.design
        self._rng = random.Random(self.seed)
        self._now_s = self._heard_s = 0.0
        self._ready = self._submitted = self._done = 0
        self._known = False  # whether the manager has seen how long tasks are
        each, more = divmod(design.slots, design.ranks)
        self._workers = [_Worker([0.0] * (each + (rank < more))) for rank in range(design.ranks)]
        self._free = list(range(design.ranks))
        self._arriving: list[tuple[float, int, int, int]] = []  # heap: when, number, rank, tasks that have ended
        self._number = 0
        self._submits: deque[tuple[float, int]] = deque()  # when, tasks
        self._client_s = 0.0
        self._result = Run()
        self._submit_more()
        while self._done < design.tasks:
            self._turn()
        result = self._result
        result.ends_s += self.network.way_s(design.payload_bytes)
        return result

    def _turn(self) -> None:
        began_s = self._now_s
        done = self._drain()
        while self._submits and self._submits[0][0] <= self._now_s:
            count = self._submits.popleft()[1]
            self._ready += count
            self._now_s += count * self.costs.task_s / 3
        sent = self._place()
        self._done += done
        if done:
            self._result.ends_s = self._now_s
            if not self._result.half_s and self._done * 2 >= self.design.tasks:
                self._result.half_s = self._now_s
            self._submit_more()
        self._result.manager_s += self._now_s - began_s
        if done or sent or self._now_s > began_s:
            self._heard_s = self._now_s
        else:
            self._wait()

    def _wait(self) -> None:
        """Until the next message is found."""
        next_s = min(self._arriving[0][0] if self._arriving else math.inf, self._submits[0][0] if self._submits else math.inf)
        assert next_s < math.inf, "nothing is under way"
        self._now_s = max(self._now_s, next_s + self._late_s(next_s - self._heard_s))

    def _late_s(self, silence_s: float) -> float:
        """How late a process that sleeps between its looks finds a message."""
        if self.design.one_node:
            return 0.0
        return self._rng.random() * min(LATE_PART * max(0.0, silence_s), LONGEST_S)

    # ---- client ----

    def _submit_more(self) -> None:
        """The client submits as long as it may; what it is told frees its places at once."""
        self._client_s = max(self._client_s, self._now_s)
        while self._submitted < self.design.tasks and self._submitted - self._done < self.design.waiting:
            count = min(SUBMIT_TASKS, self.design.tasks - self._submitted)
            self._submitted += count
            self._client_s += count * self.costs.submit_s
            self._submits.append((self._client_s, count))

    # ---- manager ----

    def _drain(self) -> int:
        """Take what has arrived; how many tasks have ended."""
        done, costs = 0, self.costs
        for _ in range(MESSAGES_A_TURN):
            if not self._arriving or self._arriving[0][0] > self._now_s:
                break
            _, _, rank, count = heapq.heappop(self._arriving)
            worker = self._workers[rank]
            was_full = worker.held >= len(worker.free_s)
            worker.held -= count
            if was_full and worker.held < len(worker.free_s):
                self._free.append(rank)
            done += count
            self._now_s += costs.link_receive_s + costs.message_s / 2 + count * costs.task_s / 3
            self._result.messages += 1
            self._known = True
        return done

    def _place(self) -> int:
        """Give ready tasks to workers, as `manager.placement` does; how many Assigns were sent."""
        design, sent = self.design, 0
        each_s = design.length_s + LEAST_TASK_S
        ahead = prefetch_s(design.prefetch_s, self._ready) / each_s if self._known else 0.0
        worth = int(math.sqrt(self._ready * MESSAGE_S / each_s)) if self._known else 0
        visited: list[int] = []
        while self._ready and self._free and sent < WORKERS_A_TURN:
            left = len(self._free)
            rank = self._free.pop()
            worker = self._workers[rank]
            slots = len(worker.free_s) - worker.held
            share = -(-self._ready // left)
            spare = max(0, int(len(worker.free_s) * ahead) - worker.held)
            count = min(self._ready, max(min(share, slots + spare), min(worth, spare)))
            self._ready -= count
            worker.held += count
            self._send(rank, worker, count)
            sent += 1
            if worker.held < len(worker.free_s):
                visited.append(rank)
        self._free += visited
        return sent

    def _send(self, rank: int, worker: _Worker, count: int) -> None:
        """An Assign leaves; what the worker makes of it, and when that arrives."""
        costs, network, design = self.costs, self.network, self.design
        self._now_s += costs.message_s / 2 + costs.link_send_s + count * costs.task_s / 3
        self._result.messages += 1
        size = count * design.payload_bytes
        at_s = self._now_s + network.way_s(size)
        at_s += self._late_s(at_s - worker.heard_s)
        worker.heard_s = at_s
        overhead_s = costs.alone_s if count <= len(worker.free_s) else costs.slot_s
        ends: list[float] = []
        for _ in range(count):
            starts_s = max(at_s, worker.free_s[0])
            ends.append(starts_s + overhead_s + design.length_s)
            heapq.heapreplace(worker.free_s, ends[-1])
        self._result.starts_s = min(self._result.starts_s, at_s)
        worker.heard_s = ends[-1]
        first = 0
        for place in range(1, count + 1):
            if place == count or ends[place] > ends[first] + TOGETHER_S:
                self._number += 1
                arrives_s = ends[place - 1] + network.way_s((place - first) * design.payload_bytes)
                heapq.heappush(self._arriving, (arrives_s, self._number, rank, place - first))
                first = place


def strong(workers: int, slots: int = 32, tasks: int = 5000, length_s: float = 1.0) -> Design:
    """The HPDC'19 design: as many tasks on ever more workers. A worker there is a slot here; so many share a rank."""
    return Design(max(1, workers // slots), workers, tasks, length_s)


def weak(workers: int, length_s: float, slots: int = 32, each: int = 10) -> Design:
    """The HPDC'19 design: so many tasks for each worker; see `strong`."""
    return Design(max(1, workers // slots), workers, each * workers, length_s, most_waiting(workers))
