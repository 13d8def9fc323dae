"""What each message of a worker, and its loss, does to the manager's state. Handlers place nothing and send nothing."""

from __future__ import annotations

from exex.errors import ProtocolError, WorkerLost
from exex.manager import grants, keeping, teams
from exex.manager.ends import end_found, fail, requeue, succeed
from exex.manager.nodes import WorkerRecord
from exex.manager.records import Again
from exex.manager.state import ManagerState
from exex.manager.task import SHORT_S, App, CachedTask, Loss, Status, Task
from exex.protocol import payload as payloads
from exex.protocol.messages import CLIENT_SHIFT, Done, Hello, Outcome, Part, Rank, TaskId
from exex.protocol.payload import Payload, Stored
from exex.protocol.task_numbers import name_of, shown

OUTLIER_S = 1e-4
"""Added to ten times the average, the most that one running time counts for in it."""

LOSSES_TOLERATED = 3
"""A task that was on more lost workers than this is taken for the cause and fails. A value that was lost more often is not made
again."""

STARVED_TOLERATED = 20
"""A task that was sent so often to workers that could not get what it needs fails with the next one."""


def on_hello(state: ManagerState, rank: Rank, msg: Hello) -> None:
    """A worker is up and may get work.

    Raises:
        ProtocolError: it has said so before.
    """
    if rank in state.workers:
        raise ProtocolError(f"rank {rank} said Hello twice")
    worker = WorkerRecord(rank, state.nodes.get(msg.node), msg.slots, msg.cores, msg.gpus)
    state.nodes.add(worker, msg.memory_bytes)
    if msg.store:
        worker.store = state.data.store(msg.store)
        worker.store.ranks[rank] = None
    state.workers[rank] = worker
    state.list_worker(worker)


def on_done(state: ManagerState, rank: Rank, msg: Done) -> None:
    """Retire ended attempts, answer their clients, and ready what they alone held back. Cost: O(results + dependents).

    Raises:
        ProtocolError: `rank` reports a task that it does not hold.
    """
    worker = state.workers.get(rank)
    if worker is None:
        raise ProtocolError("it reports before its Hello")
    if state.teams:
        for task_id, outcome in zip(msg.tasks, msg.outcomes):
            if outcome == Outcome.STARVED and task_id in state.teams and worker.tasks and task_id in worker.tasks:
                state.data.on_starved(worker, worker.tasks[task_id])
        msg, parts = teams.split_off(state, msg)
        for part in parts:
            on_part(state, rank, part)
    _retire(state, worker, msg)
    state.tell(rank, msg)


def take_stored(state: ManagerState, rank: Rank, msg: Done) -> None:
    """Put records in the places of stored values, before `on_done`. What nobody wants is freed with its record.

    Raises:
        ProtocolError: it may not be stored, or not under this name.
    """
    worker = state.workers.get(rank)
    if worker is None:
        return  # `on_done` says so
    for i, (task_id, value) in enumerate(zip(msg.tasks, msg.payloads)):
        if type(value) is Stored:
            task = (worker.tasks or {}).get(task_id)
            is_in_band = task is not None and task.app is not None and task.app.spec.sends_value
            if is_in_band or task_id in state.teams or msg.outcomes[i] != Outcome.DONE:
                raise ProtocolError(f"rank {rank} has stored what belongs into its message about task {task_id}")
            msg.payloads[i] = state.data.of_task(value, worker, task_id, task)


def _retire(state: ManagerState, worker: WorkerRecord, msg: Done) -> None:
    """Ends of attempts, as a worker has told them or a team has come to."""
    held, holdings = worker.tasks or {}, state.holdings
    for task_id, outcome, value, seconds in zip(msg.tasks, msg.outcomes, msg.payloads, msg.seconds):
        task = held.pop(task_id, None)
        if task is None:
            _dropped(state, worker, task_id)
            continue
        worker.held -= 1
        if state.parents or state.waiting or state.returning:
            _end_as_client(state, worker, task_id)
        if holdings and task_id in holdings:
            grants.give_back(state, task_id)
        state.assigned -= 1
        app = task.app
        assert app is not None
        worker.held_s -= task.guess_s
        if outcome == Outcome.DONE:
            if state.broken:
                state.broken.pop(task_id, None)
            mean = app.mean_s
            if seconds > SHORT_S:
                app.recent_s.append(seconds)
                app.longest_s = max(app.longest_s, seconds)
            app.mean_s = seconds if mean < 0 else mean + (min(seconds, 10 * mean + OUTLIER_S) - mean) * 0.05
            if isinstance(task, CachedTask):
                state.memo.done(task, value, seconds)
            succeed(state, task, value)
        else:
            _attempt_failed(state, task, app, outcome, value)
    _note_started(state, worker.rank, msg.started)
    if worker.held_s < 0 or not worker.held:
        worker.held_s = 0.0
    worker.tasks = held or None
    state.places.note(msg.tasks, worker.home)
    if state.data.in_use:
        state.ready.near.touch(worker.store)
    if state.nodes.watched:
        state.nodes.touch(worker)
    state.list_worker(worker)
    end_found(state)


def _end_as_client(state: ManagerState, worker: WorkerRecord, task_id: TaskId) -> None:
    """An attempt has ended, which may have made tasks and waited for them."""
    grants.come_back(state, worker, task_id)
    if task_id in state.parents:
        state.orphaned.append(task_id)


def on_part(state: ManagerState, rank: Rank, msg: Part) -> None:
    """A rank's part in a call on a communicator has ended.

    Raises:
        ProtocolError: it takes part in no such call.
    """
    if rank not in state.workers:
        raise ProtocolError("it reports before its Hello")
    end = teams.on_part(state, rank, msg)
    if end is not None:
        lead, done = end
        _retire(state, state.workers[lead], done)


def _dropped(state: ManagerState, worker: WorkerRecord, task_id: TaskId) -> None:
    """A worker reports what nobody wants any more.

    Raises:
        ProtocolError: it was not told so.
    """
    if state.dropped.get(task_id) != worker.rank:
        raise ProtocolError(f"rank {worker.rank} reports task {task_id}, which it does not hold")
    del state.dropped[task_id]
    worker.held -= 1
    grants.come_back(state, worker, task_id)
    if task_id in state.holdings:
        grants.give_back(state, task_id)


def _note_started(state: ManagerState, rank: Rank, started: list[TaskId]) -> None:
    """Tell clients of tasks that have run for a while."""
    for task_id in started:
        task = state.tasks.get(task_id)
        if task is not None and task.rank == rank:
            client = state.clients[task_id >> CLIENT_SHIFT]
            client.started.append(task_id)
            if client.inner is not None:
                state.inner[client] = None


def _attempt_failed(state: ManagerState, task: Task, app: App, outcome: int, error: Payload) -> None:
    """Try again, ask the client's retry handler, or fail the task."""
    if task.id in state.broken:
        _attempt_lost(state, task, state.broken.pop(task.id))
    elif outcome == Outcome.STARVED:
        _attempt_starved(state, task)
    elif app.spec.asks and not isinstance(task, Again) and state.clients[task.id >> CLIENT_SHIFT].can_be_asked():
        task.status = Status.ASKING
        client = state.clients[task.id >> CLIENT_SHIFT]
        client.tasks.append(task.id)
        client.outcomes.append(Outcome.ASK)
        client.hurry = True
        client.payloads.append(error)
        if client.inner is not None:
            state.inner[client] = None
    elif task.attempt - state.losses.get(task.id, 0) - state.data.starved.get(task.id, 0) <= app.spec.retries:
        task.attempt += 1
        requeue(state, task)
    else:
        fail(state, task, outcome, error)


def _attempt_starved(state: ManagerState, task: Task) -> None:
    """Try again where what the task needs is said to be once that is known, unless it was never to be had."""
    if state.data.on_starved(state.workers[task.rank], task) > STARVED_TOLERATED:
        assert task.app is not None
        error = WorkerLost(
            f"task {name_of(shown(task.id))} ({task.app.spec.name}) was sent to workers {STARVED_TOLERATED + 1} times that "
            f"could not get what it needs from other nodes; the last was rank {task.rank} on {state.workers[task.rank].node}: "
            "see what the ranks say about their stores, or set --keep-bytes 0",
            task.rank,
            state.workers[task.rank].node,
        )
        fail(state, task, Outcome.FAILED, payloads.dump_error(error, ""))
    else:
        task.attempt += 1
        requeue(state, task)


def on_worker_lost(state: ManagerState, rank: Rank, how: str) -> int:
    """A worker is gone: its attempts are tried again on others, without counting as failures. Cost: O(its tasks + holdings).

    So are the attempts of other workers to which it had lent slots, as soon as those have dropped them.

    Returns:
        How many attempts it held.
    """
    worker = state.workers.pop(rank)
    worker.leaving = True
    worker.outgoing = worker.grants = None
    state.refilled = [other for other in state.refilled if other is not worker]
    state.drops.pop(rank, None)
    state.stock.forget(worker)
    for task_id in [task for task, holder in state.dropped.items() if holder == rank]:
        del state.dropped[task_id]
        state.waiting.pop(task_id, None)
        state.returning.pop(task_id, None)
    loss = Loss(rank, worker.node, how)
    without = teams.on_worker_lost(state, worker, how) if state.teams else []
    state.nodes.remove(worker)
    state.data.on_rank_lost(worker.store, rank)
    for task_id in grants.forget_worker(state, worker):
        _break(state, task_id, loss)
    keeping.note_loss(state, worker.home)
    held = list(worker.tasks.values()) if worker.tasks else []
    worker.tasks = None
    for task in held:
        state.assigned -= 1
        state.waiting.pop(task.id, None)
        state.returning.pop(task.id, None)
        if task.id in state.parents:
            state.orphaned.append(task.id)
        end = teams.end_without(state, task.id)[1] if task.id in state.teams else None
        broken = state.broken.pop(task.id, None)
        if end is None or broken is not None:
            _attempt_lost(state, task, loss)
        else:
            assert task.app is not None
            _attempt_failed(state, task, task.app, end.outcomes[0], end.payloads[0])  # all its ranks had to be killed
    for task_id in without:
        if task_id in state.teams:
            lead, done = teams.end_without(state, task_id)
            if lead in state.workers:
                _retire(state, state.workers[lead], done)
    return len(held)


def _break(state: ManagerState, task_id: TaskId, loss: Loss) -> None:
    """An attempt has lost slots that it holds elsewhere: its lead must drop it, and is heard before it is tried again."""
    task = state.tasks.get(task_id)
    if task_id in state.teams or task is None or task.status != Status.ASSIGNED or task_id in state.broken:
        return  # teams have seen to it, or it is dropped already
    state.broken[task_id] = loss
    state.drops.setdefault(task.rank, []).append(task_id)


def _attempt_lost(state: ManagerState, task: Task, loss: Loss) -> None:
    """Try again, unless the task has lost so many workers that it must be the cause."""
    task.attempt += 1
    losses = state.losses[task.id] = state.losses.get(task.id, 0) + 1
    assert task.app is not None
    if losses > LOSSES_TOLERATED:
        error = WorkerLost(
            f"task {name_of(shown(task.id))} ({task.app.spec.name}) lost its worker {losses} times; "
            f"the last, rank {loss.rank} on {loss.node}, {loss.how}",
            loss.rank,
            loss.node,
        )
        fail(state, task, Outcome.LOST, payloads.dump_error(error, ""))
    else:
        requeue(state, task)
