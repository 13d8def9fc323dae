"""Calls on communicators of worker ranks: who takes part, what they have come to, and how they are stopped. Pure.

The ranks of a team have one slot each, and leave their loops for as long as the function runs: they hear nothing but what their
guards tell them (`Reach`). The task has ended when every rank of the team has said so, or is lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from exex.errors import AppException, AppTimeout, ProtocolError
from exex.manager.task import Loss, Status
from exex.protocol import payload as payloads
from exex.protocol.messages import CLIENT_SHIFT, Done, Grant, Join, Kind, Outcome, Part, Rank, TaskId
from exex.protocol.parts import PART_OUTCOMES, RankPart, combine
from exex.protocol.payload import Payload
from exex.protocol.runs import as_runs

if TYPE_CHECKING:
    from exex.manager.nodes import WorkerRecord
    from exex.manager.state import ManagerState
    from exex.manager.task import Task

OTHERS_S = 1.0
"""How long the other ranks may go on when one has failed: they may be about to fail for the same reason."""

AGAIN_S = 0.25
"""A word to a guard may be lost, so it is said again after this time."""

KILLINGS = 20
"""A rank that lives after its guard was told so often to kill it, AGAIN_S apart, cannot be reached. Time alone does not count:
the whole job may have been suspended."""

STARTED_S = 0.05
"""A call that runs longer than this is told of as started."""

LOOK_S = 0.05
"""Pause between two looks at all teams."""


class Reach(Protocol):
    """The way to ranks that do not hear, through their guards. What is said may be lost, or late."""

    def stop(self, call: int, ranks: Sequence[Rank], hard: bool) -> None:
        """Raise an exception in the function of the call with this number (`Join.call`) on these ranks; if `hard`, kill them."""

    def probe(self, ranks: Sequence[Rank]) -> None:
        """Ask for a sign of life of these ranks' guards."""


class Reason(Enum):
    """Why the ranks of a team that are missing must stop."""

    FAILED = 1  # another has failed
    TIMED_OUT = 2
    UNWANTED = 3  # the task was cancelled, or the job ends
    LOST = 4  # a rank has died by itself


class Team:
    """The ranks of one call.

    Attributes:
        call: its number.
        ranks: in the communicator's order; `lead`, at first the first of them, is the one that holds the attempt.
        living: those that are not lost.
        missing: of these, those that have not ended.
        parts: what the others have come to.
        began_s: when it was placed.
        reason: why it must stop; None if it need not. `stop_s`: when it is told so, or was.
        hard_s: when the ranks that are still missing are killed.
        again_s: when they are told next.
        killings: how often they were to be killed.
        revoked: those that have failed were told to revoke the communicator.
        announced: its client knows that it runs.
    """

    __slots__ = (
        "again_s", "announced", "began_s", "call", "hard_s", "killings", "lead", "living", "missing", "parts", "ranks", "reason",
        "revoked", "stop_s",
    )  # fmt: skip

    def __init__(self, call: int, ranks: list[Rank], now_s: float) -> None:
        self.call = call
        self.ranks = ranks
        self.lead = ranks[0]
        self.living = set(ranks)
        self.missing = set(ranks)
        self.parts: dict[Rank, RankPart] = {}
        self.began_s = now_s
        self.reason: Reason | None = None
        self.stop_s = math.inf
        self.hard_s = math.inf
        self.again_s = math.inf
        self.killings = 0
        self.revoked = False
        self.announced = False

    def __repr__(self) -> str:
        return f"<Team of {len(self.ranks)}, {len(self.missing)} missing>"


class Unreached(NamedTuple):
    """Ranks that were to be killed, and live."""

    ranks: list[Rank]
    task: TaskId


End = tuple[Rank, Done]
"""The end of an attempt, as its lead would tell it."""


def form(state: ManagerState, task: Task, grant: Grant) -> bool:
    """Let the ranks of a grant take part in a call, if each has one slot, and MPI.

    Returns:
        False if its lead must start a world of its own for it.
    """
    assert task.app is not None
    spec = task.app.spec
    if spec.kind != Kind.TOGETHER or spec.own_world or spec.gpus:  # a mask of accelerators counts once in a process's life
        return False
    workers = [state.workers[rank] for share in grant.shares for rank in share.ranks]
    if not all(worker.slots == 1 and worker.rank != state.own for worker in workers):
        return False
    ranks = [worker.rank for worker in workers[: spec.ranks]]
    state.next_call += 1
    state.teams[task.id] = team = Team(state.next_call, ranks, state.now_s)
    state.holdings[task.id].is_team = True
    for worker in workers:
        worker.in_team = True
    state.joins.append((ranks, Join(task.id, team.call, as_runs(ranks), after_loss=state.nodes.losses > 0)))
    return True


# ---- ends -----------------------------------------------------------------------------------------------------


def on_part(state: ManagerState, rank: Rank, msg: Part) -> End | None:
    """A rank's part has ended.

    Returns:
        The end of the attempt; None if others are missing.

    Raises:
        ProtocolError: the rank takes part in no such call, or cannot have come to that.
    """
    team = state.teams.get(msg.task)
    if team is None or rank not in team.missing:
        raise ProtocolError(f"rank {rank} reports its part in task {msg.task}, in which it takes none")
    if msg.outcome not in PART_OUTCOMES:
        raise ProtocolError(f"rank {rank} reports a part in task {msg.task} with the outcome {msg.outcome}")
    return _note(state, msg.task, team, rank, msg)


def split_off(state: ManagerState, msg: Done) -> tuple[Done, list[Part]]:
    """What a lead tells as the end of a call on a communicator is only that of its part. Changes nothing.

    Returns:
        The message without those, and those.
    """
    parts, others = [], []
    for i, task_id in enumerate(msg.tasks):
        if task_id in state.teams:
            outcome = msg.outcomes[i]
            if outcome == Outcome.STARVED:
                outcome = Outcome.LOST  # nobody has begun, and all must come back
            parts.append(Part(task_id, outcome, msg.payloads[i], msg.seconds[i]))
        else:
            others.append(i)
    if not parts:
        return msg, parts
    rest = Done(
        tasks=[msg.tasks[i] for i in others],
        outcomes=bytes(msg.outcomes[i] for i in others),
        payloads=[msg.payloads[i] for i in others],
        seconds=[msg.seconds[i] for i in others],
        started=msg.started,
        peaks={new: msg.peaks[i] for new, i in enumerate(others) if i in msg.peaks},
    )
    return rest, parts


def _note(state: ManagerState, task_id: TaskId, team: Team, rank: Rank, msg: Part) -> End | None:
    team.missing.discard(rank)
    team.parts[rank] = RankPart(team.ranks.index(rank), state.workers[rank].node, msg.outcome, msg.payload, msg.seconds)
    if team.missing and msg.outcome == Outcome.FAILED:
        condemn(state, task_id, Reason.FAILED, in_s=OTHERS_S)
    elif team.missing and msg.outcome == Outcome.LOST:
        condemn(state, task_id, Reason.LOST)
    return None if team.missing else _end(state, task_id, team)


def _end(state: ManagerState, task_id: TaskId, team: Team) -> End:
    lead, done = _come_to(state, task_id, team)
    if lead == team.ranks[0]:
        state.tell(lead, done)  # else it was lost with the first lead, for all that the run record knows
    return lead, done


def _come_to(state: ManagerState, task_id: TaskId, team: Team) -> End:
    """What the attempt has come to. One that was lost is marked as broken."""
    del state.teams[task_id]
    task = state.tasks.get(task_id)
    if task is None or task.app is None or task.status != Status.ASSIGNED:
        return team.lead, _done(task_id, Outcome.CANCELLED, b"", 0.0)
    spec = task.app.spec
    title = f"task {task_id & ((1 << CLIENT_SHIFT) - 1)} ({spec.name}), attempt {task.attempt},"
    parts = sorted(team.parts.values())
    if any(part.outcome == Outcome.LOST for part in parts):
        lost = next(part for part in parts if part.outcome == Outcome.LOST)
        state.broken.setdefault(task_id, Loss(team.ranks[lost.rank], lost.node, "got no communicator with the others"))
    outcome, payload, seconds = combine(title, parts, spec.every_rank)
    if outcome == Outcome.CANCELLED:
        text = f"{title} was stopped on its {len(team.ranks)} ranks: "
        if team.reason == Reason.TIMED_OUT:
            error: AppException = AppTimeout(f"{text}it ran longer than its walltime, {spec.walltime_s} s")
        else:
            error = AppException(f"{text}a rank is lost, or the job ends")
        outcome, payload = Outcome.FAILED, payloads.dump_error(error, "")
    return team.lead, _done(task_id, outcome, payload, seconds)


def _done(task_id: TaskId, outcome: int, payload: Payload, seconds: float) -> Done:
    return Done(tasks=[task_id], outcomes=bytes([outcome]), payloads=[payload], seconds=[seconds], started=[])


# ---- being stopped --------------------------------------------------------------------------------------------


def condemn(state: ManagerState, task_id: TaskId, reason: Reason, in_s: float = 0.0) -> None:
    """The ranks of a call that are missing must stop, `in_s` seconds from now if they have not ended by then."""
    team = state.teams[task_id]
    stop_s = state.now_s + in_s
    if team.reason is None:
        team.reason = reason
    if stop_s < team.stop_s:
        team.stop_s = team.again_s = stop_s
        state.look_at_teams_s = 0.0
    team.hard_s = min(team.hard_s, stop_s + state.grace_s)  # the job may have less patience than the call


def look(state: ManagerState, reach: Reach) -> list[Unreached]:
    """Walltimes, words to those who must stop, news of long calls. O(teams), at most every LOOK_S.

    Returns:
        Ranks that are to be given up.
    """
    now_s = state.now_s
    if now_s < state.look_at_teams_s:
        return []
    state.look_at_teams_s = now_s + LOOK_S
    unreached = []
    for task_id, team in state.teams.items():
        task = state.tasks.get(task_id)
        if task is not None and task.app is not None and task.status == Status.ASSIGNED:
            limit_s = task.app.spec.walltime_s
            if limit_s is not None and now_s - team.began_s >= limit_s:
                condemn(state, task_id, Reason.TIMED_OUT)
            if not team.announced and now_s - team.began_s >= STARTED_S:
                team.announced = True
                client = state.clients[task_id >> CLIENT_SHIFT]
                client.started.append(task_id)
                if client.inner is not None:
                    state.inner[client] = None
        if now_s >= team.again_s:
            if team.killings == KILLINGS:
                unreached.append(Unreached(sorted(team.missing), task_id))
            else:
                _tell(state, reach, task_id, team)
    return unreached


def _tell(state: ManagerState, reach: Reach, task_id: TaskId, team: Team) -> None:
    """Tell the ranks that are missing to stop, and once those that have failed to let them go."""
    team.again_s = state.now_s + AGAIN_S
    is_hard = state.now_s >= team.hard_s
    team.killings += is_hard
    reach.stop(team.call, sorted(team.missing), hard=is_hard)
    if not team.revoked:
        team.revoked = True
        for rank in team.living & team.parts.keys():
            if team.parts[rank].outcome != Outcome.DONE:
                state.drops.setdefault(rank, []).append(task_id)


# ---- lost ranks -----------------------------------------------------------------------------------------------


def on_worker_lost(state: ManagerState, worker: WorkerRecord, how: str) -> list[TaskId]:
    """A rank is lost: its teams do without it. Another rank stands in for a lost lead.

    One that dies by itself takes the attempt with it, which is then broken; one that had to be killed has only been stopped.

    Returns:
        Calls of which no rank is missing any more: see `end_without`.
    """
    ended, rank = [], worker.rank
    for task_id, team in state.teams.items():
        if rank not in team.living:
            continue
        team.living.discard(rank)
        if rank in team.missing:
            team.missing.discard(rank)
            team.parts[rank] = RankPart(team.ranks.index(rank), worker.node, int(Outcome.CANCELLED), b"", 0.0)
            task = state.tasks.get(task_id)
            if state.now_s < team.hard_s and task is not None and task.status == Status.ASSIGNED:
                state.broken[task_id] = Loss(rank, worker.node, how)
                condemn(state, task_id, Reason.LOST)
        elif team.missing and task_id in state.tasks:  # others may wait for what it has not sent to the end
            state.broken.setdefault(task_id, Loss(rank, worker.node, how))
            condemn(state, task_id, Reason.LOST, in_s=OTHERS_S)
        if rank == team.lead and team.living:
            _change_lead(state, task_id, team, worker)
        if not team.missing:
            ended.append(task_id)
    return ended


def end_without(state: ManagerState, task_id: TaskId) -> End:
    """The end of an attempt of which no rank is missing any more."""
    return _end(state, task_id, state.teams[task_id])


def _change_lead(state: ManagerState, task_id: TaskId, team: Team, old: WorkerRecord) -> None:
    """Let another rank of a team hold the attempt."""
    new = state.workers[min(team.living)]
    team.lead = new.rank
    holding = state.holdings[task_id]
    holding.lead = new
    new.lent -= holding.lent[new]
    new.change_room(1)
    new.held += 1
    task = state.tasks.get(task_id)
    if task is not None and task.status == Status.ASSIGNED:
        task.rank = new.rank
        new.held_s += task.guess_s
        assert old.tasks is not None
        new.tasks = {**(new.tasks or {}), task_id: old.tasks.pop(task_id)}
    else:
        state.dropped[task_id] = new.rank
    state.nodes.touch(new)
