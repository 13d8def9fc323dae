"""A worker rank of a simulation: its state is the real one, its task processes are played."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

from exex.protocol import codec
from exex.protocol.messages import Absent, Assign, Beat, Bye, Done, Drop, Hello, Join, Outcome, Part, Retract, Stop, ToTasks
from exex.protocol.payload import Stored
from exex.transport.base import Link
from exex.worker import assigned, filling, giving_back, running, waiting
from exex.worker.needs import Needs
from exex.worker.relay import Relay
from exex.worker.slot import Call, Slot
from exex.worker.state import WorkerState
from exex.worker.stored import value_name
from tests.sim.played_client import MANAGER, MEMORY_BYTES
from tests.sim.played_nesting import PlayedInner, is_parent
from tests.sim.played_teams import PlayedPart

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

BEATS = 8
"""Beats of a worker within the limit of silence."""


class PlayedProcess:
    """A task process: runs what it was given, in order, one step at a time."""

    slot: Slot

    def __init__(self) -> None:
        self.client: PlayedInner | None = None  # once a task of it has made tasks
        self.is_seated = True
        self.given: list[Call] = []
        self.started = 0  # calls begun; the last ones may not be reported yet
        self.results: list[tuple[int, bytes, float]] = []  # of calls that have ended and are not reported
        self.killed: int | None = None
        self.measured = False
        self.starved: set[int] = set()  # of all that were given, those that found a file missing
        self.dropped = 0  # given, and not in the list any more

    def give(self, calls: list[Call]) -> None:
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
        self.state = WorkerState(rank, self.node, list(self.processes), tasks_per_process=per_process)
        for process, slot in zip(self.processes, self.state.slots):
            process.slot = slot
        self.state.new_place = self._new_place if sim.nest_rate else None
        self.state.most_parents = random.Random(f"{sim.seed} {rank} parents").choice([0, 0, 0, 2])
        self.relay = Relay(self.state, lambda fd: None, set(), lambda: None)
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

    def _new_place(self, number: int) -> Slot:
        process = PlayedProcess()
        self.processes.append(process)
        process.slot = Slot(number, process)
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
                assigned.on_assign(self.state, message, self.needs.lacking(message))
            elif type(message) is Drop:
                self.sim.owed_drops.difference_update((self.rank, task) for task in message.tasks)
                assigned.on_drop(self.state, message, now)
            elif type(message) is Retract:
                self._retract(message)
            elif type(message) is ToTasks:
                for task in message.seats:
                    waiting.on_seat(self.state, task)
                for number, said in zip(message.processes, message.messages):
                    if number in self.inner:
                        self.inner[number].hear(said)
            elif type(message) is Join:
                assigned.on_join(self.state, message)
            elif type(message) is Stop:
                self.stopped = True
                self.sim.teams.back(self.rank)  # it will not begin a part any more
                self.link.send(MANAGER, self.encoder.encode(Bye(tasks_run=self.state.tasks_run)))
                return
            elif type(message) is not Beat:
                self.needs.on_message(MANAGER, message)
        self.needs.turn(self.state)
        self.needs.tick(now)
        running.on_tick(self.state, now)
        for process in self.processes:
            slot = process.slot
            if process.measured and self.sim.rng.random() < 0.5:
                process.measured = False
                running.on_measured(self.state, slot, self.sim.rng.choice([MEMORY_BYTES, MEMORY_BYTES + 1]), 1e-4, now)
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

    def _lacks(self, call: Call) -> bool:
        """Whether a file is missing that a call would map. That must have a reason if anybody wants the call."""
        missing = [value for value in (call.payload, *(call.values or ())) if isinstance(value, Stored) and not self.needs.exchange.has(value.name)]
        task = self.sim.manager.tasks.get(call.task)
        if missing and task is not None and task.rank == self.rank and self.rank in self.sim.workers and task.attempt == call.attempt:
            assert any((value.name, self.node) in self.sim.data.vanished for value in missing), f"{missing} are gone, and task {call.task} needs them"
        return bool(missing)

    def _unreported(self, process: PlayedProcess) -> list[Call]:
        """Calls that a process has begun and not reported, in order."""
        slot = process.slot
        reported = len(process.given) - len(slot.held)
        assert 0 <= reported <= process.started, f"slot {slot.number} of rank {self.rank}: what was begun was taken back"
        calls = process.given[reported : process.started]
        assert len(calls) - len(process.results) in (0, 1)
        return calls

    def _end_call(self, process: PlayedProcess, call: Call) -> None:
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
        running.on_slot_done(self.state, process.slot, done, self.sim.now)

    def _die(self, process: PlayedProcess, code: int, blameless: str = "") -> None:
        sim, calls = self.sim, self._unreported(process)
        if process.client is not None:
            self.relay.gone.append(process.client.number)
            del self.inner[process.client.number]
        self.needs.on_died(process.slot.held)
        if calls:
            first = process.started - len(calls) + process.dropped
            is_begun = [first + i not in process.starved for i in range(len(calls))]
            *ended, last = calls
            sim.usage.end(last.task, self.rank)
            slot = process.slot
            condemned = slot.ending_s >= 0 and slot.condemned == last.task
            if blameless and not condemned and last.losses < running.LOSSES_TOLERATED:
                sim.begun[last.task, last.attempt] -= is_begun[-1]  # it is begun again, as the same attempt
            else:
                sim.excuses[last.task] += 1
            sim.tell(f"rank {self.rank}: task {last.task} attempt {last.attempt} loses its process ({code})")
            for call, was_begun in zip(ended, is_begun):  # nobody knows how they ended: they may begin again
                sim.begun[call.task, call.attempt] -= was_begun
        running.on_slot_died(self.state, process.slot, code, "", sim.now, blameless)
        process.__init__()  # type: ignore[misc]
        if self.state.slots[process.slot.number] is not process.slot:
            waiting.forget(self.state, process.slot)
            self.processes.remove(process)

    def lose_template(self) -> None:
        """All task processes are gone at once."""
        self.sim.tell(f"rank {self.rank}: the template dies")
        for process in list(self.processes):
            self._die(process, -9, "its template has ended")
