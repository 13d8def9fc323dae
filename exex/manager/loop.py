"""Rank 0's loop: all its I/O. A turn is drain, decide, flush: take what arrived, place once, send once per destination."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from exex.errors import ProtocolError
from exex.manager import teams, transitions
from exex.manager.liveness import Liveness
from exex.manager.memo import MEMORY_BYTES, Memo, Store
from exex.manager.placement import place
from exex.manager.progress import Progress
from exex.manager.state import ClientRecord, ManagerState
from exex.protocol import codec
from exex.protocol.messages import (
    Applied,
    Attach,
    Beat,
    Bye,
    Cancel,
    Checkpoint,
    Checkpointed,
    Done,
    Drop,
    Finish,
    Fulfil,
    Hello,
    JobEnds,
    Leave,
    Outcome,
    Part,
    Promise,
    Rank,
    Stop,
    Submit,
    Verdict,
    Welcome,
)
from exex.transport.base import GONE, Ranks, Server

_MESSAGES_A_TURN = 256
_MOST_QUOTED = 500  # characters of what a refused client has made us say

OUT_OF_TIME = 75
"""Exit status of a job whose allocation ended first: EX_TEMPFAIL of sysexits.h, so that a job script submits itself again."""

QUIET_S = 2.0
"""How long nothing has run, because nothing fits any more, before the job ends early."""

ANSWER_S = 1e-3
"""How long values that other tasks have waited for, and their client perhaps not, may be held back from it: in a chain each
Answer would wake the client, and cost it more than its task costs anybody else."""


class Journal(Store, Protocol):
    """A store as the loop sees it. None of the methods waits for a disk."""

    def checkpoint(self, asked_by: tuple[int, int]) -> None:
        """Put what was recorded so far on disk, in whatever mode. The answer comes with `take`."""

    def take(self) -> tuple[list[tuple[bytes, Any]], list[tuple[tuple[int, int], str]]]:
        """What has come: (key, value or None) of fetches; (asked_by, error or "") of checkpoints."""

    def is_behind(self) -> bool:
        """Whether more waits to be written than memory should hold: then nothing new should run."""


@dataclass(frozen=True)
class Settings:
    """What the manager's loop needs to know of the configuration.

    Attributes:
        workers: ranks that must say Hello.
        run_dir: told to the clients.
        heartbeat_limit_s: silence after which a worker is given up; 0 for never.
        own: the worker that this process turns itself, and that is never given up for its silence; None if there is none.
        detach: tasks of a client that is gone are finished, not cancelled.
        memory_bytes: for results of cached calls.
        grace_s: between telling a function on a communicator to stop and killing its ranks.
    """

    version: str
    python: str
    pid: int
    workers: frozenset[Rank]
    run_dir: str
    start_timeout_s: float
    stop_timeout_s: float
    prefetch_s: float
    heartbeat_limit_s: float = 0.0
    own: Rank | None = None
    detach: bool = False
    memory_bytes: int = MEMORY_BYTES
    grace_s: float = 2.0


class ManagerLoop:
    """Rank 0.

    Args:
        workers: link to the workers, by rank.
        clients: link to the clients, by the link's own numbers; None until `listen`.
        on_ready: called once, when every worker is up.
        clock: seconds; only differences matter.
        journal: where results of cached calls are recorded; None for nowhere.
        reach: the way to ranks that run a function themselves; None if no rank can.

    Attributes:
        error: why the job cannot go on; "" while it can.
        lost: ranks that died or fell silent, and how.
        out_of_time: the allocation ends before all tasks are done.
        finished: every worker has left.
        unsent: messages wait for a client to read.
    """

    def __init__(
        self,
        settings: Settings,
        workers: Ranks,
        progress: Progress | None,
        on_ready: Callable[[], object],
        *,
        clock: Callable[[], float] = time.monotonic,
        journal: Journal | None = None,
        reach: teams.Reach | None = None,
    ) -> None:
        memo = Memo(journal, settings.memory_bytes, lambda paths: all(map(os.path.exists, paths)))
        self.state = ManagerState(prefetch_s=settings.prefetch_s, memo=memo, own=settings.own, grace_s=settings.grace_s)
        self._reach = reach
        self._probe_s = 0.0
        self._journal = journal
        self.error = ""
        self.lost: dict[Rank, str] = {}
        self.out_of_time = False
        self.finished = False
        self.unsent = False
        self._clock = clock
        self._now_s = clock()
        self._liveness = Liveness(settings.heartbeat_limit_s)
        self._settings = settings
        self._workers = workers
        self._clients: Server | None = None
        self._progress = progress
        self._on_ready = on_ready
        self._encoder = codec.Encoder()
        self._from_client = codec.from_client()
        self._from_worker = codec.from_worker()
        self._records: dict[int, ClientRecord] = {}  # by the client link's number
        self._waiting: list[tuple[int, Attach]] = []  # clients that attached before every worker was up
        self._refused: set[int] = set()  # clients that hear and say nothing any more
        self._missing = set(settings.workers)
        self._left: set[Rank] = set()
        self._began_s = self._now_s
        self._stop_by_s: float | None = None
        self._quiet_since_s = self._now_s
        self._handlers: dict[type, Callable[[ManagerState, ClientRecord, Any], None]] = {
            Submit: transitions.on_submit,
            Promise: transitions.on_promise,
            Fulfil: transitions.on_fulfil,
            Cancel: transitions.on_cancel,
            Verdict: transitions.on_verdict,
            Applied: transitions.on_applied,
            Finish: transitions.on_finish,
        }
        gc.disable()  # the graph has no cycles, and collections would cost O(tasks)

    def listen(self, clients: Server) -> None:
        """Serve clients over this link."""
        self._clients = clients

    # ---- one turn ----

    def turn(self) -> bool:
        """Drain, decide, flush. True if there was anything to do."""
        now_s = self._now_s = self.state.now_s = self._clock()
        traffic = self._drain_workers()
        for rank in self._liveness.silent(now_s):
            self.lose_worker(rank, f"was not heard of for {self._settings.heartbeat_limit_s:g} s")
        if self.state.teams and self._reach is not None:
            self._mind_teams(self._reach, now_s)
        if self._stop_by_s is None:
            traffic |= self._drain_clients()
        if self._journal is not None:
            traffic |= self._drain_journal(self._journal)
        if not self._missing and self._stop_by_s is None and not (self._journal and self._journal.is_behind()):
            place(self.state)
        traffic |= self._flush()
        if self._missing and self._stop_by_s is None and now_s - self._began_s > self._settings.start_timeout_s:
            self.fail(self._who_is_missing())
        if self._stop_by_s is not None and now_s > self._stop_by_s and not self.finished:
            left = sorted(self.state.workers.keys() - self._left)
            print(f"exex: ranks {left} did not stop within {self._settings.stop_timeout_s:g} s", file=sys.stderr, flush=True)
            self.error = self.error or "ranks did not stop"
            self._finish()
        if self.state.ends_s is not None and self._stop_by_s is None:
            self._mind_the_end(now_s)
        if self._progress is not None:
            self._show(now_s)
        return traffic

    def _mind_teams(self, reach: teams.Reach, now_s: float) -> None:
        """Ranks that run a function themselves: stop them where they must, and ask their guards whether they live."""
        for ranks, task in teams.look(self.state, reach):
            for rank in ranks:
                self.lose_worker(rank, f"cannot be reached, and does not end task {task}")
        if now_s >= self._probe_s:
            self._probe_s = now_s + 1.0
            missing = [rank for team in self.state.teams.values() for rank in team.missing]
            quiet = self._liveness.quiet(missing, now_s)
            if quiet:
                reach.probe(quiet)

    def heard(self, rank: Rank) -> None:
        """The guard of a rank has given a sign of life."""
        if rank in self.state.workers:
            self._liveness.heard(rank, self._clock())

    # ---- the end of the allocation ----

    def set_end(self, left_s: float) -> None:
        """Attempts must have ended in `left_s` seconds from now."""
        if self.state.ends_s is None:
            self._quiet_since_s = self._clock()  # so far nobody has watched
        self.state.ends_s = self._clock() + left_s

    def notice(self, left_s: float, by: str, sooner: bool) -> None:
        """The job was told that it must end: in `left_s` seconds if that is not known, or if it comes `sooner`."""
        ends_s = self.state.ends_s
        if sooner and self.state.noticed:
            left_s = 0.0  # said again: at once
        if ends_s is None or (sooner and ends_s > self._clock() + left_s):
            self.set_end(left_s)
        if not self.state.noticed:
            self.state.noticed = True
            assert self.state.ends_s is not None
            left_s = max(0.0, self.state.ends_s - self._clock())
            print(f"exex: {by}: what does not end within {left_s:.0f} s is not begun any more", file=sys.stderr, flush=True)

    def _mind_the_end(self, now_s: float) -> None:
        """End the job when time is up, or once nothing that is left fits."""
        state = self.state
        assert state.ends_s is not None
        if not state.shelved or state.assigned or state.ready.count or state.ready.line.count:
            self._quiet_since_s = now_s
        if now_s < state.ends_s and now_s - self._quiet_since_s < QUIET_S:
            return
        self.out_of_time = True
        left = len(state.tasks)
        reason = f"the allocation ends: {_count(left, 'task')} not done ({state.assigned} of them begun)"
        print(f"exex: {reason}; exit status {OUT_OF_TIME}, run it again with --resume for the rest", file=sys.stderr, flush=True)
        self._tell_of_end(reason)
        self.stop(reason)

    def _drain_workers(self) -> bool:
        for count in range(_MESSAGES_A_TURN):
            arrived = self._workers.receive()
            if arrived is None:
                return count > 0
            rank, frames = arrived
            if frames is GONE:
                self.lose_worker(rank, "is dead, as the MPI library reports")
                continue
            if rank in self.lost:
                continue  # it was only slow; its attempts are with others now
            if rank != self._settings.own:
                self._liveness.heard(rank, self._now_s)
            try:
                message = self._from_worker.decode(frames)
                if type(message) is Done:
                    transitions.on_done(self.state, rank, message)
                elif type(message) is Part:
                    transitions.on_part(self.state, rank, message)
                elif type(message) is Hello:
                    self._on_hello(rank, message)
                elif type(message) is Beat:
                    self._to_worker(rank, Beat())
                elif type(message) is Bye:
                    self._on_bye(rank)
            except ProtocolError as error:
                self._on_broken_worker(rank, f"rank {rank} broke the protocol: {error}")
        return True

    def _drain_clients(self) -> bool:
        if self._clients is None:
            return False
        for count in range(_MESSAGES_A_TURN):
            arrived = self._clients.receive()
            if arrived is None:
                return count > 0
            number, frames = arrived
            client = self._records.get(number)
            if frames is GONE:
                self._waiting = [(other, attach) for other, attach in self._waiting if other != number]
                if client is not None:
                    del self._records[number]
                    if not client.finished:
                        transitions.on_finish(self.state, client, Finish(cancel=not self._settings.detach))
                continue
            if number in self._refused:
                continue
            try:
                self._on_client(number, client, self._from_client.decode(frames))
            except ProtocolError as error:
                self._refuse(number, str(error))
        return True

    def _drain_journal(self, journal: Journal) -> bool:
        fetched, checkpoints = journal.take()
        for key, value in fetched:
            transitions.on_fetched(self.state, key, value)
        for (number, asked), error in checkpoints:
            self._to_client(number, Checkpointed(number=asked, error=error))
        return bool(fetched or checkpoints)

    def _on_checkpoint(self, number: int, message: Checkpoint) -> None:
        if self._journal is None:
            self._to_client(number, Checkpointed(number=message.number, error="the job has no journal"))
        else:
            self._journal.checkpoint((number, message.number))

    def _on_client(self, number: int, client: ClientRecord | None, message: Any) -> None:
        if type(message) is Attach:
            if client is not None or any(number == other for other, _ in self._waiting):
                self._refuse(number, "it has said Attach twice")
            elif message.version != self._settings.version:
                self._refuse(number, f"this is exex {self._settings.version}, the client is exex {message.version}")
            elif self._missing:
                self._waiting.append((number, message))
            else:
                self._welcome(number, message)
        elif client is None:
            self._refuse(number, "the first message must be Attach")
        elif type(message) is Checkpoint:
            self._on_checkpoint(number, message)
        elif not client.finished:
            self._handlers[type(message)](self.state, client, message)

    def _welcome(self, number: int, message: Attach) -> None:
        client = self._records[number] = transitions.on_attach(self.state, message)
        welcome = Welcome(
            version=self._settings.version,
            client=client.number,
            manager_pid=self._settings.pid,
            workers=len(self.state.workers),
            slots=self.state.slots(),
            run_dir=self._settings.run_dir,
            nodes=self.state.nodes.shapes(),
        )
        self._to_client(number, welcome)

    def _refuse(self, number: int, reason: str) -> None:
        print(f"exex: client {number} is refused: {reason[:_MOST_QUOTED]}", file=sys.stderr, flush=True)
        self._to_client(number, JobEnds(reason=reason))
        assert self._clients is not None
        self._refused.add(number)
        self._clients.drop(number)
        self._waiting = [(other, attach) for other, attach in self._waiting if other != number]
        client = self._records.get(number)
        if client is not None:
            del self._records[number]
            if not client.finished:
                transitions.on_finish(self.state, client, Finish(cancel=True))

    def _to_client(self, number: int, message: object) -> None:
        assert self._clients is not None
        try:
            self._clients.send(number, self._encoder.encode(message))
        except ConnectionError:
            pass  # its GONE arrives, or its guard reports it

    # ---- workers ----

    def _on_hello(self, rank: Rank, message: Hello) -> None:
        if rank not in self._missing:
            raise ProtocolError("it says Hello again")
        at = f"rank {rank} at {message.node}"
        if message.error:
            self.fail(f"{at} cannot work: {message.error}")
        elif message.version != self._settings.version:
            self.fail(f"{at} runs exex {message.version}, rank 0 runs {self._settings.version}; every rank needs the same")
        elif message.python.split(".")[:2] != self._settings.python.split(".")[:2]:
            self.fail(f"{at} runs Python {message.python}, rank 0 runs {self._settings.python}; pickles need the same")
        else:
            transitions.on_hello(self.state, rank, message)
            self._missing.discard(rank)
            if not self._missing:
                self._on_ready()
                for number, attach in self._waiting:
                    self._welcome(number, attach)
                self._waiting.clear()

    def _on_broken_worker(self, rank: Rank, why: str) -> None:
        """A worker says what it may not say: go on without it, if that can be."""
        if rank not in self.state.workers or len(self.state.workers) == 1 or self._missing or self._stop_by_s is not None:
            self.fail(why)
            return
        self._to_worker(rank, Stop(reason=why))
        self.lose_worker(rank, f"broke the protocol: {why}")

    def _on_bye(self, rank: Rank) -> None:
        if rank not in self.state.workers:
            return  # it was given up
        if self._stop_by_s is None:
            raise ProtocolError("it leaves before it was told to stop")
        for task in [task for task, team in self.state.teams.items() if rank in team.missing]:
            transitions.on_part(self.state, rank, Part(task, Outcome.CANCELLED, b"", 0.0))  # it has not begun it, and will not
        self._left.add(rank)
        self._liveness.forget(rank)
        self._see_who_left()

    def _see_who_left(self) -> None:
        if self._stop_by_s is not None and self._left >= self.state.workers.keys():
            self._finish()

    def _finish(self) -> None:
        """Let the workers that have said Bye go."""
        if not self.finished:
            self.finished = True
            for rank in self._left & self.state.workers.keys():
                self._to_worker(rank, Leave(together=not self.lost and not self.error))

    def lose_worker(self, rank: Rank, how: str) -> None:
        """A worker died, or is given up: go on without it, or end the job if none is left."""
        if rank in self.lost or rank in self._left:
            return
        self.lost[rank] = how
        self._workers.forget(rank)
        self._liveness.forget(rank)
        worker = self.state.workers.get(rank)
        if worker is None:
            self.fail(f"rank {rank} {how} before it was up")
            return
        attempts = transitions.on_worker_lost(self.state, rank, how)
        others = len(self.state.workers)
        again = f"; {_count(attempts, 'attempt')} will be run again on the {_count(others, 'worker')} left" if others else ""
        print(f"exex: lost rank {rank} on {worker.node}: it {how}{again}", file=sys.stderr, flush=True)
        if self._stop_by_s is not None:
            self._see_who_left()
        elif not others and not self._missing:
            self.fail("no worker is left")

    def _who_is_missing(self) -> str:
        ranks = sorted(self._missing)
        named = ", ".join(map(str, ranks[:20])) + (", ..." if len(ranks) > 20 else "")
        arrived = f"{len(self.state.workers)} of {len(self._settings.workers)} workers came up"
        return (
            f"rank {named} did not say Hello within {self._settings.start_timeout_s:g} s ({arrived}); "
            "see its own output above, or raise --start-timeout-s"
        )

    # ---- sending ----

    def _flush(self) -> bool:
        state = self.state
        traffic = False
        for rank, tasks in state.drops.items():
            self._to_worker(rank, Drop(tasks=tasks))
            traffic = True
        state.drops.clear()
        for ranks, join in state.joins:
            for rank in ranks:
                self._to_worker(rank, join)
        state.joins.clear()
        for worker in state.refilled:
            self._to_worker(worker.rank, state.take_assign(worker))
            traffic = True
        state.refilled.clear()
        self._workers.progress()  # first: workers are woken here
        for number, client in self._records.items():
            if (client.tasks or client.started) and not self._is_held_back(client):
                self._to_client(number, client.take_answer())
                traffic = True
        if self._clients is not None and not self.finished:
            self.unsent = self._clients.progress()
        return traffic

    def _is_held_back(self, client: ClientRecord) -> bool:
        """Whether an Answer can wait: it has only values that other tasks have waited for, and more will come."""
        if client.hurry or not self.state.assigned:
            return False
        if client.held_since_s < 0:
            client.held_since_s = self._now_s
        return self._now_s - client.held_since_s < ANSWER_S

    def next_s(self) -> float:
        """Seconds until a turn must follow even if nothing arrives."""
        if any(client.held_since_s >= 0 for client in self._records.values()):
            return ANSWER_S
        return teams.LOOK_S if self.state.teams else 1.0

    def _to_worker(self, rank: Rank, message: object) -> None:
        try:
            self._workers.send(rank, self._encoder.encode(message))
        except ConnectionError:
            pass  # its GONE arrives

    def eager(self) -> bool:
        """Whether what comes next is waited for: no worker has more than it can run."""
        return self.state.assigned <= len(self.state.workers) or self.state.assigned <= self.state.slots()

    # ---- the end ----

    def idle(self) -> bool:
        """Whether no task is left."""
        return not self.state.tasks and not self.state.dropped

    def cancel_all(self) -> None:
        """Clients are gone: end their tasks."""
        for client in self._records.values():
            if not client.finished:
                transitions.on_finish(self.state, client, Finish(cancel=True))

    def fail(self, error: str) -> None:
        """The job cannot go on: say why, and stop."""
        if not self.error:
            self.error = error
            print(f"exex: {error}", file=sys.stderr, flush=True)
            self._tell_of_end(error)
            self.stop(error)

    def _tell_of_end(self, reason: str) -> None:
        for number in [*self._records, *(number for number, _ in self._waiting)]:
            self._to_client(number, JobEnds(reason=reason))

    def stop(self, reason: str = "") -> None:
        """Tell every worker to stop; `finished` turns true when all have answered."""
        if self._stop_by_s is not None:
            return
        self._stop_by_s = self._clock() + self._settings.stop_timeout_s
        if self._progress is not None:
            self._show(self._clock())
            self._progress.close()
            self._progress = None
        if self._missing:
            self._finish()  # some never came up: nobody can leave MPI in order
            return
        for worker in self.state.workers.values():
            worker.leaving = True
            self._to_worker(worker.rank, Stop(reason=reason))
        self.state.grace_s = min(self.state.grace_s, self._settings.stop_timeout_s / 4)
        for task in self.state.teams:
            teams.condemn(self.state, task, teams.Reason.UNWANTED)
        self._see_who_left()

    def _show(self, now_s: float) -> None:
        state = self.state
        counts = state.counts
        assert self._progress is not None
        self._progress.update(
            done=counts.done,
            running=state.assigned,
            waiting=len(state.tasks) - state.assigned,
            failed=counts.failed,
            now_s=now_s,
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
