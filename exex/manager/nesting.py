"""Tasks that make tasks: from when to when what they make is wanted. Pure."""

from __future__ import annotations

from exex.errors import ProtocolError
from exex.manager import ends, from_clients, grants
from exex.manager.inner import root_of
from exex.manager.nodes import WorkerRecord
from exex.manager.state import ClientRecord, ManagerState
from exex.manager.task import Status
from exex.protocol.messages import CLIENT_SHIFT, FromTasks, Promise, Rank, Submit, TaskId


def on_said(state: ManagerState, client: ClientRecord, parent: TaskId) -> bool:
    """What a task process says next about tasks, this task of it says. What an earlier one has left ends.

    Returns:
        Whether this task is wanted.
    """
    inner = client.inner
    assert inner is not None
    if inner.parent == parent and state.parents.get(parent) is client:
        return True
    _end_open(state, client)
    state.parents.pop(inner.parent, None)
    task = state.tasks.get(parent)
    inner.parent = parent
    if task is None or task.status != Status.ASSIGNED or task.rank != inner.rank:
        return False
    state.parents[parent] = client
    inner.depth = task.depth
    if not client.unfinished:
        inner.root = root_of(state, parent >> CLIENT_SHIFT)
        state.ready.set_root(client.number, inner.root)
    return True


def on_unwanted(state: ManagerState, client: ClientRecord, msg: object) -> None:
    """What a task says about tasks, which is to be stopped and may not have heard of it. None of them is made.

    What its process will take for known afterwards, if it has just ended, is noted.

    Raises:
        ProtocolError: a number that was used before; an app or function that was never named.
    """
    if type(msg) is Submit:
        from_clients.check_submit(state, client, msg)
        from_clients.note_apps(state, client, msg)
        client.used.add(client.base + msg.first, len(msg.payloads))
    elif type(msg) is Promise:
        client.used.add(client.base + msg.first, msg.count)


def end_orphans(state: ManagerState) -> None:
    """Attempts that had made tasks have ended: whatever they have made, and is not done, ends as well, and what that has made."""
    while state.orphaned:
        client = state.parents.pop(state.orphaned.pop(), None)
        if client is not None and client.inner is not None:
            client.inner.parent = -1
            _end_open(state, client)


def _end_open(state: ManagerState, client: ClientRecord) -> None:
    """Cancel what a task process has made. It is not answered: who would hear it has ended."""
    assert client.inner is not None
    tasks = [state.tasks[number] for number in client.inner.open]
    if not tasks:
        return
    if state.cancelled is not None:
        state.cancelled(client.number, [task.id - client.base for task in tasks])
    for task in tasks:
        if state.tasks.get(task.id) is task:
            ends.cancel(state, task)
    ends.end_found(state)


def may_go_on(worker: WorkerRecord) -> bool:
    """Whether an attempt that counts again can have slots, now or as soon as others of this worker have ended.

    A worker that has lent slots, or runs a function itself, does not know of it: nothing but what fits beside that may run there.
    """
    return worker.held <= worker.room or not (worker.lent or worker.in_team)


def seats(state: ManagerState) -> dict[Rank, list[TaskId]]:
    """Attempts that may go on now because what their workers have lent has come back. O(attempts that wait for that)."""
    found: dict[Rank, list[TaskId]] = {}
    for task_id, worker in list(state.returning.items()):
        if may_go_on(worker):
            del state.returning[task_id]
            found.setdefault(worker.rank, []).append(task_id)
    return found


def on_moves(state: ManagerState, rank: Rank, msg: FromTasks) -> None:
    """Attempts wait for tasks of their own, or would go on. `seats` says of the latter which may.

    Raises:
        ProtocolError: the worker does not run them, or has said so before.
    """
    worker = state.workers[rank]
    for task_id in msg.waiting:
        task = (worker.tasks or {}).get(task_id)
        if task_id in state.waiting or (task is None and state.dropped.get(task_id) != rank):
            raise ProtocolError(f"rank {rank} says that task {task_id} waits, which it does not run")
        if task is not None and task.app is not None:
            task.app.waits = True
        grants.leave(state, worker, task_id)
    for task_id in msg.back:
        if task_id not in state.waiting or (task_id not in (worker.tasks or {}) and state.dropped.get(task_id) != rank):
            raise ProtocolError(f"rank {rank} says that task {task_id} goes on, which does not wait there")
        grants.come_back(state, worker, task_id)
        state.returning[task_id] = worker
