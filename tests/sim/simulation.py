"""Manager, workers, task processes and a client in one thread, their order chosen by a seed.

The manager is the real `ManagerLoop`, the workers the real `WorkerState`, the messages are really encoded. Only the
task processes are played: each runs the calls it was given one by one, may fail a call, or die in the middle of it.
A task's value is 1 plus the sum of its needs' values, so that every answer can be checked.
"""

from __future__ import annotations

import random
from collections import Counter

from exex.manager.loop import ManagerLoop, Settings
from exex.protocol import codec
from exex.protocol.messages import (
    Answer,
    Applied,
    AppSpec,
    Assign,
    Attach,
    Bye,
    Cancel,
    Done,
    Drop,
    Fulfil,
    Hello,
    Outcome,
    Promise,
    Stop,
    Submit,
    Verdict,
    Welcome,
)
from exex.transport.base import Link
from exex.transport.memory import Network
from exex.worker import state as worker

MANAGER = 0
CLIENT_BASE = 1000
FUNCTION = b"f" * 16


class PlayedProcess:
    """A task process: runs what it was given, in order, one step at a time."""

    def __init__(self) -> None:
        self.given: list[worker.Call] = []
        self.started = 0  # calls begun; the last begun one may not be reported yet
        self.killed: int | None = None

    def give(self, calls: list[worker.Call]) -> None:
        self.given.extend(calls)

    def take_back(self) -> int:
        left = len(self.given) - self.started
        del self.given[self.started :]
        return left

    def kill(self, gently: bool) -> None:
        self.killed = 15 if gently else 9


class SimWorker:
    """A worker rank: the real state, played processes, one message handled per step."""

    def __init__(self, sim: Simulation, rank: int, slots: int) -> None:
        self.sim = sim
        self.rank = rank
        self.processes = [PlayedProcess() for _ in range(slots)]
        self.state = worker.WorkerState(rank, f"node{rank}", list(self.processes))
        self.link: Link = sim.network.end(rank)
        self.encoder, self.decoder = codec.Encoder(), codec.to_worker()
        self.stopped = False
        hello = Hello(version="1", python="3.11.0", node=f"node{rank}", pid=rank, slots=slots, error="", times_s=[])
        self.link.send(MANAGER, self.encoder.encode(hello))

    def handle(self) -> None:
        now = self.sim.now
        while (arrived := self.link.receive()) is not None:
            message = self.decoder.decode(arrived[1])
            if type(message) is Assign:
                worker.on_assign(self.state, message)
            elif type(message) is Drop:
                worker.on_drop(self.state, message, now)
            elif type(message) is Stop:
                self.stopped = True
                self.link.send(MANAGER, self.encoder.encode(Bye(tasks_run=self.state.tasks_run)))
                return
        worker.on_tick(self.state, now)
        worker.fill(self.state, now)
        done = self.state.take_done()
        if done is not None:
            self.link.send(MANAGER, self.encoder.encode(done))

    def run_slot(self, number: int) -> None:
        """One step of a task process: begin the next call, or end the one that was begun."""
        process, slot, rng = self.processes[number], self.state.slots[number], self.sim.rng
        unreported = process.started - (len(process.given) - len(slot.held))
        if process.killed is not None:
            self._die(number, -process.killed)
        elif unreported:
            call = process.given[process.started - 1]
            if rng.random() < self.sim.death_rate:
                self._die(number, -11)
                return
            self.sim.ran[call.task, call.attempt] += 1
            outcome, value = self.sim.compute(call)
            done = Done(tasks=[call.task], outcomes=bytes([outcome]), payloads=[value], seconds=[rng.choice([1e-6, 0.01, 3.0])], started=[])
            worker.on_slot_done(self.state, slot, done, self.sim.now)
        elif process.started < len(process.given):
            process.started += 1
        if len(process.given) > 200:
            del process.given[: process.started - (1 if process.started else 0)]
            process.started = min(process.started, 1)

    def _die(self, number: int, code: int) -> None:
        slot = self.state.slots[number]
        worker.on_slot_died(self.state, slot, code, "", self.sim.now)
        self.processes[number].__init__()  # type: ignore[misc]


class SimClient:
    """A client that submits a random graph, cancels some of it, and checks every answer."""

    def __init__(self, sim: Simulation, number: int, tasks: int) -> None:
        self.sim, self.number, self.total = sim, number, tasks
        self.link: Link = sim.network.end(CLIENT_BASE + number)
        self.encoder, self.decoder = codec.Encoder(), codec.to_client()
        self.next, self.applied = 0, 0
        self.welcomed = False
        self.needs: dict[int, list[int]] = {}
        self.answers: dict[int, tuple[int, bytes]] = {}
        self.cancelled: set[int] = set()
        self.promises: set[int] = set()
        self.send(Attach(version="1", pid=number, title="sim"))

    def send(self, message: object) -> None:
        self.link.send(MANAGER, self.encoder.encode(message))

    def left(self) -> int:
        """Tasks that are neither answered nor cancelled, submitted or not."""
        return self.total - len(self.answers.keys() | self.cancelled)

    def act(self) -> None:
        """One random thing that a client may do now."""
        while (arrived := self.link.receive()) is not None:
            self._apply(self.decoder.decode(arrived[1]))
        rng = self.sim.rng
        if not self.welcomed:
            return
        choice = rng.random()
        if self.next < self.total and choice < 0.6:
            self._submit(rng.randint(1, 8))
        elif self.promises and choice < 0.8:
            self._fulfil(self.promises.pop())
        elif choice < 0.85 and self.sim.cancel_rate > rng.random():
            open_tasks = [t for t in range(self.next) if t not in self.answers and t not in self.cancelled and t not in self.promises]
            if open_tasks:
                task = rng.choice(open_tasks)
                self.cancelled.add(task)
                self.send(Cancel(tasks=[task]))

    def _submit(self, count: int) -> None:
        rng, first = self.sim.rng, self.next
        count = min(count, self.total - first)
        self.next += count
        if count == 1 and rng.random() < 0.3:
            self.needs[first] = []
            self.promises.add(first)
            self.send(Promise(first=first, count=1))
            return
        needs: dict[int, list[int]] = {}
        given: dict[int, dict[int, bytes]] = {}
        for i in range(count):
            chosen = [rng.randrange(first + i) for _ in range(rng.choice([0, 0, 1, 2, 3]))] if first + i else []
            chosen = [need for need in chosen if need not in self.cancelled]
            self.needs[first + i] = list(chosen)
            if not chosen:
                continue
            needs[i] = list(chosen)
            for place, need in enumerate(chosen):
                outcome, value = self.answers.get(need, (-1, b""))
                if outcome == Outcome.DONE:
                    needs[i][place] = -1
                    given.setdefault(i, {})[place] = value
                elif outcome >= 0:  # a client never sends what has failed: it fails the task itself
                    needs.pop(i)
                    given.pop(i, None)
                    self.needs[first + i] = []
                    break
        apps = []
        if first == 0 or not self.sim.told.get(self.number):
            self.sim.told[self.number] = True
            apps = [
                AppSpec(app=0, name="plain", function=FUNCTION, retries=0),
                AppSpec(app=1, name="retried", function=FUNCTION, retries=2, priority=-1),
                AppSpec(app=2, name="asked", function=FUNCTION, asks=True),
            ]
        calls = [rng.randrange(3)] if rng.random() < 0.5 else [rng.randrange(3) for _ in range(count)]
        functions = {FUNCTION: b"code"} if apps else {}
        self.send(
            Submit(
                first=first, apps=apps, functions=functions, calls=calls, payloads=[b"p"] * count,
                needs=needs, given=given, answered=self.applied,
            )
        )

    def _fulfil(self, task: int) -> None:
        failed = self.sim.rng.random() < 0.1
        self.send(Fulfil(tasks=[task], outcomes=bytes([Outcome.FAILED if failed else Outcome.DONE]), payloads=[b"1"]))

    def _apply(self, message: object) -> None:
        if type(message) is Welcome:
            self.welcomed = True
        elif type(message) is Answer:
            for task, outcome, payload in zip(message.tasks, message.outcomes, message.payloads, strict=True):
                if outcome == Outcome.ASK:
                    self.send(Verdict(task=task, retry=self.sim.rng.random() < 0.7, payload=b"given up"))
                    continue
                assert task not in self.answers, f"task {task} answered twice"
                self.answers[task] = (outcome, bytes(payload))
                self._check(task, outcome, payload)
            self.applied = message.sequence
            self.send(Applied(answered=self.applied))
        else:
            raise AssertionError(message)

    def _check(self, task: int, outcome: int, payload: bytes) -> None:
        known = [self.answers.get(need) for need in self.needs[task]]
        if outcome == Outcome.DONE:
            values = [int(answer[1]) for answer in known if answer is not None and answer[0] == Outcome.DONE]
            assert len(values) == len(known), f"task {task} is done before its needs"
            assert int(payload) == 1 + sum(values), (task, payload, values)
        elif outcome == Outcome.NEED_FAILED:
            bad = [n for n in self.needs[task] if n in self.cancelled or self.answers.get(n, (0,))[0] != Outcome.DONE]
            assert bad, f"task {task} failed for a need, but none failed"


class Simulation:
    """See the module docstring.

    Args:
        seed: chooses everything.
        tasks: of each client.
        ranks: workers.
        lose_ranks: how many workers disappear on the way (never the last one).
    """

    def __init__(
        self,
        seed: int,
        tasks: int = 60,
        ranks: int = 3,
        slots: int = 2,
        clients: int = 1,
        lose_ranks: int = 0,
        failure_rate: float = 0.1,
        death_rate: float = 0.05,
        cancel_rate: float = 0.5,
    ) -> None:
        self.rng = random.Random(seed)
        self.seed, self.failure_rate, self.death_rate, self.cancel_rate = seed, failure_rate, death_rate, cancel_rate
        self.now = 0.0
        self.network = Network(self.rng)
        self.ran: Counter[tuple[int, int]] = Counter()
        self.told: dict[int, bool] = {}
        self.lost: set[int] = set()
        self.lose_ranks = lose_ranks
        settings = Settings("1", "3.11.0", 0, frozenset(range(1, ranks + 1)), "run", 1e9, 1e9, 0.005)
        network_end = self.network.end(MANAGER)
        queues: dict[bool, list] = {True: [], False: []}
        self.manager_loop = ManagerLoop(settings, _Part(network_end, True, queues), None, lambda: None)
        self.manager_loop.listen(_Part(network_end, False, queues))
        self.manager = self.manager_loop.state
        self.workers = {rank: SimWorker(self, rank, slots) for rank in range(1, ranks + 1)}
        self.clients = [SimClient(self, number, tasks) for number in range(clients)]
        self.told_story: list[str] = []

    def compute(self, call: worker.Call) -> tuple[int, bytes]:
        """Outcome and value of a call."""
        if self.rng.random() < self.failure_rate:
            return Outcome.FAILED, b"error"
        return Outcome.DONE, b"%d" % (1 + sum(int(value) for value in call.values or ()))

    def step(self) -> bool:
        """One thing happens; False once every client has all answers."""
        self.now += self.rng.choice([0.0, 0.001, 0.1])
        choice = self.rng.random()
        if choice < 0.4:
            self.network.step()
        elif choice < 0.6:
            self.manager_loop.turn()
        elif choice < 0.7:
            self.rng.choice(self.clients).act()
        elif choice < 0.8:
            self.rng.choice(list(self.workers.values())).handle()
        elif choice < 0.999 or not self.lose_ranks or len(self.workers) == 1:
            one = self.rng.choice(list(self.workers.values()))
            one.run_slot(self.rng.randrange(len(one.processes)))
        else:
            self._lose_rank()
        return any(client.left() for client in self.clients)

    def _lose_rank(self) -> None:
        rank = self.rng.choice([rank for rank in self.workers if rank in self.manager.workers] or [0])
        if not rank:
            return
        self.lose_ranks -= 1
        self.workers.pop(rank)
        self.manager_loop.lose_worker(rank, "simulated loss")

    def drain(self) -> None:
        """Let everything that is under way arrive; afterwards nothing may be left anywhere."""
        for _ in range(20000):
            self.now += 0.05
            while self.network.step() is not None:
                pass
            self.manager_loop.turn()
            for client in self.clients:
                client.act()
            for one in self.workers.values():
                one.handle()
                for number in range(len(one.processes)):
                    one.run_slot(number)
            if self.manager_loop.idle() and not self.network.under_way() and not any(c.left() or c.promises for c in self.clients):
                return
        raise AssertionError(f"seed {self.seed}: not idle: {list(self.manager.tasks.values())[:5]} {self.manager.dropped}")


class _Part:
    """The manager's end of the network, seen as a link to workers only or to clients only."""

    def __init__(self, end: Link, workers: bool, queues: dict[bool, list]) -> None:
        self.end, self.workers, self.queues = end, workers, queues

    def send(self, peer: int, frames: list) -> None:
        self.end.send(peer, frames)

    def receive(self) -> tuple[int, list] | None:
        while (arrived := self.end.receive()) is not None:
            self.queues[arrived[0] < CLIENT_BASE].append(arrived)
        mine = self.queues[self.workers]
        return mine.pop(0) if mine else None

    def drop(self, peer: int) -> None:
        self.end.drop(peer)  # type: ignore[attr-defined]

    def progress(self) -> bool:
        return False

    def fileno(self) -> int:
        return -1

    def polled(self) -> bool:
        return True

    def woken(self) -> None:
        pass

    def close(self) -> None:
        self.end.close()
