"""Played functions on communicators: what ranks do inside of them, and the way to these through their guards.

A rank inside is heard of by nobody. It waits until all others have entered, and then comes to an end of its own; it may also fail,
die, hang, or wait for ever for one that has failed or died. Some hear the word to stop, some wait in MPI and must be killed. Words
to guards are lost now and then, and may come long after they were said.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exex.manager.task import Status
from exex.protocol.messages import Join, Outcome
from exex.protocol.runs import from_runs
from exex.worker.slot import Call

if TYPE_CHECKING:
    from tests.sim.played_worker import SimWorker
    from tests.sim.simulation import Simulation

Part = tuple[int, bytes]
"""What a rank comes to: outcome, value."""


@dataclass
class PlayedCommunicator:
    """Of one attempt.

    Attributes:
        entered: ranks that run the function; `left`: that have come back.
        call: what the lead has handed round.
        is_spoilt: a rank has failed or was stopped, so that others may wait for it.
    """

    task: int
    ranks: list[int]
    entered: set[int] = field(default_factory=set)
    left: set[int] = field(default_factory=set)
    call: Call | None = None
    is_spoilt: bool = False


class PlayedPart:
    """What one rank does inside of a function.

    Attributes:
        stop: it was told to stop.
        has_none: it gets no communicator, as happens now and then after losses.
    """

    def __init__(self, one: SimWorker, join: Join, call: Call | None) -> None:
        sim = one.sim
        self.one, self.number = one, join.call
        self.comm = sim.teams.enter(one.rank, join, call)
        chosen = random.Random(f"{sim.seed} {sim.past.lives} {join.call} {one.rank}")
        self.is_deaf = chosen.random() < 0.3
        self.is_stuck_if_spoilt = chosen.random() < 0.5
        self.hangs = chosen.random() < sim.hang_rate
        self.stop = False
        self.has_none = join.after_loss and chosen.random() < 0.1

    def step(self) -> Part | None:
        """Something happens inside; what the rank comes to if it ends."""
        sim, rng, comm = self.one.sim, self.one.sim.rng, self.comm
        if self.stop and not self.is_deaf:
            return self._leave(Outcome.CANCELLED)
        if self.has_none:
            sim.teams.excuse(comm.task)
            return self._leave(Outcome.LOST)
        missing = [rank for rank in comm.ranks if rank not in comm.entered]
        if missing:
            if any(sim.teams.is_gone(rank) for rank in missing) and rng.random() < 0.1:
                return self._leave(Outcome.LOST)
            return None
        is_spoilt = comm.is_spoilt or any(sim.teams.is_gone(rank) for rank in comm.ranks if rank not in comm.left)
        assert comm.call is not None
        if (is_spoilt and self.is_stuck_if_spoilt) or (self.hangs and comm.call.spec.walltime_s is not None):
            return None
        if rng.random() < sim.death_rate and sim.teams.may_die():
            sim.lose_ranks -= 1
            self.die("dies inside")
            return None
        if rng.random() < sim.failure_rate / 2:
            sim.teams.excuse(comm.task)
            return self._leave(Outcome.FAILED)
        value = sim.value_of(comm.call) if self.one.rank == comm.ranks[0] else b"not asked for"
        return self._leave(Outcome.DONE, value)

    def _leave(self, outcome: Outcome, value: bytes = b"") -> Part:
        comm = self.comm
        comm.left.add(self.one.rank)
        comm.is_spoilt |= outcome != Outcome.DONE
        self.one.sim.tell(f"rank {self.one.rank}: its part in task {comm.task} ends {outcome.name}")
        self.one.sim.teams.look_for_end(comm)
        return outcome, value or (b"error" if outcome == Outcome.FAILED else b"")

    def die(self, how: str) -> None:
        """The rank is dead; its guard may tell so."""
        sim = self.one.sim
        sim.tell(f"rank {self.one.rank}: {how} of task {self.comm.task}")
        self.one.dead = True
        sim.teams.look_for_end(self.comm)
        if sim.rng.random() < 0.7 and self.one.rank in sim.workers:
            sim.give_up(self.one)


class PlayedTeams:
    """All of them, and the manager's way to their ranks: see `teams.Reach`.

    Attributes:
        inside: which call each rank is in, as it really is, from the Join to its last word.
        words: to guards, under way.
    """

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.comms: dict[int, PlayedCommunicator] = {}
        self.inside: dict[int, int] = {}
        self.words: list[tuple[int, int, bool]] = []
        self.excused: set[tuple[int, int]] = set()
        self._lost_last: set[tuple[object, ...]] = set()
        self.formed = 0

    # ---- what the manager says ----

    def note_join(self, rank: int, join: Join) -> None:
        """The manager calls a rank to take part: it must be free of anything else."""
        comm = self.comms.get(join.call)
        if comm is None:
            self.formed += 1
            comm = self.comms[join.call] = PlayedCommunicator(join.task, from_runs(join.runs))
            number = sum(not other.left >= set(other.ranks) for other in self.comms.values() if other.task == join.task)
            assert number == 1 or any(self.is_gone(r) for c in self.comms.values() for r in c.ranks), f"task {join.task} runs twice"
        one = self.sim.workers.get(rank)
        assert rank not in self.inside, f"rank {rank} is called to two functions"
        assert one is not None and one.slots == 1 and rank in comm.ranks
        self.inside[rank] = join.call

    def check_assigned(self, rank: int, tasks: list[int]) -> None:
        """What is assigned to a rank that is in a function, or is called to one, is that only, and once, to its lead."""
        call = self.inside.get(rank)
        if call is None:
            return
        comm = self.comms[call]
        assert tasks == [comm.task] and rank == comm.ranks[0] and rank not in comm.entered, f"rank {rank} gets {tasks} while it is inside"

    def stop(self, call: int, ranks: list[int], hard: bool) -> None:
        """See `Reach.stop`."""
        comm = self.comms[call]
        self.excuse(comm.task)
        self.words += [(rank, call, hard) for rank in ranks if not self._is_lost("stop", rank)]

    def probe(self, ranks: list[int]) -> None:
        """See `Reach.probe`. The guard of a rank that is stopped answers, too."""
        for rank in ranks:
            one = self.sim.workers.get(rank)
            if one is not None and not one.dead and not self._is_lost("probe", rank):
                self.sim.heard_s[rank] = self.sim.now
                self.sim.manager_loop.heard(rank)

    def _is_lost(self, *word: object) -> bool:
        """Whether a word is; never two of a kind in a row."""
        if word in self._lost_last or self.sim.rng.random() < 0.7:
            self._lost_last.discard(word)
            return False
        self._lost_last.add(word)
        return True

    def deliver(self) -> None:
        """A word comes to its guard."""
        if not self.words:
            return
        rank, call, hard = self.words.pop(self.sim.rng.randrange(len(self.words)))
        one = next((one for one in (*self.sim.workers.values(), *self.sim.ghosts) if one.rank == rank), None)
        if one is None or one.dead or one.part is None or one.part.number != call:
            return
        if hard and (not one.part.is_deaf or not self._others_live(rank)):
            one.part.is_deaf, hard = False, False  # it has come back just now
        one.part.stop = True
        if hard:
            one.part.die("is killed inside")

    def _others_live(self, rank: int) -> bool:
        return any(one.rank != rank for one in self._sound())

    def _sound(self) -> list[SimWorker]:
        """Ranks that will not be given up soon."""
        return [one for one in self.sim.workers.values() if not one.dead and self.sim.now > one.thaws_s + self.sim.limit_s]

    def may_die(self) -> bool:
        """Whether another rank may be lost."""
        return self.sim.lose_ranks > 0 and len(self._sound()) > 1

    # ---- what really happens ----

    def is_gone(self, rank: int) -> bool:
        """Whether a rank is dead, or given up."""
        one = self.sim.workers.get(rank)
        return one is None or one.dead

    def enter(self, rank: int, join: Join, call: Call | None) -> PlayedCommunicator:
        """A rank begins its part."""
        comm = self.comms[join.call]
        assert comm.task == join.task and rank not in comm.entered
        assert rank not in self.sim.workers or self.inside[rank] == join.call
        assert (call is not None) == (rank == comm.ranks[0]), "the lead has the call, and nobody else"
        comm.entered.add(rank)
        if call is not None:
            comm.call = call
            assert len(comm.ranks) == call.spec.ranks and not call.spec.own_world
            self.sim.begin(call, rank)
        return comm

    def back(self, rank: int) -> None:
        """A rank has said what it has come to."""
        self.inside.pop(rank, None)

    def starve(self, rank: int, task: int) -> None:
        """A lead did not get what its call needs, and does not enter."""
        comm = self.comms.get(self.inside.get(rank, 0))
        if comm is not None and comm.task == task and rank not in comm.entered:
            comm.is_spoilt = True
            comm.left.add(rank)
            self.excuse(task)
            self.back(rank)
            self.look_for_end(comm)

    def forget(self, rank: int) -> None:
        """A rank is given up."""
        self.inside.pop(rank, None)
        for comm in list(self.comms.values()):
            if rank in comm.ranks:
                self.look_for_end(comm)

    def look_for_end(self, comm: PlayedCommunicator) -> None:
        """When no rank can run the function any more, nothing of the machine is in use for it."""
        if all(rank in comm.left or self.is_gone(rank) for rank in comm.ranks):
            self.sim.usage.end(comm.task, comm.ranks[0])

    def excuse(self, task_id: int) -> None:
        """There is a reason to try again, or to fail; one for each attempt."""
        task = self.sim.manager.tasks.get(task_id)
        if task is not None and task.status == Status.ASSIGNED and (task_id, task.attempt) not in self.excused:
            self.excused.add((task_id, task.attempt))
            self.sim.excuses[task_id] += 1

    def check_ended(self, task_id: int, is_done: bool) -> None:
        """A task ends: no rank that the manager has not given up may still run it; it is done if all ranks are."""
        comm = next((comm for comm in reversed(self.comms.values()) if comm.task == task_id), None)
        if is_done and comm is not None:
            assert not comm.is_spoilt and comm.left == set(comm.ranks), f"task {task_id} is done, but not all of its ranks are"
        running = {rank: call for rank, call in self.inside.items() if self.comms[call].task == task_id and rank in self.sim.workers}
        assert not running, f"task {task_id} ends while it runs on ranks {sorted(running)}"
