"""Manager, workers, task processes and a client in one thread, their order chosen by a seed.

The manager is the real `ManagerLoop`, the workers the real `WorkerState`, the messages are really encoded. Only the
task processes are played: each runs the calls it was given one by one, may fail a call, hang until it is killed, or die
in the middle of it. A task's value is 1 plus the sum of its needs' values, so that every answer can be checked.

What else may go wrong: a rank dies and is found out later, by an alarm or by its silence; a rank is only stopped, is given
up, and goes on as a *ghost* that still talks; the whole job stands still for a while; all task processes of a rank die at once
with their template; a client vanishes; the disk of the journal is full. Messages of different links overtake one another. None is
doubled: neither MPI nor a stream can do that.

Several ranks may share a node, with memory and accelerators that tasks ask for. What runs is accounted for where it runs, apart from
what the manager thinks: no slot, byte or accelerator is ever used twice. Ranks of one slot run functions on communicators, which
are played, too: see `played_teams`.

The job may be killed at any moment, and its allocation may end. Another simulation then goes on with what is on disk: see `Past`.

Every change of a task's status is compared with `TRANSITIONS`, every begin of an attempt with what came before it.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from exex.manager import near
from exex.manager.liveness import PAUSE
from exex.manager.loop import ManagerLoop, Settings
from exex.manager.nodes import WorkerRecord
from exex.manager.records import Again, records_of
from exex.manager.task import CachedTask, Status
from exex.protocol.messages import (
    AppSpec,
    Assign,
    Join,
    Outcome,
    Retract,
)
from exex.record.recorder import Recorder
from exex.store import exchange as exchanges
from exex.worker.slot import Call
from tests.sim.checks import (
    check_all_told,
    check_cached,
    check_end,
    check_nothing_left,
    check_placed,
    check_retract,
    check_silence,
    could_ever_run,
)
from tests.sim.misfortunes import Misfortunes
from tests.sim.network import ManagersEnd, SimNetwork
from tests.sim.played_client import (
    MANAGER,
    MEMORY_BYTES,
    Identity,
    SimClient,
    identity_of,
    is_cached,
    value_of,
)
from tests.sim.played_data import CHUNK, Data
from tests.sim.played_journal import PlayedJournal
from tests.sim.played_teams import PlayedTeams
from tests.sim.played_worker import SimWorker
from tests.sim.traced_tasks import ALLOWED, TracedTask, tracing
from tests.sim.usage import Usage


@contextmanager
def small_values() -> Iterator[None]:
    """Values of some bytes are large, for as long as this lasts: worth a wait, and several chunks."""
    sizes: list[tuple[Any, str, float]] = [
        (near, "LEAST_BYTES", 1), (near, "BYTES_PER_S", 10.0), (exchanges, "CHUNK_BYTES", CHUNK), (exchanges, "WINDOW_BYTES", 2 * CHUNK)
    ]  # fmt: skip
    before = [getattr(module, name) for module, name, _ in sizes]
    for module, name, size in sizes:
        setattr(module, name, size)
    try:
        yield
    finally:
        for (module, name, _), size in zip(sizes, before):
            setattr(module, name, size)


STORY = 60
MIXED_S, SHORT_S = (1e-6, 0.01, 3.0), (1e-6,)
SMALL_BYTES, LARGE_BYTES = 2500, 10**6
"""Memory for results: soon full, and never full."""


@dataclass
class Past:
    """What is left of the lives of a job: the next one has the same script, and what is on disk.

    Attributes:
        lives: how many there were.
        disk: committed rows of the journal.
        attempts: that have begun in them.
    """

    lives: int = 0
    disk: dict[bytes, bytes] = field(default_factory=dict)
    attempts: int = 0
    story: deque[str] = field(default_factory=lambda: deque(maxlen=STORY))


class Simulation:
    """See the module docstring.

    Args:
        seed: chooses everything.
        tasks: of each client.
        ranks: workers.
        lose_ranks: how many workers are lost on the way (never the last one), or stopped for a while.
        lose_clients: how many clients vanish.
        visitors: the clients come over a network, and few results of each may wait for it.
        lose_templates: how often all task processes of a rank die at once.
        hang_rate: of the calls that have a time limit.
        cache_rate: of calls that are cached.
        frail_disk: None for no journal; whether its disk is full now and then, and damages rows.
        small_memory: results do not stay in the manager's memory for long.
        big_rate: of the calls that ask for more than a slot; `near_rate`: of those that prefer a node.
        team_rate: of the calls that run on communicators.
        ranks_per_node: all but perhaps the last node have so many.
        memory_bytes: of each node, 0 for unknown; `gpus`: its accelerators.
        limit_s: silence after which the manager gives up a rank; 0 for never.
        pauses: how often the whole job stands still for longer than that.
        data_rate: of values and arguments that are stored on the nodes; 0: there are no stores.
        lose_files: how many of these vanish.
        nest_rate: of the attempts that make tasks.
        kill_at: the step at which the job is killed; -1 for never.
        end_at: the step at which the manager learns that the allocation ends soon; -1 for never.
        notices: how often it is told so by a signal.
        lives: how often the script is run, at least.
        lengths_s: running times that attempts tell of.
        prefetch_s: how much is queued at workers.
        past: what earlier lives have left.

    Attributes:
        goes_on: there is to be another life.
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
        *,
        cache_rate: float = 0.3,
        frail_disk: bool | None = None,
        small_memory: bool = False,
        big_rate: float = 0.0,
        near_rate: float = 0.0,
        team_rate: float = 0.0,
        ranks_per_node: int = 1,
        memory_bytes: int = 0,
        gpus: int = 0,
        limit_s: float = 0.0,
        pauses: int = 0,
        data_rate: float = 0.0,
        lose_files: int = 0,
        nest_rate: float = 0.0,
        kill_at: int = -1,
        end_at: int = -1,
        notices: int = 0,
        lives: int = 1,
        lengths_s: Sequence[float] = MIXED_S,
        prefetch_s: float = 0.005,
        visitors: bool = False,
        past: Past | None = None,
    ) -> None:
        self.visitors = visitors
        self.lengths_s, self.prefetch_s = lengths_s, prefetch_s
        self.past = past = past or Past()
        self.seed, self.failure_rate, self.death_rate, self.cancel_rate = seed, failure_rate, death_rate, cancel_rate
        self.rng = random.Random(f"{seed} life {past.lives}")
        self.hang_rate, self.cache_rate, self.limit_s = hang_rate, cache_rate, limit_s
        self.lose_ranks, self.lose_clients, self.lose_templates = lose_ranks, lose_clients, lose_templates
        self.pauses, self.kill_at, self.end_at, self.notices = pauses, kill_at, end_at, notices
        self.goes_on = past.lives + 1 < lives
        self.big_rate, self.near_rate, self.ranks_per_node = big_rate, near_rate, ranks_per_node
        self.memory_bytes, self.gpus = memory_bytes, gpus
        self.team_rate = team_rate
        self.data_rate, self.lose_files = data_rate, lose_files
        self.nest_rate, self.waits, self.inner_clients = nest_rate, 0, 0
        self.node_of: dict[int, str] = {}
        home = random.Random(f"{seed} home").choice(["node0", "apart"])
        self.data = Data(self, home)
        self.usage = Usage(self)
        self.teams = PlayedTeams(self)
        self.misfortunes = Misfortunes(self)
        self.impossible: set[int] = set()  # tasks that failed because no nodes can meet what they ask for
        self.now = 0.0
        self.network = SimNetwork(self.rng)
        self.story = past.story
        self.begun: Counter[tuple[int, int]] = Counter()
        self.ran: Counter[tuple[int, int]] = Counter()
        self.excuses: Counter[int] = Counter()  # attempts of each task that failed or were lost
        self.starvings: Counter[int] = Counter()
        self.again: set[tuple[int, int]] = set()  # attempts that make again what was lost
        self.owed_drops: set[tuple[int, int]] = set()  # (rank, task) that must still be told
        self.asked: set[int] = set()  # ranks that have not answered a Retract
        self.asked_back = 0  # tasks
        self.heard_s: dict[int, float] = {}  # when the manager has received something of a rank
        self.paused_s = self.turned_s = self.busy_s = 0.0
        self.done_apps: set[int] = set()  # of which an attempt has succeeded, so that their length is known
        self.done_calls: set[Identity] = set()
        self.failed_calls: set[Identity] = set()
        self.keys: dict[Identity, bytes] = {}
        self.identities: dict[bytes, Identity] = {}
        self.to_be_told: set[int] = set()  # clients that the manager knew when it ended the job
        self.small_memory = small_memory
        self.journal = None if frail_disk is None else PlayedJournal(past.disk, self.rng, self.tell, frail_disk)
        self.manager_loop = self._new_loop(ranks)
        self.manager = self.manager_loop.state
        if self.journal is not None:
            self.manager.memo.preload(list(past.disk.items())[: self.rng.choice([0, 3, 1000])])
        self.workers = {rank: SimWorker(self, rank, slots) for rank in range(1, ranks + 1)}
        self.slots_before_losses = Counter({one.node: 0 for one in self.workers.values()})
        for one in self.workers.values():
            self.slots_before_losses[one.node] += one.slots
        self.ghosts: list[SimWorker] = []
        self.clients = [SimClient(self, number, tasks) for number in range(clients)]

    def _new_loop(self, ranks: int) -> ManagerLoop:
        """The real loop, with an ear at four of its methods."""
        settings = Settings(
            "1", "3.11.0", 0, frozenset(range(1, ranks + 1)), "run", 1e9, 1e9, self.prefetch_s,
            heartbeat_limit_s=self.limit_s, memory_bytes=SMALL_BYTES if self.small_memory else LARGE_BYTES, grace_s=0.5,
            store=self.data.store(self.data.home).directory, store_key=self.data.home if self.data_rate else "", keep_bytes=1,
            listens=self.visitors, client_bytes=self.rng.choice([300, 3000, 1 << 30]) if self.visitors else 0,
        )  # fmt: skip
        end = self.network.end(MANAGER)
        queues: dict[bool, list] = {True: [], False: []}
        workers = ManagersEnd(end, True, queues, self._on_heard)
        loop = ManagerLoop(
            settings,
            workers,
            None,
            lambda: None,
            clock=lambda: self.now,
            journal=self.journal,
            record=self.new_recorder(),
            reach=self.teams,
            exchange=self.data.exchange(MANAGER, self.data.home, lambda peer, message: loop._to_worker(peer, message)) if self.data_rate else None,
        )
        loop.listen(ManagersEnd(end, False, queues, lambda number: None))
        self._finish_task, self._take_assign, self._lose_worker = loop.state.finish_task, loop.state.take_assign, loop.lose_worker
        loop.state.finish_task = self.finish_task  # type: ignore[method-assign]
        loop.state.take_assign = self.take_assign  # type: ignore[method-assign]
        loop.lose_worker = self.lose_worker  # type: ignore[method-assign]
        self._to_worker = loop._to_worker
        loop._to_worker = self.to_worker  # type: ignore[method-assign]
        return loop

    def new_recorder(self) -> Recorder | None:
        """What is told of all that happens; nothing, unless a test wants it."""
        return None

    @classmethod
    def of_seed(cls, seed: int, past: Past | None = None) -> Simulation:
        """A world and its misfortunes, all chosen by the seed."""
        rng = random.Random(f"world {seed}")
        clients = rng.choice([1, 1, 1, 2, 3])
        lives = rng.choice([1, 1, 1, 2, 2, 3])
        past = past or Past()
        life = random.Random(f"world {seed} life {past.lives}")
        teams = random.Random(f"world {seed} teams")
        stored = random.Random(f"world {seed} data")
        is_last = past.lives + 1 >= lives
        queues = random.Random(f"world {seed} queues")
        nesting = random.Random(f"world {seed} nesting")
        has_queues = queues.random() < 0.2  # many tasks, and long queues
        team_rate = teams.choice([0.0, 0.3, 0.7])
        has_teams = team_rate > 0 and teams.random() < 0.8
        return cls(
            seed,
            tasks=rng.choice([20, 40, 80]) * (1 + 2 * has_queues) // clients + 1,
            ranks=rng.randint(1, 6) + 2 * has_teams,
            slots=1 if has_teams else rng.randint(1, 3),
            clients=clients,
            lose_ranks=rng.choice([0, 1, 1, 2, 4]),
            failure_rate=rng.choice([0.0, 0.05, 0.3]),
            death_rate=rng.choice([0.0, 0.05, 0.2]),
            cancel_rate=rng.choice([0.0, 0.5, 1.0]),
            hang_rate=rng.choice([0.0, 0.3]),
            lose_clients=rng.choice([0, 0, 1]),
            lose_templates=rng.choice([0, 1, 3]),
            cache_rate=rng.choice([0.0, 0.3, 0.9]),
            frail_disk=rng.choice([None, False, False, True]),
            small_memory=rng.choice([False, True]),
            big_rate=rng.choice([0.0, 0.2, 0.5, 0.9]),
            near_rate=rng.choice([0.0, 0.3]),
            team_rate=team_rate,
            ranks_per_node=rng.choice([1, 1, 2, 3]),
            memory_bytes=rng.choice([0, MEMORY_BYTES, 3 * MEMORY_BYTES]),
            gpus=rng.choice([0, 1, 2, 3]),
            limit_s=rng.choice([0.0, 5.0, 10.0]),
            pauses=rng.choice([0, 0, 2]),
            data_rate=stored.choice([0.0, 0.3, 0.9]),
            lose_files=stored.choice([0, 0, 1, 4]),
            nest_rate=nesting.choice([0.0, 0.0, 0.3, 0.6]),
            kill_at=-1 if is_last else life.choice([-1, life.randrange(300), life.randrange(3000)]),
            end_at=-1 if is_last else life.choice([-1, -1, life.randrange(100), life.randrange(1000)]),
            notices=0 if is_last else life.choice([0, 0, 1, 2]),
            lives=lives,
            lengths_s=queues.choice([MIXED_S, MIXED_S, SHORT_S]),
            prefetch_s=100.0 if has_queues else 0.005,
            past=past,
        )

    def tell(self, event: str) -> None:
        """Put an event into the story; what is kept of it is printed if this seed fails."""
        self.story.append(f"{self.now:8.3f} {event}")

    # ---- tasks ----

    def begin(self, call: Call, rank: int) -> None:
        """A task process begins a call. No attempt begins twice, and no second one begins without a reason."""
        self.tell(f"rank {rank}: task {call.task} attempt {call.attempt} begins")
        key = (call.task, call.attempt)
        self.begun[key] += 1
        assert self.begun[key] == 1, f"task {call.task} attempt {call.attempt} began twice"
        assert key in self.again or call.attempt <= 1 + self.excuses[call.task] + self.starvings[call.task], (
            f"task {call.task} attempt {call.attempt} began though nothing was lost"
        )
        if rank in self.workers:
            self.usage.begin(call, rank)

    def manager_app(self, number: int) -> AppSpec | None:
        """What the manager knows of the app of a task that has not ended."""
        task = self.manager.tasks.get(number)
        return None if task is None or task.app is None else task.app.spec

    def to_worker(self, rank: int, message: object) -> None:
        """In place of the manager's: what it says about functions on communicators."""
        if type(message) is Join:
            self.teams.note_join(rank, message)
        elif type(message) is Assign:
            self.teams.check_assigned(rank, message.tasks)
        elif type(message) is Retract:
            check_retract(self, rank, message)
        self._to_worker(rank, message)

    def compute(self, call: Call) -> tuple[int, bytes]:
        """Outcome and value of a call."""
        if self.rng.random() < self.failure_rate:
            self.excuses[call.task] += 1
            return Outcome.FAILED, b"error"
        return Outcome.DONE, self.value_of(call)

    def value_of(self, call: Call) -> bytes:
        """The only right result of a call."""
        return b"%d" % value_of(identity_of(self.data.open(call.payload), self.data.open_all(call.values)))

    def could_lose_value(self) -> bool:
        """Whether a value may be lost for good: its node was lost, or the file has vanished, and making it again has failed."""
        return bool(self.data_rate and (self.data.vanished or self.manager_loop.lost))

    def may_be_lost(self, name: str) -> bool:
        """The same of one."""
        return self.could_lose_value()

    def is_stored(self, call: Call) -> bool:
        """Whether the value of a call stays where it was made."""
        return not is_cached(self.data.open(call.payload)) and not call.spec.ranks and self.rng.random() < self.data_rate

    def hangs(self, call: Call) -> bool:
        """Whether this attempt never ends by itself."""
        chosen = random.Random(f"{self.seed} {self.past.lives} {call.task} {call.attempt}").random()
        return call.spec.walltime_s is not None and chosen < self.hang_rate

    def finish_task(self, task: TracedTask, outcome: int, *args: object) -> None:
        """In place of the manager's: the end, too, must be one that `TRANSITIONS` knows."""
        end = {Outcome.DONE: "done", Outcome.CANCELLED: "cancelled"}.get(Outcome(outcome), "failed")
        assert (task.status.name.lower(), end) in ALLOWED, f"task {task.id}: {task.status.name} -> {end}"
        if task.status == Status.ASSIGNED and end != "cancelled":
            self.teams.check_ended(task.id, end == "done")
        if end == "cancelled" and task.status == Status.ASSIGNED and task.id not in self.manager.teams:
            self.owed_drops.add((task.rank, task.id))
        if end == "failed" and task.status == Status.READY:
            assert task.app is not None and not could_ever_run(self, task.app.spec), f"task {task.id} failed, but could run"
            self.impossible.add(task.id)
        if end == "done" and task.app is not None and task.status == Status.ASSIGNED:
            self.done_apps.add(task.app.number)
        if isinstance(task, CachedTask) and end != "cancelled":
            self._finish_cached(task, outcome)
        self._finish_task(task, outcome, *args)  # type: ignore[arg-type]

    def _finish_cached(self, task: CachedTask, outcome: int) -> None:
        if outcome == Outcome.DONE:
            identity = self.identity(task)
            self.done_calls.add(identity)
            if task.status == Status.ASSIGNED and self.journal is not None:
                known = self.journal.has(task.key) or task.key in self.journal.lost
                assert known, f"the result of task {task.id} is not recorded"
        elif outcome != Outcome.NEED_FAILED and task.status != Status.WAITING:
            self.failed_calls.add(self.identity(task))

    def identity(self, task: CachedTask) -> Identity:
        """What a call computes. Equal ones have one key, different ones different keys."""
        identity = identity_of(self.data.open(task.payload), self.data.open_all(task.values))
        assert self.keys.setdefault(identity, task.key) == task.key, f"{identity} has two keys"
        assert self.identities.setdefault(task.key, identity) == identity, (
            f"{identity} has the key of {self.identities[task.key]}"
        )
        return identity

    def take_assign(self, record: WorkerRecord) -> Assign:
        """In place of the manager's: what was placed in this turn may begin now."""
        for task in record.outgoing or ():
            self.starvings[task.id] = max(self.starvings[task.id], self.manager.data.starved.get(task.id, 0))
            if isinstance(task, Again):
                self.again.add((task.id, task.attempt))
            check_placed(self, task)
            if isinstance(task, CachedTask):
                check_cached(self, task)
        return self._take_assign(record)

    def is_rare(self, number: int) -> bool:
        """Whether a task is where few are: set aside, waiting for the journal, or on a communicator."""
        task = self.manager.tasks.get(number)
        is_fetched = isinstance(task, CachedTask) and task.key in self.manager.memo._fetching
        return is_fetched or number in self.manager.teams or (task is not None and task.status == Status.SHELVED)

    def check_saved(self, done: set[Identity]) -> None:
        """A checkpoint was made: what its client had been answered before is on disk."""
        assert self.journal is not None
        for identity in done:
            assert self.journal.is_safe(self.keys[identity]), f"{identity} is not on disk after the checkpoint"

    # ---- events ----

    def turn(self) -> None:
        """One turn of the manager, whose own errors and refusals are failures of the simulation."""
        loop = self.manager_loop
        was_out = loop.out_of_time
        with tracing():
            loop.turn()
        self.turned_s = self.now
        assert not loop.error, loop.error
        assert self.workers.keys() == self.manager.workers.keys() | loop._missing, "a worker was refused"
        data = self.manager.data
        left = [
            task
            for task in self.manager.tasks.values()
            if getattr(task, "taken_out", False) and not any(task.id in record.waiters for record in records_of(task))
        ]
        assert not data.has_work() or not loop.next_s(), "something is left to do, and nobody will see to it"
        assert not left, f"cancelled, but not ended: {left}"
        assert not any(client.finished for client in self.manager.clients.values()), "something of a client that is gone is left"
        check_silence(self)
        check_end(self, was_out)

    def step(self) -> bool:
        """One thing happens; False once every client has all answers."""
        self._pass_time(self.rng.choice([0.0, 0.001, 0.1]))
        choice = self.rng.random()
        if choice < 0.4:
            self.network.step()
        elif choice < 0.6:
            self.turn()
        elif choice < 0.7:
            self.rng.choice(self.clients).act()
            self.teams.deliver()
        elif choice < 0.8:
            self._any_worker().handle()
        elif choice < 0.995:
            one = self._any_worker()
            one.run_slot(one.processes[self.rng.randrange(len(one.processes))])
        else:
            self.misfortunes.strike()
        if self.journal is not None and choice > 0.9:
            self.journal.step()
        return any(client.left() for client in self.clients)

    def _pass_time(self, seconds: float) -> None:
        """Time passes; nobody who lives is late by more than heartbeats allow for."""
        self.now += seconds
        if not self.limit_s:
            return
        is_late = self.now - self.turned_s > self.limit_s * PAUSE / 2
        for one in self.workers.values():
            if one.is_up() and self.now - self.heard_s.get(one.rank, 0.0) > self.limit_s / 2:
                one.handle()
                self.network.deliver(one.rank, MANAGER)
                is_late = True
            elif one.part is not None and not one.dead and self.now - self.heard_s.get(one.rank, 0.0) > self.limit_s / 2:
                is_late = True  # its guard can be asked
        if is_late:
            self.turn()

    def _any_worker(self) -> SimWorker:
        return self.rng.choice([*self.workers.values(), *self.ghosts])

    def _give_up(self, one: SimWorker) -> None:
        """A guard's alarm."""
        with tracing():
            self.manager_loop.lose_worker(one.rank, "simulated loss")

    def give_up(self, one: SimWorker) -> None:
        """The alarm of a guard whose rank has died inside of a function."""
        if not self.manager_loop._missing:
            self._give_up(one)

    def lose_worker(self, rank: int, how: str) -> None:
        """In place of the manager's: it takes a rank for lost. Words of it may still be under way."""
        self.tell(f"the manager gives up rank {rank}: it {how}")
        one = self.workers[rank]
        if how.startswith("was not heard of"):
            silent_s = self.now - max(self.heard_s[rank], self.paused_s)
            assert silent_s > self.limit_s, f"rank {rank} is given up, but was heard of {silent_s} s ago"
            assert one.dead or self.now < one.thaws_s + self.limit_s, f"rank {rank} is given up, but it is well"
        del self.workers[rank]
        if not one.dead:
            self.ghosts.append(one)
        self.owed_drops = {(other, task) for other, task in self.owed_drops if other != rank}
        self.usage.forget(rank)
        self.teams.forget(rank)
        for number, team in self.manager.teams.items():
            if rank in team.ranks:
                self.teams.excuse(number)
        for task in self.manager.tasks.values():
            if task.status == Status.ASSIGNED and task.rank == rank and task.id not in self.manager.teams:
                self.excuses[task.id] += 1
        for number, holding in self.manager.holdings.items():
            if number not in self.manager.teams and holding.lead.rank != rank and any(other.rank == rank for other in holding.lent):
                self.excuses[number] += 1
                if number not in self.manager.broken and number in self.manager.tasks:
                    self.owed_drops.add((holding.lead.rank, number))
        self._lose_worker(rank, how)

    def _on_heard(self, rank: int) -> None:
        self.heard_s[rank] = self.now

    # ---- to the end ----

    def run(self) -> None:
        """To the end of this life, with every invariant checked on the way."""
        with small_values():
            self._run()

    def _run(self) -> None:
        loop = self.manager_loop
        steps = 0
        while self.step() and not loop.out_of_time:
            steps += 1
            if steps % 7 == 0:
                self.manager.check()
            if steps == self.end_at:
                self.misfortunes.learn_end()
            if steps == self.kill_at:
                self.tell("the job is killed")
                return
            assert steps < 200_000, "the tasks do not end"
        self.drain()
        self.manager.check()
        if self.journal is not None:
            self.journal.close()
        if loop.out_of_time:
            self.goes_on = True
            check_all_told(self)
        else:
            check_nothing_left(self)

    def drain(self) -> None:
        """Let everything that is under way arrive; afterwards nothing may be left anywhere."""
        loop = self.manager_loop
        for _ in range(20000):
            self._pass_time(0.05)
            for one in [one for one in self.workers.values() if one.dead and not self.limit_s]:
                self._give_up(one)
            while self.network.step() is not None:
                pass
            self.turn()
            for client in self.clients:
                client.act()
            while self.teams.words:
                self.teams.deliver()
            for one in [*self.workers.values(), *self.ghosts]:
                one.handle()
                for process in list(one.processes):
                    if process in one.processes:
                        one.run_slot(process)
            if self.journal is not None:
                self.journal.step()
            if self.network.under_way() or (self.journal is not None and not self.journal.is_quiet()):
                continue
            if any(one.part is None and one.is_up() and one.needs.exchange._arrivals for one in self.workers.values()):
                continue
            if loop.finished or (loop.idle() and not any(client.is_waiting() for client in self.clients)):
                return
        raise AssertionError(f"not idle: {list(self.manager.tasks.values())[:5]} {self.manager.dropped}")
