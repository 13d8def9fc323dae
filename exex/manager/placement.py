"""Placement: which worker gets which ready task. Runs once per turn; cost O(tasks placed + workers they go to)."""

from __future__ import annotations

from exex.manager.state import ManagerState, WorkerRecord
from exex.manager.task import Status, Task

LEAST_TASK_S = 20e-6
"""What the shortest task costs a slot, overhead included. Measured; only the size of the prefetch depends on it."""

UNKNOWN_TASK_S = 1.0
"""Guess for an app of which no attempt has ended yet: long enough that nothing is queued behind it."""


def place(state: ManagerState) -> None:
    """Give ready tasks to workers: first to free slots, spread evenly, then as prefetch behind short tasks."""
    ready, free = state.ready, state.free
    while ready.count and free:
        visited: list[WorkerRecord] = []
        for left in range(len(free), 0, -1):
            if not ready.count:
                break
            worker = free.pop()  # the last that was busy is the first to look
            worker.in_free = False
            _give(state, worker, min(-(-ready.count // left), worker.slots - worker.held))
            visited.append(worker)
        for worker in reversed(visited):
            state.list_worker(worker)
    busy = state.busy
    for left in range(len(busy), 0, -1):
        if not ready.count:
            break
        worker = busy.popleft()
        worker.in_busy = False
        share = -(-ready.count // left)
        room = _prefetch_room(state, worker)
        if room > 0:
            _give(state, worker, min(share, room))
        if room > share:
            state.list_worker(worker)  # else it is full: its next Done lists it again


def _prefetch_room(state: ManagerState, worker: WorkerRecord) -> int:
    """How many tasks like the next ready one a worker may queue beyond its slots.

    None of unknown length: a task that may be long must go where a slot is free. None while more than half of what it
    may hold is left: otherwise each result would be answered by a message with one task, at many times the cost.
    """
    task = state.ready.first()
    if task is None or task.app is None or task.app.mean_s < 0:
        return 0
    full_s = worker.slots * state.prefetch_s
    spare_s = full_s - worker.held * LEAST_TASK_S - worker.held_s
    if spare_s < full_s / 2:
        return 0
    return int(spare_s / (task.app.mean_s + LEAST_TASK_S))


def _give(state: ManagerState, worker: WorkerRecord, most: int) -> None:
    """Move up to `most` ready tasks into a worker's next Assign."""
    had_some = bool(worker.outgoing)
    while most > 0:
        taken = state.ready.take(most)
        if not taken:
            break
        if state.ends_s is not None:
            taken = _shelve_what_does_not_fit(state, taken)
        most -= len(taken)
        guess_s = 0.0
        for task in taken:
            task.status = Status.ASSIGNED
            task.rank = worker.rank
            mean_s = task.app.mean_s  # type: ignore[union-attr]
            task.guess_s = mean_s = mean_s if mean_s >= 0 else UNKNOWN_TASK_S
            guess_s += mean_s
        worker.held_s += guess_s
        worker.held += len(taken)
        state.assigned += len(taken)
        worker.outgoing.extend(taken)
    if worker.outgoing and not had_some:
        state.refilled.append(worker)


def _shelve_what_does_not_fit(state: ManagerState, taken: list[Task]) -> list[Task]:
    """Set aside, for good, tasks that would not end in time; return the others. Time only grows short."""
    assert state.ends_s is not None
    left_s = state.ends_s - state.now_s
    fits: dict[int, bool] = {}
    fitting = []
    for task in taken:
        app = task.app
        assert app is not None
        fit = fits.get(app.number)
        if fit is None:
            needs_s = app.needs_s()
            fit = fits[app.number] = left_s > 0 and (not state.noticed if needs_s is None else needs_s <= left_s)
        if fit:
            fitting.append(task)
        else:
            task.status = Status.SHELVED
            state.shelved += 1
    return fitting
