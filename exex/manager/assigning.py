"""Giving tasks to a worker that was chosen, unless they are longer than the allocation lasts. Pure."""

from __future__ import annotations

from exex.manager.nodes import WorkerRecord
from exex.manager.state import ManagerState
from exex.manager.task import LEAST_TASK_S, App, Status, Task

UNKNOWN_TASK_S = 1.0
"""Guess for an app of which no attempt has ended yet: long enough that nothing is queued behind it."""

def give(state: ManagerState, worker: WorkerRecord, most: int, below: int | None = None) -> None:
    """Move up to `most` ready small tasks into a worker's next Assign.

    Args:
        below: only those with a lower priority number; None for all.
    """
    while most > 0:
        if below is not None and not is_first_below(state, below):
            break
        taken = state.ready.take(most)
        if not taken:
            break
        if state.ends_s is not None:
            taken = _shelve_what_does_not_fit(state, taken)
        most -= len(taken)
        assign(state, worker, taken)


def give_short(state: ManagerState, worker: WorkerRecord, most: int, within_s: float) -> int:
    """Move up to `most` ready small tasks to a worker whose slots are busy: as many as take `within_s` seconds of one slot.

    None of unknown length: a task that may be long must go where a slot is free.

    Returns:
        How many it got.
    """
    taken = state.ready.take_short(most, within_s, LEAST_TASK_S)
    if state.ends_s is not None:
        taken = _shelve_what_does_not_fit(state, taken)
    assign(state, worker, taken)
    if taken and worker.held > worker.room:
        state.stock.put(worker, state.now_s)
    return len(taken)


def is_first_below(state: ManagerState, below: int) -> bool:
    """Whether the next small task has a lower priority number."""
    first = state.ready.first()
    return first is not None and first.app is not None and first.app.spec.priority < below


def assign(state: ManagerState, worker: WorkerRecord, tasks: list[Task]) -> None:
    """Move tasks that are in no queue any more into a worker's next Assign. Cost: O(tasks)."""
    if not tasks:
        return
    guess_s = 0.0
    for task in tasks:
        task.status = Status.ASSIGNED
        task.rank = worker.rank
        mean_s = task.app.mean_s  # type: ignore[union-attr]
        task.guess_s = mean_s = mean_s if mean_s >= 0 else UNKNOWN_TASK_S
        guess_s += mean_s
    worker.held_s += guess_s
    worker.held += len(tasks)
    state.assigned += len(tasks)
    if worker.tasks is None:
        worker.tasks = {}
    worker.tasks.update([(task.id, task) for task in tasks])
    if worker.outgoing is None:
        worker.outgoing = tasks
        state.refilled.append(worker)
    else:
        worker.outgoing += tasks
    if state.nodes.watched:
        state.nodes.touch(worker)
        for app in dict.fromkeys(task.app for task in tasks):
            assert app is not None
            worker.home.expect(app, state.now_s)


def fits_in_time(state: ManagerState, app: App) -> bool:
    """Whether an attempt that begins now can be expected to end before the allocation does."""
    if state.ends_s is None:
        return True
    left_s, needs_s = state.ends_s - state.now_s, app.needs_s()
    return left_s > 0 and (not state.noticed if needs_s is None else needs_s <= left_s)


def shelve(state: ManagerState, task: Task) -> None:
    """Set aside, for good, a task that would not end in time: time only grows short."""
    task.status = Status.SHELVED
    state.shelved += 1


def _shelve_what_does_not_fit(state: ManagerState, taken: list[Task]) -> list[Task]:
    """Set aside tasks that would not end in time; return the others."""
    fits: dict[int, bool] = {}
    fitting = []
    for task in taken:
        app = task.app
        assert app is not None
        fit = fits.get(app.number)
        if fit is None:
            fit = fits[app.number] = fits_in_time(state, app)
        if fit:
            fitting.append(task)
        else:
            shelve(state, task)
    return fitting
