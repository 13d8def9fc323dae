"""Tasks that make tasks: from when to when what they make is wanted. Pure."""

from __future__ import annotations

from exex.errors import ProtocolError
from exex.manager import grants, transitions
from exex.manager.inner import root_of
from exex.manager.state import ClientRecord, ManagerState
from exex.manager.task import Status
from exex.protocol.messages import CLIENT_SHIFT, FromTasks, Rank, TaskId


def on_said(state: ManagerState, client: ClientRecord, parent: TaskId) -> None:
    """What a task process says next as a client, this task of it says. What an earlier one has left ends."""
    inner = client.inner
    assert inner is not None
    if inner.parent == parent and state.parents.get(parent) is client:
        return
    _end_open(state, client)
    state.parents.pop(inner.parent, None)
    task = state.tasks.get(parent)
    inner.parent = parent
    inner.wanted = task is not None and task.status == Status.ASSIGNED and task.rank == inner.rank
    if task is None or not inner.wanted:
        return  # it will be stopped, and so is what it makes
    state.parents[parent] = client
    inner.depth = task.depth
    if not client.unfinished:
        inner.root = root_of(state, parent >> CLIENT_SHIFT)
        state.ready.set_root(client.number, inner.root)


def after_message(state: ManagerState, client: ClientRecord) -> None:
    """A message of a task process has been handled: what an unwanted task has made ends at once."""
    if client.inner is not None and not client.inner.wanted:
        _end_open(state, client)


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
            transitions.cancel(state, task)
    transitions.end_found(state)


def on_moves(state: ManagerState, rank: Rank, msg: FromTasks) -> None:
    """Attempts wait for tasks of their own, or do not any more.

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
