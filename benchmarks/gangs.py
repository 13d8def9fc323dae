"""How well gangs and serial tasks share a large machine: `python -m benchmarks.gangs [--nodes 8192]`.

The manager is the real one: its state, its handlers and its placement; nodes and the clock are simulated, from a seed. A trace
of gangs on 1, 4, 64 and 1,024 nodes and of serial tasks, all with lognormal lengths, runs under exex and under two simple
schedulers: *first come, first served*, where nothing overtakes, and *smallest first*, which is what Parsl's MPIExecutor does.

It prints for each the utilisation before the tail, which begins when less work waits than the machine has slots; how long a gang
waited at the most once it was the oldest that waits, in longest tasks; and for exex what an event costs.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from exex.manager import from_clients, from_workers
from exex.manager.placement import place
from exex.manager.state import ManagerState
from exex.protocol.messages import AppSpec, Attach, Done, Hello, Submit

TURN_S = 0.25
"""Events within so much simulated time are handled in one turn of the manager."""


class Kind(NamedTuple):
    """Tasks that are alike."""

    name: str
    nodes: int  # 0: one slot
    share: float  # of all work
    median_s: float
    sigma: float


KINDS = (
    Kind("serial-short", 0, 0.08, 20.0, 0.6),
    Kind("serial", 0, 0.14, 80.0, 0.8),
    Kind("serial-long", 0, 0.08, 300.0, 0.6),
    Kind("gang-1", 1, 0.15, 150.0, 0.8),
    Kind("gang-4", 4, 0.15, 150.0, 0.8),
    Kind("gang-64", 64, 0.20, 300.0, 0.6),
    Kind("gang-1024", 1024, 0.20, 300.0, 0.6),
)


class Job(NamedTuple):
    """One task of the trace."""

    number: int
    kind: int
    length_s: float
    comes_s: float


def make_trace(seed: int, nodes: int, slots: int, hours: float, kinds: Iterable[Kind] = KINDS) -> list[Job]:
    """Tasks that keep the whole machine busy for so long. Half of them wait from the beginning; the others come one by one."""
    rng = random.Random(seed)
    jobs: list[tuple[int, float]] = []
    for number, kind in enumerate(kinds):
        work_s = kind.share * nodes * slots * hours * 3600
        while work_s > 0:
            length_s = rng.lognormvariate(0.0, kind.sigma) * kind.median_s
            jobs.append((number, length_s))
            work_s -= length_s * (kind.nodes * slots or 1)
    rng.shuffle(jobs)
    half = len(jobs) // 2
    arrivals = [0.0] * half + sorted(rng.uniform(0, hours * 1800) for _ in range(len(jobs) - half))
    return [Job(i, kind, length_s, comes_s) for i, ((kind, length_s), comes_s) in enumerate(zip(jobs, arrivals))]


class Scheduler(Protocol):
    """What is compared."""

    def submit(self, jobs: list[Job]) -> None:
        """These are new, in this order."""

    def ended(self, jobs: list[Job]) -> None:
        """These have ended."""

    def start(self, now_s: float) -> list[Job]:
        """What begins now."""


class Exex:
    """The manager, with one rank per node."""

    def __init__(self, nodes: int, slots: int, kinds: tuple[Kind, ...] = KINDS) -> None:
        self.state = ManagerState()
        self._client = from_clients.on_attach(self.state, Attach(version="1", pid=1, title=""))
        self._kinds = kinds
        self._jobs: list[Job] = []
        self._ranks: dict[int, int] = {}
        self._named = False
        self.events = 0
        self.seconds = 0.0
        for rank in range(1, nodes + 1):
            from_workers.on_hello(self.state, rank, Hello("1", "3", f"node{rank:05d}", rank, slots, "", []))

    def submit(self, jobs: list[Job]) -> None:
        """See `Scheduler`."""
        began_s = time.process_time()
        apps = [AppSpec(app=i, name=kind.name, function=b"f", nodes=kind.nodes) for i, kind in enumerate(self._kinds)]
        message = Submit(
            len(self._jobs), [] if self._named else apps, {} if self._named else {b"f": b""},
            [job.kind for job in jobs], [b""] * len(jobs), {}, {}, self._client.sequence,
        )  # fmt: skip
        self._named = True
        self._jobs += jobs
        from_clients.on_submit(self.state, self._client, message)
        self._count(began_s, 1)

    def ended(self, jobs: list[Job]) -> None:
        """See `Scheduler`."""
        of_rank: dict[int, list[Job]] = {}
        for job in jobs:
            of_rank.setdefault(self._ranks.pop(job.number), []).append(job)
        began_s = time.process_time()
        for rank, group in of_rank.items():
            count = len(group)
            done = Done([job.number for job in group], bytes(count), [b""] * count, [job.length_s for job in group], [])
            from_workers.on_done(self.state, rank, done)
        self._client.take_answer()
        self._client.applied(self._client.sequence)
        self._count(began_s, len(of_rank))

    def start(self, now_s: float) -> list[Job]:
        """See `Scheduler`."""
        self.state.now_s = now_s
        began_s = time.process_time()
        place(self.state)
        self._count(began_s, 1)
        started: list[Job] = []
        for worker in self.state.refilled:
            for task in self.state.take_assign(worker).tasks:
                self._ranks[task] = worker.rank
                started.append(self._jobs[task])
        self.state.refilled.clear()
        return started

    def _count(self, began_s: float, events: int) -> None:
        self.seconds += time.process_time() - began_s
        self.events += events


class Simple:
    """One queue and no plan. Whole nodes to gangs, slots of nodes that are in use already to serial tasks.

    Args:
        smallest_first: those that need fewer nodes go first, as in Parsl; else nothing overtakes.
    """

    def __init__(self, nodes: int, slots: int, kinds: tuple[Kind, ...], smallest_first: bool) -> None:
        self._kinds, self._slots, self._smallest = kinds, slots, smallest_first
        self._free_nodes = nodes
        self._shared: list[int] = []  # free slots of nodes that run serial tasks, one entry per node number
        self._open: list[int] = []  # numbers of those with free slots
        self._unused: list[int] = []  # numbers of those that were given back
        self._where: dict[int, int] = {}
        self._waiting: list[tuple[int, int, Job]] = []

    def submit(self, jobs: list[Job]) -> None:
        """See `Scheduler`."""
        for job in jobs:
            heapq.heappush(self._waiting, (self._kinds[job.kind].nodes if self._smallest else 0, job.number, job))

    def ended(self, jobs: list[Job]) -> None:
        """See `Scheduler`."""
        for job in jobs:
            nodes = self._kinds[job.kind].nodes
            self._free_nodes += nodes
            if not nodes:
                number = self._where.pop(job.number)
                self._shared[number] += 1
                if self._shared[number] == self._slots:
                    self._free_nodes += 1
                    self._shared[number] = 0
                    self._unused.append(number)
                else:
                    self._open.append(number)

    def start(self, now_s: float) -> list[Job]:
        """See `Scheduler`."""
        started: list[Job] = []
        while self._waiting and self._fits(self._waiting[0][2]):
            started.append(heapq.heappop(self._waiting)[2])
        return started

    def _fits(self, job: Job) -> bool:
        nodes = self._kinds[job.kind].nodes
        if nodes:
            if nodes > self._free_nodes:
                return False
            self._free_nodes -= nodes
            return True
        while self._open and not self._shared[self._open[-1]]:
            self._open.pop()
        if not self._open:
            if not self._free_nodes:
                return False
            self._free_nodes -= 1
            if not self._unused:
                self._unused.append(len(self._shared))
                self._shared.append(0)
            number = self._unused.pop()
            self._shared[number] = self._slots
            self._open.append(number)
        number = self._open[-1]
        self._shared[number] -= 1
        self._where[job.number] = number
        return True


@dataclass
class Result:
    """What a scheduler made of a trace.

    Attributes:
        utilisation: share of all slots that were busy before the tail.
        tail_s: when that began; `end_s`: when the last task ended.
        longest_wait_s: of a gang, since it was the oldest gang that waits; `longest_waiter`: which kind.
        longest_task_s: of all.
        mean_waits_s: from arrival to start, by kind.
    """

    utilisation: float = 0.0
    tail_s: float = 0.0
    end_s: float = 0.0
    longest_wait_s: float = 0.0
    longest_waiter: str = ""
    longest_task_s: float = 0.0
    mean_waits_s: dict[str, float] = field(default_factory=dict)


def run(scheduler: Scheduler, trace: list[Job], nodes: int, slots: int, kinds: tuple[Kind, ...] = KINDS) -> Result:
    """Play a trace to its end."""
    result = Result(longest_task_s=max(job.length_s for job in trace))
    coming = deque(trace)
    running: list[tuple[float, int]] = []
    waiting_slots = busy_slots = 0
    busy_slot_s = before_tail_s = now_s = 0.0
    oldest: deque[Job] = deque()  # gangs that wait, and some that do not any more
    oldest_since_s = 0.0
    waits: dict[int, list[float]] = {}
    begun: set[int] = set()
    while coming or running or waiting_slots:
        next_s = min(running[0][0] if running else 1e18, coming[0].comes_s if coming else 1e18)
        assert next_s < 1e18, f"{waiting_slots} slots are waited for, and nothing runs"
        next_s = max(now_s, next_s) + TURN_S
        if coming or waiting_slots >= nodes * slots:
            before_tail_s = busy_slot_s + busy_slots * (next_s - now_s)
            result.tail_s = next_s
        busy_slot_s += busy_slots * (next_s - now_s)
        now_s = next_s
        ended: list[Job] = []
        while running and running[0][0] <= now_s:
            ended.append(trace[heapq.heappop(running)[1]])
        new: list[Job] = []
        while coming and coming[0].comes_s <= now_s:
            new.append(coming.popleft())
        for job in ended:
            busy_slots -= kinds[job.kind].nodes * slots or 1
        waiting_slots += sum(kinds[job.kind].nodes * slots or 1 for job in new)
        oldest.extend(job for job in new if kinds[job.kind].nodes)
        if ended:
            scheduler.ended(ended)
        if new:
            scheduler.submit(new)
        for job in scheduler.start(now_s):
            kind = kinds[job.kind]
            heapq.heappush(running, (now_s + job.length_s, job.number))
            size = kind.nodes * slots or 1
            busy_slots += size
            waiting_slots -= size
            waits.setdefault(job.kind, []).append(now_s - job.comes_s)
            begun.add(job.number)
            if oldest and job is oldest[0] and now_s - max(oldest_since_s, job.comes_s) > result.longest_wait_s:
                result.longest_wait_s = now_s - max(oldest_since_s, job.comes_s)
                result.longest_waiter = kind.name
        assert busy_slots <= nodes * slots, f"{busy_slots} of {nodes * slots} slots are busy"
        if oldest and oldest[0].number in begun:
            oldest_since_s = now_s
        while oldest and oldest[0].number in begun:
            oldest.popleft()
    result.end_s = now_s
    result.utilisation = before_tail_s / (nodes * slots * result.tail_s) if result.tail_s else 0.0
    result.mean_waits_s = {kinds[number].name: sum(found) / len(found) for number, found in sorted(waits.items())}
    return result


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gangs", description=__doc__)
    parser.add_argument("--nodes", type=int, default=8192)
    parser.add_argument("--slots", type=int, default=8, help="of each node")
    parser.add_argument("--hours", type=float, default=1.0, help="for which the work would keep the whole machine busy")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=("exex", "fcfs", "smallest"))
    args = parser.parse_args()
    kinds = tuple(kind for kind in KINDS if kind.nodes <= args.nodes // 8)
    trace = make_trace(args.seed, args.nodes, args.slots, args.hours, kinds)
    print(f"{args.nodes:,} nodes with {args.slots} slots each, {len(trace):,} tasks, seed {args.seed}")
    for kind in kinds:
        count = sum(kinds[job.kind] is kind for job in trace)
        print(f"  {count:9,} {kind.name:13} of {kind.share:.0%} of the work, lognormal({kind.median_s:g} s, {kind.sigma:g})")
    print(f"{'':10} {'utilisation':>11} {'end':>7}  longest wait of the oldest gang         mean waits")
    exex = Exex(args.nodes, args.slots, kinds)
    schedulers: dict[str, Scheduler] = {
        "exex": exex,
        "fcfs": Simple(args.nodes, args.slots, kinds, smallest_first=False),
        "smallest": Simple(args.nodes, args.slots, kinds, smallest_first=True),
    }
    for name, scheduler in schedulers.items():
        if args.only not in (None, name):
            continue
        result = run(scheduler, trace, args.nodes, args.slots, kinds)
        share = result.longest_wait_s / result.longest_task_s
        longest = f"{result.longest_wait_s:6.0f} s = {share:.2f} longest tasks ({result.longest_waiter})"
        waits = ", ".join(f"{kind} {wait_s:.0f} s" for kind, wait_s in result.mean_waits_s.items())
        print(f"{name:10} {result.utilisation:11.1%} {result.end_s:6.0f}s  {longest:40} {waits}", flush=True)
    if exex.events:
        each_us = 1e6 * exex.seconds / exex.events
        print(f"exex: {exex.events:,} events (messages and turns) in {exex.seconds:.1f} s of CPU: {each_us:.0f} us each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
