"""Taking tasks back that are queued at workers and have not begun: where others idle, or where something better waits. Pure.

Prefetch is a guess about lengths, and a queue behind a task that turned out long is where it goes wrong. So it is undone

* when workers idle and nothing is ready: from the longest queues, half of each, or all of one that stands still;
* when a task of a better priority waits for a slot: a slot comes free for it where nothing is queued;
* when a node is kept for a big task, which begins sooner if the node has only what already runs to end.

A worker answers exactly: what it gives back had not begun, and is the same attempt wherever it goes; what it does not give
back has begun. So nothing runs twice and no attempt is counted. Nobody is asked before the last answer is here, nothing is asked
for that no idle slot could take, and no task comes back more than `MOST_RETURNS` times: so tasks cannot be sent to and fro.
While no slot is idle, nothing is ready behind worse and no node is kept, nothing is looked at, and nothing is said.
"""

from __future__ import annotations

import heapq
import math
from itertools import islice

from exex.errors import ProtocolError
from exex.manager.nodes import WorkerRecord
from exex.manager.state import ManagerState
from exex.manager.stock import MOST_RETURNS
from exex.manager.task import LEAST_TASK_S, Status, Task
from exex.protocol.messages import Done, Outcome, Rank, Retract, Returned, TaskId
from exex.protocol.payload import Payload

WORTH_S = 0.002
"""What is queued for less than this, per slot, is begun before it could have come back and gone elsewhere."""

STUCK_S = 0.005
"""A worker that has ended nothing for so long beyond what all that it holds should take runs something longer than thought."""

LOOK_S = 0.002
"""Pause between two looks at the queues, and LOOK_SHARE more for each of them: some fifty times what a look takes."""

LOOK_SHARE = 2e-5

LOOKED_AT = 256
"""Idle workers that are counted at a look, and workers that are asked."""

QUEUES = 8192
"""Queues that are looked at at once; where there are more, others the next time."""


def retract(state: ManagerState) -> None:
    """Decide what is to come back. After placement, once per turn; O(1) unless it is time to look."""
    stock = state.stock
    stock.gap_s, stock.turned_s = state.now_s - stock.turned_s, state.now_s
    if stock.drains:
        for worker in list(stock.drains):
            _drain(state, worker)
    if not stock.workers or state.now_s < stock.next_look_s or state.must_place or stock.is_behind:
        stock.must_look = True
        return
    stock.must_look = False
    if state.ready.count:
        first = state.ready.first()
        if first is not None and first.app is not None and first.app.spec.priority < stock.lowest:
            _make_way(state, first)
    elif state.free:
        _share(state)


def next_look_s(state: ManagerState) -> float | None:
    """When a turn must follow though nothing arrives; None if queues need no look: a slot must come free first."""
    stock = state.stock
    if not stock.must_look or not stock.workers or state.ready.count or not state.free or not _idle_slots(state, 1):
        return None
    return stock.next_look_s


# ---- whom to ask ----------------------------------------------------------------------------------------------


def _queues(state: ManagerState) -> list[tuple[float, int, WorkerRecord]]:
    """Workers with a queue that may be asked: seconds of work queued per slot, how long it has not moved, and who.

    Forgets those that have none any more.
    """
    stock, now_s = state.stock, state.now_s
    looked_at = list(islice(stock.workers, QUEUES))
    stock.next_look_s = now_s + LOOK_S + len(looked_at) * LOOK_SHARE
    if len(looked_at) < len(stock.workers):
        stock.must_look = True
        for worker in looked_at:
            stock.workers[worker] = stock.workers.pop(worker)  # to the end
    found = []
    for place, worker in enumerate(looked_at):
        queued = worker.held - worker.room
        if queued <= 0:
            del stock.workers[worker]
            continue
        if worker.rank in stock.asked or worker.in_team or stock.moves(worker, now_s) == -math.inf:
            continue
        stock.must_look = True
        found.append((worker.held_s * queued / worker.held / max(1, worker.room), place, worker))
    return found


def _idle_slots(state: ManagerState, enough: int = 1 << 30) -> int:
    """Slots that are free now, of the workers that were busy last; not all of them if there are `enough`."""
    idle = 0
    for worker in islice(reversed(state.free), LOOKED_AT):
        if not worker.leaving and worker.held < worker.open:
            idle += worker.open - worker.held
            if idle >= enough:
                break
    return idle


def _is_stuck(state: ManagerState, worker: WorkerRecord) -> bool:
    """Whether a worker should have ended all that it holds, and has ended nothing.

    Turns may be long: what is said in one leaves at its end, and what is answered is read in the next.
    """
    expected_s = (worker.held_s + worker.held * LEAST_TASK_S) / max(1, worker.room)
    return state.stock.moves(worker, state.now_s) >= STUCK_S + expected_s + 2 * state.stock.gap_s


def _share(state: ManagerState) -> None:
    """Workers idle and nothing is ready: take from the longest queues what the idle slots could begin."""
    stock = state.stock
    idle = float(_idle_slots(state))
    for asked in stock.asked.values():
        idle -= len(asked)  # they are on their way to these slots
    if idle <= 0:
        return
    queues = _queues(state)
    for queued_s, _, worker in heapq.nlargest(LOOKED_AT, queues):
        if idle <= 0:
            break
        queued = worker.held - worker.room
        is_stuck = _is_stuck(state, worker)
        if not is_stuck and queued_s < WORTH_S:
            continue
        each_s = max(LEAST_TASK_S, worker.held_s / worker.held)
        a_slot = max(1, int(state.prefetch_s / each_s))  # so many a slot would be given of these
        most = min(queued if is_stuck else -(-queued // 2), math.ceil(idle * a_slot))
        idle -= _ask(state, worker, most) / a_slot


def _make_way(state: ManagerState, first: Task) -> None:
    """Tasks like this one wait for a slot: where worse ones of its client are queued, one comes free as soon as one ends.

    From as many slots as tasks wait, those with the longest queues. Not where nothing moves: a slot there comes free late.
    """
    wanted = state.ready.first_count()
    for queued_s, _, worker in heapq.nlargest(LOOKED_AT, _queues(state)):
        if wanted <= 0 or queued_s < WORTH_S:
            break
        if not _is_stuck(state, worker) and _ask(state, worker, worker.held - worker.room, first):
            wanted -= max(1, worker.room)


def _drain(state: ManagerState, worker: WorkerRecord) -> None:
    """The node of a worker is kept: whatever it has not begun is to run elsewhere."""
    if worker.rank in state.stock.asked:
        return  # after its answer
    del state.stock.drains[worker]
    if worker.home.kept is not None and not worker.in_team:
        _ask(state, worker, worker.held - worker.room)


def _ask(state: ManagerState, worker: WorkerRecord, most: int, below: Task | None = None) -> int:
    """Ask for up to `most` of a worker's tasks, those that it got last. O(tasks).

    Args:
        below: only those of this one's client with a higher priority number than it has; between clients these do not count.

    Returns:
        How many were asked for.
    """
    stock, wanted = state.stock, list[TaskId]()
    for task in islice(reversed((worker.tasks or {}).values()), max(0, most)):
        assert task.app is not None
        if below is not None and not _is_worse(state, task, below):
            break
        if task.app.request is None and task.id not in state.ready.affinity and stock.returns.get(task.id, 0) < MOST_RETURNS:
            wanted.append(task.id)
    if not wanted:
        stock.in_vain(worker)
        return 0
    stock.asked[worker.rank] = frozenset(wanted)
    stock.outgoing.append((worker.rank, Retract(tasks=wanted)))
    return len(wanted)


def _is_worse(state: ManagerState, task: Task, than: Task) -> bool:
    assert task.app is not None and than.app is not None
    return state.ready.root_of(task.id) == state.ready.root_of(than.id) and task.app.spec.priority > than.app.spec.priority


# ---- what comes back ------------------------------------------------------------------------------------------


def on_returned(state: ManagerState, rank: Rank, msg: Returned) -> list[TaskId]:
    """Tasks that a worker had not begun are ready again, before all that came after them. Cost: O(tasks).

    Returns:
        Those that are; the others are not wanted any more.

    Raises:
        ProtocolError: it was not asked for them, or does not hold them.
    """
    worker = state.workers.get(rank)
    asked = state.stock.asked.get(rank)
    if worker is None or asked is None:
        raise ProtocolError("it gives tasks back that nobody has asked for")
    held = worker.tasks or {}
    dropped = [task for task in msg.tasks if task not in held]
    if len(set(msg.tasks)) < len(msg.tasks) or not asked.issuperset(msg.tasks):
        raise ProtocolError("it gives tasks back that it was not asked for")
    if any(state.dropped.get(task) != rank for task in dropped):
        raise ProtocolError("it gives tasks back that it does not hold")
    del state.stock.asked[rank]
    back = [held.pop(task) for task in msg.tasks if task in held]
    _take_back(state, worker, back)
    for task_id in dropped:
        del state.dropped[task_id]
    worker.held -= len(dropped)
    if dropped:
        unwanted: list[Payload] = [b""] * len(dropped)
        outcomes = bytes([Outcome.CANCELLED]) * len(dropped)
        state.tell(rank, Done(tasks=dropped, outcomes=outcomes, payloads=unwanted, seconds=[0.0] * len(dropped), started=[]))
    worker.tasks = held or None
    if worker.held_s < 0 or not worker.held:
        worker.held_s = 0.0
    if msg.tasks:
        state.stock.gave.add(worker)
    else:
        state.stock.in_vain(worker)
    if state.nodes.watched:
        state.nodes.touch(worker)
    state.list_worker(worker)
    return [task.id for task in back]


def _take_back(state: ManagerState, worker: WorkerRecord, tasks: list[Task]) -> None:
    returns = state.stock.returns
    for task in tasks:
        assert task.status == Status.ASSIGNED
        worker.held_s -= task.guess_s
        returns[task.id] = returns.get(task.id, 0) + 1
    worker.held -= len(tasks)
    state.assigned -= len(tasks)
    state.stock.returned += len(tasks)
    if state.data.in_use:
        tasks = [task for task in tasks if state.data.admit(task)]
    state.ready.put_back(reversed(tasks))
