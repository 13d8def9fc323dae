"""Rank 0's loop: all its I/O. A turn is drain, decide, flush: take what arrived, place once, send once per destination."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable

from exex.errors import ProtocolError
from exex.manager import ends, from_workers, nesting, retraction, standstill, teams
from exex.manager.clients import ANSWER_S, MESSAGES_A_TURN, Clients
from exex.manager.liveness import Liveness
from exex.manager.memo import Journal, Memo
from exex.manager.moving import EXCHANGED, Exchange, Mover
from exex.manager.placement import place
from exex.manager.progress import Progress
from exex.manager.sampling import sampler
from exex.manager.settings import Settings
from exex.manager.state import ManagerState
from exex.protocol import codec
from exex.protocol.messages import (
    Beat,
    Bye,
    Cancel,
    Checkpointed,
    Done,
    Drop,
    FromTasks,
    Hello,
    Holds,
    Leave,
    Outcome,
    Part,
    Rank,
    Returned,
    Stop,
)
from exex.record.recorder import Recorder
from exex.transport.base import GONE, Ranks, Server

OUT_OF_TIME = 75
"""Exit status of a job whose allocation ended first: EX_TEMPFAIL of sysexits.h, so that a job script submits itself again."""

QUIET_S = 2.0
"""How long nothing has run, because nothing fits any more, before the job ends early."""


class ManagerLoop:
    """Rank 0.

    Args:
        workers: link to the workers, by rank.
        on_ready: called once, when every worker is up.
        clock: seconds; only differences matter.
        journal: where results of cached calls are recorded; None for nowhere.
        reach: the way to ranks that run a function themselves; None if no rank can.
        record: what is told of all that happens; None for nothing.
        exchange: the store of this node; None if there are none.

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
        record: Recorder | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        memo = Memo(journal, settings.memory_bytes, lambda paths: all(map(os.path.exists, paths)))
        self.state = ManagerState(prefetch_s=settings.prefetch_s, memo=memo, own=settings.own, grace_s=settings.grace_s)
        self._reach = reach
        self._probe_s = 0.0
        self._journal = journal
        self._record = record
        if record is not None:
            record.sample = sampler(self.state)
            self.state.ready.pushed = record.ready
            self.state.told = record.done
            self.state.cancelled = lambda client, tasks: record.client_said(client, Cancel(tasks=tasks), {})
            record.repeated = self.state.data.repeated
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
        self._clients = Clients(settings, self.state, journal, record)
        self._mover = Mover(self.state, exchange, self._say, self._clients.send_to_client)
        if settings.store_key:
            self.state.data.set_home(settings.store_key)
        self._progress = progress
        self._on_ready = on_ready
        self._encoder = codec.Encoder()
        self._from_worker = codec.from_worker()
        self._missing = set(settings.workers)
        self._left: set[Rank] = set()
        self._began_s = self._now_s
        self._stop_by_s: float | None = None
        self._quiet_since_s = self._now_s
        gc.disable()  # the graph has no cycles, and collections would cost O(tasks)

    def listen(self, clients: Server) -> None:
        """Serve clients over this link."""
        self._clients.link = clients

    # ---- one turn ----

    def turn(self) -> bool:
        """Drain, decide, flush. True if there was anything to do."""
        now_s = self._now_s = self.state.now_s = self._clock()
        if self._record is not None:
            self._record.turn_begins(now_s)
        traffic = self._drain_workers()
        for rank in self._liveness.silent(now_s):
            self.lose_worker(rank, f"was not heard of for {self._settings.heartbeat_limit_s:g} s")
        if self.state.teams and self._reach is not None:
            self._mind_teams(self._reach, now_s)
        if self._stop_by_s is None:
            traffic |= self._clients.drain()
        if self._journal is not None:
            traffic |= self._drain_journal(self._journal)
        self._mind_parents()
        traffic |= self._mover.settle(now_s)
        self.state.must_place = False
        if not self._missing and self._stop_by_s is None and not (self._journal and self._journal.is_behind()):
            place(self.state)
            if self.state.waiting:
                standstill.look(self.state)
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
        if self._record is not None:
            self._record.turn_ends()
        return traffic

    def _mind_parents(self) -> None:
        """Tasks that have made tasks: what ended ones have left ends, and those that have waited may go on."""
        if self.state.orphaned:
            nesting.end_orphans(self.state)
        if self.state.returning:
            for rank, tasks in nesting.seats(self.state).items():
                self._clients.door.seat(rank, tasks)

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
        if not state.shelved or state.assigned or state.ready.count or len(state.ready.near) or state.ready.line.count:
            self._quiet_since_s = now_s
        if now_s < state.ends_s and now_s - self._quiet_since_s < QUIET_S:
            return
        self.out_of_time = True
        left = len(state.tasks)
        reason = f"the allocation ends: {_count(left, 'task')} not done ({state.assigned} of them begun)"
        print(f"exex: {reason}; exit status {OUT_OF_TIME}, run it again with --resume for the rest", file=sys.stderr, flush=True)
        self._clients.tell_of_end(reason)
        self.stop(reason)

    def _drain_workers(self) -> bool:
        self.state.stock.is_behind = False
        for count in range(MESSAGES_A_TURN):
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
                    if self._from_worker.stored:
                        from_workers.take_stored(self.state, rank, message)
                    from_workers.on_done(self.state, rank, message)
                elif type(message) is Part:
                    from_workers.on_part(self.state, rank, message)
                elif type(message) is Returned:
                    self._on_returned(rank, message)
                elif type(message) is Holds or type(message) in EXCHANGED:
                    self._mover.on_message(rank, message)
                else:
                    self._on_other(rank, message)
            except ProtocolError as error:
                self._on_broken_worker(rank, f"rank {rank} broke the protocol: {error}")
        self.state.stock.is_behind = True
        return True

    def _on_from_tasks(self, rank: Rank, message: FromTasks) -> None:
        if rank not in self.state.workers:
            raise ProtocolError("its tasks say something before its Hello")
        if self._stop_by_s is None:
            self._clients.from_tasks(rank, message)
        nesting.on_moves(self.state, rank, message)

    def _on_other(self, rank: Rank, message: object) -> None:
        """What a worker says now and then."""
        if type(message) is FromTasks:
            self._on_from_tasks(rank, message)
        elif type(message) is Hello:
            self._on_hello(rank, message)
        elif type(message) is Beat:
            self._to_worker(rank, Beat())
        elif type(message) is Bye:
            self._on_bye(rank)

    def _drain_journal(self, journal: Journal) -> bool:
        fetched, checkpoints = journal.take()
        for key, value in fetched:
            ends.on_fetched(self.state, key, value)
        for (number, asked), error in checkpoints:
            self._clients.send(number, Checkpointed(number=asked, error=error))
        return bool(fetched or checkpoints)

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
            from_workers.on_hello(self.state, rank, message)
            if self._record is not None:
                self._record.hello(rank, message)
            self._missing.discard(rank)
            if not self._missing:
                self._missing = set()  # one that was large stays so
                self._on_ready()
                self._clients.open()

    def _on_returned(self, rank: Rank, message: Returned) -> None:
        back = retraction.on_returned(self.state, rank, message)
        if back and self._record is not None:
            self._record.returned(back)

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
            part = Part(task, Outcome.CANCELLED, b"", 0.0)  # it has not begun its part, and will not
            from_workers.on_part(self.state, rank, part)
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
        attempts = from_workers.on_worker_lost(self.state, rank, how)
        self._mover.lost(rank)
        self._clients.lose_rank(rank)
        if self._record is not None:
            self._record.lost(rank, attempts, how)
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
        record = self._record
        if record is not None:
            record.placed()
        for rank, tasks in state.drops.items():
            self._to_worker(rank, Drop(tasks=tasks))
            traffic = True
        state.drops.clear()
        for rank, question in state.stock.outgoing:
            self._to_worker(rank, question)
            traffic = True
        state.stock.outgoing.clear()
        for ranks, join in state.joins:
            for rank in ranks:
                self._to_worker(rank, join)
        state.joins.clear()
        for worker in state.refilled:
            assign = state.take_assign(worker)
            if record is not None:
                record.assign(worker.rank, assign)
            self._to_worker(worker.rank, assign)
            traffic = True
        state.refilled.clear()
        traffic |= self._mover.flush()
        self._workers.progress()  # first: workers are woken here
        traffic |= self._clients.answer()
        told = self._clients.door.take()
        for rank, said in told.items():
            self._to_worker(rank, said)
        if told:
            self._workers.progress()
            traffic = True
        if self._clients.link is not None and not self.finished:
            self.unsent = self._clients.link.progress()
        return traffic

    def next_s(self) -> float:
        """Seconds until a turn must follow even if nothing arrives."""
        if self.state.must_place or self.state.data.has_work():
            return 0.0
        if self._clients.hold_answers():
            return ANSWER_S
        most_s = teams.LOOK_S if self.state.teams else 1.0
        look_s = retraction.next_look_s(self.state) if self.state.stock.workers else None
        for next_s in (look_s, self.state.ready.near.end_s()):
            if next_s is not None:
                most_s = min(most_s, max(0.0, next_s - self._clock()))
        return most_s

    def _to_worker(self, rank: Rank, message: object) -> None:
        try:
            self._workers.send(rank, self._encoder.encode(message))
        except ConnectionError:
            pass  # its GONE arrives

    def _say(self, rank: Rank, message: object) -> None:
        self._to_worker(rank, message)

    def eager(self) -> bool:
        """Whether what comes next is waited for: no worker has more than it can run."""
        return self.state.assigned <= len(self.state.workers) or self.state.assigned <= self.state.slots()

    # ---- the end ----

    def idle(self) -> bool:
        """Whether no task is left."""
        return not self.state.tasks and not self.state.dropped

    def cancel_all(self) -> None:
        """Clients are gone: end their tasks."""
        self._clients.cancel_all()

    def fail(self, error: str) -> None:
        """The job cannot go on: say why, and stop."""
        if not self.error:
            self.error = error
            print(f"exex: {error}", file=sys.stderr, flush=True)
            self._clients.tell_of_end(error)
            self.stop(error)

    def ordered(self) -> str:
        """What somebody has ordered from the shell: to `wait` for all tasks and end, or to `cancel` them; "" for nothing."""
        return self._clients.ordered

    def end(self, reason: str) -> None:
        """End the job in order, and tell the clients why."""
        if self._stop_by_s is None:
            self._clients.tell_of_end(reason)
            self._clients.cancel_all()
            self.stop()

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
