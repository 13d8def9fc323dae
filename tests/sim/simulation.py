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

import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from exex.manager import near, transitions
from exex.manager.liveness import LOOKS, PAUSE
from exex.manager.loop import QUIET_S, ManagerLoop, Settings
from exex.manager.nodes import WorkerRecord
from exex.manager.records import Again, records_of
from exex.manager.task import TRANSITIONS, CachedTask, Status, Task
from exex.protocol import codec
from exex.protocol.messages import (
    Absent,
    AppSpec,
    Assign,
    Beat,
    Bye,
    Done,
    Drop,
    Grant,
    Hello,
    Join,
    Outcome,
    Part,
    Retract,
    Share,
    Stop,
    ToTasks,
)
from exex.protocol.payload import Stored
from exex.record.recorder import Recorder
from exex.store import exchange as exchanges
from exex.transport.base import Link
from exex.transport.memory import InProcess, Network
from exex.worker import filling, giving_back, waiting
from exex.worker import state as worker
from exex.worker.needs import Needs
from exex.worker.relay import Relay
from exex.worker.stored import value_name
from tests.sim.played_client import (
    CLIENT_BASE,
    MANAGER,
    MEMORY_BYTES,
    Identity,
    SimClient,
    has_outputs,
    identity_of,
    is_cached,
    value_of,
)
from tests.sim.played_data import CHUNK, Data
from tests.sim.played_journal import PlayedJournal
from tests.sim.played_nesting import PlayedInner, is_parent
from tests.sim.played_teams import PlayedPart, PlayedTeams


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


ALLOWED = {(old, new) for old, new, _ in TRANSITIONS if old}
STORY = 60
MIXED_S, SHORT_S = (1e-6, 0.01, 3.0), (1e-6,)
BEATS = 8
"""Beats of a worker within the limit of silence."""
SMALL_BYTES, LARGE_BYTES = 2500, 10**6
"""Memory for results: soon full, and never full."""


class _Traced:
    """For tasks: refuses a change of the status that is not in `TRANSITIONS`."""

    __slots__ = ()

    def __init__(self, *args: object) -> None:
        self._status: Status | None = None
        self.taken_out = False
        super().__init__(*args)

    @property
    def status(self) -> Status:  # type: ignore[override]
        assert self._status is not None
        return self._status

    @status.setter
    def status(self, new: Status) -> None:
        old = self._status
        self._status = new
        if new == Status.READY:
            self.taken_out = False
        if old is None or old == new:
            return
        if old in (Status.READY, Status.SHELVED) and new == Status.WAITING:  # how `cancel` takes it out, or what it needs is lost
            self.taken_out = True
            return
        assert (old.name.lower(), new.name.lower()) in ALLOWED, f"task {self.id}: {old.name} -> {new.name}"


class TracedTask(_Traced, Task):  # type: ignore[misc]
    """A task that is traced."""

    __slots__ = ("_status", "taken_out")


class TracedCachedTask(_Traced, CachedTask):  # type: ignore[misc]
    """A call of a cached app that is traced."""

    __slots__ = ("_status", "taken_out")


@contextmanager
def tracing() -> Iterator[None]:
    """Tasks that are made meanwhile are traced."""
    transitions.Task, transitions.CachedTask = TracedTask, TracedCachedTask  # type: ignore[misc]
    try:
        yield
    finally:
        transitions.Task, transitions.CachedTask = Task, CachedTask  # type: ignore[misc]


class PlayedProcess:
    """A task process: runs what it was given, in order, one step at a time."""

    slot: worker.Slot

    def __init__(self) -> None:
        self.client: PlayedInner | None = None  # once a task of it has made tasks
        self.is_seated = True
        self.given: list[worker.Call] = []
        self.started = 0  # calls begun; the last ones may not be reported yet
        self.results: list[tuple[int, bytes, float]] = []  # of calls that have ended and are not reported
        self.killed: int | None = None
        self.measured = False
        self.starved: set[int] = set()  # of all that were given, those that found a file missing
        self.dropped = 0  # given, and not in the list any more

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

    def go_on(self, home: list[int], cores: list[int]) -> None:
        assert not self.is_seated, "a task that does not wait is told to go on"
        self.is_seated = True


class SimWorker:
    """A worker rank: the real state, played processes, one message handled per step."""

    def __init__(self, sim: Simulation, rank: int, slots: int) -> None:
        self.sim = sim
        self.rank = rank
        self.slots = slots
        self.node = f"node{(rank - 1) // sim.ranks_per_node}"
        self.processes = [PlayedProcess() for _ in range(slots)]
        per_process = sim.rng.choice([0, 0, 1, 5])
        self.state = worker.WorkerState(rank, self.node, list(self.processes), tasks_per_process=per_process)
        for process, slot in zip(self.processes, self.state.slots):
            process.slot = slot
        self.state.new_place = self._new_place if sim.nest_rate else None
        self.relay = Relay(self.state)
        self.inner: dict[int, PlayedInner] = {}
        self._inner_numbers = itertools.count()
        self.link: Link = sim.network.end(rank)
        self.encoder, self.decoder = codec.Encoder(), codec.to_worker()
        self.stopped = False
        self.dead = False  # and the manager does not know
        self.thaws_s = -1e9  # it is stopped until then
        self.said_s = 0.0
        self.part: PlayedPart | None = None  # it runs a function on a communicator, and does nothing else
        sim.node_of[rank] = self.node
        self.needs = Needs(sim.data.exchange(rank, self.node, self.say, self.say_absent), 0, True, lambda message: self.say(MANAGER, message))
        gpus = [f"g{i}" for i in range(sim.gpus)]
        key = self.node if sim.data_rate else ""
        hello = Hello("1", "3.11.0", self.node, rank, slots, "", [], memory_bytes=sim.memory_bytes, gpus=gpus, store=key)
        self.link.send(MANAGER, self.encoder.encode(hello))

    def _new_place(self, number: int) -> worker.Slot:
        process = PlayedProcess()
        self.processes.append(process)
        process.slot = worker.Slot(number, process)
        return process.slot

    def new_client(self, client: PlayedInner) -> int:
        """A number for a task process that is a client."""
        number = next(self._inner_numbers)
        self.inner[number] = client
        return number

    def report_results(self, process: PlayedProcess) -> None:
        """What earlier calls of a task process have come to, before its task waits."""
        if process.results:
            self._report(process)

    def say(self, peer: int, message: object) -> None:
        """Send a message to the manager, or to another rank."""
        self.link.send(peer, self.encoder.encode(message))

    def say_absent(self, names: list[str]) -> None:
        """Somebody has asked here in vain."""
        self.say(MANAGER, Absent(names=names))

    def is_up(self) -> bool:
        """Whether it does anything now."""
        return not (self.stopped or self.dead or self.sim.now < self.thaws_s)

    def handle(self) -> None:
        now = self.sim.now
        if not self.is_up() or self.part is not None:
            return
        while (arrived := self.link.receive()) is not None:
            message = self.decoder.decode(arrived[1])
            if arrived[0] != MANAGER:
                self.needs.on_message(arrived[0], message)
            elif type(message) is Assign:
                worker.on_assign(self.state, message, self.needs.lacking(message))
            elif type(message) is Drop:
                self.sim.owed_drops.difference_update((self.rank, task) for task in message.tasks)
                worker.on_drop(self.state, message, now)
            elif type(message) is Retract:
                self._retract(message)
            elif type(message) is ToTasks:
                for task in message.seats:
                    waiting.on_seat(self.state, task)
                for number, said in zip(message.processes, message.messages):
                    if number in self.inner:
                        self.inner[number].hear(said)
            elif type(message) is Join:
                worker.on_join(self.state, message)
            elif type(message) is Stop:
                self.stopped = True
                self.sim.teams.back(self.rank)  # it will not begin a part any more
                self.link.send(MANAGER, self.encoder.encode(Bye(tasks_run=self.state.tasks_run)))
                return
            elif type(message) is not Beat:
                self.needs.on_message(MANAGER, message)
        self.needs.turn(self.state)
        self.needs.tick(now)
        worker.on_tick(self.state, now)
        for process in self.processes:
            slot = process.slot
            if process.measured and self.sim.rng.random() < 0.5:
                process.measured = False
                worker.on_measured(self.state, slot, self.sim.rng.choice([MEMORY_BYTES, MEMORY_BYTES + 1]), 1e-4, now)
        waiting.end_spares(self.state, now)
        filling.fill(self.state, now)
        assert all(len(slot.held) == 1 for slot in self.state.slots if any(call.grant is not None for call in slot.held))
        said = self.relay.take()
        if said is not None:
            self.say(MANAGER, said)
        done = self.state.take_done()
        if done is not None:
            for task, outcome in zip(done.tasks, done.outcomes):
                if outcome in (Outcome.STARVED, Outcome.CANCELLED) and self in self.sim.workers.values():
                    self.sim.teams.starve(self.rank, task)
            self.said_s = now
            self.link.send(MANAGER, self.encoder.encode(done))
        elif self.sim.limit_s and now - self.said_s >= self.sim.limit_s / BEATS:
            self.said_s = now
            self.link.send(MANAGER, self.encoder.encode(Beat()))
        if self.state.parts:
            holds = [call.task for slot in self.state.slots for call in slot.held]
            assert not self.state.queue and not self.state.big and not holds, f"rank {self.rank}: {holds} at the begin of a part"
            assert not self.state.aside
            join, call = self.state.parts.popleft()
            self.part = PlayedPart(self, join, call)

    def _retract(self, message: Retract) -> None:
        """What is asked back is given back, or has begun: nothing between."""
        giving_back.on_retract(self.state, message)
        returned = self.state.take_returned()
        assert returned is not None and set(returned.tasks) <= set(message.tasks)
        unbegun = {call.task for call in self.state.queue if not call.losses}
        for process in self.processes:
            unbegun.update(call.task for call in process.given[process.started :])
        assert not unbegun & set(message.tasks), f"rank {self.rank}: {unbegun} have not begun, and are kept"
        here = {call.task for slot in self.state.places() for call in slot.held} | unbegun
        assert not here & set(returned.tasks), f"rank {self.rank}: {returned.tasks} are given back, and kept"
        self.sim.tell(f"rank {self.rank}: gives {returned.tasks} back of {message.tasks}")
        self.sim.asked.discard(self.rank)
        self.link.send(MANAGER, self.encoder.encode(returned))

    def _step_part(self) -> None:
        """Inside of a function on a communicator."""
        part = self.part
        assert part is not None
        end = part.step()
        if end is None or self.dead:
            return
        self.part, (outcome, value) = None, end
        task, seconds = part.comm.task, self.sim.rng.choice([1e-6, 0.01, 3.0])
        if self.rank == part.comm.ranks[0]:
            done: Done | Part = Done(tasks=[task], outcomes=bytes([outcome]), payloads=[value], seconds=[seconds], started=[])
        else:
            done = Part(task=task, outcome=outcome, payload=value, seconds=seconds)
        self.said_s = self.sim.now
        if self in self.sim.workers.values():
            self.sim.teams.back(self.rank)
        self.link.send(MANAGER, self.encoder.encode(done))

    def run_slot(self, process: PlayedProcess) -> None:
        """One step of a task process: begin the next call, or end the one that was begun; or of a function in the rank itself."""
        if not self.is_up():
            return
        if self.part is not None:
            self._step_part()
            return
        slot, rng = process.slot, self.sim.rng
        unreported = self._unreported(process)
        if process.killed is not None:
            self._die(process, -process.killed)
        elif len(unreported) > len(process.results):
            if process.client is None or not process.client.phase:
                self._end_call(process, unreported[-1])
            elif rng.random() < self.sim.death_rate / 4:
                self._die(process, -11)
            elif process.client.step():
                process.client.end()
                self._end_call(process, unreported[-1])
        elif process.results and (rng.random() < 0.5 or process.started == len(process.given)):
            self._report(process)
        elif process.started < len(process.given):
            process.started += 1
            call = process.given[process.started - 1]
            if self._lacks(call):
                process.starved.add(process.started - 1 + process.dropped)
                return
            helping = sum(other.helps is call for other in self.state.slots)
            assert slot.helps is None, f"task {call.task} begins on a slot that another holds"
            assert helping == (call.grant.slots - 1 if call.grant else 0), f"task {call.task} has {helping} slots beside its own"
            self.sim.begin(call, self.rank)
            if is_parent(self.sim, call):
                if process.client is None:
                    process.client = PlayedInner(self, process)
                process.client.begin(call)
        if len(process.given) > 200:
            reported = len(process.given) - len(slot.held)
            del process.given[:reported]
            process.started -= reported
            process.dropped += reported

    def _lacks(self, call: worker.Call) -> bool:
        """Whether a file is missing that a call would map. That must have a reason if anybody wants the call."""
        missing = [value for value in (call.payload, *(call.values or ())) if isinstance(value, Stored) and not self.needs.exchange.has(value.name)]
        task = self.sim.manager.tasks.get(call.task)
        if missing and task is not None and task.rank == self.rank and self.rank in self.sim.workers and task.attempt == call.attempt:
            assert any((value.name, self.node) in self.sim.data.vanished for value in missing), f"{missing} are gone, and task {call.task} needs them"
        return bool(missing)

    def _unreported(self, process: PlayedProcess) -> list[worker.Call]:
        """Calls that a process has begun and not reported, in order."""
        slot = process.slot
        reported = len(process.given) - len(slot.held)
        assert 0 <= reported <= process.started, f"slot {slot.number} of rank {self.rank}: what was begun was taken back"
        calls = process.given[reported : process.started]
        assert len(calls) - len(process.results) in (0, 1)
        return calls

    def _end_call(self, process: PlayedProcess, call: worker.Call) -> None:
        sim, rng = self.sim, self.sim.rng
        if process.started - 1 + process.dropped in process.starved:
            process.results.append((Outcome.STARVED, b"", 0.0))
            return
        if sim.hangs(call):
            return
        if rng.random() < sim.death_rate:
            self._die(process, -11)
            return
        sim.ran[call.task, call.attempt] += 1
        sim.usage.end(call.task, self.rank)
        outcome, value = sim.compute(call)
        sim.tell(f"rank {self.rank}: task {call.task} attempt {call.attempt} ends {Outcome(outcome).name}")
        if outcome == Outcome.DONE and sim.is_stored(call):
            value = self.needs.exchange.store.write(value_name(call.task, call.attempt), value)  # type: ignore[assignment,arg-type]
        process.results.append((outcome, value, rng.choice(sim.lengths_s)))
        if rng.random() < 0.7:
            self._report(process)

    def _report(self, process: PlayedProcess) -> None:
        calls = self._unreported(process)
        results, process.results = process.results, []
        outcomes, values, seconds = zip(*results)
        tasks = [call.task for call, _ in zip(calls, results)]
        done = Done(tasks=tasks, outcomes=bytes(outcomes), payloads=list(values), seconds=list(seconds), started=[])
        self.needs.adopt([value for value in values if isinstance(value, Stored)])
        worker.on_slot_done(self.state, process.slot, done, self.sim.now)

    def _die(self, process: PlayedProcess, code: int, blameless: str = "") -> None:
        sim, calls = self.sim, self._unreported(process)
        if process.client is not None:
            self.relay.gone.append(process.client.number)
            del self.inner[process.client.number]
        self.needs.on_died(process.slot.held)
        if calls:
            first = process.started - len(calls) + process.dropped
            is_begun = [first + i not in process.starved for i in range(len(calls))]
            *ended, running = calls
            sim.usage.end(running.task, self.rank)
            slot = process.slot
            condemned = slot.ending_s >= 0 and slot.condemned == running.task
            if blameless and not condemned and running.losses < worker.LOSSES_TOLERATED:
                sim.begun[running.task, running.attempt] -= is_begun[-1]  # it is begun again, as the same attempt
            else:
                sim.excuses[running.task] += 1
            sim.tell(f"rank {self.rank}: task {running.task} attempt {running.attempt} loses its process ({code})")
            for call, was_begun in zip(ended, is_begun):  # nobody knows how they ended: they may begin again
                sim.begun[call.task, call.attempt] -= was_begun
        worker.on_slot_died(self.state, process.slot, code, "", sim.now, blameless)
        process.__init__()  # type: ignore[misc]
        if self.state.slots[process.slot.number] is not process.slot:
            waiting.forget(self.state, process.slot)
            self.processes.remove(process)

    def lose_template(self) -> None:
        """All task processes are gone at once."""
        self.sim.tell(f"rank {self.rank}: the template dies")
        for process in list(self.processes):
            self._die(process, -9, "its template has ended")


class Usage:
    """Who uses what of the machine, as it really is."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.used: dict[tuple[int, int], Grant | None] = {}  # (task, rank of its lead); None for one slot there
        self.paused: set[tuple[int, int]] = set()  # those that wait

    def begin(self, call: worker.Call, rank: int) -> None:
        """An attempt begins on a rank that the manager has not given up."""
        one = self.sim.workers[rank]
        assert (call.task, rank) not in self.used
        self.used[call.task, rank] = call.grant
        spec, grant = call.spec, call.grant
        if grant is None:
            assert spec.cores <= 1 and not spec.gpus and not spec.nodes and spec.memory_bytes is None, "it has no grant"
        else:
            share = grant.shares[0]
            assert share.host == one.node and rank == share.ranks[0]
            assert len(grant.shares) == max(1, spec.nodes) or 1 <= len(grant.shares) <= spec.ranks
            assert len(set(grant.hosts)) == len(grant.hosts)
            for share in grant.shares:
                whole = spec.exclusive or (spec.nodes and not spec.cores)
                wanted = -(-spec.ranks // len(grant.shares)) if spec.ranks else max(1, spec.cores)
                is_spread = spec.ranks and sum(share.slots for share in grant.shares) >= spec.ranks  # whole nodes, unequal ones
                assert share.slots == wanted or is_spread or (whole and share.slots >= spec.cores)
                assert len(share.gpus) >= spec.gpus
        self._check()

    def end(self, task: int, rank: int) -> None:
        """An attempt has ended, whoever knows."""
        self.used.pop((task, rank), None)
        self.paused.discard((task, rank))

    def pause(self, task: int, rank: int) -> None:
        """It waits without its slots of this rank."""
        if (task, rank) in self.used:
            self.paused.add((task, rank))

    def go_on(self, task: int, rank: int) -> None:
        """It has them again."""
        self.paused.discard((task, rank))
        self._check()

    def forget(self, rank: int) -> None:
        """A rank is given up: what it does now counts no more."""
        self.used = {key: grant for key, grant in self.used.items() if key[1] != rank}
        self.paused = {key for key in self.paused if key[1] != rank}

    def _served(self, grant: Grant | None, share: Share, task: int, rank: int) -> tuple[int, list[int]]:
        """Slots that an attempt uses of a node, and the ranks that serve it there."""
        if (task, rank) not in self.paused or rank not in share.ranks:
            return share.slots, share.ranks
        return share.slots - (1 if grant is None else grant.slots), [other for other in share.ranks if other != rank]

    def _check(self) -> None:
        slots: Counter[str] = Counter()
        memory: Counter[str] = Counter()
        gpus: Counter[tuple[str, str]] = Counter()
        alone: list[str] = []
        on_node: Counter[str] = Counter()
        on_rank: Counter[int] = Counter()
        for (task, rank), grant in self.used.items():
            app = self.sim.manager_app(task)
            for share in [Share(self.sim.workers[rank].node, 1, [], [rank])] if grant is None else grant.shares:
                count, ranks = self._served(grant, share, task, rank)
                slots[share.host] += count
                on_node[share.host] += count > 0
                on_rank.update(ranks)
                gpus.update((share.host, name) for name in share.gpus)
                if app is not None and grant is not None:
                    memory[share.host] += app.memory_bytes or 0
                    is_alone = app.exclusive or (app.nodes and not app.cores)
                    alone += [share.host] if is_alone and (task, rank) not in self.paused else []
        total = Counter(self.sim.slots_before_losses)
        for host, count in slots.items():
            assert count <= total[host], f"{count} slots of {host} are in use, which has {total[host]}"
        inside = self.sim.teams.inside
        for (task, rank), grant in self.used.items():
            shares = [Share(self.sim.workers[rank].node, 1, [], [rank])] if grant is None else grant.shares
            for other in [other for share in shares for other in self._served(grant, share, task, rank)[1]]:
                assert other not in inside or self.sim.teams.comms[inside[other]].task == task, f"rank {other} is inside, and serves {task}"
        for rank, count in on_rank.items():
            assert rank not in self.sim.workers or count <= self.sim.workers[rank].slots, f"rank {rank} serves {count} tasks"
        assert all(count == 1 for count in gpus.values()), f"an accelerator is used twice: {gpus}"
        assert all(on_node[host] == 1 for host in alone), f"somebody is not alone on {alone}"
        for host, size in memory.items():
            assert not self.sim.memory_bytes or size <= self.sim.memory_bytes, f"{size} bytes of {host} are in use"


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


class SimNetwork(Network):
    """A network that can be told not to be late."""

    def deliver(self, sender: int, receiver: int) -> None:
        """Let all messages of one link arrive."""
        for frames in self._under_way.pop((sender, receiver), ()):
            self._ends[receiver].arrived.append((sender, frames))


class Simulation:
    """See the module docstring.

    Args:
        seed: chooses everything.
        tasks: of each client.
        ranks: workers.
        lose_ranks: how many workers are lost on the way (never the last one), or stopped for a while.
        lose_clients: how many clients vanish.
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
        past: Past | None = None,
    ) -> None:
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
        )  # fmt: skip
        end = self.network.end(MANAGER)
        queues: dict[bool, list] = {True: [], False: []}
        workers = _Part(end, True, queues, self._on_heard)
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
        loop.listen(_Part(end, False, queues, lambda number: None))
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

    def begin(self, call: worker.Call, rank: int) -> None:
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
            self._check_retract(rank, message)
        self._to_worker(rank, message)

    def _check_retract(self, rank: int, message: Retract) -> None:
        """Somebody gains by it: a slot is idle, a node is kept, or something better waits; and no task comes back for ever."""
        state, one = self.manager, self.manager.workers[rank]
        self.tell(f"the manager asks rank {rank} for {message.tasks} back")
        self.asked_back += len(message.tasks)
        assert message.tasks and len(message.tasks) <= one.held - one.room, f"rank {rank} is asked for more than it has queued"
        assert rank not in self.asked, f"rank {rank} is asked again before it has answered"
        self.asked.add(rank)
        first = state.ready.first()
        has_idle = any(other.held < other.open for other in state.workers.values())
        tasks = [state.tasks[number] for number in message.tasks]
        is_worse = first is not None and all(task.app.spec.priority > first.app.spec.priority for task in tasks)  # type: ignore[union-attr]
        assert has_idle or one.home.kept is not None or is_worse, f"rank {rank} is asked for tasks, and nobody gains by it"

    def could_ever_run(self, spec: AppSpec) -> bool:
        """Whether the nodes that are left can meet a request when they are idle."""
        slots: Counter[str] = Counter()
        for one in self.workers.values():
            slots[one.node] += one.slots
        has_rest = self.gpus >= spec.gpus and (not self.memory_bytes or self.memory_bytes >= (spec.memory_bytes or 0))
        if spec.ranks:
            shares = range(1, len(slots) + 1)
            return has_rest and any(sum(count * n >= spec.ranks for count in slots.values()) >= n for n in shares)
        return has_rest and sum(count >= max(1, spec.cores) for count in slots.values()) >= max(1, spec.nodes)

    def compute(self, call: worker.Call) -> tuple[int, bytes]:
        """Outcome and value of a call."""
        if self.rng.random() < self.failure_rate:
            self.excuses[call.task] += 1
            return Outcome.FAILED, b"error"
        return Outcome.DONE, self.value_of(call)

    def value_of(self, call: worker.Call) -> bytes:
        """The only right result of a call."""
        return b"%d" % value_of(identity_of(self.data.open(call.payload), self.data.open_all(call.values)))

    def could_lose_value(self) -> bool:
        """Whether a value may be lost for good: its node was lost, or the file has vanished, and making it again has failed."""
        return bool(self.data_rate and (self.data.vanished or self.manager_loop.lost))

    def may_be_lost(self, name: str) -> bool:
        """The same of one."""
        return self.could_lose_value()

    def is_stored(self, call: worker.Call) -> bool:
        """Whether the value of a call stays where it was made."""
        return not is_cached(self.data.open(call.payload)) and not call.spec.ranks and self.rng.random() < self.data_rate

    def hangs(self, call: worker.Call) -> bool:
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
            assert task.app is not None and not self.could_ever_run(task.app.spec), f"task {task.id} failed, but could run"
            self.impossible.add(task.id)
        if end == "done" and task.app is not None and task.status == Status.ASSIGNED:
            self.done_apps.add(task.app.number)
        if isinstance(task, CachedTask) and end != "cancelled":
            self._finish_cached(task, outcome)
        self._finish_task(task, outcome, *args)  # type: ignore[arg-type]

    def _finish_cached(self, task: CachedTask, outcome: int) -> None:
        if outcome == Outcome.DONE:
            identity = self._identity(task)
            self.done_calls.add(identity)
            if task.status == Status.ASSIGNED and self.journal is not None:
                known = self.journal.has(task.key) or task.key in self.journal.lost
                assert known, f"the result of task {task.id} is not recorded"
        elif outcome != Outcome.NEED_FAILED and task.status != Status.WAITING:
            self.failed_calls.add(self._identity(task))

    def _identity(self, task: CachedTask) -> Identity:
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
            self._check_placed(task)
            if isinstance(task, CachedTask):
                self._check_cached(task)
        return self._take_assign(record)

    def _check_placed(self, task: Task) -> None:
        """What begins must be able to end in time."""
        ends_s = self.manager.ends_s
        assert task.app is not None
        walltime_s = task.app.spec.walltime_s
        if ends_s is None:
            return
        assert self.now < ends_s, f"task {task.id} is placed after the end"
        assert walltime_s is None or self.now <= ends_s - walltime_s, (
            f"task {task.id} begins {ends_s - self.now} s before the end"
        )
        is_known = walltime_s is not None or task.app.number in self.done_apps
        assert is_known or not self.manager.noticed, f"task {task.id}, of unknown length, begins after the notice"

    def _check_cached(self, task: CachedTask) -> None:
        """Nothing equal runs, and no result is known."""
        identity = self._identity(task)
        for other in self.manager.tasks.values():
            if isinstance(other, CachedTask) and other is not task and other.status != Status.WAITING:
                assert self._identity(other) != identity, f"tasks {task.id} and {other.id} are equal, and both run"
        if self.journal is not None:
            assert not self.journal.must_know(task.key), f"task {task.id} runs, but its result is recorded"
        if not self.small_memory and not has_outputs(identity[0]):
            assert identity not in self.done_calls, f"task {task.id} runs, but its result is in memory"

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
        self._check_silence()
        self._check_end(was_out)

    def _check_silence(self) -> None:
        longest_s = self.limit_s * (1 + 1 / LOOKS + PAUSE)
        for one in self.workers.values():
            if self.limit_s and one.rank in self.heard_s and not one.stopped:
                silent_s = self.now - max(self.heard_s[one.rank], self.paused_s)
                assert silent_s <= longest_s, f"rank {one.rank} has said nothing for {silent_s:.3f} s and is not given up"

    def _check_end(self, was_out: bool) -> None:
        loop, state = self.manager_loop, self.manager
        if not state.shelved or state.assigned or state.ready.count or state.ready.line.count:
            self.busy_s = self.now
        if state.ends_s is None or was_out:
            return
        if not loop.out_of_time:
            assert self.now < state.ends_s, f"the job goes on {self.now - state.ends_s} s after its end"
            assert self.now - self.busy_s < QUIET_S, "the job goes on, though nothing that is left fits"
            return
        is_early = self.now < state.ends_s
        assert not is_early or self.now - self.busy_s >= QUIET_S, "the job ends early, though something ran just now"
        self.to_be_told = {*loop._clients.records, *(number for number, _ in loop._clients.waiting)}
        self.tell("the manager ends the job")

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
            self._misfortune()
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

    def _misfortune(self) -> None:
        rng = self.rng
        kind = rng.randrange(9 if self.lose_files else 8)
        if kind == 8:
            self.lose_files -= 1
            self.data.lose_file()
        elif kind == 7:
            self._lose_node()
        elif kind <= 2:
            found = [one for one in self.workers.values() if one.dead]
            sound = [one for one in self.workers.values() if not one.dead and self.now > one.thaws_s + self.limit_s]
            if found and kind:
                self._give_up(rng.choice(found))
            elif self.lose_ranks and len(sound) > 1 and not self.manager_loop._missing:
                self.lose_ranks -= 1
                one = rng.choice([one for one in sound if one.part is not None] or sound)
                if kind == 1:
                    self.tell(f"rank {one.rank} dies, and nobody knows")
                    one.dead = True
                elif kind == 2:
                    self._give_up(one)  # it was only stopped, and goes on
                else:
                    one.thaws_s = self.now + rng.choice([0.5, 1.5]) * (self.limit_s or 1.0)
                    self.tell(f"rank {one.rank} is stopped until {one.thaws_s:.3f}")
        elif kind == 3 and self.lose_templates:
            self.lose_templates -= 1
            self.rng.choice(list(self.workers.values())).lose_template()
        elif kind == 4 and self.lose_clients:
            self.lose_clients -= 1
            here = [client for client in self.clients if not client.gone]
            if here:
                rng.choice(here).vanish()
        elif kind == 5 and self.pauses:
            self.pauses -= 1
            self.now = self.paused_s = self.now + 2 * self.limit_s
            self.tell("the whole job stood still until now")
            self.turn()
        elif kind == 6 and self.notices:
            self.notices -= 1
            self._notice()

    def _lose_node(self) -> None:
        """All ranks of a node are gone at once, if others are left."""
        node = self.rng.choice([one.node for one in self.workers.values()])
        ranks = [one.rank for one in self.workers.values() if one.node == node and not one.dead]
        others = [one for one in self.workers.values() if one.node != node and not one.dead and self.now > one.thaws_s + self.limit_s]
        if self.lose_ranks and others and not self.manager_loop._missing:
            self.lose_ranks -= 1
            self.tell(f"{node} is gone")
            for rank in ranks:
                self.workers[rank].dead = True
            for rank in ranks if self.rng.random() < 0.7 else []:
                self._give_up(self.workers[rank])

    def _notice(self) -> None:
        """The job gets a signal."""
        before_s = self.manager.ends_s
        self.busy_s = self.busy_s if before_s is not None else self.now
        self.manager_loop.notice(self.rng.choice([0.5, 5.0, 20.0]), "simulated signal", sooner=self.rng.random() < 0.5)
        assert self.manager.ends_s is not None
        assert before_s is None or self.manager.ends_s <= before_s, "a notice has made the end later"
        self.tell(f"notice: the job ends at {self.manager.ends_s:.3f}")

    def _learn_end(self) -> None:
        """The batch system tells when the allocation ends, or has only a signal for that."""
        if self.manager.ends_s is not None or self.rng.random() < 0.5:
            self._notice()
        else:
            self.busy_s = self.now
            self.manager_loop.set_end(self.rng.choice([1.0, 5.0, 30.0]))
            self.tell(f"the allocation ends at {self.manager.ends_s:.3f}")

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
                self._learn_end()
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
            untold = [
                client.number for client in self.clients if CLIENT_BASE + client.number in self.to_be_told and not client.knows()
            ]
            assert not untold, f"clients {untold} were not told that the job ends"
            return
        untold = {(rank, task) for rank, task in self.owed_drops if self.workers[rank].is_up()}
        assert not untold, f"these were never told to drop the task: {untold}"
        assert not self.manager.tasks and not self.manager.dropped and not self.manager.ready.count
        assert not self.manager.teams and not self.teams.inside, f"{self.manager.teams} {self.teams.inside}"
        assert not self.manager.holdings and not self.manager.broken and not self.manager.packing.kept
        assert not self.manager.ready.line.count and not self.manager.ready.affinity
        assert not self.manager.waiting and not self.manager.parents and not self.manager.orphaned
        assert not self.manager.stock.asked and not self.manager.stock.returns
        for one in self.manager.workers.values():
            assert one.room == one.open == one.slots, f"rank {one.rank}: slots are not given back"
            assert one.held == 0 and one.held_s == 0.0, f"rank {one.rank}: {one.held} attempts, {one.held_s} s are held"
        for client in self.clients:
            if client.gone:
                assert client.known_as not in self.manager.clients, "the record of a client that is gone is left"
                continue
            assert client.answers.keys() | client.cancelled == set(range(client.total))
            assert not self.manager.clients[client.known_as].kept, "values are kept that nobody can ask for"
            assert not self.manager.clients[client.known_as].owned, "stored values are kept that were released"
        assert not self.manager.data.records, f"records are left: {list(self.manager.data.records)}"
        assert not self.data.left(), f"files are left: {self.data.left()}"

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


class _Part(InProcess):
    """The manager's end of the network, seen as a link to workers only or to clients only."""

    def __init__(self, end: Link, workers: bool, queues: dict[bool, list], on_heard: Callable[[int], None]) -> None:
        self.end, self.workers, self.queues, self.on_heard = end, workers, queues, on_heard

    def send(self, peer: int, frames: list) -> None:
        self.end.send(peer, frames)

    def receive(self) -> tuple[int, list] | None:
        while (arrived := self.end.receive()) is not None:
            self.queues[arrived[0] < CLIENT_BASE].append(arrived)
        mine = self.queues[self.workers]
        if not mine:
            return None
        self.on_heard(mine[0][0])
        return mine.pop(0)

    def drop(self, peer: int) -> None:
        self.end.drop(peer)  # type: ignore[attr-defined]

    def forget(self, peer: int) -> None:
        """Nothing: late messages of a lost rank must do no harm."""

    def close(self) -> None:
        self.end.close()
