"""Manager, workers, task processes and a client in one thread, their order chosen by a seed.

The manager is the real `ManagerLoop`, the workers the real `WorkerState`, the messages are really encoded. Only the
task processes are played: each runs the calls it was given one by one, may fail a call, hang until it is killed, or die
in the middle of it. A task's value is 1 plus the sum of its needs' values, so that every answer can be checked.

What else may go wrong: a rank dies and is found out later; a rank is only stopped, is given up, and goes on as a *ghost*
that still talks; all task processes of a rank die at once with their template; a client vanishes. Messages of different
links overtake one another. None is doubled: neither MPI nor a stream can do that.

Every change of a task's status is compared with `TRANSITIONS`, every begin of an attempt with what came before it.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager

from exex.manager import transitions
from exex.manager.loop import ManagerLoop, Settings
from exex.manager.task import TRANSITIONS, Status, Task
from exex.protocol import codec
from exex.protocol.messages import (
    CLIENT_SHIFT,
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
MEMORY_BYTES = 1000
LIMIT_S = 0.3
APPS = [
    AppSpec(app=0, name="plain", function=FUNCTION, retries=0),
    AppSpec(app=1, name="retried", function=FUNCTION, retries=2, priority=-1),
    AppSpec(app=2, name="asked", function=FUNCTION, asks=True),
    AppSpec(app=3, name="limited", function=FUNCTION, walltime_s=LIMIT_S, retries=1),
    AppSpec(app=4, name="small", function=FUNCTION, retries=1, memory_bytes=MEMORY_BYTES),
]
ALLOWED = {(old, new) for old, new, _ in TRANSITIONS if old}
STORY = 60


class TracedTask(Task):
    """A task that refuses a change of its status that is not in `TRANSITIONS`."""

    __slots__ = ("_status", "taken_out")

    def __init__(self, *args: object) -> None:
        self._status: Status | None = None
        self.taken_out = False
        super().__init__(*args)  # type: ignore[arg-type]

    @property
    def status(self) -> Status:  # type: ignore[override]
        assert self._status is not None
        return self._status

    @status.setter
    def status(self, new: Status) -> None:
        old = self._status
        self._status = new
        if old is None or old == new:
            return
        if (old, new) == (Status.READY, Status.WAITING):  # how `cancel` takes it out of the queue
            self.taken_out = True
            return
        assert (old.name.lower(), new.name.lower()) in ALLOWED, f"task {self.id}: {old.name} -> {new.name}"


@contextmanager
def tracing() -> Iterator[None]:
    """Tasks that are made meanwhile are traced."""
    transitions.Task = TracedTask  # type: ignore[misc]
    try:
        yield
    finally:
        transitions.Task = Task  # type: ignore[misc]


class PlayedProcess:
    """A task process: runs what it was given, in order, one step at a time."""

    def __init__(self) -> None:
        self.given: list[worker.Call] = []
        self.started = 0  # calls begun; the last ones may not be reported yet
        self.results: list[tuple[int, bytes, float]] = []  # of calls that have ended and are not reported
        self.killed: int | None = None
        self.measured = False

    def give(self, calls: list[worker.Call]) -> None:
        self.given.extend(calls)

    def take_back(self) -> int:
        left = len(self.given) - self.started
        del self.given[self.started :]
        return left

    def kill(self, gently: bool) -> None:
        self.killed = 15 if gently else 9

    def measure(self, limit_bytes: int) -> None:
        self.measured = True


class SimWorker:
    """A worker rank: the real state, played processes, one message handled per step."""

    def __init__(self, sim: Simulation, rank: int, slots: int) -> None:
        self.sim = sim
        self.rank = rank
        self.processes = [PlayedProcess() for _ in range(slots)]
        per_process = sim.rng.choice([0, 0, 1, 5])
        self.state = worker.WorkerState(rank, f"node{rank}", list(self.processes), tasks_per_process=per_process)
        self.link: Link = sim.network.end(rank)
        self.encoder, self.decoder = codec.Encoder(), codec.to_worker()
        self.stopped = False
        self.dead = False  # and the manager does not know
        hello = Hello(version="1", python="3.11.0", node=f"node{rank}", pid=rank, slots=slots, error="", times_s=[])
        self.link.send(MANAGER, self.encoder.encode(hello))

    def handle(self) -> None:
        now = self.sim.now
        if self.stopped or self.dead:
            return
        while (arrived := self.link.receive()) is not None:
            message = self.decoder.decode(arrived[1])
            if type(message) is Assign:
                worker.on_assign(self.state, message)
            elif type(message) is Drop:
                self.sim.owed_drops.difference_update((self.rank, task) for task in message.tasks)
                worker.on_drop(self.state, message, now)
            elif type(message) is Stop:
                self.stopped = True
                self.link.send(MANAGER, self.encoder.encode(Bye(tasks_run=self.state.tasks_run)))
                return
        worker.on_tick(self.state, now)
        for process, slot in zip(self.processes, self.state.slots):
            if process.measured and self.sim.rng.random() < 0.5:
                process.measured = False
                worker.on_measured(self.state, slot, self.sim.rng.choice([MEMORY_BYTES, MEMORY_BYTES + 1]), 1e-4, now)
        worker.fill(self.state, now)
        assert all(call.spec.memory_bytes is None for slot in self.state.slots for call in list(slot.held)[1:])
        done = self.state.take_done()
        if done is not None:
            self.link.send(MANAGER, self.encoder.encode(done))

    def run_slot(self, number: int) -> None:
        """One step of a task process: begin the next call, or end the one that was begun."""
        if self.stopped or self.dead:
            return
        process, slot, rng = self.processes[number], self.state.slots[number], self.sim.rng
        unreported = self._unreported(number)
        if process.killed is not None:
            self._die(number, -process.killed)
        elif len(unreported) > len(process.results):
            self._end_call(number, unreported[-1])
        elif process.results and (rng.random() < 0.5 or process.started == len(process.given)):
            self._report(number)
        elif process.started < len(process.given):
            process.started += 1
            self.sim.begin(process.given[process.started - 1], self.rank)
        if len(process.given) > 200:
            reported = len(process.given) - len(slot.held)
            del process.given[:reported]
            process.started -= reported

    def _unreported(self, number: int) -> list[worker.Call]:
        """Calls that a process has begun and not reported, in order."""
        process, slot = self.processes[number], self.state.slots[number]
        reported = len(process.given) - len(slot.held)
        assert 0 <= reported <= process.started, f"slot {number} of rank {self.rank}: what was begun was taken back"
        calls = process.given[reported : process.started]
        assert len(calls) - len(process.results) in (0, 1)
        return calls

    def _end_call(self, number: int, call: worker.Call) -> None:
        sim, rng = self.sim, self.sim.rng
        if sim.hangs(call):
            return
        if rng.random() < sim.death_rate:
            self._die(number, -11)
            return
        sim.ran[call.task, call.attempt] += 1
        outcome, value = sim.compute(call)
        sim.tell(f"rank {self.rank}: task {call.task} attempt {call.attempt} ends {Outcome(outcome).name}")
        process = self.processes[number]
        process.results.append((outcome, value, rng.choice([1e-6, 0.01, 3.0])))
        if rng.random() < 0.7:
            self._report(number)

    def _report(self, number: int) -> None:
        calls = self._unreported(number)
        results, self.processes[number].results = self.processes[number].results, []
        outcomes, values, seconds = zip(*results)
        tasks = [call.task for call, _ in zip(calls, results)]
        done = Done(tasks=tasks, outcomes=bytes(outcomes), payloads=list(values), seconds=list(seconds), started=[])
        worker.on_slot_done(self.state, self.state.slots[number], done, self.sim.now)

    def _die(self, number: int, code: int, blameless: str = "") -> None:
        sim, calls = self.sim, self._unreported(number)
        if calls:
            *ended, running = calls
            slot = self.state.slots[number]
            condemned = slot.ending_s >= 0 and slot.condemned == running.task
            if blameless and not condemned and running.losses < worker.LOSSES_TOLERATED:
                sim.begun[running.task, running.attempt] -= 1  # it is begun again, as the same attempt
            else:
                sim.excuses[running.task] += 1
            sim.tell(f"rank {self.rank}: task {running.task} attempt {running.attempt} loses its process ({code})")
            for call in ended:  # nobody knows how they ended: they may begin again
                sim.begun[call.task, call.attempt] -= 1
        worker.on_slot_died(self.state, self.state.slots[number], code, "", sim.now, blameless)
        self.processes[number].__init__()  # type: ignore[misc]

    def lose_template(self) -> None:
        """All task processes are gone at once."""
        self.sim.tell(f"rank {self.rank}: the template dies")
        for number in range(len(self.processes)):
            self._die(number, -9, "its template has ended")


class SimClient:
    """A client that submits a random graph, cancels some of it, and checks every answer."""

    def __init__(self, sim: Simulation, number: int, tasks: int) -> None:
        self.sim, self.number, self.total = sim, number, tasks
        self.link: Link = sim.network.end(CLIENT_BASE + number)
        self.encoder, self.decoder = codec.Encoder(), codec.to_client()
        self.next, self.applied = 0, 0
        self.welcomed = False
        self.gone = False
        self.known_as = -1  # to the manager
        self.apps: dict[int, int] = {}  # of each call
        self.needs: dict[int, list[int]] = {}
        self.answers: dict[int, tuple[int, bytes]] = {}
        self.cancelled: set[int] = set()
        self.promises: set[int] = set()
        self.send(Attach(version="1", pid=number, title="sim"))

    def send(self, message: object) -> None:
        self.link.send(MANAGER, self.encoder.encode(message))

    def left(self) -> int:
        """Tasks that are neither answered nor cancelled, submitted or not."""
        if self.gone:
            return 0
        return self.total - len(self.answers.keys() | self.cancelled)

    def act(self) -> None:
        """One random thing that a client may do now."""
        if self.gone:
            return
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
        elif choice > 0.95 and self.sim.cancel_rate > rng.random():
            open_tasks = [t for t in range(self.next) if t not in self.answers and t not in self.cancelled and t not in self.promises]
            if open_tasks:
                task = rng.choice(open_tasks)
                self.cancelled.add(task)
                self.sim.tell(f"client {self.number} cancels task {task}")
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
        if not self.sim.told.get(self.number):
            self.sim.told[self.number] = True
            apps = APPS
        calls = [rng.randrange(len(APPS))] if rng.random() < 0.5 else [rng.randrange(len(APPS)) for _ in range(count)]
        self.apps.update((first + i, calls[i if len(calls) > 1 else 0]) for i in range(count))
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
            self.known_as = message.client
        elif type(message) is Answer:
            for task, outcome, payload in zip(message.tasks, message.outcomes, message.payloads, strict=True):
                if outcome == Outcome.ASK:
                    assert APPS[self.apps[task]].asks
                    self.send(Verdict(task=task, retry=self.sim.rng.random() < 0.7, payload=b"given up"))
                    continue
                assert task not in self.answers, f"task {task} answered twice"
                self.answers[task] = (outcome, bytes(payload))
                self.sim.tell(f"client {self.number} hears that task {task} is {Outcome(outcome).name}")
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
        elif task in self.apps:
            spec = APPS[self.apps[task]]
            tried = self.sim.excuses[self.known_as << CLIENT_SHIFT | task]
            assert tried > spec.retries, f"task {task} failed after {tried} attempts of {1 + spec.retries}"

    def vanish(self) -> None:
        """The script is killed."""
        self.sim.tell(f"client {self.number} vanishes")
        self.gone = True
        self.link.close()


class Simulation:
    """See the module docstring.

    Args:
        seed: chooses everything.
        tasks: of each client.
        ranks: workers.
        lose_ranks: how many workers are lost on the way (never the last one).
        lose_clients: how many clients vanish.
        lose_templates: how often all task processes of a rank die at once.
        hang_rate: of the calls that have a time limit.
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
        hang_rate: float = 0.1,
        lose_clients: int = 0,
        lose_templates: int = 0,
    ) -> None:
        self.rng = random.Random(seed)
        self.seed, self.failure_rate, self.death_rate, self.cancel_rate = seed, failure_rate, death_rate, cancel_rate
        self.hang_rate = hang_rate
        self.now = 0.0
        self.network = Network(self.rng)
        self.begun: Counter[tuple[int, int]] = Counter()
        self.ran: Counter[tuple[int, int]] = Counter()
        self.excuses: Counter[int] = Counter()  # attempts of each task that failed or were lost
        self.owed_drops: set[tuple[int, int]] = set()  # (rank, task) that must still be told
        self.told: dict[int, bool] = {}
        self.story: deque[str] = deque(maxlen=STORY)
        self.lose_ranks, self.lose_clients, self.lose_templates = lose_ranks, lose_clients, lose_templates
        settings = Settings("1", "3.11.0", 0, frozenset(range(1, ranks + 1)), "run", 1e9, 1e9, 0.005)
        network_end = self.network.end(MANAGER)
        queues: dict[bool, list] = {True: [], False: []}
        self.manager_loop = ManagerLoop(settings, _Part(network_end, True, queues), None, lambda: None)
        self.manager_loop.listen(_Part(network_end, False, queues))
        self.manager = self.manager_loop.state
        self._finish_task = self.manager.finish_task
        self.manager.finish_task = self.finish_task  # type: ignore[method-assign]
        self.workers = {rank: SimWorker(self, rank, slots) for rank in range(1, ranks + 1)}
        self.ghosts: list[SimWorker] = []
        self.clients = [SimClient(self, number, tasks) for number in range(clients)]

    @classmethod
    def of_seed(cls, seed: int) -> Simulation:
        """A world and its misfortunes, all chosen by the seed."""
        rng = random.Random(f"world {seed}")
        clients = rng.choice([1, 1, 1, 2, 3])
        return cls(
            seed,
            tasks=rng.choice([20, 40, 80]) // clients + 1,
            ranks=rng.randint(1, 5),
            slots=rng.randint(1, 3),
            clients=clients,
            lose_ranks=rng.choice([0, 1, 1, 2, 4]),
            failure_rate=rng.choice([0.0, 0.05, 0.3]),
            death_rate=rng.choice([0.0, 0.05, 0.2]),
            cancel_rate=rng.choice([0.0, 0.5, 1.0]),
            hang_rate=rng.choice([0.0, 0.3]),
            lose_clients=rng.choice([0, 0, 1]),
            lose_templates=rng.choice([0, 1, 3]),
        )

    def tell(self, event: str) -> None:
        """Put an event into the story; what is kept of it is printed if this seed fails."""
        self.story.append(f"{self.now:8.3f} {event}")

    # ---- tasks ----

    def begin(self, call: worker.Call, rank: int) -> None:
        """A task process begins a call. No attempt begins twice, and no second one begins without a reason."""
        self.tell(f"rank {rank}: task {call.task} attempt {call.attempt} begins")
        key = (call.task, call.attempt)
        self.begun[key] += 1
        assert self.begun[key] == 1, f"task {call.task} attempt {call.attempt} began twice"
        assert call.attempt <= 1 + self.excuses[call.task], f"task {call.task} attempt {call.attempt} began though nothing was lost"

    def compute(self, call: worker.Call) -> tuple[int, bytes]:
        """Outcome and value of a call."""
        if self.rng.random() < self.failure_rate:
            self.excuses[call.task] += 1
            return Outcome.FAILED, b"error"
        return Outcome.DONE, b"%d" % (1 + sum(int(value) for value in call.values or ()))

    def hangs(self, call: worker.Call) -> bool:
        """Whether this attempt never ends by itself."""
        return call.spec.walltime_s is not None and random.Random(f"{self.seed} {call.task} {call.attempt}").random() < self.hang_rate

    def finish_task(self, task: TracedTask, outcome: int, *args: object) -> None:
        """In place of the manager's: the end, too, must be one that `TRANSITIONS` knows."""
        end = {Outcome.DONE: "done", Outcome.CANCELLED: "cancelled"}.get(Outcome(outcome), "failed")
        assert (task.status.name.lower(), end) in ALLOWED, f"task {task.id}: {task.status.name} -> {end}"
        if end == "cancelled" and task.status == Status.ASSIGNED:
            self.owed_drops.add((task.rank, task.id))
        self._finish_task(task, outcome, *args)  # type: ignore[arg-type]

    # ---- events ----

    def turn(self) -> None:
        """One turn of the manager, whose own errors and refusals are failures of the simulation."""
        expected = self.manager.workers.keys() | (self.manager_loop._missing & self.workers.keys())
        with tracing():
            self.manager_loop.turn()
        assert not self.manager_loop.error, self.manager_loop.error
        assert expected == self.manager.workers.keys() | (self.manager_loop._missing & self.workers.keys()), "a worker was refused"
        left = [task for task in self.manager.tasks.values() if task.taken_out]  # type: ignore[attr-defined]
        assert not left, f"cancelled, but not ended: {left}"
        assert not any(client.finished for client in self.manager.clients.values()), "something of a client that is gone is left"

    def step(self) -> bool:
        """One thing happens; False once every client has all answers."""
        self.now += self.rng.choice([0.0, 0.001, 0.1])
        choice = self.rng.random()
        if choice < 0.4:
            self.network.step()
        elif choice < 0.6:
            self.turn()
        elif choice < 0.7:
            self.rng.choice(self.clients).act()
        elif choice < 0.8:
            self._any_worker().handle()
        elif choice < 0.995:
            one = self._any_worker()
            one.run_slot(self.rng.randrange(len(one.processes)))
        else:
            self._misfortune()
        return any(client.left() for client in self.clients)

    def _any_worker(self) -> SimWorker:
        return self.rng.choice([*self.workers.values(), *self.ghosts])

    def _misfortune(self) -> None:
        rng = self.rng
        kind = rng.randrange(4)
        if kind <= 1:
            found = [one for one in self.workers.values() if one.dead]
            if found:
                self._give_up(rng.choice(found))
            elif self.lose_ranks and sum(not one.dead for one in self.workers.values()) > 1 and not self.manager_loop._missing:
                self.lose_ranks -= 1
                one = rng.choice(list(self.workers.values()))
                if kind:
                    self.tell(f"rank {one.rank} dies, and nobody knows")
                    one.dead = True
                else:
                    self._give_up(one)  # it was only stopped, and goes on
                    self.ghosts.append(one)
        elif kind == 2 and self.lose_templates:
            self.lose_templates -= 1
            self.rng.choice(list(self.workers.values())).lose_template()
        elif kind == 3 and self.lose_clients:
            self.lose_clients -= 1
            here = [client for client in self.clients if not client.gone]
            if here:
                rng.choice(here).vanish()

    def _give_up(self, one: SimWorker) -> None:
        """The manager takes a silent rank for lost. Words of it may still be under way."""
        self.tell(f"the manager gives up rank {one.rank}")
        del self.workers[one.rank]
        self.owed_drops = {(rank, task) for rank, task in self.owed_drops if rank != one.rank}
        for task in self.manager.tasks.values():
            if task.status == Status.ASSIGNED and task.rank == one.rank:
                self.excuses[task.id] += 1
        with tracing():
            self.manager_loop.lose_worker(one.rank, "simulated loss")

    # ---- to the end ----

    def run(self) -> None:
        """To the end, with every invariant checked on the way."""
        steps = 0
        while self.step():
            steps += 1
            if steps % 7 == 0:
                self.manager.check()
            assert steps < 200_000, "the tasks do not end"
        self.drain()
        self.manager.check()
        assert not self.owed_drops, f"these were never told to drop the task: {self.owed_drops}"
        assert not self.manager.tasks and not self.manager.dropped and not self.manager.ready.count
        for one in self.manager.workers.values():
            assert one.held == 0 and one.held_s == 0.0, f"rank {one.rank}: {one.held} attempts, {one.held_s} s are held"
        for client in self.clients:
            if client.gone:
                assert client.known_as not in self.manager.clients, "the record of a client that is gone is left"
                continue
            assert client.answers.keys() | client.cancelled == set(range(client.total))
            assert not self.manager.clients[client.known_as].kept, "values are kept that nobody can ask for"

    def drain(self) -> None:
        """Let everything that is under way arrive; afterwards nothing may be left anywhere."""
        for _ in range(20000):
            self.now += 0.05
            for one in [one for one in self.workers.values() if one.dead]:
                self._give_up(one)
            while self.network.step() is not None:
                pass
            self.turn()
            for client in self.clients:
                client.act()
            for one in [*self.workers.values(), *self.ghosts]:
                one.handle()
                for number in range(len(one.processes)):
                    one.run_slot(number)
            waited_for = any(client.left() or (client.promises and not client.gone) for client in self.clients)
            if self.manager_loop.idle() and not self.network.under_way() and not waited_for:
                return
        raise AssertionError(f"not idle: {list(self.manager.tasks.values())[:5]} {self.manager.dropped}")


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

    def forget(self, peer: int) -> None:
        """Nothing: late messages of a lost rank must do no harm."""

    def fileno(self) -> int:
        return -1

    def polled(self) -> bool:
        return True

    def woken(self) -> None:
        pass

    def close(self) -> None:
        self.end.close()
