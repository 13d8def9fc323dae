"""What each message does to the manager's state. Handlers place nothing and send nothing: `turn` does, once per turn."""

from __future__ import annotations

from concurrent.futures import CancelledError

from exex.errors import ProtocolError, WorkerLost
from exex.manager.state import ClientRecord, ManagerState, WorkerRecord
from exex.manager.task import App, CachedTask, Status, Task
from exex.protocol import payload as payloads
from exex.protocol.messages import (
    CLIENT_SHIFT,
    KEY_BYTES,
    Applied,
    Attach,
    Cancel,
    Done,
    Finish,
    Fulfil,
    Hello,
    Outcome,
    Promise,
    Rank,
    Submit,
    TaskId,
    Verdict,
)
from exex.protocol.payload import Payload

# ---- clients --------------------------------------------------------------------------------------------------


def on_attach(state: ManagerState, msg: Attach) -> ClientRecord:
    """A new client. Its number is the next free one."""
    client = ClientRecord(len(state.clients))
    state.clients[client.number] = client
    return client


def on_submit(state: ManagerState, client: ClientRecord, msg: Submit) -> None:
    """Take new tasks into the graph. Cost: O(tasks + needs).

    Raises:
        ProtocolError: an app, a function or a need that the client never named; columns of unequal length.
    """
    client.applied(msg.answered)
    state.functions.update((digest, function) for digest, function in msg.functions.items())
    for spec in msg.apps:
        state.new_app(client, spec)
    first, count, calls = client.base + msg.first, len(msg.payloads), msg.calls
    if not count or (len(calls) != count and len(calls) != 1):
        raise ProtocolError(f"client {client.number}: {len(calls)} apps for {count} calls")
    if first in state.tasks or first + count - 1 in state.tasks:
        raise ProtocolError(f"client {client.number}: task {msg.first} exists already")
    try:
        apps = [client.apps[number] for number in calls]
    except KeyError as error:
        raise ProtocolError(f"client {client.number}: calls an app {error} that it never named") from None
    if msg.keys and not all(0 <= i < count and len(key.partial) == KEY_BYTES for i, key in msg.keys.items()):
        raise ProtocolError(f"client {client.number}: keys that belong to no call, or are none")
    app_of_each = apps * count if len(apps) == 1 else apps
    new = [Task(first + i, app, call) for i, (app, call) in enumerate(zip(app_of_each, msg.payloads))]
    for i, key in msg.keys.items():
        new[i] = CachedTask(first + i, app_of_each[i], msg.payloads[i], key)
    state.tasks.update((task.id, task) for task in new)
    state.counts.submitted += count
    client.unfinished += count
    if len(apps) == 1 and not msg.needs and not msg.keys:
        state.ready.push_all(new)
        return
    for i, task in enumerate(new):
        needs = msg.needs.get(i)
        if needs is None:
            _needs_are_there(state, task)
        else:
            _link(state, client, task, needs, msg.given.get(i, {}))
    _end_found(state)


def _link(state: ManagerState, client: ClientRecord, task: Task, needs: list[TaskId], given: dict[int, Payload]) -> None:
    """Tie a new task to its needs; ready it if all are there, fail it if one has failed.

    Raises:
        ProtocolError: a need that is neither unfinished nor kept nor given.
    """
    values: list[Payload] = [None] * len(needs)
    task.values = values
    failed: tuple[TaskId, Payload] | None = None
    for place, local in enumerate(needs):
        if place in given:
            values[place] = given[place]
            task.depth = max(task.depth, 1)
            continue
        need = state.tasks.get(client.base + local)
        if need is not None:
            if need.dependents is None:
                need.dependents = []
            need.dependents.append((task, place))
            task.open_needs += 1
            task.depth = max(task.depth, need.depth + 1)
            continue
        outcome, value = client.kept.get(client.base + local, (-1, None))
        if outcome < 0:
            raise ProtocolError(f"client {client.number}: task {task.id - client.base} needs task {local}, which is unknown")
        if outcome == Outcome.DONE:
            values[place] = value
            task.depth = max(task.depth, 1)
        else:
            failed = (client.base + local, value)
    if failed is not None:
        task.status = Status.WAITING
        fail(state, task, Outcome.NEED_FAILED, failed[1], [failed[0]])
    elif not task.open_needs:
        _needs_are_there(state, task)


def _needs_are_there(state: ManagerState, task: Task) -> None:
    """Ready a task, unless it is a cached call whose result is known or on the way. `_end_found` must follow."""
    if not isinstance(task, CachedTask) or state.memo.enter(task):
        state.ready.push(task)


def on_promise(state: ManagerState, client: ClientRecord, msg: Promise) -> None:
    """Tasks that the client itself will fulfil."""
    for local in range(msg.first, msg.first + msg.count):
        task = Task(client.base + local, None, b"")
        if task.id in state.tasks:
            raise ProtocolError(f"client {client.number}: task {local} exists already")
        state.tasks[task.id] = task
    state.counts.submitted += msg.count
    client.unfinished += msg.count


def on_fulfil(state: ManagerState, client: ClientRecord, msg: Fulfil) -> None:
    """Outcomes of promises.

    Raises:
        ProtocolError: not an open promise of this client.
    """
    for local, outcome, value in zip(msg.tasks, msg.outcomes, msg.payloads, strict=True):
        task = state.tasks.get(client.base + local)
        if task is None or task.app is not None:
            raise ProtocolError(f"client {client.number}: task {local} is not an open promise")
        if outcome == Outcome.DONE:
            succeed(state, task, value)
        else:
            fail(state, task, Outcome.FAILED, value)
    _end_found(state)


def on_cancel(state: ManagerState, client: ClientRecord, msg: Cancel) -> None:
    """End tasks that nobody wants. Unknown ones have ended meanwhile."""
    for local in msg.tasks:
        task = state.tasks.get(client.base + local)
        if task is not None:
            cancel(state, task)


def on_verdict(state: ManagerState, client: ClientRecord, msg: Verdict) -> None:
    """The retry handler's decision. For a task that is not asking (it was cancelled) nothing happens."""
    task = state.tasks.get(client.base + msg.task)
    if task is None or task.status != Status.ASKING:
        return
    if msg.retry:
        task.attempt += 1
        state.ready.push(task)
    else:
        fail(state, task, Outcome.FAILED, msg.payload)


def on_applied(state: ManagerState, client: ClientRecord, msg: Applied) -> None:
    """Values that the client has need not be kept."""
    client.applied(msg.answered)


def on_finish(state: ManagerState, client: ClientRecord, msg: Finish) -> None:
    """The script has ended: answers are no longer wanted; with `cancel`, neither are its tasks."""
    client.finished = True
    client.clear_answer()
    client.kept.clear()
    client.unapplied.clear()
    if msg.cancel:
        for task in [task for task in state.tasks.values() if task.id >> CLIENT_SHIFT == client.number]:
            if state.tasks.get(task.id) is task:
                cancel(state, task)


# ---- workers --------------------------------------------------------------------------------------------------


def on_hello(state: ManagerState, rank: Rank, msg: Hello) -> None:
    """A worker is up and may get work.

    Raises:
        ProtocolError: it has said so before.
    """
    if rank in state.workers:
        raise ProtocolError(f"rank {rank} said Hello twice")
    worker = WorkerRecord(rank, msg.node, msg.pid, msg.slots)
    state.workers[rank] = worker
    state.list_worker(worker)


def on_done(state: ManagerState, rank: Rank, msg: Done) -> None:
    """Retire ended attempts, answer their clients, and ready what they alone held back. Cost: O(results + dependents).

    Raises:
        ProtocolError: `rank` reports a task that it does not hold.
    """
    worker = state.workers.get(rank)
    if worker is None:
        return  # it was given up; its attempts are with others now
    tasks = state.tasks
    for task_id, outcome, value, seconds in zip(msg.tasks, msg.outcomes, msg.payloads, msg.seconds, strict=True):
        task = tasks.get(task_id)
        if task is None or task.rank != rank or task.status != Status.ASSIGNED:
            if state.dropped.pop(task_id, None) != rank:
                raise ProtocolError(f"rank {rank} reports task {task_id}, which it does not hold")
            worker.held -= 1
            continue
        worker.held -= 1
        state.assigned -= 1
        app = task.app
        assert app is not None
        worker.held_s -= task.guess_s
        if outcome == Outcome.DONE:
            mean = app.mean_s
            app.mean_s = seconds if mean < 0 else mean + (min(seconds, 10 * mean + OUTLIER_S) - mean) * 0.05
            if isinstance(task, CachedTask):
                state.memo.done(task, value, seconds)
            succeed(state, task, value)
        else:
            _attempt_failed(state, task, app, outcome, value)
    for task_id in msg.started:
        task = tasks.get(task_id)
        if task is not None and task.rank == rank:
            state.clients[task_id >> CLIENT_SHIFT].started.append(task_id)
    if worker.held_s < 0 or not worker.held:
        worker.held_s = 0.0
    state.list_worker(worker)
    _end_found(state)


def _attempt_failed(state: ManagerState, task: Task, app: App, outcome: int, error: Payload) -> None:
    """Try again, ask the client's retry handler, or fail the task."""
    if app.spec.asks and not state.clients[task.id >> CLIENT_SHIFT].finished:
        task.status = Status.ASKING
        client = state.clients[task.id >> CLIENT_SHIFT]
        client.tasks.append(task.id)
        client.outcomes.append(Outcome.ASK)
        client.payloads.append(error)
    elif task.attempt <= app.spec.retries:
        task.attempt += 1
        state.ready.push(task)
    else:
        fail(state, task, outcome, error)


def on_worker_lost(state: ManagerState, rank: Rank, why: str) -> None:
    """A worker is gone: its attempts are tried again on others, without counting as failures. Cost: O(tasks)."""
    worker = state.workers.pop(rank)
    worker.leaving = True
    if worker.in_free:
        state.free.remove(worker)
    if worker.in_busy:
        state.busy.remove(worker)
    state.drops.pop(rank, None)
    state.dropped = {task: holder for task, holder in state.dropped.items() if holder != rank}
    for task in [task for task in state.tasks.values() if task.status == Status.ASSIGNED and task.rank == rank]:
        state.assigned -= 1
        task.attempt += 1
        assert task.app is not None
        if task.attempt > task.app.spec.retries + LOSSES_TOLERATED:
            error = WorkerLost(f"task {task.id} ({task.app.spec.name}) lost its worker again: {why}", rank, worker.node)
            fail(state, task, Outcome.LOST, payloads.dump_error(error, ""))
        else:
            state.ready.push(task)


OUTLIER_S = 1e-4
"""Added to ten times the average, the most that one running time counts for in it."""

LOSSES_TOLERATED = 3
"""A task that was on this many lost workers, beyond its retries, is taken for the cause and fails."""


# ---- cached calls ----------------------------------------------------------------------------------------------


def on_fetched(state: ManagerState, key: bytes, value: Payload | None) -> None:
    """The store's answer to `Store.fetch`; None if there is no such result, or if it does not count."""
    task = state.memo.fetched(key, value)
    if task is not None:
        state.ready.push(task)
    _end_found(state)


def _end_found(state: ManagerState) -> None:
    """End the tasks whose value the memo knows; those that this readies may be among them. No recursion: chains are long."""
    found = state.memo.found
    while found:
        task, value = found.popleft()
        if state.tasks.get(task.id) is task:
            succeed(state, task, value)


# ---- ends of tasks --------------------------------------------------------------------------------------------


def succeed(state: ManagerState, task: Task, value: Payload) -> None:
    """Finish a task with a value, which fills its places in the dependents. `_end_found` must follow."""
    state.finish_task(task, Outcome.DONE, value)
    if task.dependents is None:
        return
    for dependent, place in task.dependents:
        if state.tasks.get(dependent.id) is not dependent:
            continue  # failed or cancelled meanwhile
        assert dependent.values is not None
        dependent.values[place] = value
        dependent.open_needs -= 1
        if not dependent.open_needs:
            _needs_are_there(state, dependent)


def fail(state: ManagerState, task: Task, outcome: int, error: Payload, causes: list[TaskId] | None = None) -> None:
    """Finish a task with an error; its dependents, theirs, and so on fail for it and never run."""
    failed = [task]
    if isinstance(task, CachedTask):
        failed += state.memo.failed(task)
    for one in failed:
        state.finish_task(one, outcome, error, causes and _local(causes))
    while failed:
        need = failed.pop()
        for dependent, _ in need.dependents or ():
            if state.tasks.get(dependent.id) is dependent:
                state.finish_task(dependent, Outcome.NEED_FAILED, error, _local([need.id]))
                failed.append(dependent)


def _local(tasks: list[TaskId]) -> list[TaskId]:
    return [task & ((1 << CLIENT_SHIFT) - 1) for task in tasks]


def cancel(state: ManagerState, task: Task) -> None:
    """End a task in whatever state it is; its dependents fail with CancelledError."""
    if task.status == Status.READY:
        state.ready.forget()
        task.status = Status.WAITING
    elif task.status == Status.ASSIGNED:
        state.assigned -= 1
        state.dropped[task.id] = task.rank
        state.drops.setdefault(task.rank, []).append(task.id)
    state.finish_task(task, Outcome.CANCELLED, b"")
    if isinstance(task, CachedTask):
        following = state.memo.cancelled(task)
        if following is not None:
            state.ready.push(following)
    if task.dependents:
        error = payloads.dump_error(CancelledError(f"task {_local([task.id])[0]} was cancelled"), "")
        for dependent, _ in task.dependents:
            if state.tasks.get(dependent.id) is dependent:
                fail(state, dependent, Outcome.NEED_FAILED, error, [task.id])

