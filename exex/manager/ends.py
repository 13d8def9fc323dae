"""How tasks end, and what that does to those that need them; when they are queued again."""

from __future__ import annotations

from concurrent.futures import CancelledError

from exex.manager import teams
from exex.manager.near_data import wait_near
from exex.manager.state import ManagerState
from exex.manager.task import CachedTask, Status, Task
from exex.protocol import payload as payloads
from exex.protocol.messages import CLIENT_SHIFT, Outcome, TaskId
from exex.protocol.payload import Payload
from exex.protocol.task_numbers import name_of, shown


def requeue(state: ManagerState, task: Task) -> None:
    """Ready a task, unless stored payloads must come first, or it is a cached call whose result is known or on the way.

    `end_found` must follow.
    """
    if state.data.in_use and not state.data.admit(task):
        return
    if not isinstance(task, CachedTask) or task.key or _enter(state, task):
        if state.data.in_use and wait_near(state, task):
            return
        state.ready.push(task)


def _enter(state: ManagerState, task: CachedTask) -> bool:
    """Whether a cached call has to run. A file that its key needs may have vanished since it was looked for."""
    try:
        return state.memo.enter(task)
    except OSError:
        return state.data.admit(task) and state.memo.enter(task)


def on_fetched(state: ManagerState, key: bytes, value: Payload | None) -> None:
    """The store's answer to `Store.fetch`; None if there is no such result, or if it does not count."""
    task = state.memo.fetched(key, value)
    if task is not None:
        requeue(state, task)
    end_found(state)


def end_found(state: ManagerState) -> None:
    """End the tasks whose value the memo knows; those that this readies may be among them. No recursion: chains are long."""
    found = state.memo.found
    while found:
        task, value = found.popleft()
        if state.tasks.get(task.id) is task:
            succeed(state, task, value)


def succeed(state: ManagerState, task: Task, value: Payload) -> None:
    """Finish a task with a value, which fills its places in the dependents. `end_found` must follow."""
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
            requeue(state, dependent)


def fail(state: ManagerState, task: Task, outcome: int, error: Payload, causes: list[TaskId] | None = None) -> None:
    """Finish a task with an error; its dependents, theirs, and so on fail for it and never run."""
    failed = [task]
    if isinstance(task, CachedTask):
        failed += state.memo.failed(task)
    for one in failed:
        state.finish_task(one, outcome, error, causes and client_numbers(causes))
    while failed:
        need = failed.pop()
        for dependent, _ in need.dependents or ():
            if state.tasks.get(dependent.id) is dependent:
                state.finish_task(dependent, Outcome.NEED_FAILED, error, client_numbers([need.id]))
                failed.append(dependent)


def client_numbers(tasks: list[TaskId]) -> list[TaskId]:
    """By which their clients know these tasks."""
    return [task & ((1 << CLIENT_SHIFT) - 1) for task in tasks]


def cancel(state: ManagerState, task: Task) -> None:
    """End a task in whatever state it is; its dependents fail with CancelledError."""
    if task.status == Status.READY:
        state.ready.forget(task)
        task.status = Status.WAITING
    elif task.status == Status.SHELVED:
        state.shelved -= 1
        task.status = Status.WAITING
    elif task.status == Status.ASSIGNED:
        state.assigned -= 1
        worker = state.workers[task.rank]
        worker.held_s -= task.guess_s
        assert worker.tasks is not None
        del worker.tasks[task.id]
        state.broken.pop(task.id, None)
        state.dropped[task.id] = task.rank
        if task.id in state.parents:
            state.orphaned.append(task.id)
        if task.id in state.teams:
            teams.condemn(state, task.id, teams.Reason.UNWANTED)
        else:
            state.drops.setdefault(task.rank, []).append(task.id)
    state.finish_task(task, Outcome.CANCELLED, b"")
    if isinstance(task, CachedTask):
        following = state.memo.cancelled(task)
        if following is not None:
            requeue(state, following)
    if task.dependents:
        error = payloads.dump_error(CancelledError(f"task {name_of(shown(task.id))} was cancelled"), "")
        for dependent, _ in task.dependents:
            if state.tasks.get(dependent.id) is dependent:
                fail(state, dependent, Outcome.NEED_FAILED, error, [task.id])
